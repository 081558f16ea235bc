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
	// WatchEvery is how often the watchdog looks.
	WatchEvery = 100 * time.Millisecond
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
	s.lasted += min(passed, 2*WatchEvery)
	return s.lasted
}

// Watchdog looks after the appender and the applier of a node. The zero value is
// ready to use.
type Watchdog struct {
	append, apply stall
	resigned      time.Duration // when the leadership was last given away
}

// Advice is what the watchdog wants done.
type Advice struct {
	Heir uint64 // hand the leadership to this node; 0: no
	Stop error  // end the node with this; nil: no
}

// Look is to be called every WatchEvery.
func (w *Watchdog) Look(now time.Duration, n *Node) (a Advice) {
	what, lasted := "append to the log", w.append.look(now, &n.appendFlight)
	if apply := w.apply.look(now, &n.applyFlight); n.installing.Load() {
		w.apply.lasted, w.append.lasted = 0, 0 // takes as long as it takes
		return Advice{}
	} else if apply > lasted {
		what, lasted = "apply", apply
	}
	switch {
	case lasted >= stopAfter:
		return Advice{Stop: fmt.Errorf("%w: an %s has not come back for %v; look at the disk", ErrStalled, what, lasted.Round(WatchEvery))}
	case lasted >= resignAfter && now-w.resigned >= resignAfter:
		st := n.Status()
		if !st.Leading {
			return Advice{}
		}
		if a.Heir = st.Heir(); a.Heir != 0 { // a lone voter has nobody
			w.resigned = now
			n.cfg.Log.Warn("slow disk: the leadership is handed over", "step", what, "dur", lasted, "peer", a.Heir)
		}
	}
	return a
}

// runWatchdog does what the watchdog advises.
func (s *Store) runWatchdog() {
	t := time.NewTicker(WatchEvery)
	defer t.Stop()
	var w Watchdog
	for {
		select {
		case <-s.stop:
			return
		case <-t.C:
		}
		a := w.Look(s.cfg.Clock.Now(), s.node)
		if a.Stop != nil {
			s.stalled.Store(true)
			s.halt(a.Stop)
			return
		}
		if a.Heir != 0 {
			s.node.Transfer(a.Heir)
		}
	}
}
