//go:build peers

package chaos

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/directory/machine"
	"github.com/rookery-mail/rookery/internal/kv"
	"github.com/rookery-mail/rookery/raftstore"
)

// fiction is a log and the history that led to it, for the judge to be tried on:
// what really happened, until a test spoils something.
type fiction struct {
	log    []logged
	h      *history
	m      *machine.Machine
	memory *kv.Memory
	now    time.Duration
	writes map[int]uint64
}

func newFiction(t *testing.T) *fiction {
	f := &fiction{h: newHistory(2, 1), m: machine.New(), writes: map[int]uint64{}}
	f.memory = kv.NewMemory(f.m.Buckets()...)
	f.commit(t, machine.Command{By: "directory", Op: machine.Init{ClusterID: "c", Incarnation: 1, DigestKey: []byte("0123456789abcdef")}})
	return f
}

// commit puts a command into the log.
func (f *fiction) commit(t *testing.T, c machine.Command) machine.Result {
	t.Helper()
	l := logged{index: uint64(len(f.log)) + 2, command: c, data: machine.EncodeCommand(c), stamp: raftstore.Stamp{Elapsed: 5}}
	tx := f.memory.Begin()
	encoded, err := f.m.Apply(tx, l.elapsed(), 0, l.data)
	if err != nil {
		t.Fatal(err)
	}
	tx.Commit()
	f.log = append(f.log, l)
	r, err := machine.DecodeResult(encoded)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// call adds a call that took a while, one after the other.
func (f *fiction) call(c *call) *call {
	c.begun, c.ended = f.now+10*time.Millisecond, f.now+20*time.Millisecond
	f.now = c.ended
	f.h.calls[c.worker] = append(f.h.calls[c.worker], c)
	return c
}

// write is a write that was answered or refused.
func (f *fiction) write(t *testing.T, worker int, op machine.Op) *call {
	t.Helper()
	f.writes[worker]++
	c := f.call(&call{worker: worker, n: f.writes[worker], op: op})
	r := f.commit(t, machine.Command{Client: fmt.Sprint("lane", worker), Sequence: c.n, By: "operator:chaos", Op: op})
	if r.Refused != nil {
		c.fate = refused
		c.err = &client.Error{Reason: "X"}
		c.err = errors.Join(c.err, r.Refused)
		return c
	}
	c.rev = r.Revision
	c.result = client.Result{Effect: client.Effect(r.Effect), Epoch: r.Epoch, Count: int(r.Count), Lapses: time.Duration(r.Deadline) * time.Millisecond}
	return c
}

// read is a lookup of what there is.
func (f *fiction) read(t *testing.T, worker int, m mode, name directory.MailboxName) *call {
	t.Helper()
	a, err := f.m.Lookup(f.memory.Snapshot(), name, true)
	if err != nil {
		t.Fatal(err)
	}
	r := client.Route{Mailbox: name, Outcome: a.Outcome, Forked: a.Route.Forked, Changed: a.Changed}
	if a.Server != nil {
		r.Server.Name = a.Server.Name
	}
	if h := a.Route.Home; h != nil {
		r.Group, r.Epoch, r.Primary = h.Name, h.Epoch, a.BackendName(h.Primary)
	}
	if a.Mailbox != nil {
		r.ListedFrom = a.BackendName(a.Route.Fact.Server)
		for _, x := range a.Mailbox.Facts {
			r.Facts = append(r.Facts, client.Fact{
				Server: a.BackendName(x.Server), Admitted: true, Partition: x.Partition, ACL: x.ACL, MailboxID: x.MailboxID, Type: x.Type, State: x.State, Standing: x.Standing,
				First: x.First, Last: x.Last, Confirmed: true,
			})
		}
	}
	return f.call(&call{worker: worker, mode: m, rev: a.Revision, ask: lookup{name}, got: r})
}

// TestJudge gives the judge a history that is sound, and the same with one thing
// wrong in it.
func TestJudge(t *testing.T) {
	const name = "user.a"
	state := func(id string) directory.Statement { return directory.Statement{MailboxID: &id} }
	for _, tt := range []struct {
		name  string
		spoil func(t *testing.T, f *fiction, calls []*call)
		want  string // in what is found; "": nothing is
	}{
		{"sound", func(*testing.T, *fiction, []*call) {}, ""},
		{"a lost write", func(t *testing.T, f *fiction, _ []*call) {
			f.call(&call{worker: 1, n: 3, op: machine.Assert{Mailbox: name, Server: "be2"}, rev: 100})
		}, "the log does not have it"},
		{"a write done twice", func(t *testing.T, f *fiction, calls []*call) {
			l := f.log[len(f.log)-1]
			l.command.Client = "lane7"
			l.data = machine.EncodeCommand(l.command)
			f.log = append(f.log, l)
		}, "nobody sent it"},
		{"an answer that is another's", func(t *testing.T, f *fiction, calls []*call) { calls[0].result.Effect = client.Changed }, "the model says"},
		{"a refusal that is none", func(t *testing.T, f *fiction, calls []*call) {
			calls[1].fate, calls[1].err = refused, &client.Error{}
		}, "the model says"},
		{"done, and the client was told that it was not", func(t *testing.T, f *fiction, calls []*call) {
			calls[1].fate, calls[1].rev, calls[1].err = failed, 0, client.ErrUnavailable
		}, "told that it was not done"},
		{"unknown and done", func(t *testing.T, f *fiction, calls []*call) {
			calls[1].fate, calls[1].rev, calls[1].err = unknown, 0, client.ErrUndecided
		}, ""},
		{"unknown and not done", func(t *testing.T, f *fiction, calls []*call) {
			f.call(&call{worker: 1, n: 3, op: machine.Release{Mailbox: name, Server: "be2"}, fate: unknown, err: client.ErrUndecided})
		}, ""},
		{"a read that is late", func(t *testing.T, f *fiction, calls []*call) {
			c := *calls[2]
			c.mode, c.seen = linearizable, 0
			f.call(&c)
		}, "a linearizable read that did not see"},
		{"the same, of which no more was asked", func(t *testing.T, f *fiction, calls []*call) {
			c := *calls[2]
			c.mode, c.seen = stale, 0
			f.call(&c)
		}, ""},
		{"a session that goes back", func(t *testing.T, f *fiction, calls []*call) {
			c := *calls[2]
			c.mode, c.seen = atLeast, calls[3].rev
			f.call(&c)
		}, "a read that goes back"},
		{"a read that is too old", func(t *testing.T, f *fiction, calls []*call) {
			f.now += 11 * time.Second
			c := *calls[2]
			c.mode, c.seen = atLeast, 0
			f.call(&c)
		}, "older than ten seconds"},
		{"a read of what is not there", func(t *testing.T, f *fiction, calls []*call) {
			r := calls[2].got.(client.Route)
			r.Server.Name = "be9"
			calls[2].got = r
		}, "want"},
		{"a read of what was not yet", func(t *testing.T, f *fiction, calls []*call) { calls[2].rev += 50 }, "which the log does not have"},
		{"a watcher that missed something", func(t *testing.T, f *fiction, calls []*call) {
			f.h.marks[0] = append(f.h.marks[0], mark{rev: calls[2].rev, count: 1, digest: 1})
		}, "watcher 0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFiction(t)
			f.write(t, 0, machine.SetBackend{Server: "be1", Create: true})
			f.write(t, 0, machine.Confirm{Server: "be1", How: directory.ByOperator})
			f.write(t, 1, machine.Subscribe{User: "a", Mailbox: name})
			calls := []*call{
				f.write(t, 0, machine.Assert{Mailbox: name, Server: "be1", Statement: state("1")}),
				f.write(t, 1, machine.Assert{Mailbox: "user.b", Server: "be1", Statement: state("2")}),
				f.read(t, 1, atLeast, name),
				f.write(t, 0, machine.Assert{Mailbox: name, Server: "be1", Statement: state("3")}),
				f.read(t, 1, linearizable, name),
			}
			tt.spoil(t, f, calls)
			var found []string
			j := &judge{h: f.h, log: f.log, report: func(format string, args ...any) { found = append(found, fmt.Sprintf(format, args...)) }}
			if err := j.run(); err != nil {
				t.Fatal(err)
			}
			all := strings.Join(found, "\n")
			if tt.want == "" && all != "" || !strings.Contains(all, tt.want) {
				t.Errorf("found %q, want %q in it", all, tt.want)
			}
		})
	}
}
