package mupdate

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/xdg-go/scram"

	"github.com/rookery-mail/rookery/adapter/mupdate/mupdatewire"
)

// AUTHENTICATE, RFC 3656 section 4.1, as Cyrus speaks it: challenges and responses are
// bare lines of base64, an empty challenge is an empty line, and no data goes with the
// OK, so that SCRAM's last message is one more challenge, answered by an empty line.

var (
	errCancelled = errors.New("authentication cancelled")
	errLogin     = errors.New("wrong login or password")
	errExchange  = errors.New("that is no exchange of this mechanism")
	errLimited   = errors.New("too many wrong passwords from this address; wait a minute")
	errActAs     = errors.New("a login acts as itself only")
)

// How many wrong passwords one connection may send.
const maxWrong = 5

// maxLogged is how many octets are logged of a login that a stranger gives.
const maxLogged = 64

func (c *conn) cmdAuthenticate(ctx context.Context, l mupdatewire.Line) error {
	if c.user != nil {
		return c.answer(l.Tag, bad, "already authenticated")
	}
	mechanism := strings.ToUpper(l.Args[0])
	var exchange func(*sasl) (*User, error)
	switch {
	case !c.mayLogIn():
		return c.answer(l.Tag, no, "logins are taken over TLS only")
	case mechanism == "PLAIN":
		exchange = c.plain
	case mechanism == "SCRAM-SHA-256":
		exchange = c.scram
	default:
		return c.answer(l.Tag, no, "no such mechanism")
	}
	x := &sasl{c: c}
	if len(l.Args) == 2 {
		x.initial = &l.Args[1]
	}
	user, err := exchange(x)
	if x.broken != nil {
		return x.broken
	}
	if err != nil {
		return c.refuseLogin(l.Tag, mechanism, x.login, err)
	}
	c.s.m.logins.WithLabelValues(mechanism, "ok").Inc()
	c.s.mu.Lock()
	c.s.known(c)
	c.s.mu.Unlock()
	c.user = user
	if user.Server != "" {
		c.login = user.Server
	}
	if user.Order != nil {
		c.order = *user.Order
	}
	if user.Literals != nil {
		c.form = *user.Literals
	}
	if c.source = c.s.cfg.Users.source(c.remote); c.source == "" {
		c.source = c.s.places.of(c.remote)
	}
	c.log = c.log.With("login", user.Name)
	c.r.SetLimits(limitsAfter)
	c.log.Debug("logged in", "mechanism", mechanism)
	return c.answer(l.Tag, ok, "Authenticated")
}

// refuseLogin answers a login that failed, after a pause.
func (c *conn) refuseLogin(tag, mechanism, login string, err error) error {
	result := "broken"
	switch {
	case errors.Is(err, errLogin):
		result = "refused"
		of := login
		if c.s.cfg.Users.user(login) == nil {
			of = "" // strangers' names are not kept
		}
		c.s.refusals.add(c.remote, of, time.Now())
	case errors.Is(err, errLimited):
		result = "limited"
	}
	c.s.m.logins.WithLabelValues(mechanism, result).Inc()
	c.log.Warn("login refused", "login", login[:min(len(login), maxLogged)], "mechanism", mechanism, "reason", err)
	if !errors.Is(err, errCancelled) {
		select {
		case <-time.After(c.s.cfg.LoginPause):
		case <-c.gone:
		case <-c.s.ctx.Done():
		}
	}
	if err := c.answer(tag, no, err.Error()); err != nil {
		return err
	}
	if c.wrong++; c.wrong == maxWrong {
		_ = c.answer("*", bye, "too many logins failed")
		return errLogin
	}
	return nil
}

// sasl is one exchange.
type sasl struct {
	c       *conn
	initial *string
	login   string // as it was given; empty: not yet
	broken  error  // the connection's
}

// first returns the client's first message.
func (x *sasl) first() ([]byte, error) {
	if x.initial == nil {
		return x.ask(nil)
	}
	if *x.initial == "=" {
		return nil, nil
	}
	return decode(*x.initial)
}

// ask sends a challenge and returns the response.
func (x *sasl) ask(challenge []byte) ([]byte, error) {
	b := append([]byte(base64.StdEncoding.EncodeToString(challenge)), "\r\n"...)
	err := x.c.write(b)
	if err == nil {
		err = x.c.flush()
	}
	var line string
	if err == nil {
		x.c.nc.SetReadDeadline(time.Now().Add(x.c.s.cfg.LineTime))
		line, err = x.c.r.Raw()
	}
	if _, is := errors.AsType[*mupdatewire.SyntaxError](err); is {
		return nil, errExchange
	}
	if err != nil {
		x.broken = err
		return nil, err
	}
	if line == "*" {
		return nil, errCancelled
	}
	return decode(line)
}

func decode(s string) ([]byte, error) {
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		return nil, errExchange
	}
	return b, nil
}

// plain: RFC 4616.
func (c *conn) plain(x *sasl) (*User, error) {
	message, err := x.first()
	if err != nil {
		return nil, err
	}
	parts := bytes.Split(message, []byte{0})
	if len(parts) != 3 {
		return nil, errExchange
	}
	as, name, password := string(parts[0]), string(parts[1]), string(parts[2])
	x.login = name
	user := c.s.cfg.Users.user(name)
	if user != nil && c.s.cfg.Users.remembered(user, password) {
		if as != "" && as != name {
			return nil, errActAs
		}
		return user, nil
	}
	if c.s.refusals.tooMany(c.remote, time.Now()) {
		return nil, errLimited
	}
	checked := user
	if checked == nil {
		checked = c.s.cfg.Users.nobody(name)
	}
	select {
	case c.s.checks <- struct{}{}:
	case <-c.gone:
		return nil, errLimited
	case <-c.s.ctx.Done():
		return nil, errLimited
	}
	limited := c.s.refusals.tooMany(c.remote, time.Now()) // by those that came before
	right := !limited && checked.check(password)
	<-c.s.checks
	if limited {
		return nil, errLimited
	}
	if !right || user == nil {
		return nil, errLogin
	}
	if as != "" && as != name {
		return nil, errActAs
	}
	c.s.cfg.Users.remember(user, password)
	return user, nil
}

// scram: RFC 5802 and 7677, without channel binding.
func (c *conn) scram(x *sasl) (*User, error) {
	var user *User
	server, err := scram.SHA256.NewServer(func(name string) (scram.StoredCredentials, error) {
		x.login = name
		if user = c.s.cfg.Users.user(name); user != nil {
			return user.secret, nil
		}
		return c.s.cfg.Users.nobody(name).secret, nil
	})
	if err != nil {
		return nil, err
	}
	message, err := x.first()
	if err != nil {
		return nil, err
	}
	talk := server.NewConversation()
	answer, err := talk.Step(string(message))
	if err != nil {
		return nil, errExchange
	}
	if message, err = x.ask([]byte(answer)); err != nil {
		return nil, err
	}
	// Who is refused for that is asked all the same: nobody learns which logins there are.
	if now := time.Now(); c.s.refusals.tooMany(c.remote, now) && (user == nil || !c.s.cfg.Users.wasRight(user) || c.s.refusals.tooManyOf(user.Name, now)) {
		return nil, errLimited
	}
	answer, err = talk.Step(string(message))
	if err != nil || !talk.Valid() || user == nil {
		return nil, errLogin
	}
	if as := talk.AuthzID(); as != "" && as != user.Name {
		return nil, errActAs
	}
	if message, err = x.ask([]byte(answer)); err != nil {
		return nil, err
	}
	if len(message) != 0 {
		return nil, errExchange
	}
	c.s.cfg.Users.isRight(user)
	return user, nil
}

// refusals counts wrong passwords by where they came from, and by login.
type refusals struct {
	mu    sync.Mutex
	from  map[netip.Prefix]int
	of    map[string]int
	until time.Time // the count begins anew then
}

// whence is what an address is counted by. Of IPv6 it is the network of 64 bits: who
// has one address of it has them all.
func whence(a netip.Addr) netip.Prefix {
	bits := a.BitLen()
	if a.Is6() {
		bits = 64
	}
	p, _ := a.Prefix(bits) // of an address that there is none of, none
	return p
}

// More wrong passwords than that of one address in a minute are not looked at, but for
// logins whose password was right before. PLAIN shows whether it is the same; by SCRAM a
// few of that login are looked at.
const (
	refusalLimit  = 30
	refusalLogin  = 5
	refusalWindow = time.Minute
	refusalMost   = 10_000 // addresses
)

// add counts one; login is one that there is, or empty.
func (r *refusals) add(a netip.Addr, login string, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now.After(r.until) || len(r.from) >= refusalMost {
		r.from, r.of, r.until = make(map[netip.Prefix]int), make(map[string]int), now.Add(refusalWindow)
	}
	r.from[whence(a)]++
	if login != "" {
		r.of[login]++
	}
}

func (r *refusals) tooManyOf(login string, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return now.Before(r.until) && r.of[login] >= refusalLogin
}

func (r *refusals) tooMany(a netip.Addr, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return now.Before(r.until) && r.from[whence(a)] >= refusalLimit
}
