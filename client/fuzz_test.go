package client

import (
	"encoding/json"
	"errors"
	"reflect"
	"slices"
	"testing"

	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/rookery-mail/rookery/directory"
	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
)

// FuzzError: whatever status a node or a proxy sends, it is an *Error with one of
// the sentinels in it, and never "not found" by mistake.
func FuzzError(f *testing.F) {
	f.Add([]byte{}, int32(codes.Unavailable), "RESERVED", "holder", "be1")
	f.Add([]byte{0x08, 0x05}, int32(codes.NotFound), "", "", "")
	f.Add([]byte{}, int32(codes.Internal), "BROKEN", "age_ms", "18446744073709551615")
	f.Add([]byte{}, int32(99), "OF_A_LATER_RELEASE", "epoch", "-1")
	var all []error
	for _, s := range sentinels {
		all = append(all, s)
	}
	for code := range codes.Code(20) {
		all = append(all, ofCode(code))
	}
	f.Fuzz(func(t *testing.T, raw []byte, code int32, reason, key, value string) {
		m := &spb.Status{}
		if proto.Unmarshal(raw, m) != nil {
			return
		}
		if code != 0 {
			m.Code = code
		}
		// Two ways for it to come: with the API's details, and without.
		err := FromStatus(status.ErrorProto(m))
		if m.GetCode() == 0 {
			if err != nil {
				t.Errorf("%v: got %v, want nil", m, err)
			}
			return
		}
		for _, err := range []error{err, refusal(reason, sentinels[apiv1.Reason(apiv1.Reason_value["REASON_"+reason])], codes.Code(code), "m", map[string]string{key: value})} {
			e, ok := errors.AsType[*Error](err)
			if !ok {
				t.Fatalf("%v: got %T, want *Error", m, err)
			}
			if !slices.ContainsFunc(all, func(s error) bool { return errors.Is(err, s) }) {
				t.Errorf("%v: %v has no sentinel", m, err)
			}
			if e.Error() == "" && e.Message == "" && e.Reason != "" {
				t.Errorf("%v: an error without a text", m)
			}
			if errors.Is(err, directory.ErrNotFound) && e.Reason != "NOT_FOUND" && m.GetCode() != int32(codes.NotFound) {
				t.Errorf("%v: %v is taken for not found", m, err)
			}
			if e.Age < 0 && e.Age != AgeUnknown {
				t.Errorf("%v: age %v", m, e.Age)
			}
		}
	})
}

// FuzzMirror tells a mirror whatever a node may say, and asks it for all it knows.
func FuzzMirror(f *testing.F) {
	add := func(m proto.Message) {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	acl := "anna\tlrs\t"
	fact := &apiv1.Fact{Server: "be1", Partition: "default", Acl: acl, State: apiv1.FactState_FACT_STATE_ACTIVE, FirstRevision: 3, LastRevision: 4, Confirmed: true}
	add(&apiv1.WatchResponse{Events: []*apiv1.WatchEvent{{}}})
	add(&apiv1.WatchResponse{Events: []*apiv1.WatchEvent{
		{Thing: &apiv1.WatchEvent_Mailbox{Mailbox: &apiv1.WatchedMailbox{Mailbox: "user.anna", Home: 1, Facts: []*apiv1.WatchedFact{{Server: 1, State: apiv1.FactState_FACT_STATE_ACTIVE, Acl: acl, Confirmed: true}}}}},
		{Thing: &apiv1.WatchEvent_Backend{Backend: &apiv1.WatchedBackend{Id: 1, Name: "be1", Group: 1, Admitted: true, Confirmed: true}}},
		{Thing: &apiv1.WatchEvent_Group{Group: &apiv1.WatchedGroup{Id: 1, Name: "be1", Primary: 1, Epoch: 1, Members: []uint32{1}}}},
		{Gone: true, Thing: &apiv1.WatchEvent_Mailbox{Mailbox: &apiv1.WatchedMailbox{Mailbox: "user.bob"}}},
	}})
	add(&apiv1.StatusResponse{Nodes: []*apiv1.Node{{}}, DirectoryTimeMs: 1 << 63})
	add(&apiv1.LookupResponse{Route: &apiv1.Route{Mailbox: "user.anna", Facts: []*apiv1.Fact{fact}, Reservation: &apiv1.Reservation{AgeMs: 1<<64 - 1}}})
	f.Fuzz(func(t *testing.T, b []byte) {
		watch := &apiv1.WatchResponse{}
		if proto.Unmarshal(b, watch) == nil {
			m := NewMirror()
			u := WatchUpdate{Listing: len(b)%2 == 0, Mark: len(b)%3 == 0}
			for _, e := range watch.GetEvents() {
				u.Events = append(u.Events, watchEventOf(e, 1))
			}
			m.Apply(u)
			m.Apply(u) // level-triggered: again is the same
			names := m.Mailboxes()
			if !slices.IsSortedFunc(names, directory.CompareNames) {
				t.Errorf("mailboxes out of order: %q", names)
			}
			count := 0
			for r := range m.All() {
				count++
				if r.Outcome == directory.NotFound && len(r.Facts) > 0 {
					t.Errorf("%s has facts and is %v", r.Mailbox, r.Outcome)
				}
			}
			if count != len(names) {
				t.Errorf("%d routes of %d mailboxes", count, len(names))
			}
			_, _, _, _ = m.Backends(), m.Groups(), m.Holds(), m.Subscriptions()
			m.Apply(WatchUpdate{Reset: true, Listing: true})
			if left := m.Mailboxes(); len(left) > 0 {
				t.Errorf("after a reset: %q", left)
			}
		}
		// Answers to calls: none may bring the caller down.
		var a Answer
		if m := (&apiv1.StatusResponse{}); proto.Unmarshal(b, m) == nil {
			if st := statusOf(m, a); st.DirectoryTime < 0 && st.DirectoryTime != AgeUnknown {
				t.Errorf("directory time %v", st.DirectoryTime)
			}
		}
		if m := (&apiv1.LookupResponse{}); proto.Unmarshal(b, m) == nil {
			r := routeOf(m.GetRoute(), "user.anna", a)
			if r.Reservation != nil && r.Reservation.Age < 0 && r.Reservation.Age != AgeUnknown {
				t.Errorf("a reservation of age %v", r.Reservation.Age)
			}
		}
		if m := (&apiv1.ListResponse{}); proto.Unmarshal(b, m) == nil {
			for _, row := range m.GetRows() {
				rowOf(row)
			}
		}
		if m := (&apiv1.ListGroupsResponse{}); proto.Unmarshal(b, m) == nil {
			for _, g := range m.GetGroups() {
				groupOf(g)
			}
		}
		if m := (&apiv1.ListBackendsResponse{}); proto.Unmarshal(b, m) == nil {
			for _, v := range m.GetBackends() {
				backendOf(v)
			}
		}
		if m := (&apiv1.BatchResponse{}); proto.Unmarshal(b, m) == nil {
			for _, item := range m.GetResults() {
				if e := item.GetError(); e != nil && fromItem(e) == nil {
					t.Errorf("%v became no error", e)
				}
				resultOf(item.GetResult())
			}
		}
		if m := (&apiv1.GetSettingsResponse{}); proto.Unmarshal(b, m) == nil {
			settingsOf(m.GetSettings())
		}
	})
}

// FuzzEncodedEvents: events that come encoded are what they would be as messages, also
// those that no node of this release sends.
func FuzzEncodedEvents(f *testing.F) {
	for _, m := range []*apiv1.WatchResponse{
		{},
		{Events: []*apiv1.WatchEvent{{}, {Gone: true}}},
		{Events: []*apiv1.WatchEvent{{Gone: true, Thing: &apiv1.WatchEvent_Mailbox{Mailbox: &apiv1.WatchedMailbox{Mailbox: "user.bob", NewName: "user.rob", RetractedBy: 7}}}}},
		{Events: []*apiv1.WatchEvent{{Thing: &apiv1.WatchEvent_Mailbox{Mailbox: &apiv1.WatchedMailbox{
			Mailbox: "user.anna", Home: 300, Outcome: apiv1.Outcome_OUTCOME_SERVING, Server: 1, ListedFrom: 1, Forked: true,
			Facts: []*apiv1.WatchedFact{
				{Server: 1, State: apiv1.FactState_FACT_STATE_ACTIVE, Standing: apiv1.Standing_STANDING_IN_FORCE, FirstRevision: 1 << 40, LastRevision: 1<<40 + 1, Confirmed: true,
					Partition: "default", Acl: "anna\tlrs\t", MailboxId: "m1", UidValidity: 5, Type: apiv1.MailboxType_MAILBOX_TYPE_EMAIL, SpecialUse: `\Sent`},
				{Server: 2},
			},
		}}}, {Thing: &apiv1.WatchEvent_Backend{Backend: &apiv1.WatchedBackend{Id: 1, Name: "be1"}}}}},
	} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := watchEventsOf(&apiv1.WatchResponse{EncodedEvents: b}, 3)
		plain := &apiv1.WatchResponse{}
		if proto.Unmarshal(b, plain) != nil {
			return // it may be read nevertheless: a text that is no text, or a field that has no use
		}
		if err != nil {
			t.Fatal(err)
		}
		want, err := watchEventsOf(&apiv1.WatchResponse{Events: plain.GetEvents()}, 3)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got %s, want %s", spew(got), spew(want))
		}
	})
}

func spew(events []WatchEvent) string {
	b, err := json.Marshal(events)
	if err != nil {
		return err.Error()
	}
	return string(b)
}
