package mupdate

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rookery-mail/rookery/adapter/mupdate/spool"
)

// Settings are the flags of a program that answers MUPDATE.
type Settings struct {
	Listen         string
	Users          string
	Cert, Key      string
	Clear          bool
	Hostname       string
	Order          Order
	Literals       Literals
	MaxConnections int
	MaxStreams     int
	Spool          string
}

// Register puts the flags into fs. without says what is so without --mupdate-cert.
func (s *Settings) Register(fs *flag.FlagSet, without string) {
	fs.StringVar(&s.Listen, "listen-mupdate", "", "`address` for Cyrus (MUPDATE), such as 10.0.0.1:3905; none by default")
	fs.StringVar(&s.Users, "mupdate-users", "", "`file` of the logins of --listen-mupdate; `rookeryctl mupdate passwd` makes its lines. Read again when it changes")
	fs.StringVar(&s.Cert, "mupdate-cert", "", "certificate for STARTTLS, a PEM `file`; without it, "+without)
	fs.StringVar(&s.Key, "mupdate-key", "", "the key of --mupdate-cert, a PEM `file`")
	fs.BoolVar(&s.Clear, "mupdate-clear", false, "take logins, and so passwords, without TLS. On loopback that is so anyway")
	fs.StringVar(&s.Hostname, "mupdate-name", "", "host `name` in the greeting; default this machine's")
	fs.Var(&s.Order, "mupdate-order", "`order` of records: key, as Cyrus 3.6 and later keep their lists, or octet, as earlier ones do; for logins that do not say")
	fs.Var(&s.Literals, "mupdate-literals", "`form` of literals: nonsync, as Cyrus sends them, or sync, which Cyrus 3.4.8, 3.6.5 and 3.8.3 need; for logins that do not say")
	fs.IntVar(&s.MaxConnections, "mupdate-connections", DefaultMaxConnections, "how `many` connections there may be; a quarter of the files that the process may open at most")
	fs.IntVar(&s.MaxStreams, "mupdate-streams", DefaultMaxStreams, "how `many` of them may be frontends that follow")
	fs.StringVar(&s.Spool, "mupdate-spool", "", "`directory` where listings wait to be sent, in files without names; default the system's for temporary files")
}

// Check refuses what cannot work. secured: there is a certificate for STARTTLS even
// without --mupdate-cert.
func (s *Settings) Check(secured bool) error {
	if s.Listen == "" {
		if s.Users != "" || s.Cert != "" {
			return errors.New("--mupdate-users and --mupdate-cert are for --listen-mupdate, which is not given")
		}
		return nil
	}
	if _, _, err := net.SplitHostPort(s.Listen); err != nil {
		return fmt.Errorf("--listen-mupdate: %w", err)
	}
	if s.Users == "" {
		return errors.New("--listen-mupdate needs --mupdate-users: nobody could log in")
	}
	if (s.Cert == "") != (s.Key == "") {
		return errors.New("--mupdate-cert and --mupdate-key come together")
	}
	if s.MaxConnections < 1 {
		return fmt.Errorf("--mupdate-connections %d: at least 1", s.MaxConnections)
	}
	if s.MaxStreams < 1 {
		return fmt.Errorf("--mupdate-streams %d: at least 1; frontends follow by them", s.MaxStreams)
	}
	s.Clear = s.Clear || loopback(s.Listen)
	if s.Cert == "" && !secured && !s.Clear {
		return fmt.Errorf("--listen-mupdate %s is not on loopback: give --mupdate-cert and --mupdate-key for STARTTLS, or --mupdate-clear to take passwords in the clear", s.Listen)
	}
	return nil
}

func loopback(address string) bool {
	if strings.HasPrefix(address, "localhost:") {
		return true
	}
	a, err := netip.ParseAddrPort(address)
	return err == nil && a.Addr().IsLoopback()
}

// Readable reads the files that are named, and says what is wrong with them.
func (s *Settings) Readable() error { return s.Fill(new(Config)) }

// Fill puts the settings into cfg: of TLS, what --mupdate-cert says.
func (s *Settings) Fill(cfg *Config) error {
	users, err := LoadUsers(s.Users)
	if err != nil {
		return err
	}
	cfg.Users, cfg.Clear, cfg.Hostname = users, s.Clear, s.Hostname
	cfg.Order, cfg.Literals = s.Order, s.Literals
	cfg.MaxConnections, cfg.MaxStreams, cfg.SpoolDir = s.MaxConnections, s.MaxStreams, s.Spool
	if err := spool.Usable(s.Spool); err != nil {
		return fmt.Errorf("listings cannot wait to be sent, --mupdate-spool says where: %w", err)
	}
	warnOpen(cfg.Log, s.Users)
	if s.Cert == "" {
		return nil
	}
	warnOpen(cfg.Log, s.Key)
	c := &certificate{cert: s.Cert, key: s.Key}
	if _, err := c.get(nil); err != nil {
		return err
	}
	cfg.Broken = c.why
	cfg.TLS = &tls.Config{MinVersion: tls.VersionTLS12, ClientAuth: tls.RequestClientCert, GetCertificate: c.get}
	return nil
}

// warnOpen says that everybody on the machine can get at a file with secrets, which is
// used all the same.
func warnOpen(log *slog.Logger, file string) {
	info, err := os.Stat(file)
	if err != nil || log == nil {
		return
	}
	if mode := info.Mode().Perm(); mode&0o007 != 0 {
		log.Warn("every user of this machine can get at a file with secrets: chmod o= it", "proto", "mupdate", "file", file, "mode", fmt.Sprintf("%04o", mode))
	}
}

// certificate is one that is read again when its files change.
type certificate struct {
	cert, key string

	mu     sync.Mutex
	looked time.Time
	stamp  [2]fileStamp
	held   *tls.Certificate
	broken error // why what the files hold now is not used
}

// errUnfit: a certificate is shown, and refused by clients that look at it.
var errUnfit = errors.New("mupdate: clients that verify the certificate refuse it")

// why says why the files as they are now are not used, or are of no use; nil if they are.
func (c *certificate) why() error {
	held, err := c.get(nil)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil {
		err = c.broken
	}
	if err == nil {
		err = unfit(held.Leaf, c.cert, time.Now())
	}
	return err
}

// unfit says why a server's certificate, which is in file, is refused; nil if it is not.
func unfit(cert *x509.Certificate, file string, now time.Time) error {
	switch {
	case now.Before(cert.NotBefore):
		return fmt.Errorf("%w: %s is not valid before %s", errUnfit, file, cert.NotBefore.UTC().Format(time.RFC3339))
	case now.After(cert.NotAfter):
		return fmt.Errorf("%w: %s has expired at %s: renew it", errUnfit, file, cert.NotAfter.UTC().Format(time.RFC3339))
	case len(cert.ExtKeyUsage)+len(cert.UnknownExtKeyUsage) > 0 &&
		!slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageServerAuth) && !slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageAny):
		return fmt.Errorf("%w: %s was not made for servers (extended key usage)", errUnfit, file)
	}
	return nil
}

// get returns the certificate as it is, or, if it cannot be read, as it was.
func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.held != nil && time.Since(c.looked) < lookAgain {
		return c.held, nil
	}
	c.looked = time.Now()
	var stamp [2]fileStamp
	for i, path := range []string{c.cert, c.key} {
		info, err := os.Stat(path)
		if err != nil {
			c.broken = fmt.Errorf("mupdate: %w", err)
			if c.held != nil {
				return c.held, nil
			}
			return nil, c.broken
		}
		stamp[i] = fileStamp{info.ModTime(), info.Size()}
	}
	if c.held != nil && stamp == c.stamp {
		c.broken = nil
		return c.held, nil
	}
	pair, err := tls.LoadX509KeyPair(c.cert, c.key)
	if err != nil {
		c.broken = fmt.Errorf("mupdate: %s and %s: %w", c.cert, c.key, err)
		if c.held == nil {
			return nil, c.broken
		}
		return c.held, nil
	}
	c.held, c.stamp, c.broken = &pair, stamp, nil
	return c.held, nil
}
