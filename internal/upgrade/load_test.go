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
)

// load is writers that go on while nodes are exchanged, each with mailboxes of its
// own and what it was told of them.
type load struct {
	t       *testing.T
	writers []*writer
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

// startLoad starts writers, in a directory whose guard is out of the way.
func startLoad(t *testing.T, nodes []*node, count int, seed uint64) *load {
	t.Helper()
	if _, err := dial(t, nodes...).SetSettings(t.Context(), client.SettingsChange{GuardCount: new(uint32(1 << 30))}); err != nil {
		t.Fatal(err)
	}
	l := &load{t: t, stop: make(chan struct{})}
	for i := range count {
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
	server := directory.BackendName(fmt.Sprintf("be%d.load.test", w.id%3))
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
	r, err := w.c.Assert(ctx, client.Assert{Mailbox: name, Server: server, Statement: directory.Statement{Partition: "default", ACL: &acl}})
	if err != nil || r.Effect != want {
		return fmt.Errorf("assert %s %q over %q: got %v, %v, want %v", name, acl, old, r.Effect, err, want)
	}
	w.truth[name] = acl
	return nil
}

// goesOn makes sure that writes are acknowledged for a while.
func (l *load) goesOn(what string) {
	l.t.Helper()
	was := l.acked.Load()
	begun := time.Now()
	time.Sleep(*mixedFor)
	until(l.t, loadTimeout, what+": writes to go on", func() bool { return l.acked.Load() >= was+20 })
	l.t.Logf("%s: %d writes acknowledged in %s", what, l.acked.Load()-was, time.Since(begun).Truncate(100*time.Millisecond))
}

// end ends the load and holds what each node says against what was acknowledged.
func (l *load) end(nodes []*node) {
	l.t.Helper()
	l.halt()
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
