package main

import (
	"errors"
	"net"
	"os"
	"strconv"
	"time"
)

// notifier tells systemd how the service is: sd_notify(3), datagrams of
// NAME=value lines to the socket in NOTIFY_SOCKET. Without one it says nothing.
type notifier struct{ conn *net.UnixConn }

func newNotifier() (*notifier, error) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return &notifier{}, nil
	}
	if path[0] == '@' {
		path = "\x00" + path[1:]
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil, err
	}
	return &notifier{conn}, nil
}

// tell sends one datagram, e.g. "READY=1\nSTATUS=serving".
func (n *notifier) tell(state string) error {
	if n.conn == nil {
		return nil
	}
	_, err := n.conn.Write([]byte(state))
	return err
}

// watchdog returns how often systemd wants to hear WATCHDOG=1, halved to be
// sure; zero: never.
func (n *notifier) watchdog() (time.Duration, error) {
	text := os.Getenv("WATCHDOG_USEC")
	if n.conn == nil || text == "" {
		return 0, nil
	}
	if pid := os.Getenv("WATCHDOG_PID"); pid != "" && pid != strconv.Itoa(os.Getpid()) {
		return 0, nil
	}
	usec, err := strconv.ParseInt(text, 10, 64)
	if err != nil || usec <= 0 {
		return 0, errors.New("WATCHDOG_USEC is no number of microseconds: " + text)
	}
	return time.Duration(usec) * time.Microsecond / 2, nil
}

func (n *notifier) Close() error {
	if n.conn == nil {
		return nil
	}
	return n.conn.Close()
}
