package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"

	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/directory/machine"
	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
	"github.com/rookery-mail/rookery/raftstore"
)

// Config says what to serve and to whom.
type Config struct {
	Store   Store
	Machine *machine.Machine // the one that the store applies commands with
	Node    string           // this node's name
	Shard   uint32           // default 1
	// Identity is the store's. Until the state is of that cluster and life, nothing is
	// answered out of it. Zero: the state says what it is of.
	Identity raftstore.Identity
	Version  string // this release

	// Members tells who the nodes are and which leads; default: nobody knows. It is
	// called often and must be quick.
	Members func() Members
	// Health tells what this node knows of its state and disk; default: nothing is
	// said of it.
	Health func() raftstore.Health
	// Replica is what operators may do to this node's replica; default: nothing.
	Replica Replica
	// Identify tells who makes a call; default Identify.
	Identify func(context.Context) (Caller, error)
	// Credentials secure the connections; default: plain text.
	Credentials credentials.TransportCredentials

	Log     *slog.Logger          // default: nowhere
	Metrics prometheus.Registerer // default: nowhere

	// CatchUp is how long a read waits for this node to have applied what its token
	// saw; Confirm how long a negative answer waits for a majority; Timeout bounds
	// writes and linearizable reads without a deadline. Defaults: 2 s, 2 s, 10 s.
	CatchUp, Confirm, Timeout time.Duration
}

const defaultTimeout = 10 * time.Second

// MaxCommand is what a store must take for every request that the server takes:
// a command is no larger than its request, but for some octets an item.
const MaxCommand = 2 * maxRequest

// streamWorkers is how many goroutines wait for calls. A call that finds none
// gets a new one, whose stack has to grow first: a seventh of a lookup's cost. A
// write keeps its own until it is on disk, so there are as many as may well be
// under way.
const streamWorkers = 256

// What a connection may bring.
const (
	maxRequest     = 4 << 20  // of a request; beyond: TOO_LARGE
	maxMessage     = 16 << 20 // the transport refuses it unread
	maxStreams     = 4096     // calls under way on one connection
	closingPatient = 5 * time.Second
	// greeting is how long a new connection may take to become one, handshake
	// included.
	greeting = 15 * time.Second
)

// Server serves the API of one node. It may be used by many goroutines at once.
type Server struct {
	store      Store
	machine    *machine.Machine
	node       string
	shard      uint32
	version    string
	members    func() Members
	nodeHealth func() raftstore.Health
	replica    Replica            // nil: there is nothing to do with it
	identityOf raftstore.Identity // of the store; zero: not told
	identify   func(context.Context) (Caller, error)
	log        *slog.Logger
	catchUpFor time.Duration
	confirmFor time.Duration
	timeout    time.Duration
	settleFor  time.Duration

	methods map[string]*method // by full name; complete before the first call
	grpc    *grpc.Server
	health  *health.Server
	memory  *bufconn.Listener
	in      *inProcess

	id      atomic.Pointer[identity]
	saving  sync.Mutex // one snapshot at a time
	issued  atomic.Pointer[issued]
	servers atomic.Pointer[serverCache]

	changing   chan struct{} // holds one: who changes the membership or the leader
	compacting atomic.Bool
	comparing  chan struct{} // holds one for each comparison of a resync
	watch      *watchHub

	serving sync.WaitGroup
	closing sync.Once
}

// memoryBuffer is how much an in-process connection holds in each direction.
const memoryBuffer = 256 << 10

// New assembles a server. Serve begins to answer.
func New(cfg Config) (*Server, error) {
	if cfg.Store == nil || cfg.Machine == nil || cfg.Node == "" {
		return nil, errors.New("server: no store, machine or node name given")
	}
	s := &Server{
		store:      cfg.Store,
		machine:    cfg.Machine,
		node:       cfg.Node,
		shard:      max(cfg.Shard, 1),
		version:    cfg.Version,
		members:    cfg.Members,
		nodeHealth: cfg.Health,
		replica:    cfg.Replica,
		identityOf: cfg.Identity,
		identify:   cfg.Identify,
		log:        cfg.Log,
		catchUpFor: cfg.CatchUp,
		confirmFor: cfg.Confirm,
		timeout:    cfg.Timeout,
		settleFor:  defaultSettle,
		changing:   make(chan struct{}, 1),
		comparing:  make(chan struct{}, comparisons),
		health:     health.NewServer(),
		memory:     bufconn.Listen(memoryBuffer),
		in:         newInProcess(),
	}
	if s.members == nil {
		s.members = func() Members { return Members{} }
	}
	s.members = knowSelf(s.members, s.node)
	if s.identify == nil {
		s.identify = Identify
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.catchUpFor <= 0 {
		s.catchUpFor = defaultCatchUp
	}
	if s.confirmFor <= 0 {
		s.confirmFor = defaultConfirm
	}
	if s.timeout <= 0 {
		s.timeout = defaultTimeout
	}
	opts := []grpc.ServerOption{
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.ConnectionTimeout(greeting),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.UnaryInterceptor(s.unary),
		grpc.StreamInterceptor(s.stream),
		// Goroutines that are kept need not grow their stacks anew for every call.
		grpc.NumStreamWorkers(streamWorkers),
		// A watcher that is gone without a word is noticed, and lets its place go.
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
	}
	if cfg.Credentials != nil {
		opts = append(opts, grpc.Creds(cfg.Credentials))
	}
	s.grpc = grpc.NewServer(opts...)
	services := registrar{s.grpc, s.in}
	apiv1.RegisterDirectoryServiceServer(services, &directoryService{s: s})
	apiv1.RegisterClusterServiceServer(services, &clusterService{s: s})
	apiv1.RegisterResyncServiceServer(services, &resyncService{s: s})
	healthv1.RegisterHealthServer(services, s.health)
	reflection.Register(services)
	var err error
	if s.methods, err = methodsOf(s.grpc, cfg.Metrics); err != nil {
		return nil, err
	}
	watching, err := newWatchMetrics(cfg.Metrics)
	if err != nil {
		return nil, err
	}
	s.watch = newWatchHub(s, watching)
	s.SetServing(true)
	s.serving.Go(func() {
		if err := s.grpc.Serve(s.memory); err != nil {
			s.log.Error("in-process listener failed", "err", err)
		}
	})
	return s, nil
}

// Serve answers on l until Close, which makes it return nil. It may be called for
// several listeners.
func (s *Server) Serve(l net.Listener) error {
	if err := s.grpc.Serve(l); err != nil {
		return fmt.Errorf("server: serve on %s: %w", l.Addr(), err)
	}
	return nil
}

// DialMemory connects to the server from its own process. It fits
// client.WithDialer; the address is not looked at.
func (s *Server) DialMemory(ctx context.Context, _ string) (net.Conn, error) {
	return s.memory.DialContext(ctx)
}

// SetServing says what health checks are told: whether this node can answer. A
// server begins by saying that it can.
func (s *Server) SetServing(ok bool) {
	state := healthv1.HealthCheckResponse_NOT_SERVING
	if ok {
		state = healthv1.HealthCheckResponse_SERVING
	}
	for _, service := range []string{"", apiv1.DirectoryService_ServiceDesc.ServiceName, apiv1.ClusterService_ServiceDesc.ServiceName, apiv1.ResyncService_ServiceDesc.ServiceName} {
		s.health.SetServingStatus(service, state)
	}
}

// Close tells health checks that the node is going and ends watches, lets calls under
// way end for some seconds or until ctx ends, and then breaks off the rest.
func (s *Server) Close(ctx context.Context) {
	s.closing.Do(func() {
		s.health.Shutdown()
		s.in.close()
		s.watch.close()
		done := make(chan struct{})
		s.serving.Go(func() {
			defer close(done)
			s.grpc.GracefulStop()
			s.in.calls.Wait()
		})
		patience := time.NewTimer(closingPatient)
		defer patience.Stop()
		select {
		case <-done:
		case <-ctx.Done():
		case <-patience.C:
		}
		s.grpc.Stop()
		s.in.cancel()
	})
	s.serving.Wait()
}

// unary is what every call with one answer goes through. It does not recover from
// panics: a node that is wrong about itself must not go on.
func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	begun := time.Now()
	m := s.methods[info.FullMethod]
	var resp any
	c, err := s.admit(ctx, m, info.FullMethod)
	if err == nil {
		err = checkSize(req)
	}
	if err == nil {
		resp, err = handler(context.WithValue(ctx, callerKey{}, c), req)
	}
	if err == nil {
		m.ok.Observe(time.Since(begun).Seconds())
		return resp, nil
	}
	return nil, s.failed(m, info.FullMethod, c, begun, err)
}

// stream is unary for calls with a stream.
func (s *Server) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	begun := time.Now()
	m := s.methods[info.FullMethod]
	c, err := s.admit(ss.Context(), m, info.FullMethod)
	if err == nil {
		err = handler(srv, &callStream{ss, context.WithValue(ss.Context(), callerKey{}, c)})
	}
	if err == nil {
		m.ok.Observe(time.Since(begun).Seconds())
		return nil
	}
	return s.failed(m, info.FullMethod, c, begun, err)
}

// callStream is a stream whose caller is known and whose requests are not too large.
type callStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s *callStream) Context() context.Context { return s.ctx }

func (s *callStream) RecvMsg(m any) error {
	if err := s.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	return checkSize(m)
}

// admit tells who calls, and whether they may.
func (s *Server) admit(ctx context.Context, m *method, name string) (Caller, error) {
	c, known := ctx.Value(connCaller{}).(Caller) // by Conn
	if !known {
		var err error
		if c, err = s.identify(ctx); err != nil {
			return Caller{}, err
		}
	}
	if m == nil || m.rule.allows(c) == no {
		return c, errMayNot(c, name)
	}
	return c, nil
}

func checkSize(req any) error {
	m, ok := req.(proto.Message)
	if !ok {
		return nil
	}
	if n := proto.Size(m); n > maxRequest {
		return fmt.Errorf("%w: a request of %d octets, at most %d; split it", directory.ErrTooLarge, n, maxRequest)
	}
	return nil
}

// failed makes a status of err, counts it and logs what an operator should see.
func (s *Server) failed(m *method, name string, c Caller, begun time.Time, err error) error {
	reason, st := s.toStatus(err)
	if m != nil {
		m.refused(reason).Observe(time.Since(begun).Seconds())
	}
	if reason == apiv1.Reason_REASON_BROKEN {
		s.log.Error("call failed", "method", name, "role", c.Role, "err", err)
	} else {
		s.log.Debug("call refused", "method", name, "role", c.Role, "reason", reasonName(reason), "err", err)
	}
	return st
}
