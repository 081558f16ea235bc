package wal

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
)

func TestMain(m *testing.M) {
	SetSegmentBytes(64 << 10)
	os.Exit(m.Run())
}

var (
	testConf = &raftpb.ConfState{Voters: []uint64{1}}
	testAt   = Mark{Position{Term: 1, Index: 1}, testConf}
	testMeta = []byte("whose it is")
)

// entries returns entries of a term, from first to last, each with size octets
// that are not all alike.
func entries(term, first, last uint64, size int) []*raftpb.Entry {
	var list []*raftpb.Entry
	rnd := rand.New(rand.NewPCG(term, first))
	for i := first; i <= last; i++ {
		data := make([]byte, size)
		for j := range data {
			data[j] = byte(rnd.Uint32()) | 1
		}
		list = append(list, &raftpb.Entry{Term: new(term), Index: new(i), Data: data})
	}
	return list
}

func hardState(term, commit uint64) *raftpb.HardState {
	return &raftpb.HardState{Term: new(term), Vote: new(uint64(1)), Commit: new(commit)}
}

// store is what Log and Memory have in common.
type store interface {
	Append(*raftpb.HardState, []*raftpb.Entry) error
	Sync() error
	Flushed(uint64) error
	Mark(Mark) error
	Install(Mark) error
	Release(uint64) error
	Close() error
}

func do(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func appendSync(t *testing.T, s store, hard *raftpb.HardState, list []*raftpb.Entry) {
	t.Helper()
	do(t, s.Append(hard, list), s.Sync())
}

func create(t *testing.T) (dir string, l *Log) {
	t.Helper()
	dir = t.TempDir()
	do(t, Create(dir, testMeta, testAt))
	l, r := open(t, dir, testAt)
	if !bytes.Equal(r.Metadata, testMeta) || len(r.Entries) != 0 || r.Hard.GetTerm() != 1 || r.Hard.GetCommit() != 1 || r.Torn {
		t.Fatalf("a new log: got %+v", r)
	}
	return dir, l
}

func open(t *testing.T, dir string, from Mark) (*Log, *Replay) {
	t.Helper()
	l, r, err := Open(dir, from)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	return l, r
}

// wantEntries compares by term, index and data.
func wantEntries(t *testing.T, r *Replay, want []*raftpb.Entry) {
	t.Helper()
	equal := func(a, b *raftpb.Entry) bool {
		return position(a) == position(b) && bytes.Equal(a.GetData(), b.GetData())
	}
	if !slices.EqualFunc(r.Entries, want, equal) {
		t.Fatalf("got %d entries %v, want %d %v", len(r.Entries), ends(r.Entries), len(want), ends(want))
	}
}

func ends(list []*raftpb.Entry) string {
	if len(list) == 0 {
		return "none"
	}
	return fmt.Sprintf("%v to %v", position(list[0]), position(list[len(list)-1]))
}

// TestReplay runs the same steps on disk and in memory.
func TestReplay(t *testing.T) {
	dir, disk := create(t)
	memory := NewMemory(testMeta, testAt)
	both := func(f func(store)) {
		f(disk)
		f(memory)
	}
	check := func(from Mark, want []*raftpb.Entry) {
		t.Helper()
		do(t, disk.Close())
		var r *Replay
		disk, r = open(t, dir, from)
		wantEntries(t, r, want)
		m := memory.Replay(from.Index)
		wantEntries(t, m, want)
		if r.Hard.String() != m.Hard.String() || r.Flushed != m.Flushed {
			t.Fatalf("on disk %v, flushed %d; in memory %v, flushed %d", r.Hard, r.Flushed, m.Hard, m.Flushed)
		}
	}
	both(func(s store) { appendSync(t, s, hardState(2, 1), entries(2, 2, 50, 100)) })
	check(testAt, entries(2, 2, 50, 100))

	// A new leader replaces the end, in two steps; the first leaves the log
	// with a last term below the one it had.
	tail := append(entries(2, 2, 50, 100)[:38], entries(2, 40, 41, 10)...)
	both(func(s store) {
		appendSync(t, s, hardState(5, 39), nil)
		appendSync(t, s, nil, entries(4, 51, 60, 10))
		appendSync(t, s, nil, entries(2, 40, 41, 10))
	})
	check(testAt, tail)
	both(func(s store) { appendSync(t, s, hardState(5, 41), entries(5, 42, 42, 10)) })
	tail = append(tail, entries(5, 42, 42, 10)...)
	check(testAt, tail)

	// Several segments, a mark, and segments deleted.
	mark := Mark{Position{5, 200}, testConf}
	both(func(s store) {
		for i := uint64(43); i < 400; i++ {
			appendSync(t, s, nil, entries(5, i, i, 1000))
		}
		do(t, s.Mark(mark), s.Flushed(399), s.Release(mark.Index))
	})
	segs, err := segments(filepath.Join(dir, segmentDir))
	if err != nil || len(segs) < 3 || segs[0].seq == 0 {
		t.Fatalf("segments after Release: %v, %v; want several, the first gone", segs, err)
	}
	var rest []*raftpb.Entry
	for i := uint64(201); i < 400; i++ {
		rest = append(rest, entries(5, i, i, 1000)...)
	}
	check(mark, rest)
	do(t, disk.Close())
}

// snapshotDir copies a log's files, to damage the copy.
func snapshotDir(t *testing.T, dir string) string {
	t.Helper()
	to := t.TempDir()
	do(t, os.CopyFS(to+"/copy", os.DirFS(dir)))
	return to + "/copy"
}

func tailOf(t *testing.T, dir string) string {
	t.Helper()
	segs, err := segments(filepath.Join(dir, segmentDir))
	if err != nil || len(segs) == 0 {
		t.Fatalf("no segments: %v", err)
	}
	return segs[len(segs)-1].path
}

// endOf returns where the records of a segment end.
func endOf(t *testing.T, path string) int {
	t.Helper()
	data, err := os.ReadFile(path)
	do(t, err)
	return len(bytes.TrimRight(data, "\x00"))
}

func damage(t *testing.T, path string, f func([]byte) []byte) {
	t.Helper()
	data, err := os.ReadFile(path)
	do(t, err)
	do(t, os.WriteFile(path, f(data), 0o600))
}

// refused opens a damaged log, which must be refused with ErrCorrupt naming a
// file, and left as it is.
func refused(t *testing.T, dir, what string) {
	t.Helper()
	before := digestDir(t, dir)
	l, r, err := Open(dir, testAt)
	if err == nil {
		l.Close()
		t.Errorf("%s: opened, with %d entries %s; want ErrCorrupt", what, len(r.Entries), ends(r.Entries))
		return
	}
	if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), dir) {
		t.Errorf("%s: got %v, want ErrCorrupt naming a file in %s", what, err, dir)
	}
	if after := digestDir(t, dir); after != before {
		t.Errorf("%s: the refused log was changed", what)
	}
}

func digestDir(t *testing.T, dir string) string {
	t.Helper()
	var all strings.Builder
	segs, _ := segments(filepath.Join(dir, segmentDir))
	for _, s := range segs {
		data, err := os.ReadFile(s.path)
		do(t, err)
		fmt.Fprintf(&all, "%s %d %x\n", s.path, len(data), bytes.TrimRight(data, "\x00"))
	}
	return all.String()
}

func TestDamageIsRefused(t *testing.T) {
	dir, l := create(t)
	for i := uint64(2); i < 200; i++ {
		appendSync(t, l, hardState(2, i-1), entries(2, i, i, 700))
	}
	whole := entries(2, 2, 2, 700)
	for i := uint64(3); i < 200; i++ {
		whole = append(whole, entries(2, i, i, 700)...)
	}
	do(t, l.Close())
	segs, err := segments(filepath.Join(dir, segmentDir))
	if err != nil || len(segs) < 3 {
		t.Fatalf("got %d segments, %v; want three at least", len(segs), err)
	}
	name := func(i int) func(string) string {
		return func(d string) string { return filepath.Join(d, segmentDir, filepath.Base(segs[i].path)) }
	}
	tail, first := name(len(segs)-1), name(0)
	end := endOf(t, segs[len(segs)-1].path)
	for _, test := range []struct {
		name string
		do   func(dir string)
	}{
		{"zeroed sector in the tail", func(d string) {
			damage(t, tail(d), func(b []byte) []byte { clear(b[end/2/512*512:][:512]); return b })
		}},
		{"zeroed length word in the tail", func(d string) {
			damage(t, tail(d), func(b []byte) []byte { clear(b[recordAt(b, end/2):][:8]); return b })
		}},
		{"last record zeroed", func(d string) {
			damage(t, tail(d), func(b []byte) []byte { clear(b[recordAt(b, end-900):]); return b })
		}},
		{"tail cut", func(d string) { do(t, os.Truncate(tail(d), int64(end/2))) }},
		{"tail cut to nothing", func(d string) { do(t, os.Truncate(tail(d), 0)) }},
		{"tail missing", func(d string) { do(t, os.Remove(tail(d))) }},
		{"first segment missing", func(d string) { do(t, os.Remove(first(d))) }},
		{"middle segment missing", func(d string) { do(t, os.Remove(name(1)(d))) }},
		{"all segments missing", func(d string) { do(t, os.RemoveAll(filepath.Join(d, segmentDir))) }},
		{"first segment cut", func(d string) { do(t, os.Truncate(first(d), 30_000)) }},
		{"zeroed sector in the first segment", func(d string) {
			damage(t, first(d), func(b []byte) []byte { clear(b[10240:][:512]); return b })
		}},
		{"zeroed length word in the first segment", func(d string) {
			damage(t, first(d), func(b []byte) []byte { clear(b[recordAt(b, 20_000):][:8]); return b })
		}},
		{"segments swapped", func(d string) {
			do(t, os.Rename(first(d), d+"/x"), os.Rename(name(1)(d), first(d)), os.Rename(d+"/x", name(1)(d)))
		}},
		{"promise missing", func(d string) { do(t, os.Remove(filepath.Join(d, promiseFile))) }},
		{"promise destroyed", func(d string) {
			damage(t, filepath.Join(d, promiseFile), func(b []byte) []byte { clear(b); return b })
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			d := snapshotDir(t, dir)
			test.do(d)
			refused(t, d, test.name)
		})
	}
	t.Run("bit flips", func(t *testing.T) {
		d := snapshotDir(t, dir)
		for _, path := range []string{first(d), tail(d)} {
			n := endOf(t, path)
			for at := 3; at < n; at += 997 {
				damage(t, path, func(b []byte) []byte { b[at] ^= 1 << (at % 8); return b })
				// A flip in padding harms nothing; in all else it must be seen.
				if l, r, err := Open(d, testAt); err == nil {
					wantEntries(t, r, whole)
					do(t, l.Close())
				} else if !errors.Is(err, ErrCorrupt) {
					t.Errorf("bit flip at %d of %s: got %v, want ErrCorrupt", at, path, err)
				}
				damage(t, path, func(b []byte) []byte { b[at] ^= 1 << (at % 8); return b })
			}
		}
		l, r := open(t, d, testAt)
		wantEntries(t, r, whole)
		do(t, l.Close())
	})
	t.Run("one promise destroyed", func(t *testing.T) {
		for slot := range 2 {
			d := snapshotDir(t, dir)
			damage(t, filepath.Join(d, promiseFile), func(b []byte) []byte { b[slot*promiseStride+20] ^= 1; return b })
			l, r := open(t, d, testAt)
			wantEntries(t, r, whole)
			do(t, l.Close())
		}
	})
}

// recordAt returns where the first record at or after an offset starts.
func recordAt(b []byte, from int) int {
	at := 0
	for at < from {
		word := uint64(0)
		for i := range 8 {
			word |= uint64(b[at+i]) << (8 * i)
		}
		size := int(word &^ (0xff << 56))
		at += 8 + (size+7)/8*8
	}
	return at
}

// TestTornTail cuts into what was never synced: the log opens without it, and
// says so.
func TestTornTail(t *testing.T) {
	dir, l := create(t)
	appendSync(t, l, hardState(2, 1), entries(2, 2, 20, 600))
	synced := snapshotDir(t, dir)
	tail := tailOf(t, dir)
	from := endOf(t, tail)
	// These were being written when the machine died: the promise was not
	// raised, and not all sectors came to the disk.
	appendSync(t, l, nil, entries(2, 21, 23, 600))
	do(t, l.Close())
	to := endOf(t, tail)
	written, err := os.ReadFile(tail)
	do(t, err)
	want := entries(2, 2, 20, 600)
	for name, cut := range map[string]func(b []byte) []byte{
		"file ends":         func(b []byte) []byte { return b[:from+700] },
		"end is zero":       func(b []byte) []byte { clear(b[from+700:]); return b },
		"hole, then more":   func(b []byte) []byte { clear(b[(from+511)/512*512:][:1024]); return b },
		"start is zero":     func(b []byte) []byte { clear(b[from:][:512]); return b },
		"length word alone": func(b []byte) []byte { clear(b[from+8:]); return b },
	} {
		t.Run(name, func(t *testing.T) {
			d := snapshotDir(t, synced)
			do(t, os.WriteFile(tailOf(t, d), cut(bytes.Clone(written[:to+4096])), 0o600))
			l, r := open(t, d, testAt)
			if !r.Torn {
				t.Errorf("the cut was not noticed")
			}
			if n := len(r.Entries); n < 19 || n > 22 {
				t.Fatalf("got %d entries, want the 19 synced and perhaps some after", n)
			}
			wantEntries(t, &Replay{Entries: r.Entries[:19]}, want)
			// It can be written on and read again.
			next := r.Entries[len(r.Entries)-1].GetIndex() + 1
			appendSync(t, l, nil, entries(3, next, next+5, 300))
			do(t, l.Close())
			l, again := open(t, d, testAt)
			wantEntries(t, again, append(r.Entries, entries(3, next, next+5, 300)...))
			if again.Torn {
				t.Errorf("the log is torn still")
			}
			do(t, l.Close())
		})
	}
}

// TestLowerPromise stops between the steps of a Sync that shortens the log:
// whatever it has come to, the log opens.
// What a process that was killed had made ahead is gone once the log is open again.
func TestNothingAheadIsLeft(t *testing.T) {
	dir, l := create(t)
	do(t, l.Close())
	for _, name := range []string{"0.tmp", "1.tmp"} {
		do(t, os.WriteFile(filepath.Join(dir, segmentDir, name), make([]byte, 1<<20), 0o600))
	}
	l, _ = open(t, dir, testAt)
	do(t, l.Close()) // it removes its own
	left, err := filepath.Glob(filepath.Join(dir, segmentDir, "*.tmp"))
	if err != nil || len(left) > 0 {
		t.Errorf("left: %q, %v", left, err)
	}
}

func TestLowerPromise(t *testing.T) {
	dir, l := create(t)
	appendSync(t, l, hardState(3, 5), entries(3, 2, 10, 50))
	do(t, l.Append(hardState(4, 5), entries(2, 7, 8, 50)))
	old := entries(3, 2, 10, 50)
	shorter := append(entries(3, 2, 10, 50)[:5], entries(2, 7, 8, 50)...)
	for _, step := range []struct {
		name string
		do   func() error
		want []*raftpb.Entry
	}{{"lower", l.lower, old}, {"save", l.save, shorter}, {"raise", l.raise, shorter}} {
		do(t, step.do())
		l2, r, err := Open(snapshotDir(t, dir), testAt)
		if err != nil {
			t.Fatalf("after %s: %v", step.name, err)
		}
		wantEntries(t, r, step.want)
		do(t, l2.Close())
	}
	do(t, l.Close())
}

// TestErrorIsFinal: after a write that failed nothing is written any more.
func TestErrorIsFinal(t *testing.T) {
	_, l := create(t)
	appendSync(t, l, hardState(2, 1), entries(2, 2, 3, 10))
	do(t, l.promise.f.Close())
	do(t, l.Append(nil, entries(2, 4, 4, 10)))
	err := l.Sync()
	if err == nil {
		t.Fatal("Sync with a closed file did not fail")
	}
	for name, again := range map[string]error{
		"Append": l.Append(nil, nil), "Sync": l.Sync(), "Flushed": l.Flushed(3), "Mark": l.Mark(testAt), "Release": l.Release(2), "Close": l.Close(),
	} {
		if !errors.Is(again, err) {
			t.Errorf("%s after the failure: got %v, want %v", name, again, err)
		}
	}
}

func TestMemoryCrash(t *testing.T) {
	m := NewMemory(testMeta, testAt)
	appendSync(t, m, hardState(2, 1), entries(2, 2, 10, 5))
	// A commit index alone is not synced.
	appendSync(t, m, hardState(2, 9), nil)
	do(t, m.Append(hardState(3, 9), entries(3, 8, 12, 5)))
	m.Crash()
	r := m.Replay(1)
	wantEntries(t, r, entries(2, 2, 10, 5))
	if r.Hard.GetTerm() != 2 || r.Hard.GetCommit() != 1 {
		t.Errorf("hard state after the crash: got %v, want term 2 commit 1", r.Hard)
	}
	appendSync(t, m, hardState(4, 9), entries(4, 9, 9, 5))
	m.Crash()
	wantEntries(t, m.Replay(1), append(entries(2, 2, 10, 5)[:7], entries(4, 9, 9, 5)...))
	if m.Replay(7) != nil {
		t.Errorf("a Replay from where there is no mark")
	}
}
