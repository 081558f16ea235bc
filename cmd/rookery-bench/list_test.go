package main

import "testing"

// Sixteen in flight take a hundred each: put together, what they got is every
// server's list in name order, one server after the other, and then again.
func TestListGoesRound(t *testing.T) {
	p, err := newPopulation(2_000, 3)
	if err != nil {
		t.Fatal(err)
	}
	l := list{pop: p}
	for pass := range 2 {
		for s := range servers {
			var want, got []int
			for m := range p.onServer(s) {
				want = append(want, m)
			}
			for len(got) < len(want) {
				before := len(got)
				if got = l.take(got, 100); len(got)-before > 100 || len(got) == before {
					t.Fatalf("pass %d, server %d: %d mailboxes at once", pass, s, len(got)-before)
				}
			}
			for i := range want {
				if i >= len(got) || got[i] != want[i] {
					t.Fatalf("pass %d, server %d: mailbox %d of the list is another than onServer says", pass, s, i)
				}
			}
			if len(got) != len(want) {
				t.Fatalf("pass %d, server %d: %d mailboxes, want %d", pass, s, len(got), len(want))
			}
		}
	}
}
