package machine

import (
	"encoding/binary"
	"strings"

	"github.com/rookery-mail/rookery/directory"
)

func validSubscription(user directory.UserID, name directory.MailboxName) error {
	if _, err := directory.ParseUser(string(user)); err != nil {
		return err
	}
	_, err := directory.ParseName(string(name))
	return err
}

// subscribe adds a subscription; the mailbox need not exist (RFC 9051, 6.3.7
// lets a server allow it, and a deleted mailbox keeps its subscription).
func (a *apply) subscribe(op Subscribe) (Result, error) {
	if err := validSubscription(op.User, op.Mailbox); err != nil {
		return Result{}, err
	}
	op.User = op.User.OmitDomain(a.settings.DefaultDomain)
	key := subscriptionKey(op.User, op.Mailbox)
	if a.tx.Get(bucketSubscription, key) != nil {
		return Result{Effect: Unchanged}, nil
	}
	if err := a.growth(); err != nil {
		return Result{}, err
	}
	a.putSubscription(op.User, op.Mailbox)
	return Result{Effect: Added}, nil
}

func (a *apply) putSubscription(user directory.UserID, name directory.MailboxName) {
	key := subscriptionKey(user, name)
	if a.tx.Get(bucketSubscription, key) != nil {
		return
	}
	a.put1(bucketSubscription, key, binary.AppendUvarint([]byte{1 << 3}, uint64(a.clk.Revision)))
	a.counts.Subscriptions++
	a.log(directory.Change{Kind: directory.ChangeSubscription, Name: name, Key: string(user)})
}

func (a *apply) unsubscribe(op Unsubscribe) (Result, error) {
	if err := validSubscription(op.User, op.Mailbox); err != nil {
		return Result{}, err
	}
	op.User = op.User.OmitDomain(a.settings.DefaultDomain)
	if a.tx.Get(bucketSubscription, subscriptionKey(op.User, op.Mailbox)) == nil {
		return Result{Effect: Unchanged}, nil
	}
	a.dropSubscription(op.User, op.Mailbox)
	return Result{Effect: Removed}, nil
}

func (a *apply) dropSubscription(user directory.UserID, name directory.MailboxName) {
	a.tx.Delete(bucketSubscription, subscriptionKey(user, name))
	a.counts.Subscriptions--
	a.log(directory.Change{Kind: directory.ChangeSubscription, Name: name, Key: string(user)})
}

// moveSubscriptions gives the user whose inbox was from the name of the inbox
// to: the subscriptions are that user's then, and those to own mailboxes
// follow these.
func (a *apply) moveSubscriptions(from, to directory.MailboxName) error {
	old, ok := from.Owner()
	if !ok {
		return nil
	}
	is, ok := to.Owner()
	if !ok {
		return nil
	}
	prefix := subscriptionPrefix(old)
	var names []directory.MailboxName
	it := a.tx.Iterate(bucketSubscription)
	for k, _ := it.Seek(prefix); k != nil && hasPrefix(k, prefix); k, _ = it.Next() {
		n, err := storedName(k[len(prefix):])
		if err != nil {
			return err
		}
		names = append(names, n)
	}
	for _, n := range names {
		a.dropSubscription(old, n)
		if rest, below := strings.CutPrefix(string(n), string(from)); below && (rest == "" || rest[0] == '.') {
			n = to + directory.MailboxName(rest)
		}
		a.putSubscription(is, n)
	}
	return nil
}
