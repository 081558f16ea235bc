// Package machine is the deterministic state machine: commands in, results and
// changes out, over the ordered key-value transaction of internal/kv. Every
// node applies the same commands in the same order and ends up with the same
// octets, so there is no clock here, no chance, no goroutine, no map order.
//
// keys.go is the layout, command.go the closed set of commands, machine.go how
// one is applied; route.go, list.go, find.go and status.go answer questions;
// check.go recomputes everything that is derived.
//
// # How a fact counts
//
// A fact counts if its backend is admitted and neither lost nor retired, its
// Standing is InForce and its State is not HeldReturn. Seen from the mailbox's
// home group, a fact that counts is live if its server is a member, and a
// stranger if it is not and the fact is confirmed; a mailbox with a stranger is
// forked. A fact is confirmed if it was asserted in this incarnation, or its
// backend's list was confirmed in it and the
// guard does not hold its withdrawal. The home has given the mailbox up if its primary's live
// fact is deactivated, or all live facts are. The home is vacant if nothing is
// live.
//
// # Assert
//
// Accepted, unless the name or the statement is malformed, the backend was
// retired, the cluster is read-only and the statement is new, or 64 servers
// state the mailbox already. With Since: NotSince, and nothing is done, if the
// server's fact changed after that revision, or went after it. Fields that are
// not stated keep their values. An unknown server gets a backend row and a
// group of one; it is admitted at once while admission is open, or if the
// assertion is an import's.
//
// A new fact of a name that has a tombstone younger than the server's last
// resync counts towards the guard (not with Imported, not if it completes a
// move, not below DELETED, not before the server is confirmed in a restored
// cluster); one too many is stored as HeldReturn, and nothing
// else happens. A HeldReturn fact that is asserted again stays held.
//
// Otherwise the fact is Active (or Deactivated, if the import says so: what
// was withdrawing, deactivated or held is active again). If it was not in
// force and its mailbox id changed, it is in force again. Then the first of
// these that applies:
//
//  1. The backend does not count: the fact is stored, nothing else happens.
//  2. The mailbox has no home: the server's group becomes it.
//  3. The server is a member of the home: in force. But a stale copy of a
//     member that is not the primary stays stale unless the primary has an
//     active fact in force of the same mailbox id (an unknown id is any). If
//     the fact was deactivated, the move is aborted: facts outside the home
//     that count are left behind.
//  4. The home is not vacant and gave the mailbox up, and this fact is Active
//     and was asserted now: the move is complete. The server's group becomes home, the old home's
//     deactivated facts go, its other facts in force are left behind, and a
//     tombstone remembers the move.
//  5. The home is not vacant and no live fact is confirmed and this one is: the
//     server's group takes the mailbox; the old facts stay, unconfirmed.
//  6. A verdict names this server with this mailbox id: stray, no alarm.
//  7. The fact is not in force: it stays so (left behind, stale, stray).
//  8. It is a new, Deactivated fact and the home is not vacant: left behind.
//  9. The home is vacant and there is no stranger, this server included: the
//     server's group becomes home.
//  10. A fork. Route, rights and listing are as before; a verdict about this
//     server is void.
//
// An assertion ends the server's own reservation of the name. A name that comes
// alive, or gets another home, has no tombstone from then on, unless of a move,
// and no reservation of anybody outside its home.
//
// Admission, the approval of a held return, and the confirmation of a backend in a
// later life than a fact's let it enter by the same rules, but not by 4: that takes an assertion.
//
// # Retract
//
// Unknown backend or no fact: NotHeld. Since is as for Assert. A HeldWithdrawal
// stays so. Tentative makes an active fact withdrawing, from cluster version 2 on for as
// long as ReserveGrace was when it was announced, or is when that is over: it is active
// again then, for who announced it has died. Otherwise the withdrawal
// guard counts it (not below DELETED, not a HeldReturn or a fact that is not in
// force, not an unconfirmed one outside the home, not while the backend is draining with approval): one too many is kept
// as HeldWithdrawal. Otherwise the fact goes, with a verdict about that server.
// If the server was the home's primary, its fact in force and no HeldReturn,
// and the epoch stated none or the group's, it decides for the group: members'
// facts in force, but for HeldReturns, become stale copies, and who has just left the
// group inherits nothing (from cluster version 2 on). If the
// home was not vacant and now is, a tombstone remembers it. A mailbox without
// facts is no more.
//
// The guard's limit is max(GuardCount, GuardPercent of what the server stated
// plus what it withdrew in the window), over GuardWindow in whole minutes begun;
// what is held back is not counted. A decision is about what was held when it
// was applied: a rejected withdrawal is deactivated if it was, else active. An
// approved one of a primary decides for the group as a retraction does, but leaves what
// members have stated since it was withdrawn (from cluster version 2 on).
//
// # Reserve
//
// In this order. Own active fact in force: AlreadyYours. A live fact of the
// own group: CopyAllowed. Any other fact that counts, or another server's
// HeldReturn: refused ErrExists, naming the primary's at home, else a live one.
// A live reservation: own, it is renewed; the own group's, CopyAllowed; else
// refused ErrReserved. Then, for a free name: not admitted (ErrNotAdmitted),
// down or lost (ErrNotPlaceable), no primary (ErrNotPrimary). Below the nearest
// live ancestor, if that is homed in the own group, it passes here. An inbox,
// and the backend drains or has weight 0: ErrNotPlaceable. The state is
// incomplete and the name not below DELETED: ErrIncomplete, for a backend that
// was not heard may hold it. An unknown server that passes all this while
// admission is open gets its row. The claim lapses after ReserveMax, or Grace
// after the server is next heard (any command about it, and a resync's end, but
// no import), whichever is first.
//
// # Restore
//
// The first command of a cluster whose state came from elsewhere: from a snapshot,
// or from the last node of a cluster that lost its majority. The cluster's id and
// incarnation are the new ones. Revisions and epochs rise by 2^32 for each life, so
// that neither is ever told twice. Nothing is confirmed: a mailbox's home goes on
// serving it, Unconfirmed; a confirmed fact from elsewhere takes it (Assert, 5);
// there is no fork before two sides are confirmed; and who is not found is
// Incomplete until all have been heard. Confirm confirms all facts that the backend
// still has, so a list that did not change needs no assertions; it does so for the
// life only that the list was stated in, if it says which.
//
// Alarms are gone; reservations and operators' holds at once too, their rows later, with the
// changes logged before: an old token is of another life. What the withdrawal guard
// holds stays held; what it counted is forgotten. Answers to requests are kept, so
// that a retry across the restore of a survivor does not undo what came after it;
// but what a restore drops, a Reserve or a Hold, is done anew. Settings, subscriptions,
// tombstones, verdicts, histories and the digests' key stay; the directory's own
// automation is paused.
//
// # Complete
//
// Every admitted backend that is not gone was confirmed in this incarnation,
// and there is at least one.
//
// # Alarms
//
// An alarm says what is wrong with a node of the directory itself. It stands
// until it is lowered; raised again it keeps its age. The disks of a majority of
// the voters are nearly full when voters with NoSpace are more than half of how
// many there are, which is what the alarm raised last says: nobody here knows
// the membership.
//
// # Read-only
//
// The cluster takes no growth while it is set read-only, and while the disks of
// a majority of its voters are nearly full: before they are full, so that what
// frees and what moves still has room.
//
// Refused are Rename, SetGroup, Admit, RenameBackend, new backends, claims to
// free names, new subscriptions, and assertions that say something new.
//
// # Directory time and Tick
//
// Directory time moves by what each entry carries. A leader proposes a Tick
// when the nearest deadline is due, or while a sweep is open: small commands
// with large consequences (admission, membership, decisions about what is
// held) leave the going-over of mailboxes to bounded steps. Routes do not wait
// for them: Resolve looks at groups and backends as they are now. One thing only
// the sweep decides: a mailbox that was inside its home until its only holder
// left the group goes with that server.
package machine
