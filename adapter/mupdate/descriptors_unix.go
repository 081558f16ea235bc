//go:build unix

package mupdate

import "syscall"

// descriptors is how many files this process may have open; 0: as many as it likes.
func descriptors() int {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil || uint64(l.Cur) > 1<<30 {
		return 0
	}
	return int(l.Cur)
}
