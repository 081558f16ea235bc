package main_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rookery-mail/rookery/client"
)

var (
	learnerFacts   = flag.Int("learner.facts", 2000, "how many facts the cluster of TestSlowLearner has")
	learnerWriters = flag.Int("learner.writers", 8, "how many writers make the load")
	learnerBatch   = flag.Int("learner.batch", 10, "how many facts a write changes")
	learnerGivenUp = flag.Int("learner.given-up", 0, "how often a snapshot must have been given up at least, for the bounds to have been tried")
	learnerWindow  = flag.Duration("learner.window", 1500*time.Millisecond, "how long rates are measured that are compared")
	learnerRate    = flag.Int64("learner.rate", 200_000, "bits a second that the learner's line takes each way")
	learnerDelay   = flag.Duration("learner.delay", 100*time.Millisecond, "how much later they arrive")
	learnerShare   = flag.Float64("learner.share", 0.05, "what part of the rate of writes must be left")
	learnerSlower  = flag.Float64("learner.slower", 20, "how many times as long the 99th of a hundred writes may take")
	learnerLog     = flag.Int64("learner.log", 64<<10, "--log-size of the nodes, in octets")
)

// TestSlowLearner has a node join whose line takes less than is written: its
// snapshot is too slow, and later, when it has caught up over a better line, the
// log is. What the cluster does for it stays within bounds, and writers do not
// notice.
func TestSlowLearner(t *testing.T) {
	line := &slowLink{delay: *learnerDelay}
	file := program(t)
	var nodes []*node
	var list, relays []string
	for _, name := range []string{"n1", "n2", "n3"} {
		n := &node{t: t, name: name, program: file, client: freePort(t), peer: freePort(t), http: freePort(t), data: filepath.Join(t.TempDir(), name)}
		t.Cleanup(n.kill)
		at := newRelay(t, n.peer, line, false).addr()
		nodes, relays, list = append(nodes, n), append(relays, at), append(list, name+"="+at)
	}
	flags := []string{"--log-size", fmt.Sprint(*learnerLog), "--ballast", "0"}
	for _, n := range nodes {
		n.more = append([]string{"--initial-cluster", strings.Join(list, ",")}, flags...)
		n.start()
	}
	for _, n := range nodes {
		n.ready()
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	c := loaded(t, ctx, nodes)
	w := &loadWriter{c: c, population: *learnerFacts}
	if err := w.fill(ctx, 0, w.population); err != nil {
		t.Fatal(err)
	}
	leader := nodes[leaderOf(t, nodes)]
	learner := &node{t: t, name: "n4", program: file, client: freePort(t), peer: freePort(t), http: freePort(t), data: filepath.Join(t.TempDir(), "n4")}
	t.Cleanup(learner.kill)
	learner.more = append([]string{"--join", strings.Join(relays, ","), "--advertise-peer", newRelay(t, learner.peer, line, true).addr()}, flags...)

	writing := swing(*learnerWriters, func() error {
		return w.write(ctx, *learnerBatch, func(int) int { return rand.IntN(w.population) }, false)
	})
	writing.meter.over(*learnerWindow / 4)
	without := writing.meter.over(*learnerWindow)
	memory := leader.memory()

	// over measures for a window, and what of the leader is bounded meanwhile.
	var mostMemory int
	var mostLog float64
	over := func() window {
		writing.meter.turn()
		for begun := time.Now(); time.Since(begun) < *learnerWindow; time.Sleep(100 * time.Millisecond) {
			mostMemory = max(mostMemory, leader.memory())
			mostLog = max(mostLog, leader.mustFigures().get("rookery_raftstore_log_bytes"))
		}
		return writing.meter.turn()
	}
	// catchUp gives the learner a line as the others have, until it has caught up.
	catchUp := func() time.Duration {
		line.rate.Store(0)
		begun := time.Now()
		goal := leader.mustFigures().get("rookery_raftstore_applied_index")
		for {
			time.Sleep(50 * time.Millisecond)
			f, err := learner.figures()
			if err == nil && f.get("rookery_raftstore_applied_index") >= goal {
				return time.Since(begun)
			}
			goal = leader.mustFigures().get("rookery_raftstore_applied_index")
			if time.Since(begun) > 5*time.Minute {
				t.Fatalf("the learner has not caught up %v after its line was mended\n%s\n%s", time.Since(begun), tail(leader.log.String(), 20), tail(learner.log.String(), 20))
			}
		}
	}

	line.rate.Store(*learnerRate / 8)
	learner.start()
	line.pid.Store(int64(learner.cmd.Process.Pid))
	for begun := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		_, err := c.AddMember(ctx, client.NodeRef{Name: "n4"})
		if err == nil {
			break
		}
		if !errors.Is(err, client.ErrNotWaiting) || time.Since(begun) > time.Minute {
			t.Fatalf("add the learner: %v\n%s", err, tail(learner.log.String(), 10))
		}
	}
	for begun := time.Now(); line.sent() < 64<<10 && time.Since(begun) < 20*time.Second; { // until the snapshot is on its way
		time.Sleep(20 * time.Millisecond)
	}
	joining := over()
	joinedBy := line.sent()
	mended := catchUp()
	line.rate.Store(*learnerRate / 8)
	trailing := over()
	mendedAgain := catchUp()
	gaveUp := strings.Count(leader.log.String(), "too slow on its way")
	learner.kill()
	gone := writing.meter.over(*learnerWindow)
	if err := writing.end(); err != nil {
		t.Error(err)
	}

	t.Logf("writes without the learner:          %v", without)
	t.Logf("writes while it joins at %d kb/s:  %v, %.2f of without; %s went over the line", *learnerRate/1000, joining, joining.rate()/without.rate(), mib(float64(joinedBy)))
	t.Logf("its line is mended, it has caught up after %v", mended.Round(10*time.Millisecond))
	t.Logf("writes while it trails at %d kb/s: %v, %.2f of without", *learnerRate/1000, trailing, trailing.rate()/without.rate())
	t.Logf("its line is mended, it has caught up after %v", mendedAgain.Round(10*time.Millisecond))
	t.Logf("writes when it was killed:           %v", gone)
	t.Logf("the leader's memory: %s before, %s at most; its log in memory %s at most, bound %s and four times that for a snapshot on its way, which was given up %d times",
		mib(float64(memory)), mib(float64(mostMemory)), mib(mostLog), mib(float64(*learnerLog)), gaveUp)
	reference := min(without.rate(), gone.rate())
	slowest := *learnerSlower * max(without.at(0.99), gone.at(0.99), 20*time.Millisecond).Seconds()
	for _, during := range []window{joining, trailing} {
		if during.rate() < *learnerShare*reference {
			t.Errorf("%.0f writes a second with the learner, %.0f without: less than %.2f of it", during.rate(), reference, *learnerShare)
		}
		if p := during.at(0.99).Seconds(); p > slowest {
			t.Errorf("of a hundred writes with the learner one took %.3f s, more than %.3f s", p, slowest)
		}
	}
	// What is applied until the next flush has ended comes on top.
	if bound := 4.5*float64(*learnerLog) + 256<<10 + 3*150*float64(*learnerBatch)*max(without.rate(), joining.rate(), trailing.rate()); mostLog > bound {
		t.Errorf("the leader keeps %s of log, more than %s", mib(mostLog), mib(bound))
	}
	// The log, and the queue for the learner, which holds what the log has let go.
	if bound := float64(memory) + 4.5*float64(*learnerLog) + 192<<20; float64(mostMemory) > bound {
		t.Errorf("the leader takes %s, more than %s", mib(float64(mostMemory)), mib(bound))
	}
	if joinedBy < 64<<10 {
		t.Errorf("%d octets went over the learner's line: no snapshot was on its way", joinedBy)
	}
	if gaveUp < *learnerGivenUp {
		t.Errorf("a snapshot was given up %d times, want %d at least: the bounds were not tried", gaveUp, *learnerGivenUp)
	}
	if !leader.leads() {
		t.Errorf("%s leads no more\n%s", leader.name, tail(leader.log.String(), 20))
	}
	if _, err := c.RemoveMember(ctx, client.NodeRef{Name: "n4"}); err != nil {
		t.Fatal(err)
	}
	intact(t, ctx, c, w.population+1)
}
