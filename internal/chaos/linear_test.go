//go:build peers

package chaos

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/directory/machine"
)

// linearLoad is what the workers do that porcupine judges. Each has a server of its
// own, and asserts a mailbox only when it was granted the name; so what one mailbox
// can be is little enough to be searched.
type linearLoad struct {
	calls atomic.Int64
	mu    sync.Mutex
	keys  map[directory.MailboxName][]*call
}

// What one mailbox is asked about: not more often than this, by all together, for
// the search takes long if it is.
const (
	linearCalls = 150
	linearKeys  = 3 // at a time
)

func newLinearLoad() *linearLoad { return &linearLoad{keys: map[directory.MailboxName][]*call{}} }

func linearServer(worker int) directory.BackendName {
	return directory.BackendName(fmt.Sprintf("lin%d.chaos.test", worker))
}

// linearStep is one call about one of the mailboxes that are in turn, and when the
// worker was granted its name the assertion that follows.
func (w *worker) linearStep() {
	l := w.l.linear
	turn := l.calls.Add(1) / (linearCalls * linearKeys)
	// Of these names alone the withdrawal guard has no opinion.
	name := directory.MailboxName(fmt.Sprintf("DELETED.user.p%d.5F000001", turn*linearKeys+int64(w.rng.IntN(linearKeys))))
	keep := func(c *call) *call {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.keys[name] = append(l.keys[name], c)
		return c
	}
	server := linearServer(w.id)
	switch n := w.rng.IntN(10); {
	case n < 4:
		keep(w.lookup(&call{mode: linearizable}, name, []client.ReadOption{client.Linearizable()}))
	case n < 7:
		c := keep(w.do(machine.Reserve{Mailbox: name, Server: server, Partition: fmt.Sprintf("w%dn%d", w.id, w.writes)}, w.timeout()))
		if c.fate == answered && w.rng.IntN(4) > 0 {
			l.calls.Add(1)
			keep(w.do(machine.Assert{Mailbox: name, Server: server, Statement: directory.Statement{MailboxID: new(fmt.Sprintf("w%dn%d", w.id, w.writes))}}, w.timeout()))
		}
	case n < 9:
		keep(w.do(machine.Retract{Mailbox: name, Server: server}, w.timeout()))
	default:
		keep(w.do(machine.Release{Mailbox: name, Server: server}, w.timeout()))
	}
}

// What one mailbox is: nothing, reserved by a server, or active there with an id.
type linearState struct {
	server directory.BackendName // empty: nothing
	active bool
	id     string
}

// linearAnswer is what came of a call, as far as the model says something of it.
type linearAnswer struct {
	unknown bool
	err     error
	effect  client.Effect
	// Of a lookup.
	outcome  directory.Outcome
	server   directory.BackendName
	id       string
	reserved directory.BackendName
}

// linearModel is the rules of one mailbox, written for this alone: it shares
// nothing with the machine or the model of internal/oracle.
var linearModel = porcupine.Model{
	Init: func() any { return linearState{} },
	Step: func(state, input, output any) (bool, any) {
		s, a := state.(linearState), output.(linearAnswer)
		is := func(e client.Effect) bool { return a.unknown || a.err == nil && a.effect == e }
		switch op := input.(type) {
		case lookup:
			switch {
			case s.active:
				return a.outcome == directory.Serving && a.server == s.server && a.id == s.id && a.reserved == "", s
			case s.server != "":
				return a.outcome == directory.NotFound && a.reserved == s.server, s
			}
			return a.outcome == directory.NotFound && a.reserved == "", s
		case machine.Reserve:
			switch {
			case s.active && s.server == op.Server:
				return is(client.AlreadyYours), s
			case s.active:
				return a.unknown || errors.Is(a.err, directory.ErrExists), s
			case s.server == op.Server:
				return is(client.Changed), s
			case s.server != "":
				return a.unknown || errors.Is(a.err, directory.ErrReserved), s
			}
			return is(client.Added), linearState{server: op.Server}
		case machine.Assert:
			next := linearState{server: op.Server, active: true, id: *op.Statement.MailboxID}
			switch {
			case s.active && s.server == op.Server:
				return is(client.Changed), next
			case s.server != "" && s.server != op.Server:
				return a.unknown, s // it was granted the name; so it was never done
			}
			return is(client.Added), next
		case machine.Retract:
			if s.active && s.server == op.Server {
				return is(client.Removed), linearState{}
			}
			return is(client.NotHeld), s
		case machine.Release:
			if !s.active && s.server == op.Server {
				return is(client.Removed), linearState{}
			}
			return is(client.NotHeld), s
		}
		return false, s
	},
	DescribeOperation: func(input, output any) string { return fmt.Sprintf("%T%+v: %+v", input, input, output) },
}

// operationOf is a call as porcupine has it; false for one that says nothing: a
// read that was not answered, a write that was not done.
func operationOf(c *call) (op porcupine.Operation, says bool) {
	op = porcupine.Operation{ClientId: c.worker, Call: int64(c.begun), Return: int64(c.ended)}
	a := linearAnswer{err: c.err}
	switch c.fate {
	case failed:
		return op, false
	case unknown:
		a.unknown = true
		op.Return = math.MaxInt64
	}
	op.Input = c.ask
	if c.write() {
		op.Input, a.effect = c.op, c.result.Effect
	} else {
		r := c.got.(client.Route)
		a.outcome, a.server = r.Outcome, r.Server.Name
		if r.Outcome == directory.Unconfirmed && r.Why != "" {
			a.outcome = directory.NotFound // the node still verifies its file
		}
		if len(r.Facts) > 0 {
			a.id = r.Facts[0].MailboxID
		}
		if r.Reservation != nil {
			a.reserved = r.Reservation.Server
		}
	}
	op.Output = a
	return op, true
}

// judge looks for an order of the calls about each mailbox.
func (l *linearLoad) judge(report func(format string, args ...any), budget time.Duration) (keys, calls int) {
	end := time.Now().Add(budget)
	for name, history := range l.keys {
		var ops []porcupine.Operation
		for _, c := range history {
			if op, says := operationOf(c); says {
				ops = append(ops, op)
			}
		}
		keys++
		calls += len(ops)
		left := time.Until(end)
		if left <= 0 {
			left = time.Nanosecond
		}
		switch porcupine.CheckOperationsTimeout(linearModel, ops, left) {
		case porcupine.Illegal:
			text := ""
			slices.SortFunc(history, func(a, b *call) int { return int(a.begun - b.begun) })
			for _, c := range history {
				text += "\n  " + c.String()
				if r, ok := c.got.(client.Route); ok {
					text += fmt.Sprintf(" %s %s", r.Outcome, r.Server.Name)
				}
				if c.write() && c.fate == answered {
					text += " " + c.result.Effect.String()
				}
			}
			report("porcupine: no order of the calls about %s makes sense of their answers:%s", name, text)
		case porcupine.Unknown:
			report("porcupine: %d calls about %s: no verdict within its time", len(ops), name)
		}
	}
	return keys, calls
}

// TestLinearModel gives porcupine histories that are in order, and some that are not.
func TestLinearModel(t *testing.T) {
	const name = "user.p"
	a, b := linearServer(0), linearServer(1)
	assert := func(server directory.BackendName, id string) machine.Op {
		return machine.Assert{Mailbox: name, Server: server, Statement: directory.Statement{MailboxID: &id}}
	}
	write := func(begun, ended int, op machine.Op, e client.Effect, err error) *call {
		c := &call{n: 1, op: op, begun: time.Duration(begun), ended: time.Duration(ended), fate: fateOf(err, true), err: err}
		c.result.Effect = e
		return c
	}
	read := func(begun, ended int, outcome directory.Outcome, server directory.BackendName, id string) *call {
		r := client.Route{Outcome: outcome}
		r.Server.Name = server
		if id != "" {
			r.Facts = []client.Fact{{MailboxID: id}}
		}
		return &call{begun: time.Duration(begun), ended: time.Duration(ended), ask: lookup{name}, got: r}
	}
	for _, tt := range []struct {
		name  string
		calls []*call
		want  bool
	}{
		{"one after the other", []*call{
			write(1, 2, machine.Reserve{Mailbox: name, Server: a}, client.Added, nil),
			write(3, 4, assert(a, "1"), client.Added, nil),
			read(5, 6, directory.Serving, a, "1"),
			write(7, 8, machine.Retract{Mailbox: name, Server: a}, client.Removed, nil),
			read(9, 10, directory.NotFound, "", ""),
		}, true},
		{"a read that is late", []*call{
			write(1, 2, machine.Reserve{Mailbox: name, Server: a}, client.Added, nil),
			write(3, 4, assert(a, "1"), client.Added, nil),
			write(5, 6, assert(a, "2"), client.Changed, nil),
			read(7, 8, directory.Serving, a, "1"),
		}, false},
		{"two winners", []*call{
			write(1, 4, machine.Reserve{Mailbox: name, Server: a}, client.Added, nil),
			write(2, 5, machine.Reserve{Mailbox: name, Server: b}, client.Added, nil),
		}, false},
		{"one winner, the other refused", []*call{
			write(1, 4, machine.Reserve{Mailbox: name, Server: a}, client.Added, nil),
			write(2, 5, machine.Reserve{Mailbox: name, Server: b}, 0, directory.ErrReserved),
		}, true},
		{"a lost write", []*call{
			write(1, 2, machine.Reserve{Mailbox: name, Server: a}, client.Added, nil),
			write(3, 4, machine.Reserve{Mailbox: name, Server: b}, client.Added, nil),
		}, false},
		{"a write of unknown outcome, seen later", []*call{
			write(1, 2, machine.Reserve{Mailbox: name, Server: a}, client.Added, nil),
			write(3, 4, assert(a, "1"), 0, client.ErrUndecided),
			write(5, 6, machine.Reserve{Mailbox: name, Server: b}, 0, directory.ErrReserved),
			write(7, 8, machine.Reserve{Mailbox: name, Server: b}, 0, directory.ErrExists),
		}, true},
	} {
		l := newLinearLoad()
		l.keys[name] = tt.calls
		found := 0
		l.judge(func(string, ...any) { found++ }, time.Minute)
		if (found == 0) != tt.want {
			t.Errorf("%s: %d findings, want them to be sound: %t", tt.name, found, tt.want)
		}
	}
}
