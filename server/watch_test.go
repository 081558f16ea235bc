package server

import (
	"context"
	"fmt"
	"maps"
	"net"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/directory/machine"
	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
)

// watched returns what a watch says up to its first mark.
func (n *testNode) watched(t testing.TB, req *apiv1.WatchRequest) ([]*apiv1.WatchResponse, error) {
	t.Helper()
	return watched(t, n.DirectoryServiceClient, req)
}

func watched(t testing.TB, to apiv1.DirectoryServiceClient, req *apiv1.WatchRequest) (all []*apiv1.WatchResponse, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	stream, err := to.Watch(ctx, req)
	for err == nil {
		var m *apiv1.WatchResponse
		if m, err = stream.Recv(); err == nil {
			if all = append(all, m); m.GetMark() {
				return all, nil
			}
		}
	}
	return all, err
}

// untilMark reads a watch up to the mark that is not before revision.
func untilMark(t testing.TB, stream grpc.ServerStreamingClient[apiv1.WatchResponse], revision uint64) (events []*apiv1.WatchEvent, at *apiv1.ResponseHeader) {
	t.Helper()
	for {
		m, err := stream.Recv()
		if err != nil {
			t.Fatalf("watch, waiting for revision %d: %v", revision, err)
		}
		events = append(events, m.GetEvents()...)
		if m.GetMark() && m.GetHeader().GetRevision() >= revision {
			return events, m.GetHeader()
		}
	}
}

func eventName(e *apiv1.WatchEvent) string {
	switch t := e.GetThing().(type) {
	case *apiv1.WatchEvent_Mailbox:
		return "mailbox " + t.Mailbox.GetMailbox()
	case *apiv1.WatchEvent_Reservation:
		return "reservation " + t.Reservation.GetMailbox()
	case *apiv1.WatchEvent_Subscription:
		return "subscription " + t.Subscription.GetUser() + " " + t.Subscription.GetMailbox()
	case *apiv1.WatchEvent_Backend:
		return fmt.Sprint("backend ", t.Backend.GetId())
	case *apiv1.WatchEvent_Group:
		return fmt.Sprint("group ", t.Group.GetId())
	case *apiv1.WatchEvent_Hold:
		return fmt.Sprint("hold ", t.Hold.GetKind(), t.Hold.GetKey())
	}
	return "settings"
}

func eventNames(all []*apiv1.WatchResponse) map[string]bool {
	names := map[string]bool{}
	for _, m := range all {
		for _, e := range m.GetEvents() {
			names[eventName(e)] = true
		}
	}
	return names
}

func dialServer(t testing.TB, s *Server) apiv1.DirectoryServiceClient {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///n", grpc.WithContextDialer(s.DialMemory), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return apiv1.NewDirectoryServiceClient(conn)
}

// From every revision there was, a resume tells exactly what the change log has
// behind it, or COMPACTED if rows of it are gone, and only then. Revisions of many
// rows are told whole, however small the pieces are.
func TestWatchResume(t *testing.T) {
	for _, piece := range []int{1, 2, 1000} {
		l := newMemoryLog(t)
		settings := directory.DefaultSettings()
		settings.LogKeep = 50
		l.apply(t, 0, machine.SetSettings{Settings: settings})
		for i := range 140 {
			var ops []machine.Op
			for j := range 1 + i%4 {
				ops = append(ops, machine.Assert{Mailbox: directory.MailboxName(fmt.Sprintf("user.u%d.f%d", i, j)), Server: "be1"})
			}
			if i%7 == 0 {
				ops = []machine.Op{machine.Release{Mailbox: "none", Server: "be1"}} // a revision without a row
			}
			l.apply(t, 0, machine.Batch{Ops: ops})
		}
		state, last := l.store.Snapshot(), l.revision()
		_, logFrom, err := l.m.Revisions(state)
		if err != nil || logFrom < 10 || logFrom > last-60 {
			t.Fatalf("the log begins with %d of %d, %v; the test wants both", logFrom, last, err)
		}
		s := newReplicaServer(t, newReplica(l), "n1", func(lim *watchLimits) { lim.pieceEvents, lim.pieceRows = piece, 2*piece })
		to := dialServer(t, s)
		for from := directory.Revision(1); from <= last; from++ {
			if piece < 1000 && from > 30 && from < last-30 && from != logFrom-2 && from != logFrom-1 && from != logFrom {
				continue
			}
			token := token{cluster: "c1", incarnation: 1, shard: 1, revision: from}
			got, err := watched(t, to, &apiv1.WatchRequest{From: token.encode()})
			if from+1 < logFrom {
				wantReason(t, fmt.Sprintf("from revision %d of %d to %d", from, logFrom, last), err, apiv1.Reason_REASON_COMPACTED)
				continue
			}
			if err != nil {
				t.Errorf("from revision %d of %d to %d: %v", from, logFrom, last, err)
				continue
			}
			want := map[string]bool{}
			if _, err := l.m.Changes(state, machine.After(from), func(c *directory.Change) bool {
				switch c.Kind {
				case directory.ChangeMailbox:
					want["mailbox "+string(c.Name)] = true
				case directory.ChangeBackend:
					want[fmt.Sprint("backend ", c.Server)] = true
				case directory.ChangeGroup:
					want[fmt.Sprint("group ", c.To)] = true
				case directory.ChangeSettings:
					want["settings"] = true
				default:
					t.Fatalf("a row of kind %d", c.Kind)
				}
				return true
			}); err != nil {
				t.Fatal(err)
			}
			if names := eventNames(got); !maps.Equal(names, want) {
				t.Errorf("pieces of %d, from revision %d: told %v, want %v", piece, from, slices.Sorted(maps.Keys(names)), slices.Sorted(maps.Keys(want)))
			}
			if h := got[len(got)-1].GetHeader(); h.GetRevision() != uint64(last) {
				t.Errorf("from revision %d: a mark at %d, want %d", from, h.GetRevision(), last)
			}
		}
	}
}

// A watcher that takes in nothing is cut, harms nobody and can go on from its mark.
func TestWatchSlow(t *testing.T) {
	for _, test := range []struct {
		name  string
		limit func(*watchLimits)
		why   string
	}{
		{"too many changes", func(l *watchLimits) { l.entries = 40 }, cutSlow},
		{"too large changes", func(l *watchLimits) { l.octets = 200 << 10 }, cutSlow},
		{"too much for the node", func(l *watchLimits) { l.held = 200 << 10 }, cutMemory},
	} {
		t.Run(test.name, func(t *testing.T) {
			registry := prometheus.NewRegistry()
			n := newTestNode(t, func(c *Config) { c.Metrics = registry })
			n.watch.limits.interval = 0
			test.limit(&n.watch.limits)
			n.assert(t, be1, "user.alice")
			first, err := n.watched(t, &apiv1.WatchRequest{Details: true, Filter: &apiv1.WatchRequest_Prefix{Prefix: "user."}})
			if err != nil {
				t.Fatal(err)
			}
			mark := first[len(first)-1].GetHeader()
			req := &apiv1.WatchRequest{Details: true, Filter: &apiv1.WatchRequest_Prefix{Prefix: "user."}, From: mark.GetToken()}
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			lazy, err := n.Watch(ctx, req)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := lazy.Recv(); err != nil { // it has begun
				t.Fatal(err)
			}
			keen, err := n.Watch(t.Context(), &apiv1.WatchRequest{Filter: &apiv1.WatchRequest_Prefix{Prefix: "user.x"}})
			if err != nil {
				t.Fatal(err)
			}
			untilMark(t, keen, 1)
			acl := "anyone\tlrs\t" + strings.Repeat("someone\tl\t", 800)
			want := map[string]bool{}
			var last *apiv1.ResponseHeader
			for i := range 150 {
				name := fmt.Sprintf("user.x%d", i)
				want["mailbox "+name] = true
				resp, err := n.Assert(t.Context(), &apiv1.AssertRequest{Assert: &apiv1.Assert{Mailbox: name, Server: be1, Acl: &acl}})
				if err != nil {
					t.Fatal(err)
				}
				last = resp.GetHeader()
				// The other one is told meanwhile.
				untilMark(t, keen, last.GetRevision())
			}
			told := map[string]bool{}
			for err == nil {
				var m *apiv1.WatchResponse
				if m, err = lazy.Recv(); err == nil {
					maps.Copy(told, eventNames([]*apiv1.WatchResponse{m}))
					if m.GetMark() {
						mark = m.GetHeader()
					}
				}
			}
			wantReason(t, "the lazy watcher", err, apiv1.Reason_REASON_SLOW_WATCHER)
			if metadataOfStatus(err)["revision"] == "" {
				t.Errorf("the cut names no revision: %v", err)
			}
			req.From = mark.GetToken()
			rest, err := n.watched(t, req)
			if err != nil {
				t.Fatal(err)
			}
			maps.Copy(told, eventNames(rest))
			for name := range want {
				if !told[name] {
					t.Errorf("%s was not told before the cut or after it", name)
				}
			}
			if got := gathered(t, registry, "rookery_watch_cut_total", test.why); got != 1 {
				t.Errorf("cut, %s: got %v, want 1", test.why, got)
			}
			if held := n.watch.held.Load(); held > 200<<10 {
				t.Errorf("%d octets are held although nobody waits", held)
			}
		})
	}
}

func gathered(t testing.TB, registry *prometheus.Registry, name, value string) float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == name && (value == "" || label(m, "reason") == value) {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
			}
		}
	}
	t.Fatalf("no metric %s of %q", name, value)
	return 0
}

// What an operator sees; and that a change told many times is coalesced.
func TestWatchMetrics(t *testing.T) {
	registry := prometheus.NewRegistry()
	n := newTestNode(t, func(c *Config) { c.Metrics = registry })
	n.assert(t, be1, "user.alice")
	stream, err := n.Watch(t.Context(), &apiv1.WatchRequest{})
	if err != nil {
		t.Fatal(err)
	}
	untilMark(t, stream, 1)
	if got := gathered(t, registry, "rookery_watch_watchers", ""); got != 1 {
		t.Errorf("watchers: got %v, want 1", got)
	}
	items := make([]*apiv1.BatchItem, 50)
	for i := range items {
		items[i] = &apiv1.BatchItem{Op: &apiv1.BatchItem_Assert{Assert: &apiv1.Assert{Mailbox: "user.alice", Server: be1, Partition: fmt.Sprint("p", i)}}}
	}
	before := gathered(t, registry, "rookery_watch_events_total", "")
	resp, err := n.Batch(t.Context(), &apiv1.BatchRequest{Items: items})
	if err != nil {
		t.Fatal(err)
	}
	events, _ := untilMark(t, stream, resp.GetHeader().GetRevision())
	if len(events) != 1 {
		t.Errorf("50 changes of one mailbox: told %d events, want 1", len(events))
	}
	for deadline := time.Now().Add(5 * time.Second); gathered(t, registry, "rookery_watch_events_total", "") != before+1; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("events: got %v, want %v", gathered(t, registry, "rookery_watch_events_total", ""), before+1)
		}
	}
	if got := gathered(t, registry, "rookery_watch_coalesced_total", ""); got != 49 {
		t.Errorf("coalesced: got %v, want 49", got)
	}
	if got := gathered(t, registry, "rookery_watch_lag_seconds", ""); got != 1 {
		t.Errorf("lag: got %v observations, want 1", got)
	}
}

// A thousand watchers on one node: each gets its own and no other's, and they cost
// little, idle and busy.
func TestWatchThousand(t *testing.T) {
	n := newTestNode(t)
	const watchers = 1000
	req := func(i int) *apiv1.WatchRequest {
		return &apiv1.WatchRequest{Filter: &apiv1.WatchRequest_User{User: fmt.Sprint("u", i)}, Kinds: []apiv1.WatchKind{apiv1.WatchKind_WATCH_KIND_MAILBOX}, ProgressMs: 60_000}
	}
	before := heap()
	streams := make([]grpc.ServerStreamingClient[apiv1.WatchResponse], watchers)
	for i := range streams {
		var err error
		if streams[i], err = n.Watch(t.Context(), req(i)); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range streams {
		untilMark(t, s, 1)
	}
	// Both ends of the connection are in this process.
	if each := (heap() - before) / watchers; each > 200<<10 {
		t.Errorf("an idle watcher takes %d KiB, want at most 200", each>>10)
	} else {
		t.Logf("an idle watcher takes %d KiB, its client included", each>>10)
	}
	var items []*apiv1.BatchItem
	for i := range watchers {
		items = append(items, &apiv1.BatchItem{Op: &apiv1.BatchItem_Assert{Assert: &apiv1.Assert{Mailbox: fmt.Sprintf("user.u%d", i), Server: be1}}})
	}
	var last uint64
	for round := range 3 {
		for _, item := range items {
			item.GetAssert().Partition = fmt.Sprint("p", round)
		}
		resp, err := n.Batch(t.Context(), &apiv1.BatchRequest{Items: items})
		if err != nil {
			t.Fatal(err)
		}
		last = resp.GetHeader().GetRevision()
	}
	for i, s := range streams {
		events, _ := untilMark(t, s, last)
		for _, e := range events {
			if got, want := eventName(e), fmt.Sprintf("mailbox user.u%d", i); got != want {
				t.Errorf("watcher %d was told of %s", i, got)
			}
		}
		if len(events) == 0 {
			t.Errorf("watcher %d was told nothing", i)
		}
	}
	if held := n.watch.held.Load(); held != 0 {
		t.Errorf("%d octets are held although all is told", held)
	}
}

func heap() int {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapInuse + m.StackInuse)
}

// A node that stops ends its watches at once, in a way that they go on elsewhere.
func TestWatchShutdown(t *testing.T) {
	n := newTestNode(t)
	var streams []grpc.ServerStreamingClient[apiv1.WatchResponse]
	for range 20 {
		s, err := n.Watch(t.Context(), &apiv1.WatchRequest{})
		if err != nil {
			t.Fatal(err)
		}
		untilMark(t, s, 1)
		streams = append(streams, s)
	}
	begun := time.Now()
	n.Close(t.Context())
	if took := time.Since(begun); took >= closingPatient {
		t.Errorf("closing took %v: the watches were waited for", took)
	}
	for _, s := range streams {
		_, err := s.Recv()
		for err == nil {
			_, err = s.Recv()
		}
		wantReason(t, "a watch of a closing node", err, apiv1.Reason_REASON_CLOSED)
	}
	if n.watch.stop != nil || len(n.watch.groups) != 0 {
		t.Error("the hub goes on without watchers")
	}
}

// The passes end with the last watcher and begin with the next, which misses nothing.
func TestWatchIdleHub(t *testing.T) {
	n := newTestNode(t)
	var from []byte
	for i := range 3 {
		ctx, cancel := context.WithCancel(t.Context())
		stream, err := n.Watch(ctx, &apiv1.WatchRequest{From: from})
		if err != nil {
			t.Fatal(err)
		}
		events, at := untilMark(t, stream, 1)
		if want := fmt.Sprintf("mailbox user.between%d", i-1); i > 0 && !slices.ContainsFunc(events, func(e *apiv1.WatchEvent) bool { return eventName(e) == want }) {
			t.Errorf("%s was not told", want)
		}
		n.assert(t, be1, fmt.Sprintf("user.during%d", i))
		events, at = untilMark(t, stream, at.GetRevision()+1)
		if len(events) == 0 {
			t.Errorf("nothing was told in round %d", i)
		}
		from = at.GetToken()
		cancel()
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
			n.watch.mu.Lock()
			idle := n.watch.stop == nil && n.watch.watchers == 0 && len(n.watch.groups) == 0 && len(n.watch.byNothing) == 0
			n.watch.mu.Unlock()
			if idle {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal("the hub does not end")
			}
		}
		n.assert(t, be1, fmt.Sprintf("user.between%d", i))
	}
}

// A mark comes although nothing that is covered changed: whoever wrote can wait for it.
func TestWatchBarrier(t *testing.T) {
	n := newTestNode(t)
	stream, err := n.Watch(t.Context(), &apiv1.WatchRequest{Filter: &apiv1.WatchRequest_User{User: "alice"}, Kinds: []apiv1.WatchKind{apiv1.WatchKind_WATCH_KIND_MAILBOX}, ProgressMs: 1})
	if err != nil {
		t.Fatal(err)
	}
	untilMark(t, stream, 1)
	resp, err := n.Assert(t.Context(), &apiv1.AssertRequest{Assert: &apiv1.Assert{Mailbox: "user.bob", Server: be1}})
	if err != nil {
		t.Fatal(err)
	}
	if events, _ := untilMark(t, stream, resp.GetHeader().GetRevision()); len(events) != 0 {
		t.Errorf("told of %v, want of nothing", events)
	}
}

func TestWatchRefused(t *testing.T) {
	l := newMemoryLog(t)
	l.apply(t, 0, machine.Assert{Mailbox: "user.alice", Server: "be1"})
	r := newReplica(l)
	s := newReplicaServer(t, r, "n1", func(lim *watchLimits) { lim.watchers = 3 })
	to := dialServer(t, s)
	at := func(incarnation directory.Incarnation, revision directory.Revision) []byte {
		return token{cluster: "c1", incarnation: incarnation, shard: 1, revision: revision}.encode()
	}
	server := func(name string) *apiv1.WatchRequest_Server { return &apiv1.WatchRequest_Server{Server: name} }
	for _, test := range []struct {
		name string
		req  *apiv1.WatchRequest
		want apiv1.Reason
	}{
		{"another life's token", &apiv1.WatchRequest{From: at(2, 1)}, apiv1.Reason_REASON_WRONG_INCARNATION},
		{"another life's token, seen", &apiv1.WatchRequest{Consistency: atLeast(at(2, 1))}, apiv1.Reason_REASON_WRONG_INCARNATION},
		{"no token", &apiv1.WatchRequest{From: []byte("x")}, apiv1.Reason_REASON_INVALID_TOKEN},
		{"a token not reached", &apiv1.WatchRequest{From: at(1, 99)}, apiv1.Reason_REASON_BEHIND},
		{"more seen than applied", &apiv1.WatchRequest{Consistency: atLeast(at(1, 99))}, apiv1.Reason_REASON_BEHIND},
		{"unknown server", &apiv1.WatchRequest{Filter: server("be9")}, apiv1.Reason_REASON_NOT_FOUND},
		{"unknown number", &apiv1.WatchRequest{Filter: server("be1"), ServerId: 7}, apiv1.Reason_REASON_NOT_FOUND},
		{"a number alone", &apiv1.WatchRequest{ServerId: 1}, apiv1.Reason_REASON_INVALID},
		{"a bad server", &apiv1.WatchRequest{Filter: server("b e")}, apiv1.Reason_REASON_INVALID_NAME},
		{"a bad user", &apiv1.WatchRequest{Filter: &apiv1.WatchRequest_User{User: "a/b\x00"}}, apiv1.Reason_REASON_INVALID_NAME},
		{"unknown kind", &apiv1.WatchRequest{Kinds: []apiv1.WatchKind{99}}, apiv1.Reason_REASON_INVALID},
		{"no kind", &apiv1.WatchRequest{Kinds: []apiv1.WatchKind{0}}, apiv1.Reason_REASON_INVALID},
		{"unknown mode", &apiv1.WatchRequest{Consistency: &apiv1.Consistency{Mode: 9}}, apiv1.Reason_REASON_INVALID},
	} {
		_, err := watched(t, to, test.req)
		wantReason(t, test.name, err, test.want)
	}
	// By its number, whatever the name.
	if got, err := watched(t, to, &apiv1.WatchRequest{Filter: server("other"), ServerId: 1}); err != nil || got[0].GetServerId() != 1 || !eventNames(got)["mailbox user.alice"] {
		t.Errorf("by number: got %v, %v", got, err)
	}
	// As many as the node takes. The last watcher's end is told to its handler, which
	// gives its place back in its own time.
	for deadline := time.Now().Add(20 * time.Second); s.watch.watching() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("a watch that was left keeps its place")
		}
	}
	for range 3 {
		stream, err := to.Watch(t.Context(), &apiv1.WatchRequest{})
		if err != nil {
			t.Fatal(err)
		}
		untilMark(t, stream, 1)
	}
	_, err := watched(t, to, &apiv1.WatchRequest{})
	wantReason(t, "one too many", err, apiv1.Reason_REASON_OVERLOADED)
}

// watching is how many watchers have a place.
func (h *watchHub) watching() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.watchers
}

// One connection cannot take all the places.
func TestWatchPerConnection(t *testing.T) {
	n := newTestNode(t)
	n.watch.limits.perConn = 2
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go n.Serve(l) // ends with its server
	dial := func() apiv1.DirectoryServiceClient {
		conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return apiv1.NewDirectoryServiceClient(conn)
	}
	one, other := dial(), dial()
	for range 2 {
		stream, err := one.Watch(t.Context(), &apiv1.WatchRequest{})
		if err != nil {
			t.Fatal(err)
		}
		untilMark(t, stream, 1)
	}
	_, err = watched(t, one, &apiv1.WatchRequest{})
	wantReason(t, "the third of a connection", err, apiv1.Reason_REASON_OVERLOADED)
	if _, err := watched(t, other, &apiv1.WatchRequest{}); err != nil {
		t.Errorf("the first of another: %v", err)
	}
}

// A node that is cut off says so instead of saying nothing.
func TestWatchTooStale(t *testing.T) {
	l := newMemoryLog(t)
	r := newReplica(l)
	to := dialServer(t, newReplicaServer(t, r, "n1", nil))
	stream, err := to.Watch(t.Context(), &apiv1.WatchRequest{ProgressMs: 50, Consistency: &apiv1.Consistency{MaxAgeMs: 1000}})
	if err != nil {
		t.Fatal(err)
	}
	untilMark(t, stream, 1)
	r.mu.Lock()
	r.age = time.Hour
	r.mu.Unlock()
	for err == nil {
		_, err = stream.Recv()
	}
	wantReason(t, "a watch of a node cut off", err, apiv1.Reason_REASON_TOO_STALE)
}

// A node that was carried past its change log, by a snapshot, cuts its watchers
// rather than leave something out.
func TestWatchPastLog(t *testing.T) {
	l := newMemoryLog(t)
	settings := directory.DefaultSettings()
	settings.LogKeep = 5
	l.apply(t, 0, machine.SetSettings{Settings: settings})
	r := newReplica(l)
	to := dialServer(t, newReplicaServer(t, r, "n1", nil))
	stream, err := to.Watch(t.Context(), &apiv1.WatchRequest{})
	if err != nil {
		t.Fatal(err)
	}
	_, mark := untilMark(t, stream, 1)
	for i := range 400 {
		l.apply(t, 0, machine.Assert{Mailbox: directory.MailboxName(fmt.Sprintf("user.u%d", i)), Server: "be1"})
	}
	r.advance()
	for err == nil {
		_, err = stream.Recv()
	}
	wantReason(t, "a watch past the log", err, apiv1.Reason_REASON_SLOW_WATCHER)
	_, err = watched(t, to, &apiv1.WatchRequest{From: mark.GetToken()})
	wantReason(t, "its resume", err, apiv1.Reason_REASON_COMPACTED)
}

// Of what changed while a listing or a resume was told, older states are left out; of
// a listing, what is still to come too.
func TestWatchQueue(t *testing.T) {
	h := newWatchHub(&Server{}, must(newWatchMetrics(nil)))
	g := &watchGroup{watchFilter: watchFilter{kinds: 0xffff}}
	w := &watcher{group: g, wake: make(chan struct{}, 1), compactAt: 100}
	g.watchers = []*watcher{w}
	event := func(name directory.MailboxName, body string) *watchEvent {
		return &watchEvent{thing: thing{kind: apiv1.WatchKind_WATCH_KIND_MAILBOX, name: name}, plain: []byte(body)}
	}
	hand := func(revision directory.Revision, events ...*watchEvent) {
		h.hand(g, newBatch(events, false, revision, time.Now(), 1))
		h.revision.Store(uint64(revision))
	}
	sent := func() (all string) {
		for {
			raw, b, _, err := h.next(w)
			if err != nil {
				t.Fatal(err)
			}
			if b == nil {
				return all
			}
			all += string(raw) + " "
		}
	}
	hand(5, event("a", "a5"), event("b", "b5"))
	hand(7, event("b", "b7"))
	if upTo, err := h.take(w, 7); err != nil || upTo != 7 {
		t.Errorf("take: got %d, %v", upTo, err)
	}
	if got := sent(); got != "a5 b7 " {
		t.Errorf("behind what was told at 7: sent %q, want b5 left out", got)
	}
	hand(8, event("a", "a8"), event("b", "b8"), event("c", "c8"))
	if _, err := h.take(w, 8); err != nil {
		t.Fatal(err)
	}
	h.keep(w, (&listPlace{stage: listMailboxes, name: "b", some: true}).told)
	if got := sent(); got != "a8 b8 " {
		t.Errorf("of a listing that has come to b: sent %q, want c8 left out", got)
	}
	if h.held.Load() != 0 || w.entries != 0 || w.octets != 0 || w.queued != 0 {
		t.Errorf("the books: %d held, %d entries, %d octets, %d queued, want nothing", h.held.Load(), w.entries, w.octets, w.queued)
	}
	for _, test := range []struct {
		place listPlace
		event *watchEvent
		want  bool
	}{
		{listPlace{stage: listReservations}, event("a", ""), false},
		{listPlace{stage: listInbox}, event("a", ""), false},
		{listPlace{stage: listMailboxes}, event("a", ""), false},
		{listPlace{stage: listSubscriptions}, event("a", ""), true},
		{listPlace{stage: listReservations}, &watchEvent{thing: thing{kind: apiv1.WatchKind_WATCH_KIND_HOLD}}, true},
		{listPlace{}, &watchEvent{thing: thing{kind: apiv1.WatchKind_WATCH_KIND_HOLD}}, false},
		{listPlace{stage: listSubscriptions, user: "b", name: "m", some: true}, &watchEvent{thing: thing{kind: apiv1.WatchKind_WATCH_KIND_SUBSCRIPTION, key: "a", name: "x"}}, true},
		{listPlace{stage: listSubscriptions, user: "b", name: "m", some: true}, &watchEvent{thing: thing{kind: apiv1.WatchKind_WATCH_KIND_SUBSCRIPTION, key: "b", name: "n"}}, false},
	} {
		if got := test.place.told(test.event); got != test.want {
			t.Errorf("%+v, %+v: told: got %t, want %t", test.place, test.event.thing, got, test.want)
		}
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// A batch may be marked before the pass that made it has published its revision: the
// marks that follow do not go back.
func TestWatchNeverBack(t *testing.T) {
	l := newMemoryLog(t)
	l.apply(t, 0, machine.Assert{Mailbox: "user.alice", Server: "be1"})
	s := newReplicaServer(t, newReplica(l), "n1", nil)
	stream, err := dialServer(t, s).Watch(t.Context(), &apiv1.WatchRequest{ProgressMs: 50})
	if err != nil {
		t.Fatal(err)
	}
	_, first := untilMark(t, stream, 1)
	s.watch.revision.Store(first.GetRevision() - 1)
	if _, next := untilMark(t, stream, 0); next.GetRevision() < first.GetRevision() {
		t.Errorf("a mark at %d after one at %d", next.GetRevision(), first.GetRevision())
	}
}
