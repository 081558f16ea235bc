package kv

import (
	"bytes"
	"slices"
)

// fanout is how many entries a node holds at most. It costs a search little
// that nodes are small, and spares copying, of which there is much: an overlay
// takes a Snapshot after every batch that is applied.
const fanout = 16

// Tree is an ordered map from byte keys to byte values that can be copied in
// constant time: a B-tree whose nodes are copied when they are first written
// after a Snapshot.
//
// It is also one layer of an overlay. A layer says of a key that it has a
// value, that it is gone (a tombstone, see Entomb), or nothing at all.
//
// The zero Tree is empty and ready to use. A Tree has one writer; while it
// writes, any number of goroutines may read the snapshots it gave out. A Tree
// must not be copied except by Snapshot.
type Tree struct {
	root  *node
	owner *owner
	len   int
	size  int
}

// owner marks the nodes that a tree may change in place. It is compared by
// address, so it must not be of size zero.
type owner struct{ _ byte }

// node is a leaf, with a value for every key, or an inner node, with a child
// for every key; then keys[i] is at or below every key under kids[i], and
// above all under kids[i-1].
type node struct {
	owner *owner
	keys  [][]byte
	vals  [][]byte
	kids  []*node
}

// newLeaf and newInner make empty nodes with room for all they can hold, in one
// piece: nodes are copied after every Snapshot, and what is made in three costs
// three times the allocator's work.
func newLeaf(o *owner) *node {
	l := new(struct {
		node
		keys, vals [fanout + 1][]byte
	})
	l.node = node{owner: o, keys: l.keys[:0], vals: l.vals[:0]}
	return &l.node
}

func newInner(o *owner) *node {
	l := new(struct {
		node
		keys [fanout + 1][]byte
		kids [fanout + 1]*node
	})
	l.node = node{owner: o, keys: l.keys[:0], kids: l.kids[:0]}
	return &l.node
}

// Len returns the number of keys, tombstones among them.
func (t *Tree) Len() int { return t.len }

// Size returns the octets of all keys and values.
func (t *Tree) Size() int { return t.size }

// Snapshot returns the tree as it is now. The copy costs nothing until t is
// written again; it never changes and must not be written to.
func (t *Tree) Snapshot() Tree {
	// From here on the nodes belong to nobody: whoever writes copies first.
	t.owner = nil
	return Tree{root: t.root, len: t.len, size: t.size}
}

// Lookup returns what the tree says of key: its value and true; nil and true
// for a tombstone; nil and false when it says nothing.
func (t *Tree) Lookup(key []byte) (value []byte, ok bool) {
	n := t.root
	if n == nil {
		return nil, false
	}
	for n.kids != nil {
		n = n.kids[n.child(key)]
	}
	i, ok := n.search(key)
	if !ok {
		return nil, false
	}
	return n.vals[i], true
}

// Put sets key to value; nil counts as an empty value. Both are copied.
func (t *Tree) Put(key, value []byte) {
	if value == nil {
		value = []byte{}
	}
	t.set(key, value)
}

// Entomb says of key that it is gone, hiding what lower layers say.
func (t *Tree) Entomb(key []byte) { t.set(key, nil) }

// Remove makes the tree say nothing of key.
func (t *Tree) Remove(key []byte) {
	if _, ok := t.Lookup(key); !ok {
		return
	}
	if t.owner == nil {
		t.owner = new(owner)
	}
	t.root = t.remove(t.own(t.root), key)
	for t.root != nil && len(t.root.kids) == 1 {
		t.root = t.root.kids[0]
	}
}

// Iter returns an iterator over t that shows tombstones, not yet positioned.
func (t *Tree) Iter() TreeIter { return TreeIter{tree: t} }

func (t *Tree) set(key, value []byte) {
	if t.owner == nil {
		t.owner = new(owner)
	}
	if t.root == nil {
		t.root = newLeaf(t.owner)
	}
	t.root = t.own(t.root)
	if right := t.insert(t.root, key, value); right != nil {
		up := newInner(t.owner)
		up.keys = append(up.keys, t.root.keys[0], right.keys[0])
		up.kids = append(up.kids, t.root, right)
		t.root = up
	}
}

// insert sets key below n, which t owns. When n had to be split, it returns
// the new right half.
func (t *Tree) insert(n *node, key, value []byte) (right *node) {
	if n.kids == nil {
		t.insertLeaf(n, key, value)
	} else {
		i := n.child(key)
		n.kids[i] = t.own(n.kids[i])
		if half := t.insert(n.kids[i], key, value); half != nil {
			n.keys = slices.Insert(n.keys, i+1, half.keys[0])
			n.kids = slices.Insert(n.kids, i+1, half)
		}
		n.keys[i] = n.kids[i].keys[0]
	}
	if len(n.keys) <= fanout {
		return nil
	}
	// Keys that arrive in order leave full nodes behind them.
	at := len(n.keys) / 2
	if bytes.Compare(key, n.keys[len(n.keys)-1]) >= 0 {
		at = len(n.keys) - 1
	}
	return t.split(n, at)
}

func (t *Tree) insertLeaf(n *node, key, value []byte) {
	i, found := n.search(key)
	if found {
		t.size += len(value) - len(n.vals[i])
		n.vals[i] = clone(value)
		return
	}
	t.len++
	t.size += len(key) + len(value)
	// One allocation for both; the key's capacity ends where the value starts.
	both := make([]byte, len(key)+len(value))
	copy(both, key)
	copy(both[len(key):], value)
	var v []byte
	if value != nil {
		v = both[len(key):]
	}
	n.keys = slices.Insert(n.keys, i, both[:len(key):len(key)])
	n.vals = slices.Insert(n.vals, i, v)
}

// split moves what n has from at on to a new node.
func (t *Tree) split(n *node, at int) *node {
	var right *node
	if n.kids == nil {
		right = newLeaf(t.owner)
		right.vals = append(right.vals, n.vals[at:]...)
		clear(n.vals[at:])
		n.vals = n.vals[:at]
	} else {
		right = newInner(t.owner)
		right.kids = append(right.kids, n.kids[at:]...)
		clear(n.kids[at:])
		n.kids = n.kids[:at]
	}
	right.keys = append(right.keys, n.keys[at:]...)
	clear(n.keys[at:])
	n.keys = n.keys[:at]
	return right
}

// remove takes key, which is there, out of n, which t owns, and returns n, or
// nil when nothing is left of it. Nodes are not merged: a tree that loses most
// of its keys stays as deep as it was, until they are all gone.
func (t *Tree) remove(n *node, key []byte) *node {
	if n.kids == nil {
		i, _ := n.search(key)
		t.len--
		t.size -= len(n.keys[i]) + len(n.vals[i])
		n.keys = slices.Delete(n.keys, i, i+1)
		n.vals = slices.Delete(n.vals, i, i+1)
	} else {
		i := n.child(key)
		if kid := t.remove(t.own(n.kids[i]), key); kid != nil {
			n.kids[i] = kid
		} else {
			n.keys = slices.Delete(n.keys, i, i+1)
			n.kids = slices.Delete(n.kids, i, i+1)
		}
	}
	if len(n.keys) == 0 {
		return nil
	}
	return n
}

// own returns n, or a copy of it, that t may change.
func (t *Tree) own(n *node) *node {
	if n.owner == t.owner {
		return n
	}
	var c *node
	if n.kids == nil {
		c = newLeaf(t.owner)
		c.vals = append(c.vals, n.vals...)
	} else {
		c = newInner(t.owner)
		c.kids = append(c.kids, n.kids...)
	}
	c.keys = append(c.keys, n.keys...)
	return c
}

// search returns where key is, or would be, in a leaf.
func (n *node) search(key []byte) (i int, found bool) {
	lo, hi := 0, len(n.keys)
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		switch c := bytes.Compare(n.keys[mid], key); {
		case c < 0:
			lo = mid + 1
		case c > 0:
			hi = mid
		default:
			return mid, true
		}
	}
	return lo, false
}

// child returns which child of an inner node key belongs under.
func (n *node) child(key []byte) int {
	lo, hi := 1, len(n.keys)
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		if bytes.Compare(n.keys[mid], key) <= 0 {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo - 1
}

// clone copies b and keeps nil and empty apart.
func clone(b []byte) []byte {
	if b == nil {
		return nil
	}
	return append(make([]byte, 0, len(b)), b...)
}

// maxDepth bounds the iterator's path: a tree of this depth would hold far
// more keys than fit in memory.
const maxDepth = 10

// TreeIter walks one Tree upward, tombstones included: their value is nil.
// It must be positioned again after its tree was written to.
type TreeIter struct {
	tree  *Tree
	depth int
	path  [maxDepth]step
}

type step struct {
	n *node
	i int
}

// Seek moves to the first key at or after key; a nil key at the end.
func (it *TreeIter) Seek(key []byte) (k, v []byte) {
	it.depth = 0
	n := it.tree.root
	if n == nil {
		return nil, nil
	}
	for n.kids != nil {
		i := n.child(key)
		it.path[it.depth] = step{n, i}
		it.depth++
		n = n.kids[i]
	}
	i, _ := n.search(key)
	it.path[it.depth] = step{n, i}
	it.depth++
	if i < len(n.keys) {
		return n.keys[i], n.vals[i]
	}
	return it.climb()
}

// Next moves to the following key; a nil key at the end.
func (it *TreeIter) Next() (k, v []byte) {
	if it.depth == 0 {
		return nil, nil
	}
	leaf := &it.path[it.depth-1]
	leaf.i++
	if leaf.i < len(leaf.n.keys) {
		return leaf.n.keys[leaf.i], leaf.n.vals[leaf.i]
	}
	return it.climb()
}

// climb leaves an exhausted leaf for the first key of the next one.
func (it *TreeIter) climb() (k, v []byte) {
	for it.depth--; it.depth > 0; it.depth-- {
		up := &it.path[it.depth-1]
		if up.i+1 == len(up.n.kids) {
			continue
		}
		up.i++
		n := up.n.kids[up.i]
		for {
			it.path[it.depth] = step{n, 0}
			it.depth++
			if n.kids == nil {
				return n.keys[0], n.vals[0]
			}
			n = n.kids[0]
		}
	}
	return nil, nil
}
