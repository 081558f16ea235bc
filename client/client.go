package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// Client talks to the nodes of one cluster. It may be used by many goroutines
// at once. Its methods are those of its own Session.
type Client struct {
	*Session
	nodes *nodes
	lanes *lanes
	opts  options
	life  life // the highest that any of its sessions saw

	closing  sync.Once
	closed   chan struct{}
	closeErr error
}

// An Option changes how a Client works.
type Option func(*options)

type options struct {
	creds       credentials.TransportCredentials
	dialer      func(context.Context, string) (net.Conn, error)
	timeout     time.Duration
	attempt     time.Duration
	lanes       int
	maxAge      time.Duration
	grpcOptions []grpc.DialOption
	conn        grpc.ClientConnInterface
	observe     func(Attempt)
}

// The defaults of the options.
const (
	DefaultTimeout        = 10 * time.Second
	DefaultAttemptTimeout = 3 * time.Second
	DefaultLanes          = 1024
)

// WithCredentials sets how connections are secured. The default is plain text,
// which nodes take on loopback only.
func WithCredentials(c credentials.TransportCredentials) Option {
	return func(o *options) { o.creds = c }
}

// WithDialer replaces how connections are made, for listeners in memory; addr is
// an endpoint as given to Dial.
func WithDialer(dial func(ctx context.Context, addr string) (net.Conn, error)) Option {
	return func(o *options) { o.dialer = dial }
}

// WithTimeout sets how long a call may take whose context has no deadline, with
// all its repeats. Zero: for ever. Listings and checks have no such limit.
func WithTimeout(d time.Duration) Option { return func(o *options) { o.timeout = d } }

// WithAttemptTimeout sets how long one node is waited for before another is
// asked, where there is another.
func WithAttemptTimeout(d time.Duration) Option { return func(o *options) { o.attempt = d } }

// WithLanes bounds how many writes may be under way at once; the others wait.
func WithLanes(n int) Option { return func(o *options) { o.lanes = n } }

// WithMaxAge sets how old the answers to reads may be at most where nothing else
// is asked for. Zero: the server's default, ten seconds.
func WithMaxAge(d time.Duration) Option { return func(o *options) { o.maxAge = d } }

// WithGRPC adds options of the transport. They are not checked.
func WithGRPC(opts ...grpc.DialOption) Option {
	return func(o *options) { o.grpcOptions = append(o.grpcOptions, opts...) }
}

// WithConn has every call made by conn, whichever node leads: for a node in the same
// process, such as server.Server.Conn returns. Dial is given one endpoint, which is
// its name in what is told of attempts; credentials, dialer and transport options are
// not used. Close leaves conn alone.
func WithConn(conn grpc.ClientConnInterface) Option {
	return func(o *options) { o.conn = conn }
}

// WithObserver has f told of every attempt of every call, for metrics. f must be
// quick and may be called by many goroutines at once.
func WithObserver(f func(Attempt)) Option { return func(o *options) { o.observe = f } }

// Attempt is one try of one call at one node.
type Attempt struct {
	Endpoint string
	Write    bool
	Err      error // nil if it was answered
	Again    bool  // another try follows
	// GivenUp: the node is of another cluster, or of an earlier life of this one.
	GivenUp bool
}

// Dial returns a Client for the cluster that the endpoints ("host:port", some or
// all of its nodes; "unix:/path" is the socket of one) belong to. It does not connect: the first call does.
func Dial(endpoints []string, opts ...Option) (*Client, error) {
	o := options{
		creds:   insecure.NewCredentials(),
		timeout: DefaultTimeout,
		attempt: DefaultAttemptTimeout,
		lanes:   DefaultLanes,
	}
	for _, opt := range opts {
		opt(&o)
	}
	if len(endpoints) == 0 {
		return nil, errors.New("client: no endpoints given")
	}
	if o.lanes < 1 {
		return nil, fmt.Errorf("client: %d lanes; at least one is needed", o.lanes)
	}
	if o.conn != nil && len(endpoints) != 1 {
		return nil, fmt.Errorf("client: %d endpoints and one connection", len(endpoints))
	}
	c := &Client{opts: o, closed: make(chan struct{})}
	var err error
	if c.lanes, err = newLanes(o.lanes); err != nil {
		return nil, err
	}
	if c.nodes, err = dialNodes(endpoints, o.connect); err != nil {
		return nil, err
	}
	if o.conn != nil {
		c.nodes.most = 1 // an address that it is told is not for it to connect to
	}
	c.Session = c.NewSession(nil)
	return c, nil
}

// clientConn is a connection to a node.
type clientConn interface {
	grpc.ClientConnInterface
	Close() error
}

// connect returns what calls to endpoint are made by.
func (o options) connect(endpoint string) (clientConn, error) {
	if o.conn != nil {
		return lent{o.conn}, nil
	}
	return o.dial(endpoint)
}

// lent is a connection that is its owner's to close.
type lent struct{ grpc.ClientConnInterface }

func (lent) Close() error { return nil }

// dial makes the connection to one endpoint, without connecting it.
func (o options) dial(endpoint string) (*grpc.ClientConn, error) {
	opts := []grpc.DialOption{
		grpc.WithTransportCredentials(o.creds),
		grpc.WithDefaultCallOptions(
			grpc.MaxCallSendMsgSize(maxRequest),
			grpc.MaxCallRecvMsgSize(maxResponse),
		),
		grpc.WithConnectParams(connectParams),
		grpc.WithDisableServiceConfig(),
	}
	if o.dialer != nil {
		opts = append(opts, grpc.WithContextDialer(o.dialer))
	}
	if strings.HasPrefix(endpoint, "unix:") {
		opts = append(opts, grpc.WithNoProxy()) // HTTPS_PROXY is about other machines
	}
	conn, err := grpc.NewClient("passthrough:///"+endpoint, append(opts, o.grpcOptions...)...)
	if err != nil {
		return nil, fmt.Errorf("client: endpoint %q: %w", endpoint, err)
	}
	return conn, nil
}

const (
	maxRequest  = 4 << 20
	maxResponse = 64 << 20
)

// Close ends all connections; calls under way fail with ErrClosed.
func (c *Client) Close() error {
	c.closing.Do(func() {
		close(c.closed)
		c.closeErr = c.nodes.close()
	})
	return c.closeErr
}

func (c *Client) isClosed() bool {
	select {
	case <-c.closed:
		return true
	default:
		return false
	}
}

// deadline gives ctx the client's timeout if it has no deadline of its own.
func (c *Client) deadline(ctx context.Context) (context.Context, context.CancelFunc) {
	if c.opts.timeout <= 0 {
		return ctx, func() {}
	}
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, c.opts.timeout)
}
