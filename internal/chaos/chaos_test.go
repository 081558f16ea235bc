//go:build peers

package chaos

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/internal/mtls"
)

var (
	chaosTime     = flag.Duration("chaos.time", time.Minute, "how long TestChaos plays rounds, if -chaos.faults does not say how many faults it makes")
	chaosFaults   = flag.Int("chaos.faults", 0, "how many faults TestChaos makes; 0: as many as there is time for")
	chaosOps      = flag.Int("chaos.operations", 0, "how many operations must be answered in all for the run to count, each item of a batch being one")
	chaosSeed     = flag.Uint64("chaos.seed", 0, "seed of TestChaos; 0 draws one")
	chaosRound    = flag.Int("chaos.round", 50, "how many faults a round has")
	chaosEvery    = flag.Duration("chaos.every", 800*time.Millisecond, "how long it is from one fault to the next, in the mean")
	chaosLeast    = flag.Float64("chaos.least", 5, "how many operations a second must be answered at least, in every ten seconds with a majority")
	chaosPatience = flag.Duration("chaos.patience", time.Minute, "how long a node may take to be there again, and a change of the membership to be made, on a busy machine")
	chaosNodes    = flag.Int("chaos.nodes", 0, "how many nodes each round has; 0: three, and five in every fourth")
	chaosKeep     = flag.String("chaos.keep", "", "directory for what the nodes said in a round with a violation; default a temporary one")
	chaosReplay   = flag.String("chaos.replay", "", "play the commands of this `file`, which a round with a violation left, instead of any round")
	rookeryd      = flag.String("rookeryd", "", "the rookeryd to break; default that of this tree, built")
	rookeryctl    = flag.String("rookeryctl", "", "the rookeryctl to check with; default likewise")
)

// programs are what is run, built if they were not given.
func programs(t *testing.T) (node, ctl string) {
	t.Helper()
	dir := t.TempDir()
	node, ctl = *rookeryd, *rookeryctl
	var err error
	if node == "" {
		if node, err = build(dir, "rookeryd"); err != nil {
			t.Fatal(err)
		}
	}
	if ctl == "" {
		if ctl, err = build(dir, "rookeryctl"); err != nil {
			t.Fatal(err)
		}
	}
	return node, ctl
}

// TestChaos plays rounds, see the package comment.
func TestChaos(t *testing.T) {
	if *chaosReplay != "" {
		replay(t, *chaosReplay)
		return
	}
	if *chaosFaults < 0 || *chaosOps < 0 || *chaosRound < 1 {
		t.Fatalf("chaos: %d faults in rounds of %d, %d operations: give -chaos.faults (CHAOS_FAULTS) and -chaos.operations of 0 or more, -chaos.round of 1 or more", *chaosFaults, *chaosRound, *chaosOps)
	}
	if *chaosSeed == 0 {
		*chaosSeed = rand.Uint64() >> 32
	}
	say("seed %d", *chaosSeed)
	node, ctl := programs(t)
	begun := time.Now()
	end := begun.Add(100 * time.Hour)
	if *chaosFaults == 0 {
		end = begun.Add(*chaosTime)
	}
	var sum totals
	sum.kinds = map[string]int{}
	// A round is judged while the next is played, on what the faults leave of the machine.
	var judging sync.WaitGroup
	defer judging.Wait()
	for i := 0; ; i++ {
		if t.Failed() {
			break
		}
		left := *chaosRound
		if *chaosFaults > 0 {
			if left = min(left, *chaosFaults-sum.faults); left <= 0 {
				break
			}
		}
		// A round takes some seconds besides the faults. Within a limit of time that
		// is too short for one more, there is none.
		until := end.Add(-10 * time.Second)
		if time.Until(until) < 5*time.Second && i > 0 {
			break
		}
		r := &round{seed: *chaosSeed + uint64(i), number: i, node: node, ctl: ctl, faults: left, until: until}
		verdict := r.play(t, &sum)
		judging.Wait()
		judging.Go(verdict)
	}
	judging.Wait()
	took := time.Since(begun)
	say("%d rounds, %d faults, %d operations answered in %v (%.0f/s overall, %.0f/s under load), and %d more items of batches; unknown %d, not done %d",
		sum.rounds, sum.faults, sum.acked, took.Round(time.Second), float64(sum.acked)/took.Seconds(), float64(sum.acked)/max(1, sum.load.Seconds()), sum.items, sum.unknown, sum.failed)
	say("faults: %s", table(sum.kinds))
	say("judged: %d writes, %d reads, %d marks of watchers, %d whole states, %d commands of logs; porcupine %d calls about %d mailboxes", sum.writes, sum.reads, sum.marks, sum.states, sum.commands, sum.linearCalls, sum.linearKeys)
	slices.Sort(sum.back)
	if n := len(sum.back); n > 0 {
		say("after the last fault of a round, all mended: the first write acknowledged after p50 %v, max %v", sum.back[n/2].Round(time.Millisecond), sum.back[n-1].Round(time.Millisecond))
	}
	if sum.snapshots == 0 && sum.rounds > 2 {
		t.Error("chaos: no node ever got a snapshot: the logs are too long for that")
	}
	if *chaosFaults > 0 && sum.faults < *chaosFaults && !t.Failed() {
		t.Errorf("chaos: %d faults, want %d", sum.faults, *chaosFaults)
	}
	if sum.acked+sum.items < int64(*chaosOps) {
		t.Errorf("chaos: %d operations were answered, each item of a batch counted, want %d (-chaos.operations, CHAOS_OPERATIONS): too few to prove anything", sum.acked+sum.items, *chaosOps)
	}
}

// say prints at once: a long run is to be followed.
func say(format string, args ...any) {
	fmt.Printf("%s chaos: %s\n", time.Now().UTC().Format("15:04:05"), fmt.Sprintf(format, args...))
}

// totals are of all rounds.
type totals struct {
	rounds, faults                         int
	kinds                                  map[string]int
	acked, items, unknown, failed          int64
	writes, reads, marks, states, commands int
	linearCalls, linearKeys, snapshots     int
	load                                   time.Duration
	back                                   []time.Duration
}

// round is one.
type round struct {
	seed      uint64
	number    int
	node, ctl string
	faults    int
	until     time.Time
}

// play plays the round. What it returns judges it.
func (r *round) play(t *testing.T, sum *totals) (verdict func()) {
	begun := time.Now()
	rng := rand.New(rand.NewPCG(r.seed, 1))
	count := *chaosNodes
	if count == 0 {
		count = 3
		if r.number%4 == 3 {
			count = 5
		}
	}
	dir, err := os.MkdirTemp("", prefix)
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	c, err := newCluster(dir, r.node, rng, count, func(int) []string {
		return []string{"--log-size", logSizes[rng.IntN(len(logSizes))]}
	})
	if err != nil {
		t.Fatalf("chaos: seed %d: %v", r.seed, err)
	}
	closed := false
	defer func() {
		if !closed {
			c.close()
		}
	}()
	for _, n := range c.voters() {
		if err := c.ready(n, *chaosPatience); err != nil {
			t.Fatalf("chaos: seed %d: %v\n%s", r.seed, err, n.log.tail(30))
		}
	}
	l, err := newLoad(c, r.seed)
	if err != nil {
		t.Fatalf("chaos: seed %d: %v", r.seed, err)
	}
	f := newFaults(c, l.h, r.seed)
	time.Sleep(500 * time.Millisecond)
	f.run(r.faults, r.until, *chaosEvery)
	mended := l.h.now()
	time.Sleep(1500 * time.Millisecond)
	loaded := l.h.now()
	l.finish()
	applied := r.final(c, l, ctlOf(r, c))
	l.end()

	// How far each had come, and with that the logs.
	log := newCommitted()
	highest := uint64(0)
	for _, n := range c.nodes {
		if n.running() {
			n.terminate()
		}
		highest = max(highest, applied[n])
	}
	for _, n := range c.nodes {
		for _, part := range n.logs() {
			if err := log.add(n.name, filepath.Dir(filepath.Dir(part.files[0])), applied[n]); err != nil {
				c.fail("%v", err)
			}
		}
	}
	old, _ := filepath.Glob(filepath.Join(dir, "old", "*", "*"))
	for _, part := range old {
		if err := log.add(filepath.Base(filepath.Dir(part)), part, 0); err != nil {
			c.fail("%v", err)
		}
	}
	for _, n := range c.nodes {
		if bad := n.log.damaged(); bad != "" {
			c.fail("%s said\n%s", n.name, bad)
		}
		sum.snapshots += n.log.count("snapshot installed")
	}
	back := r.resumed(c, l.h, mended)
	f.rates(l.h, loaded)
	sum.faults += int(f.begun.Load())
	sum.load += loaded
	closed = true
	c.close()
	played := time.Since(begun)
	if !c.alive() {
		// No other round is begun beside it.
		r.judge(t, sum, c, l, f, log, highest, played, loaded, back)
		return func() {}
	}
	return func() { r.judge(t, sum, c, l, f, log, highest, played, loaded, back) }
}

// judge judges the round and adds it to the sum.
func (r *round) judge(t *testing.T, sum *totals, c *cluster, l *load, f *faults, log *committed, highest uint64, played, loaded, back time.Duration) {
	judged := time.Now()
	var err error
	j := &judge{h: l.h, report: c.fail}
	if j.log, err = log.commands(highest); err != nil {
		c.fail("the log of this round: %v", err)
	} else if err := j.run(); err != nil {
		c.fail("the judge: %v", err)
	}
	if j.found > mostFound {
		c.fail("and %d more of that kind", j.found-mostFound)
	}
	keys, calls := l.linear.judge(c.fail, time.Minute)
	sum.rounds++
	for name, n := range f.counts {
		sum.kinds[name] += n
	}
	sum.acked += l.h.acked.Load()
	sum.items += l.h.items.Load()
	sum.unknown += l.h.fates[unknown].Load()
	sum.failed += l.h.fates[failed].Load()
	sum.writes += j.checked.writes
	sum.reads += j.checked.reads
	sum.marks += j.checked.marks
	sum.states += j.checked.states
	sum.commands += len(j.log)
	sum.linearCalls += calls
	sum.linearKeys += keys
	sum.back = append(sum.back, back)
	say("round %d, seed %d: %d nodes, %d faults, %d operations in %v (%.0f/s), %d more items; unknown %d, not done %d; played in %v, the nodes took %v of the processors; judged in %v: %d writes, %d reads, %d marks, %d commands, porcupine %d",
		r.number, r.seed, len(c.voters()), f.begun.Load(), l.h.acked.Load(), loaded.Round(time.Second), float64(l.h.acked.Load())/loaded.Seconds(), l.h.items.Load(), l.h.fates[unknown].Load(), l.h.fates[failed].Load(),
		played.Round(time.Second), time.Duration(c.processor.Load()).Round(100*time.Millisecond), time.Since(judged).Round(time.Millisecond), j.checked.writes, j.checked.reads, j.checked.marks, len(j.log), calls)
	problems := c.failures()
	if len(problems) == 0 {
		return
	}
	if len(problems) == 1 && strings.HasPrefix(problems[0], toldToEnd) {
		t.Errorf("chaos: %s; what was judged until then was right", problems[0])
		return
	}
	for _, p := range problems {
		fmt.Printf("chaos: VIOLATION seed %d, round %d: %s\n", r.seed, r.number, p)
	}
	fmt.Printf("chaos: the faults of that round:\n%s\n", strings.Join(f.told, "\n"))
	keep := *chaosKeep
	if keep == "" {
		keep = filepath.Join(os.TempDir(), fmt.Sprintf("%sseed-%d", prefix, r.seed))
	}
	if err := c.saveLogs(keep); err == nil {
		fmt.Printf("chaos: what the nodes said: %s\n", keep)
	}
	if commands := filepath.Join(keep, "commands"); len(j.log) > 0 && saveCommands(commands, j.log) == nil {
		fmt.Printf("chaos: its commands again: go test -tags peers ./internal/chaos -run '^TestChaos$' -count 1 -v -args -chaos.replay %s\n", commands)
	}
	fmt.Printf("chaos: again: go test -tags peers ./internal/chaos -run '^TestChaos$' -count 1 -v -args -chaos.seed %d -chaos.faults %d -chaos.nodes %d\n", r.seed, r.faults, len(c.voters()))
	t.Errorf("chaos: seed %d: %d violations", r.seed, len(problems))
}

// ctlOf runs rookeryctl against one node.
func ctlOf(r *round, c *cluster) func(n *node, args ...string) ([]byte, error) {
	cert, key := mtls.FileNames(mtls.Identity{Role: mtls.Operator, Name: "chaos"})
	return func(n *node, args ...string) ([]byte, error) {
		args = append([]string{"--endpoints", n.client(), "--tls-cert", filepath.Join(c.pki, cert), "--tls-key", filepath.Join(c.pki, key), "--tls-ca", filepath.Join(c.pki, mtls.CACert)}, args...)
		return exec.Command(r.ctl, args...).CombinedOutput()
	}
}

// final has all nodes come together and looks at each, once nothing is written any
// more. It returns up to which index each had applied the log.
func (r *round) final(c *cluster, l *load, ctl func(n *node, args ...string) ([]byte, error)) map[*node]uint64 {
	applied := map[*node]uint64{}
	w := l.workers[loadWorkers]
	w.c.Close()
	for begun := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		same, last := true, uint64(0)
		for _, n := range c.voters() {
			st, err := c.status(n, 5*time.Second)
			if err != nil {
				same = false
				continue
			}
			applied[n] = max(applied[n], st.AppliedIndex)
			if last == 0 {
				last = st.AppliedIndex
			}
			same = same && st.AppliedIndex == last
		}
		if same {
			break
		}
		if time.Since(begun) > *chaosPatience {
			c.fail("after %v without a write the nodes have applied %v", *chaosPatience, applied)
			break
		}
	}
	for _, n := range c.voters() {
		if !c.alive() {
			break
		}
		if out, err := ctl(n, "check"); err != nil {
			c.fail("rookeryctl check on %s: %v\n%s", n.name, err, bytes.TrimSpace(out))
		}
		st, err := c.status(n, 5*time.Second)
		if err != nil {
			c.fail("status of %s: %v", n.name, err)
			continue
		}
		if st.Health == nil || st.Health.Verdict != client.VerdictSame && st.Health.Verdict != client.VerdictUnknown || len(st.Health.Differs) > 0 {
			c.fail("%s compared its state with the others': %+v", n.name, st.Health)
		}
		cl, err := c.dial([]string{n.client()}, client.WithTimeout(20*time.Second))
		if err != nil {
			c.fail("%v", err)
			continue
		}
		w.c = cl
		if !r.everything(w, n) {
			c.fail("%s did not show all mailboxes at one revision", n.name)
		}
		cl.Close()
	}
	return applied
}

// everything reads all mailboxes of one node, at one revision.
func (r *round) everything(w *worker, n *node) bool {
	for range 20 {
		w.seen = 0
		call := &call{mode: linearizable, ask: findAll{n.name}}
		var all []client.Route
		call.begun, call.worker = w.l.h.now(), w.id
		one := true
		for route, err := range w.c.FindAll(context.Background(), client.FindQuery{PageSize: 1000}, client.Linearizable()) {
			if err != nil {
				one = false
				break
			}
			if call.rev == 0 {
				call.rev = route.Revision
			}
			one = one && route.Revision == call.rev
			all = append(all, route)
		}
		if one && call.rev > 0 {
			call.got = all
			w.l.h.add(call)
			return true
		}
		time.Sleep(50 * time.Millisecond)
	}
	return false
}

// resumed is how long it took, when all was mended, until a write was acknowledged
// that began after.
func (r *round) resumed(c *cluster, h *history, mended time.Duration) time.Duration {
	first := time.Duration(0)
	for _, calls := range h.calls {
		for _, call := range calls {
			if call.write() && call.fate == answered && call.begun >= mended && (first == 0 || call.ended < first) {
				first = call.ended
			}
		}
	}
	if first == 0 {
		c.fail("no write that began after %v, when all was mended, was acknowledged", mended)
		return 0
	}
	return first - mended
}

// rates looks for ten seconds in which too little happened, although there was a
// majority all the time.
func (f *faults) rates(h *history, until time.Duration) {
	const window = 10
	lost := map[int]bool{}
	for _, s := range f.lost {
		for sec := int(s.from / time.Second); sec <= int(s.to/time.Second)+1; sec++ {
			lost[sec] = true
		}
	}
	for sec := 0; sec+window <= int(until/time.Second); sec++ {
		n, skip := 0, false
		for s := sec; s < sec+window; s++ {
			n += h.second[s]
			skip = skip || lost[s]
		}
		if rate := float64(n) / window; !skip && rate < *chaosLeast {
			f.c.fail("from second %d to %d only %.0f operations a second were answered, though there was a majority", sec, sec+window, rate)
			return
		}
	}
	if rate := float64(h.acked.Load()) / until.Seconds(); rate < *chaosLeast {
		f.c.fail("over the whole round only %.0f operations a second were answered", rate)
	}
}
