//go:build peers

package netlab

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strings"
)

// Network is a bridge and the hosts at it. A host is a number from 1 to 254, the last
// octet of its address.
type Network struct {
	id     string // of this network among others
	prefix string
	subnet string // "10.77.3."
	hosts  []int  // those with a namespace
}

// New makes a bridge with this process at it, as some hosts. The names of namespaces
// begin with prefix.
//
// Errors: one that names what is missing: root, the ip command or one of tools.
func New(prefix string, here []int, tools ...string) (*Network, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("netlab: network namespaces need root; this is another user")
	}
	for _, tool := range append([]string{"ip"}, tools...) {
		if _, err := exec.LookPath(tool); err != nil {
			return nil, fmt.Errorf("netlab: %s is needed and is not there: %w", tool, err)
		}
	}
	for range 20 {
		// By chance and not from a test's seed: two runs of one seed may go at once.
		n := &Network{
			id:     fmt.Sprintf("%05x", rand.Uint32()&0xfffff),
			prefix: prefix,
			subnet: fmt.Sprintf("10.%d.%d.", 64+rand.IntN(128), rand.IntN(256)),
		}
		if taken(n.subnet) {
			continue
		}
		lines := []string{"ip link add " + n.bridge() + " type bridge"}
		for _, host := range here {
			lines = append(lines, fmt.Sprintf("ip addr add %s/24 dev %s", n.Address(host), n.bridge()))
		}
		if err := Run(append(lines, "ip link set "+n.bridge()+" up")...); err != nil {
			n.Close()
			return nil, fmt.Errorf("netlab: make a bridge: %w", err)
		}
		return n, nil
	}
	return nil, errors.New("netlab: no address range is free")
}

// taken reports whether this machine is in a subnet already.
func taken(subnet string) bool {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return true
	}
	for _, a := range addrs {
		if strings.HasPrefix(a.String(), subnet) {
			return true
		}
	}
	return false
}

// Names of interfaces have 15 octets at most.
func (n *Network) bridge() string { return "rk" + n.id }

func (n *Network) wire(host int) string { return fmt.Sprintf("rk%s-%d", n.id, host) }

// Address is a host's.
func (n *Network) Address(host int) string { return fmt.Sprint(n.subnet, host) }

// Loopback is another address of a host's, which this machine alone can reach. Whatever
// port of it is listened on, nobody is given it to call from: that would be one of
// 127.0.0.1.
func (n *Network) Loopback(host int) string { return "127" + strings.TrimPrefix(n.Address(host), "10") }

// Space is the name of a host's namespace, for ip netns exec.
func (n *Network) Space(host int) string { return fmt.Sprintf("%s%s-%d", n.prefix, n.id, host) }

// Add makes a namespace for a host and wires it.
func (n *Network) Add(host int) error {
	space, inside := n.Space(host), fmt.Sprintf("rk%s+%d", n.id, host)
	n.hosts = append(n.hosts, host)
	return Run(
		"ip netns add "+space,
		fmt.Sprintf("ip link add %s type veth peer name %s", n.wire(host), inside),
		fmt.Sprintf("ip link set %s netns %s", inside, space),
		fmt.Sprintf("ip link set %s master %s up", n.wire(host), n.bridge()),
		fmt.Sprintf("ip -n %s link set lo up", space),
		fmt.Sprintf("ip -n %s link set %s name eth0", space, inside),
		fmt.Sprintf("ip -n %s addr add %s/24 dev eth0", space, n.Address(host)),
		fmt.Sprintf("ip -n %s link set eth0 up", space),
	)
}

// Close removes all of it, whatever of it was made.
func (n *Network) Close() {
	for _, host := range n.hosts {
		_ = Run("ip netns del " + n.Space(host)) // its end of the wire goes with it, and so the other
		_ = Run("ip link del " + n.wire(host))   // where it was not wired yet
	}
	_ = Run("ip link del " + n.bridge())
}
