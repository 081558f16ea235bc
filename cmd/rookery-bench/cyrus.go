package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/rookery-mail/rookery/adapter/mupdate/mupdateclient"
)

// What Cyrus calls itself on Debian.
const (
	cyrusUser  = "cyrus"
	cyrusGroup = "mail"
)

// cyrusName is the server name that the master gives itself.
const cyrusName = "master.mail.example.net"

// A cyrusMaster is the MUPDATE master of Cyrus, as its packages install it and with
// its default settings: the database it keeps its mailboxes in, its syncs, its threads.
type cyrusMaster struct {
	programs string // the directory of mupdate, ctl_mboxlist and the like
	cyrmaster,
	dir, // of configuration, databases and logs
	addr string
	process *process
}

// newCyrusMaster writes the configuration of a master below dir. It does not start it.
func newCyrusMaster(cyrmaster, programs, dir string) (*cyrusMaster, error) {
	return newCyrus(cyrmaster, programs, dir, "-m", "")
}

// newCyrusFrontend writes the configuration of a frontend that follows the master at
// addr. It does not start it; until it has a whole listing it greets nobody.
func newCyrusFrontend(cyrmaster, programs, dir, addr string) (*cyrusMaster, error) {
	return newCyrus(cyrmaster, programs, dir, "", fmt.Sprintf(`mupdate_server: %s
mupdate_username: %[2]s
mupdate_authname: %[2]s
mupdate_password: %s
force_sasl_client_mech: PLAIN
`, addr, benchLogin, benchPassword))
}

// newCyrus writes the configuration of a server whose service is mupdate with flag; more
// is what its imapd.conf has besides.
func newCyrus(cyrmaster, programs, dir, flag, more string) (*cyrusMaster, error) {
	if os.Getuid() != 0 {
		return nil, errors.New("only root can start Cyrus, which gives that up by itself: run this as root")
	}
	ports, err := freePorts(1)
	if err != nil {
		return nil, err
	}
	c := &cyrusMaster{programs: programs, cyrmaster: cyrmaster, dir: dir, addr: ports[0]}
	for _, sub := range []string{"db", "log", "lock", "msg", "proc", "quota", "run", "socket", "spool", "user"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return nil, err
		}
	}
	services := fmt.Sprintf(`START {
  recover cmd="%[1]s/ctl_cyrusdb -C %[2]s -r"
}
SERVICES {
  mupdate cmd="%[1]s/mupdate -C %[2]s %[4]s" listen="%[3]s" prefork=1
}
`, programs, c.conf(), c.addr, flag)
	err = errors.Join(
		writeCyrusConf(c.conf(), dir, more),
		os.WriteFile(filepath.Join(dir, "cyrus.conf"), []byte(services), 0o644),
	)
	if err != nil {
		return nil, err
	}
	_, err = c.run("saslpasswd2", strings.NewReader(benchPassword+"\n"), "-p", "-c", "-f", filepath.Join(dir, "sasldb"), "-u", cyrusName, benchLogin)
	return c, errors.Join(err, c.give())
}

// allMayEnter says of a directory that Cyrus's user would not get into why.
func allMayEnter(dir string) error {
	for at := dir; ; at = filepath.Dir(at) {
		info, err := os.Stat(at)
		if err != nil {
			return err
		}
		if info.Mode()&1 == 0 {
			return fmt.Errorf("user %s, as whom Cyrus runs, may not enter %s: give another --dir", cyrusUser, at)
		}
		if at == filepath.Dir(at) {
			return nil
		}
	}
}

// writeCyrusConf writes an imapd.conf for a server with its databases in dir, with more
// at its end.
func writeCyrusConf(file, dir, more string) error {
	return os.WriteFile(file, fmt.Appendf(nil, `configdirectory: %[1]s
defaultpartition: default
partition-default: %[1]s/spool
servername: %[2]s
admins: %[3]s
allowplaintext: yes
sasl_mech_list: PLAIN
sasl_pwcheck_method: auxprop
sasl_auxprop_plugin: sasldb
sasl_sasldb_path: %[1]s/sasldb
%[4]s`, dir, cyrusName, benchLogin, more), 0o644)
}

func (c *cyrusMaster) conf() string { return filepath.Join(c.dir, "imapd.conf") }

// run runs a program to its end and returns what it said.
func (c *cyrusMaster) run(program string, in io.Reader, args ...string) (string, error) {
	cmd := exec.Command(program, args...)
	var said bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, &said, &said
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w\n%s", program, err, said.String())
	}
	return said.String(), nil
}

// give has all files belong to whom Cyrus runs as.
func (c *cyrusMaster) give() error {
	u, err := user.Lookup(cyrusUser)
	if err != nil {
		return err
	}
	g, err := user.LookupGroup(cyrusGroup)
	if err != nil {
		return err
	}
	uid, _ := strconv.Atoi(u.Uid) // they are numbers on every system that Cyrus runs on
	gid, _ := strconv.Atoi(g.Gid)
	return filepath.WalkDir(c.dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, uid, gid)
	})
}

// fill has c hold what the master at addr has: as a frontend of it for once, which takes
// all of it in one transaction. Loaded from a dump, each record is one.
func (c *cyrusMaster) fill(ctx context.Context, addr string) error {
	f, err := newCyrusFrontend(c.cyrmaster, c.programs, filepath.Join(c.dir, "frontend"), addr)
	if err != nil {
		return err
	}
	if err := f.launch(); err != nil {
		return err
	}
	if err := f.awaitGreeting(ctx); err != nil {
		return errors.Join(err, f.kill())
	}
	if err := f.stop(ctx); err != nil {
		return errors.Join(err, f.kill())
	}
	const list = "mailboxes.db"
	if err := copyFile(filepath.Join(c.dir, list), filepath.Join(f.dir, list)); err != nil {
		return err
	}
	return errors.Join(os.RemoveAll(f.dir), c.give())
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Sync(), out.Close())
}

func (c *cyrusMaster) address() string { return c.addr }

// login is the one login there is: a master asks nobody which server it speaks for.
func (c *cyrusMaster) login(int) string { return benchLogin }

func (c *cyrusMaster) launch() error {
	log, err := os.OpenFile(filepath.Join(c.dir, "log", "master.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close() // the program has its own
	p := newProcess(c.cyrmaster, "-C", c.conf(), "-M", filepath.Join(c.dir, "cyrus.conf"), "-p", filepath.Join(c.dir, "run", "master.pid"))
	p.cmd.Stdout, p.cmd.Stderr = log, log
	// It ends by a signal to its whole group, in which there would be another Cyrus.
	if p.cmd.SysProcAttr == nil {
		p.cmd.SysProcAttr = new(syscall.SysProcAttr)
	}
	p.cmd.SysProcAttr.Setpgid = true
	if err := p.start(); err != nil {
		return err
	}
	c.process = p
	return nil
}

// awaitGreeting waits until the server greets who connects.
func (c *cyrusMaster) awaitGreeting(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		at, err := mupdateclient.Dial(ctx, c.addr, mupdateclient.Options{Mechanism: "PLAIN"})
		if err == nil {
			return at.Close()
		}
		if dead := c.alive(); dead != nil {
			return dead
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: it greets nobody: %w", ctx.Err(), err)
		case <-time.After(time.Millisecond):
		}
	}
}

// stop asks the master to end and waits until its services have too.
func (c *cyrusMaster) stop(ctx context.Context) error {
	children := c.processes()
	// It ends by the signal, and says so.
	if err := c.process.terminate(ctx); err != nil && !c.process.exited() {
		return err
	}
	for _, pid := range children {
		for ctx.Err() == nil && syscall.Kill(pid, 0) == nil {
			time.Sleep(time.Millisecond)
		}
	}
	return ctx.Err()
}

// processes are the master's services.
func (c *cyrusMaster) processes() []int {
	pid := c.process.cmd.Process.Pid
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return nil
	}
	var out []int
	for _, f := range strings.Fields(string(text)) {
		if n, err := strconv.Atoi(f); err == nil {
			out = append(out, n)
		}
	}
	return out
}

func (c *cyrusMaster) alive() error {
	if c.process.exited() {
		return fmt.Errorf("%s ended: %v; see %s", c.cyrmaster, c.process.err, filepath.Join(c.dir, "log", "master.log"))
	}
	return nil
}

// memory is what its services hold for themselves.
func (c *cyrusMaster) memory() (octets uint64, err error) {
	for _, pid := range c.processes() {
		n, err := anonymousMemory(pid)
		if err != nil {
			return 0, err
		}
		octets += n
	}
	return octets, nil
}

// kill ends everything at once.
func (c *cyrusMaster) kill() error {
	if c.process == nil {
		return nil
	}
	children := c.processes()
	err := c.process.kill()
	for _, pid := range children {
		if kill := syscall.Kill(pid, syscall.SIGKILL); kill != nil && kill != syscall.ESRCH {
			err = errors.Join(err, kill)
		}
	}
	return err
}
