package main

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
	"github.com/rookery-mail/rookery/server"
)

// survivor is a node whose cluster has no majority.
type survivor struct {
	apiv1.UnimplementedClusterServiceServer
}

func (survivor) Status(_ context.Context, req *apiv1.StatusRequest) (*apiv1.StatusResponse, error) {
	if req.GetConsistency().GetMode() == apiv1.ConsistencyMode_CONSISTENCY_MODE_LINEARIZABLE {
		st, err := status.New(codes.Unavailable, "no leader").WithDetails(&errdetails.ErrorInfo{Reason: "NO_LEADER", Domain: "rookery.api.v1"})
		if err != nil {
			return nil, err
		}
		return nil, st.Err()
	}
	return &apiv1.StatusResponse{Header: &apiv1.ResponseHeader{Node: "n3"}, AppliedIndex: 7}, nil
}

func listenAt(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// Without a leader status says soon what a node has; it does not wait for one until
// the timeout is over. And it keeps the timeout where a node hangs.
func TestStatusWithoutLeader(t *testing.T) {
	s := grpc.NewServer()
	apiv1.RegisterClusterServiceServer(s, survivor{})
	w := server.NewWaiting(nil, "this node waits")
	alive, waits, hangs := listenAt(t), listenAt(t), listenAt(t)
	go s.Serve(alive)
	go w.Serve(waits)
	t.Cleanup(s.Stop)
	t.Cleanup(w.Close)
	dead := listenAt(t)
	dead.Close()
	for _, tt := range []struct {
		timeout string
		nodes   []net.Listener
		code    int
		want    string
	}{
		{"1m", []net.Listener{dead, waits, alive}, exitRefused, "answered by n3"},
		{"1m", []net.Listener{dead, waits}, exitCannotAsk, "this node waits"},
		{"3s", []net.Listener{hangs, alive}, exitRefused, "answered by n3"},
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
