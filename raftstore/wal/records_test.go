package wal

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// TestRecords reads back a log with its past: what was replaced, marked and
// installed, in the order it was written.
func TestRecords(t *testing.T) {
	dir, l := create(t)
	appendSync(t, l, hardState(2, 1), entries(2, 2, 5, 10))
	appendSync(t, l, hardState(3, 3), entries(3, 4, 4, 10)) // replaces 4 and 5
	do(t, l.Mark(Mark{Position{2, 3}, testConf}), l.Install(Mark{Position{4, 20}, testConf}))
	appendSync(t, l, hardState(4, 21), entries(4, 21, 22, 10))
	do(t, l.Close())
	var got []string
	commit := uint64(0)
	err := Records(dir, func(r Record) error {
		switch {
		case r.Entry != nil:
			got = append(got, fmt.Sprintf("%d/%d", r.Entry.GetTerm(), r.Entry.GetIndex()))
			if n := len(r.Entry.GetData()); n != 10 {
				t.Errorf("entry %d has %d octets, want 10", r.Entry.GetIndex(), n)
			}
		case r.Mark != nil:
			got = append(got, fmt.Sprintf("mark %d/%d", r.Mark.Term, r.Mark.Index))
		case r.Hard != nil:
			commit = r.Hard.GetCommit()
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	at := fmt.Sprintf("mark %d/%d", testAt.Term, testAt.Index)
	want := strings.Fields("2/2 2/3 2/4 2/5 3/4")
	want = append(append([]string{at}, want...), "mark 2/3", "mark 4/20", "4/21", "4/22")
	got = slices.DeleteFunc(got, func(s string) bool { return s == "mark 0/0" }) // etcd's own
	if !slices.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	if commit != 21 {
		t.Errorf("the last commit index: got %d, want 21", commit)
	}
}
