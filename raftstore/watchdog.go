package raftstore

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"
)

// ErrStalled: a write to disk, or an apply, did not come back. The node stops,
// so that the others need not wait for it.
var ErrStalled = errors.New("raftstore: stalled")

const (
	// resignAfter is how long one append or apply may take before another node
	// is to lead: with asynchronous writes a leader whose disk hangs goes on
	// sending heartbeats.
	resignAfter = time.Second
	// stopAfter is how long until the node gives itself up.
	stopAfter = 10 * time.Second
	// watchEvery is how often the watchdog looks.
	watchEvery = 100 * time.Millisecond
)

// inFlight notes since when a step is under way: a time of the clock, 0 for none.
type inFlight struct{ since atomic.Int64 }

func (f *inFlight) begin(now time.Duration) { f.since.Store(max(1, int64(now))) }
func (f *inFlight) end()                    { f.since.Store(0) }

// stall measures how long one and the same step has been under way. It counts
// what it has seen itself: a process that was stopped as a whole, and goes on,
// has not stalled.
type stall struct {
	since  int64
	looked time.Duration
	lasted time.Duration
}

// look returns how long the step that is under way has been.
func (s *stall) look(now time.Duration, f *inFlight) time.Duration {
	since, passed := f.since.Load(), now-s.looked
	s.looked = now
	if since == 0 || since != s.since {
		s.since, s.lasted = since, 0
		return 0
	}
	s.lasted += min(passed, 2*watchEvery)
	return s.lasted
}

// watchdog looks after the appender and the applier of a node.
type watchdog struct {
	append, apply stall
	resigned      time.Duration // when the leadership was last given away
}

// advice is what the watchdog wants done.
type advice struct {
	heir uint64 // hand the leadership to this node; 0: no
	stop error
}

// look is to be called every watchEvery.
func (w *watchdog) look(now time.Duration, n *Node) (a advice) {
	what, lasted := "append to the log", w.append.look(now, &n.appendFlight)
	if apply := w.apply.look(now, &n.applyFlight); n.installing.Load() {
		w.apply.lasted, w.append.lasted = 0, 0 // takes as long as it takes
		return advice{}
	} else if apply > lasted {
		what, lasted = "apply", apply
	}
	switch {
	case lasted >= stopAfter:
		return advice{stop: fmt.Errorf("%w: an %s has not come back for %v; look at the disk", ErrStalled, what, lasted.Round(watchEvery))}
	case lasted >= resignAfter && now-w.resigned >= resignAfter:
		st := n.Status()
		if !st.Leading {
			return advice{}
		}
		if a.heir = st.heir(); a.heir != 0 { // a lone voter has nobody
			w.resigned = now
			n.cfg.Log.Warn("slow disk: the leadership is handed over", "step", what, "dur", lasted, "peer", a.heir)
		}
	}
	return a
}

// runWatchdog does what the watchdog advises.
func (s *Store) runWatchdog() {
	t := time.NewTicker(watchEvery)
	defer t.Stop()
	var w watchdog
	for {
		select {
		case <-s.stop:
			return
		case <-t.C:
		}
		a := w.look(s.cfg.Clock.Now(), s.node)
		if a.stop != nil {
			s.stalled.Store(true)
			s.halt(a.stop)
			return
		}
		if a.heir != 0 {
			s.node.Transfer(a.heir)
		}
	}
}
