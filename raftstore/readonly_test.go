package raftstore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/rookery-mail/rookery/internal/kv"
)

// TestOpenReadOnly: it shows what was flushed, changes nothing in the
// directory, keeps others off, and gives the directory back.
func TestOpenReadOnly(t *testing.T) {
	cfg := testConfig(t)
	s := open(t, cfg)
	for i := range 50 {
		propose(t, s, fmt.Sprintf("put k%d v%d", i, i))
	}
	if _, err := OpenReadOnly(cfg, "test"); !errors.Is(err, ErrLocked) {
		t.Errorf("while it is open: %v, want ErrLocked", err)
	}
	applied, _ := s.Sum() // Status may not have heard of the last one yet
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	before := fileTimes(t, cfg.Dir)
	r, err := OpenReadOnly(cfg, "the disk is full")
	if err != nil {
		t.Fatal(err)
	}
	if !r.state.db.IsReadOnly() {
		t.Error("the state file was opened to be written")
	}
	if _, err := Open(cfg); !errors.Is(err, ErrLocked) {
		t.Errorf("Open beside it: %v, want ErrLocked", err)
	}
	v, err := r.Read()
	if err != nil {
		t.Fatal(err)
	}
	if got := string(v.Get(rowsBucket, []byte("k7"))); got != "v7" {
		t.Errorf("k7 is %q", got)
	}
	if _, known := v.Age(); known || v.Applied() != applied {
		t.Errorf("age known %v, applied %d, want %d", known, v.Applied(), applied)
	}
	v.Release()
	if err := r.Refusal(); !errors.Is(err, ErrNoLeader) {
		t.Errorf("refusal: %v", err)
	}
	if st := r.Status(); st.Name != "n1" || st.Leader != 0 || len(st.Members) != 1 || st.Members[0].Learner || st.Applied != applied {
		t.Errorf("status: %+v", st)
	}
	if h := r.Health(); h.ReadOnly != "the disk is full" || len(h.Warnings) != 1 || h.FreeBytes == 0 {
		t.Errorf("health: %+v", h)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Read(); !errors.Is(err, ErrClosed) {
		t.Errorf("Read after Close: %v", err)
	}
	for path, was := range before {
		if now := fileTimes(t, cfg.Dir)[path]; now != was {
			t.Errorf("%s was written", path)
		}
	}
	s = open(t, cfg)
	if got := get(t, s, "k7"); got != "v7" {
		t.Errorf("opened again, k7 is %q", got)
	}
}

// fileTimes is when each file below dir was written last.
func fileTimes(t *testing.T, dir string) map[string]time.Time {
	t.Helper()
	times := map[string]time.Time{}
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		times[path] = info.ModTime()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return times
}

// moreBuckets is a machine of a later release.
type moreBuckets struct{ testMachine }

func (moreBuckets) Buckets() []kv.Bucket {
	return append(testMachine{}.Buckets(), "later")
}

// TestOpenReadOnlyRefuses what must not be served, and takes what can be.
func TestOpenReadOnlyRefuses(t *testing.T) {
	cfg := testConfig(t)
	if _, err := OpenReadOnly(cfg, "test"); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a directory that is not there: %v", err)
	}
	s := open(t, cfg)
	propose(t, s, "put k v")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	other := cfg
	other.Name = "n2"
	if _, err := OpenReadOnly(other, "test"); !errors.Is(err, ErrIdentity) {
		t.Errorf("another node's: %v", err)
	}
	later := cfg
	later.Machine = moreBuckets{}
	r, err := OpenReadOnly(later, "test")
	if err != nil {
		t.Fatal(err)
	}
	v, err := r.Read()
	if err != nil {
		t.Fatal(err)
	}
	if k, _ := v.Iterate("later").Seek(nil); k != nil || v.Get("later", []byte("k")) != nil {
		t.Error("a bucket that is missing is not empty")
	}
	v.Release()
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if err := askReseed(cfg.shardDir(), "n2 has another state"); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenReadOnly(cfg, "test"); !errors.Is(err, ErrDiverged) {
		t.Errorf("a state that is to be replaced: %v", err)
	}
}
