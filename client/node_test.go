package client_test

import (
	"context"
	"net"
	"os"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/test/bufconn"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
	"github.com/rookery-mail/rookery/server/servertest"
)

// newClient returns a client of a new node.
func newClient(t testing.TB, opts ...client.Option) *client.Client {
	t.Helper()
	c, err := client.Dial([]string{"n1"}, append([]client.Option{client.WithDialer(servertest.New(t).DialMemory)}, opts...)...)
	if err != nil {
		t.Fatalf("Dial: %v", err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

const (
	be1 directory.BackendName = "be1.example.com"
	be2 directory.BackendName = "be2.example.com"
)

// fakeNode is a node that answers as a test says.
type fakeNode struct {
	apiv1.UnimplementedDirectoryServiceServer
	listener *bufconn.Listener
	server   *grpc.Server

	mu     sync.Mutex
	lookup func(*apiv1.LookupRequest) (*apiv1.LookupResponse, error)
	assert func(*apiv1.AssertRequest) (*apiv1.AssertResponse, error)
	list   func(grpc.ServerStreamingServer[apiv1.ListResponse]) error
	watch  func(*apiv1.WatchRequest, grpc.ServerStreamingServer[apiv1.WatchResponse]) error
	reads  []*apiv1.LookupRequest
	writes []*apiv1.AssertRequest
}

func (f *fakeNode) Lookup(_ context.Context, req *apiv1.LookupRequest) (*apiv1.LookupResponse, error) {
	f.mu.Lock()
	f.reads = append(f.reads, req)
	answer := f.lookup
	f.mu.Unlock()
	return answer(req)
}

func (f *fakeNode) Assert(_ context.Context, req *apiv1.AssertRequest) (*apiv1.AssertResponse, error) {
	f.mu.Lock()
	f.writes = append(f.writes, req)
	answer := f.assert
	f.mu.Unlock()
	return answer(req)
}

func (f *fakeNode) List(_ *apiv1.ListRequest, stream grpc.ServerStreamingServer[apiv1.ListResponse]) error {
	return f.list(stream)
}

func (f *fakeNode) Watch(req *apiv1.WatchRequest, stream grpc.ServerStreamingServer[apiv1.WatchResponse]) error {
	return f.watch(req, stream)
}

func (f *fakeNode) counts() (reads, writes int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.reads), len(f.writes)
}

// fakeCluster is some nodes, by address. An address that is not there cannot be
// reached.
type fakeCluster map[string]*fakeNode

func newFakes(t testing.TB, addresses ...string) fakeCluster {
	t.Helper()
	c := make(fakeCluster)
	for _, address := range addresses {
		f := &fakeNode{listener: bufconn.Listen(64 << 10), server: grpc.NewServer()}
		header := func(revision uint64) *apiv1.ResponseHeader {
			return &apiv1.ResponseHeader{Token: []byte(address), Revision: revision, Incarnation: 1, Node: address}
		}
		f.lookup = func(*apiv1.LookupRequest) (*apiv1.LookupResponse, error) {
			return &apiv1.LookupResponse{Header: header(1), Route: &apiv1.Route{Outcome: apiv1.Outcome_OUTCOME_SERVING}}, nil
		}
		f.assert = func(*apiv1.AssertRequest) (*apiv1.AssertResponse, error) {
			return &apiv1.AssertResponse{Header: header(2), Result: &apiv1.WriteResult{Effect: apiv1.Effect_EFFECT_ADDED}}, nil
		}
		apiv1.RegisterDirectoryServiceServer(f.server, f)
		served := make(chan struct{})
		go func() {
			defer close(served)
			f.server.Serve(f.listener)
		}()
		t.Cleanup(func() {
			f.server.Stop()
			<-served
		})
		c[address] = f
	}
	return c
}

func (c fakeCluster) dial(ctx context.Context, address string) (net.Conn, error) {
	f := c[address]
	if f == nil {
		return nil, &net.OpError{Op: "dial", Net: "memory", Err: os.ErrNotExist}
	}
	return f.listener.DialContext(ctx)
}

func (c fakeCluster) client(t testing.TB, endpoints []string, opts ...client.Option) *client.Client {
	t.Helper()
	cl, err := client.Dial(endpoints, append([]client.Option{client.WithDialer(c.dial)}, opts...)...)
	if err != nil {
		t.Fatalf("Dial: %v", err)
	}
	t.Cleanup(func() { cl.Close() })
	return cl
}
