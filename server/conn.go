package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/rookery-mail/rookery/raftstore"
)

// Conn returns a connection to s from within its process, on which every call is
// caller's; Config.Identify is not asked. It fits generated clients and
// client.WithConn. Nothing has to be closed.
//
// A call goes through the interceptors, roles and limits of one that came over the
// network, and what comes back is a status with the same details. What is sent, and
// what streams bring, is encoded and decoded: the caller may use its messages again,
// and text that no message may hold is refused. A single answer is handed over as it
// is; its octets may be those of other answers too and must not be changed. What there
// is none of is sockets, frames and, for a call with one answer, goroutines: it is
// handled on its caller's.
//
// A handler's context is the caller's, with its deadline, its end and its values.
// Metadata crosses as it does on the network. Of the call options Header, Trailer,
// Peer, OnFinish, MaxCallSendMsgSize and MaxCallRecvMsgSize are obeyed; the others
// are about connections and change nothing.
//
// A stream is handled on a goroutine of its own, which ends when the handler does.
// Who does not receive to a stream's end must end its context, or the handler waits
// for ever, as on the network.
//
// After Close calls fail with Unavailable, reason CLOSED; Close waits for those under
// way and breaks them off when its patience ends.
func (s *Server) Conn(caller Caller) grpc.ClientConnInterface { return &conn{s: s, caller: caller} }

// LoneConn is Conn for a caller that has no other goroutine than its own, such as a
// process of a simulation: streams are handled on it too, whole, when the first answer
// is received. All requests have to be sent by then, and all answers are kept until
// they are received, so it is for streams that end by themselves.
func (s *Server) LoneConn(caller Caller) grpc.ClientConnInterface {
	return &conn{s: s, caller: caller, lone: true}
}

type conn struct {
	s      *Server
	caller Caller
	lone   bool
}

// inProcess is what a Server has to know of calls by Conn.
type inProcess struct {
	unary   map[string]unaryHandler  // by full name of the method
	streams map[string]streamHandler // likewise

	ctx    context.Context // ends when calls are broken off
	cancel context.CancelFunc

	mu     sync.Mutex
	closed bool
	calls  sync.WaitGroup // those under way; none begins once closed is set
}

type unaryHandler struct {
	desc grpc.MethodDesc
	impl any
}

type streamHandler struct {
	desc grpc.StreamDesc
	impl any
}

// registrar registers services for the network and for Conn alike.
type registrar struct {
	*grpc.Server
	in *inProcess
}

func (r registrar) RegisterService(desc *grpc.ServiceDesc, impl any) {
	r.Server.RegisterService(desc, impl)
	for _, m := range desc.Methods {
		r.in.unary["/"+desc.ServiceName+"/"+m.MethodName] = unaryHandler{m, impl}
	}
	for _, m := range desc.Streams {
		r.in.streams["/"+desc.ServiceName+"/"+m.StreamName] = streamHandler{m, impl}
	}
}

func newInProcess() *inProcess {
	in := &inProcess{unary: make(map[string]unaryHandler), streams: make(map[string]streamHandler)}
	in.ctx, in.cancel = context.WithCancel(context.Background())
	return in
}

// begin counts a call in; false: no more calls are taken. Who gets true calls
// calls.Done at its end.
func (in *inProcess) begin() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.closed {
		return false
	}
	in.calls.Add(1)
	return true
}

// close lets no further call begin.
func (in *inProcess) close() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.closed = true
}

// connCaller is who a call by Conn is made by.
type connCaller struct{}

// here is where calls by Conn come from.
var here = &peer.Peer{Addr: inProcessAddr{}}

type inProcessAddr struct{}

func (inProcessAddr) Network() string { return "in-process" }
func (inProcessAddr) String() string  { return "in-process" }

var _ net.Addr = inProcessAddr{}

// enter makes the context that a call's handler gets.
func (c *conn) enter(ctx context.Context, transport grpc.ServerTransportStream) context.Context {
	sent, _ := metadata.FromOutgoingContext(ctx)
	if sent == nil {
		sent = metadata.MD{}
	}
	// What the handler calls in its turn does not carry what its caller sent.
	ctx = metadata.NewOutgoingContext(ctx, nil)
	ctx = metadata.NewIncomingContext(ctx, sent)
	ctx = context.WithValue(ctx, connCaller{}, c.caller)
	ctx = peer.NewContext(ctx, here)
	return grpc.NewContextWithServerTransportStream(ctx, transport)
}

// Invoke makes a call with one answer.
func (c *conn) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	o := optionsOf(opts)
	err := c.invoke(ctx, method, args, reply, &o)
	o.finish(err)
	return err
}

func (c *conn) invoke(ctx context.Context, method string, args, reply any, o *callOptions) error {
	if err := ctx.Err(); err != nil {
		return status.FromContextError(err).Err()
	}
	h, ok := c.s.in.unary[method]
	if !ok {
		return noSuchMethod(method)
	}
	if !c.s.in.begin() {
		return c.closed()
	}
	defer c.s.in.calls.Done()
	request, err := encode(args, o.maxSend)
	if err != nil {
		return err
	}
	ctx, cancel := c.cutWithServer(ctx)
	defer cancel()
	t := &transport{method: method}
	response, err := h.desc.Handler(h.impl, c.enter(ctx, t), func(m any) error { return decode(request, m, maxMessage) }, c.s.unary)
	o.told(t.told())
	if err != nil {
		return asStatus(err)
	}
	return handOver(response, reply, o.maxReceive)
}

// handOver puts what a handler answered into reply. The handler has made it for this
// call and keeps nothing of it.
func handOver(answer, reply any, limit int) error {
	from, made := answer.(proto.Message)
	to, wanted := reply.(proto.Message)
	if !made || !wanted || from.ProtoReflect().Type() != to.ProtoReflect().Type() {
		return status.Errorf(codes.Internal, "an answer of type %T for one of type %T", answer, reply)
	}
	if limit > 0 && proto.Size(from) > limit {
		return status.Errorf(codes.ResourceExhausted, "a message of %d octets, at most %d", proto.Size(from), limit)
	}
	proto.Reset(to)
	at := to.ProtoReflect()
	from.ProtoReflect().Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		at.Set(field, value)
		return true
	})
	return nil
}

// cutWithServer returns ctx, ended too when the server breaks off its calls.
func (c *conn) cutWithServer(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(c.s.in.ctx, cancel)
	return ctx, func() { stop(); cancel() }
}

// closed is the answer to a call that comes too late.
func (c *conn) closed() error {
	_, st := c.s.toStatus(fmt.Errorf("%w: the node is going", raftstore.ErrClosed))
	return st
}

func noSuchMethod(method string) error {
	service, name, _ := strings.Cut(strings.TrimPrefix(method, "/"), "/")
	return status.Errorf(codes.Unimplemented, "unknown method %s for service %s", name, service)
}

// asStatus is the error that a caller on the network would get for a handler's.
func asStatus(err error) error {
	if st, ok := status.FromError(err); ok {
		return st.Err()
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return status.FromContextError(err).Err()
	}
	return status.Error(codes.Unknown, err.Error())
}

// encode is a message as it would be sent; limit 0: as large as it is.
func encode(m any, limit int) ([]byte, error) {
	message, ok := m.(proto.Message)
	if !ok {
		return nil, status.Errorf(codes.Internal, "a message of type %T", m)
	}
	b, err := proto.Marshal(message)
	if err != nil {
		return nil, status.Errorf(codes.Internal, "encode a message: %v", err)
	}
	if limit > 0 && len(b) > limit {
		return nil, status.Errorf(codes.ResourceExhausted, "a message of %d octets, at most %d", len(b), limit)
	}
	return b, nil
}

// decode puts what encode made into m.
func decode(b []byte, m any, limit int) error {
	message, ok := m.(proto.Message)
	switch {
	case !ok:
		return status.Errorf(codes.Internal, "a message of type %T", m)
	case limit > 0 && len(b) > limit:
		return status.Errorf(codes.ResourceExhausted, "a message of %d octets, at most %d", len(b), limit)
	}
	if err := proto.Unmarshal(b, message); err != nil {
		return status.Errorf(codes.Internal, "decode a message: %v", err)
	}
	return nil
}

// callOptions are those of a call that are obeyed.
type callOptions struct {
	headers, trailers   []*metadata.MD
	peers               []*peer.Peer
	finished            []func(error)
	maxSend, maxReceive int
}

func optionsOf(opts []grpc.CallOption) (o callOptions) {
	for _, opt := range opts {
		switch opt := opt.(type) {
		case grpc.HeaderCallOption:
			o.headers = append(o.headers, opt.HeaderAddr)
		case grpc.TrailerCallOption:
			o.trailers = append(o.trailers, opt.TrailerAddr)
		case grpc.PeerCallOption:
			o.peers = append(o.peers, opt.PeerAddr)
		case grpc.OnFinishCallOption:
			o.finished = append(o.finished, opt.OnFinish)
		case grpc.MaxSendMsgSizeCallOption:
			o.maxSend = opt.MaxSendMsgSize
		case grpc.MaxRecvMsgSizeCallOption:
			o.maxReceive = opt.MaxRecvMsgSize
		}
	}
	return o
}

// told hands out what the handler said beside its answer.
func (o *callOptions) told(header, trailer metadata.MD) {
	for _, h := range o.headers {
		*h = header
	}
	for _, t := range o.trailers {
		*t = trailer
	}
	for _, p := range o.peers {
		*p = *here
	}
}

func (o *callOptions) finish(err error) {
	for _, f := range o.finished {
		f(err)
	}
}

// transport takes header and trailer from a handler that gives one answer.
type transport struct {
	method string

	mu              sync.Mutex // handlers may use it from several goroutines
	header, trailer metadata.MD
	sent            bool // the header is with the caller
}

func (t *transport) Method() string { return t.method }

// told is what the handler has said so far.
func (t *transport) told() (header, trailer metadata.MD) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.header.Copy(), t.trailer.Copy()
}

var errHeaderSent = status.Error(codes.Internal, "the header was sent before")

func (t *transport) SetHeader(md metadata.MD) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.sent {
		return errHeaderSent
	}
	t.header = metadata.Join(t.header, md)
	return nil
}

func (t *transport) SendHeader(md metadata.MD) error {
	if err := t.SetHeader(md); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sent = true
	return nil
}

func (t *transport) SetTrailer(md metadata.MD) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.trailer = metadata.Join(t.trailer, md)
	return nil
}
