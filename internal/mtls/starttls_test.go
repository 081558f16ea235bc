package mtls

import (
	"cmp"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// sub makes a CA that by has signed (nil: itself), and which may sign others.
func (p *pki) sub(name string, by *CA, change func(*x509.Certificate)) *CA {
	p.t.Helper()
	pair := p.bent(by, func(c *x509.Certificate) {
		c.Subject.CommonName, c.URIs, c.IPAddresses, c.ExtKeyUsage, c.IsCA, c.BasicConstraintsValid = name, nil, nil, nil, true, true
		change(c)
	})
	block, _ := pem.Decode(pair.Key)
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		p.t.Fatal(err)
	}
	return &CA{Cert: pair.Leaf, key: key.(*ecdsa.PrivateKey)}
}

// A certificate of our CA binds, or ends the connection; one that names nobody, or is of
// another CA, does neither, whatever its dates are. All but the first are told.
func TestHolder(t *testing.T) {
	p, other := newPKI(t), newPKI(t)
	paths := p.issue(Identity{Node, "n1"}, loopback...)
	paths.Map = filepath.Join(p.dir, "map")
	if err := os.WriteFile(paths.Map, []byte("cn:lost: none\ncn:imap*: frontend\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	be1 := []*url.URL{Identity{Backend, "be1"}.URI()}
	ended := func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }
	early := func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }
	as := func(uris ...*url.URL) func(*x509.Certificate) { return func(c *x509.Certificate) { c.URIs = uris } }
	called := func(name string) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.Subject.CommonName = name }
	}
	good := func(*x509.Certificate) {}
	root, otherRoot := p.sub("Root", nil, good), p.sub("Other Root", nil, good)
	ours, endedSub := p.sub("Sub", root, good), p.sub("Sub", root, ended)
	theirs, theirEndedSub := p.sub("Sub", otherRoot, good), p.sub("Sub", otherRoot, ended)
	cas, err := os.ReadFile(paths.CA)
	if err != nil {
		t.Fatal(err)
	}
	paths.CA = filepath.Join(p.dir, "cas")
	if err := os.WriteFile(paths.CA, append(cas, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Cert.Raw})...), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		what    string
		by      *CA
		change  func(*x509.Certificate)
		between []*CA
		name    string
		reason  Reason // of the error; empty: none
		told    string // of one that is as none
		level   string // at which; empty: INFO
	}{
		{what: "a backend", by: p.ca, change: good, name: "be1"},
		{what: "a backend, by another that the CA has signed", by: ours, change: good, between: []*CA{ours}, name: "be1"},
		{what: "a frontend", by: p.ca, change: as(Identity{Frontend, "fe1"}.URI())},
		{what: "a frontend by the map", by: p.ca, change: called("imap1")},
		{what: "an operator", by: p.ca, change: as(Identity{Operator, "carol"}.URI())},
		{what: "it has ended", by: p.ca, change: ended, reason: Expired},
		{what: "it is not valid yet", by: p.ca, change: early, reason: NotYetValid},
		{what: "it has ended, by another", by: ours, change: ended, between: []*CA{ours}, reason: Expired},
		{what: "the one between has ended", by: endedSub, change: good, between: []*CA{endedSub}, reason: Expired},
		{what: "the map refuses it", by: p.ca, change: called("lost"), reason: NoIdentity},
		{what: "it is nobody's", by: p.ca, change: as(), told: "reason=no-identity", level: "WARN"},
		{what: "a node", by: p.ca, change: as(Identity{Node, "n1"}.URI()), reason: WrongRole},
		{what: "a failover tool", by: p.ca, change: as(Identity{Failover, "patroller"}.URI()), reason: WrongRole},
		{what: "made for servers", by: p.ca, change: func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }, told: "reason=wrong-usage", level: "WARN"},
		{what: "another CA's", by: other.ca, change: good, told: "reason=unknown-ca"},
		{what: "another CA's that has ended", by: other.ca, change: ended, told: "reason=unknown-ca"},
		{what: "another CA's, not valid yet", by: other.ca, change: early, told: "reason=unknown-ca"},
		{what: "another CA's, by another", by: theirs, change: good, between: []*CA{theirs, otherRoot}, told: "reason=unknown-ca"},
		{what: "another CA's, by another that has ended", by: theirEndedSub, change: good, between: []*CA{theirEndedSub, otherRoot}, told: "reason=unknown-ca"},
		{what: "its own", change: good, told: "reason=self-signed"},
		{what: "its own that has ended", change: ended, told: "reason=self-signed"},
	} {
		t.Run(test.what, func(t *testing.T) {
			chain := []*x509.Certificate{p.bent(test.by, func(c *x509.Certificate) { c.URIs = be1; test.change(c) }).Leaf}
			for _, ca := range test.between {
				chain = append(chain, ca.Cert)
			}
			var log logged
			holder, from := load(t, paths).Holder("mupdate", log.logger()), &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 1}
			for range 3 { // Cyrus connects for every command
				name, err := holder(tls.ConnectionState{PeerCertificates: chain}, from)
				r, refused := errors.AsType[*Refusal](err)
				if name != test.name || refused != (test.reason != "") || refused && r.Reason != test.reason {
					t.Errorf("got %q, %v, want %q and the reason %q", name, err, test.name, test.reason)
				}
			}
			want := ""
			switch {
			case test.reason != "":
				want = `level=WARN msg="connection refused" proto=mupdate addr=192.0.2.1:1 reason=` + string(test.reason)
			case test.told != "":
				want = `level=` + cmp.Or(test.level, "INFO") + ` msg="the certificate binds nobody" proto=mupdate addr=192.0.2.1:1 ` + test.told
			}
			if got := log.String(); want == "" && got != "" || want != "" && (strings.Count(got, "\n") != 1 || !strings.Contains(got, want)) {
				t.Errorf("the log says %q, want %q once", got, want)
			}
			if may := "only a backend or a frontend or an operator may"; test.reason == WrongRole && !strings.Contains(log.String(), may) {
				t.Errorf("the log says %q, want %q", &log, may)
			}
		})
	}
	if name, err := load(t, paths).Holder("mupdate", nil)(tls.ConnectionState{}, nil); name != "" || err != nil {
		t.Errorf("no certificate: got %q, %v", name, err)
	}
}
