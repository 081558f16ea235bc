// Package client is the Go library of the directory: where mailboxes are, who
// sees which, and how backends say what they hold.
//
//	c, err := client.Dial([]string{"10.0.0.1:7905", "10.0.0.2:7905"}, client.WithCredentials(creds))
//	route, err := c.Lookup(ctx, "user.alice")
//
// There is one method for each call of the API (proto/api/v1), and its types are
// the nouns of package directory; generated types do not show. All mailbox names
// are canonical unless a field says client form.
//
// # Answers and errors
//
// Where a mailbox is, is an answer with an Outcome. An error means that the call
// was refused or could not be answered, and then nothing is known: an error is
// never "no such mailbox". A refusal is an *Error; errors.Is finds directory's
// sentinel in it (directory.ErrReserved), or one of this package's. Whatever a
// caller could try again later, or elsewhere, is ErrUnavailable.
//
// # Freshness
//
// A Session remembers the newest state it was told of and sends it along, so that
// its reads never go back, and see its own writes, whichever node answers. A
// Client has a session of its own. A session's first read is linearizable; the
// others are what the options ask for, by default not older than ten seconds.
//
// # Watching
//
// Watch tells what there is and then what changes, and goes on by itself when a node
// ends. A Mirror keeps what it tells, and knows every route without asking.
//
// # Repeats
//
// Reads are repeated on other nodes until one answers or the context ends. So are
// writes: each carries a client id and a number, by which the directory knows a
// repeat and answers it without doing it twice. A write whose context ends while
// it was under way may have been done: ErrUndecided.
package client
