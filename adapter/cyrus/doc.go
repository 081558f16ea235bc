// Package cyrus reads and writes what Cyrus IMAP keeps in files: dumps of the
// mailbox list, and subscriptions. It knows the formats and what a record means
// to the directory; it calls nobody.
//
// # Two formats of a dump
//
// ctl_mboxlist -d prints the list of the server it runs on: a backend's own
// mailboxes, or, on a frontend or a MUPDATE master, everybody's.
//
// Releases from 3.6 on print JSON: one object, mailbox name to record, each on a
// line of its own, in the order of directory.CompareNames:
//
//	{
//	"user.ann": {"name": "user.ann", "mtime": "1795386102", "uidvalidity": "1795386061",
//	 "createdmodseq": "1", "foldermodseq": "2", "mbtype": "e", "partition": "default",
//	 "acl": {"ann": "lrswipkxtecdan", "anyone": "p"}, "uniqueid": "y5nc...", "name_history": []},
//	...
//	}
//
// Numbers are strings. partition, server, uniqueid and legacy_specialuse are
// left out where nothing is known; server stands on frontends and masters only.
// The order of the keys of acl is the order of the ACL, and counts. mbtype is
// the letter of the type (see directory.MailboxType) and those of the flags (see
// Flags). A mailbox whose name is not UTF-8 is left out, all but its comma.
//
// Releases up to 3.4 print text, a line a record, in the order of the octets:
//
//	name TAB flags SP [server!]partition SP acl LF
//
// flags is a decimal number: 1 remote, 2 reserved, 8 moving, 16 deleted, 256
// intermediate, and for the type 4 news, 32 calendar, 64 addressbook, 128
// collection, 512 submission, 1024 push; none of these is email. The ACL,
// TABs and all, goes to the end of the line. Ids and uidvalidity are not there.
//
// # What a record is to the directory
//
// Tombstones (d), reserved names (z) and intermediate levels (i) are Skipped. A
// tombstone may carry a partition and an ACL, even those of a mailbox that is
// alive on the server it moved to. Reserved names are also how a frontend's list
// shows mailboxes that are being moved.
//
// A record that is being moved away (m) is Deactivated. Cyrus has overwritten
// its server and partition with those of the target, so these come as
// Record.MovingTo; it is a fact of the backend that wrote the dump.
//
// A remote record (r) is a fact of the server it names; one that names none is
// refused. All others are facts of the server named, if any, else of the
// backend that wrote the dump.
//
// The frontend of a murder knows no more than MUPDATE tells: name, server,
// partition, ACL. Its uidvalidity 0 and its type e mean not known;
// Record.Statement leaves them out.
//
// # What is refused
//
// A record that makes no sense is refused by itself, with its place and the
// reason, and reading goes on: a name, ACL or location that package directory
// refuses, unknown letters or bits, a field or an identifier that stands twice,
// a name that stood in the dump before, a record or a line of more than 1 MiB.
// Unknown fields are let pass, for later releases; unknown letters are not, so
// that no flag is overlooked: the j of 3.8 (JMAP notifications), for which the
// directory has no type, is refused too. What is no JSON, or ends too
// early, ends the reading. A text dump that was cut just behind a newline looks
// whole; JSON is always noticed.
//
// # What a written dump lacks
//
// Writer prints the JSON of 3.6.1 octet for octet, and text, with what a Record
// has. From the directory's facts alone it cannot have: mtime (Cyrus ignores it
// when it reads a dump and sets the present time), createdmodseq and
// foldermodseq (written as 0), name_history (written as empty), the flag l, and
// all that is Skipped. Two of these matter on the way back into Cyrus with
// ctl_mboxlist -u:
//
//   - A record without uniqueid is not taken back by 3.6 and later, which say so.
//     Facts that came by MUPDATE, from a frontend's dump or from a text dump have
//     none until their backend has stated it.
//   - Without the flag l, 3.6 looks for a mailbox's directory under its id. On a
//     backend whose directories are still called after names, its own list is the
//     only one to restore from.
//
// # Subscriptions
//
// Cyrus keeps a user's subscriptions in a file of their own, by default in its
// "flat" format: `key TAB LF`. Up to 3.4 the key is the mailbox's internal name.
// From 3.6 on the first key is 0x1F VER 0x1F with the value 2, and the others
// are N and the order key of the name (directory.MailboxName.AppendKey), where
// "INBOX" stands for the key of the user's own inbox.
package cyrus
