package raftstore

import (
	"maps"
	"slices"
	"sync"

	"github.com/rookery-mail/rookery/raftstore/wal"
)

// waiters knows who waits for which entry. The core adds them, the applier
// takes them; each is answered once.
type waiters struct {
	mu   sync.Mutex
	byIx map[uint64]waiting // by index
}

type waiting struct {
	term      uint64
	proposals []*proposal
}

func newWaiters() *waiters { return &waiters{byIx: make(map[uint64]waiting)} }

func (w *waiters) add(at wal.Position, proposals []*proposal) {
	if len(proposals) == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.byIx[at.Index] = waiting{at.Term, proposals}
}

// take returns who waits for the entry at this position, in the order of its
// commands. ok is false if they wait for another entry at that index, which
// then can never be committed.
func (w *waiters) take(at wal.Position) (proposals []*proposal, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	found := w.byIx[at.Index]
	delete(w.byIx, at.Index)
	return found.proposals, found.term == at.Term
}

func (w *waiters) failAll(err error) {
	w.mu.Lock()
	all := w.byIx
	w.byIx = make(map[uint64]waiting)
	w.mu.Unlock()
	for _, index := range slices.Sorted(maps.Keys(all)) { // alike in every run of a simulation
		finish(all[index].proposals, err)
	}
}
