//go:build peers

package interop

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"
)

// relay stands at a node's address and hands on what Cyrus and the node say to each
// other. It knows when a command begins, and asks the lab what is to happen then.
type relay struct {
	lab *lab
	at  string
	to  string

	mu       sync.Mutex
	listener net.Listener // nil while the node is down: its address refuses then
	conns    map[net.Conn]bool
	work     sync.WaitGroup
}

// open begins to listen, unless it does.
func (r *relay) open() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.listener != nil {
		return nil
	}
	l, err := net.Listen("tcp", r.at)
	if err != nil {
		return err
	}
	r.listener, r.conns = l, map[net.Conn]bool{}
	r.work.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			r.work.Go(func() { r.serve(nc) })
		}
	})
	return nil
}

// shut ends all of it, as the end of the node's machine would.
func (r *relay) shut() {
	r.mu.Lock()
	if r.listener != nil {
		r.listener.Close()
		r.listener = nil
	}
	for nc := range r.conns {
		nc.Close()
	}
	r.mu.Unlock()
}

func (r *relay) keep(nc net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.listener == nil {
		nc.Close()
		return false
	}
	r.conns[nc] = true
	return true
}

func (r *relay) drop(nc net.Conn) {
	r.mu.Lock()
	delete(r.conns, nc)
	r.mu.Unlock()
	nc.Close()
}

func (r *relay) serve(from net.Conn) {
	if !r.keep(from) {
		return
	}
	defer r.drop(from)
	to, err := net.DialTimeout("tcp", r.to, time.Second)
	if err != nil || !r.keep(to) {
		return
	}
	defer r.drop(to)
	var back sync.WaitGroup
	host, _, _ := net.SplitHostPort(from.RemoteAddr().String())
	name := fmt.Sprintf("%s %s", r.lab.net.name(host), from.RemoteAddr().String()[len(host)+1:])
	back.Go(func() {
		_, _ = io.Copy(io.MultiWriter(from, &wireLog{lab: r.lab, name: name + " <- " + r.at}), to)
		from.Close() // what ends on one side ends on the other
	})
	r.hand(to, from, &wireLog{lab: r.lab, name: name + " -> " + r.at})
	to.Close()
	back.Wait()
}

// literal is how Cyrus announces an argument.
var literal = regexp.MustCompile(`\{(\d+)\+\}\r\n$`)

// hand hands on what Cyrus says, command by command.
func (r *relay) hand(to io.Writer, from net.Conn, log io.Writer) {
	host, _, _ := net.SplitHostPort(from.RemoteAddr().String())
	b := bufio.NewReader(from)
	for {
		var command []byte
		for more := true; more; {
			line, err := b.ReadBytes('\n')
			command = append(command, line...)
			if err != nil {
				_, _ = to.Write(command)
				return
			}
			more = false
			if m := literal.FindSubmatch(line); m != nil {
				n, _ := strconv.Atoi(string(m[1]))
				text := make([]byte, n)
				if _, err := io.ReadFull(b, text); err != nil {
					return
				}
				command = append(command, text...)
				more = true
			}
		}
		_, _ = log.Write(command)
		words := strings.Fields(string(command))
		if len(words) > 1 {
			r.lab.onCommand(host, strings.ToUpper(words[1]))
		}
		if _, err := to.Write(command); err != nil {
			return
		}
	}
}

// wireLog writes what goes over one connection into the lab's file of that.
type wireLog struct {
	lab  *lab
	name string
}

func (w *wireLog) Write(p []byte) (int, error) {
	w.lab.mu.Lock()
	defer w.lab.mu.Unlock()
	if w.lab.wire != nil {
		fmt.Fprintf(w.lab.wire, "%s %s %q\n", time.Now().Format("15:04:05.000000"), w.name, p)
	}
	return len(p), nil
}
