package mupdate

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
)

var rewrite = flag.Bool("rewrite", false, "write what the server says into the conversations")

// Conversations are in testdata: what clients and server say, line by line, against a
// real node. A line is one of
//
//	open [LOGIN] [from ADDRESS]   connect, read the greeting, log in
//	C: text                      the client says it, with CRLF at its end
//	S: text                      the server's next line, literals and all
//	raw text                     the client sends it as it is, without CRLF
//	end                          the server closes
//	close, reset                 the client does; reset loses what is under way
//	tls                          the client begins TLS
//	where NAME                   asks the directory, and = is the answer
//	do COMMAND ...               does something in the directory: see conversation.do
//	wait DURATION
//
// with a number behind the first word for another connection than the first: open2,
// C2:, S2:. \t, \r, \n, \0, \xHH and \\ stand for octets. # begins a comment.
func TestConversations(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no conversations: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			t.Parallel()
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var change []func(*Config)
			if strings.HasPrefix(string(text), "# tls\n") {
				change = append(change, func(c *Config) { c.TLS, c.Clear = testTLS(t), false })
			}
			if strings.HasPrefix(string(text), "# one stream\n") {
				change = append(change, func(c *Config) { c.MaxStreams = 1 })
			}
			c := &conversation{t: t, m: newMurder(t, change...), file: file, conns: map[string]*talk{}}
			defer c.close()
			var out []string
			for i, line := range strings.Split(strings.TrimSuffix(string(text), "\n"), "\n") {
				c.line = i + 1
				got := c.do(line)
				if got != line && !*rewrite {
					t.Fatalf("%s:%d: got\n%s\nwant\n%s", file, i+1, got, line)
				}
				out = append(out, got)
			}
			if *rewrite {
				if err := os.WriteFile(file, []byte(strings.Join(out, "\n")+"\n"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

type conversation struct {
	t     *testing.T
	m     *murder
	file  string
	line  int
	conns map[string]*talk
	where string
}

type talk struct {
	nc net.Conn
	in *bufio.Reader
}

func (c *conversation) close() {
	for _, t := range c.conns {
		t.nc.Close()
	}
}

func (c *conversation) fail(format string, args ...any) {
	c.t.Helper()
	c.t.Fatalf("%s:%d: %s", c.file, c.line, fmt.Sprintf(format, args...))
}

// age is a time that is another one in each run.
var age = regexp.MustCompile(`\b[0-9]+(\.[0-9]+)?m?s\b`)

var verb = regexp.MustCompile(`^(open|C|S|raw|end|close|reset|tls|where|=|do|wait)([0-9]*):?(?: (.*))?$`)

// do does one line and returns it as it should have been.
func (c *conversation) do(line string) string {
	c.t.Helper()
	if line == "" || strings.HasPrefix(line, "#") {
		return line
	}
	m := verb.FindStringSubmatch(line)
	if m == nil {
		c.fail("what is %q?", line)
	}
	word, id, rest := m[1], m[2], m[3]
	conn := c.conns[id]
	if conn == nil && strings.Contains("C S raw end close reset tls", word) {
		c.fail("connection %q is not open", id)
	}
	switch word {
	case "open":
		c.open(id, strings.Fields(rest))
	case "C":
		c.send(conn, unescape(rest)+"\r\n")
	case "raw":
		c.send(conn, unescape(rest))
	case "S":
		got, err := conn.read()
		if err != nil {
			got = "(" + err.Error() + ")"
		}
		return "S" + id + ": " + age.ReplaceAllString(escape(got), "0s")
	case "end":
		if got, err := conn.read(); err != io.EOF {
			c.fail("the connection goes on: %q, %v", got, err)
		}
	case "close":
		conn.nc.Close()
	case "reset":
		conn.nc.(*net.TCPConn).SetLinger(0)
		conn.nc.Close()
	case "tls":
		secure := tls.Client(conn.nc, &tls.Config{InsecureSkipVerify: true})
		if err := secure.Handshake(); err != nil {
			c.fail("no TLS: %v", err)
		}
		c.conns[id] = &talk{secure, bufio.NewReader(secure)}
	case "where":
		c.where = rest
	case "=":
		// What a connection leaves behind is done soon after its end.
		for end := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			if got := "= " + c.m.where(c.where); got == line || time.Now().After(end) || *rewrite {
				if *rewrite {
					time.Sleep(300 * time.Millisecond)
					got = "= " + c.m.where(c.where)
				}
				return got
			}
		}
	case "do":
		if err := c.m.do(strings.Fields(rest)); err != nil {
			c.fail("%v", err)
		}
	case "wait":
		d, err := time.ParseDuration(rest)
		if err != nil {
			c.fail("%v", err)
		}
		time.Sleep(d)
	}
	return line
}

func (c *conversation) open(id string, args []string) {
	c.t.Helper()
	d := net.Dialer{Timeout: 5 * time.Second}
	if i := slices.Index(args, "from"); i >= 0 {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(args[i+1])}
		args = args[:i]
	}
	nc, err := d.Dial("tcp", c.m.addr)
	if err != nil {
		c.fail("%v", err)
	}
	t := &talk{nc, bufio.NewReader(nc)}
	c.conns[id] = t
	if len(args) == 0 {
		return
	}
	for line := ""; !strings.HasPrefix(line, "* OK"); {
		if line, err = t.read(); err != nil {
			c.fail("greeting: %v", err)
		}
	}
	c.send(t, "A01 AUTHENTICATE \"PLAIN\" \""+plainOf("", args[0], password)+"\"\r\n")
	if got, err := t.read(); err != nil || got != `A01 OK "Authenticated"` {
		c.fail("login: %q, %v", got, err)
	}
}

func plainOf(as, name, password string) string {
	return base64.StdEncoding.EncodeToString([]byte(as + "\x00" + name + "\x00" + password))
}

func (c *conversation) send(t *talk, text string) {
	c.t.Helper()
	t.nc.SetWriteDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.WriteString(t.nc, text); err != nil {
		c.fail("send: %v", err)
	}
}

var literalEnd = regexp.MustCompile(`\{([0-9]+)\+?\}\r\n$`)

// read reads a line with the literals in it, without its end.
func (t *talk) read() (string, error) {
	t.nc.SetReadDeadline(time.Now().Add(10 * time.Second))
	var b strings.Builder
	for {
		part, err := t.in.ReadString('\n')
		if err != nil {
			return "", err
		}
		b.WriteString(part)
		m := literalEnd.FindStringSubmatch(part)
		if m == nil {
			return strings.TrimSuffix(b.String(), "\r\n"), nil
		}
		n, _ := strconv.Atoi(m[1])
		if _, err := io.CopyN(&b, t.in, int64(n)); err != nil {
			return "", err
		}
	}
}

func escape(s string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		switch {
		case c == '\t':
			b.WriteString(`\t`)
		case c == '\r':
			b.WriteString(`\r`)
		case c == '\n':
			b.WriteString(`\n`)
		case c == '\\':
			b.WriteString(`\\`)
		case c < 0x20 || c > 0x7e:
			fmt.Fprintf(&b, `\x%02x`, c)
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}

func unescape(s string) string {
	q, err := strconv.Unquote(`"` + strings.ReplaceAll(strings.ReplaceAll(s, `"`, `\"`), `\0`, `\x00`) + `"`)
	if err != nil {
		panic(fmt.Sprintf("%q: %v", s, err))
	}
	return q
}

// where says what the directory knows of a name.
func (m *murder) where(name string) string {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if server, is := strings.CutPrefix(name, "backend "); is {
		backends, err := m.dir.ListBackends(ctx, directory.BackendName(server), client.Linearizable())
		if err != nil || len(backends) != 1 {
			return fmt.Sprint(err)
		}
		return fmt.Sprintf("confirmed=%v by=%s", backends[0].Confirmed, backends[0].ConfirmedBy)
	}
	r, err := m.dir.Lookup(ctx, directory.MailboxName(name), client.Linearizable(), client.Details())
	if err != nil {
		return err.Error()
	}
	out := r.Outcome.String()
	if r.Forked {
		out += " forked"
	}
	for _, f := range r.Facts {
		out += fmt.Sprintf("; %s %s", f.Location(), f.State)
		if f.Standing != directory.InForce {
			out += " " + f.Standing.String()
		}
		out += fmt.Sprintf(" acl=%q", f.ACL)
		if f.MailboxID != "" {
			out += " id=" + f.MailboxID
		}
	}
	if r.Reservation != nil {
		out += fmt.Sprintf("; reserved %s!%s", r.Reservation.Server, r.Reservation.Partition)
	}
	return out
}

// do does something in the directory:
//
//	complete                    every backend's list is known whole
//	assert SERVER NAME [ID]     a fact, of a backend that speaks the API
//	deactivate SERVER NAME
//	group NAME SERVER...        a replica group
//	primary GROUP SERVER
//	hold user|mailbox|group|backend KEY
//	release user|mailbox|group|backend KEY
//	state SERVER up|down|lost
//	admission open|closed
func (m *murder) do(args []string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	kinds := map[string]directory.HoldKind{"user": directory.HoldUser, "mailbox": directory.HoldMailbox, "group": directory.HoldGroup, "backend": directory.HoldBackend}
	arg := func(i int) string {
		if i < len(args) {
			return args[i]
		}
		return ""
	}
	server := directory.BackendName(arg(1))
	var err error
	switch args[0] {
	case "complete":
		for _, b := range []directory.BackendName{be1, be2, be3} {
			if _, err = m.dir.SetBackend(ctx, b, client.BackendChange{Create: true}); err == nil {
				_, err = m.dir.ConfirmBackend(ctx, b, directory.ByOperator)
			}
			if err != nil {
				return err
			}
		}
	case "assert":
		acl := "anyone\tlrs\t"
		st := directory.Statement{Partition: "default", ACL: &acl}
		if id := arg(3); id != "" {
			st.MailboxID, st.SpecialUse = &id, new(`\Drafts`)
		}
		_, err = m.dir.Assert(ctx, client.Assert{Mailbox: directory.MailboxName(arg(2)), Server: server, Statement: st})
	case "deactivate":
		_, err = m.dir.Deactivate(ctx, client.Deactivate{Mailbox: directory.MailboxName(arg(2)), Server: server})
	case "group":
		g := client.SetGroup{Group: directory.GroupName(arg(1)), AcceptMissing: true}
		for _, s := range args[2:] {
			g.Members = append(g.Members, directory.BackendName(s))
		}
		_, err = m.dir.SetGroup(ctx, g)
	case "primary":
		var groups []client.Group
		if groups, err = m.dir.ListGroups(ctx, directory.GroupName(arg(1)), client.Linearizable()); err == nil {
			_, err = m.dir.SetPrimary(ctx, client.SetPrimary{Group: directory.GroupName(arg(1)), To: directory.BackendName(arg(2)), Epoch: groups[0].Epoch, AcceptMissing: true})
		}
	case "hold":
		_, err = m.dir.PutHold(ctx, kinds[arg(1)], arg(2), time.Hour, "a test")
	case "release":
		_, err = m.dir.ReleaseHold(ctx, kinds[arg(1)], arg(2))
	case "state":
		states := map[string]directory.BackendState{"up": directory.BackendActive, "down": directory.BackendDown, "lost": directory.BackendLost}
		_, err = m.dir.SetBackend(ctx, server, client.BackendChange{State: new(states[arg(2)])})
	default:
		err = fmt.Errorf("what is %q?", args[0])
	}
	return err
}
