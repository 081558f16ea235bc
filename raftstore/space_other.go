//go:build unix && !linux

package raftstore

import (
	"os"
	"syscall"
)

// diskSpace says how much of a directory's disk is free for this process, and
// how large the disk is.
func diskSpace(dir string) (free, total int64, err error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return 0, 0, &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	return int64(st.Bavail) * int64(st.Bsize), int64(st.Blocks) * int64(st.Bsize), nil
}

// allocate gives a file blocks of its own up to size.
func allocate(f *os.File, size int64) error { return writeZeros(f, size) }
