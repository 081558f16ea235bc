//go:build peers

package interop

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/rookery-mail/rookery/internal/netlab"
)

// prefix begins the name of everything that is made on the machine.
const prefix = "rk-iop-"

// domain ends the names of the lab's hosts.
const domain = ".test"

// network has a namespace for each Cyrus server. The nodes' addresses are at the bridge:
// behind them are the relays of wire_test.go.
type network struct {
	*netlab.Network
	nodes int
}

// The last octets of addresses. Nodes are their own number.
var hostNumbers = map[string]int{"be1": 11, "be2": 12, "rep": 13, "fe": 14, "be3": 15}

// newNetwork is one with addresses for some nodes.
func newNetwork(nodes int) (network, error) {
	here := []int{254}
	for node := range nodes {
		here = append(here, node+1)
	}
	n, err := netlab.New(prefix, here, "mount", "umount", "unshare", "saslpasswd2", "cyrmaster")
	return network{n, nodes}, err
}

func (n network) host(name string) string { return n.Address(hostNumbers[name]) }

// name is the host that has an address.
func (n network) name(address string) string {
	for name := range hostNumbers {
		if n.host(name) == address {
			return name
		}
	}
	return address
}

func (n network) space(name string) string { return n.Space(hostNumbers[name]) }

// etc is what `ip netns exec` puts in the place of /etc.
func (n network) etc(name string) string { return filepath.Join("/etc/netns", n.space(name)) }

// add makes a host's namespace. In it, names are what this hosts file says: the master
// has the addresses of all nodes, beginning with another one on each host.
func (n network) add(name string) error {
	number := hostNumbers[name]
	if err := n.Add(number); err != nil {
		return err
	}
	hosts := "127.0.0.1 localhost\n"
	for i := range n.nodes {
		hosts += fmt.Sprintf("%s master%s\n", n.Address((number+i)%n.nodes+1), domain)
	}
	for other := range hostNumbers {
		hosts += fmt.Sprintf("%s %s%s\n", n.host(other), other, domain)
	}
	dir := n.etc(name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	files := map[string]string{
		"hosts":         hosts,
		"host.conf":     "multi on\n",
		"nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\nservices: files\n",
		"services":      "imap 143/tcp imap2\nlmtp 2003/tcp\ncsync 2005/tcp\nmupdate 3905/tcp\n",
	}
	for file, text := range files {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// close removes all of it, whatever of it was made.
func (n network) close() {
	n.Close()
	for name := range hostNumbers {
		_ = os.RemoveAll(n.etc(name))
	}
}
