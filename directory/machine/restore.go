package machine

import (
	"errors"
	"math"
	"slices"

	"github.com/rookery-mail/rookery/directory"
)

// lifeStep is how far revisions and epochs rise with each life: farther than one
// life gets, so that none is told twice.
const lifeStep = 1 << 32

// restore begins the next life. The rule is this package's doc.go, "Restore". What
// it costs goes with backends, groups and holds, which are few; what goes with
// mailboxes is left to sweeps, and does not count meanwhile.
func (a *apply) restore(op Restore) (Result, error) {
	if op.ClusterID == "" || op.Incarnation == 0 {
		return Result{}, errors.New("machine: Restore without cluster id or incarnation")
	}
	was := a.cluster
	switch {
	case op.ClusterID == was.ID && op.Incarnation == was.Incarnation:
		return Result{Effect: Unchanged}, nil
	case op.Incarnation <= was.Incarnation:
		return Result{}, refuse(directory.ErrInvalid, "the state is of cluster %s, incarnation %d: incarnation %d of %s cannot follow it", was.ID, was.Incarnation, op.Incarnation, op.ClusterID)
	}
	// One step for each life, also for those that are passed over: another restore
	// of the same snapshot may have lived them.
	rise := uint64(op.Incarnation-was.Incarnation) * lifeStep
	if uint64(a.clk.Revision) > math.MaxUint64-rise {
		return Result{}, refuse(directory.ErrInvalid, "incarnation %d is too far from %d", op.Incarnation, was.Incarnation)
	}
	a.clk.Revision += directory.Revision(rise)
	c := was
	c.ID, c.Incarnation, c.Began = own(op.ClusterID), op.Incarnation, a.clk.Revision
	a.putCluster(c)
	a.raiseEpochs(rise)
	a.dropHolds()
	a.dropGuards()
	a.dropAlarms()
	a.topology.settings.AutomationPaused = true
	a.put1(bucketMeta, keySettings, encodeSettings(a.settings))
	a.clk.LogFrom = a.clk.Revision
	a.log(directory.Change{Kind: directory.ChangeSettings})
	for _, kind := range []byte{sweepForks, sweepClaims, sweepLog} {
		if err := a.sweepLater(sweep{Kind: kind}); err != nil {
			return Result{}, err
		}
	}
	return Result{Effect: Changed}, nil
}

func (a *apply) raiseEpochs(rise uint64) {
	t := a.topology
	for i, g := range t.groups {
		if g.MergedInto != 0 {
			continue
		}
		is := *g
		is.Epoch += rise
		t.groups[i], t.groupByID[is.ID], t.groupBy[is.Name] = &is, &is, &is
		a.put1(bucketGroup, idKey(uint32(is.ID)), encodeGroup(&is))
	}
}

// dropHolds ends what operators said of the life before.
func (a *apply) dropHolds() {
	t := a.topology
	for _, h := range t.holds {
		key := holdKey(h.Kind, h.Key)
		a.unschedule(h.Until, dueHold, key)
		a.tx.Delete(bucketHold, key)
	}
	t.holds = nil
	clear(t.holdBy)
}

// dropAlarms forgets what was wrong with nodes of the life before: they are not this
// one's, and full disks of theirs must not keep it from growing.
func (a *apply) dropAlarms() {
	t := a.topology
	for _, x := range t.alarms {
		a.tx.Delete(bucketAlarm, alarmKey(x.Kind, x.Node))
	}
	t.alarms, t.full = nil, ""
}

// dropGuards forgets what was counted: it was withdrawn from another directory.
func (a *apply) dropGuards() {
	for _, b := range a.topology.backends {
		if key := serverKey(b.ID); a.tx.Get(bucketGuard, key) != nil {
			a.tx.Delete(bucketGuard, key)
		}
	}
}

// undoneByRestore reports whether what op did ends with the life that it was done
// in: then a repeat of it must be done, and not answered from memory.
func undoneByRestore(op Op) bool {
	switch op := op.(type) {
	case Reserve, Hold:
		return true
	case Batch:
		return slices.ContainsFunc(op.Ops, undoneByRestore)
	}
	return false
}

// logStep is how many changes of an earlier life a Tick deletes.
const logStep = 5000

// sweepOldLog does the next step of dropping the changes of an earlier life.
func (a *apply) sweepOldLog(key []byte) (int, error) {
	var keys [][]byte
	it := a.tx.Iterate(bucketLog)
	k, _ := it.Seek(nil)
	for ; k != nil && len(keys) < logStep; k, _ = it.Next() {
		rev, _, err := splitLogKey(k)
		if err != nil {
			return 0, err
		}
		if rev >= a.cluster.Began {
			k = nil
			break
		}
		keys = append(keys, slices.Clone(k))
	}
	for _, k := range keys {
		a.tx.Delete(bucketLog, k)
	}
	if k == nil {
		a.tx.Delete(bucketSweep, key)
	}
	return max(len(keys), 1), nil
}
