package main

import (
	"os"
	"syscall"
)

// withParent has a process end when this one does, whatever becomes of this one.
func withParent() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }

// syncData waits until what was written to f is on disk, as the log of a node
// does.
func syncData(f *os.File) error { return syscall.Fdatasync(int(f.Fd())) }
