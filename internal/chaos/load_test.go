//go:build peers

package chaos

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/directory/machine"
	"github.com/rookery-mail/rookery/internal/calls"
)

// The small world that the clients live in: small, so that things meet.
const (
	loadUsers   = 150
	loadServers = 8
	loadShared  = 20
)

var folders = []directory.MailboxName{"", ".Sent", ".Drafts", ".Archive"}

func serverName(i int) directory.BackendName {
	return directory.BackendName(fmt.Sprintf("be%d.chaos.test", i%loadServers))
}

func userName(i int) directory.UserID { return directory.UserID(fmt.Sprintf("u%d", i%loadUsers)) }

// load is the clients of one round.
type load struct {
	c       *cluster
	h       *history
	workers []*worker
	linear  *linearLoad
	stop    chan struct{}
	wg      sync.WaitGroup
	cancel  context.CancelFunc
	ctx     context.Context
}

// worker makes one call after the other. Its client has one lane, so that its n-th
// write has number n there.
type worker struct {
	id     int
	l      *load
	c      *client.Client
	rng    *rand.Rand
	writes uint64
	seen   directory.Revision
	step   func(w *worker)
}

const (
	linearWorkers = 4 // ask about few mailboxes, for porcupine
	batchWorkers  = 2
	plainWorkers  = 9
	operators     = 1
	loadWorkers   = linearWorkers + batchWorkers + plainWorkers + operators
	loadWatchers  = 3
)

// callTimeout is how long a call may take, with all its repeats. Some calls are
// given less, so that outcomes stay unknown.
const callTimeout = 4 * time.Second

// newLoad prepares the world and begins.
func newLoad(c *cluster, seed uint64) (*load, error) {
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{c: c, h: newHistory(loadWorkers+1, loadWatchers), stop: make(chan struct{}), ctx: ctx, cancel: cancel, linear: newLinearLoad()}
	for id := range loadWorkers + 1 {
		cl, err := c.dial(c.endpoints(id), client.WithTimeout(callTimeout), client.WithAttemptTimeout(time.Second), client.WithLanes(1))
		if err != nil {
			cancel()
			return nil, err
		}
		w := &worker{id: id, l: l, c: cl, rng: rand.New(rand.NewPCG(seed, uint64(id)+100))}
		switch {
		case id < linearWorkers:
			w.step = (*worker).linearStep
		case id < linearWorkers+batchWorkers:
			w.step = (*worker).batchStep
		case id < loadWorkers-operators:
			w.step = (*worker).plainStep
		default:
			w.step = (*worker).operatorStep
		}
		l.workers = append(l.workers, w)
	}
	// The last worker prepares, and looks at the end.
	if err := l.prepare(l.workers[loadWorkers]); err != nil {
		l.end()
		return nil, err
	}
	for _, w := range l.workers[:loadWorkers] {
		l.wg.Go(func() {
			for {
				select {
				case <-l.stop:
					return
				default:
					w.step(w)
				}
			}
		})
	}
	for i := range loadWatchers {
		l.wg.Go(func() { l.watch(i, rand.New(rand.NewPCG(seed, uint64(i)+200))) })
	}
	return l, nil
}

// prepare makes backends that are heard whole, and settings under which all rules
// have something to do.
func (l *load) prepare(w *worker) error {
	ops := []machine.Op{}
	for i := range loadServers {
		ops = append(ops, machine.SetBackend{Server: serverName(i), Create: true}, machine.Confirm{Server: serverName(i), How: directory.ByOperator})
	}
	for i := range linearWorkers {
		ops = append(ops, machine.SetBackend{Server: linearServer(i), Create: true}, machine.Confirm{Server: linearServer(i), How: directory.ByOperator})
	}
	ops = append(ops,
		machine.SetGroup{Group: "g1", Members: []directory.BackendName{serverName(0), serverName(1)}},
		machine.SetGroup{Group: "g2", Members: []directory.BackendName{serverName(2), serverName(3), serverName(4)}},
	)
	for _, op := range ops {
		if c := w.do(op, callTimeout); c.fate != answered {
			return fmt.Errorf("chaos: prepare: %v", c)
		}
	}
	if c := w.settings(client.SettingsChange{GuardCount: new(uint32(1 << 30)), ReserveGrace: new(20 * time.Minute), LogKeep: new(uint64(200_000))}); c.fate != answered {
		return fmt.Errorf("chaos: prepare: %v", c)
	}
	return nil
}

// finish stops the workers and waits for them.
func (l *load) finish() {
	close(l.stop)
	// A watcher has to reach a last mark.
	time.AfterFunc(3*time.Second, l.cancel)
	l.wg.Wait()
}

func (l *load) end() {
	l.cancel()
	for _, w := range l.workers {
		w.c.Close()
	}
}

// record makes a call and keeps what came of it.
func (w *worker) record(c *call, timeout time.Duration, f func(ctx context.Context) error) *call {
	ctx, cancel := context.WithTimeout(w.l.ctx, timeout)
	defer cancel()
	c.worker, c.begun, c.seen = w.id, w.l.h.now(), w.seen
	c.err = f(ctx)
	c.fate = fateOf(c.err, c.write())
	if c.fate == answered {
		w.seen = max(w.seen, c.rev)
	}
	w.l.h.add(c)
	return c
}

// do makes a write.
func (w *worker) do(op machine.Op, timeout time.Duration) *call {
	w.writes++
	c := &call{n: w.writes, op: op}
	return w.record(c, timeout, func(ctx context.Context) (err error) {
		switch op := op.(type) {
		case machine.Batch:
			if c.items, err = calls.Batch(ctx, w.c, op); err == nil {
				for _, item := range c.items {
					c.rev = max(c.rev, item.Revision)
				}
			}
			return err
		default:
			c.result, err = calls.Do(ctx, w.c, op)
			c.rev = c.result.Revision
			return err
		}
	})
}

// settings changes settings; what the command says then, the server puts together.
func (w *worker) settings(change client.SettingsChange) *call {
	w.writes++
	c := &call{n: w.writes}
	return w.record(c, callTimeout, func(ctx context.Context) (err error) {
		c.result, err = w.c.SetSettings(ctx, change)
		c.rev = c.result.Revision
		return err
	})
}

// timeout is mostly ample.
func (w *worker) timeout() time.Duration {
	if w.rng.IntN(12) == 0 {
		return time.Duration(20+w.rng.IntN(400)) * time.Millisecond
	}
	return callTimeout
}

// name draws a mailbox, and the server that has most to say of it.
func (w *worker) name() (directory.MailboxName, directory.BackendName) {
	if w.rng.IntN(20) == 0 {
		i := w.rng.IntN(loadShared)
		return directory.MailboxName(fmt.Sprintf("shared.s%d", i)), serverName(i)
	}
	i := w.rng.IntN(loadUsers)
	name := directory.MailboxName("user."+string(userName(i))) + folders[w.rng.IntN(len(folders))]
	if w.rng.IntN(6) == 0 {
		return name, serverName(w.rng.IntN(loadServers))
	}
	return name, serverName(i)
}

// statement states something that was not stated before.
func (w *worker) statement(name directory.MailboxName) (st directory.Statement) {
	owner := "nobody"
	if u, ok := name.Owner(); ok {
		owner = string(u)
	}
	acl := fmt.Sprintf("%s\tlrswipkxtecda\tw%dn%d\tp\t", owner, w.id, w.writes)
	switch w.rng.IntN(6) {
	case 0:
		acl += "anyone\tlr\t"
	case 1:
		acl += fmt.Sprintf("%s\tlrs\t", userName(w.rng.IntN(loadUsers)))
	case 2:
		acl += fmt.Sprintf("group:staff\tlr\t-%s\tl\t", userName(w.rng.IntN(loadUsers)))
	}
	st.ACL = &acl
	if w.rng.IntN(3) == 0 {
		st.Partition = fmt.Sprintf("p%d", w.rng.IntN(3))
	}
	if w.rng.IntN(3) == 0 {
		st.MailboxID = new(fmt.Sprintf("id%d-%d", w.id, w.writes))
	}
	if w.rng.IntN(6) == 0 {
		st.UIDValidity = new(w.rng.Uint32())
	}
	if w.rng.IntN(8) == 0 {
		st.SpecialUse = new(`\Sent`)
	}
	return st
}

// fact is what a backend may ask or state in a batch too.
func (w *worker) fact() machine.Op {
	name, server := w.name()
	switch n := w.rng.IntN(100); {
	case n < 46:
		op := machine.Assert{Mailbox: name, Server: server, Statement: w.statement(name), Deactivated: w.rng.IntN(60) == 0, Imported: w.rng.IntN(60) == 0}
		if w.rng.IntN(20) == 0 && w.seen > 100 {
			op.Since = w.seen - directory.Revision(w.rng.IntN(100))
		}
		return op
	case n < 62:
		return machine.Retract{Mailbox: name, Server: server, Tentative: w.rng.IntN(8) == 0}
	case n < 76:
		return machine.Reserve{Mailbox: name, Server: server, Partition: fmt.Sprintf("w%dn%d", w.id, w.writes)}
	case n < 79:
		return machine.Release{Mailbox: name, Server: server}
	case n < 84:
		return machine.Deactivate{Mailbox: name, Server: server}
	case n < 89:
		to, _ := w.name()
		if w.rng.IntN(3) == 0 { // a whole user
			return machine.Rename{From: "user." + directory.MailboxName(userName(w.rng.IntN(loadUsers))), To: "user." + directory.MailboxName(userName(w.rng.IntN(loadUsers))), Recursive: true, Server: server}
		}
		return machine.Rename{From: name, To: to, Server: server, Recursive: w.rng.IntN(4) == 0}
	case n < 95:
		return machine.Subscribe{User: userName(w.rng.IntN(loadUsers)), Mailbox: name}
	}
	return machine.Unsubscribe{User: userName(w.rng.IntN(loadUsers)), Mailbox: name}
}

// plainStep is a write or a read.
func (w *worker) plainStep() {
	if w.rng.IntN(100) < 45 {
		w.do(w.fact(), w.timeout())
		return
	}
	w.readSome()
}

// batchStep is a backend that states much at once.
func (w *worker) batchStep() {
	if w.rng.IntN(4) > 0 {
		w.plainStep()
		return
	}
	var b machine.Batch
	for range 5 + w.rng.IntN(25) {
		b.Ops = append(b.Ops, w.fact())
	}
	w.do(b, w.timeout())
}

// operatorStep is what people do, if they did little else.
func (w *worker) operatorStep() {
	time.Sleep(time.Duration(10+w.rng.IntN(90)) * time.Millisecond)
	name, server := w.name()
	groups := []directory.GroupName{"g1", "g2"}
	group := groups[w.rng.IntN(2)]
	member := serverName(w.rng.IntN(2))
	if group == "g2" {
		member = serverName(2 + w.rng.IntN(3))
	}
	switch n := w.rng.IntN(100); {
	case n < 20:
		var epoch uint64
		if g, err := w.c.ListGroups(w.l.ctx, group); err == nil && len(g) == 1 {
			epoch = g[0].Epoch
		}
		if w.rng.IntN(6) == 0 {
			epoch++
		}
		w.do(machine.SetPrimary{Group: group, To: member, Epoch: epoch, Reason: "chaos", AcceptMissing: w.rng.IntN(4) > 0}, w.timeout())
	case n < 24:
		members := []directory.BackendName{serverName(2), serverName(3), serverName(4), serverName(5)}
		w.rng.Shuffle(len(members), func(i, j int) { members[i], members[j] = members[j], members[i] })
		w.do(machine.SetGroup{Group: "g2", Members: members[:2+w.rng.IntN(3)], AcceptMissing: w.rng.IntN(4) > 0}, w.timeout())
	case n < 40:
		kind := directory.HoldKind(1 + w.rng.IntN(4))
		key := map[directory.HoldKind]string{
			directory.HoldUser: string(userName(w.rng.IntN(loadUsers))), directory.HoldMailbox: string(name),
			directory.HoldBackend: string(server), directory.HoldGroup: string(group),
		}[kind]
		if w.rng.IntN(2) == 0 {
			w.do(machine.ReleaseHold{Kind: kind, Key: key}, w.timeout())
			return
		}
		w.do(machine.Hold{Kind: kind, Key: key, For: directory.Time(500 + w.rng.IntN(4000)), Why: "chaos"}, w.timeout())
	case n < 60:
		w.do(machine.Settle{Mailbox: name, Keep: server}, w.timeout())
	case n < 75:
		states := []directory.BackendState{directory.BackendActive, directory.BackendActive, directory.BackendDraining, directory.BackendDown, directory.BackendLost}
		w.do(machine.SetBackend{Server: server, State: new(states[w.rng.IntN(len(states))])}, w.timeout())
	case n < 80:
		w.do(machine.SetBackend{Server: server, Weight: new(uint32(w.rng.IntN(2) * 100))}, w.timeout())
	case n < 84:
		w.do(machine.Confirm{Server: server, How: directory.ByResync}, w.timeout())
	case n < 88:
		w.settings(client.SettingsChange{GuardCount: new(uint32(1 + w.rng.IntN(4)*30)), GuardWindow: new(time.Minute)})
	case n < 92:
		w.settings(client.SettingsChange{GuardCount: new(uint32(1 << 30))})
	case n < 99:
		w.do(machine.DecideHeld{Server: server, Approve: w.rng.IntN(2) == 0}, w.timeout())
	default:
		w.do(machine.Admit{Server: server}, w.timeout())
	}
}

// readSome is one read of any kind and freshness.
func (w *worker) readSome() {
	c := &call{}
	var opts []client.ReadOption
	switch n := w.rng.IntN(10); {
	case n < 3:
		c.mode = linearizable
		opts = append(opts, client.Linearizable())
	case n < 5:
		c.mode = stale
		opts = append(opts, client.Stale(0))
	}
	name, server := w.name()
	user := userName(w.rng.IntN(loadUsers))
	switch n := w.rng.IntN(100); {
	case n < 60:
		w.lookup(c, name, opts)
	case n < 68:
		names := make([]directory.MailboxName, 2+w.rng.IntN(12))
		for i := range names {
			names[i], _ = w.name()
		}
		c.ask = lookupMany{names}
		w.record(c, w.timeout(), func(ctx context.Context) error {
			r, err := w.c.LookupMany(ctx, names, append(opts, client.Details())...)
			c.got = r
			if err == nil {
				c.rev = r[0].Revision
			}
			return err
		})
	case n < 76:
		c.ask = lookupUser{user}
		w.record(c, w.timeout(), func(ctx context.Context) error {
			r, err := w.c.LookupUser(ctx, user, append(opts, client.Details())...)
			c.got, c.rev = r, r.Revision
			return err
		})
	case n < 84:
		q := client.FindQuery{Prefix: "user." + string(user), PageSize: 20}
		if w.rng.IntN(2) == 0 {
			q = client.FindQuery{Server: server, PageSize: 10}
		}
		c.ask = find{q}
		w.record(c, w.timeout(), func(ctx context.Context) error {
			r, err := w.c.Find(ctx, q, opts...)
			c.got, c.rev = r, r.Revision
			return err
		})
	case n < 94:
		q := client.ListQuery{Principal: directory.Principal{User: user}, Patterns: []string{"*"}}
		switch w.rng.IntN(3) {
		case 0:
			q.Select.Subscribed = true
		case 1:
			q.Return.MyRights, q.Return.Location = true, true
		}
		c.ask = list{q}
		w.record(c, w.timeout(), func(ctx context.Context) error {
			r, err := w.c.List(ctx, q, opts...)
			c.got, c.rev = r, r.Revision
			return err
		})
	default:
		q := client.RightsQuery{Principal: directory.Principal{User: user}, Mailbox: name}
		c.ask = rightsQuery{q}
		w.record(c, w.timeout(), func(ctx context.Context) error {
			r, err := w.c.Rights(ctx, q, opts...)
			c.got, c.rev = r, r.Revision
			return err
		})
	}
}

func (w *worker) lookup(c *call, name directory.MailboxName, opts []client.ReadOption) *call {
	c.ask = lookup{name}
	return w.record(c, w.timeout(), func(ctx context.Context) error {
		r, err := w.c.Lookup(ctx, name, append(opts, client.Details())...)
		c.got, c.rev = r, r.Revision
		return err
	})
}

// watch keeps a mirror and notes what it comes to at marks, every two seconds at most.
func (l *load) watch(i int, rng *rand.Rand) {
	q := client.WatchQuery{Details: true, Progress: 500 * time.Millisecond}
	switch i {
	case 1:
		q.Server = serverName(1)
	case 2:
		q.Prefix = "user.u1"
	}
	cl, err := l.c.dial(l.c.endpoints(i), client.WithTimeout(callTimeout))
	if err != nil {
		l.c.fail("watcher %d: %v", i, err)
		return
	}
	defer cl.Close()
	mirror := client.NewMirror()
	var last time.Time
	var high directory.Revision
	for l.ctx.Err() == nil {
		ctx, cancel := context.WithTimeout(l.ctx, time.Duration(2+rng.IntN(15))*time.Second)
		for u, err := range cl.Watch(ctx, q) {
			if err != nil {
				if ctx.Err() == nil && !errors.Is(err, client.ErrClosed) {
					l.c.fail("watcher %d ended: %v", i, err)
				}
				break
			}
			mirror.Apply(u)
			if !u.Mark {
				continue
			}
			if u.Revision < high {
				l.c.fail("watcher %d: a mark at revision %d after one at %d", i, u.Revision, high)
			}
			high, q.From = u.Revision, u.Token
			if time.Since(last) > 2*time.Second {
				last = time.Now()
				m := mark{watcher: i, query: q, rev: u.Revision}
				m.query.From = nil
				m.digest, m.count = digestOf(mirror)
				l.h.marks[i] = append(l.h.marks[i], m)
			}
		}
		cancel()
		if rng.IntN(4) == 0 {
			q.From, high = nil, 0
			mirror = client.NewMirror()
		}
	}
}

// digestOf is what a mirror comes to.
func digestOf(m *client.Mirror) (sum uint64, count int) {
	for r := range m.All() {
		var p printed
		p.fromMirror(&r)
		h := fnv.New64a()
		fmt.Fprint(h, p.watched())
		sum += h.Sum64()
		count++
	}
	return sum, count
}
