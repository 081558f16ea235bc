package raftstore

import (
	"bytes"
	"fmt"
	"math/bits"

	"github.com/cespare/xxhash/v2"
	"github.com/rookery-mail/rookery/internal/kv"
)

// The sum of a state is the sum, mod 2^64, of a hash of every row of the
// machine's buckets. It does not depend on the order in which the rows came to
// be, so it is kept up with each Put and Delete and costs no walk; and two
// nodes that applied the same entries must have the same. It finds a machine
// that does not do the same everywhere, and memory and disks that give back
// what was not put there. It is no signature: who can choose rows can choose
// them so that it comes out equal.

// rowHash is a row's share in the sum: bucket's seed, key and value. A row that
// is not there has none.
func rowHash(seed uint64, key, value []byte) uint64 {
	return mixRow(seed^xxhash.Sum64(key), value)
}

// mixRow is rowHash for a key whose hash, with the seed, is known.
func mixRow(key uint64, value []byte) uint64 {
	// The two hashes are good; what matters is that they are not exchangeable,
	// and that no key's rows lie in a pattern whose sums could cancel out.
	hi, lo := bits.Mul64(key^0x9e3779b97f4a7c15, xxhash.Sum64(value)^0xd1b54a32d192ed03)
	h := hi ^ lo ^ bits.RotateLeft64(key, 32)
	h = (h ^ h>>29) * 0xbf58476d1ce4e5b9
	return h ^ h>>32
}

// rowSeeds returns the seed of each bucket: by its name, since a later program
// may list its buckets in another order.
func rowSeeds(buckets []kv.Bucket) []uint64 {
	seeds := make([]uint64, len(buckets))
	for i, b := range buckets {
		seeds[i] = xxhash.Sum64String(string(b))
	}
	return seeds
}

// errSum says that rows do not come to the sum that was kept of them.
func errSum(got uint64, meta Meta) error {
	return fmt.Errorf("the rows at index %d come to the sum %016x, kept was %016x", meta.Applied.Index, got, meta.Sum)
}

// sumRows reads the sum of all rows of r.
func sumRows(r DiskReader, seeds []uint64) (sum uint64) {
	for i, seed := range seeds {
		it := r.Iterate(i)
		for k, v := it.Seek(nil); k != nil; k, v = it.Next() {
			sum += rowHash(seed, k, v)
		}
	}
	return sum
}

// rowMemo remembers what was last read of some rows through the overlay. A
// machine mostly writes what it has just read, and the sum needs the old row:
// without this every Put would search the state file a second time. It must be
// emptied when the overlay gives up what the values stand in.
type rowMemo struct {
	slots [memoSlots]memoSlot
}

const memoSlots = 256

type memoSlot struct {
	bucket int // plus one; 0: nothing
	key    []byte
	value  []byte // nil: there is no such row
}

func (m *rowMemo) slot(hash uint64) *memoSlot { return &m.slots[hash%memoSlots] }

// note remembers a row by its key's hash.
func (m *rowMemo) note(hash uint64, bucket int, key, value []byte) {
	s := m.slot(hash)
	s.bucket, s.value = bucket+1, value
	s.key = append(s.key[:0], key...)
}

func (m *rowMemo) find(hash uint64, bucket int, key []byte) (value []byte, ok bool) {
	s := m.slot(hash)
	if s.bucket != bucket+1 || !bytes.Equal(s.key, key) {
		return nil, false
	}
	return s.value, true
}

// forget is for a row that is written: the newest layer has it from now on.
func (m *rowMemo) forget(hash uint64, bucket int, key []byte) {
	if s := m.slot(hash); s.bucket == bucket+1 && bytes.Equal(s.key, key) {
		s.bucket, s.value = 0, nil
	}
}

// empty forgets all.
func (m *rowMemo) empty() {
	for i := range m.slots {
		m.slots[i].bucket, m.slots[i].value = 0, nil
	}
}

// memoIterator is an iterator of a transaction that remembers what it shows.
type memoIterator struct {
	iterator
	o      *overlay
	bucket int
}

func (it *memoIterator) Seek(key []byte) (k, v []byte) {
	k, v = it.iterator.Seek(key)
	if len(key) > 0 && !bytes.Equal(k, key) {
		it.o.memo.note(it.o.hash(it.bucket, key), it.bucket, key, nil)
	}
	return it.note(k, v)
}

func (it *memoIterator) Next() (k, v []byte) { return it.note(it.iterator.Next()) }

func (it *memoIterator) note(k, v []byte) ([]byte, []byte) {
	if k != nil {
		it.o.memo.note(it.o.hash(it.bucket, k), it.bucket, k, v)
	}
	return k, v
}
