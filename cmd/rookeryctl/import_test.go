package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/rookery-mail/rookery/adapter/cyrus"
	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
)

// Results come in the order of the items, whatever order the batches end in,
// and no more than inFlight are under way.
func TestSenderOrder(t *testing.T) {
	var flying, most atomic.Int64
	var got []string
	s := &sender{ctx: t.Context()}
	s.send = func(_ context.Context, items []item) ([]client.Result, error) {
		most.Store(max(most.Load(), flying.Add(1)))
		defer flying.Add(-1)
		if len(items) > batchItems {
			t.Errorf("got a batch of %d, at most %d are wanted", len(items), batchItems)
		}
		return make([]client.Result, len(items)), nil
	}
	s.done = func(it item, _ client.Result) { got = append(got, it.name) }
	var want []string
	for i := range 20*batchItems + 7 {
		want = append(want, fmt.Sprint(i))
		if err := s.add(item{name: want[i], size: 10}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.drain(); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %d results, want %d in order", len(got), len(want))
	}
	if most.Load() > inFlight {
		t.Errorf("%d batches were under way, at most %d are wanted", most.Load(), inFlight)
	}
}

// Large items make small batches; one that is larger than a batch goes alone.
func TestSenderSize(t *testing.T) {
	var sizes []int
	s := &sender{ctx: t.Context(), done: func(item, client.Result) {}}
	landed := make(chan int, 100)
	s.send = func(_ context.Context, items []item) ([]client.Result, error) {
		landed <- len(items)
		return make([]client.Result, len(items)), nil
	}
	for _, size := range []int{2 * batchOctets, batchOctets / 2, batchOctets / 2, 1} {
		if err := s.add(item{size: size}); err != nil {
			t.Fatal(err)
		}
		if len(s.batch) == 1 && len(s.flying) > 0 { // a batch went: wait for it, so that the sizes come in order
			sizes = append(sizes, <-landed)
		}
	}
	if err := s.drain(); err != nil {
		t.Fatal(err)
	}
	sizes = append(sizes, <-landed)
	if want := []int{1, 2, 1}; !slices.Equal(sizes, want) {
		t.Errorf("got batches of %v, want %v", sizes, want)
	}
}

// After a failure nothing more is sent; what was done before and beside it
// counts.
func TestSenderFailure(t *testing.T) {
	broken := errors.New("broken")
	var sent atomic.Int64
	done := 0
	s := &sender{ctx: t.Context(), done: func(item, client.Result) { done++ }}
	s.send = func(_ context.Context, items []item) ([]client.Result, error) {
		sent.Add(1)
		if items[0].name == fmt.Sprint(3*batchItems) {
			return nil, broken
		}
		return make([]client.Result, len(items)), nil
	}
	var err error
	for i := 0; i < 100*batchItems && err == nil; i++ {
		err = s.add(item{name: fmt.Sprint(i)})
	}
	if drained := s.drain(); !errors.Is(err, broken) || !errors.Is(drained, broken) {
		t.Errorf("got errors %v and %v, want %v", err, drained, broken)
	}
	if n := int(sent.Load()); n > 3+1+inFlight || done != (n-1)*batchItems {
		t.Errorf("%d batches were sent and %d items counted; want at most %d, and all but one batch", n, done, 4+inFlight)
	}
}

func TestWhose(t *testing.T) {
	for _, tt := range []struct {
		name     string
		server   directory.BackendName
		remote   bool
		rec      cyrus.Record
		want     directory.BackendName
		refusal  string
		exitCode int
	}{
		{"a backend's", "be1", false, cyrus.Record{}, "be1", "", 0},
		{"a frontend's", "", false, cyrus.Record{Server: "be2"}, "be2", "", 0},
		{"the same", "be2", false, cyrus.Record{Server: "be2"}, "be2", "", 0},
		{"another", "be1", false, cyrus.Record{Server: "be2"}, "", "it is a mailbox of be2, and --server says be1", 0},
		{"nobody's", "", false, cyrus.Record{}, "", "name that with --server", exitUsage},
		{"nobody's, among others'", "", true, cyrus.Record{}, "", "names no server", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := dump{importer: &importer{file: &source{name: "f"}}, server: tt.server, remote: tt.remote}
			got, err := d.whose(&tt.rec)
			if got != tt.want || (err == nil) != (tt.refusal == "") || err != nil && !strings.Contains(err.Error(), tt.refusal) {
				t.Errorf("got %q, %v; want %q, %q", got, err, tt.want, tt.refusal)
			}
			if f, ok := errors.AsType[*fault](err); ok != (tt.exitCode != 0) || ok && f.code != tt.exitCode {
				t.Errorf("got %v, want exit code %d", err, tt.exitCode)
			}
		})
	}
}

func TestTally(t *testing.T) {
	var n tally
	for e := client.Unchanged; e <= client.Overtaken; e++ {
		n.count(e)
	}
	if got, want := n.String(), "added 1, changed 1, unchanged 5, skipped 0, refused 0, forked 1, moves completed 1, moves aborted 1, held by the guard 1, overtaken 2"; got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	if got, want := (&tally{}).String(), "added 0, changed 0, unchanged 0, skipped 0, refused 0"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// A prediction is what the directory would have answered.
func TestPrediction(t *testing.T) {
	p := &prediction{groups: map[directory.BackendName]directory.GroupName{"be1": "g1", "be2": "g1", "be3": "be3"}}
	said := func(server directory.BackendName, change func(*client.Assert)) client.Assert {
		as := client.Assert{Server: server, Statement: directory.Statement{Partition: "default", ACL: new("alice\tlrs\tgroup:x y\tl\t")}, Imported: true}
		if change != nil {
			change(&as)
		}
		return as
	}
	for _, tt := range []struct {
		name   string
		as     client.Assert
		change func(*client.Route)
		want   client.Effect
	}{
		{"the same", said("be1", nil), nil, client.Unchanged},
		{"nothing stated but the ACL", said("be1", func(as *client.Assert) { as.Statement.Partition = "" }), nil, client.Unchanged},
		{"another ACL", said("be1", func(as *client.Assert) { as.Statement.ACL = new("") }), nil, client.Changed},
		{"another partition", said("be1", func(as *client.Assert) { as.Statement.Partition = "p2" }), nil, client.Changed},
		{"another id", said("be1", func(as *client.Assert) { as.Statement.MailboxID = new("id2") }), nil, client.Changed},
		{"given up", said("be1", func(as *client.Assert) { as.Deactivated = true }), nil, client.Changed},
		{"heard again", said("be1", nil), func(r *client.Route) { r.Facts[0].Confirmed = false }, client.Changed},
		{"a copy", said("be2", nil), func(r *client.Route) { r.Facts = r.Facts[:1] }, client.Added},
		{"a stranger", said("be3", nil), nil, client.Forked},
		{"an unknown stranger", said("be9", nil), nil, client.Forked},
		{"a stranger, as before", said("be3", nil), func(r *client.Route) { r.Facts[1].Server = "be3" }, client.Forked},
		{"a stray, as before", said("be3", nil), func(r *client.Route) { r.Facts[1].Server, r.Facts[1].Standing = "be3", directory.Stray }, client.Overtaken},
		{"taking it over", said("be3", nil), func(r *client.Route) { r.Outcome = directory.Moving }, client.MoveCompleted},
		{"new", said("be3", nil), func(r *client.Route) { *r = client.Route{Outcome: directory.NotFound} }, client.Added},
		{"new, the state incomplete", said("be3", nil), func(r *client.Route) { *r = client.Route{Outcome: directory.Incomplete} }, client.Added},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := someRoute(tt.change)
			if got := p.effect(tt.as, &r); got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}
