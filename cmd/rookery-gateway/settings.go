package main

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"strings"

	"github.com/rookery-mail/rookery/adapter/mupdate"
	"github.com/rookery-mail/rookery/internal/mtls"
)

// settings are what the gateway is told, by flags and by the file of -config. A flag
// beats the file.
type settings struct {
	endpoints  string
	tls        mtls.Paths
	listenHTTP string
	mupdate    mupdate.Settings
	config     string
	logLevel   slog.Level
	logFormat  string
	version    bool
}

// errUsage: the command line or the file is wrong; the text says how.
var errUsage = errors.New("usage")

const synopsis = `rookery-gateway - other protocols, answered from a Rookery directory

Usage:
  rookery-gateway --endpoints HOST:PORT,... [flags]

Examples:
  rookery-gateway --endpoints 10.0.0.1:7905,10.0.0.2:7905,10.0.0.3:7905 \
      --tls-cert operator-gw.crt --tls-key operator-gw.key --tls-ca ca.crt \
      --listen-mupdate 127.0.0.1:3905 --mupdate-users /etc/rookery/mupdate-users

The gateway may do what its certificate may: an operator's for all backends, or the
one of the backend beside it, for that backend alone.

The file of --config holds "name: value" lines, a name being a flag's without the
dashes; "#" begins a comment. A flag beats the file; an unknown name stops the start.

Flags:
`

// parseSettings reads the command line and the file it names.
func parseSettings(args []string, out io.Writer) (settings, error) {
	var s settings
	fs := flag.NewFlagSet("rookery-gateway", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.StringVar(&s.endpoints, "endpoints", "127.0.0.1:7905", "`nodes` of the cluster, host:port,...; unix:/path is a node's own socket")
	fs.StringVar(&s.tls.Cert, "tls-cert", "", "the gateway's certificate, a PEM `file`; without it nodes are asked in plain text")
	fs.StringVar(&s.tls.Key, "tls-key", "", "the key of --tls-cert, a PEM `file`")
	fs.StringVar(&s.tls.CA, "tls-ca", "", "the CA that the nodes' certificates are of, a PEM `file`")
	fs.StringVar(&s.tls.Map, "cert-map", "", "`file` that says which certificates of another CA are nodes', as rookeryd's --cert-map")
	fs.StringVar(&s.listenHTTP, "listen-http", "", "`address`, on loopback, for /livez and /metrics; none by default")
	s.mupdate.Register(fs)
	fs.StringVar(&s.config, "config", "", "`file` with more settings")
	fs.TextVar(&s.logLevel, "log-level", slog.LevelInfo, "debug, info, warn or error")
	fs.StringVar(&s.logFormat, "log-format", "text", "text or json")
	fs.BoolVar(&s.version, "version", false, "print the version and exit")
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			fmt.Fprint(out, synopsis)
			fs.SetOutput(out)
			fs.PrintDefaults()
			return s, err
		}
		return s, fmt.Errorf("%w: %w; `rookery-gateway --help` lists the flags", errUsage, err)
	}
	if fs.NArg() > 0 {
		return s, fmt.Errorf("%w: %q is no flag; `rookery-gateway --help` lists them", errUsage, fs.Arg(0))
	}
	if s.version {
		return s, nil
	}
	if s.config != "" {
		if err := readConfig(fs, s.config); err != nil {
			return s, err
		}
	}
	return s, s.check()
}

// readConfig sets from file what no flag has set.
func readConfig(fs *flag.FlagSet, file string) error {
	f, err := os.Open(file)
	if err != nil {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	defer f.Close()
	given := map[string]bool{"config": true}
	fs.Visit(func(f *flag.Flag) { given[f.Name] = true })
	seen := map[string]bool{}
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, value, ok := strings.Cut(line, ":")
		name, value = strings.TrimSpace(name), strings.TrimSpace(value)
		switch {
		case !ok:
			return fmt.Errorf("%w: %s:%d: %q is no \"name: value\" line", errUsage, file, n, line)
		case fs.Lookup(name) == nil || name == "config" || name == "version":
			return fmt.Errorf("%w: %s:%d: no setting is called %q; `rookery-gateway --help` lists them", errUsage, file, n, name)
		case seen[name]:
			return fmt.Errorf("%w: %s:%d: %s stands twice", errUsage, file, n, name)
		}
		seen[name] = true
		if given[name] {
			continue
		}
		if err := fs.Set(name, value); err != nil {
			return fmt.Errorf("%w: %s:%d: %s: %w", errUsage, file, n, name, err)
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("%w: %s: %w", errUsage, file, err)
	}
	return nil
}

// check refuses what cannot work before anything is opened.
func (s *settings) check() error {
	if s.mupdate.Listen == "" {
		return fmt.Errorf("%w: nothing to answer: give --listen-mupdate", errUsage)
	}
	if err := s.mupdate.Check(false); err != nil {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	if err := s.tls.Complete(); err != nil {
		return fmt.Errorf("%w: %s", errUsage, strings.TrimPrefix(err.Error(), "mtls: "))
	}
	if s.listenHTTP != "" {
		a, err := netip.ParseAddrPort(s.listenHTTP)
		if err != nil || !a.Addr().IsLoopback() {
			return fmt.Errorf("%w: --listen-http %s: an ip:port of loopback", errUsage, s.listenHTTP)
		}
	}
	if s.logFormat != "text" && s.logFormat != "json" {
		return fmt.Errorf("%w: --log-format %q: text or json", errUsage, s.logFormat)
	}
	return nil
}
