package peer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	peerv1 "github.com/rookery-mail/rookery/proto/peer/v1"
	"github.com/rookery-mail/rookery/raftstore"
)

// link is the way to one peer.
type link struct {
	t      *Transport
	id     uint64
	ctx    context.Context
	cancel context.CancelFunc

	boxes     [transit]*outbox // control and bulk
	connected atomic.Bool      // the control stream is up
	snapTerm  atomic.Uint64    // of the snapshot that Raft wants sent; 0: none
	told      atomic.Int64     // when Raft was last told that the peer is unreachable

	mu      sync.Mutex
	name    string
	address string
	calls   *grpc.ClientConn // for Propose; nil until it is needed
	said    string           // what was logged last of why there is no connection
}

// Bounds of what waits for a peer. Raft has 256 appends of 1 MiB under way at most.
const (
	maxControl      = 4096
	maxControlBytes = 8 << 20
	maxBulk         = 4096
	maxBulkBytes    = 64 << 20
)

// newLink starts a link; the transport's lock is held.
func (t *Transport) newLink(id uint64, name, address string) *link {
	l := &link{t: t, id: id, name: name, address: address}
	l.ctx, l.cancel = context.WithCancel(t.ctx)
	l.boxes = [transit]*outbox{newOutbox(maxControl, maxControlBytes), newOutbox(maxBulk, maxBulkBytes)}
	t.running.Go(func() { l.run(control) })
	t.running.Go(func() { l.run(bulk) })
	t.running.Go(func() {
		<-l.ctx.Done()
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.calls != nil {
			_ = l.calls.Close() // nobody waits for it
		}
	})
	return l
}

func (l *link) setAddress(name, address string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.address != address && l.calls != nil {
		_ = l.calls.Close()
		l.calls = nil
	}
	l.name, l.address = name, address
}

func (l *link) where() (name, address string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.name, l.address
}

// send queues a message, or drops it.
func (l *link) send(m *raftpb.Message) {
	c := classOf(m)
	if c == transit {
		l.sendSnapshot(m)
		return
	}
	if !l.boxes[c].put(m) {
		l.lose(c, 1)
	}
}

// unreachableEvery is how often Raft is told at most.
const unreachableEvery = 50 * time.Millisecond

// lose counts messages that were dropped and tells Raft.
func (l *link) lose(c class, n int) {
	if n == 0 {
		return
	}
	l.t.metrics.dropped.WithLabelValues(c.String()).Add(float64(n))
	now := time.Now().UnixNano()
	if last := l.told.Load(); now-last < int64(unreachableEvery) || !l.told.CompareAndSwap(last, now) {
		return
	}
	if a := l.t.store.Load(); a != nil {
		a.store.Unreachable(l.id)
	}
}

// run keeps one stream of a class up.
func (l *link) run(c class) {
	var last uint64 // the process that was last heard
	up := false     // it was heard in the last session
	wait := time.Duration(0)
	for l.ctx.Err() == nil {
		s, err := l.open(c)
		if err == nil {
			if c == control {
				if last != 0 && s.process != last {
					l.lost()
				}
				last = s.process
				l.reachable(nil)
			}
			err = l.pump(c, s)
			l.t.log.Debug("stream ended", "peer", l.id, "proto", c, "err", err)
			s.close()
			up, wait = true, 0
			l.connected.CompareAndSwap(c == control, false)
		} else {
			if c == control {
				if up && errors.Is(err, syscall.ECONNREFUSED) {
					l.lost()
				}
				l.reachable(err)
			}
			up = false
			wait = min(max(2*wait, firstBackoff), longBackoff)
		}
		l.lose(c, l.boxes[c].clear())
		if wait > 0 && !sleep(l.ctx, wait) {
			return
		}
	}
}

// lost tells Raft that the peer's process is gone.
func (l *link) lost() {
	l.t.metrics.lost.Inc()
	if a := l.t.store.Load(); a != nil {
		a.store.Lost(l.id)
	}
}

// reachable logs whether the peer is, when that changes.
func (l *link) reachable(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	l.mu.Lock()
	said, name, address := l.said, l.name, l.address
	if l.said = text; text == "" {
		l.said = "connected"
	}
	l.mu.Unlock()
	_, refused := errors.AsType[*refusedError](err)
	switch {
	case l.ctx.Err() != nil:
	case err == nil:
		l.t.log.Info("peer connected", "peer", name, "addr", address)
	case text == said || !refused && said != "" && said != "connected":
		// It is not reached, for whatever reason of many.
	default:
		l.t.log.Warn("peer not connected", "peer", name, "addr", address, "err", err)
	}
}

// session is one connection to a peer with a stream on it.
type session struct {
	conn    *grpc.ClientConn
	stream  grpc.BidiStreamingClient[peerv1.ExchangeRequest, peerv1.ExchangeResponse]
	ctx     context.Context
	cancel  context.CancelFunc
	process uint64
}

func (s *session) close() {
	s.cancel()
	_ = s.conn.Close() // it carries nothing any more
}

// refusedError is the answer of a node that does not want this one.
type refusedError struct {
	refusal peerv1.Refusal
	text    string
}

func (e *refusedError) Error() string { return "peer: " + e.text }

// errNotReady: there is no store to speak for.
var errNotReady = errors.New("peer: this node has no state to speak for")

// dial returns a connection to the node of a name, if that is known, that fails at once when it cannot be
// made. The error of the last attempt can be asked for.
func (t *Transport) dial(name, address string) (conn *grpc.ClientConn, dialed func() error, err error) {
	var mu sync.Mutex
	var last error
	conn, err = grpc.NewClient("passthrough:///"+address,
		grpc.WithTransportCredentials(t.cfg.ClientCredentials(name)),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(ctx, dialPatience)
			defer cancel()
			var d net.Dialer
			c, err := d.DialContext(ctx, "tcp", address)
			mu.Lock()
			last = err
			mu.Unlock()
			return c, err
		}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: firstBackoff, Multiplier: 2, Jitter: 0.2, MaxDelay: longBackoff},
			MinConnectTimeout: dialPatience,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveTime, Timeout: keepaliveTimeout, PermitWithoutStream: true}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		grpc.WithDisableServiceConfig(),
		grpc.WithStatsHandler(sentMark{}),
		grpc.WithNoProxy(),
	)
	if err != nil {
		return nil, nil, fmt.Errorf("peer: %s: %w", address, err)
	}
	return conn, func() error {
		mu.Lock()
		defer mu.Unlock()
		return last
	}, nil
}

// plain returns why a call on a connection failed, in few words.
func plain(err error, dialed func() error) error {
	if d := dialed(); d != nil {
		return fmt.Errorf("peer: %w", d)
	}
	if st, ok := status.FromError(err); ok && st.Code() != codes.OK {
		return fmt.Errorf("peer: %s: %s", st.Code(), st.Message())
	}
	return err
}

// open connects to the peer and introduces this node.
func (l *link) open(c class) (_ *session, err error) {
	a := l.t.store.Load()
	if a == nil {
		return nil, errNotReady
	}
	conn, dialed, err := l.t.dial(l.where())
	if err != nil {
		return nil, err
	}
	s := &session{conn: conn}
	s.ctx, s.cancel = context.WithCancel(l.ctx)
	defer func() {
		if err != nil {
			err = plain(err, dialed)
			s.close()
		}
	}()
	// A peer whose process is stopped accepts connections and says nothing.
	patience := time.AfterFunc(2*dialPatience, s.cancel)
	defer patience.Stop()
	if s.stream, err = peerv1.NewPeerServiceClient(conn).Exchange(s.ctx); err != nil {
		return nil, err
	}
	if err := s.stream.Send(&peerv1.ExchangeRequest{Hello: l.t.hello(a.id, l.id)}); err != nil {
		_, err = s.stream.Recv() // which knows why
		return nil, err
	}
	answer, err := s.stream.Recv()
	if err != nil {
		return nil, err
	}
	if err := l.judge(a.id, answer.GetWelcome()); err != nil {
		return nil, err
	}
	s.process = answer.GetWelcome().GetProcess()
	if c == control {
		l.connected.Store(true)
	}
	return s, nil
}

// judge makes an error of a welcome that is none.
func (l *link) judge(ours raftstore.Identity, w *peerv1.Welcome) error {
	name, address := l.where()
	who := fmt.Sprintf("node %s at %s", name, address)
	theirs := identityFrom(w.GetIdentity())
	refuse := func(format string, args ...any) error {
		return &refusedError{w.GetRefusal(), fmt.Sprintf(format, args...)}
	}
	switch w.GetRefusal() {
	case peerv1.Refusal_REFUSAL_UNSPECIFIED:
		return nil
	case peerv1.Refusal_REFUSAL_IDENTITY:
		return refuse("%s", mismatch(who, theirs, ours))
	case peerv1.Refusal_REFUSAL_NODE:
		return refuse("%s is %s with id %x, the membership says %x: its disk was replaced, or it has another node's address; run `rookeryctl member replace %s`", who, w.GetName(), theirs.Node, l.id, name)
	case peerv1.Refusal_REFUSAL_REMOVED:
		err := l.t.errRemoved()
		l.t.fail(err)
		return refuse("%s says: %v", who, err)
	case peerv1.Refusal_REFUSAL_NOT_READY:
		return refuse("%s has no state yet", who)
	case peerv1.Refusal_REFUSAL_BUSY:
		return refuse("%s is receiving another snapshot", who)
	}
	return refuse("%s refuses this node for a reason that this release does not know, %d", who, w.GetRefusal())
}

// pump sends what is queued until the stream breaks.
func (l *link) pump(c class, s *session) error {
	ended := make(chan error, 1)
	l.t.running.Go(func() {
		for {
			answer, err := s.stream.Recv()
			if err == nil {
				err = l.judge(raftstore.Identity{}, answer.GetWelcome())
			}
			if err != nil {
				ended <- err
				s.cancel()
				return
			}
		}
	})
	var tell <-chan time.Time
	if c == control {
		t := time.NewTicker(announceEvery)
		defer t.Stop()
		tell = t.C
		if err := l.announce(s); err != nil {
			return err
		}
	}
	box := l.boxes[c]
	sent, octets := l.t.metrics.sent.WithLabelValues(c.String()), l.t.metrics.bytes.WithLabelValues(c.String())
	for {
		select {
		case err := <-ended:
			return err
		case <-s.ctx.Done():
			return s.ctx.Err()
		case <-tell:
			if err := l.announce(s); err != nil {
				return err
			}
		case <-box.wake:
		}
		for more := true; more; {
			var items []*raftpb.Message
			if items, more = box.take(frameBytes); len(items) == 0 {
				break
			}
			frame := &peerv1.ExchangeRequest{Messages: make([][]byte, len(items))}
			size := 0
			for i, m := range items {
				b, err := proto.Marshal(m)
				if err != nil {
					return fmt.Errorf("peer: encode a message: %w", err)
				}
				frame.Messages[i] = b
				size += len(b)
			}
			if err := s.stream.Send(frame); err != nil {
				l.lose(c, len(items))
				return err
			}
			sent.Add(float64(len(items)))
			octets.Add(float64(size))
		}
	}
}

func (l *link) announce(s *session) error {
	return s.stream.Send(&peerv1.ExchangeRequest{Announcement: announcementTo(l.t.announcement())})
}
