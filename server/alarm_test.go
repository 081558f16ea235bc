package server

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/directory/machine"
	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
	"github.com/rookery-mail/rookery/raftstore"
)

// raise has a node say that something is wrong with it.
func (n *testNode) raise(t *testing.T, kind directory.AlarmKind, node string, on bool) {
	t.Helper()
	command := machine.EncodeCommand(machine.Command{By: "node:" + node, Op: machine.SetAlarm{Kind: kind, Node: node, On: on, Voter: true, Voters: 3, Why: "1 MiB is left"}})
	result, err := n.store.Propose(t.Context(), command)
	if err != nil {
		t.Fatal(err)
	}
	if r, err := machine.DecodeResult(result); err != nil || r.Refused != nil {
		t.Fatalf("alarm of %s: %+v, %v", node, r, err)
	}
}

// Growth is refused once a majority of the voters says that its disk is nearly
// full, with a text that names them; what frees and what steers passes; and an
// operator can end it.
func TestNoSpace(t *testing.T) {
	n := newTestNode(t)
	n.assert(t, be1, "user.alice", "user.bob")
	n.raise(t, directory.AlarmNoSpace, "n1", true)
	n.assert(t, be1, "user.carol")
	n.raise(t, directory.AlarmNoSpace, "n3", true)
	n.raise(t, directory.AlarmDiverged, "n2", true)

	acl := alice
	assert := func(name string) error {
		_, err := n.Assert(t.Context(), &apiv1.AssertRequest{Assert: &apiv1.Assert{Mailbox: name, Server: be1, Partition: "default", Acl: &acl}})
		return err
	}
	err := assert("user.dave")
	wantReason(t, "an assertion of a new mailbox", err, apiv1.Reason_REASON_READ_ONLY)
	for _, word := range []string{"n1, n3", "ballast", "rookeryctl alarm list"} {
		if err != nil && !strings.Contains(err.Error(), word) {
			t.Errorf("the refusal %q does not say %q", err, word)
		}
	}
	if err := assert("user.alice"); err != nil {
		t.Errorf("what was asserted before: %v", err)
	}
	if _, err := n.Retract(t.Context(), &apiv1.RetractRequest{Retract: &apiv1.Retract{Mailbox: "user.bob", Server: be1}}); err != nil {
		t.Errorf("a retraction: %v", err)
	}

	list, err := n.ListAlarms(t.Context(), &apiv1.ListAlarmsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, a := range list.GetAlarms() {
		got = append(got, a.GetKind().String()+" "+a.GetNode()+" "+a.GetBy()+": "+a.GetWhy())
		if a.GetVoters() != 3 || !a.GetVoter() {
			t.Errorf("alarm: got %v", a)
		}
	}
	want := []string{"ALARM_KIND_NO_SPACE n1 node:n1: 1 MiB is left", "ALARM_KIND_NO_SPACE n3 node:n3: 1 MiB is left", "ALARM_KIND_DIVERGED n2 node:n2: 1 MiB is left"}
	if !slices.Equal(got, want) || !strings.HasPrefix(list.GetGrowthRefused(), "the disks of n1, n3 ") {
		t.Errorf("ListAlarms: got %q, growth refused: %q", got, list.GetGrowthRefused())
	}
	st, err := n.Status(t.Context(), &apiv1.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if len(st.GetAlarms()) != 3 || st.GetGrowthRefused() != list.GetGrowthRefused() || st.GetReadOnly() || st.GetHealth() != nil {
		t.Errorf("Status: got %v", st)
	}
	for _, w := range []string{"growth is refused: the disks of n1, n3 ", "the disk of n1 is nearly full: 1 MiB is left", "the state of n2 is not what the others' is: "} {
		if !slices.ContainsFunc(st.GetWarnings(), func(s string) bool { return strings.HasPrefix(s, w) }) {
			t.Errorf("no warning begins with %q: %q", w, st.GetWarnings())
		}
	}

	down, err := n.DisarmAlarm(t.Context(), &apiv1.DisarmAlarmRequest{Kind: apiv1.AlarmKind_ALARM_KIND_NO_SPACE, Node: "n3"})
	if err != nil || down.GetResult().GetEffect() != apiv1.Effect_EFFECT_REMOVED {
		t.Errorf("DisarmAlarm: got %v, %v", down, err)
	}
	if err := assert("user.dave"); err != nil {
		t.Errorf("an assertion after that: %v", err)
	}
}

// What a node knows of itself is in its status.
func TestStatusHealth(t *testing.T) {
	health := raftstore.Health{Compared: -1, Scrubbed: -1}
	n := newTestNode(t, func(cfg *Config) { cfg.Health = func() raftstore.Health { return health } })
	status := func() *apiv1.StatusResponse {
		t.Helper()
		st, err := n.Status(t.Context(), &apiv1.StatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	if h := status().GetHealth(); h == nil || h.ComparedAgeMs != nil || h.ScrubbedAgeMs != nil || h.GetVerdict() != 0 {
		t.Errorf("of a node that knows nothing: %v", h)
	}
	health = raftstore.Health{
		Compared: 2 * time.Second, Verdict: raftstore.Same, Differs: []raftstore.Difference{{Node: 7, Name: "n2", Index: 99}},
		Scrubbed: time.Hour, ScrubDone: 5, ScrubTotal: 10, FreeBytes: 1, TotalBytes: 2, LowBytes: 3, NoSpace: true, ReadOnly: "EIO", Warnings: []string{"look"},
	}
	st := status()
	h := st.GetHealth()
	if h.GetComparedAgeMs() != 2000 || h.GetVerdict() != apiv1.StateVerdict_STATE_VERDICT_SAME || len(h.GetDiffers()) != 1 || h.GetDiffers()[0].GetNode() != "n2" ||
		h.GetDiffers()[0].GetId() != 7 || h.GetDiffers()[0].GetIndex() != 99 || h.GetScrubbedAgeMs() != 3_600_000 || h.GetScrubDoneBytes() != 5 || h.GetScrubTotalBytes() != 10 ||
		h.GetFreeBytes() != 1 || h.GetTotalBytes() != 2 || h.GetLowBytes() != 3 || !h.GetNoSpace() || h.GetReadOnly() != "EIO" {
		t.Errorf("Status: health: got %v", h)
	}
	if !slices.Contains(st.GetWarnings(), "look") {
		t.Errorf("Status: warnings: got %q", st.GetWarnings())
	}
	for v := raftstore.Unknown; v <= raftstore.Odd; v++ {
		if got := strings.ToLower(strings.TrimPrefix(verdictTo(v).String(), "STATE_VERDICT_")); got != v.String() && v != raftstore.Unknown {
			t.Errorf("verdict %v: got %s", v, got)
		}
	}
}

// A node whose disk takes no writes answers who asks for no more than it has,
// and sends the others elsewhere.
func TestReadOnlyNode(t *testing.T) {
	m := machine.New()
	cfg := raftstore.Config{Dir: t.TempDir(), Name: "n1", Machine: Applied(m), MmapSize: 1 << 30}
	store, err := raftstore.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := Begin(ctx, store, m); err != nil {
		t.Fatal(err)
	}
	acl := alice
	for _, name := range []directory.MailboxName{"user.alice", "user.bob"} {
		op := machine.Assert{Mailbox: name, Server: be1, Statement: directory.Statement{Partition: "default", ACL: &acl}}
		if _, err := store.Propose(ctx, machine.EncodeCommand(machine.Command{By: "test", Op: op})); err != nil {
			t.Fatal(err)
		}
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	r, err := raftstore.OpenReadOnly(cfg, "no space left on device")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	n := newTestNode(t, func(cfg *Config) {
		cfg.Store, cfg.Machine, cfg.Health, cfg.Identity = ReadOnly(r), m, r.Health, store.Identity()
	})

	got := n.lookup(t, "user.alice", stale(0))
	if got.GetRoute().GetServer().GetName() != be1 || got.GetHeader().GetRevision() == 0 {
		t.Errorf("a stale lookup: got %v", got)
	}
	if o := n.lookup(t, "user.nobody", stale(0)).GetRoute().GetOutcome(); o == apiv1.Outcome_OUTCOME_NOT_FOUND {
		t.Errorf("a stale lookup of what is not there: got %v", o)
	}
	for _, test := range []struct {
		what string
		c    *apiv1.Consistency
		want apiv1.Reason
	}{
		{"stale with a bound", stale(1000), apiv1.Reason_REASON_TOO_STALE},
		{"at least", nil, apiv1.Reason_REASON_TOO_STALE},
		{"at least what it has", atLeast(got.GetHeader().GetToken()), apiv1.Reason_REASON_TOO_STALE},
		{"at least more", atLeast(later(t, got.GetHeader().GetToken())), apiv1.Reason_REASON_BEHIND},
		{"linearizable", linearizable, apiv1.Reason_REASON_NO_LEADER},
	} {
		_, err := n.Lookup(t.Context(), &apiv1.LookupRequest{Mailbox: "user.alice", Consistency: test.c})
		wantReason(t, test.what, err, test.want)
	}
	_, err = n.Retract(t.Context(), &apiv1.RetractRequest{Retract: &apiv1.Retract{Mailbox: "user.bob", Server: be1}})
	wantReason(t, "a write", err, apiv1.Reason_REASON_NO_LEADER)
	if err == nil || !strings.Contains(err.Error(), "read-only: no space left on device") {
		t.Errorf("a write: %v; want it to say why", err)
	}
	st, err := n.Status(t.Context(), &apiv1.StatusRequest{Consistency: stale(0)})
	if err != nil || st.GetHealth().GetReadOnly() != "no space left on device" || len(st.GetWarnings()) == 0 {
		t.Errorf("Status: got %v, %v", st, err)
	}
}

// later is the token of somebody who saw more.
func later(t *testing.T, encoded []byte) []byte {
	t.Helper()
	seen, err := decodeToken(encoded)
	if err != nil {
		t.Fatal(err)
	}
	seen.revision += 5
	return seen.encode()
}
