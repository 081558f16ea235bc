package client

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"github.com/rookery-mail/rookery/directory"
	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
)

// How long to wait before asking again: doubled from the first to the longest,
// half of it by chance. While a leader is elected the waits add up to less than
// the election takes, twice.
const (
	firstWait   = 10 * time.Millisecond
	longestWait = 500 * time.Millisecond
)

// leastAttempt is what an attempt is given at least, if that much time is left.
const leastAttempt = 50 * time.Millisecond

// connectParams make a connection to a node that comes back be tried soon.
var connectParams = grpc.ConnectParams{
	Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
	MinConnectTimeout: 2 * time.Second,
}

// verdict says what to do after an attempt failed.
type verdict uint8

const (
	stop      verdict = iota // it is the answer
	elsewhere                // another node may answer at once
	later                    // nobody can right now
)

// judge weighs why an attempt failed. sent says that a write may have been done
// by it.
func judge(err error) (v verdict, sent bool) {
	e, ok := errors.AsType[*Error](err)
	if !ok {
		return stop, false
	}
	switch e.err {
	case ErrNotLeader, ErrClosing, ErrBehind, ErrTooStale:
		return elsewhere, false
	case ErrNoLeader, ErrOverloaded:
		return later, false
	case ErrUnavailable, ErrUndecided, context.DeadlineExceeded:
		// The deadline is the attempt's or the node's own: the caller's has been
		// looked at already.
		return elsewhere, !neverSent(e)
	case ErrWrongIncarnation:
		if e.again || e.earlier {
			return elsewhere, e.done
		}
	case ErrBroken, context.Canceled:
		return stop, true
	}
	return stop, false
}

// neverSent reports whether the transport failed before it had a connection, so
// that the node has not seen the call. It says so in words only.
func neverSent(e *Error) bool {
	if e.Reason != "" {
		return false
	}
	for _, sign := range []string{
		`connection error: desc = "transport: Error while dialing`,
		`connection error: desc = "transport: authentication handshake failed`,
		`connection error: desc = "error reading server preface`,
	} {
		// Behind "latest balancer error" too: the time ended before there was one.
		if strings.Contains(e.Message, sign) {
			return true
		}
	}
	return false
}

// failures are what the nodes of one call last said, or what became of them.
type failures []failure

type failure struct {
	n   *node
	err error
}

// note puts err in the place of what n said before. A node that has given a reason
// and then has no time left to give it again is still of that mind.
func (fs *failures) note(n *node, err error) {
	for i := range *fs {
		if f := &(*fs)[i]; f.n == n {
			if telling(f.err) < telling(err) || !errors.Is(err, context.DeadlineExceeded) {
				f.err = err
			}
			return
		}
	}
	*fs = append(*fs, failure{n, err})
}

// gravest returns the one that tells most of why nobody answered, and of those
// that tell as much the last noted; nil if there is none.
func (fs failures) gravest() error {
	var most error
	for _, f := range fs {
		if most == nil || telling(f.err) >= telling(most) {
			most = f.err
		}
	}
	return most
}

// telling ranks errors by how much they say of the cluster: what a node answers
// says more than that another is not there.
func telling(err error) int {
	e, ok := errors.AsType[*Error](err)
	if !ok {
		return 0
	}
	switch {
	case e.Reason == "" && e.err == context.DeadlineExceeded:
		return 1
	case e.Reason == "":
		return 2
	case e.err == ErrNoLeader:
		return 6
	case e.err == ErrTooStale:
		return 5
	case e.err == ErrClosing, e.err == context.DeadlineExceeded:
		return 3
	}
	return 4
}

// callKind is what try has to know of a call.
type callKind uint8

const (
	reading callKind = iota
	writing
	streaming // a read that may take long to answer
)

// try makes attempts until one is answered, is refused for good, or ctx ends.
// What attempt does must be safe to repeat: a read, or a write with its request
// id.
func (c *Client) try(ctx context.Context, kind callKind, attempt func(context.Context, *node) error) error {
	if c.isClosed() {
		return ErrClosed
	}
	var (
		write    = kind == writing
		n        = c.nodes.first(write)
		known    = c.nodes.count()
		asked    = 0 // nodes in this round
		wait     = firstWait
		said     failures
		maybe    bool // a write may have been done
		followed bool // the leader's address, in this round
	)
	for {
		err := c.attempt(ctx, n, kind != streaming && known > 1, attempt)
		if err == nil {
			c.nodes.answered(n, write)
			c.observe(n, write, nil, false)
			return nil
		}
		if c.isClosed() {
			return ErrClosed
		}
		if ctx.Err() != nil {
			c.observe(n, write, err, false)
			v, sent := judge(err)
			if e, ok := errors.AsType[*Error](err); ok && v == stop && !sent && e.Reason != "" {
				return err // the answer, though it came as the time ended
			}
			c.nodes.failed(n, write, true)
			if !errors.Is(err, context.Canceled) || len(said) == 0 {
				said.note(n, err)
			}
			return unanswered(ctx, said.gravest(), write, maybe || sent)
		}
		v, sent := judge(err)
		maybe = maybe || sent
		c.observe(n, write, err, v != stop)
		if v == stop {
			return err
		}
		c.nodes.failed(n, write, errors.Is(err, context.DeadlineExceeded))
		said.note(n, err)
		asked++
		next := c.nodes.after(n)
		if leader := c.leader(err); leader != nil && leader != n && !followed {
			next, followed = leader, true
		} else if v == later || asked >= known {
			if !sleep(ctx, wait/2+rand.N(wait/2)) {
				return unanswered(ctx, said.gravest(), write, maybe)
			}
			wait = min(2*wait, longestWait)
			known, asked, followed = c.nodes.count(), 0, false
		}
		n = next
	}
}

// attempt asks n once, if short for not too long, because there are others to ask.
func (c *Client) attempt(ctx context.Context, n *node, short bool, attempt func(context.Context, *node) error) error {
	if short && c.opts.attempt > 0 {
		limit := c.opts.attempt
		if deadline, ok := ctx.Deadline(); ok {
			// Half of what is left, so that another can be asked after it.
			limit = min(limit, max(time.Until(deadline)/2, leastAttempt))
		}
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	return FromStatus(attempt(ctx, n))
}

// leader returns the node that err names as leader, nil if it names none.
func (c *Client) leader(err error) *node {
	if e, ok := errors.AsType[*Error](err); ok && e.err == ErrNotLeader {
		return c.nodes.at(e.Metadata["leader_address"])
	}
	return nil
}

func (c *Client) observe(n *node, write bool, err error, again bool) {
	if c.opts.observe != nil {
		e, ok := errors.AsType[*Error](err)
		c.opts.observe(Attempt{Endpoint: n.endpoint, Write: write, Err: err, Again: again, GivenUp: ok && e.earlier})
	}
}

// sleep waits for d; false if ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// headed is an answer with a header: all are.
type headed interface{ GetHeader() *apiv1.ResponseHeader }

// ask makes a read.
func ask[M headed](ctx context.Context, s *Session, r *read, call func(context.Context, *node, *apiv1.Consistency) (M, error)) (M, Answer, error) {
	ctx, cancel := s.c.deadline(ctx)
	defer cancel()
	var m M
	var a Answer
	err := s.c.try(ctx, reading, func(ctx context.Context, n *node) error {
		consistency := s.refresh(r)
		var err error
		if m, err = call(ctx, n, consistency); err != nil {
			return s.reconsider(r, consistency.GetToken(), FromStatus(err))
		}
		a, err = s.take(m.GetHeader())
		return err
	})
	return m, a, err
}

// reconsider looks whether a read was refused because the cluster began another
// life than the session's token is of: then the token is dropped and the read
// made again. If it is the node that is of an earlier one, another is asked.
func (s *Session) reconsider(r *read, token []byte, err error) error {
	e, ok := s.misplaced(err)
	if !ok || e.earlier || !r.own {
		return err
	}
	e.again = true
	s.forget(token)
	return e
}

// misplaced finds the refusal for another life in err, and whether the node's is an
// earlier one than the client, or the token it sent, has seen.
func (s *Session) misplaced(err error) (*Error, bool) {
	e, ok := errors.AsType[*Error](err)
	if !ok || e.err != ErrWrongIncarnation {
		return nil, false
	}
	token := directory.Incarnation(number(e.Metadata["seen"]))
	highest := s.c.life.see(max(token, e.Incarnation))
	// The same number and refused all the same: another cluster's, such as one that
	// was recovered beside the one that this session has seen. It is not taken for it.
	e.earlier = e.Incarnation < highest || e.Incarnation == token
	return e, true
}

// tell makes a write.
func tell[M headed](ctx context.Context, s *Session, call func(context.Context, *node, *apiv1.RequestId) (M, error)) (M, Answer, error) {
	ctx, cancel := s.c.deadline(ctx)
	defer cancel()
	var m M
	var a Answer
	l, err := s.c.lanes.take(ctx)
	if err != nil {
		return m, a, unanswered(ctx, err, true, false)
	}
	defer s.c.lanes.put(l)
	if err := s.learn(ctx); err != nil {
		return m, a, err
	}
	err = s.c.try(ctx, writing, func(ctx context.Context, n *node) error {
		var err error
		l.id.Incarnation, l.id.Token = uint32(s.c.life.see(0)), s.c.life.token()
		if m, err = call(ctx, n, &l.id); err != nil {
			err = FromStatus(err)
			s.misplaced(err)
			return err
		}
		a, err = s.take(m.GetHeader())
		return err
	})
	return m, a, err
}

// write is tell for the calls that answer with one result.
func write[M interface {
	headed
	GetResult() *apiv1.WriteResult
}](ctx context.Context, s *Session, call func(context.Context, *node, *apiv1.RequestId) (M, error)) (Result, error) {
	m, a, err := tell(ctx, s, call)
	if err != nil {
		return Result{}, err
	}
	r := resultOf(m.GetResult())
	r.Answer = a
	return r, nil
}
