package mirror

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rookery-mail/rookery/adapter/mupdate/mupdateclient"
	"github.com/rookery-mail/rookery/adapter/mupdate/spool"
	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
)

// round is one listing of both sides, and what changes from then on.
type round struct {
	*mirror
	inbox *inbox
	t     *topology
	conn  *mupdateclient.Client // is told what changes
	asker *mupdateclient.Client // asks and tells; nil: not connected

	listing *spool.Spool
	listed  chan struct{}
	ended   chan error // of the stream, or of the watch

	waiting  map[directory.MailboxName]wait
	withheld map[directory.BackendName]bool
	first    bool                           // no round has acted on a listing before
	wrote    map[directory.BackendName]bool // since its list was confirmed
	master   map[directory.BackendName]bool // the master has named it
	unclear  map[directory.BackendName]bool // it could not be asked about some of its names
	life     directory.Incarnation
	copies   map[directory.BackendName]int // reverse: what would be wiped
	warned   bool                          // that was told
	kept     time.Time                     // when lists were confirmed last
}

// wait is a name that is looked at again.
type wait struct {
	due   time.Time
	cause cause
}

// errDone: both sides were compared, and once was asked for.
var errDone = errors.New("mirror: done")

// errTopology: backends, groups or holds changed, and with them routes that nothing was
// told of.
var errTopology = errors.New("backends, groups or holds of the directory have changed; all is compared anew")

// errBehind: the directory does not know any more what changed.
var errBehind = errors.New("the directory's log of changes does not reach back; all is compared anew")

const (
	connectTime = 30 * time.Second
	answerTime  = time.Minute // of the master, a new connection included
	batch       = 500
	closingTime = 10 * time.Second
	keepEvery   = 15 * time.Second
)

// round makes one. live: it has come so far as to follow changes.
func (m *mirror) round(parent context.Context) (live bool, err error) {
	r := &round{
		mirror: m, inbox: newInbox(), listed: make(chan struct{}), ended: make(chan error, 2), first: !m.listed,
		listing: spool.New(m.cfg.SpoolDir, false), waiting: make(map[directory.MailboxName]wait), withheld: make(map[directory.BackendName]bool),
		wrote: make(map[directory.BackendName]bool), master: make(map[directory.BackendName]bool), unclear: make(map[directory.BackendName]bool),
		copies: make(map[directory.BackendName]int),
	}
	defer r.listing.Close()
	// What is under way is ended in order once changes are followed.
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(parent))
	abort := context.AfterFunc(parent, func() { cancel(context.Cause(parent)) })
	var work sync.WaitGroup
	defer work.Wait()
	defer cancel(nil)
	defer r.close()

	// A master is asked for all it has only when there is somebody to compare it with.
	if _, err := r.now(ctx); err != nil {
		return false, err
	}
	if r.conn, err = r.connect(ctx); err != nil {
		return false, err
	}
	m.in = true
	m.cfg.Told(Event{Kind: Connected, Text: strings.Join(r.conn.Greeting().Text, " ")})
	work.Go(func() {
		r.ended <- r.conn.Update(ctx, func(rec mupdateclient.Record) error { return r.take(ctx, rec) }, r.whole, m.cfg.Ping, r.noop)
	})
	select {
	case <-r.listed:
	case err := <-r.ended:
		return false, err
	}
	at, err := r.now(ctx)
	if err != nil {
		return false, err
	}
	r.life = at.Incarnation
	if r.t, err = readTopology(ctx, m.cfg.Directory); err != nil {
		return false, err
	}
	r.speakers()
	work.Go(func() { r.ended <- r.watch(ctx, at.Token) })
	suspects := spool.New(m.cfg.SpoolDir, true)
	defer suspects.Close()
	if err := r.compare(ctx, suspects); err != nil {
		return false, err
	}
	if err := r.settleAll(ctx, suspects); err != nil {
		return false, err
	}
	m.listed = true
	if !abort() {
		return true, context.Cause(ctx)
	}
	return true, r.follow(parent, ctx)
}

// connect makes a connection to the master.
func (r *round) connect(ctx context.Context) (*mupdateclient.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTime)
	defer cancel()
	return r.cfg.Connect(ctx)
}

func (r *round) close() {
	for _, c := range []*mupdateclient.Client{r.conn, r.asker} {
		if c != nil {
			c.Close()
		}
	}
}

// now is the directory as it is.
func (r *round) now(ctx context.Context) (client.Answer, error) {
	route, err := r.cfg.Directory.Lookup(ctx, "noop", client.Linearizable())
	return route.Answer, err
}

// take is told of the master, first all it has, then what changes.
func (r *round) take(ctx context.Context, rec mupdateclient.Record) error {
	said := saidOf(rec)
	name := directory.MailboxName(rec.Name)
	select {
	case <-r.listed:
		it := item{name: name, master: said, told: true, cause: bySource}
		if r.cfg.Reverse {
			it.cause = byTarget
		}
		return r.inbox.put(ctx, it)
	default:
	}
	if rec.Kind == mupdateclient.Deleted {
		return fmt.Errorf("%w: DELETE in a listing", mupdateclient.ErrProtocol)
	}
	return r.listing.Add(string(name.AppendKey(nil)), encode(name, said))
}

// whole: the listing has ended in OK.
func (r *round) whole() error {
	close(r.listed)
	return nil
}

func (r *round) noop() error {
	r.inbox.note(func(b *inbox) { b.noops++ })
	return nil
}

// watch is told of the directory, from the token on.
func (r *round) watch(ctx context.Context, from []byte) error {
	q := client.WatchQuery{
		From:     from,
		Kinds:    []client.WatchKind{client.WatchMailbox, client.WatchReservation, client.WatchBackend, client.WatchGroup, client.WatchHold},
		Progress: 500 * time.Millisecond,
	}
	for u, err := range r.cfg.Directory.Watch(ctx, q) {
		if err != nil {
			return err
		}
		if u.Reset {
			return errBehind
		}
		for i := range u.Events {
			e := &u.Events[i]
			it := item{cause: byTarget}
			if r.cfg.Reverse {
				it.cause = bySource
			}
			switch e.Kind {
			case client.WatchMailbox:
				if r.ours(e.Mailbox) {
					continue
				}
				it.name = e.Mailbox.Name
			case client.WatchReservation:
				it.name = e.Reservation.Mailbox
			case client.WatchBackend, client.WatchGroup, client.WatchHold:
				r.inbox.note(func(b *inbox) { b.events = append(b.events, *e) })
				continue
			default:
				continue
			}
			if err := r.inbox.put(ctx, it); err != nil {
				return err
			}
		}
		if u.Mark {
			r.inbox.note(func(b *inbox) { b.mark = u.Revision })
		}
	}
	return context.Cause(ctx)
}

// speakers tells of the backends that speak to the directory.
func (r *round) speakers() {
	if r.cfg.Reverse {
		return
	}
	var names []directory.BackendName
	for name, b := range r.t.backends {
		if b.itself && !b.gone {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		r.cfg.Told(Event{Kind: Itself, Server: name})
	}
}

// tally counts what the target has of a backend, and the source lacks.
type tally struct{ has, lacks int }

// compare goes over both listings, finds the names that seem to differ, and decides of
// whom so much is lacking that it is not believed.
func (r *round) compare(ctx context.Context, suspects *spool.Spool) error {
	next, stop := iter.Pull2(r.cfg.Directory.FindAll(ctx, client.FindQuery{PageSize: 1000}, client.Linearizable()))
	defer stop()
	var route client.Route
	more := true
	mailboxes := 0
	advance := func() (err error) {
		if route, err, more = next(); more && err == nil {
			mailboxes++
			r.countCopies(&route)
		}
		return err
	}
	of := make(map[directory.BackendName]*tally)
	stood := maps.Clone(r.ledger.stand)
	meet := func(name directory.MailboxName, says said, route *client.Route) error {
		delete(stood, name)
		if says.fault != "" {
			return suspects.Add(string(name), encode(name, says))
		}
		master := says.record
		var dir *Record
		if route != nil {
			dir, _ = view(route)
		}
		source, target := master, dir
		if r.cfg.Reverse {
			source, target = dir, master
		}
		if master != nil {
			r.master[master.Location.Backend] = true
		}
		if target != nil && !name.IsDeleted() && (route == nil || !r.unknowable(master, route)) {
			b := of[target.Location.Backend]
			if b == nil {
				b = new(tally)
				of[target.Location.Backend] = b
			}
			if b.has++; source == nil {
				b.lacks++
			}
		}
		if same(master, dir) || route != nil && r.unknowable(master, route) {
			r.ledger.end(name)
			return nil
		}
		return suspects.Add(string(name), encode(name, says))
	}
	if err := advance(); err != nil {
		return err
	}
	err := r.listing.Each(func(_ string, data []byte) error {
		name, master := decode(data)
		for more && directory.CompareNames(route.Mailbox, name) < 0 {
			if err := meet(route.Mailbox, said{}, &route); err != nil {
				return err
			}
			if err := advance(); err != nil {
				return err
			}
		}
		if more && route.Mailbox == name {
			if err := meet(name, master, &route); err != nil {
				return err
			}
			return advance()
		}
		return meet(name, master, nil)
	})
	for err == nil && more {
		if err = meet(route.Mailbox, said{}, &route); err == nil {
			err = advance()
		}
	}
	if err != nil {
		return err
	}
	if err := r.refuseCopies(); err != nil {
		return err
	}
	for name := range stood {
		r.ledger.end(name) // neither has it any more
	}
	r.ledger.recount()
	r.cfg.Told(Event{Kind: Listed, Records: r.listing.Len(), Mailboxes: mailboxes, Count: suspects.Len()})
	return r.doubt(ctx, of)
}

// fewLacking is how many may be lacking of a backend that has more.
const fewLacking = 10

// doubt decides of which backends nothing is taken back.
func (r *round) doubt(ctx context.Context, of map[directory.BackendName]*tally) error {
	if r.first && r.cfg.Withdraw {
		return nil
	}
	settings, err := r.cfg.Directory.GetSettings(ctx)
	if err != nil {
		return err
	}
	var names []directory.BackendName
	for name, t := range of {
		if t.lacks == 0 || r.t.itself(name) && !r.cfg.Reverse {
			continue
		}
		limit := max(int(settings.GuardCount), t.has*int(settings.GuardPercent)/100)
		if t.lacks == t.has || t.lacks > fewLacking && 2*t.lacks > t.has || t.lacks > limit {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		r.withheld[name] = true
		r.cfg.Told(Event{Kind: Withheld, Server: name, Count: of[name].lacks, Records: of[name].has})
	}
	return nil
}

// settleAll looks at all that seems to differ.
func (r *round) settleAll(ctx context.Context, suspects *spool.Spool) error {
	if r.cfg.Check && suspects.Len() > 0 {
		// What one side was told may be under way to the other.
		if err := sleep(ctx, r.cfg.Settle); err != nil {
			return err
		}
	}
	var items []item
	work := func() error {
		err := r.work(ctx, items)
		items = items[:0]
		return err
	}
	err := suspects.Each(func(_ string, data []byte) error {
		select {
		case err := <-r.ended:
			return err
		default:
		}
		name, master := decode(data)
		if r.inbox.has(name) {
			return nil // something newer is told of it
		}
		it := item{name: name, master: master, told: true, cause: byListing}
		if r.cfg.Check {
			it.told, it.due = false, true
		}
		if items = append(items, it); len(items) < batch {
			return nil
		}
		return work()
	})
	if err == nil {
		err = work()
	}
	return err
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// barrier is a point that both sides have to pass.
type barrier struct {
	mark  directory.Revision
	noops int
	since time.Time
}

// follow does what is told, until the round ends. When parent ends, or the master does,
// what has been told already is still done.
func (r *round) follow(parent, ctx context.Context) error {
	var b *barrier
	fresh := false // nothing was told since the last barrier
	told := false
	patient := time.Now().Add(2 * (r.cfg.Settle + r.cfg.Claim))
	again := time.NewTicker(r.cfg.Every)
	defer again.Stop()
	for {
		if err := r.ending(parent); err != nil {
			return r.closing(ctx, err)
		}
		// In this order: what was told before a mark is taken then.
		mark, noops := r.inbox.heard()
		items, events := r.inbox.take(batch)
		for i := range events {
			if r.t.learn(&events[i]) {
				return r.closing(ctx, errTopology)
			}
		}
		if len(items) == 0 {
			items = r.due()
		}
		if len(items) > 0 {
			fresh = false
			if err := r.work(ctx, items); err != nil {
				r.inbox.again(items)
				return r.closing(ctx, err)
			}
			continue
		}
		pause := r.next()
		switch {
		case fresh:
		case b == nil:
			var err error
			if b, err = r.begin(ctx); err != nil {
				return r.closing(ctx, err)
			}
		default:
			if mark >= b.mark && noops >= b.noops {
				rev := b.mark
				b, fresh = nil, true
				if !told && len(r.waiting) > 0 && time.Now().Before(patient) {
					continue // what the listings found has not settled
				}
				if err := r.synced(ctx, rev, !told); err != nil {
					return r.closing(ctx, err)
				}
				told = true
				continue
			}
		}
		select {
		case <-r.inbox.wake:
		case <-pause:
		case <-again.C:
			if fresh {
				r.counted()
			}
		case <-parent.Done():
		case err := <-r.ended:
			return r.closing(ctx, err)
		}
	}
}

// ending reports why the round is to end.
func (r *round) ending(parent context.Context) error {
	select {
	case err := <-r.ended:
		return err
	default:
	}
	return context.Cause(parent)
}

// begin begins a barrier.
func (r *round) begin(ctx context.Context) (*barrier, error) {
	_, noops := r.inbox.heard()
	if err := r.conn.Ping(); err != nil {
		return nil, err
	}
	var at client.Answer
	err := r.persist(ctx, func() (err error) {
		at, err = r.now(ctx)
		return err
	})
	return &barrier{mark: at.Revision, noops: noops + 1, since: time.Now()}, err
}

// synced: all that either side had up to rev was looked at.
func (r *round) synced(ctx context.Context, rev directory.Revision, first bool) error {
	n := r.ledger.size()
	if n == 0 && r.ledger.none.IsZero() {
		r.ledger.none = time.Now()
	}
	changed := first || n != r.out.Differences
	r.out.Compared, r.out.Differences = true, n
	if changed && (len(r.waiting) == 0 || !r.cfg.Once) {
		r.counted()
	}
	if r.cfg.Once && len(r.waiting) == 0 {
		if err := r.keep(ctx, rev); err != nil {
			return err
		}
		return errDone
	}
	if time.Since(r.kept) < keepEvery {
		return nil
	}
	return r.keep(ctx, rev)
}

// closing ends the round. What was told before is done as far as that is possible
// without the master, so that it is known which backends were equal.
func (r *round) closing(ctx context.Context, why error) error {
	if r.cfg.Check || r.cfg.Reverse || errors.Is(why, errDone) {
		return why
	}
	ctx, cancel := context.WithTimeout(ctx, closingTime)
	defer cancel()
	rev := directory.Revision(0)
	for {
		mark, _ := r.inbox.heard()
		items, _ := r.inbox.take(batch)
		if len(items) > 0 {
			told := items[:0]
			for _, it := range items {
				if it.told {
					told = append(told, it)
				} else if err := r.cloud(ctx, it.name); err != nil {
					return why
				}
			}
			if err := r.work(ctx, told); err != nil {
				return why
			}
			continue
		}
		if rev != 0 && mark >= rev {
			break
		}
		if rev == 0 {
			at, err := r.now(ctx)
			if err != nil {
				return why
			}
			rev = at.Revision
		}
		select {
		case <-r.inbox.wake:
		case <-ctx.Done():
			return why
		}
	}
	for name := range r.waiting {
		if r.cloud(ctx, name) != nil {
			return why
		}
	}
	_ = r.keep(ctx, rev) // the round is over anyway
	return why
}

// cloud notes of which backends something stands under a name that others stated and that
// the master was not asked about.
func (r *round) cloud(ctx context.Context, name directory.MailboxName) error {
	if _, err := directory.ParseName(string(name)); err != nil {
		return nil
	}
	route, err := r.cfg.Directory.Lookup(ctx, name, client.Details())
	for i := range route.Facts {
		if f := &route.Facts[i]; !r.known(f) {
			r.unclear[f.Server] = true
		}
	}
	return err
}

// due takes the names that have waited long enough.
func (r *round) due() (items []item) {
	now := time.Now()
	for name, w := range r.waiting {
		if now.Before(w.due) {
			continue
		}
		items = append(items, item{name: name, cause: w.cause, due: true})
		delete(r.waiting, name)
		if len(items) == batch {
			break
		}
	}
	slices.SortFunc(items, func(a, b item) int { return directory.CompareNames(a.name, b.name) })
	return items
}

// next fires when there may be something due.
func (r *round) next() <-chan time.Time {
	wait := time.Minute
	for _, w := range r.waiting {
		wait = min(wait, max(time.Until(w.due), time.Millisecond))
	}
	return time.After(wait)
}

// persist does f until the directory answers, or the round is to end.
func (r *round) persist(ctx context.Context, f func() error) error {
	for n := 0; ; n++ {
		err := f()
		if !unanswered(err) || ctx.Err() != nil {
			return err
		}
		if n == 0 {
			r.cfg.Told(Event{Kind: Waiting, Err: err})
		}
		if err := sleep(ctx, time.Second); err != nil {
			return err
		}
	}
}

// unanswered reports whether err says no more than that the directory could not be asked.
func unanswered(err error) bool {
	return errors.Is(err, client.ErrUnavailable) || errors.Is(err, client.ErrUndecided)
}
