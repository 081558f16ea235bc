package main

import (
	"path"
	"slices"
	"syscall"
	"time"
)

// op is what a program does to a file system.
type op string

const (
	opRead    op = "read"
	opWrite   op = "write"
	opResize  op = "resize" // truncate, fallocate
	opSync    op = "sync"   // fsync, fdatasync
	opSyncDir op = "syncdir"
	opCreate  op = "create" // a file or a directory
	opUnlink  op = "unlink" // of either
	opRename  op = "rename"
	opChange  op = "change" // any of these but read
	pathOfAny    = ""
)

// rule says what happens when a program does something for the N-th time.
type rule struct {
	Op   op     `json:"op"`
	Path string `json:"path"` // a pattern of path.Match for the last part of the path; empty: any
	N    int    `json:"n"`    // counted from 1, with each call that fits
	// Times is how often it happens from then on; 0 is for ever.
	Times int `json:"times"`

	// Cut ends the power of these volumes, before the call is done or after. A
	// write before which power ends is under way: any part of it may survive.
	Cut   []string `json:"cut,omitempty"`
	After bool     `json:"after,omitempty"`
	// Errno is what the call fails with instead.
	Errno syscall.Errno `json:"errno,omitempty"`
	// Delay is how long the call takes.
	Delay time.Duration `json:"delay,omitempty"`

	seen int
}

func (r *rule) fits(o op, file string) bool {
	if r.Op != o && (r.Op != opChange || o == opRead) {
		return false
	}
	if r.Path == pathOfAny {
		return true
	}
	ok, _ := path.Match(r.Path, path.Base(file)) // a bad pattern was refused
	return ok
}

// outcome is what the rules have made of a call.
type outcome struct {
	errno syscall.Errno // 0: it is done
	delay time.Duration
	after func() // nil or what to do when it was done
}

// meet finds what is to become of a call. v.mu is held. A call without power
// fails.
func (v *volume) meet(o op, dir *inode, name string) outcome {
	if v.off {
		return outcome{errno: syscall.EIO}
	}
	v.calls++
	var out outcome
	if len(v.rules) == 0 {
		return out
	}
	file := dir.path()
	if name != "" {
		file = path.Join(file, name)
	}
	for _, r := range slices.Clone(v.rules) {
		if !r.fits(o, file) {
			continue
		}
		if r.seen++; r.seen < r.N || r.Times > 0 && r.seen >= r.N+r.Times {
			continue
		}
		switch {
		case r.Cut != nil && r.After:
			out.after = func() { v.cut(r.Cut, string(o)+" "+file) }
		case r.Cut != nil:
			v.cut(r.Cut, string(o)+" "+file)
			out.errno = syscall.EIO
		case r.Errno != 0:
			out.errno = r.Errno
		default:
			out.delay = r.Delay
		}
	}
	return out
}
