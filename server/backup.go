package server

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"google.golang.org/grpc"

	"github.com/rookery-mail/rookery/directory"
	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
)

// snapshotChunk is about how many octets of a snapshot go into one message.
const snapshotChunk = 512 << 10

// SaveSnapshot streams what the replica writes. The octets are counted and hashed
// here, as they are sent: the summary is of what left this node.
func (c *clusterService) SaveSnapshot(_ *apiv1.SaveSnapshotRequest, stream grpc.ServerStreamingServer[apiv1.SaveSnapshotResponse]) error {
	s := c.s
	ctx := stream.Context()
	if s.replica == nil {
		return fmt.Errorf("%w: this node saves no snapshots", errUnsupported)
	}
	if !s.saving.TryLock() {
		return fmt.Errorf("%w: this node is sending a snapshot to somebody already; ask another node, or later", directory.ErrBusy)
	}
	defer s.saving.Unlock()
	revision, err := s.revisionNow()
	if err != nil {
		return err
	}
	out := &snapshotStream{stream: stream}
	buffered := bufio.NewWriterSize(out, snapshotChunk)
	sum := sha256.New()
	h, err := s.replica.Snapshot(ctx, &hashing{buffered, sum})
	if err == nil {
		err = buffered.Flush()
	}
	if err != nil {
		return snapshotFailed(ctx, err)
	}
	s.log.Info("snapshot sent", "index", h.Index, "bytes", out.sent)
	return stream.Send(&apiv1.SaveSnapshotResponse{Part: &apiv1.SaveSnapshotResponse_Summary{Summary: &apiv1.SnapshotSummary{
		Node:        s.node,
		ClusterId:   hex.EncodeToString(h.Cluster[:]),
		Incarnation: uint32(h.Incarnation),
		Shard:       h.Shard,
		Index:       h.Index,
		Term:        h.Term,
		Revision:    uint64(revision),
		Size:        out.sent,
		Sha256:      sum.Sum(nil),
	}}})
}

// revisionNow is what this node shows, which every snapshot from now on shows too. It
// is refused before the cluster's life has begun: that snapshot would be of another.
func (s *Server) revisionNow() (directory.Revision, error) {
	v, err := s.store.Local()
	if err != nil {
		return 0, err
	}
	defer v.Release()
	if _, err := s.identity(v); err != nil {
		return 0, err
	}
	return s.machine.Revision(v)
}

// snapshotFailed tells a caller that went away from a node that failed.
func snapshotFailed(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// hashing is a Writer that hashes what it hands on.
type hashing struct {
	to  *bufio.Writer
	sum interface{ Write([]byte) (int, error) }
}

func (h *hashing) Write(p []byte) (int, error) {
	if _, err := h.sum.Write(p); err != nil {
		return 0, err
	}
	return h.to.Write(p)
}

// snapshotStream is a Writer that sends.
type snapshotStream struct {
	stream grpc.ServerStreamingServer[apiv1.SaveSnapshotResponse]
	sent   uint64
}

func (s *snapshotStream) Write(p []byte) (int, error) {
	// A write past the buffer comes whole; the transport has its limits.
	for n := 0; n < len(p); n += snapshotChunk {
		chunk := p[n:min(n+snapshotChunk, len(p))]
		if err := s.stream.Send(&apiv1.SaveSnapshotResponse{Part: &apiv1.SaveSnapshotResponse_Chunk{Chunk: chunk}}); err != nil {
			return n, err
		}
		s.sent += uint64(len(chunk))
	}
	return len(p), nil
}
