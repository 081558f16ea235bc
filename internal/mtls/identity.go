package mtls

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Role is what the holder of a certificate is.
type Role string

// The roles.
const (
	Backend  Role = "backend"
	Frontend Role = "frontend"
	Failover Role = "failover"
	Operator Role = "operator"
	Node     Role = "node"
)

// Roles lists all of them.
func Roles() []Role { return []Role{Backend, Frontend, Failover, Operator, Node} }

// Identity is who the holder of a certificate is. The zero value is nobody.
type Identity struct {
	Role Role
	Name string
}

// String is how people are told: "backend be1.example.org".
func (id Identity) String() string {
	if id == (Identity{}) {
		return "nobody"
	}
	return string(id.Role) + " " + id.Name
}

// scheme begins the URI that states an identity.
const scheme = "rookery"

// URI is how a certificate states the identity: rookery://backend/be1.example.org.
func (id Identity) URI() *url.URL {
	return &url.URL{Scheme: scheme, Host: string(id.Role), Path: "/" + id.Name}
}

// maxName bounds a name, in octets.
const maxName = 255

// Check says what is wrong with an identity.
//
// A name is 1 to 255 octets of UTF-8 without blanks, control characters and "/".
// Names that end in "@unix" are those of who comes through a node's own socket
// (see [Socket]); no certificate may have one.
func (id Identity) Check() error {
	switch {
	case !slices.Contains(Roles(), id.Role):
		return fmt.Errorf("mtls: %q is no role: it is backend, frontend, failover, operator or node", id.Role)
	case id.Name == "" || len(id.Name) > maxName:
		return fmt.Errorf("mtls: a name has 1 to %d octets, this one %d", maxName, len(id.Name))
	case !utf8.ValidString(id.Name) || strings.ContainsFunc(id.Name, func(r rune) bool { return r == '/' || !unicode.IsGraphic(r) || unicode.IsSpace(r) }):
		return fmt.Errorf("mtls: the name %q has a character that no name may have: a blank, a control character or \"/\"", id.Name)
	case strings.HasSuffix(id.Name, socketSuffix):
		return fmt.Errorf("mtls: the name %q is kept for who comes through a unix socket", id.Name)
	}
	return nil
}

// parseURI reads what URI writes.
func parseURI(u *url.URL) (Identity, error) {
	name, ok := strings.CutPrefix(u.Path, "/")
	if !ok || u.Opaque != "" || u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" {
		return Identity{}, fmt.Errorf("mtls: %q is not rookery://ROLE/NAME", u)
	}
	id := Identity{Role(u.Host), name}
	if err := id.Check(); err != nil {
		return Identity{}, fmt.Errorf("%q: %w", u, err)
	}
	return id, nil
}

// errNoIdentity: a certificate does not say who its holder is.
var errNoIdentity = errors.New("mtls: it has no identity: no URI rookery://ROLE/NAME, and no line of a --cert-map names it")

// IdentityOf reads who the holder of a certificate is. m, which may be nil, is
// asked first: what an operator has written down beats what a CA has signed.
func IdentityOf(cert *x509.Certificate, m *Map) (Identity, error) {
	if id, found, err := m.find(cert); found || err != nil {
		return id, err
	}
	var own []*url.URL
	for _, u := range cert.URIs {
		if u.Scheme == scheme {
			own = append(own, u)
		}
	}
	switch len(own) {
	case 0:
		return Identity{}, errNoIdentity
	case 1:
		return parseURI(own[0])
	}
	return Identity{}, fmt.Errorf("mtls: it has %d identities, %q and %q: one is wanted", len(own), own[0], own[1])
}

// describe names a certificate in a log line or an error.
func describe(cert *x509.Certificate) string {
	if cert == nil {
		return "no certificate"
	}
	return fmt.Sprintf("%s, serial %x", subject(cert), cert.SerialNumber)
}

// subject is what people call the certificate by: its subject, else its first name.
func subject(cert *x509.Certificate) string {
	switch {
	case cert.Subject.String() != "":
		return cert.Subject.String()
	case len(cert.URIs) > 0:
		return cert.URIs[0].String()
	case len(cert.DNSNames) > 0:
		return cert.DNSNames[0]
	}
	return "(no subject)"
}
