package server

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc"

	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/directory/machine"
	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
)

// resyncService is ResyncService of the API.
type resyncService struct {
	apiv1.UnimplementedResyncServiceServer
	s *Server
}

// A comparison reads much and holds its view meanwhile, so a node makes few at once,
// and none for longer than this.
const (
	comparisons   = 2
	compareAtMost = time.Minute
)

func (y *resyncService) Totals(ctx context.Context, req *apiv1.TotalsRequest) (*apiv1.TotalsResponse, error) {
	server, err := resyncOf(callerOf(ctx), req.GetServer())
	if err != nil {
		return nil, err
	}
	r, since, err := y.s.readAsOf(ctx, req.GetConsistency(), req.GetAsOf())
	if err != nil {
		return nil, err
	}
	defer func() { r.Release() }()
	t, err := y.s.machine.Totals(r, server)
	if err != nil {
		return nil, err
	}
	return &apiv1.TotalsResponse{
		Header:       y.s.header(new(apiv1.ResponseHeader), &r, t.Revision),
		Totals:       totalsTo(&t),
		AsOfRevision: uint64(since),
	}, nil
}

// resyncOf checks whose list it is: a backend compares its own, and is told the
// digests' key for that.
func resyncOf(c Caller, server string) (directory.BackendName, error) {
	name, err := directory.ParseBackend(server)
	if err != nil {
		return "", err
	}
	return name, c.mayState(name)
}

// readAsOf is read for a list that was taken after the token asOf, if there is one:
// the view shows at least what that saw. since is its revision.
func (s *Server) readAsOf(ctx context.Context, c *apiv1.Consistency, asOf []byte) (r read, since directory.Revision, err error) {
	var t token
	if len(asOf) > 0 {
		if t, err = decodeToken(asOf); err != nil {
			return read{}, 0, err
		}
	}
	if r, err = s.read(ctx, c); err != nil || len(asOf) == 0 {
		return r, 0, err
	}
	now, err := s.machine.Revision(r)
	if err == nil {
		err = s.taken(t, r.id)
	}
	if err != nil || now >= t.revision {
		if err != nil {
			r.Release()
		}
		return r, t.revision, err
	}
	r.Release()
	r, err = s.readAtLeast(ctx, t, defaultMaxAge)
	return r, t.revision, err
}

// taken checks that a list which was taken after the token t can be compared here. One
// of another life cannot, and asking again does not help; but if the life is a later
// one, it is this node that was given up.
func (s *Server) taken(t token, id *identity) error {
	err := s.ours(t, id)
	if errors.Is(err, errWrongIncarnation) && !(t.cluster == id.cluster && t.incarnation > id.incarnation) {
		return fmt.Errorf("%w: it was read in incarnation %d of cluster %s, this is %d of %s: the list is from before a restore, or from another cluster", errInvalidToken, t.incarnation, t.cluster, id.incarnation, id.cluster)
	}
	return err
}

func totalsTo(t *machine.Totals) *apiv1.ServerTotals {
	out := &apiv1.ServerTotals{DigestKey: t.Key, Known: t.Known, Admitted: t.Admitted, Confirmed: t.Confirmed, Held: t.Held, Count: t.Count}
	if facts, names := t.Facts.Bytes(), t.Names.Bytes(); t.Known {
		out.Facts, out.Names = facts[:], names[:]
	}
	return out
}

func (y *resyncService) Compare(req *apiv1.CompareRequest, stream grpc.ServerStreamingServer[apiv1.CompareResponse]) error {
	s := y.s
	ctx, cancel := context.WithTimeout(stream.Context(), compareAtMost)
	defer cancel()
	q, err := compareQuery(callerOf(ctx), req)
	if err != nil {
		return err
	}
	q.Interrupt = ctx.Err
	select {
	case s.comparing <- struct{}{}:
		defer func() { <-s.comparing }()
	case <-ctx.Done():
		return ctx.Err()
	}
	r, since, err := s.readAsOf(ctx, req.GetConsistency(), req.GetAsOf())
	if err != nil {
		return err
	}
	defer func() { r.Release() }()
	q.Since = since
	header, err := s.headerOf(&r)
	if err != nil {
		return err
	}
	out := &compareBuffer{stream: stream}
	out.message.Header = header
	t, err := s.machine.Compare(r, q, out.found, out.add)
	if err != nil {
		return err
	}
	out.message.Summary = &apiv1.CompareSummary{Rows: out.sent + uint64(len(out.message.Rows)), Totals: totalsTo(&t), AsOfRevision: uint64(since)}
	return out.send()
}

// compareBuffer gathers the rows of one message.
type compareBuffer struct {
	stream  grpc.ServerStreamingServer[apiv1.CompareResponse]
	message apiv1.CompareResponse
	octets  int
	sent    uint64
}

// found takes where the sums differ.
func (b *compareBuffer) found(d machine.Differing) {
	b.message.Buckets = make([]uint32, len(d.Buckets))
	for i, bucket := range d.Buckets {
		b.message.Buckets[i] = uint32(bucket)
		list, stated := d.Parts[bucket]
		if !stated {
			continue
		}
		parts := &apiv1.DifferingParts{Bucket: uint32(bucket), Parts: make([]uint32, len(list))}
		for i, part := range list {
			parts.Parts[i] = uint32(part)
		}
		b.message.Parts = append(b.message.Parts, parts)
	}
}

func (b *compareBuffer) add(row *machine.CompareRow) error {
	out := &apiv1.CompareRow{Mailbox: string(row.Mailbox), Hash: row.Hash, Newer: row.Newer, Gone: row.Gone}
	if row.State != directory.Active {
		out.State = apiv1.FactState(row.State)
	}
	b.message.Rows = append(b.message.Rows, out)
	if b.octets += len(row.Mailbox) + 16; b.octets < octetsPerMessage {
		return nil
	}
	return b.send()
}

func (b *compareBuffer) send() error {
	if err := b.stream.Send(&b.message); err != nil {
		return err
	}
	b.sent += uint64(len(b.message.Rows))
	b.message.Header, b.message.Buckets, b.message.Parts, b.message.Rows, b.octets = nil, nil, nil, nil, 0
	return nil
}

// sumSize is the length of one sum in a list of them.
const sumSize = 8

// maxParts is how many buckets a query may state in parts: what fits a request.
const maxParts = 1024

// compareQuery is the machine's form of a comparison, but for Since.
func compareQuery(c Caller, req *apiv1.CompareRequest) (machine.CompareQuery, error) {
	q := machine.CompareQuery{Fields: directory.AllFields, Sums: new([directory.DigestBuckets]uint64)}
	var err error
	if q.Server, err = resyncOf(c, req.GetServer()); err != nil {
		return q, err
	}
	if len(req.GetFields()) > 0 {
		q.Fields = 0
		for _, f := range req.GetFields() {
			if err := known(f, apiv1.StatedField_name, false); err != nil {
				return q, err
			}
			q.Fields |= 1 << (f - 1)
		}
	}
	sums, buckets := req.GetSums(), req.GetBuckets()
	if len(sums) != len(buckets)*sumSize {
		return q, fmt.Errorf("%w: %d octets of sums for %d buckets", directory.ErrInvalid, len(sums), len(buckets))
	}
	for i, bucket := range buckets {
		if bucket >= directory.DigestBuckets || i > 0 && bucket <= buckets[i-1] {
			return q, fmt.Errorf("%w: bucket %d: they are below %d and ascend", directory.ErrInvalid, bucket, directory.DigestBuckets)
		}
		q.Sums[bucket] = binary.BigEndian.Uint64(sums[i*sumSize:])
	}
	if n := len(req.GetParts()); n > maxParts {
		return q, fmt.Errorf("%w: %d buckets in parts, at most %d", directory.ErrTooLarge, n, maxParts)
	}
	for _, p := range req.GetParts() {
		switch {
		case p.GetBucket() >= directory.DigestBuckets:
			return q, fmt.Errorf("%w: parts of bucket %d", directory.ErrInvalid, p.GetBucket())
		case q.Parts[uint16(p.GetBucket())] != nil:
			return q, fmt.Errorf("%w: parts of bucket %d twice", directory.ErrInvalid, p.GetBucket())
		case len(p.GetSums()) != directory.DigestParts*sumSize:
			return q, fmt.Errorf("%w: %d octets of parts", directory.ErrInvalid, len(p.GetSums()))
		}
		if q.Parts == nil {
			q.Parts = make(map[uint16]*[directory.DigestParts]uint64)
		}
		parts := new([directory.DigestParts]uint64)
		for i := range parts {
			parts[i] = binary.BigEndian.Uint64(p.GetSums()[i*sumSize:])
		}
		q.Parts[uint16(p.GetBucket())] = parts
	}
	return q, nil
}
