package main

import (
	"sync"

	"github.com/rookery-mail/rookery/raftstore"
)

// This file is what a node tells the others of its state's health, and what it
// does with what they tell.

// sumTeller picks the sums that a node tells the others of.
type sumTeller struct {
	store *raftstore.Store

	mu   sync.Mutex
	told uint64
}

// sum returns the sum to tell now, and the index that it is of. The others give
// it to raftstore's CompareSum.
func (t *sumTeller) sum() (index, sum uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.told, sum = t.store.SumAfter(t.told)
	return t.told, sum
}

// heardSum takes what another node told. A node that a majority turns out to
// differ from ends with raftstore.ErrDiverged.
func heardSum(store *raftstore.Store, from, index, sum uint64) {
	if index > 0 { // a node that has nothing yet tells of none
		store.CompareSum(from, index, sum)
	}
}
