// Package wal is the Raft log on disk: etcd's write-ahead log with guards
// against what it does not notice by itself, and a log in memory for the
// simulator.
//
// # Files
//
//	wal/SEQ-INDEX.wal   segments in the format of etcd's server/v3/storage/wal
//	promise             how far the log has certainly come, see below
//
// Each segment starts with the metadata given to Create; a chained CRC32C runs
// over all records. A Mark, in etcd's terms a snapshot record, is a place to
// read from; segments wholly below the mark in use are deleted.
//
// # The promise
//
// etcd's log takes a zero length word for the end of what was written. So a
// sector that the disk lost, or a tail that was cut off, shortens the log
// without an error, and with it what was acknowledged. The promise is a file of
// its own that says how far the log was synced. On opening, a log that ends
// before it is refused: that is corruption. What lies behind it was never
// acknowledged: a write that the crash cut short, which is cut away and counted.
//
// The order of steps in Sync makes that sound:
//
//  1. If the new entries shorten the log - a new leader replaced the end of it -
//     the promise is lowered first and fsynced. Otherwise a crash after step 2
//     would find a log that ends before its promise, and refuse a good log.
//     (Term and index alone do not order this: a new leader may replace an
//     entry of term 3 by an older one of term 2 before it sends its own.)
//  2. The entries are written and fsynced.
//  3. The promise is raised. It never says more than step 2 has made true.
//  4. Only now does the caller acknowledge.
//
// Step 3 does not fsync, which would double the cost of every append. So the
// promise is exact when the process dies: the page cache outlives it. When the
// machine dies, the promise that the disk holds may be old, which makes the
// check weaker and never wrong: it covers all but the time since Flushed last
// fsynced it, about a second. A write of it that was torn fails its checksum,
// and the other of its two slots counts.
//
// Where a state from elsewhere takes the place of the one that the log led to,
// the log starts anew at a mark that it did not reach, see Log.Install. That
// lowers the promise too, to what the log holds whether it is opened at the old
// mark or at the new one.
//
// The promise also says up to which index the state file was flushed, so that
// a state file that fell back to its older root is noticed too.
package wal
