package mtls

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"net/url"
	"strings"
	"testing"
)

func TestIdentityCheck(t *testing.T) {
	for _, id := range []Identity{{Backend, "be1.example.org"}, {Operator, "carol@example.org"}, {Node, "ünïcode"}, {Frontend, "a%2Fb"}, {Failover, strings.Repeat("x", 255)}, {Node, ".."}} {
		if err := id.Check(); err != nil {
			t.Errorf("%v: %v", id, err)
		}
		if got, err := IdentityOf(&x509.Certificate{URIs: []*url.URL{again(t, id.URI())}}, nil); err != nil || got != id {
			t.Errorf("%v written as %s and read again: %v, %v", id, id.URI(), got, err)
		}
	}
	for _, id := range []Identity{{}, {Backend, ""}, {"root", "x"}, {"", "x"}, {Node, "a b"}, {Node, "a/b"}, {Node, "a\x00"}, {Node, "\xff"}, {Node, "a\u00a0b"}, {Operator, "root@unix"}, {Node, strings.Repeat("x", 256)}} {
		if err := id.Check(); err == nil {
			t.Errorf("%v: no error", id)
		}
	}
}

// again is a URI as a certificate gives it back.
func again(t *testing.T, u *url.URL) *url.URL {
	t.Helper()
	parsed, err := url.Parse(u.String())
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

func TestIdentityOfURI(t *testing.T) {
	for _, uri := range []string{
		"rookery://backend", "rookery://backend/", "rookery://backend/a/b", "rookery://Backend/a", "rookery://u@backend/a", "rookery://backend/a?x", "rookery://backend/a?",
		"rookery://backend/a#f", "rookery:backend/a", "rookery:///a", "rookery://backend:1/a", "rookery://backend/a%00", "rookery://backend/a%2fb", "rookery://operator/x@unix",
	} {
		u, err := url.Parse(uri)
		if err != nil {
			continue
		}
		if id, err := IdentityOf(&x509.Certificate{URIs: []*url.URL{u}}, nil); err == nil {
			t.Errorf("%s: got %v, want an error", uri, id)
		}
	}
}

const testMap = `
# nodes
dns:*.nodes.example.org: node:*
dns:IMAP*.example.org: backend
uri:spiffe://example.org/mail/frontend-*: frontend:fe*
uri:rookery://operator/mallory: none
cn:Mail: Backend 1: backend:be1
email:carol@example.org: operator:carol
ip:2001:db8::7: backend:be7
serial:00:5F:3a: none
cn:HA: failover
`

func TestMap(t *testing.T) {
	m, err := ParseMap([]byte(testMap))
	if err != nil {
		t.Fatal(err)
	}
	uri := func(s string) []*url.URL {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		return []*url.URL{u}
	}
	for _, test := range []struct {
		name string
		cert x509.Certificate
		want Identity
		err  string
	}{
		{"a star in both", x509.Certificate{DNSNames: []string{"x", "N1.nodes.example.org"}}, Identity{Node, "n1"}, ""},
		{"a star is one label", x509.Certificate{DNSNames: []string{"a.b.nodes.example.org"}}, Identity{}, "no identity"},
		{"a star is something", x509.Certificate{DNSNames: []string{".nodes.example.org"}}, Identity{}, "no identity"},
		{"a certificate for many hosts", x509.Certificate{DNSNames: []string{"*.nodes.example.org"}}, Identity{}, "no identity"},
		{"the whole value", x509.Certificate{DNSNames: []string{"imap3.example.org"}}, Identity{Backend, "imap3.example.org"}, ""},
		{"a part of the value", x509.Certificate{URIs: uri("spiffe://example.org/mail/frontend-2")}, Identity{Frontend, "fe2"}, ""},
		{"the end is not the end", x509.Certificate{DNSNames: []string{"imap3.example.org.evil.test"}}, Identity{}, "no identity"},
		{"the beginning is not the beginning", x509.Certificate{URIs: uri("spiffe://evil.test/spiffe://example.org/mail/frontend-2")}, Identity{}, "no identity"},
		{"a colon and blanks in a common name", x509.Certificate{Subject: pkix.Name{CommonName: "Mail: Backend 1"}}, Identity{Backend, "be1"}, ""},
		{"a common name is no host", x509.Certificate{Subject: pkix.Name{CommonName: "n1.nodes.example.org"}}, Identity{}, "no identity"},
		{"email", x509.Certificate{EmailAddresses: []string{"carol@example.org"}}, Identity{Operator, "carol"}, ""},
		{"address", x509.Certificate{IPAddresses: []net.IP{net.ParseIP("2001:db8::7")}}, Identity{Backend, "be7"}, ""},
		{"a line refuses it", x509.Certificate{URIs: uri("rookery://operator/mallory")}, Identity{}, "refuses it"},
		{"a serial number refuses it", x509.Certificate{SerialNumber: big.NewInt(0x5f3a), URIs: uri("rookery://operator/eve")}, Identity{}, "refuses it"},
		{"its own word, where no line fits", x509.Certificate{URIs: uri("rookery://operator/dave")}, Identity{Operator, "dave"}, ""},
		{"the first line holds", x509.Certificate{DNSNames: []string{"n9.nodes.example.org"}, Subject: pkix.Name{CommonName: "HA"}}, Identity{Node, "n9"}, ""},
		{"a name that cannot be", x509.Certificate{URIs: uri("spiffe://example.org/mail/frontend-%00")}, Identity{Frontend, "fe%00"}, ""},
	} {
		if test.cert.SerialNumber == nil {
			test.cert.SerialNumber = big.NewInt(7)
		}
		got, err := IdentityOf(&test.cert, m)
		if got != test.want || test.err == "" && err != nil || test.err != "" && (err == nil || !strings.Contains(err.Error(), test.err)) {
			t.Errorf("%s: got %v, %v; want %v, %q", test.name, got, err, test.want, test.err)
		}
	}
}

func TestParseMapErrors(t *testing.T) {
	for _, test := range []struct{ text, want string }{
		{"dns:x\n", "line 1"},
		{"\n\n# c\nx: node\n", "line 4"},
		{"dns:x:node", "is not KIND"},
		{"host:x: node", "does not begin with one of"},
		{"dns:: node", "the pattern is empty"},
		{"dns: x: root", "is no role"},
		{"dns:x: ", "is not KIND"},
		{"dns:x: node:", "no name behind it"},
		{"dns:x: node:a b", "no name may have"},
		{"dns:x: node:a/b", "no name may have"},
		{"dns:x: operator:root@unix", "kept for"},
		{"dns:*.*: node", "one * is the most"},
		{"dns:x: node:*", "has no *"},
		{"dns:*: node:**", "has no *"},
		{"dns:x: none:y", "none has no name"},
		{"serial:xyz: none", "hexadecimal"},
		{"dns:a: node\ndns:A: backend\n", "line 2: dns:a stands in line 1"},
		{"cn:\xff: node", "not UTF-8"},
		{"cn:" + strings.Repeat("x", maxMap) + ": node", "at most"},
	} {
		if _, err := ParseMap([]byte(test.text)); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%.40q: got %v, want an error with %q", test.text, err, test.want)
		}
	}
}

// Whatever stands in a file: no identity comes of it that is none, and none of a
// certificate that has no name at all.
func FuzzParseMap(f *testing.F) {
	f.Add(testMap, "n1.nodes.example.org")
	f.Add("cn:*: operator:*", "carol")
	f.Add("serial:7: operator", "x")
	f.Fuzz(func(t *testing.T, text, value string) {
		m, err := ParseMap([]byte(text))
		if err != nil {
			return
		}
		cert := &x509.Certificate{SerialNumber: big.NewInt(7), DNSNames: []string{value}, EmailAddresses: []string{value}, Subject: pkix.Name{CommonName: value}}
		id, err := IdentityOf(cert, m)
		if err == nil && id.Check() != nil {
			t.Errorf("%v: %v", id, id.Check())
		}
		if err != nil && id != (Identity{}) {
			t.Errorf("got %v and %v", id, err)
		}
	})
}
