package mtls

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Reason is a refusal in one word, for logs that programs read.
type Reason string

// The reasons.
const (
	Expired       Reason = "expired"
	NotYetValid   Reason = "not-yet-valid"
	UnknownCA     Reason = "unknown-ca"
	SelfSigned    Reason = "self-signed"
	WrongUsage    Reason = "wrong-usage" // the CA has not made it for that
	BadCert       Reason = "bad-certificate"
	NoCertificate Reason = "no-certificate"
	NoIdentity    Reason = "no-identity" // or one that makes no sense
	WrongRole     Reason = "wrong-role"
	WrongName     Reason = "wrong-name" // another node than expected
	WrongHost     Reason = "wrong-host" // it does not name the host dialed
	PlainText     Reason = "plain-text" // where TLS is spoken
	SpeaksTLS     Reason = "tls"        // where plain text is spoken
	OldTLS        Reason = "old-tls"    // earlier than 1.3, or without gRPC's HTTP/2
	RefusedByPeer Reason = "refused-by-peer"
	TooSlow       Reason = "too-slow"
	TooMany       Reason = "too-many"
	WrongUser     Reason = "wrong-user" // of a unix socket
	Gone          Reason = "gone"       // it hung up
	Failed        Reason = "failed"
)

// Refusal is why a connection did not come to be. Its text is for operators: what
// is wrong, with which certificate, and what may be done.
type Refusal struct {
	Reason Reason
	Cert   *x509.Certificate // the one that is wrong; nil if there is none
	Text   string
	Err    error // what it came from; may be nil
}

func (r *Refusal) Error() string { return "mtls: " + r.Text }

func (r *Refusal) Unwrap() error { return r.Err }

// refuse makes a Refusal.
func refuse(reason Reason, cert *x509.Certificate, err error, format string, args ...any) *Refusal {
	return &Refusal{Reason: reason, Cert: cert, Text: fmt.Sprintf(format, args...), Err: err}
}

// distrust says why a certificate is not believed. err is what its verification
// came to.
func (m *material) distrust(cert *x509.Certificate, err error, now time.Time) *Refusal {
	var invalid x509.CertificateInvalidError
	var host x509.HostnameError
	var unknown x509.UnknownAuthorityError
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		wrong, which := cert, "the certificate"
		if invalid.Cert != nil && !invalid.Cert.Equal(cert) {
			wrong, which = invalid.Cert, "the CA certificate"
		}
		if now.Before(wrong.NotBefore) {
			return refuse(NotYetValid, cert, err, "%s (%s) is not valid before %s; here it is %s: is a clock wrong?",
				which, describe(wrong), wrong.NotBefore.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
		}
		return refuse(Expired, cert, err, "%s (%s) has expired at %s: renew it", which, describe(wrong), wrong.NotAfter.UTC().Format(time.RFC3339))
	case errors.As(err, &invalid) && invalid.Reason == x509.IncompatibleUsage:
		return refuse(WrongUsage, cert, err, "the certificate (%s) was not made for this side of a connection: its CA allows another use only (extended key usage)", describe(cert))
	case errors.As(err, &host):
		return refuse(WrongHost, cert, err, "the certificate (%s) names %s and not %s: another machine, or --host was forgotten when it was made",
			describe(cert), hostsOf(cert), host.Host)
	case errors.As(err, &unknown):
		switch {
		case bytes.Equal(cert.RawIssuer, cert.RawSubject) && cert.CheckSignature(cert.SignatureAlgorithm, cert.RawTBSCertificate, cert.Signature) == nil:
			return refuse(SelfSigned, cert, err, "the certificate (%s) is self-signed: no CA stands behind it", describe(cert))
		case slices.ContainsFunc(m.cas, func(ca *x509.Certificate) bool { return bytes.Equal(ca.RawSubject, cert.RawIssuer) }):
			return refuse(UnknownCA, cert, err, "the certificate (%s) was signed by another CA that has the same name, %s, as the one trusted here", describe(cert), cert.Issuer)
		}
		return refuse(UnknownCA, cert, err, "the certificate (%s) was signed by %s; trusted here: %s", describe(cert), cert.Issuer, m.trusted())
	}
	return refuse(BadCert, cert, err, "the certificate (%s): %v", describe(cert), err)
}

// trusted names the CAs.
func (m *material) trusted() string {
	var names []string
	for _, ca := range m.cas {
		names = append(names, subject(ca))
	}
	return strings.Join(names, "; ")
}

// hostsOf names what a certificate may be dialed by.
func hostsOf(cert *x509.Certificate) string {
	hosts := slices.Clone(cert.DNSNames)
	for _, ip := range cert.IPAddresses {
		hosts = append(hosts, ip.String())
	}
	if len(hosts) == 0 {
		return "no host"
	}
	return strings.Join(hosts, ", ")
}

// verify checks a certificate's signature, dates and usage.
func (m *material) verify(cert *x509.Certificate, between *x509.CertPool, now time.Time, usage x509.ExtKeyUsage) error {
	_, err := cert.Verify(x509.VerifyOptions{Roots: m.pool, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage}})
	if err != nil {
		return m.distrust(cert, err, now)
	}
	return nil
}

// identify reads who the peer is, whose certificate is believed already, and
// checks its role. No roles: any.
func (m *material) identify(cert *x509.Certificate, roles []Role) (Identity, error) {
	id, err := IdentityOf(cert, m.ids)
	if err != nil {
		return id, refuse(NoIdentity, cert, err, "the certificate (%s): %s", describe(cert), strings.ReplaceAll(err.Error(), "mtls: ", ""))
	}
	if len(roles) > 0 && !slices.Contains(roles, id.Role) {
		return id, refuse(WrongRole, cert, nil, "the certificate (%s) is that of %s; only %s may be at that end", describe(cert), id, rolesWords(roles))
	}
	return id, nil
}

func rolesWords(roles []Role) string {
	var words []string
	for _, r := range roles {
		article := "a "
		if r == Operator {
			article = "an "
		}
		words = append(words, article+string(r))
	}
	return strings.Join(words, " or ")
}

// explain turns what a handshake ended with into a Refusal. server tells which
// end we are.
func (m *material) explain(err error, server bool, now time.Time) *Refusal {
	if r, ok := errors.AsType[*Refusal](err); ok {
		return r
	}
	if v, ok := errors.AsType[*tls.CertificateVerificationError](err); ok && len(v.UnverifiedCertificates) > 0 {
		return m.distrust(v.UnverifiedCertificates[0], v.Err, now)
	}
	if head, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		if server {
			return refuse(PlainText, nil, err, "plain text%s where TLS is spoken: the client was given no certificate", spoken(head.RecordHeader[:]))
		}
		return refuse(PlainText, nil, err, "the node speaks plain text there, not TLS: it was started without certificates, or that is another port")
	}
	if r := alerted(m.cert.Leaf, err, server); r != nil {
		return r
	}
	text := err.Error()
	switch {
	case errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded):
		return refuse(TooSlow, nil, err, "the handshake did not end in time")
	case hungUp(err):
		if server {
			return refuse(Gone, nil, err, "it hung up during the handshake")
		}
		return refuse(Gone, nil, err, "the node hung up during the handshake: it speaks plain text there, or is closing")
	case strings.Contains(text, "didn't provide a certificate"):
		return refuse(NoCertificate, nil, err, "the client sent no certificate: it needs --tls-cert and --tls-key")
	case strings.Contains(text, "unsupported versions") || strings.Contains(text, "protocol version"):
		return refuse(OldTLS, nil, err, "no TLS 1.3 at the other end: %s", strings.TrimPrefix(text, "tls: "))
	}
	return refuse(Failed, nil, err, "the handshake failed: %s", strings.TrimPrefix(text, "tls: "))
}

// spoken guesses from its first octets what protocol it is.
func spoken(begin []byte) string {
	switch {
	case bytes.HasPrefix(begin, []byte("PRI ")):
		return " (gRPC)"
	case bytes.HasPrefix(begin, []byte("GET ")), bytes.HasPrefix(begin, []byte("HEAD ")), bytes.HasPrefix(begin, []byte("POST")):
		return " (HTTP)"
	}
	return ""
}

// alerted explains what the other end says is wrong with us; nil if it says
// nothing. own is our certificate.
func alerted(own *x509.Certificate, err error, server bool) *Refusal {
	op, ok := errors.AsType[*net.OpError](err)
	if !ok || op.Op != "remote error" {
		return nil
	}
	who := "the node"
	if server {
		who = "the client"
	}
	alert := strings.TrimPrefix(op.Err.Error(), "tls: ")
	for _, known := range []struct{ alert, words string }{
		{"certificate required", "sends no answer without a certificate: --tls-cert and --tls-key are missing"},
		{"expired certificate", "says that this certificate has expired, or is not valid yet"},
		{"unknown certificate authority", "does not trust the CA of this certificate"},
		{"bad certificate", "does not take this certificate: wrong role, name, host or CA, or refused by the map; its log says which"},
		{"protocol version not supported", "speaks no TLS 1.3"},
		{"unexpected message", "speaks plain text there, not TLS"},
	} {
		if strings.Contains(alert, known.alert) {
			return refuse(RefusedByPeer, own, err, "%s %s (%s)", who, known.words, describe(own))
		}
	}
	return refuse(RefusedByPeer, own, err, "%s ended the handshake: %s (%s)", who, alert, describe(own))
}

// hungUp reports whether err says that the connection is no more.
func hungUp(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, context.Canceled)
}
