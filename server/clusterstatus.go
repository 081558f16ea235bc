package server

import (
	"context"
	"fmt"

	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/directory/machine"
	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
)

// formatVersion is the version of the state's format, as an operator is told it.
const formatVersion = 1

func (c *clusterService) Status(ctx context.Context, req *apiv1.StatusRequest) (*apiv1.StatusResponse, error) {
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
	backends, err := s.machine.Backends(r, "")
	if err != nil {
		return nil, err
	}
	members := s.members()
	members.Waiting = members.stillWaiting()
	out := &apiv1.StatusResponse{
		Header:          s.header(new(apiv1.ResponseHeader), &r, st.Revision),
		ClusterId:       st.ClusterID,
		Shard:           s.shard,
		DirectoryTimeMs: uint64(st.Time),
		WallMs:          st.Wall,
		Complete:        st.Complete,
		Missing:         names(st.Missing, maxMissing),
		Counts: &apiv1.Counts{
			Mailboxes:     count(st.Mailboxes),
			Listed:        count(st.Listed),
			Inboxes:       count(st.Inboxes),
			Forked:        count(st.Forked),
			Reservations:  count(st.Reservations),
			Held:          count(st.Held),
			Subscriptions: count(st.Subscriptions),
			Postings:      count(st.Postings),
			Deactivated:   count(st.Deactivated),
		},
		Node:           s.node,
		Version:        s.version,
		FormatVersion:  formatVersion,
		ClusterVersion: st.Version,
		AdmissionOpen:  st.Settings.AdmissionOpen,
		ReadOnly:       st.Settings.ReadOnly,
		AppliedIndex:   members.Applied,
		CommitIndex:    members.Commit,
		Term:           members.Term,
		Alarms:         alarmsTo(&st),
		GrowthRefused:  growthTo(st.Growth),
		NodeId:         members.Self,
		NodeProblems:   members.problems(),
		// Of a life that a restore began.
		Recovering:       st.Incarnation > 1 && len(st.Missing) > 0,
		AutomationPaused: st.Settings.AutomationPaused,
	}
	if leader := members.leader(); leader != nil {
		out.Leader = leader.Name
	}
	for _, n := range members.Nodes {
		out.Nodes = append(out.Nodes, members.nodeTo(&n))
	}
	for _, n := range members.Waiting {
		out.Waiting = append(out.Waiting, members.nodeTo(&n))
	}
	for _, sw := range st.Sweeps {
		out.Sweeps = append(out.Sweeps, &apiv1.Sweep{Kind: sw.Kind, Server: string(sw.Server), After: string(sw.After)})
	}
	var waiting []directory.BackendName
	for i := range backends {
		b := &backends[i]
		if !b.Admitted {
			waiting = append(waiting, b.Name)
		}
		if b.Counts() {
			out.BackendsCounted++
			if b.Confirm {
				out.BackendsConfirmed++
			}
		}
	}
	out.NotAdmitted = names(waiting, maxMissing)
	out.Warnings = warnings(&st, backends, &members, len(waiting))
	out.Problems = problems(backends)
	if s.nodeHealth != nil {
		h := s.nodeHealth()
		out.Health = healthTo(&h)
		out.Warnings = append(out.Warnings, h.Warnings...)
	}
	return out, nil
}

// problems says which backends keep mailboxes from being served: what is kept
// of each tells, without a walk over the mailboxes.
func problems(backends []machine.BackendInfo) []string {
	var out []string
	primaries := map[directory.GroupName]*machine.BackendInfo{}
	for i := range backends {
		if b := &backends[i]; b.Primary {
			primaries[b.GroupName] = b
		}
	}
	for i := range backends {
		b := &backends[i]
		switch p := primaries[b.GroupName]; {
		case b.Counted == 0:
		case b.State == directory.BackendLost:
			out = append(out, fmt.Sprintf("%s is lost and %d mailboxes are known from it", b.Name, b.Counted))
		case b.Primary && b.State == directory.BackendDown:
			out = append(out, fmt.Sprintf("%s is down with %d mailboxes", b.Name, b.Counted))
		case p != nil && p != b && b.Counted > p.Counted:
			out = append(out, fmt.Sprintf("%s holds %d mailboxes and %s, the primary of %s, %d: the others answer NOT_AT_PRIMARY", b.Name, b.Counted, p.Name, b.GroupName, p.Counted))
		}
	}
	return out
}

// warnings says what an operator should look at, the gravest first.
func warnings(st *machine.Status, backends []machine.BackendInfo, members *Members, waiting int) []string {
	var out []string
	warn := func(on bool, format string, args ...any) {
		if on {
			out = append(out, fmt.Sprintf(format, args...))
		}
	}
	warn(len(members.Nodes) > 0 && members.leader() == nil, "no leader is known to this node: nothing can be written")
	warn(st.Settings.ReadOnly, "the cluster is read-only: it takes no growth")
	warn(!st.Settings.ReadOnly && st.Growth != nil, "growth is refused: %s", growthTo(st.Growth))
	out = append(out, alarmWarnings(st.Alarms)...)
	warn(!st.Complete && len(st.Missing) == 0, "no backend was admitted yet: no mailbox is said not to exist")
	warn(len(st.Missing) > 0, "%d backends were not heard in this incarnation: no mailbox is said not to exist", len(st.Missing))
	for i := range backends {
		b := &backends[i]
		warn(b.State == directory.BackendDown, "backend %s is down: its mailboxes are not served", b.Name)
		warn(b.Held, "the withdrawal guard holds facts of %s: approve or reject them", b.Name)
	}
	warn(st.Forked > 0, "%d mailboxes are forked: settle them", st.Forked)
	warn(st.Deactivated > 0, "%d mailboxes were given up in a move and not taken yet", st.Deactivated)
	warn(waiting > 0, "%d backends wait for admission", waiting)
	warn(st.Settings.AutomationPaused, "automation is paused: the directory moves no primary by itself")
	warn(st.Version < machine.NewestVersion && len(members.Nodes) > 0 && len(members.inTheWay(machine.NewestVersion)) == 0,
		"cluster version %d is in force, and all nodes support %d: `rookeryctl cluster-version finalize` ends the upgrade", st.Version, machine.NewestVersion)
	warn(st.Settings.AdmissionOpen, "admission is open, any backend that speaks is believed: once all are known, `rookeryctl settings set admission-open=no`")
	return out
}

// count is a kept count; it is negative only in a state that check finds broken.
func count(n int64) uint64 { return uint64(max(n, 0)) }
