//go:build peers

package chaos

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// node is a rookeryd in a namespace.
type node struct {
	c     *cluster
	host  int
	name  string
	dir   string // a tmpfs; its data directory is below
	flags []string
	log   nodeLog

	mu       sync.Mutex
	cmd      *exec.Cmd // nil: it is not running
	ended    chan struct{}
	exit     error
	expected bool // we ended it, or are about to
	disks    int  // data directories it had before
}

func (n *node) data() string   { return filepath.Join(n.dir, "data") }
func (n *node) client() string { return n.c.net.Address(n.host) + ":7905" }
func (n *node) peer() string   { return n.c.net.Address(n.host) + ":7906" }

// start starts the process. It is an error if it runs.
func (n *node) start() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cmd != nil {
		return fmt.Errorf("chaos: %s runs already", n.name)
	}
	ip := n.c.net.Address(n.host)
	pki := n.c.pki
	args := append([]string{
		"netns", "exec", n.c.net.Space(n.host), n.c.rookeryd,
		"--name", n.name, "--data", n.data(),
		"--listen-client", ip + ":7905", "--listen-peer", ip + ":7906", "--listen-http", "127.0.0.1:7907",
		"--tls-cert", filepath.Join(pki, "node-"+n.name+".crt"), "--tls-key", filepath.Join(pki, "node-"+n.name+".key"), "--tls-ca", filepath.Join(pki, "ca.crt"),
		"--ballast", "0", "--low-space", "8MiB", "--listen-unix", "none",
	}, n.flags...)
	cmd := exec.Command("ip", args...) // which becomes rookeryd
	cmd.Stderr, cmd.Stdout = &n.log, &n.log
	// No node is to take a large machine for its own.
	cmd.Env = append(os.Environ(), "GOMAXPROCS=2")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true} // ^C is for this process
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	n.cmd, n.ended, n.exit, n.expected = cmd, ended, nil, false
	go func() {
		err := cmd.Wait()
		n.mu.Lock()
		n.exit = err
		n.c.processor.Add(int64(cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()))
		expected := n.expected
		n.mu.Unlock()
		close(ended)
		if !expected {
			n.c.fail("%s ended by itself: %v\n%s", n.name, err, n.log.tail(30))
		}
	}()
	return nil
}

// signal sends a signal, if it runs.
func (n *node) signal(s syscall.Signal) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cmd != nil {
		_ = n.cmd.Process.Signal(s) // it may have ended
	}
}

// kill ends the process at once; a node that does not run stays so.
func (n *node) kill() { n.end(syscall.SIGKILL, 0) }

// end ends the process by a signal, after some time by force, and says whether
// that was needed.
func (n *node) end(s syscall.Signal, patience time.Duration) (forced bool) {
	n.mu.Lock()
	cmd, ended := n.cmd, n.ended
	n.expected = true
	n.mu.Unlock()
	if cmd == nil {
		return false
	}
	_ = cmd.Process.Signal(s)
	if s != syscall.SIGKILL {
		select {
		case <-ended:
		case <-time.After(patience):
			forced = true
			_ = cmd.Process.Signal(syscall.SIGKILL)
		}
	}
	<-ended
	n.mu.Lock()
	n.cmd = nil
	n.mu.Unlock()
	return forced
}

func (n *node) running() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.cmd != nil
}

// terminate ends the process as a rolling restart does. It must end with code 0.
func (n *node) terminate() {
	if n.end(syscall.SIGTERM, 30*time.Second) {
		n.c.fail("%s still ran 30 s after SIGTERM\n%s", n.name, n.log.tail(30))
		return
	}
	n.mu.Lock()
	err := n.exit
	n.mu.Unlock()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() >= 0 {
		n.c.fail("%s ended with %v after SIGTERM\n%s", n.name, err, n.log.tail(30))
	}
}

// wipe throws the data directory away; what was in its log is kept for the judge.
func (n *node) wipe() error {
	n.disks++
	kept := filepath.Join(n.c.dir, "old", fmt.Sprintf("%s-%d", n.name, n.disks))
	if err := n.keep(kept); err != nil {
		return err
	}
	return os.RemoveAll(n.data())
}

// keep copies the log's segments.
func (n *node) keep(to string) error {
	for _, log := range n.logs() {
		for _, file := range log.files {
			target := filepath.Join(to, log.shard, "wal", filepath.Base(file))
			if err := os.MkdirAll(filepath.Dir(target), 0o700); err != nil {
				return err
			}
			if err := copySparse(target, file); err != nil {
				return err
			}
		}
	}
	return nil
}

// copySparse copies a file up to the zeros at its end.
func copySparse(to, from string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	b = bytes.TrimRight(b, "\x00")
	b = append(b, make([]byte, 16)...)
	return os.WriteFile(to, b, 0o600)
}

// segmentFiles are the segments of one log of a node.
type segmentFiles struct {
	shard string
	files []string
}

// logs finds the logs of the data directory.
func (n *node) logs() (all []segmentFiles) {
	dirs, _ := filepath.Glob(filepath.Join(n.data(), "*", "wal"))
	more, _ := filepath.Glob(filepath.Join(n.data(), "*", "*", "wal"))
	for _, dir := range append(dirs, more...) {
		files, _ := filepath.Glob(filepath.Join(dir, "*.wal"))
		if len(files) > 0 {
			shard := filepath.Dir(dir)
			all = append(all, segmentFiles{filepath.Base(shard), files})
		}
	}
	return all
}

// fill takes all space of the node's disk, and free gives it back.
func (n *node) fill() error {
	var st syscall.Statfs_t
	if err := syscall.Statfs(n.dir, &st); err != nil {
		return err
	}
	f, err := os.Create(filepath.Join(n.dir, "filler"))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := syscall.Fallocate(int(f.Fd()), 0, 0, int64(st.Bavail)*st.Bsize); err != nil && !errors.Is(err, syscall.ENOSPC) {
		return err
	}
	_, err = f.Seek(0, io.SeekEnd)
	for err == nil { // and what was freed meanwhile
		_, err = f.Write(make([]byte, 4096))
	}
	if errors.Is(err, syscall.ENOSPC) {
		return nil
	}
	return err
}

func (n *node) free() error { return os.Remove(filepath.Join(n.dir, "filler")) }

// nodeLog keeps the last lines of what a node says, and those that tell of damage.
type nodeLog struct {
	mu      sync.Mutex
	rest    []byte
	lines   []string
	bad     []string
	badLeft int // lines that follow one that is bad, and belong to it
}

// damage are the words that no log of a sound node has.
var damage = []string{"panic:", "fatal error:", "WARNING: DATA RACE", "unexpected fault address", "state is not to be used", "differs from the others"}

func (l *nodeLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rest = append(l.rest, p...)
	for {
		i := bytes.IndexByte(l.rest, '\n')
		if i < 0 {
			return len(p), nil
		}
		l.line(string(l.rest[:i]))
		l.rest = l.rest[i+1:]
	}
}

func (l *nodeLog) line(text string) {
	const most = 400
	if l.lines = append(l.lines, text); len(l.lines) > 2*most {
		l.lines = append([]string(nil), l.lines[most:]...)
	}
	for _, word := range damage {
		if strings.Contains(text, word) {
			l.badLeft = 40
		}
	}
	if l.badLeft > 0 && len(l.bad) < 200 {
		l.bad = append(l.bad, text)
		l.badLeft--
	}
}

func (l *nodeLog) tail(n int) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.lines[max(0, len(l.lines)-n):], "\n")
}

// damaged is what tells of damage, empty if nothing does.
func (l *nodeLog) damaged() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.bad, "\n")
}

// save writes the last lines to a file.
func (l *nodeLog) save(file string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(f)
	for _, line := range l.lines {
		fmt.Fprintln(w, line)
	}
	return errors.Join(w.Flush(), f.Close())
}

// count is how many of the kept lines have a text in them.
func (l *nodeLog) count(text string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range l.lines {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}
