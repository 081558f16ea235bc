package main

import (
	"flag"
	"fmt"
	"io"
	"net/netip"
	"strings"

	"github.com/rookery-mail/rookery/adapter/mupdate"
	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/internal/daemon"
	"github.com/rookery-mail/rookery/internal/mtls"
)

// settings are what the gateway is told, by flags and by the file of --config. A flag
// beats the file.
type settings struct {
	daemon.Settings
	endpoints  string
	nodes      []string // of endpoints
	tls        mtls.Paths
	listenHTTP string
	mupdate    mupdate.Settings
}

const synopsis = `rookery-gateway - other protocols, answered from a Rookery directory

Usage:
  rookery-gateway --endpoints HOST:PORT,... [flags]

Examples:
  rookery-gateway --endpoints 10.0.0.1:7905,10.0.0.2:7905,10.0.0.3:7905 \
      --tls-cert operator-gw.crt --tls-key operator-gw.key --tls-ca ca.crt \
      --listen-mupdate 127.0.0.1:3905 --mupdate-users /etc/rookery/mupdate-users

The gateway may do what its certificate may: an operator's for all backends, or the
one of the backend beside it, for that backend alone. A backend without any mailbox is
then made known by "rookeryctl backends set NAME --create".

The file of --config holds "name: value" lines, a name being a flag's without the
dashes; "#" begins a comment. A flag beats the file; an unknown name stops the start.

Flags:
`

// parseSettings reads the command line and the file it names.
func parseSettings(args []string, out io.Writer) (settings, error) {
	var s settings
	fs := flag.NewFlagSet("rookery-gateway", flag.ContinueOnError)
	fs.StringVar(&s.endpoints, "endpoints", "127.0.0.1:7905", "`nodes` of the cluster, host:port,...; unix:/path is a node's own socket")
	fs.StringVar(&s.tls.Cert, "tls-cert", "", "the gateway's certificate, a PEM `file`; without it nodes are asked in plain text")
	fs.StringVar(&s.tls.Key, "tls-key", "", "the key of --tls-cert, a PEM `file`")
	fs.StringVar(&s.tls.CA, "tls-ca", "", "the CA that the nodes' certificates are of, and those of backends that come to --listen-mupdate, a PEM `file`")
	fs.StringVar(&s.tls.Map, "cert-map", "", "`file` that says whose the certificates of another CA are, nodes' and those of who comes to --listen-mupdate, as rookeryd's --cert-map")
	fs.StringVar(&s.listenHTTP, "listen-http", "", "`address`, on loopback, for /livez and /metrics; none by default")
	s.mupdate.Register(fs, "STARTTLS is not offered")
	s.Register(fs)
	if err := s.Parse(fs, args, synopsis, out); err != nil || s.Version {
		return s, err
	}
	return s, s.check()
}

// check refuses what cannot work before anything is opened.
func (s *settings) check() error {
	if s.mupdate.Listen == "" {
		return fmt.Errorf("%w: nothing to answer: give --listen-mupdate", daemon.ErrUsage)
	}
	if err := s.mupdate.Check(false); err != nil {
		return fmt.Errorf("%w: %w", daemon.ErrUsage, err)
	}
	if err := s.tls.Complete(); err != nil {
		return fmt.Errorf("%w: %s", daemon.ErrUsage, strings.TrimPrefix(err.Error(), "mtls: "))
	}
	var err error
	if s.nodes, err = client.ParseEndpoints(s.endpoints); err != nil {
		return fmt.Errorf("%w: --endpoints %s: %s", daemon.ErrUsage, s.endpoints, strings.TrimPrefix(err.Error(), "client: "))
	}
	if s.listenHTTP != "" {
		a, err := netip.ParseAddrPort(s.listenHTTP)
		if err != nil || !a.Addr().IsLoopback() {
			return fmt.Errorf("%w: --listen-http %s: an ip:port of loopback", daemon.ErrUsage, s.listenHTTP)
		}
	}
	return nil
}
