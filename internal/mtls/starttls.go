package mtls

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"slices"
	"time"
)

// StartTLS is the server's side of a protocol whose clients log in by other means, and
// may have no certificate, or one of another CA: Holder says whom it binds them to.
func StartTLS(f *Files) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		ClientAuth: tls.RequestClientCert,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return &f.current().cert, nil
		},
	}
}

// mayStart are the roles whose holders have something to ask in such a protocol.
var mayStart = []Role{Backend, Frontend, Operator}

// strangerEvery is how often it is told of the same host, at most, that its certificate
// binds nobody: that may be meant so.
const strangerEvery = 24 * time.Hour

// Holder returns what names the backend whose certificate a connection of proto showed,
// from addr; empty if it showed none, or that of a frontend or an operator.
//
// One of our CA that names somebody and does not hold is an error, and logged as a
// refusal: it has ended, say, the map refuses it, or its role has nothing to ask there.
// Its login would else be bound to nobody, and nobody would notice. One of another CA
// is as none, and so is one of ours that names nobody or was made for servers, for hosts
// have certificates of many kinds; that is told once a day.
func (f *Files) Holder(proto string, log *slog.Logger) func(s tls.ConnectionState, addr net.Addr) (string, error) {
	refused, strangers := newComplaints(log, proto), newComplaints(log, proto)
	strangers.every = strangerEvery
	return func(s tls.ConnectionState, addr net.Addr) (string, error) {
		if len(s.PeerCertificates) == 0 {
			return "", nil
		}
		id, r := f.current().holder(s.PeerCertificates, f.now())
		switch {
		case r == nil && id.Role == Backend:
			return id.Name, nil
		case r == nil:
			return "", nil
		case r.Reason == UnknownCA || r.Reason == SelfSigned:
			strangers.note(slog.LevelInfo, "the certificate binds nobody", addr, r, f.now())
			return "", nil
		case errors.Is(r, errNoIdentity) || r.Reason == WrongUsage:
			strangers.note(slog.LevelWarn, "the certificate binds nobody", addr, r, f.now())
			return "", nil
		}
		refused.tell("connection refused", addr, r, f.now())
		return "", r
	}
}

// holder says whose certificate the first of chain is.
func (m *material) holder(chain []*x509.Certificate, now time.Time) (Identity, *Refusal) {
	cert, between := chain[0], x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	err := m.verify(cert, between, now, x509.ExtKeyUsageClientAuth)
	if err != nil && !m.behind(chain) {
		// Dates are looked at before the CA is: those of a stranger's are its own matter.
		return Identity{}, m.distrust(cert, x509.UnknownAuthorityError{Cert: cert}, now)
	}
	id := Identity{}
	if err == nil {
		id, err = m.identify(cert, mayStart)
	}
	r, _ := errors.AsType[*Refusal](err)
	return id, r
}

// maxBetween bounds the certificates between one and its CA.
const maxBetween = 8

// behind reports whether one of our CAs stands behind the first of chain, whatever the
// dates and the usages are.
func (m *material) behind(chain []*x509.Certificate) bool {
	cert := chain[0]
	signed := func(by *x509.Certificate) bool {
		return bytes.Equal(by.RawSubject, cert.RawIssuer) && cert.CheckSignatureFrom(by) == nil
	}
	for range 1 + maxBetween {
		if slices.ContainsFunc(m.cas, signed) {
			return true
		}
		i := slices.IndexFunc(chain[1:], signed)
		if i < 0 {
			return false
		}
		cert = chain[1+i]
	}
	return false
}
