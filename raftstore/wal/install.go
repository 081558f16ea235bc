package wal

import (
	"errors"
	"fmt"

	"go.etcd.io/raft/v3/raftpb"
)

// Install makes the log start anew at a mark that it did not reach by its own
// entries: the last entry of a state that came from elsewhere. All before must
// be synced. From then on the log can be opened at that mark, where it is
// empty, and at the marks it could be opened at before, where it holds what it
// held, but nothing that at proves to be void. So the caller may exchange the
// state after it. Until that is done nothing must be appended: the entry after
// at would follow a gap for whoever opens the log at an older mark.
//
// The log's own end can be before at, as on a node that lagged, or beyond it:
// then the entry at that index is another one, for Raft takes no snapshot of
// what it has. Since what at names is committed, those entries, and those
// that follow them, were never committed and never will be.
//
// The order of steps:
//
//  1. The promise is lowered to what either way of opening will find.
//  2. If the log goes on beyond at, an entry that is none is written at the
//     index after it. It cuts off the void entries, which would otherwise seem
//     to follow at.
//  3. The mark is written and synced.
func (l *Log) Install(at Mark) error {
	if l.err != nil {
		return l.err
	}
	for _, step := range l.installSteps(at) {
		if err := step.do(); err != nil {
			return l.fail(step.name, err)
		}
	}
	// Not the log's end yet: a Close must not promise it before the caller says,
	// by appending, that the state is exchanged.
	l.installed = &at.Position
	return nil
}

type installStep struct {
	name string
	do   func() error
}

func (l *Log) installSteps(at Mark) []installStep {
	steps := []installStep{{"lower the promise", func() error {
		l.promise.synced = installPromise(l.promise.synced, l.end, at.Position)
		return errors.Join(l.promise.write(), l.promise.f.Sync())
	}}}
	if l.end.Index > at.Index {
		steps = append(steps, installStep{"cut off what is void", func() error {
			return l.w.Save(nil, []*raftpb.Entry{nothing(at.Index + 1)})
		}})
	}
	return append(steps, installStep{"mark", func() error { return l.w.SaveSnapshot(snapshotRecord(at)) }})
}

// installPromise returns what is true of a log that ends at end and is about to
// start anew at at, whichever of the two it is opened as.
func installPromise(promise, end, at Position) Position {
	if end.Index > at.Index {
		// It will end with whatever it has at that index, of a term that may be
		// higher or lower than at's. Until the next append nothing is promised.
		return Position{}
	}
	if at.Less(promise) {
		return at
	}
	return promise
}

// nothing is an entry that says that the log ends before it. No entry of Raft's
// has term 0.
func nothing(index uint64) *raftpb.Entry {
	return &raftpb.Entry{Term: new(uint64(0)), Index: new(index)}
}

// strip takes an entry that is none from the end.
func (r *Replay) strip() error {
	for i, e := range r.Entries {
		if e.GetTerm() != 0 {
			continue
		}
		if i != len(r.Entries)-1 {
			return fmt.Errorf("%w: entry %d has no term", ErrCorrupt, e.GetIndex())
		}
		r.Entries = r.Entries[:i]
	}
	return nil
}
