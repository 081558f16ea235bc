package raftstore

import (
	"bufio"
	"encoding/binary"
	"io"
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

// Meta implements Disk.
func (d *MemoryDisk) Meta() Meta { return d.meta.clone() }

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
	s := d.store.Snapshot()
	return save(d.Meta(), func(w io.Writer) error { return d.writeRows(w, s) })
}

// Kind implements Disk.
func (d *MemoryDisk) Kind() snap.Kind { return snap.Rows }

// writeRows writes for each bucket its keys in order, each key and value with
// its length as a varint before it, and an empty key at the end.
func (d *MemoryDisk) writeRows(w io.Writer, s *kv.Snapshot) error {
	out := bufio.NewWriter(w) // keeps the first error for Flush
	put := func(p []byte) {
		out.Write(binary.AppendUvarint(nil, uint64(len(p))))
		out.Write(p)
	}
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
