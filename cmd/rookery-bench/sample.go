package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

// sampleCalls is how many calls are looked at to find one of ordinary size.
const sampleCalls = 51

// A sample is one call of a workload as it goes over the wire.
type sample struct {
	lesson
	Request int // octets of the request
}

func (s sample) size() int {
	n := s.Request
	for _, m := range s.Messages {
		n += len(m)
	}
	return n
}

// takeSample makes some calls of w at endpoint and returns the one of median
// size.
func takeSample(ctx context.Context, endpoint string, w workload, wk *work, opts ...grpc.DialOption) (sample, error) {
	var now sample
	s, err := newStub([]string{endpoint}, 1, wk, append(opts,
		grpc.WithUnaryInterceptor(func(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			now = sample{lesson: lesson{Method: method}, Request: sizeOf(req)}
			if err := invoke(ctx, method, req, reply, conn, opts...); err != nil {
				return err
			}
			return now.add(reply)
		}),
		grpc.WithStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			now = sample{lesson: lesson{Method: method}}
			stream, err := open(ctx, desc, conn, method, opts...)
			return &sampledStream{stream, &now}, err
		}),
	)...)
	if err != nil {
		return sample{}, err
	}
	defer s.close()
	if err := s.learnToken(ctx); err != nil {
		return sample{}, err
	}
	do, err := s.caller(w, 0)
	if err != nil {
		return sample{}, err
	}
	all := make([]sample, sampleCalls)
	for i := range all {
		if err := do(ctx); err != nil {
			return sample{}, fmt.Errorf("%s: %w", w.name, err)
		}
		all[i] = now
	}
	slices.SortFunc(all, func(a, b sample) int { return cmp.Compare(a.size(), b.size()) })
	return all[len(all)/2], nil
}

// add keeps a message of the answer, as the server's octets were.
func (s *sample) add(message any) error {
	data, err := proto.Marshal(message.(proto.Message))
	s.Messages = append(s.Messages, data)
	return err
}

func sizeOf(message any) int { return proto.Size(message.(proto.Message)) }

type sampledStream struct {
	grpc.ClientStream
	into *sample
}

func (s *sampledStream) SendMsg(m any) error {
	s.into.Request = sizeOf(m)
	return s.ClientStream.SendMsg(m)
}

func (s *sampledStream) RecvMsg(m any) error {
	if err := s.ClientStream.RecvMsg(m); err != nil {
		return err
	}
	return s.into.add(m)
}
