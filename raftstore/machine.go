package raftstore

import "github.com/rookery-mail/rookery/internal/kv"

// Machine is the deterministic state machine that a Store keeps equal on every
// node. All its state is in the kv it is given: a Machine may keep nothing of
// its own that outlives a call, other than caches it can rebuild.
//
// Apply is called by one goroutine at a time; Due and Verify may run beside it.
type Machine interface {
	// Buckets lists every bucket that the machine uses. The list is asked for
	// once, when the store opens. Names that begin with "raftstore" are taken.
	Buckets() []kv.Bucket

	// Apply applies one command to tx and returns the encoded result for
	// whoever proposed it. A command that is refused is a result, like any
	// other. An error is a failure of this node: it stops, and nothing of the
	// command is seen or kept.
	Apply(tx kv.Tx, s Stamp, command []byte) (result []byte, err error)

	// Due says when the leader must propose something by itself, and what: in
	// wait milliseconds of directory time from now, where elapsed milliseconds
	// have passed since the last applied entry was stamped. wait < 0: nothing
	// is due. It is asked again after every apply and when the wait is over;
	// command is used only if wait is 0.
	Due(r kv.Reader, elapsed uint64) (wait int64, command []byte)
}

// Verifier is what a Machine implements that can tell a damaged record. Verify
// is called when the store opens, or soon after if the state is large; an
// error stops the node. One that is not ErrNewer says that the state is damaged.
type Verifier interface {
	Verify(r kv.Reader) error
}

// Stamp is what the leader's clocks said of a command.
type Stamp struct {
	// Elapsed is how many milliseconds to add to directory time before this
	// command: those between the leader's entry before and this one, on the
	// leader's monotonic clock. 0 for all but the first command of an entry,
	// and in a leader's first entry.
	Elapsed uint64
	// Wall is the leader's wall clock in milliseconds since 1970 UTC. It is
	// for people, never to be compared.
	Wall int64
}
