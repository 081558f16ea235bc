package client

import (
	"context"
	"sync/atomic"
	"time"

	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"

	"github.com/rookery-mail/rookery/directory"
)

// Session is one line of calls that never sees the directory go back: what one
// of its calls saw or did, the later ones see. It may be used by many goroutines
// at once. All the calls of the API are its methods.
type Session struct {
	c    *Client
	seen atomic.Pointer[seen]
}

// life is the highest incarnation of the cluster that is known. What an earlier one
// says is not believed, and it is told nothing: it is a node of those that were given
// up when the cluster was restored.
//
// It keeps the token that came first in it, too, for the sessions that have none of
// their own yet: by that a node of another cluster knows that it is not meant. An
// address may be one of such a node by mistake, or become one when a node is founded
// anew, and what that knows nothing of is not absent.
type life struct {
	highest atomic.Uint32
	first   atomic.Pointer[seen]
}

// see notes an incarnation and returns the highest.
func (l *life) see(n directory.Incarnation) directory.Incarnation {
	for {
		known := l.highest.Load()
		if uint32(n) <= known {
			return directory.Incarnation(known)
		}
		if l.highest.CompareAndSwap(known, uint32(n)) {
			return n
		}
	}
}

// keep notes the first token of an incarnation.
func (l *life) keep(a Answer) {
	for {
		first := l.first.Load()
		if len(a.Token) == 0 || first != nil && first.incarnation >= a.Incarnation {
			return
		}
		if l.first.CompareAndSwap(first, &seen{token: a.Token, incarnation: a.Incarnation}) {
			return
		}
	}
}

// token is any of the highest incarnation; nil if none is known.
func (l *life) token() []byte {
	if first := l.first.Load(); first != nil && uint32(first.incarnation) == l.highest.Load() {
		return first.token
	}
	return nil
}

// seen is the newest state that a session knows of.
type seen struct {
	token       []byte
	revision    directory.Revision
	incarnation directory.Incarnation // 0: of a token that was given, whose life is not known here
}

// NewSession returns a session that has seen what token says: nil for nothing
// yet, or what Session.Token returned, here or in another process. If the cluster
// was restored since, the token is dropped; if a node of before is asked, it is not
// believed.
func (c *Client) NewSession(token []byte) *Session {
	s := &Session{c: c}
	if len(token) > 0 {
		s.seen.Store(&seen{token: token})
	}
	return s
}

// Token returns the newest token the session has seen; nil if none. It must not
// be changed.
func (s *Session) Token() []byte {
	if seen := s.seen.Load(); seen != nil {
		return seen.token
	}
	return nil
}

// Answer is what every answer says about itself.
type Answer struct {
	// Token stands for the state answered from; a Session keeps the newest by itself.
	Token []byte
	// Revision of that state; of a write: its own.
	Revision directory.Revision
	// Incarnation is the cluster's life; it never goes back within a Client.
	Incarnation directory.Incarnation
	// Age bounds how old the answer may be; 0 if it was linearizable, AgeUnknown if
	// nobody knows.
	Age time.Duration
	// Node answered.
	Node string
}

// AgeUnknown is the age of what a node answers that was started without a
// majority.
const AgeUnknown time.Duration = -1

// take notes what an answer's header says, and refuses one from an earlier life
// of the cluster than the client has seen.
func (s *Session) take(h *apiv1.ResponseHeader) (Answer, error) {
	a := Answer{
		Token:       h.GetToken(),
		Revision:    directory.Revision(h.GetRevision()),
		Incarnation: directory.Incarnation(h.GetIncarnation()),
		Age:         millis(h.GetAgeMs()),
		Node:        h.GetNode(),
	}
	if a.Incarnation < s.c.life.see(a.Incarnation) {
		return Answer{}, &Error{Reason: "WRONG_INCARNATION", Message: "node " + a.Node + " answers from an earlier life of the cluster", err: ErrWrongIncarnation, earlier: true, done: true}
	}
	s.c.life.keep(a)
	var next *seen
	for {
		old := s.seen.Load()
		if old != nil && (a.Incarnation < old.incarnation || a.Incarnation == old.incarnation && a.Revision <= old.revision) {
			return a, nil // another call of the session was quicker
		}
		if next == nil {
			next = &seen{token: a.Token, revision: a.Revision, incarnation: a.Incarnation}
		}
		if s.seen.CompareAndSwap(old, next) {
			return a, nil
		}
	}
}

// forget drops the token after the cluster began another life, keeping the
// incarnation so that no earlier one is believed.
func (s *Session) forget(token []byte) {
	old := s.seen.Load()
	if old != nil && string(old.token) == string(token) {
		s.seen.CompareAndSwap(old, &seen{incarnation: old.incarnation})
	}
}

// ReadOption says how fresh the answer to one read must be, or how full. The
// zero value changes nothing.
type ReadOption struct {
	mode    apiv1.ConsistencyMode
	token   []byte
	maxAge  time.Duration
	details bool
}

// AtLeast asks for an answer that sees at least what token saw.
func AtLeast(token []byte) ReadOption {
	return ReadOption{mode: apiv1.ConsistencyMode_CONSISTENCY_MODE_AT_LEAST, token: token}
}

// Linearizable asks for an answer that sees everything that was acknowledged
// before the call. It needs a majority.
func Linearizable() ReadOption {
	return ReadOption{mode: apiv1.ConsistencyMode_CONSISTENCY_MODE_LINEARIZABLE}
}

// Stale takes what a node has, also without a majority, if it is not older than
// maxAge; 0 for any age.
func Stale(maxAge time.Duration) ReadOption {
	return ReadOption{mode: apiv1.ConsistencyMode_CONSISTENCY_MODE_STALE, maxAge: maxAge}
}

// MaxAge bounds the age of an answer.
func MaxAge(d time.Duration) ReadOption { return ReadOption{maxAge: d} }

// Details asks a lookup for all facts, not only for what routing needs.
func Details() ReadOption { return ReadOption{details: true} }

// read is what the options of one read come to.
type read struct {
	consistency apiv1.Consistency
	details     bool
	own         bool // the token is the session's, not the caller's
}

func (s *Session) read(opts []ReadOption) *read {
	r := &read{own: true}
	for _, o := range opts {
		if o.mode != 0 {
			r.consistency.Mode = o.mode
		}
		if o.token != nil {
			r.consistency.Token, r.own = o.token, false
		}
		if o.maxAge != 0 {
			r.consistency.MaxAgeMs = uint64(max(1, o.maxAge.Milliseconds()))
		}
		r.details = r.details || o.details
	}
	if r.consistency.MaxAgeMs == 0 && r.consistency.Mode != apiv1.ConsistencyMode_CONSISTENCY_MODE_STALE && s.c.opts.maxAge > 0 {
		r.consistency.MaxAgeMs = uint64(max(1, s.c.opts.maxAge.Milliseconds()))
	}
	return r
}

// refresh puts the session's newest token in before an attempt. A session that
// has seen nothing reads linearizably: an earlier one on this host may have
// seen more. It sends another session's, so that no other cluster answers.
func (s *Session) refresh(r *read) *apiv1.Consistency {
	if !r.own {
		return &r.consistency
	}
	r.consistency.Token = s.Token()
	if len(r.consistency.Token) > 0 {
		return &r.consistency
	}
	r.consistency.Token = s.c.life.token()
	if r.consistency.Mode == apiv1.ConsistencyMode_CONSISTENCY_MODE_STALE {
		return &r.consistency
	}
	return &apiv1.Consistency{Mode: apiv1.ConsistencyMode_CONSISTENCY_MODE_LINEARIZABLE, Token: r.consistency.Token}
}

// learn finds out of which life a token is that was given, before anything is
// written: a node of an earlier life must not be told.
func (s *Session) learn(ctx context.Context) error {
	seen := s.seen.Load()
	if seen == nil || seen.incarnation != 0 || len(seen.token) == 0 {
		return nil
	}
	_, err := s.Status(ctx, Stale(0))
	return err
}
