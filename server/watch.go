package server

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/peer"

	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/directory/machine"
	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
)

// The bounds of progress_ms.
const (
	defaultProgress  = 5 * time.Second
	shortestProgress = 50 * time.Millisecond
	longestProgress  = time.Minute
)

// Watch sends, until the caller leaves or cannot be served any more.
func (d *directoryService) Watch(req *apiv1.WatchRequest, stream grpc.ServerStreamingServer[apiv1.WatchResponse]) error {
	s := d.s
	ctx := stream.Context()
	f, err := watchFilterOf(req)
	if err == nil && f.by == byUser {
		f.user, err = s.fold(f.user)
	}
	if err != nil {
		return err
	}
	ws := &watchStream{s: s, h: s.watch, stream: stream, progress: defaultProgress, sent: time.Now(), encoded: req.GetEncoded()}
	if ms := req.GetProgressMs(); ms > 0 {
		ws.progress = min(max(duration(uint64(ms)), shortestProgress), longestProgress)
	}
	if ws.maxAge, err = maxAgeOf(req.GetConsistency()); err != nil {
		return err
	}
	from, err := ws.open(ctx, req, &f)
	if err != nil {
		return err
	}
	w, attached, err := s.watch.attach(f, connOf(ctx))
	if err != nil {
		return err
	}
	defer s.watch.detach(w)
	ws.w = w
	if len(req.GetFrom()) > 0 {
		err = ws.catchUp(from, attached)
	} else {
		err = ws.list()
	}
	if err != nil {
		return err
	}
	return ws.follow()
}

// watchFilterOf reads what a request asks to be told, but for the server's number.
func watchFilterOf(req *apiv1.WatchRequest) (f watchFilter, err error) {
	for _, kind := range req.GetKinds() {
		if err := known(kind, apiv1.WatchKind_name, false); err != nil {
			return f, err
		}
		f.kinds |= 1 << kind
	}
	if f.kinds == 0 {
		f.kinds = math.MaxUint16
	}
	f.details = req.GetDetails()
	switch by := req.GetFilter().(type) {
	case nil:
		if req.GetServerId() != 0 {
			return f, fmt.Errorf("%w: server_id without server", directory.ErrInvalid)
		}
	case *apiv1.WatchRequest_Prefix:
		if err := checkPrefix(by.Prefix); err != nil {
			return f, err
		}
		f.by, f.prefix = byPrefix, by.Prefix
	case *apiv1.WatchRequest_Server:
		f.by = byServer
		if req.GetServerId() == 0 {
			_, err = directory.ParseBackend(by.Server)
		}
	case *apiv1.WatchRequest_User:
		f.by = byUser
		f.user, err = directory.ParseUser(by.User)
		if err == nil {
			_, err = f.user.Inbox()
		}
	}
	return f, err
}

// maxAgeOf is how old the state of a watching node may become.
func maxAgeOf(c *apiv1.Consistency) (time.Duration, error) {
	if err := known(c.GetMode(), apiv1.ConsistencyMode_name, true); err != nil {
		return 0, err
	}
	switch {
	case c.GetMaxAgeMs() > 0:
		return duration(c.GetMaxAgeMs()), nil
	case c.GetMode() == apiv1.ConsistencyMode_CONSISTENCY_MODE_STALE:
		return math.MaxInt64, nil
	}
	return defaultMaxAge, nil
}

// connOf names the connection of a call, "" if its kind of connection has no name.
func connOf(ctx context.Context) string {
	if p, ok := peer.FromContext(ctx); ok {
		if a, ok := p.Addr.(*net.TCPAddr); ok {
			return a.String()
		}
	}
	return ""
}

// watchStream is one Watch call being answered.
type watchStream struct {
	s        *Server
	h        *watchHub
	w        *watcher
	stream   grpc.ServerStreamingServer[apiv1.WatchResponse]
	id       *identity
	progress time.Duration
	maxAge   time.Duration
	encoded  bool   // events are sent as octets
	serverID uint32 // to be told in the first message

	// told is the newest revision that something was told of. What waits in the
	// queue from passes before it may be older than what was told already, so it is
	// not taken before a pass has come that far.
	told directory.Revision
	// listing: a listing has not ended yet.
	listing bool
	sent    time.Time // when the last message was
	message apiv1.WatchResponse
	header  apiv1.ResponseHeader
}

// open looks whether this node can answer, reads the token to resume from and finds
// the server of the filter.
func (ws *watchStream) open(ctx context.Context, req *apiv1.WatchRequest, f *watchFilter) (from directory.Revision, err error) {
	s := ws.s
	r, err := s.read(ctx, req.GetConsistency())
	if err != nil {
		return 0, err
	}
	defer func() {
		if r.View != nil {
			r.Release()
		}
	}()
	ws.id = r.id
	if len(req.GetFrom()) > 0 {
		t, err := decodeToken(req.GetFrom())
		if err != nil {
			return 0, err
		}
		if err := s.ours(t, r.id); err != nil {
			return 0, err
		}
		from = t.revision
		at, _, err := s.machine.Revisions(r)
		if err != nil {
			return 0, err
		}
		if at < from {
			r.Release()
			r.View = nil
			if r.View, err = s.catchUp(ctx, from, at); err != nil {
				return 0, err
			}
		}
		// Whatever is told must not be older than what the token has seen.
		ws.told = from
	}
	if f.by != byServer {
		return from, nil
	}
	sight, err := s.machine.Look(r)
	if err != nil {
		return 0, err
	}
	b := sight.Backend(directory.ServerID(req.GetServerId()))
	if req.GetServerId() == 0 {
		b = sight.BackendNamed(directory.BackendName(req.GetServer()))
	}
	if b == nil {
		return 0, fmt.Errorf("%w: no backend %s", directory.ErrNotFound, req.GetServer())
	}
	f.server, ws.serverID = b.ID, uint32(b.ID)
	return from, nil
}

// send sends events already encoded; a mark says that they are all up to revision.
func (ws *watchStream) send(raw []byte, revision directory.Revision, age time.Duration, mark bool) error {
	ws.message.Reset()
	ws.header.Reset()
	ws.message.Header = ws.s.header(&ws.header, &read{id: ws.id, age: age}, revision)
	ws.message.Mark, ws.message.Listing = mark, ws.listing
	ws.message.ServerId, ws.serverID = ws.serverID, 0
	switch {
	case ws.encoded:
		ws.message.EncodedEvents = raw
	case len(raw) > 0:
		// They were encoded once for all who get them; to the message they are
		// fields that it does not know.
		ws.message.ProtoReflect().SetUnknown(raw)
	}
	ws.told = max(ws.told, revision)
	ws.sent = time.Now()
	return ws.stream.Send(&ws.message)
}

// sendAll sends events that were made for this watcher alone. If there are none, it
// says so when the watcher has heard nothing for long.
func (ws *watchStream) sendAll(events []*watchEvent, revision directory.Revision, age time.Duration) error {
	for _, raw := range pack(events, ws.w.group.details, ws.h.limits.message) {
		if err := ws.send(raw, revision, age, false); err != nil {
			return err
		}
	}
	ws.h.m.events.Add(float64(len(events)))
	if len(events) == 0 && time.Since(ws.sent) >= ws.progress {
		return ws.send(nil, revision, age, false)
	}
	return nil
}

// sendTaken sends what was taken of the queue, with a mark at upTo at its end, if
// mark is set even if it was nothing.
func (ws *watchStream) sendTaken(upTo directory.Revision, age time.Duration, mark bool) error {
	for sent := false; ; sent = true {
		raw, b, more, err := ws.h.next(ws.w)
		switch {
		case err != nil:
			return err
		case b == nil && (sent || !mark):
			return nil
		case b == nil:
			return ws.send(nil, upTo, age, true)
		}
		revision := max(b.revision, ws.told)
		if !more {
			revision = upTo
		}
		if err := ws.send(raw, revision, age, mark && !more); err != nil {
			return err
		}
		ws.h.m.lag.Observe(time.Since(b.at).Seconds())
	}
}

// settle sends what waits, and a mark. Everything before is told then, exactly as it
// is at the mark.
func (ws *watchStream) settle() error {
	ctx := ws.stream.Context()
	if err := ws.h.reach(ctx, ws.w, ws.told); err != nil {
		return err
	}
	upTo, err := ws.h.take(ws.w, ws.told)
	if err != nil {
		return err
	}
	return ws.sendTaken(upTo, ws.h.oldness(), true)
}

// catchUp tells what changed after from, up to the revision from which on the queue
// has it, and marks the end of it.
func (ws *watchStream) catchUp(from, attached directory.Revision) error {
	for at := machine.After(from); ; {
		events, next, revision, age, err := ws.changes(at, attached)
		if err != nil {
			return err
		}
		if err := ws.sendAll(events, revision, age); err != nil {
			return err
		}
		if at = next; at.Past(attached) {
			return ws.settle()
		}
	}
}

// changes reads the change log behind at, a piece of it, and makes the events. Rows
// after attached are not looked for: they are in the queue.
func (ws *watchStream) changes(at machine.LogPosition, attached directory.Revision) (events []*watchEvent, next machine.LogPosition, revision directory.Revision, age time.Duration, err error) {
	s, f := ws.s, &ws.w.group.watchFilter
	v, err := s.store.Local()
	if err != nil {
		return nil, at, 0, 0, err
	}
	defer v.Release()
	sight, err := s.machine.Look(v)
	if err != nil {
		return nil, at, 0, 0, err
	}
	found := make(map[thing]bool)
	rows := 0
	var broken error
	next, err = s.machine.Changes(v, at, func(c *directory.Change) bool {
		if c.Revision > attached {
			return false
		}
		t, err := thingOf(c)
		if err != nil {
			broken = err
			return false
		}
		rows++
		if !found[t] {
			seen := &seenThing{event: watchEvent{thing: t}, sight: sight}
			one := changed{thing: t}
			one.touch(c)
			if f.by == byServer && (t.kind == apiv1.WatchKind_WATCH_KIND_MAILBOX || t.kind == apiv1.WatchKind_WATCH_KIND_RESERVATION) {
				if broken = seen.addServers(&one); broken != nil {
					return false
				}
			}
			if f.covers(&t, one.servers) {
				found[t] = true
				var e *watchEvent
				if e, broken = seen.as(f.details); broken != nil {
					return false
				}
				events = append(events, e)
			}
		}
		return rows < ws.h.limits.pieceRows && len(events) < ws.h.limits.pieceEvents
	})
	if broken != nil {
		err = broken
	}
	if errors.Is(err, machine.ErrTrimmed) {
		_, oldest, _ := s.machine.Revisions(v)
		err = withMetadata(fmt.Errorf("%w: changes are kept from revision %d on", errCompacted, oldest), "revision", number(uint64(oldest)))
	}
	return events, next, sight.Revision(), ageOf(v), err
}

// follow sends what changes from now on, and marks.
func (ws *watchStream) follow() error {
	ctx := ws.stream.Context()
	timer := time.NewTimer(ws.progress)
	defer timer.Stop()
	for {
		due := false
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ws.w.wake:
		case <-timer.C:
			due = true
		}
		waits, err := ws.w.waiting()
		switch {
		case err != nil:
			return err
		case due && waits == 0:
			err = ws.idleMark()
		case waits > 0:
			err = ws.settle()
		default:
			continue
		}
		if err != nil {
			return err
		}
		timer.Reset(ws.progress)
	}
}

// idleMark marks how far this node has read although there was nothing to tell, and
// looks whether it may still say so.
func (ws *watchStream) idleMark() error {
	v, err := ws.s.store.Local()
	if err != nil {
		return err
	}
	now, err := ws.s.machine.Revision(v)
	age := ageOf(v)
	v.Release()
	if err != nil {
		return err
	}
	upTo, err := ws.h.take(ws.w, ws.told)
	if err != nil {
		return err
	}
	// A batch may have been sent, and marked, before its pass published its revision.
	upTo = max(upTo, ws.told)
	if upTo < now {
		// The pass that sees it is on its way.
		age = max(age, ws.h.oldness())
	}
	if age > ws.maxAge {
		return withMetadata(fmt.Errorf("%w: %v old, at most %v was asked for", errTooStale, age, ws.maxAge), "age_ms", number(ageMillis(age)))
	}
	return ws.sendTaken(upTo, age, true)
}

// ageOf is how old v may be, math.MaxInt64 if nobody can say.
func ageOf(v View) time.Duration {
	if age, known := v.Age(); known {
		return age
	}
	return math.MaxInt64
}

// older is age and some time more.
func older(age, by time.Duration) time.Duration {
	if by < 0 || age > math.MaxInt64-by {
		return math.MaxInt64
	}
	return age + by
}
