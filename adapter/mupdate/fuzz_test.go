package mupdate

import (
	"bytes"
	"io"
	"net"
	"testing"
	"time"
)

// FuzzConversation sends anything to a server in each state of a connection: before
// login, inside an exchange of SASL, after login, as a backend, while streaming. Whatever
// comes, the server goes on, and every line it says is one of MUPDATE.
func FuzzConversation(f *testing.F) {
	m := newMurder(f, func(c *Config) { c.LoginPause = time.Microsecond })
	if err := m.do([]string{"complete"}); err != nil {
		f.Fatal(err)
	}
	login := func(name string) string {
		return "A01 AUTHENTICATE \"PLAIN\" \"" + plainOf("", name, password) + "\"\r\n"
	}
	states := []string{
		"",
		"A01 AUTHENTICATE \"PLAIN\"\r\n",
		"A01 AUTHENTICATE \"SCRAM-SHA-256\" \"biwsbj1iZTEscj1yT3ByTkdmd0ViZVJXZ2JORWtxTw==\"\r\n",
		login("mupdate"),
		login("be1"),
		login("frontend") + "U01 UPDATE\r\n",
		login("mupdate") + "X0 LIST \"be1.example.org!\"\r\n",
	}
	for state := range states {
		for _, text := range []string{
			"X0 FIND \"user.a\"\r\n", "X0 FIND {6+}\r\nuser.a\r\n", "X0 RESERVE {6}\r\nuser.a {18+}\r\nbe1.example.org!d\r\n",
			"X0 DELETE \"a\"\r\nX1 RESERVE \"b\" \"be1.example.org!\"\r\nX2 ACTIVATE \"b\" \"be1.example.org!\" \"\"\r\n",
			"X0 LIST\r\nX1 UPDATE \"be1\" \"be2\"\r\nN0 NOOP\r\n", "*\r\n", "=\r\n", "\x00\r\n", "X0 {99999999999999999999+}\r\n",
			"X0 FIND {90000000+}\r\n", "X0 FIND \"\\", "STARTTLS\r\n", "X STARTTLS\r\n", "X COMPRESS \"DEFLATE\"\r\n", "\r\n\r\n\n\n", "(((\r\n", "X0 FIND \"\xff\xfe\"\n",
		} {
			f.Add(uint8(state), []byte(text))
		}
	}
	f.Fuzz(func(t *testing.T, state uint8, text []byte) {
		begin := states[int(state)%len(states)]
		nc, err := net.Dial("tcp", m.addr)
		if err != nil {
			t.Fatalf("no connection: %v", err)
		}
		defer nc.Close()
		nc.SetDeadline(time.Now().Add(30 * time.Second))
		said := make(chan []byte, 1)
		go func() {
			b, _ := io.ReadAll(nc)
			said <- b
		}()
		nc.Write([]byte(begin))
		nc.Write(text)
		nc.Write([]byte("\r\n\"\r\nZ99 LOGOUT\r\n"))
		nc.(*net.TCPConn).CloseWrite()
		b := <-said
		if !bytes.HasPrefix(b, []byte("* AUTH")) {
			t.Fatalf("no greeting: %.200q", b)
		}
		if bytes.Contains(b, []byte("panic")) {
			t.Fatalf("%.200q", b)
		}
		// The server is still there, for others too.
		if c := m.s.conns.count(); c > DefaultMaxConnections {
			t.Fatalf("%d connections", c)
		}
	})
}
