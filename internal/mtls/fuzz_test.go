package mtls

import (
	"crypto/x509"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// FuzzURI: a URI of a certificate names one identity, which states itself by a URI
// of the same meaning; or none.
func FuzzURI(f *testing.F) {
	for _, s := range []string{"rookery://backend/be1.example.org", "rookery://node/n1", "rookery://operator/a@unix", "rookery:operator", "rookery://backend/a%2Fb", "rookery://u@node/n1?x#y", "http://backend/x", "rookery://NODE/n1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		u, err := url.Parse(text)
		if err != nil {
			return
		}
		id, err := parseURI(u)
		if err != nil {
			if id != (Identity{}) {
				t.Errorf("%q: got %v and %v", text, id, err)
			}
			return
		}
		if id.Check() != nil {
			t.Errorf("%q: %v, which is no identity: %v", text, id, id.Check())
		}
		again, err := parseURI(id.URI())
		if err != nil || again != id {
			t.Errorf("%q: %v, written as %q is %v, %v", text, id, id.URI(), again, err)
		}
		// What a certificate carries is text: it must survive that too.
		written, err := url.Parse(id.URI().String())
		if err != nil {
			t.Fatal(err)
		}
		if again, err := parseURI(written); err != nil || again != id {
			t.Errorf("%q: %v, written as %q and read is %v, %v", text, id, written, again, err)
		}
	})
}

// FuzzFiles gives the files of a certificate, a key and a CA. They are taken whole
// or not at all, and a CA's directory likewise; an error does not hold the key.
func FuzzFiles(f *testing.F) {
	dir := f.TempDir()
	ca, err := InitCA(dir, "fuzz", 24*time.Hour)
	if err != nil {
		f.Fatal(err)
	}
	pair, err := ca.Issue(Request{Identity: Identity{Node, "n1"}, Lifetime: time.Hour, Hosts: []string{"127.0.0.1"}})
	if err != nil {
		f.Fatal(err)
	}
	caPEM, err := os.ReadFile(filepath.Join(dir, CACert))
	if err != nil {
		f.Fatal(err)
	}
	caKey, err := os.ReadFile(filepath.Join(dir, CAKey))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(pair.Cert, pair.Key, caPEM)
	f.Add(caPEM, caKey, caPEM)
	f.Add(pair.Cert, caKey, caPEM)
	f.Add(pair.Cert[:200], pair.Key, []byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"))
	f.Add([]byte{}, []byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"), append(caPEM, caPEM...))
	f.Fuzz(func(t *testing.T, cert, key, ca []byte) {
		dir := t.TempDir()
		p := Paths{Cert: filepath.Join(dir, "c"), Key: filepath.Join(dir, "k"), CA: filepath.Join(dir, "ca")}
		if err := errors.Join(os.WriteFile(p.Cert, cert, 0o600), os.WriteFile(p.Key, key, 0o600), os.WriteFile(p.CA, ca, 0o600)); err != nil {
			t.Fatal(err)
		}
		files, err := Load(p, nil, nil)
		if err == nil {
			if files.Leaf() == nil || files.Identity().Check() != nil {
				t.Errorf("taken, with the identity %v", files.Identity())
			}
		} else if len(key) > 40 && strings.Contains(err.Error(), string(key)) {
			t.Error("an error tells the key")
		}
		if err := errors.Join(os.WriteFile(filepath.Join(dir, CACert), ca, 0o600), os.WriteFile(filepath.Join(dir, CAKey), key, 0o600)); err != nil {
			t.Fatal(err)
		}
		if ca, err := OpenCA(dir); err == nil && !ca.Cert.IsCA {
			t.Error("opened as a CA, which it is not")
		}
		certs, err := Certificates(cert)
		if err == nil && len(certs) == 0 {
			t.Error("no certificate and no error")
		}
		for _, c := range certs {
			if id, err := IdentityOf(c, nil); err == nil && id.Check() != nil || err != nil && id != (Identity{}) {
				t.Errorf("%s is %v, %v", describe(c), id, err)
			}
		}
		if c, err := x509.ParseCertificate(cert); err == nil {
			describe(c)
		}
	})
}
