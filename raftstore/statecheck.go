package raftstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
)

// bbolt's file starts with two meta pages, the newer valid one counting. Each
// has a header of 16 octets, then in the machine's byte order: magic, version,
// page size, flags (u32 each); root page, its sequence, free list page, high
// water mark, transaction id (u64 each); FNV-64a of all these.
const (
	boltMagic     = 0xED0CDAED
	boltHeader    = 16
	boltMetaSize  = 4*4 + 5*8
	boltMinPage   = 512
	boltMaxPage   = 64 << 10
	boltNoFreeMap = ^uint64(0)
)

// checkFile makes sure that the state file is as long as its newest meta page
// says. It reads the file and does not map it: touching a page beyond the end
// of a mapped file kills the process.
func checkFile(path string) error {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return corrupt(path, "the file is missing")
	} else if err != nil {
		return fmt.Errorf("raftstore: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("raftstore: %w", err)
	}
	size := uint64(info.Size())
	newest, found := readBoltMeta(f, 0)
	// The second page starts after the first, whose size only a meta page tells.
	for page := int64(boltMinPage); page <= boltMaxPage; page *= 2 {
		if m, ok := readBoltMeta(f, page); ok && int64(m.pageSize) == page && (!found || m.txid > newest.txid) {
			newest, found = m, true
		}
	}
	switch {
	case !found:
		return corrupt(path, "neither of its meta pages is valid")
	case newest.highWater > size/uint64(newest.pageSize):
		return corrupt(path, "it was cut off: %d octets are left of %d pages of %d", size, newest.highWater, newest.pageSize)
	case newest.root >= newest.highWater, newest.freelist >= newest.highWater && newest.freelist != boltNoFreeMap:
		return corrupt(path, "its meta page points beyond its end")
	}
	return nil
}

type boltMeta struct {
	pageSize        uint32
	root, freelist  uint64
	highWater, txid uint64
}

func readBoltMeta(f io.ReaderAt, at int64) (boltMeta, bool) {
	var b [boltMetaSize + 8]byte
	if _, err := f.ReadAt(b[:], at+boltHeader); err != nil {
		return boltMeta{}, false
	}
	word := func(at int) uint64 { return binary.NativeEndian.Uint64(b[at:]) }
	h := fnv.New64a()
	h.Write(b[:boltMetaSize])
	if binary.NativeEndian.Uint32(b[:]) != boltMagic || h.Sum64() != word(boltMetaSize) {
		return boltMeta{}, false
	}
	m := boltMeta{pageSize: binary.NativeEndian.Uint32(b[8:])}
	m.root, m.freelist, m.highWater, m.txid = word(16), word(32), word(40), word(48)
	return m, m.pageSize >= boltMinPage && m.pageSize <= boltMaxPage
}
