// Package sim runs whole clusters in one process, from a seed: the server, the
// directory's machine and raftstore's step functions as they are shipped, on disks
// in memory that lose what was not synced, a network that loses, delays, doubles
// and reorders, clocks that disagree, and faults in every mixture. The same seed
// gives the same run, to the last digest.
//
// # How it is deterministic
//
// One scheduler (proc.go) owns virtual time and a heap of events. Whatever waits is
// a coroutine: the append and flush steps of each node, which wait for their disk;
// clients, which wait for answers. At any moment one goroutine runs. All chance
// comes from the seed's generator, but for what Raft draws from crypto/rand, which
// testing/cryptotest seeds; that is a process's, so TestSim runs its seeds in
// processes of their own. Nothing is done in the order of a map, and no real clock
// is asked for anything that matters.
//
// # What a node is
//
// node.go: a machine with a disk and a clock, and a process that lives on it for a
// while. A process is a raftstore.Node, its four steps taken when they have
// something to do, after a delay that is drawn; and a server.Server over store.go,
// which does what server.Shard does, in virtual time. disk.go lets each durable
// step take effect somewhere within the time it takes, so that a crash can come
// before and after it, and between two of them. The end of a process keeps what was
// written; a loss of power keeps what was synced, and sometimes a part of the rest.
//
// # What befalls it
//
// fault.go: storms and calm follow each other. Each seed draws the faults it knows,
// how often they come, how fast disks and network are, how long logs are kept.
// member.go: operators add learners, promote, remove and replace members, the
// leader too, and put nodes with new disks in the place of lost ones; and once in a
// while a cluster is made anew, of one survivor or of a snapshot.
//
// Nothing is done to a cluster that it does not promise to survive: disks are
// destroyed one at a time, and put back to an older copy only while all others are
// well, for a node that forgets its promises may elect two leaders.
//
// # Who uses it
//
// workload.go: each seed draws a cast. actor_backend.go: backends with stores of their
// own, which move mailboxes, lose disks, copy from their primary, and say what no
// backend should. actor_people.go: frontends and delivery, and an operator who admits,
// drains, settles, decides, gives other names, and reads in what a backend lists.
// actor_failover.go: primaries are switched over, mostly when the other has all that
// they have. All of them speak through the API, and know what is true. Watch is not
// among the calls: its hub has goroutines of its own.
//
// # What must hold
//
// invariant.go, after every step of every node: an acknowledged command is what all
// nodes apply at its revision (I1); results, and the sum of the state at each index,
// are the same everywhere and across restarts (I2); linearizable reads show all that
// was acknowledged before they began, and local ones what their age promises (I3);
// a term has one leader, nobody votes twice or forgets what it answered (I6); a
// damaged disk is refused (I7); after a storm writes go on soon, and all nodes come
// to the same state (I8); what nodes keep is bounded (I9). judge.go and truth.go
// hold the rules of the directory against every answer.
package sim
