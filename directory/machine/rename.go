package machine

import (
	"slices"

	"github.com/rookery-mail/rookery/directory"
)

// rename renames one server's facts in one step or not at all.
func (a *apply) rename(op Rename) (Result, error) {
	if err := validNames(op.From, op.Server); err != nil {
		return Result{}, err
	}
	if _, err := directory.ParseName(string(op.To)); err != nil {
		return Result{}, err
	}
	b, err := a.backend(op.Server)
	if err != nil {
		return Result{}, err
	}
	if op.From == op.To || op.Recursive && (op.To.IsBelow(op.From) || op.From.IsBelow(op.To)) {
		return Result{}, refuse(directory.ErrInvalid, "%s cannot become %s", op.From, op.To)
	}
	names, err := a.held(b.ID, op.From, op.Recursive)
	if err != nil {
		return Result{}, err
	}
	if a.renamed += len(names); a.renamed > directory.MaxRename {
		return Result{}, refuse(directory.ErrTooLarge, "more than %d mailboxes renamed by one request; send it by itself", directory.MaxRename)
	}
	if len(names) == 0 {
		return Result{}, refuse(directory.ErrNotHolder, "%s holds no copy of %s", b.Name, op.From)
	}
	targets := make([]directory.MailboxName, len(names))
	for i, from := range names {
		targets[i] = op.To + from[len(op.From):]
		if r, err := a.mayRename(b, from, targets[i]); err != nil {
			return r, err
		}
	}
	if err := a.heard(b.ID); err != nil {
		return Result{}, err
	}
	decides := false
	if from, err := a.mailbox(op.From); err != nil {
		return Result{}, err
	} else if from != nil {
		home := a.Group(directory.HomeOf(from, a))
		decides = home != nil && home.Primary == b.ID
	}
	for i, from := range names {
		if err := a.renameOne(b, from, targets[i]); err != nil {
			return Result{}, err
		}
	}
	if op.From.IsInbox() && op.To.IsInbox() && decides {
		if err := a.moveSubscriptions(op.From, op.To); err != nil {
			return Result{}, err
		}
	}
	return Result{Effect: Changed, Count: uint32(len(names))}, nil
}

// held lists, in order, what server holds at name, or at and below it.
func (a *apply) held(server directory.ServerID, name directory.MailboxName, below bool) ([]directory.MailboxName, error) {
	var names []directory.MailboxName
	prefix := serverKey(server)
	first := serverNameKey(server, name)
	it := a.tx.Iterate(bucketByServer)
	k, _ := it.Seek(first)
	for ; k != nil && hasPrefix(k, first); k, _ = it.Next() {
		if len(k) > len(first) && k[len(first)] < directory.KeyLevelSep {
			// A domain of the same name lies between the name and what is below it.
			if k, _ = it.Seek(append(slices.Clone(first), directory.KeyLevelSep)); k == nil || !hasPrefix(k, first) {
				break
			}
		}
		if len(k) > len(first) && k[len(first)] != directory.KeyLevelSep {
			break
		}
		n, err := storedName(k[len(prefix):])
		if err != nil {
			return nil, err
		}
		if n != name && !below {
			break
		}
		if len(names) == directory.MaxRename {
			return nil, refuse(directory.ErrTooLarge, "more than %d mailboxes at and below %s; rename the levels below it first", directory.MaxRename, name)
		}
		names = append(names, n)
	}
	return names, nil
}

// mayRename refuses a target that is not free for b.
func (a *apply) mayRename(b *directory.Backend, from, to directory.MailboxName) (Result, error) {
	if _, err := directory.ParseName(string(to)); err != nil {
		return Result{}, err
	}
	source, err := a.mailbox(from)
	if err != nil {
		return Result{}, err
	}
	if source == nil {
		return Result{}, errNoRow(from)
	}
	if f := source.Fact(b.ID); f == nil || f.State.IsHeld() {
		return Result{}, refuse(directory.ErrBusy, "%s is held by the withdrawal guard; decide that first", from)
	}
	group := a.Group(b.Group)
	target, err := a.mailbox(to)
	if err != nil {
		return Result{}, err
	}
	if target != nil {
		home := a.Group(directory.HomeOf(target, a))
		for i := range target.Facts {
			f := &target.Facts[i]
			if f.Server == b.ID && f.State == directory.HeldReturn {
				return Result{}, refuse(directory.ErrBusy, "%s is held by the withdrawal guard; decide that first", to)
			}
			if f.Server == b.ID && f.Standing == directory.InForce || a.inForce(f) && (home != group || !group.Has(f.Server)) {
				return Result{Holder: a.name(f.Server), Age: a.clk.Time - f.Changed}, refuse(directory.ErrExists, "%s is held by %s", to, a.name(f.Server))
			}
		}
	}
	res, err := a.reservation(to)
	if err != nil || res == nil {
		return Result{}, err
	}
	if h := a.Backend(res.Server); h != nil && a.Group(h.Group) != group {
		return Result{Holder: h.Name, Age: a.clk.Time - res.Made}, refuse(directory.ErrReserved, "%s was reserved by %s %s ago", to, h.Name, a.clk.Time-res.Made)
	}
	return Result{}, nil
}

// renameOne moves b's fact from one name to another.
func (a *apply) renameOne(b *directory.Backend, from, to directory.MailboxName) error {
	source, err := a.edit(from)
	if err != nil {
		return err
	}
	f := *source.mb.Fact(b.ID)
	if err := a.takeBack(source, b, 0, a.clk.Revision, directory.GoneRenamed, to); err != nil {
		return err
	}
	target, err := a.edit(to)
	if err != nil {
		return err
	}
	target.remove(b.ID)
	if f.State == directory.Withdrawing {
		f.State = directory.Active
	}
	f.Standing, f.Counted = directory.InForce, false
	f.Incarnation = a.cluster.Incarnation
	a.touch(&f)
	_, how := a.entry(target.mb, b, &f, asserted{})
	target.add(f)
	return a.enter(target, b, how)
}
