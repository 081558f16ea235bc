package sim

import (
	"context"
	"errors"
	"iter"
	"math"
	"math/rand/v2"
	"time"
)

// far is a time that does not come.
const far = time.Duration(math.MaxInt64)

// errEnded is what every sim call answers once the world has ended.
var errEnded = errors.New("sim: the world has ended")

// scheduler owns time. It has events in the order in which they happen, and
// processes, which are coroutines: at any moment one goroutine runs, either the
// scheduler's, in an event, or that of the process which an event resumed.
type scheduler struct {
	now     time.Duration
	events  eventHeap
	seq     uint64
	current *proc // that runs; nil: an event does
	procs   []*proc
	ended   bool
}

// event is something that happens at a time. Those of one time happen in the
// order in which they were made.
type event struct {
	at  time.Duration
	seq uint64
	do  func()
}

// eventHeap has the next event first, and each before its four children.
type eventHeap []event

func (e *event) before(f *event) bool { return e.at < f.at || e.at == f.at && e.seq < f.seq }

func (h *eventHeap) push(e event) {
	a := append(*h, e)
	i := len(a) - 1
	for i > 0 {
		up := (i - 1) / 4
		if !e.before(&a[up]) {
			break
		}
		a[i] = a[up]
		i = up
	}
	a[i] = e
	*h = a
}

func (h *eventHeap) pop() event {
	a := *h
	first, last := a[0], a[len(a)-1]
	a[len(a)-1] = event{}
	a = a[:len(a)-1]
	*h = a
	for i := 0; len(a) > 0; {
		least := 4*i + 1
		if least >= len(a) {
			a[i] = last
			break
		}
		for kid := least + 1; kid < min(4*i+5, len(a)); kid++ {
			if a[kid].before(&a[least]) {
				least = kid
			}
		}
		if !a[least].before(&last) {
			a[i] = last
			break
		}
		a[i] = a[least]
		i = least
	}
	return first
}

// at has do called at a time, or now if that is past.
func (s *scheduler) at(at time.Duration, do func()) {
	s.seq++
	s.events.push(event{max(at, s.now), s.seq, do})
}

// after has do called in so long.
func (s *scheduler) after(d time.Duration, do func()) { s.at(s.now+max(0, d), do) }

// next lets the next event happen, unless it is after until.
func (s *scheduler) next(until time.Duration) bool {
	if len(s.events) == 0 || s.events[0].at > until {
		return false
	}
	e := s.events.pop()
	s.now = e.at
	e.do()
	return true
}

// proc is a process of the simulation.
type proc struct {
	s     *scheduler
	name  string
	next  func() (struct{}, bool)
	stop  func()
	yield func(struct{}) bool

	waiting *wait // what it waits for; nil while it runs
	over    bool  // it has returned
	killed  bool  // it gets errEnded from every call
	// timeout is what Timeout set; limit is when the present call by Conn is given
	// up, 0 while there is none.
	timeout, limit time.Duration
}

// start makes a process that begins in an event of its own.
func (s *scheduler) start(name string, run func()) *proc {
	p := &proc{s: s, name: name}
	p.next, p.stop = iter.Pull(func(yield func(struct{}) bool) {
		p.yield = yield
		run()
	})
	s.procs = append(s.procs, p)
	s.at(s.now, func() {
		if !p.killed {
			s.resume(p)
		}
	})
	return p
}

// resume runs a process until it waits or returns.
func (s *scheduler) resume(p *proc) {
	p.waiting = nil
	s.current = p
	_, more := p.next()
	s.current = nil
	p.over = !more
}

// kill ends a process: what it waits for ends with errEnded, and so does all
// that it asks for then. It must not be the one that runs.
func (s *scheduler) kill(p *proc) {
	if p.over || p.killed {
		return
	}
	p.killed, p.waiting, p.over = true, nil, true
	before := s.current
	s.current = p
	p.stop()
	s.current = before
}

// end ends all processes, those that were started last first.
func (s *scheduler) end() {
	s.ended = true
	for i := len(s.procs) - 1; i >= 0; i-- {
		s.kill(s.procs[i])
	}
	s.procs, s.events = nil, nil
}

// forget drops processes that are over.
func (s *scheduler) forget() {
	n := 0
	for _, p := range s.procs {
		if !p.over {
			s.procs[n] = p
			n++
		}
	}
	clear(s.procs[n:])
	s.procs = s.procs[:n]
}

// wait is what a process waits for: make it, give out wake, then call it.
type wait struct {
	p    *proc
	done bool
}

// wait makes one for the process that runs; there must be one.
func (s *scheduler) wait() *wait { return &wait{p: s.current} }

// wake lets the process go on, in an event of its own. Later ones do nothing.
func (w *wait) wake() {
	if w.done {
		return
	}
	w.done = true
	s := w.p.s
	s.at(s.now, w.resume)
}

func (w *wait) resume() {
	if w.p.waiting == w {
		w.p.s.resume(w.p)
	}
}

// until blocks the process until wake, or until a time.
//
// Errors: context.DeadlineExceeded, and errEnded when the process is to end.
func (w *wait) until(at time.Duration) error {
	p := w.p
	s := p.s
	if p.killed || s.ended {
		return errEnded
	}
	p.waiting = w
	if at < far {
		s.at(at, w.resume)
	}
	if !p.yield(struct{}{}) {
		return errEnded
	}
	if !w.done {
		w.done = true // what comes later is too late
		return context.DeadlineExceeded
	}
	return nil
}

// sleep blocks the process that runs.
func (s *scheduler) sleep(d time.Duration) error {
	err := s.wait().until(s.now + max(0, d))
	if errors.Is(err, context.DeadlineExceeded) {
		return nil
	}
	return err
}

type worldKey struct{}

// worldOf returns the world that a process lives in: its context must be what
// World.Go gave to a process, or come from it.
func worldOf(ctx context.Context) *World { return ctx.Value(worldKey{}).(*World) }

// Go starts a process of the simulation: a coroutine, which runs alone until it
// blocks in a call of this package, or of a node reached by Conn. It must return
// when such a call says that the world has ended.
func (w *World) Go(name string, run func(ctx context.Context)) {
	w.start(name, func() { run(w.ctx) })
}

// Sleep lets virtual time pass. It fails only when the world ends.
func Sleep(ctx context.Context, d time.Duration) error { return worldOf(ctx).sleep(d) }

// Now is the virtual time since the world began.
func Now(ctx context.Context) time.Duration { return worldOf(ctx).now }

// Rand is the world's source of chance. Whoever draws from it must not do so in
// the order of a map.
func Rand(ctx context.Context) *rand.Rand { return worldOf(ctx).rnd }

// Timeout is how long a call of this process through Conn may take from now on,
// in virtual time, until it is answered DeadlineExceeded; 0: the world's own
// patience, which is that of a server without a deadline.
func Timeout(ctx context.Context, d time.Duration) { worldOf(ctx).wait().p.timeout = d }
