package mupdatewire

import (
	"bufio"
	"bytes"
	"errors"
	"io"
)

// Limits bound what a Reader takes.
type Limits struct {
	Word   int // octets of a tag or a command
	String int // octets of one string
	Args   int // strings of a line
	Line   int // octets of a line with its literals, as far as they are kept
	// Skip is how many octets more are read over to find the end of a line that is
	// refused.
	Skip int
}

// SyntaxError is a line that makes no sense. It was read to its end.
type SyntaxError struct {
	Tag  string // "*" if the line has none
	Text string // what a server answers after BAD
}

func (e *SyntaxError) Error() string { return "mupdatewire: " + e.Text }

// ErrTooLong: a line beyond all limits. Where it ends is not known, so nothing more
// can be read.
var ErrTooLong = errors.New("mupdatewire: line too long")

// The texts of syntax errors are those of Cyrus.
const (
	textNeedCommand = "Need command"
	textNullCommand = "Null command"
	textBadly       = "Badly formed arguments"
	textExtra       = "Extra arguments"
	textTooLong     = "Argument too long"
)

// Line is one line: a command, or an answer.
type Line struct {
	Tag  string
	Word string // as it was written
	Args []string
}

// Reader reads lines. It is for one goroutine.
type Reader struct {
	b       *bufio.Reader
	limits  Limits
	goAhead func() error
	spent   int // octets of this line

	tag, command string // of the line before
}

// NewReader returns a Reader of r. goAhead is called where a literal was announced
// whose octets the other side sends only when it is told to; nil where servers are
// read from, whose literals need no leave.
func NewReader(r io.Reader, limits Limits, goAhead func() error) *Reader {
	return &Reader{b: bufio.NewReaderSize(r, 4096), limits: limits, goAhead: goAhead}
}

// SetLimits changes the limits from the next line on.
func (r *Reader) SetLimits(l Limits) { r.limits = l }

// Buffered is how many octets were received and not read.
func (r *Reader) Buffered() int { return r.b.Buffered() }

// Wait returns when the first octet of the next line is there.
func (r *Reader) Wait() error {
	_, err := r.b.Peek(1)
	return err
}

// ReadLine reads one line.
//
// Errors: *SyntaxError, after which the next line can be read; ErrTooLong and those
// of the connection, io.ErrUnexpectedEOF inside a line, which are final.
func (r *Reader) ReadLine() (Line, error) {
	r.spent = 0
	var l Line
	if _, err := r.b.Peek(1); err != nil {
		return l, err
	}
	tag, c, err := r.word(r.tag)
	if err != nil {
		return l, r.broken(err)
	}
	l.Tag, r.tag = tag, tag
	if c != ' ' || tag == "" {
		return l, r.refuse(c, "*", textNeedCommand)
	}
	if l.Word, c, err = r.word(r.command); err != nil {
		return l, r.broken(err)
	}
	r.command = l.Word
	if l.Word == "" {
		return l, r.refuse(c, tag, textNullCommand)
	}
	for c == ' ' {
		if c, err = r.octet(); err != nil {
			return l, r.broken(err)
		}
		if len(l.Args) == r.limits.Args {
			return l, r.refuse(c, tag, textExtra)
		}
		var arg string
		var fault string
		if arg, c, fault, err = r.string(c); err != nil {
			return l, r.broken(err)
		}
		if fault != "" {
			return l, r.refuse(c, tag, fault)
		}
		if l.Args == nil {
			l.Args = make([]string, 0, 3) // of a record
		}
		l.Args = append(l.Args, arg)
	}
	if !r.atEnd(c) {
		return l, r.refuse(c, tag, textExtra)
	}
	return l, nil
}

// Raw reads a line as it is, without its end: an answer in an exchange of SASL.
//
// Errors: as ReadLine; one longer than limits.Line is a *SyntaxError.
func (r *Reader) Raw() (string, error) {
	r.spent = 0
	var b []byte
	for {
		c, err := r.octet()
		if err != nil {
			return "", r.broken(err)
		}
		switch {
		case c == '\n':
			if n := len(b); n > 0 && b[n-1] == '\r' {
				b = b[:n-1]
			}
			return string(b), nil
		case len(b) == r.limits.Line:
			return "", r.refuse(c, "*", textTooLong)
		}
		b = append(b, c)
	}
}

// octet reads one octet of the line.
func (r *Reader) octet() (byte, error) {
	if r.spent >= r.limits.Line+r.limits.Skip {
		return 0, ErrTooLong
	}
	c, err := r.b.ReadByte()
	if err == nil {
		r.spent++
	}
	return c, err
}

// here is what was received and not read. take counts n octets of it as read.
func (r *Reader) here() []byte {
	b, _ := r.b.Peek(r.b.Buffered())
	return b
}

func (r *Reader) take(n int) {
	r.spent += n
	_, _ = r.b.Discard(n)
}

// fits says whether n octets more are within the limits of a line.
func (r *Reader) fits(n int) bool { return r.spent+n <= r.limits.Line }

// word reads a word and the octet behind it. before is what it most likely is: what
// the line before had in its place.
func (r *Reader) word(before string) (string, byte, error) {
	// Nearly always all of it is here.
	if b, n := r.here(), len(before); n > 0 && n < len(b) && b[n] == ' ' && r.fits(n+1) && string(b[:n]) == before {
		r.take(n + 1)
		return before, ' ', nil
	}
	var buf [64]byte
	b := buf[:0]
	for {
		c, err := r.octet()
		if err != nil {
			return "", 0, err
		}
		switch c {
		case ' ', '\t', '\r', '\n', '(', ')', '"', 0:
			return string(b), c, nil
		}
		if len(b) == r.limits.Word {
			return "", c, nil
		}
		b = append(b, c)
	}
}

// string reads a string that begins with c and the octet behind it. fault, if it is
// not empty, is what is wrong with it; c is the octet read last then.
func (r *Reader) string(c byte) (s string, next byte, fault string, err error) {
	switch c {
	case '"':
		return r.quoted()
	case '{':
		return r.literal()
	case '\r', '\n':
		return "", c, textBadly, nil
	}
	return "", c, textExtra, nil
}

func (r *Reader) quoted() (s string, next byte, fault string, err error) {
	// Nearly always all of it is here, and nothing in it has to be looked at.
	for here, n := r.here(), 0; n+1 < len(here) && n <= r.limits.String && r.fits(n+2); n++ {
		c := here[n]
		if c == '"' {
			s, next = string(here[:n]), here[n+1]
			r.take(n + 2)
			return s, next, "", nil
		}
		if c < ' ' || c == '\\' {
			break
		}
	}
	var b []byte
	for {
		c, err := r.octet()
		if err != nil {
			return "", 0, "", err
		}
		switch c {
		case '"':
			next, err = r.octet()
			return string(b), next, "", err
		case '\\':
			if c, err = r.octet(); err != nil {
				return "", 0, "", err
			}
		}
		switch {
		case c == '\r' || c == '\n' || c == 0:
			return "", c, textBadly, nil
		case len(b) == r.limits.String || r.spent > r.limits.Line:
			return "", c, textTooLong, nil
		}
		b = append(b, c)
	}
}

// maxLiteral is more than any literal that is read over.
const maxLiteral = 1 << 30

func (r *Reader) literal() (s string, next byte, fault string, err error) {
	n, digits, now := 0, 0, false
	for {
		c, err := r.octet()
		if err != nil {
			return "", 0, "", err
		}
		switch {
		case '0' <= c && c <= '9' && !now && n < maxLiteral/10:
			n, digits = 10*n+int(c-'0'), digits+1
			continue
		case c == '+' && digits > 0 && !now:
			now = true
			continue
		case '0' <= c && c <= '9' && !now:
			return "", 0, "", ErrTooLong // so nobody knows where it ends
		case c == '}' && digits > 0:
		default:
			return "", c, textBadly, nil
		}
		break
	}
	c, err := r.octet()
	if err == nil && c == '\r' {
		c, err = r.octet()
	}
	if err != nil {
		return "", 0, "", err
	}
	if c != '\n' {
		return "", c, textBadly, nil
	}
	tooLong := n > r.limits.String || r.spent+n > r.limits.Line
	if !now && r.goAhead != nil {
		if tooLong {
			// It is not sent without leave: this is the end of the line.
			return "", c, textTooLong, nil
		}
		if err := r.goAhead(); err != nil {
			return "", 0, "", err
		}
	}
	if tooLong {
		if r.spent+n > r.limits.Line+r.limits.Skip {
			return "", 0, "", ErrTooLong
		}
		r.spent += n
		if _, err := r.b.Discard(n); err != nil {
			return "", 0, "", err
		}
		c, err := r.octet()
		return "", c, textTooLong, err
	}
	b, null, err := r.octets(n)
	if err != nil {
		return "", 0, "", err
	}
	if next, err = r.octet(); err == nil && null {
		fault = textBadly
	}
	return string(b), next, fault, err
}

// octets reads n octets, asking for room as they come: who announces much and sends
// little costs little.
func (r *Reader) octets(n int) (b []byte, null bool, err error) {
	r.spent += n
	for len(b) < n {
		part := min(n-len(b), 4096)
		at := len(b)
		b = append(b, make([]byte, part)...)
		if _, err := io.ReadFull(r.b, b[at:]); err != nil {
			return nil, false, err
		}
		for _, c := range b[at:] {
			null = null || c == 0
		}
	}
	return b, null, nil
}

// atEnd reports whether c, and what follows it, ends the line.
func (r *Reader) atEnd(c byte) bool {
	if c == '\r' {
		next, err := r.b.Peek(1)
		if err == nil && next[0] == '\n' {
			_, _ = r.octet()
			return true
		}
		return false
	}
	return c == '\n'
}

// refuse reads over the rest of the line, of which last was read, with the literals in
// it that come without leave: what is in them must not be read as commands.
func (r *Reader) refuse(last byte, tag, text string) error {
	c := last
	var err error
	for {
		var tail []byte // the end of what was read
		for c != '\n' {
			if len(tail) == maxTail {
				tail = tail[:copy(tail, tail[1:])]
			}
			tail = append(tail, c)
			if c, err = r.octet(); err != nil {
				return r.broken(err)
			}
		}
		n := announced(tail)
		if n < 0 {
			return &SyntaxError{Tag: tag, Text: text}
		}
		if r.spent+n > r.limits.Line+r.limits.Skip {
			return ErrTooLong
		}
		r.spent += n
		if _, err = r.b.Discard(n); err == nil {
			c, err = r.octet()
		}
		if err != nil {
			return r.broken(err)
		}
	}
}

// maxTail is more than "{n+}" and a CR of any n that is read over.
const maxTail = 24

// announced returns of how many octets is the literal that the end of a line announces
// and that comes without leave; -1 if there is none.
func announced(tail []byte) int {
	tail, is := bytes.CutSuffix(bytes.TrimSuffix(tail, []byte("\r")), []byte("+}"))
	at := bytes.LastIndexByte(tail, '{')
	if !is || at < 0 {
		return -1
	}
	n, digits := 0, tail[at+1:]
	for _, c := range digits {
		if c < '0' || c > '9' {
			return -1
		}
		n = min(10*n+int(c-'0'), maxLiteral)
	}
	if len(digits) == 0 {
		return -1
	}
	return n
}

func (r *Reader) broken(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
