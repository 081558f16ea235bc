package mirror

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
)

func backwards(c *Config) { c.Reverse = true }

// The master is told what frontends are told here.
func TestReverse(t *testing.T) {
	m, dir := newMaster(t), newNode(t)
	m.heard(be1, be2)
	stated(t, dir, holds(be1, "user.alice"), holds(be1, "user.alice.Sent"), holds(be2, "user.bob"))
	for _, b := range []directory.BackendName{be1, be2} {
		if _, err := dir.ConfirmBackend(t.Context(), b, directory.ByResync); err != nil {
			t.Fatal(err)
		}
	}
	stated(t, m.Client, holds(be1, "user.alice", "anyone\tl\t"), holds(be1, "user.bob"))
	r := start(t, m, dir, backwards)
	r.await(`mended user.alice: at be1.example.org!default with the ACL "anyone l", in the directory "anyone lrs"; activated`, "speaks-itself")
	r.await("mended user.alice.Sent: not at the master, in the directory at be1.example.org!default; activated")
	r.await("mended user.bob: at be1.example.org!default, in the directory at be2.example.org!default; activated")
	r.await("differences 0")
	stated(t, dir, holds(be1, "user.carol"))
	r.await("mended user.carol: not at the master, in the directory at be1.example.org!default; activated")
	stated(t, dir, client.Deactivate{Mailbox: "user.carol", Server: be1})
	r.await("mended user.carol: at be1.example.org!default, in the directory it cannot be had now; deactivated")
	stated(t, dir, holds(be2, "user.carol"))
	r.await("mended user.carol: reserved by the master for be1.example.org!default, in the directory at be2.example.org!default; activated")
	stated(t, dir, client.Retract{Mailbox: "user.carol", Server: be2})
	r.await("mended user.carol: at be2.example.org!default, not in the directory; deleted")
	// A claim is none of the master's business.
	if _, err := dir.Reserve(t.Context(), client.Reserve{Mailbox: "user.alice.new", Server: be1}); err != nil {
		t.Fatal(err)
	}
	stated(t, dir, holds(be1, "user.last"))
	r.await("mended user.last", "mended user.alice.new")
	// What somebody else tells the master is reported, and stays: it may be a backend that
	// still speaks to it.
	stated(t, m.Client, holds(be2, "user.other"))
	r.await("difference user.other: at be2.example.org!default, not in the directory; stated to the master by others", "mended user.other")
	if out, err := r.end(); err != nil || out.Differences != 1 {
		t.Errorf("%+v, %v", out, err)
	}
	if seen(t, m.Client)["user.other"] == nil {
		t.Error("what others told the master is gone")
	}
}

// Copies that a backend would delete if it asked the master keep the mirror from telling
// it anything: when it begins, and when one appears.
func TestReverseRefusesCopies(t *testing.T) {
	m, dir := newMaster(t), newNode(t)
	m.heard(be1)
	stated(t, dir, holds(be1, "user.a"), holds(be1r, "user.a"))
	if _, err := dir.SetGroup(t.Context(), client.SetGroup{Group: "g1", Members: []directory.BackendName{be1, be1r}, AcceptMissing: true}); err != nil {
		t.Fatal(err)
	}
	r := start(t, m, dir, backwards)
	r.await("copies be1r.example.org 1")
	if _, err := r.wait(); !errors.Is(err, ErrReplicas) {
		t.Errorf("with a replica: got %v, want %v", err, ErrReplicas)
	}
	if n := len(seen(t, m.Client)); n != 0 {
		t.Errorf("the master was told of %d mailboxes", n)
	}
	r = start(t, m, dir, backwards, func(c *Config) { c.Check, c.Once = true, true })
	r.await("copies be1r.example.org 1")
	if out, err := r.wait(); err != nil || out.Differences != 1 {
		t.Errorf("a check: %+v, %v", out, err)
	}
	r = start(t, m, dir, backwards, func(c *Config) { c.Replicas, c.Once = true, true })
	if out, err := r.wait(); err != nil || out.Differences != 0 {
		t.Errorf("accepted: %+v, %v", out, err)
	}
	stated(t, dir, client.Retract{Mailbox: "user.a", Server: be1r})
	r = start(t, m, dir, backwards)
	r.await("differences 0")
	stated(t, dir, holds(be1, "user.b"))
	r.await("mended user.b")
	stated(t, dir, holds(be2, "user.b"))
	r.await("copies be2.example.org 1")
	if _, err := r.wait(); !errors.Is(err, ErrReplicas) {
		t.Errorf("with a fork: got %v, want %v", err, ErrReplicas)
	}
}

// A directory that does not know whether a mailbox is there, or lacks most, takes nothing
// from the master.
func TestReverseOfAnEmptyDirectory(t *testing.T) {
	m, dir := newMaster(t), newNode(t)
	m.heard(be1)
	for i := range 30 {
		stated(t, m.Client, holds(be1, directory.MailboxName(fmt.Sprintf("user.u%02d", i))))
	}
	// Nobody was heard here.
	r := start(t, m, dir, backwards, func(c *Config) { c.Once, c.Withdraw = true, true })
	if out, err := r.wait(); err != nil || out.Differences != 30 {
		t.Errorf("%+v, %v", out, err)
	}
	if _, err := dir.SetBackend(t.Context(), be1, client.BackendChange{Create: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := dir.ConfirmBackend(t.Context(), be1, directory.ByOperator); err != nil {
		t.Fatal(err)
	}
	r = start(t, m, dir, backwards, func(c *Config) { c.Once = true })
	r.await("withheld be1.example.org 30 of 30", "mended")
	if out, err := r.wait(); err != nil || out.Differences != 30 {
		t.Errorf("%+v, %v", out, err)
	}
	if n := len(seen(t, m.Client)); n != 30 {
		t.Fatalf("%d mailboxes are left, want 30", n)
	}
	r = start(t, m, dir, backwards, func(c *Config) { c.Once, c.Withdraw = true, true })
	if out, err := r.wait(); err != nil || out.Differences != 0 || len(seen(t, m.Client)) != 0 {
		t.Errorf("%+v, %v", out, err)
	}
}

// A switchover, and a hold, change routes of which nothing is told one by one.
func TestReverseTopology(t *testing.T) {
	m, dir := newMaster(t), newNode(t)
	m.heard(be1, be1r)
	for i := range 5 {
		name := directory.MailboxName(fmt.Sprintf("user.u%d", i))
		stated(t, dir, holds(be1, name), holds(be1r, name))
	}
	if _, err := dir.SetGroup(t.Context(), client.SetGroup{Group: "g1", Members: []directory.BackendName{be1, be1r}, AcceptMissing: true}); err != nil {
		t.Fatal(err)
	}
	r := start(t, m, dir, backwards, func(c *Config) { c.Replicas = true })
	r.await("differences 0")
	if _, err := dir.SetPrimary(t.Context(), client.SetPrimary{Group: "g1", To: be1r, Epoch: 1, Reason: "test"}); err != nil {
		t.Fatal(err)
	}
	r.await("mended user.u4: at be1.example.org!default, in the directory at be1r.example.org!default; activated")
	equal(t, m, dir)
	if _, err := dir.PutHold(t.Context(), directory.HoldUser, "u2", time.Hour, "test"); err != nil {
		t.Fatal(err)
	}
	r.await("mended user.u2: at be1r.example.org!default, in the directory it cannot be had now; deactivated")
}

// Whatever is stated here, and however often the line to the master is cut, the master
// ends as the directory is.
func TestReverseRandom(t *testing.T) {
	for seed := range uint64(2) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 6))
			m, dir := newMaster(t), newNode(t)
			m.heard(be1, be2)
			for _, b := range []directory.BackendName{be1, be2} {
				if _, err := dir.SetBackend(t.Context(), b, client.BackendChange{Create: true}); err != nil {
					t.Fatal(err)
				}
				if _, err := dir.ConfirmBackend(t.Context(), b, directory.ByResync); err != nil {
					t.Fatal(err)
				}
			}
			r := start(t, m, dir, backwards)
			r.await("differences 0")
			for i := range 200 {
				name := directory.MailboxName(fmt.Sprintf("user.u%d", rnd.IntN(20)))
				server := []directory.BackendName{be1, be2}[rnd.IntN(2)]
				route, err := dir.Lookup(t.Context(), name, client.Details())
				if err != nil {
					t.Fatal(err)
				}
				if len(route.Facts) > 0 && route.Facts[0].State == directory.Active {
					server = route.Facts[0].Server // no forks: they are refused
				}
				switch n := rnd.IntN(10); {
				case n < 5:
					stated(t, dir, holds(server, name, fmt.Sprintf("u%d\tlrs\t", rnd.IntN(3))))
				case n < 7:
					stated(t, dir, client.Retract{Mailbox: name, Server: server})
				case n < 8 && route.Fact(server) != nil:
					stated(t, dir, client.Deactivate{Mailbox: name, Server: server})
				case n == 9 && i%5 == 0:
					m.line.cutNow()
				default:
					time.Sleep(time.Duration(rnd.IntN(30)) * time.Millisecond)
				}
			}
			equal(t, m, dir)
			if out, err := r.end(); err != nil {
				t.Errorf("%+v, %v; told\n%s", out, err, r.log())
			}
		})
	}
}
