package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory/machine"
	"github.com/rookery-mail/rookery/raftstore"
	"github.com/rookery-mail/rookery/raftstore/snap"
	"github.com/rookery-mail/rookery/server"
)

// fakeFleet is a cluster whose nodes serve for real and share one state; what
// Raft and the peers would do is pretended.
type fakeFleet struct {
	mu        sync.Mutex
	nodes     []server.Node
	waiting   []server.Node
	leader    uint64
	caughtUp  time.Time // when learners have the log
	silent    bool      // learners were never heard
	changes   [][]raftstore.Change
	compacted []string // in that order, with who led meanwhile
	endpoints map[string]string
}

const fleetCommit = 5000

// newFleet starts n1 to n3, of which n1 leads.
func newFleet(t *testing.T) *fakeFleet {
	t.Helper()
	rules := machine.New()
	store, err := raftstore.Open(raftstore.Config{Dir: t.TempDir(), Name: "n1", Initial: []raftstore.Member{{Name: "n1"}}, Machine: server.Applied(rules)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	if err := server.Begin(t.Context(), store, rules); err != nil {
		t.Fatal(err)
	}
	f := &fakeFleet{leader: 1, endpoints: make(map[string]string)}
	for id := uint64(1); id <= 3; id++ {
		name := fmt.Sprintf("n%d", id)
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		s, err := server.New(server.Config{
			Store: server.Shard(store, nil), Machine: rules, Node: name, Version: "v1",
			Members: func() server.Members { return f.members(id) }, Replica: fakeReplica{f, id, name},
		})
		if err != nil {
			t.Fatal(err)
		}
		served := make(chan error, 1)
		go func() { served <- s.Serve(l) }()
		t.Cleanup(func() {
			s.Close(context.Background())
			if err := <-served; err != nil {
				t.Error(err)
			}
		})
		f.endpoints[name] = l.Addr().String()
		f.nodes = append(f.nodes, server.Node{
			Name: name, ID: id, ClientAddress: l.Addr().String(), Site: "s" + name, Voter: true, Active: true, Match: fleetCommit, Applied: fleetCommit,
			Version: "v1", Verified: true,
		})
	}
	return f
}

// members is what one of them sees.
func (f *fakeFleet) members(self uint64) server.Members {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := server.Members{Nodes: slices.Clone(f.nodes), Waiting: slices.Clone(f.waiting), Self: self, Leader: f.leader, Commit: fleetCommit, Applied: fleetCommit, Term: 2}
	for i := range m.Nodes {
		if n := &m.Nodes[i]; !n.Voter {
			n.Active, n.State, n.Match, n.Applied = true, "replicate", 1000, 1000
			if time.Now().After(f.caughtUp) {
				n.Match, n.Applied = fleetCommit, fleetCommit
			}
			if f.silent {
				n.Heard, n.Applied = -1, 0
			}
		}
	}
	return m
}

type fakeReplica struct {
	f    *fakeFleet
	id   uint64
	name string
}

func (r fakeReplica) ChangeMembers(_ context.Context, changes ...raftstore.Change) error {
	f := r.f
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.leader != r.id {
		return &raftstore.NotLeaderError{Leader: f.leader}
	}
	f.changes = append(f.changes, changes)
	for _, ch := range changes {
		i := slices.IndexFunc(f.nodes, func(n server.Node) bool { return n.ID == ch.Member.ID })
		switch {
		case ch.Remove:
			f.nodes = slices.Delete(f.nodes, i, i+1)
		case i >= 0:
			f.nodes[i].Voter, f.nodes[i].Active, f.nodes[i].Match = true, true, fleetCommit
		default:
			f.nodes = append(f.nodes, server.Node{Name: ch.Member.Name, ID: ch.Member.ID, Voter: !ch.Member.Learner, Version: "v1", Verified: true})
		}
	}
	return nil
}

func (r fakeReplica) Transfer(_ context.Context, node uint64) error {
	r.f.mu.Lock()
	defer r.f.mu.Unlock()
	r.f.leader = node
	return nil
}

func (r fakeReplica) Snapshot(context.Context, io.Writer) (snap.Header, error) {
	return snap.Header{}, errors.New("not asked for here")
}

func (r fakeReplica) Compact(_ context.Context, progress func(done, total int64)) (before, after int64, err error) {
	progress(1, 2)
	r.f.mu.Lock()
	defer r.f.mu.Unlock()
	r.f.compacted = append(r.f.compacted, fmt.Sprintf("%s, n%d leads", r.name, r.f.leader))
	return 3 << 30, 1 << 30, nil
}

// set changes what the nodes see.
func (f *fakeFleet) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

// done returns the changes made so far, the members, and who leads.
func (f *fakeFleet) done() ([][]raftstore.Change, []server.Node, uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.changes), slices.Clone(f.nodes), f.leader
}

// ctl runs a command line that begins with asking node.
func (f *fakeFleet) ctl(t *testing.T, node, line string, want int) (stdout, stderr string) {
	t.Helper()
	stdout, stderr, code := command(t, append([]string{"--endpoints", f.endpoints[node]}, strings.Fields(line)...)...)
	if code != want {
		t.Fatalf("%s: got exit code %d, output\n%s%s, want %d", line, code, stdout, stderr, want)
	}
	return stdout, stderr
}

func has(t *testing.T, what, got string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(got, w) {
			t.Errorf("%s: got\n%s\nwant %q in it", what, got, w)
		}
	}
}

// A node is added, promoted and removed, whoever of the others is asked.
func TestMemberLife(t *testing.T) {
	f := newFleet(t)
	f.set(func() { f.waiting = []server.Node{{Name: "n4", ID: 0x44, PeerAddress: "10.0.0.4:7906", Version: "v1"}} })
	out, _ := f.ctl(t, "n2", "status", exitRefused)
	has(t, "status", out, "degraded: n4 waits to join: `rookeryctl member add n4`\n", "sn1", "n4    44  waits")
	out, _ = f.ctl(t, "n2", "member list", exitOK)
	has(t, "list", out, "n1     1  leader", "n2     2  voter", "n4    44  waits", "10.0.0.4:7906")

	f.set(func() { f.caughtUp = time.Now().Add(time.Hour) })
	out, _ = f.ctl(t, "n2", "member add n4", exitOK)
	has(t, "add", out, "n4 (id 44) is a learner now:", "n4    44  learner", "note: n4 gets the log now")
	// It does not wait any more, though it asks on for a while.
	out, errs := f.ctl(t, "n2", "member promote n4", exitRefused)
	has(t, "promote too early", errs, "rookeryctl: refused: lagging: n4 trails the leader by 4000 entries (it has 1000 of 5000), and 1000 entries at most may be missing")
	if out != "" {
		t.Errorf("promote too early: got\n%s\nwant the refusal alone", out)
	}
	f.set(func() { f.caughtUp, f.silent = time.Time{}, true })
	_, errs = f.ctl(t, "n2", "member promote n4", exitRefused)
	has(t, "promote who was not heard", errs, "rookeryctl: refused: lagging: n4 has not said yet how far it is (the leader is at 5000)")
	out, _ = f.ctl(t, "n2", "status", exitRefused)
	has(t, "status of who was not heard", out, "n4 is a learner and has not said yet how far it is")
	if strings.Contains(out, "waits") || strings.Contains(out, "has the log") {
		t.Errorf("status of who was not heard: got\n%s", out)
	}
	f.set(func() { f.silent = false })
	out, _ = f.ctl(t, "n3", "member promote n4", exitOK)
	has(t, "promote", out, "n4 (id 44) is a voter now:", "n4    44  voter")
	out, _ = f.ctl(t, "n3", "member promote n4", exitOK)
	has(t, "promote again", out, "Nothing was changed.")

	// The leader goes: it hands over first, and the next one takes it out.
	_, errs = f.ctl(t, "n1", "member remove n1", exitRefused)
	has(t, "remove without a word", errs, "nothing was changed: removing n1 (id 1) is for good; --yes does it without asking")
	out, _ = f.ctl(t, "n1", "member remove n1 --yes", exitOK)
	has(t, "remove", out, "n1 (id 1) is removed:", "note: the id 1 is never used again")
	if _, nodes, leader := f.done(); leader == 1 || len(nodes) != 3 || nodes[0].Name != "n2" {
		t.Errorf("after the removal of the leader: %d leads, members %+v", leader, nodes)
	}
}

// An emptied node is replaced; what was broken off goes on.
func TestMemberReplace(t *testing.T) {
	f := newFleet(t)
	f.set(func() { f.nodes[2].Active, f.nodes[2].Heard = false, -1 })
	f.set(func() { f.waiting = []server.Node{{Name: "n3", ID: 0x33}} })
	out, _ := f.ctl(t, "n2", "status", exitRefused)
	has(t, "status", out, "degraded: n3 was never heard", "n3 waits to join: `rookeryctl member replace n3`")

	f.set(func() { f.caughtUp = time.Now().Add(time.Hour) })
	out, errs := f.ctl(t, "n1", "member replace n3 --yes --wait 1ms", exitRefused)
	has(t, "replace, not waited for", errs, "n3 is a learner and has not caught up in 1ms; the same command goes on: refused: lagging: n3 trails the leader by 4000 entries")
	if changes, nodes, _ := f.done(); len(changes) != 1 || len(nodes) != 4 {
		t.Fatalf("got changes %+v, want the learner alone\n%s", changes, out)
	}
	f.set(func() { f.waiting = nil })
	f.set(func() { f.caughtUp = time.Now().Add(600 * time.Millisecond) })
	out, errs = f.ctl(t, "n2", "member replace n3 --yes", exitOK)
	has(t, "replace, gone on with", out, "n3 runs on its new disk (id 33):", "n3    33  voter", "note: the id 3 is never used again")
	has(t, "replace, gone on with", errs, "this waits until it has caught up")
	changes, _, _ := f.done()
	if last := changes[len(changes)-1]; len(changes) != 2 || len(last) != 2 || !last[0].Remove || last[0].Member.ID != 3 || last[1].Member.ID != 0x33 {
		t.Errorf("got changes %+v, want a learner, then one joint change", changes)
	}
	_, errs = f.ctl(t, "n2", "member replace n3 --yes", exitRefused)
	has(t, "replace again", errs, "refused: not waiting")
}

func TestMoveLeader(t *testing.T) {
	f := newFleet(t)
	out, _ := f.ctl(t, "n3", "move-leader n2", exitOK)
	has(t, "move", out, "n2 leads now, after n1; it took ")
	out, _ = f.ctl(t, "n3", "move-leader n2", exitOK)
	has(t, "move again", out, "n2 leads already")
	out, _ = f.ctl(t, "n3", "-o json move-leader", exitOK)
	has(t, "move to any", out, `"effect": "changed"`, `"from": "n2"`, `"to": "n1"`)
}

// All nodes one after the other, the leader last and not as the leader.
func TestCompactAll(t *testing.T) {
	f := newFleet(t)
	out, _ := f.ctl(t, "n2", "compact --all", exitOK)
	has(t, "compact", out, "n2: 3.0 GiB before, 1.0 GiB now; it took ", "leads now, after n1")
	var compacted []string
	f.set(func() { compacted = slices.Clone(f.compacted) })
	if want := []string{"n2, n1 leads", "n3, n1 leads", "n1, n2 leads"}; !slices.Equal(compacted, want) {
		t.Errorf("got %q, want %q", compacted, want)
	}
	_, errs := f.ctl(t, "n1", "compact --node n2", exitRefused)
	has(t, "compact the leader", errs, "rookeryctl: n2 is not compacted: refused: leading: n2 leads")
	out, _ = f.ctl(t, "n1", "-o json compact --node n2 --force", exitOK)
	has(t, "compact the leader all the same", out, `"node": "n2"`, `"before_bytes": 3221225472`)
	_, errs = f.ctl(t, "n1", "compact", exitUsage)
	has(t, "compact what", errs, "which of the 3 nodes? --node NAME or --all")
	f.set(func() { f.nodes[1].ClientAddress = "" })
	_, errs = f.ctl(t, "n1", "compact --node n2 --force", exitRefused)
	has(t, "compact a node that is not known", errs, "no client address of n2 is known; name it in --endpoints")
}

// Who cannot be reached is skipped, and told.
func TestCompactSkips(t *testing.T) {
	f := newFleet(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nowhere := l.Addr().String()
	l.Close()
	f.set(func() { f.nodes[1].ClientAddress = nowhere })
	out, errs := f.ctl(t, "n1", "compact --all", exitRefused)
	has(t, "compact", out, "n3: 3.0 GiB before", "n1: 3.0 GiB before")
	has(t, "compact", errs, "rookeryctl: n2 is skipped: cannot ask "+nowhere+": connection refused; is rookeryd running there?\n",
		"rookeryctl: compacted: n3, n1; not reached and not compacted: n2 ("+nowhere+")\n")
	f.set(func() { f.leader = 1 })
	out, _ = f.ctl(t, "n3", "-o json compact --all", exitRefused)
	has(t, "compact, for programs", out, `"node": "n3"`, `"skipped": [`, `"n2 (`+nowhere+`)"`)
	_, errs = f.ctl(t, "n3", "compact --node n2", exitCannotAsk)
	has(t, "compact it alone", errs, "rookeryctl: n2 is not compacted: cannot ask "+nowhere+": connection refused")
	if strings.Contains(errs, f.endpoints["n3"]) {
		t.Errorf("compact it alone: got %s, want the address that was asked and no other", errs)
	}
}

func TestSize(t *testing.T) {
	for n, want := range map[uint64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536: "1.5 KiB", 1<<20 - 1: "1.0 MiB", 5 << 30: "5.0 GiB", 1<<64 - 1: "16.0 EiB"} {
		if got := size(n); got != want {
			t.Errorf("%d: got %s, want %s", n, got, want)
		}
	}
}

// Which one is meant is told by its id only if there is no doubt.
func TestWhich(t *testing.T) {
	nodes := []client.Node{{Name: "n1", ID: 1}, {Name: "n3", ID: 3}, {Name: "n3", ID: 4}}
	for _, tt := range []struct {
		name string
		id   uint64
		want uint64
	}{{"n1", 0, 1}, {"n3", 0, 0}, {"n3", 4, 4}, {"n9", 0, 0}, {"n9", 7, 7}} {
		if got := which(nodes, tt.name, tt.id); got.Name != tt.name || got.ID != tt.want {
			t.Errorf("%s %d: got %+v, want the id %d", tt.name, tt.id, got, tt.want)
		}
	}
}
