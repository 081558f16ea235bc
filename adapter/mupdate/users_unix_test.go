//go:build unix

package mupdate

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A users file that is no regular file is refused, and waited for by nobody: of a FIFO,
// opening it would.
func TestUsersFileIsRegular(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	path := testUsers(t).path
	u, err := LoadUsers(path)
	if err != nil {
		t.Fatal(err)
	}
	said := make(chan error, 4)
	go func() {
		for _, file := range []string{dir, os.DevNull, fifo} {
			_, err := LoadUsers(file)
			said <- err
		}
		if err := os.Rename(fifo, path); err != nil {
			t.Error(err)
		}
		u.mu.Lock()
		u.looked = time.Time{}
		u.mu.Unlock()
		said <- u.Broken()
	}()
	for range cap(said) {
		select {
		case err := <-said:
			if err == nil || !strings.HasSuffix(err.Error(), "is no regular file") {
				t.Errorf("got %v, want that it is no regular file", err)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("it waits for a writer")
		}
	}
	if u.user("be1") == nil {
		t.Error("the logins are gone")
	}
}
