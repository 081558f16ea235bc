package peer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	peerv1 "github.com/rookery-mail/rookery/proto/peer/v1"
	"github.com/rookery-mail/rookery/raftstore"
)

// fakeSnapshots gives a file, and takes files.
type fakeSnapshots struct {
	file string // to give
	dir  string // for what comes

	asked atomic.Uint64 // the index that the last one was not to be before

	mu        sync.Mutex
	reports   []bool
	installed [][]byte
	terms     []uint64
	refuse    error
	released  int
}

// newSnapshots makes a file of about that size which ends as snapshots do.
func newSnapshots(t *testing.T, size int) *fakeSnapshots {
	t.Helper()
	f := &fakeSnapshots{file: filepath.Join(t.TempDir(), "out"), dir: filepath.Join(t.TempDir(), "incoming")}
	data := make([]byte, size)
	for i := range data {
		data[i] = byte(rand.Uint32())
	}
	sum := sha256.Sum256(data)
	if err := os.WriteFile(f.file, append(data, sum[:]...), 0o600); err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *fakeSnapshots) Spool(_ context.Context, index uint64) (*Spooled, error) {
	f.asked.Store(index)
	info, err := os.Stat(f.file)
	if err != nil {
		return nil, err
	}
	return &Spooled{Path: f.file, Size: info.Size(), Release: func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.released++
	}}, nil
}

func (f *fakeSnapshots) ReportSnapshot(_ uint64, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reports = append(f.reports, ok)
}

func (f *fakeSnapshots) reported() []bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.reports)
}

func (f *fakeSnapshots) IncomingDir() string { return f.dir }

func (f *fakeSnapshots) Install(path string, _, term uint64) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.installed, f.terms = append(f.installed, data), append(f.terms, term)
	if f.refuse != nil {
		return f.refuse
	}
	return os.Remove(path)
}

// strait is a way to an address on which connections break after some octets
// towards it, one limit a connection in turn; the last one never breaks.
type strait struct {
	net.Listener
	wg sync.WaitGroup
}

func newStrait(t *testing.T, to string, limits func() int64) *strait {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &strait{Listener: l}
	var mu sync.Mutex
	var open []net.Conn
	s.wg.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				in.Close()
				continue
			}
			mu.Lock()
			open = append(open, in, out)
			mu.Unlock()
			limit := limits()
			both := func() { in.Close(); out.Close() }
			s.wg.Go(func() { defer both(); io.Copy(in, out) })
			s.wg.Go(func() { defer both(); io.Copy(out, io.LimitReader(in, limit)) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for _, c := range open {
			c.Close()
		}
		mu.Unlock()
		s.wg.Wait()
	})
	return s
}

// senders is a leader n1 with a snapshot of some size, and n2 who needs it, the
// way from one to the other breaking as limits says.
func senders(t *testing.T, size int, limits func() int64) (a, b *end, give, take *fakeSnapshots) {
	t.Helper()
	a, b = newEnd(t, Config{Name: "n1", SnapshotRate: -1}), newEnd(t, Config{Name: "n2", SnapshotRate: -1})
	give, take = newSnapshots(t, size), newSnapshots(t, 0)
	way := newStrait(t, b.address, limits)
	sa := newFake(1, member(1, a), raftstore.Member{ID: 2, Name: "n2", Context: Info{PeerAddress: way.Addr().String()}.Context()})
	sa.status.Leading = true
	b.Attach(newFake(2), take)
	a.Attach(sa, give)
	return a, b, give, take
}

func forever() int64 { return 1 << 60 }

func snapMessage(term uint64) []*raftpb.Message {
	m := message(raftpb.MsgSnap, 1, 2, 0)
	m.Term = new(term)
	return []*raftpb.Message{m}
}

func TestSnapshot(t *testing.T) {
	a, b, give, take := senders(t, 3<<20, forever)
	_ = os.MkdirAll(take.dir, 0o700)
	if err := os.WriteFile(filepath.Join(take.dir, "ffff"+partSuffix), []byte("of another"), 0o600); err != nil {
		t.Fatal(err)
	}
	a.Send(snapMessage(7))
	until(t, "the report", func() bool { return len(give.reported()) == 1 })
	want, _ := os.ReadFile(give.file)
	if !give.reported()[0] || len(take.installed) != 1 || !bytes.Equal(take.installed[0], want) || take.terms[0] != 7 {
		t.Errorf("reported %v, %d installed, of terms %v\n%s\n%s", give.reported(), len(take.installed), take.terms, a.log, b.log)
	}
	if left, _ := os.ReadDir(take.dir); len(left) != 0 {
		t.Errorf("left in the directory: %v", left)
	}
	if give.released != 1 {
		t.Errorf("the file was released %d times", give.released)
	}
	// What the store does not take is reported too.
	take.mu.Lock()
	take.refuse = errors.New("no good")
	take.mu.Unlock()
	a.Send(snapMessage(8))
	until(t, "the second report", func() bool { return len(give.reported()) == 2 })
	if give.reported()[1] {
		t.Error("a snapshot that was not installed is reported as sent")
	}
}

// TestSnapshotResumed: a transfer that breaks goes on where it was.
func TestSnapshotResumed(t *testing.T) {
	const size = 8 << 20
	var mu sync.Mutex
	var total int64
	a, b, give, take := senders(t, size, func() int64 {
		mu.Lock()
		defer mu.Unlock()
		const limit = 3 << 20
		total += limit
		return limit
	})
	a.Send(snapMessage(7))
	until(t, "the report", func() bool { return len(give.reported()) == 1 })
	if !give.reported()[0] || len(take.installed) != 1 || len(take.installed[0]) != size+idBytes {
		t.Fatalf("reported %v, %d installed\n%s\n%s", give.reported(), len(take.installed), a.log, b.log)
	}
	if b.log.count("snapshot is received") < 2 || b.log.count("offset=0 ")+b.log.count("offset=0\n") != 1 {
		t.Errorf("want several attempts, one of them from the beginning:\n%s", b.log)
	}
}

// TestSnapshotUnreachable: Raft is told in the end.
func TestSnapshotUnreachable(t *testing.T) {
	a, b, give, _ := senders(t, 1<<20, func() int64 { return 100 })
	a.Send(snapMessage(7))
	until(t, "the report", func() bool { return len(give.reported()) == 1 })
	if give.reported()[0] {
		t.Error("reported as sent")
	}
	_ = b
}

// TestSnapshotDamaged: what arrives otherwise than it was sent is not kept.
func TestSnapshotDamaged(t *testing.T) {
	offer := &peerv1.SnapshotOffer{Id: make([]byte, idBytes), Size: 100}
	path := filepath.Join(t.TempDir(), "x")
	f, err := arrive(path, offer)
	if err != nil {
		t.Fatal(err)
	}
	defer f.f.Close()
	for _, p := range []*peerv1.SnapshotPart{
		nil,
		{Offset: 0, Data: []byte("abc"), Crc: 1},
		{Offset: 1, Data: []byte("abc"), Crc: 910901175},
		{Offset: 0, Data: make([]byte, 101)},
	} {
		if err := f.take(p); err == nil {
			t.Errorf("part %v was taken", p)
		}
	}
	if err := f.take(&peerv1.SnapshotPart{Offset: 0, Data: []byte("abc"), Crc: 910901175}); err != nil {
		t.Errorf("a good part: %v", err)
	}
	if _, err := arrive(path, &peerv1.SnapshotOffer{Id: []byte("short"), Size: 100}); err == nil {
		t.Error("an offer without an id was taken")
	}
}

// TestOneSnapshotAtATime: a second one waits.
func TestOneSnapshotAtATime(t *testing.T) {
	a, b, give, take := senders(t, 1<<20, forever)
	b.incoming.Lock()
	a.Send(snapMessage(7))
	time.Sleep(200 * time.Millisecond)
	if n := len(give.reported()); n != 0 {
		t.Errorf("%d reports while another is received", n)
	}
	b.incoming.Unlock()
	until(t, "the report", func() bool { return len(give.reported()) == 1 })
	if !give.reported()[0] || len(take.installed) != 1 {
		t.Errorf("reported %v", give.reported())
	}
}

// TestFetchSnapshot: a node without a store gets a file, also by pieces.
func TestFetchSnapshot(t *testing.T) {
	a, _, give, _ := senders(t, 8<<20, forever)
	way := newStrait(t, a.address, forever)
	c := newEnd(t, Config{Name: "n2"})
	s := newFake(2, raftstore.Member{ID: 1, Name: "n1", Context: Info{PeerAddress: way.Addr().String()}.Context()})
	c.Attach(s, nil)
	c.Detach()
	path := filepath.Join(t.TempDir(), "fetched")
	if err := c.FetchSnapshot(t.Context(), s.id, 1, 55, path); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	want, _ := os.ReadFile(give.file)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("fetched %d octets, %v; want %d", len(got), err, len(want))
	}
	if at := give.asked.Load(); at != 55 {
		t.Errorf("it was asked for one from index %d on, want 55", at)
	}
	other := s.id
	other.Incarnation = 9
	if err := c.FetchSnapshot(t.Context(), other, 1, 0, path+"2"); err == nil {
		t.Error("a node of another incarnation was given a snapshot")
	}
}

func TestPace(t *testing.T) {
	p := &pace{rate: 1 << 20}
	began := time.Now()
	for range 5 {
		if !p.wait(t.Context(), 100<<10) {
			t.Fatal("ended")
		}
	}
	if took := time.Since(began); took < 350*time.Millisecond {
		t.Errorf("500 KiB at 1 MiB a second took %v", took)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if p.wait(ctx, 1) {
		t.Error("waited although it was to end")
	}
}
