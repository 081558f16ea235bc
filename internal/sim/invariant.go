package sim

import (
	"slices"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/directory/machine"
	"github.com/rookery-mail/rookery/internal/kv"
	"github.com/rookery-mail/rookery/raftstore"
	"go.etcd.io/raft/v3/raftpb"
)

// ledger is what the world knows and no node does: what was acknowledged, what
// each revision is, what each node has promised. Every step of every node is held
// against it.
type ledger struct {
	w *World
	// What each revision is. A cluster that was made anew leaps over very many.
	history     []stretch
	incarnation uint64
	leapt       bool              // the first command of this incarnation was applied
	sums        map[uint64]uint64 // by Raft index
	leaders     map[uint64]uint64 // by term
	acked       uint64            // the highest revision that was acknowledged
	acks        []ack             // rising, of the last minutes

	directoryTime time.Duration // that the commands have added up

	disks map[uint64]*promised // by Raft id
}

// stretch is revisions that follow each other.
type stretch struct {
	base uint64 // the first
	rows []revision
}

// revision is a command that was applied, and what came of it.
type revision struct{ command, result uint64 }

type ack struct {
	at  time.Duration
	rev uint64
}

// promised is what a disk's node has said or done that it must never take back.
type promised struct {
	term    uint64            // the highest in an answer
	votes   map[uint64]uint64 // by term
	flushed uint64            // index of the state on disk
}

func newLedger(w *World) ledger {
	return ledger{w: w, history: []stretch{{base: 1}}, sums: map[uint64]uint64{}, leaders: map[uint64]uint64{}, disks: map[uint64]*promised{}}
}

func (g *ledger) disk(id uint64) *promised {
	p := g.disks[id]
	if p == nil {
		p = &promised{votes: map[uint64]uint64{}}
		g.disks[id] = p
	}
	return p
}

// applied takes note of a command that a node has applied (I1, I2).
func (g *ledger) applied(l *life, r kv.Reader, stamp raftstore.Stamp, command, result []byte) {
	w := g.w
	w.counts.Applies++
	rev, err := l.machine.Revision(r)
	if err != nil {
		w.Fail("node %s: revision: %v", l.n.name, err)
		return
	}
	if rev == 0 {
		return // before the cluster has begun
	}
	got := revision{xxhash.Sum64(command) ^ stamp.Elapsed*31 ^ uint64(stamp.Wall), xxhash.Sum64(result)}
	w.mix(got.command ^ got.result)
	known := w.counts.Commands
	g.compare(l, uint64(rev), got)
	if w.counts.Commands > known {
		g.passes(stamp)
	}
	for _, f := range w.onApply {
		f(l.n.slot, uint64(rev), stamp, command, result)
	}
}

// passes adds up directory time. It goes by monotonic clocks, which may gain a
// twentieth, and stands still without a leader: it never runs ahead of the world's.
func (g *ledger) passes(stamp raftstore.Stamp) {
	g.directoryTime += time.Duration(stamp.Elapsed) * time.Millisecond
	if most := g.w.now + g.w.now/15 + time.Second; g.directoryTime > most {
		g.w.Fail("directory time: %v have passed in %v", g.directoryTime, g.w.now)
	}
}

// compare holds a revision as a node has applied it against what others did.
func (g *ledger) compare(l *life, rev uint64, got revision) {
	w := g.w
	i := len(g.history) - 1
	for i > 0 && g.history[i].base > rev {
		i--
	}
	s := &g.history[i]
	switch at := rev - s.base; {
	case at < uint64(len(s.rows)):
		if want := s.rows[at]; got.command != want.command {
			w.Fail("I1: node %s applies another command as revision %d than others did", l.n.name, rev)
		} else if got.result != want.result {
			w.Fail("I2: node %s has another result of revision %d than others", l.n.name, rev)
		}
	case i < len(g.history)-1:
		w.Fail("I2: node %s applies revision %d, which others leapt over", l.n.name, rev)
	case at == uint64(len(s.rows)):
		s.rows = append(s.rows, got)
		w.counts.Commands++
	case at >= 1<<31 && l.cluster.incarnation == g.incarnation && !g.leapt:
		g.leapt = true
		g.history = append(g.history, stretch{rev, []revision{got}})
		w.counts.Commands++
	default:
		w.Fail("I2: node %s applies revision %d after %d", l.n.name, rev, s.base+uint64(len(s.rows))-1)
	}
}

// remade begins the life of a cluster that was made from this state.
func (g *ledger) remade(state *raftstore.MemoryDisk, incarnation uint64) {
	r, err := state.Begin()
	if err != nil {
		g.w.Fail("%v", err)
		return
	}
	defer r.Close()
	at, err := machine.New().Revision(raftstore.NewReader(r, allBuckets))
	if err != nil {
		g.w.Fail("revision: %v", err)
		return
	}
	rev := uint64(at)
	g.incarnation, g.leapt = incarnation, false
	for i := range g.history {
		if s := &g.history[i]; s.base > rev {
			g.history = g.history[:i]
			break
		} else if n := rev - s.base + 1; n < uint64(len(s.rows)) {
			s.rows = s.rows[:n]
		}
	}
	clear(g.sums)
	clear(g.leaders)
	g.acked, g.acks = min(g.acked, rev), nil
	for _, f := range g.w.onRestore {
		f(incarnation, rev)
	}
}

// acknowledged takes note of a command whose proposer is told (I1).
func (g *ledger) acknowledged(l *life, v *raftstore.View, command, result []byte) {
	w := g.w
	r, err := machine.DecodeResult(result)
	if err != nil {
		w.Fail("node %s: result: %v", l.n.name, err)
		return
	}
	if r.Revision == 0 {
		return
	}
	w.counts.Acked++
	if got := g.revision(l, v); got < uint64(r.Revision) && r.Revision-directory.Revision(got) < 1<<31 {
		w.Fail("I1: node %s acknowledges revision %d, its views show %d", l.n.name, r.Revision, got)
	}
	// A repeated request is answered with the revision of the first.
	if rev := uint64(r.Revision); rev > g.acked {
		g.acked = rev
		g.acks = append(g.acks, ack{w.now, rev})
		if len(g.acks) > 8192 {
			g.acks = append(g.acks[:0], g.acks[4096:]...)
		}
	}
	w.mix(uint64(r.Revision))
	w.wrote()
}

func (g *ledger) revision(l *life, r kv.Reader) uint64 {
	rev, err := l.machine.Revision(r)
	if err != nil {
		g.w.Fail("node %s: revision: %v", l.n.name, err)
	}
	return uint64(rev)
}

// linearizable judges a view that was asked for when least was acknowledged (I3).
func (g *ledger) linearizable(l *life, v view, least uint64) {
	g.w.counts.Reads++
	if got := g.revision(l, v); got < least {
		g.w.Fail("I3: a linearizable read on node %s shows revision %d; %d was acknowledged before it began", l.n.name, got, least)
	}
}

// local judges a view by the age that it says it has.
func (g *ledger) local(l *life, v view) {
	g.w.counts.Locals++
	if !v.known {
		return
	}
	// What its clock shows may be less than has passed.
	age := v.age + v.age/8 + time.Millisecond
	since := g.w.now - age
	least := uint64(0)
	for i := len(g.acks) - 1; i >= 0; i-- {
		if g.acks[i].at < since {
			least = g.acks[i].rev
			break
		}
	}
	if got := g.revision(l, v); got < least {
		g.w.Fail("I3: node %s says that its state is %v old at most and shows revision %d; %d was acknowledged before", l.n.name, v.age, got, least)
	}
}

// state compares a node's state with what others had at the same index (I2).
func (g *ledger) state(l *life) {
	index, sum := l.raft.Sum()
	g.w.mix(sum)
	if before, ok := g.sums[index]; ok && before != sum {
		g.w.Fail("I2: node %s has another state at index %d than others", l.n.name, index)
	}
	g.sums[index] = sum
}

// status judges what a node's core says of itself after a step (I6).
func (g *ledger) status(l *life, before, st *raftstore.Status) {
	w := g.w
	if st.Term < before.Term || st.Committed < before.Committed || st.Applied < before.Applied || st.Flushed < before.Flushed {
		w.Fail("I6: node %s goes back from %+v to %+v", l.n.name, *before, *st)
	}
	if !st.Leading {
		return
	}
	if who, ok := g.leaders[st.Term]; ok && who != l.n.id {
		w.Fail("I6: term %d has two leaders, node %s and %x", st.Term, l.n.name, who)
	} else if !ok {
		g.leaders[st.Term] = l.n.id
		w.counts.Elections++
	}
}

// said notes what a node promises by a message (I6).
func (g *ledger) said(n *node, m *raftpb.Message) {
	switch m.GetType() {
	case raftpb.MsgVoteResp:
		if m.GetReject() {
			return
		}
		p := g.disk(n.id)
		if who, ok := p.votes[m.GetTerm()]; ok && who != m.GetTo() {
			g.w.Fail("I6: node %s votes for %x and %x in term %d", n.name, who, m.GetTo(), m.GetTerm())
		}
		p.votes[m.GetTerm()] = m.GetTo()
		p.term = max(p.term, m.GetTerm())
	case raftpb.MsgAppResp:
		p := g.disk(n.id)
		p.term = max(p.term, m.GetTerm())
	default:
	}
}

// started holds what a node finds on its disk against what it had promised (I6, I7).
func (g *ledger) started(l *life, hard *raftpb.HardState) {
	p := g.disk(l.n.id)
	meta := l.n.disk.state.Meta()
	if hard.GetTerm() < p.term {
		g.w.Fail("I6: node %s starts in term %d and had answered in %d", l.n.name, hard.GetTerm(), p.term)
	}
	if meta.Applied.Index < p.flushed {
		g.w.Fail("I6: node %s starts with a state of index %d and had written %d", l.n.name, meta.Applied.Index, p.flushed)
	}
}

// flushed notes that a state is being put on disk (I6).
func (g *ledger) flushed(n *node, before, after raftstore.Meta) {
	if after.Applied.Index < before.Applied.Index {
		g.w.Fail("I6: node %s writes a state of index %d over one of %d", n.name, after.Applied.Index, before.Applied.Index)
	}
	p := g.disk(after.Identity.Node)
	p.flushed = max(p.flushed, before.Applied.Index)
}

// useful judges a snapshot that has just become a node's state: what follows it
// must still be in the log of who has sent it, or the node needs another at once,
// and so on for ever. One that the log could not be kept for any longer does not
// count, nor one that a node gets which has come further by the log meanwhile: it takes
// no notice of it; nor one that is a member no more.
func (g *ledger) useful(from, to *life, index uint64, givenUp int) {
	members := slices.Concat(from.status.Voters, from.status.Learners)
	if from.dead || !from.status.Leading || !slices.Contains(members, to.n.id) {
		return
	}
	if u := from.raft.Usage(); u.LogAfter > max(index, to.status.Committed) && u.GivenUp == givenUp {
		g.w.Fail("I8: node %s has sent a snapshot of index %d and keeps its log after %d only", from.n.name, index, u.LogAfter)
	}
}

// bounded judges what nodes keep when all has been well for a moment (I9).
func (g *ledger) bounded() bool {
	p := &g.w.plan
	for _, n := range g.w.nodes {
		if n.life == nil {
			continue
		}
		u := n.life.raft.Usage()
		records, most := n.disk.log.Records(), 8*p.logEntries+int(p.markBytes/20)+2000
		if u.LogEntries > 5*p.logEntries+int(p.markBytes/20)+500 || u.Waiting > 200 || u.Reads > 200 || u.Queued > 1000 || u.OverlayKeys > 4*p.flushKeys+2000 || u.Readers > 3 || records > most {
			g.w.Fail("I9: node %s keeps too much: %d records in its log on disk, at most %d; flushed %d; plan %+v; %s", n.name, records, most, n.life.raft.Status().Flushed, g.w.plan, g.w.situation())
			return false
		}
	}
	return true
}
