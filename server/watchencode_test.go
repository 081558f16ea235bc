package server

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"

	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/directory/machine"
	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
)

// mailboxEvent is what appendMailboxEvent writes, as a message.
func mailboxEvent(a *machine.Answer, details bool) *apiv1.WatchEvent {
	m := &apiv1.WatchedMailbox{Mailbox: string(a.Name)}
	out := &apiv1.WatchEvent{Thing: &apiv1.WatchEvent_Mailbox{Mailbox: m}}
	if a.Mailbox == nil {
		out.Gone = true
		if t := a.Tombstone; t != nil {
			m.NewName, m.RetractedBy = string(t.NewName), uint32(t.Server)
		}
		return out
	}
	m.Home, m.Server, m.Forked = uint32(a.Mailbox.Home), uint32(a.Route.Server), a.Route.Forked
	if m.Outcome = apiv1.Outcome(a.Outcome); a.Outcome == directory.NotFound {
		m.Outcome = apiv1.Outcome_OUTCOME_UNCONFIRMED
	}
	if f := a.Route.Fact; f != nil {
		m.ListedFrom = uint32(f.Server)
	}
	for i := range a.Mailbox.Facts {
		f := &a.Mailbox.Facts[i]
		out := &apiv1.WatchedFact{
			Server: uint32(f.Server), State: apiv1.FactState(f.State), Standing: apiv1.Standing(f.Standing) + apiv1.Standing_STANDING_IN_FORCE,
			FirstRevision: uint64(f.First), LastRevision: uint64(f.Last), Confirmed: a.Confirmed(f),
		}
		if details {
			out.Partition, out.Acl, out.MailboxId = f.Partition, f.ACL, f.MailboxID
			out.UidValidity, out.Type, out.SpecialUse = f.UIDValidity, typeTo(f.Type), f.SpecialUse
		}
		m.Facts = append(m.Facts, out)
	}
	return out
}

// An event of a mailbox that is written octet by octet is the message it stands for, and
// comes alike as a message and encoded.
func TestMailboxEvents(t *testing.T) {
	n := newTestNode(t)
	long := "alice\tlrswipkxtecda\t" + strings.Repeat("b", 200) + "\tlr\t" // two octets of length
	for _, a := range []*apiv1.Assert{
		{Server: be1, Mailbox: "user.alice", Partition: "default", Acl: proto.String("alice\tlrswipkxtecda\t")},
		{
			Server: be1, Mailbox: "user.alice.Sent", Partition: "p2", Acl: proto.String("alice\tlrs\t" + strings.Repeat("x", 300) + "\tl\t"),
			MailboxId: proto.String("id-1"), UidValidity: proto.Uint32(1 << 31), Type: apiv1.MailboxType_MAILBOX_TYPE_EMAIL, SpecialUse: proto.String(`\Sent`),
		},
		{Server: be1, Mailbox: "user.bob", Acl: &long},
		{Server: "be2.example.com", Mailbox: "user.bob"}, // a fork
		{Server: be1, Mailbox: "user.carol"},
	} {
		if _, err := n.Assert(t.Context(), &apiv1.AssertRequest{Assert: a}); err != nil {
			t.Fatalf("assert %s: %v", a.GetMailbox(), err)
		}
	}
	if _, err := n.Retract(t.Context(), &apiv1.RetractRequest{Retract: &apiv1.Retract{Server: be1, Mailbox: "user.carol"}}); err != nil {
		t.Fatal(err)
	}
	v, err := n.store.Local()
	if err != nil {
		t.Fatal(err)
	}
	defer v.Release()
	sight, err := n.machine.Look(v)
	if err != nil {
		t.Fatal(err)
	}
	for _, details := range []bool{false, true} {
		want := map[string]*apiv1.WatchEvent{}
		for _, name := range []directory.MailboxName{"user.alice", "user.alice.Sent", "user.bob", "user.carol", "user.nobody"} {
			a, err := sight.Lookup(name)
			if err != nil {
				t.Fatal(err)
			}
			e := mailboxEvent(&a, details)
			got := &apiv1.WatchResponse{}
			if err := proto.Unmarshal(appendMailboxEvent(nil, &a, details), got); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if len(got.GetEvents()) != 1 || !proto.Equal(got.GetEvents()[0], e) {
				t.Errorf("%s: got %s, want %s", name, prototext.Format(got), prototext.Format(e))
			}
			want[string(name)] = e
		}
		for _, encoded := range []bool{false, true} {
			all, err := n.watched(t, &apiv1.WatchRequest{Details: details, Encoded: encoded, Kinds: []apiv1.WatchKind{apiv1.WatchKind_WATCH_KIND_MAILBOX}})
			if err != nil {
				t.Fatal(err)
			}
			seen := 0
			for _, m := range all {
				if (len(m.GetEvents()) > 0) == encoded && len(m.GetEvents())+len(m.GetEncodedEvents()) > 0 {
					t.Errorf("encoded %v: got %s", encoded, prototext.Format(m))
				}
				if err := (proto.UnmarshalOptions{Merge: true}).Unmarshal(m.GetEncodedEvents(), m); err != nil {
					t.Fatal(err)
				}
				for _, e := range m.GetEvents() {
					seen++
					if w := want[e.GetMailbox().GetMailbox()]; !proto.Equal(e, w) {
						t.Errorf("details %v, encoded %v: got %s, want %s", details, encoded, prototext.Format(e), prototext.Format(w))
					}
				}
			}
			if seen != 3 {
				t.Errorf("details %v, encoded %v: %d events, want 3", details, encoded, seen)
			}
		}
	}
}
