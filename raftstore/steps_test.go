package raftstore

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/rookery-mail/rookery/raftstore/snap"
)

// A driver that steps whatever Todo names, and nothing else, gets everything done.
func TestTodoNamesEveryStep(t *testing.T) {
	b := newBench(t)
	n := b.single()
	b.ok(b.settle())
	done := propose1(n, "put a 1")
	for range 1000 {
		todo := n.Todo()
		var err error
		did := false
		core, apply := n.Wake()
		switch {
		case todo.Core || b.now >= core:
			did, err = true, n.StepCore()
		case todo.Append:
			did, err = n.StepAppend()
		case todo.Apply || b.now >= apply:
			did, err = n.StepApply()
		case todo.Flush:
			did, err = n.StepFlush()
		default:
			b.now += 10 * time.Millisecond
			continue
		}
		b.ok(err)
		if !did {
			t.Fatalf("%+v is to be done, and there was nothing to do", todo)
		}
	}
	done.want(t, "1", nil)
	if st := n.Status(); st.Flushed != st.Applied {
		t.Errorf("applied %d, flushed %d: a step was never named", st.Applied, st.Flushed)
	}
	if u := n.Usage(); u.Waiting != 0 || u.Reads != 0 || u.Queued != 0 || u.Readers != 1 || u.LogEntries == 0 {
		t.Errorf("idle, the node keeps %+v", u)
	}
}

// rowsDisk is a disk with some rows and the sum of them.
func rowsDisk(t *testing.T) *MemoryDisk {
	t.Helper()
	b := newBench(t)
	meta := testMeta(1, 1, 2, 3)
	d := NewMemoryDisk(len(testMachine{}.Buckets()), meta)
	layer := make(layer, len(testMachine{}.Buckets()))
	layer[0].Put([]byte("k"), []byte("v"))
	meta.Sum = rowHash(rowSeeds(testMachine{}.Buckets())[0], []byte("k"), []byte("v"))
	meta.Applied.Index++
	b.ok(d.Write(meta, layer))
	return d
}

func TestVerifyAndDamage(t *testing.T) {
	d := rowsDisk(t)
	if err := Verify(d, testMachine{}); err != nil {
		t.Fatalf("a good disk: %v", err)
	}
	c := d.Copy()
	if !c.Damage(rand.New(rand.NewPCG(1, 1)).IntN) {
		t.Fatal("there was no row to damage")
	}
	if err := Verify(c, testMachine{}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a flipped bit: got %v, want ErrCorrupt", err)
	}
	if err := Verify(d, testMachine{}); err != nil {
		t.Errorf("the disk that the damaged one is a copy of: %v", err)
	}
}

func TestSaveAndStageFor(t *testing.T) {
	d := rowsDisk(t)
	var out bytes.Buffer
	h, err := Save(d, &out)
	if err != nil || h.Index != d.Meta().Applied.Index {
		t.Fatalf("save: %+v, %v", h, err)
	}
	id := d.Meta().Identity
	id.Node = 2
	stage := func(id Identity, data []byte) (Staged, error) {
		r, err := snap.NewReader(bytes.NewReader(data))
		if err != nil {
			return nil, err
		}
		return StageFor(NewMemoryDisk(len(testMachine{}.Buckets()), testMeta(2, 1, 2, 3)), r, id, "n2", testMachine{})
	}
	staged, err := stage(id, out.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if m := staged.Meta(); m.Identity != id || m.Name != "n2" || m.Applied != d.Meta().Applied || m.Mark != m.Applied || m.Sum != d.Meta().Sum {
		t.Errorf("staged: %+v", m)
	}
	other := id
	other.Incarnation++
	if _, err := stage(other, out.Bytes()); !errors.Is(err, ErrIdentity) {
		t.Errorf("of another incarnation: got %v, want ErrIdentity", err)
	}
	// Rows that were changed before the snapshot was made pass every checksum of
	// the stream; the sum of the state is what finds them.
	c := d.Copy()
	c.Damage(func(n int) int { return 0 })
	out.Reset()
	if _, err := Save(c, &out); err != nil {
		t.Fatal(err)
	}
	if _, err := stage(id, out.Bytes()); !errors.Is(err, ErrCorrupt) {
		t.Errorf("of damaged rows: got %v, want ErrCorrupt", err)
	}
}

func TestRecoverAndRestoreMemory(t *testing.T) {
	d := rowsDisk(t)
	before := d.Meta()
	log := NewMemoryLog(before)
	if _, _, err := RecoverMemory(d, log.Replay(before.Mark.Index)); err == nil {
		t.Fatal("a log that lacks the last entry applied was taken")
	}
	before.Mark = before.Applied
	_ = d.Write(before, nil)
	log = NewMemoryLog(before)
	got, l, err := RecoverMemory(d, log.Replay(before.Mark.Index))
	if err != nil {
		t.Fatal(err)
	}
	m := got.Meta()
	if m.Identity.Incarnation != 2 || m.Identity.Cluster == before.Identity.Cluster || len(m.Conf.GetVoters()) != 1 || m.Sum != before.Sum {
		t.Errorf("recovered: %+v", m)
	}
	if r := l.Replay(m.Mark.Index); r == nil || checkReplay(m, r) != nil {
		t.Errorf("its log does not fit: %+v", r)
	}
	if _, _, err := RecoverMemory(got, l.Replay(m.Mark.Index)); !errors.Is(err, ErrAlone) {
		t.Errorf("once more: got %v, want ErrAlone", err)
	}
	var out bytes.Buffer
	if _, err := Save(d, &out); err != nil {
		t.Fatal(err)
	}
	r, err := snap.NewReader(&out)
	if err != nil {
		t.Fatal(err)
	}
	restored, l, err := RestoreMemory(len(testMachine{}.Buckets()), r, "n1", 7, testMachine{})
	if err != nil {
		t.Fatal(err)
	}
	if m := restored.Meta(); m.Identity.Incarnation != 7 || m.Applied != before.Applied || l.Replay(m.Mark.Index) == nil || Verify(restored, testMachine{}) != nil {
		t.Errorf("restored: %+v", m)
	}
}
