package raftstore

import (
	"errors"
	"fmt"
)

// What a Store says when it cannot do as asked. Those marked "not done" are
// promises: the command is not in the log and never will be.
var (
	// ErrNoLeader: there is no leader that this node knows of. Not done; try again.
	ErrNoLeader = errors.New("raftstore: no leader")
	// ErrOverloaded: too much is waiting already. Not done; slow down.
	ErrOverloaded = errors.New("raftstore: overloaded")
	// ErrTooLarge: the command is over Config.MaxCommand. Not done.
	ErrTooLarge = errors.New("raftstore: command too large")
	// ErrNotInForce: the command is not to be used yet, as not every node of the cluster
	// understands it. Not done. What is in force is the machine's to say.
	ErrNotInForce = errors.New("raftstore: command is not in force yet")
	// ErrUnknown: the node lost its leadership before it knew the outcome. The
	// command may have been applied, or may be yet.
	ErrUnknown = errors.New("raftstore: outcome unknown")
	// ErrClosed: the store was closed. The outcome of what was waiting is unknown.
	ErrClosed = errors.New("raftstore: closed")
	// ErrStopped: the node failed and serves nothing any more; see StoppedError
	// for the cause. The outcome of what was waiting is unknown.
	ErrStopped = errors.New("raftstore: node stopped")
	// ErrLocked: another process has the data directory open.
	ErrLocked = errors.New("raftstore: data directory is in use")
	// ErrCorrupt: a file is not what was written to it. The text names the file
	// and what to do.
	ErrCorrupt = errors.New("raftstore: corrupt")
	// ErrNotTaken: Raft did not take a snapshot; this node stays as it is.
	ErrNotTaken = errors.New("raftstore: snapshot not taken")
	// ErrNotNeeded: this node has all that a snapshot holds.
	ErrNotNeeded = errors.New("raftstore: snapshot not needed")
	// ErrBusy: the state file is being replaced or compacted already.
	ErrBusy = errors.New("raftstore: busy")
	// ErrNoRoom: the disk has no room for what is to be made.
	ErrNoRoom = errors.New("raftstore: not enough room on the disk")
	// ErrAlone: the node is its cluster's only voter, so there is nothing to recover from.
	ErrAlone = errors.New("raftstore: this node is its cluster's only voter already")
	// ErrReseed: the state of this node is not to be used: Reseed must replace
	// it by a peer's snapshot first.
	ErrReseed = errors.New("raftstore: the state must be replaced by a peer's snapshot")
	// ErrIdentity: the data directory, or a file in it, belongs to another
	// cluster, node, incarnation or shard.
	ErrIdentity = errors.New("raftstore: wrong identity")
	// ErrDiverged: this node's state is not what the others' is, or not what it
	// was, and it serves it no more. It must be replaced by another node's.
	ErrDiverged = errors.New("raftstore: diverged")
	// ErrNewer: the machine cannot read its state, for a newer release has written it.
	// The state is as it should be: it is kept, and that release has to be put back.
	ErrNewer = errors.New("raftstore: the state is of a newer release")
)

// NotLeaderError says that another node is the leader, so that the caller can
// ask there. The command was not done.
type NotLeaderError struct {
	Leader uint64 // node id, never 0
}

func (e *NotLeaderError) Error() string {
	return fmt.Sprintf("raftstore: not the leader, node %x is", e.Leader)
}

// StoppedError carries why the node stopped. errors.Is finds ErrStopped and
// the cause in it.
type StoppedError struct {
	Cause error
}

func (e *StoppedError) Error() string {
	return fmt.Sprintf("%v: %v", ErrStopped, e.Cause)
}

// Unwrap returns ErrStopped and the cause.
func (e *StoppedError) Unwrap() []error { return []error{ErrStopped, e.Cause} }

// cure is what a corrupt file's error ends with. There is one remedy only,
// another copy: nothing here can tell good bytes from bad ones better than the checks did.
const cure = "unless a peer's state replaces it, move the data directory away and start with an empty one, then bring its contents back: from the node's peers, from a snapshot, or, where it was the only node, by importing every backend's list again"

func corrupt(file, format string, args ...any) error {
	return fmt.Errorf("%w: %s: %w; %s", ErrCorrupt, file, fmt.Errorf(format, args...), cure)
}
