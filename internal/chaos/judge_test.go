//go:build peers

package chaos

import (
	"cmp"
	"errors"
	"fmt"
	"hash/fnv"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/directory/machine"
	"github.com/rookery-mail/rookery/internal/kv"
	"github.com/rookery-mail/rookery/internal/oracle"
)

// judge holds a history against the committed log.
type judge struct {
	h       *history
	log     []logged
	report  func(format string, args ...any)
	oracle  *oracle.Oracle
	machine *machine.Machine
	memory  *kv.Memory

	done      []executed // what each command came to
	byRev     map[directory.Revision]*executed
	byRequest map[request][]*executed
	owners    map[string]int // the worker that a client id is of
	clients   map[int]string // and the other way
	found     int            // violations
	checked   struct{ writes, reads, marks, states int }
}

type request struct {
	client   string
	sequence uint64
}

// executed is a command that was played: again tells that it was the repeat of an
// earlier one, and was answered and not done.
type executed struct {
	*logged
	rev    directory.Revision
	result machine.Result
	again  bool
	call   *call // whose it was
}

// mostFound is how many violations are told of a round: the first tell most.
const mostFound = 20

func (j *judge) violation(format string, args ...any) {
	if j.found++; j.found <= mostFound {
		j.report(format, args...)
	}
}

// run judges. An error means that it could not.
func (j *judge) run() error {
	j.oracle, j.machine = oracle.New(), machine.New()
	j.memory = kv.NewMemory(j.machine.Buckets()...)
	j.byRev, j.byRequest = map[directory.Revision]*executed{}, map[request][]*executed{}
	j.owners, j.clients = map[string]int{}, map[int]string{}

	reads := map[directory.Revision][]*call{}
	for _, calls := range j.h.calls {
		for _, c := range calls {
			if c.write() {
				continue
			}
			switch {
			case c.fate == answered:
				reads[c.rev] = append(reads[c.rev], c)
			case !errors.Is(c.err, client.ErrUnavailable) && !errors.Is(c.err, client.ErrClosed):
				j.violation("a read was refused: %v", c)
			}
		}
	}
	marks := map[directory.Revision][]mark{}
	for _, all := range j.h.marks {
		for _, m := range all {
			marks[m.rev] = append(marks[m.rev], m)
		}
	}

	j.done = make([]executed, 0, len(j.log))
	for i := range j.log {
		if err := j.play(&j.log[i]); err != nil {
			return err
		}
		rev := j.oracle.Revision()
		for _, c := range reads[rev] {
			if err := j.read(c); err != nil {
				return err
			}
		}
		for _, m := range marks[rev] {
			if err := j.mark(m); err != nil {
				return err
			}
		}
		delete(reads, rev)
		delete(marks, rev)
		if i%20_000 == 19_999 || i == len(j.log)-1 {
			if err := j.state(); err != nil {
				return err
			}
		}
	}
	for rev, calls := range reads {
		j.violation("an answer at revision %d, which the log does not have: %v", rev, calls[0])
	}
	for rev, m := range marks {
		j.violation("watcher %d had a mark at revision %d, which the log does not have", m[0].watcher, rev)
	}
	j.writes()
	j.realTime()
	return nil
}

// play applies one command to both, and compares.
func (j *judge) play(l *logged) error {
	tx := j.memory.Begin()
	encoded, err := j.machine.Apply(tx, l.elapsed(), l.stamp.Wall, l.data)
	if err != nil {
		return fmt.Errorf("chaos: replay entry %d: %w", l.index, err)
	}
	tx.Commit()
	got, err := machine.DecodeResult(encoded)
	if err != nil {
		return err
	}
	want := j.oracle.Follow(l.elapsed(), l.command, got)
	if d := oracle.Compare(l.command.Op, got, want); d != "" {
		j.violation("entry %d, revision %d, %s: machine and model differ: %s", l.index, j.oracle.Revision(), oracle.FormatOp(l.command.Op), d)
	}
	rev := j.oracle.Revision()
	j.done = append(j.done, executed{logged: l, rev: rev, result: got})
	e := &j.done[len(j.done)-1]
	j.byRev[rev] = e
	if id := l.command.Client; id != "" {
		r := request{id, l.command.Sequence}
		earlier := j.byRequest[r]
		e.again = len(earlier) > 0 && got.Revision == earlier[0].rev || errors.Is(got.Refused, directory.ErrStaleRequest)
		j.byRequest[r] = append(earlier, e)
	}
	return nil
}

// state compares all that the machine keeps with the model, if no sweep is open.
func (j *judge) state() error {
	wait, _, err := j.machine.Due(j.memory.Snapshot(), 0)
	if err != nil || wait == 0 || j.oracle.Sweeping() {
		return err
	}
	j.checked.states++
	d, err := j.oracle.Difference(j.machine, j.memory.Snapshot())
	if err == nil && d != "" {
		j.violation("at revision %d the machine's state and the model's differ: %s", j.oracle.Revision(), d)
	}
	return err
}

// writes holds every write against the log, both ways.
func (j *judge) writes() {
	for worker, calls := range j.h.calls {
		for _, c := range calls {
			if !c.write() || c.fate != answered {
				continue
			}
			e := j.byRev[c.rev]
			if e == nil || e.command.Client == "" {
				continue // told below
			}
			if other, ok := j.owners[e.command.Client]; ok && other != worker {
				j.violation("client %s has written for worker %d and worker %d: %v", e.command.Client, other, worker, c)
			}
			if other, ok := j.clients[worker]; ok && other != e.command.Client {
				j.violation("worker %d has written as client %s and as %s: %v", worker, other, e.command.Client, c)
			}
			j.owners[e.command.Client], j.clients[worker] = worker, e.command.Client
		}
	}
	for worker, calls := range j.h.calls {
		id := j.clients[worker]
		for _, c := range calls {
			if c.write() {
				j.checked.writes++
				j.write(c, id)
			}
		}
	}
	// What is in the log was sent by somebody, and as it is there.
	for i := range j.done {
		e := &j.done[i]
		switch {
		case e.command.Client == "":
			switch e.command.Op.(type) {
			case machine.Init, machine.Tick, machine.SetAlarm:
			default:
				j.violation("entry %d, revision %d: %s, which nobody asked for", e.index, e.rev, oracle.FormatOp(e.command.Op))
			}
		case e.call == nil && !e.again:
			j.violation("entry %d, revision %d: request %d of %s, %s: nobody sent it, or was told that it was not done", e.index, e.rev, e.command.Sequence, e.command.Client, oracle.FormatOp(e.command.Op))
		}
	}
}

// write judges one.
func (j *judge) write(c *call, id string) {
	var first *executed // done and not answered from memory
	times := 0
	if id != "" {
		for _, e := range j.byRequest[request{id, c.n}] {
			if !e.again {
				if times++; first == nil {
					first = e
				}
			}
		}
	}
	if times > 1 {
		j.violation("it was done %d times: %v", times, c)
	}
	if first != nil {
		if c.op != nil && !reflect.DeepEqual(c.op, first.command.Op) {
			j.violation("the log has another command under its number, %s: %v", oracle.FormatOp(first.command.Op), c)
		}
	}
	switch c.fate {
	case failed:
		if first != nil {
			first.call = c
			j.violation("its client was told that it was not done, and it is entry %d, revision %d: %v", first.index, first.rev, c)
		}
		return
	case unknown:
		if first != nil {
			first.call = c
			c.rev = first.rev
		}
		return
	}
	if first == nil {
		if id == "" && c.fate == refused {
			return // nothing of this worker's was ever answered
		}
		j.violation("it was acknowledged, and the log does not have it: %v", c)
		return
	}
	first.call = c
	if c.fate == refused {
		c.rev = first.rev
		if d := refusalDifference(c.err, first.result); d != "" {
			j.violation("%s: %v", d, c)
		}
		return
	}
	if first.result.Refused != nil {
		j.violation("the model refuses it: %v: %v", first.result.Refused, c)
		return
	}
	allRefused := len(c.items) > 0
	for _, item := range c.items {
		allRefused = allRefused && item.Err != nil
	}
	switch {
	case allRefused: // no item says which revision it was
		c.rev = first.rev
	case c.rev != first.rev:
		j.violation("it is at revision %d of the log: %v", first.rev, c)
	}
	if batch, ok := c.op.(machine.Batch); ok {
		if len(c.items) != len(first.result.Items) {
			j.violation("%d results, the model has %d: %v", len(c.items), len(first.result.Items), c)
			return
		}
		for i := range c.items {
			if d := resultDifference(c.items[i], c.items[i].Err, first.result.Items[i]); d != "" {
				j.violation("item %d, %s: %s: %v", i, oracle.FormatOp(batch.Ops[i]), d, c)
			}
		}
		return
	}
	if d := resultDifference(c.result, nil, first.result); d != "" {
		j.violation("%s: %v", d, c)
	}
}

// resultDifference says how a client's result differs from the model's.
func resultDifference(got client.Result, err error, want machine.Result) string {
	switch {
	case err != nil || want.Refused != nil:
		return refusalDifference(err, want)
	case uint8(got.Effect) != uint8(want.Effect):
		return fmt.Sprintf("got %v, the model says %v", got.Effect, client.Effect(want.Effect))
	case got.Count != int(want.Count):
		return fmt.Sprintf("got count %d, the model says %d", got.Count, want.Count)
	case got.Epoch != want.Epoch:
		return fmt.Sprintf("got epoch %d, the model says %d", got.Epoch, want.Epoch)
	case got.Lapses != time.Duration(want.Deadline)*time.Millisecond:
		return fmt.Sprintf("got %v until it lapses, the model says %v", got.Lapses, want.Deadline)
	}
	return ""
}

func orDone(err error) string {
	if err == nil {
		return "that it is done"
	}
	return fmt.Sprintf("%q", err)
}

// refusals are what a command can be refused with.
var refusals = []error{
	directory.ErrInvalidName, directory.ErrInvalidACL, directory.ErrInvalidLocation, directory.ErrInvalidPattern, directory.ErrInvalid, directory.ErrTooLarge,
	directory.ErrNotFound, directory.ErrReserved, directory.ErrExists, directory.ErrIncomplete, directory.ErrNotPlaceable, directory.ErrNotAdmitted,
	directory.ErrStaleEpoch, directory.ErrNotPrimary, directory.ErrNotMember, directory.ErrMissingAtTarget, directory.ErrNotHolder, directory.ErrBusy,
	directory.ErrReadOnly, directory.ErrStaleRequest,
}

// refusalDifference says how a refusal differs from the model's.
func refusalDifference(err error, want machine.Result) string {
	if !sameRefusal(err, want.Refused) {
		return fmt.Sprintf("got %v, the model says %v", orDone(err), orDone(want.Refused))
	}
	e, ok := errors.AsType[*client.Error](err)
	switch {
	case !ok:
		return fmt.Sprintf("got an error that says nothing, %v", err)
	case errors.Is(err, directory.ErrStaleEpoch) && e.Epoch != want.Epoch:
		return fmt.Sprintf("got epoch %d, the model says %d", e.Epoch, want.Epoch)
	case !errors.Is(err, directory.ErrExists) && !errors.Is(err, directory.ErrReserved):
	case e.Holder != want.Holder:
		return fmt.Sprintf("got holder %q, the model says %q", e.Holder, want.Holder)
	case e.Age != time.Duration(want.Age)*time.Millisecond:
		return fmt.Sprintf("got that it is %v old, the model says %v", e.Age, want.Age)
	}
	return ""
}

func sameRefusal(got, want error) bool {
	some := false
	for _, r := range refusals {
		if errors.Is(got, r) != errors.Is(want, r) {
			return false
		}
		some = some || errors.Is(got, r)
	}
	return some
}

// maxAge is the bound on the age of an AT_LEAST answer, and what clocks of
// milliseconds make of it.
const maxAge = 10*time.Second + 20*time.Millisecond

// realTime looks whether what had to see something did.
func (j *judge) realTime() {
	var all []*call
	for _, calls := range j.h.calls {
		for _, c := range calls {
			if c.rev > 0 {
				all = append(all, c)
			}
		}
	}
	var ended []*call // those that somebody was told of
	for _, c := range all {
		if c.fate == answered || c.fate == refused {
			ended = append(ended, c)
		}
	}
	slices.SortFunc(ended, func(a, b *call) int { return cmp.Compare(a.ended, b.ended) })
	highest := make([]*call, len(ended)) // until then
	for i, c := range ended {
		highest[i] = c
		if i > 0 && highest[i-1].rev > c.rev {
			highest[i] = highest[i-1]
		}
	}
	// before returns the call with the highest revision that had ended at t.
	before := func(t time.Duration) *call {
		i, _ := slices.BinarySearchFunc(ended, t, func(c *call, t time.Duration) int { return cmp.Compare(c.ended, t) })
		if i == 0 {
			return nil
		}
		return highest[i-1]
	}
	for _, c := range all {
		high := before(c.begun)
		switch {
		case c.write():
			if high != nil && c.rev <= high.rev {
				j.violation("a write at a revision that was told before it began, by %v: %v", high, c)
			}
			continue
		case c.mode == linearizable:
			if high != nil && c.rev < high.rev {
				j.violation("a linearizable read that did not see %v: %v", high, c)
			}
		case c.mode == atLeast:
			if old := before(c.begun - maxAge); old != nil && c.rev < old.rev {
				j.violation("a read older than ten seconds: it did not see %v: %v", old, c)
			}
		}
		if c.mode != stale && c.rev < c.seen {
			j.violation("a read that goes back: the session had seen revision %d: %v", c.seen, c)
		}
	}
}

// read judges the answer of a read at the revision that was played last.
func (j *judge) read(c *call) error {
	j.checked.reads++
	snap := j.memory.Snapshot()
	var got, want []string
	var names []directory.MailboxName
	switch ask := c.ask.(type) {
	case lookup:
		names = []directory.MailboxName{ask.name}
		got = routesOf(c.got.(client.Route))
	case lookupMany:
		names = ask.names
		got = routesOf(c.got.([]client.Route)...)
	case lookupUser:
		r := c.got.(client.Route)
		names = []directory.MailboxName{directory.MailboxName("user." + string(ask.user))}
		got = routesOf(r)
	case find:
		page := c.got.(client.FindPage)
		got = routesOf(page.Mailboxes...)
		found, _, err := j.machine.Find(snap, machine.FindQuery{Prefix: ask.query.Prefix, Server: ask.query.Server, Limit: ask.query.PageSize})
		if err != nil {
			return err
		}
		want = answersOf(found)
	case findAll:
		got = routesOf(c.got.([]client.Route)...)
		for after, more := directory.MailboxName(""), true; more; more = after != "" {
			found, next, err := j.machine.Find(snap, machine.FindQuery{After: after, Limit: machine.MaxFind})
			if err != nil {
				return err
			}
			want, after = append(want, answersOf(found)...), next
		}
	case list:
		l := c.got.(client.Listing)
		for _, r := range l.Rows {
			var attributes []string
			for _, a := range r.Attributes {
				attributes = append(attributes, a.String())
			}
			got = append(got, fmt.Sprintf("%s %s (%s) %q %v %s %s", r.Name, r.Mailbox, strings.Join(attributes, " "), r.SpecialUse, r.Rights, r.Server, r.Outcome))
		}
		got = append(got, fmt.Sprintf("complete %t missing %v", l.Complete, l.Missing))
		q := ask.query
		sum, err := j.machine.List(snap, machine.ListQuery{
			Principal: q.Principal, Namespace: directory.Namespace{Sep: '.'}, Patterns: q.Patterns,
			Select: machine.ListSelect{Subscribed: q.Select.Subscribed}, Return: machine.ListReturn{MyRights: q.Return.MyRights, Location: q.Return.Location},
		}, func(r *machine.ListRow) error {
			want = append(want, fmt.Sprintf("%s %s (%s) %q %v %s %s", r.Name, r.Mailbox, r.Attributes, r.SpecialUse, r.Rights, r.Server, r.Outcome))
			return nil
		})
		if err != nil {
			return err
		}
		want = append(want, fmt.Sprintf("complete %t missing %v", sum.Complete, sum.Missing))
	case rightsQuery:
		a := c.got.(client.RightsAnswer)
		w, err := j.machine.MyRights(snap, machine.RightsQuery{Principal: ask.query.Principal, Mailbox: ask.query.Mailbox})
		if err != nil {
			return err
		}
		outcome := a.Outcome
		if outcome == directory.Unconfirmed && w.Outcome == directory.NotFound && c.mode != linearizable {
			outcome = w.Outcome // no majority could be asked
		}
		got = []string{fmt.Sprintf("%s %v %t", outcome, a.Rights, a.Visible)}
		want = []string{fmt.Sprintf("%s %v %t", w.Outcome, w.Rights, w.Visible)}
	default:
		return fmt.Errorf("chaos: nobody judges a %T", c.ask)
	}
	if names != nil {
		answers, err := j.machine.LookupMany(snap, names, true)
		if err != nil {
			return err
		}
		want = answersOf(answers)
		d, err := j.oracle.DifferenceOfRoutes(j.machine, snap, names)
		if err != nil {
			return err
		}
		// A sweep is one step of the model and many of the machine: what a server that has
		// left its group takes with it, goes with it one after the other.
		if d != "" && !j.oracle.Sweeping() {
			j.violation("at revision %d machine and model differ: %s", c.rev, d)
		}
	}
	if !slices.Equal(got, want) {
		j.violation("%v\n  got  %s\n  want %s", c, strings.Join(got, "\n       "), strings.Join(want, "\n       "))
	}
	return nil
}

// findAll is a query for every mailbox, of one node alone.
type findAll struct{ node string }

// mark judges what a watcher knew.
func (j *judge) mark(m mark) error {
	j.checked.marks++
	snap := j.memory.Snapshot()
	var sum uint64
	count := 0
	for after, more := directory.MailboxName(""), true; more; more = after != "" {
		found, next, err := j.machine.Find(snap, machine.FindQuery{Prefix: m.query.Prefix, Server: m.query.Server, After: after, Limit: machine.MaxFind})
		if err != nil {
			return err
		}
		for i := range found {
			var p printed
			p.fromMachine(&found[i])
			h := fnv.New64a()
			fmt.Fprint(h, p.watched())
			sum += h.Sum64()
			count++
		}
		after = next
	}
	if sum != m.digest || count != m.count {
		j.violation("watcher %d of %+v at its mark at revision %d: %d mailboxes with sum %x, there were %d with %x", m.watcher, m.query, m.rev, m.count, m.digest, count, sum)
	}
	return nil
}

// printed is a route as both sides have it, without ages.
type printed struct {
	mailbox   directory.MailboxName
	outcome   directory.Outcome
	server    directory.BackendName
	group     directory.GroupName
	epoch     uint64
	primary   directory.BackendName
	forked    bool
	changed   directory.Revision
	recently  bool
	missing   []directory.BackendName
	reserved  string
	held      string
	movedFrom directory.GroupName
	listed    directory.BackendName
	facts     string
}

func (p *printed) String() string { return fmt.Sprintf("%+v", *p) }

// watched is what a watcher knows of it.
func (p printed) watched() string {
	p.recently, p.missing, p.reserved, p.held, p.movedFrom = false, nil, "", "", ""
	switch p.outcome {
	case directory.NotFound, directory.Unconfirmed, directory.Incomplete:
		p.outcome = directory.NotFound // a watcher says none of these
	}
	return fmt.Sprintf("%+v", p)
}

func (p *printed) fromClient(r *client.Route) {
	*p = printed{
		mailbox: r.Mailbox, outcome: r.Outcome, server: r.Server.Name, group: r.Group, epoch: r.Epoch, primary: r.Primary, forked: r.Forked,
		changed: r.Changed, recently: r.RecentlyRetracted, missing: r.Missing, movedFrom: r.MovedFrom, listed: r.ListedFrom,
	}
	if r.Outcome == directory.Unconfirmed && r.Why != "" {
		p.outcome = directory.NotFound // it is, of this state; no majority could be asked
	}
	if r.Reservation != nil {
		p.reserved = fmt.Sprintf("%s!%s", r.Reservation.Server, r.Reservation.Partition)
	}
	if r.Hold != nil {
		p.held = fmt.Sprintf("%s %s %s", r.Hold.Kind, r.Hold.Key, r.Hold.Why)
	}
	for _, f := range r.Facts {
		p.facts += fmt.Sprintf("%s %t %s %q %s %d %d %q %s %s %d-%d %t; ", f.Server, f.Admitted, f.Partition, f.ACL, f.MailboxID, f.UIDValidity, f.Type, f.SpecialUse, f.State, f.Standing, f.First, f.Last, f.Confirmed)
	}
}

func (p *printed) fromMirror(r *client.Route) { p.fromClient(r) }

func (p *printed) fromMachine(a *machine.Answer) {
	*p = printed{mailbox: a.Name, outcome: a.Outcome, forked: a.Route.Forked, changed: a.Changed, recently: a.RecentlyRetracted, missing: a.Missing}
	if a.Server != nil {
		p.server = a.Server.Name
	}
	if home := a.Route.Home; home != nil {
		p.group, p.epoch, p.primary = home.Name, home.Epoch, a.BackendName(home.Primary)
	}
	if r := a.Reservation; r != nil {
		p.reserved = fmt.Sprintf("%s!%s", a.BackendName(r.Server), r.Partition)
	}
	if h := a.Hold; h != nil {
		p.held = fmt.Sprintf("%s %s %s", h.Kind, h.Key, h.Why)
	}
	if t := a.Tombstone; t != nil && t.How == directory.GoneMoved {
		if g := a.Group(t.From); g != nil {
			p.movedFrom = g.Name
		}
	}
	if a.Mailbox == nil {
		return
	}
	if f := a.Route.Fact; f != nil {
		p.listed = a.BackendName(f.Server)
	}
	for i := range a.Mailbox.Facts {
		f := &a.Mailbox.Facts[i]
		b := a.Backend(f.Server)
		p.facts += fmt.Sprintf("%s %t %s %q %s %d %d %q %s %s %d-%d %t; ", a.BackendName(f.Server), b != nil && b.Admitted, f.Partition, f.ACL, f.MailboxID, f.UIDValidity, f.Type, f.SpecialUse, f.State, f.Standing, f.First, f.Last, a.Confirmed(f))
	}
}

func routesOf(routes ...client.Route) (out []string) {
	for i := range routes {
		var p printed
		p.fromClient(&routes[i])
		out = append(out, p.String())
	}
	return out
}

func answersOf(answers []machine.Answer) (out []string) {
	for i := range answers {
		var p printed
		p.fromMachine(&answers[i])
		out = append(out, p.String())
	}
	return out
}
