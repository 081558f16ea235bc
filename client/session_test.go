package client_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
)

// answers has a node answer reads with these revisions and incarnations in turn.
func (f *fakeNode) answers(headers ...*apiv1.ResponseHeader) {
	f.lookup = func(*apiv1.LookupRequest) (*apiv1.LookupResponse, error) {
		f.mu.Lock()
		defer f.mu.Unlock()
		h := headers[0]
		if len(headers) > 1 {
			headers = headers[1:]
		}
		return &apiv1.LookupResponse{Header: h, Route: &apiv1.Route{Outcome: apiv1.Outcome_OUTCOME_SERVING}}, nil
	}
}

func head(token string, incarnation uint32, revision uint64) *apiv1.ResponseHeader {
	return &apiv1.ResponseHeader{Token: []byte(token), Incarnation: incarnation, Revision: revision, Node: "n1"}
}

// The first read is linearizable, the others carry the newest token.
func TestTokensAreKept(t *testing.T) {
	fakes := newFakes(t, "n1")
	n1 := fakes["n1"]
	n1.answers(head("five", 1, 5), head("three", 1, 3), head("seven", 1, 7), head("two1", 2, 1), head("two2", 2, 2))
	c := fakes.client(t, []string{"n1"})
	var got []string
	for range 6 {
		if _, err := c.Lookup(t.Context(), "user.alice"); err != nil {
			t.Fatal(err)
		}
	}
	for _, req := range n1.reads {
		got = append(got, strings.TrimPrefix(req.GetConsistency().GetMode().String(), "CONSISTENCY_MODE_")+" "+string(req.GetConsistency().GetToken()))
	}
	if want := []string{"LINEARIZABLE ", "UNSPECIFIED five", "UNSPECIFIED five", "UNSPECIFIED seven", "UNSPECIFIED two1", "UNSPECIFIED two2"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := string(c.Token()); got != "two2" {
		t.Errorf("Token: got %q, want two2", got)
	}

	// A write's token counts too; another session has its own.
	n1.reads = nil
	s := c.NewSession([]byte("given"))
	for _, call := range []func() error{
		func() error { _, err := s.Lookup(t.Context(), "x"); return err },
		func() error {
			_, err := c.NewSession(nil).Lookup(t.Context(), "x", client.Stale(time.Second))
			return err
		},
		func() error { _, err := c.Lookup(t.Context(), "x", client.AtLeast([]byte("mine"))); return err },
		func() error { _, err := c.Lookup(t.Context(), "x", client.Linearizable()); return err },
		func() error {
			_, err := c.Lookup(t.Context(), "x", client.MaxAge(time.Microsecond), client.Details())
			return err
		},
	} {
		if err := call(); err != nil {
			t.Fatal(err)
		}
	}
	for i, want := range []*apiv1.Consistency{
		{Token: []byte("given")},
		{Mode: apiv1.ConsistencyMode_CONSISTENCY_MODE_STALE, MaxAgeMs: 1000, Token: []byte("two1")}, // any of that life, to tell the cluster by
		{Mode: apiv1.ConsistencyMode_CONSISTENCY_MODE_AT_LEAST, Token: []byte("mine")},
		{Mode: apiv1.ConsistencyMode_CONSISTENCY_MODE_LINEARIZABLE, Token: []byte("two2")},
		{Token: []byte("two2"), MaxAgeMs: 1},
	} {
		if got := n1.reads[i].GetConsistency(); got.GetMode() != want.GetMode() || string(got.GetToken()) != string(want.GetToken()) || got.GetMaxAgeMs() != want.GetMaxAgeMs() {
			t.Errorf("read %d: got %v, want %v", i, got, want)
		}
	}
	if !n1.reads[4].GetDetails() || n1.reads[3].GetDetails() {
		t.Error("Details asks for details, and nothing else does")
	}
}

// After a restore the token is dropped and the read made again; what an earlier
// life says is not believed.
func TestIncarnation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fakes := newFakes(t, "n1", "n2")
		n1 := fakes["n1"]
		n1.answers(head("old", 1, 5))
		c := fakes.client(t, []string{"n1"})
		if _, err := c.Lookup(t.Context(), "x"); err != nil {
			t.Fatal(err)
		}
		n1.lookup = func(req *apiv1.LookupRequest) (*apiv1.LookupResponse, error) {
			if len(req.GetConsistency().GetToken()) > 0 {
				return nil, refused(codes.FailedPrecondition, "WRONG_INCARNATION", "incarnation", "2")
			}
			return &apiv1.LookupResponse{Header: head("new", 2, 1), Route: &apiv1.Route{Outcome: apiv1.Outcome_OUTCOME_SERVING}}, nil
		}
		r, err := c.Lookup(t.Context(), "x")
		if err != nil || r.Incarnation != 2 || string(c.Token()) != "new" {
			t.Errorf("after a restore: got %+v, %v, token %q, want an answer of incarnation 2", r, err, c.Token())
		}
		if got := n1.reads[2].GetConsistency().GetMode(); got != apiv1.ConsistencyMode_CONSISTENCY_MODE_LINEARIZABLE {
			t.Errorf("the first read of the new life: got %v, want LINEARIZABLE", got)
		}
		// A token that the caller gave is the caller's to drop.
		n1.refuseReads(refused(codes.FailedPrecondition, "WRONG_INCARNATION", "incarnation", "2"))
		_, err = c.Lookup(t.Context(), "x", client.AtLeast([]byte("mine")))
		if e, ok := errors.AsType[*client.Error](err); !ok || !errors.Is(err, client.ErrWrongIncarnation) || e.Incarnation != 2 {
			t.Errorf("with a token of the caller's: got %#v, want ErrWrongIncarnation", err)
		}

		// n1 lives in the past.
		n1.answers(head("old", 1, 9))
		fakes["n2"].answers(head("newer", 2, 3))
		both := fakes.client(t, []string{"n1", "n2"})
		s := both.NewSession(nil)
		n1.answers(head("new", 2, 2), head("old", 1, 9))
		if _, err := s.Lookup(t.Context(), "x"); err != nil {
			t.Fatal(err)
		}
		if r, err := s.Lookup(t.Context(), "x"); err != nil || string(r.Token) != "newer" {
			t.Errorf("beside a node in the past: got %+v, %v, want n2's answer", r, err)
		}
		if r, err := s.Lookup(t.Context(), "x", client.Stale(0)); err != nil || r.Incarnation != directory.Incarnation(2) {
			t.Errorf("stale beside a node in the past: got %+v, %v", r, err)
		}
	})
}
