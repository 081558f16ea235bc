package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
)

// The echo is the ceiling of a call: a gRPC server in a process of its own that
// has the methods of the directory and answers each with what a real node
// answered once. There are two. The plain one does what gRPC does for any
// service: it decodes the request into its message and encodes the answer's
// message, with nothing in between. The one of octets does not even that: it
// passes on what is on the wire.

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
	octets  bool
	lessons sync.Map // method -> []any: frames, or messages
}

// newEchoServer returns a server with the transport options of a node's
// (server.New): what they gain or lose, the ceiling has too.
func newEchoServer(octets bool) *grpc.Server {
	e := &echoServer{octets: octets}
	opts := []grpc.ServerOption{
		grpc.MaxRecvMsgSize(16 << 20),
		grpc.MaxConcurrentStreams(4096),
		grpc.NumStreamWorkers(256), // as a node has
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
	}
	if octets {
		opts = append(opts, grpc.ForceServerCodecV2(frameCodec{}))
	}
	s := grpc.NewServer(opts...)
	s.RegisterService(e.directory(), e)
	s.RegisterService(e.teaching(), e)
	return s
}

// directory is the directory's service, echoed.
func (e *echoServer) directory() *grpc.ServiceDesc {
	name := apiv1.DirectoryService_ServiceDesc.ServiceName
	echoed := &grpc.ServiceDesc{ServiceName: name, HandlerType: (*any)(nil)}
	methods := apiv1.File_api_v1_directory_proto.Services().ByName(protoreflect.FullName(name).Name()).Methods()
	for i := range methods.Len() {
		m := methods.Get(i)
		method := "/" + name + "/" + string(m.Name())
		request := e.request(m)
		if m.IsStreamingServer() {
			echoed.Streams = append(echoed.Streams, grpc.StreamDesc{
				StreamName:    string(m.Name()),
				ServerStreams: true,
				Handler:       func(_ any, stream grpc.ServerStream) error { return e.stream(stream, request(), method) },
			})
			continue
		}
		echoed.Methods = append(echoed.Methods, grpc.MethodDesc{
			MethodName: string(m.Name()),
			Handler: func(_ any, _ context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
				if err := decode(request()); err != nil {
					return nil, err
				}
				messages, err := e.answer(method)
				if err != nil {
					return nil, err
				}
				return messages[0], nil
			},
		})
	}
	return echoed
}

// request returns what makes a new request of a method to decode into; nil is
// made for octets.
func (e *echoServer) request(m protoreflect.MethodDescriptor) func() any {
	if e.octets {
		return func() any { return nil }
	}
	kind, err := protoregistry.GlobalTypes.FindMessageByName(m.Input().FullName())
	if err != nil {
		return func() any { return nil } // decoding into it fails, and says so
	}
	return func() any { return kind.New().Interface() }
}

func (e *echoServer) stream(stream grpc.ServerStream, request any, method string) error {
	if err := stream.RecvMsg(request); err != nil {
		return err
	}
	messages, err := e.answer(method)
	if err != nil {
		return err
	}
	for _, m := range messages {
		if err := stream.SendMsg(m); err != nil {
			return err
		}
	}
	return nil
}

// teaching is the service that learns lessons.
func (e *echoServer) teaching() *grpc.ServiceDesc {
	return &grpc.ServiceDesc{
		ServiceName: echoService,
		HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{
			MethodName: "Teach",
			Handler: func(_ any, _ context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
				if e.octets {
					var f frame
					if err := decode(&f); err != nil {
						return nil, err
					}
					return &frame{}, e.learn(f.data)
				}
				text := new(wrapperspb.BytesValue)
				if err := decode(text); err != nil {
					return nil, err
				}
				return new(emptypb.Empty), e.learn(text.GetValue())
			},
		}},
	}
}

func (e *echoServer) learn(text []byte) error {
	var l lesson
	if err := json.Unmarshal(text, &l); err != nil || len(l.Messages) == 0 {
		return status.Errorf(codes.InvalidArgument, "echo: no lesson: %v", err)
	}
	answers := make([]any, len(l.Messages))
	for i, data := range l.Messages {
		if e.octets {
			answers[i] = &frame{data}
			continue
		}
		m, err := decodeAnswer(l.Method, data)
		if err != nil {
			return status.Errorf(codes.InvalidArgument, "echo: %v", err)
		}
		answers[i] = m
	}
	e.lessons.Store(l.Method, answers)
	return nil
}

// decodeAnswer makes the message that method answers with of its octets.
func decodeAnswer(method string, data []byte) (proto.Message, error) {
	name := strings.ReplaceAll(strings.TrimPrefix(method, "/"), "/", ".")
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(name))
	if err != nil {
		return nil, err
	}
	m, ok := d.(protoreflect.MethodDescriptor)
	if !ok {
		return nil, fmt.Errorf("%s is no method", name)
	}
	kind, err := protoregistry.GlobalTypes.FindMessageByName(m.Output().FullName())
	if err != nil {
		return nil, err
	}
	answer := kind.New().Interface()
	return answer, proto.Unmarshal(data, answer)
}

func (e *echoServer) answer(method string) ([]any, error) {
	messages, ok := e.lessons.Load(method)
	if !ok {
		return nil, status.Errorf(codes.FailedPrecondition, "echo: not taught what %s answers", method)
	}
	return messages.([]any), nil
}

// serveEcho is the program of an echo's process: it prints its address and
// answers until in ends, which it does when the process that started it is gone.
func serveEcho(octets bool, in io.Reader, out io.Writer) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s := newEchoServer(octets)
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

// echo is an echo as a system: the stub, asking another process.
type echo struct {
	*stub
	octets  bool
	process *process
	teacher *grpc.ClientConn
}

// newEcho starts an echo that knows nothing yet.
func newEcho(self string, octets bool, connections int, w *work) (*echo, error) {
	command := commandEcho
	if octets {
		command = commandOctets
	}
	p, address, err := startEcho(self, command)
	if err != nil {
		return nil, err
	}
	e := &echo{octets: octets, process: p}
	if e.stub, err = newStub([]string{address}, connections, w); err != nil {
		return nil, errors.Join(err, p.kill())
	}
	if e.teacher, err = grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials())); err != nil {
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
	if e.octets {
		return e.teacher.Invoke(ctx, echoTeach, &frame{text}, &frame{}, grpc.ForceCodecV2(frameCodec{}))
	}
	return e.teacher.Invoke(ctx, echoTeach, wrapperspb.Bytes(text), new(emptypb.Empty))
}

func (e *echo) close() error {
	return errors.Join(e.stub.close(), e.teacher.Close(), e.process.kill())
}

// startEcho runs this program as an echo and waits for its address.
func startEcho(self, command string) (*process, string, error) {
	p := newProcess(self, command)
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
