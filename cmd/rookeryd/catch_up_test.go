package main_test

import (
	"context"
	"flag"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rookery-mail/rookery/client"
)

// The defaults are for `make test` on a busy machine; `make catch-up` asks for
// what must hold on one that does nothing else.
var (
	catchUpFacts   = flag.Int("catchup.facts", 4000, "how many facts the node of TestCatchUp is behind")
	catchUpWriters = flag.Int("catchup.writers", 8, "how many writers make the load")
	catchUpWindow  = flag.Duration("catchup.window", time.Second, "how long rates are measured that are compared")
	catchUpShare   = flag.Float64("catchup.share", 0.05, "what part of the rate of writes must be left while the node catches up")
	catchUpLog     = flag.String("catchup.log", "128KiB", "--log-size of the nodes; 0: as it is by default")
)

// TestCatchUp has a node come back that is further behind than the log reaches,
// while the others are written to as fast as they can. It catches up by
// snapshot, and neither writers nor readers nor the leader's disk suffer.
func TestCatchUp(t *testing.T) {
	nodes := newCluster(t, "--log-size", *catchUpLog, "--ballast", "0")
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	c := loaded(t, ctx, nodes)
	w := &loadWriter{c: c, population: 1000}
	if err := w.fill(ctx, 0, w.population); err != nil {
		t.Fatal(err)
	}
	writing := swing(*catchUpWriters, func() error { return w.one(ctx) })
	healthy := writing.meter.over(*catchUpWindow)
	if err := writing.end(); err != nil {
		t.Fatal(err)
	}

	leader := nodes[leaderOf(t, nodes)]
	var survivors []*node
	var behind *node
	for _, n := range nodes {
		if n != leader && behind == nil {
			behind = n
		} else {
			survivors = append(survivors, n)
		}
	}
	behind.kill()
	from := w.population
	begun := time.Now()
	w.population += *catchUpFacts
	if err := w.fill(ctx, from, w.population); err != nil {
		t.Fatal(err)
	}
	filled := time.Since(begun)

	stop := make(chan struct{})
	var wg sync.WaitGroup
	var reads, failed atomic.Int64
	reading := func(n *node) {
		wg.Go(func() {
			if err := read(ctx, n, stop, &reads, &failed); err != nil {
				t.Errorf("a read on %s: %v", n.name, err)
			}
		})
	}
	for _, n := range survivors {
		reading(n)
	}
	writing = swing(*catchUpWriters, func() error { return w.one(ctx) })
	writing.meter.over(*catchUpWindow / 4)
	before := writing.meter.over(*catchUpWindow)
	at := leader.mustFigures()
	file := at.get("rookery_raftstore_state_file_bytes")

	// What the leader comes to meanwhile, at most.
	var most, mostUsed, mostLog float64
	memory := leader.memory()
	look := func() (applied float64) {
		f := leader.mustFigures()
		most = max(most, f.get("rookery_raftstore_state_file_bytes"))
		mostUsed = max(mostUsed, f.get("rookery_raftstore_state_file_used_bytes"))
		mostLog = max(mostLog, f.get("rookery_raftstore_log_bytes"))
		memory = max(memory, leader.memory())
		return f.get("rookery_raftstore_applied_index")
	}
	writing.meter.turn()
	begun = time.Now()
	behind.start()
	var caughtUp, installed time.Duration
	for goal := look(); caughtUp == 0; {
		time.Sleep(50 * time.Millisecond)
		if f, err := behind.figures(); err == nil {
			if installed == 0 && f.get("rookery_raftstore_snapshots_installed_total") > 0 {
				installed = time.Since(begun)
			}
			if f.get("rookery_raftstore_applied_index") >= goal {
				caughtUp = time.Since(begun)
			}
		}
		goal = look()
		if ctx.Err() != nil || time.Since(begun) > 30*time.Minute {
			t.Fatalf("not caught up after %v\n%s\n%s", time.Since(begun), tail(leader.log.String(), 20), tail(behind.log.String(), 20))
		}
	}
	during := writing.meter.turn()
	behind.ready()
	reading(behind)
	after := writing.meter.over(*catchUpWindow)
	look()
	close(stop)
	wg.Wait()
	if err := writing.end(); err != nil {
		t.Error(err)
	}

	f := behind.mustFigures()
	t.Logf("a node %d facts behind (written in %v) has caught up %v after its start, by %.0f snapshot(s), the first installed after %v", *catchUpFacts, filled.Round(10*time.Millisecond),
		caughtUp.Round(10*time.Millisecond), f.get("rookery_raftstore_snapshots_installed_total"), installed.Round(10*time.Millisecond))
	t.Logf("writes with three nodes:         %v", healthy)
	t.Logf("writes with two, just before:    %v", before)
	t.Logf("writes while it catches up:      %v, %.2f of just before", during, during.rate()/before.rate())
	t.Logf("writes with three nodes again:   %v", after)
	t.Logf("the leader's state file: %s before, %s at most, %.2f times (used %s, %s); log in memory %s at most; memory %s at most; sent %s of snapshots",
		mib(file), mib(most), most/file, mib(at.get("rookery_raftstore_state_file_used_bytes")), mib(mostUsed), mib(mostLog), mib(float64(memory)),
		mib(leader.mustFigures().get("rookery_peer_snapshot_bytes_total", `direction="out"`)))
	t.Logf("reads on the survivors, then on all: %d, failed: %d", reads.Load(), failed.Load())
	if installed == 0 {
		t.Error("no snapshot was installed: the log reached back far enough, and nothing is proven")
	}
	if !leader.leads() {
		t.Errorf("%s leads no more\n%s", leader.name, tail(leader.log.String(), 20))
	}
	if during.rate() < *catchUpShare*before.rate() {
		t.Errorf("%.0f writes a second while it catches up, %.0f before: less than %.2f of it", during.rate(), before.rate(), *catchUpShare)
	}
	// A file grows in steps of some MiB, which are much to a small one.
	if most > max(2*file, file+32<<20) {
		t.Errorf("the leader's state file has grown from %s to %s", mib(file), mib(most))
	}
	if failed.Load() > 0 {
		t.Errorf("%d of %d reads failed", failed.Load(), reads.Load())
	}
	own, err := client.Dial([]string{behind.client}, client.WithTimeout(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	intact(t, ctx, own, w.population+1)
}

// intact has the node that c asks compare its indexes with its facts, and count them.
func intact(t *testing.T, ctx context.Context, c *client.Client, mailboxes int) {
	t.Helper()
	st, err := c.Status(ctx, client.Linearizable())
	if err != nil {
		t.Fatal(err)
	}
	if got := st.Counts.Mailboxes; got != uint64(mailboxes) {
		t.Errorf("it has %d mailboxes, want %d", got, mailboxes)
	}
	if problems := strings.Join(append(st.Problems, st.NodeProblems...), "; "); problems != "" {
		t.Errorf("status: %s", problems)
	}
	sum, err := c.Check(ctx, 10, func(e client.CheckEvent) error {
		if e.Kind != "" && !e.Advisory {
			t.Errorf("check: %s %s: %s", e.Kind, e.Mailbox, e.Detail)
		}
		return nil
	})
	if err != nil || sum.Faults != 0 {
		t.Errorf("check: %d faults, %v", sum.Faults, err)
	}
}
