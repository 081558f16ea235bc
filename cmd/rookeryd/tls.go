package main

import (
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"strings"

	"github.com/rookery-mail/rookery/internal/daemon"
	"github.com/rookery-mail/rookery/internal/mtls"
)

// This file is how a node knows who comes in: its certificates, and its socket for
// who is on the machine.

// noSocket is the word of --listen-unix for none.
const noSocket = "none"

// identityFlags are the flags of this file.
func (s *settings) identityFlags(fs *flag.FlagSet) {
	fs.StringVar(&s.tls.Cert, "tls-cert", "", "this node's certificate, a PEM `file`; with it, clients and nodes come in by certificate only")
	fs.StringVar(&s.tls.Key, "tls-key", "", "the key of --tls-cert, a PEM `file`")
	fs.StringVar(&s.tls.CA, "tls-ca", "", "the CA whose certificates are taken, a PEM `file`; more than one while it is changed")
	fs.StringVar(&s.tls.Map, "cert-map", "", "`file` that says whose the certificates of another CA are, KIND:PATTERN: ROLE[:NAME] a line")
	fs.StringVar(&s.listenUnix, "listen-unix", "", "unix socket by which root, and this node's own user, are operators without a certificate: a `path`, or none; default rookery.sock in the data directory")
}

// secured reports whether the node has certificates.
func (s *settings) secured() bool { return s.tls != (mtls.Paths{}) }

// checkIdentity refuses certificates that are not whole, and plain text where it
// could be overheard.
func (s *settings) checkIdentity() error {
	if s.tls.Map != "" && s.tls.Cert == "" {
		return fmt.Errorf("%w: --cert-map is about certificates, and there is no --tls-cert", daemon.ErrUsage)
	}
	if err := s.tls.Complete(); err != nil {
		return fmt.Errorf("%w: %s", daemon.ErrUsage, strings.TrimPrefix(err.Error(), "mtls: "))
	}
	for _, l := range []struct{ flag, address string }{
		{"listen-client", s.listenClient}, {"listen-peer", s.listenPeer}, {"listen-http", s.listenHTTP}, {"listen-debug", s.listenDebug},
	} {
		if l.address == "" && l.flag == "listen-debug" {
			continue
		}
		err := onLoopback(l.address)
		if err != nil && s.secured() {
			_, _, err = net.SplitHostPort(l.address)
		}
		if err != nil {
			return fmt.Errorf("%w: --%s: %w", daemon.ErrUsage, l.flag, err)
		}
	}
	return nil
}

// onLoopback refuses an address on which plain text could be overheard.
func onLoopback(address string) error {
	if strings.HasPrefix(address, "localhost:") {
		return nil
	}
	a, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("%q is no ip:port", address)
	}
	if !a.Addr().IsLoopback() {
		return fmt.Errorf("%s is not on loopback, and without certificates only plain text can be spoken there: listen on 127.0.0.1 or [::1], or give --tls-cert, --tls-key and --tls-ca (`rookeryctl cert` makes them)", address)
	}
	return nil
}

// certificates loads what the node has; nil if it has none. A certificate that is
// not this node's is refused, now and when the files change.
func (s *settings) certificates(log *slog.Logger) (*mtls.Files, error) {
	if !s.secured() {
		return nil, nil
	}
	return mtls.Load(s.tls, func(id mtls.Identity) error {
		if id != (mtls.Identity{Role: mtls.Node, Name: s.name}) {
			return fmt.Errorf("it is that of %s, and this is node %s: `rookeryctl cert node %s` makes one", id, s.name, s.name)
		}
		return nil
	}, log)
}

// secure has the listeners of HTTP speak mutual TLS where others could overhear
// them. Any certificate of the CA may ask for health and metrics; profiles are the
// operators'. On loopback they stay in plain text, for who watches a node from
// beside it.
func (l *listeners) secure(files *mtls.Files, log *slog.Logger) {
	if files == nil {
		return
	}
	if onLoopback(l.http.Addr().String()) != nil {
		l.http = mtls.HTTP(l.http, files, mtls.Listening{Proto: "http", Log: log})
	}
	if l.debug != nil && onLoopback(l.debug.Addr().String()) != nil {
		l.debug = mtls.HTTP(l.debug, files, mtls.Listening{Proto: "debug", Roles: []mtls.Role{mtls.Operator}, Log: log})
	}
}

// socket opens the unix socket; nil if there is to be none. By default one that
// cannot be is done without: whoever asked for it by name is told.
func (s *settings) socket(log *slog.Logger) (net.Listener, error) {
	path := s.listenUnix
	switch path {
	case noSocket:
		return nil, nil
	case "":
		path = filepath.Join(s.data, "rookery.sock")
	}
	l, err := mtls.Socket(path)
	if err == nil {
		return l, nil
	}
	if s.listenUnix == "" && (errors.Is(err, mtls.ErrSocketPath) || errors.Is(err, errors.ErrUnsupported)) {
		log.Warn("no unix socket; --listen-unix can name another place", "err", err)
		return nil, nil
	}
	return nil, fmt.Errorf("--listen-unix: %w", err)
}
