package sim

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Counts is what happened, so that a run in which nothing did proves nothing.
type Counts struct {
	Events, Steps                 int
	Messages, Lost, Doubled       int
	Proposed, Forwarded, Acked    int
	Applies, Commands             int
	Calls, Refused, Reads, Locals int
	Elections, Restarts, Restores int
	// Snapshots: sent, damaged on their way, installed, not taken.
	Sent, Broken, Installed, NotTaken int
	Reconfigured, Swaps, Scrubs       int
	Storms                            int
	Switchovers, Imports              int // of primaries, done; of lists, to the end
	Faults                            map[string]int
	// Resumed is how long, in units, writes had to wait after each storm.
	Resumed []float64
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

// add adds what happened in another world.
func (c *Counts) add(o *Counts) {
	for _, n := range []struct{ to, from *int }{
		{&c.Events, &o.Events}, {&c.Steps, &o.Steps}, {&c.Messages, &o.Messages}, {&c.Lost, &o.Lost}, {&c.Doubled, &o.Doubled},
		{&c.Proposed, &o.Proposed}, {&c.Forwarded, &o.Forwarded}, {&c.Acked, &o.Acked}, {&c.Applies, &o.Applies}, {&c.Commands, &o.Commands},
		{&c.Calls, &o.Calls}, {&c.Refused, &o.Refused}, {&c.Reads, &o.Reads}, {&c.Locals, &o.Locals},
		{&c.Elections, &o.Elections}, {&c.Restarts, &o.Restarts}, {&c.Restores, &o.Restores},
		{&c.Sent, &o.Sent}, {&c.Broken, &o.Broken}, {&c.Installed, &o.Installed}, {&c.NotTaken, &o.NotTaken},
		{&c.Reconfigured, &o.Reconfigured}, {&c.Swaps, &o.Swaps}, {&c.Scrubs, &o.Scrubs}, {&c.Storms, &o.Storms},
		{&c.Switchovers, &o.Switchovers}, {&c.Imports, &o.Imports},
	} {
		*n.to += *n.from
	}
	for kind, n := range o.Faults {
		c.Fault(kind, n)
	}
	c.Resumed = append(c.Resumed, o.Resumed...)
}

// String is some lines about it.
func (c *Counts) String() string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, "sim: "+format+"\n", args...) }
	line("%d events, %d steps, %d messages, %d lost, %d doubled", c.Events, c.Steps, c.Messages, c.Lost, c.Doubled)
	line("%d calls, %d refused; %d proposals, %d forwarded, %d acknowledged; %d commands, applied %d times; %d linearizable and %d local reads",
		c.Calls, c.Refused, c.Proposed, c.Forwarded, c.Acked, c.Commands, c.Applies, c.Reads, c.Locals)
	line("%d elections, %d restarts, %d membership changes, %d clusters made anew; snapshots: %d sent, %d damaged, %d installed, %d not taken; %d state files exchanged, %d scrubbed",
		c.Elections, c.Restarts, c.Reconfigured, c.Restores, c.Sent, c.Broken, c.Installed, c.NotTaken, c.Swaps, c.Scrubs)
	line("%d primaries switched over, %d lists imported", c.Switchovers, c.Imports)
	line("faults: %s", c.faults())
	if n := len(c.Resumed); n > 0 {
		all := slices.Sorted(slices.Values(c.Resumed))
		line("after each of %d storms writes went on within: p50 %.2f, p99 %.2f, max %.2f s, where an election takes 0.3 to 0.6 s",
			c.Storms, all[n/2], all[n*99/100], all[n-1])
	}
	return b.String()
}

// enough tells what there was too little of in so much time.
func (c *Counts) enough(d time.Duration) (missing []string) {
	for _, want := range []struct {
		what string
		got  int
		per  time.Duration // one in so much time
	}{
		{"acknowledged commands", c.Acked, 2 * time.Second}, {"linearizable reads", c.Reads, 10 * time.Second},
		{"elections", c.Elections, 250 * time.Second}, {"restarts", c.Restarts, 250 * time.Second},
		{"snapshots", c.Installed, 2000 * time.Second}, {"storms", c.Storms, 500 * time.Second}, {"scrubs", c.Scrubs, 500 * time.Second},
		{"switchovers", c.Switchovers, 3000 * time.Second}, {"imports", c.Imports, 3000 * time.Second},
	} {
		if least := int(d / want.per); want.got < least {
			missing = append(missing, fmt.Sprintf("%d %s, want %d", want.got, want.what, least))
		}
	}
	return missing
}
