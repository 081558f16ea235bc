package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/rookery-mail/rookery/client"
)

func TestTable(t *testing.T) {
	got := printed(t, formatTable, func(a *app) error {
		tab := a.table("NAME", ">COUNT", "LAST")
		tab.row("user.a", 1, "")
		tab.row("user.with.a.very.long.name.that.is.not.cut", 12345, "x y")
		tab.row("é", "", "two\nlines\x1b[2J")
		return tab.end("nothing")
	})
	want := `NAME                                        COUNT  LAST
user.a                                          1  -
user.with.a.very.long.name.that.is.not.cut  12345  x y
é                                               -  two\nlines\x1b[2J
`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestEmptyTable(t *testing.T) {
	got := printed(t, formatTable, func(a *app) error { return a.table("A", "B").end("there are none") })
	if want := "there are none\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// A table longer than a piece keeps its rows, its order and one heading.
func TestLongTable(t *testing.T) {
	got := printed(t, formatTable, func(a *app) error {
		tab := a.table(">N")
		for i := range 2*tableRows + 3 {
			tab.row(i)
		}
		return tab.end("nothing")
	})
	lines := strings.Split(strings.TrimSuffix(got, "\n"), "\n")
	if len(lines) != 2*tableRows+4 || strings.Count(got, "N") != 1 || strings.TrimSpace(lines[len(lines)-1]) != "10002" {
		t.Errorf("got %d lines, the last %q; want %d, the last 10002", len(lines), lines[len(lines)-1], 2*tableRows+4)
	}
}

func TestArray(t *testing.T) {
	type trailer struct {
		More bool `json:"more"`
	}
	for _, tt := range []struct {
		items   []any
		trailer any
		want    string
	}{
		{nil, nil, `{"k":[]}`},
		{[]any{1, "<a>&"}, nil, `{"k":[1,"<a>&"]}`},
		{nil, trailer{true}, `{"k":[],"more":true}`},
		{[]any{map[string]int{"x": 1}}, trailer{}, `{"k":[{"x":1}],"more":false}`},
		{[]any{1}, struct{}{}, `{"k":[1]}`},
	} {
		got := printed(t, formatJSON, func(a *app) error {
			l := a.array("k")
			for _, item := range tt.items {
				if err := l.item(item); err != nil {
					return err
				}
			}
			return l.end(tt.trailer)
		})
		var v any
		if err := json.Unmarshal([]byte(got), &v); err != nil {
			t.Errorf("%v: got %q, which is no JSON: %v", tt.items, got, err)
			continue
		}
		if b, _ := encode(v); string(b) != tt.want {
			t.Errorf("got %s, want %s", b, tt.want)
		}
	}
}

func TestAge(t *testing.T) {
	for _, tt := range []struct {
		d    time.Duration
		want string
	}{
		{client.AgeUnknown, "unknown"}, {0, "0s"}, {999 * time.Millisecond, "0s"}, {59*time.Second + 900*time.Millisecond, "59s"},
		{60 * time.Second, "1m0s"}, {time.Hour - time.Second, "59m59s"}, {25 * time.Hour, "1d1h"}, {23*time.Hour + 59*time.Minute, "23h59m"},
	} {
		if got := age(tt.d); got != tt.want {
			t.Errorf("age(%v): got %q, want %q", tt.d, got, tt.want)
		}
	}
	if got := millis(client.AgeUnknown); got != -1 {
		t.Errorf("millis of an unknown age: got %d, want -1", got)
	}
}

func TestPlural(t *testing.T) {
	for _, tt := range []struct {
		n    int
		noun string
		want string
	}{{0, "fork", "0 forks"}, {1, "mailbox", "1 mailbox"}, {2, "mailbox", "2 mailboxes"}, {3, "advisory", "3 advisories"}} {
		if got := plural(tt.n, tt.noun); got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
}

func TestPlain(t *testing.T) {
	for in, want := range map[string]string{
		"user.R&AOk-sum&AOk-": "user.R&AOk-sum&AOk-", `a "b" \Drafts`: `a "b" \Drafts`, "ünïcode": "ünïcode",
		"a\tb": `a\tb`, "\x1b]0;x\x07": `\x1b]0;x\a`, "bad\xff": `bad\xff`,
	} {
		if got := plain(in); got != want {
			t.Errorf("plain(%q): got %q, want %q", in, got, want)
		}
	}
}

// The page of shapes names every command that has one of its own.
func TestOutputTopic(t *testing.T) {
	page := outputTopic().Long
	for _, cmd := range []string{"status", "alarm list", "snapshot save", "snapshot status", "snapshot restore", "recover", "cert show", "member list", "watch"} {
		if !strings.Contains(page, "\n  "+cmd+" ") {
			t.Errorf("the page does not say what %q prints", cmd)
		}
	}
	if h := healthOf(&client.NodeHealth{}); h.ComparedAgeMS != -1 || h.ScrubbedAgeMS != -1 {
		t.Errorf("ages that nobody knows: got %d and %d, want -1", h.ComparedAgeMS, h.ScrubbedAgeMS)
	}
}
