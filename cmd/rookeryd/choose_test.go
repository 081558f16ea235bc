package main

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rookery-mail/rookery/raftstore"
	"github.com/rookery-mail/rookery/raftstore/peer"
)

// TestChoose: whose state a quarantined node takes, and why it waits.
func TestChoose(t *testing.T) {
	type says struct {
		applied, index, sum uint64
		quarantined, silent bool
	}
	good := says{applied: 120, index: 100, sum: 7}
	for _, test := range []struct {
		name   string
		says   map[string]says
		leader uint64
		fail   uint64
		early  bool
		want   string // a node, or a part of the reason
	}{
		{name: "a follower", says: map[string]says{"n1": good, "n2": good}, leader: 1, want: "n2"},
		{name: "the one that is further", says: map[string]says{"n1": good, "n2": {applied: 130, index: 100, sum: 7}, "n4": good}, leader: 1, want: "n2"},
		{name: "the leader, if nobody else", says: map[string]says{"n1": good, "n2": {silent: true}}, leader: 1, want: "n1"},
		{name: "who failed comes later", says: map[string]says{"n1": good, "n2": good}, leader: 1, fail: 2, want: "n1"},
		{name: "only one, which failed", says: map[string]says{"n1": good}, fail: 1, want: "n1 is asked again later: broken off"},
		{name: "two that differ", says: map[string]says{"n1": good, "n2": {applied: 120, index: 100, sum: 8}}, want: "n1 differs from another node; n2 differs from another node"},
		{name: "the newest comparison counts", says: map[string]says{"n1": good, "n2": {applied: 120, index: 90, sum: 8}}, want: "n1"},
		{name: "a quarantined one has no say", says: map[string]says{"n1": good, "n2": {applied: 120, index: 100, sum: 8, quarantined: true}}, want: "n1"},
		{name: "not compared at first", says: map[string]says{"n1": good}, early: true, want: "n1 was not compared"},
		{name: "compared at first", says: map[string]says{"n1": good, "n2": good}, early: true, want: "n1"},
		{name: "one that agrees before one that was not compared", says: map[string]says{"n1": good, "n2": {applied: 200}, "n4": good}, want: "n1"},
		{name: "behind", says: map[string]says{"n1": {applied: 99, index: 90, sum: 7}}, want: "n1 is at index 99, this node was at 100"},
		{name: "nobody", want: "n1 is not heard; n2 is not heard; n4 is not heard"},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := newReseeder(nil, errors.New("why"), slog.New(slog.DiscardHandler))
			now := time.Now()
			r.begun = now.Add(-time.Minute)
			if test.early {
				r.begun = now
			}
			st := raftstore.Status{Identity: raftstore.Identity{Node: 3}, Applied: 100, Leader: test.leader, Members: []raftstore.Member{
				{ID: 1, Name: "n1"}, {ID: 2, Name: "n2"}, {ID: 3, Name: "n3"}, {ID: 4, Name: "n4"},
			}}
			heard := map[uint64]peer.Heard{}
			for _, m := range st.Members {
				s, ok := test.says[m.Name]
				if !ok {
					continue
				}
				a := peer.Announcement{Name: m.Name, Applied: s.applied, SumIndex: s.index, Sum: s.sum, Quarantined: s.quarantined}
				r.hear(m.ID, a)
				heard[m.ID] = peer.Heard{Announcement: a}
				if s.silent {
					heard[m.ID] = peer.Heard{Announcement: a, Since: time.Minute}
				}
			}
			if test.fail != 0 {
				r.fail(test.fail, errors.New("broken off"), now)
			}
			m, why := r.chooseOf(st, heard, now)
			if m != nil && m.Name != test.want || m == nil && !strings.Contains(why, test.want) {
				t.Errorf("got %+v, %q, want %q", m, why, test.want)
			}
		})
	}
}

// TestHearForgets: what is remembered of a node is bounded, the newest stay.
func TestHearForgets(t *testing.T) {
	r := newReseeder(nil, nil, slog.New(slog.DiscardHandler))
	for i := range uint64(3 * keptSums) {
		r.hear(1, peer.Announcement{SumIndex: i + 1, Sum: i})
	}
	if n := len(r.sums[1]); n != keptSums {
		t.Errorf("%d sums, want %d", n, keptSums)
	}
	if _, ok := r.sums[1][3*keptSums]; !ok {
		t.Error("the newest is not among them")
	}
}

// TestReseeds: a node that was re-seeded three times within an hour is not again,
// also by another process.
func TestReseeds(t *testing.T) {
	r := reseeds{filepath.Join(t.TempDir(), "reseeds")}
	now := time.Now()
	for i := range reseedsAllowed {
		if err := r.check(now); err != nil {
			t.Fatalf("after %d: %v", i, err)
		}
		if err := r.add(now); err != nil {
			t.Fatal(err)
		}
		now = now.Add(10 * time.Minute)
	}
	if err := r.check(now); err == nil || !strings.Contains(err.Error(), "3 times") {
		t.Errorf("after 3: got %v", err)
	}
	if err := r.check(now.Add(time.Hour)); err != nil {
		t.Errorf("an hour later: %v", err)
	}
	// A line that a crash cut short, and a clock that was wrong.
	if err := os.WriteFile(r.path, []byte("2020-01-02T03:04:05Z\n2099-01-01T00:00:00Z\n2026-"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := r.recent(now); err != nil || len(got) != 0 {
		t.Errorf("got %v, %v, want none", got, err)
	}
}
