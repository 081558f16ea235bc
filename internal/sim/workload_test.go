package sim

import (
	"flag"
	"log/slog"
	"os"
	"testing"
	"testing/cryptotest"
	"time"
)

var (
	workFirst = flag.Uint64("work.first", 1, "the first seed of TestWorkload")
	workSeeds = flag.Int("work.seeds", 3, "how many seeds TestWorkload plays")
	workTime  = flag.Duration("work.time", 300*time.Second, "how long each of them is")
	workAbout = flag.String("work.about", "", "of a failed seed the last commands about this name are shown")
	workTail  = flag.Int("work.tail", 20, "how many")
	workLog   = flag.Bool("work.log", false, "what the nodes say")
)

// play runs a seed with its actors.
func play(t *testing.T, seed uint64, d time.Duration) (*World, *Workload) {
	t.Helper()
	cryptotest.SetGlobalRandom(t, seed)
	var log *slog.Logger
	if *workLog {
		log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	w := NewWorld(seed, log)
	x := NewWorkload(w)
	x.Start()
	w.Run(d)
	if w.Failure() == "" {
		x.Check()
	}
	w.Close()
	if w.Failure() != "" {
		t.Errorf("seed %d: VIOLATION %s\nthe log ends with\n%s", seed, w.Failure(), x.judge.tail(*workTail, *workAbout))
	}
	return w, x
}

func TestWorkload(t *testing.T) {
	for seed := *workFirst; seed < *workFirst+uint64(*workSeeds); seed++ {
		begun := time.Now()
		w, x := play(t, seed, *workTime)
		t.Logf("seed %d in %v: %d applies, %d restores; %s", seed, time.Since(begun), w.counts.Applies, w.counts.Restores, x.Describe())
	}
}

// The same seed gives the same run, actors and all.
func TestWorkloadIsDeterministic(t *testing.T) {
	var first, second *Workload
	for _, x := range []**Workload{&first, &second} {
		_, *x = play(t, 5, 200*time.Second)
	}
	if a, b := first.w.Digest(), second.w.Digest(); a != b {
		t.Errorf("digests %x and %x", a, b)
	}
	if a, b := first.Describe(), second.Describe(); a != b {
		t.Errorf("two runs of one seed:\n%s\n%s", a, b)
	}
}
