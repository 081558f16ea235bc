package machine

import (
	"encoding/binary"

	"github.com/rookery-mail/rookery/directory"
)

// reserve: a question with one winner. The order of the checks is the order of
// the rule in this package's doc.go, "Reserve".
func (a *apply) reserve(op Reserve) (Result, error) {
	if err := validNames(op.Mailbox, op.Server); err != nil {
		return Result{}, err
	}
	if err := validPartition(op.Partition); err != nil {
		return Result{}, err
	}
	mb, err := a.mailbox(op.Mailbox)
	if err != nil {
		return Result{}, err
	}
	res, err := a.reservation(op.Mailbox)
	if err != nil {
		return Result{}, err
	}
	b := a.backendBy[op.Server]
	asker := b
	if asker == nil {
		asker = &directory.Backend{Name: op.Server}
	}
	r, err := a.reserveTaken(op, asker, mb, res)
	if err != nil || r.Effect != 0 {
		if err == nil && b != nil {
			err = a.heard(b.ID)
		}
		return r, err
	}
	if b == nil || res == nil || res.Server != b.ID {
		if err := a.placeable(op, b); err != nil {
			return Result{}, err
		}
	}
	if b == nil {
		b = a.newBackend(op.Server, true)
	}
	if err := a.heard(b.ID); err != nil {
		return Result{}, err
	}
	if res, err = a.reservation(op.Mailbox); err != nil {
		return Result{}, err
	}
	grace := op.Grace
	if grace == 0 {
		grace = a.settings.ReserveGrace
	}
	grace = min(grace, a.settings.ReserveMax)
	made := directory.Reservation{
		Name: op.Mailbox, Server: b.ID, Partition: op.Partition, Made: a.clk.Time, Grace: grace,
		Deadline: a.clk.Time + a.settings.ReserveMax, Revision: a.clk.Revision,
	}
	effect := Added
	if res != nil {
		effect = Changed
		made.Made = res.Made
		if made.Partition == "" {
			made.Partition = res.Partition
		}
		a.dropReservation(res)
	}
	return Result{Effect: effect, Deadline: made.Deadline - a.clk.Time}, a.putReservation(&made)
}

// reserveTaken answers for a name that is held or claimed. A zero Effect and no
// error: the name is free, or the claim is b's own.
func (a *apply) reserveTaken(op Reserve, b *directory.Backend, mb *directory.Mailbox, res *directory.Reservation) (Result, error) {
	group := a.Group(b.Group)
	if mb != nil {
		if f := mb.Fact(b.ID); f != nil && f.State == directory.Active && f.Standing == directory.InForce {
			return Result{Effect: AlreadyYours}, nil
		}
		home := a.Group(directory.HomeOf(mb, a))
		for i := range mb.Facts {
			f := &mb.Facts[i]
			if !a.inForce(f) {
				continue
			}
			if group != nil && home == group && group.Has(f.Server) {
				return Result{Effect: CopyAllowed}, nil
			}
		}
		if f := a.holder(mb, home, b.ID); f != nil {
			age := a.clk.Time - f.Changed
			return Result{Holder: a.name(f.Server), Age: age}, refuse(directory.ErrExists, "%s is held by %s, %s for %s", op.Mailbox, a.name(f.Server), f.State, age)
		}
	}
	if res == nil || res.Server == b.ID {
		return Result{}, nil
	}
	holder := a.Backend(res.Server)
	if group != nil && holder != nil && a.Group(holder.Group) == group {
		return Result{Effect: CopyAllowed}, nil
	}
	age := a.clk.Time - res.Made
	return Result{Holder: a.name(res.Server), Age: age}, refuse(directory.ErrReserved, "%s was reserved by %s %s ago", op.Mailbox, a.name(res.Server), age)
}

// holder returns the fact to name as what is in the way of others: the primary's
// at home, else a live one, else any that counts, or that the guard keeps back
// while its server says it holds the mailbox. A HeldReturn of asker is not in
// its own way.
func (a *apply) holder(mb *directory.Mailbox, home *directory.Group, asker directory.ServerID) *directory.Fact {
	var best *directory.Fact
	rank := 0
	for i := range mb.Facts {
		f := &mb.Facts[i]
		r := 0
		switch b := a.Backend(f.Server); {
		case b == nil || !b.Counts() || f.Standing != directory.InForce:
		case f.State == directory.HeldReturn:
			if f.Server != asker {
				r = 1
			}
		case home == nil || !home.Has(f.Server):
			r = 2
		case f.Server != home.Primary:
			r = 3
		default:
			r = 4
		}
		if r > rank {
			best, rank = f, r
		}
	}
	return best
}

// placeable refuses a claim to a free name by a server that may not make it.
func (a *apply) placeable(op Reserve, b *directory.Backend) error {
	if err := a.growth(); err != nil {
		return err
	}
	if b == nil && len(a.backends) >= directory.MaxBackends {
		return refuse(directory.ErrTooLarge, "%d backends are known already", len(a.backends))
	}
	if b == nil && !a.settings.AdmissionOpen || b != nil && !b.Admitted {
		return refuse(directory.ErrNotAdmitted, "backend %s is not admitted; an operator does that with `rookeryctl backends admit %s`", op.Server, op.Server)
	}
	var group *directory.Group
	if b != nil {
		group = a.Group(b.Group)
		switch {
		case b.State == directory.BackendDown || b.State.Gone():
			return refuse(directory.ErrNotPlaceable, "backend %s is %s", b.Name, b.State)
		case group.Primary != b.ID:
			return refuse(directory.ErrNotPrimary, "backend %s is not the primary of its group %s: %s is", b.Name, group.Name, a.name(group.Primary))
		}
	}
	// Below what the group holds already, the name is its own affair.
	for n, ok := op.Mailbox.Parent(); ok; n, ok = n.Parent() {
		up, err := a.mailbox(n)
		if err != nil {
			return err
		}
		if up == nil || !directory.HasLive(up, a) {
			continue
		}
		if group != nil && a.Group(directory.HomeOf(up, a)) == group {
			return nil
		}
		break
	}
	if op.Mailbox.IsInbox() && b != nil && (b.State == directory.BackendDraining || b.State == directory.BackendFull || b.Weight == 0) {
		return refuse(directory.ErrNotPlaceable, "backend %s takes no new users: it is %s, weight %d", b.Name, b.State, b.Weight)
	}
	if missing, complete := a.missing(); !complete && !op.Mailbox.IsDeleted() {
		return refuse(directory.ErrIncomplete, "%s: a backend that was not heard may hold it: %s", op.Mailbox, listed(missing))
	}
	return nil
}

// release gives a reservation back.
func (a *apply) release(op Release) (Result, error) {
	if err := validNames(op.Mailbox, op.Server); err != nil {
		return Result{}, err
	}
	b := a.backendBy[op.Server]
	if b == nil {
		return Result{Effect: NotHeld}, nil
	}
	if err := a.heard(b.ID); err != nil {
		return Result{}, err
	}
	res, err := a.reservation(op.Mailbox)
	if err != nil {
		return Result{}, err
	}
	if res == nil || res.Server != b.ID {
		return Result{Effect: NotHeld}, nil
	}
	if op.Since != 0 && res.Revision > op.Since && a.cluster.Version >= versionRelease {
		return Result{Effect: NotSince}, nil
	}
	a.dropReservation(res)
	return Result{Effect: Removed}, nil
}

// putReservation writes a reservation. One of an earlier life may lie under it.
func (a *apply) putReservation(res *directory.Reservation) error {
	key := res.Name.AppendKey(nil)
	if a.cluster.Began != 0 {
		if old, err := a.storedReservation(res.Name); err != nil {
			return err
		} else if old != nil {
			a.dropReservation(old)
		}
	}
	a.put1(bucketReservation, key, encodeReservation(res))
	a.schedule(res.Deadline, dueReservation, key)
	if !res.Heard {
		a.mark(bucketUnheard, serverNameKey(res.Server, res.Name))
	}
	a.counts.Reservations++
	a.log(directory.Change{Kind: directory.ChangeReservation, Name: res.Name, Server: res.Server})
	return nil
}

func (a *apply) dropReservation(res *directory.Reservation) {
	key := res.Name.AppendKey(nil)
	a.tx.Delete(bucketReservation, key)
	a.unschedule(res.Deadline, dueReservation, key)
	if !res.Heard {
		a.tx.Delete(bucketUnheard, serverNameKey(res.Server, res.Name))
	}
	a.counts.Reservations--
	if res.Revision < a.cluster.Began {
		return // it ended with its life; nobody is told now
	}
	a.log(directory.Change{Kind: directory.ChangeReservation, Name: res.Name, Server: res.Server})
}

// heard starts the grace of the reservations whose server was silent since it
// made them: it is alive, so if it does not assert now it will not.
func (a *apply) heard(server directory.ServerID) error {
	if a.counts.Reservations == 0 {
		return nil
	}
	prefix := serverKey(server)
	it := a.tx.Iterate(bucketUnheard)
	k, _ := it.Seek(prefix)
	if k == nil || !hasPrefix(k, prefix) {
		return nil
	}
	var names [][]byte
	for ; k != nil && hasPrefix(k, prefix); k, _ = it.Next() {
		names = append(names, append([]byte(nil), k[len(prefix):]...))
	}
	for _, key := range names {
		name, err := storedName(key)
		if err != nil {
			return err
		}
		res, err := a.reservation(name)
		if err != nil {
			return err
		}
		a.tx.Delete(bucketUnheard, append(binary.BigEndian.AppendUint32(nil, uint32(server)), key...))
		if res == nil || res.Heard {
			continue
		}
		a.unschedule(res.Deadline, dueReservation, key)
		res.Heard = true
		res.Deadline = min(res.Deadline, a.clk.Time+res.Grace)
		a.put1(bucketReservation, key, encodeReservation(res))
		a.schedule(res.Deadline, dueReservation, key)
	}
	return nil
}
