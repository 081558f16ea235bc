package raftstore

import (
	"bytes"

	"github.com/rookery-mail/rookery/internal/kv"
)

// iterator walks a base and the layers over it as one. Of a key in several of
// them the newest counts; a tombstone hides the key.
type iterator struct {
	base   kv.Iterator
	bk, bv []byte // where base is

	layers [2]layerIter // newest first; n of them
	n      int

	placed bool
	from   int    // which source gave the last key; fromBase, or an index of layers
	low    []byte // the lowest key of the layers; nil when they have no more
}

const fromBase = -1

type layerIter struct {
	it   kv.TreeIter
	k, v []byte
}

func (l *layerIter) next() { l.k, l.v = l.it.Next() }

// add puts a layer below those added before.
func (it *iterator) add(t *kv.Tree) {
	it.layers[it.n].it = t.Iter()
	it.n++
}

// Seek implements kv.Iterator.
func (it *iterator) Seek(key []byte) (k, v []byte) {
	it.placed = true
	it.bk, it.bv = it.base.Seek(key)
	for i := range it.n {
		l := &it.layers[i]
		l.k, l.v = l.it.Seek(key)
	}
	return it.settle()
}

// Next implements kv.Iterator.
func (it *iterator) Next() (k, v []byte) {
	if !it.placed {
		return it.Seek(nil)
	}
	if it.from == fromBase && it.bk != nil {
		it.bk, it.bv = it.base.Next()
		// Most keys of a range are in no layer: one comparison tells.
		if it.bk != nil && (it.low == nil || bytes.Compare(it.bk, it.low) < 0) {
			return it.bk, it.bv
		}
	} else {
		it.advance(it.from)
	}
	return it.settle()
}

func (it *iterator) advance(from int) {
	if from != fromBase {
		it.layers[from].next()
	} else if it.bk != nil {
		it.bk, it.bv = it.base.Next()
	}
}

// settle finds the lowest key among the sources, moving past what is hidden.
func (it *iterator) settle() (k, v []byte) {
	for {
		k, v, it.from = it.bk, it.bv, fromBase
		for i := it.n - 1; i >= 0; i-- {
			l := &it.layers[i]
			if l.k == nil {
				continue
			}
			order := -1
			if k != nil {
				order = bytes.Compare(l.k, k)
			}
			if order > 0 {
				continue
			}
			if order == 0 {
				it.advance(it.from) // older than this one
			}
			k, v, it.from = l.k, l.v, i
		}
		if k == nil || v != nil {
			it.bound()
			return k, v
		}
		it.advance(it.from) // a tombstone
	}
}

// bound notes the lowest key that the layers have from here on.
func (it *iterator) bound() {
	it.low = nil
	for i := range it.n {
		if k := it.layers[i].k; k != nil && (it.low == nil || bytes.Compare(k, it.low) < 0) {
			it.low = k
		}
	}
}
