//go:build peers

package mutants

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

var (
	runAll    = flag.Bool("mutants.all", false, "TestMutants runs every mutant")
	runOnly   = flag.String("mutants.only", "", "TestMutants runs the mutants whose names this `expression` fits")
	runRotate = flag.Int("mutants.rotate", -1, "TestMutants runs two mutants; the `number` says which, as a day or a count of commits")
	budget    = flag.Duration("mutants.budget", 10*time.Minute, "how long a harness has for one mutant")
	first     = flag.Int("mutants.first", 1, "the first seed of the simulation")
	seeds     = flag.Int("mutants.seeds", 400, "how many seeds the simulation may need")
	simTime   = flag.String("mutants.sim-time", "1000s", "how long each seed of the simulation lasts, of its own time")
	workers   = flag.Int("mutants.workers", 2, "how many seeds the simulation plays at once")
	faults    = flag.Int("mutants.faults", 400, "how many faults the chaos test may need")
	damages   = flag.Int("mutants.damages", 12, "how many places of each kind are damaged")
	cuts      = flag.Int("mutants.cuts", 600, "how many power cuts may be needed")
	output    = flag.String("mutants.output", "", "a `directory` for all that harnesses print, a file for each mutant; it must be there")
	bare      = flag.Bool("mutants.bare", true, "each harness must also pass without a mutant, over what the mutants needed")
)

// TestMutants plants the mutants that it is asked for, one after the other, and
// has each run in its harness until that finds something, or its budget is spent.
// Then the build without any must pass the same: as many seeds, faults and cuts
// as the slowest of them needed.
func TestMutants(t *testing.T) {
	all, err := readMutants()
	if err != nil {
		t.Fatal(err)
	}
	chosen, err := choose(all)
	if err != nil {
		t.Fatal(err)
	}
	if len(chosen) == 0 {
		return // nobody asked for any
	}
	bareDir = t.TempDir()
	var table strings.Builder
	fmt.Fprintf(&table, "%-34s %-6s %-10s %8s  %s\n", "mutant", "by", "after", "seconds", "what it said first")
	needed := map[string]int{}
	for _, m := range chosen {
		r := play(t, m.harness, m, *first, counts()[m.harness])
		after := "NOT CAUGHT"
		if r.caught && m.harness == "sim" {
			// A seed is the same run again: it must be the mutant that it fails for.
			if alone := play(t, "sim", nil, r.seed(), 1); alone.failed() {
				t.Errorf("seed %d fails without mutant %s too: %s (%v)", r.seed(), m.name, alone.said, alone.err)
				r.caught, r.said = false, "the seed fails without it too: "+r.said
			}
		}
		if r.caught {
			after = r.needed()
			needed[m.harness] = max(needed[m.harness], r.done)
		} else {
			t.Errorf("mutant %s was not caught by %s in %s and %v: %s It breaks %s.\n%s", m.name, m.harness, r.needed(), r.took.Round(time.Second), m.why, m.breaks, r.tail)
		}
		line := fmt.Sprintf("%-34s %-6s %-10s %8.0f  %s", m.name, m.harness, after, r.took.Seconds(), r.said)
		t.Log(line)
		table.WriteString(line + "\n")
	}
	for _, h := range harnesses {
		if !*bare || needed[h] == 0 {
			continue
		}
		r := play(t, h, nil, *first, needed[h])
		line := fmt.Sprintf("%-34s %-6s %-10s %8.0f  %s", "none", h, r.needed(), r.took.Seconds(), r.said)
		table.WriteString(line + "\n")
		if r.failed() {
			t.Errorf("without a mutant %s finds something too, after %s: %s (%v)\n%s", h, r.needed(), r.said, r.err, r.tail)
		}
	}
	t.Logf("\n%s", table.String())
}

// choose picks the mutants that were asked for.
func choose(all []*mutant) (chosen []*mutant, err error) {
	switch {
	case *runAll:
		return all, nil
	case *runOnly != "":
		fits, err := regexp.Compile(*runOnly)
		if err != nil {
			return nil, err
		}
		for _, m := range all {
			if fits.MatchString(m.name) {
				chosen = append(chosen, m)
			}
		}
		if len(chosen) == 0 {
			err = fmt.Errorf("no mutant is called %s", *runOnly)
		}
		return chosen, err
	case *runRotate < -1:
		return nil, fmt.Errorf("-mutants.rotate=%d: give a number of 0 or more (ROTATE)", *runRotate)
	case *runRotate >= 0:
		var quick []*mutant
		for _, m := range all {
			if m.quick {
				quick = append(quick, m)
			}
		}
		for i := range 2 {
			chosen = append(chosen, quick[(2**runRotate+i)%len(quick)])
		}
	}
	return chosen, nil
}

// counts is how much of its own each harness may need: seeds, faults, cuts, runs.
func counts() map[string]int {
	return map[string]int{"sim": *seeds, "chaos": *faults, "power": *cuts, "damage": *damages, "soak": 1, "upgrade": 1}
}

// result is how a harness did.
type result struct {
	harness string
	from    int // the first seed
	caught  bool
	done    int // seeds, faults or cuts, as far as it told
	took    time.Duration
	said    string // the first line that tells of a violation
	tail    string // the end of what it printed
	err     error
}

// failed says that a run without a mutant was not as it should be. A harness that
// says no more than that it was too short was asked for so little.
func (r result) failed() bool {
	return r.caught || r.err != nil && !strings.Contains(r.tail, "too little happened")
}

// seed is the one that the simulation failed at.
func (r result) seed() int {
	if at := violated.FindStringSubmatch(r.said); at != nil {
		if n, err := strconv.Atoi(at[1]); err == nil {
			return n
		}
	}
	return r.from + max(0, r.done-1)
}

var violated = regexp.MustCompile(`seed (\d+): VIOLATION`)

func (r result) needed() string {
	unit := map[string]string{"sim": "seeds", "chaos": "faults", "power": "cuts", "damage": "places of each kind", "soak": "run", "upgrade": "run"}[r.harness]
	return fmt.Sprintf("%d %s", r.done, unit)
}

// play builds what a harness tests with m in it, nil for none, and runs it, from a
// seed on.
func play(t *testing.T, harness string, m *mutant, from, most int) (r result) {
	t.Helper()
	dir := bareDir
	var flags []string
	if m != nil {
		dir = t.TempDir()
		o := overlay{}
		if err := o.plant(m); err != nil {
			t.Fatal(err)
		}
		list, err := o.write(dir)
		if err != nil {
			t.Fatal(err)
		}
		flags = []string{"-overlay", list}
	}
	build := func(args ...string) {
		t.Helper()
		if _, err := os.Stat(args[slices.Index(args, "-o")+1]); err == nil {
			return // for an earlier run
		}
		cmd := exec.Command("go", append(args[:1:1], append(flags, args[1:]...)...)...)
		cmd.Dir = root
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
		}
	}
	bin := filepath.Join(dir, harness+".test")
	daemon, ctl := filepath.Join(dir, "rookeryd"), filepath.Join(dir, "rookeryctl")
	var args []string
	var in string
	switch harness {
	case "sim":
		in = "internal/sim"
		args = []string{"-test.run", "^TestSim$", "-sim.seeds", strconv.Itoa(most), "-sim.first", strconv.Itoa(from), "-sim.time", *simTime, "-sim.workers", strconv.Itoa(*workers)}
	case "chaos":
		in = "internal/chaos"
		args = []string{"-test.run", "^TestChaos$", "-rookeryd", daemon, "-rookeryctl", ctl, "-chaos.faults", strconv.Itoa(most), "-chaos.least", "1"}
	case "power":
		in = "internal/powerloss"
		args = []string{"-test.run", "^TestPowerLoss$", "-rookeryd", daemon, "-rookeryctl", ctl, "-power.cuts", strconv.Itoa(most), "-power.seed", strconv.Itoa(from)}
	case "damage":
		in = "internal/powerloss"
		args = []string{"-test.run", "^TestPowerDamage$", "-rookeryd", daemon, "-rookeryctl", ctl, "-power.damage", strconv.Itoa(most), "-power.seed", strconv.Itoa(from)}
	case "soak":
		in = "cmd/rookeryd"
		args = []string{"-test.run", "^TestSoak$", "-rookeryd", daemon, "-soak.time", soakJudged.String()}
	case "upgrade":
		in = "internal/upgrade"
		args = []string{"-test.run", upgradeTests, "-test.failfast", "-rookeryd", daemon, "-rookeryctl", ctl, "-upgrade.programs", releases(t)}
	}
	if harness == "sim" {
		build("test", "-c", "-ldflags=-s -w", "-o", bin, "./"+in)
	} else {
		// The programs have the bug, and who watches them has not.
		build("build", "-ldflags=-s -w", "-o", daemon, "./cmd/rookeryd")
		build("build", "-ldflags=-s -w", "-o", ctl, "./cmd/rookeryctl")
		flags = nil
		build("test", "-c", "-tags", "peers,upgrade", "-ldflags=-s -w", "-o", bin, "./"+in)
	}
	ctx, cancel := context.WithTimeout(t.Context(), *budget)
	defer cancel()
	cmd := exec.CommandContext(ctx, bin, append(args, "-test.v", "-test.timeout", "0")...)
	cmd.Dir = filepath.Join(root, in)
	if *output == "" {
		return watch(harness, from, cmd, io.Discard)
	}
	name := "none-" + harness
	if m != nil {
		name = m.name
	}
	f, err := os.Create(filepath.Join(*output, name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	return watch(harness, from, cmd, f)
}

// bareDir is where TestMutants keeps what is built without a mutant, which is the
// same every time.
var bareDir string

// soakJudged is long enough for a soak to judge.
const soakJudged = 100 * time.Second

// upgradeTests are those that run programs of several releases.
const upgradeTests = "^Test(FoundMixed|UnknownCommand|NewerVersion|NewerState|OlderStops|Rolling)$"

// releases is where the programs of earlier releases are kept, as make upgrade does.
func releases(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs(filepath.Join(root, "bin", "releases"))
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// What harnesses print: a violation, and how far they have come.
var (
	violation = regexp.MustCompile(`VIOLATION|not flat: |^panic: |^fatal error: `)
	told      = regexp.MustCompile(`^\w+_test\.go:\d+: `)
	wants     = regexp.MustCompile(`\b(want|waited)\b`)
	progress  = map[string]*regexp.Regexp{
		"sim":   regexp.MustCompile(`seed (\d+)\b`),
		"chaos": regexp.MustCompile(`(\d+) faults`),
		"power": regexp.MustCompile(`(\d+) (?:power )?cuts`),
	}
)

// watch runs a harness to its end and reads what it says, of which whole gets all.
func watch(harness string, from int, cmd *exec.Cmd, whole io.Writer) (r result) {
	r.harness, r.from = harness, from
	out, in := io.Pipe()
	cmd.Stdout, cmd.Stderr = in, in
	cmd.WaitDelay = 30 * time.Second // it removes what it made on the machine
	// A harness that is out of time is asked to end, so that it ends what it began.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	begun := time.Now()
	read := make(chan struct{})
	go func() {
		defer close(read)
		lines := bufio.NewScanner(io.TeeReader(out, whole))
		lines.Buffer(nil, 16<<20)
		var last []string
		before := ""
		for lines.Scan() {
			line := strings.TrimSpace(lines.Text())
			if last = append(last, line); len(last) > 40 {
				last = last[1:]
			}
			if p := progress[harness]; p != nil {
				for _, found := range p.FindAllStringSubmatch(line, -1) {
					if n, err := strconv.Atoi(found[1]); err == nil {
						if harness == "sim" {
							n -= from - 1
						}
						r.done = max(r.done, n)
					}
				}
			}
			if told.MatchString(line) && !wants.MatchString(before) {
				before = line
			}
			if r.said == "" && (violation.MatchString(line) || harness == "upgrade" && strings.HasPrefix(line, "--- FAIL: ")) {
				if r.said = clip(line, 220); harness == "upgrade" {
					r.said = clip(line+" "+before, 220) // which names no violation, but what it wants
				}
				r.took = time.Since(begun)
			}
		}
		r.tail = strings.Join(last, "\n")
		_, _ = io.Copy(io.Discard, out)
	}()
	r.err = cmd.Run()
	if err := in.Close(); err != nil && !errors.Is(err, io.ErrClosedPipe) {
		r.err = errors.Join(r.err, err)
	}
	<-read
	if r.took == 0 {
		r.took = time.Since(begun)
	}
	r.caught = r.err != nil && r.said != ""
	switch harness {
	case "soak", "upgrade":
		r.done = 1
	case "damage":
		r.done = *damages
	}
	return r
}

func clip(s string, most int) string {
	if len(s) <= most {
		return s
	}
	return s[:most] + " ..."
}

// TestWatch: what a harness says is read as it is meant.
func TestWatch(t *testing.T) {
	for _, tt := range []struct {
		harness string
		script  string
		caught  bool
		done    int
		said    string
	}{
		{"sim", "echo 'sim: seed 7: ok'; echo 'sim: seed 9: VIOLATION two leaders'; exit 1", true, 9, "sim: seed 9: VIOLATION two leaders"},
		{"sim", "echo 'sim: seed 20: ok'", false, 20, ""},
		{"sim", "echo 'it did not even start'; exit 2", false, 0, ""},
		{"sim", "echo 'panic: boom'; exit 2", true, 0, "panic: boom"},
		{"upgrade", "echo 'a_test.go:9: it goes on'; echo 'a_test.go:10: got 3, want 4'; echo 'a_test.go:11: over'; echo '--- FAIL: TestRolling (3s)'; exit 1", true, 1, "--- FAIL: TestRolling (3s) a_test.go:10: got 3, want 4"},
	} {
		r := watch(tt.harness, 1, exec.CommandContext(t.Context(), "sh", "-c", tt.script), io.Discard)
		if r.caught != tt.caught || r.done != tt.done || r.said != tt.said {
			t.Errorf("%s: got %+v, want caught %v after %d: %q", tt.script, r, tt.caught, tt.done, tt.said)
		}
	}
}

// TestChoose: a rotation comes by all that are caught at once, two at a time.
func TestChoose(t *testing.T) {
	all, err := readMutants()
	if err != nil {
		t.Fatal(err)
	}
	defer func(n int) { *runRotate = n }(*runRotate)
	seen := map[string]bool{}
	want := 0
	for _, m := range all {
		if m.quick {
			want++
		}
	}
	for n := range (want + 1) / 2 {
		*runRotate = n
		two, err := choose(all)
		if err != nil || len(two) != 2 || two[0] == two[1] {
			t.Fatalf("rotation %d: %v, %v", n, two, err)
		}
		seen[two[0].name], seen[two[1].name] = true, true
	}
	if len(seen) != want {
		t.Errorf("%d of %d mutants come around", len(seen), want)
	}
}
