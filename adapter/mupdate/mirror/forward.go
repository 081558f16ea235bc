package mirror

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
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
			r.own.add(results[i].Revision)
			break
		}
	}
	for _, s := range some {
		for _, op := range s.ops {
			r.came(s.l, op, results[0])
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
func (r *round) came(l *look, op client.Op, res client.Result) {
	_, retracted := op.(client.Retract)
	if a, leaves := op.(client.Assert); res.Effect == client.Removed || leaves && a.Deactivated && a.Server != l.master.Location.Backend {
		r.gone[l.name] = gone{serverOf(op), res.Revision}
	}
	if res.Effect == client.MoveCompleted {
		// Whoever had given it up has it no more by this statement, and by nobody else's.
		for i := range l.route.Facts {
			if f := &l.route.Facts[i]; f.State == directory.Deactivated && f.Server != serverOf(op) {
				r.gone[l.name] = gone{f.Server, res.Revision}
			}
		}
	}
	switch {
	case res.Err != nil:
		l.why = "refused: " + bare(res.Err)
	case res.Effect == client.GuardHeld:
		l.why = "held by the withdrawal guard"
	case res.Effect == client.NotSince && !retracted && l.route.Fact(serverOf(op)) == nil:
		l.why, l.younger = "taken back from the directory after they were last found equal", true
	case res.Effect == client.NotSince:
		l.why, l.younger = "something else was stated to the directory meanwhile", true
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
		l.younger = true
		l.why = "stated to the directory after they were last found equal"
		return nil
	}
	ops := r.planLeave(l)
	since := l.route.Revision
	if equal := r.equalAt(server); own == nil && equal != 0 && r.doubted(l) {
		since = equal // what others retracted after it stays so
		if g := r.gone[l.name]; g.server == server {
			since = max(since, g.at)
		}
	}
	a := client.Assert{
		Mailbox: l.name, Server: server, Imported: true, Deactivated: l.master.Reserved, Since: since,
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
		l.younger = true
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

// revisions are those of the batches that this run has sent. Other goroutines look.
type revisions struct {
	mu  sync.Mutex
	all []directory.Revision // ascending
}

// mostRevisions is how many are remembered. What an older one changed counts as stated by
// others, if the backend was not found equal since.
const mostRevisions = 1 << 20

func (r *revisions) add(rev directory.Revision) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.all) == mostRevisions {
		r.all = slices.Delete(r.all, 0, mostRevisions/2)
	}
	r.all = append(r.all, rev)
}

func (r *revisions) has(rev directory.Revision) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, has := slices.BinarySearch(r.all, rev)
	return has
}

// ours reports whether what is told of a mailbox is no more than our own statement of it.
func (r *round) ours(m *client.WatchedMailbox) bool {
	newest := directory.Revision(0)
	for i := range m.Facts {
		newest = max(newest, m.Facts[i].Last)
	}
	return r.own.has(newest)
}

// older reports whether the master's word is younger than a fact. What it says now is.
// Of what a listing says, nobody knows; so what was stated after the revision at which
// its server was found equal is not. Of a server of which none is known nothing is taken
// back.
func (r *round) older(l *look, f *client.Fact, takeBack bool) bool {
	if !r.doubted(l) {
		return true
	}
	return r.known(f) || r.equalAt(f.Server) == 0 && !takeBack
}

// known reports whether a fact is the master's own word of some time: this run stated it,
// or it is as it was when its server was found equal.
func (r *round) known(f *client.Fact) bool {
	return f.Last <= r.equalAt(f.Server) || r.own.has(f.Last)
}

// doubted reports whether it is not known who spoke last.
func (r *round) doubted(l *look) bool { return l.cause != bySource && !(r.first && r.cfg.Overrule) }

// equalAt is the revision at which a backend was found equal last; 0: none is known.
func (r *round) equalAt(server directory.BackendName) directory.Revision {
	if at := r.equal[server]; at != 0 {
		return at
	}
	if b := r.t.backends[server]; b != nil {
		return b.equal
	}
	return 0
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
	maps.DeleteFunc(r.gone, func(_ directory.MailboxName, g gone) bool { return g.at <= r.equal[g.server] || len(r.gone) > most })
	slices.Sort(names)
	for _, name := range names {
		res, err := r.cfg.Directory.ConfirmBackendIn(ctx, r.life, name, directory.ByImport)
		if unanswered(err) && !r.cfg.Once {
			return nil // it is noted another time
		}
		if err != nil {
			return err
		}
		r.noted[name] = res.Revision
		delete(r.wrote, name)
		r.t.backends[name].confirmed = true
	}
	return nil
}

// restate states facts anew, unchanged, that others stated after their server was found
// equal and before that was noted: to another run they would look like what the master
// had said.
func (r *round) restate(ctx context.Context, l *look) error {
	var ops []client.Op
	for i := range l.route.Facts {
		f := &l.route.Facts[i]
		if f.State != directory.Active || !r.t.counts(f) || r.known(f) || f.Last > r.noted[f.Server] {
			continue
		}
		// An active fact is touched by what changes it and changes it back, in one entry.
		ops = append(ops, client.Retract{Mailbox: l.name, Server: f.Server, Tentative: true, Since: l.route.Revision}, client.Assert{Mailbox: l.name, Server: f.Server})
	}
	if len(ops) == 0 {
		return nil
	}
	return r.persist(ctx, func() error {
		_, err := r.cfg.Directory.Batch(ctx, ops)
		return err
	})
}
