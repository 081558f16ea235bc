// Package mupdatewire is how MUPDATE (RFC 3656) looks on the wire: words, quoted
// strings and literals, read from either side and written for either.
//
// A line is
//
//	tag SP word [SP string]... CRLF
//
// where a string is
//
//	"quoted"        a backslash takes the next octet as it is
//	{n} CRLF        and n octets, once the other side said + (a server's need no +)
//	{n+} CRLF       and n octets at once
//
// Real Cyrus, whose habits this follows where the RFC is silent, ends a line with a
// bare LF too, takes 8-bit octets and TAB in quoted strings, and never takes an atom
// for a string. Which literal it can read from a server depends on its release: see
// [Form].
//
// A [Reader] holds what it reads to limits that its user sets and reads no further
// than the end of a line, so that what follows may be TLS. What it cannot make
// sense of it reads over to the end of the line and reports as a [SyntaxError], after which
// it goes on; what it cannot afford to read over is [ErrTooLong], and final.
package mupdatewire
