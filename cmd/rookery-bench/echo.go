package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"

	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
)

// The echo is the ceiling of a call: a gRPC server in a process of its own that
// has the methods of the directory and answers each with octets that a real node
// answered, without reading the request or writing a message. What is left is
// what gRPC, the kernel and the caller cost.

// echoService is the service by which the echo is told what to answer.
const (
	echoService = "rookery.bench.Echo"
	echoTeach   = "/" + echoService + "/Teach"
)

// lesson is what the echo is to answer calls of a method with: one message, or
// those of a stream.
type lesson struct {
	Method   string
	Messages [][]byte
}

// frame is a message as it is on the wire.
type frame struct{ data []byte }

// frameCodec passes octets through. It goes by the name of the codec that
// callers use.
type frameCodec struct{}

func (frameCodec) Name() string { return "proto" }

func (frameCodec) Marshal(v any) (mem.BufferSlice, error) {
	f, ok := v.(*frame)
	if !ok {
		return nil, fmt.Errorf("echo: %T is no frame", v)
	}
	return mem.BufferSlice{mem.SliceBuffer(f.data)}, nil
}

func (frameCodec) Unmarshal(data mem.BufferSlice, v any) error {
	if f, ok := v.(*frame); ok {
		f.data = data.Materialize()
	}
	return nil // the caller of an echoed method asks for nothing to be kept
}

// echoServer answers what it was taught.
type echoServer struct {
	lessons sync.Map // method -> []*frame
}

// newEchoServer returns a server with the transport options of a node's
// (server.New): what they gain or lose, the ceiling has too.
func newEchoServer() *grpc.Server {
	e := new(echoServer)
	s := grpc.NewServer(
		grpc.ForceServerCodecV2(frameCodec{}),
		grpc.MaxRecvMsgSize(16<<20),
		grpc.MaxConcurrentStreams(4096),
		grpc.NumStreamWorkers(uint32(4*runtime.GOMAXPROCS(0))),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
	)
	echoed := grpc.ServiceDesc{ServiceName: apiv1.DirectoryService_ServiceDesc.ServiceName, HandlerType: (*any)(nil)}
	prefix := "/" + echoed.ServiceName + "/"
	for _, m := range apiv1.DirectoryService_ServiceDesc.Methods {
		method := prefix + m.MethodName
		echoed.Methods = append(echoed.Methods, grpc.MethodDesc{
			MethodName: m.MethodName,
			Handler: func(_ any, _ context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
				if err := decode(nil); err != nil {
					return nil, err
				}
				frames, err := e.answer(method)
				if err != nil {
					return nil, err
				}
				return frames[0], nil
			},
		})
	}
	for _, m := range apiv1.DirectoryService_ServiceDesc.Streams {
		method := prefix + m.StreamName
		echoed.Streams = append(echoed.Streams, grpc.StreamDesc{
			StreamName:    m.StreamName,
			ServerStreams: true,
			Handler: func(_ any, stream grpc.ServerStream) error {
				if err := stream.RecvMsg(nil); err != nil {
					return err
				}
				frames, err := e.answer(method)
				if err != nil {
					return err
				}
				for _, f := range frames {
					if err := stream.SendMsg(f); err != nil {
						return err
					}
				}
				return nil
			},
		})
	}
	s.RegisterService(&echoed, e)
	s.RegisterService(&grpc.ServiceDesc{
		ServiceName: echoService,
		HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{
			MethodName: "Teach",
			Handler: func(_ any, _ context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
				var f frame
				if err := decode(&f); err != nil {
					return nil, err
				}
				return &frame{}, e.learn(f.data)
			},
		}},
	}, e)
	return s
}

func (e *echoServer) learn(text []byte) error {
	var l lesson
	if err := json.Unmarshal(text, &l); err != nil || len(l.Messages) == 0 {
		return status.Errorf(codes.InvalidArgument, "echo: no lesson: %v", err)
	}
	frames := make([]*frame, len(l.Messages))
	for i, data := range l.Messages {
		frames[i] = &frame{data}
	}
	e.lessons.Store(l.Method, frames)
	return nil
}

func (e *echoServer) answer(method string) ([]*frame, error) {
	frames, ok := e.lessons.Load(method)
	if !ok {
		return nil, status.Errorf(codes.FailedPrecondition, "echo: not taught what %s answers", method)
	}
	return frames.([]*frame), nil
}

// serveEcho is the program of the echo's process: it prints its address and
// answers until in ends, which it does when the process that started it is gone.
func serveEcho(in io.Reader, out io.Writer) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s := newEchoServer()
	stopped := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, in)
		s.Stop()
		stopped <- err
	}()
	if _, err := fmt.Fprintln(out, l.Addr()); err != nil {
		return err
	}
	return errors.Join(s.Serve(l), <-stopped)
}

// echo is the echo as a system: the stub, asking another process.
type echo struct {
	*stub
	process *process
	teacher *grpc.ClientConn
}

// newEcho starts an echo that knows nothing yet.
func newEcho(self string, connections int, w *work) (*echo, error) {
	p, address, err := startEcho(self)
	if err != nil {
		return nil, err
	}
	e := &echo{process: p}
	if e.stub, err = newStub(address, connections, w); err != nil {
		return nil, errors.Join(err, p.kill())
	}
	e.teacher, err = grpc.NewClient("passthrough:///"+address,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(frameCodec{})))
	if err != nil {
		return nil, errors.Join(err, e.stub.close(), p.kill())
	}
	return e, nil
}

// teach has the echo answer as l says from now on.
func (e *echo) teach(ctx context.Context, l lesson) error {
	text, err := json.Marshal(l)
	if err != nil {
		return err
	}
	return e.teacher.Invoke(ctx, echoTeach, &frame{text}, &frame{})
}

func (e *echo) close() error {
	return errors.Join(e.stub.close(), e.teacher.Close(), e.process.kill())
}

// startEcho runs this program as an echo and waits for its address.
func startEcho(self string) (*process, string, error) {
	p := newProcess(self, commandEcho)
	p.cmd.Stdin = nil
	in, err := p.cmd.StdinPipe()
	if err != nil {
		return nil, "", err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, "", err
	}
	if err := p.start(); err != nil {
		return nil, "", err
	}
	p.held = in
	line := make([]byte, 64)
	n, err := out.Read(line)
	if err != nil {
		return nil, "", errors.Join(fmt.Errorf("the echo did not say its address: %w", err), p.kill())
	}
	return p, strings.TrimSpace(string(line[:n])), nil
}
