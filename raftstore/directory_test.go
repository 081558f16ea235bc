package raftstore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

func lock(t *testing.T, dir string) *Directory {
	t.Helper()
	d, err := Lock(dir, 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// TestBirth: an id belongs to a disk, until a shard was made under it.
func TestBirth(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	d := lock(t, dir)
	id := d.Birth()
	if id == 0 || !d.Empty() {
		t.Fatalf("a new directory: empty %t, id %x", d.Empty(), id)
	}
	if _, err := Lock(dir, 1); !errors.Is(err, ErrLocked) {
		t.Errorf("a second Lock: got %v, want ErrLocked", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	d = lock(t, dir)
	if d.Birth() != id {
		t.Errorf("the same disk: got id %x, want %x", d.Birth(), id)
	}
	cfg := testConfig(t)
	cfg.Dir, cfg.Directory = dir, d
	cfg.Initial = []Member{{Name: "n1", ID: id}}
	s := open(t, cfg)
	if got := s.Identity().Node; got != id {
		t.Errorf("the node's id: got %x, want %x", got, id)
	}
	if _, err := Lock(dir, 1); !errors.Is(err, ErrLocked) {
		t.Errorf("Lock while the store is open: got %v, want ErrLocked", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	d = lock(t, dir)
	if d.Empty() || d.Birth() != 0 {
		t.Errorf("a directory in use: empty %t, id %x; want neither", d.Empty(), d.Birth())
	}
	d.Close()
	// The shard is lost, the file is not: the id must not come back.
	if err := os.RemoveAll(filepath.Join(dir, "shard-1")); err != nil {
		t.Fatal(err)
	}
	if d = lock(t, dir); d.Birth() == id || d.Birth() == 0 {
		t.Errorf("after the shard was lost: id %x, want another than %x", d.Birth(), id)
	}
	d.Close()
	if err := os.WriteFile(filepath.Join(dir, "birth"), []byte("zero\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Lock(dir, 1); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a damaged birth file: got %v, want ErrCorrupt", err)
	}
}

// TestBirthOutlivesAFailedFounding: the others may have founded the cluster with the id
// already, so it stays the disk's until its shard is there; and a shard that is there has
// used it before it is opened.
func TestBirthOutlivesAFailedFounding(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	d := lock(t, dir)
	id := d.Birth()
	cfg := testConfig(t)
	cfg.Dir, cfg.Directory, cfg.Shard = dir, d, 1
	cfg.Initial = []Member{{Name: "n1", ID: id}}
	// What stands in the way is what a power cut does: the name is not there afterwards.
	if err := os.MkdirAll(filepath.Join(dir, "shard-1", "in the way"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := bootstrap(cfg); err == nil {
		t.Fatal("bootstrap over a directory: no error")
	}
	if err := os.RemoveAll(filepath.Join(dir, "shard-1")); err != nil {
		t.Fatal(err)
	}
	d.Close()
	if d = lock(t, dir); d.Birth() != id {
		t.Errorf("after a founding that was cut off: id %x, want %x", d.Birth(), id)
	}
	// The shard is there, and the power went before that was noted.
	cfg.Directory = d
	if err := bootstrap(cfg); err != nil {
		t.Fatal(err)
	}
	if err := writeBirth(dir, fmt.Sprintf("%016x\n", id)); err != nil {
		t.Fatal(err)
	}
	d.Close()
	cfg.Directory = lock(t, dir)
	s := open(t, cfg)
	if got := s.Identity().Node; got != id {
		t.Errorf("the node's id: got %x, want %x", got, id)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(dir, "shard-1")); err != nil {
		t.Fatal(err)
	}
	if d = lock(t, dir); d.Birth() == id {
		t.Errorf("after the shard was lost: id %x again", id)
	}
}

// TestInitialIDs: an initial list keeps the ids it has, and the cluster's id
// depends on them.
func TestInitialIDs(t *testing.T) {
	list := func(ids ...uint64) (l []Member) {
		for i, id := range ids {
			l = append(l, Member{Name: string(rune('a' + i)), ID: id})
		}
		return l
	}
	first, members, err := initialCluster("", list(7, 0, 9))
	if err != nil || members[0].ID != 7 || members[1].ID == 0 || members[2].ID != 9 {
		t.Errorf("got %+v, %v; want 7, drawn, 9", members, err)
	}
	if second, _, _ := initialCluster("", list(7, 0, 8)); second == first {
		t.Error("two clusters of different disks have the same id")
	}
}

// TestJoin: a node that joins has a directory and nothing in it, and is nobody.
func TestJoin(t *testing.T) {
	cfg := testConfig(t)
	cfg.Join = &Joining{Cluster: ClusterID{5}, Incarnation: 3, Node: 77}
	for range 2 {
		s, err := Open(cfg)
		if err != nil {
			t.Fatal(err)
		}
		st := s.Status()
		want := Identity{Cluster: ClusterID{5}, Incarnation: 3, Shard: 1, Node: 77}
		if st.Identity != want || len(st.Voters)+len(st.Members) != 0 || st.Applied != 0 {
			t.Errorf("got %+v, want %v without members or state", st, want)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		cfg.Join = nil // as the directory is there
	}
}
