package machine

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/rookery-mail/rookery/directory"
)

// backend finds a backend by name or refuses.
func (a *apply) backend(name directory.BackendName) (*directory.Backend, error) {
	if _, err := directory.ParseBackend(string(name)); err != nil {
		return nil, err
	}
	b := a.backendBy[name]
	if b == nil {
		return nil, refuse(directory.ErrNotFound, "no backend %s; `rookeryctl backends` lists them", name)
	}
	return b, nil
}

// newBackend makes a backend's row and its group of one.
func (a *apply) newBackend(name directory.BackendName, admitted bool) *directory.Backend {
	c := a.cluster
	b := directory.Backend{
		ID: c.NextServer, Name: own(name), Group: c.NextGroup, Weight: directory.DefaultWeight,
		Admitted: admitted, State: directory.BackendActive, Since: a.clk.Time,
	}
	c.NextServer++
	a.putCluster(c)
	a.putBackend(b)
	a.ownGroup(a.backendByID[b.ID])
	return a.backendByID[b.ID]
}

// ownGroup makes the group of one whose id b.Group is.
func (a *apply) ownGroup(b *directory.Backend) {
	c := a.cluster
	c.NextGroup = max(c.NextGroup, b.Group+1)
	a.putCluster(c)
	// The backend's own name, unless a group has it: an assertion is not
	// refused for that.
	name := directory.GroupName(b.Name)
	for n := b.Group; a.groupBy[name] != nil; n++ {
		name = directory.GroupName(fmt.Sprintf("%.200s-own%d", b.Name, n))
	}
	a.putGroup(directory.Group{
		ID: b.Group, Name: name, Members: []directory.ServerID{b.ID},
		Primary: b.ID, Epoch: 1, Mode: directory.ModeManual, Own: true,
	})
}

func (a *apply) putCluster(c cluster) {
	a.changeTopology()
	a.topology.cluster = c
	a.putClusterRow(c)
}

// putBackend writes a backend's row, its name and the change.
func (a *apply) putBackend(b directory.Backend) {
	a.changeTopology()
	t := a.topology
	if was := t.backendByID[b.ID]; was != nil {
		i := slices.Index(t.backends, was)
		t.backends[i] = &b
		if was.Name != b.Name {
			delete(t.backendBy, was.Name)
			a.tx.Delete(bucketBackend, nameKey(string(was.Name)))
		}
	} else {
		t.backends = append(t.backends, &b)
	}
	t.backendByID[b.ID], t.backendBy[b.Name] = &b, &b
	a.put1(bucketBackend, idKey(uint32(b.ID)), encodeBackend(&b))
	a.tx.Put(bucketBackend, nameKey(string(b.Name)), idKey(uint32(b.ID))[1:])
	a.log(directory.Change{Kind: directory.ChangeBackend, Key: string(b.Name), Server: b.ID})
}

// setBackend changes what operators say of a backend.
func (a *apply) setBackend(op SetBackend) (Result, error) {
	if _, err := directory.ParseBackend(string(op.Server)); err != nil {
		return Result{}, err
	}
	b := a.backendBy[op.Server]
	if b == nil && op.Create && len(a.backends) >= directory.MaxBackends {
		return Result{}, refuse(directory.ErrTooLarge, "%d backends are known already", len(a.backends))
	}
	if b == nil && op.Create && a.growth() != nil {
		return Result{}, a.growth()
	}
	if b == nil && !op.Create {
		return Result{}, refuse(directory.ErrNotFound, "no backend %s; `rookeryctl backends` lists them", op.Server)
	}
	if op.Addresses != nil {
		if err := validAddresses(*op.Addresses); err != nil {
			return Result{}, err
		}
	}
	if op.State != nil {
		if err := a.mayBecome(op.Server, b, *op.State); err != nil {
			return Result{}, err
		}
	}
	effect := Unchanged
	if b == nil {
		b = a.newBackend(op.Server, true)
		effect = Added
	}
	is := *b
	if op.Addresses != nil {
		is.Addresses = slices.Clone(*op.Addresses)
		for i := range is.Addresses {
			is.Addresses[i].Service, is.Addresses[i].IP = own(is.Addresses[i].Service), own(is.Addresses[i].IP)
		}
		slices.SortStableFunc(is.Addresses, func(x, y directory.Address) int { return strings.Compare(string(x.Service), string(y.Service)) })
	}
	if op.Weight != nil {
		is.Weight = *op.Weight
	}
	if op.DrainApproved != nil {
		is.DrainApproved = *op.DrainApproved
	}
	if op.State != nil && *op.State != is.State {
		if op.DrainApproved == nil && (is.State == directory.BackendDraining || *op.State == directory.BackendDraining) {
			is.DrainApproved = false // an approval is for one drain
		}
		is.State, is.Since = *op.State, a.clk.Time
	}
	if slices.Equal(is.Addresses, b.Addresses) && is.Weight == b.Weight && is.State == b.State && is.DrainApproved == b.DrainApproved {
		return Result{Effect: effect}, nil
	}
	wasGone := b.State.Gone()
	a.putBackend(is)
	if effect == Unchanged {
		effect = Changed
	}
	if wasGone != is.State.Gone() {
		return Result{Effect: effect}, a.sweepLater(sweep{Kind: sweepRegroup, Server: is.ID})
	}
	return Result{Effect: effect}, nil
}

// mayBecome refuses a state that the backend cannot take.
func (a *apply) mayBecome(name directory.BackendName, b *directory.Backend, s directory.BackendState) error {
	last := directory.BackendRetired
	if a.cluster.Version >= versionFull {
		last = directory.BackendFull
	}
	if s < directory.BackendActive || s > last {
		return refuse(directory.ErrInvalid, "no such backend state: %d", s)
	}
	if b == nil {
		return nil
	}
	if b.State == directory.BackendRetired && s != directory.BackendRetired {
		return refuse(directory.ErrInvalid, "backend %s was retired; its name is not used again", name)
	}
	if s != directory.BackendRetired {
		return nil
	}
	total, err := a.total(b.ID)
	if err != nil {
		return err
	}
	if k, _ := a.tx.Iterate(bucketByServer).Seek(serverKey(b.ID)); k != nil && hasPrefix(k, serverKey(b.ID)) {
		return refuse(directory.ErrBusy, "backend %s still holds %d facts; only one that holds none can be retired", name, max(total.Count, 1))
	}
	if g := a.Group(b.Group); len(g.Members) > 1 {
		return refuse(directory.ErrBusy, "backend %s is a member of group %s; take it out first", name, g.Name)
	}
	return nil
}

func validAddresses(list []directory.Address) error {
	seen := map[directory.Service]bool{}
	for _, ad := range list {
		switch ad.Service {
		case directory.ServiceIMAP, directory.ServiceLMTP, directory.ServicePOP3, directory.ServiceSieve, directory.ServiceSMTP:
		default:
			return refuse(directory.ErrInvalid, "no such service: %.40q (imap, lmtp, pop3, sieve, smtp)", string(ad.Service))
		}
		if seen[ad.Service] {
			return refuse(directory.ErrInvalid, "two addresses for %s", ad.Service)
		}
		seen[ad.Service] = true
		if _, err := netip.ParseAddr(ad.IP); err != nil {
			return refuse(directory.ErrInvalid, "address of %s is no numeric IP address: %.60q", ad.Service, ad.IP)
		}
		if ad.Port == 0 || ad.TLS > directory.TLSImplicit {
			return refuse(directory.ErrInvalid, "address of %s: port 1 to 65535, TLS none, starttls or implicit", ad.Service)
		}
	}
	return nil
}

// admit lets a backend's facts count from now on. Routes follow at once where
// nobody else holds the name; homes, forks and postings by a sweep.
func (a *apply) admit(op Admit) (Result, error) {
	b, err := a.backend(op.Server)
	if err != nil {
		return Result{}, err
	}
	if b.Admitted {
		return Result{Effect: Unchanged}, nil
	}
	if b.State == directory.BackendRetired {
		return Result{}, refuse(directory.ErrInvalid, "backend %s was retired", b.Name)
	}
	return Result{Effect: Changed}, a.admitNow(b)
}

func (a *apply) admitNow(b *directory.Backend) error {
	is := *b
	is.Admitted = true
	a.putBackend(is)
	return a.sweepLater(sweep{Kind: sweepAdmit, Server: b.ID})
}

// confirm notes that a backend's list is known whole.
func (a *apply) confirm(op Confirm) (Result, error) {
	if op.How < directory.ByResync || op.How > directory.ByOperator {
		return Result{}, refuse(directory.ErrInvalid, "a list is confirmed by resync, import or operator")
	}
	if op.Incarnation != 0 && op.Incarnation != a.cluster.Incarnation {
		return Result{}, refuse(directory.ErrInvalid, "the list of %s was stated in incarnation %d of the cluster, this is %d: state it again", op.Server, op.Incarnation, a.cluster.Incarnation)
	}
	if _, err := directory.ParseBackend(string(op.Server)); err != nil {
		return Result{}, err
	}
	b := a.backendBy[op.Server]
	if b == nil {
		if op.How != directory.ByImport {
			return Result{}, refuse(directory.ErrNotFound, "no backend %s; `rookeryctl backends` lists them", op.Server)
		}
		if err := a.growth(); err != nil {
			return Result{}, err
		}
		if len(a.backends) >= directory.MaxBackends {
			return Result{}, refuse(directory.ErrReadOnly, "no new backend %s: there are %d already", op.Server, len(a.backends))
		}
		b = a.newBackend(op.Server, true)
	}
	switch {
	case b.State == directory.BackendRetired:
		return Result{}, refuse(directory.ErrInvalid, "backend %s was retired", b.Name)
	case op.How == directory.ByResync:
		if err := a.heard(b.ID); err != nil {
			return Result{}, err
		}
	case op.How == directory.ByImport && !b.Admitted:
		if err := a.admitNow(b); err != nil {
			return Result{}, err
		}
		b = a.Backend(b.ID)
	}
	if a.cluster.Began != 0 && !b.ConfirmedFor(a.cluster.Incarnation) {
		if err := a.sweepLater(sweep{Kind: sweepConfirm, Server: b.ID}); err != nil {
			return Result{}, err
		}
	}
	is := *b
	is.Confirmed, is.ConfirmedIn = op.How, a.cluster.Incarnation
	is.ConfirmedRevision, is.ConfirmedTime = a.clk.Revision, a.clk.Time
	a.putBackend(is)
	return Result{Effect: Changed}, nil
}

// renameBackend gives a backend another name.
func (a *apply) renameBackend(op RenameBackend) (Result, error) {
	b, err := a.backend(op.From)
	if err != nil {
		return Result{}, err
	}
	if _, err := directory.ParseBackend(string(op.To)); err != nil {
		return Result{}, err
	}
	if op.From == op.To {
		return Result{Effect: Unchanged}, nil
	}
	if a.backendBy[op.To] != nil {
		return Result{}, refuse(directory.ErrExists, "there is a backend %s already", op.To)
	}
	group := a.Group(b.Group)
	if a.groupBy[directory.GroupName(op.To)] != nil {
		return Result{}, refuse(directory.ErrExists, "there is a group %s already", op.To)
	}
	if b.State == directory.BackendRetired {
		return Result{}, refuse(directory.ErrInvalid, "backend %s was retired", b.Name)
	}
	is := *b
	is.Name = own(op.To)
	a.putBackend(is)
	a.moveHold(directory.HoldBackend, string(op.From), string(is.Name))
	if group.Own {
		g := *group
		g.Name = directory.GroupName(is.Name)
		a.putGroup(g)
		a.moveHold(directory.HoldGroup, string(group.Name), string(g.Name))
	}
	return Result{Effect: Changed}, nil
}

// own copies a text that outlives its command: a command's texts share the
// octets of the whole entry.
func own[S ~string](s S) S { return S(strings.Clone(string(s))) }

// listed joins names for a message, the first few of many.
func listed(names []directory.BackendName) string {
	const most = 5
	var b strings.Builder
	for i, n := range names {
		if i == most {
			fmt.Fprintf(&b, " and %d more", len(names)-most)
			break
		}
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(string(n))
	}
	if len(names) == 0 {
		return "none has been admitted"
	}
	return b.String()
}
