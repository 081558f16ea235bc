package mtls

import (
	"crypto/tls"
	"crypto/x509"
)

// StartTLS is the server's side of a protocol whose clients log in by other means, and
// may have no certificate, or one of another CA: Named says whether it tells who they are.
func StartTLS(f *Files) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		ClientAuth: tls.RequestClientCert,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return &f.current().cert, nil
		},
	}
}

// Named says whose certificate a connection showed; false if it showed none, or one
// that is not of our CA or names nobody.
func (f *Files) Named(s tls.ConnectionState) (Identity, bool) {
	if len(s.PeerCertificates) == 0 {
		return Identity{}, false
	}
	m := f.current()
	between := x509.NewCertPool()
	for _, c := range s.PeerCertificates[1:] {
		between.AddCert(c)
	}
	cert := s.PeerCertificates[0]
	if m.verify(cert, between, f.now(), x509.ExtKeyUsageClientAuth) != nil {
		return Identity{}, false
	}
	id, err := m.identify(cert, nil)
	return id, err == nil
}
