package server

import (
	"context"
	"errors"
	"fmt"

	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/directory/machine"
	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
	"github.com/rookery-mail/rookery/raftstore"
)

// maxClientID bounds RequestId.client_id, in octets.
const maxClientID = 64

// write proposes one operation and says what it came to; a rejection is an error.
func (s *Server) write(ctx context.Context, id *apiv1.RequestId, op machine.Op) (*apiv1.ResponseHeader, *apiv1.WriteResult, error) {
	r, err := s.propose(ctx, id, op)
	if err != nil {
		return nil, nil, err
	}
	header, err := s.written(r)
	if err != nil {
		return nil, nil, err
	}
	return header, resultTo(r), nil
}

// begun refuses writes before the first command of the cluster's life is applied
// here: it has to be the first, and this node is about to see it. And it refuses a
// write of who has seen a later life than this node lives, for the node is of those that
// were given up, and of who has seen another cluster in this life.
func (s *Server) begun(request *apiv1.RequestId) error {
	var known token
	if t := request.GetToken(); len(t) > 0 {
		var err error
		if known, err = decodeToken(t); err != nil {
			return err
		}
	}
	id := s.id.Load()
	if id == nil {
		v, err := s.store.Local()
		if err != nil {
			return err
		}
		defer v.Release()
		if id, err = s.identity(v); errors.Is(err, errBehind) {
			return fmt.Errorf("%w: %w", raftstore.ErrNoLeader, err)
		} else if err != nil {
			return err
		}
	}
	seen := max(known.incarnation, directory.Incarnation(request.GetIncarnation()))
	switch {
	case seen > id.incarnation:
		return withMetadata(fmt.Errorf("%w: the caller has seen incarnation %d of the cluster, this node is of %d", errWrongIncarnation, seen, id.incarnation),
			"incarnation", number(uint64(id.incarnation)), "seen", number(uint64(seen)))
	case known.incarnation == id.incarnation:
		return s.ours(known, id)
	}
	return nil
}

// propose puts an operation through the log.
func (s *Server) propose(ctx context.Context, id *apiv1.RequestId, op machine.Op) (*machine.Result, error) {
	switch n := len(id.GetClientId()); {
	case n > maxClientID:
		return nil, fmt.Errorf("%w: a client id of %d octets, at most %d", directory.ErrInvalid, n, maxClientID)
	case n > 0 && id.GetSequence() == 0:
		return nil, fmt.Errorf("%w: a client id without a sequence", directory.ErrInvalid)
	case n == 0 && id.GetSequence() != 0:
		return nil, fmt.Errorf("%w: a sequence without a client id", directory.ErrInvalid)
	}
	ctx, cancel := s.bound(ctx)
	defer cancel()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := s.begun(id); err != nil {
		return nil, err
	}
	if err := s.inForce(ctx, op); err != nil {
		return nil, err
	}
	answer, err := s.store.Propose(ctx, machine.EncodeCommand(machine.Command{
		Client:   id.GetClientId(),
		Sequence: id.GetSequence(),
		By:       callerOf(ctx).String(),
		Op:       op,
	}))
	switch {
	case err == nil:
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled), errors.Is(err, raftstore.ErrClosed), errors.Is(err, raftstore.ErrStopped):
		// It may be in the log, or get there yet.
		return nil, fmt.Errorf("%w: %w", errUndecided, err)
	default:
		return nil, err
	}
	r, err := machine.DecodeResult(answer)
	if err != nil {
		return nil, err
	}
	if r.Refused != nil {
		return nil, refusal(&r)
	}
	return &r, nil
}

// written is the header of a write's answer.
func (s *Server) written(r *machine.Result) (*apiv1.ResponseHeader, error) {
	id := s.id.Load()
	if id == nil {
		v, err := s.store.Local()
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errUndecided, err)
		}
		defer v.Release()
		if id, err = s.identity(v); err != nil {
			return nil, fmt.Errorf("%w: %w", errUndecided, err)
		}
	}
	return s.header(new(apiv1.ResponseHeader), &read{id: id, linearizable: true}, r.Revision), nil
}

func resultTo(r *machine.Result) *apiv1.WriteResult {
	return &apiv1.WriteResult{
		Effect:     apiv1.Effect(r.Effect),
		Count:      r.Count,
		Epoch:      r.Epoch,
		LapsesInMs: uint64(r.Deadline),
	}
}
