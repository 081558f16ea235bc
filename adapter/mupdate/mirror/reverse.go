package mirror

import (
	"context"
	"fmt"
	"slices"

	"github.com/rookery-mail/rookery/adapter/mupdate/mupdateclient"
	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
)

// tellMaster makes the master say what frontends are told here.
func (r *round) tellMaster(ctx context.Context, looks []*look) error {
	for _, l := range looks {
		if l.dir == nil && !l.known {
			l.why = "not every backend has been heard, so nobody knows that it is not there"
			continue
		}
		if l.dir == nil && l.cause == byListing && r.withheld[l.master.Location.Backend] {
			l.why = fmt.Sprintf("the directory lacks so much of %s that it is not believed", l.master.Location.Backend)
			continue
		}
		if err := r.ask(ctx, func(c *mupdateclient.Client) error { return tellOne(ctx, c, l) }); err != nil {
			refused, is := err.(*mupdateclient.Refused)
			if !is {
				return err
			}
			l.why = "refused by the master: " + refused.Text
		}
	}
	return nil
}

// tellOne changes one record of the master. What it has is asked just before: a Cyrus
// master ends when it is told to DELETE or DEACTIVATE what it has not, or has so already.
func tellOne(ctx context.Context, c *mupdateclient.Client, l *look) error {
	rec, found, err := c.Find(ctx, string(l.name))
	if err != nil {
		return err
	}
	var has said
	if found {
		has = saidOf(rec)
	}
	return change(ctx, c, l, has)
}

// change makes the master say what l.dir says, where it has that.
func change(ctx context.Context, c *mupdateclient.Client, l *look, now said) error {
	name, has, want := string(l.name), now.record, l.dir
	switch {
	case now.fault != "":
		l.why = now.fault
		return nil
	case same(has, want):
	case want == nil:
		if err := c.Delete(ctx, name); err != nil {
			return err
		}
		l.done = "deleted"
	case !want.Reserved:
		if err := c.Activate(ctx, name, want.Location.String(), want.ACL); err != nil {
			return err
		}
		l.done = "activated"
	case has == nil:
		if err := c.Reserve(ctx, name, want.Location.String()); err != nil {
			return err
		}
		l.done = "reserved"
	default: // it is active there
		if err := c.Deactivate(ctx, name, has.Location.String()); err != nil {
			return err
		}
		l.done = "deactivated"
	}
	l.master = want
	return nil
}

// countCopies counts the copies that a backend would delete if it asked the master.
func (r *round) countCopies(route *client.Route) {
	if !r.cfg.Reverse {
		return
	}
	dir, _ := view(route)
	if dir == nil {
		return
	}
	for i := range route.Facts {
		f := &route.Facts[i]
		if r.t.counts(f) && f.Server != dir.Location.Backend {
			r.copies[f.Server]++
		}
	}
}

// refuseCopies ends a round in which copies would be wiped, unless that is accepted.
func (r *round) refuseCopies() error {
	if len(r.copies) == 0 || r.warned {
		return nil
	}
	r.warned = true
	var names []directory.BackendName
	for name := range r.copies {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		r.cfg.Told(Event{Kind: Wiped, Server: name, Count: r.copies[name]})
	}
	if r.cfg.Replicas || r.cfg.Check {
		return nil
	}
	return ErrReplicas
}
