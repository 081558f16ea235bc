package raftstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"

	"github.com/rookery-mail/rookery/internal/kv"
	"github.com/rookery-mail/rookery/raftstore/snap"
	"github.com/rookery-mail/rookery/raftstore/wal"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// Disk holds the state as it was flushed last: a state file, or a MemoryDisk
// for the simulator. Buckets are counted as in the list it was opened with.
type Disk interface {
	// Meta returns what stands beside the state.
	Meta() Meta
	// Begin returns a reader of what was written last.
	Begin() (DiskReader, error)
	// Write puts the keys of a layer and meta on disk in one transaction. When
	// it returns they are durable. An error is final: the disk is not to be
	// used any more.
	Write(meta Meta, changes []kv.Tree) error
	// Image calls save with the meta of one read transaction, and with a
	// function that writes what a snapshot carries of the state in it.
	Image(save func(m Meta, write func(io.Writer) error) error) error
	// Kind says what that is.
	Kind() snap.Kind
	// Stage reads what an Image wrote and keeps it beside the state in use,
	// which it does not touch. What is staged is durable, and gone after a
	// restart if it did not replace the state.
	Stage(r io.Reader) (Staged, error)
	// Replace puts a staged state in the place of the one in use, in one step:
	// a crash leaves one or the other, and when it returns it is the new one.
	// Readers begun before stay valid. It and Write are called by one goroutine.
	Replace(s Staged) error
	// Close waits for nobody: all readers must be closed.
	Close() error
}

// DiskReader is a read transaction of a Disk, for any number of goroutines.
type DiskReader interface {
	// Meta returns what stands beside the state in this transaction.
	Meta() (Meta, error)
	Get(bucket int, key []byte) []byte
	Iterate(bucket int) kv.Iterator
	Close() error
}

// Staged is a state beside the one in use.
type Staged interface {
	// Meta returns what stands beside it.
	Meta() Meta
	// SetMeta replaces that.
	SetMeta(Meta) error
	// Begin returns a reader of it.
	Begin() (DiskReader, error)
	// Drop removes it, unless it has replaced the state in use.
	Drop() error
}

// Meta is what is kept with the state and always of the same index as it.
type Meta struct {
	Identity Identity
	Name     string // of the node
	// Applied is the last entry that the state includes. It is committed, so no
	// leader can take it back: the log must hold it, or start after it.
	Applied wal.Position
	// Conf is the membership as of Applied. It stands nowhere else.
	Conf *raftpb.ConfState
	// Members are the contexts and names that membership changes carried, by id.
	Members []Member
	// Mark is where to open the log.
	Mark wal.Position
	// Sum is that of all rows, see sum.go.
	Sum uint64

	unsummed bool // read from a state of version 1, which has no sum
}

// metaVersion 2 has a sum; 1 is still read.
const metaVersion = 2

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// marshal encodes the meta: version, then varints, and strings with their
// length before them: identity, name, applied (term, index), mark (term,
// index), membership as protobuf, the members: id, name, context, and the sum,
// 8 octets big-endian, which version 1 does not have. At the
// end stands CRC32C of all before, 4 octets big-endian. Whether a member is a
// learner stands in the membership.
func (m Meta) marshal() ([]byte, error) {
	conf, err := proto.MarshalOptions{Deterministic: true}.Marshal(m.Conf)
	if err != nil {
		return nil, fmt.Errorf("raftstore: membership: %w", err)
	}
	b := []byte{metaVersion}
	str := func(p []byte) {
		b = binary.AppendUvarint(b, uint64(len(p)))
		b = append(b, p...)
	}
	str(m.Identity.marshal())
	str([]byte(m.Name))
	for _, v := range [...]uint64{m.Applied.Term, m.Applied.Index, m.Mark.Term, m.Mark.Index} {
		b = binary.AppendUvarint(b, v)
	}
	str(conf)
	b = binary.AppendUvarint(b, uint64(len(m.Members)))
	for _, n := range m.Members {
		b = binary.AppendUvarint(b, n.ID)
		str([]byte(n.Name))
		str(n.Context)
	}
	b = binary.BigEndian.AppendUint64(b, m.Sum)
	return sealMeta(b), nil
}

func sealMeta(b []byte) []byte {
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func unmarshalMeta(p []byte) (Meta, error) {
	end := len(p) - crc32.Size
	if end < 1 {
		return Meta{}, errors.New("no meta record")
	}
	if binary.BigEndian.Uint32(p[end:]) != crc32.Checksum(p[:end], castagnoli) {
		return Meta{}, errors.New("the meta record fails its checksum")
	}
	p = p[:end]
	var sum uint64
	unsummed := p[0] == 1
	switch {
	case unsummed:
	case p[0] != metaVersion:
		return Meta{}, fmt.Errorf("the state has format %d, this program reads up to %d", p[0], metaVersion)
	case len(p) < 9:
		return Meta{}, errors.New("malformed meta record")
	default:
		end := len(p) - 8
		sum = binary.BigEndian.Uint64(p[end:])
		p = p[:end]
	}
	d := decoder{p: p[1:]}
	id, err := unmarshalIdentity(d.bytes())
	if err != nil {
		return Meta{}, err
	}
	m := Meta{Identity: id, Name: string(d.bytes()), Sum: sum, unsummed: unsummed}
	m.Applied = wal.Position{Term: d.uvarint(), Index: d.uvarint()}
	m.Mark = wal.Position{Term: d.uvarint(), Index: d.uvarint()}
	m.Conf = &raftpb.ConfState{}
	if err := proto.Unmarshal(d.bytes(), m.Conf); err != nil {
		return Meta{}, fmt.Errorf("membership: %w", err)
	}
	n := d.uvarint()
	if n > uint64(len(d.p)) {
		return Meta{}, errors.New("malformed meta record")
	}
	for range n {
		m.Members = append(m.Members, Member{ID: d.uvarint(), Name: string(d.bytes()), Context: slices.Clone(d.bytes())})
	}
	if d.bad || len(d.p) != 0 {
		return Meta{}, errors.New("malformed meta record")
	}
	return m, nil
}

// clone returns a copy that shares nothing that is ever changed in place.
func (m Meta) clone() Meta {
	m.Conf = proto.Clone(m.Conf).(*raftpb.ConfState)
	m.Members = slices.Clone(m.Members)
	return m
}
