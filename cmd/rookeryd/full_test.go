package main_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
)

// startLimited starts the node so that no file of it grows beyond so many
// octets; for it that is a full disk.
func (n *node) startLimited(limit int64) {
	n.t.Helper()
	n.cmd = exec.Command("sh", "-c", fmt.Sprintf("ulimit -f %d; exec \"$0\" \"$@\"", limit/512), n.program, "--name", "n1", "--data", n.data, "--ballast", "0",
		"--listen-client", n.client, "--listen-peer", n.peer, "--listen-http", n.http)
	n.cmd.Stderr = &n.log
	if err := n.cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	ended, cmd := make(chan struct{}), n.cmd
	n.ended = ended
	go func() {
		n.exit = cmd.Wait()
		close(ended)
	}()
}

// get returns what the node's web server says.
func (n *node) get(path string) (code int, body string) {
	n.t.Helper()
	for begun := time.Now(); time.Since(begun) < 20*time.Second; time.Sleep(5 * time.Millisecond) {
		select {
		case <-n.ended:
			n.t.Fatalf("rookeryd ended: %v\n%s", n.exit, n.log.String())
		default:
		}
		if resp, err := http.Get("http://" + n.http + path); err == nil {
			defer resp.Body.Close()
			b, _ := io.ReadAll(resp.Body)
			return resp.StatusCode, string(b)
		}
	}
	n.t.Fatalf("rookeryd did not answer in 20 s\n%s", n.log.String())
	return 0, ""
}

// TestFullDisk: a node whose directory takes no writes comes up read-only,
// shows what it has, refuses the rest, and says why; with room it is a node
// again and nothing is lost. So does one whose disk fills while it runs.
func TestFullDisk(t *testing.T) {
	n := newNode(t)
	n.start()
	n.ready()
	ctx := t.Context() // without a deadline, so that the client's own counts
	dial := func() *client.Client {
		t.Helper()
		c, err := client.Dial([]string{n.client}, client.WithTimeout(2*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	acl := "a\tlrs\t"
	for i := range 300 { // p alone shows nobody anything, so it only takes up space
		acl += fmt.Sprintf("%s%03d\tp\t", strings.Repeat("x", 90), i)
	}
	assert := func(c *client.Client, names ...directory.MailboxName) error {
		var ops []client.Op
		for _, name := range names {
			ops = append(ops, client.Assert{Mailbox: name, Server: "be1.test", Statement: directory.Statement{Partition: "default", ACL: &acl}})
		}
		_, err := c.Batch(ctx, ops)
		return err
	}
	c := dial()
	for i := range 20 {
		if err := assert(c, directory.MailboxName(fmt.Sprint("user.a.f", i))); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(1500 * time.Millisecond) // until the state file has them
	n.kill()

	readOnly := func(have directory.MailboxName) {
		t.Helper()
		for begun := time.Now(); ; time.Sleep(20 * time.Millisecond) {
			code, body := n.get("/readyz?verbose")
			if code == http.StatusServiceUnavailable && strings.Contains(body, "[!] writable: ") && strings.Contains(body, "file too large") {
				break
			}
			if time.Since(begun) > 30*time.Second {
				t.Fatalf("/readyz: %d\n%s\n%s", code, body, n.log.String())
			}
		}
		if code, _ := n.get("/livez"); code != http.StatusOK {
			t.Errorf("/livez: %d", code)
		}
		if _, body := n.get("/metrics"); !strings.Contains(body, `rookery_raftstore_read_only{shard="1"} 1`) {
			t.Error("the metrics do not say that it is read-only")
		}
		c := dial()
		if r, err := c.Lookup(ctx, have, client.Stale(0)); err != nil || r.Server.Name != "be1.test" {
			t.Errorf("a stale lookup: %+v, %v", r, err)
		}
		if _, err := c.Lookup(ctx, have); !errors.Is(err, client.ErrUnavailable) {
			t.Errorf("a lookup: %v, want ErrUnavailable", err)
		}
		if err := assert(c, "user.b"); !errors.Is(err, client.ErrUnavailable) {
			t.Errorf("an assertion: %v, want ErrUnavailable", err)
		}
		st, err := c.Status(ctx, client.Stale(0))
		if err != nil || st.Health == nil || !strings.Contains(st.Health.ReadOnly, "file too large") {
			t.Errorf("status: %+v, %v", st.Health, err)
		}
	}

	n.startLimited(512 << 10) // not even enough to start
	readOnly("user.a.f7")
	n.kill()

	n.start()
	n.ready()
	c = dial()
	if r, err := c.Lookup(ctx, "user.a.f7"); err != nil || r.Server.Name != "be1.test" {
		t.Errorf("with room again: %+v, %v", r, err)
	}
	n.kill()

	// Enough to start, but not for much more.
	n.startLimited(65 << 20)
	n.ready()
	c = dial()
	for i := 0; ; i++ {
		var names []directory.MailboxName
		for j := range 40 {
			names = append(names, directory.MailboxName(fmt.Sprintf("user.c%d.f%d", i, j)))
		}
		if err := assert(c, names...); err != nil {
			break
		}
		if i == 1000 {
			t.Fatal("the limit was never met")
		}
	}
	readOnly("user.a.f7")
}
