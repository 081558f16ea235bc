package peer

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	peerv1 "github.com/rookery-mail/rookery/proto/peer/v1"
	"github.com/rookery-mail/rookery/raftstore"
)

// quiet is a transport that neither listens nor logs.
func quiet(t testing.TB, cfg Config) *Transport {
	t.Helper()
	cfg.Log = slog.New(slog.DiscardHandler)
	tr, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tr.Close)
	return tr
}

// FuzzInfo: a member's context is taken for the same whenever it is written anew.
func FuzzInfo(f *testing.F) {
	f.Add(Info{PeerAddress: "10.0.0.1:7906", ClientAddress: "10.0.0.1:7905", Site: "a"}.Context())
	f.Add([]byte("10.0.0.1:7906"))
	f.Add([]byte{infoTag, 0xff})
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, context []byte) {
		info := ParseInfo(context)
		if len(context) > 0 && context[0] == infoTag || info.PeerAddress == "" {
			if again := ParseInfo(info.Context()); info.PeerAddress != "" && again != info {
				t.Errorf("%x: taken for %+v, written and read again for %+v", context, info, again)
			}
		} else if info != (Info{PeerAddress: string(context)}) {
			t.Errorf("%q: taken for %+v, want an address alone, as earlier releases kept it", context, info)
		}
	})
}

// FuzzFrame has a node take a frame of messages. What it is not from or not for is
// never passed on.
func FuzzFrame(f *testing.F) {
	message := func(from, to uint64) []byte {
		b, err := proto.Marshal(&raftpb.Message{Type: new(raftpb.MsgHeartbeat), From: new(from), To: new(to), Term: new(uint64(3))})
		if err != nil {
			f.Fatal(err)
		}
		return b
	}
	frame := func(req *peerv1.ExchangeRequest) []byte {
		b, err := proto.Marshal(req)
		if err != nil {
			f.Fatal(err)
		}
		return b
	}
	f.Add(frame(&peerv1.ExchangeRequest{Messages: [][]byte{message(2, 1)}}))
	f.Add(frame(&peerv1.ExchangeRequest{Messages: [][]byte{message(2, 1), message(3, 1)}}))
	f.Add(frame(&peerv1.ExchangeRequest{Messages: [][]byte{{0xff}}, Announcement: &peerv1.Announcement{Name: "n2"}}))
	f.Add(frame(&peerv1.ExchangeRequest{Announcement: announcementTo(Announcement{Name: "n2", Applied: 1 << 63, FileBytes: -1, Verified: true})}))
	tr := quiet(f, Config{Name: "n1"})
	f.Fuzz(func(t *testing.T, b []byte) {
		req := &peerv1.ExchangeRequest{}
		if proto.Unmarshal(b, req) != nil {
			return
		}
		store := newFake(1)
		err := tr.takeFrame(&attached{store: store, id: store.id}, 2, req)
		if code := status.Code(err); err != nil && code != codes.InvalidArgument {
			t.Errorf("got %v, want InvalidArgument", err)
		}
		for _, m := range store.got {
			if m.GetFrom() != 2 || m.GetTo() != 1 {
				t.Errorf("passed on: a message from %x to %x", m.GetFrom(), m.GetTo())
			}
			if sizeOf(m) < len(m.GetContext()) || classOf(m) > transit {
				t.Errorf("of class %v, about %d octets", classOf(m), sizeOf(m))
			}
		}
		if an := req.GetAnnouncement(); err == nil && an != nil {
			if again := announcementFrom(announcementTo(announcementFrom(an))); again != announcementFrom(an) {
				t.Errorf("%+v comes back as %+v", announcementFrom(an), again)
			}
			if heard := tr.Heard()[2]; heard.Announcement != announcementFrom(an) {
				t.Errorf("heard %+v, said was %+v", heard.Announcement, announcementFrom(an))
			}
		}
	})
}

// FuzzGreeting judges what a founder may answer. Nobody becomes a founder under
// another name, without an id or with another list.
func FuzzGreeting(f *testing.F) {
	add := func(g *peerv1.GreetResponse) {
		b, err := proto.Marshal(g)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	names := []string{"n1", "n2", "n3"}
	add(&peerv1.GreetResponse{Name: "n2", Birth: 7, Initial: names, Info: infoTo(Info{PeerAddress: "b:1"})})
	add(&peerv1.GreetResponse{Name: "n2", Birth: 7, Initial: names[:2]})
	add(&peerv1.GreetResponse{Name: "n2", Exists: true, Identity: identityTo(raftstore.Identity{Cluster: raftstore.ClusterID{1}, Incarnation: 1}), Members: []*peerv1.Member{{Id: 5, Name: "n1"}, {Id: 7, Name: "n2"}, {Id: 9, Name: "n3"}}})
	add(&peerv1.GreetResponse{Name: "n2", Exists: true, Identity: identityTo(raftstore.Identity{Cluster: raftstore.ClusterID{1}, Incarnation: 2}), Members: []*peerv1.Member{{Id: 6, Name: "n1"}}})
	tr := quiet(f, Config{Name: "n1", Birth: 5, Initial: names})
	f.Fuzz(func(t *testing.T, b []byte) {
		g := &peerv1.GreetResponse{}
		if proto.Unmarshal(b, g) != nil {
			return
		}
		m, done, err := tr.judgeGreeting(Founder{Name: "n2", Address: "b:1"}, g)
		if n := boolCount(m != nil, done != nil, err != nil); n != 1 {
			t.Fatalf("got %+v, %+v and %v, want one of them", m, done, err)
		}
		if m != nil && (m.Name != "n2" || m.ID == 0 || m.Learner || g.GetExists() || len(g.GetInitial()) != 3) {
			t.Errorf("%v: a founder %+v", g, m)
		}
		if done != nil && (done.Join == nil || done.Join.Node != 5 || !g.GetExists()) {
			t.Errorf("%v: go on in %+v", g, done)
		}
	})
}

func boolCount(all ...bool) (n int) {
	for _, b := range all {
		if b {
			n++
		}
	}
	return n
}

// FuzzArriving receives a snapshot in parts, over what an earlier attempt left.
// It is whole only if it is what was offered.
func FuzzArriving(f *testing.F) {
	whole := make([]byte, 3*idBytes)
	for i := range whole {
		whole[i] = byte(i)
	}
	f.Add(whole, []byte{}, uint16(10), true)
	f.Add(whole, whole[:20], uint16(20), true)
	f.Add(whole, whole, uint16(0), true)
	f.Add(whole, []byte("what was left of another, and longer than the one that is offered now, by far"), uint16(1), true)
	f.Add(whole, []byte{}, uint16(10), false)
	f.Fuzz(func(t *testing.T, snapshot, left []byte, at uint16, right bool) {
		path := filepath.Join(t.TempDir(), "x"+partSuffix)
		if err := os.WriteFile(path, left, 0o600); err != nil {
			t.Fatal(err)
		}
		offer := &peerv1.SnapshotOffer{Size: uint64(len(snapshot))}
		if len(snapshot) >= idBytes {
			offer.Id = snapshot[len(snapshot)-idBytes:]
		}
		a, err := arrive(path, offer)
		if err != nil {
			if len(snapshot) >= idBytes || status.Code(err) != codes.InvalidArgument {
				t.Errorf("an offer of %d octets: %v", len(snapshot), err)
			}
			return
		}
		defer a.f.Close()
		began := a.at
		if began > uint64(len(snapshot)) {
			t.Fatalf("it wants octet %d of %d", began, len(snapshot))
		}
		for a.at < uint64(len(snapshot)) {
			n := min(uint64(at)%7+1, uint64(len(snapshot))-a.at)
			data := snapshot[a.at : a.at+n]
			p := &peerv1.SnapshotPart{Offset: a.at, Data: data, Crc: crc32.Checksum(data, castagnoli)}
			if !right && uint64(at)%uint64(len(snapshot)) >= a.at {
				p.Crc++
				if a.take(p) == nil {
					t.Fatal("a part with a wrong checksum was taken")
				}
				return
			}
			p.Offset++
			if a.take(p) == nil {
				t.Fatal("a part at another offset was taken")
			}
			p.Offset--
			if err := a.take(p); err != nil {
				t.Fatal(err)
			}
		}
		ok, err := a.whole()
		got, readErr := io.ReadAll(io.NewSectionReader(a.f, 0, int64(len(snapshot))))
		if readErr != nil {
			t.Fatal(readErr)
		}
		same := string(got[len(got)-idBytes:]) == string(offer.Id)
		if ok != same || ok == (err != nil) {
			t.Errorf("%d octets kept, %d offered: whole %v, %v; the ends are the same: %v", began, len(snapshot), ok, err, same)
		}
	})
}

// FuzzOutcome: what a leader says of a command becomes one of raftstore's
// sentinels, and says the same when it is passed on.
func FuzzOutcome(f *testing.F) {
	for i := range int32(10) {
		f.Add(i, uint64(i%2), "text")
	}
	sentinels := []error{raftstore.ErrNoLeader, raftstore.ErrUnknown, raftstore.ErrOverloaded, raftstore.ErrTooLarge, raftstore.ErrClosed, raftstore.ErrStopped, raftstore.ErrNotInForce}
	f.Fuzz(func(t *testing.T, outcome int32, leader uint64, text string) {
		resp := &peerv1.ProposeResponse{Outcome: peerv1.ProposeOutcome(outcome), Leader: leader, Text: text}
		err := outcomeError(resp)
		if err == nil {
			if resp.Outcome != peerv1.ProposeOutcome_PROPOSE_OUTCOME_DONE {
				t.Errorf("outcome %d: nothing is known of it, and it counts as done", outcome)
			}
			return
		}
		known := false
		for _, sentinel := range sentinels {
			known = known || errors.Is(err, sentinel)
		}
		other, ok := errors.AsType[*raftstore.NotLeaderError](err)
		if !known && (!ok || other.Leader != leader) {
			t.Errorf("outcome %d: %v, which is no sentinel", outcome, err)
		}
		again := outcomeError(outcomeOf(fmt.Errorf("wrapped: %w", err)))
		for _, sentinel := range sentinels {
			if errors.Is(err, sentinel) != errors.Is(again, sentinel) {
				t.Errorf("outcome %d: %v, passed on %v", outcome, err, again)
			}
		}
	})
}
