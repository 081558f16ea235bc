//go:build upgrade

package upgrade

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

var makeRelease = flag.String("upgrade.make", "", "make the data directory of this release in testdata, with its own programs")

// TestMakeRelease makes testdata/NAME.tar.gz (see doc.go).
func TestMakeRelease(t *testing.T) {
	if *makeRelease == "" {
		return // `make testdata-release RELEASE=v0.3.0` asks for one
	}
	name, source := *makeRelease, *makeRelease
	if !slices.ContainsFunc(Releases(), func(r Release) bool { return r.Name == name }) {
		source = Present // the release that is about to be
	}
	p := build(t, source)
	p.name = name
	dir := t.TempDir()
	n := newNode(t, "n1")
	n.data = filepath.Join(dir, "data")
	if name == "v0.2.0" {
		n.flags = nil // it has no --ballast
	}
	n.start(p)
	n.ready()
	nodes := []*node{n}
	cyrus := filepath.Join(root(t), "testdata", "cyrus")
	for _, args := range [][]string{
		{"import", "cyrus", "--server", "be1.murder.test", filepath.Join(cyrus, "cyrus-3.6.1-be1.json")},
		{"import", "cyrus", "--server", "be2.murder.test", filepath.Join(cyrus, "cyrus-3.6.1-be2.json")},
		{"backends", "set", "be1.murder.test", "--address", "imap=10.0.0.11:143/start", "--address", "lmtp=10.0.0.11:24", "--weight", "50"},
		{"backends", "set", "be3.murder.test", "--create"},
		{"backends", "confirm", "be3.murder.test"},
		{"groups", "set", "g1", "--members", "be1.murder.test,be3.murder.test"},
		{"assert", "user.kept", "--server", "be1.murder.test", "--partition", "default", "--acl", "kept lrswipkxtecdan anyone lrs", "--id", "u1", "--uidvalidity", "17"},
		{"assert", "user.kept", "--server", "be3.murder.test", "--partition", "p3", "--acl", "kept lrswipkxtecdan anyone lrs", "--id", "u1", "--uidvalidity", "17"},
		{"assert", "user.kept.Sent", "--server", "be1.murder.test", "--special-use", `\Sent`, "--acl", "kept lrswipkxtecdan"},
		{"assert", "user.kept.Sent", "--server", "be3.murder.test", "--special-use", `\Sent`, "--acl", "kept lrswipkxtecdan"},
		{"assert", "user.forked", "--server", "be1.murder.test", "--id", "u2", "--acl", "forked lrswipkxtecdan"},
		{"assert", "user.forked", "--server", "be2.murder.test", "--id", "u3", "--acl", "forked lrswipkxtecdan"},
		{"assert", "user.moving", "--server", "be2.murder.test", "--acl", "moving lrswipkxtecdan"},
		{"deactivate", "user.moving", "--server", "be2.murder.test"},
		{"assert", "user.gone", "--server", "be2.murder.test", "--acl", "gone lrswipkxtecdan"},
		{"retract", "user.gone", "--server", "be2.murder.test"},
		{"subscribe", "--user", "kept", "user.kept.Sent"},
		{"hold", "user", "held", "--for", "24h", "--why", "a test"},
		{"settings", "set", "guard-count=700"},
	} {
		must(t, p, nodes, args...)
	}
	if source == Present {
		must(t, p, nodes, "backends", "set", "be2.murder.test", "--state", "full")
	}
	// Into the state file, and on after a restart.
	n.stop()
	n.start(p)
	n.ready()
	must(t, p, nodes, "switchover", "g1", "--to", "be3.murder.test", "--accept-missing")
	must(t, p, nodes, "reserve", "user.claimed", "--server", "be3.murder.test")
	must(t, p, nodes, "check")
	export := must(t, p, nodes, "export", "cyrus")
	if err := os.WriteFile(filepath.Join(dir, "export.json"), []byte(export), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, code := ctl(t, p, nodes, "snapshot", "save", filepath.Join(dir, "n1.snap")); code != 0 {
		if name != "v0.2.0" { // it has no such command
			t.Fatalf("snapshot save: exit code %d\n%s", code, out)
		}
	}
	// What follows is in the log alone, for the node is killed.
	must(t, p, nodes, "subscribe", "--user", "kept", "user.kept")
	n.kill()
	var archive bytes.Buffer
	if err := Pack(&archive, dir); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join("testdata", name+".tar.gz")
	if err := errors.Join(os.MkdirAll("testdata", 0o755), os.WriteFile(path, archive.Bytes(), 0o644)); err != nil {
		t.Fatal(err)
	}
	t.Logf("%s: %d octets; `go test ./internal/upgrade -update` writes what is found in it", path, archive.Len())
}

// TestExportAlike: what each release's own program exported is what the present one
// exports from the same data.
func TestExportAlike(t *testing.T) {
	p := build(t, Present)
	for _, name := range fixtures() {
		dir := unpack(t, name)
		n := newNode(t, "n1")
		n.data = filepath.Join(dir, "data")
		n.start(p)
		n.ready()
		want, err := os.ReadFile(filepath.Join(dir, "export.json"))
		if err != nil {
			t.Fatal(err)
		}
		if got := must(t, p, []*node{n}, "export", "cyrus"); got != string(want) {
			t.Errorf("%s: exported is\n%s\nits own program exported\n%s", name, got, want)
		}
		must(t, p, []*node{n}, "check")
		n.stop()
	}
}
