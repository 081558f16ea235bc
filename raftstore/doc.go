// Package raftstore keeps one deterministic machine equal and durable on every
// node of a cluster. It knows nothing of what the machine is about.
//
// # Promises
//
// A proposal is answered after its entry was synced by a majority and applied
// here, and shows in every View taken here after the answer. An answer that
// says "not done" is true for ever; where the outcome cannot be known, the
// answer says that. A View shows one point in time. A linearizable read shows
// all that was acknowledged anywhere before it was asked for; a local one says
// how old it may be. Nothing here reads a clock to decide what is true.
//
// A leader that contradicts what is applied here, or was told of more than this log
// has, ends the node with ErrHistory: a disk was put back to an older copy of itself.
//
// A write that failed is never tried again: the node stops, whoever waits is
// told, and the way on is a restart. Files that are not as they were left are
// refused with ErrCorrupt before anything is served from them.
//
// # The life of a write
//
//	Propose -> core -> RawNode -> appender -> core -> applier -> answer
//	                        \-> network            \-> overlay -> flush -> state file
//
// The core gathers what is proposed while an append is on its way and makes one
// Raft entry of it. The appender writes and syncs the log for all that has
// gathered. Once a majority has done so, the applier takes the commands through
// the machine into the overlay, publishes it, and answers. At 30,000 changed
// keys or after a second a flush writes the overlay's layer to the state file
// in one transaction: state, applied index, term and membership, always of the
// same entry. Until then the log is what makes it durable.
//
// # Steps
//
// Core, appender, applier and flusher are step functions with queues between
// them, see Node. They take Clock, Network, LogStore and Disk from outside, and
// neither wait nor start anything. A Store drives them with goroutines; a
// simulator drives the same code in an order drawn from a seed.
//
// # Snapshots
//
// A node that lags behind the log that others keep, or that has just joined,
// gets the state itself. Raft decides who needs it and says so in a message
// without data; the transport does the rest:
//
//	leader:   MsgSnap to Network.Send -> Store.Spool -> the file is sent
//	follower: the file is in Store.IncomingDir -> Store.Install -> Raft takes it
//	leader:   Store.ReportSnapshot
//
// What a snapshot is of stands inside the file, and only that counts: it may be
// later than what the message said. One file is spooled for all who need one,
// as long as the log has everything after it. From the message to the report,
// and on until the node lives on the log that is kept anyway, the log is kept
// for it, up to four times its bounds; a transfer that takes longer is given up
// and begun anew with a later state.
//
// A snapshot is proved before anything is touched: whole, of this cluster,
// incarnation and shard, its header that of the state in it, every page read,
// the machine content. Then it is offered to Raft, which ignores what it does
// not need. Reads go on all the time; a View from before shows what it showed,
// and the old file is closed when the last of them is released.
//
// # Files
//
//	DIR/birth               the id that this disk has drawn for its node
//	DIR/shard-N.lock        keeps a second process off
//	DIR/shard-N/state.db    bbolt: a bucket for each of the machine's, and
//	                        "raftstore" with the key "meta": see Meta
//	DIR/shard-N/wal/        the log, see package wal
//	DIR/shard-N/promise     how far log and state have certainly come
//	DIR/ballast             takes up space, for people to remove in need
//	DIR/shard-N/reseed      there if the state is not to be used, and why: see Reseed
//	DIR/shard-N/spool/      a snapshot that is sent to nodes that lag
//	DIR/shard-N/incoming/   a snapshot that comes from another node
//	DIR/shard-N/state.db.staged, state.db.compact
//	                        what is to take the place of state.db
//	DIR/shard-N.tmp         a directory that is being made
//	DIR/shard-N.recovered, DIR/shard-N.before-incarnation-M
//	                        see Recover; the latter is kept
//
// The spool, what comes in and what is to take the place of the state are
// removed at start. Every segment of the log and the state carry cluster,
// incarnation, shard and node; files that differ in these are refused with
// ErrIdentity.
//
// # Order of durable steps
//
// A new directory: everything is made in DIR/shard-N.tmp and synced, then
// renamed, then DIR is synced, and the directory that DIR is in. Renamed earlier,
// a crash would leave a directory without a state or without a log, which must
// mean that one was lost; without the last step it could leave no DIR.
//
// An append: entries and hard state are written and synced; the promise is
// raised; then Raft is told, which sends acknowledgements. Told earlier, a
// crash could lose what a majority was counted on.
//
// A flush: layer and meta are committed to the state file (bbolt syncs the
// pages before the page that points to them); the promise notes the index; only
// then are log segments deleted that the state no longer needs. Noted earlier,
// a crash would leave a promise that a good state file cannot keep.
//
// A mark, from which the log can be opened later: it is written to the log and
// synced; it goes to the state file with a flush; then the segments before it
// are deleted. Deleted earlier, the state file would name a mark that is gone.
// A mark is never above the applied index of the state file.
//
// An installation, where S is the last entry that the snapshot includes:
//
//  1. The image is written beside the state file, synced, proved, and made to
//     say that it is this node's, with its mark at S. Synced. A crash leaves a
//     file that is removed.
//  2. Raft takes it. All that was queued for the log before is written and synced.
//  3. The promise is lowered to what the log holds whichever state it is opened
//     for, and fsynced. Lowered later, a crash in between would leave a log that
//     is refused: it may have gone on beyond S, with entries that S proves void.
//  4. Such entries are cut off, and the mark at S is written and synced. From
//     here on the log can be opened at the old mark, with what it held, and at
//     S, empty. Renamed before that, the state would name a mark that is not
//     there, and void entries would seem to follow it.
//  5. The flush that was running has ended; the new file is renamed over the
//     old one, and the directory synced. This is the one step that counts.
//     Flushes of the old state that are ordered yet are dropped.
//  6. Only now are the hard state, whose commit index is S, and entries after S
//     appended and synced, and the promise raised. Appended earlier, they would
//     follow a gap for the old state, and the log could not be read for it any
//     more. Between 5 and 6 the hard state may be of a term before S's; the term
//     is raised at start, for nobody was told of a vote in it.
//  7. Raft is told, which acknowledges S to the leader; the promise notes S as
//     flushed; segments before it are deleted.
//
// Memory follows after 5: the overlay is replaced in one step, the core takes
// over index and membership, reads that waited for S are let go, whoever waits
// for an entry that was skipped learns that its outcome is unknown.
//
// A compaction: the copy is synced between two flushes, with the meta of that
// moment, and renamed over the state file; the directory is synced. Before the
// rename it is a file that is removed at start, after it the same state. The
// log is not touched. It never runs beside an installation, which ends it.
//
// A re-seed of a stopped node: steps 1, 3, 4 and 5 of an installation, except
// that where the log holds S, what follows stays: a mark is all it needs. Then
// the promise notes S, and the file reseed is removed, last: until then Open
// refuses the directory, and Reseed can be done again.
//
// A recovery: a new directory is made and synced beside the old one, and
// renamed to say that it is complete; the old one is renamed; the new one is
// renamed to its place. Open takes a complete one if the place is empty.
//
// Opening: the lock is taken; the state file is checked before it is mapped,
// opened, and read whole if it is small; the log is opened at the mark that the
// state names; log, state and promise are held against each other: same
// identity, the log not shorter than the promise, the state not older than the
// promise, the state's last entry in the log. Only then does the node start,
// its commit index raised to what the state includes. Raft hands out what the
// log has beyond the state, and the same code applies it.
//
// # Why the applied index is promise enough for the state
//
// With asynchronous storage writes Raft hands out an entry to be applied only
// when it is committed and synced here. So the state's applied index says that
// the log was synced at least that far, and no later leader can take that back.
// What was synced beyond it, the promise file says.
//
// # Whether the state is right
//
// Beside the state stands the sum of a hash of every row, kept up with each Put
// and Delete and written in the same transaction. Nodes tell each other their
// sums now and then; at the same index they must be the same. A node that a
// majority differs from, all alike, quarantines itself: it writes the mark
// reseed and ends with ErrDiverged. OpenQuarantined then has what it takes to
// ask the others for a state, and Reseed puts that in place; what the program is
// to do about it is the program's. One of the majority goes on and names the odd
// one; where no majority agrees, nobody is shut out and all say so. What
// could not be compared is counted, and told when it lasts.
//
// Once a day a scrub reads the state file again, slowly, and holds it against
// its sum; see scrubber for how it stays exact while the file is written, and
// for what it cannot see. A node with a damaged file quarantines itself too,
// where it has heard another voter; else, and at the start, it ends with
// ErrCorrupt, and OpenQuarantined tells whether the rest of the directory is
// whole enough for a re-seed.
//
// # When disks fill
//
// The free space is looked at every second; Health says when it is below the
// low-water mark, so that growth can be refused while there is room for the
// rest. A write that fails stops the node all the same. OpenReadOnly then shows
// what the state file holds without writing anything.
package raftstore
