package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rookery-mail/rookery/directory/machine"
	"github.com/rookery-mail/rookery/raftstore"
	"github.com/rookery-mail/rookery/raftstore/snap"
	"github.com/rookery-mail/rookery/server"
)

// A snapshot of another shard is none for this one.
func TestRestoreOfAnotherShard(t *testing.T) {
	rules := machine.New()
	s, err := raftstore.Open(raftstore.Config{Dir: t.TempDir(), Name: "n1", Shard: 2, Machine: server.Applied(rules), MmapSize: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := server.Begin(t.Context(), s, rules); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if _, err := s.Snapshot(t.Context(), &b); err != nil {
		t.Fatal(err)
	}
	path, data := filepath.Join(t.TempDir(), "two.snap"), filepath.Join(t.TempDir(), "data")
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	_, stderr, code := command(t, "snapshot", "restore", path, "--data", data, "--name", "n1")
	if code != exitRefused || !strings.Contains(stderr, "it is of shard 2, not 1") {
		t.Errorf("got %d, %s", code, stderr)
	}
	if _, err := os.Stat(filepath.Join(data, "shard-1")); err == nil {
		t.Error("a directory was left")
	}
	stdout, stderr, code := command(t, "snapshot", "status", path)
	if code != exitOK || !strings.Contains(stdout, "shard 2,") {
		t.Errorf("status: got %d, %s%s", code, stdout, stderr)
	}
}

func TestLastCommand(t *testing.T) {
	if lastCommand(0) != "" || lastCommand(time.Date(2026, 11, 26, 1, 2, 3, 0, time.UTC).UnixMilli()) != "2026-11-26T01:02:03Z" {
		t.Error("the last command's time is wrong")
	}
}

// A file is named once.
func TestBadSnapshot(t *testing.T) {
	for _, err := range []error{
		fmt.Errorf("flip.snap: %w: the block fails its checksum", snap.ErrCorrupt),
		fmt.Errorf("raftstore: restore flip.snap: %w", fmt.Errorf("flip.snap: %w: the block fails its checksum", snap.ErrCorrupt)),
	} {
		want := "flip.snap cannot be used: corrupt: the block fails its checksum; take another snapshot, or another copy of this one"
		if got := badSnapshot("flip.snap", err).Error(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
