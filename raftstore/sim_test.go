package raftstore

import (
	"bytes"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"log/slog"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/cryptotest"
	"time"

	"github.com/rookery-mail/rookery/internal/kv"
	"github.com/rookery-mail/rookery/raftstore/snap"
	"github.com/rookery-mail/rookery/raftstore/wal"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// TestSimulation drives three nodes, with logs and disks in memory that lose
// what was not synced, through crashes, partitions, lost, delayed and doubled
// messages, in an order drawn from a seed. It is a small brother of the
// simulator, and shows that all of a node is steps.
func TestSimulation(t *testing.T) {
	var all simCounts
	for seed := uint64(1); seed <= 8; seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			_, c := simulate(t, seed)
			all.crashedBefore += c.crashedBefore
			all.crashedAfter += c.crashedAfter
			all.broken += c.broken
			all.installed += c.installed
			all.swaps += c.swaps
		})
	}
	if all.installed < 8 || all.crashedBefore == 0 || all.crashedAfter == 0 || all.broken == 0 || all.swaps == 0 {
		t.Errorf("too little happened to installations: %+v", all)
	}
}

// TestSimulationIsDeterministic: the same seed gives the same run.
func TestSimulationIsDeterministic(t *testing.T) {
	var digests []uint64
	for range 2 {
		t.Run("", func(t *testing.T) {
			digest, _ := simulate(t, 42)
			digests = append(digests, digest)
		})
	}
	if digests[0] != digests[1] {
		t.Errorf("two runs of one seed: digests %x and %x", digests[0], digests[1])
	}
}

const (
	simNodes = 3
	simTime  = 20 * time.Second // of faults
	simHeal  = 8 * time.Second  // without: a node may need several snapshots, of which some are lost or damaged
	simQuiet = time.Second      // and without commands, to converge in
)

type sim struct {
	t     *testing.T
	rnd   *rand.Rand
	now   time.Duration
	nodes []*simNode
	net   []simMessage
	files []simFile
	trace uint64

	loss      float64
	cut       [simNodes + 1][simNodes + 1]bool // messages from a to b are lost
	nextFault time.Duration
	nextLoad  time.Duration

	// What clients know.
	proposed int
	acked    []simAck
	refused  map[string]bool
	// What was applied: the command of each revision, the state's hash at each
	// index, and the leader of each term.
	history map[uint64]string
	hashes  map[uint64]uint64
	leaders map[uint64]uint64
	sums    map[uint64]uint64 // at each index
	nextSum time.Duration     // when somebody tells somebody a sum, and somebody scrubs
	counts  simCounts

	// logEntries is how many are kept for nodes that lag. Few: there are snapshots,
	// which replace a state, also one that differs.
	logEntries int

	// odd is a node whose machine does something else than the others' from a
	// revision on; 0: none.
	odd uint64
}

// simCounts is what happened, so that a run in which nothing did proves nothing.
type simCounts struct {
	crashes, restarts, partitions, reads, unknown, locals, lapses, sums, scrubs int
	// Snapshots sent, damaged on their way, installed, not taken; crashes before
	// and after the state of one was in its place; exchanges of the disk.
	sent, broken, installed, ignored, crashedBefore, crashedAfter, swaps int
}

// oddFrom is the revision that the odd machine gets wrong.
const oddFrom = 700

type simAck struct {
	at       time.Duration
	revision uint64
	command  string
}

// simFile is a snapshot on its way from one node to another, or the news of
// what became of it on its way back.
type simFile struct {
	at       time.Duration
	from, to uint64
	term     uint64
	data     []byte
	report   bool
	ok       bool
}

type simMessage struct {
	at time.Duration
	m  *raftpb.Message
}

type simNode struct {
	s      *sim
	id     uint64
	log    *wal.Memory
	disk   *MemoryDisk
	told   uint64 // the index of the sum it told last
	node   *Node  // nil while it is down
	backAt time.Duration
	syncAt time.Duration // when the disk is done with what it was given

	installing bool
	crashIn    int // steps of an installation until it crashes; 0: it does not
}

// The Network and the Clock of a node.
func (n *simNode) Send(messages []*raftpb.Message) {
	for _, m := range messages {
		if m.GetType() == raftpb.MsgSnap {
			n.sendFile(m)
			continue
		}
		copies := 1
		if n.s.rnd.IntN(50) == 0 {
			copies = 2
		}
		for range copies {
			if n.s.rnd.Float64() < n.s.loss {
				continue
			}
			delay := time.Duration(n.s.rnd.IntN(3000)) * time.Microsecond
			if n.s.rnd.IntN(100) == 0 {
				delay += time.Duration(n.s.rnd.IntN(300)) * time.Millisecond
			}
			n.s.net = append(n.s.net, simMessage{n.s.now + delay, proto.Clone(m).(*raftpb.Message)})
		}
	}
}

// sendFile is the transport: it takes an image of what is on disk now, which may
// be later than what the message says, and reports in any case.
func (n *simNode) sendFile(m *raftpb.Message) {
	n.s.counts.sent++
	f := simFile{from: n.id, to: m.GetTo(), term: m.GetTerm(), at: n.s.now + time.Duration(n.s.rnd.IntN(600))*time.Millisecond}
	var out bytes.Buffer
	err := n.disk.Image(func(m Meta, write func(io.Writer) error) error {
		w, err := snap.NewWriter(&out, m.header(snap.Rows))
		return errors.Join(err, write(w), w.Close())
	})
	if err != nil {
		n.s.t.Errorf("image: %v", err)
	}
	f.data = out.Bytes()
	switch n.s.rnd.IntN(4) {
	case 0: // lost on its way
		f = simFile{from: f.to, to: f.from, at: f.at, report: true}
	case 1: // damaged
		f.data[n.s.rnd.IntN(len(f.data))] ^= 1 << n.s.rnd.IntN(8)
	}
	n.s.files = append(n.s.files, f)
}

// arrive takes a file, or the news of one.
func (s *sim) arrive(f simFile) {
	to := s.nodes[f.to-1]
	answer := func(ok bool) {
		s.files = append(s.files, simFile{from: f.to, to: f.from, report: true, ok: ok, at: s.now + time.Duration(s.rnd.IntN(20))*time.Millisecond})
	}
	switch {
	case f.report:
		if to.node != nil {
			to.node.ReportSnapshot(f.from, f.ok)
		}
		return
	case to.node == nil || s.cut[f.from][f.to]:
		answer(false)
		return
	}
	r, err := snap.NewReader(bytes.NewReader(f.data))
	var staged Staged
	if err == nil {
		staged, err = to.disk.Stage(r)
	}
	if err != nil {
		s.counts.broken++
		answer(false)
		return
	}
	id := to.disk.Meta().Identity
	if err := staged.SetMeta(staged.Meta().adopt(id, to.disk.Meta().Name)); err != nil {
		s.t.Errorf("staged meta: %v", err)
	}
	to.installing, to.crashIn = true, 0
	if s.rnd.IntN(2) == 0 && s.now < simTime {
		to.crashIn = 1 + s.rnd.IntN(12)
	}
	to.node.Install(staged, f.from, f.term, func(err error) {
		to.installing = false
		switch {
		case err == nil:
			s.counts.installed++
		case errors.Is(err, ErrNotNeeded), errors.Is(err, ErrNotTaken):
			s.counts.ignored++
		}
		answer(err == nil || errors.Is(err, ErrNotNeeded))
	})
}

func (n *simNode) Now() time.Duration { return n.s.now }
func (n *simNode) Wall() time.Time    { return time.UnixMilli(n.s.now.Milliseconds()) }

// simMachine notes what each revision was, and that all nodes agree on it.
type simMachine struct {
	testMachine
	s *sim
	n *simNode
}

func (m simMachine) Apply(tx kv.Tx, st Stamp, command []byte) ([]byte, error) {
	result, err := m.testMachine.Apply(tx, st, command)
	rev := number(tx, revisionKey)
	if before, ok := m.s.history[rev]; ok && before != string(command) {
		m.s.t.Errorf("revision %d is %q here and %q elsewhere", rev, command, before)
	}
	m.s.history[rev] = string(command)
	if m.n.id == m.s.odd && rev == oddFrom {
		tx.Put(rowsBucket, []byte("odd"), nil)
	}
	if string(command) == "tick" {
		m.s.counts.lapses++
	}
	return result, err
}

func (n *simNode) start() {
	meta := n.disk.Meta()
	replay := n.log.Replay(meta.Mark.Index)
	if replay == nil {
		n.s.t.Fatalf("node %d: no mark at %v", n.id, meta.Mark)
	}
	cfg := Config{
		Dir: "-", Name: meta.Name, Machine: simMachine{s: n.s, n: n}, Network: n, Clock: n, Log: slog.New(slog.DiscardHandler),
		// Small, so that flushes, marks and compaction happen often.
		FlushKeys: 200, LogEntries: n.s.logEntries, MarkBytes: 10_000,
	}
	node, err := NewNode(cfg, n.log, replay, n.disk)
	if err != nil {
		n.s.t.Fatalf("node %d: %v", n.id, err)
	}
	n.node = node
}

func (n *simNode) crash() {
	// A crash ends the process: who waited there knows nothing.
	n.node.Stop(ErrUnknown)
	n.node, n.installing, n.crashIn = nil, false, 0
	n.log.Crash()
	n.backAt = n.s.now + time.Duration(n.s.rnd.IntN(1500))*time.Millisecond
	if n.s.rnd.IntN(3) == 0 {
		n.backAt += 2 * time.Second // long enough to fall behind the log
	}
}

func simulate(t *testing.T, seed uint64) (digest uint64, counts simCounts) {
	s := newSim(t, seed, 50)
	s.run()
	s.finish()
	t.Logf("seed %d: %d commands proposed, %d acknowledged, %d applied, %+v", seed, s.proposed, len(s.acked), len(s.history), s.counts)
	return s.trace, s.counts
}

// TestSimulationFindsDivergence: a machine that once does something else on one
// node is found out by that node, and by the others, however they crash.
func TestSimulationFindsDivergence(t *testing.T) {
	for seed := uint64(1); seed <= 4; seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			s := newSim(t, seed, 1<<20)
			s.odd = 1 + seed%simNodes
			s.run()
			for _, n := range s.nodes {
				want := Same
				if n.id == s.odd {
					want = Odd
				}
				if got := n.node.Judge(); got != want {
					t.Errorf("node %d, where node %d is the odd one, judges %v, want %v", n.id, s.odd, got, want)
				}
				differs := n.node.sums.differences([]Member{{ID: 1}, {ID: 2}, {ID: 3}})
				if n.id != s.odd && (len(differs) != 1 || differs[0].Node != s.odd) {
					t.Errorf("node %d names %v, want node %d", n.id, differs, s.odd)
				}
			}
		})
	}
}

func newSim(t *testing.T, seed uint64, logEntries int) *sim {
	cryptotest.SetGlobalRandom(t, seed)
	s := &sim{
		t: t, rnd: rand.New(rand.NewPCG(seed, 1)), now: time.Second, logEntries: logEntries,
		refused: map[string]bool{}, history: map[uint64]string{}, hashes: map[uint64]uint64{}, leaders: map[uint64]uint64{}, sums: map[uint64]uint64{},
	}
	for id := uint64(1); id <= simNodes; id++ {
		meta := testMeta(id, 1, 2, 3)
		n := &simNode{s: s, id: id}
		n.log = wal.NewMemory(meta.Identity.marshal(), testMark(meta))
		n.disk = NewMemoryDisk(3, meta)
		n.start()
		s.nodes = append(s.nodes, n)
	}
	return s
}

func (s *sim) run() {
	for s.now < simTime+simHeal+simQuiet && !s.t.Failed() {
		s.step()
	}
}

// action is something that could happen now.
type action struct {
	what string
	do   func()
}

// step does one of the things that could happen now, or lets time pass.
func (s *sim) step() {
	var can []action
	next := min(s.nextFault, s.nextLoad, s.nextSum)
	for _, n := range s.nodes {
		if n.node == nil {
			next = min(next, n.backAt)
			if s.now >= n.backAt {
				can = append(can, action{fmt.Sprint("restart ", n.id), func() {
					n.start()
					s.counts.restarts++
				}})
			}
			continue
		}
		core, flush := n.node.Wake()
		next = min(next, core, flush)
		if s.now >= core || n.node.events.len() > 0 {
			can = append(can, action{fmt.Sprint("core ", n.id), func() {
				s.must(n, n.node.StepCore())
				s.stepped(n)
			}})
		}
		if len(n.node.appender.written) > 0 {
			next = min(next, n.syncAt)
		}
		a := n.node.appender
		ready := len(a.written) == 0 && (n.node.appends.len() > 0 || len(a.held) > 0)
		if a.installing != nil {
			ready = n.node.resumes.len() > 0
		}
		if len(a.written) > 0 && s.now >= n.syncAt || ready {
			can = append(can, action{fmt.Sprint("append ", n.id), func() {
				s.did(n, n.node.StepAppend)
				n.syncAt = s.now + time.Duration(s.rnd.IntN(2000))*time.Microsecond
				s.stepped(n)
			}})
		}
		if s.now >= flush || n.node.applies.len() > 0 && !n.node.applier.full() {
			can = append(can, action{fmt.Sprint("apply ", n.id), func() {
				s.did(n, n.node.StepApply)
				s.observe(n)
				s.stepped(n)
			}})
		}
		if n.node.applier.full() && slices.ContainsFunc(n.node.applies.items, applyJob.ofDisk) {
			can = append(can, action{fmt.Sprint("apply ", n.id), func() { s.did(n, n.node.StepApply); s.observe(n) }})
		}
		if n.node.flushes.len() > 0 {
			can = append(can, action{fmt.Sprint("flush ", n.id), func() {
				s.did(n, n.node.StepFlush)
				s.stepped(n)
			}})
		}
	}
	for i, f := range s.files {
		next = min(next, f.at)
		if s.now >= f.at {
			can = append(can, action{"arrive", func() {
				s.files = slices.Delete(s.files, i, i+1)
				s.arrive(f)
			}})
		}
	}
	for i, m := range s.net {
		next = min(next, m.at)
		if s.now >= m.at {
			can = append(can, action{"deliver", func() { s.deliver(i) }})
		}
	}
	if s.now >= s.nextFault {
		can = append(can, action{"fault", s.fault})
	}
	if s.now >= s.nextSum {
		can = append(can, action{"sum", s.tellSum})
	}
	if s.now >= s.nextLoad {
		can = append(can, action{"load", s.load})
	}
	if len(can) == 0 {
		s.now = next
		return
	}
	a := can[s.rnd.IntN(len(can))]
	a.do()
	s.digest(a.what, s.now)
}

func (s *sim) must(n *simNode, err error) {
	if err != nil {
		s.t.Fatalf("node %d: %v", n.id, err)
	}
	st := n.node.Status()
	if st.Leading {
		if before, ok := s.leaders[st.Term]; ok && before != n.id {
			s.t.Errorf("term %d has two leaders, %d and %d", st.Term, before, n.id)
		}
		s.leaders[st.Term] = n.id
	}
}

func (s *sim) did(n *simNode, step func() (bool, error)) {
	_, err := step()
	s.must(n, err)
}

// stepped crashes a node at one of the steps of an installation.
func (s *sim) stepped(n *simNode) {
	if n.crashIn > 0 && n.installing {
		if n.crashIn--; n.crashIn == 0 {
			s.counts.crashes++
			in := n.node.core.taken
			n.crash()
			if in != nil && n.disk.Meta().Applied.Index < in.meta.Applied.Index {
				s.counts.crashedBefore++
			} else if in != nil {
				s.counts.crashedAfter++
			}
		}
	}
}

func (s *sim) digest(what string, more any) {
	h := fnv.New64a()
	fmt.Fprint(h, s.trace, what, more)
	s.trace = h.Sum64()
}

func (s *sim) deliver(i int) {
	m := s.net[i].m
	s.net = slices.Delete(s.net, i, i+1)
	to := s.nodes[m.GetTo()-1]
	if to.node != nil && !s.cut[m.GetFrom()][m.GetTo()] {
		to.node.Receive(m)
	}
}

// fault starts or ends something bad. After simTime all is well.
func (s *sim) fault() {
	s.nextFault = s.now + time.Duration(s.rnd.IntN(1200))*time.Millisecond
	s.cut = [simNodes + 1][simNodes + 1]bool{}
	s.loss = 0
	if s.now > simTime {
		return
	}
	a, b := 1+s.rnd.IntN(simNodes), 1+s.rnd.IntN(simNodes)
	switch s.rnd.IntN(7) {
	case 6:
		if n := s.nodes[a-1]; n.node != nil {
			n.node.Swap(func() error { return nil }, func(error) { s.counts.swaps++ })
		}
	case 0:
		s.counts.partitions++
		for i := range s.cut {
			s.cut[a][i], s.cut[i][a] = true, true
		}
	case 1:
		s.counts.partitions++
		s.cut[a][b] = true // one way
	case 2:
		s.loss = s.rnd.Float64() / 2
	case 3, 4:
		if n := s.nodes[a-1]; n.node != nil {
			s.counts.crashes++
			n.crash()
			if s.rnd.IntN(2) == 0 {
				s.lost(n.id)
			}
		}
	case 5: // who leads is a matter of opinion
		n := s.nodes[a-1]
		switch {
		case n.node == nil:
		case s.rnd.IntN(2) == 0:
			n.node.Lost(uint64(b))
		default:
			n.node.Transfer(uint64(b))
		}
	}
}

// lost tells those that run that a node is gone.
func (s *sim) lost(id uint64) {
	for _, n := range s.nodes {
		if n.node != nil {
			n.node.Lost(id)
		}
	}
}

// load is what clients do: mostly to the leader, sometimes to anybody.
func (s *sim) load() {
	s.nextLoad = s.now + time.Duration(s.rnd.IntN(20))*time.Millisecond
	if s.now > simTime+simHeal {
		return
	}
	n := s.nodes[s.rnd.IntN(simNodes)]
	for _, other := range s.nodes {
		if other.node != nil && other.node.Status().Leading && s.rnd.IntN(10) > 0 {
			n = other
		}
	}
	if n.node == nil {
		return
	}
	for range 1 + s.rnd.IntN(5) {
		s.propose(n)
	}
	reader := s.nodes[s.rnd.IntN(simNodes)]
	if reader.node == nil {
		return
	}
	s.local(reader)
	least := s.lastAck(s.now)
	node := reader.node
	node.ReadIndex(func(err error) {
		if err != nil {
			return
		}
		s.counts.reads++
		v := node.View()
		defer v.Release()
		if got := number(v, revisionKey); got < least {
			s.t.Errorf("a linearizable read on node %d shows revision %d; %d was acknowledged before it began", reader.id, got, least)
		}
	})
}

func (s *sim) propose(n *simNode) {
	s.proposed++
	command := fmt.Sprintf("put k%d %d", s.rnd.IntN(500), s.proposed)
	if s.rnd.IntN(4) == 0 {
		command = fmt.Sprintf("del k%d %d", s.rnd.IntN(500), s.proposed)
	} else if s.rnd.IntN(20) == 0 && s.now < simTime+simHeal-2*time.Second {
		// They ring in time to be known everywhere at the end.
		command = fmt.Sprintf("alarm a%d %d", s.proposed, s.rnd.IntN(2000))
	}
	n.node.Propose([]byte(command), func(result []byte, err error) {
		s.digest(string(result), err)
		switch {
		case err == nil:
			ack := simAck{at: s.now, command: command}
			fmt.Sscan(string(result), &ack.revision)
			v := n.node.View()
			defer v.Release()
			if got := number(v, revisionKey); got < ack.revision {
				s.t.Errorf("revision %d was acknowledged by node %d, whose views show %d", ack.revision, n.id, got)
			}
			s.acked = append(s.acked, ack)
		case errors.Is(err, ErrUnknown):
			s.counts.unknown++
		default:
			s.refused[command] = true
		}
	})
}

// tellSum has a node tell another its sum, and one scrub its disk a little.
func (s *sim) tellSum() {
	s.nextSum = s.now + time.Duration(s.rnd.IntN(100))*time.Millisecond
	from, to := s.nodes[s.rnd.IntN(simNodes)], s.nodes[s.rnd.IntN(simNodes)]
	if from.node == nil {
		return
	}
	if to.node != nil && to != from && !s.cut[from.id][to.id] {
		at := from.node.sums.roundest(from.told)
		from.told = at.index
		to.node.CompareSum(from.id, at.index, at.sum)
		s.counts.sums++
	}
	_, done, err := from.node.StepScrub(1 + s.rnd.IntN(2000))
	if err != nil {
		s.t.Errorf("node %d: %v", from.id, err)
	}
	if done {
		s.counts.scrubs++
	}
}

// lastAck returns the highest revision acknowledged up to a time.
func (s *sim) lastAck(until time.Duration) (revision uint64) {
	for i := len(s.acked) - 1; i >= 0 && i > len(s.acked)-2000; i-- {
		if s.acked[i].at <= until {
			revision = max(revision, s.acked[i].revision)
		}
	}
	return revision
}

// local reads without asking anybody and holds the view against its age.
func (s *sim) local(n *simNode) {
	age, known := n.node.Age()
	if !known {
		return
	}
	s.counts.locals++
	v := n.node.View()
	defer v.Release()
	if got, least := number(v, revisionKey), s.lastAck(s.now-age-1); got < least {
		s.t.Errorf("node %d says that its state is %v old at most and shows revision %d; %d was acknowledged before", n.id, age, got, least)
	}
}

// observe compares a node's state with that of others at the same index.
func (s *sim) observe(n *simNode) {
	v := n.node.View()
	defer v.Release()
	hash := number(v, hashKey) ^ number(v, timeKey)*31 ^ number(v, revisionKey)
	if before, ok := s.hashes[v.Applied()]; ok && before != hash {
		s.t.Errorf("node %d has another state at index %d than others", n.id, v.Applied())
	}
	s.hashes[v.Applied()] = hash
	if s.odd != 0 {
		return
	}
	_, sum := n.node.Sum()
	if before, ok := s.sums[v.Applied()]; ok && before != sum {
		s.t.Errorf("node %d has another sum at index %d than others", n.id, v.Applied())
	}
	s.sums[v.Applied()] = sum
	if s.rnd.IntN(20) == 0 {
		if want := viewSum(v); sum != want {
			s.t.Errorf("node %d at index %d has the sum %x, its rows come to %x", n.id, v.Applied(), sum, want)
		}
	}
}

// viewSum recomputes the sum of all rows of a view.
func viewSum(v *View) (sum uint64) {
	for i, b := range v.o.buckets {
		it := v.Iterate(b)
		for k, val := it.Seek(nil); k != nil; k, val = it.Next() {
			sum += rowHash(v.o.seeds[i], k, val)
		}
	}
	return sum
}

// finish checks what must hold once all nodes are back and connected.
func (s *sim) finish() {
	if s.t.Failed() {
		return
	}
	for _, a := range s.acked {
		if s.history[a.revision] != a.command {
			s.t.Errorf("%q was acknowledged as revision %d, which is %q", a.command, a.revision, s.history[a.revision])
		}
	}
	for rev, command := range s.history {
		if s.refused[command] {
			s.t.Errorf("%q was refused as not done, and is revision %d", command, rev)
		}
	}
	var want []string
	for _, n := range s.nodes {
		if n.node == nil {
			s.t.Fatalf("node %d is down at the end", n.id)
		}
		if got := n.node.Judge(); got != Same {
			s.t.Errorf("node %d judges %v at the end", n.id, got)
		}
		v := n.node.View()
		got := []string{fmt.Sprint("revision ", number(v, revisionKey))}
		it := v.Iterate(rowsBucket)
		for k, val := it.Seek(nil); k != nil; k, val = it.Next() {
			got = append(got, fmt.Sprintf("%s=%s", k, val))
		}
		v.Release()
		if want == nil {
			want = got
		}
		if !slices.Equal(got, want) {
			i := 0
			for i < min(len(want), len(got)) && want[i] == got[i] {
				i++
			}
			s.t.Errorf("nodes 1 and %d differ at the end, first in:\n%.200q\n%.200q", n.id, want[i:], got[i:])
		}
	}
	late := 0
	for _, a := range s.acked {
		if a.at > simTime+simHeal-2*time.Second {
			late++
		}
	}
	if late < 50 {
		s.t.Errorf("only %d commands were acknowledged in the last two seconds: the cluster did not recover", late)
	}
	if s.nodes[0].disk.Meta().Mark == start {
		s.t.Errorf("the log of node 1 was never marked or compacted")
	}
	if s.counts.crashes < 3 || s.counts.reads < 100 || s.counts.lapses == 0 || s.counts.sums < 50 || s.counts.scrubs < 3 || len(s.acked) < 300 {
		s.t.Errorf("too little happened for this to prove anything: %d acknowledged, %+v", len(s.acked), s.counts)
	}
}
