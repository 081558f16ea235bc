package client

import (
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

// seen is the newest state that a session knows of.
type seen struct {
	token       []byte
	revision    directory.Revision
	incarnation directory.Incarnation
}

// NewSession returns a session that has seen what token says: nil for nothing
// yet, or what Session.Token returned, here or in another process.
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
	// Incarnation is the cluster's life; it never goes back within a session.
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
// of the cluster than the session has seen.
func (s *Session) take(h *apiv1.ResponseHeader) (Answer, error) {
	a := Answer{
		Token:       h.GetToken(),
		Revision:    directory.Revision(h.GetRevision()),
		Incarnation: directory.Incarnation(h.GetIncarnation()),
		Age:         millis(h.GetAgeMs()),
		Node:        h.GetNode(),
	}
	var next *seen
	for {
		old := s.seen.Load()
		if old != nil {
			switch {
			case a.Incarnation < old.incarnation:
				return Answer{}, &Error{Reason: "WRONG_INCARNATION", Message: "node " + a.Node + " answers from an earlier life of the cluster", err: ErrWrongIncarnation, earlier: true}
			case a.Incarnation == old.incarnation && a.Revision <= old.revision:
				return a, nil
			}
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
// seen more.
func (s *Session) refresh(r *read) *apiv1.Consistency {
	if !r.own {
		return &r.consistency
	}
	r.consistency.Token = s.Token()
	if len(r.consistency.Token) > 0 || r.consistency.Mode == apiv1.ConsistencyMode_CONSISTENCY_MODE_STALE {
		return &r.consistency
	}
	return &apiv1.Consistency{Mode: apiv1.ConsistencyMode_CONSISTENCY_MODE_LINEARIZABLE}
}
