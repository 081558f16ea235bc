package peer

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"

	peerv1 "github.com/rookery-mail/rookery/proto/peer/v1"
	"github.com/rookery-mail/rookery/raftstore"
)

// callPatience is how long a forwarded command waits for a connection.
const callPatience = 200 * time.Millisecond

// Propose has another node put a command into the log, and returns the machine's
// result with an index by which that node has applied it.
//
// Errors are those of raftstore.Store.Propose there. ErrNoLeader also promises
// that nothing was sent; after ErrUnknown it was, and no answer came.
func (t *Transport) Propose(ctx context.Context, node uint64, command []byte) (result []byte, index uint64, err error) {
	defer func() {
		outcome := "ok"
		switch {
		case err == nil:
		case errors.Is(err, raftstore.ErrUnknown), errors.Is(err, raftstore.ErrClosed), errors.Is(err, raftstore.ErrStopped):
			outcome = "unknown"
		default:
			outcome = "refused"
		}
		t.metrics.forwarded.WithLabelValues(outcome).Inc()
	}()
	a, l := t.store.Load(), t.link(node)
	if a == nil || l == nil {
		return nil, 0, fmt.Errorf("%w: node %x is not known here", raftstore.ErrNoLeader, node)
	}
	conn, err := l.call(ctx)
	if err != nil {
		return nil, 0, err
	}
	sent := new(atomic.Bool)
	resp, err := peerv1.NewPeerServiceClient(conn).Propose(context.WithValue(ctx, sentKey{}, sent), &peerv1.ProposeRequest{Hello: t.hello(a.id, node), Command: command})
	if err != nil && !sent.Load() {
		return nil, 0, fmt.Errorf("%w: node %x is not reached: %w", raftstore.ErrNoLeader, node, err)
	}
	if status.Code(err) == codes.InvalidArgument {
		// It was looked at, and not done: another release is to be asked.
		return nil, 0, fmt.Errorf("%w: node %x: %w", raftstore.ErrNoLeader, node, err)
	}
	if err != nil {
		// It may have got there.
		return nil, 0, fmt.Errorf("%w: forwarded to node %x: %w", raftstore.ErrUnknown, node, err)
	}
	if resp.GetWelcome() != nil {
		return nil, 0, fmt.Errorf("%w: %w", raftstore.ErrNoLeader, l.judge(a.id, resp.GetWelcome()))
	}
	if err := outcomeError(resp); err != nil {
		return nil, 0, err
	}
	return resp.GetResult(), resp.GetIndex(), nil
}

// sentKey is where a call's context has a flag that is set when the call goes out.
type sentKey struct{}

// sentMark sets that flag.
type sentMark struct{}

func (sentMark) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }

func (sentMark) HandleRPC(ctx context.Context, s stats.RPCStats) {
	if _, ok := s.(*stats.OutHeader); ok {
		if sent, ok := ctx.Value(sentKey{}).(*atomic.Bool); ok {
			sent.Store(true)
		}
	}
}

func (sentMark) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }
func (sentMark) HandleConn(context.Context, stats.ConnStats)                       {}

// call returns a connection that is up.
func (l *link) call(ctx context.Context) (*grpc.ClientConn, error) {
	l.mu.Lock()
	if l.calls == nil && l.ctx.Err() == nil {
		conn, _, err := l.t.dial(l.name, l.address)
		if err != nil {
			l.mu.Unlock()
			return nil, fmt.Errorf("%w: %w", raftstore.ErrNoLeader, err)
		}
		l.calls = conn
	}
	conn := l.calls
	l.mu.Unlock()
	if conn == nil {
		return nil, fmt.Errorf("%w: node %x is no member any more", raftstore.ErrNoLeader, l.id)
	}
	ctx, cancel := context.WithTimeout(ctx, callPatience)
	defer cancel()
	for {
		s := conn.GetState()
		switch s {
		case connectivity.Ready:
			return conn, nil
		case connectivity.Idle:
			conn.Connect()
		case connectivity.TransientFailure, connectivity.Shutdown:
			return nil, fmt.Errorf("%w: node %x is not reached", raftstore.ErrNoLeader, l.id)
		}
		if !conn.WaitForStateChange(ctx, s) {
			return nil, fmt.Errorf("%w: node %x is not reached in time", raftstore.ErrNoLeader, l.id)
		}
	}
}

func (t *Transport) check(command []byte) error {
	if t.cfg.Check == nil {
		return nil
	}
	return t.cfg.Check(command)
}

// Propose puts a peer's command into the log.
func (s *service) Propose(ctx context.Context, req *peerv1.ProposeRequest) (*peerv1.ProposeResponse, error) {
	if err := s.t.authorize(ctx, req.GetHello().GetName()); err != nil {
		return nil, err
	}
	a, w := s.t.welcome(req.GetHello())
	if a == nil {
		return &peerv1.ProposeResponse{Welcome: w}, nil
	}
	if err := s.t.check(req.GetCommand()); errors.Is(err, raftstore.ErrNotInForce) {
		return outcomeOf(err), nil
	} else if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "the command is not one that this node could apply: %v", err)
	}
	result, err := a.store.Propose(ctx, req.GetCommand())
	if err != nil {
		return outcomeOf(err), nil
	}
	resp := &peerv1.ProposeResponse{Outcome: peerv1.ProposeOutcome_PROPOSE_OUTCOME_DONE, Result: result}
	// The view shows the command, so the index is not below the command's.
	if v, err := a.store.Read(ctx, raftstore.Local); err == nil {
		resp.Index = v.Applied()
		v.Release()
	}
	return resp, nil
}

// outcomes are raftstore's sentinels as they go over the wire; the first that
// fits holds.
var outcomes = []struct {
	err     error
	outcome peerv1.ProposeOutcome
}{
	{raftstore.ErrUnknown, peerv1.ProposeOutcome_PROPOSE_OUTCOME_UNKNOWN},
	{raftstore.ErrNoLeader, peerv1.ProposeOutcome_PROPOSE_OUTCOME_NO_LEADER},
	{raftstore.ErrOverloaded, peerv1.ProposeOutcome_PROPOSE_OUTCOME_OVERLOADED},
	{raftstore.ErrTooLarge, peerv1.ProposeOutcome_PROPOSE_OUTCOME_TOO_LARGE},
	{raftstore.ErrNotInForce, peerv1.ProposeOutcome_PROPOSE_OUTCOME_NOT_IN_FORCE},
	{raftstore.ErrClosed, peerv1.ProposeOutcome_PROPOSE_OUTCOME_CLOSED},
	{raftstore.ErrStopped, peerv1.ProposeOutcome_PROPOSE_OUTCOME_STOPPED},
}

func outcomeOf(err error) *peerv1.ProposeResponse {
	resp := &peerv1.ProposeResponse{Outcome: peerv1.ProposeOutcome_PROPOSE_OUTCOME_UNKNOWN, Text: err.Error()}
	if other, ok := errors.AsType[*raftstore.NotLeaderError](err); ok {
		resp.Outcome, resp.Leader = peerv1.ProposeOutcome_PROPOSE_OUTCOME_NOT_LEADER, other.Leader
		return resp
	}
	for _, o := range outcomes {
		if errors.Is(err, o.err) {
			resp.Outcome = o.outcome
			break
		}
	}
	return resp
}

func outcomeError(resp *peerv1.ProposeResponse) error {
	switch resp.GetOutcome() {
	case peerv1.ProposeOutcome_PROPOSE_OUTCOME_DONE:
		return nil
	case peerv1.ProposeOutcome_PROPOSE_OUTCOME_NOT_LEADER:
		if resp.GetLeader() == 0 {
			return raftstore.ErrNoLeader
		}
		return &raftstore.NotLeaderError{Leader: resp.GetLeader()}
	}
	for _, o := range outcomes {
		if o.outcome == resp.GetOutcome() {
			return fmt.Errorf("%w: at the leader: %s", o.err, resp.GetText())
		}
	}
	// An outcome of a later release: nothing is known of it.
	return fmt.Errorf("%w: outcome %d", raftstore.ErrUnknown, resp.GetOutcome())
}
