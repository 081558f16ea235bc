package cyrus

import (
	"github.com/rookery-mail/rookery/directory"
)

// Kind says what a record is to the directory.
type Kind uint8

const (
	// Fact: its server holds the mailbox and serves it.
	Fact Kind = iota + 1
	// Deactivated: its server holds the mailbox and is giving it up in a move.
	Deactivated
	// Skipped: no fact at all. To take a tombstone for a fact, though it may
	// carry partition and ACL, would fork a live user.
	Skipped
)

func (k Kind) String() string {
	switch k {
	case Fact:
		return "fact"
	case Deactivated:
		return "deactivated"
	case Skipped:
		return "skipped"
	}
	return "unknown"
}

// Record is one entry of a mailbox list, as the dump has it. Strings are byte
// for byte what the dump says, escapes undone.
type Record struct {
	// Name is canonical and checked, unless the record is Skipped: then it is
	// as given.
	Name directory.MailboxName
	// Server holds the mailbox. It is empty where the dump does not say, which
	// means the backend that wrote the dump.
	Server directory.BackendName
	// Partition may be empty: not known. HasPartition tells an empty one from
	// one that is left out, as in most tombstones.
	Partition    string
	HasPartition bool
	// MovingTo is where a Moving record's mailbox is going, "server!partition".
	// A backend that moves a mailbox away writes the target over its own
	// location, so Server and Partition are empty then.
	MovingTo    string
	ACL         string // "identifier TAB rights TAB" repeated, in the order of the dump
	UniqueID    string // empty: not known
	UIDValidity uint32 // zero: not known
	Type        directory.MailboxType
	Flags       Flags
	SpecialUse  string // what the list of an old release knew of special use; mostly empty

	// Not facts, and not kept by the directory; zero in text dumps.
	MTime         int64
	CreatedModSeq uint64
	FolderModSeq  uint64

	Place Place
}

// Kind says what r is to the directory.
func (r *Record) Kind() Kind {
	switch {
	case r.Flags&(Deleted|Reserved|Intermediate) != 0:
		return Skipped
	case r.Flags&Moving != 0:
		return Deactivated
	}
	return Fact
}

// SkipReason says in a few words why r is Skipped; empty if it is not.
func (r *Record) SkipReason() string {
	switch {
	case r.Flags&Deleted != 0:
		return "tombstone"
	case r.Flags&Reserved != 0:
		return "reserved name"
	case r.Flags&Intermediate != 0:
		return "intermediate level"
	}
	return ""
}

// Statement is what r states of the mailbox: what it does not know is nil, so
// that the directory keeps what it knew. The list of a frontend or of a MUPDATE
// master calls every mailbox email, for MUPDATE carries no types: that is no
// statement either.
func (r *Record) Statement() directory.Statement {
	st := directory.Statement{Partition: r.Partition, ACL: new(r.ACL)}
	if r.UniqueID != "" {
		st.MailboxID = new(r.UniqueID)
	}
	if r.UIDValidity != 0 {
		st.UIDValidity = new(r.UIDValidity)
	}
	if r.Flags&Remote == 0 || r.Type != directory.TypeEmail {
		st.Type = new(r.Type)
	}
	if r.SpecialUse != "" {
		st.SpecialUse = new(r.SpecialUse)
	}
	return st
}
