//go:build upgrade

package upgrade

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/directory/machine"
	"github.com/rookery-mail/rookery/internal/calls"
	"github.com/rookery-mail/rookery/internal/oracle"
)

// This file is the part of the load that asks for everything there is: all kinds of
// commands, in a small world of their own in which they get in each other's way. What
// came of each is written down, for the judge (judge_test.go).

// The small world. It shares settings with the writers of load_test.go and nothing
// else.
const (
	busyUsers   = 24
	busyServers = 8
)

func busyServer(i int) directory.BackendName {
	return directory.BackendName(fmt.Sprintf("be%d.busy.test", i%busyServers))
}

func busyUser(i int) directory.UserID { return directory.UserID(fmt.Sprintf("b%d", i%busyUsers)) }

// busy makes one write after the other. Its client has one lane, so that its n-th
// write has number n there.
type busy struct {
	l     *load
	id    int
	c     *client.Client
	rng   *rand.Rand
	asked []asked

	// Of operator: the kinds still to be asked for in this turn, how often a backend
	// was given another name, and who was heard for the first time last.
	queue    []string
	renames  int
	stranger directory.BackendName
}

// asked is a write, and what its client was told of it.
type asked struct {
	op     machine.Op // nil: the settings, which the server puts together
	result client.Result
	items  []client.Result // of a batch
	err    error           // a refusal
}

// run writes until the load is stopped. Only the directory's own refusals are
// answers: no call may fail.
func (b *busy) run(step func(ctx context.Context) error) error {
	for {
		select {
		case <-b.l.stop:
			return nil
		case <-time.After(time.Duration(1+b.rng.IntN(10)) * time.Millisecond):
		}
		ctx, cancel := context.WithTimeout(context.Background(), loadTimeout)
		err := step(ctx)
		cancel()
		if err != nil {
			return err
		}
	}
}

// do makes a write and keeps what came of it.
func (b *busy) do(ctx context.Context, op machine.Op) error {
	a := asked{op: op}
	if batch, ok := op.(machine.Batch); ok {
		a.items, a.err = calls.Batch(ctx, b.c, batch)
		for _, item := range a.items {
			a.result.Revision = max(a.result.Revision, item.Revision)
		}
	} else {
		a.result, a.err = calls.Do(ctx, b.c, op)
	}
	return b.keep(a)
}

func (b *busy) settings(ctx context.Context, change client.SettingsChange) (err error) {
	var a asked
	a.result, a.err = b.c.SetSettings(ctx, change)
	return b.keep(a)
}

func (b *busy) keep(a asked) error {
	if name := oracle.SentinelName(a.err); len(name) > 7 && name[:7] == "UNKNOWN" {
		return fmt.Errorf("%s: %w", oracle.FormatOp(a.op), a.err)
	}
	b.asked = append(b.asked, a)
	b.l.seen(a.result.Revision)
	return nil
}

// name draws a mailbox, and the server that has most to say of it.
func (b *busy) name() (directory.MailboxName, directory.BackendName) {
	i := b.rng.IntN(busyUsers)
	name := directory.MailboxName("user."+string(busyUser(i))) + []directory.MailboxName{"", ".Sent", ".Archive"}[b.rng.IntN(3)]
	if b.rng.IntN(6) == 0 {
		return name, busyServer(b.rng.IntN(busyServers))
	}
	return name, busyServer(i)
}

// statement states something that was not stated before.
func (b *busy) statement(name directory.MailboxName) (st directory.Statement) {
	owner, _ := name.Owner()
	acl := fmt.Sprintf("%s\tlrswipkxtecda\tw%dn%d\tp\t", owner, b.id, len(b.asked))
	switch b.rng.IntN(5) {
	case 0:
		acl += "anyone\tlr\t"
	case 1:
		acl += fmt.Sprintf("%s\tlrs\t", busyUser(b.rng.IntN(busyUsers)))
	case 2:
		acl += fmt.Sprintf("group:staff\tlr\t-%s\tl\t", busyUser(b.rng.IntN(busyUsers)))
	}
	st.ACL = &acl
	if b.rng.IntN(3) == 0 {
		st.Partition = fmt.Sprintf("p%d", b.rng.IntN(3))
	}
	if b.rng.IntN(3) == 0 {
		st.MailboxID = new(fmt.Sprintf("id%d-%d", b.id, len(b.asked)))
	}
	if b.rng.IntN(6) == 0 {
		st.UIDValidity = new(b.rng.Uint32())
	}
	if b.rng.IntN(8) == 0 {
		st.SpecialUse = new(`\Sent`)
	}
	return st
}

// fact is what a backend may ask or state, in a batch too.
func (b *busy) fact() machine.Op {
	name, server := b.name()
	switch n := b.rng.IntN(100); {
	case n < 40:
		op := machine.Assert{Mailbox: name, Server: server, Statement: b.statement(name), Deactivated: b.rng.IntN(60) == 0, Imported: b.rng.IntN(60) == 0}
		if b.rng.IntN(10) == 0 {
			if rev := b.l.newest.Load(); rev > 100 {
				op.Since = directory.Revision(rev - uint64(b.rng.IntN(100)))
			}
		}
		return op
	case n < 58:
		return machine.Retract{Mailbox: name, Server: server, Tentative: b.rng.IntN(3) == 0}
	case n < 70:
		return machine.Reserve{Mailbox: name, Server: server, Partition: fmt.Sprintf("w%d", b.id), Grace: directory.Time(b.rng.IntN(2) * 700)}
	case n < 74:
		return machine.Release{Mailbox: name, Server: server}
	case n < 81:
		return machine.Deactivate{Mailbox: name, Server: server}
	case n < 88:
		to, _ := b.name()
		if b.rng.IntN(2) == 0 { // nobody's, as a rule
			to += directory.MailboxName(fmt.Sprintf(".n%d", b.rng.IntN(1000)))
		}
		if b.rng.IntN(3) == 0 { // a whole user
			return machine.Rename{From: directory.MailboxName("user." + busyUser(b.rng.IntN(busyUsers))), To: directory.MailboxName("user." + busyUser(b.rng.IntN(busyUsers))), Recursive: true, Server: server}
		}
		return machine.Rename{From: name, To: to, Server: server, Recursive: b.rng.IntN(4) == 0}
	case n < 95:
		return machine.Subscribe{User: busyUser(b.rng.IntN(busyUsers)), Mailbox: name}
	}
	return machine.Unsubscribe{User: busyUser(b.rng.IntN(busyUsers)), Mailbox: name}
}

// backend does what backends do, every eighth time much at once.
func (b *busy) backend(ctx context.Context) error {
	if b.rng.IntN(8) > 0 {
		return b.do(ctx, b.fact())
	}
	var batch machine.Batch
	for range 2 + b.rng.IntN(12) {
		batch.Ops = append(batch.Ops, b.fact())
	}
	return b.do(ctx, batch)
}

// What operators ask for, each in every turn, in an order of chance.
var turn = []string{
	"primary", "primary", "group", "hold", "hold", "unhold", "settle", "settle", "state", "state", "weight", "addresses", "drain", "admit", "stranger", "confirm", "name",
	"guard", "decide", "decide", "graces", "admission", "alarm",
}

// operator does what people do, if they did nothing else.
func (b *busy) operator(ctx context.Context) error {
	if len(b.queue) == 0 {
		b.queue = append(b.queue, turn...)
		b.rng.Shuffle(len(b.queue), func(i, j int) { b.queue[i], b.queue[j] = b.queue[j], b.queue[i] })
	}
	kind := b.queue[0]
	b.queue = b.queue[1:]
	name, server := b.name()
	group, member := directory.GroupName("g1"), busyServer(b.rng.IntN(2))
	if b.rng.IntN(2) == 0 {
		group, member = "g2", busyServer(2+b.rng.IntN(3))
	}
	hold := directory.HoldKind(1 + b.rng.IntN(4))
	held := map[directory.HoldKind]string{
		directory.HoldUser: string(busyUser(b.rng.IntN(busyUsers))), directory.HoldMailbox: string(name),
		directory.HoldBackend: string(server), directory.HoldGroup: string(group),
	}[hold]
	switch kind {
	case "primary":
		var epoch uint64
		if g, err := b.c.ListGroups(ctx, group); err == nil && len(g) == 1 {
			epoch = g[0].Epoch
		}
		return b.do(ctx, machine.SetPrimary{Group: group, To: member, Epoch: epoch, Reason: "upgrade", AcceptMissing: b.rng.IntN(4) > 0})
	case "group":
		members := []directory.BackendName{busyServer(2), busyServer(3), busyServer(4), busyServer(5)}
		b.rng.Shuffle(len(members), func(i, j int) { members[i], members[j] = members[j], members[i] })
		return b.do(ctx, machine.SetGroup{Group: "g2", Members: members[:2+b.rng.IntN(3)], AcceptMissing: b.rng.IntN(4) > 0})
	case "hold":
		return b.do(ctx, machine.Hold{Kind: hold, Key: held, For: directory.Time(200 + b.rng.IntN(2000)), Why: "upgrade"})
	case "unhold":
		return b.do(ctx, machine.ReleaseHold{Kind: hold, Key: held})
	case "settle":
		for r, err := range b.c.ListForks(ctx) {
			if err == nil && len(r.Facts) > 0 {
				name, server = r.Mailbox, r.Facts[b.rng.IntN(len(r.Facts))].Server
			}
			break
		}
		return b.do(ctx, machine.Settle{Mailbox: name, Keep: server})
	case "state":
		states := []directory.BackendState{directory.BackendActive, directory.BackendActive, directory.BackendDraining, directory.BackendDown, directory.BackendLost}
		if b.l.raised.Load() {
			states = append(states, directory.BackendFull, directory.BackendFull)
		}
		return b.do(ctx, machine.SetBackend{Server: server, State: new(states[b.rng.IntN(len(states))])})
	case "weight":
		return b.do(ctx, machine.SetBackend{Server: server, Weight: new(uint32(b.rng.IntN(2) * 100))})
	case "addresses":
		a := directory.Address{Service: directory.ServiceIMAP, IP: fmt.Sprintf("10.0.0.%d", 1+b.rng.IntN(200)), Port: 143, TLS: directory.TLSStart}
		return b.do(ctx, machine.SetBackend{Server: server, Addresses: &[]directory.Address{a}})
	case "drain":
		return b.do(ctx, machine.SetBackend{Server: server, DrainApproved: new(b.rng.IntN(2) == 0)})
	case "admit":
		return b.do(ctx, machine.Admit{Server: b.stranger})
	case "stranger": // it is admitted at once, or not, as the setting says
		b.stranger = directory.BackendName(fmt.Sprintf("new%d.busy.test", b.rng.IntN(60)))
		return b.do(ctx, machine.Assert{Mailbox: name, Server: b.stranger, Statement: b.statement(name)})
	case "confirm":
		return b.do(ctx, machine.Confirm{Server: server, How: directory.ByResync})
	case "name":
		from := renamed(b.renames)
		b.renames++
		return b.do(ctx, machine.RenameBackend{From: from, To: renamed(b.renames)})
	case "guard":
		return b.settings(ctx, client.SettingsChange{GuardCount: new(uint32(1 + b.rng.IntN(4)*30)), GuardWindow: new(time.Duration(1+b.rng.IntN(2)) * time.Minute)})
	case "decide":
		return b.do(ctx, machine.DecideHeld{Server: server, Approve: b.rng.IntN(2) == 0})
	case "graces":
		return b.settings(ctx, client.SettingsChange{ReserveGrace: new(time.Duration(200+b.rng.IntN(1500)) * time.Millisecond)})
	case "admission":
		return b.settings(ctx, client.SettingsChange{AdmissionOpen: new(b.rng.IntN(2) == 0)})
	case "alarm":
		return b.do(ctx, machine.SetAlarm{Kind: directory.AlarmNoSpace, Node: "n9"})
	}
	return fmt.Errorf("upgrade: operators know nothing of %q", kind)
}

// renamed is what a backend is called that was given another name n times.
func renamed(n int) directory.BackendName {
	return directory.BackendName(fmt.Sprintf("last%d.busy.test", n))
}

// prepare makes the small world: backends that are heard whole, and groups of them.
func (b *busy) prepare(ctx context.Context) error {
	var ops []machine.Op
	for i := range busyServers {
		ops = append(ops, machine.SetBackend{Server: busyServer(i), Create: true}, machine.Confirm{Server: busyServer(i), How: directory.ByOperator})
	}
	b.stranger = busyServer(0)
	ops = append(ops,
		machine.SetBackend{Server: renamed(0), Create: true}, machine.Assert{Mailbox: "shared.renamed", Server: renamed(0)},
		machine.SetGroup{Group: "g1", Members: []directory.BackendName{busyServer(0), busyServer(1)}},
		machine.SetGroup{Group: "g2", Members: []directory.BackendName{busyServer(2), busyServer(3), busyServer(4)}},
	)
	for _, op := range ops {
		if err := b.do(ctx, op); err != nil {
			return err
		}
	}
	return nil
}
