package oracle

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"

	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/directory/machine"
)

// Oracle is a directory by the rules as they are written. It belongs to one
// goroutine.
type Oracle struct {
	inited     bool
	clusterID  string
	version    uint32 // of the cluster
	digestKey  []byte
	life       directory.Incarnation
	began      directory.Revision // of this life; 0: the first
	rev        directory.Revision
	now        directory.Time
	set        directory.Settings
	nextServer directory.ServerID
	nextGroup  directory.GroupID
	backends   map[directory.ServerID]*directory.Backend
	groups     map[directory.GroupID]*directory.Group
	boxes      map[directory.MailboxName]*box
	claims     map[directory.MailboxName]*directory.Reservation
	holds      map[holdID]*directory.Hold
	alarms     map[alarmID]machine.SetAlarm
	voters     map[alarmID]directory.Revision // when each was raised last
	subs       map[subID]bool
	tombs      map[directory.MailboxName]*directory.Tombstone
	requests   map[string]answered
	forgetAt   directory.Time // when silent clients are forgotten
	guards     map[directory.ServerID][]guardEvent
	// pending is what a sweep has still to do: decisions about held facts, and
	// servers that were admitted.
	decide map[directory.ServerID]bool                           // server -> approve
	enter  map[directory.ServerID]map[directory.MailboxName]bool // admitted; these facts have still to enter
	// joining is enter for servers that were confirmed: their facts of an earlier life.
	joining map[directory.ServerID]map[directory.MailboxName]bool
	regroup map[directory.ServerID]bool // its group or state changed
	// left holds what each server that left a group had at home there until then.
	left map[directory.ServerID]map[directory.MailboxName]bool
	// lapses is when to look whether withdrawals announced since cluster version 2 end.
	lapses map[announcement]map[directory.Time]bool
	// decided is when each decision was made.
	decided map[directory.ServerID]directory.Revision
	// followed is what the machine said of the command that is being applied; nil:
	// it is not to be followed.
	followed *machine.Result
}

type box struct {
	home  directory.GroupID
	stray map[directory.ServerID]string
	facts map[directory.ServerID]*directory.Fact
}

type holdID struct {
	kind directory.HoldKind
	key  string
}

type alarmID struct {
	kind directory.AlarmKind
	node string
}

// announcement is of a withdrawal that ends by itself.
type announcement struct {
	name   directory.MailboxName
	server directory.ServerID
}

type subID struct {
	user directory.UserID
	name directory.MailboxName
}

type answered struct {
	seq    uint64
	at     directory.Time
	result machine.Result
	op     machine.Op
}

type guardEvent struct {
	minute   uint64
	returned bool
}

// New returns the directory of a cluster that has not begun.
func New() *Oracle {
	return &Oracle{
		backends: map[directory.ServerID]*directory.Backend{},
		groups:   map[directory.GroupID]*directory.Group{},
		boxes:    map[directory.MailboxName]*box{},
		claims:   map[directory.MailboxName]*directory.Reservation{},
		holds:    map[holdID]*directory.Hold{},
		alarms:   map[alarmID]machine.SetAlarm{},
		voters:   map[alarmID]directory.Revision{},
		subs:     map[subID]bool{},
		tombs:    map[directory.MailboxName]*directory.Tombstone{},
		requests: map[string]answered{},
		guards:   map[directory.ServerID][]guardEvent{},
		decide:   map[directory.ServerID]bool{},
		enter:    map[directory.ServerID]map[directory.MailboxName]bool{},
		joining:  map[directory.ServerID]map[directory.MailboxName]bool{},
		regroup:  map[directory.ServerID]bool{},
		left:     map[directory.ServerID]map[directory.MailboxName]bool{},
		lapses:   map[announcement]map[directory.Time]bool{},
		decided:  map[directory.ServerID]directory.Revision{},
		set:      directory.DefaultSettings(),
	}
}

// Do applies one command, elapsed after the last.
func (o *Oracle) Do(elapsed directory.Time, c machine.Command) machine.Result {
	o.rev++
	o.now += elapsed
	if c.Client != "" {
		if last, ok := o.requests[c.Client]; ok {
			if last.seq == c.Sequence && !reflect.DeepEqual(last.op, c.Op) {
				return machine.Result{Revision: o.rev, Refused: directory.ErrInvalid}
			}
			if last.seq == c.Sequence && (last.result.Revision >= o.began || !endsWithLife(c.Op)) {
				return last.result
			}
			if c.Sequence < last.seq {
				return machine.Result{Revision: o.rev, Refused: directory.ErrStaleRequest}
			}
		}
	}
	r := o.one(c)
	if c.Client != "" {
		o.requests[c.Client] = answered{c.Sequence, o.now, r, c.Op}
	}
	return r
}

// Follow is Do for a command that the machine answered with got. Digests lag behind
// while a sweep is open, so that what SetPrimary and SetGroup then find missing is
// the machine's to say: of that alone its word is taken.
func (o *Oracle) Follow(elapsed directory.Time, c machine.Command, got machine.Result) machine.Result {
	if o.Sweeping() {
		o.followed = &got
		defer func() { o.followed = nil }()
	}
	return o.Do(elapsed, c)
}

// Sweeping reports whether the consequences of a command have still to be gone
// through by Ticks.
func (o *Oracle) Sweeping() bool {
	return len(o.regroup)+len(o.enter)+len(o.decide)+len(o.joining) > 0
}

// Revision is how many commands were applied, and 2^32 for each life that ended.
func (o *Oracle) Revision() directory.Revision { return o.rev }

// Now is directory time.
func (o *Oracle) Now() directory.Time { return o.now }

// endsWithLife reports whether a restore drops what op did.
func endsWithLife(op machine.Op) bool {
	switch op := op.(type) {
	case machine.Reserve, machine.Hold:
		return true
	case machine.Batch:
		return slices.ContainsFunc(op.Ops, endsWithLife)
	}
	return false
}

func (o *Oracle) one(c machine.Command) machine.Result {
	var r machine.Result
	if o.noGrowth() {
		switch c.Op.(type) {
		case machine.Rename, machine.SetGroup, machine.Admit, machine.RenameBackend:
			return machine.Result{Revision: o.rev, Refused: directory.ErrReadOnly}
		}
	}
	switch op := c.Op.(type) {
	case machine.Init:
		r = o.init(op)
	case machine.Restore:
		r = o.restore(op)
	case machine.Finalize:
		r = o.finalize(op)
	case machine.Assert:
		r = o.assert(op)
		o.written(op.Mailbox, r)
	case machine.Retract:
		r = o.retract(op)
		o.written(op.Mailbox, r)
	case machine.Reserve:
		r = o.reserve(op)
	case machine.Release:
		r = o.release(op)
	case machine.Deactivate:
		r = o.deactivate(op)
		o.written(op.Mailbox, r)
	case machine.Rename:
		r = o.rename(op)
	case machine.SetPrimary:
		r = o.setPrimary(op)
	case machine.SetGroup:
		r = o.setGroup(op)
	case machine.SetBackend:
		r = o.setBackend(op)
	case machine.Admit:
		r = o.admit(op)
	case machine.Confirm:
		r = o.confirm(op)
	case machine.RenameBackend:
		r = o.renameBackend(op)
	case machine.Subscribe:
		r = o.subscribe(op)
	case machine.Unsubscribe:
		r = o.unsubscribe(op)
	case machine.Settle:
		r = o.settle(op)
	case machine.Hold:
		r = o.hold(op)
	case machine.ReleaseHold:
		r = o.releaseHold(op)
	case machine.SetAlarm:
		r = o.setAlarm(op)
	case machine.DecideHeld:
		r = o.decideHeld(op)
	case machine.SetSettings:
		r = o.setSettings(op)
	case machine.Tick:
		r = o.tick()
	case machine.Batch:
		r = machine.Result{Effect: machine.Unchanged}
		for _, item := range op.Ops {
			one := o.one(machine.Command{By: c.By, Op: item})
			switch one.Effect {
			case machine.Unchanged, machine.NotHeld, machine.AlreadyYours, machine.CopyAllowed, machine.NotSince:
				r.Items = append(r.Items, one)
				continue
			}
			if one.Refused == nil {
				r.Effect = machine.Changed
			}
			r.Items = append(r.Items, one)
		}
	}
	r.Revision = o.rev
	return r
}

func (o *Oracle) init(op machine.Init) machine.Result {
	if o.inited {
		return effect(machine.Unchanged)
	}
	o.inited, o.clusterID, o.life, o.digestKey = true, op.ClusterID, op.Incarnation, op.DigestKey
	o.version = max(op.Version, 1)
	o.nextServer, o.nextGroup = 1, 1
	o.forgetAt = o.now + o.set.RequestKeep/2
	return effect(machine.Added)
}

func effect(e machine.Effect) machine.Result { return machine.Result{Effect: e} }

func refused(err error) machine.Result { return machine.Result{Refused: err} }

// Looking things up, the slow way.

func (o *Oracle) backend(name directory.BackendName) *directory.Backend {
	for _, b := range o.backends {
		if b.Name == name {
			return b
		}
	}
	return nil
}

func (o *Oracle) group(name directory.GroupName) *directory.Group {
	for _, g := range o.groups {
		if g.Name == name && g.MergedInto == 0 {
			return g
		}
	}
	return nil
}

// follow returns a group with mergers followed.
func (o *Oracle) follow(id directory.GroupID) *directory.Group {
	g := o.groups[id]
	for g != nil && g.MergedInto != 0 {
		g = o.groups[g.MergedInto]
	}
	return g
}

func (o *Oracle) groupOf(server directory.ServerID) *directory.Group {
	return o.follow(o.backends[server].Group)
}

// counts reports whether a fact can make a home, a fork or a route.
func (o *Oracle) counts(f *directory.Fact) bool {
	b := o.backends[f.Server]
	return b.Admitted && b.State != directory.BackendLost && b.State != directory.BackendRetired &&
		f.Standing == directory.InForce && f.State != directory.HeldReturn
}

// homeOf is the home of a mailbox, nil if it has none.
func (o *Oracle) homeOf(b *box) *directory.Group {
	if b == nil {
		return nil
	}
	if b.home != 0 {
		return o.follow(b.home)
	}
	var first *directory.Fact
	for _, f := range b.facts {
		if o.counts(f) && (first == nil || f.First < first.First || f.First == first.First && f.Server < first.Server) {
			first = f
		}
	}
	if first == nil {
		return nil
	}
	return o.groupOf(first.Server)
}

func member(g *directory.Group, server directory.ServerID) bool {
	return g != nil && slices.Contains(g.Members, server)
}

// live returns the facts that count of the home's members, by server.
func (o *Oracle) live(b *box) []*directory.Fact {
	if b == nil {
		return nil
	}
	home := o.homeOf(b)
	var live []*directory.Fact
	for _, s := range slices.Sorted(maps.Keys(b.facts)) {
		if f := b.facts[s]; o.counts(f) && member(home, s) {
			live = append(live, f)
		}
	}
	return live
}

// confirmed reports whether f was heard in this life, alone or with all that its
// server has.
func (o *Oracle) confirmed(f *directory.Fact) bool {
	b := o.backends[f.Server]
	return f.Incarnation == o.life || b.Confirmed != directory.ByNobody && b.ConfirmedIn == o.life && f.State != directory.HeldWithdrawal
}

// strangers returns the facts that make a fork, by server.
func (o *Oracle) strangers(b *box) []*directory.Fact {
	if b == nil {
		return nil
	}
	home := o.homeOf(b)
	var out []*directory.Fact
	for _, s := range slices.Sorted(maps.Keys(b.facts)) {
		if f := b.facts[s]; o.counts(f) && !member(home, s) && o.confirmed(f) {
			out = append(out, f)
		}
	}
	return out
}

// inHome are the facts that list and post: as live, and a lost member's too.
func (o *Oracle) inHome(b *box) []*directory.Fact {
	home := o.homeOf(b)
	var out []*directory.Fact
	for _, s := range slices.Sorted(maps.Keys(b.facts)) {
		f := b.facts[s]
		if o.backends[s].Admitted && f.Standing == directory.InForce && f.State != directory.HeldReturn && member(home, s) {
			out = append(out, f)
		}
	}
	return out
}

// gaveUp reports whether the home, not vacant, waits for somebody to take the
// mailbox over.
func (o *Oracle) gaveUp(b *box) bool {
	live := o.live(b)
	if len(live) == 0 {
		return false
	}
	all := true
	for _, f := range live {
		if f.State == directory.Deactivated && f.Server == o.homeOf(b).Primary {
			return true
		}
		all = all && f.State == directory.Deactivated
	}
	return all
}

func (o *Oracle) fact(name directory.MailboxName, server directory.BackendName) (*box, *directory.Backend, *directory.Fact) {
	b, be := o.boxes[name], o.backend(server)
	if b == nil || be == nil {
		return b, be, nil
	}
	return b, be, b.facts[be.ID]
}

// stated is how many facts a server states.
func (o *Oracle) stated(server directory.ServerID) (n uint64) {
	for _, b := range o.boxes {
		if f := b.facts[server]; f != nil && f.State != directory.HeldWithdrawal {
			n++
		}
	}
	return n
}

// counted are the names of which a server has a fact in force inside the home,
// and does not say that it is gone.
func (o *Oracle) counted(server directory.ServerID) map[directory.MailboxName]bool {
	names := map[directory.MailboxName]bool{}
	for name, b := range o.boxes {
		for _, f := range o.inHome(b) {
			if f.Server == server && f.State != directory.HeldWithdrawal {
				names[name] = true
			}
		}
	}
	return names
}

// heard starts the grace of what server has reserved.
func (o *Oracle) heard(server directory.BackendName) {
	b := o.backend(server)
	if b == nil {
		return
	}
	for _, c := range o.claims {
		if c.Server == b.ID && !c.Heard {
			c.Heard = true
			c.Deadline = min(c.Deadline, o.now+c.Grace)
		}
	}
}

func validNames(name directory.MailboxName, server directory.BackendName) error {
	if _, err := directory.ParseName(string(name)); err != nil {
		return err
	}
	_, err := directory.ParseBackend(string(server))
	return err
}

func validStatement(st directory.Statement) error {
	switch {
	case st.ACL != nil && directory.CheckACL(*st.ACL) != nil:
		return directory.CheckACL(*st.ACL)
	case st.MailboxID != nil && len(*st.MailboxID) > directory.MaxMailboxID:
		return directory.ErrTooLarge
	case st.SpecialUse != nil && len(*st.SpecialUse) > directory.MaxSpecialUse:
		return directory.ErrTooLarge
	case st.Type != nil && !st.Type.Valid():
		return directory.ErrInvalid
	}
	_, err := directory.ParsePartition(st.Partition)
	return err
}

// Backends, as they come to be.

func (o *Oracle) addBackend(name directory.BackendName, admitted bool) *directory.Backend {
	b := &directory.Backend{
		ID: o.nextServer, Name: name, Weight: directory.DefaultWeight, Admitted: admitted,
		State: directory.BackendActive, Since: o.now,
	}
	o.nextServer++
	o.backends[b.ID] = b
	o.ownGroup(b)
	return b
}

// ownGroup gives b a new group of one.
func (o *Oracle) ownGroup(b *directory.Backend) {
	name := directory.GroupName(b.Name)
	for n := o.nextGroup; o.group(name) != nil; n++ {
		name = directory.GroupName(fmt.Sprintf("%s-own%d", b.Name, n))
	}
	g := &directory.Group{
		ID: o.nextGroup, Name: name, Members: []directory.ServerID{b.ID},
		Primary: b.ID, Epoch: 1, Mode: directory.ModeManual, Own: true,
	}
	o.nextGroup++
	o.groups[g.ID] = g
	b.Group = g.ID
}

// Assert.

func (o *Oracle) assert(op machine.Assert) machine.Result {
	if err := validNames(op.Mailbox, op.Server); err != nil {
		return refused(err)
	}
	if err := validStatement(op.Statement); err != nil {
		return refused(err)
	}
	be := o.backend(op.Server)
	if be != nil && be.State == directory.BackendRetired {
		return refused(directory.ErrNotAdmitted)
	}
	if o.noGrowth() && o.wouldChange(op) {
		return refused(directory.ErrReadOnly)
	}
	if op.Since != 0 && o.changedSince(op.Mailbox, op.Server, op.Since) {
		return effect(machine.NotSince)
	}
	if be == nil {
		be = o.addBackend(op.Server, o.set.AdmissionOpen || op.Imported)
	}
	if op.Imported && !be.Admitted {
		o.admitNow(be)
	}
	if !op.Imported {
		o.heard(op.Server)
	}
	return o.stateFact(be, op)
}

// changedSince reports whether server's fact changed, or went, after rev.
func (o *Oracle) changedSince(name directory.MailboxName, server directory.BackendName, rev directory.Revision) bool {
	_, be, f := o.fact(name, server)
	if f != nil {
		return f.Last > rev
	}
	t := o.tombs[name]
	return be != nil && t != nil && t.Server == be.ID && t.Revision > rev
}

// wouldChange reports whether the assertion states anything new.
func (o *Oracle) wouldChange(op machine.Assert) bool {
	_, _, f := o.fact(op.Mailbox, op.Server)
	return f == nil || f.Merge(op.Statement) != *f
}

// stateFact is an assertion that is accepted, of a backend that is known.
func (o *Oracle) stateFact(be *directory.Backend, op machine.Assert) machine.Result {
	name := op.Mailbox
	b := o.boxes[name]
	if b == nil {
		b = &box{stray: map[directory.ServerID]string{}, facts: map[directory.ServerID]*directory.Fact{}}
		o.boxes[name] = b
	}
	old := b.facts[be.ID]
	isNew := old == nil

	state := directory.Active
	if op.Deactivated {
		state = directory.Deactivated
	}
	completes := o.gaveUp(b) && !member(o.homeOf(b), be.ID) && o.countsBackend(be) && !op.Deactivated
	tomb := o.tombs[name]
	if isNew && tomb != nil && tomb.Revision > be.ConfirmedRevision && (o.began == 0 || be.ConfirmedIn == o.life) && !op.Imported && !completes && !name.IsDeleted() {
		if o.beyond(be.ID, true) {
			f := &directory.Fact{
				Server: be.ID, State: directory.HeldReturn, Was: state,
				First: o.rev, Last: o.rev, Changed: o.now, Incarnation: o.life,
			}
			*f = f.Merge(op.Statement)
			b.facts[be.ID] = f
			return effect(machine.GuardHeld)
		}
		o.guards[be.ID] = append(o.guards[be.ID], guardEvent{minute(o.now), true})
	}
	if !isNew && old.State == directory.HeldReturn {
		f := old.Merge(op.Statement)
		f.Incarnation = o.life
		if f != *old {
			f.Last, f.Changed = o.rev, o.now
			*old = f
		}
		return effect(machine.GuardHeld)
	}
	return o.weigh(b, be, name, op.Statement, state, true)
}

func (o *Oracle) countsBackend(be *directory.Backend) bool {
	return be.Admitted && be.State != directory.BackendLost && be.State != directory.BackendRetired
}

// weigh finds what an assertion, believed, does to the mailbox; or, if it was
// not made now, a fact that begins to count.
func (o *Oracle) weigh(b *box, be *directory.Backend, name directory.MailboxName, st directory.Statement, state directory.FactState, now bool) machine.Result {
	// What was true before.
	old := b.facts[be.ID]
	isNew := old == nil
	home, homeWas := o.homeOf(b), b.home
	live := o.live(b)
	vacant := len(live) == 0
	gaveUp := o.gaveUp(b)
	strangers := o.strangers(b)
	heardLive := slices.ContainsFunc(live, o.confirmed)
	wasDeactivated := !isNew && old.State == directory.Deactivated
	claim := o.claims[name]
	defer func() {
		delete(o.enter[be.ID], name)
		delete(o.joining[be.ID], name)
	}()

	var f directory.Fact
	if isNew {
		f = directory.Fact{Server: be.ID, First: o.rev}
	} else {
		f = *old
	}
	f = f.Merge(st)
	f.State, f.Was = state, 0
	if now || isNew {
		f.Incarnation = o.life
	}
	if f.Standing != directory.InForce && f.MailboxID != old.MailboxID {
		f.Standing = directory.InForce
	}
	fact := &f
	b.facts[be.ID] = fact

	e := machine.Unchanged
	special, takes := false, false
	switch {
	case !o.countsBackend(be): // 1
		e, special = machine.NotAdmitted, true
		if be.Admitted {
			e = machine.Overtaken
		}
	case home == nil: // 2
		b.home, takes = be.Group, true
		f.Standing = directory.InForce
	case member(home, be.ID): // 3
		if f.Standing == directory.StaleCopy && home.Primary != be.ID {
			p := b.facts[home.Primary]
			if p != nil && p.Standing == directory.InForce && p.State == directory.Active &&
				(p.MailboxID == f.MailboxID || p.MailboxID == "" || f.MailboxID == "") {
				f.Standing = directory.InForce
			}
		} else {
			f.Standing = directory.InForce
		}
		if f.Standing != directory.InForce {
			e, special = machine.Overtaken, true
			break
		}
		if wasDeactivated && f.State == directory.Active {
			e, special = machine.MoveAborted, true
			for s, other := range b.facts {
				if !member(home, s) && o.counts(other) {
					other.Standing = directory.LeftBehind
					o.touch(other)
				}
			}
		}
	case now && !vacant && gaveUp && f.State == directory.Active: // 4
		e, special = machine.MoveCompleted, true
		t := &directory.Tombstone{
			Name: name, How: directory.GoneMoved, From: home.ID, To: be.Group,
			Revision: o.rev, Time: o.now,
		}
		for _, s := range slices.Sorted(maps.Keys(b.facts)) {
			l := b.facts[s]
			if member(home, s) && l.Standing == directory.InForce && l.State == directory.Deactivated && (t.Server == 0 || s == home.Primary) {
				t.Server = s
			}
		}
		b.home = be.Group
		f.Standing = directory.InForce
		for s, other := range b.facts {
			switch {
			case s == be.ID || !member(home, s):
			case other.State == directory.Deactivated && other.Standing == directory.InForce:
				delete(b.facts, s)
			case other.Standing == directory.InForce:
				other.Standing = directory.LeftBehind
				o.touch(other)
			}
		}
		o.tombs[name] = t
	case !vacant && !heardLive && o.confirmed(fact): // 5
		b.home, takes = be.Group, true
		f.Standing = directory.InForce
	case named(b, be.ID, f.MailboxID): // 6
		f.Standing = directory.Stray
		e, special = machine.Overtaken, true
	case f.Standing != directory.InForce: // 7
		e, special = machine.Overtaken, true
	case isNew && f.State == directory.Deactivated && !vacant: // 8
		f.Standing = directory.LeftBehind
		e, special = machine.Overtaken, true
	case vacant && (len(strangers) == 0 || (o.enter[be.ID][name] || o.joining[be.ID][name] || o.left[be.ID][name] || !now) && len(strangers) == 1 && strangers[0].Server == be.ID): // 9
		b.home, takes = be.Group, true
	default: // 10
		e, special = machine.Forked, true
		delete(b.stray, be.ID)
	}

	if claim != nil && claim.Server == be.ID {
		delete(o.claims, name)
	}
	o.settleHome(b)
	if len(o.live(b)) > 0 && (vacant || b.home != homeWas) {
		o.revive(b, name)
	}
	switch {
	case isNew:
		f.Last, f.Changed = o.rev, o.now
		if !special {
			e = machine.Added
		}
	default:
		restated := f
		restated.Incarnation, restated.Was = old.Incarnation, old.Was
		if restated != *old || now && o.deciding(be) {
			o.touch(&f)
		}
		if !special && (restated != *old || takes) {
			e = machine.Changed
		}
	}
	return effect(e)
}

// deciding reports whether a decision about be's group is being carried out.
func (o *Oracle) deciding(be *directory.Backend) bool {
	return o.version >= 2 && slices.ContainsFunc(o.groupOf(be.ID).Members, func(s directory.ServerID) bool {
		_, is := o.decide[s]
		return is
	})
}

// touch marks a fact as changed by this command.
func (o *Oracle) touch(f *directory.Fact) { f.Last, f.Changed = o.rev, o.now }

// revive clears the way for a name that comes alive, or to another home: it has
// no tombstone but of a move, and nobody outside its home has a claim to it.
func (o *Oracle) revive(b *box, name directory.MailboxName) {
	if t := o.tombs[name]; t != nil && t.How != directory.GoneMoved {
		delete(o.tombs, name)
	}
	if c := o.claims[name]; c != nil && o.groupOf(c.Server) != o.homeOf(b) {
		delete(o.claims, name)
	}
}

func named(b *box, server directory.ServerID, id string) bool {
	v, ok := b.stray[server]
	return ok && v == id
}

// The guard.

func minute(t directory.Time) uint64 { return uint64(t) / 60_000 }

// beyond reports whether one more withdrawal or return of server is too many.
func (o *Oracle) beyond(server directory.ServerID, returned bool) bool {
	window := uint64(o.set.GuardWindow+59_999) / 60_000
	var withdrawn, n uint64
	for _, ev := range o.guards[server] {
		if ev.minute+window < minute(o.now) {
			continue
		}
		if !ev.returned {
			withdrawn++
		}
		if ev.returned == returned {
			n++
		}
	}
	limit := max(uint64(o.set.GuardCount), uint64(o.set.GuardPercent)*(o.stated(server)+withdrawn)/100)
	return n >= limit
}

// Retract.

func (o *Oracle) retract(op machine.Retract) machine.Result {
	if err := validNames(op.Mailbox, op.Server); err != nil {
		return refused(err)
	}
	o.heard(op.Server)
	b, be, f := o.fact(op.Mailbox, op.Server)
	if f == nil {
		return effect(machine.NotHeld)
	}
	if op.Since != 0 && f.Last > op.Since {
		return effect(machine.NotSince)
	}
	if op.Tentative {
		switch {
		case f.State == directory.HeldWithdrawal:
			return effect(machine.GuardHeld)
		case f.State != directory.Active:
			return effect(machine.Unchanged)
		}
		f.State = directory.Withdrawing
		if o.version >= 2 {
			o.look(announcement{op.Mailbox, be.ID}, o.now+o.set.ReserveGrace)
		}
		o.touch(f)
		return effect(machine.Changed)
	}
	if f.State == directory.HeldWithdrawal {
		return effect(machine.GuardHeld)
	}
	guarded := !op.Mailbox.IsDeleted() && f.State != directory.HeldReturn && f.Standing == directory.InForce &&
		!(be.State == directory.BackendDraining && be.DrainApproved) && (o.confirmed(f) || member(o.homeOf(b), be.ID))
	if guarded {
		if o.beyond(be.ID, false) {
			f.Was, f.State = f.State, directory.HeldWithdrawal
			o.touch(f)
			return effect(machine.GuardHeld)
		}
		o.guards[be.ID] = append(o.guards[be.ID], guardEvent{minute(o.now), false})
	}
	o.take(b, op.Mailbox, f, op.Epoch, o.rev, directory.GoneRetracted, "")
	return effect(machine.Removed)
}

// take takes a fact away, with all that follows from it.
func (o *Oracle) take(b *box, name directory.MailboxName, f *directory.Fact, epoch uint64, upTo directory.Revision, how directory.Gone, newName directory.MailboxName) {
	home := o.homeOf(b)
	was := len(o.live(b)) > 0
	delete(b.facts, f.Server)
	delete(b.stray, f.Server)
	if home != nil && home.Primary == f.Server && f.Standing == directory.InForce && f.State != directory.HeldReturn && (epoch == 0 || epoch == home.Epoch) {
		for s, other := range b.facts {
			if member(home, s) && other.Standing == directory.InForce && other.State != directory.HeldReturn && other.Last <= upTo {
				other.Standing = directory.StaleCopy
				o.touch(other)
			}
			if !member(home, s) && o.version >= 2 && o.left[s] != nil {
				o.left[s][name] = false // nobody inherits
			}
		}
	}
	if was && len(o.live(b)) == 0 {
		o.tombs[name] = &directory.Tombstone{
			Name: name, How: how, Server: f.Server, NewName: newName, Revision: o.rev, Time: o.now,
		}
	}
	o.settleHome(b)
	if len(b.facts) == 0 {
		delete(o.boxes, name)
	}
}

// Reserve and Release.

func (o *Oracle) reserve(op machine.Reserve) machine.Result {
	if err := validNames(op.Mailbox, op.Server); err != nil {
		return refused(err)
	}
	if err := validStatement(directory.Statement{Partition: op.Partition}); err != nil {
		return refused(err)
	}
	b, be, f := o.fact(op.Mailbox, op.Server)
	if f != nil && f.State == directory.Active && f.Standing == directory.InForce {
		o.heard(op.Server)
		return effect(machine.AlreadyYours)
	}
	if live := o.live(b); len(live) > 0 && be != nil && o.homeOf(b) == o.groupOf(be.ID) {
		o.heard(op.Server)
		return effect(machine.CopyAllowed)
	}
	if holder := o.holder(b, be); holder != nil {
		return machine.Result{Refused: directory.ErrExists, Holder: o.backends[holder.Server].Name, Age: o.now - holder.Changed}
	}
	claim := o.claims[op.Mailbox]
	own := claim != nil && be != nil && claim.Server == be.ID
	if claim != nil && !own {
		if be != nil && o.groupOf(claim.Server) == o.groupOf(be.ID) {
			o.heard(op.Server)
			return effect(machine.CopyAllowed)
		}
		return machine.Result{Refused: directory.ErrReserved, Holder: o.backends[claim.Server].Name, Age: o.now - claim.Made}
	}
	if !own {
		if o.noGrowth() {
			return refused(directory.ErrReadOnly)
		}
		if err := o.mayCreate(op.Mailbox, be); err != nil {
			return refused(err)
		}
	}
	if be == nil {
		be = o.addBackend(op.Server, true)
	}
	o.heard(op.Server)
	r := machine.Result{Effect: machine.Added, Deadline: o.set.ReserveMax}
	made, partition := o.now, op.Partition
	if own {
		r.Effect, made, partition = machine.Changed, claim.Made, cmp.Or(partition, claim.Partition)
	}
	o.claims[op.Mailbox] = &directory.Reservation{
		Name: op.Mailbox, Server: be.ID, Partition: partition, Made: made,
		Grace: min(cmp.Or(op.Grace, o.set.ReserveGrace), o.set.ReserveMax), Deadline: o.now + o.set.ReserveMax, Revision: o.rev,
	}
	return r
}

// holder is whose fact is in the way of a claim: the home's primary's, another
// live one, a stranger's, one of another server that the guard holds.
func (o *Oracle) holder(b *box, asker *directory.Backend) *directory.Fact {
	if b == nil {
		return nil
	}
	live := o.live(b)
	for _, f := range live {
		if f.Server == o.homeOf(b).Primary {
			return f
		}
	}
	if len(live) > 0 {
		return live[0]
	}
	all := slices.Sorted(maps.Keys(b.facts))
	for _, s := range all {
		if f := b.facts[s]; o.counts(f) {
			return f
		}
	}
	for _, s := range all {
		f := b.facts[s]
		if f.State == directory.HeldReturn && f.Standing == directory.InForce && o.countsBackend(o.backends[s]) && (asker == nil || asker.ID != s) {
			return f
		}
	}
	return nil
}

// mayCreate says whether a server may make a mailbox of a name that is free.
func (o *Oracle) mayCreate(name directory.MailboxName, be *directory.Backend) error {
	switch {
	case be == nil && !o.set.AdmissionOpen || be != nil && !be.Admitted:
		return directory.ErrNotAdmitted
	case be == nil:
	case be.State == directory.BackendDown || be.State == directory.BackendLost || be.State == directory.BackendRetired:
		return directory.ErrNotPlaceable
	case o.groupOf(be.ID).Primary != be.ID:
		return directory.ErrNotPrimary
	}
	for n, ok := name.Parent(); ok; n, ok = n.Parent() {
		if b := o.boxes[n]; len(o.live(b)) > 0 {
			if be != nil && o.homeOf(b) == o.groupOf(be.ID) {
				return nil
			}
			break
		}
	}
	if name.IsInbox() && be != nil && (be.State == directory.BackendDraining || be.State == directory.BackendFull || be.Weight == 0) {
		return directory.ErrNotPlaceable
	}
	if (len(o.missing()) > 0 || !o.anyAdmitted()) && !name.IsDeleted() {
		return directory.ErrIncomplete
	}
	return nil
}

func (o *Oracle) missing() (names []directory.BackendName) {
	for _, b := range o.backends {
		if o.countsBackend(b) && (b.ConfirmedIn != o.life || b.Confirmed == directory.ByNobody) {
			names = append(names, b.Name)
		}
	}
	slices.Sort(names)
	return names
}

func (o *Oracle) anyAdmitted() bool {
	for _, b := range o.backends {
		if o.countsBackend(b) {
			return true
		}
	}
	return false
}

func (o *Oracle) release(op machine.Release) machine.Result {
	if err := validNames(op.Mailbox, op.Server); err != nil {
		return refused(err)
	}
	o.heard(op.Server)
	be, c := o.backend(op.Server), o.claims[op.Mailbox]
	if be == nil || c == nil || c.Server != be.ID {
		return effect(machine.NotHeld)
	}
	delete(o.claims, op.Mailbox)
	return effect(machine.Removed)
}

// Deactivate.

func (o *Oracle) deactivate(op machine.Deactivate) machine.Result {
	if err := validNames(op.Mailbox, op.Server); err != nil {
		return refused(err)
	}
	_, _, f := o.fact(op.Mailbox, op.Server)
	if f == nil {
		return refused(directory.ErrNotHolder)
	}
	o.heard(op.Server)
	switch {
	case f.State.IsHeld():
		return effect(machine.GuardHeld)
	case f.State == directory.Deactivated:
		return effect(machine.Unchanged)
	}
	f.State = directory.Deactivated
	o.touch(f)
	return effect(machine.Changed)
}

// Rename.

func (o *Oracle) rename(op machine.Rename) machine.Result {
	if err := validNames(op.From, op.Server); err != nil {
		return refused(err)
	}
	if err := validNames(op.To, op.Server); err != nil {
		return refused(err)
	}
	be := o.backend(op.Server)
	if be == nil {
		return refused(directory.ErrNotFound)
	}
	if op.From == op.To || op.Recursive && (op.To.IsBelow(op.From) || op.From.IsBelow(op.To)) {
		return refused(directory.ErrInvalid)
	}
	type pair struct{ from, to directory.MailboxName }
	var moves []pair
	for name, b := range o.boxes {
		if b.facts[be.ID] != nil && (name == op.From || op.Recursive && name.IsBelow(op.From)) {
			moves = append(moves, pair{name, op.To + name[len(op.From):]})
		}
	}
	if len(moves) == 0 {
		return refused(directory.ErrNotHolder)
	}
	if len(moves) > directory.MaxRename {
		return refused(directory.ErrTooLarge)
	}
	slices.SortFunc(moves, func(a, b pair) int { return directory.CompareNames(a.from, b.from) })
	group := o.groupOf(be.ID)
	for _, m := range moves {
		if _, err := directory.ParseName(string(m.to)); err != nil {
			return refused(err)
		}
		if f := o.boxes[m.from].facts[be.ID]; f.State.IsHeld() {
			return refused(directory.ErrBusy)
		}
		if b := o.boxes[m.to]; b != nil {
			for _, s := range slices.Sorted(maps.Keys(b.facts)) {
				f := b.facts[s]
				ours := o.homeOf(b) == group && member(group, s)
				if s == be.ID && f.State == directory.HeldReturn {
					return refused(directory.ErrBusy)
				}
				if s == be.ID && f.Standing == directory.InForce || o.counts(f) && !ours {
					return machine.Result{Refused: directory.ErrExists, Holder: o.backends[s].Name, Age: o.now - f.Changed}
				}
			}
		}
		if c := o.claims[m.to]; c != nil && o.groupOf(c.Server) != group {
			return machine.Result{Refused: directory.ErrReserved, Holder: o.backends[c.Server].Name, Age: o.now - c.Made}
		}
	}
	o.heard(op.Server)
	from := o.boxes[op.From]
	decides := from != nil && o.homeOf(from) != nil && o.homeOf(from).Primary == be.ID
	for _, m := range moves {
		b := o.boxes[m.from]
		f := *b.facts[be.ID]
		o.take(b, m.from, b.facts[be.ID], 0, o.rev, directory.GoneRenamed, m.to)
		t := o.boxes[m.to]
		if t == nil {
			t = &box{stray: map[directory.ServerID]string{}, facts: map[directory.ServerID]*directory.Fact{}}
			o.boxes[m.to] = t
		}
		delete(t.facts, be.ID)
		if f.State == directory.Withdrawing {
			f.State = directory.Active
		}
		o.weigh(t, be, m.to, directory.Statement{
			Partition: f.Partition, ACL: new(f.ACL), MailboxID: new(f.MailboxID), UIDValidity: new(f.UIDValidity),
			Type: new(f.Type), SpecialUse: new(f.SpecialUse),
		}, f.State, false)
		t.facts[be.ID].First = f.First
	}
	if !decides {
		return machine.Result{Effect: machine.Changed, Count: uint32(len(moves))}
	}
	o.moveSubscriptions(op)
	return machine.Result{Effect: machine.Changed, Count: uint32(len(moves))}
}

func (o *Oracle) moveSubscriptions(op machine.Rename) {
	from, ok1 := op.From.Owner()
	to, ok2 := op.To.Owner()
	if !op.From.IsInbox() || !op.To.IsInbox() || !ok1 || !ok2 {
		return
	}
	moved := map[subID]bool{}
	for id := range o.subs {
		if id.user != from {
			continue
		}
		delete(o.subs, id)
		name := id.name
		if name == op.From || name.IsBelow(op.From) {
			name = op.To + name[len(op.From):]
		}
		moved[subID{to, name}] = true
	}
	maps.Copy(o.subs, moved)
}

// Groups.

func (o *Oracle) setPrimary(op machine.SetPrimary) machine.Result {
	if _, err := directory.ParseGroup(string(op.Group)); err != nil {
		return refused(err)
	}
	if _, err := directory.ParseBackend(string(op.To)); err != nil {
		return refused(err)
	}
	g := o.group(op.Group)
	if g == nil {
		return refused(directory.ErrNotFound)
	}
	to := o.backend(op.To)
	if to == nil {
		return refused(directory.ErrNotFound)
	}
	if op.Epoch != g.Epoch {
		return machine.Result{Refused: directory.ErrStaleEpoch, Epoch: g.Epoch}
	}
	if !member(g, to.ID) {
		return machine.Result{Refused: directory.ErrNotMember, Epoch: g.Epoch}
	}
	if to.ID == g.Primary {
		return machine.Result{Effect: machine.Unchanged, Epoch: g.Epoch}
	}
	if to.State == directory.BackendDown || !o.countsBackend(to) {
		return machine.Result{Refused: directory.ErrNotMember, Epoch: g.Epoch}
	}
	if !op.AcceptMissing && o.missingSays(!maps.Equal(o.counted(g.Primary), o.counted(to.ID))) {
		return machine.Result{Refused: directory.ErrMissingAtTarget, Epoch: g.Epoch}
	}
	g.Primary = to.ID
	g.Epoch++
	return machine.Result{Effect: machine.Changed, Epoch: g.Epoch}
}

// missingSays is whether something is missing at a member: what was counted, or the
// machine's word where that is taken.
func (o *Oracle) missingSays(counted bool) bool {
	if o.followed != nil {
		return errors.Is(o.followed.Refused, directory.ErrMissingAtTarget)
	}
	return counted
}

func (o *Oracle) setGroup(op machine.SetGroup) machine.Result {
	if _, err := directory.ParseGroup(string(op.Group)); err != nil {
		return refused(err)
	}
	if len(op.Members) == 0 || op.Mode > directory.ModeAutomatic {
		return refused(directory.ErrInvalid)
	}
	var members []directory.ServerID
	for _, name := range op.Members {
		b := o.backend(name)
		switch {
		case b == nil:
			return refused(directory.ErrNotFound)
		case !b.Admitted || b.State == directory.BackendRetired:
			return refused(directory.ErrNotAdmitted)
		case slices.Contains(members, b.ID):
			return refused(directory.ErrInvalid)
		}
		members = append(members, b.ID)
	}
	g := o.group(op.Group)
	primary := members[0]
	if g == nil && o.backend(directory.BackendName(op.Group)) != nil {
		return refused(directory.ErrExists)
	}
	if g != nil {
		if g.Own && (len(members) != 1 || members[0] != g.Primary) {
			return refused(directory.ErrExists)
		}
		primary = g.Primary
		if !slices.Contains(members, primary) {
			return refused(directory.ErrBusy)
		}
	}
	for _, s := range members {
		if g != nil && member(g, s) {
			continue
		}
		was := o.groupOf(s)
		if was.Primary == s && len(was.Members) > 1 {
			return refused(directory.ErrBusy)
		}
		b := o.backends[s]
		if b.State.Gone() || b.State == directory.BackendDown && s == primary {
			return refused(directory.ErrNotMember)
		}
		if s != primary && !op.AcceptMissing && o.missingSays(len(o.counted(s)) > 0) {
			return refused(directory.ErrMissingAtTarget)
		}
	}
	e := machine.Changed
	if g == nil {
		e = machine.Added
		g = &directory.Group{ID: o.nextGroup, Name: op.Group, Primary: primary, Epoch: 1, Mode: directory.ModeManual}
		o.nextGroup++
		o.groups[g.ID] = g
	} else if slices.Equal(g.Members, members) && (op.Mode == 0 || op.Mode == g.Mode) {
		return machine.Result{Effect: machine.Unchanged, Epoch: g.Epoch}
	}
	leavers := slices.DeleteFunc(slices.Clone(g.Members), func(s directory.ServerID) bool { return slices.Contains(members, s) })
	had := map[directory.ServerID]map[directory.MailboxName]bool{}
	for s := range o.backends {
		had[s] = map[directory.MailboxName]bool{}
		for name, b := range o.boxes {
			had[s][name] = slices.ContainsFunc(o.inHome(b), func(f *directory.Fact) bool { return f.Server == s })
			// Who comes and goes before anybody has looked was never inside.
			if was, ok := o.left[s][name]; ok && o.regroup[s] {
				had[s][name] = was
			}
		}
	}
	joined := false
	for _, s := range members {
		was := o.groupOf(s)
		if was == g {
			continue
		}
		joined = true
		was.Members = slices.DeleteFunc(slices.Clone(was.Members), func(m directory.ServerID) bool { return m == s })
		if len(was.Members) == 0 {
			was.MergedInto = g.ID
			o.moveHold(directory.HoldGroup, string(was.Name), string(g.Name))
		}
		o.backends[s].Group = g.ID
		o.left[s] = had[s]
	}
	if joined {
		for _, s := range members {
			o.regroup[s] = true
		}
	}
	g.Members = members
	g.Own = g.Own && len(members) == 1
	if op.Mode != 0 {
		g.Mode = op.Mode
	}
	for _, s := range leavers {
		o.ownGroup(o.backends[s])
		o.regroup[s], o.left[s] = true, had[s]
	}
	return machine.Result{Effect: e, Epoch: g.Epoch}
}

// Backends.

func (o *Oracle) setBackend(op machine.SetBackend) machine.Result {
	if _, err := directory.ParseBackend(string(op.Server)); err != nil {
		return refused(err)
	}
	b := o.backend(op.Server)
	if b == nil && !op.Create {
		return refused(directory.ErrNotFound)
	}
	if b == nil && o.noGrowth() {
		return refused(directory.ErrReadOnly)
	}
	if op.State != nil && (*op.State < directory.BackendActive || *op.State > directory.BackendRetired) && (*op.State != directory.BackendFull || o.version < 2) {
		return refused(directory.ErrInvalid)
	}
	if op.Addresses != nil {
		for _, a := range *op.Addresses {
			if _, err := netip.ParseAddr(a.IP); err != nil || a.Port == 0 {
				return refused(directory.ErrInvalid)
			}
		}
	}
	e := machine.Unchanged
	if b == nil {
		b = o.addBackend(op.Server, true)
		e = machine.Added
	}
	if op.State != nil && *op.State == directory.BackendRetired && b.State != directory.BackendRetired {
		for _, bx := range o.boxes {
			if bx.facts[b.ID] != nil {
				return refused(directory.ErrBusy)
			}
		}
		if len(o.groupOf(b.ID).Members) > 1 {
			return refused(directory.ErrBusy)
		}
	}
	if b.State == directory.BackendRetired && op.State != nil && *op.State != directory.BackendRetired {
		return refused(directory.ErrInvalid)
	}
	before := *b
	if op.Addresses != nil {
		b.Addresses = slices.SortedFunc(slices.Values(*op.Addresses), func(a, c directory.Address) int {
			return cmp.Compare(a.Service, c.Service)
		})
	}
	if op.Weight != nil {
		b.Weight = *op.Weight
	}
	if op.State != nil && *op.State != b.State {
		if b.State.Gone() != op.State.Gone() {
			o.regroup[b.ID] = true
		}
		b.State, b.Since = *op.State, o.now
	}
	drain := directory.BackendDraining
	if op.State != nil && *op.State != before.State && (before.State == drain || *op.State == drain) {
		b.DrainApproved = false
	}
	if op.DrainApproved != nil {
		b.DrainApproved = *op.DrainApproved
	}
	if e == machine.Unchanged && (before.Weight != b.Weight || before.State != b.State ||
		before.DrainApproved != b.DrainApproved || !slices.Equal(before.Addresses, b.Addresses)) {
		e = machine.Changed
	}
	return effect(e)
}

func (o *Oracle) admit(op machine.Admit) machine.Result {
	if _, err := directory.ParseBackend(string(op.Server)); err != nil {
		return refused(err)
	}
	b := o.backend(op.Server)
	switch {
	case b == nil:
		return refused(directory.ErrNotFound)
	case b.Admitted:
		return effect(machine.Unchanged)
	case b.State == directory.BackendRetired:
		return refused(directory.ErrInvalid)
	}
	o.admitNow(b)
	return effect(machine.Changed)
}

// admitNow lets b's facts count; what they do to homes is left to a sweep.
func (o *Oracle) admitNow(b *directory.Backend) {
	b.Admitted = true
	o.enter[b.ID] = map[directory.MailboxName]bool{}
	for name, bx := range o.boxes {
		if bx.facts[b.ID] != nil {
			o.enter[b.ID][name] = true
		}
	}
}

func (o *Oracle) confirm(op machine.Confirm) machine.Result {
	if _, err := directory.ParseBackend(string(op.Server)); err != nil {
		return refused(err)
	}
	if op.How < directory.ByResync || op.How > directory.ByOperator {
		return refused(directory.ErrInvalid)
	}
	if op.Incarnation != 0 && op.Incarnation != o.life {
		return refused(directory.ErrInvalid)
	}
	b := o.backend(op.Server)
	switch {
	case b == nil && op.How != directory.ByImport:
		return refused(directory.ErrNotFound)
	case b == nil && o.noGrowth():
		return refused(directory.ErrReadOnly)
	case b == nil:
		b = o.addBackend(op.Server, true)
	case b.State == directory.BackendRetired:
		return refused(directory.ErrInvalid)
	}
	switch {
	case op.How == directory.ByResync:
		o.heard(op.Server)
	case op.How == directory.ByImport && !b.Admitted:
		o.admitNow(b)
	}
	if o.began != 0 && (b.ConfirmedIn != o.life || b.Confirmed == directory.ByNobody) {
		o.joining[b.ID] = map[directory.MailboxName]bool{}
		for name, bx := range o.boxes {
			if f := bx.facts[b.ID]; f != nil && f.Incarnation != o.life {
				o.joining[b.ID][name] = true
			}
		}
	}
	b.Confirmed, b.ConfirmedIn, b.ConfirmedRevision, b.ConfirmedTime = op.How, o.life, o.rev, o.now
	return effect(machine.Changed)
}

func (o *Oracle) renameBackend(op machine.RenameBackend) machine.Result {
	if _, err := directory.ParseBackend(string(op.From)); err != nil {
		return refused(err)
	}
	if _, err := directory.ParseBackend(string(op.To)); err != nil {
		return refused(err)
	}
	b := o.backend(op.From)
	switch {
	case b == nil:
		return refused(directory.ErrNotFound)
	case op.From == op.To:
		return effect(machine.Unchanged)
	case o.backend(op.To) != nil:
		return refused(directory.ErrExists)
	}
	g := o.groupOf(b.ID)
	if o.group(directory.GroupName(op.To)) != nil {
		return refused(directory.ErrExists)
	}
	if b.State == directory.BackendRetired {
		return refused(directory.ErrInvalid)
	}
	b.Name = op.To
	o.moveHold(directory.HoldBackend, string(op.From), string(op.To))
	if g.Own {
		o.moveHold(directory.HoldGroup, string(g.Name), string(op.To))
		g.Name = directory.GroupName(op.To)
	}
	return effect(machine.Changed)
}

// moveHold lets a hold follow what it is on; of two the longer stays.
func (o *Oracle) moveHold(kind directory.HoldKind, from, to string) {
	h := o.holds[holdID{kind, from}]
	if h == nil || from == to {
		return
	}
	delete(o.holds, holdID{kind, from})
	if there := o.holds[holdID{kind, to}]; there == nil || there.Until < h.Until {
		h.Key = to
		o.holds[holdID{kind, to}] = h
	}
}

// Subscriptions.

func (o *Oracle) subscribe(op machine.Subscribe) machine.Result {
	if err := validSub(op.User, op.Mailbox); err != nil {
		return refused(err)
	}
	id := subID{op.User, op.Mailbox}
	if o.subs[id] {
		return effect(machine.Unchanged)
	}
	if o.noGrowth() {
		return refused(directory.ErrReadOnly)
	}
	o.subs[id] = true
	return effect(machine.Added)
}

func (o *Oracle) unsubscribe(op machine.Unsubscribe) machine.Result {
	if err := validSub(op.User, op.Mailbox); err != nil {
		return refused(err)
	}
	id := subID{op.User, op.Mailbox}
	if !o.subs[id] {
		return effect(machine.Unchanged)
	}
	delete(o.subs, id)
	return effect(machine.Removed)
}

func validSub(user directory.UserID, name directory.MailboxName) error {
	if _, err := directory.ParseUser(string(user)); err != nil {
		return err
	}
	_, err := directory.ParseName(string(name))
	return err
}

// Settle.

func (o *Oracle) settle(op machine.Settle) machine.Result {
	if err := validNames(op.Mailbox, op.Keep); err != nil {
		return refused(err)
	}
	b, be, f := o.fact(op.Mailbox, op.Keep)
	if be == nil || b == nil || len(o.strangers(b)) == 0 {
		return refused(directory.ErrNotFound)
	}
	if f == nil || !o.counts(f) {
		return refused(directory.ErrNotHolder)
	}
	g := o.groupOf(be.ID)
	homeWas, vacant := b.home, len(o.live(b)) == 0
	if b.home = g.ID; vacant || b.home != homeWas {
		o.revive(b, op.Mailbox)
	}
	for s, other := range b.facts {
		if !member(g, s) && o.backends[s].Admitted {
			b.stray[s] = other.MailboxID
			delete(b.facts, s)
		}
	}
	for _, s := range g.Members {
		delete(b.stray, s)
	}
	return effect(machine.Changed)
}

// Holds.

func (o *Oracle) validHold(kind directory.HoldKind, key string, placing bool) error {
	var err error
	switch kind {
	case directory.HoldUser:
		_, err = directory.ParseUser(key)
	case directory.HoldMailbox:
		_, err = directory.ParseName(key)
	case directory.HoldBackend:
		if _, err = directory.ParseBackend(key); err == nil && placing && o.backend(directory.BackendName(key)) == nil {
			err = directory.ErrNotFound
		}
	case directory.HoldGroup:
		if _, err = directory.ParseGroup(key); err == nil && placing && o.group(directory.GroupName(key)) == nil {
			err = directory.ErrNotFound
		}
	default:
		err = directory.ErrInvalid
	}
	return err
}

func (o *Oracle) hold(op machine.Hold) machine.Result {
	if err := o.validHold(op.Kind, op.Key, true); err != nil {
		return refused(err)
	}
	if op.For == 0 {
		return refused(directory.ErrInvalid)
	}
	if len(op.Why) > directory.MaxText {
		return refused(directory.ErrTooLarge)
	}
	id := holdID{op.Kind, op.Key}
	e := machine.Added
	if o.holds[id] != nil {
		e = machine.Changed
	}
	o.holds[id] = &directory.Hold{Kind: op.Kind, Key: op.Key, Until: o.now + op.For, Why: op.Why, Placed: o.now}
	return machine.Result{Effect: e, Deadline: op.For}
}

func (o *Oracle) releaseHold(op machine.ReleaseHold) machine.Result {
	if err := o.validHold(op.Kind, op.Key, false); err != nil {
		return refused(err)
	}
	id := holdID{op.Kind, op.Key}
	if o.holds[id] == nil {
		return effect(machine.Unchanged)
	}
	delete(o.holds, id)
	return effect(machine.Removed)
}

// Alarms.

func (o *Oracle) setAlarm(op machine.SetAlarm) machine.Result {
	switch {
	case op.Kind < 1 || op.Kind > 3, op.Node == "", op.On && op.Voters == 0:
		return refused(directory.ErrInvalid)
	case len(op.Why) > directory.MaxText:
		return refused(directory.ErrTooLarge)
	}
	id := alarmID{op.Kind, op.Node}
	was, there := o.alarms[id]
	switch {
	case !op.On && !there, op.On && there && was == op:
		return effect(machine.Unchanged)
	case !op.On:
		delete(o.alarms, id)
		delete(o.voters, id)
		return effect(machine.Removed)
	case !there && len(o.alarms) == directory.MaxAlarms:
		return refused(directory.ErrTooLarge)
	}
	o.alarms[id], o.voters[id] = op, o.rev
	if there {
		return effect(machine.Changed)
	}
	return effect(machine.Added)
}

// noGrowth: the cluster is read-only, or most voters have no space.
func (o *Oracle) noGrowth() bool {
	full, voters, said := 0, uint32(0), directory.Revision(0)
	for id, a := range o.alarms {
		if at := o.voters[id]; at > said {
			voters, said = a.Voters, at
		}
		if id.kind == directory.AlarmNoSpace && a.Voter {
			full++
		}
	}
	return o.set.ReadOnly || full > int(voters)/2 && full > 0
}

// Decisions about what is held, and ticks.

func (o *Oracle) decideHeld(op machine.DecideHeld) machine.Result {
	if _, err := directory.ParseBackend(string(op.Server)); err != nil {
		return refused(err)
	}
	b := o.backend(op.Server)
	if b == nil {
		return refused(directory.ErrNotFound)
	}
	any := false
	for _, bx := range o.boxes {
		any = any || bx.facts[b.ID] != nil && bx.facts[b.ID].State.IsHeld()
	}
	if !any {
		return effect(machine.Unchanged)
	}
	o.decide[b.ID], o.decided[b.ID] = op.Approve, o.rev
	return effect(machine.Changed)
}

func (o *Oracle) names() []directory.MailboxName {
	return slices.SortedFunc(maps.Keys(o.boxes), directory.CompareNames)
}

func (o *Oracle) tick() machine.Result {
	r := effect(machine.Unchanged)
	for id, h := range o.holds {
		if h.Until <= o.now {
			delete(o.holds, id)
			r.Effect = machine.Changed
		}
	}
	for name, c := range o.claims {
		if c.Deadline <= o.now {
			delete(o.claims, name)
			r.Effect = machine.Changed
		}
	}
	for name, t := range o.tombs {
		if end := (t.Time + o.set.TombstoneKeep + 3_599_999) / 3_600_000 * 3_600_000; end <= o.now {
			delete(o.tombs, name)
			r.Effect = machine.Changed
		}
	}
	for a, ends := range o.lapses {
		for end := range ends {
			if end > o.now {
				continue
			}
			delete(ends, end)
			b := o.boxes[a.name]
			if b == nil || b.facts[a.server] == nil || b.facts[a.server].State != directory.Withdrawing {
				continue
			}
			f := b.facts[a.server]
			if end := f.Changed + o.set.ReserveGrace; end > o.now {
				o.look(a, end) // announced again since, or the grace has grown
				continue
			}
			f.State = directory.Active
			o.touch(f)
			r.Effect = machine.Changed
		}
	}
	if o.forgetAt <= o.now {
		maps.DeleteFunc(o.requests, func(_ string, a answered) bool { return a.at+o.set.RequestKeep <= o.now })
		o.forgetAt = o.now + o.set.RequestKeep/2
	}
	o.sweepOne()
	return r
}

// look notes when to look whether an announced withdrawal ends.
func (o *Oracle) look(a announcement, at directory.Time) {
	if o.lapses[a] == nil {
		o.lapses[a] = map[directory.Time]bool{}
	}
	o.lapses[a][at] = true
}

// written has a look taken at a mailbox if an operation wrote it.
func (o *Oracle) written(name directory.MailboxName, r machine.Result) {
	if r.Refused == nil && r.Effect != machine.NotHeld && r.Effect != machine.NotSince {
		o.takeAlong(name)
	}
}

// takeAlong looks at a mailbox that is written: what only a server holds that has just
// left the home's group goes with it. Nobody has just left from then on.
func (o *Oracle) takeAlong(name directory.MailboxName) {
	b := o.boxes[name]
	if b == nil {
		return
	}
	live, strangers, home := o.live(b), o.strangers(b), o.homeOf(b)
	for _, s := range slices.Sorted(maps.Keys(o.left)) {
		if o.left[s][name] && home != nil && !member(home, s) && len(live) == 0 && len(strangers) == 1 && strangers[0].Server == s {
			b.home = o.backends[s].Group
		}
		delete(o.left[s], name) // whether it is inside is as it is now, and no more as it was
	}
}

// sweepOne carries one sweep to its end: memberships, then admissions, then
// decisions, by server.
func (o *Oracle) sweepOne() {
	if s, ok := least(o.regroup); ok {
		delete(o.regroup, s)
		for _, name := range o.names() {
			b := o.boxes[name]
			if f := b.facts[s]; f != nil {
				o.takeAlong(name)
				o.settleHome(b)
				if len(o.live(b)) > 0 {
					o.revive(b, name)
				}
			}
		}
		delete(o.left, s)
		return
	}
	if s, ok := least(o.enter); ok {
		for _, name := range o.names() {
			b := o.boxes[name]
			if f := b.facts[s]; f != nil && f.State != directory.HeldReturn {
				o.reenter(b, name, f, f.State)
				o.takeAlong(name)
				if len(o.live(b)) > 0 {
					o.revive(b, name)
				}
			}
		}
		delete(o.enter, s)
		return
	}
	if s, ok := least(o.decide); ok {
		for _, name := range o.names() {
			if f := o.boxes[name].facts[s]; f != nil && f.State.IsHeld() && f.Last <= o.decided[s] {
				o.decideFact(name, f, o.decide[s])
				o.takeAlong(name)
			}
		}
		delete(o.decide, s)
		return
	}
	if s, ok := least(o.joining); ok {
		for _, name := range o.names() {
			b := o.boxes[name]
			if f := b.facts[s]; f != nil {
				if f.State != directory.HeldReturn && f.Incarnation != o.life && o.confirmed(f) {
					o.reenter(b, name, f, f.State)
				}
				o.takeAlong(name)
				if len(o.live(b)) > 0 {
					o.revive(b, name)
				}
			}
		}
		delete(o.joining, s)
		return
	}
}

// least returns the least key of m.
func least[V any](m map[directory.ServerID]V) (directory.ServerID, bool) {
	keys := slices.Sorted(maps.Keys(m))
	if len(keys) == 0 {
		return 0, false
	}
	return keys[0], true
}

func (o *Oracle) settleHome(b *box) {
	if home := o.homeOf(b); home != nil {
		b.home = home.ID
	}
}

// reenter weighs a fact that is there already, as if it were asserted now in
// the given state; what it states, and when it did, stays.
func (o *Oracle) reenter(b *box, name directory.MailboxName, f *directory.Fact, state directory.FactState) {
	before := *f
	o.weigh(b, o.backends[f.Server], name, directory.Statement{}, state, false)
	f = b.facts[f.Server]
	standing := f.Standing
	*f = before
	f.Standing = standing
	if state != f.State {
		f.State, f.Was = state, 0
	}
}

func (o *Oracle) decideFact(name directory.MailboxName, f *directory.Fact, approve bool) {
	b := o.boxes[name]
	switch {
	case f.State == directory.HeldWithdrawal && approve:
		upTo := o.rev
		if o.version >= 2 {
			upTo = f.Last // the others have stated the rest since
		}
		o.take(b, name, f, 0, upTo, directory.GoneRetracted, "")
	case f.State == directory.HeldReturn && !approve:
		delete(b.facts, f.Server)
		if len(b.facts) == 0 {
			delete(o.boxes, name)
		}
	case f.State == directory.HeldWithdrawal:
		if f.Was != directory.Deactivated {
			f.Was = directory.Active
		}
		f.State, f.Was = f.Was, 0
		o.touch(f)
	default:
		o.reenter(b, name, f, f.Was)
		o.touch(b.facts[f.Server])
	}
}

func (o *Oracle) setSettings(op machine.SetSettings) machine.Result {
	s := op.Settings
	if s.GuardPercent > 100 || s.GuardWindow == 0 || s.ReserveMax == 0 {
		return refused(directory.ErrInvalid)
	}
	if s == o.set {
		return effect(machine.Unchanged)
	}
	o.set = s
	return effect(machine.Changed)
}

// restore begins the cluster's next life.
func (o *Oracle) restore(op machine.Restore) machine.Result {
	switch {
	case op.ClusterID == o.clusterID && op.Incarnation == o.life:
		return effect(machine.Unchanged)
	case op.Incarnation <= o.life:
		return refused(directory.ErrInvalid)
	}
	lives := uint64(op.Incarnation - o.life)
	o.clusterID, o.life = op.ClusterID, op.Incarnation
	o.rev += directory.Revision(lives << 32)
	o.began = o.rev
	for _, g := range o.groups {
		if g.MergedInto == 0 {
			g.Epoch += lives << 32
		}
	}
	clear(o.claims)
	clear(o.holds)
	clear(o.guards)
	clear(o.alarms)
	clear(o.voters)
	o.set.AutomationPaused = true
	return effect(machine.Changed)
}

// finalize raises the cluster version.
func (o *Oracle) finalize(op machine.Finalize) machine.Result {
	switch {
	case op.To == o.version:
		return effect(machine.Unchanged)
	case op.To < o.version || op.To <= op.From:
		return refused(directory.ErrInvalid)
	case op.From != o.version:
		return refused(directory.ErrVersion)
	}
	o.version = op.To
	return effect(machine.Changed)
}
