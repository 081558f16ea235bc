package client

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
)

// node is one node of the cluster and the connection to it.
type node struct {
	endpoint  string
	conn      clientConn
	directory apiv1.DirectoryServiceClient
	cluster   apiv1.ClusterServiceClient
	resync    apiv1.ResyncServiceClient
}

// nodes are the nodes that a client knows: those it was given, and leaders it
// was told of. Reads go to the one that answered last, because it is near and
// well; writes to the leader, once it is known.
type nodes struct {
	dial   func(endpoint string) (clientConn, error)
	near   atomic.Pointer[node]
	leader atomic.Pointer[node] // nil: not known

	mu     sync.Mutex
	all    []*node // those given to Dial first
	most   int     // as many as there may be
	closed bool
}

// maxTold bounds the nodes that are known only because another named them.
const maxTold = 16

func dialNodes(endpoints []string, dial func(string) (clientConn, error)) (*nodes, error) {
	ns := &nodes{dial: dial}
	for _, endpoint := range endpoints {
		if ns.find(endpoint) != nil {
			return nil, errors.Join(fmt.Errorf("client: endpoint %q is given twice", endpoint), ns.close())
		}
		if _, err := ns.add(endpoint); err != nil {
			return nil, errors.Join(err, ns.close())
		}
	}
	ns.most = len(ns.all) + maxTold
	ns.near.Store(ns.all[0])
	return ns, nil
}

// find returns the node at endpoint, or nil. Its caller holds mu, or is alone.
func (ns *nodes) find(endpoint string) *node {
	for _, n := range ns.all {
		if n.endpoint == endpoint {
			return n
		}
	}
	return nil
}

// add makes a node. Its caller holds mu, or is alone.
func (ns *nodes) add(endpoint string) (*node, error) {
	conn, err := ns.dial(endpoint)
	if err != nil {
		return nil, err
	}
	n := &node{
		endpoint:  endpoint,
		conn:      conn,
		directory: apiv1.NewDirectoryServiceClient(conn),
		cluster:   apiv1.NewClusterServiceClient(conn),
		resync:    apiv1.NewResyncServiceClient(conn),
	}
	ns.all = append(ns.all, n)
	return n, nil
}

// first returns where to send a call first.
func (ns *nodes) first(write bool) *node {
	if write {
		if n := ns.leader.Load(); n != nil {
			return n
		}
	}
	return ns.near.Load()
}

// after returns the node to ask after n.
func (ns *nodes) after(n *node) *node {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	for i, m := range ns.all {
		if m == n {
			return ns.all[(i+1)%len(ns.all)]
		}
	}
	return ns.all[0]
}

// count returns how many nodes are known.
func (ns *nodes) count() int {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	return len(ns.all)
}

// at returns the node at an address that another node gave, or nil if there can
// be none.
func (ns *nodes) at(address string) *node {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	if n := ns.find(address); n != nil {
		return n
	}
	if address == "" || ns.closed || len(ns.all) >= ns.most {
		return nil
	}
	n, err := ns.add(address)
	if err != nil {
		return nil // then it is found by asking the others in turn
	}
	return n
}

// answered notes that n answered a read, or did a write.
func (ns *nodes) answered(n *node, write bool) {
	p := &ns.near
	if write {
		p = &ns.leader
	}
	if p.Load() != n {
		p.Store(n)
	}
}

// failed notes that n did not answer a read or do a write. If it hung, the next
// call of either kind begins with another node, lest calls whose time is short
// all spend it on this one.
func (ns *nodes) failed(n *node, write, hung bool) {
	if write {
		ns.leader.CompareAndSwap(n, nil)
	}
	if hung && ns.near.Load() == n {
		ns.near.CompareAndSwap(n, ns.after(n))
	}
}

func (ns *nodes) close() error {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	ns.closed = true
	var errs []error
	for _, n := range ns.all {
		errs = append(errs, n.conn.Close())
	}
	return errors.Join(errs...)
}
