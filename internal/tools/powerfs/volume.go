package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// volume is a disk with a file system on it, mounted or not. The kernel calls it
// by the methods in kernel.go.
type volume struct {
	fuse.RawFileSystem // refuses what is not there

	name  string
	point string      // where it is mounted
	mu    *sync.Mutex // guards all below, of every volume: a cut of several is one moment

	tree   *tree
	nodes  map[uint64]*inode // what the kernel may ask for
	server *fuse.Server      // nil: not mounted
	off    bool              // no power: every call fails
	rules  []*rule
	cut    func(volumes []string, why string)
	calls  uint64 // so far
}

func newVolume(name, point string, mu *sync.Mutex) *volume {
	return &volume{RawFileSystem: fuse.NewDefaultRawFileSystem(), name: name, point: point, mu: mu, tree: newTree()}
}

// forever is how long the kernel may believe what it was told: nobody but the
// kernel changes anything.
const forever = time.Hour

// mount has the kernel use the volume.
func (v *volume) mount() error {
	v.mu.Lock()
	if v.server != nil {
		v.mu.Unlock()
		return fmt.Errorf("volume %s is mounted already", v.name)
	}
	v.off = false
	v.nodes = map[uint64]*inode{rootID: v.tree.root}
	v.tree.each(func(n *inode) { v.nodes[n.id] = n })
	v.mu.Unlock()
	server, err := fuse.NewServer(v, v.point, &fuse.MountOptions{
		FsName: "powerfs", Name: "powerfs",
		DirectMountStrict: true,
		MaxWrite:          1 << 20,
		// The cache of the kernel is right: all that changes goes through it.
		// Without this it would throw the file away that it has mapped whenever
		// its time of change moves.
		ExplicitDataCacheControl: true,
		DisableXAttrs:            true,
		DisableReadDirPlus:       true,
		// With neither of these would writes come here one by one, and when they
		// are made.
		DisabledCapabilities: fuse.CAP_PASSTHROUGH | fuse.CAP_WRITEBACK_CACHE,
	})
	if err != nil {
		return fmt.Errorf("mount %s: %w", v.point, err)
	}
	go server.Serve()
	if err := server.WaitMount(); err != nil {
		return fmt.Errorf("mount %s: %w", v.point, err)
	}
	v.mu.Lock()
	v.server = server
	v.mu.Unlock()
	return nil
}

// unmount takes the volume from the kernel, also from under programs that have
// files of it open: for these every call fails.
func (v *volume) unmount() error {
	v.mu.Lock()
	server := v.server
	v.server = nil
	v.mu.Unlock()
	if server == nil {
		return nil
	}
	if err := syscall.Unmount(v.point, 0); errors.Is(err, syscall.EBUSY) {
		v.mu.Lock()
		v.off = true
		v.mu.Unlock()
		if err := syscall.Unmount(v.point, syscall.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", v.point, err)
		}
		return nil // whoever has files open keeps the server busy
	} else if err != nil {
		return fmt.Errorf("unmount %s: %w", v.point, err)
	}
	server.Wait()
	return nil
}

// power is what became of a volume by a cut.
type power struct {
	Files   int   `json:"files"`   // with changes that were not synced
	Changes int   `json:"changes"` // of their contents
	Moves   int   `json:"moves"`   // of directory entries
	Bytes   int64 `json:"bytes"`   // that were not synced
}

// restore mounts what a power cut has left of the volume.
func (v *volume) restore(seed uint64, o order) (power, error) {
	if err := v.unmount(); err != nil {
		return power{}, err
	}
	var p power
	v.mu.Lock()
	v.tree.each(func(n *inode) {
		if len(n.pending) > 0 {
			p.Files++
			p.Changes += len(n.pending)
			for _, ch := range n.pending {
				p.Bytes += int64(len(ch.data))
			}
		}
	})
	p.Moves = len(v.tree.moves)
	v.tree = v.tree.survive(rand.New(rand.NewPCG(seed, 1)), o)
	v.rules = nil
	v.mu.Unlock()
	return p, v.mount()
}

// settle mounts the volume with all that programs have written to it.
func (v *volume) settle() error {
	if err := v.unmount(); err != nil {
		return err
	}
	v.mu.Lock()
	v.tree = v.tree.settle()
	v.rules = nil
	v.mu.Unlock()
	return v.mount()
}

// each calls f for every inode that has a name.
func (t *tree) each(f func(*inode)) { t.root.each(f) }

func (n *inode) each(f func(*inode)) {
	f(n)
	for _, child := range n.entries {
		child.each(f)
	}
}
