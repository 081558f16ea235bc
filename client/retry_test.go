package client_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
)

// refused is a status as servers send it.
func refused(code codes.Code, reason string, pairs ...string) error {
	info := &errdetails.ErrorInfo{Reason: reason, Domain: "rookery.api.v1", Metadata: map[string]string{}}
	for i := 0; i < len(pairs); i += 2 {
		info.Metadata[pairs[i]] = pairs[i+1]
	}
	st, err := status.New(code, reason+" it is").WithDetails(info)
	if err != nil {
		return err
	}
	return st.Err()
}

func (f *fakeNode) refuseReads(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lookup = func(*apiv1.LookupRequest) (*apiv1.LookupResponse, error) { return nil, err }
}

func (f *fakeNode) refuseWrites(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.assert = func(*apiv1.AssertRequest) (*apiv1.AssertResponse, error) { return nil, err }
}

var alice = client.Assert{Mailbox: "user.alice", Server: be1}

// Where one node cannot answer and another can, the call is answered, at once.
func TestElsewhere(t *testing.T) {
	for _, test := range []struct {
		name  string
		err   error
		wait  time.Duration // at most, until the answer
		reads bool
	}{
		{"not the leader", refused(codes.Unavailable, "NOT_LEADER"), 0, false},
		{"behind", refused(codes.Unavailable, "BEHIND"), 0, true},
		{"too stale", refused(codes.Unavailable, "TOO_STALE"), 0, true},
		{"closing", refused(codes.Unavailable, "CLOSED"), 0, true},
		{"undecided", refused(codes.Unavailable, "UNDECIDED"), 0, false},
		{"gone", status.Error(codes.Unavailable, "connection lost"), 0, true},
		{"no leader there", refused(codes.Unavailable, "NO_LEADER"), 10 * time.Millisecond, true},
		{"overloaded", refused(codes.ResourceExhausted, "OVERLOADED"), 10 * time.Millisecond, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				fakes := newFakes(t, "n1", "n2")
				fakes["n1"].refuseReads(test.err)
				fakes["n1"].refuseWrites(test.err)
				c := fakes.client(t, []string{"n1", "n2"})
				begun := time.Now()
				if r, err := c.Assert(t.Context(), alice); err != nil || r.Node != "n2" {
					t.Errorf("Assert: got %+v, %v, want it done by n2", r, err)
				}
				if test.reads {
					if r, err := c.Lookup(t.Context(), "user.alice"); err != nil || r.Node != "n2" {
						t.Errorf("Lookup: got %+v, %v, want it from n2", r, err)
					}
				}
				if took := time.Since(begun); took > 2*test.wait {
					t.Errorf("took %v, want at most %v", took, 2*test.wait)
				}
				reads, writes := fakes["n1"].counts()
				// Both remember who answered.
				for range 3 {
					if _, err := c.Assert(t.Context(), alice); err != nil {
						t.Error(err)
					}
					if test.reads {
						if _, err := c.Lookup(t.Context(), "user.alice"); err != nil {
							t.Error(err)
						}
					}
				}
				if r, w := fakes["n1"].counts(); r != reads || w != writes {
					t.Errorf("n1 was asked again: %d reads and %d writes, before %d and %d", r, w, reads, writes)
				}
			})
		})
	}
}

// A node that is not there costs one attempt.
func TestUnreachable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fakes := newFakes(t, "n2")
		c := fakes.client(t, []string{"n1", "n2"})
		if r, err := c.Lookup(t.Context(), "user.alice"); err != nil || r.Node != "n2" {
			t.Errorf("Lookup: got %+v, %v, want it from n2", r, err)
		}
		if r, err := c.Assert(t.Context(), alice); err != nil || r.Node != "n2" {
			t.Errorf("Assert: got %+v, %v, want it done by n2", r, err)
		}
	})
}

// A node that hangs is left after the attempt's time, if there is another.
func TestHanging(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fakes := newFakes(t, "n1", "n2")
		hang := make(chan struct{})
		defer close(hang)
		n1 := fakes["n1"]
		n1.lookup = func(*apiv1.LookupRequest) (*apiv1.LookupResponse, error) { <-hang; return nil, errors.New("late") }
		c := fakes.client(t, []string{"n1", "n2"}, client.WithAttemptTimeout(time.Second))
		begun := time.Now()
		if r, err := c.Lookup(t.Context(), "user.alice"); err != nil || r.Node != "n2" {
			t.Errorf("Lookup: got %+v, %v, want it from n2", r, err)
		}
		if took := time.Since(begun); took != time.Second {
			t.Errorf("took %v, want the attempt's 1s", took)
		}
	})
}

// A node that hangs costs calls whose time is short half of it, and one call whose
// time is too short for that.
func TestHangingAndShortOfTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fakes := newFakes(t, "n1", "n2")
		hang := make(chan struct{})
		defer close(hang)
		c := fakes.client(t, []string{"n1", "n2"})
		short := func(d time.Duration) (string, string) {
			ctx, cancel := context.WithTimeout(t.Context(), d)
			defer cancel()
			r, err := c.Lookup(ctx, "user.alice")
			w, errW := c.Assert(t.Context(), alice)
			if errW != nil {
				t.Fatalf("Assert: %v", errW)
			}
			if err != nil {
				return "", w.Node
			}
			return r.Node, w.Node
		}
		if r, w := short(time.Second); r != "n1" || w != "n1" {
			t.Fatalf("at first: got answers from %s and %s, want n1", r, w)
		}
		n1 := fakes["n1"]
		n1.lookup = func(*apiv1.LookupRequest) (*apiv1.LookupResponse, error) { <-hang; return nil, errors.New("late") }
		if r, w := short(10 * time.Millisecond); r != "" || w != "n1" {
			t.Errorf("10 ms: got answers from %q and %q, want none and n1, which leads", r, w)
		}
		if r, _ := short(10 * time.Millisecond); r != "n2" {
			t.Errorf("10 ms again: got an answer from %q, want n2", r)
		}
		c = fakes.client(t, []string{"n1", "n2"})
		begun := time.Now()
		if r, _ := short(time.Second); r != "n2" || time.Since(begun) != time.Second/2 {
			t.Errorf("1 s: got an answer from %q after %v, want n2 after half of it", r, time.Since(begun))
		}
		n1.assert = func(*apiv1.AssertRequest) (*apiv1.AssertResponse, error) { <-hang; return nil, nil }
		c = fakes.client(t, []string{"n1", "n2"})
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		if _, err := c.Assert(ctx, alice); !errors.Is(err, client.ErrUndecided) {
			t.Errorf("Assert in 10 ms: got %v, want ErrUndecided", err)
		}
		ctx, cancel = context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		if w, err := c.Assert(ctx, alice); err != nil || w.Node != "n2" {
			t.Errorf("Assert in 10 ms again: got %+v, %v, want it done by n2", w, err)
		}
	})
}

// The leader's address is followed, also to a node that was not given.
func TestLeaderIsFollowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fakes := newFakes(t, "n1", "n2", "n3")
		fakes["n1"].refuseWrites(refused(codes.Unavailable, "NOT_LEADER", "leader", "n3", "leader_address", "n3"))
		c := fakes.client(t, []string{"n1", "n2"})
		for range 2 {
			if r, err := c.Assert(t.Context(), alice); err != nil || r.Node != "n3" {
				t.Errorf("Assert: got %+v, %v, want it done by n3", r, err)
			}
		}
		if _, w := fakes["n1"].counts(); w != 1 {
			t.Errorf("n1 was asked %d times, want once", w)
		}
		if _, w := fakes["n2"].counts(); w != 0 {
			t.Errorf("n2 was asked %d times, want never", w)
		}
		if r, err := c.Lookup(t.Context(), "user.alice"); err != nil || r.Node != "n1" {
			t.Errorf("Lookup: got %+v, %v, want it from n1, which is near", r, err)
		}
		// Two that send each other's way do not keep it going round without a pause.
		fakes["n3"].refuseWrites(refused(codes.Unavailable, "NOT_LEADER", "leader_address", "n1"))
		fakes["n2"].refuseWrites(refused(codes.Unavailable, "NO_LEADER"))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := c.Assert(ctx, alice); !errors.Is(err, client.ErrUnavailable) {
			t.Errorf("Assert without a leader: got %v, want ErrUnavailable", err)
		}
		if _, w := fakes["n1"].counts(); w > 30 {
			t.Errorf("n1 was asked %d times in a second", w)
		}
	})
}

// A write is repeated with its request id until it is decided.
func TestRepeatHasTheSameID(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fakes := newFakes(t, "n1")
		n1 := fakes["n1"]
		answer := n1.assert
		n1.assert = func(req *apiv1.AssertRequest) (*apiv1.AssertResponse, error) {
			if _, w := n1.counts(); w < 4 {
				return nil, []error{status.Error(codes.Unavailable, "lost"), refused(codes.Unavailable, "UNDECIDED"), refused(codes.Unavailable, "NO_LEADER")}[w-1]
			}
			return answer(req)
		}
		c := fakes.client(t, []string{"n1"})
		for range 2 {
			if _, err := c.Assert(t.Context(), alice); err != nil {
				t.Fatalf("Assert: %v", err)
			}
		}
		if len(n1.writes) != 5 {
			t.Fatalf("got %d requests, want 4 for the first write and 1 for the second", len(n1.writes))
		}
		first := n1.writes[0].GetRequestId()
		for i, req := range n1.writes[1:4] {
			if id := req.GetRequestId(); id.GetClientId() != first.GetClientId() || id.GetSequence() != first.GetSequence() {
				t.Errorf("repeat %d: got %v, want %v", i, id, first)
			}
		}
		if id := n1.writes[4].GetRequestId(); id.GetClientId() != first.GetClientId() || id.GetSequence() != first.GetSequence()+1 {
			t.Errorf("the next write: got %v, want the number after %v", id, first)
		}
		if len(first.GetClientId()) > 64 || first.GetSequence() != 1 {
			t.Errorf("request id: got %v", first)
		}
	})
}

// Two writes at once are in two lanes; as many as are allowed, the others wait.
func TestLanes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fakes := newFakes(t, "n1")
		n1 := fakes["n1"]
		answer := n1.assert
		n1.assert = func(req *apiv1.AssertRequest) (*apiv1.AssertResponse, error) {
			time.Sleep(time.Second)
			return answer(req)
		}
		c := fakes.client(t, []string{"n1"}, client.WithLanes(3))
		begun := time.Now()
		var wg sync.WaitGroup
		for range 6 {
			wg.Go(func() {
				if _, err := c.Assert(t.Context(), alice); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if took := time.Since(begun); took != 2*time.Second {
			t.Errorf("6 writes of 1s in 3 lanes took %v, want 2s", took)
		}
		last := make(map[string]uint64)
		for _, req := range n1.writes {
			id := req.GetRequestId()
			if id.GetSequence() != last[id.GetClientId()]+1 {
				t.Errorf("lane %s: %d after %d", id.GetClientId(), id.GetSequence(), last[id.GetClientId()])
			}
			last[id.GetClientId()] = id.GetSequence()
		}
		if len(last) != 3 {
			t.Errorf("got %d lanes, want 3", len(last))
		}
	})
}

// What no other node would answer otherwise is not asked twice.
func TestRefusalsAreNotRepeated(t *testing.T) {
	for _, test := range []struct {
		code   codes.Code
		reason string
		want   error
	}{
		{codes.InvalidArgument, "INVALID_NAME", directory.ErrInvalidName},
		{codes.AlreadyExists, "EXISTS", directory.ErrExists},
		{codes.FailedPrecondition, "READ_ONLY", directory.ErrReadOnly},
		{codes.PermissionDenied, "ROLE", directory.ErrRole},
		{codes.Aborted, "STALE_REQUEST", directory.ErrStaleRequest},
		{codes.Internal, "BROKEN", client.ErrBroken},
		{codes.InvalidArgument, "OF_A_LATER_RELEASE", directory.ErrInvalid},
		{codes.Unimplemented, "UNSUPPORTED", client.ErrUnsupported},
	} {
		t.Run(test.reason, func(t *testing.T) {
			fakes := newFakes(t, "n1", "n2")
			err := refused(test.code, test.reason)
			fakes["n1"].refuseReads(err)
			fakes["n1"].refuseWrites(err)
			c := fakes.client(t, []string{"n1", "n2"})
			if _, err := c.Lookup(t.Context(), "user.alice"); !errors.Is(err, test.want) || errors.Is(err, client.ErrUnavailable) {
				t.Errorf("Lookup: got %v, want %v", err, test.want)
			}
			if _, err := c.Assert(t.Context(), alice); !errors.Is(err, test.want) {
				t.Errorf("Assert: got %v, want %v", err, test.want)
			}
			if r, w := fakes["n1"].counts(); r != 1 || w != 1 {
				t.Errorf("n1 was asked for %d reads and %d writes, want one each", r, w)
			}
			if r, w := fakes["n2"].counts(); r+w != 0 {
				t.Errorf("n2 was asked %d times", r+w)
			}
		})
	}
}

// How a call ends when its time is over.
func TestDeadline(t *testing.T) {
	for _, test := range []struct {
		name      string
		err       error
		undecided bool // of a write
	}{
		{"no leader", refused(codes.Unavailable, "NO_LEADER"), false},
		{"not the leader", refused(codes.Unavailable, "NOT_LEADER"), false},
		{"overloaded", refused(codes.ResourceExhausted, "OVERLOADED"), false},
		{"undecided", refused(codes.Unavailable, "UNDECIDED"), true},
		{"lost", status.Error(codes.Unavailable, "lost"), true},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				fakes := newFakes(t, "n1")
				fakes["n1"].refuseReads(test.err)
				fakes["n1"].refuseWrites(test.err)
				c := fakes.client(t, []string{"n1"}, client.WithTimeout(5*time.Second))
				begun := time.Now()
				_, err := c.Lookup(t.Context(), "user.alice")
				if !errors.Is(err, client.ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("Lookup: got %v, want ErrUnavailable and DeadlineExceeded", err)
				}
				if took := time.Since(begun); took != 5*time.Second {
					t.Errorf("Lookup took %v, want the client's 5s", took)
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				_, err = c.Assert(ctx, alice)
				if !errors.Is(err, client.ErrUnavailable) || errors.Is(err, client.ErrUndecided) != test.undecided {
					t.Errorf("Assert: got %v, want ErrUnavailable; undecided: %v", err, test.undecided)
				}
				// From 10 ms doubling to 500 ms, half by chance.
				if r, _ := fakes["n1"].counts(); r < 12 || r > 30 {
					t.Errorf("%d attempts in 5s, want some 15", r)
				}
			})
		})
	}
}

// A write that never came back may have been done, also if only its deadline says so.
func TestHangingWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fakes := newFakes(t, "n1")
		hang := make(chan struct{})
		defer close(hang)
		fakes["n1"].assert = func(*apiv1.AssertRequest) (*apiv1.AssertResponse, error) { <-hang; return nil, nil }
		c := fakes.client(t, []string{"n1"})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := c.Assert(ctx, alice); !errors.Is(err, client.ErrUndecided) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("deadline: got %v, want ErrUndecided and DeadlineExceeded", err)
		}
		ctx, cancel = context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		if _, err := c.Assert(ctx, alice); !errors.Is(err, client.ErrUndecided) || !errors.Is(err, context.Canceled) {
			t.Errorf("canceled: got %v, want ErrUndecided and Canceled", err)
		}
	})
}

func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fakes := newFakes(t, "n1")
		hang := make(chan struct{})
		defer close(hang)
		fakes["n1"].lookup = func(*apiv1.LookupRequest) (*apiv1.LookupResponse, error) { <-hang; return nil, nil }
		c := fakes.client(t, []string{"n1"})
		done := make(chan error)
		go func() {
			_, err := c.Lookup(context.Background(), "user.alice")
			done <- err
		}()
		synctest.Wait()
		if err := c.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		if err := <-done; !errors.Is(err, client.ErrClosed) {
			t.Errorf("a call under way: got %v, want ErrClosed", err)
		}
		if _, err := c.Lookup(t.Context(), "user.alice"); !errors.Is(err, client.ErrClosed) {
			t.Errorf("a call after it: got %v, want ErrClosed", err)
		}
		if err := c.Close(); err != nil {
			t.Errorf("Close again: %v", err)
		}
	})
}

func TestDial(t *testing.T) {
	for _, test := range []struct {
		name      string
		endpoints []string
		opts      []client.Option
	}{
		{"none", nil, nil},
		{"twice", []string{"n1", "n2", "n1"}, nil},
		{"no lanes", []string{"n1"}, []client.Option{client.WithLanes(0)}},
	} {
		if c, err := client.Dial(test.endpoints, test.opts...); err == nil {
			t.Errorf("%s: got a client, want an error", test.name)
			c.Close()
		}
	}
}

// A listing is whole or an error.
func TestListBreaksOff(t *testing.T) {
	header := &apiv1.ResponseHeader{Token: []byte("t"), Revision: 1, Incarnation: 1, Node: "n1"}
	row := []*apiv1.ListRow{{ClientName: "INBOX"}}
	query := client.ListQuery{Patterns: []string{"*"}}
	for _, test := range []struct {
		name string
		list func(grpc.ServerStreamingServer[apiv1.ListResponse]) error
		want error
	}{
		{"without its end", func(s grpc.ServerStreamingServer[apiv1.ListResponse]) error {
			return s.Send(&apiv1.ListResponse{Header: header, Rows: row})
		}, client.ErrUnavailable},
		{"with an error", func(s grpc.ServerStreamingServer[apiv1.ListResponse]) error {
			return errors.Join(s.Send(&apiv1.ListResponse{Header: header, Rows: row}), refused(codes.Unavailable, "CLOSED"))
		}, client.ErrUnavailable},
		{"with a row missing", func(s grpc.ServerStreamingServer[apiv1.ListResponse]) error {
			return s.Send(&apiv1.ListResponse{Header: header, Rows: row, Summary: &apiv1.ListSummary{Rows: 2}})
		}, client.ErrProtocol},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				fakes := newFakes(t, "n1", "n2")
				fakes["n1"].list = test.list
				fakes["n2"].list = test.list
				c := fakes.client(t, []string{"n1"})
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				if l, err := c.List(ctx, query); !errors.Is(err, test.want) || l.Rows != nil {
					t.Errorf("List: got %+v, %v, want %v and no rows", l, err, test.want)
				}
				rows := 0
				if _, err := c.ListEach(ctx, query, func(client.ListRow) error { rows++; return nil }); err == nil {
					t.Errorf("ListEach: no error after %d rows", rows)
				}
				if test.want == client.ErrProtocol {
					return
				}
				// Another node makes it good, as long as nobody saw a row.
				fakes["n2"].list = func(s grpc.ServerStreamingServer[apiv1.ListResponse]) error {
					return s.Send(&apiv1.ListResponse{Header: header, Rows: row, Summary: &apiv1.ListSummary{Rows: 1, Complete: true}})
				}
				c = fakes.client(t, []string{"n1", "n2"})
				if l, err := c.List(t.Context(), query); err != nil || len(l.Rows) != 1 || !l.Complete {
					t.Errorf("List with another node: got %+v, %v", l, err)
				}
			})
		})
	}
}

// What a node answers says more of why nobody can than a node that is not there,
// in whatever order they are asked; and where nothing was sent nothing is in doubt.
func TestMostTelling(t *testing.T) {
	for _, endpoints := range [][]string{{"n1", "n2", "n3"}, {"n1", "n3", "n2"}, {"n3", "n1", "n2"}} {
		synctest.Test(t, func(t *testing.T) {
			fakes := newFakes(t, "n3")
			fakes["n3"].refuseReads(refused(codes.Unavailable, "TOO_STALE"))
			fakes["n3"].refuseWrites(refused(codes.Unavailable, "NO_LEADER"))
			c := fakes.client(t, endpoints, client.WithTimeout(3*time.Second))
			if _, err := c.Lookup(t.Context(), "user.alice"); !errors.Is(err, client.ErrTooStale) {
				t.Errorf("Lookup by %v: got %v, want what n3 says", endpoints, err)
			}
			if _, err := c.Assert(t.Context(), alice); !errors.Is(err, client.ErrNoLeader) || errors.Is(err, client.ErrUndecided) {
				t.Errorf("Assert by %v: got %v, want what n3 says, and no doubt", endpoints, err)
			}
			fakes["n3"].refuseWrites(status.Error(codes.Unavailable, "connection lost"))
			if _, err := c.Assert(t.Context(), alice); !errors.Is(err, client.ErrUndecided) {
				t.Errorf("Assert by %v: got %v, want doubt", endpoints, err)
			}
		})
	}
}

// A refusal that comes as the time ends is the answer: whoever is told that nobody
// answered believes that the log does not have it.
func TestRefusedAtTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fakes := newFakes(t, "n1", "n2")
		fakes["n1"].refuseWrites(refused(codes.FailedPrecondition, "NOT_HOLDER"))
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		late := grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			defer cancel()
			return invoke(ctx, method, req, reply, conn, opts...)
		})
		c := fakes.client(t, []string{"n1", "n2"}, client.WithGRPC(late))
		_, err := c.Assert(ctx, alice)
		if !errors.Is(err, directory.ErrNotHolder) || errors.Is(err, client.ErrUnavailable) {
			t.Errorf("got %v, want the refusal alone", err)
		}
	})
}
