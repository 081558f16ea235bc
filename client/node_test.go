package client_test

import (
	"context"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/test/bufconn"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/directory/machine"
	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
	"github.com/rookery-mail/rookery/raftstore"
	"github.com/rookery-mail/rookery/raftstore/snap"
	"github.com/rookery-mail/rookery/raftstore/wal"
	"github.com/rookery-mail/rookery/server"
)

func TestMain(m *testing.M) {
	wal.SetSegmentBytes(1 << 20)
	os.Exit(m.Run())
}

// openNode starts a whole node in this process, its data in dir.
func openNode(dir string) (s *server.Server, stop func(), err error) {
	m := machine.New()
	store, err := raftstore.Open(raftstore.Config{Dir: dir, Name: "n1", Initial: []raftstore.Member{{Name: "n1"}}, Machine: server.Applied(m), MmapSize: 1 << 30})
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := server.Begin(ctx, store, m); err != nil {
		store.Close()
		return nil, nil, err
	}
	s, err = server.New(server.Config{Store: server.Shard(store, nil), Machine: m, Node: "n1", Version: "test", Identity: store.Identity(), Replica: replica{store: store}})
	if err != nil {
		store.Close()
		return nil, nil, err
	}
	return s, func() {
		s.Close(context.Background())
		store.Close()
	}, nil
}

// replica saves snapshots, and does nothing else that operators ask of one.
type replica struct {
	server.Replica
	store *raftstore.Store
}

func (r replica) Snapshot(ctx context.Context, w io.Writer) (snap.Header, error) {
	return r.store.Snapshot(ctx, w)
}

// newClient returns a client of a new node.
func newClient(t testing.TB, opts ...client.Option) *client.Client {
	t.Helper()
	s, stop, err := openNode(t.TempDir())
	if err != nil {
		t.Fatalf("start a node: %v", err)
	}
	t.Cleanup(stop)
	c, err := client.Dial([]string{"n1"}, append([]client.Option{client.WithDialer(s.DialMemory)}, opts...)...)
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
