package server

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/directory/machine"
	"github.com/rookery-mail/rookery/internal/kv"
	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
	"github.com/rookery-mail/rookery/raftstore"
)

func (c *clusterService) ListAlarms(ctx context.Context, req *apiv1.ListAlarmsRequest) (*apiv1.ListAlarmsResponse, error) {
	s := c.s
	r, err := s.read(ctx, req.GetConsistency())
	if err != nil {
		return nil, err
	}
	defer r.Release()
	st, err := s.machine.Status(r)
	if err != nil {
		return nil, err
	}
	return &apiv1.ListAlarmsResponse{
		Header: s.header(new(apiv1.ResponseHeader), &r, st.Revision), Alarms: alarmsTo(&st), GrowthRefused: growthTo(st.Growth),
	}, nil
}

func (c *clusterService) DisarmAlarm(ctx context.Context, req *apiv1.DisarmAlarmRequest) (*apiv1.DisarmAlarmResponse, error) {
	if err := known(req.GetKind(), apiv1.AlarmKind_name, false); err != nil {
		return nil, err
	}
	header, result, err := c.s.write(ctx, req.GetRequestId(), machine.SetAlarm{Kind: directory.AlarmKind(req.GetKind()), Node: req.GetNode()})
	return &apiv1.DisarmAlarmResponse{Header: header, Result: result}, err
}

func alarmsTo(st *machine.Status) []*apiv1.AlarmInfo {
	var out []*apiv1.AlarmInfo
	for _, a := range st.Alarms {
		out = append(out, &apiv1.AlarmInfo{
			Kind: apiv1.AlarmKind(a.Kind), Node: a.Node, Why: a.Why, By: a.By, AgeMs: uint64(since(st.Time, a.Since)), WallMs: a.Wall,
			Voter: a.Voter, Voters: a.Voters,
		})
	}
	return out
}

// growthTo is the reason why growth is refused, without the sentinel's own words.
func growthTo(err error) string {
	if err == nil {
		return ""
	}
	return strings.TrimPrefix(err.Error(), directory.ErrReadOnly.Error()+": ")
}

// alarmWarnings are an alarm each, in words.
func alarmWarnings(alarms []directory.Alarm) []string {
	var out []string
	for _, a := range alarms {
		what := map[directory.AlarmKind]string{
			directory.AlarmNoSpace:  "the disk of %s is nearly full: %s",
			directory.AlarmDiverged: "the state of %s is not what the others' is: %s",
			directory.AlarmCorrupt:  "the state file of %s was damaged: %s",
		}[a.Kind]
		if what == "" {
			what = "%s has an alarm that this release does not know: %s"
		}
		why := a.Why
		if why == "" {
			why = "no reason was given"
		}
		out = append(out, fmt.Sprintf(what, a.Node, why))
	}
	return out
}

func healthTo(h *raftstore.Health) *apiv1.NodeHealth {
	out := &apiv1.NodeHealth{
		ComparedAgeMs: ageOrNever(h.Compared), Verdict: verdictTo(h.Verdict), ScrubbedAgeMs: ageOrNever(h.Scrubbed),
		ScrubDoneBytes: count(h.ScrubDone), ScrubTotalBytes: count(h.ScrubTotal),
		FreeBytes: count(h.FreeBytes), TotalBytes: count(h.TotalBytes), LowBytes: count(h.LowBytes), NoSpace: h.NoSpace, ReadOnly: h.ReadOnly,
	}
	for _, d := range h.Differs {
		out.Differs = append(out.Differs, &apiv1.StateDifference{Node: d.Name, Id: d.Node, Index: d.Index})
	}
	return out
}

func verdictTo(v raftstore.Verdict) apiv1.StateVerdict {
	switch v {
	case raftstore.Same:
		return apiv1.StateVerdict_STATE_VERDICT_SAME
	case raftstore.Split:
		return apiv1.StateVerdict_STATE_VERDICT_SPLIT
	case raftstore.Odd:
		return apiv1.StateVerdict_STATE_VERDICT_ODD
	}
	return apiv1.StateVerdict_STATE_VERDICT_UNSPECIFIED
}

func ageOrNever(age time.Duration) *uint64 {
	if age < 0 {
		return nil
	}
	return new(ageMillis(age))
}

// ReadOnly returns r as a Store: it shows what it has to whoever asks for no
// more, and sends all others to another node.
func ReadOnly(r *raftstore.ReadOnly) Store { return readOnlyShard{r} }

type readOnlyShard struct{ r *raftstore.ReadOnly }

func (h readOnlyShard) Propose(context.Context, []byte) ([]byte, error) { return nil, h.r.Refusal() }

func (h readOnlyShard) Local() (View, error) { return view(h.r.Read()) }

func (h readOnlyShard) Linearizable(context.Context) (View, error) { return nil, h.r.Refusal() }

// Verified: that something is not there is never said from an old state in any
// case, for no majority confirms it.
func (h readOnlyShard) Verified() bool { return true }

// When never has more than there is now.
func (h readOnlyShard) When(_ context.Context, ready func(kv.Reader) bool) (View, error) {
	v, err := h.Local()
	if err != nil {
		return nil, err
	}
	if ready(v) {
		return v, nil
	}
	v.Release()
	return nil, errors.Join(context.DeadlineExceeded, h.r.Refusal())
}
