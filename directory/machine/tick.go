package machine

import (
	"fmt"
	"slices"

	"github.com/rookery-mail/rookery/directory"
)

// Kinds of a sweep.
const (
	sweepRegroup byte = 1 // a server's group or state changed: mend what is derived
	sweepAdmit   byte = 2 // a server was admitted: let its facts enter
	sweepDecide  byte = 3 // an operator decided about what the guard holds
	sweepConfirm byte = 4 // a server's list is known whole: let its facts of an earlier life enter
	// What a restore leaves, of no server.
	sweepForks  byte = 5 // no fact is a stranger until it is confirmed: mend the index of forks
	sweepClaims byte = 6 // drop the reservations of the earlier life
	sweepLog    byte = 7 // drop the changes of the earlier life
)

// kindName names what a sweep does, for people.
func (s sweep) kindName() string {
	switch s.Kind {
	case sweepRegroup:
		return "regroup"
	case sweepAdmit:
		return "admit"
	case sweepDecide:
		return "decide"
	case sweepConfirm:
		return "confirm"
	case sweepForks:
		return "forks"
	case sweepClaims:
		return "reservations"
	case sweepLog:
		return "log"
	}
	return ""
}

// A Tick does at most this much, so that no command is long.
const (
	tickDeadlines = 1000
	sweepStep     = 500
	requestStep   = 2000
)

// tick lapses what is due and carries the first sweep on.
func (a *apply) tick() (Result, error) {
	n, err := a.lapse()
	if err != nil {
		return Result{}, err
	}
	swept, err := a.sweepOn()
	if err != nil {
		return Result{}, err
	}
	r := Result{Effect: Unchanged, Count: uint32(n + swept)}
	if n+swept > 0 {
		r.Effect = Changed
	}
	return r, nil
}

// lapse ends what is due.
func (a *apply) lapse() (int, error) {
	var due [][]byte
	it := a.tx.Iterate(bucketDeadline)
	for k, _ := it.Seek(nil); k != nil && len(due) < tickDeadlines; k, _ = it.Next() {
		at, _, _, err := splitDeadline(k)
		if err != nil {
			return 0, err
		}
		if at > a.clk.Time {
			break
		}
		due = append(due, slices.Clone(k))
	}
	for _, k := range due {
		a.tx.Delete(bucketDeadline, k)
		_, kind, key, _ := splitDeadline(k)
		if err := a.lapseOne(kind, key); err != nil {
			return 0, err
		}
	}
	a.clk.Due = 0
	if k, _ := a.tx.Iterate(bucketDeadline).Seek(nil); k != nil {
		at, _, _, err := splitDeadline(k)
		if err != nil {
			return 0, err
		}
		a.clk.Due = max(at, 1)
	}
	return len(due), nil
}

func (a *apply) lapseOne(kind byte, key []byte) error {
	switch kind {
	case dueReservation:
		name, err := storedName(key)
		if err != nil {
			return err
		}
		res, err := a.storedReservation(name)
		if err == nil && res != nil && res.Deadline <= a.clk.Time {
			a.dropReservation(res)
		}
		return err
	case dueHold:
		if h := a.holdBy[string(key)]; h != nil && h.Until <= a.clk.Time {
			a.dropHold(key)
		}
		return nil
	case dueTombstone:
		return a.lapseTombstone(key)
	case dueRequests:
		return a.lapseRequests(key)
	case dueWithdrawing:
		return a.lapseWithdrawing(key)
	}
	return fmt.Errorf("%w: deadline of kind %d", ErrCorrupt, kind)
}

// lapseRequests forgets client ids that were silent too long, some thousands
// from after on, and schedules the rest.
func (a *apply) lapseRequests(after []byte) error {
	var old [][]byte
	var last []byte
	n := 0
	it := a.tx.Iterate(bucketRequest)
	k, v := it.Seek(after)
	for ; k != nil && n < requestStep; k, v = it.Next() {
		n++
		b, err := unseal(bucketRequest, k, v)
		if err != nil {
			return err
		}
		r, err := decodeRequest(b)
		if err != nil {
			return err
		}
		last = slices.Clone(k)
		if r.Time+a.settings.RequestKeep <= a.clk.Time {
			old = append(old, last)
		}
	}
	for _, key := range old {
		a.tx.Delete(bucketRequest, key)
	}
	if k != nil {
		a.schedule(a.clk.Time, dueRequests, append(last, 0))
	} else {
		a.schedule(a.clk.Time+a.settings.RequestKeep/2, dueRequests, nil)
	}
	return nil
}

// sweepLater leaves work over many mailboxes to the Ticks that follow. A sweep
// of the same kind and server begins again from the start.
func (a *apply) sweepLater(s sweep) error {
	key := sweepKey(s.Kind, s.Server)
	a.put1(bucketSweep, key, encodeSweep(s))
	a.clk.Sweeping = true
	return nil
}

// sweepOn does the next step of the first sweep there is.
func (a *apply) sweepOn() (int, error) {
	if !a.clk.Sweeping {
		return 0, nil
	}
	k, v := a.tx.Iterate(bucketSweep).Seek(nil)
	if k == nil {
		a.clk.Sweeping = false
		return 0, nil
	}
	key := slices.Clone(k)
	b, err := unseal(bucketSweep, k, v)
	if err != nil {
		return 0, err
	}
	s, err := decodeSweep(b)
	if err != nil {
		return 0, err
	}
	if s.Kind == sweepLog {
		return a.sweepOldLog(key)
	}
	names, more, err := a.sweepNames(s)
	if err != nil {
		return 0, err
	}
	a.sweeping = true
	defer func() { a.sweeping = false }()
	backend := a.Backend(s.Server)
	for _, name := range names {
		if err := a.sweepOne(s, backend, name); err != nil {
			return 0, err
		}
	}
	if !more {
		a.tx.Delete(bucketSweep, key)
		return max(len(names), 1), nil
	}
	s.After = names[len(names)-1].AppendKey(nil)
	a.put1(bucketSweep, key, encodeSweep(s))
	return len(names), nil
}

// sweepNames lists the next mailboxes of a sweep.
func (a *apply) sweepNames(s sweep) (names []directory.MailboxName, more bool, err error) {
	bucket, prefix := bucketByServer, serverKey(s.Server)
	switch s.Kind {
	case sweepDecide:
		bucket = bucketHeldFact
	case sweepForks:
		bucket, prefix = bucketFork, nil
	case sweepClaims:
		bucket, prefix = bucketReservation, nil
	}
	from := prefix
	if len(s.After) > 0 {
		// The least key after that name's.
		from = append(append(slices.Clone(prefix), s.After...), 0)
	}
	it := a.tx.Iterate(bucket)
	for k, _ := it.Seek(from); k != nil && hasPrefix(k, prefix); k, _ = it.Next() {
		if len(names) == sweepStep {
			return names, true, nil
		}
		name, err := storedName(k[len(prefix):])
		if err != nil {
			return nil, false, err
		}
		names = append(names, name)
	}
	return names, false, nil
}

func (a *apply) sweepOne(s sweep, b *directory.Backend, name directory.MailboxName) error {
	switch s.Kind {
	case sweepDecide:
		return a.decideOne(name, b, s.Approve, s.Until)
	case sweepClaims:
		res, err := a.storedReservation(name)
		if err == nil && res != nil && res.Revision < a.cluster.Began {
			a.dropReservation(res)
		}
		return err
	}
	e, err := a.edit(name)
	if err != nil {
		return err
	}
	if s.Kind == sweepForks {
		return a.save(e, directory.ChangeMailbox, 0)
	}
	f := e.mb.Fact(s.Server)
	if f == nil {
		return fmt.Errorf("%w: the by-server index has %s of %s, which has no such fact", ErrCorrupt, name, b.Name)
	}
	enters := s.Kind == sweepAdmit || s.Kind == sweepConfirm && f.Incarnation != a.cluster.Incarnation && directory.Confirmed(f, a)
	if enters && f.State != directory.HeldReturn {
		if _, how := a.entry(e.mb, b, f, asserted{}); how != entryOutside {
			return a.enter(e, b, how)
		}
	}
	return a.save(e, directory.ChangeMailbox, s.Server)
}

// errNoRow says that an index names a mailbox that has no row.
func errNoRow(name directory.MailboxName) error {
	return fmt.Errorf("%w: an index has %s, which has no row", ErrCorrupt, name)
}

// schedule asks for a Tick at the given time.
func (a *apply) schedule(at directory.Time, kind byte, key []byte) {
	a.mark(bucketDeadline, deadlineKey(at, kind, key))
	if a.clk.Due == 0 || at < a.clk.Due {
		a.clk.Due = max(at, 1)
	}
}

func (a *apply) unschedule(at directory.Time, kind byte, key []byte) {
	a.tx.Delete(bucketDeadline, deadlineKey(at, kind, key))
}
