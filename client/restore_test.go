package client_test

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/directory/machine"
	"github.com/rookery-mail/rookery/raftstore"
	"github.com/rookery-mail/rookery/server"
	"github.com/rookery-mail/rookery/server/servertest"
)

// twoLives is a cluster as it was, and as it was restored from its own snapshot. The
// node of before, which should be gone, has come back.
type twoLives struct {
	before, after *server.Server
}

func newTwoLives(t *testing.T) *twoLives {
	t.Helper()
	before := servertest.New(t)
	l := &twoLives{before: before}
	c := l.dial(t, "before")
	ctx := t.Context()
	if _, err := c.Assert(ctx, client.Assert{Mailbox: "user.alice", Server: be1}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.ConfirmBackend(ctx, be1, directory.ByOperator); err != nil {
		t.Fatal(err)
	}
	path, dir := filepath.Join(t.TempDir(), "night.snap"), t.TempDir()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	var told uint64
	info, err := c.SaveSnapshot(ctx, f, func(n uint64) { told = n })
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatalf("SaveSnapshot: %v", err)
	}
	if info.Incarnation != 1 || info.Revision == 0 || info.Index == 0 || info.Size == 0 || info.Size != told || info.Node != "n1" || info.Shard != 1 {
		t.Errorf("SaveSnapshot: got %+v, told of %d octets", info, told)
	}
	if _, err := raftstore.Restore(raftstore.Config{Dir: dir, Name: "n1", Machine: server.Applied(machine.New())}, path, 0); err != nil {
		t.Fatal(err)
	}
	after, stop, err := servertest.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	l.after = after
	return l
}

// dial returns a client of the nodes named, which asks them in that order.
func (l *twoLives) dial(t *testing.T, names ...string) *client.Client {
	t.Helper()
	c, err := client.Dial(names, client.WithTimeout(5*time.Second), client.WithDialer(func(ctx context.Context, name string) (net.Conn, error) {
		if name == "before" {
			return l.before.DialMemory(ctx, name)
		}
		return l.after.DialMemory(ctx, name)
	}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// incarnation is which life a client is answered from now.
func incarnation(t *testing.T, s *client.Session) directory.Incarnation {
	t.Helper()
	r, err := s.Lookup(t.Context(), "user.alice")
	if err != nil {
		t.Fatalf("Lookup: %v", err)
	}
	return r.Incarnation
}

func TestTwoLives(t *testing.T) {
	l := newTwoLives(t)
	ctx := t.Context()
	old := l.dial(t, "before")
	if got := incarnation(t, old.Session); got != 1 {
		t.Fatalf("before: got incarnation %d", got)
	}
	fresh := l.dial(t, "after")
	if got := incarnation(t, fresh.Session); got != 2 {
		t.Fatalf("after: got incarnation %d", got)
	}

	// A token of before that was kept is dropped, for reading and for writing.
	for what, call := range map[string]func(*client.Session) (directory.Incarnation, error){
		"read": func(s *client.Session) (directory.Incarnation, error) {
			r, err := s.Lookup(ctx, "user.alice")
			return r.Incarnation, err
		},
		"write": func(s *client.Session) (directory.Incarnation, error) {
			r, err := s.Subscribe(ctx, "alice", "user.alice")
			return r.Incarnation, err
		},
	} {
		if got, err := call(l.dial(t, "after").NewSession(old.Token())); got != 2 || err != nil {
			t.Errorf("%s with a token of before: got incarnation %d, %v", what, got, err)
		}
		// With one of after, the node of before is passed over, by a process that has
		// seen nothing else.
		c := l.dial(t, "before", "after")
		if got, err := call(c.NewSession(fresh.Token())); got != 2 || err != nil {
			t.Errorf("%s with a token of after: got incarnation %d, %v", what, got, err)
		}
		// What one session has seen, all sessions of the client know.
		if got, err := call(c.NewSession(nil)); got != 2 || err != nil {
			t.Errorf("%s in another session: got incarnation %d, %v", what, got, err)
		}
	}

	// If only the node of before is there, nothing is done there: not for the session
	// that holds a token of after, nor, once that has been refused, for another.
	c := l.dial(t, "before")
	for _, write := range []struct {
		what string
		by   *client.Session
	}{
		{"a write", c.NewSession(fresh.Token())},
		{"a write in another session", c.NewSession(nil)},
	} {
		var err error
		for range 20 {
			short, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
			_, err = write.by.Assert(short, client.Assert{Mailbox: "user.bob", Server: be1})
			cancel()
			if !errors.Is(err, client.ErrUndecided) {
				break
			}
			// The time ended while a call was under way, which nobody can know the end of.
		}
		if !errors.Is(err, client.ErrUnavailable) || errors.Is(err, client.ErrUndecided) {
			t.Errorf("%s: got %v, want ErrUnavailable, and that it was not done", write.what, err)
		}
	}
	if r, err := old.Lookup(ctx, "user.bob", client.Details()); err != nil || len(r.Facts) != 0 {
		t.Errorf("it was done: %+v, %v", r, err)
	}
	// A token that the caller gave is the caller's to drop; a node of before it is not asked.
	if _, err := fresh.Lookup(ctx, "user.alice", client.AtLeast(old.Token())); !errors.Is(err, client.ErrWrongIncarnation) {
		t.Errorf("a given token of before: got %v", err)
	}
	// A list that was stated to the life before confirms nothing in this one.
	if _, err := fresh.ConfirmBackendIn(ctx, 1, be1, directory.ByResync); !errors.Is(err, directory.ErrInvalid) {
		t.Errorf("ConfirmBackendIn 1: got %v", err)
	}
	if st, err := fresh.Status(ctx); err != nil || !st.Recovering || !st.AutomationPaused {
		t.Errorf("Status: got %+v, %v", st, err)
	}
	if _, err := fresh.ConfirmBackendIn(ctx, 2, be1, directory.ByResync); err != nil {
		t.Errorf("ConfirmBackendIn 2: got %v", err)
	}
	if r, err := fresh.Lookup(ctx, "user.alice"); err != nil || r.Outcome != directory.Serving {
		t.Errorf("got %+v, %v", r, err)
	}
}

// A client that has seen the life before goes over to the one after as soon as a node of
// that refuses it, in a session without a token too, and does not go back to nodes of
// before that still run.
func TestNewLifeWins(t *testing.T) {
	l := newTwoLives(t)
	var first net.Conn
	c, err := client.Dial([]string{"gone", "after", "before"}, client.WithTimeout(5*time.Second), client.WithDialer(func(ctx context.Context, name string) (nc net.Conn, err error) {
		switch {
		case name == "after":
			return l.after.DialMemory(ctx, name)
		case name == "before":
			return l.before.DialMemory(ctx, name)
		case first != nil:
			return nil, errors.New("it is gone")
		}
		first, err = l.before.DialMemory(ctx, name)
		return first, err
	}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if got := incarnation(t, c.NewSession(nil)); got != 1 {
		t.Fatalf("before: got incarnation %d", got)
	}
	first.Close()
	for range 5 {
		s := c.NewSession(nil)
		if got := incarnation(t, s); got != 2 {
			t.Errorf("got incarnation %d, want 2", got)
		}
		if r, err := s.Subscribe(t.Context(), "alice", "user.alice"); err != nil || r.Incarnation != 2 {
			t.Errorf("a write: got incarnation %d, %v", r.Incarnation, err)
		}
	}
}

// A node of another cluster, by mistake among the endpoints or founded anew at the address
// of one that is gone, answers nothing to a client that has seen the one: what it knows
// nothing of is not absent.
func TestTwoClusters(t *testing.T) {
	mine, other := servertest.New(t), servertest.New(t)
	at := atomic.Pointer[server.Server]{}
	at.Store(mine)
	c, err := client.Dial([]string{"node"}, client.WithTimeout(5*time.Second), client.WithDialer(func(ctx context.Context, name string) (net.Conn, error) {
		return at.Load().DialMemory(ctx, name)
	}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if _, err := c.NewSession(nil).Assert(t.Context(), client.Assert{Mailbox: "user.alice", Server: be1}); err != nil {
		t.Fatal(err)
	}
	at.Store(other)
	mine.Close(t.Context())
	for what, call := range map[string]func(context.Context, *client.Session) error{
		"lookup": func(ctx context.Context, s *client.Session) error {
			_, err := s.Lookup(ctx, "user.alice")
			return err
		},
		"linearizable lookup": func(ctx context.Context, s *client.Session) error {
			_, err := s.Lookup(ctx, "user.alice", client.Linearizable())
			return err
		},
		"stale lookup": func(ctx context.Context, s *client.Session) error {
			_, err := s.Lookup(ctx, "user.alice", client.Stale(0))
			return err
		},
		"write": func(ctx context.Context, s *client.Session) error {
			_, err := s.Assert(ctx, client.Assert{Mailbox: "user.bob", Server: be1})
			return err
		},
		"batch": func(ctx context.Context, s *client.Session) error {
			_, err := s.Batch(ctx, []client.Op{client.Assert{Mailbox: "user.bob", Server: be1}})
			return err
		},
		"find": func(ctx context.Context, s *client.Session) error {
			for _, err := range s.FindAll(ctx, client.FindQuery{}) {
				if err != nil {
					return err
				}
			}
			return nil
		},
		"watch": func(ctx context.Context, s *client.Session) error {
			for _, err := range s.Watch(ctx, client.WatchQuery{}) {
				return err
			}
			return nil
		},
	} {
		for kind, s := range map[string]*client.Session{"new": c.NewSession(nil), "old": c.Session} {
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			err := call(ctx, s)
			cancel()
			if !errors.Is(err, client.ErrUnavailable) || !errors.Is(err, client.ErrWrongIncarnation) {
				t.Errorf("%s in a %s session: got %v, want ErrUnavailable, for it is another cluster", what, kind, err)
			}
		}
	}
	here, err := client.Dial([]string{"node"}, client.WithDialer(other.DialMemory))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { here.Close() })
	if r, err := here.Lookup(t.Context(), "user.bob", client.Details()); err != nil || len(r.Facts) != 0 {
		t.Errorf("a write was done there: %+v, %v", r, err)
	}
}
