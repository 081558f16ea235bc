package machine

import (
	"fmt"

	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/internal/kv"
)

// RightsQuery is a MYRIGHTS command. A client-form name becomes a canonical one
// by Namespace.FromClient, which knows what the user may call it.
type RightsQuery struct {
	Principal directory.Principal
	Mailbox   directory.MailboxName
}

// RightsAnswer is what a user may do with a mailbox.
type RightsAnswer struct {
	Answer
	// Rights are those of the routed fact's ACL with what is implicit: an
	// owner's l k x a n, an administrator's l a. None if the mailbox is not
	// listed: what the ACL of an orphaned fork says is nobody's right.
	Rights directory.Rights
	// Visible says that the user may know of the mailbox: one of l r i k x a is
	// held. If not, an IMAP server answers as for a mailbox that is not there,
	// provided that Outcome lets it say so.
	Visible bool
}

// MyRights answers MYRIGHTS. Outcome is to be read as Lookup's: a mailbox of
// which nothing is known has no rights here, but only NotFound says that it
// does not exist.
//
// Errors: ErrCorrupt, ErrFormat.
//
// RFC 4314 section 3.5; what is implicit is Cyrus's implicit_owner_rights.
func (m *Machine) MyRights(r kv.Reader, q RightsQuery) (RightsAnswer, error) {
	s, err := m.state(r)
	if err != nil {
		return RightsAnswer{}, err
	}
	a := RightsAnswer{}
	if a.Answer, err = s.lookup(q.Mailbox, true); err != nil || a.Route.Fact == nil {
		return a, err
	}
	w := newWeigher(q.Principal)
	stored, err := w.weigh([]byte(a.Route.Fact.ACL))
	if err != nil {
		return RightsAnswer{}, fmt.Errorf("mailbox %s: %w", q.Mailbox, err)
	}
	a.Rights = directory.MyRights(stored, q.Mailbox.OwnedBy(q.Principal.User), q.Principal.Admin)
	a.Visible = a.Rights.MayMyRights()
	return a, nil
}
