package upgrade

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/directory/machine"
	"github.com/rookery-mail/rookery/internal/kv"
	"github.com/rookery-mail/rookery/raftstore"
	"github.com/rookery-mail/rookery/server"
)

var update = flag.Bool("update", false, "write what was found to the golden files of testdata")

// fixtures are whose data directories there are: of every release, and one that the
// code made which first wrote cluster version 2.
func fixtures() (all []string) {
	for _, r := range Releases() {
		all = append(all, r.Name)
	}
	return append(all, "v0.4.0")
}

// unpack returns the files of a release in a directory of the test's own.
func unpack(t *testing.T, name string) string {
	t.Helper()
	f, err := os.Open(filepath.Join("testdata", name+".tar.gz"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	dir := t.TempDir()
	if err := Unpack(f, dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

// opened is the store of a data directory, and its rules.
type opened struct {
	*raftstore.Store
	rules *machine.Machine
}

// open opens a data directory as rookeryd does.
func open(t *testing.T, data string) opened {
	t.Helper()
	rules := machine.New()
	s, err := raftstore.Open(raftstore.Config{Dir: data, Name: "n1", Machine: server.Applied(rules), MmapSize: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := server.Begin(ctx, s, rules); err != nil {
		t.Fatal(err)
	}
	return opened{s, rules}
}

// view returns all that was committed.
func (o opened) view(t *testing.T) *raftstore.View {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	v, err := o.Read(ctx, raftstore.Linearizable)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.Release)
	return v
}

// TestReleases opens the data directory of every release. Facts, LIST, digests and
// check are as they were when it was first opened.
func TestReleases(t *testing.T) {
	for _, name := range fixtures() {
		t.Run(name, func(t *testing.T) {
			o := open(t, filepath.Join(unpack(t, name), "data"))
			golden(t, name, describe(t, o.rules, o.view(t)))
			// And it takes writes.
			answer, err := o.Propose(t.Context(), machine.EncodeCommand(machine.Command{
				Client: "upgraded", Sequence: 1, Op: machine.Assert{Mailbox: "user.new", Server: "be1.murder.test"},
			}))
			if err != nil {
				t.Fatal(err)
			}
			if r, err := machine.DecodeResult(answer); err != nil || r.Refused != nil || r.Effect != machine.Added {
				t.Errorf("a write afterwards: got %v, %v", r, err)
			}
		})
	}
}

// TestReleaseBackups restores the snapshot of every release that could save one.
func TestReleaseBackups(t *testing.T) {
	for _, name := range fixtures() {
		dir := unpack(t, name)
		path := filepath.Join(dir, "n1.snap")
		if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) && name == "v0.2.0" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			data := t.TempDir()
			id, err := raftstore.Restore(raftstore.Config{Dir: data, Name: "n1", Machine: server.Applied(machine.New())}, path, 0)
			if err != nil {
				t.Fatal(err)
			}
			o := open(t, data)
			st, err := o.rules.Status(o.view(t))
			if err != nil || st.Incarnation != 2 || st.ClusterID != id.Cluster.String() || st.Version != versionOf(name) || !st.Settings.AutomationPaused {
				t.Errorf("restored: got %+v, %v", st, err)
			}
			// Once nothing is swept any more, all is there but what a restore drops.
			until(t, time.Minute, "the sweeps to end", func() bool {
				v, err := o.Read(t.Context(), raftstore.Local)
				if err != nil {
					t.Fatal(err)
				}
				defer v.Release()
				st, err := o.rules.Status(v)
				return err == nil && len(st.Sweeps) == 0
			})
			golden(t, name+"-restored", describe(t, o.rules, o.view(t)))
		})
	}
}

func versionOf(name string) uint32 {
	if name < "v0.4.0" {
		return 1
	}
	return 2
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s: got\n%s\nwant\n%s", path, got, want)
	}
}

// describe is what is in a state, as text.
func describe(t *testing.T, m *machine.Machine, r kv.Reader) string {
	t.Helper()
	var b strings.Builder
	say := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(m.Verify(r))
	st, err := m.Status(r)
	check(err)
	revision := fmt.Sprint(st.Revision)
	if lives := st.Revision >> 32; lives > 0 {
		revision = fmt.Sprintf("%d<<32 and some", lives) // how many ticks the sweeps took is the clock's to say
	}
	say("incarnation %d, cluster version %d, revision %s, complete %t, missing %v", st.Incarnation, st.Version, revision, st.Complete, st.Missing)
	say("settings: guard-count=%d admission-open=%t automation-paused=%t", st.Settings.GuardCount, st.Settings.AdmissionOpen, st.Settings.AutomationPaused)
	say("counts: mailboxes %d listed %d inboxes %d forked %d reservations %d held %d subscriptions %d postings %d deactivated %d",
		st.Mailboxes, st.Listed, st.Inboxes, st.Forked, st.Reservations, st.Held, st.Subscriptions, st.Postings, st.Deactivated)
	backends, err := m.Backends(r, "")
	check(err)
	raw, err := machine.ReadRaw(r)
	check(err)
	server := map[directory.ServerID]directory.BackendName{}
	for _, x := range backends {
		server[x.ID] = x.Name
		d := raw.Totals[x.ID]
		say("backend %s id=%d group=%s primary=%t state=%s weight=%d admitted=%t confirmed=%s,%t addresses=%v", x.Name, x.ID, x.GroupName, x.Primary, x.State, x.Weight, x.Admitted, x.Confirmed, x.Confirm, x.Addresses)
		say("  digest count=%d counted=%d names=%x facts=%x", d.Count, d.Counted, d.Names, d.Facts)
	}
	groups, err := m.Groups(r, "")
	check(err)
	for _, g := range groups {
		var members []string
		for _, s := range g.Members {
			members = append(members, string(server[s]))
		}
		say("group %s members=%s primary=%s epoch=%d mode=%d own=%t history=%d", g.Name, strings.Join(members, ","), server[g.Primary], g.Epoch, g.Mode, g.Own, len(g.History))
	}
	holds, _, err := m.Holds(r)
	check(err)
	for _, h := range holds {
		say("hold %s %s: %s (%s)", h.Kind, h.Key, h.Why, h.By)
	}
	outcomes := map[directory.Outcome]int{}
	for _, mb := range raw.Mailboxes {
		answer, err := m.Lookup(r, mb.Name, true)
		check(err)
		outcomes[answer.Outcome]++
		if !shown(mb.Name) {
			continue
		}
		say("mailbox %s: %s", mb.Name, answer.Outcome)
		for _, f := range mb.Facts {
			say("  %s %s,%s partition=%q acl=%q id=%q uidvalidity=%d type=%d special=%q first=%d last=%d incarnation=%d",
				server[f.Server], f.State, f.Standing, f.Partition, f.ACL, f.MailboxID, f.UIDValidity, f.Type, f.SpecialUse, f.First, f.Last, f.Incarnation)
		}
	}
	for _, x := range raw.Reservations {
		say("reservation %s by %s", x.Name, server[x.Server])
	}
	for _, x := range raw.Tombstones {
		say("tombstone %s", x.Name)
	}
	for _, x := range raw.Subs {
		say("subscription %s", x)
	}
	for _, u := range []string{"alice", "kept", "mallory", "nobody"} {
		p, err := directory.ParsePrincipal(u, nil, false)
		check(err)
		say("LIST of %s", u)
		_, err = m.List(r, machine.ListQuery{Principal: p, Namespace: directory.Namespace{Sep: '.'}, Patterns: []string{"*"}}, func(row *machine.ListRow) error {
			say("  %s", row.IMAP('.'))
			return nil
		})
		check(err)
	}
	for _, o := range slices.Sorted(maps.Keys(outcomes)) {
		say("%d mailboxes answer %s", outcomes[o], o)
	}
	findings := map[string]int{}
	check(m.Check(r, nil, func(f machine.Finding) error {
		findings[fmt.Sprint(f.Kind)]++
		return nil
	}))
	for _, kind := range slices.Sorted(maps.Keys(findings)) {
		say("check: %d %s", findings[kind], kind)
	}
	return b.String()
}

// shown tells which mailboxes are written down fact by fact; the digests and the
// counts stand for the others.
func shown(name directory.MailboxName) bool {
	for _, part := range []string{"user.kept", "user.forked", "user.moving", "user.erin.a", "shared", "&"} {
		if strings.Contains(string(name), part) {
			return true
		}
	}
	return false
}

func until(t *testing.T, patience time.Duration, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if done() {
			return
		}
	}
	t.Fatalf("waited %s for %s", patience, what)
}
