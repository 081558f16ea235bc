package server

import (
	"context"
	"io"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// streamWindow is how many messages may be on their way in one direction of a
// stream before its sender waits.
const streamWindow = 4

// NewStream makes a call with a stream. desc is the caller's; the server's own says
// how it is handled.
func (c *conn) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	if err := ctx.Err(); err != nil {
		return nil, status.FromContextError(err).Err()
	}
	h, ok := c.s.in.streams[method]
	if !ok {
		return nil, noSuchMethod(method)
	}
	if !c.s.in.begin() {
		return nil, c.closed()
	}
	st := &stream{
		desc:     *desc,
		options:  optionsOf(opts),
		requests: make(chan []byte, streamWindow),
		answers:  make(chan []byte, streamWindow),
		headed:   make(chan struct{}),
	}
	st.transport.method = method
	st.own = ctx
	ctx, cancel := c.cutWithServer(ctx)
	st.ctx = ctx
	handler := &handlerStream{st, c.enter(ctx, streamTransport{st})}
	handle := func() {
		defer c.s.in.calls.Done()
		defer cancel()
		info := &grpc.StreamServerInfo{FullMethod: method, IsClientStream: h.desc.ClientStreams, IsServerStream: h.desc.ServerStreams}
		st.end(c.s.stream(h.impl, handler, info, h.desc.Handler))
	}
	if c.lone {
		st.requests, st.answers = nil, nil
		st.lone = &loneStream{handle: handle}
	} else {
		go handle() // of the server, whose Close waits for it
	}
	return callerStream{st}, nil
}

// loneStream keeps what a stream without a goroutine carries.
type loneStream struct {
	handle            func() // nil once it has begun
	requests, answers [][]byte
}

// take removes the first of messages; false if there is none.
func take(messages *[][]byte) ([]byte, bool) {
	if len(*messages) == 0 {
		return nil, false
	}
	b := (*messages)[0]
	*messages = (*messages)[1:]
	return b, true
}

// stream is one call with a stream: requests go one way, answers the other, both
// encoded. callerStream and handlerStream are its two ends.
type stream struct {
	desc    grpc.StreamDesc
	options callOptions
	own     context.Context // the caller's
	ctx     context.Context // the same, ended too when the handler has ended

	requests chan []byte // closed by the caller
	answers  chan []byte // closed when the handler has ended, after err is set
	lone     *loneStream // instead of both
	headed   chan struct{}
	err      error // how it ended; a status, nil for OK

	transport transport
	heading   sync.Once
	finishing sync.Once
	sentAll   atomic.Bool
}

// head lets the caller see the header.
func (st *stream) head() {
	st.heading.Do(func() {
		st.transport.mu.Lock()
		st.transport.sent = true
		st.transport.mu.Unlock()
		close(st.headed)
	})
}

// end is the handler's end.
func (st *stream) end(err error) {
	if err != nil {
		st.err = asStatus(err)
	}
	st.head()
	if st.lone == nil {
		close(st.answers)
	}
}

// callerStream is the end of who makes the call.
type callerStream struct{ *stream }

func (st callerStream) Context() context.Context { return st.ctx }

// Header waits for it. Of a call that failed before there was one it is nil.
func (st callerStream) Header() (metadata.MD, error) {
	select {
	case <-st.headed:
	case <-st.ctx.Done():
		select {
		case <-st.headed:
		default:
			return nil, status.FromContextError(st.ctx.Err()).Err()
		}
	}
	header, _ := st.transport.told()
	return header, nil
}

func (st callerStream) Trailer() metadata.MD {
	_, trailer := st.transport.told()
	return trailer
}

func (st callerStream) CloseSend() error {
	if !st.sentAll.Swap(true) && st.lone == nil {
		close(st.requests)
	}
	return nil
}

// SendMsg waits while there are too many messages on their way. When the handler
// has ended already, a stream of requests gets io.EOF and RecvMsg tells why; a single
// request gets nil, for generated code goes on to receive.
func (st callerStream) SendMsg(m any) error {
	if st.sentAll.Load() {
		return status.Error(codes.Internal, "SendMsg after CloseSend")
	}
	b, err := encode(m, st.options.maxSend)
	if err != nil {
		return err
	}
	if st.lone != nil {
		st.lone.requests = append(st.lone.requests, b)
		return nil
	}
	select {
	case st.requests <- b:
		return nil
	case <-st.ctx.Done():
		if st.desc.ClientStreams {
			return io.EOF
		}
		return nil
	}
}

// RecvMsg returns io.EOF at the end of a stream that went well.
func (st callerStream) RecvMsg(m any) error {
	err := st.receive(m)
	if err == nil && !st.desc.ServerStreams {
		// The one answer counts if the call went well, which is known at its end.
		switch end := st.receive(nil); end {
		case io.EOF:
			st.finish(nil)
			return nil
		case nil:
			err = status.Error(codes.Internal, "more than one answer to a call that has one")
		default:
			err = end
		}
	}
	switch err {
	case nil:
	case io.EOF:
		st.finish(nil)
		if !st.desc.ServerStreams {
			err = status.Error(codes.Internal, "a call ended well and without its answer")
		}
	default:
		st.finish(err)
	}
	return err
}

// receive takes one message; into nothing if m is nil. Of a call that its caller has
// given up nothing more is taken, and nobody waits for its handler.
func (st callerStream) receive(m any) error {
	if err := st.own.Err(); err != nil {
		return status.FromContextError(err).Err()
	}
	var b []byte
	var ok bool
	if st.lone != nil {
		if handle := st.lone.handle; handle != nil {
			st.lone.handle = nil
			handle()
		}
		b, ok = take(&st.lone.answers)
	} else {
		select {
		case b, ok = <-st.answers:
		case <-st.own.Done():
			return status.FromContextError(st.own.Err()).Err()
		}
	}
	switch {
	case ok && m == nil:
		return nil
	case ok:
		return decode(b, m, st.options.maxReceive)
	case st.err == nil:
		return io.EOF
	}
	return st.err
}

// finish hands out what is known at the end, once.
func (st callerStream) finish(err error) {
	st.finishing.Do(func() {
		st.options.told(st.transport.told())
		st.options.finish(err)
	})
}

// handlerStream is the end of the handler.
type handlerStream struct {
	*stream
	ctx context.Context
}

func (st *handlerStream) Context() context.Context { return st.ctx }

func (st *handlerStream) SetHeader(md metadata.MD) error { return st.transport.SetHeader(md) }

func (st *handlerStream) SendHeader(md metadata.MD) error {
	if err := st.transport.SetHeader(md); err != nil {
		return err
	}
	st.head()
	return nil
}

func (st *handlerStream) SetTrailer(md metadata.MD) { _ = st.transport.SetTrailer(md) }

// SendMsg has encoded m when it returns: m may be used for the next one.
func (st *handlerStream) SendMsg(m any) error {
	b, err := encode(m, 0)
	if err != nil {
		return err
	}
	st.head()
	if err := st.ctx.Err(); err != nil {
		return status.FromContextError(err).Err()
	}
	if st.lone != nil {
		st.lone.answers = append(st.lone.answers, b)
		return nil
	}
	select {
	case st.answers <- b:
		return nil
	case <-st.ctx.Done():
		return status.FromContextError(st.ctx.Err()).Err()
	}
}

// RecvMsg returns io.EOF when the caller has sent all that it will.
func (st *handlerStream) RecvMsg(m any) error {
	if st.lone != nil {
		b, ok := take(&st.lone.requests)
		if !ok {
			return io.EOF
		}
		return decode(b, m, maxMessage)
	}
	select {
	case b, ok := <-st.requests:
		if !ok {
			return io.EOF
		}
		return decode(b, m, maxMessage)
	case <-st.ctx.Done():
		return status.FromContextError(st.ctx.Err()).Err()
	}
}

// streamTransport is what grpc.SetHeader and its like find in a handler's context.
type streamTransport struct{ *stream }

func (t streamTransport) Method() string                 { return t.transport.method }
func (t streamTransport) SetHeader(md metadata.MD) error { return t.transport.SetHeader(md) }
func (t streamTransport) SendHeader(md metadata.MD) error {
	return (&handlerStream{stream: t.stream}).SendHeader(md)
}
func (t streamTransport) SetTrailer(md metadata.MD) error { return t.transport.SetTrailer(md) }
