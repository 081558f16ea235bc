package main

import (
	"flag"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/rookery-mail/rookery/adapter/mupdate"
	"github.com/rookery-mail/rookery/internal/daemon"
	"github.com/rookery-mail/rookery/internal/mtls"
	"github.com/rookery-mail/rookery/raftstore/peer"
)

// settings are what rookeryd is told, by flags and by the file of --config. A
// flag beats the file.
type settings struct {
	daemon.Settings
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
}

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
	s.mupdate.Register(fs, "that of --tls-cert; without both, STARTTLS is not offered")
	s.Register(fs)
	if err := s.Parse(fs, args, synopsis, out); err != nil || s.Version {
		return s, err
	}
	return s, s.check()
}

// check refuses what cannot work before anything is opened.
func (s *settings) check() error {
	if s.name == "" || strings.ContainsAny(s.name, " \t=,/") {
		return fmt.Errorf("%w: --name is needed: a word without blanks, '=', ',' and '/'", daemon.ErrUsage)
	}
	if s.data == "" {
		return fmt.Errorf("%w: --data is needed: the directory for this node's state", daemon.ErrUsage)
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
		return fmt.Errorf("%w: --initial-cluster founds a cluster and --join enters one: give one of them", daemon.ErrUsage)
	}
	for _, a := range []struct{ flag, address string }{{"advertise-peer", s.advertisePeer}, {"advertise-client", s.advertiseClient}} {
		if _, port, err := net.SplitHostPort(a.address); a.address != "" && (err != nil || port == "" || port == "0") {
			return fmt.Errorf("%w: --%s: %q is no host:port", daemon.ErrUsage, a.flag, a.address)
		}
	}
	for _, text := range []string{s.advertisePeer, s.advertiseClient, s.site} {
		if !utf8.ValidString(text) {
			return fmt.Errorf("%w: %q is not UTF-8", daemon.ErrUsage, text)
		}
	}
	if err := s.mupdate.Check(s.secured()); err != nil {
		return fmt.Errorf("%w: %w", daemon.ErrUsage, err)
	}
	return s.checkIdentity()
}
