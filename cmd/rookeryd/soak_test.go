package main_test

import (
	"context"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
)

var (
	soakWrites = flag.Float64("soak.writes", 4, "how many rounds of writes TestSoak begins a second; a round is two to six calls")
	soakReads  = flag.Float64("soak.reads", 10, "how many reads TestSoak makes a second")
	soakSites  = flag.Int("soak.sites", 3000, "how many mailboxes TestSoak only changes and asks for")
)

// soakJudged is the shortest soak that is judged: less of it is all warming up.
const soakJudged = 90 * time.Second

// TestSoak has three nodes serve everything that clients and operators do, over
// and over, while the directory stays the same size, and looks whether what the
// nodes take of the machine stays the same too: memory, descriptors, goroutines,
// files. The process of the test is held to the same, for the client library is
// in it.
//
// Every write belongs to a round that leaves things as it found them, so what
// grows is not the state. n1 and n2 run from the first moment to the last; n3 is
// stopped and killed, so that the others must let go of it.
func TestSoak(t *testing.T) {
	nodes := newCluster(t, "--ballast", "0", "--log-size", "1MiB")
	ctx, cancel := context.WithTimeout(t.Context(), *soakTime+time.Hour)
	defer cancel()
	s := newSoak(t, ctx, nodes)
	mailboxes := s.fill()

	step := min(max(*soakTime/60, 500*time.Millisecond), time.Minute)
	stop := make(chan struct{})
	var load, looks sync.WaitGroup
	for i := range soakUsers {
		u := s.user(i)
		load.Go(func() { s.paced(stop, *soakWrites/soakUsers, u.round) })
	}
	for range 4 {
		load.Go(func() { s.paced(stop, *soakReads/4, s.read) })
	}
	for i := range 12 {
		load.Go(func() { s.watch(stop, i, step) })
	}
	load.Go(func() { s.visit(stop, step/4) })
	looks.Go(func() { s.sample(stop, min(max(*soakTime/480, 200*time.Millisecond), 10*time.Second)) })

	begun := time.Now()
	for n := 0; time.Since(begun) < *soakTime && s.failed() == nil; n++ {
		time.Sleep(min(step, max(0, *soakTime-time.Since(begun))))
		s.operate(n, step)
	}
	close(stop)
	load.Wait()
	looks.Wait()
	if err := s.failed(); err != nil {
		for _, n := range nodes {
			t.Logf("%s\n%s", n.name, tail(n.log.String(), 30))
		}
		t.Fatal(err)
	}

	t.Logf("%v: %d rounds of writes (%v), %d reads, %d events of %d watches, %d visits, operators: %v", time.Since(begun).Round(time.Second),
		s.rounds.Load(), &s.kinds, s.reads.Load(), s.events.Load(), s.watches.Load(), s.visits.Load(), &s.acts)
	for _, n := range nodes {
		t.Logf("%s has taken %v of a processor since its start", n.name, n.busy().Round(time.Second))
	}
	table, growing := report(s.series)
	t.Logf("\n%s", table)
	switch {
	case *soakTime < soakJudged:
		t.Logf("less than %v is not judged", soakJudged)
	case len(growing) > 0:
		t.Errorf("not flat: %s", strings.Join(growing, "; "))
	default:
		t.Log("flat")
	}
	if s.rounds.Load() == 0 || s.reads.Load() == 0 || s.events.Load() == 0 || s.visits.Load() == 0 {
		t.Error("too little happened to prove anything")
	}
	intact(t, ctx, s.c, mailboxes)
}

// soakUsers is how many users write at the same time.
const soakUsers = 8

// The backends of the soak. A pair is one replica group.
var (
	soakAlone = []directory.BackendName{"be0.soak.test", "be1.soak.test", "be2.soak.test", "be3.soak.test"}
	soakPair  = []directory.BackendName{"pair-a.soak.test", "pair-b.soak.test"}
)

const soakGroup = directory.GroupName("pair")

// soak is a soak under way.
type soak struct {
	t         *testing.T
	ctx       context.Context
	nodes     []*node
	endpoints []string
	c         *client.Client

	rounds, reads, events, watches, visits atomic.Int64
	kinds, acts                            tally
	err                                    atomic.Pointer[error] // the first

	mu     sync.Mutex // while it is held, no node is started or stopped
	series []*series  // of each node, and of this process
}

func newSoak(t *testing.T, ctx context.Context, nodes []*node) *soak {
	s := &soak{t: t, ctx: ctx, nodes: nodes}
	for _, n := range nodes {
		s.endpoints = append(s.endpoints, n.client)
		s.series = append(s.series, &series{name: n.name})
	}
	s.series = append(s.series, &series{name: "clients"})
	s.c = loaded(t, ctx, nodes)
	return s
}

// fail keeps the first thing that went wrong; it ends the soak.
func (s *soak) fail(err error) { s.err.CompareAndSwap(nil, &err) }

func (s *soak) failed() error {
	if err := s.err.Load(); err != nil {
		return *err
	}
	return nil
}

// must ends the soak unless a call was answered as it has to be.
func (s *soak) must(what string, err error) bool {
	if err != nil {
		s.fail(fmt.Errorf("%s: %w", what, err))
	}
	return err == nil
}

// fill makes the state that the soak keeps, and returns how many mailboxes it has.
func (s *soak) fill() int {
	s.t.Helper()
	must := func(_ client.Result, err error) {
		s.t.Helper()
		if err != nil {
			s.t.Fatal(err)
		}
	}
	// What is kept for a while is kept for less than a look takes.
	short := *soakTime / 60
	must(s.c.SetSettings(s.ctx, client.SettingsChange{
		TombstoneKeep: new(max(short, time.Second)), RequestKeep: new(max(short, time.Minute)), GuardWindow: new(time.Minute),
	}))
	var ops []client.Op
	count := 1 // loaded has made one
	send := func() {
		s.t.Helper()
		results, err := s.c.Batch(s.ctx, ops)
		for _, r := range results {
			if err == nil {
				err = r.Err
			}
		}
		if err != nil {
			s.t.Fatal(err)
		}
		ops = ops[:0]
	}
	for i := range *soakSites {
		ops = append(ops, s.site(i))
		if count++; len(ops) == 500 {
			send()
		}
	}
	for i := range soakUsers {
		u := s.user(i)
		ops = append(ops, u.state("", u.server))
		for f := range 10 {
			ops = append(ops, u.state(fmt.Sprint(".f", f), u.server))
		}
		count += 11
	}
	for i := range 50 {
		for _, server := range soakPair {
			ops = append(ops, client.Assert{Mailbox: directory.MailboxName(fmt.Sprint("user.pair", i)), Server: server, Statement: directory.Statement{Partition: "default"}})
		}
		count++
	}
	// The first of a pair makes its group the home; the second comes when it is in it.
	pairs := ops[len(ops)-100:]
	var firsts, seconds []client.Op
	for i := 0; i < len(pairs); i += 2 {
		firsts, seconds = append(firsts, pairs[i]), append(seconds, pairs[i+1])
	}
	ops = append(ops[:len(ops)-100], firsts...)
	ops = append(ops, client.Assert{Mailbox: "user.pairless", Server: soakPair[1], Statement: directory.Statement{Partition: "default"}},
		client.Retract{Mailbox: "user.pairless", Server: soakPair[1]})
	send()
	must(s.c.SetGroup(s.ctx, client.SetGroup{Group: soakGroup, Members: soakPair, AcceptMissing: true}))
	ops = seconds
	send()
	for _, server := range append(append([]directory.BackendName{"be0.kill.test"}, soakAlone...), soakPair...) {
		must(s.c.ConfirmBackend(s.ctx, server, directory.ByResync))
	}
	return count
}

// site is what is said of a mailbox that is only changed and asked for. What is
// interned comes from a closed set.
func (s *soak) site(i int) client.Op {
	user := i / 10
	name := directory.MailboxName(fmt.Sprintf("user.site%d.f%d", user, i%10))
	if i%10 == 0 {
		name = directory.MailboxName(fmt.Sprintf("user.site%d", user))
	}
	acl := fmt.Sprintf("site%d\tlrswipkxtecdan\tteam%d\tlrs\t%s\tp\t", user, rand.IntN(50), strings.Repeat("x", 400))
	return client.Assert{Mailbox: name, Server: soakAlone[user%len(soakAlone)], Statement: directory.Statement{Partition: fmt.Sprint("p", rand.IntN(8)), ACL: &acl}}
}

// paced does something so often a second, each time a little sooner or later.
func (s *soak) paced(stop <-chan struct{}, rate float64, do func()) {
	for s.failed() == nil {
		wait := time.Duration((0.5 + rand.Float64()) / rate * float64(time.Second))
		select {
		case <-stop:
			return
		case <-time.After(wait):
		}
		do()
	}
}

// soakUser is a user whose mailboxes nobody else writes.
type soakUser struct {
	*soak
	inbox         directory.MailboxName
	id            directory.UserID
	server, other directory.BackendName
	n             int
}

func (s *soak) user(i int) *soakUser {
	return &soakUser{
		soak: s, inbox: directory.MailboxName(fmt.Sprint("user.writer", i)), id: directory.UserID(fmt.Sprint("writer", i)),
		server: soakAlone[i%len(soakAlone)], other: soakAlone[(i+1)%len(soakAlone)], n: i,
	}
}

func (u *soakUser) state(below string, server directory.BackendName) client.Assert {
	acl := fmt.Sprintf("%s\tlrswipkxtecdan\tteam%d\tlrs\t", u.id, rand.IntN(50))
	return client.Assert{Mailbox: u.inbox + directory.MailboxName(below), Server: server, Statement: directory.Statement{Partition: "default", ACL: &acl}}
}

// round is some writes that leave things as they were.
func (u *soakUser) round() {
	ctx, c := u.ctx, u.c
	f, name := u.inbox+".f1", u.inbox+".new"
	kinds := []struct {
		name  string
		steps []func() (client.Result, error)
	}{
		{"create and delete", []func() (client.Result, error){
			func() (client.Result, error) {
				return c.Reserve(ctx, client.Reserve{Mailbox: name, Server: u.server, Partition: "default"})
			},
			func() (client.Result, error) { return c.Assert(ctx, u.state(".new", u.server)) },
			func() (client.Result, error) {
				return c.Retract(ctx, client.Retract{Mailbox: name, Server: u.server})
			},
		}},
		{"reserve and release", []func() (client.Result, error){
			func() (client.Result, error) {
				return c.Reserve(ctx, client.Reserve{Mailbox: name, Server: u.server, Partition: "default"})
			},
			func() (client.Result, error) {
				return c.Release(ctx, client.Release{Mailbox: name, Server: u.server})
			},
		}},
		{"rename", []func() (client.Result, error){
			func() (client.Result, error) {
				return c.Rename(ctx, client.Rename{From: f, To: name, Recursive: true, Server: u.server})
			},
			func() (client.Result, error) {
				return c.Rename(ctx, client.Rename{From: name, To: f, Recursive: true, Server: u.server})
			},
		}},
		{"move", []func() (client.Result, error){
			func() (client.Result, error) {
				return c.Deactivate(ctx, client.Deactivate{Mailbox: f, Server: u.server})
			},
			func() (client.Result, error) { return c.Assert(ctx, u.state(".f1", u.other)) },
			func() (client.Result, error) {
				return c.Deactivate(ctx, client.Deactivate{Mailbox: f, Server: u.other})
			},
			func() (client.Result, error) { return c.Assert(ctx, u.state(".f1", u.server)) },
		}},
		{"fork", []func() (client.Result, error){
			func() (client.Result, error) { return c.Assert(ctx, u.state(".f2", u.other)) },
			func() (client.Result, error) { return c.Settle(ctx, u.inbox+".f2", u.server) },
			func() (client.Result, error) { return c.Assert(ctx, u.state(".f2", u.other)) },
			func() (client.Result, error) {
				return c.Retract(ctx, client.Retract{Mailbox: u.inbox + ".f2", Server: u.other})
			},
		}},
		{"withdraw and stay", []func() (client.Result, error){
			func() (client.Result, error) {
				return c.Retract(ctx, client.Retract{Mailbox: f, Server: u.server, Tentative: true})
			},
			func() (client.Result, error) { return c.Assert(ctx, u.state(".f1", u.server)) },
		}},
		{"subscribe", []func() (client.Result, error){
			func() (client.Result, error) { return c.Subscribe(ctx, u.id, f) },
			func() (client.Result, error) { return c.Unsubscribe(ctx, u.id, f) },
		}},
		{"hold", []func() (client.Result, error){
			func() (client.Result, error) {
				return c.PutHold(ctx, directory.HoldUser, string(u.id), time.Minute, "soak")
			},
			func() (client.Result, error) { return c.ReleaseHold(ctx, directory.HoldUser, string(u.id)) },
		}},
		{"batch", []func() (client.Result, error){
			func() (client.Result, error) {
				at, ops := rand.IntN(*soakSites), make([]client.Op, 120)
				for i := range ops {
					ops[i] = u.site((at + i) % *soakSites)
				}
				results, err := c.Batch(ctx, ops)
				for _, r := range results {
					if err == nil {
						err = r.Err
					}
				}
				return client.Result{}, err
			},
			func() (client.Result, error) { return c.Assert(ctx, u.site(rand.IntN(*soakSites)).(client.Assert)) },
		}},
	}
	u.n++
	kind := kinds[u.n%len(kinds)]
	for i, step := range kind.steps {
		if _, err := step(); !u.must(fmt.Sprintf("%s of %s, step %d", kind.name, u.id, i+1), err) {
			return
		}
	}
	u.kinds.count(kind.name)
	u.rounds.Add(1)
}

// read asks one thing.
func (s *soak) read() {
	i := rand.IntN(*soakSites) / 10
	name, user := directory.MailboxName(fmt.Sprint("user.site", i)), directory.UserID(fmt.Sprint("site", i))
	var err error
	switch rand.IntN(10) {
	case 0:
		_, err = s.c.Lookup(s.ctx, name, client.Linearizable())
	case 1:
		_, err = s.c.Lookup(s.ctx, name, client.Stale(0))
	case 2:
		_, err = s.c.LookupMany(s.ctx, []directory.MailboxName{name, "user.nobody", name + ".f1"})
	case 3:
		_, err = s.c.LookupUser(s.ctx, "nobody")
	case 4:
		_, err = s.c.Find(s.ctx, client.FindQuery{Prefix: string(name)})
	case 5, 6:
		var l client.Listing
		l, err = s.c.List(s.ctx, client.ListQuery{Principal: directory.Principal{User: user}, Patterns: []string{"*"}})
		if err == nil && len(l.Rows) < 10 {
			err = fmt.Errorf("%d rows, want 10 and more", len(l.Rows))
		}
	default:
		var r client.Route
		r, err = s.c.Lookup(s.ctx, name)
		if err == nil && r.Outcome != directory.Serving {
			err = fmt.Errorf("%v, want %v", r.Outcome, directory.Serving)
		}
	}
	if s.must(fmt.Sprintf("a read about %s", name), err) {
		s.reads.Add(1)
	}
}

// watch watches for a while, then something else.
func (s *soak) watch(stop <-chan struct{}, n int, step time.Duration) {
	// At another node than the others, as long as that is there.
	from := n % len(s.endpoints)
	c, err := client.Dial(append(slices.Clone(s.endpoints[from:]), s.endpoints[:from]...), client.WithTimeout(time.Minute))
	if !s.must("a watcher", err) {
		return
	}
	defer c.Close()
	for ; s.failed() == nil; n++ {
		q := client.WatchQuery{Progress: time.Second}
		switch n % 4 {
		case 0:
			q.Server = soakAlone[n/4%len(soakAlone)]
		case 1:
			q.Prefix = fmt.Sprint("user.writer", n/4%soakUsers)
		case 2:
			q.User = directory.UserID(fmt.Sprint("site", n))
		}
		until := time.Now().Add(time.Duration((0.2 + rand.Float64()) * float64(step)))
		for u, err := range c.Watch(s.ctx, q) {
			if !s.must("a watch", err) {
				return
			}
			s.events.Add(int64(len(u.Events)))
			select {
			case <-stop:
				return
			default:
			}
			if u.Mark && time.Now().After(until) {
				break
			}
		}
		s.watches.Add(1)
	}
}

// visit is clients that come, do something, and leave, the odd one in the middle
// of a watch.
func (s *soak) visit(stop <-chan struct{}, every time.Duration) {
	n := 0
	s.paced(stop, 1/every.Seconds(), func() {
		n++
		c, err := client.Dial(s.endpoints, client.WithTimeout(time.Minute))
		if !s.must("a client that comes", err) {
			return
		}
		defer c.Close()
		if _, err := c.Assert(s.ctx, s.site(rand.IntN(*soakSites)).(client.Assert)); !s.must("a client that came", err) {
			return
		}
		ctx, leave := context.WithCancel(s.ctx)
		defer leave()
		for u, err := range c.Watch(ctx, client.WatchQuery{Prefix: "user.writer"}) {
			if !s.must("the watch of a client that came", err) || u.Mark {
				break
			}
		}
		s.visits.Add(1)
	})
}

// operate does the next of the things that operators do.
func (s *soak) operate(n int, step time.Duration) {
	s.t.Helper()
	which := s.nodes[n/6%len(s.nodes)]
	act := []string{"leader moved", "compaction", "backup", "switchover", "node stopped", "check"}[n%6]
	switch act {
	case "leader moved":
		to := s.nodes[rand.IntN(len(s.nodes))].name
		_, err := s.c.MoveLeader(s.ctx, client.NodeRef{Name: to})
		s.must("move the leader to "+to, err)
	case "compaction":
		c, err := client.Dial([]string{which.client})
		if s.must("dial "+which.name, err) {
			defer c.Close()
			_, err = c.Compact(s.ctx, which.name, true, func(uint64, uint64) error { return nil })
			s.must("compact "+which.name, err)
		}
	case "backup":
		c, err := client.Dial([]string{which.client})
		if s.must("dial "+which.name, err) {
			defer c.Close()
			_, err = c.SaveSnapshot(s.ctx, io.Discard, nil)
			s.must("back up "+which.name, err)
		}
	case "switchover":
		groups, err := s.c.ListGroups(s.ctx, soakGroup, client.Linearizable())
		if s.must("groups", err) {
			to := soakPair[0]
			if groups[0].Primary == to {
				to = soakPair[1]
			}
			_, err = s.c.SetPrimary(s.ctx, client.SetPrimary{Group: soakGroup, To: to, Epoch: groups[0].Epoch, Reason: "soak"})
			s.must("switchover", err)
		}
	case "node stopped":
		// As an operator does, and as a power switch does; now and then for so long
		// that it needs a snapshot.
		last := s.nodes[len(s.nodes)-1]
		away := step / 5
		if n/6%4 == 3 {
			away = step * 3 / 2
		}
		s.mu.Lock()
		if n/6%2 == 0 {
			last.stop()
		} else {
			last.kill()
		}
		s.mu.Unlock()
		time.Sleep(away)
		s.mu.Lock()
		last.start()
		s.mu.Unlock()
		last.ready()
	case "check":
		sum, err := s.c.Check(s.ctx, 10, func(client.CheckEvent) error { return nil })
		if err == nil && sum.Faults > 0 {
			err = fmt.Errorf("%d faults", sum.Faults)
		}
		s.must("check", err)
	}
	s.acts.count(act)
}

// sample looks at every process, again and again.
func (s *soak) sample(stop <-chan struct{}, every time.Duration) {
	self := &node{cmd: &exec.Cmd{Process: &os.Process{Pid: os.Getpid()}}}
	begun := time.Now()
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		select {
		case <-stop:
			return
		case <-t.C:
		}
		for i, n := range s.nodes {
			s.mu.Lock()
			if n.cmd != nil {
				// One that has just been started has not looked at its file yet.
				if f, err := n.figures(); err == nil && f.get("rookery_raftstore_state_file_used_bytes") > 0 {
					s.series[i].add(time.Since(begun), [measures]float64{
						float64(n.memory()), f.get("go_memstats_next_gc_bytes"), float64(n.descriptors()), f.get("go_goroutines"),
						f.get("rookery_raftstore_state_file_used_bytes"), f.get("rookery_raftstore_log_bytes"), filesIn(n.data),
					})
				}
			}
			s.mu.Unlock()
		}
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		s.series[len(s.nodes)].add(time.Since(begun), [measures]float64{
			float64(self.memory()), float64(m.NextGC), float64(self.descriptors()), float64(runtime.NumGoroutine()),
		})
	}
}

// filesIn is how much of the disk the files of a directory take.
func filesIn(dir string) (sum float64) {
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil // it is gone
		}
		if info, err := d.Info(); err == nil {
			if st, ok := info.Sys().(*syscall.Stat_t); ok && info.Mode().IsRegular() {
				sum += float64(st.Blocks) * 512
			}
		}
		return nil
	})
	return sum
}

// tally counts things by name.
type tally struct {
	mu     sync.Mutex
	counts map[string]int
}

func (t *tally) count(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.counts == nil {
		t.counts = map[string]int{}
	}
	t.counts[name]++
}

func (t *tally) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var all []string
	for name, n := range t.counts {
		all = append(all, fmt.Sprintf("%s %d", name, n))
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}
