package machine

import (
	"fmt"
	"testing"

	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/internal/kv"
)

// countingReader counts the keys that are read of each bucket.
type countingReader struct {
	kv.Reader
	keys map[kv.Bucket]int
}

func (c *countingReader) Get(b kv.Bucket, key []byte) []byte {
	c.keys[b]++
	return c.Reader.Get(b, key)
}

func (c *countingReader) Iterate(b kv.Bucket) kv.Iterator {
	return &countingIterator{c.Reader.Iterate(b), c, b}
}

type countingIterator struct {
	kv.Iterator
	c *countingReader
	b kv.Bucket
}

func (i *countingIterator) Seek(key []byte) (k, v []byte) {
	i.c.keys[i.b]++
	return i.Iterator.Seek(key)
}

func (i *countingIterator) Next() (k, v []byte) {
	i.c.keys[i.b]++
	return i.Iterator.Next()
}

const full = "lrswipkxtecdan"

// userOps makes a user with an inbox and folders, at two levels.
func userOps(user string, folders int) []Op {
	acl := user + "\t" + full + "\t"
	inbox := "user." + user
	ops := []Op{assertion("be1", inbox, acl+"anyone\tp\t")}
	for i := range folders - 1 {
		name := fmt.Sprintf("%s.folder-%02d", inbox, i/2)
		if i%2 == 1 {
			name += ".below"
		}
		ops = append(ops, assertion("be1", name, acl))
	}
	return ops
}

// aliceSite has the user alice with 20 mailboxes, and 30 more that she sees of
// others and shared, among mailboxes of others that she does not.
func aliceSite(t testing.TB, others int) *site {
	s := newSite(t)
	ops := userOps("alice", 20)
	for i := range 10 {
		share := func(name, acl string) { ops = append(ops, assertion("be1", name, acl)) }
		share(fmt.Sprintf("user.m%03d.Team", i), fmt.Sprintf("m%03d\t%s\talice\tlrs\t", i, full))
		share(fmt.Sprintf("user.m%03d.Club", i), fmt.Sprintf("m%03d\t%s\tgroup:club\tlr\t-bob\tl\t", i, full))
		share(fmt.Sprintf("shared.s%03d", i), "anyone\tlrs\t")
	}
	s.do(ops...)
	const folders = 20
	for i := range others / folders {
		// Before, between and behind what alice sees.
		s.do(userOps(fmt.Sprintf("%c%06d", "abmoz"[i%5], i), folders)...)
	}
	return s
}

func aliceLists(pattern string) ListQuery {
	return ListQuery{
		Principal: directory.Principal{User: "alice", Groups: []string{"club"}},
		Namespace: directory.Namespace{Sep: '.'},
		Patterns:  []string{pattern},
	}
}

// What others hold does not change what a LIST reads, and '%' reads levels.
func TestListReadsWhatIsSeen(t *testing.T) {
	others := 100_000
	if testing.Short() {
		others = 10_000
	}
	few, many := aliceSite(t, 100), aliceSite(t, others)
	for _, test := range []struct {
		pattern string
		rows    int
		most    int // keys of mailboxes and postings
	}{
		{"*", 50, 180},
		{"%", 3, 25},
		{"%.%", 30, 160},
		{"user.%", 10, 60},
		{"user.*", 20, 90},
		{"user.m00*", 20, 90},
		{"user.m003.%", 2, 15},
		{"INBOX.folder-0%", 10, 60},
		{"shared.*", 10, 50},
		{"*.below", 9, 120},
		{"nosuch", 0, 10},
		{"user.z*", 0, 12},
	} {
		read := map[string]map[kv.Bucket]int{}
		for name, s := range map[string]*site{"few": few, "many": many} {
			r := &countingReader{s.store.Snapshot(), map[kv.Bucket]int{}}
			rows, err := s.list(r, aliceLists(test.pattern))
			if err != nil {
				t.Fatal(err)
			}
			if len(rows) != test.rows {
				t.Errorf("%s: %d rows, want %d: %q", test.pattern, len(rows), test.rows, rows)
			}
			if n := r.keys[bucketMailbox] + r.keys[bucketPosting]; n > test.most {
				t.Errorf("%s: %d keys read, want %d at most", test.pattern, n, test.most)
			}
			read[name] = r.keys
		}
		if got, want := fmt.Sprint(read["many"]), fmt.Sprint(read["few"]); got != want {
			t.Errorf("%s: with %d mailboxes of others LIST reads %s, with 100 %s", test.pattern, others, got, want)
		}
		t.Logf("%-16s %d rows, keys read: %v", test.pattern, test.rows, read["many"])
	}
}

// What is never shown costs one seek, however much of it there is: another
// domain's mailboxes and hidden trees.
func TestListSeeksOverHidden(t *testing.T) {
	s := aliceSite(t, 0)
	q := aliceLists("*")
	read := func() (total int) {
		r := &countingReader{s.store.Snapshot(), map[kv.Bucket]int{}}
		if rows, err := s.list(r, q); err != nil || len(rows) != 50 {
			t.Fatalf("%d rows, %v", len(rows), err)
		}
		for _, n := range r.keys {
			total += n
		}
		return total
	}
	before := read()
	for i := range 200 {
		s.do(
			assertion("be1", fmt.Sprintf("other.org!s%03d", i), "anyone\tlrs\t"),
			assertion("be1", fmt.Sprintf("user.alice.#calendars.c%03d", i), "alice\t"+full+"\t"),
			assertion("be1", fmt.Sprintf("user.m000.#addressbooks.c%03d", i), "alice\tlrs\t"),
			assertion("be1", fmt.Sprintf("#drive.d%03d", i), "anyone\tlrs\t"),
		)
	}
	if after := read(); after > before+30 {
		t.Errorf("%d keys read with 800 mailboxes that are not shown, %d without", after, before)
	}
}

func BenchmarkList(b *testing.B) {
	for _, others := range []int{1000, 100_000} {
		s := aliceSite(b, others)
		r := s.store.Snapshot()
		for _, pattern := range []string{"*", "%", "INBOX*"} {
			b.Run(fmt.Sprintf("others=%d/%s", others, pattern), func(b *testing.B) {
				b.ReportAllocs()
				q := aliceLists(pattern)
				rows := 0
				for b.Loop() {
					rows = 0
					if _, err := s.m.List(r, q, func(*ListRow) error { rows++; return nil }); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(rows), "rows")
			})
		}
	}
}
