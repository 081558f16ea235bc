package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/rookery-mail/rookery/internal/mtls"
	"github.com/rookery-mail/rookery/internal/obs"
)

// testCA makes a CA and the settings of a node n1 of it.
func testCA(t *testing.T) (*mtls.CA, settings) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "pki")
	ca, err := mtls.InitCA(dir, "", 0)
	if err != nil {
		t.Fatal(err)
	}
	s := settings{name: "n1", data: dir, tls: issue(t, ca, dir, mtls.Identity{Role: mtls.Node, Name: "n1"})}
	return ca, s
}

func issue(t *testing.T, ca *mtls.CA, dir string, id mtls.Identity) mtls.Paths {
	t.Helper()
	r := mtls.Request{Identity: id}
	if id.Role == mtls.Node {
		r.Hosts = []string{"127.0.0.1"}
	}
	pair, err := ca.Issue(r)
	if err != nil {
		t.Fatal(err)
	}
	cert, key := mtls.FileNames(id)
	paths := mtls.Paths{Cert: filepath.Join(dir, cert), Key: filepath.Join(dir, key), CA: filepath.Join(dir, mtls.CACert)}
	if err := pair.Write(paths.Cert, paths.Key, false); err != nil {
		t.Fatal(err)
	}
	return paths
}

func TestCertificates(t *testing.T) {
	ca, s := testCA(t)
	files, err := s.certificates(slog.New(slog.DiscardHandler))
	if err != nil || files == nil {
		t.Fatalf("its own: got %v, %v", files, err)
	}
	registry := prometheus.NewRegistry()
	files.Register(registry)
	families, err := registry.Gather()
	if err != nil || len(families) != 1 || families[0].GetMetric()[0].GetGauge().GetValue() != float64(files.Leaf().NotAfter.Unix()) {
		t.Errorf("when it ends: got %v, %v", families, err)
	}
	for _, id := range []mtls.Identity{{Role: mtls.Node, Name: "n2"}, {Role: mtls.Operator, Name: "n1"}} {
		wrong := s
		wrong.tls = issue(t, ca, s.data, id)
		if _, err := wrong.certificates(slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "it is that of "+id.String()+", and this is node n1") {
			t.Errorf("that of %s: got %v", id, err)
		}
	}
	if files, err := (&settings{}).certificates(nil); files != nil || err != nil {
		t.Errorf("none: got %v, %v", files, err)
	}
}

// Health and metrics are in plain text on loopback, and for holders of
// certificates elsewhere; profiles are the operators'.
func TestSecuredHTTP(t *testing.T) {
	ca, s := testCA(t)
	log := slog.New(slog.DiscardHandler)
	files, err := s.certificates(log)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca.Cert)
	client := func(role mtls.Role) *tls.Config {
		paths := issue(t, ca, s.data, mtls.Identity{Role: role, Name: "x"})
		cert, err := tls.LoadX509KeyPair(paths.Cert, paths.Key)
		if err != nil {
			t.Fatal(err)
		}
		return &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{cert}}
	}
	frontend, operator, nobody := client(mtls.Frontend), client(mtls.Operator), &tls.Config{RootCAs: pool}

	open := func(address string) net.Listener {
		l, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	for _, test := range []struct {
		listen, scheme string
		config         *tls.Config
		http, debug    bool
	}{
		{"127.0.0.1:0", "http", nobody, true, true},
		{"0.0.0.0:0", "http", nobody, false, false},
		{"0.0.0.0:0", "https", nobody, false, false},
		{"0.0.0.0:0", "https", frontend, true, false},
		{"0.0.0.0:0", "https", operator, true, true},
	} {
		l := listeners{http: open(test.listen), debug: open(test.listen)}
		l.secure(files, log)
		ctx, cancel := context.WithCancel(t.Context())
		served := make(chan error, 2)
		handler := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "secret") })
		for _, listener := range []net.Listener{l.http, l.debug} {
			go func() { served <- obs.Serve(ctx, listener, handler, log) }()
		}
		for name, want := range map[net.Listener]bool{l.http: test.http, l.debug: test.debug} {
			_, port, err := net.SplitHostPort(name.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			c := http.Client{Transport: &http.Transport{TLSClientConfig: test.config, DisableKeepAlives: true}}
			got := ""
			if resp, err := c.Get(test.scheme + "://127.0.0.1:" + port + "/"); err == nil {
				b, _ := io.ReadAll(resp.Body)
				resp.Body.Close()
				got = string(b)
			}
			if (got == "secret") != want {
				t.Errorf("%+v, debug %t: read %q, want it to be answered: %t", test, name == l.debug, got, want)
			}
		}
		cancel()
		for range 2 {
			if err := <-served; err != nil {
				t.Error(err)
			}
		}
	}
}

func TestUnixSocket(t *testing.T) {
	dir, err := os.MkdirTemp("", "sock") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	log := slog.New(slog.DiscardHandler)
	l, err := (&settings{data: dir}).socket(log)
	if err != nil || l == nil || l.Addr().String() != filepath.Join(dir, "rookery.sock") {
		t.Fatalf("by default: got %v, %v", l, err)
	}
	l.Close()
	if l, err := (&settings{data: dir, listenUnix: "none"}).socket(log); l != nil || err != nil {
		t.Errorf("none: got %v, %v", l, err)
	}
	// Too long a path: nobody asked for it, or somebody did.
	long := filepath.Join(dir, strings.Repeat("x", 120))
	if l, err := (&settings{data: long}).socket(log); l != nil || err != nil {
		t.Errorf("a long data directory: got %v, %v; want that the node does without", l, err)
	}
	if _, err := (&settings{data: dir, listenUnix: long}).socket(log); err == nil || !strings.Contains(err.Error(), "--listen-unix") {
		t.Errorf("a long path: got %v, want an error", err)
	}
}
