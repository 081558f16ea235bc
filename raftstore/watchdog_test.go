package raftstore

import (
	"errors"
	"sync/atomic"
	"testing"
	"time"
)

// watch lets the watchdog look for a while, the nodes' clock going on.
func (b *bench) watch(w *Watchdog, n *Node, d time.Duration) (heirs int, stop error) {
	for end := b.now + d; b.now < end; b.now += WatchEvery {
		a := w.Look(b.now, n)
		if a.Heir != 0 {
			heirs++
		}
		if a.Stop != nil {
			return heirs, a.Stop
		}
	}
	return heirs, nil
}

func TestWatchdog(t *testing.T) {
	b, leader := three(t)
	w := &Watchdog{}
	if heirs, err := b.watch(w, leader, 20*time.Second); heirs != 0 || err != nil {
		t.Errorf("idle for long: handed over %d times, %v", heirs, err)
	}
	leader.appendFlight.begin(b.now)
	if heirs, err := b.watch(w, leader, 900*time.Millisecond); heirs != 0 || err != nil {
		t.Errorf("an append of 0.9 s: handed over %d times, %v", heirs, err)
	}
	if heirs, err := b.watch(w, leader, 400*time.Millisecond); heirs != 1 || err != nil {
		t.Errorf("an append of 1.3 s: handed over %d times, %v; want once", heirs, err)
	}
	if _, err := b.watch(w, leader, 10*time.Second); !errors.Is(err, ErrStalled) {
		t.Errorf("an append of 11 s: got %v, want ErrStalled", err)
	}
	leader.appendFlight.end()
	leader.applyFlight.begin(b.now)
	leader.installing.Store(true)
	if heirs, err := b.watch(w, leader, time.Minute); heirs != 0 || err != nil {
		t.Errorf("while a snapshot is installed: handed over %d times, %v", heirs, err)
	}
	leader.installing.Store(false)
	leader.applyFlight.end()
	// A step that ends and begins anew is not one that hangs.
	for range 100 {
		leader.applyFlight.begin(b.now)
		if heirs, err := b.watch(w, leader, 500*time.Millisecond); heirs != 0 || err != nil {
			t.Fatalf("steps of half a second: handed over %d times, %v", heirs, err)
		}
	}
}

// TestWatchdogAfterSleep: a process that was stopped as a whole has not stalled.
func TestWatchdogAfterSleep(t *testing.T) {
	b, leader := three(t)
	w := &Watchdog{}
	leader.appendFlight.begin(b.now)
	w.Look(b.now, leader)
	b.now += time.Hour
	if a := w.Look(b.now, leader); a.Heir != 0 || a.Stop != nil {
		t.Errorf("after an hour's sleep: %+v, want nothing", a)
	}
}

func TestWatchdogAlone(t *testing.T) {
	b := newBench(t)
	n := b.single()
	b.ok(b.settle())
	n.appendFlight.begin(b.now)
	if heirs, err := b.watch(&Watchdog{}, n, 5*time.Second); heirs != 0 || err != nil {
		t.Errorf("a lone voter: handed over %d times, %v", heirs, err)
	}
}

// hungLog is a log whose sync, once armed, does not come back until hang is closed.
type hungLog struct {
	LogStore
	armed         *atomic.Bool
	reached, hang chan struct{}
}

func (l hungLog) Sync() error {
	if l.armed.CompareAndSwap(true, false) {
		close(l.reached)
		<-l.hang
	}
	return l.LogStore.Sync()
}

// TestStalledStoreEnds: Done is closed although a step cannot be waited for.
func TestStalledStoreEnds(t *testing.T) {
	var armed atomic.Bool
	synced, hang := make(chan struct{}), make(chan struct{})
	cfg := testConfig(t)
	cfg.wrapLog = func(l LogStore) LogStore { return hungLog{l, &armed, synced, hang} }
	s := open(t, cfg)
	propose(t, s, "put b 1") // the appender has nothing more to do
	armed.Store(true)
	answer := make(chan error, 1)
	go func() {
		_, err := s.Propose(t.Context(), []byte("put a 1"))
		answer <- err
	}()
	<-synced
	s.stalled.Store(true)
	s.halt(ErrStalled)
	select {
	case <-s.Done():
	case <-time.After(5 * time.Second):
		t.Fatal("the store waits for a step that hangs")
	}
	if err := <-answer; !errors.Is(err, ErrStopped) || !errors.Is(err, ErrStalled) {
		t.Errorf("the proposal: got %v, want ErrStopped because of ErrStalled", err)
	}
	close(hang)
	s.running.Wait()
	s.node.Stop(ErrStopped)
	if err := s.files.close(); err != nil {
		t.Error(err)
	}
}
