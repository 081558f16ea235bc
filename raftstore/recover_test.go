package raftstore

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Two of three nodes are gone, and with them the majority. What the third has, also
// what it could not know to be committed, is the new cluster's.
func TestRecover(t *testing.T) {
	cfg := testConfig(t)
	cfg.Initial = []Member{{Name: "n1", Context: []byte("addr1")}}
	s := open(t, cfg)
	propose(t, s, "put a 1")
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := s.ChangeMembers(ctx, Change{Member: Member{ID: 77, Name: "n2"}}); err != nil {
		t.Fatalf("ChangeMembers: %v", err)
	}
	short, cancelShort := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancelShort()
	if _, err := s.Propose(short, []byte("put b 2")); err == nil {
		t.Fatal("one node of two committed")
	}
	was := s.Identity()

	if _, _, err := Recover(cfg); !errors.Is(err, ErrLocked) {
		t.Errorf("Recover of a running node: got %v, want ErrLocked", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	old, id, err := Recover(cfg)
	if err != nil {
		t.Fatalf("Recover: %v", err)
	}
	if old != was || id.Cluster == was.Cluster || id.Incarnation != 2 || id.Node == was.Node || id.Shard != 1 {
		t.Errorf("recovered %v as %v, it was %v", old, id, was)
	}
	r := open(t, cfg)
	propose(t, r, "put c 3")
	for key, want := range map[string]string{"a": "1", "b": "2", "c": "3"} {
		if got := get(t, r, key); got != want {
			t.Errorf("%s: got %q, want %q", key, got, want)
		}
	}
	if st := r.Status(); len(st.Members) != 1 || st.Members[0].ID != id.Node || string(st.Members[0].Context) != "addr1" {
		t.Errorf("members: %+v", st.Members)
	}
	if _, err := os.Stat(cfg.shardDir() + ".incarnation-1"); err != nil {
		t.Errorf("the directory of before: %v", err)
	}
}

// A crash between the two renames leaves no directory, and no new cluster is begun.
func TestRecoverCutShort(t *testing.T) {
	cfg := testConfig(t)
	s := open(t, cfg)
	propose(t, s, "put a 1")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	_, id, err := Recover(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(cfg.shardDir(), cfg.shardDir()+nextSuffix); err != nil {
		t.Fatal(err)
	}
	r := open(t, cfg)
	if got := r.Identity(); got != id {
		t.Errorf("got %v, want %v", got, id)
	}
	if got := get(t, r, "a"); got != "1" {
		t.Errorf("got %q, want 1", got)
	}
}

func TestRecoverRefuses(t *testing.T) {
	cfg := testConfig(t)
	if _, _, err := Recover(cfg); err == nil || !strings.Contains(err.Error(), "there is no") {
		t.Errorf("no directory: got %v", err)
	}
	if files, _ := filepath.Glob(filepath.Join(cfg.Dir, "*")); len(files) != 0 {
		t.Errorf("it made %v", files)
	}
	if err := open(t, cfg).Close(); err != nil {
		t.Fatal(err)
	}
	cfg.Name = "n9"
	if _, _, err := Recover(cfg); !errors.Is(err, ErrIdentity) {
		t.Errorf("another name: got %v, want ErrIdentity", err)
	}
}
