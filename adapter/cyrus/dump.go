package cyrus

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/rookery-mail/rookery/directory"
)

// Reader reads a dump of a mailbox list, record by record: JSON or text,
// whichever it finds. It holds one record at a time, however long the dump or a
// line of it, and a hash of each name. It is for one goroutine.
type Reader struct {
	in     *input
	format Format
	decode interface {
		// next reads the next record into draft. Its errors are those of Read;
		// what makes a record unfit to be a fact it leaves in the draft.
		next(*draft) error
	}
	seen  *seen
	draft draft
	cache cache
	err   error // how the reading ended
}

// Format is one of the two shapes of a dump.
type Format uint8

const (
	// JSON is the dump of Cyrus 3.6 and later.
	JSON Format = iota + 1
	// Text is the dump of releases before 3.6.
	Text
)

func (f Format) String() string {
	switch f {
	case JSON:
		return "json"
	case Text:
		return "text"
	}
	return "unknown"
}

// maxRecord bounds a record of a dump. A legal one stays far below: a name has
// at most 490 octets and an ACL 64 KiB; a history of names is the rest.
const maxRecord = 1 << 20

// NewReader returns a reader of the dump r. Nothing is read before Read.
func NewReader(r io.Reader) *Reader {
	return &Reader{in: newInput(r, maxRecord), seen: newSeen()}
}

// Format returns the shape of the dump; zero before the first Read.
func (r *Reader) Format() Format { return r.format }

// Place returns how far the reading came: where the next record will be looked
// for.
func (r *Reader) Place() Place { return r.in.place() }

// Read returns the next record. The record is the caller's.
//
// Errors: io.EOF after the last record of a complete dump. A *RefusedError
// tells of this record alone: go on reading. Any other ends the reading and is
// returned again: ErrTruncated, ErrFormat, or what the input itself failed with.
//
// A text dump has no end mark: one that was cut exactly behind a line cannot be
// told from a whole one.
func (r *Reader) Read() (Record, error) {
	if r.err != nil {
		return Record{}, r.err
	}
	if r.decode == nil {
		if r.err = r.open(); r.err != nil {
			return Record{}, r.err
		}
	}
	r.draft.reset()
	err := r.decode.next(&r.draft)
	if err == nil {
		err = r.finish(&r.draft)
	}
	if err != nil {
		if _, ok := errors.AsType[*RefusedError](err); !ok {
			r.err = err
		}
		return Record{}, err
	}
	return r.draft.rec, nil
}

// open finds out the format.
func (r *Reader) open() error {
	if bytes.HasPrefix(r.in.peek(3), []byte("\xef\xbb\xbf")) { // a byte order mark: the dump went through an editor
		r.in.pos += 3
	}
	var head []byte
	for {
		head = r.in.peek(sniffed)
		if len(head) == 0 {
			if r.in.err != io.EOF {
				return ended(r.in.err, r.in.place(), "")
			}
			// A text dump of an empty list has no octets either, but far more
			// often this is what a dump that failed has left behind.
			return formatErrorf(r.in.place(), "the input is empty")
		}
		if !bytes.HasPrefix(head, []byte("\n")) && !bytes.HasPrefix(head, []byte("\r\n")) {
			break
		}
		r.in.skipLine()
	}
	switch {
	case bytes.HasPrefix(bytes.TrimLeft(head, " \t\r\n"), []byte{'{'}):
		r.format = JSON
		r.decode = &jsonDump{in: r.in}
	case isTextDump(head):
		r.format = Text
		r.decode = &textDump{in: r.in}
	default:
		found := describe(head)
		if strings.HasSuffix(found, "database") {
			found += ", the list itself: dump it with ctl_mboxlist -d"
		}
		return formatErrorf(r.in.place(), "neither a JSON dump (Cyrus 3.6 and later) nor a text dump (before): found %s", found)
	}
	return nil
}

// sniffed is how many octets tell the format: many more than a name has.
const sniffed = 4096

// isTextDump reports whether head begins with a name, a TAB and a number.
func isTextDump(head []byte) bool {
	name, rest, ok := bytes.Cut(head, []byte{'\t'})
	return ok && len(rest) > 0 && rest[0] >= '0' && rest[0] <= '9' && bytes.IndexByte(name, '\n') < 0 && bytes.IndexByte(name, 0) < 0
}

// describe says what head is the beginning of.
func describe(head []byte) string {
	for _, m := range []struct{ magic, is string }{
		{"\xa1\x02\x8b\x0dskiplist", "a skiplist database"},
		{"\xa1\x02\x8b\x0dtwoskip", "a twoskip database"},
		{"\x1f\x8b", "gzip data: unpack it first"},
		{"BZh", "bzip2 data: unpack it first"},
		{"\xfd7zXZ\x00", "xz data: unpack it first"},
		{"\x28\xb5\x2f\xfd", "zstd data: unpack it first"},
		{"PK\x03\x04", "a zip archive: unpack it first"},
		{"\xff\xfe", "UTF-16 text: the dump as ctl_mboxlist wrote it is wanted"},
		{"\xfe\xff", "UTF-16 text: the dump as ctl_mboxlist wrote it is wanted"},
		{"<", "XML or HTML"},
		{"[", "a JSON array: a dump is one object, name to record"},
		{`"`, "a piece of JSON: a dump begins with {"},
	} {
		if bytes.HasPrefix(head, []byte(m.magic)) {
			return m.is
		}
	}
	if bytes.IndexByte(head, 0) >= 0 {
		return "binary data"
	}
	line, _, _ := bytes.Cut(head, []byte{'\n'})
	return fmt.Sprintf("a line that begins %.60q", line)
}

// draft is a record being read.
type draft struct {
	rec    Record
	name   []byte // as given
	server []byte
	part   []byte
	acl    []byte
	hasACL bool
	unfit  error // why it cannot be a fact; of no account if it is none
}

func (d *draft) reset() {
	*d = draft{name: d.name[:0], server: d.server[:0], part: d.part[:0], acl: d.acl[:0]}
}

// finish checks the draft and fills in the strings of its record.
func (r *Reader) finish(d *draft) error {
	rec := &d.rec
	rec.Name = directory.MailboxName(d.name)
	if len(d.name) == 0 {
		return refuse(rec.Place, "", fmt.Errorf("%w: empty", directory.ErrInvalidName))
	}
	if !r.seen.add(d.name) {
		return refuse(rec.Place, string(rec.Name), errors.New("duplicate: this name stood in the dump before"))
	}
	if rec.Kind() == Skipped {
		rec.Server, rec.Partition, rec.ACL = directory.BackendName(d.server), string(d.part), string(d.acl)
		return nil
	}
	if err := r.finishFact(d); err != nil {
		return refuse(rec.Place, string(rec.Name), err)
	}
	return nil
}

func (r *Reader) finishFact(d *draft) error {
	rec := &d.rec
	if d.unfit != nil {
		return d.unfit
	}
	name, err := directory.ParseName(string(rec.Name))
	if err != nil {
		return err
	}
	rec.Name = name
	if !d.hasACL {
		return fmt.Errorf("%w: there is none", directory.ErrInvalidACL)
	}
	if rec.ACL, err = r.cache.acl(d.acl); err != nil {
		return err
	}
	location, err := r.cache.location(d.server, d.part)
	if err != nil {
		return err
	}
	rec.Server, rec.Partition = location.Backend, location.Partition
	switch {
	case rec.Flags&Remote != 0 && rec.Server == "":
		return fmt.Errorf("%w: held by another server, and none is named", directory.ErrInvalidLocation)
	case rec.Flags&(Moving|Remote) == Moving && rec.Server != "":
		rec.MovingTo = location.String()
		rec.Server, rec.Partition, rec.HasPartition = "", "", false
	}
	return checkTexts(rec)
}

func checkTexts(rec *Record) error {
	if len(rec.UniqueID) > directory.MaxMailboxID {
		return fmt.Errorf("%w: a mailbox id of %d octets", directory.ErrTooLarge, len(rec.UniqueID))
	}
	for i := range len(rec.UniqueID) {
		if c := rec.UniqueID[i]; c <= ' ' || c >= 0x7f {
			return fmt.Errorf("%w: octet %#02x in the mailbox id %q", directory.ErrInvalid, c, rec.UniqueID)
		}
	}
	if len(rec.SpecialUse) > directory.MaxSpecialUse {
		return fmt.Errorf("%w: a special use of %d octets", directory.ErrTooLarge, len(rec.SpecialUse))
	}
	if i := strings.IndexFunc(rec.SpecialUse, func(c rune) bool { return c < ' ' || c >= 0x7f }); i >= 0 {
		return fmt.Errorf("%w: octet %#02x in the special use", directory.ErrInvalid, rec.SpecialUse[i])
	}
	return nil
}

// cache keeps what the next record is likely to repeat: a dump has few
// locations, and a user's folders mostly the same ACL.
type cache struct {
	locations map[string]directory.Location // by server!partition, as given
	lastACL   string                        // checked
	scratch   []byte
}

// maxCached bounds the cache against an input that names a new location in
// each record.
const maxCached = 4096

// location checks server and partition, either of which may be empty.
func (c *cache) location(server, partition []byte) (directory.Location, error) {
	c.scratch = append(append(append(c.scratch[:0], server...), '!'), partition...)
	if l, ok := c.locations[string(c.scratch)]; ok {
		return l, nil
	}
	var l directory.Location
	var err error
	if len(server) > 0 {
		if l.Backend, err = directory.ParseBackend(string(server)); err != nil {
			return l, fmt.Errorf("%w: %w", directory.ErrInvalidLocation, err)
		}
	}
	if l.Partition, err = directory.ParsePartition(string(partition)); err != nil {
		return l, err
	}
	if c.locations == nil || len(c.locations) >= maxCached {
		c.locations = make(map[string]directory.Location)
	}
	c.locations[string(c.scratch)] = l
	return l, nil
}

// acl checks an ACL and returns it as a string.
func (c *cache) acl(acl []byte) (string, error) {
	if string(acl) == c.lastACL {
		return c.lastACL, nil
	}
	s := string(acl)
	if err := directory.CheckACL(s); err != nil {
		return "", err
	}
	c.lastACL = s
	return s, nil
}
