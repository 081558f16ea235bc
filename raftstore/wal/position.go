package wal

import (
	"errors"
	"fmt"

	"go.etcd.io/raft/v3/raftpb"
)

// ErrCorrupt: the log is not what was written to it. The text names the file.
var ErrCorrupt = errors.New("wal: corrupt")

// Position is an entry's place in the log.
type Position struct {
	Term, Index uint64
}

// Less orders positions as Raft orders logs: by term, then by index.
func (p Position) Less(q Position) bool {
	return p.Term < q.Term || p.Term == q.Term && p.Index < q.Index
}

func (p Position) String() string { return fmt.Sprintf("term %d index %d", p.Term, p.Index) }

// Mark is a position from which the log can be read, with the membership there.
type Mark struct {
	Position
	Conf *raftpb.ConfState
}

// Replay is what a log held when it was opened.
type Replay struct {
	// Metadata is what was given to Create.
	Metadata []byte
	// Hard is the last term, vote and commit index; never nil. The commit index
	// may be behind what was applied, for it is not always synced.
	Hard *raftpb.HardState
	// Entries follow the mark that the log was opened at, without a gap.
	Entries []*raftpb.Entry
	// Flushed is the highest index given to Log.Flushed.
	Flushed uint64
	// Torn tells that the end of a write was cut away that the crash had cut
	// short. None of it was acknowledged.
	Torn bool
}

// last returns where the log ends.
func (r *Replay) last(from Mark) Position {
	if len(r.Entries) == 0 {
		return from.Position
	}
	return position(r.Entries[len(r.Entries)-1])
}

func position(e *raftpb.Entry) Position { return Position{e.GetTerm(), e.GetIndex()} }
