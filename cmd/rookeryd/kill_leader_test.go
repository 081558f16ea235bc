package main_test

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"path/filepath"
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

var leaderKills = flag.Int("leader-kills", 5, "how often TestKillLeader kills the leader")

// newCluster starts three nodes, with further flags, and waits until all answer.
func newCluster(t *testing.T, flags ...string) []*node {
	t.Helper()
	file := program(t)
	var nodes []*node
	var list []string
	for i := range 3 {
		n := &node{t: t, name: fmt.Sprintf("n%d", i+1), program: file, client: freePort(t), peer: freePort(t), http: freePort(t)}
		n.data = filepath.Join(t.TempDir(), n.name)
		list = append(list, n.name+"="+n.peer)
		nodes = append(nodes, n)
		t.Cleanup(n.kill)
	}
	for _, n := range nodes {
		n.more = append([]string{"--initial-cluster", strings.Join(list, ",")}, flags...)
		n.start()
	}
	for _, n := range nodes {
		n.ready()
	}
	return nodes
}

// leads reports whether a node says that it is the leader.
func (n *node) leads() bool {
	resp, err := http.Get("http://" + n.http + "/leader")
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// leaderOf waits until one of nodes leads.
func leaderOf(t *testing.T, nodes []*node) int {
	t.Helper()
	for range 2000 {
		for i, n := range nodes {
			if n.leads() {
				return i
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("nobody leads after 20 s")
	return 0
}

// pauses measures for how long writers had no answer.
type pauses struct {
	mu    sync.Mutex
	since time.Time       // when the leader was killed
	first time.Duration   // until a write was acknowledged that began after
	last  []time.Time     // when each writer was answered last
	worst []time.Duration // of each writer, since the kill
}

func (p *pauses) kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.since, p.first = time.Now(), 0
	clear(p.worst)
}

func (p *pauses) answered(writer int, began time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if p.first == 0 && !p.since.IsZero() && began.After(p.since) {
		p.first = now.Sub(p.since)
	}
	if now.After(p.since) {
		p.worst[writer] = max(p.worst[writer], now.Sub(began))
	}
	p.last[writer] = now
}

// TestKillLeader kills the leader of three under load, again and again, with
// kill -9. Writes go on through the client library as soon as there is another;
// reads on the survivors never fail; what was acknowledged is on every node,
// once.
func TestKillLeader(t *testing.T) {
	if *seed == 0 {
		*seed = rand.Uint64()
	}
	t.Logf("seed %d", *seed)
	rng := rand.New(rand.NewPCG(*seed, 1))
	nodes := newCluster(t)
	var endpoints []string
	for _, n := range nodes {
		endpoints = append(endpoints, n.client)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	defer cancel()
	admin, err := client.Dial(endpoints, client.WithTimeout(30*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	if _, err := admin.SetSettings(ctx, client.SettingsChange{GuardCount: new(uint32(1 << 30)), LogKeep: new(uint64(2000))}); err != nil {
		t.Fatal(err)
	}
	if _, err := admin.Assert(ctx, client.Assert{Mailbox: "user.fixed", Server: "be0.kill.test"}); err != nil {
		t.Fatal(err)
	}

	const count = 8
	p := &pauses{last: make([]time.Time, count), worst: make([]time.Duration, count)}
	var writers []*writer
	for i := range count {
		c, err := client.Dial(endpoints, client.WithTimeout(30*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		writers = append(writers, &writer{
			id: i, c: c, rng: rand.New(rand.NewPCG(*seed, uint64(i+2))), truth: map[directory.MailboxName]string{},
			answered: func(began time.Time) { p.answered(i, began) },
		})
	}

	var again, longest []time.Duration
	var reads, failed atomic.Int64
	for k := range *leaderKills {
		leader := leaderOf(t, nodes)
		stop := make(chan struct{})
		errs := make(chan error, count+2)
		var wg sync.WaitGroup
		for _, w := range writers {
			wg.Go(func() {
				if err := w.run(ctx, stop); err != nil {
					errs <- err
				}
			})
		}
		for i, n := range nodes {
			if i == leader {
				continue
			}
			wg.Go(func() {
				if err := read(ctx, n, stop, &reads, &failed); err != nil {
					errs <- fmt.Errorf("a read on %s: %w", n.name, err)
				}
			})
		}
		time.Sleep(time.Duration(200+rng.IntN(300)) * time.Millisecond)
		p.kill()
		nodes[leader].kill()
		time.Sleep(time.Duration(700+rng.IntN(300)) * time.Millisecond)
		nodes[leader].start()
		nodes[leader].ready()
		close(stop)
		wg.Wait()
		close(errs)
		for err := range errs {
			t.Errorf("kill %d: %v", k, err)
		}
		if t.Failed() {
			for _, n := range nodes {
				t.Logf("%s\n%s", n.name, tail(n.log.String(), 30))
			}
			t.FailNow()
		}
		again = append(again, p.first)
		longest = append(longest, slices.Max(p.worst))
		verify(t, ctx, admin, writers, k)
	}
	// Each node by itself has all of it, and no index that does not follow.
	for _, n := range nodes {
		c, err := client.Dial([]string{n.client}, client.WithTimeout(30*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		verify(t, ctx, c, writers, *leaderKills)
		c.Close()
	}
	total := 0
	for _, w := range writers {
		total += w.acked
	}
	t.Logf("%d kills of the leader, %d writes acknowledged, none lost, none done twice", *leaderKills, total)
	t.Logf("kill to the first write acknowledged: %s", quantiles(again))
	t.Logf("longest wait of one of %d writers:      %s", count, quantiles(longest))
	t.Logf("reads on the survivors: %d, failed: %d", reads.Load(), failed.Load())
	if failed.Load() > 0 {
		t.Errorf("%d of %d reads on the survivors failed", failed.Load(), reads.Load())
	}
	if slices.Contains(again, 0) {
		t.Errorf("after a kill no write was acknowledged: %v", again)
	}
}

// TestLeaderTermination ends the leader of three by SIGTERM under load, as a
// rolling restart does: it hands over first, and no write fails.
func TestLeaderTermination(t *testing.T) {
	nodes := newCluster(t)
	var endpoints []string
	for _, n := range nodes {
		endpoints = append(endpoints, n.client)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	const count = 4
	p := &pauses{last: make([]time.Time, count), worst: make([]time.Duration, count)}
	var writers []*writer
	for i := range count {
		c, err := client.Dial(endpoints, client.WithTimeout(30*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		writers = append(writers, &writer{
			id: i, c: c, rng: rand.New(rand.NewPCG(7, uint64(i))), truth: map[directory.MailboxName]string{},
			answered: func(began time.Time) { p.answered(i, began) },
		})
	}
	stop, errs := make(chan struct{}), make(chan error, count)
	for _, w := range writers {
		go func() { errs <- w.run(ctx, stop) }()
	}
	for range 3 {
		time.Sleep(300 * time.Millisecond)
		leader := nodes[leaderOf(t, nodes)]
		p.kill()
		if err := leader.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		select {
		case <-leader.ended:
		case <-time.After(20 * time.Second):
			t.Fatalf("still running 20 s after SIGTERM\n%s", tail(leader.log.String(), 20))
		}
		if leader.exit != nil || !strings.Contains(leader.log.String(), "msg=closed") || strings.Contains(leader.log.String(), "not handed over") {
			t.Errorf("after SIGTERM: %v\n%s", leader.exit, tail(leader.log.String(), 20))
		}
		leader.cmd = nil
		t.Logf("first write acknowledged %v after SIGTERM, longest wait %v", p.first.Round(time.Millisecond), slices.Max(p.worst).Round(time.Millisecond))
		leader.start()
		leader.ready()
	}
	close(stop)
	for range writers {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	verify(t, ctx, writers[0].c, writers, 0)
}

// read asks one node again and again, and it alone, for what it must know.
func read(ctx context.Context, n *node, stop <-chan struct{}, reads, failed *atomic.Int64) error {
	armed := false
	c, err := client.Dial([]string{n.client}, client.WithObserver(func(a client.Attempt) {
		if armed && a.Err != nil {
			failed.Add(1)
		}
	}))
	if err != nil {
		return err
	}
	defer c.Close()
	for {
		select {
		case <-stop:
			return nil
		default:
		}
		r, err := c.Lookup(ctx, "user.fixed", client.Details())
		if err != nil {
			return err
		}
		if len(r.Facts) != 1 {
			return fmt.Errorf("user.fixed has %d facts, want 1", len(r.Facts))
		}
		armed = true // the first read needs a leader: the session has seen nothing
		reads.Add(1)
		time.Sleep(2 * time.Millisecond)
	}
}

// quantiles prints the middle, the 99th of a hundred, and the worst.
func quantiles(all []time.Duration) string {
	all = slices.Sorted(slices.Values(all))
	at := func(q float64) time.Duration {
		return all[min(len(all)-1, int(q*float64(len(all))))].Round(time.Millisecond)
	}
	return fmt.Sprintf("p50 %v, p99 %v, max %v", at(0.5), at(0.99), all[len(all)-1].Round(time.Millisecond))
}

// tail returns the last lines of a text.
func tail(text string, lines int) string {
	all := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
