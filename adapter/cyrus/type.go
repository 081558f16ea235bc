package cyrus

import (
	"fmt"
	"strings"

	"github.com/rookery-mail/rookery/directory"
)

// Flags is what a mailbox list says of a record besides its type.
type Flags uint8

// The flags, in the order in which Cyrus writes their letters.
const (
	Deleted      Flags = 1 << iota // d: a tombstone
	Moving                         // m: being moved to another server
	Remote                         // r: held by the server named in the record
	Reserved                       // z: a name claimed, no mailbox yet
	Intermediate                   // i: a level with mailboxes below it and none of its own
	LegacyDirs                     // l: its directory is called after its name, not its id
)

const flagLetters = "dmrzil"

// parseType reads an mbtype of a JSON dump: the letter of the type, then the
// letters of the flags. Without a type letter it is email, as in lists that an
// old release wrote.
func parseType(s []byte) (directory.MailboxType, Flags, error) {
	if len(s) == 0 {
		return 0, 0, fmt.Errorf("an empty mbtype")
	}
	kind, rest := directory.TypeEmail, s
	if t := directory.MailboxType(s[0]); t.Valid() && t != 0 {
		kind, rest = t, s[1:]
	}
	var flags Flags
	for _, c := range rest {
		i := strings.IndexByte(flagLetters, c)
		if i < 0 {
			return 0, 0, fmt.Errorf("unknown letter %q in mbtype %.40q", []byte{c}, s)
		}
		flags |= 1 << i
	}
	return kind, flags, nil
}

// appendType writes what parseType reads.
func appendType(b []byte, kind directory.MailboxType, flags Flags) []byte {
	if kind == 0 {
		kind = directory.TypeEmail
	}
	b = append(b, byte(kind))
	for i := range len(flagLetters) {
		if flags&(1<<i) != 0 {
			b = append(b, flagLetters[i])
		}
	}
	return b
}

// The bits of the number that stands for type and flags in text dumps. It has
// no bit for sieve mailboxes and none for LegacyDirs: those came with 3.6.
var (
	textFlags = []struct {
		bit  uint32
		flag Flags
	}{{1, Remote}, {2, Reserved}, {8, Moving}, {16, Deleted}, {256, Intermediate}}
	textTypes = []struct {
		bit  uint32
		kind directory.MailboxType
	}{
		{4, directory.TypeNews}, {32, directory.TypeCalendar}, {64, directory.TypeAddressbook},
		{128, directory.TypeCollection}, {512, directory.TypeSubmission}, {1024, directory.TypePush},
	}
)

// parseTextType takes the number of a text dump apart.
func parseTextType(n uint32) (directory.MailboxType, Flags, error) {
	kind, flags, left := directory.MailboxType(0), Flags(0), n
	for _, f := range textFlags {
		if n&f.bit != 0 {
			flags |= f.flag
			left &^= f.bit
		}
	}
	for _, t := range textTypes {
		if n&t.bit == 0 {
			continue
		}
		if kind != 0 {
			return 0, 0, fmt.Errorf("flags %d name two mailbox types", n)
		}
		kind = t.kind
		left &^= t.bit
	}
	if left != 0 {
		return 0, 0, fmt.Errorf("unknown bits %d in flags %d", left, n)
	}
	if kind == 0 {
		kind = directory.TypeEmail
	}
	return kind, flags, nil
}

// textType is the inverse of parseTextType.
func textType(kind directory.MailboxType, flags Flags) (uint32, error) {
	var n uint32 // LegacyDirs needs no bit: all directories were of that kind then
	for _, f := range textFlags {
		if flags&f.flag != 0 {
			n |= f.bit
		}
	}
	if kind == 0 || kind == directory.TypeEmail {
		return n, nil
	}
	for _, t := range textTypes {
		if kind == t.kind {
			return n | t.bit, nil
		}
	}
	return 0, fmt.Errorf("a text dump has no mailbox type %q", string(rune(kind)))
}
