package raftstore

import (
	"fmt"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"time"

	"github.com/rookery-mail/rookery/raftstore/wal"
	"go.etcd.io/raft/v3/raftpb"
)

// Node is one member of a shard as four step functions with queues between
// them. Nothing in it waits, starts a goroutine, asks the time other than of
// its Clock, or draws a random number (Raft's election jitter excepted, which
// comes from crypto/rand and is seeded by testing/cryptotest).
//
// A Store drives it with a goroutine for each step; the simulator drives the
// same code, one step at a time, in an order it draws. Each step must be called
// by one goroutine at a time; different steps may run at once.
type Node struct {
	cfg     Config
	log     LogStore
	disk    Disk
	clock   Clock
	metrics *metrics
	overlay *overlay
	waiters *waiters
	sums    *sums
	scrub   *scrubber
	admit   admission
	bases   atomic.Int64 // readers of the disk that are not closed

	core     *core
	appender *appender
	applier  *applier

	// What the watchdog looks at. While a snapshot is installed it does not.
	appendFlight, applyFlight inFlight
	installing                atomic.Bool

	events  *queue[event]
	appends *queue[appendJob]
	applies *queue[applyJob]
	flushes *queue[flushJob]
	resumes *queue[struct{}] // for the appender: the state is replaced

	generation int           // of the state on disk: counts installations; the flusher's
	pinned     atomic.Uint64 // the log is kept after this entry; 0: none
	kept       atomic.Uint64 // the log is kept after this entry, in fact

	led        notifier     // the leader has changed
	coreWake   atomic.Int64 // when to step the core even if nothing happens
	flushWake  atomic.Int64 // when to step the applier
	status     atomic.Pointer[Status]
	progress   atomic.Pointer[[]Progress]
	progressed time.Duration // when it was taken
}

// Status is what a node says of itself.
type Status struct {
	Identity  Identity
	Name      string
	Term      uint64
	Leader    uint64 // 0 when unknown
	Leading   bool
	Committed uint64
	Applied   uint64
	Flushed   uint64 // applied, as of the last flush
	Voters    []uint64
	Learners  []uint64
	Members   []Member
	// Progress is of the other members, by id, as of the last tick; nil where
	// this node does not lead.
	Progress []Progress
}

// NewNode makes a node of a log as replayed and a disk, which belong together.
func NewNode(cfg Config, log LogStore, replay *wal.Replay, disk Disk) (*Node, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	meta := disk.Meta()
	if err := checkReplay(meta, replay); err != nil {
		return nil, err
	}
	n := &Node{
		cfg: cfg, log: log, disk: disk, clock: cfg.Clock,
		waiters: newWaiters(),
		admit:   admission{maxCount: int64(cfg.MaxWaiting), maxBytes: cfg.MaxWaitingBytes},
		events:  newQueue[event](), appends: newQueue[appendJob](), applies: newQueue[applyJob](), flushes: newQueue[flushJob](),
		resumes: newQueue[struct{}](),
	}
	n.flushWake.Store(int64(far))
	if n.metrics, err = newMetrics(cfg.Metrics); err != nil {
		return nil, fmt.Errorf("raftstore: metrics: %w", err)
	}
	base, err := n.newBase()
	if err != nil {
		n.metrics.unregister()
		return nil, err
	}
	n.overlay, err = newOverlay(cfg.Machine.Buckets(), base, meta.Applied)
	if err == nil {
		n.overlay.sum = meta.Sum
		n.sums = newSums(meta.Applied.Index, meta.Sum, n.metrics)
		n.scrub = newScrubber(n.overlay.seeds)
		n.core, err = newCore(cfg, meta, replay, n.overlay, n.waiters, n.metrics)
	}
	if err != nil {
		base.release()
		n.metrics.unregister()
		return nil, err
	}
	n.core.pinned = n.pinned.Load
	n.kept.Store(n.core.entries.before.Index)
	if cfg.wrapLog != nil {
		log = cfg.wrapLog(log)
	}
	n.appender = &appender{log: log, clock: cfg.Clock, metrics: n.metrics, stepped: cfg.step}
	n.applier = newApplier(cfg, meta, n.overlay, n.waiters, n.sums, n.metrics)
	n.report()
	return n, nil
}

// newBase begins a reader of the disk to be shared.
func (n *Node) newBase() (*base, error) {
	r, err := n.disk.Begin()
	if err != nil {
		return nil, err
	}
	n.bases.Add(1)
	return newBase(r, func(err error) {
		if err != nil {
			n.cfg.Log.Error("a reader of the state file could not be closed", "err", err)
		}
		n.bases.Add(-1)
	}), nil
}

// checkReplay makes sure that log and state fit together.
func checkReplay(meta Meta, r *wal.Replay) error {
	id, err := unmarshalIdentity(r.Metadata)
	switch {
	case err != nil:
		return fmt.Errorf("%w: the log's metadata: %w", ErrCorrupt, err)
	case id != meta.Identity:
		return fmt.Errorf("%w: the log is of %v, the state of %v", ErrIdentity, id, meta.Identity)
	case meta.Applied.Index < r.Flushed:
		return fmt.Errorf("%w: the state ends at index %d, but was flushed up to %d", ErrCorrupt, meta.Applied.Index, r.Flushed)
	case meta.Applied.Index == meta.Mark.Index && meta.Applied.Term == meta.Mark.Term:
		return nil
	}
	// What the state includes is committed, so the log must have it too.
	i := int64(meta.Applied.Index) - int64(meta.Mark.Index) - 1
	if i < 0 || i >= int64(len(r.Entries)) || r.Entries[i].GetTerm() != meta.Applied.Term {
		return fmt.Errorf("%w: the log does not hold the last entry that the state includes, %v", ErrCorrupt, meta.Applied)
	}
	return nil
}

// StepCore lets Raft take what has happened and gives out what is to be done.
func (n *Node) StepCore() (err error) {
	defer recovered("core", &err)
	out, err := n.core.step(n.events.take())
	if err != nil {
		return err
	}
	n.coreWake.Store(int64(n.core.wake()))
	n.kept.Store(n.core.entries.before.Index)
	if out.mark != nil {
		n.applies.put(applyJob{mark: out.mark})
	}
	n.report()
	// Messages first: a leader's followers write while it writes itself.
	if len(out.send) > 0 {
		n.cfg.Network.Send(out.send)
	}
	n.appends.put(out.append...)
	for _, m := range out.apply {
		n.applies.put(applyJob{message: m})
	}
	return nil
}

// StepAppend takes the next half step of the log: it writes what is queued, or
// syncs what is written. It reports whether there was anything to do.
func (n *Node) StepAppend() (did bool, err error) {
	defer recovered("append", &err)
	n.appendFlight.begin(n.clock.Now())
	defer n.appendFlight.end()
	a := n.appender
	switch {
	case a.installing != nil:
		if _, ok := n.resumes.pop(); !ok {
			return false, nil
		}
		n.installing.Store(false)
		return true, a.resume()
	case len(a.written) > 0:
		events, err := a.sync()
		if err != nil {
			return false, err
		}
		n.events.put(events...)
		return true, nil
	}
	jobs := append(a.held, n.appends.take()...)
	a.held = nil
	if i := slices.IndexFunc(jobs, func(j appendJob) bool { return j.install != nil }); i >= 0 {
		jobs, a.held = jobs[:i], jobs[i:]
	}
	switch {
	case len(jobs) > 0:
		return true, a.write(jobs)
	case len(a.held) == 0:
		return false, nil
	}
	job := a.held[0]
	a.held = a.held[1:]
	n.installing.Store(true)
	if err := a.install(job); err != nil {
		return false, err
	}
	n.cfg.stepped("log marked")
	n.flushes.put(flushJob{install: job.install})
	return true, nil
}

// StepApply applies what was committed together, or takes in a finished flush,
// and orders a flush if one is due. It reports whether there was anything to do.
func (n *Node) StepApply() (did bool, err error) {
	defer recovered("apply", &err)
	defer func() { n.flushWake.Store(int64(n.applier.flushAt())) }()
	job, ok := n.nextApply()
	if ok {
		n.applyFlight.begin(n.clock.Now())
		e, err := n.applier.step(job)
		n.applyFlight.end()
		if err != nil {
			return false, err
		}
		if e != nil {
			n.events.put(e)
		}
		if job.installed != nil {
			n.resumes.put(struct{}{})
			n.appends.poke()
		}
	}
	if f := n.applier.flush(false); f != nil {
		n.flushes.put(*f)
		ok = true
	}
	n.metrics.overlayKeys.Set(float64(n.overlay.active.keys()))
	n.metrics.overlayBytes.Set(float64(n.overlay.active.size()))
	return ok, nil
}

// nextApply pops the next job. While the overlay is full, only what the disk
// has to say passes.
func (n *Node) nextApply() (applyJob, bool) {
	if !n.applier.full() {
		return n.applies.pop()
	}
	n.applies.mu.Lock()
	defer n.applies.mu.Unlock()
	i := slices.IndexFunc(n.applies.items, applyJob.ofDisk)
	if i < 0 {
		return applyJob{}, false
	}
	job := n.applies.items[i]
	n.applies.items = slices.Delete(n.applies.items, i, i+1)
	return job, true
}

// StepFlush writes a layer to disk, or exchanges what is there. It reports
// whether there was anything to do.
func (n *Node) StepFlush() (did bool, err error) {
	defer recovered("flush", &err)
	job, ok := n.flushes.pop()
	if !ok {
		return false, nil
	}
	switch {
	case job.install != nil:
		return true, n.replaceState(job.install)
	case job.swap != nil:
		return true, n.swapState(job.swap)
	case job.generation != n.generation:
		return true, nil // of a state that is no more
	}
	start := n.clock.Now()
	if err := n.scrub.write(n.disk, job.meta, job.layer); err != nil {
		return false, err
	}
	base, err := n.newBase()
	if err != nil {
		return false, err
	}
	n.metrics.flushSeconds.Observe((n.clock.Now() - start).Seconds())
	n.metrics.flushKeys.Add(float64(job.layer.keys()))
	n.applies.put(applyJob{flushed: &flushResult{base: base, meta: job.meta}})
	return true, nil
}

// recovered turns a panic of a step into an error that stops the node.
func recovered(step string, err *error) {
	if p := recover(); p != nil {
		*err = fmt.Errorf("raftstore: %s: panic: %v\n%s", step, p, debug.Stack())
	}
}

// Wake returns when the core is to be stepped, and when the applier, even if
// nothing happens, as times of the Clock.
func (n *Node) Wake() (core, apply time.Duration) {
	return time.Duration(n.coreWake.Load()), time.Duration(n.flushWake.Load())
}

// Receive queues a message from a peer. The message must not be changed after.
func (n *Node) Receive(m *raftpb.Message) { n.events.put(m) }

// Propose queues a command. done is called once, from some step or from here,
// with the machine's result or one of this package's errors; it must not block.
func (n *Node) Propose(command []byte, done func(result []byte, err error)) {
	if len(command) > n.cfg.MaxCommand {
		n.metrics.proposals.WithLabelValues(resultRefused).Inc()
		done(nil, fmt.Errorf("%w: %d octets, at most %d", ErrTooLarge, len(command), n.cfg.MaxCommand))
		return
	}
	if !n.admit.enter(len(command)) {
		n.metrics.proposals.WithLabelValues(resultRefused).Inc()
		done(nil, ErrOverloaded)
		return
	}
	n.events.put(&proposal{command: command, done: func(result []byte, err error) {
		n.admit.leave(len(command))
		n.metrics.countProposal(err)
		done(result, err)
	}})
}

// Reconfigure queues a membership change; done is called once it is applied
// here, or with an error.
func (n *Node) Reconfigure(changes []Change, done func(error)) {
	n.events.put(&confProposal{changes: changes, done: done})
}

// ReadIndex queues a linearizable read: after done was called without an error,
// a View shows all that was acknowledged anywhere before this call. The
// returned function gives the read up; done may be called all the same.
func (n *Node) ReadIndex(done func(error)) (giveUp func()) {
	began := n.clock.Now()
	q := &readRequest{done: func(err error) {
		if err == nil {
			n.metrics.readSeconds.Observe((n.clock.Now() - began).Seconds())
		}
		done(err)
	}}
	n.events.put(q)
	return func() { q.abandoned.Store(true) }
}

// Flush asks for a flush; done is called when the disk holds all that is
// applied now. It must not block.
func (n *Node) Flush(done func()) { n.applies.put(applyJob{want: done}) }

// Alone tells that this node leads and is the only voter, so that its state is
// the newest there is: whatever was acknowledged was applied and published here
// before. Others could lead only after a change of the membership that this
// node passes on itself, and it takes Alone back first; a read that saw it
// before overlaps in time with whatever they acknowledge.
func (n *Node) Alone() bool { return n.core.reads.alone.Load() }

// Changed returns a channel that is closed when more than is published now was
// applied.
func (n *Node) Changed() <-chan struct{} { return n.overlay.changed.wait() }

// Drain finishes what the log, the machine and the disk have taken on, and
// writes all that is applied to disk. Afterwards no step may be called.
func (n *Node) Drain() error {
	for {
		appended, err := n.StepAppend()
		if err != nil {
			return err
		}
		applied, err := n.StepApply()
		if err != nil {
			return err
		}
		flushed, err := n.StepFlush()
		if err != nil {
			return err
		}
		if appended || applied || flushed {
			continue
		}
		job := n.applier.flush(true)
		if job == nil {
			return n.log.Flushed(n.applier.meta.Applied.Index)
		}
		n.flushes.put(*job)
	}
}

// Stop answers all who wait, gives the node's own reader back and takes the
// metrics away. It is called once, when no step is running or will be.
func (n *Node) Stop(err error) {
	n.applier.fail(err)
	n.core.fail(n.events.take(), err)
	n.waiters.failAll(err)
	for _, j := range n.applies.take() {
		if b := j.base(); b != nil {
			b.release()
		}
	}
	for _, j := range n.flushes.take() {
		if j.swap != nil {
			j.swap.done(err)
		}
	}
	n.overlay.close()
	n.overlay.changed.broadcast()
	n.metrics.unregister()
}

// Held returns how many readers of the disk Views still hold after Stop. The
// disk must not be closed while there are any.
func (n *Node) Held() int { return int(n.bases.Load()) }

// Unreachable says that messages to a node are being lost.
func (n *Node) Unreachable(node uint64) { n.events.put(unreachable{node}) }

// Transfer asks Raft to hand the leadership to a node.
func (n *Node) Transfer(node uint64) { n.events.put(transfer{node}) }

// View returns the state as applied, or nil after Stop.
func (n *Node) View() *View { return n.overlay.view() }

// Age bounds how old the state in a View taken now is. It is 0 on a leader
// that needs nobody's word for it; known is false while there has been no word
// from a leader since the node started.
func (n *Node) Age() (age time.Duration, known bool) {
	if n.core.reads.alone.Load() {
		return 0, true
	}
	asOf := n.core.reads.asOf.Load()
	if asOf == 0 {
		return 0, false
	}
	return max(0, n.clock.Now()-time.Duration(asOf)), true
}

// Status returns the node's status as of its last step.
func (n *Node) Status() Status {
	st := *n.status.Load()
	if p := n.progress.Load(); p != nil && st.Leading {
		st.Progress = *p
	}
	return st
}

func (n *Node) report() {
	c := n.core
	if now := n.clock.Now(); c.leading && (n.progress.Load() == nil || now-n.progressed >= n.cfg.Tick) {
		n.progressed = now
		n.progress.Store(new(c.progress()))
	} else if !c.leading {
		n.progress.Store(nil)
	}
	if old := n.status.Load(); old != nil && old.Term == c.term && old.Leader == c.leader && old.Leading == c.leading &&
		old.Committed == c.commit && old.Applied == c.applied.Index && old.Flushed == c.durable.Index {
		return
	}
	old := n.status.Swap(&Status{
		Identity: c.meta.Identity, Name: c.meta.Name,
		Term: c.term, Leader: c.leader, Leading: c.leading,
		Committed: max(c.commit, c.applied.Index), Applied: c.applied.Index, Flushed: c.durable.Index,
		Voters: c.conf.GetVoters(), Learners: c.conf.GetLearners(), Members: c.members,
	})
	if old != nil && (old.Leader != c.leader || old.Term != c.term) {
		n.led.broadcast()
	}
}

// admission bounds what waits for an answer.
type admission struct {
	count, bytes       atomic.Int64
	maxCount, maxBytes int64
}

func (a *admission) enter(size int) bool {
	count, bytes := a.count.Add(1), a.bytes.Add(int64(size))
	if count > a.maxCount || bytes > a.maxBytes {
		a.leave(size)
		return false
	}
	return true
}

func (a *admission) leave(size int) {
	a.count.Add(-1)
	a.bytes.Add(-int64(size))
}
