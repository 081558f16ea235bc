package client_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/rookery-mail/rookery/client"
)

func TestParseEndpoints(t *testing.T) {
	for _, tt := range []struct {
		list string
		want []string
		err  string // a part of it; empty: it is taken
	}{
		{list: "10.0.0.1:7905", want: []string{"10.0.0.1:7905"}},
		{list: " a:1, [::1]:2,,a:1", want: []string{"a:1", "[::1]:2"}},
		{list: "unix:///run//rookery.sock", want: []string{"unix:/run/rookery.sock"}},
		{list: "foo", err: `"foo" is not host:port`},
		{list: "a:1,foo:", err: `"foo:" is not host:port`},
		{list: "::1", err: `"::1" is not host:port`},
		{list: "unix:rookery.sock", err: "a unix socket is unix:/path"},
		{list: " ,", err: "no node is named"},
	} {
		got, err := client.ParseEndpoints(tt.list)
		switch {
		case tt.err == "" && (err != nil || !slices.Equal(got, tt.want)):
			t.Errorf("%q: got %q, %v; want %q", tt.list, got, err, tt.want)
		case tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)):
			t.Errorf("%q: got %q, %v; want an error with %q", tt.list, got, err, tt.err)
		}
	}
}
