package raftstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/rookery-mail/rookery/raftstore/snap"
)

// spoolDir is where snapshots for other nodes are kept while they are sent.
const spoolDir = "spool"

// Spooled is a snapshot file that others may be sending too. It must be
// released.
type Spooled struct {
	Path   string
	Header snap.Header
	Size   int64

	once    sync.Once
	release func()
}

// Release gives the file back. It is deleted when nobody has it and the log
// does not reach back to it any more.
func (s *Spooled) Release() { s.once.Do(s.release) }

// spool keeps one snapshot file for all nodes that need one: it is as good as
// a new one as long as the log has all that came after it.
type spool struct {
	turn   chan struct{} // has a token while nobody makes a file
	making atomic.Bool
	seq    int // of the files, for their names; whoever has the token changes it

	mu      sync.Mutex
	current *spoolFile // nil: none
}

type spoolFile struct {
	path   string
	header snap.Header
	size   int64
	users  int
	stale  bool // another has taken its place
}

func newSpool() *spool {
	p := &spool{turn: make(chan struct{}, 1)}
	p.turn <- struct{}{}
	return p
}

// Spool returns a snapshot file that a node which lags can be brought up to
// date with: the one that is there, or a new one of the state as applied now.
// One is made at a time, at Config.SnapshotRate; whoever asks meanwhile waits
// and shares it. While it is in use the log after it is kept.
//
// Errors: ErrNoRoom when the disk has no room for it, ErrClosed, the context's.
func (s *Store) Spool(ctx context.Context) (*Spooled, error) { return s.SpoolFrom(ctx, 0) }

// SpoolFrom is Spool for a node that has no use for a snapshot of an index
// before this one: a file that is there and older is not given. If this node has
// not come so far itself, what it gives is older all the same.
func (s *Store) SpoolFrom(ctx context.Context, index uint64) (*Spooled, error) {
	p := s.spool
	select {
	case <-p.turn:
		defer func() { p.turn <- struct{}{} }()
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-s.stop:
		return nil, s.stopped()
	}
	if f := s.spoolUse(index); f != nil {
		return f, nil
	}
	p.making.Store(true)
	defer p.making.Store(false)
	f, err := s.makeSpool(ctx)
	if err != nil {
		return nil, fmt.Errorf("raftstore: spool a snapshot: %w", err)
	}
	p.mu.Lock()
	p.current = f
	p.mu.Unlock()
	return s.spoolTake(f), nil
}

// spoolUse returns the present file if it is fresh and not of before index; else
// it is retired.
func (s *Store) spoolUse(index uint64) *Spooled {
	s.spool.mu.Lock()
	f := s.spool.current
	s.spool.mu.Unlock()
	if f == nil {
		return nil
	}
	// Pinned before it is looked at, lest the log goes in between.
	if f.header.Index < index || !s.node.pin(f.header.Index) || !s.sameMembers(f.header) {
		s.retireSpool(f)
		return nil
	}
	return s.spoolTake(f)
}

// sameMembers tells whether a snapshot has the membership of now. One that does
// not may lack the very node it is for, which would not accept it.
func (s *Store) sameMembers(h snap.Header) bool {
	st := s.node.Status()
	return slices.Equal(h.Conf.GetVoters(), st.Voters) && slices.Equal(h.Conf.GetLearners(), st.Learners)
}

func (s *Store) spoolTake(f *spoolFile) *Spooled {
	s.spool.mu.Lock()
	f.users++
	s.spool.mu.Unlock()
	s.node.pin(f.header.Index)
	return &Spooled{Path: f.path, Header: f.header, Size: f.size, release: func() { s.spoolRelease(f) }}
}

func (s *Store) spoolRelease(f *spoolFile) {
	s.spool.mu.Lock()
	f.users--
	last, stale := f.users == 0, f.stale
	s.spool.mu.Unlock()
	switch {
	case !last:
	case stale:
		s.removeSpool(f)
	default:
		s.node.pin(0)
		s.tidySpool()
	}
}

// retireSpool says that a file is not for anybody new.
func (s *Store) retireSpool(f *spoolFile) {
	s.node.pin(0)
	s.spool.mu.Lock()
	f.stale = true
	if s.spool.current == f {
		s.spool.current = nil
	}
	unused := f.users == 0
	s.spool.mu.Unlock()
	if unused {
		s.removeSpool(f)
	}
}

func (s *Store) removeSpool(f *spoolFile) {
	if err := removeFile(f.path); err != nil {
		s.cfg.Log.Warn("a snapshot file could not be deleted", "file", f.path, "err", err)
	}
}

// tidySpool deletes a file that nobody uses and that has grown too old.
func (s *Store) tidySpool() {
	s.spool.mu.Lock()
	f := s.spool.current
	old := f != nil && f.users == 0 && s.node.kept.Load() > f.header.Index
	s.spool.mu.Unlock()
	if old {
		select {
		case <-s.spool.turn: // else somebody is just asking for it
			s.retireSpool(f)
			s.spool.turn <- struct{}{}
		default:
		}
	}
}

// makeSpool saves the state to a new file. The read transaction, which keeps
// the state file from using its pages again, ends when all is written; the file
// is synced and read back after that.
func (s *Store) makeSpool(ctx context.Context) (*spoolFile, error) {
	if err := s.flushed(ctx); err != nil {
		return nil, err
	}
	dir := filepath.Join(s.cfg.shardDir(), spoolDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	_, used := s.files.state.size()
	if err := s.room(dir, used); err != nil {
		return nil, err
	}
	s.spool.seq++
	f := &spoolFile{path: filepath.Join(dir, fmt.Sprintf("%d.snap", s.spool.seq))}
	saving, err := snap.Create(f.path)
	if err != nil {
		return nil, err
	}
	start := s.cfg.Clock.Now()
	err = s.image(func(h snap.Header, write func(io.Writer) error) error {
		f.header = h
		return saving.Fill(h, func(w io.Writer) error {
			return write(&pacedWriter{w: &stoppable{w, ctx, s.stop}, rate: s.cfg.SnapshotRate, start: time.Now(), stop: s.stop})
		})
	})
	if err != nil {
		return nil, errors.Join(err, saving.Abandon())
	}
	if err := saving.Commit(); err != nil {
		return nil, err
	}
	info, err := os.Stat(f.path)
	if err != nil {
		return nil, err
	}
	f.size = info.Size()
	s.saved(start, f.header, f.path)
	return f, nil
}

// room makes sure that a directory's disk takes so many octets more, and that
// the log can still be written to for a while.
func (s *Store) room(dir string, need int64) error {
	free, err := s.free(dir)
	if err != nil {
		return err
	}
	if margin := max(need/20, 16<<20); free < uint64(need+margin) {
		return fmt.Errorf("%w: %s needs %d octets and %d to spare, %d are free", ErrNoRoom, dir, need, margin, free)
	}
	return nil
}

// freeBytes returns how much a directory's disk takes yet.
func freeBytes(dir string) (uint64, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("raftstore: free space of %s: %w", dir, err)
	}
	return st.Bavail * uint64(st.Bsize), nil
}

// pacedWriter writes no faster than at a rate, in octets a second.
type pacedWriter struct {
	w     io.Writer
	rate  int64
	start time.Time
	n     int64
	stop  <-chan struct{}
}

func (p *pacedWriter) Write(b []byte) (int, error) {
	n, err := p.w.Write(b)
	p.n += int64(n)
	due := time.Duration(float64(p.n) / float64(p.rate) * float64(time.Second))
	if wait := due - time.Since(p.start); wait > time.Millisecond {
		select {
		case <-time.After(wait):
		case <-p.stop:
		}
	}
	return n, err
}
