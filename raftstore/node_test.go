package raftstore

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rookery-mail/rookery/internal/kv"
	"github.com/rookery-mail/rookery/raftstore/wal"
	"go.etcd.io/raft/v3/raftpb"
)

// bench is some nodes on a table: a clock that moves when told to, messages
// that arrive at once, and steps taken by hand.
type bench struct {
	t     *testing.T
	now   time.Duration
	nodes map[uint64]*Node
	mail  []*raftpb.Message
	cut   bool // messages are lost
}

func (b *bench) Now() time.Duration { return b.now }
func (b *bench) Wall() time.Time    { return time.UnixMilli(12345) }
func (b *bench) Send(list []*raftpb.Message) {
	if !b.cut {
		b.mail = append(b.mail, list...)
	}
}
func newBench(t *testing.T) *bench         { return &bench{t: t, now: time.Second, nodes: map[uint64]*Node{}} }
func (b *bench) memory(m Meta) *wal.Memory { return wal.NewMemory(m.Identity.marshal(), testMark(m)) }
func (b *bench) disk(m Meta) *MemoryDisk   { return NewMemoryDisk(3, m) }
func (b *bench) single(change ...func(*Config)) *Node {
	m := testMeta(1, 1)
	return b.add(b.memory(m), b.disk(m), change...)
}

// replayer is a log that can be opened again.
type replayer interface {
	LogStore
	Replay(index uint64) *wal.Replay
}

func (b *bench) add(log replayer, disk Disk, change ...func(*Config)) *Node {
	b.t.Helper()
	meta := disk.Meta()
	cfg := Config{Dir: "-", Name: meta.Name, Machine: testMachine{}, Network: b, Clock: b, Log: testLog(b.t)}
	for _, f := range change {
		f(&cfg)
	}
	n, err := NewNode(cfg, log, log.Replay(meta.Mark.Index), disk)
	if err != nil {
		b.t.Fatalf("NewNode: %v", err)
	}
	b.nodes[meta.Identity.Node] = n
	return n
}

// settle steps all nodes, and carries their messages, until nothing is left to
// do. It returns the first error.
func (b *bench) settle() error {
	for busy := true; busy; {
		busy = false
		for _, m := range b.mail {
			if n := b.nodes[m.GetTo()]; n != nil {
				n.Receive(m)
			}
		}
		b.mail = nil
		for _, id := range slices.Sorted(keysOf(b.nodes)) {
			n := b.nodes[id]
			if core, _ := n.Wake(); b.now >= core || n.events.len() > 0 {
				busy = true
				if err := n.StepCore(); err != nil {
					return err
				}
			}
			for _, step := range []func() (bool, error){n.StepAppend, n.StepApply, n.StepFlush} {
				did, err := step()
				if err != nil {
					return err
				}
				busy = busy || did
			}
		}
		busy = busy || len(b.mail) > 0
	}
	return nil
}

func keysOf(m map[uint64]*Node) func(yield func(uint64) bool) {
	return func(yield func(uint64) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// pass lets time pass in ticks.
func (b *bench) pass(d time.Duration) {
	b.t.Helper()
	for end := b.now + d; b.now < end; b.now += 5 * time.Millisecond {
		b.ok(b.settle())
	}
}

func (b *bench) ok(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

// outcome is what became of a proposal; neither means that it waits.
type outcome struct {
	result string
	err    error
	done   int
}

func propose1(n *Node, command string) *outcome {
	o := &outcome{}
	n.Propose([]byte(command), func(result []byte, err error) {
		o.result, o.err = string(result), err
		o.done++
	})
	return o
}

func (o *outcome) want(t *testing.T, result string, err error) {
	t.Helper()
	if o.done != 1 || o.result != result || !errors.Is(o.err, err) {
		t.Errorf("got %q, %v (answered %d times); want %q, %v", o.result, o.err, o.done, result, err)
	}
}

func TestGroupCommit(t *testing.T) {
	b := newBench(t)
	meta := testMeta(1, 1)
	log := b.memory(meta)
	n := b.add(log, b.disk(meta), func(c *Config) { c.MaxBatch = 1000 })
	b.ok(b.settle())
	before := n.Status().Applied
	first := propose1(n, "put a 1")
	b.ok(n.StepCore())
	// The append is on its way: what comes now must gather.
	var rest []*outcome
	for i := range 50 {
		rest = append(rest, propose1(n, fmt.Sprintf("put k%02d x", i)))
		b.ok(n.StepCore())
	}
	if first.done != 0 {
		t.Errorf("a proposal was answered before its entry was synced")
	}
	b.ok(b.settle())
	first.want(t, "1", nil)
	for i, o := range rest {
		o.want(t, fmt.Sprint(i+2), nil)
	}
	if got := n.Status().Applied - before; got != 2 {
		t.Errorf("51 proposals took %d entries, want 2", got)
	}
	// What is over MaxBatch goes in several entries, a large one by itself.
	before = n.Status().Applied
	large := strings.Repeat("x", 900)
	for range 3 {
		rest = append(rest, propose1(n, "put l "+large))
	}
	propose1(n, "put l "+strings.Repeat("x", 5000))
	b.ok(b.settle())
	if got := n.Status().Applied - before; got != 4 {
		t.Errorf("four large proposals took %d entries, want 4", got)
	}
}

func TestStamps(t *testing.T) {
	b := newBench(t)
	var stamps []Stamp
	n := b.single(func(c *Config) { c.Machine = stampMachine{stamps: &stamps} })
	b.ok(b.settle())
	b.now += 700 * time.Microsecond
	propose1(n, "nothing")
	propose1(n, "nothing")
	b.ok(b.settle())
	b.now += 1600 * time.Microsecond // 2.3 ms since the first entry
	propose1(n, "nothing")
	b.ok(b.settle())
	b.now += 800 * time.Microsecond // 3.1 ms: the fractions are not lost
	propose1(n, "nothing")
	b.ok(b.settle())
	want := []Stamp{{0, 12345}, {0, 12345}, {2, 12345}, {1, 12345}}
	if !slices.Equal(stamps, want) {
		t.Errorf("got %v, want %v", stamps, want)
	}
}

type stampMachine struct {
	testMachine
	stamps *[]Stamp
}

func (m stampMachine) Apply(tx kv.Tx, s Stamp, command []byte) ([]byte, error) {
	*m.stamps = append(*m.stamps, s)
	return m.testMachine.Apply(tx, s, command)
}

// TestDueOnTime: directory time runs while nobody writes, and the alarm rings
// when it is due, once.
func TestDueOnTime(t *testing.T) {
	b := newBench(t)
	n := b.single()
	b.ok(b.settle())
	propose1(n, "alarm bell 1000")
	b.pass(990 * time.Millisecond)
	read := func() string {
		v := n.View()
		defer v.Release()
		return string(v.Get(rowsBucket, []byte("bell")))
	}
	if got := read(); got != "" {
		t.Fatalf("the alarm rang early, at %s", got)
	}
	b.pass(30 * time.Millisecond)
	if got := read(); got < "1000" || got > "1010" {
		t.Errorf("the alarm rang at %q, want 1000", got)
	}
	at := n.Status().Applied
	b.pass(time.Second)
	if got := n.Status().Applied; got != at {
		t.Errorf("%d entries were proposed with nothing due", got-at)
	}
}

func TestLimits(t *testing.T) {
	b := newBench(t)
	n := b.single(func(c *Config) {
		c.MaxCommand, c.MaxWaiting, c.MaxWaitingBytes, c.MaxReads = 100, 10, 500, 3
	})
	propose1(n, strings.Repeat("x", 101)).want(t, "", ErrTooLarge)
	b.ok(b.settle())
	var waiting []*outcome
	for range 10 {
		waiting = append(waiting, propose1(n, "nothing"))
	}
	propose1(n, "nothing").want(t, "", ErrOverloaded)
	b.ok(b.settle())
	for _, o := range waiting {
		if o.err != nil {
			t.Errorf("one that was let in: %v", o.err)
		}
	}
	for range 6 {
		waiting = append(waiting, propose1(n, "put k "+strings.Repeat("x", 90)))
	}
	waiting[len(waiting)-1].want(t, "", ErrOverloaded)
	b.ok(b.settle())
	over := 0
	for range 5 {
		n.ReadIndex(func(err error) {
			if errors.Is(err, ErrOverloaded) {
				over++
			}
		})
	}
	b.ok(b.settle())
	if over != 2 {
		t.Errorf("%d of 5 reads were refused, want 2", over)
	}
	if c, by := n.admit.count.Load(), n.admit.bytes.Load(); c != 0 || by != 0 {
		t.Errorf("%d proposals of %d octets are counted as waiting; none is", c, by)
	}
}

func TestLag(t *testing.T) {
	b := newBench(t)
	n := b.single(func(c *Config) { c.MaxLag = 3 })
	b.ok(b.settle())
	for i := 0; ; i++ {
		o := propose1(n, "nothing")
		b.ok(n.StepCore())
		if o.done == 1 {
			o.want(t, "", ErrOverloaded)
			if i < 3 {
				t.Errorf("refused at a lag of %d, want 3", i)
			}
			break
		}
		if i > 10 {
			t.Fatal("never refused, though nothing is applied")
		}
		for range 2 {
			_, err := n.StepAppend()
			b.ok(err)
		}
		b.ok(n.StepCore())
	}
	b.ok(b.settle())
	o := propose1(n, "nothing")
	b.ok(b.settle())
	if o.err != nil {
		t.Errorf("after apply caught up: %v", o.err)
	}
}

// badLog fails, as a disk does, at the n-th Sync from now on.
type badLog struct {
	*wal.Memory
	left *int
}

var errDisk = errors.New("no space left on device")

func (l badLog) Sync() error {
	if *l.left--; *l.left < 0 {
		return errDisk
	}
	return l.Memory.Sync()
}

type badDisk struct{ *MemoryDisk }

func (badDisk) Write(Meta, []kv.Tree) error { return errDisk }

func TestFailStop(t *testing.T) {
	stop := func(b *bench, n *Node, err error) {
		n.Stop(&StoppedError{Cause: err})
		if held := n.Held(); held != 0 {
			b.t.Errorf("%d readers are open after Stop", held)
		}
	}
	t.Run("log", func(t *testing.T) {
		b := newBench(t)
		meta := testMeta(1, 1)
		left := 1000
		n := b.add(badLog{b.memory(meta), &left}, b.disk(meta))
		b.ok(b.settle())
		ok := propose1(n, "put a 1")
		b.ok(b.settle())
		left = 0
		lost := propose1(n, "put b 2")
		b.ok(n.StepCore())
		queued := propose1(n, "put c 3")
		err := b.settle()
		if !errors.Is(err, errDisk) {
			t.Fatalf("settle: got %v, want the disk's error", err)
		}
		stop(b, n, err)
		ok.want(t, "1", nil)
		lost.want(t, "", ErrStopped)
		lost.want(t, "", errDisk)
		queued.want(t, "", ErrStopped)
	})
	t.Run("state", func(t *testing.T) {
		b := newBench(t)
		meta := testMeta(1, 1)
		n := b.add(b.memory(meta), badDisk{b.disk(meta)})
		b.ok(b.settle())
		propose1(n, "put a 1")
		b.ok(b.settle())
		b.now += time.Second
		err := b.settle()
		if !errors.Is(err, errDisk) {
			t.Fatalf("settle: got %v, want the disk's error", err)
		}
		lost := propose1(n, "put b 2")
		stop(b, n, err)
		lost.want(t, "", ErrStopped)
	})
	for _, command := range []string{"fail", "panic", "put  empty key"} {
		t.Run(command, func(t *testing.T) {
			b := newBench(t)
			n := b.single()
			b.ok(b.settle())
			before, bad, after := propose1(n, "put a 1"), propose1(n, command), propose1(n, "put b 2")
			err := b.settle()
			if err == nil || !strings.Contains(err.Error(), "entry") {
				t.Fatalf("settle: got %v, want an error that names the entry", err)
			}
			v := n.View()
			if got := v.Get(rowsBucket, []byte("a")); got != nil {
				t.Errorf("a part of the entry shows: %q", got)
			}
			v.Release()
			stop(b, n, err)
			for _, o := range []*outcome{before, bad, after} {
				o.want(t, "", ErrStopped)
			}
		})
	}
	t.Run("format of later", func(t *testing.T) {
		b := newBench(t)
		meta := testMeta(1, 1)
		log := b.memory(meta)
		b.ok(log.Append(nil, []*raftpb.Entry{{Term: new(uint64(1)), Index: new(uint64(2)), Data: []byte{entryVersion + 1, 0}}}))
		b.ok(log.Sync())
		b.add(log, b.disk(meta))
		if err := b.settle(); err == nil || !strings.Contains(err.Error(), "upgrade") {
			t.Errorf("an entry of a later format: got %v, want to be told to upgrade", err)
		}
	})
}

// TestBackpressure: while a flush does not end, apply stops at twice the bound,
// and goes on after.
func TestBackpressure(t *testing.T) {
	b := newBench(t)
	n := b.single(func(c *Config) { c.FlushKeys = 10 })
	b.ok(b.settle())
	var all []*outcome
	for i := range 100 {
		all = append(all, propose1(n, fmt.Sprintf("put k%d v", i)))
		for range 4 { // without StepFlush
			b.ok(n.StepCore())
			_, err := n.StepAppend()
			b.ok(err)
			_, err = n.StepApply()
			b.ok(err)
		}
	}
	answered := 0
	for _, o := range all {
		answered += o.done
	}
	// 10 keys in the frozen layer, 20 and a little in the active one.
	if keys := n.overlay.active.keys(); keys < 20 || keys > 25 || answered > 35 {
		t.Errorf("with a flush that hangs, %d keys gathered and %d commands were applied; want apply to wait at 20 keys", keys, answered)
	}
	b.ok(b.settle())
	for i, o := range all {
		o.want(t, fmt.Sprint(i+1), nil)
	}
}

// TestCommitBehindApplied: a node may have synced what it applied but not that
// it was committed.
func TestCommitBehindApplied(t *testing.T) {
	b := newBench(t)
	meta := testMeta(1, 1)
	log, disk := b.memory(meta), b.disk(meta)
	n := b.add(log, disk)
	b.ok(b.settle())
	propose1(n, "put a 1")
	b.ok(b.settle())
	b.ok(n.Drain())
	n.Stop(ErrClosed)
	b.ok(log.Append(&raftpb.HardState{Term: new(uint64(2)), Vote: new(uint64(1)), Commit: new(uint64(1))}, nil))
	n = b.add(log, disk)
	b.ok(b.settle())
	o := propose1(n, "nothing")
	b.ok(b.settle())
	o.want(t, "2", nil)
	v := n.View()
	defer v.Release()
	if got := string(v.Get(rowsBucket, []byte("a"))); got != "1" {
		t.Errorf("a: got %q, want 1", got)
	}
}

// TestMembership grows a cluster of one to three, by learners and by a joint
// change, and hands the leadership on.
func TestMembership(t *testing.T) {
	b := newBench(t)
	logs, disks := map[uint64]*wal.Memory{}, map[uint64]*MemoryDisk{}
	for id := uint64(1); id <= 3; id++ {
		// A node that joins begins where all began, and is no member yet.
		meta := testMeta(id, 1)
		logs[id], disks[id] = b.memory(meta), b.disk(meta)
		b.add(logs[id], disks[id])
	}
	b.ok(b.settle())
	change := func(changes ...Change) error {
		t.Helper()
		err := errors.New("no answer")
		b.nodes[1].Reconfigure(changes, func(e error) { err = e })
		b.pass(100 * time.Millisecond)
		return err
	}
	for i := range 20 {
		propose1(b.nodes[1], fmt.Sprintf("put k%d v", i))
		b.ok(b.settle())
	}
	b.ok(change(Change{Member: Member{ID: 2, Name: "n2", Context: []byte("addr2"), Learner: true}}))
	st := b.nodes[2].Status()
	if !slices.Equal(st.Learners, []uint64{2}) || st.Applied != b.nodes[1].Status().Applied {
		t.Errorf("node 2 as a learner: got %+v, want it to be one and to have caught up with %d", st, b.nodes[1].Status().Applied)
	}
	// A joint membership cannot be left while its majorities are away, and nothing
	// else may change meanwhile.
	joint := errors.New("no answer")
	b.nodes[1].Reconfigure([]Change{{Member: Member{ID: 2}}, {Member: Member{ID: 3, Name: "n3", Context: []byte("addr3")}}}, func(err error) {
		joint, b.cut = err, true
	})
	b.ok(b.settle())
	b.ok(joint)
	if err := change(Change{Member: Member{ID: 4, Name: "n4", Learner: true}}); !errors.Is(err, ErrOverloaded) {
		t.Errorf("a change in a joint membership: got %v, want ErrOverloaded", err)
	}
	b.cut = false
	b.pass(100 * time.Millisecond)
	for id, n := range b.nodes {
		st := n.Status()
		if !slices.Equal(st.Voters, []uint64{1, 2, 3}) || len(st.Learners) != 0 {
			t.Errorf("node %d: voters %v, learners %v; want 1 2 3 and none", id, st.Voters, st.Learners)
		}
		if len(st.Members) != 2 || st.Members[0].Name != "n2" || string(st.Members[1].Context) != "addr3" {
			t.Errorf("node %d: members %+v; want n2 and n3 with their contexts", id, st.Members)
		}
	}
	// What is said of a member changes, and not what it is, nor who is one.
	b.ok(change(Change{Member: Member{ID: 5, Name: "n5", Learner: true}}))
	b.ok(change(Change{Member: Member{ID: 5, Name: "n5", Context: []byte("elsewhere5")}, Describe: true}))
	b.ok(change(Change{Member: Member{ID: 3, Name: "n3", Context: []byte("elsewhere3"), Learner: true}, Describe: true}))
	for id, n := range b.nodes {
		st := n.Status()
		if !slices.Equal(st.Voters, []uint64{1, 2, 3}) || !slices.Equal(st.Learners, []uint64{5}) {
			t.Errorf("node %d, after descriptions: voters %v, learners %v; want 1 2 3 and 5", id, st.Voters, st.Learners)
		}
		if len(st.Members) != 3 || string(st.Members[1].Context) != "elsewhere3" || string(st.Members[2].Context) != "elsewhere5" {
			t.Errorf("node %d, after descriptions: members %+v", id, st.Members)
		}
	}
	if err := change(Change{Member: Member{ID: 6, Name: "n6"}, Describe: true}); err == nil {
		t.Error("who is no member was described, and is one now")
	}
	b.ok(change(Change{Member: Member{ID: 5}, Remove: true}))
	if err := change(Change{Member: Member{ID: 1}, Remove: true}, Change{Member: Member{ID: 2}, Remove: true}, Change{Member: Member{ID: 3}, Remove: true}); err == nil {
		t.Error("all voters could be removed")
	}
	refused := propose1(b.nodes[2], "nothing")
	b.ok(b.settle())
	if e, ok := errors.AsType[*NotLeaderError](refused.err); !ok || e.Leader != 1 {
		t.Errorf("a proposal to a follower: got %v, want to be sent to node 1", refused.err)
	}
	b.nodes[1].Transfer(3)
	b.pass(200 * time.Millisecond)
	if !b.nodes[3].Status().Leading {
		t.Errorf("node 3 does not lead after the transfer: %+v", b.nodes[3].Status())
	}
	o := propose1(b.nodes[3], "put after transfer")
	b.ok(b.settle())
	if o.err != nil {
		t.Errorf("a proposal to the new leader: %v", o.err)
	}
	// The membership outlives a restart, and stands nowhere but in the state.
	b.pass(1200 * time.Millisecond)
	b.nodes[2].Stop(ErrClosed)
	logs[2].Crash()
	n := b.add(logs[2], disks[2])
	if st := n.Status(); !slices.Equal(st.Voters, []uint64{1, 2, 3}) || len(st.Members) != 2 {
		t.Errorf("node 2 after a restart: %+v", st)
	}
	b.pass(500 * time.Millisecond)
	if got, want := n.Status().Applied, b.nodes[3].Status().Applied; got != want {
		t.Errorf("node 2 after a restart: applied %d, want %d", got, want)
	}
}

// TestReadsOfALoneLeader: a node that restarts does not know at once what it
// had committed; a linearizable read waits until it does.
func TestReadsOfALoneLeader(t *testing.T) {
	b := newBench(t)
	meta := testMeta(1, 1)
	log, disk := b.memory(meta), b.disk(meta)
	n := b.add(log, disk)
	b.ok(b.settle())
	o := propose1(n, "put a 1")
	b.ok(b.settle())
	o.want(t, "1", nil)
	n.Stop(ErrUnknown)
	log.Crash() // the commit index goes back to before the entry
	n = b.add(log, disk)
	done := false
	n.ReadIndex(func(err error) {
		done = true
		v := n.View()
		defer v.Release()
		if got := string(v.Get(rowsBucket, []byte("a"))); err != nil || got != "1" {
			t.Errorf("a linearizable read after the restart: got %q, %v; want what was acknowledged before", got, err)
		}
	})
	if n.Alone() {
		t.Error("the node takes its state for the newest before it has applied its log")
	}
	b.ok(b.settle())
	if !done || !n.Alone() {
		t.Errorf("read answered: %v, alone: %v; want both", done, n.Alone())
	}
}

// TestNoQuorum: what needs the others is refused in time, what does not goes on.
func TestNoQuorum(t *testing.T) {
	b := newBench(t)
	for id := uint64(1); id <= 3; id++ {
		meta := testMeta(id, 1, 2, 3)
		b.add(b.memory(meta), b.disk(meta))
	}
	b.pass(time.Second)
	var leader *Node
	for _, n := range b.nodes {
		if n.Status().Leading {
			leader = n
		}
	}
	if leader == nil {
		t.Fatal("three nodes elected nobody in a second")
	}
	b.pass(200 * time.Millisecond)
	for id, n := range b.nodes {
		if age, known := n.Age(); !known || age > 150*time.Millisecond {
			t.Errorf("node %d: age %v, %v; want 150ms at most", id, age, known)
		}
	}
	b.nodes = map[uint64]*Node{leader.Status().Identity.Node: leader}
	o := propose1(leader, "put a 1")
	var readErr error
	leader.ReadIndex(func(err error) { readErr = err })
	b.pass(3 * time.Second)
	o.want(t, "", ErrUnknown)
	if !errors.Is(readErr, ErrNoLeader) {
		t.Errorf("a linearizable read without a quorum: got %v, want ErrNoLeader", readErr)
	}
	late := propose1(leader, "put b 1")
	b.ok(b.settle())
	late.want(t, "", ErrNoLeader)
	if age, known := leader.Age(); !known || age < 3*time.Second {
		t.Errorf("age after three seconds alone: %v, %v", age, known)
	}
}

// A node that never runs long enough to write MarkBytes marks its log all the
// same, or the log would grow with every start.
func TestLogIsMarkedAcrossRestarts(t *testing.T) {
	b := newBench(t)
	meta := testMeta(1, 1)
	log, disk := b.memory(meta), b.disk(meta)
	short := func(c *Config) { c.LogEntries, c.MarkBytes, c.FlushKeys = 20, 20_000, 10 }
	most := 0
	for life := range 20 {
		n := b.add(log, disk, short)
		b.ok(b.settle())
		for i := range 40 {
			propose1(n, fmt.Sprintf("put k%d %d", i, life))
			b.ok(b.settle())
		}
		b.now += 2 * time.Second
		b.ok(b.settle())
		b.ok(n.Drain())
		n.Stop(ErrClosed)
		delete(b.nodes, 1)
		replay := log.Replay(disk.Meta().Mark.Index)
		if replay == nil {
			t.Fatal("the log cannot be opened again")
		}
		most = max(most, len(replay.Entries))
	}
	// MarkBytes are 140 of these entries at most.
	if most > 250 {
		t.Errorf("a start reads %d entries again", most)
	}
}
