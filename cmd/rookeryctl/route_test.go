package main

import (
	"strings"
	"testing"
	"time"

	"github.com/rookery-mail/rookery/adapter/cyrus"
	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
)

// someFact is a fact of be1's, changed by change.
func someFact(change func(*client.Fact)) client.Fact {
	f := client.Fact{
		Server: "be1", Admitted: true, Partition: "default", ACL: "alice\tlrs\tgroup:x y\tl\t", MailboxID: "id1", UIDValidity: 7, Type: directory.TypeEmail,
		SpecialUse: `\Sent`, State: directory.Active, First: 2, Last: 5, Confirmed: true, Age: 90 * time.Second,
	}
	if change != nil {
		change(&f)
	}
	return f
}

// someRoute is where user.alice.Sent is, in a group of two.
func someRoute(change func(*client.Route)) client.Route {
	r := client.Route{
		Answer:  client.Answer{Revision: 40, Incarnation: 1, Node: "n1"},
		Mailbox: "user.alice.Sent", Outcome: directory.Serving, Group: "g1", Epoch: 3, Primary: "be1", Changed: 5, ListedFrom: "be1",
		Server: client.Server{Name: "be1", State: directory.BackendActive, Addresses: []directory.Address{{Service: "imap", IP: "10.0.0.1", Port: 143, TLS: directory.TLSStart}}},
		Facts:  []client.Fact{someFact(nil), someFact(func(f *client.Fact) { f.Server, f.ACL = "be2", "" })},
	}
	if change != nil {
		change(&r)
	}
	return r
}

func someExplanation() *explanation {
	return &explanation{
		group: &client.Group{
			Name: "g1", Members: []directory.BackendName{"be2", "be1"}, Primary: "be1", Epoch: 3, Mode: directory.ModeManual,
			History: []client.Switchover{{Epoch: 3, From: "be2", To: "be1", By: "operator:op", Reason: "new disks", Revision: 30, Age: time.Hour, Wall: time.UnixMilli(1795386102000)}},
		},
		holds:  []client.Hold{{Kind: directory.HoldUser, Key: "alice", Remaining: time.Minute, Why: "restoring", By: "operator:op"}},
		status: client.Status{Complete: false, BackendsConfirmed: 2, BackendsCounted: 3, Missing: []directory.BackendName{"be3"}},
	}
}

func TestWhere(t *testing.T) {
	golden(t, "where.txt", printed(t, formatTable, func(a *app) error { a.tellRoute(someRoute(nil)); return nil }))
	golden(t, "where-why.txt", printed(t, formatTable, func(a *app) error {
		a.tellRoute(someRoute(nil))
		return a.tellWhy(someRoute(nil), someExplanation())
	}))
	golden(t, "where.json", printed(t, formatJSON, func(a *app) error { return a.document(whereOf(someRoute(nil), nil)) }))
	golden(t, "where-why.json", printed(t, formatJSON, func(a *app) error { return a.document(whereOf(someRoute(nil), someExplanation())) }))
	nothing := client.Route{Mailbox: "user.nobody", Outcome: directory.NotFound, Answer: client.Answer{Node: "n1", Revision: 40, Age: client.AgeUnknown}}
	golden(t, "where-nothing-why.txt", printed(t, formatTable, func(a *app) error {
		a.tellRoute(nothing)
		return a.tellWhy(nothing, &explanation{status: client.Status{Complete: true, BackendsConfirmed: 1, BackendsCounted: 1}})
	}))
	golden(t, "where-nothing.json", printed(t, formatJSON, func(a *app) error { return a.document(whereOf(nothing, nil)) }))
}

// Every outcome says what it means.
func TestMeaning(t *testing.T) {
	for _, tt := range []struct {
		change func(*client.Route)
		want   string
	}{
		{func(r *client.Route) {}, ""},
		{func(r *client.Route) { r.Forked = true }, "forked"},
		{func(r *client.Route) { r.MovedFrom, r.MovedAge = "g0", time.Minute }, "moved from g0 1m0s ago"},
		{func(r *client.Route) { r.Outcome = directory.Moving }, "be1 gave it up"},
		{func(r *client.Route) {
			r.Outcome, r.Hold = directory.Held, &client.Hold{Kind: directory.HoldGroup, Key: "g1", Remaining: time.Minute, Why: "why", By: "me"}
		}, "hold of group g1 covers it for another 1m0s, by me: why"},
		{func(r *client.Route) { r.Outcome = directory.Held }, "not believed"},
		{func(r *client.Route) { r.Outcome, r.Primary = directory.NotAtPrimary, "be9" }, "primary be9 never had it; be1 has"},
		{func(r *client.Route) { r.Outcome, r.Server.State = directory.BackendIsDown, directory.BackendDown }, "be1 holds it and is down"},
		{func(r *client.Route) { r.Outcome = directory.OrphanedFork }, "fork settle user.alice.Sent --keep"},
		{func(r *client.Route) { r.Outcome = directory.Unconfirmed }, "before the cluster was restored"},
		{func(r *client.Route) {
			r.Outcome, r.Server, r.Why = directory.Unconfirmed, client.Server{}, "no leader"
		}, "could not be confirmed: no leader"},
		{func(r *client.Route) {
			r.Outcome, r.Missing = directory.Incomplete, []directory.BackendName{"be2", "be3"}
		}, "be2, be3"},
		{func(r *client.Route) { r.Outcome, r.RecentlyRetracted = directory.NotFound, true }, `should answer "later"`},
		{func(r *client.Route) {
			r.Outcome, r.Reservation = directory.NotFound, &client.Reservation{Server: "be2", Age: time.Second, Remaining: time.Minute}
		}, "be2 has reserved the name 1s ago; that lapses in 1m0s"},
	} {
		if got := strings.Join(meaning(someRoute(tt.change)), " "); !strings.Contains(got, tt.want) || tt.want == "" && got != "" {
			t.Errorf("got %q, want %q in it", got, tt.want)
		}
	}
}

func TestSuccessor(t *testing.T) {
	e := someExplanation()
	for _, tt := range []struct {
		change func(*client.Fact)
		want   directory.BackendName
	}{
		{nil, "be2"},
		{func(f *client.Fact) { f.State = directory.Deactivated }, ""},
		{func(f *client.Fact) { f.Standing = directory.StaleCopy }, ""},
		{func(f *client.Fact) { f.Server = "be3" }, ""},
	} {
		r := someRoute(func(r *client.Route) {
			if tt.change != nil {
				tt.change(&r.Facts[1])
			}
		})
		if got := e.successor(r); got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
	if got := (&explanation{}).successor(someRoute(nil)); got != "" {
		t.Errorf("without a home: got %q, want none", got)
	}
}

func TestCovers(t *testing.T) {
	r := someRoute(nil)
	for _, tt := range []struct {
		kind directory.HoldKind
		key  string
		want bool
	}{
		{directory.HoldUser, "alice", true}, {directory.HoldUser, "bob", false},
		{directory.HoldMailbox, "user.alice.Sent", true}, {directory.HoldMailbox, "user.alice", true}, {directory.HoldMailbox, "user.alice.S", false},
		{directory.HoldBackend, "be1", true}, {directory.HoldBackend, "be2", false},
		{directory.HoldGroup, "g1", true}, {directory.HoldGroup, "be1", false},
	} {
		if got := covers(client.Hold{Kind: tt.kind, Key: tt.key}, r); got != tt.want {
			t.Errorf("%v %s: got %t, want %t", tt.kind, tt.key, got, tt.want)
		}
	}
}

func TestFindAndForks(t *testing.T) {
	routes := func(yield func(client.Route, error) bool) {
		_ = yield(someRoute(nil), nil) && yield(someRoute(func(r *client.Route) {
			r.Mailbox, r.Forked, r.Facts[1].Admitted = "user.alice.Trash", true, false
		}), nil)
	}
	golden(t, "find.txt", printed(t, formatTable, func(a *app) error { return a.tellMailboxes("mailboxes", "none", routes) }))
	golden(t, "find.json", printed(t, formatJSON, func(a *app) error { return a.tellMailboxes("mailboxes", "none", routes) }))
}

func TestIMAPRow(t *testing.T) {
	for _, tt := range []struct {
		row  client.ListRow
		sep  string
		want string
	}{
		{client.ListRow{Name: "INBOX", Attributes: []client.Attribute{client.AttrHasChildren}}, ".", `(\HasChildren) "." INBOX`},
		{client.ListRow{Name: "Other Users/bob", Attributes: []client.Attribute{client.AttrNoselect, client.AttrHasChildren}}, "/", `(\Noselect \HasChildren) "/" "Other Users/bob"`},
		{client.ListRow{Name: "", Attributes: []client.Attribute{client.AttrNoselect}}, ".", `(\Noselect) "." ""`},
		{client.ListRow{Name: "look"}, ".", `() "." look`},
		{client.ListRow{Name: `a"b\c*`, Attributes: []client.Attribute{client.AttrHasNoChildren}, SpecialUse: `\Sent \Important`}, ".", `(\HasNoChildren \Sent \Important) "." "a\"b\\c*"`},
		{client.ListRow{Name: "INBOX.R&AOk-sum", SpecialUse: `\Drafts`}, ".", `(\Drafts) "." INBOX.R&AOk-sum`},
		{client.ListRow{Name: "user", Attributes: []client.Attribute{client.AttrNonExistent, client.AttrHasChildren}, ChildSubscribed: true}, ".", `(\NonExistent \HasChildren) "." user (CHILDINFO ("SUBSCRIBED"))`},
		{client.ListRow{Name: "a b", Attributes: []client.Attribute{client.AttrSubscribed, client.AttrHasNoChildren}, Rights: directory.RightLookup | directory.RightRead}, "/", "(\\Subscribed \\HasNoChildren) \"/\" \"a b\"\nMYRIGHTS \"a b\" lr"},
		{client.ListRow{Name: "x", Attributes: []client.Attribute{99, client.AttrHasNoChildren}}, ".", `(\HasNoChildren) "." x`},
	} {
		var b strings.Builder
		if err := writeIMAPRow(&b, tt.row, tt.sep); err != nil || b.String() != tt.want+"\n" {
			t.Errorf("got %q, %v; want %q", b.String(), err, tt.want)
		}
	}
}

func TestUnseen(t *testing.T) {
	for _, tt := range []struct {
		outcome directory.Outcome
		want    string
	}{
		{directory.NotFound, "there is no such mailbox"}, {directory.Incomplete, "not known (INCOMPLETE)"}, {directory.Unconfirmed, "not known (UNCONFIRMED)"},
		{directory.Serving, "dave may not know of it"}, {directory.Moving, "dave may not know of it"},
	} {
		err := unseen("dave", "user.bob", client.RightsAnswer{Outcome: tt.outcome, Mailbox: "user.bob"})
		if !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%v: got %q, want %q in it", tt.outcome, err, tt.want)
		}
	}
}

func TestRecordOf(t *testing.T) {
	for _, tt := range []struct {
		name   string
		server directory.BackendName
		change func(*client.Route)
		want   *cyrus.Record
	}{
		{"a backend's own", "be2", nil, &cyrus.Record{Name: "user.alice.Sent", Partition: "default", HasPartition: true, UniqueID: "id1", UIDValidity: 7, Type: 'e', SpecialUse: `\Sent`}},
		{"a frontend's", "", nil, &cyrus.Record{Name: "user.alice.Sent", Server: "be1", Partition: "default", HasPartition: true, ACL: "alice\tlrs\tgroup:x y\tl\t", UniqueID: "id1", UIDValidity: 7, Type: 'e', SpecialUse: `\Sent`, Flags: cyrus.Remote}},
		{"given up", "be1", func(r *client.Route) { r.Facts[0].State = directory.Deactivated }, &cyrus.Record{Name: "user.alice.Sent", Partition: "default", HasPartition: true, ACL: "alice\tlrs\tgroup:x y\tl\t", UniqueID: "id1", UIDValidity: 7, Type: 'e', SpecialUse: `\Sent`, Flags: cyrus.Moving}},
		{"not listed, but routed", "", func(r *client.Route) { r.ListedFrom, r.Server.Name = "", "be2" }, &cyrus.Record{Name: "user.alice.Sent", Server: "be2", Partition: "default", HasPartition: true, UniqueID: "id1", UIDValidity: 7, Type: 'e', SpecialUse: `\Sent`, Flags: cyrus.Remote}},
		{"overtaken", "be1", func(r *client.Route) { r.Facts[0].Standing = directory.LeftBehind }, nil},
		{"not believed", "be1", func(r *client.Route) { r.Facts[0].State = directory.HeldReturn }, nil},
		{"withdrawn, not believed", "be2", func(r *client.Route) { r.Facts[1].State = directory.HeldWithdrawal }, &cyrus.Record{Name: "user.alice.Sent", Partition: "default", HasPartition: true, UniqueID: "id1", UIDValidity: 7, Type: 'e', SpecialUse: `\Sent`}},
		{"of no server", "", func(r *client.Route) { r.ListedFrom, r.Server.Name = "", "" }, nil},
		{"another's", "be3", nil, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := someRoute(tt.change)
			got, ok := recordOf(&r, tt.server)
			switch {
			case ok != (tt.want != nil):
				t.Errorf("got %t, want %t", ok, tt.want != nil)
			case ok && got != *tt.want:
				t.Errorf("got  %+v\nwant %+v", got, *tt.want)
			}
		})
	}
}
