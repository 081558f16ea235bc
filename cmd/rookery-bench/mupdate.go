package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/rookery-mail/rookery/adapter/mupdate"
	"github.com/rookery-mail/rookery/adapter/mupdate/mupdateclient"
	"github.com/rookery-mail/rookery/internal/obs"
)

// mupdateSettings are what a comparison of MUPDATE masters is told.
type mupdateSettings struct {
	settings
	cyrmaster string
	cyrus     string // the directory of Cyrus's programs
}

// Both masters let this login in. Rookery has another for each backend besides.
const (
	benchLogin    = "bench"
	benchPassword = "bench-secret"
)

// parseMupdate reads the command line of a comparison of masters.
func parseMupdate(args []string, out io.Writer) (mupdateSettings, error) {
	s := mupdateSettings{}
	var populations string
	fs := flag.NewFlagSet("rookery-bench mupdate", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.StringVar(&populations, "population", "100k,1M", "how many mailboxes: `sizes` separated by commas")
	fs.Uint64Var(&s.seed, "seed", 1, "which population of that size, and which calls")
	fs.StringVar(&s.rookeryd, "rookeryd", besideMe("rookeryd"), "the `program` of a node")
	fs.StringVar(&s.cyrmaster, "cyrmaster", "/usr/sbin/cyrmaster", "Cyrus's master `program`")
	fs.StringVar(&s.cyrus, "cyrus", "/usr/lib/cyrus/bin", "the `directory` of Cyrus's other programs")
	fs.StringVar(&s.dir, "dir", "", "where data go: a `directory` on the disk to be measured; default: a new one in the system's place for those")
	fs.IntVar(&s.rounds, "runs", 3, "how many runs of each load each figure is the median of")
	fs.DurationVar(&s.duration, "duration", 5*time.Second, "how long one run of FIND or ACTIVATE is")
	fs.StringVar(&s.format, "o", "table", "what is printed: "+strings.Join(formats, ", "))
	fs.StringVar(&s.jsonFile, "json", "", "`file` to save everything in, each run included")
	if err := parseFlags(fs, args, out); err != nil {
		return s, err
	}
	if fs.NArg() > 0 {
		return s, fmt.Errorf("%w: %q is no flag; `rookery-bench mupdate --help` lists them", errUsage, fs.Arg(0))
	}
	for size := range strings.SplitSeq(populations, ",") {
		n, err := parseSize(size)
		if err != nil {
			return s, err
		}
		s.populations = append(s.populations, n)
	}
	switch {
	case s.rounds < 1 || s.duration <= 0:
		return s, fmt.Errorf("%w: --runs and --duration must be above zero", errUsage)
	case !slices.Contains(formats, s.format):
		return s, fmt.Errorf("%w: -o %s: there are %s", errUsage, s.format, strings.Join(formats, ", "))
	}
	return s, nil
}

// A master is a MUPDATE master that was filled and is measured.
type master interface {
	address() string
	// login is the name of a login that may speak for server s.
	login(s int) string
	launch() error
	stop(context.Context) error
	kill() error
	// alive is why it is not.
	alive() error
	memory() (uint64, error)
}

// A masterLoad is one thing that both masters do, one after the other.
type masterLoad struct {
	name    string
	workers int // 0: it is done once a run, and the figure is how often a second
	do      func(m *masters, ctx context.Context, at master, worker int) (call, func() error, error)
	// wanted of the ratio of Rookery's rate to Cyrus's; 0: nothing.
	atLeast float64
}

// masterLoads are run in this order.
var masterLoads = []masterLoad{
	{name: "FIND, 1 connection", workers: 1, do: (*masters).find, atLeast: 1},
	{name: "FIND, 16 connections", workers: 16, do: (*masters).find, atLeast: 1},
	{name: "ACTIVATE, 16 connections", workers: 16, do: (*masters).activate, atLeast: 5},
	{name: "UPDATE of everything", do: (*masters).update, atLeast: 2},
	{name: "LIST of one server of ten", do: (*masters).listOne},
	{name: "LIST of a server with nothing", do: (*masters).listNone},
}

// masters is a comparison of Rookery's MUPDATE with Cyrus's master at one population:
// the same client, on the same disk, by turns.
type masters struct {
	mupdateSettings
	pop      *population
	dir      string
	progress io.Writer
	rookery  *rookeryMaster
	cyrus    *cyrusMaster
	written  atomic.Uint32 // the partitions that ACTIVATE has named
	result   mastersReport
}

// compareMasters compares at every population that was asked for. What was found until
// an error is in the report.
func compareMasters(ctx context.Context, s mupdateSettings, progress io.Writer) (r report, err error) {
	b := bench{settings: s.settings}
	dir, cleanup, err := b.workDir()
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, cleanup()) }()
	if dir, err = filepath.Abs(dir); err != nil {
		return r, err
	}
	r = report{Version: obs.Version(), Begun: time.Now().UTC().Truncate(time.Second), Machine: thisMachine(dir), Rounds: s.rounds, Seconds: s.duration.Seconds()}
	for _, size := range s.populations {
		pop, err := newPopulation(size, s.seed)
		if err != nil {
			return r, fmt.Errorf("%w: %w", errUsage, err)
		}
		m := &masters{mupdateSettings: s, pop: pop, dir: filepath.Join(dir, "rookery-mupdate-"+formatSize(size)), progress: progress}
		err = m.run(ctx)
		if len(m.result.Loads) > 0 {
			r.Masters = append(r.Masters, m.result)
			r.Verdicts = r.verdicts()
		}
		if err != nil {
			return r, fmt.Errorf("%s mailboxes: %w", formatSize(size), err)
		}
	}
	return r, nil
}

func (m *masters) say(format string, args ...any) {
	fmt.Fprintf(m.progress, "%s  %s: %s\n", time.Now().Format(time.TimeOnly), formatSize(m.pop.mailboxes), fmt.Sprintf(format, args...))
}

func (m *masters) run(ctx context.Context) (err error) {
	m.result.Mailboxes = m.pop.mailboxes
	// Cyrus gives up root, and has to find its files all the same.
	if err := os.MkdirAll(m.dir, 0o755); err != nil {
		return err
	}
	if m.mupdateSettings.dir == "" { // then what it lies in was made for this run
		if err := os.Chmod(filepath.Dir(m.dir), 0o755); err != nil {
			return err
		}
	}
	defer func() { err = errors.Join(err, os.RemoveAll(m.dir)) }()
	if err := allMayEnter(m.dir); err != nil {
		return err
	}
	if m.cyrus, err = newCyrusMaster(m.cyrmaster, m.mupdateSettings.cyrus, filepath.Join(m.dir, "cyrus")); err != nil {
		return err
	}
	m.say("fill Rookery")
	if m.rookery, err = newRookeryMaster(ctx, m.rookeryd, filepath.Join(m.dir, "rookery"), m.pop); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.rookery.kill(), m.cyrus.kill()) }()
	m.say("fill Cyrus")
	if err := m.cyrus.fill(ctx, m.rookery.address()); err != nil {
		return err
	}
	if err := m.cyrus.launch(); err != nil {
		return err
	}
	both := []master{m.rookery, m.cyrus}
	for _, at := range both {
		if _, err := m.await(ctx, at); err != nil {
			return err
		}
	}
	if m.result.Cyrus, err = m.version(ctx, m.cyrus); err != nil {
		return err
	}
	for _, load := range masterLoads {
		result := masterResult{Load: load.name, AtLeast: load.atLeast}
		for round := range m.rounds {
			for i := range both {
				side := (i + round) % 2 // by turns who is first
				m.say("run %d of %d: %s: %s", round+1, m.rounds, load.name, masterNames[side])
				rate, err := m.round(ctx, load, both[side])
				if err != nil {
					return fmt.Errorf("%s: %s: %w", load.name, masterNames[side], err)
				}
				result.Rates[side] = append(result.Rates[side], rate)
			}
		}
		result.settle()
		m.result.Loads = append(m.result.Loads, result)
	}
	for i, at := range both {
		if m.result.Memory[i], err = at.memory(); err != nil {
			return err
		}
	}
	for _, load := range []masterStart{{name: syncLoad, do: (*masters).firstSync, atLeast: 1}, {name: startLoad, do: (*masters).restart}} {
		result := masterResult{Load: load.name, AtLeast: load.atLeast}
		for round := range m.rounds {
			for i := range both {
				side := (i + round) % 2
				m.say("run %d of %d: %s: %s", round+1, m.rounds, load.name, masterNames[side])
				took, err := load.do(m, ctx, both[side])
				if err != nil {
					return fmt.Errorf("%s: %s: %w", load.name, masterNames[side], err)
				}
				result.Rates[side] = append(result.Rates[side], 1/took.Seconds())
			}
		}
		result.settle()
		m.result.Loads = append(m.result.Loads, result)
	}
	return nil
}

// A masterStart starts something, and says how long that took.
type masterStart struct {
	name    string
	do      func(*masters, context.Context, master) (time.Duration, error)
	atLeast float64 // as of a masterLoad
}

// round has one master do a load and returns how often a second it was done.
func (m *masters) round(ctx context.Context, load masterLoad, at master) (rate float64, err error) {
	var calls []call
	for worker := range max(load.workers, 1) {
		do, end, err := load.do(m, ctx, at, worker)
		if err != nil {
			return 0, err
		}
		defer func() { err = errors.Join(err, end()) }()
		calls = append(calls, do)
	}
	if load.workers == 0 {
		begin := time.Now()
		if err := calls[0](ctx); err != nil {
			return 0, err
		}
		return 1 / time.Since(begin).Seconds(), nil
	}
	r := closedLoop(ctx, calls, m.duration)
	if r.errors > 0 {
		return 0, r.sample
	}
	return r.rate(), ctx.Err()
}

// connect logs in, as server s if at tells servers apart.
func (m *masters) connect(ctx context.Context, at master, login string) (*mupdateclient.Client, error) {
	c, err := mupdateclient.Dial(ctx, at.address(), mupdateclient.Options{Mechanism: "PLAIN"})
	if err != nil {
		return nil, err
	}
	if err := c.Login(ctx, login, benchPassword); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// version is what a master's greeting says of it.
func (m *masters) version(ctx context.Context, at master) (string, error) {
	c, err := m.connect(ctx, at, benchLogin)
	if err != nil {
		return "", err
	}
	defer c.Close()
	for _, text := range c.Greeting().Text {
		if text = strings.Trim(text, `"`); text != "" && text[0] >= '0' && text[0] <= '9' {
			return text, nil
		}
	}
	return "", nil
}

// await waits until a master that was launched answers FIND, and says when it did.
func (m *masters) await(ctx context.Context, at master) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		err := func() error {
			c, err := m.connect(ctx, at, benchLogin)
			if err != nil {
				return err
			}
			defer c.Close()
			_, found, err := c.Find(ctx, string(m.pop.name(0)))
			if err == nil && !found {
				return fmt.Errorf("%w: FIND of a mailbox that it was filled with finds nothing", errWrong)
			}
			return err
		}()
		now := time.Now()
		if err == nil || errors.Is(err, errWrong) {
			return now, err
		}
		if dead := at.alive(); dead != nil {
			return now, dead
		}
		select {
		case <-ctx.Done():
			return now, fmt.Errorf("%w: the master does not answer: %w", ctx.Err(), err)
		case <-time.After(time.Millisecond):
		}
	}
}

// restart stops a master and returns how long it took from its start to its answer.
func (m *masters) restart(ctx context.Context, at master) (time.Duration, error) {
	if err := at.stop(ctx); err != nil {
		return 0, err
	}
	begin := time.Now()
	if err := at.launch(); err != nil {
		return 0, err
	}
	answered, err := m.await(ctx, at)
	return answered.Sub(begin), err
}

// firstSync starts a frontend of Cyrus that knows nothing and returns how long it took
// until it had everything that the master has.
func (m *masters) firstSync(ctx context.Context, at master) (took time.Duration, err error) {
	dir := filepath.Join(m.dir, "frontend")
	f, err := newCyrusFrontend(m.cyrmaster, m.mupdateSettings.cyrus, dir, at.address())
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	begin := time.Now()
	if err := f.launch(); err != nil {
		return 0, err
	}
	err = f.awaitGreeting(ctx)
	took = time.Since(begin)
	if err = errors.Join(err, f.stop(ctx)); err != nil {
		return 0, errors.Join(err, f.kill())
	}
	list, err := f.run(filepath.Join(f.programs, "ctl_mboxlist"), nil, "-C", f.conf(), "-d")
	if err != nil {
		return 0, err
	}
	if n := strings.Count(list, "\n\"user."); n != m.pop.mailboxes {
		return 0, fmt.Errorf("%w: the frontend has %d of %d mailboxes", errWrong, n, m.pop.mailboxes)
	}
	return took, nil
}

// find asks for mailboxes at random.
func (m *masters) find(ctx context.Context, at master, worker int) (call, func() error, error) {
	c, err := m.connect(ctx, at, benchLogin)
	if err != nil {
		return nil, nil, err
	}
	chance := rand.New(rand.NewPCG(m.seed, uint64(worker)))
	return func(ctx context.Context) error {
		box := chance.IntN(m.pop.mailboxes)
		r, found, err := c.Find(ctx, string(m.pop.name(box)))
		if err != nil {
			return err
		}
		if want := string(serverName(m.pop.server(box))) + "!"; !found || !strings.HasPrefix(r.Location, want) {
			return fmt.Errorf("%w: FIND of %s: %v, %q; it is at %s", errWrong, m.pop.name(box), found, r.Location, want)
		}
		return nil
	}, c.Close, nil
}

// activate states mailboxes at random, each on a partition that it was not on: as a
// backend, of its own mailboxes.
func (m *masters) activate(ctx context.Context, at master, worker int) (call, func() error, error) {
	server := worker % servers
	c, err := m.connect(ctx, at, at.login(server))
	if err != nil {
		return nil, nil, err
	}
	chance := rand.New(rand.NewPCG(m.seed, uint64(worker)))
	return func(ctx context.Context) error {
		box := chance.IntN(m.pop.mailboxes)
		for m.pop.server(box) != server {
			box = chance.IntN(m.pop.mailboxes)
		}
		f := m.pop.fact(box)
		return c.Activate(ctx, string(f.name), fmt.Sprintf("%s!p%d", serverName(server), m.written.Add(1)), f.acl)
	}, c.Close, nil
}

// update asks for everything, as a frontend that starts does.
func (m *masters) update(ctx context.Context, at master, _ int) (call, func() error, error) {
	c, err := m.connect(ctx, at, benchLogin)
	if err != nil {
		return nil, nil, err
	}
	return func(ctx context.Context) error {
		n := 0
		listed := errors.New("listed")
		err := c.Update(ctx, func(mupdateclient.Record) error { n++; return nil }, func() error { return listed }, 0, nil)
		if err == listed {
			err = nil
		}
		if err == nil && n != m.pop.mailboxes {
			err = fmt.Errorf("%w: UPDATE lists %d of %d mailboxes", errWrong, n, m.pop.mailboxes)
		}
		return err
	}, c.Close, nil
}

func (m *masters) listOne(ctx context.Context, at master, _ int) (call, func() error, error) {
	want := 0
	for range m.pop.onServer(0) {
		want++
	}
	return m.list(ctx, at, string(serverName(0))+"!", want)
}

func (m *masters) listNone(ctx context.Context, at master, _ int) (call, func() error, error) {
	return m.list(ctx, at, "nobody.mail.example.net!", 0)
}

// list asks for what one server has, as ctl_mboxlist -m does.
func (m *masters) list(ctx context.Context, at master, prefix string, want int) (call, func() error, error) {
	c, err := m.connect(ctx, at, benchLogin)
	if err != nil {
		return nil, nil, err
	}
	return func(ctx context.Context) error {
		n := 0
		for _, err := range c.List(ctx, prefix) {
			if err != nil {
				return err
			}
			n++
		}
		if n != want {
			return fmt.Errorf("%w: LIST %s has %d mailboxes; they are %d", errWrong, prefix, n, want)
		}
		return nil
	}, c.Close, nil
}

// rookeryMaster is a node that answers MUPDATE.
type rookeryMaster struct {
	*node
	mupdate string
}

// newRookeryMaster starts a node and fills it with the population.
func newRookeryMaster(ctx context.Context, program, dir string, pop *population) (*rookeryMaster, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	ports, err := freePorts(1)
	if err != nil {
		return nil, err
	}
	n, err := newNode(program, dir)
	if err != nil {
		return nil, err
	}
	users := filepath.Join(dir, "users")
	if err := writeLogins(users); err != nil {
		return nil, err
	}
	n.args = append(n.args, "--listen-mupdate", ports[0], "--mupdate-users", users, "--mupdate-clear")
	r := &rookeryMaster{n, ports[0]}
	if err := n.start(ctx); err != nil {
		return nil, err
	}
	_, err = importAll(ctx, []string{n.client}, pop, func(int) {})
	if err == nil {
		err = settle(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, n.kill())
	}
	return r, nil
}

// writeLogins makes a login for every server, and one that is bound to none.
func writeLogins(file string) error {
	var text []byte
	add := func(l mupdate.Login) error {
		line, err := l.Line()
		text = append(append(text, line...), '\n')
		return err
	}
	err := add(mupdate.Login{Name: benchLogin, Password: benchPassword})
	for s := range servers {
		err = errors.Join(err, add(mupdate.Login{Name: serverLogin(s), Password: benchPassword, Server: serverName(s)}))
	}
	return errors.Join(err, os.WriteFile(file, text, 0o600))
}

func serverLogin(s int) string { return fmt.Sprintf("be%02d", s+1) }

func (r *rookeryMaster) address() string { return r.mupdate }

func (r *rookeryMaster) login(s int) string { return serverLogin(s) }

func (r *rookeryMaster) alive() error {
	if r.process.exited() {
		return fmt.Errorf("%s ended: %v; see %s", r.program, r.process.err, filepath.Join(r.dir, "rookeryd.log"))
	}
	return nil
}

func (r *rookeryMaster) memory() (uint64, error) { return r.process.memory() }
