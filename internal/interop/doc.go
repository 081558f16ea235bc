// Package interop has Debian's own Cyrus run a murder whose MUPDATE master is a Rookery
// cluster. All of it is tests, with the build tag peers, for they need root, network
// namespaces and the packages cyrus-imapd, cyrus-murder, cyrus-replication and sasl2-bin:
//
//	make interop                    # with three nodes and with one, 20 repetitions with kills
//	make test-peers                 # has a slice: each script once in peace, once with a kill
//	go test -tags peers ./internal/interop -v -args -interop.programs $PWD/bin -interop.only xfer
//
// What is missing is a failure and is named.
//
// # The lab
//
// A bridge, a namespace for each Cyrus server, with a hosts file, a /dev/log and a pid
// namespace of its own (network_test.go, cyrus_test.go, lab_test.go); everything that a
// server keeps is on one tmpfs. be1 and be2 are backends; rep is a replica of be1 under
// its own name, fed by a rolling sync_client; fe is a frontend; be3 is a spare machine.
// Their configuration is testdata/imapd.conf and cyrus.conf, and as a site's: a backend
// runs `ctl_mboxlist -m` before it serves. The nodes listen on loopback
// (nodes_test.go); at the addresses that Cyrus knows are relays, which see each command
// before a node does (wire_test.go).
//
// # Scripts
//
// What happens is in testdata/*.txt. A line that begins with # is a comment. Below a step
// stands, indented, what it answers: all lines of it, in which ... at an end stands for
// any rest, and alone for any lines or none. A step without an answer must succeed.
//
//	SERVER USER COMMAND             an IMAP command; of LIST and LSUB the names count
//	append SERVER USER MAILBOX N    N messages by APPEND
//	lmtp SERVER USER[+FOLDER] N     N messages by LMTP
//	ctl SERVER ARGUMENTS            ctl_mboxlist; with -w and no answer it finds no difference
//	tool SERVER PROGRAM ARGUMENTS   another one of Cyrus's programs
//	rookeryctl ARGUMENTS
//	facts NAME, copies NAME         what the directory knows of a mailbox and all below it, without
//	                                and with the replica's
//	start, stop, crash, empty SERVER
//	copy SERVER LABEL, restore SERVER LABEL, clone SERVER SERVER [as NAME]
//	nodes kill, nodes start         a majority of them
//	replicated                      waits until rep has what be1 has
//	log SERVER TEXT                 waits for a line of its log
//	lost NAME                       an operator takes it away: it need not be there any more
//	misled NAME, trusted NAME       the directory is told what is not so, and no more
//
//	race: STEP | STEP ...           at once; their answers, in order
//	await: STEP                     again until the answer is this
//	in peace: STEP                  unless the leader was killed in this script
//	when SERVER sends WORD N, crash SERVER: STEP
//
// Scripts run one after the other in the same lab, so each has users of its own.
//
// # What must hold
//
// A ledger (ledger_test.go) has what scripts did, and nothing that the directory says.
// After each script: every mail that was taken can be read by its owner through the
// frontend, or is on a disk if its mailbox was deleted and has not expired; no backend
// lost a mailbox that nobody deleted, renamed or moved; the directory's facts are the
// backends' own lists, names, partitions and ACLs, to the octet; `rookeryctl check` finds
// nothing; the replica has what be1 has; no log of a Cyrus server has anything grave in
// it, and no node's anything of damage. All the time, any node is asked by FIND, and the
// frontend by RCPT, for mailboxes that exist: "later" is an answer, "no such mailbox"
// never one. Everything that Cyrus is asked must be answered within 30 seconds.
//
// # Kills
//
// In peace the commands of each script are counted on the wire. Then, in each repetition,
// the leader is killed at one of them, drawn from the seed, before it reaches a node or
// while it is answered (killer_test.go); half a second to two seconds later it is back.
// What is refused then is done again, as a user would, and what a refusal left half done
// ctl_mboxlist -m has to mend; how often is printed.
package interop
