package client

import (
	"context"
	"time"

	"github.com/rookery-mail/rookery/directory"
	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
)

// Alarm is what is wrong with one node of the directory. It stands until it is
// lowered, by the node when all is well again or by an operator.
type Alarm struct {
	Kind   directory.AlarmKind
	Node   string
	Why    string
	By     string // who raised it
	Age    time.Duration
	Wall   time.Time // when it was raised; for people
	Voter  bool      // the node takes part in decisions
	Voters int       // how many did when it was raised last
}

// Alarms are all of them, by kind and node, and what follows.
type Alarms struct {
	Answer
	List []Alarm
	// GrowthRefused is why the cluster takes no growth now; empty if it does.
	GrowthRefused string
}

// ListAlarms returns every alarm of every node.
func (s *Session) ListAlarms(ctx context.Context, opts ...ReadOption) (Alarms, error) {
	m, a, err := ask(ctx, s, s.read(opts), func(ctx context.Context, n *node, c *apiv1.Consistency) (*apiv1.ListAlarmsResponse, error) {
		return n.cluster.ListAlarms(ctx, &apiv1.ListAlarmsRequest{Consistency: c})
	})
	if err != nil {
		return Alarms{}, err
	}
	return Alarms{Answer: a, List: alarmsOf(m.GetAlarms()), GrowthRefused: m.GetGrowthRefused()}, nil
}

// DisarmAlarm lowers an alarm. None there: Unchanged. A node whose trouble is
// not over raises it again.
//
// Errors: directory.ErrInvalid, ErrRole; ErrUnavailable, ErrUndecided.
func (s *Session) DisarmAlarm(ctx context.Context, kind directory.AlarmKind, name string) (Result, error) {
	return write(ctx, s, func(ctx context.Context, n *node, id *apiv1.RequestId) (*apiv1.DisarmAlarmResponse, error) {
		return n.cluster.DisarmAlarm(ctx, &apiv1.DisarmAlarmRequest{RequestId: id, Kind: apiv1.AlarmKind(kind), Node: name})
	})
}

func alarmsOf(list []*apiv1.AlarmInfo) []Alarm {
	var out []Alarm
	for _, a := range list {
		out = append(out, Alarm{
			Kind: directory.AlarmKind(a.GetKind()), Node: a.GetNode(), Why: a.GetWhy(), By: a.GetBy(), Age: millis(a.GetAgeMs()), Wall: wall(a.GetWallMs()),
			Voter: a.GetVoter(), Voters: int(a.GetVoters()),
		})
	}
	return out
}

// StateVerdict is what comparing a node's state with the others' came to.
type StateVerdict uint8

const (
	// VerdictUnknown: no majority was compared, and none that was differs.
	VerdictUnknown StateVerdict = 0
	// VerdictSame: a majority of the voters agrees with the node.
	VerdictSame StateVerdict = 1
	// VerdictSplit: some differ, and neither side is a majority.
	VerdictSplit StateVerdict = 2
	// VerdictOdd: a majority agrees with each other and not with the node.
	VerdictOdd StateVerdict = 3
)

func (v StateVerdict) String() string {
	switch v {
	case VerdictSame:
		return "same"
	case VerdictSplit:
		return "split"
	case VerdictOdd:
		return "odd"
	}
	return "unknown"
}

// StateDifference is a node whose state is another one.
type StateDifference struct {
	Node  string
	ID    uint64
	Index uint64 // Raft's, where it was seen last
}

// NodeHealth is what the node that answered knows of its own state and disk.
type NodeHealth struct {
	Compared *time.Duration // how long ago its state was compared with another's; nil: never since its start
	Verdict  StateVerdict
	Differs  []StateDifference // by id
	Scrubbed *time.Duration    // how long ago its file was read whole and found good; nil: not since its start
	// Of the scrub that is under way, about; both 0: none is.
	ScrubDone, ScrubTotal uint64
	// Of the disk: NoSpace while fewer than LowBytes are free. All 0: not known.
	FreeBytes, TotalBytes, LowBytes uint64
	NoSpace                         bool
	// ReadOnly is why it takes no part and only shows an old state; empty: it does.
	ReadOnly string
}

func healthOf(m *apiv1.NodeHealth) *NodeHealth {
	if m == nil {
		return nil
	}
	out := &NodeHealth{
		Compared: ageOf(m.ComparedAgeMs), Verdict: StateVerdict(m.GetVerdict()), Scrubbed: ageOf(m.ScrubbedAgeMs),
		ScrubDone: m.GetScrubDoneBytes(), ScrubTotal: m.GetScrubTotalBytes(),
		FreeBytes: m.GetFreeBytes(), TotalBytes: m.GetTotalBytes(), LowBytes: m.GetLowBytes(), NoSpace: m.GetNoSpace(), ReadOnly: m.GetReadOnly(),
	}
	for _, d := range m.GetDiffers() {
		out.Differs = append(out.Differs, StateDifference{Node: d.GetNode(), ID: d.GetId(), Index: d.GetIndex()})
	}
	return out
}

func ageOf(ms *uint64) *time.Duration {
	if ms == nil {
		return nil
	}
	return new(millis(*ms))
}
