package peer

import (
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	peerv1 "github.com/rookery-mail/rookery/proto/peer/v1"
)

// Versions are the cluster versions that a node's release supports.
type Versions struct{ Oldest, Newest uint32 }

// firstVersions are those of the releases that do not say.
var firstVersions = Versions{1, 1}

// Supports tells whether a node of such a release can be of a cluster.
func (v Versions) Supports(version uint32) bool { return v.Oldest <= version && version <= v.Newest }

func (v Versions) String() string {
	if v.Oldest == v.Newest {
		return fmt.Sprint(v.Newest)
	}
	return fmt.Sprintf("%d to %d", v.Oldest, v.Newest)
}

func versionsTo(v Versions) *peerv1.Versions {
	return &peerv1.Versions{Oldest: v.Oldest, Newest: v.Newest}
}

func versionsFrom(m *peerv1.Versions) Versions {
	if m.GetNewest() == 0 {
		return firstVersions
	}
	return Versions{m.GetOldest(), m.GetNewest()}
}

// VersionsOf returns what a node said that its release supports, in a greeting, a
// hello or an announcement, whichever came last.
func (t *Transport) VersionsOf(node uint64) (Versions, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	v, ok := t.versions[node]
	return v, ok
}

// maxVersions bounds whose versions are remembered: who is no member may have said
// its own, too.
const maxVersions = 1000

// support notes what a node's release supports.
func (t *Transport) support(node uint64, m *peerv1.Versions) {
	if node == 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, known := t.versions[node]; known || len(t.versions) < maxVersions {
		t.versions[node] = versionsFrom(m)
	}
}

// outOfRange refuses a node that asks to join and could not take part: it would stop
// at the first thing it does not understand.
func (t *Transport) outOfRange(req *peerv1.JoinRequest) error {
	if t.cfg.ClusterVersion == nil {
		return nil
	}
	version, theirs := t.cfg.ClusterVersion(), versionsFrom(req.GetVersions())
	if version == 0 || theirs.Supports(version) {
		return nil
	}
	text := fmt.Sprintf("the cluster's version is %d, and %s, of release %s, supports %s: start it with a release that supports %d, such as %s, which this node, %s, runs",
		version, req.GetName(), req.GetVersion(), theirs, version, t.cfg.Version, t.cfg.Name)
	t.once(req.GetBirth(), text)
	return status.Error(codes.FailedPrecondition, text)
}
