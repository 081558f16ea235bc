package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The smallest run of the built programs: every workload answers rightly on a
// real node, everything that stands beside it runs, and all is in the report.
func TestRun(t *testing.T) {
	dir := t.TempDir()
	build := exec.Command("go", "build", "-o", dir, ".", "../rookeryd")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	jsonFile, data := filepath.Join(dir, "report.json"), filepath.Join(dir, "data")
	run := func(args ...string) string {
		t.Helper()
		// A node that hangs must fail this test, not the whole of them; what the
		// program started ends with it.
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, filepath.Join(dir, "rookery-bench"), args...)
		var out, said bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &said
		if err := cmd.Run(); err != nil {
			log, _ := os.ReadFile(filepath.Join(data, "rookery-bench-2k-seed1", "rookeryd.log"))
			t.Fatalf("rookery-bench %s: %v\n%s%s", strings.Join(args, " "), err, said.Bytes(), log)
		}
		return out.String()
	}
	common := []string{"--population", "2k", "--rounds", "1", "--duration", "50ms", "--warmup", "10ms", "--dir", data, "--json", jsonFile}

	table := run(append(common, "--workload", "import,lookup*,list-50,assert-64,memory,start", "--keep")...)
	r, err := readReport(jsonFile)
	if err != nil {
		t.Fatal(err)
	}
	p := r.Populations[0]
	if p.Import == nil || p.Import.Facts != 2_000 {
		t.Errorf("import: %+v", p.Import)
	}
	if p.Memory == nil || p.Memory.End < 1<<20 || p.Memory.Peak < p.Memory.End || p.Stored == 0 {
		t.Errorf("memory: %+v, data directory: %d", p.Memory, p.Stored)
	}
	if len(p.Starts) != 2 {
		t.Errorf("%d starts, want 2", len(p.Starts))
	}
	for _, s := range p.Starts {
		if s.Stale <= 0 || s.AtLeast <= 0 || s.Linearizable <= 0 || len(s.Rounds) != 1 {
			t.Errorf("start: %+v", s)
		}
	}
	checkLoads(t, p.Loads, "lookup", "lookup-linearizable", "lookup-stale", "lookup-many", "list-50", "assert-64")
	for _, want := range []string{"lookup-linearizable", "Import", "after", "passes"} {
		if !strings.Contains(table, want) {
			t.Errorf("the table has no %q:\n%s", want, table)
		}
	}

	// What was kept is used again: nothing is imported, and the reads are right.
	run(append(common, "--workload", "import,batch-assert", "--keep", "--cpuprofile-server", filepath.Join(dir, "profiles"))...)
	if r, err = readReport(jsonFile); err != nil {
		t.Fatal(err)
	}
	if p = r.Populations[0]; p.Import != nil {
		t.Errorf("what was kept was imported again: %+v", p.Import)
	}
	checkLoads(t, p.Loads, "batch-assert")
	for _, file := range []string{"2k-batch-assert.cpu.pb.gz", "2k-batch-assert.allocs.pb.gz"} {
		if info, err := os.Stat(filepath.Join(dir, "profiles", file)); err != nil || info.Size() == 0 {
			t.Errorf("no profile: %v", err)
		}
	}

	// And what is not kept is not left behind.
	run(append(common, "--workload", "import", "--open", "0")...)
	if left, _ := os.ReadDir(data); len(left) > 0 {
		t.Errorf("%v was left behind", left)
	}

	// A comparison, as far as it goes without etcd.
	table = run("compare", "--etcd", "", "--nodes", "1", "--population", "2k", "--runs", "1", "--duration", "50ms", "--warmup", "10ms",
		"--workload", "assert-64", "--dir", data, "--json", jsonFile)
	if r, err = readReport(jsonFile); err != nil {
		t.Fatal(err)
	}
	c := r.Comparison
	if len(c.Imports) != 1 || c.Imports[0].Facts != 2_000 || len(c.Duels) != 1 || len(c.Duels[0].Sides) != 3 || len(c.Systems) != 1 {
		t.Fatalf("comparison: %+v", c)
	}
	for _, side := range c.Duels[0].Sides {
		if side.Rate <= 0 || side.Errors > 0 || len(side.Rates) != 1 {
			t.Errorf("%s: %+v", side.Name, side)
		}
	}
	if side := c.Duels[0].Sides[0]; len(side.Costs) != 1 || side.Costs[0].Led != 1 || side.Open == nil || side.Open.Calls == 0 {
		t.Errorf("%+v", side)
	}
	if n := c.Systems[0].Nodes[0]; n.Memory.End < 1<<20 || n.Stored <= n.State || n.State == 0 {
		t.Errorf("node: %+v", n)
	}
	if !strings.Contains(table, "import into 1 nodes") {
		t.Errorf("the table has no verdict:\n%s", table)
	}
	if left, _ := os.ReadDir(data); len(left) > 0 {
		t.Errorf("%v was left behind by the comparison", left)
	}
}

func checkLoads(t *testing.T, loads []loadResult, names ...string) {
	t.Helper()
	var got []string
	for _, l := range loads {
		got = append(got, l.Workload)
		want := workloadNamed(l.Workload)
		if f := l.Measured; f.Rate <= 0 || f.Errors > 0 || f.InFlight != want.workers || l.Keys != want.keys {
			t.Errorf("%s: %+v", l.Workload, f)
		}
		if l.Open == nil || l.Open.Calls == 0 || l.Open.Offered <= 0 {
			t.Errorf("%s: open loop %+v", l.Workload, l.Open)
		}
		if len(l.Beside) != len(want.beside) {
			t.Fatalf("%s: %d stand beside it, want %d", l.Workload, len(l.Beside), len(want.beside))
		}
		for i, b := range l.Beside {
			if b.Name != want.beside[i].name() || b.Rate <= 0 || b.Errors > 0 || b.Ratio <= 0 {
				t.Errorf("%s: beside it %+v", l.Workload, b)
			}
		}
	}
	if fmt.Sprint(got) != fmt.Sprint(names) {
		t.Errorf("loads %v, want %v", got, names)
	}
}
