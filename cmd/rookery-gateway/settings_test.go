package main

import (
	"bytes"
	"errors"
	"flag"
	"strings"
	"testing"

	"github.com/rookery-mail/rookery/internal/daemon"
)

// What cannot work is refused before anything is opened, saying what to give.
func TestSettings(t *testing.T) {
	answering := []string{"--listen-mupdate", "127.0.0.1:3905", "--mupdate-users", "users"}
	for _, tt := range []struct {
		what string
		args []string
		want string // of the error; empty: it is taken
	}{
		{what: "MUPDATE", args: answering},
		{what: "with certificates", args: append([]string{"--tls-cert", "c", "--tls-key", "k", "--tls-ca", "a"}, answering...)},
		{what: "nothing", want: "give --listen-mupdate"},
		{what: "nobody", args: answering[:2], want: "--mupdate-users"},
		{what: "no key", args: append([]string{"--tls-cert", "c", "--tls-ca", "a"}, answering...), want: "--tls-key is missing"},
		{what: "metrics for all", args: append([]string{"--listen-http", "0.0.0.0:7907"}, answering...), want: "loopback"},
		{what: "no port", args: append([]string{"--endpoints", "10.0.0.1:7905,foo"}, answering...), want: `--endpoints 10.0.0.1:7905,foo: "foo" is not host:port`},
		{what: "no node", args: append([]string{"--endpoints", ","}, answering...), want: "no node is named"},
		{what: "no connections", args: append([]string{"--mupdate-connections", "0"}, answering...), want: "--mupdate-connections 0: at least 1"},
		{what: "fewer than none", args: append([]string{"--mupdate-connections", "-1"}, answering...), want: "--mupdate-connections -1: at least 1"},
		{what: "no streams", args: append([]string{"--mupdate-streams", "0"}, answering...), want: "--mupdate-streams 0: at least 1"},
		{what: "fewer streams than none", args: append([]string{"--mupdate-streams", "-1"}, answering...), want: "--mupdate-streams -1: at least 1"},
		{what: "an order there is not", args: append([]string{"--mupdate-order", "random"}, answering...), want: "-mupdate-order"},
	} {
		t.Run(tt.what, func(t *testing.T) {
			_, err := parseSettings(tt.args, &bytes.Buffer{})
			switch {
			case tt.want == "" && err != nil:
				t.Errorf("got %v, want no error", err)
			case tt.want != "" && (!errors.Is(err, daemon.ErrUsage) || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("got %v, want a usage error with %q", err, tt.want)
			}
		})
	}
}

// The certificate of --tls-cert, which STARTTLS shows in a node, is none for it here.
func TestHelpOfCertificate(t *testing.T) {
	var out bytes.Buffer
	if _, err := parseSettings([]string{"--help"}, &out); !errors.Is(err, flag.ErrHelp) {
		t.Fatal(err)
	}
	if want := "certificate for STARTTLS, a PEM file; without it, STARTTLS is not offered\n"; !strings.Contains(out.String(), want) {
		t.Errorf("got %s\nwant %q", &out, want)
	}
}
