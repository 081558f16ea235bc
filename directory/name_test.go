package directory

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestParseName(t *testing.T) {
	good := []string{
		"user.alice", "user.alice.Work.2024", "user.ann^smith", "user.john^doe.a",
		"example.com!user.joe.Sent", "other.org!team", "Example_1.COM!team", "localdomain!x",
		"shared", "DELETED.user.bob.Junk.6B036AF6", "user.alice.#calendars.Default",
		"user.alice.f&AOk-te", "user.alice.&AOk-t&AOk-", "user.alice.R&AOk-sum&AOk-", "user.peggy.&ZeVnLIqe-",
		"user.alice.a&-b", "user.alice.&-&-", "user.alice.&AOk-&-x", "user.alice.&AOk-.&AOk-", "user.alice.&2D3eAA-",
		"user.alice.e*f", "user.alice.srt b", "user.alice.~x", "user.alice.srt-x", "users", "^", "user.^^.x",
		strings.Repeat("a", MaxName),
	}
	for _, s := range good {
		if got, err := ParseName(s); err != nil || string(got) != s {
			t.Errorf("ParseName(%q) = %q, %v; want it unchanged", s, got, err)
		}
	}
	bad := []struct {
		in     string
		reason string
	}{
		{"", "empty"},
		{"user..alice", "level is empty"},
		{".user", "level is empty"},
		{"user.alice.", "level is empty"},
		{".", "level is empty"},
		{"example.com!", "level is empty"},
		{"!user.alice", "domain: it is empty"},
		{"user", "above all inboxes"},
		{"d!user", "above all inboxes"},
		{"a!b!c", "more than one '!'"},
		{"exa mple.com!user.joe", "not of a host name"},
		{"example..com!user.joe", "label of the host name is empty"},
		{"example.com.!user.joe", "label of the host name is empty"},
		{strings.Repeat("a", 254) + "!user.joe", "longer than 253"},
		{"exa^mple!user.joe", "not of a host name"},
		{"user.a\x00", "control octet"},
		{"user.a\tb", "control octet"},
		{"user.a\x1fb", "control octet"},
		{"user.a\x7f", "control octet"},
		{"user.caf\xc3\xa9", "8-bit"},
		{"user.a%b", "a percent sign"},
		{`user.a"b`, "a percent sign"},
		{`user.a\b`, "a percent sign"},
		{"user.a/b", "a percent sign"},
		{"user.a&b", "without its '-'"},
		{"user.a&b c-", "no base64"},
		{"user.&AOk", "without its '-'"},
		{"user.&AOk.x-", "no base64"},
		{"user.&", "without its '-'"},
		{"user.&Jjo", "without its '-'"},
		{"user.&AOl-", "stray bits"},                   // AOk with its padding bits set
		{"user.&A-", "stray bits"},                     // less than a unit
		{"user.&AOkA-", "stray bits"},                  // a base64 octet too many
		{"user.&AGE-", "ASCII must stand for itself"},  // a
		{"user.&ACY-", "ASCII must stand for itself"},  // &
		{"user.&AAk-", "ASCII must stand for itself"},  // a control octet in disguise
		{"user.&2D0-", "half a surrogate pair"},        // high alone
		{"user.&3gA-", "half a surrogate pair"},        // low alone
		{"user.&2D3YPQ-", "half a surrogate pair"},     // high, high
		{"user.&2D0A6Q-", "half a surrogate pair"},     // high, then é
		{"user.&AOk-&AOk-", "superfluous shift"},       // one run would do
		{"user.&AOk/AOk-", "no base64"},                // base64's own '/', not the modified ','
		{"d!user.x.&U,BTFw-&ZeVnLIqe-", "superfluous"}, // RFC 3501's own example
	}
	for _, test := range bad {
		got, err := ParseName(test.in)
		if !errors.Is(err, ErrInvalidName) || !strings.Contains(err.Error(), test.reason) {
			t.Errorf("ParseName(%q) = %q, %v; want ErrInvalidName with %q", test.in, got, err, test.reason)
		}
	}
	if _, err := ParseName(strings.Repeat("a", MaxName+1)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("ParseName of %d octets: %v; want ErrTooLarge", MaxName+1, err)
	}
}

// keyOrder is the order that a real mupdate slave and ctl_mboxlist require.
var keyOrder = []string{
	"DELETED.user.x.1", "example.com!user.joe", "example.com!user.joe.sub", "shared", "user.Foo", "user.a^b",
	"user.foo", "user.foo.bar", "user.foo.zed", "user.foo-bar", "user.fooa",
}

// siblingOrder is the order of one class of LIST, below an inbox.
var siblingOrder = []string{"Srt", "srt", "srt.B", "srt.b", "srt b", "srt-x", "srt^c", "srt0"}

func TestOrder(t *testing.T) {
	check := func(want []string) {
		t.Helper()
		got := slices.Clone(want)
		slices.Sort(got) // plain octets: another order
		slices.SortFunc(got, func(a, b string) int { return CompareNames(MailboxName(a), MailboxName(b)) })
		if !slices.Equal(got, want) {
			t.Errorf("by CompareNames:\n got %q\nwant %q", got, want)
		}
		slices.SortFunc(got, func(a, b string) int {
			return bytes.Compare(MailboxName(b).AppendKey(nil), MailboxName(a).AppendKey(nil))
		})
		slices.Reverse(got)
		if !slices.Equal(got, want) {
			t.Errorf("by AppendKey:\n got %q\nwant %q", got, want)
		}
	}
	check(keyOrder)
	check(siblingOrder)
	// A domain may spell like the levels of a name without one.
	check([]string{"user!b", "user.a", "x.b", "x.a!z", "x^z"})
}

func TestKeys(t *testing.T) {
	for _, test := range []struct{ name, key string }{
		{"user.alice", "user\x1falice"},
		{"user.ann^smith.Q^1", "user\x1fann.smith\x1fQ.1"},
		{"other.org!user.zoe.Box", "other.org\x1duser\x1fzoe\x1fBox"},
		{"shared", "shared"},
		{"DELETED.user.x.6b", "DELETED\x1fuser\x1fx\x1f6b"}, // the hex stays as it is
	} {
		n := MailboxName(test.name)
		if got := string(n.AppendKey([]byte("pre"))); got != "pre"+test.key {
			t.Errorf("%s: AppendKey = %q, want %q", n, got, "pre"+test.key)
		}
		if got, err := NameFromKey([]byte(test.key)); err != nil || got != n {
			t.Errorf("NameFromKey(%q) = %q, %v; want %q", test.key, got, err, n)
		}
	}
	for _, key := range []string{"", "user^a", "a!b", "user\x1f", "\x1fuser", "\x1dx", "a\x1db\x1dc", "a\x1fb\x1dc", "a\x00", "a\xff", "a/b"} {
		if got, err := NameFromKey([]byte(key)); !errors.Is(err, ErrInvalidName) {
			t.Errorf("NameFromKey(%q) = %q, %v; want ErrInvalidName", key, got, err)
		}
	}
	if _, err := NameFromKey(bytes.Repeat([]byte("a"), MaxName+1)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("NameFromKey of %d octets: %v; want ErrTooLarge", MaxName+1, err)
	}
}

func TestKeyRangesOfOneName(t *testing.T) {
	in := func(lo, hi []byte, n MailboxName) bool {
		return KeyRange{lo, hi}.Contains(n.AppendKey(nil))
	}
	for _, test := range []struct {
		root    MailboxName
		below   []MailboxName
		outside []MailboxName
	}{
		{"user.foo",
			[]MailboxName{"user.foo.bar", "user.foo.zed.x", "user.foo.~"},
			[]MailboxName{"user.foo-bar", "user.fooa", "user.foo^bar", "user.foo x", "user.fo", "user", "d!user.foo.bar"}},
		{"d!user.foo",
			[]MailboxName{"d!user.foo.bar"},
			[]MailboxName{"user.foo.bar", "d!user.foo-", "d!user.foo^a.b", "e!user.foo.bar"}},
		{"user", []MailboxName{"user.a", "user.a.b"}, []MailboxName{"user!a", "users", "user^a"}},
	} {
		lo, hi := test.root.PrefixKeys()
		slo, shi := test.root.SubtreeKeys()
		if in(lo, hi, test.root) || !in(slo, shi, test.root) {
			t.Errorf("%s: itself in PrefixKeys %v, in SubtreeKeys %v; want false, true", test.root, in(lo, hi, test.root), in(slo, shi, test.root))
		}
		for _, n := range test.below {
			if !in(lo, hi, n) || !in(slo, shi, n) || !n.IsBelow(test.root) {
				t.Errorf("%s below %s: PrefixKeys %v SubtreeKeys %v IsBelow %v; want all true", n, test.root, in(lo, hi, n), in(slo, shi, n), n.IsBelow(test.root))
			}
		}
		for _, n := range test.outside {
			if in(lo, hi, n) || n.IsBelow(test.root) {
				t.Errorf("%s outside %s: PrefixKeys %v IsBelow %v; want false", n, test.root, in(lo, hi, n), n.IsBelow(test.root))
			}
		}
	}
	if lo, hi := MailboxName("user").SubtreeKeys(); !in(lo, hi, "user!a") {
		t.Error("SubtreeKeys of user without the domain user: its comment says otherwise")
	}
	if MailboxName("example.com!user.joe").IsBelow("example") {
		t.Error("example.com!user.joe is below example; the dot is the domain's")
	}
	next, ok := KeyAfterDomain([]byte("other.org\x1duser\x1fzoe"))
	if want := "other.org\x1e"; !ok || string(next) != want {
		t.Errorf("KeyAfterDomain = %q, %v; want %q", next, ok, want)
	}
	if _, ok := KeyAfterDomain([]byte("user\x1fzoe")); ok {
		t.Error("KeyAfterDomain of a key without domain says it has one")
	}
}

func TestNameParts(t *testing.T) {
	for _, test := range []struct {
		name, domain, local, parent, owner, root string
		levels                                   []string
		inbox, deleted, hidden                   bool
	}{
		{name: "user.alice", local: "user.alice", parent: "user", owner: "alice", root: "user.alice", levels: []string{"user", "alice"}, inbox: true},
		{name: "user.ann^smith.Work.Q1", local: "user.ann^smith.Work.Q1", parent: "user.ann^smith.Work", owner: "ann.smith", root: "user.ann^smith", levels: []string{"user", "ann^smith", "Work", "Q1"}},
		{name: "other.org!user.zoe.Box", domain: "other.org", local: "user.zoe.Box", parent: "other.org!user.zoe", owner: "zoe@other.org", root: "other.org!user.zoe", levels: []string{"user", "zoe", "Box"}},
		{name: "other.org!user.zoe", domain: "other.org", local: "user.zoe", parent: "other.org!user", owner: "zoe@other.org", root: "other.org!user.zoe", levels: []string{"user", "zoe"}, inbox: true},
		{name: "other.org!team", domain: "other.org", local: "team", root: "other.org!team", levels: []string{"team"}},
		{name: "shared", local: "shared", root: "shared", levels: []string{"shared"}},
		{name: "shared.pub.x", local: "shared.pub.x", parent: "shared.pub", root: "shared", levels: []string{"shared", "pub", "x"}},
		{name: "users.bob", local: "users.bob", parent: "users", root: "users", levels: []string{"users", "bob"}},
		{name: "DELETED.user.bob.Junk.6B036AF6", local: "DELETED.user.bob.Junk.6B036AF6", parent: "DELETED.user.bob.Junk", root: "DELETED", levels: []string{"DELETED", "user", "bob", "Junk", "6B036AF6"}, deleted: true},
		{name: "d!DELETED.user.bob.1", domain: "d", local: "DELETED.user.bob.1", parent: "d!DELETED.user.bob", root: "d!DELETED", levels: []string{"DELETED", "user", "bob", "1"}, deleted: true},
		{name: "DELETED", local: "DELETED", root: "DELETED", levels: []string{"DELETED"}},
		{name: "deleted.x", local: "deleted.x", parent: "deleted", root: "deleted", levels: []string{"deleted", "x"}},
		// No user id leads to these.
		{name: "user.a@b", local: "user.a@b", parent: "user", root: "user.a@b", levels: []string{"user", "a@b"}, inbox: true},
		{name: "user.anyone", local: "user.anyone", parent: "user", root: "user.anyone", levels: []string{"user", "anyone"}, inbox: true},
		{name: "user.group:x.y", local: "user.group:x.y", parent: "user.group:x", root: "user.group:x", levels: []string{"user", "group:x", "y"}},
		{name: "d!user.a@b", domain: "d", local: "user.a@b", parent: "d!user", owner: "a@b@d", root: "d!user.a@b", levels: []string{"user", "a@b"}, inbox: true},
		// Trees that are no mail.
		{name: "user.a.#calendars", local: "user.a.#calendars", parent: "user.a", owner: "a", root: "user.a", levels: []string{"user", "a", "#calendars"}, hidden: true},
		{name: "d!user.a.#addressbooks.Default", domain: "d", local: "user.a.#addressbooks.Default", parent: "d!user.a.#addressbooks", owner: "a@d", root: "d!user.a", levels: []string{"user", "a", "#addressbooks", "Default"}, hidden: true},
		{name: "user.a.#calendarsX", local: "user.a.#calendarsX", parent: "user.a", owner: "a", root: "user.a", levels: []string{"user", "a", "#calendarsX"}},
		{name: "user.a.Work.#calendars", local: "user.a.Work.#calendars", parent: "user.a.Work", owner: "a", root: "user.a", levels: []string{"user", "a", "Work", "#calendars"}},
		{name: "user.#sieve", local: "user.#sieve", parent: "user", owner: "#sieve", root: "user.#sieve", levels: []string{"user", "#sieve"}, inbox: true},
		{name: "#drive.x", local: "#drive.x", parent: "#drive", root: "#drive", levels: []string{"#drive", "x"}, hidden: true},
		{name: "user.a.#jmapsubmission", local: "user.a.#jmapsubmission", parent: "user.a", owner: "a", root: "user.a", levels: []string{"user", "a", "#jmapsubmission"}, hidden: true},
		{name: "user.a.#notifications", local: "user.a.#notifications", parent: "user.a", owner: "a", root: "user.a", levels: []string{"user", "a", "#notifications"}, hidden: true},
	} {
		n, err := ParseName(test.name)
		if err != nil {
			t.Errorf("ParseName(%q): %v", test.name, err)
			continue
		}
		if got := n.Domain(); got != test.domain {
			t.Errorf("%s: Domain = %q, want %q", n, got, test.domain)
		}
		if got := n.Local(); got != test.local {
			t.Errorf("%s: Local = %q, want %q", n, got, test.local)
		}
		if got, ok := n.Parent(); string(got) != test.parent || ok != (test.parent != "") {
			t.Errorf("%s: Parent = %q, %v; want %q", n, got, ok, test.parent)
		}
		if got, ok := n.Owner(); string(got) != test.owner || ok != (test.owner != "") {
			t.Errorf("%s: Owner = %q, %v; want %q", n, got, ok, test.owner)
		}
		if got := n.Root(); string(got) != test.root {
			t.Errorf("%s: Root = %q, want %q", n, got, test.root)
		}
		if got := slices.Collect(n.Levels()); !slices.Equal(got, test.levels) {
			t.Errorf("%s: Levels = %q, want %q", n, got, test.levels)
		}
		if got := n.IsInbox(); got != test.inbox {
			t.Errorf("%s: IsInbox = %v, want %v", n, got, test.inbox)
		}
		if got := n.IsDeleted(); got != test.deleted {
			t.Errorf("%s: IsDeleted = %v, want %v", n, got, test.deleted)
		}
		if got := n.IsHiddenTree(); got != test.hidden {
			t.Errorf("%s: IsHiddenTree = %v, want %v", n, got, test.hidden)
		}
	}
}

func TestOwnedBy(t *testing.T) {
	for _, test := range []struct {
		name MailboxName
		user UserID
		want bool
	}{
		{"user.ann^smith", "ann.smith", true},
		{"user.ann^smith.Work", "ann.smith", true},
		{"user.ann^smith", "ann", false},
		{"user.ann.smith", "ann.smith", false},
		{"user.ann", "ann.smith", false},
		{"user.annette", "ann", false},
		{"other.org!user.zoe.Box", "zoe@other.org", true},
		{"other.org!user.zoe.Box", "zoe", false},
		{"user.zoe.Box", "zoe@other.org", false},
		{"other^org!user.zoe", "zoe@other.org", false},
		{"shared.x", "x", false},
		{"user.", "", false},
		{"user", "", false},
		{"DELETED.user.bob.1", "bob", false},
	} {
		if got := test.name.OwnedBy(test.user); got != test.want {
			t.Errorf("%s OwnedBy %q = %v, want %v", test.name, test.user, got, test.want)
		}
	}
}

func TestOmitDomain(t *testing.T) {
	for _, test := range []struct{ name, def, want MailboxName }{
		{"example.com!user.bob", "example.com", "user.bob"},
		{"example.com!user.bob", "example.org", "example.com!user.bob"},
		{"example.com!user.bob", "", "example.com!user.bob"},
		{"user.bob", "example.com", "user.bob"},
		{"example", "example", "example"},
	} {
		if got := test.name.OmitDomain(string(test.def)); got != test.want {
			t.Errorf("%s without %q = %s, want %s", test.name, test.def, got, test.want)
		}
	}
	for _, test := range []struct{ user, def, want UserID }{
		{"bob@example.com", "example.com", "bob"},
		{"bob@example.com", "", "bob@example.com"},
		{"bob@other.org", "example.com", "bob@other.org"},
		{"bob", "example.com", "bob"},
	} {
		if got := test.user.OmitDomain(string(test.def)); got != test.want {
			t.Errorf("%s without %q = %s, want %s", test.user, test.def, got, test.want)
		}
	}
}

func TestParseUser(t *testing.T) {
	for _, test := range []struct{ user, inbox string }{
		{"alice", "user.alice"},
		{"ann.smith", "user.ann^smith"},
		{"zoe@other.org", "other.org!user.zoe"},
		{"ann.smith@other.org", "other.org!user.ann^smith"},
		{"a@b@c.d", "c.d!user.a@b"},
		{".a..b.", "user.^a^^b^"},
		{"Alice", "user.Alice"},
		{"a+b c", "user.a+b c"},
		{"owner", "user.owner"}, // no special identifier to Cyrus
	} {
		u, err := ParseUser(test.user)
		if err != nil {
			t.Errorf("ParseUser(%q): %v", test.user, err)
			continue
		}
		n, err := u.Inbox()
		if err != nil || string(n) != test.inbox {
			t.Errorf("%s: Inbox = %q, %v; want %q", u, n, err, test.inbox)
		}
		if !n.IsInbox() || !n.OwnedBy(u) {
			t.Errorf("%s: IsInbox %v, OwnedBy %v; want true", n, n.IsInbox(), n.OwnedBy(u))
		}
		if got, ok := n.Owner(); !ok || got != u {
			t.Errorf("%s: Owner = %q, %v; want %q", n, got, ok, u)
		}
	}
	for _, s := range []string{
		"", "@", "@x", "a@", "a@b..c", "a^b", "a!b", "a/b", "a%b", "a\tb", "caf\xc3\xa9", "a&b", "a@b c", "a b@c/d",
		"anyone", "anonymous", "group:staff", "group:x@y", "-alice", `a"`, `a\b`,
	} {
		if u, err := ParseUser(s); !errors.Is(err, ErrInvalidName) {
			t.Errorf("ParseUser(%q) = %q, %v; want ErrInvalidName", s, u, err)
		}
		if n, err := UserID(s).Inbox(); !errors.Is(err, ErrInvalidName) {
			t.Errorf("Inbox of %q = %q, %v; want ErrInvalidName", s, n, err)
		}
	}
	longest := MaxName - len("user.")
	if _, err := ParseUser(strings.Repeat("a", longest)); err != nil {
		t.Errorf("ParseUser of %d octets: %v", longest, err)
	}
	if _, err := ParseUser(strings.Repeat("a", longest+1)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("ParseUser of %d octets: %v; want ErrTooLarge", longest+1, err)
	}
}

func TestParseBackendAndGroup(t *testing.T) {
	for _, s := range []string{"be1", "be1.murder.test", "BE-1_x.example.org", strings.Repeat("a", 253)} {
		if got, err := ParseBackend(s); err != nil || string(got) != s {
			t.Errorf("ParseBackend(%q) = %q, %v; want it unchanged", s, got, err)
		}
		if got, err := ParseGroup(s); err != nil || string(got) != s {
			t.Errorf("ParseGroup(%q) = %q, %v; want it unchanged", s, got, err)
		}
	}
	for _, s := range []string{"", "be1!default", "be 1", "be1:3905", ".be1", "be1.", "be..1", "be\x00", "b\xe9", strings.Repeat("a", 254)} {
		if got, err := ParseBackend(s); !errors.Is(err, ErrInvalidName) {
			t.Errorf("ParseBackend(%q) = %q, %v; want ErrInvalidName", s, got, err)
		}
		if got, err := ParseGroup(s); !errors.Is(err, ErrInvalidName) {
			t.Errorf("ParseGroup(%q) = %q, %v; want ErrInvalidName", s, got, err)
		}
	}
}

func FuzzParseName(f *testing.F) {
	for _, s := range append(slices.Clone(keyOrder), "user.&AOk-t&AOk-", "d!user.a@b.&2D3eAA-", "a!b!c", "user.&AOl-", "x..y", "user.a^b.#jmap") {
		f.Add(s, "user.foo")
	}
	f.Add("x.y!z", "x^y.z")
	f.Fuzz(func(t *testing.T, s, other string) {
		n, err := ParseName(s)
		if err != nil {
			if !errors.Is(err, ErrInvalidName) && !errors.Is(err, ErrTooLarge) {
				t.Fatalf("ParseName(%q): %v, of neither kind", s, err)
			}
			return
		}
		if string(n) != s || s == "" || len(s) > MaxName {
			t.Fatalf("ParseName(%q) = %q", s, n)
		}
		if want := decodesAsUTF7(n); !want {
			t.Fatalf("ParseName(%q) took modified UTF-7 that does not decode and encode to itself", s)
		}
		key := n.AppendKey(nil)
		if back, err := NameFromKey(key); err != nil || back != n {
			t.Fatalf("NameFromKey(%q) = %q, %v; want %q", key, back, err, n)
		}
		if u, ok := n.Owner(); ok {
			if inbox, err := u.Inbox(); err != nil || inbox != n.Root() || !n.OwnedBy(u) {
				t.Fatalf("%q: owner %q with inbox %q, %v; root %q", n, u, inbox, err, n.Root())
			}
		}
		if p, ok := n.Parent(); ok {
			if _, err := ParseName(string(p)); err != nil && p.Local() != "user" || !n.IsBelow(p) {
				t.Fatalf("%q: parent %q: %v", n, p, err)
			}
			if lo, hi := p.PrefixKeys(); !(KeyRange{lo, hi}).Contains(key) {
				t.Fatalf("%q is not in PrefixKeys of %q", n, p)
			}
		}
		if n.Root() != n && !n.IsBelow(n.Root()) {
			t.Fatalf("%q is not below its root %q", n, n.Root())
		}
		m, err := ParseName(other)
		if err != nil {
			return
		}
		got, want := CompareNames(n, m), bytes.Compare(key, m.AppendKey(nil))
		if max(-1, min(1, got)) != want {
			t.Fatalf("CompareNames(%q, %q) = %d, want the sign of %d", n, m, got, want)
		}
		lo, hi := m.PrefixKeys()
		if in := (KeyRange{lo, hi}).Contains(key); in != n.IsBelow(m) {
			t.Fatalf("%q in PrefixKeys of %q: %v, IsBelow %v", n, m, in, n.IsBelow(m))
		}
	})
}

// decodesAsUTF7 decodes each level with code of its own and encodes it again:
// what ParseName takes has one spelling.
func decodesAsUTF7(n MailboxName) bool {
	for level := range n.Levels() {
		text, ok := decodeUTF7(level)
		if !ok || encodeUTF7(text) != level {
			return false
		}
	}
	return true
}

func FuzzParseUser(f *testing.F) {
	for _, s := range []string{"alice", "ann.smith@other.org", "a@b@c", "a^b", "-x", "group:y", ".a.", "&AOk-", "&AOk-.&AOk-"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		u, err := ParseUser(s)
		if err != nil {
			return
		}
		n, err := u.Inbox()
		if err != nil {
			t.Fatalf("%q: Inbox: %v", s, err)
		}
		if _, err := ParseName(string(n)); err != nil {
			t.Fatalf("%q: inbox %q: %v", s, n, err)
		}
		if got, ok := n.Owner(); !ok || got != u {
			t.Fatalf("%q: inbox %q has owner %q, %v", s, n, got, ok)
		}
	})
}

func FuzzNameFromKey(f *testing.F) {
	for _, s := range keyOrder {
		f.Add(MailboxName(s).AppendKey(nil))
	}
	f.Add([]byte("a\x1db\x1dc"))
	f.Fuzz(func(t *testing.T, key []byte) {
		n, err := NameFromKey(key)
		if err != nil {
			return
		}
		if _, err := ParseName(string(n)); err != nil {
			t.Fatalf("NameFromKey(%q) = %q: %v", key, n, err)
		}
		if got := n.AppendKey(nil); !bytes.Equal(got, key) {
			t.Fatalf("NameFromKey(%q) = %q with key %q", key, n, got)
		}
	})
}

const benchName = "user.alice^smith.Projects.R&AOk-sum&AOk-.2024.Q1"

func BenchmarkParseName(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseName(benchName); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAppendKey(b *testing.B) {
	b.ReportAllocs()
	var buf [MaxName]byte
	for b.Loop() {
		MailboxName(benchName).AppendKey(buf[:0])
	}
}

func BenchmarkNameFromKey(b *testing.B) {
	b.ReportAllocs()
	key := MailboxName(benchName).AppendKey(nil)
	for b.Loop() {
		if _, err := NameFromKey(key); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCompareNames(b *testing.B) {
	b.ReportAllocs()
	other := MailboxName(benchName + ".x")
	for b.Loop() {
		CompareNames(benchName, other)
	}
}
