package raftstore

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"slices"
	"sync/atomic"
	"time"
)

// reads makes linearizable reads of read requests: all that wait share one
// round of Raft's ReadIndex, and wait until what it names is applied.
//
// Each attempt has an id of its own: the answer to an attempt that was given up
// says nothing of a later one. An id holds the node and a number drawn at its
// start besides, for an answer may still be on its way to a node that was
// restarted, and must not be taken for one to its new attempts. Raft drops a round silently when it has no
// leader, so a round has a deadline, and so has a request.
type reads struct {
	timeout time.Duration // of a round
	patient time.Duration // of a request
	max     int

	waiting []*readRequest // for a round to start
	round   *readRound     // the one that is under way
	open    []*readRound   // confirmed, waiting for apply; by index
	life    []byte         // what this node's ids begin with
	lastID  uint64
	probe   time.Duration // when to start a round that nobody asked for

	// asOf is when the newest round began all of which is applied: the state is
	// no older. In nanoseconds of the clock; 0 until there was one.
	asOf atomic.Int64
	// alone: this node is leader and only voter, so its state is the newest there is.
	alone atomic.Bool
}

type readRequest struct {
	expires time.Duration
	// done is called once. It must not block.
	done func(error)
	// given up by whoever asked
	abandoned atomic.Bool
}

type readRound struct {
	id       []byte
	began    time.Duration
	index    uint64
	requests []*readRequest
}

const (
	// readPatience is how long a linearizable read waits for a leader.
	readPatience = 2 * time.Second
	// probeTicks is how often a node makes sure of the age of its state.
	probeTicks = 4
)

func (r *reads) start(cfg Config, node uint64, now time.Duration) error {
	r.life = binary.BigEndian.AppendUint64(make([]byte, 0, 16), node)[:16]
	if _, err := rand.Read(r.life[8:]); err != nil {
		return fmt.Errorf("raftstore: draw the id of reads: %w", err)
	}
	r.timeout = time.Duration(cfg.ElectionTicks) * cfg.Tick
	r.patient = readPatience
	r.max = cfg.MaxReads
	r.probe = now
	return nil
}

func (c *core) takeRead(now time.Duration, q *readRequest) {
	if len(c.reads.waiting) >= c.reads.max {
		q.done(ErrOverloaded)
		return
	}
	q.expires = now + c.reads.patient
	c.reads.waiting = append(c.reads.waiting, q)
}

// readRound starts a round if there is a reason and none is under way.
func (c *core) readRound(now time.Duration) {
	r := &c.reads
	if r.round != nil && now-r.round.began >= r.timeout {
		r.waiting = append(r.round.requests, r.waiting...)
		r.round = nil
	}
	r.waiting = slices.DeleteFunc(r.waiting, func(q *readRequest) bool {
		if now >= q.expires && !q.abandoned.Load() {
			q.done(c.notLeader())
			return true
		}
		return q.abandoned.Load()
	})
	probe := !c.alone() && now >= r.probe
	if r.round != nil || len(r.waiting) == 0 && !probe {
		return
	}
	// A leader that has not confirmed its leadership does not know yet what was
	// committed before it, and when it is the only voter, Raft does not wait.
	if c.leader == 0 || c.leading && !c.lead.confirmed {
		return
	}
	r.lastID++
	r.probe = now + probeTicks*c.cfg.Tick
	r.round = &readRound{id: binary.BigEndian.AppendUint64(slices.Clip(r.life), r.lastID), began: now, requests: r.waiting}
	r.waiting = nil
	c.rn.ReadIndex(r.round.id)
}

// confirmed: a quorum has said that the leader still led after the round
// began, and index is what was committed then.
func (r *reads) confirmed(id []byte, index uint64) {
	if r.round == nil || !bytes.Equal(r.round.id, id) {
		return // given up before
	}
	r.round.index = index
	r.open = append(r.open, r.round)
	r.round = nil
}

// applied lets go the requests that waited for what is applied now.
func (r *reads) applied(index uint64) {
	r.open = slices.DeleteFunc(r.open, func(o *readRound) bool {
		if o.index > index {
			return false
		}
		r.asOf.Store(max(r.asOf.Load(), int64(o.began)))
		for _, q := range o.requests {
			q.done(nil)
		}
		return true
	})
}

func (r *reads) fail(err error) {
	all := r.waiting
	if r.round != nil {
		all = append(all, r.round.requests...)
	}
	for _, o := range r.open {
		all = append(all, o.requests...)
	}
	for _, q := range all {
		q.done(err)
	}
}
