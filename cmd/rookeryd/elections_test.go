package main_test

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
)

var (
	soakTime      = flag.Duration("soak.time", 3*time.Second, "how long TestElections and TestSoak keep the load up")
	soakProbe     = flag.Duration("soak.probe", time.Second, "how long the most that the cluster can do is measured before")
	soakLoad      = flag.Float64("soak.load", 0.6, "what part of that the load is")
	soakMailboxes = flag.Int("soak.mailboxes", 2000, "how many mailboxes there are")
	soakFalse     = flag.Int("soak.false", -1, "how many elections are too many, if nobody caused them; negative: any number will do")
)

// soakCallers is how many calls may be under way.
const soakCallers = 256

// change is an election that was seen.
type change struct {
	at       time.Duration
	text     string
	evidence []string
}

// soakNode is what is remembered of a node from one look to the next.
type soakNode struct {
	n       *node
	last    figures
	starved time.Duration
	recent  []string // what happened at the last looks
}

// TestElections keeps three nodes under an open load, as a site has it in its
// busiest hour, and counts the elections. Nobody kills or stops anything, so
// each of them is false: a leader was given up that was there.
func TestElections(t *testing.T) {
	nodes := newCluster(t, "--ballast", "0")
	ctx, cancel := context.WithTimeout(t.Context(), *soakTime+time.Hour)
	defer cancel()
	c := loaded(t, ctx, nodes)
	w := &loadWriter{c: c, population: *soakMailboxes}
	if err := w.fill(ctx, 0, w.population); err != nil {
		t.Fatal(err)
	}
	// Half of the calls are writes: these are what leaders stumble over.
	var turns atomic.Int64
	call := func() error {
		if turns.Add(1)%2 == 0 {
			return w.one(ctx)
		}
		name := directory.MailboxName(fmt.Sprintf("user.w%d", rand.IntN(max(1, w.population/10))))
		r, err := c.Lookup(ctx, name, client.Details())
		if err == nil && len(r.Facts) != 1 {
			err = fmt.Errorf("%s has %d facts, want 1", name, len(r.Facts))
		}
		return err
	}
	full := swing(64, call)
	full.meter.over(*soakProbe / 5)
	most := full.meter.over(*soakProbe)
	if err := full.end(); err != nil {
		t.Fatal(err)
	}
	rate := *soakLoad * most.rate()
	t.Logf("the most, closed loop: %v; the load: %.0f/s, half of it writes", most, rate)

	stop := make(chan struct{})
	var wg sync.WaitGroup
	var pauses gaps
	wg.Go(func() { pauses.run(stop) })
	load := &openLoad{rate: rate, call: call}
	load.meter.turn()
	wg.Go(func() { load.run(stop) })

	watched := make([]*soakNode, len(nodes))
	for i, n := range nodes {
		watched[i] = &soakNode{n: n, last: n.mustFigures(), starved: n.starved()}
	}
	first := resources(nodes)
	var changes []change
	var longestPause time.Duration
	term, leader := 0.0, ""
	begun := time.Now()
	minute := begun
	for time.Since(begun) < *soakTime {
		time.Sleep(200 * time.Millisecond)
		pause := pauses.take()
		longestPause = max(longestPause, pause)
		newest, leads := term, ""
		// All at once: one that is stuck must not hide what the others do.
		shown, errs := make([]figures, len(nodes)), make([]error, len(nodes))
		var asking sync.WaitGroup
		for i, n := range nodes {
			asking.Go(func() { shown[i], errs[i] = n.figures() })
		}
		asking.Wait()
		for i, s := range watched {
			f := shown[i]
			if errs[i] != nil {
				s.remember(fmt.Sprintf("metrics: %v", errs[i]))
				continue
			}
			if f.get("rookery_raftstore_is_leader") == 1 && f.get("rookery_raftstore_term") >= newest {
				leads = s.n.name
			}
			newest = max(newest, f.get("rookery_raftstore_term"))
			starved := s.n.starved()
			s.remember(fmt.Sprintf("log_sync %v apply %v flush %v starved %v, this test paused %v", f.worst("rookery_raftstore_log_sync_seconds", s.last),
				f.worst("rookery_raftstore_apply_seconds", s.last), f.worst("rookery_raftstore_flush_seconds", s.last), (starved - s.starved).Round(time.Millisecond), pause.Round(time.Millisecond)))
			s.last, s.starved = f, starved
		}
		switch {
		case term == 0:
		case newest > term:
			ch := change{at: time.Since(begun), text: fmt.Sprintf("%s: %s led in term %.0f, then term %.0f, led by %q", time.Now().UTC().Format("15:04:05.000"), leader, term, newest, leads)}
			for _, s := range watched {
				ch.evidence = append(ch.evidence, s.evidence()...)
			}
			changes = append(changes, ch)
			leader = leads
			t.Logf("%v after the start, an election: %s\n%s", ch.at.Round(time.Millisecond), ch.text, strings.Join(ch.evidence, "\n"))
		case leads != "" && leader != "" && leads != leader:
			t.Errorf("%s and %s lead in term %.0f", leader, leads, term)
		}
		term = newest
		if leads != "" {
			leader = leads
		}
		if time.Since(minute) >= 5*time.Minute {
			minute = time.Now()
			t.Logf("%v: %d elections, longest pause of this test %v, late calls %d\n%s", time.Since(begun).Round(time.Second), len(changes), longestPause.Round(time.Millisecond), load.skipped.Load(), strings.Join(resources(nodes), "\n"))
		}
	}
	done := load.meter.turn()
	last := resources(nodes)
	close(stop)
	wg.Wait()

	t.Logf("%v at %.2f of the most: %d elections that nobody caused", time.Since(begun).Round(time.Second), *soakLoad, len(changes))
	t.Logf("calls, open loop: %v; failed %d, not made for %d were under way: %d", done, load.failed.Load(), soakCallers, load.skipped.Load())
	t.Logf("longest pause of this test: %v", longestPause.Round(time.Millisecond))
	for _, s := range watched {
		t.Logf("%s: longest log_sync %v, apply %v, flush %v", s.n.name, s.last.worst("rookery_raftstore_log_sync_seconds", nil), s.last.worst("rookery_raftstore_apply_seconds", nil), s.last.worst("rookery_raftstore_flush_seconds", nil))
	}
	for i := range nodes {
		t.Logf("at the start %s", first[i])
		t.Logf("at the end   %s", last[i])
	}
	if *soakFalse >= 0 && len(changes) > *soakFalse {
		t.Errorf("%d elections that nobody caused, %d at most are wanted", len(changes), *soakFalse)
	}
	if load.failed.Load() > 0 {
		t.Errorf("%d calls failed, the first: %v", load.failed.Load(), *load.first.Load())
	}
	if done.count == 0 || term == 0 {
		t.Error("too little happened to prove anything")
	}
	intact(t, ctx, c, w.population+1)
}

// remember keeps what a look has shown for the next seconds.
func (s *soakNode) remember(text string) {
	const looks = 10
	s.recent = append(s.recent, time.Now().UTC().Format("15:04:05.000 ")+text)
	s.recent = slices.Clone(s.recent[max(0, len(s.recent)-looks):])
}

// evidence is what the node showed and said last.
func (s *soakNode) evidence() (all []string) {
	for _, text := range s.recent {
		all = append(all, "  "+s.n.name+" "+text)
	}
	for line := range strings.Lines(tail(s.n.log.String(), 8)) {
		all = append(all, "  "+s.n.name+" said "+strings.TrimSpace(line))
	}
	return all
}

// resources says what each node takes of the machine.
func resources(nodes []*node) (all []string) {
	for _, n := range nodes {
		text := fmt.Sprintf("%s: memory %s, %d descriptors", n.name, mib(float64(n.memory())), n.descriptors())
		if f, err := n.figures(); err == nil {
			text += fmt.Sprintf(", %.0f goroutines, %.0f threads, state file %s, log in memory %s", f.get("go_goroutines"), f.get("go_threads"),
				mib(f.get("rookery_raftstore_state_file_bytes")), mib(f.get("rookery_raftstore_log_bytes")))
		}
		all = append(all, text)
	}
	return all
}

// openLoad makes calls at a rate, whether or not earlier ones were answered.
type openLoad struct {
	rate    float64 // a second
	call    func() error
	meter   meter // of times from when a call was due
	failed  atomic.Int64
	skipped atomic.Int64
	first   atomic.Pointer[error] // that a call failed with
}

func (l *openLoad) run(stop <-chan struct{}) {
	due := make(chan time.Time, soakCallers)
	var wg sync.WaitGroup
	for range soakCallers {
		wg.Go(func() {
			for at := range due {
				if err := l.call(); err != nil {
					l.failed.Add(1)
					l.first.CompareAndSwap(nil, &err)
					continue
				}
				l.meter.done(time.Since(at))
			}
		})
	}
	defer wg.Wait()
	defer close(due)
	t := time.NewTicker(time.Millisecond)
	defer t.Stop()
	begun := time.Now()
	for n := int64(0); ; {
		select {
		case <-stop:
			return
		case <-t.C:
		}
		for ; float64(n) < time.Since(begun).Seconds()*l.rate; n++ {
			at := begun.Add(time.Duration(float64(n) / l.rate * float64(time.Second)))
			select {
			case due <- at:
			default:
				l.skipped.Add(1)
			}
		}
	}
}
