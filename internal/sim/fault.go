package sim

import (
	"math/rand/v2"
	"time"
)

// plan is what a seed has drawn for itself.
type plan struct {
	slots, voters int
	tick, unit    time.Duration
	step          time.Duration // the most that a goroutine waits to be run
	latency       time.Duration // of the network, about
	sync          time.Duration // of a disk, about
	drift         int64         // of the clocks, of a thousand

	flushKeys, logEntries int
	markBytes             int64
	badSnapshots          float64
}

func drawPlan(r *rand.Rand) plan {
	p := plan{
		voters: 3, slots: 3, tick: 100 * time.Millisecond, step: 50 * time.Microsecond,
		latency: time.Millisecond, sync: 2 * time.Millisecond,
		flushKeys: 200, logEntries: 50, markBytes: 10_000,
	}
	if r.IntN(4) == 0 {
		p.voters, p.slots = 5, 5
	}
	p.unit = 40 * p.tick
	return p
}
