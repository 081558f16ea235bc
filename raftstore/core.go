package raftstore

import (
	"fmt"
	"log/slog"
	"math"
	"slices"
	"time"

	"github.com/rookery-mail/rookery/raftstore/wal"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
)

// core owns the RawNode. It is a step function: what happened goes in, what is
// to be done comes out; it waits for nothing and starts nothing.
type core struct {
	cfg     Config
	meta    Meta // as it was at the start
	id      uint64
	log     *slog.Logger
	clock   Clock
	metrics *metrics

	rn      *raft.RawNode
	entries *raftLog
	overlay *overlay
	waiters *waiters
	reads   reads

	// What Raft last said.
	term    uint64
	commit  uint64
	leader  uint64
	leading bool
	applied wal.Position
	conf    *raftpb.ConfState
	members []Member

	nextTick   time.Duration
	lead       leadership
	succession succession

	pending      []*proposal // not yet in an entry
	pendingBytes int
	appending    int // appends with entries that the appender has not finished

	sinceMark int64        // octets of entries since the last mark
	marked    wal.Position // the last mark that was ordered
	released  uint64       // the mark that what came before was deleted for
	durable   wal.Position // applied, as of the last flush
	out       effects

	// A snapshot that Raft is being offered, and one that it has taken and that
	// is not installed yet; the index of the last one it took.
	offered, taken *installation
	restored       uint64
	// Snapshots on their way to other nodes; what else the log is kept for.
	sending map[uint64]*sending
	givenUp int // of them, because they were too slow for the log
	pinned  func() uint64
}

// leadership is what begins anew each time this node becomes the leader.
type leadership struct {
	// An entry of this term is committed: only now does the leader know what
	// was committed before it.
	confirmed bool
	// The first entry, which starts directory time, is proposed.
	opened bool
	nextID uint64
	// Directory time was last stamped at this time of the clock, to the
	// millisecond.
	stamped time.Duration
	// Batches that Raft took but whose place in the log is not known yet.
	proposed []*proposed
	// The membership change that this leader proposed last.
	conf *confProposal
	// The entries of this leadership that are not applied yet, in order.
	own []ownEntry
	// The stamp of the last of them that is.
	appliedStamp time.Duration
	appliedOwn   bool
	// When each of the others was last found to have answered, see progress.
	heard map[uint64]time.Duration
	// When the machine wants to be asked what is due.
	due         time.Duration
	dueProposed bool
}

type proposed struct {
	id      uint64
	stamped time.Duration
	due     bool
	waiting []*proposal
}

type ownEntry struct {
	index   uint64
	stamped time.Duration
	due     bool
}

// event is something that happened: a *proposal, *confProposal, *readRequest,
// *raftpb.Message from a peer, *installation, appended, applied, installed,
// flushed, report, unreachable, lost or transfer.
type event any

type (
	// appended: the appender has made these durable.
	appended struct {
		messages []*raftpb.Message
		mark     *wal.Mark
	}
	// applied: the applier has applied these and published the result.
	applied struct {
		message *raftpb.Message
		at      wal.Position
		conf    []confApplied
	}
	// flushed: the state file holds all up to here.
	flushed struct {
		applied wal.Position
		mark    wal.Position
		conf    *raftpb.ConfState // as of applied
	}
	unreachable struct{ node uint64 }
	lost        struct{ node uint64 }
	transfer    struct{ node uint64 }
)

// effects is what is to be done, in order within each list.
type effects struct {
	append []appendJob
	apply  []*raftpb.Message
	send   []*raftpb.Message
	mark   *wal.Position // to be kept in the state file
}

// far is a time that does not come.
const far = time.Duration(math.MaxInt64)

func newCore(cfg Config, meta Meta, replay *wal.Replay, o *overlay, w *waiters, m *metrics) (*core, error) {
	hard := replay.Hard
	// The commit index is not synced with every step, so what was applied may be
	// ahead of it; that is proof enough that it was committed.
	if hard.GetCommit() < meta.Applied.Index {
		hard.Commit = new(meta.Applied.Index)
	}
	// After a snapshot was installed, a crash can come before the term was
	// written in which it was committed. Nobody was told of a vote in that term.
	if hard.GetTerm() < meta.Applied.Term {
		hard.Term, hard.Vote = new(meta.Applied.Term), new(uint64(raft.None))
	}
	c := &core{
		cfg:     cfg,
		meta:    meta,
		id:      meta.Identity.Node,
		log:     cfg.Log,
		clock:   cfg.Clock,
		metrics: m,
		overlay: o,
		waiters: w,
		term:    hard.GetTerm(),
		commit:  hard.GetCommit(),
		applied: meta.Applied,
		durable: meta.Applied,
		marked:  meta.Mark,
		conf:    meta.Conf,
		entries: &raftLog{hard: hard, conf: meta.Conf, before: meta.Mark, flushed: meta.Applied, flushedConf: meta.Conf},
		sending: make(map[uint64]*sending),
		pinned:  func() uint64 { return 0 },

		succession: succession{at: far},
	}
	c.entries.append(replay.Entries)
	// What is read again at the next start, the log has already grown by: a node that
	// starts often must come to its next mark all the same.
	c.sinceMark = sizeOf(replay.Entries)
	c.setMembers(meta.Conf, meta.Members)
	var err error
	c.rn, err = raft.NewRawNode(&raft.Config{
		ID:                        c.id,
		ElectionTick:              cfg.ElectionTicks,
		HeartbeatTick:             cfg.HeartbeatTicks,
		Storage:                   c.entries,
		Applied:                   meta.Applied.Index,
		AsyncStorageWrites:        true,
		MaxSizePerMsg:             1 << 20,
		MaxCommittedSizePerReady:  4 << 20,
		MaxUncommittedEntriesSize: 64 << 20,
		MaxInflightMsgs:           256,
		MaxInflightBytes:          16 << 20,
		CheckQuorum:               true,
		PreVote:                   true,
		ReadOnlyOption:            raft.ReadOnlySafe,
		Logger:                    raftLogger{cfg.Log},
		DisableProposalForwarding: true,
		StepDownOnRemoval:         true,
	})
	if err != nil {
		return nil, fmt.Errorf("raftstore: %w", err)
	}
	now := c.clock.Now()
	c.nextTick = now + cfg.Tick
	if err := c.reads.start(cfg, c.id, now); err != nil {
		return nil, err
	}
	if c.alone() {
		// Nobody else could be the leader: there is no point in waiting.
		if err := c.rn.Campaign(); err != nil {
			return nil, fmt.Errorf("raftstore: %w", err)
		}
	}
	return c, nil
}

// alone tells whether this node is the only voter.
func (c *core) alone() bool {
	return len(c.conf.GetVotersOutgoing()) == 0 && slices.Equal(c.conf.GetVoters(), []uint64{c.id})
}

func (c *core) setMembers(conf *raftpb.ConfState, named []Member) {
	c.conf = conf
	c.members = slices.Clone(named)
	for i := range c.members {
		c.members[i].Learner = slices.Contains(conf.GetLearners(), c.members[i].ID)
	}
}

// step takes what happened and returns what is to be done.
func (c *core) step(events []event) (effects, error) {
	now := c.clock.Now()
	c.out = effects{}
	for _, e := range events {
		if err := c.take(now, e); err != nil {
			return c.out, err
		}
	}
	c.tick(now)
	if err := c.succeed(now); err != nil {
		return c.out, err
	}
	for {
		c.askDue(now)
		c.propose(now)
		c.readRound(now)
		if !c.rn.HasReady() {
			break
		}
		if err := c.ready(); err != nil {
			return c.out, err
		}
	}
	c.observe()
	return c.out, c.withdraw()
}

// wake returns when to step even if nothing happens.
func (c *core) wake() time.Duration {
	at := min(c.nextTick, c.succession.at)
	if c.mayAsk() {
		at = min(at, c.lead.due)
	}
	return at
}

func (c *core) take(now time.Duration, e event) error {
	switch e := e.(type) {
	case *proposal:
		c.takeProposal(e)
	case *confProposal:
		c.proposeConf(e)
	case *readRequest:
		c.takeRead(now, e)
	case *raftpb.Message:
		return c.receive(e)
	case *installation:
		c.offer(e)
	case installed:
		c.takeInstalled(e)
	case report:
		c.takeReport(e)
	case appended:
		for _, m := range e.messages {
			if hasSnapshot(m) {
				c.finishInstall()
			}
			if len(m.GetEntries()) > 0 {
				c.appending--
				c.entries.append(m.GetEntries())
			}
			c.respond(m)
		}
		if e.mark != nil {
			c.out.mark = &e.mark.Position
		}
	case applied:
		return c.takeApplied(now, e)
	case flushed:
		c.takeFlushed(e)
	case unreachable:
		c.rn.ReportUnreachable(e.node)
	case lost:
		return c.takeLost(now, e.node)
	case transfer:
		c.rn.TransferLeader(e.node)
	}
	return nil
}

func (c *core) stepRaft(m *raftpb.Message) {
	if err := c.rn.Step(m); err != nil {
		c.log.Debug("raft message dropped", "peer", m.GetFrom(), "type", m.GetType(), "err", err)
	}
}

// respond delivers what a finished storage message carried.
func (c *core) respond(m *raftpb.Message) {
	for _, r := range m.GetResponses() {
		if r.GetTo() == c.id {
			c.stepRaft(r)
		} else {
			c.out.send = append(c.out.send, r)
		}
	}
}

// maxTicks is how many ticks a step makes up for. A process that was stopped
// for long must hear its peers before it decides that they are gone.
const maxTicks = 2

func (c *core) tick(now time.Duration) {
	for n := 0; now >= c.nextTick; n++ {
		if n == maxTicks {
			c.nextTick = now + c.cfg.Tick
			return
		}
		c.rn.Tick()
		c.nextTick += c.cfg.Tick
	}
}

// ready takes what Raft has to say.
func (c *core) ready() error {
	rd := c.rn.Ready()
	term := c.term
	if rd.HardState != nil {
		c.term, c.commit = rd.HardState.GetTerm(), rd.HardState.GetCommit()
	}
	if rd.SoftState != nil {
		c.leader = rd.SoftState.Lead
	}
	leading := c.leading
	if rd.SoftState != nil {
		leading = rd.SoftState.RaftState == raft.StateLeader
	}
	if c.leading && (!leading || c.term != term) {
		c.depose()
	}
	if leading && (!c.leading || c.term != term) {
		c.lead = leadership{due: far}
		c.log.Info("became leader", "term", c.term)
	}
	c.leading = leading
	if c.leading {
		if err := c.place(rd.Entries); err != nil {
			return err
		}
	}
	for _, s := range rd.ReadStates {
		c.reads.confirmed(s.RequestCtx, s.Index)
	}
	c.reads.applied(c.applied.Index)
	for _, m := range rd.Messages {
		switch m.GetTo() {
		case raft.LocalAppendThread:
			if n := len(m.GetEntries()); n > 0 {
				c.appending++
				c.sinceMark += sizeOf(m.GetEntries())
			}
			job := appendJob{message: m}
			if hasSnapshot(m) {
				var err error
				if job.install, err = c.takeSnapshot(m.GetSnapshot()); err != nil {
					return err
				}
			}
			c.out.append = append(c.out.append, job)
		case raft.LocalApplyThread:
			if last := m.GetEntries()[len(m.GetEntries())-1]; last.GetTerm() == c.term {
				c.lead.confirmed = true
			}
			c.out.apply = append(c.out.apply, m)
		default:
			if m.GetType() == raftpb.MsgSnap {
				c.sends(m)
			}
			c.out.send = append(c.out.send, m)
		}
	}
	return nil
}

// depose ends a leadership. Whether what was proposed in it will be applied is
// up to the next leader.
func (c *core) depose() {
	c.log.Info("no longer leader", "term", c.term, "peer", c.leader)
	for _, p := range c.lead.proposed {
		finish(p.waiting, ErrUnknown)
	}
	if p := c.lead.conf; p != nil && !p.placed {
		p.done(ErrUnknown)
	}
	c.waiters.failAll(ErrUnknown)
	c.reads.alone.Store(false)
	c.lead = leadership{due: far}
	clear(c.sending) // the next leader sends what is needed
}

// place finds the entries that Raft made of this leader's batches, so that the
// applier knows whom to answer: an entry is known for good by term and index.
func (c *core) place(entries []*raftpb.Entry) error {
	for _, e := range entries {
		at := wal.Position{Term: e.GetTerm(), Index: e.GetIndex()}
		switch {
		case at.Term != c.term:
			// An entry of an earlier leader that this node had not written yet.
		case e.GetType() != raftpb.EntryNormal:
			c.placeConf(at, e)
		case len(e.GetData()) > 0:
			if len(c.lead.proposed) == 0 || batchID(e.GetData()) != c.lead.proposed[0].id {
				return fmt.Errorf("raftstore: entry at %v is none that this leader proposed", at)
			}
			p := c.lead.proposed[0]
			c.lead.proposed = c.lead.proposed[1:]
			c.lead.own = append(c.lead.own, ownEntry{at.Index, p.stamped, p.due})
			c.waiters.add(at, p.waiting)
		}
	}
	if p := c.lead.conf; p != nil && !p.placed {
		c.lead.conf = nil
		p.done(fmt.Errorf("%w: %w", ErrOverloaded, errBusy))
	}
	return nil
}

func (c *core) takeProposal(p *proposal) {
	switch {
	case !c.leading:
		p.done(nil, c.notLeader())
	case c.commit > c.applied.Index+c.cfg.MaxLag:
		p.done(nil, fmt.Errorf("%w: apply is %d entries behind", ErrOverloaded, c.commit-c.applied.Index))
	default:
		c.pending = append(c.pending, p)
		c.pendingBytes += len(p.command)
	}
}

// notLeader returns what to answer while this node does not lead.
func (c *core) notLeader() error {
	if c.leader == raft.None || c.leader == c.id {
		return ErrNoLeader
	}
	return &NotLeaderError{Leader: c.leader}
}

// propose makes entries of what waits. While an append is on its way to the
// disk, proposals gather: the next entry takes them all, so that the batch
// grows with the load and nobody waits for a timer.
func (c *core) propose(now time.Duration) {
	if !c.leading {
		finish(c.pending, c.notLeader())
		c.pending, c.pendingBytes = nil, 0
		return
	}
	for !c.lead.opened || len(c.pending) > 0 && (c.appending == 0 || c.pendingBytes >= c.cfg.MaxBatch) {
		n, size := 0, 0
		for n < len(c.pending) && (n == 0 || size+len(c.pending[n].command) <= c.cfg.MaxBatch) {
			size += len(c.pending[n].command)
			n++
		}
		waiting := c.pending[:n:n]
		c.pending = c.pending[n:]
		c.pendingBytes -= size
		if err := c.proposeBatch(now, waiting); err != nil {
			finish(waiting, err)
			return
		}
	}
	if len(c.pending) == 0 {
		c.pending = nil
	}
}

func (c *core) proposeBatch(now time.Duration, waiting []*proposal) error {
	b := batch{id: c.lead.nextID, wall: c.clock.Wall().UnixMilli()}
	stamped := now
	if c.lead.opened {
		// Whole milliseconds only; the rest counts for the next entry.
		b.elapsed = uint64((now - c.lead.stamped).Milliseconds())
		stamped = c.lead.stamped + time.Duration(b.elapsed)*time.Millisecond
	}
	due := false
	for _, p := range waiting {
		b.commands = append(b.commands, p.command)
		due = due || p.due
	}
	err := c.rn.Step(&raftpb.Message{
		Type:    raftpb.MsgProp.Enum(),
		From:    new(c.id),
		Entries: []*raftpb.Entry{{Data: b.marshal()}},
	})
	if err != nil {
		if due {
			c.lead.dueProposed, c.lead.due = false, now+c.cfg.Tick
		}
		if c.rn.BasicStatus().LeadTransferee != raft.None {
			return fmt.Errorf("%w: the leadership is being handed over", ErrNoLeader)
		}
		return fmt.Errorf("%w: %w", ErrOverloaded, err)
	}
	c.lead.opened = true
	c.lead.nextID++
	c.lead.stamped = stamped
	c.lead.proposed = append(c.lead.proposed, &proposed{id: b.id, stamped: stamped, due: due, waiting: waiting})
	c.metrics.batch.Observe(float64(len(waiting)))
	return nil
}

func (c *core) takeApplied(now time.Duration, e applied) error {
	c.applied = e.at
	for _, change := range e.conf {
		if change.index <= c.restored {
			// Raft has the membership of a snapshot that includes it already.
			continue
		}
		got := c.rn.ApplyConfChange(change.change)
		if err := got.Equivalent(change.conf); err != nil {
			return fmt.Errorf("raftstore: membership as applied and as Raft has it differ: %w", err)
		}
		c.setMembers(change.conf, change.members)
	}
	if e.message != nil {
		c.respond(e.message)
	}
	for len(c.lead.own) > 0 && c.lead.own[0].index <= e.at.Index {
		own := c.lead.own[0]
		c.lead.own = c.lead.own[1:]
		c.lead.appliedStamp, c.lead.appliedOwn = own.stamped, true
		if own.due {
			c.lead.dueProposed = false
		}
	}
	c.lead.due = now // ask the machine again
	c.reads.applied(e.at.Index)
	c.reads.alone.Store(c.leading && c.alone() && e.at.Term == c.term)
	return nil
}

// mayAsk tells whether the machine is to be asked what is due. Until an entry
// of its own is applied, this leader's clock and directory time have nothing in
// common; and what it proposed already comes first.
func (c *core) mayAsk() bool {
	return c.leading && c.lead.appliedOwn && !c.lead.dueProposed
}

// maxWait is the longest time, in milliseconds, until the machine is asked again.
const maxWait = 24 * 60 * 60 * 1000

// askDue asks the machine what has come due, and proposes it.
func (c *core) askDue(now time.Duration) {
	if !c.mayAsk() || now < c.lead.due {
		return
	}
	v := c.overlay.view()
	wait, command := c.cfg.Machine.Due(v, uint64((now - c.lead.appliedStamp).Milliseconds()))
	v.Release()
	switch {
	case wait < 0:
		c.lead.due = far
	case wait > 0:
		c.lead.due = now + time.Duration(min(wait, maxWait))*time.Millisecond
	default:
		c.lead.dueProposed = true
		c.pending = append(c.pending, &proposal{command: command, due: true, done: func([]byte, error) {}})
		c.pendingBytes += len(command)
	}
}

func (c *core) takeFlushed(e flushed) {
	c.durable = e.applied
	c.entries.flushed, c.entries.flushedConf = e.applied, e.conf
	c.out.append = append(c.out.append, appendJob{flushed: e.applied.Index})
	if e.mark.Index > c.released {
		// The state file says to start there: what lies before can go.
		c.released = e.mark.Index
		c.out.append = append(c.out.append, appendJob{release: e.mark.Index})
	}
	c.entries.compact(c.keep(e.applied.Index), c.cfg.LogEntries, c.cfg.LogBytes)
	if at := c.entries.before; c.sinceMark >= c.cfg.MarkBytes && at.Index > c.marked.Index && c.taken == nil {
		c.sinceMark, c.marked = 0, at
		c.out.append = append(c.out.append, appendJob{mark: &wal.Mark{Position: at, Conf: c.conf}})
	}
}

// proposal is a command on its way.
type proposal struct {
	command []byte
	due     bool // it is the core's own, from Machine.Due
	// done is called once, with the machine's result or an error. It must not block.
	done func(result []byte, err error)
}

// fail answers all who wait for the core, and those whose events it never took.
func (c *core) fail(events []event, err error) {
	for _, e := range events {
		switch e := e.(type) {
		case *proposal:
			e.done(nil, err)
		case *confProposal:
			e.done(err)
		case *readRequest:
			e.done(err)
		case *installation:
			e.done(err)
		}
	}
	for _, in := range []*installation{c.offered, c.taken} {
		if in != nil {
			in.done(err)
		}
	}
	finish(c.pending, err)
	for _, p := range c.lead.proposed {
		finish(p.waiting, err)
	}
	if p := c.lead.conf; p != nil && !p.placed {
		p.done(err)
	}
	c.reads.fail(err)
}

func finish(waiting []*proposal, err error) {
	for _, p := range waiting {
		p.done(nil, err)
	}
}

// raftLogger hands Raft's messages to slog. Raft panics through it when its
// state makes no sense, which the step's caller turns into a failure.
type raftLogger struct{ log *slog.Logger }

func (l raftLogger) Debug(v ...any)              {}
func (l raftLogger) Debugf(f string, v ...any)   {}
func (l raftLogger) Info(v ...any)               { l.log.Debug("raft", "text", fmt.Sprint(v...)) }
func (l raftLogger) Infof(f string, v ...any)    { l.log.Debug("raft", "text", fmt.Sprintf(f, v...)) }
func (l raftLogger) Warning(v ...any)            { l.log.Warn("raft", "text", fmt.Sprint(v...)) }
func (l raftLogger) Warningf(f string, v ...any) { l.log.Warn("raft", "text", fmt.Sprintf(f, v...)) }
func (l raftLogger) Error(v ...any)              { l.log.Warn("raft", "text", fmt.Sprint(v...)) }
func (l raftLogger) Errorf(f string, v ...any)   { l.log.Warn("raft", "text", fmt.Sprintf(f, v...)) }
func (l raftLogger) Fatal(v ...any)              { panic(fmt.Sprint(v...)) }
func (l raftLogger) Fatalf(f string, v ...any)   { panic(fmt.Sprintf(f, v...)) }
func (l raftLogger) Panic(v ...any)              { panic(fmt.Sprint(v...)) }
func (l raftLogger) Panicf(f string, v ...any)   { panic(fmt.Sprintf(f, v...)) }
