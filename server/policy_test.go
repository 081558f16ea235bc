package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/rookery-mail/rookery/internal/mtls"
	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
)

// secured is a node that listens with mutual TLS, and the CA for its callers.
type secured struct {
	*testNode
	addr string
	dir  string
	ca   *mtls.CA
	ids  string // a certificate map
}

func newSecured(t *testing.T) *secured {
	t.Helper()
	s := &secured{dir: filepath.Join(t.TempDir(), "pki")}
	var err error
	if s.ca, err = mtls.InitCA(s.dir, "", 0); err != nil {
		t.Fatal(err)
	}
	s.ids = filepath.Join(s.dir, "map")
	s.refuse(t, "")
	paths := s.paths(t, mtls.Identity{Role: mtls.Node, Name: "n1"}, "127.0.0.1")
	paths.Map = s.ids
	node, err := mtls.Load(paths, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	s.testNode = newTestNode(t, func(c *Config) {
		c.Identify = nil
		c.Credentials = mtls.Server(node, mtls.Listening{Proto: "client", Log: slog.New(slog.DiscardHandler)})
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = l.Addr().String()
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Close(context.Background())
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return s
}

// refuse writes the node's map.
func (s *secured) refuse(t *testing.T, lines string) {
	t.Helper()
	if err := os.WriteFile(s.ids, []byte(lines), 0o644); err != nil {
		t.Fatal(err)
	}
}

// files makes a certificate.
func (s *secured) files(t *testing.T, id mtls.Identity, hosts ...string) *mtls.Files {
	t.Helper()
	files, err := mtls.Load(s.paths(t, id, hosts...), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func (s *secured) paths(t *testing.T, id mtls.Identity, hosts ...string) mtls.Paths {
	t.Helper()
	pair, err := s.ca.Issue(mtls.Request{Identity: id, Hosts: hosts})
	if err != nil {
		t.Fatal(err)
	}
	cert, key := mtls.FileNames(id)
	paths := mtls.Paths{Cert: filepath.Join(s.dir, cert), Key: filepath.Join(s.dir, key), CA: filepath.Join(s.dir, mtls.CACert)}
	if err := pair.Write(paths.Cert, paths.Key, true); err != nil {
		t.Fatal(err)
	}
	return paths
}

func (s *secured) dial(t *testing.T, creds credentials.TransportCredentials) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+s.addr, grpc.WithTransportCredentials(creds))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// as connects by a certificate.
func (s *secured) as(t *testing.T, role mtls.Role, name string) *grpc.ClientConn {
	t.Helper()
	return s.dial(t, mtls.Client(s.files(t, mtls.Identity{Role: role, Name: name}), nil))
}

// withoutCertificate is the TLS of a client that trusts the CA and shows nothing.
func (s *secured) withoutCertificate() *tls.Config {
	pool := x509.NewCertPool()
	pool.AddCert(s.ca.Cert)
	return &tls.Config{RootCAs: pool}
}

// invoke calls any method with req, and of a stream reads the first message.
func invoke(t *testing.T, conn *grpc.ClientConn, method string, info grpc.MethodInfo, req proto.Message) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if !info.IsServerStream && !info.IsClientStream {
		return conn.Invoke(ctx, method, req, &emptypb.Empty{})
	}
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: info.IsServerStream, ClientStreams: info.IsClientStream}, method)
	if err != nil {
		return err
	}
	if err := stream.SendMsg(req); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	if err := stream.RecvMsg(&emptypb.Empty{}); !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

// served are all methods of all services, by full name.
func (s *secured) served() map[string]grpc.MethodInfo {
	methods := make(map[string]grpc.MethodInfo)
	for service, info := range s.grpc.GetServiceInfo() {
		for _, m := range info.Methods {
			methods["/"+service+"/"+m.Name] = m
		}
	}
	return methods
}

// Every method of every service, over the network, as every role and as nobody,
// against the one table. A method that the table does not have fails.
func TestPolicyOverTheNetwork(t *testing.T) {
	s := newSecured(t)
	methods := s.served()
	if len(methods) < 40 {
		t.Fatalf("only %d methods are served", len(methods))
	}
	for _, test := range []struct {
		role mtls.Role
		name string
		as   Role
	}{
		{mtls.Backend, be1, RoleBackend}, {mtls.Frontend, "fe1", RoleFrontend}, {mtls.Failover, "ha", RoleFailover},
		{mtls.Operator, "carol", RoleOperator}, {mtls.Node, "n2", RolePeer},
	} {
		conn := s.as(t, test.role, test.name)
		for _, method := range slices.Sorted(maps.Keys(methods)) {
			r, ok := roles[method]
			if !ok {
				t.Errorf("%s has no row in server/roles.go", method)
				continue
			}
			// An empty request: it names no server, which is nobody's own.
			got := reasonOf(invoke(t, conn, method, methods[method], &emptypb.Empty{}))
			switch may := r.allows(Caller{Role: test.as, Name: test.name}); {
			case (may == yes || may == free) && got == "ROLE":
				t.Errorf("%s, %s: got %s, and the table allows it", test.role, method, got)
			case may == no && got != "ROLE":
				t.Errorf("%s, %s: got %s, and the table does not allow it", test.role, method, got)
			}
		}
	}
	if len(callerRoles) != len(mtls.Roles()) {
		t.Errorf("%d roles of certificates, %d of callers", len(mtls.Roles()), len(callerRoles))
	}

	// Nobody: no certificate, one of another CA, plain text. Not even what is free.
	other := newSecured(t)
	for name, conn := range map[string]*grpc.ClientConn{
		"plain text":      s.dial(t, mtls.Client(nil, nil)),
		"a stranger's CA": s.dial(t, mtls.Client(other.files(t, mtls.Identity{Role: mtls.Operator, Name: "carol"}), nil)),
		"no certificate":  s.dial(t, credentials.NewTLS(s.withoutCertificate())),
	} {
		for _, method := range slices.Sorted(maps.Keys(methods)) {
			err := invoke(t, conn, method, methods[method], &emptypb.Empty{})
			if code := status.Code(err); code != codes.Unavailable || reasonOf(err) == "OK" || strings.Contains(reasonOf(err), "ROLE") {
				t.Errorf("nobody (%s), %s: got %v, want no connection", name, method, err)
			}
		}
	}
}

// ownRequests are requests by which a backend states something of server, one for
// each method that the table gives it about itself.
func ownRequests(server string) map[string][]proto.Message {
	hold, state := "user.policy", "user.policy2"
	items := []*apiv1.BatchItem{
		{Op: &apiv1.BatchItem_Assert{Assert: &apiv1.Assert{Mailbox: hold, Server: server}}},
		{Op: &apiv1.BatchItem_Retract{Retract: &apiv1.Retract{Mailbox: hold, Server: server}}},
		{Op: &apiv1.BatchItem_Reserve{Reserve: &apiv1.Reserve{Mailbox: hold, Server: server}}},
		{Op: &apiv1.BatchItem_Release{Release: &apiv1.Release{Mailbox: hold, Server: server}}},
		{Op: &apiv1.BatchItem_Deactivate{Deactivate: &apiv1.Deactivate{Mailbox: hold, Server: server}}},
		{Op: &apiv1.BatchItem_Rename{Rename: &apiv1.Rename{From: hold, To: state, Server: server}}},
	}
	return map[string][]proto.Message{
		apiv1.DirectoryService_Assert_FullMethodName:       {&apiv1.AssertRequest{Assert: items[0].GetAssert()}},
		apiv1.DirectoryService_Retract_FullMethodName:      {&apiv1.RetractRequest{Retract: items[1].GetRetract()}},
		apiv1.DirectoryService_Reserve_FullMethodName:      {&apiv1.ReserveRequest{Reserve: items[2].GetReserve()}},
		apiv1.DirectoryService_Release_FullMethodName:      {&apiv1.ReleaseRequest{Release: items[3].GetRelease()}},
		apiv1.DirectoryService_Deactivate_FullMethodName:   {&apiv1.DeactivateRequest{Deactivate: items[4].GetDeactivate()}},
		apiv1.DirectoryService_Rename_FullMethodName:       {&apiv1.RenameRequest{Rename: items[5].GetRename()}},
		apiv1.DirectoryService_Batch_FullMethodName:        {&apiv1.BatchRequest{Items: items}},
		apiv1.ClusterService_ConfirmBackend_FullMethodName: {&apiv1.ConfirmBackendRequest{Server: server}},
		apiv1.ResyncService_Totals_FullMethodName:          {&apiv1.TotalsRequest{Server: server}},
		apiv1.ResyncService_Compare_FullMethodName:         {&apiv1.CompareRequest{Server: server}},
	}
}

// A backend speaks for its own server alone, by every method that says something of
// one, and inside batches.
func TestBackendSpeaksForItself(t *testing.T) {
	s := newSecured(t)
	s.assertAs(t, be2)
	conn := s.as(t, mtls.Backend, be1)
	methods := s.served()
	mine, others := ownRequests(be1), ownRequests(be2)
	for _, method := range slices.Sorted(maps.Keys(roles)) {
		if roles[method].backend != own {
			continue
		}
		if len(mine[method]) == 0 {
			t.Errorf("%s: the table gives it to backends about themselves, and this test has no request for it", method)
		}
		if method == apiv1.DirectoryService_Batch_FullMethodName {
			continue
		}
		for _, req := range mine[method] {
			if got := reasonOf(invoke(t, conn, method, methods[method], req)); got == "ROLE" {
				t.Errorf("%s for itself: got %s", method, got)
			}
		}
		for _, req := range others[method] {
			if got := reasonOf(invoke(t, conn, method, methods[method], req)); got != "ROLE" {
				t.Errorf("%s for another: got %s, want ROLE", method, got)
			}
		}
	}

	// Each kind of item, its own and another's in turn: what is another's is refused
	// alone, and nothing of it is done.
	api := apiv1.NewDirectoryServiceClient(conn)
	var items []*apiv1.BatchItem
	for _, server := range []string{be1, be2} {
		batch := ownRequests(server)[apiv1.DirectoryService_Batch_FullMethodName][0].(*apiv1.BatchRequest)
		items = append(items, batch.GetItems()...)
	}
	kinds := (&apiv1.BatchItem{}).ProtoReflect().Descriptor().Oneofs().ByName("op").Fields()
	about := 0
	for i := range kinds.Len() {
		if m := kinds.Get(i).Message(); m != nil && m.Fields().ByName("server") != nil {
			about++
		}
	}
	if about != len(items)/2 {
		t.Errorf("%d kinds of items name a server, this test has %d", about, len(items)/2)
	}
	resp, err := api.Batch(t.Context(), &apiv1.BatchRequest{Items: items})
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range resp.GetResults() {
		refused := r.GetError().GetReason() == apiv1.Reason_REASON_ROLE
		if theirs := i >= len(items)/2; refused != theirs {
			t.Errorf("item %d, %v: got %v, want a refusal of the role: %t", i, items[i], r, theirs)
		}
	}
	route, err := api.Lookup(t.Context(), &apiv1.LookupRequest{Mailbox: "user.theirs", Details: true})
	if err != nil || !slices.Equal(facts(route.GetRoute()), []string{be2}) {
		t.Errorf("what another holds: got %v, %v", route, err)
	}

	// The name is the certificate's, octet by octet.
	for _, name := range []string{strings.ToUpper(be1), be1 + ".evil.test", "x" + be1} {
		if got := reasonOf(invoke(t, s.as(t, mtls.Backend, name), apiv1.DirectoryService_Assert_FullMethodName, grpc.MethodInfo{}, mine[apiv1.DirectoryService_Assert_FullMethodName][0])); got != "ROLE" {
			t.Errorf("%s speaks for %s: got %s, want ROLE", name, be1, got)
		}
	}
}

// assertAs has a backend state a mailbox.
func (s *secured) assertAs(t *testing.T, server string) {
	t.Helper()
	_, err := apiv1.NewDirectoryServiceClient(s.as(t, mtls.Backend, server)).Assert(t.Context(), &apiv1.AssertRequest{Assert: &apiv1.Assert{Mailbox: "user.theirs", Server: server}})
	if err != nil {
		t.Fatal(err)
	}
}

// Who did it stands in the history, by the certificate.
func TestCallerOfConnection(t *testing.T) {
	s := newSecured(t)
	for _, test := range []struct {
		conn *grpc.ClientConn
		want string
	}{
		{s.as(t, mtls.Operator, "carol@example.org"), "operator:carol@example.org"},
		{s.as(t, mtls.Failover, "ha"), "failover:ha"},
		{s.conn, "operator:local"}, // from inside the process
	} {
		cluster := apiv1.NewClusterServiceClient(test.conn)
		if _, err := cluster.PutHold(t.Context(), &apiv1.PutHoldRequest{Kind: apiv1.HoldKind_HOLD_KIND_USER, Key: "alice", ForMs: 60000, Why: "test"}); err != nil {
			t.Fatalf("%s: %v", test.want, err)
		}
		holds, err := cluster.ListHolds(t.Context(), &apiv1.ListHoldsRequest{})
		if err != nil || len(holds.GetHolds()) != 1 || holds.GetHolds()[0].GetBy() != test.want {
			t.Errorf("got %v, %v; want a hold by %s", holds.GetHolds(), err, test.want)
		}
	}
}

// A certificate that is refused in the map makes no more calls, also over a
// connection that stands; others are not disturbed.
func TestRefusedMeanwhile(t *testing.T) {
	s := newSecured(t)
	carol, dave := s.as(t, mtls.Operator, "carol"), s.as(t, mtls.Operator, "dave")
	status := func(conn *grpc.ClientConn) string {
		_, err := apiv1.NewClusterServiceClient(conn).Status(t.Context(), &apiv1.StatusRequest{})
		return reasonOf(err)
	}
	if a, b := status(carol), status(dave); a != "OK" || b != "OK" {
		t.Fatalf("before: got %s, %s", a, b)
	}
	s.refuse(t, "uri:rookery://operator/carol: none\n")
	for end := time.Now().Add(20 * time.Second); status(carol) != "ROLE"; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("20 s after it was refused, the certificate makes calls")
		}
	}
	if got := status(dave); got != "OK" {
		t.Errorf("another's: got %s", got)
	}
	s.refuse(t, "# better\n")
	for end := time.Now().Add(20 * time.Second); status(carol) != "OK"; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("20 s after it was taken back, the certificate makes no calls")
		}
	}
}
