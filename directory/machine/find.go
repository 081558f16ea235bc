package machine

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/internal/kv"
)

// FindQuery asks for mailboxes by name or by server, page by page.
type FindQuery struct {
	// Prefix is what the canonical name begins with, whole levels or not, its
	// domain included: "user.al", "example.com!". Empty: all.
	Prefix string
	// Server: only mailboxes of which this backend has a fact, whatever its
	// standing. Empty: all.
	Server directory.BackendName
	// After is the last name of the page before; empty for the first.
	After directory.MailboxName
	// Limit is how many mailboxes a page has at most; 0 is DefaultFind, and
	// more than MaxFind is MaxFind.
	Limit int
}

// How many mailboxes a page of Find has, and names a page of Subscriptions.
const (
	DefaultFind          = 256
	MaxFind              = 1000
	DefaultSubscriptions = 1000
	MaxSubscriptions     = 10_000
)

// Find returns, in name order, where the mailboxes are that q asks for, as
// Lookup would with details, and what to put into After for the next page,
// empty after the last. It reads what it answers, by server that server's
// names alone; mailboxes with any fact are found, listed or not.
//
// Errors: ErrNotFound for a server nobody has heard of; ErrCorrupt, ErrFormat.
func (m *Machine) Find(r kv.Reader, q FindQuery) (found []Answer, next directory.MailboxName, err error) {
	s, err := m.state(r)
	if err != nil {
		return nil, "", err
	}
	bucket, prefix := bucketMailbox, []byte(nil)
	if q.Server != "" {
		b := s.backendBy[q.Server]
		if b == nil {
			return nil, "", refuse(directory.ErrNotFound, "no backend %s", q.Server)
		}
		bucket, prefix = bucketByServer, serverKey(b.ID)
	}
	limit := pageSize(q.Limit, DefaultFind, MaxFind)
	octets := 0
	after := q.After.AppendKey(nil)
	it := r.Iterate(bucket)
	for _, in := range prefixRanges(q.Prefix) {
		from := in.Lo
		if q.After != "" && bytes.Compare(after, from) >= 0 {
			from = append(bytes.Clone(after), keyAfterName)
		}
		k, _ := it.Seek(slices.Concat(prefix, from))
		for ; k != nil && hasPrefix(k, prefix); k, _ = it.Next() {
			key := k[len(prefix):]
			if bucket == bucketMailbox {
				var server directory.ServerID
				var ok bool
				if key, server, ok = splitMailboxKey(k); !ok {
					return nil, "", fmt.Errorf("%w: bucket %q, key %q", ErrCorrupt, string(bucket), k)
				}
				if server != 0 {
					continue
				}
			}
			if in.Hi != nil && bytes.Compare(key, in.Hi) >= 0 {
				break
			}
			name, err := storedName(key)
			if err != nil {
				return nil, "", err
			}
			if !strings.HasPrefix(string(name), q.Prefix) {
				continue
			}
			if len(found) == limit || octets > maxFindOctets {
				return found, found[len(found)-1].Name, nil
			}
			a, err := s.lookup(name, true)
			if err != nil {
				return nil, "", err
			}
			octets += a.octets()
			found = append(found, a)
		}
	}
	return found, "", nil
}

// maxFindOctets ends a page of large mailboxes early.
const maxFindOctets = 1 << 20

// keyAfterName follows an order key in the least key behind that name's rows:
// more than the 0x00 that they go on with, less than any separator.
const keyAfterName = 0x01

// prefixRanges returns where the order keys lie of the names that begin with
// prefix, in key order, and of few others: text without '!' may be the
// beginning of a domain, in whose key dots stay dots, or of a first level.
func prefixRanges(prefix string) []directory.KeyRange {
	begin := func(key []byte) directory.KeyRange {
		if len(key) == 0 {
			return directory.KeyRange{}
		}
		hi := bytes.Clone(key)
		hi[len(hi)-1]++
		return directory.KeyRange{Lo: key, Hi: hi}
	}
	ranges := []directory.KeyRange{begin(directory.MailboxName(prefix).AppendKey(nil))}
	if strings.IndexByte(prefix, '!') < 0 {
		ranges = append(ranges, begin([]byte(prefix)))
	}
	return unite(ranges)
}

func pageSize(asked, usual, most int) int {
	if asked <= 0 {
		return usual
	}
	return min(asked, most)
}

// Subscriptions returns the names that user subscribes to, in name order,
// existing or not, and the one to give as after for the next page, empty after
// the last. limit 0 is DefaultSubscriptions, more than MaxSubscriptions is that.
//
// Errors: ErrCorrupt.
func (m *Machine) Subscriptions(r kv.Reader, user directory.UserID, after directory.MailboxName, limit int) (names []directory.MailboxName, next directory.MailboxName, err error) {
	limit = pageSize(limit, DefaultSubscriptions, MaxSubscriptions)
	prefix := subscriptionPrefix(user)
	from := prefix
	if after != "" {
		from = append(subscriptionKey(user, after), keyAfterName)
	}
	it := r.Iterate(bucketSubscription)
	for k, _ := it.Seek(from); k != nil && hasPrefix(k, prefix); k, _ = it.Next() {
		if len(names) == limit {
			return names, names[limit-1], nil
		}
		name, err := directory.NameFromKey(k[len(prefix):])
		if err != nil {
			return nil, "", fmt.Errorf("%w: %w", ErrCorrupt, err)
		}
		names = append(names, name)
	}
	return names, "", nil
}
