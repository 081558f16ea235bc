//go:build peers

package chaos

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
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
	losses    = flag.Int("chaos.losses", 1, "how often TestLeaderLoss takes the leader away by each of kill, pause and partition")
	lossRate  = flag.Int("chaos.loss-rate", 200, "writes a second that TestLeaderLoss makes, whether or not the earlier ones were answered")
	lossAfter = flag.Duration("chaos.loss-attempt", 0, "how long its clients wait for one node before they ask another; 0: their default")
)

// lossWays are how the leader goes, and how it comes back. take calls gone at the
// moment from which it can do nothing any more.
var lossWays = []struct {
	name string
	take func(c *cluster, n *node, gone func()) error
	give func(c *cluster, n *node) error
}{
	{"kill -9", func(_ *cluster, n *node, gone func()) error {
		n.signal(syscall.SIGSTOP) // a process that was stopped answers nobody while it dies
		gone()
		n.kill()
		return nil
	}, func(_ *cluster, n *node) error { return n.start() }},
	{"SIGSTOP", func(_ *cluster, n *node, gone func()) error {
		n.signal(syscall.SIGSTOP)
		gone()
		return nil
	}, func(_ *cluster, n *node) error { n.signal(syscall.SIGCONT); return nil }},
	{"partition", func(c *cluster, n *node, gone func()) error {
		defer gone() // the rules hold when iptables has ended
		return c.net.apply(n.host, alone...)
	}, func(c *cluster, n *node) error { return c.net.lift(n.host, alone...) }},
}

// alone cuts a node off from everybody, clients included.
var alone = []rule{{"filter", "INPUT -i eth0 -j DROP"}, {"filter", "OUTPUT -o eth0 -j DROP"}}

// probe makes writes at a rate, whether or not earlier ones were answered, and
// notes when one that began after a moment was acknowledged first.
type probe struct {
	clients []*client.Client
	turns   atomic.Int64
	made    atomic.Int64 // that were acknowledged
	late    atomic.Int64 // that were not made, for too many were under way

	mu    sync.Mutex
	since time.Time
	first time.Duration // 0: none yet
	last  time.Duration // the longest that one which began before or after took
	errs  []error
}

const probeCalls = 512

func (p *probe) run(stop <-chan struct{}, rate int) {
	room := make(chan struct{}, probeCalls)
	var wg sync.WaitGroup
	defer wg.Wait()
	begun := time.Now()
	for n := 0; ; {
		select {
		case <-stop:
			return
		case <-time.After(time.Millisecond):
		}
		for ; float64(n) < time.Since(begun).Seconds()*float64(rate); n++ {
			select {
			case room <- struct{}{}:
			default:
				p.late.Add(1)
				continue
			}
			wg.Go(func() {
				defer func() { <-room }()
				p.one()
			})
		}
	}
}

func (p *probe) one() {
	turn := p.turns.Add(1)
	began := time.Now()
	acl := fmt.Sprintf("probe\tlrs\tn%d\tp\t", turn)
	_, err := p.clients[turn%int64(len(p.clients))].Assert(context.Background(), client.Assert{
		Mailbox: directory.MailboxName(fmt.Sprintf("user.probe%d", turn%1000)), Server: "be1.chaos.test", Statement: directory.Statement{ACL: &acl},
	})
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		p.errs = append(p.errs, err)
		return
	}
	p.made.Add(1)
	p.last = max(p.last, now.Sub(began))
	if p.first == 0 && !p.since.IsZero() && began.After(p.since) {
		p.first = now.Sub(p.since)
	}
}

// from begins to measure.
func (p *probe) from(at time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.since, p.first, p.last = at, 0, 0
}

// answered waits until a write was acknowledged, and returns after how long.
func (p *probe) answered(patience time.Duration) (time.Duration, error) {
	for begun := time.Now(); time.Since(begun) < patience; time.Sleep(2 * time.Millisecond) {
		p.mu.Lock()
		first := p.first
		p.mu.Unlock()
		if first > 0 {
			return first, nil
		}
	}
	return 0, fmt.Errorf("chaos: no write was acknowledged in %v", patience)
}

// reader asks one node, and it alone, while it is a survivor.
type reader struct {
	n       *node
	c       *client.Client
	armed   atomic.Bool // it is a survivor
	reads   atomic.Int64
	failed  atomic.Int64
	longest atomic.Int64
}

func (r *reader) run(stop <-chan struct{}, report func(error)) {
	for {
		select {
		case <-stop:
			return
		case <-time.After(2 * time.Millisecond):
		}
		armed, begun := r.armed.Load(), time.Now()
		route, err := r.c.Lookup(context.Background(), "user.fixed", client.Details())
		if err == nil && len(route.Facts) != 1 {
			err = fmt.Errorf("user.fixed has %d facts, want 1", len(route.Facts))
		}
		if !armed || !r.armed.Load() {
			continue
		}
		r.reads.Add(1)
		r.longest.Store(max(r.longest.Load(), int64(time.Since(begun))))
		if err != nil {
			r.failed.Add(1)
			report(fmt.Errorf("a read on %s: %w", r.n.name, err))
		}
	}
}

// TestLeaderLoss takes the leader of three away, again and again, by kill -9, by
// SIGSTOP and by a partition, under an open load of writes and with readers at every
// node, and measures how long it takes until a write is acknowledged again.
func TestLeaderLoss(t *testing.T) {
	if *chaosSeed == 0 {
		*chaosSeed = rand.Uint64() >> 32
	}
	say("seed %d", *chaosSeed)
	rng := rand.New(rand.NewPCG(*chaosSeed, 1))
	program, _ := programs(t)
	dir, err := os.MkdirTemp("", prefix)
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	c, err := newCluster(dir, program, rng, 3, func(int) []string { return nil })
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	for _, n := range c.voters() {
		if err := c.ready(n, *chaosPatience); err != nil {
			t.Fatalf("%v\n%s", err, n.log.tail(30))
		}
	}
	opts := []client.Option{client.WithTimeout(20 * time.Second)}
	if *lossAfter > 0 {
		opts = append(opts, client.WithAttemptTimeout(*lossAfter))
	}
	p := &probe{}
	for i := range 4 {
		cl, err := c.dial(c.endpoints(i), opts...)
		if err != nil {
			t.Fatal(err)
		}
		defer cl.Close()
		p.clients = append(p.clients, cl)
	}
	if _, err := p.clients[0].Assert(t.Context(), client.Assert{Mailbox: "user.fixed", Server: "be1.chaos.test"}); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { p.run(stop, *lossRate) })
	readers := map[*node]*reader{}
	for _, n := range c.voters() {
		cl, err := c.dial([]string{n.client()})
		if err != nil {
			t.Fatal(err)
		}
		defer cl.Close()
		readers[n] = &reader{n: n, c: cl}
		wg.Go(func() { readers[n].run(stop, func(err error) { c.fail("%v", err) }) })
	}

	times := make([][]time.Duration, len(lossWays))
	if *losses < 1 {
		t.Fatalf("%d losses: give -chaos.losses (LOSSES) of 1 or more", *losses)
	}
	for i := range *losses * len(lossWays) {
		if t.Failed() || !c.alive() {
			break
		}
		w := i % len(lossWays)
		way := lossWays[w]
		time.Sleep(time.Duration(200+rng.IntN(400)) * time.Millisecond)
		var leader *node
		for begun := time.Now(); leader == nil; leader = c.leader() {
			if time.Since(begun) > *chaosPatience {
				t.Fatalf("chaos: nobody leads after %v", *chaosPatience)
			}
		}
		for n, r := range readers {
			r.armed.Store(n != leader)
		}
		if err := way.take(c, leader, func() { p.from(time.Now()) }); err != nil {
			t.Fatal(err)
		}
		first, err := p.answered(30 * time.Second)
		if err != nil {
			t.Errorf("%s of %s: %v", way.name, leader.name, err)
		}
		times[w] = append(times[w], first)
		time.Sleep(300 * time.Millisecond) // the survivors serve on without it
		readers[leader].armed.Store(false)
		if err := way.give(c, leader); err != nil {
			t.Fatal(err)
		}
		if err := c.ready(leader, *chaosPatience); err != nil {
			t.Fatalf("%v\n%s", err, leader.log.tail(30))
		}
		if i%30 == 29 {
			say("%d losses", i+1)
		}
	}
	close(stop)
	wg.Wait()
	for w, way := range lossWays {
		if len(times[w]) > 0 {
			say("%-9s of the leader, %d times: until the first write acknowledged %s", way.name, len(times[w]), quantiles(times[w]))
		}
	}
	var reads, failed int64
	var longest time.Duration
	for _, r := range readers {
		reads, failed, longest = reads+r.reads.Load(), failed+r.failed.Load(), max(longest, time.Duration(r.longest.Load()))
	}
	say("reads on the survivors: %d, failed: %d, the longest took %v; writes acknowledged: %d, unanswered %d, not made for %d were under way: %d",
		reads, failed, longest.Round(time.Millisecond), p.made.Load(), len(p.errs), probeCalls, p.late.Load())
	if failed > 0 || reads == 0 {
		t.Errorf("chaos: %d of %d reads on the survivors failed", failed, reads)
	}
	for _, err := range p.errs {
		if !errors.Is(err, client.ErrUnavailable) {
			t.Errorf("chaos: a write: %v", err)
		}
	}
	for _, problem := range c.failures() {
		if strings.HasPrefix(problem, toldToEnd) {
			t.Errorf("chaos: %s", problem)
			continue
		}
		t.Errorf("chaos: VIOLATION %s", problem)
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
