//go:build peers

package chaos

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
)

// kind is a kind of fault.
type kind struct {
	name   string
	weight int
	// victim: it takes one node out, in whole or in part; so there is none of it
	// where the others would be no majority. total: it takes the majority, for a
	// short time, and comes alone. Neither: it may come beside any but a total one.
	victim, total bool
	member        bool // it changes the membership: one at a time
	leader        bool // the victim is who leads
	run           func(f *faults, n *node) error
}

// kinds are all there are.
var kinds = []kind{
	{name: "kill", weight: 16, victim: true, run: (*faults).kill},
	{name: "kill the leader", weight: 8, victim: true, leader: true, run: (*faults).kill},
	{name: "pause", weight: 14, victim: true, run: (*faults).pause},
	{name: "pause the leader", weight: 6, victim: true, leader: true, run: (*faults).pause},
	{name: "terminate", weight: 8, victim: true, run: (*faults).terminate},
	{name: "partition", weight: 8, victim: true, run: (*faults).partition},
	{name: "partition the leader", weight: 6, victim: true, leader: true, run: (*faults).partition},
	{name: "isolate", weight: 5, victim: true, run: (*faults).isolate},
	{name: "deaf", weight: 6, victim: true, run: (*faults).deaf},
	{name: "mute", weight: 6, victim: true, run: (*faults).mute},
	{name: "one link", weight: 4, victim: true, run: (*faults).oneLink},
	{name: "flap", weight: 4, victim: true, run: (*faults).flap},
	{name: "slow lines", weight: 7, victim: true, run: (*faults).slow},
	{name: "full disk", weight: 5, victim: true, run: (*faults).fullDisk},
	{name: "empty disk", weight: 4, victim: true, member: true, run: (*faults).emptyDisk},
	{name: "guest", weight: 4, member: true, run: (*faults).guest},
	{name: "move leader", weight: 10, run: (*faults).moveLeader},
	{name: "clients cut", weight: 8, run: (*faults).clientsCut},
	{name: "resets", weight: 8, run: (*faults).resets},
	{name: "compact", weight: 6, run: (*faults).compact},
	{name: "backup", weight: 5, run: (*faults).backup},
	{name: "kill all", weight: 6, total: true, run: (*faults).killAll},
	{name: "kill a majority", weight: 9, total: true, run: (*faults).killMajority},
	{name: "pause a majority", weight: 6, total: true, run: (*faults).pauseMajority},
	{name: "everyone apart", weight: 6, total: true, run: (*faults).apart},
	{name: "majority ring", weight: 9, total: true, run: (*faults).ring},
}

// faults draws and makes them.
type faults struct {
	c   *cluster
	h   *history
	rng *rand.Rand // of the one who draws; a fault has its own

	mu      sync.Mutex
	out     map[*node]string
	member  bool
	running int
	wg      sync.WaitGroup
	begun   atomic.Int64 // how many
	counts  map[string]int
	told    []string
	lost    []span // when there was no majority, or none may have been
	back    []time.Duration
}

// span is a time of the round.
type span struct{ from, to time.Duration }

func newFaults(c *cluster, h *history, seed uint64) *faults {
	return &faults{c: c, h: h, rng: rand.New(rand.NewPCG(seed, 3)), out: map[*node]string{}, counts: map[string]int{}}
}

// draw returns an own source for a fault.
func (f *faults) draw() *rand.Rand {
	f.mu.Lock()
	defer f.mu.Unlock()
	return rand.New(rand.NewPCG(f.rng.Uint64(), 4))
}

// run makes count faults, or as many as there are until the time is over.
func (f *faults) run(count int, until time.Time, every time.Duration) {
	for f.begun.Load() < int64(count) && time.Now().Before(until) && f.c.alive() {
		f.mu.Lock()
		k := f.choose()
		pause := min(time.Duration(f.rng.ExpFloat64()*float64(every)), 4*every)
		f.mu.Unlock()
		// One that cannot be now is waited for, or those that need little would be
		// most of all.
		for waited := time.Duration(0); !f.begin(k) && waited < mostWait; waited += mostWait / 50 {
			time.Sleep(mostWait / 50)
		}
		time.Sleep(pause)
	}
	f.wg.Wait()
}

// mostWait is how long a fault is waited for that cannot be made beside another.
const mostWait = 1500 * time.Millisecond

// choose draws by weight. f.mu is held.
func (f *faults) choose() kind {
	sum := 0
	for _, k := range kinds {
		sum += k.weight
	}
	n := f.rng.IntN(sum)
	for _, k := range kinds {
		if n -= k.weight; n < 0 {
			return k
		}
	}
	panic("unreachable")
}

// begin makes a fault beside others, if it may be now. One that takes the majority
// is waited for.
func (f *faults) begin(k kind) bool {
	var n *node
	if k.leader {
		if f.full() {
			return false
		}
		n = f.c.leader()
	}
	f.mu.Lock()
	voters := f.c.voters()
	if n == nil || n == f.c.guest() {
		n = voters[f.rng.IntN(len(voters))]
	}
	switch {
	case k.total && f.running > 0,
		k.member && f.member,
		k.victim && (len(f.out) >= (len(voters)-1)/2 || f.out[n] != ""):
		f.mu.Unlock()
		return false
	}
	if k.victim {
		f.out[n] = k.name
	} else {
		n = nil
	}
	f.member = f.member || k.member
	f.running++
	f.mu.Unlock()
	f.wg.Go(func() {
		f.make(k, n)
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.out, n)
		f.running--
		if k.member {
			f.member = false
		}
	})
	if k.total {
		f.wg.Wait()
	}
	return true
}

// full reports whether no more nodes may be taken out.
func (f *faults) full() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.out) >= (len(f.c.voters())-1)/2
}

// make makes a fault and waits until the node that it took out is back.
func (f *faults) make(k kind, n *node) {
	begun := f.h.now()
	f.begun.Add(1)
	f.mu.Lock()
	f.counts[k.name]++
	f.mu.Unlock()
	err := k.run(f, n)
	over := f.h.now()
	if err != nil {
		f.c.fail("fault %q on %s: %v", k.name, nameOf(n), err)
	}
	switch {
	case n != nil:
		f.comesBack(n)
	case k.total:
		for _, n := range f.c.voters() {
			f.comesBack(n)
		}
	}
	end := f.h.now()
	f.mu.Lock()
	defer f.mu.Unlock()
	if k.total {
		f.lost = append(f.lost, span{begun, end})
	}
	f.back = append(f.back, end-over)
	f.told = append(f.told, fmt.Sprintf("%8v to %8v, back after %v: %s %s", begun.Round(time.Millisecond), over.Round(time.Millisecond), (end-over).Round(time.Millisecond), k.name, nameOf(n)))
}

func nameOf(n *node) string {
	if n == nil {
		return "all"
	}
	return n.name
}

func (f *faults) comesBack(n *node) {
	if !f.c.alive() {
		return
	}
	if err := f.c.ready(n, *chaosPatience); err != nil {
		f.c.fail("%v\n%s", err, n.log.tail(20))
	}
}

// alive reports whether it is worth to go on.
func (c *cluster) alive() bool { return len(c.failures()) == 0 }

// during makes rules of the network hold for a time.
func (f *faults) during(d time.Duration, rules map[*node][]rule) error {
	var err error
	for n, r := range rules {
		err = errors.Join(err, f.c.net.apply(n.host, r...))
	}
	if err == nil {
		time.Sleep(d)
	}
	for n, r := range rules {
		err = errors.Join(err, f.c.net.lift(n.host, r...))
	}
	return err
}

// short is for what keeps one node from taking part.
func short(rng *rand.Rand) time.Duration {
	switch n := rng.IntN(20); {
	case n < 14:
		return time.Duration(50+rng.IntN(900)) * time.Millisecond
	default:
		return time.Duration(1000+rng.IntN(2500)) * time.Millisecond
	}
}

// Processes.

func (f *faults) kill(n *node) error {
	rng := f.draw()
	n.kill()
	time.Sleep(time.Duration(rng.IntN(400)) * time.Millisecond)
	f.again(n, rng)
	err := n.start()
	if err == nil && rng.IntN(4) == 0 { // once more, while it starts
		time.Sleep(time.Duration(rng.IntN(80)) * time.Millisecond)
		n.kill()
		err = n.start()
	}
	return err
}

// logSizes are how much of the log a node keeps. Most are so short that whoever
// lags a little gets a snapshot.
var logSizes = []string{"16KiB", "16KiB", "64KiB", "512KiB", "64MiB"}

// again has a node keep another length of the log from its next start on.
func (f *faults) again(n *node, rng *rand.Rand) {
	if i := slices.Index(n.flags, "--log-size"); i >= 0 && rng.IntN(2) == 0 {
		n.flags[i+1] = logSizes[rng.IntN(len(logSizes))]
	}
}

func (f *faults) terminate(n *node) error {
	rng := f.draw()
	n.terminate()
	time.Sleep(time.Duration(rng.IntN(200)) * time.Millisecond)
	f.again(n, rng)
	return n.start()
}

func (f *faults) pause(n *node) error {
	rng := f.draw()
	d := short(rng)
	if rng.IntN(25) == 0 {
		d = time.Duration(4000+rng.IntN(26_000)) * time.Millisecond
	}
	n.signal(syscall.SIGSTOP)
	time.Sleep(d)
	n.signal(syscall.SIGCONT)
	return nil
}

// some draws so many voters.
func (f *faults) some(rng *rand.Rand, count int) []*node {
	all := slices.Clone(f.c.voters())
	rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all[:count]
}

func (f *faults) killSome(rng *rand.Rand, nodes []*node) error {
	for _, n := range nodes {
		n.kill()
	}
	time.Sleep(time.Duration(rng.IntN(500)) * time.Millisecond)
	var err error
	for _, n := range nodes {
		err = errors.Join(err, n.start())
		time.Sleep(time.Duration(rng.IntN(100)) * time.Millisecond)
	}
	return err
}

func (f *faults) killAll(*node) error { return f.killSome(f.draw(), f.c.voters()) }

func (f *faults) killMajority(*node) error {
	rng := f.draw()
	return f.killSome(rng, f.some(rng, len(f.c.voters())/2+1))
}

func (f *faults) pauseMajority(*node) error {
	rng := f.draw()
	nodes := f.some(rng, len(f.c.voters())/2+1)
	for _, n := range nodes {
		n.signal(syscall.SIGSTOP)
	}
	time.Sleep(time.Duration(100+rng.IntN(2000)) * time.Millisecond)
	for _, n := range nodes {
		n.signal(syscall.SIGCONT)
		time.Sleep(time.Duration(rng.IntN(50)) * time.Millisecond)
	}
	return nil
}

// The network.

// others are the nodes that a node talks to.
func (f *faults) others(n *node) (all []*node) {
	for _, other := range f.c.nodes {
		if other != n {
			all = append(all, other)
		}
	}
	return all
}

// in and out are rules in one node's namespace against some others.
func (f *faults) in(from ...*node) (rules []rule) {
	for _, n := range from {
		rules = append(rules, f.c.net.drop(n.host))
	}
	return rules
}

func (f *faults) outTo(to ...*node) (rules []rule) {
	for _, n := range to {
		rules = append(rules, rule{"filter", "OUTPUT -d " + f.c.net.Address(n.host) + " -j DROP"})
	}
	return rules
}

func (f *faults) partition(n *node) error {
	others := f.others(n)
	return f.during(short(f.draw()), map[*node][]rule{n: append(f.in(others...), f.outTo(others...)...)})
}

// isolate is a partition from the clients too.
func (f *faults) isolate(n *node) error {
	return f.during(short(f.draw()), map[*node][]rule{n: {{"filter", "INPUT -i eth0 -j DROP"}, {"filter", "OUTPUT -o eth0 -j DROP"}}})
}

// deaf hears nobody, mute is not heard: partitions of one way.
func (f *faults) deaf(n *node) error {
	return f.during(short(f.draw()), map[*node][]rule{n: f.in(f.others(n)...)})
}

func (f *faults) mute(n *node) error {
	return f.during(short(f.draw()), map[*node][]rule{n: f.outTo(f.others(n)...)})
}

// oneLink cuts the line between two, or one way of it.
func (f *faults) oneLink(n *node) error {
	rng := f.draw()
	others := f.others(n)
	other := others[rng.IntN(len(others))]
	rules := f.in(other)
	if rng.IntN(2) == 0 {
		rules = append(rules, f.outTo(other)...)
	}
	return f.during(short(rng), map[*node][]rule{n: rules})
}

func (f *faults) flap(n *node) error {
	rng := f.draw()
	others := f.others(n)
	var err error
	for range 3 + rng.IntN(4) {
		d := time.Duration(50+rng.IntN(250)) * time.Millisecond
		err = errors.Join(err, f.during(d, map[*node][]rule{n: append(f.in(others...), f.outTo(others...)...)}))
		time.Sleep(time.Duration(50+rng.IntN(250)) * time.Millisecond)
	}
	return err
}

// apart leaves everybody alone.
func (f *faults) apart(*node) error {
	rules := map[*node][]rule{}
	for _, n := range f.c.voters() {
		rules[n] = f.in(f.others(n)...)
	}
	return f.during(time.Duration(200+f.draw().IntN(2000))*time.Millisecond, rules)
}

// ring leaves each node two neighbours: of five everybody sees a majority, and no
// two see the same; of three it is a line.
func (f *faults) ring(*node) error {
	voters := f.c.voters()
	rules := map[*node][]rule{}
	for i, n := range voters {
		for j, other := range voters {
			apart := (i - j + len(voters)) % len(voters)
			if len(voters) == 3 && i != 0 && j != 0 && i != j || apart != 0 && apart != 1 && apart != len(voters)-1 {
				rules[n] = append(rules[n], f.in(other)...)
			}
		}
	}
	return f.during(time.Duration(300+f.draw().IntN(3000))*time.Millisecond, rules)
}

// resets ends the connections between a node and the others.
func (f *faults) resets(*node) error {
	rng := f.draw()
	n := f.some(rng, 1)[0]
	var rules []rule
	for _, other := range f.others(n) {
		rules = append(rules, rule{"filter", "OUTPUT -p tcp -d " + f.c.net.Address(other.host) + " -j REJECT --reject-with tcp-reset"},
			rule{"filter", "INPUT -p tcp -s " + f.c.net.Address(other.host) + " -j REJECT --reject-with tcp-reset"})
	}
	return f.during(time.Duration(20+rng.IntN(80))*time.Millisecond, map[*node][]rule{n: rules})
}

func (f *faults) clientsCut(*node) error {
	rng := f.draw()
	n := f.some(rng, 1)[0]
	return f.during(short(rng), map[*node][]rule{n: {f.c.net.drop(clientsAt)}})
}

// slow leads what a node dials, and who dials it, over slow lines.
func (f *faults) slow(n *node) error {
	rng := f.draw()
	l := line{delay: time.Duration(1+rng.IntN(120)) * time.Millisecond}
	switch rng.IntN(3) {
	case 0:
		l.rate = 125_000 // 1 Mb/s
	case 1:
		l.rate = 1_250_000
	}
	rules, resets := map[*node][]rule{}, map[*node][]rule{}
	var relays []*relay
	lead := func(from, to *node) {
		r := f.c.relays[[2]int{from.host, to.host}]
		r.line.Store(&l)
		relays = append(relays, r)
		rules[from] = append(rules[from], rule{"nat", fmt.Sprintf("OUTPUT -p tcp -d %s --dport 7906 -j DNAT --to-destination %s:%d", f.c.net.Address(to.host), f.c.net.Address(relaysAt), r.port())})
		resets[from] = append(resets[from], rule{"filter", fmt.Sprintf("OUTPUT -p tcp -d %s --dport 7906 -j REJECT --reject-with tcp-reset", f.c.net.Address(to.host))})
	}
	for _, other := range f.others(n) {
		lead(n, other)
		if rng.IntN(2) == 0 {
			lead(other, n)
		}
	}
	// What is connected already is not led anywhere: it has to dial anew.
	for from, r := range rules {
		if err := f.c.net.apply(from.host, r...); err != nil {
			return err
		}
	}
	err := f.during(30*time.Millisecond, resets)
	time.Sleep(time.Duration(500+rng.IntN(3500)) * time.Millisecond)
	for from, r := range rules {
		err = errors.Join(err, f.c.net.lift(from.host, r...))
	}
	for _, r := range relays {
		r.cut()
	}
	return err
}

// Disks.

// fullDisk fills the disk and gives the space back. A node that stopped writing
// looks again after half a minute by itself; mostly it is restarted before.
func (f *faults) fullDisk(n *node) error {
	rng := f.draw()
	if err := n.fill(); err != nil {
		return err
	}
	time.Sleep(time.Duration(500+rng.IntN(3000)) * time.Millisecond)
	if rng.IntN(3) == 0 { // it is restarted while there is no space
		n.kill()
		if err := n.start(); err != nil {
			return err
		}
		time.Sleep(time.Duration(500+rng.IntN(1500)) * time.Millisecond)
	}
	if err := n.free(); err != nil {
		return err
	}
	if rng.IntN(8) == 0 || f.c.ready(n, time.Second) == nil {
		return nil
	}
	n.kill()
	return n.start()
}

// emptyDisk has a node lose its disk and be put in its own place again.
func (f *faults) emptyDisk(n *node) error {
	ref := client.ReplaceMember{Name: n.name}
	err := f.insist("look for "+n.name, func(ctx context.Context, c *client.Client) (err error) {
		ref.Old, err = memberID(ctx, c, n.name, 0)
		return err
	})
	if err != nil {
		return err
	}
	n.kill()
	if err := n.wipe(); err != nil {
		return err
	}
	var flags []string
	for i := 0; i < len(n.flags); i += 2 {
		if n.flags[i] != "--initial-cluster" && n.flags[i] != "--join" {
			flags = append(flags, n.flags[i], n.flags[i+1])
		}
	}
	peers := ""
	for _, other := range f.c.voters() {
		if other != n {
			peers += "," + other.peer()
		}
	}
	n.flags = append(flags, "--join", peers[1:])
	if err := n.start(); err != nil {
		return err
	}
	err = f.insist("replace "+n.name, func(ctx context.Context, c *client.Client) error {
		r, err := c.ReplaceMember(ctx, ref)
		switch {
		case err == nil:
			ref.New = r.Member.ID
		case errors.Is(err, client.ErrNotWaiting), errors.Is(err, directory.ErrExists):
			// Unless it waits still, this was done by a call whose answer was lost.
			ref.New, err = memberID(ctx, c, n.name, ref.Old)
		}
		return err
	})
	if err != nil {
		return err
	}
	ref.Finish = true
	return f.insist("finish the replacement of "+n.name, func(ctx context.Context, c *client.Client) error {
		// With both ids, one that was finished by a call whose answer was lost is Unchanged.
		_, err := c.ReplaceMember(ctx, ref)
		return err
	})
}

// memberID finds the id of the member of that name, which is another than not.
func memberID(ctx context.Context, c *client.Client, name string, not uint64) (uint64, error) {
	st, err := c.Status(ctx, client.Linearizable())
	if err != nil {
		return 0, err
	}
	for _, m := range st.Nodes {
		if m.Name == name && m.ID != not {
			return m.ID, nil
		}
	}
	return 0, fmt.Errorf("%w: no member is called %s", client.ErrNotWaiting, name)
}

// insist makes a change of the membership until it is made.
func (f *faults) insist(what string, call func(context.Context, *client.Client) error) error {
	c, err := f.c.dial(f.c.endpoints(0), client.WithTimeout(3*time.Second), client.WithAttemptTimeout(time.Second))
	if err != nil {
		return err
	}
	defer c.Close()
	var last error
	for begun := time.Now(); time.Since(begun) < *chaosPatience; time.Sleep(100 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		last = call(ctx, c)
		cancel()
		switch {
		case last == nil:
			return nil
		case errors.Is(last, client.ErrUnavailable), errors.Is(last, client.ErrLagging), errors.Is(last, client.ErrNoQuorum), errors.Is(last, client.ErrNotWaiting):
		default:
			return fmt.Errorf("%s: %w", what, last)
		}
	}
	return fmt.Errorf("%s: not after %v: %w", what, *chaosPatience, last)
}

// guest has another node join, vote, and leave.
func (f *faults) guest(*node) error {
	rng := f.draw()
	g := f.c.guest()
	if err := g.start(); err != nil {
		return err
	}
	ref := client.NodeRef{Name: g.name}
	err := f.insist("add "+g.name, func(ctx context.Context, c *client.Client) error {
		r, err := c.AddMember(ctx, ref)
		switch {
		case err == nil:
			ref.ID = r.Member.ID
		case errors.Is(err, client.ErrNotWaiting), errors.Is(err, directory.ErrExists):
			// Unless it waits still, it was added by a call whose answer was lost.
			ref.ID, err = memberID(ctx, c, g.name, 0)
		}
		return err
	})
	if err == nil && rng.IntN(4) > 0 {
		err = f.insist("promote "+g.name, func(ctx context.Context, c *client.Client) error {
			_, err := c.PromoteMember(ctx, ref)
			return err
		})
	}
	time.Sleep(time.Duration(rng.IntN(1500)) * time.Millisecond)
	// It ends by itself when it is told that it was removed.
	g.mu.Lock()
	g.expected = true
	ended := g.ended
	g.mu.Unlock()
	err = errors.Join(err, f.insist("remove "+g.name, func(ctx context.Context, c *client.Client) error {
		_, err := c.RemoveMember(ctx, ref)
		if errors.Is(err, directory.ErrNotFound) {
			return nil // by a call whose answer was lost
		}
		return err
	}))
	select {
	case <-ended:
	case <-time.After(2 * time.Second): // it may never hear of it
	}
	g.kill()
	return errors.Join(err, g.wipe())
}

// Operators.

func (f *faults) moveLeader(*node) error {
	rng := f.draw()
	to := f.some(rng, 1)[0]
	c, err := f.c.dial(f.c.endpoints(rng.IntN(3)), client.WithTimeout(3*time.Second))
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.MoveLeader(context.Background(), client.NodeRef{Name: to.name})
	return f.mayFail(err)
}

func (f *faults) compact(*node) error {
	n := f.some(f.draw(), 1)[0]
	return f.mayFail(f.c.ask(n, 20*time.Second, func(ctx context.Context, c *client.Client) error {
		_, err := c.Compact(ctx, n.name, true, func(uint64, uint64) error { return nil })
		return err
	}))
}

func (f *faults) backup(*node) error {
	n := f.some(f.draw(), 1)[0]
	return f.mayFail(f.c.ask(n, 20*time.Second, func(ctx context.Context, c *client.Client) error {
		_, err := c.SaveSnapshot(ctx, io.Discard, nil)
		return err
	}))
}

// mayFail is for what another fault may well keep from being done.
func (f *faults) mayFail(err error) error {
	if errors.Is(err, client.ErrBroken) {
		return err
	}
	return nil
}

// table lists how many faults of each kind there were.
func table(counts map[string]int) string {
	text := ""
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		text += fmt.Sprintf(", %d %s", counts[name], name)
	}
	return text[min(2, len(text)):]
}
