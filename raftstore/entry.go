package raftstore

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// entryVersion is the first octet of every Raft entry that carries commands. A
// node that meets a higher one stops: what it cannot read, it must not skip.
const entryVersion = 1

// batch is what one Raft entry carries.
//
// Encoded: version (one octet), then as varints: id, elapsed, wall (zigzag),
// number of commands, and for each its length and its octets. There is no
// checksum: the log and the transport have their own.
type batch struct {
	// id finds the entry that Raft made of a batch, on the node that proposed
	// it and while that node leads. It says nothing to others.
	id       uint64
	elapsed  uint64 // see Stamp
	wall     int64  // see Stamp
	commands [][]byte
}

func (b batch) marshal() []byte {
	size := 1 + 4*binary.MaxVarintLen64
	for _, c := range b.commands {
		size += binary.MaxVarintLen32 + len(c)
	}
	p := append(make([]byte, 0, size), entryVersion)
	p = binary.AppendUvarint(p, b.id)
	p = binary.AppendUvarint(p, b.elapsed)
	p = binary.AppendVarint(p, b.wall)
	p = binary.AppendUvarint(p, uint64(len(b.commands)))
	for _, c := range b.commands {
		p = binary.AppendUvarint(p, uint64(len(c)))
		p = append(p, c...)
	}
	return p
}

var errEntry = errors.New("raftstore: malformed entry")

// unmarshalBatch decodes an entry. The commands are parts of p.
func unmarshalBatch(p []byte) (batch, error) {
	if len(p) == 0 {
		return batch{}, errEntry
	}
	if p[0] != entryVersion {
		return batch{}, fmt.Errorf("raftstore: the entry has format %d, this program reads %d: upgrade this node", p[0], entryVersion)
	}
	var b batch
	d := decoder{p: p[1:]}
	b.id = d.uvarint()
	b.elapsed = d.uvarint()
	b.wall = d.varint()
	n := d.uvarint()
	if n > uint64(len(d.p)) { // each takes an octet at least
		return batch{}, errEntry
	}
	b.commands = make([][]byte, 0, n)
	for range n {
		b.commands = append(b.commands, d.bytes())
	}
	if d.bad || len(d.p) != 0 || n == 0 && b.elapsed != 0 {
		return batch{}, errEntry
	}
	return b, nil
}

// Commands decodes the data of a normal entry of the log, for who replays one: the
// commands in their order, each with the Stamp that the machine was given with it.
// None: a new leader's first entry.
func Commands(entry []byte) (commands [][]byte, stamps []Stamp, err error) {
	if len(entry) == 0 {
		return nil, nil, nil
	}
	b, err := unmarshalBatch(entry)
	if err != nil {
		return nil, nil, err
	}
	stamps = make([]Stamp, len(b.commands))
	for i := range stamps {
		stamps[i].Wall = b.wall
	}
	if len(stamps) > 0 {
		stamps[0].Elapsed = b.elapsed
	}
	return b.commands, stamps, nil
}

// batchID returns the id of an encoded batch.
func batchID(p []byte) uint64 {
	d := decoder{p: p[1:]}
	return d.uvarint()
}

// decoder reads varints and strings; bad is set, for good, by what is none.
type decoder struct {
	p   []byte
	bad bool
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.p)
	d.skip(n)
	return v
}

func (d *decoder) varint() int64 {
	v, n := binary.Varint(d.p)
	d.skip(n)
	return v
}

func (d *decoder) skip(n int) {
	if n <= 0 {
		d.bad, d.p = true, nil
		return
	}
	d.p = d.p[n:]
}

func (d *decoder) bytes() []byte {
	n := d.uvarint()
	if n > uint64(len(d.p)) {
		d.bad, d.p = true, nil
		return nil
	}
	b := d.p[:n:n]
	d.p = d.p[n:]
	return b
}
