package machine

import (
	"fmt"
	"slices"

	"github.com/rookery-mail/rookery/directory"
)

// MaxHold is the longest an operator can say "not now" in one go.
const MaxHold = directory.Time(30 * 24 * 3600 * 1000)

func validHold(kind directory.HoldKind, key string) error {
	var err error
	switch kind {
	case directory.HoldUser:
		_, err = directory.ParseUser(key)
	case directory.HoldMailbox:
		_, err = directory.ParseName(key)
	case directory.HoldBackend:
		_, err = directory.ParseBackend(key)
	case directory.HoldGroup:
		_, err = directory.ParseGroup(key)
	default:
		err = refuse(directory.ErrInvalid, "a hold is on a user, mailbox, backend or group")
	}
	return err
}

// placeHold puts a hold, or replaces the one there.
func (a *apply) placeHold(op Hold) (Result, error) {
	if err := validHold(op.Kind, op.Key); err != nil {
		return Result{}, err
	}
	switch {
	case op.For == 0 || op.For > MaxHold:
		return Result{}, refuse(directory.ErrInvalid, "a hold lasts from 1 ms to %s", MaxHold)
	case len(op.Why) > directory.MaxText:
		return Result{}, refuse(directory.ErrTooLarge, "a reason of %d octets, at most %d", len(op.Why), directory.MaxText)
	case op.Kind == directory.HoldBackend && a.backendBy[directory.BackendName(op.Key)] == nil,
		op.Kind == directory.HoldGroup && a.groupBy[directory.GroupName(op.Key)] == nil:
		return Result{}, refuse(directory.ErrNotFound, "no %s %s", op.Kind, op.Key)
	}
	key := holdKey(op.Kind, op.Key)
	effect := Added
	if was := a.holdBy[string(key)]; was != nil {
		effect = Changed
		a.unschedule(was.Until, dueHold, key)
	}
	h := directory.Hold{Kind: op.Kind, Key: own(op.Key), Until: a.clk.Time + op.For, Why: own(op.Why), By: own(a.by), Placed: a.clk.Time}
	a.setHold(key, &h)
	a.put1(bucketHold, key, encodeHold(&h))
	a.schedule(h.Until, dueHold, key)
	return Result{Effect: effect, Deadline: op.For}, nil
}

func (a *apply) releaseHold(op ReleaseHold) (Result, error) {
	if err := validHold(op.Kind, op.Key); err != nil {
		return Result{}, err
	}
	key := holdKey(op.Kind, op.Key)
	h := a.holdBy[string(key)]
	if h == nil {
		return Result{Effect: Unchanged}, nil
	}
	a.unschedule(h.Until, dueHold, key)
	a.dropHold(key)
	return Result{Effect: Removed}, nil
}

// moveHold lets a hold follow what it is on to another name. Of two holds the
// longer stays.
func (a *apply) moveHold(kind directory.HoldKind, from, to string) {
	key := holdKey(kind, from)
	h := a.holdBy[string(key)]
	if h == nil || from == to {
		return
	}
	a.unschedule(h.Until, dueHold, key)
	a.dropHold(key)
	key = holdKey(kind, to)
	if there := a.holdBy[string(key)]; there != nil {
		if there.Until >= h.Until {
			return
		}
		a.unschedule(there.Until, dueHold, key)
	}
	moved := *h
	moved.Key = own(to)
	a.setHold(key, &moved)
	a.put1(bucketHold, key, encodeHold(&moved))
	a.schedule(moved.Until, dueHold, key)
}

func (a *apply) dropHold(key []byte) {
	a.setHold(key, nil)
	a.tx.Delete(bucketHold, key)
}

// setHold changes the topology's list of holds; nil removes.
func (a *apply) setHold(key []byte, h *directory.Hold) {
	a.changeTopology()
	t := a.topology
	was := t.holdBy[string(key)]
	t.holds = slices.DeleteFunc(t.holds, func(x *directory.Hold) bool { return x == was })
	delete(t.holdBy, string(key))
	told := was
	if h != nil {
		t.holdBy[string(key)] = h
		i, _ := slices.BinarySearchFunc(t.holds, string(key), func(x *directory.Hold, k string) int {
			return slices.Compare(holdKey(x.Kind, x.Key), []byte(k))
		})
		t.holds = slices.Insert(t.holds, i, h)
		told = h
	}
	a.log(directory.Change{Kind: directory.ChangeHold, Key: fmt.Sprintf("%s:%s", told.Kind, told.Key)})
}

// setSettings replaces the cluster's settings.
func (a *apply) setSettings(op SetSettings) (Result, error) {
	s := op.Settings
	s.DefaultDomain = own(s.DefaultDomain)
	if s.DefaultDomain != "" {
		if _, err := directory.ParseBackend(s.DefaultDomain); err != nil {
			return Result{}, refuse(directory.ErrInvalid, "default domain %.80q is no domain", s.DefaultDomain)
		}
	}
	if s.GuardCount == 0 || s.GuardPercent > 100 || s.GuardWindow < minute || s.GuardWindow > 60*minute {
		return Result{}, refuse(directory.ErrInvalid, "withdrawal guard: a count from 1, a percentage to 100, a window from 1m to 1h")
	}
	const longest = directory.Time(10 * 365 * 24 * 3600 * 1000)
	if max(s.ReserveMax, s.DeliveryGrace, s.TombstoneKeep, s.RequestKeep) > longest {
		return Result{}, refuse(directory.ErrInvalid, "reserve_max, delivery_grace, tombstone_keep and request_keep are at most ten years")
	}
	if s.DefaultDomain != a.settings.DefaultDomain && s.DefaultDomain != "" {
		prefix := append([]byte(s.DefaultDomain), directory.KeyDomainSep)
		if k, _ := a.tx.Iterate(bucketMailbox).Seek(prefix); k != nil && hasPrefix(k, prefix) {
			return Result{}, refuse(directory.ErrBusy, "there are mailboxes named %s!...; they would have no name as the default domain's", s.DefaultDomain)
		}
	}
	if s.ReserveGrace == 0 || s.ReserveMax < s.ReserveGrace || s.TombstoneKeep == 0 || s.LogKeep == 0 || s.RequestKeep < minute {
		return Result{}, refuse(directory.ErrInvalid, "reserve_grace, reserve_max (not below it), tombstone_keep, log_keep and request_keep (from 1m) cannot be less")
	}
	if s == a.settings {
		return Result{Effect: Unchanged}, nil
	}
	a.changeTopology()
	a.topology.settings = s
	a.put1(bucketMeta, keySettings, encodeSettings(s))
	a.log(directory.Change{Kind: directory.ChangeSettings})
	return Result{Effect: Changed}, nil
}
