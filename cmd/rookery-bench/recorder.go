package main

import (
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// What a histogram holds: microseconds up to two minutes, to three digits.
const (
	shortestLatency = 1
	longestLatency  = 120_000_000
	latencyDigits   = 3
)

// A recorder counts calls and how long they took. It may be used by many
// goroutines at once.
type recorder struct {
	stripes [8]stripe
}

// A stripe is a part of a recorder, so that workers do not wait for each other.
type stripe struct {
	mu     sync.Mutex
	hist   *hdrhistogram.Histogram
	errors uint64
	sample error // one of the errors

	_ [64]byte // the next stripe's lock is on another cache line
}

func newRecorder() *recorder {
	r := new(recorder)
	for i := range r.stripes {
		r.stripes[i].hist = newHistogram()
	}
	return r
}

func newHistogram() *hdrhistogram.Histogram {
	return hdrhistogram.New(shortestLatency, longestLatency, latencyDigits)
}

// record notes one call by that worker. A failed call counts as an error and,
// since whoever made it waited too, in the latencies.
func (r *recorder) record(worker int, took time.Duration, err error) {
	s := &r.stripes[worker%len(r.stripes)]
	us := min(max(took.Microseconds(), shortestLatency), longestLatency)
	s.mu.Lock()
	defer s.mu.Unlock()
	// A value in range is never refused.
	_ = s.hist.RecordValue(us)
	if err != nil {
		s.errors++
		s.sample = err
	}
}

// total puts the stripes together.
func (r *recorder) total() (hist *hdrhistogram.Histogram, errors uint64, sample error) {
	hist = newHistogram()
	for i := range r.stripes {
		s := &r.stripes[i]
		s.mu.Lock()
		hist.Merge(s.hist)
		errors += s.errors
		if s.sample != nil {
			sample = s.sample
		}
		s.mu.Unlock()
	}
	return hist, errors, sample
}
