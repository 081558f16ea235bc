package main

import (
	"errors"
	"flag"
	"io"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestSettings(t *testing.T) {
	s, err := parseSettings([]string{"--population", "100k,1M,2000", "--workload", "assert-*,import", "--endpoints", "", "--rounds", "5"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if want := []int{100_000, 1_000_000, 2_000}; !reflect.DeepEqual(s.populations, want) {
		t.Errorf("populations %v, want %v", s.populations, want)
	}
	if want := []string{"import", "assert-64", "assert-256"}; !reflect.DeepEqual(s.workloads, want) {
		t.Errorf("workloads %v, want %v: each once, in the order of running", s.workloads, want)
	}
	if s.rounds != 5 || s.duration != 2*time.Second || len(s.endpoints) != 0 {
		t.Errorf("rounds %d, duration %v, endpoints %q", s.rounds, s.duration, s.endpoints)
	}
	if s, err = parseSettings(nil, io.Discard); err != nil || !reflect.DeepEqual(s.workloads, workloadNames()) {
		t.Errorf("without flags: workloads %v, error %v", s.workloads, err)
	}
}

func TestSettingsRefused(t *testing.T) {
	for _, args := range []string{
		"--population 1.5M", "--population 0", "--population 100k,,", "--population 9999999M", "--population -5k",
		"--workload lookups", "--workload lookup,", "--endpoints a:1", "--rounds 0", "--duration 0s", "-o xml", "--import-by magic", "--keep",
		"--endpoints a:1 --workload lookup --population 100k,1M", "--endpoints a:1 --workload lookup --dir d --keep", "extra", "--no-such-flag",
		"--endpoints a:1 --workload lookup --tls-cert x", "--endpoints a:1 --workload lookup --tls-cert x --tls-key x --tls-ca x", "--open -1",
	} {
		if _, err := parseSettings(strings.Split(args, " "), io.Discard); !errors.Is(err, errUsage) {
			t.Errorf("%s: error %v, want a usage error", args, err)
		}
	}
	var help strings.Builder
	if _, err := parseSettings([]string{"--help"}, &help); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("--help: error %v", err)
	}
	for _, want := range []string{"Examples:", "-population", "lookup-linearizable"} {
		if !strings.Contains(help.String(), want) {
			t.Errorf("the help does not speak of %q", want)
		}
	}
}

func TestSizes(t *testing.T) {
	for text, n := range map[string]int{"2000": 2_000, "100k": 100_000, "1M": 1_000_000, "10M": 10_000_000, "1500k": 1_500_000} {
		if got, err := parseSize(text); got != n || err != nil {
			t.Errorf("%s is %d, error %v; want %d", text, got, err, n)
		}
		if again, err := parseSize(formatSize(n)); again != n || err != nil {
			t.Errorf("%d is written %s, which is read as %d, error %v", n, formatSize(n), again, err)
		}
	}
}

// A workload that names another, or a system, must name one that there is.
func TestWorkloadTable(t *testing.T) {
	names := workloadNames()
	for _, w := range workloads {
		if w.workers < 1 || w.keys < 1 {
			t.Errorf("%s: %d workers, %d keys", w.name, w.workers, w.keys)
		}
		for _, b := range w.beside {
			if b.system == "" && b.workload == "" || b.workload != "" && !slices.Contains(names, b.workload) {
				t.Errorf("%s: %q %q stands beside it", w.name, b.system, b.workload)
			}
		}
	}
}
