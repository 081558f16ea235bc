package server

import (
	"context"
	"flag"
	"fmt"

	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/directory/machine"
	"github.com/rookery-mail/rookery/internal/kv"
	"github.com/rookery-mail/rookery/raftstore"
)

// memoryLog is the commands of a cluster and the state after each of them, so that
// what a watcher knows at a mark can be compared with the state of that revision.
type memoryLog struct {
	m     *machine.Machine
	store *kv.Memory

	mu     sync.Mutex
	states map[directory.Revision]*kv.Snapshot
	last   directory.Revision
}

func newMemoryLog(t testing.TB) *memoryLog {
	m := machine.New()
	l := &memoryLog{m: m, store: kv.NewMemory(m.Buckets()...), states: map[directory.Revision]*kv.Snapshot{}}
	l.apply(t, 0, machine.Init{ClusterID: "c1", Incarnation: 1, DigestKey: make([]byte, 16)})
	return l
}

// apply does one operation as a command of its own.
func (l *memoryLog) apply(t testing.TB, elapsed directory.Time, op machine.Op) machine.Result {
	t.Helper()
	tx := l.store.Begin()
	b, err := l.m.Apply(tx, elapsed, 0, machine.EncodeCommand(machine.Command{By: "test", Op: op}))
	if err != nil {
		t.Fatalf("%T: %v", op, err)
	}
	tx.Commit()
	r, err := machine.DecodeResult(b)
	if err != nil {
		t.Fatal(err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.store.Snapshot()
	if l.last, err = l.m.Revision(s); err != nil {
		t.Fatal(err)
	}
	l.states[l.last] = s
	return r
}

func (l *memoryLog) state(r directory.Revision) *kv.Snapshot {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.states[r]
}

func (l *memoryLog) revision() directory.Revision {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last
}

// replica is a Store that has applied a part of a memoryLog.
type replica struct {
	log *memoryLog

	mu      sync.Mutex
	at      directory.Revision
	age     time.Duration
	changed chan struct{}
	closed  bool
}

func newReplica(l *memoryLog) *replica {
	return &replica{log: l, at: l.revision(), changed: make(chan struct{})}
}

// advance lets the replica apply all there is.
func (r *replica) advance() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.at = r.log.revision()
	close(r.changed)
	r.changed = make(chan struct{})
}

func (r *replica) Propose(context.Context, []byte) ([]byte, error) { return nil, raftstore.ErrNoLeader }

func (r *replica) Local() (View, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, raftstore.ErrClosed
	}
	return snapshotView{r.log.state(r.at), r.age}, nil
}

func (r *replica) Linearizable(context.Context) (View, error) {
	r.advance()
	return r.Local()
}

func (r *replica) Verified() bool { return true }

func (r *replica) When(ctx context.Context, ready func(kv.Reader) bool) (View, error) {
	for {
		r.mu.Lock()
		changed := r.changed
		r.mu.Unlock()
		v, err := r.Local()
		if err != nil || ready(v) {
			return v, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

type snapshotView struct {
	*kv.Snapshot
	age time.Duration
}

func (v snapshotView) Age() (time.Duration, bool) { return v.age, true }
func (snapshotView) Release()                     {}

// newReplicaServer serves a replica.
func newReplicaServer(t testing.TB, r *replica, name string, change func(*watchLimits)) *Server {
	t.Helper()
	s, err := New(Config{Store: r, Machine: r.log.m, Node: name, CatchUp: 20 * time.Millisecond, Confirm: 20 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(&s.watch.limits)
	}
	t.Cleanup(func() { s.Close(context.Background()) })
	return s
}

var (
	watchSeeds = flag.Int("watch.seeds", 12, "how many random sequences TestWatchModel plays")
	watchSeed  = flag.Uint64("watch.seed", 0, "play this sequence alone")
	watchSteps = flag.Int("watch.steps", 400, "commands in a sequence")
)

// TestWatchModel plays random commands while watchers with all filters watch, break
// off, come back and are slow, on nodes that lag, and compares what each knows at
// every mark with the state of that revision.
func TestWatchModel(t *testing.T) {
	first, n := uint64(1), uint64(*watchSeeds)
	if *watchSeed != 0 {
		first, n = *watchSeed, 1
	}
	var sum watchCounts
	for seed := first; seed < first+n && !t.Failed(); seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { sum.add(playWatch(t, seed)) })
	}
	t.Logf("%+v", sum)
	if *watchSeed == 0 && !t.Failed() && (sum.compared < 100 || sum.resumed < 10 || sum.resets < 5) {
		t.Errorf("%+v: too little to prove anything", sum)
	}
}

type watchCounts struct{ updates, compared, resumed, resets int }

func (c *watchCounts) add(o watchCounts) {
	c.updates += o.updates
	c.compared += o.compared
	c.resumed += o.resumed
	c.resets += o.resets
}

func playWatch(t *testing.T, seed uint64) watchCounts {
	rng := rand.New(rand.NewPCG(seed, 1))
	l := newMemoryLog(t)
	g := &watchCommands{rng: rng, servers: []directory.BackendName{"be1", "be2", "be3", "be4"}}
	for range 30 {
		l.apply(t, 0, g.next())
	}
	replicas := map[string]*replica{}
	servers := map[string]*Server{}
	var nodes []string
	for _, name := range []string{"n1", "n2"} {
		r := newReplica(l)
		replicas[name], nodes = r, append(nodes, name)
		servers[name] = newReplicaServer(t, r, name, func(lim *watchLimits) {
			lim.interval = time.Duration(rng.IntN(3)) * time.Millisecond
			lim.pieceEvents, lim.pieceRows = 1+rng.IntN(5), 1+rng.IntN(9)
			lim.message = 1 + rng.IntN(400)
			lim.compact, lim.listing = rng.IntN(4), 1+rng.IntN(8)
		})
	}
	dial := func(ctx context.Context, addr string) (conn net.Conn, err error) {
		return servers[addr].DialMemory(ctx, addr)
	}

	var queries []client.WatchQuery
	for _, q := range []client.WatchQuery{
		{}, {Prefix: "user.a"}, {Prefix: "user.alice"}, {Prefix: "shared"}, {User: "alice"}, {User: "bob"}, {Server: "be1"}, {Server: "be3"},
		{Kinds: []client.WatchKind{client.WatchMailbox, client.WatchSubscription}},
		{Server: "be2", Kinds: []client.WatchKind{client.WatchMailbox, client.WatchReservation}},
	} {
		q.Progress = 50 * time.Millisecond
		q.Details = rng.IntN(2) == 0
		queries = append(queries, q)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var sum watchCounts
	var mu sync.Mutex
	var wg sync.WaitGroup
	watching := make([]*modelWatcher, len(queries))
	for i, q := range queries {
		order := slices.Clone(nodes)
		rng.Shuffle(2, func(i, j int) { order[i], order[j] = order[j], order[i] })
		c, err := client.Dial(order, client.WithDialer(dial))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		w := &modelWatcher{t: t, log: l, c: c, q: q, rng: rand.New(rand.NewPCG(seed, uint64(i+2))), mirror: client.NewMirror()}
		watching[i] = w
		wg.Go(func() {
			w.run(ctx)
			mu.Lock()
			defer mu.Unlock()
			sum.add(w.counts)
		})
	}
	for range *watchSteps {
		l.apply(t, directory.Time(rng.IntN(3)*rng.IntN(20_000)), g.next())
		for _, r := range replicas {
			if rng.IntN(3) > 0 {
				r.advance()
			}
		}
		if rng.IntN(6) == 0 {
			time.Sleep(time.Duration(rng.IntN(4)) * time.Millisecond)
		}
		if t.Failed() {
			break
		}
	}
	for _, r := range replicas {
		r.advance()
	}
	// A mark at the end is a barrier: all that was done has been told then.
	end := l.revision()
	for i, w := range watching {
		w.mu.Lock()
		w.calm = true
		w.mu.Unlock()
		deadline := time.Now().Add(20 * time.Second)
		for w.reached() < end && !t.Failed() {
			if time.Now().After(deadline) {
				t.Errorf("seed %d, watcher %d (%+v): at revision %d, the end is %d", seed, i, w.q, w.reached(), end)
				break
			}
			time.Sleep(time.Millisecond)
		}
	}
	cancel()
	wg.Wait()
	return sum
}

// modelWatcher is one watcher with a Mirror.
type modelWatcher struct {
	t      *testing.T
	log    *memoryLog
	c      *client.Client
	q      client.WatchQuery
	rng    *rand.Rand
	mirror *client.Mirror
	counts watchCounts
	newest directory.Revision // that anything was told of

	mu   sync.Mutex
	at   directory.Revision
	calm bool // no more breaks
}

func (w *modelWatcher) reached() directory.Revision {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.at
}

func (w *modelWatcher) isCalm() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.calm
}

// run watches until ctx ends, and breaks off and goes on now and then.
func (w *modelWatcher) run(ctx context.Context) {
	var token []byte
	for ctx.Err() == nil {
		q := w.q
		q.From = token
		one, leave := context.WithCancel(ctx)
		left := w.rng.IntN(40)
		if token != nil {
			w.counts.resumed++
		}
		for u, err := range w.c.Watch(one, q) {
			if err != nil {
				if ctx.Err() == nil && one.Err() == nil {
					// Its server may have been renamed while it was away.
					if q.Server == "" || !strings.Contains(err.Error(), "no backend") {
						w.t.Errorf("%+v: %v", w.q, err)
						leave()
						return
					}
					w.mu.Lock()
					w.at = 1 << 60 // nothing to wait for
					w.mu.Unlock()
					leave()
					return
				}
				break
			}
			w.take(u)
			if u.Mark {
				token = u.Token
			}
			if w.isCalm() {
				continue
			}
			if w.rng.IntN(5) == 0 {
				time.Sleep(time.Duration(w.rng.IntN(8)) * time.Millisecond)
			}
			if left--; left < 0 {
				break
			}
		}
		leave()
		if w.rng.IntN(3) == 0 && !w.isCalm() {
			time.Sleep(time.Duration(w.rng.IntN(60)) * time.Millisecond)
		}
	}
}

func (w *modelWatcher) take(u client.WatchUpdate) {
	w.counts.updates++
	if u.Reset {
		w.counts.resets++
		w.newest = 0
	}
	if u.Revision < w.newest {
		w.t.Errorf("%+v: told of revision %d after %d", w.q, u.Revision, w.newest)
	}
	w.newest = u.Revision
	w.mirror.Apply(u)
	if !u.Mark {
		return
	}
	state := w.log.state(u.Revision)
	if state == nil {
		w.t.Errorf("%+v: a mark at revision %d, which there is not", w.q, u.Revision)
		return
	}
	w.counts.compared++
	got, want := renderMirror(w.mirror, w.q), renderState(w.t, w.log.m, state, w.q, u.Server)
	if d := difference(got, want); d != "" {
		w.t.Errorf("%+v from %s: at the mark of revision %d:\n%s", w.q, u.Node, u.Revision, d)
	}
	w.mu.Lock()
	w.at = u.Revision
	w.mu.Unlock()
}

func difference(got, want []string) string {
	var b strings.Builder
	for _, g := range got {
		if !slices.Contains(want, g) {
			fmt.Fprintf(&b, "  knows   %s\n", g)
		}
	}
	for _, w := range want {
		if !slices.Contains(got, w) {
			fmt.Fprintf(&b, "  there is %s\n", w)
		}
	}
	return b.String()
}

func wantsKind(q client.WatchQuery, k client.WatchKind) bool {
	return len(q.Kinds) == 0 || slices.Contains(q.Kinds, k)
}

// withRoutes reports whether the watcher is told what routes are derived from.
func withRoutes(q client.WatchQuery) bool {
	return wantsKind(q, client.WatchBackend) && wantsKind(q, client.WatchGroup) && wantsKind(q, client.WatchHold)
}

func routeLine(r client.Route, q client.WatchQuery) string {
	var b strings.Builder
	fmt.Fprintf(&b, "mailbox %s changed %d", r.Mailbox, r.Changed)
	if withRoutes(q) {
		fmt.Fprintf(&b, " %s at %q of %s home %q epoch %d primary %q forked %t listed %q missing %v", r.Outcome, r.Server.Name, r.Server.State, r.Group, r.Epoch, r.Primary, r.Forked, r.ListedFrom, r.Missing)
		if r.Hold != nil {
			fmt.Fprintf(&b, " hold %s %s %s", r.Hold.Kind, r.Hold.Key, r.Hold.Why)
		}
	}
	for _, f := range r.Facts {
		fmt.Fprintf(&b, " [%s %s %d-%d confirmed %t", f.State, f.Standing, f.First, f.Last, f.Confirmed)
		if withRoutes(q) {
			fmt.Fprintf(&b, " %s admitted %t", f.Server, f.Admitted)
		}
		if q.Details {
			fmt.Fprintf(&b, " %s %q %s", f.Partition, f.ACL, f.MailboxID)
		}
		b.WriteByte(']')
	}
	return b.String()
}

func renderMirror(m *client.Mirror, q client.WatchQuery) (lines []string) {
	for r := range m.All() {
		lines = append(lines, routeLine(r, q))
	}
	for _, name := range m.Reservations() {
		line := fmt.Sprintf("claim %s %s", name, m.Reservation(name).Partition)
		if withRoutes(q) {
			line += " " + string(m.Reservation(name).Server)
		}
		lines = append(lines, line)
	}
	for _, s := range m.Subscriptions() {
		lines = append(lines, fmt.Sprintf("subscription %s %s", s.User, s.Mailbox))
	}
	for _, b := range m.Backends() {
		lines = append(lines, fmt.Sprintf("backend %d %s group %d %s weight %d admitted %t drain %t confirmed %t %s", b.ID, b.Name, b.Group, b.State, b.Weight, b.Admitted, b.DrainApproved, b.ConfirmedIn == 1, b.Confirmed))
	}
	for _, g := range m.Groups() {
		lines = append(lines, fmt.Sprintf("group %d %s %v primary %d epoch %d merged %d own %t mode %d", g.ID, g.Name, g.Members, g.Primary, g.Epoch, g.MergedInto, g.Own, g.Mode))
	}
	for _, h := range m.Holds() {
		lines = append(lines, fmt.Sprintf("hold %s %s until %d %s", h.Kind, h.Key, h.Until, h.Why))
	}
	if wantsKind(q, client.WatchSettings) {
		lines = append(lines, fmt.Sprintf("settings %+v", m.Settings()))
	}
	return lines
}

// renderState says by plain enumeration what a watcher must know.
func renderState(t *testing.T, m *machine.Machine, state *kv.Snapshot, q client.WatchQuery, server directory.ServerID) (lines []string) {
	sight, err := m.Look(state)
	if err != nil {
		t.Fatal(err)
	}
	covers := func(name directory.MailboxName) bool {
		switch {
		case q.Prefix != "":
			return strings.HasPrefix(string(name), q.Prefix)
		case q.User != "":
			inbox, _ := q.User.Inbox()
			return name == inbox || strings.HasPrefix(string(name), string(inbox)+".")
		}
		return true
	}
	for _, name := range namesIn(t, m, state) {
		if !covers(name) {
			continue
		}
		a, err := sight.Lookup(name)
		if err != nil {
			t.Fatal(err)
		}
		if a.Mailbox != nil && wantsKind(q, client.WatchMailbox) && (q.Server == "" || a.Mailbox.Fact(server) != nil) {
			lines = append(lines, routeLine(routeOfAnswer(&a), q))
		}
		if res := a.Reservation; res != nil && wantsKind(q, client.WatchReservation) && (q.Server == "" || res.Server == server) {
			line := fmt.Sprintf("claim %s %s", name, res.Partition)
			if withRoutes(q) {
				line += " " + string(a.BackendName(res.Server))
			}
			lines = append(lines, line)
		}
		if wantsKind(q, client.WatchHold) {
			lines = append(lines, holdsOver(sight, q, name)...)
		}
	}
	if wantsKind(q, client.WatchHold) {
		for _, h := range sight.Holds() {
			if h.Kind == directory.HoldBackend || h.Kind == directory.HoldGroup || q.Prefix == "" && q.User == "" {
				lines = append(lines, holdLine(h))
			}
		}
	}
	for _, user := range watchUsers {
		names, _, err := m.Subscriptions(state, user, "", 0)
		if err != nil {
			t.Fatal(err)
		}
		if !wantsKind(q, client.WatchSubscription) || q.Prefix != "" || q.Server != "" || q.User != "" && q.User != user {
			continue
		}
		for _, name := range names {
			lines = append(lines, fmt.Sprintf("subscription %s %s", user, name))
		}
	}
	if wantsKind(q, client.WatchBackend) {
		for _, b := range sight.Backends() {
			lines = append(lines, fmt.Sprintf("backend %d %s group %d %s weight %d admitted %t drain %t confirmed %t %s", b.ID, b.Name, b.Group, b.State, b.Weight, b.Admitted, b.DrainApproved, sight.Confirmed(b), b.Confirmed))
		}
	}
	if wantsKind(q, client.WatchGroup) {
		for _, g := range sight.Groups() {
			lines = append(lines, fmt.Sprintf("group %d %s %v primary %d epoch %d merged %d own %t mode %d", g.ID, g.Name, g.Members, g.Primary, g.Epoch, g.MergedInto, g.Own, g.Mode))
		}
	}
	if wantsKind(q, client.WatchSettings) {
		lines = append(lines, fmt.Sprintf("settings %+v", sight.Settings()))
	}
	return lines
}

// namesIn are the names drawn from, and those that renames have made of them.
func namesIn(t *testing.T, m *machine.Machine, state *kv.Snapshot) []directory.MailboxName {
	names := slices.Clone(watchNames)
	for q := (machine.FindQuery{Limit: machine.MaxFind}); ; {
		found, next, err := m.Find(state, q)
		if err != nil {
			t.Fatal(err)
		}
		for i := range found {
			if !slices.Contains(names, found[i].Name) {
				names = append(names, found[i].Name)
			}
		}
		if q.After = next; next == "" {
			return names
		}
	}
}

func holdLine(h *directory.Hold) string {
	return fmt.Sprintf("hold %s %s until %d %s", h.Kind, h.Key, h.Until, h.Why)
}

// holdsOver lists the holds on users and mailboxes that cover name.
func holdsOver(sight *machine.Sight, q client.WatchQuery, name directory.MailboxName) (lines []string) {
	if q.Prefix == "" && q.User == "" {
		return nil
	}
	for _, h := range sight.Holds() {
		owner, _ := name.Owner()
		over := directory.MailboxName(h.Key)
		if h.Kind == directory.HoldUser && string(owner) == h.Key || h.Kind == directory.HoldMailbox && (name == over || name.IsBelow(over)) {
			lines = append(lines, holdLine(h))
		}
	}
	return lines
}

func routeOfAnswer(a *machine.Answer) client.Route {
	r := client.Route{Mailbox: a.Name, Outcome: a.Outcome, Forked: a.Route.Forked, Changed: a.Changed}
	if a.Outcome == directory.NotFound {
		r.Outcome = directory.Unconfirmed
	}
	r.Missing = a.Missing
	if a.Server != nil {
		r.Server.Name, r.Server.State = a.Server.Name, a.Server.State
	}
	if h := a.Route.Home; h != nil {
		r.Group, r.Epoch, r.Primary = h.Name, h.Epoch, a.BackendName(h.Primary)
	}
	if f := a.Route.Fact; f != nil {
		r.ListedFrom = a.BackendName(f.Server)
	}
	if a.Hold != nil {
		r.Hold = &client.Hold{Kind: a.Hold.Kind, Key: a.Hold.Key, Why: a.Hold.Why}
	}
	for i := range a.Mailbox.Facts {
		f := &a.Mailbox.Facts[i]
		b := a.Backend(f.Server)
		r.Facts = append(r.Facts, client.Fact{
			Server: a.BackendName(f.Server), Admitted: b.Admitted, Partition: f.Partition, ACL: f.ACL, MailboxID: f.MailboxID,
			State: f.State, Standing: f.Standing, First: f.First, Last: f.Last, Confirmed: a.Confirmed(f),
		})
	}
	return r
}

var (
	watchNames = []directory.MailboxName{
		"shared", "shared.a", "user.alice", "user.alice.Sent", "user.alice.Sent.2026", "user.alic", "user.alicex", "user.bob", "user.bob.Sent",
		"ex!user.alice", "ex!user.alice.Sent", "user.carl", "shared2",
	}
	watchUsers = []directory.UserID{"alice", "bob", "carl", "alice@ex", "alic", "alicex"}
)

// watchCommands draws commands.
type watchCommands struct {
	rng     *rand.Rand
	servers []directory.BackendName
	renamed int
	n       int
}

func pick[T any](rng *rand.Rand, list []T) T { return list[rng.IntN(len(list))] }

func (g *watchCommands) next() machine.Op {
	if g.rng.IntN(12) == 0 {
		var ops []machine.Op
		for range 1 + g.rng.IntN(8) {
			ops = append(ops, g.one())
		}
		return machine.Batch{Ops: slices.DeleteFunc(ops, func(op machine.Op) bool { _, tick := op.(machine.Tick); return tick })}
	}
	return g.one()
}

func (g *watchCommands) one() machine.Op {
	rng := g.rng
	g.n++
	name, server, user := pick(rng, watchNames), pick(rng, g.servers), pick(rng, watchUsers)
	groups := append([]directory.GroupName{"g1", "g2"}, directory.GroupName(server))
	switch rng.IntN(34) {
	default:
		acl := fmt.Sprintf("%s\tlrs\tanyone\tl\tn%d\tl\t", user, g.n)
		id := fmt.Sprint("id", rng.IntN(2))
		return machine.Assert{Mailbox: name, Server: server, Statement: directory.Statement{Partition: fmt.Sprint("p", rng.IntN(3)), ACL: &acl, MailboxID: &id}, Deactivated: false, Imported: rng.IntN(5) == 0}
	case 0, 1, 2, 3:
		return machine.Retract{Mailbox: name, Server: server, Tentative: rng.IntN(4) == 0}
	case 4, 5:
		return machine.Reserve{Mailbox: name, Server: server, Partition: fmt.Sprint("p", rng.IntN(3)), Grace: directory.Time(1 + rng.IntN(60_000))}
	case 6:
		return machine.Release{Mailbox: name, Server: server}
	case 7, 8:
		return machine.Deactivate{Mailbox: name, Server: server}
	case 9:
		return machine.Rename{From: name, To: pick(rng, watchNames), Recursive: rng.IntN(2) == 0, Server: server}
	case 10:
		return machine.SetPrimary{Group: pick(rng, groups), To: server, Epoch: uint64(1 + rng.IntN(3)), AcceptMissing: true}
	case 11, 12:
		members := []directory.BackendName{server}
		if other := pick(rng, g.servers); other != server {
			members = append(members, other)
		}
		return machine.SetGroup{Group: pick(rng, groups[:2]), Members: members, AcceptMissing: true}
	case 13:
		state := directory.BackendState(1 + rng.IntN(4))
		return machine.SetBackend{Server: server, State: &state, Weight: new(uint32(rng.IntN(9))), Create: true}
	case 14:
		return machine.Admit{Server: server}
	case 15:
		return machine.Confirm{Server: server, How: directory.ByOperator}
	case 16:
		if rng.IntN(4) > 0 {
			return machine.Tick{}
		}
		g.renamed++
		i := rng.IntN(len(g.servers))
		op := machine.RenameBackend{From: g.servers[i], To: directory.BackendName(fmt.Sprint("renamed", g.renamed))}
		g.servers[i] = op.To
		return op
	case 17, 18:
		return machine.Subscribe{User: user, Mailbox: name}
	case 19:
		return machine.Unsubscribe{User: user, Mailbox: name}
	case 20:
		return machine.Settle{Mailbox: name, Keep: server}
	case 21, 22:
		kind := directory.HoldKind(1 + rng.IntN(4))
		key := map[directory.HoldKind]string{1: string(user), 2: string(pick(rng, append([]directory.MailboxName{"user"}, watchNames...))), 3: string(server), 4: string(pick(rng, groups))}[kind]
		if rng.IntN(3) == 0 {
			return machine.ReleaseHold{Kind: kind, Key: key}
		}
		return machine.Hold{Kind: kind, Key: key, For: directory.Time(1 + rng.IntN(100_000)), Why: fmt.Sprint("why", g.n)}
	case 23:
		return machine.DecideHeld{Server: server, Approve: rng.IntN(2) == 0}
	case 24:
		s := directory.DefaultSettings()
		s.LogKeep = uint64(1 + rng.IntN(400))
		s.GuardCount, s.GuardPercent = uint32(1+rng.IntN(4)), uint32(rng.IntN(30))
		s.AdmissionOpen = rng.IntN(4) > 0
		s.VirtDomains = true
		return machine.SetSettings{Settings: s}
	case 25, 26:
		return machine.Tick{}
	}
}
