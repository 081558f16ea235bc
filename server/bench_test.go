package server

import (
	"context"
	"fmt"
	"io"
	"net"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"

	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
)

// What the answers of these benchmarks cost beside an echo: a server without
// interceptor, rules or state that sends the same octets. All over TCP on
// loopback.

// echo answers what it was given to answer.
type echo struct {
	apiv1.UnimplementedDirectoryServiceServer
	lookup *apiv1.LookupResponse
	list   []*apiv1.ListResponse
}

func (e *echo) Lookup(context.Context, *apiv1.LookupRequest) (*apiv1.LookupResponse, error) {
	return e.lookup, nil
}

func (e *echo) List(_ *apiv1.ListRequest, stream grpc.ServerStreamingServer[apiv1.ListResponse]) error {
	for _, m := range e.list {
		if err := stream.Send(m); err != nil {
			return err
		}
	}
	return nil
}

// overTCP returns a client of serve on a socket of loopback.
func overTCP(b *testing.B, serve func(net.Listener) error) apiv1.DirectoryServiceClient {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	go serve(l) // ends with its server
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { conn.Close() })
	return apiv1.NewDirectoryServiceClient(conn)
}

func serveEcho(b *testing.B, e *echo) apiv1.DirectoryServiceClient {
	g := grpc.NewServer()
	apiv1.RegisterDirectoryServiceServer(g, e)
	b.Cleanup(g.Stop)
	return overTCP(b, g.Serve)
}

// populate has alice own 50 mailboxes.
func populate(b *testing.B) *testNode {
	n := newTestNode(b)
	items := make([]*apiv1.BatchItem, 50)
	for i := range items {
		name := "user.alice"
		if i > 0 {
			name = fmt.Sprintf("user.alice.folder%02d", i)
		}
		acl := alice
		items[i] = &apiv1.BatchItem{Op: &apiv1.BatchItem_Assert{Assert: &apiv1.Assert{Mailbox: name, Server: be1, Partition: "default", Acl: &acl}}}
	}
	if _, err := n.Batch(b.Context(), &apiv1.BatchRequest{Items: items}); err != nil {
		b.Fatal(err)
	}
	_, err := n.SetBackend(b.Context(), &apiv1.SetBackendRequest{Server: be1, Addresses: &apiv1.AddressList{Addresses: []*apiv1.Address{
		{Service: "imap", Ip: "10.0.0.1", Port: 143, Tls: apiv1.TlsMode_TLS_MODE_START},
		{Service: "lmtp", Ip: "10.0.0.1", Port: 24},
	}}})
	if err != nil {
		b.Fatal(err)
	}
	return n
}

func BenchmarkLookup(b *testing.B) {
	n := populate(b)
	node := overTCP(b, n.Serve)
	req := &apiv1.LookupRequest{Mailbox: "user.alice.folder07"}
	first, err := node.Lookup(b.Context(), req)
	if err != nil {
		b.Fatal(err)
	}
	req.Consistency = &apiv1.Consistency{Token: first.GetHeader().GetToken()}
	same := serveEcho(b, &echo{lookup: first})
	for _, one := range []struct {
		name string
		to   apiv1.DirectoryServiceClient
		mode apiv1.ConsistencyMode
	}{
		{"echo", same, 0},
		{"at-least", node, 0},
		{"linearizable", node, apiv1.ConsistencyMode_CONSISTENCY_MODE_LINEARIZABLE},
	} {
		req := proto.CloneOf(req)
		req.Consistency.Mode = one.mode
		b.Run(one.name, func(b *testing.B) {
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if _, err := one.to.Lookup(context.Background(), req); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}

// The same without the network: what is ours of it.
func BenchmarkLookupHandler(b *testing.B) {
	n := populate(b)
	d := &directoryService{s: n.Server}
	req := &apiv1.LookupRequest{Mailbox: "user.alice.folder07"}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := d.Lookup(b.Context(), req); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkList50(b *testing.B) {
	n := populate(b)
	node := overTCP(b, n.Serve)
	req := &apiv1.ListRequest{User: "alice", Patterns: []string{"*"}}
	read := func(to apiv1.DirectoryServiceClient) (all []*apiv1.ListResponse, err error) {
		stream, err := to.List(context.Background(), req)
		if err != nil {
			return nil, err
		}
		for {
			m, err := stream.Recv()
			if err == io.EOF {
				return all, nil
			}
			if err != nil {
				return nil, err
			}
			all = append(all, m)
		}
	}
	whole, err := read(node)
	if err != nil {
		b.Fatal(err)
	}
	if got := whole[len(whole)-1].GetSummary().GetRows(); got != 50 {
		b.Fatalf("a listing of %d rows, want 50", got)
	}
	for _, one := range []struct {
		name string
		to   apiv1.DirectoryServiceClient
	}{
		{"echo", serveEcho(b, &echo{list: whole})},
		{"list", node},
	} {
		b.Run(one.name, func(b *testing.B) {
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if _, err := read(one.to); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}
