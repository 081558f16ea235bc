package mirror

import (
	"context"
	"errors"
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
		if err := r.ask(ctx, func(ctx context.Context, c *mupdateclient.Client) error { return tellOne(ctx, c, l) }); err != nil {
			refused, is := errors.AsType[*mupdateclient.Refused](err)
			if !is {
				return err
			}
			l.why = "refused by the master: " + refused.Text
		}
	}
	// A DELETE may be the first step of a rename, and wait for what follows it.
	return r.ask(ctx, func(ctx context.Context, c *mupdateclient.Client) error { return c.Noop(ctx) })
}

// tellOne changes one record of the master. What it has is asked just before: a Cyrus
// master ends when it is told to DELETE or DEACTIVATE what it has not, or has so already.
func tellOne(ctx context.Context, c *mupdateclient.Client, l *look) error {
	rec, found, err := c.Find(ctx, string(l.name))
	if err != nil {
		return err
	}
	var now said
	if found {
		now = saidOf(rec)
	}
	if now.fault != "" {
		l.why = now.fault
		return nil
	}
	if err := change(ctx, c, string(l.name), now.record, l.dir); err != nil {
		return err
	}
	switch {
	case same(now.record, l.dir):
	case l.dir == nil:
		l.done = "deleted"
	case !l.dir.Reserved:
		l.done = "activated"
	case now.record == nil:
		l.done = "reserved"
	default:
		l.done = "deactivated"
	}
	l.master = l.dir
	return nil
}

// change leads from one record to the other by commands that any master takes: what goes
// from one server to another, or away, is given up first, so that one which knows several
// holders knows whose it was.
func change(ctx context.Context, c *mupdateclient.Client, name string, has, want *Record) error {
	if same(has, want) {
		return nil
	}
	leaves := has != nil && (want == nil || want.Reserved || want.Location.Backend != has.Location.Backend)
	var err error
	switch {
	case leaves && !has.Reserved:
		err = c.Deactivate(ctx, name, has.Location.String())
	case leaves && want == nil:
		err = c.Reserve(ctx, name, has.Location.String()) // it is; that names the server
	}
	switch {
	case err != nil:
		return err
	case want == nil:
		return c.Delete(ctx, name)
	case !want.Reserved:
		return c.Activate(ctx, name, want.Location.String(), want.ACL)
	case has == nil:
		return c.Reserve(ctx, name, want.Location.String())
	}
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
