package cyrus

import "hash/maphash"

// seen is the set of the names read so far, for telling a name that stands
// twice, wherever it stands. It keeps eight octets of hash a name in a table
// that is at most three quarters full: 128 MiB at ten million names, and half
// as much again while it grows. The hash is seeded by chance, and the odds that
// any two of ten million names share one are three in a million; the second
// would be refused as a duplicate, visibly.
type seen struct {
	seed  maphash.Seed
	table []uint64 // zero: free
	n     int
}

func newSeen() *seen { return &seen{seed: maphash.MakeSeed(), table: make([]uint64, 1<<10)} }

// add reports whether name was not there before.
func (s *seen) add(name []byte) bool {
	h := max(maphash.Bytes(s.seed, name), 1)
	if s.n >= len(s.table)/4*3 {
		old := s.table
		s.table = make([]uint64, 2*len(old))
		for _, o := range old {
			if o != 0 {
				s.table[s.slot(o)] = o
			}
		}
	}
	i := s.slot(h)
	if s.table[i] == h {
		return false
	}
	s.table[i] = h
	s.n++
	return true
}

// slot returns where h stands, or the free place where it would.
func (s *seen) slot(h uint64) uint64 {
	mask := uint64(len(s.table) - 1)
	for i := h & mask; ; i = (i + 1) & mask {
		if s.table[i] == 0 || s.table[i] == h {
			return i
		}
	}
}
