// Package chaos breaks real rookeryd processes while clients use them, and judges
// afterwards every answer that any client was ever given. All of it is tests, with
// the build tag peers, for they need root and network namespaces:
//
//	make chaos                      # CHAOS_FAULTS (1000) faults, two million operations
//	make leader-loss                # LOSSES (100) each of kill, pause and partition of the leader
//	go test -tags peers ./internal/chaos -args -chaos.time 60s -chaos.seed 7
//
// # A round
//
// TestChaos plays rounds. Each begins with empty data directories and three nodes,
// every fourth one with five; each node is a process in a network namespace of its
// own, its data on a tmpfs of limited size (network_test.go, node_test.go,
// cluster_test.go). Clients make every kind of call through the public library
// (load_test.go), while faults come and go (fault_test.go): which, upon whom and for
// how long is drawn from the seed. When they are where they are is left to the
// machine, so a seed repeats the plan, not the run. Then all is mended, the nodes
// have to come together again and are ended.
//
// # The judges
//
// The round's committed log is put together of what all nodes have written, disks
// that were replaced included (log_test.go): it must be the same wherever two nodes
// have it, and without a gap. It is played to internal/oracle and to a machine of
// this process's own, and the history of all calls is held against that
// (judge_test.go):
//
//   - a write's answer is the model's at its revision, and the log has that very
//     request there; a refusal is in the log too, and refused alike;
//   - a write without an answer is in the log once, or not at all; one that the
//     client said was not done is not there; and nothing is there that nobody sent;
//   - what is linearizable is not older than anything that was answered before it
//     began; a session's reads see what the session has seen, and are not older than
//     the bound; only STALE may be;
//   - a read's answer is the model's at its revision, whoever gave it;
//   - what a watcher knows at a mark is what there was at that revision;
//   - at the end every node's state is that of the log, its indexes follow from it,
//     and the nodes agree by their own comparison;
//   - no process ended by itself, panicked, or reported a data race.
//
// The second judge knows nothing of revisions and logs: porcupine looks for an order
// of the calls about one mailbox in which all answers make sense (linear_test.go).
//
// An idle run proves nothing: in every ten seconds in which a majority was there, and
// over the whole round, there is a least rate of answered operations.
//
// # What it needs
//
// Linux, root, ip and iptables; netem is not needed: slow lines are a relay of
// this process's (relay_test.go), into which a namespace's own rules lead. What is
// missing is a failure and is named. Without -chaos.time, -chaos.faults or
// -chaos.losses nothing of this runs; the judges themselves are tested all the same.
package chaos
