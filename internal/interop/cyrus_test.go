//go:build peers

package interop

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"text/template"
	"time"

	"github.com/rookery-mail/rookery/adapter/cyrus"
	"github.com/rookery-mail/rookery/internal/netlab"
)

// patience is how long anything that Cyrus is asked may take before it counts as hung.
const patience = 30 * time.Second

// server is a Cyrus server in its namespace: Debian's programs, a configuration and a
// spool of its own.
type server struct {
	lab      *lab
	name     string // "be1"
	dir      string
	frontend bool
	replica  string // to which it replicates, empty for none
	as       string // whose name it bears; its own but for a clone
	log      *serverLog

	cmd   *exec.Cmd // unshare, whose end ends all of it; nil while it is stopped
	ended chan struct{}
}

func (s *server) host() string { return s.as + domain }
func (s *server) conf() string { return filepath.Join(s.dir, "imapd.conf") }

// newServer makes a server with empty directories. Nothing runs yet.
func newServer(l *lab, name string, frontend bool, replica string) (*server, error) {
	s := &server{lab: l, name: name, dir: filepath.Join(l.dir, name), frontend: frontend, replica: replica, as: name}
	if err := s.prepare(); err != nil {
		return nil, fmt.Errorf("interop: prepare %s: %w", name, err)
	}
	return s, nil
}

func (s *server) prepare() (err error) {
	if err := os.MkdirAll(filepath.Join(s.dir, "run"), 0o755); err != nil {
		return err
	}
	if err := s.empty(); err != nil {
		return err
	}
	if s.log, err = newServerLog(s.dir); err != nil {
		return err
	}
	for _, user := range []string{"cyrus", "proxy"} {
		add := exec.Command("saslpasswd2", "-p", "-c", "-f", filepath.Join(s.dir, "sasldb"), "-u", s.host(), user)
		add.Stdin = strings.NewReader("secret\n")
		if out, err := add.CombinedOutput(); err != nil {
			return fmt.Errorf("saslpasswd2: %w: %s", err, out)
		}
	}
	return s.configure()
}

// configure writes the configuration for the name that the server bears.
func (s *server) configure() error {
	what := map[string]any{"Dir": s.dir, "Conf": s.conf(), "Host": s.host(), "Login": s.as, "Frontend": s.frontend, "Replica": ""}
	if s.replica != "" {
		what["Replica"] = s.replica + domain
	}
	for _, file := range []string{"imapd.conf", "cyrus.conf"} {
		t, err := template.ParseFiles(filepath.Join("testdata", file))
		if err != nil {
			return err
		}
		var text bytes.Buffer
		if err := t.Execute(&text, what); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(s.dir, file), text.Bytes(), 0o644); err != nil {
			return err
		}
	}
	return netlab.Run("chown -R cyrus:mail " + s.dir)
}

// empty throws away all that the server keeps.
func (s *server) empty() error {
	for _, dir := range []string{"conf", "spool"} {
		if err := os.RemoveAll(filepath.Join(s.dir, dir)); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(filepath.Join(s.dir, "spool"), 0o755); err != nil {
		return err
	}
	for _, dir := range []string{"db", "sync", "msg", "log", "user", "quota", "sieve", "lock", "proc", "socket"} {
		if err := os.MkdirAll(filepath.Join(s.dir, "conf", dir), 0o755); err != nil {
			return err
		}
	}
	return netlab.Run("chown -R cyrus:mail " + s.dir)
}

// copyTo copies what a stopped server keeps; copyFrom puts such a copy in its place.
func (s *server) copyTo(dir string) error {
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o755)); err != nil {
		return err
	}
	return netlab.Run(fmt.Sprintf("cp -a %s/conf %s/spool %s", s.dir, s.dir, dir))
}

func (s *server) copyFrom(dir string) error {
	if err := s.empty(); err != nil {
		return err
	}
	return netlab.Run(fmt.Sprintf("cp -a %s/conf %s/spool %s", dir, dir, s.dir))
}

// command is a program in the server's namespace, with the server's /dev/log and in a
// pid namespace of its own. When the process that was started is killed, so is the shell
// in there, and with that everything else in there, whoever it runs as. (Of a program
// that changes its user the kernel forgets that it was to die with its parent.)
func (s *server) command(program string, args ...string) *exec.Cmd {
	cmd := exec.Command("ip", append([]string{"netns", "exec", s.lab.net.space(s.name), "sh", "-c",
		`mount --bind "$0" /dev && exec unshare --pid --fork --kill-child=KILL sh -c '"$0" "$@"; exit $?' "$@"`, filepath.Join(s.dir, "dev"), program}, args...)...)
	cmd.Env = append(os.Environ(), "LANG=C", "CYRUS_VERBOSE=0")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	return cmd
}

// tool runs one of Cyrus's own programs with the server's configuration.
func (s *server) tool(program string, args ...string) (string, error) {
	cmd := s.command("/usr/lib/cyrus/bin/"+program, append([]string{"-C", s.conf()}, args...)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		return "", err
	}
	late := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
	err := cmd.Wait()
	if !late.Stop() {
		s.lab.fail("%s of %s hung: it had not ended after %v", program, s.name, patience)
	}
	if err != nil {
		err = fmt.Errorf("%s %s: %w", program, strings.Join(args, " "), err)
	}
	return out.String(), err
}

// start starts the server and waits until it serves.
func (s *server) start() error {
	if s.cmd != nil {
		return fmt.Errorf("%s runs already", s.name)
	}
	out, err := os.OpenFile(filepath.Join(s.dir, "master.out"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer out.Close()
	_ = os.RemoveAll(filepath.Join(s.dir, "conf", "proc")) // of processes that a crash ended
	_ = os.MkdirAll(filepath.Join(s.dir, "conf", "proc"), 0o755)
	_ = netlab.Run("chown -R cyrus:mail " + filepath.Join(s.dir, "conf", "proc"))
	since := s.log.length()
	cmd := s.command("cyrmaster", "-C", s.conf(), "-M", filepath.Join(s.dir, "cyrus.conf"), "-p", filepath.Join(s.dir, "run", "master.pid"))
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // what its programs have to say is in the log
		close(ended)
	}()
	for begun := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		select {
		case <-ended:
			return fmt.Errorf("%s did not start\n%s", s.name, s.log.tail(20))
		default:
		}
		if time.Since(begun) > patience {
			_ = cmd.Process.Kill()
			<-ended
			return fmt.Errorf("%s did not serve after %v\n%s", s.name, patience, s.log.tail(20))
		}
		nc, err := net.DialTimeout("tcp", s.address("143"), time.Second)
		if err == nil {
			nc.Close()
			break
		}
	}
	s.cmd, s.ended = cmd, ended
	if !s.frontend {
		return nil
	}
	return s.follows(since)
}

// follows waits until a frontend has a listing and is told what changes. Before, and
// after the node that it follows is gone, it serves what it knew, for some seconds.
func (s *server) follows(since int) error {
	return wait(s.name+" follows a node", func() (bool, error) {
		return s.log.last(since, "mailbox list synchronization complete", "retrying connection to mupdate server") == 0, nil
	})
}

func (s *server) address(port string) string { return net.JoinHostPort(s.lab.net.host(s.name), port) }

// stop ends the server as an operator does.
func (s *server) stop() error {
	if s.cmd == nil {
		return nil
	}
	// What was started has a shell, and that the master.
	shell, err := childOf(s.cmd.Process.Pid)
	if err != nil {
		return err
	}
	master, err := childOf(shell)
	if err != nil {
		return fmt.Errorf("%s has no master: %w", s.name, err)
	}
	_ = syscall.Kill(master, syscall.SIGTERM)
	late := time.AfterFunc(5*time.Second, func() { _ = s.cmd.Process.Kill() })
	<-s.ended
	late.Stop()
	s.cmd = nil
	return nil
}

// childOf is the only child of a process.
func childOf(pid int) (int, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(b)))
}

// crash ends all processes of the server at once. They have ended when it returns: the
// first process of a pid namespace is not gone before the others are.
func (s *server) crash() {
	if s.cmd == nil {
		return
	}
	if shell, err := childOf(s.cmd.Process.Pid); err == nil {
		_ = syscall.Kill(shell, syscall.SIGKILL)
	} else {
		_ = s.cmd.Process.Kill()
	}
	<-s.ended
	s.cmd = nil
}

// mailboxes is the server's own list: what it holds itself, by name.
func (s *server) mailboxes() (map[string]cyrus.Record, error) {
	out, err := s.tool("ctl_mboxlist", "-d")
	if err != nil {
		return nil, fmt.Errorf("%w\n%s", err, out)
	}
	all := map[string]cyrus.Record{}
	r := cyrus.NewReader(strings.NewReader(out))
	for {
		record, err := r.Read()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return nil, fmt.Errorf("the list of %s: %w\n%s", s.name, err, out)
		}
		if record.Kind() != cyrus.Skipped {
			all[string(record.Name)] = record
		}
	}
}

// serverLog is what a server's programs send to syslog.
type serverLog struct {
	conn *net.UnixConn
	done chan struct{}

	mu    sync.Mutex
	lines []string
	read  int // up to where they were judged
}

// newServerLog makes a /dev for the server's programs, in which log is a socket.
func newServerLog(dir string) (*serverLog, error) {
	dev := filepath.Join(dir, "dev")
	if err := os.MkdirAll(filepath.Join(dev, "shm"), 0o755); err != nil {
		return nil, err
	}
	for name, number := range map[string]int{"null": 1<<8 | 3, "zero": 1<<8 | 5, "full": 1<<8 | 7, "random": 1<<8 | 8, "urandom": 1<<8 | 9, "tty": 5 << 8} {
		file := filepath.Join(dev, name)
		if err := syscall.Mknod(file, syscall.S_IFCHR|0o666, number); err != nil {
			return nil, fmt.Errorf("mknod %s: %w", file, err)
		}
		if err := os.Chmod(file, 0o666); err != nil {
			return nil, err
		}
	}
	if err := os.Symlink("/proc/self/fd", filepath.Join(dev, "fd")); err != nil {
		return nil, err
	}
	at := filepath.Join(dev, "log")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: at, Net: "unixgram"})
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(at, 0o666); err != nil {
		return nil, err
	}
	_ = conn.SetReadBuffer(1 << 20)
	l := &serverLog{conn: conn, done: make(chan struct{})}
	go l.receive()
	return l, nil
}

func (l *serverLog) receive() {
	defer close(l.done)
	buf := make([]byte, 64<<10)
	for {
		n, err := l.conn.Read(buf)
		if err != nil {
			return
		}
		text := string(bytes.TrimRight(buf[:n], "\x00\n"))
		if _, rest, ok := strings.Cut(text, ">"); ok {
			text = rest // the priority
		}
		l.mu.Lock()
		l.lines = append(l.lines, text)
		l.mu.Unlock()
	}
}

func (l *serverLog) close() {
	_ = l.conn.Close()
	<-l.done
}

func (l *serverLog) tail(n int) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.lines[max(0, len(l.lines)-n):], "\n")
}

func (l *serverLog) save(file string) error {
	return os.WriteFile(file, []byte(l.tail(1<<30)+"\n"), 0o600)
}

// has reports whether there is a line with a text, of those that follow a place.
func (l *serverLog) has(text string, since int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.ContainsFunc(l.lines[since:], func(line string) bool { return strings.Contains(line, text) })
}

// last says which of some texts came last, behind a place; -1: none.
func (l *serverLog) last(since int, texts ...string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := len(l.lines) - 1; i >= since; i-- {
		if which := slices.IndexFunc(texts, func(text string) bool { return strings.Contains(l.lines[i], text) }); which >= 0 {
			return which
		}
	}
	return -1
}

func (l *serverLog) length() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.lines)
}

// grave are texts that no log of a sound murder has.
var grave = []string{
	"said not us before it said us", // ctl_mboxlist lost its place: the order of a LIST was wrong
	"Remove Local Mailbox",          // ctl_mboxlist deletes mail
	"wiping out",
	"Fatal error",
	"signaled to death by signal 6",
	"signaled to death by signal 11",
	"DBERROR",
	"IOERROR",
	"assertion",
}

// harmless are lines with something grave in them that are as they should be: a replica
// that is refused a name, for it is another one's or there is no majority, is asked again.
var harmless = []string{"user replication failed", "zero length response"}

// judge returns the lines with something grave that were not seen before and that no
// exception explains.
func (l *serverLog) judge(except []string) (found []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range l.lines[l.read:] {
		contains := func(text string) bool { return strings.Contains(line, text) }
		if slices.ContainsFunc(grave, contains) && !slices.ContainsFunc(harmless, contains) && !slices.ContainsFunc(except, contains) {
			found = append(found, line)
		}
	}
	l.read = len(l.lines)
	return found
}

// wait waits until something is so, up to patience.
func wait(what string, so func() (bool, error)) error {
	var last error
	for begun := time.Now(); time.Since(begun) < patience; time.Sleep(30 * time.Millisecond) {
		done, err := so()
		if done {
			return nil
		}
		last = err
	}
	return fmt.Errorf("%s: not so after %v: %v", what, patience, last)
}

// sorted are the keys of a map in order.
func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
