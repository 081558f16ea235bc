package main

import (
	"math"
	"slices"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// A report is everything that a run found. It is saved as JSON; fields are added,
// never given another meaning.
type report struct {
	Version     string
	Begun       time.Time
	Machine     machineInfo
	Rounds      int
	Seconds     float64 // of one round of one system
	Connections int
	Populations []populationReport `json:",omitempty"`
	// Comparison is that of Rookery beside etcd; nil if this was another run.
	Comparison *comparisonReport `json:",omitempty"`
	// Masters is that of MUPDATE beside Cyrus, of each population.
	Masters  []mastersReport `json:",omitempty"`
	Verdicts []verdict
}

// populationReport is what was found at one size.
type populationReport struct {
	Mailboxes int
	Seed      uint64
	Import    *importResult `json:",omitempty"`
	Loads     []loadResult  `json:",omitempty"`
	Memory    *memoryResult `json:",omitempty"`
	Starts    []startResult `json:",omitempty"`
	Stored    int64         `json:",omitempty"` // octets of the data directory, after the loads
}

// loadResult is what one workload came to, with what stood beside it.
type loadResult struct {
	Workload string
	Keys     int // mailboxes a call
	Measured figure
	Beside   []besideResult `json:",omitempty"`
	// Open is the open loop's: nil if there was none.
	Open *figure `json:",omitempty"`
}

// besideResult is what ran by turns with a workload.
type besideResult struct {
	Name string
	Keys int
	figure
	// Ratio is the median over the rounds of what was measured to this, in
	// mailboxes a second; Lowest and Highest are the extremes.
	Ratio, Lowest, Highest float64
	// ByCPU is the ratio that the processor times of both would give if the machine
	// did nothing else and neither waited; 0 where a server's are not known.
	ByCPU   float64
	AtLeast float64 `json:",omitempty"` // wanted
}

// A figure is what one load came to on one system.
type figure struct {
	InFlight int
	Offered  float64   `json:",omitempty"` // calls a second of an open loop
	Rate     float64   // calls a second that were answered: the median of the rounds
	Rates    []float64 // of each round
	Calls    uint64
	Errors   uint64
	Error    string `json:",omitempty"` // one of them
	Late     uint64 `json:",omitempty"`
	Latency  latency
	// Processor time of a call, in microseconds, over all rounds: this process's,
	// and the server's, 0 if that is none of ours.
	CallerCPU float64
	ServerCPU float64
}

// latency is of all rounds together, in microseconds.
type latency struct {
	P50, P90, P99, P999, Max int64
	// Curve has one point for each of quantiles.
	Curve []int64
}

// quantiles are those that curves are drawn through.
var quantiles = []float64{0, 10, 25, 50, 75, 90, 95, 99, 99.5, 99.9, 99.95, 99.99, 99.999}

func latencyOf(h *hdrhistogram.Histogram) latency {
	l := latency{
		P50: h.ValueAtQuantile(50), P90: h.ValueAtQuantile(90), P99: h.ValueAtQuantile(99), P999: h.ValueAtQuantile(99.9),
		Max: h.Max(),
	}
	for _, q := range quantiles {
		l.Curve = append(l.Curve, h.ValueAtQuantile(q))
	}
	return l
}

// figureOf puts the rounds of one system together.
func figureOf(inFlight int, rounds []run) figure {
	f := figure{InFlight: inFlight}
	all := newHistogram()
	var caller, server time.Duration
	for _, r := range rounds {
		caller += r.callerCPU
		server += r.serverCPU
		f.Rates = append(f.Rates, r.rate())
		f.Calls += r.calls
		f.Errors += r.errors
		f.Late += r.late
		if r.sample != nil {
			f.Error = r.sample.Error()
		}
		all.Merge(r.hist)
	}
	f.Rate = median(f.Rates)
	f.Latency = latencyOf(all)
	f.CallerCPU = rounded(ratio(float64(caller.Microseconds()), float64(f.Calls)), 1)
	f.ServerCPU = rounded(ratio(float64(server.Microseconds()), float64(f.Calls)), 1)
	return f
}

// besideOf holds measured, of keys mailboxes a call, against other. Both have
// the same rounds.
func besideOf(name string, measured figure, keys int, other figure, otherKeys int, wanted float64) besideResult {
	b := besideResult{Name: name, Keys: otherKeys, figure: other, AtLeast: wanted}
	ratios := make([]float64, len(measured.Rates))
	for i, rate := range measured.Rates {
		ratios[i] = ratio(rate*float64(keys), other.Rates[i]*float64(otherKeys))
	}
	b.Ratio, b.Lowest, b.Highest = median(ratios), slices.Min(ratios), slices.Max(ratios)
	if measured.ServerCPU > 0 && other.ServerCPU > 0 {
		b.ByCPU = ratio((other.CallerCPU+other.ServerCPU)/float64(otherKeys), (measured.CallerCPU+measured.ServerCPU)/float64(keys))
	}
	return b
}

// ratio is a to b; 0 if there is none.
func ratio(a, b float64) float64 {
	if b <= 0 {
		return 0
	}
	return a / b
}

// median returns the middle of values, between the two in the middle if they are
// even in number; 0 of none.
func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(values))
	middle := len(s) / 2
	if len(s)%2 == 1 {
		return s[middle]
	}
	return (s[middle-1] + s[middle]) / 2
}

// rounded keeps so many decimals, for JSON that people read.
func rounded(x float64, decimals int) float64 {
	p := math.Pow10(decimals)
	return math.Round(x*p) / p
}
