// Package mirror keeps a MUPDATE master and a directory equal while a site moves from
// the one to the other, or back.
//
//	err := mirror.Run(ctx, mirror.Config{Directory: c.NewSession(nil), Connect: connect, Told: print})
//
// mirror.go is Run, which makes one round after another; round.go is one: a listing of
// both sides, what differs, and then what changes on either; inbox.go is where changes
// wait; record.go says when two sides say the same of a name; topology.go is what has to
// be known of backends and groups; forward.go writes to the directory, reverse.go to the
// master; ledger.go keeps the differences that stand.
//
// # What is compared
//
// Of each name the one record that a frontend is told: where it is, its ACL, or that it
// cannot be had now. The master has no more than that. Copies of replicas, which a master
// cannot know, are no differences, and are left alone; nor is a claim to a name one that
// does not exist yet.
//
// A change is never followed as it is told. It only says of which name there is to be
// asked what both sides have now. So what is told twice, late or out of order does no
// harm, and what is remembered is bounded by what changes at once and what differs.
//
// # What is written
//
// One side is the source, the other is made equal to it. Who spoke last is believed:
// when the source says something new, the target is changed, if the fact has not changed
// since it was looked at; when the target was told something by others, that is a
// difference, which is reported and stays. After a break nobody knows who spoke last.
// What the directory was told after the mirror last found a backend equal is then left
// alone, and so is all of a backend that has compared its list with the directory itself:
// it speaks to the directory now, and the master has an old view of it. The revision at
// which a backend was found equal is kept as the one at which its list was confirmed, by
// import.
//
// A listing that broke off is not used. In one that lacks all, most, or more of a backend
// than the withdrawal guard lets pass at once, nothing that it lacks is taken back: a
// master that lost its list looks so. What is taken back is under the guard besides.
package mirror
