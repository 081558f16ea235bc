//go:build peers

package interop

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rookery-mail/rookery/adapter/cyrus"
	"github.com/rookery-mail/rookery/adapter/mupdate/mupdateclient"
	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
)

// ledger is what must be there: which mailboxes exist, which mail was taken, and what
// each backend holds. It is kept from what the scripts do, and from no answer of the
// directory.
type ledger struct {
	lab  *lab
	stop context.CancelFunc
	work sync.WaitGroup

	mu      sync.Mutex
	exists  map[string]*existing
	mails   map[string]*mail           // by id
	held    map[string]map[string]bool // by server: its own list when it was last looked at
	moved   []string                   // what was deleted, renamed or moved, with all below it
	expired bool                       // what was deleted was ended somewhere
	last    int                        // number of the last mail
	probes  int                        // answers that were judged
	later   int                        // answers that said "not now"
	since   map[string]time.Time       // when a server was started last
}

// existing is a mailbox that is there under one of some names: two while a rename is
// under way.
type existing struct {
	names  []string
	since  time.Time
	misled bool // the directory was told what is not so
}

// mail is one that a server took.
type mail struct {
	mailbox string // its internal name
	deleted bool   // the mailbox was deleted; the mail is on disk until it expires
}

func newLedger(l *lab) *ledger {
	g := &ledger{lab: l, exists: map[string]*existing{}, mails: map[string]*mail{}, held: map[string]map[string]bool{}, since: map[string]time.Time{}}
	return g
}

// internal is what Cyrus calls a mailbox that a user calls name.
func internal(user, name string) string {
	if top, rest, _ := strings.Cut(name, "."); strings.EqualFold(top, "INBOX") {
		return strings.TrimSuffix("user."+user+"."+rest, ".")
	}
	return name
}

// isBelow reports whether name is top or below it.
func isBelow(name, top string) bool { return name == top || strings.HasPrefix(name, top+".") }

// made: a mailbox was made.
func (g *ledger) made(name string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.exists[name] == nil {
		g.exists[name] = &existing{names: []string{name}, since: time.Now()}
	}
}

// deletes: a mailbox is about to be deleted; an inbox takes all below it along.
func (g *ledger) deletes(name string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	inbox := strings.HasPrefix(name, "user.") && strings.Count(name, ".") == 1
	gone := func(other string) bool { return other == name || inbox && isBelow(other, name) }
	for other := range g.exists {
		if gone(other) {
			delete(g.exists, other)
		}
	}
	for _, m := range g.mails {
		if gone(m.mailbox) {
			m.deleted = true
		}
	}
	g.moved = append(g.moved, name)
}

// renames: a mailbox and all below it are about to have another name.
func (g *ledger) renames(from, to string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for name, e := range g.exists {
		if isBelow(name, from) {
			e.names = append(e.names, to+name[len(from):])
		}
	}
	g.moved = append(g.moved, from, to)
}

// renamed: they have it now; done is false if the old one stayed.
func (g *ledger) renamed(from, to string, done bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for name, e := range g.exists {
		if !isBelow(name, from) {
			continue
		}
		e.names = []string{name}
		if done {
			delete(g.exists, name)
			e.names = []string{to + name[len(from):]}
			g.exists[e.names[0]] = e
			e.since = time.Now()
		}
	}
	for _, m := range g.mails {
		if done && isBelow(m.mailbox, from) {
			m.mailbox = to + m.mailbox[len(from):]
		}
	}
}

// below is what follows the name of a mailbox in its own and those below it, in order.
func (g *ledger) below(top string) (rest []string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, name := range sorted(g.exists) {
		if isBelow(name, top) {
			rest = append(rest, name[len(top):])
		}
	}
	return rest
}

// moves: a mailbox, and all below it, may leave the server that it is on.
func (g *ledger) moves(name string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.moved = append(g.moved, name)
}

// expires: what was deleted is no more.
func (g *ledger) expires() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.expired = true
	for id, m := range g.mails {
		if m.deleted {
			delete(g.mails, id)
		}
	}
}

func (g *ledger) expiresIf(so bool) {
	if so {
		g.expires()
	}
}

// lost: an operator put an older copy in the place of what there was.
func (g *ledger) lost(name string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.moved = append(g.moved, name)
	for other := range g.exists {
		if isBelow(other, name) {
			delete(g.exists, other)
		}
	}
	for id, m := range g.mails {
		if isBelow(m.mailbox, name) {
			delete(g.mails, id)
		}
	}
}

// misled: the directory is told what is not so, and no answer about it is judged until
// it is trusted again.
func (g *ledger) misled(name string) { g.mislead(name, true) }

func (g *ledger) trusted(name string) { g.mislead(name, false) }

func (g *ledger) mislead(top string, so bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for name, e := range g.exists {
		if isBelow(name, top) {
			e.misled = so
			e.names = slices.Clone(e.names)
		}
	}
}

// newMail is a message that has an id of its own. It counts once it was taken.
func (g *ledger) newMail() (id, text string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.last++
	id = fmt.Sprintf("<interop-%d@test>", g.last)
	return id, "From: interop@test\r\nTo: interop@test\r\nSubject: " + id[1:len(id)-1] + "\r\nMessage-ID: " + id + "\r\n\r\nA mail of the lab.\r\n"
}

func (g *ledger) taken(id, mailbox string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.mails[id] = &mail{mailbox: mailbox}
}

func (g *ledger) started(server string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.since[server] = time.Now()
}

// look compares a backend's own list with what it held when it was last looked at:
// what is gone must have been deleted, renamed or moved.
func (g *ledger) look(s *server, list map[string]cyrus.Record) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for name := range g.held[s.name] {
		if _, has := list[name]; !has && !g.explained(name) {
			g.lab.fail("%s no longer has %s, and nobody deleted, renamed or moved it", s.name, name)
		}
	}
	now := map[string]bool{}
	for name := range list {
		now[name] = true
	}
	g.held[s.name] = now
}

func (g *ledger) explained(name string) bool {
	if rest, deleted := strings.CutPrefix(name, "DELETED."); deleted {
		if g.expired {
			return true
		}
		name = rest[:strings.LastIndexByte(rest, '.')]
	}
	return slices.ContainsFunc(g.moved, func(top string) bool { return isBelow(name, top) })
}

// forget: what a server held is thrown away by whoever runs the lab.
func (g *ledger) forget(s *server) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.held, s.name)
}

// mail looks for every mail that was taken: what is in a mailbox that exists must be
// readable by its owner through the frontend, and what was deleted is on some disk.
func (g *ledger) mail() error {
	g.mu.Lock()
	of := map[string][]string{} // ids by user
	where := map[string]string{}
	var deleted []string
	for id, m := range g.mails {
		levels := strings.Split(m.mailbox, ".")
		switch {
		case m.deleted:
			deleted = append(deleted, id)
		case levels[0] == "user" && len(levels) > 1:
			of[levels[1]] = append(of[levels[1]], id)
			where[id] = m.mailbox
		}
	}
	g.mu.Unlock()
	for _, user := range sorted(of) {
		found, err := readAll(g.lab.servers["fe"].address("143"), user)
		if err != nil {
			return fmt.Errorf("read the mail of %s: %w", user, err)
		}
		for _, id := range of[user] {
			if _, ok := found[id]; !ok {
				g.lab.fail("mail lost: %s cannot read %s, which is in %s; there are %d others", user, id, where[id], len(found))
			}
		}
	}
	for _, id := range deleted {
		if !g.onDisk(id) {
			g.lab.fail("mail lost: %s was in a mailbox that was deleted, has not expired, and is on no disk", id)
		}
	}
	return nil
}

func (g *ledger) onDisk(id string) bool {
	for _, s := range g.lab.servers {
		if !s.frontend && exec.Command("grep", "-rqF", "Message-ID: "+id, s.dir+"/spool").Run() == nil {
			return true
		}
	}
	return false
}

// differences is what the directory's facts, the backends' own lists and the replica's
// say differently.
func (g *ledger) differences() (found []string, err error) {
	all := g.lab.backends()
	lists := make([]map[string]cyrus.Record, len(all))
	errs := make([]error, len(all))
	var work sync.WaitGroup
	for i, s := range all {
		work.Go(func() { lists[i], errs[i] = s.mailboxes() })
	}
	work.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	facts, err := g.lab.cluster.facts()
	if err != nil {
		return nil, err
	}
	of := map[string]map[string]cyrus.Record{}
	for i, s := range all {
		g.look(s, lists[i])
		of[s.name] = lists[i]
		for name, m := range lists[i] {
			route := facts[name]
			f := route.Fact(directory.BackendName(s.host()))
			switch {
			case f == nil:
				found = append(found, fmt.Sprintf("%s has %s, and the directory has no fact of it", s.name, name))
			case f.State != directory.Active:
				found = append(found, fmt.Sprintf("%s has %s, and its fact is %v", s.name, name, f.State))
			case f.ACL != m.ACL || f.Partition != m.Partition:
				found = append(found, fmt.Sprintf("%s has %s as %s %q, the directory as %s %q", s.name, name, m.Partition, m.ACL, f.Partition, f.ACL))
			}
		}
		for name, route := range facts {
			if _, has := lists[i][name]; !has && route.Fact(directory.BackendName(s.host())) != nil {
				found = append(found, fmt.Sprintf("the directory has %s on %s, which has no such mailbox", name, s.name))
			}
		}
	}
	slices.Sort(found)
	return append(found, unlike(of["be1"], of["rep"])...), nil
}

// unlike is how the replica's list is not be1's. What was deleted it has under names of
// its own, and for as long as it likes.
func unlike(mine, copies map[string]cyrus.Record) (found []string) {
	for name, m := range mine {
		if c, has := copies[name]; !strings.HasPrefix(name, "DELETED.") && (!has || c.ACL != m.ACL) {
			found = append(found, fmt.Sprintf("be1 has %s %q, and rep %q", name, m.ACL, c.ACL))
		}
	}
	for name := range copies {
		if _, has := mine[name]; !has && !strings.HasPrefix(name, "DELETED.") {
			found = append(found, fmt.Sprintf("rep has %s, and be1 has not", name))
		}
	}
	slices.Sort(found)
	return found
}

// probe asks all the time for mailboxes that exist: on any node, and of the frontend by
// RCPT. "Later" is an answer, and "no such mailbox" is never one.
func (g *ledger) probe() {
	ctx, cancel := context.WithCancel(context.Background())
	g.stop = cancel
	g.work.Go(func() {
		for n := 0; ctx.Err() == nil; n++ {
			g.ask(ctx)
			if n%8 == 0 {
				g.deliver()
			}
			select {
			case <-ctx.Done():
			case <-time.After(25 * time.Millisecond):
			}
		}
	})
}

func (g *ledger) close() {
	if g.stop != nil {
		g.stop()
		g.work.Wait()
	}
}

// any is a mailbox that exists, and its names of now.
func (g *ledger) any(fit func(name string, e *existing) bool) (*existing, []string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	var all []*existing
	for name, e := range g.exists {
		if !e.misled && fit(name, e) {
			all = append(all, e)
		}
	}
	if len(all) == 0 {
		return nil, nil
	}
	e := all[rand.IntN(len(all))]
	return e, slices.Clone(e.names)
}

// still reports whether a mailbox exists as it did.
func (g *ledger) still(e *existing, names []string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.probes++
	for _, other := range g.exists {
		if other == e {
			return !e.misled && slices.Equal(e.names, names)
		}
	}
	return false
}

func (g *ledger) notNow() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.later++
}

// ask asks one node by MUPDATE's FIND.
func (g *ledger) ask(ctx context.Context) {
	e, names := g.any(func(string, *existing) bool { return true })
	if e == nil {
		return
	}
	n := g.lab.cluster.nodes[rand.IntN(len(g.lab.cluster.nodes))]
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	c, err := mupdateclient.Dial(ctx, n.master, mupdateclient.Options{})
	if err != nil {
		g.notNow()
		return
	}
	defer c.Close()
	if err := c.Login(ctx, "fe", "secret"); err != nil {
		g.notNow()
		return
	}
	// Between two questions it may have gone back to the first name, once or twice.
	for range 3 {
		for _, name := range names {
			_, found, err := c.Find(ctx, name)
			if err != nil {
				g.notNow()
				return
			}
			if found {
				g.still(e, names)
				return
			}
		}
	}
	if g.still(e, names) {
		g.lab.fail("%s answers FIND as if %v were not there", n.name, names)
	}
}

// settled is how long a frontend may take to hear of a name, or to come back.
const settled = 10 * time.Second

// deliver asks the frontend whether it would take mail for a user.
func (g *ledger) deliver() {
	g.mu.Lock()
	up := g.since["fe"]
	g.mu.Unlock()
	if up.IsZero() || time.Since(up) < settled {
		return
	}
	e, names := g.any(func(name string, e *existing) bool {
		return strings.HasPrefix(name, "user.") && strings.Count(name, ".") == 1 && len(e.names) == 1 && time.Since(e.since) > settled
	})
	if e == nil {
		return
	}
	answer, err := lmtp(g.lab.servers["fe"].address("2003"), names[0][len("user."):], "")
	if err == errHung {
		g.lab.fail("lmtpd of fe hung: no answer for %s after %v", names[0], patience)
	}
	if err != nil || !strings.HasPrefix(answer, "5") {
		return
	}
	if g.still(e, names) {
		g.lab.fail("fe refuses mail for %s for good: %s", names[0], answer)
	}
}

// tell adds what was looked after to a tally.
func (g *ledger) tell(t *tally) {
	g.mu.Lock()
	defer g.mu.Unlock()
	t.mails += g.last
	t.probes += g.probes
	t.later += g.later
}

// location is a fact as scripts show it.
func location(f client.Fact) string {
	text := fmt.Sprintf("%s!%s", f.Server, f.Partition)
	if f.State != directory.Active {
		text += fmt.Sprintf("(%v)", f.State)
	}
	return text
}
