package main

import (
	"net"
	"path/filepath"
	"testing"
	"time"
)

func TestNotify(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_USEC", "30000000")
	n, err := newNotifier()
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if err := n.tell("READY=1"); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 100)
	k, err := l.Read(b)
	if err != nil || string(b[:k]) != "READY=1" {
		t.Errorf("systemd heard %q, %v, want READY=1", b[:k], err)
	}
	if every, err := n.watchdog(); err != nil || every != 15*time.Second {
		t.Errorf("watchdog every %v, %v, want 15s", every, err)
	}
	t.Setenv("WATCHDOG_PID", "1")
	if every, err := n.watchdog(); err != nil || every != 0 {
		t.Errorf("another process's watchdog: every %v, %v, want never", every, err)
	}
	t.Setenv("WATCHDOG_PID", "")
	t.Setenv("WATCHDOG_USEC", "soon")
	if _, err := n.watchdog(); err == nil {
		t.Error("a watchdog time that is no number passed")
	}
}

func TestNotifyWithoutSystemd(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	n, err := newNotifier()
	if err != nil {
		t.Fatal(err)
	}
	if err := n.tell("READY=1"); err != nil {
		t.Errorf("got %v, want nothing said", err)
	}
	if every, err := n.watchdog(); err != nil || every != 0 {
		t.Errorf("got %v, %v, want no watchdog", every, err)
	}
}
