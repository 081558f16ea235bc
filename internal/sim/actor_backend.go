package sim

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"google.golang.org/grpc"

	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/directory/machine"
	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
	"github.com/rookery-mail/rookery/server"
)

// backend is an IMAP server with its mailboxes. It tells the directory what it does
// as Cyrus would, and knows what it holds whatever the directory says.
type backend struct {
	*session
	name   directory.BackendName
	kind   backendKind
	begins time.Duration

	store  map[directory.MailboxName]box
	busy   map[directory.MailboxName]bool // being moved
	copied map[directory.MailboxName]bool // seen at the primary that it copies from
	older  map[directory.MailboxName]box  // a backup
	movers map[directory.BackendName]*session
	ids    int

	synced uint32 // the incarnation in which its list is known
	dirty  bool   // it does not know what the directory knows
	away   bool
	// rebaptize: an operator wants to give it another name.
	rebaptize bool
	names     int // it has had
	// What operators have under way with it: dumps of its list are being read in,
	// under the name that it has; it makes nothing, for another is to take its place;
	// it is to hold what its primary holds.
	imports        int
	still, follows bool

	group   directory.GroupName
	primary directory.BackendName // of its group; empty: it does not know
	epoch   uint64
	looked  int // actions since it looked
}

type backendKind uint8

const (
	kindBackend  backendKind = iota
	kindClone                // begins as a copy of another
	kindStranger             // a test machine
)

// box is a mailbox as it is on disk.
type box struct {
	id, acl, partition string
	uidValidity        uint32
}

func (b *backend) run(ctx context.Context) {
	x := b.x
	begins := max(b.begins, x.some(4*x.w.Unit(), 8*x.w.Unit()))
	if Sleep(ctx, begins) != nil {
		return
	}
	switch b.kind {
	case kindStranger:
		b.strange(ctx)
		return
	case kindClone:
		of := x.backends[x.rnd.IntN(x.plan.backends)]
		for _, name := range names(of.store) {
			if x.rnd.IntN(3) == 0 {
				b.store[name] = of.store[name]
			}
		}
		x.did("clone")
	}
	b.dirty = true
	for Sleep(ctx, x.some(x.plan.pace/2, 3*x.plan.pace/2)) == nil {
		if b.dirty || b.life > b.synced {
			b.resync(ctx)
			continue
		}
		if b.looked--; b.looked < 0 || b.primary == "" {
			b.look(ctx)
			b.looked = 10
		}
		if b.still {
			continue
		}
		if b.follows {
			b.equal(ctx)
			continue
		}
		if b.rebaptize && len(b.busy) == 0 && b.imports == 0 {
			b.takeName(ctx)
			continue
		}
		what := x.pick(deeds, x.plan.weights)
		if b.primary != "" && b.primary != b.name && x.rnd.IntN(4) > 0 {
			what = "copy"
		}
		x.did(what)
		b.do(ctx, what)
		if x.rnd.IntN(60) == 0 {
			b.older = maps.Clone(b.store)
		}
	}
}

func (b *backend) do(ctx context.Context, what string) {
	x := b.x
	switch what {
	case "create":
		b.create(ctx, inbox(x.user()))
	case "folder":
		b.folder(ctx)
	case "acl":
		if name, ok := b.any(); ok {
			m := b.store[name]
			m.acl = x.acl(name)
			b.store[name] = m
			b.state(ctx, name)
		}
	case "delete":
		b.delete(ctx)
	case "rename":
		b.rename(ctx)
	case "xfer":
		b.xfer(ctx)
	case "subscribe":
		b.subscribe(ctx)
	case "resync":
		b.resync(ctx)
	case "copy":
		b.copy(ctx)
	case "away":
		b.away = true
		_ = Sleep(ctx, x.some(4*x.w.Unit(), 15*x.w.Unit()))
		b.away, b.dirty = false, true
	case "spool":
		b.loseSpool(ctx)
	case "old":
		if b.older != nil {
			b.store, b.dirty = maps.Clone(b.older), true
		}
	case "unmount":
		b.unmount(ctx)
	case "odd":
		b.odd(ctx)
	}
}

// any returns one of its mailboxes that is not being moved.
func (b *backend) any() (directory.MailboxName, bool) {
	all := names(b.store)
	all = slices.DeleteFunc(all, func(n directory.MailboxName) bool { return b.busy[n] })
	if len(all) == 0 {
		return "", false
	}
	return all[b.x.rnd.IntN(len(all))], true
}

func (b *backend) newBox(name directory.MailboxName) box {
	b.ids++
	m := box{id: fmt.Sprintf("%s-%d", b.name[:4], b.ids), acl: b.x.acl(name), partition: "default", uidValidity: uint32(b.x.w.now / time.Second)}
	if b.x.rnd.IntN(8) == 0 {
		m.partition = "p2"
	}
	return m
}

// assertion is what it says of a mailbox that it holds.
func (b *backend) assertion(name directory.MailboxName) machine.Assert {
	m := b.store[name]
	return machine.Assert{Mailbox: name, Server: b.name, Statement: directory.Statement{
		Partition: m.partition, ACL: &m.acl, MailboxID: &m.id, UIDValidity: &m.uidValidity,
	}}
}

// tell makes a write. If it is not known what became of it, a resync will find out.
func (b *backend) tell(ctx context.Context, op machine.Op) (answer, error) {
	a, err := b.session.tell(ctx, op)
	if errors.Is(err, errUnknown) {
		b.dirty = true
	}
	return a, err
}

func (b *backend) state(ctx context.Context, all ...directory.MailboxName) (answer, error) {
	if len(all) == 1 {
		return b.tell(ctx, b.assertion(all[0]))
	}
	var ops machine.Batch
	for _, name := range all {
		ops.Ops = append(ops.Ops, b.assertion(name))
	}
	return b.tell(ctx, ops)
}

// create makes a mailbox, if the name is free.
func (b *backend) create(ctx context.Context, name directory.MailboxName) {
	x := b.x
	if _, there := b.store[name]; there {
		return
	}
	_, err := b.tell(ctx, machine.Reserve{Mailbox: name, Server: b.name, Partition: "default"})
	if err != nil {
		return
	}
	switch x.rnd.IntN(16) {
	case 0:
		return // it died, and the claim lapses
	case 1:
		_, _ = b.tell(ctx, machine.Release{Mailbox: name, Server: b.name})
		return
	case 2:
		_ = Sleep(ctx, x.some(0, 2*x.w.Unit()))
	}
	b.store[name] = b.newBox(name)
	_, _ = b.state(ctx, name)
}

// folder makes folders below a mailbox that it holds, some without asking.
func (b *backend) folder(ctx context.Context) {
	x := b.x
	at, ok := b.any()
	owner, isUser := at.Owner()
	if !ok || !isUser {
		return
	}
	name := inbox(owner) + "." + directory.MailboxName(folders[x.rnd.IntN(len(folders))])
	switch x.rnd.IntN(4) {
	case 0:
		b.create(ctx, name)
		return
	case 1:
		var all []directory.MailboxName
		for _, f := range folders[:2+x.rnd.IntN(4)] {
			name := inbox(owner) + "." + directory.MailboxName(f)
			if _, there := b.store[name]; !there {
				b.store[name] = b.newBox(name)
				all = append(all, name)
			}
		}
		if len(all) > 1 {
			_, _ = b.state(ctx, all...)
			return
		}
	}
	if _, there := b.store[name]; !there {
		b.store[name] = b.newBox(name)
	}
	_, _ = b.state(ctx, name)
}

// delete gives mailboxes up for good, a user with all folders.
func (b *backend) delete(ctx context.Context) {
	x := b.x
	at, ok := b.any()
	if !ok || at.IsInbox() && x.rnd.IntN(2) == 0 {
		return
	}
	if x.rnd.IntN(3) == 0 {
		// Cyrus deletes by a rename that may fail.
		if _, err := b.tell(ctx, machine.Retract{Mailbox: at, Server: b.name, Tentative: true}); err != nil {
			return
		}
		if x.rnd.IntN(3) == 0 {
			_, _ = b.state(ctx, at)
			return
		}
	}
	var ops machine.Batch
	for _, name := range names(b.store) {
		if name == at || at.IsInbox() && name.IsBelow(at) {
			delete(b.store, name)
			op := machine.Retract{Mailbox: name, Server: b.name}
			switch x.rnd.IntN(6) {
			case 0, 1:
				op.Epoch = b.epoch
			case 2: // an order of before the last switchover
				op.Epoch = max(b.epoch, 2) - 1
			}
			ops.Ops = append(ops.Ops, op)
		}
	}
	if len(ops.Ops) == 1 {
		_, _ = b.tell(ctx, ops.Ops[0])
		return
	}
	_, _ = b.tell(ctx, ops)
}

func (b *backend) rename(ctx context.Context) {
	x := b.x
	from, ok := b.any()
	owner, isUser := from.Owner()
	if !ok || !isUser {
		return
	}
	to := inbox(owner) + "." + directory.MailboxName(folders[x.rnd.IntN(len(folders))])
	if from.IsInbox() {
		to = inbox(x.user())
	}
	op := machine.Rename{From: from, To: to, Recursive: x.rnd.IntN(4) > 0, Server: b.name}
	moves := map[directory.MailboxName]directory.MailboxName{}
	for _, name := range names(b.store) {
		if name == from || op.Recursive && name.IsBelow(from) {
			if b.busy[name] {
				return
			}
			moves[name] = to + name[len(from):]
		}
	}
	if _, err := b.tell(ctx, op); err != nil {
		return
	}
	// What was added or went meanwhile is sorted out by the next resync.
	moved := map[directory.MailboxName]box{}
	for _, name := range names(moves) {
		if m, there := b.store[name]; there {
			moved[moves[name]] = m
			delete(b.store, name)
		}
	}
	maps.Copy(b.store, moved)
}

// xfer moves a mailbox to another backend: given up here, made and stated there,
// deleted here only when the directory says that it is there now.
func (b *backend) xfer(ctx context.Context) {
	x := b.x
	name, ok := b.any()
	to := x.backends[x.rnd.IntN(x.plan.backends)]
	if !ok || to == b || to.away || to.still || to.group == b.group || to.primary != to.name {
		return
	}
	if _, there := to.store[name]; there || to.busy[name] {
		return
	}
	b.busy[name], to.busy[name] = true, true
	defer func() { delete(b.busy, name); delete(to.busy, name) }()
	if _, err := b.tell(ctx, machine.Deactivate{Mailbox: name, Server: b.name}); err != nil {
		return
	}
	switch x.rnd.IntN(12) {
	case 0, 1:
		x.did("xfer aborted")
		_, _ = b.state(ctx, name)
		return
	case 2:
		x.did("xfer interrupted")
		b.dirty = true
		_ = Sleep(ctx, x.some(0, 10*x.w.Unit()))
		return
	}
	m, there := b.store[name]
	if !there {
		return
	}
	m.uidValidity++
	to.store[name] = m
	if b.movers == nil {
		b.movers = map[directory.BackendName]*session{}
	}
	s := b.movers[to.name]
	if s == nil {
		s = x.session(fmt.Sprintf("%s/%s", b.client, to.name), to.caller)
		b.movers[to.name] = s
	}
	a, err := s.tell(ctx, to.assertion(name))
	switch {
	case errors.Is(err, errEnded):
		return
	case err == nil && a.effect() == machine.MoveCompleted:
		x.did("xfer completed")
		delete(b.store, name)
	case errors.Is(err, errUnknown):
		r, err := b.lookup(ctx, linearizable, name)
		if err == nil && r.GetOutcome() == apiv1.Outcome_OUTCOME_SERVING && r.GetServer().GetName() == string(to.name) {
			x.did("xfer found completed")
			delete(b.store, name)
			return
		}
		b.dirty, to.dirty = true, true
	default:
		x.did("xfer refused")
		delete(to.store, name)
		if _, err := s.tell(ctx, machine.Retract{Mailbox: name, Server: to.name}); err != nil {
			to.dirty = true
		}
		_, _ = b.state(ctx, name)
	}
}

func (b *backend) subscribe(ctx context.Context) {
	name, ok := b.any()
	if !ok {
		return
	}
	user, isUser := name.Owner()
	if !isUser || b.x.rnd.IntN(3) == 0 {
		user = b.x.user()
	}
	if b.x.rnd.IntN(4) == 0 {
		_, _ = b.tell(ctx, machine.Unsubscribe{User: user, Mailbox: name})
		return
	}
	_, _ = b.tell(ctx, machine.Subscribe{User: user, Mailbox: name})
}

// look asks whose group it is in, and who its primary is.
func (b *backend) look(ctx context.Context) {
	m, _, err := ask(ctx, b.session, atLeast, func(c grpc.ClientConnInterface, at *apiv1.Consistency) (*apiv1.ListGroupsResponse, error) {
		return apiv1.NewClusterServiceClient(c).ListGroups(ctx, &apiv1.ListGroupsRequest{Consistency: at})
	})
	if err != nil {
		return
	}
	for _, g := range m.GetGroups() {
		if slices.Contains(g.GetMembers(), string(b.name)) {
			b.group, b.primary, b.epoch = directory.GroupName(g.GetName()), directory.BackendName(g.GetPrimary()), g.GetEpoch()
			return
		}
	}
}

// copy brings some of what the primary has here, and drops what it has dropped.
func (b *backend) copy(ctx context.Context) {
	p := b.x.byName[b.primary]
	if p == nil || p == b || p.away {
		return
	}
	if b.copied == nil {
		b.copied = map[directory.MailboxName]bool{}
	}
	var ops machine.Batch
	for _, name := range names(p.store) {
		b.copied[name] = true
		if b.store[name] != p.store[name] && !p.busy[name] && len(ops.Ops) < 12 {
			b.store[name] = p.store[name]
			ops.Ops = append(ops.Ops, b.assertion(name))
		}
	}
	for _, name := range names(b.store) {
		if _, there := p.store[name]; !there && b.copied[name] && !b.busy[name] && len(ops.Ops) < 14 {
			delete(b.store, name)
			delete(b.copied, name)
			ops.Ops = append(ops.Ops, machine.Retract{Mailbox: name, Server: b.name, Epoch: b.epoch})
		}
	}
	if len(ops.Ops) > 0 {
		_, _ = b.tell(ctx, ops)
	}
}

// equal makes its store what its primary's is, and tells the directory of it.
func (b *backend) equal(ctx context.Context) {
	p := b.x.byName[b.primary]
	if p == nil || p == b {
		b.primary = "" // it does not know the new name yet, or is the primary already
		return
	}
	for _, name := range names(b.store) {
		if _, there := p.store[name]; !there && !b.busy[name] {
			delete(b.store, name)
		}
	}
	for _, name := range names(p.store) {
		if !p.busy[name] && !b.busy[name] {
			b.store[name] = p.store[name]
		}
	}
	b.resync(ctx)
}

// resync compares its list with what the directory knows of it, and mends the
// difference; then its list is known whole.
func (b *backend) resync(ctx context.Context) {
	x := b.x
	for range 4 {
		known := map[directory.MailboxName]*apiv1.Fact{}
		var at uint64
		var life uint32
		for page := ""; ; {
			m, q, err := ask(ctx, b.session, linearizable, func(c grpc.ClientConnInterface, at *apiv1.Consistency) (*apiv1.FindResponse, error) {
				return apiv1.NewDirectoryServiceClient(c).Find(ctx, &apiv1.FindRequest{Consistency: at, Server: string(b.name), PageSize: 50, PageToken: page})
			})
			if refused(err) == "NOT_FOUND" {
				life = b.life
				break // it is not known at all
			}
			if err != nil {
				return
			}
			if page == "" {
				at, life = m.GetHeader().GetRevision(), m.GetHeader().GetIncarnation()
			}
			if life != m.GetHeader().GetIncarnation() {
				return
			}
			for _, r := range m.GetMailboxes() {
				x.judge.found(&q, r, m.GetHeader())
				for _, f := range r.GetFacts() {
					if f.GetServer() == string(b.name) {
						known[directory.MailboxName(r.GetMailbox())] = f
					}
				}
			}
			if page = m.GetNextPageToken(); page == "" {
				break
			}
		}
		var ops []machine.Op
		for _, name := range names(b.store) {
			f, m := known[name], b.store[name]
			if b.busy[name] || f != nil && f.GetAcl() == m.acl && f.GetMailboxId() == m.id && f.GetUidValidity() == m.uidValidity &&
				f.GetPartition() == m.partition && f.GetState() == apiv1.FactState_FACT_STATE_ACTIVE && f.GetConfirmed() {
				continue
			}
			op := b.assertion(name)
			op.Since = directory.Revision(at)
			ops = append(ops, op)
		}
		for _, name := range names(known) {
			if _, there := b.store[name]; !there && !b.busy[name] {
				ops = append(ops, machine.Retract{Mailbox: name, Server: b.name, Since: directory.Revision(at)})
			}
		}
		again := false
		for len(ops) > 0 {
			n := min(len(ops), 25)
			a, err := b.tell(ctx, machine.Batch{Ops: ops[:n:n]})
			if err != nil {
				return
			}
			ops = ops[n:]
			for _, item := range a.items {
				again = again || item.GetResult().GetEffect() == apiv1.Effect_EFFECT_NOT_SINCE
			}
		}
		if again {
			continue
		}
		b.dirty = false
		_, err := b.tell(ctx, machine.Confirm{Server: b.name, How: directory.ByResync, Incarnation: directory.Incarnation(life)})
		if err == nil || refused(err) == "NOT_FOUND" {
			b.synced = life
			x.did("resynced")
		}
		return
	}
}

// takeName is a stop, a new name for all that the directory knows of it, and a start
// under that name.
func (b *backend) takeName(ctx context.Context) {
	x := b.x
	b.rebaptize, b.away = false, true
	defer func() { b.away = false }()
	b.names++
	to := directory.BackendName(fmt.Sprintf("be%s-%d.example.com", b.name[2:3], b.names))
	o := x.session(string(to)+"/rename", server.Caller{Role: server.RoleOperator, Name: "dave"})
	x.truth.renaming(b.name, to)
	_, err := o.tell(ctx, machine.RenameBackend{From: b.name, To: to})
	for errors.Is(err, errUnknown) {
		// The same again: it is refused if it was done.
		if _, err = o.tell(ctx, machine.RenameBackend{From: b.name, To: to}); refused(err) == "NOT_FOUND" {
			err = nil
		}
	}
	if err != nil {
		return
	}
	x.did("renamed")
	x.truth.renamed(b.name, to)
	delete(x.byName, b.name)
	b.name, b.caller.Name = to, string(to)
	x.byName[to] = b
	for _, other := range x.backends {
		delete(other.movers, to)
	}
	b.primary, b.dirty = "", true
}

// loseSpool is a disk that is lost with some or all of its mailboxes, which come
// back from a backup later, or never.
func (b *backend) loseSpool(ctx context.Context) {
	x := b.x
	lost := map[directory.MailboxName]box{}
	all := x.rnd.IntN(3) == 0
	for _, name := range names(b.store) {
		if (all || x.rnd.IntN(2) == 0) && !b.busy[name] {
			lost[name] = b.store[name]
			delete(b.store, name)
		}
	}
	if Sleep(ctx, x.some(0, 4*x.w.Unit())) != nil {
		return
	}
	b.resync(ctx)
	if x.rnd.IntN(3) > 0 {
		if Sleep(ctx, x.some(4*x.w.Unit(), 20*x.w.Unit())) != nil {
			return
		}
		for _, name := range names(lost) {
			if _, there := b.store[name]; !there {
				b.store[name] = lost[name]
			}
		}
		b.dirty = true
	}
}

// unmount is a disk that is not there for a moment: the mail exists, and the backend
// says that it does not. The guard has to believe no more than a few of it.
func (b *backend) unmount(ctx context.Context) {
	x := b.x
	var all []directory.MailboxName
	for _, name := range names(x.truth.certain) {
		if c := x.truth.certain[name][b.name]; c != nil && c.home && !b.busy[name] && len(x.truth.certain[name]) == 1 {
			all = append(all, name)
		}
	}
	if len(all) < 2 || x.truth.server(b.name).drains {
		return
	}
	begun, shaken, life := x.w.now, x.truth.shaken, b.life
	x.truth.floods++
	defer func() { x.truth.floods-- }()
	for rest := all; len(rest) > 0; {
		n := min(len(rest), 10)
		var ops machine.Batch
		for _, name := range rest[:n] {
			ops.Ops = append(ops.Ops, machine.Retract{Mailbox: name, Server: b.name})
		}
		if _, err := b.tell(ctx, ops); err != nil {
			b.dirty = true
			return
		}
		rest = rest[n:]
	}
	b.dirty = true // what was held is active again when it is stated again
	routes, err := b.lookupMany(ctx, linearizable, all)
	if err != nil {
		return
	}
	bounced := 0
	for _, r := range routes {
		if r.GetOutcome() == apiv1.Outcome_OUTCOME_NOT_FOUND {
			bounced++
		}
	}
	// What counts is what the backend stated, and what it withdrew before.
	stated := len(b.store) + 4*len(all) + 100
	limit := max(int(x.plan.guardCount), stated*int(x.plan.guardPercent)/100)
	window := time.Duration(x.plan.window) * time.Millisecond
	if x.truth.shaken == shaken && b.life == life && x.w.now-begun < window/2 && bounced > limit {
		x.w.Fail("the disk of %s was not mounted for a moment: mail for %d of its %d mailboxes would have bounced, the guard lets pass %d", b.name, bounced, len(all), limit)
	}
	x.did("unmounted")
	_ = Sleep(ctx, x.some(0, 4*x.w.Unit()))
}

// odd is what no backend should say, and some do.
func (b *backend) odd(ctx context.Context) {
	x := b.x
	name := inbox(x.user())
	if x.rnd.IntN(2) == 0 {
		name += "." + directory.MailboxName(folders[x.rnd.IntN(len(folders))])
	}
	_, mine := b.store[name]
	switch x.rnd.IntN(9) {
	case 0:
		if !mine {
			_, _ = b.tell(ctx, machine.Retract{Mailbox: name, Server: b.name})
		}
	case 1:
		if !mine {
			_, _ = b.tell(ctx, machine.Deactivate{Mailbox: name, Server: b.name})
		}
	case 2:
		_, _ = b.tell(ctx, machine.Reserve{Mailbox: name, Server: b.name})
	case 3:
		_, _ = b.tell(ctx, machine.Release{Mailbox: name, Server: b.name})
	case 4:
		bad := "no ACL"
		_, _ = b.tell(ctx, machine.Assert{Mailbox: name, Server: b.name, Statement: directory.Statement{ACL: &bad}})
	case 5:
		acl := ""
		_, _ = b.tell(ctx, machine.Assert{Mailbox: "user..x", Server: b.name, Statement: directory.Statement{ACL: &acl}})
	case 6: // about another one
		of := x.backends[x.rnd.IntN(len(x.backends))]
		if of != b {
			_, _ = b.tell(ctx, machine.Retract{Mailbox: name, Server: of.name})
		}
	case 7:
		if at, ok := b.any(); ok {
			_, _ = b.tell(ctx, machine.Retract{Mailbox: at, Server: b.name, Since: 1})
			b.dirty = true
		}
	case 8: // it makes a mailbox without asking, which another may have
		if !mine && !b.busy[name] {
			b.store[name] = b.newBox(name)
			_, _ = b.state(ctx, name)
		}
	}
}

// strange is a test machine with a copy of somebody's configuration, or worse: it
// states production names and lets its own people in.
func (b *backend) strange(ctx context.Context) {
	x := b.x
	x.truth.server(b.name).stranger = true
	for Sleep(ctx, x.some(x.plan.pace, 4*x.plan.pace)) == nil {
		if !x.truth.closed {
			continue
		}
		x.did("strange")
		of := x.backends[x.rnd.IntN(x.plan.backends)]
		name, ok := of.any()
		if !ok {
			continue
		}
		switch x.rnd.IntN(10) {
		case 0:
			_, _ = b.tell(ctx, machine.Retract{Mailbox: name, Server: b.name})
			delete(b.store, name)
		case 1:
			_, _ = b.tell(ctx, machine.Reserve{Mailbox: inbox(x.user()), Server: b.name})
		case 2:
			_, _ = b.tell(ctx, machine.Confirm{Server: b.name, How: directory.ByResync, Incarnation: directory.Incarnation(b.life)})
		case 3:
			_, _ = b.tell(ctx, machine.Retract{Mailbox: name, Server: of.name})
		default:
			m := of.store[name]
			m.acl = mallory + "\tlrswipkxtecda\t"
			b.store[name] = m
			_, _ = b.state(ctx, name)
		}
	}
}
