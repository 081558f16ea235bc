package mupdate

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
)

// A client is told in few words why nothing is known; the transport's are not for it.
func TestReasonUnavailable(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	dir, err := client.Dial([]string{l.Addr().String()})
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, refused := dir.Lookup(ctx, "user.a", client.Linearizable())
	if refused == nil {
		t.Fatal("nobody listens there, and it was answered")
	}
	noLeader := &client.Error{Reason: "NO_LEADER", Message: "raftstore: no leader"}
	for _, tt := range []struct {
		err  error
		want string
	}{
		{refused, "unavailable: no node answers"},
		{context.DeadlineExceeded, "unavailable: no node answers"},
		{errors.Join(client.ErrUnavailable, context.DeadlineExceeded, noLeader), "unavailable: no leader"},
		{later("no backend has been heard"), "unavailable: no backend has been heard"},
		{fmt.Errorf("x: %w", client.ErrUndecided), "unavailable, it may or may not have been done: no node answered in time"},
		{&spoolError{&os.PathError{Op: "write", Path: "/tmp/rookery-mupdate-1", Err: syscall.ENOSPC}}, "unavailable: this server could not write the list down"},
		{directory.ErrInvalidName, "invalid name"},
	} {
		if got := reason(tt.err); got != tt.want {
			t.Errorf("%v: got %q, want %q", tt.err, got, tt.want)
		}
	}
}
