package machine

import (
	"slices"

	"github.com/rookery-mail/rookery/directory"
)

// settle ends a fork: keep's group becomes home and all its facts stay; the
// records of others go, and the verdict remembers which copies they were.
func (a *apply) settle(op Settle) (Result, error) {
	if err := validNames(op.Mailbox, op.Keep); err != nil {
		return Result{}, err
	}
	keep, err := a.backend(op.Keep)
	if err != nil {
		return Result{}, err
	}
	e, err := a.edit(op.Mailbox)
	if err != nil {
		return Result{}, err
	}
	if e.was == nil || !directory.Resolve(e.mb, a).Forked {
		return Result{}, refuse(directory.ErrNotFound, "%s is not forked", op.Mailbox)
	}
	f := e.mb.Fact(keep.ID)
	if f == nil || !a.inForce(f) {
		return Result{}, refuse(directory.ErrNotHolder, "%s holds no copy of %s that counts", keep.Name, op.Mailbox)
	}
	group := a.Group(keep.Group)
	e.mb.Home = group.ID
	for _, f := range e.mb.Facts {
		b := a.Backend(f.Server)
		if group.Has(f.Server) || !b.Admitted {
			continue // what does not count stays as it is
		}
		if i := strayOf(e.mb, f.Server); i >= 0 {
			e.mb.Stray[i].MailboxID = f.MailboxID
			continue
		}
		e.mb.Stray = append(e.mb.Stray, directory.StrayCopy{Server: f.Server, MailboxID: f.MailboxID})
	}
	e.mb.Stray = slices.DeleteFunc(e.mb.Stray, func(s directory.StrayCopy) bool { return group.Has(s.Server) })
	slices.SortFunc(e.mb.Stray, func(x, y directory.StrayCopy) int { return int(int64(x.Server) - int64(y.Server)) })
	e.mb.Facts = slices.DeleteFunc(e.mb.Facts, func(f directory.Fact) bool {
		return !group.Has(f.Server) && a.Backend(f.Server).Admitted
	})
	return Result{Effect: Changed}, a.save(e, directory.ChangeMailbox, keep.ID)
}
