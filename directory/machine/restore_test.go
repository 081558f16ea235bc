package machine_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/directory/machine"
	"github.com/rookery-mail/rookery/internal/kv"
)

// countingTx counts what a command writes.
type countingTx struct {
	kv.Tx
	writes int
}

func (c *countingTx) Put(b kv.Bucket, key, value []byte) { c.writes++; c.Tx.Put(b, key, value) }

func (c *countingTx) Delete(b kv.Bucket, key []byte) { c.writes++; c.Tx.Delete(b, key) }

// counted applies c and returns how many rows it wrote.
func (w *world) counted(op machine.Op) (machine.Result, int) {
	w.t.Helper()
	tx := w.store.Begin()
	counting := &countingTx{Tx: tx}
	r, err := w.m.Do(counting, 0, 0, machine.Command{By: "directory", Op: op})
	if err != nil {
		w.t.Fatal(err)
	}
	tx.Commit()
	return r, counting.writes
}

// However much there is to drop, the command that begins a life is short, and so are
// those that follow; what is dropped does not count from the first of them on.
func TestRestoreIsBounded(t *testing.T) {
	const many = 1700 // three steps of a sweep, and some
	w := newWorld(t)
	w.run("init\nbackend be1 create\nbackend be2 create\nconfirm be1\nconfirm be2")
	forks := func(i int) directory.MailboxName { return directory.MailboxName(fmt.Sprintf("user.f%05d", i)) }
	claims := func(i int) directory.MailboxName { return directory.MailboxName(fmt.Sprintf("user.c%05d", i)) }
	var b machine.Batch
	for i := range many {
		b.Ops = append(b.Ops, machine.Assert{Mailbox: forks(i), Server: "be1"}, machine.Assert{Mailbox: forks(i), Server: "be2"},
			machine.Reserve{Mailbox: claims(i), Server: "be1"})
	}
	w.apply(0, machine.Command{By: "test", Op: b})
	before := readRaw(t, w)
	if len(before.Forks) != many || len(before.Reservations) != many {
		t.Fatalf("%d forks, %d reservations, want %d", len(before.Forks), len(before.Reservations), many)
	}
	r, writes := w.counted(restoreTo(2))
	if r.Refused != nil || writes > 30 {
		t.Errorf("Restore wrote %d rows, %v", writes, r.Refused)
	}
	w.check()
	look := func(i int) {
		t.Helper()
		a, err := w.m.LookupMany(w.store.Snapshot(), []directory.MailboxName{forks(i), claims(i)}, true)
		if err != nil {
			t.Fatal(err)
		}
		if a[0].Outcome != directory.Unconfirmed || a[0].Route.Forked {
			t.Errorf("%s: got %s, forked %t", a[0].Name, a[0].Outcome, a[0].Route.Forked)
		}
		if a[1].Outcome != directory.Incomplete || a[1].Reservation != nil {
			t.Errorf("%s: got %s, %+v", a[1].Name, a[1].Outcome, a[1].Reservation)
		}
	}
	ticks := 0
	for readRaw(t, w).Sweeps > 0 {
		if ticks++; ticks > 100 {
			t.Fatal("a hundred ticks did not end the sweeps")
		}
		look(0)
		look(many - 1)
		// A claim of this life over a row of that one stands, whatever is swept.
		if ticks == 2 {
			w.run("confirm be1\nconfirm be2\nreserve be2 user.c01000")
		}
		if _, writes := w.counted(machine.Tick{}); writes > 15_000 {
			t.Errorf("tick %d wrote %d rows", ticks, writes)
		}
		if ticks == 2 {
			break
		}
		if ticks%3 == 0 {
			w.check()
		}
	}
	for readRaw(t, w).Sweeps > 0 {
		if ticks++; ticks > 100 {
			t.Fatal("a hundred ticks did not end the sweeps")
		}
		w.counted(machine.Tick{})
	}
	w.check()
	after := readRaw(t, w)
	if len(after.Reservations) != 1 || after.Reservations[0].Name != "user.c01000" {
		t.Errorf("reservations: got %+v, want the one of this life", after.Reservations)
	}
	// Both backends are confirmed, so both sides of the forks are: they are forks again.
	if len(after.Forks) != many {
		t.Errorf("%d forks, want %d", len(after.Forks), many)
	}
	for _, c := range after.Log {
		if c.Revision < r.Revision {
			t.Fatalf("a change of revision %d is left, this life began at %d", c.Revision, r.Revision)
		}
	}
}

// A life that cannot follow the present one is refused, and changes nothing.
func TestRestoreRefused(t *testing.T) {
	w := newWorld(t)
	tx := w.store.Begin()
	r, err := w.m.Do(tx, 0, 0, machine.Command{Op: restoreTo(2)})
	tx.Discard()
	if err != nil || !errors.Is(r.Refused, directory.ErrBusy) {
		t.Errorf("before there is a cluster: got %v, %v", r, err)
	}
	w.run("init\nrestore 3")
	for _, op := range []machine.Restore{{ClusterID: "other", Incarnation: 3}, {ClusterID: "test3", Incarnation: 2}} {
		if r := w.apply(0, machine.Command{Op: op}); !errors.Is(r.Refused, directory.ErrInvalid) {
			t.Errorf("%+v: got %v", op, r)
		}
	}
	for _, op := range []machine.Restore{{Incarnation: 4}, {ClusterID: "test4"}} {
		tx := w.store.Begin()
		if _, err := w.m.Do(tx, 0, 0, machine.Command{Op: op}); err == nil {
			t.Errorf("%+v passed", op)
		}
		tx.Discard()
	}
}
