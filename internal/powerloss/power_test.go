//go:build peers

package powerloss

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

var (
	cuts       = flag.Int64("power.cuts", 0, "how often TestPowerLoss cuts power; 0: for -power.time")
	runTime    = flag.Duration("power.time", 30*time.Second, "how long TestPowerLoss cuts power, if -power.cuts does not say how often")
	seed       = flag.Uint64("power.seed", 0, "seed of the tests; 0 draws one")
	lanes      = flag.Int("power.lanes", 4, "how many worlds there are at once")
	threes     = flag.Float64("power.threes", 0.4, "how many of the worlds have three nodes, as a share of 1")
	rookeryd   = flag.String("rookeryd", "", "the `program` to test; built if not given")
	rookeryctl = flag.String("rookeryctl", "", "the `program` to test; built if not given")
	powerfs    = flag.String("powerfs", "../../bin/tools/powerfs", "the file `server`")
)

// built returns the programs, which it builds unless they are given.
func built(t *testing.T) programs {
	t.Helper()
	p := programs{*rookeryd, *rookeryctl, *powerfs}
	if err := prerequisites(p.powerfs); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, x := range []struct {
		name string
		path *string
	}{{"rookeryd", &p.rookeryd}, {"rookeryctl", &p.rookeryctl}} {
		if *x.path != "" {
			continue
		}
		*x.path = filepath.Join(dir, x.name)
		if out, err := exec.Command("go", "build", "-o", *x.path, "../../cmd/"+x.name).CombinedOutput(); err != nil {
			t.Fatalf("build %s: %v\n%s", x.name, err, out)
		}
	}
	return p
}

// TestPowerLoss cuts the power of nodes under load; see the package comment.
func TestPowerLoss(t *testing.T) {
	h := &harness{programs: built(t), report: &report{}, spawn: newSpawner(), dir: t.TempDir(), seed: *seed}
	if h.seed == 0 {
		h.seed = rand.Uint64()
	}
	// Addresses of its own: nobody else's connections take its ports while a node
	// is down.
	h.net = fmt.Sprintf("127.%d.", 2+rand.IntN(250))
	fmt.Printf("powerloss: seed %d\n", h.seed)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	begun := time.Now()
	if *cuts == 0 {
		h.until = begun.Add(*runTime)
	}
	var lane sync.WaitGroup
	for i := range *lanes {
		lane.Go(func() {
			if err := h.lane(ctx, i); err != nil {
				h.fail(err)
				cancel()
			}
		})
	}
	lane.Wait()
	fmt.Printf("powerloss: %v: %s", time.Since(begun).Round(time.Second), h.report)
	if h.err != nil {
		t.Fatal(h.err)
	}
	if n, acked := h.report.cuts.Load(), h.report.acked.Load(); n == 0 || acked < 10*n {
		t.Errorf("%d writes in %d cuts: too few to prove anything", acked, n)
	}
}

type harness struct {
	programs
	report *report
	spawn  spawner
	dir    string
	net    string
	seed   uint64
	until  time.Time // zero: until enough cuts

	mu  sync.Mutex
	err error
}

// fail keeps the first error: those of other lanes may follow from it.
func (h *harness) fail(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.err == nil && !errors.Is(err, context.Canceled) {
		h.err = err
	}
}

func (h *harness) enough() bool {
	if !h.until.IsZero() {
		return time.Now().After(h.until)
	}
	return h.report.cuts.Load() >= *cuts
}

// lane makes one world after the other.
func (h *harness) lane(ctx context.Context, lane int) (err error) {
	disks, err := startDisks(h.powerfs)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, disks.close()) }()
	rng := rand.New(rand.NewPCG(h.seed, uint64(lane)))
	for n := 0; !h.enough() && ctx.Err() == nil; n++ {
		w := &world{
			programs: h.programs, seed: rng.Uint64(), spawn: h.spawn, disks: disks, report: h.report,
			dir:     filepath.Join(h.dir, fmt.Sprintf("lane-%d-world-%d", lane, n)),
			address: fmt.Sprint(h.net, 1+lane, "."),
		}
		w.rng = rand.New(rand.NewPCG(w.seed, 1))
		if err := h.live(ctx, w); err != nil {
			return h.explain(w, err)
		}
		if err := os.RemoveAll(w.dir); err != nil {
			return err
		}
	}
	return nil
}

// live is the life of a world.
func (h *harness) live(ctx context.Context, w *world) (err error) {
	defer func() { err = errors.Join(err, w.end()) }()
	size := 1
	if w.rng.Float64() < *threes {
		size = 3
	}
	if err := w.begin(ctx, size); err != nil {
		return err
	}
	h.report.worlds.Add(1)
	defer func() {
		acked, refused := w.load.counts()
		h.report.acked.Add(int64(acked))
		h.report.refused.Add(int64(refused))
		fmt.Printf("%s powerloss: %d cuts so far; a world of %d nodes ends with %d writes acknowledged\n", time.Now().UTC().Format("15:04:05"), h.report.cuts.Load(), size, acked)
	}()
	for range 5 + w.rng.IntN(15) {
		if h.enough() || ctx.Err() != nil {
			return ctx.Err()
		}
		if err := w.cycle(ctx); err != nil {
			return err
		}
	}
	switch {
	case w.rng.IntN(2) == 0:
		return nil
	case size == 1:
		return w.restored(ctx)
	}
	return w.recovered(ctx)
}

// explain says what led to an error, and how to have it again.
func (h *harness) explain(w *world, err error) error {
	if errors.Is(err, context.Canceled) {
		return err
	}
	kind := "VIOLATION"
	if _, ok := errors.AsType[*trouble](err); ok {
		kind = "trouble"
	}
	if len(w.story) > 30 {
		w.story = w.story[len(w.story)-30:]
	}
	text := fmt.Sprintf("powerloss: %s after %d cuts: %v\nwhat led to it, world seed %d:\n\t%s\nlook for it again with -power.seed %d; timing is not in the seed",
		kind, h.report.cuts.Load(), err, w.seed, strings.Join(w.story, "\n\t"), h.seed)
	fmt.Println(text)
	return errors.New(text)
}
