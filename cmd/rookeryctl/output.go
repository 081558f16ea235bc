package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/rookery-mail/rookery/client"
)

// What -o may be.
const (
	formatTable = "table"
	formatJSON  = "json"
	formatIMAP  = "imap"
)

// document prints v as the command's one JSON document.
func (a *app) document(v any) error {
	b, err := encode(v)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	if err := json.Indent(&out, b, "", "  "); err != nil {
		return err
	}
	out.WriteByte('\n')
	_, err = a.stdout.Write(out.Bytes())
	return err
}

// encode is json.Marshal that leaves <, > and & alone.
func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	return bytes.TrimRight(b.Bytes(), "\n"), err
}

// array prints a JSON document whose main part is one long array, item by item:
// {"key": [...], and the fields of a trailer}. It is no JSON before end, so a
// listing that broke off cannot be taken for a whole one.
type array struct {
	w    io.Writer
	some bool
	err  error
}

func (a *app) array(key string) *array {
	l := &array{w: a.stdout}
	_, l.err = fmt.Fprintf(l.w, "{\n  %q: [", key)
	return l
}

func (l *array) item(v any) error {
	if l.err != nil {
		return l.err
	}
	b, err := encode(v)
	if err != nil {
		l.err = err
		return err
	}
	sep := ",\n    "
	if !l.some {
		sep, l.some = "\n    ", true
	}
	_, l.err = fmt.Fprintf(l.w, "%s%s", sep, b)
	return l.err
}

// end closes the document with the fields of trailer, a struct; nil for none.
func (l *array) end(trailer any) error {
	if l.err != nil {
		return l.err
	}
	tail := "]"
	if l.some {
		tail = "\n  ]"
	}
	if trailer != nil {
		b, err := encode(trailer)
		if err != nil {
			return err
		}
		if fields := bytes.TrimSuffix(bytes.TrimPrefix(b, []byte("{")), []byte("}")); len(fields) > 0 {
			tail += ",\n  " + string(fields)
		}
	}
	_, l.err = fmt.Fprintf(l.w, "%s\n}\n", tail)
	return l.err
}

// table prints rows in aligned columns, two spaces between, nothing cut. Long
// ones are printed in pieces; then a column may widen on the way.
type table struct {
	w      io.Writer
	indent string
	head   []string
	right  []bool // aligned to the right: numbers
	width  []int
	rows   [][]string
	begun  bool
}

// tableRows is how many rows are aligned at once.
const tableRows = 5000

// table begins a table; a heading that begins with '>' is of a column of
// numbers.
func (a *app) table(head ...string) *table {
	t := &table{w: a.stdout, right: make([]bool, len(head)), width: make([]int, len(head))}
	for i, h := range head {
		h, t.right[i] = strings.CutPrefix(h, ">")
		t.head = append(t.head, h)
	}
	t.measure(t.head)
	return t
}

func (t *table) measure(cells []string) {
	for i, c := range cells {
		t.width[i] = max(t.width[i], utf8.RuneCountInString(c))
	}
}

// row adds a row. An empty cell is printed as "-".
func (t *table) row(cells ...any) {
	row := make([]string, len(t.head))
	for i := range row {
		if i < len(cells) {
			row[i] = plain(fmt.Sprint(cells[i]))
		}
		if row[i] == "" {
			row[i] = "-"
		}
	}
	t.measure(row)
	t.rows = append(t.rows, row)
	if len(t.rows) == tableRows {
		t.flush()
	}
}

// end prints what is left, or where there were no rows the sentence none.
func (t *table) end(none string) error {
	if !t.begun && len(t.rows) == 0 {
		_, err := fmt.Fprintf(t.w, "%s%s\n", t.indent, none)
		return err
	}
	return t.flush()
}

func (t *table) flush() error {
	var b strings.Builder
	if !t.begun {
		t.begun = true
		t.line(&b, t.head)
	}
	for _, row := range t.rows {
		t.line(&b, row)
	}
	t.rows = t.rows[:0]
	_, err := io.WriteString(t.w, b.String())
	return err
}

func (t *table) line(b *strings.Builder, cells []string) {
	b.WriteString(t.indent)
	for i, c := range cells {
		pad := strings.Repeat(" ", t.width[i]-utf8.RuneCountInString(c))
		switch {
		case t.right[i]:
			b.WriteString(pad + c)
		case i == len(cells)-1:
			b.WriteString(c)
		default:
			b.WriteString(c + pad)
		}
		if i < len(cells)-1 {
			b.WriteString("  ")
		}
	}
	b.WriteByte('\n')
}

// plain is s as a terminal may be given it: what would move the cursor or
// break the line is escaped.
func plain(s string) string {
	if strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) || r == utf8.RuneError }) < 0 {
		return s
	}
	q := strconv.Quote(s)
	return strings.ReplaceAll(q[1:len(q)-1], `\"`, `"`)
}

// age is a duration as people read it: two units at most.
func age(d time.Duration) string {
	switch {
	case d == client.AgeUnknown:
		return "unknown"
	case d < time.Second:
		return "0s"
	case d < time.Minute:
		return d.Truncate(time.Second).String()
	case d < time.Hour:
		return fmt.Sprintf("%dm%ds", d/time.Minute, d%time.Minute/time.Second)
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh%dm", d/time.Hour, d%time.Hour/time.Minute)
	}
	return fmt.Sprintf("%dd%dh", d/(24*time.Hour), d%(24*time.Hour)/time.Hour)
}

// millis is a duration in JSON; -1 if it is not known.
func millis(d time.Duration) int64 {
	if d == client.AgeUnknown {
		return -1
	}
	return d.Milliseconds()
}

// stamp is a time of day in JSON and in tables; empty if there is none.
func stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// join lists names in a cell or a sentence.
func join[T ~string](names []T) string {
	s := make([]string, len(names))
	for i, n := range names {
		s[i] = string(n)
	}
	return strings.Join(s, ", ")
}

// plural is a count with its noun.
func plural[N int | int64 | uint64](n N, one string) string {
	if n == 1 {
		return "1 " + one
	}
	if noun, ok := strings.CutSuffix(one, "x"); ok {
		return fmt.Sprintf("%d %sxes", n, noun)
	}
	if noun, ok := strings.CutSuffix(one, "y"); ok {
		return fmt.Sprintf("%d %sies", n, noun)
	}
	return fmt.Sprintf("%d %ss", n, one)
}
