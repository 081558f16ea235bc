// Package kv is the seam between the rules and the disk: an ordered key-value
// transaction over named buckets.
//
// The machine in directory/machine reads and writes through a Tx and knows
// nothing of files; raftstore backs it with a bbolt file behind an in-memory
// overlay; tests and the simulator use Memory. All of them pass the
// same conformance suite, kvtest.
//
// # Promises every implementation keeps
//
//   - A Reader shows one point in time and never changes under its holder.
//   - Keys are compared as unsigned octets. A nil value means absent; an empty
//     value that is present is returned as a non-nil empty slice.
//   - Bytes handed out belong to the Reader: they must not be changed, and are
//     valid until the Reader is released. Bytes handed in are copied.
//   - A Tx sees its own writes, its iterators too: an iterator must be
//     positioned again with Seek after a write to its bucket.
//
// Reads do not return errors. What an implementation finds broken in its own
// structure (a page that is none) it reports by stopping the process that owns
// the file; what is broken in a value, the record's own checksum finds.
package kv
