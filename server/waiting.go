package server

import (
	"fmt"
	"net"
	"sync/atomic"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
)

// Waiting answers in the place of a Server while there is no state yet: every call
// is refused with CLOSED and with why, so that clients ask another node and people
// know what is the matter. Health checks are told that the node does not serve.
type Waiting struct {
	grpc *grpc.Server
	why  atomic.Pointer[string]
}

// NewWaiting makes one. creds are as in Config; why is for people.
func NewWaiting(creds credentials.TransportCredentials, why string) *Waiting {
	w := &Waiting{}
	w.Say(why)
	opts := []grpc.ServerOption{
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.ConnectionTimeout(greeting),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.UnknownServiceHandler(func(any, grpc.ServerStream) error { return w.refusal() }),
	}
	if creds != nil {
		opts = append(opts, grpc.Creds(creds))
	}
	w.grpc = grpc.NewServer(opts...)
	h := health.NewServer()
	h.Shutdown()
	healthv1.RegisterHealthServer(w.grpc, h)
	return w
}

// Say changes why calls are refused.
func (w *Waiting) Say(why string) { w.why.Store(&why) }

func (w *Waiting) refusal() error {
	st := status.New(codes.Unavailable, *w.why.Load())
	with, err := st.WithDetails(&errdetails.ErrorInfo{Reason: reasonName(apiv1.Reason_REASON_CLOSED), Domain: errorDomain})
	if err != nil {
		return st.Err()
	}
	return with.Err()
}

// Serve refuses what comes by l until Close, which closes l and makes it return nil.
// It may be called for several listeners.
func (w *Waiting) Serve(l net.Listener) error {
	if err := w.grpc.Serve(l); err != nil {
		return fmt.Errorf("server: wait on %s: %w", l.Addr(), err)
	}
	return nil
}

// Close breaks off all connections: clients make new ones.
func (w *Waiting) Close() { w.grpc.Stop() }
