//go:build peers

package interop

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/rookery-mail/rookery/client"
)

// node is a rookeryd. It listens on loopback; Cyrus reaches it through its relay.
type node struct {
	name   string
	args   []string
	log    string
	client string // addresses
	master string
	relay  *relay

	mu    sync.Mutex
	cmd   *exec.Cmd // nil while it is stopped
	ended chan struct{}
}

// cluster is the nodes that stand where the MUPDATE master stood.
type cluster struct {
	lab   *lab
	nodes []*node
	all   *client.Client
	ctl   string // the program rookeryctl
}

// newCluster makes and starts some nodes. The logins of the users file are the hosts'.
func newCluster(l *lab, programs string, count int) (*cluster, error) {
	c := &cluster{lab: l, ctl: filepath.Join(programs, "rookeryctl")}
	users := filepath.Join(l.dir, "mupdate-users")
	for login := range hostNumbers {
		args := []string{"mupdate", "passwd", login, "--file", users}
		if login != "fe" {
			args = append(args, "--server", login+domain)
		}
		make := exec.Command(c.ctl, args...)
		make.Stdin = strings.NewReader("secret\n")
		if out, err := make.CombinedOutput(); err != nil {
			return c, fmt.Errorf("interop: %w: %s", err, out)
		}
	}
	var founders, endpoints []string
	for i := range count {
		at := l.net.Loopback(i + 1)
		n := &node{name: fmt.Sprintf("n%d", i+1), client: at + ":7905", master: at + ":3905"}
		n.log = filepath.Join(l.dir, n.name+".log")
		n.args = []string{
			"--name", n.name, "--data", filepath.Join(l.dir, n.name), "--ballast", "0", "--low-space", "8MiB", "--log-segment", "4MiB", "--listen-unix", "none",
			"--listen-client", n.client, "--listen-peer", at + ":7906", "--listen-http", at + ":7907",
			"--listen-mupdate", n.master, "--mupdate-users", users, "--mupdate-spool", l.dir,
		}
		founders = append(founders, n.name+"="+at+":7906")
		endpoints = append(endpoints, n.client)
		c.nodes = append(c.nodes, n)
	}
	all, err := client.Dial(endpoints)
	if err != nil {
		return c, err
	}
	c.all = all
	for i, n := range c.nodes {
		n.args = append(n.args, "--initial-cluster", strings.Join(founders, ","))
		n.relay = &relay{lab: l, at: l.net.Address(i+1) + ":3905", to: n.master}
	}
	return c, c.again()
}

// start starts a node's process.
func (c *cluster) start(n *node) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cmd != nil {
		return nil
	}
	log, err := os.OpenFile(n.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(filepath.Dir(c.ctl), "rookeryd"), n.args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	n.cmd, n.ended = cmd, make(chan struct{})
	go func(ended chan struct{}) {
		_ = cmd.Wait()
		close(ended)
	}(n.ended)
	return nil
}

// open has the node's address take connections, as soon as the node does.
func (n *node) open() error {
	err := wait(n.name+" listens", func() (bool, error) {
		nc, err := net.DialTimeout("tcp", n.master, time.Second)
		if err != nil {
			return false, err
		}
		return true, nc.Close()
	})
	if err != nil {
		return err
	}
	return n.relay.open()
}

// again starts the nodes that do not run, and waits until all answer.
func (c *cluster) again() error {
	for _, n := range c.nodes {
		if err := c.start(n); err != nil {
			return err
		}
	}
	for _, n := range c.nodes {
		if err := n.open(); err != nil {
			return err
		}
	}
	return c.ready()
}

// ready waits until every node answers a linearizable question.
func (c *cluster) ready() error {
	for _, n := range c.nodes {
		err := wait(n.name+" takes part", func() (bool, error) {
			_, err := n.status(client.Linearizable())
			return err == nil, err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// status asks one node how things are.
func (n *node) status(opts ...client.ReadOption) (st client.Status, err error) {
	cl, err := client.Dial([]string{n.client})
	if err != nil {
		return st, err
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	return cl.Status(ctx, opts...)
}

// leader is the node that leads in the most recent term; nil if none is known.
func (c *cluster) leader() *node {
	var term uint64
	var leads *node
	for _, n := range c.nodes {
		if !n.running() {
			continue
		}
		if st, err := n.status(client.Stale(0)); err == nil && st.Leader == n.name && st.Term > term {
			term, leads = st.Term, n
		}
	}
	return leads
}

func (n *node) running() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.cmd != nil
}

// kill ends the node's process at once. Its address refuses connections from then on.
func (n *node) kill() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cmd == nil {
		return
	}
	n.relay.shut()
	_ = n.cmd.Process.Kill()
	<-n.ended
	n.cmd = nil
}

// killMajority leaves so few nodes that none of them can answer.
func (c *cluster) killMajority() error {
	leader := c.leader()
	if leader == nil {
		return errors.New("nobody leads")
	}
	leader.kill()
	for _, n := range c.nodes[:len(c.nodes)/2] {
		if n == leader {
			n = c.nodes[len(c.nodes)-1]
		}
		n.kill()
	}
	return nil
}

// rookeryctl runs the operators' program.
func (c *cluster) rookeryctl(args ...string) (string, error) {
	var endpoints []string
	for _, n := range c.nodes {
		endpoints = append(endpoints, n.client)
	}
	cmd := exec.Command(c.ctl, append([]string{"--endpoints", strings.Join(endpoints, ",")}, args...)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("rookeryctl %s: %w", strings.Join(args, " "), err)
	}
	return string(out), err
}

// facts is all that the directory knows, by name.
func (c *cluster) facts() (map[string]client.Route, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	all := map[string]client.Route{}
	for q := (client.FindQuery{}); ; {
		page, err := c.all.Find(ctx, q, client.Linearizable())
		if err != nil {
			return nil, err
		}
		for _, m := range page.Mailboxes {
			all[string(m.Mailbox)] = m
		}
		if q.Page = page.Next; q.Page == "" {
			return all, nil
		}
	}
}

// damage are the words that no log of a sound node has.
var damage = []string{"panic:", "fatal error:", "DATA RACE", "differs from the others", "state is not to be used"}

// close ends the nodes, and returns what their logs have of damage.
func (c *cluster) close() error {
	if c.all != nil {
		c.all.Close()
	}
	var bad []error
	for _, n := range c.nodes {
		n.kill()
		text, _ := os.ReadFile(n.log)
		for _, word := range damage {
			if _, after, found := strings.Cut(string(text), word); found {
				bad = append(bad, fmt.Errorf("%s: %s%.2000s", n.name, word, after))
			}
		}
	}
	return errors.Join(bad...)
}
