package sim

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"runtime/debug"
	"strings"
	"sync"
	"testing"
	"testing/cryptotest"
	"time"
)

var (
	simSeeds   = flag.Int("sim.seeds", 4, "how many seeds TestSim runs")
	simFirst   = flag.Uint64("sim.first", 1, "the first of them")
	simTime    = flag.Duration("sim.time", 300*time.Second, "virtual time of each")
	simWorkers = flag.Int("sim.workers", 2, "processes that run them")
	simLog     = flag.Bool("sim.log", false, "show on standard error what the nodes say; with one seed")
)

// workerVar is set in the environment of a process that runs seeds for another:
// Raft's source of chance belongs to a process, so each world needs one.
const workerVar = "ROOKERY_SIM_WORKER"

// result is what a worker says of a seed.
type result struct {
	Seed    uint64
	Failure string
	Digest  uint64
	Took    time.Duration
	Counts  Counts
}

const resultPrefix = "sim-result: "

// TestSim runs seeds, which is what `make sim` is.
func TestSim(t *testing.T) {
	if os.Getenv(workerVar) != "" {
		work(t)
		return
	}
	if *simSeeds < 1 || *simTime < time.Second || *simWorkers < 1 {
		t.Fatalf("%d seeds of %v by %d processes: give -sim.seeds (SIMSEEDS) and -sim.workers of 1 or more, and -sim.time (SIMTIME) of 1s or more", *simSeeds, *simTime, *simWorkers)
	}
	if *simLog {
		r := run(t, *simFirst, *simTime, slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})))
		fmt.Println(r)
		report(t, r)
		return
	}
	var total Counts
	begun, done := time.Now(), 0
	var cpu time.Duration
	for r := range workers(t) {
		done++
		cpu += r.Took
		total.add(&r.Counts)
		if testing.Verbose() {
			fmt.Println(r)
		}
		if report(t, r) {
			break
		}
	}
	fmt.Printf("sim: %d seeds from %d, %.0f cluster-seconds in %v, %.2f s of one core for 1,000\n", done, *simFirst,
		float64(done)*simTime.Seconds(), time.Since(begun).Round(time.Millisecond), cpu.Seconds()/(float64(done)*simTime.Seconds())*1000)
	fmt.Print(&total)
	if missing := total.enough(time.Duration(done) * *simTime); len(missing) > 0 && !t.Failed() {
		t.Errorf("too little happened for this to prove anything: %s", strings.Join(missing, "; "))
	}
}

// report says what a seed has violated, and how to see it again.
func report(t *testing.T, r result) bool {
	if r.Failure == "" {
		return false
	}
	fmt.Printf("sim: seed %d: VIOLATION %s\nsim: again: go test ./internal/sim -run '^TestSim$' -count 1 -v -args -sim.seeds 1 -sim.first %d -sim.time %v\n", r.Seed, r.Failure, r.Seed, *simTime)
	t.Errorf("seed %d: VIOLATION %s", r.Seed, r.Failure)
	return true
}

func (r result) String() string {
	return fmt.Sprintf("sim: seed %d: digest %016x, %v, %d calls, %d commands, applied %d times, %d reads, %d elections, %d restarts, %d snapshots, %d remade; %s",
		r.Seed, r.Digest, r.Took.Round(time.Millisecond), r.Counts.Calls, r.Counts.Commands, r.Counts.Applies, r.Counts.Reads, r.Counts.Elections, r.Counts.Restarts, r.Counts.Installed, r.Counts.Restores, r.Counts.faults())
}

// workers hands the seeds to processes and gives what they say, in any order.
func workers(t *testing.T) func(yield func(result) bool) {
	return func(yield func(result) bool) {
		ctx, cancel := context.WithCancel(context.Background())
		seeds, results := make(chan uint64), make(chan result)
		var running sync.WaitGroup
		running.Go(func() {
			defer close(seeds)
			for i := range *simSeeds {
				select {
				case seeds <- *simFirst + uint64(i):
				case <-ctx.Done():
					return
				}
			}
		})
		for range min(*simWorkers, *simSeeds) {
			running.Go(func() {
				if err := worker(ctx, seeds, results); err != nil && ctx.Err() == nil {
					t.Error(err)
				}
			})
		}
		go func() {
			running.Wait()
			close(results)
		}()
		for r := range results {
			if !yield(r) {
				break
			}
		}
		cancel()
		for range results {
		}
	}
}

// worker runs one process.
func worker(ctx context.Context, seeds <-chan uint64, results chan<- result) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	c := exec.CommandContext(ctx, self, "-test.run", "^TestSim$", "-test.timeout", "0", "-sim.time", simTime.String())
	c.Env = append(os.Environ(), workerVar+"=1", "GOMAXPROCS=1")
	var said strings.Builder
	c.Stderr = &said
	in, err := c.StdinPipe()
	if err != nil {
		return err
	}
	out, err := c.StdoutPipe()
	if err != nil {
		return err
	}
	if err := c.Start(); err != nil {
		return err
	}
	lines := bufio.NewReaderSize(out, 1<<20)
	for seed := range seeds {
		if _, err := fmt.Fprintln(in, seed); err != nil {
			break
		}
		r, err := nextResult(lines, &said)
		if err != nil {
			// It has died over the seed: that is a violation too.
			_ = c.Wait()
			r = result{Seed: seed, Failure: fmt.Sprintf("the process ended: %v\n%s", err, said.String())}
		}
		select {
		case results <- r:
		case <-ctx.Done():
		}
		if err != nil {
			return nil
		}
	}
	in.Close()
	_, _ = io.Copy(io.Discard, lines)
	return c.Wait()
}

func nextResult(lines *bufio.Reader, said *strings.Builder) (r result, err error) {
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			return r, err
		}
		if text, ok := strings.CutPrefix(line, resultPrefix); ok {
			return r, json.Unmarshal([]byte(text), &r)
		}
		said.WriteString(line)
	}
}

// work is what a worker process does.
func work(t *testing.T) {
	debug.SetGCPercent(400)
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		var seed uint64
		if _, err := fmt.Sscan(in.Text(), &seed); err != nil {
			t.Fatal(err)
		}
		out, err := json.Marshal(run(t, seed, *simTime, nil))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Printf("%s%s\n", resultPrefix, out)
	}
}

// run runs one seed in this process.
func run(t *testing.T, seed uint64, d time.Duration, log *slog.Logger) result {
	cryptotest.SetGlobalRandom(t, seed)
	begun := cpuTime()
	w := NewWorld(seed, log)
	x := NewWorkload(w)
	x.Start()
	w.Run(d)
	if w.Failure() == "" {
		x.Check()
	}
	w.Close()
	return result{seed, w.Failure(), w.Digest(), cpuTime() - begun, w.counts}
}

// TestDeterministic: the same seed gives the same run.
func TestDeterministic(t *testing.T) {
	for seed := uint64(1); seed <= 3; seed++ {
		a, b := run(t, seed, 150*time.Second, nil), run(t, seed, 150*time.Second, nil)
		if a.Digest != b.Digest || a.Failure != "" || a.Counts.Events != b.Counts.Events {
			t.Errorf("two runs of seed %d: digests %x and %x, %d and %d events, %s %s", seed, a.Digest, b.Digest, a.Counts.Events, b.Counts.Events, a.Failure, b.Failure)
		}
	}
}
