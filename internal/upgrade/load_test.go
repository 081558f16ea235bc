//go:build upgrade

package upgrade

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/directory/machine"
)

// load is writers that go on while nodes are exchanged: some with mailboxes of their
// own and what they were told of them, and some that ask for everything there is
// (commands_test.go).
type load struct {
	t       *testing.T
	nodes   []*node // the founders
	writers []*writer
	busy    []*busy
	windows []window
	raised  atomic.Bool   // the cluster version is: what came with it is asked for too
	newest  atomic.Uint64 // the highest revision that busy was told
	stop    chan struct{}
	once    sync.Once // closes stop
	ended   sync.WaitGroup
	acked   atomic.Int64
	slowest atomic.Int64 // nanoseconds, of any write
}

type writer struct {
	id    int
	c     *client.Client
	rng   *rand.Rand
	truth map[directory.MailboxName]string // the ACL last acknowledged; absent: retracted
	n     int
}

// window is a stretch of the log while the cluster was of these releases.
type window struct {
	what     string
	mixed    bool
	from, to uint64 // revisions, the first one excluded
}

// seen keeps the highest revision.
func (l *load) seen(rev directory.Revision) {
	for {
		was := l.newest.Load()
		if uint64(rev) <= was || l.newest.CompareAndSwap(was, uint64(rev)) {
			return
		}
	}
}

const loadTimeout = time.Minute

func endpointsOf(nodes []*node) (all []string) {
	for _, n := range nodes {
		all = append(all, n.client)
	}
	return all
}

func dial(t *testing.T, nodes ...*node) *client.Client {
	t.Helper()
	c, err := client.Dial(endpointsOf(nodes), client.WithTimeout(loadTimeout))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// How many there are of each kind; busy has one operator more.
const (
	loadWriters  = 3
	loadBackends = 3
	loadServers  = 3
)

func loadServer(i int) directory.BackendName {
	return directory.BackendName(fmt.Sprintf("be%d.load.test", i%loadServers))
}

// startLoad starts all.
func startLoad(t *testing.T, nodes []*node, seed uint64) *load {
	t.Helper()
	l := &load{t: t, nodes: nodes, stop: make(chan struct{})}
	for i := range loadBackends + 1 {
		c, err := client.Dial(endpointsOf(nodes), client.WithTimeout(loadTimeout), client.WithLanes(1))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		l.busy = append(l.busy, &busy{l: l, id: i, c: c, rng: rand.New(rand.NewPCG(seed, uint64(i)+100))})
	}
	operator := l.busy[loadBackends]
	// The guard is out of the way of the writers' backends: it counts nothing that is
	// withdrawn in an approved drain, and nothing that is imported.
	for i := range loadServers {
		for _, op := range []machine.Op{
			machine.SetBackend{Server: loadServer(i), Create: true, State: new(directory.BackendDraining), DrainApproved: new(true)},
			machine.Confirm{Server: loadServer(i), How: directory.ByOperator},
		} {
			if err := operator.do(t.Context(), op); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := operator.prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, b := range l.busy {
		step := b.backend
		if b == operator {
			step = b.operator
		}
		l.ended.Go(func() {
			if err := b.run(step); err != nil {
				t.Errorf("busy %d: %v", b.id, err)
			}
		})
	}
	for i := range loadWriters {
		w := &writer{id: i, c: dial(t, nodes...), rng: rand.New(rand.NewPCG(seed, uint64(i))), truth: map[directory.MailboxName]string{}}
		l.writers = append(l.writers, w)
		l.ended.Go(func() {
			if err := l.write(w); err != nil {
				t.Errorf("writer %d: %v", w.id, err)
			}
		})
	}
	t.Cleanup(l.halt) // before the clients are closed
	return l
}

// halt ends the load.
func (l *load) halt() {
	l.once.Do(func() { close(l.stop) })
	l.ended.Wait()
}

// write writes until the load is stopped. The client repeats what was cut off, with
// the same request number: no write leaves things as they were, so an answer other
// than the expected one tells of a write that was lost, or done twice.
func (l *load) write(w *writer) error {
	for {
		select {
		case <-l.stop:
			return nil
		default:
		}
		ctx, cancel := context.WithTimeout(context.Background(), loadTimeout)
		begun := time.Now()
		err := w.one(ctx)
		cancel()
		if err != nil {
			return err
		}
		l.acked.Add(1)
		if took := int64(time.Since(begun)); took > l.slowest.Load() {
			l.slowest.Store(took)
		}
	}
}

func (w *writer) one(ctx context.Context) error {
	name := directory.MailboxName(fmt.Sprintf("user.k%d.f%d", w.id, w.rng.IntN(40)))
	server := loadServer(w.id)
	old, held := w.truth[name]
	if held && w.rng.IntN(5) == 0 {
		r, err := w.c.Retract(ctx, client.Retract{Mailbox: name, Server: server})
		if err != nil || r.Effect != client.Removed {
			return fmt.Errorf("retract %s, held with %q: got %v, %v, want %v", name, old, r.Effect, err, client.Removed)
		}
		delete(w.truth, name)
		return nil
	}
	w.n++
	acl := fmt.Sprintf("k%d\tlrswipkxtecdan\tshared%d\tlrs\t", w.id, w.n)
	want := client.Added
	if held {
		want = client.Changed
	}
	r, err := w.c.Assert(ctx, client.Assert{Mailbox: name, Server: server, Imported: true, Statement: directory.Statement{Partition: "default", ACL: &acl}})
	if err != nil || r.Effect != want {
		return fmt.Errorf("assert %s %q over %q: got %v, %v, want %v", name, acl, old, r.Effect, err, want)
	}
	w.truth[name] = acl
	return nil
}

// goesOn makes sure that writes are acknowledged for a while, and that no node finds
// its state to be another than the others'.
func (l *load) goesOn(what string) {
	l.t.Helper()
	was := l.acked.Load()
	w := window{what: what, from: l.newest.Load()}
	for _, n := range l.nodes {
		w.mixed = w.mixed || n.release != l.nodes[0].release
	}
	if last := len(l.windows) - 1; last >= 0 && l.windows[last].mixed && w.mixed {
		l.windows[last].to = w.from // it was all the while
	}
	begun := time.Now()
	time.Sleep(*mixedFor)
	until(l.t, loadTimeout, what+": writes to go on", func() bool { return l.acked.Load() >= was+20 && l.newest.Load() >= w.from+20 })
	w.to = l.newest.Load()
	l.windows = append(l.windows, w)
	l.t.Logf("%s: %d writes acknowledged in %s, %d commands", what, l.acked.Load()-was, time.Since(begun).Truncate(100*time.Millisecond), w.to-w.from)
	for _, n := range l.nodes {
		if n.cmd != nil {
			alike(l.t, n)
		}
	}
}

// end ends the load and holds what each node says against what was acknowledged.
func (l *load) end(nodes []*node) {
	l.t.Helper()
	l.halt()
	if l.t.Failed() {
		l.t.FailNow()
	}
	want := map[directory.MailboxName]string{}
	for _, w := range l.writers {
		for name, acl := range w.truth {
			want[name] = acl
		}
	}
	for _, n := range nodes {
		l.held(n, want)
	}
	l.t.Logf("%d writes acknowledged, none lost, none done twice; the slowest took %s", l.acked.Load(), time.Duration(l.slowest.Load()).Truncate(time.Millisecond))
}

// held makes sure that a node has all that was acknowledged and nothing else, and
// that its indexes follow from it.
func (l *load) held(n *node, want map[directory.MailboxName]string) {
	l.t.Helper()
	c := dial(l.t, n)
	got := map[directory.MailboxName]string{}
	for r, err := range c.FindAll(l.t.Context(), client.FindQuery{Prefix: "user.k"}, client.Linearizable()) {
		if err != nil {
			l.t.Fatalf("%s: %v", n.name, err)
		}
		if len(r.Facts) != 1 {
			l.t.Errorf("%s: %s has %d facts, want 1", n.name, r.Mailbox, len(r.Facts))
			continue
		}
		got[r.Mailbox] = r.Facts[0].ACL
	}
	for name, acl := range want {
		if got[name] != acl {
			l.t.Errorf("%s, release %s: %s has ACL %q, acknowledged was %q", n.name, n.release, name, got[name], acl)
		}
	}
	if len(got) != len(want) {
		l.t.Errorf("%s, release %s: got %d mailboxes, %d were acknowledged", n.name, n.release, len(got), len(want))
	}
	sum, err := c.Check(l.t.Context(), 10, func(e client.CheckEvent) error {
		if e.Kind != "" && !e.Advisory {
			l.t.Errorf("%s: check: %s %s: %s", n.name, e.Kind, e.Mailbox, e.Detail)
		}
		return nil
	})
	if err != nil || sum.Faults != 0 {
		l.t.Errorf("%s, release %s: check: %d faults, %v", n.name, n.release, sum.Faults, err)
	}
}
