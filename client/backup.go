package client

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"

	"github.com/rookery-mail/rookery/directory"
	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
)

// Snapshot says what SaveSnapshot has written.
type Snapshot struct {
	Node        string // that saved it
	ClusterID   string
	Incarnation directory.Incarnation
	Shard       uint32
	Index, Term uint64             // Raft's, of the last command in it
	Revision    directory.Revision // it shows at least this
	Size        uint64             // in octets
}

// SaveSnapshot writes a snapshot of one node's state to w; progress, if not nil, is
// told how much is written. What is written is whole, and as it was sent, if there is
// no error; else it is of no use. It is asked of one node and not repeated.
//
// Errors: directory.ErrBusy (the node is sending one), ErrRole; ErrUnavailable;
// ErrProtocol, and those of w.
func (s *Session) SaveSnapshot(ctx context.Context, w io.Writer, progress func(written uint64)) (Snapshot, error) {
	if s.c.isClosed() {
		return Snapshot{}, ErrClosed
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	n := s.c.nodes.first(false)
	stream, err := n.cluster.SaveSnapshot(ctx, &apiv1.SaveSnapshotRequest{})
	if err != nil {
		return Snapshot{}, FromStatus(err)
	}
	sum := sha256.New()
	var size uint64
	for {
		m, err := stream.Recv()
		if err != nil {
			s.c.observe(n, false, FromStatus(err), false)
		}
		switch {
		case err == io.EOF:
			return Snapshot{}, fmt.Errorf("%w: the snapshot broke off", ErrProtocol)
		case err != nil:
			return Snapshot{}, FromStatus(err)
		case m.GetSummary() != nil:
			s.c.observe(n, false, nil, false)
			t := m.GetSummary()
			if t.GetSize() != size || !bytes.Equal(t.GetSha256(), sum.Sum(nil)) {
				return Snapshot{}, fmt.Errorf("%w: %d octets of the snapshot came, which are not the %d that were sent", ErrProtocol, size, t.GetSize())
			}
			return Snapshot{
				Node: t.GetNode(), ClusterID: t.GetClusterId(), Incarnation: directory.Incarnation(t.GetIncarnation()), Shard: t.GetShard(),
				Index: t.GetIndex(), Term: t.GetTerm(), Revision: directory.Revision(t.GetRevision()), Size: size,
			}, nil
		}
		chunk := m.GetChunk()
		sum.Write(chunk)
		size += uint64(len(chunk))
		if _, err := w.Write(chunk); err != nil {
			return Snapshot{}, err
		}
		if progress != nil {
			progress(size)
		}
	}
}
