package oracle

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"strings"

	"github.com/rookery-mail/rookery/directory"
)

// Place is where a mailbox is.
type Place struct {
	Outcome  directory.Outcome
	Server   directory.BackendName // chosen; empty if none is
	Home     directory.GroupName
	Forked   bool
	Lister   directory.BackendName // whose fact rights and listing come from
	Recently bool                  // retracted a short while ago
}

// Route is the route of a name.
func (o *Oracle) Route(name directory.MailboxName) (p Place) {
	b := o.boxes[name]
	home := o.homeOf(b)
	if home != nil {
		p.Home = home.Name
	}
	p.Outcome = directory.NotFound
	live := o.live(b)
	p.Forked = len(o.strangers(b)) > 0
	var primary *directory.Fact
	for _, f := range live {
		if f.Server == home.Primary {
			primary = f
		}
	}
	bname := func(f *directory.Fact) directory.BackendName { return o.backends[f.Server].Name }
	switch {
	case primary != nil:
		p.Server, p.Lister = bname(primary), bname(primary)
		switch {
		case primary.State == directory.HeldWithdrawal:
			p.Outcome, p.Server = directory.Held, ""
		case primary.State == directory.Deactivated || primary.State == directory.Withdrawing:
			p.Outcome = directory.Moving
		case o.backends[primary.Server].State == directory.BackendDown:
			p.Outcome = directory.BackendIsDown
		case !o.confirmed(primary):
			p.Outcome = directory.Unconfirmed
		default:
			p.Outcome = directory.Serving
		}
	case len(live) > 0:
		best := slices.MinFunc(live, func(f, g *directory.Fact) int {
			if a, b := f.State == directory.Active, g.State == directory.Active; a != b {
				if a {
					return -1
				}
				return 1
			}
			return cmp.Or(cmp.Compare(g.Last, f.Last), cmp.Compare(f.Server, g.Server))
		})
		p.Outcome, p.Server, p.Lister = directory.NotAtPrimary, bname(best), bname(best)
	case p.Forked:
		p.Outcome = directory.OrphanedFork
	case b != nil:
		// A member's copy that was believed, else one that was not, else anybody's.
		for _, whose := range []struct{ member, believed bool }{{true, true}, {true, false}, {false, true}, {false, false}} {
			for _, s := range slices.Sorted(maps.Keys(b.facts)) {
				f := b.facts[s]
				be := o.backends[s]
				if !be.Admitted || be.State != directory.BackendLost || f.Standing != directory.InForce || p.Server != "" ||
					member(home, s) != whose.member || (f.State != directory.HeldReturn) != whose.believed {
					continue
				}
				p.Outcome, p.Server = directory.BackendIsDown, be.Name
				if whose.member && whose.believed {
					p.Lister = be.Name
				}
			}
		}
	}
	if p.Outcome == directory.NotFound && b != nil {
		for s, f := range b.facts {
			unsure := f.State == directory.HeldReturn || f.State == directory.HeldWithdrawal && !o.confirmed(f)
			if unsure && f.Standing == directory.InForce && o.countsBackend(o.backends[s]) {
				p.Outcome = directory.Held // nobody has decided whether to believe it
			}
		}
	}
	if o.held(name, home) {
		p.Outcome, p.Server = directory.Held, ""
	}
	if p.Outcome == directory.NotFound {
		t := o.tombs[name]
		p.Recently = t != nil && t.How != directory.GoneMoved && name.IsInbox() && o.now-t.Time < o.set.DeliveryGrace
		if len(o.missing()) > 0 || !o.anyAdmitted() {
			p.Outcome = directory.Incomplete
		}
	}
	return p
}

func (o *Oracle) held(name directory.MailboxName, home *directory.Group) bool {
	owner, _ := name.Owner()
	for id := range o.holds {
		switch id.kind {
		case directory.HoldUser:
			if owner != "" && string(owner) == id.key {
				return true
			}
		case directory.HoldMailbox:
			if n := directory.MailboxName(id.key); n == name || name.IsBelow(n) {
				return true
			}
		case directory.HoldGroup:
			if home != nil && string(home.Name) == id.key {
				return true
			}
		case directory.HoldBackend:
			if home != nil && string(o.backends[home.Primary].Name) == id.key {
				return true
			}
		}
	}
	return false
}

// Complete reports whether every backend that counts was heard in this life.
func (o *Oracle) Complete() bool { return len(o.missing()) == 0 && o.anyAdmitted() }

// List returns the mailboxes that user, who is in those ACL groups, may LIST.
func (o *Oracle) List(user directory.UserID, groups []string) []directory.MailboxName {
	var listed []directory.MailboxName
	for name, b := range o.boxes {
		if name.IsDeleted() {
			continue
		}
		lister := o.Route(name).Lister
		if lister == "" {
			continue
		}
		if f := b.facts[o.backend(lister).ID]; MaySee(f.ACL, user, groups) {
			listed = append(listed, name)
		}
	}
	slices.SortFunc(listed, directory.CompareNames)
	return listed
}

// MaySee reports whether an ACL lets user, who is in those ACL groups, see that the
// mailbox exists.
func MaySee(acl string, user directory.UserID, groups []string) bool {
	granted := false
	fields := strings.Split(acl, "\t")
	for i := 0; i+1 < len(fields); i += 2 {
		id, negative := strings.CutPrefix(fields[i], "-")
		group, isGroup := strings.CutPrefix(id, "group:")
		if id != "anyone" && id != string(user) && !(isGroup && slices.Contains(groups, group)) || !strings.Contains(fields[i+1], "l") {
			continue
		}
		if negative {
			return false
		}
		granted = true
	}
	return granted
}

// postings works out who may look up what: identifier, name, and the rights,
// or "weigh" where the reader has to look at the ACLs.
func (o *Oracle) postings() (lines []string) {
	for _, name := range o.names() {
		if name.IsDeleted() {
			continue
		}
		owner, _ := name.Owner()
		rights := map[string]string{}
		weigh := false
		in := o.inHome(o.boxes[name])
		if len(o.live(o.boxes[name])) == 0 && len(o.strangers(o.boxes[name])) > 0 {
			continue // an orphaned fork is not listed
		}
		for _, f := range in {
			acl, _ := directory.ParseACL(f.ACL)
			weigh = weigh || acl.HasNegative() || f.ACL != in[0].ACL
			for _, e := range acl {
				if !e.Negative && e.Identifier != string(owner) {
					rights[e.Identifier] += e.Rights.String()
				}
			}
		}
		for id, r := range rights {
			if !strings.ContainsAny(r, "lr") {
				continue
			}
			all, _ := directory.ParseRights(r)
			r = all.String()
			if weigh {
				r = "weigh"
			}
			lines = append(lines, fmt.Sprintf("%s %s %s", id, name, r))
		}
	}
	slices.Sort(lines)
	return lines
}

// sums works out a server's total: how many facts, and the sums of the hashes
// of their names and of themselves.
func (o *Oracle) sums(server directory.ServerID) (count uint64, names, facts [16]byte) {
	n, f := new(big.Int), new(big.Int)
	hash := func(kind string, parts ...[]byte) *big.Int {
		h := sha256.New()
		h.Write(o.digestKey)
		h.Write([]byte(kind))
		for _, p := range parts {
			h.Write(p)
		}
		return new(big.Int).SetBytes(h.Sum(nil)[:16])
	}
	field := func(p []byte) []byte {
		return append(binary.BigEndian.AppendUint32(nil, uint32(len(p))), p...)
	}
	for name, b := range o.boxes {
		fact := b.facts[server]
		if fact == nil || fact.State == directory.HeldWithdrawal {
			continue
		}
		count++
		key := name.AppendKey(nil)
		n.Add(n, hash("n", key))
		f.Add(f, hash("f", key, []byte{0}, field([]byte(fact.Partition)), field([]byte(fact.ACL)), field([]byte(fact.MailboxID)),
			field(binary.BigEndian.AppendUint32(nil, fact.UIDValidity)), field([]byte{byte(fact.Type)}), field([]byte(fact.SpecialUse))))
	}
	mod := new(big.Int).Lsh(big.NewInt(1), 128)
	n.Mod(n, mod).FillBytes(names[:])
	f.Mod(f, mod).FillBytes(facts[:])
	return count, names, facts
}
