package oracle

import (
	"errors"
	"strings"
	"testing"

	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/directory/machine"
	"github.com/rookery-mail/rookery/internal/kv"
)

// begun is a machine and an oracle that were told the same: two backends in a
// group, of which the first alone holds a mailbox.
func begun(t *testing.T) (*Oracle, *machine.Machine, *kv.Memory) {
	t.Helper()
	o, m := New(), machine.New()
	store := kv.NewMemory(m.Buckets()...)
	for _, op := range []machine.Op{
		machine.Init{ClusterID: "test", Incarnation: 1, DigestKey: []byte("0123456789abcdef")},
		machine.SetBackend{Server: "be1", Create: true},
		machine.SetBackend{Server: "be2", Create: true},
		machine.SetGroup{Group: "pair", Members: []directory.BackendName{"be1", "be2"}},
		machine.Assert{Mailbox: "user.alice", Server: "be1", Statement: directory.Statement{ACL: new("alice\tlr\t")}},
		machine.Tick{},
		machine.Tick{},
	} {
		got := do(t, m, store, op)
		if d := Compare(op, got, o.Do(0, machine.Command{Op: op})); d != "" {
			t.Fatalf("%s: %s", FormatOp(op), d)
		}
	}
	return o, m, store
}

func do(t *testing.T, m *machine.Machine, store *kv.Memory, op machine.Op) machine.Result {
	t.Helper()
	tx := store.Begin()
	r, err := m.Do(tx, 0, 0, machine.Command{Op: op})
	if err != nil {
		t.Fatal(err)
	}
	tx.Commit()
	return r
}

func difference(t *testing.T, o *Oracle, m *machine.Machine, store *kv.Memory) string {
	t.Helper()
	d, err := o.Difference(m, store.Snapshot())
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestDifference(t *testing.T) {
	o, m, store := begun(t)
	if d := difference(t, o, m, store); d != "" {
		t.Fatalf("told the same, and differ: %s", d)
	}
	for _, c := range []struct {
		what string // is said to differ
		op   machine.Op
	}{
		{"facts", machine.Assert{Mailbox: "user.alice", Server: "be2"}},
		{"subscriptions", machine.Subscribe{User: "alice", Mailbox: "user.alice"}},
		{"facts", machine.Retract{Mailbox: "user.alice", Server: "be1"}},
		{"holds", machine.Hold{Kind: directory.HoldUser, Key: "alice", For: 1000}},
	} {
		o, m, store := begun(t)
		do(t, m, store, c.op)
		o.Do(0, machine.Command{Op: machine.Unsubscribe{User: "bob", Mailbox: "user.bob"}})
		if d := difference(t, o, m, store); !strings.HasPrefix(d, c.what+":") {
			t.Errorf("the machine alone was told %s: got difference %q, want one of %s", FormatOp(c.op), d, c.what)
		}
	}
}

// A server that leaves a group before the sweep of its coming has come by takes along what
// was looked at meanwhile, and what was not, if it was at home before.
func TestComesAndGoes(t *testing.T) {
	for _, looked := range []bool{false, true} {
		o, m, store := begun(t)
		tell := func(op machine.Op) {
			t.Helper()
			got := do(t, m, store, op)
			if d := Compare(op, got, o.Do(0, machine.Command{Op: op})); d != "" {
				t.Fatalf("looked at: %t; %s: %s", looked, FormatOp(op), d)
			}
		}
		tell(machine.SetBackend{Server: "be3", Create: true})
		tell(machine.Assert{Mailbox: "user.carl", Server: "be3", Statement: directory.Statement{ACL: new("carl\tlr\t")}})
		tell(machine.SetGroup{Group: "pair", Members: []directory.BackendName{"be1", "be2", "be3"}, AcceptMissing: true})
		if looked {
			tell(machine.Assert{Mailbox: "user.carl", Server: "be3", Statement: directory.Statement{ACL: new("carl\tlrs\t")}})
		}
		tell(machine.SetGroup{Group: "pair", Members: []directory.BackendName{"be1", "be2"}})
		for range 20 {
			tell(machine.Tick{})
		}
		if d := difference(t, o, m, store); d != "" {
			t.Errorf("looked at: %t; they differ: %s", looked, d)
		}
	}
}

func TestCompare(t *testing.T) {
	refused := func(err error) machine.Result { return machine.Result{Revision: 3, Refused: err} }
	ok := machine.Result{Revision: 3, Effect: machine.Added}
	for _, c := range []struct {
		got, want machine.Result
		differ    bool
	}{
		{ok, ok, false},
		{ok, refused(directory.ErrExists), true},
		{refused(directory.ErrReserved), refused(directory.ErrExists), true},
		{machine.Result{Revision: 4, Effect: machine.Added}, ok, true},
		{machine.Result{Revision: 3, Effect: machine.Changed}, ok, true},
	} {
		if d := Compare(machine.Reserve{}, c.got, c.want); (d != "") != c.differ {
			t.Errorf("Compare(%s, %s) = %q, want a difference: %t", FormatResult(c.got), FormatResult(c.want), d, c.differ)
		}
	}
}

// What is missing at a member is the machine's to say while a sweep is open, and
// nothing else is.
func TestFollow(t *testing.T) {
	missing := machine.Result{Refused: directory.ErrMissingAtTarget}
	for _, c := range []struct {
		sweeping bool
		said     machine.Result
		epoch    uint64
		want     error
	}{
		{false, machine.Result{}, 1, directory.ErrMissingAtTarget},
		{true, machine.Result{}, 1, nil},
		{true, missing, 1, directory.ErrMissingAtTarget},
		{true, missing, 7, directory.ErrStaleEpoch},
	} {
		o, _, _ := begun(t)
		if c.sweeping {
			o.Do(0, machine.Command{Op: machine.SetBackend{Server: "be1", State: new(directory.BackendLost)}})
		}
		if o.Sweeping() != c.sweeping {
			t.Fatalf("Sweeping() = %t, want %t", o.Sweeping(), c.sweeping)
		}
		op := machine.SetPrimary{Group: "pair", To: "be2", Epoch: c.epoch}
		if r := o.Follow(0, machine.Command{Op: op}, c.said); !errors.Is(r.Refused, c.want) {
			t.Errorf("%+v: Follow = %s, want %v", c, FormatResult(r), c.want)
		}
	}
}
