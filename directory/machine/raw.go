package machine

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/internal/kv"
)

// RawIndexes is what the index buckets hold, decoded and nothing more, in key
// order: what is compared with what somebody else worked out. No answer is made
// of it.
type RawIndexes struct {
	Mailboxes    []*directory.Mailbox
	ByServer     map[directory.ServerID][]directory.MailboxName
	Postings     []RawPosting
	Forks        []directory.MailboxName
	Moves        []directory.MailboxName
	Held         map[directory.ServerID][]directory.MailboxName
	Unheard      map[directory.ServerID][]directory.MailboxName
	Reservations []directory.Reservation
	Tombstones   []directory.Tombstone
	Totals       map[directory.ServerID]RawDigest
	Subs         []string // "user name"
	Log          []directory.Change
	Sweeps       int
	Now          directory.Time
}

// RawPosting is one row of the reverse index.
type RawPosting struct {
	Identifier string
	Name       directory.MailboxName
	Rights     string // meaningless with Weigh
	Weigh      bool
}

// RawDigest is a server's total.
type RawDigest struct {
	Count        uint64
	Names, Facts [16]byte
	Counted      uint64
}

// ReadRaw decodes the index buckets of r.
func ReadRaw(r kv.Reader) (RawIndexes, error) {
	raw := RawIndexes{
		ByServer: map[directory.ServerID][]directory.MailboxName{},
		Held:     map[directory.ServerID][]directory.MailboxName{},
		Unheard:  map[directory.ServerID][]directory.MailboxName{},
		Totals:   map[directory.ServerID]RawDigest{},
	}
	clk, err := readClock(r)
	if err != nil {
		return raw, err
	}
	raw.Now = clk.Time
	it := r.Iterate(bucketMailbox)
	for k, _ := it.Seek(nil); k != nil; {
		order, server, ok := splitMailboxKey(k)
		if !ok || server != 0 {
			return raw, fmt.Errorf("mailbox key %q: not a mailbox's row", k)
		}
		name, err := directory.NameFromKey(order)
		if err != nil {
			return raw, err
		}
		mb, err := readMailbox(r.Iterate(bucketMailbox), mailboxKey(name), name)
		if err != nil {
			return raw, err
		}
		raw.Mailboxes = append(raw.Mailboxes, mb)
		for range mb.Facts {
			it.Next()
		}
		k, _ = it.Next()
	}
	names := func(b kv.Bucket) (out []directory.MailboxName, err error) {
		it := r.Iterate(b)
		for k, _ := it.Seek(nil); k != nil; k, _ = it.Next() {
			name, err := directory.NameFromKey(k)
			if err != nil {
				return nil, err
			}
			out = append(out, name)
		}
		return out, nil
	}
	if raw.Forks, err = names(bucketFork); err != nil {
		return raw, err
	}
	if raw.Moves, err = names(bucketMove); err != nil {
		return raw, err
	}
	for b, into := range map[kv.Bucket]map[directory.ServerID][]directory.MailboxName{
		bucketByServer: raw.ByServer, bucketHeldFact: raw.Held, bucketUnheard: raw.Unheard,
	} {
		it := r.Iterate(b)
		for k, _ := it.Seek(nil); k != nil; k, _ = it.Next() {
			name, err := directory.NameFromKey(k[4:])
			if err != nil {
				return raw, err
			}
			server := directory.ServerID(binary.BigEndian.Uint32(k))
			into[server] = append(into[server], name)
		}
	}
	err = eachRow(r, bucketPosting, nil, func(k, b []byte) error {
		i := bytes.IndexByte(k, 0)
		name, err := directory.NameFromKey(k[i+2:])
		if err != nil {
			return err
		}
		p, err := decodePosting(b)
		if err != nil {
			return err
		}
		raw.Postings = append(raw.Postings, RawPosting{
			Identifier: string(k[:i]), Name: name, Rights: p.Rights.String(), Weigh: p.Weigh,
		})
		return nil
	})
	if err != nil {
		return raw, err
	}
	s := &state{r: r}
	resNames, err := names(bucketReservation)
	if err != nil {
		return raw, err
	}
	for _, n := range resNames {
		res, err := s.storedReservation(n)
		if err != nil {
			return raw, err
		}
		raw.Reservations = append(raw.Reservations, *res)
	}
	tombNames, err := names(bucketTombstone)
	if err != nil {
		return raw, err
	}
	for _, n := range tombNames {
		t, err := s.tombstone(n)
		if err != nil {
			return raw, err
		}
		raw.Tombstones = append(raw.Tombstones, *t)
	}
	err = eachRow(r, bucketDigest, nil, func(k, b []byte) error {
		if len(k) != 4 {
			return nil
		}
		d, err := decodeDigest(b)
		raw.Totals[directory.ServerID(binary.BigEndian.Uint32(k))] = RawDigest{
			Count: d.Count, Names: d.Names.Bytes(), Facts: d.Facts.Bytes(), Counted: d.Counted,
		}
		return err
	})
	if err != nil {
		return raw, err
	}
	err = eachRow(r, bucketSubscription, nil, func(k, _ []byte) error {
		i := bytes.IndexByte(k, 0)
		name, err := directory.NameFromKey(k[i+1:])
		raw.Subs = append(raw.Subs, fmt.Sprintf("%s %s", k[:i], name))
		return err
	})
	if err != nil {
		return raw, err
	}
	err = eachRow(r, bucketLog, nil, func(k, b []byte) error {
		c, err := decodeChange(b)
		c.Revision, c.Ordinal, _ = splitLogKey(k)
		raw.Log = append(raw.Log, c)
		return err
	})
	if err != nil {
		return raw, err
	}
	it = r.Iterate(bucketSweep)
	for k, _ := it.Seek(nil); k != nil; k, _ = it.Next() {
		raw.Sweeps++
	}
	return raw, nil
}
