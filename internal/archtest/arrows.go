package archtest

import (
	"fmt"
	"slices"
	"strings"
)

// modulePath is what the import paths of this module begin with.
const modulePath = "github.com/rookery-mail/rookery"

// A Row says what the packages named by From may import besides the standard
// library and, in tests, besides themselves and the packages below them.
//
// From and May name packages by their path below the module's root. "x/*" means
// every package below x, not x itself. Of several rows that name a package the
// one with the longest From holds.
type Row struct {
	From string
	May  []string
	// Libraries are keys of [libraries].
	Libraries []string
	// Tests and TestLibraries may be imported by the tests of From as well.
	Tests         []string
	TestLibraries []string
	// NoStd are the packages of the standard library that From must not
	// import, in the notation of May.
	NoStd []string
}

// libraries maps the short name by which a row speaks of a dependency to the
// import paths it covers, each with everything below it.
var libraries = map[string][]string{
	"bbolt":        {"go.etcd.io/bbolt"},
	"cobra":        {"github.com/spf13/cobra", "github.com/spf13/pflag"},
	"datadriven":   {"github.com/cockroachdb/datadriven"},
	"porcupine":    {"github.com/anishathalye/porcupine"},
	"etcd-api":     {"go.etcd.io/etcd/api/v3"},
	"etcd-wal":     {"go.etcd.io/etcd/server/v3/storage/wal"},
	"goleak":       {"go.uber.org/goleak"},
	"grpc":         {"google.golang.org/grpc", "google.golang.org/genproto/googleapis/rpc", "google.golang.org/protobuf"},
	"grpc-metrics": {"github.com/grpc-ecosystem/go-grpc-middleware"},
	"hdrhistogram": {"github.com/HdrHistogram/hdrhistogram-go"},
	"plot":         {"gonum.org/v1/plot"},
	"prometheus":   {"github.com/prometheus/client_golang", "github.com/prometheus/client_model"},
	"protobuf":     {"google.golang.org/protobuf"},
	"raft":         {"go.etcd.io/raft/v3"},
	"scram":        {"github.com/xdg-go/scram"},
	"sync":         {"golang.org/x/sync"},
	"term":         {"golang.org/x/term"},
	"testscript":   {"github.com/rogpeppe/go-internal"},
	"zap":          {"go.uber.org/zap"},
	"xxhash":       {"github.com/cespare/xxhash/v2"},
}

// testLibraries may be imported by every test.
var testLibraries = []string{"datadriven", "goleak", "testscript"}

// testPackages are ours that may be imported by every test.
var testPackages = []string{"internal/logbuf"}

// Where a test needs a whole node in its own process, it takes it from here.
var node = []string{"server", "server/servertest"}

// Nothing with I/O, a clock or chance in it: a rule of the directory gives the
// same answer on every node and in every build.
var nondeterministic = []string{
	"crypto/rand", "log", "log/slog", "math/rand", "math/rand/v2", "net", "net/http", "net/rpc", "os", "os/*", "syscall", "unsafe",
}

// House is the table of arrows, from the programs down to the standard library.
var House = []Row{
	// Programs. Mains wire things by hand, so they name what they wire.
	{From: "cmd", Tests: []string{"client", "directory", "adapter/mupdate/mupdateclient"}},
	{
		From: "cmd/rookeryd",
		May: []string{
			"server", "server/statuspage", "raftstore/peer", "raftstore", "raftstore/snap", "directory/machine", "adapter/*", "client",
			"internal/daemon", "internal/obs", "internal/mtls",
		},
		Libraries: []string{"grpc", "prometheus", "sync"},
		Tests:     []string{"directory"},
		// What damages a state file as no program of ours would.
		TestLibraries: []string{"bbolt"},
	},
	{
		From:      "cmd/rookery-gateway",
		May:       []string{"adapter/*", "client", "internal/daemon", "internal/obs", "internal/mtls"},
		Libraries: []string{"prometheus"},
	},
	{
		From:      "cmd/rookery-imapd",
		May:       []string{"frontend", "client", "internal/daemon", "internal/obs", "internal/mtls"},
		Libraries: []string{"prometheus"},
	},
	{
		From: "cmd/rookeryctl",
		// What is done to a stopped node's files - restore, recover - is raftstore's
		// and the rules', without a node to ask.
		May: []string{
			"client", "directory", "adapter/cyrus", "adapter/mupdate", "adapter/mupdate/mirror", "adapter/mupdate/mupdateclient", "internal/obs",
			"internal/mtls", "raftstore", "raftstore/snap", "server", "directory/machine", "internal/kv",
		},
		Libraries: []string{"cobra", "term"},
	},
	{
		From: "cmd/rookery-bench",
		// The generated stubs are what it measures by: a figure of the client
		// library would be of two programs.
		May: []string{"client", "directory", "proto/api/v1", "adapter/mupdate", "adapter/mupdate/mupdateclient", "internal/obs", "internal/mtls"},
		// grpc and bbolt are the ceilings that it measures beside our figures, etcd's
		// API is what it asks etcd by.
		Libraries: []string{"bbolt", "etcd-api", "grpc", "hdrhistogram", "plot"},
		// Its dump must be one that our reader takes; what it puts into etcd must be
		// as large as a row of the machine's.
		Tests: []string{"adapter/cyrus", "directory/machine", "internal/kv"},
	},

	// Edges: plain users of client.
	{From: "adapter/*", May: []string{"client", "directory", "internal/imapwire"}, Libraries: []string{"prometheus"}, Tests: node},
	{
		From:      "adapter/mupdate",
		May:       []string{"adapter/mupdate/mupdatewire", "adapter/mupdate/spool", "client", "directory"},
		Libraries: []string{"prometheus", "scram"},
		Tests:     node,
	},
	{
		From:  "adapter/mupdate/mirror",
		May:   []string{"adapter/mupdate", "adapter/mupdate/mupdateclient", "adapter/mupdate/spool", "client", "directory"},
		Tests: node,
	},
	{From: "adapter/mupdate/spool"},
	{From: "adapter/mupdate/mupdateclient", May: []string{"adapter/mupdate/mupdatewire"}, Libraries: []string{"scram"}},
	{From: "adapter/mupdate/mupdatewire"},
	{From: "frontend", May: []string{"client", "directory", "internal/imapwire"}, Libraries: []string{"prometheus"}, Tests: node},
	{From: "internal/controller", May: []string{"client", "directory"}, Libraries: []string{"prometheus"}, Tests: node},

	// Where domain and replication meet the network.
	{From: "server/statuspage", May: []string{"server"}},
	{From: "server/servertest", May: []string{"server", "raftstore", "raftstore/snap", "raftstore/wal", "directory/machine"}},
	{
		From: "server",
		May: []string{
			"directory/machine", "directory", "raftstore", "raftstore/snap", "proto/api/v1", "internal/kv", "internal/mtls",
		},
		Libraries: []string{"grpc", "grpc-metrics", "prometheus"},
		Tests:     []string{"client", "raftstore/wal"},
		// Three stores in one process, with a network between them.
		TestLibraries: []string{"raft"},
	},
	{
		From:      "client",
		May:       []string{"directory", "proto/api/v1"},
		Libraries: []string{"grpc"},
		// What a snapshot brings back is looked at by its client too.
		Tests: append([]string{"raftstore", "directory/machine"}, node...),
	},

	// Replication, which knows nothing of mail. (Raft's own messages are
	// protobuf, and the library leaves their encoding to its user.)
	{
		From:      "raftstore/peer",
		May:       []string{"raftstore", "proto/peer/v1", "internal/mtls"},
		Libraries: []string{"grpc", "prometheus", "raft"},
		Tests:     []string{"internal/kv", "raftstore/snap"},
	},
	{
		From:      "raftstore",
		May:       []string{"raftstore/wal", "raftstore/snap", "internal/kv"},
		Libraries: []string{"bbolt", "prometheus", "protobuf", "raft", "xxhash"},
		Tests:     []string{"internal/faultfs", "internal/kv/kvtest"},
	},
	{
		// The only door to etcd. Its WAL takes a zap logger.
		From:      "raftstore/wal",
		Libraries: []string{"etcd-wal", "prometheus", "protobuf", "raft", "zap"},
		Tests:     []string{"internal/faultfs"},
	},
	{
		From:      "raftstore/snap",
		Libraries: []string{"bbolt", "prometheus", "protobuf", "raft"},
		Tests:     []string{"internal/faultfs"},
	},

	// The domain, which knows nothing of replication, disks or networks.
	{
		From:      "directory/machine",
		May:       []string{"directory", "internal/kv", "proto/record/v1"},
		Libraries: []string{"protobuf"},
		Tests:     []string{"internal/oracle"},
		NoStd:     nondeterministic,
	},
	{From: "directory", NoStd: nondeterministic},

	// Contracts, by audience.
	{From: "proto/api/v1", Libraries: []string{"grpc"}},
	{From: "proto/record/v1", Libraries: []string{"protobuf"}},
	{From: "proto/peer/v1", Libraries: []string{"grpc"}},

	// Parts with no story of their own. No row lets anything import
	// internal/sim, which may import everything.
	{From: "internal/kv"},
	{From: "internal/logbuf"},
	{From: "internal/netlab"},
	{From: "internal/kv/kvtest", May: []string{"internal/kv"}},
	{From: "internal/imapwire"},
	{From: "internal/faultfs"},
	{From: "internal/archtest"},
	// The rules a second time: it may know the machine's words, and compares what it keeps.
	{From: "internal/oracle", May: []string{"directory", "directory/machine", "internal/kv"}, NoStd: nondeterministic},
	{
		// Whole programs on disks that lose their power, asked by the client.
		From:  "internal/powerloss",
		Tests: []string{"client", "directory"},
		// What damages a page of a state file, or an entry of the log, has to find it.
		TestLibraries: []string{"bbolt", "etcd-wal", "protobuf", "raft", "sync"},
	},
	// Commands drawn by tests, asked for by the library; tests alone import it.
	{From: "internal/calls", May: []string{"client", "directory/machine"}},
	{From: "internal/daemon", May: []string{"internal/obs"}},
	{From: "internal/mtls", Libraries: []string{"grpc", "prometheus"}},
	{From: "internal/obs", Libraries: []string{"prometheus"}},
	{
		From:          "internal/upgrade",
		Tests:         []string{"server", "client", "raftstore", "raftstore/wal", "directory", "directory/machine", "internal/calls", "internal/kv", "internal/oracle"},
		TestLibraries: []string{"raft"},
	},
	{
		From: "internal/sim",
		May: []string{
			"server", "client", "raftstore", "raftstore/*", "directory", "directory/machine", "adapter/*", "frontend",
			"proto/api/v1", "proto/record/v1", "proto/peer/v1", "internal/kv", "internal/kv/kvtest", "internal/faultfs", "internal/oracle",
			"internal/controller", "internal/imapwire",
		},
		Libraries: []string{"grpc", "prometheus", "protobuf", "raft", "xxhash"},
	},
	// Tests alone: it breaks the built programs, and knows what their logs mean.
	{
		From:          "internal/chaos",
		Tests:         []string{"client", "directory", "directory/machine", "internal/calls", "internal/kv", "internal/mtls", "internal/netlab", "internal/oracle", "raftstore", "raftstore/wal"},
		TestLibraries: []string{"porcupine", "raft"},
	},
	// Tests alone: real Cyrus and the built programs.
	{From: "internal/interop", Tests: []string{"adapter/cyrus", "adapter/mupdate/mupdateclient", "client", "directory", "internal/netlab"}},
	// It builds the tree with a bug in it and knows none of it.
	{From: "internal/mutants"},
	{From: "deploy/*"},
}

// Arrows returns one sentence for each import in packages that rows do not
// allow, and one for each package that no row names, in the order of packages.
func Arrows(packages []Package, rows []Row) []string {
	var broken []string
	for _, p := range packages {
		row, ok := rowOf(rows, p.Path)
		if !ok {
			broken = append(broken, fmt.Sprintf(
				"%s stands in no row of internal/archtest/arrows.go: add one that says what it may import", p.Path))
			continue
		}
		for _, f := range p.Files {
			for _, imported := range f.imports() {
				if msg := row.judge(p, f, imported); msg != "" && !slices.Contains(broken, msg) {
					broken = append(broken, msg)
				}
			}
		}
	}
	return broken
}

// judge returns what is wrong with p importing imported in f, or "".
func (r Row) judge(p Package, f File, imported string) string {
	if own, ok := strings.CutPrefix(imported, modulePath+"/"); ok {
		switch {
		case covers(r.May, own):
			return ""
		case f.Test && (covers(r.Tests, own) || covers(testPackages, own) || own == p.Path || strings.HasPrefix(own, p.Path+"/")):
			return ""
		case f.Test:
			return fmt.Sprintf("%s -> %s: not allowed, even in %s; %s", p.Path, own, f.Name, r.allowance(p.Path))
		}
		return fmt.Sprintf("%s -> %s: not allowed; %s", p.Path, own, r.allowance(p.Path))
	}
	if first, _, _ := strings.Cut(imported, "/"); !strings.Contains(first, ".") {
		if !f.Test && covers(r.NoStd, imported) {
			return fmt.Sprintf("%s -> %s: not allowed; %s does no I/O and has no clock and no chance", p.Path, imported, p.Path)
		}
		return ""
	}
	if ofLibrary(r.Libraries, imported) ||
		f.Test && (ofLibrary(testLibraries, imported) || ofLibrary(r.TestLibraries, imported)) {
		return ""
	}
	return fmt.Sprintf("%s -> %s: not allowed; %s", p.Path, imported, r.allowance(p.Path))
}

// allowance says in words what the package at path may import by r.
func (r Row) allowance(path string) string {
	if len(r.May) == 0 && len(r.Libraries) == 0 {
		return path + " may import the standard library only"
	}
	s := path + " may import " + strings.Join(r.May, ", ")
	if len(r.May) == 0 {
		s = path + " may import nothing of this module"
	}
	if len(r.Libraries) > 0 {
		s += " (" + strings.Join(r.Libraries, ", ") + ")"
	}
	return s
}

// rowOf returns the row with the longest From that names path.
func rowOf(rows []Row, path string) (Row, bool) {
	var best Row
	for _, r := range rows {
		if covers([]string{r.From}, path) && len(r.From) > len(best.From) {
			best = r
		}
	}
	return best, best.From != ""
}

// covers reports whether one of patterns names path: itself, or "x/*" with x
// above path.
func covers(patterns []string, path string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool {
		if above, ok := strings.CutSuffix(pattern, "*"); ok {
			return strings.HasPrefix(path, above)
		}
		return path == pattern
	})
}

// ofLibrary reports whether imported belongs to one of the named libraries.
func ofLibrary(names []string, imported string) bool {
	return slices.ContainsFunc(names, func(name string) bool {
		return slices.ContainsFunc(libraries[name], func(root string) bool {
			return imported == root || strings.HasPrefix(imported, root+"/")
		})
	})
}
