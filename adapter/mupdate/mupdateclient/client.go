package mupdateclient

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"iter"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/xdg-go/scram"

	"github.com/rookery-mail/rookery/adapter/mupdate/mupdatewire"
)

// Port is where MUPDATE is spoken.
const Port = "3905"

// Options say how to connect.
type Options struct {
	// TLS, if it is not nil, is what STARTTLS begins where the server offers it.
	TLS *tls.Config
	// RequireTLS: without STARTTLS nothing is said.
	RequireTLS bool
	// Mechanism is PLAIN or SCRAM-SHA-256; empty: the better of what is offered.
	Mechanism string
	// Idle, if it is not zero, is how long the server may be silent in the middle of an
	// answer.
	Idle time.Duration
}

// Record is what is said of one name.
type Record struct {
	Name     string
	Location string // server!partition
	ACL      string
	Kind     Kind
}

// Kind is a kind of record.
type Kind uint8

const (
	// Mailbox: it is there.
	Mailbox Kind = 1
	// Reserved: it is being made, or cannot be had now. Without ACL.
	Reserved Kind = 2
	// Deleted: it is no more. The name alone. Only behind a listing.
	Deleted Kind = 3
)

func (k Kind) String() string {
	switch k {
	case Mailbox:
		return "MAILBOX"
	case Reserved:
		return "RESERVE"
	case Deleted:
		return "DELETE"
	}
	return "unknown"
}

// Refused is a server's NO or BAD.
type Refused struct {
	Word string // "NO" or "BAD"
	Text string
}

func (r *Refused) Error() string { return "mupdateclient: " + r.Word + " " + strconv.Quote(r.Text) }

// ErrProtocol: what the server said makes no sense.
var ErrProtocol = errors.New("mupdateclient: unexpected answer")

// ErrNoMechanism: the server takes no login that can be made here.
var ErrNoMechanism = errors.New("mupdateclient: no mechanism in common")

// ErrNoTLS: the server does not offer STARTTLS, without which nothing is to be said.
var ErrNoTLS = errors.New("mupdateclient: the server does not offer STARTTLS")

// Client is a connection.
type Client struct {
	opts  Options
	host  string
	nc    net.Conn
	r     *mupdatewire.Reader
	tags  int
	greet Greeting
}

// Greeting is what a server says of itself.
type Greeting struct {
	Mechanisms []string
	StartTLS   bool
	// Text is what follows OK MUPDATE: host, product, version, and where its master is.
	Text []string
}

var limits = mupdatewire.Limits{Word: 64, String: 1 << 20, Args: 64, Line: 4 << 20, Skip: 0}

// Dial connects to addr, host or host:port, begins TLS if the options say so, and reads
// the greeting.
func Dial(ctx context.Context, addr string, opts Options) (*Client, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		host, addr = addr, net.JoinHostPort(addr, Port)
	}
	nc, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("mupdateclient: %w", err)
	}
	c := &Client{opts: opts, host: host}
	c.over(nc)
	err = c.with(ctx, func() error {
		if err := c.greeting(); err != nil {
			return err
		}
		return c.secure(ctx)
	})
	if err != nil {
		c.nc.Close()
		return nil, err
	}
	return c, nil
}

func (c *Client) over(nc net.Conn) {
	c.nc, c.r = nc, mupdatewire.NewReader(nc, limits, nil)
}

// with does f within ctx.
func (c *Client) with(ctx context.Context, f func() error) error {
	if d, ok := ctx.Deadline(); ok {
		c.nc.SetDeadline(d)
	} else {
		c.nc.SetDeadline(time.Time{})
	}
	nc := c.nc
	stop := context.AfterFunc(ctx, func() { nc.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	err := f()
	if err != nil && ctx.Err() != nil && !isRefused(err) {
		return fmt.Errorf("mupdateclient: %w: %w", ctx.Err(), err)
	}
	return err
}

// until lets what is read next take d; zero: as long as ctx lasts.
func (c *Client) until(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	c.nc.SetReadDeadline(time.Now().Add(d))
	if ctx.Err() != nil { // it may have ended just before, and its own deadline is gone now
		c.nc.SetReadDeadline(time.Unix(1, 0))
	}
}

func isRefused(err error) bool {
	_, is := errors.AsType[*Refused](err)
	return is
}

// greeting reads up to the line that begins "* OK".
func (c *Client) greeting() error {
	c.greet = Greeting{}
	for {
		line, err := c.r.Raw()
		if err != nil {
			return fmt.Errorf("mupdateclient: greeting: %w", err)
		}
		rest, ok := strings.CutPrefix(line, "* ")
		word, text, _ := strings.Cut(rest, " ")
		if !ok {
			return fmt.Errorf("%w: greeting %.80q", ErrProtocol, line)
		}
		switch strings.ToUpper(word) {
		case "AUTH":
			for _, m := range strings.Fields(text) {
				c.greet.Mechanisms = append(c.greet.Mechanisms, strings.ToUpper(strings.Trim(m, `"`)))
			}
		case "STARTTLS":
			c.greet.StartTLS = true
		case "OK":
			c.greet.Text = strings.Fields(text)
			return nil
		case "BYE", "NO":
			return &Refused{Word: strings.ToUpper(word), Text: strings.Trim(text, `"`)}
		}
	}
}

// secure begins TLS.
func (c *Client) secure(ctx context.Context) error {
	if c.opts.TLS == nil || !c.greet.StartTLS {
		if c.opts.RequireTLS {
			return ErrNoTLS
		}
		return nil
	}
	if err := c.send([]byte("S01 STARTTLS\r\n")); err != nil {
		return err
	}
	line, err := c.r.Raw()
	if err != nil {
		return err
	}
	if !strings.HasPrefix(strings.ToUpper(line), "S01 OK") {
		return fmt.Errorf("%w: STARTTLS: %.80q", ErrProtocol, line)
	}
	cfg := c.opts.TLS
	if cfg.ServerName == "" && !cfg.InsecureSkipVerify {
		cfg = cfg.Clone()
		cfg.ServerName = c.host
	}
	secure := tls.Client(c.nc, cfg)
	if err := secure.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("mupdateclient: STARTTLS: %w", err)
	}
	c.over(secure)
	return c.greeting()
}

// Greeting returns what the server said of itself last.
func (c *Client) Greeting() Greeting { return c.greet }

// Close breaks the connection off.
func (c *Client) Close() error { return c.nc.Close() }

// Login authenticates.
//
// Errors: *Refused, ErrNoMechanism.
func (c *Client) Login(ctx context.Context, name, password string) error {
	return c.with(ctx, func() error {
		mechanism := strings.ToUpper(c.opts.Mechanism)
		if mechanism == "" {
			for _, m := range []string{"SCRAM-SHA-256", "PLAIN"} {
				if slices.Contains(c.greet.Mechanisms, m) {
					mechanism = m
					break
				}
			}
		}
		switch mechanism {
		case "PLAIN":
			return c.sasl("PLAIN", "\x00"+name+"\x00"+password, nil)
		case "SCRAM-SHA-256":
			prepared, err := scram.SHA256.NewClient(name, password, "")
			if err != nil {
				return fmt.Errorf("mupdateclient: %w", err)
			}
			talk := prepared.NewConversation()
			first, err := talk.Step("")
			if err != nil {
				return fmt.Errorf("mupdateclient: %w", err)
			}
			err = c.sasl("SCRAM-SHA-256", first, func(challenge string) (string, error) {
				if talk.Done() {
					return "", nil
				}
				return talk.Step(challenge)
			})
			if err == nil && !talk.Valid() {
				return errors.New("mupdateclient: the server does not know the password it asked for")
			}
			return err
		}
		return fmt.Errorf("%w: %v", ErrNoMechanism, c.greet.Mechanisms)
	})
}

// sasl makes one exchange.
func (c *Client) sasl(mechanism, initial string, step func(string) (string, error)) error {
	b := append([]byte("A01 AUTHENTICATE "), `"`+mechanism+`" `...)
	b = mupdatewire.AppendString(b, base64.StdEncoding.EncodeToString([]byte(initial)), mupdatewire.NonSync)
	if err := c.send(append(b, "\r\n"...)); err != nil {
		return err
	}
	for {
		line, err := c.r.Raw()
		if err != nil {
			return err
		}
		up := strings.ToUpper(line)
		switch {
		case strings.HasPrefix(up, "A01 OK"):
			return nil
		case strings.HasPrefix(up, "A01 NO"), strings.HasPrefix(up, "A01 BAD"):
			word, text, _ := strings.Cut(line[len("A01 "):], " ")
			return &Refused{Word: strings.ToUpper(word), Text: strings.Trim(text, `"`)}
		}
		answer := "*"
		challenge, err := base64.StdEncoding.DecodeString(line)
		if err == nil && step != nil {
			if text, stepErr := step(string(challenge)); stepErr == nil {
				answer = base64.StdEncoding.EncodeToString([]byte(text))
			}
		}
		if err := c.send([]byte(answer + "\r\n")); err != nil {
			return err
		}
	}
}

func (c *Client) send(b []byte) error {
	if _, err := c.nc.Write(b); err != nil {
		return fmt.Errorf("mupdateclient: %w", err)
	}
	return nil
}

// command sends a command and calls each for the records before its answer.
func (c *Client) command(ctx context.Context, word string, args []string, each func(Record) error) error {
	tag := "X" + strconv.Itoa(c.tags)
	c.tags++
	b := append([]byte(tag+" "), word...)
	for _, a := range args {
		// As Cyrus clients do: every argument a literal.
		b = mupdatewire.AppendLiteral(append(b, ' '), a, mupdatewire.NonSync)
	}
	if err := c.send(append(b, "\r\n"...)); err != nil {
		return err
	}
	return c.answer(ctx, tag, each)
}

// answer reads up to the answer to tag.
func (c *Client) answer(ctx context.Context, tag string, each func(Record) error) error {
	for {
		c.until(ctx, c.opts.Idle)
		l, err := c.r.ReadLine()
		if err != nil {
			return fmt.Errorf("mupdateclient: %w", err)
		}
		word := strings.ToUpper(l.Word)
		text := strings.Join(l.Args, " ")
		switch word {
		case "OK":
			if l.Tag == tag {
				return nil
			}
		case "NO", "BAD":
			return &Refused{Word: word, Text: text}
		case "BYE":
			return fmt.Errorf("mupdateclient: the server ends the connection: %s", text)
		default:
			r, err := record(l)
			if err != nil {
				return err
			}
			if each == nil {
				return fmt.Errorf("%w: %s before the answer", ErrProtocol, word)
			}
			if err := each(r); err != nil {
				return err
			}
			continue
		}
		return fmt.Errorf("%w: %s %s", ErrProtocol, l.Tag, l.Word)
	}
}

func record(l mupdatewire.Line) (Record, error) {
	word := strings.ToUpper(l.Word)
	switch {
	case word == "MAILBOX" && len(l.Args) == 3:
		return Record{l.Args[0], l.Args[1], l.Args[2], Mailbox}, nil
	case word == "RESERVE" && len(l.Args) == 2:
		return Record{Name: l.Args[0], Location: l.Args[1], Kind: Reserved}, nil
	case word == "DELETE" && len(l.Args) == 1:
		return Record{Name: l.Args[0], Kind: Deleted}, nil
	}
	return Record{}, fmt.Errorf("%w: %s with %d arguments", ErrProtocol, l.Word, len(l.Args))
}

// do is a command without records.
func (c *Client) do(ctx context.Context, word string, args ...string) error {
	return c.with(ctx, func() error { return c.command(ctx, word, args, nil) })
}

// Reserve asks for a name. Taken: *Refused.
func (c *Client) Reserve(ctx context.Context, name, location string) error {
	return c.do(ctx, "RESERVE", name, location)
}

// Activate says that name is at location.
func (c *Client) Activate(ctx context.Context, name, location, acl string) error {
	return c.do(ctx, "ACTIVATE", name, location, acl)
}

// Deactivate gives name up.
func (c *Client) Deactivate(ctx context.Context, name, location string) error {
	return c.do(ctx, "DEACTIVATE", name, location)
}

// Delete says that name is no more.
func (c *Client) Delete(ctx context.Context, name string) error { return c.do(ctx, "DELETE", name) }

// Noop does nothing, and no answer comes before what it has to be after.
func (c *Client) Noop(ctx context.Context) error { return c.do(ctx, "NOOP") }

// Find returns the record of name; false if there is none.
func (c *Client) Find(ctx context.Context, name string) (r Record, found bool, err error) {
	err = c.with(ctx, func() error {
		return c.command(ctx, "FIND", []string{name}, func(one Record) error {
			r, found = one, true
			return nil
		})
	})
	return r, found, err
}

// List yields the records whose location begins with prefix, in the server's order.
// After an error, which it yields last, what came before is not all there is.
func (c *Client) List(ctx context.Context, prefix string) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		var args []string
		if prefix != "" {
			args = []string{prefix}
		}
		left := errors.New("left")
		err := c.with(ctx, func() error {
			return c.command(ctx, "LIST", args, func(r Record) error {
				if !yield(r, nil) {
					return left
				}
				return nil
			})
		})
		if err == left {
			c.nc.Close() // the rest would be taken for what is asked next
			return
		}
		if err != nil {
			yield(Record{}, err)
		}
	}
}

// Update asks what there is, calls each for every record, then listed, and then each
// again for what changes, until ctx ends, the connection does, or one of them returns
// an error, which it returns. ping, if it is not zero, is after how long a silence the
// server is asked whether it is still there; noop, if not nil, is called at each answer
// to a Ping. Nothing else can be done with the connection.
//
// Errors: *Refused, with which nothing was listed, or the server ended the stream.
func (c *Client) Update(ctx context.Context, each func(Record) error, listed func() error, ping time.Duration, noop func() error) error {
	return c.with(ctx, func() error {
		if err := c.command(ctx, "UPDATE", nil, each); err != nil {
			return err
		}
		if listed != nil {
			if err := listed(); err != nil {
				return err
			}
		}
		return c.follow(ctx, each, ping, noop)
	})
}

// Ping asks the server, while Update is told what changes, to answer when all that was
// committed before has been told; Update calls noop then. It may be called by another
// goroutine, and does not wait.
func (c *Client) Ping() error { return c.send([]byte(pingTag + " NOOP\r\n")) }

// pingTag tells the answer to a Ping from those to questions whether somebody is there,
// which say nothing of what was committed after them.
const pingTag = "P0"

// follow reads what changes.
func (c *Client) follow(ctx context.Context, each func(Record) error, ping time.Duration, noop func() error) error {
	asked := false // whether somebody is there
	for n := 0; ; {
		c.until(ctx, ping)
		if err := c.r.Wait(); err != nil {
			if ne, is := errors.AsType[net.Error](err); !is || !ne.Timeout() || ctx.Err() != nil || asked || ping <= 0 {
				return fmt.Errorf("mupdateclient: %w", err)
			}
			asked = true
			if err := c.send([]byte("N" + strconv.Itoa(n) + " NOOP\r\n")); err != nil {
				return err
			}
			n++
			continue
		}
		c.until(ctx, max(ping, time.Minute)) // one line
		l, err := c.r.ReadLine()
		if err != nil {
			return fmt.Errorf("mupdateclient: %w", err)
		}
		asked = false
		switch word := strings.ToUpper(l.Word); word {
		case "OK":
			if noop != nil && l.Tag == pingTag {
				if err := noop(); err != nil {
					return err
				}
			}
		case "NO", "BAD", "BYE":
			return &Refused{Word: word, Text: strings.Join(l.Args, " ")}
		default:
			r, err := record(l)
			if err != nil {
				return err
			}
			if err := each(r); err != nil {
				return err
			}
		}
	}
}

// Logout ends the connection.
func (c *Client) Logout(ctx context.Context) error {
	err := c.with(ctx, func() error { return c.command(ctx, "LOGOUT", nil, nil) })
	return errors.Join(err, c.nc.Close())
}
