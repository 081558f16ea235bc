package raftstore

import (
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"
)

// Health is what a node knows of the state of its state: whether it is the
// others', whether the file is as it was written, and whether there is room for
// it.
type Health struct {
	// Compared is how long ago a sum was last compared with another node's;
	// negative: never.
	Compared time.Duration
	Verdict  Verdict
	Differs  []Difference // by node
	// Scrubbed is how long ago the state file was last read whole and found
	// good; negative: never. ScrubDone octets of ScrubTotal, about, are read of
	// the round that is under way; both 0: none is.
	Scrubbed              time.Duration
	ScrubDone, ScrubTotal int64
	// FreeBytes and TotalBytes are of the disk; both 0 when it cannot be asked.
	FreeBytes, TotalBytes int64
	// LowBytes is the mark below which NoSpace is true; it is false again at a
	// quarter more.
	LowBytes int64
	NoSpace  bool
	// ReadOnly is why the node only shows an old state, "" where it does not.
	ReadOnly string
	// Warnings are what an operator should look at, in words.
	Warnings []string
}

// health is what a Store remembers for Health.
type health struct {
	mu       sync.Mutex
	space    space
	spaceErr error
	scrubbed time.Duration // when; 0: never
	missing  bool          // the ballast
	logged   Verdict
}

const (
	// healthEvery is how often the disk is looked at and the sums are judged.
	healthEvery = time.Second
	// heardWithin is how recently a voter must have been heard for it to be a
	// failure that its sum was not compared for comparePatience.
	heardWithin     = 10 * time.Second
	comparePatience = 5 * time.Minute
)

// Sum returns the sum of the state after the last entry applied, and which that is.
func (s *Store) Sum() (index, sum uint64) { return s.node.Sum() }

// SumAfter returns the sum to tell others when the one at index after was told
// last: at a newer index that they are likely to tell of too, or again at the
// last one applied if nothing was applied since.
func (s *Store) SumAfter(after uint64) (index, sum uint64) {
	return s.node.SumAfter(after)
}

// CompareSum takes what another node says its sum is at an index. A sum that is
// ahead waits until this node has applied that entry; one too far back counts
// as not compared. It does not block.
func (s *Store) CompareSum(node, index, sum uint64) {
	s.node.CompareSum(node, index, sum)
	s.judge()
}

// Sum returns the sum of the state after the last entry applied, and which that is.
func (n *Node) Sum() (index, sum uint64) {
	n.sums.mu.Lock()
	defer n.sums.mu.Unlock()
	return n.sums.last.index, n.sums.last.sum
}

// CompareSum takes what another node says its sum is at an index.
func (n *Node) CompareSum(node, index, sum uint64) { n.sums.compare(node, index, sum, n.clock.Now()) }

// Judge weighs what the voters have said.
func (n *Node) Judge() Verdict {
	st := n.Status()
	return n.sums.judge(st.Identity.Node, st.Voters)
}

// StepScrub reads some limit octets of the state again. done: the round is
// over; the state on disk is as it was written, unless there is an error.
func (n *Node) StepScrub(limit int) (read int, done bool, err error) {
	read, done, err = n.scrub.step(n.disk, limit)
	n.metrics.scrubbed.Add(float64(read))
	if done {
		result := scrubOK
		if err != nil {
			result = scrubDamaged
		}
		n.metrics.scrubs.WithLabelValues(result).Inc()
	}
	return read, done, err
}

// runHealth looks at the disk and judges the sums, now and then.
func (s *Store) runHealth() {
	t := time.NewTicker(healthEvery)
	defer t.Stop()
	for {
		s.lookAtDisk()
		s.judge()
		select {
		case <-s.stop:
			return
		case <-t.C:
		}
	}
}

func (s *Store) lookAtDisk() {
	h := &s.health
	h.mu.Lock()
	defer h.mu.Unlock()
	was := h.space.low
	if h.spaceErr = h.space.look(s.cfg); h.spaceErr != nil {
		return
	}
	h.missing = s.cfg.ballastMissing()
	s.node.metrics.diskFree.Set(float64(h.space.free))
	s.node.metrics.diskLow.Set(0)
	if h.space.low {
		s.node.metrics.diskLow.Set(1)
	}
	switch {
	case h.space.low && !was:
		s.cfg.Log.Warn("the disk is nearly full", "dir", s.cfg.Dir, "free", h.space.free, "total", h.space.total)
	case was && !h.space.low:
		s.cfg.Log.Info("the disk has room again", "dir", s.cfg.Dir, "free", h.space.free)
	}
}

// judge acts on what the sums came to.
func (s *Store) judge() {
	if s.stopping() {
		return
	}
	st := s.node.Status()
	verdict := s.node.Judge()
	differs := s.node.sums.differences(st.Members)
	s.node.metrics.differing.Set(float64(len(differs)))
	h := &s.health
	h.mu.Lock()
	was := h.logged
	h.logged = verdict
	h.mu.Unlock()
	if verdict == Odd {
		s.quarantine(fmt.Errorf("%w: a majority of the voters has another state: %s", ErrDiverged, tell(differs)))
		return
	}
	if verdict != was && len(differs) > 0 {
		s.cfg.Log.Warn("states differ", "verdict", verdict, "nodes", tell(differs))
	}
}

func tell(differs []Difference) string {
	text := ""
	for _, d := range differs {
		if text != "" {
			text += ", "
		}
		text += fmt.Sprintf("%s at index %d has %016x, here %016x", d.Name, d.Index, d.Theirs, d.Mine)
	}
	return text
}

// quarantine ends a node whose state is wrong, for good: the mark is on disk
// before anybody hears of it, so that a restart does not bring it back.
func (s *Store) quarantine(cause error) {
	s.quarantined.Do(func() {
		if err := askReseed(s.cfg.shardDir(), cause.Error()+"\n"); err != nil {
			cause = errors.Join(cause, fmt.Errorf("the mark could not be written: %w", err))
		}
		s.halt(cause)
	})
}

// runScrub reads the state file again and again. The first round of a large
// file comes at once and at full speed: until it is over, what is not found may
// be there all the same.
func (s *Store) runScrub(first bool) {
	for {
		if !first {
			if s.cfg.ScrubInterval < 0 || !s.sleep(s.cfg.ScrubInterval) {
				return
			}
		}
		rate := s.cfg.ScrubRate
		if first {
			rate = -1
		}
		if err := s.scrubRound(rate); err != nil {
			s.damaged(err)
			return
		}
		if s.stopping() {
			return
		}
		if first {
			if err := s.verifyMachine(); err != nil {
				s.halt(err)
				return
			}
			if s.stopping() {
				return
			}
			s.verified.Store(true)
			first = false
		}
	}
}

// scrubStep is how much one step of a scrub reads.
const scrubStep = 256 << 10

// scrubRound reads the whole file at rate octets a second, negative: at once.
func (s *Store) scrubRound(rate int64) error {
	start := s.cfg.Clock.Now()
	for !s.stopping() {
		began := s.cfg.Clock.Now()
		n, done, err := s.node.StepScrub(scrubStep)
		if err != nil {
			return err
		}
		if done {
			h := &s.health
			h.mu.Lock()
			h.scrubbed = max(1, s.cfg.Clock.Now())
			h.mu.Unlock()
			s.cfg.Log.Info("state file scrubbed", "dir", s.cfg.shardDir(), "dur", s.cfg.Clock.Now()-start)
			return nil
		}
		if rate > 0 {
			took := s.cfg.Clock.Now() - began
			s.sleep(time.Duration(int64(n))*time.Second/time.Duration(rate) - took)
		}
	}
	return nil
}

// sleep waits, and tells whether the store goes on.
func (s *Store) sleep(d time.Duration) bool {
	if d <= 0 {
		return !s.stopping()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-s.stop:
		return false
	case <-t.C:
		return true
	}
}

// damaged ends a node whose state file is not what was written to it. Where
// another voter was heard that can give it a new one it is quarantined; the
// last node that has a state must keep it, for people to save what they can.
func (s *Store) damaged(err error) {
	if errors.Is(err, ErrNewer) {
		s.halt(err) // the others' is no other
		return
	}
	if !errors.Is(err, ErrCorrupt) {
		err = corrupt(s.files.state.path, "%w", err)
	}
	st := s.node.Status()
	s.node.sums.mu.Lock()
	others := false
	for _, v := range st.Voters {
		p := s.node.sums.peers[v]
		others = others || v != st.Identity.Node && p != nil && s.cfg.Clock.Now()-p.heard < heardWithin
	}
	s.node.sums.mu.Unlock()
	if others {
		s.quarantine(fmt.Errorf("%w: %w", ErrDiverged, err))
		return
	}
	s.halt(err)
}

// Health returns what the node knows of its state and disk.
func (s *Store) Health() Health {
	st := s.node.Status()
	now := s.cfg.Clock.Now()
	out := Health{Verdict: s.node.Judge(), Differs: s.node.sums.differences(st.Members), Scrubbed: -1}
	var missed []Member
	out.Compared, missed = s.node.sums.newest(st.Members, st.Identity.Node, now, heardWithin, comparePatience)
	if done := s.node.scrub.read(); done > 0 {
		_, used := s.files.state.size()
		out.ScrubDone, out.ScrubTotal = done, max(done, used)
	}
	warn := func(on bool, format string, args ...any) {
		if on {
			out.Warnings = append(out.Warnings, fmt.Sprintf(format, args...))
		}
	}
	for _, d := range out.Differs {
		warn(out.Verdict == Same, "%s has another state than the majority: it must be re-seeded", d.Name)
		warn(out.Verdict != Same, "%s has another state than this node, and no majority says who is right", d.Name)
	}
	for _, m := range missed {
		warn(true, "the state could not be compared with %s for more than %v", m.Name, comparePatience)
	}
	h := &s.health
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.scrubbed > 0 {
		out.Scrubbed = now - h.scrubbed
	}
	if h.space.known {
		out.FreeBytes, out.TotalBytes, out.NoSpace = h.space.free, h.space.total, h.space.low
		out.LowBytes = s.cfg.lowMark(h.space.total)
	}
	free := "free space"
	if s.cfg.Ballast > 0 && !h.missing {
		free += ", or remove " + filepath.Join(s.cfg.Dir, ballastName)
	}
	warn(out.NoSpace, "%d MiB are left on the disk of %s, %d should be: %s", out.FreeBytes>>20, s.cfg.Dir, out.LowBytes>>20, free)
	warn(h.spaceErr != nil, "the free space of %s is not known: %v", s.cfg.Dir, h.spaceErr)
	warn(h.missing, "%s is missing: with room for it, it is made again at the next start", filepath.Join(s.cfg.Dir, ballastName))
	return out
}
