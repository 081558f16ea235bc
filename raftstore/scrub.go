package raftstore

import (
	"bytes"
	"fmt"
	"sync"

	"github.com/rookery-mail/rookery/raftstore/wal"
)

// scrubber reads the state on disk again, slowly, and holds it against the sum
// that is kept of it.
//
// A sum is of one point in time, and reading a large file takes minutes. To
// hold one read transaction that long would pin every page that is overwritten
// meanwhile, and the file would grow by what is written. So each step reads a
// little under a transaction of its own, and what was read is kept true: before
// a flush is written, the scrubber takes the rows of it that lie before the
// place it has come to, reads what they were, and corrects its sum by the
// difference. After every step and every flush its sum is exactly that of the
// rows up to its place in the state on disk; at the end it is that of them all.
// A step and a flush wait for each other, for as long as one step reads.
//
// What it can see. Reads go through the memory map, so a page that the kernel
// has kept is not fetched from the disk: damage beneath it shows when the page
// was dropped, by need or at a restart. At the start of a round the kernel is
// told to drop what it can, which is what no lookup has touched: the pages that
// nobody reads are exactly those whose damage nobody would notice. Damage in
// memory, wrong pages, lost writes and rows that were changed behind our back
// show at once, in this sum or, once the row is written over, in the node's own
// sum, which then differs from the others'.
type scrubber struct {
	seeds []uint64

	mu     sync.Mutex
	round  bool // under way
	at     wal.Position
	bucket int
	after  []byte // the last key of it that was read; empty: none yet
	sum    uint64
	bytes  int64 // read in this round
}

func newScrubber(seeds []uint64) *scrubber { return &scrubber{seeds: seeds} }

// step reads some limit octets of rows. done: the round is over, and the state
// was found as it was written, unless there is an error.
func (s *scrubber) step(d Disk, limit int) (n int, done bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer guard("the state file", &err)()
	r, err := d.Begin()
	if err != nil {
		return 0, false, err
	}
	defer r.Close()
	meta, err := r.Meta()
	if err != nil {
		return 0, false, err
	}
	if !s.round || s.at != meta.Applied {
		// What was read is of a state that somebody else has replaced, a snapshot
		// for one: begin again.
		s.restart(d, meta.Applied)
	}
	for n < limit {
		if s.bucket == len(s.seeds) {
			s.round = false
			if s.sum != meta.Sum {
				return n, true, errSum(s.sum, meta)
			}
			return n, true, nil
		}
		read, err := s.rows(r, limit-n)
		n += read
		s.bytes += int64(read)
		if err != nil {
			return n, true, err
		}
	}
	return n, false, nil
}

func (s *scrubber) restart(d Disk, at wal.Position) {
	s.round, s.at = true, at
	s.bucket, s.after, s.sum, s.bytes = 0, s.after[:0], 0, 0
	if d, ok := d.(interface{ dropCache() }); ok {
		d.dropCache()
	}
}

// rows reads on in the present bucket, and moves to the next at its end.
func (s *scrubber) rows(r DiskReader, limit int) (n int, err error) {
	it := r.Iterate(s.bucket)
	k, v := it.Seek(s.after)
	if len(s.after) > 0 && bytes.Equal(k, s.after) {
		k, v = it.Next()
	}
	for ; k != nil && n < limit; k, v = it.Next() {
		if len(s.after) > 0 && bytes.Compare(s.after, k) >= 0 {
			return n, fmt.Errorf("bucket %d is out of order at key %x", s.bucket, k)
		}
		s.sum += rowHash(s.seeds[s.bucket], k, v)
		n += len(k) + len(v)
		s.after = append(s.after[:0], k...)
	}
	if k == nil {
		s.bucket, s.after = s.bucket+1, s.after[:0]
	}
	return n, nil
}

// write writes a layer to the disk and follows it.
func (s *scrubber) write(d Disk, meta Meta, changes layer) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.round {
		if err := s.follow(d, changes); err != nil {
			return err
		}
	}
	if err := d.Write(meta, changes); err != nil {
		return err
	}
	s.at = meta.Applied
	return nil
}

// follow corrects the sum of what was read by what is about to be written.
func (s *scrubber) follow(d Disk, changes layer) (err error) {
	defer guard("the state file", &err)()
	r, err := d.Begin()
	if err != nil {
		return err
	}
	defer r.Close()
	meta, err := r.Meta()
	if err != nil {
		return err
	}
	if meta.Applied != s.at {
		s.round = false // replaced by somebody else
		return nil
	}
	for i := range changes {
		if i > s.bucket {
			break
		}
		it := changes[i].Iter()
		for k, v := it.Seek(nil); k != nil; k, v = it.Next() {
			if i == s.bucket && bytes.Compare(k, s.after) > 0 {
				break
			}
			if old := r.Get(i, k); old != nil {
				s.sum -= rowHash(s.seeds[i], k, old)
			}
			if v != nil {
				s.sum += rowHash(s.seeds[i], k, v)
			}
		}
	}
	return nil
}

// read returns how much of the present round is done; 0 if there is none.
func (s *scrubber) read() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.round {
		return 0
	}
	return s.bytes
}
