package raftstore

import (
	"errors"
	"fmt"

	"github.com/rookery-mail/rookery/raftstore/wal"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
)

// installation is a staged state on its way to become this node's. It goes
// through all steps of a Node, in this order:
//
//	core      offers it to Raft, which takes it or not
//	appender  has written and synced what was queued before; marks the log,
//	          and writes nothing more until it is resumed
//	flusher   has ended the flush before; replaces the state, and drops
//	          flushes of the old one from then on
//	applier   shows the new state instead of the old one; resumes the appender
//	core      takes over index and membership
//	appender  writes and syncs the hard state and the entries that came with
//	          the snapshot, then those that queued behind it
//	core      tells Raft
//
// The package comment says why the durable ones among them are in this order.
type installation struct {
	staged  Staged
	meta    Meta            // what stands beside the staged state: ours
	message *raftpb.Message // the MsgSnap that offers it
	// done is called once, with nil when the state is this node's and Raft
	// knows. It must not block.
	done func(error)
}

// installed: the applier shows the new state.
type installed struct{ in *installation }

// offer lets Raft see a snapshot that is staged here.
func (c *core) offer(in *installation) {
	if c.offered != nil || c.taken != nil {
		in.done(fmt.Errorf("%w: another is being installed", ErrNotTaken))
		return
	}
	c.offered = in
	c.stepRaft(in.message)
}

// withdraw ends an offer that Raft has not taken: it had all of it already, or
// has heard of a later leader, or does not find itself in the membership.
func (c *core) withdraw() error {
	in := c.offered
	if in == nil {
		return nil
	}
	c.offered = nil
	if at := in.meta.Applied.Index; max(c.commit, c.applied.Index) >= at {
		err := c.contradicts(in.message.GetFrom(), in.meta.Applied)
		in.done(errors.Join(fmt.Errorf("%w: entry %d is committed here", ErrNotNeeded, at), err))
		return err
	}
	in.done(fmt.Errorf("%w: of term %d from node %x, while this node is in term %d", ErrNotTaken, in.message.GetTerm(), in.message.GetFrom(), c.term))
	return nil
}

// takeSnapshot finds the offer behind a snapshot that Raft has taken.
func (c *core) takeSnapshot(s *raftpb.Snapshot) (*installation, error) {
	in := c.offered
	at := wal.Position{Term: s.GetMetadata().GetTerm(), Index: s.GetMetadata().GetIndex()}
	if in == nil || in.meta.Applied != at {
		return nil, fmt.Errorf("raftstore: Raft took a snapshot at %v that is not here", at)
	}
	c.offered, c.taken = nil, in
	c.restored = at.Index
	return in, nil
}

// takeInstalled: from here on the node's state is the snapshot's.
func (c *core) takeInstalled(e installed) {
	m := e.in.meta
	c.applied = m.Applied
	c.setMembers(m.Conf, m.Members)
	// Whoever waits for an entry that was skipped waits in vain.
	c.waiters.failAll(ErrUnknown)
	c.reads.applied(m.Applied.Index)
}

// finishInstall: log and state are on disk. Raft is told next, with the
// responses of the same message, and from then on reads the log in memory.
func (c *core) finishInstall() {
	in := c.taken
	c.taken = nil
	m := in.meta
	c.durable = m.Applied
	c.entries.restart(m.Applied)
	c.entries.flushed, c.entries.flushedConf = m.Applied, m.Conf
	c.sinceMark, c.marked, c.released = 0, m.Mark, m.Mark.Index
	c.out.append = append(c.out.append, appendJob{flushed: m.Applied.Index}, appendJob{release: m.Mark.Index})
	c.metrics.installs.Inc()
	c.log.Info("snapshot installed", "term", m.Applied.Term, "index", m.Applied.Index, "peer", in.message.GetFrom())
	in.done(nil)
}

// install marks the log for a state that will take the place of the present
// one. What is queued behind is held until resume.
func (a *appender) install(job appendJob) error {
	m := job.install.meta
	if err := a.log.Install(wal.Mark{Position: m.Mark, Conf: m.Conf}); err != nil {
		return err
	}
	a.installing = &job
	return nil
}

// resume writes what came with the snapshot.
func (a *appender) resume() error {
	job := *a.installing
	a.installing = nil
	return a.write([]appendJob{job})
}

// installResult is the disk with the new state in it.
type installResult struct {
	base *base
	in   *installation
}

// install shows the new state, in one step. What the overlay held was of the
// old one and is included.
func (a *applier) install(r *installResult) event {
	a.meta = r.in.meta.clone()
	a.generation++
	a.skip = a.meta.Applied.Index
	a.overlay.replace(r.base, a.meta.Applied, a.meta.Sum)
	a.sums.replaced(a.meta.Applied.Index, a.meta.Sum)
	a.dirty = far
	for _, w := range a.wants {
		w.done()
	}
	a.wants = nil
	return installed{r.in}
}

// replaceState is the flusher's step of an installation.
func (n *Node) replaceState(in *installation) error {
	if err := n.disk.Replace(in.staged); err != nil {
		return err
	}
	base, err := n.newBase()
	if err != nil {
		return err
	}
	n.generation++
	n.applies.put(applyJob{installed: &installResult{base: base, in: in}})
	return nil
}

// Install offers a staged state to Raft as a snapshot from a peer whose message
// had this term. done is called once: with nil when the state is this node's,
// with ErrNotNeeded or ErrNotTaken when it stays as it was. It must not block.
// Whoever staged the state drops it unless done was called with nil.
func (n *Node) Install(staged Staged, from, term uint64, done func(error)) {
	m := staged.Meta()
	n.events.put(&installation{staged: staged, meta: m, done: done, message: &raftpb.Message{
		Type: raftpb.MsgSnap.Enum(), From: new(from), To: new(m.Identity.Node), Term: new(term),
		Snapshot: &raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{Index: new(m.Applied.Index), Term: new(m.Applied.Term), ConfState: m.Conf}},
	}})
}

// adopt returns what the state of another node's snapshot must say of itself
// once it is this node's.
func (m Meta) adopt(id Identity, name string) Meta {
	m = m.clone()
	m.Identity, m.Name = id, name
	m.Mark = m.Applied
	return m
}

// swapJob exchanges the state on disk for an equal one.
type swapJob struct {
	do   func() error
	done func(error)
}

// Swap has the flusher call do between two flushes and begin a new reader of
// the disk. do may exchange what the disk is kept in, not what it holds; an
// error of it stops the node. done is called once and must not block.
func (n *Node) Swap(do func() error, done func(error)) {
	n.flushes.put(flushJob{swap: &swapJob{do, done}})
}

// swapState is the flusher's step of it.
func (n *Node) swapState(j *swapJob) error {
	err := j.do()
	if err != nil {
		j.done(err)
		return err
	}
	base, err := n.newBase()
	if err != nil {
		j.done(err)
		return err
	}
	n.applies.put(applyJob{rebased: base})
	j.done(nil)
	return nil
}

// hasSnapshot tells whether a storage message carries one.
func hasSnapshot(m *raftpb.Message) bool { return !raft.IsEmptySnap(m.GetSnapshot()) }
