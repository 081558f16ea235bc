package machine_test

import (
	"bufio"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"

	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/directory/machine"
	"github.com/rookery-mail/rookery/internal/kv"
	"github.com/rookery-mail/rookery/internal/oracle"
)

// TestScripts plays testdata/script: commands, and what each came to; then the
// state and its indexes, read from the buckets. A block is
//
//	run
//	assert be1 user.alice acl="alice lrswipkxtecda"
//	where user.alice
//	----
//	assert be1 user.alice: added
//	SERVING be1 home=be1
//
// parseOp has the commands, world.show the questions. "wait 60s" lets
// directory time pass before the next command, "sweep" ticks until no sweep is
// open, "restore" begins the next life: Restore with the next incarnation, or the
// one stated. After every block Check must find no
// fault.
func TestScripts(t *testing.T) {
	datadriven.Walk(t, "testdata/script", func(t *testing.T, path string) {
		w := newWorld(t)
		datadriven.RunTest(t, path, func(t *testing.T, td *datadriven.TestData) string {
			w.t = t
			if td.Cmd != "run" {
				td.Fatalf(t, "unknown directive %q", td.Cmd)
			}
			out := w.run(td.Input)
			w.check()
			return out
		})
	})
}

// world is one machine over a store in memory.
type world struct {
	t       testing.TB
	m       *machine.Machine
	store   *kv.Memory
	elapsed directory.Time
}

func newWorld(t testing.TB) *world {
	m := machine.New()
	return &world{t: t, m: m, store: kv.NewMemory(m.Buckets()...)}
}

// apply sends c through its encoding, as the log does.
func (w *world) apply(elapsed directory.Time, c machine.Command) machine.Result {
	w.t.Helper()
	tx := w.store.Begin()
	b, err := w.m.Apply(tx, elapsed, 0, machine.EncodeCommand(c))
	if err != nil {
		w.t.Fatalf("%s: failure: %v", oracle.FormatCommand(c), err)
	}
	tx.Commit()
	r, err := machine.DecodeResult(b)
	if err != nil {
		w.t.Fatalf("%s: result: %v", oracle.FormatCommand(c), err)
	}
	return r
}

// nextLife is the Restore that begins the next life.
func (w *world) nextLife() machine.Restore {
	w.t.Helper()
	s, err := w.m.Status(w.store.Snapshot())
	if err != nil {
		w.t.Fatal(err)
	}
	return restoreTo(s.Incarnation + 1)
}

func restoreTo(life directory.Incarnation) machine.Restore {
	return machine.Restore{ClusterID: fmt.Sprintf("test%d", life), Incarnation: life}
}

// faults is what Check finds wrong.
func (w *world) faults() (out []string) {
	w.t.Helper()
	if err := w.m.Verify(w.store.Snapshot()); err != nil {
		return []string{"verify: " + err.Error()}
	}
	err := w.m.Check(w.store.Snapshot(), nil, func(f machine.Finding) error {
		if !f.Advisory {
			out = append(out, fmt.Sprintf("%s %s %s", f.Kind, f.Mailbox, f.Detail))
		}
		return nil
	})
	if err != nil {
		w.t.Fatalf("check: %v", err)
	}
	return out
}

func (w *world) check() {
	w.t.Helper()
	for _, f := range w.faults() {
		w.t.Errorf("check: %s", f)
	}
}

// run plays the lines of a block.
func (w *world) run(input string) string {
	w.t.Helper()
	var out strings.Builder
	lines := bufio.NewScanner(strings.NewReader(input))
	var batch []machine.Op
	var batching bool
	flush := func() {
		if !batching {
			return
		}
		r := w.apply(w.elapsed, machine.Command{By: "test", Op: machine.Batch{Ops: batch}})
		w.elapsed = 0
		fmt.Fprintf(&out, "batch: %s\n", oracle.FormatResult(r))
		for i, item := range r.Items {
			fmt.Fprintf(&out, "  %s: %s\n", formatOpShort(batch[i]), oracle.FormatResult(item))
		}
		batch, batching = nil, false
	}
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		if item, ok := strings.CutPrefix(line, "| "); ok && batching {
			c, err := parseCommand(item, w.settings())
			if err != nil {
				w.t.Fatalf("%s: %v", line, err)
			}
			batch = append(batch, c.Op)
			continue
		}
		flush()
		words := splitWords(line)
		switch words[0] {
		case "wait":
			d, err := time.ParseDuration(words[1])
			if err != nil {
				w.t.Fatal(err)
			}
			w.elapsed += directory.Time(d.Milliseconds())
		case "sweep":
			for range 100 {
				if raw, err := machine.ReadRaw(w.store.Snapshot()); err != nil {
					w.t.Fatal(err)
				} else if raw.Sweeps == 0 {
					break
				}
				w.apply(0, machine.Command{By: "directory", Op: machine.Tick{}})
			}
			fmt.Fprintln(&out, "sweep: done")
		case "batch":
			batching = true
		case "restore":
			op := w.nextLife()
			if len(words) > 1 {
				n, err := strconv.ParseUint(words[1], 10, 32)
				if err != nil {
					w.t.Fatal(err)
				}
				op = restoreTo(directory.Incarnation(n))
			}
			r := w.apply(w.elapsed, machine.Command{By: "directory", Op: op})
			w.elapsed = 0
			fmt.Fprintf(&out, "restore: %s\n", oracle.FormatResult(r))
		default:
			if text, ok := w.show(words); ok {
				out.WriteString(text)
				continue
			}
			c, err := parseCommand(line, w.settings())
			if err != nil {
				w.t.Fatalf("%s: %v", line, err)
			}
			r := w.apply(w.elapsed, c)
			w.elapsed = 0
			if _, ok := c.Op.(machine.Tick); ok {
				r.Count = 0 // how much it got done is not what scripts are about
			}
			fmt.Fprintf(&out, "%s: %s\n", formatOpShort(c.Op), oracle.FormatResult(r))
		}
	}
	flush()
	return out.String()
}

func (w *world) settings() directory.Settings {
	s, err := w.m.Settings(w.store.Snapshot())
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

// show answers a question about the state.
func (w *world) show(words []string) (string, bool) {
	w.t.Helper()
	snap := w.store.Snapshot()
	raw, err := machine.ReadRaw(snap)
	if err != nil {
		w.t.Fatalf("reading the buckets: %v", err)
	}
	backends := map[directory.ServerID]string{}
	infos, err := w.m.Backends(snap, "")
	if err != nil {
		w.t.Fatal(err)
	}
	for _, b := range infos {
		backends[b.ID] = string(b.Name)
	}
	ginfos, err := w.m.Groups(snap, "")
	if err != nil {
		w.t.Fatal(err)
	}
	groups := w.groupNames(snap)
	var out strings.Builder
	say := func(format string, args ...any) { fmt.Fprintf(&out, format+"\n", args...) }
	perServer := func(what string, m map[directory.ServerID][]directory.MailboxName) {
		for _, s := range slices.Sorted(maps.Keys(m)) {
			say("%s %s: %s", what, backends[s], join(m[s]))
		}
		if len(m) == 0 {
			say("%s: none", what)
		}
	}
	prefix := ""
	if len(words) > 1 {
		prefix = words[1]
	}
	switch words[0] {
	case "where":
		for _, name := range words[1:] {
			a, err := w.m.Lookup(snap, directory.MailboxName(name), true)
			if err != nil {
				w.t.Fatal(err)
			}
			say("%s", formatAnswer(&a, backends))
		}
	case "facts":
		n := 0
		for _, mb := range raw.Mailboxes {
			if !strings.HasPrefix(string(mb.Name), prefix) {
				continue
			}
			n++
			text := fmt.Sprintf("%s home=%s", mb.Name, groups(mb.Home))
			for _, v := range mb.Stray {
				text += fmt.Sprintf(" settled-against=%s/%s", backends[v.Server], v.MailboxID)
			}
			say("%s", text)
			for _, f := range mb.Facts {
				say("  %s", formatFact(&f, backends))
			}
		}
		if n == 0 {
			say("no facts")
		}
	case "postings":
		for _, p := range raw.Postings {
			rights := p.Rights
			if p.Weigh {
				rights = "weigh"
			}
			say("posting %s %s %s", p.Identifier, p.Name, rights)
		}
		if len(raw.Postings) == 0 {
			say("no postings")
		}
	case "by-server":
		perServer("by-server", raw.ByServer)
	case "held":
		perServer("held", raw.Held)
	case "unheard":
		perServer("unheard", raw.Unheard)
	case "forks":
		say("forks: %s", join(raw.Forks))
	case "moves":
		say("moves: %s", join(raw.Moves))
	case "tombstones":
		for _, t := range raw.Tombstones {
			text := fmt.Sprintf("tombstone %s", t.Name)
			switch t.How {
			case directory.GoneRetracted:
				text += " retracted by " + backends[t.Server]
			case directory.GoneMoved:
				text += fmt.Sprintf(" moved from %s to %s, given up by %s", groups(t.From), groups(t.To), backends[t.Server])
			case directory.GoneRenamed:
				text += fmt.Sprintf(" renamed to %s by %s", t.NewName, backends[t.Server])
			}
			say("%s, age %s", text, raw.Now-t.Time)
		}
		if len(raw.Tombstones) == 0 {
			say("no tombstones")
		}
	case "reservations":
		for _, r := range raw.Reservations {
			state := "unheard"
			if r.Heard {
				state = "heard"
			}
			text := fmt.Sprintf("reservation %s %s %s lapses in %s", r.Name, backends[r.Server], state, r.Deadline-raw.Now)
			if r.Partition != "" {
				text += " partition=" + r.Partition
			}
			say("%s", text)
		}
		if len(raw.Reservations) == 0 {
			say("no reservations")
		}
	case "digests":
		for _, s := range slices.Sorted(maps.Keys(raw.Totals)) {
			say("digest %s: states %d, %d in force at home", backends[s], raw.Totals[s].Count, raw.Totals[s].Counted)
		}
	case "subscriptions":
		for _, s := range raw.Subs {
			say("subscription %s", s)
		}
		if len(raw.Subs) == 0 {
			say("no subscriptions")
		}
	case "backends":
		for _, b := range infos {
			text := fmt.Sprintf("backend %s group=%s state=%s weight=%d", b.Name, b.GroupName, b.State, b.Weight)
			if !b.Admitted {
				text += " not-admitted"
			}
			if b.DrainApproved {
				text += " drain-approved"
			}
			if b.ConfirmedIn != 0 {
				text += fmt.Sprintf(" confirmed-by=%s in=%d", b.Confirmed, b.ConfirmedIn)
			}
			for _, a := range b.Addresses {
				text += fmt.Sprintf(" %s=%s", a.Service, netip.AddrPortFrom(netip.MustParseAddr(a.IP), a.Port))
			}
			say("%s", text)
		}
	case "groups":
		for _, g := range ginfos {
			var members []string
			for _, m := range g.Members {
				members = append(members, backends[m])
			}
			own := ""
			if g.Own {
				own = " own"
			}
			say("group %s members=%s primary=%s epoch=%d%s", g.Name, strings.Join(members, ","), backends[g.Primary], g.Epoch, own)
			for _, h := range g.History {
				missing := ""
				if h.AcceptMissing {
					missing = " accept-missing"
				}
				say("  epoch %d: %s -> %s by %s: %s%s", h.Epoch, backends[h.From], backends[h.To], h.By, h.Reason, missing)
			}
		}
	case "alarms":
		st, err := w.m.Status(snap)
		if err != nil {
			w.t.Fatal(err)
		}
		for _, x := range st.Alarms {
			voter := "voter"
			if !x.Voter {
				voter = "learner"
			}
			say("alarm %s %s (%s, voters %d) for %s by %s: %s", x.Kind, x.Node, voter, x.Voters, st.Time-x.Since, x.By, x.Why)
		}
		if len(st.Alarms) == 0 {
			say("no alarms")
		}
		if st.Growth != nil {
			say("%v", st.Growth)
		}
	case "holds":
		holds, now, err := w.m.Holds(snap)
		if err != nil {
			w.t.Fatal(err)
		}
		for _, h := range holds {
			say("hold %s %s for another %s: %s (%s)", h.Kind, h.Key, h.Until-now, h.Why, h.By)
		}
		if len(holds) == 0 {
			say("no holds")
		}
	case "log": // changes of the last revision
		rev, err := w.m.Revision(snap)
		if err != nil {
			w.t.Fatal(err)
		}
		n := 0
		for _, c := range raw.Log {
			if c.Revision == rev {
				say("change %d %s", c.Ordinal, strings.TrimSpace(fmt.Sprintf("%s %s %s", changeKinds[c.Kind], c.Name, c.Key)))
				n++
			}
		}
		if n == 0 {
			say("no changes")
		}
	case "list": // list USER [group...]
		p, err := directory.ParsePrincipal(words[1], words[2:], false)
		if words[1] == "admin" {
			p, err = directory.Principal{Admin: true}, nil
		}
		if err != nil {
			w.t.Fatal(err)
		}
		q := machine.ListQuery{Principal: p, Namespace: directory.Namespace{Sep: '.'}, Patterns: []string{"*"}}
		n := 0
		_, err = w.m.List(snap, q, func(row *machine.ListRow) error {
			say("%s", row.IMAP('.'))
			n++
			return nil
		})
		if err != nil {
			say("list: %v", err)
		} else if n == 0 {
			say("lists nothing")
		}
	case "revision":
		rev, err := w.m.Revision(snap)
		if err != nil {
			w.t.Fatal(err)
		}
		say("revision %d", rev)
	case "sweeps":
		say("sweeps: %d", raw.Sweeps)
	case "cluster":
		s, err := w.m.Status(snap)
		if err != nil {
			w.t.Fatal(err)
		}
		say("cluster %s incarnation %d revision %d log from %d; automation paused %t", s.ClusterID, s.Incarnation, s.Revision, s.LogFrom, s.Settings.AutomationPaused)
	case "version":
		s, err := w.m.Status(snap)
		if err != nil {
			w.t.Fatal(err)
		}
		say("%s", strings.TrimSpace(fmt.Sprintf("cluster version %d %s", s.Version, s.Release)))
	case "log-rows":
		say("log rows: %d", len(raw.Log))
	case "findings":
		n := 0
		err := w.m.Check(snap, nil, func(f machine.Finding) error {
			say("finding %s %s", f.Kind, f.Mailbox)
			n++
			return nil
		})
		if err != nil {
			w.t.Fatal(err)
		}
		if n == 0 {
			say("no findings")
		}
	case "due":
		wait, _, err := w.m.Due(snap, w.elapsed)
		if err != nil {
			w.t.Fatal(err)
		}
		if wait < 0 {
			say("nothing is due")
		} else {
			say("due in %s", directory.Time(wait))
		}
	default:
		return "", false
	}
	return out.String(), true
}

var changeKinds = map[directory.ChangeKind]string{
	directory.ChangeMailbox: "mailbox", directory.ChangeMoved: "moved", directory.ChangeReservation: "reservation",
	directory.ChangeSubscription: "subscription", directory.ChangeBackend: "backend", directory.ChangeGroup: "group",
	directory.ChangeHold: "hold", directory.ChangeSettings: "settings",
}

func join(names []directory.MailboxName) string {
	if len(names) == 0 {
		return "none"
	}
	var s []string
	for _, n := range names {
		s = append(s, string(n))
	}
	return strings.Join(s, " ")
}

// groupNames names groups by number, mergers followed.
func (w *world) groupNames(snap *kv.Snapshot) func(directory.GroupID) string {
	any, err := w.m.Lookup(snap, "user.nobody", false)
	if err != nil {
		w.t.Fatal(err)
	}
	return func(id directory.GroupID) string {
		if g := any.Group(id); g != nil {
			return string(g.Name)
		}
		return "none"
	}
}

func formatAnswer(a *machine.Answer, backends map[directory.ServerID]string) string {
	text := fmt.Sprintf("%s: %s", a.Name, a.Outcome)
	if a.Server != nil {
		text += " " + string(a.Server.Name)
	}
	if a.Route.Home != nil {
		text += fmt.Sprintf(" home=%s epoch=%d", a.Route.Home.Name, a.Route.Home.Epoch)
	}
	if a.Route.Forked {
		text += " forked"
	}
	if a.Hold != nil {
		text += fmt.Sprintf(" hold=%s:%s", a.Hold.Kind, a.Hold.Key)
	}
	if a.Reservation != nil {
		text += " reserved-by=" + backends[a.Reservation.Server]
	}
	for _, m := range a.Missing {
		text += " missing=" + string(m)
	}
	if a.RecentlyRetracted {
		text += " recently-retracted"
	}
	return text
}

func formatFact(f *directory.Fact, backends map[directory.ServerID]string) string {
	text := fmt.Sprintf("%s %s", backends[f.Server], f.State)
	if f.Was != 0 {
		text += " was=" + f.Was.String()
	}
	if f.Standing != directory.InForce {
		text += " " + f.Standing.String()
	}
	if f.Partition != "" {
		text += " partition=" + f.Partition
	}
	if f.ACL != "" {
		text += fmt.Sprintf(" acl=%q", strings.TrimSuffix(strings.ReplaceAll(f.ACL, "\t", " "), " "))
	}
	if f.MailboxID != "" {
		text += " id=" + f.MailboxID
	}
	if f.UIDValidity != 0 {
		text += fmt.Sprintf(" uidvalidity=%d", f.UIDValidity)
	}
	if f.Type != directory.TypeEmail {
		text += fmt.Sprintf(" type=%c", f.Type)
	}
	if f.SpecialUse != "" {
		text += fmt.Sprintf(" special=%q", f.SpecialUse)
	}
	if f.Incarnation != 1 {
		text += fmt.Sprintf(" life=%d", f.Incarnation)
	}
	return text
}

// The language of the scripts.

// splitWords splits at spaces that are not within double quotes.
func splitWords(line string) (words []string) {
	var w strings.Builder
	quoted, any := false, false
	for _, c := range line {
		switch {
		case c == '"':
			quoted, any = !quoted, true
		case c == ' ' && !quoted:
			if any {
				words = append(words, w.String())
			}
			w.Reset()
			any = false
		default:
			w.WriteRune(c)
			any = true
		}
	}
	if any {
		words = append(words, w.String())
	}
	return words
}

// parseCommand reads "[@client/sequence] op ...".
func parseCommand(line string, now directory.Settings) (machine.Command, error) {
	c := machine.Command{By: "operator:test"}
	words := splitWords(line)
	if at, ok := strings.CutPrefix(words[0], "@"); ok {
		client, seq, _ := strings.Cut(at, "/")
		n, err := strconv.ParseUint(seq, 10, 64)
		if err != nil {
			return c, err
		}
		c.Client, c.Sequence = client, n
		words = words[1:]
	}
	op, err := parseOp(words, now)
	c.Op = op
	return c, err
}

// arguments are the words of a command: the first ones by place, the rest by name.
type arguments struct {
	places []string
	named  map[string]string
	err    error
}

func (a *arguments) place(i int) string {
	if i >= len(a.places) {
		if a.err == nil {
			a.err = fmt.Errorf("argument %d is missing", i+1)
		}
		return ""
	}
	return strings.ReplaceAll(a.places[i], "<empty>", "")
}

func (a *arguments) flag(name string) bool {
	_, ok := a.named[name]
	delete(a.named, name)
	return ok
}

func (a *arguments) text(name string) *string {
	v, ok := a.named[name]
	if !ok {
		return nil
	}
	delete(a.named, name)
	if n, rest, ok := strings.Cut(v, "*"); ok { // "300*x" is 300 times x
		if n, err := strconv.Atoi(n); err == nil {
			v = strings.Repeat(rest, n)
		}
	}
	return &v
}

func (a *arguments) number(name string) uint64 {
	v := a.text(name)
	if v == nil {
		return 0
	}
	n, err := strconv.ParseUint(*v, 10, 64)
	if err != nil {
		a.err = err
	}
	return n
}

func (a *arguments) duration(name string) directory.Time {
	v := a.text(name)
	if v == nil {
		return 0
	}
	d, err := time.ParseDuration(*v)
	if err != nil {
		a.err = err
	}
	return directory.Time(d.Milliseconds())
}

// flags are the words that stand for themselves.
var flags = []string{"imported", "deactivated", "tentative", "recursive", "accept-missing", "create", "learner"}

func parseOp(words []string, now directory.Settings) (machine.Op, error) {
	a := &arguments{named: map[string]string{}}
	for _, w := range words[1:] {
		if name, value, ok := strings.Cut(w, "="); ok {
			a.named[name] = value
		} else if slices.Contains(flags, w) {
			a.named[w] = ""
		} else {
			a.places = append(a.places, w)
		}
	}
	op := a.op(words[0], now)
	if a.err == nil && len(a.named) > 0 {
		a.err = fmt.Errorf("unknown arguments %v", slices.Sorted(maps.Keys(a.named)))
	}
	return op, a.err
}

func (a *arguments) server(i int) directory.BackendName { return directory.BackendName(a.place(i)) }

func (a *arguments) name(i int) directory.MailboxName {
	v := a.place(i)
	if n, rest, ok := strings.Cut(v, "*"); ok {
		if n, err := strconv.Atoi(n); err == nil {
			v = strings.Repeat(rest, n)
		}
	}
	return directory.MailboxName(v)
}

func (a *arguments) op(verb string, now directory.Settings) machine.Op {
	switch verb {
	case "init":
		return machine.Init{ClusterID: "test", Incarnation: 1, DigestKey: []byte("0123456789abcdef"), Version: uint32(a.number("version"))}
	case "assert":
		op := machine.Assert{Server: a.server(0), Mailbox: a.name(1), Imported: a.flag("imported"), Deactivated: a.flag("deactivated")}
		op.Since = directory.Revision(a.number("since"))
		if p := a.text("partition"); p != nil {
			op.Statement.Partition = *p
		}
		if acl := a.text("acl"); acl != nil {
			op.Statement.ACL = new(tabbed(*acl))
		}
		if acl := a.text("rawacl"); acl != nil {
			op.Statement.ACL = acl
		}
		op.Statement.MailboxID = a.text("id")
		op.Statement.SpecialUse = a.text("special")
		if _, ok := a.named["uidvalidity"]; ok {
			op.Statement.UIDValidity = new(uint32(a.number("uidvalidity")))
		}
		if v := a.text("type"); v != nil {
			op.Statement.Type = new(directory.MailboxType((*v)[0]))
		}
		return op
	case "retract":
		return machine.Retract{Server: a.server(0), Mailbox: a.name(1), Epoch: a.number("epoch"), Tentative: a.flag("tentative"), Since: directory.Revision(a.number("since"))}
	case "reserve":
		op := machine.Reserve{Server: a.server(0), Mailbox: a.name(1), Grace: a.duration("grace")}
		if p := a.text("partition"); p != nil {
			op.Partition = *p
		}
		return op
	case "release":
		return machine.Release{Server: a.server(0), Mailbox: a.name(1), Since: directory.Revision(a.number("since"))}
	case "deactivate":
		return machine.Deactivate{Server: a.server(0), Mailbox: a.name(1)}
	case "rename":
		return machine.Rename{Server: a.server(0), From: a.name(1), To: a.name(2), Recursive: a.flag("recursive")}
	case "switchover":
		op := machine.SetPrimary{
			Group: directory.GroupName(a.place(0)), To: a.server(1), Epoch: a.number("epoch"), AcceptMissing: a.flag("accept-missing"),
		}
		if why := a.text("reason"); why != nil {
			op.Reason = *why
		}
		return op
	case "group":
		op := machine.SetGroup{Group: directory.GroupName(a.place(0)), AcceptMissing: a.flag("accept-missing")}
		for _, m := range a.places[1:] {
			op.Members = append(op.Members, directory.BackendName(m))
		}
		op.Mode = directory.GroupMode(a.number("mode"))
		return op
	case "backend":
		op := machine.SetBackend{Server: a.server(0), Create: a.flag("create")}
		if _, ok := a.named["weight"]; ok {
			op.Weight = new(uint32(a.number("weight")))
		}
		if v := a.text("state"); v != nil {
			op.State = new(backendState(*v))
		}
		if v := a.text("drain-approved"); v != nil {
			op.DrainApproved = new(*v == "true")
		}
		if v := a.text("imap"); v != nil {
			i := strings.LastIndexByte(*v, ':')
			port, err := strconv.ParseUint((*v)[i+1:], 10, 16)
			if err != nil {
				a.err = err
			}
			op.Addresses = &[]directory.Address{{Service: directory.ServiceIMAP, IP: strings.Trim((*v)[:i], "[]"), Port: uint16(port)}}
		}
		return op
	case "admit":
		return machine.Admit{Server: a.server(0)}
	case "confirm":
		how := map[string]directory.ConfirmedBy{"resync": directory.ByResync, "import": directory.ByImport, "operator": directory.ByOperator}
		op := machine.Confirm{Server: a.server(0), How: directory.ByResync, Incarnation: directory.Incarnation(a.number("life"))}
		if v := a.text("how"); v != nil {
			op.How = how[*v]
		}
		return op
	case "rename-backend":
		return machine.RenameBackend{From: a.server(0), To: a.server(1)}
	case "subscribe":
		return machine.Subscribe{User: directory.UserID(a.place(0)), Mailbox: a.name(1)}
	case "unsubscribe":
		return machine.Unsubscribe{User: directory.UserID(a.place(0)), Mailbox: a.name(1)}
	case "settle":
		return machine.Settle{Keep: a.server(0), Mailbox: a.name(1)}
	case "hold":
		op := machine.Hold{Kind: holdKind(a.place(0)), Key: a.place(1), For: a.duration("for")}
		if v := a.text("why"); v != nil {
			op.Why = *v
		}
		return op
	case "alarm":
		op := machine.SetAlarm{Kind: alarmKind(a.place(0)), Node: a.place(1), On: true, Voter: !a.flag("learner"), Voters: 3}
		if a.named["voters"] != "" {
			op.Voters = uint32(a.number("voters"))
		}
		if v := a.text("why"); v != nil {
			op.Why = *v
		}
		return op
	case "disarm":
		return machine.SetAlarm{Kind: alarmKind(a.place(0)), Node: a.place(1)}
	case "release-hold":
		return machine.ReleaseHold{Kind: holdKind(a.place(0)), Key: a.place(1)}
	case "approve":
		return machine.DecideHeld{Server: a.server(0), Approve: true}
	case "reject":
		return machine.DecideHeld{Server: a.server(0)}
	case "finalize":
		return machine.Finalize{From: uint32(a.number("from")), To: uint32(a.number("to")), Release: "test"}
	case "tick":
		return machine.Tick{}
	case "settings":
		return machine.SetSettings{Settings: a.settings(now)}
	}
	a.err = fmt.Errorf("unknown command %q", verb)
	return machine.Tick{}
}

func (a *arguments) settings(s directory.Settings) directory.Settings {
	boolean := func(name string, into *bool) {
		if v := a.text(name); v != nil {
			*into = *v == "true"
		}
	}
	count := func(name string, into *uint32) {
		if _, ok := a.named[name]; ok {
			*into = uint32(a.number(name))
		}
	}
	span := func(name string, into *directory.Time) {
		if _, ok := a.named[name]; ok {
			*into = a.duration(name)
		}
	}
	if v := a.text("default-domain"); v != nil {
		s.DefaultDomain = *v
	}
	boolean("virtdomains", &s.VirtDomains)
	boolean("admission-open", &s.AdmissionOpen)
	boolean("read-only", &s.ReadOnly)
	boolean("automation-paused", &s.AutomationPaused)
	count("guard-count", &s.GuardCount)
	count("guard-percent", &s.GuardPercent)
	span("guard-window", &s.GuardWindow)
	span("reserve-grace", &s.ReserveGrace)
	span("reserve-max", &s.ReserveMax)
	span("delivery-grace", &s.DeliveryGrace)
	span("tombstone-keep", &s.TombstoneKeep)
	span("request-keep", &s.RequestKeep)
	if _, ok := a.named["log-keep"]; ok {
		s.LogKeep = a.number("log-keep")
	}
	return s
}

func backendState(s string) directory.BackendState {
	for st := directory.BackendActive; st <= directory.BackendFull; st++ {
		if st.String() == s {
			return st
		}
	}
	return 99
}

func alarmKind(s string) directory.AlarmKind {
	for k := directory.AlarmNoSpace; k <= directory.AlarmCorrupt; k++ {
		if k.String() == s {
			return k
		}
	}
	return 99
}

func holdKind(s string) directory.HoldKind {
	for k := directory.HoldUser; k <= directory.HoldGroup; k++ {
		if k.String() == s {
			return k
		}
	}
	return 99
}

// tabbed turns "alice lrs bob lr" into an ACL as it is stored.
func tabbed(acl string) string {
	if acl == "" {
		return ""
	}
	return strings.ReplaceAll(acl, " ", "\t") + "\t"
}

// formatOpShort is the command without what it states, to begin a line with.
func formatOpShort(op machine.Op) string {
	text := oracle.FormatOp(op)
	for _, cut := range []string{" partition=", " acl=", " id=", " uidvalidity=", " type=", " special=", " why=", " for=", " reason="} {
		if i := strings.Index(text, cut); i >= 0 {
			tail := ""
			for _, flag := range []string{" imported", " deactivated", " accept-missing"} {
				if strings.HasSuffix(text, flag) {
					tail = flag
				}
			}
			text = text[:i] + tail
		}
	}
	if len(text) > 100 {
		text = text[:80] + "..."
	}
	return text
}
