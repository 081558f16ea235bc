package raftstore

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
)

// TestLowSpace: the mark, and that it comes and goes with a distance.
func TestLowSpace(t *testing.T) {
	const mib = 1 << 20
	var free, total int64
	cfg := Config{Space: func(string) (int64, int64, error) { return free, total, nil }}
	var s space
	for _, step := range []struct {
		free, total int64
		low         bool
	}{
		{300 * mib, 1000 * mib, false}, {255 * mib, 1000 * mib, true}, {257 * mib, 1000 * mib, true},
		{319 * mib, 1000 * mib, true}, {321 * mib, 1000 * mib, false}, {257 * mib, 1000 * mib, false},
		{2100 * mib, 100_000 * mib, false}, {1999 * mib, 100_000 * mib, true}, {2499 * mib, 100_000 * mib, true}, {2500 * mib, 100_000 * mib, false},
	} {
		free, total = step.free, step.total
		if err := s.look(cfg); err != nil || s.low != step.low {
			t.Errorf("%d of %d MiB free: low %v, error %v, want low %v", free/mib, total/mib, s.low, err, step.low)
		}
	}
	cfg.LowSpace = 10 * mib
	if free, total = 11*mib, 1000*mib; s.look(cfg) != nil || s.low {
		t.Error("11 MiB are low with a mark of 10 MiB")
	}
}

// TestHealthOfDisk: a store says what its disk says.
func TestHealthOfDisk(t *testing.T) {
	var free atomic.Int64
	free.Store(1 << 40)
	cfg := testConfig(t)
	cfg.LowSpace = 1 << 30
	cfg.Space = func(string) (int64, int64, error) {
		if n := free.Load(); n >= 0 {
			return n, 2 << 40, nil
		}
		return 0, 0, syscall.EIO
	}
	s := open(t, cfg)
	if h := s.Health(); h.NoSpace || h.FreeBytes != 1<<40 || h.TotalBytes != 2<<40 || h.LowBytes != 1<<30 || len(h.Warnings) > 0 {
		t.Errorf("with room: %+v", h)
	}
	free.Store(1000)
	s.lookAtDisk()
	if h := s.Health(); !h.NoSpace || len(h.Warnings) != 1 || !strings.Contains(h.Warnings[0], cfg.Dir) || strings.Contains(h.Warnings[0], ballastName) {
		t.Errorf("without: %+v", h)
	}
	free.Store(-1)
	s.lookAtDisk()
	if h := s.Health(); !h.NoSpace || len(h.Warnings) != 2 {
		t.Errorf("when the disk cannot be asked: %+v", h)
	}
}

// TestBallast: it takes up real blocks, is made with ample room only, is not
// made again while the node runs, and its absence is told.
func TestBallast(t *testing.T) {
	free := int64(1 << 40)
	cfg := testConfig(t)
	cfg.Ballast = 1 << 20
	cfg.LowSpace = 1 << 20
	cfg.Space = func(string) (int64, int64, error) { return free, 2 << 40, nil }
	path := filepath.Join(cfg.Dir, ballastName)

	free = 5<<20 - 1
	s := open(t, cfg)
	if h := s.Health(); len(h.Warnings) != 1 || !strings.Contains(h.Warnings[0], path) {
		t.Errorf("without room for it: warnings %q", h.Warnings)
	}
	s.Close()
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("it was made without room for it: %v", err)
	}

	free = 5 << 20
	s = open(t, cfg)
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if st := info.Sys().(*syscall.Stat_t); info.Size() != 1<<20 || st.Blocks*512 < 1<<20 {
		t.Errorf("it has %d octets and %d blocks", info.Size(), st.Blocks)
	}
	if h := s.Health(); len(h.Warnings) > 0 {
		t.Errorf("with it: warnings %q", h.Warnings)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	s.lookAtDisk()
	if h := s.Health(); len(h.Warnings) != 1 || !strings.Contains(h.Warnings[0], "missing") {
		t.Errorf("after it was removed: warnings %q", h.Warnings)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Error("it came back while it was needed")
	}
}

// TestLostCause: bbolt tells of a full disk in words alone.
func TestLostCause(t *testing.T) {
	err := withErrno(fmt.Errorf("file resize error: %s", syscall.ENOSPC))
	if !Unwritable(err) || !errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EIO) || err.Error() != "file resize error: no space left on device" {
		t.Errorf("got %v", err)
	}
	if other := errors.New("bucket not found"); withErrno(other) != other || Unwritable(other) || withErrno(nil) != nil {
		t.Error("another error is taken for a disk's")
	}
}

func TestTryWrite(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	if err := TryWrite(dir, 1<<20); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("it left %v, error %v", left, err)
	}
	if err := TryWrite(dir, 1<<60); err == nil || !Unwritable(err) {
		t.Errorf("for an exbibyte: %v", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("it left %v, error %v", left, err)
	}
	if err := TryWrite("/proc/self/fd/x", 1); err == nil {
		t.Error("a directory in /proc can be written")
	}
}
