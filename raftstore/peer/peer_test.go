package peer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/goleak"

	"github.com/rookery-mail/rookery/internal/kv"
	"github.com/rookery-mail/rookery/internal/logbuf"
	"github.com/rookery-mail/rookery/raftstore"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// logBook is what was logged, as text.
type logBook struct{ logbuf.Buffer }

func (b *logBook) count(text string) int { return strings.Count(b.String(), text) }

// until waits for something that must come about; the machine may be busy.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("after 20 s: %s has not come about", what)
}

// end is a transport on a loopback port.
type end struct {
	*Transport
	address string
	log     *logBook
	served  chan error
}

func newEnd(t *testing.T, cfg Config) *end {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return newEndAt(t, cfg, l)
}

func newEndAt(t *testing.T, cfg Config, l net.Listener) *end {
	t.Helper()
	e := &end{address: l.Addr().String(), log: &logBook{}, served: make(chan error, 1)}
	if cfg.Info.PeerAddress == "" {
		cfg.Info.PeerAddress = e.address
	}
	cfg.Log = slog.New(slog.NewTextHandler(e.log, nil))
	var err error
	if e.Transport, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	go func() { e.served <- e.Serve(l) }()
	t.Cleanup(func() {
		e.Close()
		if err := <-e.served; err != nil {
			t.Error(err)
		}
		e.served <- nil
	})
	return e
}

// relisten listens where another has stopped to.
func relisten(t *testing.T, address string) (l net.Listener) {
	t.Helper()
	until(t, "the port", func() bool {
		var err error
		l, err = net.Listen("tcp", address)
		return err == nil
	})
	return l
}

// fakeStore notes what comes in.
type fakeStore struct {
	id raftstore.Identity

	mu          sync.Mutex
	status      raftstore.Status
	got         []*raftpb.Message
	unreachable map[uint64]int
	lost        []uint64
	propose     func(context.Context, []byte) ([]byte, error)
	step        func(*raftpb.Message)
}

func newFake(node uint64, members ...raftstore.Member) *fakeStore {
	id := raftstore.Identity{Cluster: raftstore.ClusterID{1}, Incarnation: 1, Shard: 1, Node: node}
	return &fakeStore{id: id, status: raftstore.Status{Identity: id, Members: members}, unreachable: map[uint64]int{}}
}

func (f *fakeStore) Identity() raftstore.Identity { return f.id }

func (f *fakeStore) Status() raftstore.Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.status
}

func (f *fakeStore) Step(m *raftpb.Message) {
	f.mu.Lock()
	f.got = append(f.got, m)
	step := f.step
	f.mu.Unlock()
	if step != nil {
		step(m)
	}
}

func (f *fakeStore) Unreachable(node uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.unreachable[node]++
}

func (f *fakeStore) Lost(node uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lost = append(f.lost, node)
}

func (f *fakeStore) Propose(ctx context.Context, command []byte) ([]byte, error) {
	return f.propose(ctx, command)
}

func (f *fakeStore) Read(context.Context, raftstore.Consistency) (*raftstore.View, error) {
	return nil, raftstore.ErrNoLeader
}

func (f *fakeStore) received(kind raftpb.MessageType) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, m := range f.got {
		if m.GetType() == kind {
			n++
		}
	}
	return n
}

func (f *fakeStore) wasLost(node uint64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Contains(f.lost, node)
}

func member(id uint64, e *end) raftstore.Member {
	return raftstore.Member{ID: id, Name: e.cfg.Name, Context: e.cfg.Info.Context()}
}

// pair are two connected nodes with stores that only take notes.
func pair(t *testing.T) (a, b *end, sa, sb *fakeStore) {
	t.Helper()
	a, b = newEnd(t, Config{Name: "n1", Version: "1.2"}), newEnd(t, Config{Name: "n2", Version: "1.2"})
	members := []raftstore.Member{member(1, a), member(2, b)}
	sa, sb = newFake(1, members...), newFake(2, members...)
	a.Attach(sa, nil)
	b.Attach(sb, nil)
	until(t, "a connection both ways", func() bool {
		return a.link(2).connected.Load() && b.link(1).connected.Load()
	})
	return a, b, sa, sb
}

func message(kind raftpb.MessageType, from, to uint64, size int) *raftpb.Message {
	m := &raftpb.Message{Type: kind.Enum(), From: new(from), To: new(to), Term: new(uint64(1))}
	if size > 0 {
		m.Entries = []*raftpb.Entry{{Term: new(uint64(1)), Index: new(uint64(1)), Data: make([]byte, size)}}
	}
	return m
}

// TestMessages: what is sent arrives, small and large, and what a node says of
// itself is known.
func TestMessages(t *testing.T) {
	a, b, _, sb := pair(t)
	a.Send([]*raftpb.Message{
		message(raftpb.MsgHeartbeat, 1, 2, 0), message(raftpb.MsgApp, 1, 2, 9<<20), message(raftpb.MsgApp, 1, 2, 10), message(raftpb.MsgApp, 1, 2, 0),
	})
	until(t, "the messages", func() bool {
		return sb.received(raftpb.MsgHeartbeat) == 1 && sb.received(raftpb.MsgApp) == 3
	})
	until(t, "the announcement", func() bool { return b.Heard()[1].Name == "n1" })
	if h := b.Heard()[1]; h.Version != "1.2" || h.Since < 0 || h.Since > time.Minute {
		t.Errorf("heard %+v", h)
	}
}

// TestSlowAppends: appends that are not taken hold up neither heartbeats nor
// the sender; what is too much is dropped, and Raft is told.
func TestSlowAppends(t *testing.T) {
	a, _, sa, sb := pair(t)
	release := make(chan struct{})
	sb.mu.Lock()
	sb.step = func(m *raftpb.Message) {
		if m.GetType() == raftpb.MsgApp {
			<-release
		}
	}
	sb.mu.Unlock()
	defer close(release)
	for range 200 {
		a.Send([]*raftpb.Message{message(raftpb.MsgApp, 1, 2, 1<<20)})
	}
	sa.mu.Lock()
	told := sa.unreachable[2]
	sa.mu.Unlock()
	if told == 0 {
		t.Error("200 MiB of appends fit in a queue of 64")
	}
	a.Send([]*raftpb.Message{message(raftpb.MsgHeartbeat, 1, 2, 0)})
	until(t, "a heartbeat past the appends", func() bool { return sb.received(raftpb.MsgHeartbeat) == 1 })
}

func TestOutbox(t *testing.T) {
	o := newOutbox(3, 1000)
	if !o.put(message(raftpb.MsgApp, 1, 2, 5000)) {
		t.Error("an empty queue refuses a large message, which then never goes")
	}
	if o.put(message(raftpb.MsgApp, 1, 2, 0)) {
		t.Error("a queue over its octets takes another")
	}
	if items, more := o.take(10); len(items) != 1 || more {
		t.Errorf("got %d messages, more: %t; want the one", len(items), more)
	}
	for i := range 5 {
		if got := o.put(message(raftpb.MsgApp, 1, 2, 0)); got != (i < 3) {
			t.Errorf("message %d: taken %t", i, got)
		}
	}
	if items, more := o.take(130); len(items) != 2 || !more {
		t.Errorf("a frame of 130 octets holds %d messages, more: %t; want 2 of 3", len(items), more)
	}
	if n := o.clear(); n != 1 || o.bytes != 0 {
		t.Errorf("cleared %d, %d octets left", n, o.bytes)
	}
}

// TestLost: a process that is gone is told from one that is silent.
func TestLost(t *testing.T) {
	a, b, sa, sb := pair(t)
	b.Close()
	until(t, "the loss of n2", func() bool { return sa.wasLost(2) })
	a.Send([]*raftpb.Message{message(raftpb.MsgHeartbeat, 1, 2, 0)})
	until(t, "the news that n2 is unreachable", func() bool {
		sa.mu.Lock()
		defer sa.mu.Unlock()
		return sa.unreachable[2] > 0
	})
	if n := a.log.count("peer not connected"); n != 1 {
		t.Errorf("a lost peer was logged %d times, want once:\n%s", n, a.log)
	}
	// Another process in its place is as good a proof.
	again := newEndAt(t, Config{Name: "n2"}, relisten(t, b.address))
	again.Attach(sb, nil)
	until(t, "the connection to the new process", func() bool { return a.link(2) != nil && a.link(2).connected.Load() })
	sa.mu.Lock()
	defer sa.mu.Unlock()
	if len(sa.lost) != 2 {
		t.Errorf("lost: got %v, want n2 when it went and when another came", sa.lost)
	}
}

// TestStrangers: nodes that do not belong together say why, once.
func TestStrangers(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*fakeStore)
		want   []string
	}{
		{"cluster", func(s *fakeStore) { s.id.Cluster = raftstore.ClusterID{9} }, []string{
			"node n2 at ", "belongs to cluster 09000000000000000000000000000000 incarnation 1, this is cluster 01000000000000000000000000000000 incarnation 1", "another cluster"}},
		{"incarnation", func(s *fakeStore) { s.id.Incarnation = 2 }, []string{"incarnation 2, this is", "this node has missed a restore"}},
		{"node", func(s *fakeStore) { s.id.Node = 77 }, []string{"is n2 with id 4d, the membership says 2", "rookeryctl member replace n2"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, b := newEnd(t, Config{Name: "n1"}), newEnd(t, Config{Name: "n2"})
			sa, sb := newFake(1, member(1, a), member(2, b)), newFake(2)
			tt.change(sb)
			b.Attach(sb, nil)
			a.Attach(sa, nil)
			until(t, "the refusal", func() bool { return a.log.count("peer not connected") > 0 })
			time.Sleep(200 * time.Millisecond) // some attempts
			for _, text := range tt.want {
				if !strings.Contains(a.log.String(), text) {
					t.Errorf("the log of n1 lacks %q:\n%s", text, a.log)
				}
			}
			if n, m := a.log.count("level=WARN"), b.log.count("level=WARN"); n != 1 || m != 1 {
				t.Errorf("warned %d times here and %d there, want once each:\n%s\n%s", n, m, a.log, b.log)
			}
			a.Send([]*raftpb.Message{message(raftpb.MsgHeartbeat, 1, 2, 0)})
			if len(sb.got) != 0 {
				t.Error("a stranger's message arrived")
			}
		})
	}
}

// TestGuest: a node that no membership names is heard, and answered.
func TestGuest(t *testing.T) {
	a, b := newEnd(t, Config{Name: "n1"}), newEnd(t, Config{Name: "n2"})
	sa, sb := newFake(1, member(1, a), member(2, b)), newFake(2)
	b.Attach(sb, nil)
	a.Attach(sa, nil)
	a.Send([]*raftpb.Message{message(raftpb.MsgHeartbeat, 1, 2, 0)})
	until(t, "the message", func() bool { return sb.received(raftpb.MsgHeartbeat) == 1 })
	until(t, "the answer", func() bool {
		b.Send([]*raftpb.Message{message(raftpb.MsgHeartbeatResp, 2, 1, 0)})
		return sa.received(raftpb.MsgHeartbeatResp) > 0
	})
}

func TestInfo(t *testing.T) {
	want := Info{PeerAddress: "10.0.0.1:7906", ClientAddress: "[::1]:7905", Site: "Haus 1"}
	if got := ParseInfo(want.Context()); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got := ParseInfo([]byte("127.0.0.1:7906")); got != (Info{PeerAddress: "127.0.0.1:7906"}) {
		t.Errorf("an earlier release's address: got %+v", got)
	}
	if got := ParseInfo([]byte{infoTag, 0xff}); got != (Info{}) {
		t.Errorf("garbage: got %+v", got)
	}
}

// TestAuthorize: who is no peer is answered nothing.
func TestAuthorize(t *testing.T) {
	no := errors.New("no peer")
	b := newEnd(t, Config{Name: "n2", Birth: 2, Authorize: func(context.Context, string) error { return no }})
	a := newEnd(t, Config{Name: "n1", Birth: 1})
	if _, err := a.greet(t.Context(), "n2", b.address); err == nil || !strings.Contains(err.Error(), "no peer") {
		t.Errorf("Greet: got %v, want the refusal", err)
	}
	sa := newFake(1, member(1, a), member(2, b))
	a.Attach(sa, nil)
	b.Attach(newFake(2), nil)
	until(t, "the refusal", func() bool { return a.log.count("no peer") > 0 })
}

// testMachine counts what it applies, and keeps it.
type testMachine struct{}

var (
	counterBucket = kv.Bucket("counter")
	counterKey    = []byte("n")
)

func (testMachine) Buckets() []kv.Bucket { return []kv.Bucket{counterBucket} }

func (testMachine) Apply(tx kv.Tx, _ raftstore.Stamp, command []byte) ([]byte, error) {
	n := number(tx) + 1
	tx.Put(counterBucket, counterKey, fmt.Append(nil, n))
	tx.Put(counterBucket, append([]byte("c"), command...), fmt.Append(nil, n))
	return fmt.Appendf(nil, "%s %d", command, n), nil
}

func (testMachine) Due(kv.Reader, uint64) (int64, []byte) { return -1, nil }

func number(r kv.Reader) (n int) {
	_, _ = fmt.Sscan(string(r.Get(counterBucket, counterKey)), &n) // absent: 0
	return n
}
