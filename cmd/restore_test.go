package cmd_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
)

// incident is a site whose directory is lost and restored: what its backends really
// hold, and a client of whatever node runs.
type incident struct {
	t      *testing.T
	nodes  *nodes
	c      *client.Client
	holds  map[directory.BackendName]map[directory.MailboxName]bool
	epochs map[directory.GroupName]uint64 // the highest that anybody was told
}

// start starts a node and asks it, and nobody else, from now on.
func (in *incident) start(name string) {
	in.t.Helper()
	in.c = in.dial(in.launch(name).address)
}

// launch starts a node and waits until it serves.
func (in *incident) launch(name string) *node {
	in.t.Helper()
	n, err := in.nodes.launch(name)
	if err == nil {
		err = n.serves()
	}
	if err != nil {
		in.t.Fatal(err)
	}
	in.nodes.running[name] = n
	return n
}

func (in *incident) dial(addresses ...string) *client.Client {
	in.t.Helper()
	c, err := client.Dial(addresses)
	if err != nil {
		in.t.Fatal(err)
	}
	in.t.Cleanup(func() { c.Close() })
	return c
}

// kill ends a node as a fire does.
func (in *incident) kill(name string) {
	n := in.nodes.running[name]
	delete(in.nodes.running, name)
	n.cmd.Process.Kill()
	<-n.drained
	n.cmd.Wait()
	n.log.Close()
}

// ctl runs rookeryctl and returns what it printed on either side.
func (in *incident) ctl(code int, args ...string) string {
	in.t.Helper()
	cmd := exec.Command(filepath.Join(bin, "rookeryctl"), args...)
	for _, n := range in.nodes.running {
		cmd.Env = append(cmd.Environ(), "ROOKERY_ENDPOINTS="+n.address)
	}
	out, err := cmd.CombinedOutput()
	got := 0
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		got = exit.ExitCode()
	} else if err != nil {
		in.t.Fatal(err)
	}
	if got != code {
		in.t.Fatalf("rookeryctl %s: got exit code %d, want %d: %s", strings.Join(args, " "), got, code, out)
	}
	return string(out)
}

// create makes a mailbox on a backend, which says so. A mailbox id tells copies apart.
func (in *incident) create(server directory.BackendName, names ...directory.MailboxName) {
	in.t.Helper()
	for _, name := range names {
		in.have(server)[name] = true
		in.assert(in.c, server, name)
	}
}

func (in *incident) have(server directory.BackendName) map[directory.MailboxName]bool {
	if in.holds[server] == nil {
		in.holds[server] = make(map[directory.MailboxName]bool)
	}
	return in.holds[server]
}

func (in *incident) assert(c *client.Client, server directory.BackendName, name directory.MailboxName) client.Result {
	in.t.Helper()
	owner, _ := name.Owner()
	r, err := c.Assert(in.t.Context(), client.Assert{Mailbox: name, Server: server, Statement: directory.Statement{
		Partition: "default", ACL: new(string(owner) + "\tlrswipkxtecda\t"), MailboxID: new("id." + string(name)),
	}})
	if err != nil {
		in.t.Fatalf("assert %s on %s: %v", name, server, err)
	}
	return r
}

// drop deletes a mailbox on a backend, which says so.
func (in *incident) drop(server directory.BackendName, name directory.MailboxName) {
	in.t.Helper()
	delete(in.holds[server], name)
	if _, err := in.c.Retract(in.t.Context(), client.Retract{Mailbox: name, Server: server}); err != nil {
		in.t.Fatal(err)
	}
}

func (in *incident) lookup(name directory.MailboxName) client.Route {
	in.t.Helper()
	r, err := in.c.Lookup(in.t.Context(), name)
	if err != nil {
		in.t.Fatalf("lookup %s: %v", name, err)
	}
	return r
}

func (in *incident) want(name directory.MailboxName, outcome directory.Outcome, server directory.BackendName) {
	in.t.Helper()
	if r := in.lookup(name); r.Outcome != outcome || r.Server.Name != server {
		in.t.Errorf("%s: got %s %s, want %s %s", name, r.Outcome, r.Server.Name, outcome, server)
	}
}

// look is what must hold at every moment: a mailbox that is on some backend is not
// said not to exist, and epochs go up.
func (in *incident) look(when string) {
	in.t.Helper()
	for server, names := range in.holds {
		for name := range names {
			if r := in.lookup(name); r.Outcome == directory.NotFound {
				in.t.Errorf("%s: %s is on %s, and is said not to exist", when, name, server)
			}
		}
	}
	groups, err := in.c.ListGroups(in.t.Context(), "")
	if err != nil {
		in.t.Fatal(err)
	}
	for _, g := range groups {
		if g.Epoch < in.epochs[g.Name] {
			in.t.Errorf("%s: %s is at epoch %d, it was at %d before", when, g.Name, g.Epoch, in.epochs[g.Name])
		}
		in.epochs[g.Name] = max(in.epochs[g.Name], g.Epoch)
	}
}

// resync compares a backend's list with its facts, mends the difference, and says that
// the list is whole, looking after every step.
func (in *incident) resync(server directory.BackendName) {
	in.t.Helper()
	ctx := in.t.Context()
	var known []directory.MailboxName
	var life directory.Incarnation
	for r, err := range in.c.FindAll(ctx, client.FindQuery{Server: server}, client.Details()) {
		if err != nil {
			in.t.Fatal(err)
		}
		known = append(known, r.Mailbox)
	}
	for name := range in.holds[server] {
		life = in.assert(in.c, server, name).Incarnation
		in.look(fmt.Sprintf("%s asserts %s", server, name))
	}
	for _, name := range known {
		if !in.holds[server][name] {
			if _, err := in.c.Retract(ctx, client.Retract{Mailbox: name, Server: server}); err != nil {
				in.t.Fatal(err)
			}
			in.look(fmt.Sprintf("%s takes %s back", server, name))
		}
	}
	if _, err := in.c.ConfirmBackendIn(ctx, life, server, directory.ByResync); err != nil {
		in.t.Fatal(err)
	}
	in.look(fmt.Sprintf("%s is confirmed", server))
}

func (in *incident) headline() string {
	in.t.Helper()
	cmd := exec.Command(filepath.Join(bin, "rookeryctl"), "status")
	for _, n := range in.nodes.running {
		cmd.Env = append(cmd.Environ(), "ROOKERY_ENDPOINTS="+n.address)
	}
	out, err := cmd.Output()
	if _, exit := errors.AsType[*exec.ExitError](err); err != nil && !exit {
		in.t.Fatal(err)
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return line
}

// The backup of the night is restored while the backends have moved on.
func TestRestoreIncident(t *testing.T) {
	dir := t.TempDir()
	in := &incident{
		t: t, nodes: &nodes{dir: dir, running: make(map[string]*node)},
		holds: make(map[directory.BackendName]map[directory.MailboxName]bool), epochs: make(map[directory.GroupName]uint64),
	}
	t.Cleanup(in.nodes.killAll)
	ctx := t.Context()
	night := filepath.Join(dir, "night.snap")

	// 03:00. Two backends in a group, two alone, a fork. The backup.
	in.start("n1")
	in.create("be1", "user.anna", "user.anna.Sent", "user.bert")
	in.ctl(0, "backends", "set", "be2", "--create")
	in.ctl(0, "groups", "set", "g1", "--members", "be1,be2")
	in.create("be2", "user.anna", "user.anna.Sent", "user.bert")
	in.create("be3", "user.carl", "user.dora", "user.emil", "user.fork", "user.carl.Old")
	in.create("be4", "user.gabi")
	in.create("be4", "user.fork")
	for server := range in.holds {
		if _, err := in.c.ConfirmBackend(ctx, server, directory.ByResync); err != nil {
			t.Fatal(err)
		}
	}
	in.look("03:00")
	in.want("user.nobody", directory.NotFound, "")
	in.ctl(0, "hold", "user", "gabi", "--for", "24h", "--why", "a move")
	in.ctl(0, "reserve", "user.hans", "--server", "be4")
	in.ctl(0, "snapshot", "save", night)
	if out := in.ctl(0, "snapshot", "status", night); !strings.Contains(out, "4 backends in 3 groups; 9 mailboxes (7 users), 13 facts, 1 fork") {
		t.Errorf("snapshot status: got %s", out)
	}
	in.ctl(1, "snapshot", "save", night)

	// 09:00 to 15:00. The day, of which the backup knows nothing.
	in.ctl(0, "hold", "release", "user", "gabi")
	in.create("be4", "user.hans", "user.hans.Sent")
	in.drop("be3", "user.emil")
	in.drop("be3", "user.carl.Old")
	in.create("be3", "user.ida")
	if _, err := in.c.Deactivate(ctx, client.Deactivate{Mailbox: "user.dora", Server: "be3"}); err != nil {
		t.Fatal(err)
	}
	in.create("be4", "user.dora")
	delete(in.holds["be3"], "user.dora")
	in.ctl(0, "switchover", "g1", "--to", "be2")
	in.create("be2", "user.jana")
	in.create("be1", "user.jana")
	in.look("15:00")
	in.want("user.dora", directory.Serving, "be4")
	in.want("user.anna", directory.Serving, "be2")
	old, oldRevision := in.c.Token(), in.lookup("user.jana").Revision
	asked := in.c // a process that goes on through all of it

	// 15:01. The directory is lost. 15:20. The backup is restored, on another machine.
	in.kill("n1")
	out := in.ctl(0, "snapshot", "restore", night, "--data", filepath.Join(dir, "n2"), "--name", "n2")
	if !strings.Contains(out, "incarnation 2") || !strings.Contains(out, "rookeryd --name n2 --data") || !strings.Contains(out, "RECOVERING") {
		t.Errorf("snapshot restore: got %s", out)
	}
	in.start("n2")
	if got, want := in.headline(), "RECOVERING 0/4 backends confirmed"; !strings.HasPrefix(got, want) {
		t.Errorf("status: got %q, want %q", got, want)
	}
	before := maps.Clone(in.epochs)
	in.look("15:20")
	for group, epoch := range in.epochs {
		if was := before[group]; was != 0 && epoch < was+1<<31 {
			t.Errorf("%s: epoch %d after %d", group, epoch, was)
		}
	}
	// What is as it was serves IMAP, and delivery waits. What the backup does not know is
	// not denied. What somebody claimed or held last night is not.
	in.want("user.anna", directory.Unconfirmed, "be1")
	in.want("user.dora", directory.Unconfirmed, "be3")
	in.want("user.gabi", directory.Unconfirmed, "be4")
	in.want("user.hans", directory.Incomplete, "")
	in.want("user.nobody", directory.Incomplete, "")
	in.want("user.fork", directory.Unconfirmed, "be3")
	if r := in.lookup("user.fork"); r.Forked {
		t.Error("user.fork is said to be forked, before anybody was heard")
	}
	if r := in.lookup("user.anna"); r.Revision <= oldRevision || r.Incarnation != 2 {
		t.Errorf("revision %d of incarnation %d, after %d", r.Revision, r.Incarnation, oldRevision)
	}
	if l, err := in.c.List(ctx, client.ListQuery{Principal: directory.Principal{User: "anna"}, Patterns: []string{"*"}}); err != nil || len(l.Rows) != 2 || l.Complete {
		t.Errorf("LIST: got %+v, %v; want anna's two mailboxes, incomplete", l, err)
	}
	// Old tokens are refused as such; old epochs too.
	if _, err := in.c.Lookup(ctx, "user.anna", client.AtLeast(old)); !errors.Is(err, client.ErrWrongIncarnation) {
		t.Errorf("a token of the day: got %v, want ErrWrongIncarnation", err)
	}
	if r, err := in.c.NewSession(old).Lookup(ctx, "user.anna"); err != nil || r.Incarnation != 2 {
		t.Errorf("a session of the day: got %+v, %v; want it to go on in the new life", r, err)
	}
	if _, err := in.c.SetPrimary(ctx, client.SetPrimary{Group: "g1", To: "be2", Epoch: 1, AcceptMissing: true}); !errors.Is(err, directory.ErrStaleEpoch) {
		t.Errorf("a switchover at last night's epoch: got %v, want ErrStaleEpoch", err)
	}
	if _, err := in.c.Reserve(ctx, client.Reserve{Mailbox: "user.karl", Server: "be3"}); !errors.Is(err, directory.ErrIncomplete) {
		t.Errorf("a new user while it is not known who has whom: got %v, want ErrIncomplete", err)
	}

	// 15:30. The backends come back, one after the other, the one with the moved
	// mailbox's new copy first.
	for i, server := range []directory.BackendName{"be4", "be1", "be3", "be2"} {
		if got, want := in.headline(), fmt.Sprintf("RECOVERING %d/4 backends confirmed", i); !strings.HasPrefix(got, want) {
			t.Errorf("status: got %q, want %q", got, want)
		}
		in.want("user.nobody", directory.Incomplete, "")
		in.resync(server)
		if server == "be4" {
			in.want("user.dora", directory.Serving, "be4")
			in.want("user.hans", directory.Serving, "be4")
		}
	}

	// 15:40. All is known again.
	if got, want := in.headline(), "degraded: 1 fork"; got != want {
		t.Errorf("status: got %q, want %q", got, want)
	}
	for name, server := range map[directory.MailboxName]directory.BackendName{
		"user.anna": "be1", "user.anna.Sent": "be1", "user.bert": "be1", "user.jana": "be1", "user.carl": "be3", "user.ida": "be3", "user.dora": "be4", "user.gabi": "be4", "user.hans": "be4",
	} {
		in.want(name, directory.Serving, server)
	}
	for _, name := range []directory.MailboxName{"user.emil", "user.nobody", "user.carl.Old"} {
		in.want(name, directory.NotFound, "")
	}
	if r := in.lookup("user.fork"); !r.Forked || r.Outcome != directory.Serving {
		t.Errorf("user.fork: got %+v", r)
	}
	in.ctl(0, "check")
	if out := in.ctl(0, "settings", "get", "automation-paused"); !strings.Contains(out, "yes") {
		t.Errorf("settings: got %s", out)
	}

	// 16:00. Somebody finds the old node and switches it on. Who has seen the new cluster
	// does not believe it, and tells it nothing.
	asked.Close()
	seen := in.c.Token()
	in.oldComesBack(seen)

	// Next morning somebody takes recover for a restart.
	recover := []string{"recover", "--survivor", "n2", "--data", filepath.Join(dir, "n2")}
	if out := in.ctl(1, append(recover, "--yes")...); !strings.Contains(out, "runs: stop it first") {
		t.Errorf("recover of a running node: got %s", out)
	}
	in.kill("n2")
	if out := in.ctl(1, recover...); !strings.Contains(out, "nothing was changed") {
		t.Errorf("recover, not asked: got %s", out)
	}
	if out := in.ctl(1, "recover", "--survivor", "n3", "--data", filepath.Join(dir, "n2"), "--yes"); !strings.Contains(out, `belongs to node "n2"`) {
		t.Errorf("recover of another node: got %s", out)
	}
	if out := in.ctl(1, append(recover, "--yes")...); !strings.Contains(out, "only voter already") {
		t.Errorf("recover of a node that was alone: got %s", out)
	}
	in.start("n2")
	in.look("started again")
	if got, want := in.headline(), "degraded: 1 fork"; got != want {
		t.Errorf("status: got %q, want %q", got, want)
	}
}

// oldComesBack starts the node of the life before beside the one that runs.
func (in *incident) oldComesBack(seen []byte) {
	in.t.Helper()
	t := in.t
	running := in.nodes.running["n2"].address
	n := in.launch("n1")
	both := in.dial(n.address, running)
	for range 5 {
		r, err := both.NewSession(seen).Lookup(t.Context(), "user.hans")
		if err != nil || r.Incarnation != 2 {
			t.Errorf("asked of both: got %+v, %v, want the new life", r, err)
		}
	}
	if r := in.assert(both, "be3", "user.ida"); r.Incarnation != 2 {
		t.Errorf("said to both: it was done in incarnation %d", r.Incarnation)
	}
	in.kill("n1")
}

// Two of three nodes are lost for good, and the third goes on alone. Then the two come
// back after all, with what they had: a majority of the cluster that was given up.
func TestRecoverIncident(t *testing.T) {
	dir := t.TempDir()
	in := &incident{
		t: t, nodes: &nodes{dir: dir, running: make(map[string]*node), args: make(map[string][]string)},
		holds: make(map[directory.BackendName]map[directory.MailboxName]bool), epochs: make(map[directory.GroupName]uint64),
	}
	t.Cleanup(in.nodes.killAll)
	ctx := t.Context()
	if err := in.nodes.found(3); err != nil {
		t.Fatal(err)
	}
	in.c = in.dial(in.nodes.addresses()...)
	for i := range 30 {
		in.create([]directory.BackendName{"be1", "be2"}[i%2], directory.MailboxName(fmt.Sprintf("user.u%d", i)))
	}
	for server := range in.holds {
		if _, err := in.c.ConfirmBackend(ctx, server, directory.ByResync); err != nil {
			t.Fatal(err)
		}
	}
	// A read at n3 that sees all of it: n3 has it.
	in.c = in.dial(in.nodes.running["n3"].address)
	in.look("before")

	data := filepath.Join(dir, "n3")
	recover := []string{"recover", "--survivor", "n3", "--data", data, "--yes"}
	if out := in.ctl(1, recover...); !strings.Contains(out, "runs: stop it first") {
		t.Errorf("recover of a node that runs: got %s", out)
	}
	in.kill("n1")
	in.kill("n2")
	in.kill("n3")
	was := regexp.MustCompile(`was: cluster ([0-9a-f]+) incarnation 1 .*\nis:  cluster ([0-9a-f]+) incarnation 2 `).FindStringSubmatch(in.ctl(0, recover...))
	if was == nil || was[1] == was[2] {
		t.Fatalf("recover: got the identities %q", was)
	}
	in.start("n3") // --initial-cluster stands in its flags as before
	if got, want := in.headline(), "RECOVERING 0/2 backends confirmed"; !strings.HasPrefix(got, want) {
		t.Errorf("status: got %q, want %q", got, want)
	}
	in.look("recovered")
	in.want("user.u7", directory.Unconfirmed, "be2")
	seen := in.c.Token()

	// The old two find each other and elect a leader: who knows no better believes them.
	in.launch("n1")
	in.launch("n2")
	old := []string{in.nodes.running["n1"].address, in.nodes.running["n2"].address}
	unaware := in.dial(old...)
	if r, err := unaware.Lookup(ctx, "user.u7"); err != nil || r.Incarnation != 1 || r.Outcome != directory.Serving {
		t.Fatalf("the old majority: got %+v, %v; want it to serve", r, err)
	}
	// Who has seen the new life takes nothing from them and tells them nothing.
	aware := in.dial(append(old, in.nodes.running["n3"].address)...)
	for range 10 {
		if r, err := aware.NewSession(seen).Lookup(ctx, "user.u7"); err != nil || r.Incarnation != 2 {
			t.Errorf("asked of all three: got %+v, %v; want the new life", r, err)
		}
		if r := in.assert(aware, "be1", "user.u8"); r.Incarnation != 2 {
			t.Errorf("said to all three: it was done in incarnation %d", r.Incarnation)
		}
	}
	in.kill("n3")
	short, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if r, err := aware.Lookup(short, "user.u7"); err == nil {
		t.Errorf("asked of the old two alone: got %+v", r)
	}
	if r, err := aware.Retract(short, client.Retract{Mailbox: "user.u8", Server: "be1"}); err == nil {
		t.Errorf("said to the old two alone: got %+v", r)
	}
	if r, err := unaware.Lookup(ctx, "user.u8"); err != nil || r.Outcome != directory.Serving {
		t.Errorf("the old two were told by who knows better: got %+v, %v", r, err)
	}
	in.start("n3")
	in.look("started again")

	// Neither side talks to the other, and either log says why, with both names.
	mentions := func(name, message string) bool {
		log, err := os.ReadFile(filepath.Join(dir, name+".log"))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(log)) {
			if strings.Contains(line, message) && strings.Contains(line, was[1]) && strings.Contains(line, was[2]) && strings.Contains(line, "has missed a restore or a recovery") {
				return true
			}
		}
		return false
	}
	for name, message := range map[string]string{"n1": "peer not connected", "n2": "peer not connected", "n3": "peer refused"} {
		until := time.Now().Add(20 * time.Second)
		for !mentions(name, message) && time.Now().Before(until) {
			time.Sleep(50 * time.Millisecond)
		}
		if !mentions(name, message) {
			t.Errorf("the log of %s does not say %q with both clusters", name, message)
		}
	}

	// An emptied n1 joins the new cluster; n2 is there still.
	in.kill("n1")
	if err := os.RemoveAll(filepath.Join(dir, "n1")); err != nil {
		t.Fatal(err)
	}
	if err := in.nodes.join("n1"); err != nil {
		t.Fatal(err)
	}
	at := "--endpoints=" + in.nodes.running["n3"].address
	retry := func(args ...string) {
		t.Helper()
		var out string
		for until := time.Now().Add(20 * time.Second); time.Now().Before(until); time.Sleep(200 * time.Millisecond) {
			b, err := exec.Command(filepath.Join(bin, "rookeryctl"), args...).CombinedOutput()
			if err == nil {
				return
			}
			out = string(b)
		}
		t.Fatalf("rookeryctl %q: %s", args, out)
	}
	retry("member", "add", "n1", at)
	if err := in.nodes.running["n1"].serves(); err != nil {
		t.Fatal(err)
	}
	retry("member", "promote", "n1", at)
	in.c = in.dial(in.nodes.running["n1"].address)
	in.look("at n1")
	in.kill("n2")
	for _, server := range []directory.BackendName{"be1", "be2"} {
		in.resync(server)
	}
	in.want("user.u7", directory.Serving, "be2")
	if out := in.ctl(1, "status", at); !strings.Contains(out, "2 voters, and both must answer") {
		t.Errorf("status: got %s", out)
	}
}
