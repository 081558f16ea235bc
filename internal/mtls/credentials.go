package mtls

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

const (
	// handshakeTimeout is how long the other end may take to say who it is.
	handshakeTimeout = 10 * time.Second
	// maxHandshakes is how many connections of one host may be at that at once.
	// Who opens more is refused at once, so that it holds no descriptors that
	// others need.
	maxHandshakes = 2048
)

// alpn is the protocol that gRPC speaks inside of TLS.
const alpn = "h2"

// Info is what is known of the other end of a connection: gRPC's AuthInfo.
type Info struct {
	credentials.CommonAuthInfo
	// Identity is zero where nobody had to say who he is: plain text, and
	// connections inside one process.
	Identity Identity
	Cert     *x509.Certificate // nil without TLS
	how      string
	files    *Files
	judged   *atomic.Pointer[material] // by which Identity was last found to hold
}

// Recheck says whether who is there is still who he was when the connection began:
// the map may have changed, and refuse the certificate now or call its holder
// something else. It is cheap enough for every call.
func (i Info) Recheck() error {
	if i.files == nil {
		return nil
	}
	m := i.files.current()
	if m == i.judged.Load() {
		return nil
	}
	id, err := IdentityOf(i.Cert, m.ids)
	if err != nil {
		return refuse(NoIdentity, i.Cert, err, "the certificate (%s): %s", describe(i.Cert), strings.ReplaceAll(err.Error(), "mtls: ", ""))
	}
	if id != i.Identity {
		return refuse(NoIdentity, i.Cert, nil, "the certificate (%s) was that of %s when it connected, and is that of %s now: it must connect again", describe(i.Cert), i.Identity, id)
	}
	i.judged.Store(m)
	return nil
}

// AuthType is "tls", "unix", "memory" or "plain".
func (i Info) AuthType() string { return i.how }

// InfoOf tells who makes the call of ctx; false if nobody of this package has
// seen to the connection.
func InfoOf(ctx context.Context) (Info, bool) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return Info{}, false
	}
	info, ok := p.AuthInfo.(Info)
	return info, ok
}

// Listening says who may come in where.
type Listening struct {
	// Proto names the listener in the log: client, peer, http.
	Proto string
	// Roles are who may; none: every role.
	Roles []Role
	Log   *slog.Logger // default: nowhere
}

// Server returns the credentials of a gRPC server. They look at how a connection
// comes: over TCP it must show a certificate, or where f is nil it speaks plain
// text; over a unix socket it must be root's or this user's; from inside the
// process it is taken.
func Server(f *Files, l Listening) credentials.TransportCredentials {
	return &serverCreds{gate: newGate(f, l)}
}

// PeerServer returns the credentials of the port for other nodes: only a node's
// certificate is taken, and InfoOf tells which node's.
func PeerServer(f *Files, log *slog.Logger) credentials.TransportCredentials {
	return Server(f, Listening{Proto: "peer", Roles: []Role{Node}, Log: log})
}

// gate is what the listeners have in common.
type gate struct {
	files    *Files
	roles    []Role
	say      *complaints
	timeout  time.Duration
	most     int
	mu       sync.Mutex
	underway map[string]int // handshakes by host
}

func newGate(f *Files, l Listening) *gate {
	return &gate{files: f, roles: l.Roles, say: newComplaints(l.Log, l.Proto), timeout: handshakeTimeout, most: maxHandshakes, underway: make(map[string]int)}
}

// enter counts a handshake; false if its host has too many already.
func (g *gate) enter(h string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.underway[h] >= g.most {
		return false
	}
	g.underway[h]++
	return true
}

func (g *gate) leave(h string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.underway[h]--; g.underway[h] == 0 {
		delete(g.underway, h)
	}
}

// admit lets a connection in or says why not, in the log too. It does not close it.
func (g *gate) admit(raw net.Conn, protocol string) (net.Conn, Info, error) {
	conn, info, r := g.look(raw, protocol)
	if r != nil {
		g.say.tell("connection refused", raw.RemoteAddr(), r, time.Now())
		return nil, Info{}, r
	}
	return conn, info, nil
}

func (g *gate) look(raw net.Conn, protocol string) (net.Conn, Info, *Refusal) {
	switch raw.LocalAddr().Network() {
	case "bufconn", "pipe":
		return raw, Info{how: "memory", CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}}, nil
	case "unix":
		id, r := socketUser(raw)
		return raw, Info{Identity: id, how: "unix", CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}}, r
	}
	h := host(raw.RemoteAddr())
	if !g.enter(h) {
		return nil, Info{}, refuse(TooMany, nil, nil, "%d connections from there have not said yet who they are", g.most)
	}
	defer g.leave(h)
	if g.files == nil {
		return g.plain(raw)
	}
	return g.secure(raw, protocol)
}

// secure makes the handshake of TLS.
func (g *gate) secure(raw net.Conn, protocol string) (net.Conn, Info, *Refusal) {
	ctx, cancel := context.WithTimeout(context.Background(), g.timeout)
	defer cancel()
	m := g.files.current()
	var id Identity
	cfg := m.serverConfig(g.files.now, protocol, g.roles, &id)
	conn := tls.Server(raw, cfg)
	if err := conn.HandshakeContext(ctx); err != nil {
		if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
			// A client of ours that speaks plain text is told what is wanted.
			_ = raw.SetWriteDeadline(time.Now().Add(time.Second)) // if not, so be it
			_, _ = raw.Write(plainAlert)
		}
		linger(raw)
		return nil, Info{}, m.explain(err, true, g.files.now())
	}
	state := conn.ConnectionState()
	if state.NegotiatedProtocol != protocol && protocol == alpn {
		return nil, Info{}, refuse(OldTLS, state.PeerCertificates[0], nil, "it speaks TLS, but not gRPC inside of it (no HTTP/2 by ALPN)")
	}
	info := Info{
		CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity},
		Identity:       id, Cert: state.PeerCertificates[0], how: "tls", files: g.files, judged: new(atomic.Pointer[material]),
	}
	info.judged.Store(m)
	return conn, info, nil
}

// plainAlert is a TLS alert, "unexpected message", as a record without encryption.
var plainAlert = []byte{recordAlert, 3, 3, 0, 2, 2, 10}

// linger takes for a moment what a refused client still sends: a connection that is
// closed over unread octets is reset, and the alert that says why may be lost.
func linger(raw net.Conn) {
	half, ok := raw.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil || raw.SetReadDeadline(time.Now().Add(lingerTimeout)) != nil {
		return
	}
	_, _ = io.CopyN(io.Discard, raw, 64<<10) // how it ends is all the same
}

const lingerTimeout = 500 * time.Millisecond

// What the first octet of a TLS record says.
const (
	recordAlert     = 21
	recordHandshake = 22
)

// plain waits for the first octet, to tell in words who speaks TLS here.
func (g *gate) plain(raw net.Conn) (net.Conn, Info, *Refusal) {
	first := make([]byte, 1)
	if err := raw.SetReadDeadline(time.Now().Add(g.timeout)); err != nil {
		return nil, Info{}, refuse(Gone, nil, err, "%v", err)
	}
	if _, err := io.ReadFull(raw, first); err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil, Info{}, refuse(TooSlow, nil, err, "it said nothing for %v", g.timeout)
		}
		return nil, Info{}, refuse(Gone, nil, err, "it hung up and said nothing")
	}
	if first[0] == recordHandshake {
		_ = raw.SetWriteDeadline(time.Now().Add(time.Second))
		_, _ = raw.Write(plainAlert)
		linger(raw)
		return nil, Info{}, refuse(SpeaksTLS, nil, nil, "TLS where plain text is spoken: this node was started without --tls-cert, and the client has one")
	}
	// gRPC ends the deadline when the connection stands.
	return &prefixed{Conn: raw, first: first}, Info{how: "plain", CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.NoSecurity}}, nil
}

// prefixed is a connection of which something was read already.
type prefixed struct {
	net.Conn
	first []byte
}

func (p *prefixed) Read(b []byte) (int, error) {
	if len(p.first) > 0 {
		n := copy(b, p.first)
		p.first = p.first[n:]
		return n, nil
	}
	return p.Conn.Read(b)
}

// serverConfig is what one handshake goes by. When it has ended well, *id is who
// the client is.
func (m *material) serverConfig(now func() time.Time, protocol string, roles []Role, id *Identity) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		Certificates:           []tls.Certificate{m.cert},
		ClientAuth:             tls.RequireAndVerifyClientCert,
		ClientCAs:              m.pool,
		NextProtos:             []string{protocol},
		SessionTicketsDisabled: true,
		Time:                   now,
		VerifyConnection: func(s tls.ConnectionState) (err error) {
			*id, err = m.identify(s.PeerCertificates[0], roles)
			return err
		},
	}
}

type serverCreds struct{ gate *gate }

func (s *serverCreds) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := s.gate.admit(raw, alpn)
	if err != nil {
		return nil, nil, err
	}
	return conn, info, nil
}

func (s *serverCreds) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("mtls: these credentials are a server's")
}

func (s *serverCreds) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: protocolOf(s.gate.files)}
}

func (s *serverCreds) Clone() credentials.TransportCredentials { return s }

func (s *serverCreds) OverrideServerName(string) error {
	return errors.New("mtls: these credentials are a server's")
}

func protocolOf(f *Files) string {
	if f == nil {
		return "insecure"
	}
	return "tls"
}

// Client returns the credentials to dial nodes with. The node's certificate must
// name the host that is dialed. Where f is nil they speak plain text, and tell
// from a node that speaks TLS that it does. log, which may be nil, is for who
// cannot see the errors.
//
// A unix socket is spoken to in plain text: the kernel says who is there.
func Client(f *Files, log *slog.Logger) credentials.TransportCredentials {
	return &clientCreds{files: f, say: newComplaints(log, "client")}
}

// PeerClient returns the credentials by which a node dials the node of that name,
// whose certificate must be that node's, under whatever address it was found. An
// empty name is any node, which must then name the host that is dialed.
func PeerClient(f *Files, name string, log *slog.Logger) credentials.TransportCredentials {
	return &clientCreds{files: f, node: name, say: newComplaints(log, "peer")}
}

type clientCreds struct {
	files  *Files
	node   string // the node's name, if it is known
	server string // instead of the host dialed
	say    *complaints
}

func (c *clientCreds) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	if network := raw.RemoteAddr().Network(); c.files == nil || network == "unix" || network == "bufconn" || network == "pipe" {
		level := credentials.NoSecurity
		if c.files != nil {
			level = credentials.PrivacyAndIntegrity // it does not leave the machine
		}
		return &hopeful{Conn: raw}, Info{how: "plain", CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: level}}, nil
	}
	name := authority
	if h, _, err := net.SplitHostPort(authority); err == nil {
		name = h
	}
	if c.server != "" {
		name = c.server
	}
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	m := c.files.current()
	var id Identity
	conn := tls.Client(raw, m.clientConfig(c.files.now, name, c.node, &id))
	err := conn.HandshakeContext(ctx)
	var r *Refusal
	if err != nil {
		r = m.explain(err, false, c.files.now())
	} else if conn.ConnectionState().NegotiatedProtocol != alpn {
		r = refuse(OldTLS, nil, nil, "what listens there speaks TLS, but not gRPC inside of it")
	}
	if r != nil {
		c.say.tell("node refused", raw.RemoteAddr(), r, time.Now())
		return nil, nil, r
	}
	return &judged{Conn: conn, creds: c, own: m.cert.Leaf}, Info{
		CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity},
		Identity:       id, Cert: conn.ConnectionState().PeerCertificates[0], how: "tls",
	}, nil
}

// clientConfig is what one handshake goes by. node, if it is known, is who must be
// there; else the certificate must name host. When it has ended well, *id is who
// is there.
func (m *material) clientConfig(now func() time.Time, host, node string, id *Identity) *tls.Config {
	cfg := &tls.Config{
		MinVersion: tls.VersionTLS13,
		// Also to who says that it would not take it: then it says why.
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &m.cert, nil },
		RootCAs:              m.pool,
		ServerName:           host,
		NextProtos:           []string{alpn},
		Time:                 now,
		VerifyConnection: func(s tls.ConnectionState) (err error) {
			*id, err = m.identify(s.PeerCertificates[0], []Role{Node})
			return err
		},
	}
	if node == "" {
		return cfg
	}
	// The one check that crypto/tls cannot be told of is that a name stands in the
	// place of the host's, so all of them are made here.
	cfg.InsecureSkipVerify = true
	cfg.VerifyConnection = func(s tls.ConnectionState) (err error) {
		cert := s.PeerCertificates[0]
		between := x509.NewCertPool()
		for _, c := range s.PeerCertificates[1:] {
			between.AddCert(c)
		}
		if err := m.verify(cert, between, now(), x509.ExtKeyUsageServerAuth); err != nil {
			return err
		}
		if *id, err = m.identify(cert, []Role{Node}); err != nil {
			return err
		}
		if id.Name != node {
			return refuse(WrongName, cert, nil, "the certificate (%s) is that of node %s; node %s was expected at that address", describe(cert), id.Name, node)
		}
		return nil
	}
	return cfg
}

// judged is a client's connection. In TLS 1.3 the client is done first: what the
// server thinks of its certificate comes with the first octets that are read.
type judged struct {
	net.Conn
	creds *clientCreds
	own   *x509.Certificate
	some  atomic.Bool // was read
}

func (j *judged) Read(b []byte) (int, error) {
	n, err := j.Conn.Read(b)
	if j.some.Load() {
		return n, err
	}
	if j.some.Store(n > 0); n == 0 && err != nil {
		err = j.judgement(err)
	}
	return n, err
}

// Write finds out why a server that never said anything takes nothing.
func (j *judged) Write(b []byte) (int, error) {
	n, err := j.Conn.Write(b)
	if err != nil && !j.some.Load() && j.SetReadDeadline(time.Now().Add(time.Second)) == nil {
		if _, readErr := j.Conn.Read(make([]byte, 1)); readErr != nil {
			if told := j.judgement(readErr); told != readErr {
				err = told
			}
		}
	}
	return n, err
}

// judgement is err in words, if it is what the server thinks of our certificate.
func (j *judged) judgement(err error) error {
	r := alerted(j.own, err, false)
	if r == nil {
		return err
	}
	j.creds.say.tell("refused by node", j.RemoteAddr(), r, time.Now())
	return r
}

// hopeful is a client's connection in plain text, to who may want TLS.
type hopeful struct {
	net.Conn
	some bool // was read; only the reader looks
}

func (h *hopeful) Read(b []byte) (int, error) {
	n, err := h.Conn.Read(b)
	if h.some {
		return n, err
	}
	if h.some = n > 0; h.some && bytes.HasPrefix(b[:n], plainAlert[:min(n, 2)]) {
		h.some = false
		return 0, refuse(SpeaksTLS, nil, nil, "the node speaks TLS there: give --tls-cert, --tls-key and --tls-ca")
	}
	if !h.some && hungUp(err) {
		return n, fmt.Errorf("mtls: it hung up at once: it wants TLS (--tls-cert, --tls-key, --tls-ca), or is no rookeryd: %w", err)
	}
	return n, err
}

func (c *clientCreds) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("mtls: these credentials are a client's")
}

func (c *clientCreds) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: protocolOf(c.files)}
}

func (c *clientCreds) Clone() credentials.TransportCredentials {
	clone := *c
	return &clone
}

func (c *clientCreds) OverrideServerName(name string) error {
	c.server = name
	return nil
}
