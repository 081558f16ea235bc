//go:build peers

package powerloss

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
)

// gate lets the connections of writers through, or has them wait: so a node can
// be looked at after a cut before anybody repeats anything.
type gate struct {
	mu   sync.Mutex
	open chan struct{} // closed when it is
}

func newGate() *gate {
	g := &gate{open: make(chan struct{})}
	close(g.open)
	return g
}

func (g *gate) now() chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.open
}

// shut has new connections wait; those that are there end with the nodes.
func (g *gate) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case <-g.open:
		g.open = make(chan struct{})
	default:
	}
}

func (g *gate) let() {
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case <-g.open:
	default:
		close(g.open)
	}
}

func (g *gate) dial(ctx context.Context, address string) (net.Conn, error) {
	select {
	case <-g.now():
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	var d net.Dialer
	return d.DialContext(ctx, "tcp", address)
}

// held is what the directory must say of a mailbox; nil: nothing.
type held struct {
	server directory.BackendName
	acl    string
	// The revision that was answered; 0 for a write without an answer.
	revision directory.Revision
}

// write is one that has no answer yet.
type write struct {
	mailbox directory.MailboxName
	becomes *held
}

// writer owns some mailboxes. No write of it leaves things as they are.
type writer struct {
	id  int
	c   *client.Client
	rng *rand.Rand
	n   int

	mu      sync.Mutex // guards what follows
	truth   map[directory.MailboxName]*held
	pending *write
	acked   int
	refused int
}

const mailboxesEach = 20

// step does one write. It ends only with an answer: the client repeats what was
// cut off with the number it had, and so an answer other than the one expected
// tells of a write that was lost or done twice.
func (w *writer) step(ctx context.Context) error {
	name := directory.MailboxName(fmt.Sprintf("user.p%d.f%d", w.id, w.rng.IntN(mailboxesEach)))
	server := directory.BackendName(fmt.Sprintf("be%d.power.test", w.id%3))
	w.mu.Lock()
	old := w.truth[name]
	w.mu.Unlock()
	switch {
	case old != nil && w.rng.IntN(12) == 0:
		return w.refusal(ctx, name)
	case old != nil && w.rng.IntN(5) == 0:
		return w.do(name, nil, client.Removed, func() (client.Result, error) {
			return w.c.Retract(ctx, client.Retract{Mailbox: name, Server: server})
		})
	}
	w.n++
	acl := fmt.Sprintf("p%d\tlrswipkxtecdan\tshared%d\tlrs\t", w.id, w.n)
	if w.rng.IntN(8) == 0 { // some are large, so that a write is more than a sector
		for i := range 1 + w.rng.IntN(60) {
			acl += fmt.Sprintf("someone%d\tlrs\t", i)
		}
	}
	want := client.Added
	if old != nil {
		want = client.Changed
	}
	return w.do(name, &held{server: server, acl: acl}, want, func() (client.Result, error) {
		return w.c.Assert(ctx, client.Assert{Mailbox: name, Server: server, Statement: directory.Statement{Partition: "default", ACL: &acl}})
	})
}

func (w *writer) do(name directory.MailboxName, becomes *held, want client.Effect, call func() (client.Result, error)) error {
	w.mu.Lock()
	old := w.truth[name]
	w.pending = &write{name, becomes}
	w.mu.Unlock()
	r, err := call()
	if err != nil {
		return fmt.Errorf("write to %s: %w", name, err)
	}
	if r.Effect != want {
		return fmt.Errorf("%s, which was %v, becomes %v: the answer is %v, want %v", name, old, becomes, r.Effect, want)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pending = nil
	w.acked++
	if becomes == nil {
		delete(w.truth, name)
		return nil
	}
	becomes.revision = r.Revision
	w.truth[name] = becomes
	return nil
}

// refusal asks for what must be refused and leaves nothing behind.
func (w *writer) refusal(ctx context.Context, name directory.MailboxName) error {
	server := directory.BackendName(fmt.Sprintf("be%d.power.test", (w.id+1)%3))
	_, err := w.c.Reserve(ctx, client.Reserve{Mailbox: name, Server: server})
	switch {
	case err == nil:
		return fmt.Errorf("%s is held, and %s may reserve it", name, server)
	case errors.Is(err, directory.ErrExists):
		w.mu.Lock()
		defer w.mu.Unlock()
		w.refused++
		return nil
	}
	return fmt.Errorf("reserve %s: %w", name, err)
}

// load is the writers of a world.
type load struct {
	gate    *gate
	writers []*writer
	stop    chan struct{}
	ended   sync.WaitGroup

	mu  sync.Mutex
	err error
}

const writers = 12

func newLoad(endpoints []string, seed uint64) (*load, error) {
	l := &load{gate: newGate()}
	for i := range writers {
		c, err := client.Dial(endpoints, client.WithDialer(l.gate.dial), client.WithTimeout(10*patience), client.WithAttemptTimeout(time.Second))
		if err != nil {
			return nil, errors.Join(err, l.close())
		}
		l.writers = append(l.writers, &writer{
			id: i, c: c, rng: rand.New(rand.NewPCG(seed, uint64(i+2))), truth: map[directory.MailboxName]*held{},
		})
	}
	return l, nil
}

// run starts the writers.
func (l *load) run(ctx context.Context) {
	l.stop = make(chan struct{})
	stop := l.stop
	for _, w := range l.writers {
		l.ended.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := w.step(ctx); err != nil {
					if ctx.Err() == nil {
						l.fail(err)
					}
					return
				}
			}
		})
	}
}

func (l *load) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil {
		l.err = err
	}
}

func (l *load) failed() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// rest ends the writers, each with its last answer.
func (l *load) rest() error {
	if l.stop == nil {
		return l.failed()
	}
	close(l.stop)
	l.stop = nil
	l.ended.Wait()
	return l.failed()
}

func (l *load) close() error {
	var errs []error
	for _, w := range l.writers {
		errs = append(errs, w.c.Close())
	}
	return errors.Join(errs...)
}

func (l *load) counts() (acked, refused int) {
	for _, w := range l.writers {
		w.mu.Lock()
		acked += w.acked
		refused += w.refused
		w.mu.Unlock()
	}
	return acked, refused
}

// trouble is the test's own. All else is a broken promise.
type trouble struct{ error }

func (h *held) String() string {
	if h == nil {
		return "nothing"
	}
	return fmt.Sprintf("%s %.40q at revision %d", h.server, h.acl, h.revision)
}

// judge compares what a node says with what its writers were told, and has it
// check itself. Writes without an answer may be done or not.
func (l *load) judge(ctx context.Context, c *client.Client) error {
	got := map[directory.MailboxName]*held{}
	for r, err := range c.FindAll(ctx, client.FindQuery{Prefix: "user.p"}, client.Linearizable(), client.Details()) {
		if err != nil {
			return fmt.Errorf("find: %w", err)
		}
		if r.Reservation != nil {
			return fmt.Errorf("%s is reserved by %s, which was refused", r.Mailbox, r.Reservation.Server)
		}
		if len(r.Facts) != 1 {
			return fmt.Errorf("%s has %d facts, want 1", r.Mailbox, len(r.Facts))
		}
		f := r.Facts[0]
		got[r.Mailbox] = &held{server: f.Server, acl: f.ACL, revision: f.Last}
	}
	for _, w := range l.writers {
		if err := w.judge(got); err != nil {
			return err
		}
	}
	for name, h := range got {
		return fmt.Errorf("%s is there, %v, and nobody wrote it", name, h)
	}
	var faults []string
	sum, err := c.Check(ctx, 10, func(e client.CheckEvent) error {
		if e.Kind != "" && !e.Advisory {
			faults = append(faults, fmt.Sprintf("%s %s: %s", e.Kind, e.Mailbox, e.Detail))
		}
		return nil
	})
	switch {
	case err != nil:
		return fmt.Errorf("check: %w", err)
	case sum.Faults != 0 || len(faults) > 0:
		return fmt.Errorf("check: %d faults: %v", sum.Faults, faults)
	}
	return nil
}

// judge takes the writer's mailboxes out of got.
func (w *writer) judge(got map[directory.MailboxName]*held) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range mailboxesEach {
		name := directory.MailboxName(fmt.Sprintf("user.p%d.f%d", w.id, i))
		h, want := got[name], w.truth[name]
		delete(got, name)
		if h.is(want) || w.pending != nil && w.pending.mailbox == name && h.is(w.pending.becomes) {
			continue
		}
		return fmt.Errorf("%s is %v; acknowledged was %v, under way %v", name, h, want, w.pending)
	}
	return nil
}

func (h *held) is(want *held) bool {
	if h == nil || want == nil {
		return h == want
	}
	return h.server == want.server && h.acl == want.acl && (want.revision == 0 || h.revision == want.revision)
}
