package mupdate

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/rookery-mail/rookery/adapter/mupdate/spool"
	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
)

// feed is what one LIST or UPDATE is told from: a watch of the directory. Until the
// watch's first mark it is a listing, which goes to the spool; what changes while it
// goes on is kept beside it, so that both together are the directory as it is at the
// mark. An UPDATE goes on from there.
//
// Routes follow from mailboxes together with backends, groups and holds, of which each
// stands for many names and is told once. So these are kept, and when one changes, the
// names it stands for are looked up.
type feed struct {
	s       *Server
	session *client.Session
	// own: of names that this server has, it is told what it said itself.
	own directory.BackendName
	// only: nothing but what own said.
	only bool
	// location: only records whose location begins so.
	location string
	// hosts: only records of these servers. Empty: all.
	hosts []directory.BackendName
	order Order
	form  Literals
	// by: a listing that has not begun by then does not.
	by time.Time

	topology *client.Mirror // no mailboxes in it
	server   directory.ServerID
	claims   map[directory.MailboxName]*client.WatchedReservation
	spool    *spool.Spool
	last     directory.MailboxName              // the listing has come so far
	some     bool                               // it has begun
	told     bool                               // something was told
	beside   map[directory.MailboxName][]byte   // changed since they were listed: the line now, nil for none
	shown    map[directory.MailboxName]struct{} // with hosts: what was sent and not deleted
	buf      []byte
	copies   []copyOf // of record
	mark     client.Answer
	restarts int
}

// errRestart: the listing is of two topologies, and has to be made again.
var errRestart = errors.New("mupdate: the topology changed during a listing")

// errEnded: the stream cannot go on; who follows it has to ask anew.
var errEnded = errors.New("mupdate: stream ended")

// How much a feed keeps of what changes beside a listing.
const maxBeside = 500_000

// maxRestarts is how often a listing is made anew because the topology changed.
const maxRestarts = 5

// restartWait is how long a listing that is made anew waits for its beginning, once by has
// passed: what changed the topology may have cost the leader, too.
const restartWait = 2 * time.Second

func (f *feed) query() client.WatchQuery {
	q := client.WatchQuery{
		Kinds:    []client.WatchKind{client.WatchMailbox, client.WatchReservation, client.WatchBackend, client.WatchGroup, client.WatchHold},
		Details:  true,
		Progress: feedProgress,
	}
	if f.only {
		q.Server = f.own
	}
	return q
}

// feedProgress is how often a watch that has nothing to say says so: no NOOP waits
// longer than that.
const feedProgress = 200 * time.Millisecond

// reset begins a listing.
func (f *feed) reset() {
	f.close()
	f.topology = client.NewMirror()
	f.claims = make(map[directory.MailboxName]*client.WatchedReservation)
	f.beside = make(map[directory.MailboxName][]byte)
	f.spool = spool.New(f.s.cfg.SpoolDir, f.order == KeyOrder)
	f.last, f.some, f.told = "", false, false
}

func (f *feed) close() {
	if f.spool != nil {
		f.spool.Close()
		f.spool = nil
	}
}

// run watches until ctx ends, or something it calls returns an error, which it
// returns. listed is called at the first mark, live for each update after it.
//
// Errors: of the watch; errEnded.
func (f *feed) run(ctx context.Context, listed func() error, live func(client.WatchUpdate) error) error {
	defer f.close()
	for {
		err := f.watch(ctx, listed, live)
		if errors.Is(err, errRestart) && f.restarts < maxRestarts {
			f.restarts++
			continue
		}
		return err
	}
}

func (f *feed) watch(ctx context.Context, listed func() error, live func(client.WatchUpdate) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	f.reset()
	// Nobody waits for a listing that does not begin, or has stopped.
	stalled := time.AfterFunc(f.patience(), func() { cancel(errStalled) })
	defer stalled.Stop()
	listing := true
	for u, err := range f.session.Watch(ctx, f.query(), client.Linearizable()) {
		if err != nil {
			if errors.Is(context.Cause(ctx), errStalled) {
				return errStalled
			}
			return err
		}
		stalled.Stop()
		f.told = true
		switch {
		case listing:
			err = f.list(u)
			if err == nil && u.Mark {
				listing = false
				err = listed()
			}
		case u.Reset:
			err = errEnded // the change log did not reach back, or the cluster was restored
		default:
			err = live(u)
		}
		if err != nil {
			return err
		}
		if listing {
			stalled.Reset(f.patience())
		}
	}
	return cmp.Or(context.Cause(ctx), errEnded)
}

// patience is how long the listing may say nothing. The command that asked has spent some
// of its time already; a listing that is under way goes on as long as it comes.
func (f *feed) patience() time.Duration {
	switch left := time.Until(f.by); {
	case f.told:
		return f.s.cfg.Timeout
	case f.restarts > 0:
		return max(left, restartWait)
	default:
		return left
	}
}

var errStalled error = later("no node could list the directory in time")

// list takes a part of the listing, and what changed beside it.
func (f *feed) list(u client.WatchUpdate) error {
	if u.Reset && f.some {
		return errRestart
	}
	if f.learn(u) && f.some && !f.only {
		return errRestart
	}
	f.mark = u.Answer
	for i := range u.Events {
		e := &u.Events[i]
		if e.Kind == client.WatchReservation {
			f.claim(e)
		}
	}
	for i := range u.Events {
		e := &u.Events[i]
		switch e.Kind {
		case client.WatchMailbox:
			name := e.Mailbox.Name
			if u.Listing && !e.Gone && (!f.some || directory.CompareNames(name, f.last) > 0) {
				f.last, f.some = name, true
				r, ok := f.record(e)
				if ok && f.wanted(&r) {
					f.buf = r.append(f.buf[:0], f.form.Form)
					if err := f.spool.Add(string(name), f.buf); err != nil {
						return &spoolError{err}
					}
				}
				continue
			}
			f.setBeside(name, e)
		}
	}
	if len(f.beside) > maxBeside {
		return fmt.Errorf("%w: too much changes while the directory is listed", errEnded)
	}
	return nil
}

// setBeside notes what a name that was listed is now.
func (f *feed) setBeside(name directory.MailboxName, e *client.WatchEvent) {
	if r, ok := f.record(e); ok && f.wanted(&r) {
		f.beside[name] = r.append(nil, f.form.Form)
		return
	}
	f.beside[name] = nil
}

// claim keeps the claims.
func (f *feed) claim(e *client.WatchEvent) {
	name := e.Reservation.Mailbox
	if e.Gone || f.only && e.Reservation.Server != f.server {
		delete(f.claims, name)
		return
	}
	f.claims[name] = e.Reservation
}

// learn takes backends, groups and holds in and reports whether routes may have changed.
func (f *feed) learn(u client.WatchUpdate) bool {
	if u.Server != 0 {
		f.server = u.Server
	}
	t := u
	t.Events = nil
	changed := false
	for _, e := range u.Events {
		switch e.Kind {
		case client.WatchBackend, client.WatchGroup, client.WatchHold:
			changed = changed || len(f.stale(e)) > 0
			t.Events = append(t.Events, e)
		}
	}
	t.Mark = false
	f.topology.Apply(t)
	return changed
}

// part names mailboxes whose routes may have changed: those a server has, or those at
// and below a name.
type part struct {
	server directory.BackendName
	below  directory.MailboxName
}

// stale says whose routes e changes. It is asked before e is taken in.
func (f *feed) stale(e client.WatchEvent) []part {
	switch e.Kind {
	case client.WatchBackend:
		for _, b := range f.topology.Backends() {
			if b.ID == e.Backend.ID && b.Name == e.Backend.Name && b.Group == e.Backend.Group && b.Admitted == e.Backend.Admitted && b.State.Gone() == e.Backend.State.Gone() {
				return nil
			}
		}
		return []part{{server: e.Backend.Name}}
	case client.WatchGroup:
		members := map[directory.ServerID]bool{}
		for _, s := range e.Group.Members {
			members[s] = true
		}
		for _, g := range f.topology.Groups() {
			if g.ID != e.Group.ID {
				continue
			}
			if g.Primary == e.Group.Primary && g.MergedInto == e.Group.MergedInto && slices.Equal(sorted(g.Members), sorted(e.Group.Members)) {
				return nil
			}
			for _, s := range g.Members {
				members[s] = true
			}
		}
		var parts []part
		for _, s := range slices.Sorted(maps.Keys(members)) {
			if name := f.topology.NameOf(s); name != "" {
				parts = append(parts, part{server: name})
			}
		}
		return parts
	case client.WatchHold:
		return f.held(e.Hold.Kind, e.Hold.Key)
	}
	return nil
}

func sorted(s []directory.ServerID) []directory.ServerID { return slices.Sorted(slices.Values(s)) }

// held says what a hold is on.
func (f *feed) held(kind directory.HoldKind, key string) []part {
	switch kind {
	case directory.HoldUser:
		inbox, err := directory.UserID(key).Inbox()
		if err != nil {
			return nil
		}
		return []part{{below: inbox}}
	case directory.HoldMailbox:
		return []part{{below: directory.MailboxName(key)}}
	case directory.HoldBackend:
		return []part{{server: directory.BackendName(key)}}
	case directory.HoldGroup:
		for _, g := range f.topology.Groups() {
			if string(g.Name) != key {
				continue
			}
			var parts []part
			for _, s := range g.Members {
				parts = append(parts, part{server: f.topology.NameOf(s)})
			}
			return parts
		}
	}
	return nil
}

// record is what is said of a mailbox; false if nothing is.
func (f *feed) record(e *client.WatchEvent) (record, bool) {
	w := e.Mailbox
	if e.Gone {
		return record{}, false
	}
	p := place{outcome: w.Outcome, server: f.topology.NameOf(w.Server), listed: f.topology.NameOf(w.ListedFrom), copies: f.copies[:0]}
	for i := range w.Facts {
		t := &w.Facts[i]
		p.copies = append(p.copies, copyOf{server: f.topology.NameOf(t.Server), partition: t.Partition, acl: t.ACL, state: t.State, standing: t.Standing})
	}
	f.copies = p.copies
	return f.recordOf(w.Name, &p)
}

func (f *feed) recordOf(name directory.MailboxName, p *place) (record, bool) {
	if f.own != "" {
		if c := p.copy(f.own); c != nil && (f.only || c.standing == directory.InForce) {
			return p.own(name, f.own)
		}
	}
	if f.only {
		return record{}, false
	}
	return p.routed(name)
}

// claimedRecord is what is said of a name that nothing is said of but its claim.
func (f *feed) claimedRecord(c *client.WatchedReservation) record {
	return claimed(c.Mailbox, f.topology.NameOf(c.Server), c.Partition)
}

// wanted reports whether the question covers r.
func (f *feed) wanted(r *record) bool {
	if f.location != "" && !strings.HasPrefix(r.location.String(), f.location) {
		return false
	}
	return len(f.hosts) == 0 || slices.Contains(f.hosts, r.location.Backend)
}

// unheard is why a listing of nothing says nothing: no backend has been heard. Whoever
// was told that there is nothing would delete all it has. nil: one was.
func (f *feed) unheard() error {
	for _, b := range f.topology.Backends() {
		if b.Counts() && b.ConfirmedFor(f.mark.Incarnation) {
			return nil
		}
	}
	return errUnheard
}

var errUnheard error = later("no backend has been heard")

// each calls say for each record as it is at the mark, in order: name, and what
// follows the tag. Both are say's until it returns.
func (f *feed) each(say func(name directory.MailboxName, line []byte) error) error {
	compare := directory.CompareNames
	if f.order == OctetOrder {
		compare = func(a, b directory.MailboxName) int { return strings.Compare(string(a), string(b)) }
	}
	names := slices.Collect(maps.Keys(f.beside))
	for name := range f.claims {
		if _, ok := f.beside[name]; !ok {
			names = append(names, name)
		}
	}
	slices.SortFunc(names, compare)
	// tell says what a name is that was not listed, or has changed since.
	tell := func(name directory.MailboxName) error {
		if line := f.beside[name]; line != nil {
			return say(name, line)
		}
		c := f.claims[name]
		if c == nil {
			return nil
		}
		r := f.claimedRecord(c)
		if !f.wanted(&r) {
			return nil
		}
		f.buf = r.append(f.buf[:0], f.form.Form)
		return say(name, f.buf)
	}
	err := f.spool.Each(func(text string, line []byte) error {
		name := directory.MailboxName(text)
		for len(names) > 0 && compare(names[0], name) < 0 {
			if err := tell(names[0]); err != nil {
				return err
			}
			names = names[1:]
		}
		if len(names) > 0 && names[0] == name {
			names = names[1:]
			if _, changed := f.beside[name]; changed {
				return tell(name)
			}
		}
		return say(name, line)
	})
	for _, name := range names {
		if err == nil {
			err = tell(name)
		}
	}
	return err
}
