package raftstore

import (
	"bytes"
	"reflect"
	"strings"
	"testing"

	"github.com/rookery-mail/rookery/raftstore/wal"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

func TestBatch(t *testing.T) {
	for _, want := range []batch{
		{},
		{id: 1, elapsed: 2, wall: -3, commands: [][]byte{{}}},
		{id: 1 << 60, elapsed: 1 << 40, wall: 1 << 41, commands: [][]byte{[]byte("a"), {}, bytes.Repeat([]byte("b"), 1000)}},
	} {
		p := want.marshal()
		got, err := unmarshalBatch(p)
		if err != nil || got.id != want.id || got.elapsed != want.elapsed || got.wall != want.wall || len(got.commands) != len(want.commands) {
			t.Fatalf("got %+v, %v; want %+v", got, err, want)
		}
		for i := range want.commands {
			if !bytes.Equal(got.commands[i], want.commands[i]) {
				t.Errorf("command %d: got %q, want %q", i, got.commands[i], want.commands[i])
			}
		}
		if id := batchID(p); id != want.id {
			t.Errorf("batchID: got %d, want %d", id, want.id)
		}
		for n := range p {
			if _, err := unmarshalBatch(p[:n]); err == nil {
				t.Errorf("accepted when cut to %d of %d octets", n, len(p))
			}
		}
		if _, err := unmarshalBatch(append(p, 0)); err == nil {
			t.Error("accepted with an octet too many")
		}
	}
	if _, err := unmarshalBatch([]byte{9, 0}); err == nil || !strings.Contains(err.Error(), "upgrade") {
		t.Errorf("a later format: got %v, want to be told to upgrade", err)
	}
	if _, err := unmarshalBatch(batch{elapsed: 5}.marshal()); err == nil {
		t.Error("time that no command takes in was accepted")
	}
}

func FuzzBatch(f *testing.F) {
	f.Add(batch{id: 3, elapsed: 4, wall: 5, commands: [][]byte{[]byte("x"), {}}}.marshal())
	f.Add([]byte{1})
	f.Add([]byte{1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0x7f})
	f.Fuzz(func(t *testing.T, p []byte) {
		b, err := unmarshalBatch(p)
		if err != nil {
			return
		}
		again, err := unmarshalBatch(b.marshal())
		if err != nil || !reflect.DeepEqual(again, b) {
			t.Errorf("%+v comes back as %+v, %v", b, again, err)
		}
	})
}

func testFullMeta() Meta {
	m := testMeta(7, 7, 8)
	m.Conf.Learners = []uint64{9}
	m.Applied = wal.Position{Term: 3, Index: 500}
	m.Mark = wal.Position{Term: 2, Index: 100}
	m.Members = []Member{{ID: 7, Name: "a", Context: []byte("x")}, {ID: 9}}
	return m
}

func TestMeta(t *testing.T) {
	want := testFullMeta()
	p, err := want.marshal()
	if err != nil {
		t.Fatal(err)
	}
	got, err := unmarshalMeta(p)
	if err != nil || !sameMeta(got, want) {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	for i := range p {
		for bit := range 8 {
			bad := bytes.Clone(p)
			bad[i] ^= 1 << bit
			if _, err := unmarshalMeta(bad); err == nil {
				t.Errorf("accepted with bit %d of octet %d flipped", bit, i)
			}
		}
		if _, err := unmarshalMeta(p[:i]); err == nil {
			t.Errorf("accepted when cut to %d octets", i)
		}
	}
}

func sameMeta(a, b Meta) bool {
	if !proto.Equal(a.Conf, b.Conf) || len(a.Members) != len(b.Members) {
		return false
	}
	for i := range a.Members {
		if a.Members[i].ID != b.Members[i].ID || a.Members[i].Name != b.Members[i].Name || !bytes.Equal(a.Members[i].Context, b.Members[i].Context) {
			return false
		}
	}
	return a.Identity == b.Identity && a.Name == b.Name && a.Applied == b.Applied && a.Mark == b.Mark
}

func FuzzMeta(f *testing.F) {
	p, err := testFullMeta().marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(p[:len(p)-4])
	f.Add([]byte{metaVersion})
	f.Fuzz(func(t *testing.T, p []byte) {
		// The checksum is added here, or nothing would come past it.
		m, err := unmarshalMeta(sealMeta(p))
		if err != nil {
			return
		}
		q, err := m.marshal()
		if err != nil {
			t.Fatal(err)
		}
		if again, err := unmarshalMeta(q); err != nil || !sameMeta(again, m) {
			t.Errorf("%+v comes back as %+v, %v", m, again, err)
		}
	})
}

func FuzzChanges(f *testing.F) {
	f.Add(marshalChanges([]Change{{Member: Member{ID: 1, Name: "n", Context: []byte("c")}}, {Member: Member{ID: 2}}}))
	f.Fuzz(func(t *testing.T, p []byte) {
		changes, err := unmarshalChanges(p)
		if err != nil || len(p) == 0 {
			return
		}
		again, err := unmarshalChanges(marshalChanges(changes))
		if err != nil || !reflect.DeepEqual(again, changes) {
			t.Errorf("%+v comes back as %+v, %v", changes, again, err)
		}
	})
}

func TestIdentityEncoding(t *testing.T) {
	want := Identity{Cluster: ClusterID{1, 2}, Incarnation: 3, Shard: 4, Node: 5}
	p := want.marshal()
	if got, err := unmarshalIdentity(p); err != nil || got != want {
		t.Errorf("got %v, %v; want %v", got, err, want)
	}
	for _, bad := range [][]byte{nil, p[:len(p)-1], append(bytes.Clone(p), 0), append([]byte{2}, p[1:]...)} {
		if _, err := unmarshalIdentity(bad); err == nil {
			t.Errorf("%x was accepted", bad)
		}
	}
}

// TestRaftLog holds the log in memory against what Raft expects of a Storage.
func TestRaftLog(t *testing.T) {
	entry := func(term, index uint64) *raftpb.Entry {
		return &raftpb.Entry{Term: new(term), Index: new(index), Data: []byte("12345678")}
	}
	l := &raftLog{before: wal.Position{Term: 1, Index: 10}}
	for i := uint64(11); i <= 30; i++ {
		l.append([]*raftpb.Entry{entry(2, i)})
	}
	held, err := l.Entries(20, 31, 1<<20)
	if err != nil || len(held) != 11 {
		t.Fatalf("Entries(20, 31): got %d, %v; want 11", len(held), err)
	}
	l.append([]*raftpb.Entry{entry(3, 25), entry(3, 26)})
	if held[5].GetTerm() != 2 {
		t.Error("a slice that was given out changed")
	}
	if last, _ := l.LastIndex(); last != 26 {
		t.Errorf("LastIndex: got %d, want 26", last)
	}
	if got, _ := l.Entries(11, 27, 1); len(got) != 1 {
		t.Errorf("Entries with a small bound: got %d, want 1", len(got))
	}
	l.compact(15, 4, 1<<30)
	if first, _ := l.FirstIndex(); first != 16 {
		t.Errorf("FirstIndex after compacting up to 15: got %d, want 16", first)
	}
	for index, want := range map[uint64]uint64{15: 2, 16: 2, 24: 2, 25: 3, 26: 3} {
		if got, err := l.Term(index); err != nil || got != want {
			t.Errorf("Term(%d): got %d, %v; want %d", index, got, err, want)
		}
	}
	if _, err := l.Term(14); err == nil {
		t.Error("Term of a compacted entry is known")
	}
	if _, err := l.Term(27); err == nil {
		t.Error("Term of an entry to come is known")
	}
	l.append([]*raftpb.Entry{entry(2, 14), entry(2, 15), entry(4, 16)}) // overlaps what is compacted
	if last, _ := l.LastIndex(); last != 16 {
		t.Errorf("LastIndex: got %d, want 16", last)
	}
	if want := sizeOf(l.entries); l.bytes != want {
		t.Errorf("bytes: got %d, want %d", l.bytes, want)
	}
}

// TestCommands reads entries as somebody does who replays a log: directory time
// passes before the first command of an entry alone.
func TestCommands(t *testing.T) {
	b := batch{id: 7, elapsed: 30, wall: 1000, commands: [][]byte{[]byte("one"), []byte("two")}}
	commands, stamps, err := Commands(b.marshal())
	if err != nil {
		t.Fatal(err)
	}
	if len(commands) != 2 || string(commands[0]) != "one" || string(commands[1]) != "two" {
		t.Errorf("commands: %q", commands)
	}
	if want := []Stamp{{Elapsed: 30, Wall: 1000}, {Wall: 1000}}; len(stamps) != 2 || stamps[0] != want[0] || stamps[1] != want[1] {
		t.Errorf("stamps: got %v, want %v", stamps, want)
	}
	if commands, stamps, err := Commands(nil); len(commands) != 0 || len(stamps) != 0 || err != nil {
		t.Errorf("a leader's first entry: %q, %v, %v", commands, stamps, err)
	}
	if _, _, err := Commands([]byte{entryVersion, 0x80}); err == nil {
		t.Error("a torn entry was read")
	}
}
