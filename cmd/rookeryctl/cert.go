package main

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/rookery-mail/rookery/internal/mtls"
)

// days is a flag for long times: 365d, 30d, 12h.
type days time.Duration

func (d *days) Set(s string) error {
	v, err := parseDays(s)
	if err == nil {
		*d = days(v)
	}
	return err
}

func (d *days) Type() string { return "duration" }

func (d *days) String() string {
	if v := time.Duration(*d); v%(24*time.Hour) != 0 || v == 0 {
		return v.String()
	}
	return strconv.Itoa(int(time.Duration(*d).Hours()/24)) + "d"
}

// maxDays is more than any certificate should live.
const maxDays = 100 * 366

// parseDays reads a number of days, or what Go calls a duration.
func parseDays(s string) (time.Duration, error) {
	if number, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.ParseUint(number, 10, 32)
		if err != nil || n > maxDays {
			return 0, fmt.Errorf("%q is no number of days up to %d", s, maxDays)
		}
		return time.Duration(n) * 24 * time.Hour, nil
	}
	v, err := time.ParseDuration(s)
	if err != nil || v < 0 || v > maxDays*24*time.Hour {
		return 0, fmt.Errorf("%q is no time, as 365d or 12h", s)
	}
	return v, nil
}

func (a *app) certCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cert",
		Short: "make and look at certificates: who may do what",
		Long: `Makes a private CA and the certificates of whoever talks to the directory, and shows
certificates. No node is asked: it works on files, on a machine that is no node's if
need be. The CA's key, ca.key, is what everything hangs on: it is needed only when
certificates are made, and is better kept where no node is.

What a certificate is for stands in it as a URI, rookery://ROLE/NAME:

  node        a node: its name is that of rookeryd --name
  backend     an IMAP server that states what it holds: its name is its servername,
              and it speaks for itself alone
  frontend    what reads: proxies, MX, nginx
  failover    tooling that holds and moves primaries
  operator    a person or a program that may do everything

A certificate of a CA that the site has already is as good, if it has that URI, or if
rookeryd's --cert-map says who it is.`,
		Example: `  rookeryctl cert ca --dir pki
  rookeryctl cert node n1 --dir pki --host 10.0.0.1 --host n1.example.org
  rookeryctl cert backend be1.example.org --dir pki
  rookeryctl cert operator carol --dir pki
  rookeryctl cert show pki/*.crt`,
		Args: mustNameArgs,
		RunE: mustName,
	}
	cmd.AddCommand(a.certCACmd())
	for _, r := range []struct {
		role  mtls.Role
		short string
		long  string
		name  string
	}{
		{mtls.Node, "make a node's certificate", `Makes the certificate of the node NAME, which is that of rookeryd --name. It is good for
both directions: to take connections and to talk to other nodes. --host names what it is
dialed by, as often as it has addresses and names; the names of loopback are always in
it, so that programs beside the node can ask it.`, "n1"},
		{mtls.Backend, "make a backend's certificate", `Makes the certificate of the backend NAME: the servername that it is known by in the
directory, letter by letter. It reads everything and states its own facts alone.`, "be1.example.org"},
		{mtls.Frontend, "make a frontend's certificate", `Makes the certificate of the frontend NAME, any name that tells it from others: what asks
where mailboxes are and what users see, and keeps subscriptions.`, "imap1.example.org"},
		{mtls.Operator, "make an operator's certificate", `Makes the certificate of the operator NAME, a person or a program. It may do everything,
and the name stands beside what it did.`, "carol"},
		{mtls.Failover, "make the certificate of failover tooling", `Makes the certificate of the tool NAME that moves primaries when a backend fails: it
reads, holds and switches over, and nothing else.`, "patroller"},
	} {
		cmd.AddCommand(a.certIssueCmd(r.role, r.short, r.long, r.name))
	}
	cmd.AddCommand(a.certShowCmd())
	return cmd
}

// mustNameArgs leaves the complaint to mustName.
func mustNameArgs(*cobra.Command, []string) error { return nil }

func (a *app) certCACmd() *cobra.Command {
	var dir, name string
	lifetime := days(mtls.CALifetime)
	cmd := &cobra.Command{
		Use:   "ca --dir DIRECTORY",
		Short: "make a CA",
		Long: `Makes a CA: DIRECTORY, which nobody else can read, with ca.crt, which every program gets
as --tls-ca, and ca.key, which signs. A CA that is there is never touched.`,
		Example: `  rookeryctl cert ca --dir pki
  rookeryctl cert ca --dir pki --name "Example mail CA" --days 3650d`,
		Args:              exactly(),
		ValidArgsFunction: none,
	}
	cmd.Flags().StringVar(&dir, "dir", "", "the CA's `directory`; made if missing")
	cmd.Flags().StringVar(&name, "name", "", "what the CA calls itself; default a name drawn by chance")
	cmd.Flags().Var(&lifetime, "days", "how long the CA is valid, as 3650d")
	required(cmd, "dir")
	cmd.RunE = a.do(func(_ context.Context, _ []string) error {
		ca, err := mtls.InitCA(dir, name, time.Duration(lifetime))
		if err != nil {
			return certFault(err)
		}
		return a.tellMade(ca.Cert, "ca", filepath.Join(dir, mtls.CACert), filepath.Join(dir, mtls.CAKey))
	})
	return cmd
}

func (a *app) certIssueCmd(role mtls.Role, short, long, example string) *cobra.Command {
	var (
		dir   string
		hosts []string
		renew bool
	)
	lifetime := days(mtls.CertLifetime)
	use, hosted := string(role)+" NAME --dir DIRECTORY", ""
	if role == mtls.Node {
		use, hosted = use+" --host HOST...", " --host 10.0.0.1 --host n1.example.org"
	}
	cmd := &cobra.Command{
		Use:   use,
		Short: short,
		Long: long + `

The files are DIRECTORY/` + string(role) + `-NAME.crt and .key. It ends up to a tenth earlier than --days
says, by chance, so that not all end in one night. --renew makes another in the place of
one that is there, with a new key, and keeps the files' names, owners and modes: programs
take it without a restart.`,
		Example: fmt.Sprintf(`  rookeryctl cert %s %s --dir pki%s
  rookeryctl cert %s %s --dir pki%s --days 90d --renew`, role, example, hosted, role, example, hosted),
		Args:              exactly("NAME"),
		ValidArgsFunction: none,
	}
	f := cmd.Flags()
	f.StringVar(&dir, "dir", "", "the CA's `directory`")
	f.Var(&lifetime, "days", "how long it is valid at most, as 365d")
	f.BoolVar(&renew, "renew", false, "replace one that is there; hosts that are not stated stay")
	if role == mtls.Node {
		f.StringArrayVar(&hosts, "host", nil, "`address` or DNS name by which clients and nodes dial it; as often as needed")
	}
	required(cmd, "dir")
	cmd.RunE = a.do(func(_ context.Context, args []string) error {
		id := mtls.Identity{Role: role, Name: args[0]}
		if err := id.Check(); err != nil {
			return certFault(err)
		}
		ca, err := mtls.OpenCA(dir)
		if errors.Is(err, fs.ErrNotExist) {
			return refusedf("%s; `rookeryctl cert ca --dir %s` makes a CA", bareCert(err), dir)
		}
		if err != nil {
			return certFault(err)
		}
		certFile, keyFile := mtls.FileNames(id)
		certFile, keyFile = filepath.Join(dir, certFile), filepath.Join(dir, keyFile)
		if renew && len(hosts) == 0 {
			if hosts, err = hostsIn(certFile); err != nil {
				return err
			}
		}
		if role == mtls.Node {
			hosts = withLoopback(hosts)
		}
		pair, err := ca.Issue(mtls.Request{Identity: id, Hosts: hosts, Lifetime: time.Duration(lifetime)})
		if err != nil {
			return certFault(err)
		}
		if err := pair.Write(certFile, keyFile, renew); err != nil {
			return certFault(err)
		}
		return a.tellMade(pair.Leaf, id.URI().String(), certFile, keyFile)
	})
	return cmd
}

// hostsIn are the hosts of the certificate that is renewed; none if there is none.
func hostsIn(file string) ([]string, error) {
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	certs, err := mtls.Certificates(text)
	if err != nil {
		return nil, refusedf("%s: %s", file, bareCert(err))
	}
	return hostsOf(certs[0]), nil
}

// withLoopback adds the names of loopback that hosts lacks.
func withLoopback(hosts []string) []string {
	have := make(map[string]bool)
	for _, h := range hosts {
		have[h] = true
	}
	for _, h := range []string{"localhost", "127.0.0.1", "::1"} {
		if !have[h] {
			hosts = append(hosts, h)
		}
	}
	return hosts
}

func hostsOf(cert *x509.Certificate) []string {
	hosts := append([]string(nil), cert.DNSNames...)
	for _, ip := range cert.IPAddresses {
		hosts = append(hosts, ip.String())
	}
	return hosts
}

// bareCert is an error's text without the name of the package.
func bareCert(err error) string { return strings.ReplaceAll(err.Error(), "mtls: ", "") }

// certFault is a refusal to make a certificate.
func certFault(err error) error {
	text := bareCert(err)
	if errors.Is(err, mtls.ErrExists) && !strings.Contains(text, "CA would") {
		text += "; --renew replaces it"
	}
	return &fault{code: exitRefused, text: plain(text), err: err}
}

// made is what was made, in JSON.
type made struct {
	Identity string `json:"identity"`
	Until    string `json:"until"`
	Serial   string `json:"serial"`
	Cert     string `json:"cert"`
	Key      string `json:"key"`
}

func (a *app) tellMade(cert *x509.Certificate, identity, certFile, keyFile string) error {
	if a.format == formatJSON {
		return a.document(made{identity, stamp(cert.NotAfter), serialOf(cert), certFile, keyFile})
	}
	a.printf("%s, valid until %s\n%s\n%s\n", identity, stamp(cert.NotAfter), certFile, keyFile)
	return nil
}

func serialOf(cert *x509.Certificate) string { return fmt.Sprintf("%x", cert.SerialNumber) }

// shown is one certificate, in JSON.
type shown struct {
	File        string   `json:"file"`
	Role        string   `json:"role"`
	Name        string   `json:"name"`
	Subject     string   `json:"subject"`
	Hosts       []string `json:"hosts"`
	CA          string   `json:"ca"`
	Serial      string   `json:"serial"`
	From        string   `json:"from"`
	Until       string   `json:"until"`
	LeftMs      int64    `json:"left_ms"`
	Fingerprint string   `json:"sha256"`
	Problem     string   `json:"problem,omitempty"`
}

func (a *app) certShowCmd() *cobra.Command {
	within := days(30 * 24 * time.Hour)
	cmd := &cobra.Command{
		Use:   "show FILE...",
		Short: "show whose certificates these are, and until when",
		Long: `Shows the certificates in FILEs: who the holder is, by which CA, until when. Which CA is
trusted is told by --tls-ca; without it by ca.crt beside the file, if there is one. It
exits with 1 if any is of no use: expired or about to, not valid yet, of another CA, or
without a role. For a check that runs every day.`,
		Example: `  rookeryctl cert show pki/*.crt
  rookeryctl cert show --within 14d /etc/rookery/node-n1.crt
  rookeryctl cert show -o json --cert-map map.txt site.crt`,
		Args: atLeastOne("FILE"),
	}
	cmd.Flags().Var(&within, "within", "complain of what ends within this time, as 14d")
	cmd.RunE = a.do(func(_ context.Context, args []string) error {
		var m *mtls.Map
		if a.tls.Map != "" {
			text, err := os.ReadFile(a.tls.Map)
			if err != nil {
				return err
			}
			if m, err = mtls.ParseMap(text); err != nil {
				return refusedf("%s: %s", a.tls.Map, bareCert(err))
			}
		}
		var rows []shown
		for _, file := range args {
			text, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			certs, err := mtls.Certificates(text)
			if err != nil {
				return refusedf("%s: %s", file, bareCert(err))
			}
			cas, err := a.trusted(file)
			if err != nil {
				return err
			}
			for i, cert := range certs {
				rows = append(rows, look(file, cert, certs[i+1:], cas, m, time.Duration(within), time.Now()))
			}
		}
		return a.tellShown(rows)
	})
	return cmd
}

// trusted are the CAs for a certificate in file; nil if none is known.
func (a *app) trusted(file string) ([]*x509.Certificate, error) {
	path := a.tls.CA
	if path == "" {
		path = filepath.Join(filepath.Dir(file), mtls.CACert)
	}
	text, err := os.ReadFile(path)
	if a.tls.CA == "" && errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	cas, err := mtls.Certificates(text)
	if err != nil {
		return nil, refusedf("%s: %s", path, bareCert(err))
	}
	return cas, nil
}

// look says what a certificate is and what is wrong with it.
func look(file string, cert *x509.Certificate, between, cas []*x509.Certificate, m *mtls.Map, within time.Duration, now time.Time) shown {
	row := shown{
		File: file, Subject: cert.Subject.String(), Hosts: hostsOf(cert), CA: cert.Issuer.String(), Serial: serialOf(cert),
		From: stamp(cert.NotBefore), Until: stamp(cert.NotAfter), LeftMs: cert.NotAfter.Sub(now).Milliseconds(),
		Fingerprint: fmt.Sprintf("%x", sha256.Sum256(cert.Raw)),
	}
	var problems []string
	id, err := mtls.IdentityOf(cert, m)
	switch {
	case cert.IsCA:
		row.Role = "ca"
		row.Name = cert.Subject.CommonName
	case err != nil:
		problems = append(problems, bareCert(err))
	default:
		row.Role, row.Name = string(id.Role), id.Name
	}
	switch left := cert.NotAfter.Sub(now); {
	case now.Before(cert.NotBefore):
		problems = append(problems, "not valid before "+row.From)
	case left <= 0:
		problems = append(problems, "expired "+age(-left)+" ago")
	case left < within:
		problems = append(problems, "ends in "+age(left))
	}
	if cas != nil {
		if err := signedBy(cert, between, cas); err != nil {
			problems = append(problems, "not signed by the CA that is trusted")
		}
	}
	row.Problem = strings.Join(problems, "; ")
	return row
}

// signedBy checks signatures alone: dates are told apart.
func signedBy(cert *x509.Certificate, between, cas []*x509.Certificate) error {
	roots, others := x509.NewCertPool(), x509.NewCertPool()
	for _, ca := range cas {
		roots.AddCert(ca)
	}
	for _, c := range between {
		others.AddCert(c)
	}
	_, err := cert.Verify(x509.VerifyOptions{Roots: roots, Intermediates: others, CurrentTime: cert.NotBefore.Add(time.Second), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	return err
}

func (a *app) tellShown(rows []shown) error {
	wrong := 0
	for _, row := range rows {
		if row.Problem != "" {
			wrong++
		}
	}
	if a.format == formatJSON {
		if err := a.document(struct {
			Certificates []shown `json:"certificates"`
		}{rows}); err != nil {
			return err
		}
	} else {
		t := a.table("FILE", "ROLE", "NAME", "UNTIL", "LEFT", "HOSTS", "CA", "SERIAL", "PROBLEM")
		for _, r := range rows {
			left := "-"
			if r.LeftMs > 0 {
				left = age(time.Duration(r.LeftMs) * time.Millisecond)
			}
			t.row(r.File, r.Role, r.Name, r.Until, left, strings.Join(r.Hosts, ","), r.CA, r.Serial, r.Problem)
		}
		if err := t.end(""); err != nil {
			return err
		}
	}
	if wrong > 0 {
		return degraded()
	}
	return nil
}
