package mupdate

import (
	"cmp"
	"container/list"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/rookery-mail/rookery/adapter/mupdate/mupdatewire"
	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
)

// Config says how a Server works. Client and Users are needed.
type Config struct {
	// Client asks the directory. It speaks for all backends, so its role is operator,
	// or that of the one backend it stands beside.
	Client *client.Client
	Users  *Users
	// Hostname and Version stand in the greeting.
	Hostname, Version string
	// TLS is what STARTTLS begins; nil: it is not offered.
	TLS *tls.Config
	// Broken says why a certificate that changed is not used, or is of no use; nil, or nil
	// returned: it is well.
	Broken func() error
	// Holder names the backend that a client's certificate is of; nil, or empty: none. An
	// error ends the connection; whoever returns it has told why.
	Holder func(tls.ConnectionState, net.Addr) (string, error)
	// Clear takes logins without TLS.
	Clear bool
	// Order and Literals are for logins of which the users file does not say more.
	Order    Order
	Literals Literals
	// How many connections there may be, and streams among them; 0: the defaults.
	MaxConnections, MaxStreams int
	// SpoolDir is where listings wait to be sent; empty: the system's.
	SpoolDir string

	// Timeout is within which every command is answered.
	Timeout time.Duration
	// LoginPause is how long a wrong password waits for its answer.
	LoginPause time.Duration
	// LineTime is how long a line may take from its first octet to its last.
	LineTime time.Duration
	// OrphanGrace is how long a reservation outlives the connection that made it.
	OrphanGrace time.Duration

	Log     *slog.Logger          // nil: none
	Metrics prometheus.Registerer // nil: none
}

// The defaults of Config.
const (
	DefaultMaxConnections = 4096
	DefaultMaxStreams     = 512
	// DefaultTimeout is below the five seconds that are promised.
	DefaultTimeout     = 4500 * time.Millisecond
	DefaultLoginPause  = 3 * time.Second
	DefaultOrphanGrace = 30 * time.Second
	DefaultLineTime    = 30 * time.Second
)

// How long a connection may be silent, and not read.
const (
	idleTime   = 180 * time.Minute
	loginTime  = 2 * time.Minute
	writeTime  = time.Minute
	listTime   = 10 * time.Minute // all of a LIST
	streamTime = 5 * time.Minute  // a write of a stream: frontends are busy for long
)

// Server answers MUPDATE.
type Server struct {
	cfg   Config
	log   *slog.Logger
	m     *metrics
	ctx   context.Context // ends with the server
	stop  context.CancelFunc
	work  sync.WaitGroup // of all that the server began
	conns slots
	// strangers are the connections that have not logged in, the oldest first; under mu.
	strangers list.List
	// told is when it was last logged that there are too many.
	told time.Time
	// streams among them.
	streams slots
	lists   slots // LISTs that are being answered
	// checks bounds how many passwords are checked at once.
	checks   chan struct{}
	refusals refusals
	places   addresses
	orphans  orphans
	repairs  slots

	mu        sync.Mutex
	closed    bool
	listeners map[net.Listener]struct{}
	open      map[*conn]struct{}
}

// ErrClosed: the Server was closed.
var ErrClosed = errors.New("mupdate: closed")

// New returns a Server.
func New(cfg Config) (*Server, error) {
	if cfg.Client == nil || cfg.Users == nil {
		return nil, errors.New("mupdate: a client and users are needed")
	}
	if cfg.TLS == nil && !cfg.Clear {
		return nil, errors.New("mupdate: nobody could log in: there is no certificate, and logins in the clear are not allowed")
	}
	cfg.MaxConnections = cmp.Or(cfg.MaxConnections, DefaultMaxConnections)
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	// Each may have a listing in a file besides: half is kept for the rest of the process.
	if most := descriptors() / 4; most > 0 && cfg.MaxConnections > most {
		cfg.Log.Warn("fewer connections are taken than was said, so that the process keeps descriptors for its files and its peers; raise its limit of open files",
			"proto", "mupdate", "said", cfg.MaxConnections, "limit", most)
		cfg.MaxConnections = most
	}
	cfg.MaxStreams = cmp.Or(cfg.MaxStreams, DefaultMaxStreams)
	cfg.Timeout = cmp.Or(cfg.Timeout, DefaultTimeout)
	cfg.LoginPause = cmp.Or(cfg.LoginPause, DefaultLoginPause)
	cfg.LineTime = cmp.Or(cfg.LineTime, DefaultLineTime)
	cfg.OrphanGrace = cmp.Or(cfg.OrphanGrace, DefaultOrphanGrace)
	if cfg.Hostname == "" {
		cfg.Hostname, _ = os.Hostname()
	}
	s := &Server{
		cfg: cfg, log: cfg.Log.With("proto", "mupdate"),
		conns: slots{most: cfg.MaxConnections}, streams: slots{most: cfg.MaxStreams}, lists: slots{most: cfg.MaxStreams}, repairs: slots{most: maxRepairs},
		checks:    make(chan struct{}, 2),
		listeners: make(map[net.Listener]struct{}), open: make(map[*conn]struct{}),
	}
	s.m = newMetrics(cfg.Metrics, func() float64 { return float64(s.streams.count()) })
	s.ctx, s.stop = context.WithCancel(context.Background())
	s.work.Go(func() { s.places.follow(s.ctx, cfg.Client) })
	s.work.Go(s.watchFiles)
	s.orphans.more = make(chan struct{}, 1)
	s.work.Go(s.giveBack)
	return s, nil
}

// watchFiles tells of files that changed and cannot be used, and of a certificate that is
// of no use: what there was before goes on, and nobody would notice until it is too late.
func (s *Server) watchFiles() {
	said := fileWords{}
	for {
		broken := map[string]error{"users": s.cfg.Users.Broken()}
		if s.cfg.Broken != nil {
			broken["certificate"] = s.cfg.Broken()
		}
		n := 0
		for what, err := range broken {
			if err != nil {
				n++
			}
			said.tell(s.log, what, err, time.Now())
		}
		s.m.broken.Set(float64(n))
		select {
		case <-s.ctx.Done():
			return
		case <-time.After(lookAgain):
		}
	}
}

// sayAgain is how often the same is said of a file.
const sayAgain = 24 * time.Hour

// fileWords are what was said last of each file, and when.
type fileWords map[string]struct {
	text string
	at   time.Time
}

// tell says what is wrong with a file, once a day, and once that nothing is any more.
func (w fileWords) tell(log *slog.Logger, what string, err error, now time.Time) {
	said, text := w[what], ""
	if err != nil {
		text = err.Error()
	}
	if text == said.text && (text == "" || now.Sub(said.at) < sayAgain) {
		return
	}
	said.text, said.at = text, now
	w[what] = said
	switch {
	case err == nil:
		log.Info("the file can be used again", "kind", what)
	case errors.Is(err, errUnfit):
		log.Warn("the certificate is of no use as it is", "kind", what, "err", err)
	default:
		log.Error("a file that changed cannot be used; what it held before goes on", "kind", what, "err", err)
	}
}

// Serve answers on l until it or the Server is closed.
func (s *Server) Serve(l net.Listener) error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		l.Close()
		return ErrClosed
	}
	s.listeners[l] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.listeners, l)
		s.mu.Unlock()
		l.Close()
	}()
	for wait := time.Duration(0); ; {
		nc, err := l.Accept()
		if err != nil {
			if s.ctx.Err() != nil {
				return nil
			}
			if !errors.Is(err, net.ErrClosed) {
				// Out of descriptors or memory, which will be given back; or who came has left.
				wait = min(max(2*wait, 5*time.Millisecond), time.Second)
				s.log.Warn("no connection could be accepted", "err", err, "dur", wait)
				time.Sleep(wait)
				continue
			}
			return fmt.Errorf("mupdate: accept: %w", err)
		}
		wait = 0
		s.m.accepted.Inc()
		if !s.conns.take() {
			// Who opens connections and does not log in must not keep out who does.
			displaced := s.displace()
			if time.Since(s.told) > time.Second {
				s.told = time.Now()
				s.log.Warn("too many connections", "limit", s.cfg.MaxConnections, "addr", nc.RemoteAddr().String(), "displaced", displaced)
			}
			if !displaced {
				s.m.full.Inc()
				s.work.Go(func() { refuse(nc) })
				continue
			}
			s.m.displaced.Inc()
		}
		if !s.work1(nc) {
			s.conns.put()
			nc.Close()
			return nil
		}
	}
}

// work1 begins a connection; false if the server is closed.
func (s *Server) work1(nc net.Conn) bool {
	c := newConn(s, nc)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.open[c] = struct{}{}
	c.stranger = s.strangers.PushBack(c)
	s.m.connections.Inc()
	s.work.Go(func() {
		c.serve()
		s.mu.Lock()
		delete(s.open, c)
		kept := !c.displaced
		s.known(c)
		s.mu.Unlock()
		s.m.connections.Dec()
		if kept {
			s.conns.put()
		}
	})
	return true
}

// known takes c from the strangers. s.mu is held.
func (s *Server) known(c *conn) {
	if c.stranger != nil {
		s.strangers.Remove(c.stranger)
		c.stranger = nil
	}
}

// displace ends the oldest connection that has not logged in; its place is the caller's.
// False if all have.
func (s *Server) displace() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	oldest := s.strangers.Front()
	if oldest == nil {
		return false
	}
	c := oldest.Value.(*conn)
	s.known(c)
	c.displaced = true
	close(c.gone)
	c.cut()
	return true
}

// refuse says that there is no room.
func refuse(nc net.Conn) {
	nc.SetDeadline(time.Now().Add(time.Second))
	_, _ = nc.Write([]byte("* BYE \"Server Unable\"\r\n"))
	nc.Close()
}

// Close ends all connections and waits for them. Renames and withdrawals that are not done
// are undone. All else that is half done is given to the directory's own rules, and so are
// reservations: at the end of a connection it is not known that nothing follows, for an
// XFER goes on over another one, which may be another node's.
func (s *Server) Close() {
	s.stop()
	s.mu.Lock()
	s.closed = true
	for l := range s.listeners {
		l.Close()
	}
	conns := make([]*conn, 0, len(s.open))
	for c := range s.open {
		conns = append(conns, c)
	}
	s.mu.Unlock()
	for _, c := range conns {
		c.cut()
	}
	s.work.Wait()
}

// slots counts what there may be so many of.
type slots struct {
	most int

	mu   sync.Mutex
	used int
}

func (s *slots) take() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.used >= s.most {
		return false
	}
	s.used++
	return true
}

func (s *slots) put() {
	s.mu.Lock()
	s.used--
	s.mu.Unlock()
}

func (s *slots) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.used
}

// addresses knows which backend an address belongs to, from what the directory keeps
// of backends.
type addresses struct {
	mu     sync.Mutex
	mirror *client.Mirror
}

func (a *addresses) follow(ctx context.Context, c *client.Client) {
	for ctx.Err() == nil {
		mirror := client.NewMirror()
		for u, err := range c.NewSession(nil).Watch(ctx, client.WatchQuery{Kinds: []client.WatchKind{client.WatchBackend}}) {
			if err != nil {
				break
			}
			mirror.Apply(u)
			a.mu.Lock()
			a.mirror = mirror
			a.mu.Unlock()
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// of returns the one backend that has the address; empty if none has, or several.
func (a *addresses) of(addr netip.Addr) directory.BackendName {
	a.mu.Lock()
	mirror := a.mirror
	a.mu.Unlock()
	if mirror == nil {
		return ""
	}
	found := directory.BackendName("")
	for _, b := range mirror.Backends() {
		if b.State == directory.BackendRetired {
			continue
		}
		for _, at := range b.Addresses {
			if ip, err := netip.ParseAddr(at.IP); err == nil && ip.Unmap() == addr {
				if found != "" && found != b.Name {
					return ""
				}
				found = b.Name
			}
		}
	}
	return found
}

// The limits on what clients send. Before somebody has logged in, little is taken.
var (
	limitsBefore = mupdatewire.Limits{Word: 64, String: 8 << 10, Args: 3, Line: 16 << 10, Skip: 16 << 10}
	limitsAfter  = mupdatewire.Limits{Word: 64, String: directory.MaxACL + 64, Args: 30, Line: 128 << 10, Skip: 1 << 20}
)
