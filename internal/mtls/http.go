package mtls

import (
	"net"
	"sync"
	"sync/atomic"
)

// HTTP returns l with mutual TLS spoken on its connections, for net/http: each
// makes its handshake when it is first read from, so that who is slow holds up
// itself alone.
func HTTP(l net.Listener, f *Files, who Listening) net.Listener {
	return &httpListener{Listener: l, gate: newGate(f, who)}
}

type httpListener struct {
	net.Listener
	gate *gate
}

func (l *httpListener) Accept() (net.Conn, error) {
	raw, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &lateConn{Conn: raw, gate: l.gate}, nil
}

// lateConn shakes hands when it is used.
type lateConn struct {
	net.Conn // the bare one: addresses, deadlines
	gate     *gate

	once   sync.Once
	err    error                    // set by once
	secure atomic.Pointer[net.Conn] // nil until the handshake has ended well
}

func (c *lateConn) shake() (net.Conn, error) {
	c.once.Do(func() {
		var conn net.Conn
		if conn, _, c.err = c.gate.admit(c.Conn, "http/1.1"); c.err == nil {
			c.secure.Store(&conn)
		}
	})
	if c.err != nil {
		return nil, c.err
	}
	return *c.secure.Load(), nil
}

func (c *lateConn) Read(b []byte) (int, error) {
	conn, err := c.shake()
	if err != nil {
		return 0, err
	}
	return conn.Read(b)
}

func (c *lateConn) Write(b []byte) (int, error) {
	conn, err := c.shake()
	if err != nil {
		return 0, err
	}
	return conn.Write(b)
}

// Close ends a handshake that is under way.
func (c *lateConn) Close() error {
	if conn := c.secure.Load(); conn != nil {
		return (*conn).Close()
	}
	return c.Conn.Close()
}
