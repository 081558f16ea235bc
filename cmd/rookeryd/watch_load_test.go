package main_test

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
)

// The defaults are for `make test`; `make watch-load` asks for more.
var (
	loadNodes     = flag.Int("load.nodes", 1, "how many nodes TestWatchLoad starts")
	loadWatchers  = flag.Int("load.watchers", 30, "how many watchers there are")
	loadRate      = flag.Int("load.rate", 500, "changes a second")
	loadTime      = flag.Duration("load.time", 5*time.Second, "how long there are changes")
	loadKillEvery = flag.Duration("load.kill", 2*time.Second, "how often a node is killed, and in between a process of watchers; 0: never")
	loadMailboxes = flag.Int("load.mailboxes", 5000, "how many mailboxes there are")
)

// loadProcesses is how many processes the watchers are in.
const loadProcesses = 2

// loadQuery is what the i-th watcher watches.
func loadQuery(i int) client.WatchQuery {
	q := client.WatchQuery{Details: true, Progress: 500 * time.Millisecond}
	switch {
	case i%20 == 0: // everything
	case i%4 == 1:
		q.Server = directory.BackendName(fmt.Sprintf("be%d.load.test", i%10))
	case i%4 == 2:
		q.Prefix = fmt.Sprintf("user.w%d", 1+i%9)
	default:
		q.User = directory.UserID(fmt.Sprintf("w%d", i))
	}
	return q
}

// loadDigest is what a view comes to: how many mailboxes, and a sum of all that is
// known of them.
type loadDigest struct {
	Mailboxes int
	Sum       uint64
}

func (d *loadDigest) add(r client.Route) {
	h := fnv.New64a()
	fmt.Fprintf(h, "%s %s %s %s %d", r.Mailbox, r.Outcome, r.Server.Name, r.Group, r.Changed)
	for _, f := range r.Facts {
		fmt.Fprintf(h, " %s!%s %s %s %d-%d %q", f.Server, f.Partition, f.State, f.Standing, f.First, f.Last, f.ACL)
	}
	d.Mailboxes++
	d.Sum += h.Sum64()
}

// loadReport is what one process of watchers has seen.
type loadReport struct {
	Digests                map[int]loadDigest // by watcher
	Revision               map[int]directory.Revision
	Events, Resets, Breaks int
	Lag                    []time.Duration // a sample
}

// loadTask is what a process of watchers is to do.
type loadTask struct {
	Endpoints []string
	Watchers  []int
	Seed      uint64
}

const loadEnv = "ROOKERY_LOAD_TASK"

// TestWatchLoadProcess is a process of watchers, when TestWatchLoad starts it as one.
func TestWatchLoadProcess(t *testing.T) {
	text := os.Getenv(loadEnv)
	if text == "" {
		return
	}
	var task loadTask
	if err := json.Unmarshal([]byte(text), &task); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var end atomic.Uint64 // the revision to wait for; 0: not told yet
	var mu sync.Mutex
	report := loadReport{Digests: map[int]loadDigest{}, Revision: map[int]directory.Revision{}}
	var wg sync.WaitGroup
	for _, i := range task.Watchers {
		// A client each: as many connections as watchers.
		c, err := client.Dial(task.Endpoints)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		wg.Go(func() {
			w := &loadWatcher{c: c, q: loadQuery(i), rng: rand.New(rand.NewPCG(task.Seed, uint64(i))), mirror: client.NewMirror(), end: &end}
			if err := w.run(ctx); err != nil {
				t.Errorf("watcher %d: %v", i, err)
			}
			var d loadDigest
			for r := range w.mirror.All() {
				d.add(r)
			}
			mark, _ := w.mirror.Mark()
			mu.Lock()
			defer mu.Unlock()
			report.Digests[i], report.Revision[i] = d, mark.Revision
			report.Events += w.events
			report.Resets += w.resets
			report.Breaks += w.breaks
			report.Lag = append(report.Lag, w.lag...)
		})
	}
	fmt.Println("watching")
	in := bufio.NewScanner(os.Stdin)
	if in.Scan() {
		n, err := strconv.ParseUint(in.Text(), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		end.Store(n)
	}
	wg.Wait()
	out, err := json.Marshal(report)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("report %s\n", out)
}

// loadWatcher watches, breaks off now and then, and goes on with what it has.
type loadWatcher struct {
	c      *client.Client
	q      client.WatchQuery
	rng    *rand.Rand
	mirror *client.Mirror
	end    *atomic.Uint64

	events, resets, breaks int
	lag                    []time.Duration
}

// run watches until a mark has come that is not before the end.
func (w *loadWatcher) run(ctx context.Context) error {
	newest := directory.Revision(0)
	for {
		left := time.Now().Add(time.Duration(w.rng.IntN(8000)) * time.Millisecond)
		for u, err := range w.c.Watch(ctx, w.q) {
			if err != nil {
				return err
			}
			now := time.Now()
			if u.Reset {
				w.resets++
			}
			if u.Revision < newest {
				return fmt.Errorf("told of revision %d after %d", u.Revision, newest)
			}
			newest = u.Revision
			w.mirror.Apply(u)
			w.events += len(u.Events)
			if !u.Listing && len(u.Events) > 0 && len(w.lag) < 20_000 {
				e := u.Events[w.rng.IntN(len(u.Events))]
				if e.Kind == client.WatchMailbox && len(e.Mailbox.Facts) > 0 {
					if ns, err := strconv.ParseInt(e.Mailbox.Facts[0].Partition[1:], 10, 64); err == nil {
						w.lag = append(w.lag, now.Sub(time.Unix(0, ns)))
					}
				}
			}
			if !u.Mark {
				continue
			}
			w.q.From = u.Token
			if end := w.end.Load(); end != 0 && uint64(u.Revision) >= end {
				return nil
			}
			if now.After(left) && w.end.Load() == 0 {
				w.breaks++
				break
			}
		}
	}
}

// loadProcess is a running TestWatchLoadProcess.
type loadProcess struct {
	task  loadTask
	cmd   *exec.Cmd
	stdin *os.File
	out   *bufio.Scanner
	errs  strings.Builder
}

func startLoadProcess(t *testing.T, task loadTask) *loadProcess {
	t.Helper()
	text, err := json.Marshal(task)
	if err != nil {
		t.Fatal(err)
	}
	p := &loadProcess{task: task, cmd: exec.Command(os.Args[0], "-test.run", "^TestWatchLoadProcess$", "-test.timeout", "30m")}
	p.cmd.Env = append(os.Environ(), loadEnv+"="+string(text))
	p.cmd.Stderr = &p.errs
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p.cmd.Stdin, p.stdin = read, write
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	read.Close()
	p.out = bufio.NewScanner(out)
	p.out.Buffer(nil, 64<<20)
	return p
}

func (p *loadProcess) kill() {
	_ = p.cmd.Process.Kill() // it may have ended
	_ = p.cmd.Wait()
	p.stdin.Close()
}

// finish tells the process the revision to wait for, and reads its report.
func (p *loadProcess) finish(t *testing.T, end directory.Revision) (r loadReport) {
	t.Helper()
	fmt.Fprintln(p.stdin, end)
	p.stdin.Close()
	var said []string
	found := false
	for p.out.Scan() {
		if text, ok := strings.CutPrefix(p.out.Text(), "report "); ok {
			found = true
			if err := json.Unmarshal([]byte(text), &r); err != nil {
				t.Errorf("a report: %v", err)
			}
			continue
		}
		said = append(said, p.out.Text())
	}
	if err := p.cmd.Wait(); err != nil || !found {
		t.Fatalf("a process of watchers: %v\n%s\n%s", err, strings.Join(said, "\n"), p.errs.String())
	}
	return r
}

// startLoadNodes starts nodes of one cluster.
func startLoadNodes(t *testing.T, count int) (nodes []*node, endpoints []string) {
	file := program(t)
	var members []string
	for i := range count {
		n := &node{t: t, program: file, name: fmt.Sprint("n", i+1), data: filepath.Join(t.TempDir(), fmt.Sprint("data", i)), client: freePort(t), peer: freePort(t), http: freePort(t)}
		t.Cleanup(n.kill)
		nodes, endpoints, members = append(nodes, n), append(endpoints, n.client), append(members, n.name+"="+n.peer)
	}
	for _, n := range nodes {
		if count > 1 {
			n.more = []string{"--initial-cluster", strings.Join(members, ",")}
		}
		n.start()
	}
	for _, n := range nodes {
		n.ready()
	}
	return nodes, endpoints
}

// TestWatchLoad has watchers in processes of their own watch a cluster under load
// over TCP, kills nodes and watchers, and compares at the end what each watcher knows
// with the directory.
func TestWatchLoad(t *testing.T) {
	nodes, endpoints := startLoadNodes(t, *loadNodes)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Minute)
	defer cancel()
	c, err := client.Dial(endpoints, client.WithTimeout(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.SetSettings(ctx, client.SettingsChange{GuardCount: new(uint32(1 << 30))}); err != nil {
		t.Fatal(err)
	}
	w := &loadWriter{c: c, population: *loadMailboxes}
	for i := 0; i < w.population; i += 500 { // all of them, and so all servers
		if err := w.write(ctx, 500, func(n int) int { return (i + n) % w.population }, false); err != nil {
			t.Fatal(err)
		}
	}

	tasks := make([]loadTask, loadProcesses)
	for i := range *loadWatchers {
		task := &tasks[i%loadProcesses]
		task.Watchers = append(task.Watchers, i)
	}
	processes := make([]*loadProcess, loadProcesses)
	start := func(i int) {
		tasks[i].Endpoints, tasks[i].Seed = endpoints, rand.Uint64()
		processes[i] = startLoadProcess(t, tasks[i])
	}
	for i := range processes {
		start(i)
	}
	t.Cleanup(func() {
		for _, p := range processes {
			p.kill()
		}
	})

	begun := time.Now()
	stop := make(chan struct{})
	failed := make(chan error, 1)
	go func() { failed <- w.run(ctx, *loadRate, stop) }()
	kills, killed := 0, 0
	var memory int
	var busy time.Duration // of nodes that were killed
	atStart := time.Duration(0)
	for _, n := range nodes {
		atStart += n.busy()
	}
	for turn := 0; time.Since(begun) < *loadTime; turn++ {
		time.Sleep(min(max(*loadKillEvery, time.Second), *loadTime-time.Since(begun)))
		for _, n := range nodes {
			memory = max(memory, n.memory())
		}
		if *loadKillEvery == 0 || time.Since(begun) >= *loadTime {
			continue
		}
		if turn%2 == 0 {
			n := nodes[rand.IntN(len(nodes))]
			busy += n.busy()
			n.kill()
			n.start()
			n.ready()
			kills++
			continue
		}
		i := rand.IntN(len(processes))
		processes[i].kill()
		start(i)
		killed++
	}
	close(stop)
	if err := <-failed; err != nil {
		t.Fatal(err)
	}
	took := time.Since(begun)
	for _, n := range nodes {
		busy += n.busy()
	}
	busy -= atStart

	st, err := c.Status(ctx, client.Linearizable())
	if err != nil {
		t.Fatal(err)
	}
	var all loadReport
	digests := map[int]loadDigest{}
	settling := time.Now()
	for _, p := range processes {
		r := p.finish(t, st.Revision)
		for i, d := range r.Digests {
			digests[i] = d
			if r.Revision[i] < st.Revision {
				t.Errorf("watcher %d ended at revision %d, the end is %d", i, r.Revision[i], st.Revision)
			}
		}
		all.Events += r.Events
		all.Resets += r.Resets
		all.Breaks += r.Breaks
		all.Lag = append(all.Lag, r.Lag...)
	}
	told := time.Since(settling)
	wants := make([]loadDigest, *loadWatchers)
	for r, err := range c.FindAll(ctx, client.FindQuery{PageSize: 1000}) {
		if err != nil {
			t.Fatal(err)
		}
		for i := range wants {
			q := loadQuery(i)
			if (q.User == "" || r.Mailbox.OwnedBy(q.User)) && strings.HasPrefix(string(r.Mailbox), q.Prefix) && (q.Server == "" || r.Fact(q.Server) != nil) {
				wants[i].add(r)
			}
		}
	}
	for i, want := range wants {
		if got, ok := digests[i]; !ok || got != want {
			t.Errorf("watcher %d (%+v): knows %+v, the directory is %+v", i, loadQuery(i), got, want)
		}
	}
	slices.Sort(all.Lag)
	part := func(p float64) time.Duration {
		if len(all.Lag) == 0 {
			return 0
		}
		return all.Lag[int(p*float64(len(all.Lag)-1))]
	}
	t.Logf("%d nodes, %d watchers in %d processes, %d mailboxes; %d changes in %v: %.0f a second", *loadNodes, *loadWatchers, loadProcesses, w.population, w.changes, took.Round(time.Millisecond), float64(w.changes)/took.Seconds())
	t.Logf("%d kills of nodes, %d of processes of watchers, %d breaks; %d listings", kills, killed, all.Breaks, all.Resets)
	t.Logf("%d events, %.0f a second, from write to watcher p50 %v, p99 %v (%d sampled, downtime of nodes included); all told %v after the last change", all.Events, float64(all.Events)/took.Seconds(), part(0.5).Round(10*time.Microsecond), part(0.99).Round(10*time.Microsecond), len(all.Lag), told.Round(time.Millisecond))
	t.Logf("a node's memory at most %d MiB; processor time of all nodes %v", memory>>20, busy.Round(10*time.Millisecond))
	if all.Events == 0 || w.changes == 0 || *loadKillEvery > 0 && kills == 0 {
		t.Error("too little happened to prove anything")
	}
}

// memory is the process's resident set in octets, 0 where that cannot be told.
func (n *node) memory() int {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", n.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		// The file that is mapped is the page cache's, not the node's.
		if f := strings.Fields(line); len(f) == 3 && f[0] == "RssAnon:" {
			kib, _ := strconv.Atoi(f[1])
			return kib << 10
		}
	}
	return 0
}

// busy is the processor time that the process has taken, 0 where that cannot be told.
func (n *node) busy() time.Duration {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", n.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	f := strings.Fields(rest)
	if len(f) < 13 {
		return 0
	}
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	const tick = 10 * time.Millisecond // USER_HZ is 100
	return time.Duration(user+system) * tick
}

// loadWriter changes mailboxes.
type loadWriter struct {
	c          *client.Client
	population int
	changes    int
}

// write changes n mailboxes in one step.
func (w *loadWriter) write(ctx context.Context, n int, which func(int) int, retract bool) error {
	ops := make([]client.Op, n)
	for i := range ops {
		k := which(i)
		name := directory.MailboxName(fmt.Sprintf("user.w%d.f%d", k/10, k%10))
		if k%10 == 0 {
			name = directory.MailboxName(fmt.Sprintf("user.w%d", k/10))
		}
		server := directory.BackendName(fmt.Sprintf("be%d.load.test", k/10%10))
		if retract && rand.IntN(10) == 0 {
			ops[i] = client.Retract{Mailbox: name, Server: server}
			continue
		}
		acl := fmt.Sprintf("w%d\tlrswipkxtecdan\t", k/10)
		ops[i] = client.Assert{Mailbox: name, Server: server, Statement: directory.Statement{Partition: fmt.Sprintf("p%d", time.Now().UnixNano()), ACL: &acl}}
	}
	_, err := w.c.Batch(ctx, ops)
	return err
}

// run makes so many changes a second until stop is closed, a step at a time. Time that
// a node was down is not made up for.
func (w *loadWriter) run(ctx context.Context, rate int, stop <-chan struct{}) error {
	const step = 10 * time.Millisecond
	ticker := time.NewTicker(step)
	defer ticker.Stop()
	debt, last := 0.0, time.Now()
	for {
		select {
		case <-stop:
			return nil
		case <-ticker.C:
		}
		debt += float64(rate) * min(time.Since(last), 20*step).Seconds()
		last = time.Now()
		n := int(debt)
		if n == 0 {
			continue
		}
		debt -= float64(n)
		if err := w.write(ctx, n, func(int) int { return rand.IntN(w.population) }, true); err != nil {
			return err
		}
		w.changes += n
	}
}
