package main

// A duel is a load on Rookery and what is held against it, each by turns, on as
// many nodes, on the same disk.
type duel struct {
	workload string // of workloads
	rivals   []rival
}

// A rival is what runs by turns with Rookery in a duel.
type rival struct {
	system  string
	name    string    // as printed; "" is the system's
	op      operation // of etcd
	workers int       // 0: as many as the workload
	// atLeast is the ratio of keys a second to this one's that is wanted at up to a
	// million mailboxes, atMore above; 0: none, the figure is only printed.
	atLeast, atMore float64
}

func (r rival) title() string {
	if r.name != "" {
		return r.name
	}
	return r.system
}

// wanted is the ratio that is wanted at that many mailboxes.
func (r rival) wanted(mailboxes int) float64 {
	if mailboxes > 1_000_000 {
		return r.atMore
	}
	return r.atLeast
}

// systemEtcd is the etcd of a comparison.
const systemEtcd = "etcd"

// duels are the loads of a comparison in the order they are run.
var duels = []duel{
	{workload: "assert-64", rivals: []rival{
		{system: systemEtcd, name: "etcd put", op: opAssert, atLeast: 1.3, atMore: 1},
		{system: systemEcho},
		{system: systemFsync, workers: 1},
	}},
	{workload: "assert-256", rivals: []rival{
		{system: systemEtcd, name: "etcd put", op: opAssert, atLeast: 1.3, atMore: 1},
		{system: systemEcho},
	}},
	{workload: "batch-assert", rivals: []rival{
		{system: systemEtcd, name: "etcd txn in order", op: opBatch, atLeast: 1.3, atMore: 1.3},
		{system: systemEtcd, name: "etcd txn at random", op: opBatchRandom, atLeast: 2, atMore: 2},
		{system: systemEcho},
		{system: systemFsync, workers: 1},
	}},
}

// duelNames returns the loads that can be asked for.
func duelNames() []string {
	var names []string
	for _, d := range duels {
		names = append(names, d.workload)
	}
	return names
}
