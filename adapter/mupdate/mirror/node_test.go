package mirror

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/rookery-mail/rookery/adapter/mupdate"
	"github.com/rookery-mail/rookery/adapter/mupdate/mupdateclient"
	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/server"
	"github.com/rookery-mail/rookery/server/servertest"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

const (
	be1  directory.BackendName = "be1.example.org"
	be2  directory.BackendName = "be2.example.org"
	be1r directory.BackendName = "be1r.example.org"

	secret = "secret"
)

// patience is how long a busy machine may take.
const patience = time.Minute

// newNode starts a directory of one node, on real files.
func newNode(t testing.TB) *client.Client {
	t.Helper()
	c, err := client.Dial([]string{"n1"}, client.WithConn(servertest.New(t).Conn(server.Caller{Role: server.RoleOperator, Name: "mirror"})))
	if err != nil {
		t.Fatalf("Dial: %v", err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// master is a directory that serves MUPDATE: as good a master as any. What it is asked
// passes a line that can be cut.
type master struct {
	*client.Client
	t    testing.TB
	s    *mupdate.Server
	addr string // of the server itself
	line *line
}

func newMaster(t testing.TB, change ...func(*mupdate.Config)) *master {
	t.Helper()
	m := &master{Client: newNode(t), t: t}
	users := filepath.Join(t.TempDir(), "users")
	var lines []string
	for _, l := range []mupdate.Login{{Name: "mirror"}, {Name: "be1", Server: be1}, {Name: "be2", Server: be2}} {
		l.Password = secret
		text, err := l.Line()
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, text)
	}
	if err := os.WriteFile(users, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	loaded, err := mupdate.LoadUsers(users)
	if err != nil {
		t.Fatal(err)
	}
	cfg := mupdate.Config{Client: m.Client, Users: loaded, Hostname: "master.example.org", Version: "test", Clear: true, LoginPause: 10 * time.Millisecond, SpoolDir: t.TempDir()}
	for _, f := range change {
		f(&cfg)
	}
	if m.s, err = mupdate.New(cfg); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m.addr = l.Addr().String()
	served := make(chan error, 1)
	go func() { served <- m.s.Serve(l) }()
	t.Cleanup(func() {
		m.s.Close()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	m.line = newLine(t, m.addr)
	return m
}

// as is a connection of a backend's to the master.
func (m *master) as(login string) *mupdateclient.Client {
	m.t.Helper()
	c, err := connectTo(context.Background(), m.addr, login)
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { c.Close() })
	return c
}

func connectTo(ctx context.Context, addr, login string) (*mupdateclient.Client, error) {
	c, err := mupdateclient.Dial(ctx, addr, mupdateclient.Options{Idle: 10 * time.Second})
	if err != nil {
		return nil, err
	}
	if err := c.Login(ctx, login, secret); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// heard makes a master know all about its backends, so that what it has not is not there.
func (m *master) heard(servers ...directory.BackendName) {
	m.t.Helper()
	for _, s := range servers {
		if _, err := m.SetBackend(m.t.Context(), s, client.BackendChange{Create: true}); err != nil {
			m.t.Fatal(err)
		}
		if _, err := m.ConfirmBackend(m.t.Context(), s, directory.ByOperator); err != nil {
			m.t.Fatal(err)
		}
	}
}

// line forwards connections to a server. It can be cut at once, after some octets, or
// moved to another server.
type line struct {
	l    net.Listener
	addr string
	cut  atomic.Int64 // octets that the server may still say on each connection; 0: any

	mu   sync.Mutex
	to   string
	open map[net.Conn]bool
	work sync.WaitGroup
}

func newLine(t testing.TB, to string) *line {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n := &line{l: l, addr: l.Addr().String(), to: to, open: map[net.Conn]bool{}}
	n.work.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			n.work.Go(func() { n.forward(c) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		n.cutNow()
		n.work.Wait()
	})
	return n
}

func (n *line) forward(c net.Conn) {
	defer c.Close()
	n.mu.Lock()
	to := n.to
	n.mu.Unlock()
	s, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer s.Close()
	n.mu.Lock()
	n.open[c], n.open[s] = true, true
	n.mu.Unlock()
	defer func() {
		n.mu.Lock()
		delete(n.open, c)
		delete(n.open, s)
		n.mu.Unlock()
	}()
	done := make(chan struct{}, 2)
	go func() { io.Copy(s, c); done <- struct{}{} }()
	go func() {
		from := io.Reader(s)
		if most := n.cut.Load(); most > 0 {
			from = io.LimitReader(s, most)
		}
		io.Copy(c, from)
		done <- struct{}{}
	}()
	<-done
	c.Close()
	s.Close()
	<-done
}

// cutNow ends all connections.
func (n *line) cutNow() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for c := range n.open {
		c.Close()
	}
}

// move leads all connections to another server from now on.
func (n *line) move(to string) {
	n.mu.Lock()
	n.to = to
	n.mu.Unlock()
	n.cutNow()
}

// running is a mirror at work.
type running struct {
	t    testing.TB
	stop context.CancelFunc
	done chan struct{}
	out  Outcome
	err  error

	mu     sync.Mutex
	events []Event
	seen   int // of events, by await
	wake   chan struct{}
}

// start begins a mirror of m in dir.
func start(t testing.TB, m *master, dir *client.Client, change ...func(*Config)) *running {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	r := &running{t: t, stop: stop, done: make(chan struct{}), wake: make(chan struct{}, 1)}
	cfg := Config{
		Directory: dir.NewSession(nil), Told: r.told, SpoolDir: t.TempDir(),
		Connect: func(ctx context.Context) (*mupdateclient.Client, error) { return connectTo(ctx, m.line.addr, "mirror") },
		Settle:  300 * time.Millisecond, Claim: 500 * time.Millisecond, Retry: 10 * time.Millisecond, Ping: time.Second,
	}
	for _, f := range change {
		f(&cfg)
	}
	go func() {
		defer close(r.done)
		r.out, r.err = Run(ctx, cfg)
	}()
	t.Cleanup(func() { r.end() })
	return r
}

func (r *running) told(e Event) {
	if os.Getenv("MIRROR_TEST_LOG") != "" {
		fmt.Fprintln(os.Stderr, eventText(e), e.Err, e.Text)
	}
	r.mu.Lock()
	r.events = append(r.events, e)
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// end ends the mirror in order.
func (r *running) end() (Outcome, error) {
	r.t.Helper()
	r.stop()
	select {
	case <-r.done:
	case <-time.After(patience):
		r.t.Fatal("the mirror does not end")
	}
	return r.out, r.err
}

// wait waits until the mirror has ended by itself.
func (r *running) wait() (Outcome, error) {
	r.t.Helper()
	select {
	case <-r.done:
	case <-time.After(patience):
		r.t.Fatalf("the mirror does not end; told:\n%s", r.log())
	}
	return r.out, r.err
}

// eventText is an event as tests write it: KIND NAME: TEXT.
func eventText(e Event) string {
	text := e.Kind.String()
	switch e.Kind {
	case Appeared, Mended:
		text += " " + string(e.Mailbox) + ": " + e.Difference.String()
		if e.Why != "" {
			text += "; " + e.Why
		}
	case Ended:
		text += " " + string(e.Mailbox)
	case Counted:
		text += fmt.Sprintf(" %d", e.Count)
	case Withheld:
		text += fmt.Sprintf(" %s %d of %d", e.Server, e.Count, e.Records)
	case Itself:
		text += " " + string(e.Server)
	case Wiped:
		text += fmt.Sprintf(" %s %d", e.Server, e.Count)
	}
	return text
}

// await waits for an event that was not awaited yet and begins with want, and for none
// before it that begins with one of never.
func (r *running) await(want string, never ...string) {
	r.t.Helper()
	late := time.After(patience)
	for {
		r.mu.Lock()
		for r.seen < len(r.events) {
			text := eventText(r.events[r.seen])
			r.seen++
			if strings.HasPrefix(text, want) {
				r.mu.Unlock()
				return
			}
			for _, n := range never {
				if strings.HasPrefix(text, n) {
					r.mu.Unlock()
					r.t.Fatalf("told %q before %q", text, want)
				}
			}
		}
		r.mu.Unlock()
		select {
		case <-r.wake:
		case <-r.done:
			if r.seen == len(r.events) {
				r.t.Fatalf("the mirror ended (%v) before %q; told:\n%s", r.err, want, r.log())
			}
		case <-late:
			r.t.Fatalf("never told %q; told:\n%s", want, r.log())
		}
	}
}

// awaitAll waits until all of it was told, in whatever order.
func (r *running) awaitAll(all ...string) {
	r.t.Helper()
	end := time.Now().Add(patience)
	for _, want := range all {
		for !strings.Contains(r.log(), want) {
			if time.Now().After(end) {
				r.t.Fatalf("never told %q; told:\n%s", want, r.log())
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
}

func (r *running) log() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var b strings.Builder
	for _, e := range r.events {
		fmt.Fprintln(&b, " ", eventText(e), e.Err)
	}
	return b.String()
}

// times is how often an event was told.
func (r *running) times(text string) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.events {
		if eventText(e) == text {
			n++
		}
	}
	return n
}

// seen is what frontends are told of all names.
func seen(t testing.TB, c *client.Client) map[directory.MailboxName]*Record {
	t.Helper()
	all := map[directory.MailboxName]*Record{}
	for r, err := range c.FindAll(t.Context(), client.FindQuery{PageSize: 1000}, client.Linearizable()) {
		if err != nil {
			t.Fatal(err)
		}
		if rec, there, _ := mupdate.Seen(&r); there {
			all[r.Mailbox] = &rec
		}
	}
	return all
}

// equal waits until both sides say the same.
func equal(t testing.TB, m *master, dir *client.Client) {
	t.Helper()
	end := time.Now().Add(patience)
	for {
		a, b := seen(t, m.Client), seen(t, dir)
		var diff []string
		for name, r := range a {
			if !same(r, b[name]) {
				diff = append(diff, fmt.Sprintf("%s: %s", name, differs(r, b[name])))
			}
		}
		for name, r := range b {
			if a[name] == nil {
				diff = append(diff, fmt.Sprintf("%s: %s", name, differs(nil, r)))
			}
		}
		if len(diff) == 0 {
			return
		}
		if time.Now().After(end) {
			slices.Sort(diff)
			t.Fatalf("they differ:\n%s", strings.Join(diff, "\n"))
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// stated is what a directory is told, for tests: one operation after the other.
func stated(t testing.TB, c *client.Client, ops ...client.Op) {
	t.Helper()
	for _, op := range ops {
		results, err := c.Batch(t.Context(), []client.Op{op})
		if err == nil {
			err = results[0].Err
		}
		if err != nil {
			t.Fatalf("%+v: %v", op, err)
		}
	}
}

// holds states that server holds a mailbox.
func holds(server directory.BackendName, name directory.MailboxName, acl ...string) client.Assert {
	text := "anyone\tlrs\t"
	if len(acl) > 0 {
		text = acl[0]
	}
	return client.Assert{Mailbox: name, Server: server, Statement: directory.Statement{Partition: "default", ACL: &text}}
}

func outcome(t testing.TB, c *client.Client, name directory.MailboxName) directory.Outcome {
	t.Helper()
	r, err := c.Lookup(t.Context(), name, client.Linearizable())
	if err != nil {
		t.Fatal(err)
	}
	return r.Outcome
}
