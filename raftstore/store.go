package raftstore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rookery-mail/rookery/internal/kv"
	"go.etcd.io/raft/v3/raftpb"
)

// Store is one shard on one node: a Node on real files, driven by goroutines.
// Its methods may be called by any number of goroutines.
type Store struct {
	cfg   Config
	node  *Node
	files *files

	spool    *spool
	free     func(dir string) (uint64, error) // how much its disk takes yet
	verified atomic.Bool
	stalled  atomic.Bool // a step hangs and cannot be waited for

	// Who replaces or compacts the state file has put a token into it.
	maintenance chan struct{}
	compacting  atomic.Pointer[context.CancelCauseFunc] // ends the compaction that is under way

	health      health
	quarantined sync.Once

	fileBytes, usedBytes atomic.Int64 // of the state file, as of the last flush

	stopOnce sync.Once
	stop     chan struct{} // closed when the steps are to end
	cause    error         // why; set before stop is closed. nil: Close
	running  sync.WaitGroup
	ended    chan struct{} // closed when the node is stopped and all are answered
	done     chan struct{} // closed when all is shut
	closeErr error         // set before done is closed
}

// Open opens the shard's data directory, making it if it is missing, and starts
// the node. It returns when the state can be read locally; what the log holds
// beyond the state file is applied from then on, once there is a leader.
//
// Errors: ErrLocked, ErrCorrupt, ErrIdentity, and what the system says.
func Open(cfg Config) (*Store, error) {
	lock := cfg.Directory
	cfg, err := cfg.withDefaults()
	if err != nil {
		if lock != nil {
			err = errors.Join(err, lock.Close())
		}
		return nil, err
	}
	f, err := openFiles(cfg)
	if err != nil {
		return nil, err
	}
	cfg.Metrics = prometheus.WrapRegistererWith(prometheus.Labels{"shard": fmt.Sprint(cfg.Shard)}, cfg.Metrics)
	s := &Store{cfg: cfg, files: f, stop: make(chan struct{}), ended: make(chan struct{}), done: make(chan struct{})}
	s.spool, s.free, s.maintenance = newSpool(), freeBytes, make(chan struct{}, 1)
	total, used := f.state.size()
	s.fileBytes.Store(total)
	s.usedBytes.Store(used)
	small := used <= cfg.VerifyBytes
	if small {
		err := f.state.verify(cfg.Log, nil)
		if err == nil {
			err = f.state.verifyPages()
		}
		if err != nil {
			return nil, errors.Join(err, f.close())
		}
	}
	if s.node, err = NewNode(cfg, f.log, f.replay, f.state); err != nil {
		return nil, errors.Join(err, f.close())
	}
	s.node.core.entries.busy = s.spool.making.Load
	if small {
		if err := s.verifyMachine(); err != nil {
			s.node.Stop(err)
			return nil, errors.Join(err, f.close())
		}
		s.verified.Store(true)
		s.health.scrubbed = max(1, cfg.Clock.Now())
	}
	if f.replay.Torn {
		s.node.metrics.torn.Inc()
		cfg.Log.Warn("an unfinished write was cut off the end of the log", "dir", cfg.shardDir())
	}
	cfg.Log.Info("shard opened", "dir", cfg.shardDir(), "cluster", f.state.meta.Identity.Cluster,
		"applied", f.state.meta.Applied.Index, "entries", len(f.replay.Entries), "bytes", total)
	f.replay = nil
	s.running.Go(s.runCore)
	s.running.Go(s.runAppend)
	s.running.Go(s.runApply)
	s.running.Go(s.runFlush)
	s.running.Go(s.runWatchdog)
	if cfg.NoBackgroundVerify {
		s.verified.Store(true)
	}
	if err := cfg.ballast(); err != nil {
		cfg.Log.Warn("no ballast was made", "dir", cfg.Dir, "err", err)
	}
	s.lookAtDisk()
	s.running.Go(s.runHealth)
	s.running.Go(func() { s.runScrub(!s.verified.Load()) })
	go s.shutDown()
	return s, nil
}

// runCore steps the core when something happened, or when it is time.
func (s *Store) runCore() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		if err := s.node.StepCore(); err != nil {
			s.halt(err)
		}
		at, _ := s.node.Wake()
		timer.Reset(at - s.cfg.Clock.Now())
		select {
		case <-s.stop:
			return
		case <-s.node.events.wake:
		case <-timer.C:
		}
	}
}

func (s *Store) runAppend() {
	s.run(s.node.StepAppend, s.node.appends.wake)
}

func (s *Store) runFlush() {
	s.run(func() (bool, error) {
		did, err := s.node.StepFlush()
		if did {
			total, used := s.files.state.size()
			s.fileBytes.Store(total)
			s.usedBytes.Store(used)
			s.node.metrics.fileBytes.Set(float64(total))
			s.node.metrics.fileUsed.Set(float64(used))
			s.tidySpool()
		}
		return did, err
	}, s.node.flushes.wake)
}

// run steps until there is nothing to do, then waits to be woken.
func (s *Store) run(step func() (bool, error), wake <-chan struct{}) {
	for {
		did, err := step()
		if err != nil {
			s.halt(err)
		}
		if did {
			select {
			case <-s.stop:
				return
			default:
				continue
			}
		}
		select {
		case <-s.stop:
			return
		case <-wake:
		}
	}
}

func (s *Store) runApply() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		did, err := s.node.StepApply()
		if err != nil {
			s.halt(err)
		}
		var wake <-chan struct{}
		if did {
			closed := make(chan struct{})
			close(closed)
			wake = closed
		} else {
			_, at := s.node.Wake()
			timer.Reset(at - s.cfg.Clock.Now())
			wake = s.node.applies.wake
		}
		select {
		case <-s.stop:
			return
		case <-wake:
		case <-timer.C:
		}
	}
}

// Verified reports whether the state file was read whole since the store was
// opened, and found as it was written. Before that, what is not found may be
// there all the same.
func (s *Store) Verified() bool { return s.verified.Load() }

// verifyMachine lets the machine look at its own records.
func (s *Store) verifyMachine() (err error) {
	m, ok := s.cfg.Machine.(Verifier)
	if !ok {
		return nil
	}
	path := s.files.state.path
	defer guard(path, &err)()
	v := s.node.View()
	defer v.Release()
	if err := m.Verify(&stoppableReader{v, s.stop}); errors.Is(err, ErrNewer) {
		return fmt.Errorf("%s: %w", path, err)
	} else if err != nil && !s.stopping() {
		return corrupt(path, "%w", err)
	}
	return nil
}

// stoppableReader is a Reader that shows nothing any more once stop is closed.
type stoppableReader struct {
	kv.Reader
	stop <-chan struct{}
}

func (r *stoppableReader) Iterate(b kv.Bucket) kv.Iterator {
	return &stoppableIterator{r.Reader.Iterate(b), r.stop}
}

type stoppableIterator struct {
	kv.Iterator
	stop <-chan struct{}
}

func (i *stoppableIterator) Next() (k, v []byte) {
	select {
	case <-i.stop:
		return nil, nil
	default:
		return i.Iterator.Next()
	}
}

// halt ends the steps, because of a failure or, with nil, of Close.
func (s *Store) halt(cause error) {
	s.stopOnce.Do(func() {
		if cause != nil {
			s.cause = &StoppedError{Cause: cause}
			s.cfg.Log.Error("node stops", "err", cause)
		}
		close(s.stop)
	})
}

func (s *Store) stopping() bool {
	select {
	case <-s.stop:
		return true
	default:
		return false
	}
}

// stopped returns what to answer after halt.
func (s *Store) stopped() error {
	if s.cause != nil {
		return s.cause
	}
	return ErrClosed
}

// shutDown waits until the steps have ended, and closes everything.
func (s *Store) shutDown() {
	<-s.stop
	if s.stalled.Load() {
		// A step hangs in the kernel. Nothing can be closed under it, and nobody
		// must wait for it: whoever waits for an answer sees done.
		close(s.done)
		return
	}
	s.running.Wait()
	var errs []error
	if s.cause == nil {
		// After a failure nothing more is written: what the disk holds is
		// unknown, and the log has everything that was acknowledged.
		errs = append(errs, s.node.Drain())
	}
	s.node.Stop(s.stopped())
	close(s.ended)
	// Whoever replaces or compacts the state file gives up now.
	s.maintenance <- struct{}{}
	for waited := time.Duration(0); s.node.Held() > 0 && waited < viewPatience; waited += viewPoll {
		time.Sleep(viewPoll)
	}
	if s.node.Held() > 0 {
		// bbolt waits for its readers for ever. The process is about to end.
		errs = append(errs, errors.New("raftstore: a View was not released; the state file stays open"))
		s.files.held = true
	}
	if err := s.files.close(); s.cause == nil {
		errs = append(errs, err)
	}
	s.closeErr = errors.Join(errs...)
	close(s.done)
}

// viewPatience is how long Close waits for Views to be released, and viewPoll
// how often it looks.
const (
	viewPatience = 5 * time.Second
	viewPoll     = time.Millisecond
)

// Close ends the node in order: what is applied is written to the state file,
// the log is synced, all is closed. It returns what went wrong then, or the
// node's failure if it had failed before. Views must be released first.
func (s *Store) Close() error {
	s.halt(nil)
	<-s.done
	if s.cause != nil {
		return s.cause
	}
	return s.closeErr
}

// Done is closed when the node has ended and its files are closed: after a
// failure, which Err tells, or after Close. The program must exit then.
func (s *Store) Done() <-chan struct{} { return s.done }

// Err returns nil until Done is closed, then why the node ended: a
// StoppedError, or ErrClosed.
func (s *Store) Err() error {
	select {
	case <-s.done:
		return s.stopped()
	default:
		return nil
	}
}

// Propose puts a command into the log and returns the machine's result, once
// the command is synced on a majority and applied here. command must not be
// changed any more, also after an early return.
//
// Errors: NotLeaderError, ErrNoLeader, ErrOverloaded and ErrTooLarge promise
// that it was not done; after ErrUnknown, ErrClosed, ErrStopped or the
// context's error it may have been, or may be yet.
func (s *Store) Propose(ctx context.Context, command []byte) (result []byte, err error) {
	if s.stopping() {
		return nil, s.stopped()
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	type answer struct {
		result []byte
		err    error
	}
	ch := make(chan answer, 1)
	s.node.Propose(command, func(result []byte, err error) { ch <- answer{result, err} })
	select {
	case a := <-ch:
		return a.result, a.err
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-s.done:
		return nil, s.stopped()
	}
}

// Consistency is what a read asks for.
type Consistency int

const (
	// Linearizable: all that was acknowledged anywhere before the call.
	Linearizable Consistency = iota
	// Local: what this node has applied, at once, with a bound on its age.
	Local
)

// Read returns a View to be released.
//
// Errors of a Linearizable read: ErrNoLeader or NotLeaderError when no quorum
// answered in time, ErrOverloaded, and the context's. A Local one fails only
// after the node has ended.
func (s *Store) Read(ctx context.Context, c Consistency) (*View, error) {
	if s.stopping() {
		return nil, s.stopped()
	}
	if c == Linearizable && !s.node.Alone() {
		if err := s.confirm(ctx); err != nil {
			return nil, err
		}
	}
	age, known := s.node.Age()
	v := s.node.View()
	if v == nil {
		return nil, s.stopped()
	}
	v.age, v.known = age, known
	return v, nil
}

// confirm waits until what is applied includes all acknowledged before.
func (s *Store) confirm(ctx context.Context) error {
	ch := make(chan error, 1)
	giveUp := s.node.ReadIndex(func(err error) { ch <- err })
	select {
	case err := <-ch:
		return err
	case <-ctx.Done():
		giveUp()
		return ctx.Err()
	case <-s.done:
		return s.stopped()
	}
}

// ReadWhen waits until ready says yes to the state as applied here, asking
// again after each apply, and returns the View it said yes to.
func (s *Store) ReadWhen(ctx context.Context, ready func(kv.Reader) bool) (*View, error) {
	for {
		changed := s.Changed() // before the look, lest a change in between is missed
		v, err := s.Read(ctx, Local)
		if err != nil {
			return nil, err
		}
		if ready(v) {
			return v, nil
		}
		v.Release()
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-s.stop:
			return nil, s.stopped()
		}
	}
}

// Changed returns a channel that is closed when something more was applied. To
// miss nothing, get it, then look, then wait.
func (s *Store) Changed() <-chan struct{} { return s.node.Changed() }

// LeaderChanged returns a channel that is closed when another node leads than
// now, as far as this one knows, or none. Like Changed.
func (s *Store) LeaderChanged() <-chan struct{} { return s.node.led.wait() }

// Status returns what the node says of itself.
func (s *Store) Status() Status { return s.node.Status() }

// Identity returns whose state this is.
func (s *Store) Identity() Identity { return s.node.Status().Identity }

// ChangeMembers changes the membership and returns once the change is applied
// here. Its errors are Propose's.
func (s *Store) ChangeMembers(ctx context.Context, changes ...Change) error {
	if s.stopping() {
		return s.stopped()
	}
	ch := make(chan error, 1)
	s.node.Reconfigure(changes, func(err error) { ch <- err })
	select {
	case err := <-ch:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-s.done:
		return s.stopped()
	}
}

// Step takes a message from a peer, which must not be changed any more.
func (s *Store) Step(m *raftpb.Message) { s.node.Receive(m) }

// Unreachable says that messages to a node are being lost.
func (s *Store) Unreachable(node uint64) { s.node.Unreachable(node) }

// Size returns how large the state file is, and how much of it has ever been in
// use, in octets, as of the last flush.
func (s *Store) Size() (file, used int64) { return s.fileBytes.Load(), s.usedBytes.Load() }
