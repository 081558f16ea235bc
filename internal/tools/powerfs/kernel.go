package main

import (
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// do runs a call of the kernel's under the lock, as the rules have it. underWay,
// which may be nil, is done where power ends before the call is done: of a write,
// any part may survive.
func (v *volume) do(o op, id uint64, name string, underWay func(*inode), call func(*inode) syscall.Errno) fuse.Status {
	v.mu.Lock()
	defer v.mu.Unlock()
	n := v.nodes[id]
	if n == nil {
		return fuse.Status(syscall.ESTALE)
	}
	powered := !v.off
	out := v.meet(o, n, name)
	if out.delay > 0 {
		v.mu.Unlock()
		time.Sleep(out.delay)
		v.mu.Lock()
		if v.off {
			out.errno = syscall.EIO
		}
	}
	if out.errno != 0 {
		switch {
		case powered && v.off && underWay != nil:
			underWay(n)
		case !v.off && o == opSync:
			n.fail(rand.New(rand.NewPCG(v.calls, n.id)))
		}
		return fuse.Status(out.errno)
	}
	errno := call(n)
	if out.after != nil {
		out.after()
	}
	return fuse.Status(errno)
}

// look is a call that changes nothing and meets no rule.
func (v *volume) look(id uint64, call func(*inode) syscall.Errno) fuse.Status {
	v.mu.Lock()
	defer v.mu.Unlock()
	n := v.nodes[id]
	switch {
	case v.off:
		return fuse.EIO
	case n == nil:
		return fuse.Status(syscall.ESTALE)
	}
	return fuse.Status(call(n))
}

func (n *inode) attr(out *fuse.Attr) {
	*out = fuse.Attr{Ino: n.id, Mode: n.mode, Nlink: 1, Blksize: page}
	if !n.isDir() {
		out.Size = uint64(len(n.data))
		out.Blocks = (out.Size + sector - 1) / sector
	}
	out.SetTimes(nil, &n.changed, &n.changed)
}

func (n *inode) entry(out *fuse.EntryOut) {
	out.NodeId, out.Generation = n.id, 1
	out.SetEntryTimeout(forever)
	out.SetAttrTimeout(forever)
	n.attr(&out.Attr)
}

func (v *volume) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	return v.look(h.NodeId, func(dir *inode) syscall.Errno {
		n := dir.entries[name]
		if n == nil {
			return syscall.ENOENT
		}
		n.entry(out)
		return 0
	})
}

func (v *volume) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	return v.look(in.NodeId, func(n *inode) syscall.Errno {
		out.SetTimeout(forever)
		n.attr(&out.Attr)
		return 0
	})
}

func (v *volume) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	set := func(n *inode) syscall.Errno {
		if mode, ok := in.GetMode(); ok {
			n.mode = n.mode&syscall.S_IFMT | mode&^uint32(syscall.S_IFMT)
		}
		if size, ok := in.GetSize(); ok {
			n.resize(int64(size))
			n.changed = time.Now()
		}
		out.SetTimeout(forever)
		n.attr(&out.Attr)
		return 0
	}
	size, ok := in.GetSize()
	if !ok {
		return v.look(in.NodeId, set)
	}
	return v.do(opResize, in.NodeId, "", func(n *inode) { n.resize(int64(size)) }, set)
}

func (v *volume) Access(_ <-chan struct{}, in *fuse.AccessIn) fuse.Status {
	return v.look(in.NodeId, func(*inode) syscall.Errno { return 0 })
}

func (v *volume) StatFs(_ <-chan struct{}, h *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	return v.look(h.NodeId, func(*inode) syscall.Errno {
		*out = fuse.StatfsOut{Blocks: 1 << 24, Bfree: 1 << 23, Bavail: 1 << 23, Files: 1 << 20, Ffree: 1 << 20, Bsize: page, Frsize: page, NameLen: 255}
		return 0
	})
}

// make adds a node to a directory.
func (v *volume) make(dir uint64, name string, mode uint32, out *fuse.EntryOut) fuse.Status {
	return v.do(opCreate, dir, name, nil, func(dir *inode) syscall.Errno {
		if dir.entries[name] != nil {
			return syscall.EEXIST
		}
		n := v.tree.newInode(mode)
		v.nodes[n.id] = n
		v.tree.link(dir, name, n)
		n.entry(out)
		return 0
	})
}

func (v *volume) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	return v.make(in.NodeId, name, syscall.S_IFDIR|in.Mode&^uint32(syscall.S_IFMT), out)
}

// Mknod makes a file, or a socket.
func (v *volume) Mknod(_ <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	return v.make(in.NodeId, name, in.Mode, out)
}

func (v *volume) Create(_ <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE
	return v.make(in.NodeId, name, syscall.S_IFREG|in.Mode&^uint32(syscall.S_IFMT), &out.EntryOut)
}

func (v *volume) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE
	if in.Flags&syscall.O_TRUNC == 0 {
		return v.look(in.NodeId, func(*inode) syscall.Errno { return 0 })
	}
	cut := func(n *inode) { n.resize(0) }
	return v.do(opResize, in.NodeId, "", cut, func(n *inode) syscall.Errno {
		cut(n)
		return 0
	})
}

func (v *volume) Unlink(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return v.do(opUnlink, h.NodeId, name, nil, func(dir *inode) syscall.Errno {
		if dir.entries[name] == nil {
			return syscall.ENOENT
		}
		v.tree.unlink(dir, name)
		return 0
	})
}

func (v *volume) Rmdir(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return v.do(opUnlink, h.NodeId, name, nil, func(dir *inode) syscall.Errno {
		switch n := dir.entries[name]; {
		case n == nil:
			return syscall.ENOENT
		case len(n.entries) > 0:
			return syscall.ENOTEMPTY
		}
		v.tree.unlink(dir, name)
		return 0
	})
}

func (v *volume) Rename(_ <-chan struct{}, in *fuse.RenameIn, name, newName string) fuse.Status {
	return v.do(opRename, in.NodeId, name, nil, func(from *inode) syscall.Errno {
		to := v.nodes[in.Newdir]
		switch {
		case in.Flags != 0:
			return syscall.EINVAL
		case to == nil || from.entries[name] == nil:
			return syscall.ENOENT
		}
		if old := to.entries[newName]; old != nil && len(old.entries) > 0 {
			return syscall.ENOTEMPTY
		}
		v.tree.rename(from, name, to, newName)
		return 0
	})
}

func (v *volume) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	var got int
	status := v.do(opRead, in.NodeId, "", nil, func(n *inode) syscall.Errno {
		if at := int64(in.Offset); at < int64(len(n.data)) {
			got = copy(buf, n.data[at:])
		}
		return 0
	})
	return fuse.ReadResultData(buf[:got]), status
}

func (v *volume) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	write := func(n *inode) {
		n.write(int64(in.Offset), data)
		n.changed = time.Now()
	}
	status := v.do(opWrite, in.NodeId, "", write, func(n *inode) syscall.Errno {
		write(n)
		return 0
	})
	if status != fuse.OK {
		return 0, status
	}
	return uint32(len(data)), status
}

// Writev has the kernel's octets in pieces.
func (v *volume) Writev(<-chan struct{}, *fuse.WriteIn, [][]byte) (uint32, fuse.Status) {
	return 0, fuse.ENOSYS
}

func (v *volume) Fallocate(_ <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	const keepSize = 1
	if in.Mode&^uint32(keepSize) != 0 {
		return fuse.Status(syscall.EOPNOTSUPP)
	}
	return v.do(opResize, in.NodeId, "", nil, func(n *inode) syscall.Errno {
		if in.Mode&keepSize == 0 {
			n.resize(max(int64(in.Offset+in.Length), int64(len(n.data))))
		}
		return 0
	})
}

func (v *volume) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	return v.do(opSync, in.NodeId, "", nil, func(n *inode) syscall.Errno {
		n.sync()
		return 0
	})
}

func (v *volume) FsyncDir(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	return v.do(opSyncDir, in.NodeId, "", nil, func(n *inode) syscall.Errno {
		v.tree.syncDir(n)
		return 0
	})
}

func (v *volume) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, _ *fuse.OpenOut) fuse.Status {
	return v.look(in.NodeId, func(*inode) syscall.Errno { return 0 })
}

func (v *volume) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return v.look(in.NodeId, func(dir *inode) syscall.Errno {
		names := slices.Sorted(maps.Keys(dir.entries))
		for i := int(in.Offset); i < len(names); i++ {
			n := dir.entries[names[i]]
			if !out.AddDirEntry(fuse.DirEntry{Name: names[i], Mode: n.mode, Ino: n.id, Off: uint64(i + 1)}) {
				break
			}
		}
		return 0
	})
}

// damage flips a bit of what a file holds on the disk, or makes a sector of it
// zero, behind the back of whoever uses it.
func (v *volume) damage(file string, at int64, zero bool) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	var n *inode
	v.tree.each(func(x *inode) {
		if x.path() == file {
			n = x
		}
	})
	switch {
	case n == nil || n.isDir():
		return errors.New("there is no file " + file)
	case at >= int64(len(n.stable)):
		return errors.New("so much of it is not on the disk: " + file)
	}
	for _, b := range [][]byte{n.stable, n.data} {
		if at >= int64(len(b)) {
			continue
		}
		if !zero {
			b[at] ^= 1 << (at % 8)
			continue
		}
		from := at / sector * sector
		clear(b[from:min(from+sector, int64(len(b)))])
	}
	if v.server != nil {
		// Asked of another goroutine: the kernel may want to read first.
		go v.server.InodeNotify(n.id, 0, 0)
	}
	return nil
}
