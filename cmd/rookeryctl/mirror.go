package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/rookery-mail/rookery/adapter/mupdate/mirror"
	"github.com/rookery-mail/rookery/adapter/mupdate/mupdateclient"
	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
)

// passwordVariable is the environment's password of a MUPDATE login.
const passwordVariable = "ROOKERY_MUPDATE_PASSWORD"

// mirrorFlags are the command line of mirror.
type mirrorFlags struct {
	reverse, check, once         bool
	withdraw, overrule, replicas bool
	passwordFile, ca, name       string
	clear                        bool
	settle, every                time.Duration
}

func (a *app) mirrorCmd(getenv func(string) string) *cobra.Command {
	var f mirrorFlags
	cmd := &cobra.Command{
		Use:   "mirror mupdate://LOGIN@HOST[:PORT]",
		Short: "keep the directory equal to a live MUPDATE master, or a master to it",
		Long: `Follows a live MUPDATE master, as a Cyrus frontend does, and keeps the directory equal to it:
while a site moves over, until the hour of the switch. It prints a line for each name that
differed, and what was done; and how many differences stand: "0 differences since" a time.
It goes on until ^C, through restarts of the master and of nodes.

With --check it changes nothing. It prints each difference once when it appears and once
when it ends. Run it for as long as you want before you switch; -o json prints a document
on a line for each event.

With --reverse it keeps the master equal to the directory, so that a site can go back.

What is compared is what a frontend is told: where a name is, and its ACL. Copies of
replicas are no differences, and are left alone.

What the master drops is retracted under the withdrawal guard. In a listing that lacks all
of a backend, most, or more than the guard lets pass, what it lacks stays: a master that
has lost its list looks so. --withdraw believes the first listing all the same.

A backend that has compared its own list with the directory (ctl_mboxlist -m, resync)
speaks to the directory, and the master's view of it is old: its facts are left alone. So
is a fact that was stated after the mirror last found its backend equal, if a listing of
the master differs from it; --overrule takes the master's word in the first listing.

--reverse refuses while backends hold copies of mailboxes that the master would be told
others have: replicas, forks. A Cyrus backend that runs ctl_mboxlist -m against a master
that names another server deletes its own copy, mail and all. --replicas says that none
of them will: that ctl_mboxlist stands in no START section there, or as -m -a.

The password is the first line of --password-file, or ` + passwordVariable + `; else it
is asked for, or read from the standard input. The connection is made secure by STARTTLS,
and the certificate must be of --mupdate-ca, or of a CA that the system knows; on
loopback, without --mupdate-ca, and with --mupdate-clear it is in the clear.

Exit codes: 0 no difference stands; 1 some do, or it was refused; 3 both sides could not
be compared.`,
		Example: `  rookeryctl mirror mupdate://mirror@mupdate.example.org --password-file /etc/rookery/mirror.secret
  rookeryctl mirror --check -o json mupdate://mirror@mupdate.example.org --mupdate-ca /etc/rookery/cyrus.pem
  rookeryctl mirror --check --once mupdate://mirror@127.0.0.1 < secret
  rookeryctl mirror --reverse mupdate://mirror@old-mupdate.example.org --mupdate-clear`,
		Args: exactly("mupdate://LOGIN@HOST"), ValidArgsFunction: none,
	}
	flags := cmd.Flags()
	flags.BoolVar(&f.reverse, "reverse", false, "keep the master equal to the directory")
	flags.BoolVar(&f.check, "check", false, "report differences and change nothing")
	flags.BoolVar(&f.once, "once", false, "compare, make equal unless --check, and end")
	flags.BoolVar(&f.withdraw, "withdraw", false, "in the first listing, take back however much it lacks")
	flags.BoolVar(&f.overrule, "overrule", false, "in the first listing, take the master's word also where something was stated later")
	flags.BoolVar(&f.replicas, "replicas", false, "with --reverse: no server that holds copies will run ctl_mboxlist -m against that master")
	flags.StringVar(&f.passwordFile, "password-file", "", "the password is the first line of this `file`")
	flags.StringVar(&f.ca, "mupdate-ca", "", "the master's certificate is of this CA, or is this one, a PEM `file`")
	flags.StringVar(&f.name, "mupdate-name", "", "the `name` in the master's certificate; default the host")
	flags.BoolVar(&f.clear, "mupdate-clear", false, "speak in the clear; the password can be read on the way")
	flags.DurationVar(&f.settle, "settle", mirror.DefaultSettle, "how long a difference has to stand before it is reported")
	flags.DurationVar(&f.every, "every", mirror.DefaultEvery, "how often to say how many differences there are though nothing changed")
	cmd.RunE = a.do(func(ctx context.Context, args []string) error {
		at, err := parseMaster(args[0])
		if err != nil {
			return err
		}
		switch {
		case f.replicas && !f.reverse:
			return usagef("--replicas is for --reverse")
		case f.overrule && f.reverse:
			return usagef("--overrule is for the other direction than --reverse")
		case f.overrule && f.check:
			return usagef("--overrule is not for --check, which changes nothing")
		case f.settle <= 0 || f.every <= 0:
			return usagef("--settle and --every: a time above 0")
		}
		if at.opts, err = f.options(at.host); err != nil {
			return err
		}
		if at.password, err = a.masterPassword(&f, at.login, getenv); err != nil {
			return err
		}
		c, err := a.connect()
		if err != nil {
			return err
		}
		return a.mirror(ctx, c, at, f)
	})
	return cmd
}

// master is a MUPDATE master from the command line.
type master struct {
	host, port, login string
	opts              mupdateclient.Options
	password          func() (string, error)
}

// parseMaster reads mupdate://LOGIN@HOST[:PORT].
func parseMaster(s string) (*master, error) {
	const shape = "it is mupdate://LOGIN@HOST, or mupdate://LOGIN@HOST:PORT"
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "mupdate" || u.Hostname() == "" || u.Path != "" || u.RawQuery != "" || u.Fragment != "" {
		return nil, usagef("%s: %s", plain(s), shape)
	}
	if _, has := u.User.Password(); has {
		return nil, usagef("a password on the command line is read by everybody on this machine: give --password-file, or %s", passwordVariable)
	}
	if u.User.Username() == "" {
		return nil, usagef("%s names no login: %s", plain(s), shape)
	}
	m := &master{host: u.Hostname(), port: u.Port(), login: u.User.Username()}
	if m.port == "" {
		m.port = mupdateclient.Port
	}
	return m, nil
}

// idle is how long a master may be silent in the middle of an answer.
const idle = 2 * time.Minute

// options are those of the connections.
func (f *mirrorFlags) options(host string) (mupdateclient.Options, error) {
	opts := mupdateclient.Options{Idle: idle}
	if f.clear {
		if f.ca != "" || f.name != "" {
			return opts, usagef("--mupdate-clear and a certificate exclude each other")
		}
		return opts, nil
	}
	if f.ca == "" && f.name == "" && loopback(host) {
		return opts, nil
	}
	opts.RequireTLS = true
	opts.TLS = &tls.Config{MinVersion: tls.VersionTLS12, ServerName: f.name}
	if f.ca != "" {
		pem, err := os.ReadFile(f.ca)
		if err != nil {
			return opts, usagef("--mupdate-ca: %v", err)
		}
		opts.TLS.RootCAs = x509.NewCertPool()
		if !opts.TLS.RootCAs.AppendCertsFromPEM(pem) {
			return opts, usagef("--mupdate-ca: %s has no certificate in it", f.ca)
		}
	}
	return opts, nil
}

func loopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

// masterPassword finds the password. One in a file is read anew for each connection.
func (a *app) masterPassword(f *mirrorFlags, login string, getenv func(string) string) (func() (string, error), error) {
	if f.passwordFile != "" {
		read := func() (string, error) {
			b, err := os.ReadFile(f.passwordFile)
			line, _, _ := strings.Cut(string(b), "\n")
			if line = strings.TrimSuffix(line, "\r"); line == "" && err == nil {
				err = fmt.Errorf("%s: the password is empty", f.passwordFile)
			}
			return line, err
		}
		if _, err := read(); err != nil {
			return nil, usagef("--password-file: %v", err)
		}
		return read, nil
	}
	password := getenv(passwordVariable)
	if password == "" {
		var err error
		if password, _, err = a.readPassword("password of " + login); err != nil {
			return nil, err
		}
		if password == "" {
			return nil, usagef("the password is empty: give --password-file, or %s, or the password on the standard input", passwordVariable)
		}
	}
	return func() (string, error) { return password, nil }, nil
}

// connect connects and logs in.
func (m *master) connect(ctx context.Context) (*mupdateclient.Client, error) {
	password, err := m.password()
	if err != nil {
		return nil, err
	}
	c, err := mupdateclient.Dial(ctx, net.JoinHostPort(m.host, m.port), m.opts)
	if err != nil {
		return nil, err
	}
	if err := c.Login(ctx, m.login, password); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func (a *app) mirror(ctx context.Context, c *client.Client, at *master, f mirrorFlags) error {
	p := &mirrorPrinter{a: a, at: net.JoinHostPort(at.host, at.port)}
	out, err := mirror.Run(ctx, mirror.Config{
		Directory: c.NewSession(nil), Connect: at.connect, Told: p.told,
		Reverse: f.reverse, Check: f.check, Once: f.once, Withdraw: f.withdraw, Overrule: f.overrule, Replicas: f.replicas,
		Settle: f.settle, Every: f.every,
	})
	refused, isRefused := errors.AsType[*mupdateclient.Refused](err)
	switch {
	case errors.Is(err, mirror.ErrReplicas):
		return refusedf("refused: a backend that runs ctl_mboxlist -m against that master deletes its copies of mailboxes that others have there; --replicas, if none of these will")
	case isRefused:
		return refusedf("%s does not let %s in: the master says \"%s\"", p.at, at.login, plain(refused.Text))
	case errors.Is(err, mupdateclient.ErrNoTLS), errors.Is(err, mupdateclient.ErrNoMechanism):
		return refusedf("%s: %s (--mupdate-clear speaks in the clear)", p.at, why(err))
	case errors.Is(err, mirror.ErrLost):
		return &fault{code: exitCannotAsk, text: "not compared: " + why(err), err: err}
	case err != nil:
		return err
	case errors.Is(context.Cause(ctx), errUnreachable):
		return client.ErrUnavailable
	case !out.Compared:
		return &fault{code: exitCannotAsk, text: "ended when both sides were not compared"}
	case out.Differences > 0:
		return degraded()
	}
	return nil
}

// why is an error in words, without the names of packages.
func why(err error) string {
	text := strings.ReplaceAll(err.Error(), "\n", ": ")
	for _, prefix := range []string{"mirror: broke off: ", "mirror: ", "mupdateclient: ", "directory: ", "client: "} {
		text = strings.ReplaceAll(text, prefix, "")
	}
	return plain(text)
}

// mirrorPrinter prints what a mirror tells.
type mirrorPrinter struct {
	a  *app
	at string
}

// mirrorJSON is one line of mirror -o json.
type mirrorJSON struct {
	Event     string                `json:"event"`
	Time      string                `json:"time"`
	Mailbox   directory.MailboxName `json:"mailbox,omitempty"`
	Master    *masterRecordJSON     `json:"master,omitempty"`
	Directory *masterRecordJSON     `json:"directory,omitempty"`
	Why       string                `json:"why,omitempty"`

	Text        string                `json:"text,omitempty"`
	Records     *int                  `json:"records,omitempty"`
	Mailboxes   *int                  `json:"mailboxes,omitempty"`
	Differences *int                  `json:"differences,omitempty"`
	Since       string                `json:"since,omitempty"`
	Server      directory.BackendName `json:"server,omitempty"`
	Lacks       *int                  `json:"lacks,omitempty"`
	Copies      *int                  `json:"copies,omitempty"`
	Error       string                `json:"error,omitempty"`
	RetryMS     int64                 `json:"retry_ms,omitempty"`
}

// masterRecordJSON is what a side says of a name.
type masterRecordJSON struct {
	Server    directory.BackendName `json:"server"`
	Partition string                `json:"partition"`
	ACL       []aclJSON             `json:"acl"`
	Reserved  bool                  `json:"reserved"`
}

func masterRecordOf(r *mirror.Record) *masterRecordJSON {
	if r == nil {
		return nil
	}
	out := &masterRecordJSON{Server: r.Location.Backend, Partition: r.Location.Partition, ACL: []aclJSON{}, Reserved: r.Reserved}
	for identifier, rights := range aclEntries(r.ACL) {
		out.ACL = append(out.ACL, aclJSON{identifier, rights})
	}
	return out
}

func (p *mirrorPrinter) told(e mirror.Event) {
	if p.a.format == formatJSON {
		p.json(&e)
	} else {
		p.a.printf("%s\n", plain(p.words(&e)))
	}
	_ = p.a.stdout.Flush() // the last flush of all reports it
}

func (p *mirrorPrinter) json(e *mirror.Event) {
	j := mirrorJSON{
		Event: e.Kind.String(), Time: e.Time.UTC().Format(time.RFC3339Nano), Mailbox: e.Mailbox,
		Master: masterRecordOf(e.Master), Directory: masterRecordOf(e.Directory), Why: e.Why, Text: e.Text, Server: e.Server,
		Since: stamp(e.Since), RetryMS: e.Wait.Milliseconds(),
	}
	if e.Err != nil {
		j.Error = why(e.Err)
	}
	switch e.Kind {
	case mirror.Listed:
		j.Records, j.Mailboxes, j.Differences = &e.Records, &e.Mailboxes, &e.Count
	case mirror.Counted:
		j.Differences = &e.Count
	case mirror.Withheld:
		j.Records, j.Lacks = &e.Records, &e.Count
	case mirror.Wiped:
		j.Copies = &e.Count
	}
	if b, err := encode(j); err == nil {
		p.a.printf("%s\n", b)
	}
}

// words says for people what happened.
func (p *mirrorPrinter) words(e *mirror.Event) string {
	switch e.Kind {
	case mirror.Connected:
		text := fmt.Sprintf("connected to %s, which says %s", p.at, e.Text)
		if strings.Contains(e.Text, "Rookery") {
			text += ": if that is a node of this cluster, the directory is compared with itself; the old master has an address of its own"
		}
		return text
	case mirror.Listed:
		return fmt.Sprintf("listed: %s of the master, %s of the directory; to look at: %d", plural(e.Records, "record"), mailboxCount(e.Mailboxes), e.Count)
	case mirror.Appeared, mirror.Mended:
		text := fmt.Sprintf("%s: %s", e.Mailbox, e.Difference.String())
		if e.Why != "" {
			text += "; " + e.Why
		}
		return text
	case mirror.Ended:
		return fmt.Sprintf("%s: no difference any more", e.Mailbox)
	case mirror.Counted:
		if e.Count == 0 {
			return "0 differences since " + stamp(e.Since)
		}
		return plural(e.Count, "difference")
	case mirror.Withheld:
		return fmt.Sprintf("withheld: the list lacks %d of %d of %s: so many that nothing is taken back; --withdraw, if that is so", e.Count, e.Records, e.Server)
	case mirror.Lost:
		return fmt.Sprintf("broke off: %s; again in %s", why(e.Err), e.Wait.Round(100*time.Millisecond))
	case mirror.Waiting:
		return fmt.Sprintf("the directory does not answer: %s; asked again until it does", why(e.Err))
	case mirror.Itself:
		return fmt.Sprintf("%s has compared its list with the directory, so it speaks to it; its mailboxes are left alone (`rookeryctl backends confirm %s`, if it speaks to the master again)", e.Server, e.Server)
	case mirror.Wiped:
		return fmt.Sprintf("%s holds %s of which the master is told that others have them", e.Server, plural(e.Count, "copy"))
	}
	return e.Kind.String()
}
