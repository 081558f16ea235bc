// Package powerloss cuts the power of real nodes and damages their disks. It has
// tests alone, with the build tag peers, for they need root and FUSE: make powerloss.
//
// # How
//
// Each rookeryd, the program as it is built, has its data directory on a file
// system of its own, which lives in the memory of another process: powerfs, in
// internal/tools/powerfs. That knows what a program has written and what it has
// made durable. When its power is cut, every call fails; rookeryd is killed; and
// what is mounted next is what a disk could hold then, drawn from a seed: what
// was not synced is there, or not, or in part, in any order that a file system
// allows. powerfs says what that is, and what it does not model.
//
// The flags are -power.cuts or -power.time, -power.seed, -power.lanes,
// -power.threes, -power.damage, -power.only, and -rookeryd, -rookeryctl and
// -powerfs for programs that are built already. A broken promise is printed as
// "powerloss: VIOLATION", with what led to it, and fails the test. The seed draws
// moments, calls and what survives; it does not draw the order in which processes
// run, so that a seed finds its bug again soon, but not at once.
//
// A lane is a powerfs with one world after the other: one node or three, new
// disks, a dozen writers, and a number of cuts. Several lanes run side by side,
// since most of a cut is waiting. Of three nodes all lose their power in one
// moment, or one does.
//
// # When
//
// At a moment that is drawn, or at the N-th call of a kind: see moments. There
// are moments for the first start, the append, the promise, the flush, the roll
// of a segment, the mark, the release, the compaction, the end of a process, the
// start after a cut, an installation, a restore, a recovery and a re-seed. Some
// cuts are preceded by a disk that fails, fills or is slow.
//
// # What is checked
//
// After each cut, before any writer is let in again: every acknowledged write is
// there, with the revision that was answered, so that it was done once; nothing
// else is, save a write that was under way, whole; what was refused is not. The
// node finds nothing wrong with itself (Check), its log tells of no panic and no
// damage, and it was ready in time. Then the writers go on: each repeats what was
// under way, with the number it had, and must get the answer as of the first
// time. Of three nodes each is asked.
//
// # Damage
//
// The other test stops a node, damages a file - a flipped bit, a zeroed sector,
// the end cut off, an older copy - and starts it again. It must refuse to start,
// or serve all that was acknowledged. What it did is counted in a table. A node
// of three gets the state of another and goes on.
package powerloss
