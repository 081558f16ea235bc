package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/rookery-mail/rookery/directory/machine"
	"github.com/rookery-mail/rookery/internal/obs"
	"github.com/rookery-mail/rookery/raftstore"
	"github.com/rookery-mail/rookery/raftstore/peer"
	"github.com/rookery-mail/rookery/server"
)

const (
	// reseedsAllowed within reseedsWithin: a node that then differs again has
	// something that another state does not cure.
	reseedsAllowed = 3
	reseedsWithin  = time.Hour
	// reseedLook is how often a quarantined node looks whom it can ask, and
	// reseedSay how often it says so as long as it can ask nobody.
	reseedLook = 200 * time.Millisecond
	reseedSay  = 10 * time.Second
	// heardLately is how recently a node must have announced itself to be asked.
	heardLately = 3 * time.Second
	// uncompared is how long a node is not asked whose state was not compared with
	// a third one's yet: there may be nobody to compare it with.
	uncompared = 5 * time.Second
	// A node that had no snapshot to give is left alone for a while, each time longer.
	firstReseedWait, longReseedWait = time.Second, 30 * time.Second
	// brokenTries is how often a state that cannot be put in place is fetched anew.
	brokenTries = 3
)

// reseedable tells whether a node ended because its state is not to be used.
func reseedable(err error) bool {
	return errors.Is(err, raftstore.ErrDiverged) || errors.Is(err, raftstore.ErrReseed) || errors.Is(err, raftstore.ErrCorrupt)
}

// reseed gets a node another node's state. why is what it ended with. It serves
// nothing to clients meanwhile; the other nodes hear that it is quarantined. The
// old state is kept until the new one is proved.
//
// It returns nil when the node can be started anew, or ctx has ended.
func reseed(ctx context.Context, s settings, why error, log *slog.Logger) (err error) {
	if !errors.Is(why, raftstore.ErrDiverged) {
		why = fmt.Errorf("%w: %w", raftstore.ErrDiverged, why)
	}
	n := &node{s: s, log: log, registry: obs.NewRegistry(), rules: machine.New()}
	if n.notify, err = newNotifier(); err != nil {
		return fmt.Errorf("tell systemd: %w", err)
	}
	defer n.notify.Close()
	if n.files, err = s.certificates(log); err != nil {
		return err
	}
	n.files.Register(n.registry)
	watching, end := context.WithCancel(ctx)
	defer end()
	go n.files.Watch(watching)
	q, err := raftstore.OpenQuarantined(n.storeConfig(nil))
	if err != nil {
		return fmt.Errorf("%w; another node's state cannot take its place: %w; if the cluster has other nodes, move %s away, start this one with an empty directory and --join, and run `rookeryctl member replace %s`",
			why, err, s.data, s.name)
	}
	defer func() { err = errors.Join(err, q.Close()) }()
	if len(q.Status().Members) < 2 {
		return fmt.Errorf("%w; no other node has a copy: restore a backup with `rookeryctl snapshot restore`, or move %s away, start with an empty directory, and have every backend's list imported again with `rookeryctl import`",
			why, s.data)
	}
	done := reseeds{filepath.Join(s.data, "reseeds")}
	if err := done.check(time.Now()); err != nil {
		return fmt.Errorf("%w; %w; replace this node on other hardware (`rookeryctl member replace %s`), or remove %s to have it try again", why, err, s.name, done.path)
	}

	if n.listeners, err = listen(s); err != nil {
		return err
	}
	defer n.listeners.close()
	n.listeners.secure(n.files, log)
	if n.info, err = n.advertised(); err != nil {
		return err
	}
	// Clients are to find out at once that they must ask another node.
	if err := n.listeners.client.Close(); err != nil {
		return err
	}
	r := newReseeder(q, why, log)
	if n.transport, err = n.newTransport(0, func() peer.Announcement {
		return peer.Announcement{
			Name: s.name, ClientAddress: n.info.ClientAddress, Site: n.info.Site, Version: obs.Version(),
			Applied: q.Status().Applied, Quarantined: true,
		}
	}, r.hear); err != nil {
		return err
	}
	defer n.transport.Close()
	n.transport.Attach(q, nil)
	r.transport = n.transport

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return n.transport.Serve(n.listeners.peer) })
	checks := []check{{"state", func() error { return fmt.Errorf("this node is quarantined: %w", why) }, nil}}
	g.Go(func() error {
		return obs.Serve(gctx, n.listeners.http, web(checks, func() bool { return false }, n.registry, log), log)
	})
	if n.listeners.debug != nil {
		g.Go(func() error { return obs.Serve(gctx, n.listeners.debug, obs.DebugHandler(), log) })
	}
	g.Go(func() error {
		defer n.transport.Close() // for Serve to return
		select {
		case <-n.transport.Failed():
			return n.transport.Err()
		case <-gctx.Done():
			return nil
		}
	})
	g.Go(func() error {
		defer cancel()
		if err := r.run(gctx); err != nil || gctx.Err() != nil {
			return err
		}
		return done.add(time.Now())
	})
	g.Go(func() error { return n.beatQuarantined(gctx) })
	if err := n.notify.tell("READY=1\nSTATUS=quarantined, gets another node's state"); err != nil {
		log.Warn("systemd was not told", "err", err)
	}
	return g.Wait()
}

// beatQuarantined tells systemd that the process goes round: there is no state
// whose reading would prove more.
func (n *node) beatQuarantined(ctx context.Context) error {
	every, err := n.notify.watchdog()
	if err != nil || every == 0 {
		return err
	}
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
			_ = n.notify.tell("WATCHDOG=1")
		}
	}
}

// reseeder finds a node whose state is good and takes it.
type reseeder struct {
	q         *raftstore.Quarantined
	why       error
	transport *peer.Transport
	log       *slog.Logger
	begun     time.Time
	alarmed   bool                // the alarm was raised
	failed    map[uint64]*failure // by node

	mu   sync.Mutex
	sums map[uint64]map[uint64]uint64 // what each node said of its state: index -> sum
}

// failure is a node that had no snapshot to give.
type failure struct {
	err   error
	tries int
	until time.Time // when to ask again
}

func newReseeder(q *raftstore.Quarantined, why error, log *slog.Logger) *reseeder {
	return &reseeder{q: q, why: why, log: log, begun: time.Now(), failed: map[uint64]*failure{}, sums: map[uint64]map[uint64]uint64{}}
}

// keptSums is how many sums of each node are remembered; one comes a second.
const keptSums = 64

// hear takes what a node announces.
func (r *reseeder) hear(from uint64, a peer.Announcement) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case a.Quarantined:
		delete(r.sums, from)
		return
	case a.SumIndex == 0:
		return
	case r.sums[from] == nil:
		r.sums[from] = map[uint64]uint64{}
	}
	said := r.sums[from]
	if said[a.SumIndex] = a.Sum; len(said) > keptSums {
		oldest := a.SumIndex
		for index := range said {
			oldest = min(oldest, index)
		}
		delete(said, oldest)
	}
}

// compared tells what came of comparing a node's state with the other nodes':
// whether it agrees with one of them, and whether it differs from one.
func (r *reseeder) compared(node uint64) (agrees, differs bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for other, said := range r.sums {
		if other == node {
			continue
		}
		newest, same := uint64(0), false
		for index, sum := range r.sums[node] {
			if theirs, ok := said[index]; ok && index >= newest {
				newest, same = index, theirs == sum
			}
		}
		if newest > 0 {
			agrees, differs = agrees || same, differs || !same
		}
	}
	return agrees, differs
}

// run returns when the state is another node's, or ctx has ended.
func (r *reseeder) run(ctx context.Context) error {
	broken := 0
	saidAt := r.begun.Add(uncompared - reseedSay) // it takes a moment to hear the others
	for ctx.Err() == nil {
		r.raise(ctx)
		from, why := r.choose(time.Now())
		if from == nil {
			if time.Since(saidAt) > reseedSay {
				saidAt = time.Now()
				r.log.Warn("no other node has a state to give yet", "err", why)
			}
			rest(ctx, reseedLook)
			continue
		}
		r.log.Info("another node's state is fetched", "peer", from.Name)
		begun := time.Now()
		err := r.take(ctx, from)
		if err == nil {
			r.log.Info("re-seeded", "peer", from.Name, "dur", time.Since(begun))
			return nil
		}
		if ctx.Err() != nil {
			return nil
		}
		r.log.Warn("not re-seeded", "peer", from.Name, "err", err)
		if errors.Is(err, errUnusable) {
			if broken++; broken == brokenTries {
				return fmt.Errorf("%w; of the states of other nodes none could be put in its place: %w", r.why, err)
			}
		}
		r.fail(from.ID, err, time.Now())
	}
	return nil
}

func (r *reseeder) fail(node uint64, err error, now time.Time) {
	f := r.failed[node]
	if f == nil {
		f = &failure{}
		r.failed[node] = f
	}
	f.err, f.until = err, now.Add(min(firstReseedWait<<min(f.tries, 10), longReseedWait))
	f.tries++
}

// choose returns the node to ask, or why there is none: of those that are
// reached, are not behind this one's state and differ from nobody, one that
// agrees with a third, does not lead, and is furthest.
func (r *reseeder) choose(now time.Time) (*raftstore.Member, string) {
	return r.chooseOf(r.q.Status(), r.transport.Heard(), now)
}

func (r *reseeder) chooseOf(st raftstore.Status, heard map[uint64]peer.Heard, now time.Time) (*raftstore.Member, string) {
	type candidate struct {
		member         *raftstore.Member
		agrees, leader bool
		applied        uint64
	}
	var list []candidate
	var reasons []string
	for i := range st.Members {
		m := &st.Members[i]
		if m.ID == st.Identity.Node {
			continue
		}
		not := func(format string, args ...any) {
			reasons = append(reasons, m.Name+" "+fmt.Sprintf(format, args...))
		}
		h, ok := heard[m.ID]
		agrees, differs := r.compared(m.ID)
		failed := r.failed[m.ID]
		switch {
		case !ok || h.Since > heardLately:
			not("is not heard")
		case h.Quarantined:
			not("is quarantined too")
		case differs:
			not("differs from another node")
		case h.Applied < st.Applied:
			not("is at index %d, this node was at %d", h.Applied, st.Applied)
		case !agrees && now.Sub(r.begun) < uncompared:
			not("was not compared with another node yet")
		case failed != nil && now.Before(failed.until):
			not("is asked again later: %v", failed.err)
		default:
			list = append(list, candidate{m, agrees, m.ID == st.Leader, h.Applied})
		}
	}
	if len(list) == 0 {
		return nil, strings.Join(reasons, "; ")
	}
	first := func(a, b bool) int { // which has it comes first
		switch {
		case a == b:
			return 0
		case a:
			return -1
		}
		return 1
	}
	return slices.MinFunc(list, func(a, b candidate) int {
		return cmp.Or(first(a.agrees, b.agrees), first(!a.leader, !b.leader), cmp.Compare(b.applied, a.applied), cmp.Compare(a.member.Name, b.member.Name))
	}).member, ""
}

// errUnusable: a snapshot came whole and could not be put in place.
var errUnusable = errors.New("its state cannot be put in place")

// take fetches a node's state and puts it in the place of this one's.
func (r *reseeder) take(ctx context.Context, from *raftstore.Member) error {
	path := filepath.Join(r.q.IncomingDir(), "reseed.snap")
	if err := r.transport.FetchSnapshot(ctx, r.q.Identity(), from.ID, r.q.Status().Applied, path); err != nil {
		return err
	}
	if _, differs := r.compared(from.ID); differs || r.transport.Heard()[from.ID].Quarantined {
		return fmt.Errorf("%s was found to differ from another node", from.Name)
	}
	err := r.q.Reseed(path)
	if err == nil || errors.Is(err, raftstore.ErrNotTaken) || raftstore.Unwritable(err) {
		return err // a later one, or room, is all that it takes
	}
	return fmt.Errorf("%w: %w", errUnusable, err)
}

// raise tells the cluster what was found, once: nobody else knows of damage.
func (r *reseeder) raise(ctx context.Context) {
	st := r.q.Status()
	if r.alarmed || st.Leader == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if _, _, err := r.transport.Propose(ctx, st.Leader, server.QuarantineAlarm(st, r.why)); err != nil {
		r.log.Debug("the alarm was not raised", "err", err)
		return
	}
	r.alarmed = true
}

// rest waits, unless ctx ends.
func rest(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// reseeds is a file with the times of the last re-seeds, a line each: a node that
// is started anew by its supervisor must know of them too.
type reseeds struct{ path string }

// check is an error if there were too many of late.
func (r reseeds) check(now time.Time) error {
	recent, err := r.recent(now)
	if err != nil {
		return err
	}
	if len(recent) >= reseedsAllowed {
		return fmt.Errorf("it was given another node's state %d times within %s, and each time it did not stay as the others': its disk or memory is not to be trusted, or this release is at fault",
			len(recent), reseedsWithin)
	}
	return nil
}

func (r reseeds) recent(now time.Time) (recent []time.Time, err error) {
	text, err := os.ReadFile(r.path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	for line := range strings.Lines(string(text)) {
		// A line cut short by a crash says nothing; nor does a time to come.
		at, err := time.Parse(time.RFC3339, strings.TrimSpace(line))
		if err == nil && now.Sub(at).Abs() < reseedsWithin {
			recent = append(recent, at)
		}
	}
	return recent, nil
}

func (r reseeds) add(now time.Time) error {
	recent, err := r.recent(now)
	if err != nil {
		return err
	}
	var text strings.Builder
	for _, at := range append(recent, now) {
		fmt.Fprintln(&text, at.UTC().Format(time.RFC3339))
	}
	return os.WriteFile(r.path, []byte(text.String()), 0o600)
}
