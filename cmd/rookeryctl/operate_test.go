package main

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
)

func someStatus(change func(*survey)) *survey {
	s := &survey{majority: true, Status: client.Status{
		Answer:    client.Answer{Revision: 40, Incarnation: 1, Node: "n1"},
		ClusterID: "c0ffee", Wall: time.UnixMilli(1795386102000), Complete: true, BackendsConfirmed: 2, BackendsCounted: 2,
		Counts: client.Counts{Mailboxes: 206, Listed: 200, Inboxes: 16, Postings: 56}, Leader: "n1", Version: "v1", FormatVersion: 1, ClusterVersion: 1,
		Warnings: []string{"admission is open"}, AdmissionOpen: true, AppliedIndex: 90, CommitIndex: 90, Term: 4,
		Nodes: []client.Node{
			{
				Name: "n1", ID: 17, ClientAddress: "127.0.0.1:7905", PeerAddress: "127.0.0.1:7906", Voter: true, Leader: true, Site: "east", Version: "v1",
				Applied: 90, Match: 90, Active: true, FileBytes: 5 << 30, UsedBytes: 3 << 30, FreeBytes: 700 << 30, Verified: true,
			},
			{Name: "n2", ID: 18, Voter: true, Heard: client.AgeUnknown, Trails: client.TrailsUnknown},
		},
	}}
	if change != nil {
		change(s)
	}
	s.nodes = append([]member{{Node: s.Nodes[0], self: &s.Status}, {Node: s.Nodes[1]}}, s.nodes...)
	s.problems = s.findProblems(false)
	return s
}

func TestHeadline(t *testing.T) {
	for _, tt := range []struct {
		change func(*survey)
		want   string
	}{
		{nil, "healthy"},
		{func(s *survey) { s.Complete, s.BackendsConfirmed, s.BackendsCounted = false, 0, 0 }, "healthy"},
		{func(s *survey) { s.Complete, s.BackendsConfirmed = false, 1 }, "degraded: incomplete: 1 of 2 backends confirmed"},
		{func(s *survey) {
			s.Complete, s.Recovering, s.BackendsConfirmed, s.BackendsCounted, s.Counts.Forked = false, true, 7, 9, 1
		}, "RECOVERING 7/9 backends confirmed; 1 fork"},
		{func(s *survey) { s.majority = false }, "degraded: no leader: writes wait, and reads but for --stale"},
		{func(s *survey) { s.Leader = "" }, "degraded: no leader: writes wait, and reads but for --stale"},
		{func(s *survey) { s.NodeProblems = []string{"n2 was last heard 12s ago", "n4 waits to join"} }, "degraded: n2 was last heard 12s ago; n4 waits to join"},
		{func(s *survey) { s.ReadOnly = true }, "degraded: read-only: nothing may grow"},
		{func(s *survey) {
			s.GrowthRefused = "the disks of n1, n2 are nearly full"
			s.Alarms = []client.Alarm{{Kind: directory.AlarmNoSpace, Node: "n1"}, {Kind: directory.AlarmNoSpace, Node: "n2"}}
		}, "degraded: growth is refused; alarm nospace of n1; alarm nospace of n2"},
		{func(s *survey) { s.Health = &client.NodeHealth{ReadOnly: "no space left on device"} }, "degraded: n1 is read-only and shows an old state: no space left on device"},
		{func(s *survey) { s.Counts.Forked, s.Counts.Held = 2, 1 }, "degraded: 2 forks; 1 fact held by the withdrawal guard"},
		{func(s *survey) { s.NotAdmitted = []directory.BackendName{"be8", "be9"} }, "degraded: not admitted: be8, be9"},
		{func(s *survey) {
			s.majority = false
			s.NodeProblems = []string{"n4 was last heard 12s ago", "n5 was never heard since this node was started", "no majority: of 3 voters 2 must answer; n1 alone answers"}
			s.nodes = []member{{Node: client.Node{Name: "n4"}, endpoint: "h:4", err: errors.New("connection refused")}}
		}, "degraded: no majority: of 3 voters 2 must answer; n1 alone answers; no leader: writes wait, and reads but for --stale; n4 (h:4) does not answer: connection refused; n5 was never heard since this node was started"},
		{func(s *survey) { s.nodes = []member{{endpoint: "h:1", err: errors.New("connection refused")}} }, "degraded: h:1 does not answer: connection refused"},
		{func(s *survey) {
			s.nodes = []member{{endpoint: "h:1", self: &client.Status{ClusterID: "beef"}}}
		}, "degraded: h:1 belongs to another cluster, beef"},
	} {
		if got := someStatus(tt.change).headline(); got != tt.want {
			t.Errorf("got  %q\nwant %q", got, tt.want)
		}
	}
}

func TestStatus(t *testing.T) {
	s := someStatus(func(s *survey) {
		s.Missing = []directory.BackendName{"be9"}
		s.Alarms = []client.Alarm{{Kind: directory.AlarmNoSpace, Node: "n2", Why: "1 MiB is left", By: "node:n2", Age: time.Minute, Wall: time.UnixMilli(1795386042000), Voter: true, Voters: 3}}
		s.Health = &client.NodeHealth{
			Compared: new(time.Second), Verdict: client.VerdictSame, Differs: []client.StateDifference{{Node: "n2", ID: 18, Index: 89}}, Scrubbed: new(3 * time.Hour),
			FreeBytes: 5 << 30, TotalBytes: 50 << 30, LowBytes: 1 << 30,
		}
		s.Sweeps = []client.Sweep{{Kind: "admit", Server: "be2", After: "user.m"}}
		s.Waiting = []client.Node{{Name: "n4", ID: 0x4f, PeerAddress: "10.0.0.4:7906", Trails: client.TrailsUnknown, Heard: 600 * time.Millisecond}}
		s.nodes = []member{{endpoint: "10.0.0.3:7905", err: errors.New("the connection was reset")}}
	})
	golden(t, "status.txt", printed(t, formatTable, func(a *app) error { return a.tellStatus(s) }))
	golden(t, "status.json", printed(t, formatJSON, func(a *app) error { return a.document(statusOf(s)) }))
}

func TestBackends(t *testing.T) {
	backends := []client.Backend{
		{
			Name: "be1", ID: 1, Group: "g1", Primary: true, Addresses: []directory.Address{{Service: "imap", IP: "10.0.0.1", Port: 143}}, Weight: 100, Admitted: true,
			State: directory.BackendActive, StateAge: time.Hour, ConfirmedBy: directory.ByImport, Confirmed: true, ConfirmedAge: time.Minute, Facts: 12, Counted: 11,
		},
		{Name: "be2", ID: 2, Group: "g1", State: directory.BackendDraining, ConfirmedBy: directory.ByResync, Held: true},
		{Name: "be3", ID: 3, Group: "be3", State: directory.BackendDown},
	}
	golden(t, "backends.txt", printed(t, formatTable, func(a *app) error { return a.tellBackends(backends) }))
	golden(t, "backends.json", printed(t, formatJSON, func(a *app) error { return a.tellBackends(backends) }))
	if got := printed(t, formatTable, func(a *app) error { return a.tellBackends(nil) }); got != "no backend is known yet\n" {
		t.Errorf("without backends: got %q", got)
	}
}

func TestGroups(t *testing.T) {
	g := *someExplanation().group
	g.Hold = &client.Hold{Kind: directory.HoldGroup, Key: "g1", Remaining: time.Minute, Why: "moving house"}
	golden(t, "groups.txt", printed(t, formatTable, func(a *app) error {
		if err := a.tellGroups([]client.Group{g, {Name: "be3", Members: []directory.BackendName{"be3"}, Primary: "be3", Epoch: 1, Mode: directory.ModeAutomatic, Own: true}}); err != nil {
			return err
		}
		return a.tellHistory(g)
	}))
	golden(t, "groups.json", printed(t, formatJSON, func(a *app) error { return a.document(groupOf(g)) }))
}

func TestObstacle(t *testing.T) {
	plan := client.Plan{Group: "g1", From: "be1", To: "be2", Epoch: 3, FromCount: 10, ToCount: 10, Equal: true}
	for _, tt := range []struct {
		name   string
		change func(*client.Plan)
		epoch  uint64
		accept bool
		want   string // "" for none
	}{
		{"equal", func(p *client.Plan) {}, 0, false, ""},
		{"the epoch seen", func(p *client.Plan) {}, 3, false, ""},
		{"an old epoch", func(p *client.Plan) {}, 2, false, "the epoch of g1 is 3, not 2"},
		{"no member", func(p *client.Plan) { p.Refusal = "directory: not a member: be2 is no member of g1" }, 0, true, "refused: not a member: be2 is no member of g1"},
		{"missing", func(p *client.Plan) { p.Equal, p.MissingCount = false, 1 }, 0, false, "be2 lacks 1 mailbox of be1's"},
		{"missing, accepted", func(p *client.Plan) { p.Equal, p.MissingCount = false, 1 }, 0, true, ""},
		{"more", func(p *client.Plan) { p.Equal, p.ExtraCount = false, 2 }, 0, false, "be2 has 2 more"},
		{"the primary itself", func(p *client.Plan) { p.Equal, p.To = false, "be1" }, 0, false, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := plan
			tt.change(&p)
			err := obstacle(p, tt.epoch, tt.accept)
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q in it", err, tt.want)
			}
		})
	}
}

func TestPlan(t *testing.T) {
	p := client.Plan{
		Group: "g1", From: "be1", To: "be2", Epoch: 3, FromCount: 1200, ToCount: 1199, MissingCount: 3, ExtraCount: 2, Truncated: true,
		Missing: []directory.MailboxName{"user.a", "user.b"}, Extra: []directory.MailboxName{"user.x", "user.y"},
	}
	golden(t, "plan.txt", printed(t, formatTable, func(a *app) error { return a.tellPlan(p) }))
}

func TestCheck(t *testing.T) {
	findings := []client.CheckEvent{
		{Kind: "posting", Mailbox: "user.a", Detail: "there is none for alice"},
		{Kind: "stale-copy", Mailbox: "user.b", Detail: "be2 has a copy", Advisory: true},
	}
	sum := client.CheckSummary{Answer: client.Answer{Node: "n1", Revision: 9}, Mailboxes: 3, Facts: 4, Postings: 1, Faults: 1, Advisories: 5}
	golden(t, "check.txt", printed(t, formatTable, func(a *app) error { return a.tellCheck(findings, sum) }))
}

// Every setting can be named as it is printed, and its own value set.
func TestSettings(t *testing.T) {
	values := directory.DefaultSettings()
	values.DefaultDomain = "example.org"
	seen := make(map[string]bool)
	for _, s := range settingsKnown() {
		for _, name := range []string{s.name, strings.ReplaceAll(s.name, "-", "_")} {
			if found, err := settingNamed(name); err != nil || found.name != s.name {
				t.Errorf("%s: got %q, %v", name, found.name, err)
			}
		}
		var change client.SettingsChange
		v := s.value(values)
		text := fmt.Sprint(words(v))
		if err := s.set(&change, text); err != nil {
			t.Errorf("%s=%s: %v", s.name, text, err)
		}
		if change == (client.SettingsChange{}) {
			t.Errorf("%s=%s changes nothing", s.name, text)
		}
		field, _ := s.jsonField(values)
		if seen[field] {
			t.Errorf("two settings are %s in JSON", field)
		}
		seen[field] = true
	}
	var change client.SettingsChange
	for setting, bad := range map[string]string{"read-only": "maybe", "guard-count": "4294967296", "guard-percent": "-1", "log-keep": "x", "reserve-grace": "-1s", "guard-window": "10"} {
		s, err := settingNamed(setting)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.set(&change, bad); err == nil {
			t.Errorf("%s=%s: got no error", setting, bad)
		}
	}
}

func TestMan(t *testing.T) {
	root := (&app{reach: newReach(nil)}).root(func(string) string { return "" })
	for _, name := range []string{"list", "hold", "output"} {
		cmd, _, err := root.Find([]string{name})
		if err != nil {
			t.Fatal(err)
		}
		golden(t, "rookeryctl-"+name+".1", manPage(cmd))
	}
	dir := t.TempDir() + "/man1"
	stdout, stderr, code := command(t, "man", dir)
	if code != exitOK || !strings.Contains(stdout, "man pages written to "+dir) {
		t.Errorf("got exit code %d, output %q, error %q", code, stdout, stderr)
	}
}

func TestRoff(t *testing.T) {
	for in, want := range map[string]string{".TH": `\&.TH`, `a\b-c'd`: `a\eb\-c\(aqd`, "'x": `\(aqx`, "^~`": `\(ha\(ti\(ga`} {
		if got := roff(in); got != want {
			t.Errorf("roff(%q): got %q, want %q", in, got, want)
		}
	}
}
