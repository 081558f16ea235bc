package sim

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Counts is what happened, so that a run in which nothing did proves nothing.
type Counts struct {
	Events, Steps                     int
	Messages, Lost, Doubled           int
	Proposed, Forwarded, Acked        int
	Applies, Commands                 int
	Calls, Refused, Reads, Locals     int
	Elections, Restarts               int
	Sent, Broken, Installed, NotTaken int // snapshots
	Restores                          int
	Faults                            map[string]int
}

// Fault counts one of a kind.
func (c *Counts) Fault(kind string, n int) {
	if c.Faults == nil {
		c.Faults = make(map[string]int)
	}
	c.Faults[kind] += n
}

// faults lists them by kind.
func (c *Counts) faults() string {
	var all []string
	for _, kind := range slices.Sorted(maps.Keys(c.Faults)) {
		all = append(all, fmt.Sprintf("%s %d", kind, c.Faults[kind]))
	}
	return strings.Join(all, ", ")
}
