package directory

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

var (
	formN   = Namespace{Sep: '.'}
	formNU  = Namespace{Sep: '/'}
	formA   = Namespace{Alt: true, Sep: '/'}
	formAD  = Namespace{Alt: true, Sep: '.'}
	formAV  = Namespace{Alt: true, Sep: '/', VirtDomains: true, DefaultDomain: "example.com"}
	formNV  = Namespace{Sep: '.', VirtDomains: true, DefaultDomain: "example.com"}
	formAX  = Namespace{Alt: true, Sep: '/', VirtDomains: true, CrossDomains: true, DefaultDomain: "example.com"}
	formNX  = Namespace{Sep: '.', VirtDomains: true, CrossDomains: true, DefaultDomain: "example.com"}
	formAll = []Namespace{formN, formNU, formA, formAD, formAV, formNV, formAX, formNX}
)

func TestClientForms(t *testing.T) {
	for _, test := range []struct {
		user   string
		name   MailboxName
		ns     Namespace
		client string
		class  Class
	}{
		// One name in the four forms.
		{"alice", "user.alice", formN, "INBOX", ClassInbox},
		{"alice", "user.alice", formNU, "INBOX", ClassInbox},
		{"alice", "user.alice", formA, "INBOX", ClassInbox},
		{"alice", "user.alice", formAD, "INBOX", ClassInbox},
		{"alice", "user.alice.Work.2024", formN, "INBOX.Work.2024", ClassOwn},
		{"alice", "user.alice.Work.2024", formNU, "INBOX/Work/2024", ClassOwn},
		{"alice", "user.alice.Work.2024", formA, "Work/2024", ClassOwn},
		{"alice", "user.alice.Work.2024", formAD, "Work.2024", ClassOwn},
		{"alice", "user.alice.INBOX.x", formN, "INBOX.INBOX.x", ClassOwn},
		{"alice", "user.alice.INBOX.x", formNU, "INBOX/INBOX/x", ClassOwn},
		{"alice", "user.alice.INBOX.x", formA, "INBOX/x", ClassInboxChildren},
		{"alice", "user.alice.INBOX.x", formAD, "INBOX.x", ClassInboxChildren},
		{"alice", "user.alice.INBOX", formN, "INBOX.INBOX", ClassOwn},
		{"alice", "user.alice.INBOX", formNU, "INBOX/INBOX", ClassOwn},
		{"alice", "user.alice.INBOX", formA, "Alt Folders/INBOX", ClassAltFolders},
		{"alice", "user.alice.INBOX", formAD, "Alt Folders.INBOX", ClassAltFolders},
		{"alice", "user.alice.inbox", formA, "Alt Folders/inbox", ClassAltFolders},
		{"alice", "user.alice.Inbox.x", formA, "Alt Folders/Inbox/x", ClassAltFolders},
		{"alice", "user.alice.inbox", formN, "INBOX.inbox", ClassOwn},
		{"alice", "user.alice.Other Users", formA, "Alt Folders/Other Users", ClassAltFolders},
		{"alice", "user.alice.Other Users.x", formA, "Alt Folders/Other Users/x", ClassAltFolders},
		{"alice", "user.alice.Shared Folders", formAD, "Alt Folders.Shared Folders", ClassAltFolders},
		{"alice", "user.alice.Alt Folders", formA, "Alt Folders/Alt Folders", ClassAltFolders},
		{"alice", "user.alice.other users", formA, "other users", ClassOwn},
		{"alice", "user.alice.Alt Folders", formNU, "INBOX/Alt Folders", ClassOwn},
		{"alice", "user.bob.Shared", formN, "user.bob.Shared", ClassOtherUsers},
		{"alice", "user.bob.Shared", formNU, "user/bob/Shared", ClassOtherUsers},
		{"alice", "user.bob.Shared", formA, "Other Users/bob/Shared", ClassOtherUsers},
		{"alice", "user.bob.Shared", formAD, "Other Users.bob.Shared", ClassOtherUsers},
		{"alice", "user.bob.INBOX", formA, "Other Users/bob/INBOX", ClassOtherUsers},
		{"alice", "shared.pub", formN, "shared.pub", ClassShared},
		{"alice", "shared.pub", formNU, "shared/pub", ClassShared},
		{"alice", "shared.pub", formA, "Shared Folders/shared/pub", ClassShared},
		{"alice", "shared.pub", formAD, "Shared Folders.shared.pub", ClassShared},
		{"alice", "user.bob.p^q", formN, "user.bob.p^q", ClassOtherUsers},
		{"alice", "user.bob.p^q", formNU, "user/bob/p.q", ClassOtherUsers},
		{"alice", "user.bob.p^q", formA, "Other Users/bob/p.q", ClassOtherUsers},
		{"alice", "user.bob.p^q", formAD, "Other Users.bob.p^q", ClassOtherUsers},
		{"ann.smith", "user.ann^smith", formN, "INBOX", ClassInbox},
		{"ann.smith", "user.ann^smith", formNU, "INBOX", ClassInbox},
		{"ann.smith", "user.ann^smith", formA, "INBOX", ClassInbox},
		{"ann.smith", "user.ann^smith.a", formAD, "a", ClassOwn},
		{"alice", "user.ann^smith.a", formN, "user.ann^smith.a", ClassOtherUsers},
		{"alice", "user.ann^smith.a", formA, "Other Users/ann.smith/a", ClassOtherUsers},
		{"alice", "userx.y", formN, "userx.y", ClassShared},
		{"alice", "INBOX.x", formN, "", ClassHidden}, // a shared one; it would look own
		{"alice", "inbox", formNU, "", ClassHidden},
		{"alice", "INBOX.x", formA, "Shared Folders/INBOX/x", ClassShared},
		{"alice", "user.peggy.R&AOk-sum&AOk-", formA, "Other Users/peggy/R&AOk-sum&AOk-", ClassOtherUsers},
		{"alice", "DELETED.user.alice.x.6B036AF6", formN, "", ClassHidden},
		{"alice", "DELETED.user.alice.x.6B036AF6", formA, "", ClassHidden},
		{"alice", "user.alice.#calendars", formA, "#calendars", ClassOwn}, // hidden from LIST by its reader
		{"anonymous", "user.alice", formN, "user.alice", ClassOtherUsers},
		{"anonymous", "user.alice.x", formA, "Other Users/alice/x", ClassOtherUsers},
		{"anonymous", "shared", formA, "Shared Folders/shared", ClassShared},

		// Administrators: never alt, no INBOX.
		{"admin", "user.bob.x", formA, "user/bob/x", ClassOtherUsers},
		{"admin", "user.bob.x", formN, "user.bob.x", ClassOtherUsers},
		{"admin", "user.cyrus", formA, "user/cyrus", ClassOtherUsers},
		{"admin", "shared.pub", formAD, "shared.pub", ClassShared},
		{"admin", "user.bob.p^q", formA, "user/bob/p.q", ClassOtherUsers},
		{"admin", "DELETED.user.bob.x.6B036AF6", formA, "DELETED/user/bob/x/6B036AF6", ClassShared},
		{"admin", "INBOX.x", formN, "INBOX.x", ClassShared},
		{"admin", "other.org!user.zoe.Box", formAV, "user/zoe/Box@other.org", ClassOtherUsers},
		{"admin", "other.org!user.zoe.Shared^v1", formAV, "user/zoe/Shared.v1@other.org", ClassOtherUsers},
		{"admin", "other.org!user.zoe.Shared^v1", formNV, "user.zoe.Shared^v1@other.org", ClassOtherUsers},
		{"admin", "other.org!team", formAX, "team@other.org", ClassShared},
		{"admin", "user.bob", formAV, "user/bob", ClassOtherUsers},
		{"admin", "other.org!team", formA, "", ClassHidden},
		{"admin", "user.bob.a@b", formAV, "user/bob/a@b@example.com", ClassOtherUsers},
		{"admin", "other.org!user.bob.a@b", formAV, "user/bob/a@b@other.org", ClassOtherUsers},
		{"admin", "user.bob.a@b", formA, "user/bob/a@b", ClassOtherUsers},
		{"admin@other.org", "user.bob", formAV, "user/bob@example.com", ClassOtherUsers},
		{"admin@other.org", "other.org!user.bob", formAV, "user/bob@other.org", ClassOtherUsers},

		// Virtual domains: the own one without suffix, others not at all.
		{"zoe@other.org", "other.org!user.zoe", formAV, "INBOX", ClassInbox},
		{"zoe@other.org", "other.org!user.zoe.Shared^v1", formAV, "Shared.v1", ClassOwn},
		{"zoe@other.org", "other.org!user.zoe.Shared^v1", formNV, "INBOX.Shared^v1", ClassOwn},
		{"zoe@other.org", "other.org!user.yan.To Zoe", formAV, "Other Users/yan/To Zoe", ClassOtherUsers},
		{"zoe@other.org", "other.org!team.docs", formAV, "Shared Folders/team/docs", ClassShared},
		{"zoe@other.org", "other.org!team.docs", formNV, "team.docs", ClassShared},
		{"zoe@other.org", "user.bob.x", formAV, "", ClassHidden},
		{"zoe@other.org", "shared", formAV, "", ClassHidden},
		{"zoe@other.org", "user.zoe.x", formAV, "", ClassHidden}, // another zoe
		{"zoe@other.org", "third.org!team", formAV, "", ClassHidden},
		{"alice", "other.org!team", formAV, "", ClassHidden},
		{"alice", "other.org!user.alice", formAV, "", ClassHidden},
		{"anonymous", "other.org!team", formAV, "", ClassHidden},
		{"alice", "user.a@b.x", formAV, "Other Users/a@b/x", ClassOtherUsers},

		// Crossing domains: every foreign first level has its domain.
		{"zoe@other.org", "user.bob.Dotted^Name", formAX, "Other Users/bob@example.com/Dotted.Name", ClassOtherUsers},
		{"zoe@other.org", "user.bob.Dotted^Name", formNX, "user.bob@example^com.Dotted^Name", ClassOtherUsers},
		{"zoe@other.org", "other.org!user.yan.To Zoe", formAX, "Other Users/yan@other.org/To Zoe", ClassOtherUsers},
		{"zoe@other.org", "other.org!user.zoe.Box", formAX, "Box", ClassOwn},
		{"zoe@other.org", "user.zoe.Box", formAX, "Other Users/zoe@example.com/Box", ClassOtherUsers},
		{"zoe@other.org", "shared.pub", formAX, "Shared Folders/shared@example.com/pub", ClassShared},
		{"alice", "other.org!team.docs", formAX, "Shared Folders/team@other.org/docs", ClassShared},
		{"alice", "other.org!team.docs", formNX, "team@other^org.docs", ClassShared},
		{"alice", "shared.pub", formAX, "Shared Folders/shared@example.com/pub", ClassShared},
		{"alice", "user.a@b.x", formAX, "Other Users/a@b@example.com/x", ClassOtherUsers},
		{"alice", "user.ann^smith", formNX, "user.ann^smith@example^com", ClassOtherUsers},
	} {
		p := fixturePrincipal(test.user)
		if user, ok := strings.CutPrefix(test.user, "admin@"); ok {
			p = Principal{User: UserID("cyrus@" + user), Admin: true}
		}
		got, ok := test.ns.ToClient(test.name, p)
		if got != test.client || ok != (test.client != "") {
			t.Errorf("%+v: %s for %s = %q, %v; want %q", test.ns, test.name, test.user, got, ok, test.client)
		}
		if got := test.ns.Class(test.name, p); got != test.class {
			t.Errorf("%+v: class of %s for %s = %v, want %v", test.ns, test.name, test.user, got, test.class)
		}
		if !ok {
			continue
		}
		back, err := test.ns.FromClient(got, p)
		if err != nil || back != test.name {
			t.Errorf("%+v: %q from %s = %q, %v; want %q", test.ns, got, test.user, back, err, test.name)
		}
	}
}

func TestFromClient(t *testing.T) {
	for _, test := range []struct {
		user string
		ns   Namespace
		in   string
		want string // "" for an error
	}{
		// INBOX in any case, as the first level and no further.
		{"alice", formA, "inbox", "user.alice"},
		{"alice", formA, "inbox/kid", "user.alice.INBOX.kid"},
		{"alice", formA, "iNbOx/inbox", "user.alice.INBOX.inbox"},
		{"alice", formN, "inbox.kid", "user.alice.kid"},
		{"alice", formNU, "Inbox/Kid", "user.alice.Kid"},
		{"alice", formN, "INBOX.inbox", "user.alice.inbox"},
		{"alice", formA, "work", "user.alice.work"},
		// Separators too many are dropped.
		{"alice", formA, "tr/", "user.alice.tr"},
		{"alice", formA, "/lead", "user.alice.lead"},
		{"alice", formA, "dbl//x", "user.alice.dbl.x"},
		{"alice", formA, "///a////b///", "user.alice.a.b"},
		{"alice", formN, "INBOX..x.", "user.alice.x"},
		{"alice", formN, ".INBOX", "user.alice"},
		{"alice", formA, "", ""},
		{"alice", formA, "/", ""},
		{"alice", formA, strings.Repeat("/", 600) + "x", "user.alice.x"},
		// The other separator, and the stored dot.
		{"alice", formN, "INBOX.a/b", ""},
		{"alice", formN, "INBOX.a^b", "user.alice.a^b"},
		{"alice", formA, "a.b", "user.alice.a^b"},
		{"alice", formA, ".", "user.alice.^"},
		{"alice", formA, "a^b", ""},
		// Octets.
		{"alice", formA, "a%b", ""},
		{"alice", formA, `a"b`, ""},
		{"alice", formA, `a\b`, ""},
		{"alice", formA, "a!b", ""},
		{"alice", formN, "d!user.bob", ""},
		{"alice", formA, "a*b~ c", "user.alice.a*b~ c"},
		{"alice", formA, "caf\xc3\xa9", ""},
		{"alice", formA, "&Jjo", ""},
		{"alice", formA, "f&AOk-te", "user.alice.f&AOk-te"},
		{"alice", formA, "a\x00", ""},
		{"alice", formA, "a\x1fb", ""},
		// One's own by the long name.
		{"alice", formN, "user.alice.Drafts", "user.alice.Drafts"},
		{"alice", formN, "USER.alice", "USER.alice"}, // a shared name that nobody has
		{"alice", formA, "Other Users/alice/Drafts", "user.alice.Drafts"},
		{"alice", formA, "Alt Folders/Drafts", "user.alice.Drafts"},
		{"alice", formA, "user/bob", "user.alice.user.bob"},
		// First levels alone.
		{"alice", formA, "Other Users", ""},
		{"alice", formA, "Other Users/", ""},
		{"alice", formN, "user", ""},
		{"alice", formA, "Shared Folders", ""},
		{"alice", formA, "Alt Folders", ""},
		// What is not shown is not to be named.
		{"alice", formA, "Shared Folders/user/bob", ""},
		{"alice", formA, "Shared Folders/user", ""},
		{"alice", formA, "Shared Folders/DELETED/user/alice/x/1", ""},
		{"alice", formN, "DELETED.user.alice.x.1", ""},
		{"alice", formN, "DELETED", "DELETED"},
		{"alice", formAX, "Shared Folders/user@example.com/bob", ""},
		{"alice", formNX, "DELETED.user.alice.x.1", ""},
		{"alice", formNX, "DELETED@example^com.user.alice.x.1", ""},
		{"alice", formAX, "Shared Folders/DELETED@other.org/user/x", ""},
		{"alice", formNX, "INBOX@other^org.x", ""},
		// The anonymous login has none of its own.
		{"anonymous", formN, "INBOX", ""},
		{"anonymous", formA, "INBOX", ""},
		{"anonymous", formA, "Drafts", ""},
		{"anonymous", formA, "Shared Folders/look", "look"},
		{"anonymous", formN, "look", "look"},
		// Administrators.
		{"admin", formA, "user/bob/x", "user.bob.x"},
		{"admin", formA, "Other Users/bob", "Other Users.bob"},
		{"admin", formA, "INBOX", "INBOX"},
		{"admin", formA, "user/zoe/Box@other.org", "user.zoe.Box@other^org"}, // no virtual domains
		{"admin", formAV, "user/zoe/Box@example.com", "user.zoe.Box"},
		{"admin", formAV, "user/a@b/c", "user.a@b.c"},
		{"admin", formNV, "user.zoe.Box@other.org", "other.org!user.zoe.Box"},
		{"admin", formAV, "@other.org", ""},
		{"admin@other.org", formAV, "user/zoe", "other.org!user.zoe"},
		// Domains.
		{"zoe@other.org", formAV, "Other Users/yan", "other.org!user.yan"},
		{"zoe@other.org", formAV, "Other Users", ""},
		{"zoe@other.org", formAV, "Other Users/yan@example.com", "other.org!user.yan@example^com"},
		{"zoe@other.org", formAV, "Shared Folders/team", "other.org!team"},
		{"zoe@other.org", formAX, "Other Users/yan@other.org", "other.org!user.yan"},
		{"zoe@other.org", formAX, "Other Users/bob@example.com/x", "user.bob.x"},
		{"zoe@other.org", formAX, "Other Users/bob", "user.bob"}, // no domain is the default one
		{"zoe@other.org", formAX, "Other Users/bob@", ""},
		{"zoe@other.org", formAX, "Other Users/bob@ex ample", ""},
		{"zoe@other.org", formAX, "Box", "other.org!user.zoe.Box"},
		{"zoe@other.org", formNX, "user.zoe@other^org.Box", "other.org!user.zoe.Box"},
	} {
		p := fixturePrincipal(test.user)
		if user, ok := strings.CutPrefix(test.user, "admin@"); ok {
			p = Principal{User: UserID("cyrus@" + user), Admin: true}
		}
		got, err := test.ns.FromClient(test.in, p)
		if string(got) != test.want || (err == nil) != (test.want != "") {
			t.Errorf("%+v: %q from %s = %q, %v; want %q", test.ns, test.in, test.user, got, err, test.want)
		}
		if err != nil && !errors.Is(err, ErrInvalidName) {
			t.Errorf("%+v: %q from %s: %v; want ErrInvalidName", test.ns, test.in, test.user, err)
		}
	}
	for _, s := range []string{strings.Repeat("a", MaxName), strings.Repeat("/", 5*MaxName) + "a"} {
		if n, err := formA.FromClient(s, Principal{User: "alice"}); !errors.Is(err, ErrTooLarge) {
			t.Errorf("%d octets = %q, %v; want ErrTooLarge", len(s), n, err)
		}
	}
}

func TestNamespaceValidate(t *testing.T) {
	for _, ns := range formAll {
		if err := ns.Validate(); err != nil {
			t.Errorf("%+v: %v", ns, err)
		}
	}
	for _, ns := range []Namespace{
		{}, {Sep: '-'}, {Sep: '.', CrossDomains: true, DefaultDomain: "a.b"}, {Sep: '.', CrossDomains: true, VirtDomains: true},
		{Sep: '/', VirtDomains: true, DefaultDomain: "a..b"},
	} {
		if err := ns.Validate(); !errors.Is(err, ErrInvalid) {
			t.Errorf("%+v: %v; want ErrInvalid", ns, err)
		}
	}
}

func TestInterpret(t *testing.T) {
	for _, test := range []struct {
		reference, pattern string
		sep                byte
		want               string
	}{
		{"", "*", '.', "*"},
		{"INBOX.", "%", '.', "INBOX.%"},
		{"INBOX.", ".%", '.', "INBOX.%"},
		{"INBOX", ".%", '.', "INBOX.%"},
		{"INBOX", "%", '.', "INBOX%"}, // no magic
		{"Work/", "/2024", '/', "Work/2024"},
		{"Work", "2024", '/', "Work2024"},
		{"Work.", ".x", '/', "Work..x"},
		{"", "inbox", '.', "INBOX"},
		{"in", "box", '.', "INBOX"},
		{"", "inbox/x%", '/', "INBOX/x%"},
		{"", "Inbox.x", '/', "Inbox.x"}, // one level, and not INBOX
		{"", "i%", '.', "i%"},
		{"", "inbox*", '.', "inbox*"},
		{"", "inboxes", '.', "inboxes"},
		{"", "x.inbox", '.', "x.inbox"},
	} {
		if got := Interpret(test.reference, test.pattern, test.sep); got != test.want {
			t.Errorf("Interpret(%q, %q, %q) = %q, want %q", test.reference, test.pattern, test.sep, got, test.want)
		}
	}
}

func TestQuoteAString(t *testing.T) {
	for in, want := range map[string]string{
		"":             `""`,
		"INBOX":        "INBOX",
		"Archive/2023": "Archive/2023",
		"Other Users":  `"Other Users"`,
		"e*f":          `"e*f"`,
		"srt b":        `"srt b"`,
		"a%b":          `"a%b"`,
		"[x]":          "[x]",
		"a(b)":         `"a(b)"`,
		"{3}":          `"{3}"`,
		"a}b":          "a}b",
		"p^q":          "p^q",
		"&AOk-t&AOk-":  "&AOk-t&AOk-",
		"~#'$+,-:;=@_": "~#'$+,-:;=@_",
		`a"b\c`:        `"a\"b\\c"`,
		"NIL":          `"NIL"`,
		"nil":          "nil",
		"caf\xc3\xa9":  "\"caf\xc3\xa9\"",
		"\xff":         "\"\xff\"",
		"\x7f":         "\"\x7f\"",
	} {
		if got := QuoteAString(in); got != want {
			t.Errorf("QuoteAString(%q) = %s, want %s", in, got, want)
		}
	}
}

func TestResponse(t *testing.T) {
	for _, test := range []struct {
		ns   Namespace
		user string
		want string
	}{
		{formN, "alice", `(("INBOX." ".")) (("user." ".")) (("" "."))`},
		{formNU, "alice", `(("INBOX/" "/")) (("user/" "/")) (("" "/"))`},
		{formA, "alice", `(("" "/")) (("Other Users/" "/")) (("Shared Folders/" "/"))`},
		{formA, "admin", `NIL (("user/" "/")) (("" "/"))`},
		{formN, "admin", `NIL (("user." ".")) (("" "."))`},
		{formA, "anonymous", `NIL (("Other Users/" "/")) (("Shared Folders/" "/"))`},
	} {
		if got := test.ns.Response(fixturePrincipal(test.user)); got != test.want {
			t.Errorf("%+v for %s = %s, want %s", test.ns, test.user, got, test.want)
		}
	}
}

func TestParents(t *testing.T) {
	for _, test := range []struct {
		ns     Namespace
		user   string
		client string
		want   []string
	}{
		{formN, "alice", "INBOX.Work.2024", []string{"INBOX", "INBOX.Work"}},
		{formA, "alice", "Other Users/bob/Deep", []string{"Other Users", "Other Users/bob"}},
		{formA, "alice", "INBOX", nil},
		{formAX, "alice", "Other Users/yan@other.org/To Zoe", []string{"Other Users", "Other Users/yan@other.org"}},
		{formAV, "admin", "user/zoe/Box@other.org", []string{"user", "user/zoe@other.org"}},
		{formNV, "admin", "user.zoe.Box@other.org", []string{"user", "user.zoe@other.org"}},
		{formAV, "admin", "team/docs@other.org", []string{"team@other.org"}},
		{formAV, "admin", "user/a@b/c", []string{"user", "user/a@b"}},
		{formA, "admin", "user/zoe/Box@x", []string{"user", "user/zoe"}},
	} {
		got := slices.Collect(test.ns.Parents(test.client, fixturePrincipal(test.user)))
		if !slices.Equal(got, test.want) {
			t.Errorf("%+v: parents of %q for %s = %q, want %q", test.ns, test.client, test.user, got, test.want)
		}
	}
}

// ranges prints key ranges, the separators as names have them, "!+" for what
// follows a domain's.
func ranges(rs []KeyRange) string {
	visible := strings.NewReplacer("\x1d", "!", "\x1e", "!+", "\x1f", ".", " ", "_")
	var out []string
	for _, r := range rs {
		hi := "end"
		if r.Hi != nil {
			hi = visible.Replace(string(r.Hi))
		}
		out = append(out, visible.Replace(string(r.Lo))+" to "+hi)
	}
	return strings.Join(out, ", ")
}

func TestKeyRanges(t *testing.T) {
	const notUsers = " to DELETED., DELETED_ to user., user_ to end"
	for _, test := range []struct {
		ns                  Namespace
		user, prefix        string
		own, others, shared string
	}{
		{formN, "alice", "", "user.alice to user.alice_", "user. to user.alice, user.alice_ to user_", notUsers},
		{formN, "alice", "INBOX", "user.alice to user.alice_", "", "INBOX to INBOY"},
		{formN, "alice", "INBOX.", "user.alice. to user.alice_", "", "INBOX. to INBOX_"},
		{formN, "alice", "INBOX.Wo", "user.alice.Wo to user.alice.Wp", "", "INBOX.Wo to INBOX.Wp"},
		{formN, "alice", "user", "", "user. to user.alice, user.alice_ to user_", "user to user., user_ to uses"},
		{formN, "alice", "user.b", "", "user.b to user.c", ""},
		{formN, "alice", "user.bob.De", "", "user.bob.De to user.bob.Df", ""},
		{formN, "alice", "user.alice", "", "user.alice_ to user.alicf", ""},
		{formN, "alice", "shared.", "", "", "shared. to shared_"},
		{formN, "alice", "a/b", "", "", ""},
		{formN, "alice", "shared.a^", "", "", "shared.a. to shared.a/"}, // dots of both kinds print alike
		{formN, "anonymous", "", "", "user. to user_", notUsers},
		{formA, "alice", "", "user.alice to user.alice_", "user. to user.alice, user.alice_ to user_", notUsers},
		{formA, "alice", "Wo", "user.alice.Wo to user.alice.Wp", "", ""},
		{formA, "alice", "INBOX", "user.alice to user.alice., user.alice.INBOX to user.alice.INBOY", "", ""},
		{formA, "alice", "INBOX/", "user.alice.INBOX. to user.alice.INBOX_", "", ""},
		{formA, "alice", "Other Users/", "user.alice.Other_Users. to user.alice.Other_Users_", "user. to user.alice, user.alice_ to user_", ""},
		{formA, "alice", "Other Users/b", "user.alice.Other_Users.b to user.alice.Other_Users.c", "user.b to user.c", ""},
		{formA, "alice", "Shared Folders/s", "user.alice.Shared_Folders.s to user.alice.Shared_Folders.t", "", "s to t"},
		{formA, "alice", "Alt Folders/Ot", "user.alice.Alt_Folders.Ot to user.alice.Alt_Folders.Ou, user.alice.Ot to user.alice.Ou", "", ""},
		{formAV, "zoe@other.org", "", "other.org!user.zoe to other.org!user.zoe_", "other.org!user. to other.org!user.zoe, other.org!user.zoe_ to other.org!user_",
			"other.org! to other.org!DELETED., other.org!DELETED_ to other.org!user., other.org!user_ to other.org!+"},
		{formAV, "zoe@other.org", "Shared Folders/team/", "other.org!user.zoe.Shared_Folders.team. to other.org!user.zoe.Shared_Folders.team_", "", "other.org!team. to other.org!team_"},
		{formAX, "alice", "Other Users/yan@other.org/", "user.alice.Other_Users.yan@other.org. to user.alice.Other_Users.yan@other.org_", "other.org!user.yan. to other.org!user.yan_", ""},
		{formAX, "alice", "Other Users/y", "user.alice.Other_Users.y to user.alice.Other_Users.z", " to user.alice, user.alice_ to end", ""},
		{formA, "admin", "", "", "user. to user_", " to user., user_ to end"},
		{formA, "admin", "user/b", "", "user.b to user.c", ""},
		{formA, "admin", "DEL", "", "", "DEL to DEM"},
		{formAV, "admin", "user/b", "", " to end", " to end"},
	} {
		r := test.ns.KeyRanges(test.prefix, fixturePrincipal(test.user))
		for i, got := range []string{ranges(r.Own), ranges(r.Others), ranges(r.Shared)} {
			kind, want := []string{"own", "others", "shared"}[i], []string{test.own, test.others, test.shared}[i]
			if got != want {
				t.Errorf("%+v: %q for %s, %s:\n got %s\nwant %s", test.ns, test.prefix, test.user, kind, got, want)
			}
		}
	}
}

// inRanges says whether n, of that class, is where KeyRanges looks for names
// that begin with prefix.
func inRanges(r ListRanges, class Class, n MailboxName) bool {
	in := r.Shared
	switch {
	case class <= ClassAltFolders:
		in = r.Own
	case class == ClassOtherUsers:
		in = r.Others
	}
	key := n.AppendKey(nil)
	return slices.ContainsFunc(in, func(r KeyRange) bool { return r.Contains(key) })
}

// A listing is the mailboxes of testdata/list.txt read so far.
type listing struct {
	names []MailboxName
	acls  map[MailboxName]string
}

func (l *listing) add(t *testing.T, name, acl string) {
	n, err := ParseName(name)
	if err != nil {
		t.Fatal(err)
	}
	words := strings.Fields(acl)
	if u, ok := n.Owner(); ok {
		words = append([]string{string(u), "lrswipkxtecdan"}, words...)
	}
	if len(words) > 0 {
		acl = strings.Join(words, "\t") + "\t"
	}
	l.names = append(l.names, n)
	slices.SortFunc(l.names, CompareNames)
	l.acls[n] = acl
}

// list answers as LIST does, the slow way: all mailboxes, looked at one by one.
func (l *listing) list(t *testing.T, ns Namespace, p Principal, reference, pattern string) []string {
	interpreted := Interpret(reference, pattern, ns.Sep)
	pat := CompilePattern(interpreted, ns.Sep)
	keys := ns.KeyRanges(pat.LiteralPrefix(), p)
	type row struct {
		client string
		class  Class
	}
	var visible []row
	real := map[string]bool{}
	parent := map[string]bool{}
	for _, n := range l.names {
		client, ok := ns.ToClient(n, p)
		rights, err := EffectiveOf(l.acls[n], p)
		if err != nil {
			t.Fatal(err)
		}
		if !ok || !p.Admin && (!rights.Has(RightLookup) || n.IsHiddenTree()) {
			continue
		}
		class := ns.Class(n, p)
		visible = append(visible, row{client, class})
		real[client] = true
		for above := range ns.Parents(client, p) {
			parent[above] = true
		}
		if strings.HasPrefix(client, pat.LiteralPrefix()) && !inRanges(keys, class, n) {
			t.Errorf("%+v: %s is %q for %s, outside the ranges of %q", ns, n, client, p.User, pat.LiteralPrefix())
		}
		path, _ := ns.CutDomain(client, p)
		for i := range path {
			if path[i] == ns.Sep && pat.Match(client) && !pat.CouldMatchBelow(path[:i]) {
				t.Errorf("%q matches %q and says that nothing below %q could", interpreted, client, path[:i])
			}
		}
	}
	slices.SortStableFunc(visible, func(a, b row) int { return int(a.class) - int(b.class) })
	var rows []string
	done := map[string]bool{}
	answer := func(client string) {
		if done[client] || !pat.Match(client) || !real[client] && pat.EndsInBareStar() {
			return
		}
		done[client] = true
		attributes := "h"
		if parent[client] {
			attributes = "H"
		}
		if !real[client] {
			attributes = "N " + attributes
		}
		rows = append(rows, fmt.Sprintf("%s (%s)", client, attributes))
	}
	for _, v := range visible {
		for above := range ns.Parents(v.client, p) {
			answer(above)
		}
		answer(v.client)
	}
	return rows
}

// TestList builds LIST from the parts of this package and holds it against
// what real Cyrus answers.
func TestList(t *testing.T) {
	data, err := os.ReadFile("testdata/list.txt")
	if err != nil {
		t.Fatal(err)
	}
	l := &listing{acls: map[MailboxName]string{}}
	var ns Namespace
	questions := 0
	for i, line := range strings.Split(string(data), "\n") {
		if rest, ok := strings.CutPrefix(line, "mailbox "); ok {
			name, acl, _ := strings.Cut(rest, " |")
			l.add(t, name, acl)
			continue
		}
		if words := strings.Fields(line); len(words) > 2 && words[0] == "form" {
			ns = Namespace{Alt: words[1] == "alt", Sep: words[2][0]}
			if len(words) > 3 {
				ns.VirtDomains, ns.CrossDomains, ns.DefaultDomain = true, words[3] == "cross", "example.com"
			}
			continue
		}
		if line == "" || line[0] == '#' {
			continue
		}
		fields := strings.Split(line, " | ")
		if len(fields) != 4 {
			t.Fatalf("testdata/list.txt:%d: %d fields, want 4", i+1, len(fields))
		}
		questions++
		user, reference, pattern, want := fields[0], fields[1], fields[2], fields[3]
		got := strings.Join(l.list(t, ns, fixturePrincipal(user), reference, pattern), "; ")
		if got == "" {
			got = "-"
		}
		if got != want {
			t.Errorf("testdata/list.txt:%d: %s: LIST %q %q\n got %s\nwant %s", i+1, user, reference, pattern, got, want)
		}
	}
	if questions < 60 {
		t.Errorf("testdata/list.txt has %d questions; was it cut?", questions)
	}
}

func FuzzNamespace(f *testing.F) {
	for _, s := range []string{
		"user.alice", "user.alice.INBOX.x", "user.alice.INBOX", "user.alice.inBOX.y", "user.bob.p^q", "shared.pub", "user.ann^smith.Alt Folders.z", "user",
		"other.org!user.zoe.Box", "other.org!team.a@b", "user.a@b.c", "DELETED.user.x.1", "INBOX.x", "d!INBOX", "d!user", "user.alice.Other Users",
		"example.com!user.x", "a@b", "a@b^c.d", "d!a@b^c.d",
	} {
		f.Add(s, "alice", uint8(3), "Other Users/b")
		f.Add(s, "zoe@other.org", uint8(0xFF), "Shared Folders/")
	}
	f.Fuzz(func(t *testing.T, name, user string, cut uint8, client string) {
		p, err := ParsePrincipal(user, nil, cut&1 == 0)
		if err != nil {
			return
		}
		n, nameErr := ParseName(name)
		for _, ns := range formAll {
			if m, err := ns.FromClient(client, p); err == nil {
				// What can be named and shown is shown under one name.
				if shown, ok := ns.ToClient(m, p); ok && m.OmitDomain(ns.DefaultDomain) == m {
					if again, err := ns.FromClient(shown, p); err != nil || again != m {
						t.Fatalf("%+v for %+v: %q is %q, shown as %q, read as %q, %v", ns, p, client, m, shown, again, err)
					}
				}
			} else if !errors.Is(err, ErrInvalidName) && !errors.Is(err, ErrTooLarge) {
				t.Fatalf("%+v: FromClient(%q): %v, of neither kind", ns, client, err)
			}
			if nameErr != nil || n.OmitDomain(ns.DefaultDomain) != n || p.User.OmitDomain(ns.DefaultDomain) != p.User {
				continue // not canonical in this cluster
			}
			shown, ok := ns.ToClient(n, p)
			class := ns.Class(n, p)
			if ok != (class != ClassHidden) || ok == (shown == "") {
				t.Fatalf("%+v for %+v: %q is %q, %v, of class %v", ns, p, n, shown, ok, class)
			}
			if !ok {
				continue
			}
			prefix := shown[:int(cut)%(len(shown)+1)]
			if !inRanges(ns.KeyRanges(prefix, p), class, n) {
				t.Fatalf("%+v for %+v: %q is %q of class %v, outside the ranges of %q", ns, p, n, shown, class, prefix)
			}
			if n.Domain() != "" && !ns.VirtDomains {
				continue // shown, but not in a form of its own
			}
			back, err := ns.FromClient(shown, p)
			if err != nil || back != n {
				t.Fatalf("%+v for %+v: %q shown as %q, read as %q, %v", ns, p, n, shown, back, err)
			}
		}
	})
}

func BenchmarkToClient(b *testing.B) {
	p := Principal{User: "alice.smith"}
	for _, test := range []struct {
		what string
		name MailboxName
	}{{"own", benchName}, {"other", "user.bob.Projects.Rookery.2024"}, {"shared", "shared.pub.x"}} {
		b.Run(test.what, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, ok := formA.ToClient(test.name, p); !ok {
					b.Fatal("hidden")
				}
			}
		})
	}
	b.Run("append", func(b *testing.B) {
		b.ReportAllocs()
		var buf [1024]byte
		for b.Loop() {
			formA.AppendClient(buf[:0], benchName, p)
		}
	})
}

func BenchmarkFromClient(b *testing.B) {
	b.ReportAllocs()
	p := Principal{User: "alice"}
	for b.Loop() {
		if _, err := formA.FromClient("Other Users/bob/Projects/2024", p); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkKeyRanges(b *testing.B) {
	b.ReportAllocs()
	p := Principal{User: "alice"}
	for b.Loop() {
		formA.KeyRanges("", p)
	}
}
