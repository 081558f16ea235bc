package main

import (
	"maps"
	"math/rand/v2"
	"slices"
)

// sector is what a disk writes whole or not at all, and page what a kernel
// hands to it at a time.
const (
	sector = 512
	page   = 4096
)

// content is what a file holds: as programs see it, and as the disk has it.
type content struct {
	data    []byte   // with every change
	stable  []byte   // as of the last sync
	pending []change // since then, in order
}

// change is a write, or with data nil a new size: zeros are added, or all beyond
// it is gone.
type change struct {
	at   int64
	data []byte
	size int64 // of the file after it
}

func (c *content) write(at int64, data []byte) {
	ch := change{at: at, data: slices.Clone(data), size: max(int64(len(c.data)), at+int64(len(data)))}
	c.data = ch.apply(c.data)
	c.pending = append(c.pending, ch)
}

func (c *content) resize(size int64) {
	if size == int64(len(c.data)) {
		return
	}
	ch := change{size: size}
	c.data = ch.apply(c.data)
	c.pending = append(c.pending, ch)
}

// apply makes the change to a whole file.
func (ch change) apply(b []byte) []byte {
	b = sized(b, ch.size)
	copy(b[ch.at:], ch.data)
	return b
}

// sized cuts b, or adds zeros to it. What was cut off does not come back.
func sized(b []byte, size int64) []byte {
	if n := int64(len(b)); size <= n {
		clear(b[size:])
		return b[:size]
	}
	if size > int64(cap(b)) {
		b = slices.Grow(b, int(size)-len(b))
	}
	return b[:size]
}

// sync makes what programs see what the disk has.
func (c *content) sync() {
	for _, ch := range c.pending {
		c.stable = ch.apply(c.stable)
	}
	c.pending = nil
}

// fail is a sync that the disk refused. The kernel takes its pages for clean
// then and never writes them again: some of them came to the disk, and what did
// not is lost at the next cut, also after a later sync that succeeds.
func (c *content) fail(rng *rand.Rand) {
	c.stable = c.survive(rng)
	c.pending = nil
}

// fate is what becomes of the changes of a file that were not synced.
type fate int

const (
	dropped fate = iota // none came to the disk
	kept                // all did
	inOrder             // the first ones did, and of the next one some sectors
	sectors             // any sector may be of any age since the sync
	pages               // the same for pages
	fates
)

// survive returns what a disk holds of the file after a power cut.
func (c *content) survive(rng *rand.Rand) []byte {
	stable := slices.Clone(c.stable)
	if len(c.pending) == 0 {
		return stable
	}
	switch fate(rng.IntN(int(fates))) {
	case dropped:
		return stable
	case kept:
		for _, ch := range c.pending {
			stable = ch.apply(stable)
		}
		return stable
	case inOrder:
		n := rng.IntN(len(c.pending) + 1)
		for _, ch := range c.pending[:n] {
			stable = ch.apply(stable)
		}
		if n < len(c.pending) {
			stable = c.scatter(rng, stable, c.pending[n:n+1], sector)
		}
		return stable
	case sectors:
		return c.scatter(rng, stable, c.pending, sector)
	default:
		return c.scatter(rng, stable, c.pending, page)
	}
}

// scatter applies changes to a file, each of its blocks up to a change drawn for
// it. The size is that before them or that after any of them, whatever became of
// the blocks: in one that was not written there is what was there before, or
// zeros. A file that was cut shorter is so or is not: what it had before does not
// come back between what it has got since.
func (c *content) scatter(rng *rand.Rand, b []byte, changes []change, block int64) []byte {
	for {
		n := slices.IndexFunc(changes, shrinks(int64(len(b))))
		if n < 0 {
			return scatter(rng, b, changes, block)
		}
		b = scatter(rng, b, changes[:n], block)
		if rng.IntN(2) == 0 {
			return b
		}
		b = sized(b, changes[n].size)
		changes = changes[n+1:]
	}
}

// shrinks returns a function that finds, called in order, the first change that
// makes a file of that size shorter.
func shrinks(size int64) func(change) bool {
	return func(ch change) bool {
		shorter := ch.size < size
		size = ch.size
		return shorter
	}
}

func scatter(rng *rand.Rand, b []byte, changes []change, block int64) []byte {
	// How likely a block is to be written at all, and then up to the last change.
	share, newest := rng.Float64(), rng.Float64()
	touched := map[int64][]int{} // block -> changes, in order
	sizes, largest := []int64{int64(len(b))}, int64(len(b))
	for i, ch := range changes {
		for k := ch.at / block; k*block < ch.at+int64(len(ch.data)); k++ {
			touched[k] = append(touched[k], i)
		}
		if ch.size != largest {
			largest = ch.size
			sizes = append(sizes, largest)
		}
	}
	b = sized(b, largest)
	// In order: a map's own would not be the same again with the same seed.
	for _, k := range slices.Sorted(maps.Keys(touched)) {
		list := touched[k]
		if rng.Float64() >= share {
			continue
		}
		n := len(list)
		if rng.Float64() >= newest {
			n = 1 + rng.IntN(n)
		}
		for _, i := range list[:n] {
			changes[i].applyBlock(b, k*block, (k+1)*block)
		}
	}
	return sized(b, sizes[rng.IntN(len(sizes))])
}

// applyBlock makes the part of a change that is in b[from:to].
func (ch change) applyBlock(b []byte, from, to int64) {
	lo, hi := max(from, ch.at), min(to, ch.at+int64(len(ch.data)))
	if lo < hi {
		copy(b[lo:hi], ch.data[lo-ch.at:])
	}
}
