package mtls

import (
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestCAFiles(t *testing.T) {
	p := newPKI(t)
	mode := func(name string) string {
		info, err := os.Stat(filepath.Join(p.dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return info.Mode().String()
	}
	p.issue(Identity{Backend, "be1"})
	for name, want := range map[string]string{".": "drwx------", CACert: "-rw-r--r--", CAKey: "-rw-------", "backend-be1.crt": "-rw-r--r--", "backend-be1.key": "-rw-------"} {
		if got := mode(name); got != want {
			t.Errorf("%s: got %s, want %s", name, got, want)
		}
	}
	// Nothing is overwritten unasked, and nothing is left behind.
	before, err := os.ReadFile(filepath.Join(p.dir, CAKey))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := InitCA(p.dir, "", 0); !errors.Is(err, ErrExists) {
		t.Errorf("a second CA: got %v, want ErrExists", err)
	}
	pair, err := p.ca.Issue(Request{Identity: Identity{Backend, "be1"}})
	if err != nil {
		t.Fatal(err)
	}
	cert, key := filepath.Join(p.dir, "backend-be1.crt"), filepath.Join(p.dir, "backend-be1.key")
	if err := pair.Write(cert, key, false); !errors.Is(err, ErrExists) {
		t.Errorf("a second certificate: got %v, want ErrExists", err)
	}
	if after, err := os.ReadFile(filepath.Join(p.dir, CAKey)); err != nil || string(after) != string(before) {
		t.Errorf("the CA's key was touched, %v", err)
	}
	// A renewed key keeps the group that reads it.
	for file, was := range map[string]os.FileMode{key: 0o640, cert: 0o666} {
		if err := os.Chmod(file, was); err != nil {
			t.Fatal(err)
		}
	}
	if err := pair.Write(cert, key, true); err != nil {
		t.Fatal(err)
	}
	if got := mode("backend-be1.key"); got != "-rw-r-----" {
		t.Errorf("a renewed key: got %s, want the group to read it still", got)
	}
	if got := mode("backend-be1.crt"); got != "-rw-r--r--" {
		t.Errorf("a renewed certificate: got %s, want that others cannot write it", got)
	}
	files, err := os.ReadDir(p.dir)
	if err != nil || len(files) != 4 {
		t.Errorf("got %v, %v; want four files", files, err)
	}
	again, err := OpenCA(p.dir)
	if err != nil || !again.Cert.Equal(p.ca.Cert) {
		t.Fatalf("opened again: %v", err)
	}
	other := newPKI(t)
	if err := os.Rename(filepath.Join(other.dir, CAKey), filepath.Join(p.dir, CAKey)); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenCA(p.dir); err == nil || !strings.Contains(err.Error(), "is not that of this CA") {
		t.Errorf("with the key of another: got %v", err)
	}
}

func TestIssue(t *testing.T) {
	ca, _, err := NewCA("Test CA", 0)
	if err != nil {
		t.Fatal(err)
	}
	serials, ends := make(map[string]bool), make(map[int64]bool)
	for range 20 {
		pair, err := ca.Issue(Request{Identity: Identity{Node, "n1"}, Hosts: []string{"n1.example.org", "10.0.0.1", "2001:db8::1"}, Lifetime: 1000 * time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		c := pair.Leaf
		left := time.Until(c.NotAfter)
		if left > 1000*time.Hour || left < 899*time.Hour {
			t.Errorf("it ends in %v, want 900 to 1000 hours", left)
		}
		if err := c.CheckSignatureFrom(ca.Cert); err != nil {
			t.Error(err)
		}
		if c.IsCA || len(c.DNSNames) != 1 || len(c.IPAddresses) != 2 || len(c.SerialNumber.Bytes()) < 15 || c.SignatureAlgorithm != x509.ECDSAWithSHA256 || c.NotBefore.After(time.Now()) {
			t.Errorf("got %+v", c)
		}
		serials[c.SerialNumber.String()], ends[c.NotAfter.Unix()] = true, true
	}
	if len(serials) != 20 || len(ends) < 15 {
		t.Errorf("%d serial numbers and %d ends of 20 certificates", len(serials), len(ends))
	}
	for _, r := range []Request{
		{Identity: Identity{Backend, "be1"}, Hosts: []string{"be1"}},
		{Identity: Identity{"root", "x"}},
		{Identity: Identity{Node, ""}},
		{Identity: Identity{Node, "n1"}, Hosts: []string{"10.0.0.1:7905"}},
		{Identity: Identity{Node, "n1"}, Hosts: []string{"*.example.org"}},
		{Identity: Identity{Node, "n1"}, Hosts: []string{"a..b"}},
		{Identity: Identity{Node, "n1"}, Hosts: []string{"0.0.0.0"}},
		{Identity: Identity{Node, "n1"}, Hosts: []string{"fe80::1%eth0"}},
		{Identity: Identity{Node, "n1"}, Hosts: []string{""}},
	} {
		if _, err := ca.Issue(r); err == nil {
			t.Errorf("%+v: no error", r)
		}
	}
	// No certificate outlives its CA.
	short, _, err := NewCA("", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := short.Issue(Request{Identity: Identity{Operator, "carol"}})
	if err != nil || !pair.Leaf.NotAfter.Equal(short.Cert.NotAfter) {
		t.Errorf("it ends at %v, the CA at %v: %v", pair.Leaf.NotAfter, short.Cert.NotAfter, err)
	}
	short.now = func() time.Time { return time.Now().Add(2 * time.Hour) }
	if _, err := short.Issue(Request{Identity: Identity{Operator, "carol"}}); err == nil || !strings.Contains(err.Error(), "has expired") {
		t.Errorf("of a CA that has expired: got %v", err)
	}
}
