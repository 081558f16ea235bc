//go:build peers

package powerloss

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/internal/logbuf"
)

// programs are what is tested and what is needed for it.
type programs struct{ rookeryd, rookeryctl, powerfs string }

// world is one node or three on new disks, and their writers.
type world struct {
	programs
	seed    uint64
	rng     *rand.Rand
	dir     string
	address string // 127.x.y.: of its nodes
	spawn   spawner
	disks   *disks
	report  *report
	volumes int // made so far

	nodes []*node
	admin []*client.Client // one for each node, past the gate
	load  *load

	story   []string // what was done to it
	reseeds int
}

// segment and logSize are small, so that the log is rolled, marked and released
// and snapshots are needed all the time.
const (
	segment = "64KiB"
	logSize = "64KiB"
)

func (w *world) note(format string, args ...any) {
	w.story = append(w.story, fmt.Sprintf(format, args...))
}

// begin makes n nodes with their writers. Power may be cut while they start for
// the first time.
func (w *world) begin(ctx context.Context, n int) error {
	w.note("%d nodes", n)
	var list, endpoints []string
	for i := range n {
		x := &node{name: fmt.Sprintf("n%d", i+1), program: w.rookeryd}
		host := fmt.Sprint(w.address, i+1)
		x.client, x.peer, x.http = host+":7905", host+":7906", host+":7907"
		if err := w.newVolume(x); err != nil {
			return err
		}
		list = append(list, x.name+"="+x.peer)
		endpoints = append(endpoints, x.client)
		w.nodes = append(w.nodes, x)
		c, err := client.Dial([]string{x.client}, client.WithTimeout(patience))
		if err != nil {
			return err
		}
		w.admin = append(w.admin, c)
	}
	for _, x := range w.nodes {
		x.flags = []string{"--log-segment", segment, "--log-size", logSize}
		if n > 1 {
			x.flags = append(x.flags, "--initial-cluster", strings.Join(list, ","))
		}
	}
	var err error
	if w.load, err = newLoad(endpoints, w.seed); err != nil {
		return err
	}
	if err := w.up(ctx, "first start", w.nodes, 2, 150); err != nil {
		return err
	}
	if err := w.settings(ctx); err != nil {
		return err
	}
	w.load.gate.let() // shut, if power was cut in the first start
	w.load.run(ctx)
	return nil
}

// settings takes the guard away, which would hold what the writers retract, and
// makes the change log small.
func (w *world) settings(ctx context.Context) error {
	_, err := w.admin[0].SetSettings(ctx, client.SettingsChange{GuardCount: new(uint32(1 << 30)), LogKeep: new(uint64(500))})
	if err != nil {
		return fmt.Errorf("settings: %w", err)
	}
	return nil
}

// newVolume gives a node a disk of its own.
func (w *world) newVolume(x *node) error {
	w.volumes++
	x.volume = fmt.Sprintf("v%d", w.volumes)
	x.point = filepath.Join(w.dir, x.volume)
	return w.disks.add(x.volume, x.point)
}

// end kills what runs and takes the disks away.
func (w *world) end() error {
	var errs []error
	for _, x := range w.nodes {
		x.kill()
	}
	if w.load != nil {
		errs = append(errs, w.load.close())
		_ = w.load.rest() // they end by their clients being closed
	}
	for _, c := range w.admin {
		errs = append(errs, c.Close())
	}
	for i := range w.volumes {
		errs = append(errs, w.disks.remove(fmt.Sprintf("v%d", i+1)))
	}
	return errors.Join(errs...)
}

// cycle lets the writers write, cuts power at a moment, and looks at what comes
// back.
func (w *world) cycle(ctx context.Context) error {
	m := w.draw()
	victim := w.nodes[w.rng.IntN(len(w.nodes))]
	cut := w.nodes
	if len(w.nodes) > 1 && w.rng.IntN(5) < 2 {
		cut = []*node{victim}
	}
	if err := w.reach(ctx, m, victim, cut); err != nil {
		return err
	}
	w.report.moment(m.name)
	if err := w.lose(cut); err != nil {
		return err
	}
	w.note("power cut, %s: %s", m.name, names(cut))
	victim.damaged = m.damaged
	err := w.up(ctx, m.name, cut, 3, 60)
	victim.damaged = false
	if err != nil {
		return err
	}
	if len(cut) < len(w.nodes) {
		return w.compare(ctx)
	}
	if err := w.judge(ctx); err != nil {
		return err
	}
	w.load.gate.let()
	return w.load.failed()
}

// draw returns a moment that fits the world.
func (w *world) draw() moment {
	for {
		m := moments[w.rng.IntN(len(moments))]
		if m.nodes == 0 || m.nodes == len(w.nodes) && (!m.damaged || w.reseeds < 2) {
			if len(w.nodes) > 1 && m.nodes == 0 && w.rng.IntN(2) == 0 {
				continue // the moments of several nodes are few
			}
			return m
		}
	}
}

// reach has the writers write until the moment has come.
func (w *world) reach(ctx context.Context, m moment, victim *node, cut []*node) error {
	w.disks.forgetCuts()
	time.Sleep(time.Duration(w.rng.IntN(60)) * time.Millisecond)
	if m.rules == nil {
		time.Sleep(time.Duration(w.rng.IntN(300)) * time.Millisecond)
		return nil
	}
	arm := func() error {
		for _, r := range m.rules(w.rng) {
			if r.Errno == 0 && r.Delay == 0 {
				r.Cut = volumesOf(cut)
			}
			w.note("%s: %v", victim.name, r)
			if err := w.disks.arm(victim.volume, r); err != nil {
				return err
			}
		}
		return nil
	}
	if m.begin == nil {
		if err := arm(); err != nil {
			return err
		}
	} else if err := w.beginMoment(ctx, m, victim, arm); err != nil {
		return err
	}
	limit := 1600 * time.Millisecond
	if m.nodes > 1 {
		limit = 4 * time.Second
	}
	select {
	case why := <-w.disks.cuts:
		w.note("%s", why)
		w.report.met.Add(1)
	case <-time.After(limit):
		w.note("it did not come to that")
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// beginMoment starts what a moment is in the midst of. arm is called when it may
// come.
func (w *world) beginMoment(ctx context.Context, m moment, victim *node, arm func() error) error {
	switch m.name {
	case "installation":
		if err := w.stop(victim); err != nil {
			return err
		}
		if err := w.outgrow(ctx, victim); err != nil {
			return err
		}
	case "re-seed":
		w.reseeds++
		if err := w.stop(victim); err != nil {
			return err
		}
		// A world may be so young that no mailbox has come to the file yet.
		for begun := time.Now(); ; {
			spoilt, err := spoil(victim.data())
			if err != nil {
				return err
			}
			if spoilt {
				break
			}
			if time.Since(begun) > patience {
				return fmt.Errorf("no mailbox came to the state of %s in %v", victim.name, patience)
			}
			if err := victim.start(w.spawn); err != nil {
				return err
			}
			if err := w.outgrow(ctx, victim); err != nil {
				return err
			}
			if err := w.stop(victim); err != nil {
				return err
			}
		}
	}
	if err := arm(); err != nil {
		return err
	}
	return m.begin(w, victim)
}

func volumesOf(nodes []*node) (list []string) {
	for _, x := range nodes {
		list = append(list, x.volume)
	}
	return list
}

func names(nodes []*node) string {
	var list []string
	for _, x := range nodes {
		list = append(list, x.name)
	}
	return strings.Join(list, ", ")
}

// lose ends the power of nodes in one moment, if a rule has not, and what runs
// on them.
func (w *world) lose(nodes []*node) error {
	err := w.disks.cut(volumesOf(nodes)...)
	if len(nodes) == len(w.nodes) {
		w.load.gate.shut()
	}
	for _, x := range nodes {
		x.kill()
	}
	w.report.cuts.Add(1)
	return err
}

// up starts nodes that have no power, with what their disks hold then. It may
// lose power again, up to again times, at one of the first calls.
func (w *world) up(ctx context.Context, after string, nodes []*node, again, calls int) error {
	for round := 0; ; round++ {
		w.disks.forgetCuts()
		for _, x := range nodes {
			if err := w.restore(x); err != nil {
				return err
			}
		}
		armed := round < again && w.rng.IntN(3) == 0
		if armed {
			x := nodes[w.rng.IntN(len(nodes))]
			r := rule{Op: "change", N: 1 + w.rng.IntN(calls), After: w.rng.IntN(2) == 0, Cut: volumesOf(nodes)}
			w.note("start, %s: %v", x.name, r)
			if err := w.disks.arm(x.volume, r); err != nil {
				return err
			}
		}
		cut, err := w.started(ctx, nodes, armed)
		if err != nil {
			return fmt.Errorf("after %s: %w", after, err)
		}
		if !cut {
			return nil
		}
		w.report.moment("start after " + after)
		w.note("power cut, start: %s", names(nodes))
		if err := w.lose(nodes); err != nil {
			return err
		}
	}
}

// orders are how directories may survive; see powerfs.
var orders = []string{"journal", "directories", "names"}

// restore mounts what is left of a node's disk.
func (w *world) restore(x *node) error {
	seed, order := w.rng.Uint64(), orders[w.rng.IntN(len(orders))]
	l, err := w.disks.restore(x.volume, seed, order)
	if err != nil {
		return err
	}
	w.note("%s: %d changes of %d files and %d of directories were not synced; seed %d, %s", x.name, l.Changes, l.Files, l.Moves, seed, order)
	w.report.lose(l)
	return nil
}

// started starts nodes and waits for all of them, or for a cut if one is due.
func (w *world) started(ctx context.Context, nodes []*node, armed bool) (cut bool, err error) {
	for _, x := range nodes {
		if err := x.start(w.spawn); err != nil {
			return false, err
		}
	}
	for _, x := range nodes {
		took, err := w.ready(ctx, x, armed)
		if errors.Is(err, errCut) {
			return true, nil
		}
		if err != nil {
			return false, err
		}
		w.report.start(took)
	}
	if w.disks != nil {
		if cut, err := w.passed(nodes); cut || err != nil {
			return cut, err
		}
	}
	for _, x := range nodes {
		if err := x.fine(); err != nil && !x.damaged {
			return false, err
		}
	}
	return false, nil
}

// passed makes sure that a cut that was due is not due any more, or has come.
func (w *world) passed(nodes []*node) (cut bool, err error) {
	for _, x := range nodes {
		if err := w.disks.forget(x.volume); err != nil {
			return false, err
		}
	}
	select {
	case why := <-w.disks.cuts:
		w.note("%s", why)
		return true, nil
	default:
		return false, nil
	}
}

var errCut = errors.New("power was cut")

// ready waits until a node answers, or power is cut.
func (w *world) ready(ctx context.Context, x *node, armed bool) (time.Duration, error) {
	if !armed {
		return x.ready()
	}
	type result struct {
		took time.Duration
		err  error
	}
	done := make(chan result, 1)
	go func() {
		took, err := x.ready()
		done <- result{took, err}
	}()
	select {
	case r := <-done:
		if r.err != nil {
			// It may have ended because of the cut.
			select {
			case why := <-w.disks.cuts:
				w.note("%s", why)
				return 0, errCut
			case <-time.After(100 * time.Millisecond):
			}
		}
		return r.took, r.err
	case why := <-w.disks.cuts:
		w.note("%s", why)
		x.kill()
		<-done
		return 0, errCut
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// judge asks each node while no writer is let in.
func (w *world) judge(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*patience)
	defer cancel()
	for i, x := range w.nodes {
		if err := w.load.judge(ctx, w.admin[i]); err != nil {
			return fmt.Errorf("%s: %w%s", x.name, err, w.last())
		}
	}
	return nil
}

// last is what the nodes have said last.
func (w *world) last() string {
	var b strings.Builder
	for _, x := range w.nodes {
		fmt.Fprintf(&b, "\n%s says:\n%s", x.name, tail(x.log.String()))
	}
	return b.String()
}

// compare asks each node once all writers have their answers, and has them go
// on.
func (w *world) compare(ctx context.Context) error {
	if err := w.load.rest(); err != nil {
		return err
	}
	if err := w.judge(ctx); err != nil {
		return err
	}
	w.load.run(ctx)
	return nil
}

// compact rewrites the state file.
func compact(w *world, x *node) error {
	c := w.admin[slices.Index(w.nodes, x)]
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		// It may be cut, or be refused; that is seen elsewhere.
		_, _ = c.Compact(ctx, x.name, true, func(uint64, uint64) error { return nil })
	}()
	return nil
}

// terminate asks the process to end.
func terminate(_ *world, x *node) error { return x.cmd.Process.Signal(syscall.SIGTERM) }

// lag starts a node that was stopped.
func lag(w *world, x *node) error { return x.start(w.spawn) }

// stop ends a process in order.
func (w *world) stop(x *node) error {
	if err := terminate(w, x); err != nil {
		return err
	}
	select {
	case <-x.ended:
		x.cmd = nil
		return nil
	case <-time.After(patience):
		return fmt.Errorf("%s runs %v after SIGTERM:\n%s", x.name, patience, tail(x.log.String()))
	}
}

// outgrow waits until the log has gone on beyond what is kept for x.
func (w *world) outgrow(ctx context.Context, x *node) error {
	before, _ := w.load.counts()
	for begun := time.Now(); time.Since(begun) < patience; time.Sleep(20 * time.Millisecond) {
		if now, _ := w.load.counts(); now > before+700 {
			return nil
		}
		if err := w.load.failed(); err != nil {
			return err
		}
	}
	return &trouble{errors.New("the writers are too slow")}
}

// spoil damages the state file of a stopped node, which is to notice; false if
// there is no mailbox in it to damage.
func spoil(data string) (bool, error) {
	path := filepath.Join(data, "shard-1", "state.db")
	b, err := os.ReadFile(path)
	if err != nil || !strings.Contains(string(b), "lrswipkxtecdan") {
		return false, err
	}
	// Everywhere: one of the places may be a page that is not in use.
	b = []byte(strings.ReplaceAll(string(b), "lrswipkxtecdan", "lrswipkxtecdaX"))
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return false, err
	}
	_, err = f.WriteAt(b, 0)
	return true, errors.Join(err, f.Sync(), f.Close())
}

// ctl runs rookeryctl on the files of a stopped node until it succeeds; its power
// is cut now and then. done, of what it prints, tells that an earlier run had
// come to its end.
func (w *world) ctl(x *node, done string, args ...string) error {
	w.disks.forgetCuts()
	for round := 0; ; round++ {
		if round > 0 {
			if err := w.restore(x); err != nil {
				return err
			}
		}
		armed := round < 3 && w.rng.IntN(3) > 0
		if armed {
			r := rule{Op: "change", N: 1 + w.rng.IntN(60), After: w.rng.IntN(2) == 0, Cut: []string{x.volume}}
			w.note("rookeryctl: %v", r)
			if err := w.disks.arm(x.volume, r); err != nil {
				return err
			}
		}
		cmd, out := exec.Command(w.rookeryctl, args...), &logbuf.Buffer{}
		cmd.Stdout, cmd.Stderr = out, out
		if err := w.spawn.start(cmd); err != nil {
			return err
		}
		err := cmd.Wait() // it fails by itself when power is cut
		if err := w.disks.forget(x.volume); err != nil {
			return err
		}
		select {
		case why := <-w.disks.cuts:
			w.note("power cut: %s", why)
			w.report.cuts.Add(1)
			w.report.moment("rookeryctl " + args[0])
			continue
		default:
		}
		if err == nil || strings.Contains(out.String(), done) {
			// What it has said is done, is.
			w.report.cuts.Add(1)
			w.report.moment("after rookeryctl " + args[0])
			return errors.Join(w.disks.cut(x.volume), w.restore(x))
		}
		return fmt.Errorf("rookeryctl %s: %w\n%s", strings.Join(args, " "), err, tail(out.String()))
	}
}

// restored ends a world of one node by a backup and a restore of it.
func (w *world) restored(ctx context.Context) error {
	if err := w.load.rest(); err != nil {
		return err
	}
	file := filepath.Join(w.dir, "backup.snap")
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	_, err = w.admin[0].SaveSnapshot(ctx, f, func(uint64) {})
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	x := w.nodes[0]
	x.kill()
	if err := w.newVolume(x); err != nil {
		return err
	}
	w.note("restored from a backup")
	if err := w.ctl(x, "is there already", "snapshot", "restore", file, "--data", x.data(), "--name", x.name); err != nil {
		return err
	}
	return w.reborn(ctx, x)
}

// recovered ends a world of three nodes, of which one survives.
func (w *world) recovered(ctx context.Context) error {
	if err := w.load.rest(); err != nil {
		return err
	}
	if err := w.judge(ctx); err != nil { // so each node has everything
		return err
	}
	if err := w.lose(w.nodes); err != nil {
		return err
	}
	i := w.rng.IntN(len(w.nodes))
	x := w.nodes[i]
	w.nodes, w.admin[0], w.admin[i] = []*node{x}, w.admin[i], w.admin[0]
	if err := w.restore(x); err != nil {
		return err
	}
	w.note("recovered from %s", x.name)
	if err := w.ctl(x, "only voter already", "recover", "--survivor", x.name, "--data", x.data(), "--yes"); err != nil {
		return err
	}
	return w.reborn(ctx, x)
}

// reborn starts the one node of a new incarnation, which must have everything.
func (w *world) reborn(ctx context.Context, x *node) error {
	x.flags = []string{"--log-segment", segment, "--log-size", logSize}
	if _, err := w.started(ctx, []*node{x}, false); err != nil {
		return err
	}
	// Revisions are others now, and a client that has seen the life before.
	for _, wr := range w.load.writers {
		for _, h := range wr.truth {
			h.revision = 0
		}
	}
	if err := w.admin[0].Close(); err != nil {
		return err
	}
	var err error
	if w.admin[0], err = client.Dial([]string{x.client}, client.WithTimeout(patience)); err != nil {
		return err
	}
	return w.load.judge(ctx, w.admin[0])
}
