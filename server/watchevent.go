package server

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/directory/machine"
	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
)

// thing is what an event is about. Two events of the same thing are equal here.
type thing struct {
	kind apiv1.WatchKind
	name directory.MailboxName // of a mailbox, reservation or subscription
	key  string                // the user of a subscription; of a hold, what it is on
	id   uint32                // of a backend or group; the kind of a hold
}

// thingOf says what a row of the change log is about.
func thingOf(c *directory.Change) (thing, error) {
	switch c.Kind {
	case directory.ChangeMailbox, directory.ChangeMoved:
		return thing{kind: apiv1.WatchKind_WATCH_KIND_MAILBOX, name: c.Name}, nil
	case directory.ChangeReservation:
		return thing{kind: apiv1.WatchKind_WATCH_KIND_RESERVATION, name: c.Name}, nil
	case directory.ChangeSubscription:
		return thing{kind: apiv1.WatchKind_WATCH_KIND_SUBSCRIPTION, name: c.Name, key: c.Key}, nil
	case directory.ChangeBackend:
		return thing{kind: apiv1.WatchKind_WATCH_KIND_BACKEND, id: uint32(c.Server)}, nil
	case directory.ChangeGroup:
		return thing{kind: apiv1.WatchKind_WATCH_KIND_GROUP, id: uint32(c.To)}, nil
	case directory.ChangeHold:
		kind, key, err := machine.HoldOf(c.Key)
		return thing{kind: apiv1.WatchKind_WATCH_KIND_HOLD, key: key, id: uint32(kind)}, err
	case directory.ChangeSettings:
		return thing{kind: apiv1.WatchKind_WATCH_KIND_SETTINGS}, nil
	}
	return thing{}, fmt.Errorf("%w: a change of kind %d", machine.ErrFormat, c.Kind)
}

// watchEvent is an event as it is sent: made once, shared by all that get it, and
// never changed after the pass that made it.
type watchEvent struct {
	thing
	// plain and detailed are a field WatchResponse.events, tag and length included;
	// nil until somebody wants it so.
	plain, detailed []byte
}

// body is the event as a filter wants it.
func (e *watchEvent) body(details bool) []byte {
	if details && e.kind == apiv1.WatchKind_WATCH_KIND_MAILBOX {
		return e.detailed
	}
	return e.plain
}

// seenThing is a thing as one view has it, its event made when it is asked for.
type seenThing struct {
	event  watchEvent
	sight  *machine.Sight
	answer *machine.Answer // of a mailbox, once it was looked up
}

// mailbox looks the mailbox up.
func (t *seenThing) mailbox() (*machine.Answer, error) {
	if t.answer == nil {
		a, err := t.sight.Lookup(t.event.name)
		if err != nil {
			return nil, err
		}
		t.answer = &a
	}
	return t.answer, nil
}

// as returns the event, encoded as wanted.
func (t *seenThing) as(details bool) (*watchEvent, error) {
	e := &t.event
	if e.body(details) != nil {
		return e, nil
	}
	if e.kind == apiv1.WatchKind_WATCH_KIND_MAILBOX {
		a, err := t.mailbox()
		if err != nil {
			return nil, err
		}
		body := appendMailboxEvent(nil, a, details)
		if details {
			e.detailed = body
		} else {
			e.plain = body
		}
		return e, nil
	}
	m, err := t.message()
	if err != nil {
		return nil, err
	}
	e.plain, err = encodeEvent(m)
	return e, err
}

const fieldEvents protowire.Number = 2 // WatchResponse.events

func encodeEvent(m *apiv1.WatchEvent) ([]byte, error) {
	size := proto.Size(m)
	b := make([]byte, 0, size+protowire.SizeTag(fieldEvents)+protowire.SizeVarint(uint64(size)))
	b = protowire.AppendTag(b, fieldEvents, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(size))
	return proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(b, m)
}

// message says what a thing that is no mailbox is now.
func (t *seenThing) message() (*apiv1.WatchEvent, error) {
	e, v := &t.event, t.sight
	switch e.kind {
	case apiv1.WatchKind_WATCH_KIND_RESERVATION:
		m := &apiv1.WatchedReservation{Mailbox: string(e.name)}
		res, err := v.Reservation(e.name)
		if err != nil {
			return nil, err
		}
		if res != nil {
			m.Server, m.Partition = uint32(res.Server), res.Partition
		}
		return &apiv1.WatchEvent{Gone: res == nil, Thing: &apiv1.WatchEvent_Reservation{Reservation: m}}, nil
	case apiv1.WatchKind_WATCH_KIND_SUBSCRIPTION:
		m := &apiv1.WatchedSubscription{User: e.key, Mailbox: string(e.name)}
		there := v.Subscribed(directory.UserID(e.key), e.name)
		return &apiv1.WatchEvent{Gone: !there, Thing: &apiv1.WatchEvent_Subscription{Subscription: m}}, nil
	case apiv1.WatchKind_WATCH_KIND_BACKEND:
		b := v.Backend(directory.ServerID(e.id))
		if b == nil {
			return nil, fmt.Errorf("%w: backend %d is in the change log and nowhere else", machine.ErrCorrupt, e.id)
		}
		return &apiv1.WatchEvent{Thing: &apiv1.WatchEvent_Backend{Backend: watchedBackend(b, v)}}, nil
	case apiv1.WatchKind_WATCH_KIND_GROUP:
		g := v.Group(directory.GroupID(e.id))
		if g == nil {
			return nil, fmt.Errorf("%w: group %d is in the change log and nowhere else", machine.ErrCorrupt, e.id)
		}
		return &apiv1.WatchEvent{Thing: &apiv1.WatchEvent_Group{Group: watchedGroup(g)}}, nil
	case apiv1.WatchKind_WATCH_KIND_HOLD:
		m := &apiv1.WatchedHold{Kind: apiv1.HoldKind(e.id), Key: e.key}
		h := v.Hold(directory.HoldKind(e.id), e.key)
		if h != nil {
			m.UntilMs, m.RemainingMs, m.Why, m.By = uint64(h.Until), uint64(since(h.Until, v.Now())), h.Why, h.By
		}
		return &apiv1.WatchEvent{Gone: h == nil, Thing: &apiv1.WatchEvent_Hold{Hold: m}}, nil
	}
	return &apiv1.WatchEvent{Thing: &apiv1.WatchEvent_Settings{Settings: settingsTo(v.Settings())}}, nil
}

// appendMailboxEvent appends a field WatchResponse.events that says what a mailbox is
// now. A listing has millions of them, so they are written octet by octet: as messages
// of their own first they took three times as long. Fields are in the order of their
// numbers, and none is written that is nothing.
func appendMailboxEvent(b []byte, a *machine.Answer, details bool) []byte {
	return appendNested(b, fieldEvents, func(b []byte) []byte {
		if a.Mailbox == nil {
			b = appendUint(b, 1, 1) // WatchEvent.gone
		}
		return appendNested(b, 2, func(b []byte) []byte { return appendWatchedMailbox(b, a, details) }) // WatchEvent.mailbox
	})
}

// appendWatchedMailbox appends the fields of a WatchedMailbox.
func appendWatchedMailbox(b []byte, a *machine.Answer, details bool) []byte {
	b = appendText(b, 1, string(a.Name))
	if a.Mailbox == nil {
		if t := a.Tombstone; t != nil {
			b = appendText(b, 8, string(t.NewName))
			b = appendUint(b, 9, uint64(t.Server))
		}
		return b
	}
	b = appendUint(b, 2, uint64(a.Mailbox.Home))
	for i := range a.Mailbox.Facts {
		f := &a.Mailbox.Facts[i]
		b = appendNested(b, 3, func(b []byte) []byte { return appendWatchedFact(b, f, a.Confirmed(f), details) })
	}
	outcome := apiv1.Outcome(a.Outcome)
	if a.Outcome == directory.NotFound {
		// Said of the world only when the world was asked.
		outcome = apiv1.Outcome_OUTCOME_UNCONFIRMED
	}
	b = appendUint(b, 4, uint64(outcome))
	b = appendUint(b, 5, uint64(a.Route.Server))
	if f := a.Route.Fact; f != nil {
		b = appendUint(b, 6, uint64(f.Server))
	}
	return appendBool(b, 7, a.Route.Forked)
}

// appendWatchedFact appends the fields of a WatchedFact.
func appendWatchedFact(b []byte, f *directory.Fact, confirmed, details bool) []byte {
	b = appendUint(b, 1, uint64(f.Server))
	b = appendUint(b, 2, uint64(f.State))
	b = appendUint(b, 3, uint64(apiv1.Standing(f.Standing)+apiv1.Standing_STANDING_IN_FORCE))
	b = appendUint(b, 4, uint64(f.First))
	b = appendUint(b, 5, uint64(f.Last))
	b = appendBool(b, 6, confirmed)
	if details {
		b = appendText(b, 7, f.Partition)
		b = appendText(b, 8, f.ACL)
		b = appendText(b, 9, f.MailboxID)
		b = appendUint(b, 10, uint64(f.UIDValidity))
		b = appendUint(b, 11, uint64(typeTo(f.Type)))
		b = appendText(b, 12, f.SpecialUse)
	}
	return b
}

// appendNested appends a message as a field, its fields appended by write.
func appendNested(b []byte, field protowire.Number, write func([]byte) []byte) []byte {
	b = protowire.AppendTag(b, field, protowire.BytesType)
	at := len(b)
	b = write(append(b, 0)) // room for a length of one octet, as most have
	n := len(b) - at - 1
	if more := protowire.SizeVarint(uint64(n)) - 1; more > 0 {
		b = append(b, make([]byte, more)...)
		copy(b[at+1+more:], b[at+1:at+1+n])
	}
	protowire.AppendVarint(b[:at], uint64(n))
	return b
}

func appendUint(b []byte, field protowire.Number, n uint64) []byte {
	if n == 0 {
		return b
	}
	return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.VarintType), n)
}

func appendBool(b []byte, field protowire.Number, is bool) []byte {
	return appendUint(b, field, protowire.EncodeBool(is))
}

func appendText(b []byte, field protowire.Number, text string) []byte {
	if text == "" {
		return b
	}
	return protowire.AppendString(protowire.AppendTag(b, field, protowire.BytesType), text)
}

func watchedBackend(b *directory.Backend, v *machine.Sight) *apiv1.WatchedBackend {
	return &apiv1.WatchedBackend{
		Id:                uint32(b.ID),
		Name:              string(b.Name),
		Group:             uint32(b.Group),
		Addresses:         addressesTo(b.Addresses),
		Weight:            b.Weight,
		Admitted:          b.Admitted,
		State:             apiv1.BackendState(b.State),
		DrainApproved:     b.DrainApproved,
		ConfirmedBy:       apiv1.ConfirmedBy(b.Confirmed),
		Confirmed:         v.Confirmed(b),
		ConfirmedRevision: uint64(b.ConfirmedRevision),
	}
}

func watchedGroup(g *directory.Group) *apiv1.WatchedGroup {
	m := &apiv1.WatchedGroup{
		Id:         uint32(g.ID),
		Name:       string(g.Name),
		Primary:    uint32(g.Primary),
		Epoch:      g.Epoch,
		Mode:       apiv1.GroupMode(g.Mode),
		Own:        g.Own,
		MergedInto: uint32(g.MergedInto),
	}
	for _, s := range g.Members {
		m.Members = append(m.Members, uint32(s))
	}
	return m
}

// watchBy is which of its fields a filter goes by.
type watchBy uint8

const (
	byNothing watchBy = iota
	byPrefix
	byServer
	byUser
)

// watchFilter is what a watcher is told of, and how. Watchers whose filters are
// equal are told the same.
type watchFilter struct {
	by      watchBy
	prefix  string
	server  directory.ServerID
	user    directory.UserID
	kinds   uint16 // 1<<kind for each
	details bool
}

func (f *watchFilter) wants(kind apiv1.WatchKind) bool { return f.kinds&(1<<kind) != 0 }

// covers reports whether a change of t is to be told. servers are those it was
// about: of a mailbox, machine.Touches; of a reservation, who has it and who had.
func (f *watchFilter) covers(t *thing, servers []directory.ServerID) bool {
	if !f.wants(t.kind) {
		return false
	}
	switch t.kind {
	case apiv1.WatchKind_WATCH_KIND_MAILBOX, apiv1.WatchKind_WATCH_KIND_RESERVATION:
		switch f.by {
		case byPrefix:
			return strings.HasPrefix(string(t.name), f.prefix)
		case byServer:
			return slices.Contains(servers, f.server)
		case byUser:
			owner, ok := t.name.Owner()
			return ok && owner == f.user
		}
	case apiv1.WatchKind_WATCH_KIND_SUBSCRIPTION:
		return f.by == byNothing || f.by == byUser && t.key == string(f.user)
	case apiv1.WatchKind_WATCH_KIND_HOLD:
		return f.coversHold(directory.HoldKind(t.id), t.key)
	}
	return true
}

// coversHold reports whether a hold may cover a mailbox that the filter covers.
func (f *watchFilter) coversHold(kind directory.HoldKind, key string) bool {
	if f.by != byPrefix && f.by != byUser {
		return true
	}
	var top directory.MailboxName // it covers this and all below
	switch kind {
	case directory.HoldUser:
		if f.by == byUser {
			return key == string(f.user)
		}
		inbox, err := directory.UserID(key).Inbox()
		if err != nil {
			return true // not to be found out here: too much rather than too little
		}
		top = inbox
	case directory.HoldMailbox:
		top = directory.MailboxName(key)
	default:
		return true
	}
	if f.by == byPrefix {
		rest, begins := strings.CutPrefix(f.prefix, string(top))
		return strings.HasPrefix(string(top), f.prefix) || begins && rest[0] == '.'
	}
	if owner, ok := top.Owner(); ok {
		return owner == f.user
	}
	inbox, err := f.user.Inbox()
	return err != nil || inbox.IsBelow(top)
}

// watchBatch is what one pass over the change log has for the watchers of one
// filter, or what several have, each thing once.
type watchBatch struct {
	events   []*watchEvent
	details  bool
	revision directory.Revision // each event is the thing's state then
	at       time.Time          // when the oldest of it was found
	octets   int                // about what it takes in memory
	message  int                // octets of events in one message
	users    atomic.Int32       // watchers that have yet to send it

	once    sync.Once
	encoded [][]byte // see messages
}

// messages returns the events as fields of one message after the other: joined
// once for all that send them.
func (b *watchBatch) messages() [][]byte {
	b.once.Do(func() { b.encoded = pack(b.events, b.details, b.message) })
	return b.encoded
}

// eventCost is about what an event takes besides its octets.
const eventCost = 64

func newBatch(events []*watchEvent, details bool, revision directory.Revision, at time.Time, message int) *watchBatch {
	b := &watchBatch{message: message, events: events, details: details, revision: revision, at: at}
	for _, e := range events {
		b.octets += eventCost + 2*len(e.body(details)) // once more in messages
	}
	return b
}

// pack joins events to as few messages as may be, each of one event or of no more than
// so many octets.
func pack(events []*watchEvent, details bool, message int) [][]byte {
	var out [][]byte
	for len(events) > 0 {
		n, octets := 1, len(events[0].body(details))
		for n < len(events) && octets+len(events[n].body(details)) <= message {
			octets += len(events[n].body(details))
			n++
		}
		if n == 1 {
			out = append(out, events[0].body(details))
		} else {
			b := make([]byte, 0, octets)
			for _, e := range events[:n] {
				b = append(b, e.body(details)...)
			}
			out = append(out, b)
		}
		events = events[n:]
	}
	return out
}

// coalesce makes one batch of several, each thing once, as it was last.
func coalesce(batches []*watchBatch) (b *watchBatch, dropped int) {
	total := 0
	for _, b := range batches {
		total += len(b.events)
	}
	known := make(map[thing]struct{}, total)
	events := make([]*watchEvent, 0, total)
	for _, b := range slices.Backward(batches) {
		for _, e := range slices.Backward(b.events) {
			if _, ok := known[e.thing]; ok {
				continue
			}
			known[e.thing] = struct{}{}
			events = append(events, e)
		}
	}
	slices.Reverse(events)
	last := batches[len(batches)-1]
	return newBatch(slices.Clone(events), last.details, last.revision, batches[0].at, last.message), total - len(events)
}
