package mtls

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/rookery-mail/rookery/internal/logbuf"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(dialEnv); path != "" {
		dialAndRead(path)
		return
	}
	goleak.VerifyTestMain(m)
}

// dialEnv makes this test program connect to a socket and end; see TestMain.
const dialEnv = "MTLS_TEST_DIAL"

// dialAndRead connects as another user would and tells what it read.
func dialAndRead(path string) {
	conn, err := net.Dial("unix", path)
	if err != nil {
		fmt.Println("dial:", err)
		return
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"); err != nil {
		fmt.Println("write:", err)
		return
	}
	_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	b, err := io.ReadAll(conn)
	fmt.Printf("read %d octets: %v\n", len(b), err)
}

// logged is a log that a test reads while it is written.
type logged struct{ logbuf.Buffer }

func (l *logged) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// wait returns the first line with all of the words.
func (l *logged) wait(t *testing.T, words ...string) string {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		for line := range strings.Lines(l.String()) {
			if containsAll(line, words) {
				return line
			}
		}
	}
	t.Errorf("no line with %q in the log:\n%s", words, l)
	return ""
}

func containsAll(s string, words []string) bool {
	for _, w := range words {
		if !strings.Contains(s, w) {
			return false
		}
	}
	return true
}

// pki is a directory with a CA and what it has signed.
type pki struct {
	t   *testing.T
	dir string
	ca  *CA
}

func newPKI(t *testing.T) *pki {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "pki")
	ca, err := InitCA(dir, "", 0)
	if err != nil {
		t.Fatalf("make a CA: %v", err)
	}
	return &pki{t, dir, ca}
}

// loopback are the hosts of a node in tests.
var loopback = []string{"localhost", "127.0.0.1", "::1"}

// issue makes a certificate and returns where it is.
func (p *pki) issue(id Identity, hosts ...string) Paths {
	p.t.Helper()
	pair, err := p.ca.Issue(Request{Identity: id, Hosts: hosts})
	if err != nil {
		p.t.Fatalf("issue %s: %v", id, err)
	}
	return p.write(id, pair)
}

func (p *pki) write(id Identity, pair *Pair) Paths {
	p.t.Helper()
	cert, key := FileNames(id)
	paths := Paths{Cert: filepath.Join(p.dir, cert), Key: filepath.Join(p.dir, key), CA: filepath.Join(p.dir, CACert)}
	if err := pair.Write(paths.Cert, paths.Key, true); err != nil {
		p.t.Fatal(err)
	}
	return paths
}

// bent makes a certificate that is wrong in some way, signed by by (nil: itself).
func (p *pki) bent(by *CA, change func(*x509.Certificate)) *Pair {
	p.t.Helper()
	key, serial, err := draw()
	if err != nil {
		p.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "bent"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		URIs:        []*url.URL{Identity{Node, "n1"}.URI()}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	change(template)
	parent, signer := template, key
	if by != nil {
		parent, signer = by.Cert, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		p.t.Fatal(err)
	}
	pair, err := newPair(der, key)
	if err != nil {
		p.t.Fatal(err)
	}
	return pair
}

// raw are Files that were not checked, to come with what Load refuses.
func raw(t *testing.T, pair *Pair, cas ...*x509.Certificate) *Files {
	t.Helper()
	cert, err := tls.X509KeyPair(pair.Cert, pair.Key)
	if err != nil {
		t.Fatal(err)
	}
	m := &material{cert: cert, pool: x509.NewCertPool(), cas: cas}
	for _, ca := range cas {
		m.pool.AddCert(ca)
	}
	f := &Files{log: slog.New(slog.DiscardHandler), now: time.Now}
	f.held.Store(m)
	f.looked.Store(1 << 62)
	return f
}

func load(t *testing.T, p Paths) *Files {
	t.Helper()
	f, err := Load(p, nil, nil)
	if err != nil {
		t.Fatalf("load %+v: %v", p, err)
	}
	return f
}

// service is a gRPC server with health checks alone, that knows who called last.
type service struct {
	addr string
	log  *logged
	mu   sync.Mutex
	last Info
}

// note remembers who calls.
func (s *service) note(ctx context.Context, req any, _ *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
	s.mu.Lock()
	s.last, _ = InfoOf(ctx)
	s.mu.Unlock()
	return h(ctx, req)
}

func serve(t *testing.T, creds func(*slog.Logger) credentials.TransportCredentials) *service {
	t.Helper()
	s := &service{log: &logged{}}
	g := grpc.NewServer(grpc.Creds(creds(s.log.logger())), grpc.UnaryInterceptor(s.note))
	healthv1.RegisterHealthServer(g, health.NewServer())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = l.Addr().String()
	served := make(chan error, 1)
	go func() { served <- g.Serve(l) }()
	t.Cleanup(func() {
		g.Stop()
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return s
}

func serveFiles(t *testing.T, f *Files, roles ...Role) *service {
	return serve(t, func(log *slog.Logger) credentials.TransportCredentials {
		return Server(f, Listening{Proto: "client", Roles: roles, Log: log})
	})
}

func (s *service) caller() Identity {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last.Identity
}

// call makes one health check over a connection of its own.
func call(t *testing.T, addr string, creds credentials.TransportCredentials) error {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(creds))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	_, err = healthv1.NewHealthClient(conn).Check(ctx, &healthv1.HealthCheckRequest{})
	return err
}

// Each role comes in, and the server knows who it is.
func TestRoundTrip(t *testing.T) {
	p := newPKI(t)
	s := serveFiles(t, load(t, p.issue(Identity{Node, "n1"}, loopback...)))
	for _, id := range []Identity{{Backend, "be1.example.org"}, {Frontend, "fe 1"}, {Frontend, "fe-ü%1"}, {Failover, "ha"}, {Operator, "carol@example.org"}, {Node, "n2"}} {
		if id.Check() != nil {
			continue
		}
		if err := call(t, s.addr, Client(load(t, p.issue(id)), nil)); err != nil {
			t.Errorf("%s: %v", id, err)
		}
		if got := s.caller(); got != id {
			t.Errorf("got %v, want %v", got, id)
		}
	}
	if got := s.log.String(); got != "" {
		t.Errorf("the log has something to say: %s", got)
	}
}

// What is wrong with a client is in the server's log, with subject, serial and
// address, and the client hears of it too.
func TestClientsRefused(t *testing.T) {
	p, other := newPKI(t), newPKI(t)
	twin, _, err := NewCA(p.ca.Cert.Subject.CommonName, 0)
	if err != nil {
		t.Fatal(err)
	}
	node := load(t, p.issue(Identity{Node, "n1"}, loopback...))
	operator := []*url.URL{Identity{Operator, "carol"}.URI()}
	ca := p.ca.Cert
	now := time.Now()
	for _, test := range []struct {
		name   string
		client *Files
		peer   bool     // on the port for nodes
		log    []string // in one line
		heard  string
	}{
		{"expired", raw(t, p.bent(p.ca, func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Minute) }), ca), false,
			[]string{"reason=expired", "has expired at", "renew it"}, "expired"},
		{"not yet valid", raw(t, p.bent(p.ca, func(c *x509.Certificate) { c.NotBefore = now.Add(time.Minute) }), ca), false,
			[]string{"reason=not-yet-valid", "is not valid before", "is a clock wrong?"}, "not valid yet"},
		{"wrong CA", raw(t, p.bent(other.ca, func(c *x509.Certificate) { c.URIs = operator }), ca), false,
			[]string{"reason=unknown-ca", "was signed by CN=" + other.ca.Cert.Subject.CommonName, "trusted here: CN=" + ca.Subject.CommonName}, "does not trust the CA"},
		{"another CA of that name", raw(t, p.bent(twin, func(c *x509.Certificate) { c.URIs = operator }), ca), false,
			[]string{"reason=unknown-ca", "another CA that has the same name"}, "does not trust the CA"},
		{"self-signed", raw(t, p.bent(nil, func(c *x509.Certificate) { c.URIs = operator }), ca), false,
			[]string{"reason=self-signed", "is self-signed: no CA stands behind it"}, "does not trust the CA"},
		{"a server's certificate", raw(t, p.bent(p.ca, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }), ca), false,
			[]string{"reason=wrong-usage"}, "does not take this certificate"},
		{"no identity", raw(t, p.bent(p.ca, func(c *x509.Certificate) { c.URIs = nil }), ca), false,
			[]string{"reason=no-identity", "no URI rookery://ROLE/NAME"}, "does not take this certificate"},
		{"two identities", raw(t, p.bent(p.ca, func(c *x509.Certificate) { c.URIs = append(operator, Identity{Backend, "be1"}.URI()) }), ca), false,
			[]string{"reason=no-identity", "it has 2 identities"}, "does not take this certificate"},
		{"no such role", raw(t, p.bent(p.ca, func(c *x509.Certificate) { c.URIs = []*url.URL{{Scheme: "rookery", Host: "root", Path: "/x"}} }), ca), false,
			[]string{"reason=no-identity", "is no role"}, "does not take this certificate"},
		{"a backend among the nodes", load(t, p.issue(Identity{Backend, "be1"})), true,
			[]string{"proto=peer", "reason=wrong-role", "is that of backend be1; only a node may"}, "does not take this certificate"},
		{"an operator among the nodes", load(t, p.issue(Identity{Operator, "carol"})), true,
			[]string{"proto=peer", "reason=wrong-role", "is that of operator carol"}, "does not take this certificate"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := serve(t, func(log *slog.Logger) credentials.TransportCredentials {
				if test.peer {
					return PeerServer(node, log)
				}
				return Server(node, Listening{Proto: "client", Log: log})
			})
			err := call(t, s.addr, Client(test.client, nil))
			if err == nil || !strings.Contains(err.Error(), test.heard) {
				t.Errorf("the client: got %v, want an error with %q", err, test.heard)
			}
			leaf := test.client.current().cert.Leaf
			s.log.wait(t, append(test.log, "level=WARN", `msg="connection refused"`, "addr=127.0.0.1:", subject(leaf), leaf.SerialNumber.Text(16))...)
		})
	}
}

// What a client sees that does not believe the server; a node that dials logs it.
func TestServersRefused(t *testing.T) {
	p, other := newPKI(t), newPKI(t)
	ca := p.ca.Cert
	now := time.Now()
	client := load(t, p.issue(Identity{Node, "n2"}))
	for _, test := range []struct {
		name   string
		server *Files
		node   string // whom the client expects
		want   []string
	}{
		{"expired", raw(t, p.bent(p.ca, func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Minute) }), ca), "", []string{"reason=expired", "has expired at"}},
		{"not yet valid", raw(t, p.bent(p.ca, func(c *x509.Certificate) { c.NotBefore = now.Add(time.Minute) }), ca), "n1", []string{"reason=not-yet-valid", "is not valid before"}},
		{"wrong CA", raw(t, p.bent(other.ca, func(*x509.Certificate) {}), ca), "", []string{"reason=unknown-ca", "was signed by"}},
		{"wrong CA, by name", raw(t, p.bent(other.ca, func(*x509.Certificate) {}), ca), "n1", []string{"reason=unknown-ca", "was signed by"}},
		{"self-signed", raw(t, p.bent(nil, func(*x509.Certificate) {}), ca), "", []string{"reason=self-signed"}},
		{"wrong host", load(t, p.issue(Identity{Node, "n1"}, "n1.example.org", "192.0.2.1")), "", []string{"reason=wrong-host", "names n1.example.org, 192.0.2.1 and not 127.0.0.1", "--host"}},
		{"no host", load(t, p.issue(Identity{Node, "n1"})), "", []string{"reason=wrong-host", "names no host and not 127.0.0.1"}},
		{"a backend's", raw(t, p.bent(p.ca, func(c *x509.Certificate) { c.URIs = []*url.URL{Identity{Backend, "be1"}.URI()} }), ca), "", []string{"reason=wrong-role", "backend be1", "only a node"}},
		{"a backend's, by name", raw(t, p.bent(p.ca, func(c *x509.Certificate) { c.URIs = []*url.URL{Identity{Backend, "n1"}.URI()} }), ca), "n1", []string{"reason=wrong-role", "backend n1", "only a node"}},
		{"another node", load(t, p.issue(Identity{Node, "n3"}, loopback...)), "n1", []string{"reason=wrong-name", "that of node n3; node n1 was expected"}},
		{"a client's certificate", raw(t, p.bent(p.ca, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }), ca), "n1", []string{"reason=wrong-usage"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := serveFiles(t, test.server)
			seen := &logged{}
			err := call(t, s.addr, PeerClient(client, test.node, seen.logger()))
			if err == nil {
				t.Fatal("the client is content")
			}
			for _, w := range test.want {
				if !strings.HasPrefix(w, "reason=") && !strings.Contains(err.Error(), w) {
					t.Errorf("the client: got %v, want an error with %q", err, w)
				}
			}
			leaf := test.server.current().cert.Leaf
			seen.wait(t, append(test.want, "level=WARN", `msg="node refused"`, "addr="+s.addr, leaf.SerialNumber.Text(16))...)
			s.log.wait(t, "reason=refused-by-peer", "the client does")
		})
	}
	t.Run("the node expected, at an address it does not name", func(t *testing.T) {
		s := serveFiles(t, load(t, p.issue(Identity{Node, "n1"}, "n1.example.org")))
		if err := call(t, s.addr, PeerClient(client, "n1", nil)); err != nil {
			t.Error(err)
		}
	})
}

// TLS and plain text meet, and nobody has to guess why nothing works.
func TestMismatch(t *testing.T) {
	p := newPKI(t)
	secure := serveFiles(t, load(t, p.issue(Identity{Node, "n1"}, loopback...)))
	plain := serveFiles(t, nil)
	client := load(t, p.issue(Identity{Operator, "carol"}))

	if err := call(t, plain.addr, Client(nil, nil)); err != nil {
		t.Errorf("plain text on both sides: %v", err)
	}
	if err := call(t, secure.addr, Client(nil, nil)); err == nil || !strings.Contains(err.Error(), "the node speaks TLS there: give --tls-cert") {
		t.Errorf("plain text to a node with TLS: got %v", err)
	}
	secure.log.wait(t, "level=WARN", "reason=plain-text", "plain text (gRPC) where TLS is spoken", "addr=127.0.0.1:")
	if err := call(t, secure.addr, insecure.NewCredentials()); err == nil {
		t.Error("plain text to a node with TLS, by a client of another make: no error")
	}
	if err := call(t, plain.addr, Client(client, nil)); err == nil || !strings.Contains(err.Error(), "the node speaks plain text there, not TLS") {
		t.Errorf("TLS to a node with plain text: got %v", err)
	}
	plain.log.wait(t, "level=WARN", "reason=tls", "TLS where plain text is spoken", "addr=127.0.0.1:")

	resp, err := http.Get("http://" + secure.addr + "/")
	if err == nil {
		resp.Body.Close()
		t.Error("HTTP to a node with TLS was answered")
	}
	http.DefaultClient.CloseIdleConnections()

	// A client of the CA that sends nothing of itself, and one of yesterday.
	for _, test := range []struct {
		cfg  *tls.Config
		want []string
	}{
		{&tls.Config{RootCAs: client.current().pool, NextProtos: []string{alpn}}, []string{"reason=no-certificate", "the client sent no certificate"}},
		{&tls.Config{RootCAs: client.current().pool, NextProtos: []string{alpn}, MaxVersion: tls.VersionTLS12, Certificates: []tls.Certificate{client.current().cert}}, []string{"reason=old-tls", "no TLS 1.3"}},
		{&tls.Config{RootCAs: client.current().pool, Certificates: []tls.Certificate{client.current().cert}}, []string{"reason=old-tls", "not gRPC"}},
	} {
		conn, err := tls.Dial("tcp", secure.addr, test.cfg)
		if err == nil {
			if b, err := io.ReadAll(conn); len(b) > 0 || err == nil && test.cfg.NextProtos != nil {
				t.Errorf("%q: read %q, %v; want no octet and an alert", test.want, b, err)
			}
			conn.Close()
		}
		secure.log.wait(t, append(test.want, "level=WARN", "addr=127.0.0.1:")...)
	}
}

// Before the handshake has ended nobody reads an octet but an alert.
func TestNothingToReadBefore(t *testing.T) {
	p := newPKI(t)
	f := load(t, p.issue(Identity{Node, "n1"}, loopback...))
	s := serveFiles(t, f)
	web := serveHTTP(t, f)
	for _, addr := range []string{s.addr, web} {
		for _, say := range []string{
			"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
			"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
			"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00",
			strings.Repeat("\x00", 64),
			strings.Repeat("\x16", 70000),
		} {
			conn, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := conn.Write([]byte(say)); err != nil {
				t.Logf("%q: %v", say[:8], err) // it may be gone before it has read all
			}
			_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
			got, err := io.ReadAll(conn)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%q: the connection stays", say[:8])
			}
			if len(got) > 0 && (got[0] != recordAlert || len(got) != 7) {
				t.Errorf("%q: read %q, want an alert at most", say[:8], got)
			}
			conn.Close()
		}
	}
	// Who listens only hears nothing.
	conn, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if n, err := conn.Read(make([]byte, 1)); n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read %d octets, %v; want none", n, err)
	}
}

// serveHTTP serves HTTP with mutual TLS and returns its address.
func serveHTTP(t *testing.T, f *Files) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{
		Handler:  http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") }),
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug),
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(HTTP(l, f, Listening{Proto: "http"})) }()
	t.Cleanup(func() {
		_ = server.Close()
		<-done
	})
	return l.Addr().String()
}

func TestHTTP(t *testing.T) {
	p := newPKI(t)
	addr := serveHTTP(t, load(t, p.issue(Identity{Node, "n1"}, loopback...)))
	client := load(t, p.issue(Identity{Operator, "prometheus"})).current()
	get := func(cfg *tls.Config) (string, error) {
		c := http.Client{Transport: &http.Transport{TLSClientConfig: cfg}}
		defer c.CloseIdleConnections()
		resp, err := c.Get("https://" + addr + "/")
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		return string(b), err
	}
	if got, err := get(&tls.Config{RootCAs: client.pool, Certificates: []tls.Certificate{client.cert}}); got != "ok" || err != nil {
		t.Errorf("with a certificate: got %q, %v", got, err)
	}
	if got, err := get(&tls.Config{RootCAs: client.pool}); err == nil {
		t.Errorf("without one: got %q, want an error", got)
	}
}

// Who begins a handshake and goes no further is thrown out, and others get in
// meanwhile.
func TestSlowHandshakes(t *testing.T) {
	p := newPKI(t)
	f := load(t, p.issue(Identity{Node, "n1"}, loopback...))
	client := load(t, p.issue(Identity{Operator, "carol"}))
	for _, test := range []struct {
		name  string
		files *Files
		begin string
		creds credentials.TransportCredentials
	}{
		{"TLS", f, "\x16\x03\x01", Client(client, nil)},
		{"plain text", nil, "", Client(nil, nil)},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := serve(t, func(log *slog.Logger) credentials.TransportCredentials {
				g := newGate(test.files, Listening{Proto: "client", Log: log})
				g.timeout = 3 * time.Second
				return &serverCreds{g}
			})
			var slow []net.Conn
			for range 100 {
				conn, err := net.Dial("tcp", s.addr)
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				if _, err := io.WriteString(conn, test.begin); err != nil {
					t.Fatal(err)
				}
				slow = append(slow, conn)
			}
			if err := call(t, s.addr, test.creds); err != nil {
				t.Errorf("while a hundred are slow: %v", err)
			}
			for _, conn := range slow {
				_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
				if b, err := io.ReadAll(conn); errors.Is(err, os.ErrDeadlineExceeded) || len(b) > 0 {
					t.Fatalf("a slow one: read %q, %v; want that it is thrown out", b, err)
				}
			}
			s.log.wait(t, "reason=too-slow", "level=WARN")
			if n := strings.Count(s.log.String(), "reason=too-slow"); n > 3 {
				t.Errorf("%d lines of the same, want few", n)
			}
		})
	}
	t.Run("too many", func(t *testing.T) {
		s := serve(t, func(log *slog.Logger) credentials.TransportCredentials {
			g := newGate(f, Listening{Proto: "client", Log: log})
			g.most = 2
			return &serverCreds{g}
		})
		for range 2 {
			conn, err := net.Dial("tcp", s.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := io.WriteString(conn, "\x16"); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(100 * time.Millisecond) // both are looked at by now, or the next is one of the two
		conn, err := net.Dial("tcp", s.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		s.log.wait(t, "reason=too-many")
	})
}

// Certificates are swapped while calls go on: who is connected stays, who comes
// sees the new one. A broken file changes nothing and is told of once.
func TestReload(t *testing.T) {
	p := newPKI(t)
	id := Identity{Node, "n1"}
	paths := p.issue(id, loopback...)
	var log logged
	f, err := Load(paths, func(got Identity) error {
		if got != id {
			return errors.New("that is another's")
		}
		return nil
	}, log.logger())
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	ahead := time.Duration(0)
	f.now = func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		return time.Now().Add(ahead)
	}
	pass := func(d time.Duration) {
		mu.Lock()
		defer mu.Unlock()
		ahead += d
	}
	s := serveFiles(t, f)
	client := load(t, p.issue(Identity{Operator, "carol"}))
	shown := func() string {
		t.Helper()
		conn, err := tls.Dial("tcp", s.addr, &tls.Config{RootCAs: client.current().pool, Certificates: []tls.Certificate{client.current().cert}, NextProtos: []string{alpn}})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0].SerialNumber.Text(16)
	}
	old := shown()

	standing, err := grpc.NewClient("passthrough:///"+s.addr, grpc.WithTransportCredentials(Client(client, nil)))
	if err != nil {
		t.Fatal(err)
	}
	defer standing.Close()
	check := func() error {
		_, err := healthv1.NewHealthClient(standing).Check(t.Context(), &healthv1.HealthCheckRequest{})
		return err
	}
	if err := check(); err != nil {
		t.Fatal(err)
	}
	stop, calls := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			select {
			case <-stop:
				calls <- nil
				return
			default:
			}
			if err := check(); err != nil {
				calls <- err
				return
			}
		}
	}()

	// A new pair.
	p.issue(id, loopback...)
	pass(2 * time.Second)
	fresh := shown()
	if fresh == old {
		t.Errorf("the certificate shown is still %s", old)
	}
	log.wait(t, "certificates reloaded", fresh)

	// Garbage, a certificate whose key is another's, a stranger's: none is taken,
	// each is told of once.
	good, err := os.ReadFile(paths.Cert)
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := p.ca.Issue(Request{Identity: id, Hosts: loopback})
	if err != nil {
		t.Fatal(err)
	}
	n3, err := os.ReadFile(p.issue(Identity{Node, "n3"}).Cert)
	if err != nil {
		t.Fatal(err)
	}
	for i, broken := range [][]byte{[]byte("garbage"), stranger.Cert, n3, {}} {
		if err := os.WriteFile(paths.Cert, broken, 0o644); err != nil {
			t.Fatal(err)
		}
		pass(10 * time.Second)
		for range 3 {
			pass(2 * time.Second)
			if got := shown(); got != fresh {
				t.Errorf("broken %d: got %s, want the old %s", i, got, fresh)
			}
		}
		if got := strings.Count(log.String(), "certificates not reloaded"); got != i+1 {
			t.Errorf("broken %d: told %d times, want %d:\n%s", i, got, i+1, &log)
		}
	}
	if err := os.Remove(paths.Key); err != nil {
		t.Fatal(err)
	}
	pass(10 * time.Second)
	if got := shown(); got != fresh {
		t.Errorf("without a key: got %s, want the old %s", got, fresh)
	}

	// Whole again.
	p.issue(id, loopback...)
	pass(10 * time.Second)
	if got := shown(); got == fresh || got == old {
		t.Errorf("whole again: still %s", got)
	}
	if bytes.Equal(good, nil) {
		t.Error("nothing was read")
	}
	close(stop)
	if err := <-calls; err != nil {
		t.Errorf("a call on the connection that stands: %v", err)
	}
}

// Somebody writes the files one after the other: that is no reason to complain.
func TestHalfReplaced(t *testing.T) {
	p := newPKI(t)
	id := Identity{Node, "n1"}
	paths := p.issue(id, loopback...)
	var log logged
	f, err := Load(paths, nil, log.logger())
	if err != nil {
		t.Fatal(err)
	}
	f.now = func() time.Time { return time.Now().Add(2 * time.Second) } // due at every look
	next, err := p.ca.Issue(Request{Identity: id})
	if err != nil {
		t.Fatal(err)
	}
	ahead := time.Second
	f.now = func() time.Time { ahead += time.Second / 2; return time.Now().Add(ahead) }
	if err := os.WriteFile(paths.Key, next.Key, 0o600); err != nil {
		t.Fatal(err)
	}
	f.current()
	if err := os.WriteFile(paths.Cert, next.Cert, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 6 {
		f.current()
	}
	if got := f.Leaf().SerialNumber; got.Cmp(next.Leaf.SerialNumber) != 0 || strings.Contains(log.String(), "not reloaded") {
		t.Errorf("got serial %x, want %x, and no complaint:\n%s", got, next.Leaf.SerialNumber, &log)
	}
}

// What could not be loaded is tried again, though the files look the same: whoever lets
// a key be read changes neither its time nor its size. Each reason is told once.
func TestTriedAgain(t *testing.T) {
	p := newPKI(t)
	id := Identity{Node, "n1"}
	paths := p.issue(id, loopback...)
	var log logged
	var wrong error // stands for what the machine says: it lets root read everything
	f, err := Load(paths, func(Identity) error { return wrong }, log.logger())
	if err != nil {
		t.Fatal(err)
	}
	ahead := time.Duration(0)
	f.now = func() time.Time { ahead += 10 * time.Second; return time.Now().Add(ahead) } // due at every look
	old := f.Leaf().SerialNumber
	p.issue(id, loopback...)
	for i, wrong1 := range []error{os.ErrPermission, os.ErrNotExist, os.ErrPermission} {
		wrong = wrong1
		for range 3 {
			if got := f.Leaf().SerialNumber; got.Cmp(old) != 0 {
				t.Errorf("%v: got serial %x, want the old %x", wrong, got, old)
			}
		}
		if got := strings.Count(log.String(), "certificates not reloaded"); got != i+1 {
			t.Errorf("%v: told %d times, want %d:\n%s", wrong, got, i+1, &log)
		}
	}
	wrong = nil
	if got := f.Leaf().SerialNumber; got.Cmp(old) == 0 {
		t.Error("it can be loaded, and is not")
	}
	for range 3 {
		f.Leaf()
	}
	if got := strings.Count(log.String(), "certificates reloaded"); got != 1 {
		t.Errorf("told %d times that it was loaded, want once:\n%s", got, &log)
	}
}

// Whoever has only connections that stand, as a gateway does, is told of the end of the
// certificate all the same: before it, and after it.
func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPKI(t)
		pair := p.bent(p.ca, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(warnBefore + 36*time.Hour) })
		var log logged
		f, err := Load(p.write(Identity{Node, "n1"}, pair), nil, log.logger())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var watched sync.WaitGroup
		watched.Go(func() { f.Watch(ctx) })
		for _, want := range []struct {
			after      time.Duration
			soon, gone int // lines
		}{{24 * time.Hour, 0, 0}, {24 * time.Hour, 1, 0}, {24 * time.Hour, 2, 0}, {warnBefore, 30, 2}, {24 * time.Hour, 30, 3}} {
			time.Sleep(want.after)
			synctest.Wait()
			soon, gone := strings.Count(log.String(), "own certificate ends soon"), strings.Count(log.String(), "own certificate has expired")
			if soon != want.soon || gone != want.gone {
				t.Errorf("%v before its end: told %d times that it ends soon and %d times that it has expired, want %d and %d",
					time.Until(pair.Leaf.NotAfter), soon, gone, want.soon, want.gone)
			}
		}
		cancel()
		watched.Wait()
		(*Files)(nil).Watch(t.Context())
	})
}

func TestLoadRefuses(t *testing.T) {
	p, other := newPKI(t), newPKI(t)
	good := p.issue(Identity{Node, "n1"}, loopback...)
	write := func(name string, data []byte) string {
		path := filepath.Join(p.dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	with := func(change func(*Paths)) Paths {
		paths := good
		change(&paths)
		return paths
	}
	key, err := os.ReadFile(good.Key)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name  string
		paths Paths
		want  string
	}{
		{"nothing", Paths{}, "no files named"},
		{"no key named", Paths{Cert: "x", CA: "y"}, "--tls-key is missing"},
		{"no certificate", with(func(p *Paths) { p.Cert += "x" }), "no such file"},
		{"no key", with(func(p *Paths) { p.Key += "x" }), "no such file"},
		{"no CA", with(func(p *Paths) { p.CA += "x" }), "no such file"},
		{"no map", with(func(p *Paths) { p.Map = "nosuch" }), "no such file"},
		{"the key of another", with(func(q *Paths) { q.Key = p.issue(Identity{Node, "n2"}).Key }), "private key does not match"},
		{"a key for a CA", with(func(p *Paths) { p.CA = write("k", key) }), "a PRIVATE KEY where a certificate is wanted"},
		{"a leaf for a CA", with(func(p *Paths) { p.CA = p.Cert }), "is no CA's"},
		{"another CA", with(func(p *Paths) { p.CA = filepath.Join(other.dir, CACert) }), "was signed by"},
		{"an empty CA", with(func(p *Paths) { p.CA = write("e", nil) }), "no certificate in it"},
		{"a broken map", with(func(p *Paths) { p.Map = write("m", []byte("dns:x: root\n")) }), "line 1"},
	} {
		if _, err := Load(test.paths, nil, nil); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want an error with %q", test.name, err, test.want)
		}
	}
	// One's own certificate that has expired is a matter for the log: the node must
	// come up for who can renew it.
	var log logged
	pair := p.bent(p.ca, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Hour) })
	if _, err := Load(p.write(Identity{Node, "n1"}, pair), nil, log.logger()); err != nil {
		t.Error(err)
	}
	log.wait(t, "level=WARN", "own certificate has expired")
	pair = p.bent(p.ca, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(29 * 24 * time.Hour) })
	if _, err := Load(p.write(Identity{Node, "n1"}, pair), nil, log.logger()); err != nil {
		t.Error(err)
	}
	log.wait(t, "level=WARN", "own certificate ends soon", "days=28")
	if err := os.Chmod(good.Key, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(good, nil, log.logger()); err != nil {
		t.Error(err)
	}
	log.wait(t, "level=WARN", "every user of this machine can read the key", good.Key)
}

// An RSA certificate through an intermediate of a CA that the site has, named by a
// map.
func TestSitesOwnCA(t *testing.T) {
	p := newPKI(t)
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	root := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Site Root"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, root, root, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	rootPair, err := newPair(der, key)
	if err != nil {
		t.Fatal(err)
	}
	sub := p.bent(&CA{Cert: rootPair.Leaf, key: key}, func(c *x509.Certificate) {
		c.Subject.CommonName, c.URIs, c.IPAddresses, c.ExtKeyUsage, c.IsCA, c.BasicConstraintsValid = "Site Sub", nil, nil, nil, true, true
	})
	block, _ := pem.Decode(sub.Key)
	subKey, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	by := &CA{Cert: sub.Leaf, key: subKey.(*ecdsa.PrivateKey)}
	ca, ids := filepath.Join(p.dir, "site.crt"), filepath.Join(p.dir, "map")
	if err := os.WriteFile(ca, rootPair.Cert, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(ids, []byte("dns:*.nodes.example.org: node:*\ncn:Mail Backend 1: backend:be1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	make := func(file string, change func(*x509.Certificate)) Paths {
		pair := p.bent(by, change)
		paths := Paths{filepath.Join(p.dir, file+".crt"), filepath.Join(p.dir, file+".key"), ca, ids}
		pair.Cert = append(pair.Cert, sub.Cert...)
		if err := pair.Write(paths.Cert, paths.Key, false); err != nil {
			t.Fatal(err)
		}
		return paths
	}
	node := make("n1", func(c *x509.Certificate) { c.URIs, c.DNSNames = nil, []string{"n1.nodes.example.org", "localhost"} })
	backend := make("be1", func(c *x509.Certificate) { c.URIs, c.IPAddresses, c.Subject.CommonName = nil, nil, "Mail Backend 1" })
	s := serveFiles(t, load(t, node))
	if err := call(t, s.addr, Client(load(t, backend), nil)); err != nil {
		t.Error(err)
	}
	if got, want := s.caller(), (Identity{Backend, "be1"}); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
	if got, want := load(t, node).Identity(), (Identity{Node, "n1"}); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
}
