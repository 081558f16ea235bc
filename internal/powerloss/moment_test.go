//go:build peers

package powerloss

import (
	"math/rand/v2"
	"syscall"
	"time"
)

// moment is when power is to be cut, and what happens until then.
type moment struct {
	name string
	// rules are for the volume of the node in question, which is drawn; their
	// Cut is filled in. nil: after a time that is drawn.
	rules func(*rand.Rand) []rule
	// begin, if not nil, starts what the moment is in the midst of.
	begin func(*world, *node) error
	// nodes is how many the world must have; 0: any number.
	nodes int
	// damaged: the node whose disk it was finds damage, and may say so.
	damaged bool
}

// at returns one rule: before or after the N-th call of a kind, N up to most.
func at(op, path string, most int) func(*rand.Rand) []rule {
	return func(rng *rand.Rand) []rule {
		return []rule{{Op: op, Path: path, N: 1 + rng.IntN(most), After: rng.IntN(2) == 0}}
	}
}

// oneOf returns the rules of one of several.
func oneOf(list ...func(*rand.Rand) []rule) func(*rand.Rand) []rule {
	return func(rng *rand.Rand) []rule { return list[rng.IntN(len(list))](rng) }
}

// failing returns a disk that refuses calls, or is slow, and is cut some calls
// later.
func failing(errno syscall.Errno, delay time.Duration, ops ...string) func(*rand.Rand) []rule {
	return func(rng *rand.Rand) []rule {
		r := rule{Op: ops[rng.IntN(len(ops))], N: 1 + rng.IntN(100), Times: rng.IntN(4), Errno: errno}
		if delay > 0 {
			r.Delay, r.Times = int64(10*time.Millisecond)+rng.Int64N(int64(delay)), 1+rng.IntN(3)
		}
		// Calls are fewer once some have failed: if this one does not come, time
		// makes an end.
		return []rule{r, {Op: "change", N: r.N + 1 + rng.IntN(30), After: rng.IntN(2) == 0}}
	}
}

// moments are drawn from, each as often as it stands here.
var moments = []moment{
	{name: "any time"},
	{name: "any time"},
	{name: "any call", rules: at("change", "", 400)},
	{name: "any call", rules: at("change", "", 400)},
	{name: "append", rules: oneOf(at("write", "*.wal", 100), at("sync", "*.wal", 100))},
	{name: "append", rules: oneOf(at("write", "*.wal", 100), at("sync", "*.wal", 100))},
	{name: "promise", rules: oneOf(at("write", "promise", 100), at("sync", "promise", 2))},
	{name: "flush", rules: oneOf(at("write", "state.db", 30), at("sync", "state.db", 3), at("change", "state.db", 40))},
	{name: "flush", rules: oneOf(at("write", "state.db", 30), at("sync", "state.db", 3), at("change", "state.db", 40))},
	{name: "flush", rules: oneOf(at("write", "state.db", 8), at("sync", "state.db", 1))},
	{name: "segment roll", rules: oneOf(at("rename", "*.tmp", 3), at("create", "*.tmp", 2), at("resize", "*.tmp", 3), at("change", "*.tmp", 8), at("syncdir", "wal", 3))},
	{name: "segment roll", rules: oneOf(at("rename", "*.tmp", 2), at("syncdir", "wal", 2), at("write", "*.tmp", 3), at("sync", "*.tmp", 3))},
	{name: "release", rules: at("unlink", "*.wal", 3)},
	{name: "compaction", rules: compacting, begin: compact},
	{name: "compaction", rules: compacting, begin: compact},
	{name: "end of the process", rules: oneOf(at("change", "", 25), at("sync", "state.db", 2), at("sync", "*.wal", 2)), begin: terminate},
	{name: "failed sync", rules: failing(syscall.EIO, 0, "sync", "syncdir")},
	{name: "failed write", rules: failing(syscall.EIO, 0, "write", "rename", "create")},
	{name: "full disk", rules: failing(syscall.ENOSPC, 0, "write", "resize", "create")},
	{name: "failed read", rules: failing(syscall.EIO, 0, "read")},
	{name: "slow sync", rules: failing(0, 300*time.Millisecond, "sync")},
	{name: "installation", rules: installing, begin: lag, nodes: 3},
	{name: "installation", rules: installing, begin: lag, nodes: 3},
	{name: "re-seed", rules: installing, begin: lag, nodes: 3, damaged: true},
}

var compacting = oneOf(
	at("change", "state.db.compact", 10), at("sync", "state.db.compact", 3), at("create", "state.db.compact", 1),
	at("rename", "state.db.compact", 1), at("rename", "state.db.compact", 1), at("syncdir", "shard-1", 1))

var installing = oneOf(
	at("change", "state.db.staged", 12), at("rename", "state.db.staged", 1), at("sync", "state.db.staged", 4),
	at("syncdir", "shard-1", 3), at("sync", "promise", 3), at("sync", "*.wal", 4), at("unlink", "*", 4), at("change", "", 120))
