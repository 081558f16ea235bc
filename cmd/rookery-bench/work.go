package main

import (
	"math/rand/v2"
	"sync/atomic"
)

// work deals out what the workers of all systems do. Reads are drawn: each
// worker has its own chance, so that the same calls are made in the same order
// whenever a run is repeated. What writers state is counted, because it must
// differ from what was stated before.
type work struct {
	pop *population
	// stated counts the UIDVALIDITY values that asserts change facts to. It begins
	// at a value of its own in every process: data may be kept from run to run.
	stated atomic.Uint32
	list   list
}

func newWork(pop *population) *work {
	w := &work{pop: pop}
	w.stated.Store(rand.Uint32N(1 << 30))
	w.list.pop = pop
	return w
}

func (w *work) chance(worker int) *rand.Rand {
	return rand.New(rand.NewPCG(w.pop.seed, uint64(worker)))
}

// changed returns mailbox m's fact with a UIDVALIDITY it never had.
func (w *work) changed(m int) fact {
	f := w.pop.fact(m)
	f.uidValidity = w.stated.Add(1)
	return f
}

// anyMailbox draws one of all mailboxes.
func (w *work) anyMailbox(r *rand.Rand) int { return r.IntN(w.pop.mailboxes) }

// anyWide draws one of the wide users.
func (w *work) anyWide(r *rand.Rand) int { return w.pop.wide(r.IntN(wideUsers)) }
