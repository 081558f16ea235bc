package mupdate

import (
	"context"
	"errors"
	"strings"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
)

// What an answer begins with. Clients look at OK or not; the texts are for people, and
// those that Cyrus has too are its own.
const (
	ok  = "OK"
	no  = "NO"
	bad = "BAD"
	bye = "BYE"
)

// reason is what follows NO: why something was refused, or could not be had. What is
// not known is never answered as if it were.
func reason(err error) string {
	switch {
	case errors.Is(err, directory.ErrExists), errors.Is(err, directory.ErrReserved):
		return "mailbox already exists: " + message(err)
	case errors.Is(err, directory.ErrNotHolder):
		return "mailbox doesn't exist: " + message(err)
	case errors.Is(err, client.ErrUndecided):
		return "unavailable, it may or may not have been done: " + absent(err)
	case errors.Is(err, client.ErrUnavailable), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return "unavailable: " + absent(err)
	}
	return message(err)
}

// absent says why nothing was answered, in the words of a node if one has said it. What
// the transport says is for the log.
func absent(err error) string {
	if e := client.Answered(err); e != nil {
		return message(e)
	}
	if _, own := errors.AsType[*spoolError](err); own {
		return "this server could not write the list down"
	}
	_, asked := errors.AsType[*client.Error](err)
	switch {
	case errors.Is(err, client.ErrUndecided):
		return "no node answered in time"
	case asked, errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return "no node answers"
	}
	return message(err)
}

// message is an error's own, without the name of a package.
func message(err error) string {
	text := err.Error()
	if e, is := errors.AsType[*client.Error](err); is {
		text = e.Message
	}
	for _, pkg := range []string{"directory: ", "client: ", "mupdate: ", "raftstore: ", "server: "} {
		text = strings.TrimPrefix(text, pkg)
	}
	return text
}

// later is why something is not known now.
type later string

func (l later) Error() string { return string(l) }

func (l later) Is(target error) bool { return target == client.ErrUnavailable }

// spoolError is why a listing could not be kept until it was whole. It names files, which
// are for the log.
type spoolError struct{ error }

func (e *spoolError) Unwrap() error { return e.error }

func (e *spoolError) Is(target error) bool { return target == client.ErrUnavailable }

// outcome is a closed word for why a command was not done, for metrics.
func outcome(err error) string {
	switch {
	case err == nil:
		return "ok"
	case errors.Is(err, directory.ErrExists), errors.Is(err, directory.ErrReserved):
		return "taken"
	case errors.Is(err, client.ErrUndecided):
		return "undecided"
	case errors.Is(err, client.ErrUnavailable), errors.Is(err, context.DeadlineExceeded):
		return "unavailable"
	}
	return "refused"
}
