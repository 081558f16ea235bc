package main

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/rookery-mail/rookery/adapter/mupdate"
	"github.com/rookery-mail/rookery/internal/mtls"
	"github.com/rookery-mail/rookery/raftstore/peer"
)

// settings are what rookeryd is told, by flags and by the file of -config. A
// flag beats the file.
type settings struct {
	name            string
	data            string
	listenClient    string
	listenPeer      string
	listenHTTP      string
	listenDebug     string
	listenUnix      string
	tls             mtls.Paths
	mupdate         mupdate.Settings
	initialCluster  string
	founders        []peer.Founder // of initialCluster
	joinList        string
	join            []string // of joinList
	clusterToken    string
	advertisePeer   string
	advertiseClient string
	site            string
	ballast         octets
	lowSpace        octets
	logSize         octets
	logSegment      octets
	snapshotRate    int64 // octets a second
	scrubInterval   time.Duration
	config          string
	logLevel        slog.Level
	logFormat       string
	version         bool
}

// errUsage: the command line or the file is wrong; the text says how.
var errUsage = errors.New("usage")

const synopsis = `rookeryd - one node of a Rookery directory

Usage:
  rookeryd --name NAME --data DIR [flags]

Examples:
  rookeryd --name n1 --data /var/lib/rookery
  rookeryd --config /etc/rookery/rookeryd.conf
  rookeryd --name n1 --data /var/lib/rookery --listen-client 10.0.0.1:7905 \
      --tls-cert node-n1.crt --tls-key node-n1.key --tls-ca ca.crt
  rookeryd --name n2 --data /var/lib/rookery --initial-cluster n1=10.0.0.1:7906,n2=10.0.0.2:7906,n3=10.0.0.3:7906
  rookeryd --name n4 --data /var/lib/rookery --join 10.0.0.1:7906,10.0.0.2:7906

The file of --config holds "name: value" lines, a name being a flag's without
the dashes; "#" begins a comment. A flag beats the file; an unknown name stops
the start. Without certificates, plain text is spoken on loopback addresses only.

Flags:
`

// parseSettings reads the command line and the file it names.
func parseSettings(args []string, out io.Writer) (settings, error) {
	var s settings
	fs := flag.NewFlagSet("rookeryd", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.StringVar(&s.name, "name", "", "this node's `name`; fixed when the data directory is made")
	fs.StringVar(&s.data, "data", "", "the data `directory`; made if missing")
	fs.StringVar(&s.listenClient, "listen-client", "127.0.0.1:7905", "`address` for clients (gRPC)")
	fs.StringVar(&s.listenPeer, "listen-peer", "127.0.0.1:7906", "`address` for the other nodes")
	fs.StringVar(&s.listenHTTP, "listen-http", "127.0.0.1:7907", "`address` for /livez, /readyz and /metrics")
	fs.StringVar(&s.listenDebug, "listen-debug", "", "`address` for profiles; none by default")
	fs.StringVar(&s.advertisePeer, "advertise-peer", "", "host:port at which the other nodes reach this one; default as in --initial-cluster, else the `address` of --listen-peer")
	fs.StringVar(&s.advertiseClient, "advertise-client", "", "host:port at which clients reach this node; default the `address` of --listen-client")
	fs.StringVar(&s.site, "site", "", "`where` this node stands, e.g. a room; nodes of one site may fail together")
	fs.StringVar(&s.initialCluster, "initial-cluster", "", "`members` of a new cluster, name=peer-address, separated by commas, the same list on every node; default this node alone. Ignored once the data directory is made")
	fs.StringVar(&s.joinList, "join", "", "peer `addresses` of a running cluster, separated by commas, that this node is to be added to. Ignored once the data directory is made")
	fs.Func("snapshot-rate", "`MiB` a second at which snapshots are sent to other nodes; 0 for no bound; default 64", func(v string) error {
		n, err := strconv.ParseUint(v, 10, 32)
		s.snapshotRate = int64(n) << 20
		if n == 0 {
			s.snapshotRate = -1
		}
		return err
	})
	fs.StringVar(&s.clusterToken, "cluster-token", "", "sets a new cluster apart from others with the same members")
	s.ballast = 128 << 20
	fs.Var(&s.ballast, "ballast", "`size` of a file in the data directory that takes up space, for an operator in need to remove; 0 for none")
	fs.Var(&s.lowSpace, "low-space", "`size` that is to stay free on the disk of the data directory; below, the node raises an alarm; 0 for the larger of 256MiB and 2 % of the disk")
	fs.DurationVar(&s.scrubInterval, "scrub-interval", 24*time.Hour, "`time` from one scrub of the state file to the next: it is read again whole and held against its sum; 0 for none")
	fs.Var(&s.logSize, "log-size", "`size` of the log that is kept for nodes that lag, also in memory; one that lags further gets a snapshot; while that is on its way, up to four times as much; 0 for 64MiB")
	fs.Var(&s.logSegment, "log-segment", "`size` of one file of the log, allocated before it is needed, and how much log is written between two points from which a start can read it; 0 for 64MiB")
	s.identityFlags(fs)
	s.mupdate.Register(fs)
	fs.StringVar(&s.config, "config", "", "`file` with more settings")
	fs.TextVar(&s.logLevel, "log-level", slog.LevelInfo, "debug, info, warn or error")
	fs.StringVar(&s.logFormat, "log-format", "text", "text or json")
	fs.BoolVar(&s.version, "version", false, "print the version and exit")
	usage := func() {
		fmt.Fprint(out, synopsis)
		fs.SetOutput(out)
		fs.PrintDefaults()
	}
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			usage()
			return s, err
		}
		return s, fmt.Errorf("%w: %w; `rookeryd --help` lists the flags", errUsage, err)
	}
	if fs.NArg() > 0 {
		return s, fmt.Errorf("%w: %q is no flag; `rookeryd --help` lists them", errUsage, fs.Arg(0))
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
	lines := bufio.NewScanner(f)
	seen := map[string]bool{}
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
			return fmt.Errorf("%w: %s:%d: no setting is called %q; `rookeryd --help` lists them", errUsage, file, n, name)
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
	if s.name == "" || strings.ContainsAny(s.name, " \t=,/") {
		return fmt.Errorf("%w: --name is needed: a word without blanks, '=', ',' and '/'", errUsage)
	}
	if s.data == "" {
		return fmt.Errorf("%w: --data is needed: the directory for this node's state", errUsage)
	}
	var err error
	if s.founders, err = parseFounders(s.initialCluster, s.name); err != nil {
		return err
	}
	for address := range strings.SplitSeq(s.joinList, ",") {
		if address = strings.TrimSpace(address); address != "" {
			s.join = append(s.join, address)
		}
	}
	if len(s.join) > 0 && len(s.founders) > 0 {
		return fmt.Errorf("%w: --initial-cluster founds a cluster and --join enters one: give one of them", errUsage)
	}
	for _, a := range []struct{ flag, address string }{{"advertise-peer", s.advertisePeer}, {"advertise-client", s.advertiseClient}} {
		if _, port, err := net.SplitHostPort(a.address); a.address != "" && (err != nil || port == "" || port == "0") {
			return fmt.Errorf("%w: --%s: %q is no host:port", errUsage, a.flag, a.address)
		}
	}
	for _, text := range []string{s.advertisePeer, s.advertiseClient, s.site} {
		if !utf8.ValidString(text) {
			return fmt.Errorf("%w: %q is not UTF-8", errUsage, text)
		}
	}
	if s.logFormat != "text" && s.logFormat != "json" {
		return fmt.Errorf("%w: --log-format %q: text or json", errUsage, s.logFormat)
	}
	if err := s.mupdate.Check(s.secured()); err != nil {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	return s.checkIdentity()
}
