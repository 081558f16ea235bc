package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"strings"
	"unicode/utf8"

	"github.com/rookery-mail/rookery/adapter/cyrus"
	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
)

// ownList is a backend's own list in a file, which is read as often as need be.
// What it lacks may be taken back, so it notes all that keeps it from being the
// whole: see keep.
type ownList struct {
	a      *app
	name   string
	file   *os.File
	server directory.BackendName
	whole  bool // somebody says so, of a text list

	format   cyrus.Format
	last     string // of the names of a text list, in the order of such a list
	skips    map[string]int64
	refusals []refusedJSON
	refused  int64
	cut      bool

	unsure   map[directory.MailboxName]bool // refused, or only reserved
	leftOut  bool                           // some name that is not UTF-8
	nameless bool                           // some record of which nobody knows the name
}

// openOwnList opens the list and goes over it once: refusals are reported, and what
// the list does not know is noted.
//
// A list that breaks off, or is none, is refused: what it lacks would be taken back.
func (a *app) openOwnList(ctx context.Context, path string, server directory.BackendName, whole bool, show *progress) (*ownList, error) {
	l := &ownList{a: a, name: path, server: server, whole: whole, skips: make(map[string]int64), unsure: make(map[directory.MailboxName]bool)}
	var err error
	if path == "-" {
		err = l.spool(a.stdin)
	} else if l.file, err = os.Open(path); err != nil {
		err = usagef("%v", err)
	} else if info, statErr := l.file.Stat(); statErr == nil && info.IsDir() {
		err = usagef("%s is a directory", path)
	}
	if err == nil {
		err = l.inspect(ctx, show)
	}
	if err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

// spool copies standard input to a file without a name.
func (l *ownList) spool(in io.Reader) error {
	l.name = "standard input"
	var err error
	if l.file, err = os.CreateTemp("", "rookery-resync-*"); err != nil {
		return err
	}
	if err := os.Remove(l.file.Name()); err != nil {
		return err
	}
	if _, err := io.Copy(l.file, in); err != nil {
		return fmt.Errorf("keeping the list for a second reading: %w", err)
	}
	return nil
}

func (l *ownList) close() {
	if l.file != nil {
		l.file.Close()
	}
}

// records reads the list from its beginning. A *cyrus.RefusedError is yielded and does
// not end it; any other error does.
func (l *ownList) records() iter.Seq2[cyrus.Record, error] {
	return func(yield func(cyrus.Record, error) bool) {
		if _, err := l.file.Seek(0, io.SeekStart); err != nil {
			yield(cyrus.Record{}, usagef("%s cannot be read twice: %v; give it as a file, or as -", l.name, err))
			return
		}
		r := cyrus.NewReader(l.file)
		for {
			rec, err := r.Read()
			if err == io.EOF {
				return
			}
			l.format = r.Format()
			if !yield(rec, err) {
				return
			}
			if _, refused := errors.AsType[*cyrus.RefusedError](err); err != nil && !refused {
				return
			}
		}
	}
}

// errEntry is why a record is not taken for one of the list's mailboxes.
var errEntry = errors.New("not of this list")

// take says what a record is to the list: a mailbox of it, nothing to it (errEntry), or
// refused.
func (l *ownList) take(rec *cyrus.Record) (client.Own, error) {
	switch {
	case rec.Kind() == cyrus.Skipped:
		return client.Own{}, errEntry
	case rec.Flags&cyrus.Remote != 0 && rec.Server != l.server:
		return client.Own{}, errEntry // the list of a unified murder
	case rec.Flags&cyrus.Remote != 0:
		return client.Own{}, usagef("%s is no backend's own list: it has mailboxes of %s as another server's; take it on %s", l.name, l.server, l.server)
	case rec.Server != "" && rec.Server != l.server:
		return client.Own{}, fmt.Errorf("it is a mailbox of %s, and --server says %s", rec.Server, l.server)
	}
	return client.Own{Mailbox: rec.Name, Statement: rec.Statement(), Moving: rec.Kind() == cyrus.Deactivated}, nil
}

// inspect goes over the list for what it does not know.
func (l *ownList) inspect(ctx context.Context, show *progress) error {
	n := 0
	for rec, err := range l.records() {
		if n++; n%1024 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		if show.due() {
			show.draw(fmt.Sprintf("%s: %d records", l.name, n))
		}
		if refused, ok := errors.AsType[*cyrus.RefusedError](err); ok {
			l.refuse(show, fmt.Sprintf("%s:%d", l.name, refused.Place.Line), refused.Name, refused.Err)
			continue
		}
		if err != nil {
			show.clear()
			if _, ok := errors.AsType[*fault](err); ok {
				return err
			}
			return refusedf("%s: %s; nothing was changed", l.name, strings.TrimPrefix(plain(err.Error()), "cyrus: "))
		}
		if l.format == cyrus.Text {
			l.last = max(l.last, string(rec.Name))
		}
		_, err := l.take(&rec)
		switch {
		case errors.Is(err, errEntry) && rec.Kind() != cyrus.Skipped:
			l.skips["other server's mailbox"]++
		case errors.Is(err, errEntry):
			l.skips[rec.SkipReason()]++
			if rec.Flags&cyrus.Reserved != 0 && rec.Flags&cyrus.Deleted == 0 {
				l.unsure[rec.Name] = true
			}
		case err != nil:
			if _, ok := errors.AsType[*fault](err); ok {
				return err
			}
			l.refuse(show, fmt.Sprintf("%s:%d", l.name, rec.Place.Line), string(rec.Name), err)
		}
	}
	show.clear()
	return nil
}

// refuse reports a record that cannot be read. The backend may hold its mailbox.
func (l *ownList) refuse(show *progress, place, name string, err error) {
	l.refused++
	switch {
	case errors.Is(err, cyrus.ErrLeftOut):
		l.leftOut = true
	case name == "":
		l.nameless = true
	default:
		l.unsure[directory.MailboxName(name)] = true
	}
	reason := plain(bare(err))
	if l.a.format != formatJSON {
		show.clear()
		if name != "" {
			name = plain(name) + ": "
		}
		l.a.printf("%s: refused: %s%s\n", place, name, reason)
		return
	}
	if len(l.refusals) == maxRefusals {
		l.cut = true
		return
	}
	l.refusals = append(l.refusals, refusedJSON{place, name, reason})
}

// own is the list.
func (l *ownList) own() iter.Seq2[client.Own, error] {
	return func(yield func(client.Own, error) bool) {
		for rec, err := range l.records() {
			if _, refused := errors.AsType[*cyrus.RefusedError](err); refused {
				continue
			}
			var own client.Own
			if err == nil {
				if own, err = l.take(&rec); err != nil {
					continue // it was reported
				}
			}
			if !yield(own, err) {
				return
			}
		}
	}
}

// partial reports whether the list lacks mailboxes that the backend may hold.
func (l *ownList) partial() bool { return l.refused > 0 }

// keep reports whether the list may lack name though the backend holds it: its record
// was refused, or says only that the name is reserved; JSON cannot hold it; or a text
// list ends before it.
func (l *ownList) keep(name directory.MailboxName) bool {
	return l.unsure[name] || l.leftOut && !utf8.ValidString(string(name)) || l.beyond(name)
}

// beyond reports whether name lies behind the end of a text list, which has no end
// mark.
func (l *ownList) beyond(name directory.MailboxName) bool {
	return l.format == cyrus.Text && !l.whole && string(name) > l.last
}

// whyKept says what may be kept.
func (l *ownList) whyKept() string {
	switch {
	case len(l.unsure) > 0 || l.leftOut || l.nameless:
		return "the list has their names as reserved, or in records that were refused"
	case l.format == cyrus.Text && !l.whole:
		return "they lie behind its last line, and a text list has no end mark: --whole says that it is whole"
	}
	return "its records do not say"
}
