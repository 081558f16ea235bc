package wal

import (
	"slices"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// Memory is a log in memory for the simulator. It keeps through a Crash what
// was synced and nothing else, and refuses what Log refuses.
type Memory struct {
	metadata []byte
	hard     *raftpb.HardState
	records  []record // never changed in place, only added to
	end      Position
	// Where the next append follows, after Install; else nil.
	installed *Position

	// What a crash leaves.
	syncedHard *raftpb.HardState
	synced     int // of records
	promise    Position
	flushed    uint64
}

// record is an entry or a mark.
type record struct {
	entry *raftpb.Entry
	mark  *Mark
}

// NewMemory returns a log that starts after at.
func NewMemory(metadata []byte, at Mark) *Memory {
	hard := &raftpb.HardState{Term: new(at.Term), Vote: new(uint64(0)), Commit: new(at.Index)}
	return &Memory{
		metadata: metadata, hard: hard, records: []record{{mark: &at}}, end: at.Position,
		syncedHard: hard, synced: 1, promise: at.Position, flushed: at.Index,
	}
}

// Crash loses what was not synced. The log can be used on after a Replay.
func (m *Memory) Crash() { m.CrashAfter(0) }

// CrashAfter is Crash where of what was not synced the first n records had come
// to the disk all the same. If those are all, so had the hard state, which is
// written last. It is what the end of a process leaves, with any n that is large.
func (m *Memory) CrashAfter(n int) {
	if n = min(n, m.Unsynced()); n < m.Unsynced() {
		m.hard = m.syncedHard
	}
	m.records = m.records[: m.synced+n : m.synced+n]
	m.installed = nil
}

// Unsynced returns how many records a Crash would lose.
func (m *Memory) Unsynced() int { return len(m.records) - m.synced }

// Records returns how many entries and marks the log holds.
func (m *Memory) Records() int { return len(m.records) }

// Copy returns a log that holds what this one keeps through a Crash, and goes
// its own way from here on.
func (m *Memory) Copy() *Memory {
	c := *m
	c.records = slices.Clone(m.records)
	c.Crash()
	return &c
}

// Cut loses the last entry although it was synced, as a disk does that lies. It
// reports false where that entry is not what was promised, so that its loss could
// go unnoticed, and cuts nothing. Else Replay refuses what is left.
func (m *Memory) Cut() bool {
	m.Crash()
	i := len(m.records) - 1
	for i >= 0 && m.records[i].entry == nil {
		i--
	}
	if i < 0 || position(m.records[i].entry) != m.promise {
		return false
	}
	m.synced = i
	m.Crash()
	return true
}

// Replay returns what Open would after the mark at index, or nil where Open
// would fail: there is no such mark, the entries after it have a gap, or they
// end before what was synced.
func (m *Memory) Replay(index uint64) *Replay {
	r := &Replay{Metadata: m.metadata, Hard: proto.Clone(m.hard).(*raftpb.HardState), Flushed: m.flushed}
	var from *Mark
	for _, rec := range m.records {
		if rec.mark != nil {
			if rec.mark.Index == index {
				from = rec.mark
			}
			continue
		}
		if i := rec.entry.GetIndex(); i > index {
			at := i - index - 1
			if at > uint64(len(r.Entries)) {
				return nil
			}
			r.Entries = append(r.Entries[:at:at], rec.entry)
		}
	}
	if from == nil || r.strip() != nil {
		return nil
	}
	end := r.last(*from)
	if end.Less(m.promise) || m.hard.GetCommit() > end.Index {
		return nil
	}
	m.end = end
	// Log.Open writes the hard state again, and with it all that was read is
	// on disk before any of it counts.
	m.sync()
	return r
}

// Append is Log.Append.
func (m *Memory) Append(hard *raftpb.HardState, entries []*raftpb.Entry) error {
	if m.installed != nil {
		m.end, m.installed = *m.installed, nil
	}
	if hard != nil {
		m.hard = hard
	}
	for _, e := range entries {
		m.records = append(m.records, record{entry: e})
		m.end = position(e)
	}
	return nil
}

// Sync is Log.Sync.
func (m *Memory) Sync() error {
	if len(m.records) > m.synced || raft.MustSync(m.hard, m.syncedHard, 0) {
		m.sync()
		m.promise = m.end
	}
	return nil
}

func (m *Memory) sync() { m.synced, m.syncedHard = len(m.records), m.hard }

// Flushed is Log.Flushed.
func (m *Memory) Flushed(applied uint64) error {
	m.flushed = applied
	return nil
}

// Mark is Log.Mark.
func (m *Memory) Mark(at Mark) error {
	m.records = append(m.records, record{mark: &at})
	m.sync()
	return nil
}

// Install is Log.Install.
func (m *Memory) Install(at Mark) error {
	m.promise = installPromise(m.promise, m.end, at.Position)
	if m.end.Index > at.Index {
		m.records = append(m.records, record{entry: nothing(at.Index + 1)})
	}
	m.installed = &at.Position
	return m.Mark(at)
}

// Release is Log.Release.
func (m *Memory) Release(index uint64) error {
	m.records = slices.DeleteFunc(slices.Clone(m.records), func(r record) bool {
		return r.mark != nil && r.mark.Index < index || r.entry != nil && r.entry.GetIndex() <= index
	})
	m.sync()
	return nil
}

// Close is Log.Close.
func (m *Memory) Close() error { return m.Sync() }
