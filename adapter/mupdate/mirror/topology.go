package mirror

import (
	"context"
	"slices"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
)

// topology is what has to be known of backends and groups.
type topology struct {
	backends map[directory.BackendName]*backend
	groups   map[directory.GroupID]*group
	names    map[directory.GroupName]directory.GroupID
}

type backend struct {
	id       directory.ServerID
	group    directory.GroupID
	admitted bool
	gone     bool
	// itself: it has compared its own list with the directory, so it speaks to it.
	itself bool
	// equal is the revision at which its facts were the master's word; 0: not known.
	equal     directory.Revision
	confirmed bool // in this incarnation
}

type group struct {
	name    directory.GroupName
	primary directory.ServerID
	members []directory.ServerID
}

// readTopology asks for it.
func readTopology(ctx context.Context, s *client.Session) (*topology, error) {
	t := &topology{
		backends: make(map[directory.BackendName]*backend),
		groups:   make(map[directory.GroupID]*group),
		names:    make(map[directory.GroupName]directory.GroupID),
	}
	groups, err := s.ListGroups(ctx, "", client.Linearizable())
	if err != nil {
		return nil, err
	}
	backends, err := s.ListBackends(ctx, "")
	if err != nil {
		return nil, err
	}
	ids := make(map[directory.BackendName]directory.ServerID)
	for i := range backends {
		ids[backends[i].Name] = backends[i].ID
	}
	for i := range groups {
		g := &group{name: groups[i].Name, primary: ids[groups[i].Primary]}
		for _, m := range groups[i].Members {
			g.members = append(g.members, ids[m])
		}
		t.groups[groups[i].ID], t.names[g.name] = g, groups[i].ID
	}
	for i := range backends {
		b := &backends[i]
		t.backends[b.Name] = &backend{
			id: b.ID, group: t.names[b.Group], admitted: b.Admitted, gone: b.State.Gone(), confirmed: b.Confirmed,
			itself: b.ConfirmedBy == directory.ByResync, equal: equalAt(b.ConfirmedBy, b.ConfirmedRevision),
		}
	}
	return t, nil
}

func equalAt(by directory.ConfirmedBy, at directory.Revision) directory.Revision {
	if by == directory.ByImport || by == directory.ByOperator {
		return at
	}
	return 0
}

// learn takes a change in. It reports whether routes may have changed without a change
// of their own.
func (t *topology) learn(e *client.WatchEvent) bool {
	switch e.Kind {
	case client.WatchBackend:
		w := e.Backend
		b := t.backends[w.Name]
		if b == nil {
			for _, other := range t.backends {
				if other.id == w.ID {
					return true // renamed
				}
			}
			t.backends[w.Name] = &backend{id: w.ID, group: w.Group, admitted: w.Admitted, gone: w.State.Gone(), itself: w.Confirmed == directory.ByResync}
			return false
		}
		b.itself = b.itself || w.Confirmed == directory.ByResync
		return b.group != w.Group || b.admitted != w.Admitted || b.gone != w.State.Gone()
	case client.WatchGroup:
		w := e.Group
		g := t.groups[w.ID]
		if g == nil {
			t.groups[w.ID] = &group{name: w.Name, primary: w.Primary, members: w.Members}
			t.names[w.Name] = w.ID
			return len(w.Members) > 1
		}
		return w.MergedInto != 0 || g.primary != w.Primary || !slices.Equal(g.members, w.Members)
	case client.WatchHold:
		return true
	}
	return false
}

// groupOf names the group of a backend; of one that nobody has heard of the one that it
// will have.
func (t *topology) groupOf(server directory.BackendName) directory.GroupName {
	if b := t.backends[server]; b != nil {
		if g := t.groups[b.group]; g != nil {
			return g.name
		}
	}
	return directory.GroupName(server)
}

// isReplica reports whether server is a member of a group that is not its primary.
func (t *topology) isReplica(server directory.BackendName) bool {
	b := t.backends[server]
	if b == nil {
		return false
	}
	g := t.groups[b.group]
	return g != nil && g.primary != b.id
}

// itself reports whether server speaks to the directory.
func (t *topology) itself(server directory.BackendName) bool {
	b := t.backends[server]
	return b != nil && b.itself
}

// counts reports whether a fact is one that makes a route, or could.
func (t *topology) counts(f *client.Fact) bool {
	b := t.backends[f.Server]
	return f.Admitted && f.Standing == directory.InForce && f.State != directory.HeldReturn && (b == nil || !b.gone)
}

// replicasOnly reports whether nothing but replicas have a mailbox, so that no master
// can know of it.
func (t *topology) replicasOnly(r *client.Route) bool {
	some := false
	for i := range r.Facts {
		f := &r.Facts[i]
		if !t.counts(f) {
			continue
		}
		if some = true; !t.isReplica(f.Server) {
			return false
		}
	}
	return some
}
