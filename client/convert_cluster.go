package client

import (
	"time"

	"github.com/rookery-mail/rookery/directory"
	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
)

func statusOf(m *apiv1.StatusResponse, a Answer) Status {
	c := m.GetCounts()
	st := Status{
		Answer:            a,
		ClusterID:         m.GetClusterId(),
		Shard:             m.GetShard(),
		DirectoryTime:     millis(m.GetDirectoryTimeMs()),
		Wall:              wall(m.GetWallMs()),
		Complete:          m.GetComplete(),
		BackendsConfirmed: int(m.GetBackendsConfirmed()),
		BackendsCounted:   int(m.GetBackendsCounted()),
		Missing:           backends(m.GetMissing()),
		Counts: Counts{
			Mailboxes: c.GetMailboxes(), Listed: c.GetListed(), Inboxes: c.GetInboxes(), Forked: c.GetForked(), Reservations: c.GetReservations(),
			Held: c.GetHeld(), Subscriptions: c.GetSubscriptions(), Postings: c.GetPostings(), Deactivated: c.GetDeactivated(),
		},
		Leader:           m.GetLeader(),
		Version:          m.GetVersion(),
		FormatVersion:    m.GetFormatVersion(),
		ClusterVersion:   m.GetClusterVersion(),
		Warnings:         m.GetWarnings(),
		Problems:         m.GetProblems(),
		AdmissionOpen:    m.GetAdmissionOpen(),
		ReadOnly:         m.GetReadOnly(),
		NotAdmitted:      backends(m.GetNotAdmitted()),
		AppliedIndex:     m.GetAppliedIndex(),
		CommitIndex:      m.GetCommitIndex(),
		Term:             m.GetTerm(),
		Alarms:           alarmsOf(m.GetAlarms()),
		GrowthRefused:    m.GetGrowthRefused(),
		Health:           healthOf(m.GetHealth()),
		NodeID:           m.GetNodeId(),
		Nodes:            nodesOf(m.GetNodes()),
		Waiting:          nodesOf(m.GetWaiting()),
		NodeProblems:     m.GetNodeProblems(),
		AutomationPaused: m.GetAutomationPaused(),
		Recovering:       m.GetRecovering(),
	}
	for _, sw := range m.GetSweeps() {
		st.Sweeps = append(st.Sweeps, Sweep{
			Kind: sw.GetKind(), Server: directory.BackendName(sw.GetServer()), After: directory.MailboxName(sw.GetAfter()),
		})
	}
	return st
}

func nodesOf(list []*apiv1.Node) []Node {
	var out []Node
	for _, n := range list {
		out = append(out, nodeOf(n))
	}
	return out
}

func nodeOf(n *apiv1.Node) Node {
	out := Node{
		Name: n.GetName(), ID: n.GetId(), ClientAddress: n.GetClientAddress(), PeerAddress: n.GetPeerAddress(),
		Voter: n.GetVoter(), Leader: n.GetLeader(), Learner: n.GetLearner(), Site: n.GetSite(),
		Heard: millis(n.GetHeardMs()), Version: n.GetVersion(), Applied: n.GetApplied(),
		OldestVersion: n.GetOldestVersion(), NewestVersion: n.GetNewestVersion(),
		FileBytes: n.GetFileBytes(), UsedBytes: n.GetUsedBytes(), FreeBytes: n.GetFreeBytes(),
		Verified: n.GetVerified(), Compacting: n.GetCompacting(), Quarantined: n.GetQuarantined(),
		Match: n.GetMatch(), Active: n.GetActive(), Trails: TrailsUnknown,
	}
	if n != nil && n.Trails != nil {
		out.Trails = int64(min(*n.Trails, 1<<63-1))
	}
	return out
}

func backendOf(b *apiv1.Backend) Backend {
	return Backend{
		Name:              directory.BackendName(b.GetName()),
		ID:                directory.ServerID(b.GetId()),
		Group:             directory.GroupName(b.GetGroup()),
		Primary:           b.GetPrimary(),
		Addresses:         addressesOf(b.GetAddresses()),
		Weight:            b.GetWeight(),
		Admitted:          b.GetAdmitted(),
		State:             directory.BackendState(b.GetState()),
		StateAge:          millis(b.GetStateAgeMs()),
		DrainApproved:     b.GetDrainApproved(),
		ConfirmedBy:       directory.ConfirmedBy(b.GetConfirmedBy()),
		Confirmed:         b.GetConfirmed(),
		ConfirmedRevision: directory.Revision(b.GetConfirmedRevision()),
		ConfirmedAge:      millis(b.GetConfirmedAgeMs()),
		Facts:             b.GetFacts(),
		Counted:           b.GetCounted(),
		Held:              b.GetHeld(),
	}
}

func groupOf(g *apiv1.Group) Group {
	out := Group{
		Name:    directory.GroupName(g.GetName()),
		ID:      directory.GroupID(g.GetId()),
		Members: backends(g.GetMembers()),
		Primary: directory.BackendName(g.GetPrimary()),
		Epoch:   g.GetEpoch(),
		Mode:    directory.GroupMode(g.GetMode()),
		Own:     g.GetOwn(),
	}
	for _, sw := range g.GetHistory() {
		out.History = append(out.History, Switchover{
			Epoch:         sw.GetEpoch(),
			From:          directory.BackendName(sw.GetFrom()),
			To:            directory.BackendName(sw.GetTo()),
			By:            sw.GetBy(),
			Reason:        sw.GetReason(),
			Revision:      directory.Revision(sw.GetRevision()),
			Age:           millis(sw.GetAgeMs()),
			Wall:          wall(sw.GetWallMs()),
			AcceptMissing: sw.GetAcceptMissing(),
		})
	}
	if h := g.GetHold(); h != nil {
		out.Hold = new(holdOf(h))
	}
	return out
}

func settingsOf(m *apiv1.Settings) directory.Settings {
	return directory.Settings{
		DefaultDomain:    m.GetDefaultDomain(),
		VirtDomains:      m.GetVirtDomains(),
		AdmissionOpen:    m.GetAdmissionOpen(),
		ReadOnly:         m.GetReadOnly(),
		GuardCount:       m.GetGuardCount(),
		GuardPercent:     m.GetGuardPercent(),
		GuardWindow:      directory.Time(m.GetGuardWindowMs()),
		ReserveGrace:     directory.Time(m.GetReserveGraceMs()),
		ReserveMax:       directory.Time(m.GetReserveMaxMs()),
		DeliveryGrace:    directory.Time(m.GetDeliveryGraceMs()),
		TombstoneKeep:    directory.Time(m.GetTombstoneKeepMs()),
		LogKeep:          m.GetLogKeep(),
		RequestKeep:      directory.Time(m.GetRequestKeepMs()),
		AutomationPaused: m.GetAutomationPaused(),
	}
}

func settingsTo(c SettingsChange) *apiv1.Settings {
	return &apiv1.Settings{
		DefaultDomain:    c.DefaultDomain,
		VirtDomains:      c.VirtDomains,
		AdmissionOpen:    c.AdmissionOpen,
		ReadOnly:         c.ReadOnly,
		GuardCount:       c.GuardCount,
		GuardPercent:     c.GuardPercent,
		GuardWindowMs:    millisPtr(c.GuardWindow),
		ReserveGraceMs:   millisPtr(c.ReserveGrace),
		ReserveMaxMs:     millisPtr(c.ReserveMax),
		DeliveryGraceMs:  millisPtr(c.DeliveryGrace),
		TombstoneKeepMs:  millisPtr(c.TombstoneKeep),
		LogKeep:          c.LogKeep,
		RequestKeepMs:    millisPtr(c.RequestKeep),
		AutomationPaused: c.AutomationPaused,
	}
}

func millisPtr(d *time.Duration) *uint64 {
	if d == nil {
		return nil
	}
	return new(millisOf(*d))
}

// wall is a wall clock's time in milliseconds since 1970; zero is none.
func wall(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms)
}
