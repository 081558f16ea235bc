package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/internal/mtls"
)

// A node that waits for the others says so to clients, by its port and by its
// socket, and serves by both when the others are there.
func TestWaiting(t *testing.T) {
	for _, secured := range []bool{false, true} {
		t.Run(map[bool]string{false: "plain text", true: "TLS"}[secured], func(t *testing.T) {
			// The path of a socket is short.
			dir, err := os.MkdirTemp("", "wait")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(dir) })
			peers := map[string]string{"n1": unused(t), "n2": unused(t)}
			clients := map[string]string{"n1": unused(t), "n2": unused(t)}
			var flags map[string][]string
			credentials := []client.Option{client.WithCredentials(mtls.Client(nil, nil))}
			if secured {
				pki := filepath.Join(dir, "pki")
				ca, err := mtls.InitCA(pki, "", 0)
				if err != nil {
					t.Fatal(err)
				}
				flags = map[string][]string{}
				for name := range peers {
					p := issue(t, ca, pki, mtls.Identity{Role: mtls.Node, Name: name})
					flags[name] = []string{"--tls-cert", p.Cert, "--tls-key", p.Key, "--tls-ca", p.CA}
				}
				files, err := mtls.Load(issue(t, ca, pki, mtls.Identity{Role: mtls.Operator, Name: "o"}), nil, nil)
				if err != nil {
					t.Fatal(err)
				}
				credentials = append(credentials, client.WithCredentials(mtls.Client(files, nil)))
			}
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, 2)
			started := 0
			defer func() {
				cancel()
				for range started {
					if err := <-ended; err != nil {
						t.Error(err)
					}
				}
			}()
			start := func(name string) {
				args := append([]string{
					"--name", name, "--data", filepath.Join(dir, name), "--listen-client", clients[name], "--listen-peer", peers[name], "--listen-http", "127.0.0.1:0",
					"--initial-cluster", "n1=" + peers["n1"] + ",n2=" + peers["n2"],
				}, flags[name]...)
				s, err := parseSettings(args, io.Discard)
				if err != nil {
					t.Fatal(err)
				}
				started++
				go func() { ended <- serve(ctx, s, slog.New(slog.DiscardHandler)) }()
			}
			start("n1")
			status := func(endpoint string, options ...client.Option) error {
				c, err := client.Dial([]string{endpoint}, append(options, client.WithTimeout(time.Second))...)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				_, err = c.Status(t.Context(), client.Linearizable())
				return err
			}
			socket := "unix:" + filepath.Join(dir, "n1", "rookery.sock")
			until := time.Now().Add(time.Minute)
			for {
				byPort, bySocket := status(clients["n1"], credentials...), status(socket, client.WithCredentials(mtls.Client(nil, nil)))
				ok := true
				for _, err := range []error{byPort, bySocket} {
					ok = ok && errors.Is(err, client.ErrClosing) && strings.Contains(err.Error(), "this node waits for the others of its cluster: n2 (see its log)")
				}
				if ok {
					break
				}
				if time.Now().After(until) {
					t.Fatalf("by the port: %v; by the socket: %v; want that it waits for n2", byPort, bySocket)
				}
			}
			start("n2")
			for {
				byPort, bySocket := status(clients["n1"], credentials...), status(socket, client.WithCredentials(mtls.Client(nil, nil)))
				if byPort == nil && bySocket == nil {
					return
				}
				if time.Now().After(until) {
					t.Fatalf("with the other: by the port: %v; by the socket: %v", byPort, bySocket)
				}
			}
		})
	}
}

// unused is an address that nobody listens on.
func unused(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
