package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
)

var operator = Caller{Role: RoleOperator, Name: "carol"}

// bothWays are a connection by Conn and one over a listener, which the same calls
// must answer alike.
func bothWays(n *testNode, caller Caller) map[string]grpc.ClientConnInterface {
	n.caller = caller
	return map[string]grpc.ClientConnInterface{"in-process": n.Conn(caller), "network": n.conn}
}

func TestConnAnswers(t *testing.T) {
	n := newTestNode(t)
	n.assert(t, be1, "user.alice")
	answers := map[string]string{}
	for way, c := range bothWays(n, operator) {
		r, err := apiv1.NewDirectoryServiceClient(c).Lookup(t.Context(), &apiv1.LookupRequest{Mailbox: "user.alice"})
		if err != nil {
			t.Fatalf("%s: Lookup: %v", way, err)
		}
		r.Header.AgeMs = 0
		answers[way] = fmt.Sprint(r)
		h, err := healthv1.NewHealthClient(c).Check(t.Context(), &healthv1.HealthCheckRequest{})
		if err != nil || h.Status != healthv1.HealthCheckResponse_SERVING {
			t.Errorf("%s: health: got %v, %v", way, h, err)
		}
	}
	if answers["in-process"] != answers["network"] || answers["network"] == "" {
		t.Errorf("got answers %q", answers)
	}
}

// The same errors, with the same details, for whatever is wrong with a call.
func TestConnErrors(t *testing.T) {
	n := newTestNode(t)
	n.assert(t, be1, "user.alice")
	backend := Caller{Role: RoleBackend, Name: be2}
	for _, c := range []struct {
		what   string
		caller Caller
		call   func(context.Context, grpc.ClientConnInterface) error
		code   codes.Code
		reason string
	}{
		{"refused by its role", backend, func(ctx context.Context, c grpc.ClientConnInterface) error {
			_, err := apiv1.NewClusterServiceClient(c).AdmitBackend(ctx, &apiv1.AdmitBackendRequest{Server: be2})
			return err
		}, codes.PermissionDenied, "ROLE"},
		{"about another backend", backend, func(ctx context.Context, c grpc.ClientConnInterface) error {
			_, err := apiv1.NewDirectoryServiceClient(c).Retract(ctx, &apiv1.RetractRequest{Retract: &apiv1.Retract{Mailbox: "user.alice", Server: be1}})
			return err
		}, codes.PermissionDenied, "ROLE"},
		{"without a role", Caller{}, func(ctx context.Context, c grpc.ClientConnInterface) error {
			_, err := apiv1.NewDirectoryServiceClient(c).Lookup(ctx, &apiv1.LookupRequest{Mailbox: "user.alice"})
			return err
		}, codes.PermissionDenied, "ROLE"},
		{"refused with a holder", backend, func(ctx context.Context, c grpc.ClientConnInterface) error {
			_, err := apiv1.NewDirectoryServiceClient(c).Reserve(ctx, &apiv1.ReserveRequest{Reserve: &apiv1.Reserve{Mailbox: "user.alice", Server: be2}})
			return err
		}, codes.AlreadyExists, "EXISTS"},
		{"too large for the server", operator, func(ctx context.Context, c grpc.ClientConnInterface) error {
			_, err := apiv1.NewDirectoryServiceClient(c).Lookup(ctx, &apiv1.LookupRequest{Mailbox: strings.Repeat("x", maxRequest+1)})
			return err
		}, codes.InvalidArgument, "TOO_LARGE"},
		{"too large for the transport", operator, func(ctx context.Context, c grpc.ClientConnInterface) error {
			_, err := apiv1.NewDirectoryServiceClient(c).Lookup(ctx, &apiv1.LookupRequest{Mailbox: strings.Repeat("x", maxMessage+1)})
			return err
		}, codes.ResourceExhausted, ""},
		{"too large to be sent", operator, func(ctx context.Context, c grpc.ClientConnInterface) error {
			_, err := apiv1.NewDirectoryServiceClient(c).Lookup(ctx, &apiv1.LookupRequest{Mailbox: "user.alice"}, grpc.MaxCallSendMsgSize(5))
			return err
		}, codes.ResourceExhausted, ""},
		{"too large to be received", operator, func(ctx context.Context, c grpc.ClientConnInterface) error {
			_, err := apiv1.NewDirectoryServiceClient(c).Lookup(ctx, &apiv1.LookupRequest{Mailbox: "user.alice"}, grpc.MaxCallRecvMsgSize(5))
			return err
		}, codes.ResourceExhausted, ""},
		{"with text that is none", operator, func(ctx context.Context, c grpc.ClientConnInterface) error {
			_, err := apiv1.NewDirectoryServiceClient(c).Lookup(ctx, &apiv1.LookupRequest{Mailbox: "user.\xff"})
			return err
		}, codes.Internal, ""},
		{"of no method", operator, func(ctx context.Context, c grpc.ClientConnInterface) error {
			return c.Invoke(ctx, "/rookery.api.v1.DirectoryService/Nothing", &apiv1.LookupRequest{}, &apiv1.LookupResponse{})
		}, codes.Unimplemented, ""},
		{"a stream of no method", operator, func(ctx context.Context, c grpc.ClientConnInterface) error {
			st, err := c.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, "/rookery.api.v1.DirectoryService/Nothing")
			if err == nil {
				err = st.RecvMsg(&apiv1.ListResponse{})
			}
			return err
		}, codes.Unimplemented, ""},
		{"a stream that is refused", operator, func(ctx context.Context, c grpc.ClientConnInterface) error {
			st, err := apiv1.NewDirectoryServiceClient(c).List(ctx, &apiv1.ListRequest{Patterns: []string{"*"}, Namespace: &apiv1.Namespace{Separator: "#"}})
			if err == nil {
				_, err = st.Recv()
			}
			return err
		}, codes.InvalidArgument, "INVALID"},
		{"whose context has ended", operator, func(ctx context.Context, c grpc.ClientConnInterface) error {
			ctx, cancel := context.WithCancel(ctx)
			cancel()
			_, err := apiv1.NewDirectoryServiceClient(c).Lookup(ctx, &apiv1.LookupRequest{Mailbox: "user.alice"})
			return err
		}, codes.Canceled, ""},
		{"a stream whose time is over", operator, func(ctx context.Context, c grpc.ClientConnInterface) error {
			ctx, cancel := context.WithTimeout(ctx, -time.Second)
			defer cancel()
			st, err := apiv1.NewDirectoryServiceClient(c).List(ctx, &apiv1.ListRequest{Patterns: []string{"*"}})
			if err == nil {
				_, err = st.Recv()
			}
			return err
		}, codes.DeadlineExceeded, ""},
	} {
		metadataOf := map[string]string{}
		for way, conn := range bothWays(n, c.caller) {
			st := status.Convert(c.call(t.Context(), conn))
			var info *errdetails.ErrorInfo
			for _, d := range st.Details() {
				info = d.(*errdetails.ErrorInfo)
			}
			if st.Code() != c.code || info.GetReason() != c.reason {
				t.Errorf("a call %s, %s: got %s, reason %q (%s); want %s, %q", c.what, way, st.Code(), info.GetReason(), st.Message(), c.code, c.reason)
			}
			metadataOf[way] = fmt.Sprint(info.GetMetadata())
		}
		if c.caller.Role == RoleBackend && metadataOf["in-process"] != metadataOf["network"] && c.reason != "EXISTS" {
			t.Errorf("a call %s: got metadata %q", c.what, metadataOf)
		}
	}
}

// A call is its Conn's caller's, whatever Identify would say and whatever a context
// has been through before.
func TestConnCaller(t *testing.T) {
	asked := 0
	n := newTestNode(t, func(cfg *Config) {
		cfg.Identify = func(context.Context) (Caller, error) { asked++; return operator, nil }
	})
	_, err := apiv1.NewDirectoryServiceClient(n.Conn(Caller{Role: RoleBackend, Name: be1})).Assert(t.Context(), &apiv1.AssertRequest{Assert: &apiv1.Assert{Mailbox: "user.alice", Server: be1}})
	if err != nil {
		t.Errorf("be1 for itself: %v", err)
	}
	_, err = apiv1.NewDirectoryServiceClient(n.Conn(Caller{Role: RoleFrontend, Name: "fe1"})).Assert(t.Context(), &apiv1.AssertRequest{Assert: &apiv1.Assert{Mailbox: "user.alice", Server: be1}})
	if status.Code(err) != codes.PermissionDenied {
		t.Errorf("a frontend for be1: got %v, want PermissionDenied", err)
	}
	if asked > 0 {
		t.Errorf("Identify was asked %d times", asked)
	}
	// Inside a handler of one Conn's, another one's caller counts.
	inner := n.Conn(Caller{Role: RoleFrontend, Name: "fe1"})
	ctx := n.Conn(operator).(*conn).enter(t.Context(), &transport{})
	_, err = apiv1.NewDirectoryServiceClient(inner).Assert(ctx, &apiv1.AssertRequest{Assert: &apiv1.Assert{Mailbox: "user.alice", Server: be1}})
	if status.Code(err) != codes.PermissionDenied {
		t.Errorf("a frontend from inside an operator's call: got %v, want PermissionDenied", err)
	}
}

// echoService has one method of each kind, made for what the API's do not do.
type echoService struct {
	unary  func(ctx context.Context, text string) (string, error)
	stream func(grpc.ServerStream) error
}

type echoAPI interface{ echo() }

func (*echoService) echo() {}

func (e *echoService) desc() *grpc.ServiceDesc {
	stream := func(srv any, st grpc.ServerStream) error { return srv.(*echoService).stream(st) }
	return &grpc.ServiceDesc{
		ServiceName: "test.Echo",
		HandlerType: (*echoAPI)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "Unary", Handler: func(srv any, ctx context.Context, dec func(any) error, with grpc.UnaryServerInterceptor) (any, error) {
			in := new(healthv1.HealthCheckRequest)
			if err := dec(in); err != nil {
				return nil, err
			}
			return with(ctx, in, &grpc.UnaryServerInfo{Server: srv, FullMethod: "/test.Echo/Unary"}, func(ctx context.Context, _ any) (any, error) {
				out, err := srv.(*echoService).unary(ctx, in.Service)
				return &healthv1.HealthCheckRequest{Service: out}, err
			})
		}}},
		Streams: []grpc.StreamDesc{
			{StreamName: "Both", Handler: stream, ServerStreams: true, ClientStreams: true},
			{StreamName: "Out", Handler: stream, ServerStreams: true},
			{StreamName: "In", Handler: stream, ClientStreams: true},
		},
	}
}

// newEcho is a server with the echo service alone, and the two ways to it.
func newEcho(t *testing.T, e *echoService) (*Server, map[string]grpc.ClientConnInterface) {
	t.Helper()
	n := newTestNode(t)
	s := &Server{in: newInProcess(), methods: map[string]*method{}, log: n.log, identify: n.identify, members: n.Server.members}
	for _, name := range []string{"Unary", "Both", "Out", "In"} {
		m := *n.methods[healthv1.Health_Check_FullMethodName]
		s.methods["/test.Echo/"+name] = &m
	}
	s.grpc = grpc.NewServer(grpc.UnaryInterceptor(s.unary), grpc.StreamInterceptor(s.stream))
	registrar{s.grpc, s.in}.RegisterService(e.desc(), e)
	l := bufconn.Listen(memoryBuffer)
	done := make(chan error)
	go func() { done <- s.grpc.Serve(l) }()
	conn, err := grpc.NewClient("passthrough:///echo", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.in.cancel()
		conn.Close()
		s.grpc.Stop()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return s, map[string]grpc.ClientConnInterface{"in-process": s.Conn(operator), "network": conn}
}

func said(s string) *healthv1.HealthCheckRequest { return &healthv1.HealthCheckRequest{Service: s} }

// Metadata crosses in both directions, and only as far as it does on the network.
func TestConnMetadata(t *testing.T) {
	var heard metadata.MD
	var leaks bool
	e := &echoService{unary: func(ctx context.Context, in string) (string, error) {
		heard, _ = metadata.FromIncomingContext(ctx)
		out, _ := metadata.FromOutgoingContext(ctx)
		leaks = len(out) > 0
		if p, ok := peer.FromContext(ctx); !ok || p.Addr == nil {
			return "", errors.New("a caller from nowhere")
		}
		if err := grpc.SetHeader(ctx, metadata.Pairs("h", "1")); err != nil {
			return "", err
		}
		if err := grpc.SendHeader(ctx, metadata.Pairs("h", "2")); err != nil {
			return "", err
		}
		if grpc.SetHeader(ctx, metadata.Pairs("h", "3")) == nil {
			return "", errors.New("a header after the header")
		}
		if err := grpc.SetTrailer(ctx, metadata.Pairs("t", "4")); err != nil {
			return "", err
		}
		if in == "fail" {
			return "", directory.ErrBusy
		}
		return in, nil
	}}
	_, ways := newEcho(t, e)
	for way, c := range ways {
		for _, in := range []string{"ok", "fail"} {
			var header, trailer metadata.MD
			var from peer.Peer
			var finished error
			calls := 0
			out := new(healthv1.HealthCheckRequest)
			ctx := metadata.AppendToOutgoingContext(t.Context(), "Key", "value")
			err := c.Invoke(ctx, "/test.Echo/Unary", said(in), out, grpc.Header(&header), grpc.Trailer(&trailer), grpc.Peer(&from),
				grpc.OnFinish(func(err error) { finished = err; calls++ }))
			if (err != nil) != (in == "fail") || err == nil && out.Service != in {
				t.Errorf("%s, %s: got %q, %v", way, in, out.Service, err)
			}
			if got := heard.Get("key"); !slices.Equal(got, []string{"value"}) || leaks {
				t.Errorf("%s, %s: the handler heard %q; would send it on: %t", way, in, got, leaks)
			}
			if got := header.Get("h"); !slices.Equal(got, []string{"1", "2"}) || !slices.Equal(trailer.Get("t"), []string{"4"}) {
				t.Errorf("%s, %s: got header %q, trailer %q", way, in, got, trailer)
			}
			if from.Addr == nil || calls != 1 || status.Code(finished) != status.Code(err) {
				t.Errorf("%s, %s: peer %v; told of the end %d times: %v", way, in, from, calls, finished)
			}
		}
	}
}

// Neither side sees what the other does to a message afterwards.
func TestConnSharesNoMemory(t *testing.T) {
	shared := &healthv1.HealthCheckRequest{Service: "first"}
	e := &echoService{stream: func(st grpc.ServerStream) error {
		for _, s := range []string{"first", "second"} {
			shared.Service = s
			if err := st.SendMsg(shared); err != nil {
				return err
			}
		}
		return nil
	}}
	_, ways := newEcho(t, e)
	for way, c := range ways {
		st, err := c.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true}, "/test.Echo/Out")
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(st.SendMsg(said("")), st.CloseSend()); err != nil {
			t.Fatal(err)
		}
		var got []string
		for {
			m := new(healthv1.HealthCheckRequest)
			err := st.RecvMsg(m)
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, m.Service)
		}
		if !slices.Equal(got, []string{"first", "second"}) {
			t.Errorf("%s: got %q", way, got)
		}
	}
}

// A call with one answer is handled on its caller's goroutine and in its context.
func TestConnUnaryIsSynchronous(t *testing.T) {
	type key struct{}
	var handledBy, value string
	e := &echoService{unary: func(ctx context.Context, _ string) (string, error) {
		handledBy = goroutine()
		value, _ = ctx.Value(key{}).(string)
		<-ctx.Done()
		return "", fmt.Errorf("waited in vain: %w", ctx.Err())
	}}
	s, _ := newEcho(t, e)
	ctx, cancel := context.WithTimeout(context.WithValue(t.Context(), key{}, "mine"), 20*time.Millisecond)
	defer cancel()
	err := s.Conn(operator).Invoke(ctx, "/test.Echo/Unary", said(""), said(""))
	if status.Code(err) != codes.DeadlineExceeded || value != "mine" {
		t.Errorf("got %v and value %q, want DeadlineExceeded and %q", err, value, "mine")
	}
	if caller := goroutine(); handledBy != caller {
		t.Errorf("handled by %s, called by %s", handledBy, caller)
	}
}

// goroutine names the one that calls it.
func goroutine() string {
	b := make([]byte, 64)
	name, _, _ := strings.Cut(string(b[:runtime.Stack(b, false)]), " [")
	return name
}

// Both ends of a stream, in every combination of how it may go.
func TestConnStreams(t *testing.T) {
	echo := func(st grpc.ServerStream) error {
		if err := st.SetHeader(metadata.Pairs("h", "1")); err != nil {
			return err
		}
		st.SetTrailer(metadata.Pairs("t", "2"))
		for {
			m := new(healthv1.HealthCheckRequest)
			err := st.RecvMsg(m)
			if err == io.EOF {
				return nil
			}
			if err == nil && m.Service == "fail" {
				err = directory.ErrBusy
			}
			if err == nil {
				err = st.SendMsg(m)
			}
			if err != nil {
				return err
			}
		}
	}
	e := &echoService{}
	_, ways := newEcho(t, e)
	for way, c := range ways {
		e.stream = echo
		var header, trailer metadata.MD
		st, err := c.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/test.Echo/Both", grpc.Header(&header), grpc.Trailer(&trailer))
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range []string{"a", "b"} {
			m := new(healthv1.HealthCheckRequest)
			if err := errors.Join(st.SendMsg(said(s)), st.RecvMsg(m)); err != nil || m.Service != s {
				t.Errorf("%s: sent %q, got %q, %v", way, s, m.Service, err)
			}
		}
		if h, err := st.Header(); err != nil || !slices.Equal(h.Get("h"), []string{"1"}) {
			t.Errorf("%s: Header: got %v, %v", way, h, err)
		}
		if err := st.SendMsg(said("fail")); err != nil {
			t.Errorf("%s: SendMsg: %v", way, err)
		}
		if err := st.RecvMsg(said("")); status.Code(err) != codes.FailedPrecondition {
			t.Errorf("%s: got %v, want FailedPrecondition", way, err)
		}
		for range 100 { // it takes a moment on the network
			if err = st.SendMsg(said("late")); err != nil {
				break
			}
		}
		if err != io.EOF {
			t.Errorf("%s: SendMsg to a handler that ended: got %v, want EOF", way, err)
		}
		if got := st.Trailer().Get("t"); !slices.Equal(got, []string{"2"}) || !slices.Equal(trailer.Get("t"), got) || !slices.Equal(header.Get("h"), []string{"1"}) {
			t.Errorf("%s: got trailer %q, by option %q, header by option %q", way, got, trailer, header)
		}

		// One answer to many requests: none, one, too many.
		for n, want := range []codes.Code{codes.Internal, codes.OK, codes.Internal} {
			e.stream = func(st grpc.ServerStream) error {
				for range n {
					if err := st.SendMsg(said("x")); err != nil {
						return err
					}
				}
				return nil
			}
			st, err := c.NewStream(t.Context(), &grpc.StreamDesc{ClientStreams: true}, "/test.Echo/In")
			if err == nil {
				err = st.CloseSend()
			}
			if err == nil {
				err = st.RecvMsg(said(""))
			}
			if status.Code(err) != want {
				t.Errorf("%s: a single answer of which came %d: got %v, want %s", way, n, err, want)
			}
		}
	}
}

// A handler is not let run ahead of who receives, and its context ends with theirs.
func TestConnBackpressureAndCancel(t *testing.T) {
	sent := make(chan int, 1)
	ended := make(chan error, 1)
	e := &echoService{stream: func(st grpc.ServerStream) error {
		n := 0
		for {
			if err := st.SendMsg(said("x")); err != nil {
				sent <- n
				<-st.Context().Done()
				ended <- st.Context().Err()
				return err
			}
			n++
		}
	}}
	s, _ := newEcho(t, e)
	ctx, cancel := context.WithCancel(t.Context())
	st, err := s.Conn(operator).NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, "/test.Echo/Out")
	if err != nil {
		t.Fatal(err)
	}
	const received = 3
	for range received {
		if err := st.RecvMsg(said("")); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(50 * time.Millisecond)
	cancel()
	if err := st.RecvMsg(said("")); status.Code(err) != codes.Canceled {
		t.Errorf("after cancel: got %v, want Canceled", err)
	}
	if n := <-sent; n > received+streamWindow {
		t.Errorf("the handler sent %d messages to who took %d; at most %d may be on their way", n, received, streamWindow)
	}
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the handler's context ended by %v", err)
	}
}

// Who gives a call up does not wait for its handler.
func TestConnCancelIsPrompt(t *testing.T) {
	release := make(chan struct{})
	e := &echoService{stream: func(st grpc.ServerStream) error { <-release; return nil }}
	s, _ := newEcho(t, e)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	st, err := s.Conn(operator).NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, "/test.Echo/Out")
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan error, 1)
	go func() { got <- st.RecvMsg(said("")) }()
	select {
	case err := <-got:
		if status.Code(err) != codes.DeadlineExceeded {
			t.Errorf("got %v, want DeadlineExceeded", err)
		}
	case <-time.After(5 * time.Second):
		t.Error("RecvMsg waits for a handler that does not look at its context")
	}
	close(release)
	s.in.calls.Wait()
}

// A stream by LoneConn has no goroutine either, and answers the same.
func TestLoneConn(t *testing.T) {
	var handledBy string
	e := &echoService{stream: func(st grpc.ServerStream) error {
		handledBy = goroutine()
		in := new(healthv1.HealthCheckRequest)
		if err := st.RecvMsg(in); err != nil {
			return err
		}
		if err := st.RecvMsg(new(healthv1.HealthCheckRequest)); err != io.EOF {
			return fmt.Errorf("after the last request: %w", err)
		}
		for range 3 * streamWindow {
			if err := st.SendMsg(in); err != nil {
				return err
			}
		}
		return directory.ErrBusy
	}}
	s, _ := newEcho(t, e)
	st, err := s.LoneConn(operator).NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true}, "/test.Echo/Out")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(st.SendMsg(said("x")), st.CloseSend()); err != nil {
		t.Fatal(err)
	}
	for n := 0; ; n++ {
		m := new(healthv1.HealthCheckRequest)
		err := st.RecvMsg(m)
		if status.Code(err) == codes.FailedPrecondition {
			if n != 3*streamWindow {
				t.Errorf("got %d answers, want %d", n, 3*streamWindow)
			}
			break
		}
		if err != nil || m.Service != "x" {
			t.Fatalf("answer %d: got %q, %v", n, m.Service, err)
		}
	}
	if caller := goroutine(); handledBy != caller {
		t.Errorf("handled by %s, called by %s", handledBy, caller)
	}
	s.in.calls.Wait()
}

// Close ends watches, waits for what is under way, breaks it off when its time is
// over, and takes nothing more.
func TestConnClose(t *testing.T) {
	n := newTestNode(t)
	c := apiv1.NewDirectoryServiceClient(n.Conn(operator))
	watch, err := c.Watch(t.Context(), &apiv1.WatchRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := watch.Recv(); err != nil {
		t.Fatalf("Watch: %v", err)
	}
	n.store.late = true
	broken := make(chan error)
	go func() {
		_, err := c.Assert(context.Background(), &apiv1.AssertRequest{Assert: &apiv1.Assert{Mailbox: "user.alice", Server: be1}})
		broken <- err
	}()
	time.Sleep(20 * time.Millisecond)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	closed := make(chan struct{})
	go func() { n.Close(ctx); close(closed) }()
	if err := <-broken; status.Code(err) != codes.Unavailable {
		t.Errorf("a write under way: got %v, want Unavailable", err)
	}
	<-closed
	for err = nil; err == nil; {
		_, err = watch.Recv()
	}
	if status.Code(err) != codes.Unavailable {
		t.Errorf("the watch: got %v, want Unavailable", err)
	}
	_, err = c.Lookup(t.Context(), &apiv1.LookupRequest{Mailbox: "user.alice"})
	wantReason(t, "a call after Close", err, apiv1.Reason_REASON_CLOSED)
	list, err := c.List(t.Context(), &apiv1.ListRequest{Patterns: []string{"*"}})
	if err == nil {
		_, err = list.Recv()
	}
	wantReason(t, "a stream after Close", err, apiv1.Reason_REASON_CLOSED)
}

// Reflection, a stream of two directions, is there as on the network.
func TestConnReflection(t *testing.T) {
	n := newTestNode(t)
	for way, c := range bothWays(n, operator) {
		st, err := reflectionv1.NewServerReflectionClient(c).ServerReflectionInfo(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := st.Send(&reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{}}); err != nil {
			t.Fatal(err)
		}
		r, err := st.Recv()
		if err != nil || !strings.Contains(r.String(), apiv1.DirectoryService_ServiceDesc.ServiceName) {
			t.Errorf("%s: got %v, %v", way, r, err)
		}
		if err := st.CloseSend(); err != nil {
			t.Error(err)
		}
		if _, err := st.Recv(); err != io.EOF {
			t.Errorf("%s: at the end: got %v, want EOF", way, err)
		}
	}
}

// The client library by such a connection: all of it, a listing and a watch included.
func TestClientWithConn(t *testing.T) {
	n := newTestNode(t)
	n.caller = Caller{}
	asked := map[string]bool{}
	c, err := client.Dial([]string{"here"}, client.WithConn(n.Conn(operator)), client.WithObserver(func(a client.Attempt) { asked[a.Endpoint] = true }))
	if err != nil {
		t.Fatal(err)
	}
	acl := alice
	const many = 300 // several messages
	for i := range many {
		name := directory.MailboxName(fmt.Sprintf("user.alice.f%03d", i))
		r, err := c.Assert(t.Context(), client.Assert{Mailbox: name, Server: be1, Statement: directory.Statement{ACL: &acl}})
		if err != nil || r.Effect != client.Added {
			t.Fatalf("Assert: got %+v, %v", r, err)
		}
	}
	l, err := c.List(t.Context(), client.ListQuery{Principal: directory.Principal{User: "alice"}, Patterns: []string{"*"}})
	if err != nil {
		t.Fatal(err)
	}
	if len(l.Rows) < many {
		t.Errorf("a listing of %d rows, want at least %d", len(l.Rows), many)
	}
	// It is told of a leader elsewhere, and connects to nobody.
	n.store.propose = withMetadata(errNotLeader, "leader", "n2", "leader_address", "127.0.0.1:1")
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := c.Assert(ctx, client.Assert{Mailbox: "user.alice", Server: be1}); !errors.Is(err, client.ErrNotLeader) {
		t.Errorf("with a leader elsewhere: got %v, want ErrNotLeader", err)
	}
	if len(asked) != 1 || !asked["here"] {
		t.Errorf("asked at %v", asked)
	}
	n.store.propose = nil
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if _, err := client.Dial([]string{"one", "two"}, client.WithConn(n.Conn(operator))); err == nil {
		t.Error("two endpoints and one connection were taken")
	}
}

// BenchmarkConn is what a lookup costs without the network.
func BenchmarkConn(b *testing.B) {
	n := newTestNode(b)
	for way, c := range bothWays(n, operator) {
		b.Run(way, func(b *testing.B) {
			d := apiv1.NewDirectoryServiceClient(c)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := d.LookupMany(b.Context(), &apiv1.LookupManyRequest{Mailboxes: []string{"user.alice"}, Consistency: &apiv1.Consistency{Mode: apiv1.ConsistencyMode_CONSISTENCY_MODE_STALE}}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
