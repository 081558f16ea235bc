package main_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// measure is something that a process takes and that must not grow.
type measure struct {
	name string
	show func(float64) string
	// It may grow by this share and this much before it counts: collectors,
	// compactions and preallocated segments make teeth.
	share, slack float64
}

const measures = 7

// measured is what a series holds of each look, in this order.
var measured = [measures]measure{
	{"memory (RssAnon)", mib, 0.20, 16 << 20},
	{"heap goal", mib, 0.15, 4 << 20},
	{"descriptors", plain, 0.10, 6},
	{"goroutines", plain, 0.10, 12},
	{"state file, in use", mib, 0.20, 512 << 10},
	{"log in memory", mib, 0.50, 1 << 20},
	{"files on disk", mib, 0.10, 32 << 20},
}

func plain(n float64) string { return fmt.Sprintf("%.0f", n) }

// series is what a process took, look by look.
type series struct {
	name string
	at   []time.Duration
	of   [][measures]float64
}

func (s *series) add(at time.Duration, v [measures]float64) {
	s.at, s.of = append(s.at, at), append(s.of, v)
}

// verdict is how one measure of one process went.
type verdict struct {
	first, second, last float64 // the medians of the first, the second and the last eighth
	worst               float64
	hourly              float64 // the slope of the last three quarters, by least squares
	grows               bool
}

// judge compares the median of the last eighth with that of the second: the first
// is for warming up, and a median does not mind a node that was just started or
// compacted.
func (s *series) judge(m int) (v verdict) {
	eighth := func(i int) float64 {
		from, to := len(s.of)*i/8, len(s.of)*(i+1)/8
		if from == to {
			return 0
		}
		var all []float64
		for _, row := range s.of[from:to] {
			all = append(all, row[m])
		}
		slices.Sort(all)
		return all[len(all)/2]
	}
	v.first, v.second, v.last = eighth(0), eighth(1), eighth(7)
	from := len(s.of) / 4
	var n, x, y, xx, xy float64
	for i, row := range s.of {
		v.worst = max(v.worst, row[m])
		if i >= from {
			h := s.at[i].Hours()
			n, x, y, xx, xy = n+1, x+h, y+row[m], xx+h*h, xy+h*row[m]
		}
	}
	if d := n*xx - x*x; d > 0 {
		v.hourly = (n*xy - x*y) / d
	}
	v.grows = v.last > v.second*(1+measured[m].share)+measured[m].slack
	return v
}

// report prints a table of all, and names what grows.
func report(all []*series) (table string, growing []string) {
	var b strings.Builder
	fmt.Fprintf(&b, "%-8s %-18s %12s %12s %12s %12s %14s  %s\n", "process", "measure", "first 1/8", "second 1/8", "last 1/8", "worst", "slope an hour", "verdict")
	for _, s := range all {
		for m, what := range measured {
			v := s.judge(m)
			if v.worst == 0 {
				continue
			}
			text := "flat"
			if v.grows {
				text = "GROWS"
				growing = append(growing, fmt.Sprintf("%s of %s: %s, then %s", what.name, s.name, what.show(v.second), what.show(v.last)))
			}
			fmt.Fprintf(&b, "%-8s %-18s %12s %12s %12s %12s %14s  %s\n", s.name, what.name,
				what.show(v.first), what.show(v.second), what.show(v.last), what.show(v.worst), what.show(v.hourly), text)
		}
		fmt.Fprintf(&b, "%-8s %d looks in %v\n", s.name, len(s.of), s.lasted())
	}
	return b.String(), growing
}

func (s *series) lasted() time.Duration {
	if len(s.at) == 0 {
		return 0
	}
	return s.at[len(s.at)-1].Round(time.Second)
}

// TestFlat: what grows is told from what swings.
func TestFlat(t *testing.T) {
	const looks = 480
	tests := []struct {
		name  string
		at    func(i int) float64
		grows bool
	}{
		{"constant", func(int) float64 { return 100 }, false},
		{"sawtooth", func(i int) float64 { return 100 + float64(i%17) }, false},
		{"warming up, then constant", func(i int) float64 { return min(300, 100+10*float64(i)) }, false},
		{"a node started anew in the end", func(i int) float64 {
			if i > 470 {
				return 20
			}
			return 100
		}, false},
		{"one peak at the end", func(i int) float64 {
			if i > 475 {
				return 1000
			}
			return 100
		}, false},
		{"a goroutine every four looks", func(i int) float64 { return 100 + float64(i)/4 }, true},
		{"the same under a sawtooth", func(i int) float64 { return 100 + float64(i%17) + float64(i)/4 }, true},
	}
	for _, tt := range tests {
		s := &series{name: "n1"}
		for i := range looks {
			var v [measures]float64
			v[3] = tt.at(i)
			s.add(time.Duration(i)*15*time.Second, v)
		}
		table, growing := report([]*series{s})
		if got := len(growing) > 0; got != tt.grows {
			t.Errorf("%s: grows %v, want %v\n%s", tt.name, got, tt.grows, table)
		}
	}
	s := &series{}
	for i := range looks {
		s.add(time.Duration(i)*15*time.Second, [measures]float64{3: 50 + float64(i)}) // 240 an hour
	}
	if v := s.judge(3); v.hourly < 239.9 || v.hourly > 240.1 {
		t.Errorf("a slope of %v an hour, want 240", v.hourly)
	}
}
