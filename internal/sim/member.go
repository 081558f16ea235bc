package sim

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/rookery-mail/rookery/directory/machine"
	"github.com/rookery-mail/rookery/raftstore"
	"github.com/rookery-mail/rookery/raftstore/snap"
	"github.com/rookery-mail/rookery/raftstore/wal"
	"github.com/rookery-mail/rookery/server"
)

// tick is a command that changes nothing by itself.
var tick = machine.EncodeCommand(machine.Command{By: "directory", Op: machine.Tick{}})

// errDamaged is the fate of a disk that its node must refuse, errOld that of one
// that was put back, errGone that of a member that was removed.
var (
	errDamaged = errors.New("damaged")
	errOld     = errors.New("put back to an old copy")
)

func isMember(id uint64) func(raftstore.Member) bool {
	return func(m raftstore.Member) bool { return m.ID == id }
}

// operator changes the membership now and then, and replaces nodes whose disks
// are lost.
func (w *World) operator() {
	for {
		wait := w.some(8*w.plan.unit, 40*w.plan.unit)
		if slices.ContainsFunc(w.nodes, func(n *node) bool { return n.fate != nil }) {
			wait = w.some(0, 4*w.plan.unit)
		}
		if w.sleep(wait) != nil {
			return
		}
		if w.remaking || w.quiet() {
			continue
		}
		w.changing = true
		err := w.change()
		w.changing = false
		if errors.Is(err, errEnded) {
			return
		}
	}
}

// lead returns the process that leads, in the highest term; nil: none.
func (w *World) lead() (lead *life) {
	for _, n := range w.nodes {
		if l := n.life; l != nil && l.status.Leading && (lead == nil || l.status.Term > lead.status.Term) {
			lead = l
		}
	}
	return lead
}

// sure returns a process that leads, and what it says of itself when it is certain
// that nobody knows better; nil: there is none.
func (w *World) sure() (*life, raftstore.Status, error) {
	l := w.lead()
	if l == nil {
		return nil, raftstore.Status{}, nil
	}
	q := w.wait()
	var result error
	l.raft.ReadIndex(func(err error) {
		result = err
		q.wake()
	})
	l.poke()
	err := q.until(w.now + 4*w.plan.unit)
	if errors.Is(err, errEnded) {
		return nil, raftstore.Status{}, err
	}
	if err != nil || result != nil || l.dead || !l.status.Leading {
		return nil, raftstore.Status{}, nil
	}
	return l, l.raft.Status(), nil
}

// change does one of the things that an operator does with members.
func (w *World) change() error {
	l, st, err := w.sure()
	if l == nil {
		return err
	}
	if w.unsure {
		// Whether the last change will be, only a later one decides.
		return w.reconfigure(raftstore.Change{Member: raftstore.Member{ID: l.n.id, Name: l.n.name}, Describe: true})
	}
	// What disks that are lost, and changes that were left half done, have made of
	// the members.
	var dead raftstore.Member // a voter
	var learner, spare *node
	for _, m := range st.Members {
		switch n, gone := w.byID[m.ID], w.gone(m.ID); {
		case m.Learner && gone:
			w.counts.Fault("learner removed", 1)
			return w.reconfigure(raftstore.Change{Member: m, Remove: true})
		case m.Learner:
			learner = n
		case gone:
			dead = m
		}
	}
	for _, n := range w.nodes {
		if n.fate != nil || !slices.ContainsFunc(st.Members, isMember(n.id)) {
			spare = n
		}
	}
	voter := func() raftstore.Member { return raftstore.Member{ID: st.Voters[w.rnd.IntN(len(st.Voters))]} }
	switch {
	case learner != nil && dead.ID != 0:
		w.counts.Fault("member replaced", 1)
		return w.reconfigure(raftstore.Change{Member: raftstore.Member{ID: learner.id, Name: learner.name}}, raftstore.Change{Member: dead, Remove: true})
	case learner != nil:
		return w.grow(learner)
	case dead.ID != 0 && spare != nil:
		return w.replace(dead, spare)
	case dead.ID != 0:
		return w.remove(dead)
	case spare != nil && w.rnd.IntN(2) == 0 && len(st.Voters) >= 3:
		return w.replace(voter(), spare)
	case spare != nil:
		return w.grow(spare)
	case len(st.Voters) > w.plan.voters:
		if w.rnd.IntN(2) == 0 {
			return w.remove(raftstore.Member{ID: l.n.id})
		}
		return w.remove(voter())
	}
	return nil
}

// gone tells whether the disk of a member is no more, or not to be used.
func (w *World) gone(id uint64) bool {
	n := w.byID[id]
	return n == nil || n.id != id || n.disk == nil || n.fate != nil
}

// wipe takes a node out of service and its disk away.
func (n *node) wipe() {
	if n.life != nil {
		n.life.end(errPower)
	}
	n.disk, n.fate, n.back = nil, nil, far
}

// join gives a node an empty disk and a new id in the cluster that l is of.
func (n *node) join(l *life) raftstore.Member {
	n.wipe()
	id := 1 + n.w.rnd.Uint64N(math.MaxUint64-2)
	of := raftstore.Joining{Cluster: l.cluster.id, Incarnation: l.cluster.incarnation, Node: id}
	n.disk = newDisk(of.Meta(n.name, 1), buckets)
	n.id = id
	n.w.byID[id] = n
	return raftstore.Member{ID: id, Name: n.name}
}

// learn makes a node a member that learns, starts it and waits until it has the
// log.
func (w *World) learn(n *node) (m raftstore.Member, err error) {
	l := w.lead()
	if l == nil {
		return m, nil
	}
	m = n.join(l)
	m.Learner = true
	n.startAt(w.now + w.some(0, w.plan.unit))
	w.counts.Fault("learner added", 1)
	if err := w.reconfigure(raftstore.Change{Member: m}); err != nil {
		return m, err
	}
	for range 400 {
		if err := w.sleep(w.plan.tick); err != nil {
			return m, err
		}
		l := w.lead()
		if l == nil || n.life == nil || n.id != m.ID {
			continue
		}
		st := l.raft.Status()
		for _, p := range st.Progress {
			if p.Node == m.ID && p.State == "replicate" && p.Match+20 >= st.Committed && n.life.status.Applied > 0 {
				return m, nil
			}
		}
	}
	return m, errSlow
}

var errSlow = errors.New("sim: the learner has not caught up")

// grow makes a node a voter, from wherever an earlier try has left it.
func (w *World) grow(n *node) error {
	l, st, err := w.sure()
	if l == nil {
		return err
	}
	m := raftstore.Member{ID: n.id, Name: n.name}
	switch {
	case n.disk != nil && slices.Contains(st.Voters, n.id):
		return nil
	case n.disk == nil || !slices.ContainsFunc(st.Members, isMember(n.id)):
		if m, err = w.learn(n); err != nil || m.ID == 0 {
			return err
		}
		m.Learner = false
	}
	w.counts.Fault("learner promoted", 1)
	return w.reconfigure(raftstore.Change{Member: m})
}

// replace puts a node on an empty disk in the place of a voter, in one joint
// change. It may be the same machine.
func (w *World) replace(old raftstore.Member, by *node) error {
	m, err := w.learn(by)
	if err != nil || m.ID == 0 {
		return err
	}
	m.Learner = false
	w.counts.Fault("member replaced", 1)
	if err := w.reconfigure(raftstore.Change{Member: m}, raftstore.Change{Member: old, Remove: true}); err != nil {
		return err
	}
	return w.retire(w.byID[old.ID], old.ID)
}

func (w *World) remove(m raftstore.Member) error {
	if l := w.lead(); l != nil && l.n.id == m.ID {
		w.counts.Fault("leader removed", 1)
	} else {
		w.counts.Fault("member removed", 1)
	}
	if err := w.reconfigure(raftstore.Change{Member: m, Remove: true}); err != nil {
		return err
	}
	return w.retire(w.byID[m.ID], m.ID)
}

// retire takes a machine away whose member was removed, after a while in which it
// may disturb the others.
func (w *World) retire(n *node, id uint64) error {
	if err := w.sleep(w.some(0, 4*w.plan.unit)); err != nil {
		return err
	}
	l, st, err := w.sure()
	if l != nil && n != nil && n.id == id && !slices.ContainsFunc(st.Members, isMember(id)) {
		n.wipe()
	}
	return err
}

// reconfigure has the leader change the membership, and waits for that.
func (w *World) reconfigure(changes ...raftstore.Change) error {
	for range 30 {
		l := w.lead()
		if l != nil {
			q := w.wait()
			var result error
			l.raft.Reconfigure(changes, func(err error) {
				result = err
				q.wake()
			})
			l.poke()
			w.unsure = true
			if err := q.until(w.now + 8*w.plan.unit); err != nil {
				return err
			}
			w.log.Debug("membership", "changes", fmt.Sprintf("%+v", changes), "err", result)
			switch {
			case result == nil:
				w.unsure = false
				w.counts.Reconfigured++
				return nil
			case errors.Is(result, raftstore.ErrNoLeader), errors.Is(result, raftstore.ErrOverloaded):
				w.unsure = false // it was not done
			default:
				if _, ok := errors.AsType[*raftstore.NotLeaderError](result); !ok {
					return result
				}
				w.unsure = false
			}
		}
		if err := w.sleep(w.plan.unit / 2); err != nil {
			return err
		}
	}
	return errSlow
}

// startAt has a node started at a time, unless something else is decided.
func (n *node) startAt(at time.Duration) {
	n.back = at
	n.w.at(at, func() {
		if n.back != at {
			return
		}
		n.back = far
		if n.life != nil || n.disk == nil {
			return
		}
		n.w.counts.Restarts++
		err := n.start()
		switch {
		case errors.Is(n.fate, errDamaged):
			if err == nil {
				n.w.Fail("I7: node %s starts on a damaged disk", n.name)
			} else if !errors.Is(err, raftstore.ErrCorrupt) {
				n.w.Fail("I7: node %s refuses a damaged disk with %v", n.name, err)
			}
		case err != nil:
			n.w.Fail("node %s does not start: %v", n.name, err)
		}
	})
}

// oldDisk is a copy of a disk that is to be put back.
type oldDisk struct {
	n       *node
	disk    *disk
	at      time.Duration
	cluster clusterOf
	id      uint64
	under   bool
}

// quiet tells that nothing bad must happen now.
func (w *World) quiet() bool { return w.remaking || w.old != nil && w.old.under }

// putBack puts a disk back to its old copy, once the cluster is well, and waits
// until that is found out or has done no harm.
func (w *World) putBack() bool {
	o := w.old
	if o == nil {
		return true
	}
	w.old = nil
	n := o.n
	if n.life == nil || n.id != o.id || n.life.cluster != o.cluster || !w.mayLose(n) {
		return true
	}
	w.old, o.under = o, true
	defer func() { w.old = nil }()
	n.kill()
	n.disk, n.fate = o.disk, errOld
	delete(w.ledger.disks, n.id) // its promises are forgotten with it
	w.begun = "old copy"
	w.hit("%s, as of %v", n.name, o.at)
	if w.sleep(w.plan.unit/2) != nil {
		return false
	}
	n.startAt(w.now)
	if w.sleep(20*w.plan.unit) != nil {
		return false
	}
	if n.life == nil {
		return true // found out; it is replaced as one that has lost its disk
	}
	// The leader still had what it lacked, or it lacked nothing.
	if !w.reached(w.ledger.acked) {
		w.counts.Fault("old copy stuck", 1)
		n.kill()
		return true
	}
	n.fate = nil
	return true
}

// remakeCluster makes the cluster anew: its majority is lost for good.
func (w *World) remakeCluster() bool {
	how := w.plan.remake
	var from *node
	for _, n := range w.nodes {
		if n.life != nil && n.life.status.Applied > 0 && (from == nil || w.rnd.IntN(2) == 0) {
			from = n
		}
	}
	if from == nil || w.changing {
		return true // later
	}
	if st := from.life.raft.Status(); how == recovered && len(st.Voters) < 2 {
		return true
	}
	v := from.life.raft.View()
	begun := w.ledger.revision(from.life, v) > 0
	v.Release()
	if !begun {
		return true
	}
	w.plan.remake = never
	w.remaking = true
	defer func() { w.remaking = false }()
	name, machines := from.name, len(w.members())
	incarnation := from.life.cluster.incarnation + 1
	backup := from.disk.state.Copy()
	if how == restored && w.sleep(w.some(0, 8*w.plan.unit)) != nil {
		return false
	}
	for _, n := range w.nodes {
		if n == from && how == recovered {
			n.powerLoss()
			continue
		}
		n.wipe()
	}
	if w.sleep(w.some(w.plan.tick, 4*w.plan.unit)) != nil {
		return false
	}
	w.net.calm()
	var err error
	d := &disk{}
	if how == recovered {
		w.begun = "recovered from a survivor"
		d.state, d.log, err = w.recoverFrom(from)
	} else {
		w.begun = "restored from a snapshot"
		var out bytes.Buffer
		var r *snap.Reader
		if _, err = raftstore.Save(backup, &out); err == nil {
			r, err = snap.NewReader(bytes.NewReader(out.Bytes()))
		}
		if err == nil {
			d.state, d.log, err = raftstore.RestoreMemory(buckets, r, name, 0, &replica{server.Applied(machine.New()), nil})
		}
	}
	if err != nil {
		w.Fail("%s: %v", w.begun, err)
		return false
	}
	w.hit("%s", name)
	from.wipe()
	from.disk = d
	w.ledger.remade(d.state, incarnation)
	w.counts.Restores++
	from.startAt(w.now)
	// The others join it, one after the other.
	for _, n := range w.nodes {
		if machines == 1 || n == from {
			continue
		}
		machines--
		for tries := 0; ; tries++ {
			if errors.Is(w.grow(n), errEnded) {
				return false
			}
			l := w.lead()
			if l != nil && n.id != 0 && slices.Contains(l.raft.Status().Voters, n.id) {
				break
			}
			if tries == 100 {
				w.Fail("node %s cannot join the cluster that was made anew: %s", n.name, w.situation())
				return false
			}
			if w.sleep(w.plan.unit) != nil {
				return false
			}
		}
	}
	return true
}

// recoverFrom is what `rookeryctl recover` does on the survivor.
func (w *World) recoverFrom(n *node) (*raftstore.MemoryDisk, *wal.Memory, error) {
	replay := n.disk.log.Replay(n.disk.state.Meta().Mark.Index)
	if replay == nil {
		return nil, nil, raftstore.ErrCorrupt
	}
	return raftstore.RecoverMemory(n.disk.state, replay)
}

// members returns the nodes that have a disk.
func (w *World) members() (all []*node) {
	for _, n := range w.nodes {
		if n.disk != nil {
			all = append(all, n)
		}
	}
	return all
}
