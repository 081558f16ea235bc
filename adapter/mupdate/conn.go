package mupdate

import (
	"bufio"
	"container/list"
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rookery-mail/rookery/adapter/mupdate/mupdatewire"
	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
)

// conn is one connection. Its states are those of section 3 of RFC 3656: not logged in,
// logged in, and streaming, from which there is no way back. One goroutine reads and
// answers; a stream has a second one, which only writes.
type conn struct {
	s       *Server
	log     *slog.Logger
	r       *mupdatewire.Reader
	remote  netip.Addr
	session *client.Session
	tls     bool

	user  *User // nil: not logged in
	order Order
	form  Literals
	// login is who the connection speaks for by its login, or its certificate; source
	// by the address it came from. Empty: nobody in particular.
	login, source directory.BackendName
	// said is the server of the location named last.
	said directory.BackendName

	resync  resync
	pending *withdrawal                     // of a DELETE that nothing followed yet
	rename  *rename                         // of a RESERVE after it
	claims  map[directory.MailboxName]claim // reserved, and nothing followed yet
	renewed time.Time                       // the claims, last
	stream  *stream
	wrong   int // passwords

	tcp       net.Conn      // below TLS
	gone      chan struct{} // closed when it is displaced
	stranger  *list.Element // under s.mu; nil once it has logged in, or was displaced
	displaced bool          // under s.mu

	closing atomic.Bool
	wmu     sync.Mutex
	nc      net.Conn
	w       *bufio.Writer
	until   time.Time // of a LIST: it has to be taken by then
}

func newConn(s *Server, nc net.Conn) *conn {
	c := &conn{s: s, nc: nc, tcp: nc, gone: make(chan struct{}), session: s.cfg.Client.NewSession(nil), order: s.cfg.Order, form: s.cfg.Literals, log: s.log.With("conn", nc.RemoteAddr().String())}
	if at, err := netip.ParseAddrPort(nc.RemoteAddr().String()); err == nil {
		c.remote = at.Addr().Unmap().WithZone("")
	}
	c.over(nc)
	return c
}

// over reads and writes nc from now on.
func (c *conn) over(nc net.Conn) {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	c.nc = nc
	c.w = bufio.NewWriterSize(nc, 4096)
	c.r = mupdatewire.NewReader(nc, limitsBefore, func() error {
		if err := c.write([]byte("+ go ahead\r\n")); err != nil {
			return err
		}
		return c.flush()
	})
}

// errLogout ends a connection whose client said so.
var errLogout = errors.New("mupdate: logout")

// serve answers until the connection ends.
func (c *conn) serve() {
	err := c.greet()
	for err == nil {
		err = c.next()
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		_ = c.answer("*", bye, "nothing was heard for too long")
	}
	c.end(err)
	if c.stream != nil {
		c.stream.stop()
		c.close()
		<-c.stream.done
	}
	c.close()
}

// greet sends what the server can do.
func (c *conn) greet() error {
	var b []byte
	b = append(b, "* AUTH"...)
	if c.mayLogIn() {
		b = append(b, ` "PLAIN" "SCRAM-SHA-256"`...)
	}
	b = append(b, "\r\n"...)
	if c.s.cfg.TLS != nil && !c.tls {
		b = append(b, "* STARTTLS\r\n"...)
	}
	b = append(b, "* PARTIAL-UPDATE\r\n* OK MUPDATE "...)
	b = mupdatewire.AppendString(b, c.s.cfg.Hostname, mupdatewire.NonSync)
	b = append(b, ` "Rookery" `...)
	b = mupdatewire.AppendString(b, c.s.cfg.Version, mupdatewire.NonSync)
	b = append(b, " \"(master)\"\r\n"...)
	if err := c.write(b); err != nil {
		return err
	}
	return c.flush()
}

func (c *conn) mayLogIn() bool { return c.tls || c.s.cfg.Clear }

// next reads one command and answers it.
func (c *conn) next() error {
	idle := idleTime
	if c.user == nil {
		idle = loginTime
	}
	if err := c.wait(idle); err != nil {
		return err
	}
	c.nc.SetReadDeadline(time.Now().Add(c.s.cfg.LineTime))
	line, err := c.r.ReadLine()
	if e, is := errors.AsType[*mupdatewire.SyntaxError](err); is {
		c.s.m.commands.WithLabelValues("other", "bad").Inc()
		c.resync.fail()
		return c.answer(e.Tag, bad, e.Text)
	}
	if errors.Is(err, mupdatewire.ErrTooLong) {
		_ = c.answer("*", bye, "line too long")
		return err
	}
	if err != nil {
		return err
	}
	return c.command(line)
}

// wait returns when the first octet of the next command is there.
func (c *conn) wait(idle time.Duration) error {
	until := time.Now().Add(idle)
	for {
		next, renew := until, false
		if len(c.claims) > 0 {
			if renew = !c.renewalDue().After(time.Now()); renew {
				c.renewed = time.Now()
			}
			if due := c.renewalDue(); due.Before(next) {
				next = due
			}
		}
		c.nc.SetReadDeadline(next)
		join := func() {}
		if renew {
			join = c.renew()
		}
		err := c.r.Wait()
		join()
		if !errors.Is(err, os.ErrDeadlineExceeded) || !until.After(time.Now()) {
			return err
		}
	}
}

// renewalDue is when the claims are renewed next.
func (c *conn) renewalDue() time.Time { return c.renewed.Add(c.s.cfg.OrphanGrace / 3) }

// command answers one command.
func (c *conn) command(l mupdatewire.Line) error {
	name := strings.ToUpper(l.Word)
	cmd, known := commands[name]
	begun := time.Now()
	result, text := bad, ""
	switch {
	case !known:
		text = "Unrecognized command"
		name = "other"
	case c.user == nil && !cmd.before:
		text = "Please login first"
	case c.stream != nil && !cmd.streaming:
		text = "not legal when streaming"
	case len(l.Args) < cmd.least:
		text = "Missing arguments"
	case len(l.Args) > cmd.most:
		text = "Extra arguments"
	}
	if text != "" {
		c.s.m.commands.WithLabelValues(strings.ToLower(name), "bad").Inc()
		c.resync.fail()
		return c.answer(l.Tag, result, text)
	}
	ctx, cancel := context.WithTimeout(c.s.ctx, c.s.cfg.Timeout)
	defer cancel()
	if cmd.raw != nil {
		err := cmd.raw(c, ctx, l)
		if name == "FIND" || name == "LIST" {
			c.s.m.seconds.WithLabelValues(strings.ToLower(name)).Observe(time.Since(begun).Seconds())
		}
		return err
	}
	text, err := cmd.do(c, ctx, l)
	if errors.Is(err, errEnded) {
		return err
	}
	c.s.m.commands.WithLabelValues(strings.ToLower(name), outcome(err)).Inc()
	c.s.m.seconds.WithLabelValues(strings.ToLower(name)).Observe(time.Since(begun).Seconds())
	c.log.Debug("command", "cmd", name, "mailbox", first(l.Args), "dur", time.Since(begun), "err", err)
	if err != nil {
		c.resync.fail()
		return c.answer(l.Tag, no, reason(err))
	}
	return c.answer(l.Tag, ok, text)
}

func first(s []string) string {
	if len(s) == 0 {
		return ""
	}
	return s[0]
}

// command is how a command is answered. do returns the text after OK; raw writes all of
// its answer itself.
type command struct {
	least, most int
	before      bool // legal before login
	streaming   bool // legal while streaming
	do          func(*conn, context.Context, mupdatewire.Line) (string, error)
	raw         func(*conn, context.Context, mupdatewire.Line) error
}

// commands are all there are. COMPRESS, of Cyrus's own, is not: its clients never use it.
var commands = map[string]command{
	"AUTHENTICATE": {least: 1, most: 2, before: true, raw: (*conn).cmdAuthenticate},
	"STARTTLS":     {before: true, raw: (*conn).cmdStartTLS},
	"LOGOUT":       {before: true, streaming: true, raw: (*conn).cmdLogout},
	"RESERVE":      {least: 2, most: 2, do: (*conn).cmdReserve},
	"ACTIVATE":     {least: 3, most: 3, do: (*conn).cmdActivate},
	"DEACTIVATE":   {least: 2, most: 2, do: (*conn).cmdDeactivate},
	"DELETE":       {least: 1, most: 1, do: (*conn).cmdDelete},
	"FIND":         {least: 1, most: 1, raw: (*conn).cmdFind},
	"LIST":         {most: 1, raw: (*conn).cmdList},
	"UPDATE":       {most: 30, raw: (*conn).cmdUpdate},
	"NOOP":         {streaming: true, do: (*conn).cmdNoop},
}

// answer writes one line and sends all.
func (c *conn) answer(tag, word, text string) error {
	b := make([]byte, 0, len(tag)+len(word)+len(text)+8)
	b = append(b, tag...)
	b = append(append(b, ' '), word...)
	b = append(b, " \""...)
	b = append(b, mupdatewire.Text(text)...)
	b = append(b, "\"\r\n"...)
	if err := c.write(b); err != nil {
		return err
	}
	return c.flush()
}

// write puts b, a whole line, behind what is to be sent.
func (c *conn) write(b []byte) error {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	if c.w.Available() < len(b) {
		c.limitWrite()
	}
	_, err := c.w.Write(b)
	return err
}

// flush sends.
func (c *conn) flush() error {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	c.limitWrite()
	return c.w.Flush()
}

// limitWrite: whoever reads nothing for that long is not waited for.
func (c *conn) limitWrite() {
	limit := writeTime
	if c.stream != nil {
		limit = streamTime
	}
	end := time.Now().Add(limit)
	if !c.until.IsZero() && c.until.Before(end) {
		end = c.until
	}
	c.nc.SetWriteDeadline(end)
}

// cut ends the connection below TLS, from any goroutine, at any time.
func (c *conn) cut() {
	c.closing.Store(true)
	c.tcp.Close()
}

// close ends the connection. It is for those that come after STARTTLS or do it: the
// reader, and its stream.
func (c *conn) close() {
	if !c.closing.Swap(true) {
		c.nc.Close()
	}
}

func (c *conn) isOpen() bool { return !c.closing.Load() && c.s.ctx.Err() == nil }

// cmdStartTLS begins TLS. What came behind the command in the clear is dropped with the
// reader that has it: it may be of somebody in between.
func (c *conn) cmdStartTLS(_ context.Context, l mupdatewire.Line) error {
	switch {
	case c.s.cfg.TLS == nil:
		return c.answer(l.Tag, bad, "TLS is not offered")
	case c.tls:
		return c.answer(l.Tag, bad, "TLS is active already")
	case c.user != nil:
		return c.answer(l.Tag, bad, "already authenticated")
	}
	if err := c.write([]byte(l.Tag + " OK Begin TLS negotiation now\r\n")); err != nil {
		return err
	}
	if err := c.flush(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(c.s.ctx, c.s.cfg.LineTime)
	defer cancel()
	c.nc.SetDeadline(time.Now().Add(c.s.cfg.LineTime))
	secure := tls.Server(c.nc, c.s.cfg.TLS)
	if err := secure.HandshakeContext(ctx); err != nil {
		c.log.Info("no TLS", "err", err)
		return err
	}
	c.tls = true
	c.over(secure)
	if c.s.cfg.Holder != nil {
		name, err := c.s.cfg.Holder(secure.ConnectionState(), c.tcp.RemoteAddr())
		if err != nil {
			_ = c.answer("*", bye, "the certificate of this client is not taken; the server's log says why")
			return err
		}
		c.login = directory.BackendName(name)
	}
	return c.greet()
}

// cmdLogout ends what is pending, then the connection.
func (c *conn) cmdLogout(ctx context.Context, l mupdatewire.Line) error {
	c.finish(ctx)
	c.leave()
	c.endResync(ctx)
	_ = c.answer(l.Tag, ok, "bye-bye")
	return errLogout
}

// end settles what the connection leaves behind. err is why it ended.
func (c *conn) end(err error) {
	if c.user == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.s.ctx), c.s.cfg.Timeout)
	defer cancel()
	if err == errLogout {
		return
	}
	c.log.Debug("connection ended", "err", err)
	c.restore(ctx) // nobody can tell a client that is done from one that died, or was cut off: Cyrus says LOGOUT
	c.leave()
}
