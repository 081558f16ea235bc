package main

import (
	"fmt"
	"path"
	"slices"
	"strings"

	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
)

// An operation is the kind of call a workload consists of.
type operation uint8

const (
	opLookup      operation = iota // one mailbox drawn from all
	opLookupMany                   // several mailboxes drawn from all
	opList                         // everything that a wide user sees
	opAssert                       // one fact, drawn from all, changed
	opBatch                        // the next facts of a server's list, each changed
	opBatchRandom                  // as many facts drawn from all, each changed; of etcd alone
)

// A workload is a load that is put on a system, and what its rate is held
// against.
type workload struct {
	name        string
	op          operation
	consistency apiv1.ConsistencyMode // of reads
	keys        int                   // mailboxes a call
	workers     int                   // calls in flight
	beside      []beside
}

// beside is what runs by turns with a workload, so that whatever else the
// machine does hits both.
type beside struct {
	system   string // one of the names below; "" is the system measured itself
	workload string // another workload than the one measured; "" is the same
	workers  int    // 0: as many as the workload
	// atLeast is the ratio of keys a second to this one's that is wanted; 0: none,
	// the figure is only printed.
	atLeast float64
}

func (b beside) name() string {
	switch {
	case b.system == "":
		return b.workload
	case b.workload == "":
		return b.system
	}
	return b.system + " " + b.workload
}

// The systems. rookery is asked through the stubs generated from its API, as the
// echo is: what a client library adds is a figure of its own.
const (
	systemRookery = "rookery"
	systemEcho    = "echo"
	systemOctets  = "echo of octets"
	systemClient  = "client"
	systemBbolt   = "bbolt"
	systemFsync   = "fsync"
)

const (
	atLeast      = apiv1.ConsistencyMode_CONSISTENCY_MODE_AT_LEAST
	linearizable = apiv1.ConsistencyMode_CONSISTENCY_MODE_LINEARIZABLE
	stale        = apiv1.ConsistencyMode_CONSISTENCY_MODE_STALE
)

// workloads are the loads in the order they are run: reads first, while nothing
// but the import has touched the state.
var workloads = []workload{
	{
		name: "lookup", op: opLookup, consistency: atLeast, keys: 1, workers: 64,
		beside: []beside{{system: systemEcho, atLeast: 0.9}, {system: systemOctets}, {system: systemClient}, {system: systemBbolt, workers: 1}},
	},
	{
		name: "lookup-linearizable", op: opLookup, consistency: linearizable, keys: 1, workers: 64,
		beside: []beside{{system: systemEcho, atLeast: 0.8}},
	},
	{
		name: "lookup-stale", op: opLookup, consistency: stale, keys: 1, workers: 64,
		beside: []beside{{system: systemEcho}},
	},
	{
		name: "lookup-many", op: opLookupMany, consistency: atLeast, keys: 32, workers: 64,
		beside: []beside{{workload: "lookup", atLeast: 8}, {system: systemEcho}},
	},
	{
		name: "list-50", op: opList, consistency: atLeast, keys: 1, workers: 64,
		beside: []beside{{system: systemEcho, atLeast: 0.7}, {system: systemOctets}, {system: systemClient}, {system: systemBbolt, workers: 1}},
	},
	{
		name: "assert-64", op: opAssert, keys: 1, workers: 64,
		beside: []beside{{system: systemEcho}, {system: systemClient}, {system: systemFsync, workers: 1}},
	},
	{
		name: "assert-256", op: opAssert, keys: 1, workers: 256,
		beside: []beside{{system: systemEcho}},
	},
	{
		name: "batch-assert", op: opBatch, keys: 100, workers: 16,
		beside: []beside{{system: systemEcho}, {system: systemClient}, {system: systemFsync, workers: 1}},
	},
}

// The workloads that are not a load of calls.
const (
	workloadImport = "import"
	workloadStart  = "start"
	workloadMemory = "memory"
)

// workloadNames returns every name that can be asked for, in the order of
// running.
func workloadNames() []string {
	names := []string{workloadImport}
	for _, w := range workloads {
		names = append(names, w.name)
	}
	return append(names, workloadMemory, workloadStart)
}

// selectWorkloads returns the names that patterns, separated by commas, match: a
// name, or one with * in it.
func selectWorkloads(patterns string) ([]string, error) {
	all := workloadNames()
	var chosen []string
	for pattern := range strings.SplitSeq(patterns, ",") {
		found := false
		for _, name := range all {
			if ok, err := path.Match(pattern, name); err == nil && ok {
				chosen, found = append(chosen, name), true
			}
		}
		if !found {
			return nil, fmt.Errorf("%w: no workload is called %q; there are %s", errUsage, pattern, strings.Join(all, ", "))
		}
	}
	// In the order of running, each once.
	return slices.DeleteFunc(all, func(name string) bool { return !slices.Contains(chosen, name) }), nil
}

// workloadNamed returns the workload of that name, which must exist.
func workloadNamed(name string) workload {
	return workloads[slices.IndexFunc(workloads, func(w workload) bool { return w.name == name })]
}
