package peer

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rookery-mail/rookery/raftstore"
)

// TestFound: three nodes that start one after the other make the same list.
func TestFound(t *testing.T) {
	names := []string{"n1", "n2", "n3"}
	var ports []net.Listener
	var founders []Founder
	for _, name := range names {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ports = append(ports, l)
		founders = append(founders, Founder{name, l.Addr().String()})
	}
	type result struct {
		f   *Founding
		err error
	}
	results := make(chan result, 3)
	for i, name := range names {
		e := newEndAt(t, Config{Name: name, Birth: uint64(i + 10), Initial: names, Info: Info{Site: "s" + name}}, ports[i])
		go func() {
			f, err := e.Found(t.Context(), founders, nil)
			results <- result{f, err}
		}()
		time.Sleep(50 * time.Millisecond)
	}
	var first []raftstore.Member
	for range names {
		r := <-results
		if r.err != nil {
			t.Fatal(r.err)
		}
		slices.SortFunc(r.f.Initial, func(a, b raftstore.Member) int { return strings.Compare(a.Name, b.Name) })
		if first == nil {
			first = r.f.Initial
		}
		if len(r.f.Initial) != 3 || !slices.EqualFunc(first, r.f.Initial, func(a, b raftstore.Member) bool {
			return a.ID == b.ID && a.Name == b.Name && string(a.Context) == string(b.Context)
		}) {
			t.Errorf("lists differ: %+v and %+v", first, r.f.Initial)
		}
	}
	if first[1].ID != 11 || ParseInfo(first[1].Context) != (Info{PeerAddress: founders[1].Address, Site: "sn2"}) {
		t.Errorf("n2 is %+v, want the id its disk drew and what it said of itself", first[1])
	}
}

// TestFoundRefused: what Found does when an answer does not fit.
func TestFoundRefused(t *testing.T) {
	names := []string{"n1", "n2"}
	for _, tt := range []struct {
		name  string
		other Config
		state func(self *end, other *end) *fakeStore // nil: it has none
		fatal error
		want  string // of the error, or of the log
		join  bool
	}{
		{name: "wrong name", other: Config{Name: "n9", Birth: 2}, want: "is n9, --initial-cluster says n2", fatal: context.Canceled},
		{name: "another list", other: Config{Name: "n2", Birth: 2, Initial: []string{"n2"}}, want: "its --initial-cluster names n2, this node's n1, n2"},
		{name: "still starting", other: Config{Name: "n2"}, want: "it is starting"},
		{
			name: "runs without it", other: Config{Name: "n2"},
			state: func(_, other *end) *fakeStore { return newFake(2, member(2, other)) },
			want:  "this directory is empty but the cluster runs", fatal: ErrRunning,
		},
		{
			name: "runs with its former disk", other: Config{Name: "n2"},
			state: func(self, other *end) *fakeStore { return newFake(2, member(999, self), member(2, other)) },
			want:  "rookeryctl member replace n1", fatal: ErrRunning,
		},
		{
			name: "runs with it", other: Config{Name: "n2"},
			state: func(self, other *end) *fakeStore { return newFake(2, member(1, self), member(2, other)) },
			join:  true,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			self, other := newEnd(t, Config{Name: "n1", Birth: 1, Initial: names}), newEnd(t, tt.other)
			if tt.state != nil {
				other.Attach(tt.state(self, other), nil)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
			if tt.fatal != nil || tt.join {
				ctx, cancel = context.WithTimeout(t.Context(), 20*time.Second)
			}
			defer cancel()
			f, err := self.Found(ctx, []Founder{{"n1", self.address}, {"n2", other.address}}, nil)
			switch {
			case tt.join:
				if err != nil || f.Join == nil || f.Join.Node != 1 || len(f.Initial) != 2 {
					t.Errorf("got %+v, %v; want to go on with the cluster's ids", f, err)
				}
			case tt.fatal != nil:
				if err == nil || errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("got %v, want an end with %q", err, tt.want)
				}
				if tt.fatal == ErrRunning && !errors.Is(err, ErrRunning) {
					t.Errorf("got %v, want ErrRunning", err)
				}
			default:
				if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(self.log.String(), tt.want) {
					t.Errorf("got %v, log\n%s\nwant to wait, and %q", err, self.log, tt.want)
				}
			}
		})
	}
}

// TestJoin: who asks is known for a while; who was added is told so.
func TestJoin(t *testing.T) {
	a := newEnd(t, Config{Name: "n1"})
	b := newEnd(t, Config{Name: "n2", Birth: 22, Version: "3", Info: Info{Site: "attic"}})
	sa := newFake(1, member(1, a))
	a.Attach(sa, nil)
	joined := make(chan *raftstore.Joining, 1)
	go func() {
		j, err := b.Join(t.Context(), []string{a.address}, nil)
		if err != nil {
			t.Error(err)
		}
		joined <- j
	}()
	until(t, "n2 to ask", func() bool { return len(a.Waiting()) == 1 })
	w := a.Waiting()[0]
	if w.Name != "n2" || w.Birth != 22 || w.Info.Site != "attic" || w.Info.PeerAddress != b.address || w.Version != "3" {
		t.Errorf("waiting: %+v", w)
	}
	sa.mu.Lock()
	sa.status.Members = append(sa.status.Members, raftstore.Member{ID: 22, Name: "n2", Learner: true, Context: w.Info.Context()})
	sa.mu.Unlock()
	j := <-joined
	if want := (raftstore.Joining{Cluster: raftstore.ClusterID{1}, Incarnation: 1, Node: 22}); j == nil || *j != want {
		t.Errorf("got %+v, want %+v", j, want)
	}
	if len(a.Waiting()) != 0 {
		t.Errorf("still waiting: %+v", a.Waiting())
	}
}
