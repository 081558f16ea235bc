package peer

import (
	"errors"
	"strings"
	"testing"
)

// A node whose release does not support the cluster's version is not let in, is not
// shown as waiting, and ends with words on both sides. A release that says nothing
// supports version 1 alone.
func TestJoinVersions(t *testing.T) {
	version := uint32(2)
	a := newEnd(t, Config{Name: "n1", Version: "v9", Versions: Versions{1, 2}, ClusterVersion: func() uint32 { return version }})
	a.Attach(newFake(1, member(1, a)), nil)
	for _, theirs := range []Versions{{}, {3, 4}} {
		b := newEnd(t, Config{Name: "n2", Birth: 22, Version: "v3", Versions: theirs})
		_, err := b.Join(t.Context(), []string{a.address}, nil)
		if !errors.Is(err, ErrVersion) || !strings.Contains(err.Error(), "the cluster's version is 2, and n2, of release v3, supports") || !strings.Contains(err.Error(), "such as v9") {
			t.Errorf("%v: got %v, want ErrVersion with both versions", theirs, err)
		}
		if len(a.Waiting()) != 0 || !strings.Contains(a.log.String(), "the cluster's version is 2") {
			t.Errorf("%v: waiting %v, log\n%s", theirs, a.Waiting(), a.log)
		}
	}
	c := newEnd(t, Config{Name: "n3", Birth: 33, Versions: Versions{2, 3}})
	go func() { _, _ = c.Join(t.Context(), []string{a.address}, nil) }() // until the test ends
	until(t, "n3 to wait", func() bool { return len(a.Waiting()) == 1 })
	if got := a.Waiting()[0].Versions; got != (Versions{2, 3}) {
		t.Errorf("waiting: got versions %v, want 2 to 3", got)
	}
}

// What a node's release supports is known as soon as it is connected.
func TestVersionsOf(t *testing.T) {
	a, b, _, _ := pair(t)
	until(t, "each to know of the other", func() bool {
		ofA, okA := b.VersionsOf(1)
		ofB, okB := a.VersionsOf(2)
		return okA && okB && ofA == firstVersions && ofB == firstVersions
	})
	if _, ok := a.VersionsOf(3); ok {
		t.Error("something is known of a node that never spoke")
	}
}
