package raftstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rookery-mail/rookery/raftstore/snap"
)

func TestSnapshotAndRestore(t *testing.T) {
	cfg := testConfig(t)
	cfg.Initial = []Member{{Name: "n1", Context: []byte("addr1")}}
	s := open(t, cfg)
	for i := range 200 {
		propose(t, s, fmt.Sprintf("put key%d %d", i, i))
	}
	propose(t, s, "alarm bell 3600000")
	path := filepath.Join(t.TempDir(), "a.snap")
	h, err := saveSnapshot(s, path)
	if err != nil {
		t.Fatalf("Snapshot: %v", err)
	}
	want := dump(t, s)
	id := s.Identity()
	if st := s.Status(); h.Index != st.Applied || h.Cluster != [16]byte(id.Cluster) || h.Incarnation != 1 || h.Shard != 1 {
		t.Errorf("snapshot %+v of a node with %+v", h, st)
	}
	propose(t, s, "put after snapshot")

	to := testConfig(t)
	to.Name = "n9"
	got, err := Restore(to, path, 0)
	if err != nil {
		t.Fatalf("Restore: %v", err)
	}
	if got.Cluster == id.Cluster || got.Incarnation != 2 || got.Node == id.Node || got.Shard != 1 {
		t.Errorf("restored as %v from %v: want a new cluster and node of incarnation 2", got, id)
	}
	r := open(t, to)
	if got := dump(t, r); got != want {
		t.Errorf("restored:\n%s\nwant\n%s", got, want)
	}
	if st := r.Status(); len(st.Members) != 1 || st.Members[0].Name != "n9" || string(st.Members[0].Context) != "addr1" || st.Applied < h.Index {
		t.Errorf("restored node: %+v", st)
	}
	propose(t, r, "put more 1")
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	r = open(t, to)
	if got := get(t, r, "more"); got != "1" {
		t.Errorf("after reopening the restored node: got %q, want 1", got)
	}
	if _, err := Restore(to, path, 0); !errors.Is(err, ErrLocked) {
		t.Errorf("Restore into a directory in use: got %v, want ErrLocked", err)
	}
	r.Close()
	if _, err := Restore(to, path, 0); err == nil || !strings.Contains(err.Error(), "there already") {
		t.Errorf("Restore over a directory: got %v, want to be refused", err)
	}

	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, damage := range map[string]func([]byte) []byte{
		"cut":      func(b []byte) []byte { return b[:len(b)-40] },
		"flipped":  func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
		"longer":   func(b []byte) []byte { return append(b, 0) },
		"no magic": func(b []byte) []byte { b[0] = 'x'; return b },
	} {
		bad := filepath.Join(t.TempDir(), "bad.snap")
		if err := os.WriteFile(bad, damage(append([]byte(nil), data...)), 0o600); err != nil {
			t.Fatal(err)
		}
		fresh := testConfig(t)
		if _, err := Restore(fresh, bad, 0); !errors.Is(err, snap.ErrCorrupt) {
			t.Errorf("Restore of a snapshot that is %s: got %v, want ErrCorrupt", name, err)
		}
		if left, _ := os.ReadDir(fresh.Dir); len(left) > 1 { // the lock file
			t.Errorf("Restore of a snapshot that is %s left %v", name, left)
		}
	}
	other := testConfig(t)
	other.Shard = 2
	if _, err := Restore(other, path, 0); !errors.Is(err, ErrIdentity) {
		t.Errorf("Restore as another shard: got %v, want ErrIdentity", err)
	}
}

// saveSnapshot keeps a snapshot in a file.
func saveSnapshot(s *Store, path string) (snap.Header, error) {
	f, err := os.Create(path)
	if err != nil {
		return snap.Header{}, err
	}
	h, err := s.Snapshot(context.Background(), f)
	return h, errors.Join(err, f.Close())
}

// TestSnapshotNamesItself: what a snapshot is of stands in it; a state under
// another header is refused.
func TestSnapshotNamesItself(t *testing.T) {
	cfg := testConfig(t)
	s := open(t, cfg)
	propose(t, s, "put a 1")
	path := filepath.Join(t.TempDir(), "a.snap")
	h, err := saveSnapshot(s, path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := snap.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h.Index++
	lie := filepath.Join(t.TempDir(), "lie.snap")
	if err := snap.Save(lie, h, func(w io.Writer) error {
		_, err := io.Copy(w, f.Reader)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := Restore(testConfig(t), lie, 0); !errors.Is(err, snap.ErrCorrupt) {
		t.Errorf("a header of another index: got %v, want ErrCorrupt", err)
	}
}

// TestCompaction: the log stays bounded, and what is left of it is enough.
func TestCompaction(t *testing.T) {
	cfg := testConfig(t)
	cfg.LogEntries, cfg.MarkBytes, cfg.FlushKeys = 300, 1<<20, 200
	s := open(t, cfg)
	value := strings.Repeat("x", 12_000)
	for i := range 1000 {
		propose(t, s, fmt.Sprintf("put key%d %s", i%50, value))
		if i%200 == 0 {
			flush(t, s)
		}
	}
	flush(t, s)
	propose(t, s, "put last 1")
	flush(t, s)
	want := dump(t, s)
	if n := len(s.node.core.entries.entries); n > 350 {
		t.Errorf("%d entries are kept in memory, want 350 at most", n)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(cfg.shardDir(), "wal", "*.wal"))
	if err != nil || len(files) > 6 || strings.HasSuffix(files[0], "0000000000000000-0000000000000000.wal") {
		t.Errorf("12 MB went through the log; left of its 1 MB segments are %d: %v, %v", len(files), files, err)
	}
	s = open(t, cfg)
	if got := dump(t, s); got != want {
		t.Errorf("after reopening:\n%.200s\nwant\n%.200s", got, want)
	}
	if st := s.Status(); st.Applied < 1000 {
		t.Errorf("after reopening: %+v", st)
	}
}
