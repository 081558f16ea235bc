package main

import (
	"testing"

	"github.com/rookery-mail/rookery/directory"
)

// What issue and docs say of a population is counted here, in every size class
// of its arithmetic: users fewer than name pairs, about as many, and more.
func TestPopulation(t *testing.T) {
	for _, size := range []int{2_000, 43_220, 100_000, 200_000} {
		p, err := newPopulation(size, 7)
		if err != nil {
			t.Fatal(err)
		}
		var (
			last     directory.MailboxName
			seen     = map[directory.UserID]int{} // mailboxes of others
			perUser  = map[directory.UserID]int{}
			onServer [servers]int
			shared   int
			spread   = map[[2]int]bool{} // wide user, tenth of the population
			ids      = map[string]bool{}
		)
		for m := range size {
			f := p.fact(m)
			if _, err := directory.ParseName(string(f.name)); err != nil {
				t.Fatalf("%d: mailbox %d: %v", size, m, err)
			}
			if m > 0 && directory.CompareNames(last, f.name) >= 0 {
				t.Fatalf("%d: %q stands before %q, which sorts after it", size, last, f.name)
			}
			last = f.name
			acl, err := directory.ParseACL(f.acl)
			if err != nil {
				t.Fatalf("%d: %s: %v", size, f.name, err)
			}
			owner, ok := f.name.Owner()
			if !ok || acl[0].Identifier != string(owner) {
				t.Fatalf("%d: %s: owner %q, first of the ACL %q", size, f.name, owner, acl[0].Identifier)
			}
			perUser[owner]++
			onServer[f.server]++
			if n := len(p.sharers(m)); n == sharedWith {
				shared++
			} else if n != 0 {
				t.Fatalf("%d: %s is shared with %d", size, f.name, n)
			}
			identifiers := map[string]bool{}
			for _, e := range acl {
				if identifiers[e.Identifier] {
					t.Fatalf("%d: %s: %s stands twice in %q", size, f.name, e.Identifier, f.acl)
				}
				identifiers[e.Identifier] = true
				if e.Identifier != string(owner) {
					seen[directory.UserID(e.Identifier)]++
				}
			}
			if u, ok := p.wideSharer(m); ok {
				spread[[2]int{u, m / (size / wideUsers)}] = true
			}
			if ids[f.mailboxID] {
				t.Fatalf("%d: mailbox id %s is given twice", size, f.mailboxID)
			}
			ids[f.mailboxID] = true
		}
		if len(perUser) != size/foldersPerUser {
			t.Errorf("%d: %d users, want %d", size, len(perUser), size/foldersPerUser)
		}
		for u, n := range perUser {
			if n != foldersPerUser {
				t.Errorf("%d: %s has %d mailboxes", size, u, n)
			}
		}
		if want := size / sharedEach; shared < want || shared > want+1 {
			t.Errorf("%d: %d mailboxes are shared, want %d", size, shared, want)
		}
		for w := range wideUsers {
			if u := p.userID(p.wide(w)); seen[u] != wideExtra {
				t.Errorf("%d: wide user %s sees %d more, want %d", size, u, seen[u], wideExtra)
			}
		}
		if want := wideUsers * wideUsers; len(spread) != want {
			t.Errorf("%d: what the wide users see stands in %d of their tenths of the population, want %d: every one in each", size, len(spread), want)
		}
		for s, n := range onServer {
			if n == 0 {
				t.Errorf("%d: server %d holds nothing", size, s)
			}
			var listed int
			for m := range p.onServer(s) {
				if p.server(m) != s {
					t.Fatalf("%d: onServer(%d) yields mailbox %d of server %d", size, s, m, p.server(m))
				}
				listed++
			}
			if listed != n {
				t.Errorf("%d: onServer(%d) yields %d mailboxes, want %d", size, s, listed, n)
			}
		}
	}
}

// Only the arithmetic is looked at: at ten million the names must still be in
// order where the number behind a name turns over.
func TestLargePopulationOrder(t *testing.T) {
	p, err := newPopulation(10_000_000, 1)
	if err != nil {
		t.Fatal(err)
	}
	for u := 1; u < p.users; u++ {
		a, b := p.name((u-1)*foldersPerUser+foldersPerUser-1), p.name(u*foldersPerUser)
		if directory.CompareNames(a, b) >= 0 {
			t.Fatalf("%q stands before %q, which sorts after it", a, b)
		}
	}
}

func TestPopulationSizes(t *testing.T) {
	for _, size := range []int{-20, 0, 1_980, 2_001, 100_001} {
		if _, err := newPopulation(size, 1); err == nil {
			t.Errorf("a population of %d was taken", size)
		}
	}
}

func TestPopulationSeed(t *testing.T) {
	a, _ := newPopulation(2_000, 1)
	b, _ := newPopulation(2_000, 1)
	c, _ := newPopulation(2_000, 2)
	same := 0
	for m := range 2_000 {
		if a.fact(m) != b.fact(m) {
			t.Fatalf("mailbox %d differs between two populations of one seed", m)
		}
		if a.fact(m) == c.fact(m) {
			same++
		}
	}
	if same > 0 {
		t.Errorf("%d facts are the same under another seed", same)
	}
}
