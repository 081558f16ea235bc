//go:build upgrade

package upgrade

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/directory/machine"
	"github.com/rookery-mail/rookery/internal/kv"
	"github.com/rookery-mail/rookery/internal/oracle"
	"github.com/rookery-mail/rookery/raftstore"
	"github.com/rookery-mail/rookery/raftstore/wal"
	"github.com/rookery-mail/rookery/server"
)

// This file judges what a cluster of several releases did, once its nodes have ended.
// The log is played to the naive model (internal/oracle) and to the present rules, at
// the cluster version that it says itself. What clients were told, whichever release
// told them, is what the model says; and each node's state, whichever release made it,
// is to the octet what the present rules make of the log. So a rule that two releases
// have each in a way of their own shows, whoever led and whoever answered.

// logged is a command of the log.
type logged struct {
	command machine.Command
	stamp   raftstore.Stamp
	data    []byte
}

// readLog returns the commands that all nodes have, in order. What two nodes have
// differently is a failure.
func readLog(t *testing.T, nodes []*node) (all []logged) {
	t.Helper()
	whole := map[uint64]*raftpb.Entry{}
	for _, n := range nodes {
		entries, last, commit := map[uint64]*raftpb.Entry{}, uint64(0), uint64(0)
		err := wal.Records(filepath.Join(n.data, "shard-1"), func(r wal.Record) error {
			switch {
			case r.Entry != nil:
				for ; last >= r.Entry.GetIndex() && last > 0; last-- {
					delete(entries, last) // replaced
				}
				if r.Entry.GetTerm() > 0 {
					last = r.Entry.GetIndex()
					entries[last] = r.Entry
				}
			case r.Hard != nil:
				commit = max(commit, r.Hard.GetCommit())
			}
			return nil
		})
		if err != nil {
			t.Fatalf("the log of %s: %v", n.name, err)
		}
		for i, e := range entries {
			if i > commit {
				continue
			}
			if known := whole[i]; known != nil && (known.GetTerm() != e.GetTerm() || !bytes.Equal(known.GetData(), e.GetData())) {
				t.Fatalf("entry %d of %s is not the others'", i, n.name)
			}
			whole[i] = e
		}
	}
	next := uint64(0)
	for _, i := range slices.Sorted(maps.Keys(whole)) {
		if next != 0 && i != next {
			t.Fatalf("entries %d to %d of the log are nowhere", next, i-1)
		}
		next = i + 1
		if whole[i].GetType() != raftpb.EntryNormal {
			continue
		}
		data, stamps, err := raftstore.Commands(whole[i].GetData())
		if err != nil {
			t.Fatalf("entry %d: %v", i, err)
		}
		for j := range data {
			c, err := machine.DecodeCommand(data[j])
			if err != nil {
				t.Fatalf("entry %d: %v", i, err)
			}
			all = append(all, logged{c, stamps[j], data[j]})
		}
	}
	if len(all) == 0 {
		t.Fatal("no command in the log")
	}
	if _, ok := all[0].command.Op.(machine.Init); !ok {
		t.Fatalf("the log begins with %T", all[0].command.Op)
	}
	return all
}

// played is a command, and what it has to come to.
type played struct {
	*logged
	want machine.Result
}

type request struct {
	client   string
	sequence uint64
}

// judge judges. The nodes have ended.
func judge(t *testing.T, l *load) {
	t.Helper()
	states := map[*node]opened{}
	byRevision := map[directory.Revision][]*node{}
	for _, n := range l.nodes {
		o, rev := openStopped(t, n)
		states[n] = o
		byRevision[rev] = append(byRevision[rev], n)
	}
	log := readLog(t, l.nodes)
	rules, naive := machine.New(), oracle.New()
	memory := kv.NewMemory(rules.Buckets()...)
	done := map[directory.Revision]*played{}
	requests := map[request]*played{}
	counts := newKinds(l.windows)
	compared := 0
	for i := range log {
		c := &log[i]
		tx := memory.Begin()
		answer, err := rules.Apply(tx, directory.Time(c.stamp.Elapsed), c.stamp.Wall, c.data)
		if err != nil {
			t.Fatalf("command %d, %s: %v", i, oracle.FormatOp(c.command.Op), err)
		}
		tx.Commit()
		got, err := machine.DecodeResult(answer)
		if err != nil {
			t.Fatal(err)
		}
		p := &played{c, naive.Follow(directory.Time(c.stamp.Elapsed), c.command, got)}
		rev := naive.Revision()
		if d := oracle.Compare(c.command.Op, got, p.want); d != "" {
			t.Fatalf("revision %d, %s: rules and model differ: %s\n%s", rev, oracle.FormatOp(c.command.Op), d, kept(log[:i+1]))
		}
		done[rev] = p
		r := request{c.command.Client, c.command.Sequence}
		if first := requests[r]; r.client == "" {
			counts.add(uint64(rev), c.command.Op, p.want)
		} else if first == nil {
			requests[r] = p
			counts.add(uint64(rev), c.command.Op, p.want)
		} else if got.Revision != first.want.Revision && !errors.Is(got.Refused, directory.ErrStaleRequest) {
			t.Errorf("revision %d: request %d of %s was done twice", rev, r.sequence, r.client)
		}
		for _, n := range byRevision[rev] {
			compared++
			alikeToTheOctet(t, n, states[n], rules, memory.Snapshot())
		}
		if i%500 == 499 || i == len(log)-1 {
			// What is derived follows a sweep; the model may have no more to do than the
			// rules have.
			if st, err := rules.Status(memory.Snapshot()); err != nil || len(st.Sweeps) > 0 || naive.Sweeping() {
				if err != nil {
					t.Fatal(err)
				}
				continue
			}
			if d, err := naive.Difference(rules, memory.Snapshot()); err != nil || d != "" {
				t.Fatalf("revision %d: the state of the rules and the model's differ: %s, %v\n%s\n%s", rev, d, err, ledTo(log[:i+1], d), kept(log[:i+1]))
			}
		}
	}
	if compared != len(l.nodes) {
		t.Errorf("the states of %d nodes were compared, want %d: they are of revisions %v, the log ends at %d", compared, len(l.nodes), slices.Collect(maps.Keys(byRevision)), naive.Revision())
	}
	answers := 0
	for _, b := range l.busy {
		answers += b.judge(t, done, requests)
	}
	counts.judge(t)
	t.Logf("judged: %d commands of the log, %d answers, the states of %d nodes", len(log), answers, compared)
	t.Logf("commands, of them taken, of those while releases were mixed:\n%s", counts)
}

// kept writes commands to a file that the chaos harness can play again, for they never
// come again by themselves, and says how.
func kept(log []logged) string {
	f, err := os.CreateTemp("", "rookery-upgrade-commands-")
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	w := bufio.NewWriter(f)
	for i := range log {
		c := &log[i]
		fmt.Fprintf(w, "%d %d %d %s\n", i+1, c.stamp.Elapsed, c.stamp.Wall, base64.StdEncoding.EncodeToString(c.data))
	}
	if err := w.Flush(); err != nil {
		return err.Error()
	}
	return fmt.Sprintf("its commands again: go test -tags peers ./internal/chaos -run '^TestChaos$' -count 1 -v -args -chaos.replay %s", f.Name())
}

// ledTo lists the last commands about what a difference is about, and those about
// backends and groups between them.
func ledTo(log []logged, difference string) string {
	_, name, _ := strings.Cut(difference, "got  ")
	name, _, _ = strings.Cut(name, ":")
	for word := range strings.FieldsSeq(name) {
		if strings.HasPrefix(word, "user.") {
			name = word // of a posting, which begins with whom it is for
		}
	}
	var lines []string
	for i := len(log) - 1; i >= 0 && len(lines) < 60; i-- {
		text := oracle.FormatOp(log[i].command.Op)
		_, batch := log[i].command.Op.(machine.Batch)
		for line := range strings.SplitSeq(text, "\n") {
			about := strings.Contains(line+" ", " "+name+" ")
			if about || !batch && !strings.Contains(line, " user.") && !strings.HasPrefix(line, "tick") {
				lines = append(lines, fmt.Sprintf("%d +%d %s", i+1, log[i].stamp.Elapsed, line))
			}
		}
	}
	slices.Reverse(lines)
	return strings.Join(lines, "\n")
}

// judge holds what one client was told against what it should have been.
func (b *busy) judge(t *testing.T, done map[directory.Revision]*played, requests map[request]*played) (answers int) {
	t.Helper()
	id := ""
	for _, a := range b.asked {
		if p := done[a.result.Revision]; p != nil && p.command.Client != "" {
			id = p.command.Client
			break
		}
	}
	for i, a := range b.asked {
		p := requests[request{id, uint64(i + 1)}]
		if p == nil {
			t.Errorf("busy %d, write %d, %s: it was answered, and the log does not have it", b.id, i+1, formatOp(a.op))
			return answers
		}
		if a.op != nil && !reflect.DeepEqual(a.op, p.command.Op) {
			t.Errorf("busy %d, write %d, %s: the log has %s", b.id, i+1, formatOp(a.op), oracle.FormatOp(p.command.Op))
			return answers
		}
		say := func(what, d string) {
			if d != "" {
				t.Errorf("busy %d, write %d, %s, revision %d%s: %s", b.id, i+1, formatOp(a.op), p.want.Revision, what, d)
			}
		}
		answers++
		say("", answerDifference(a.result, a.err, p.want, a.items == nil))
		if a.items != nil && len(a.items) != len(p.want.Items) {
			say("", fmt.Sprintf("%d results, want %d", len(a.items), len(p.want.Items)))
			continue
		}
		for j, item := range a.items {
			say(fmt.Sprintf(", item %d, %s", j, formatOp(p.command.Op.(machine.Batch).Ops[j])), answerDifference(item, item.Err, p.want.Items[j], true))
		}
	}
	return answers
}

func formatOp(op machine.Op) string {
	if op == nil {
		return "settings"
	}
	return oracle.FormatOp(op)
}

// answerDifference says how what a client was told differs from the model's result.
// Of a batch as such it is told a revision alone.
func answerDifference(got client.Result, err error, want machine.Result, detailed bool) string {
	switch {
	case oracle.SentinelName(err) != oracle.SentinelName(want.Refused):
		return fmt.Sprintf("got refusal %q, want %q (%v)", oracle.SentinelName(err), oracle.SentinelName(want.Refused), err)
	case err != nil || !detailed:
		return ""
	case uint8(got.Effect) != uint8(want.Effect):
		return fmt.Sprintf("got %v, want %v", got.Effect, client.Effect(want.Effect))
	case got.Count != int(want.Count):
		return fmt.Sprintf("got count %d, want %d", got.Count, want.Count)
	case got.Epoch != want.Epoch:
		return fmt.Sprintf("got epoch %d, want %d", got.Epoch, want.Epoch)
	case got.Lapses != time.Duration(want.Deadline)*time.Millisecond:
		return fmt.Sprintf("got %v until it lapses, want %v", got.Lapses, want.Deadline)
	}
	return ""
}

// openStopped opens the data directory of a node that has ended, cut off from the
// others, and returns its revision.
func openStopped(t *testing.T, n *node) (opened, directory.Revision) {
	t.Helper()
	rules := machine.New()
	s, err := raftstore.Open(raftstore.Config{Dir: n.data, Name: n.name, Machine: server.Applied(rules), MmapSize: 1 << 30})
	if err != nil {
		t.Fatalf("%s: %v", n.name, err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	o := opened{s, rules}
	// What is known to be committed may still have to be applied.
	rev := directory.Revision(0)
	for quiet := 0; quiet < 10; quiet++ {
		time.Sleep(20 * time.Millisecond)
		st, err := rules.Status(o.local(t))
		if err != nil {
			t.Fatal(err)
		}
		if st.Revision != rev {
			rev, quiet = st.Revision, 0
		}
	}
	return o, rev
}

// local returns what is applied.
func (o opened) local(t *testing.T) *raftstore.View {
	t.Helper()
	v, err := o.Read(t.Context(), raftstore.Local)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.Release)
	return v
}

// alikeToTheOctet compares all rows of a node's state with what the present rules
// made of the log.
func alikeToTheOctet(t *testing.T, n *node, o opened, rules *machine.Machine, want kv.Reader) {
	t.Helper()
	v := o.local(t)
	rows := 0
	for _, bucket := range rules.Buckets() {
		got, want := v.Iterate(bucket), want.Iterate(bucket)
		k, val := got.Seek(nil)
		wk, wval := want.Seek(nil)
		for k != nil || wk != nil {
			if !bytes.Equal(k, wk) || !bytes.Equal(val, wval) {
				t.Errorf("%s: bucket %v: got the row %q = %x, the present rules make %q = %x of the log", n.name, bucket, k, val, wk, wval)
				return
			}
			rows++
			k, val = got.Next()
			wk, wval = want.Next()
		}
	}
	t.Logf("%s: %d rows are what the present rules make of the log", n.name, rows)
}

// kinds counts commands by kind.
type kinds struct {
	windows []window
	of      map[string]*kindCount
}

type kindCount struct{ asked, taken, mixed int }

func newKinds(windows []window) *kinds { return &kinds{windows, map[string]*kindCount{}} }

func (k *kinds) add(rev uint64, op machine.Op, r machine.Result) {
	if batch, ok := op.(machine.Batch); ok {
		for i, item := range batch.Ops {
			k.add(rev, item, r.Items[i])
		}
	}
	name := strings.TrimPrefix(fmt.Sprintf("%T", op), "machine.")
	c := k.of[name]
	if c == nil {
		c = &kindCount{}
		k.of[name] = c
	}
	c.asked++
	if r.Refused != nil {
		return
	}
	c.taken++
	if slices.ContainsFunc(k.windows, func(w window) bool { return w.mixed && rev > w.from && rev <= w.to }) {
		c.mixed++
	}
}

// judge makes sure that mixtures of releases had everything to do.
func (k *kinds) judge(t *testing.T) {
	t.Helper()
	for _, name := range []string{
		"Assert", "Retract", "Reserve", "Release", "Deactivate", "Rename", "Subscribe", "Unsubscribe", "Batch", "SetPrimary", "SetGroup", "SetBackend", "Admit", "Confirm",
		"RenameBackend", "Settle", "Hold", "ReleaseHold", "DecideHeld", "SetSettings", "SetAlarm", "Tick",
	} {
		if c := k.of[name]; c == nil || c.mixed == 0 {
			t.Errorf("no mixture of releases took a %s: %+v", name, c)
		}
	}
}

func (k *kinds) String() string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(k.of)) {
		c := k.of[name]
		fmt.Fprintf(&b, "  %-14s %6d %6d %6d\n", name, c.asked, c.taken, c.mixed)
	}
	return b.String()
}
