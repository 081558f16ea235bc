package raftstore

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"

	"github.com/rookery-mail/rookery/internal/kv"
	"github.com/rookery-mail/rookery/raftstore/snap"
)

// MemoryDisk is a Disk in memory, for the simulator. Like the real one it is
// durable when Write returns, or not changed at all.
type MemoryDisk struct {
	store *kv.Memory
	names []kv.Bucket
	meta  Meta
}

// NewMemoryDisk returns a disk with so many empty buckets.
func NewMemoryDisk(buckets int, meta Meta) *MemoryDisk {
	d := &MemoryDisk{meta: meta.clone()}
	for i := range buckets {
		d.names = append(d.names, kv.Bucket(strconv.Itoa(i)))
	}
	d.store = kv.NewMemory(d.names...)
	return d
}

// Copy returns a disk that holds the same, and goes its own way from here on.
func (d *MemoryDisk) Copy() *MemoryDisk { return d.copyAs(d.meta) }

// copyAs is Copy, with another meta.
func (d *MemoryDisk) copyAs(meta Meta) *MemoryDisk {
	return &MemoryDisk{store: d.store.Copy(), names: d.names, meta: meta.clone()}
}

// Meta implements Disk.
func (d *MemoryDisk) Meta() Meta { return d.meta.clone() }

// Damage flips a bit of a row, behind everybody's back; draw returns a number
// below its argument. It reports whether there was one.
func (d *MemoryDisk) Damage(draw func(n int) int) bool {
	s := d.store.Snapshot()
	first := draw(len(d.names))
	for i := range d.names {
		b := d.names[(first+i)%len(d.names)]
		k, v := s.Iterate(b).Seek(nil)
		if len(v) == 0 {
			continue
		}
		v = slices.Clone(v)
		v[draw(len(v))] ^= 1 << draw(8)
		tx := d.store.Begin()
		tx.Put(b, slices.Clone(k), v)
		tx.Commit()
		return true
	}
	return false
}

// Size returns the octets of all rows.
func (d *MemoryDisk) Size() (n int) {
	s := d.store.Snapshot()
	for _, b := range d.names {
		n += s.Size(b)
	}
	return n
}

// Begin implements Disk.
func (d *MemoryDisk) Begin() (DiskReader, error) {
	return &memoryReader{d.store.Snapshot(), d.names, d.meta.clone()}, nil
}

// Write implements Disk.
func (d *MemoryDisk) Write(meta Meta, changes []kv.Tree) error {
	tx := d.store.Begin()
	for i := range changes {
		it := changes[i].Iter()
		for k, v := it.Seek(nil); k != nil; k, v = it.Next() {
			if v == nil {
				tx.Delete(d.names[i], k)
			} else {
				tx.Put(d.names[i], k, v)
			}
		}
	}
	tx.Commit()
	d.meta = meta.clone()
	return nil
}

// Image implements Disk.
func (d *MemoryDisk) Image(save func(Meta, func(io.Writer) error) error) error {
	s, m := d.store.Snapshot(), d.Meta()
	return save(m, func(w io.Writer) error { return d.writeRows(w, m, s) })
}

// Kind implements Disk.
func (d *MemoryDisk) Kind() snap.Kind { return snap.Rows }

// writeRows writes the meta, then for each bucket its keys in order, each of
// these and each value with its length as a varint before it, and an empty key
// at the end of a bucket.
func (d *MemoryDisk) writeRows(w io.Writer, m Meta, s *kv.Snapshot) error {
	record, err := m.marshal()
	if err != nil {
		return err
	}
	out := bufio.NewWriter(w) // keeps the first error for Flush
	put := func(p []byte) {
		out.Write(binary.AppendUvarint(nil, uint64(len(p))))
		out.Write(p)
	}
	put(record)
	for _, b := range d.names {
		it := s.Iterate(b)
		for k, v := it.Next(); k != nil; k, v = it.Next() {
			put(k)
			put(v)
		}
		put(nil)
	}
	return out.Flush()
}

// Stage implements Disk.
func (d *MemoryDisk) Stage(r io.Reader) (Staged, error) {
	in := bufio.NewReader(r)
	get := func() ([]byte, error) {
		n, err := binary.ReadUvarint(in)
		if err != nil || n > maxRow {
			return nil, errors.Join(err, errRows)
		}
		p := make([]byte, n)
		_, err = io.ReadFull(in, p)
		return p, err
	}
	record, err := get()
	if err != nil {
		return nil, fmt.Errorf("raftstore: stage: %w", err)
	}
	meta, err := unmarshalMeta(record)
	if err != nil {
		return nil, fmt.Errorf("raftstore: stage: %w", err)
	}
	staged := NewMemoryDisk(len(d.names), meta)
	tx := staged.store.Begin()
	for _, b := range d.names {
		for {
			k, err := get()
			if err != nil {
				return nil, fmt.Errorf("raftstore: stage: %w", err)
			}
			if len(k) == 0 {
				break
			}
			v, err := get()
			if err != nil {
				return nil, fmt.Errorf("raftstore: stage: %w", err)
			}
			tx.Put(b, k, v)
		}
	}
	tx.Commit()
	// A reader proves the whole when it comes to the end, and not before.
	if _, err := in.ReadByte(); err != io.EOF {
		return nil, fmt.Errorf("raftstore: stage: %w", errors.Join(err, errRows))
	}
	return &stagedMemory{staged}, nil
}

// maxRow bounds a key, a value or a meta record that is read back.
const maxRow = 64 << 20

var errRows = errors.New("malformed rows")

// Replace implements Disk.
func (d *MemoryDisk) Replace(s Staged) error {
	m, ok := s.(*stagedMemory)
	if !ok {
		return fmt.Errorf("raftstore: a %T cannot replace a state in memory", s)
	}
	d.store, d.meta = m.d.store, m.d.meta
	return nil
}

// stagedMemory is a Staged in memory: a disk of its own.
type stagedMemory struct{ d *MemoryDisk }

func (s *stagedMemory) Meta() Meta                 { return s.d.Meta() }
func (s *stagedMemory) SetMeta(m Meta) error       { return s.d.Write(m, nil) }
func (s *stagedMemory) Begin() (DiskReader, error) { return s.d.Begin() }
func (s *stagedMemory) Drop() error                { return nil }

// Close implements Disk.
func (d *MemoryDisk) Close() error { return nil }

type memoryReader struct {
	s     *kv.Snapshot
	names []kv.Bucket
	meta  Meta
}

func (r *memoryReader) Meta() (Meta, error) { return r.meta, nil }

func (r *memoryReader) Get(bucket int, key []byte) []byte { return r.s.Get(r.names[bucket], key) }
func (r *memoryReader) Iterate(bucket int) kv.Iterator    { return r.s.Iterate(r.names[bucket]) }
func (r *memoryReader) Close() error                      { return nil }
