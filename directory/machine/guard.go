package machine

import "github.com/rookery-mail/rookery/directory"

// The withdrawal guard: accept, but do not believe. A wiped, unmounted or
// rolled-back backend says that it holds nothing, or that it holds what was
// deleted long ago; beyond a number in ten minutes its word is kept back until
// an operator decides.

const minute = directory.Time(60_000)

// guardWithdrawal counts a withdrawal of b's fact of mb and reports whether it is
// one too many. A fact of an earlier life outside the home routes nobody: what was
// moved away before a restore is taken back freely.
func (a *apply) guardWithdrawal(b *directory.Backend, mb *directory.Mailbox, f *directory.Fact) (held bool, err error) {
	home := a.Group(directory.HomeOf(mb, a))
	if !directory.Confirmed(f, a) && (home == nil || !home.Has(b.ID)) {
		return false, nil
	}
	if mb.Name.IsDeleted() || f.State == directory.HeldReturn || f.Standing != directory.InForce || b.State == directory.BackendDraining && b.DrainApproved {
		return false, nil
	}
	return a.guard(b, func(m *guardMinute) { m.Withdrawn++ }, func(m guardMinute) uint32 { return m.Withdrawn })
}

// guardReturn counts an assertion of a name that had gone since b's last
// resync, and reports whether it is one too many. Before its first resync in a
// restored cluster nothing is known of what it had: another's withdrawal may be
// the other end of a move that was forgotten.
func (a *apply) guardReturn(b *directory.Backend, name directory.MailboxName) (held bool, err error) {
	if name.IsDeleted() || a.cluster.Began != 0 && !b.ConfirmedFor(a.cluster.Incarnation) {
		return false, nil
	}
	t, err := a.tombstone(name)
	if t == nil || err != nil || t.Revision <= b.ConfirmedRevision {
		return false, err
	}
	return a.guard(b, func(m *guardMinute) { m.Returned++ }, func(m guardMinute) uint32 { return m.Returned })
}

// guard adds one to this minute and reports whether the window's sum is beyond
// the limit. What is held back is not counted, so a decision is not pushed
// away by the flood it is about.
func (a *apply) guard(b *directory.Backend, add func(*guardMinute), of func(guardMinute) uint32) (held bool, err error) {
	key := serverKey(b.ID)
	var minutes []guardMinute
	if v := a.tx.Get(bucketGuard, key); v != nil {
		m, err := unseal(bucketGuard, key, v)
		if err != nil {
			return false, err
		}
		if minutes, err = decodeGuard(m); err != nil {
			return false, err
		}
	}
	now := uint64(a.clk.Time / minute)
	window := uint64((a.settings.GuardWindow + minute - 1) / minute)
	for len(minutes) > 0 && minutes[0].Minute+window < now {
		minutes = minutes[1:]
	}
	var sum, withdrawn uint64
	for _, m := range minutes {
		sum += uint64(of(m))
		withdrawn += uint64(m.Withdrawn)
	}
	total, err := a.total(b.ID)
	if err != nil {
		return false, err
	}
	// The percentage is of what the server stated when the window began.
	limit := max(uint64(a.settings.GuardCount), (total.Count+withdrawn)*uint64(a.settings.GuardPercent)/100)
	if sum >= limit {
		return true, nil
	}
	if n := len(minutes); n == 0 || minutes[n-1].Minute != now {
		minutes = append(minutes, guardMinute{Minute: now})
	}
	add(&minutes[len(minutes)-1])
	a.put1(bucketGuard, key, encodeGuard(minutes))
	return false, nil
}

// decideHeld starts the sweep that approves or rejects.
func (a *apply) decideHeld(op DecideHeld) (Result, error) {
	b, err := a.backend(op.Server)
	if err != nil {
		return Result{}, err
	}
	prefix := serverKey(b.ID)
	if k, _ := a.tx.Iterate(bucketHeldFact).Seek(prefix); k == nil || !hasPrefix(k, prefix) {
		return Result{Effect: Unchanged}, nil
	}
	return Result{Effect: Changed}, a.sweepLater(sweep{Kind: sweepDecide, Server: b.ID, Approve: op.Approve, Until: a.clk.Revision})
}

// decideOne carries a decision out for one mailbox, unless it became held only
// after the decision.
func (a *apply) decideOne(name directory.MailboxName, b *directory.Backend, approve bool, until directory.Revision) error {
	e, err := a.edit(name)
	if err != nil {
		return err
	}
	f := e.mb.Fact(b.ID)
	if f == nil || !f.State.IsHeld() || f.Last > until {
		return nil
	}
	withdrawal := f.State == directory.HeldWithdrawal
	switch {
	case withdrawal && approve:
		upTo := a.clk.Revision
		if a.cluster.Version >= versionSince {
			upTo = f.Last // when it was withdrawn
		}
		return a.takeBack(e, b, 0, upTo, directory.GoneRetracted, "")
	case !withdrawal && !approve:
		e.remove(b.ID)
		return a.save(e, directory.ChangeMailbox, b.ID)
	}
	f.State, f.Was = f.Was, 0
	if f.State != directory.Deactivated {
		f.State = directory.Active
	}
	a.touch(f)
	if withdrawal {
		return a.save(e, directory.ChangeMailbox, b.ID)
	}
	_, how := a.entry(e.mb, b, f, asserted{})
	return a.enter(e, b, how)
}
