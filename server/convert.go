package server

import (
	"fmt"
	"maps"
	"net/netip"
	"strings"

	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/directory/machine"
	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
)

// Outcomes, fact states, backend states, TLS modes, ways of confirmation, group
// modes, hold kinds and effects have the same numbers in the API and in the
// directory; TestNumbers holds both to it.

// maxMissing is how many backends an answer names.
const maxMissing = 100

func names(backends []directory.BackendName, most int) []string {
	if len(backends) == 0 {
		return nil
	}
	out := make([]string, min(len(backends), most))
	for i := range out {
		out[i] = string(backends[i])
	}
	return out
}

// route fills out with where a mailbox is. why says what kept absence from being
// confirmed, if something did.
func (s *Server) route(out *apiv1.Route, a *machine.Answer, details bool, why string) *apiv1.Route {
	outcome := a.Outcome
	if outcome == directory.NotFound {
		if why != "" {
			outcome, out.Why = directory.Unconfirmed, why
		}
		out.RecentlyRetracted = a.RecentlyRetracted
	}
	out.Outcome = apiv1.Outcome(outcome)
	if a.Server != nil {
		out.Server = s.server(a.Server)
	}
	if home := a.Route.Home; home != nil {
		out.Group, out.Epoch = string(home.Name), home.Epoch
		out.Primary = string(a.BackendName(home.Primary))
	}
	out.Forked = a.Route.Forked
	out.Missing = names(a.Missing, maxMissing)
	if res := a.Reservation; res != nil {
		out.Reservation = &apiv1.Reservation{
			Server:      string(a.BackendName(res.Server)),
			Partition:   res.Partition,
			AgeMs:       uint64(since(a.Now, res.Made)),
			RemainingMs: uint64(since(res.Deadline, a.Now)),
		}
	}
	if a.Hold != nil {
		out.Hold = holdTo(a.Hold, a.Now)
	}
	if t := a.Tombstone; t != nil && t.How == directory.GoneMoved {
		out.MovedAgeMs = uint64(since(a.Now, t.Time))
		if g := a.Group(t.From); g != nil {
			out.MovedFrom = string(g.Name)
		}
	}
	out.Revision = uint64(a.Changed)
	if a.Mailbox == nil || !details {
		return out
	}
	out.Mailbox = string(a.Name)
	facts := make([]apiv1.Fact, len(a.Mailbox.Facts))
	out.Facts = make([]*apiv1.Fact, len(facts))
	for i := range facts {
		out.Facts[i] = factTo(&facts[i], a, &a.Mailbox.Facts[i])
	}
	if f := a.Route.Fact; f != nil {
		out.ListedFrom = string(a.BackendName(f.Server))
	}
	return out
}

// routes is route, with details, for rows of a listing.
func (s *Server) routes(answers []machine.Answer) []*apiv1.Route {
	routes := make([]apiv1.Route, len(answers))
	out := make([]*apiv1.Route, len(answers))
	for i := range answers {
		out[i] = s.route(&routes[i], &answers[i], true, "")
		out[i].Mailbox = string(answers[i].Name)
	}
	return out
}

func factTo(out *apiv1.Fact, a *machine.Answer, f *directory.Fact) *apiv1.Fact {
	out.Server = string(a.BackendName(f.Server))
	out.Partition = f.Partition
	out.Acl = f.ACL
	out.MailboxId = f.MailboxID
	out.UidValidity = f.UIDValidity
	out.Type = typeTo(f.Type)
	out.SpecialUse = f.SpecialUse
	out.State = apiv1.FactState(f.State)
	out.Standing = apiv1.Standing(f.Standing) + apiv1.Standing_STANDING_IN_FORCE
	out.FirstRevision = uint64(f.First)
	out.LastRevision = uint64(f.Last)
	out.Confirmed = a.Confirmed(f)
	out.AgeMs = uint64(since(a.Now, f.Changed))
	if b := a.Backend(f.Server); b != nil {
		out.Admitted = b.Admitted
	}
	return out
}

// since is now - then in directory time, 0 if then is later.
func since(now, then directory.Time) directory.Time {
	if then >= now {
		return 0
	}
	return now - then
}

func holdTo(h *directory.Hold, now directory.Time) *apiv1.HoldInfo {
	return &apiv1.HoldInfo{
		Kind:        apiv1.HoldKind(h.Kind),
		Key:         h.Key,
		RemainingMs: uint64(since(h.Until, now)),
		Why:         h.Why,
		By:          h.By,
	}
}

// serverCache keeps backends as routes name them. A backend's row is replaced when
// it changes, never changed, so its address stands for what it says.
type serverCache map[*directory.Backend]*apiv1.Server

// maxServers is when the cache is begun anew: rows that were replaced stay in it.
const maxServers = 4096

// server is b as a route names it: shared by many answers, never changed.
func (s *Server) server(b *directory.Backend) *apiv1.Server {
	var known serverCache
	if p := s.servers.Load(); p != nil {
		known = *p
	}
	if out := known[b]; out != nil {
		return out
	}
	out := &apiv1.Server{Name: string(b.Name), Addresses: addressesTo(b.Addresses), State: apiv1.BackendState(b.State)}
	next := make(serverCache, len(known)+1)
	if len(known) < maxServers {
		maps.Copy(next, known)
	}
	next[b] = out
	s.servers.Store(&next)
	return out
}

func addressesTo(addresses []directory.Address) []*apiv1.Address {
	out := make([]*apiv1.Address, len(addresses))
	for i, a := range addresses {
		out[i] = &apiv1.Address{Service: string(a.Service), Ip: a.IP, Port: uint32(a.Port), Tls: apiv1.TlsMode(a.TLS)}
	}
	return out
}

func addressesOf(list []*apiv1.Address) ([]directory.Address, error) {
	out := make([]directory.Address, len(list))
	for i, a := range list {
		switch service := directory.Service(a.GetService()); service {
		case directory.ServiceIMAP, directory.ServiceLMTP, directory.ServicePOP3, directory.ServiceSieve, directory.ServiceSMTP:
			out[i].Service = service
		default:
			return nil, fmt.Errorf("%w: address %d: service %q is not known", directory.ErrInvalid, i, a.GetService())
		}
		ip, err := netip.ParseAddr(a.GetIp())
		if err != nil || ip.Zone() != "" {
			return nil, fmt.Errorf("%w: address %d: %q is no numeric IP address", directory.ErrInvalid, i, a.GetIp())
		}
		if a.GetPort() < 1 || a.GetPort() > 65535 {
			return nil, fmt.Errorf("%w: address %d: port %d", directory.ErrInvalid, i, a.GetPort())
		}
		if err := known(a.GetTls(), apiv1.TlsMode_name, true); err != nil {
			return nil, err
		}
		out[i].IP, out[i].Port, out[i].TLS = ip.String(), uint16(a.GetPort()), directory.TLSMode(a.GetTls())
	}
	return out, nil
}

// mailboxTypes are Cyrus's letters by the API's numbers; the first is "not stated".
const mailboxTypes = "\x00enbcaspf"

func typeTo(t directory.MailboxType) apiv1.MailboxType {
	return apiv1.MailboxType(max(0, strings.IndexByte(mailboxTypes, byte(t))))
}

// known refuses a number of an enum that this release does not know, and, unless
// zero is a choice, its zero.
func known[E interface {
	~int32
	fmt.Stringer
}](e E, known map[int32]string, zero bool) error {
	if _, ok := known[int32(e)]; !ok {
		return fmt.Errorf("%w: %T has no %d", directory.ErrInvalid, e, int32(e))
	}
	if e == 0 && !zero {
		return fmt.Errorf("%w: %T is missing", directory.ErrInvalid, e)
	}
	return nil
}

func missing(what string) error { return fmt.Errorf("%w: no %s stated", directory.ErrInvalid, what) }

// text checks what people wrote, for people.
func text(what, s string) error {
	if len(s) > directory.MaxText {
		return fmt.Errorf("%w: %s of %d octets, at most %d", directory.ErrTooLarge, what, len(s), directory.MaxText)
	}
	return nil
}

// mailboxAndServer checks the two names that most writes begin with, and that the
// caller speaks for the server.
func mailboxAndServer(c Caller, mailbox, server string) (directory.MailboxName, directory.BackendName, error) {
	name, err := directory.ParseName(mailbox)
	if err != nil {
		return "", "", err
	}
	backend, err := directory.ParseBackend(server)
	if err != nil {
		return "", "", err
	}
	return name, backend, c.mayState(backend)
}

func partition(s string) error {
	if s == "" {
		return nil
	}
	_, err := directory.ParsePartition(s)
	return err
}

func assertOf(c Caller, m *apiv1.Assert) (machine.Op, error) {
	if m == nil {
		return nil, missing("assertion")
	}
	name, server, err := mailboxAndServer(c, m.GetMailbox(), m.GetServer())
	if err != nil {
		return nil, err
	}
	if err := partition(m.GetPartition()); err != nil {
		return nil, err
	}
	if m.Acl != nil {
		if err := directory.CheckACL(*m.Acl); err != nil {
			return nil, err
		}
	}
	if err := known(m.GetType(), apiv1.MailboxType_name, true); err != nil {
		return nil, err
	}
	if m.GetImported() {
		if err := c.mayImport(); err != nil {
			return nil, err
		}
	}
	op := machine.Assert{
		Mailbox: name,
		Server:  server,
		Statement: directory.Statement{
			Partition:   m.GetPartition(),
			ACL:         m.Acl,
			MailboxID:   m.MailboxId,
			UIDValidity: m.UidValidity,
			SpecialUse:  m.SpecialUse,
		},
		Imported:    m.GetImported(),
		Deactivated: m.GetDeactivated(),
		Since:       directory.Revision(m.GetSinceRevision()),
	}
	if t := m.GetType(); t != apiv1.MailboxType_MAILBOX_TYPE_UNSPECIFIED {
		op.Statement.Type = new(directory.MailboxType(mailboxTypes[t]))
	}
	return op, nil
}

func retractOf(c Caller, m *apiv1.Retract) (machine.Op, error) {
	if m == nil {
		return nil, missing("retraction")
	}
	name, server, err := mailboxAndServer(c, m.GetMailbox(), m.GetServer())
	if err != nil {
		return nil, err
	}
	return machine.Retract{Mailbox: name, Server: server, Epoch: m.GetEpoch(), Tentative: m.GetTentative(), Since: directory.Revision(m.GetSinceRevision())}, nil
}

func reserveOf(c Caller, m *apiv1.Reserve) (machine.Op, error) {
	if m == nil {
		return nil, missing("reservation")
	}
	name, server, err := mailboxAndServer(c, m.GetMailbox(), m.GetServer())
	if err != nil {
		return nil, err
	}
	if err := partition(m.GetPartition()); err != nil {
		return nil, err
	}
	return machine.Reserve{Mailbox: name, Server: server, Partition: m.GetPartition(), Grace: directory.Time(m.GetGraceMs())}, nil
}

func releaseOf(c Caller, m *apiv1.Release) (machine.Op, error) {
	if m == nil {
		return nil, missing("release")
	}
	name, server, err := mailboxAndServer(c, m.GetMailbox(), m.GetServer())
	if err != nil {
		return nil, err
	}
	return machine.Release{Mailbox: name, Server: server, Since: directory.Revision(m.GetSinceRevision())}, nil
}

func deactivateOf(c Caller, m *apiv1.Deactivate) (machine.Op, error) {
	if m == nil {
		return nil, missing("deactivation")
	}
	name, server, err := mailboxAndServer(c, m.GetMailbox(), m.GetServer())
	if err != nil {
		return nil, err
	}
	return machine.Deactivate{Mailbox: name, Server: server}, nil
}

func renameOf(c Caller, m *apiv1.Rename) (machine.Op, error) {
	if m == nil {
		return nil, missing("rename")
	}
	from, server, err := mailboxAndServer(c, m.GetFrom(), m.GetServer())
	if err != nil {
		return nil, err
	}
	to, err := directory.ParseName(m.GetTo())
	if err != nil {
		return nil, err
	}
	return machine.Rename{From: from, To: to, Recursive: m.GetRecursive(), Server: server}, nil
}

func userAndMailbox(user, mailbox string) (directory.UserID, directory.MailboxName, error) {
	u, err := directory.ParseUser(user)
	if err != nil {
		return "", "", err
	}
	name, err := directory.ParseName(mailbox)
	return u, name, err
}

func subscribeOf(m *apiv1.Subscribe) (machine.Op, error) {
	if m == nil {
		return nil, missing("subscription")
	}
	user, name, err := userAndMailbox(m.GetUser(), m.GetMailbox())
	return machine.Subscribe{User: user, Mailbox: name}, err
}

func unsubscribeOf(m *apiv1.Unsubscribe) (machine.Op, error) {
	if m == nil {
		return nil, missing("subscription")
	}
	user, name, err := userAndMailbox(m.GetUser(), m.GetMailbox())
	return machine.Unsubscribe{User: user, Mailbox: name}, err
}

// itemOf is one item of a Batch, allowed as its single call would be.
func itemOf(c Caller, item *apiv1.BatchItem) (machine.Op, error) {
	var method string
	switch item.GetOp().(type) {
	case *apiv1.BatchItem_Subscribe:
		method = apiv1.DirectoryService_Subscribe_FullMethodName
	case *apiv1.BatchItem_Unsubscribe:
		method = apiv1.DirectoryService_Unsubscribe_FullMethodName
	default:
		method = apiv1.DirectoryService_Assert_FullMethodName // they have one rule
	}
	if roles[method].allows(c) == no {
		return nil, errMayNot(c, method)
	}
	switch op := item.GetOp().(type) {
	case *apiv1.BatchItem_Assert:
		return assertOf(c, op.Assert)
	case *apiv1.BatchItem_Retract:
		return retractOf(c, op.Retract)
	case *apiv1.BatchItem_Reserve:
		return reserveOf(c, op.Reserve)
	case *apiv1.BatchItem_Release:
		return releaseOf(c, op.Release)
	case *apiv1.BatchItem_Deactivate:
		return deactivateOf(c, op.Deactivate)
	case *apiv1.BatchItem_Rename:
		return renameOf(c, op.Rename)
	case *apiv1.BatchItem_Subscribe:
		return subscribeOf(op.Subscribe)
	case *apiv1.BatchItem_Unsubscribe:
		return unsubscribeOf(op.Unsubscribe)
	}
	return nil, fmt.Errorf("%w: an item without an operation that is known", directory.ErrInvalid)
}
