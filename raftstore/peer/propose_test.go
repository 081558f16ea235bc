package peer

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/rookery-mail/rookery/raftstore"
)

// TestProposeErrors: what the leader says of a command arrives as it was said.
func TestProposeErrors(t *testing.T) {
	a, _, _, sb := pair(t)
	var answer error
	sb.propose = func(_ context.Context, command []byte) ([]byte, error) {
		if answer != nil {
			return nil, answer
		}
		return append([]byte("done "), command...), nil
	}
	result, _, err := a.Propose(t.Context(), 2, []byte("it"))
	if string(result) != "done it" || err != nil {
		t.Errorf("got %q, %v", result, err)
	}
	for _, want := range []error{
		raftstore.ErrNoLeader, raftstore.ErrOverloaded, raftstore.ErrTooLarge, raftstore.ErrUnknown, raftstore.ErrClosed, raftstore.ErrStopped,
		raftstore.ErrNotInForce,
	} {
		answer = fmt.Errorf("with more text: %w", want)
		if _, _, err := a.Propose(t.Context(), 2, []byte("it")); !errors.Is(err, want) {
			t.Errorf("got %v, want %v", err, want)
		}
	}
	answer = &raftstore.NotLeaderError{Leader: 5}
	_, _, err = a.Propose(t.Context(), 2, []byte("it"))
	if e, ok := errors.AsType[*raftstore.NotLeaderError](err); !ok || e.Leader != 5 {
		t.Errorf("got %v, want node 5 named", err)
	}
	answer = context.DeadlineExceeded // it may be in the log there
	if _, _, err := a.Propose(t.Context(), 2, []byte("it")); !errors.Is(err, raftstore.ErrUnknown) {
		t.Errorf("a deadline at the leader: got %v, want ErrUnknown", err)
	}
}

// TestProposeUnknownCommand: what the leader could not apply is not put into the
// log, where it would stop every node; and that is a promise.
func TestProposeUnknownCommand(t *testing.T) {
	a, b, _, sb := pair(t)
	b.cfg.Check = func([]byte) error { return errors.New("of a later release") }
	sb.propose = func(context.Context, []byte) ([]byte, error) {
		t.Error("it was proposed")
		return nil, nil
	}
	if _, _, err := a.Propose(t.Context(), 2, []byte("it")); !errors.Is(err, raftstore.ErrNoLeader) {
		t.Errorf("got %v, want ErrNoLeader", err)
	}
}

// TestProposeNotInForce: a command of a later cluster version than is in force is
// not put into the log either, and who forwarded it is told why.
func TestProposeNotInForce(t *testing.T) {
	a, b, _, sb := pair(t)
	b.cfg.Check = func([]byte) error { return fmt.Errorf("%w: finalize first", raftstore.ErrNotInForce) }
	sb.propose = func(context.Context, []byte) ([]byte, error) {
		t.Error("it was proposed")
		return nil, nil
	}
	_, _, err := a.Propose(t.Context(), 2, []byte("it"))
	if !errors.Is(err, raftstore.ErrNotInForce) || !strings.Contains(err.Error(), "finalize first") {
		t.Errorf("got %v, want ErrNotInForce with the leader's words", err)
	}
}

// TestProposeBroken: what was sent and not answered is unknown; what was not
// sent is promised not to be done.
func TestProposeBroken(t *testing.T) {
	a, b, _, sb := pair(t)
	arrived := make(chan struct{})
	sb.propose = func(ctx context.Context, _ []byte) ([]byte, error) {
		close(arrived)
		<-ctx.Done()
		return nil, ctx.Err()
	}
	errs := make(chan error, 1)
	go func() {
		_, _, err := a.Propose(context.Background(), 2, []byte("it"))
		errs <- err
	}()
	<-arrived
	b.Close()
	if err := <-errs; !errors.Is(err, raftstore.ErrUnknown) {
		t.Errorf("broken off: got %v, want ErrUnknown", err)
	}
	if _, _, err := a.Propose(t.Context(), 2, []byte("it")); !errors.Is(err, raftstore.ErrNoLeader) {
		t.Errorf("to a node that is gone: got %v, want ErrNoLeader", err)
	}
	if _, _, err := a.Propose(t.Context(), 99, []byte("it")); !errors.Is(err, raftstore.ErrNoLeader) {
		t.Errorf("to nobody: got %v, want ErrNoLeader", err)
	}
}

// TestProposeToStranger: nothing was done.
func TestProposeToStranger(t *testing.T) {
	a, b, _, _ := pair(t)
	restored := newFake(1, member(1, a), member(2, b))
	restored.id.Incarnation = 2
	a.Attach(restored, nil)
	if _, _, err := a.Propose(t.Context(), 2, []byte("it")); !errors.Is(err, raftstore.ErrNoLeader) {
		t.Errorf("got %v, want ErrNoLeader", err)
	}
}
