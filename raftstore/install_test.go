package raftstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/rookery-mail/rookery/internal/kv"
	"github.com/rookery-mail/rookery/raftstore/snap"
	"github.com/rookery-mail/rookery/raftstore/wal"
	"go.etcd.io/raft/v3/raftpb"
)

func shortLog(c *Config) { c.LogEntries, c.MarkBytes, c.FlushKeys = 100, 20_000, 100 }

// TestInstallWhileRunning: a node that was cut off comes back, gets snapshots
// and goes on, while it is read and others write.
func TestInstallWhileRunning(t *testing.T) {
	c := newCluster(t, 3, shortLog)
	c.fill(300)
	_, rest := c.others()
	lagging := rest[0]
	s := c.store(lagging)
	c.caughtUp(lagging)
	old, err := s.Read(context.Background(), Local)
	if err != nil {
		t.Fatal(err)
	}
	before := dumpView(old)
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 2 {
		readers.Go(func() {
			for last := uint64(0); ; {
				select {
				case <-stop:
					return
				default:
				}
				v, err := s.Read(context.Background(), Local)
				if err != nil {
					t.Errorf("Read: %v", err)
					return
				}
				rev := number(v, revisionKey)
				if rev < last {
					t.Errorf("revision %d after %d", rev, last)
				}
				last = rev
				rows := 0
				for it, k := v.Iterate(rowsBucket), []byte("k"); k != nil; rows++ {
					if k, _ = it.Next(); k != nil && v.Get(rowsBucket, k) == nil {
						t.Errorf("%s is in a bucket and cannot be got", k)
					}
				}
				if rows < 100 {
					t.Errorf("a view of revision %d shows %d rows", rev, rows)
				}
				v.Release()
				time.Sleep(time.Millisecond)
			}
		})
	}
	for range 3 {
		c.lag(lagging, 300)
		c.isolate(lagging, false)
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		for {
			// It waits for what only the snapshot brings.
			v, err := s.Read(ctx, Linearizable)
			if err == nil {
				v.Release()
				break
			}
			if ctx.Err() != nil {
				t.Fatalf("no linearizable read: %v", err)
			}
		}
		cancel()
		c.fill(200)
	}
	c.same()
	close(stop)
	readers.Wait()
	if got := dumpView(old); got != before {
		t.Errorf("a view from before the snapshots has changed:\n%.200s\n%.200s", got, before)
	}
	old.Release()
	if c.sent < 3 {
		t.Errorf("%d snapshots were sent, want three at least", c.sent)
	}
	if !s.Verified() {
		t.Error("the state that was installed does not count as verified")
	}
	st, want := s.Status(), c.store(c.leader()).Status()
	if st.Name != c.cfgs[lagging].Name || st.Identity.Node != c.ids[lagging] || !slices.Equal(st.Voters, want.Voters) || len(st.Members) != 3 {
		t.Errorf("after the installations the node says it is %+v", st)
	}
	c.close()
	for i, cfg := range c.cfgs {
		for _, name := range left(t, cfg) {
			if name == stagedName || name == "in.snap" {
				t.Errorf("%s has %s", cfg.Name, name)
			}
		}
		c.start(i)
	}
	c.same()
}

// TestJoin: a node without a state is added, gets one, and votes.
func TestJoinBySnapshot(t *testing.T) {
	c := newCluster(t, 1, shortLog)
	c.fill(300)
	cfg := testConfig(t)
	cfg.Name, cfg.FlushInterval = "n9", 30*time.Millisecond
	id := c.store(0).Identity()
	cfg.Join = &Joining{Cluster: id.Cluster, Incarnation: id.Incarnation, Node: 99}
	cfg.Network = clusterNode{c, 99}
	c.cfgs, c.ids = append(c.cfgs, cfg), append(c.ids, 99)
	s := c.start(1)
	if st := s.Status(); st.Applied != 0 || len(st.Voters) != 0 || st.Leader != 0 {
		t.Errorf("a node that has not joined yet: %+v", st)
	}
	v, err := s.Read(context.Background(), Local)
	if err != nil {
		t.Fatal(err)
	}
	if _, known := v.Age(); known || v.Applied() != 0 {
		t.Errorf("an empty state of known age, applied %d", v.Applied())
	}
	v.Release()
	ctx := context.Background()
	member := Member{ID: 99, Name: "n9", Context: []byte("there"), Learner: true}
	if err := c.store(0).ChangeMembers(ctx, Change{Member: member}); err != nil {
		t.Fatal(err)
	}
	c.caughtUp(1)
	if c.sent == 0 {
		t.Error("it caught up without a snapshot")
	}
	member.Learner = false
	if err := c.store(0).ChangeMembers(ctx, Change{Member: member}); err != nil {
		t.Fatal(err)
	}
	c.fill(50)
	c.same()
	if st := s.Status(); len(st.Voters) != 2 || len(st.Members) != 2 || st.Name != "n9" {
		t.Errorf("after it joined: %+v", st)
	}
	c.stop(1)
	c.start(1)
	c.fill(50)
	c.same()
}

// TestInstallCrash copies the node's directory after every step of an
// installation, as a process that dies there leaves it. Each copy opens, with
// the state before or after, and joins the others again.
func TestInstallCrash(t *testing.T) {
	for _, conflict := range []bool{false, true} {
		t.Run(fmt.Sprintf("conflict=%v", conflict), func(t *testing.T) {
			type copied struct{ step, dir string }
			var copies []copied
			var dir string
			var mu sync.Mutex
			on := false
			c := newCluster(t, 3, shortLog, func(cfg *Config) {
				own := cfg.Dir
				cfg.MaxBatch = 1 // an entry for each command
				cfg.step = func(step string) {
					mu.Lock()
					defer mu.Unlock()
					if !on || own != dir {
						return
					}
					to := filepath.Join(t.TempDir(), "copy")
					if err := os.CopyFS(to, os.DirFS(own)); err != nil {
						t.Error(err)
					}
					copies = append(copies, copied{step, to})
				}
			})
			c.fill(100)
			leader, rest := c.others()
			lagging := rest[0]
			rest = []int{leader, rest[1]}
			if conflict {
				// It led, and has entries that nobody else ever heard of, as far
				// as the snapshot goes and further.
				lagging, rest = leader, []int{lagging, rest[1]}
				c.isolate(lagging, true)
				for i := range 2000 {
					c.store(lagging).node.Propose(fmt.Appendf(nil, "put void%d 1", i), func([]byte, error) {})
					if i%10 == 0 {
						time.Sleep(time.Millisecond)
					}
				}
				for c.store(lagging).Status().Leading {
					time.Sleep(10 * time.Millisecond)
				}
			}
			dir = c.cfgs[lagging].Dir
			c.lag(lagging, 200)
			old := dumpLocal(t, c.store(lagging))
			voids := c.store(lagging).node.core.entries.last()
			if at := c.store(c.leader()).Status().Applied; conflict && voids < at {
				t.Fatalf("the log of the node that was cut off ends at %d, before the leader's %d", voids, at)
			}
			mu.Lock()
			on = true
			mu.Unlock()
			c.isolate(lagging, false)
			c.caughtUp(lagging)
			time.Sleep(100 * time.Millisecond)
			mu.Lock()
			on = false
			mu.Unlock()
			next := dumpLocal(t, c.store(lagging))
			c.stop(lagging)
			var steps []string
			for _, cp := range copies {
				steps = append(steps, cp.step)
				cfg := c.cfgs[lagging]
				cfg.Dir, cfg.step = cp.dir, nil
				c.cfgs[lagging] = cfg
				s, err := Open(cfg)
				if err != nil {
					t.Errorf("after %q: %v", cp.step, err)
					continue
				}
				if got := dumpLocal(t, s); got != old && got != next {
					t.Errorf("after %q the state is neither the one before nor the one after: %.200s", cp.step, got)
				}
				if err := s.Close(); err != nil {
					t.Errorf("after %q: Close: %v", cp.step, err)
				}
				// The leader must not know what the node has said since.
				for _, i := range rest {
					c.stop(i)
				}
				for _, i := range rest {
					c.start(i)
				}
				c.start(lagging)
				c.caughtUp(lagging)
				if got, want := dumpLocal(t, c.store(lagging)), dumpLocal(t, c.store(c.leader())); got != want {
					t.Errorf("after %q and catching up the state differs", cp.step)
				}
				for _, name := range left(t, cfg) {
					if name == stagedName {
						t.Errorf("after %q, and a start, there is %s", cp.step, name)
					}
				}
				c.stop(lagging)
			}
			want := []string{"staged", "meta of the staged file", "log marked", "renamed", "directory synced", "log goes on"}
			if len(steps) < len(want) || !slices.Equal(steps[:len(want)], want) {
				t.Errorf("the steps were %q, want %q", steps, want)
			}
		})
	}
}

// TestInstallRefused: nothing is touched by a file that is not what it must be,
// and the file is removed.
func TestInstallRefused(t *testing.T) {
	c := newCluster(t, 3, shortLog)
	c.fill(100)
	_, rest := c.others()
	s := c.store(rest[0])
	c.caughtUp(rest[0])
	want := dumpLocal(t, s)
	good := filepath.Join(t.TempDir(), "good.snap")
	h, err := saveSnapshot(c.store(c.leader()), good)
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	// rewrite returns the snapshot under another header.
	rewrite := func(change func(*snap.Header)) []byte {
		f, err := snap.Open(good)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		h := f.Header
		change(&h)
		path := filepath.Join(t.TempDir(), "x")
		if err := snap.Save(path, h, func(w io.Writer) error { _, err := io.Copy(w, f); return err }); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	rotten := testConfig(t)
	rotten.Name = "x"
	term, leader := s.Status().Term, c.ids[c.leader()]
	for _, test := range []struct {
		name string
		data []byte
		want error
	}{
		{"flipped", func() []byte { b := slices.Clone(data); b[len(b)/2] ^= 1; return b }(), snap.ErrCorrupt},
		{"cut", data[:len(data)-1], snap.ErrCorrupt},
		{"another cluster's", rewrite(func(h *snap.Header) { h.Cluster[0]++ }), ErrIdentity},
		{"another incarnation's", rewrite(func(h *snap.Header) { h.Incarnation++ }), ErrIdentity},
		{"another shard's", rewrite(func(h *snap.Header) { h.Shard++ }), ErrIdentity},
		{"of another index", rewrite(func(h *snap.Header) { h.Index += 1000 }), snap.ErrCorrupt},
		{"of another term", rewrite(func(h *snap.Header) { h.Term += 1000 }), snap.ErrCorrupt},
		{"of another membership", rewrite(func(h *snap.Header) { h.Conf = &raftpb.ConfState{Voters: []uint64{1}} }), snap.ErrCorrupt},
		{"not needed", data, ErrNotNeeded},
	} {
		path := filepath.Join(s.IncomingDir(), "in.snap")
		if err := os.WriteFile(path, test.data, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := s.Install(path, leader, term); !errors.Is(err, test.want) {
			t.Errorf("a snapshot that is %s: got %v, want %v", test.name, err, test.want)
		}
		for _, name := range left(t, c.cfgs[rest[0]]) {
			if name == "in.snap" || name == stagedName {
				t.Errorf("a snapshot that is %s left %s", test.name, name)
			}
		}
	}
	if got := dumpLocal(t, s); got != want || h.Index == 0 {
		t.Errorf("the state has changed: %.200s, want %.200s", got, want)
	}
	c.fill(20)
	c.same()
}

// TestInstallDamagedRow: the machine looks at a snapshot before it is taken.
func TestInstallDamagedRow(t *testing.T) {
	c := newCluster(t, 3, shortLog)
	_, rest := c.others()
	c.propose("put bad \xff")
	c.fill(100)
	c.caughtUp(rest[0])
	c.isolate(rest[0], true)
	c.isolate(rest[0], false)
	path := filepath.Join(t.TempDir(), "bad.snap")
	if _, err := saveSnapshot(c.store(c.leader()), path); err != nil {
		t.Fatal(err)
	}
	s := c.store(rest[0])
	if err := s.Install(path, 1, 1); !errors.Is(err, ErrCorrupt) {
		t.Errorf("got %v, want ErrCorrupt", err)
	}
}

// TestInstallOverQueuedWork takes the steps of a node by hand: a snapshot comes
// while committed entries, one of which changes the membership, wait to be
// applied, and while a flush is ordered but not done.
func TestInstallOverQueuedWork(t *testing.T) {
	for _, late := range []string{"apply", "flush"} {
		t.Run(late, func(t *testing.T) {
			b := newBench(t)
			logs, disks := map[uint64]replayer{}, map[uint64]*MemoryDisk{}
			for id := uint64(1); id <= 2; id++ {
				meta := testMeta(id, 1, 2)
				logs[id], disks[id] = b.memory(meta), b.disk(meta)
				b.add(logs[id], disks[id], func(c *Config) { c.FlushKeys = 5 })
			}
			b.pass(time.Second)
			leader, follower := b.nodes[1], b.nodes[2]
			if follower.Status().Leading {
				leader, follower = follower, leader
			}
			propose1(leader, "put a 1")
			var changed error = errors.New("no answer")
			leader.Reconfigure([]Change{{Member: Member{ID: 3, Name: "n3", Learner: true}}}, func(err error) { changed = err })
			// All but what is late.
			deliver := func() {
				for _, m := range b.mail {
					if n := b.nodes[m.GetTo()]; n != nil {
						n.Receive(m)
					}
				}
				b.mail = nil
			}
			for range 60 {
				deliver()
				for _, n := range b.nodes {
					b.ok(n.StepCore())
					_, err := n.StepAppend()
					b.ok(err)
					if n == leader || late != "apply" {
						_, err := n.StepApply()
						b.ok(err)
					}
					if n == leader {
						_, err := n.StepFlush()
						b.ok(err)
					}
				}
				b.now += 5 * time.Millisecond
				propose1(leader, fmt.Sprintf("put k%d 1", b.now.Milliseconds()))
			}
			if changed != nil {
				t.Fatalf("the membership did not change: %v", changed)
			}
			b.now += time.Second // for the leader's flush
			for range 5 {
				_, err := leader.StepApply()
				b.ok(err)
				_, err = leader.StepFlush()
				b.ok(err)
			}
			if follower.applies.len() == 0 && follower.flushes.len() == 0 {
				t.Fatal("nothing waits on the follower")
			}
			from, to := disks[leader.Status().Identity.Node], disks[follower.Status().Identity.Node]
			staged := stageFrom(t, from, to, func(m *Meta) {
				m.Applied.Index += 50
				m.Mark = m.Applied
				// Another change of which the node knows nothing yet.
				m.Conf = &raftpb.ConfState{Voters: []uint64{1, 2}, Learners: []uint64{4}}
			})
			done := errors.New("no answer")
			follower.Install(staged, leader.Status().Identity.Node, leader.Status().Term, func(err error) { done = err })
			delete(b.nodes, leader.Status().Identity.Node)
			b.ok(b.settle())
			if done != nil {
				t.Fatalf("Install: %v", done)
			}
			want := staged.Meta()
			st := follower.Status()
			if st.Applied != want.Applied.Index || st.Flushed != want.Applied.Index || !slices.Equal(st.Learners, []uint64{4}) {
				t.Errorf("after the installation: %+v, want index %d and learner 4", st, want.Applied.Index)
			}
			if l := follower.core.rn.Status().Config.Learners; len(l) != 1 {
				t.Errorf("for Raft the learners are %v, want node 4: a change that the snapshot includes was applied to it again", l)
			}
			if v := follower.View(); v.Applied() != want.Applied.Index {
				t.Errorf("a view shows index %d, want %d", v.Applied(), want.Applied.Index)
			} else {
				v.Release()
			}
			if got := to.Meta().Applied; got != want.Applied {
				t.Errorf("the disk is at %v, want %v: a flush of the old state was written over the new one", got, want.Applied)
			}
			// A mark that was ordered for the old log comes late.
			follower.applies.put(applyJob{mark: &wal.Position{Term: 1, Index: 2}})
			b.ok(b.settle())
			if got := follower.applier.meta.Mark; got != want.Mark {
				t.Errorf("the mark is %v, want %v", got, want.Mark)
			}
			b.ok(follower.Drain())
			follower.Stop(ErrClosed)
			if follower.Held() != 0 {
				t.Errorf("%d readers are open", follower.Held())
			}
			if r := logs[want.Identity.Node].Replay(want.Mark.Index); r == nil || len(r.Entries) != 0 {
				t.Errorf("the log at the mark: %+v", r)
			}
		})
	}
}

// stageFrom stages what one disk holds beside another.
func stageFrom(t *testing.T, from, to *MemoryDisk, change func(*Meta)) Staged {
	t.Helper()
	r, w := io.Pipe()
	go func() {
		w.CloseWithError(from.Image(func(_ Meta, write func(io.Writer) error) error { return write(w) }))
	}()
	staged, err := to.Stage(r)
	if err != nil {
		t.Fatal(err)
	}
	m := staged.Meta().adopt(to.Meta().Identity, to.Meta().Name)
	change(&m)
	if err := staged.SetMeta(m); err != nil {
		t.Fatal(err)
	}
	return staged
}

// TestTermOfASnapshot: a crash after the state was replaced, before the hard
// state was written, leaves a term before that of the state's last entry.
func TestTermOfASnapshot(t *testing.T) {
	b := newBench(t)
	meta := testMeta(2, 1, 2)
	log, disk := b.memory(meta), b.disk(meta)
	b.ok(log.Append(&raftpb.HardState{Term: new(uint64(3)), Vote: new(uint64(2)), Commit: new(uint64(1))}, nil))
	b.ok(log.Sync())
	meta.Applied = wal.Position{Term: 5, Index: 50}
	meta.Mark = meta.Applied
	b.ok(log.Install(testMark(meta)))
	b.ok(disk.Write(meta, nil))
	n := b.add(log, disk)
	if hard := n.core.rn.BasicStatus().HardState; hard.GetTerm() != 5 || hard.GetVote() != 0 || hard.GetCommit() != 50 {
		t.Errorf("the node starts with %v, want term 5, no vote, commit 50", hard)
	}
	n.Stop(ErrClosed)
}

// failingDisk cannot replace its state.
type failingDisk struct{ *MemoryDisk }

func (failingDisk) Replace(Staged) error { return errDisk }

// TestInstallFails: a node that cannot put a proved state in its place stops,
// and can be opened as it was.
func TestInstallFails(t *testing.T) {
	b := newBench(t)
	meta := testMeta(2, 1, 2)
	log, disk := b.memory(meta), failingDisk{b.disk(meta)}
	n := b.add(log, disk)
	b.ok(b.settle())
	staged := stageFrom(t, disk.MemoryDisk, disk.MemoryDisk, func(m *Meta) {
		m.Applied.Index, m.Applied.Term = 50, 3
		m.Mark = m.Applied
	})
	var done error
	n.Install(staged, 1, 3, func(err error) { done = err })
	err := b.settle()
	if !errors.Is(err, errDisk) {
		t.Fatalf("settle: got %v, want the disk's error", err)
	}
	n.Stop(&StoppedError{Cause: err})
	if !errors.Is(done, errDisk) || n.Held() != 0 {
		t.Errorf("Install: got %v, want the disk's error; %d readers are open", done, n.Held())
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	n = b.add(log, disk)
	if st := n.Status(); st.Applied != 1 {
		t.Errorf("after a restart: %+v", st)
	}
	n.Stop(ErrClosed)
}

// TestSwap: another reader of the same state takes the place of the first,
// between flushes, and views go on.
func TestSwap(t *testing.T) {
	b := newBench(t)
	n := b.single(func(c *Config) { c.FlushKeys = 3 })
	b.ok(b.settle())
	old := n.View()
	for i := range 50 {
		propose1(n, fmt.Sprintf("put k%d %d", i%7, i))
		if i%5 == 0 {
			n.Swap(func() error { return nil }, func(err error) {
				if err != nil {
					t.Errorf("Swap: %v", err)
				}
			})
		}
		b.ok(b.settle())
	}
	if got := old.Get(rowsBucket, []byte("k1")); got != nil {
		t.Errorf("a view from the start shows %q", got)
	}
	old.Release()
	v := n.View()
	if got := string(v.Get(rowsBucket, []byte("k1"))); got != "43" {
		t.Errorf("k1: got %q, want 43", got)
	}
	v.Release()
	n.Swap(func() error { return nil }, func(err error) {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("a Swap that never ran: got %v, want ErrClosed", err)
		}
	})
	n.Stop(ErrClosed)
	if n.Held() != 0 {
		t.Errorf("%d readers are open", n.Held())
	}
}

var _ kv.Reader = (*bucketReader)(nil)
