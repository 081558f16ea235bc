package mirror

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
)

// statement is what the directory is told of one name.
type statement struct {
	l   *look
	ops []client.Op
}

// batchOctets is about how many octets of names and ACLs one batch has.
const batchOctets = 1 << 20

// tellDirectory makes the directory say what the master says, and looks what came of it.
func (r *round) tellDirectory(ctx context.Context, looks []*look) error {
	var some []statement
	size := 0
	tell := func() error {
		err := r.state(ctx, some)
		some, size = nil, 0
		return err
	}
	var names []directory.MailboxName
	for _, l := range looks {
		s := statement{l, r.plan(l)}
		names = append(names, l.name)
		if len(s.ops) == 0 {
			continue
		}
		some = append(some, s)
		if size += 100 + len(l.name); l.master != nil {
			size += len(l.master.ACL)
		}
		if size > batchOctets {
			if err := tell(); err != nil {
				return err
			}
		}
	}
	if err := tell(); err != nil {
		return err
	}
	routes, err := r.routes(ctx, names)
	for i := range routes {
		looks[i].take(routes[i])
	}
	return err
}

// state sends statements.
func (r *round) state(ctx context.Context, some []statement) error {
	var ops []client.Op
	for _, s := range some {
		ops = append(ops, s.ops...)
	}
	if len(ops) == 0 {
		return nil
	}
	var results []client.Result
	err := r.persist(ctx, func() (err error) {
		results, err = r.cfg.Directory.Batch(ctx, ops)
		return err
	})
	if err != nil {
		return err
	}
	for i := range results {
		if results[i].Err == nil { // all are of one revision
			r.own(results[i].Revision)
			break
		}
	}
	for _, s := range some {
		for _, op := range s.ops {
			s.l.came(op, results[0])
			r.wrote[serverOf(op)] = true
			results = results[1:]
		}
	}
	return nil
}

func serverOf(op client.Op) directory.BackendName {
	switch op := op.(type) {
	case client.Assert:
		return op.Server
	case client.Retract:
		return op.Server
	}
	return ""
}

// came notes what came of a statement.
func (l *look) came(op client.Op, res client.Result) {
	_, retracted := op.(client.Retract)
	switch {
	case res.Err != nil:
		l.why = "refused: " + bare(res.Err)
	case res.Effect == client.GuardHeld:
		l.why = "held by the withdrawal guard"
	case res.Effect == client.NotSince:
		l.why = "something else was stated to the directory meanwhile"
	case res.Effect == client.Forked:
		l.why = "another group holds it too"
	case res.Effect == client.Overtaken:
		l.why = "that copy was overtaken by a move, a delete or a settled fork"
	case retracted:
		l.done = "retracted"
	case res.Effect == client.Unchanged:
	case l.done == "":
		l.done = res.Effect.String()
	default:
		l.done = "moved"
	}
}

func bare(err error) string {
	text := err.Error()
	if e, ok := errors.AsType[*client.Error](err); ok {
		text = e.Message
	}
	return strings.TrimPrefix(text, "directory: ")
}

// plan says what to tell the directory of a name; if it is nothing, l.why says why not.
func (r *round) plan(l *look) []client.Op {
	if l.master == nil {
		return r.planRetract(l)
	}
	server := l.master.Location.Backend
	own := l.route.Fact(server)
	switch {
	case r.t.itself(server):
		l.why = fmt.Sprintf("%s speaks to the directory itself", server)
		return nil
	case own != nil && !r.older(l, own, false):
		l.why = "stated to the directory after they were last found equal"
		return nil
	}
	ops := r.planLeave(l)
	a := client.Assert{
		Mailbox: l.name, Server: server, Imported: true, Deactivated: l.master.Reserved, Since: l.route.Revision,
		Statement: directory.Statement{Partition: l.master.Location.Partition},
	}
	switch {
	case !l.master.Reserved:
		a.Statement.ACL = &l.master.ACL
	case own == nil && len(ops) > 0:
		return ops // who reserves a name does not hold it yet
	}
	return append(ops, a)
}

// planLeave gives a mailbox up for whoever the master does not name any more, if another
// group is its home: the next to state it has it then. It is one batch with that, so at
// no time is it not there.
func (r *round) planLeave(l *look) (ops []client.Op) {
	if l.route.Group == "" || l.route.Group == r.t.groupOf(l.master.Location.Backend) {
		return nil
	}
	for i := range l.route.Facts {
		f := &l.route.Facts[i]
		if !r.t.counts(f) || f.State == directory.Deactivated || r.t.groupOf(f.Server) != l.route.Group || r.t.isReplica(f.Server) {
			continue
		}
		if r.t.itself(f.Server) || !r.older(l, f, true) {
			continue // then it is a fork, and shown
		}
		ops = append(ops, client.Assert{Mailbox: l.name, Server: f.Server, Imported: true, Deactivated: true, Since: l.route.Revision})
	}
	return ops
}

// planRetract takes back what the master has no more: the one fact that the route comes
// from. Copies of replicas, and those outside the home, are nothing that a master knew.
// What it says now, the primary said, so that decides for the group; what a listing lacks
// decides nothing for others.
func (r *round) planRetract(l *look) []client.Op {
	f := l.route.Fact(l.dir.Location.Backend)
	switch {
	case f == nil || !r.t.counts(f) || r.t.isReplica(f.Server) || r.t.groupOf(f.Server) != l.route.Group:
		return nil
	case r.t.itself(f.Server):
		l.why = fmt.Sprintf("%s speaks to the directory itself", f.Server)
		return nil
	case !r.older(l, f, true):
		l.why = "stated to the directory after they were last found equal"
		return nil
	case l.cause == byListing && r.withheld[f.Server]:
		l.why = fmt.Sprintf("the master's list lacks so much of %s that it is not believed", f.Server)
		return nil
	}
	op := client.Retract{Mailbox: l.name, Server: f.Server, Since: l.route.Revision}
	if l.cause == byListing {
		op.Epoch = directory.OwnEpoch
	}
	return []client.Op{op}
}

// ownKept is how many revisions of our own are remembered: what they changed is told by
// the watch soon.
const ownKept = 1024

// own notes the revision of a batch of ours.
func (r *round) own(rev directory.Revision) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.written) == ownKept {
		r.written = slices.Delete(r.written, 0, ownKept/2)
	}
	r.written = append(r.written, rev)
}

// ours reports whether what is told of a mailbox is no more than our own statement of it.
func (r *round) ours(m *client.WatchedMailbox) bool {
	newest := directory.Revision(0)
	for i := range m.Facts {
		newest = max(newest, m.Facts[i].Last)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	_, ours := slices.BinarySearch(r.written, newest)
	return ours
}

// older reports whether the master's word is younger than a fact. What it says now is.
// Of what a listing says, nobody knows; so what was stated after the revision at which
// its server was found equal is not. Of a server of which none is known nothing is taken
// back.
func (r *round) older(l *look, f *client.Fact, takeBack bool) bool {
	if l.cause == bySource || r.first && r.cfg.Overrule {
		return true
	}
	equal := r.equal[f.Server]
	if b := r.t.backends[f.Server]; b != nil && equal == 0 {
		equal = b.equal
	}
	if equal == 0 {
		return !takeBack
	}
	return f.Last <= equal
}

// keep notes which backends are equal at rev, here and as confirmed by import, so that
// another run knows it.
func (r *round) keep(ctx context.Context, rev directory.Revision) error {
	if r.cfg.Check || r.cfg.Reverse {
		return nil
	}
	if len(r.waiting) > 0 {
		return nil // something is still to be looked at
	}
	r.kept = time.Now()
	var names []directory.BackendName
	for name := range r.master {
		b := r.t.backends[name]
		if b == nil || b.gone || b.itself || !r.ledger.clean(name) || r.unclear[name] || r.ledger.beyond > 0 {
			continue
		}
		r.equal[name] = rev
		if r.wrote[name] || !b.confirmed {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		_, err := r.cfg.Directory.ConfirmBackendIn(ctx, r.life, name, directory.ByImport)
		if err != nil {
			return err
		}
		delete(r.wrote, name)
		r.t.backends[name].confirmed = true
	}
	return nil
}
