package machine

import (
	"encoding/binary"
	"fmt"

	"github.com/rookery-mail/rookery/directory"
)

// retract: facts out. The rule is this package's doc.go, "Retract".
func (a *apply) retract(op Retract) (Result, error) {
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
	e, err := a.edit(op.Mailbox)
	if err != nil {
		return Result{}, err
	}
	f := e.mb.Fact(b.ID)
	switch {
	case f == nil:
		return Result{Effect: NotHeld}, nil
	case op.Since != 0 && f.Last > op.Since:
		return Result{Effect: NotSince}, nil
	case f.State == directory.HeldWithdrawal:
		return Result{Effect: GuardHeld}, nil
	case op.Tentative && f.State == directory.Active:
		f.State = directory.Withdrawing
		a.touch(f)
		if a.cluster.Version >= versionLapse {
			a.schedule(a.clk.Time+a.settings.ReserveGrace, dueWithdrawing, serverNameKey(b.ID, op.Mailbox))
		}
		return Result{Effect: Changed}, a.save(e, directory.ChangeMailbox, b.ID)
	case op.Tentative:
		return Result{Effect: Unchanged}, nil
	}
	held, err := a.guardWithdrawal(b, e.mb, f)
	if err != nil {
		return Result{}, err
	}
	if held {
		f.Was, f.State = f.State, directory.HeldWithdrawal
		a.touch(f)
		return Result{Effect: GuardHeld}, a.save(e, directory.ChangeMailbox, b.ID)
	}
	return Result{Effect: Removed}, a.takeBack(e, b, op.Epoch, a.clk.Revision, directory.GoneRetracted, "")
}

// takeBack removes b's fact from e and saves. If b is the primary of the home,
// and epoch is zero or the group's, it decides for the group: the members'
// copies are stale, but for what was stated later than upTo. Who has just left the group, so that no sweep has come by yet,
// holds a stranger's copy and does not inherit the mailbox.
func (a *apply) takeBack(e *edit, b *directory.Backend, epoch uint64, upTo directory.Revision, how directory.Gone, newName directory.MailboxName) error {
	mb := e.mb
	home := a.Group(directory.HomeOf(mb, a))
	f := mb.Fact(b.ID)
	decides := home != nil && home.Primary == b.ID && f.Standing == directory.InForce &&
		f.State != directory.HeldReturn && (epoch == 0 || epoch == home.Epoch)
	wasLive := directory.HasLive(mb, a)
	e.remove(b.ID)
	if i := strayOf(mb, b.ID); i >= 0 {
		mb.Stray = append(mb.Stray[:i:i], mb.Stray[i+1:]...)
	}
	if decides {
		for i := range mb.Facts {
			f := &mb.Facts[i]
			switch {
			case !home.Has(f.Server):
				f.Counted = f.Counted && a.cluster.Version < versionLeft
			case f.Standing == directory.InForce && f.State != directory.HeldReturn && f.Last <= upTo:
				f.Standing = directory.StaleCopy
				a.touch(f)
			}
		}
	}
	if wasLive && !directory.HasLive(mb, a) {
		a.bury(directory.Tombstone{Name: mb.Name, How: how, Server: b.ID, NewName: newName})
	}
	return a.save(e, directory.ChangeMailbox, b.ID)
}

// lapseWithdrawing ends an announcement that nothing followed: who made it, or who
// made it for its server, is gone. The fact is active again, for a mailbox that may
// be there is not to be absent. It was made since versionLapse is in force; one from
// before has no end. Of a later announcement, or after the grace has
// grown, its time has not come.
func (a *apply) lapseWithdrawing(key []byte) error {
	if len(key) < 4 {
		return fmt.Errorf("%w: deadline of a withdrawal, key %q", ErrCorrupt, key)
	}
	server := directory.ServerID(binary.BigEndian.Uint32(key))
	name, err := storedName(key[4:])
	if err != nil {
		return err
	}
	e, err := a.edit(name)
	if err != nil {
		return err
	}
	f := e.mb.Fact(server)
	if f == nil || f.State != directory.Withdrawing {
		return nil
	}
	if end := f.Changed + a.settings.ReserveGrace; end > a.clk.Time {
		a.schedule(end, dueWithdrawing, key)
		return nil
	}
	f.State = directory.Active
	a.touch(f)
	return a.save(e, directory.ChangeMailbox, server)
}

// deactivate gives a mailbox up in a move.
func (a *apply) deactivate(op Deactivate) (Result, error) {
	if err := validNames(op.Mailbox, op.Server); err != nil {
		return Result{}, err
	}
	e, err := a.edit(op.Mailbox)
	if err != nil {
		return Result{}, err
	}
	var f *directory.Fact
	b := a.backendBy[op.Server]
	if b != nil {
		f = e.mb.Fact(b.ID)
	}
	if f == nil {
		return Result{}, refuse(directory.ErrNotHolder, "%s holds no copy of %s to give up", op.Server, op.Mailbox)
	}
	if err := a.heard(b.ID); err != nil {
		return Result{}, err
	}
	switch f.State {
	case directory.Deactivated:
		return Result{Effect: Unchanged}, nil
	case directory.HeldReturn, directory.HeldWithdrawal:
		return Result{Effect: GuardHeld}, nil
	}
	f.State = directory.Deactivated
	a.touch(f)
	return Result{Effect: Changed}, a.save(e, directory.ChangeMailbox, b.ID)
}
