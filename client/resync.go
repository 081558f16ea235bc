package client

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"

	"github.com/rookery-mail/rookery/directory"
)

// Own is a mailbox of a backend's own list.
type Own struct {
	Mailbox directory.MailboxName
	// Statement is what the list knows of it. What it does not state is not compared.
	Statement directory.Statement
	// Moving: it is being given up in a move. A resync neither begins a move nor ends
	// one; but a mailbox that nobody knows is stated as given up then.
	Moving bool
}

// Resync compares a backend's own list with what the directory has of it, and mends
// the directory. See Session.Resync.
type Resync struct {
	Server directory.BackendName
	// List yields the list, each mailbox once, best in name order. It is run several
	// times, and must yield the same list each time, unless Live.
	List iter.Seq2[Own, error]
	// AsOf is a token that was read before the list was taken (Totals), nil if none is
	// known. Then only what nobody knows is added, and the rest is told.
	AsOf []byte
	// Live: List reads what the backend holds now. AsOf is not looked at: a token is
	// read before each round.
	Live bool
	// Keep says which mailboxes the list may lack though the backend holds them; nil:
	// none. They are not taken back, and if there is one nothing is confirmed.
	Keep func(directory.MailboxName) bool
	// Partial: the list is known to lack some. Nothing is confirmed, and if Keep does
	// not say which, nothing is taken back.
	Partial bool
	// Withdraw takes back however many mailboxes the list lacks. Without it, nothing is
	// taken back if the list lacks all, most, or more than the withdrawal guard lets
	// pass: the guard would hold what is beyond that, but what is before it would go.
	Withdraw bool
	// AllowForks states the list even if most of what is new in it is held by other
	// groups, as when it is another backend's.
	AllowForks bool
	// DryRun changes nothing.
	DryRun bool

	// Told is told of each difference, and again of what became of it; nil: nobody.
	Told func(Difference)
	// Progress is told how far it is, often; nil: nobody.
	Progress func(ResyncProgress)
}

// DifferenceKind is how a list and the directory differ in one mailbox.
type DifferenceKind uint8

const (
	// Lacking: the list has it, the directory has no fact of that server.
	Lacking DifferenceKind = 1
	// Different: both have it, and it is stated otherwise.
	Different DifferenceKind = 2
	// Extra: the directory has it, the list does not.
	Extra DifferenceKind = 3
	// Waiting: they differ, and the fact changed after the list was taken, or nobody
	// knows when it was taken. It is for a list that is taken later.
	Waiting DifferenceKind = 4
	// Kept: the directory has it and the list does not, but may not know.
	Kept DifferenceKind = 5
)

func (k DifferenceKind) String() string {
	switch k {
	case Lacking:
		return "lacking"
	case Different:
		return "different"
	case Extra:
		return "extra"
	case Waiting:
		return "waiting"
	case Kept:
		return "kept"
	}
	return "unknown"
}

// Difference is one mailbox in which a list and the directory differ.
type Difference struct {
	Mailbox directory.MailboxName
	Kind    DifferenceKind
	// Done: it was stated or taken back, to that Effect, or refused with Err.
	Done   bool
	Effect Effect
	Err    error
}

// ResyncProgress is how far a resync is.
type ResyncProgress struct {
	Round int
	Doing string // "summing", "comparing", "mending", "confirming"
	// Done of Of: mailboxes of the list, or differences. Of is 0 if it is not known.
	Done, Of uint64
}

// Resynced is what a resync came to.
type Resynced struct {
	Server directory.BackendName
	// AsOf is the revision before the list was taken, 0: not known. Revision is the one
	// at which they were last compared.
	AsOf, Revision directory.Revision
	Incarnation    directory.Incarnation
	Rounds         int
	// Listed are the mailboxes of the list, Facts what the directory had at first, or
	// has if nothing was changed.
	Listed, Facts uint64
	// What was found in the first round.
	Lacking, Different, Extra, Waiting, Kept uint64
	// What was done, by effect.
	Effects map[Effect]uint64
	// Refused is how many statements were refused.
	Refused uint64
	// Equal: at Revision the directory had exactly the list. Settled: or all in which
	// they differed had changed after the list was taken.
	Equal, Settled bool
	// Withheld: the list lacks so many that nothing was taken back; see Withdraw.
	Withheld bool
	// Held: the guard holds something of the server; an operator decides.
	Held bool
	// Confirmed: the backend's list is known whole now.
	Confirmed bool
}

// Remaining is how many of the differences were not mended, waiting ones apart.
func (r *Resynced) Remaining() uint64 {
	if r.Equal || r.Settled {
		return 0
	}
	n := r.Lacking + r.Different + r.Extra + r.Kept
	done := r.Effects[Added] + r.Effects[Changed] + r.Effects[Removed] + r.Effects[Unchanged]
	return n - min(n, done)
}

// ErrForeign: most of what is new in a list is held by other groups.
var ErrForeign = errors.New("client: the list seems to be another backend's")

// The bounds of a resync.
const (
	// A list that stays as it is needs two rounds, the second to see that all is well;
	// others may be at work. A live one comes closer with each.
	mostRounds = 8
	// So many operations are kept; of more the list is gone over once more.
	mostKept = 20_000
	// A list that lacks few is not said to lack most.
	fewExtra = 10
	// So many of the new mailboxes are looked up to see whose they are.
	looked = 1000
	// Batches and how many are under way: few, for others are to be served first.
	resyncBatch  = 500
	resyncOctets = 1 << 20
	resyncFlying = 4
	lookupBatch  = 500
)

// Resync compares r.List with what the directory has of r.Server, mends the
// directory, and confirms the server's list once they are equal, or differ only in
// what changed after the list was taken. An unchanged list costs one small question;
// a changed one what differs. Each change applies only if that fact has not changed
// since AsOf, so a resync beside live statements, or beside another, undoes neither.
//
// A retraction speaks for the server alone: it never decides for its group.
//
// On an error the result says what was done until then; the same resync may be run
// again.
//
// Errors: ErrForeign; directory.ErrInvalid (the list has a mailbox twice), ErrRole;
// ErrInvalidToken; ErrUnavailable, ErrUndecided; what List yields.
func (s *Session) Resync(ctx context.Context, r Resync) (Resynced, error) {
	y := &resync{Resync: r, s: s, out: Resynced{Server: r.Server, Effects: make(map[Effect]uint64)}}
	for y.out.Rounds = 1; ; y.out.Rounds++ {
		last, err := y.round(ctx)
		if err != nil {
			return y.out, err
		}
		if last || y.out.Rounds == mostRounds {
			break
		}
	}
	return y.out, y.confirm(ctx)
}

// resync is one Resync under way.
type resync struct {
	Resync
	s    *Session
	out  Resynced
	own  *ownSums
	was  *comparison // of this round
	pass int
	plan plan
}

// plan is what a pass over the list found, in this round.
type plan struct {
	lacking, different, extra, waiting, kept uint64

	ops  []told // nil if there are more than mostKept
	many bool

	looked  []directory.MailboxName // some that are lacking
	twice   map[uint64]bool
	partial []Own // to be looked at: of which the list does not know all fields compared
}

// told is an operation and what it is for.
type told struct {
	op   Op
	diff Difference
}

// round makes one exchange, and says whether it was the last.
func (y *resync) round(ctx context.Context) (last bool, err error) {
	y.out.Equal, y.out.Settled = false, false
	asOf := y.AsOf
	if y.Live {
		asOf = nil
	}
	t, err := y.s.Totals(ctx, y.Server, asOf)
	if err != nil {
		return false, err
	}
	if y.Live {
		y.AsOf, t.AsOf = t.Token, t.Revision
	}
	y.met(&t)
	if y.own == nil || y.Live {
		y.progress("summing", 0, 0)
		if y.own, err = sumList(ctx, t.Key, y.counted("summing")); err != nil {
			return false, err
		}
		y.out.Listed = y.own.count
	}
	if y.own.equal(&t) {
		y.out.Equal = true
		return true, nil
	}
	y.progress("comparing", 0, 0)
	if err := y.own.sumParts(ctx, y.List); err != nil {
		return false, err
	}
	if y.was, err = y.s.compare(ctx, y.Server, y.AsOf, y.own); err != nil {
		return false, err
	}
	y.met(&y.was.Totals)
	if err := y.findAll(ctx); err != nil {
		return false, err
	}
	return y.mend(ctx)
}

// met notes the state that was compared with.
func (y *resync) met(t *Totals) {
	y.out.Revision, y.out.AsOf, y.out.Held = t.Revision, t.AsOf, t.Held
	if y.out.Incarnation == 0 {
		y.out.Incarnation, y.out.Facts = t.Incarnation, t.Count
	}
}

func (y *resync) progress(doing string, done, of uint64) {
	if y.Progress != nil {
		y.Progress(ResyncProgress{Round: y.out.Rounds, Doing: doing, Done: done, Of: of})
	}
}

// counted is the list, with progress.
func (y *resync) counted(doing string) iter.Seq2[Own, error] {
	return func(yield func(Own, error) bool) {
		var n uint64
		for own, err := range y.List {
			if n++; n%4096 == 0 {
				y.progress(doing, n, y.out.Listed)
			}
			if !yield(own, err) {
				return
			}
		}
	}
}

// findAll finds the differences of this round without changing anything.
func (y *resync) findAll(ctx context.Context) error {
	y.plan = plan{}
	keep := func(t told) error {
		if y.plan.many {
			return nil
		}
		if len(y.plan.ops) == mostKept {
			y.plan.ops, y.plan.many = nil, true
			return nil
		}
		y.plan.ops = append(y.plan.ops, t)
		return nil
	}
	if err := y.walk(ctx, keep, true); err != nil {
		return err
	}
	if y.out.Rounds == 1 {
		p := &y.plan
		y.out.Lacking, y.out.Different, y.out.Extra, y.out.Waiting, y.out.Kept = p.lacking, p.different, p.extra, p.waiting, p.kept
	}
	return nil
}

// walk goes over the list and then over what it lacks, and hands what is to be done to
// do: statements in the order of the list, retractions in name order. counting says
// that the differences are to be counted and told.
func (y *resync) walk(ctx context.Context, do func(told) error, counting bool) error {
	y.pass++
	p := &y.plan
	p.twice, p.partial = make(map[uint64]bool), nil
	found := func(name directory.MailboxName, kind DifferenceKind, n *uint64) {
		if !counting {
			return
		}
		*n++
		if y.Told != nil {
			y.Told(Difference{Mailbox: name, Kind: kind})
		}
	}
	state := func(own *Own, row *comparedRow) error {
		switch {
		case row == nil && y.was.gone[own.Mailbox], row != nil && (row.newer || len(y.AsOf) == 0):
			found(own.Mailbox, Waiting, &p.waiting)
			return nil
		case row == nil:
			if len(p.looked) < looked && counting {
				p.looked = append(p.looked, own.Mailbox)
			}
			found(own.Mailbox, Lacking, &p.lacking)
			return do(told{y.assert(own, own.Moving), Difference{Mailbox: own.Mailbox, Kind: Lacking}})
		}
		found(own.Mailbox, Different, &p.different)
		return do(told{y.assert(own, row.state == directory.Deactivated), Difference{Mailbox: own.Mailbox, Kind: Different}})
	}
	compared := y.own.fields
	if y.own.count == 0 {
		compared = directory.AllFields
	}
	err := each(ctx, y.counted("comparing"), func(own *Own) error {
		if !y.was.differs(y.own, own.Mailbox) {
			return nil
		}
		f := directory.Fact{}.Merge(own.Statement)
		hash := y.own.hash.Fact(own.Mailbox, &f).Lo
		row := y.was.rows[own.Mailbox]
		switch {
		case row != nil && row.seen == y.pass, row == nil && p.twice[y.own.hash.Name(own.Mailbox).Lo]:
			return fmt.Errorf("%w: the list has %s twice", directory.ErrInvalid, own.Mailbox)
		case row == nil:
			p.twice[y.own.hash.Name(own.Mailbox).Lo] = true
		default:
			if row.seen = y.pass; row.hash == hash {
				return nil
			}
			if own.Statement.Fields()&compared != compared {
				p.partial = append(p.partial, *own)
				if len(p.partial) < lookupBatch {
					return nil
				}
				return y.lookAt(ctx, state)
			}
		}
		return state(own, row)
	})
	if err == nil {
		err = y.lookAt(ctx, state)
	}
	if err != nil {
		return err
	}
	var lacks []directory.MailboxName
	for name, row := range y.was.rows {
		if row.seen != y.pass {
			lacks = append(lacks, name)
		}
	}
	slices.SortFunc(lacks, directory.CompareNames)
	for _, name := range lacks {
		switch {
		case y.Keep != nil && y.Keep(name), y.Keep == nil && y.Partial:
			found(name, Kept, &p.kept)
		case y.was.rows[name].newer, len(y.AsOf) == 0:
			found(name, Waiting, &p.waiting)
		default:
			found(name, Extra, &p.extra)
			op := Retract{Mailbox: name, Server: y.Server, Epoch: directory.OwnEpoch, Since: y.was.AsOf}
			if err := do(told{op, Difference{Mailbox: name, Kind: Extra}}); err != nil {
				return err
			}
		}
	}
	return nil
}

// assert states a mailbox of the list. Without a revision that the list is known to be
// younger than, it says something only of what nobody has said anything of.
func (y *resync) assert(own *Own, deactivated bool) Assert {
	return Assert{Mailbox: own.Mailbox, Server: y.Server, Statement: own.Statement, Deactivated: deactivated, Since: max(y.was.AsOf, 1)}
}

// lookAt compares those that the list does not know all about with what the directory
// has: what is not stated keeps its value, so it is no difference.
func (y *resync) lookAt(ctx context.Context, state func(*Own, *comparedRow) error) error {
	list := y.plan.partial
	y.plan.partial = nil
	if len(list) == 0 {
		return nil
	}
	names := make([]directory.MailboxName, len(list))
	for i := range list {
		names[i] = list[i].Mailbox
	}
	routes, err := y.s.LookupMany(ctx, names, Details())
	if err != nil {
		return err
	}
	for i := range list {
		f := routes[i].Fact(y.Server)
		row := *y.was.rows[list[i].Mailbox]
		if f != nil {
			now := directory.Fact{Partition: f.Partition, ACL: f.ACL, MailboxID: f.MailboxID, UIDValidity: f.UIDValidity, Type: f.Type, SpecialUse: f.SpecialUse}
			if now.Merge(list[i].Statement) == now {
				continue
			}
			row.newer = row.newer || y.was.AsOf != 0 && f.Last > y.was.AsOf
			row.state = f.State
		}
		if err := state(&list[i], &row); err != nil {
			return err
		}
	}
	return nil
}

// mend does what the plan says, and says whether that was the last round.
func (y *resync) mend(ctx context.Context) (last bool, err error) {
	p := &y.plan
	if p.lacking+p.different+p.extra+p.kept == 0 {
		y.out.Equal = p.waiting == 0
		y.out.Settled = true
		// A live list may catch up with what changes meanwhile, but need not.
		return y.DryRun || !y.Live || y.out.Equal || y.out.Rounds > 2, nil
	}
	if y.DryRun {
		y.out.Withheld, err = y.doubtful(ctx)
		return true, err
	}
	if err := y.refuseForeign(ctx); err != nil {
		return false, err
	}
	if y.out.Withheld, err = y.doubtful(ctx); err != nil {
		return false, err
	}
	before := y.out.Refused
	m := &mender{y: y, of: p.lacking + p.different + p.extra}
	do := func(t told) error {
		if t.diff.Kind == Extra && y.out.Withheld {
			return nil
		}
		return m.add(ctx, t)
	}
	if p.many {
		err = y.walk(ctx, do, false)
	} else {
		for _, t := range p.ops {
			if err = do(t); err != nil {
				break
			}
		}
	}
	if landed := m.drain(ctx); err == nil {
		err = landed
	}
	// Who may not go further need not look again.
	last = y.out.Withheld || p.kept > 0 || y.out.Refused > before || len(y.AsOf) == 0
	if last && err == nil {
		var t Totals
		if t, err = y.s.Totals(ctx, y.Server, nil); err == nil {
			asOf := y.out.AsOf
			y.met(&t)
			y.out.AsOf = asOf
		}
	}
	return last, err
}

// doubtful reports whether the list lacks so many mailboxes that it is more likely to
// be wrong: an emptied spool, another backend's list, the beginning of a list.
func (y *resync) doubtful(ctx context.Context) (bool, error) {
	extra := y.plan.extra
	switch {
	case y.Withdraw || extra == 0:
		return false, nil
	case y.own.count == 0, extra > fewExtra && 2*extra > y.was.Count:
		return true, nil
	case extra <= fewExtra:
		return false, nil
	}
	settings, err := y.s.GetSettings(ctx)
	if err != nil {
		return false, err
	}
	return extra > max(uint64(settings.GuardCount), y.was.Count*uint64(settings.GuardPercent)/100), nil
}

// refuseForeign refuses a list of which most of what is new is held elsewhere: each of
// them would be a fork.
func (y *resync) refuseForeign(ctx context.Context) error {
	p := &y.plan
	if y.AllowForks || p.lacking <= fewExtra || 2*p.lacking <= y.own.count {
		return nil
	}
	backends, err := y.s.ListBackends(ctx, "")
	if err != nil {
		return err
	}
	var group directory.GroupName
	for _, b := range backends {
		if b.Name == y.Server {
			group = b.Group
		}
	}
	routes, err := y.s.LookupMany(ctx, p.looked)
	if err != nil {
		return err
	}
	foreign := 0
	for i := range routes {
		if routes[i].Group != "" && routes[i].Group != group && routes[i].Outcome != directory.Moving {
			foreign++
		}
	}
	if 2*foreign <= len(routes) {
		return nil
	}
	return fmt.Errorf("%w: of %d mailboxes that it has and the directory has not of %s, %d are held by other groups, %s for one", ErrForeign, len(routes), y.Server, foreign, p.looked[0])
}

// confirm says that the list is known whole, if it is.
func (y *resync) confirm(ctx context.Context) error {
	out := &y.out
	whole := (out.Equal || out.Settled) && !y.Partial && !out.Held && out.Refused == 0 && out.AsOf != 0
	if y.DryRun || !whole {
		return nil
	}
	y.progress("confirming", 0, 0)
	_, err := y.s.ConfirmBackendIn(ctx, out.Incarnation, y.Server, directory.ByResync)
	switch {
	case errors.Is(err, directory.ErrNotFound):
		return nil // an empty list of a backend that nobody has heard of
	case err != nil:
		return err
	}
	out.Confirmed = true
	return nil
}

// mender sends operations in batches, some under way at a time.
type mender struct {
	y      *resync
	of     uint64
	done   uint64
	batch  []told
	size   int
	flying []mending // oldest first
}

type mending struct {
	batch  []told
	landed chan mended
}

type mended struct {
	results []Result
	err     error
}

func (m *mender) add(ctx context.Context, t told) error {
	size := 64 + len(t.diff.Mailbox)
	if a, ok := t.op.(Assert); ok {
		for _, s := range []*string{a.Statement.ACL, a.Statement.MailboxID, a.Statement.SpecialUse} {
			if s != nil {
				size += len(*s)
			}
		}
	}
	if len(m.batch) == resyncBatch || m.size+size > resyncOctets && len(m.batch) > 0 {
		if err := m.launch(ctx); err != nil {
			return err
		}
	}
	m.batch, m.size = append(m.batch, t), m.size+size
	return nil
}

func (m *mender) launch(ctx context.Context) error {
	var err error
	if len(m.flying) == resyncFlying {
		err = m.land()
	}
	if err == nil && len(m.batch) > 0 {
		ops := make([]Op, len(m.batch))
		for i, t := range m.batch {
			ops[i] = t.op
		}
		f := mending{m.batch, make(chan mended, 1)}
		m.flying = append(m.flying, f)
		go func() {
			results, err := m.y.s.Batch(ctx, ops)
			f.landed <- mended{results, err}
		}()
	}
	m.batch, m.size = nil, 0
	return err
}

// land waits for the oldest batch.
func (m *mender) land() error {
	f := m.flying[0]
	m.flying = m.flying[1:]
	l := <-f.landed
	if l.err != nil {
		return l.err
	}
	out := &m.y.out
	for i, t := range f.batch {
		m.done++
		t.diff.Done, t.diff.Effect, t.diff.Err = true, l.results[i].Effect, l.results[i].Err
		if t.diff.Err != nil {
			out.Refused++
		} else {
			out.Effects[t.diff.Effect]++
		}
		if m.y.Told != nil {
			m.y.Told(t.diff)
		}
	}
	m.y.progress("mending", m.done, m.of)
	return nil
}

// drain sends what is left and waits for all that is under way, whatever happens.
func (m *mender) drain(ctx context.Context) error {
	err := m.launch(ctx)
	for len(m.flying) > 0 {
		if landed := m.land(); err == nil {
			err = landed
		}
	}
	return err
}
