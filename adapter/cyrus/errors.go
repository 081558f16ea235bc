package cyrus

import (
	"errors"
	"fmt"
	"io"
)

var (
	// ErrTruncated: the input ends in the middle of a dump. What was read
	// before is sound, but it is not the whole list.
	ErrTruncated = errors.New("cyrus: input is cut off")
	// ErrFormat: the input is not what it should be, from here on or from its
	// start; the text says what was found.
	ErrFormat = errors.New("cyrus: wrong format")
)

// RefusedError tells of one record that cannot be taken, while those after it
// can: go on reading.
type RefusedError struct {
	Place Place  // where the record begins; zero for a record that was not read
	Name  string // as given, cut after a few hundred octets; empty if there is none
	Err   error  // the reason; wraps a sentinel of package directory where that one refused
}

func (e *RefusedError) Error() string {
	switch {
	case e.Place == Place{}:
		return fmt.Sprintf("%q: %v", e.Name, e.Err)
	case e.Name == "":
		return fmt.Sprintf("%v: %v", e.Place, e.Err)
	}
	return fmt.Sprintf("%v: %q: %v", e.Place, e.Name, e.Err)
}

func (e *RefusedError) Unwrap() error { return e.Err }

func refuse(p Place, name string, err error) *RefusedError {
	return &RefusedError{Place: p, Name: name[:min(len(name), maxNameShown)], Err: err}
}

// maxNameShown is more than a legal name has, and little enough to print.
const maxNameShown = 500

func formatErrorf(p Place, format string, args ...any) error {
	return fmt.Errorf("%w: %v: %s", ErrFormat, p, fmt.Sprintf(format, args...))
}

// ended is the error of an input that gave no more at p, inside what.
func ended(err error, p Place, what string) error {
	if err == io.EOF {
		return fmt.Errorf("%w: %v: it ends inside %s", ErrTruncated, p, what)
	}
	return fmt.Errorf("cyrus: %v: reading: %w", p, err)
}
