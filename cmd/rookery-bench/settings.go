package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/credentials"

	"github.com/rookery-mail/rookery/internal/mtls"
)

// settings are what a run is told.
type settings struct {
	populations []int
	seed        uint64
	workloads   []string
	endpoints   []string
	tls         mtls.Paths
	secured     credentials.TransportCredentials // of the cluster; nil: one that is started here
	rookeryd    string
	rookeryctl  string
	dir         string
	keep        bool
	importBy    string
	rounds      int
	duration    time.Duration
	warmup      time.Duration
	inFlight    int
	connections int
	openShare   float64
	rate        float64
	ceilings    bool
	profiles    string
	profileURL  string
	format      string
	jsonFile    string
	plotFile    string
}

const synopsis = `rookery-bench - load on a Rookery directory, and the ceilings of the machine beside it

Usage:
  rookery-bench [flags]                      run
  rookery-bench compare [flags]              run three nodes, and three of etcd beside them
  rookery-bench mupdate [flags]              run MUPDATE, and the master of Cyrus beside it
  rookery-bench dump --population N          the population as a Cyrus dump, on standard output
  rookery-bench show [-o FORMAT] [--plot FILE.svg] FILE.json
                                             what an earlier run found

Examples:
  rookery-bench --population 100k,1M --json bench.json --plot bench.svg
  rookery-bench --population 1M --workload 'lookup*,list-50' --rounds 5 --duration 5s
  rookery-bench --population 1M --workload assert-64 --cpuprofile-server profiles/
  rookery-bench --endpoints 127.0.0.1:7905 --population 100k --workload import,lookup
  rookery-bench compare --population 1M --dir /srv/x --json compare.json
  rookery-bench compare --population 20k --duration 2s --runs 1
  rookery-bench mupdate --population 100k,1M --dir /srv/x --json mupdate.json

It starts a rookeryd of its own for each population, on free ports of loopback,
fills it, puts the workloads on it one after the other, and between their rounds
the ceilings: a gRPC echo of the same octets in a process of its own, one writer's
fdatasync, a bare bbolt file. With --endpoints it asks a cluster that is running,
which must hold the population already unless "import" is among the workloads.
That writes the invented mailboxes into it, and so do the asserts: never do it to
a cluster that serves anybody.

compare fills a cluster of its own and one of etcd with the same facts, then puts
the same writes on both by turns, each time after all nodes have come to rest.

mupdate fills a node of its own and a MUPDATE master of the Cyrus that is installed,
then has the same client ask and write by turns. It needs root, saslpasswd2, and
Cyrus's packages; the directory must be one that Cyrus's user can reach.

Flags:
`

// parseSettings reads the command line of a run.
func parseSettings(args []string, out io.Writer) (settings, error) {
	s := settings{}
	var populations, workloads, endpoints string
	fs := flag.NewFlagSet("rookery-bench", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.StringVar(&populations, "population", "100k", "how many mailboxes: `sizes`, such as 100k,1M")
	fs.Uint64Var(&s.seed, "seed", 1, "which population of that size, and which calls")
	fs.StringVar(&workloads, "workload", "", "which `workloads`, separated by commas, * standing for any text: "+strings.Join(workloadNames(), ", ")+"; default: all")
	fs.StringVar(&endpoints, "endpoints", "", "`addresses` of a cluster that is running, separated by commas; default: start one")
	s.identityFlags(fs)
	fs.StringVar(&s.rookeryd, "rookeryd", besideMe("rookeryd"), "the `program` to start")
	fs.StringVar(&s.rookeryctl, "rookeryctl", besideMe("rookeryctl"), "the `program` of --import-by rookeryctl")
	fs.StringVar(&s.dir, "dir", "", "where data go: a `directory` on the disk to be measured; default: a new one in the system's place for those")
	fs.BoolVar(&s.keep, "keep", false, "keep the data in --dir, and use those of an earlier run instead of an import")
	fs.StringVar(&s.importBy, "import-by", "client", "what fills the node: client (this program), or rookeryctl with a dump")
	fs.IntVar(&s.rounds, "rounds", 3, "how many rounds each figure is the median of")
	fs.DurationVar(&s.duration, "duration", 2*time.Second, "how long one round of one system is")
	fs.DurationVar(&s.warmup, "warmup", 500*time.Millisecond, "how long each system is loaded before the first round")
	fs.IntVar(&s.inFlight, "in-flight", 0, "calls under way at once; default: as the workload says")
	fs.IntVar(&s.connections, "connections", 4, "how many connections they share")
	fs.Float64Var(&s.openShare, "open", 0.5, "the rate of the open loop, as a share of what the closed loop reached; 0: no open loop")
	fs.Float64Var(&s.rate, "rate", 0, "the rate of the open loop in `calls` a second, instead of --open")
	fs.BoolVar(&s.ceilings, "ceilings", true, "run the ceilings and what else stands beside the workloads")
	fs.StringVar(&s.profiles, "cpuprofile-server", "", "save CPU and allocation profiles of the node under each workload in this `directory`")
	fs.StringVar(&s.profileURL, "debug-endpoint", "", "`address` of the debug listener, with --endpoints")
	fs.StringVar(&s.format, "o", "table", "what is printed: "+strings.Join(formats, ", "))
	fs.StringVar(&s.jsonFile, "json", "", "`file` to save everything in, each round included")
	fs.StringVar(&s.plotFile, "plot", "", "`file` to draw in (SVG)")
	if err := parseFlags(fs, args, out); err != nil {
		return s, err
	}
	if fs.NArg() > 0 {
		return s, fmt.Errorf("%w: %q is no flag; `rookery-bench --help` lists them", errUsage, fs.Arg(0))
	}
	for size := range strings.SplitSeq(populations, ",") {
		n, err := parseSize(size)
		if err != nil {
			return s, err
		}
		s.populations = append(s.populations, n)
	}
	if endpoints != "" {
		s.endpoints = strings.Split(endpoints, ",")
	}
	if workloads == "" {
		if len(s.endpoints) > 0 {
			// An invented mail site must not get into somebody's directory unasked.
			return s, fmt.Errorf("%w: with --endpoints, say by --workload what is to be done to that cluster", errUsage)
		}
		workloads = "*"
	}
	var err error
	if s.workloads, err = selectWorkloads(workloads); err != nil {
		return s, err
	}
	if err := s.check(); err != nil {
		return s, err
	}
	return s, s.loadIdentity()
}

// parseFlags reads args, and prints the help if that is asked for.
func parseFlags(fs *flag.FlagSet, args []string, out io.Writer) error {
	err := fs.Parse(args)
	if errors.Is(err, flag.ErrHelp) {
		fmt.Fprint(out, synopsis)
		fs.SetOutput(out)
		fs.PrintDefaults()
		return err
	}
	if err != nil {
		return fmt.Errorf("%w: %w; `rookery-bench --help` lists the flags", errUsage, err)
	}
	return nil
}

func (s *settings) check() error {
	switch {
	case s.rounds < 1 || s.duration <= 0 || s.connections < 1 || s.inFlight < 0 || s.openShare < 0 || s.rate < 0:
		return fmt.Errorf("%w: --rounds, --duration and --connections must be above zero, --in-flight, --open and --rate not below", errUsage)
	case !slices.Contains(formats, s.format):
		return fmt.Errorf("%w: -o %s: there are %s", errUsage, s.format, strings.Join(formats, ", "))
	case s.importBy != "client" && s.importBy != "rookeryctl":
		return fmt.Errorf("%w: --import-by %s: client or rookeryctl", errUsage, s.importBy)
	case s.keep && s.dir == "":
		return fmt.Errorf("%w: --keep needs --dir", errUsage)
	case len(s.endpoints) > 0 && len(s.populations) > 1:
		return fmt.Errorf("%w: a running cluster holds one population, not %d", errUsage, len(s.populations))
	case len(s.endpoints) > 0 && s.keep:
		return fmt.Errorf("%w: --keep is about a node that is started here", errUsage)
	}
	return nil
}

// asked reports whether that workload is to be run.
func (s *settings) asked(workload string) bool { return slices.Contains(s.workloads, workload) }

// parseSize reads a number of mailboxes: 2000, 100k, 1M.
func parseSize(text string) (int, error) {
	digits, times := text, 1
	switch {
	case strings.HasSuffix(text, "k"):
		digits, times = strings.TrimSuffix(text, "k"), 1_000
	case strings.HasSuffix(text, "M"):
		digits, times = strings.TrimSuffix(text, "M"), 1_000_000
	}
	n, err := strconv.Atoi(digits)
	if err != nil || n < 1 || n > 1_000_000_000/times {
		return 0, fmt.Errorf("%w: %q is no number of mailboxes, such as 100k or 1M", errUsage, text)
	}
	return n * times, nil
}

// formatSize writes what parseSize reads.
func formatSize(n int) string {
	switch {
	case n >= 1_000_000 && n%1_000_000 == 0:
		return strconv.Itoa(n/1_000_000) + "M"
	case n >= 1_000 && n%1_000 == 0:
		return strconv.Itoa(n/1_000) + "k"
	}
	return strconv.Itoa(n)
}

// besideMe is where a program of the same build is.
func besideMe(name string) string {
	self, err := os.Executable()
	if err != nil {
		return name
	}
	return filepath.Join(filepath.Dir(self), name)
}
