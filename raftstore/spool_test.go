package raftstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rookery-mail/rookery/raftstore/snap"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// spooled lists the files in the spool.
func spooled(t *testing.T, s *Store) []string {
	t.Helper()
	files, err := os.ReadDir(filepath.Join(s.cfg.shardDir(), spoolDir))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	var names []string
	for _, f := range files {
		names = append(names, f.Name())
	}
	return names
}

func TestSpool(t *testing.T) {
	cfg := testConfig(t)
	cfg.LogEntries, cfg.FlushKeys, cfg.FlushInterval = 50, 20, 5*time.Millisecond
	s := open(t, cfg)
	put := func(n int) {
		for i := range n {
			propose(t, s, fmt.Sprintf("put k%d v", i))
		}
		flush(t, s)
	}
	put(20)
	ctx := context.Background()
	// Whoever asks at once shares one file.
	var mu sync.Mutex
	var all []*Spooled
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			sp, err := s.Spool(ctx)
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			all = append(all, sp)
		})
	}
	wg.Wait()
	first := all[0]
	for _, sp := range all {
		if sp.Path != first.Path || sp.Header.Index < 20 {
			t.Errorf("%s of index %d, and %s: want one file", sp.Path, sp.Header.Index, first.Path)
		}
	}
	info, err := os.Stat(first.Path)
	if err != nil || info.Size() != first.Size {
		t.Errorf("the file: %v, %v; want %d octets", info, err, first.Size)
	}
	if h, err := snap.Verify(first.Path); err != nil || h.Index != first.Header.Index {
		t.Errorf("Verify: %+v, %v", h, err)
	}
	// While it is in use, the log after it stays, and it is good for more.
	put(100)
	if kept := s.node.kept.Load(); kept > first.Header.Index {
		t.Errorf("the log is kept after %d, a snapshot of %d is in use", kept, first.Header.Index)
	}
	again, err := s.Spool(ctx)
	if err != nil || again.Path != first.Path {
		t.Errorf("while it is fresh: got %v, %v; want the same file", again, err)
	}
	if from, err := s.SpoolFrom(ctx, first.Header.Index); err != nil || from.Path != first.Path {
		t.Errorf("from its index: got %v, %v; want the same file", from, err)
	} else {
		from.Release()
	}
	for _, sp := range append(all, again) {
		sp.Release()
		sp.Release()
	}
	if got := spooled(t, s); len(got) != 1 {
		t.Errorf("released and fresh: %v", got)
	}
	// Fresh as it is, it does not do for a node that was further.
	at := s.Status().Applied
	later, err := s.SpoolFrom(ctx, at)
	if err != nil || later.Path == first.Path || later.Header.Index < at {
		t.Errorf("from index %d: got %+v, %v; want a new one", at, later, err)
	}
	later.Release()
	if got := spooled(t, s); len(got) != 1 {
		t.Errorf("after a later one: %v", got)
	}
	// When the log has gone on, it goes, and the next is another.
	for range 200 {
		if put(60); len(spooled(t, s)) == 0 {
			break
		}
	}
	if got := spooled(t, s); len(got) != 0 {
		t.Errorf("released and stale: %v", got)
	}
	next, err := s.Spool(ctx)
	if err != nil || next.Path == first.Path || next.Header.Index <= first.Header.Index {
		t.Errorf("after that: got %+v, %v; want a new one", next, err)
	}
	// With other members it may lack the node it is for.
	if err := s.ChangeMembers(ctx, Change{Member: Member{ID: 7, Name: "n7", Learner: true}}); err != nil {
		t.Fatal(err)
	}
	// The status follows the answer; a MsgSnap to the new node follows the status.
	for len(s.Status().Learners) == 0 {
		time.Sleep(time.Millisecond)
	}
	other, err := s.Spool(ctx)
	if err != nil || other.Path == next.Path || len(other.Header.Conf.GetLearners()) != 1 {
		t.Errorf("after the membership changed: got %+v, %v; want a new one", other, err)
	}
	if _, err := os.Stat(next.Path); err != nil {
		t.Errorf("one that is in use was deleted: %v", err)
	}
	next.Release()
	if _, err := os.Stat(next.Path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("one that is stale was not deleted: %v", err)
	}
	other.Release()
	// Nothing of it is left after a start.
	if err := os.WriteFile(filepath.Join(s.IncomingDir(), "half"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Spool(ctx); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: got %v, want ErrClosed", err)
	}
	s = open(t, cfg)
	if got := spooled(t, s); len(got) != 0 {
		t.Errorf("after a start: %v", got)
	}
	if files, err := os.ReadDir(s.IncomingDir()); err != nil || len(files) != 0 {
		t.Errorf("%s after a start: %v, %v; want it empty", s.IncomingDir(), files, err)
	}
}

// TestSpoolRefused: without room, without time.
func TestSpoolRefused(t *testing.T) {
	cfg := testConfig(t)
	cfg.SnapshotRate = 1 << 20
	s := open(t, cfg)
	for i := range 100 {
		propose(t, s, fmt.Sprintf("put k%d %s", i, strings.Repeat("x", 20_000)))
	}
	ctx := context.Background()
	s.free = func(string) (uint64, error) { return 1 << 20, nil }
	if _, err := s.Spool(ctx); !errors.Is(err, ErrNoRoom) || !strings.Contains(err.Error(), spoolDir) {
		t.Errorf("without room: got %v, want ErrNoRoom", err)
	}
	s.free = freeBytes
	short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	if _, err := s.Spool(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("2 MB at 1 MB/s in 0.1 s: got %v, want it to be too slow", err)
	}
	if got := spooled(t, s); len(got) != 0 {
		t.Errorf("what was not finished: %v", got)
	}
	// Raft must not be told of one while another is being made.
	began := make(chan struct{})
	go func() {
		for !s.spool.making.Load() {
			time.Sleep(time.Millisecond)
		}
		if _, err := s.node.core.entries.Snapshot(); err == nil {
			t.Error("a snapshot is offered while one is being made")
		}
		close(began)
	}()
	start := time.Now()
	sp, err := s.Spool(ctx)
	if err != nil {
		t.Fatal(err)
	}
	<-began
	if took := time.Since(start); took < time.Second {
		t.Errorf("2 MB at 1 MB/s took %v", took)
	}
	sp.Release()
	if _, err := s.node.core.entries.Snapshot(); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// TestSnapshotStream: a backup that ends early is known to be none.
func TestSnapshotStream(t *testing.T) {
	s := open(t, testConfig(t))
	propose(t, s, "put a 1")
	if _, err := s.Snapshot(context.Background(), failingWriter{}); !errors.Is(err, errDisk) {
		t.Errorf("a writer that fails: got %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := s.Snapshot(ctx, io.Discard); !errors.Is(err, context.Canceled) {
		t.Errorf("a context that is over: got %v", err)
	}
	r, w := io.Pipe()
	go func() {
		_, err := s.Snapshot(context.Background(), w)
		w.CloseWithError(err)
	}()
	in, err := snap.NewReader(r)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := io.Copy(io.Discard, in); err != nil || n == 0 || in.Header.Index != s.Status().Applied {
		t.Errorf("a stream of %d octets, %v, of %+v", n, err, in.Header)
	}
}

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, errDisk }

// TestLogIsKeptForASend: from the message to the report, and until the node has
// caught up; but not for ever.
func TestLogIsKeptForASend(t *testing.T) {
	b := newBench(t)
	disks := map[uint64]*MemoryDisk{}
	for id := uint64(1); id <= 3; id++ {
		meta := testMeta(id, 1, 2, 3)
		disks[id] = b.disk(meta)
		b.add(b.memory(meta), disks[id], func(c *Config) { c.LogEntries, c.FlushKeys = 40, 10 })
	}
	b.pass(time.Second)
	var leader *Node
	for _, n := range b.nodes {
		if n.Status().Leading {
			leader = n
		}
	}
	id := leader.Status().Identity.Node
	lag := id%3 + 1
	lost := b.nodes[lag]
	var snaps []*raftpb.Message
	// run lets commands through while one node hears nothing but heartbeats, so
	// that the leader takes it for alive.
	run := func(n int) {
		for range n {
			propose1(leader, "put a 1")
			for range 20 {
				for _, m := range b.mail {
					switch to := b.nodes[m.GetTo()]; {
					case m.GetType() == raftpb.MsgSnap:
						snaps = append(snaps, m)
					case m.GetTo() == lag && m.GetType() == raftpb.MsgApp:
					case to != nil:
						to.Receive(m)
					}
				}
				b.mail = nil
				for _, n := range b.nodes {
					b.ok(n.StepCore())
					for _, step := range []func() (bool, error){n.StepAppend, n.StepApply, n.StepFlush} {
						_, err := step()
						b.ok(err)
					}
				}
			}
			b.now += 20 * time.Millisecond // so that layers are flushed meanwhile
		}
	}
	c := leader.core
	for range 100 {
		if run(10); len(snaps) > 0 {
			break
		}
	}
	if len(snaps) == 0 {
		t.Fatal("no snapshot was sent")
	}
	at := snaps[0].GetSnapshot().GetMetadata().GetIndex()
	if len(snaps[0].GetSnapshot().GetData()) != 0 || snaps[0].GetTo() != lag {
		t.Errorf("the message: %v", snaps[0])
	}
	staged := stageFrom(t, disks[id], disks[lag], func(m *Meta) {})
	run(60)
	if got := c.entries.before.Index; got > at {
		t.Errorf("the log is kept after %d, a snapshot of %d is on its way", got, at)
	}
	if len(snaps) != 1 {
		t.Errorf("%d snapshots are on their way to one node", len(snaps))
	}
	// Raft has heard from the node meanwhile, and asks for a later one: what is on its way
	// is still what the log is kept for.
	later := proto.CloneOf(snaps[0])
	later.Snapshot.Metadata.Index = new(c.applied.Index)
	c.sends(later)
	run(60)
	if got := c.entries.before.Index; got > at {
		t.Errorf("the log is kept after %d, a snapshot of %d is on its way and another was asked for", got, at)
	}
	// It is installed and reported, and the node does not catch up at once: what
	// came after the snapshot, more than is kept otherwise, is still there.
	installed := false
	lost.Install(staged, id, leader.Status().Term, func(err error) { installed = err == nil })
	leader.ReportSnapshot(lag, true)
	snaps = nil
	at = staged.Meta().Applied.Index
	run(60)
	if got := c.entries.before.Index; got > at || len(snaps) != 0 {
		t.Errorf("the log is kept after %d, the node is at %d and catches up; %d more snapshots were sent", got, at, len(snaps))
	}
	b.pass(500 * time.Millisecond)
	if !installed || lost.Status().Applied != leader.Status().Applied {
		t.Errorf("installed: %v; the node is at %d, the leader at %d", installed, lost.Status().Applied, leader.Status().Applied)
	}
	b.pass(time.Second)
	for range 100 {
		propose1(leader, "put a 1")
		b.ok(b.settle())
	}
	b.pass(1200 * time.Millisecond)
	if got := len(c.entries.entries); got > 60 || len(c.sending) != 0 {
		t.Errorf("%d entries are kept and %d snapshots are on their way after it caught up", got, len(c.sending))
	}
	// A send without an end is given up, and another one begins.
	snaps = nil
	for range 100 {
		if run(10); len(snaps) > 0 {
			break
		}
	}
	run(400)
	if got := len(c.entries.entries); got > keepTimes*40+60 {
		t.Errorf("%d entries are kept for a send without an end", got)
	}
	if len(snaps) < 2 {
		t.Errorf("%d snapshots were sent, want another after the first was given up", len(snaps))
	}
	// A transfer that fails keeps nothing.
	leader.ReportSnapshot(lag, false)
	b.ok(leader.StepCore())
	if len(c.sending) != 0 {
		t.Errorf("%d are on their way after a report that it failed", len(c.sending))
	}
}
