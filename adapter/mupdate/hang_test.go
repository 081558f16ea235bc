package mupdate

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/rookery-mail/rookery/adapter/mupdate/mupdateclient"
	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/server/servertest"
)

// hanging is a node that can be made to hang, as one whose machine does: what it is sent
// arrives, and it says nothing.
type hanging struct {
	mu   sync.Mutex
	free chan struct{} // closed: it does not hang
}

func (h *hanging) hang() {
	h.mu.Lock()
	h.free = make(chan struct{})
	h.mu.Unlock()
}

func (h *hanging) wake() {
	h.mu.Lock()
	defer h.mu.Unlock()
	select {
	case <-h.free:
	default:
		close(h.free)
	}
}

// newHanging starts a node that can hang, with MUPDATE in front of it. Its times are
// shorter than usual, but for those of the client.
func newHanging(t *testing.T, change ...func(*Config)) (*murder, *hanging) {
	h := &hanging{free: make(chan struct{})}
	close(h.free)
	node := servertest.New(t)
	dir, err := client.Dial([]string{"n1"}, client.WithDialer(func(ctx context.Context, addr string) (net.Conn, error) {
		nc, err := node.DialMemory(ctx, addr)
		return &hangingConn{Conn: nc, h: h, gone: make(chan struct{})}, err
	}))
	if err != nil {
		t.Fatalf("Dial: %v", err)
	}
	t.Cleanup(func() { dir.Close() })
	change = append([]func(*Config){func(c *Config) { c.Client, c.Timeout = dir, hangTimeout }}, change...)
	return newMurder(t, change...), h
}

// hangTimeout stands for DefaultTimeout, and hangLate for the five seconds.
const (
	hangTimeout = 2 * time.Second
	hangLate    = hangTimeout + 700*time.Millisecond
)

type hangingConn struct {
	net.Conn
	h    *hanging
	once sync.Once
	gone chan struct{}
}

func (c *hangingConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.h.mu.Lock()
	free := c.h.free
	c.h.mu.Unlock()
	select {
	case <-free:
	case <-c.gone:
	}
	return n, err
}

func (c *hangingConn) Close() error {
	c.once.Do(func() { close(c.gone) })
	return c.Conn.Close()
}

// While the nodes hang every command is answered in time, or its connection closed: also
// one that first has to end what was pending, or finds a renewal under way.
func TestAnswersInTimeWhileNodesHang(t *testing.T) {
	m, h := newHanging(t, func(c *Config) { c.OrphanGrace = 3 * time.Second }) // renewed each second
	if err := m.do([]string{"complete"}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"user.a", "user.b", "user.c"} {
		if err := m.do([]string{"assert", string(be1), name}); err != nil {
			t.Fatal(err)
		}
	}
	type ask struct {
		what  string
		first func(*mupdateclient.Client) error // before they hang
		after time.Duration                     // that they hang
		then  func(*mupdateclient.Client) error
	}
	remove := func(name string) func(*mupdateclient.Client) error {
		return func(c *mupdateclient.Client) error { return c.Delete(t.Context(), name) }
	}
	reserve := func(c *mupdateclient.Client) error { return c.Reserve(t.Context(), "user.new", string(be1)+"!default") }
	list := func(of string) func(*mupdateclient.Client) error {
		return func(c *mupdateclient.Client) (err error) {
			for _, err = range c.List(t.Context(), of) {
			}
			return err
		}
	}
	update := func(c *mupdateclient.Client) error {
		return c.Update(t.Context(), func(mupdateclient.Record) error { return nil }, func() error { return nil }, 0, func() error { return nil })
	}
	noop := func(c *mupdateclient.Client) error { return c.Noop(t.Context()) }
	asks := []ask{
		{"LIST", nil, 0, list("")},
		{"UPDATE", nil, 0, update},
		{"LIST after DELETE", remove("user.a"), 0, list("")},
		{"LIST of a server after DELETE", remove("user.b"), 0, list(string(be1) + "!")},
		{"UPDATE after DELETE", remove("user.c"), 0, update},
		{"NOOP before a renewal", reserve, 500 * time.Millisecond, noop},
		{"NOOP during a renewal", reserve, 1200 * time.Millisecond, noop},
		{"NOOP during a renewal, later", reserve, 2400 * time.Millisecond, noop},
	}
	conns := make([]*mupdateclient.Client, len(asks))
	for i, a := range asks {
		conns[i] = m.dial("be1", mupdateclient.Options{})
		if a.first != nil {
			if err := a.first(conns[i]); err != nil {
				t.Fatalf("%s: %v", a.what, err)
			}
		}
	}
	h.hang()
	stop := time.AfterFunc(10*time.Second, h.wake) // whoever waits for ever
	defer stop.Stop()
	var all sync.WaitGroup
	for i, a := range asks {
		all.Go(func() {
			time.Sleep(a.after)
			begun := time.Now()
			err := a.then(conns[i])
			if took := time.Since(begun); err == nil || took > hangLate {
				t.Errorf("%s: answered after %v: %v; want a refusal within %v", a.what, took, err, hangLate)
			}
		})
	}
	all.Wait()
	h.wake()
}
