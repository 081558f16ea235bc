package cyrus

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/rookery-mail/rookery/directory"
)

// jsonDump reads one object, name to record. It takes any layout of white
// space, and holds one string at a time. What is no JSON ends the reading; a
// record that is JSON but no good is passed over.
type jsonDump struct {
	in    *input
	state jsonState

	text   []byte // a string with its escapes undone
	member []byte // the key of the member being read
	bad    error  // the first thing wrong with the present record
	start  int64  // where it begins
	fields [maxFields]string
	n      int
	idents []byteRange // of the identifiers in draft.acl
}

type jsonState uint8

const (
	atStart    jsonState = iota // before the opening brace
	wantEntry                   // behind it
	wantComma                   // behind a record
	afterComma                  // behind a comma
	atEnd                       // behind the closing brace
)

const (
	maxFields = 32 // of one record; Cyrus writes eleven
	maxDepth  = 64 // of nesting; Cyrus writes four
)

type byteRange struct{ from, to int }

func (j *jsonDump) next(d *draft) error {
	for {
		c, err := j.space("the list of mailboxes")
		if j.state == atEnd {
			switch {
			case err == nil:
				return formatErrorf(j.in.place(), "more behind the closing brace: a dump is one object")
			case j.in.err == io.EOF:
				return j.in.err
			}
		}
		if err != nil {
			return err
		}
		place := j.in.place()
		switch {
		case j.state == atStart: // it is a brace, else this were no JSON dump
			j.in.pos++
			j.state = wantEntry
		case c == '"' && j.state != wantComma:
			j.state = wantComma
			return j.entry(d)
		case c == ',':
			j.in.pos++
			was := j.state
			j.state = afterComma
			if was != wantComma {
				return refuse(place, "", ErrLeftOut)
			}
		case c == '}':
			if j.state == afterComma {
				j.state = wantComma
				return refuse(place, "", ErrLeftOut)
			}
			j.in.pos++
			j.state = atEnd
		case j.state == wantComma:
			return j.unexpected(c, "a comma or the closing brace behind a record")
		default:
			return j.unexpected(c, "the name of a mailbox in quotes")
		}
	}
}

// ErrLeftOut: ctl_mboxlist cannot put octets that are no UTF-8 into JSON. It
// leaves such a record out and writes its comma all the same.
var ErrLeftOut = errors.New("nothing where a record should be: Cyrus leaves out a mailbox whose name is not UTF-8")

// entry reads a name and its record.
func (j *jsonDump) entry(d *draft) error {
	d.rec.Place = j.in.place()
	j.start, j.bad, j.n, j.idents = j.in.offset(), nil, 0, j.idents[:0]
	name, err := j.string("a name")
	if err != nil {
		return err
	}
	d.name = append(d.name, name...)
	if err := j.colon(); err != nil {
		return err
	}
	c, err := j.space("a record")
	if err != nil {
		return err
	}
	if c != '{' {
		j.fail(fmt.Errorf("its value is no object"))
		err = j.skip()
	} else {
		err = j.object("a record", func(key []byte) error { return j.field(d, key) })
	}
	if err != nil {
		return err
	}
	j.checkSize()
	if j.bad == nil && d.rec.Type == 0 {
		j.bad = errors.New("no mbtype")
	}
	if j.bad != nil {
		return refuse(d.rec.Place, string(d.name), j.bad)
	}
	return nil
}

// field reads the value of one member of a record.
func (j *jsonDump) field(d *draft, key []byte) error {
	rec := &d.rec
	if j.n == maxFields {
		j.fail(fmt.Errorf("more than %d fields", maxFields))
		return j.skip()
	}
	for _, k := range j.fields[:j.n] {
		if k == string(key) {
			j.fail(fmt.Errorf("the field %.40q stands there twice", key))
		}
	}
	j.fields[j.n] = fieldName(key)
	name := j.fields[j.n]
	j.n++
	switch name {
	case "acl":
		return j.acl(d)
	case "name", "mbtype", "partition", "server", "uniqueid", "legacy_specialuse",
		"uidvalidity", "mtime", "createdmodseq", "foldermodseq":
	default:
		return j.skip() // name_history, and what later releases may add
	}
	v, ok, err := j.scalar(name)
	if err != nil || !ok {
		return err
	}
	switch name {
	case "name":
		if !bytes.Equal(v, d.name) {
			j.fail(fmt.Errorf("its key and its name differ: %.500q", v))
		}
	case "mbtype":
		if rec.Type, rec.Flags, err = parseType(v); err != nil {
			j.fail(err)
		}
	case "partition":
		d.part, rec.HasPartition = append(d.part, v...), true
	case "server":
		d.server = append(d.server, v...)
	case "uniqueid":
		rec.UniqueID = string(v)
	case "legacy_specialuse":
		rec.SpecialUse = string(v)
	case "uidvalidity":
		n, err := strconv.ParseUint(string(v), 10, 32)
		if err != nil {
			d.spoil(fmt.Errorf("%w: uidvalidity %.40q is no number of 32 bits", directory.ErrInvalid, v))
		}
		rec.UIDValidity = uint32(n)
	// The rest is nothing that the directory keeps, so nothing to refuse for.
	case "mtime":
		rec.MTime, _ = strconv.ParseInt(string(v), 10, 64)
	case "createdmodseq":
		rec.CreatedModSeq, _ = strconv.ParseUint(string(v), 10, 64)
	case "foldermodseq":
		rec.FolderModSeq, _ = strconv.ParseUint(string(v), 10, 64)
	}
	return nil
}

// fieldName is key as a string, without an allocation for the ones known.
func fieldName(key []byte) string {
	switch string(key) {
	case "name":
		return "name"
	case "mtime":
		return "mtime"
	case "uidvalidity":
		return "uidvalidity"
	case "createdmodseq":
		return "createdmodseq"
	case "foldermodseq":
		return "foldermodseq"
	case "mbtype":
		return "mbtype"
	case "partition":
		return "partition"
	case "server":
		return "server"
	case "acl":
		return "acl"
	case "uniqueid":
		return "uniqueid"
	case "name_history":
		return "name_history"
	}
	return string(key)
}

// scalar reads a string, or a number as it is written. It reports false for
// null, which is as if the field were not there, and for what is neither: that
// makes the record bad.
func (j *jsonDump) scalar(field string) (v []byte, ok bool, err error) {
	c, err := j.space("a record")
	if err != nil {
		return nil, false, err
	}
	if c == '"' {
		v, err := j.string("a record")
		return v, err == nil, err
	}
	if c == '{' || c == '[' {
		j.fail(fmt.Errorf("%s is no string", field))
		return nil, false, j.skip()
	}
	v, err = j.literal()
	if err != nil {
		return nil, false, err
	}
	if c == '-' || c >= '0' && c <= '9' {
		return v, true, nil
	}
	if c != 'n' {
		j.fail(fmt.Errorf("%s is no string", field))
	}
	return nil, false, nil
}

// acl reads an ACL: an object, identifier to rights, whose order counts.
func (j *jsonDump) acl(d *draft) error {
	c, err := j.space("an ACL")
	if err != nil {
		return err
	}
	if c != '{' {
		j.fail(errors.New("acl is no object"))
		return j.skip()
	}
	d.hasACL = true
	return j.object("an ACL", func(id []byte) error {
		from := len(d.acl)
		if len(j.idents) == directory.MaxACLIdentifiers {
			j.fail(fmt.Errorf("%w: an ACL of more than %d identifiers", directory.ErrTooLarge, directory.MaxACLIdentifiers))
			return j.skip()
		}
		if !j.checkSize() {
			return j.skip()
		}
		d.acl = append(d.acl, id...)
		if bytes.IndexByte(id, '\t') >= 0 {
			d.spoil(fmt.Errorf("%w: a TAB in the identifier %.100q", directory.ErrInvalidACL, id))
		}
		if j.repeated(d.acl, id) {
			j.fail(fmt.Errorf("%w: the identifier %.100q stands there twice", directory.ErrInvalidACL, id))
		}
		j.idents = append(j.idents, byteRange{from, len(d.acl)})
		rights, ok, err := j.scalar("a value of the ACL")
		if err != nil || !ok {
			if err == nil {
				j.fail(fmt.Errorf("%w: rights that are no string", directory.ErrInvalidACL))
			}
			return err
		}
		if bytes.IndexByte(rights, '\t') >= 0 {
			d.spoil(fmt.Errorf("%w: a TAB in the rights %.40q", directory.ErrInvalidACL, rights))
		}
		d.acl = append(append(append(d.acl, '\t'), rights...), '\t')
		return nil
	})
}

// repeated reports whether id is one of the identifiers read before. The cost
// grows with the square, which the limit of an ACL bounds.
func (j *jsonDump) repeated(acl, id []byte) bool {
	for _, r := range j.idents {
		if string(acl[r.from:r.to]) == string(id) {
			return true
		}
	}
	return false
}

// fail makes the present record bad; its first fault is the one that is told.
func (j *jsonDump) fail(err error) {
	if j.bad == nil {
		j.bad = err
	}
}

// spoil makes the record unfit to be a fact.
func (d *draft) spoil(err error) {
	if d.unfit == nil {
		d.unfit = err
	}
}

// checkSize reports whether the present record is still within its bound; else
// it is bad and nothing more of it is kept.
func (j *jsonDump) checkSize() bool {
	if j.in.offset()-j.start > int64(j.in.max) {
		j.fail(fmt.Errorf("%w: a record of more than %d octets", directory.ErrTooLarge, j.in.max))
		return false
	}
	return true
}

// object reads an object. member is called behind each key and its colon and
// reads the value; key is valid until it reads another object.
func (j *jsonDump) object(what string, member func(key []byte) error) error {
	j.in.pos++ // the opening brace
	for first := true; ; first = false {
		c, err := j.space(what)
		if err != nil {
			return err
		}
		if c == '}' && first {
			j.in.pos++
			return nil
		}
		if !first {
			if c == '}' {
				j.in.pos++
				return nil
			}
			if c != ',' {
				return j.unexpected(c, "a comma or a closing brace in "+what)
			}
			j.in.pos++
			if c, err = j.space(what); err != nil {
				return err
			}
		}
		if c != '"' {
			return j.unexpected(c, "a key in quotes in "+what)
		}
		key, err := j.key(what)
		if err != nil {
			return err
		}
		if err := member(key); err != nil {
			return err
		}
	}
}

// key reads the key of a member and the colon behind it.
func (j *jsonDump) key(what string) ([]byte, error) {
	k, err := j.string(what)
	if err != nil {
		return nil, err
	}
	j.member = append(j.member[:0], k...)
	return j.member, j.colon()
}

func (j *jsonDump) colon() error {
	c, err := j.space("a record")
	if err != nil {
		return err
	}
	if c != ':' {
		return j.unexpected(c, "a colon behind a key")
	}
	j.in.pos++
	return nil
}

// space passes over white space and returns the octet behind it, unused.
func (j *jsonDump) space(what string) (byte, error) {
	in := j.in
	for {
		for in.pos < in.end {
			switch c := in.buf[in.pos]; c {
			case '\n':
				in.line++
				in.pos++
			case ' ', '\t', '\r':
				in.pos++
			default:
				return c, nil
			}
		}
		if !in.fill() {
			return 0, ended(in.err, in.place(), what)
		}
	}
}

func (j *jsonDump) unexpected(c byte, want string) error {
	return formatErrorf(j.in.place(), "octet %q where %s should be", []byte{c}, want)
}

// isPlain reports whether c stands for itself in a string.
func isPlain(c byte) bool { return c >= ' ' && c != '"' && c != '\\' }

// string reads a string, escapes undone, valid until the next read. One that is
// too long comes as nil, and the record is bad.
func (j *jsonDump) string(what string) ([]byte, error) {
	in := j.in
	in.pos++ // the opening quote
	in.begin()
	escaped := false
	for {
		for in.pos < in.end && isPlain(in.buf[in.pos]) {
			in.pos++
		}
		if in.pos == in.end {
			if !in.fill() {
				return nil, ended(in.err, in.place(), what)
			}
			continue
		}
		switch c := in.buf[in.pos]; c {
		case '"':
			in.pos++
			t := in.token(1)
			if in.over {
				j.fail(fmt.Errorf("%w: a string of more than %d octets", directory.ErrTooLarge, in.max))
				return nil, nil
			}
			if escaped {
				return j.unescape(t)
			}
			return t, nil
		case '\\':
			escaped = true
			in.pos++
			if in.pos == in.end && !in.fill() {
				return nil, ended(in.err, in.place(), what)
			}
			in.pos++
		default:
			return nil, formatErrorf(in.place(), "octet %#02x in a string", c)
		}
	}
}

// unescape undoes the escapes of s into j.text.
func (j *jsonDump) unescape(s []byte) ([]byte, error) {
	j.text = j.text[:0]
	for len(s) > 0 {
		i := bytes.IndexByte(s, '\\')
		if i < 0 {
			j.text = append(j.text, s...)
			break
		}
		j.text = append(j.text, s[:i]...)
		c, rest := s[i+1], s[i+2:]
		switch c {
		case '"', '\\', '/':
			j.text = append(j.text, c)
		case 'b':
			j.text = append(j.text, '\b')
		case 'f':
			j.text = append(j.text, '\f')
		case 'n':
			j.text = append(j.text, '\n')
		case 'r':
			j.text = append(j.text, '\r')
		case 't':
			j.text = append(j.text, '\t')
		case 'u':
			r, ok := hex4(rest)
			if !ok {
				return nil, formatErrorf(j.in.place(), "a \\u without four hexadecimal digits before here")
			}
			rest = rest[4:]
			if utf16.IsSurrogate(r) {
				low := rune(-1)
				if len(rest) >= 6 && rest[0] == '\\' && rest[1] == 'u' {
					low, _ = hex4(rest[2:])
				}
				if r = utf16.DecodeRune(r, low); r == utf8.RuneError {
					j.fail(errors.New("half a surrogate pair in a string"))
				} else {
					rest = rest[6:]
				}
			}
			j.text = utf8.AppendRune(j.text, r)
		default:
			return nil, formatErrorf(j.in.place(), "an escape \\%c before here, which JSON has not", c)
		}
		s = rest
	}
	return j.text, nil
}

func hex4(s []byte) (rune, bool) {
	if len(s) < 4 {
		return -1, false
	}
	n, err := strconv.ParseUint(string(s[:4]), 16, 16)
	return rune(n), err == nil
}

// literal reads a number, true, false or null, as it is written.
func (j *jsonDump) literal() ([]byte, error) {
	in := j.in
	place := in.place()
	in.begin()
	for {
		for in.pos < in.end && isLiteral(in.buf[in.pos]) {
			in.pos++
		}
		if in.pos < in.end || !in.fill() {
			break
		}
	}
	if in.pos == in.end && in.err != nil {
		return nil, ended(in.err, in.place(), "a record")
	}
	t := in.token(0)
	switch {
	case len(t) == 0 || len(t) > 40:
		c := in.buf[in.pos]
		return nil, formatErrorf(place, "octet %q where a value should be", []byte{c})
	case string(t) == "null" || string(t) == "true" || string(t) == "false":
	default:
		if _, err := strconv.ParseFloat(string(t), 64); err != nil {
			return nil, formatErrorf(place, "%.40q where a value should be", t)
		}
	}
	return t, nil
}

func isLiteral(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '-' || c == '+' || c == '.'
}

// skip passes over a value of any kind.
func (j *jsonDump) skip() error {
	var open [maxDepth]byte // the closing bracket that each open one waits for
	depth, what := 0, "a record"
	value := func() error {
		c, err := j.space(what)
		switch {
		case err != nil:
			return err
		case c == '{' || c == '[':
			if depth == maxDepth {
				return formatErrorf(j.in.place(), "nested more than %d deep", maxDepth)
			}
			open[depth] = c + 2
			depth++
			j.in.pos++
		case c == '"':
			_, err = j.string(what)
		default:
			_, err = j.literal()
		}
		return err
	}
	if err := value(); err != nil {
		return err
	}
	for first := depth > 0; depth > 0; {
		before := depth
		c, err := j.space(what)
		if err != nil {
			return err
		}
		if c == open[depth-1] {
			j.in.pos++
			depth--
			first = false
			continue
		}
		if !first {
			if c != ',' {
				return j.unexpected(c, "a comma or a closing bracket")
			}
			j.in.pos++
			if c, err = j.space(what); err != nil {
				return err
			}
		}
		if open[depth-1] == '}' {
			if c != '"' {
				return j.unexpected(c, "a key in quotes")
			}
			if _, err := j.string(what); err != nil {
				return err
			}
			if err := j.colon(); err != nil {
				return err
			}
		}
		if err := value(); err != nil {
			return err
		}
		first = depth > before
	}
	return nil
}
