package wal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
)

// The promise file has two slots, written in turn, each on a page of its own so
// that a write which goes wrong leaves the other alone. A slot is, big-endian:
// magic, sequence number, term, index, flushed (8 octets each), CRC32C of them.
const (
	promiseMagic  = 0x726f6f6b77616c31 // "rookwal1"
	promiseSlot   = 5*8 + 4
	promiseStride = 4096
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// promise is the file that says how far the log has certainly come.
type promise struct {
	f       *os.File
	seq     uint64
	synced  Position // the log is on disk up to here
	flushed uint64   // the state file is on disk up to here
}

// createPromise writes a new promise file and fsyncs it.
func createPromise(path string, at Position) (*promise, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	p := &promise{f: f, synced: at, flushed: at.Index}
	if err := errors.Join(p.write(), p.write(), f.Sync()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return p, nil
}

// openPromise reads the newer of the slots.
func openPromise(path string) (*promise, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s is missing: without it nobody can tell whether the log is whole", ErrCorrupt, path)
	} else if err != nil {
		return nil, err
	}
	p := &promise{f: f}
	for slot := range int64(2) {
		var b [promiseSlot]byte
		if _, err := f.ReadAt(b[:], slot*promiseStride); err != nil && !errors.Is(err, io.EOF) {
			return nil, errors.Join(err, f.Close())
		}
		p.adopt(b[:])
	}
	if p.seq == 0 {
		err := fmt.Errorf("%w: %s: both copies of the promise fail their checksum", ErrCorrupt, path)
		return nil, errors.Join(err, f.Close())
	}
	return p, nil
}

// adopt takes over what a slot says if it is whole and newer.
func (p *promise) adopt(b []byte) {
	word := func(i int) uint64 { return binary.BigEndian.Uint64(b[8*i:]) }
	sum := binary.BigEndian.Uint32(b[5*8:])
	if word(0) != promiseMagic || sum != crc32.Checksum(b[:5*8], castagnoli) || word(1) <= p.seq {
		return
	}
	p.seq, p.synced, p.flushed = word(1), Position{word(2), word(3)}, word(4)
}

// write puts the promise into the older slot. It does not sync.
func (p *promise) write() error {
	p.seq++
	b := make([]byte, 0, promiseSlot)
	for _, v := range [...]uint64{promiseMagic, p.seq, p.synced.Term, p.synced.Index, p.flushed} {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
	_, err := p.f.WriteAt(b, int64(p.seq%2)*promiseStride)
	return err
}
