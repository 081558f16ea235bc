package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/directory/machine"
	"github.com/rookery-mail/rookery/raftstore"
)

// alarmKeeper raises and lowers what this node has to say: of itself, and, while it
// leads, of others that cannot speak for themselves.
type alarmKeeper struct {
	name    string
	status  func() raftstore.Status
	health  func() raftstore.Health
	raised  func() ([]directory.Alarm, error)                         // those that stand
	propose func(ctx context.Context, command []byte) ([]byte, error) // also where another node leads
	log     *slog.Logger
}

// alarmsEvery is how often alarms are held against how things are.
const alarmsEvery = time.Second

// KeepAlarms raises and lowers the alarms of a node, until ctx ends: of its own
// disk and state, and, while it leads, of nodes that cannot speak for
// themselves. propose must reach the leader, wherever it is.
func KeepAlarms(ctx context.Context, store *raftstore.Store, rules *machine.Machine, propose func(ctx context.Context, command []byte) ([]byte, error), log *slog.Logger) {
	newAlarmKeeper(store, rules, propose, log).run(ctx)
}

func newAlarmKeeper(store *raftstore.Store, rules *machine.Machine, propose func(context.Context, []byte) ([]byte, error), log *slog.Logger) *alarmKeeper {
	return &alarmKeeper{
		name: store.Status().Name, status: store.Status, health: store.Health, propose: propose, log: log,
		raised: func() ([]directory.Alarm, error) {
			v, err := store.Read(context.Background(), raftstore.Local)
			if err != nil {
				return nil, err
			}
			defer v.Release()
			st, err := rules.Status(v)
			if err == nil && st.ClusterID == "" {
				err = errors.New("the cluster has not begun")
			}
			return st.Alarms, err
		},
	}
}

// run keeps the alarms true until ctx ends.
func (a *alarmKeeper) run(ctx context.Context) {
	t := time.NewTicker(alarmsEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if err := a.step(ctx); err != nil && ctx.Err() == nil {
			a.log.Debug("alarms were not updated", "err", err) // again in a second
		}
	}
}

// step proposes what is to change. What cannot be proposed now is seen again.
func (a *alarmKeeper) step(ctx context.Context) error {
	standing, err := a.raised()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	for _, op := range AlarmChanges(a.name, a.status(), a.health(), standing) {
		if _, err := a.propose(ctx, machine.EncodeCommand(machine.Command{By: "node:" + a.name, Op: op})); err != nil {
			return err
		}
		a.log.Warn("alarm changed", "kind", op.Kind, "peer", op.Node, "raised", op.On, "reason", op.Why)
	}
	return nil
}

// AlarmChanges are what the alarms that stand lack, and have too many of, as the
// node of that name sees it. The node proposes them, wherever the leader is.
func AlarmChanges(name string, st raftstore.Status, h raftstore.Health, standing []directory.Alarm) []machine.SetAlarm {
	var out []machine.SetAlarm
	find := func(kind directory.AlarmKind, node string) *directory.Alarm {
		for i := range standing {
			if standing[i].Kind == kind && standing[i].Node == node {
				return &standing[i]
			}
		}
		return nil
	}
	voters := uint32(len(st.Voters))
	raise := func(kind directory.AlarmKind, node string, id uint64, why string) {
		was := find(kind, node)
		voter := slices.Contains(st.Voters, id)
		if was != nil && was.Voter == voter && was.Voters == voters {
			return
		}
		if was != nil {
			why = was.Why // it is the same trouble
		}
		out = append(out, machine.SetAlarm{Kind: kind, Node: node, On: true, Voter: voter, Voters: voters, Why: why})
	}
	lower := func(kind directory.AlarmKind, node string) {
		if find(kind, node) != nil {
			out = append(out, machine.SetAlarm{Kind: kind, Node: node})
		}
	}
	if voters == 0 {
		return nil // the membership is not known yet
	}
	if h.NoSpace {
		raise(directory.AlarmNoSpace, name, st.Identity.Node, fmt.Sprintf("%d MiB were left, %d should be", h.FreeBytes>>20, h.LowBytes>>20))
	} else if h.TotalBytes > 0 {
		lower(directory.AlarmNoSpace, name)
	}
	if h.Verdict == raftstore.Same {
		lower(directory.AlarmDiverged, name)
		lower(directory.AlarmCorrupt, name)
	}
	if !st.Leading {
		return out
	}
	for _, d := range h.Differs {
		raise(directory.AlarmDiverged, d.Name, d.Node, fmt.Sprintf("at index %d its state was another than that of %s", d.Index, name))
	}
	for _, x := range standing {
		if !slices.ContainsFunc(st.Members, func(m raftstore.Member) bool { return m.Name == x.Node }) {
			lower(x.Kind, x.Node) // nobody else will
		}
	}
	return out
}

// QuarantineAlarm is the command by which a node that had to give its state up
// tells the cluster, before it gets another. err is what the store ended with;
// nil is returned for any other end.
func QuarantineAlarm(st raftstore.Status, err error) []byte {
	if !errors.Is(err, raftstore.ErrDiverged) {
		return nil
	}
	kind := directory.AlarmDiverged
	if errors.Is(err, raftstore.ErrCorrupt) {
		kind = directory.AlarmCorrupt
	}
	why := err.Error()
	if len(why) > directory.MaxText {
		why = why[:directory.MaxText]
	}
	return machine.EncodeCommand(machine.Command{By: "node:" + st.Name, Op: machine.SetAlarm{
		Kind: kind, Node: st.Name, On: true, Voter: slices.Contains(st.Voters, st.Identity.Node), Voters: uint32(len(st.Voters)), Why: why,
	}})
}
