package mupdate

import (
	"context"
	"errors"
	"iter"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
)

// stream is the UPDATE of one connection: the listing, OK, and then what changes, for
// as long as the connection lasts.
type stream struct {
	c    *conn
	tag  string
	feed feed
	stop context.CancelFunc
	done chan struct{}

	mu      sync.Mutex
	flushed directory.Revision // everything up to it was sent
	moved   chan struct{}      // closed when flushed grows
	retired bool               // it is to end soon
	ended   bool
}

// What one stream tells line by line when a group's primary moves, or a hold is put; a
// change of more names ends it: what the frontend has is then merged in one transaction,
// while every line of a stream is a synchronous write of its own there.
const maxRefresh = 5000

// How long streams that end go on, by chance, so that not all frontends come at once.
const stagger = 10 * time.Second

// update begins a stream. The answer is the stream's, and begins by then. What cannot be
// answered ends the connection, and no line says so: a slave of Cyrus waits for the end of
// the listing and takes NO, BAD or BYE for it as well as OK, merges what it was told, which
// is nothing, and has no mailboxes any more.
func (c *conn) update(tag string, hosts []string, by time.Time) error {
	st := &stream{c: c, tag: tag, done: make(chan struct{}), moved: make(chan struct{})}
	for _, h := range hosts {
		if h == "" {
			return c.answer(tag, bad, "Badly formed arguments")
		}
		b, err := directory.ParseBackend(h)
		if err != nil {
			return c.answer(tag, no, "no such host: "+err.Error())
		}
		st.feed.hosts = append(st.feed.hosts, b)
	}
	if !c.s.streams.take() {
		c.log.Warn("too many streams; the connection is closed", "limit", c.s.cfg.MaxStreams)
		return errEnded
	}
	st.feed.s, st.feed.session, st.feed.order, st.feed.form = c.s, c.session, c.order, c.form
	st.feed.own, st.feed.by = c.speaker(), by
	if len(hosts) > 0 {
		st.feed.shown = make(map[directory.MailboxName]struct{})
	}
	ctx, cancel := context.WithCancel(c.s.ctx)
	st.stop, c.stream = cancel, st
	c.s.work.Go(func() {
		defer c.s.streams.put()
		st.run(ctx)
	})
	return nil
}

// run sends until the connection ends, or it has to end it.
func (st *stream) run(ctx context.Context) {
	begun := time.Now()
	err := st.feed.run(ctx, st.listed, st.live)
	st.mu.Lock()
	said := st.flushed != 0
	st.ended = true
	close(st.moved)
	st.mu.Unlock()
	close(st.done)
	c := st.c
	switch {
	case ctx.Err() != nil:
	case !said && c.isOpen():
		c.log.Warn("the directory could not be listed", "dur", time.Since(begun), "err", err)
	default:
		c.log.Info("stream ended", "dur", time.Since(begun), "err", err)
		c.s.m.ended.Inc()
	}
	c.close()
}

// listed sends the listing, OK, and what a slave loses of it.
func (st *stream) listed() error {
	c, begun := st.c, time.Now()
	lost, err := newLost(st)
	if err != nil {
		return err
	}
	defer lost.close()
	var line []byte
	n := 0
	err = st.feed.each(func(name directory.MailboxName, text []byte) error {
		n++
		if st.feed.shown != nil {
			st.feed.shown[name] = struct{}{}
		}
		if err := lost.pass(name, text); err != nil {
			return err
		}
		line = append(append(line[:0], st.tag...), text...)
		return c.write(line)
	})
	if err == nil && n == 0 {
		err = st.feed.unheard()
	}
	if err != nil {
		return err
	}
	st.feed.forget()
	if err := c.answer(st.tag, ok, "streaming starts"); err != nil {
		return err
	}
	for _, text := range lost.again {
		if err := c.write(append(append(line[:0], st.tag...), text...)); err != nil {
			return err
		}
	}
	c.s.m.listed.Observe(time.Since(begun).Seconds())
	c.s.m.again.Add(float64(len(lost.again)))
	c.log.Info("streaming", "records", n, "again", len(lost.again), "dur", time.Since(begun), "rev", uint64(st.feed.mark.Revision))
	return st.flush(st.feed.mark.Revision)
}

// forget lets go of what only the listing needed.
func (f *feed) forget() {
	f.close()
	f.beside = nil
}

// live sends what changed.
func (st *stream) live(u client.WatchUpdate) error {
	f := &st.feed
	var parts []part
	told := make(map[directory.MailboxName]bool, len(u.Events))
	for _, e := range u.Events {
		switch e.Kind {
		case client.WatchBackend, client.WatchGroup, client.WatchHold:
			parts = append(parts, f.stale(e)...)
		case client.WatchReservation:
			if old := f.claims[e.Reservation.Mailbox]; old != nil && !e.Gone && old.Server == e.Reservation.Server && old.Partition == e.Reservation.Partition {
				told[e.Reservation.Mailbox] = true // it was renewed
			}
			f.claim(&e)
		case client.WatchMailbox:
			told[e.Mailbox.Name] = true
		}
	}
	f.learn(u)
	for i := range u.Events {
		e := &u.Events[i]
		var err error
		switch e.Kind {
		case client.WatchMailbox:
			r, there := f.record(e)
			err = st.say(e.Mailbox.Name, r, there)
		case client.WatchReservation:
			name := e.Reservation.Mailbox
			if told[name] {
				continue
			}
			told[name] = true
			err = st.look(name)
		}
		if err != nil {
			return err
		}
	}
	if err := st.refresh(parts); err != nil {
		return err
	}
	if !u.Mark {
		return nil
	}
	return st.flush(u.Revision)
}

// say sends what a name is now.
func (st *stream) say(name directory.MailboxName, r record, there bool) error {
	f := &st.feed
	if !there {
		if c := f.claims[name]; c != nil {
			r, there = f.claimedRecord(c), true
		}
	}
	if f.shown != nil {
		// A change is sent if it is about one of the hosts now, or was.
		_, was := f.shown[name]
		is := there && f.wanted(&r)
		switch {
		case !was && !is:
			return nil
		case is:
			f.shown[name] = struct{}{}
		default:
			delete(f.shown, name)
		}
	}
	f.buf = append(f.buf[:0], st.tag...)
	if there {
		f.buf = r.append(f.buf, f.form.Form)
	} else {
		f.buf = appendDelete(f.buf, name, f.form.Form)
	}
	st.c.s.m.lines.Inc()
	return st.c.write(f.buf)
}

// look sends what a name is by asking: of a claim that came or went it is not known
// whether there is a mailbox too.
func (st *stream) look(name directory.MailboxName) error {
	ctx, cancel := context.WithTimeout(st.c.s.ctx, st.c.s.cfg.Timeout)
	defer cancel()
	route, err := st.feed.session.Lookup(ctx, name, client.Details())
	if err != nil {
		return err
	}
	p := placeOfRoute(&route)
	r, there := st.feed.recordOf(name, &p)
	return st.say(name, r, there)
}

// refresh sends the names whose routes may have changed without a change of their own.
func (st *stream) refresh(parts []part) error {
	if len(parts) == 0 || st.isRetired() {
		return nil
	}
	ctx, cancel := context.WithTimeout(st.c.s.ctx, refreshTime)
	defer cancel()
	done := make(map[part]bool)
	var changed []client.Route
	seen := make(map[directory.MailboxName]bool)
	for _, p := range parts {
		if done[p] {
			continue
		}
		done[p] = true
		q := client.FindQuery{Server: p.server, Prefix: string(p.below), PageSize: 1000}
		for r, err := range st.feed.session.FindAll(ctx, q) {
			if errors.Is(err, directory.ErrNotFound) {
				break
			}
			if err != nil {
				return err
			}
			if p.below != "" && r.Mailbox != p.below && !r.Mailbox.IsBelow(p.below) || seen[r.Mailbox] {
				continue
			}
			seen[r.Mailbox] = true
			if len(changed) == maxRefresh {
				st.retire()
				return nil
			}
			changed = append(changed, r)
		}
	}
	for i := range changed {
		p := placeOfRoute(&changed[i])
		r, there := st.feed.recordOf(changed[i].Mailbox, &p)
		if err := st.say(changed[i].Mailbox, r, there); err != nil {
			return err
		}
	}
	return nil
}

const refreshTime = 30 * time.Second

// retire ends the stream some time soon.
func (st *stream) retire() {
	st.mu.Lock()
	st.retired = true
	st.mu.Unlock()
	wait := rand.N(stagger)
	st.c.log.Info("more names moved than a stream tells one by one; it ends", "limit", maxRefresh, "dur", wait)
	st.c.s.m.retired.Inc()
	time.AfterFunc(wait, st.stop)
	time.AfterFunc(wait, st.c.close)
}

func (st *stream) isRetired() bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.retired
}

// flush sends what was written and notes that all up to rev was.
func (st *stream) flush(rev directory.Revision) error {
	if err := st.c.flush(); err != nil {
		return err
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	if rev > st.flushed {
		st.flushed = rev
		close(st.moved)
		st.moved = make(chan struct{})
	}
	return nil
}

// wait returns when all up to rev was sent.
func (st *stream) wait(ctx context.Context, rev directory.Revision) error {
	for {
		st.mu.Lock()
		moved, there := st.moved, st.flushed >= rev
		gone := st.ended || st.retired
		st.mu.Unlock()
		switch {
		case gone:
			return errEnded
		case there:
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return later("this stream is behind")
		}
	}
}

// lost finds what a slave loses of a listing. It merges by walking its own list, which
// is in key order, and compares by the octets of names: where a name vanished while it
// was away, it takes every record that follows that name in key order and precedes it
// in octet order for one that vanished too. Such a record is good again once it is
// sent after the listing; to know which they are it is enough to remember, of the
// vanished names passed, the one that is last in octet order.
type lost struct {
	st     *stream
	next   func() (client.Vanished, error, bool)
	stop   func()
	cancel context.CancelFunc
	ahead  directory.MailboxName // the next vanished name; empty: none
	last   directory.MailboxName // of those passed
	again  [][]byte
	octets int
}

// maxAgain bounds the octets that are kept to be sent again.
const maxAgain = 16 << 20

// newLost begins, while nothing was sent yet.
//
// Errors: no node says what vanished.
func newLost(st *stream) (*lost, error) {
	l := &lost{st: st}
	if st.feed.order == OctetOrder || len(st.feed.hosts) > 0 {
		return l, nil // nobody merges it, or merges it in its own order
	}
	ctx, cancel := context.WithTimeout(st.c.s.ctx, time.Hour)
	next, stop := iter.Pull2(st.feed.session.ListVanished(ctx))
	l.next, l.stop, l.cancel = next, func() { stop(); cancel() }, cancel
	if err := l.advance(st.c.s.cfg.Timeout); err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

func (l *lost) close() {
	if l.stop != nil {
		l.stop()
	}
}

// advance takes the next vanished name, for which it waits as long as that.
func (l *lost) advance(patience time.Duration) error {
	stalled := time.AfterFunc(patience, l.cancel)
	defer stalled.Stop()
	v, err, more := l.next()
	l.ahead = v.Mailbox
	if err != nil || !more {
		l.ahead = ""
	}
	return err
}

// pass is told each record of the listing.
func (l *lost) pass(name directory.MailboxName, text []byte) error {
	for l.ahead != "" {
		c := directory.CompareNames(l.ahead, name)
		if c > 0 {
			break
		}
		if c < 0 && l.ahead > l.last {
			l.last = l.ahead
		}
		if err := l.advance(l.st.c.s.cfg.Timeout); err != nil {
			l.st.c.log.Warn("the names that vanished could not be listed; a frontend may miss some until it starts again", "err", err)
		}
	}
	if name < l.last && l.octets < maxAgain {
		l.octets += len(text)
		l.again = append(l.again, append([]byte(nil), text...))
	}
	return nil
}
