//go:build peers

package interop

import (
	"bufio"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// errHung is an answer that did not come in time.
var errHung = errors.New("no answer in time")

// imap is a connection to an imapd, for one user.
type imap struct {
	nc net.Conn
	b  *bufio.Reader
}

// reply is the answer to one command.
type reply struct {
	status string   // "OK", "NO", "BAD", or "BYE" where that is the end
	text   string   // what follows, without the response code
	lines  []string // untagged responses without "* ", literals and all
}

// dialIMAP logs in as a user, by the admin's password. Whether the server has a mailbox
// of that user plays no part.
func dialIMAP(at, user string) (*imap, error) {
	nc, err := net.DialTimeout("tcp", at, patience)
	if err != nil {
		return nil, timedOut(err)
	}
	c := &imap{nc: nc, b: bufio.NewReader(nc)}
	_ = nc.SetDeadline(time.Now().Add(patience))
	greeting, err := c.line()
	if err == nil && !strings.HasPrefix(greeting, "* OK") {
		err = fmt.Errorf("greeting: %s", greeting)
	}
	if err == nil {
		var r reply
		r, err = c.do("AUTHENTICATE PLAIN " + base64.StdEncoding.EncodeToString([]byte(user+"\x00cyrus\x00secret")))
		if err == nil && r.status != "OK" {
			err = fmt.Errorf("login as %s: %s %s", user, r.status, r.text)
		}
	}
	if err != nil {
		nc.Close()
		return nil, fmt.Errorf("imap %s: %w", at, timedOut(err))
	}
	return c, nil
}

func timedOut(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return errHung
	}
	return err
}

func (c *imap) close() {
	_ = c.nc.SetDeadline(time.Now().Add(time.Second))
	_, _ = io.WriteString(c.nc, "z LOGOUT\r\n")
	_, _ = io.Copy(io.Discard, c.b)
	c.nc.Close()
}

// code is a response code at the start of a text.
var code = regexp.MustCompile(`^\[[^]]*\] ?`)

// do sends a command and reads the answer. literal, if there is one, follows the command.
func (c *imap) do(command string, literal ...string) (r reply, err error) {
	_ = c.nc.SetDeadline(time.Now().Add(patience))
	for _, text := range literal {
		command += fmt.Sprintf(" {%d+}\r\n%s", len(text), text)
	}
	if _, err := io.WriteString(c.nc, "a "+command+"\r\n"); err != nil {
		return r, timedOut(err)
	}
	for {
		line, err := c.line()
		if err != nil {
			return r, timedOut(err)
		}
		if rest, ok := strings.CutPrefix(line, "a "); ok {
			r.status, r.text, _ = strings.Cut(rest, " ")
			r.text = code.ReplaceAllString(r.text, "")
			return r, nil
		}
		if text, ok := strings.CutPrefix(line, "* BYE "); ok {
			r.status, r.text = "BYE", text
			return r, nil
		}
		r.lines = append(r.lines, strings.TrimPrefix(line, "* "))
	}
}

var literalEnd = regexp.MustCompile(`\{(\d+)\}$`)

// line reads a response with its literals.
func (c *imap) line() (string, error) {
	var all string
	for {
		line, err := c.b.ReadString('\n')
		if err != nil {
			return "", err
		}
		all += strings.TrimRight(line, "\r\n")
		m := literalEnd.FindStringSubmatch(all)
		if m == nil {
			return all, nil
		}
		n, _ := strconv.Atoi(m[1])
		text := make([]byte, n)
		if _, err := io.ReadFull(c.b, text); err != nil {
			return "", err
		}
		all += "\n" + string(text)
	}
}

// show is an answer as scripts have it: of LIST and LSUB the names, of others what they
// told without what differs from run to run; then the status, unless it is OK.
func (r reply) show() (lines []string) {
	for _, line := range r.lines {
		word, rest, _ := strings.Cut(line, " ")
		switch word {
		case "LIST", "LSUB":
			if _, name, ok := strings.Cut(rest, `"." `); ok {
				lines = append(lines, strings.Trim(name, `"`))
			}
		case "ACL", "MYRIGHTS", "STATUS", "SEARCH", "QUOTA":
			lines = append(lines, line)
		}
	}
	slices.Sort(lines)
	if r.status != "OK" {
		lines = append(lines, r.status+" "+r.text)
	}
	return lines
}

// messageID finds the ids of the lab's mails.
var messageID = regexp.MustCompile(`<interop-\d+@test>`)

// readAll returns the ids of all mails that a user can read below the own inbox.
func readAll(at, user string) (ids map[string]string, err error) {
	c, err := dialIMAP(at, user)
	if err != nil {
		return nil, err
	}
	defer c.close()
	ids = map[string]string{}
	r, err := c.do(`LIST "" "INBOX*"`)
	if err != nil {
		return nil, err
	}
	for _, name := range r.show() {
		if r, err := c.do("EXAMINE " + quote(name)); err != nil {
			return nil, err
		} else if r.status != "OK" {
			return nil, fmt.Errorf("EXAMINE %s as %s: %s %s", name, user, r.status, r.text)
		}
		r, err := c.do("UID FETCH 1:* (BODY.PEEK[HEADER.FIELDS (MESSAGE-ID)])")
		if err != nil {
			return nil, err
		}
		for _, line := range r.lines {
			if id := messageID.FindString(line); id != "" {
				ids[id] = name
			}
		}
	}
	return ids, nil
}

func quote(s string) string { return `"` + s + `"` }

// lmtp speaks LMTP: one message to one user. It returns the reply to RCPT, or, if that
// was good, the one to the message.
func lmtp(at, user, message string) (string, error) {
	nc, err := net.DialTimeout("tcp", at, patience)
	if err != nil {
		return "", timedOut(err)
	}
	defer nc.Close()
	_ = nc.SetDeadline(time.Now().Add(patience))
	b := bufio.NewReader(nc)
	answer := func() (string, error) {
		for {
			line, err := b.ReadString('\n')
			if err != nil {
				return "", timedOut(err)
			}
			if len(line) < 4 || line[3] != '-' {
				return strings.TrimSpace(line), nil
			}
		}
	}
	last, err := answer()
	steps := []string{"LHLO interop.test", "MAIL FROM:<>", "RCPT TO:<" + user + ">"}
	if message != "" {
		steps = append(steps, "DATA", message+"\r\n.")
	}
	for _, step := range steps {
		if err != nil || last[0] > '3' {
			return last, err
		}
		if _, err := io.WriteString(nc, step+"\r\n"); err != nil {
			return "", timedOut(err)
		}
		last, err = answer()
	}
	_, _ = io.WriteString(nc, "QUIT\r\n")
	return last, err
}
