package sim

import (
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/rookery-mail/rookery/internal/kv"
	"github.com/rookery-mail/rookery/raftstore"
	"github.com/rookery-mail/rookery/raftstore/wal"
	"go.etcd.io/raft/v3/raftpb"
)

// disk is what a machine keeps through a crash: the log and the state. A process
// uses it by a logStore and a stateDisk, which take their time, and fail.
type disk struct {
	log   *wal.Memory
	state *raftstore.MemoryDisk

	slow  time.Duration // added to what a sync takes
	hung  time.Duration // until when no write comes back
	fails syscall.Errno // what the next write or sync says; 0: nothing
	low   bool          // there is little space left
	full  bool          // there is none: every write says ENOSPC
}

// newDisk returns that of a node which has never run.
func newDisk(meta raftstore.Meta, buckets int) *disk {
	return &disk{log: raftstore.NewMemoryLog(meta), state: raftstore.NewMemoryDisk(buckets, meta)}
}

// copy returns what the disk keeps through a loss of power.
func (d *disk) copy() *disk { return &disk{log: d.log.Copy(), state: d.state.Copy()} }

// io lets one access of a process to its disk pass, in the coroutine of the step
// that makes it. A crash while it waits is one between two durable steps.
func (l *life) io(write bool, takes time.Duration) error {
	d := l.n.disk
	if takes >= raftstore.WatchEvery || d.hung > l.w.now {
		l.slow++
		l.watch()
		defer func() { l.slow-- }()
	}
	if err := l.w.sleep(takes); err != nil {
		return err
	}
	// What the disk has finished, a process that is stopped does not hear.
	for max(d.hung, l.pausedUntil) > l.w.now {
		q := l.w.wait()
		l.stuck = append(l.stuck, q)
		if err := q.until(max(d.hung, l.pausedUntil)); errors.Is(err, errEnded) {
			return err
		}
	}
	switch {
	case l.dead: // while it was being stopped in order
		return errPower
	case write && d.fails != 0:
		err := d.fails
		d.fails = 0
		l.w.counts.Fault("disk error", 1)
		return fmt.Errorf("sim: write: %w", err)
	case write && d.full:
		return fmt.Errorf("sim: write: %w", syscall.ENOSPC)
	}
	return nil
}

// watch has the watchdog look while an access takes long. It looks always where
// it is real; here only then, for it costs.
func (l *life) watch() {
	if l.slow > 1 {
		return
	}
	var look func()
	look = func() {
		if l.dead || l.stopping || l.slow == 0 {
			return
		}
		l.unpaused(func() {
			a := l.watchdog.Look(l.n.clock.Now(), l.raft)
			switch {
			case a.Stop != nil:
				l.w.counts.Fault("watchdog stopped a node", 1)
				l.fail(a.Stop)
				return
			case a.Heir != 0:
				l.w.counts.Fault("watchdog gave the lead away", 1)
				l.raft.Transfer(a.Heir)
				l.poke()
			}
			l.w.after(raftstore.WatchEvery, look)
		})
	}
	l.w.after(raftstore.WatchEvery, look)
}

// syncTakes draws how long a sync lasts.
func (l *life) syncTakes() time.Duration {
	base := l.w.plan.sync/2 + time.Duration(l.w.rnd.Int64N(int64(l.w.plan.sync)))
	if l.w.rnd.IntN(64) == 0 {
		base *= 8
	}
	return base + l.n.disk.slow
}

// logStore is the log as one process has it.
type logStore struct{ l *life }

var _ raftstore.LogStore = logStore{}

func (s logStore) log() *wal.Memory { return s.l.n.disk.log }

// Append writes without a sync, which the page cache takes at once.
func (s logStore) Append(hard *raftpb.HardState, entries []*raftpb.Entry) error {
	if d := s.l.n.disk; d.fails != 0 || d.full {
		if err := s.l.io(true, 0); err != nil {
			return err
		}
	}
	return s.log().Append(hard, entries)
}

// synced is one access that is durable when it returns. Whether it is when the
// process or the machine ends while it waits, is open: it takes effect somewhere
// in between.
func (s logStore) synced(do func() error) error {
	takes := s.l.syncTakes()
	before := time.Duration(s.l.w.rnd.Int64N(int64(takes) + 1))
	if err := s.l.io(true, before); err != nil {
		return err
	}
	if err := do(); err != nil {
		return err
	}
	return s.l.io(false, takes-before)
}

func (s logStore) Sync() error            { return s.synced(s.log().Sync) }
func (s logStore) Mark(at wal.Mark) error { return s.synced(func() error { return s.log().Mark(at) }) }
func (s logStore) Release(i uint64) error {
	return s.synced(func() error { return s.log().Release(i) })
}
func (s logStore) Flushed(i uint64) error {
	return s.synced(func() error { return s.log().Flushed(i) })
}
func (s logStore) Close() error { return s.synced(s.log().Close) }
func (s logStore) Install(at wal.Mark) error {
	return s.synced(func() error { return s.log().Install(at) })
}

// stateDisk is the state as one process has it.
type stateDisk struct {
	*raftstore.MemoryDisk
	l *life
}

var _ raftstore.Disk = stateDisk{}

// durable is one change of the state, like logStore.synced.
func (d stateDisk) durable(do func() error) error {
	takes := d.l.syncTakes() * 2
	before := time.Duration(d.l.w.rnd.Int64N(int64(takes) + 1))
	if err := d.l.io(true, before); err != nil {
		return err
	}
	if err := do(); err != nil {
		return err
	}
	return d.l.io(false, takes-before)
}

func (d stateDisk) Write(meta raftstore.Meta, changes []kv.Tree) error {
	return d.durable(func() error {
		d.l.w.ledger.flushed(d.l.n, d.MemoryDisk.Meta(), meta)
		return d.MemoryDisk.Write(meta, changes)
	})
}

func (d stateDisk) Replace(s raftstore.Staged) error {
	return d.durable(func() error {
		d.l.w.ledger.flushed(d.l.n, d.MemoryDisk.Meta(), s.Meta())
		return d.MemoryDisk.Replace(s)
	})
}

// errPower ends what a process does when its machine is gone.
var errPower = errors.New("sim: the power is gone")
