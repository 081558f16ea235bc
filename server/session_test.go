package server

import (
	"bytes"
	"math"
	"testing"
	"time"

	"github.com/rookery-mail/rookery/directory"
	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
	"github.com/rookery-mail/rookery/raftstore"
)

func TestToken(t *testing.T) {
	for _, want := range []token{
		{cluster: "c", incarnation: 1, shard: 1},
		{cluster: "0123456789abcdef0123456789abcdef", incarnation: math.MaxUint32, shard: 7, revision: math.MaxUint64},
	} {
		b := want.encode()
		if got, err := decodeToken(b); err != nil || got != want {
			t.Errorf("decode %x: got %+v, %v, want %+v", b, got, err, want)
		}
		for i := range b {
			bent := bytes.Clone(b)
			bent[i] ^= 0x10
			if got, err := decodeToken(bent); err == nil {
				t.Errorf("octet %d of %x changed: got %+v, want an error", i, b, got)
			}
			if got, err := decodeToken(b[:i]); err == nil {
				t.Errorf("cut after %d octets: got %+v, want an error", i, got)
			}
		}
	}
}

func FuzzToken(f *testing.F) {
	f.Add([]byte(nil))
	f.Add(token{cluster: "c", incarnation: 1, shard: 1, revision: 5}.encode())
	f.Add([]byte{tokenVersion, 255})
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := decodeToken(b)
		if err == nil && !bytes.Equal(got.encode(), b) {
			t.Errorf("decode %x: got %+v, which encodes to %x", b, got, got.encode())
		}
	})
}

func TestConsistency(t *testing.T) {
	n := newTestNode(t)
	n.assert(t, be1, "user.alice")
	seen := n.lookup(t, "user.alice", nil).GetHeader()
	now, err := decodeToken(seen.GetToken())
	if err != nil {
		t.Fatalf("the token of an answer: %v", err)
	}
	if uint64(now.revision) != seen.GetRevision() || uint32(now.incarnation) != seen.GetIncarnation() || now.shard != 1 {
		t.Fatalf("the token of an answer: got %+v, want what its header says: %v", now, seen)
	}
	other := func(f func(*token)) []byte {
		t := now
		f(&t)
		return t.encode()
	}
	future := other(func(t *token) { t.revision += 100 })
	for _, test := range []struct {
		name string
		bend func(*bentStore)
		c    *apiv1.Consistency
		want apiv1.Reason // UNSPECIFIED: answered
		age  uint64       // of the answer
	}{
		{"nothing said", nil, nil, 0, 0},
		{"own token", nil, atLeast(seen.GetToken()), 0, 0},
		{"token of the future", nil, atLeast(future), apiv1.Reason_REASON_BEHIND, 0},
		{"token of the future, linearizable", nil, &apiv1.Consistency{Mode: linearizable.Mode, Token: future}, 0, 0},
		{"token of the future, stale", nil, &apiv1.Consistency{Mode: stale(0).Mode, Token: future}, 0, 0},
		{"no token", nil, atLeast([]byte("x")), apiv1.Reason_REASON_INVALID_TOKEN, 0},
		{"no token, stale", nil, &apiv1.Consistency{Mode: stale(0).Mode, Token: []byte("x")}, apiv1.Reason_REASON_INVALID_TOKEN, 0},
		{"another shard", nil, atLeast(other(func(t *token) { t.shard = 2 })), apiv1.Reason_REASON_INVALID_TOKEN, 0},
		{"another cluster", nil, atLeast(other(func(t *token) { t.cluster = "c" })), apiv1.Reason_REASON_WRONG_INCARNATION, 0},
		{"later life", nil, atLeast(other(func(t *token) { t.incarnation++ })), apiv1.Reason_REASON_WRONG_INCARNATION, 0},
		{"later life, far revision", nil, atLeast(other(func(t *token) { t.incarnation++; t.revision += 1 << 32 })), apiv1.Reason_REASON_WRONG_INCARNATION, 0},
		{"earlier life, linearizable", nil, &apiv1.Consistency{Mode: linearizable.Mode, Token: other(func(t *token) { t.incarnation = 0 })}, apiv1.Reason_REASON_WRONG_INCARNATION, 0},
		{"unknown mode", nil, &apiv1.Consistency{Mode: 99}, apiv1.Reason_REASON_INVALID, 0},
		{"old", func(b *bentStore) { b.age = 11 * time.Second }, nil, apiv1.Reason_REASON_TOO_STALE, 0},
		{"old enough", func(b *bentStore) { b.age = 9*time.Second + 1 }, nil, 0, 9001},
		{"older than asked", func(b *bentStore) { b.age = 20 * time.Millisecond }, &apiv1.Consistency{MaxAgeMs: 10}, apiv1.Reason_REASON_TOO_STALE, 0},
		{"age not known", func(b *bentStore) { b.age = -1 }, nil, apiv1.Reason_REASON_TOO_STALE, 0},
		{"stale, any age", func(b *bentStore) { b.age = -1 }, stale(0), 0, math.MaxUint64},
		{"stale, bounded", func(b *bentStore) { b.age = time.Minute }, stale(1000), apiv1.Reason_REASON_TOO_STALE, 0},
		{"stale, bounded, age not known", func(b *bentStore) { b.age = -1 }, stale(1000), apiv1.Reason_REASON_TOO_STALE, 0},
		{"stale without a majority", func(b *bentStore) { b.linearizable, b.age = raftstore.ErrNoLeader, time.Hour }, stale(0), 0, 3600_000},
		{"linearizable without a majority", func(b *bentStore) { b.linearizable = raftstore.ErrNoLeader }, linearizable, apiv1.Reason_REASON_NO_LEADER, 0},
		{"linearizable, old view", func(b *bentStore) { b.age = time.Hour }, linearizable, 0, 0},
		{"closed", func(b *bentStore) { b.linearizable = raftstore.ErrClosed }, linearizable, apiv1.Reason_REASON_CLOSED, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			bend := bentStore{Store: n.store.Store}
			if test.bend != nil {
				test.bend(&bend)
			}
			*n.store = bend
			resp, err := n.Lookup(t.Context(), &apiv1.LookupRequest{Consistency: test.c, Mailbox: "user.alice"})
			if test.want != 0 {
				wantReason(t, "Lookup", err, test.want)
				return
			}
			if err != nil {
				t.Fatalf("Lookup: %v", err)
			}
			// A single voter knows no older state: its age is 0.
			if got := resp.GetHeader().GetAgeMs(); got != test.age {
				t.Errorf("age: got %d, want %d", got, test.age)
			}
			if got := resp.GetHeader().GetNode(); got != "n1" {
				t.Errorf("node: got %q, want n1", got)
			}
		})
	}
}

func TestReadYourWrites(t *testing.T) {
	n := newTestNode(t)
	acl := alice
	for range 50 {
		w, err := n.Assert(t.Context(), &apiv1.AssertRequest{Assert: &apiv1.Assert{Mailbox: "user.alice", Server: be1, Partition: "p", Acl: &acl}})
		if err != nil {
			t.Fatal(err)
		}
		r := n.lookup(t, "user.alice", atLeast(w.GetHeader().GetToken()))
		if r.GetHeader().GetRevision() < w.GetHeader().GetRevision() {
			t.Fatalf("read revision %d after write %d", r.GetHeader().GetRevision(), w.GetHeader().GetRevision())
		}
		if got, want := facts(r.GetRoute()), be1; len(got) != 1 || got[0] != want {
			t.Fatalf("facts: got %v, want %s", got, want)
		}
	}
}

// Absence is a claim about the world, and needs the whole cluster.
func TestNegative(t *testing.T) {
	n := newTestNode(t)
	ask := func(c *apiv1.Consistency) (single, many, user *apiv1.Route, rights *apiv1.RightsResponse) {
		t.Helper()
		ctx := t.Context()
		many1, err := n.LookupMany(ctx, &apiv1.LookupManyRequest{Consistency: c, Mailboxes: []string{"user.alice", "user.nobody"}})
		if err != nil {
			t.Fatal(err)
		}
		user1, err := n.LookupUser(ctx, &apiv1.LookupUserRequest{Consistency: c, User: "nobody"})
		if err != nil {
			t.Fatal(err)
		}
		rights, err = n.Rights(ctx, &apiv1.RightsRequest{Consistency: c, User: "alice", Name: &apiv1.RightsRequest_Mailbox{Mailbox: "user.nobody"}})
		if err != nil {
			t.Fatal(err)
		}
		return n.lookup(t, "user.nobody", c).GetRoute(), many1.GetRoutes()[1], user1.GetRoute(), rights
	}
	check := func(what string, c *apiv1.Consistency, want apiv1.Outcome, missing int, why bool) {
		t.Helper()
		single, many, user, rights := ask(c)
		for kind, r := range map[string]*apiv1.Route{"Lookup": single, "LookupMany": many, "LookupUser": user} {
			if r.GetOutcome() != want || len(r.GetMissing()) != missing || (r.GetWhy() != "") != why || r.GetServer() != nil {
				t.Errorf("%s, %s: got %v, want %v, %d missing, a reason: %v", what, kind, r, want, missing, why)
			}
		}
		if rights.GetOutcome() != want || rights.GetVisible() || rights.GetRights() != "" {
			t.Errorf("%s, Rights: got %v, want %v and no rights", what, rights, want)
		}
	}
	check("nobody admitted", nil, apiv1.Outcome_OUTCOME_INCOMPLETE, 0, false)
	n.assert(t, be1, "user.alice")
	check("not confirmed", nil, apiv1.Outcome_OUTCOME_INCOMPLETE, 1, false)
	n.confirm(t, be1)
	check("complete", nil, apiv1.Outcome_OUTCOME_NOT_FOUND, 0, false)
	check("complete, stale", stale(0), apiv1.Outcome_OUTCOME_NOT_FOUND, 0, false)
	n.store.unverified = true
	check("not verified", nil, apiv1.Outcome_OUTCOME_UNCONFIRMED, 0, true)
	n.store.unverified = false
	n.store.linearizable = raftstore.ErrNoLeader
	check("no majority", nil, apiv1.Outcome_OUTCOME_UNCONFIRMED, 0, true)
	check("no majority, stale", stale(0), apiv1.Outcome_OUTCOME_UNCONFIRMED, 0, true)
	// What is there is still told, also beside what is not.
	if got := n.lookup(t, "user.alice", nil).GetRoute().GetOutcome(); got != apiv1.Outcome_OUTCOME_SERVING {
		t.Errorf("without a majority, a mailbox that is there: got %v", got)
	}
	many, err := n.LookupMany(t.Context(), &apiv1.LookupManyRequest{Mailboxes: []string{"user.alice", "user.nobody"}})
	if err != nil || many.GetRoutes()[0].GetOutcome() != apiv1.Outcome_OUTCOME_SERVING || many.GetRoutes()[0].GetWhy() != "" {
		t.Errorf("beside one that is not: got %v, %v", many, err)
	}
}

// A state that another node knows to be older is not asked to say that there is nothing.
func TestNegativeLooksAgain(t *testing.T) {
	n := newTestNode(t)
	n.assert(t, be1, "user.alice")
	n.confirm(t, be1)
	before, err := n.store.Store.Local()
	if err != nil {
		t.Fatal(err)
	}
	defer before.Release()
	n.assert(t, be1, "user.new")
	n.store.Store = oldStore{n.store.Store, before}
	if got := n.lookup(t, "user.new", nil); got.GetRoute().GetOutcome() != apiv1.Outcome_OUTCOME_SERVING || got.GetHeader().GetAgeMs() != 0 {
		t.Errorf("a mailbox that only the newest state has: got %v, want SERVING, of age 0", got)
	}
}

// oldStore is a node that lags.
type oldStore struct {
	Store
	v View
}

func (o oldStore) Local() (View, error) { return keptView{o.v}, nil }

type keptView struct{ View }

func (keptView) Release()                   {}
func (keptView) Age() (time.Duration, bool) { return time.Second, true }

func TestBegunLate(t *testing.T) {
	var none identity
	n := newTestNode(t)
	n.id.Store(nil)
	v, err := n.store.Local()
	if err != nil {
		t.Fatal(err)
	}
	defer v.Release()
	if id, err := n.identity(v); err != nil || *id == none || id.incarnation != directory.Incarnation(1) {
		t.Errorf("identity: got %+v, %v, want incarnation 1 of some cluster", id, err)
	}
}
