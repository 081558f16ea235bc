// Package mupdate answers MUPDATE (RFC 3656), so that the backends, frontends and tools
// of a Cyrus Murder go on unchanged while a Rookery cluster stands where their master
// stood. Every node answers, and every node takes writes.
//
//	s, err := mupdate.New(mupdate.Config{Client: c, Users: users, Clear: true})
//	err = s.Serve(listener)
//
// server.go listens and limits; conn.go is one connection and its states; command.go
// has a method for each command; auth.go logs in; users.go is the file of logins;
// feed.go and update.go are LIST and UPDATE, and package spool is where a listing waits;
// rename.go is what follows a DELETE; resync.go knows a ctl_mboxlist when it sees one.
// Package mupdatewire reads and writes lines, mupdateclient is the other side.
//
// # What the words mean here
//
// MUPDATE has one record for a name: where it is. The directory has a fact for every
// backend that says it holds it, and a route. RESERVE is a question and may be answered
// NO. ACTIVATE is a fact and is believed. DEACTIVATE gives a mailbox up to whoever
// activates it next, and is never taken back by a timer. DELETE takes back what its
// sender said, and nothing else.
//
// LIST "S!" answers with what S itself said, also where S holds a copy that takes no
// sessions. Everybody else is told routes, one record for a name. A RESERVE record is
// MUPDATE's only word for "exists, cannot be had now": moving, held, not at its primary.
// The mailboxes of a backend that is down stay MAILBOX.
//
// # What Cyrus does with answers
//
// ctl_mboxlist -m deletes a local mailbox that FIND says another server has, so FIND
// never finds anything for backends; they activate then, which changes nothing or shows
// as a fork. A frontend takes a name that is not in a listing for deleted, so a listing
// is complete and of one state, or the connection ends: NO it takes for the end of an
// empty one. It waits without limit for any answer, so every command is answered within
// five seconds, with a majority or without: NO, or a closed connection, is "later". The
// listing of a large directory is gathered first, which takes as long as it takes; one
// that stands still for that long ends too.
//
// # Writes and time
//
// Reads are linearizable: every operation is a connection of its own, perhaps to another
// node. NOOP returns when all that was committed before it anywhere has been sent.
package mupdate
