package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/directory/machine"
	"github.com/rookery-mail/rookery/internal/kv"
	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
	"github.com/rookery-mail/rookery/raftstore"
)

// watchHub reads the change log once for all watchers of this node. A pass takes a
// view, reads what changed since the pass before, looks up what somebody watches
// and hands it on: to all watchers of one filter the same batch, whose events are
// looked up and encoded once. So an idle watcher costs its stream, and a busy node
// pays for a change once and not for every watcher.
//
// What makes the marks exact: a batch holds every change of its filter since the
// pass before, each thing as it is at the pass's revision, and revision is set
// after all batches were handed out. Whoever reads revision first and then takes
// its queue has everything up to there.
type watchHub struct {
	s      *Server
	limits watchLimits
	m      *watchMetrics

	// revision is that of the last pass whose batches have all been handed out.
	revision atomic.Uint64
	// held is about how many octets wait for watchers, what they share counted once.
	held atomic.Int64

	mu     sync.Mutex
	err    error // why there are no watchers any more; nil while the node serves
	groups map[watchFilter]*watchGroup
	// The groups again, by what they are found by.
	byNothing []*watchGroup
	byPrefix  map[int]map[string][]*watchGroup // by length of the prefix first
	byServer  map[directory.ServerID][]*watchGroup
	byUser    map[directory.UserID][]*watchGroup
	watchers  int
	perConn   map[string]int
	stop      context.CancelFunc // of the goroutine that makes passes; nil if there is none
	passed    time.Time          // when the view of the last pass was taken
	age       time.Duration      // how old it was; math.MaxInt64: not known
	moved     chan struct{}      // closed by the next pass; nil if nobody waits
}

// watchLimits bound what watchers cost a node.
type watchLimits struct {
	watchers, perConn int
	// interval is the shortest time between two passes: what changes meanwhile is
	// coalesced.
	interval time.Duration
	// entries and octets are what may wait for one watcher, held for all of them.
	entries, octets int
	held            int64
	// changes is how many things one pass may find changed.
	changes int
	// compact is how many events may wait for a watcher before they are looked through
	// for things that changed again, listing how many before a listing under way makes
	// room for more.
	compact, listing int
	// What one piece of a listing or of a resume reads at most, so that no view is held
	// for as long as a slow reader likes.
	pieceEvents, pieceRows int
	// message is how many octets of events one message has, unless one event has more.
	message int
}

var defaultWatchLimits = watchLimits{
	watchers: 4096,
	perConn:  1024,
	interval: 10 * time.Millisecond,
	entries:  1 << 16,
	octets:   16 << 20,
	held:     256 << 20,
	changes:  1 << 20,
	compact:  1024,
	listing:  2048,

	pieceEvents: 512,
	pieceRows:   8192,
	message:     64 << 10,
}

// watchGroup is the watchers of one filter.
type watchGroup struct {
	watchFilter
	watchers []*watcher
	found    []*watchEvent // by the pass under way
}

// watcher is what waits for one Watch call.
type watcher struct {
	group *watchGroup
	conn  string
	wake  chan struct{} // has a token when there is something to take

	mu              sync.Mutex
	queue           []*watchBatch
	sending         []*watchBatch // taken, and not yet sent to the end
	message         int           // of the first of sending, the next to be sent
	entries, octets int           // of both
	queued          int           // entries of queue
	compactAt       int           // queued at which queue is coalesced
	err             error         // it was cut
}

// Why a watcher is cut, as the metric's label has it.
const (
	cutSlow    = "slow"    // too much waited for it
	cutMemory  = "memory"  // too much waited for all, most of it for this one
	cutBehind  = "behind"  // this node could not follow its own change log
	cutClosing = "closing" // the node stops
)

func newWatchHub(s *Server, m *watchMetrics) *watchHub {
	return &watchHub{
		s:        s,
		limits:   defaultWatchLimits,
		m:        m,
		groups:   make(map[watchFilter]*watchGroup),
		byPrefix: make(map[int]map[string][]*watchGroup),
		byServer: make(map[directory.ServerID][]*watchGroup),
		byUser:   make(map[directory.UserID][]*watchGroup),
		perConn:  make(map[string]int),
	}
}

// attach begins a watch. Everything that changes after the revision returned will
// be in the watcher's queue; what changed up to it will not. The caller detaches it.
func (h *watchHub) attach(f watchFilter, conn string) (*watcher, directory.Revision, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.err != nil:
		return nil, 0, h.err
	case h.watchers >= h.limits.watchers:
		return nil, 0, fmt.Errorf("%w: %d watchers on this node already", raftstore.ErrOverloaded, h.watchers)
	case conn != "" && h.perConn[conn] >= h.limits.perConn:
		return nil, 0, fmt.Errorf("%w: %d watchers on this connection already", raftstore.ErrOverloaded, h.perConn[conn])
	}
	if h.stop == nil {
		if err := h.begin(); err != nil {
			return nil, 0, err
		}
	}
	g := h.groups[f]
	if g == nil {
		g = &watchGroup{watchFilter: f}
		h.groups[f] = g
		h.index(g, func(list []*watchGroup) []*watchGroup { return append(list, g) })
	}
	w := &watcher{group: g, conn: conn, wake: make(chan struct{}, 1), compactAt: h.limits.compact}
	g.watchers = append(g.watchers, w)
	h.watchers++
	if conn != "" {
		h.perConn[conn]++
	}
	h.m.watchers.Inc()
	return w, directory.Revision(h.revision.Load()), nil
}

// index applies change to the lists that g is found in.
func (h *watchHub) index(g *watchGroup, change func([]*watchGroup) []*watchGroup) {
	switch g.by {
	case byNothing:
		h.byNothing = change(h.byNothing)
	case byPrefix:
		n := len(g.prefix)
		if h.byPrefix[n] == nil {
			h.byPrefix[n] = make(map[string][]*watchGroup)
		}
		setOrDelete(h.byPrefix[n], g.prefix, change(h.byPrefix[n][g.prefix]))
		if len(h.byPrefix[n]) == 0 {
			delete(h.byPrefix, n)
		}
	case byServer:
		setOrDelete(h.byServer, g.server, change(h.byServer[g.server]))
	case byUser:
		setOrDelete(h.byUser, g.user, change(h.byUser[g.user]))
	}
}

func setOrDelete[K comparable](m map[K][]*watchGroup, key K, list []*watchGroup) {
	if len(list) == 0 {
		delete(m, key)
		return
	}
	m[key] = list
}

// detach ends a watch. The last one ends the passes.
func (h *watchHub) detach(w *watcher) {
	h.mu.Lock()
	defer h.mu.Unlock()
	g := w.group
	g.watchers = slices.DeleteFunc(g.watchers, func(x *watcher) bool { return x == w })
	if len(g.watchers) == 0 {
		delete(h.groups, g.watchFilter)
		h.index(g, func(list []*watchGroup) []*watchGroup {
			return slices.DeleteFunc(list, func(x *watchGroup) bool { return x == g })
		})
	}
	if w.conn != "" {
		if h.perConn[w.conn]--; h.perConn[w.conn] == 0 {
			delete(h.perConn, w.conn)
		}
	}
	h.watchers--
	h.m.watchers.Dec()
	w.mu.Lock()
	h.drop(w)
	w.mu.Unlock()
	if h.watchers == 0 && h.stop != nil {
		h.stop()
		h.stop = nil
	}
}

// begin starts the passes, from what is applied now. h.mu is held.
func (h *watchHub) begin() error {
	v, err := h.s.store.Local()
	if err != nil {
		return err
	}
	defer v.Release()
	revision, err := h.s.machine.Revision(v)
	if err != nil {
		return err
	}
	h.revision.Store(uint64(revision))
	h.passed, h.age = time.Now(), ageOf(v)
	ctx, cancel := context.WithCancel(context.Background())
	h.stop = cancel
	h.s.serving.Go(func() { h.run(ctx) })
	return nil
}

// run makes passes until ctx ends.
func (h *watchHub) run(ctx context.Context) {
	for {
		seen := directory.Revision(h.revision.Load())
		v, err := h.s.store.When(ctx, func(r kv.Reader) bool {
			got, err := h.s.machine.Revision(r)
			return err != nil || got > seen
		})
		begun := time.Now()
		if err == nil {
			err = h.pass(ctx, v, seen, begun)
			v.Release()
		}
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			if !errors.Is(err, raftstore.ErrClosed) && !errors.Is(err, raftstore.ErrStopped) {
				h.s.log.Error("the change log cannot be read for watchers", "err", err)
			}
			h.cutAll(ctx, err, cutClosing)
		}
		// Under load, no more than a third of a processor; an idle node answers at once.
		if !pause(ctx, max(h.limits.interval, 2*time.Since(begun))) {
			return
		}
	}
}

// pause waits; false if ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// changed is a thing that changed, and the servers whose facts it was about.
type changed struct {
	thing
	servers []directory.ServerID
}

// pass hands out what changed after seen, as v shows it.
func (h *watchHub) pass(ctx context.Context, v View, seen directory.Revision, begun time.Time) error {
	sight, err := h.s.machine.Look(v)
	if err != nil {
		return err
	}
	at := make(map[thing]int)
	var list []changed
	rows := 0
	var broken error
	_, err = h.s.machine.Changes(v, machine.After(seen), func(c *directory.Change) bool {
		rows++
		var t thing
		if t, broken = thingOf(c); broken != nil {
			return false
		}
		i, ok := at[t]
		if !ok {
			i = len(list)
			at[t] = i
			list = append(list, changed{thing: t})
		}
		list[i].touch(c)
		return len(list) <= h.limits.changes
	})
	if broken != nil {
		return broken
	}
	lost := errors.Is(err, machine.ErrTrimmed) || len(list) > h.limits.changes
	if err != nil && !lost {
		return err
	}

	h.mu.Lock()
	defer h.mu.Unlock()
	if ctx.Err() != nil {
		return nil
	}
	if lost {
		// A snapshot took this node further than the log goes, or there was more than
		// can be handed on: whoever resumes reads the log, or starts over.
		h.s.log.Warn("watchers are cut: too much changed at once", "from", seen, "to", sight.Revision())
		err := fmt.Errorf("%w: this node could not follow its change log from revision %d on", errSlowWatcher, seen)
		h.cutEach(withMetadata(err, "revision", number(uint64(seen))), cutBehind)
		list = nil
	}
	var touched []*watchGroup
	for i := range list {
		if touched, err = h.match(&list[i], sight, touched); err != nil {
			return err
		}
	}
	for _, g := range touched {
		h.hand(g, newBatch(g.found, g.details, sight.Revision(), begun, h.limits.message))
		g.found = nil
	}
	if !lost {
		h.m.coalesced.Add(float64(rows - len(list)))
	}
	h.passed, h.age = begun, ageOf(v)
	h.revision.Store(uint64(sight.Revision()))
	if h.moved != nil {
		close(h.moved)
		h.moved = nil
	}
	h.relieve()
	return nil
}

// touch notes the servers that a row names.
func (c *changed) touch(row *directory.Change) {
	for _, s := range append(row.Dropped, row.Server) {
		if s != 0 && !slices.Contains(c.servers, s) {
			c.servers = append(c.servers, s)
		}
	}
}

// match finds who watches c and puts its event where they find it.
func (h *watchHub) match(c *changed, sight *machine.Sight, touched []*watchGroup) ([]*watchGroup, error) {
	seen := &seenThing{event: watchEvent{thing: c.thing}, sight: sight}
	var failed error
	try := func(groups []*watchGroup) {
		for _, g := range groups {
			if failed != nil || !g.covers(&c.thing, c.servers) {
				continue
			}
			if n := len(g.found); n > 0 && g.found[n-1] == &seen.event {
				continue // found by another of its servers
			}
			e, err := seen.as(g.details)
			if err != nil {
				failed = err
				return
			}
			if len(g.found) == 0 {
				touched = append(touched, g)
			}
			g.found = append(g.found, e)
		}
	}
	switch c.kind {
	case apiv1.WatchKind_WATCH_KIND_MAILBOX, apiv1.WatchKind_WATCH_KIND_RESERVATION:
		if len(h.byServer) > 0 {
			if err := seen.addServers(c); err != nil {
				return touched, err
			}
			for _, s := range c.servers {
				try(h.byServer[s])
			}
		}
		for n, prefixes := range h.byPrefix {
			if n <= len(c.name) {
				try(prefixes[string(c.name[:n])])
			}
		}
		if owner, ok := c.name.Owner(); ok {
			try(h.byUser[owner])
		}
		try(h.byNothing)
	case apiv1.WatchKind_WATCH_KIND_SUBSCRIPTION:
		try(h.byUser[directory.UserID(c.key)])
		try(h.byNothing)
	default:
		for _, g := range h.groups {
			try([]*watchGroup{g})
		}
	}
	return touched, failed
}

// addServers adds those that have a fact of the mailbox now, or its reservation, to
// those that the change log named.
func (t *seenThing) addServers(c *changed) error {
	add := func(s directory.ServerID) {
		if !slices.Contains(c.servers, s) {
			c.servers = append(c.servers, s)
		}
	}
	if c.kind == apiv1.WatchKind_WATCH_KIND_RESERVATION {
		res, err := t.sight.Reservation(c.name)
		if res != nil {
			add(res.Server)
		}
		return err
	}
	a, err := t.mailbox()
	if err == nil && a.Mailbox != nil {
		for i := range a.Mailbox.Facts {
			add(a.Mailbox.Facts[i].Server)
		}
	}
	return err
}

// hand gives b to the watchers of g.
func (h *watchHub) hand(g *watchGroup, b *watchBatch) {
	b.users.Store(int32(len(g.watchers)))
	h.held.Add(int64(b.octets))
	for _, w := range g.watchers {
		w.mu.Lock()
		if w.err != nil {
			h.done(b)
			w.mu.Unlock()
			continue
		}
		w.queue = append(w.queue, b)
		w.queued += len(b.events)
		w.entries += len(b.events)
		w.octets += b.octets
		if w.queued > w.compactAt && len(w.queue) > 1 {
			h.compact(w)
		}
		if w.entries > h.limits.entries || w.octets > h.limits.octets {
			h.cut(w, h.slow("more than %d changes, or %d MiB, wait for this watcher", h.limits.entries, h.limits.octets>>20), cutSlow)
		}
		w.mu.Unlock()
		w.notify()
	}
}

// compact coalesces w's queue. w.mu is held.
func (h *watchHub) compact(w *watcher) {
	b, dropped := coalesce(w.queue)
	b.users.Store(1)
	h.held.Add(int64(b.octets))
	for _, old := range w.queue {
		w.entries -= len(old.events)
		w.octets -= old.octets
		h.done(old)
	}
	w.queue = []*watchBatch{b}
	w.queued = len(b.events)
	w.entries += w.queued
	w.octets += b.octets
	w.compactAt = 2*w.queued + h.limits.compact
	h.m.coalesced.Add(float64(dropped))
}

// done says that one watcher needs b no more.
func (h *watchHub) done(b *watchBatch) {
	if b.users.Add(-1) == 0 {
		h.held.Add(-int64(b.octets))
	}
}

// drop forgets all that waits for w. w.mu is held.
func (h *watchHub) drop(w *watcher) {
	for _, b := range w.queue {
		h.done(b)
	}
	for _, b := range w.sending {
		h.done(b)
	}
	w.queue, w.sending, w.queued, w.entries, w.octets = nil, nil, 0, 0, 0
}

// cut ends w with err. w.mu is held.
func (h *watchHub) cut(w *watcher, err error, why string) {
	if w.err == nil {
		w.err = err
		h.m.cut.WithLabelValues(why).Inc()
	}
	h.drop(w)
}

func (h *watchHub) slow(format string, args ...any) error {
	at := number(h.revision.Load())
	return withMetadata(fmt.Errorf("%w: %s; resume from the last mark", errSlowWatcher, fmt.Sprintf(format, args...)), "revision", at)
}

// relieve cuts those for whom most waits while too much does. h.mu is held.
func (h *watchHub) relieve() {
	for h.held.Load() > h.limits.held {
		var most *watcher
		size := 0
		for _, g := range h.groups {
			for _, w := range g.watchers {
				w.mu.Lock()
				if w.octets > size {
					most, size = w, w.octets
				}
				w.mu.Unlock()
			}
		}
		if most == nil {
			return // it is on its way out
		}
		most.mu.Lock()
		h.cut(most, h.slow("more than %d MiB wait for the watchers of this node", h.limits.held>>20), cutMemory)
		most.mu.Unlock()
		most.notify()
	}
}

// cutAll cuts every watcher there is, unless ctx has ended.
func (h *watchHub) cutAll(ctx context.Context, err error, why string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if ctx.Err() != nil {
		return
	}
	h.cutEach(err, why)
}

func (h *watchHub) cutEach(err error, why string) {
	for _, g := range h.groups {
		for _, w := range g.watchers {
			w.mu.Lock()
			h.cut(w, err, why)
			w.mu.Unlock()
			w.notify()
		}
	}
	if h.moved != nil {
		close(h.moved)
		h.moved = nil
	}
}

// close ends all watches, in a way that they can be resumed elsewhere.
func (h *watchHub) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.err != nil {
		return
	}
	h.err = fmt.Errorf("%w: the node stops; resume elsewhere", raftstore.ErrClosed)
	h.cutEach(h.err, cutClosing)
	if h.stop != nil {
		h.stop()
		h.stop = nil
	}
}

func (w *watcher) notify() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// take makes what waits for w what is to be sent next, and returns the revision up
// to which that is all there is. What was taken before must have been sent. told is
// the newest revision that w was told of, which a pass has reached: of things that
// changed before and after it, only the later state is told.
func (h *watchHub) take(w *watcher, told directory.Revision) (directory.Revision, error) {
	upTo := directory.Revision(h.revision.Load()) // before the queue
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return 0, w.err
	}
	if n := len(w.queue); n > 0 {
		upTo = max(upTo, w.queue[n-1].revision)
		if n > 1 && w.queue[0].revision < told {
			h.compact(w)
		}
	}
	w.sending, w.message, w.queue, w.queued, w.compactAt = w.queue, 0, nil, 0, h.limits.compact
	return upTo, nil
}

// next returns the next message of what was taken, which batch it is of, and whether
// more follow; a nil batch when all is sent. It is asked before each message, so that a
// watcher which is cut while it sends lets go of the rest.
func (h *watchHub) next(w *watcher) (raw []byte, b *watchBatch, more bool, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return nil, nil, false, w.err
	}
	for len(w.sending) > 0 {
		b := w.sending[0]
		if messages := b.messages(); w.message < len(messages) {
			w.message++
			return messages[w.message-1], b, w.message < len(messages) || len(w.sending) > 1, nil
		}
		w.entries -= len(b.events)
		w.octets -= b.octets
		h.done(b)
		h.m.events.Add(float64(len(b.events)))
		w.sending, w.message = w.sending[1:], 0
	}
	w.sending = nil
	return nil, nil, false, nil
}

// keep leaves of what was taken only the events that told says yes to.
func (h *watchHub) keep(w *watcher, told func(*watchEvent) bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil || len(w.sending) == 0 {
		return
	}
	var events []*watchEvent
	b, _ := coalesce(w.sending)
	for _, e := range b.events {
		if told(e) {
			events = append(events, e)
		}
	}
	for _, old := range w.sending {
		w.entries -= len(old.events)
		w.octets -= old.octets
		h.done(old)
	}
	w.sending = nil
	if len(events) == 0 {
		return
	}
	b = newBatch(events, b.details, b.revision, b.at, b.message)
	b.users.Store(1)
	h.held.Add(int64(b.octets))
	w.sending = []*watchBatch{b}
	w.entries += len(b.events)
	w.octets += b.octets
}

// waiting is how many events wait for w, and why it was cut.
func (w *watcher) waiting() (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.entries, w.err
}

// reach waits until a pass has come to revision.
func (h *watchHub) reach(ctx context.Context, w *watcher, revision directory.Revision) error {
	for {
		h.mu.Lock()
		if _, err := w.waiting(); err != nil {
			h.mu.Unlock()
			return err
		}
		if directory.Revision(h.revision.Load()) >= revision {
			h.mu.Unlock()
			return nil
		}
		if h.moved == nil {
			h.moved = make(chan struct{})
		}
		moved := h.moved
		h.mu.Unlock()
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// oldness is how old what the last pass saw may be by now.
func (h *watchHub) oldness() time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	return older(h.age, time.Since(h.passed))
}
