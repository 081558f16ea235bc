//go:build upgrade

package upgrade

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
)

// found starts three nodes that found a cluster, each as the release given.
func found(t *testing.T, releases ...programs) []*node {
	t.Helper()
	var nodes []*node
	var list []string
	for _, name := range []string{"n1", "n2", "n3"} {
		n := newNode(t, name)
		nodes = append(nodes, n)
		list = append(list, name+"="+n.peer)
	}
	for i, n := range nodes {
		n.flags = append(n.flags, "--initial-cluster", strings.Join(list, ","))
		n.start(releases[i%len(releases)])
	}
	for _, n := range nodes {
		n.ready()
	}
	return nodes
}

// leaderLast puts the leader behind the others.
func leaderLast(t *testing.T, nodes []*node) (ordered []*node) {
	t.Helper()
	leader := leaderOf(t, nodes)
	for _, n := range nodes {
		if n != leader {
			ordered = append(ordered, n)
		}
	}
	return append(ordered, leader)
}

func leaderOf(t *testing.T, nodes []*node) (leader *node) {
	t.Helper()
	until(t, time.Minute, "a leader", func() bool {
		for _, n := range nodes {
			if n.leads() {
				leader = n
				return true
			}
		}
		return false
	})
	return leader
}

// lead has a node take over the leadership.
func lead(t *testing.T, p programs, nodes []*node, n *node) {
	t.Helper()
	until(t, time.Minute, n.name+" to lead", func() bool {
		if n.leads() {
			return true
		}
		_, code := ctl(t, p, nodes, "move-leader", n.name)
		return code == 0 && n.leads()
	})
}

// exchange stops a node and starts it as another release.
func exchange(n *node, to programs) {
	n.t.Helper()
	n.stop()
	n.start(to)
	n.ready()
}

// join has a new node of a release join by a snapshot of the present leader, and
// takes it out again once it has been compared.
func join(t *testing.T, p programs, nodes []*node, name string, as programs, l *load) {
	t.Helper()
	n := newNode(t, name, "--join", strings.Join([]string{nodes[0].peer, nodes[1].peer, nodes[2].peer}, ","))
	n.start(as)
	until(t, time.Minute, name+" to wait", func() bool {
		out, _ := ctl(t, p, nodes, "member", "list")
		return strings.Contains(out, name)
	})
	must(t, p, nodes, "member", "add", name)
	until(t, time.Minute, name+" to have its vote", func() bool {
		_, code := ctl(t, p, nodes, "member", "promote", name)
		return code == 0
	})
	n.ready()
	if !strings.Contains(n.log.String(), "snapshot installed") {
		t.Errorf("%s joined without a snapshot:\n%s", name, n.log.String())
	}
	l.goesOn(name + " " + as.name + " has joined by a snapshot of " + leaderOf(t, nodes).release)
	sum, err := dial(t, n).Check(t.Context(), 10, func(client.CheckEvent) error { return nil })
	if err != nil || sum.Faults != 0 {
		t.Errorf("%s: check: %d faults, %v", name, sum.Faults, err)
	}
	must(t, p, nodes, "member", "remove", name, "--yes")
	n.wait(time.Minute) // it is told, and ends
	n.cmd = nil
}

// TestRolling takes a cluster of each earlier release to the present one under load,
// back, and forth again, and ends it: one node after the other, the leader last. Each
// mixture is led by each of its nodes. Nodes join mixtures by snapshots of either
// release. What is new is refused until the end and taken after it, and the way back
// is closed then.
func TestRolling(t *testing.T) {
	for _, r := range Releases() {
		if r.Nodes {
			t.Run(r.Name, func(t *testing.T) { rolling(t, r.Name) })
		}
	}
}

func rolling(t *testing.T, name string) {
	old, present := build(t, name), build(t, Present)
	begun := time.Now()
	nodes := found(t, old)
	l := startLoad(t, nodes, 1)
	l.goesOn(names(nodes))

	notYet := func(ask ...*node) {
		t.Helper()
		refused(t, present, ask, []string{"not in force yet"}, "backends", "set", "be1.busy.test", "--state", "full")
	}
	mixed := func() {
		t.Helper()
		for _, n := range nodes {
			lead(t, present, nodes, n)
			l.goesOn(n.name + " " + n.release + " leads " + names(nodes))
		}
	}

	// There.
	for i, n := range leaderLast(t, nodes) {
		exchange(n, present)
		l.goesOn(names(nodes))
		if i == 2 {
			break
		}
		mixed()
		other := lastOf(nodes, name)
		lead(t, present, nodes, n)
		refused(t, present, []*node{n}, []string{other.name + " runs release " + name, "upgrade it"}, "cluster-version", "finalize", "--yes")
		notYet(n)
		if i == 0 {
			join(t, present, nodes, "n5", old, l)
		}
		lead(t, present, nodes, other)
		refused(t, present, []*node{other}, []string{"the node that answered is of a release that supports cluster version 1 alone"}, "cluster-version", "finalize", "--yes")
		notYet(n) // forwarded to a leader that knows no such gate
		if i == 0 {
			join(t, present, nodes, "n4", present, l)
		}
	}
	notYet(nodes...)
	out := must(t, present, nodes, "cluster-version")
	if !strings.Contains(out, "cluster version 1 is in force") || !strings.Contains(out, "finalize") {
		t.Errorf("all upgraded: cluster-version says\n%s", out)
	}

	// Back.
	for _, n := range leaderLast(t, nodes) {
		exchange(n, old)
		l.goesOn(names(nodes))
	}

	// And forth again, to stay.
	for _, n := range leaderLast(t, nodes) {
		exchange(n, present)
		l.goesOn(names(nodes))
	}
	notYet(nodes...)
	away := leaderLast(t, nodes)[0]
	away.stop()
	left := without(nodes, away)
	refused(t, present, left, []string{"not in force yet", away.name, "start it"}, "cluster-version", "finalize", "--yes")
	away.start(present)
	away.ready()
	must(t, present, nodes, "cluster-version", "finalize", "--yes")
	l.raised.Store(true)
	l.goesOn("cluster version 2")
	must(t, present, nodes, "backends", "set", "be1.busy.test", "--state", "full")

	// The way back is closed.
	away.stop()
	away.start(old)
	away.refuses(fromState)
	away.start(present)
	away.ready()
	calm(t, nodes)

	// Nor can the old one come in anew.
	late := newNode(t, "n6", "--join", nodes[0].peer+","+nodes[1].peer)
	late.start(old)
	until(t, time.Minute, "the old release to say why it cannot join", func() bool {
		return strings.Contains(late.log.String(), "the cluster's version is 2") && strings.Contains(late.log.String(), "supports 1")
	})
	if out := must(t, present, nodes, "member", "list"); strings.Contains(out, "n6") {
		t.Errorf("a node that cannot take part waits to join:\n%s", out)
	}
	late.kill()

	l.goesOn(names(nodes))
	l.end(nodes)
	same(t, nodes)
	for _, n := range nodes {
		n.stop()
	}
	judge(t, l)
	t.Logf("%s and back: %s", name, time.Since(begun).Truncate(time.Second))
}

// What v0.3.0 says when it meets version 2, in the log and in its state file.
const (
	fromLog   = "unknown operation 25"
	fromState = "version 2 was written by a newer release"
)

// TestOlderStops raises the version under a node of an older release, as if it had
// become one between the look and the entry. It stops at the entry, out of the log,
// and again when it is started. The present release goes on where it stopped; once
// that has written its state, the older one stops out of the state file.
func TestOlderStops(t *testing.T) {
	for _, r := range Releases() {
		if !r.Nodes {
			continue
		}
		t.Run(r.Name, func(t *testing.T) {
			old, hasty, present := build(t, r.Name), build(t, Hasty), build(t, Present)
			nodes := found(t, old)
			n1, n2, n3 := nodes[0], nodes[1], nodes[2]
			assert := func(name directory.MailboxName) {
				t.Helper()
				if _, err := dial(t, n1, n2).Assert(t.Context(), client.Assert{Mailbox: name, Server: "be1.test"}); err != nil {
					t.Fatal(err)
				}
			}
			assert("user.before")
			exchange(n1, hasty)
			exchange(n2, hasty)
			lead(t, present, nodes, n1)
			must(t, present, []*node{n1}, "cluster-version", "finalize", "--yes")
			n3.refuses(fromLog)
			n3.start(old)
			n3.refuses(fromLog)
			assert("user.after")
			n3.start(present)
			n3.ready()
			for _, name := range []string{"user.before", "user.after"} {
				if out := must(t, present, []*node{n3}, "where", name); !strings.Contains(out, "be1.test") {
					t.Errorf("%s, afterwards: where %s: got\n%s", n3.name, name, out)
				}
			}
			n3.stop()
			n3.start(old)
			n3.refuses(fromState)
			if strings.Contains(n3.log.String(), fromLog) {
				t.Errorf("%s stopped out of the log, want out of the state file:\n%s", n3.name, n3.log.String())
			}
			n3.start(present)
			n3.ready()
			calm(t, nodes)
			same(t, nodes)
		})
	}
}

func without(nodes []*node, n *node) (others []*node) {
	for _, o := range nodes {
		if o != n {
			others = append(others, o)
		}
	}
	return others
}

// lastOf is one of nodes that runs that release still.
func lastOf(nodes []*node, release string) *node {
	for _, n := range nodes {
		if n.release == release {
			return n
		}
	}
	return nodes[0]
}

// calm waits until no alarm stands. v0.3.0 takes a state that it cannot read for a
// damaged one and raises an alarm; the node lowers it as the release that can.
func calm(t *testing.T, nodes []*node) {
	t.Helper()
	c := dial(t, nodes...)
	until(t, time.Minute, "all alarms to be lowered", func() bool {
		a, err := c.ListAlarms(t.Context(), client.Linearizable())
		return err == nil && len(a.List) == 0
	})
}

// same waits until every node has compared its state with the others' and found it
// the same.
func same(t *testing.T, nodes []*node) {
	t.Helper()
	for _, n := range nodes {
		until(t, time.Minute, n.name+" to have compared its state", func() bool { return alike(t, n) == client.VerdictSame })
	}
}

// alike makes sure that no node has found its state, or this one's, to be another
// than the others', and returns what n has found.
func alike(t *testing.T, n *node) client.StateVerdict {
	t.Helper()
	c, err := client.Dial([]string{n.client}, client.WithTimeout(loadTimeout))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	st, err := c.Status(t.Context(), client.Stale(0))
	if err != nil || st.Health == nil {
		return client.VerdictUnknown
	}
	if st.Health.Verdict == client.VerdictOdd || st.Health.Verdict == client.VerdictSplit || slices.ContainsFunc(st.Alarms, func(a client.Alarm) bool { return a.Kind != directory.AlarmNoSpace }) {
		t.Fatalf("%s: its state is not the others': %v, alarms %v", n.name, st.Health.Verdict, st.Alarms)
	}
	return st.Health.Verdict
}

// TestFoundMixed: a cluster that nodes of two releases found is of the version that
// both support; one of the present release begins with the newest.
func TestFoundMixed(t *testing.T) {
	present := build(t, Present)
	nodes := found(t, present)
	if out := must(t, present, nodes, "cluster-version"); !strings.Contains(out, "cluster version 2 is in force\n") {
		t.Errorf("three of the present release: got\n%s\nwant version 2", out)
	}
	for _, r := range Releases() {
		if !r.Nodes {
			continue
		}
		// Whoever leads first begins the cluster: of interest is that this release does.
		begun := false
		for try := 0; try < 8 && !begun; try++ {
			nodes := found(t, build(t, r.Name), present, present)
			if out := must(t, present, nodes[1:], "cluster-version"); !strings.Contains(out, "cluster version 1 is in force\n") {
				t.Errorf("with %s: got\n%s\nwant version 1", r.Name, out)
			}
			begun = leaderOf(t, nodes).release == Present
			for _, n := range nodes {
				n.kill()
			}
		}
		if !begun {
			t.Errorf("with %s: it began every cluster", r.Name)
		}
	}
}

// TestUnknownCommand: a command of a later release that got into the log stops the
// nodes of this one, with exit code 1 and words. The entry stays where it is, and
// the later release goes on with it.
func TestUnknownCommand(t *testing.T) {
	next, present := build(t, Next), build(t, Present)
	nodes := found(t, present)
	c := dial(t, nodes...)
	if _, err := c.Assert(t.Context(), client.Assert{Mailbox: "user.before", Server: "be1.test"}); err != nil {
		t.Fatal(err)
	}
	n1, n2, n3 := nodes[0], nodes[1], nodes[2]
	// While a node of this release leads, it takes no such command from the other.
	exchange(n1, next)
	lead(t, present, nodes, n2)
	n1.kill()
	n1.flags = append(n1.flags, "--low-space", "100TiB", "--log-level", "debug")
	n1.start(next)
	n1.ready()
	until(t, time.Minute, "n1 to have asked for its alarm in vain", func() bool { return strings.Contains(n1.log.String(), "alarms were not updated") })
	for line := range strings.Lines(n1.log.String()) {
		if strings.Contains(line, "alarms were not updated") {
			t.Logf("n1: %s", line)
			break
		}
	}
	if _, err := c.Assert(t.Context(), client.Assert{Mailbox: "user.meanwhile", Server: "be1.test"}); err != nil {
		t.Errorf("a write meanwhile: %v", err)
	}
	// It leads, and an alarm of its own disk is its to raise.
	until(t, time.Minute, "n1 to lead and the others to end", func() bool {
		select {
		case <-n2.ended:
		default:
			ctl(t, present, nodes, "move-leader", "n1")
			return false
		}
		select {
		case <-n3.ended:
			return true
		default:
			return false
		}
	})
	for _, n := range []*node{n2, n3} {
		n.refuses("unknown command", "unknown operation 99")
		n.start(present) // again, and again not
		n.refuses("unknown command", "unknown operation 99")
	}
	for _, n := range []*node{n2, n3} {
		n.start(next)
	}
	for _, n := range nodes {
		n.ready()
	}
	if _, err := c.Assert(t.Context(), client.Assert{Mailbox: "user.after", Server: "be1.test"}); err != nil && !errors.Is(err, directory.ErrReadOnly) {
		t.Errorf("a write afterwards: %v", err)
	}
	for _, n := range nodes {
		out := must(t, next, []*node{n}, "where", "user.before")
		if !strings.Contains(out, "be1.test") {
			t.Errorf("%s: where user.before: got\n%s", n.name, out)
		}
		if out, _ := ctl(t, next, []*node{n}, "alarm", "list"); !strings.Contains(out, "n1") {
			t.Errorf("%s: the entry was skipped: got alarms\n%s", n.name, out)
		}
	}
	same(t, without(nodes, n1))
}

// TestNewerVersion: on a state, and on a log, that a later release has raised, this
// release does not start. It names the release to put back, and changes nothing.
func TestNewerVersion(t *testing.T) {
	next, present := build(t, Next), build(t, Present)
	n := newNode(t, "n1")
	n.start(present)
	n.ready()
	refused(t, next, []*node{n}, []string{"not in force yet", "supports cluster versions up to 2"}, "cluster-version", "finalize", "--version", "3", "--yes")
	exchange(n, next)
	exchange(n, present) // the way back is open
	exchange(n, next)
	must(t, next, []*node{n}, "cluster-version", "finalize", "--yes")
	n.kill() // before the state is written, as a rule
	for range 2 {
		n.start(present)
		n.refuses("cluster version 3", "supports 1 to 2", "release next")
		n.start(next)
		n.ready()
		n.stop() // afterwards it is
	}
	n.start(next)
	n.ready()
	if out := must(t, next, []*node{n}, "cluster-version"); !strings.Contains(out, "cluster version 3 is in force, raised by release next") {
		t.Errorf("afterwards: got\n%s", out)
	}
	// Its backup is no more of use to this release.
	path := t.TempDir() + "/n1.snap"
	must(t, next, []*node{n}, "snapshot", "save", path)
	refused(t, present, []*node{n}, []string{"cluster version 3", "release next"}, "snapshot", "status", path)
	data := t.TempDir() + "/restored"
	refused(t, present, []*node{n}, []string{"cluster version 3", "release next"}, "snapshot", "restore", path, "--data", data, "--name", "n1")
	if _, err := os.Stat(data + "/shard-1"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the refused restore left %s/shard-1: %v", data, err)
	}
	// A node of this release cannot join, and ends.
	late := newNode(t, "n2", "--join", n.peer)
	late.start(present)
	late.refuses("the cluster's version is 3", "supports 1 to 2")
}

// TestNewerState: a node of a cluster that is started as this release on a state of a
// later one ends, and does no more: it does not take the state for a damaged one, so
// no alarm is raised, and nobody's state has to take its place.
func TestNewerState(t *testing.T) {
	next, present := build(t, Next), build(t, Present)
	nodes := found(t, next) // with version 3
	n := leaderLast(t, nodes)[0]
	n.stop()
	for range 2 {
		n.start(present)
		n.refuses("of a newer release", "cluster version 3", "put back the release")
		if strings.Contains(n.log.String(), "not to be used") {
			t.Errorf("%s took its state for a damaged one:\n%s", n.name, n.log.String())
		}
	}
	n.start(next)
	n.ready()
	if strings.Contains(n.log.String(), "another node's state") {
		t.Errorf("%s had to get another node's state:\n%s", n.name, n.log.String())
	}
	if a, err := dial(t, nodes...).ListAlarms(t.Context(), client.Linearizable()); err != nil || len(a.List) > 0 {
		t.Errorf("alarms: got %+v, %v, want none", a.List, err)
	}
	same(t, nodes)
}
