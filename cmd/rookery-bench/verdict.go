package main

import (
	"fmt"
	"time"
)

// A verdict holds a figure against what is wanted of it.
type verdict struct {
	What       string
	Population int
	Measured   string
	Wanted     string
	Passes     bool
}

// What is wanted besides the ratios that stand at the workloads.
const (
	listGrowth   = 1.2              // LIST at the largest population to the smallest, in what it costs
	startWithin  = time.Second      // start to serving, at ten million
	memoryWithin = 512 << 20        // for itself, at ten million
	importOfM    = 2 * time.Minute  // a million facts
	importOf10M  = 15 * time.Minute // ten million
)

// verdicts judges what was measured. What was not measured gets none. Targets
// that are stated for ten million mailboxes are held against smaller populations
// too: there they must be kept the more.
func (r *report) verdicts() []verdict {
	var out []verdict
	add := func(population int, passes bool, what, measured, wanted string) {
		out = append(out, verdict{What: what, Population: population, Measured: measured, Wanted: wanted, Passes: passes})
	}
	for _, p := range r.Populations {
		if i := p.Import; i != nil {
			within := importOfM
			if p.Mailboxes > 1_000_000 {
				within = importOf10M
			}
			took := time.Duration(i.Seconds * float64(time.Second))
			add(p.Mailboxes, took <= within, "import by "+i.By, took.Round(100*time.Millisecond).String(), "<= "+within.String())
		}
		for _, l := range p.Loads {
			for _, b := range l.Beside {
				if b.AtLeast > 0 {
					add(p.Mailboxes, b.Ratio >= b.AtLeast, l.Workload+" to "+b.Name, fmt.Sprintf("%.2f", b.Ratio), fmt.Sprintf(">= %.1f", b.AtLeast))
				}
			}
		}
		if m := p.Memory; m != nil {
			add(p.Mailboxes, m.Peak <= memoryWithin, "memory, page cache apart", mebibytes(m.Peak), "<= "+mebibytes(memoryWithin))
		}
		for _, s := range p.Starts {
			took := time.Duration(s.AtLeast * float64(time.Second))
			add(p.Mailboxes, took <= startWithin, "start after "+s.After, took.Round(time.Millisecond).String(), "<= "+startWithin.String())
		}
	}
	if v, ok := r.listVerdict(); ok {
		out = append(out, v)
	}
	if r.Comparison != nil {
		out = append(out, r.Comparison.verdicts()...)
	}
	for i := range r.Masters {
		out = append(out, r.Masters[i].verdicts()...)
	}
	return out
}

// listVerdict compares what a LIST costs at the largest population with the
// smallest, each in calls of the echo of its own minutes.
func (r *report) listVerdict() (verdict, bool) {
	var small, large *populationReport
	for i := range r.Populations {
		p := &r.Populations[i]
		if p.list() == 0 {
			continue
		}
		if small == nil || p.Mailboxes < small.Mailboxes {
			small = p
		}
		if large == nil || p.Mailboxes > large.Mailboxes {
			large = p
		}
	}
	if small == large {
		return verdict{}, false
	}
	growth := ratio(small.list(), large.list())
	return verdict{
		What:       "list-50, cost to that at " + formatSize(small.Mailboxes),
		Population: large.Mailboxes,
		Measured:   fmt.Sprintf("%.2f", growth),
		Wanted:     fmt.Sprintf("<= %.1f", listGrowth),
		Passes:     growth <= listGrowth,
	}, true
}

// list returns the ratio of LIST to its echo, 0 if it was not measured.
func (p *populationReport) list() float64 {
	for _, l := range p.Loads {
		if l.Workload != "list-50" {
			continue
		}
		for _, b := range l.Beside {
			if b.Name == systemEcho {
				return b.Ratio
			}
		}
	}
	return 0
}

func mebibytes[N uint64 | int64 | int](octets N) string {
	return fmt.Sprintf("%.0f MiB", float64(octets)/(1<<20))
}
