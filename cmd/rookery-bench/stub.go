package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
)

// stub asks through the stubs generated from the API, with as little else as can
// be: no repeats, no session, one request object a worker. The echo is asked by
// the same code, so that a ratio of the two tells of the server alone.
type stub struct {
	work  *work
	conns []*grpc.ClientConn
	line  string // begins the client ids of writes
	token []byte // sent with AT_LEAST
}

// newStub returns a stub with that many connections, spread over the endpoints
// and not yet connected.
func newStub(endpoints []string, connections int, w *work, opts ...grpc.DialOption) (*stub, error) {
	s := &stub{work: w, line: rand.Text()}
	opts = append([]grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDisableServiceConfig(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64 << 20)),
	}, opts...)
	for i := range connections {
		conn, err := grpc.NewClient("passthrough:///"+endpoints[i%len(endpoints)], opts...)
		if err != nil {
			return nil, errors.Join(err, s.close())
		}
		s.conns = append(s.conns, conn)
	}
	return s, nil
}

// learnToken makes reads by AT_LEAST see at least what is there now.
func (s *stub) learnToken(ctx context.Context) error {
	m, err := apiv1.NewDirectoryServiceClient(s.conns[0]).Lookup(ctx, &apiv1.LookupRequest{
		Consistency: &apiv1.Consistency{Mode: linearizable},
		Mailbox:     string(s.work.pop.name(0)),
	})
	if err != nil {
		return err
	}
	s.token = m.GetHeader().GetToken()
	return nil
}

func (s *stub) consistency(mode apiv1.ConsistencyMode) *apiv1.Consistency {
	c := &apiv1.Consistency{Mode: mode}
	if mode == atLeast {
		c.Token = s.token
	}
	return c
}

func (s *stub) caller(w workload, worker int) (call, error) {
	api := apiv1.NewDirectoryServiceClient(s.conns[worker%len(s.conns)])
	switch w.op {
	case opLookup:
		return s.lookup(api, w, worker), nil
	case opLookupMany:
		return s.lookupMany(api, w, worker), nil
	case opList:
		return s.list(api, w, worker), nil
	case opAssert:
		return s.assert(api, w, worker), nil
	case opBatch:
		return s.batch(api, w, worker), nil
	}
	return nil, fmt.Errorf("stub: no operation %d", w.op)
}

func (s *stub) lookup(api apiv1.DirectoryServiceClient, w workload, worker int) call {
	chance := s.work.chance(worker)
	req := &apiv1.LookupRequest{Consistency: s.consistency(w.consistency)}
	return func(ctx context.Context) error {
		req.Mailbox = string(s.work.pop.name(s.work.anyMailbox(chance)))
		m, err := api.Lookup(ctx, req)
		if err != nil {
			return err
		}
		return serving(m.GetRoute())
	}
}

func serving(r *apiv1.Route) error {
	if r.GetOutcome() != apiv1.Outcome_OUTCOME_SERVING {
		return fmt.Errorf("%w: a route is %v", errWrong, r.GetOutcome())
	}
	return nil
}

func (s *stub) lookupMany(api apiv1.DirectoryServiceClient, w workload, worker int) call {
	chance := s.work.chance(worker)
	req := &apiv1.LookupManyRequest{Consistency: s.consistency(w.consistency), Mailboxes: make([]string, w.keys)}
	return func(ctx context.Context) error {
		for i := range req.Mailboxes {
			req.Mailboxes[i] = string(s.work.pop.name(s.work.anyMailbox(chance)))
		}
		m, err := api.LookupMany(ctx, req)
		if err != nil {
			return err
		}
		if len(m.GetRoutes()) != w.keys {
			return fmt.Errorf("%w: %d routes for %d names", errWrong, len(m.GetRoutes()), w.keys)
		}
		for _, r := range m.GetRoutes() {
			if err := serving(r); err != nil {
				return err
			}
		}
		return nil
	}
}

func (s *stub) list(api apiv1.DirectoryServiceClient, w workload, worker int) call {
	chance := s.work.chance(worker)
	req := &apiv1.ListRequest{Consistency: s.consistency(w.consistency), Patterns: []string{"*"}}
	return func(ctx context.Context) error {
		req.User = string(s.work.pop.userID(s.work.anyWide(chance)))
		stream, err := api.List(ctx, req)
		if err != nil {
			return err
		}
		rows, whole := 0, false
		for {
			m, err := stream.Recv()
			if err == io.EOF {
				break
			}
			if err != nil {
				return err
			}
			rows += len(m.GetRows())
			whole = m.GetSummary() != nil
		}
		return fifty(rows, whole)
	}
}

func fifty(rows int, whole bool) error {
	if rows != listRows || !whole {
		return fmt.Errorf("%w: a listing of %d rows, want %d; whole: %t", errWrong, rows, listRows, whole)
	}
	return nil
}

func (s *stub) assert(api apiv1.DirectoryServiceClient, w workload, worker int) call {
	chance := s.work.chance(worker)
	req := &apiv1.AssertRequest{RequestId: s.lane(w, worker), Assert: newAssert()}
	return func(ctx context.Context) error {
		req.RequestId.Sequence++
		fill(req.Assert, s.work.changed(s.work.anyMailbox(chance)))
		m, err := api.Assert(ctx, req)
		if err != nil {
			return err
		}
		return changed(m.GetResult())
	}
}

func changed(r *apiv1.WriteResult) error {
	if r.GetEffect() != apiv1.Effect_EFFECT_CHANGED {
		return fmt.Errorf("%w: an assert of another UIDVALIDITY came to %v", errWrong, r.GetEffect())
	}
	return nil
}

func (s *stub) batch(api apiv1.DirectoryServiceClient, w workload, worker int) call {
	var taken []int
	req := &apiv1.BatchRequest{RequestId: s.lane(w, worker)}
	items := make([]*apiv1.BatchItem, w.keys)
	asserts := make([]*apiv1.Assert, w.keys)
	for i := range items {
		asserts[i] = newAssert()
		items[i] = &apiv1.BatchItem{Op: &apiv1.BatchItem_Assert{Assert: asserts[i]}}
	}
	return func(ctx context.Context) error {
		req.RequestId.Sequence++
		taken = s.work.list.take(taken[:0], w.keys)
		for i, m := range taken {
			fill(asserts[i], s.work.changed(m))
		}
		req.Items = items[:len(taken)]
		m, err := api.Batch(ctx, req)
		if err != nil {
			return err
		}
		for _, r := range m.GetResults() {
			if err := changed(r.GetResult()); err != nil {
				return err
			}
		}
		return nil
	}
}

// lane is the line of requests of one worker's writes.
func (s *stub) lane(w workload, worker int) *apiv1.RequestId {
	return &apiv1.RequestId{ClientId: fmt.Sprintf("%s.%s.%d", s.line, w.name, worker)}
}

// newAssert is a statement with room for all that a fact says.
func newAssert() *apiv1.Assert {
	return &apiv1.Assert{
		Acl:         new(string),
		MailboxId:   new(string),
		UidValidity: new(uint32),
		SpecialUse:  new(string),
		Type:        apiv1.MailboxType_MAILBOX_TYPE_EMAIL,
	}
}

// fill makes a the statement of f.
func fill(a *apiv1.Assert, f fact) {
	a.Mailbox = string(f.name)
	a.Server = string(serverName(f.server))
	a.Partition = f.partition
	*a.Acl = f.acl
	*a.MailboxId = f.mailboxID
	*a.UidValidity = f.uidValidity
	*a.SpecialUse = f.specialUse
}

func (s *stub) close() error {
	var errs []error
	for _, conn := range s.conns {
		errs = append(errs, conn.Close())
	}
	return errors.Join(errs...)
}
