// Package peer carries a shard's replication over the network: Raft's messages,
// snapshots, forwarded commands, and what nodes say before they have a shard.
//
// # Streams
//
// To every peer a node keeps two streams of its own, each on a connection of its
// own, so that what waits on one never holds up the other:
//
//	control   heartbeats, votes, acknowledgements, read rounds; once a second
//	          an Announcement of what the node says of itself
//	bulk      appends, all of them: a commit that overtook its entries would
//	          be refused
//
// The peer's messages come by two streams of its making. A third connection is
// made for a snapshot and ends with it; commands are forwarded over a fourth.
//
// A stream begins with a hello: cluster, incarnation, shard and both nodes' ids.
// Who does not belong is told so, with what he would have to know, and it is
// logged once, by both, and not for every attempt.
//
// # Never blocking Raft
//
// Send puts messages in a bounded queue for each stream. What does not fit, or
// waits while a connection cannot be made, is dropped, and Raft is told that the
// peer cannot be reached: it sends again what is still of use. Whatever waits is
// sent in one frame of up to 1 MiB.
//
// # A peer that is gone
//
// When a process is killed, its kernel resets its connections and refuses new
// ones. So a control stream that breaks is made again at once, and if that is
// refused, or another process answers, the store is told that the peer's process
// is gone: the others then elect a leader within milliseconds instead of waiting
// for heartbeats. A machine that loses its power says nothing; there the election
// timeout holds. Nothing is ever concluded about what the peer had stored.
//
// # Removed members
//
// A node that was removed may not know it, as nobody sends to it any more. When
// it calls, the node it calls, which does not find it among its members, makes
// sure by a linearizable read that this is not out of date, and then tells it.
// The transport fails, and the program ends.
//
// A node that calls and is a member of no list here may as well have been added
// a moment ago. It is heard, and answered at the address that its hello names,
// while that is being found out: a node that joins has no list at all.
//
// # Moved members
//
// How a node is reached stands in the membership, and every hello says it anew.
// A member that was moved knows where the others are, and calls them; as long as
// its stream is up it is answered where its hello says. So a majority of moved
// nodes and others finds together again, if one of any two has stayed. Moved names
// who says something new, for the leader to put it in the membership.
//
// # Snapshots
//
// Raft's MsgSnap has no data here. The sender takes a spooled file from the
// store and offers it: its last octets, a SHA-256, are its name. The receiver
// says from which octet on it wants it, so a transfer that broke off goes on.
// Parts carry a CRC-32C, are paced by Config.SnapshotRate, and at most one
// snapshot is received at a time. The store verifies the file, and Raft is told
// of the outcome in every case.
//
// # Before there is a shard
//
// The transport serves before the store is opened. Nodes that found a cluster
// greet each other until each knows the id that each disk has drawn, and so make
// the same list (Found). A node that is to join asks to be let in until an
// operator has added it (Join).
package peer
