package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rookery-mail/rookery/client"
)

func TestOneCluster(t *testing.T) {
	type node struct {
		cluster string // empty: it does not answer
		life    client.Answer
	}
	first, second := client.Answer{Incarnation: 1}, client.Answer{Incarnation: 2}
	for _, c := range []struct {
		what  string
		nodes map[string]node
		want  string // in the refusal; empty: none
	}{
		{what: "one", nodes: map[string]node{"a": {"X", first}, "b": {"X", first}}},
		{what: "one that is down", nodes: map[string]node{"a": {"X", first}, "b": {}}},
		{what: "nobody", nodes: map[string]node{"a": {}}},
		{what: "one of before a restore", nodes: map[string]node{"a": {"X", first}, "b": {"Y", second}}},
		{what: "two", nodes: map[string]node{"a": {"X", first}, "b": {"Y", first}, "c": {}}, want: "of 2 clusters"},
	} {
		var names []string
		for name := range c.nodes {
			names = append(names, name)
		}
		err := oneCluster(t.Context(), names, func(ctx context.Context, endpoint string) (client.Status, error) {
			n := c.nodes[endpoint]
			if n.cluster == "" {
				return client.Status{}, errors.New("nobody there")
			}
			return client.Status{ClusterID: n.cluster, Answer: n.life}, nil
		})
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", c.what, err, c.want)
		}
	}
}

// Endpoints that come to be of two clusters are told of, once.
func TestTellClusters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var out bytes.Buffer
		looked := make(chan error)
		go tellClusters(ctx, func(context.Context) error { return <-looked }, slog.New(slog.NewTextHandler(&out, nil)))
		two := errors.New("of 2 clusters")
		for i, err := range []error{nil, two, two, nil, two} {
			looked <- err
			synctest.Wait()
			if got, want := strings.Contains(out.String(), "level=ERROR"), i == 1 || i == 4; got != want {
				t.Errorf("look %d: the log says %q", i, &out)
			}
			out.Reset()
		}
		cancel()
	})
}

// A node of another cluster is told of, and not with each call.
func TestStrangers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		s := strangers{log: slog.New(slog.NewTextHandler(&out, nil))}
		other := client.Attempt{Endpoint: "a:1", Err: client.ErrWrongIncarnation, GivenUp: true}
		next := client.Attempt{Endpoint: "a:1", Err: client.ErrWrongIncarnation} // of the next life
		for _, at := range []client.Attempt{{Endpoint: "a:1"}, {Endpoint: "a:1", Err: client.ErrUnavailable}, next, other, other} {
			s.observe(at)
		}
		if got := strings.Count(out.String(), "another cluster"); got != 1 {
			t.Errorf("told %d times, want once:\n%s", got, out.String())
		}
		time.Sleep(tellAgain)
		s.observe(other)
		if got := strings.Count(out.String(), "endpoint=a:1"); got != 2 {
			t.Errorf("told %d times after %v, want twice", got, tellAgain)
		}
	})
}
