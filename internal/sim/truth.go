package sim

import (
	"slices"
	"time"

	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/directory/machine"
	"github.com/rookery-mail/rookery/internal/oracle"
	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
)

// truth is what the actors know for certain, by their own books and without any of the
// directory's rules about homes, forks and standings: which copies were acknowledged
// and have been given up by nobody since, so that mail must not bounce and a LIST must
// not miss them, and who may not be believed. It errs on the side of not being
// certain: whatever might in some order take a copy's force away ends the certainty
// when it is sent, and until all that was sent before has ended none begins.
type truth struct {
	x     *Workload
	moves uint64 // counts what was noted

	certain map[directory.MailboxName]map[directory.BackendName]*claim
	claimed map[directory.MailboxName]map[directory.BackendName][]string // every ACL that was ever stated
	dangers []danger
	last    map[directory.MailboxName]uint64 // revision of the last danger that was acknowledged

	servers map[directory.BackendName]*known
	grants  map[directory.MailboxName]grant
	life    uint32
	floods  int // unmounted disks whose mail is being watched
	shaken  int // what makes the count of a flood void

	closed    bool // admission is, and was before any stranger spoke
	closedRev uint64
}

// claim is a copy that a backend holds, as the directory has acknowledged.
type claim struct {
	at   uint64 // in moves, when it began
	rev  uint64
	acl  string // "": one is under way
	home bool   // it was no fork
}

// danger is an operation that may take a copy's force away, and has not ended.
type danger struct {
	client string
	rename directory.MailboxName // a whole subtree of these; or
	name   directory.MailboxName
}

// known is what is known of a backend.
type known struct {
	admitted  bool // acknowledged, or asked for
	counts    bool // acknowledged
	countsRev uint64
	gone      bool                           // lost or retired, or it was asked for
	wasGone   bool                           // ever
	drains    bool                           // perhaps with approval: the guard lets it withdraw
	mates     map[directory.BackendName]bool // were ever in its group
	confirmed map[uint32]bool                // by incarnation: somebody asked for it
	stranger  bool                           // it is nobody's; its claims count for nothing
}

// grant is a name that a backend may make.
type grant struct {
	server directory.BackendName
	sent   time.Duration
}

func newTruth(x *Workload) *truth {
	return &truth{
		x: x, life: 1, moves: 1, certain: map[directory.MailboxName]map[directory.BackendName]*claim{},
		claimed: map[directory.MailboxName]map[directory.BackendName][]string{},
		last:    map[directory.MailboxName]uint64{}, servers: map[directory.BackendName]*known{}, grants: map[directory.MailboxName]grant{},
	}
}

// mark is the present point of what was noted.
func (t *truth) mark() uint64 { return t.moves }

func (t *truth) server(name directory.BackendName) *known {
	k := t.servers[name]
	if k == nil {
		k = &known{mates: map[directory.BackendName]bool{}, confirmed: map[uint32]bool{}}
		t.servers[name] = k
	}
	return k
}

// sent takes note of an operation that may from now on be done at any time, until its
// client's next is answered.
func (t *truth) sent(s *session, op machine.Op) {
	t.moves++
	switch op := op.(type) {
	case machine.Assert:
		t.state(op.Mailbox, op.Server, *op.Statement.ACL)
		delete(t.grants, op.Mailbox)
		if c := t.certain[op.Mailbox][op.Server]; c != nil && c.acl != *op.Statement.ACL {
			c.acl = ""
		}
	case machine.Retract:
		delete(t.grants, op.Mailbox)
		if !op.Tentative {
			t.endanger(s, op.Mailbox, op.Server)
		}
	case machine.Release:
		delete(t.grants, op.Mailbox)
	case machine.Deactivate:
		delete(t.grants, op.Mailbox)
		clear(t.certain[op.Mailbox])
		t.dangers = append(t.dangers, danger{client: s.client, name: op.Mailbox})
	case machine.Settle:
		clear(t.certain[op.Mailbox])
		t.dangers = append(t.dangers, danger{client: s.client, name: op.Mailbox})
	case machine.Rename:
		for name := range t.certain {
			if name == op.From || op.Recursive && name.IsBelow(op.From) {
				t.forget(name, op.Server)
			}
		}
		for name := range t.grants {
			if name == op.To || name.IsBelow(op.To) || name == op.From || name.IsBelow(op.From) {
				delete(t.grants, name)
			}
		}
		t.dangers = append(t.dangers, danger{client: s.client, rename: op.From})
		// What it makes has the ACLs of what it moves.
		for _, name := range names(t.claimed) {
			if name == op.From || op.Recursive && name.IsBelow(op.From) {
				for _, acl := range t.claimed[name][op.Server] {
					t.state(op.To+name[len(op.From):], op.Server, acl)
				}
			}
		}
	case machine.SetBackend:
		if op.Create {
			t.server(op.Server).admitted = true
		}
		if op.State != nil {
			k := t.server(op.Server)
			if *op.State == directory.BackendDraining {
				t.shaken++
				k.drains = true
			}
			if op.State.Gone() || k.gone {
				k.gone, k.wasGone = true, true
				t.forgetAll(op.Server)
			}
		}
	case machine.SetGroup:
		all := slices.Clone(op.Members)
		for _, a := range op.Members {
			for m := range t.server(a).mates {
				all = append(all, m)
			}
		}
		for _, a := range all {
			for _, b := range op.Members {
				t.server(a).mates[b], t.server(b).mates[a] = true, true
			}
			t.forgetAll(a)
		}
		t.dangers = append(t.dangers, danger{client: s.client})
	case machine.Admit:
		t.server(op.Server).admitted = true
	case machine.Confirm:
		for life := uint32(1); life <= t.life+1; life++ {
			if uint32(op.Incarnation) == life || op.Incarnation == 0 {
				t.server(op.Server).confirmed[life] = true
			}
		}
	case machine.DecideHeld:
		t.shaken++
		if op.Approve {
			// What a primary withdrew goes for its group, whoever has stated it since.
			t.forgetAll(op.Server)
			for mate := range t.server(op.Server).mates {
				t.forgetAll(mate)
			}
			t.dangers = append(t.dangers, danger{client: s.client})
		}
	case changeSettings:
		t.shaken++
	}
}

// state notes an ACL that a server states of a mailbox.
func (t *truth) state(name directory.MailboxName, server directory.BackendName, acl string) {
	by := t.claimed[name]
	if by == nil {
		by = map[directory.BackendName][]string{}
		t.claimed[name] = by
	}
	if !slices.Contains(by[server], acl) {
		by[server] = append(by[server], acl)
	}
}

// endanger ends what is certain of a mailbox at a server and at those that it may
// decide for.
func (t *truth) endanger(s *session, name directory.MailboxName, server directory.BackendName) {
	t.forget(name, server)
	t.dangers = append(t.dangers, danger{client: s.client, name: name})
}

func (t *truth) forget(name directory.MailboxName, server directory.BackendName) {
	delete(t.certain[name], server)
	for mate := range t.server(server).mates {
		delete(t.certain[name], mate)
	}
}

func (t *truth) forgetAll(server directory.BackendName) {
	for _, by := range t.certain {
		delete(by, server)
	}
}

// ended notes that all that a client has sent has ended.
func (t *truth) ended(s *session) {
	t.dangers = slices.DeleteFunc(t.dangers, func(d danger) bool { return d.client == s.client })
}

// endangered tells whether something under way may yet take a mailbox away.
func (t *truth) endangered(name directory.MailboxName) bool {
	return slices.ContainsFunc(t.dangers, func(d danger) bool {
		switch {
		case d.rename != "":
			return name == d.rename || name.IsBelow(d.rename)
		case d.name != "":
			return name == d.name
		}
		return true
	})
}

// acked takes note of what an operation came to.
func (t *truth) acked(s *session, op machine.Op, e machine.Effect, rev uint64, began time.Duration) {
	t.moves++
	switch op := op.(type) {
	case machine.Assert:
		k := t.server(op.Server)
		switch e {
		case machine.Added, machine.Changed, machine.Unchanged, machine.MoveCompleted, machine.MoveAborted, machine.Forked:
		default:
			delete(t.certain[op.Mailbox], op.Server)
			return
		}
		if !k.counts {
			k.counts, k.admitted, k.countsRev = true, true, rev
		}
		if e == machine.MoveAborted || e == machine.MoveCompleted {
			for other := range t.certain[op.Mailbox] {
				if other != op.Server {
					delete(t.certain[op.Mailbox], other)
				}
			}
		}
		// What an operator decided is gone through by Ticks that follow.
		if k.gone || k.stranger || op.Deactivated || t.endangered(op.Mailbox) || rev < t.last[op.Mailbox] || t.x.judge.o.Sweeping() {
			return
		}
		if t.certain[op.Mailbox] == nil {
			t.certain[op.Mailbox] = map[directory.BackendName]*claim{}
		}
		c := t.certain[op.Mailbox][op.Server]
		if c == nil {
			c = &claim{at: t.moves, rev: rev}
			t.certain[op.Mailbox][op.Server] = c
		}
		c.acl, c.home = *op.Statement.ACL, e != machine.Forked
	case machine.Retract:
		t.last[op.Mailbox] = max(t.last[op.Mailbox], rev)
	case machine.Deactivate:
		t.last[op.Mailbox] = max(t.last[op.Mailbox], rev)
	case machine.Settle:
		t.last[op.Mailbox] = max(t.last[op.Mailbox], rev)
	case machine.Rename:
		for name := range t.claimed {
			if name == op.From || name.IsBelow(op.From) {
				t.last[name] = max(t.last[name], rev)
			}
		}
	case machine.SetGroup, machine.DecideHeld:
		for name := range t.claimed {
			t.last[name] = max(t.last[name], rev)
		}
	case machine.SetBackend:
		k := t.server(op.Server)
		if op.Create {
			k.counts, k.countsRev = true, max(k.countsRev, rev)
		}
		if op.State != nil && !op.State.Gone() {
			k.gone = false
			k.drains = *op.State == directory.BackendDraining
			for name := range t.claimed {
				if t.claimed[name][op.Server] != nil {
					t.last[name] = max(t.last[name], rev)
				}
			}
		}
	case machine.Reserve:
		if e == machine.Added {
			t.granted(s, op, rev, began)
		}
	}
}

// granted holds a claim to a free name against those that stand.
func (t *truth) granted(s *session, op machine.Reserve, rev uint64, began time.Duration) {
	if g, ok := t.grants[op.Mailbox]; ok && g.server != op.Server && !t.server(op.Server).mates[g.server] {
		// The clocks that directory time is counted by may gain a twentieth.
		if grace := time.Duration(t.x.plan.grace) * time.Millisecond; t.x.w.now-g.sent < grace*9/10 {
			t.x.w.Fail("the name %s is granted to %s at revision %d, and was to %s %v before, whose grace is %v", op.Mailbox, op.Server, rev, g.server, t.x.w.now-g.sent, grace)
		}
	}
	t.grants[op.Mailbox] = grant{op.Server, began}
}

// renamed notes that a backend has another name.
func (t *truth) renamed(from, to directory.BackendName) {
	t.moves++
	t.forgetAll(from)
	for _, by := range t.claimed {
		if acls := by[from]; acls != nil {
			by[to] = append(by[to], acls...)
		}
	}
	k := t.server(from)
	t.servers[to] = k
	delete(t.servers, from)
	for mate := range k.mates {
		t.server(mate).mates[to] = true
	}
	k.mates[to] = true
	t.shaken++
}

// restored forgets: what was acknowledged may be gone, and what stays is not confirmed.
func (t *truth) restored(incarnation, lostAfter uint64) {
	t.moves++
	t.life = uint32(incarnation)
	t.shaken++
	clear(t.certain)
	clear(t.grants)
	if t.closed && t.closedRev > lostAfter {
		t.closed = false
		for _, k := range t.servers {
			k.admitted = true // it may be open again by the time they speak
		}
	}
	for _, k := range t.servers {
		k.gone = k.wasGone // it may be so again
		k.drains = k.wasGone || k.drains
		k.counts = k.counts && k.countsRev <= lostAfter
	}
}

// notFound judges the claim that there is no such mailbox: mail for it bounces.
func (t *truth) notFound(q *query, name directory.MailboxName, rev uint64) {
	t.x.counts.certain++
	for _, server := range sortedServers(t.certain[name]) {
		if c := t.certain[name][server]; c.at <= q.truth {
			t.x.w.Fail("mail for %s bounces at revision %d: NOT_FOUND, though %s holds it since revision %d and nobody has given it up", name, rev, server, c.rev)
		}
	}
	for _, server := range sortedServers(t.servers) {
		k := t.servers[server]
		if k.counts && !k.gone && !k.confirmed[t.life] && k.countsRev <= q.least {
			t.x.w.Fail("mail for %s bounces at revision %d: NOT_FOUND, though %s has not been heard in incarnation %d", name, rev, server, t.life)
		}
	}
}

// routed judges the choice of a server.
func (t *truth) routed(name directory.MailboxName, r *apiv1.Route, rev uint64) {
	server := directory.BackendName(r.GetServer().GetName())
	if server == "" {
		return
	}
	t.x.counts.certain++
	if t.claimed[name][server] == nil {
		t.x.w.Fail("%s is said to be on %s at revision %d, which never said so: %v", name, server, rev, r)
	}
	if k := t.server(server); k.stranger && !k.admitted {
		t.x.w.Fail("%s is routed to %s at revision %d, which nobody admitted: %v", name, server, rev, r)
	}
}

// listed judges a LIST: what it shows somebody must be allowed to show, and what is
// certain to be visible must be there.
func (t *truth) listed(q *query, user directory.UserID, groups []string, got map[directory.MailboxName]bool, rev uint64) {
	t.x.counts.certain++
	for _, name := range names(got) {
		allowed := false
		for server, acls := range t.claimed[name] {
			if k := t.server(server); k.stranger && !k.admitted {
				continue
			}
			allowed = allowed || slices.ContainsFunc(acls, func(acl string) bool { return oracle.MaySee(acl, user, groups) })
		}
		if !allowed {
			t.x.w.Fail("LIST shows %s to %s at revision %d, whom no backend in service ever let see it", name, user, rev)
		}
	}
	for _, name := range names(t.certain) {
		if got[name] || name.IsDeleted() {
			continue
		}
		must := false
		for _, c := range t.certain[name] {
			must = must || c.home && c.at <= q.truth && c.rev <= rev && c.acl != ""
		}
		if !must {
			continue
		}
		// Whichever copy it is shown from.
		for _, acls := range t.claimed[name] {
			for _, acl := range acls {
				must = must && oracle.MaySee(acl, user, groups)
			}
		}
		if must {
			t.x.w.Fail("LIST of %s at revision %d misses %s: %v", user, rev, name, sortedServers(t.certain[name]))
		}
	}
}

func sortedServers[V any](m map[directory.BackendName]V) []directory.BackendName {
	all := make([]directory.BackendName, 0, len(m))
	for s := range m {
		all = append(all, s)
	}
	slices.Sort(all)
	return all
}
