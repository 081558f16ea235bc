package kv

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
)

// Memory is a store in memory, for tests and for the simulator. It stands in
// for a file: what was committed but not synced is lost in a Crash.
//
// Snapshot, Sync and Crash may be called by any goroutine; one transaction may
// be open at a time.
type Memory struct {
	index map[Bucket]int

	mu        sync.Mutex
	open      *MemoryTx // the transaction that may commit
	committed *Snapshot // replaced as a whole, never changed
	synced    *Snapshot

	current atomic.Pointer[Snapshot] // committed, for readers
}

// NewMemory returns an empty store with these buckets.
func NewMemory(buckets ...Bucket) *Memory {
	m := &Memory{index: make(map[Bucket]int, len(buckets))}
	for _, b := range buckets {
		if _, ok := m.index[b]; !ok {
			m.index[b] = len(m.index)
		}
	}
	m.publish(&Snapshot{index: m.index, trees: make([]Tree, len(m.index))})
	m.synced = m.committed
	return m
}

// Buckets returns the store's buckets in order of name.
func (m *Memory) Buckets() []Bucket { return slices.Sorted(maps.Keys(m.index)) }

// Snapshot returns what is committed now. It needs no release.
func (m *Memory) Snapshot() *Snapshot { return m.current.Load() }

// Begin opens the transaction. The one before it must have ended.
func (m *Memory) Begin() *MemoryTx {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.open != nil {
		panic("kv: Memory.Begin while a transaction is open")
	}
	tx := &MemoryTx{m: m}
	m.open = tx
	tx.index = m.index
	tx.trees = make([]Tree, len(m.committed.trees))
	for i := range m.committed.trees {
		tx.trees[i] = m.committed.trees[i].Snapshot()
	}
	return tx
}

// Copy returns a store that holds what is committed in this one, synced.
func (m *Memory) Copy() *Memory {
	c := &Memory{index: m.index}
	c.publish(m.Snapshot())
	c.synced = c.committed
	return c
}

// Sync makes what is committed survive a Crash.
func (m *Memory) Sync() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.synced = m.committed
}

// Crash returns the store to what was last synced. An open transaction is
// gone; snapshots taken before stay as they are.
func (m *Memory) Crash() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.open = nil
	m.publish(m.synced)
}

func (m *Memory) publish(s *Snapshot) {
	m.committed = s
	m.current.Store(s)
}

// Snapshot is a Reader of a Memory, for any number of goroutines.
type Snapshot struct {
	index map[Bucket]int
	trees []Tree
}

var _ Reader = (*Snapshot)(nil)

// Get implements Reader.
func (s *Snapshot) Get(b Bucket, key []byte) []byte {
	v, _ := s.tree(b).Lookup(key)
	return v
}

// Iterate implements Reader.
func (s *Snapshot) Iterate(b Bucket) Iterator {
	return &treeIterator{it: s.tree(b).Iter()}
}

// Size returns the octets of a bucket's keys and values.
func (s *Snapshot) Size(b Bucket) int { return s.tree(b).Size() }

func (s *Snapshot) tree(b Bucket) *Tree {
	i, ok := s.index[b]
	if !ok {
		panic(fmt.Sprintf("kv: bucket %q was not named when the store was opened", b))
	}
	return &s.trees[i]
}

// MemoryTx is the transaction of a Memory.
type MemoryTx struct {
	Snapshot
	m *Memory
}

var _ Tx = (*MemoryTx)(nil)

// Put implements Tx.
func (tx *MemoryTx) Put(b Bucket, key, value []byte) {
	if len(key) == 0 {
		panic("kv: Put of an empty key")
	}
	tx.tree(b).Put(key, value)
}

// Delete implements Tx.
func (tx *MemoryTx) Delete(b Bucket, key []byte) { tx.tree(b).Remove(key) }

// Commit publishes what was written, unless a Crash came first. The
// transaction must not be used again.
func (tx *MemoryTx) Commit() {
	tx.m.mu.Lock()
	defer tx.m.mu.Unlock()
	if tx.m.open != tx {
		return
	}
	tx.m.open = nil
	tx.m.publish(&Snapshot{index: tx.index, trees: tx.trees})
}

// Discard forgets what was written. The transaction must not be used again.
func (tx *MemoryTx) Discard() {
	tx.m.mu.Lock()
	defer tx.m.mu.Unlock()
	if tx.m.open == tx {
		tx.m.open = nil
	}
}

// treeIterator is an Iterator of one tree that holds no tombstones.
type treeIterator struct {
	it     TreeIter
	placed bool
}

func (t *treeIterator) Seek(key []byte) (k, v []byte) {
	t.placed = true
	return t.it.Seek(key)
}

func (t *treeIterator) Next() (k, v []byte) {
	if !t.placed {
		return t.Seek(nil)
	}
	return t.it.Next()
}
