package main_test

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// slowLink is a line to one process, that all its connections share: so many
// octets a second each way, that arrive so much later.
type slowLink struct {
	pid   atomic.Int64 // whose connections to others go over it; 0: none yet
	rate  atomic.Int64 // octets a second; 0: as fast as can be, and at once
	delay time.Duration
	ways  [2]struct {
		mu     sync.Mutex
		free   time.Time // when the line is free again
		octets int64
	}
}

// take sends n octets one way and returns when they arrive.
func (l *slowLink) take(way, n int) time.Time {
	rate := l.rate.Load()
	w := &l.ways[way]
	w.mu.Lock()
	defer w.mu.Unlock()
	w.octets += int64(n)
	if rate == 0 {
		return time.Time{}
	}
	if now := time.Now(); w.free.Before(now) {
		w.free = now
	}
	w.free = w.free.Add(time.Duration(float64(n) / float64(rate) * float64(time.Second)))
	return w.free.Add(l.delay)
}

// sent is how much went there.
func (l *slowLink) sent() int64 {
	w := &l.ways[toThere]
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.octets
}

// The ways of a slowLink.
const (
	toThere = iota
	fromThere
)

// relay is where a node can be reached by others: it passes on what comes, slowly
// for the process at the end of the line.
type relay struct {
	t      *testing.T
	l      net.Listener
	target string
	line   *slowLink
	far    bool // the target is at the line's end, else whoever the line belongs to

	mu    sync.Mutex
	conns map[net.Conn]bool // nil: closed
	wg    sync.WaitGroup
}

// newRelay returns a relay to target that ends with the test.
func newRelay(t *testing.T, target string, line *slowLink, far bool) *relay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{t: t, l: l, target: target, line: line, far: far, conns: map[net.Conn]bool{}}
	r.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			r.wg.Go(func() { r.pass(c) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		r.mu.Lock()
		for c := range r.conns {
			c.Close()
		}
		r.conns = nil
		r.mu.Unlock()
		r.wg.Wait()
	})
	return r
}

func (r *relay) addr() string { return r.l.Addr().String() }

// hold keeps a connection to be closed with the relay.
func (r *relay) hold(c net.Conn) (drop func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.conns == nil {
		c.Close()
		return func() {}
	}
	r.conns[c] = true
	return func() {
		c.Close()
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.conns, c)
	}
}

// pass carries a connection until one side ends it.
func (r *relay) pass(caller net.Conn) {
	defer r.hold(caller)()
	target, err := net.Dial("tcp", r.target)
	if err != nil {
		return // and the caller sees that nobody is there
	}
	defer r.hold(target)()
	out, back := toThere, fromThere
	carry := r.carry
	switch {
	case r.far:
	case calls(int(r.line.pid.Load()), caller.RemoteAddr()):
		out, back = fromThere, toThere
	default:
		carry = func(to, from net.Conn, _ int) { _, _ = io.Copy(to, from) }
	}
	var wg sync.WaitGroup
	wg.Go(func() { carry(target, caller, out); target.Close(); caller.Close() })
	wg.Go(func() { carry(caller, target, back); target.Close(); caller.Close() })
	wg.Wait()
}

// piece is what of a connection is on the line at once.
type piece struct {
	data []byte
	due  time.Time
}

// carry takes one way of a connection over the line.
func (r *relay) carry(to, from net.Conn, way int) {
	// What waits before the line waits in the sender's queue, not the kernel's.
	for _, c := range []net.Conn{to, from} {
		if c, ok := c.(*net.TCPConn); ok {
			_ = c.SetReadBuffer(32 << 10)
			_ = c.SetWriteBuffer(32 << 10)
		}
	}
	pieces := make(chan piece, 4)
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(pieces)
		for {
			data := make([]byte, 4<<10)
			n, err := from.Read(data)
			if err != nil {
				return
			}
			pieces <- piece{data[:n], r.line.take(way, n)}
		}
	})
	broken := false
	for p := range pieces {
		time.Sleep(time.Until(p.due))
		if broken {
			continue // until the reader has seen it too
		}
		if _, err := to.Write(p.data); err != nil {
			broken = true
			from.Close()
		}
	}
	wg.Wait()
}

// calls tells whether the process is the one that calls from an address of this
// machine; false where that cannot be told.
func calls(pid int, addr net.Addr) bool {
	at, ok := addr.(*net.TCPAddr)
	text, err := os.ReadFile("/proc/net/tcp")
	if pid == 0 || !ok || err != nil {
		return false
	}
	// Several connections may have the port, to other addresses: ended ones too,
	// which have no inode.
	inodes := map[string]bool{}
	for line := range strings.Lines(string(text)) {
		// sl local remote st queues timer retransmits uid timeout inode
		if f := strings.Fields(line); len(f) > 9 && f[1] == fmt.Sprintf("0100007F:%04X", at.Port) && f[9] != "0" {
			inodes["socket:["+f[9]+"]"] = true
		}
	}
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		return false
	}
	for _, file := range files {
		if to, err := os.Readlink(file); err == nil && inodes[to] {
			return true
		}
	}
	return false
}

// TestSlowLink tries the line itself.
func TestSlowLink(t *testing.T) {
	echo, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer echo.Close()
	go func() {
		for {
			c, err := echo.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); _, _ = io.Copy(c, c) }()
		}
	}()
	line := &slowLink{delay: 30 * time.Millisecond}
	line.pid.Store(int64(os.Getpid()))
	for _, tt := range []struct {
		far   bool
		rate  int64
		least time.Duration
		n     int
	}{
		{far: true, rate: 100_000, n: 20_000, least: 220 * time.Millisecond},
		{far: false, rate: 100_000, n: 20_000, least: 220 * time.Millisecond},
		{far: true, rate: 0, n: 20_000},
	} {
		if _, err := os.Stat("/proc/net/tcp"); err != nil && !tt.far {
			continue // who calls cannot be told here
		}
		line.rate.Store(tt.rate)
		c, err := net.Dial("tcp", newRelay(t, echo.Addr().String(), line, tt.far).addr())
		if err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		go func() { _, _ = c.Write(make([]byte, tt.n)) }()
		if _, err := io.ReadFull(c, make([]byte, tt.n)); err != nil {
			t.Errorf("%+v: %v", tt, err)
		}
		if took := time.Since(begun); took < tt.least {
			t.Errorf("%+v: back after %v", tt, took)
		}
		c.Close()
	}
}
