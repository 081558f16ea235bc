package sim

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"syscall"
	"time"

	"github.com/rookery-mail/rookery/raftstore"
)

// plan is what a seed has drawn for itself: how large and fast the cluster is,
// and which faults befall it, how hard and how often. Each seed has its own
// mixture: where everything happens at once, some things never do.
type plan struct {
	voters, slots int
	tick, unit    time.Duration
	step          time.Duration // the most that a goroutine waits to be run
	latency       time.Duration // of the network, about
	sync          time.Duration // of a disk, about
	drift         int64         // of the clocks, of a thousand

	flushKeys, logEntries int
	markBytes             int64
	badSnapshots          float64
	transfer              time.Duration // of a snapshot, at most, on a link that is not slow

	faults   []fault       // that this seed knows
	every    time.Duration // between two of them in a storm, about
	members  bool          // the membership changes
	remake   remake        // the cluster is made anew
	remakeAt time.Duration
}

// remake is how a cluster is made anew, if it is.
type remake int

const (
	never     remake = iota
	recovered        // of one survivor
	restored         // from a snapshot
)

func drawPlan(r *rand.Rand) plan {
	one := func(of ...time.Duration) time.Duration { return of[r.IntN(len(of))] }
	const ms = time.Millisecond
	p := plan{voters: 3, tick: 100 * ms}
	switch r.IntN(20) {
	case 0:
		p.tick = 25 * ms
	case 1, 2:
		p.tick = 50 * ms
	}
	p.unit = 40 * p.tick
	p.step = one(10*time.Microsecond, 50*time.Microsecond, ms)
	p.latency = one(ms/4, 2*ms, p.tick/10)
	p.sync = one(ms/5, 2*ms, p.tick/10)
	if r.IntN(2) == 0 {
		p.drift = 50
	}
	if r.IntN(4) == 0 {
		p.voters = 5
	}
	p.slots = p.voters
	if r.IntN(3) == 0 {
		p.members = true
		p.slots += 1 + r.IntN(2)
	}
	p.flushKeys = []int{20, 100, 400}[r.IntN(3)]
	p.logEntries = []int{10, 50, 200}[r.IntN(3)]
	p.transfer = one(p.unit/4, p.unit, 4*p.unit)
	p.markBytes = []int64{2000, 10_000, 50_000}[r.IntN(3)]
	if r.IntN(2) == 0 {
		p.badSnapshots = 0.3
	}
	for _, f := range faults {
		if r.IntN(2) == 0 {
			for range 1 + r.IntN(3) {
				p.faults = append(p.faults, f)
			}
		}
	}
	p.every = p.unit / 4 << r.IntN(5)
	if p.faults == nil {
		p.faults = faults[:1]
	}
	switch r.IntN(12) {
	case 0:
		p.remake = recovered
	case 1:
		p.remake = restored
	}
	p.remakeAt = time.Duration(20+r.IntN(150)) * p.unit
	return p
}

// fault is a kind of it. do begins one, and sees to its end; what is not over
// when the storm is, calm ends.
type fault struct {
	name string
	do   func(w *World)
}

var faults = []fault{
	{"partition", (*World).partition},
	{"node cut off", func(w *World) { w.isolate(w.anyone()) }},
	{"leader cut off", func(w *World) { w.isolate(w.leader()) }},
	{"one-way cut", (*World).oneWay},
	{"ring", (*World).ring},
	{"clients cut off", (*World).cutClients},
	{"flapping", (*World).flap},
	{"delay", (*World).delay},
	{"loss", (*World).lose},
	{"doubles and disorder", (*World).disorder},
	{"slow link", (*World).slowLink},
	{"slow disk", (*World).slowDisk},
	{"hung disk", (*World).hangDisk},
	{"write error", (*World).writeError},
	{"disk full", (*World).fillDisk},
	{"power loss", (*World).cutPower},
	{"site power loss", (*World).cutAllPower},
	{"kill", (*World).killOne},
	{"kill the leader", (*World).killLeader},
	{"stop in order", (*World).stopOne},
	{"long absence", (*World).absence},
	{"pause", (*World).pauseOne},
	{"wall clock jump", (*World).jump},
	{"leadership moved", (*World).transfer},
	{"false alarm", (*World).falseAlarm},
	{"state exchanged", (*World).swap},
	{"damage", (*World).damage},
	{"old copy", (*World).oldCopy},
}

// weather lets storms and calm follow each other.
func (w *World) weather() {
	for w.now < w.until {
		if !w.storm(min(w.until, w.now+w.some(4*w.plan.unit, 30*w.plan.unit))) || !w.calm() {
			return
		}
	}
	w.well = true
}

// storm lets faults come until a time.
func (w *World) storm(end time.Duration) bool {
	for w.now < end {
		if w.sleep(w.some(0, 2*w.plan.every)) != nil {
			return false
		}
		if !w.quiet() {
			f := w.plan.faults[w.rnd.IntN(len(w.plan.faults))]
			w.begun = f.name
			f.do(w)
		}
		if w.plan.remake != never && w.now >= w.plan.remakeAt && !w.remakeCluster() {
			return false
		}
	}
	return true
}

// hit counts a fault that has in fact come about.
func (w *World) hit(format string, args ...any) {
	w.counts.Fault(w.begun, 1)
	w.mix(uint64(len(w.begun)))
	w.log.Debug("fault", "kind", w.begun, "what", fmt.Sprintf(format, args...))
}

// while undoes something after a while, unless the storm is over before.
func (w *World) while(undo func()) {
	storm := w.storms
	w.after(w.some(w.plan.tick, 8*w.plan.unit), func() {
		if storm == w.storms {
			undo()
		}
	})
}

// anyone returns a node, which may be down; leader one that leads, or anyone.
func (w *World) anyone() *node { return w.nodes[w.rnd.IntN(len(w.nodes))] }

func (w *World) leader() *node {
	for _, n := range w.nodes {
		if n.life != nil && n.life.status.Leading {
			return n
		}
	}
	return w.anyone()
}

// mostly the leader, sometimes anyone.
func (w *World) someone() *node {
	if w.rnd.IntN(2) == 0 {
		return w.leader()
	}
	return w.anyone()
}

func (w *World) setCut(from, to int, cut bool) {
	if from != to {
		w.net.links[from][to].cut = cut
	}
}

func (w *World) partition() {
	var side []bool
	for range w.nodes {
		side = append(side, w.rnd.IntN(2) == 0)
	}
	set := func(cut bool) {
		for i := range side {
			for j := range side {
				if side[i] != side[j] {
					w.setCut(i, j, cut)
				}
			}
		}
	}
	set(true)
	w.hit("%v", side)
	w.while(func() { set(false) })
}

func (w *World) isolate(n *node) {
	w.net.each(n.slot, func(k *link) { k.cut = true })
	both := w.rnd.IntN(2) == 0
	w.net.cut[n.slot] = both // or clients still reach it
	w.hit("%s, clients too: %v", n.name, both)
	w.while(func() {
		w.net.each(n.slot, func(k *link) { k.cut = false })
		w.net.cut[n.slot] = false
	})
}

// oneWay cuts one direction of one link, or of all of one node's.
func (w *World) oneWay() {
	n, to, out := w.someone(), w.anyone(), w.rnd.IntN(2) == 0
	all := w.rnd.IntN(2) == 0
	set := func(cut bool) {
		for _, o := range w.nodes {
			switch {
			case !all && o != to:
			case out:
				w.setCut(n.slot, o.slot, cut)
			default:
				w.setCut(o.slot, n.slot, cut)
			}
		}
	}
	set(true)
	w.hit("%s, out: %v, all: %v, %s", n.name, out, all, to.name)
	w.while(func() { set(false) })
}

// ring leaves each node its two neighbours; of three, a chain.
func (w *World) ring() {
	order := w.rnd.Perm(len(w.nodes))
	open := len(order) == 3
	set := func(cut bool) {
		for i, a := range order {
			for j, b := range order {
				d := (i - j + len(order)) % len(order)
				if d > 1 && d < len(order)-1 || open && i+j == 2 && i != j {
					w.setCut(a, b, cut)
				}
			}
		}
	}
	set(true)
	w.hit("%v", order)
	w.while(func() { set(false) })
}

func (w *World) cutClients() {
	n := w.someone()
	w.net.cut[n.slot] = true
	w.hit("%s", n.name)
	w.while(func() { w.net.cut[n.slot] = false })
}

func (w *World) flap() {
	n, storm := w.someone(), w.storms
	end := w.now + w.some(w.plan.unit, 8*w.plan.unit)
	cut := false
	var turn func()
	turn = func() {
		if storm != w.storms {
			return
		}
		cut = !cut && w.now < end
		w.net.each(n.slot, func(k *link) { k.cut = cut })
		if w.now < end {
			w.after(w.some(w.plan.tick, 20*w.plan.tick), turn)
		}
	}
	w.hit("%s", n.name)
	turn()
}

// links changes all links, or those of one node, for a while.
func (w *World) links(set func(*link), unset func(*link)) {
	n := w.someone()
	every := func(do func(*link)) { w.net.each(n.slot, do) }
	if w.rnd.IntN(2) == 0 {
		every = func(do func(*link)) {
			for i := range w.net.links {
				for j := range w.net.links[i] {
					do(&w.net.links[i][j])
				}
			}
		}
	}
	every(set)
	w.hit("%s", n.name)
	w.while(func() { every(unset) })
}

func (w *World) delay() {
	d := w.some(w.plan.tick/25, 20*w.plan.tick)
	w.links(func(k *link) { k.delay = d }, func(k *link) { k.delay = 0 })
}

func (w *World) lose() {
	p := 0.01 + 0.29*w.rnd.Float64()
	w.links(func(k *link) { k.loss = p }, func(k *link) { k.loss = 0 })
}

func (w *World) disorder() {
	p, q := w.rnd.Float64()/4, w.rnd.Float64()/2
	w.links(func(k *link) { k.double, k.reorder = p, q }, func(k *link) { k.double, k.reorder = 0, 0 })
}

func (w *World) slowLink() {
	rate := int64(1000) << w.rnd.IntN(8)
	w.links(func(k *link) { k.rate = rate }, func(k *link) { k.rate = 0 })
}

func (w *World) slowDisk() {
	n := w.someone()
	if n.disk == nil {
		return
	}
	d := n.disk
	d.slow = w.some(10*time.Millisecond, time.Second)
	w.hit("%s by %v", n.name, d.slow)
	w.while(func() { d.slow = 0 })
}

func (w *World) hangDisk() {
	n := w.someone()
	if n.disk == nil {
		return
	}
	n.disk.hung = w.now + w.some(100*time.Millisecond, 30*time.Second)
	w.hit("%s until %v", n.name, n.disk.hung)
}

func (w *World) writeError() {
	n := w.someone()
	if n.disk == nil {
		return
	}
	n.disk.fails = syscall.EIO
	w.hit("%s", n.name)
}

// fillDisk lets a disk run full: first it says so, which is time for an alarm.
func (w *World) fillDisk() {
	n := w.someone()
	if n.disk == nil {
		return
	}
	d := n.disk
	d.low = true
	w.hit("%s", n.name)
	if w.rnd.IntN(2) == 0 {
		storm := w.storms
		w.after(w.some(w.plan.unit, 6*w.plan.unit), func() {
			if storm == w.storms && d.low {
				d.full = true
			}
		})
	}
	w.while(func() { d.low, d.full = false, false })
}

// down draws how long a node stays away.
func (n *node) down(long bool) {
	d := n.w.some(0, 2*n.w.plan.unit)
	if long {
		d = n.w.some(2*n.w.plan.unit, 20*n.w.plan.unit)
	}
	n.startAt(n.w.now + d)
}

func (w *World) cutPower() {
	n := w.someone()
	if n.life == nil {
		return
	}
	w.hit("%s", n.name)
	n.powerLoss()
	n.down(w.rnd.IntN(4) == 0)
}

func (w *World) cutAllPower() {
	w.hit("")
	for _, n := range w.nodes {
		if n.disk != nil && n.life != nil {
			n.powerLoss()
			n.down(false)
		}
	}
}

func (w *World) killOne() {
	n := w.anyone()
	if n.life == nil {
		return
	}
	w.hit("%s", n.name)
	n.kill()
	n.down(w.rnd.IntN(4) == 0)
}

func (w *World) killLeader() {
	n := w.leader()
	if n.life == nil {
		return
	}
	w.hit("%s", n.name)
	n.kill()
	n.down(w.rnd.IntN(4) == 0)
}

// absence takes a node away so long that the log has moved on without it.
func (w *World) absence() {
	n := w.anyone()
	if n.life == nil {
		return
	}
	w.hit("%s", n.name)
	n.kill()
	n.down(true)
}

func (w *World) stopOne() {
	n := w.someone()
	if n.life == nil || n.life.told {
		return
	}
	w.hit("%s", n.name)
	n.stop()
}

func (w *World) pauseOne() {
	n := w.someone()
	if n.life == nil {
		return
	}
	n.life.pause(w.now + w.some(50*time.Millisecond, 30*time.Second))
	w.hit("%s until %v", n.name, n.life.pausedUntil)
}

func (w *World) jump() {
	n := w.someone()
	n.clock.wall = w.some(-time.Hour, time.Hour)
	w.hit("%s by %v", n.name, n.clock.wall)
}

func (w *World) transfer() {
	n, to := w.leader(), w.anyone()
	if l := n.life; l != nil && to.id != 0 {
		w.hit("%s to %s", n.name, to.name)
		l.unpaused(func() {
			l.raft.Transfer(to.id)
			l.poke()
		})
	}
}

// falseAlarm says of a node that its process is gone, which it is not.
func (w *World) falseAlarm() {
	n, of := w.anyone(), w.leader()
	if l := n.life; l != nil && n != of {
		w.hit("%s of %s", n.name, of.name)
		l.unpaused(func() {
			l.raft.Lost(of.id)
			l.poke()
		})
	}
}

// swap is what the end of a compaction does to a node.
func (w *World) swap() {
	if l := w.someone().life; l != nil && !l.stopping {
		w.hit("%s", l.n.name)
		l.raft.Swap(func() error { return nil }, func(error) { w.counts.Swaps++ })
		l.poke()
	}
}

// mayLose tells whether a node can lose its disk for good: only while all others
// have theirs, and nobody changes the membership, for what is beyond that no
// cluster promises to survive.
func (w *World) mayLose(n *node) bool {
	if n.disk == nil || w.changing || w.remaking || !w.plan.members {
		return false
	}
	l := w.lead()
	return l != nil && len(l.status.Voters) >= 3 && !slices.ContainsFunc(l.status.Members, func(m raftstore.Member) bool {
		return m.Learner || w.gone(m.ID)
	})
}

// damage destroys what is on a disk, which its node must notice when it starts:
// it takes part no more, and another takes its place.
func (w *World) damage() {
	n := w.anyone()
	if !w.mayLose(n) {
		return
	}
	if n.life != nil {
		n.kill()
	}
	what := "a bit of the state flipped"
	if w.rnd.IntN(2) == 0 || !n.disk.state.Damage(w.rnd.IntN) {
		what = "the end of the log cut off"
		if !n.disk.log.Cut() {
			n.down(false)
			return
		}
	}
	n.fate = errDamaged
	w.hit("%s: %s", n.name, what)
	n.down(false)
}

// oldCopy puts a disk back to what it was a while ago. Nothing but its peers can
// tell: the node must stop with ErrHistory, or do no harm. Others than it must be
// well meanwhile, for its promises are gone.
func (w *World) oldCopy() {
	n := w.anyone()
	if !w.mayLose(n) || n.life == nil || w.old != nil {
		return
	}
	w.old = &oldDisk{n: n, disk: n.disk.copy(), at: w.now, cluster: n.life.cluster, id: n.id}
}

// calm ends the storm, waits until the cluster is well, which must not take long,
// and lets it be for a while.
func (w *World) calm() bool {
	w.storms++
	w.counts.Storms++
	w.net.calm()
	for _, n := range w.nodes {
		n.clock.wall = 0
		if d := n.disk; d != nil {
			d.slow, d.hung, d.fails, d.full, d.low = 0, 0, 0, false, false
		}
		if n.life != nil {
			n.life.resume()
		}
		if n.life == nil && n.disk != nil && n.fate == nil {
			n.startAt(w.now)
		}
	}
	for w.quiet() { // a node is put back to an old copy, or the cluster made anew
		if w.sleep(w.plan.tick) != nil {
			return false
		}
	}
	return w.recover() && w.ledger.bounded() && w.putBack() && w.sleep(w.some(2*w.plan.unit, 10*w.plan.unit)) == nil
}

// recover waits until writes are done again (I8), and then until all nodes have
// the same state.
func (w *World) recover() bool {
	begun := w.now
	w.firstWrite = 0
	for w.firstWrite == 0 {
		w.probe()
		if w.sleep(w.plan.tick/4) != nil {
			return false
		}
		if w.now-begun > resumeWithin*w.plan.unit {
			w.Fail("I8: no write was done for %v after all was well: %s", w.now-begun, w.situation())
			return false
		}
	}
	w.counts.Resumed = append(w.counts.Resumed, float64(w.firstWrite-begun)/float64(w.plan.unit))
	goal := w.ledger.acked
	for !w.reached(goal) {
		if w.sleep(w.plan.tick) != nil {
			return false
		}
		if w.now-begun > convergeWithin*w.plan.unit {
			w.Fail("I8: the nodes are not all at revision %d %v after all was well: %s", goal, w.now-begun, w.situation())
			return false
		}
	}
	return true
}

const (
	// resumeWithin is within how many units after the end of a storm a write must
	// be done; that it is one mostly is counted.
	resumeWithin   = 8
	convergeWithin = 60
)

// probe writes something that changes nothing, by whoever leads.
func (w *World) probe() {
	for _, n := range w.nodes {
		if l := n.life; l != nil && l.status.Leading && !l.probing {
			l.probing = true
			l.propose(tick, func(outcome) { l.probing = false })
		}
	}
}

// reached tells whether all who run and are members have come to a revision.
func (w *World) reached(rev uint64) bool {
	lead := w.leader().life
	for _, n := range w.nodes {
		l := n.life
		if l == nil {
			if n.disk != nil && n.fate == nil {
				return false
			}
			continue
		}
		if lead == nil || !slices.ContainsFunc(lead.status.Members, isMember(n.id)) {
			continue
		}
		v := l.raft.View()
		at := w.ledger.revision(l, v)
		v.Release()
		if at < rev {
			return false
		}
	}
	return true
}

// situation is for people who look at a violation.
func (w *World) situation() (s string) {
	for _, n := range w.nodes {
		switch {
		case n.disk == nil:
			s += fmt.Sprintf("%s has no disk; ", n.name)
		case n.life == nil:
			s += fmt.Sprintf("%s is down (%v); ", n.name, n.fate)
		default:
			st := n.life.raft.Status()
			s += fmt.Sprintf("%s (%x) term %d leader %x commit %d applied %d voters %x learners %x usage %+v; ", n.name, n.id, st.Term, st.Leader, st.Committed, st.Applied, st.Voters, st.Learners, n.life.raft.Usage())
		}
	}
	return s
}
