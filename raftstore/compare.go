package raftstore

import (
	"maps"
	"slices"
	"sync"
	"time"
)

// sums holds this node's sums of the last entries, and what the others said of
// theirs. Two nodes that applied the same entries have the same sum at each
// index; once they differ, they differ until one of them is replaced.
//
// That a comparison could not be made is a failure of its own, counted and
// shown: a check that silently does not run is taken for one that passes.
type sums struct {
	metrics *metrics

	mu    sync.Mutex
	ring  []sumAt // of index i at i mod keptSums
	last  sumAt
	peers map[uint64]*peerSums
	ahead int // reports that wait until this node is there
}

type sumAt struct{ index, sum uint64 }

const (
	// keptSums is how many entries back a peer's sum can be compared.
	keptSums = 16384
	// keptReports bounds what is remembered of one peer: its reports that are
	// ahead, the oldest of them, and the newest that differed.
	keptReports = 64
)

// peerSums is what one peer said.
type peerSums struct {
	heard    time.Duration // when it last said something
	since    time.Duration // when it first did
	ahead    []sumAt       // in order
	index    uint64        // of the newest comparison; 0: there was none
	differs  bool          // as of it
	mine     uint64
	theirs   uint64
	compared time.Duration // when that was
	// gaps is theirs less mine, where they differed. Peers that agree with each
	// other and not with this node differ from it by the same.
	gaps []uint64
}

func newSums(index, sum uint64, m *metrics) *sums {
	s := &sums{metrics: m, ring: make([]sumAt, keptSums), peers: make(map[uint64]*peerSums)}
	s.put(index, sum)
	return s
}

func (s *sums) put(index, sum uint64) {
	s.last = sumAt{index, sum}
	s.ring[index%keptSums] = s.last
}

// applied notes the sum after an entry, and compares what waited for it.
func (s *sums) applied(index, sum uint64, now time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.put(index, sum)
	if s.ahead == 0 {
		return
	}
	for _, node := range slices.Sorted(maps.Keys(s.peers)) { // alike in every run of a simulation
		p := s.peers[node]
		for len(p.ahead) > 0 && p.ahead[0].index <= index {
			s.ahead--
			at := p.ahead[0]
			p.ahead = p.ahead[1:]
			s.take(p, at, now)
		}
	}
}

// compare takes what a peer says its sum is at an index.
func (s *sums) compare(node, index, sum uint64, now time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.peers[node]
	if p == nil {
		p = &peerSums{since: now}
		s.peers[node] = p
	}
	p.heard = now
	if index <= s.last.index {
		s.take(p, sumAt{index, sum}, now)
		return
	}
	// Of those ahead the oldest are kept: they are reached first. A node that
	// lags for long would never reach the newest.
	if n := len(p.ahead); n < keptReports && (n == 0 || p.ahead[n-1].index < index) {
		p.ahead = append(p.ahead, sumAt{index, sum})
		s.ahead++
	}
}

func (s *sums) take(p *peerSums, at sumAt, now time.Duration) {
	mine := s.ring[at.index%keptSums]
	if mine.index != at.index {
		s.metrics.compared.WithLabelValues(comparedUnknown).Inc()
		return
	}
	if at.sum == mine.sum {
		s.metrics.compared.WithLabelValues(comparedSame).Inc()
	} else {
		s.metrics.compared.WithLabelValues(comparedDiffers).Inc()
	}
	if at.index < p.index {
		return // overtaken by a newer one
	}
	p.index, p.mine, p.theirs, p.compared = at.index, mine.sum, at.sum, now
	if p.differs = at.sum != mine.sum; !p.differs {
		p.gaps = nil
		return
	}
	gap := at.sum - mine.sum
	if len(p.gaps) == keptReports {
		p.gaps = p.gaps[1:]
	}
	p.gaps = append(p.gaps, gap)
}

// replaced drops what peers said: the state was replaced by another, so it says
// nothing of this one.
func (s *sums) replaced(index, sum uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.ring)
	s.put(index, sum)
	s.peers, s.ahead = make(map[uint64]*peerSums), 0
}

// roundest returns the sum at one of the indexes above after, and which: the
// one that is divisible by the highest power of two. Nodes that tell of their
// sums now and then would seldom tell of the same index if each took its
// newest; so they mostly do.
func (s *sums) roundest(after uint64) sumAt {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last.index >= keptSums {
		after = max(after, s.last.index-keptSums)
	}
	for bit := 63; bit >= 0; bit-- {
		index := s.last.index >> bit << bit
		if at := s.ring[index%keptSums]; index > after && at.index == index {
			return at
		}
	}
	return s.last
}

// Verdict is what comparing sums came to.
type Verdict int

const (
	// Unknown: nobody differs, and no majority is known to agree with this node.
	Unknown Verdict = iota
	// Same: a majority of the voters agrees with this node.
	Same
	// Split: some differ, and neither side is a majority. Nobody can tell who is
	// right, so nobody is shut out.
	Split
	// Odd: a majority of the voters agrees with each other and not with this node.
	Odd
)

func (v Verdict) String() string {
	return [...]string{"unknown", "same", "split", "odd"}[v]
}

// judge weighs what the voters said. self counts for itself if it is one.
func (s *sums) judge(self uint64, voters []uint64) Verdict {
	s.mu.Lock()
	defer s.mu.Unlock()
	same := 0
	var differ []*peerSums
	for _, v := range voters {
		p := s.peers[v]
		switch {
		case v == self:
			same++
		case p == nil || p.index == 0:
		case p.differs:
			differ = append(differ, p)
		default:
			same++
		}
	}
	most := len(voters) / 2
	if same > most {
		return Same
	}
	for _, p := range differ {
		agree := 0
		for _, q := range differ {
			if p == q || sharesGap(p, q) {
				agree++
			}
		}
		if agree > most {
			return Odd
		}
	}
	if len(differ) > 0 {
		return Split
	}
	return Unknown
}

func sharesGap(p, q *peerSums) bool {
	return slices.ContainsFunc(p.gaps, func(g uint64) bool { return slices.Contains(q.gaps, g) })
}

// Difference is a node whose state is not this node's.
type Difference struct {
	Node         uint64
	Name         string // empty if it is no member any more
	Index        uint64
	Mine, Theirs uint64
}

// differences lists the members that differ, by id.
func (s *sums) differences(members []Member) (out []Difference) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range members {
		if p := s.peers[m.ID]; p != nil && p.differs {
			out = append(out, Difference{Node: m.ID, Name: m.Name, Index: p.index, Mine: p.mine, Theirs: p.theirs})
		}
	}
	return out
}

// newest returns how long ago a sum was last compared with any of these nodes,
// negative: never; and which of them were heard within recent, but not compared
// for longer than patience.
func (s *sums) newest(members []Member, self uint64, now, recent, patience time.Duration) (age time.Duration, missed []Member) {
	s.mu.Lock()
	defer s.mu.Unlock()
	age = -1
	for _, m := range members {
		p := s.peers[m.ID]
		if m.ID == self || p == nil {
			continue
		}
		last := p.since
		if p.index > 0 {
			last = p.compared
			if a := now - p.compared; age < 0 || a < age {
				age = a
			}
		}
		if !m.Learner && now-p.heard < recent && now-last > patience {
			missed = append(missed, m)
		}
	}
	return age, missed
}
