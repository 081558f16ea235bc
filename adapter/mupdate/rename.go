package mupdate

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
)

// A rename is three commands of one connection: DELETE old, RESERVE new, ACTIVATE new.
// If one of them fails the backend goes back to the old name and says nothing of it. So
// DELETE only announces that the old name goes: its fact is withdrawing, and answers as
// moving. ACTIVATE makes it true, in one entry, in which the new name takes over what
// is known of the old one. If a command is refused, or the connection ends before
// ACTIVATE, the old name is active again, in the entry that ends the reservation. A
// DELETE that LOGOUT follows is meant as it stands; all Cyrus servers send it, and an
// end without it is that of a process that died or of a line that broke. Should this process die between,
// the directory's own rule makes the old name active again after a while: at no time
// is a mailbox that may be there absent.

// withdrawal is a DELETE that was answered and is not yet true.
type withdrawal struct {
	name    directory.MailboxName
	server  directory.BackendName
	at      directory.Revision // of the announcement: what changed later is not touched
	restore bool               // it was active
}

// rename is a withdrawal whose new name was reserved.
type rename struct {
	from withdrawal
	to   directory.MailboxName
}

// finish ends what is pending when something else follows: a rename is not completed
// then, and a DELETE was one.
func (c *conn) finish(ctx context.Context) {
	if c.rename != nil {
		c.restore(ctx)
	}
	if p := c.pending; p != nil {
		c.pending = nil
		c.s.settle(ctx, "retract", []client.Op{client.Retract{Mailbox: p.name, Server: p.server, Since: p.at}})
	}
}

// restore makes what is pending undone.
func (c *conn) restore(ctx context.Context) {
	p := c.pending
	var ops []client.Op
	if r := c.rename; r != nil {
		p = &r.from
		if claim, claimed := c.claims[r.to]; claimed {
			ops = append(ops, client.Release{Mailbox: r.to, Server: claim.server, Since: claim.at})
			delete(c.claims, r.to)
		}
	}
	c.pending, c.rename = nil, nil
	if p == nil {
		return
	}
	if p.restore {
		ops = append(ops, client.Assert{Mailbox: p.name, Server: p.server, Since: p.at})
	}
	if len(ops) > 0 {
		c.log.Info("a rename was not completed; the old name stays", "mailbox", string(p.name), "backend", string(p.server))
		c.s.settle(ctx, "restore", ops)
	}
}

// completeRename moves the fact to its new name and states it, in one entry.
func (c *conn) completeRename(ctx context.Context, a client.Assert) (client.Result, error) {
	r := c.rename
	move := client.Rename{From: r.from.name, To: a.Mailbox, Server: a.Server}
	results, err := c.session.Batch(ctx, []client.Op{move, a})
	if errors.Is(err, client.ErrUndecided) {
		// The backend is told NO and keeps the old name, which may be gone here: it is
		// stated again. The new name, if it is here, stays until the next resync:
		// a name too many loses no mail.
		c.pending, c.rename = nil, nil
		c.s.keepOld(r, c.claims[r.to].at)
		delete(c.claims, r.to)
		return client.Result{}, err
	}
	if err != nil {
		c.restore(ctx)
		return client.Result{}, err
	}
	moved, stated := results[0], results[1]
	c.rename = nil
	if stated.Err != nil {
		c.rename = r
		if moved.Err == nil {
			c.rename = nil
			delete(c.claims, r.to)
			c.s.settle(ctx, "rename back", []client.Op{client.Rename{From: a.Mailbox, To: r.from.name, Server: a.Server}})
		}
		c.restore(ctx)
		return stated, stated.Err
	}
	if moved.Err != nil {
		// It was not to be had as one: the old name goes by itself.
		c.log.Debug("renamed in two steps", "mailbox", string(a.Mailbox), "err", moved.Err)
		c.s.settle(ctx, "retract", []client.Op{client.Retract{Mailbox: r.from.name, Server: r.from.server, Since: r.from.at}})
	}
	return stated, nil
}

// settle does ops, now or, if that cannot be, as soon as there is a majority again.
// They must be safe at any later time.
func (s *Server) settle(ctx context.Context, what string, ops []client.Op) {
	_, err := s.cfg.Client.Batch(ctx, ops)
	if err == nil {
		return
	}
	s.repair(what, err, func(ctx context.Context) error {
		_, err := s.cfg.Client.Batch(ctx, ops)
		return err
	})
}

// keepOld states the old name of a rename of which nobody knows whether it was done. The
// new one was reserved at a revision; 0: it was not.
func (s *Server) keepOld(r *rename, reserved directory.Revision) {
	s.repair("keep the old name", client.ErrUndecided, func(ctx context.Context) error {
		old, err := s.cfg.Client.Lookup(ctx, r.from.name, client.Details(), client.Linearizable())
		if err != nil {
			return err
		}
		a := client.Assert{Mailbox: r.from.name, Server: r.from.server}
		if f := old.Fact(r.from.server); f != nil {
			if f.State != directory.Withdrawing {
				return nil
			}
			a.Since = f.Last
		} else {
			moved, err := s.cfg.Client.Lookup(ctx, r.to, client.Details(), client.Linearizable())
			if err != nil {
				return err
			}
			f := moved.Fact(r.from.server)
			if f == nil {
				return nil
			}
			a.Statement = directory.Statement{Partition: f.Partition, ACL: &f.ACL, MailboxID: &f.MailboxID, UIDValidity: &f.UIDValidity, Type: &f.Type, SpecialUse: &f.SpecialUse}
		}
		ops := []client.Op{a}
		if reserved != 0 {
			ops = append(ops, client.Release{Mailbox: r.to, Server: r.from.server, Since: reserved})
		}
		_, err = s.cfg.Client.Batch(ctx, ops)
		return err
	})
}

// How many repairs there may be at once, and how long each is tried.
const (
	maxRepairs = 10_000
	repairTime = 10 * time.Minute
	repairWait = time.Second
)

// repair does what could not be done, until it is done, the server closes, or it is too
// late to be of use.
func (s *Server) repair(what string, why error, do func(context.Context) error) {
	if !s.repairs.take() {
		s.log.Warn("too much is left half done; the directory's own rules end it", "what", what)
		return
	}
	s.log.Warn("left half done until there is a majority again", "what", what, "err", why)
	s.m.repairs.Inc()
	s.work.Go(func() {
		defer s.repairs.put()
		defer s.m.repairs.Dec()
		ctx, cancel := context.WithTimeout(s.ctx, repairTime)
		defer cancel()
		for {
			one, done := context.WithTimeout(ctx, s.cfg.Timeout)
			err := do(one)
			done()
			if err == nil || !errors.Is(err, client.ErrUnavailable) && ctx.Err() == nil {
				if err != nil {
					s.log.Warn("half done", "what", what, "err", err)
				}
				return
			}
			select {
			case <-ctx.Done():
				s.log.Warn("half done", "what", what, "err", err)
				return
			case <-time.After(repairWait/2 + rand.N(repairWait)):
			}
		}
	})
}

// claim is a reservation that nothing followed yet.
type claim struct {
	server directory.BackendName
	at     directory.Revision // it was made, or renewed
}

// maxClaims is how many one connection may have. Cyrus has one.
const maxClaims = 1000

// renewTime is how long a command waits for a renewal that is under way.
const renewTime = 250 * time.Millisecond

// renew makes the claims anew from time to time: their server is heard all the while, by
// its other connections, so the directory would let them lapse. It goes on beside the
// connection, which waits for its next command; join takes in what came of it. That is to
// be called before anything else is done with the claims. What was not answered by then
// is given up, and does no harm: a claim that was renewed and is not known to be ends by
// the directory's own rule.
func (c *conn) renew() (join func()) {
	names := slices.Sorted(maps.Keys(c.claims))
	var ops []client.Op
	for _, name := range names {
		ops = append(ops, client.Reserve{Mailbox: name, Server: c.claims[name].server, Grace: c.s.cfg.OrphanGrace})
	}
	ctx, cancel := context.WithTimeout(c.s.ctx, c.s.cfg.Timeout)
	var results []client.Result
	var err error
	done, nc := make(chan struct{}), c.nc
	go func() {
		defer close(done)
		results, err = c.session.Batch(ctx, ops)
		nc.SetReadDeadline(time.Now()) // so that it is taken in
	}()
	return func() {
		patience := time.AfterFunc(renewTime, cancel)
		<-done
		patience.Stop()
		cancel()
		if err != nil {
			c.log.Debug("reservations could not be renewed; they last some time yet", "err", err)
			return
		}
		c.wereRenewed(names, results)
	}
}

// wereRenewed takes in what came of a renewal of the claims to names.
func (c *conn) wereRenewed(names []directory.MailboxName, results []client.Result) {
	var ended []client.Op
	for i, r := range results {
		name, server := names[i], c.claims[names[i]].server
		switch {
		case r.Err == nil && r.Effect == client.Changed:
			c.claims[name] = claim{server, r.Revision}
			continue
		case r.Err == nil && r.Effect == client.Added:
			// It had ended: by somebody's will, or because a LIST took so long.
			ended = append(ended, client.Release{Mailbox: name, Server: server, Since: r.Revision})
			c.log.Warn("a reservation had ended, and is not made anew", "mailbox", string(name), "backend", string(server))
		case r.Err != nil:
			c.log.Warn("a reservation could not be renewed", "mailbox", string(name), "backend", string(server), "err", r.Err)
		}
		delete(c.claims, name) // else it is a mailbox of its server's by now
	}
	if len(ended) > 0 {
		c.s.work.Go(func() { // a command may be waiting
			ctx, cancel := context.WithTimeout(c.s.ctx, c.s.cfg.Timeout)
			defer cancel()
			c.s.settle(ctx, "release", ended)
		})
	}
}

// leave gives back what the connection reserved and nothing followed.
func (c *conn) leave() {
	for name, claim := range c.claims {
		c.s.orphans.add(orphan{name: name, claim: claim, due: time.Now().Add(c.s.cfg.OrphanGrace)})
	}
	clear(c.claims)
}

// orphan is a claim that outlived its connection.
type orphan struct {
	name directory.MailboxName
	claim
	due time.Time
}

// orphans are to be given back when they are due. What was renewed meanwhile, over
// whatever node, is not touched by that.
type orphans struct {
	mu    sync.Mutex
	queue []orphan // in the order in which they are due
	more  chan struct{}
}

// How many wait, and how many are given back at once. More than that lapse by the
// directory's own rule.
const (
	maxOrphans  = 100_000
	orphanBatch = 500
)

func (o *orphans) add(what orphan) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.queue) == maxOrphans {
		return
	}
	o.queue = append(o.queue, what)
	select {
	case o.more <- struct{}{}:
	default:
	}
}

// take returns some that are due, and how long it is until the next is.
func (o *orphans) take(now time.Time) (due []orphan, wait time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for len(o.queue) > 0 && len(due) < orphanBatch && !o.queue[0].due.After(now) {
		due, o.queue = append(due, o.queue[0]), o.queue[1:]
	}
	if len(o.queue) == 0 {
		o.queue = nil
		return due, time.Hour
	}
	return due, o.queue[0].due.Sub(now)
}

// comparing is the cluster version from which a Release compares revisions. Before it,
// and while the directory cannot be asked, orphans lapse by themselves: once their server
// was heard again.
const comparing = 2

// giveBack gives orphans back until the server closes.
func (s *Server) giveBack() {
	for {
		due, wait := s.orphans.take(time.Now())
		if len(due) == 0 {
			select {
			case <-time.After(wait):
			case <-s.orphans.more:
			case <-s.ctx.Done():
				return
			}
			continue
		}
		var ops []client.Op
		for _, o := range due {
			s.log.Info("a reservation is given back: its connection ended and nothing followed", "mailbox", string(o.name), "backend", string(o.server))
			ops = append(ops, client.Release{Mailbox: o.name, Server: o.server, Since: o.at})
		}
		ctx, cancel := context.WithTimeout(s.ctx, s.cfg.Timeout)
		if v, err := s.cfg.Client.GetClusterVersion(ctx); err == nil && v.Version >= comparing {
			s.m.orphans.Add(float64(len(due)))
			s.settle(ctx, "release", ops)
		}
		cancel()
	}
}
