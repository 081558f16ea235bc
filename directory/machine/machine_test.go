package machine

import (
	"errors"
	"testing"

	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/internal/kv"
)

// A write that overtakes the command which begins the cluster must neither be
// done nor stop the node, nor keep the cluster from beginning.
func TestBeforeInit(t *testing.T) {
	m := New()
	db := kv.NewMemory(m.Buckets()...)
	do := func(op Op) Result {
		t.Helper()
		tx := db.Begin()
		r, err := m.Do(tx, 1, 0, Command{Op: op})
		if err != nil {
			t.Fatalf("%T: %v", op, err)
		}
		tx.Commit()
		return r
	}
	if r := do(Assert{Mailbox: "user.early", Server: "be1"}); !errors.Is(r.Refused, directory.ErrBusy) || r.Revision != 0 {
		t.Errorf("assert before Init: got revision %d, %v, want none, ErrBusy", r.Revision, r.Refused)
	}
	if r := do(Init{ClusterID: "c", Incarnation: 1, DigestKey: make([]byte, 16)}); r.Effect != Added || r.Revision != 1 {
		t.Errorf("Init: got %v at revision %d, want Added at 1", r.Effect, r.Revision)
	}
	if r := do(Assert{Mailbox: "user.early", Server: "be1"}); r.Effect != Added || r.Revision != 2 {
		t.Errorf("assert after Init: got %v at revision %d, want Added at 2", r.Effect, r.Revision)
	}
}
