//go:build peers

package interop

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"time"
)

// killer ends the leader at one command on the wire, drawn from the seed: before the
// command reaches a node, or while it is answered. The process is back a moment later.
// A nil killer kills nobody.
type killer struct {
	lab  *lab
	rng  *rand.Rand
	at   int // the command of this script, from 1
	back time.Duration

	mu     sync.Mutex
	base   int
	leader *node
	done   time.Time // when it killed; zero: not yet
	what   string    // the command it killed at
	off    bool
	work   sync.WaitGroup
	err    error
}

// newKiller is one for a script that puts commands on the wire.
func newKiller(l *lab, rng *rand.Rand, commands int) *killer {
	k := &killer{lab: l, rng: rng, at: 1 + rng.IntN(max(1, commands))}
	k.back = time.Duration(300+rng.IntN(2000)) * time.Millisecond
	if len(l.cluster.nodes) == 1 {
		k.back = 300 * time.Millisecond
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	k.base, l.killer = l.commands, k
	return k
}

// aim finds out who leads now.
func (k *killer) aim() {
	k.mu.Lock()
	done := !k.done.IsZero() || k.off
	k.mu.Unlock()
	if done {
		return
	}
	leader := k.lab.cluster.leader()
	k.mu.Lock()
	defer k.mu.Unlock()
	if leader != nil {
		k.leader = leader
	}
}

// command is told of a command, before a node is.
func (k *killer) command(n int, word string) {
	k.mu.Lock()
	if n-k.base < k.at || !k.done.IsZero() || k.off || k.leader == nil {
		k.mu.Unlock()
		return
	}
	leader := k.leader
	k.done = time.Now()
	k.what = word
	wait := time.Duration(0)
	if k.rng.IntN(2) == 0 {
		wait = time.Duration(k.rng.IntN(4000)) * time.Microsecond
	}
	k.work.Add(1) // before anybody can see that it killed, and wait for the end of it
	k.mu.Unlock()
	if wait == 0 {
		leader.kill()
	}
	go func() {
		defer k.work.Done()
		if wait > 0 {
			time.Sleep(wait)
			leader.kill()
		}
		time.Sleep(k.back)
		err := k.lab.cluster.start(leader)
		if err == nil {
			err = leader.open()
		}
		if err != nil {
			k.mu.Lock()
			k.err = fmt.Errorf("start %s again: %w", leader.name, err)
			k.mu.Unlock()
		}
	}()
}

// excuses reports whether what began then may have been refused for what was done.
func (k *killer) excuses(begun time.Time) bool {
	if k == nil {
		return false
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return !k.done.IsZero() && k.done.After(begun.Add(-settled))
}

// within reports whether it killed since then.
func (k *killer) within(begun time.Time) bool {
	if k == nil {
		return false
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.done.After(begun)
}

func (k *killer) killed() bool {
	if k == nil {
		return false
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return !k.done.IsZero()
}

// rest has it kill nobody any more, and waits until whom it killed is back.
func (k *killer) rest() {
	if k == nil {
		return
	}
	k.mu.Lock()
	k.off = true
	k.mu.Unlock()
	k.work.Wait()
	if k.err != nil {
		k.lab.fail("%v", k.err)
	}
}

// resume has it go on after a rest.
func (k *killer) resume() {
	if k == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.off = false
}

// end is how it went: the command that it killed at, empty if it did not come so far.
func (k *killer) end() string {
	k.rest()
	k.lab.mu.Lock()
	k.lab.killer = nil
	k.lab.mu.Unlock()
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.what
}
