package client_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
)

// watchPart is what a node says in a scripted watch.
type watchPart struct {
	revision    uint64
	incarnation uint32 // 0 is 1
	mark        bool
	listing     bool
	mailboxes   string // names, separated by spaces; "-name" is gone
	id          uint32
	wait        time.Duration // before it
}

func (p watchPart) response(node string) *apiv1.WatchResponse {
	m := &apiv1.WatchResponse{
		Header:   &apiv1.ResponseHeader{Token: fmt.Appendf(nil, "t%d", p.revision), Revision: p.revision, Incarnation: max(p.incarnation, 1), Node: node},
		Mark:     p.mark,
		Listing:  p.listing,
		ServerId: p.id,
	}
	for _, name := range strings.Fields(p.mailboxes) {
		name, gone := strings.CutPrefix(name, "-")
		m.Events = append(m.Events, &apiv1.WatchEvent{Gone: gone, Thing: &apiv1.WatchEvent_Mailbox{Mailbox: &apiv1.WatchedMailbox{Mailbox: name}}})
	}
	return m
}

// watchScript is one watch: its parts, then its end; nil hangs.
type watchScript struct {
	parts []watchPart
	end   error
}

// scripted lets a node answer watches as the scripts say, one after the other; the
// last one for ever. It returns what was asked.
func (f *fakeNode) scripted(name string, scripts ...watchScript) func() []*apiv1.WatchRequest {
	var mu sync.Mutex
	var asked []*apiv1.WatchRequest
	f.watch = func(req *apiv1.WatchRequest, stream grpc.ServerStreamingServer[apiv1.WatchResponse]) error {
		mu.Lock()
		script := scripts[min(len(asked), len(scripts)-1)]
		asked = append(asked, req)
		mu.Unlock()
		for _, p := range script.parts {
			time.Sleep(p.wait)
			if err := stream.Send(p.response(name)); err != nil {
				return err
			}
		}
		if script.end == nil {
			<-stream.Context().Done()
			return stream.Context().Err()
		}
		return script.end
	}
	return func() []*apiv1.WatchRequest {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(asked)
	}
}

// heard watches until so many marks were told, and says what was.
func heard(t *testing.T, c *client.Client, q client.WatchQuery, marks int) (lines []string, last client.WatchUpdate) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	for u, err := range c.Watch(ctx, q) {
		if err != nil {
			lines = append(lines, "error "+err.Error())
			return lines, last
		}
		last = u
		line := fmt.Sprintf("%s %d", u.Node, u.Revision)
		if u.Reset {
			line += " reset"
		}
		if u.Listing {
			line += " listing"
		}
		for _, e := range u.Events {
			line += " "
			if e.Gone {
				line += "-"
			}
			line += string(e.Mailbox.Name)
		}
		if u.Mark {
			line += " mark"
			marks--
		}
		if u.Mark != (u.Token != nil) {
			line += " with a token"
		}
		lines = append(lines, line)
		if marks == 0 {
			break
		}
	}
	return lines, last
}

func TestWatchGoesOn(t *testing.T) {
	down := status.Error(codes.Unavailable, "connection lost")
	listing := []watchPart{{revision: 5, listing: true, mailboxes: "a b"}, {revision: 6, listing: true, mark: true}}
	for _, test := range []struct {
		name    string
		n1, n2  []watchScript
		from    string
		marks   int
		want    string
		asked1  string // the tokens of From, in order; "-" for none
		asked2  string
		settled time.Duration // at most
	}{
		{
			name: "after a break elsewhere, from the last mark", marks: 2,
			n1:   []watchScript{{parts: append(slices.Clone(listing), watchPart{revision: 7, mailboxes: "c"}), end: down}, {end: down}},
			n2:   []watchScript{{parts: []watchPart{{revision: 8, mailboxes: "c d", mark: true}}}},
			want: "n1 5 reset listing a b; n1 6 listing mark; n1 7 c; n2 8 c d mark", asked1: "- t6", asked2: "t6", settled: time.Second,
		},
		{
			name: "a listing that broke off begins anew", marks: 1,
			n1:   []watchScript{{parts: listing[:1], end: down}, {end: down}},
			n2:   []watchScript{{parts: listing}},
			want: "n1 5 reset listing a b; n2 5 reset listing a b; n2 6 listing mark", asked1: "- -", asked2: "-", settled: time.Second,
		},
		{
			name: "compacted", marks: 1, from: "t1",
			n1:   []watchScript{{end: refused(codes.OutOfRange, "COMPACTED", "revision", "4")}, {parts: listing}},
			want: "n1 5 reset listing a b; n1 6 listing mark", asked1: "t1 -", settled: time.Second,
		},
		{
			name: "another life", marks: 1, from: "t1",
			n1:   []watchScript{{end: refused(codes.FailedPrecondition, "WRONG_INCARNATION", "incarnation", "2")}, {parts: []watchPart{{revision: 9, incarnation: 2, listing: true, mark: true, mailboxes: "z"}}}},
			n2:   []watchScript{{end: down}},
			want: "n1 9 reset listing z mark", asked1: "t1 -", asked2: "-", settled: time.Second,
		},
		{
			name: "an earlier life is not believed", marks: 2,
			n1: []watchScript{
				{parts: []watchPart{{revision: 6, incarnation: 2, listing: true, mark: true}}, end: down},
				{parts: []watchPart{{revision: 7, incarnation: 1, mailboxes: "old", mark: true}}, end: down},
			},
			n2:   []watchScript{{parts: []watchPart{{revision: 8, incarnation: 2, mailboxes: "x", mark: true}}}},
			want: "n1 6 reset listing mark; n2 8 x mark", asked1: "- t6", asked2: "t6", settled: time.Second,
		},
		{
			name: "cut for being slow", marks: 2,
			n1:   []watchScript{{parts: listing, end: refused(codes.Aborted, "SLOW_WATCHER", "revision", "9")}, {parts: []watchPart{{revision: 10, mailboxes: "c", mark: true}}}},
			want: "n1 5 reset listing a b; n1 6 listing mark; n1 10 c mark", asked1: "- t6", settled: time.Second,
		},
		{
			name: "silence", marks: 2,
			n1:   []watchScript{{parts: listing}},
			n2:   []watchScript{{parts: []watchPart{{revision: 7, mailboxes: "c", mark: true}}}},
			want: "n1 5 reset listing a b; n1 6 listing mark; n2 7 c mark", asked1: "-", asked2: "t6", settled: 16 * time.Second,
		},
		{
			name: "silence from the start", marks: 1,
			n1:   []watchScript{{}},
			n2:   []watchScript{{parts: listing}},
			want: "n2 5 reset listing a b; n2 6 listing mark", asked1: "-", asked2: "-", settled: 16 * time.Second,
		},
		{
			name: "marks that come are no silence", marks: 3,
			n1:   []watchScript{{parts: []watchPart{{revision: 1, mark: true, listing: true}, {revision: 1, mark: true, wait: 14 * time.Second}, {revision: 2, mark: true, wait: 14 * time.Second}}}},
			want: "n1 1 reset listing mark; n1 1 mark; n1 2 mark", asked1: "-", settled: 29 * time.Second,
		},
		{
			name: "for good", marks: 1,
			n1:   []watchScript{{end: refused(codes.NotFound, "NOT_FOUND")}},
			want: "error NOT_FOUND: NOT_FOUND it is", asked1: "-", settled: time.Second,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				names := []string{"n1"}
				if test.n2 != nil {
					names = append(names, "n2")
				}
				fakes := newFakes(t, names...)
				asked := map[string]func() []*apiv1.WatchRequest{"n1": fakes["n1"].scripted("n1", test.n1...)}
				if test.n2 != nil {
					asked["n2"] = fakes["n2"].scripted("n2", test.n2...)
				}
				c := fakes.client(t, names)
				q := client.WatchQuery{}
				if test.from != "" {
					q.From = []byte(test.from)
				}
				begun := time.Now()
				lines, _ := heard(t, c, q, test.marks)
				if got := strings.Join(lines, "; "); got != test.want {
					t.Errorf("got  %s\nwant %s", got, test.want)
				}
				if took := time.Since(begun); took > test.settled {
					t.Errorf("took %v, want at most %v", took, test.settled)
				}
				for name, want := range map[string]string{"n1": test.asked1, "n2": test.asked2} {
					var from []string
					if asked[name] != nil {
						for _, req := range asked[name]() {
							token := string(req.GetFrom())
							if token == "" {
								token = "-"
							}
							from = append(from, token)
						}
					}
					if got := strings.Join(from, " "); got != want {
						t.Errorf("%s was asked from %q, want %q", name, got, want)
					}
				}
			})
		})
	}
}

// What was seen is sent along, so that no node tells older things; a server is
// followed by its number; and the context's end is the end.
func TestWatchRemembers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fakes := newFakes(t, "n1")
		down := status.Error(codes.Unavailable, "connection lost")
		asked := fakes["n1"].scripted("n1",
			watchScript{parts: []watchPart{{revision: 5, listing: true, mark: true, id: 7}, {revision: 6, mailboxes: "a"}}, end: down},
			watchScript{parts: []watchPart{{revision: 7, mark: true}}})
		c := fakes.client(t, []string{"n1"})
		lines, last := heard(t, c, client.WatchQuery{Server: be1}, 2)
		reqs := asked()
		if len(reqs) != 2 || reqs[0].GetServerId() != 0 || reqs[0].GetServer() != string(be1) || reqs[1].GetServerId() != 7 {
			t.Fatalf("asked %v, told %q", reqs, lines)
		}
		if c := reqs[0].GetConsistency(); c.GetMode() != apiv1.ConsistencyMode_CONSISTENCY_MODE_LINEARIZABLE {
			t.Errorf("the first request: got %v, want it linearizable", c)
		}
		if c := reqs[1].GetConsistency(); string(c.GetToken()) != "t6" || string(reqs[1].GetFrom()) != "t5" {
			t.Errorf("the second request: got token %q from %q, want t6 and t5", c.GetToken(), reqs[1].GetFrom())
		}
		if last.Server != 7 || string(c.Token()) != "t7" {
			t.Errorf("server %d, session at %q, want 7 and t7", last.Server, c.Token())
		}

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var failed error
		for _, err := range c.Watch(ctx, client.WatchQuery{}) {
			failed = err
		}
		if !errors.Is(failed, context.DeadlineExceeded) {
			t.Errorf("after its time: got %v, want DeadlineExceeded", failed)
		}
		for _, err := range c.Watch(t.Context(), client.WatchQuery{User: "alice", Prefix: "x"}) {
			if !errors.Is(err, directory.ErrInvalid) {
				t.Errorf("by user and prefix: got %v, want ErrInvalid", err)
			}
		}
		c.Close()
		for _, err := range c.Watch(t.Context(), client.WatchQuery{}) {
			if !errors.Is(err, client.ErrClosed) {
				t.Errorf("closed: got %v, want ErrClosed", err)
			}
		}
	})
}
