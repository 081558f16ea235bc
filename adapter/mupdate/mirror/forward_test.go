package mirror

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/rookery-mail/rookery/adapter/mupdate/mupdateclient"
	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
)

// What a master has is listed, what changes is followed: by what backends tell it.
func TestFollow(t *testing.T) {
	m, dir := newMaster(t), newNode(t)
	m.heard(be1, be2)
	stated(t, m.Client, holds(be1, "user.alice"), holds(be1, "user.alice.Sent"), holds(be2, "user.bob"))
	stated(t, dir, holds(be1, "user.alice", "anyone\tl\t"))
	r := start(t, m, dir)
	r.await(`mended user.alice: at be1.example.org!default with the ACL "anyone lrs", in the directory "anyone l"; changed`)
	r.await("mended user.alice.Sent: at be1.example.org!default, not in the directory; added")
	r.await("mended user.bob: at be2.example.org!default, not in the directory; added")
	r.await("differences 0")

	at1, at2 := m.as("be1"), m.as("be2")
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	ctx := t.Context()
	do(at1.Reserve(ctx, "user.carol", string(be1)+"!default"))
	do(at1.Activate(ctx, "user.carol", string(be1)+"!default", "carol\tlrs\t"))
	r.await("mended user.carol: at be1.example.org!default, not in the directory; added")
	do(at1.Activate(ctx, "user.carol", string(be1)+"!default", "carol\tl\t"))
	r.await(`mended user.carol: at be1.example.org!default with the ACL "carol l", in the directory "carol lrs"; changed`)
	do(at1.Activate(ctx, "user.carol", string(be1)+"!other", "carol\tl\t"))
	r.await("mended user.carol: at be1.example.org!other, in the directory at be1.example.org!default; changed")
	// A move, as Cyrus makes it.
	do(at1.Deactivate(ctx, "user.carol", string(be1)+"!other"))
	r.await("mended user.carol: reserved by the master for be1.example.org!other, in the directory at be1.example.org!other; changed")
	if got := outcome(t, dir, "user.carol"); got != directory.Moving {
		t.Errorf("given up: got %v, want %v", got, directory.Moving)
	}
	do(at2.Activate(ctx, "user.carol", string(be2)+"!default", "carol\tl\t"))
	r.await("mended user.carol: at be2.example.org!default, in the directory it cannot be had now; move-completed")
	do(at2.Delete(ctx, "user.carol"))
	do(at2.Logout(ctx))
	r.await("mended user.carol: not at the master", "difference")
	equal(t, m, dir)
	if out, err := r.end(); err != nil || !out.Compared || out.Differences != 0 {
		t.Errorf("ended with %+v, %v", out, err)
	}
	backends, err := dir.ListBackends(ctx, "")
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range backends {
		if !b.Admitted || !b.Confirmed || b.ConfirmedBy != directory.ByImport {
			t.Errorf("%s: admitted %v, confirmed %v %v; want it admitted, and confirmed by import", b.Name, b.Admitted, b.Confirmed, b.ConfirmedBy)
		}
	}
	if got := outcome(t, dir, "user.nobody"); got != directory.NotFound {
		t.Errorf("what nobody has: got %v, want %v", got, directory.NotFound)
	}
}

// A check reports each difference once when it appears and once when it ends, and changes
// nothing.
func TestCheck(t *testing.T) {
	m, dir := newMaster(t), newNode(t)
	m.heard(be1)
	stated(t, m.Client, holds(be1, "user.alice"), holds(be1, "user.bob"))
	stated(t, dir, holds(be1, "user.bob"), holds(be1, "user.extra"))
	r := start(t, m, dir, func(c *Config) { c.Check, c.Every = true, 200*time.Millisecond })
	alice := "difference user.alice: at be1.example.org!default, not in the directory"
	r.await(alice)
	r.await("difference user.extra: not at the master, in the directory at be1.example.org!default")
	r.await("differences 2")
	r.await("differences 2") // every now and then
	at, err := dir.Lookup(t.Context(), "noop", client.Linearizable())
	if err != nil {
		t.Fatal(err)
	}
	before := at.Revision
	// One that is under way from one side to the other is none.
	stated(t, m.Client, holds(be1, "user.quick"))
	stated(t, dir, holds(be1, "user.quick"))
	stated(t, m.Client, holds(be1, "user.carol"))
	r.await("difference user.carol: at be1.example.org!default, not in the directory", "difference user.quick")
	r.await("differences 3")
	stated(t, dir, holds(be1, "user.alice"))
	r.await("ended user.alice")
	stated(t, dir, holds(be1, "user.carol"))
	r.await("ended user.carol")
	stated(t, dir, client.Retract{Mailbox: "user.extra", Server: be1})
	r.await("ended user.extra")
	r.await("differences 0")
	out, err := r.end()
	if err != nil || out.Differences != 0 || !out.Compared {
		t.Errorf("ended with %+v, %v", out, err)
	}
	if n := r.times(alice); n != 1 {
		t.Errorf("a difference was told %d times", n)
	}
	at, err = dir.Lookup(t.Context(), "noop", client.Linearizable())
	if err != nil || at.Revision != before+4 {
		t.Errorf("a check wrote: revision %d, want %d (%v)", at.Revision, before+4, err)
	}
	if n := r.times("ended user.alice"); n != 1 {
		t.Errorf("the end of a difference was told %d times", n)
	}
}

// What a backend tells the directory itself is younger than what the master has: while
// the mirror runs, after it was cut off, and after it was started anew; also that it has
// a mailbox no more. What the master says later is younger again.
func TestDirectStatementsStay(t *testing.T) {
	m, dir := newMaster(t), newNode(t)
	m.heard(be1)
	stated(t, m.Client, holds(be1, "user.alice"), holds(be1, "user.bob"), holds(be1, "user.carol"))
	r := start(t, m, dir)
	r.await("differences 0")

	stated(t, dir, holds(be1, "user.direct"), holds(be1, "user.alice", "alice\tlrs\t"), client.Retract{Mailbox: "user.bob", Server: be1})
	const (
		direct = "difference user.direct: not at the master, in the directory at be1.example.org!default; "
		alice  = `difference user.alice: at be1.example.org!default with the ACL "anyone lrs", in the directory "alice lrs"; `
		bob    = "difference user.bob: at be1.example.org!default, not in the directory; "
		others = "stated to the directory by others"
	)
	from := r.seen
	for _, want := range []string{direct + others, alice + others, bob + others} {
		r.await(want, "mended")
		r.seen = from
	}
	check := func(when string) {
		t.Helper()
		all := seen(t, dir)
		if all["user.direct"] == nil || all["user.alice"].ACL != "alice\tlrs\t" || all["user.bob"] != nil {
			t.Errorf("%s: %v", when, all)
		}
	}
	m.line.cutNow()
	r.await("lost")
	r.await("differences 3", "mended")
	check("after a break")
	r.end()

	// A mirror that is started anew knows it too: what it found equal was noted.
	r = start(t, m, dir)
	from = r.seen
	r.await(bob+"taken back from the directory after they were last found equal", "mended")
	r.seen = from
	r.await("differences 3", "mended")
	check("started anew")
	for _, name := range []directory.MailboxName{"user.alice", "user.bob"} {
		stated(t, m.Client, holds(be1, name, "anyone\tlr\t"))
	}
	r.await("ended user.alice")
	r.await("ended user.bob")
	stated(t, m.Client, holds(be1, "user.direct"))
	r.await("ended user.direct")
	r.await("differences 0")
	equal(t, m, dir)
	r.end()

	// Unless it is told that the master is right.
	stated(t, dir, holds(be1, "user.direct", "x\tl\t"))
	r = start(t, m, dir, func(c *Config) { c.Overrule, c.Once = true, true })
	if out, err := r.wait(); err != nil || out.Differences != 0 {
		t.Errorf("overruled: %+v, %v", out, err)
	}
	equal(t, m, dir)
}

// Deletions that a mirror did not see, for it was not there, are made up for.
func TestDroppedMeanwhile(t *testing.T) {
	m, dir := newMaster(t), newNode(t)
	m.heard(be1, be2)
	for i := range 20 {
		stated(t, m.Client, holds(be1, directory.MailboxName(fmt.Sprintf("user.u%d", i))))
	}
	once := func(c *Config) { c.Once = true }
	if out, err := start(t, m, dir, once).wait(); err != nil || out.Differences != 0 {
		t.Fatalf("%+v, %v", out, err)
	}
	stated(t, m.Client, client.Retract{Mailbox: "user.u3", Server: be1}, client.Deactivate{Mailbox: "user.u4", Server: be1}, holds(be2, "user.u4"))
	r := start(t, m, dir, once)
	r.await("mended user.u3: not at the master, in the directory at be1.example.org!default; retracted")
	r.await("mended user.u4: at be2.example.org!default, in the directory at be1.example.org!default; moved")
	if out, err := r.wait(); err != nil || out.Differences != 0 {
		t.Errorf("%+v, %v; told\n%s", out, err, r.log())
	}
	equal(t, m, dir)
}

// A master that has lost its list, or half of it, takes nothing away; and when it is
// believed all the same, the withdrawal guard stands before its mail.
func TestMasterThatLostItsList(t *testing.T) {
	m, dir := newMaster(t), newNode(t)
	m.heard(be1, be2)
	names := func(server directory.BackendName, n int) (all []client.Op) {
		for i := range n {
			all = append(all, holds(server, directory.MailboxName(fmt.Sprintf("user.%.3s%02d", server, i))))
		}
		return all
	}
	stated(t, m.Client, append(names(be1, 30), names(be2, 30)...)...)
	r := start(t, m, dir)
	r.await("differences 0")

	empty := newMaster(t)
	empty.heard(be1)
	m.line.move(empty.addr)
	r.await("withheld be1.example.org 30 of 30", "mended")
	r.await("withheld be2.example.org 30 of 30", "mended")
	r.await("differences 60", "mended")
	if n := len(seen(t, dir)); n != 60 {
		t.Errorf("an emptied master left %d of 60", n)
	}

	half := newMaster(t)
	half.heard(be1, be2)
	stated(t, half.Client, append(names(be1, 12), names(be2, 29)...)...)
	m.line.move(half.addr)
	r.await("withheld be1.example.org 18 of 30")
	r.await("mended user.be229: not at the master, in the directory at be2.example.org!default; retracted")
	r.await("differences 18")
	if n := len(seen(t, dir)); n != 59 {
		t.Errorf("half a master left %d of 60, want 59", n)
	}

	// It is itself again.
	m.line.move(m.addr)
	r.await("mended user.be229: at be2.example.org!default, not in the directory; added")
	r.await("differences 0")
	if out, _ := r.end(); out.Differences != 0 {
		t.Errorf("%+v", out)
	}

	// Believed, with a guard that lets five pass.
	if _, err := dir.SetSettings(t.Context(), client.SettingsChange{GuardCount: new(uint32(5)), GuardPercent: new(uint32(0))}); err != nil {
		t.Fatal(err)
	}
	m.line.move(empty.addr)
	r = start(t, m, dir, func(c *Config) { c.Withdraw, c.Once = true, true })
	out, err := r.wait()
	if err != nil || out.Differences != 60-5-5+1 { // one of be2's had gone before
		t.Errorf("%+v, %v; told\n%s", out, err, r.log())
	}
	held := 0
	for i := range 30 {
		if outcome(t, dir, directory.MailboxName(fmt.Sprintf("user.be1%02d", i))) == directory.Held {
			held++
		}
	}
	if held != 25 {
		t.Errorf("the guard holds %d of be1's, want 25", held)
	}
}

// A listing that breaks off, wherever, is never taken for a whole one.
func TestListingThatBreaksOff(t *testing.T) {
	m, dir := newMaster(t), newNode(t)
	m.heard(be1)
	const n = 60
	for i := range n {
		stated(t, m.Client, holds(be1, directory.MailboxName(fmt.Sprintf("user.u%02d", i))))
	}
	if out, err := start(t, m, dir, func(c *Config) { c.Once = true }).wait(); err != nil || out.Differences != 0 {
		t.Fatalf("%+v, %v", out, err)
	}
	stated(t, m.Client, holds(be1, "user.zz"))
	for _, after := range []int64{1, 40, 600, 1500, 2600, 3000} {
		m.line.cut.Store(after)
		r := start(t, m, dir, func(c *Config) { c.Once = true })
		out, err := r.wait()
		if !errors.Is(err, ErrLost) || out.Compared {
			t.Errorf("cut after %d octets: %+v, %v", after, out, err)
		}
		if got := len(seen(t, dir)); got != n {
			t.Fatalf("cut after %d octets: %d mailboxes, want %d", after, got, n)
		}
	}
	m.line.cut.Store(0)
	if out, err := start(t, m, dir, func(c *Config) { c.Once = true }).wait(); err != nil || out.Differences != 0 {
		t.Errorf("%+v, %v", out, err)
	}
	equal(t, m, dir)
}

// Copies of replicas are no differences and are left alone, also when the master drops
// the mailbox: then the primary has decided for them, if that was told; a listing that
// lacks it decides nothing.
func TestReplicas(t *testing.T) {
	m, dir := newMaster(t), newNode(t)
	m.heard(be1)
	if _, err := dir.SetBackend(t.Context(), be1r, client.BackendChange{Create: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := dir.ConfirmBackend(t.Context(), be1r, directory.ByImport); err != nil {
		t.Fatal(err)
	}
	for _, name := range []directory.MailboxName{"user.a", "user.b", "user.c", "user.d"} {
		stated(t, m.Client, holds(be1, name))
		stated(t, dir, holds(be1, name), holds(be1r, name))
	}
	stated(t, dir, holds(be1r, "user.only"))
	if _, err := dir.SetGroup(t.Context(), client.SetGroup{Group: "g1", Members: []directory.BackendName{be1, be1r}, AcceptMissing: true}); err != nil {
		t.Fatal(err)
	}
	r := start(t, m, dir)
	r.await("differences 0", "mended", "difference")
	stated(t, m.Client, client.Retract{Mailbox: "user.a", Server: be1})
	r.await("mended user.a: not at the master, in the directory at be1.example.org!default; retracted")
	r.end()
	route, err := dir.Lookup(t.Context(), "user.a", client.Details(), client.Linearizable())
	if err != nil || route.Outcome != directory.NotFound || len(route.Facts) != 1 || route.Facts[0].Standing != directory.StaleCopy {
		t.Errorf("dropped while it was followed: %v %+v, %v; want a stale copy", route.Outcome, route.Facts, err)
	}
	stated(t, m.Client, client.Retract{Mailbox: "user.b", Server: be1})
	r = start(t, m, dir, func(c *Config) { c.Once = true })
	if out, err := r.wait(); err != nil || out.Differences != 0 {
		t.Errorf("%+v, %v", out, err)
	}
	if got := outcome(t, dir, "user.b"); got != directory.NotAtPrimary {
		t.Errorf("dropped meanwhile: got %v, want %v", got, directory.NotAtPrimary)
	}
	if got := outcome(t, dir, "user.only"); got != directory.NotAtPrimary {
		t.Errorf("a replica's own: got %v, want %v", got, directory.NotAtPrimary)
	}
}

// A name that is reserved and becomes nothing is nothing; one that is reserved for long
// may be a mailbox whose move is stuck, and mail for it waits.
func TestReserved(t *testing.T) {
	m, dir := newMaster(t), newNode(t)
	m.heard(be1)
	stated(t, m.Client, holds(be1, "user.stuck"), client.Deactivate{Mailbox: "user.stuck", Server: be1})
	r := start(t, m, dir)
	r.await("mended user.stuck: reserved by the master for be1.example.org!default, not in the directory; added")
	r.await("differences 0")
	if got := outcome(t, dir, "user.stuck"); got != directory.Moving {
		t.Errorf("a stuck move: got %v, want %v", got, directory.Moving)
	}
	at1 := m.as("be1")
	if err := at1.Reserve(t.Context(), "user.stuck.a", string(be1)+"!default"); err != nil {
		t.Fatal(err)
	}
	if err := at1.Delete(t.Context(), "user.stuck.a"); err != nil {
		t.Fatal(err)
	}
	stated(t, m.Client, holds(be1, "user.stuck"))
	r.await("mended user.stuck: at be1.example.org!default, in the directory it cannot be had now; move-aborted", "mended user.stuck.a")
	if err := at1.Reserve(t.Context(), "user.stuck.b", string(be1)+"!default"); err != nil {
		t.Fatal(err)
	}
	r.await("mended user.stuck.b: reserved by the master for be1.example.org!default, not in the directory; added")
	r.end()
	equalButClaims(t, m, dir)
}

// equalButClaims: what is only reserved at the master is no mailbox there.
func equalButClaims(t *testing.T, m *master, dir *client.Client) {
	t.Helper()
	a, b := seen(t, m.Client), seen(t, dir)
	delete(b, "user.stuck.b")
	if len(a) != len(b) {
		t.Errorf("master %v, directory %v", a, b)
	}
}

// A backend that has compared its list with the directory speaks to it. The master has an
// old view of it, and whatever it says of that backend is only reported.
func TestBackendThatSpeaksItself(t *testing.T) {
	m, dir := newMaster(t), newNode(t)
	m.heard(be1, be2)
	stated(t, m.Client, holds(be1, "user.a"), holds(be1, "user.b"), holds(be2, "user.c"))
	r := start(t, m, dir)
	r.await("differences 0")
	stated(t, dir, holds(be1, "user.new"), client.Retract{Mailbox: "user.a", Server: be1})
	if _, err := dir.ConfirmBackend(t.Context(), be1, directory.ByResync); err != nil {
		t.Fatal(err)
	}
	r.await("difference user.new: not at the master, in the directory at be1.example.org!default; stated to the directory by others")
	stated(t, m.Client, holds(be1, "user.b", "x\tl\t"), client.Retract{Mailbox: "user.c", Server: be2})
	r.await(`difference user.b: at be1.example.org!default with the ACL "x l", in the directory "anyone lrs"; be1.example.org speaks to the directory itself`, "mended user.a", "mended user.b")
	r.await("mended user.c: not at the master, in the directory at be2.example.org!default; retracted")
	r.end()
	r = start(t, m, dir, func(c *Config) { c.Overrule, c.Withdraw, c.Once = true, true, true })
	r.await("speaks-itself be1.example.org")
	if out, err := r.wait(); err != nil || out.Differences != 3 {
		t.Errorf("%+v, %v; told\n%s", out, err, r.log())
	}
	all := seen(t, dir)
	if all["user.new"] == nil || all["user.a"] != nil {
		t.Errorf("its word was overwritten: %v", all)
	}
}

// A fork stays one: what a backend holds outside a mailbox's home is neither taken back
// nor overruled, and the route is the master's.
func TestForks(t *testing.T) {
	m, dir := newMaster(t), newNode(t)
	m.heard(be1, be2)
	stated(t, m.Client, holds(be1, "user.a"), holds(be2, "user.b"))
	r := start(t, m, dir)
	r.await("differences 0")
	stated(t, dir, holds(be2, "user.a"))
	stated(t, m.Client, holds(be1, "user.a", "x\tl\t"))
	r.await(`mended user.a: at be1.example.org!default with the ACL "x l", in the directory "anyone lrs"; changed`)
	stated(t, m.Client, client.Retract{Mailbox: "user.a", Server: be1})
	r.await("difference user.a: not at the master, in the directory it cannot be had now; its route is ORPHANED_FORK")
	r.end()
	route, err := dir.Lookup(t.Context(), "user.a", client.Details(), client.Linearizable())
	if err != nil || route.Fact(be2) == nil || route.Fact(be1) != nil {
		t.Errorf("%+v, %v; want be2's copy to stay", route.Facts, err)
	}
}

// A login that is refused at first ends it; one that is refused later does not.
func TestLoginRefused(t *testing.T) {
	m, dir := newMaster(t), newNode(t)
	m.heard(be1)
	r := start(t, m, dir, func(c *Config) {
		c.Connect = func(ctx context.Context) (*mupdateclient.Client, error) { return connectTo(ctx, m.line.addr, "nobody") }
	})
	if _, err := r.wait(); !isRefused(err) {
		t.Errorf("got %v, want a refusal", err)
	}
	login := make(chan string, 1)
	login <- "mirror"
	r = start(t, m, dir, func(c *Config) {
		c.Connect = func(ctx context.Context) (*mupdateclient.Client, error) {
			name := "nobody"
			select {
			case name = <-login:
			default:
			}
			return connectTo(ctx, m.line.addr, name)
		}
	})
	r.await("differences 0")
	m.line.cutNow()
	r.await("lost")
	r.await("lost")
	login <- "mirror"
	r.await("differences 0")
}

func isRefused(err error) bool {
	_, is := errors.AsType[*mupdateclient.Refused](err)
	return is
}

// Whatever backends tell the master, and however often the line to it is cut, the
// directory ends as the master is.
func TestRandom(t *testing.T) {
	for seed := range uint64(3) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 5))
			m, dir := newMaster(t), newNode(t)
			m.heard(be1, be2)
			r := start(t, m, dir)
			r.await("differences 0")
			servers := []directory.BackendName{be1, be2}
			for i := range 300 {
				name := directory.MailboxName(fmt.Sprintf("user.u%d", rnd.IntN(30)))
				server := servers[rnd.IntN(2)]
				acl := fmt.Sprintf("u%d\tlrs\t", rnd.IntN(3))
				var op client.Op
				switch rnd.IntN(10) {
				case 0, 1, 2, 3, 4:
					if route, err := m.Lookup(t.Context(), name, client.Details()); err == nil && len(route.Facts) > 0 && route.Facts[0].State == directory.Active {
						server = route.Facts[0].Server // no forks: a master of Cyrus has none
					}
					op = holds(server, name, acl)
				case 5, 6:
					op = client.Retract{Mailbox: name, Server: server}
				case 7:
					if route, err := m.Lookup(t.Context(), name, client.Details()); err != nil || route.Fact(server) == nil {
						continue
					}
					op = client.Deactivate{Mailbox: name, Server: server}
				case 8:
					time.Sleep(time.Duration(rnd.IntN(50)) * time.Millisecond)
					continue
				case 9:
					if i%7 == 0 {
						m.line.cutNow()
					}
					continue
				}
				stated(t, m.Client, op)
			}
			equal(t, m, dir)
			if out, err := r.end(); err != nil {
				t.Errorf("%+v, %v", out, err)
			}
		})
	}
}

// What the mirror itself stated, or took back, is no word of others after a break.
func TestOwnStatementsAreNotOthers(t *testing.T) {
	for _, seenBetween := range []bool{false, true} {
		t.Run(fmt.Sprintf("a move seen in its middle %v", seenBetween), func(t *testing.T) { ownStatements(t, seenBetween) })
	}
}

func ownStatements(t *testing.T, seenBetween bool) {
	m, dir := newMaster(t), newNode(t)
	m.heard(be1, be2)
	stated(t, m.Client, holds(be1, "user.a"), holds(be1, "user.b"), holds(be1, "user.c"), holds(be1, "user.d"), holds(be1, "user.stays"))
	r := start(t, m, dir)
	r.await("differences 0")
	// Something that stands, so that be1 is not found equal again.
	stated(t, dir, holds(be1, "user.direct"))
	r.await("difference user.direct")
	stated(t, m.Client, client.Retract{Mailbox: "user.a", Server: be1}, holds(be1, "user.b", "x\tl\t"), client.Deactivate{Mailbox: "user.d", Server: be1})
	if seenBetween {
		r.awaitAll("mended user.d: reserved by the master for be1.example.org!default")
	}
	stated(t, m.Client, holds(be2, "user.d"))
	// All of it is done, and the mirror knows: what a break leaves undecided is for people.
	r.awaitAll("mended user.a", "mended user.b", "mended user.d: at be2.example.org!default")
	equalBut(t, m, dir, "user.direct", r.log)

	m.line.move("127.0.0.1:1")
	r.await("lost")
	stated(t, m.Client, holds(be1, "user.a"), client.Retract{Mailbox: "user.b", Server: be1}, client.Retract{Mailbox: "user.c", Server: be1},
		client.Deactivate{Mailbox: "user.d", Server: be2}, holds(be1, "user.d"))
	m.line.move(m.addr)
	r.await("listed")
	equalBut(t, m, dir, "user.direct", r.log)
	if out, err := r.end(); err != nil || out.Differences != 1 {
		t.Errorf("%+v, %v; told\n%s", out, err, r.log())
	}
}

// equalBut waits until both sides say the same, but for a name that only the directory has.
func equalBut(t *testing.T, m *master, dir *client.Client, name directory.MailboxName, told func() string) {
	t.Helper()
	end := time.Now().Add(patience)
	for {
		a, b := seen(t, m.Client), seen(t, dir)
		there := b[name] != nil
		delete(b, name)
		alike := len(a) == len(b)
		for name, r := range a {
			alike = alike && same(r, b[name])
		}
		if alike && there {
			return
		}
		if time.Now().After(end) {
			for name, r := range a {
				if !same(r, b[name]) {
					t.Errorf("%s: at the master %+v, in the directory %+v", name, r, b[name])
				}
			}
			t.Fatalf("master %v, directory %v, %s there: %v; told\n%s", a, b, name, there, told())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// A fact that others stated after its server was found equal, and before that was noted,
// is stated anew, unchanged: after the note.
func TestRestate(t *testing.T) {
	dir := newNode(t)
	stated(t, dir, holds(be1, "user.a"))
	note, err := dir.ConfirmBackend(t.Context(), be1, directory.ByImport)
	if err != nil {
		t.Fatal(err)
	}
	fact := func() client.Route {
		r, err := dir.Lookup(t.Context(), "user.a", client.Details(), client.Linearizable())
		if err != nil || r.Fact(be1) == nil {
			t.Fatalf("%+v, %v", r, err)
		}
		return r
	}
	before := fact()
	r := &round{mirror: &mirror{
		cfg:   Config{Directory: dir.NewSession(nil)},
		equal: map[directory.BackendName]directory.Revision{be1: before.Fact(be1).Last - 1},
		noted: map[directory.BackendName]directory.Revision{be1: note.Revision},
	}}
	if r.t, err = readTopology(t.Context(), r.cfg.Directory); err != nil {
		t.Fatal(err)
	}
	for range 2 { // once is enough
		l := &look{item: item{name: "user.a"}, route: fact()}
		if err := r.restate(t.Context(), l); err != nil {
			t.Fatal(err)
		}
	}
	after := fact()
	got, was := *after.Fact(be1), *before.Fact(be1)
	if got.Last <= note.Revision || got.Last > note.Revision+1 {
		t.Errorf("stated at revision %d; the note is of %d", got.Last, note.Revision)
	}
	got.Last, got.Age, was.Last, was.Age = 0, 0, 0, 0
	if got != was || after.Outcome != before.Outcome {
		t.Errorf("got %+v %v, want %+v %v", got, after.Outcome, was, before.Outcome)
	}
}
