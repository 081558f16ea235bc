package mupdate

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
)

// A rename is three commands of one connection: DELETE old, RESERVE new, ACTIVATE new.
// If one of them fails the backend goes back to the old name and says nothing of it. So
// DELETE only announces that the old name goes: its fact is withdrawing, and answers as
// moving. ACTIVATE makes it true, in one entry, in which the new name takes over what
// is known of the old one. If a command is refused, or the connection dies before
// ACTIVATE, the old name is active again, in the entry that ends the reservation. A
// DELETE that nothing follows is meant as it stands. Should this process die between,
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

// finish ends what is pending when something else follows. meant: whoever sent the
// DELETE is alive, or has closed in order.
func (c *conn) finish(ctx context.Context, meant bool) {
	if c.rename != nil || !meant {
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
		if server, claimed := c.claims[r.to]; claimed {
			ops = append(ops, client.Release{Mailbox: r.to, Server: server})
			c.unclaim(r.to)
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
		c.s.keepOld(r)
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
			c.unclaim(r.to)
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

// keepOld states the old name of a rename of which nobody knows whether it was done.
func (s *Server) keepOld(r *rename) {
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
		_, err = s.cfg.Client.Batch(ctx, []client.Op{a, client.Release{Mailbox: r.to, Server: r.from.server}})
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

// orphan is a reservation that outlived its connection.
type orphan struct {
	name   directory.MailboxName
	server directory.BackendName
}

// orphans are given back after a grace, unless they are made again.
type orphans struct {
	mu     sync.Mutex
	held   map[orphan]int // by how many connections
	timers map[orphan]*time.Timer
	giving map[orphan]chan struct{} // closed when it has been given back
	closed bool
}

// hold counts the connections that a reservation is of. One that is made again is no
// orphan.
func (o *orphans) hold(what orphan, by int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.held == nil {
		o.held = make(map[orphan]int)
	}
	if o.held[what] += by; o.held[what] == 0 {
		delete(o.held, what)
	}
	if by > 0 {
		o.stop(what)
	}
}

// stop lets a reservation be. o.mu is held.
func (o *orphans) stop(what orphan) {
	if t := o.timers[what]; t != nil {
		t.Stop()
		delete(o.timers, what)
	}
}

// leave gives back what the connection reserved and nothing followed, but for what
// another one has reserved as well.
func (c *conn) leave() {
	for name, server := range c.claims {
		c.unclaim(name)
		c.s.orphans.add(c.s, orphan{name, server})
	}
}

func (o *orphans) add(s *Server, what orphan) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed || o.held[what] > 0 {
		return // the directory lets it lapse; or it is somebody else's too
	}
	if o.timers == nil {
		o.timers, o.giving = make(map[orphan]*time.Timer), make(map[orphan]chan struct{})
	}
	o.stop(what)
	o.timers[what] = time.AfterFunc(s.cfg.OrphanGrace, func() {
		given := make(chan struct{})
		o.mu.Lock()
		gone := o.closed || o.timers[what] == nil
		delete(o.timers, what)
		if !gone {
			s.work.Add(1)
			o.giving[what] = given
		}
		o.mu.Unlock()
		if gone {
			return
		}
		defer s.work.Done()
		defer func() {
			o.mu.Lock()
			delete(o.giving, what)
			o.mu.Unlock()
			close(given)
		}()
		s.m.orphans.Inc()
		ctx, cancel := context.WithTimeout(s.ctx, s.cfg.Timeout)
		defer cancel()
		s.log.Info("a reservation is given back: its connection ended and nothing followed", "mailbox", string(what.name), "backend", string(what.server))
		s.settle(ctx, "release", []client.Op{client.Release{Mailbox: what.name, Server: what.server}})
	})
}

// drop forgets an orphan that is claimed again. One that is being given back has been
// when it returns: what is claimed after that stays.
func (o *orphans) drop(ctx context.Context, what orphan) {
	o.mu.Lock()
	o.stop(what)
	giving := o.giving[what]
	o.mu.Unlock()
	if giving != nil {
		select {
		case <-giving:
		case <-ctx.Done():
		}
	}
}

func (o *orphans) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	for _, t := range o.timers {
		t.Stop()
	}
}
