package machine

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/rookery-mail/rookery/directory"
	recordv1 "github.com/rookery-mail/rookery/proto/record/v1"
)

// opCases has every operation with every field set, and as protobuf has it.
var opCases = []struct {
	op      Op
	message *recordv1.Op
}{
	{
		Init{ClusterID: "c1", Incarnation: 1, DigestKey: []byte("0123456789abcdef"), Version: 2},
		&recordv1.Op{Op: &recordv1.Op_Init{Init: &recordv1.Init{ClusterId: "c1", Incarnation: 1, DigestKey: []byte("0123456789abcdef"), Version: 2}}},
	},
	{
		Assert{
			Mailbox: "user.anna", Server: "be1",
			Statement: directory.Statement{
				Partition: "default", ACL: new("anna\tlrs\t"), MailboxID: new("id"), UIDValidity: new(uint32(1 << 31)),
				Type: new(directory.TypeCalendar), SpecialUse: new(`\Drafts \Sent`),
			},
			Imported: true, Deactivated: true, Since: 77,
		},
		&recordv1.Op{Op: &recordv1.Op_Assert{Assert: &recordv1.Assert{
			Mailbox: "user.anna", Server: "be1",
			Partition: "default", Acl: new("anna\tlrs\t"), MailboxId: new("id"), UidValidity: new(uint32(1 << 31)),
			Type: new(uint32('c')), SpecialUse: new(`\Drafts \Sent`),
			Imported: true, Deactivated: true, Since: 77,
		}}},
	},
	{
		Retract{Mailbox: "user.anna", Server: "be1", Epoch: 1<<32 + 1, Tentative: true, Since: 78},
		&recordv1.Op{Op: &recordv1.Op_Retract{Retract: &recordv1.Retract{Mailbox: "user.anna", Server: "be1", Epoch: 1<<32 + 1, Tentative: true, Since: 78}}},
	},
	{
		Reserve{Mailbox: "user.anna", Server: "be1", Partition: "p1", Grace: 60_000},
		&recordv1.Op{Op: &recordv1.Op_Reserve{Reserve: &recordv1.Reserve{Mailbox: "user.anna", Server: "be1", Partition: "p1", Grace: 60_000}}},
	},
	{
		Release{Mailbox: "user.anna", Server: "be1", Since: 9},
		&recordv1.Op{Op: &recordv1.Op_Release{Release: &recordv1.Release{Mailbox: "user.anna", Server: "be1", Since: 9}}},
	},
	{
		Deactivate{Mailbox: "user.anna", Server: "be1"},
		&recordv1.Op{Op: &recordv1.Op_Deactivate{Deactivate: &recordv1.Deactivate{Mailbox: "user.anna", Server: "be1"}}},
	},
	{
		Rename{From: "user.anna", To: "user.bert", Recursive: true, Server: "be1"},
		&recordv1.Op{Op: &recordv1.Op_Rename{Rename: &recordv1.Rename{From: "user.anna", To: "user.bert", Recursive: true, Server: "be1"}}},
	},
	{
		SetPrimary{Group: "g1", To: "be2", Epoch: 7, Reason: "disk", AcceptMissing: true},
		&recordv1.Op{Op: &recordv1.Op_SetPrimary{SetPrimary: &recordv1.SetPrimary{Group: "g1", To: "be2", Epoch: 7, Reason: "disk", AcceptMissing: true}}},
	},
	{
		SetGroup{Group: "g1", Members: []directory.BackendName{"be1", "", "be2"}, Mode: directory.ModeAutomatic, AcceptMissing: true},
		&recordv1.Op{Op: &recordv1.Op_SetGroup{SetGroup: &recordv1.SetGroup{Group: "g1", Members: []string{"be1", "", "be2"}, Mode: 2, AcceptMissing: true}}},
	},
	{
		SetBackend{
			Server: "be1", Addresses: &[]directory.Address{{Service: "imap", IP: "192.0.2.1", Port: 143, TLS: 1}},
			Weight: new(uint32(50)), State: new(directory.BackendDown), DrainApproved: new(true), Create: true,
		},
		&recordv1.Op{Op: &recordv1.Op_SetBackend{SetBackend: &recordv1.SetBackend{
			Server: "be1", Addresses: &recordv1.Addresses{Addresses: []*recordv1.AddressRow{{Service: "imap", Ip: "192.0.2.1", Port: 143, Tls: 1}}},
			Weight: new(uint32(50)), State: new(uint32(3)), DrainApproved: new(true), Create: true,
		}}},
	},
	{
		Admit{Server: "be1"},
		&recordv1.Op{Op: &recordv1.Op_Admit{Admit: &recordv1.Admit{Server: "be1"}}},
	},
	{
		Confirm{Server: "be1", How: directory.ByOperator, Incarnation: 2},
		&recordv1.Op{Op: &recordv1.Op_Confirm{Confirm: &recordv1.Confirm{Server: "be1", How: 3, Incarnation: 2}}},
	},
	{
		RenameBackend{From: "be1", To: "be2"},
		&recordv1.Op{Op: &recordv1.Op_RenameBackend{RenameBackend: &recordv1.RenameBackend{From: "be1", To: "be2"}}},
	},
	{
		Subscribe{User: "anna", Mailbox: "shared"},
		&recordv1.Op{Op: &recordv1.Op_Subscribe{Subscribe: &recordv1.Subscribe{User: "anna", Mailbox: "shared"}}},
	},
	{
		Unsubscribe{User: "anna", Mailbox: "shared"},
		&recordv1.Op{Op: &recordv1.Op_Unsubscribe{Unsubscribe: &recordv1.Unsubscribe{User: "anna", Mailbox: "shared"}}},
	},
	{
		Settle{Mailbox: "user.anna", Keep: "be1"},
		&recordv1.Op{Op: &recordv1.Op_Settle{Settle: &recordv1.Settle{Mailbox: "user.anna", Keep: "be1"}}},
	},
	{
		Hold{Kind: directory.HoldGroup, Key: "g1", For: 60_000, Why: "disk"},
		&recordv1.Op{Op: &recordv1.Op_Hold{Hold: &recordv1.Hold{Kind: 4, Key: "g1", For: 60_000, Why: "disk"}}},
	},
	{
		ReleaseHold{Kind: directory.HoldGroup, Key: "g1"},
		&recordv1.Op{Op: &recordv1.Op_ReleaseHold{ReleaseHold: &recordv1.ReleaseHold{Kind: 4, Key: "g1"}}},
	},
	{
		SetAlarm{Kind: directory.AlarmNoSpace, Node: "n1", On: true, Voter: true, Voters: 3, Why: "full"},
		&recordv1.Op{Op: &recordv1.Op_SetAlarm{SetAlarm: &recordv1.SetAlarm{Kind: 1, Node: "n1", On: true, Voter: true, Voters: 3, Why: "full"}}},
	},
	{
		DecideHeld{Server: "be1", Approve: true},
		&recordv1.Op{Op: &recordv1.Op_DecideHeld{DecideHeld: &recordv1.DecideHeld{Server: "be1", Approve: true}}},
	},
	{
		SetSettings{Settings: fullSettings},
		&recordv1.Op{Op: &recordv1.Op_SetSettings{SetSettings: &recordv1.SetSettings{Settings: fullSettingsMessage}}},
	},
	{
		Restore{ClusterID: "c2", Incarnation: 2},
		&recordv1.Op{Op: &recordv1.Op_Restore{Restore: &recordv1.Restore{ClusterId: "c2", Incarnation: 2}}},
	},
	{
		Finalize{From: 1, To: 2, Release: "v0.4.0"},
		&recordv1.Op{Op: &recordv1.Op_Finalize{Finalize: &recordv1.Finalize{From: 1, To: 2, Release: "v0.4.0"}}},
	},
	{
		Tick{},
		&recordv1.Op{Op: &recordv1.Op_Tick{Tick: &recordv1.Tick{}}},
	},
	{
		Batch{Ops: []Op{Admit{Server: "be1"}, Assert{Mailbox: "user.anna", Server: "be1"}}},
		&recordv1.Op{Op: &recordv1.Op_Batch{Batch: &recordv1.Batch{Ops: []*recordv1.Op{
			{Op: &recordv1.Op_Admit{Admit: &recordv1.Admit{Server: "be1"}}},
			{Op: &recordv1.Op_Assert{Assert: &recordv1.Assert{Mailbox: "user.anna", Server: "be1"}}},
		}}}},
	},
}

func TestCommands(t *testing.T) {
	for _, test := range opCases {
		t.Run(fmt.Sprintf("%T", test.op), func(t *testing.T) {
			requireSet(t, reflect.ValueOf(test.op))
			fields := test.message.ProtoReflect()
			set := fields.WhichOneof(fields.Descriptor().Oneofs().Get(0))
			requireFull(t, fields.Get(set).Message().Interface())

			c := Command{Client: "be1/7", Sequence: 300, By: "operator:carol", Op: test.op}
			want := marshal(t, &recordv1.Command{Client: c.Client, Sequence: c.Sequence, By: c.By, Op: test.message})
			if got := EncodeCommand(c); !bytes.Equal(got, want) {
				t.Errorf("encoded: got %x, want as protobuf does %x", got, want)
			}
			got, err := DecodeCommand(want)
			if err != nil || !reflect.DeepEqual(got, c) {
				t.Errorf("decoded: got %+v, %v, want %+v", got, err, c)
			}

			zero := Command{Op: reflect.Zero(reflect.TypeOf(test.op)).Interface().(Op)}
			got, err = DecodeCommand(EncodeCommand(zero))
			if err != nil || !reflect.DeepEqual(got, zero) {
				t.Errorf("with no field: got %+v, %v, want %+v", got, err, zero)
			}
		})
	}
	if got, want := len(opCases), new(recordv1.Op).ProtoReflect().Descriptor().Fields().Len(); got != want {
		t.Errorf("got %d operations, want all %d of record.proto", got, want)
	}
}

// What is stated to be nothing is something else than what is not stated.
// A repeat is known by the operation's octets; whether they are taken from the
// log or made again must be the same.
func TestOpOctets(t *testing.T) {
	for _, c := range opCases {
		alone := EncodeCommand(Command{Op: c.op})
		for _, who := range []Command{{Op: c.op}, {By: "node", Op: c.op}, {Client: "c", Sequence: 1 << 40, By: "n", Op: c.op}} {
			encoded := EncodeCommand(who)
			if got := opOctets(encoded); !bytes.Equal(got, alone) {
				t.Errorf("%T: the operation in %x is %x, want %x", c.op, encoded, got, alone)
			}
			if got := opOctets(append(encoded, 8<<3, 1)); got != nil {
				t.Errorf("%T: %x of a command that goes on after its operation, want none", c.op, got)
			}
			if got := opOctets(encoded[:len(encoded)-1]); got != nil {
				t.Errorf("%T: %x of a command that is cut off, want none", c.op, got)
			}
		}
	}
	if got := opOctets(nil); got != nil {
		t.Errorf("%x of nothing, want none", got)
	}
}

func TestStatedZero(t *testing.T) {
	for _, op := range []Op{
		Assert{Statement: directory.Statement{
			ACL: new(""), MailboxID: new(""), UIDValidity: new(uint32(0)), Type: new(directory.MailboxType(0)), SpecialUse: new(""),
		}},
		Assert{Statement: directory.Statement{ACL: new("")}},
		SetBackend{Addresses: new([]directory.Address), Weight: new(uint32(0)), State: new(directory.BackendState(0)), DrainApproved: new(false)},
	} {
		got, err := DecodeCommand(EncodeCommand(Command{Op: op}))
		if err != nil || !reflect.DeepEqual(got.Op, op) {
			t.Errorf("got %+v, %v, want %+v", got.Op, err, op)
		}
	}
}

func TestManyStatements(t *testing.T) {
	want := Command{Op: assertions(300)}
	got, err := DecodeCommand(EncodeCommand(want))
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got other assertions than were encoded, %v", err)
	}
}

func TestTextsAreOctets(t *testing.T) {
	want := Command{Client: "\xff", By: "\x00", Op: Assert{Mailbox: "\x80", Statement: directory.Statement{ACL: new("m\xfcller\tl\t")}}}
	got, err := DecodeCommand(EncodeCommand(want))
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v, want %+v: the rules refuse a name, the codec does not stop the node", got, err, want)
	}
}

func TestUnknownCommand(t *testing.T) {
	field := func(num protowire.Number, content string) string {
		return string(protowire.AppendString(protowire.AppendTag(nil, num, protowire.BytesType), content))
	}
	inBatch := func(op Op) string { return string(EncodeCommand(Command{Op: Batch{Ops: []Op{op}}})) }
	number := func(num protowire.Number) string {
		return string(protowire.AppendVarint(protowire.AppendTag(nil, num, protowire.VarintType), 1))
	}
	admit := field(11, field(1, "be1"))
	for _, test := range []struct{ name, b, why string }{
		{"nothing", "", "no operation"},
		{"no operation", field(1, "client"), "no operation"},
		{"an empty operation", field(4, ""), "no operation"},
		{"a nil Op", string(EncodeCommand(Command{Client: "c"})), "no operation"},
		{"a pointer", string(EncodeCommand(Command{Op: &Admit{Server: "be1"}})), "no operation"},
		{"an unknown operation", field(4, field(99, "")), "unknown operation 99"},
		{"an unknown field of a command", field(4, admit) + field(5, ""), "unknown field 5"},
		{"an unknown field of an operation", field(4, field(11, field(2, ""))), "unknown field 2"},
		{"an unknown field of a tick", field(4, field(21, number(1))), "unknown field 1"},
		{"an unknown field of an address", field(4, field(10, field(2, field(1, number(5))))), "unknown field 5"},
		{"an unknown field of addresses", field(4, field(10, field(2, number(2)))), "unknown field 2"},
		{"an unknown field of settings", field(4, field(20, field(1, number(99)))), "unknown field 99"},
		{"an unknown field in a batch", field(4, field(22, field(1, field(11, number(9))))), "unknown field 9"},
		{"an unknown field of a batch", field(4, field(22, field(2, ""))), "unknown field 2"},
		{"another wire type", field(4, field(11, number(1))), "unknown field 1"},
		{"an operation that is a number", field(4, number(11)), "unknown field 11"},
		{"two operations", field(4, admit+admit), "several operations"},
		{"two operations apart", field(4, admit) + field(4, admit), "several operations"},
		{"an empty operation in a batch", field(4, field(22, field(1, admit)+field(1, ""))), "no operation"},
		{"Init in a batch", inBatch(Init{}), "batch in a batch"},
		{"Tick in a batch", inBatch(Tick{}), "batch in a batch"},
		{"Finalize in a batch", inBatch(Finalize{From: 1, To: 2}), "batch in a batch"},
		{"Restore in a batch", inBatch(Restore{ClusterID: "c2", Incarnation: 2}), "batch in a batch"},
		{"Batch in a batch", inBatch(Batch{}), "batch in a batch"},
		{"a state out of range", field(4, field(10, string(protowire.AppendVarint(protowire.AppendTag(nil, 4, protowire.VarintType), 256)))), "out of range"},
		{"a length beyond the end", "\x22\xff\xff\xff\xff\x07", "malformed"},
		{"a length beyond all", "\x22\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "malformed"},
		{"a length beyond its operation", field(4, "\x5a\x02\x0a\x05be1") + field(1, "client"), "malformed"},
		{"field zero", "\x02\x00", "malformed"},
		{"text", "GET / HTTP/1.1\r\n", ""},
	} {
		c, err := DecodeCommand([]byte(test.b))
		if !errors.Is(err, ErrUnknownCommand) || !strings.Contains(err.Error(), test.why) {
			t.Errorf("%s: got %+v, %v, want ErrUnknownCommand: ... %s", test.name, c, err, test.why)
		}
	}
}

func TestCutCommand(t *testing.T) {
	for _, test := range opCases {
		b := EncodeCommand(Command{Client: "c", Op: test.op})
		for n := range b {
			if c, err := DecodeCommand(b[:n]); !errors.Is(err, ErrUnknownCommand) {
				t.Errorf("%T cut to %d of %d octets: got %+v, %v, want ErrUnknownCommand", test.op, n, len(b), c, err)
			}
		}
	}
}

func FuzzDecodeCommand(f *testing.F) {
	for _, test := range opCases {
		f.Add(EncodeCommand(Command{Client: "c", Sequence: 1, By: "b", Op: test.op}))
	}
	f.Add([]byte("\x22\xff\xff\xff\xff\x07"))
	f.Add([]byte("\x22\x04\xb2\x01\x01\x0a"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := DecodeCommand(b)
		var m recordv1.Command
		theirs := proto.Unmarshal(b, &m)
		if err != nil {
			if !errors.Is(err, ErrUnknownCommand) {
				t.Errorf("%x: got %v, want ErrUnknownCommand", b, err)
			}
			if theirs == nil && understood(&m) && bytes.Equal(b, marshal(t, &m)) && !errors.Is(err, errRange) {
				t.Errorf("%x: got %v, but protobuf writes the same", b, err)
			}
			return
		}
		if theirs != nil {
			if !strings.Contains(theirs.Error(), "UTF-8") {
				t.Errorf("%x: taken, but protobuf says %v", b, theirs)
			}
			return
		}
		if s := m.GetOp().GetSetSettings(); s != nil && s.Settings == nil {
			s.Settings = &recordv1.SettingsRow{}
		}
		for _, op := range m.GetOp().GetBatch().GetOps() {
			if s := op.GetSetSettings(); s != nil && s.Settings == nil {
				s.Settings = &recordv1.SettingsRow{}
			}
		}
		if got, want := EncodeCommand(c), marshal(t, &m); !bytes.Equal(got, want) {
			t.Errorf("%x: read as %+v, written again %x, by protobuf %x", b, c, got, want)
		}
	})
}

// understood says whether DecodeCommand has to take m, once its octets are
// those protobuf writes.
func understood(m *recordv1.Command) bool {
	b, err := proto.Marshal(m)
	if err != nil {
		return false
	}
	known := new(recordv1.Command)
	if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(b, known); err != nil || proto.Size(known) != len(b) {
		return false // unknown fields
	}
	if m.GetOp().GetOp() == nil {
		return false
	}
	for _, op := range m.GetOp().GetBatch().GetOps() {
		if op.GetOp() == nil || op.GetInit() != nil || op.GetTick() != nil || op.GetBatch() != nil {
			return false
		}
	}
	return true
}

func FuzzDecodeResult(f *testing.F) {
	var result rowCase
	for _, test := range rowCases {
		if test.name == "result" {
			result = test
		}
	}
	f.Add(EncodeResult(fullResult))
	f.Add(EncodeResult(Result{Effect: Added, Items: []Result{{Effect: Forked}, {Refused: directory.ErrBusy}}}))
	f.Add([]byte("\x18\x8f\x4e\x22\x03new"))
	f.Add([]byte("\x52\x02\x52\x00"))
	f.Fuzz(func(t *testing.T, b []byte) { crossCheck(t, result, b) })
}

// assertions is a batch such as an import sends.
func assertions(n int) Batch {
	ops := make([]Op, n)
	for i := range ops {
		ops[i] = Assert{
			Mailbox: directory.MailboxName(fmt.Sprintf("user.anna.Archive.%04d", i)), Server: "be1.example.org",
			Statement: directory.Statement{
				Partition: "default", ACL: new("anna\tlrswipkxtecdan\tbert\tlrs\t"), MailboxID: new(fmt.Sprintf("3kj5h3k4jh5-%d", i)),
				UIDValidity: new(uint32(1_234_567_890 + i)), Type: new(directory.TypeEmail),
			},
		}
	}
	return Batch{Ops: ops}
}

func BenchmarkDecode100Asserts(b *testing.B) {
	octets := EncodeCommand(Command{Client: "be1/1", Sequence: 9, By: "backend:be1", Op: assertions(100)})
	b.SetBytes(int64(len(octets)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := DecodeCommand(octets); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecode100AssertsByProtobuf(b *testing.B) {
	octets := EncodeCommand(Command{Client: "be1/1", Sequence: 9, By: "backend:be1", Op: assertions(100)})
	b.SetBytes(int64(len(octets)))
	b.ReportAllocs()
	for b.Loop() {
		if err := proto.Unmarshal(octets, new(recordv1.Command)); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkEncode100Asserts(b *testing.B) {
	c := Command{Client: "be1/1", Sequence: 9, By: "backend:be1", Op: assertions(100)}
	b.ReportAllocs()
	for b.Loop() {
		EncodeCommand(c)
	}
}

func BenchmarkDecodeAssert(b *testing.B) {
	octets := EncodeCommand(Command{Client: "be1/1", Sequence: 9, By: "backend:be1", Op: assertions(1).Ops[0]})
	b.ReportAllocs()
	for b.Loop() {
		if _, err := DecodeCommand(octets); err != nil {
			b.Fatal(err)
		}
	}
}
