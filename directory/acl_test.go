package directory

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestParseRights(t *testing.T) {
	for _, test := range []struct{ in, want string }{
		{"", ""},
		{"lrs", "lrs"},
		{"srl", "lrs"},
		{"llrr", "lr"},
		{"d", "ted"},     // a d set is stored so
		{"lrc", "lrkxc"}, // likewise
		{"k", "kc"},
		{"kc", "kc"}, // c adds nothing to a k
		{"cx", "xc"},
		{"tcd", "kxtcd"},
		{"dle", "led"},
		{"x", "xc"},
		{"t", "td"},
		{"e", "ed"},
		{"lkxan", "lkxcan"}, // an owner's implicit rights as shown
		{"lrswipkxtecdan", "lrswipkxtecdan"},
		{"9876543210", "0123456789"},
		{"n9a0l", "lan09"},
		{"lrswipkxtecdan0123456789", "lrswipkxtecdan0123456789"},
	} {
		r, err := ParseRights(test.in)
		if err != nil || r.String() != test.want {
			t.Errorf("ParseRights(%q) = %q, %v; want %q", test.in, r, err, test.want)
		}
	}
	for _, s := range []string{"z", "L", "lr s", "lr\t", "lr\n", "b", "\xff"} {
		if r, err := ParseRights(s); !errors.Is(err, ErrInvalidACL) {
			t.Errorf("ParseRights(%q) = %q, %v; want ErrInvalidACL", s, r, err)
		}
	}
	if got := RightsAll.String(); got != "lrswipkxtecdan0123456789" {
		t.Errorf("RightsAll = %q", got)
	}
	for _, test := range []struct {
		right Rights
		want  string
	}{
		{RightLookup, "l"}, {RightRead, "r"}, {RightSeen, "s"}, {RightWrite, "w"}, {RightInsert, "i"}, {RightPost, "p"},
		{RightCreate, "kc"}, {RightDeleteMbox, "xc"}, {RightDeleteMsg, "td"}, {RightExpunge, "ed"}, {RightAdmin, "a"},
		{RightAnnotate, "n"}, {RightUser0, "0"}, {RightUser0 << 9, "9"},
	} {
		if got := test.right.String(); got != test.want {
			t.Errorf("right %#x = %q, want %q", uint32(test.right), got, test.want)
		}
	}
}

func TestParseACL(t *testing.T) {
	for _, test := range []struct {
		in   string
		want ACL
	}{
		{"", nil},
		{"alice\tlrswipkxtecdan\t", ACL{{"alice", false, mustRights("lrswipkxtean")}}},
		{"anyone\tlrs\tgroup:staff\tlr\t", ACL{{"anyone", false, mustRights("lrs")}, {"group:staff", false, mustRights("lr")}}},
		{"anyone\tlr\t-mallory\tlr\t", ACL{{"anyone", false, mustRights("lr")}, {"mallory", true, mustRights("lr")}}},
		{"anyone\tlr", ACL{{"anyone", false, mustRights("lr")}}}, // the last TAB missing, as in text dumps
		{"anyone\t", ACL{{"anyone", false, 0}}},
		{"anyone\t\t", ACL{{"anyone", false, 0}}},
		{"zoe@other.org\tl\tann.smith\tr\t", ACL{{"zoe@other.org", false, RightLookup}, {"ann.smith", false, RightRead}}},
		{"a\tl\ta\tr\t", ACL{{"a", false, RightLookup}, {"a", false, RightRead}}}, // adds up, see Effective
		{"group:Gr\xc3\xb6\xc3\x9fe x\tl\t", ACL{{"group:Gr\xc3\xb6\xc3\x9fe x", false, RightLookup}}},
	} {
		got, err := ParseACL(test.in)
		if err != nil || !slices.Equal(got, test.want) {
			t.Errorf("ParseACL(%q) = %+v, %v; want %+v", test.in, got, err, test.want)
		}
		again, err := ParseACL(got.String())
		if err != nil || !slices.Equal(again, test.want) {
			t.Errorf("ParseACL(%q).String() = %q, which is %+v, %v", test.in, got, again, err)
		}
	}
	if got := (ACL{{"x", true, mustRights("d")}, {"y", false, 0}}).String(); got != "-x\tted\ty\t\t" {
		t.Errorf("String = %q", got)
	}
	if got := (ACLEntry{Identifier: "x", Negative: true}).Written(); got != "-x" {
		t.Errorf("Written = %q, want -x", got)
	}
	for _, s := range []string{"alice", "\tlr\t", "-\tlr\t", "alice\tlrz\t", "alice\tlr\tbob", "ali\nce\tl\t", "a\x00\tl\t", "a\x7f\tl\t", "alice\tlr\t\t", "\t"} {
		if got, err := ParseACL(s); !errors.Is(err, ErrInvalidACL) {
			t.Errorf("ParseACL(%q) = %+v, %v; want ErrInvalidACL", s, got, err)
		}
	}
	long := strings.Repeat("a", MaxIdentifier)
	if _, err := ParseACL(long + "\tl\t"); err != nil {
		t.Errorf("ParseACL with an identifier of %d octets: %v", MaxIdentifier, err)
	}
	for _, s := range []string{long + "a\tl\t", "-" + long + "a\tl\t", "alice\xff\tl\t"} {
		if _, err := ParseACL(s); !errors.Is(err, ErrInvalidACL) {
			t.Errorf("ParseACL(%.20q...): %v; want ErrInvalidACL", s, err)
		}
	}
	full := strings.Repeat(strings.Repeat("a", 253)+"\tl\t", MaxACL/256)
	if _, err := ParseACL(full); err != nil || len(full) != MaxACL {
		t.Errorf("ParseACL of %d octets: %v; want %d octets and no error", len(full), err, MaxACL)
	}
	if _, err := ParseACL("c" + full); !errors.Is(err, ErrTooLarge) {
		t.Errorf("ParseACL of %d octets: %v; want ErrTooLarge", MaxACL+1, err)
	}
	var many strings.Builder
	for i := range MaxACLIdentifiers {
		fmt.Fprintf(&many, "u%d\tl\t", i)
	}
	if acl, err := ParseACL(many.String()); err != nil || len(acl) != MaxACLIdentifiers {
		t.Errorf("ParseACL of %d entries = %d, %v", MaxACLIdentifiers, len(acl), err)
	}
	for _, err := range []error{second(ParseACL(many.String() + "v\tl\t")), CheckACL(many.String() + "v\tl\t")} {
		if !errors.Is(err, ErrTooLarge) {
			t.Errorf("%d entries: %v; want ErrTooLarge", MaxACLIdentifiers+1, err)
		}
	}
}

func second[A any](_ A, err error) error { return err }

func mustRights(s string) Rights {
	r, err := ParseRights(s)
	if err != nil {
		panic(err)
	}
	return r
}

// The users of a fixture: gina alone is of the ACL group staff.
func fixturePrincipal(user string) Principal {
	p := Principal{User: UserID(user)}
	switch user {
	case "anonymous":
		p.User = ""
	case "gina":
		p.Groups = []string{"staff"}
	case "admin":
		p = Principal{User: "cyrus", Admin: true}
	}
	return p
}

func TestEffective(t *testing.T) {
	for _, test := range []struct {
		acl, user, want string
	}{
		{"carol\tlrswipkxtecdan\tanyone\tlrs\t", "alice", "lrs"},
		{"carol\tlrswipkxtecdan\tanyone\tlrs\t", "anonymous", "lrs"},
		{"carol\tlrswipkxtecdan\tanyone\tlrs\t", "carol", "lrswipkxtecdan"},
		{"anyone\tlrs\t-alice\tl\t", "alice", "rs"},
		{"-alice\tl\tanyone\tlrs\t", "alice", "rs"}, // whatever the order
		{"anyone\tlrs\t-alice\tl\t", "dave", "lrs"},
		{"anyone\tlrs\t-alice\tr\t", "alice", "ls"},
		{"group:staff\tlrs\t", "gina", "lrs"},
		{"group:staff\tlrs\t", "alice", ""},
		{"group:staff\tlrs\t-gina\tl\t", "gina", "rs"},
		{"gina\tlr\t-group:staff\tr\t", "gina", "l"}, // a group takes from its members
		{"staff\tlrs\t", "gina", ""},
		{"carol\tlrswipkxtecdan\tanyone\tlrs\t-anyone\tl\t", "carol", "rswipkxtecdan"}, // takes from everybody
		{"carol\tlrswipkxtecdan\tanonymous\tlrs\t", "anonymous", "lrs"},
		{"carol\tlrswipkxtecdan\tanonymous\tlrs\t", "dave", ""},
		{"-anonymous\tr\tanyone\tlr\t", "anonymous", "l"},
		{"-anonymous\tr\tanyone\tlr\t", "dave", "lr"},
		{"owner\tlrs\t", "alice", ""}, // an ordinary name
		{"alice\tl\talice\tr\tanyone\tp\t", "alice", "lrp"},
		{"alice\tlrs\t-alice\tr\t-alice\ts\t", "alice", "l"},
		{"Alice\tlrs\t", "alice", ""},
		{"zoe@other.org\tlrs\t", "zoe", ""},
		{"zoe@other.org\tlrs\t", "zoe@other.org", "lrs"},
		{"admin\tlrs\tcyrus\tl\t", "admin", "l"}, // by the ACL alone
		{"", "alice", ""},
	} {
		p := fixturePrincipal(test.user)
		acl, err := ParseACL(test.acl)
		if err != nil {
			t.Errorf("ParseACL(%q): %v", test.acl, err)
			continue
		}
		if got := acl.Effective(p).String(); got != test.want {
			t.Errorf("%q for %s = %q, want %q", test.acl, test.user, got, test.want)
		}
		if got, err := EffectiveOf(test.acl, p); err != nil || got.String() != test.want {
			t.Errorf("EffectiveOf(%q) for %s = %q, %v; want %q", test.acl, test.user, got, err, test.want)
		}
		if got, want := acl.HasNegative(), strings.Contains("\t"+test.acl, "\t-"); got != want {
			t.Errorf("%q: HasNegative = %v, want %v", test.acl, got, want)
		}
	}
	if _, err := EffectiveOf("alice\tl\tbob", Principal{User: "alice"}); !errors.Is(err, ErrInvalidACL) {
		t.Errorf("EffectiveOf of a broken ACL: %v; want ErrInvalidACL", err)
	}
	if got := (ACL{{"group:staff", false, RightRead}}).Effective(Principal{User: "group:staff"}); got != 0 {
		t.Errorf("a user called group:staff has %q of the group's", got)
	}
}

func TestMyRights(t *testing.T) {
	for _, test := range []struct {
		stored       string
		owner, admin bool
		want         string
	}{
		{"", true, false, "lkxcan"},
		{"rswipte", true, false, "lrswipkxtecdan"}, // carol's negany
		{"lrs", false, false, "lrs"},
		{"", false, false, ""},
		{"p", false, true, "lpa"}, // drop
		{"", false, true, "la"},
	} {
		if got := MyRights(mustRights(test.stored), test.owner, test.admin).String(); got != test.want {
			t.Errorf("MyRights(%q, owner %v, admin %v) = %q, want %q", test.stored, test.owner, test.admin, got, test.want)
		}
	}
	for c, want := range map[string]bool{"l": true, "r": true, "i": true, "k": true, "x": true, "a": true,
		"s": false, "w": false, "p": false, "t": false, "e": false, "n": false, "0": false, "": false} {
		if got := mustRights(c).MayMyRights(); got != want {
			t.Errorf("MayMyRights of %q = %v, want %v", c, got, want)
		}
	}
	if !mustRights("lrs").Has(RightsPosted) || mustRights("ls").Has(RightsPosted) || !mustRights("ls").HasAny(RightsPosted) || mustRights("p").HasAny(RightsPosted) {
		t.Error("Has wants all, HasAny one")
	}
}

func TestPrincipal(t *testing.T) {
	for _, test := range []struct {
		user   string
		groups []string
		want   []string
	}{
		{"alice", nil, []string{"alice", "anyone"}},
		{"", nil, []string{"anonymous", "anyone"}},
		{"anonymous", nil, []string{"anonymous", "anyone"}},
		{"gina", []string{"staff", "group:admins", "staff"}, []string{"gina", "anyone", "group:staff", "group:admins"}},
	} {
		p, err := ParsePrincipal(test.user, test.groups, false)
		if err != nil {
			t.Errorf("ParsePrincipal(%q, %q): %v", test.user, test.groups, err)
			continue
		}
		got := slices.Collect(p.Identifiers())
		if !slices.Equal(got, test.want) {
			t.Errorf("%q %q: Identifiers = %q, want %q", test.user, test.groups, got, test.want)
		}
		for _, id := range []string{"alice", "gina", "anonymous", "anyone", "group:staff", "group:admins", "staff", "group:", "owner", ""} {
			if got, want := p.Matches(id), slices.Contains(test.want, id); got != want {
				t.Errorf("%q %q: Matches(%q) = %v, want %v", test.user, test.groups, id, got, want)
			}
		}
	}
	for _, user := range []string{"anyone", "group:staff", "-alice", "a^b"} {
		if p, err := ParsePrincipal(user, nil, false); !errors.Is(err, ErrInvalidName) {
			t.Errorf("ParsePrincipal(%q) = %+v, %v; want ErrInvalidName", user, p, err)
		}
	}
	for _, group := range []string{"", "group:", "a\tb"} {
		if p, err := ParsePrincipal("alice", []string{group}, false); !errors.Is(err, ErrInvalidName) {
			t.Errorf("ParsePrincipal with group %q = %+v, %v; want ErrInvalidName", group, p, err)
		}
	}
}

func TestValidIdentifier(t *testing.T) {
	for id, want := range map[string]bool{"alice": true, "group:a b": true, "anyone": true, "": false, "-alice": false, "a\tb": false, "a\nb": false} {
		if got := ValidIdentifier(id); got != want {
			t.Errorf("ValidIdentifier(%q) = %v, want %v", id, got, want)
		}
	}
}

func FuzzACL(f *testing.F) {
	for _, s := range []string{"", "alice\tlrswipkxtecdan\tanyone\tlrs\t", "anyone\tlr\t-mallory\tlr", "a\tl\ta\tr\t", "-\tl\t", "--a\tl\t", "alice", "\t\t", "0\tx\t", "group:staff\tc0\t-anyone\td\t"} {
		f.Add(s, "alice", "staff")
	}
	f.Fuzz(func(t *testing.T, s, user, group string) {
		p := Principal{User: UserID(user), Groups: []string{group}}
		acl, err := ParseACL(s)
		got, fast := EffectiveOf(s, p)
		if (err == nil) != (fast == nil) || (err == nil) != (CheckACL(s) == nil) {
			t.Fatalf("%q: ParseACL %v, EffectiveOf %v, CheckACL %v", s, err, fast, CheckACL(s))
		}
		if err != nil {
			if !errors.Is(err, ErrInvalidACL) && !errors.Is(err, ErrTooLarge) || err.Error() != fast.Error() {
				t.Fatalf("%q: ParseACL %v, EffectiveOf %v", s, err, fast)
			}
			return
		}
		if want := acl.Effective(p); got != want {
			t.Fatalf("%q for %+v: EffectiveOf %q, Effective %q", s, p, got, want)
		}
		if again, err := ParseACL(acl.String()); err == nil && !slices.Equal(again, acl) || err != nil && !errors.Is(err, ErrTooLarge) {
			t.Fatalf("%q: written %q, read again %+v, %v", s, acl, again, err)
		}
		// A principal without name and groups has what anyone has, and
		// anonymous; no entry ever adds to what a negative one took.
		for _, e := range acl {
			if e.Negative && p.Matches(e.Identifier) && got&e.Rights != 0 {
				t.Fatalf("%q for %+v: %q, though %s takes %q", s, p, got, e.Written(), e.Rights)
			}
		}
	})
}

func FuzzParseRights(f *testing.F) {
	for _, s := range []string{"", "lrswipkxtecdan0123456789", "c", "d", "z", "ll"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseRights(s)
		if err != nil {
			return
		}
		printed := r.String()
		if again, err := ParseRights(printed); err != nil || again != r {
			t.Fatalf("%q printed %q, read again %q, %v", s, printed, again, err)
		}
		last := -1
		for _, c := range printed {
			i := strings.IndexRune("lrswipkxtecdan0123456789", c)
			if i <= last {
				t.Fatalf("%q printed %q, out of order", s, printed)
			}
			last = i
		}
	})
}

func BenchmarkEffectiveOf(b *testing.B) {
	b.ReportAllocs()
	p := Principal{User: "alice", Groups: []string{"staff", "golang"}}
	for b.Loop() {
		if _, err := EffectiveOf("bob\tlrswipkxtecdan\talice\tlrs\tgroup:staff\tlr\tanyone\tp\t", p); err != nil {
			b.Fatal(err)
		}
	}
}
