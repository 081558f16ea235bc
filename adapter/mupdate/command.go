package mupdate

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/rookery-mail/rookery/adapter/mupdate/mupdatewire"
	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
)

// One method for each command of RFC 3656 that asks or states something. What the
// others do is in conn.go, auth.go and update.go; what follows a DELETE in rename.go.

// location reads a location. Without a '!' it is a partition of the server that the
// login is bound to: so Cyrus writes it with mupdate_config: replicated.
func (c *conn) location(s string) (directory.Location, error) {
	if c.login != "" && !strings.Contains(s, "!") {
		s = string(c.login) + "!" + s
	}
	l, err := directory.ParseLocation(s)
	if err != nil {
		return l, err
	}
	if c.login != "" && l.Backend != c.login {
		return l, fmt.Errorf("%w: this login is bound to %s and cannot speak for %s", directory.ErrRole, c.login, l.Backend)
	}
	return l, nil
}

// nameAndPlace reads the arguments that RESERVE, ACTIVATE and DEACTIVATE have.
func (c *conn) nameAndPlace(l mupdatewire.Line) (directory.MailboxName, directory.Location, error) {
	name, err := directory.ParseName(l.Args[0])
	if err != nil {
		return "", directory.Location{}, err
	}
	at, err := c.location(l.Args[1])
	if err != nil {
		return "", directory.Location{}, err
	}
	c.said = at.Backend
	return name, at, nil
}

// cmdReserve: RFC 3656, RESERVE. Cyrus demotes an active mailbox that its own server
// reserves; here that is OK and changes nothing.
func (c *conn) cmdReserve(ctx context.Context, l mupdatewire.Line) (string, error) {
	name, at, err := c.nameAndPlace(l)
	if err == nil {
		c.resync.fail() // ctl_mboxlist reserves nothing
		err = c.reserve(ctx, name, at)
	}
	if err != nil {
		c.restore(ctx)
	}
	return "done", err
}

func (c *conn) reserve(ctx context.Context, name directory.MailboxName, at directory.Location) error {
	if _, again := c.claims[name]; !again && len(c.claims) == maxClaims {
		return fmt.Errorf("%w: %d reservations of one connection that nothing followed", directory.ErrTooLarge, maxClaims)
	}
	r, err := c.session.Reserve(ctx, client.Reserve{Mailbox: name, Server: at.Backend, Partition: at.Partition, Grace: c.s.cfg.OrphanGrace})
	if err != nil {
		return err // if it was made all the same, the directory lets it lapse: once its server is heard
	}
	switch r.Effect {
	case client.Added, client.Changed, client.Unchanged:
		if c.claims == nil {
			c.claims = make(map[directory.MailboxName]claim)
		}
		if len(c.claims) == 0 {
			c.renewed = time.Now()
		}
		c.claims[name] = claim{at.Backend, r.Revision}
	}
	if p := c.pending; p != nil && p.server == at.Backend {
		c.pending, c.rename = nil, &rename{from: *p, to: name}
	}
	return nil
}

// cmdActivate: RFC 3656, ACTIVATE. A backend is believed about what it holds, so there
// is no NO for whom else holds it; that is a fork, and shown.
func (c *conn) cmdActivate(ctx context.Context, l mupdatewire.Line) (string, error) {
	name, at, err := c.nameAndPlace(l)
	if err == nil {
		err = directory.CheckACL(l.Args[2])
	}
	if err != nil {
		c.restore(ctx)
		return "", err
	}
	a := client.Assert{Mailbox: name, Server: at.Backend, Statement: directory.Statement{Partition: at.Partition, ACL: &l.Args[2]}}
	var r client.Result
	switch {
	case c.rename != nil && c.rename.to == name && c.rename.from.server == at.Backend:
		r, err = c.completeRename(ctx, a)
	default:
		c.finish(ctx)
		r, err = c.session.Assert(ctx, a)
	}
	if err != nil {
		return "", err
	}
	delete(c.claims, name)
	c.resync.activated(name)
	switch r.Effect {
	case client.Forked:
		c.s.m.forks.Inc()
		c.log.Warn("fork: activated while another holds it", "mailbox", string(name), "backend", string(at.Backend))
	case client.NotAdmitted:
		c.log.Warn("activated by a backend that is not admitted", "mailbox", string(name), "backend", string(at.Backend))
	case client.GuardHeld:
		c.log.Warn("activated what vanished before: held back until an operator decides", "mailbox", string(name), "backend", string(at.Backend))
	}
	return "done", nil
}

// cmdDeactivate: RFC 3656, DEACTIVATE: the mailbox is given up to whoever activates it
// next, and is not taken back by any timer.
func (c *conn) cmdDeactivate(ctx context.Context, l mupdatewire.Line) (string, error) {
	name, at, err := c.nameAndPlace(l)
	if err != nil {
		return "", err
	}
	c.resync.fail()
	c.finish(ctx)
	_, err = c.session.Deactivate(ctx, client.Deactivate{Mailbox: name, Server: at.Backend})
	if !errors.Is(err, directory.ErrNotHolder) {
		return "done", err
	}
	// Nothing to give up: of a name that it only reserved, that is so already.
	route, found := c.session.Lookup(ctx, name, client.Details(), client.Linearizable())
	switch {
	case found != nil:
		return "", found
	case route.Reservation != nil && route.Reservation.Server == at.Backend:
		return "done", nil
	case route.Reservation != nil || len(route.Facts) > 0:
		return "", errors.New("mailbox not currently active: " + message(err))
	}
	return "", err
}

// cmdDelete: RFC 3656, DELETE. It names no server, so who asks has to be known. And it
// may be the first step of a rename, so the fact is only announced to go; what makes it
// true is in rename.go. Of a name that is not there it is done.
func (c *conn) cmdDelete(ctx context.Context, l mupdatewire.Line) (string, error) {
	c.finish(ctx)
	name, err := directory.ParseName(l.Args[0])
	if err != nil {
		return "done", nil // no such name can be there
	}
	server, err := c.deleter(ctx, name)
	if err != nil || server == "" {
		return "done", err
	}
	delete(c.claims, name)
	// A ctl_mboxlist that compares lists renames nothing.
	tentative := c.resync.server != server
	if !tentative {
		if waits, err := c.waitsForTaker(ctx, name, server); err != nil || waits {
			return "done", err
		}
	}
	results, err := c.session.Batch(ctx, []client.Op{
		client.Retract{Mailbox: name, Server: server, Tentative: tentative},
		client.Release{Mailbox: name, Server: server},
	})
	if err != nil {
		return "", err
	}
	r := results[0]
	if r.Err != nil {
		return "", r.Err
	}
	switch r.Effect {
	case client.Removed:
		if !tentative {
			c.resync.deletions++
		}
	case client.GuardHeld:
		c.log.Warn("deleted: held back until an operator decides", "mailbox", string(name), "backend", string(server))
	case client.Changed, client.Unchanged:
		if tentative {
			c.pending = &withdrawal{name: name, server: server, at: r.Revision, restore: r.Effect == client.Changed}
		}
	}
	return "done", nil
}

// waitsForTaker reports whether server gave the mailbox up and nobody has said that it has
// it: then that server has it no more proves nothing, for whoever took it may not have
// been able to say so. It stays a move, which is shown with its age.
func (c *conn) waitsForTaker(ctx context.Context, name directory.MailboxName, server directory.BackendName) (bool, error) {
	route, err := c.session.Lookup(ctx, name, client.Details(), client.Linearizable())
	if err != nil {
		return false, err
	}
	own := route.Fact(server)
	if own == nil || own.State != directory.Deactivated {
		return false, nil
	}
	// Copies of its own group do not take a mailbox.
	return route.Outcome == directory.Moving || !slices.ContainsFunc(route.Facts, func(f client.Fact) bool { return f.State == directory.Active }), nil
}

// errUnbound is the answer to a DELETE of nobody knows whom.
var errUnbound = errors.New("bind this login to a server")

// deleter finds who asks for a DELETE: by login or certificate, by the address it came
// from, by the location named earlier on the connection, or because only one server has
// anything of the name. Empty: there is nothing to delete.
func (c *conn) deleter(ctx context.Context, name directory.MailboxName) (directory.BackendName, error) {
	for _, server := range []directory.BackendName{c.login, c.source, c.said} {
		if server != "" {
			return server, nil
		}
	}
	route, err := c.session.Lookup(ctx, name, client.Details(), client.Linearizable())
	if err != nil {
		return "", err
	}
	holders := map[directory.BackendName]bool{}
	if route.Reservation != nil {
		holders[route.Reservation.Server] = true
	}
	for i := range route.Facts {
		holders[route.Facts[i].Server] = true
	}
	if len(holders) > 1 {
		c.s.m.unbound.Inc()
		c.log.Warn("a DELETE of nobody knows whom: several servers hold the mailbox, and the login is bound to none", "mailbox", string(name))
		return "", errUnbound
	}
	for server := range holders {
		return server, nil
	}
	return "", nil
}

// cmdFind: RFC 3656, FIND. To a backend, which deletes its own mailbox when it is told
// that another has it, nothing is ever found: it activates then.
func (c *conn) cmdFind(ctx context.Context, l mupdatewire.Line) error {
	r, there, err := c.find(ctx, l.Args[0])
	c.s.m.commands.WithLabelValues("find", outcome(err)).Inc()
	if err != nil {
		c.log.Debug("FIND could not be answered", "mailbox", l.Args[0], "err", err)
		c.resync.fail()
		return c.answer(l.Tag, no, reason(err))
	}
	if there {
		if err := c.write(r.append([]byte(l.Tag), c.form.Form)); err != nil {
			return err
		}
	}
	return c.answer(l.Tag, ok, "Search completed")
}

func (c *conn) find(ctx context.Context, arg string) (r record, there bool, err error) {
	c.finish(ctx)
	if c.login != "" || c.resync.server != "" {
		c.resync.found(directory.MailboxName(arg))
		return r, false, nil
	}
	name, err := directory.ParseName(arg)
	if err != nil {
		return r, false, err
	}
	route, err := c.session.Lookup(ctx, name, client.Details(), client.Linearizable())
	if err != nil {
		return r, false, err
	}
	p := placeOfRoute(&route)
	if r, there = p.routed(name); there {
		return r, true, nil
	}
	if res := route.Reservation; res != nil {
		return claimed(name, res.Server, res.Partition), true, nil
	}
	// An empty OK says that there is no such mailbox. Whoever may have it was not heard,
	// or could not be asked: that is not known then.
	switch route.Outcome {
	case directory.Incomplete:
		if len(route.Missing) == 0 {
			return r, false, errUnheard
		}
		return r, false, later(fmt.Sprintf("not every backend has been heard: %v", route.Missing))
	case directory.Unconfirmed:
		return r, false, later(route.Why)
	}
	return r, false, nil
}

// cmdList: RFC 3656, LIST. The argument is what a location begins with. That of one
// whole server is that server's own question: what did I say? All else is about where
// mailboxes are.
func (c *conn) cmdList(ctx context.Context, l mupdatewire.Line) error {
	c.finish(ctx)
	if !c.s.lists.take() {
		c.log.Warn("too many lists at once", "limit", c.s.cfg.MaxStreams)
		c.resync.fail()
		return c.answer(l.Tag, no, reason(later("too many lists are asked for at once")))
	}
	defer c.s.lists.put()
	c.until = time.Now().Add(listTime)
	defer func() { c.until = time.Time{} }()
	f := feed{s: c.s, session: c.session, order: c.order, form: c.form, own: c.speaker(), by: endOf(ctx)}
	if len(l.Args) == 1 {
		f.location = l.Args[0]
	}
	server, partition, whole := strings.Cut(f.location, "!")
	if whole {
		b, err := directory.ParseBackend(server)
		if err != nil {
			return c.answer(l.Tag, ok, "list complete") // no location begins so
		}
		f.own, f.only = b, true
		if partition == "" {
			f.location = "" // the server's, under whatever name it had
		}
		c.said = b
	}
	told := 0
	err := f.run(c.s.ctx, func() error {
		var line []byte
		err := f.each(func(_ directory.MailboxName, text []byte) error {
			told++
			line = append(append(line[:0], l.Tag...), text...)
			return c.write(line)
		})
		if err != nil {
			return sendError{err}
		}
		if told == 0 && !whole {
			if err := f.unheard(); err != nil {
				return err
			}
		}
		return errListed
	}, nil)
	switch {
	case errors.Is(err, errListed):
		err = nil
	case whole && errors.Is(err, directory.ErrNotFound):
		// It has never said anything. In which life of the cluster, it is asked for.
		var now client.Route
		now, err = c.session.Lookup(ctx, "noop", client.Linearizable())
		f.mark = now.Answer
	case errors.As(err, new(sendError)):
		return err // a listing that broke off: there is no OK for it
	}
	c.s.m.commands.WithLabelValues("list", outcome(err)).Inc()
	if err != nil {
		c.log.Warn("LIST could not be answered", "err", err)
		c.resync.fail()
		return c.answer(l.Tag, no, reason(err))
	}
	if whole && partition == "" {
		c.resync.listed(f.own, f.mark.Incarnation, told)
	}
	return c.answer(l.Tag, ok, "list complete")
}

var errListed = errors.New("mupdate: listed")

// sendError is the connection's, while a listing was sent.
type sendError struct{ error }

func (e sendError) Unwrap() error { return e.error }

func (c *conn) cmdUpdate(ctx context.Context, l mupdatewire.Line) error {
	c.finish(ctx)
	c.resync.fail()
	return c.update(l.Tag, l.Args, endOf(ctx))
}

// endOf is when a command has to be answered.
func endOf(ctx context.Context) time.Time {
	end, _ := ctx.Deadline()
	return end
}

// cmdNoop: RFC 3656, NOOP: everything that was committed before, by anybody on any node,
// is on the wire before the OK.
func (c *conn) cmdNoop(ctx context.Context, _ mupdatewire.Line) (string, error) {
	st := c.stream
	if st == nil {
		c.finish(ctx)
	}
	route, err := c.session.Lookup(ctx, "noop", client.Linearizable())
	if err != nil || st == nil {
		return "Noop done", err
	}
	return "Noop done", st.wait(ctx, route.Revision)
}

// speaker is the backend that asks, if that is known without its telling.
func (c *conn) speaker() directory.BackendName {
	if c.login != "" {
		return c.login
	}
	return c.source
}
