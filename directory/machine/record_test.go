package machine

import (
	"bytes"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/rookery-mail/rookery/directory"
	recordv1 "github.com/rookery-mail/rookery/proto/record/v1"
)

const testName = directory.MailboxName("user.anna.Archive")

// rowCase is one kind of row: one with every field set, the same as
// protobuf's own code has it, and how to go from octets to row and back.
type rowCase struct {
	name    string
	row     any
	message proto.Message
	encode  func(row any) []byte
	decode  func(b []byte) (any, error)
}

// newRowCase lists a pair of functions under types that all rows share.
func newRowCase[T any](name string, row T, message proto.Message, encode func(T) []byte, decode func([]byte) (T, error)) rowCase {
	return rowCase{
		name: name, row: row, message: message,
		encode: func(row any) []byte { return encode(row.(T)) },
		decode: func(b []byte) (any, error) { return decode(b) },
	}
}

// pointed turns an encoder that takes a pointer into one that takes the row.
func pointed[T any](encode func(*T) []byte) func(T) []byte {
	return func(row T) []byte { return encode(&row) }
}

var rowCases = []rowCase{
	newRowCase("mailbox",
		directory.Mailbox{Home: 300, Forked: true, Listed: true, Stray: []directory.StrayCopy{{Server: 2, MailboxID: "id-2"}, {Server: 9, MailboxID: strings.Repeat("9", 200)}}},
		&recordv1.MailboxRow{Home: 300, Forked: true, Listed: true, Stray: []*recordv1.StrayCopy{{Server: 2, MailboxId: "id-2"}, {Server: 9, MailboxId: strings.Repeat("9", 200)}}},
		pointed(encodeMailboxRow),
		func(b []byte) (m directory.Mailbox, err error) {
			m = directory.Mailbox{Home: 7, Forked: true, Stray: []directory.StrayCopy{{Server: 1}}} // of a row read before
			err = decodeMailboxRow(b, &m)
			return m, err
		}),
	newRowCase("fact", fullFact,
		&recordv1.FactRow{
			Partition: "default", Acl: "anna\tlrswipkxtecda\tanyone\tp\t", MailboxId: "3kj5h3k4jh5", UidValidity: 1_234_567_890,
			Type: 'e', SpecialUse: `\Drafts`, State: 2, Was: 1, Standing: 3, First: 1 << 40, Last: 1<<40 + 1, Changed: math.MaxUint64,
			Incarnation: 4, Counted: true,
		},
		pointed(encodeFact),
		func(b []byte) (f directory.Fact, err error) {
			err = decodeFact(b, &f)
			return f, err
		}),
	newRowCase("fact view", viewOf(fullFact),
		&recordv1.FactRow{
			Partition: "default", Acl: "anna\tlrswipkxtecda\tanyone\tp\t", MailboxId: "3kj5h3k4jh5", UidValidity: 1_234_567_890,
			Type: 'e', SpecialUse: `\Drafts`, State: 2, Was: 1, Standing: 3, First: 1 << 40, Last: 1<<40 + 1, Changed: math.MaxUint64,
			Incarnation: 4, Counted: true,
		},
		func(v factView) []byte {
			return encodeFact(&directory.Fact{
				Partition: string(v.Partition), ACL: string(v.ACL), MailboxID: string(v.MailboxID), UIDValidity: v.UIDValidity,
				Type: v.Type, SpecialUse: string(v.SpecialUse), State: v.State, Was: v.Was, Standing: v.Standing,
				First: v.First, Last: v.Last, Changed: v.Changed, Incarnation: v.Incarnation, Counted: v.Counted,
			})
		},
		parseFactView),
	newRowCase("posting",
		posting{Rights: 1<<31 | 5, Weigh: true},
		&recordv1.PostingRow{Rights: 1<<31 | 5, Weigh: true},
		encodePosting, decodePosting),
	newRowCase("reservation",
		directory.Reservation{Name: testName, Server: 3, Partition: "default", Made: 4, Grace: 60_000, Deadline: 3_600_004, Heard: true, Revision: 8},
		&recordv1.ReservationRow{Server: 3, Partition: "default", Made: 4, Grace: 60_000, Deadline: 3_600_004, Heard: true, Revision: 8},
		pointed(encodeReservation),
		func(b []byte) (directory.Reservation, error) { return decodeReservation(b, testName) }),
	newRowCase("backend",
		directory.Backend{
			ID: 1, Name: "be1.example.org", Group: 2,
			Addresses: []directory.Address{{Service: "imap", IP: "192.0.2.1", Port: 993, TLS: 2}, {Service: "lmtp", IP: "2001:db8::1", Port: 65535, TLS: 1}},
			Weight:    100, Admitted: true, State: 2, Since: 5, DrainApproved: true,
			Confirmed: 3, ConfirmedIn: 6, ConfirmedRevision: 7, ConfirmedTime: 8,
		},
		&recordv1.BackendRow{
			Id: 1, Name: "be1.example.org", Group: 2,
			Addresses: []*recordv1.AddressRow{{Service: "imap", Ip: "192.0.2.1", Port: 993, Tls: 2}, {Service: "lmtp", Ip: "2001:db8::1", Port: 65535, Tls: 1}},
			Weight:    100, Admitted: true, State: 2, Since: 5, DrainApproved: true,
			Confirmed: 3, ConfirmedIn: 6, ConfirmedRevision: 7, ConfirmedTime: 8,
		},
		pointed(encodeBackend), decodeBackend),
	newRowCase("group",
		directory.Group{
			ID: 1, Name: "g1", Members: []directory.ServerID{1, 300, 70_000}, Primary: 300, Epoch: 1<<32 + 3, Mode: 2, Own: true, MergedInto: 9,
			History: []directory.Switchover{{Epoch: 2, From: 1, To: 300, By: "operator:carol", Reason: strings.Repeat("r", 1024), Revision: 11, Time: 12, Wall: -13, AcceptMissing: true}},
		},
		&recordv1.GroupRow{
			Id: 1, Name: "g1", Members: []uint32{1, 300, 70_000}, Primary: 300, Epoch: 1<<32 + 3, Mode: 2, Own: true, MergedInto: 9,
			History: []*recordv1.SwitchoverRow{{Epoch: 2, From: 1, To: 300, By: "operator:carol", Reason: strings.Repeat("r", 1024), Revision: 11, Time: 12, Wall: -13, AcceptMissing: true}},
		},
		pointed(encodeGroup), decodeGroup),
	newRowCase("hold",
		directory.Hold{Kind: 2, Key: "user.anna", Until: 3, Why: "disk", By: "operator:carol", Placed: 1},
		&recordv1.HoldRow{Kind: 2, Key: "user.anna", Until: 3, Why: "disk", By: "operator:carol", Placed: 1},
		pointed(encodeHold), decodeHold),
	newRowCase("alarm",
		directory.Alarm{Kind: 1, Node: "n1", Why: "full", By: "node:n1", Voter: true, Voters: 3, Since: 4, Wall: -5, Revision: 6},
		&recordv1.AlarmRow{Kind: 1, Node: "n1", Why: "full", By: "node:n1", Voter: true, Voters: 3, Since: 4, Wall: -5, Revision: 6},
		pointed(encodeAlarm), decodeAlarm),
	newRowCase("subscription",
		directory.Revision(1<<40), &recordv1.SubscriptionRow{Since: 1 << 40},
		encodeSubscription, decodeSubscription),
	newRowCase("change",
		directory.Change{Kind: 2, Name: testName, Key: "anna", Server: 3, From: 4, To: 5, Dropped: []directory.ServerID{6, 70_000}},
		&recordv1.ChangeRow{Kind: 2, Name: string(testName), Key: "anna", Server: 3, From: 4, To: 5, Dropped: []uint32{6, 70_000}},
		pointed(encodeChange), decodeChange),
	newRowCase("tombstone",
		directory.Tombstone{Name: testName, How: 3, Server: 2, From: 4, To: 5, NewName: "user.anna.Old", Revision: 6, Time: 7, Wall: 1_700_000_000_000},
		&recordv1.TombstoneRow{How: 3, Server: 2, From: 4, To: 5, NewName: "user.anna.Old", Revision: 6, Time: 7, Wall: 1_700_000_000_000},
		pointed(encodeTombstone),
		func(b []byte) (directory.Tombstone, error) { return decodeTombstone(b, testName) }),
	newRowCase("digest",
		digest{Count: 1, Names: sum128{Hi: 0x0102030405060708, Lo: 9}, Facts: sum128{Hi: 1, Lo: 2}, Counted: 3, CountedNames: sum128{Hi: 1 << 63, Lo: 1}},
		&recordv1.DigestRow{
			Count: 1, Names: []byte("\x01\x02\x03\x04\x05\x06\x07\x08\x00\x00\x00\x00\x00\x00\x00\x09"),
			Facts:   []byte("\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x02"),
			Counted: 3, CountedNames: []byte("\x80\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01"),
		},
		encodeDigest, decodeDigest),
	newRowCase("guard",
		[]guardMinute{{Minute: 1 << 33, Withdrawn: 2, Returned: 3}, {Minute: 1<<33 + 1, Withdrawn: 500}},
		&recordv1.GuardRow{Minutes: []*recordv1.GuardMinute{{Minute: 1 << 33, Withdrawn: 2, Returned: 3}, {Minute: 1<<33 + 1, Withdrawn: 500}}},
		encodeGuard, decodeGuard),
	newRowCase("request",
		request{Sequence: 1, Time: 2, Result: fullResult, Print: 3},
		&recordv1.RequestRow{Sequence: 1, Time: 2, Result: fullResultMessage, Print: 3},
		encodeRequest, decodeRequest),
	newRowCase("sweep",
		sweep{Kind: 1, Server: 2, After: []byte("user\x1fanna"), Approve: true, Until: 9},
		&recordv1.SweepRow{Kind: 1, Server: 2, After: []byte("user\x1fanna"), Approve: true, Until: 9},
		encodeSweep, decodeSweep),
	newRowCase("cluster",
		cluster{ID: "c1", Incarnation: 2, DigestKey: []byte("0123456789abcdef"), NextServer: 3, NextGroup: 4, Version: 5, Began: 1 << 40, Release: "v0.4.0"},
		&recordv1.ClusterRow{ClusterId: "c1", Incarnation: 2, DigestKey: []byte("0123456789abcdef"), NextServer: 3, NextGroup: 4, ClusterVersion: 5, Began: 1 << 40, Release: "v0.4.0"},
		encodeCluster, decodeCluster),
	newRowCase("clock",
		clock{Revision: 1 << 40, Time: 2, Wall: -3, LogFrom: 4, Topology: 5, Due: 6, Sweeping: true},
		&recordv1.ClockRow{Revision: 1 << 40, Time: 2, Wall: -3, LogFrom: 4, Topology: 5, Due: 6, Sweeping: true},
		encodeClock, decodeClock),
	newRowCase("counts",
		counts{Mailboxes: 1, Listed: 2, Inboxes: 3, Forked: 4, Reservations: 5, Held: 6, Subscriptions: 7, Postings: 8, Deactivated: -9},
		&recordv1.CountsRow{Mailboxes: 1, Listed: 2, Inboxes: 3, Forked: 4, Reservations: 5, Held: 6, Subscriptions: 7, Postings: 8, Deactivated: -9},
		encodeCounts, decodeCounts),
	newRowCase("settings", fullSettings, fullSettingsMessage, encodeSettings, decodeSettings),
	newRowCase("result", fullResult, fullResultMessage, EncodeResult, DecodeResult),
}

var fullFact = directory.Fact{
	Partition: "default", ACL: "anna\tlrswipkxtecda\tanyone\tp\t", MailboxID: "3kj5h3k4jh5", UIDValidity: 1_234_567_890,
	Type: 'e', SpecialUse: `\Drafts`, State: 2, Was: 1, Standing: 3, First: 1 << 40, Last: 1<<40 + 1, Changed: math.MaxUint64,
	Incarnation: 4, Counted: true,
}

func viewOf(f directory.Fact) factView {
	return factView{
		Partition: []byte(f.Partition), ACL: []byte(f.ACL), MailboxID: []byte(f.MailboxID), UIDValidity: f.UIDValidity,
		Type: f.Type, SpecialUse: []byte(f.SpecialUse), State: f.State, Was: f.Was, Standing: f.Standing,
		First: f.First, Last: f.Last, Changed: f.Changed, Incarnation: f.Incarnation, Counted: f.Counted,
	}
}

var (
	fullSettings = directory.Settings{
		DefaultDomain: "example.org", VirtDomains: true, AdmissionOpen: true, ReadOnly: true, GuardCount: 500, GuardPercent: 2, GuardWindow: 3,
		ReserveGrace: 4, ReserveMax: 5, DeliveryGrace: 6, TombstoneKeep: 7, LogKeep: 8, RequestKeep: 9, AutomationPaused: true,
	}
	fullSettingsMessage = &recordv1.SettingsRow{
		DefaultDomain: "example.org", VirtDomains: true, AdmissionOpen: true, ReadOnly: true, GuardCount: 500, GuardPercent: 2, GuardWindow: 3,
		ReserveGrace: 4, ReserveMax: 5, DeliveryGrace: 6, TombstoneKeep: 7, LogKeep: 8, RequestKeep: 9, AutomationPaused: true,
	}
	fullResult = Result{
		Revision: 1, Effect: 2, Refused: &rejection{number: 8, sentinel: directory.ErrReserved, text: `directory: reserved: by "be2"`},
		Count: 4, Epoch: 5, Holder: "be2", Age: 6, Deadline: 7, Items: []Result{{}, {Effect: 13, Refused: directory.ErrExists}},
	}
	fullResultMessage = &recordv1.Result{
		Revision: 1, Effect: 2, Refused: 8, Why: `directory: reserved: by "be2"`,
		Count: 4, Epoch: 5, Holder: "be2", Age: 6, Deadline: 7,
		Items: []*recordv1.Result{{}, {Effect: 13, Refused: 9, Why: "directory: exists"}},
	}
)

func TestRows(t *testing.T) {
	for _, test := range rowCases {
		t.Run(test.name, func(t *testing.T) {
			requireFull(t, test.message)
			requireSet(t, reflect.ValueOf(test.row))
			want := marshal(t, test.message)
			if got := test.encode(test.row); !bytes.Equal(got, want) {
				t.Errorf("encoded: got %x, want as protobuf does %x", got, want)
			}
			got, err := test.decode(want)
			if err != nil || !reflect.DeepEqual(got, test.row) {
				t.Errorf("decoded: got %+v, %v, want %+v", got, err, test.row)
			}
			for n := range want {
				// Some cuts fall between fields; no cut may do harm.
				crossCheck(t, test, want[:n])
			}

			zero := reflect.Zero(reflect.TypeOf(test.row)).Interface()
			if got := test.encode(zero); len(got) > 0 && test.name != "request" {
				t.Errorf("zero row: got %x, want nothing", got)
			}
			if _, err := test.decode(nil); err != nil {
				t.Errorf("zero row: got %v", err)
			}
		})
	}
}

// requireFull makes sure that a test case leaves no field out, a field that a
// later change adds to record.proto neither.
func requireFull(t *testing.T, m proto.Message) {
	t.Helper()
	r := m.ProtoReflect()
	fields := r.Descriptor().Fields()
	for i := range fields.Len() {
		field := fields.Get(i)
		if !r.Has(field) && field.ContainingOneof() == nil {
			t.Errorf("the test case leaves out %s", field.FullName())
			continue
		}
		if field.Message() == nil || !r.Has(field) {
			continue
		}
		if !field.IsList() {
			requireFull(t, r.Get(field).Message().Interface())
		} else if field.Message() != r.Descriptor() {
			requireFull(t, r.Get(field).List().Get(0).Message().Interface())
		}
	}
}

// inKey are the fields that no row has, for they are in its key.
var inKey = []string{"Mailbox.Name", "Mailbox.Facts", "Fact.Server", "Change.Revision", "Change.Ordinal"}

// requireSet does the same for the fields of a row or an operation.
func requireSet(t *testing.T, v reflect.Value) {
	t.Helper()
	if v.Kind() == reflect.Slice && v.Len() > 0 {
		v = v.Index(0)
	}
	if v.Kind() != reflect.Struct {
		return
	}
	for i := range v.NumField() {
		field := v.Type().Name() + "." + v.Type().Field(i).Name
		if v.Field(i).IsZero() && !slices.Contains(inKey, field) {
			t.Errorf("the test case leaves out %s", field)
		}
		if field != "Result.Items" && field != "Batch.Ops" {
			requireSet(t, v.Field(i))
		}
	}
}

func marshal(t *testing.T, m proto.Message) []byte {
	t.Helper()
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// crossCheck holds the decoder against protobuf's own. They must take the same
// octets, and see the same in them: what each would write again is compared,
// for TestRows has compared how they write. Not the same are texts that are no
// UTF-8, and numbers too large for their field.
func crossCheck(t *testing.T, test rowCase, b []byte) {
	t.Helper()
	m := test.message.ProtoReflect().New().Interface()
	theirs := proto.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(b, m)
	row, ours := test.decode(b)
	switch {
	case ours != nil && theirs != nil:
		return
	case errors.Is(ours, errRange) || errors.Is(ours, errNested):
		return
	case ours == nil && theirs != nil:
		if !strings.Contains(theirs.Error(), "UTF-8") {
			t.Errorf("%s %x: taken, but protobuf says %v", test.name, b, theirs)
		}
		return
	case ours != nil:
		t.Errorf("%s %x: got %v, but protobuf takes it", test.name, b, ours)
		return
	}
	normalize(m)
	if got, want := test.encode(row), marshal(t, m); !bytes.Equal(got, want) {
		t.Errorf("%s %x: read as %+v, written again %x, by protobuf %x", test.name, b, row, got, want)
	}
}

// normalize makes m what it would be, had our encoder written it: nothing
// means zero, which protobuf can say in two ways.
func normalize(m proto.Message) {
	switch m := m.(type) {
	case *recordv1.DigestRow:
		for _, sum := range []*[]byte{&m.Names, &m.Facts, &m.CountedNames} {
			if bytes.Equal(*sum, make([]byte, 16)) {
				*sum = nil
			}
		}
	case *recordv1.RequestRow:
		if m.Result == nil {
			m.Result = &recordv1.Result{}
		}
		normalize(m.Result)
	case *recordv1.Result:
		if m.Refused == 0 {
			m.Why = ""
		}
		for _, item := range m.Items {
			normalize(item)
		}
	}
}

func FuzzRow(f *testing.F) {
	for i, test := range rowCases {
		f.Add(byte(i), test.encode(test.row))
		f.Add(byte(i), []byte{0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01})
		f.Add(byte(i), []byte{0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f})
		f.Add(byte(i), []byte{0x12, 0x03, 0xff, 0xfe, 0x00, 0x23, 0x24, 0xc3, 0x3e, 0xc4, 0x3e})
		f.Add(byte(i), []byte{0x18, 0x05, 0x1a, 0x02, 0x01, 0x02, 0x1a, 0x00})
	}
	f.Fuzz(func(t *testing.T, kind byte, b []byte) {
		crossCheck(t, rowCases[int(kind)%len(rowCases)], b)
	})
}

// A view may be used longer than the reader of it, and must not let its user
// write behind it; a decoded row must not see what happens to the value.
func TestSharing(t *testing.T) {
	b := encodeFact(&fullFact)
	view, err := parseFactView(b)
	if err != nil {
		t.Fatal(err)
	}
	_ = append(view.ACL, "overwritten"...)
	var fact directory.Fact
	if err := decodeFact(b, &fact); err != nil || fact != fullFact {
		t.Errorf("after an append to a view: got %+v, %v, want %+v", fact, err, fullFact)
	}
	for _, test := range rowCases {
		if test.name == "fact view" {
			continue
		}
		b := test.encode(test.row)
		row, err := test.decode(b)
		clear(b)
		if err != nil || !reflect.DeepEqual(row, test.row) {
			t.Errorf("%s, its octets wiped: got %+v, %v, want %+v", test.name, row, err, test.row)
		}
	}
}

func TestDecodeFactKeepsServer(t *testing.T) {
	f := directory.Fact{Server: 7, ACL: "of a fact read before"}
	if err := decodeFact(nil, &f); err != nil || f != (directory.Fact{Server: 7}) {
		t.Errorf("got %+v, %v, want only Server 7", f, err)
	}
}

func TestDecodeMailboxRowKeepsTheRest(t *testing.T) {
	m := directory.Mailbox{Name: testName, Facts: []directory.Fact{fullFact}, Home: 4, Listed: true}
	want := directory.Mailbox{Name: testName, Facts: []directory.Fact{fullFact}}
	if err := decodeMailboxRow(nil, &m); err != nil || !reflect.DeepEqual(m, want) {
		t.Errorf("got %+v, %v, want %+v", m, err, want)
	}
}

// RFC 4314 identifiers are UTF-8 by intention; what Cyrus has stored need not be.
func TestACLIsOctets(t *testing.T) {
	acl := "m\xfcller\tlrs\t"
	want := directory.Fact{ACL: acl}
	var got directory.Fact
	if err := decodeFact(encodeFact(&want), &got); err != nil || got != want {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
}

func TestOutOfRange(t *testing.T) {
	for _, test := range []struct {
		name    string
		row     string
		message proto.Message
	}{
		{"state", "fact", &recordv1.FactRow{State: 256}},
		{"type", "fact view", &recordv1.FactRow{Type: 'e' + 256}},
		{"port", "backend", &recordv1.BackendRow{Addresses: []*recordv1.AddressRow{{Port: 65536}}}},
		{"short sum", "digest", &recordv1.DigestRow{Names: make([]byte, 15)}},
		{"long sum", "digest", &recordv1.DigestRow{Facts: make([]byte, 17)}},
		{"effect", "result", &recordv1.Result{Effect: 256}},
		{"withdrawn", "guard", &recordv1.GuardRow{Minutes: []*recordv1.GuardMinute{{Minute: 1}}}},
	} {
		b := marshal(t, test.message)
		if test.name == "withdrawn" {
			b = []byte{0x0a, 0x06, 0x10, 0x80, 0x80, 0x80, 0x80, 0x10} // 2^32
		}
		for _, c := range rowCases {
			if c.name != test.row {
				continue
			}
			if _, err := c.decode(b); !errors.Is(err, errRange) || !errors.Is(err, errMessage) {
				t.Errorf("%s: got %v, want errRange", test.name, err)
			}
		}
	}
}

func TestMalformed(t *testing.T) {
	for _, test := range []struct {
		name, b string
		want    error
	}{
		{"field zero", "\x02\x00", errMessage},
		{"a field beyond the last", "\x82\x80\x80\x80\x10\x00", errMessage},
		{"the end of no group", "\xa4\x06", errMessage},
		{"a group without end", "\xa3\x06", errMessage},
		{"a reserved wire type", "\xa6\x06\x00", errMessage},
		{"a number that does not end", "\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", errMessage},
		{"a length beyond the end", "\x22\x05why", errMessage},
		{"a length beyond all", "\x22\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01why", errMessage},
		{"an item's length beyond the end", "\x52\x7f", errMessage},
		{"an item's text beyond the item", "\x52\x02\x22\x01w", errMessage},
		{"an item with items", "\x52\x02\x52\x00", errNested},
		{"a group", "\xa3\x06\x08\x01\xa4\x06", nil},
		{"unknown fields", "\xa0\x06\x01\xa2\x06\x01x\xa5\x06\x01\x02\x03\x04", nil},
		{"a known field of another type", "\x0a\x01x", nil},
	} {
		if r, err := DecodeResult([]byte(test.b)); !errors.Is(err, test.want) {
			t.Errorf("%s: got %+v, %v, want %v", test.name, r, err, test.want)
		}
	}
}

func TestSum128(t *testing.T) {
	const top = math.MaxUint64
	for _, test := range []struct{ a, b, sum sum128 }{
		{sum128{}, sum128{}, sum128{}},
		{sum128{Lo: 1}, sum128{Lo: 2}, sum128{Lo: 3}},
		{sum128{Lo: top}, sum128{Lo: 1}, sum128{Hi: 1}},
		{sum128{Hi: top, Lo: top}, sum128{Lo: 1}, sum128{}},
		{sum128{Hi: top, Lo: top}, sum128{Hi: top, Lo: top}, sum128{Hi: top, Lo: top - 1}},
	} {
		if got := test.a.Add(test.b); got != test.sum {
			t.Errorf("%x + %x: got %x, want %x", test.a, test.b, got, test.sum)
		}
		if got := test.sum.Sub(test.b); got != test.a {
			t.Errorf("%x - %x: got %x, want %x", test.sum, test.b, got, test.a)
		}
	}
	s := sum128{Hi: 0x0102030405060708, Lo: 0x090a0b0c0d0e0f10}
	if got, want := s.Bytes(), [16]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}; got != want || directory.SumFromBytes(got) != s {
		t.Errorf("bytes: got %x, want %x", got, want)
	}
}

// The numbers stand in stored results. A line may be added here, none changed.
var rejectionNumbers = map[string]uint32{
	"ErrInvalidName": 1, "ErrInvalidACL": 2, "ErrInvalidLocation": 3, "ErrInvalidPattern": 4, "ErrInvalid": 5, "ErrTooLarge": 6,
	"ErrNotFound": 7, "ErrReserved": 8, "ErrExists": 9, "ErrIncomplete": 10, "ErrNotPlaceable": 11, "ErrNotAdmitted": 12,
	"ErrStaleEpoch": 13, "ErrNotPrimary": 14, "ErrNotMember": 15, "ErrMissingAtTarget": 16, "ErrNotHolder": 17, "ErrBusy": 18,
	"ErrReadOnly": 19, "ErrStaleRequest": 20, "ErrRole": 21, "ErrVersion": 22,
}

func TestEverySentinelHasItsNumber(t *testing.T) {
	byText := map[string]uint32{}
	for _, r := range rejections {
		byText[r.sentinel.Error()] = r.number
	}
	if len(byText) != len(rejections) {
		t.Errorf("got %d texts for %d rejections, want one each", len(byText), len(rejections))
	}
	sentinels := directorySentinels(t)
	for name, text := range sentinels {
		want, ok := rejectionNumbers[name]
		if !ok {
			t.Errorf("directory.%s has no number: give it the next, here and in rejections", name)
		}
		if got := byText[text]; got != want {
			t.Errorf("directory.%s: got number %d, want %d", name, got, want)
		}
	}
	if len(rejections) < len(sentinels) {
		t.Errorf("got %d rejections, want one for each of %d sentinels", len(rejections), len(sentinels))
	}
}

// directorySentinels reads names and texts of the sentinels off directory's source.
func directorySentinels(t *testing.T) map[string]string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "../errors.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	for _, decl := range file.Decls {
		group, ok := decl.(*ast.GenDecl)
		if !ok || group.Tok != token.VAR {
			continue
		}
		for _, spec := range group.Specs {
			v := spec.(*ast.ValueSpec)
			call, ok := v.Values[0].(*ast.CallExpr)
			if !ok || len(call.Args) != 1 {
				t.Fatalf("errors.go: %s is not one errors.New", v.Names[0].Name)
			}
			text, err := strconv.Unquote(call.Args[0].(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			found[v.Names[0].Name] = text
		}
	}
	if len(found) == 0 {
		t.Fatal("errors.go: found no sentinel")
	}
	return found
}

func TestAFailureHasNoNumber(t *testing.T) {
	for _, err := range []error{errors.New("odd"), ErrCorrupt, ErrFormat, ErrUnknownCommand, errMessage} {
		if got := sentinelNumber(err); got != 0 {
			t.Errorf("%v: got number %d, want 0", err, got)
		}
	}
}

func TestRefusedSurvives(t *testing.T) {
	for _, r := range rejections {
		for _, err := range []error{
			r.sentinel,
			fmt.Errorf("%w: mailbox %q", r.sentinel, testName),
			fmt.Errorf("item 3: %w", fmt.Errorf("%w: \xff octets", r.sentinel)),
		} {
			first, e := DecodeResult(EncodeResult(Result{Refused: err}))
			if e != nil {
				t.Fatal(e)
			}
			again, e := DecodeResult(EncodeResult(first))
			if e != nil {
				t.Fatal(e)
			}
			for _, got := range []error{first.Refused, again.Refused} {
				if got == nil || got.Error() != err.Error() {
					t.Errorf("got %v, want the text %q", got, err)
				}
				for _, other := range rejections {
					if errors.Is(got, other.sentinel) != (other == r) {
						t.Errorf("%q: got errors.Is(%v) %v", err, other.sentinel, other != r)
					}
				}
			}
		}
	}
}

func TestRefusedWithoutSentinel(t *testing.T) {
	for _, test := range []struct {
		name string
		b    []byte
		want string
	}{
		{"a mistake of the rules", EncodeResult(Result{Refused: errors.New("odd")}), "odd"},
		{"of a newer release", marshal(t, &recordv1.Result{Refused: 9999, Why: "directory: new"}), "directory: new"},
	} {
		r, err := DecodeResult(test.b)
		if err != nil || r.Refused == nil || r.Refused.Error() != test.want {
			t.Errorf("%s: got %v, %v, want a refusal %q", test.name, r.Refused, err, test.want)
		}
		if got := EncodeResult(r); !bytes.Equal(got, test.b) {
			t.Errorf("%s: encoded again: got %x, want %x", test.name, got, test.b)
		}
	}
}

func TestReadsAllocate(t *testing.T) {
	fact, sums, clk := encodeFact(&fullFact), encodeDigest(digest{Count: 1, Names: sum128{Hi: 1}}), encodeClock(clock{Revision: 1 << 40})
	for _, test := range []struct {
		name string
		want float64
		read func()
	}{
		{"parseFactView", 0, func() { parseFactView(fact) }},
		{"decodeDigest", 0, func() { decodeDigest(sums) }},
		{"decodeClock", 0, func() { decodeClock(clk) }},
		{"decodeFact", 1, func() {
			var f directory.Fact
			decodeFact(fact, &f)
		}},
	} {
		if got := testing.AllocsPerRun(100, test.read); got > test.want {
			t.Errorf("%s: got %v allocations, want %v", test.name, got, test.want)
		}
	}
}

func BenchmarkEncodeFact(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		encodeFact(&fullFact)
	}
}

func BenchmarkDecodeFact(b *testing.B) {
	row := encodeFact(&fullFact)
	b.ReportAllocs()
	for b.Loop() {
		var f directory.Fact
		if err := decodeFact(row, &f); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkParseFactView(b *testing.B) {
	row := encodeFact(&fullFact)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := parseFactView(row); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkFactByProtobuf(b *testing.B) {
	row := encodeFact(&fullFact)
	b.ReportAllocs()
	for b.Loop() {
		if err := proto.Unmarshal(row, new(recordv1.FactRow)); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDigest(b *testing.B) {
	d := digest{Count: 1 << 20, Names: sum128{Hi: 1, Lo: 2}, Facts: sum128{Hi: 3, Lo: 4}}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := decodeDigest(encodeDigest(d)); err != nil {
			b.Fatal(err)
		}
	}
}
