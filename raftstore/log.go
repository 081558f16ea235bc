package raftstore

import (
	"slices"

	"github.com/rookery-mail/rookery/raftstore/wal"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
)

// LogStore is the log on disk. The simulator has one in memory: wal.Memory.
// Its contract is wal.Log's: the first error is final.
type LogStore interface {
	Append(hard *raftpb.HardState, entries []*raftpb.Entry) error
	Sync() error
	Flushed(applied uint64) error
	Mark(at wal.Mark) error
	Install(at wal.Mark) error
	Release(index uint64) error
	Close() error
}

var (
	_ LogStore = (*wal.Log)(nil)
	_ LogStore = (*wal.Memory)(nil)
)

// raftLog is the part of the durable log that Raft reads from, in memory. It
// belongs to the core: entries are added after the appender has synced them.
type raftLog struct {
	hard *raftpb.HardState
	conf *raftpb.ConfState

	before  wal.Position // of the entry before the first
	entries []*raftpb.Entry
	bytes   int64

	// The state as it was flushed last: what a snapshot of now would be of.
	flushed     wal.Position
	flushedConf *raftpb.ConfState
	// busy tells that one is being made for somebody: whoever needs one
	// meanwhile can have that. May be nil.
	busy func() bool
}

var _ raft.Storage = (*raftLog)(nil)

func (l *raftLog) last() uint64 { return l.before.Index + uint64(len(l.entries)) }

// append adds entries, which replace those at their indexes and all after.
func (l *raftLog) append(entries []*raftpb.Entry) {
	if len(entries) == 0 {
		return
	}
	if first := entries[0].GetIndex(); first <= l.before.Index {
		// A part of it was compacted since: it is committed and the same.
		skip := l.before.Index + 1 - first
		if skip >= uint64(len(entries)) {
			return
		}
		entries = entries[skip:]
	}
	keep := entries[0].GetIndex() - l.before.Index - 1
	if keep < uint64(len(l.entries)) {
		l.bytes -= sizeOf(l.entries[keep:])
		// Raft may still hold slices of what is replaced: do not write over it.
		l.entries = l.entries[:keep:keep]
	}
	l.entries = append(l.entries, entries...)
	l.bytes += sizeOf(entries)
}

// compact drops the entries that are over the bounds, up to index limit. It
// waits until they are over by an eighth, for it copies what is left.
func (l *raftLog) compact(limit uint64, maxEntries int, maxBytes int64) {
	if len(l.entries) <= maxEntries+maxEntries/8 && l.bytes <= maxBytes+maxBytes/8 {
		return
	}
	n := int(l.bound(limit, maxEntries, maxBytes) - l.before.Index)
	if n == 0 {
		return
	}
	l.bytes -= sizeOf(l.entries[:n])
	last := l.entries[n-1]
	l.before = wal.Position{Term: last.GetTerm(), Index: last.GetIndex()}
	// A copy, for Raft may hold slices of the old one; now and then is enough.
	l.entries = slices.Clone(l.entries[n:])
}

// bound returns the last entry that is over the bounds, limit at most.
func (l *raftLog) bound(limit uint64, maxEntries int, maxBytes int64) uint64 {
	n, bytes := 0, l.bytes
	for n < len(l.entries) && l.before.Index+uint64(n) < limit && (len(l.entries)-n > maxEntries || bytes > maxBytes) {
		bytes -= sizeOf(l.entries[n : n+1])
		n++
	}
	return l.before.Index + uint64(n)
}

// restart empties the log; what comes next follows at.
func (l *raftLog) restart(at wal.Position) {
	l.before, l.entries, l.bytes = at, nil, 0
}

// entryOverhead is what an entry takes in memory beside its data.
const entryOverhead = 120

func sizeOf(entries []*raftpb.Entry) (n int64) {
	for _, e := range entries {
		n += int64(len(e.GetData())) + entryOverhead
	}
	return n
}

// InitialState implements raft.Storage.
func (l *raftLog) InitialState() (*raftpb.HardState, *raftpb.ConfState, error) {
	return l.hard, l.conf, nil
}

// Entries implements raft.Storage.
func (l *raftLog) Entries(lo, hi, maxSize uint64) ([]*raftpb.Entry, error) {
	if lo <= l.before.Index {
		return nil, raft.ErrCompacted
	}
	if hi > l.last()+1 || lo >= hi {
		return nil, raft.ErrUnavailable
	}
	from := lo - l.before.Index - 1
	n := uint64(0)
	size := uint64(0)
	for _, e := range l.entries[from : from+hi-lo] {
		size += uint64(len(e.GetData())) + 24 // what its other fields take encoded, at most
		if n > 0 && size > maxSize {
			break
		}
		n++
	}
	return l.entries[from : from+n : from+n], nil
}

// Term implements raft.Storage.
func (l *raftLog) Term(i uint64) (uint64, error) {
	switch {
	case i < l.before.Index:
		return 0, raft.ErrCompacted
	case i == l.before.Index:
		return l.before.Term, nil
	case i > l.last():
		return 0, raft.ErrUnavailable
	}
	return l.entries[i-l.before.Index-1].GetTerm(), nil
}

// LastIndex implements raft.Storage.
func (l *raftLog) LastIndex() (uint64, error) { return l.last(), nil }

// FirstIndex implements raft.Storage.
func (l *raftLog) FirstIndex() (uint64, error) { return l.before.Index + 1, nil }

// Snapshot implements raft.Storage. It says what the state file holds; the
// state itself travels by Store.Spool and Store.Install.
func (l *raftLog) Snapshot() (*raftpb.Snapshot, error) {
	if l.flushed.Index == 0 || l.busy != nil && l.busy() {
		return nil, raft.ErrSnapshotTemporarilyUnavailable
	}
	return &raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{
		Index: new(l.flushed.Index), Term: new(l.flushed.Term), ConfState: l.flushedConf,
	}}, nil
}
