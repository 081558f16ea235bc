package wal

import (
	"slices"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// Memory is a log in memory for the simulator. It keeps through a Crash what
// was synced and nothing else.
type Memory struct {
	metadata []byte
	written  contents
	synced   contents
	dirty    bool // entries were written since the last sync
}

type contents struct {
	hard    *raftpb.HardState
	marks   []Mark
	entries []*raftpb.Entry // those after the first mark
	flushed uint64
}

// NewMemory returns a log that starts after at.
func NewMemory(metadata []byte, at Mark) *Memory {
	start := contents{
		hard:    &raftpb.HardState{Term: new(at.Term), Vote: new(uint64(0)), Commit: new(at.Index)},
		marks:   []Mark{at},
		flushed: at.Index,
	}
	return &Memory{metadata: metadata, written: start, synced: start}
}

// Crash loses what was not synced. The log can be used on after a Replay.
func (m *Memory) Crash() {
	m.written = m.synced
	m.dirty = false
}

// Replay returns what Open would after the mark at index, or nil when there is
// no such mark.
func (m *Memory) Replay(index uint64) *Replay {
	if !slices.ContainsFunc(m.written.marks, func(k Mark) bool { return k.Index == index }) {
		return nil
	}
	return &Replay{
		Metadata: m.metadata,
		Hard:     proto.Clone(m.written.hard).(*raftpb.HardState),
		Entries:  slices.Clone(m.written.entries[index-m.written.marks[0].Index:]),
		Flushed:  m.written.flushed,
	}
}

// Append is Log.Append.
func (m *Memory) Append(hard *raftpb.HardState, entries []*raftpb.Entry) error {
	if hard != nil {
		m.written.hard = hard
	}
	for _, e := range entries {
		m.dirty = true
		if at := int(e.GetIndex() - m.written.marks[0].Index - 1); at < len(m.written.entries) {
			// Without capacity append copies, and synced keeps its own.
			m.written.entries = m.written.entries[:at:at]
		}
		m.written.entries = append(m.written.entries, e)
	}
	return nil
}

// Sync is Log.Sync.
func (m *Memory) Sync() error {
	if m.dirty || raft.MustSync(m.written.hard, m.synced.hard, 0) {
		m.synced = m.written
		m.dirty = false
	}
	return nil
}

// Flushed is Log.Flushed.
func (m *Memory) Flushed(applied uint64) error {
	m.written.flushed = applied
	m.synced.flushed = applied
	return nil
}

// Mark is Log.Mark.
func (m *Memory) Mark(at Mark) error {
	m.written.marks = append(slices.Clone(m.written.marks), at)
	m.synced = m.written
	return nil
}

// Release is Log.Release.
func (m *Memory) Release(index uint64) error {
	for len(m.written.marks) > 1 && m.written.marks[1].Index <= index {
		drop := m.written.marks[1].Index - m.written.marks[0].Index
		m.written.entries = m.written.entries[drop:]
		m.written.marks = m.written.marks[1:]
	}
	m.synced = m.written
	return nil
}

// Close is Log.Close.
func (m *Memory) Close() error { return m.Sync() }
