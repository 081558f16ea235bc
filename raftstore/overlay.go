package raftstore

import (
	"bytes"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/rookery-mail/rookery/internal/kv"
	"github.com/rookery-mail/rookery/raftstore/wal"
)

// overlay is the state as applied: the state file, and on it, in memory, what
// was applied since. It has two layers: the frozen one, which a flush is
// writing to the file, and the active one, which apply writes to.
//
// One goroutine owns it, the applier's. It publishes what it has done as a
// whole; readers take the published layers together with the file's read
// transaction in one step and need no lock from then on.
type overlay struct {
	buckets []kv.Bucket
	index   map[kv.Bucket]int
	seeds   []uint64 // of the buckets' row hashes

	base   *base
	frozen layer // nil when no flush is running
	active layer
	sum    uint64 // of all rows, as applied
	memo   rowMemo

	current atomic.Pointer[published]
	changed notifier
}

// layer is a Tree for each bucket.
type layer []kv.Tree

func (l layer) keys() (n int) {
	for i := range l {
		n += l[i].Len()
	}
	return n
}

func (l layer) size() (n int) {
	for i := range l {
		n += l[i].Size()
	}
	return n
}

// base is a read transaction of the state file that many views share. It is
// closed when the last of its users has gone, the overlay itself being one.
type base struct {
	r    DiskReader
	refs atomic.Int64
	// closed is called once, with what closing returned.
	closed func(error)
}

func newBase(r DiskReader, closed func(error)) *base {
	b := &base{r: r, closed: closed}
	b.refs.Store(1)
	return b
}

// acquire adds a user, unless the last has gone already.
func (b *base) acquire() bool {
	for {
		n := b.refs.Load()
		if n == 0 {
			return false
		}
		if b.refs.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

func (b *base) release() {
	if b.refs.Add(-1) == 0 {
		b.closed(b.r.Close())
	}
}

// published is the state at one point; it never changes.
type published struct {
	base    *base
	layers  [2]layer // newest first; n of them
	n       int
	applied wal.Position
}

func newOverlay(buckets []kv.Bucket, b *base, applied wal.Position) (*overlay, error) {
	o := &overlay{buckets: buckets, index: make(map[kv.Bucket]int), seeds: rowSeeds(buckets), base: b, active: make(layer, len(buckets))}
	for i, name := range buckets {
		if _, ok := o.index[name]; ok || name == "" {
			return nil, fmt.Errorf("raftstore: the machine names bucket %q twice, or one without a name", name)
		}
		o.index[name] = i
	}
	o.publish(applied)
	return o, nil
}

func (o *overlay) number(b kv.Bucket) int {
	i, ok := o.index[b]
	if !ok {
		panic(fmt.Sprintf("raftstore: bucket %q is not one of the machine's", b))
	}
	return i
}

// hash is that of a key with its bucket, see rowHash.
func (o *overlay) hash(bucket int, key []byte) uint64 { return o.seeds[bucket] ^ xxhash.Sum64(key) }

// publish shows readers what was applied up to here.
func (o *overlay) publish(applied wal.Position) {
	p := &published{base: o.base, applied: applied}
	if o.active.keys() > 0 {
		top := make(layer, len(o.active))
		for i := range o.active {
			top[i] = o.active[i].Snapshot()
		}
		p.layers[p.n] = top
		p.n++
	}
	if o.frozen != nil {
		p.layers[p.n] = o.frozen
		p.n++
	}
	o.current.Store(p)
	o.changed.broadcast()
}

// freeze makes the active layer the frozen one, which must not exist yet, and
// returns it for the flush. It shows nothing new, so it need not be published.
func (o *overlay) freeze() layer {
	o.frozen = o.active
	o.active = make(layer, len(o.buckets))
	o.memo.empty()
	return o.frozen
}

// flushed replaces the frozen layer and the base by a base that holds both,
// in one step.
func (o *overlay) flushed(b *base, applied wal.Position) {
	old := o.base
	o.base, o.frozen = b, nil
	o.memo.empty() // what it remembers stands in the old one
	o.publish(applied)
	old.release()
}

// replace shows another state, that of b, and forgets what was applied to the
// old one. Views taken before stay valid.
func (o *overlay) replace(b *base, applied wal.Position, sum uint64) {
	o.active = make(layer, len(o.buckets))
	o.sum = sum
	o.flushed(b, applied)
}

// rebase replaces the base by one that holds the same.
func (o *overlay) rebase(b *base, applied wal.Position) {
	old := o.base
	o.base = b
	o.memo.empty() // what it remembers stands in the old one
	o.publish(applied)
	old.release()
}

// close gives the overlay's own share of the base back. Views taken before stay
// valid until they are released.
func (o *overlay) close() {
	o.current.Store(nil)
	o.base.release()
}

// view takes what is published; nil after close.
func (o *overlay) view() *View {
	for {
		p := o.current.Load()
		if p == nil {
			return nil
		}
		// A base that is gone was replaced before: the next load finds another.
		if p.base.acquire() {
			return &View{o: o, p: p}
		}
	}
}

// View is the state at one point: a kv.Reader. It must be released, and soon:
// while it is held, the state file cannot reuse the pages that it shows. It may
// be used by several goroutines; an Iterator of it may not.
type View struct {
	o     *overlay
	p     *published
	age   time.Duration
	known bool
}

var _ kv.Reader = (*View)(nil)

// Applied returns the Raft index up to which the view is complete.
func (v *View) Applied() uint64 { return v.p.applied.Index }

// Age bounds how old the state is that the view shows: nothing that was
// acknowledged anywhere longer ago than that is missing. It was taken just
// before the view was. It comes from durations measured on this node only; it
// is not known before a first word from a leader.
func (v *View) Age() (age time.Duration, known bool) { return v.age, v.known }

// Release gives the view back. Bytes and iterators that came from it must not
// be used any more, nor the view itself.
func (v *View) Release() {
	v.p.base.release()
	v.p = nil
}

// Get implements kv.Reader.
func (v *View) Get(b kv.Bucket, key []byte) []byte {
	i := v.o.number(b)
	for _, l := range v.p.layers[:v.p.n] {
		if value, ok := l[i].Lookup(key); ok {
			return value
		}
	}
	return v.p.base.r.Get(i, key)
}

// Iterate implements kv.Reader.
func (v *View) Iterate(b kv.Bucket) kv.Iterator {
	i := v.o.number(b)
	base := v.p.base.r.Iterate(i)
	var it *iterator
	for _, l := range v.p.layers[:v.p.n] {
		if l[i].Len() == 0 {
			continue
		}
		if it == nil {
			it = &iterator{base: base}
		}
		it.add(&l[i])
	}
	if it == nil {
		return base
	}
	return it
}

// overlayTx is the kv.Tx in which the machine applies a command.
type overlayTx struct {
	o   *overlay
	err error // the first write that cannot be done
}

var _ kv.Tx = (*overlayTx)(nil)

// maxKey is what the state file takes.
const maxKey = 32768

// Get implements kv.Reader.
func (tx *overlayTx) Get(b kv.Bucket, key []byte) []byte {
	i := tx.o.number(b)
	hash := tx.o.hash(i, key)
	value := tx.get(hash, i, key)
	tx.o.memo.note(hash, i, key, value)
	return value
}

func (tx *overlayTx) get(hash uint64, i int, key []byte) []byte {
	if value, ok := tx.o.memo.find(hash, i, key); ok {
		return value
	}
	if value, ok := tx.o.active[i].Lookup(key); ok {
		return value
	}
	if tx.o.frozen != nil {
		if value, ok := tx.o.frozen[i].Lookup(key); ok {
			return value
		}
	}
	return tx.o.base.r.Get(i, key)
}

// Iterate implements kv.Reader.
func (tx *overlayTx) Iterate(b kv.Bucket) kv.Iterator {
	i := tx.o.number(b)
	it := &memoIterator{iterator: iterator{base: tx.o.base.r.Iterate(i)}, o: tx.o, bucket: i}
	// Even when empty: it may be written to before the next Seek.
	it.add(&tx.o.active[i])
	if tx.o.frozen != nil {
		it.add(&tx.o.frozen[i])
	}
	return it
}

// Put implements kv.Tx. A row that is there already is not written again.
func (tx *overlayTx) Put(b kv.Bucket, key, value []byte) {
	if len(key) == 0 || len(key) > maxKey {
		if tx.err == nil {
			tx.err = fmt.Errorf("raftstore: the machine puts a key of %d octets into %q", len(key), b)
		}
		return
	}
	i := tx.o.number(b)
	hash := tx.o.hash(i, key)
	old := tx.get(hash, i, key)
	if old != nil && bytes.Equal(old, value) {
		return
	}
	if old != nil {
		tx.o.sum -= mixRow(hash, old)
	}
	tx.o.sum += mixRow(hash, value)
	tx.o.memo.forget(hash, i, key)
	tx.o.active[i].Put(key, value)
}

// Delete implements kv.Tx. Where nothing has the key, nothing hides it.
func (tx *overlayTx) Delete(b kv.Bucket, key []byte) {
	i := tx.o.number(b)
	hash := tx.o.hash(i, key)
	old := tx.get(hash, i, key)
	if old == nil {
		return
	}
	tx.o.sum -= mixRow(hash, old)
	tx.o.memo.forget(hash, i, key)
	tx.o.active[i].Entomb(key)
}

// notifier tells any number of waiters that something changed.
type notifier struct {
	mu sync.Mutex
	ch chan struct{} // nil when nobody waits
}

// wait returns a channel that the next broadcast closes.
func (n *notifier) wait() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ch == nil {
		n.ch = make(chan struct{})
	}
	return n.ch
}

func (n *notifier) broadcast() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ch != nil {
		close(n.ch)
		n.ch = nil
	}
}
