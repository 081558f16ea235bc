package raftstore

import (
	"fmt"
	"io"
	"slices"

	"github.com/rookery-mail/rookery/internal/kv"
	"github.com/rookery-mail/rookery/raftstore/snap"
	"github.com/rookery-mail/rookery/raftstore/wal"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// This file is for who drives a Node without a Store: the simulator. What a
// Store does with files beside its steps, it does here with what is in memory,
// by the same functions.

// Todo says which steps of a node have something to do now, besides what Wake
// says is due at a time.
type Todo struct{ Core, Append, Apply, Flush bool }

// Todo must not be asked while a step runs in another goroutine.
func (n *Node) Todo() Todo {
	t := Todo{Core: n.events.len() > 0, Flush: n.flushes.len() > 0}
	a := n.appender
	switch {
	case a.installing != nil:
		t.Append = n.resumes.len() > 0
	default:
		t.Append = len(a.written) > 0 || len(a.held) > 0 || n.appends.len() > 0
	}
	if t.Apply = n.applies.len() > 0; t.Apply && n.applier.full() {
		t.Apply = slices.ContainsFunc(n.applies.items, applyJob.ofDisk)
	}
	return t
}

// SumAfter is Store.SumAfter.
func (n *Node) SumAfter(after uint64) (index, sum uint64) {
	at := n.sums.roundest(after)
	return at.index, at.sum
}

// Differences lists the members whose state is not this node's.
func (n *Node) Differences() []Difference { return n.sums.differences(n.Status().Members) }

// Usage is what a node keeps in memory that could grow.
type Usage struct {
	Waiting, WaitingBytes int64  // proposals without an answer
	Reads                 int    // linearizable reads without one
	LogAfter              uint64 // the entry that the log in memory begins after
	LogEntries            int
	GivenUp               int // snapshots that the log could not be kept for, since the start
	LogBytes              int64
	Queued                int // items between the steps
	OverlayKeys           int // applied and not on disk
	Readers               int // of the disk
}

// Usage must not be asked while a step runs in another goroutine.
func (n *Node) Usage() Usage {
	r := &n.core.reads
	u := Usage{
		Waiting: n.admit.count.Load(), WaitingBytes: n.admit.bytes.Load(), Reads: len(r.waiting),
		LogAfter: n.core.entries.before.Index, GivenUp: n.core.givenUp, LogEntries: len(n.core.entries.entries), LogBytes: n.core.entries.bytes,
		Queued:  n.events.len() + n.appends.len() + n.applies.len() + n.flushes.len(),
		Readers: n.Held(),
	}
	if r.round != nil {
		u.Reads += len(r.round.requests)
	}
	for _, o := range r.open {
		u.Reads += len(o.requests)
	}
	u.OverlayKeys = n.overlay.active.keys()
	if n.overlay.frozen != nil {
		u.OverlayKeys += n.overlay.frozen.keys()
	}
	return u
}

// NewMemoryLog returns the log of a node whose disk is new and has that meta.
func NewMemoryLog(m Meta) *wal.Memory {
	return wal.NewMemory(m.Identity.marshal(), wal.Mark{Position: m.Mark, Conf: m.Conf})
}

// Save writes a snapshot of what is on a disk to w and returns what it is of.
func Save(d Disk, w io.Writer) (h snap.Header, err error) {
	err = d.Image(func(m Meta, write func(io.Writer) error) error {
		h = m.header(d.Kind())
		sw, err := snap.NewWriter(w, h)
		if err != nil {
			return err
		}
		if err := write(sw); err != nil {
			return err
		}
		return sw.Close()
	})
	return h, err
}

// StageFor stages a snapshot on a disk for the node of this identity and name:
// it is proved, and nothing of the state in use is touched.
//
// Errors: ErrIdentity, snap.ErrCorrupt, ErrCorrupt for a state in it that is none.
func StageFor(d Disk, r *snap.Reader, id Identity, name string, machine Machine) (Staged, error) {
	if err := checkSnapshot(r.Header, id, d.Kind()); err != nil {
		return nil, err
	}
	staged, err := d.Stage(r)
	if err != nil {
		return nil, err
	}
	if err := proveStaged(staged, r.Header, machine); err != nil {
		return nil, err
	}
	return staged, staged.SetMeta(staged.Meta().adopt(id, name))
}

// proveStaged is prove for a state on any disk.
func proveStaged(staged Staged, h snap.Header, machine Machine) error {
	if err := checkOf(staged.Meta(), h); err != nil {
		return err
	}
	return verifyReader(staged.Begin, machine)
}

// Verify reads a disk whole and lets the machine look at its records, as Open
// does before it serves what is there.
func Verify(d Disk, machine Machine) error { return verifyReader(d.Begin, machine) }

func verifyReader(begin func() (DiskReader, error), machine Machine) (err error) {
	defer guard("the state", &err)()
	r, err := begin()
	if err != nil {
		return err
	}
	defer r.Close()
	m, err := r.Meta()
	if err != nil {
		return corrupt("the state", "%w", err)
	}
	if sum := sumRows(r, rowSeeds(machine.Buckets())); sum != m.Sum {
		return corrupt("the state", "%w", errSum(sum, m))
	}
	v, ok := machine.(Verifier)
	if !ok {
		return nil
	}
	if err := v.Verify(&bucketReader{r, machine.Buckets()}); err != nil {
		return corrupt("the state", "%w", err)
	}
	return nil
}

// NewReader is a reader of what is on a disk by the names of buckets.
func NewReader(r DiskReader, buckets []kv.Bucket) kv.Reader { return &bucketReader{r, buckets} }

// RecoverMemory is Recover for a stopped node in memory: it returns the disk and
// the log of a cluster of this node alone.
func RecoverMemory(d *MemoryDisk, replay *wal.Replay) (*MemoryDisk, *wal.Memory, error) {
	meta := d.Meta()
	if err := checkReplay(meta, replay); err != nil {
		return nil, nil, err
	}
	if alone := meta.Conf.GetVoters(); len(meta.Conf.GetVotersOutgoing()) == 0 && slices.Equal(alone, []uint64{meta.Identity.Node}) {
		return nil, nil, ErrAlone
	}
	id, err := newIdentity(meta.Identity.Shard, meta.Identity.Incarnation+1)
	if err != nil {
		return nil, nil, err
	}
	alone := meta.alone(Config{Name: meta.Name}, id)
	log := NewMemoryLog(alone)
	if err := keepEntries(log, replay.Hard, replay.Entries[alone.Applied.Index-meta.Mark.Index:]); err != nil {
		return nil, nil, err
	}
	return d.copyAs(alone), log, nil
}

// RestoreMemory is Restore in memory: it returns the disk and the log of a new
// cluster of one node that begins with a snapshot, of at least that incarnation.
func RestoreMemory(buckets int, r *snap.Reader, name string, least uint64, machine Machine) (*MemoryDisk, *wal.Memory, error) {
	id, err := newIdentity(r.Header.Shard, max(r.Header.Incarnation+1, least))
	if err != nil {
		return nil, nil, err
	}
	d := NewMemoryDisk(buckets, Meta{Identity: id, Conf: &raftpb.ConfState{}})
	staged, err := d.Stage(r)
	if err == nil {
		err = proveStaged(staged, r.Header, machine)
	}
	if err == nil {
		err = staged.SetMeta(staged.Meta().alone(Config{Name: name}, id))
	}
	if err == nil {
		err = d.Replace(staged)
	}
	if err != nil {
		return nil, nil, err
	}
	return d, NewMemoryLog(d.Meta()), nil
}

// checkOf makes sure that the state with this meta is what a header says.
func checkOf(m Meta, h snap.Header) error {
	of := m.header(h.Kind)
	if !proto.Equal(of.Conf, h.Conf) {
		return fmt.Errorf("%w: its membership is not that of the state in it", snap.ErrCorrupt)
	}
	if of.Conf = h.Conf; of != h {
		return fmt.Errorf("%w: the snapshot says it is %+v, the state in it is %+v", snap.ErrCorrupt, h, of)
	}
	return nil
}
