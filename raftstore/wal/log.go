package wal

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"

	etcdwal "go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3/raftpb"
)

const (
	segmentDir  = "wal"
	promiseFile = "promise"
)

// Log is the log on disk, for one goroutine.
//
// The first error of any method is final: every later call returns it again.
// After a failed write nobody knows what the disk holds, so the one way on is
// to stop and to open the log anew.
type Log struct {
	dir     string // of the segments
	w       *etcdwal.WAL
	promise *promise
	end     Position // of what was appended, synced or not
	err     error
	// Where the next append follows, after Install; else nil.
	installed *Position

	// Appended, not yet handed to w.
	hard    *raftpb.HardState
	entries []*raftpb.Entry
}

// SetSegmentBytes sets the size of segments from now on, for all logs of the
// process; the default is 64 MB. To be called before any log is opened: etcd's
// log keeps it in a variable of its package.
func SetSegmentBytes(n int64) { etcdwal.SegmentSizeBytes = n }

// Create makes a new log in dir that starts after at. It is durable once the
// caller has synced dir.
func Create(dir string, metadata []byte, at Mark) error {
	p, err := createPromise(filepath.Join(dir, promiseFile), at.Position)
	if err != nil {
		return fmt.Errorf("wal: create promise: %w", err)
	}
	if err := p.f.Close(); err != nil {
		return fmt.Errorf("wal: create promise: %w", err)
	}
	w, err := etcdwal.Create(nil, filepath.Join(dir, segmentDir), metadata)
	if err != nil {
		return fmt.Errorf("wal: create: %w", err)
	}
	start := &raftpb.HardState{Term: new(at.Term), Vote: new(uint64(0)), Commit: new(at.Index)}
	if err := errors.Join(w.SaveSnapshot(snapshotRecord(at)), w.Save(start, nil), w.Close()); err != nil {
		return fmt.Errorf("wal: create: %w", err)
	}
	// etcd's log syncs the directory that its own is in, and its own only with the
	// second segment: until then a power cut could take away the name of the first.
	if err := syncDir(filepath.Join(dir, segmentDir)); err != nil {
		return fmt.Errorf("wal: create: %w", err)
	}
	return nil
}

// syncDir puts the names in a directory on disk.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Open reads the log in dir after the mark from, which must have been given to
// Create or Mark, and makes it ready for appending.
//
// A log that is damaged, or that ends before what was synced, is refused with
// ErrCorrupt and left as it is.
func Open(dir string, from Mark) (*Log, *Replay, error) {
	p, err := openPromise(filepath.Join(dir, promiseFile))
	if err != nil {
		return nil, nil, err
	}
	l := &Log{dir: filepath.Join(dir, segmentDir), promise: p}
	r, err := l.open(from)
	if err != nil {
		return nil, nil, errors.Join(err, p.f.Close())
	}
	r.Flushed = p.flushed
	return l, r, nil
}

func (l *Log) open(from Mark) (*Replay, error) {
	segs, err := segments(l.dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	if len(segs) == 0 {
		return nil, fmt.Errorf("%w: %s: no segment of the log is left", ErrCorrupt, l.dir)
	}
	if err := l.tidy(); err != nil {
		return nil, err
	}
	tail := segs[len(segs)-1].path
	// A log with something behind its end is first read without opening it for
	// writing, which would wipe that away, and with it what a person could
	// still find there.
	clean, err := cleanTail(tail)
	if err != nil {
		return nil, err
	}
	r := &Replay{Torn: !clean}
	if clean {
		err = l.read(r, from)
	}
	if !clean || errors.Is(err, io.ErrUnexpectedEOF) {
		r = &Replay{Torn: true}
		if err := l.rehearse(r, from, tail); err != nil {
			return nil, err
		}
		if !etcdwal.Repair(nil, l.dir) {
			return nil, fmt.Errorf("wal: %s: the unfinished write at its end could not be cut away", tail)
		}
		err = l.read(r, from)
	}
	if err != nil {
		return nil, l.unreadable(err)
	}
	if err := l.check(r, from, tail); err != nil {
		return nil, errors.Join(err, l.w.Close())
	}
	l.end = r.last(from)
	// etcd's log does not remember the term and vote it has just read: were
	// they not written again, the next segment would start without them.
	if err := l.w.Save(r.Hard, nil); err != nil {
		return nil, errors.Join(err, l.w.Close())
	}
	return r, nil
}

// tidy removes the files of segments to come. etcd's log makes one ahead, by two names
// in turn, and takes up one of them again: what a process that was killed had made by
// the other would stay for as long as it took to fill a segment.
func (l *Log) tidy() error {
	ahead, err := filepath.Glob(filepath.Join(l.dir, "*.tmp"))
	if err != nil {
		return err
	}
	for _, path := range ahead {
		if err := os.Remove(path); err != nil {
			return fmt.Errorf("wal: %w", err)
		}
	}
	return nil
}

// read opens the log for appending and reads it.
func (l *Log) read(r *Replay, from Mark) (err error) {
	w, err := etcdwal.Open(nil, l.dir, snapshotRecord(from))
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			// It holds a lock on each segment, for which a repair would wait.
			err = errors.Join(err, w.Close())
		}
	}()
	defer catch(&err)
	r.Metadata, r.Hard, r.Entries, err = w.ReadAll()
	l.w = w
	if err == nil {
		err = r.strip()
	}
	return err
}

// rehearse reads the log and leaves it as it is.
func (l *Log) rehearse(r *Replay, from Mark, tail string) (err error) {
	defer catch(&err)
	w, err := etcdwal.OpenForRead(nil, l.dir, snapshotRecord(from))
	if err == nil {
		r.Metadata, r.Hard, r.Entries, err = w.ReadAll()
	}
	if err == nil {
		err = r.strip()
	}
	if err != nil {
		return l.unreadable(err)
	}
	return l.check(r, from, tail)
}

// unreadable tells what the log holds from what the system refuses: a full disk
// or a missing permission is no damage, and nobody must be told to throw the
// log away for it.
func (l *Log) unreadable(err error) error {
	if _, ok := errors.AsType[syscall.Errno](err); ok {
		return err
	}
	return fmt.Errorf("%w: %s: %w", ErrCorrupt, l.dir, err)
}

// check holds what was read against the promise.
func (l *Log) check(r *Replay, from Mark, tail string) error {
	end := r.last(from)
	if end.Less(l.promise.synced) {
		return fmt.Errorf("%w: %s: the log ends at %v, but was synced up to %v", ErrCorrupt, tail, end, l.promise.synced)
	}
	if c := r.Hard.GetCommit(); c > end.Index {
		return fmt.Errorf("%w: %s: the log ends at %v, but index %d was committed", ErrCorrupt, tail, end, c)
	}
	return nil
}

// catch turns a panic of etcd's log over something it cannot read into an error.
func catch(err *error) {
	if p := recover(); p != nil {
		*err = fmt.Errorf("wal: unreadable: %v", p)
	}
}

func snapshotRecord(m Mark) *walpb.Snapshot {
	return &walpb.Snapshot{Index: new(m.Index), Term: new(m.Term), ConfState: m.Conf}
}

// Append adds a hard state, which may be nil, and entries, which replace those
// at their indexes and all after them. They are not durable before Sync.
func (l *Log) Append(hard *raftpb.HardState, entries []*raftpb.Entry) error {
	if l.err != nil {
		return l.err
	}
	if l.installed != nil {
		l.end, l.installed = *l.installed, nil
	}
	if hard != nil {
		l.hard = hard
	}
	l.entries = append(l.entries, entries...)
	if len(entries) > 0 {
		l.end = position(entries[len(entries)-1])
	}
	return nil
}

// Sync makes durable what was appended. A hard state in which only the commit
// index moved is written, but does not need an fsync and gets none.
func (l *Log) Sync() error {
	if l.err != nil {
		return l.err
	}
	if err := l.lower(); err != nil {
		return l.fail("lower the promise", err)
	}
	if err := l.save(); err != nil {
		return l.fail("append", err)
	}
	if err := l.raise(); err != nil {
		return l.fail("raise the promise", err)
	}
	return nil
}

// lower is the first step of a Sync, see the package comment.
func (l *Log) lower() error {
	if !l.end.Less(l.promise.synced) {
		return nil
	}
	l.promise.synced = l.end
	return errors.Join(l.promise.write(), l.promise.f.Sync())
}

// save is the second: etcd's Save syncs what must be.
func (l *Log) save() error {
	err := l.w.Save(l.hard, l.entries)
	l.hard = nil
	clear(l.entries)
	l.entries = l.entries[:0]
	return err
}

// raise is the third.
func (l *Log) raise() error {
	if l.promise.synced == l.end {
		return nil
	}
	l.promise.synced = l.end
	return l.promise.write()
}

// Flushed notes that the state file is on disk up to index applied.
func (l *Log) Flushed(applied uint64) error {
	if l.err != nil {
		return l.err
	}
	l.promise.flushed = applied
	if err := errors.Join(l.promise.write(), l.promise.f.Sync()); err != nil {
		return l.fail("write the promise", err)
	}
	return nil
}

// Mark makes at a place to open the log from. All before it must be synced.
func (l *Log) Mark(at Mark) error {
	if l.err != nil {
		return l.err
	}
	if err := l.w.SaveSnapshot(snapshotRecord(at)); err != nil {
		return l.fail("mark", err)
	}
	return nil
}

// Release deletes the segments that opening at a mark at index does not need.
func (l *Log) Release(index uint64) error {
	if l.err != nil {
		return l.err
	}
	if err := l.w.ReleaseLockTo(index + 1); err != nil {
		return l.fail("release", err)
	}
	segs, err := segments(l.dir)
	if err != nil {
		return l.fail("release", err)
	}
	keep := 0
	for i, s := range segs {
		if s.first <= index {
			keep = i
		}
	}
	// Oldest first: a crash leaves a log without a gap.
	for _, s := range segs[:keep] {
		if err := os.Remove(s.path); err != nil {
			return l.fail("release", err)
		}
	}
	return nil
}

// Close syncs the log and closes it. It returns what had failed before, if
// anything did.
func (l *Log) Close() error {
	err := l.Sync()
	if err == nil {
		err = l.promise.f.Sync()
	}
	cerr := errors.Join(l.w.Close(), l.promise.f.Close())
	if err != nil {
		return err
	}
	l.err = os.ErrClosed
	return cerr
}

func (l *Log) fail(what string, err error) error {
	l.err = fmt.Errorf("wal: %s: %s: %w", what, l.dir, err)
	return l.err
}
