package sim

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/rookery-mail/rookery/directory/machine"
	"github.com/rookery-mail/rookery/raftstore"
)

// World is all that one seed makes: machines with their disks and clocks, the
// network between them, what befalls them, and the processes that use them.
// Nothing in it is drawn but from the seed, and no two things happen at once.
//
// crypto/rand must be seeded too, see testing/cryptotest: Raft draws from it.
type World struct {
	scheduler
	seed   uint64
	rnd    *rand.Rand
	ctx    context.Context
	cancel context.CancelFunc
	log    *slog.Logger
	plan   plan

	nodes  []*node
	byID   map[uint64]*node // by the Raft id of the disk that is in it, or was
	net    network
	ledger ledger

	onApply   []func(node int, rev uint64, stamp raftstore.Stamp, command, result []byte)
	onRestore []func(incarnation, lostAfter uint64)

	// What the weather is like.
	until      time.Duration // when the last storm ends
	well       bool          // and all has been well again since
	storms     int           // that are over
	begun      string        // the fault that is being made
	changing   bool          // an operator is at work on the membership
	unsure     bool          // whether the last change of it will be
	remaking   bool          // the cluster is made anew
	old        *oldDisk
	firstWrite time.Duration // after the last storm

	failure string
	digest  uint64
	counts  Counts
}

// NewWorld makes the world of a seed, in which no time has passed. log, which may
// be nil, is told what the nodes say.
func NewWorld(seed uint64, log *slog.Logger) *World {
	w := &World{seed: seed, rnd: rand.New(rand.NewPCG(seed, 1)), log: log, byID: make(map[uint64]*node), digest: seed}
	if log == nil {
		w.log = slog.New(slog.DiscardHandler)
	}
	w.ctx, w.cancel = context.WithCancel(context.WithValue(context.Background(), worldKey{}, w))
	w.now = time.Second
	w.plan = drawPlan(w.rnd)
	w.ledger = newLedger(w)
	w.net = newNetwork(w, w.plan.slots)
	var members []raftstore.Member
	for i := range w.plan.voters {
		members = append(members, raftstore.Member{Name: nodeName(i)})
	}
	for i := range w.plan.slots {
		n := &node{w: w, slot: i, name: nodeName(i), back: far}
		n.clock = clock{s: &w.scheduler, offset: w.some(0, time.Hour)}
		if w.plan.drift > 0 {
			n.clock.drift = w.rnd.Int64N(2*w.plan.drift+1) - w.plan.drift
		}
		w.nodes = append(w.nodes, n)
		if i >= w.plan.voters {
			continue
		}
		meta, err := raftstore.Founding(fmt.Sprint("seed ", seed), members, n.name, 1)
		if err != nil {
			w.Fail("found the cluster: %v", err)
			return w
		}
		n.disk = newDisk(meta, buckets)
		if err := n.start(); err != nil {
			w.Fail("node %s does not start: %v", n.name, err)
		}
	}
	w.start("weather", w.weather)
	if w.plan.members {
		w.start("operator", w.operator)
	}
	return w
}

// What the machine keeps its state in.
var (
	allBuckets = machine.New().Buckets()
	buckets    = len(allBuckets)
)

func nodeName(slot int) string { return fmt.Sprintf("n%d", slot+1) }

// Nodes is how many machines there are. Some may be no members, and down for
// good; their numbers begin with 0.
func (w *World) Nodes() int { return len(w.nodes) }

// Seed is what the world was made of.
func (w *World) Seed() uint64 { return w.seed }

// Unit is what a second is on nodes that tick every 25 ms, which is what all
// patience is counted in: the world may tick more slowly, for it costs less.
func (w *World) Unit() time.Duration { return w.plan.unit }

// OnApply has f called for every command that a node applies, also again after a
// restart. That all nodes apply the same at a revision is checked already.
func (w *World) OnApply(f func(node int, rev uint64, stamp raftstore.Stamp, command, result []byte)) {
	w.onApply = append(w.onApply, f)
}

// OnRestore has f called when the cluster was made anew, from a snapshot or from
// one survivor: it is of this incarnation from now on, and what was acknowledged
// with a revision after lostAfter may be gone.
func (w *World) OnRestore(f func(incarnation, lostAfter uint64)) {
	w.onRestore = append(w.onRestore, f)
}

// Fail says that something is so that must never be. The first one counts, and
// ends the run.
func (w *World) Fail(format string, args ...any) {
	if w.failure == "" {
		w.failure = fmt.Sprintf("at %v: ", w.now) + fmt.Sprintf(format, args...)
		w.log.Error("VIOLATION", "what", w.failure)
	}
}

// Failure is what was said first to Fail; empty if nothing was.
func (w *World) Failure() string { return w.failure }

// Run lets so much time pass, and then what it takes until the last storm is over
// and all is well.
func (w *World) Run(d time.Duration) {
	w.until, w.well = w.now+d, false
	for w.failure == "" && !w.well && w.next(far) {
		if w.counts.Events++; w.counts.Events%4096 == 0 {
			w.forget()
		}
	}
}

// Close ends all processes. The world must not be used any more.
func (w *World) Close() {
	w.end()
	for _, n := range w.nodes {
		if n.life != nil {
			n.life.end(errEnded)
		}
	}
	w.cancel()
}

// Digest is made of all that has happened: that of the same seed is the same.
func (w *World) Digest() uint64 { return w.digest }

// mix makes something a part of the digest.
func (w *World) mix(x uint64) {
	h := (w.digest ^ x ^ uint64(w.now)) * 0x9e3779b97f4a7c15
	w.digest = h ^ h>>29
}

// some draws a duration from low up to high.
func (w *World) some(low, high time.Duration) time.Duration {
	if high <= low {
		return low
	}
	return low + time.Duration(w.rnd.Int64N(int64(high-low)))
}

// wrote is called when a command was acknowledged.
func (w *World) wrote() {
	if w.firstWrite == 0 {
		w.firstWrite = w.now
	}
}
