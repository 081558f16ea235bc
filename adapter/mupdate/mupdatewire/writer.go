package mupdatewire

import "strconv"

// Form is how a string is written that cannot be quoted. Cyrus releases differ in what
// they take from a server:
//
//	                                 {n}   {n+}
//	up to 3.6.4, 3.8.2               yes   yes
//	3.4.8, 3.6.5, 3.8.3              yes   no
//	3.4.9, 3.6.6, 3.8.4 and later    yes   yes
//
// Quoted strings are read by all.
type Form uint8

const (
	// NonSync is {n+}, as Cyrus servers write them.
	NonSync Form = 0
	// Sync is {n}; a client sends it only with the server's leave.
	Sync Form = 1
)

func (f Form) String() string {
	if f == Sync {
		return "sync"
	}
	return "nonsync"
}

// maxQuoted is how long a quoted string may be: Cyrus clients read 131,072 octets.
const maxQuoted = 100_000

// AppendString appends s as a quoted string, or as a literal where it has octets that
// old clients may not take in one.
func AppendString(dst []byte, s string, form Form) []byte {
	if quotable(s) {
		dst = append(dst, '"')
		dst = append(dst, s...)
		return append(dst, '"')
	}
	return AppendLiteral(dst, s, form)
}

// AppendLiteral appends s as a literal.
func AppendLiteral(dst []byte, s string, form Form) []byte {
	dst = append(dst, '{')
	dst = strconv.AppendInt(dst, int64(len(s)), 10)
	if form == NonSync {
		dst = append(dst, '+')
	}
	dst = append(dst, "}\r\n"...)
	return append(dst, s...)
}

func quotable(s string) bool {
	if len(s) >= maxQuoted {
		return false
	}
	for i := range len(s) {
		if c := s[i]; c != '\t' && (c < 0x20 || c > 0x7e || c == '"' || c == '\\') {
			return false
		}
	}
	return true
}

// Text makes s fit to follow OK, NO, BAD or BYE between quotes.
func Text(s string) string {
	b := []byte(s)
	for i, c := range b {
		if c < 0x20 || c > 0x7e || c == '"' || c == '\\' {
			b[i] = '\''
			if c < 0x20 || c > 0x7e {
				b[i] = ' '
			}
		}
	}
	if len(b) > maxText {
		b = b[:maxText]
	}
	return string(b)
}

const maxText = 400
