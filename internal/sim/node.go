package sim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"syscall"
	"time"

	"github.com/rookery-mail/rookery/directory/machine"
	"github.com/rookery-mail/rookery/internal/kv"
	"github.com/rookery-mail/rookery/raftstore"
	"github.com/rookery-mail/rookery/raftstore/snap"
	"github.com/rookery-mail/rookery/server"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/grpc"
)

// node is a machine: a disk, a clock, and a process that runs or not.
type node struct {
	w     *World
	slot  int
	name  string
	id    uint64 // of the disk
	disk  *disk  // nil: empty
	clock clock
	life  *life // nil while it is down

	back time.Duration // when it is started again; far: not by itself
	sums uint64        // the index of the sum it told last
	fate error         // what is wrong with its disk; nil: nothing
}

// clusterOf is which life of which cluster a process takes part in.
type clusterOf struct {
	id          raftstore.ClusterID
	incarnation uint64
}

// life is one process on a node, from its start to its end.
type life struct {
	w       *World
	n       *node
	cluster clusterOf
	raft    *raftstore.Node
	machine *machine.Machine
	server  *server.Server // made when a client first calls
	store   store

	coreAt, applyAt time.Duration // when these steps are due; far: not
	append, flush   *thread
	pausedUntil     time.Duration
	held            []func() // what waits until it goes on
	stuck           []*wait  // accesses of a disk that hangs, or whose process is stopped
	dead, stopping  bool
	told            bool // to stop: first it gives the lead away
	watchdog        raftstore.Watchdog
	probing         bool
	sends           map[uint64]bool // a snapshot is under way to that id
	slow            int             // accesses of the disk that the watchdog looks at
	status          raftstore.Status

	changed, led []*wait // who waits for an apply, for another leader
}

// thread runs a step that waits for the disk, in a process of its own.
type thread struct {
	p    *proc
	idle *wait
}

// start begins a process on what is on the disk, as Open does: what is not as it
// was left is refused.
func (n *node) start() error {
	w := n.w
	meta := n.disk.state.Meta()
	replay := n.disk.log.Replay(meta.Mark.Index)
	if replay == nil {
		return fmt.Errorf("%w: the log", raftstore.ErrCorrupt)
	}
	l := &life{w: w, n: n, machine: machine.New(), coreAt: far, applyAt: far, sends: map[uint64]bool{}}
	l.cluster = clusterOf{meta.Identity.Cluster, meta.Identity.Incarnation}
	applied := &replica{server.Applied(l.machine), l}
	if err := raftstore.Verify(n.disk.state, applied); err != nil {
		return err
	}
	raft, err := raftstore.NewNode(raftstore.Config{
		Dir: "-", Name: meta.Name, Machine: applied, Network: l, Clock: &n.clock, Log: w.logger(n),
		Tick: w.plan.tick, FlushKeys: w.plan.flushKeys, LogEntries: w.plan.logEntries, MarkBytes: w.plan.markBytes,
		FlushInterval: w.plan.unit,
	}, logStore{l}, replay, stateDisk{n.disk.state, l})
	if err != nil {
		return err
	}
	l.raft, l.store, n.life, n.id = raft, store{l}, l, meta.Identity.Node
	w.byID[n.id] = n
	w.ledger.started(l, replay.Hard)
	l.status = raft.Status()
	l.append = l.thread("append", raft.StepAppend)
	l.flush = l.thread("flush", raft.StepFlush)
	w.start(n.name+" upkeep", l.upkeep)
	l.poke()
	return nil
}

// thread starts the process of a step.
func (l *life) thread(what string, step func() (bool, error)) *thread {
	t := &thread{}
	t.p = l.w.start(l.n.name+" "+what, func() {
		for !l.dead {
			did, err := step()
			if l.dead {
				return
			}
			if err != nil {
				l.fail(err)
				return
			}
			l.poke()
			if did && !l.stopping {
				continue
			}
			t.idle = l.w.wait()
			if t.idle.until(far) != nil {
				return
			}
		}
	})
	return t
}

// wake lets an idle thread go on.
func (t *thread) wake() {
	if t.idle != nil {
		t.idle.wake()
		t.idle = nil
	}
}

// poke sees to it that every step which has something to do is taken.
func (l *life) poke() {
	if l.dead || l.stopping {
		return
	}
	t := l.raft.Todo()
	core, apply := l.raft.Wake()
	l.stepCoreAt(t.Core, l.n.clock.world(core))
	l.stepApplyAt(t.Apply, l.n.clock.world(apply))
	if t.Append {
		l.append.wake()
	}
	if t.Flush {
		l.flush.wake()
	}
}

// soon draws how long a goroutine takes to be run.
func (l *life) soon() time.Duration { return time.Duration(l.w.rnd.Int64N(int64(l.w.plan.step))) }

func (l *life) stepCoreAt(now bool, at time.Duration) {
	if now {
		at = min(at, l.w.now+l.soon())
	}
	if at >= l.coreAt {
		return
	}
	l.coreAt = at
	l.w.at(at, func() {
		if l.coreAt == at && !l.dead {
			l.coreAt = far
			l.unpaused(l.stepCore)
		}
	})
}

func (l *life) stepApplyAt(now bool, at time.Duration) {
	if now {
		at = min(at, l.w.now+l.soon())
	}
	if at >= l.applyAt {
		return
	}
	l.applyAt = at
	l.w.at(at, func() {
		if l.applyAt == at && !l.dead {
			l.applyAt = far
			l.unpaused(l.stepApply)
		}
	})
}

// pause stops a process as SIGSTOP does, until a time or until resume.
func (l *life) pause(until time.Duration) {
	l.pausedUntil = max(l.pausedUntil, until)
	l.w.at(until, func() {
		if l.pausedUntil <= l.w.now {
			l.resume()
		}
	})
}

// resume lets a process go on with what has come up meanwhile.
func (l *life) resume() {
	l.pausedUntil = 0
	wakeAll(&l.stuck)
	held := l.held
	l.held = nil
	for _, do := range held {
		if !l.dead {
			do()
		}
	}
}

// unpaused does something when the process runs, unless it ends before.
func (l *life) unpaused(do func()) {
	if l.pausedUntil <= l.w.now {
		do()
		return
	}
	l.held = append(l.held, do)
}

func (l *life) stepCore() {
	if l.dead || l.stopping {
		return
	}
	l.w.counts.Steps++
	if err := l.raft.StepCore(); err != nil {
		l.fail(err)
		return
	}
	st := l.raft.Status()
	if st.Leader != l.status.Leader || st.Term != l.status.Term {
		wakeAll(&l.led)
	}
	l.w.ledger.status(l, &l.status, &st)
	l.status = st
	l.poke()
}

func (l *life) stepApply() {
	if l.dead || l.stopping {
		return
	}
	l.w.counts.Steps++
	did, err := l.raft.StepApply()
	if err != nil {
		l.fail(err)
		return
	}
	if did {
		l.w.ledger.state(l)
		wakeAll(&l.changed)
	}
	l.poke()
}

func wakeAll(all *[]*wait) {
	for _, q := range *all {
		q.wake()
	}
	*all = (*all)[:0]
}

// fail ends a process because of an error of its own, as a Store stops. It may be
// called from one of its threads, so the end is an event.
func (l *life) fail(err error) {
	l.stopping = true
	l.w.log.Debug("node stops", "node", l.n.name, "err", err)
	l.w.at(l.w.now, func() {
		if l.dead {
			return
		}
		l.end(err)
		l.n.ended(err)
	})
}

// ended decides what becomes of a node whose process has ended by itself.
func (n *node) ended(err error) {
	w := n.w
	switch {
	case errors.Is(err, raftstore.ErrStalled), errors.Is(err, syscall.EIO), errors.Is(err, syscall.ENOSPC):
		n.startAt(w.now + w.some(w.plan.unit, 4*w.plan.unit))
	case errors.Is(err, raftstore.ErrHistory) && errors.Is(n.fate, errOld):
		w.counts.Fault("old copy noticed", 1)
	default:
		w.Fail("node %s stopped: %v", n.name, err)
	}
}

// end makes a process be no more, and answers those who wait for it.
func (l *life) end(err error) {
	l.dead = true
	l.n.life = nil
	l.n.back = far
	l.w.kill(l.append.p)
	l.w.kill(l.flush.p)
	if !errors.Is(err, raftstore.ErrClosed) {
		err = &raftstore.StoppedError{Cause: err}
	}
	l.raft.Stop(err)
	wakeAll(&l.changed)
	wakeAll(&l.led)
	if l.server != nil {
		gone, cancel := context.WithCancel(context.Background())
		cancel()
		go l.server.Close(gone)
	}
}

// kill ends a process as SIGKILL does: what it has written is in the page cache.
func (n *node) kill() {
	if n.life == nil {
		return
	}
	n.life.end(errPower)
	n.disk.log.CrashAfter(n.disk.log.Unsynced())
	n.w.lost(n)
}

// powerLoss ends a machine: of what was not synced, some or nothing is there.
func (n *node) powerLoss() {
	if n.life != nil {
		n.life.end(errPower)
	}
	if n.disk == nil {
		return
	}
	keep := 0
	if n.w.rnd.IntN(3) == 0 {
		keep = n.w.rnd.IntN(n.disk.log.Unsynced() + 1)
	}
	n.disk.log.CrashAfter(keep)
}

// lost lets the others hear soon that a process is gone: their connections are
// reset, and new ones refused.
func (w *World) lost(gone *node) {
	id := gone.id
	for _, n := range w.nodes {
		if n == gone || n.life == nil || w.rnd.IntN(4) == 0 {
			continue
		}
		l := n.life
		w.after(w.plan.latency+w.some(0, w.plan.tick), func() {
			if !l.dead && gone.life == nil && !w.net.links[gone.slot][n.slot].cut {
				l.unpaused(func() {
					l.raft.Lost(id)
					l.poke()
				})
			}
		})
	}
}

// stop ends a process in order, and starts it again: it hands its leadership over,
// finishes what it has begun and writes it to disk. It takes a process of its own.
func (n *node) stop() {
	l := n.life
	if l == nil || l.told {
		return
	}
	l.told = true
	l.w.start(n.name+" stop", func() {
		w := l.w
		if st := l.raft.Status(); st.Leading {
			if heir := st.Heir(); heir != 0 {
				l.raft.Transfer(heir)
				l.poke()
				for range 20 {
					if w.sleep(w.plan.tick) != nil || l.dead {
						return
					}
					if !l.raft.Status().Leading {
						break
					}
				}
			}
		}
		l.stopping = true
		for l.append.idle == nil || l.flush.idle == nil {
			if w.sleep(w.plan.tick) != nil || l.dead {
				return
			}
		}
		if err := l.raft.Drain(); l.dead || w.ended {
			return
		} else if err != nil {
			l.end(err)
			n.ended(err)
			return
		}
		if err := (logStore{l}).Close(); l.dead || w.ended {
			return
		} else if err != nil {
			l.end(err)
			n.ended(err)
			return
		}
		w.ledger.state(l)
		l.end(raftstore.ErrClosed)
		w.lost(n)
		n.down(false)
	})
}

// upkeep is what a process does now and then: it begins the cluster's life, tells
// the others its sum, looks at its disk and after its steps.
func (l *life) upkeep() {
	w := l.w
	for {
		if w.sleep(w.plan.unit/2+time.Duration(w.rnd.Int64N(int64(w.plan.unit/2)))) != nil || l.dead || l.stopping {
			return
		}
		if l.pausedUntil > w.now {
			continue
		}
		l.begin()
		l.tellSum()
		l.alarms()
		l.scrub()
		l.poke()
	}
}

// begin proposes the first command of the cluster's life, as server.Begin does.
func (l *life) begin() {
	if !l.raft.Status().Leading {
		return
	}
	v := l.raft.View()
	command, err := server.FirstCommand(v, l.raft.Status().Identity, l.machine)
	v.Release()
	if err != nil {
		l.w.Fail("node %s: first command: %v", l.n.name, err)
	} else if command != nil {
		l.propose(command, func(outcome) {})
	}
}

// alarms raises and lowers what this node has to say, as server.KeepAlarms does.
func (l *life) alarms() {
	st := l.raft.Status()
	h := raftstore.Health{
		Verdict: l.raft.Judge(), Differs: l.raft.Differences(), NoSpace: l.n.disk.low, TotalBytes: 1 << 40, FreeBytes: 1 << 39, LowBytes: 1 << 34,
	}
	if h.NoSpace {
		h.FreeBytes = 1 << 20
	}
	v := l.raft.View()
	now, err := l.machine.Status(v)
	v.Release()
	if err != nil {
		l.w.Fail("node %s: status: %v", l.n.name, err)
		return
	}
	if now.ClusterID == "" {
		return
	}
	for _, op := range server.AlarmChanges(l.n.name, st, h, now.Alarms) {
		l.w.counts.Fault("alarm changed", 1)
		command := machine.EncodeCommand(machine.Command{By: "node:" + l.n.name, Op: op})
		if _, err := l.store.Propose(l.w.ctx, command); err != nil || l.dead {
			return
		}
	}
}

// scrub reads a part of the state on disk again.
func (l *life) scrub() {
	if l.dead || l.stopping || l.flush.idle == nil {
		return // it and a flush wait for each other
	}
	if _, done, err := l.raft.StepScrub(1 + l.w.rnd.IntN(4000)); err != nil {
		l.w.Fail("I2: node %s: scrub: %v", l.n.name, err)
	} else if done {
		l.w.counts.Scrubs++
	}
}

// tellSum tells the other members the sum of the state.
func (l *life) tellSum() {
	index, sum := l.raft.SumAfter(l.n.sums)
	l.n.sums = index
	cluster, id := l.cluster, l.n.id
	for _, n := range l.w.nodes {
		if n == l.n {
			continue
		}
		l.w.net.carry(l.n.slot, n.slot, func() {
			if to := n.life; to != nil && to.cluster == cluster {
				to.unpaused(func() {
					to.raft.CompareSum(id, index, sum)
					if v := to.raft.Judge(); v == raftstore.Odd || v == raftstore.Split {
						to.w.Fail("node %s judges %v of its state: %+v", to.n.name, v, to.raft.Differences())
					}
				})
			}
		})
	}
}

// serve returns this process's server.
func (l *life) serve() (*server.Server, error) {
	if l.server != nil {
		return l.server, nil
	}
	const never = 1e6 * time.Hour
	var err error
	l.server, err = server.New(server.Config{
		Store: l.store, Machine: l.machine, Node: l.n.name, Identity: l.raft.Status().Identity, Version: "sim",
		Members: l.members,
		CatchUp: never, Confirm: never, Timeout: never,
	})
	return l.server, err
}

// invoke calls this process's server.
func (l *life) invoke(ctx context.Context, caller server.Caller, method string, args, reply any, opts ...grpc.CallOption) error {
	s, err := l.serve()
	if err != nil {
		return err
	}
	return s.LoneConn(caller).Invoke(ctx, method, args, reply, opts...)
}

// members is what this process knows of the others.
func (l *life) members() server.Members {
	st := l.raft.Status()
	m := server.Members{Self: st.Identity.Node, Leader: st.Leader, Applied: st.Applied, Commit: st.Committed, Term: st.Term}
	for _, x := range st.Members {
		node := server.Node{Name: x.Name, ID: x.ID, Voter: !x.Learner}
		for _, p := range st.Progress {
			if p.Node == x.ID {
				node.Match, node.State, node.Active = p.Match, p.State, p.Active
			}
		}
		m.Nodes = append(m.Nodes, node)
	}
	return m
}

// sendSnapshot is the transport's: it takes an image of what is on disk now,
// which may be later than what the message says, sends it, and reports in any case.
func (l *life) sendSnapshot(to *node, m *raftpb.Message) {
	w := l.w
	id, term, cluster, givenUp := m.GetTo(), m.GetTerm(), l.cluster, l.raft.Usage().GivenUp
	if l.sends[id] {
		return // it is being sent, and will be reported once
	}
	l.sends[id] = true
	w.counts.Sent++
	report := func(ok bool) {
		if !l.dead {
			l.unpaused(func() {
				delete(l.sends, id)
				l.raft.ReportSnapshot(id, ok)
				l.poke()
			})
		}
	}
	// The image is of when its turn comes, which may be later than what Raft has
	// named, and then takes its time on the wire.
	w.after(w.some(0, w.plan.unit/4), func() {
		var out bytes.Buffer
		if l.dead || l.stopping {
			return
		}
		h, err := raftstore.Save(l.n.disk.state, &out)
		if err != nil {
			w.Fail("node %s: save a snapshot: %v", l.n.name, err)
			return
		}
		data := out.Bytes()
		if w.plan.badSnapshots > 0 && w.rnd.Float64() < w.plan.badSnapshots {
			if w.rnd.IntN(2) == 0 {
				w.counts.Fault("snapshot lost", 1)
				w.after(w.plan.unit/4, func() { report(false) })
				return
			}
			w.counts.Fault("snapshot damaged", 1)
			data[w.rnd.IntN(len(data))] ^= 1 << w.rnd.IntN(8)
		}
		took := w.some(0, w.plan.transfer)
		if rate := w.net.links[l.n.slot][to.slot].rate; rate > 0 {
			took += time.Duration(int64(len(data)) * int64(time.Second) / rate)
		}
		answered := false
		answer := func(ok bool) {
			if !answered {
				answered = true
				report(ok)
			}
		}
		lost := func() { w.after(w.plan.unit/4, func() { answer(false) }) }
		w.after(took, func() {
			arrived := false
			if !w.net.carry(l.n.slot, to.slot, func() {
				if arrived {
					return // a stream has nothing twice
				}
				arrived = true
				there := to.life
				if there == nil || there.cluster != cluster || to.id != id {
					lost()
					return
				}
				there.unpaused(func() {
					there.takeSnapshot(data, l, term, func(ok bool) {
						if ok && !answered && term == l.status.Term {
							w.ledger.useful(l, there, h.Index, givenUp)
						}
						if !w.net.carry(to.slot, l.n.slot, func() { answer(ok) }) {
							lost()
						}
					})
				})
			}) {
				lost()
			}
		})
		// Until it hears of it, Raft sends that node nothing else: a connection that
		// has broken without a word is given up.
		w.after(took+8*w.plan.unit, func() { answer(false) })
	})
}

// takeSnapshot proves what has arrived, and offers it to Raft.
func (l *life) takeSnapshot(data []byte, from *life, term uint64, answer func(ok bool)) {
	if l.dead || l.stopping {
		answer(false)
		return
	}
	meta := l.n.disk.state.Meta()
	r, err := snap.NewReader(bytes.NewReader(data))
	var staged raftstore.Staged
	if err == nil {
		staged, err = raftstore.StageFor(l.n.disk.state, r, meta.Identity, meta.Name, &replica{server.Applied(machine.New()), nil})
	}
	if err != nil {
		l.w.counts.Broken++
		answer(false)
		return
	}
	l.raft.Install(staged, from.raft.Status().Identity.Node, term, func(err error) {
		switch {
		case err == nil:
			l.w.counts.Installed++
			l.w.ledger.state(l)
		case errors.Is(err, raftstore.ErrNotNeeded), errors.Is(err, raftstore.ErrNotTaken):
			l.w.counts.NotTaken++
		}
		answer(err == nil || errors.Is(err, raftstore.ErrNotNeeded))
	})
	l.poke()
}

// replica is the machine as one process has it, watched.
type replica struct {
	raftstore.Machine
	l *life
}

// Apply implements raftstore.Machine.
func (r *replica) Apply(tx kv.Tx, stamp raftstore.Stamp, command []byte) ([]byte, error) {
	result, err := r.Machine.Apply(tx, stamp, command)
	if err == nil {
		r.l.w.ledger.applied(r.l, tx, stamp, command, result)
	}
	return result, err
}

// Verify implements raftstore.Verifier.
func (r *replica) Verify(of kv.Reader) error { return r.Machine.(raftstore.Verifier).Verify(of) }

// logger is where a node says what it does.
func (w *World) logger(n *node) *slog.Logger {
	if w.log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return w.log.With("node", n.name)
}
