package mupdateclient

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/rookery-mail/rookery/adapter/mupdate/mupdatewire"
)

// server speaks a script to each connection: what begins with "< " it says, what begins
// with "> " it must be told, "*" in it standing for anything; "TLS" begins TLS, "silence" says nothing until the
// client leaves, "flood" repeats what follows until then. It answers literals as they are:
// \r\n inside a line is "\r\n".
type server struct {
	t    *testing.T
	addr string
	tls  *tls.Config
}

const greeting = "< * AUTH \"PLAIN\"\n< * PARTIAL-UPDATE\n< * OK MUPDATE \"master.example.org\" \"Cyrus IMAP\" \"3.6.1\" \"(master)\"\n"

func newServer(t *testing.T, script string) *server {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{t: t, addr: l.Addr().String()}
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer func() { c.Close() }()
		c.SetDeadline(time.Now().Add(time.Minute))
		r := bufio.NewReader(c)
		for line := range strings.SplitSeq(strings.TrimSuffix(script, "\n"), "\n") {
			switch {
			case line == "TLS":
				secure := tls.Server(c, s.tls)
				c, r = secure, bufio.NewReader(secure)
			case line == "silence":
				io.Copy(io.Discard, r)
			case strings.HasPrefix(line, "flood "):
				for err == nil {
					_, err = io.WriteString(c, unescaped(line[len("flood "):]))
				}
			case strings.HasPrefix(line, "< "):
				io.WriteString(c, unescaped(line[2:])+"\r\n")
			case strings.HasPrefix(line, "> "):
				got, err := command(r)
				if err != nil {
					return // it has left, which the test sees
				}
				if before, after, any := strings.Cut(line[2:], "*"); got != line[2:] && !(any && strings.HasPrefix(got, before) && strings.HasSuffix(got, after)) {
					t.Errorf("told %q, want %q", got, line[2:])
				}
			}
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	return s
}

func unescaped(s string) string {
	return strings.NewReplacer(`\r`, "\r", `\n`, "\n", `\0`, "\x00").Replace(s)
}

// command reads a line with its literals, which become quoted strings.
func command(r *bufio.Reader) (string, error) {
	all := ""
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return "", err
		}
		line = strings.TrimRight(line, "\r\n")
		i := strings.LastIndexByte(line, '{')
		if i < 0 || !strings.HasSuffix(line, "+}") {
			return all + line, nil
		}
		var n int
		fmt.Sscanf(line[i:], "{%d+}", &n)
		text := make([]byte, n)
		if _, err := io.ReadFull(r, text); err != nil {
			return "", err
		}
		all += line[:i] + `"` + string(text) + `"`
	}
}

func (s *server) dial(opts Options) (*Client, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	c, err := Dial(ctx, s.addr, opts)
	if err == nil {
		s.t.Cleanup(func() { c.Close() })
	}
	return c, err
}

// open dials and fails the test if that does.
func (s *server) open() *Client {
	s.t.Helper()
	c, err := s.dial(Options{})
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

func TestGreeting(t *testing.T) {
	for _, test := range []struct {
		name, script string
		want         error // nil: it is let in; errAny: some error
	}{
		{"cyrus", greeting, nil},
		{"lower case", "< * auth \"PLAIN\"\n< * ok MUPDATE\n", nil},
		{"unknown capabilities", "< * X-NEW \"y\" (z)\n" + greeting, nil},
		{"bye", "< * BYE \"Server Unable\"\n", &Refused{}},
		{"no", "< * NO \"not you\"\n", &Refused{}},
		{"another protocol", "< 220 mail.example.org ESMTP\n", ErrProtocol},
		{"imap", "< * OK [CAPABILITY IMAP4rev1] ready\n", nil}, // told from MUPDATE at the login
		{"nothing", "", errAny},
		{"half a line", "flood x", errAny},
		{"never ends", "flood * CAPABILITY\\r\\n", errAny},
		{"silence", "silence\n", errAny},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newServer(t, test.script)
			ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
			if test.want == nil {
				ctx, cancel = context.WithTimeout(t.Context(), 20*time.Second)
			}
			defer cancel()
			c, err := Dial(ctx, s.addr, Options{})
			if err == nil {
				c.Close()
			}
			if !is(err, test.want) {
				t.Errorf("got error %v, want %v", err, test.want)
			}
		})
	}
}

var errAny = errors.New("some error")

func is(err, want error) bool {
	switch want := want.(type) {
	case nil:
		return err == nil
	case *Refused:
		got, is := errors.AsType[*Refused](err)
		return is && (want.Word == "" || *got == *want)
	}
	return err != nil && (want == errAny || errors.Is(err, want))
}

func TestLogin(t *testing.T) {
	plain := base64.StdEncoding.EncodeToString([]byte("\x00be1\x00secret"))
	for _, test := range []struct {
		name, auth, script string
		mechanism          string
		want               error
	}{
		{"plain", `"PLAIN"`, "> A01 AUTHENTICATE \"PLAIN\" \"" + plain + "\"\n< A01 OK \"Authenticated\"\n", "", nil},
		{"wrong password", `"PLAIN"`, "> A01 AUTHENTICATE \"PLAIN\" *\n< A01 NO \"authentication failed\"\n", "", &Refused{"NO", "authentication failed"}},
		{"bad", `"PLAIN"`, "> A01 AUTHENTICATE \"PLAIN\" *\n< A01 BAD \"already authenticated\"\n", "", &Refused{"BAD", "already authenticated"}},
		{"no mechanism", `"GSSAPI"`, "", "", ErrNoMechanism},
		{"none at all", ``, "", "", ErrNoMechanism},
		{"a mechanism that is not offered", `"PLAIN"`, "> A01 AUTHENTICATE \"SCRAM-SHA-256\" *\n< A01 NO \"what?\"\n", "scram-sha-256", &Refused{}},
		{"a challenge where none is due", `"PLAIN"`, "> A01 AUTHENTICATE \"PLAIN\" *\n< YQ==\n> *\n< A01 NO \"cancelled\"\n", "", &Refused{}},
		{"a server that does not know the password", `"SCRAM-SHA-256"`, "> A01 AUTHENTICATE \"SCRAM-SHA-256\" *\n< A01 OK \"Authenticated\"\n", "", errAny},
		{"the connection ends", `"PLAIN"`, "> A01 AUTHENTICATE \"PLAIN\" *\n", "", errAny},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newServer(t, "< * AUTH "+test.auth+"\n< * OK MUPDATE\n"+test.script)
			c, err := s.dial(Options{Mechanism: test.mechanism})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			if err := c.Login(ctx, "be1", "secret"); !is(err, test.want) {
				t.Errorf("got error %v, want %v", err, test.want)
			}
		})
	}
}

func TestStartTLS(t *testing.T) {
	cert, pool := certificate(t)
	offer := "< * AUTH\n< * STARTTLS\n< * OK MUPDATE\n"
	begin := "> S01 STARTTLS\n< S01 OK Begin TLS negotiation now\nTLS\n" + greeting
	for _, test := range []struct {
		name, script string
		opts         Options
		want         error
	}{
		{"trusted", offer + begin, Options{TLS: &tls.Config{RootCAs: pool, ServerName: "master.example.org"}, RequireTLS: true}, nil},
		{"another name", offer + begin, Options{TLS: &tls.Config{RootCAs: pool}, RequireTLS: true}, new(tls.CertificateVerificationError)},
		{"nobody's", offer + begin, Options{TLS: &tls.Config{ServerName: "master.example.org"}, RequireTLS: true}, new(tls.CertificateVerificationError)},
		{"not offered and wanted", greeting, Options{TLS: &tls.Config{RootCAs: pool}, RequireTLS: true}, ErrNoTLS},
		{"not offered", greeting, Options{TLS: &tls.Config{RootCAs: pool}}, nil},
		{"refused", offer + "> S01 STARTTLS\n< S01 NO \"no\"\n", Options{TLS: &tls.Config{RootCAs: pool}}, ErrProtocol},
		{"not wanted", offer, Options{}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newServer(t, test.script)
			s.tls = &tls.Config{Certificates: []tls.Certificate{cert}}
			c, err := s.dial(test.opts)
			if verify, is := errors.AsType[*tls.CertificateVerificationError](err); is {
				err = verify
				test.want = err // both are of the kind, if one was wanted
				if _, wanted := errors.AsType[*tls.CertificateVerificationError](test.want); !wanted {
					t.Errorf("got error %v", err)
				}
			}
			if !is(err, test.want) {
				t.Errorf("got error %v, want %v", err, test.want)
			}
			if err == nil && test.name == "trusted" && (len(c.Greeting().Mechanisms) != 1 || c.Greeting().StartTLS) {
				t.Errorf("after TLS it knows the greeting of before: %+v", c.Greeting())
			}
		})
	}
}

func certificate(t *testing.T) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	of := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "master.example.org"}, NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"master.example.org"}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, of, of, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(parsed)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

func TestCommands(t *testing.T) {
	s := newServer(t, greeting+`> X0 RESERVE "user.a" "be1.example.org!default"
< X0 OK "done"
> X1 ACTIVATE "user.a" "be1.example.org!default" "a	lrs	"
< X1 NO "mailbox already exists"
> X2 DEACTIVATE "user.a" "be1.example.org!default"
< X2 ok "done"
> X3 DELETE "user.a"
< X3 OK {4+}\r\ndone
> X4 NOOP
< X4 OK {4}\r\ndone
> X5 FIND "user.a"
< X5 OK "Search completed"
> X6 FIND "user.a"
< X6 MAILBOX {6+}\r\nuser.a "be1.example.org!default" {3}\r\na	l
< X6 OK "Search completed"
> X7 FIND "user.b"
< X7 RESERVE "user.b" "be1.example.org!"
< X7 OK "Search completed"
> X8 LOGOUT
< X8 OK "bye-bye"
`)
	c := s.open()
	ctx := t.Context()
	for i, err := range []error{
		c.Reserve(ctx, "user.a", "be1.example.org!default"), c.Activate(ctx, "user.a", "be1.example.org!default", "a\tlrs\t"),
		c.Deactivate(ctx, "user.a", "be1.example.org!default"), c.Delete(ctx, "user.a"), c.Noop(ctx),
	} {
		want := error(nil)
		if i == 1 {
			want = &Refused{"NO", "mailbox already exists"}
		}
		if !is(err, want) {
			t.Errorf("command %d: got error %v, want %v", i, err, want)
		}
	}
	if _, found, err := c.Find(ctx, "user.a"); found || err != nil {
		t.Errorf("FIND of nothing: %v, %v", found, err)
	}
	r, found, err := c.Find(ctx, "user.a")
	if want := (Record{"user.a", "be1.example.org!default", "a\tl", Mailbox}); r != want || !found || err != nil {
		t.Errorf("FIND: got %+v, %v, %v, want %+v", r, found, err, want)
	}
	r, found, err = c.Find(ctx, "user.b")
	if want := (Record{Name: "user.b", Location: "be1.example.org!", Kind: Reserved}); r != want || !found || err != nil {
		t.Errorf("FIND: got %+v, %v, %v, want %+v", r, found, err, want)
	}
	if err := c.Logout(ctx); err != nil {
		t.Errorf("LOGOUT: %v", err)
	}
}

// A listing is whole only if it ends in OK.
func TestListingThatIsNone(t *testing.T) {
	const rec = "< X0 MAILBOX \"user.a\" \"be1.example.org!default\" \"\"\n"
	for _, test := range []struct {
		name, script string
		records      int
		want         error
	}{
		{"whole", rec + rec + "< X0 OK \"list complete\"\n", 2, nil},
		{"empty", "< X0 OK \"list complete\"\n", 0, nil},
		{"a literal with an end of line in it", "< X0 MAILBOX {8+}\\r\\nuser.a\\r\\n \"b!c\" \"\"\n< X0 OK \"list complete\"\n", 1, nil},
		{"no", rec + "< X0 NO \"database error\"\n", 1, &Refused{"NO", "database error"}},
		{"bye", rec + "< * BYE \"no longer ready for connections\"\n", 1, errAny},
		{"ends", rec, 1, errAny},
		{"ends in a record", rec + "< X0 MAILBOX \"user.b\" {100+}\\r\\nbe1\n", 1, errAny},
		{"another's OK", rec + "< X9 OK \"list complete\"\n", 1, ErrProtocol},
		{"nonsense", rec + "< X0 WHAT \"x\"\n", 1, ErrProtocol},
		{"a record that lacks something", "< X0 MAILBOX \"user.a\"\n< X0 OK \"list complete\"\n", 0, ErrProtocol},
		{"atoms", "< X0 MAILBOX user.a b!c acl\n< X0 OK \"list complete\"\n", 0, errAny},
		{"NUL", "< X0 MAILBOX {3+}\\r\\na\\0b \"b!c\" \"\"\n< X0 OK \"list complete\"\n", 0, errAny},
		{"a literal beyond all limits", "< X0 MAILBOX {999999999+}\\r\\nx\n", 0, mupdatewire.ErrTooLong},
		{"a line that never ends", "flood X0 MAILBOX \"user.a\" \"b!c\" \"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx", 0, errAny},
		{"silence", rec + "silence\n", 1, errAny},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newServer(t, greeting+"> X0 LIST\n"+test.script)
			c, err := s.dial(Options{Idle: 300 * time.Millisecond})
			if err != nil {
				t.Fatal(err)
			}
			n := 0
			for r, broken := range c.List(t.Context(), "") {
				if broken != nil {
					err = broken
				} else if r.Kind == Mailbox {
					n++
				}
			}
			if n != test.records || !is(err, test.want) {
				t.Errorf("got %d records, error %v; want %d, %v", n, err, test.records, test.want)
			}
		})
	}
}

// A stream is told what there is, then what changes; a Ping is answered when all before
// it was told, and the questions whether somebody is there are not taken for it.
func TestUpdate(t *testing.T) {
	s := newServer(t, greeting+`> X0 UPDATE
< X0 MAILBOX "user.a" "b!c" ""
< X0 RESERVE "user.b" "b!c"
< X0 OK "streaming starts"
< X0 DELETE {6+}\r\nuser.a
> N0 NOOP
< N0 OK "Noop done"
< X0 MAILBOX "user.b" "b!c" "x	l	"
> P0 NOOP
< X0 DELETE "user.b"
< P0 OK "Noop done"
< * BYE "shutting down"
`)
	c := s.open()
	var told []string
	pinged := false
	note := func(text string) error { told = append(told, text); return nil }
	err := c.Update(t.Context(), func(r Record) error {
		if r.Kind == Mailbox && len(told) > 2 && !pinged {
			pinged = true
			if err := c.Ping(); err != nil {
				return err
			}
		}
		return note(fmt.Sprint(r.Kind, " ", r.Name))
	}, func() error { return note("listed") }, 200*time.Millisecond, func() error { return note("noop") })
	if want := (&Refused{"BYE", "shutting down"}); !is(err, want) {
		t.Errorf("got error %v, want %v", err, want)
	}
	want := "MAILBOX user.a, RESERVE user.b, listed, DELETE user.a, MAILBOX user.b, DELETE user.b, noop"
	if got := strings.Join(told, ", "); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// A stream ends when its server is mute, when its context ends, and with what its caller
// says.
func TestUpdateEnds(t *testing.T) {
	listing := greeting + "> X0 UPDATE\n< X0 MAILBOX \"user.a\" \"b!c\" \"\"\n< X0 OK \"streaming starts\"\n"
	nothing := func(Record) error { return nil }
	begun := time.Now()
	c := newServer(t, listing+"silence\n").open()
	if err := c.Update(t.Context(), nothing, nil, 100*time.Millisecond, nil); err == nil || time.Since(begun) > 10*time.Second {
		t.Errorf("a mute server: %v after %v", err, time.Since(begun))
	}
	ctx, cancel := context.WithCancel(t.Context())
	c = newServer(t, listing+"silence\n").open()
	err := c.Update(ctx, nothing, func() error { cancel(); return nil }, time.Hour, nil)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("its context ended: got %v", err)
	}
	mine := errors.New("mine")
	c = newServer(t, listing+"silence\n").open()
	if err := c.Update(t.Context(), func(Record) error { return mine }, nil, 0, nil); err != mine {
		t.Errorf("got %v, want the caller's", err)
	}
	c = newServer(t, greeting+"> X0 UPDATE\n< X0 NO \"unavailable\"\n").open()
	listed := false
	err = c.Update(t.Context(), nothing, func() error { listed = true; return nil }, 0, nil)
	if !is(err, &Refused{"NO", "unavailable"}) || listed {
		t.Errorf("refused: got %v, listed %v", err, listed)
	}
}

// A list that is left before its end takes the connection with it: its rest would be
// taken for the next answer.
func TestListThatIsLeft(t *testing.T) {
	c := newServer(t, greeting+"> X0 LIST \"be1!\"\nflood X0 MAILBOX \"user.a\" \"b!c\" \"\"\\r\\n").open()
	for _, err := range c.List(t.Context(), "be1!") {
		if err != nil {
			t.Fatal(err)
		}
		break
	}
	if _, _, err := c.Find(t.Context(), "user.a"); !errors.Is(err, net.ErrClosed) {
		t.Errorf("FIND on a connection that is in the middle of a list: got error %v, want %v", err, net.ErrClosed)
	}
}
