package main

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// A server that answers in 1 ms, but hangs for one second in the middle: of 10
// seconds at 1,000 calls a second, 1,000 fell into the stall and waited half a
// second on average. A closed loop of one worker sees one slow call.
func TestOpenLoopSeesStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		stalled := func(context.Context) error {
			if at := time.Since(begin); at >= 5*time.Second && at < 6*time.Second {
				time.Sleep(6*time.Second - at)
			}
			time.Sleep(time.Millisecond)
			return nil
		}
		workers := make([]call, 4)
		for i := range workers {
			workers[i] = stalled
		}
		r := openLoop(t.Context(), workers, 1000, 10*time.Second)
		if r.calls != 10_000 || r.errors != 0 || r.late != 0 {
			t.Fatalf("%d calls, %d errors, %d late; want 10000, 0, 0", r.calls, r.errors, r.late)
		}
		if r.elapsed < 10*time.Second-time.Millisecond || r.elapsed > 10*time.Second+10*time.Millisecond {
			t.Errorf("it took %v, want 10s", r.elapsed)
		}
		slow := 0
		for _, bar := range r.hist.Distribution() {
			if bar.From > 10_000 {
				slow += int(bar.Count)
			}
		}
		if slow < 1_000 || slow > 1_500 {
			t.Errorf("%d calls waited more than 10 ms, want those of the stall and of the backlog after it: 1000 to 1500", slow)
		}
		if p99 := time.Duration(r.hist.ValueAtQuantile(99)) * time.Microsecond; p99 < 850*time.Millisecond {
			t.Errorf("p99 is %v, want at least 850ms", p99)
		}
		if longest := time.Duration(r.hist.Max()) * time.Microsecond; longest < 990*time.Millisecond || longest > 1010*time.Millisecond {
			t.Errorf("the longest took %v, want 1s", longest)
		}
	})
}

func TestClosedLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broken := errors.New("broken")
		n := 0
		r := closedLoop(t.Context(), []call{
			func(context.Context) error { time.Sleep(10 * time.Millisecond); return nil },
			func(context.Context) error {
				time.Sleep(20 * time.Millisecond)
				if n++; n%2 == 0 {
					return broken
				}
				return nil
			},
		}, time.Second)
		if r.calls != 150 || r.errors != 25 || r.sample != broken {
			t.Errorf("%d calls, %d errors, such as %v; want 150, 25, %v", r.calls, r.errors, r.sample, broken)
		}
		if got := r.rate(); got != 125 {
			t.Errorf("rate %v, want 125: failed calls are not counted", got)
		}
		if got := r.hist.ValueAtQuantile(50); got < 9_990 || got > 10_010 {
			t.Errorf("p50 is %d us, want 10000", got)
		}
		if got := r.hist.ValueAtQuantile(99); got < 19_980 || got > 20_020 {
			t.Errorf("p99 is %d us, want 20000", got)
		}
	})
}

// A server that does half of what is asked: the load ends after twice its length
// and says how much was never begun.
func TestOpenLoopGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := openLoop(t.Context(), []call{func(context.Context) error { time.Sleep(10 * time.Millisecond); return nil }}, 1000, time.Second)
		if r.calls != 1000 {
			t.Errorf("%d calls counted, want all 1000 that were due", r.calls)
		}
		if r.late < 795 || r.late > 805 || r.errors != r.late {
			t.Errorf("%d were late and %d errors, want about 800 of both", r.late, r.errors)
		}
		if got := time.Duration(r.hist.ValueAtQuantile(90)) * time.Microsecond; got < time.Second {
			t.Errorf("p90 is %v: calls never begun must count as having waited", got)
		}
	})
}

func TestLoopsEndWithContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		wait := []call{func(ctx context.Context) error { time.Sleep(10 * time.Millisecond); return ctx.Err() }}
		begin := time.Now()
		closedLoop(ctx, wait, time.Hour)
		openLoop(ctx, wait, 10, time.Hour)
		if took := time.Since(begin); took > 2*time.Second {
			t.Errorf("canceled after 1s, they ended after %v", took)
		}
	})
}

func TestRecorderMerges(t *testing.T) {
	rec := newRecorder()
	for worker := range 100 {
		rec.record(worker, time.Duration(worker+1)*time.Millisecond, nil)
	}
	rec.record(3, time.Hour, errLate) // beyond the range: counted as the longest
	r := rec.run(time.Second)
	if r.calls != 101 || r.errors != 1 || r.sample != errLate {
		t.Errorf("%d calls, %d errors, such as %v; want 101, 1, %v", r.calls, r.errors, r.sample, errLate)
	}
	for _, test := range []struct {
		quantile float64
		want     time.Duration
	}{{1, time.Millisecond}, {50, 51 * time.Millisecond}, {90, 91 * time.Millisecond}, {99, 100 * time.Millisecond}, {100, 2 * time.Minute}} {
		got := time.Duration(r.hist.ValueAtQuantile(test.quantile)) * time.Microsecond
		if diff := (got - test.want).Abs(); diff > test.want/500 {
			t.Errorf("p%v is %v, want %v", test.quantile, got, test.want)
		}
	}
}
