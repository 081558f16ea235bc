package main

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/rookery-mail/rookery/server"
)

func listenAt(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// Without a leader status says soon what the nodes say; it does not wait for one until
// the timeout is over. And it keeps the timeout where a node hangs.
func TestStatusWithoutLeader(t *testing.T) {
	w := server.NewWaiting(nil, "this node waits")
	waits, hangs := listenAt(t), listenAt(t)
	go w.Serve(waits)
	t.Cleanup(w.Close)
	dead := listenAt(t)
	dead.Close()
	for _, tt := range []struct {
		timeout string
		nodes   []net.Listener
		code    int
		want    string
	}{
		{"1m", []net.Listener{dead, waits}, exitCannotAsk, "this node waits"},
		{"3s", []net.Listener{hangs, waits}, exitCannotAsk, "this node waits"},
	} {
		t.Run(tt.timeout+" "+tt.want, func(t *testing.T) {
			t.Parallel()
			var endpoints []string
			for _, l := range tt.nodes {
				endpoints = append(endpoints, l.Addr().String())
			}
			begun := time.Now()
			stdout, stderr, code := command(t, "--endpoints", strings.Join(endpoints, ","), "--timeout", tt.timeout, "status")
			if took := time.Since(begun); took > 30*time.Second || tt.timeout == "3s" && took > 4*time.Second {
				t.Errorf("it took %v", took)
			}
			if code != tt.code || !strings.Contains(stdout+stderr, tt.want) {
				t.Errorf("got exit code %d, output\n%s%s; want %d and %q", code, stdout, stderr, tt.code, tt.want)
			}
		})
	}
}
