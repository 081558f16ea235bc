package cyrus

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/rookery-mail/rookery/directory"
)

// Subscription says that a user is subscribed to a mailbox, which need not
// exist.
type Subscription struct {
	User    directory.UserID
	Mailbox directory.MailboxName
	Place   Place
}

// SubscriptionReader reads subscriptions. It holds one line at a time. It is
// for one goroutine.
type SubscriptionReader struct {
	in   *input
	user directory.UserID // whose file it is; empty: the input is a list of many users'
	err  error            // how the reading ended

	opened bool
	keys   bool   // the file has the order keys of 3.6, not names
	inbox  []byte // the user's inbox as such a key
	buf    []byte
}

// maxSubscription bounds a line: a name, and what stands before and behind it.
const maxSubscription = 64 << 10

// NewUserSubscriptions returns a reader of user's subscription file, in Cyrus's
// format "flat": of 3.6 and later, or of earlier releases, whichever it finds.
// A file of another database format is ErrFormat; cvt_cyrusdb makes it flat.
//
// Errors: directory.ErrInvalidName if user is no user id.
func NewUserSubscriptions(r io.Reader, user directory.UserID) (*SubscriptionReader, error) {
	inbox, err := user.Inbox()
	if err != nil {
		return nil, err
	}
	return &SubscriptionReader{in: newInput(r, maxSubscription), user: user, inbox: inbox.AppendKey(nil)}, nil
}

// NewSubscriptionList returns a reader of lines `user TAB mailbox`, as scripts
// make them: canonical user ids and names.
func NewSubscriptionList(r io.Reader) *SubscriptionReader {
	return &SubscriptionReader{in: newInput(r, maxSubscription)}
}

// versionKey is the first record of a subscription file of 3.6 and later; its
// value is the version.
const versionKey = "\x1fVER\x1f"

// Read returns the next subscription. Its errors are those of Reader.Read. An
// empty input is the file of a user without subscriptions.
func (r *SubscriptionReader) Read() (Subscription, error) {
	if r.err != nil {
		return Subscription{}, r.err
	}
	s, err := r.next()
	if err != nil {
		if _, ok := errors.AsType[*RefusedError](err); !ok {
			r.err = err
		}
	}
	return s, err
}

func (r *SubscriptionReader) next() (Subscription, error) {
	if !r.opened {
		r.opened = true
		if err := r.open(); err != nil {
			return Subscription{}, err
		}
	}
	for {
		place := r.in.place()
		line, cut := r.in.readLine()
		switch {
		case cut && place.Offset == r.in.offset():
			if r.in.err != io.EOF {
				return Subscription{}, ended(r.in.err, place, "")
			}
			return Subscription{}, io.EOF
		case cut:
			return Subscription{}, ended(r.in.err, r.in.place(), "a line")
		case r.in.over:
			return Subscription{}, refuse(place, "", fmt.Errorf("%w: a line of more than %d octets", directory.ErrTooLarge, r.in.max))
		case len(line) == 0:
			continue
		}
		s, err := r.parse(line)
		if err != nil {
			return Subscription{}, refuse(place, string(line[:min(len(line), maxNameShown)]), err)
		}
		s.Place = place
		return s, nil
	}
}

// open looks whether this is text at all, and which kind of flat file.
func (r *SubscriptionReader) open() error {
	head := r.in.peek(sniffed)
	line, _, whole := bytes.Cut(head, []byte{'\n'})
	key, value, ok := bytes.Cut(line, []byte{'\t'})
	switch {
	case len(head) == 0:
		return nil
	case !ok && len(bytes.TrimSpace(line)) > 0 && (whole || len(head) == sniffed), bytes.IndexByte(line, 0) >= 0:
		found := describe(head)
		if strings.HasSuffix(found, "database") {
			found += ": make it flat with cvt_cyrusdb"
		}
		return formatErrorf(r.in.place(), "no list of subscriptions: found %s", found)
	case r.user != "" && string(key) == versionKey && whole:
		if v := bytes.TrimSuffix(value, []byte{'\r'}); string(v) != "2" {
			return formatErrorf(r.in.place(), "a subscription file of version %.20q; 2 is known", v)
		}
		r.keys = true
		r.in.skipLine()
	}
	return nil
}

func (r *SubscriptionReader) parse(line []byte) (Subscription, error) {
	left, right, ok := bytes.Cut(line, []byte{'\t'})
	if !ok {
		return Subscription{}, errors.New("no TAB in the line")
	}
	if r.user == "" {
		user, err := directory.ParseUser(string(left))
		if err != nil {
			return Subscription{}, err
		}
		return subscription(user, string(right))
	}
	if len(right) > 0 {
		return Subscription{}, errors.New("something behind the name's TAB; is this a list of user TAB mailbox?")
	}
	if !r.keys {
		r.buf = appendFlat(r.buf[:0], left)
		return subscription(r.user, string(r.buf))
	}
	name, err := r.name(left)
	return Subscription{User: r.user, Mailbox: name}, err
}

func subscription(user directory.UserID, name string) (Subscription, error) {
	if first, _, _ := strings.Cut(name, "."); strings.EqualFold(first, "INBOX") {
		return Subscription{}, fmt.Errorf("%w: canonical names are wanted, in which an inbox is user.ID", directory.ErrInvalidName)
	}
	mailbox, err := directory.ParseName(name)
	return Subscription{User: user, Mailbox: mailbox}, err
}

// name turns a key of a 3.6 file into the name it stands for: an N, and the
// name's order key, in which the octets of the user's inbox, wherever they
// begin the key, are cut to "INBOX": bob's file has `INBOXby` for user.bobby.
func (r *SubscriptionReader) name(key []byte) (directory.MailboxName, error) {
	if len(key) == 0 || key[0] != 'N' {
		return "", fmt.Errorf("%w: the key does not begin with N", directory.ErrInvalidName)
	}
	key = key[1:]
	r.buf = r.buf[:0]
	if rest, ok := bytes.CutPrefix(key, []byte("INBOX")); ok {
		r.buf = append(r.buf, r.inbox...)
		key = rest
	}
	r.buf = appendFlat(r.buf, key)
	return directory.NameFromKey(r.buf)
}

// appendFlat undoes the escapes of Cyrus's flat databases: 0xFF before an octet
// whose high bit was set to hide it, or before another 0xFF.
func appendFlat(dst, s []byte) []byte {
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c == 0xff {
			if i++; i == len(s) {
				break
			}
			if c = s[i]; c != 0xff {
				c &^= 0x80
			}
		}
		dst = append(dst, c)
	}
	return dst
}

// SubscriptionFileUser tells whose subscription file stands at path, by
// Cyrus's layout: .../user/a/alice.sub, and with virtual domains
// .../domain/e/example.org/user/z/zoe.sub. A dot of the user's id may stand as
// '^' there.
//
// The files of 3.6 and later are called after the id of the user's inbox
// (.../user/uuid/a/b/ab.../sub.db), unless its directories are of the old
// kind: those tell no user, and are an error.
func SubscriptionFileUser(path string) (directory.UserID, error) {
	parts := strings.Split(filepath.ToSlash(path), "/")
	id, ok := strings.CutSuffix(parts[len(parts)-1], ".sub")
	if !ok {
		return "", fmt.Errorf("cyrus: %s: the path does not tell the user: it does not end in USER.sub", path)
	}
	id = strings.ReplaceAll(id, "^", ".")
	if n := len(parts); n >= 6 && parts[n-6] == "domain" && parts[n-3] == "user" {
		id += "@" + parts[n-4]
	}
	user, err := directory.ParseUser(id)
	if err != nil {
		return "", fmt.Errorf("cyrus: %s: %w", path, err)
	}
	return user, nil
}
