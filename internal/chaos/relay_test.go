//go:build peers

package chaos

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// line is what a relay makes of a connection: so many octets a second each way,
// that arrive so much later.
type line struct {
	rate  int64 // octets a second; 0: any number
	delay time.Duration
}

// relay passes connections on over a slow line. All its connections share the line.
type relay struct {
	l      net.Listener
	from   net.IP // to dial the target from
	target string
	line   atomic.Pointer[line]
	ways   [2]struct {
		mu   sync.Mutex
		free time.Time // when the line is free again
	}

	mu     sync.Mutex
	conns  map[net.Conn]bool
	closed bool
	wg     sync.WaitGroup
}

func newRelay(listen, target string) (*relay, error) {
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return nil, err
	}
	r := &relay{l: l, target: target, conns: map[net.Conn]bool{}}
	r.from = l.Addr().(*net.TCPAddr).IP
	r.line.Store(&line{})
	r.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			r.wg.Go(func() { r.pass(c) })
		}
	})
	return r, nil
}

func (r *relay) port() int { return r.l.Addr().(*net.TCPAddr).Port }

// cut ends the connections there are.
func (r *relay) cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := range r.conns {
		c.Close()
	}
}

func (r *relay) close() {
	r.l.Close()
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.cut()
	r.wg.Wait()
}

// hold keeps a connection to be cut, until it is dropped.
func (r *relay) hold(c net.Conn) (drop func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		c.Close()
	}
	r.conns[c] = true
	return func() {
		c.Close()
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.conns, c)
	}
}

func (r *relay) pass(caller net.Conn) {
	defer r.hold(caller)()
	d := net.Dialer{Timeout: 2 * time.Second, LocalAddr: &net.TCPAddr{IP: r.from}}
	target, err := d.Dial("tcp", r.target)
	if err != nil {
		return // and the caller sees that nobody is there
	}
	defer r.hold(target)()
	var wg sync.WaitGroup
	for way, ends := range [2][2]net.Conn{{target, caller}, {caller, target}} {
		wg.Go(func() {
			r.carry(ends[0], ends[1], way)
			target.Close()
			caller.Close()
		})
	}
	wg.Wait()
}

// carry takes one way of a connection over the line.
func (r *relay) carry(to, from net.Conn, way int) {
	type piece struct {
		data []byte
		due  time.Time
	}
	pieces := make(chan piece, 64)
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(pieces)
		for {
			data := make([]byte, 8<<10)
			n, err := from.Read(data)
			if err != nil {
				return
			}
			pieces <- piece{data[:n], r.take(way, n)}
		}
	})
	for p := range pieces {
		time.Sleep(time.Until(p.due))
		if _, err := to.Write(p.data); err != nil {
			from.Close()
		}
	}
	wg.Wait()
}

// take puts n octets on the line and returns when they arrive.
func (r *relay) take(way, n int) time.Time {
	l, w := r.line.Load(), &r.ways[way]
	w.mu.Lock()
	defer w.mu.Unlock()
	if now := time.Now(); w.free.Before(now) {
		w.free = now
	}
	if l.rate > 0 {
		w.free = w.free.Add(time.Duration(float64(n) / float64(l.rate) * float64(time.Second)))
	}
	return w.free.Add(l.delay)
}

// TestRelay tries the line itself.
func TestRelay(t *testing.T) {
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
	r, err := newRelay("127.0.0.1:0", echo.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer r.close()
	for _, tt := range []struct {
		line
		least time.Duration
	}{
		{line{}, 0},
		{line{delay: 50 * time.Millisecond}, 100 * time.Millisecond},
		{line{rate: 100_000}, 200 * time.Millisecond},
	} {
		r.line.Store(&tt.line)
		c, err := net.Dial("tcp", r.l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		go func() { _, _ = c.Write(make([]byte, 20_000)) }()
		if _, err := io.ReadFull(c, make([]byte, 20_000)); err != nil {
			t.Errorf("%+v: %v", tt.line, err)
		}
		if took := time.Since(begun); took < tt.least {
			t.Errorf("%+v: back after %v, want %v at least", tt.line, took, tt.least)
		}
		c.Close()
	}
}
