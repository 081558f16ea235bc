package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
)

// formats are what a report can be printed as.
var formats = []string{"table", "markdown", "json"}

// A table is what people read of a report: lines of cells under headings.
type table struct {
	title    string
	headings []string
	left     int // so many columns are set left, the others right
	lines    [][]string
}

// tables lays the report out.
func (r *report) tables() []table {
	loads := table{
		title: "Loads. Rates are medians of the rounds, latencies of all of them; cpu is a call's processor time; the ratio is rookery to the line's system, in mailboxes a second",
		headings: []string{"mailboxes", "workload", "system", "in flight", "calls/s", "keys/s", "p50", "p90", "p99", "p99.9", "max",
			"errors", "caller cpu", "server cpu", "ratio", "lowest", "highest", "by cpu", "wanted"},
		left: 3,
	}
	imports := table{title: "Import", headings: []string{"mailboxes", "by", "seconds", "facts/s"}, left: 2}
	starts := table{title: "Start, in seconds to the first answer, page cache warm", headings: []string{"mailboxes", "after", "stale", "at least", "linearizable"}, left: 2}
	sizes := table{title: "Sizes", headings: []string{"mailboxes", "memory at the end", "memory at most", "data directory"}, left: 1}
	verdicts := table{title: "Against what is wanted", headings: []string{"mailboxes", "what", "measured", "wanted", ""}, left: 2}

	for _, p := range r.Populations {
		size := formatSize(p.Mailboxes)
		for _, l := range p.Loads {
			loads.add(size, l.Workload, systemRookery, l.Measured.cells(l.Keys))
			for _, b := range l.Beside {
				wanted := ""
				if b.AtLeast > 0 {
					wanted = fmt.Sprintf("%.1f", b.AtLeast)
				}
				loads.add(size, l.Workload, b.Name, append(b.cells(b.Keys), figures(b.Ratio), figures(b.Lowest), figures(b.Highest), optional(b.ByCPU), wanted))
			}
			if l.Open != nil {
				loads.add(size, l.Workload, fmt.Sprintf("open, %.0f/s", l.Open.Offered), l.Open.cells(l.Keys))
			}
		}
		if i := p.Import; i != nil {
			imports.add(size, i.By, fmt.Sprintf("%.1f", i.Seconds), []string{fmt.Sprintf("%.0f", i.Rate)})
		}
		for _, s := range p.Starts {
			starts.add(size, s.After, fmt.Sprintf("%.3f", s.Stale), []string{fmt.Sprintf("%.3f", s.AtLeast), fmt.Sprintf("%.3f", s.Linearizable)})
		}
		if m := p.Memory; m != nil {
			sizes.add(size, mebibytes(m.End), mebibytes(m.Peak), []string{mebibytes(p.Stored)})
		}
	}
	for _, v := range r.Verdicts {
		word := "falls short"
		if v.Passes {
			word = "passes"
		}
		verdicts.add(formatSize(v.Population), v.What, v.Measured, []string{v.Wanted, word})
	}

	var out []table
	all := []table{loads, imports, starts, sizes}
	if r.Comparison != nil {
		all = append(all, r.Comparison.tables()...)
	}
	for i := range r.Masters {
		all = append(all, r.Masters[i].tables()...)
	}
	for _, t := range append(all, verdicts) {
		if len(t.lines) > 0 {
			out = append(out, t)
		}
	}
	return out
}

// cells are those of a figure, from "in flight" to "server cpu".
func (f figure) cells(keys int) []string {
	l := f.Latency
	return []string{
		strconv.Itoa(f.InFlight), fmt.Sprintf("%.0f", f.Rate), fmt.Sprintf("%.0f", f.Rate*float64(keys)),
		micros(l.P50), micros(l.P90), micros(l.P99), micros(l.P999), micros(l.Max), strconv.FormatUint(f.Errors, 10),
		cpuCell(f.CallerCPU), cpuCell(f.ServerCPU),
	}
}

// cpuCell writes the processor time of a call; nothing if it is not known.
func cpuCell(us float64) string {
	if us == 0 {
		return ""
	}
	return micros(int64(us + 0.5))
}

// optional writes a ratio; nothing if there is none.
func optional(x float64) string {
	if x == 0 {
		return ""
	}
	return figures(x)
}

// micros writes microseconds to three digits.
func micros(us int64) string {
	d := time.Duration(us) * time.Microsecond
	switch {
	case d < time.Millisecond:
		return strconv.FormatInt(us, 10) + "us"
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%.2fms", d.Seconds()*1e3)
	case d < 100*time.Millisecond:
		return fmt.Sprintf("%.1fms", d.Seconds()*1e3)
	case d < time.Second:
		return fmt.Sprintf("%.0fms", d.Seconds()*1e3)
	}
	return fmt.Sprintf("%.2fs", d.Seconds())
}

// figures writes a ratio to two decimals, a small one to as many digits.
func figures(x float64) string {
	if x > 0 && x < 0.1 {
		return strconv.FormatFloat(x, 'g', 2, 64)
	}
	return strconv.FormatFloat(x, 'f', 2, 64)
}

func (t *table) add(a, b, c string, rest []string) {
	line := append([]string{a, b, c}, rest...)
	for len(line) < len(t.headings) {
		line = append(line, "")
	}
	t.lines = append(t.lines, line)
}

// print writes the table with its columns aligned.
func (t table) print(out io.Writer) {
	width := t.widths()
	fmt.Fprintf(out, "\n%s\n\n", t.title)
	for _, line := range append([][]string{t.headings}, t.lines...) {
		var b strings.Builder
		for i, cell := range line {
			if i > 0 {
				b.WriteString("  ")
			}
			b.WriteString(t.pad(i, cell, width[i]))
		}
		fmt.Fprintln(out, strings.TrimRight(b.String(), " "))
	}
}

// printMarkdown writes the table for a document.
func (t table) printMarkdown(out io.Writer) {
	width := t.widths()
	rule := make([]string, len(t.headings))
	for i := range rule {
		width[i] = max(width[i], 3)
		rule[i] = strings.Repeat("-", width[i])
		if i >= t.left {
			rule[i] = rule[i][1:] + ":"
		}
	}
	fmt.Fprintf(out, "\n%s:\n\n", t.title)
	for _, line := range append([][]string{t.headings, rule}, t.lines...) {
		for i, cell := range line {
			fmt.Fprintf(out, "| %s ", t.pad(i, cell, width[i]))
		}
		fmt.Fprintln(out, "|")
	}
}

func (t table) widths() []int {
	width := make([]int, len(t.headings))
	for _, line := range append([][]string{t.headings}, t.lines...) {
		for i, cell := range line {
			width[i] = max(width[i], len(cell))
		}
	}
	return width
}

func (t table) pad(column int, cell string, width int) string {
	if column < t.left {
		return fmt.Sprintf("%-*s", width, cell)
	}
	return fmt.Sprintf("%*s", width, cell)
}
