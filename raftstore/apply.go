package raftstore

import (
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"time"

	"github.com/rookery-mail/rookery/raftstore/wal"
	"go.etcd.io/raft/v3/raftpb"
)

// applier takes committed entries through the machine into the overlay,
// publishes what came of them, answers who proposed them, and decides when a
// layer is due for the disk. It is a step function and owns the overlay.
type applier struct {
	cfg     Config
	log     *slog.Logger
	clock   Clock
	metrics *metrics
	machine Machine
	overlay *overlay
	waiters *waiters
	sums    *sums

	meta  Meta // as of the last entry applied
	tx    overlayTx
	dirty time.Duration // when the first thing changed that the disk lacks; far if nothing has
	done  []answer      // answers to give once published
	wants []flushWant   // who waits for a flush

	generation int    // of the state: counts installations
	skip       uint64 // entries up to here are part of the state that was installed last
}

type flushWant struct {
	index uint64
	done  func()
}

type answer struct {
	p      *proposal
	result []byte
	err    error
}

// applyJob is a MsgStorageApply, a mark to be kept with the next flush, a
// finished flush, the wish for one, where want is called when the disk has all
// that is applied now, a state that was installed, or another reader of the
// same state.
type applyJob struct {
	message   *raftpb.Message
	mark      *wal.Position
	flushed   *flushResult
	want      func()
	installed *installResult
	rebased   *base
}

// ofDisk tells that the job is news of the disk, which must be heard even while
// the overlay is full.
func (j applyJob) ofDisk() bool { return j.flushed != nil || j.installed != nil || j.rebased != nil }

// base returns the reader of the disk that the job brings, or nil.
func (j applyJob) base() *base {
	switch {
	case j.flushed != nil:
		return j.flushed.base
	case j.installed != nil:
		return j.installed.base
	}
	return j.rebased
}

// flushJob is a layer to be written, with the meta of its last entry; or a
// state to be installed or exchanged.
type flushJob struct {
	layer      layer
	meta       Meta
	generation int // of the state that the layer belongs to
	install    *installation
	swap       *swapJob
}

// flushResult is the disk with that layer in it.
type flushResult struct {
	base *base
	meta Meta
}

// confApplied is a membership change and what it led to.
type confApplied struct {
	index   uint64
	change  *raftpb.ConfChangeV2
	conf    *raftpb.ConfState
	members []Member
}

func newApplier(cfg Config, meta Meta, o *overlay, w *waiters, sums *sums, m *metrics) *applier {
	return &applier{
		cfg: cfg, log: cfg.Log, clock: cfg.Clock, metrics: m, machine: cfg.Machine,
		overlay: o, waiters: w, sums: sums, meta: meta, tx: overlayTx{o: o}, dirty: far,
	}
}

// publishBytes is how much is applied before it is shown and answered, lest
// those at the front of a long queue wait for its end.
const publishBytes = 256 << 10

// step does one job. Finished applies go to the core.
func (a *applier) step(job applyJob) (event, error) {
	switch {
	case job.mark != nil:
		// One made before a snapshot was installed is of a log that is no more.
		if job.mark.Index > a.meta.Mark.Index {
			a.meta.Mark = *job.mark
			a.touch()
		}
		return nil, nil
	case job.installed != nil:
		return a.install(job.installed), nil
	case job.rebased != nil:
		a.overlay.rebase(job.rebased, a.meta.Applied)
		return nil, nil
	case job.flushed != nil:
		a.overlay.flushed(job.flushed.base, a.meta.Applied)
		at := job.flushed.meta.Applied
		a.wants = slices.DeleteFunc(a.wants, func(w flushWant) bool {
			if w.index <= at.Index {
				w.done()
			}
			return w.index <= at.Index
		})
		return flushed{applied: at, mark: job.flushed.meta.Mark, conf: job.flushed.meta.Conf}, nil
	case job.want != nil:
		if a.dirty == far && a.overlay.frozen == nil {
			job.want()
			return nil, nil
		}
		a.wants = append(a.wants, flushWant{a.meta.Applied.Index, job.want})
		return nil, nil
	}
	start := a.clock.Now()
	var changes []confApplied
	size := 0
	for _, e := range job.message.GetEntries() {
		if e.GetIndex() <= a.skip {
			continue
		}
		change, err := a.apply(e)
		if err != nil {
			// Nothing of the entry was published; all that is left is to stop.
			return nil, fmt.Errorf("raftstore: apply entry %d of term %d: %w", e.GetIndex(), e.GetTerm(), err)
		}
		a.meta.Sum = a.overlay.sum
		a.sums.applied(e.GetIndex(), a.meta.Sum, a.clock.Now())
		if change != nil {
			changes = append(changes, *change)
		}
		if size += len(e.GetData()); size >= publishBytes {
			a.publish()
			size = 0
		}
	}
	a.publish()
	a.metrics.applySeconds.Observe((a.clock.Now() - start).Seconds())
	return applied{message: job.message, at: a.meta.Applied, conf: changes}, nil
}

// apply takes one entry through the machine.
func (a *applier) apply(e *raftpb.Entry) (change *confApplied, err error) {
	at := wal.Position{Term: e.GetTerm(), Index: e.GetIndex()}
	if at.Index != a.meta.Applied.Index+1 {
		return nil, fmt.Errorf("it follows entry %d", a.meta.Applied.Index)
	}
	answered := len(a.done)
	var waiting []*proposal
	// A machine that panics over a command would do so on every node and after
	// every restart; it is a failure like any other, but with the place.
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
		if err != nil {
			a.done = a.done[:answered]
			a.answerAll(waiting, err)
		}
	}()
	var theirs bool
	if waiting, theirs = a.waiters.take(at); !theirs {
		// They wait for an entry that another leader has replaced.
		a.answerAll(waiting, ErrNoLeader)
		waiting = nil
	}
	a.touch()
	a.meta.Applied = at
	switch {
	case e.GetType() != raftpb.EntryNormal:
		if change, err = a.applyConf(e); err == nil {
			a.answerAll(waiting, nil)
		}
		return change, err
	case len(e.GetData()) == 0:
		return nil, nil // a new leader's first entry
	}
	b, err := unmarshalBatch(e.GetData())
	if err != nil {
		return nil, err
	}
	if waiting != nil && len(waiting) != len(b.commands) {
		return nil, fmt.Errorf("%d wait for the results of %d commands", len(waiting), len(b.commands))
	}
	stamp := Stamp{Elapsed: b.elapsed, Wall: b.wall}
	for i, command := range b.commands {
		result, err := a.machine.Apply(&a.tx, stamp, command)
		if err == nil {
			err = a.tx.err
		}
		if err != nil {
			return nil, err
		}
		if waiting != nil {
			a.done = append(a.done, answer{p: waiting[i], result: result})
		}
		stamp.Elapsed = 0
	}
	a.metrics.commands.Add(float64(len(b.commands)))
	return nil, nil
}

func (a *applier) answerAll(waiting []*proposal, err error) {
	for _, p := range waiting {
		a.done = append(a.done, answer{p: p, err: err})
	}
}

// publish shows what was applied, and only then answers: whoever has an answer
// must find what it says in every view taken after.
func (a *applier) publish() {
	a.overlay.publish(a.meta.Applied)
	for _, d := range a.done {
		d.p.done(d.result, d.err)
	}
	clear(a.done)
	a.done = a.done[:0]
}

// fail answers those whose answers were not published, and never will be.
func (a *applier) fail(err error) {
	for _, d := range a.done {
		d.p.done(nil, err)
	}
	a.done = nil
}

// touch notes that there is something to flush.
func (a *applier) touch() {
	if a.dirty == far {
		a.dirty = a.clock.Now()
	}
}

// flush returns a layer to be written if one is due, or wanted, or if force and
// there is anything. It returns nil while another is being written.
func (a *applier) flush(force bool) *flushJob {
	if a.dirty == far || a.overlay.frozen != nil {
		return nil
	}
	if !force && len(a.wants) == 0 && !a.over(1) && a.clock.Now() < a.flushAt() {
		return nil
	}
	a.dirty = far
	return &flushJob{layer: a.overlay.freeze(), meta: a.meta.clone(), generation: a.generation}
}

// flushAt returns when a flush is due even if nothing happens.
func (a *applier) flushAt() time.Duration {
	if a.dirty == far || a.overlay.frozen != nil {
		return far
	}
	return a.dirty + a.cfg.FlushInterval
}

// full tells that the disk cannot keep up: no entry must be applied until the
// flush that is running is done.
func (a *applier) full() bool { return a.overlay.frozen != nil && a.over(2) }

func (a *applier) over(times int) bool {
	return a.overlay.active.keys() >= times*a.cfg.FlushKeys || a.overlay.active.size() >= times*a.cfg.FlushBytes
}
