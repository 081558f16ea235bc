package peer

import (
	"cmp"
	"slices"
	"time"

	peerv1 "github.com/rookery-mail/rookery/proto/peer/v1"
	"github.com/rookery-mail/rookery/raftstore"
)

// Announcement is what a node says of itself, every second.
type Announcement struct {
	Name          string
	ClientAddress string
	Site          string
	Version       string
	Versions      Versions // of Config, whatever Announce says
	Applied       uint64   // index of the last entry applied
	// Sum is over the state as of SumIndex.
	SumIndex, Sum uint64
	FileBytes     int64 // of the state file
	UsedBytes     int64 // of it
	FreeBytes     int64 // of the disk that it is on
	Verified      bool
	Compacting    bool
	Quarantined   bool
}

// Heard is what another node said last, and how long ago.
type Heard struct {
	Announcement
	Since time.Duration
}

type heardAt struct {
	Announcement
	at time.Time
}

// Waiting is a node that asks to join and is no member.
type Waiting struct {
	Name     string
	Birth    uint64 // the id to add it under
	Info     Info
	Version  string
	Versions Versions
	Since    time.Duration // since it asked last
}

type waitingAt struct {
	Waiting
	at time.Time
}

// Heard returns what the other members said last, by their ids. Who was not
// heard since the start is not there.
func (t *Transport) Heard() map[uint64]Heard {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := make(map[uint64]Heard, len(t.heard))
	for id, h := range t.heard {
		all[id] = Heard{h.Announcement, time.Since(h.at)}
	}
	return all
}

// Connected tells whether what this node sends to another arrives there, as far as
// can be known: at once false when its process ended, after a while when it is cut off.
func (t *Transport) Connected(node uint64) bool {
	l := t.link(node)
	return l != nil && l.connected.Load()
}

// Moved returns the members that say of themselves, now, something else than the
// membership has of them, as they should stand there: this node among them.
func (t *Transport) Moved() (all []raftstore.Member) {
	a := t.store.Load()
	if a == nil {
		return nil
	}
	members := a.store.Status().Members
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, m := range members {
		says := t.cfg.Info
		if m.ID != a.id.Node {
			g := t.guests[m.ID]
			if g == nil || g.name != m.Name {
				continue
			}
			says = g.info
		}
		if says.PeerAddress != "" && says != ParseInfo(m.Context) {
			m.Context = says.Context()
			all = append(all, m)
		}
	}
	return all
}

// Waiting returns who has asked this node to join within the last seconds, in
// order of name.
func (t *Transport) Waiting() (all []Waiting) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, w := range t.waiting {
		if since := time.Since(w.at); since <= waitingFor {
			w.Since = since
			all = append(all, w.Waiting)
		}
	}
	slices.SortFunc(all, func(a, b Waiting) int { return cmp.Compare(a.Name, b.Name) })
	return all
}

// announcement is what to tell others now: the same to all within a second, so
// that they can compare what they were told.
func (t *Transport) announcement() Announcement {
	t.saying.Lock()
	defer t.saying.Unlock()
	if now := time.Now(); t.saidAt.IsZero() || now.Sub(t.saidAt) > announceEvery*9/10 {
		t.said, t.saidAt = t.announce(), now
		t.said.Versions = t.cfg.Versions
	}
	return t.said
}

func (t *Transport) announce() Announcement {
	if t.cfg.Announce != nil {
		return t.cfg.Announce()
	}
	a := Announcement{Name: t.cfg.Name, ClientAddress: t.cfg.Info.ClientAddress, Site: t.cfg.Info.Site, Version: t.cfg.Version}
	if s := t.store.Load(); s != nil {
		a.Applied = s.store.Status().Applied
	}
	return a
}

// take notes what a node said.
func (t *Transport) take(from uint64, a Announcement) {
	t.mu.Lock()
	t.heard[from] = heardAt{a, time.Now()}
	t.versions[from] = a.Versions
	t.mu.Unlock()
	if t.cfg.OnAnnounce != nil {
		t.cfg.OnAnnounce(from, a)
	}
}

func announcementTo(a Announcement) *peerv1.Announcement {
	return &peerv1.Announcement{
		Name: a.Name, ClientAddress: a.ClientAddress, Site: a.Site, Version: a.Version,
		Applied: a.Applied, SumIndex: a.SumIndex, Sum: a.Sum,
		FileBytes: uint64(a.FileBytes), UsedBytes: uint64(a.UsedBytes), FreeDiskBytes: uint64(a.FreeBytes),
		Verified: a.Verified, Compacting: a.Compacting, Quarantined: a.Quarantined,
		Versions: versionsTo(a.Versions),
	}
}

func announcementFrom(a *peerv1.Announcement) Announcement {
	return Announcement{
		Name: a.GetName(), ClientAddress: a.GetClientAddress(), Site: a.GetSite(), Version: a.GetVersion(),
		Applied: a.GetApplied(), SumIndex: a.GetSumIndex(), Sum: a.GetSum(),
		FileBytes: int64(a.GetFileBytes()), UsedBytes: int64(a.GetUsedBytes()), FreeBytes: int64(a.GetFreeDiskBytes()),
		Verified: a.GetVerified(), Compacting: a.GetCompacting(), Quarantined: a.GetQuarantined(),
		Versions: versionsFrom(a.GetVersions()),
	}
}
