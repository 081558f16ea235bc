//go:build peers

package mirror

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rookery-mail/rookery/adapter/mupdate/mupdateclient"
	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
)

// cyrus is a MUPDATE master of Debian's cyrus-murder, on loopback, its state in a
// directory of the test's own. It needs root, for Cyrus becomes its own user.
type cyrus struct {
	t    testing.TB
	dir  string
	addr string
	cmd  *exec.Cmd
}

const (
	cyrmaster = "/usr/sbin/cyrmaster"
	cyrusBin  = "/usr/lib/cyrus/bin/"
)

func newCyrus(t *testing.T) *cyrus {
	t.Helper()
	for _, program := range []string{cyrmaster, cyrusBin + "mupdate", cyrusBin + "ctl_cyrusdb"} {
		if _, err := os.Stat(program); err != nil {
			t.Fatalf("%v: install cyrus-imapd and cyrus-murder", err)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	// Cyrus comes into its directory as its own user, so all above it must be open.
	dir, err := os.MkdirTemp("/tmp", "rookery-cyrus-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	c := &cyrus{t: t, dir: dir, addr: l.Addr().String()}
	l.Close()
	for _, sub := range []string{"db", "lock", "log", "msg", "proc", "socket", "user", "quota", "sync"} {
		if err := os.MkdirAll(filepath.Join(dir, "conf", sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	c.write("imapd.conf", `configdirectory: DIR/conf
defaultpartition: default
partition-default: DIR/spool
servername: localhost
admins: mirror be1 be2
allowplaintext: yes
sasl_mech_list: PLAIN
sasl_pwcheck_method: auxprop
sasl_auxprop_plugin: sasldb
sasl_sasldb_path: DIR/sasldb
`)
	c.write("cyrus.conf", `START {
  recover cmd="BINctl_cyrusdb -C DIR/imapd.conf -r"
}
SERVICES {
  mupdate cmd="BINmupdate -C DIR/imapd.conf -m" listen="ADDR" prefork=1
}
EVENTS {
  checkpoint cmd="BINctl_cyrusdb -C DIR/imapd.conf -c" period=30
}
`)
	for _, login := range []string{"mirror", "be1", "be2"} {
		cmd := exec.Command("saslpasswd2", "-p", "-c", "-f", filepath.Join(dir, "sasldb"), "-u", "localhost", login)
		cmd.Stdin = strings.NewReader(secret + "\n")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("saslpasswd2: %v\n%s", err, out)
		}
	}
	who, err := user.Lookup("cyrus")
	if err != nil {
		t.Fatal(err)
	}
	uid, _ := strconv.Atoi(who.Uid)
	gid, _ := strconv.Atoi(who.Gid)
	err = filepath.Walk(dir, func(path string, _ os.FileInfo, err error) error {
		if err == nil {
			err = os.Chown(path, uid, gid)
		}
		return err
	})
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	c.start()
	t.Cleanup(c.stop)
	return c
}

func (c *cyrus) write(name, text string) {
	c.t.Helper()
	text = strings.NewReplacer("DIR", c.dir, "BIN", cyrusBin, "ADDR", c.addr).Replace(text)
	if err := os.WriteFile(filepath.Join(c.dir, name), []byte(text), 0o644); err != nil {
		c.t.Fatal(err)
	}
}

func (c *cyrus) start() {
	c.t.Helper()
	c.cmd = exec.Command(cyrmaster, "-C", filepath.Join(c.dir, "imapd.conf"), "-M", filepath.Join(c.dir, "cyrus.conf"), "-p", filepath.Join(c.dir, "pid"))
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // its children are ended with it
	if err := c.cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	end := time.Now().Add(patience)
	for {
		conn, err := connectTo(context.Background(), c.addr, "mirror")
		if err == nil {
			conn.Close()
			return
		}
		if time.Now().After(end) {
			c.t.Fatalf("the Cyrus master does not serve: %v", err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func (c *cyrus) stop() {
	if c.cmd == nil {
		return
	}
	_ = syscall.Kill(-c.cmd.Process.Pid, syscall.SIGTERM)
	done := make(chan struct{})
	go func() { c.cmd.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		_ = syscall.Kill(-c.cmd.Process.Pid, syscall.SIGKILL)
		<-done
	}
	_ = syscall.Kill(-c.cmd.Process.Pid, syscall.SIGKILL) // whoever of its children is left
	c.cmd = nil
	os.Remove(filepath.Join(c.dir, "pid"))
}

// list is what it has.
func (c *cyrus) list() map[directory.MailboxName]*Record {
	c.t.Helper()
	conn, err := connectTo(context.Background(), c.addr, "mirror")
	if err != nil {
		c.t.Fatal(err)
	}
	defer conn.Close()
	all := map[directory.MailboxName]*Record{}
	for rec, err := range conn.List(c.t.Context(), "") {
		if err != nil {
			c.t.Fatal(err)
		}
		all[directory.MailboxName(rec.Name)] = saidOf(rec).record
	}
	return all
}

// like waits until it and the directory say the same.
func (c *cyrus) like(dir *client.Client) {
	c.t.Helper()
	end := time.Now().Add(patience)
	for {
		a, b := c.list(), seen(c.t, dir)
		diff := ""
		for name, r := range a {
			if !same(r, b[name]) {
				diff += fmt.Sprintf("%s: %s\n", name, differs(r, b[name]))
			}
		}
		for name, r := range b {
			if a[name] == nil {
				diff += fmt.Sprintf("%s: %s\n", name, differs(nil, r))
			}
		}
		if diff == "" {
			return
		}
		if time.Now().After(end) {
			c.t.Fatalf("they differ:\n%s", diff)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// mirrored is a mirror of it.
func (c *cyrus) mirrored(dir *client.Client, change ...func(*Config)) *running {
	c.t.Helper()
	all := append([]func(*Config){func(cfg *Config) {
		cfg.Connect = func(ctx context.Context) (*mupdateclient.Client, error) { return connectTo(ctx, c.addr, "mirror") }
	}}, change...)
	return start(c.t, &master{t: c.t, line: &line{}}, dir, all...)
}

// A real master, told by backends as Cyrus tells it, restarted, and then without its list.
func TestCyrusMaster(t *testing.T) {
	c, dir := newCyrus(t), newNode(t)
	be := []*mupdateclient.Client{}
	login := func() {
		for _, conn := range be {
			conn.Close()
		}
		be = nil
		for _, name := range []string{"be1", "be2"} {
			conn, err := connectTo(t.Context(), c.addr, name)
			if err != nil {
				t.Fatal(err)
			}
			be = append(be, conn)
		}
	}
	defer func() {
		for _, conn := range be {
			conn.Close()
		}
	}()
	login()
	servers := []string{string(be1), string(be2)}
	rnd := rand.New(rand.NewPCG(1, 7))
	state := map[string]string{} // name: server, or server! if it is reserved
	step := func() {
		name := fmt.Sprintf("user.u%d.a-b", rnd.IntN(40))
		if rnd.IntN(2) == 0 {
			name = fmt.Sprintf("user.u%d", rnd.IntN(40))
		}
		i := rnd.IntN(2)
		var err error
		switch at := state[name]; {
		case at == "": // create
			if err = be[i].Reserve(t.Context(), name, servers[i]+"!default"); err == nil {
				err = be[i].Activate(t.Context(), name, servers[i]+"!default", "anyone\tlrs\t")
			}
			state[name] = servers[i]
		case strings.HasSuffix(at, "!"): // a move ends, or is given up
			err = be[i].Activate(t.Context(), name, servers[i]+"!default", "anyone\tl\t")
			state[name] = servers[i]
		default:
			if at == servers[1-i] {
				i = 1 - i
			}
			switch rnd.IntN(3) {
			case 0:
				err = be[i].Activate(t.Context(), name, servers[i]+"!other", fmt.Sprintf("u%d\tlrs\t", rnd.IntN(9)))
			case 1:
				err = be[i].Deactivate(t.Context(), name, servers[i]+"!default")
				state[name] = servers[i] + "!"
			case 2:
				err = be[i].Delete(t.Context(), name)
				delete(state, name)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for range 200 {
		step()
	}
	r := c.mirrored(dir)
	r.await("differences 0")
	for range 300 {
		step()
	}
	c.like(dir)
	if n := r.times("lost"); n > 0 {
		t.Errorf("the master ended %d times", n)
	}

	c.stop()
	r.await("lost")
	c.start()
	login()
	for range 100 {
		step()
	}
	r.await("listed")
	c.like(dir)

	c.stop()
	if err := os.Remove(filepath.Join(c.dir, "conf", "mailboxes.db")); err != nil {
		t.Fatal(err)
	}
	before := len(seen(t, dir))
	c.start()
	r.await("withheld be1.example.org")
	r.await("withheld be2.example.org")
	r.await(fmt.Sprintf("differences %d", before), "mended")
	if out, err := r.end(); err != nil || out.Differences != before {
		t.Errorf("%+v, %v; want %d differences", out, err, before)
	}
}

// A real master is told what is stated here, and survives it.
func TestCyrusReverse(t *testing.T) {
	c, dir := newCyrus(t), newNode(t)
	for _, b := range []directory.BackendName{be1, be2} {
		if _, err := dir.SetBackend(t.Context(), b, client.BackendChange{Create: true}); err != nil {
			t.Fatal(err)
		}
		if _, err := dir.ConfirmBackend(t.Context(), b, directory.ByResync); err != nil {
			t.Fatal(err)
		}
	}
	rnd := rand.New(rand.NewPCG(2, 7))
	step := func() {
		name := directory.MailboxName(fmt.Sprintf("user.u%d", rnd.IntN(40)))
		server := []directory.BackendName{be1, be2}[rnd.IntN(2)]
		route, err := dir.Lookup(t.Context(), name, client.Details())
		if err != nil {
			t.Fatal(err)
		}
		if len(route.Facts) > 0 && route.Facts[0].State == directory.Active {
			server = route.Facts[0].Server
		}
		switch n := rnd.IntN(8); {
		case n < 5:
			stated(t, dir, holds(server, name, fmt.Sprintf("u%d\tlrs\t", rnd.IntN(3))))
		case n < 7:
			stated(t, dir, client.Retract{Mailbox: name, Server: server})
		case route.Fact(server) != nil:
			stated(t, dir, client.Deactivate{Mailbox: name, Server: server})
		}
	}
	for range 100 {
		step()
	}
	r := c.mirrored(dir, backwards)
	r.await("differences 0")
	for range 300 {
		step()
	}
	c.like(dir)
	c.stop()
	r.await("lost")
	for range 100 {
		step()
	}
	c.start()
	r.await("listed")
	c.like(dir)
	if out, err := r.end(); err != nil || out.Differences != 0 {
		t.Errorf("%+v, %v; told\n%s", out, err, r.log())
	}
}
