package client_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/server/servertest"
)

// backendList is what a backend holds, as a test knows it.
type backendList map[directory.MailboxName]directory.Statement

// own is the list in name order.
func (l backendList) own() iter.Seq2[client.Own, error] {
	return func(yield func(client.Own, error) bool) {
		for _, name := range slices.SortedFunc(maps.Keys(l), directory.CompareNames) {
			if !yield(client.Own{Mailbox: name, Statement: l[name]}, nil) {
				return
			}
		}
	}
}

// stated is a whole statement.
func stated(partition string, n int) directory.Statement {
	return directory.Statement{
		Partition: partition, ACL: new(fmt.Sprintf("u%d\tlrs\t", n)), MailboxID: new(fmt.Sprintf("id%d", n)),
		UIDValidity: new(uint32(n)), Type: new(directory.TypeEmail), SpecialUse: new(""),
	}
}

// facts are what the directory has of server, by name; held withdrawals apart.
func facts(t testing.TB, c *client.Client, server directory.BackendName) map[directory.MailboxName]client.Fact {
	t.Helper()
	out := make(map[directory.MailboxName]client.Fact)
	for r, err := range c.FindAll(t.Context(), client.FindQuery{Server: server, PageSize: 1000}, client.Linearizable()) {
		if err != nil && !errors.Is(err, directory.ErrNotFound) {
			t.Fatal(err)
		}
		if f := r.Fact(server); f != nil && f.State != directory.HeldWithdrawal {
			out[r.Mailbox] = *f
		}
	}
	return out
}

// same reports whether a fact is as a statement has it, which may leave something out.
func same(f client.Fact, st directory.Statement) bool {
	now := directory.Fact{Partition: f.Partition, ACL: f.ACL, MailboxID: f.MailboxID, UIDValidity: f.UIDValidity, Type: f.Type, SpecialUse: f.SpecialUse}
	return now.Merge(st) == now
}

// checkSame compares, naively, a list with the directory.
func checkSame(t testing.TB, c *client.Client, server directory.BackendName, l backendList) {
	t.Helper()
	have := facts(t, c, server)
	for name, st := range l {
		if f, ok := have[name]; !ok || !same(f, st) {
			t.Errorf("%s: the directory has %t, %+v; the list says %+v", name, ok, f, st)
		}
	}
	for name := range have {
		if _, ok := l[name]; !ok {
			t.Errorf("%s: the directory has it, the list does not", name)
		}
	}
}

// asOf is a token of now.
func asOf(t testing.TB, c *client.Client, server directory.BackendName) []byte {
	t.Helper()
	totals, err := c.Totals(t.Context(), server, nil, client.Linearizable())
	if err != nil {
		t.Fatal(err)
	}
	return totals.Token
}

func resync(t testing.TB, c *client.Client, r client.Resync) client.Resynced {
	t.Helper()
	out, err := c.Resync(t.Context(), r)
	if err != nil {
		t.Fatalf("Resync: %v, after %+v", err, out)
	}
	return out
}

// users makes a list of n mailboxes, ten a user.
func users(n int) backendList {
	l := make(backendList)
	for i := range n {
		name := fmt.Sprintf("user.u%d", i/10)
		if i%10 > 0 {
			name += fmt.Sprintf(".f%d", i%10)
		}
		l[directory.MailboxName(name)] = stated("default", i)
	}
	return l
}

// wire counts what goes over a client's connections.
type wire struct{ out, in atomic.Int64 }

func (w *wire) total() int64 { return w.out.Load() + w.in.Load() }

func (w *wire) dialer(dial func(context.Context, string) (net.Conn, error)) client.Option {
	return client.WithDialer(func(ctx context.Context, address string) (net.Conn, error) {
		conn, err := dial(ctx, address)
		return &countedConn{conn, w}, err
	})
}

type countedConn struct {
	net.Conn
	w *wire
}

func (c *countedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.w.in.Add(int64(n))
	return n, err
}

func (c *countedConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.w.out.Add(int64(n))
	return n, err
}

// From nothing to a list, no change, some of each kind of change, and back to nothing.
func TestResync(t *testing.T) {
	s := servertest.New(t)
	var w wire
	c, err := client.Dial([]string{"n1"}, w.dialer(s.DialMemory))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })

	l := users(3000)
	token := asOf(t, c, be1)
	r := resync(t, c, client.Resync{Server: be1, List: l.own(), AsOf: token})
	if r.Lacking != 3000 || r.Effects[client.Added] != 3000 || !r.Equal || !r.Confirmed || r.Rounds != 2 {
		t.Errorf("the first: got %+v", r)
	}
	checkSame(t, c, be1, l)

	// Unchanged: one question, and the word that it is so.
	token = asOf(t, c, be1)
	before := w.total()
	r = resync(t, c, client.Resync{Server: be1, List: l.own(), AsOf: token, DryRun: true})
	asked := w.total() - before
	if !r.Equal || r.Rounds != 1 || r.Listed != 3000 || r.Facts != 3000 || len(r.Effects) != 0 {
		t.Errorf("unchanged: got %+v", r)
	}
	before = w.total()
	if r = resync(t, c, client.Resync{Server: be1, List: l.own(), AsOf: token}); !r.Confirmed {
		t.Errorf("unchanged: got %+v", r)
	}
	confirmed := w.total() - before
	t.Logf("unchanged: %d octets on the wire, %d with the confirmation", asked, confirmed)
	if asked >= 1024 || confirmed >= 1024 {
		t.Errorf("unchanged: %d octets on the wire, %d with the confirmation; want less than 1024", asked, confirmed)
	}

	// Some of each.
	delete(l, "user.u7.f3")
	delete(l, "user.u8")
	l["user.u9.new"] = stated("default", 1)
	l["user.u9.f1"] = stated("spool2", 4)
	l["shared"] = stated("default", 5)
	token = asOf(t, c, be1)
	dry := resync(t, c, client.Resync{Server: be1, List: l.own(), AsOf: token, DryRun: true})
	if dry.Lacking != 2 || dry.Different != 1 || dry.Extra != 2 || dry.Equal || dry.Confirmed {
		t.Errorf("dry run: got %+v", dry)
	}
	r = resync(t, c, client.Resync{Server: be1, List: l.own(), AsOf: token})
	want := map[client.Effect]uint64{client.Added: 2, client.Changed: 1, client.Removed: 2}
	if !maps.Equal(r.Effects, want) || !r.Equal || !r.Confirmed || r.Rounds != 2 {
		t.Errorf("got %+v, want the effects %v", r, want)
	}
	checkSame(t, c, be1, l)

	// Nothing at all is not believed.
	token = asOf(t, c, be1)
	r = resync(t, c, client.Resync{Server: be1, List: backendList{}.own(), AsOf: token})
	if !r.Withheld || r.Equal || r.Confirmed || r.Extra != 3000+1-1 || len(r.Effects) != 0 {
		t.Errorf("an empty list: got %+v", r)
	}
	checkSame(t, c, be1, l)
	// Said twice, it is the guard's matter.
	r = resync(t, c, client.Resync{Server: be1, List: backendList{}.own(), AsOf: token, Withdraw: true})
	if r.Effects[client.Removed] != 498 || r.Effects[client.GuardHeld] != 2502 || !r.Held || r.Confirmed {
		t.Errorf("an empty list, meant: got %+v", r)
	}
	// The spool was mounted again: what the guard holds is there again.
	token = asOf(t, c, be1)
	r = resync(t, c, client.Resync{Server: be1, List: l.own(), AsOf: token})
	if r.Effects[client.Changed] != 2502 || r.Effects[client.Added] != 498 || !r.Equal || r.Held || !r.Confirmed {
		t.Errorf("mounted again: got %+v", r)
	}
	checkSame(t, c, be1, l)
}

// What a list does not know is no difference, for all its mailboxes or for some.
func TestResyncNotStated(t *testing.T) {
	c := newClient(t)
	whole := users(200)
	for name, st := range whole {
		st.SpecialUse = new(`\Sent`)
		whole[name] = st
	}
	resync(t, c, client.Resync{Server: be1, List: whole.own(), AsOf: asOf(t, c, be1)})

	poor := make(backendList)
	for name, st := range whole {
		poor[name] = directory.Statement{Partition: st.Partition, ACL: st.ACL, Type: st.Type}
	}
	for _, partition := range []string{"user.u3.f1", "user.u3.f2"} {
		st := poor[directory.MailboxName(partition)]
		st.Partition = "" // a rename has left it empty
		poor[directory.MailboxName(partition)] = st
	}
	r := resync(t, c, client.Resync{Server: be1, List: poor.own(), AsOf: asOf(t, c, be1)})
	if !r.Equal || !r.Confirmed || len(r.Effects) != 0 || r.Lacking+r.Different+r.Extra+r.Waiting != 0 {
		t.Errorf("a poor list: got %+v", r)
	}
	st := poor["user.u3.f1"]
	st.ACL = new("anyone\tlr\t")
	poor["user.u3.f1"] = st
	st = poor["user.u4"]
	st.Type = new(directory.TypeCalendar)
	poor["user.u4"] = st
	r = resync(t, c, client.Resync{Server: be1, List: poor.own(), AsOf: asOf(t, c, be1)})
	if !r.Equal || r.Different != 2 || r.Effects[client.Changed] != 2 {
		t.Errorf("a poor list that changed: got %+v", r)
	}
	f := facts(t, c, be1)["user.u3.f1"]
	if f.SpecialUse != `\Sent` || f.Partition != "default" || f.MailboxID == "" || f.ACL != "anyone\tlr\t" {
		t.Errorf("what was not stated: got %+v", f)
	}
}

// Without a revision nothing is changed and nothing taken back.
func TestResyncWithoutRevision(t *testing.T) {
	c := newClient(t)
	l := users(40)
	resync(t, c, client.Resync{Server: be1, List: l.own(), AsOf: asOf(t, c, be1)})
	if _, err := c.Retract(t.Context(), client.Retract{Mailbox: "user.u1.f1", Server: be1}); err != nil {
		t.Fatal(err)
	}
	old := maps.Clone(l)
	delete(l, "user.u1.f1")
	delete(old, "user.u2")
	old["user.u2.new"] = stated("default", 1)
	old["user.u3"] = stated("old", 30)
	r := resync(t, c, client.Resync{Server: be1, List: old.own()})
	// The one that was retracted may have been so after the dump.
	if r.Lacking != 2 || r.Waiting != 2 || r.Extra+r.Different != 0 || r.Effects[client.Added] != 1 || r.Effects[client.NotSince] != 1 || r.Confirmed {
		t.Errorf("got %+v", r)
	}
	l["user.u2.new"] = old["user.u2.new"]
	checkSame(t, c, be1, l)
}

// Another backend's list is refused before it is a thousand forks.
func TestResyncForeign(t *testing.T) {
	c := newClient(t)
	l := users(100)
	resync(t, c, client.Resync{Server: be1, List: l.own(), AsOf: asOf(t, c, be1)})
	_, err := c.Resync(t.Context(), client.Resync{Server: be2, List: l.own(), AsOf: asOf(t, c, be2)})
	if !errors.Is(err, client.ErrForeign) {
		t.Errorf("got %v, want ErrForeign", err)
	}
	checkSame(t, c, be2, nil)
	r := resync(t, c, client.Resync{Server: be2, List: l.own(), AsOf: asOf(t, c, be2), AllowForks: true})
	if r.Effects[client.Forked] != 100 || !r.Equal {
		t.Errorf("allowed: got %+v", r)
	}
	// And they go again when the right list comes.
	mine := backendList{"user.mine": stated("default", 1)}
	r = resync(t, c, client.Resync{Server: be2, List: mine.own(), AsOf: asOf(t, c, be2), Withdraw: true})
	if r.Effects[client.Removed] != 100 || !r.Equal {
		t.Errorf("again: got %+v", r)
	}
}

func TestResyncRefuses(t *testing.T) {
	c := newClient(t)
	twice := func(yield func(client.Own, error) bool) {
		for range 2 {
			if !yield(client.Own{Mailbox: "user.alice", Statement: stated("default", 1)}, nil) {
				return
			}
		}
	}
	if _, err := c.Resync(t.Context(), client.Resync{Server: be1, List: twice, AsOf: asOf(t, c, be1)}); !errors.Is(err, directory.ErrInvalid) {
		t.Errorf("twice: got %v, want ErrInvalid", err)
	}
	broken := errors.New("broken")
	breaks := func(yield func(client.Own, error) bool) { yield(client.Own{}, broken) }
	if _, err := c.Resync(t.Context(), client.Resync{Server: be1, List: breaks, AsOf: asOf(t, c, be1)}); !errors.Is(err, broken) {
		t.Errorf("a list that breaks: got %v", err)
	}
	if _, err := c.Resync(t.Context(), client.Resync{Server: be1, List: users(1).own(), AsOf: []byte("no token")}); !errors.Is(err, client.ErrInvalidToken) {
		t.Errorf("no token: got %v, want ErrInvalidToken", err)
	}
	checkSame(t, c, be1, nil)
}

// A big tree that is no user's lies in one bucket; what is asked of it is a part.
func TestResyncManyInOneBucket(t *testing.T) {
	s := servertest.New(t)
	var w wire
	c, err := client.Dial([]string{"n1"}, w.dialer(s.DialMemory))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	l := make(backendList)
	for i := range 5000 {
		l[directory.MailboxName(fmt.Sprintf("shared.list%d", i))] = stated("default", i)
	}
	resync(t, c, client.Resync{Server: be1, List: l.own(), AsOf: asOf(t, c, be1)})
	l["shared.list77"] = stated("spool2", 77)
	delete(l, "shared.list99")
	l["shared.more"] = stated("default", 1)
	token := asOf(t, c, be1)
	before := w.total()
	r := resync(t, c, client.Resync{Server: be1, List: l.own(), AsOf: token})
	if r.Lacking != 1 || r.Different != 1 || r.Extra != 1 || !r.Equal {
		t.Errorf("got %+v", r)
	}
	t.Logf("3 differences in a tree of 5,000: %d octets", w.total()-before)
	if n := w.total() - before; n > 50<<10 {
		t.Errorf("3 differences in a tree of 5,000: %d octets on the wire, want less than 50 KiB", n)
	}
	checkSame(t, c, be1, l)
}

// The model: what a resync leaves is what a naive comparison of two lists would, with
// live statements between its steps, of which a dump knows nothing.
func TestResyncModel(t *testing.T) {
	for seed := range uint64(30) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { resyncModel(t, seed) })
	}
}

func resyncModel(t *testing.T, seed uint64) {
	c := newClient(t)
	rng := rand.New(rand.NewPCG(seed, 1))
	live := rng.IntN(2) == 0
	names := func() directory.MailboxName {
		u := rng.IntN(12)
		switch rng.IntN(4) {
		case 0:
			return directory.MailboxName(fmt.Sprintf("user.u%d", u))
		case 1:
			return directory.MailboxName(fmt.Sprintf("shared.s%d", u))
		case 2:
			return directory.MailboxName(fmt.Sprintf("example.com!user.u%d.f%d", u, rng.IntN(4)))
		}
		return directory.MailboxName(fmt.Sprintf("user.u%d.f%d", u, rng.IntN(4)))
	}
	statement := func() directory.Statement {
		st := stated(fmt.Sprintf("p%d", rng.IntN(2)), rng.IntN(3))
		for _, field := range []func(){
			func() { st.Partition = "" }, func() { st.MailboxID = nil }, func() { st.UIDValidity = nil },
			func() { st.SpecialUse = nil }, func() { st.Type = nil }, func() { st.ACL = nil },
		} {
			if rng.IntN(8) == 0 {
				field()
			}
		}
		return st
	}
	tell := func(op client.Op) client.Effect {
		t.Helper()
		results, err := c.Batch(t.Context(), []client.Op{op})
		if err == nil {
			err = results[0].Err
		}
		if err != nil {
			t.Fatal(err)
		}
		return results[0].Effect
	}

	// What the backend holds, and what the directory heard of that long ago.
	holds := make(backendList)
	for range 60 {
		name, st := names(), statement()
		switch rng.IntN(4) {
		case 0:
			holds[name] = st
		case 1:
			tell(client.Assert{Mailbox: name, Server: be1, Statement: st})
		default:
			holds[name] = st
			tell(client.Assert{Mailbox: name, Server: be1, Statement: st})
		}
		if rng.IntN(10) == 0 {
			tell(client.Retract{Mailbox: name, Server: be1})
		}
	}
	token := asOf(t, c, be1)
	dump := maps.Clone(holds)
	since := make(map[directory.MailboxName]bool) // changed after the token

	change := func() {
		name := names()
		if rng.IntN(2) == 0 {
			st := statement()
			tell(client.Assert{Mailbox: name, Server: be1, Statement: st})
			f := facts(t, c, be1)[name]
			holds[name] = directory.Statement{Partition: f.Partition, ACL: &f.ACL, MailboxID: &f.MailboxID, UIDValidity: &f.UIDValidity, Type: &f.Type, SpecialUse: &f.SpecialUse}
		} else {
			delete(holds, name)
			if tell(client.Retract{Mailbox: name, Server: be1}) == client.NotHeld && !since[name] {
				return // it leaves no trace: to the directory nothing changed
			}
		}
		since[name] = true
	}
	for range rng.IntN(5) {
		change()
	}
	left := rng.IntN(20)
	r := client.Resync{Server: be1, List: dump.own(), AsOf: token, Withdraw: true, Live: live}
	if live {
		r.List = func(yield func(client.Own, error) bool) { maps.Clone(holds).own()(yield) }
	}
	r.Progress = func(client.ResyncProgress) {
		if left > 0 && rng.IntN(2) == 0 {
			left--
			change()
		}
	}
	out := resync(t, c, r)
	if live {
		// Once it is quiet, one more has the whole.
		r.Progress = nil
		if out = resync(t, c, r); !out.Equal || !out.Confirmed {
			t.Errorf("live, quiet: got %+v", out)
		}
		checkSame(t, c, be1, holds)
		return
	}
	if !out.Settled && !out.Equal || !out.Confirmed {
		t.Errorf("got %+v", out)
	}
	have := facts(t, c, be1)
	for name := range since {
		f, ok := have[name]
		st, holds := holds[name]
		if ok != holds || ok && !same(f, st) {
			t.Errorf("%s changed during the resync: the directory has %t, %+v; the backend holds %t, %+v", name, ok, f, holds, st)
		}
		delete(have, name)
		delete(dump, name)
	}
	for name, st := range dump {
		if f, ok := have[name]; !ok || !same(f, st) {
			t.Errorf("%s: the directory has %t, %+v; the list says %+v", name, ok, f, st)
		}
		delete(have, name)
	}
	for name := range have {
		t.Errorf("%s: the directory has it, the list does not", name)
	}
}
