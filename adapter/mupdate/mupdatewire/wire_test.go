package mupdatewire

import (
	"bytes"
	"errors"
	"io"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
)

var testLimits = Limits{Word: 8, String: 64, Args: 3, Line: 128, Skip: 256}

// read reads all lines of text: what was read, and how it ended.
func read(text io.Reader, goAhead func() error) (lines []Line, faults []string, end error) {
	r := NewReader(text, testLimits, goAhead)
	for {
		l, err := r.ReadLine()
		if e, ok := errors.AsType[*SyntaxError](err); ok {
			faults = append(faults, e.Tag+" "+e.Text)
			continue
		}
		if err != nil {
			return lines, faults, err
		}
		lines = append(lines, l)
	}
}

func TestReadLine(t *testing.T) {
	asked := 0
	goAhead := func() error { asked++; return nil }
	for _, test := range []struct {
		text   string
		lines  []Line
		faults []string
		end    error
		asked  int
	}{
		{"X0 NOOP\r\n", []Line{{"X0", "NOOP", nil}}, nil, io.EOF, 0},
		{"X0 noop\nX1 FIND \"a\"\n", []Line{{"X0", "noop", nil}, {"X1", "FIND", []string{"a"}}}, nil, io.EOF, 0},
		{"X0 FIND \"a\\\"b\\\\c\" \"\"\r\n", []Line{{"X0", "FIND", []string{`a"b\c`, ""}}}, nil, io.EOF, 0},
		{"X0 FIND {3+}\r\na\r\n {2}\r\nbc\r\n", []Line{{"X0", "FIND", []string{"a\r\n", "bc"}}}, nil, io.EOF, 1},
		{"X0 FIND {0+}\r\n\r\n", []Line{{"X0", "FIND", []string{""}}}, nil, io.EOF, 0},
		{"X0 FIND \"\xe9\t\"\r\n", []Line{{"X0", "FIND", []string{"\xe9\t"}}}, nil, io.EOF, 0},
		{"X0\r\nX1 NOOP\r\n", []Line{{"X1", "NOOP", nil}}, []string{"* Need command"}, io.EOF, 0},
		{"X0 \r\n", nil, []string{"X0 Null command"}, io.EOF, 0},
		{"toolongtag NOOP\r\n", nil, []string{"* Need command"}, io.EOF, 0},
		{"X0 FIND atom\r\nX1 NOOP\r\n", []Line{{"X1", "NOOP", nil}}, []string{"X0 Extra arguments"}, io.EOF, 0},
		{"X0 F \"a\" \"b\" \"c\" \"d\"\r\n", nil, []string{"X0 Extra arguments"}, io.EOF, 0},
		{"X0 F \"a\r\n", nil, []string{"X0 Badly formed arguments"}, io.EOF, 0},
		{"X0 F \"a\x00\"\r\n", nil, []string{"X0 Badly formed arguments"}, io.EOF, 0},
		{"X0 F {2+}\r\na\x00\r\n", nil, []string{"X0 Badly formed arguments"}, io.EOF, 0},
		{"X0 F {+}\r\n", nil, []string{"X0 Badly formed arguments"}, io.EOF, 0},
		{"X0 F {1-}\r\n", nil, []string{"X0 Badly formed arguments"}, io.EOF, 0},
		{"X0 F {100+}\r\n" + strings.Repeat("x", 100) + "\r\nX1 NOOP\r\n", []Line{{"X1", "NOOP", nil}}, []string{"X0 Argument too long"}, io.EOF, 0},
		{"X0 F {100}\r\nX1 NOOP\r\n", []Line{{"X1", "NOOP", nil}}, []string{"X0 Argument too long"}, io.EOF, 0},
		{"X0 F \"" + strings.Repeat("x", 70) + "\"\r\n", nil, []string{"X0 Argument too long"}, io.EOF, 0},
		{"X0 F {400+}\r\n", nil, nil, ErrTooLong, 0},
		{"X0 F {99999999999999999999+}\r\nX1 NOOP\r\n", nil, nil, ErrTooLong, 0},
		// The literals of a line that is refused are no commands.
		{"X0 F a {9+}\r\nX1 NOOP\r\n\r\nX2 NOOP\r\n", []Line{{"X2", "NOOP", nil}}, []string{"X0 Extra arguments"}, io.EOF, 0},
		{"X0 F \"a\x00\" {9+}\nX1 NOOP\r\n {9+}\r\nX2 NOOP\r\n\nX3 NOOP\r\n", []Line{{"X3", "NOOP", nil}}, []string{"X0 Badly formed arguments"}, io.EOF, 0},
		{"X0 F a {9}\r\nX1 NOOP\r\n", []Line{{"X1", "NOOP", nil}}, []string{"X0 Extra arguments"}, io.EOF, 0},
		{"X0 F a {900+}\r\nX1 NOOP\r\n", nil, nil, ErrTooLong, 0},
		{strings.Repeat("x", 500), nil, nil, ErrTooLong, 0},
		{"X0 F {5+}\r\nab", nil, nil, io.ErrUnexpectedEOF, 0},
		{"X0 F \"a", nil, nil, io.ErrUnexpectedEOF, 0},
		{"X0 F \"a\"\rX\r\n", nil, []string{"X0 Extra arguments"}, io.EOF, 0},
	} {
		asked = 0
		lines, faults, end := read(strings.NewReader(test.text), goAhead)
		if !reflect.DeepEqual(lines, test.lines) || !reflect.DeepEqual(faults, test.faults) || end != test.end || asked != test.asked {
			t.Errorf("%.60q:\ngot  %q, %q, %v, asked %d\nwant %q, %q, %v, asked %d", test.text, lines, faults, end, asked, test.lines, test.faults, test.end, test.asked)
		}
	}
}

func TestAppendString(t *testing.T) {
	for _, test := range []struct{ s, nonSync, sync string }{
		{"", `""`, `""`},
		{"user.a\tb", "\"user.a\tb\"", "\"user.a\tb\""},
		{`a"b`, "{3+}\r\na\"b", "{3}\r\na\"b"},
		{`a\b`, "{3+}\r\na\\b", "{3}\r\na\\b"},
		{"\xe9", "{1+}\r\n\xe9", "{1}\r\n\xe9"},
	} {
		if got := string(AppendString(nil, test.s, NonSync)); got != test.nonSync {
			t.Errorf("%q: got %q, want %q", test.s, got, test.nonSync)
		}
		if got := string(AppendString(nil, test.s, Sync)); got != test.sync {
			t.Errorf("%q: got %q, want %q", test.s, got, test.sync)
		}
	}
	if got := Text("a\"b\r\n\xe9\\"); got != "a'b   '" {
		t.Errorf("Text: got %q", got)
	}
}

// What is written is read back; whatever is read ends, and keeps to the limits; and in
// which pieces it arrives changes nothing.
func FuzzReadLine(f *testing.F) {
	f.Add([]byte("X0 FIND \"user.a\" {3+}\r\nabc\r\n"))
	f.Add([]byte("X0 F {3}\r\nabc\n\n(\r\n"))
	f.Add([]byte("X0 F" + strings.Repeat(" \""+strings.Repeat("x", 60)+"\"", 3) + "\r\n"))
	f.Add([]byte("X0 MAILBOX \"user.a\" \"be1!p\" \"a\tlrs\t\"\r\nX0 MAILBOX \"user.\\\"b\" \"be1!p\" \"\"\r\nX0 MAILBOXES \"\"\rX1 F\r\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		goAhead := func() error { return nil }
		lines, faults, end := read(bytes.NewReader(text), goAhead)
		if l, f, e := read(iotest.OneByteReader(bytes.NewReader(text)), goAhead); !reflect.DeepEqual(l, lines) || !slices.Equal(f, faults) || e != end {
			t.Fatalf("at once: %q, %q, %v\noctet by octet: %q, %q, %v", lines, faults, end, l, f, e)
		}
		r := NewReader(bytes.NewReader(text), testLimits, func() error { return nil })
		for {
			l, err := r.ReadLine()
			if _, ok := errors.AsType[*SyntaxError](err); ok {
				continue
			}
			if err != nil {
				return
			}
			if len(l.Args) > testLimits.Args || len(l.Tag) > testLimits.Word || len(l.Word) > testLimits.Word {
				t.Fatalf("%q", l)
			}
			for _, form := range []Form{NonSync, Sync} {
				b := []byte(l.Tag + " " + l.Word)
				for _, a := range l.Args {
					if len(a) > testLimits.String {
						t.Fatalf("a string of %d octets", len(a))
					}
					b = AppendString(append(b, ' '), a, form)
				}
				again, err := NewReader(bytes.NewReader(append(b, "\r\n"...)), Limits{Word: 8, String: 64, Args: 3, Line: 1024}, func() error { return nil }).ReadLine()
				if err != nil || !reflect.DeepEqual(again, l) {
					t.Fatalf("%q was written as %q and read as %q, %v", l, b, again, err)
				}
			}
		}
	})
}
