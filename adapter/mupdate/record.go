package mupdate

import (
	"slices"

	"github.com/rookery-mail/rookery/adapter/mupdate/mupdatewire"
	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
)

// record is what MUPDATE says of one name. Nothing else travels.
type record struct {
	name     directory.MailboxName
	location directory.Location
	acl      string
	reserved bool // RESERVE: exists, or is being made, and cannot be had now
}

// append appends the record as it follows a tag.
func (r *record) append(dst []byte, form mupdatewire.Form) []byte {
	if r.reserved {
		dst = append(dst, " RESERVE "...)
	} else {
		dst = append(dst, " MAILBOX "...)
	}
	dst = mupdatewire.AppendString(dst, string(r.name), form)
	dst = append(dst, ' ')
	dst = mupdatewire.AppendString(dst, r.location.String(), form)
	if !r.reserved {
		dst = append(dst, ' ')
		dst = mupdatewire.AppendString(dst, r.acl, form)
	}
	return append(dst, "\r\n"...)
}

// appendDelete appends the record of a name that is no more.
func appendDelete(dst []byte, name directory.MailboxName, form mupdatewire.Form) []byte {
	dst = append(dst, " DELETE "...)
	dst = mupdatewire.AppendString(dst, string(name), form)
	return append(dst, "\r\n"...)
}

// copyOf is one server's copy, as a watch and a lookup both tell of it.
type copyOf struct {
	server    directory.BackendName
	partition string
	acl       string
	state     directory.FactState
	standing  directory.Standing
}

func (c *copyOf) record(name directory.MailboxName, reserved bool) record {
	return record{name: name, location: directory.Location{Backend: c.server, Partition: c.partition}, acl: c.acl, reserved: reserved}
}

// place is where a name is, as a watch and a lookup both tell of it.
type place struct {
	outcome directory.Outcome
	server  directory.BackendName // chosen; may be empty
	listed  directory.BackendName // gives rights; may be empty
	copies  []copyOf
}

func (p *place) copy(server directory.BackendName) *copyOf {
	if server == "" {
		return nil
	}
	i := slices.IndexFunc(p.copies, func(c copyOf) bool { return c.server == server })
	if i < 0 {
		return nil
	}
	return &p.copies[i]
}

// routed is the one record of a name for those who ask where to go; false if there is
// none. What exists and cannot be had now is RESERVE, never silence. A server that is
// down keeps its mailboxes; and one that was not heard since the cluster was restored
// serves them.
func (p *place) routed(name directory.MailboxName) (record, bool) {
	reserved := false
	switch p.outcome {
	case directory.Serving, directory.BackendIsDown:
	case directory.Unconfirmed:
		if p.server == "" {
			return record{}, false
		}
	case directory.Moving, directory.Held, directory.NotAtPrimary, directory.OrphanedFork:
		reserved = true
	default:
		return record{}, false
	}
	c := p.copy(p.server)
	if c == nil {
		c = p.copy(p.listed)
	}
	if c == nil {
		for i := range p.copies {
			if p.copies[i].standing == directory.InForce {
				c = &p.copies[i]
				break
			}
		}
	}
	if c == nil {
		return record{}, false
	}
	r := c.record(name, reserved)
	if l := p.copy(p.listed); l != nil {
		r.acl = l.acl
	}
	return r, true
}

// own is the record of what server itself said, for server; false if it said nothing.
// What it withdrew, or gave up, is RESERVE: if it has the mailbox it says so again.
func (p *place) own(name directory.MailboxName, server directory.BackendName) (record, bool) {
	c := p.copy(server)
	if c == nil {
		return record{}, false
	}
	reserved := false
	switch c.state {
	case directory.Deactivated, directory.Withdrawing, directory.HeldWithdrawal:
		reserved = true
	}
	return c.record(name, reserved), true
}

// Record is what FIND answers about one name. Nothing else travels.
type Record struct {
	Location directory.Location
	ACL      string
	Reserved bool // RESERVE: it exists, and cannot be had now
}

// Seen is the one record of r's mailbox for those who ask where to go; false if there is
// none. A claim to the name is none. known is false where that there is none is not
// known: whoever may have the mailbox was not heard, or could not be asked.
//
// r was asked for with client.Details.
func Seen(r *client.Route) (record Record, there, known bool) {
	p := placeOfRoute(r)
	if found, ok := p.routed(r.Mailbox); ok {
		return Record{Location: found.location, ACL: found.acl, Reserved: found.reserved}, true, true
	}
	return Record{}, false, r.Outcome != directory.Incomplete && r.Outcome != directory.Unconfirmed
}

// placeOfRoute is a lookup's answer.
func placeOfRoute(r *client.Route) place {
	p := place{outcome: r.Outcome, server: r.Server.Name, listed: r.ListedFrom, copies: make([]copyOf, len(r.Facts))}
	for i := range r.Facts {
		f := &r.Facts[i]
		p.copies[i] = copyOf{server: f.Server, partition: f.Partition, acl: f.ACL, state: f.State, standing: f.Standing}
	}
	return p
}

// claimed is the record of a name that is only claimed.
func claimed(name directory.MailboxName, server directory.BackendName, partition string) record {
	return record{name: name, location: directory.Location{Backend: server, Partition: partition}, reserved: true}
}
