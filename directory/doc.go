// Package directory is the model on one page: what is true about mailboxes and
// the rules that need no storage to be stated. It does no I/O, knows no clock
// and no network, and imports the standard library only.
//
// # The nouns
//
// A mailbox has a canonical name (MailboxName). A backend that holds a copy of
// it states a Fact: "I hold this, on that partition, with this ACL". One
// mailbox may have several facts, one for each server that holds a copy. A
// replica Group explains why: its members hold copies of the same mailboxes,
// each under its own name, and one member, the primary, takes the sessions. A
// backend that nobody put in a group is a group of one and its own primary.
//
// The group that a mailbox belongs to is its home. A live fact of a server
// outside the home is a fork: two servers claim one name and no single group
// explains it. Forks are shown, never settled silently, and change no route.
//
// # The rules
//
// Resolve says where a mailbox is: a pure function of its facts, the groups,
// the backends and the holds. Its answer is an Outcome, not an error, and it
// never says NotFound where "not known" would be the truth.
//
// ACL says who has which rights (RFC 4314, as real Cyrus weighs them);
// Namespace and Pattern say how a user sees and selects names (RFC 2342,
// RFC 5258).
//
// Three words that are easily confused: a lease is a backend's sign of life, a
// hold is an operator's "not now", a reservation is a claim to a name before
// its mailbox exists.
package directory
