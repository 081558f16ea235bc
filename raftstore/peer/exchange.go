package peer

import (
	"context"
	"slices"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	peerv1 "github.com/rookery-mail/rookery/proto/peer/v1"
	"github.com/rookery-mail/rookery/raftstore"
)

// service answers other nodes.
type service struct {
	peerv1.UnimplementedPeerServiceServer
	t *Transport
}

// Exchange takes a peer's messages.
func (s *service) Exchange(stream grpc.BidiStreamingServer[peerv1.ExchangeRequest, peerv1.ExchangeResponse]) error {
	t := s.t
	req, err := stream.Recv()
	if err != nil {
		return err
	}
	hello := req.GetHello()
	if err := t.authorize(stream.Context(), hello.GetName()); err != nil {
		return err
	}
	a, w := t.welcome(hello)
	if err := stream.Send(&peerv1.ExchangeResponse{Welcome: w}); err != nil || a == nil {
		return err
	}
	from := hello.GetIdentity().GetNode()
	defer t.enter(from, hello)()
	t.support(from, hello.GetVersions())
	// This node may lag behind the caller's admission, or the caller behind its
	// removal: the answer takes a round of the cluster, and the stream goes on.
	removed := make(chan struct{})
	if !isMember(a.store.Status(), from) {
		ctx, cancel := context.WithCancel(stream.Context())
		done := make(chan struct{})
		defer func() { cancel(); <-done }()
		go func() {
			defer close(done)
			if t.wasRemoved(ctx, a, from) {
				close(removed)
			}
		}()
	}
	frames := make(chan *peerv1.ExchangeRequest)
	ended := make(chan error, 1)
	go func() {
		for {
			req, err := stream.Recv()
			if err != nil {
				ended <- err
				return
			}
			select {
			case frames <- req:
			case <-stream.Context().Done():
				ended <- stream.Context().Err()
				return
			}
		}
	}()
	for {
		select {
		case req := <-frames:
			if t.store.Load() != a {
				return status.Error(codes.Unavailable, "peer: this node has no state any more")
			}
			if err := t.takeFrame(a, from, req); err != nil {
				return err
			}
		case err := <-ended:
			return err
		case <-removed:
			w.Refusal = peerv1.Refusal_REFUSAL_REMOVED
			return stream.Send(&peerv1.ExchangeResponse{Welcome: w})
		case <-t.ctx.Done():
			return status.Error(codes.Unavailable, "peer: this node is ending")
		}
	}
}

func (t *Transport) takeFrame(a *attached, from uint64, req *peerv1.ExchangeRequest) error {
	for _, b := range req.GetMessages() {
		m := &raftpb.Message{}
		if err := proto.Unmarshal(b, m); err != nil {
			return status.Errorf(codes.InvalidArgument, "peer: a message that cannot be read: %v", err)
		}
		if m.GetFrom() != from || m.GetTo() != a.id.Node {
			return status.Errorf(codes.InvalidArgument, "peer: a message from node %x to node %x on the stream of node %x to node %x", m.GetFrom(), m.GetTo(), from, a.id.Node)
		}
		t.metrics.received.WithLabelValues(classOf(m).String()).Inc()
		a.store.Step(m)
	}
	if an := req.GetAnnouncement(); an != nil {
		t.take(from, announcementFrom(an))
	}
	return nil
}

// enter notes how a node is reached that is connected to this one, in case it is
// no member yet as far as this one knows; the returned function forgets it.
func (t *Transport) enter(id uint64, h *peerv1.Hello) (leave func()) {
	t.mu.Lock()
	g := t.guests[id]
	if g == nil {
		g = &guest{}
		t.guests[id] = g
	}
	g.streams++
	// Where the membership says otherwise, the node itself knows better: it was
	// moved, and the membership cannot follow before a majority is connected.
	g.name, g.info = h.GetName(), infoFrom(h.GetInfo())
	t.mu.Unlock()
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if g.streams--; g.streams == 0 {
			delete(t.guests, id)
		}
	}
}

func isMember(st raftstore.Status, id uint64) bool {
	return slices.ContainsFunc(st.Members, func(m raftstore.Member) bool { return m.ID == id })
}

// wasRemoved tells whether a node of this cluster that is no member here has been
// one: if this node has applied all that was committed when it asked, and that
// was later than the caller's admission, for otherwise it would not have called.
func (t *Transport) wasRemoved(ctx context.Context, a *attached, id uint64) bool {
	for {
		if st := a.store.Status(); len(st.Members) > 0 {
			v, err := a.store.Read(ctx, raftstore.Linearizable)
			if err == nil {
				v.Release()
				if isMember(a.store.Status(), id) {
					return false
				}
				// What is published may be a step ahead of what the status says.
				if !sleep(ctx, statusLag) {
					return false
				}
				return !isMember(a.store.Status(), id)
			}
		}
		if !sleep(ctx, announceEvery) {
			return false
		}
	}
}

const statusLag = 200 * time.Millisecond
