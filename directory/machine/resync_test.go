package machine_test

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/directory/machine"
)

// What Compare shows is what a naive comparison of two lists shows: whatever differs,
// nothing from where nothing differs, over whatever fields, in parts or not.
func TestCompareModel(t *testing.T) {
	for seed := range uint64(60) {
		compareModel(t, rand.New(rand.NewPCG(seed, 7)))
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

func compareModel(t *testing.T, rng *rand.Rand) {
	w := newWorld(t)
	w.run("init")
	do := func(op machine.Op) machine.Result {
		t.Helper()
		r := w.apply(0, machine.Command{By: "test", Op: op})
		if r.Refused != nil {
			t.Fatal(r.Refused)
		}
		return r
	}
	name := func() directory.MailboxName {
		n := rng.IntN(30)
		return directory.MailboxName([]string{
			fmt.Sprintf("user.u%d", n), fmt.Sprintf("user.u%d.a^b", n), fmt.Sprintf("shared.s%d", n), "shared", "a!b",
			fmt.Sprintf("example.com!user.u%d.f", n), fmt.Sprintf("DELETED.user.u%d.6536C4F4", n), fmt.Sprintf("user.u%d-x", n),
		}[rng.IntN(8)])
	}
	statement := func() directory.Statement {
		return directory.Statement{
			Partition: fmt.Sprintf("p%d", rng.IntN(2)), ACL: new(fmt.Sprintf("u%d\tlr\t", rng.IntN(2))), MailboxID: new(fmt.Sprint(rng.IntN(2))),
			UIDValidity: new(uint32(rng.IntN(2))), Type: new(directory.TypeEmail), SpecialUse: new([]string{"", `\Sent`}[rng.IntN(2)]),
		}
	}
	mine := make(map[directory.MailboxName]directory.Statement)  // the backend's list
	there := make(map[directory.MailboxName]directory.Statement) // what it stated
	for range rng.IntN(120) {
		n, st := name(), statement()
		do(machine.Assert{Mailbox: n, Server: "be1", Statement: st})
		there[n], mine[n] = st, st
		if rng.IntN(3) == 0 {
			do(machine.Assert{Mailbox: n, Server: "be2", Statement: statement()})
		}
	}
	change := func(often int) (changed []directory.MailboxName) {
		for _, n := range slices.SortedFunc(maps.Keys(there), directory.CompareNames) {
			switch rng.IntN(often) {
			case 0:
				there[n] = statement()
				if do(machine.Assert{Mailbox: n, Server: "be1", Statement: there[n]}).Effect == machine.Unchanged {
					continue
				}
			case 1:
				delete(there, n)
				do(machine.Retract{Mailbox: n, Server: "be1"})
			default:
				continue
			}
			changed = append(changed, n)
		}
		return changed
	}
	change(10)
	var since directory.Revision
	if rng.IntN(2) == 0 {
		since = do(machine.Release{Mailbox: "user.nobody", Server: "be1"}).Revision
	}
	was := maps.Clone(there)
	after := make(map[directory.MailboxName]bool)
	for _, n := range change(10) {
		after[n] = true
	}

	fields := directory.AllFields
	if rng.IntN(2) == 0 {
		fields = directory.Fields(rng.IntN(int(directory.AllFields) + 1))
	}
	totals, err := w.m.Totals(w.store.Snapshot(), "be1")
	if err != nil {
		t.Fatal(err)
	}
	hash := directory.NewHasher(totals.Key)
	hashOf := func(n directory.MailboxName, st directory.Statement, only directory.Fields) directory.Sum {
		f := directory.Fact{}.Merge(st).Only(only)
		return hash.Fact(n, &f)
	}
	q := machine.CompareQuery{Server: "be1", Fields: fields, Sums: new([directory.DigestBuckets]uint64), Since: since}
	inParts := rng.IntN(2) == 0
	for n, st := range mine {
		b := hash.Bucket(n)
		q.Sums[b] += hashOf(n, st, fields).Lo
		if inParts {
			if q.Parts == nil {
				q.Parts = make(map[uint16]*[directory.DigestParts]uint64)
			}
			if q.Parts[b] == nil {
				q.Parts[b] = new([directory.DigestParts]uint64)
			}
			q.Parts[b][hash.Part(n)] += hashOf(n, st, fields).Lo
		}
	}
	var all directory.Sum
	for n, st := range there {
		all = all.Add(hashOf(n, st, directory.AllFields))
	}
	if totals.Count != uint64(len(there)) || totals.Facts != all || totals.Known && totals.Held {
		t.Errorf("Totals: got %+v, want %d facts, %+v", totals, len(there), all)
	}

	shown := make(map[directory.MailboxName]machine.CompareRow)
	var where machine.Differing
	var last directory.MailboxName
	if _, err := w.m.Compare(w.store.Snapshot(), q, func(d machine.Differing) { where = d }, func(r *machine.CompareRow) error {
		if last != "" && !r.Gone && directory.CompareNames(last, r.Mailbox) >= 0 {
			t.Errorf("%s after %s", r.Mailbox, last)
		}
		last = r.Mailbox
		shown[r.Mailbox] = *r
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for n, st := range there {
		r, ok := shown[n]
		own, have := mine[n]
		differs := !have || hashOf(n, own, fields) != hashOf(n, st, fields)
		switch {
		case ok && (r.Gone || r.Hash != hashOf(n, st, fields).Lo || since != 0 && r.Newer != after[n] || r.State != directory.Active):
			t.Errorf("%s: got %+v, newer %t", n, r, after[n])
		case differs && !ok:
			t.Errorf("%s differs and is not shown", n)
		}
	}
	for n := range mine {
		if _, ok := there[n]; ok {
			continue
		}
		if _, had := was[n]; since != 0 && had != shown[n].Gone {
			t.Errorf("%s: got %+v, it was there before: %t", n, shown[n], had)
		}
		if !slices.Contains(where.Buckets, hash.Bucket(n)) {
			t.Errorf("%s is not there, and its bucket does not differ", n)
		}
	}
	// Nothing is shown of where nothing differs.
	for n, r := range shown {
		parts, inParts := where.Parts[hash.Bucket(n)]
		if !slices.Contains(where.Buckets, hash.Bucket(n)) || inParts && !slices.Contains(parts, hash.Part(n)) {
			t.Errorf("%s: got %+v, from where nothing differs", n, r)
		}
	}
	w.check()
}

// A comparison ends when its caller does.
func TestCompareInterrupted(t *testing.T) {
	w := newWorld(t)
	w.run("init")
	var b machine.Batch
	for i := range 3000 {
		b.Ops = append(b.Ops, machine.Assert{Mailbox: directory.MailboxName(fmt.Sprintf("user.u%d", i)), Server: "be1"})
	}
	w.apply(0, machine.Command{By: "test", Op: b})
	q := machine.CompareQuery{Server: "be1", Sums: new([directory.DigestBuckets]uint64), Interrupt: func() error { return errors.ErrUnsupported }}
	_, err := w.m.Compare(w.store.Snapshot(), q, func(machine.Differing) {}, func(*machine.CompareRow) error { return nil })
	if !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("got %v, want what Interrupt said", err)
	}
}

// The first half of an order key that is the root's is the root's order key.
func FuzzRootKey(f *testing.F) {
	for _, s := range []string{"user.alice", "user.alice.a^b.c", "example.com!user.joe.Sent", "shared.a.b", "shared", "user", "DELETED.user.x.1", "a!b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		name, err := directory.ParseName(s)
		if err != nil {
			return
		}
		if got, want := string(directory.RootKey(name.AppendKey(nil))), string(name.Root().AppendKey(nil)); got != want {
			t.Errorf("RootKey of %q: got %q, want %q", s, got, want)
		}
		h := directory.NewHasher(make([]byte, directory.DigestKeySize))
		if h.Bucket(name) != h.BucketOfRoot(directory.RootKey(name.AppendKey(nil))) {
			t.Errorf("%q: two buckets", s)
		}
	})
}
