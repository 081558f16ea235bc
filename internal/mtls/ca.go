package mtls

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// How long certificates are valid unless something else is asked for.
const (
	CALifetime   = 10 * 365 * 24 * time.Hour
	CertLifetime = 365 * 24 * time.Hour
)

// backdate is how far before its making a certificate becomes valid: clocks differ.
const backdate = 10 * time.Minute

// serialBits is the length of serial numbers: drawn by chance, so that two are never
// alike though nobody counts them.
const serialBits = 127

// ErrExists: there is a file already where one was to be made.
var ErrExists = errors.New("mtls: it is there already")

// CA signs certificates. Its key is in memory.
type CA struct {
	Cert *x509.Certificate
	key  *ecdsa.PrivateKey
	now  func() time.Time
}

// Request says what certificate is wanted.
type Request struct {
	Identity Identity
	// Hosts are the DNS names and IP addresses that the holder is dialed by; of
	// nodes only.
	Hosts []string
	// Lifetime is how long it is valid at most; 0 is CertLifetime. A tenth of it or
	// less is taken off by chance, so that certificates which were made in one
	// night do not end in one.
	Lifetime time.Duration
}

// Pair is a certificate and its key, both in PEM.
type Pair struct {
	Leaf      *x509.Certificate
	Cert, Key []byte
}

// NewCA makes a CA. name is how people tell it from others; "" draws one.
func NewCA(name string, lifetime time.Duration) (*CA, *Pair, error) {
	key, serial, err := draw()
	if err != nil {
		return nil, nil, err
	}
	if name == "" {
		name = fmt.Sprintf("Rookery CA %08x", uint32(serial.Uint64()))
	}
	if lifetime <= 0 {
		lifetime = CALifetime
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(lifetime),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, nil, fmt.Errorf("mtls: sign the CA: %w", err)
	}
	pair, err := newPair(der, key)
	if err != nil {
		return nil, nil, err
	}
	return &CA{Cert: pair.Leaf, key: key, now: time.Now}, pair, nil
}

// draw makes a key and a serial number.
func draw() (*ecdsa.PrivateKey, *big.Int, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("mtls: draw a key: %w", err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), serialBits))
	if err != nil {
		return nil, nil, fmt.Errorf("mtls: draw a serial number: %w", err)
	}
	// Never zero, and as long as any: the top bit is set.
	return key, serial.SetBit(serial, serialBits-1, 1), nil
}

func newPair(der []byte, key *ecdsa.PrivateKey) (*Pair, error) {
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("mtls: %w", err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("mtls: %w", err)
	}
	return &Pair{
		Leaf: leaf,
		Cert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		Key:  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}),
	}, nil
}

// Issue makes a certificate. It never outlives the CA.
func (ca *CA) Issue(r Request) (*Pair, error) {
	if err := r.Identity.Check(); err != nil {
		return nil, err
	}
	if len(r.Hosts) > 0 && r.Identity.Role != Node {
		return nil, fmt.Errorf("mtls: hosts are of nodes only: nobody dials a %s", r.Identity.Role)
	}
	now := ca.now()
	if !now.Before(ca.Cert.NotAfter) {
		return nil, fmt.Errorf("mtls: the CA (%s) has expired at %s: make a new one, and give every program both until all are renewed",
			describe(ca.Cert), ca.Cert.NotAfter.UTC().Format(time.RFC3339))
	}
	lifetime := r.Lifetime
	if lifetime <= 0 {
		lifetime = CertLifetime
	}
	off, err := rand.Int(rand.Reader, big.NewInt(int64(lifetime/10)+1))
	if err != nil {
		return nil, fmt.Errorf("mtls: %w", err)
	}
	until := now.Add(lifetime - time.Duration(off.Int64()))
	if until.After(ca.Cert.NotAfter) {
		until = ca.Cert.NotAfter
	}
	key, serial, err := draw()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: r.Identity.Name},
		NotBefore:             now.Add(-backdate),
		NotAfter:              until,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
		URIs:                  []*url.URL{r.Identity.URI()},
	}
	if r.Identity.Role == Node {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	for _, h := range r.Hosts {
		if err := addHost(template, h); err != nil {
			return nil, err
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.Cert, key.Public(), ca.key)
	if err != nil {
		return nil, fmt.Errorf("mtls: sign: %w", err)
	}
	return newPair(der, key)
}

// addHost has the certificate name one host.
func addHost(template *x509.Certificate, h string) error {
	if a, err := netip.ParseAddr(h); err == nil {
		if a.Zone() != "" || a.IsUnspecified() {
			return fmt.Errorf("mtls: host %q: clients do not dial that", h)
		}
		template.IPAddresses = append(template.IPAddresses, net.IP(a.Unmap().AsSlice()))
		return nil
	}
	for label := range strings.SplitSeq(h, ".") {
		if label == "" || len(label) > 63 || strings.Trim(strings.ToLower(label), "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" || label[0] == '-' {
			return fmt.Errorf("mtls: host %q is neither an IP address nor a DNS name (without port, without *)", h)
		}
	}
	if len(h) > 253 {
		return fmt.Errorf("mtls: host %q: a DNS name has at most 253 octets", h)
	}
	template.DNSNames = append(template.DNSNames, h)
	return nil
}

// The files of a CA, in its directory.
const (
	CACert = "ca.crt"
	CAKey  = "ca.key"
)

// FileNames are where the certificate and the key of an identity are in a CA's
// directory: node-n1.crt and node-n1.key.
func FileNames(id Identity) (cert, key string) {
	base := string(id.Role) + "-" + url.PathEscape(id.Name)
	return base + ".crt", base + ".key"
}

// InitCA makes a CA and its directory, mode 0700. It never touches one that is
// there: ErrExists.
func InitCA(dir, name string, lifetime time.Duration) (*CA, error) {
	for _, file := range []string{CACert, CAKey} {
		if _, err := os.Lstat(filepath.Join(dir, file)); !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%w: %s; whoever trusts that CA would trust nobody any more", ErrExists, filepath.Join(dir, file))
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("mtls: %w", err)
	}
	ca, pair, err := NewCA(name, lifetime)
	if err != nil {
		return nil, err
	}
	return ca, pair.Write(filepath.Join(dir, CACert), filepath.Join(dir, CAKey), false)
}

// OpenCA reads the CA of a directory.
func OpenCA(dir string) (*CA, error) {
	certPEM, err := os.ReadFile(filepath.Join(dir, CACert))
	if err != nil {
		return nil, fmt.Errorf("mtls: the CA: %w", err)
	}
	certs, err := Certificates(certPEM)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, CACert), err)
	}
	keyPEM, err := os.ReadFile(filepath.Join(dir, CAKey))
	if err != nil {
		return nil, fmt.Errorf("mtls: the CA's key: %w", err)
	}
	block, _ := pem.Decode(keyPEM)
	if block == nil {
		return nil, fmt.Errorf("mtls: %s: no PEM in it", filepath.Join(dir, CAKey))
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("mtls: %s: %w", filepath.Join(dir, CAKey), err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || !certs[0].IsCA || !key.PublicKey.Equal(certs[0].PublicKey) {
		return nil, fmt.Errorf("mtls: %s: the key in %s is not that of this CA", filepath.Join(dir, CACert), CAKey)
	}
	return &CA{Cert: certs[0], key: key, now: time.Now}, nil
}

// Write puts the pair into two files: the certificate for everybody to read, mode
// 0644, the key for its owner, 0600. Each file is whole at every moment. What is
// there is replaced only if replace says so, else ErrExists and nothing is done;
// what replaces a file takes over its owner and mode, since a service reads it; but
// nobody beyond owner and group ever reads a key.
func (p *Pair) Write(cert, key string, replace bool) error {
	if !replace {
		for _, file := range []string{cert, key} {
			if _, err := os.Lstat(file); !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("%w: %s", ErrExists, file)
			}
		}
	}
	// The key first: a program that reads between the two finds a pair that does
	// not fit and looks again.
	if err := place(key, p.Key, 0o600, replace); err != nil {
		return err
	}
	return place(cert, p.Cert, 0o644, replace)
}

// Replace writes a file of secrets: in the place of what is there, with its owner and
// mode, but for nobody beyond owner and group to read; else for its owner alone. The
// file is whole at every moment, and on the disk when Replace returns.
func Replace(path string, data []byte) error { return place(path, data, 0o600, true) }

// place writes a file beside its place and moves it there when it is on the disk.
func place(path string, data []byte, mode fs.FileMode, replace bool) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return fmt.Errorf("mtls: %s: no file can be made beside it: %w", path, cause(err))
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
			err = fmt.Errorf("mtls: %s: %w", path, cause(err))
		}
	}()
	if old, statErr := os.Stat(path); replace && statErr == nil {
		mode = old.Mode().Perm() & (mode | 0o040)
		if err := keepOwner(f, old); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if replace {
		err = os.Rename(f.Name(), path)
	} else if err = os.Link(f.Name(), path); err == nil { // fails if it is there by now
		err = os.Remove(f.Name())
	}
	if err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// cause is err without the name of the file beside, which nobody has heard of.
func cause(err error) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return e.Err
	}
	if e, ok := errors.AsType[*os.LinkError](err); ok {
		return e.Err
	}
	return err
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
