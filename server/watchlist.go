package server

import (
	"fmt"
	"time"

	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/directory/machine"
	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
)

// A listing is told in pieces, each from a view of its own that is released before
// the piece is sent, so later pieces are of later revisions. What changed meanwhile
// is in the watcher's queue: told after the last piece and before the mark that ends
// the listing, it makes all of it exact at the mark. Of the queue, what a later piece
// will tell anyway is left out, so that a long listing on a busy node needs no more
// room than a short one.

// listPlace is how far a listing has come.
type listPlace struct {
	stage listStage
	// The last one told, of stages that have names.
	name directory.MailboxName
	user directory.UserID
	some bool // one was told in this stage
}

type listStage uint8

const (
	listTopology listStage = iota // settings, backends, groups and holds, in one piece
	listReservations
	listInbox // a user's, which is no prefix of what is below it alone
	listMailboxes
	listSubscriptions
	listEnd
)

// stageOf is the stage that tells of a kind.
func stageOf(kind apiv1.WatchKind) listStage {
	switch kind {
	case apiv1.WatchKind_WATCH_KIND_RESERVATION:
		return listReservations
	case apiv1.WatchKind_WATCH_KIND_MAILBOX:
		return listMailboxes
	case apiv1.WatchKind_WATCH_KIND_SUBSCRIPTION:
		return listSubscriptions
	}
	return listTopology
}

// told reports whether the listing has passed what e is about: if it has, a change of
// it must be told; if not, the listing will tell it as it is then.
func (p *listPlace) told(e *watchEvent) bool {
	stage := stageOf(e.kind)
	if stage == listMailboxes && p.stage == listInbox {
		return false
	}
	if stage != p.stage {
		return stage < p.stage
	}
	switch {
	case !p.some:
		return false
	case stage == listSubscriptions:
		return machine.CompareSubscriptions(machine.Subscription{User: directory.UserID(e.key), Name: e.name}, machine.Subscription{User: p.user, Name: p.name}) <= 0
	}
	return directory.CompareNames(e.name, p.name) <= 0
}

func (p *listPlace) next() { *p = listPlace{stage: p.stage + 1} }

// list tells all that the filter covers, and marks the end of it.
func (ws *watchStream) list() error {
	ws.listing = true
	ctx := ws.stream.Context()
	for place := (listPlace{}); place.stage != listEnd; {
		events, revision, age, err := ws.piece(&place)
		if err != nil {
			return err
		}
		if err := ws.sendAll(events, revision, age); err != nil {
			return err
		}
		ws.told = max(ws.told, revision)
		waits, err := ws.w.waiting()
		if err != nil {
			return err
		}
		if waits < ws.h.limits.listing {
			continue
		}
		if err := ws.h.reach(ctx, ws.w, ws.told); err != nil {
			return err
		}
		upTo, err := ws.h.take(ws.w, ws.told)
		if err != nil {
			return err
		}
		ws.h.keep(ws.w, place.told)
		if err := ws.sendTaken(upTo, ws.h.oldness(), false); err != nil {
			return err
		}
	}
	err := ws.settle()
	ws.listing = false
	return err
}

// piece makes the events of the next piece and moves the place behind it.
func (ws *watchStream) piece(p *listPlace) (events []*watchEvent, revision directory.Revision, age time.Duration, err error) {
	f := &ws.w.group.watchFilter
	v, err := ws.s.store.Local()
	if err != nil {
		return nil, 0, 0, err
	}
	defer v.Release()
	sight, err := ws.s.machine.Look(v)
	if err != nil {
		return nil, 0, 0, err
	}
	add := func(seen *seenThing) error {
		if !f.wants(seen.event.kind) {
			return nil
		}
		seen.sight = sight
		e, err := seen.as(f.details)
		events = append(events, e)
		return err
	}
	switch p.stage {
	case listTopology:
		err = ws.listTopology(sight, add)
		p.next()
	case listReservations:
		err = ws.listReservations(v, p, add)
	case listInbox:
		if f.by == byUser && f.wants(apiv1.WatchKind_WATCH_KIND_MAILBOX) {
			err = ws.listInbox(sight, p, add)
		} else {
			p.next()
		}
	case listMailboxes:
		err = ws.listMailboxes(sight, p, add)
	case listSubscriptions:
		err = ws.listSubscriptions(v, p, add)
	}
	return events, sight.Revision(), ageOf(v), err
}

func (ws *watchStream) listTopology(sight *machine.Sight, add func(*seenThing) error) error {
	f := &ws.w.group.watchFilter
	things := []thing{{kind: apiv1.WatchKind_WATCH_KIND_SETTINGS}}
	for _, b := range sight.Backends() {
		things = append(things, thing{kind: apiv1.WatchKind_WATCH_KIND_BACKEND, id: uint32(b.ID)})
	}
	for _, g := range sight.Groups() {
		things = append(things, thing{kind: apiv1.WatchKind_WATCH_KIND_GROUP, id: uint32(g.ID)})
	}
	for _, h := range sight.Holds() {
		if f.coversHold(h.Kind, h.Key) {
			things = append(things, thing{kind: apiv1.WatchKind_WATCH_KIND_HOLD, key: h.Key, id: uint32(h.Kind)})
		}
	}
	for _, t := range things {
		if err := add(&seenThing{event: watchEvent{thing: t}}); err != nil {
			return err
		}
	}
	return nil
}

func (ws *watchStream) listReservations(v View, p *listPlace, add func(*seenThing) error) error {
	f := &ws.w.group.watchFilter
	if !f.wants(apiv1.WatchKind_WATCH_KIND_RESERVATION) {
		p.next()
		return nil
	}
	prefix := f.prefix
	if f.by == byUser {
		inbox, err := f.user.Inbox()
		if err != nil {
			return err
		}
		prefix = string(inbox)
	}
	list, next, err := ws.s.machine.Reservations(v, prefix, p.name, ws.h.limits.pieceRows)
	if err != nil {
		return err
	}
	for i := range list {
		t := thing{kind: apiv1.WatchKind_WATCH_KIND_RESERVATION, name: list[i].Name}
		if !f.covers(&t, []directory.ServerID{list[i].Server}) {
			continue
		}
		if err := add(&seenThing{event: watchEvent{thing: t}}); err != nil {
			return err
		}
	}
	if p.name, p.some = next, true; next == "" {
		p.next()
	}
	return nil
}

// listInbox tells of a user's INBOX.
func (ws *watchStream) listInbox(sight *machine.Sight, p *listPlace, add func(*seenThing) error) error {
	inbox, err := ws.w.group.user.Inbox()
	if err != nil {
		return err
	}
	*p = listPlace{stage: listMailboxes, name: inbox, some: true}
	a, err := sight.Lookup(inbox)
	if err != nil || a.Mailbox == nil {
		return err
	}
	return add(&seenThing{event: watchEvent{thing: thing{kind: apiv1.WatchKind_WATCH_KIND_MAILBOX, name: inbox}}, answer: &a})
}

func (ws *watchStream) listMailboxes(sight *machine.Sight, p *listPlace, add func(*seenThing) error) error {
	f := &ws.w.group.watchFilter
	if !f.wants(apiv1.WatchKind_WATCH_KIND_MAILBOX) {
		p.next()
		return nil
	}
	q := machine.FindQuery{Prefix: f.prefix, After: p.name, Limit: ws.h.limits.pieceEvents}
	switch f.by {
	case byUser:
		inbox, err := f.user.Inbox()
		if err != nil {
			return err
		}
		q.Prefix = string(inbox) + "."
	case byServer:
		// By its name of this view: it may have another by now.
		b := sight.Backend(f.server)
		if b == nil {
			return fmt.Errorf("%w: backend %d has gone", machine.ErrCorrupt, f.server)
		}
		q.Server = b.Name
	}
	next, err := sight.Walk(q, func(a *machine.Answer) error {
		return add(&seenThing{event: watchEvent{thing: thing{kind: apiv1.WatchKind_WATCH_KIND_MAILBOX, name: a.Name}}, answer: a})
	})
	if err != nil {
		return err
	}
	if p.name, p.some = next, true; next == "" {
		p.next()
	}
	return nil
}

func (ws *watchStream) listSubscriptions(v View, p *listPlace, add func(*seenThing) error) error {
	f := &ws.w.group.watchFilter
	if !f.wants(apiv1.WatchKind_WATCH_KIND_SUBSCRIPTION) || f.by != byNothing && f.by != byUser {
		p.next()
		return nil
	}
	var list []machine.Subscription
	more := false
	if f.by == byUser {
		names, next, err := ws.s.machine.Subscriptions(v, f.user, p.name, ws.h.limits.pieceEvents)
		if err != nil {
			return err
		}
		for _, name := range names {
			list = append(list, machine.Subscription{User: f.user, Name: name})
		}
		more = next != ""
	} else {
		var err error
		if list, more, err = ws.s.machine.AllSubscriptions(v, machine.Subscription{User: p.user, Name: p.name}, ws.h.limits.pieceEvents); err != nil {
			return err
		}
	}
	for _, sub := range list {
		t := thing{kind: apiv1.WatchKind_WATCH_KIND_SUBSCRIPTION, name: sub.Name, key: string(sub.User)}
		if err := add(&seenThing{event: watchEvent{thing: t}}); err != nil {
			return err
		}
	}
	if !more {
		p.next()
		return nil
	}
	last := list[len(list)-1]
	p.user, p.name, p.some = last.User, last.Name, true
	return nil
}
