package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/rookery-mail/rookery/adapter/mupdate"
	"github.com/rookery-mail/rookery/internal/logbuf"
	"github.com/rookery-mail/rookery/internal/mtls"
)

// A gateway shows when its certificate ends, as a node does.
func TestMetrics(t *testing.T) {
	dir := t.TempDir()
	ca, err := mtls.InitCA(filepath.Join(dir, "pki"), "", 0)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := ca.Issue(mtls.Request{Identity: mtls.Identity{Role: mtls.Operator, Name: "gw"}})
	if err != nil {
		t.Fatal(err)
	}
	cert, key, users := filepath.Join(dir, "crt"), filepath.Join(dir, "key"), filepath.Join(dir, "users")
	if err := pair.Write(cert, key, false); err != nil {
		t.Fatal(err)
	}
	line, err := mupdate.Login{Name: "frontend", Password: "secret"}.Line()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(users, []byte(line+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := parseSettings([]string{
		"--endpoints", "127.0.0.1:1", "--listen-http", "127.0.0.1:0", "--listen-mupdate", "127.0.0.1:0", "--mupdate-users", users,
		"--tls-cert", cert, "--tls-key", key, "--tls-ca", filepath.Join(dir, "pki", mtls.CACert),
	}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	var log logbuf.Buffer
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- serve(ctx, s, slog.New(slog.NewTextHandler(&log, nil))) }()
	var at []string
	for end := time.Now().Add(20 * time.Second); at == nil && time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		at = regexp.MustCompile(`msg="serving HTTP" http=(\S+)`).FindStringSubmatch(log.String())
	}
	if at == nil {
		t.Fatalf("it serves no HTTP:\n%s", &log)
	}
	answer, err := http.Get("http://" + at[1] + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if want := fmt.Sprintf("rookery_mtls_certificate_end_timestamp_seconds %g\n", float64(pair.Leaf.NotAfter.Unix())); err != nil || !strings.Contains(string(text), want) {
		t.Errorf("got %v and\n%s\nwant %q", err, text, want)
	}
	cancel()
	if err := <-served; err != nil {
		t.Errorf("serve: %v", err)
	}
}
