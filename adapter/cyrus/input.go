package cyrus

import (
	"bytes"
	"fmt"
	"io"
)

// Place says where in the input a record, a line or an error stands.
type Place struct {
	Line   int   // from 1
	Offset int64 // octets before it
}

func (p Place) String() string { return fmt.Sprintf("line %d (offset %d)", p.Line, p.Offset) }

// input is a window that moves over a stream. It holds what was read and not
// yet used, and the token being read; a token longer than max is passed over
// without being held, so that no input can make the window grow beyond it.
type input struct {
	r   io.Reader
	max int

	buf  []byte
	pos  int   // buf[pos:end] was read and not yet used
	end  int   //
	mark int   // first octet of the token being read; -1: none
	over bool  // the token being read is longer than max
	base int64 // offset of buf[0] in the stream
	line int   // line of buf[pos], from 1
	err  error // why r gave no more; io.EOF at its end
}

const windowSize = 64 << 10

func newInput(r io.Reader, max int) *input {
	return &input{r: r, max: max, buf: make([]byte, windowSize), mark: -1, line: 1}
}

func (in *input) offset() int64 { return in.base + int64(in.pos) }

func (in *input) place() Place { return Place{Line: in.line, Offset: in.offset()} }

// fill reads more. It reports false, with in.err set, when there is no more.
func (in *input) fill() bool {
	if in.err != nil {
		return false
	}
	keep := in.pos
	if in.mark >= 0 {
		keep = in.mark
		if in.end-in.mark > in.max {
			in.over, in.mark, keep = true, -1, in.pos
		}
	}
	if keep > 0 {
		copy(in.buf, in.buf[keep:in.end])
		in.base += int64(keep)
		in.pos -= keep
		in.end -= keep
		if in.mark >= 0 {
			in.mark -= keep
		}
	}
	if in.end == len(in.buf) {
		in.buf = append(in.buf, make([]byte, len(in.buf))...)
	}
	for range 100 {
		n, err := in.r.Read(in.buf[in.end:])
		in.end += n
		if err != nil {
			in.err = err
		}
		if n > 0 {
			return true
		}
		if err != nil {
			return false
		}
	}
	in.err = io.ErrNoProgress
	return false
}

// peek returns the first octets, n of them if the stream has so many, without
// using them.
func (in *input) peek(n int) []byte {
	for in.end-in.pos < n && in.fill() {
	}
	return in.buf[in.pos:min(in.end, in.pos+n)]
}

// begin marks the next octet as the first of a token.
func (in *input) begin() { in.mark, in.over = in.pos, false }

// token ends the token begun and returns it, without its last drop octets. It
// is nil when the token was too long, and valid until the next read.
func (in *input) token(drop int) []byte {
	if in.over || in.mark < 0 || in.pos-in.mark > in.max {
		in.over, in.mark = true, -1
		return nil
	}
	t := in.buf[in.mark : in.pos-drop]
	in.mark = -1
	return t
}

// skipLine uses up a line with its newline. It reports false when the input
// ended first.
func (in *input) skipLine() bool {
	for {
		if i := bytes.IndexByte(in.buf[in.pos:in.end], '\n'); i >= 0 {
			in.pos += i + 1
			in.line++
			return true
		}
		in.pos = in.end
		if !in.fill() {
			return false
		}
	}
}

// readLine reads a line and returns it without its line end, CR LF or LF. It
// reports ended when the input ended before the newline; line is then what
// stands there. A line that is too long is passed over, and in.over is set.
func (in *input) readLine() (line []byte, ended bool) {
	in.begin()
	if !in.skipLine() {
		return in.token(0), true
	}
	line = in.token(1)
	if n := len(line); n > 0 && line[n-1] == '\r' {
		line = line[:n-1]
	}
	return line, false
}
