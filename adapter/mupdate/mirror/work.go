package mirror

import (
	"context"
	"errors"
	"time"

	"github.com/rookery-mail/rookery/adapter/mupdate/mupdateclient"
	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
)

// look is a name with what both sides have of it.
type look struct {
	item
	master  *Record
	route   client.Route
	dir     *Record
	known   bool // that the directory has it, or that it has not
	why     string
	done    string
	younger bool // as in Difference
}

func (l *look) difference() Difference {
	return Difference{Mailbox: l.name, Master: l.master, Directory: l.dir, Unknown: l.item.master.fault != "", Why: l.why, younger: l.younger}
}

// work looks at some names and does what has to be done.
func (r *round) work(ctx context.Context, items []item) error {
	looks, err := r.lookAt(ctx, items)
	if err != nil {
		return err
	}
	var mend, stand []*look
	for i := range looks {
		l := &looks[i]
		switch {
		case l.item.master.fault != "" && !l.due:
			r.wait(l, r.cfg.Settle)
		case l.why != "":
			delete(r.waiting, l.name)
			r.ledger.begin(l.difference())
		case r.agree(l):
			delete(r.waiting, l.name)
			r.ledger.end(l.name)
		case r.early(l):
			r.wait(l, r.cfg.Claim)
		case r.cfg.Check || l.cause == byTarget:
			if l.due || r.ledger.has(l.name) {
				stand = append(stand, l)
			} else {
				r.wait(l, r.cfg.Settle)
			}
		default:
			mend = append(mend, l)
		}
	}
	if err := r.mend(ctx, mend); err != nil {
		return err
	}
	for _, l := range stand {
		if err := r.stands(ctx, l); err != nil {
			return err
		}
	}
	return nil
}

// mend makes the target say what the source says.
func (r *round) mend(ctx context.Context, mend []*look) error {
	if len(mend) == 0 {
		return nil
	}
	var err error
	was := make([]Difference, len(mend))
	for i, l := range mend {
		was[i] = l.difference()
	}
	if r.cfg.Reverse {
		err = r.tellMaster(ctx, mend)
	} else {
		err = r.tellDirectory(ctx, mend)
	}
	if err != nil {
		return err
	}
	for i, l := range mend {
		delete(r.waiting, l.name)
		if !r.agree(l) {
			if err := r.stands(ctx, l); err != nil {
				return err
			}
			continue
		}
		r.ledger.end(l.name)
		if l.done != "" {
			was[i].Why = l.done
			r.cfg.Told(Event{Kind: Mended, Difference: was[i]})
		}
	}
	return nil
}

// agree reports whether there is nothing to be done about a name.
func (r *round) agree(l *look) bool {
	return same(l.master, l.dir) || r.unknowable(l.master, &l.route) || r.claimed(l)
}

// unknowable reports whether the directory has what the master cannot know: only
// replicas have it.
func (r *round) unknowable(master *Record, route *client.Route) bool {
	return !r.cfg.Reverse && master == nil && r.t.replicasOnly(route)
}

// lookAt asks both sides.
func (r *round) lookAt(ctx context.Context, items []item) ([]look, error) {
	looks := make([]look, len(items))
	names := make([]directory.MailboxName, 0, len(items))
	ask := make([]*look, 0, len(items))
	for i, it := range items {
		l := &looks[i]
		l.item = it
		if !it.told {
			if err := r.askMaster(ctx, l); err != nil {
				return nil, err
			}
		}
		l.master, l.why = l.item.master.record, l.item.master.fault
		if l.master != nil {
			r.master[l.master.Location.Backend] = true
		}
		if _, err := directory.ParseName(string(it.name)); err != nil {
			continue // the directory cannot have it
		}
		names, ask = append(names, it.name), append(ask, l)
	}
	routes, err := r.routes(ctx, names)
	for i := range routes {
		r.countCopies(&routes[i])
		ask[i].take(routes[i])
	}
	if err == nil {
		err = r.refuseCopies()
	}
	return looks, err
}

func (r *round) routes(ctx context.Context, names []directory.MailboxName) (routes []client.Route, err error) {
	if len(names) == 0 {
		return nil, nil
	}
	err = r.persist(ctx, func() (err error) {
		routes, err = r.cfg.Directory.LookupMany(ctx, names, client.Details())
		return err
	})
	return routes, err
}

// take notes what the directory has.
func (l *look) take(route client.Route) {
	l.route = route
	l.dir, l.known = view(&route)
	if route.Err != nil && l.why == "" {
		l.why = "refused: " + route.Err.Error()
	}
}

// askMaster finds a name at the master.
func (r *round) askMaster(ctx context.Context, l *look) error {
	err := r.ask(ctx, func(ctx context.Context, c *mupdateclient.Client) error {
		rec, found, err := c.Find(ctx, string(l.name))
		if l.item.master = (said{}); found && err == nil {
			l.item.master = saidOf(rec)
		}
		return err
	})
	if refused, is := errors.AsType[*mupdateclient.Refused](err); is {
		l.item.master = said{fault: "the master does not say what it has: " + refused.Text}
		return nil
	}
	return err
}

// ask asks, or tells, the master something on the second connection. One that was idle
// may have been closed, so it is tried again on another.
func (r *round) ask(ctx context.Context, f func(context.Context, *mupdateclient.Client) error) error {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	for again := false; ; again = true {
		fresh := r.asker == nil
		if fresh {
			c, err := r.connect(ctx)
			if err != nil {
				return err
			}
			r.asker = c
		}
		err := f(ctx, r.asker)
		if _, refused := errors.AsType[*mupdateclient.Refused](err); err == nil || refused {
			return err
		}
		r.asker.Close()
		r.asker = nil
		if fresh || again || ctx.Err() != nil {
			return err
		}
	}
}

// claimed reports whether both sides have a name claimed and nobody holds it.
func (r *round) claimed(l *look) bool {
	res := l.route.Reservation
	return l.dir == nil && res != nil && l.master != nil && l.master.Reserved && res.Server == l.master.Location.Backend
}

// early reports whether a name that the master has as reserved, and that nobody holds,
// may still be one that is being made.
func (r *round) early(l *look) bool {
	return !r.cfg.Reverse && l.master != nil && l.master.Reserved && l.dir == nil && !l.due
}

// wait looks at a name again later.
func (r *round) wait(l *look, d time.Duration) {
	w, waits := r.waiting[l.name]
	if !waits {
		w.due = time.Now().Add(d)
	}
	w.cause = max(w.cause, l.cause)
	if l.cause == byTarget {
		w.cause = byTarget // it has spoken since
	}
	r.waiting[l.name] = w
}

// stands notes a difference that nothing is done about.
func (r *round) stands(ctx context.Context, l *look) error {
	delete(r.waiting, l.name)
	l.younger = l.younger || l.cause == byTarget
	switch {
	case l.why != "" || r.cfg.Check:
	case l.cause == byTarget && r.cfg.Reverse:
		l.why = "stated to the master by others"
	case l.cause == byTarget:
		l.why = "stated to the directory by others"
	case l.dir != nil && l.dir.Reserved:
		l.why = "its route is " + l.route.Outcome.String()
	case l.dir != nil && l.master != nil && l.dir.Location.Backend != l.master.Location.Backend:
		l.why = string(l.dir.Location.Backend) + " is its primary"
	}
	r.ledger.begin(l.difference())
	if !l.younger || r.cfg.Check || r.cfg.Reverse {
		return nil
	}
	return r.restate(ctx, l)
}
