package cyrus

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/rookery-mail/rookery/directory"
)

// textDump reads `name TAB flags SP [server!]partition SP acl`, a line a
// record.
type textDump struct{ in *input }

func (t *textDump) next(d *draft) error {
	for {
		place := t.in.place()
		line, cut := t.in.readLine()
		switch {
		case cut && place.Offset == t.in.offset():
			if err := t.in.err; err != io.EOF {
				return ended(err, place, "")
			}
			return t.in.err
		case cut:
			return ended(t.in.err, t.in.place(), "a line")
		case t.in.over:
			return refuse(place, "", fmt.Errorf("%w: a line of more than %d octets", directory.ErrTooLarge, t.in.max))
		case len(line) == 0:
			continue
		}
		d.rec.Place = place
		return t.parse(d, line)
	}
}

func (t *textDump) parse(d *draft, line []byte) error {
	rec := &d.rec
	name, rest, ok := bytes.Cut(line, []byte{'\t'})
	if !ok {
		return refuse(rec.Place, string(name[:min(len(name), maxNameShown)]), errors.New("no TAB behind the name"))
	}
	refuse := func(err error) error { return refuse(rec.Place, string(name), err) }
	if i := bytes.IndexByte(line, 0); i >= 0 {
		return refuse(fmt.Errorf("a NUL at column %d", i+1))
	}
	number, rest, ok := bytes.Cut(rest, []byte{' '})
	if !ok {
		return refuse(errors.New("no space behind the flags"))
	}
	n, err := strconv.ParseUint(string(number), 10, 32)
	if err != nil {
		return refuse(fmt.Errorf("flags %.40q are no decimal number", number))
	}
	if rec.Type, rec.Flags, err = parseTextType(uint32(n)); err != nil {
		return refuse(err)
	}
	d.name = append(d.name, name...)

	location, acl, ok := bytes.Cut(rest, []byte{' '})
	if !ok {
		d.unfit = errors.New("no space behind the location, so no ACL")
	}
	// A partition with a second ! in it is refused later.
	if server, partition, ok := bytes.Cut(location, []byte{'!'}); ok {
		d.server, location = append(d.server, server...), partition
		if len(server) == 0 && d.unfit == nil {
			d.unfit = fmt.Errorf("%w: no server stands before '!'", directory.ErrInvalidLocation)
		}
	}
	d.part = append(d.part, location...)
	rec.HasPartition = len(location) > 0
	d.acl, d.hasACL = append(d.acl, acl...), true
	return nil
}
