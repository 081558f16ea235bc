package main

import (
	"bytes"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestMedian(t *testing.T) {
	for _, test := range []struct {
		values []float64
		want   float64
	}{
		{nil, 0},
		{[]float64{3}, 3},
		{[]float64{9, 1, 5}, 5},
		{[]float64{4, 1, 3, 2}, 2.5},
	} {
		before := append([]float64(nil), test.values...)
		if got := median(test.values); got != test.want {
			t.Errorf("median of %v is %v, want %v", test.values, got, test.want)
		}
		if !reflect.DeepEqual(test.values, before) {
			t.Errorf("median changed its argument from %v to %v", before, test.values)
		}
	}
}

// One round of five in which the machine did something else must not show in the
// ratio, since it hit both sides of that round alike; nor may one that hit one.
func TestRatio(t *testing.T) {
	measured := figure{Rates: []float64{900, 90, 910, 880, 905}}
	other := figure{Rates: []float64{1000, 100, 1000, 10, 1000}}
	b := besideOf("echo", measured, 1, other, 1, 0.9)
	if b.Ratio != 0.905 || b.Lowest != 0.9 || b.Highest != 88 {
		t.Errorf("ratio %v, from %v to %v; want 0.905, from 0.9 to 88", b.Ratio, b.Lowest, b.Highest)
	}
	if b.Name != "echo" || b.AtLeast != 0.9 {
		t.Errorf("name %q, wanted %v", b.Name, b.AtLeast)
	}

	// Calls of 32 mailboxes beside calls of one: it is mailboxes that are compared.
	b = besideOf("lookup", figure{Rates: []float64{500}}, 32, figure{Rates: []float64{2000}}, 1, 8)
	if b.Ratio != 8 {
		t.Errorf("500 calls of 32 to 2000 of 1 is %v, want 8", b.Ratio)
	}

	b = besideOf("lookup-many", figure{Rates: []float64{2000}}, 1, figure{Rates: []float64{500}}, 32, 0)
	if b.Ratio != 0.125 {
		t.Errorf("2000 calls of 1 to 500 of 32 is %v, want 0.125", b.Ratio)
	}

	// By processor time: 40 us a call of 32 beside 10 us a call of one.
	b = besideOf("lookup", figure{Rates: []float64{1}, CallerCPU: 10, ServerCPU: 30}, 32, figure{Rates: []float64{1}, CallerCPU: 4, ServerCPU: 6}, 1, 8)
	if b.ByCPU != 8 {
		t.Errorf("40 us of 32 to 10 us of 1 is %v by processor time, want 8", b.ByCPU)
	}

	// A side that did nothing at all makes no infinity, which JSON cannot say.
	b = besideOf("echo", figure{Rates: []float64{500}}, 1, figure{Rates: []float64{0}}, 1, 0)
	if math.IsInf(b.Ratio, 0) || math.IsNaN(b.Ratio) || b.Ratio != 0 {
		t.Errorf("the ratio to nothing is %v, want 0", b.Ratio)
	}
}

func TestFigure(t *testing.T) {
	round := func(calls int, took time.Duration, failed int) run {
		rec := newRecorder()
		for i := range calls {
			var err error
			if i < failed {
				err = errWrong
			}
			rec.record(i, took, err)
		}
		return rec.run(time.Second)
	}
	f := figureOf(8, []run{round(100, time.Millisecond, 0), round(300, 2*time.Millisecond, 4), round(200, 3*time.Millisecond, 0)})
	if !reflect.DeepEqual(f.Rates, []float64{100, 296, 200}) || f.Rate != 200 {
		t.Errorf("rates %v, median %v; want 100, 296, 200 and 200", f.Rates, f.Rate)
	}
	if f.InFlight != 8 || f.Calls != 600 || f.Errors != 4 || f.Error != errWrong.Error() {
		t.Errorf("%d in flight, %d calls, %d errors such as %q", f.InFlight, f.Calls, f.Errors, f.Error)
	}
	// Of all rounds: a sixth took 1 ms, half 2 ms, a third 3 ms.
	near := func(got, want int64) bool { return got > want-5 && got < want+5 }
	if l := f.Latency; !near(l.P50, 2000) || !near(l.P90, 3000) || !near(l.Curve[1], 1000) || !near(l.Max, 3000) {
		t.Errorf("latencies %+v", l)
	}
}

// sampleReport has one of everything.
func sampleReport() *report {
	load := func(ratio float64) loadResult {
		f := figure{InFlight: 64, Rate: 1000, Rates: []float64{1000}, Calls: 1000, Latency: latency{P50: 50, P90: 900, P99: 9_900, P999: 99_900, Max: 1_234_567, Curve: make([]int64, len(quantiles))}}
		return loadResult{
			Workload: "list-50", Keys: 1, Measured: f, Open: new(f),
			Beside: []besideResult{{Name: systemEcho, Keys: 1, figure: f, Ratio: ratio, Lowest: ratio, Highest: ratio, AtLeast: 0.7}},
		}
	}
	return &report{
		Begun: time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC),
		Populations: []populationReport{
			{
				Mailboxes: 100_000, Import: &importResult{By: "rookery-bench", Facts: 100_000, Seconds: 2, Rate: 50_000},
				Loads: []loadResult{load(0.8)}, Memory: &memoryResult{End: 40 << 20, Peak: 50 << 20}, Stored: 60 << 20,
				Starts: []startResult{{After: afterKill, Stale: 0.1, AtLeast: 1.5, Linearizable: 1.6, Rounds: []startRound{{0.1, 1.5, 1.6}}}},
			},
			{Mailboxes: 10_000_000, Import: &importResult{By: "rookeryctl", Facts: 10_000_000, Seconds: 901, Rate: 11_100}, Loads: []loadResult{load(0.6)}},
		},
	}
}

func TestVerdicts(t *testing.T) {
	got := map[string]bool{}
	for _, v := range sampleReport().verdicts() {
		got[formatSize(v.Population)+" "+v.What+": "+v.Measured+" "+v.Wanted] = v.Passes
	}
	want := map[string]bool{
		"100k import by rookery-bench: 2s <= 2m0s":         true,
		"100k list-50 to echo: 0.80 >= 0.7":                true,
		"100k memory, page cache apart: 50 MiB <= 512 MiB": true,
		"100k start after kill -9 under load: 1.5s <= 1s":  false,
		"10M import by rookeryctl: 15m1s <= 15m0s":         false,
		"10M list-50 to echo: 0.60 >= 0.7":                 false,
		"10M list-50, cost to that at 100k: 1.33 <= 1.2":   false,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

// Whatever is saved can be shown again: the same table and the same verdicts.
func TestReportRoundTrip(t *testing.T) {
	r := sampleReport()
	r.Verdicts = r.verdicts()
	dir := t.TempDir()
	jsonFile, plotFile := filepath.Join(dir, "r.json"), filepath.Join(dir, "r.svg")
	if err := r.save(jsonFile, plotFile); err != nil {
		t.Fatal(err)
	}
	again, err := readReport(jsonFile)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(again, r) {
		t.Errorf("got  %+v\nwant %+v", again, r)
	}
	for _, format := range formats {
		var first, second, third bytes.Buffer
		if err := r.print(&first, format); err != nil {
			t.Fatal(err)
		}
		if err := again.print(&second, format); err != nil {
			t.Fatal(err)
		}
		if err := show([]string{"-o", format, jsonFile}, &third); err != nil {
			t.Fatal(err)
		}
		if first.String() != second.String() || first.String() != third.String() {
			t.Errorf("-o %s differs after it was saved:\n%s\n%s\n%s", format, first.String(), second.String(), third.String())
		}
	}
	svg, err := os.ReadFile(plotFile)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"</svg>", "100k mailboxes: latency", "10M mailboxes: calls a second", "99.99"} {
		if !strings.Contains(string(svg), want) {
			t.Errorf("the plot does not contain %q", want)
		}
	}
}

func TestTableIsAligned(t *testing.T) {
	var out bytes.Buffer
	tables := sampleReport().tables()
	tables[0].print(&out)
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")[2:] // title, blank
	column := strings.Index(lines[0], "calls/s") + len("calls/s")
	for _, line := range lines[1:] {
		if len(line) < column || line[column-1] == ' ' || line[column] != ' ' {
			t.Errorf("calls/s does not end at column %d of %q", column, line)
		}
	}
	for _, want := range []string{"50us", "900us", "9.90ms", "99.9ms", "1.23s"} {
		if !strings.Contains(lines[1], want) {
			t.Errorf("%q does not contain %s", lines[1], want)
		}
	}

	out.Reset()
	tables[0].printMarkdown(&out)
	for line := range strings.Lines(strings.TrimSpace(out.String())) {
		if strings.HasPrefix(line, "|") && strings.Count(line, "|") != len(tables[0].headings)+1 {
			t.Errorf("%d columns in %q, want %d", strings.Count(line, "|")-1, line, len(tables[0].headings))
		}
	}
}
