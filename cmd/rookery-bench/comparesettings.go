package main

import (
	"flag"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"time"
)

// compareSettings are what a comparison is told.
type compareSettings struct {
	settings
	nodes   int
	imports int
	etcd    string // "": Rookery alone
	target  string
}

// Whom callers connect to.
const (
	targetLeader = "leader"
	targetAll    = "all"
)

// parseCompare reads the command line of a comparison.
func parseCompare(args []string, out io.Writer) (compareSettings, error) {
	s := compareSettings{}
	var population, loads string
	fs := flag.NewFlagSet("rookery-bench compare", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.StringVar(&population, "population", "1M", "how many mailboxes: a `size`, such as 100k or 1M")
	fs.Uint64Var(&s.seed, "seed", 1, "which population of that size, and which calls")
	fs.IntVar(&s.nodes, "nodes", 3, "how many nodes each system has")
	fs.StringVar(&loads, "workload", "*", "which `loads`, separated by commas, * standing for any text: "+strings.Join(duelNames(), ", "))
	fs.StringVar(&s.rookeryd, "rookeryd", besideMe("rookeryd"), "the `program` of a node")
	fs.StringVar(&s.etcd, "etcd", besideMe("tools/etcd"), "etcd's `program`, which make bin/tools/etcd builds; empty: Rookery alone")
	fs.StringVar(&s.dir, "dir", "", "where data go: a `directory` on the disk to be measured; default: a new one in the system's place for those")
	fs.IntVar(&s.rounds, "runs", 3, "how many runs of each load each figure is the median of")
	fs.IntVar(&s.imports, "imports", 0, "how many imports into empty clusters; default: as many as runs. The last is what the loads run on")
	fs.DurationVar(&s.duration, "duration", 10*time.Second, "how long one run of one system is")
	fs.DurationVar(&s.warmup, "warmup", time.Second, "how long each system is loaded before each run")
	fs.IntVar(&s.connections, "connections", 4, "how many connections the calls in flight share")
	fs.StringVar(&s.target, "target", targetLeader, "whom they connect to: leader or all")
	fs.Float64Var(&s.openShare, "open", 0.5, "the rate of the open loops, as a share of what the slower of both reached; 0: no open loops")
	fs.BoolVar(&s.ceilings, "ceilings", true, "run the echo and the fdatasync as well")
	fs.StringVar(&s.profiles, "cpuprofile-server", "", "save CPU and allocation profiles of Rookery's nodes under each load in this `directory`")
	fs.StringVar(&s.format, "o", "table", "what is printed: "+strings.Join(formats, ", "))
	fs.StringVar(&s.jsonFile, "json", "", "`file` to save everything in, each run included")
	if err := parseFlags(fs, args, out); err != nil {
		return s, err
	}
	if fs.NArg() > 0 {
		return s, fmt.Errorf("%w: %q is no flag; `rookery-bench compare --help` lists them", errUsage, fs.Arg(0))
	}
	size, err := parseSize(population)
	if err != nil {
		return s, err
	}
	s.populations = []int{size}
	if s.imports == 0 {
		s.imports = s.rounds
	}
	if s.workloads, err = selectDuels(loads); err != nil {
		return s, err
	}
	switch {
	case s.rounds < 1 || s.duration <= 0 || s.connections < 1 || s.nodes < 1 || s.imports < 1 || s.openShare < 0:
		return s, fmt.Errorf("%w: --runs, --imports, --nodes, --duration and --connections must be above zero, --open not below", errUsage)
	case s.target != targetLeader && s.target != targetAll:
		return s, fmt.Errorf("%w: --target %s: leader or all", errUsage, s.target)
	case !slices.Contains(formats, s.format):
		return s, fmt.Errorf("%w: -o %s: there are %s", errUsage, s.format, strings.Join(formats, ", "))
	}
	return s, nil
}

// selectDuels returns the loads that patterns, separated by commas, match, in the
// order of running.
func selectDuels(patterns string) ([]string, error) {
	chosen := map[string]bool{}
	for pattern := range strings.SplitSeq(patterns, ",") {
		found := false
		for _, name := range duelNames() {
			if ok, err := path.Match(pattern, name); err == nil && ok {
				chosen[name], found = true, true
			}
		}
		if !found {
			return nil, fmt.Errorf("%w: no load is called %q; there are %s", errUsage, pattern, strings.Join(duelNames(), ", "))
		}
	}
	return slices.DeleteFunc(duelNames(), func(name string) bool { return !chosen[name] }), nil
}
