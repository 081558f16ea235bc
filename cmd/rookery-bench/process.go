package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"
)

// A process is a program that was started here and ends with this one.
type process struct {
	cmd  *exec.Cmd
	held io.Closer // its standard input, closed when it is to end
	done chan struct{}
	err  error // how it ended, once done is closed
}

func newProcess(program string, args ...string) *process {
	p := &process{cmd: exec.Command(program, args...), done: make(chan struct{})}
	p.cmd.Stderr = os.Stderr
	p.cmd.SysProcAttr = withParent()
	return p
}

func (p *process) start() error {
	if err := p.cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", p.cmd.Path, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return nil
}

// exited reports whether the process has ended by itself.
func (p *process) exited() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// kill ends the process at once and waits for it.
func (p *process) kill() error {
	if p.held != nil {
		p.held.Close()
	}
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-p.done
	return nil
}

// terminate asks the process to end and waits for it.
func (p *process) terminate(ctx context.Context) error {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	patience := time.NewTimer(time.Minute)
	defer patience.Stop()
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
	case <-patience.C:
	}
	return errors.Join(fmt.Errorf("%s did not end when asked to", p.cmd.Path), p.kill())
}

// memory returns the octets of memory that the process holds for itself, the
// page cache and mapped files left out.
func (p *process) memory() (uint64, error) {
	return anonymousMemory(p.cmd.Process.Pid)
}

// anonymousMemory reads RssAnon, which Linux has.
func anonymousMemory(pid int) (uint64, error) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(text) {
		if value, ok := bytes.CutPrefix(line, []byte("RssAnon:")); ok {
			kb, err := strconv.ParseUint(string(bytes.TrimSuffix(bytes.TrimSpace(value), []byte(" kB"))), 10, 64)
			return kb << 10, err
		}
	}
	return 0, errors.New("RssAnon is not in /proc/PID/status")
}
