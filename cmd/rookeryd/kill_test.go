package main_test

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/internal/logbuf"
)

var (
	kills = flag.Int("kills", 20, "how often TestKill kills the node")
	seed  = flag.Uint64("seed", 0, "seed of TestKill; 0 draws one")
	built = flag.String("rookeryd", "", "the rookeryd to test; empty: it is built from this directory")
)

// node is a rookeryd of the built program with a real data directory.
type node struct {
	t                  *testing.T
	name               string
	program, data      string
	client, peer, http string
	more               []string // further flags
	log                logbuf.Buffer
	cmd                *exec.Cmd
	ended              chan struct{} // closed when the process has
	exit               error         // how; set before
}

// program builds rookeryd, unless a built one was given.
func program(t *testing.T) string {
	t.Helper()
	if *built != "" {
		return *built
	}
	file := filepath.Join(t.TempDir(), "rookeryd")
	if out, err := exec.Command("go", "build", "-o", file, ".").CombinedOutput(); err != nil {
		t.Fatalf("build rookeryd: %v\n%s", err, out)
	}
	return file
}

func newNode(t *testing.T) *node {
	n := &node{t: t, name: "n1", program: program(t), data: filepath.Join(t.TempDir(), "data"), client: freePort(t), peer: freePort(t), http: freePort(t)}
	t.Cleanup(n.kill)
	return n
}

// freePort finds an address that was free a moment ago.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func (n *node) start() {
	n.t.Helper()
	args := []string{"--name", n.name, "--data", n.data, "--listen-client", n.client, "--listen-peer", n.peer, "--listen-http", n.http}
	n.cmd = exec.Command(n.program, append(args, n.more...)...)
	n.cmd.Stderr = &n.log
	if err := n.cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	ended, cmd := make(chan struct{}), n.cmd
	n.ended = ended
	go func() {
		n.exit = cmd.Wait()
		close(ended)
	}()
}

// kill ends the process as a power switch would, but for the page cache.
func (n *node) kill() {
	if n.cmd == nil {
		return
	}
	_ = n.cmd.Process.Kill() // it may have ended
	<-n.ended
	n.cmd = nil
}

// ready waits until the node answers.
func (n *node) ready() time.Duration {
	n.t.Helper()
	begun := time.Now()
	for time.Since(begun) < 20*time.Second {
		if resp, err := http.Get("http://" + n.http + "/readyz"); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return time.Since(begun)
			}
		}
		select {
		case <-n.ended:
			n.t.Fatalf("rookeryd ended: %v\n%s", n.exit, n.log.String())
		case <-time.After(5 * time.Millisecond):
		}
	}
	n.t.Fatalf("rookeryd was not ready in 20 s\n%s", n.log.String())
	return 0
}

// writer owns some mailboxes and knows what the directory must say of them.
type writer struct {
	id    int
	c     *client.Client
	rng   *rand.Rand
	truth map[directory.MailboxName]string // the ACL last acknowledged; absent: retracted
	n     int
	acked int
	// answered, if not nil, is told when a write began that was answered.
	answered func(began time.Time)
}

// run writes until stop is closed. The client repeats what was cut off by a
// kill, with the same request number, so every write ends in an answer; and as
// no write leaves things as they were, an answer other than the expected one
// tells of a write that was lost, or done twice.
func (w *writer) run(ctx context.Context, stop <-chan struct{}) error {
	for {
		select {
		case <-stop:
			return nil
		default:
		}
		name := directory.MailboxName(fmt.Sprintf("user.k%d.f%d", w.id, w.rng.IntN(20)))
		began := time.Now()
		server := directory.BackendName(fmt.Sprintf("be%d.kill.test", w.id%3))
		old, held := w.truth[name]
		if held && w.rng.IntN(5) == 0 {
			r, err := w.c.Retract(ctx, client.Retract{Mailbox: name, Server: server})
			if err != nil {
				return fmt.Errorf("retract %s: %w", name, err)
			}
			if r.Effect != client.Removed {
				return fmt.Errorf("retract %s, held with %q: got %v, want %v", name, old, r.Effect, client.Removed)
			}
			delete(w.truth, name)
			w.done(began)
			continue
		}
		w.n++
		acl := fmt.Sprintf("k%d\tlrswipkxtecdan\tshared%d\tlrs\t", w.id, w.n)
		r, err := w.c.Assert(ctx, client.Assert{Mailbox: name, Server: server, Statement: directory.Statement{Partition: "default", ACL: &acl}})
		if err != nil {
			return fmt.Errorf("assert %s: %w", name, err)
		}
		want := client.Added
		if held {
			want = client.Changed
		}
		if r.Effect != want {
			return fmt.Errorf("assert %s %q over %q: got %v, want %v", name, acl, old, r.Effect, want)
		}
		w.truth[name] = acl
		w.done(began)
	}
}

func (w *writer) done(began time.Time) {
	w.acked++
	if w.answered != nil {
		w.answered(began)
	}
}

// TestKill kills the node under load, again and again, with kill -9, and looks
// after every restart whether each acknowledged write is there, once, and
// whether the indexes follow from the facts.
func TestKill(t *testing.T) {
	if *seed == 0 {
		*seed = rand.Uint64()
	}
	t.Logf("seed %d", *seed)
	rng := rand.New(rand.NewPCG(*seed, 1))
	n := newNode(t)
	n.start()
	n.ready()

	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	defer cancel()
	// Guard and change log are made small, so that they work during the test.
	admin, err := client.Dial([]string{n.client})
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	if _, err := admin.SetSettings(ctx, client.SettingsChange{GuardCount: new(uint32(1 << 30)), LogKeep: new(uint64(2000))}); err != nil {
		t.Fatal(err)
	}
	var writers []*writer
	for i := range 12 {
		c, err := client.Dial([]string{n.client}, client.WithTimeout(30*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		writers = append(writers, &writer{id: i, c: c, rng: rand.New(rand.NewPCG(*seed, uint64(i+2))), truth: map[directory.MailboxName]string{}})
	}

	var slowest time.Duration
	for k := range *kills {
		stop := make(chan struct{})
		errs := make(chan error, len(writers))
		var wg sync.WaitGroup
		for _, w := range writers {
			wg.Go(func() { errs <- w.run(ctx, stop) })
		}
		time.Sleep(time.Duration(20+rng.IntN(380)) * time.Millisecond)
		n.kill()
		n.start()
		if rng.IntN(4) == 0 { // once more, while it starts
			time.Sleep(time.Duration(rng.IntN(60)) * time.Millisecond)
			n.kill()
			n.start()
		}
		slowest = max(slowest, n.ready())
		time.Sleep(time.Duration(rng.IntN(30)) * time.Millisecond)
		close(stop)
		wg.Wait()
		for range writers {
			if err := <-errs; err != nil {
				t.Fatalf("kill %d: %v\n%s", k, err, n.log.String())
			}
		}
		verify(t, ctx, admin, writers, k)
	}
	total := 0
	for _, w := range writers {
		total += w.acked
	}
	t.Logf("%d kills, %d writes acknowledged, none lost, none done twice; slowest start to ready %v", *kills, total, slowest)
	if *kills < 1 || total < *kills*20 {
		t.Errorf("%d writes in %d kills: too few to prove anything", total, *kills)
	}
}

// verify compares the directory with what the writers were told, and has the
// node check itself.
func verify(t *testing.T, ctx context.Context, c *client.Client, writers []*writer, kill int) {
	t.Helper()
	got := map[directory.MailboxName]string{}
	for r, err := range c.FindAll(ctx, client.FindQuery{Prefix: "user.k"}, client.Linearizable()) {
		if err != nil {
			t.Fatal(err)
		}
		if len(r.Facts) != 1 {
			t.Fatalf("kill %d: %s has %d facts, want 1", kill, r.Mailbox, len(r.Facts))
		}
		got[r.Mailbox] = r.Facts[0].ACL
	}
	want := 0
	for _, w := range writers {
		for name, acl := range w.truth {
			want++
			if got[name] != acl {
				t.Errorf("kill %d: %s has ACL %q, acknowledged was %q", kill, name, got[name], acl)
			}
		}
	}
	if len(got) != want {
		t.Errorf("kill %d: %d mailboxes, %d were acknowledged", kill, len(got), want)
	}
	sum, err := c.Check(ctx, 10, func(e client.CheckEvent) error {
		if e.Kind != "" && !e.Advisory {
			t.Errorf("kill %d: check: %s %s: %s", kill, e.Kind, e.Mailbox, e.Detail)
		}
		return nil
	})
	if err != nil || sum.Faults != 0 {
		t.Errorf("kill %d: check: %d faults, %v", kill, sum.Faults, err)
	}
	if t.Failed() {
		t.FailNow()
	}
}

// TestTwoProcesses starts a second node on a directory in use.
func TestTwoProcesses(t *testing.T) {
	n := newNode(t)
	n.start()
	n.ready()
	out, err := exec.Command(n.program, "--name", "n1", "--data", n.data,
		"--listen-client", freePort(t), "--listen-peer", freePort(t), "--listen-http", freePort(t)).CombinedOutput()
	if err == nil || !bytes.Contains(out, []byte("in use")) {
		t.Errorf("the second process: %v\n%s\nwant a refusal that says the directory is in use", err, out)
	}
}

// TestTermination ends a node by SIGTERM: it says so and loses nothing.
func TestTermination(t *testing.T) {
	n := newNode(t)
	n.start()
	n.ready()
	c, err := client.Dial([]string{n.client})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Assert(t.Context(), client.Assert{Mailbox: "user.term", Server: "be1.term.test"}); err != nil {
		t.Fatal(err)
	}
	if err := n.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	select {
	case <-n.ended:
		if err := n.exit; err != nil || !strings.Contains(n.log.String(), "msg=closed") {
			t.Errorf("after SIGINT: %v\n%s", err, n.log.String())
		}
	case <-time.After(10 * time.Second):
		t.Fatal("still running 10 s after SIGINT")
	}
	n.cmd = nil
	n.start()
	n.ready()
	if r, err := c.Lookup(t.Context(), "user.term", client.Details()); err != nil || len(r.Facts) != 1 {
		t.Errorf("after the restart: %d facts, %v, want 1", len(r.Facts), err)
	}
}
