package peer

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	peerv1 "github.com/rookery-mail/rookery/proto/peer/v1"
	"github.com/rookery-mail/rookery/raftstore"
)

// Store is what the transport needs of the shard. Its errors are raftstore's.
type Store interface {
	Identity() raftstore.Identity
	Status() raftstore.Status
	// Step takes a message from a peer.
	Step(m *raftpb.Message)
	// Unreachable says that messages to a node are being lost.
	Unreachable(node uint64)
	// Lost says that a node's process is certainly gone.
	Lost(node uint64)
	Propose(ctx context.Context, command []byte) ([]byte, error)
	Read(ctx context.Context, c raftstore.Consistency) (*raftstore.View, error)
}

var _ Store = (*raftstore.Store)(nil)

// Snapshots is what the transport needs to send and to take snapshots.
type Snapshots interface {
	// Spool returns a file of a late state, if possible not of before an index,
	// to be released.
	Spool(ctx context.Context, index uint64) (*Spooled, error)
	// ReportSnapshot says what became of the one that Raft wanted a node to have.
	ReportSnapshot(node uint64, ok bool)
	// IncomingDir is where to put what is received.
	IncomingDir() string
	// Install takes a whole file, which came from a node for Raft's message of a
	// term, and removes it.
	Install(path string, from, term uint64) error
}

// Spooled is a snapshot file. It stays as it is until it is released.
type Spooled struct {
	Path    string
	Size    int64
	Release func()
}

// Config says who this node is and whom it trusts.
type Config struct {
	Name    string // of this node
	Info    Info   // how others reach it
	Version string // of this program
	// Versions are the cluster versions that this program supports; default 1 alone.
	Versions Versions
	// ClusterVersion says which one the cluster is of, 0 while that is not known.
	// Default: it never is.
	ClusterVersion func() uint32
	// Birth is the id that this node's disk has drawn, while its directory is
	// empty; else 0.
	Birth uint64
	// Initial are the names of the cluster that it is to found, in order.
	Initial []string

	// ServerCredentials secure the connections that others make, ClientCredentials
	// those that this node makes, to the node of a name or, where that is not known
	// yet, "". Default: plain text.
	ServerCredentials credentials.TransportCredentials
	ClientCredentials func(name string) credentials.TransportCredentials
	// Authorize refuses callers that are no peers, or not the one that they say they
	// are; default: everybody is.
	Authorize func(ctx context.Context, name string) error

	// Check refuses a command of another node that this one could not apply: once in
	// the log, it would stop every node, now and after each restart. Of one that is
	// not in force yet the error is a raftstore.ErrNotInForce. Default: none is refused.
	Check func(command []byte) error

	// SnapshotRate bounds what is sent of snapshots, in octets a second; default
	// 64 MiB. Negative: no bound.
	SnapshotRate int64

	// Announce says what to tell the others of this node, every second; default:
	// name, addresses and version, and what the store says. It must be quick.
	Announce func() Announcement
	// OnAnnounce is told what another node says. It must be quick.
	OnAnnounce func(from uint64, a Announcement)

	Log     *slog.Logger          // default: nowhere
	Metrics prometheus.Registerer // default: nowhere
}

// The transport's own times.
const (
	announceEvery = time.Second
	dialPatience  = time.Second
	firstBackoff  = 10 * time.Millisecond
	longBackoff   = 250 * time.Millisecond
	// waitingFor is how long a node that asks to join is remembered.
	waitingFor = 5 * time.Second
)

// What goes over one connection.
const (
	maxMessage = 64 << 20 // an entry that has a message to itself
	frameBytes = 1 << 20  // messages are gathered up to this
)

// Transport is a node's side of the network to its peers: a raftstore.Network
// for what goes out, a gRPC service for what comes in. It is made before the
// store, which nodes without a directory need the network to make, and outlives it.
type Transport struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	process uint64
	pace    *pace
	server  *grpc.Server

	ctx     context.Context // ends with Close
	cancel  context.CancelFunc
	running sync.WaitGroup
	closing sync.Once

	incoming sync.Mutex // held while a snapshot is received

	saying sync.Mutex
	said   Announcement // what was told last, and when
	saidAt time.Time

	store     atomic.Pointer[attached]
	failed    chan struct{} // closed when this node must end
	failure   error         // why; set before
	failOnce  sync.Once
	wasMember atomic.Bool

	mu       sync.Mutex
	links    map[uint64]*link
	guests   map[uint64]*guest
	heard    map[uint64]heardAt
	versions map[uint64]Versions  // said by any node, by its id
	waiting  map[string]waitingAt // by name
	refused  map[uint64]string    // who was refused, and why, so that it is said once
	looking  bool                 // look runs
	closed   bool
}

// attached is the store that the transport works for.
type attached struct {
	store     Store
	snapshots Snapshots // nil: none
	id        raftstore.Identity
}

// guest is a node that is connected to this one. It may be no member as far as
// this one knows, or one that is reached elsewhere by now: it knows more.
type guest struct {
	streams int
	name    string
	info    Info
}

var _ raftstore.Network = (*Transport)(nil)

// New returns a transport that neither listens nor connects yet.
func New(cfg Config) (*Transport, error) {
	if cfg.Name == "" {
		return nil, errors.New("peer: no node name given")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Metrics == nil {
		cfg.Metrics = prometheus.NewRegistry()
	}
	if cfg.Versions == (Versions{}) {
		cfg.Versions = firstVersions
	}
	if cfg.SnapshotRate == 0 {
		cfg.SnapshotRate = 64 << 20
	}
	if cfg.ClientCredentials == nil {
		cfg.ClientCredentials = func(string) credentials.TransportCredentials { return insecure.NewCredentials() }
	}
	if cfg.ServerCredentials == nil {
		cfg.ServerCredentials = insecure.NewCredentials()
	}
	var random [8]byte
	if _, err := rand.Read(random[:]); err != nil {
		return nil, fmt.Errorf("peer: %w", err)
	}
	t := &Transport{
		cfg: cfg, log: cfg.Log, process: binary.BigEndian.Uint64(random[:]), pace: &pace{rate: cfg.SnapshotRate},
		failed: make(chan struct{}),
		links:  make(map[uint64]*link), guests: make(map[uint64]*guest), heard: make(map[uint64]heardAt), versions: make(map[uint64]Versions),
		waiting: make(map[string]waitingAt), refused: make(map[uint64]string),
	}
	var err error
	if t.metrics, err = newMetrics(cfg.Metrics); err != nil {
		return nil, fmt.Errorf("peer: metrics: %w", err)
	}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	t.server = grpc.NewServer(
		grpc.Creds(cfg.ServerCredentials),
		grpc.WaitForHandlers(true),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: keepaliveTime, Timeout: keepaliveTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: keepaliveTime / 2, PermitWithoutStream: true}),
	)
	peerv1.RegisterPeerServiceServer(t.server, &service{t: t})
	return t, nil
}

// Both sides of a connection look after it alike.
const (
	keepaliveTime    = 10 * time.Second
	keepaliveTimeout = 3 * time.Second
)

func (t *Transport) authorize(ctx context.Context, name string) error {
	if t.cfg.Authorize == nil {
		return nil
	}
	if err := t.cfg.Authorize(ctx, name); err != nil {
		return status.Error(codes.PermissionDenied, err.Error())
	}
	return nil
}

// Serve answers peers on l until Close, which makes it return nil.
func (t *Transport) Serve(l net.Listener) error {
	if err := t.server.Serve(l); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("peer: serve on %s: %w", l.Addr(), err)
	}
	return nil
}

// Attach gives the transport the store to work for: from now on it connects to
// the store's members. snapshots may be nil. The store's Network must be this
// transport.
func (t *Transport) Attach(s Store, snapshots Snapshots) {
	t.store.Store(&attached{store: s, snapshots: snapshots, id: s.Identity()})
	t.sync()
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.closed && !t.looking {
		t.looking = true
		t.running.Go(t.look)
	}
}

// Detach takes the store away again: what comes in is refused until there is
// another. Connections stay, so that a snapshot can be fetched over them.
func (t *Transport) Detach() { t.store.Store(nil) }

// Failed is closed when this node must not go on, because it was removed from
// its cluster; Err then says so.
func (t *Transport) Failed() <-chan struct{} { return t.failed }

// Err returns why Failed was closed, or nil.
func (t *Transport) Err() error {
	select {
	case <-t.failed:
		return t.failure
	default:
		return nil
	}
}

func (t *Transport) fail(err error) {
	t.failOnce.Do(func() {
		t.failure = err
		t.log.Error("this node ends", "err", err)
		close(t.failed)
	})
}

// Close ends all connections and waits for what runs on them.
func (t *Transport) Close() {
	t.closing.Do(func() {
		t.mu.Lock()
		t.closed = true
		t.mu.Unlock()
		t.cancel()
		t.server.Stop()
	})
	t.running.Wait()
	t.metrics.unregister()
}

// Send implements raftstore.Network. It never blocks: what does not fit in a
// peer's queue is dropped, and Raft is told that the peer cannot be reached.
func (t *Transport) Send(messages []*raftpb.Message) {
	synced := false
	for _, m := range messages {
		l := t.link(m.GetTo())
		if l == nil && !synced {
			synced = true
			t.sync()
			l = t.link(m.GetTo())
		}
		if l == nil {
			t.metrics.dropped.WithLabelValues(classOf(m).String()).Inc()
			continue
		}
		l.send(m)
	}
}

func (t *Transport) link(id uint64) *link {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.links[id]
}

// sync makes the links those of the membership, and of guests.
func (t *Transport) sync() {
	a := t.store.Load()
	if a == nil {
		return
	}
	st := a.store.Status()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return
	}
	want := make(map[uint64]bool)
	open := func(id uint64, name, address string) {
		if id == a.id.Node || address == "" {
			return
		}
		want[id] = true
		if l := t.links[id]; l == nil {
			t.links[id] = t.newLink(id, name, address)
		} else {
			l.setAddress(name, address)
		}
	}
	for id, g := range t.guests {
		open(id, g.name, g.info.PeerAddress)
	}
	self := len(st.Members) == 0
	for _, m := range st.Members {
		self = self || m.ID == a.id.Node
		if g := t.guests[m.ID]; g == nil || g.name != m.Name || g.info.PeerAddress == "" {
			open(m.ID, m.Name, ParseInfo(m.Context).PeerAddress)
		}
	}
	for id, l := range t.links {
		if !want[id] {
			l.cancel()
			delete(t.links, id)
			delete(t.heard, id)
		}
	}
	switch {
	case self:
		t.wasMember.Store(len(st.Members) > 0)
	case t.wasMember.Swap(false):
		// The others may need a moment of this node to learn it themselves.
		t.running.Go(func() {
			if sleep(t.ctx, announceEvery) {
				t.fail(t.errRemoved())
			}
		})
	}
}

func (t *Transport) errRemoved() error {
	return fmt.Errorf("node %s was removed from the cluster: it is no member any more and serves nothing; to use this machine again, move the data directory away and let it join", t.cfg.Name)
}

// look keeps the links up to date.
func (t *Transport) look() {
	for sleep(t.ctx, announceEvery) {
		t.sync()
		connected := 0
		t.mu.Lock()
		for _, l := range t.links {
			if l.connected.Load() {
				connected++
			}
		}
		for name, w := range t.waiting {
			if time.Since(w.at) > waitingFor {
				delete(t.waiting, name)
			}
		}
		t.mu.Unlock()
		t.metrics.connected.Set(float64(connected))
	}
}

// sleep waits for d; false if ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	if ctx.Err() != nil {
		return false
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
