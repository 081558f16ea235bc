package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"

	"github.com/rookery-mail/rookery/internal/obs"
	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
)

// A comparison is one run of Rookery beside etcd: as many nodes of each, on the
// same disk, loaded by turns by the same code, in the same minutes.
type comparison struct {
	compareSettings
	self     string // this program's file, which the echo runs
	progress io.Writer
	report   *comparisonReport
	pop      *population
	dir      string

	rookery *rookeryCluster
	etcd    *etcdCluster     // nil: Rookery alone
	works   map[string]*work // by system: each states its own, in the same order
	memory  map[string]*memoryWatch
	echo    *echo
	fsyncs  []*fsync
}

// seat is one side of a duel, and what its runs came to.
type seat struct {
	rival  rival // of Rookery itself: its system alone
	load   workload
	rounds []run
	result sideResult
}

// compare runs a comparison. What was found until an error is in the report.
func compare(ctx context.Context, s compareSettings, self string, progress io.Writer) (r report, err error) {
	c := &comparison{compareSettings: s, self: self, progress: progress}
	b := bench{settings: s.settings}
	dir, cleanup, err := b.workDir()
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, cleanup()) }()
	if c.pop, err = newPopulation(s.populations[0], s.seed); err != nil {
		return r, fmt.Errorf("%w: %w", errUsage, err)
	}
	c.report = &comparisonReport{Mailboxes: c.pop.mailboxes, Seed: s.seed, Nodes: s.nodes, Target: s.target, Octets: measureOctets(c.pop)}
	r = report{
		Version: obs.Version(), Begun: time.Now().UTC().Truncate(time.Second), Machine: thisMachine(dir),
		Rounds: s.rounds, Seconds: s.duration.Seconds(), Connections: s.connections, Comparison: c.report,
	}
	c.dir = filepath.Join(dir, fmt.Sprintf("rookery-compare-%s-seed%d", formatSize(c.pop.mailboxes), s.seed))
	defer func() { err = errors.Join(err, c.end()) }()
	err = c.run(ctx)
	r.Verdicts = r.verdicts()
	return r, err
}

func (c *comparison) say(format string, args ...any) {
	fmt.Fprintf(c.progress, "%s  %s\n", time.Now().Format(time.TimeOnly), fmt.Sprintf(format, args...))
}

func (c *comparison) run(ctx context.Context) error {
	for i := range c.imports {
		if err := c.begin(ctx); err != nil {
			return err
		}
		for _, name := range c.turns(i, c.systems()) {
			c.say("import %d of %d: %s", i+1, c.imports, name)
			if err := c.importInto(ctx, name); err != nil {
				return fmt.Errorf("import into %s: %w", name, err)
			}
		}
	}
	all, err := c.seats(ctx)
	if err != nil {
		return err
	}
	for round := range c.rounds {
		for _, seats := range all {
			for _, at := range c.order(round, seats) {
				c.say("run %d of %d: %s: %s", round+1, c.rounds, at.load.name, at.result.Name)
				if err := c.round(ctx, at, round); err != nil {
					return fmt.Errorf("%s: %s: %w", at.load.name, at.result.Name, err)
				}
			}
			c.settleReport(all)
		}
	}
	for _, seats := range all {
		if err := c.openLoops(ctx, seats); err != nil {
			return err
		}
		c.settleReport(all)
		if err := c.profile(ctx, seats[0]); err != nil {
			return err
		}
	}
	return c.weigh(ctx)
}

// begin starts both clusters with empty directories, after ending those of
// before.
func (c *comparison) begin(ctx context.Context) error {
	if err := c.end(); err != nil {
		return err
	}
	if err := os.MkdirAll(c.dir, 0o755); err != nil {
		return err
	}
	c.works = map[string]*work{}
	c.memory = map[string]*memoryWatch{}
	var clusters []cluster
	var err error
	if c.rookery, err = newRookeryCluster(c.rookeryd, filepath.Join(c.dir, systemRookery), c.nodes); err != nil {
		return err
	}
	clusters = append(clusters, c.rookery)
	if c.compareSettings.etcd != "" {
		if c.etcd, err = newEtcdCluster(c.compareSettings.etcd, filepath.Join(c.dir, systemEtcd), c.nodes); err != nil {
			return err
		}
		clusters = append(clusters, c.etcd)
	}
	if err := startTogether(ctx, clusters...); err != nil {
		return err
	}
	if c.etcd != nil {
		st, err := c.etcd.status(ctx)
		if err != nil {
			return err
		}
		c.report.Etcd = st.GetVersion()
	}
	for _, name := range c.systems() {
		c.works[name] = newWork(c.pop)
		for _, m := range c.cluster(name).members() {
			c.memory[m.name] = watchMemory(m.process)
		}
	}
	c.works[systemEcho], c.works[systemFsync] = newWork(c.pop), newWork(c.pop)
	return nil
}

// end ends what runs and removes what it wrote.
func (c *comparison) end() error {
	var errs []error
	for _, w := range c.memory {
		w.end() // what it could not see of a process that ends does not matter
	}
	c.memory = nil
	if c.echo != nil {
		errs = append(errs, c.echo.close())
		c.echo = nil
	}
	for _, f := range c.fsyncs {
		errs = append(errs, f.close())
	}
	c.fsyncs = nil
	if c.rookery != nil {
		errs = append(errs, c.rookery.kill())
		c.rookery = nil
	}
	if c.etcd != nil {
		errs = append(errs, c.etcd.kill())
		c.etcd = nil
	}
	if c.dir != "" {
		errs = append(errs, os.RemoveAll(c.dir))
	}
	return errors.Join(errs...)
}

// systems are those that have nodes.
func (c *comparison) systems() []string {
	if c.compareSettings.etcd == "" {
		return []string{systemRookery}
	}
	return []string{systemRookery, systemEtcd}
}

func (c *comparison) cluster(system string) cluster {
	switch {
	case system == systemRookery && c.rookery != nil:
		return c.rookery
	case system == systemEtcd && c.etcd != nil:
		return c.etcd
	}
	return nil
}

// turns is who is first in that round: nobody always runs behind the same one.
func (c *comparison) turns(round int, names []string) []string {
	names = slices.Clone(names)
	if round%2 == 1 {
		slices.Reverse(names)
	}
	return names
}

func (c *comparison) order(round int, seats []*seat) []*seat {
	seats = slices.Clone(seats)
	if round%2 == 1 {
		slices.Reverse(seats)
	}
	return seats
}

// quiet waits until all nodes are at rest.
func (c *comparison) quiet(ctx context.Context, before string) error {
	var all []member
	for _, name := range c.systems() {
		all = append(all, c.cluster(name).members()...)
	}
	ok, err := awaitQuiet(ctx, all)
	if err == nil && !ok {
		c.say("the nodes did not come to rest: %s", before)
		c.report.Restless = append(c.report.Restless, before)
	}
	return err
}

func (c *comparison) importInto(ctx context.Context, name string) error {
	if err := c.quiet(ctx, "import: "+name); err != nil {
		return err
	}
	told := time.Now()
	took, err := c.cluster(name).fill(ctx, c.works[name], func(done int) {
		if time.Since(told) > 10*time.Second {
			told = time.Now()
			c.say("import: %d of %d", done, c.pop.mailboxes)
		}
	})
	if err != nil {
		return err
	}
	i := slices.IndexFunc(c.report.Imports, func(f importFigure) bool { return f.System == name })
	if i < 0 {
		i = len(c.report.Imports)
		c.report.Imports = append(c.report.Imports, importFigure{System: name, Facts: took.Facts})
	}
	f := &c.report.Imports[i]
	f.Each = append(f.Each, rounded(took.Seconds, 3))
	f.Seconds = median(f.Each)
	return c.cluster(name).tidy(ctx)
}

// seats makes the sides of every duel that was asked for, Rookery first.
func (c *comparison) seats(ctx context.Context) ([][]*seat, error) {
	var all [][]*seat
	for _, d := range duels {
		if !slices.Contains(c.workloads, d.workload) {
			continue
		}
		w := workloadNamed(d.workload)
		seats := []*seat{{rival: rival{system: systemRookery}, load: w, result: sideResult{Name: systemRookery, Keys: w.keys}}}
		for _, r := range d.rivals {
			switch {
			case r.system == systemEtcd && c.etcd == nil:
				continue
			case r.system != systemEtcd && !c.ceilings:
				continue
			}
			load := w
			if r.system == systemEtcd {
				load.op = r.op
			}
			if r.workers > 0 {
				load.workers = r.workers
			}
			seats = append(seats, &seat{rival: r, load: load, result: sideResult{Name: r.title(), Keys: w.keys, AtLeast: r.wanted(c.pop.mailboxes)}})
		}
		all = append(all, seats)
	}
	return all, ctx.Err()
}

// round runs one side once.
func (c *comparison) round(ctx context.Context, at *seat, round int) error {
	if err := c.quiet(ctx, fmt.Sprintf("run %d, %s: %s", round+1, at.load.name, at.result.Name)); err != nil {
		return err
	}
	return c.loaded(ctx, at, round, func(calls []call) error {
		cluster := c.cluster(at.rival.system)
		if cluster == nil {
			var server *process
			if at.rival.system == systemEcho {
				server = c.echo.process
			}
			meter := startCPU(server)
			r := closedLoop(ctx, calls, c.duration)
			meter.stop(&r)
			at.rounds = append(at.rounds, r)
			return sound(r)
		}
		leader, term, err := cluster.leader(ctx)
		if err != nil {
			return err
		}
		members := cluster.members()
		meter, before := startCPU(nil), usages(members)
		r := closedLoop(ctx, calls, c.duration)
		meter.stop(&r)
		r.serverCPU = sumOf(usages(members)).minus(sumOf(before)).CPU
		at.rounds = append(at.rounds, r)
		if err := sound(r); err != nil {
			return err
		}
		// What was put off belongs to the load; what an operator does does not.
		if _, err := awaitQuiet(ctx, members); err != nil {
			return err
		}
		used := usages(members)
		for i := range used {
			used[i] = used[i].minus(before[i])
		}
		at.result.Costs = addCosts(at.result.Costs, members, leader, used)
		_, after, err := cluster.leader(ctx)
		if err != nil {
			return err
		}
		at.result.Elections += after - term
		return cluster.tidy(ctx)
	})
}

// runStride sets the chance of one run's workers apart from the next one's, so
// that runs do not draw the same mailboxes again.
const runStride = 1 << 12

// loaded connects callers to the side's system, warms it up, and has them do
// what is to be done.
func (c *comparison) loaded(ctx context.Context, at *seat, round int, do func([]call) error) (err error) {
	sys, closing, err := c.system(ctx, at)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closing()) }()
	calls := make([]call, at.load.workers)
	for i := range calls {
		if calls[i], err = sys.caller(at.load, round*runStride+i); err != nil {
			return err
		}
	}
	if err := sound(closedLoop(ctx, calls, c.warmup)); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return do(calls)
}

// system opens a side's system, and tells how to close it.
func (c *comparison) system(ctx context.Context, at *seat) (sys system, closing func() error, err error) {
	nothing := func() error { return nil }
	w := c.works[at.rival.system]
	if cluster := c.cluster(at.rival.system); cluster != nil {
		leader, _, err := cluster.leader(ctx)
		if err != nil {
			return nil, nil, err
		}
		sys, err := cluster.open(endpointsOf(cluster, leader, c.target), c.connections, w)
		if err != nil {
			return nil, nil, err
		}
		return sys, sys.close, nil
	}
	leader, _, err := c.rookery.leader(ctx)
	if err != nil {
		return nil, nil, err
	}
	example, err := takeSample(ctx, c.rookery.nodes[leader].client, workloadNamed(at.load.name), c.works[systemRookery])
	if err != nil {
		return nil, nil, err
	}
	switch at.rival.system {
	case systemEcho:
		if c.echo == nil {
			if c.echo, err = newEcho(c.self, false, c.connections, w); err != nil {
				return nil, nil, err
			}
		}
		return c.echo, nothing, c.echo.teach(ctx, example.lesson)
	case systemFsync:
		f, err := newFsync(c.dir, example.Request)
		if err == nil {
			c.fsyncs = append(c.fsyncs, f)
		}
		return f, nothing, err
	}
	return nil, nil, fmt.Errorf("no system is called %q", at.rival.system)
}

// openLoops offers Rookery, and etcd doing the same, calls at the same rate: a
// share of what the slower of both can do.
func (c *comparison) openLoops(ctx context.Context, seats []*seat) error {
	if c.openShare == 0 {
		return nil
	}
	both := seats[:1]
	if len(seats) > 1 && seats[1].rival.system == systemEtcd {
		both = seats[:2]
	}
	rate := figureOf(0, both[0].rounds).Rate
	for _, at := range both[1:] {
		rate = min(rate, figureOf(0, at.rounds).Rate)
	}
	rate *= c.openShare
	for _, at := range both {
		c.say("open loop, %.0f calls a second: %s: %s", rate, at.load.name, at.result.Name)
		if err := c.quiet(ctx, "open loop, "+at.load.name+": "+at.result.Name); err != nil {
			return err
		}
		err := c.loaded(ctx, at, c.rounds, func(calls []call) error {
			f := figureOf(len(calls), []run{openLoop(ctx, calls, rate, c.duration)})
			f.Offered = rate
			at.result.Open = &f
			return c.cluster(at.rival.system).tidy(ctx)
		})
		if err != nil {
			return fmt.Errorf("%s: %s: open loop: %w", at.load.name, at.result.Name, err)
		}
	}
	return nil
}

// profile loads Rookery once more and fetches profiles of its nodes meanwhile.
func (c *comparison) profile(ctx context.Context, at *seat) error {
	if c.profiles == "" {
		return nil
	}
	c.say("profiles: %s", at.load.name)
	return c.loaded(ctx, at, c.rounds+1, func(calls []call) error {
		length := max(c.duration, time.Second).Round(time.Second)
		leader, _, err := c.rookery.leader(ctx)
		if err != nil {
			return err
		}
		members := c.rookery.members()
		errs := make(chan error, len(members))
		for i, m := range members {
			role := "follower"
			if i == leader {
				role = "leader"
			}
			go func() {
				errs <- saveProfiles(ctx, m.debug, c.profiles, fmt.Sprintf("%s-%s-%s-%s", formatSize(c.pop.mailboxes), at.load.name, m.name, role), length)
			}()
		}
		// The load ends after the profiles.
		closedLoop(ctx, calls, length+time.Second/2)
		for range members {
			err = errors.Join(err, <-errs)
		}
		return err
	})
}

// settleReport puts what was measured so far into the report.
func (c *comparison) settleReport(all [][]*seat) {
	c.report.Duels = nil
	for _, seats := range all {
		d := duelResult{Workload: seats[0].load.name, Keys: seats[0].load.keys}
		for _, at := range seats {
			if len(at.rounds) == 0 {
				continue
			}
			side := at.result
			side.figure = figureOf(at.load.workers, at.rounds)
			d.Sides = append(d.Sides, side)
		}
		if len(d.Sides) > 0 {
			compareSides(d.Sides)
			c.report.Duels = append(c.report.Duels, d)
		}
	}
}

// weigh looks at what the nodes have come to.
func (c *comparison) weigh(ctx context.Context) error {
	if err := c.quiet(ctx, "sizes"); err != nil {
		return err
	}
	for _, name := range c.systems() {
		s := systemResult{System: name}
		for _, m := range c.cluster(name).members() {
			n := nodeResult{Name: m.name}
			var err, merr error
			n.Memory, merr = c.memory[m.name].end()
			delete(c.memory, m.name)
			n.Stored, n.State, err = m.sizes()
			if err := errors.Join(err, merr); err != nil {
				return fmt.Errorf("%s: %w", m.name, err)
			}
			s.Nodes = append(s.Nodes, n)
		}
		c.report.Systems = append(c.report.Systems, s)
	}
	return nil
}

// octetsOver is how many facts the sizes of rows are the average of.
const octetsOver = 10_000

// measureOctets looks at mailboxes drawn from the population.
func measureOctets(p *population) octets {
	var o octets
	w := newWork(p)
	chance := w.chance(0)
	assert := workloadNamed("assert-64")
	req := &apiv1.AssertRequest{RequestId: (&stub{line: rand.Text()}).lane(assert, assert.workers/2), Assert: newAssert()}
	req.RequestId.Sequence = 10_000
	for range octetsOver {
		f := p.fact(w.anyMailbox(chance))
		key, value := appendEtcdKey(nil, f), appendEtcdValue(nil, f)
		fill(req.Assert, f)
		o.Key += float64(len(key))
		o.Value += float64(len(value))
		o.Assert += float64(proto.Size(req))
		o.Put += float64(proto.Size(&etcdserverpb.PutRequest{Key: key, Value: value}))
	}
	for _, sum := range []*float64{&o.Key, &o.Value, &o.Assert, &o.Put} {
		*sum = rounded(*sum/octetsOver, 1)
	}
	return o
}
