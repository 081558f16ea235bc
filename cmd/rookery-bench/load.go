package main

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// A call does one call of a workload: one request and its answer, checked. It
// belongs to one worker and is used by one goroutine.
type call func(ctx context.Context) error

// A run is what a load came to.
type run struct {
	calls   uint64 // answered or failed
	errors  uint64
	sample  error // one of the errors
	elapsed time.Duration
	hist    *hdrhistogram.Histogram // of microseconds, errors included
	// late are the calls of an open loop that were due and not begun when it was
	// given up. They are in hist with the time they had waited by then, and count
	// as errors.
	late uint64
	// Processor time used by this process and by the server's, if that is known.
	callerCPU, serverCPU time.Duration
}

// rate returns calls a second, those that failed left out.
func (r run) rate() float64 {
	if r.elapsed <= 0 {
		return 0
	}
	return float64(r.calls-min(r.errors, r.calls)) / r.elapsed.Seconds()
}

// closedLoop has each worker call again as soon as it was answered, for that
// long. It finds out how much can be done; how long callers wait it tells only
// of callers that wait for each other.
func closedLoop(ctx context.Context, workers []call, length time.Duration) run {
	rec := newRecorder()
	begin := time.Now()
	end := begin.Add(length)
	var wg sync.WaitGroup
	for i, do := range workers {
		wg.Go(func() {
			for t := time.Now(); t.Before(end) && ctx.Err() == nil; {
				err := do(ctx)
				now := time.Now()
				rec.record(i, now.Sub(t), err)
				t = now
			}
		})
	}
	wg.Wait()
	return rec.run(time.Since(begin))
}

// openLoop makes calls at that rate, evenly spaced, whether or not earlier ones
// were answered, as many at once as there are workers. A call's latency counts
// from when it should have begun: one that had to wait because all workers hung
// waited as well. So a stall of the server shows in every call that fell into
// it, not in one (no coordinated omission).
//
// If the server cannot keep up, the load is given up after twice its length.
func openLoop(ctx context.Context, workers []call, rate float64, length time.Duration) run {
	rec := newRecorder()
	begin := time.Now()
	giveUp := begin.Add(2 * length)
	due := func(n int64) time.Time { return begin.Add(time.Duration(float64(n) / rate * float64(time.Second))) }
	total := int64(rate * length.Seconds())

	var next atomic.Int64
	var late atomic.Uint64
	var wg sync.WaitGroup
	for i, do := range workers {
		wg.Go(func() {
			timer := time.NewTimer(0)
			defer timer.Stop()
			for n := next.Add(1) - 1; n < total; n = next.Add(1) - 1 {
				start := due(n)
				if wait := time.Until(start); wait > 0 {
					timer.Reset(wait)
					select {
					case <-timer.C:
					case <-ctx.Done():
						return
					}
				}
				if now := time.Now(); now.After(giveUp) || ctx.Err() != nil {
					late.Add(1)
					rec.record(i, now.Sub(start), errLate)
					continue
				}
				err := do(ctx)
				rec.record(i, time.Since(start), err)
			}
		})
	}
	wg.Wait()
	r := rec.run(time.Since(begin))
	r.late = late.Load()
	return r
}

func (r *recorder) run(elapsed time.Duration) run {
	hist, errors, sample := r.total()
	return run{calls: uint64(hist.TotalCount()), errors: errors, sample: sample, elapsed: elapsed, hist: hist}
}
