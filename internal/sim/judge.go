package sim

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/directory/machine"
	"github.com/rookery-mail/rookery/internal/oracle"
	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
	"github.com/rookery-mail/rookery/raftstore"
)

// judge replays the log on the oracle as it comes to be, and holds every answer
// against it.
type judge struct {
	x        *Workload
	o        *oracle.Oracle
	rev      uint64 // that the oracle is at
	log      []entry
	requests map[request]*done
	acked    uint64 // the highest revision that anybody was answered with
}

// entry is a command of the log.
type entry struct {
	rev     uint64
	elapsed directory.Time
	c       machine.Command
	got     machine.Result
}

// request is a write of a client.
type request struct {
	client string
	seq    uint64
}

// done is what a request came to when it was first applied.
type done struct {
	op     machine.Op
	result machine.Result
}

func newJudge(x *Workload) *judge {
	return &judge{x: x, o: oracle.New(), requests: map[request]*done{}}
}

// applied replays a command that a node has applied, if it is the first. That the
// others apply the same the world sees to.
func (j *judge) applied(node int, rev uint64, stamp raftstore.Stamp, command, result []byte) {
	if rev <= j.rev || j.x.w.failure != "" {
		return
	}
	c, err := machine.DecodeCommand(command)
	if err != nil {
		j.x.w.Fail("judge: revision %d: %v", rev, err)
		return
	}
	got, err := machine.DecodeResult(result)
	if err != nil {
		j.x.w.Fail("judge: revision %d: %v", rev, err)
		return
	}
	e := entry{rev, directory.Time(stamp.Elapsed), c, got}
	j.log = append(j.log, e)
	want := j.replay(&e)
	if uint64(j.o.Revision()) != rev {
		j.x.w.Fail("judge: node %s applies %s as revision %d, which is %d by the rules", nodeName(node), oracle.FormatCommand(c), rev, j.o.Revision())
		return
	}
	if d := oracle.Compare(c.Op, got, want); d != "" {
		j.x.w.Fail("judge: revision %d, %s: %s", rev, oracle.FormatCommand(c), d)
	}
}

// replay applies an entry to the oracle.
func (j *judge) replay(e *entry) machine.Result {
	want := j.o.Follow(e.elapsed, e.c, e.got)
	j.rev = e.rev
	if e.c.Client != "" && uint64(e.got.Revision) == e.rev {
		if q := (request{e.c.Client, e.c.Sequence}); !errors.Is(e.got.Refused, directory.ErrStaleRequest) {
			j.requests[q] = &done{e.c.Op, e.got}
		}
	}
	return want
}

// restored goes back to what was kept.
func (j *judge) restored(_, lostAfter uint64) {
	kept := j.log[:0:0]
	for _, e := range j.log {
		if e.rev <= lostAfter {
			kept = append(kept, e)
		}
	}
	j.o, j.rev, j.log, j.requests = oracle.New(), 0, kept, map[request]*done{}
	for i := range j.log {
		j.replay(&j.log[i])
	}
}

// wrote judges the answer to a write that was asked for when least had been
// acknowledged.
func (j *judge) wrote(s *session, q request, op machine.Op, a answer, least uint64) {
	d := j.requests[q]
	if d == nil {
		j.x.w.Fail("%s is told that its request %d is done, at revision %d, and no node has applied it", q.client, q.seq, a.header.GetRevision())
		return
	}
	rev := a.header.GetRevision()
	r := &d.result
	if rev != uint64(r.Revision) {
		j.x.w.Fail("%s is told that its request %d is revision %d; it is %d", q.client, q.seq, rev, r.Revision)
	}
	if rev <= least {
		j.x.w.Fail("%s: request %d is revision %d, and %d was acknowledged before it was sent", q.client, q.seq, rev, least)
	}
	j.acked = max(j.acked, rev)
	if b, ok := op.(machine.Batch); ok {
		if len(a.items) != len(b.Ops) {
			j.x.w.Fail("%s: request %d: %d results of %d", q.client, q.seq, len(a.items), len(b.Ops))
			return
		}
		at := 0
		for i, item := range a.items {
			if item.GetError() != nil && ownRefusal(reasonText(item.GetError().GetReason())) && (at >= len(r.Items) || oracle.SentinelName(r.Items[at].Refused) != reasonText(item.GetError().GetReason())) {
				continue // it has not been proposed
			}
			if at == len(r.Items) {
				j.x.w.Fail("%s: request %d: item %d is answered and not in the log", q.client, q.seq, i)
				return
			}
			j.same(q, &r.Items[at], item.GetResult(), reasonText(item.GetError().GetReason()))
			at++
		}
		return
	}
	j.same(q, r, a.result, "")
}

// same compares an answer with a result of the log.
func (j *judge) same(q request, r *machine.Result, a *apiv1.WriteResult, reason string) {
	if want := oracle.SentinelName(r.Refused); want != reason {
		j.x.w.Fail("%s: request %d is answered %q; in the log it is %s", q.client, q.seq, reason, oracle.FormatResult(*r))
		return
	}
	if a == nil {
		return
	}
	if machine.Effect(a.GetEffect()) != r.Effect || a.GetCount() != r.Count || a.GetEpoch() != r.Epoch || a.GetLapsesInMs() != uint64(r.Deadline) {
		j.x.w.Fail("%s: request %d is answered %v; in the log it is %s", q.client, q.seq, a, oracle.FormatResult(*r))
	}
}

func reasonText(r apiv1.Reason) string {
	if r == apiv1.Reason_REASON_UNSPECIFIED {
		return ""
	}
	return strings.TrimPrefix(r.String(), "REASON_")
}

// ownRefusal tells whether a server says so by itself, before anything is proposed.
func ownRefusal(reason string) bool {
	switch reason {
	case "ROLE", "INVALID", "INVALID_NAME", "INVALID_ACL", "INVALID_LOCATION", "TOO_LARGE", "INVALID_TOKEN", "NOT_FOUND", "UNSUPPORTED":
		return true
	}
	return false
}

// refused judges a refusal.
func (j *judge) refused(q request, op machine.Op, reason string, err error) {
	d := j.requests[q]
	switch {
	case reason == "BROKEN" || reason == "":
		j.x.w.Fail("%s: request %d, %T: %v", q.client, q.seq, op, err)
	case d == nil && !ownRefusal(reason):
		j.x.w.Fail("%s: request %d is refused, %s, and is not in the log: %v", q.client, q.seq, reason, err)
	case d != nil && oracle.SentinelName(d.result.Refused) != reason && !ownRefusal(reason):
		j.x.w.Fail("%s: request %d is refused, %s; in the log it is %s", q.client, q.seq, reason, oracle.FormatResult(d.result))
	}
}

// read judges how new an answer is.
func (j *judge) read(q *query, h *apiv1.ResponseHeader) {
	rev := h.GetRevision()
	switch {
	case h.GetIncarnation() < q.s.life:
		j.x.w.Fail("%s is answered out of incarnation %d, and has seen %d", q.s.client, h.GetIncarnation(), q.s.life)
	case rev < q.s.seen && h.GetIncarnation() == q.s.life && q.mode != stale:
		j.x.w.Fail("%s is answered at revision %d, and has seen %d", q.s.client, rev, q.s.seen)
	case q.mode == linearizable && rev < q.least:
		j.x.w.Fail("I3: %s reads, linearizably, at revision %d; %d was acknowledged before", q.s.client, rev, q.least)
	case rev > j.rev && rev-j.rev < 1<<31:
		j.x.w.Fail("%s is answered at revision %d; no node has applied more than %d", q.s.client, rev, j.rev)
	}
	j.acked = max(j.acked, rev)
}

// current tells whether the oracle is at the revision of an answer.
func (j *judge) current(h *apiv1.ResponseHeader) bool {
	if h.GetRevision() != j.rev {
		j.x.counts.skipped++
		return false
	}
	j.x.counts.compared++
	return true
}

// route judges where a mailbox is said to be.
func (j *judge) route(q *query, name directory.MailboxName, r *apiv1.Route, h *apiv1.ResponseHeader) {
	count(&j.x.counts.outcomes, strings.TrimPrefix(r.GetOutcome().String(), "OUTCOME_"))
	rev := h.GetRevision()
	if r.GetOutcome() == apiv1.Outcome_OUTCOME_NOT_FOUND {
		// It is a claim about the world, however old an answer was allowed to be.
		if rev < q.least {
			j.x.w.Fail("%s is told that %s does not exist, at revision %d; %d was acknowledged before", q.s.client, name, rev, q.least)
		}
		j.x.truth.notFound(q, name, rev)
	}
	j.x.truth.routed(name, r, rev)
	j.place(q, name, r, h)
}

// found judges a row of a listing of mailboxes: it is of them that are known, and no
// claim about the world.
func (j *judge) found(q *query, r *apiv1.Route, h *apiv1.ResponseHeader) {
	name := directory.MailboxName(r.GetMailbox())
	j.x.truth.routed(name, r, h.GetRevision())
	j.place(q, name, r, h)
}

// place compares a route with the oracle's.
func (j *judge) place(q *query, name directory.MailboxName, r *apiv1.Route, h *apiv1.ResponseHeader) {
	rev := h.GetRevision()
	if !j.current(h) {
		return
	}
	want := j.o.Route(name)
	if want.Outcome != directory.NotFound {
		want.Recently = false // the API tells it with an absence only
	}
	got := oracle.Place{
		Outcome: directory.Outcome(r.GetOutcome()), Server: directory.BackendName(r.GetServer().GetName()),
		Home: directory.GroupName(r.GetGroup()), Forked: r.GetForked(), Recently: r.GetRecentlyRetracted(),
		Lister: want.Lister,
	}
	if got.Outcome == directory.Unconfirmed && want.Outcome == directory.NotFound && r.GetWhy() != "" {
		got.Outcome = directory.NotFound // no majority could be asked
	}
	if got != want {
		j.x.w.Fail("%s at revision %d: %s is told %+v; it is %+v", name, rev, q.s.client, got, want)
	}
}

// listed judges a LIST.
func (j *judge) listed(q *query, user directory.UserID, groups []string, l *listing) {
	rev := l.header.GetRevision()
	if l.summary == nil || l.summary.GetRows() != uint64(len(l.rows)) {
		j.x.w.Fail("LIST of %s at revision %d ends well after %d rows, its summary is %v", user, rev, len(l.rows), l.summary)
		return
	}
	got := map[directory.MailboxName]bool{}
	for _, row := range l.rows {
		if row.GetOutcome() != 0 {
			got[directory.MailboxName(row.GetMailbox())] = true
		}
	}
	j.x.truth.listed(q, user, groups, got, rev)
	if !j.current(l.header) {
		return
	}
	if j.o.Sweeping() {
		// What is derived follows a sweep, and the answer has to say so.
		if l.summary.GetComplete() {
			j.x.w.Fail("LIST of %s at revision %d says that it is complete, and a sweep is under way", user, rev)
		}
		return
	}
	if want := j.o.List(user, groups); !slices.Equal(names(got), want) {
		j.x.w.Fail("LIST of %s in %v at revision %d shows %v; it is %v", user, groups, rev, names(got), want)
	}
	if want := j.o.Complete(); l.summary.GetComplete() != want {
		j.x.w.Fail("LIST of %s at revision %d says that it is complete: %t; it is: %t", user, rev, !want, want)
	}
}

// inspect looks at a node's whole state now and then.
func (j *judge) inspect(ctx context.Context) {
	w := j.x.w
	for n := 0; Sleep(ctx, 60*time.Second) == nil; n++ {
		if l := w.nodes[n%len(w.nodes)].life; l != nil && w.failure == "" {
			j.whole(l)
		}
	}
}

// whole holds a node's state against its own facts and, if they are at the same
// revision, against the oracle.
func (j *judge) whole(l *life) {
	v := l.raft.View()
	defer v.Release()
	w := j.x.w
	at, err := l.machine.Revision(v)
	if err != nil || at == 0 {
		return
	}
	err = l.machine.Check(v, nil, func(f machine.Finding) error {
		if !f.Advisory {
			return fmt.Errorf("%s %s %s", f.Kind, f.Mailbox, f.Detail)
		}
		return nil
	})
	if err != nil {
		w.Fail("node %s at revision %d: check: %v", l.n.name, at, err)
		return
	}
	st, err := l.machine.Status(v)
	if err != nil {
		w.Fail("node %s at revision %d: status: %v", l.n.name, at, err)
		return
	}
	if uint64(at) != j.rev || len(st.Sweeps) > 0 || j.o.Sweeping() {
		return
	}
	j.x.counts.states++
	if d, err := j.o.Difference(l.machine, v); err != nil || d != "" {
		w.Fail("node %s at revision %d differs from the rules: %s %v", l.n.name, at, d, err)
	}
}

// tail lists the last commands of the log; those about a name only, if one is given.
func (j *judge) tail(n int, about string) string {
	var lines []string
	for i := len(j.log) - 1; i >= 0 && len(lines) < n; i-- {
		e := &j.log[i]
		text := oracle.FormatCommand(e.c)
		if about != "" {
			var with []string
			for _, line := range strings.Split(text, "\n") {
				if strings.Contains(line+" ", " "+about+" ") {
					with = append(with, line)
				}
			}
			text = strings.Join(with, " ")
		}
		if text != "" {
			lines = append(lines, fmt.Sprintf("%d +%v %s %s: %s", e.rev, e.elapsed, e.c.By, text, oracle.FormatResult(e.got)))
		}
	}
	slices.Reverse(lines)
	return strings.Join(lines, "\n")
}

// end looks at every node.
func (j *judge) end() {
	for _, n := range j.x.w.nodes {
		if n.life != nil && j.x.w.failure == "" {
			j.whole(n.life)
		}
	}
}
