package wal

import (
	"testing"

	"go.etcd.io/raft/v3/raftpb"
)

func memoryLog(t *testing.T, synced, unsynced int) *Memory {
	t.Helper()
	m := NewMemory([]byte("whose"), Mark{Position: Position{1, 1}, Conf: &raftpb.ConfState{}})
	add := func(n int) {
		for range n {
			index := m.end.Index + 1
			hard := &raftpb.HardState{Term: new(uint64(2)), Vote: new(index), Commit: new(uint64(1))}
			if err := m.Append(hard, []*raftpb.Entry{{Term: new(uint64(2)), Index: new(index)}}); err != nil {
				t.Fatal(err)
			}
		}
	}
	add(synced)
	if err := m.Sync(); err != nil {
		t.Fatal(err)
	}
	add(unsynced)
	return m
}

func TestMemoryCrashAfter(t *testing.T) {
	for _, c := range []struct {
		keep, entries int
		vote          uint64
	}{
		{0, 3, 4}, {1, 4, 4}, {2, 5, 6}, {100, 5, 6},
	} {
		m := memoryLog(t, 3, 2)
		before := m.Copy()
		m.CrashAfter(c.keep)
		r := m.Replay(1)
		if r == nil || len(r.Entries) != c.entries || r.Hard.GetVote() != c.vote {
			t.Errorf("%d of 2 unsynced records had come to the disk: %+v, want %d entries and vote %d", c.keep, r, c.entries, c.vote)
		}
		// What was read counts: it is on disk from then on.
		m.Crash()
		if again := m.Replay(1); again == nil || len(again.Entries) != c.entries {
			t.Errorf("%d kept, read, and the power gone: %+v, want %d entries", c.keep, again, c.entries)
		}
		if r := before.Replay(1); r == nil || len(r.Entries) != 3 {
			t.Errorf("the copy made before: %+v, want what was synced", r)
		}
	}
}

func TestMemoryCut(t *testing.T) {
	m := memoryLog(t, 3, 1)
	if err := m.Mark(Mark{Position: m.end}); err != nil { // what is behind the last entry goes with it
		t.Fatal(err)
	}
	m.promise = m.end
	if !m.Cut() {
		t.Fatal("the last entry was promised, and not cut")
	}
	if r := m.Replay(1); r != nil {
		t.Errorf("a log that ends before its promise was opened: %+v", r)
	}
	m = memoryLog(t, 0, 0)
	if m.Cut() || m.Replay(1) == nil {
		t.Error("a log without entries was cut")
	}
}
