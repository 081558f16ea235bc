package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/directory/machine"
	"github.com/rookery-mail/rookery/raftstore"
)

func TestAlarmChanges(t *testing.T) {
	noSpace := func(node string, voters uint32) directory.Alarm {
		return directory.Alarm{Kind: directory.AlarmNoSpace, Node: node, Voter: true, Voters: voters, Why: "as it was"}
	}
	diverged := func(node string) directory.Alarm {
		return directory.Alarm{Kind: directory.AlarmDiverged, Node: node, Voter: true, Voters: 3}
	}
	full := raftstore.Health{NoSpace: true, FreeBytes: 5 << 20, TotalBytes: 1 << 40, LowBytes: 9 << 20}
	roomy := raftstore.Health{FreeBytes: 1 << 39, TotalBytes: 1 << 40}
	with := func(h raftstore.Health, v raftstore.Verdict, differs ...raftstore.Difference) raftstore.Health {
		h.Verdict, h.Differs = v, differs
		return h
	}
	n2 := raftstore.Difference{Node: 2, Name: "n2", Index: 70}
	for _, test := range []struct {
		name     string
		leading  bool
		voters   []uint64
		health   raftstore.Health
		standing []directory.Alarm
		want     []string
	}{
		{"all is well", true, []uint64{1, 2, 3}, roomy, nil, nil},
		{"its disk fills", false, []uint64{1, 2, 3}, full, nil, []string{"+nospace n1 true/3: 5 MiB were left, 9 should be"}},
		{"it is known", false, []uint64{1, 2, 3}, full, []directory.Alarm{noSpace("n1", 3)}, nil},
		{"there are more voters now", false, []uint64{1, 2, 3, 4, 5}, full, []directory.Alarm{noSpace("n1", 3)}, []string{"+nospace n1 true/5: as it was"}},
		{"it is a learner now", false, []uint64{2, 3}, full, []directory.Alarm{noSpace("n1", 3)}, []string{"+nospace n1 false/2: as it was"}},
		{"there is room again", false, []uint64{1, 2, 3}, roomy, []directory.Alarm{noSpace("n1", 3), noSpace("n2", 3)}, []string{"-nospace n1"}},
		{"its disk cannot be asked", false, []uint64{1, 2, 3}, raftstore.Health{}, []directory.Alarm{noSpace("n1", 3)}, nil},
		{"before it knows who votes", false, nil, full, nil, nil},
		{"another differs", true, []uint64{1, 2, 3}, with(roomy, raftstore.Same, n2), nil, []string{"+diverged n2 true/3: at index 70 its state was another than that of n1"}},
		{"another differs, which is known", true, []uint64{1, 2, 3}, with(roomy, raftstore.Same, n2), []directory.Alarm{diverged("n2")}, nil},
		{"another differs, for the leader to say", false, []uint64{1, 2, 3}, with(roomy, raftstore.Same, n2), nil, nil},
		{"it is the others' again", false, []uint64{1, 2, 3}, with(roomy, raftstore.Same), []directory.Alarm{diverged("n1"), diverged("n2")}, []string{"-diverged n1"}},
		{"nobody knows", false, []uint64{1, 2, 3}, with(roomy, raftstore.Unknown), []directory.Alarm{diverged("n1")}, nil},
		{"one was removed", true, []uint64{1, 2, 3}, roomy, []directory.Alarm{noSpace("n3", 3), noSpace("n9", 3)}, []string{"-nospace n9"}},
		{"one was removed, for the leader to say", false, []uint64{1, 2, 3}, roomy, []directory.Alarm{noSpace("n9", 3)}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			st := raftstore.Status{Name: "n1", Identity: raftstore.Identity{Node: 1}, Leading: test.leading, Voters: test.voters}
			for id := uint64(1); id <= 3; id++ {
				st.Members = append(st.Members, raftstore.Member{ID: id, Name: fmt.Sprint("n", id)})
			}
			a := &alarmKeeper{
				name: "n1", log: slog.New(slog.DiscardHandler),
				status: func() raftstore.Status { return st }, health: func() raftstore.Health { return test.health },
				raised: func() ([]directory.Alarm, error) { return test.standing, nil },
			}
			var got []string
			a.propose = func(_ context.Context, command []byte) ([]byte, error) {
				c, err := machine.DecodeCommand(command)
				op, ok := c.Op.(machine.SetAlarm)
				if err != nil || !ok || c.By != "node:n1" {
					t.Errorf("proposed %+v, %v", c, err)
				}
				if op.On {
					got = append(got, fmt.Sprintf("+%s %s %t/%d: %s", op.Kind, op.Node, op.Voter, op.Voters, op.Why))
				} else {
					got = append(got, fmt.Sprintf("-%s %s", op.Kind, op.Node))
				}
				return nil, nil
			}
			if err := a.step(t.Context()); err != nil {
				t.Error(err)
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func TestQuarantineAlarm(t *testing.T) {
	st := raftstore.Status{Name: "n1", Identity: raftstore.Identity{Node: 1}, Voters: []uint64{1, 2, 3}}
	if got := QuarantineAlarm(st, raftstore.ErrCorrupt); got != nil {
		t.Errorf("for a node that only stopped: %q", got)
	}
	for _, test := range []struct {
		err  error
		want directory.AlarmKind
	}{
		{fmt.Errorf("%w: %s", raftstore.ErrDiverged, strings.Repeat("x", 5000)), directory.AlarmDiverged},
		{errors.Join(raftstore.ErrDiverged, raftstore.ErrCorrupt), directory.AlarmCorrupt},
	} {
		c, err := machine.DecodeCommand(QuarantineAlarm(st, test.err))
		op, _ := c.Op.(machine.SetAlarm)
		if err != nil || op.Kind != test.want || !op.On || op.Node != "n1" || op.Voters != 3 || !op.Voter || len(op.Why) > directory.MaxText || op.Why == "" {
			t.Errorf("%.40v: got %+v, %v", test.err, op, err)
		}
	}
}

// A node whose disk fills says so by itself, and again when there is room.
func TestKeepAlarms(t *testing.T) {
	n := newTestNode(t)
	full := true
	a := newAlarmKeeper(n.saver.store, n.machine, n.saver.store.Propose, slog.New(slog.DiscardHandler))
	a.health = func() raftstore.Health { return raftstore.Health{NoSpace: full, TotalBytes: 1 << 40} }
	alarms := func() int {
		t.Helper()
		if err := a.step(t.Context()); err != nil {
			t.Fatal(err)
		}
		standing, err := a.raised()
		if err != nil {
			t.Fatal(err)
		}
		return len(standing)
	}
	if got := alarms(); got != 1 {
		t.Errorf("%d alarms of a node without space", got)
	}
	n.mustRefuseGrowth(t, true)
	if got := alarms(); got != 1 {
		t.Errorf("%d alarms a second later", got)
	}
	full = false
	if got := alarms(); got != 0 {
		t.Errorf("%d alarms of a node with room", got)
	}
	n.mustRefuseGrowth(t, false)

	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	KeepAlarms(ctx, n.saver.store, n.machine, n.saver.store.Propose, slog.New(slog.DiscardHandler)) // returns with ctx
}

func (n *testNode) mustRefuseGrowth(t *testing.T, want bool) {
	t.Helper()
	v, err := n.store.Local()
	if err != nil {
		t.Fatal(err)
	}
	defer v.Release()
	if st, err := n.Server.machine.Status(v); err != nil || (st.Growth != nil) != want {
		t.Errorf("growth is refused: %v, %v; want %v", st.Growth, err, want)
	}
}
