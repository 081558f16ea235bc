package machine

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/internal/kv"
)

// findAll asks page by page and returns the names, those of a page together.
func (s *site) findAll(r kv.Reader, q FindQuery) string {
	s.t.Helper()
	var pages []string
	for {
		found, next, err := s.m.Find(r, q)
		if err != nil {
			return err.Error()
		}
		var names []string
		for _, a := range found {
			names = append(names, string(a.Name))
			if a.Mailbox == nil || a.Mailbox.Name != a.Name {
				s.t.Errorf("%+v: %s without its mailbox", q, a.Name)
			}
		}
		pages = append(pages, strings.Join(names, " "))
		if next == "" {
			return strings.Join(pages, " | ")
		}
		q.After = next
	}
}

func findSite(t testing.TB) *site {
	s := newSite(t)
	for _, name := range []string{
		"archive", "archive.old", "user.alice", "user.alice.Sent", "user.al^b", "user.alan", "user.bob",
		"other.org!user.zoe", "other.org!user.zoe.Box", "other.org!team", "other^org", "other^org.x",
	} {
		s.do(assertion("be1", name, ""))
	}
	for _, name := range []string{"user.alice", "user.bob", "shared"} {
		s.do(assertion("be2", name, ""))
	}
	return s
}

func TestFind(t *testing.T) {
	s := findSite(t)
	r := s.store.Snapshot()
	for _, test := range []struct {
		q    FindQuery
		want string
	}{
		{FindQuery{}, "archive archive.old other^org other.org!team other.org!user.zoe other.org!user.zoe.Box other^org.x shared user.al^b user.alan user.alice user.alice.Sent user.bob"},
		{FindQuery{Limit: 5}, "archive archive.old other^org other.org!team other.org!user.zoe | other.org!user.zoe.Box other^org.x shared user.al^b user.alan | user.alice user.alice.Sent user.bob"},
		{FindQuery{Prefix: "other", Limit: 1}, "other^org | other.org!team | other.org!user.zoe | other.org!user.zoe.Box | other^org.x"},
		{FindQuery{Limit: 13}, "archive archive.old other^org other.org!team other.org!user.zoe other.org!user.zoe.Box other^org.x shared user.al^b user.alan user.alice user.alice.Sent user.bob"},
		{FindQuery{Prefix: "user.al"}, "user.al^b user.alan user.alice user.alice.Sent"},
		{FindQuery{Prefix: "user.al", Limit: 1}, "user.al^b | user.alan | user.alice | user.alice.Sent"},
		{FindQuery{Prefix: "user.al^"}, "user.al^b"},
		{FindQuery{Prefix: "user.alice."}, "user.alice.Sent"},
		{FindQuery{Prefix: "user.alice.Sent"}, "user.alice.Sent"},
		{FindQuery{Prefix: "other"}, "other^org other.org!team other.org!user.zoe other.org!user.zoe.Box other^org.x"},
		{FindQuery{Prefix: "other", Limit: 2}, "other^org other.org!team | other.org!user.zoe other.org!user.zoe.Box | other^org.x"},
		{FindQuery{Prefix: "other."}, "other.org!team other.org!user.zoe other.org!user.zoe.Box"},
		{FindQuery{Prefix: "other^"}, "other^org other^org.x"},
		{FindQuery{Prefix: "other.org!"}, "other.org!team other.org!user.zoe other.org!user.zoe.Box"},
		{FindQuery{Prefix: "other.org!user.", Limit: 1}, "other.org!user.zoe | other.org!user.zoe.Box"},
		{FindQuery{Prefix: "nosuch"}, ""},
		{FindQuery{Prefix: "\xff"}, ""},
		{FindQuery{After: "user.alan"}, "user.alice user.alice.Sent user.bob"},
		{FindQuery{After: "user.al"}, "user.al^b user.alan user.alice user.alice.Sent user.bob"},
		{FindQuery{After: "zzz"}, ""},
		{FindQuery{Server: "be2"}, "shared user.alice user.bob"},
		{FindQuery{Server: "be2", Limit: 2}, "shared user.alice | user.bob"},
		{FindQuery{Server: "be2", Prefix: "user."}, "user.alice user.bob"},
		{FindQuery{Server: "be2", Prefix: "user.", After: "user.alice"}, "user.bob"},
		{FindQuery{Server: "be1", Prefix: "shared"}, ""},
		{FindQuery{Server: "nobody"}, "directory: not found: no backend nobody"},
	} {
		if got := s.findAll(r, test.q); got != test.want {
			t.Errorf("%+v:\ngot  %s\nwant %s", test.q, got, test.want)
		}
	}
}

// What Find says of a mailbox is what Lookup says.
func TestFindIsLookup(t *testing.T) {
	s := findSite(t)
	s.do(Hold{Kind: directory.HoldMailbox, Key: "archive", For: 1000, Why: "test"})
	r := s.store.Snapshot()
	found, _, err := s.m.Find(r, FindQuery{})
	if err != nil {
		t.Fatal(err)
	}
	outcomes := map[directory.Outcome]int{}
	for _, a := range found {
		want, err := s.m.Lookup(r, a.Name, true)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := fmt.Sprintf("%v %v %+v", a.Outcome, a.Server, *a.Mailbox), fmt.Sprintf("%v %v %+v", want.Outcome, want.Server, *want.Mailbox); got != want {
			t.Errorf("%s: got %s, want %s", a.Name, got, want)
		}
		outcomes[a.Outcome]++
	}
	if outcomes[directory.Held] != 2 || outcomes[directory.Serving] != len(found)-2 {
		t.Errorf("outcomes: %v", outcomes)
	}
}

// A page reads its own mailboxes and no others.
func TestFindReadsItsPage(t *testing.T) {
	s := aliceSite(t, 10_000)
	s.do(assertion("be2", "user.alice.elsewhere", ""), assertion("be2", "zoo", ""))
	for _, test := range []struct {
		q    FindQuery
		want int
		most int
	}{
		{FindQuery{Prefix: "user.alice."}, 20, 200},
		{FindQuery{Prefix: "shared."}, 10, 100},
		{FindQuery{Limit: 10}, 10, 120},
		{FindQuery{After: "user.m", Limit: 10}, 10, 120},
		{FindQuery{Server: "be2"}, 2, 30},
		{FindQuery{Server: "be1", After: "user.m", Limit: 10}, 10, 120},
	} {
		r := &countingReader{s.store.Snapshot(), map[kv.Bucket]int{}}
		found, _, err := s.m.Find(r, test.q)
		if err != nil {
			t.Fatal(err)
		}
		total := 0
		for _, n := range r.keys {
			total += n
		}
		if len(found) != test.want || total > test.most {
			t.Errorf("%+v: %d mailboxes for %d keys read (%v), want %d for %d at most", test.q, len(found), total, r.keys, test.want, test.most)
		}
	}
}

func TestSubscriptions(t *testing.T) {
	s := newSite(t)
	want := []directory.MailboxName{"news", "other.org!team", "user.alice", "user.alice.Work", "user.alice.Work.Q1", "user.alice.Work-x"}
	for _, name := range want {
		s.do(Subscribe{User: "alice", Mailbox: name})
	}
	s.do(Subscribe{User: "alicf", Mailbox: "user.alice"}, Subscribe{User: "alic", Mailbox: "user.alice"})
	r := s.store.Snapshot()
	for _, limit := range []int{0, 1, 2, 5, 6, 7} {
		var got []directory.MailboxName
		after := directory.MailboxName("")
		for {
			names, next, err := s.m.Subscriptions(r, "alice", after, limit)
			if err != nil {
				t.Fatal(err)
			}
			if limit > 0 && len(names) > limit {
				t.Errorf("a page of %d, the limit is %d", len(names), limit)
			}
			got = append(got, names...)
			if after = next; next == "" {
				break
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("limit %d: got %q, want %q", limit, got, want)
		}
	}
	if names, next, err := s.m.Subscriptions(r, "bob", "", 0); len(names) != 0 || next != "" || err != nil {
		t.Errorf("bob: %q %q %v", names, next, err)
	}
}

// A broken value ends a reading, it does not shorten the answer.
func TestListStopsAtCorruption(t *testing.T) {
	for _, bucket := range []kv.Bucket{bucketMailbox, bucketPosting} {
		s := aliceSite(t, 0)
		tx := s.store.Begin()
		it := tx.Iterate(bucket)
		prefix := mailboxKey("user.alice.folder-03")
		if bucket == bucketPosting {
			prefix = postingPrefix("alice")
		}
		k, v := it.Seek(prefix)
		if !hasPrefix(k, prefix) {
			t.Fatalf("%s: nothing to break", bucket)
		}
		broken := slices.Clone(v)
		broken[len(broken)/2] ^= 0x10
		tx.Put(bucket, slices.Clone(k), broken)
		tx.Commit()
		_, err := s.list(s.store.Snapshot(), aliceLists("*"))
		if !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: got %v, want %v", bucket, err, ErrCorrupt)
		}
	}
}
