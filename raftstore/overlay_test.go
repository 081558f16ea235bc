package raftstore

import (
	"path/filepath"
	"testing"

	"github.com/rookery-mail/rookery/internal/kv"
	"github.com/rookery-mail/rookery/internal/kv/kvtest"
)

// overlayStore is an overlay as the applier drives it. Shift goes round in
// three steps: freeze, write, take over; with each, a flush is at that point.
type overlayStore struct {
	t     *testing.T
	o     *overlay
	disk  Disk
	tx    overlayTx
	next  *base
	meta  Meta
	steps int
}

func newOverlayStore(t *testing.T, disk Disk) *overlayStore {
	s := &overlayStore{t: t, disk: disk, meta: disk.Meta()}
	var err error
	if s.o, err = newOverlay([]kv.Bucket{kvtest.A, kvtest.B}, s.begin(), start); err != nil {
		t.Fatal(err)
	}
	s.tx.o = s.o
	t.Cleanup(func() {
		if s.next != nil {
			s.next.release()
		}
		s.o.close()
		if err := disk.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func (s *overlayStore) begin() *base {
	r, err := s.disk.Begin()
	if err != nil {
		s.t.Fatal(err)
	}
	return newBase(r, func(err error) {
		if err != nil {
			s.t.Error(err)
		}
	})
}

func (s *overlayStore) Update(f func(kv.Tx)) {
	f(&s.tx)
	if s.tx.err != nil {
		s.t.Error(s.tx.err)
	}
	s.o.publish(start)
}

func (s *overlayStore) View() (kv.Reader, func()) {
	v := s.o.view()
	return v, v.Release
}

func (s *overlayStore) Shift() {
	switch s.steps % 3 {
	case 0:
		s.o.freeze()
	case 1:
		if err := s.disk.Write(s.meta, s.o.frozen); err != nil {
			s.t.Fatal(err)
		}
		s.next = s.begin()
	case 2:
		s.o.flushed(s.next, start)
		s.next = nil
	}
	s.steps++
}

func TestOverlay(t *testing.T) {
	t.Run("memory", func(t *testing.T) {
		kvtest.Run(t, func(t *testing.T) kvtest.Store { return newOverlayStore(t, NewMemoryDisk(2, testMeta(1, 1))) })
	})
	t.Run("file", func(t *testing.T) {
		kvtest.Run(t, func(t *testing.T) kvtest.Store { return newOverlayStore(t, newTestFile(t)) })
	})
}

// flushedStore writes every update to the file at once, so that nearly all is
// read from there.
type flushedStore struct{ *overlayStore }

func (s flushedStore) Update(f func(kv.Tx)) {
	s.overlayStore.Update(f)
	for range 3 {
		s.overlayStore.Shift()
	}
}

func (s flushedStore) Shift() {}

func TestStateFile(t *testing.T) {
	kvtest.Run(t, func(t *testing.T) kvtest.Store {
		disk := newTestFile(t)
		disk.db.NoSync = true // this is about what is read, not about what lasts
		return flushedStore{newOverlayStore(t, disk)}
	})
}

func newTestFile(t *testing.T) *stateFile {
	path := filepath.Join(t.TempDir(), "state.db")
	buckets := []kv.Bucket{kvtest.A, kvtest.B}
	if err := createStateFile(path, buckets, testMeta(1, 1)); err != nil {
		t.Fatal(err)
	}
	disk, err := openStateFile(path, buckets, 64<<20)
	if err != nil {
		t.Fatal(err)
	}
	return disk
}
