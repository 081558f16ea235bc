package mupdate

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/xdg-go/scram"

	"github.com/rookery-mail/rookery/adapter/mupdate/mupdateclient"
	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/internal/logbuf"
)

// dial logs in as name.
func (m *murder) dial(name string, opts mupdateclient.Options) *mupdateclient.Client {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err := mupdateclient.Dial(ctx, m.addr, opts)
	if err != nil {
		m.t.Fatalf("Dial: %v", err)
	}
	m.t.Cleanup(func() { c.Close() })
	if err := c.Login(ctx, name, password); err != nil {
		m.t.Fatalf("Login as %s: %v", name, err)
	}
	return c
}

// Both mechanisms, in the clear and over TLS; SCRAM proves both sides.
func TestLogin(t *testing.T) {
	m := newMurder(t, func(c *Config) { c.TLS = testTLS(t) })
	for _, mechanism := range []string{"PLAIN", "SCRAM-SHA-256", ""} {
		for _, secure := range []bool{false, true} {
			opts := mupdateclient.Options{Mechanism: mechanism, RequireTLS: secure}
			if secure {
				opts.TLS = &tls.Config{InsecureSkipVerify: true}
			}
			c := m.dial("be1", opts)
			if got := c.Greeting(); got.StartTLS == secure || len(got.Text) < 4 || got.Text[0] != "MUPDATE" {
				t.Errorf("%s, TLS %v: greeting %+v", mechanism, secure, got)
			}
			if err := c.Noop(t.Context()); err != nil {
				t.Errorf("%s, TLS %v: NOOP: %v", mechanism, secure, err)
			}
			if err := c.Logout(t.Context()); err != nil {
				t.Errorf("%s, TLS %v: LOGOUT: %v", mechanism, secure, err)
			}
		}
		for _, wrong := range [][2]string{{"be1", "wrong"}, {"nobody", password}, {"be1", ""}} {
			c, err := mupdateclient.Dial(t.Context(), m.addr, mupdateclient.Options{Mechanism: mechanism})
			if err != nil {
				t.Fatalf("Dial: %v", err)
			}
			var refused *mupdateclient.Refused
			if err := c.Login(t.Context(), wrong[0], wrong[1]); !errors.As(err, &refused) || refused.Word != "NO" {
				t.Errorf("%s, %q: got %v, want NO", mechanism, wrong, err)
			}
			c.Close()
		}
	}
}

// As Cyrus does, who logs in may say as whom besides: as themselves, and as nobody else.
func TestScramSaysAsWhom(t *testing.T) {
	m := newMurder(t)
	for as, want := range map[string]string{"": "OK", "be1": "OK", "be2": "NO"} {
		scramClient, err := scram.SHA256.NewClient("be1", password, as)
		if err != nil {
			t.Fatal(err)
		}
		talk := scramClient.NewConversation()
		nc, err := net.Dial("tcp", m.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		nc.SetDeadline(time.Now().Add(20 * time.Second))
		in := bufio.NewScanner(nc)
		for in.Scan() && !strings.HasPrefix(in.Text(), "* OK") {
		}
		challenge, command := "", "A01 AUTHENTICATE \"SCRAM-SHA-256\" \"%s\"\r\n"
		for !strings.HasPrefix(challenge, "A01 ") {
			text, err := base64.StdEncoding.DecodeString(challenge)
			if err != nil {
				t.Fatalf("as %q: got %q", as, challenge)
			}
			answer := ""
			if !talk.Done() {
				if answer, err = talk.Step(string(text)); err != nil {
					t.Fatalf("as %q: %v", as, err)
				}
			}
			fmt.Fprintf(nc, command, base64.StdEncoding.EncodeToString([]byte(answer)))
			if !in.Scan() {
				t.Fatalf("as %q: %v", as, in.Err())
			}
			challenge, command = in.Text(), "%s\r\n"
		}
		if !strings.HasPrefix(challenge, "A01 "+want) {
			t.Errorf("as %q: got %q, want %s", as, challenge, want)
		}
	}
}

// A reservation has one winner as long as a connection has it, whoever its server's other
// connections are and whatever node they are of; and is given back when none has.
func TestReservationsOutliveOtherConnections(t *testing.T) {
	grace := func(c *Config) { c.OrphanGrace = 300 * time.Millisecond }
	one := newMurder(t, grace)
	two := one.beside(grace)
	if err := one.do([]string{"complete"}); err != nil {
		t.Fatal(err)
	}
	const mine, others = "be1.example.org!default", "be2.example.org!default"
	reserve := func(c *mupdateclient.Client, at string) error { return c.Reserve(t.Context(), "user.new", at) }

	gone := one.dial("be1", mupdateclient.Options{})
	if err := reserve(gone, mine); err != nil {
		t.Fatal(err)
	}
	gone.Close()
	time.Sleep(50 * time.Millisecond) // what is renewed is not renewed just after what is given back
	kept := two.dial("be1", mupdateclient.Options{})
	if err := reserve(kept, mine); err != nil {
		t.Fatal(err)
	}
	other, second := one.dial("be1", mupdateclient.Options{}), one.dial("be2", mupdateclient.Options{})
	for begun := time.Now(); time.Since(begun) < 5*300*time.Millisecond; time.Sleep(20 * time.Millisecond) {
		// be1 is heard.
		if err := other.Activate(t.Context(), "user.a", mine, ""); err != nil {
			t.Fatal(err)
		}
		if err := reserve(second, others); err == nil {
			t.Fatalf("after %v it is be2's too", time.Since(begun))
		}
	}
	kept.Close()
	for end := time.Now().Add(20 * time.Second); reserve(second, others) != nil; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it is never given back")
		}
	}
}

// A server that is closed gives no reservation back: its backend may go on over another
// one. Once it was heard there and did not, the name is free.
func TestCloseKeepsReservations(t *testing.T) {
	const grace = 500 * time.Millisecond
	one := newMurder(t, func(c *Config) { c.OrphanGrace = grace })
	two := one.beside()
	if err := one.do([]string{"complete"}); err != nil {
		t.Fatal(err)
	}
	const mine, others = "be1.example.org!default", "be2.example.org!default"
	c := one.dial("be1", mupdateclient.Options{})
	if err := c.Reserve(t.Context(), "user.left", mine); err != nil {
		t.Fatal(err)
	}
	one.s.Close()
	other := two.dial("be2", mupdateclient.Options{})
	for range 2 {
		if err := other.Reserve(t.Context(), "user.left", others); err == nil {
			t.Fatal("it is another's")
		}
		time.Sleep(2 * grace)
	}
	if err := two.dial("be1", mupdateclient.Options{}).Activate(t.Context(), "user.a", mine, ""); err != nil {
		t.Fatal(err)
	}
	heard := time.Now()
	for other.Reserve(t.Context(), "user.left", others) != nil {
		if time.Since(heard) > 20*time.Second {
			t.Fatal("it is never given back")
		}
		time.Sleep(20 * time.Millisecond)
	}
	if took := time.Since(heard); took < grace/2 {
		t.Errorf("given back %v after its backend was heard, want %v", took, grace)
	}
}

// Frontends are not told of a reservation each time it is renewed.
func TestRenewalsAreNoNews(t *testing.T) {
	m := newMurder(t, func(c *Config) { c.OrphanGrace = 150 * time.Millisecond })
	if err := m.do([]string{"complete"}); err != nil {
		t.Fatal(err)
	}
	f := m.follow("frontend")
	c := m.dial("be1", mupdateclient.Options{})
	if err := c.Reserve(t.Context(), "user.new", "be1.example.org!default"); err != nil {
		t.Fatal(err)
	}
	for len(f.noop(t)) == 0 {
	}
	lines := func() float64 {
		var v dto.Metric
		if err := m.s.m.lines.Write(&v); err != nil {
			t.Fatal(err)
		}
		return v.GetCounter().GetValue()
	}
	before := lines()
	at := m.revision()
	time.Sleep(time.Second)
	f.noop(t)
	if m.revision() < at+10 {
		t.Errorf("it was not renewed: revision %d, then %d", at, m.revision())
	}
	if after := lines(); after != before {
		t.Errorf("%v lines more while nothing changed", after-before)
	}
	f.c.Close()
	<-f.done
}

func (m *murder) revision() directory.Revision {
	m.t.Helper()
	route, err := m.dir.Lookup(m.t.Context(), "noop", client.Linearizable())
	if err != nil {
		m.t.Fatal(err)
	}
	return route.Revision
}

// One connection does not reserve without end.
func TestReservationsAreLimited(t *testing.T) {
	m := newMurder(t, func(c *Config) { c.OrphanGrace = time.Minute })
	if err := m.do([]string{"complete"}); err != nil {
		t.Fatal(err)
	}
	c := m.dial("be1", mupdateclient.Options{})
	for i := range maxClaims {
		if err := c.Reserve(t.Context(), fmt.Sprintf("user.a.%d", i), "be1.example.org!p"); err != nil {
			t.Fatal(err)
		}
	}
	var refused *mupdateclient.Refused
	if err := c.Reserve(t.Context(), "user.b", "be1.example.org!p"); !errors.As(err, &refused) || refused.Word != "NO" {
		t.Errorf("one more: got %v, want NO", err)
	}
	if err := c.Reserve(t.Context(), "user.a.0", "be1.example.org!p"); err != nil {
		t.Errorf("again: %v", err)
	}
	if err := c.Activate(t.Context(), "user.a.0", "be1.example.org!p", ""); err != nil {
		t.Fatal(err)
	}
	if err := c.Reserve(t.Context(), "user.b", "be1.example.org!p"); err != nil {
		t.Errorf("after one was activated: %v", err)
	}
}

// A backend that took back most of what it had said is a warning, with the numbers.
func TestResyncIsLogged(t *testing.T) {
	var log bytes.Buffer
	m := newMurder(t, func(c *Config) {
		c.Log = slog.New(slog.NewTextHandler(&log, nil))
	})
	var wants []string
	for _, resync := range []struct {
		activate, remove []string
		want             string
	}{
		{[]string{"user.a", "user.b", "user.c"}, nil, "level=INFO msg=\"resync finished\" proto=mupdate conn=ADDR login=be1 backend=be1.example.org listed=0 activated=3 deleted=0"},
		{[]string{"user.d"}, []string{"user.a", "user.b"}, "level=WARN msg=\"resync finished\" proto=mupdate conn=ADDR login=be1 backend=be1.example.org listed=3 activated=1 deleted=2"},
	} {
		wants = append(wants, resync.want)
		c := m.dial("be1", mupdateclient.Options{})
		for _, err := range c.List(t.Context(), "be1.example.org!") {
			if err != nil {
				t.Fatal(err)
			}
		}
		for _, name := range resync.remove {
			if err := c.Delete(t.Context(), name); err != nil {
				t.Fatal(err)
			}
		}
		for _, name := range resync.activate {
			if err := c.Activate(t.Context(), name, "be1.example.org!p", "anyone\tlrs\t"); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.Logout(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	m.s.Close() // nobody writes to the log any more
	text := regexp.MustCompile(`conn=\S+`).ReplaceAllString(log.String(), "conn=ADDR")
	for _, want := range wants {
		if !strings.Contains(text, want) {
			t.Errorf("the log has no %q:\n%s", want, text)
		}
	}
}

// The log names the login that was refused, of a stranger's text not more than a part.
func TestRefusedLoginIsNamed(t *testing.T) {
	var log logbuf.Buffer
	m := newMurder(t, func(c *Config) { c.Log = slog.New(slog.NewTextHandler(&log, nil)) })
	for _, mechanism := range []string{"PLAIN", "SCRAM-SHA-256"} {
		for name, want := range map[string]string{"be9": "login=be9 ", `a "b`: `login="a \"b" `, strings.Repeat("x", 200): "login=" + strings.Repeat("x", maxLogged) + " "} {
			c, err := mupdateclient.Dial(t.Context(), m.addr, mupdateclient.Options{Mechanism: mechanism})
			if err != nil {
				t.Fatalf("Dial: %v", err)
			}
			log.Take()
			if err := c.Login(t.Context(), name, "wrong"); err == nil {
				t.Errorf("%s, %q: logged in", mechanism, name)
			}
			c.Close()
			if got := log.Take(); !strings.Contains(got, `msg="login refused"`) || !strings.Contains(got, want) {
				t.Errorf("%s, %q: the log says %q, want %q", mechanism, name, got, want)
			}
		}
	}
}

// Wrong passwords wait for their answer, and after some from one address they are not
// looked at any more, while who has logged in before still can.
func TestWrongPasswordsAreLimited(t *testing.T) {
	m := newMurder(t)
	m.dial("be1", mupdateclient.Options{Mechanism: "PLAIN"})
	m.dial("be3", mupdateclient.Options{Mechanism: "SCRAM-SHA-256"})
	limited := false
	for range refusalLimit + 2 {
		c, err := mupdateclient.Dial(t.Context(), m.addr, mupdateclient.Options{Mechanism: "PLAIN"})
		if err != nil {
			t.Fatalf("Dial: %v", err)
		}
		begun := time.Now()
		err = c.Login(t.Context(), "be2", "wrong")
		if took := time.Since(begun); took < m.s.cfg.LoginPause {
			t.Errorf("refused after %v, want %v at least", took, m.s.cfg.LoginPause)
		}
		limited = err != nil && strings.Contains(err.Error(), errLimited.Error())
		c.Close()
	}
	if !limited {
		t.Error("wrong passwords are looked at without end")
	}
	m.dial("be1", mupdateclient.Options{Mechanism: "PLAIN"})
	m.dial("be3", mupdateclient.Options{Mechanism: "SCRAM-SHA-256"})
	// Another login's line is changed: what was known of these stays.
	users := m.s.cfg.Users
	text, err := os.ReadFile(users.path)
	if err == nil {
		err = os.WriteFile(users.path, append(text, "# more\n"...), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	users.mu.Lock()
	err = users.load()
	users.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	m.dial("be1", mupdateclient.Options{Mechanism: "PLAIN"})
	m.dial("be3", mupdateclient.Options{Mechanism: "SCRAM-SHA-256"})
	// By SCRAM it shows only at the end whether a password is right: a few are looked at.
	for i := range refusalLogin + 2 {
		c, err := mupdateclient.Dial(t.Context(), m.addr, mupdateclient.Options{Mechanism: "SCRAM-SHA-256"})
		if err != nil {
			t.Fatalf("Dial: %v", err)
		}
		err = c.Login(t.Context(), "be3", "wrong")
		if got := strings.Contains(err.Error(), errLimited.Error()); got != (i >= refusalLogin) {
			t.Errorf("wrong by SCRAM, the %d.: %v", i+1, err)
		}
		c.Close()
	}
}

// When there are as many connections as may be, the next is told and closed, and there
// is room again when one ends.
func TestBYEWhenFull(t *testing.T) {
	m := newMurder(t, func(c *Config) { c.MaxConnections = 2 })
	first := m.dial("be1", mupdateclient.Options{})
	m.dial("be2", mupdateclient.Options{})
	nc, err := net.Dial("tcp", m.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	nc.SetDeadline(time.Now().Add(10 * time.Second))
	line, err := bufio.NewReader(nc).ReadString('\n')
	if line != "* BYE \"Server Unable\"\r\n" {
		t.Errorf("got %q, %v", line, err)
	}
	if err := first.Logout(t.Context()); err != nil {
		t.Fatalf("LOGOUT: %v", err)
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		c, err := mupdateclient.Dial(t.Context(), m.addr, mupdateclient.Options{})
		if err == nil {
			c.Close()
			return
		}
		if time.Now().After(end) {
			t.Fatalf("there is no room again: %v", err)
		}
	}
}

// Connections that do not log in keep nobody out: the oldest of them makes room.
func TestStrangersMakeRoom(t *testing.T) {
	m := newMurder(t, func(c *Config) { c.MaxConnections = 3 })
	first := m.dial("be1", mupdateclient.Options{})
	var strangers []net.Conn
	for range 2 {
		nc, err := net.Dial("tcp", m.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		nc.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := bufio.NewReader(nc).ReadString('\n'); err != nil {
			t.Fatalf("the greeting: %v", err)
		}
		strangers = append(strangers, nc)
	}
	second := m.dial("be2", mupdateclient.Options{})
	if _, err := io.Copy(io.Discard, strangers[0]); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the oldest stranger is still there")
	}
	m.dial("be3", mupdateclient.Options{})
	for _, c := range []*mupdateclient.Client{first, second} {
		if err := c.Noop(t.Context()); err != nil {
			t.Errorf("who has logged in was disturbed: %v", err)
		}
	}
}

// follower keeps what an UPDATE tells.
type follower struct {
	mu     sync.Mutex
	names  map[string]mupdateclient.Record
	listed bool
	noops  chan struct{}
	done   chan error
	c      *mupdateclient.Client
}

func (m *murder) follow(login string) *follower {
	m.t.Helper()
	f := &follower{names: map[string]mupdateclient.Record{}, noops: make(chan struct{}, 1), done: make(chan error, 1), c: m.dial(login, mupdateclient.Options{})}
	listed := make(chan struct{})
	last := ""
	go func() {
		f.done <- f.c.Update(context.Background(), func(r mupdateclient.Record) error {
			f.mu.Lock()
			defer f.mu.Unlock()
			if !f.listed {
				if r.Kind == mupdateclient.Deleted {
					return fmt.Errorf("DELETE %s before OK", r.Name)
				}
				if last != "" && directory.CompareNames(directory.MailboxName(last), directory.MailboxName(r.Name)) >= 0 {
					return fmt.Errorf("%s after %s", r.Name, last)
				}
				last = r.Name
			}
			f.names[r.Name] = r
			if r.Kind == mupdateclient.Deleted {
				delete(f.names, r.Name)
			}
			return nil
		}, func() error {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.listed = true
			close(listed)
			return nil
		}, 0, func() error { f.noops <- struct{}{}; return nil })
	}()
	select {
	case <-listed:
	case err := <-f.done:
		m.t.Fatalf("UPDATE: %v", err)
	case <-time.After(30 * time.Second):
		m.t.Fatal("UPDATE is not answered")
	}
	return f
}

// noop waits until all is told that was committed before.
func (f *follower) noop(t testing.TB) map[string]mupdateclient.Record {
	t.Helper()
	if err := f.c.Ping(); err != nil {
		t.Fatalf("NOOP: %v", err)
	}
	select {
	case <-f.noops:
	case err := <-f.done:
		t.Fatalf("the stream ended: %v", err)
	case <-time.After(30 * time.Second):
		t.Fatal("NOOP is not answered")
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.names)
}

// listing is what LIST says.
func (m *murder) listing(login string) map[string]mupdateclient.Record {
	m.t.Helper()
	c := m.dial(login, mupdateclient.Options{})
	all := map[string]mupdateclient.Record{}
	for r, err := range c.List(m.t.Context(), "") {
		if err != nil {
			m.t.Fatalf("LIST: %v", err)
		}
		all[r.Name] = r
	}
	c.Logout(m.t.Context())
	return all
}

// While backends create, rename, move, delete, and primaries switch, streams that begin
// at any time tell the directory as it is: no gap, nothing told twice in a listing, no
// DELETE before OK.
func TestUpdateDuringWrites(t *testing.T) {
	m := newMurder(t)
	if err := m.do([]string{"complete"}); err != nil {
		t.Fatal(err)
	}
	if err := m.do([]string{"group", "g", string(be1), string(be2)}); err != nil {
		t.Fatal(err)
	}
	var ops []client.Op
	for i := range 3000 {
		ops = append(ops, client.Assert{Mailbox: directory.MailboxName(fmt.Sprintf("user.u%d", i)), Server: []directory.BackendName{be1, be3}[i%2], Statement: directory.Statement{Partition: "default", ACL: new("anyone\tlr\t")}})
	}
	if _, err := m.dir.Batch(t.Context(), ops); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var writers sync.WaitGroup
	for w := range 3 {
		writers.Go(func() {
			r := rand.New(rand.NewPCG(1, uint64(w)))
			servers := []directory.BackendName{be1, be2, be3}
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				server := servers[r.IntN(3)]
				name := fmt.Sprintf("user.u%d", r.IntN(3000))
				if r.IntN(3) == 0 {
					name += []string{".x", "-y", "^z"}[r.IntN(3)]
				}
				at := string(server) + "!default"
				c := m.dial(map[directory.BackendName]string{be1: "be1", be2: "be2", be3: "be3"}[server], mupdateclient.Options{Mechanism: "PLAIN"})
				ctx := context.Background()
				switch r.IntN(6) {
				case 0:
					c.Reserve(ctx, name, at)
					c.Activate(ctx, name, at, "anyone\tlrs\t")
				case 1:
					c.Delete(ctx, name)
				case 2:
					c.Delete(ctx, name)
					if c.Reserve(ctx, name+"r", string(server)+"!") == nil {
						c.Activate(ctx, name+"r", string(server)+"!", "anyone\tl\t")
					}
				case 3:
					c.Deactivate(ctx, name, at)
				case 4:
					if n%20 == 0 {
						m.do([]string{"primary", "g", string(servers[r.IntN(2)])})
					}
				case 5:
					c.Reserve(ctx, name+"q", at)
				}
				c.Logout(ctx)
			}
		})
	}
	var followers []*follower
	for range 6 {
		followers = append(followers, m.follow("frontend"))
		time.Sleep(150 * time.Millisecond)
	}
	close(stop)
	writers.Wait()
	time.Sleep(2 * m.s.cfg.OrphanGrace) // reservations are given back
	want := m.listing("frontend")
	for i, f := range followers {
		got := f.noop(t)
		for _, name := range slices.Sorted(maps.Keys(want)) {
			if got[name] != want[name] {
				t.Errorf("stream %d: %s is %+v, LIST says %+v", i, name, got[name], want[name])
			}
		}
		for name, r := range got {
			if _, ok := want[name]; !ok {
				t.Errorf("stream %d: has %+v, which LIST has not", i, r)
			}
		}
		f.c.Close()
		<-f.done
	}
}

// A switchover of more names than a stream tells one by one ends it; a barrier is not
// said to be one meanwhile.
func TestLargeSwitchoverEndsStreams(t *testing.T) {
	m := newMurder(t)
	if err := m.do([]string{"complete"}); err != nil {
		t.Fatal(err)
	}
	m.do([]string{"group", "g", string(be1), string(be2)})
	for _, server := range []directory.BackendName{be1, be2} {
		var ops []client.Op
		for i := range maxRefresh + 10 {
			ops = append(ops, client.Assert{Mailbox: directory.MailboxName(fmt.Sprintf("user.u%d", i)), Server: server})
		}
		if _, err := m.dir.Batch(t.Context(), ops); err != nil {
			t.Fatal(err)
		}
	}
	f := m.follow("frontend")
	if err := m.do([]string{"primary", "g", string(be2)}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-f.done:
	case <-time.After(stagger + 20*time.Second):
		t.Fatal("the stream goes on")
	}
	for name, r := range m.listing("frontend") {
		if !strings.HasPrefix(r.Location, string(be2)) {
			t.Fatalf("%s is at %s", name, r.Location)
		}
	}
}

// A frontend that stops reading in the middle of a stream costs bounded room, and
// disturbs nobody.
func TestSlowReader(t *testing.T) {
	m := newMurder(t)
	if err := m.do([]string{"complete"}); err != nil {
		t.Fatal(err)
	}
	acl := "anyone\t" + "lrs" + "\t"
	var ops []client.Op
	for i := range 5000 {
		ops = append(ops, client.Assert{Mailbox: directory.MailboxName(fmt.Sprintf("user.u%d", i)), Server: be1, Statement: directory.Statement{ACL: &acl}})
	}
	if _, err := m.dir.Batch(t.Context(), ops); err != nil {
		t.Fatal(err)
	}
	nc, err := net.Dial("tcp", m.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	nc.(*net.TCPConn).SetReadBuffer(4096)
	fmt.Fprintf(nc, "A01 AUTHENTICATE \"PLAIN\" \"%s\"\r\n", plainOf("", "frontend", password))
	fmt.Fprintf(nc, "U01 UPDATE\r\n") // and never reads
	fast := m.follow("frontend")
	for round := range 20 {
		acl := fmt.Sprintf("anyone\tlrs\tuser%d\tl\t", round)
		for i := range ops {
			a := ops[i].(client.Assert)
			a.Statement.ACL = &acl
			ops[i] = a
		}
		if _, err := m.dir.Batch(t.Context(), ops); err != nil {
			t.Fatalf("a write: %v", err)
		}
	}
	got := fast.noop(t)
	if r := got["user.u4999"]; !strings.Contains(r.ACL, "user19") {
		t.Errorf("who reads is told %+v", r)
	}
	fast.c.Close()
	<-fast.done
}

// There are only so many lists at once: each may have to wait for its reader, in a file.
func TestListsAreLimited(t *testing.T) {
	m := newMurder(t, func(c *Config) { c.MaxStreams = 1 })
	if err := m.do([]string{"complete"}); err != nil {
		t.Fatal(err)
	}
	c := m.dial("be1", mupdateclient.Options{})
	list := func() (err error) {
		for _, err = range c.List(t.Context(), "be1.example.org!") {
			if err != nil {
				break
			}
		}
		return err
	}
	for range 2 {
		if err := list(); err != nil {
			t.Fatal(err)
		}
	}
	for !m.s.lists.take() { // another one's, whose reader is slow
		time.Sleep(time.Millisecond) // until the last is over
	}
	var refused *mupdateclient.Refused
	if err := list(); !errors.As(err, &refused) || refused.Word != "NO" {
		t.Errorf("one more: got %v, want NO", err)
	}
	m.s.lists.put()
	if err := list(); err != nil {
		t.Errorf("after that: %v", err)
	}
}

// Of 400 connections at once each is served.
func TestManyConnections(t *testing.T) {
	m := newMurder(t)
	if err := m.do([]string{"complete"}); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for i := range 400 {
		all.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			c, err := mupdateclient.Dial(ctx, m.addr, mupdateclient.Options{Mechanism: "PLAIN"})
			if err != nil {
				t.Errorf("Dial: %v", err)
				return
			}
			defer c.Close()
			if err := c.Login(ctx, "be1", password); err != nil {
				t.Errorf("Login: %v", err)
				return
			}
			name := fmt.Sprintf("user.u%d", i)
			if err := errors.Join(c.Reserve(ctx, name, string(be1)+"!d"), c.Activate(ctx, name, string(be1)+"!d", ""), c.Logout(ctx)); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
	all.Wait()
	if got := len(m.listing("frontend")); got != 400 {
		t.Errorf("%d mailboxes, want 400", got)
	}
}

// A users file is read again when it changes, and one that makes no sense is not taken.
func TestUsersFile(t *testing.T) {
	line := func(l Login) string {
		text, err := l.Line()
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	good := line(Login{Name: "be1", Password: "one", Server: be1})
	for _, bad := range []string{
		"", "# nothing\n", "be1\n", "be1 secret\n", good + "\n" + good + "\n", good + " server=be2\n", good + " colour=red\n",
		strings.Replace(good, "$4096:", "$0:", 1), strings.Replace(good, "SCRAM-SHA-256", "SCRAM-SHA-1", 1),
		good + "\n@10.0.0.1\n", good + "\n@host server=be1\n", good + "\n@10.0.0.1 server=be1 order=key\n",
	} {
		if _, _, err := parseUsers(strings.NewReader(bad)); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
	path := filepath.Join(t.TempDir(), "users")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(good + "\n")
	u, err := LoadUsers(path)
	if err != nil {
		t.Fatalf("LoadUsers: %v", err)
	}
	if got := u.user("be1"); got == nil || !got.check("one") || got.check("two") || got.Server != be1 {
		t.Errorf("the login is %+v", got)
	}
	replaced, err := ReplaceLogin([]byte("# kept\n"+good), "be1", line(Login{Name: "be1", Password: "two"}))
	if err != nil {
		t.Fatalf("ReplaceLogin: %v", err)
	}
	write(string(replaced))
	for end := time.Now().Add(10 * time.Second); !u.user("be1").check("two"); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the new password is not known")
		}
	}
	write("broken\n")
	for end := time.Now().Add(10 * time.Second); u.Broken() == nil; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("nobody says that the file is broken")
		}
	}
	if !u.user("be1").check("two") {
		t.Error("a broken file took the logins away")
	}
}

// What is wrong with a users file is said so that it can be put right.
func TestUsersFileSaysWhy(t *testing.T) {
	login := Login{Name: "be1", Password: "one", Server: be1}
	good, err := login.Line()
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []struct{ text, want string }{
		{"\ufeff" + good + "\n", "line 1: it begins with a byte order mark"},
		{"\ufeff# a comment\n" + good + "\n", "line 1: it begins with a byte order mark"},
		{good + "\n# " + strings.Repeat("x", maxUserLine) + "\n", "line 2: longer than 65536 octets"},
	} {
		if _, _, err := parseUsers(strings.NewReader(bad.text)); err == nil || !strings.HasPrefix(err.Error(), bad.want) {
			t.Errorf("%.40q: got %v, want %q", bad.text, err, bad.want)
		}
	}
}

// A literal that never comes, and an exchange that does not go on, end the connection,
// with words.
func TestLinesEnd(t *testing.T) {
	m := newMurder(t, func(c *Config) { c.LineTime = 100 * time.Millisecond })
	for _, text := range []string{"X0 FIND {10}\r\n", "X0 FIND {10+}\r\nuser", "X0 FI", "A01 AUTHENTICATE \"PLAIN\"\r\n"} {
		nc, err := net.Dial("tcp", m.addr)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprint(nc, text)
		nc.SetDeadline(time.Now().Add(20 * time.Second))
		b, err := io.ReadAll(nc)
		if err != nil || !strings.HasSuffix(string(b), "* BYE \"nothing was heard for too long\"\r\n") {
			t.Errorf("%q: got %q, %v", text, b, err)
		}
		nc.Close()
	}
}

// BenchmarkUpdate is the listing of an UPDATE, read to its OK.
func BenchmarkUpdate(b *testing.B) {
	m := newMurder(b)
	const facts = 100_000
	acl := "anyone\tlrs\t"
	for at := 0; at < facts; at += 10_000 {
		var ops []client.Op
		for i := range 10_000 {
			ops = append(ops, client.Assert{Mailbox: directory.MailboxName(fmt.Sprintf("user.u%06d", at+i)), Server: be1, Statement: directory.Statement{Partition: "default", ACL: &acl}})
		}
		if _, err := m.dir.Batch(b.Context(), ops); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		f := m.follow("frontend")
		f.c.Close()
		<-f.done
	}
	b.ReportMetric(float64(facts)*float64(b.N)/b.Elapsed().Seconds(), "records/s")
}

// BenchmarkFind is FIND on one connection.
func BenchmarkFind(b *testing.B) {
	m := newMurder(b)
	if err := m.do([]string{"assert", string(be1), "user.a"}); err != nil {
		b.Fatal(err)
	}
	c := m.dial("frontend", mupdateclient.Options{})
	for b.Loop() {
		if _, found, err := c.Find(b.Context(), "user.a"); !found || err != nil {
			b.Fatal(found, err)
		}
	}
}

// Whoever runs a node is told of secrets that everybody on the machine can read.
func TestOpenFiles(t *testing.T) {
	dir := t.TempDir()
	users, cert, key := testUsers(t).path, filepath.Join(dir, "crt"), filepath.Join(dir, "key")
	writePair(t, cert, key)
	s := Settings{Users: users, Cert: cert, Key: key, Spool: dir}
	for mode, open := range map[os.FileMode]bool{0o600: false, 0o640: false, 0o644: true, 0o602: true} {
		for _, file := range []string{users, key} {
			if err := os.Chmod(file, mode); err != nil {
				t.Fatal(err)
			}
		}
		var log bytes.Buffer
		if err := s.Fill(&Config{Log: slog.New(slog.NewTextHandler(&log, nil))}); err != nil {
			t.Fatalf("Fill: %v", err)
		}
		for _, file := range []string{users, key} {
			if got := strings.Contains(log.String(), fmt.Sprintf("file=%s mode=%04o\n", file, mode)); got != open {
				t.Errorf("%s of mode %04o: told %v, want %v; the log says %q", file, mode, got, open, log.String())
			}
		}
	}
}

// Whoever runs a node is told of a users file, or a certificate, that changed and cannot
// be used, and of its end.
func TestBrokenFiles(t *testing.T) {
	registry := prometheus.NewRegistry()
	var path string
	cert, key := filepath.Join(t.TempDir(), "crt"), filepath.Join(t.TempDir(), "key")
	writePair(t, cert, key)
	c := &certificate{cert: cert, key: key}
	if _, err := c.get(nil); err != nil {
		t.Fatal(err)
	}
	newMurder(t, func(cfg *Config) { path, cfg.Metrics, cfg.Broken = cfg.Users.path, registry, c.why })
	await := func(what string, want float64) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			families, err := registry.Gather()
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range families {
				if f.GetName() == "rookery_mupdate_broken_files" && f.GetMetric()[0].GetGauge().GetValue() == want {
					return
				}
			}
			if time.Now().After(end) {
				t.Fatalf("%s: the metric never was %v", what, want)
			}
		}
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	write := func(file, text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(path, "broken\n")
	await("a broken users file", 1)
	write(cert, "broken\n")
	await("a broken certificate besides", 2)
	write(path, string(good))
	await("the users file is whole again", 1)
	writePair(t, cert, key)
	await("and the certificate", 0)
	writePair(t, cert, key, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
	await("it has expired", 1)
	writePair(t, cert, key)
	await("it was renewed", 0)
	// Moved away and back, it has the time and size that are known.
	if err := os.Rename(path, path+".away"); err != nil {
		t.Fatal(err)
	}
	await("no users file", 1)
	if err := os.Rename(path+".away", path); err != nil {
		t.Fatal(err)
	}
	await("it is back", 0)
}

// A certificate that clients refuse is shown, and said to be of no use.
func TestUnfitCertificate(t *testing.T) {
	now := time.Now()
	for what, test := range map[string]struct {
		change func(*x509.Certificate)
		want   string // empty: nothing is wrong
	}{
		"for everything":    {func(*x509.Certificate) {}, ""},
		"for servers":       {func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }, ""},
		"for all usages":    {func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} }, ""},
		"for clients alone": {func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }, "not made for servers"},
		"it has ended":      {func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Minute) }, "has expired at"},
		"not valid yet":     {func(c *x509.Certificate) { c.NotBefore = now.Add(time.Minute) }, "is not valid before"},
	} {
		t.Run(what, func(t *testing.T) {
			cert, key := filepath.Join(t.TempDir(), "crt"), filepath.Join(t.TempDir(), "key")
			writePair(t, cert, key, test.change)
			c := &certificate{cert: cert, key: key}
			if _, err := c.get(nil); err != nil {
				t.Fatalf("it is not taken: %v", err)
			}
			if err := c.why(); (test.want == "") != (err == nil) || err != nil && (!errors.Is(err, errUnfit) || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

// What is wrong with a file is told once a day, and its end once.
func TestFileWords(t *testing.T) {
	var out bytes.Buffer
	said, log, begin := fileWords{}, slog.New(slog.NewTextHandler(&out, nil)), time.Now()
	unfit, unread := fmt.Errorf("%w: x", errUnfit), errors.New("y")
	for _, step := range []struct {
		at   time.Duration
		err  error
		want string // empty: nothing is told
	}{
		{0, nil, ""},
		{1, unfit, `level=WARN msg="the certificate is of no use as it is" kind=certificate`},
		{2, unfit, ""},
		{sayAgain, unfit, ""},
		{sayAgain + 1, unfit, `level=WARN msg="the certificate is of no use as it is"`},
		{sayAgain + 2, unread, `level=ERROR msg="a file that changed cannot be used; what it held before goes on"`},
		{sayAgain + 3, unread, ""},
		{sayAgain + 4, nil, `level=INFO msg="the file can be used again"`},
		{3 * sayAgain, nil, ""},
	} {
		out.Reset()
		said.tell(log, "certificate", step.err, begin.Add(step.at))
		if got := out.String(); (got == "") != (step.want == "") || !strings.Contains(got, step.want) {
			t.Errorf("after %v, %v: got %q, want %q", step.at, step.err, got, step.want)
		}
	}
}

// writePair writes a certificate and its key, as a renewal does.
func writePair(t *testing.T, cert, key string, change ...func(*x509.Certificate)) {
	t.Helper()
	pair := testTLS(t, change...).Certificates[0]
	secret, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: pair.Certificate[0]}, key: {Type: "PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// Of IPv6 a network is counted, of IPv4 an address.
func TestRefusalsByNetwork(t *testing.T) {
	var r refusals
	now := time.Unix(1000, 0)
	for i := range refusalLimit {
		r.add(netip.MustParseAddr(fmt.Sprintf("2001:db8:0:1::%x", i+1)), "x", now)
		r.add(netip.MustParseAddr("192.0.2.1"), "x", now)
	}
	for addr, want := range map[string]bool{
		"2001:db8:0:1:ffff::1": true, "2001:db8:0:2::1": false,
		"192.0.2.1": true, "192.0.2.2": false,
	} {
		if got := r.tooMany(netip.MustParseAddr(addr), now); got != want {
			t.Errorf("tooMany of %s: got %v, want %v", addr, got, want)
		}
	}
	r.add(netip.Addr{}, "x", now) // of a connection without an address
	if r.tooMany(netip.MustParseAddr("192.0.2.1"), now.Add(refusalWindow+1)) {
		t.Error("tooMany: still, a window later")
	}
}

// Connections leave the process half of its descriptors.
func TestConnectionsLeaveDescriptors(t *testing.T) {
	most := descriptors() / 4
	m := newMurder(t, func(c *Config) { c.MaxConnections = 1 << 30 })
	if got := m.s.cfg.MaxConnections; got != most || most == 0 {
		t.Errorf("MaxConnections: got %d, want %d", got, most)
	}
}

// A directory for listings that takes no file is found at the start.
func TestSpoolDirIsLookedAt(t *testing.T) {
	login := Login{Name: "be1", Password: password}
	line, err := login.Line()
	if err != nil {
		t.Fatal(err)
	}
	users := filepath.Join(t.TempDir(), "users")
	if err := os.WriteFile(users, []byte(line+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := Settings{Listen: "127.0.0.1:3905", Users: users, Spool: filepath.Join(t.TempDir(), "none")}
	if err := s.Readable(); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "--mupdate-spool") {
		t.Errorf("Readable: got %v, want that the directory of --mupdate-spool is not there", err)
	}
}

// The certificate of a client says which server it is, and may end the connection before
// anybody can log in.
func TestHolder(t *testing.T) {
	name, refusal := string(be2), error(nil)
	m := newMurder(t, func(c *Config) {
		c.TLS = testTLS(t)
		c.Holder = func(tls.ConnectionState, net.Addr) (string, error) { return name, refusal }
	})
	secure := mupdateclient.Options{TLS: &tls.Config{InsecureSkipVerify: true}}
	c := m.dial("mupdate", secure)
	refused := &mupdateclient.Refused{}
	if err := c.Activate(t.Context(), "user.a", string(be1)+"!default", "a\tlrs\t"); !errors.As(err, &refused) {
		t.Errorf("ACTIVATE for another server than the certificate's: got %v, want NO", err)
	}
	if err := c.Activate(t.Context(), "user.a", string(be2)+"!default", "a\tlrs\t"); err != nil {
		t.Errorf("ACTIVATE for the certificate's server: %v", err)
	}
	name, refusal = "", errors.New("it has ended")
	if c, err := mupdateclient.Dial(t.Context(), m.addr, secure); err == nil || !strings.Contains(err.Error(), "BYE") {
		t.Errorf("a certificate that is refused: got %v, want BYE", err)
		if err == nil {
			c.Close()
		}
	}
}
