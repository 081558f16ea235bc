package client

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"iter"

	"github.com/rookery-mail/rookery/directory"
	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
)

// Totals are the sums of all that a server states: who has the same sums holds the
// same list.
type Totals struct {
	// Answer's Token can be the Resync.AsOf of a list that is taken from now on.
	Answer
	// Key is the digests' key of the cluster; directory.NewHasher takes it.
	Key []byte
	// Known: there is a backend of that name. If not, it states nothing.
	Known     bool
	Admitted  bool
	Confirmed bool // its list is known whole in this incarnation
	Held      bool // the withdrawal guard holds something of it
	// Count is how many facts are summed, Facts and Names the sums of their hashes and
	// of their names'. A withdrawal that the guard holds is in none.
	Count        uint64
	Facts, Names directory.Sum
	// AsOf is the revision that the token asked about stands for; 0 without one.
	AsOf directory.Revision
}

// Totals returns the sums of what server states. asOf is a token that was read before
// a list was taken, nil for none: the answer sees at least what it saw.
//
// Errors: directory.ErrRole (a backend asks about itself alone); ErrInvalidToken (asOf
// is of another life of the cluster too); ErrUnavailable.
func (s *Session) Totals(ctx context.Context, server directory.BackendName, asOf []byte, opts ...ReadOption) (Totals, error) {
	r := s.read(opts)
	m, a, err := ask(ctx, s, r, func(ctx context.Context, n *node, c *apiv1.Consistency) (*apiv1.TotalsResponse, error) {
		return n.resync.Totals(ctx, &apiv1.TotalsRequest{Consistency: c, Server: string(server), AsOf: asOf})
	})
	if err != nil {
		return Totals{}, err
	}
	t, err := totalsOf(m.GetTotals(), m.GetAsOfRevision())
	t.Answer = a
	return t, err
}

func totalsOf(m *apiv1.ServerTotals, asOf uint64) (Totals, error) {
	t := Totals{
		Key: m.GetDigestKey(), Known: m.GetKnown(), Admitted: m.GetAdmitted(), Confirmed: m.GetConfirmed(), Held: m.GetHeld(),
		Count: m.GetCount(), AsOf: directory.Revision(asOf),
	}
	if len(t.Key) != directory.DigestKeySize {
		return t, fmt.Errorf("%w: a digest key of %d octets", ErrProtocol, len(t.Key))
	}
	if !t.Known {
		return t, nil
	}
	if len(m.GetFacts()) != 16 || len(m.GetNames()) != 16 {
		return t, fmt.Errorf("%w: sums of %d and %d octets", ErrProtocol, len(m.GetFacts()), len(m.GetNames()))
	}
	t.Facts, t.Names = directory.SumFromBytes([16]byte(m.GetFacts())), directory.SumFromBytes([16]byte(m.GetNames()))
	return t, nil
}

// ownSums are a backend's list as the directory sums it.
type ownSums struct {
	hash   *directory.Hasher
	fields directory.Fields // that some mailbox of the list states
	count  uint64
	facts  directory.Sum
	bucket [directory.DigestBuckets]uint64
	filled [directory.DigestBuckets]uint32 // how many names
	parts  map[uint16]*[directory.DigestParts]uint64
	at     rooted
}

// A bucket with far more names than others, because they are below one first level that
// is no user's, is compared in parts: those are 2 KiB of sums.
const (
	manyNames   = 256
	manyTimes   = 4 // as many as an average bucket has
	manyBuckets = 512
)

// sumList sums a list.
func sumList(ctx context.Context, key []byte, list iter.Seq2[Own, error]) (*ownSums, error) {
	o := &ownSums{hash: directory.NewHasher(key)}
	err := each(ctx, list, func(own *Own) error {
		f := directory.Fact{}.Merge(own.Statement)
		hash := o.hash.Fact(own.Mailbox, &f)
		o.fields |= own.Statement.Fields()
		o.count++
		o.facts = o.facts.Add(hash)
		bucket := o.at.bucket(o.hash, own.Mailbox)
		o.bucket[bucket] += hash.Lo
		o.filled[bucket]++
		return nil
	})
	return o, err
}

// sumParts goes over the list once more, if there are buckets to compare in parts.
func (o *ownSums) sumParts(ctx context.Context, list iter.Seq2[Own, error]) error {
	o.parts = nil
	many := max(manyNames, manyTimes*o.count/directory.DigestBuckets)
	for bucket, n := range o.filled {
		if uint64(n) > many && len(o.parts) < manyBuckets {
			if o.parts == nil {
				o.parts = make(map[uint16]*[directory.DigestParts]uint64)
			}
			o.parts[uint16(bucket)] = new([directory.DigestParts]uint64)
		}
	}
	if o.parts == nil {
		return nil
	}
	return each(ctx, list, func(own *Own) error {
		if parts := o.parts[o.at.bucket(o.hash, own.Mailbox)]; parts != nil {
			f := directory.Fact{}.Merge(own.Statement)
			parts[o.hash.Part(own.Mailbox)] += o.hash.Fact(own.Mailbox, &f).Lo
		}
		return nil
	})
}

// each goes over a list.
func each(ctx context.Context, list iter.Seq2[Own, error], f func(*Own) error) error {
	n := 0
	for own, err := range list {
		if n++; err == nil && n%1024 == 0 {
			err = ctx.Err()
		}
		if err == nil {
			err = f(&own)
		}
		if err != nil {
			return err
		}
	}
	return ctx.Err()
}

// equal reports whether the directory has the same list, over all fields. A fact's hash
// covers its name.
func (o *ownSums) equal(t *Totals) bool { return o.count == t.Count && o.facts == t.Facts }

// rooted remembers the bucket of the root that a walk in name order is at.
type rooted struct {
	root   directory.MailboxName
	number uint16
}

func (r *rooted) bucket(h *directory.Hasher, name directory.MailboxName) uint16 {
	if root := name.Root(); root != r.root {
		r.root, r.number = root, h.Bucket(root)
	}
	return r.number
}

// comparison is what the directory states where its sums differ from the list's.
type comparison struct {
	Totals
	// where the sums differ
	differ [directory.DigestBuckets]bool
	parts  map[uint16]*[directory.DigestParts]bool
	rows   map[directory.MailboxName]*comparedRow
	gone   map[directory.MailboxName]bool
}

// comparedRow is a fact there.
type comparedRow struct {
	hash  uint64
	state directory.FactState
	newer bool
	seen  int // the pass in which the list had it
}

// compare asks for what differs, over the fields that the list knows.
func (s *Session) compare(ctx context.Context, server directory.BackendName, asOf []byte, o *ownSums) (*comparison, error) {
	req := &apiv1.CompareRequest{Server: string(server), AsOf: asOf}
	if o.fields != directory.AllFields && o.count > 0 {
		for field := range 6 {
			if o.fields&(1<<field) != 0 {
				req.Fields = append(req.Fields, apiv1.StatedField(field+1))
			}
		}
	}
	for bucket, sum := range o.bucket {
		if o.filled[bucket] > 0 {
			req.Buckets = append(req.Buckets, uint32(bucket))
			req.Sums = binary.BigEndian.AppendUint64(req.Sums, sum)
		}
	}
	for bucket, parts := range o.parts {
		p := &apiv1.CompareParts{Bucket: uint32(bucket)}
		for _, sum := range parts {
			p.Sums = binary.BigEndian.AppendUint64(p.Sums, sum)
		}
		req.Parts = append(req.Parts, p)
	}
	r := s.read(nil)
	var c *comparison
	err := s.c.try(ctx, streaming, func(ctx context.Context, n *node) error {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		req.Consistency = s.refresh(r)
		stream, err := n.resync.Compare(ctx, req)
		if err == nil {
			c, err = s.compared(stream)
		}
		if err != nil {
			return s.reconsider(r, req.GetConsistency().GetToken(), FromStatus(err))
		}
		return nil
	})
	return c, err
}

// compared reads one answer.
func (s *Session) compared(stream interface {
	Recv() (*apiv1.CompareResponse, error)
}) (*comparison, error) {
	c := &comparison{rows: make(map[directory.MailboxName]*comparedRow), gone: make(map[directory.MailboxName]bool)}
	var rows uint64
	for first := true; ; first = false {
		m, err := stream.Recv()
		if err == io.EOF {
			return nil, &Error{Message: fmt.Sprintf("client: the comparison broke off after %d rows", rows), err: ErrUnavailable}
		}
		if err != nil {
			return nil, err
		}
		if first {
			if c.Answer, err = s.take(m.GetHeader()); err != nil {
				return nil, err
			}
			if err := c.takeDiffering(m); err != nil {
				return nil, err
			}
		}
		for _, row := range m.GetRows() {
			rows++
			name := directory.MailboxName(row.GetMailbox())
			if row.GetGone() {
				c.gone[name] = true
				continue
			}
			state := directory.FactState(row.GetState())
			if state == 0 {
				state = directory.Active
			}
			c.rows[name] = &comparedRow{hash: row.GetHash(), state: state, newer: row.GetNewer()}
		}
		if end := m.GetSummary(); end != nil {
			if end.GetRows() != rows {
				return nil, fmt.Errorf("%w: %d rows of a comparison of %d", ErrProtocol, rows, end.GetRows())
			}
			a := c.Answer
			if c.Totals, err = totalsOf(end.GetTotals(), end.GetAsOfRevision()); err != nil {
				return nil, err
			}
			c.Answer = a
			// Reading to the end lets the stream go without canceling it.
			if _, err := stream.Recv(); err != nil && err != io.EOF {
				return nil, err
			}
			return c, nil
		}
	}
}

func (c *comparison) takeDiffering(m *apiv1.CompareResponse) error {
	for _, bucket := range m.GetBuckets() {
		if bucket >= directory.DigestBuckets {
			return fmt.Errorf("%w: bucket %d", ErrProtocol, bucket)
		}
		c.differ[bucket] = true
	}
	for _, p := range m.GetParts() {
		parts := new([directory.DigestParts]bool)
		for _, part := range p.GetParts() {
			if part >= directory.DigestParts {
				return fmt.Errorf("%w: part %d of a bucket", ErrProtocol, part)
			}
			parts[part] = true
		}
		if c.parts == nil {
			c.parts = make(map[uint16]*[directory.DigestParts]bool)
		}
		c.parts[uint16(p.GetBucket())] = parts
	}
	return nil
}

// differs reports whether name is where the sums differ.
func (c *comparison) differs(o *ownSums, name directory.MailboxName) bool {
	bucket := o.at.bucket(o.hash, name)
	if !c.differ[bucket] {
		return false
	}
	parts := c.parts[bucket]
	return parts == nil || parts[o.hash.Part(name)]
}
