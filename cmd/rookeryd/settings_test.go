package main

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rookery-mail/rookery/internal/daemon"
)

func TestSettings(t *testing.T) {
	for _, tt := range []struct {
		name string
		args []string
		file string
		want string // in the error; "" is none
	}{
		{name: "enough", args: []string{"--name", "n1", "--data", "d"}},
		{name: "file", file: "# a comment\n\nname: n1\ndata: /d\nlisten-client: [::1]:7905\n"},
		{name: "localhost", args: []string{"--name", "n1", "--data", "d", "--listen-client", "localhost:1"}},
		{name: "no name", args: []string{"--data", "d"}, want: "--name is needed"},
		{name: "no data", args: []string{"--name", "n1"}, want: "--data is needed"},
		{name: "not loopback", args: []string{"--name", "n1", "--data", "d", "--listen-client", "0.0.0.0:7905"}, want: "not on loopback"},
		{name: "any address", args: []string{"--name", "n1", "--data", "d", "--listen-peer", ":7906"}, want: "is no ip:port"},
		{name: "http not loopback", args: []string{"--name", "n1", "--data", "d", "--listen-http", "192.0.2.1:80"}, want: "--listen-http"},
		{name: "any address, secured", args: []string{"--name", "n1", "--data", "d", "--listen-client", "0.0.0.0:7905", "--listen-peer", ":7906", "--tls-cert", "c", "--tls-key", "k", "--tls-ca", "a"}},
		{name: "secured, no port", args: []string{"--name", "n1", "--data", "d", "--listen-client", "0.0.0.0", "--tls-cert", "c", "--tls-key", "k", "--tls-ca", "a"}, want: "missing port"},
		{name: "no key", args: []string{"--name", "n1", "--data", "d", "--tls-cert", "c", "--tls-ca", "a"}, want: "--tls-key is missing"},
		{name: "no CA", file: "name: n1\ndata: d\ntls-cert: c\ntls-key: k\n", want: "--tls-ca is missing"},
		{name: "a map alone", args: []string{"--name", "n1", "--data", "d", "--cert-map", "m"}, want: "there is no --tls-cert"},
		{name: "sizes", args: []string{"--name", "n1", "--data", "d", "--ballast", "0", "--low-space", "3 GiB", "--log-size", "256MiB", "--log-segment", "16MiB"}},
		{name: "no size", args: []string{"--name", "n1", "--data", "d", "--ballast", "much"}, want: "as 128MiB"},
		{name: "less than nothing", args: []string{"--name", "n1", "--data", "d", "--ballast", "-1MiB"}, want: "as 128MiB"},
		{name: "too large a size", args: []string{"--name", "n1", "--data", "d", "--ballast", "9999999999TiB"}, want: "as 128MiB"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			args := tt.args
			if tt.file != "" {
				file := filepath.Join(t.TempDir(), "rookeryd.conf")
				if err := os.WriteFile(file, []byte(tt.file), 0o600); err != nil {
					t.Fatal(err)
				}
				args = append([]string{"--config", file}, args...)
			}
			_, err := parseSettings(args, &bytes.Buffer{})
			switch {
			case tt.want == "" && err != nil:
				t.Errorf("got %v, want no error", err)
			case tt.want != "" && (!errors.Is(err, daemon.ErrUsage) || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("got %v, want a usage error with %q", err, tt.want)
			}
		})
	}
}

func TestFlagBeatsFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "rookeryd.conf")
	if err := os.WriteFile(file, []byte("name: file\ndata: fromfile\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := parseSettings([]string{"--config", file, "--name", "flag"}, &bytes.Buffer{})
	if err != nil || s.name != "flag" || s.data != "fromfile" {
		t.Errorf("got name %q data %q err %v, want flag, fromfile", s.name, s.data, err)
	}
}

func TestHelp(t *testing.T) {
	var out bytes.Buffer
	_, err := parseSettings([]string{"--help"}, &out)
	if !errors.Is(err, flag.ErrHelp) {
		t.Errorf("got %v, want ErrHelp", err)
	}
	for _, want := range []string{"Examples:", "-listen-client", "127.0.0.1:7905", "-initial-cluster"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("help lacks %q:\n%s", want, out.String())
		}
	}
}

func TestFounders(t *testing.T) {
	for _, tt := range []struct {
		cluster string
		count   int
		want    string
	}{
		{"", 0, ""},
		{"n1=127.0.0.1:7906", 1, ""},
		{"n1=a:1, n2=b:1,n3=c:1", 3, ""},
		{"n2=127.0.0.1:7906", 0, "does not name this node"},
		{"n1", 0, "is no name=peer-address"},
		{"n1=a:1,n1=b:1", 0, "twice"},
	} {
		founders, err := parseFounders(tt.cluster, "n1")
		if tt.want == "" && (err != nil || len(founders) != tt.count) {
			t.Errorf("%q: got %v, %v, want %d nodes", tt.cluster, founders, err, tt.count)
		}
		if tt.want != "" && (!errors.Is(err, daemon.ErrUsage) || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%q: got %v, want %q", tt.cluster, err, tt.want)
		}
	}
}
