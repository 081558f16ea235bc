package sim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/rookery-mail/rookery/internal/kv"
	"github.com/rookery-mail/rookery/raftstore"
	"github.com/rookery-mail/rookery/server"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// store is the server.Store of one process. It does what server.Shard does with
// a raftstore.Store, and blocks in no other way than processes do.
type store struct{ l *life }

var _ server.Store = store{}

// The deadlines of server and raftstore, in units of the world.
const (
	writePatience  = 10 // of a write or linearizable read without a deadline
	readPatience   = 2  // until a local read has caught up
	leaderPatience = 1  // until a write without a leader is given up
	leaderAgain    = 20 // a part of a unit, until it is tried again
	followPatience = 1  // until a forwarded write shows here
)

// deadline returns until when the present call may wait.
func (s store) deadline(units time.Duration) time.Duration {
	w := s.l.w
	at := w.now + units*w.plan.unit
	if p := w.current; p != nil && p.limit > 0 {
		at = min(at, p.limit)
	}
	return at
}

// Propose implements server.Store.
func (s store) Propose(_ context.Context, command []byte) ([]byte, error) {
	w := s.l.w
	patience, deadline := w.now+leaderPatience*w.plan.unit, s.deadline(writePatience)
	for {
		result, err := s.try(command, deadline)
		if !errors.Is(err, raftstore.ErrNoLeader) || w.now >= patience {
			return result, err
		}
		q := w.wait()
		s.l.led = append(s.l.led, q)
		if e := q.until(min(deadline, w.now+w.plan.unit/leaderAgain)); errors.Is(e, errEnded) || w.now >= deadline {
			return nil, err
		}
	}
}

// outcome is what a command came to.
type outcome struct {
	result []byte
	index  uint64
	err    error
}

// try proposes here, or where the leader is.
func (s store) try(command []byte, deadline time.Duration) ([]byte, error) {
	w := s.l.w
	out, err := s.await(deadline, func(done func(outcome)) { s.l.propose(command, done) })
	if err != nil {
		return nil, err
	}
	other, ok := errors.AsType[*raftstore.NotLeaderError](out.err)
	if !ok {
		return out.result, out.err
	}
	if out, err = s.await(deadline, func(done func(outcome)) { s.l.forward(other.Leader, command, done) }); err != nil {
		return nil, err
	}
	if out.err != nil {
		return nil, out.err
	}
	// It is done in any case; its token says what a read has to wait for.
	_ = s.when(min(deadline, w.now+followPatience*w.plan.unit), func() bool {
		v := s.l.raft.View()
		defer v.Release()
		return v.Applied() >= out.index
	})
	return out.result, nil
}

// await blocks until what was asked for has an outcome.
func (s store) await(deadline time.Duration, ask func(done func(outcome))) (out outcome, err error) {
	if s.l.dead {
		return out, raftstore.ErrClosed
	}
	q := s.l.w.wait()
	answered := false
	ask(func(o outcome) {
		if !q.done {
			out, answered = o, true
			q.wake()
		}
	})
	s.l.poke()
	if err := q.until(deadline); err != nil && !answered {
		return out, err
	}
	return out, nil
}

// propose puts a command into this node's log if it leads.
func (l *life) propose(command []byte, done func(outcome)) {
	if l.dead {
		done(outcome{err: raftstore.ErrClosed})
		return
	}
	l.w.counts.Proposed++
	l.raft.Propose(command, func(result []byte, err error) {
		o := outcome{result: result, err: err}
		if err == nil {
			v := l.raft.View()
			o.index = v.Applied()
			l.w.ledger.acknowledged(l, v, command, result)
			v.Release()
		}
		done(o)
	})
	l.poke()
}

// forward has the leader put a command into its log, by two messages through
// the network. A broken connection is noticed after a while: then the outcome is
// not known.
func (l *life) forward(leader uint64, command []byte, done func(outcome)) {
	w, to := l.w, l.w.byID[leader]
	if to == nil || w.net.links[l.n.slot][to.slot].cut || to.life == nil {
		w.after(w.plan.latency, func() { done(outcome{err: fmt.Errorf("%w: it is not reached", raftstore.ErrNoLeader)}) })
		return
	}
	w.counts.Forwarded++
	answered := false
	answer := func(o outcome) {
		if !answered && !l.dead {
			answered = true
			done(o)
		}
	}
	w.after(4*w.plan.unit, func() { answer(outcome{err: fmt.Errorf("%w: no answer", raftstore.ErrUnknown)}) })
	lost := func() {
		w.after(w.plan.unit/8, func() { answer(outcome{err: fmt.Errorf("%w: the connection broke", raftstore.ErrUnknown)}) })
	}
	cluster, taken := l.cluster, false
	w.net.carry(l.n.slot, to.slot, func() {
		if taken {
			return // a stream has no message twice
		}
		taken = true
		there := to.life
		if there == nil || there.cluster != cluster {
			lost()
			return
		}
		there.unpaused(func() {
			if there.dead {
				lost()
				return
			}
			there.propose(command, func(o outcome) {
				if there.dead || !w.net.carry(to.slot, l.n.slot, func() { answer(o) }) {
					lost()
				}
			})
		})
	})
}

// view is a View with the age that goes with it.
type view struct {
	*raftstore.View
	age   time.Duration
	known bool
}

func (v view) Age() (time.Duration, bool) { return v.age, v.known }

// Local implements server.Store.
func (s store) Local() (server.View, error) {
	if s.l.dead {
		return nil, raftstore.ErrClosed
	}
	age, known := s.l.raft.Age()
	v := view{s.l.raft.View(), age, known}
	s.l.w.ledger.local(s.l, v)
	return v, nil
}

// Linearizable implements server.Store.
func (s store) Linearizable(context.Context) (server.View, error) {
	w := s.l.w
	least := w.ledger.acked
	if !s.l.dead && !s.l.raft.Alone() {
		out, err := s.await(s.deadline(writePatience), func(done func(outcome)) {
			s.l.raft.ReadIndex(func(err error) { done(outcome{err: err}) })
		})
		if err != nil {
			return nil, err
		}
		if out.err != nil {
			return nil, out.err
		}
	}
	if s.l.dead {
		return nil, raftstore.ErrClosed
	}
	age, known := s.l.raft.Age()
	v := view{s.l.raft.View(), age, known}
	w.ledger.linearizable(s.l, v, least)
	return v, nil
}

// Verified implements server.Store: a state is proved before it is opened.
func (s store) Verified() bool { return true }

// When implements server.Store.
func (s store) When(_ context.Context, ready func(kv.Reader) bool) (out server.View, err error) {
	err = s.when(s.deadline(readPatience), func() bool {
		age, known := s.l.raft.Age()
		v := view{s.l.raft.View(), age, known}
		if ready(v) {
			out = v
			return true
		}
		v.Release()
		return false
	})
	return out, err
}

// when blocks until ready says yes, which is asked after each apply.
func (s store) when(deadline time.Duration, ready func() bool) error {
	for {
		switch {
		case s.l.dead:
			return raftstore.ErrClosed
		case ready():
			return nil
		}
		q := s.l.w.wait()
		s.l.changed = append(s.l.changed, q)
		if err := q.until(deadline); err != nil {
			return err
		}
	}
}

// Conn returns a connection to a node as it is whenever a call is made, for a
// process of this world: calls block in virtual time alone. A node that is down,
// cut off or crashes meanwhile makes a call Unavailable.
func (w *World) Conn(_ context.Context, slot int, caller server.Caller) grpc.ClientConnInterface {
	return &conn{w: w, n: w.nodes[slot], caller: caller}
}

type conn struct {
	w      *World
	n      *node
	caller server.Caller
}

// errUnreachable is what a client's library makes of a broken connection.
func errUnreachable(why string) error { return status.Error(codes.Unavailable, "sim: "+why) }

// Invoke implements grpc.ClientConnInterface.
func (c *conn) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	return c.call(func(l *life) error { return l.invoke(ctx, c.caller, method, args, reply, opts...) })
}

// call goes to the node, has it do something, and comes back.
func (c *conn) call(do func(*life) error) error {
	w := c.w
	p := w.wait().p
	patience := 2 * writePatience * w.plan.unit
	if p.timeout > 0 {
		patience = p.timeout
	}
	p.limit = w.now + patience
	defer func() { p.limit = 0 }()
	w.counts.Calls++
	if err := c.travel(p); err != nil {
		return err
	}
	l := c.n.life
	if l == nil || l.stopping {
		return errUnreachable("connection refused")
	}
	err := do(l)
	if w.ended {
		return status.Error(codes.Unavailable, errEnded.Error())
	}
	if l.dead {
		return errUnreachable("connection reset")
	}
	if err := c.travel(p); err != nil {
		return err
	}
	if l.dead {
		return errUnreachable("connection reset")
	}
	if err != nil {
		w.counts.Refused++
	}
	return err
}

// travel is the way to a node, or back. What is lost on it, nobody hears of
// before the caller's patience is over.
func (c *conn) travel(p *proc) error {
	w := c.w
	if err := w.sleep(w.plan.latency/4 + time.Duration(w.rnd.Int64N(int64(w.plan.latency)))); err != nil {
		return status.Error(codes.Unavailable, err.Error())
	}
	if w.net.cut[c.n.slot] {
		if err := w.sleep(min(p.limit-w.now, w.plan.unit)); err != nil {
			return status.Error(codes.Unavailable, err.Error())
		}
		return errUnreachable("cut off")
	}
	// A stopped process answers when it goes on, or the caller has enough.
	for l := c.n.life; l != nil && l.pausedUntil > w.now; l = c.n.life {
		if p.limit <= w.now {
			return status.Error(codes.DeadlineExceeded, "sim: no answer")
		}
		if err := w.sleep(min(l.pausedUntil, p.limit) - w.now); err != nil {
			return status.Error(codes.Unavailable, err.Error())
		}
	}
	return nil
}

// NewStream implements grpc.ClientConnInterface, for one request and answers that
// end by themselves. They travel together.
func (c *conn) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	return &stream{c: c, open: func(l *life) (grpc.ClientStream, error) {
		s, err := l.serve()
		if err != nil {
			return nil, err
		}
		return s.LoneConn(c.caller).NewStream(ctx, desc, method, opts...)
	}}, nil
}

// stream is a call with a stream of answers.
type stream struct {
	grpc.ClientStream // nil until the first answer is asked for
	c                 *conn
	open              func(*life) (grpc.ClientStream, error)
	request           any
}

// SendMsg implements grpc.ClientStream.
func (s *stream) SendMsg(m any) error { s.request = m; return nil }

// CloseSend implements grpc.ClientStream.
func (s *stream) CloseSend() error { return nil }

// RecvMsg implements grpc.ClientStream.
func (s *stream) RecvMsg(m any) error {
	if s.ClientStream != nil {
		return s.ClientStream.RecvMsg(m)
	}
	var end error // of a stream without an answer; no failure
	err := s.c.call(func(l *life) error {
		st, err := s.open(l)
		if err == nil {
			err = errors.Join(st.SendMsg(s.request), st.CloseSend())
		}
		if err != nil {
			return err
		}
		s.ClientStream = st
		if err = st.RecvMsg(m); errors.Is(err, io.EOF) {
			end, err = err, nil
		}
		return err
	})
	if err != nil {
		return err
	}
	return end
}
