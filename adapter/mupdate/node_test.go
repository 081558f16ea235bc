package mupdate

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/server"
	"github.com/rookery-mail/rookery/server/servertest"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

const (
	be1 directory.BackendName = "be1.example.org"
	be2 directory.BackendName = "be2.example.org"
	be3 directory.BackendName = "be3.example.org"
)

// murder is one node of the directory in this process, its store on real files, with
// MUPDATE in front of it.
type murder struct {
	t    testing.TB
	dir  *client.Client
	s    *Server
	addr string
}

// password is everybody's.
const password = "secret"

// newMurder starts a node. Its logins are mupdate and frontend, bound to nobody; be1, be2
// and be3, bound to theirs; and old, in whose days lists were in the order of octets.
func newMurder(t testing.TB, change ...func(*Config)) *murder {
	t.Helper()
	dir, err := client.Dial([]string{"n1"}, client.WithConn(servertest.New(t).Conn(server.Caller{Role: server.RoleOperator, Name: "mupdate"})))
	if err != nil {
		t.Fatalf("Dial: %v", err)
	}
	t.Cleanup(func() { dir.Close() })
	cfg := Config{
		Client: dir, Users: testUsers(t), Hostname: "master.example.org", Version: "test", Clear: true,
		LoginPause: 10 * time.Millisecond, OrphanGrace: 200 * time.Millisecond, SpoolDir: t.TempDir(),
	}
	if os.Getenv("MUPDATE_TEST_LOG") != "" {
		cfg.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	for _, f := range change {
		f(&cfg)
	}
	return serve(t, cfg)
}

// beside starts another server of the same directory, as on another node.
func (m *murder) beside(change ...func(*Config)) *murder {
	m.t.Helper()
	cfg := m.s.cfg
	for _, f := range change {
		f(&cfg)
	}
	return serve(m.t, cfg)
}

func serve(t testing.TB, cfg Config) *murder {
	t.Helper()
	s, err := New(cfg)
	if err != nil {
		t.Fatalf("New: %v", err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Close()
		if err := <-served; err != nil && err != ErrClosed { // closed before it began
			t.Errorf("Serve: %v", err)
		}
	})
	return &murder{t: t, dir: cfg.Client, s: s, addr: l.Addr().String()}
}

func testUsers(t testing.TB) *Users {
	t.Helper()
	order, literals := OctetOrder, Literals{1}
	var lines []string
	for _, l := range []Login{
		{Name: "mupdate"}, {Name: "frontend"},
		{Name: "be1", Server: be1}, {Name: "be2", Server: be2}, {Name: "be3", Server: be3},
		{Name: "old", Order: &order, Literals: &literals},
	} {
		l.Password = password
		line, err := l.Line()
		if err != nil {
			t.Fatalf("a login: %v", err)
		}
		lines = append(lines, line)
	}
	lines = append(lines, "@127.0.0.11 server="+string(be1), "@127.0.0.12 server="+string(be2), "@127.0.0.13 server="+string(be1), "@127.0.0.13 server="+string(be2))
	path := filepath.Join(t.TempDir(), "users")
	if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	users, err := LoadUsers(path)
	if err != nil {
		t.Fatalf("LoadUsers: %v", err)
	}
	return users
}

// testTLS is a certificate for STARTTLS that nobody signed but itself.
func testTLS(t testing.TB, change ...func(*x509.Certificate)) *tls.Config {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	of := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "master.example.org"}, NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"master.example.org"}}
	for _, f := range change {
		f(of)
	}
	der, err := x509.CreateCertificate(rand.Reader, of, of, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, MinVersion: tls.VersionTLS12}
}
