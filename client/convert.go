package client

import (
	"time"

	"github.com/rookery-mail/rookery/directory"
	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
)

// What the API calls a thing and what directory does have the same number, but
// for standings (the API's are one more, its zero being "not said") and types.
// A number that this release does not know is kept: it prints as unknown and
// equals none of the constants.

func routeOf(r *apiv1.Route, asked directory.MailboxName, a Answer) Route {
	if name := r.GetMailbox(); name != "" {
		asked = directory.MailboxName(name)
	}
	route := Route{
		Answer:            a,
		Mailbox:           asked,
		Outcome:           directory.Outcome(r.GetOutcome()),
		Group:             directory.GroupName(r.GetGroup()),
		Epoch:             r.GetEpoch(),
		Primary:           directory.BackendName(r.GetPrimary()),
		Forked:            r.GetForked(),
		Changed:           directory.Revision(r.GetRevision()),
		Missing:           backends(r.GetMissing()),
		Why:               r.GetWhy(),
		RecentlyRetracted: r.GetRecentlyRetracted(),
		MovedFrom:         directory.GroupName(r.GetMovedFrom()),
		MovedAge:          millis(r.GetMovedAgeMs()),
		ListedFrom:        directory.BackendName(r.GetListedFrom()),
	}
	if server := r.GetServer(); server != nil {
		route.Server = Server{
			Name:      directory.BackendName(server.GetName()),
			Addresses: addressesOf(server.GetAddresses()),
			State:     directory.BackendState(server.GetState()),
		}
	}
	if res := r.GetReservation(); res != nil {
		route.Reservation = &Reservation{
			Server:    directory.BackendName(res.GetServer()),
			Partition: res.GetPartition(),
			Age:       millis(res.GetAgeMs()),
			Remaining: millis(res.GetRemainingMs()),
		}
	}
	if h := r.GetHold(); h != nil {
		route.Hold = new(holdOf(h))
	}
	if facts := r.GetFacts(); len(facts) > 0 {
		route.Facts = make([]Fact, len(facts))
		for i, f := range facts {
			route.Facts[i] = factOf(f)
		}
	}
	return route
}

func factOf(f *apiv1.Fact) Fact {
	return Fact{
		Server:      directory.BackendName(f.GetServer()),
		Admitted:    f.GetAdmitted(),
		Partition:   f.GetPartition(),
		ACL:         f.GetAcl(),
		MailboxID:   f.GetMailboxId(),
		UIDValidity: f.GetUidValidity(),
		Type:        typeOf(f.GetType()),
		SpecialUse:  f.GetSpecialUse(),
		State:       directory.FactState(f.GetState()),
		Standing:    directory.Standing(f.GetStanding() - 1),
		First:       directory.Revision(f.GetFirstRevision()),
		Last:        directory.Revision(f.GetLastRevision()),
		Confirmed:   f.GetConfirmed(),
		Age:         millis(f.GetAgeMs()),
	}
}

// mailboxTypes are Cyrus's letters by the API's numbers.
const mailboxTypes = "\x00enbcaspf"

func typeOf(t apiv1.MailboxType) directory.MailboxType {
	if t < 0 || int(t) >= len(mailboxTypes) {
		return 0
	}
	return directory.MailboxType(mailboxTypes[t])
}

// typeTo returns a number that no server knows for a letter that the API has not,
// so that it is refused.
func typeTo(t directory.MailboxType) apiv1.MailboxType {
	for i := range len(mailboxTypes) {
		if mailboxTypes[i] == byte(t) {
			return apiv1.MailboxType(i)
		}
	}
	return -1
}

func holdOf(h *apiv1.HoldInfo) Hold {
	return Hold{
		Kind:      directory.HoldKind(h.GetKind()),
		Key:       h.GetKey(),
		Remaining: millis(h.GetRemainingMs()),
		Why:       h.GetWhy(),
		By:        h.GetBy(),
	}
}

func addressesOf(addresses []*apiv1.Address) []directory.Address {
	if len(addresses) == 0 {
		return nil
	}
	out := make([]directory.Address, len(addresses))
	for i, a := range addresses {
		out[i] = directory.Address{
			Service: directory.Service(a.GetService()),
			IP:      a.GetIp(),
			Port:    uint16(a.GetPort()),
			TLS:     directory.TLSMode(a.GetTls()),
		}
	}
	return out
}

func addressesTo(addresses []directory.Address) []*apiv1.Address {
	out := make([]*apiv1.Address, len(addresses))
	for i, a := range addresses {
		out[i] = &apiv1.Address{Service: string(a.Service), Ip: a.IP, Port: uint32(a.Port), Tls: apiv1.TlsMode(a.TLS)}
	}
	return out
}

func rowOf(r *apiv1.ListRow) ListRow {
	row := ListRow{
		Name:            r.GetClientName(),
		Mailbox:         directory.MailboxName(r.GetMailbox()),
		SpecialUse:      r.GetSpecialUse(),
		ChildSubscribed: r.GetChildSubscribed(),
		ChildSpecialUse: r.GetChildSpecialUse(),
		Server:          directory.BackendName(r.GetServer()),
		Outcome:         directory.Outcome(r.GetOutcome()),
	}
	// Letters that this release does not know grant nothing that it asks for.
	row.Rights, _ = directory.ParseRights(r.GetRights())
	if attributes := r.GetAttributes(); len(attributes) > 0 {
		row.Attributes = make([]Attribute, len(attributes))
		for i, a := range attributes {
			row.Attributes[i] = Attribute(a)
		}
	}
	return row
}

func listRequest(q ListQuery, c *apiv1.Consistency) *apiv1.ListRequest {
	return &apiv1.ListRequest{
		Consistency: c,
		User:        string(q.Principal.User),
		AclGroups:   q.Principal.Groups,
		AsAdmin:     q.Principal.Admin,
		Namespace:   namespaceTo(q.Namespace),
		Reference:   q.Reference,
		Patterns:    q.Patterns,
		Selection: &apiv1.ListSelection{
			Subscribed: q.Select.Subscribed, RecursiveMatch: q.Select.RecursiveMatch, SpecialUse: q.Select.SpecialUse, Remote: q.Select.Remote,
		},
		Return: &apiv1.ListReturn{
			Subscribed: q.Return.Subscribed, Children: q.Return.Children, SpecialUse: q.Return.SpecialUse, MyRights: q.Return.MyRights, Status: q.Return.Status, Location: q.Return.Location,
		},
		Extended:  q.Extended,
		Lsub:      q.LSUB,
		InboxOnly: q.InboxOnly,
		Dav:       q.DAV,
	}
}

func namespaceTo(ns directory.Namespace) *apiv1.Namespace {
	out := &apiv1.Namespace{Alt: ns.Alt, VirtDomains: ns.VirtDomains, CrossDomains: ns.CrossDomains, DefaultDomain: ns.DefaultDomain}
	if ns.Sep != 0 {
		out.Separator = string(rune(ns.Sep))
	}
	return out
}

func resultOf(r *apiv1.WriteResult) Result {
	return Result{
		Effect: Effect(r.GetEffect()),
		Count:  int(r.GetCount()),
		Epoch:  r.GetEpoch(),
		Lapses: millis(r.GetLapsesInMs()),
	}
}

func assertTo(a Assert) *apiv1.Assert {
	st := a.Statement
	m := &apiv1.Assert{
		Mailbox:     string(a.Mailbox),
		Server:      string(a.Server),
		Partition:   st.Partition,
		Acl:         st.ACL,
		MailboxId:   st.MailboxID,
		UidValidity: st.UIDValidity,
		SpecialUse:  st.SpecialUse,
		Imported:    a.Imported,
		Deactivated: a.Deactivated,

		SinceRevision: uint64(a.Since),
	}
	if st.Type != nil {
		m.Type = typeTo(*st.Type)
	}
	return m
}

func retractTo(r Retract) *apiv1.Retract {
	return &apiv1.Retract{Mailbox: string(r.Mailbox), Server: string(r.Server), Epoch: r.Epoch, Tentative: r.Tentative, SinceRevision: uint64(r.Since)}
}

func reserveTo(r Reserve) *apiv1.Reserve {
	return &apiv1.Reserve{Mailbox: string(r.Mailbox), Server: string(r.Server), Partition: r.Partition, GraceMs: millisOf(r.Grace)}
}

func releaseTo(r Release) *apiv1.Release {
	return &apiv1.Release{Mailbox: string(r.Mailbox), Server: string(r.Server), SinceRevision: uint64(r.Since)}
}

func deactivateTo(d Deactivate) *apiv1.Deactivate {
	return &apiv1.Deactivate{Mailbox: string(d.Mailbox), Server: string(d.Server)}
}

func renameTo(r Rename) *apiv1.Rename {
	return &apiv1.Rename{From: string(r.From), To: string(r.To), Recursive: r.Recursive, Server: string(r.Server)}
}

func subscribeTo(s Subscribe) *apiv1.Subscribe {
	return &apiv1.Subscribe{User: string(s.User), Mailbox: string(s.Mailbox)}
}

func unsubscribeTo(u Unsubscribe) *apiv1.Unsubscribe {
	return &apiv1.Unsubscribe{User: string(u.User), Mailbox: string(u.Mailbox)}
}

// itemTo returns nil for what is no Op of this package.
func itemTo(op Op) *apiv1.BatchItem {
	switch op := op.(type) {
	case Assert:
		return &apiv1.BatchItem{Op: &apiv1.BatchItem_Assert{Assert: assertTo(op)}}
	case Retract:
		return &apiv1.BatchItem{Op: &apiv1.BatchItem_Retract{Retract: retractTo(op)}}
	case Reserve:
		return &apiv1.BatchItem{Op: &apiv1.BatchItem_Reserve{Reserve: reserveTo(op)}}
	case Release:
		return &apiv1.BatchItem{Op: &apiv1.BatchItem_Release{Release: releaseTo(op)}}
	case Deactivate:
		return &apiv1.BatchItem{Op: &apiv1.BatchItem_Deactivate{Deactivate: deactivateTo(op)}}
	case Rename:
		return &apiv1.BatchItem{Op: &apiv1.BatchItem_Rename{Rename: renameTo(op)}}
	case Subscribe:
		return &apiv1.BatchItem{Op: &apiv1.BatchItem_Subscribe{Subscribe: subscribeTo(op)}}
	case Unsubscribe:
		return &apiv1.BatchItem{Op: &apiv1.BatchItem_Unsubscribe{Unsubscribe: unsubscribeTo(op)}}
	}
	return nil
}

// millisOf is the API's number for d: whole milliseconds, at least one if d is not
// zero.
func millisOf(d time.Duration) uint64 {
	if d <= 0 {
		return 0
	}
	return uint64(max(1, d.Milliseconds()))
}

func pageSize(n int) uint32 { return uint32(max(0, min(n, 1<<31-1))) }

func backends(names []string) []directory.BackendName {
	if len(names) == 0 {
		return nil
	}
	out := make([]directory.BackendName, len(names))
	for i, name := range names {
		out[i] = directory.BackendName(name)
	}
	return out
}

func mailboxes(names []string) []directory.MailboxName {
	out := make([]directory.MailboxName, len(names))
	for i, name := range names {
		out[i] = directory.MailboxName(name)
	}
	return out
}
