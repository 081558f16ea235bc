package main

import (
	"fmt"
	"slices"
	"strconv"
	"time"
)

// masterNames are the sides of a comparison of masters, in the order of its figures.
var masterNames = [2]string{"rookery", "cyrus"}

// mastersReport is what was found of Rookery's MUPDATE beside Cyrus's master.
type mastersReport struct {
	Mailboxes int
	Cyrus     string `json:",omitempty"` // its version
	Loads     []masterResult
	Memory    [2]uint64 // octets, page cache apart, after the loads
}

// masterResult is what one load came to, Rookery first.
type masterResult struct {
	Load    string
	Rates   [2][]float64 // how often a second, of each run
	Rate    [2]float64   // medians
	Ratios  []float64    // of Rookery to Cyrus, of each run
	Ratio   float64      // median
	AtLeast float64      `json:",omitempty"` // wanted
}

// What is started: a master, until its first answer, and a frontend of Cyrus that knows
// nothing, until it has everything.
const (
	startLoad = "start to serving"
	syncLoad  = "first sync of a frontend"
)

func (r *masterResult) settle() {
	for i := range r.Rates {
		r.Rate[i] = median(r.Rates[i])
	}
	r.Ratios = nil
	for i := range r.Rates[0] {
		r.Ratios = append(r.Ratios, ratio(r.Rates[0][i], r.Rates[1][i]))
	}
	r.Ratio = median(r.Ratios)
}

// tables lays it out.
func (m *mastersReport) tables() []table {
	t := table{
		title:    fmt.Sprintf("MUPDATE at %s mailboxes, beside the master of Cyrus %s: one node each, medians; the ratio is rookery to cyrus", formatSize(m.Mailboxes), m.Cyrus),
		left:     1,
		headings: []string{"what", masterNames[0], masterNames[1], "ratio", "lowest", "highest", "wanted"},
	}
	for _, l := range m.Loads {
		wanted := ""
		if l.AtLeast > 0 {
			wanted = fmt.Sprintf("%.1f", l.AtLeast)
		}
		t.add(l.Load, l.cell(0), l.cell(1), []string{figures(l.Ratio), figures(slices.Min(l.Ratios)), figures(slices.Max(l.Ratios)), wanted})
	}
	t.add("memory, page cache apart", mebibytes(m.Memory[0]), mebibytes(m.Memory[1]), nil)
	return []table{t}
}

// cell writes a rate; of what is done less than ten times a second, how long it takes.
func (r *masterResult) cell(side int) string {
	rate := r.Rate[side]
	if slices.Max(r.Rate[:]) >= 100 && r.AtLeast > 0 {
		return strconv.FormatFloat(rate, 'f', 0, 64) + "/s"
	}
	return micros(int64(1e6 / rate))
}

// verdicts judges the comparison.
func (m *mastersReport) verdicts() []verdict {
	var out []verdict
	for _, l := range m.Loads {
		if l.AtLeast > 0 {
			out = append(out, verdict{
				What: l.Load + " to cyrus", Population: m.Mailboxes, Measured: fmt.Sprintf("%.2f", l.Ratio),
				Wanted: fmt.Sprintf(">= %.1f", l.AtLeast), Passes: l.Ratio >= l.AtLeast,
			})
		}
		if l.Load == startLoad {
			took := time.Duration(1 / l.Rate[0] * float64(time.Second))
			out = append(out, verdict{
				What: "MUPDATE, " + startLoad, Population: m.Mailboxes, Measured: took.Round(time.Millisecond).String(),
				Wanted: "<= " + startWithin.String(), Passes: took <= startWithin,
			})
		}
	}
	return out
}
