//go:build peers

package powerloss

import (
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/rookery-mail/rookery/internal/logbuf"
)

// node is a rookeryd and the volume that its data directory is on.
type node struct {
	name, volume, point string
	program             string
	client, peer, http  string
	flags               []string
	damaged             bool // it is to find its state damaged, and may say so

	log   *logbuf.Buffer // of the process that runs, or ran last
	cmd   *exec.Cmd
	ended chan struct{} // closed when the process has
	exit  error         // how; set before
}

func (n *node) data() string { return filepath.Join(n.point, "data") }

// spawner starts processes that the kernel kills when this one ends, however it
// ends. It counts the thread that started them, so there is one that stays.
type spawner chan func()

func newSpawner() spawner {
	s := make(spawner)
	go func() {
		runtime.LockOSThread()
		for f := range s {
			f()
		}
	}()
	return s
}

func (s spawner) start(cmd *exec.Cmd) (err error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	done := make(chan struct{})
	s <- func() {
		err = cmd.Start()
		close(done)
	}
	<-done
	return err
}

func (n *node) start(s spawner) error {
	args := []string{
		"--name", n.name, "--data", n.data(), "--listen-client", n.client, "--listen-peer", n.peer, "--listen-http", n.http,
		"--ballast", "0", "--low-space", "1MiB", "--scrub-interval", "0",
	}
	n.log = &logbuf.Buffer{}
	n.cmd = exec.Command(n.program, append(args, n.flags...)...)
	n.cmd.Stderr = n.log
	if err := s.start(n.cmd); err != nil {
		return err
	}
	ended, cmd := make(chan struct{}), n.cmd
	n.ended = ended
	go func() {
		n.exit = cmd.Wait()
		close(ended)
	}()
	return nil
}

func (n *node) kill() {
	if n.cmd == nil {
		return
	}
	_ = n.cmd.Process.Kill() // it may have ended
	<-n.ended
	n.cmd = nil
}

// patience is how long anything may take on a machine that has other things to
// do.
const patience = 60 * time.Second

// ready waits until the node answers.
func (n *node) ready() (time.Duration, error) {
	begun := time.Now()
	for time.Since(begun) < patience {
		if resp, err := http.Get("http://" + n.http + "/readyz"); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return time.Since(begun), nil
			}
		}
		select {
		case <-n.ended:
			return 0, fmt.Errorf("%s ended: %w", n.name, n.ending())
		case <-time.After(3 * time.Millisecond):
		}
	}
	return 0, fmt.Errorf("%s was not ready within %v:\n%s", n.name, patience, tail(n.log.String()))
}

// ending is how the process ended, and what it said last.
func (n *node) ending() error {
	exit := n.exit
	if exit == nil {
		exit = errors.New("exit code 0")
	}
	return fmt.Errorf("%w\n%s", exit, tail(n.log.String()))
}

// alarming is what a node does not write that lost its power and nothing else. An alarm
// of damage may be lowered then: what was damaged before, and healed, was perhaps not
// told of when the power went.
var alarming = regexp.MustCompile(`panic:|fatal error|unexpected fault|goroutine \d+ \[|level=ERROR|corrupt|quarantined|two histories|DATA RACE`)

// fine looks for what must not be in the log of a node that has just started.
func (n *node) fine() error {
	for line := range strings.Lines(n.log.String()) {
		if alarming.MatchString(line) && !strings.Contains(line, "raised=false") {
			return fmt.Errorf("%s says:\n%s", n.name, tail(n.log.String()))
		}
	}
	return nil
}

func tail(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return "\t" + strings.Join(lines[max(0, len(lines)-15):], "\n\t")
}
