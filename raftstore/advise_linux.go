//go:build linux && (amd64 || arm64)

package raftstore

import (
	"os"
	"syscall"
)

// adviseDontNeed tells the kernel that a file's pages need not stay in memory.
func adviseDontNeed(f *os.File) {
	const dontNeed = 4
	// Advice: whether it was taken says nothing to us.
	_, _, _ = syscall.Syscall6(syscall.SYS_FADVISE64, f.Fd(), 0, 0, dontNeed, 0, 0)
}
