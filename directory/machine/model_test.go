package machine_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/directory/machine"
	"github.com/rookery-mail/rookery/internal/oracle"
)

var (
	modelSeeds = flag.Int("model.seeds", 800, "how many random sequences TestModel plays")
	modelSeed  = flag.Uint64("model.seed", 0, "play this sequence alone")
	modelSteps = flag.Int("model.steps", 60, "commands in a sequence")
)

// TestModel plays random commands to the machine and to the oracle and
// compares what each says of every command, and now and then all that they
// keep. A sequence that differs is made as short as it gets and printed as a
// script.
func TestModel(t *testing.T) {
	first, n := uint64(1), uint64(*modelSeeds)
	if *modelSeed != 0 {
		first, n = *modelSeed, 1
	} else if testing.Short() {
		n /= 10
	}
	found := 0
	for seed := first; seed < first+n; seed++ {
		steps := generate(seed, *modelSteps)
		if difference := play(t, steps); difference != "" {
			steps, difference = shorten(t, steps)
			t.Errorf("seed %d: %s\nafter\n%s", seed, difference, script(steps))
			if found++; found >= 5 {
				return
			}
		}
	}
}

// step is one command.
type step struct {
	elapsed directory.Time
	c       machine.Command
	lazy    bool // leave open sweeps open after it
}

func script(steps []step) string {
	var b strings.Builder
	for _, s := range steps {
		if s.elapsed != 0 {
			fmt.Fprintf(&b, "wait %s\n", s.elapsed)
		}
		b.WriteString(oracle.FormatCommand(s.c) + "\n")
		if s.lazy {
			b.WriteString("# its sweep stays open\n")
		}
	}
	return b.String()
}

// play returns the first difference, or "".
func play(t testing.TB, steps []step) string {
	w, o := newWorld(t), oracle.New()
	told := new(oracle.History)
	for i, s := range steps {
		switch s.c.Op.(type) {
		case machine.SetGroup, machine.SetPrimary:
			// They compare sums, which lag behind while a sweep is open.
			if d := drain(w, o); d != "" {
				return d
			}
		}
		if _, ok := s.c.Op.(machine.Restore); ok {
			// The change log begins anew: what it is to tell it has told before.
			if d := told.Untold(o, readRaw(t, w)); d != "" {
				return fmt.Sprintf("before step %d, %s: %s", i+1, oracle.FormatCommand(s.c), d)
			}
		}
		got, want := w.apply(s.elapsed, s.c), o.Do(s.elapsed, s.c)
		if d := oracle.Compare(s.c.Op, got, want); d != "" {
			return fmt.Sprintf("step %d, %s: %s", i+1, oracle.FormatCommand(s.c), d)
		}
		if !s.lazy {
			if d := drain(w, o); d != "" {
				return d
			}
			if i%4 == 0 || i == len(steps)-1 {
				if d := compareStates(t, w, o); d != "" {
					return fmt.Sprintf("after step %d, %s: %s", i+1, oracle.FormatCommand(s.c), d)
				}
			}
		}
		if i%8 == 0 {
			if d := told.Untold(o, readRaw(t, w)); d != "" {
				return fmt.Sprintf("after step %d, %s: %s", i+1, oracle.FormatCommand(s.c), d)
			}
		}
		if d := compareRoutes(t, w, o); d != "" {
			return fmt.Sprintf("after step %d, %s: %s", i+1, oracle.FormatCommand(s.c), d)
		}
	}
	if d := drain(w, o); d != "" {
		return d
	}
	if d := compareStates(t, w, o); d != "" {
		return "at the end: " + d
	}
	return told.Untold(o, readRaw(t, w))
}

// drain ticks until no sweep is open.
func drain(w *world, o *oracle.Oracle) string {
	for range 100 {
		wait, _, err := w.m.Due(w.store.Snapshot(), 0)
		if err != nil {
			w.t.Fatal(err)
		}
		if wait != 0 {
			return ""
		}
		w.apply(0, machine.Command{Op: machine.Tick{}})
		o.Do(0, machine.Command{Op: machine.Tick{}})
	}
	return "a hundred ticks did not end what is due"
}

// shorten drops what the difference does not need.
func shorten(t testing.TB, steps []step) ([]step, string) {
	last := play(t, steps)
	for size := len(steps) / 2; size > 0; {
		dropped := false
		for at := 1; at+size <= len(steps); { // the first is Init
			trial := slices.Concat(steps[:at], steps[at+size:])
			if d := play(t, trial); d != "" {
				steps, last, dropped = trial, d, true
				continue
			}
			at += size
		}
		if !dropped || size > 1 {
			size /= 2
		}
	}
	return steps, last
}

// compareStates compares all that is kept and indexed, while no sweep is open.
func compareStates(t testing.TB, w *world, o *oracle.Oracle) string {
	if f := w.faults(); len(f) > 0 {
		return "check: " + strings.Join(f, "; ")
	}
	d, err := o.Difference(w.m, w.store.Snapshot())
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// compareRoutes asks both where every name is.
func compareRoutes(t testing.TB, w *world, o *oracle.Oracle) string {
	r := w.store.Snapshot()
	d, err := o.DifferenceOfRoutes(w.m, r, everyName)
	if err != nil {
		t.Fatal(err)
	}
	if d != "" {
		return d
	}
	// Find says of each what Lookup does.
	found, _, err := w.m.Find(r, machine.FindQuery{Limit: machine.MaxFind})
	if err != nil {
		t.Fatal(err)
	}
	for i := range found {
		a, err := w.m.Lookup(r, found[i].Name, true)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(found[i], a) {
			return fmt.Sprintf("%s: found %+v, looked up %+v", a.Name, found[i], a)
		}
	}
	return ""
}

func readRaw(t testing.TB, w *world) machine.RawIndexes {
	raw, err := machine.ReadRaw(w.store.Snapshot())
	if err != nil {
		t.Fatalf("reading the buckets: %v", err)
	}
	return raw
}

// The generator: a small world in which things meet.

var (
	users     = []string{"alice", "bob", "carol", "dave", "erin", "frank", "grace", "heidi"}
	servers   = []directory.BackendName{"be1", "be2", "be3", "be4", "be5"}
	everyName = func() (names []directory.MailboxName) {
		for _, u := range users {
			for _, f := range []string{"", ".Sent", ".Sent.old", ".Trash"} {
				names = append(names, directory.MailboxName("user."+u+f))
			}
		}
		return append(names, "shared", "shared.news", "DELETED.user.alice.5F000001", "DELETED.user.bob.5F000002",
			"example.org!user.alice", "user.alice^b", "example^org", "example^org.x", "other", "other.x", "user.zoe", "DELETED.user.carol.Sent.5F000003")
	}()
	acls = []string{
		"%s lrswipkxtecda", "%s lrswipkxtecda anyone p", "%s lrswipkxtecda bob lrs", "%s lrswipkxtecda anyone lr",
		"%s lrswipkxtecda group:staff lr -bob lr", "%s lrs carol l", "",
	}
	groupNames = []directory.GroupName{"g1", "g2", "g3", "be1", "be3"}
)

type generator struct {
	r     *rand.Rand
	names []directory.MailboxName // those this sequence uses: few, so that they meet
	seq   map[string]uint64
	// theme is what this sequence is mostly about; few is how many servers it has.
	theme theme
	few   int
}

type theme int

const (
	anything theme = iota
	guards         // a flood of retractions and assertions, decisions
	moves
	membership
	renames
	names // of backends, and holds on them
	lives // restores, and who is confirmed in them
	themes
)

func generate(seed uint64, n int) []step {
	g := &generator{r: rand.New(rand.NewPCG(seed, 1)), seq: map[string]uint64{}}
	g.theme, g.few = theme(g.r.IntN(int(themes))), 2+g.r.IntN(len(servers)-1)
	// A few neighbours.
	u := g.r.IntN(len(users) - 1)
	for _, name := range everyName {
		owner, ok := name.Owner()
		if !ok || owner == directory.UserID(users[u]) || g.r.IntN(3) == 0 && owner == directory.UserID(users[u+1]) {
			g.names = append(g.names, name)
		}
	}
	g.r.Shuffle(len(g.names), func(i, j int) { g.names[i], g.names[j] = g.names[j], g.names[i] })
	g.names = g.names[:min(len(g.names), 2+g.r.IntN(8))]
	steps := []step{{c: machine.Command{Op: machine.Init{ClusterID: "test", Incarnation: 1, DigestKey: []byte("0123456789abcdef"), Version: uint32(g.r.IntN(3))}}}}
	if g.r.IntN(2) == 0 {
		steps = append(steps, step{c: machine.Command{Op: g.settings()}})
	}
	// Most sequences begin with backends that are whole.
	if g.r.IntN(4) > 0 {
		for _, s := range servers[:2+g.r.IntN(4)] {
			steps = append(steps, step{c: machine.Command{Op: machine.SetBackend{Server: s, Create: true}}},
				step{c: machine.Command{Op: machine.Confirm{Server: s, How: directory.ByResync}}})
		}
	}
	calm := g.r.IntN(2) == 0 // few changes by operators
	for len(steps) < n {
		s := step{}
		switch g.r.IntN(20) {
		case 0:
			s.elapsed = directory.Time(g.r.IntN(120_000))
		case 1:
			s.elapsed = directory.Time(g.r.IntN(2_000_000))
		case 2:
			s.elapsed = directory.Time(g.r.IntN(20)) * 60_000
		default:
			s.elapsed = directory.Time(g.r.IntN(3)) * 100
		}
		s.lazy = g.r.IntN(6) == 0
		s.c = g.command(calm)
		steps = append(steps, s)
		if s.c.Client != "" && g.r.IntN(3) == 0 { // sent again
			steps = append(steps, step{c: s.c})
		}
	}
	return steps
}

func (g *generator) command(calm bool) machine.Command {
	c := machine.Command{By: "test", Op: g.op(calm)}
	if g.r.IntN(6) == 0 {
		c.Client = []string{"c1", "c2"}[g.r.IntN(2)]
		g.seq[c.Client]++
		c.Sequence = g.seq[c.Client]
		if c.Sequence > 2 && g.r.IntN(8) == 0 {
			c.Sequence -= 2 // a late repeat
		}
	}
	return c
}

// since is, now and then, a revision that a resync may have read.
func (g *generator) since() directory.Revision {
	if g.r.IntN(8) > 0 {
		return 0
	}
	return directory.Revision(g.r.IntN(40))
}

func (g *generator) name() directory.MailboxName { return g.names[g.r.IntN(len(g.names))] }
func (g *generator) server() directory.BackendName {
	return servers[min(g.r.IntN(g.few), g.r.IntN(g.few+1))]
}

func (g *generator) statement(name directory.MailboxName) (st directory.Statement) {
	owner := "alice"
	if u, ok := name.Owner(); ok {
		owner = string(u)
	}
	if g.r.IntN(3) > 0 {
		acl := acls[g.r.IntN(len(acls))]
		if strings.Contains(acl, "%s") {
			acl = fmt.Sprintf(acl, owner)
		}
		st.ACL = new(tabbed(acl))
	}
	if g.r.IntN(3) == 0 {
		st.Partition = []string{"default", "p2"}[g.r.IntN(2)]
	}
	if g.r.IntN(3) == 0 {
		st.MailboxID = new([]string{"id1", "id2", ""}[g.r.IntN(3)])
	}
	if g.r.IntN(10) == 0 {
		st.UIDValidity = new(uint32(g.r.IntN(2)))
	}
	if g.r.IntN(10) == 0 {
		st.Type = new([]directory.MailboxType{0, 'e', 'c'}[g.r.IntN(3)])
	}
	if g.r.IntN(10) == 0 {
		st.SpecialUse = new([]string{"", `\Sent`}[g.r.IntN(2)])
	}
	return st
}

// themed is an operation of the sequence's theme.
func (g *generator) themed() machine.Op {
	n := g.r.IntN(10)
	switch g.theme {
	case guards:
		server, name := servers[g.r.IntN(2)], g.name()
		switch {
		case n < 5:
			return machine.Retract{Mailbox: name, Server: server, Tentative: g.r.IntN(4) == 0}
		case n < 9:
			return machine.Assert{Mailbox: name, Server: server, Statement: g.statement(name)}
		}
		return machine.DecideHeld{Server: server, Approve: g.r.IntN(2) == 0}
	case moves:
		name := g.names[g.r.IntN(min(2, len(g.names)))]
		switch {
		case n < 3:
			return machine.Deactivate{Mailbox: name, Server: g.server()}
		case n < 8:
			return machine.Assert{Mailbox: name, Server: g.server(), Statement: g.statement(name), Deactivated: g.r.IntN(8) == 0, Imported: g.r.IntN(8) == 0}
		case n < 9:
			return machine.Settle{Mailbox: name, Keep: g.server()}
		}
		return machine.Retract{Mailbox: name, Server: g.server()}
	case membership:
		switch {
		case n < 4:
			op := machine.SetGroup{Group: groupNames[g.r.IntN(2)], AcceptMissing: g.r.IntN(4) > 0}
			for range 1 + g.r.IntN(3) {
				if s := g.server(); !slices.Contains(op.Members, s) {
					op.Members = append(op.Members, s)
				}
			}
			return op
		case n < 6:
			return machine.SetPrimary{Group: groupNames[g.r.IntN(2)], To: g.server(), Epoch: uint64(1 + g.r.IntN(3)), AcceptMissing: g.r.IntN(4) > 0}
		case n < 8:
			return machine.SetBackend{Server: g.server(), State: new(directory.BackendState(1 + g.r.IntN(4)))}
		}
		return machine.Assert{Mailbox: g.names[0], Server: g.server()}
	case renames:
		from, to := g.name(), g.name()
		if g.r.IntN(2) == 0 {
			from = []directory.MailboxName{"example^org", "user.alice", "shared"}[g.r.IntN(3)]
			to = []directory.MailboxName{"other", "user.zoe"}[g.r.IntN(2)]
		}
		switch {
		case n < 4:
			return machine.Rename{From: from, To: to, Server: g.server(), Recursive: g.r.IntN(4) > 0}
		case n < 6:
			return machine.Rename{From: to, To: from, Server: g.server(), Recursive: g.r.IntN(4) > 0}
		case n < 7:
			return machine.Subscribe{User: "alice", Mailbox: g.name()}
		}
		name := everyName[g.r.IntN(len(everyName))]
		if g.r.IntN(2) == 0 {
			name = []directory.MailboxName{"example^org", "example^org.x", "example.org!user.alice", "shared", "shared.news"}[g.r.IntN(5)]
		}
		return machine.Assert{Mailbox: name, Server: servers[g.r.IntN(2)]}
	case names:
		all := []directory.BackendName{"be1", "be2", "be6", "be7"}
		switch {
		case n < 4:
			return machine.RenameBackend{From: all[g.r.IntN(4)], To: all[g.r.IntN(4)]}
		case n < 7:
			if g.r.IntN(3) == 0 {
				return machine.Hold{Kind: directory.HoldGroup, Key: string(all[g.r.IntN(4)]), For: directory.Time(1+g.r.IntN(9)) * 30_000}
			}
			return machine.Hold{Kind: directory.HoldBackend, Key: string(all[g.r.IntN(4)]), For: directory.Time(1+g.r.IntN(9)) * 30_000}
		}
		return machine.Assert{Mailbox: g.name(), Server: all[g.r.IntN(4)]}
	}
	if g.theme == lives {
		name := g.names[g.r.IntN(min(3, len(g.names)))]
		switch {
		case n < 1:
			return restoreTo(directory.Incarnation(1 + g.r.IntN(9)))
		case n < 4:
			return machine.Confirm{Server: g.server(), How: directory.ConfirmedBy(1 + g.r.IntN(3))}
		case n < 7:
			return machine.Assert{Mailbox: name, Server: g.server(), Statement: g.statement(name), Deactivated: g.r.IntN(10) == 0}
		case n < 8:
			return machine.Reserve{Mailbox: name, Server: g.server()}
		}
		return machine.Retract{Mailbox: name, Server: g.server()}
	}
	return nil
}

func (g *generator) op(calm bool) machine.Op {
	if g.theme != anything && g.r.IntN(5) < 2 {
		return g.themed()
	}
	n := g.r.IntN(100)
	if calm && n >= 72 && g.r.IntN(3) > 0 {
		n = g.r.IntN(72)
	}
	if g.r.IntN(80) == 0 {
		return machine.Finalize{From: uint32(g.r.IntN(3)), To: uint32(g.r.IntN(3)), Release: "test"}
	}
	if g.r.IntN(60) == 0 {
		return restoreTo(directory.Incarnation(1 + g.r.IntN(5)))
	}
	switch {
	case n < 30:
		name := g.name()
		return machine.Assert{
			Mailbox: name, Server: g.server(), Statement: g.statement(name),
			Imported: g.r.IntN(12) == 0, Deactivated: g.r.IntN(25) == 0, Since: g.since(),
		}
	case n < 44:
		op := machine.Retract{Mailbox: g.name(), Server: g.server(), Tentative: g.r.IntN(6) == 0, Since: g.since()}
		if g.r.IntN(5) == 0 {
			op.Epoch = uint64(1 + g.r.IntN(2))
		}
		return op
	case n < 52:
		op := machine.Reserve{Mailbox: g.name(), Server: g.server()}
		if g.r.IntN(3) == 0 {
			op.Grace = 30_000
		}
		return op
	case n < 54:
		return machine.Release{Mailbox: g.name(), Server: g.server()}
	case n < 62:
		return machine.Deactivate{Mailbox: g.name(), Server: g.server()}
	case n < 69:
		op := machine.Rename{From: g.name(), To: g.name(), Server: g.server(), Recursive: g.r.IntN(2) == 0}
		return op
	case n < 72:
		var b machine.Batch
		for range g.r.IntN(5) {
			op := g.op(true)
			switch op.(type) {
			case machine.Batch, machine.Tick, machine.Restore, machine.Finalize, machine.SetGroup, machine.SetPrimary:
				continue
			}
			b.Ops = append(b.Ops, op)
		}
		return b
	case n < 75:
		return machine.Settle{Mailbox: g.name(), Keep: g.server()}
	case n < 80:
		op := machine.SetGroup{Group: groupNames[g.r.IntN(len(groupNames))], AcceptMissing: g.r.IntN(2) == 0}
		for range 1 + g.r.IntN(3) {
			if s := g.server(); !slices.Contains(op.Members, s) {
				op.Members = append(op.Members, s)
			}
		}
		return op
	case n < 84:
		return machine.SetPrimary{
			Group: groupNames[g.r.IntN(len(groupNames))], To: g.server(), Epoch: uint64(1 + g.r.IntN(3)), AcceptMissing: g.r.IntN(2) == 0, Reason: "test",
		}
	case n < 88:
		op := machine.SetBackend{Server: g.server(), Create: g.r.IntN(4) == 0}
		switch g.r.IntN(6) {
		case 0:
			op.Weight = new(uint32(g.r.IntN(2) * 50))
		case 1:
			op.State = new(directory.BackendDraining)
			op.DrainApproved = new(g.r.IntN(2) == 0)
		default:
			op.State = new(directory.BackendState(1 + g.r.IntN(6)))
		}
		return op
	case n < 90:
		return machine.Admit{Server: g.server()}
	case n < 92:
		op := machine.Confirm{Server: g.server(), How: directory.ConfirmedBy(1 + g.r.IntN(3))}
		if g.r.IntN(4) == 0 {
			op.Incarnation = directory.Incarnation(1 + g.r.IntN(2))
		}
		return op
	case n < 94:
		return machine.DecideHeld{Server: g.server(), Approve: g.r.IntN(2) == 0}
	case n < 96:
		kind := directory.HoldKind(1 + g.r.IntN(4))
		key := map[directory.HoldKind]string{
			directory.HoldUser: users[g.r.IntN(3)], directory.HoldMailbox: string(g.name()),
			directory.HoldBackend: string(g.server()), directory.HoldGroup: string(groupNames[g.r.IntN(len(groupNames))]),
		}[kind]
		if g.r.IntN(3) == 0 {
			return machine.ReleaseHold{Kind: kind, Key: key}
		}
		return machine.Hold{Kind: kind, Key: key, For: directory.Time(1+g.r.IntN(3)) * 60_000}
	case n < 97:
		name := g.name()
		user, ok := name.Owner()
		if !ok {
			user = "alice"
		}
		if g.r.IntN(3) == 0 {
			return machine.Unsubscribe{User: user, Mailbox: name}
		}
		return machine.Subscribe{User: user, Mailbox: name}
	case n < 98:
		if g.r.IntN(2) == 0 {
			return machine.SetAlarm{
				Kind: directory.AlarmKind(g.r.IntN(5)), Node: []string{"n1", "n2", "n3"}[g.r.IntN(3)], On: g.r.IntN(2) == 0,
				Voter: g.r.IntN(4) > 0, Voters: uint32(g.r.IntN(6)), Why: []string{"", "full"}[g.r.IntN(2)],
			}
		}
		return g.settings()
	case n < 99:
		return machine.RenameBackend{From: g.server(), To: []directory.BackendName{"be1", "be2", "be6"}[g.r.IntN(3)]}
	}
	return machine.Tick{}
}

func (g *generator) settings() machine.SetSettings {
	s := directory.DefaultSettings()
	s.GuardCount = uint32(1 + g.r.IntN(4))
	s.GuardPercent = uint32(g.r.IntN(2) * 50)
	s.GuardWindow = directory.Time(1+g.r.IntN(5)) * 60_000
	s.AdmissionOpen = g.r.IntN(3) > 0
	s.ReadOnly = g.r.IntN(8) == 0
	s.ReserveGrace = directory.Time(1+g.r.IntN(3)) * 5_000
	s.ReserveMax = 600_000
	if g.r.IntN(2) == 0 {
		s.GuardCount = 500
	}
	return machine.SetSettings{Settings: s}
}
