package machine

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/rookery-mail/rookery/directory"
)

// maxNode is how long a node's name may be.
const maxNode = 255

// setAlarm raises an alarm, or lowers it.
func (a *apply) setAlarm(op SetAlarm) (Result, error) {
	switch {
	case op.Kind < directory.AlarmNoSpace || op.Kind > directory.AlarmCorrupt:
		return Result{}, refuse(directory.ErrInvalid, "an alarm is nospace, diverged or corrupt")
	case op.Node == "" || len(op.Node) > maxNode || !utf8.ValidString(op.Node):
		return Result{}, refuse(directory.ErrInvalid, "an alarm is of a node, by its name of at most %d octets", maxNode)
	case op.On && op.Voters == 0:
		return Result{}, refuse(directory.ErrInvalid, "an alarm says how many voters there are")
	case len(op.Why) > directory.MaxText:
		return Result{}, refuse(directory.ErrTooLarge, "a reason of %d octets, at most %d", len(op.Why), directory.MaxText)
	}
	key := alarmKey(op.Kind, op.Node)
	i, found := slices.BinarySearchFunc(a.alarms, key, compareAlarm)
	if !op.On {
		if !found {
			return Result{Effect: Unchanged}, nil
		}
		a.changeTopology()
		a.topology.alarms = slices.Delete(a.topology.alarms, i, i+1)
		a.tx.Delete(bucketAlarm, key)
		a.alarmChanged()
		return Result{Effect: Removed}, nil
	}
	row := directory.Alarm{
		Kind: op.Kind, Node: own(op.Node), Why: own(op.Why), By: own(a.by), Voter: op.Voter, Voters: op.Voters,
		Since: a.clk.Time, Wall: a.clk.Wall, Revision: a.clk.Revision,
	}
	effect := Added
	switch {
	case !found && len(a.alarms) >= directory.MaxAlarms:
		return Result{}, refuse(directory.ErrTooLarge, "there are %d alarms already", len(a.alarms))
	case found:
		was := a.alarms[i]
		if was.Why == row.Why && was.Voter == row.Voter && was.Voters == row.Voters {
			return Result{Effect: Unchanged}, nil
		}
		row.Since, row.Wall = was.Since, was.Wall
		effect = Changed
	}
	a.changeTopology()
	if found {
		a.topology.alarms[i] = &row
	} else {
		a.topology.alarms = slices.Insert(a.topology.alarms, i, &row)
	}
	a.put1(bucketAlarm, key, encodeAlarm(&row))
	a.alarmChanged()
	return Result{Effect: effect}, nil
}

// alarmChanged works out what follows, for the rest of this command too.
func (a *apply) alarmChanged() {
	a.topology.full = fullDisks(a.topology.alarms)
	a.log(directory.Change{Kind: directory.ChangeSettings})
}

func compareAlarm(x *directory.Alarm, key []byte) int {
	return slices.Compare(alarmKey(x.Kind, x.Node), key)
}

// fullDisks says why growth is refused for want of space, or "": the disks of a
// majority of the voters are nearly full. How many voters there are is what was
// said last.
func fullDisks(alarms []*directory.Alarm) string {
	var nodes []string
	var voters uint32
	var said directory.Revision
	for _, x := range alarms {
		if x.Revision > said {
			said, voters = x.Revision, x.Voters
		}
		if x.Kind == directory.AlarmNoSpace && x.Voter {
			nodes = append(nodes, x.Node)
		}
	}
	if uint64(len(nodes))*2 <= uint64(voters) || len(nodes) == 0 {
		return ""
	}
	return fmt.Sprintf("the disks of %s are nearly full, a majority of the %d voters: the cluster takes no growth until one has room; free space there, or remove the file ballast in its data directory (`rookeryctl alarm list`)",
		strings.Join(nodes, ", "), voters)
}

// growth returns why the cluster takes no growth now, or nil.
func (t *topology) growth() error {
	switch {
	case t.settings.ReadOnly:
		return refuse(directory.ErrReadOnly, "the cluster takes no growth; an operator ends this with `rookeryctl settings set read_only=false`")
	case t.full != "":
		return refuse(directory.ErrReadOnly, "%s", t.full)
	}
	return nil
}
