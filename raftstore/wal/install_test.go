package wal

import (
	"slices"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
)

// TestInstall starts logs anew at a mark ahead of their end, at their end and
// before it. After every step, on disk and in memory, the log opens at the mark
// it had, with what it held, and once it is marked at the new one, empty.
func TestInstall(t *testing.T) {
	for _, test := range []struct {
		name string
		log  []*raftpb.Entry
		at   Position
		cut  int // entries that stay when opened as before
	}{
		{"ahead", entries(2, 2, 20, 50), Position{3, 100}, 19},
		{"ahead, empty", nil, Position{3, 100}, 0},
		{"ahead, within the term", entries(2, 2, 20, 50), Position{2, 21}, 19},
		{"another last entry", entries(2, 2, 20, 50), Position{3, 20}, 19},
		{"another last entry of a higher term", append(entries(2, 2, 9, 50), entries(3, 10, 20, 50)...), Position{2, 20}, 19},
		{"beyond, of lower terms", entries(2, 2, 20, 50), Position{3, 10}, 9},
		// The entry that counts was written in term 2 and committed in term 4;
		// this node has one of term 3, of which nobody else ever heard.
		{"beyond, of higher terms", append(entries(2, 2, 9, 50), entries(3, 10, 20, 50)...), Position{2, 10}, 9},
		{"beyond by one", entries(2, 2, 20, 50), Position{3, 19}, 18},
	} {
		t.Run(test.name, func(t *testing.T) {
			at := Mark{test.at, testConf}
			old := slices.Clone(test.log[:test.cut])
			next := entries(5, at.Index+1, at.Index+3, 50)
			check := func(dir string, m *Memory, from Mark, lists ...[]*raftpb.Entry) {
				t.Helper()
				l, r, err := Open(snapshotDir(t, dir), from)
				if err != nil {
					t.Fatalf("Open at %v: %v", from.Position, err)
				}
				defer l.Close()
				if !slices.ContainsFunc(lists, func(want []*raftpb.Entry) bool { return len(want) == len(r.Entries) }) {
					t.Errorf("opened at %v: got %d entries %s", from.Position, len(r.Entries), ends(r.Entries))
				}
				if m == nil {
					return
				}
				mr := m.Replay(from.Index)
				if mr == nil {
					t.Fatalf("in memory there is no way to open at %v", from.Position)
				}
				wantEntries(t, mr, r.Entries)
			}
			dir, disk := create(t)
			memory := NewMemory(testMeta, testAt)
			hard := hardState(3, 1)
			appendSync(t, disk, hard, test.log)
			appendSync(t, memory, hard, test.log)
			for _, step := range disk.installSteps(at) {
				check(dir, nil, testAt, test.log, old)
				do(t, step.do())
				check(dir, nil, testAt, test.log, old)
			}
			disk.installed = &at.Position
			do(t, memory.Install(at))
			memory.Crash()
			check(dir, memory, testAt, old)
			check(dir, memory, at, nil)
			// What was said about the old state still holds for the new one.
			hard = hardState(5, at.Index)
			for _, s := range []store{disk, memory} {
				appendSync(t, s, hard, next)
				do(t, s.Flushed(at.Index), s.Release(at.Index))
			}
			check(dir, memory, at, next)
			wantEntries(t, memory.Replay(at.Index), next)
			do(t, disk.Close())
			if marks, err := Marks(dir); err != nil || !slices.Contains(marks, at.Position) {
				t.Errorf("Marks: got %v, %v; want %v among them", marks, err, at.Position)
			}
			l, r := open(t, dir, at)
			wantEntries(t, r, next)
			if l.end != position(next[2]) || r.Hard.GetCommit() != at.Index {
				t.Errorf("the log ends at %v with %v", l.end, r.Hard)
			}
			do(t, l.Close())
		})
	}
}

// TestInstallOnTop: nothing appended is lost when the crash came before the
// state was exchanged, and the log grew on from its old end.
func TestInstallOnTop(t *testing.T) {
	dir, l := create(t)
	m := NewMemory(testMeta, testAt)
	list := entries(2, 2, 10, 50)
	appendSync(t, l, hardState(2, 1), list)
	appendSync(t, m, hardState(2, 1), list)
	at := Mark{Position{3, 30}, testConf}
	do(t, l.Install(at), m.Install(at), l.Close())
	l, r := open(t, dir, testAt)
	wantEntries(t, r, list)
	wantEntries(t, m.Replay(testAt.Index), list)
	more := entries(3, 11, 40, 50)
	appendSync(t, l, nil, more)
	appendSync(t, m, nil, more)
	do(t, l.Close())
	want := append(list, more...)
	l, r = open(t, dir, testAt)
	wantEntries(t, r, want)
	wantEntries(t, m.Replay(testAt.Index), want)
	do(t, l.Close())
}

// TestInstallAppendTooEarly is why Install's caller must wait: an entry after
// the gap makes the old way of opening impossible.
func TestInstallAppendTooEarly(t *testing.T) {
	dir, l := create(t)
	m := NewMemory(testMeta, testAt)
	at := Mark{Position{3, 100}, testConf}
	for _, s := range []store{l, m} {
		appendSync(t, s, hardState(2, 1), entries(2, 2, 20, 50))
		do(t, s.Install(at))
		appendSync(t, s, nil, entries(3, 101, 101, 50))
	}
	do(t, l.Close())
	refused(t, dir, "an entry after a gap")
	if m.Replay(testAt.Index) != nil {
		t.Error("in memory an entry after a gap is accepted")
	}
}
