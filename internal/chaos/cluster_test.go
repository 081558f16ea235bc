//go:build peers

package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/internal/mtls"
	"github.com/rookery-mail/rookery/internal/netlab"
)

// cluster is some nodes, the network between them, and what was found wrong.
type cluster struct {
	dir       string // certificates, logs that were kept
	pki       string
	rookeryd  string
	net       network
	creds     client.Option
	nodes     []*node           // voters first; those that joined later behind
	relays    map[[2]int]*relay // by caller and target, at their addresses
	diskSize  string
	processor atomic.Int64 // nanoseconds that nodes have taken which ended
	end       func()       // of what waits for ^C

	mu       sync.Mutex
	problems []string
}

// fail notes a violation. The round goes on to its end: what else is found may
// tell more.
func (c *cluster) fail(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.problems) < 50 {
		c.problems = append(c.problems, fmt.Sprintf(format, args...))
	}
}

func (c *cluster) failures() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.problems)
}

// build builds a program of this tree.
func build(dir, program string) (string, error) {
	file := filepath.Join(dir, program)
	out, err := exec.Command("go", "build", "-o", file, "github.com/rookery-mail/rookery/cmd/"+program).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build %s: %w\n%s", program, err, out)
	}
	return file, nil
}

// newCluster makes count nodes and starts them. flags are those of one node.
func newCluster(dir, rookeryd string, rng *rand.Rand, count int, flags func(host int) []string) (c *cluster, err error) {
	c = &cluster{dir: dir, pki: filepath.Join(dir, "pki"), rookeryd: rookeryd, relays: map[[2]int]*relay{}, diskSize: "448m"}
	if c.net, err = newNetwork(); err != nil {
		return c, err
	}
	c.end = netlab.OnSignal(func(s os.Signal) { c.fail("%s: %v", toldToEnd, s) }) // what was made on the machine is removed then
	defer func() {
		if err != nil {
			c.close()
		}
	}()
	ca, err := mtls.InitCA(c.pki, "", 0)
	if err != nil {
		return c, err
	}
	issue := func(id mtls.Identity, hosts ...string) error {
		pair, err := ca.Issue(mtls.Request{Identity: id, Hosts: hosts})
		if err != nil {
			return err
		}
		cert, key := mtls.FileNames(id)
		return pair.Write(filepath.Join(c.pki, cert), filepath.Join(c.pki, key), true)
	}
	operator := mtls.Identity{Role: mtls.Operator, Name: "chaos"}
	if err := issue(operator); err != nil {
		return c, err
	}
	cert, key := mtls.FileNames(operator)
	files, err := mtls.Load(mtls.Paths{Cert: filepath.Join(c.pki, cert), Key: filepath.Join(c.pki, key), CA: filepath.Join(c.pki, mtls.CACert)}, nil, nil)
	if err != nil {
		return c, err
	}
	c.creds = client.WithCredentials(mtls.Client(files, nil))

	// One more than there are voters: it joins and leaves.
	var founders []string
	for host := 1; host <= count+1; host++ {
		if !c.alive() {
			return c, errors.New(toldToEnd)
		}
		n := &node{c: c, host: host, name: fmt.Sprintf("n%d", host), dir: filepath.Join(dir, fmt.Sprintf("n%d", host))}
		if err := c.net.Add(host); err != nil {
			return c, err
		}
		c.nodes = append(c.nodes, n)
		if err := issue(mtls.Identity{Role: mtls.Node, Name: n.name}, c.net.Address(host)); err != nil {
			return c, err
		}
		if err := os.MkdirAll(n.dir, 0o700); err != nil {
			return c, err
		}
		if err := netlab.Run(fmt.Sprintf("mount -t tmpfs -o size=%s %s %s", c.diskSize, prefix+"disk", n.dir)); err != nil {
			return c, err
		}
		if host <= count {
			founders = append(founders, n.name+"="+n.peer())
		}
	}
	var peers []string
	for _, n := range c.nodes {
		peers = append(peers, n.peer())
	}
	for _, a := range c.nodes {
		for _, b := range c.nodes {
			if a == b {
				continue
			}
			r, err := newRelay(c.net.Address(relaysAt)+":0", b.peer())
			if err != nil {
				return c, err
			}
			c.relays[[2]int{a.host, b.host}] = r
		}
	}
	for i, n := range c.nodes {
		n.flags = flags(n.host)
		if i < count {
			n.flags = append(n.flags, "--initial-cluster", strings.Join(founders, ","))
		} else {
			n.flags = append(n.flags, "--join", strings.Join(peers[:count], ","))
			continue
		}
		if err := n.start(); err != nil {
			return c, err
		}
	}
	return c, nil
}

// toldToEnd begins what fails a run that was interrupted.
const toldToEnd = "this test was told to end"

// voters are the nodes that founded the cluster.
func (c *cluster) voters() []*node { return c.nodes[:len(c.nodes)-1] }

// guest is the node that joins and leaves.
func (c *cluster) guest() *node { return c.nodes[len(c.nodes)-1] }

// endpoints are the voters' for clients, beginning with another one for each turn.
func (c *cluster) endpoints(turn int) (all []string) {
	for i := range c.voters() {
		all = append(all, c.voters()[(i+turn)%len(c.voters())].client())
	}
	return all
}

// dial makes a client of some endpoints.
func (c *cluster) dial(endpoints []string, opts ...client.Option) (*client.Client, error) {
	return client.Dial(endpoints, append([]client.Option{c.creds}, opts...)...)
}

// ask asks one node alone.
func (c *cluster) ask(n *node, timeout time.Duration, f func(ctx context.Context, c *client.Client) error) error {
	cl, err := c.dial([]string{n.client()}, client.WithTimeout(timeout))
	if err != nil {
		return err
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return f(ctx, cl)
}

// status is what a node says of itself, without asking others.
func (c *cluster) status(n *node, timeout time.Duration) (st client.Status, err error) {
	err = c.ask(n, timeout, func(ctx context.Context, cl *client.Client) error {
		st, err = cl.Status(ctx, client.Stale(0))
		return err
	})
	return st, err
}

// leader is the node that the most recent term has leading, nil if none is known.
func (c *cluster) leader() *node {
	type said struct {
		st  client.Status
		err error
	}
	all := make([]said, len(c.nodes))
	var wg sync.WaitGroup
	for i, n := range c.nodes {
		if !n.running() {
			all[i].err = errors.New("not running")
			continue
		}
		wg.Go(func() { all[i].st, all[i].err = c.status(n, time.Second) })
	}
	wg.Wait()
	var term uint64
	var leads *node
	for i, s := range all {
		if s.err == nil && s.st.Leader == c.nodes[i].name && s.st.Term > term {
			term, leads = s.st.Term, c.nodes[i]
		}
	}
	return leads
}

// ready waits until a node takes part: it answers a linearizable question.
func (c *cluster) ready(n *node, timeout time.Duration) error {
	var last error
	for begun := time.Now(); time.Since(begun) < timeout; time.Sleep(20 * time.Millisecond) {
		last = c.ask(n, min(timeout, 2*time.Second), func(ctx context.Context, cl *client.Client) error {
			_, err := cl.Status(ctx, client.Linearizable())
			return err
		})
		if last == nil {
			return nil
		}
	}
	return fmt.Errorf("%s was not ready after %v: %w", n.name, timeout, last)
}

// close ends all processes and removes what was made.
func (c *cluster) close() {
	defer c.end()
	for _, n := range c.nodes {
		n.signal(syscall.SIGCONT)
		n.kill()
	}
	for _, r := range c.relays {
		r.close()
	}
	for _, n := range c.nodes {
		if out, err := exec.Command("umount", n.dir).CombinedOutput(); err != nil {
			if _, err := os.Stat(n.data()); err == nil {
				c.fail("umount %s: %v: %s", n.dir, err, out)
			}
		}
	}
	if c.net.Network != nil {
		c.net.Close()
	}
}

// saveLogs writes down what the nodes said last.
func (c *cluster) saveLogs(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for _, n := range c.nodes {
		if err := n.log.save(filepath.Join(dir, n.name+".log")); err != nil {
			return err
		}
	}
	return nil
}
