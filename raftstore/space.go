package raftstore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/rookery-mail/rookery/raftstore/snap"
)

// Why space is watched: a disk that is full stops its node at the next write,
// and the disks of a cluster fill together. So a node says early that it is
// running out, and growth is refused while there is still room for what frees
// and what moves.

// lowShare is the part of a disk that is to stay free, and lowLeast the least.
const (
	lowShare = 50 // one in 50
	lowLeast = 256 << 20
)

// space is what the watch over a node's disk has seen.
type space struct {
	free, total int64
	known       bool
	low         bool
}

// lowMark returns how much is to stay free on a disk.
func (c Config) lowMark(total int64) int64 {
	if c.LowSpace > 0 {
		return c.LowSpace
	}
	return max(lowLeast, total/lowShare)
}

// look takes what the disk says now. low goes away only when there is a quarter
// more than its mark, lest it come and go with every file.
func (s *space) look(cfg Config) error {
	free, total, err := cfg.Space(cfg.Dir)
	if err != nil {
		return err
	}
	mark := cfg.lowMark(total)
	if s.low {
		mark += mark / 4
	}
	*s = space{free: free, total: total, known: true, low: free < mark}
	return nil
}

// ballastName is a file in the data directory that only takes up space. In need
// an operator removes it and has room to put things right.
const ballastName = "ballast"

// ampleRoom is how many times its own size must be free, beyond the low-water
// mark, for the ballast to be made.
const ampleRoom = 4

// ballast makes the file if it is wanted, missing and there is ample room for
// it, or says why there is none.
func (c Config) ballast() error {
	path := filepath.Join(c.Dir, ballastName)
	info, err := os.Stat(path)
	switch {
	case c.Ballast <= 0:
		return nil
	case err == nil && info.Size() >= c.Ballast:
		return nil
	case err != nil && !errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("raftstore: ballast: %w", err)
	}
	free, total, err := c.Space(c.Dir)
	if err != nil {
		return fmt.Errorf("raftstore: ballast: %w", err)
	}
	if free < c.lowMark(total)+ampleRoom*c.Ballast {
		return fmt.Errorf("raftstore: ballast: only %d octets are free", free)
	}
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err == nil {
		err = errors.Join(allocate(f, c.Ballast), f.Sync(), f.Close())
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		return fmt.Errorf("raftstore: ballast: %w", errors.Join(err, remove(tmp)))
	}
	return snap.SyncDir(c.Dir)
}

// ballastMissing tells that there should be a ballast and is none.
func (c Config) ballastMissing() bool {
	_, err := os.Stat(filepath.Join(c.Dir, ballastName))
	return c.Ballast > 0 && errors.Is(err, os.ErrNotExist)
}

func remove(path string) error {
	if err := os.Remove(path); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func writeZeros(f *os.File, size int64) error {
	zeros := make([]byte, 1<<20)
	for at := int64(0); at < size; at += int64(len(zeros)) {
		if _, err := f.WriteAt(zeros[:min(int64(len(zeros)), size-at)], at); err != nil {
			return err
		}
	}
	return nil
}

// noWrites are the errors of a disk that takes no more writes: full, over a
// quota or a limit, read-only, or broken.
var noWrites = [...]syscall.Errno{syscall.ENOSPC, syscall.EDQUOT, syscall.EROFS, syscall.EIO, syscall.EFBIG}

// Unwritable tells that an error is a disk's that takes no more writes.
func Unwritable(err error) bool {
	return slices.ContainsFunc(noWrites[:], func(e syscall.Errno) bool { return errors.Is(err, e) })
}

// withErrno gives an error of bbolt its cause back: where that could not grow or
// sync its file, it keeps only the cause's text.
func withErrno(err error) error {
	if err == nil || Unwritable(err) {
		return err
	}
	for _, e := range noWrites {
		if strings.Contains(err.Error(), e.Error()) {
			return &lostCause{err, e}
		}
	}
	return err
}

type lostCause struct {
	error
	cause error
}

func (e *lostCause) Unwrap() []error { return []error{e.error, e.cause} }

// TryWrite finds out whether the data directory takes size more octets, by
// putting a file of that size there and on disk, and removing it.
func TryWrite(dir string, size int64) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("raftstore: %w", err)
	}
	path := filepath.Join(dir, "probe.tmp")
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("raftstore: %w", err)
	}
	_, err = f.Write(make([]byte, 4096))
	if err == nil {
		err = allocate(f, size)
	}
	if err := errors.Join(err, f.Sync(), f.Close(), remove(path)); err != nil {
		return fmt.Errorf("raftstore: %w", err)
	}
	return nil
}
