package mupdate

import (
	"bufio"
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/xdg-go/scram"

	"github.com/rookery-mail/rookery/adapter/mupdate/mupdatewire"
	"github.com/rookery-mail/rookery/directory"
)

// A users file has a line for each login:
//
//	NAME SCRAM-SHA-256$ITERATIONS:SALT$STORED:SERVER [server=S] [order=octet] [literals=sync]
//
// The secret is what PostgreSQL keeps too: RFC 5802's StoredKey and ServerKey, from
// which the password does not follow. server binds the login to one backend; order and
// literals are for clients of old releases. A line
//
//	@ADDRESS server=S
//
// says that what comes from that address and is bound to nobody comes from S; of an
// address with several such lines nothing follows. '#' begins a comment.

// Order is how records are ordered.
type Order uint8

const (
	// KeyOrder is by Cyrus's internal key, as releases from 3.6 on keep their lists.
	KeyOrder Order = 0
	// OctetOrder is by the octets of the name, as releases before did.
	OctetOrder Order = 1
)

func (o Order) String() string {
	if o == OctetOrder {
		return "octet"
	}
	return "key"
}

// Set reads "key" or "octet"; it is a flag's.
func (o *Order) Set(s string) error {
	switch s {
	case "key":
		*o = KeyOrder
	case "octet":
		*o = OctetOrder
	default:
		return fmt.Errorf("%q: key or octet", s)
	}
	return nil
}

// Literals is in which form a login is sent what cannot be quoted.
type Literals struct{ mupdatewire.Form }

// Set reads "nonsync" or "sync"; it is a flag's.
func (l *Literals) Set(s string) error {
	switch s {
	case "nonsync":
		l.Form = mupdatewire.NonSync
	case "sync":
		l.Form = mupdatewire.Sync
	default:
		return fmt.Errorf("%q: sync or nonsync", s)
	}
	return nil
}

// User is one login.
type User struct {
	Name     string
	Server   directory.BackendName // empty: not bound
	Order    *Order                // nil: the listener's
	Literals *Literals             // nil: the listener's
	secret   scram.StoredCredentials
}

// Users are who may log in, from a file that is read again when it changes. It may be
// used by many goroutines at once.
type Users struct {
	path string
	key  [32]byte // of this process, for what is remembered of passwords

	mu      sync.Mutex
	looked  time.Time
	stamp   fileStamp
	broken  error // why what is in the file now is not used; nil: it is
	byName  map[string]*User
	sources map[netip.Addr]directory.BackendName // empty: several
	known   map[*User][32]byte                   // of the password that was right last
	right   map[*User]bool                       // it has been, by whatever mechanism
}

type fileStamp struct {
	modified time.Time
	size     int64
}

// lookAgain is how often the file is looked at.
const lookAgain = time.Second

// LoadUsers reads a users file.
func LoadUsers(path string) (*Users, error) {
	u := &Users{path: path}
	if _, err := rand.Read(u.key[:]); err != nil {
		return nil, fmt.Errorf("mupdate: draw a key: %w", err)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if err := u.load(); err != nil {
		return nil, err
	}
	return u, nil
}

// load reads the file; what was known stays if that fails. u.mu is held.
func (u *Users) load() error {
	f, info, err := openRegular(u.path)
	if err != nil {
		return fmt.Errorf("mupdate: users: %w", err)
	}
	defer f.Close()
	u.stamp, u.looked = fileStamp{info.ModTime(), info.Size()}, time.Now()
	byName, sources, err := parseUsers(f)
	if err != nil {
		return fmt.Errorf("mupdate: users: %s: %w", u.path, err)
	}
	known, right := map[*User][32]byte{}, map[*User]bool{}
	for name, user := range byName {
		old := u.byName[name]
		if old == nil || !bytes.Equal(old.secret.StoredKey, user.secret.StoredKey) {
			continue
		}
		if sum, is := u.known[old]; is {
			known[user] = sum
		}
		right[user] = u.right[old]
	}
	u.byName, u.sources, u.known, u.right = byName, sources, known, right
	return nil
}

// openRegular opens a file. Of what is none it opens nothing, which could wait for ever,
// with every login behind it.
func openRegular(path string) (*os.File, os.FileInfo, error) {
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		return nil, nil, fmt.Errorf("%s is no regular file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, info, nil
}

// fresh reads the file again if it changed. u.mu is held.
func (u *Users) fresh() {
	if time.Since(u.looked) < lookAgain {
		return
	}
	u.looked = time.Now()
	info, err := os.Stat(u.path)
	if err == nil && (fileStamp{info.ModTime(), info.Size()}) == u.stamp {
		return
	}
	if err == nil {
		err = u.load()
	} else {
		u.stamp = fileStamp{} // whatever comes back is read
	}
	u.broken = err
}

// Broken says why the file as it is now is not used; nil if it is.
func (u *Users) Broken() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.fresh()
	return u.broken
}

// user returns the login of that name, nil if there is none.
func (u *Users) user(name string) *User {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.fresh()
	return u.byName[name]
}

// source returns the backend that an address is registered for, empty if for none, or
// for several.
func (u *Users) source(addr netip.Addr) directory.BackendName {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.sources[addr]
}

// remembered reports whether password is the one that was right last: checking it in
// earnest takes a thousand times longer, and clients log in for every command.
func (u *Users) remembered(user *User, password string) bool {
	sum := u.sum(password)
	u.mu.Lock()
	defer u.mu.Unlock()
	known, ok := u.known[user]
	return ok && hmac.Equal(known[:], sum[:])
}

func (u *Users) remember(user *User, password string) {
	sum := u.sum(password)
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.byName[user.Name] == user {
		u.known[user], u.right[user] = sum, true
	}
}

// wasRight reports whether somebody has logged in so; isRight notes it.
func (u *Users) wasRight(user *User) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.right[user]
}

func (u *Users) isRight(user *User) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.byName[user.Name] == user {
		u.right[user] = true
	}
}

func (u *Users) sum(password string) (sum [32]byte) {
	h := hmac.New(sha256.New, u.key[:])
	io.WriteString(h, password)
	return [32]byte(h.Sum(nil))
}

// check reports whether password is the user's.
func (user *User) check(password string) bool {
	stored, err := derive(password, user.secret.KeyFactors)
	return err == nil && subtle.ConstantTimeCompare(stored.StoredKey, user.secret.StoredKey) == 1
}

// nobody is who is checked when there is no such login, so that it takes as long. Its
// salt is the name's, so that SCRAM tells nothing either.
func (u *Users) nobody(name string) *User {
	sum := u.sum("no such login\x00" + name)
	return &User{Name: name, secret: scram.StoredCredentials{
		KeyFactors: scram.KeyFactors{Salt: string(sum[:saltOctets]), Iters: iterations},
		StoredKey:  make([]byte, sha256.Size),
		ServerKey:  make([]byte, sha256.Size),
	}}
}

func derive(password string, k scram.KeyFactors) (scram.StoredCredentials, error) {
	c, err := scram.SHA256.NewClient("user", password, "")
	if err != nil {
		return scram.StoredCredentials{}, err
	}
	return c.GetStoredCredentialsWithError(k)
}

const (
	scheme     = "SCRAM-SHA-256"
	iterations = 4096 // RFC 7677, section 4
	saltOctets = 16
	maxIters   = 1_000_000
)

// Login is what a line of a users file is made of.
type Login struct {
	Name     string
	Password string
	Server   directory.BackendName // empty: not bound
	Order    *Order
	Literals *Literals
}

// CheckLogin says why name cannot be a login; nil if it can.
func CheckLogin(name string) error {
	if name == "" || strings.ContainsAny(name, " \t\r\n#") || name[0] == '@' || len(name) > maxLogin {
		return fmt.Errorf("mupdate: %q cannot be a login: up to %d octets without blanks and '#', the first no '@'", name, maxLogin)
	}
	return nil
}

// Line makes the line of a users file for a login, without its end.
func (l Login) Line() (string, error) {
	if err := CheckLogin(l.Name); err != nil {
		return "", err
	}
	if l.Password == "" {
		return "", errors.New("mupdate: the password is empty")
	}
	var salt [saltOctets]byte
	if _, err := rand.Read(salt[:]); err != nil {
		return "", fmt.Errorf("mupdate: draw a salt: %w", err)
	}
	c, err := derive(l.Password, scram.KeyFactors{Salt: string(salt[:]), Iters: iterations})
	if err != nil {
		return "", fmt.Errorf("mupdate: the password cannot be used: %w", err)
	}
	line := fmt.Sprintf("%s %s$%d:%s$%s:%s", l.Name, scheme, c.Iters, base64.StdEncoding.EncodeToString([]byte(c.Salt)),
		base64.StdEncoding.EncodeToString(c.StoredKey), base64.StdEncoding.EncodeToString(c.ServerKey))
	if l.Server != "" {
		if _, err := directory.ParseBackend(string(l.Server)); err != nil {
			return "", err
		}
		line += " server=" + string(l.Server)
	}
	if l.Order != nil {
		line += " order=" + l.Order.String()
	}
	if l.Literals != nil {
		line += " literals=" + l.Literals.String()
	}
	return line, nil
}

const maxLogin = 256

// ReplaceLogin returns the users file old with line, of name, in the place of the one
// there was, or at the end. All else stays as it is.
//
// Errors: what is wrong with another line, for which nodes refuse the whole file.
func ReplaceLogin(old []byte, name, line string) ([]byte, error) {
	var out bytes.Buffer
	byName, sources := map[string]*User{}, map[netip.Addr]directory.BackendName{}
	done, n := false, 0
	for l := range bytes.Lines(old) {
		n++
		switch fields := userFields(string(l)); {
		case len(fields) == 0:
		case fields[0] == name:
			if !done {
				out.WriteString(line + "\n")
			}
			done = true
			continue
		default:
			if err := parseUserLine(fields, byName, sources); err != nil {
				return nil, fmt.Errorf("mupdate: line %d: %w", n, err)
			}
		}
		out.Write(l)
		if l[len(l)-1] != '\n' {
			out.WriteByte('\n')
		}
	}
	if !done {
		out.WriteString(line + "\n")
	}
	if _, _, err := parseUsers(bytes.NewReader(out.Bytes())); err != nil {
		return nil, fmt.Errorf("mupdate: %w", err)
	}
	return out.Bytes(), nil
}

// CyrusRelease returns how clients of a Cyrus release want to be spoken to: the order
// of their lists, and a form of literals that all of the series can read.
func CyrusRelease(release string) (Order, Literals, error) {
	major, minor, ok := strings.Cut(release, ".")
	minor, _, _ = strings.Cut(minor, ".")
	a, errA := strconv.Atoi(major)
	b, errB := strconv.Atoi(minor)
	if !ok || errA != nil || errB != nil || a < 2 || a > 9 || b < 0 {
		return 0, Literals{}, fmt.Errorf("mupdate: %q is no release of Cyrus, such as 3.4", release)
	}
	order := KeyOrder
	if a < 3 || a == 3 && b < 6 {
		order = OctetOrder
	}
	return order, Literals{mupdatewire.Sync}, nil
}

// maxUserLine bounds a line of a users file.
const maxUserLine = 64 << 10

// byteOrderMark is what some editors put before a text.
const byteOrderMark = "\ufeff"

// parseUsers reads a users file.
func parseUsers(in io.Reader) (map[string]*User, map[netip.Addr]directory.BackendName, error) {
	byName, sources := map[string]*User{}, map[netip.Addr]directory.BackendName{}
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, maxUserLine)
	n := 1
	for ; lines.Scan(); n++ {
		if n == 1 && strings.HasPrefix(lines.Text(), byteOrderMark) {
			return nil, nil, errors.New("line 1: it begins with a byte order mark (EF BB BF), which would be part of a login: save the file without it")
		}
		fields := userFields(lines.Text())
		if len(fields) == 0 {
			continue
		}
		if err := parseUserLine(fields, byName, sources); err != nil {
			return nil, nil, fmt.Errorf("line %d: %w", n, err)
		}
	}
	if err := lines.Err(); errors.Is(err, bufio.ErrTooLong) {
		return nil, nil, fmt.Errorf("line %d: longer than %d octets", n, maxUserLine)
	} else if err != nil {
		return nil, nil, err
	}
	if len(byName) == 0 {
		return nil, nil, errors.New("no login in it; `rookeryctl mupdate passwd` makes one")
	}
	return byName, sources, nil
}

// userFields are the words of a line, without its comment.
func userFields(line string) []string {
	text, _, _ := strings.Cut(line, "#")
	return strings.Fields(text)
}

func parseUserLine(fields []string, byName map[string]*User, sources map[netip.Addr]directory.BackendName) error {
	if addr, ok := strings.CutPrefix(fields[0], "@"); ok {
		a, err := netip.ParseAddr(addr)
		if err != nil {
			return err
		}
		u, err := parseUserOptions(fields[1:])
		if err != nil {
			return err
		}
		if u.Server == "" || u.Order != nil || u.Literals != nil {
			return fmt.Errorf("of the address %s a server=NAME is said, and nothing else", a)
		}
		a = a.Unmap()
		if known, twice := sources[a]; twice && known != u.Server {
			u.Server = ""
		}
		sources[a] = u.Server
		return nil
	}
	name := fields[0]
	if byName[name] != nil {
		return fmt.Errorf("%s stands twice", name)
	}
	if len(fields) < 2 {
		return fmt.Errorf("%s has no secret", name)
	}
	u, err := parseUserOptions(fields[2:])
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if u.secret, err = parseSecret(fields[1]); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	u.Name, byName[name] = name, u
	return nil
}

func parseUserOptions(fields []string) (*User, error) {
	u := new(User)
	var seen []string
	for _, f := range fields {
		name, value, _ := strings.Cut(f, "=")
		if slices.Contains(seen, name) {
			return nil, fmt.Errorf("%s stands twice", name)
		}
		seen = append(seen, name)
		var err error
		switch name {
		case "server":
			u.Server, err = directory.ParseBackend(value)
		case "order":
			u.Order = new(Order)
			err = u.Order.Set(value)
		case "literals":
			u.Literals = new(Literals)
			err = u.Literals.Set(value)
		default:
			return nil, fmt.Errorf("%q is no option: server, order or literals", name)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	return u, nil
}

func parseSecret(text string) (c scram.StoredCredentials, err error) {
	bad := fmt.Errorf("the secret is not %s$ITERATIONS:SALT$STORED:SERVER", scheme)
	parts := strings.Split(text, "$")
	if len(parts) != 3 || parts[0] != scheme {
		return c, bad
	}
	iters, salt, _ := strings.Cut(parts[1], ":")
	stored, server, _ := strings.Cut(parts[2], ":")
	if c.Iters, err = strconv.Atoi(iters); err != nil || c.Iters < 1 || c.Iters > maxIters {
		return c, bad
	}
	for _, f := range []struct {
		text string
		into *[]byte
	}{{stored, &c.StoredKey}, {server, &c.ServerKey}} {
		if *f.into, err = base64.StdEncoding.DecodeString(f.text); err != nil || len(*f.into) != sha256.Size {
			return c, bad
		}
	}
	raw, err := base64.StdEncoding.DecodeString(salt)
	if err != nil || len(raw) == 0 {
		return c, bad
	}
	c.Salt = string(raw)
	return c, nil
}
