package main

import (
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"syscall"
	"time"
)

// inode is a file or a directory.
type inode struct {
	id      uint64
	mode    uint32 // with its type
	changed time.Time

	// Where it is, for paths in rules; of a removed one, where it was.
	parent *inode
	name   string

	content                   // of a file
	entries map[string]*inode // of a directory, as programs see it
	base    map[string]*inode // as the disk has it, before tree.moves
}

func (n *inode) isDir() bool { return n.mode&syscall.S_IFMT == syscall.S_IFDIR }

func (n *inode) path() string {
	if n.parent == nil {
		return "/"
	}
	return path.Join(n.parent.path(), n.name)
}

// move is a change of one directory entry, or of two together.
type move struct {
	// node is what stands there from now on; nil: nothing.
	dir  *inode
	name string
	node *inode
	// Of a rename: where it stood. Else nil.
	fromDir  *inode
	fromName string

	durable bool // a directory of it was synced since
}

func (m *move) in(dir *inode) bool { return m.dir == dir || m.fromDir == dir }

// tree is a file system without the kernel.
type tree struct {
	root  *inode
	moves []*move // since what the disk has, of all directories, in order
	last  uint64  // id given
}

// rootID is fixed by the protocol.
const rootID = 1

func newTree() *tree {
	t := &tree{last: rootID - 1}
	t.root = t.newInode(syscall.S_IFDIR | 0o755)
	return t
}

func (t *tree) newInode(mode uint32) *inode {
	t.last++
	n := &inode{id: t.last, mode: mode, changed: time.Now()}
	if n.isDir() {
		n.entries, n.base = map[string]*inode{}, map[string]*inode{}
	}
	return n
}

// link puts a new node into a directory.
func (t *tree) link(dir *inode, name string, n *inode) {
	dir.entries[name] = n
	n.parent, n.name = dir, name
	t.moves = append(t.moves, &move{dir: dir, name: name, node: n})
}

func (t *tree) unlink(dir *inode, name string) {
	delete(dir.entries, name)
	t.moves = append(t.moves, &move{dir: dir, name: name})
}

// rename replaces what stands at the new name, in one step.
func (t *tree) rename(from *inode, name string, to *inode, newName string) {
	n := from.entries[name]
	delete(from.entries, name)
	to.entries[newName] = n
	n.parent, n.name = to, newName
	t.moves = append(t.moves, &move{dir: to, name: newName, node: n, fromDir: from, fromName: name})
}

// syncDir makes the entries of a directory durable: nothing else does.
func (t *tree) syncDir(dir *inode) {
	for _, m := range t.moves {
		m.durable = m.durable || m.in(dir)
	}
	// What no cut can take back any more is no move.
	i := 0
	for ; i < len(t.moves) && t.moves[i].durable; i++ {
		t.moves[i].apply()
	}
	t.moves = t.moves[i:]
}

// apply makes the move on what the disk has.
func (m *move) apply() {
	if m.fromDir != nil {
		delete(m.fromDir.base, m.fromName)
	}
	if m.node == nil {
		delete(m.dir.base, m.name)
	} else {
		m.dir.base[m.name] = m.node
	}
}

// order is which changes of directories a power cut may leave without others.
// Whatever a sync of the directory made durable stays in each.
type order string

const (
	// journal: one journal for all, so that what happened first survives if
	// anything after it does: ext4, XFS.
	journal order = "journal"
	// directories: each by itself, in order.
	directories order = "directories"
	// names: each name by itself, in order; a rename ties two. POSIX promises no more.
	names order = "names"
)

// survive returns the tree that a disk holds after a power cut, drawn by a seed.
func (t *tree) survive(rng *rand.Rand, o order) *tree {
	for i, in := range t.included(rng, o) {
		if in {
			t.moves[i].apply()
		}
	}
	after := &tree{last: rootID - 1}
	after.root = after.copy(t.root, rng)
	return after
}

// settle is a clean unmount: everything is on disk.
func (t *tree) settle() *tree {
	for _, m := range t.moves {
		m.apply()
	}
	after := &tree{last: rootID - 1}
	after.root = after.copy(t.root, nil)
	return after
}

// copy takes over what the disk has of n. With rng nil that is everything.
func (t *tree) copy(n *inode, rng *rand.Rand) *inode {
	c := t.newInode(n.mode)
	c.changed = n.changed
	if !n.isDir() {
		if rng == nil {
			n.sync()
			c.stable = slices.Clone(n.stable)
		} else {
			c.stable = n.survive(rng)
		}
		c.data = slices.Clone(c.stable)
		return c
	}
	for _, name := range slices.Sorted(maps.Keys(n.base)) {
		child := t.copy(n.base[name], rng)
		child.parent, child.name = c, name
		c.base[name], c.entries[name] = child, child
	}
	return c
}

// included draws which moves survive.
func (t *tree) included(rng *rand.Rand, o order) []bool {
	in := make([]bool, len(t.moves))
	for i, m := range t.moves {
		in[i] = m.durable
	}
	switch o {
	case journal:
		n := rng.IntN(len(in) + 1)
		for i, m := range t.moves {
			if m.durable {
				n = max(n, i+1)
			}
		}
		for i := range in[:n] {
			in[i] = true
		}
	case directories:
		upTo := map[*inode]int{}
		for i, m := range t.moves {
			for _, dir := range []*inode{m.dir, m.fromDir} {
				if _, ok := upTo[dir]; !ok {
					upTo[dir] = rng.IntN(len(in) + 1)
				}
				in[i] = in[i] || dir != nil && i < upTo[dir]
			}
		}
		t.close(in, func(a, b *move) bool { return b.in(a.dir) || a.fromDir != nil && b.in(a.fromDir) })
	default:
		share := rng.Float64()
		for i := range in {
			in[i] = rng.Float64() < share || in[i]
		}
		t.close(in, (*move).sameName)
	}
	return in
}

// sameName tells whether two moves change one entry.
func (m *move) sameName(o *move) bool {
	same := func(dir *inode, name string) bool {
		return dir != nil && (o.dir == dir && o.name == name || o.fromDir == dir && o.fromName == name)
	}
	return same(m.dir, m.name) || same(m.fromDir, m.fromName)
}

// close includes whatever came before an included move that it is tied to.
func (t *tree) close(in []bool, tied func(later, earlier *move) bool) {
	for i := len(in) - 1; i >= 0; i-- {
		for k := 0; in[i] && k < i; k++ {
			in[k] = in[k] || tied(t.moves[i], t.moves[k])
		}
	}
}
