package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"time"

	"github.com/rookery-mail/rookery/directory"
	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
)

// WatchKind is a kind of things that change.
type WatchKind uint8

// The kinds, numbered as in the API.
const (
	WatchMailbox      WatchKind = 1
	WatchReservation  WatchKind = 2
	WatchSubscription WatchKind = 3
	WatchBackend      WatchKind = 4
	WatchGroup        WatchKind = 5
	WatchHold         WatchKind = 6
	WatchSettings     WatchKind = 7
)

func (k WatchKind) String() string {
	names := [...]string{"", "mailbox", "reservation", "subscription", "backend", "group", "hold", "settings"}
	if k > 0 && int(k) < len(names) {
		return names[k]
	}
	return "unknown"
}

// WatchQuery asks what to be told of. At most one of Prefix, Server and User is set;
// none of them: everything.
type WatchQuery struct {
	// Prefix: mailboxes and reservations whose canonical name begins so.
	Prefix string
	// Server: mailboxes of which it has a fact, and its reservations. It is followed
	// when it is renamed.
	Server directory.BackendName
	// User: the user's own mailboxes, reservations of such names, and subscriptions.
	User directory.UserID
	// Kinds, if there are any: only these. Backends, groups and the holds that may
	// matter come with every filter; routes cannot be known without them.
	Kinds []WatchKind
	// Details: what the facts state too.
	Details bool
	// From is the Token of a mark, of an earlier watch that asked the same: only what
	// changed after it is told. Nil: a listing first.
	From []byte
	// Progress is how long there may be no mark; 0: the server's choice.
	Progress time.Duration
}

// WatchUpdate is some of what a watcher is told.
type WatchUpdate struct {
	// Answer is which node said it and of which revision. Its Token is set at a mark
	// alone: it is where WatchQuery.From can go on.
	Answer
	// Reset: drop all that was learnt before. A listing of what there is begins with
	// this update and ends with the next mark.
	Reset bool
	// Listing: it is part of a listing.
	Listing bool
	// Mark: with this, everything up to Revision has been told, and what is known is
	// exactly that. Between marks some things may be newer than others.
	Mark bool
	// Server is the number of WatchQuery.Server; 0 without one.
	Server directory.ServerID
	// Events, each of another thing, as it is now.
	Events []WatchEvent
}

// WatchEvent is one thing as it is now. The field that Kind names is set.
type WatchEvent struct {
	Kind WatchKind
	// Gone: it is not there any more; of the thing only what names it is set.
	Gone         bool
	Mailbox      *WatchedMailbox
	Reservation  *WatchedReservation
	Subscription *WatchedSubscription
	Backend      *directory.Backend // its Confirmed in this incarnation or not at all; without times
	Group        *directory.Group   // without history
	Hold         *directory.Hold    // without Placed
	Settings     *directory.Settings
}

// WatchedMailbox is what is stored under a name. Its route follows from it and from
// backends, groups and holds: Mirror knows how.
type WatchedMailbox struct {
	// Mailbox has name, home, and facts by server id; of the facts, without Details,
	// standing, state and revisions. A fact's Incarnation is the cluster's if it is
	// confirmed, else an earlier one.
	directory.Mailbox
	// The route when the event was made, right until a backend, group or hold changes:
	// the server chosen and the one that listing and rights come from, 0 for none.
	Outcome    directory.Outcome
	Server     directory.ServerID
	ListedFrom directory.ServerID
	// Of one that is gone, if it is remembered: the name it was given, or who
	// retracted it.
	NewName     directory.MailboxName
	RetractedBy directory.ServerID
}

// WatchedReservation is a claim to a name.
type WatchedReservation struct {
	Mailbox   directory.MailboxName
	Server    directory.ServerID
	Partition string
}

// WatchedSubscription is one user's to one mailbox.
type WatchedSubscription struct {
	User    directory.UserID
	Mailbox directory.MailboxName
}

// Watch yields what there is and then what changes, until ctx ends or the consumer
// leaves. It goes on by itself: after a break, on whichever node answers, from the
// last mark, without a gap and never back; when the change log no longer reaches to
// that mark, or the cluster began another life, from a new listing, which Reset
// announces. Each event says what a thing is now; several changes of it may be one
// event. Whoever takes long to consume gets them coalesced.
//
// The error it ends with comes last: the context's, or one that asking again does not
// help: directory.ErrNotFound (the server), ErrInvalidName, ErrInvalid, ErrRole;
// ErrInvalidToken; ErrClosed.
func (s *Session) Watch(ctx context.Context, q WatchQuery, opts ...ReadOption) iter.Seq2[WatchUpdate, error] {
	return func(yield func(WatchUpdate, error) bool) {
		w := &watching{s: s, q: q, read: s.read(opts), from: q.From, yield: yield}
		if err := w.run(ctx); err != nil {
			yield(WatchUpdate{}, err)
		}
	}
}

// watching is one Watch and what it has to remember between its attempts.
type watching struct {
	s     *Session
	q     WatchQuery
	read  *read
	yield func(WatchUpdate, error) bool

	from    []byte // where to go on; nil: with a listing
	server  uint32 // the number of q.Server, once it is known
	stopped bool   // the consumer left
	silent  *node  // who said nothing for too long
}

// Who says nothing for so many times the time of a mark, and for so long, has gone.
const (
	silentMarks     = 3
	silentLeast     = 10 * time.Second // a node with much to do is slow, not gone
	defaultProgress = 5 * time.Second  // the server's
)

// run makes attempts; nil when the consumer left.
func (w *watching) run(ctx context.Context) error {
	for {
		err := w.s.c.try(ctx, streaming, w.attempt)
		if w.stopped {
			return nil
		}
		if err != nil {
			return err
		}
		if w.silent != nil {
			w.s.c.nodes.failed(w.silent, false, true)
			w.silent = nil
		}
		// All who watched a node that ended come back at once.
		if !sleep(ctx, firstWait/2+rand.N(4*firstWait)) {
			return unanswered(ctx, nil, false, false)
		}
	}
}

func (w *watching) request(c *apiv1.Consistency) *apiv1.WatchRequest {
	req := &apiv1.WatchRequest{
		Consistency: c,
		From:        w.from,
		Details:     w.q.Details,
		ProgressMs:  uint32(w.q.Progress.Milliseconds()),
		Encoded:     true,
	}
	for _, k := range w.q.Kinds {
		req.Kinds = append(req.Kinds, apiv1.WatchKind(k))
	}
	switch {
	case w.q.Server != "":
		req.Filter = &apiv1.WatchRequest_Server{Server: string(w.q.Server)}
		req.ServerId = w.server
	case w.q.User != "":
		req.Filter = &apiv1.WatchRequest_User{User: string(w.q.User)}
	case w.q.Prefix != "":
		req.Filter = &apiv1.WatchRequest_Prefix{Prefix: w.q.Prefix}
	}
	return req
}

// attempt watches on one node until that ends. It returns nil when there is reason to
// go on at once: something was told, or it is known how to ask better.
func (w *watching) attempt(ctx context.Context, n *node) error {
	if set := boolCount(w.q.Prefix != "", w.q.Server != "", w.q.User != ""); set > 1 {
		return fmt.Errorf("%w: a watch by more than one of prefix, server and user", directory.ErrInvalid)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	limit := w.q.Progress
	if limit <= 0 {
		limit = defaultProgress
	}
	limit = max(silentMarks*limit, silentLeast)
	silence := time.AfterFunc(limit, func() { cancel(errSilent) })
	defer silence.Stop()

	consistency := w.s.refresh(w.read)
	told := false
	stream, err := n.directory.Watch(ctx, w.request(consistency))
	var m *apiv1.WatchResponse
	for err == nil {
		if m, err = stream.Recv(); err != nil {
			break
		}
		silence.Stop()
		var more bool
		if more, err = w.take(m, !told); !more && err == nil {
			w.stopped = true
			return nil
		}
		told = told || err == nil
		silence.Reset(limit)
	}
	if errors.Is(context.Cause(ctx), errSilent) {
		w.silent = n
		if told {
			return nil
		}
		return &Error{Message: "client: node " + n.endpoint + " has nothing to say, not even that", err: ErrUnavailable}
	}
	if err == io.EOF { // no server ends a watch without saying why
		err = &Error{Message: "client: the watch broke off", err: ErrUnavailable}
	}
	return w.weigh(w.s.reconsider(w.read, consistency.GetToken(), FromStatus(err)), told)
}

var errSilent = errors.New("client: the node is silent")

func boolCount(set ...bool) (n int) {
	for _, b := range set {
		if b {
			n++
		}
	}
	return n
}

// weigh says what an attempt that ended with err comes to. told: something was told
// before.
func (w *watching) weigh(err error, told bool) error {
	e, ok := errors.AsType[*Error](err)
	if !ok {
		return err
	}
	switch {
	case e.err == ErrCompacted:
		w.from = nil
		return nil
	case e.err == ErrWrongIncarnation && e.again && !e.earlier:
		w.from = nil
	case e.err == ErrSlowWatcher:
		return nil
	}
	if v, _ := judge(err); v != stop && told {
		return nil
	}
	return err
}

// take hands what a message says to the consumer, who answers whether to go on.
func (w *watching) take(m *apiv1.WatchResponse, first bool) (bool, error) {
	a, err := w.s.take(m.GetHeader())
	if err != nil {
		return true, err
	}
	if id := m.GetServerId(); id != 0 {
		w.server = id
	}
	u := WatchUpdate{
		Answer:  a,
		Reset:   first && w.from == nil,
		Listing: m.GetListing(),
		Mark:    m.GetMark(),
		Server:  directory.ServerID(w.server),
	}
	if u.Events, err = watchEventsOf(m, a.Incarnation); err != nil {
		return true, err
	}
	if u.Mark {
		w.from = u.Token
	} else {
		u.Token = nil
	}
	return w.yield(u, nil), nil
}

func watchEventOf(e *apiv1.WatchEvent, now directory.Incarnation) WatchEvent {
	out := WatchEvent{Gone: e.GetGone()}
	switch t := e.GetThing().(type) {
	case *apiv1.WatchEvent_Mailbox:
		out.Kind, out.Mailbox = WatchMailbox, watchedMailboxOf(t.Mailbox, now)
	case *apiv1.WatchEvent_Reservation:
		m := t.Reservation
		out.Kind = WatchReservation
		out.Reservation = &WatchedReservation{Mailbox: directory.MailboxName(m.GetMailbox()), Server: directory.ServerID(m.GetServer()), Partition: m.GetPartition()}
	case *apiv1.WatchEvent_Subscription:
		m := t.Subscription
		out.Kind = WatchSubscription
		out.Subscription = &WatchedSubscription{User: directory.UserID(m.GetUser()), Mailbox: directory.MailboxName(m.GetMailbox())}
	case *apiv1.WatchEvent_Backend:
		m := t.Backend
		b := &directory.Backend{
			ID:                directory.ServerID(m.GetId()),
			Name:              directory.BackendName(m.GetName()),
			Group:             directory.GroupID(m.GetGroup()),
			Addresses:         addressesOf(m.GetAddresses()),
			Weight:            m.GetWeight(),
			Admitted:          m.GetAdmitted(),
			State:             directory.BackendState(m.GetState()),
			DrainApproved:     m.GetDrainApproved(),
			Confirmed:         directory.ConfirmedBy(m.GetConfirmedBy()),
			ConfirmedIn:       incarnationOf(m.GetConfirmed(), now),
			ConfirmedRevision: directory.Revision(m.GetConfirmedRevision()),
		}
		out.Kind, out.Backend = WatchBackend, b
	case *apiv1.WatchEvent_Group:
		m := t.Group
		g := &directory.Group{
			ID:         directory.GroupID(m.GetId()),
			Name:       directory.GroupName(m.GetName()),
			Primary:    directory.ServerID(m.GetPrimary()),
			Epoch:      m.GetEpoch(),
			Mode:       directory.GroupMode(m.GetMode()),
			Own:        m.GetOwn(),
			MergedInto: directory.GroupID(m.GetMergedInto()),
		}
		for _, s := range m.GetMembers() {
			g.Members = append(g.Members, directory.ServerID(s))
		}
		out.Kind, out.Group = WatchGroup, g
	case *apiv1.WatchEvent_Hold:
		m := t.Hold
		out.Kind = WatchHold
		out.Hold = &directory.Hold{Kind: directory.HoldKind(m.GetKind()), Key: m.GetKey(), Until: directory.Time(m.GetUntilMs()), Why: m.GetWhy(), By: m.GetBy()}
	case *apiv1.WatchEvent_Settings:
		out.Kind, out.Settings = WatchSettings, new(settingsOf(t.Settings))
	}
	return out
}

// incarnationOf is the present one for what is confirmed in it, else another.
func incarnationOf(confirmed bool, now directory.Incarnation) directory.Incarnation {
	if confirmed {
		return now
	}
	return now - 1
}

func watchedMailboxOf(m *apiv1.WatchedMailbox, now directory.Incarnation) *WatchedMailbox {
	out := &WatchedMailbox{
		Outcome:     directory.Outcome(m.GetOutcome()),
		Server:      directory.ServerID(m.GetServer()),
		ListedFrom:  directory.ServerID(m.GetListedFrom()),
		NewName:     directory.MailboxName(m.GetNewName()),
		RetractedBy: directory.ServerID(m.GetRetractedBy()),
	}
	out.Name = directory.MailboxName(m.GetMailbox())
	out.Home = directory.GroupID(m.GetHome())
	out.Forked, out.Listed = m.GetForked(), m.GetListedFrom() != 0
	if facts := m.GetFacts(); len(facts) > 0 {
		out.Facts = make([]directory.Fact, len(facts))
		for i, f := range facts {
			out.Facts[i] = directory.Fact{
				Server:      directory.ServerID(f.GetServer()),
				Partition:   f.GetPartition(),
				ACL:         f.GetAcl(),
				MailboxID:   f.GetMailboxId(),
				UIDValidity: f.GetUidValidity(),
				Type:        typeOf(f.GetType()),
				SpecialUse:  f.GetSpecialUse(),
				State:       directory.FactState(f.GetState()),
				Standing:    directory.Standing(f.GetStanding() - 1),
				First:       directory.Revision(f.GetFirstRevision()),
				Last:        directory.Revision(f.GetLastRevision()),
				Incarnation: incarnationOf(f.GetConfirmed(), now),
			}
		}
	}
	return out
}
