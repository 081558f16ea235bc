package mtls

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Paths name what one program has of its own and whom it trusts.
type Paths struct {
	Cert string // PEM: its certificate, and those between it and the CA
	Key  string // PEM: the private key of it
	CA   string // PEM: the CAs whose certificates are taken, one or more
	Map  string // see [ParseMap]; "" is none
}

// Complete says what is missing, in the names of the flags; nothing at all is
// complete too.
func (p Paths) Complete() error {
	if p == (Paths{}) || p.Cert != "" && p.Key != "" && p.CA != "" {
		return nil
	}
	for _, f := range []struct{ flag, path string }{{"--tls-cert", p.Cert}, {"--tls-key", p.Key}, {"--tls-ca", p.CA}} {
		if f.path == "" {
			return fmt.Errorf("mtls: %s is missing: a certificate, its key and the CA belong together", f.flag)
		}
	}
	return nil
}

// lookEvery is how often the files are looked at, at most.
const lookEvery = time.Second

// watchEvery is how often they are looked at where nobody connects.
const watchEvery = time.Hour

// settling is how long a file may be newer than its siblings: somebody is
// replacing them one by one.
const settling = 2 * time.Second

// warnBefore is how long before its end a certificate is complained of, once a day.
const warnBefore = 30 * 24 * time.Hour

// Files are a certificate, its key, the CAs and the map as the files have them
// now. They may be used by many goroutines at once.
type Files struct {
	paths Paths
	check func(Identity) error
	log   *slog.Logger
	now   func() time.Time

	held   atomic.Pointer[material]
	looked atomic.Int64 // when, in nanoseconds

	mu     sync.Mutex
	tried  stamps // what was loaded last, or could not be
	failed string // why it could not be, as it was told; empty: it was loaded
	warned time.Time
}

// material is what the files held when they were loaded. It does not change.
type material struct {
	cert tls.Certificate // with Leaf
	id   Identity        // of it
	pool *x509.CertPool
	cas  []*x509.Certificate
	ids  *Map
}

// Load reads the files. check, which may be nil, says what is wrong with the
// identity of one's own certificate: files in which it is wrong are not taken,
// neither now nor later. log is where reloads are told; nil is nowhere.
func Load(p Paths, check func(Identity) error, log *slog.Logger) (*Files, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	f := &Files{paths: p, check: check, log: log, now: time.Now}
	if p.Cert == "" || p.Key == "" || p.CA == "" {
		return nil, errors.Join(p.Complete(), errors.New("mtls: no files named"))
	}
	f.tried, _ = f.stamp() // what cannot be seen is told by load
	m, err := f.load()
	if err != nil {
		return nil, err
	}
	if info, err := os.Stat(p.Key); err == nil && info.Mode().Perm()&0o007 != 0 {
		log.Warn("every user of this machine can read the key of the certificate: chmod o= it", "file", p.Key)
	}
	f.held.Store(m)
	f.looked.Store(f.now().UnixNano())
	f.remind(m)
	return f, nil
}

// Identity is who this program is by its own certificate.
func (f *Files) Identity() Identity { return f.current().id }

// Leaf is this program's own certificate. It is not to be changed.
func (f *Files) Leaf() *x509.Certificate { return f.current().cert.Leaf }

// Watch looks at the files until ctx ends, so that a certificate which is about to end,
// or has ended, is told of also where connections stand and no new ones come. f may be
// nil: there is nothing to look at.
func (f *Files) Watch(ctx context.Context) {
	if f == nil {
		return
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(watchEvery):
			f.current()
		}
	}
}

// load reads all of the files.
func (f *Files) load() (*material, error) {
	certPEM, err := os.ReadFile(f.paths.Cert)
	if err != nil {
		return nil, fmt.Errorf("mtls: certificate: %w", err)
	}
	keyPEM, err := os.ReadFile(f.paths.Key)
	if err != nil {
		return nil, fmt.Errorf("mtls: key: %w", err)
	}
	m := &material{}
	if m.cert, err = tls.X509KeyPair(certPEM, keyPEM); err != nil {
		return nil, fmt.Errorf("mtls: %s and %s: %w", f.paths.Cert, f.paths.Key, err)
	}
	if m.cert.Leaf == nil {
		if m.cert.Leaf, err = x509.ParseCertificate(m.cert.Certificate[0]); err != nil {
			return nil, fmt.Errorf("mtls: %s: %w", f.paths.Cert, err)
		}
	}
	caPEM, err := os.ReadFile(f.paths.CA)
	if err != nil {
		return nil, fmt.Errorf("mtls: CA: %w", err)
	}
	if m.cas, err = Certificates(caPEM); err != nil {
		return nil, fmt.Errorf("mtls: CA %s: %w", f.paths.CA, err)
	}
	m.pool = x509.NewCertPool()
	for _, ca := range m.cas {
		if !ca.IsCA {
			return nil, fmt.Errorf("mtls: CA %s: the certificate of %s is no CA's", f.paths.CA, subject(ca))
		}
		m.pool.AddCert(ca)
	}
	if f.paths.Map != "" {
		text, err := os.ReadFile(f.paths.Map)
		if err != nil {
			return nil, fmt.Errorf("mtls: certificate map: %w", err)
		}
		if m.ids, err = ParseMap(text); err != nil {
			return nil, fmt.Errorf("%s: %w", f.paths.Map, err)
		}
	}
	if m.id, err = IdentityOf(m.cert.Leaf, m.ids); err != nil {
		return nil, fmt.Errorf("mtls: %s (%s): %w", f.paths.Cert, describe(m.cert.Leaf), err)
	}
	if f.check != nil {
		if err := f.check(m.id); err != nil {
			return nil, fmt.Errorf("mtls: %s (%s): %w", f.paths.Cert, describe(m.cert.Leaf), err)
		}
	}
	// Whoever is connected to would refuse it: better said here than guessed there.
	if m.cert.Leaf.NotAfter.After(f.now()) && !f.now().Before(m.cert.Leaf.NotBefore) {
		if err := m.verify(m.cert.Leaf, intermediates(m.cert.Certificate[1:]), f.now(), x509.ExtKeyUsageAny); err != nil {
			return nil, fmt.Errorf("mtls: %s and %s: %w", f.paths.Cert, f.paths.CA, err)
		}
	}
	return m, nil
}

// Certificates reads all certificates of PEM text, at least one; a private key in
// it is an error.
func Certificates(text []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for {
		var block *pem.Block
		block, text = pem.Decode(text)
		if block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("mtls: a %s where a certificate is wanted", block.Type)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("mtls: %w", err)
		}
		certs = append(certs, cert)
	}
	if len(bytes.TrimSpace(text)) > 0 && len(certs) > 0 {
		return nil, errors.New("mtls: something that is no PEM behind the certificates")
	}
	if len(certs) == 0 {
		return nil, errors.New("mtls: no certificate in it")
	}
	return certs, nil
}

func intermediates(der [][]byte) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, d := range der {
		if c, err := x509.ParseCertificate(d); err == nil {
			pool.AddCert(c) // one that cannot be read helps nobody
		}
	}
	return pool
}

// stamps are what is seen of the files without reading them.
type stamps [4]struct {
	modified time.Time
	size     int64
	inode    uint64
}

// stamp looks at the files; false if one is not there.
func (f *Files) stamp() (s stamps, ok bool) {
	for i, path := range []string{f.paths.Cert, f.paths.Key, f.paths.CA, f.paths.Map} {
		if path == "" {
			continue
		}
		info, err := os.Stat(path)
		if err != nil {
			return s, false
		}
		s[i].modified, s[i].size, s[i].inode = info.ModTime(), info.Size(), inodeOf(info)
	}
	return s, true
}

// newest is when any of the files was changed last.
func (s stamps) newest() (t time.Time) {
	for _, one := range s {
		if one.modified.After(t) {
			t = one.modified
		}
	}
	return t
}

// current returns what to use for a handshake that begins now.
func (f *Files) current() *material {
	now := f.now()
	last := f.looked.Load()
	if now.UnixNano()-last >= int64(lookEvery) && f.looked.CompareAndSwap(last, now.UnixNano()) {
		f.reload(now)
	}
	return f.held.Load()
}

// reload loads the files if they changed. It is called by one at a time, but for
// a clock that jumps.
func (f *Files) reload(now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	defer func() { f.remind(f.held.Load()) }()
	s, there := f.stamp()
	if s == f.tried && f.failed == "" {
		return
	}
	m, err := f.load()
	if err == nil {
		f.tried, f.failed = s, ""
		f.held.Store(m)
		f.warned = time.Time{}
		f.log.Info("certificates reloaded", "cert", describe(m.cert.Leaf), "until", m.cert.Leaf.NotAfter.UTC().Format(time.RFC3339))
		return
	}
	if age := now.Sub(s.newest()); there && age >= 0 && age < settling {
		return // looked at again
	}
	// It is tried again though the files look the same: chown and chmod are not seen of
	// them, nor that the process was out of descriptors.
	failed := err.Error()
	if r, ok := errors.AsType[*Refusal](err); ok {
		failed = string(r.Reason) // the text may say what time it is
	}
	if s == f.tried && failed == f.failed {
		return
	}
	f.tried, f.failed = s, failed
	f.log.Warn("certificates not reloaded; the old ones are kept", "cert", describe(f.held.Load().cert.Leaf), "err", err)
}

// remind complains of a certificate that ends soon, once a day. Its caller holds
// mu or is alone.
func (f *Files) remind(m *material) {
	now, leaf := f.now(), m.cert.Leaf
	left := leaf.NotAfter.Sub(now)
	if left > warnBefore && !now.Before(leaf.NotBefore) || now.Sub(f.warned) < 24*time.Hour {
		return
	}
	f.warned = now
	until := leaf.NotAfter.UTC().Format(time.RFC3339)
	switch {
	case now.Before(leaf.NotBefore):
		f.log.Warn("own certificate is not valid yet; others refuse it", "cert", describe(leaf), "from", leaf.NotBefore.UTC().Format(time.RFC3339))
	case left <= 0:
		f.log.Warn("own certificate has expired; others refuse it", "cert", describe(leaf), "until", until)
	default:
		f.log.Warn("own certificate ends soon", "cert", describe(leaf), "until", until, "days", int(left.Hours()/24))
	}
}
