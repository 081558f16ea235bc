package raftstore

import (
	"slices"
	"time"

	"github.com/rookery-mail/rookery/raftstore/wal"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
)

// appender writes to the log. It is a step function in two halves, so that the
// simulator can crash a node between writing and syncing.
type appender struct {
	log     LogStore
	clock   Clock
	metrics *metrics
	written []appendJob // but not synced
	began   time.Duration

	// An installation whose place in the log is made, and what waits behind it
	// until the state is replaced.
	installing *appendJob
	held       []appendJob
	stepped    func(string) // for tests; may be nil
}

// appendJob is a MsgStorageAppend, with the installation of the snapshot that
// it carries if it does, a mark to make, segments to release, or the news that
// the state file was flushed.
type appendJob struct {
	message *raftpb.Message
	install *installation
	mark    *wal.Mark
	release uint64
	flushed uint64
}

// write hands jobs to the log. All that waits is taken at once: they share one
// sync, and their responses keep their order.
func (a *appender) write(jobs []appendJob) error {
	a.began = a.clock.Now()
	for _, j := range jobs {
		m := j.message
		if m == nil {
			continue
		}
		hard := &raftpb.HardState{Term: m.Term, Vote: m.Vote, Commit: m.Commit}
		if raft.IsEmptyHardState(hard) {
			hard = nil
		}
		if err := a.log.Append(hard, m.GetEntries()); err != nil {
			return err
		}
	}
	a.written = append(a.written, jobs...)
	return nil
}

// sync makes durable what was written and returns what the core must hear.
func (a *appender) sync() ([]event, error) {
	if err := a.log.Sync(); err != nil {
		return nil, err
	}
	a.metrics.syncSeconds.Observe((a.clock.Now() - a.began).Seconds())
	if a.stepped != nil && slices.ContainsFunc(a.written, func(j appendJob) bool { return j.install != nil }) {
		a.stepped("log goes on")
	}
	done := appended{}
	var events []event
	for _, j := range a.written {
		switch {
		case j.message != nil:
			done.messages = append(done.messages, j.message)
			continue
		case j.mark != nil:
			if err := a.log.Mark(*j.mark); err != nil {
				return nil, err
			}
			events = append(events, appended{mark: j.mark})
		case j.release > 0:
			if err := a.log.Release(j.release); err != nil {
				return nil, err
			}
		case j.flushed > 0:
			if err := a.log.Flushed(j.flushed); err != nil {
				return nil, err
			}
		}
	}
	clear(a.written)
	a.written = a.written[:0]
	return append(events, done), nil
}
