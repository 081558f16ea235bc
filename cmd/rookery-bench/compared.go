package main

import (
	"fmt"
	"slices"
	"strconv"
	"time"
)

// comparisonReport is what was found of Rookery beside etcd.
type comparisonReport struct {
	Mailboxes int
	Seed      uint64
	Nodes     int    // of each system
	Target    string // whom callers connected to
	Etcd      string `json:",omitempty"` // its version
	Octets    octets
	Imports   []importFigure
	Duels     []duelResult
	Systems   []systemResult
	// Restless lists the loads before which the nodes did not come to rest.
	Restless []string `json:",omitempty"`
}

// octets are the sizes of what is sent and kept for one fact, on average over the
// population.
type octets struct {
	Key    float64 // of a fact's row, in either system
	Value  float64
	Assert float64 // the request that states it to Rookery
	Put    float64 // and the one to etcd
}

// importFigure is what filling empty clusters took.
type importFigure struct {
	System  string
	Facts   int
	Seconds float64   // the median
	Each    []float64 // of each import
}

// duelResult is what one load came to on all systems, Rookery first.
type duelResult struct {
	Workload string
	Keys     int // mailboxes a call
	Sides    []sideResult
}

// sideResult is what one load came to on one system.
type sideResult struct {
	Name string
	Keys int
	figure
	// Ratios are of Rookery to this one, in mailboxes a second, of each run; none
	// at Rookery itself.
	Ratios                 []float64 `json:",omitempty"`
	Ratio, Lowest, Highest float64   `json:",omitempty"`
	// ByCPU is the ratio that the processor times of both, callers' and all nodes',
	// would give on a machine that does nothing else.
	ByCPU   float64 `json:",omitempty"`
	AtLeast float64 `json:",omitempty"` // wanted
	// Costs are those of each node, over all runs, until it was at rest again.
	Costs []nodeCost `json:",omitempty"`
	// Elections is how many terms of Raft began meanwhile: 0 where all is well.
	Elections uint64
	// Open is the open loop's, at the same rate for Rookery and etcd; nil if there
	// was none.
	Open *figure `json:",omitempty"`
}

// nodeCost is what runs cost one node.
type nodeCost struct {
	Name    string
	Led     int     // in how many of the runs it was the leader
	CPU     float64 // seconds
	Written int64   // octets that it had the kernel write to disk
}

// systemResult is what a system's nodes were in the end.
type systemResult struct {
	System string
	Nodes  []nodeResult
}

type nodeResult struct {
	Name   string
	Memory memoryResult
	Stored int64 // octets of the data directory
	State  int64 // of the file in it that holds the state
}

// compareSides computes the ratios of Rookery, the first of sides, to the others.
func compareSides(sides []sideResult) {
	first := sides[0]
	for i := 1; i < len(sides); i++ {
		s := &sides[i]
		s.Ratios = nil
		for j := range min(len(first.Rates), len(s.Rates)) {
			s.Ratios = append(s.Ratios, ratio(first.Rates[j]*float64(first.Keys), s.Rates[j]*float64(s.Keys)))
		}
		if len(s.Ratios) > 0 {
			s.Ratio, s.Lowest, s.Highest = median(s.Ratios), slices.Min(s.Ratios), slices.Max(s.Ratios)
		}
		if s.ServerCPU > 0 && first.ServerCPU > 0 {
			s.ByCPU = ratio((s.CallerCPU+s.ServerCPU)/float64(s.Keys), (first.CallerCPU+first.ServerCPU)/float64(first.Keys))
		}
	}
}

// addCosts adds what a run cost each node.
func addCosts(costs []nodeCost, members []member, leader int, used []usage) []nodeCost {
	if costs == nil {
		for _, m := range members {
			costs = append(costs, nodeCost{Name: m.name})
		}
	}
	for i := range costs {
		costs[i].CPU = rounded(costs[i].CPU+used[i].CPU.Seconds(), 2)
		costs[i].Written += used[i].Written
		if i == leader {
			costs[i].Led++
		}
	}
	return costs
}

// tables lays the comparison out.
func (c *comparisonReport) tables() []table {
	rates := table{title: "Mailboxes a second, each run, " + c.conditions(), left: 2}
	rates.headings = []string{"load", "system", "in flight"}
	ratios := table{title: "Rookery to the line's system, each run", left: 2, headings: []string{"load", "system"}}
	imports := table{title: fmt.Sprintf("Import of %s facts in name order into empty clusters, in seconds", formatSize(c.Mailboxes)), left: 1, headings: []string{"system"}}
	for i := range c.runs() {
		rates.headings = append(rates.headings, "run "+strconv.Itoa(i+1))
		ratios.headings = append(ratios.headings, "run "+strconv.Itoa(i+1))
	}
	rates.headings = append(rates.headings, "median")
	ratios.headings = append(ratios.headings, "median", "by cpu", "wanted")
	costs := table{
		title: "Latency of all runs, processor time of a call, and the open loops: calls at the same even rate to both", left: 2,
		headings: []string{"load", "system", "p50", "p99", "p99.9", "max", "errors", "elections", "caller cpu", "nodes' cpu", "offered", "open p50", "open p99", "open max"},
	}
	nodes := table{
		title: "What all runs of a load cost each node, until it was at rest again", left: 3,
		headings: []string{"load", "system", "node", "led runs", "cpu seconds", "cpu a mailbox", "written", "written a mailbox"},
	}
	sizes := table{title: "Nodes in the end", left: 2, headings: []string{"system", "node", "memory", "memory at most", "data directory", "state file"}}

	for _, d := range c.Duels {
		for _, s := range d.Sides {
			var each, held []string
			for i := range c.runs() {
				each, held = append(each, optionalOf(s.Rates, i, float64(s.Keys), "%.0f")), append(held, optionalOf(s.Ratios, i, 1, "%.2f"))
			}
			rates.add(d.Workload, s.Name, strconv.Itoa(s.InFlight), append(each, fmt.Sprintf("%.0f", s.Rate*float64(s.Keys))))
			if len(s.Ratios) > 0 {
				held = append(held, figures(s.Ratio), optional(s.ByCPU), optional(s.AtLeast))
				ratios.add(d.Workload, s.Name, held[0], held[1:])
			}
			l := s.Latency
			line := []string{
				micros(l.P99), micros(l.P999), micros(l.Max), strconv.FormatUint(s.Errors, 10), "", cpuCell(s.CallerCPU), cpuCell(s.ServerCPU),
			}
			if len(s.Costs) > 0 {
				line[4] = strconv.FormatUint(s.Elections, 10)
			}
			if o := s.Open; o != nil {
				line = append(line, fmt.Sprintf("%.0f/s", o.Offered), micros(o.Latency.P50), micros(o.Latency.P99), micros(o.Latency.Max))
			}
			costs.add(d.Workload, s.Name, micros(l.P50), line)
			facts := float64(s.Calls-min(s.Errors, s.Calls)) * float64(s.Keys)
			for _, n := range s.Costs {
				nodes.add(d.Workload, s.Name, n.Name, []string{
					strconv.Itoa(n.Led), fmt.Sprintf("%.1f", n.CPU), cpuCell(ratio(n.CPU*1e6, facts)), mebibytes(n.Written), fmt.Sprintf("%.0f B", ratio(float64(n.Written), facts)),
				})
			}
		}
	}
	for _, i := range c.Imports {
		var each []string
		for j, s := range i.Each {
			if len(imports.lines) == 0 {
				imports.headings = append(imports.headings, "run "+strconv.Itoa(j+1))
			}
			each = append(each, fmt.Sprintf("%.1f", s))
		}
		if len(imports.lines) == 0 {
			imports.headings = append(imports.headings, "median", "facts/s")
		}
		each = append(each, fmt.Sprintf("%.1f", i.Seconds), fmt.Sprintf("%.0f", ratio(float64(i.Facts), i.Seconds)))
		imports.add(i.System, each[0], each[1], each[2:])
	}
	for _, s := range c.Systems {
		for _, n := range s.Nodes {
			sizes.add(s.System, n.Name, mebibytes(n.Memory.End), []string{mebibytes(n.Memory.Peak), mebibytes(n.Stored), mebibytes(n.State)})
		}
	}
	return []table{imports, rates, ratios, costs, nodes, sizes}
}

// conditions says in words what was compared.
func (c *comparisonReport) conditions() string {
	text := fmt.Sprintf("%s mailboxes, %d nodes each, callers connected to ", formatSize(c.Mailboxes), c.Nodes)
	if c.Target == targetAll {
		text += "all nodes"
	} else {
		text += "the leader"
	}
	if c.Etcd != "" {
		text += ", etcd " + c.Etcd
	}
	return text + fmt.Sprintf("; a row of %.0f + %.0f octets on average, an assert of %.0f, a put of %.0f", c.Octets.Key, c.Octets.Value, c.Octets.Assert, c.Octets.Put)
}

func (c *comparisonReport) runs() (n int) {
	for _, d := range c.Duels {
		for _, s := range d.Sides {
			n = max(n, len(s.Rates))
		}
	}
	return n
}

// optionalOf formats one of values times a factor; nothing if it is not there.
func optionalOf(values []float64, i int, times float64, format string) string {
	if i >= len(values) {
		return ""
	}
	return fmt.Sprintf(format, values[i]*times)
}

// verdicts judges the comparison.
func (c *comparisonReport) verdicts() []verdict {
	var out []verdict
	for _, i := range c.Imports {
		if i.System != systemRookery {
			continue
		}
		within := importOfM
		if c.Mailboxes > 1_000_000 {
			within = importOf10M
		}
		took := time.Duration(i.Seconds * float64(time.Second))
		out = append(out, verdict{
			What:       fmt.Sprintf("import into %d nodes", c.Nodes),
			Population: c.Mailboxes, Measured: took.Round(100 * time.Millisecond).String(), Wanted: "<= " + within.String(), Passes: took <= within,
		})
	}
	for _, d := range c.Duels {
		for _, s := range d.Sides {
			if s.AtLeast == 0 {
				continue
			}
			out = append(out, verdict{
				What:       fmt.Sprintf("%s to %s, %d nodes", d.Workload, s.Name, c.Nodes),
				Population: c.Mailboxes, Measured: fmt.Sprintf("%.2f", s.Ratio), Wanted: fmt.Sprintf(">= %.1f", s.AtLeast), Passes: s.Ratio >= s.AtLeast,
			})
		}
	}
	return out
}
