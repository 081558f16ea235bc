//go:build peers

package interop

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// prefix begins the name of everything that is made on the machine.
const prefix = "rk-iop-"

// domain ends the names of the lab's hosts.
const domain = ".test"

// network is a bridge with this process at it, and a namespace for each Cyrus server.
// The nodes' addresses are at the bridge: behind them are the relays of wire_test.go.
type network struct {
	bridge string
	subnet string // "10.140.3."
	spaces []string
}

// The last octets of addresses. Nodes are their own number.
var hostNumbers = map[string]int{"be1": 11, "be2": 12, "rep": 13, "fe": 14, "be3": 15}

// newNetwork makes the bridge, for some nodes. What is missing for it is named by the error.
func newNetwork(nodes int) (*network, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("interop: network namespaces need root; this is another user")
	}
	for _, tool := range []string{"ip", "mount", "umount", "unshare", "saslpasswd2", "cyrmaster"} {
		if _, err := exec.LookPath(tool); err != nil {
			return nil, fmt.Errorf("interop: %s is needed and is not there: %w", tool, err)
		}
	}
	for range 20 {
		n := &network{
			bridge: fmt.Sprintf("%s%05x", prefix, rand.Uint32()&0xfffff),
			subnet: fmt.Sprintf("10.%d.%d.", 130+rand.IntN(60), rand.IntN(256)),
		}
		if taken(n.subnet) {
			continue
		}
		lines := []string{"ip link add " + n.bridge + " type bridge", fmt.Sprintf("ip addr add %s254/24 dev %s", n.subnet, n.bridge)}
		for node := 1; node <= nodes; node++ {
			lines = append(lines, fmt.Sprintf("ip addr add %s/24 dev %s", n.address(node), n.bridge))
		}
		if err := commands(append(lines, "ip link set "+n.bridge+" up")...); err != nil {
			n.close()
			return nil, fmt.Errorf("interop: make a bridge: %w", err)
		}
		return n, nil
	}
	return nil, errors.New("interop: no address range is free")
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

func (n *network) address(number int) string { return fmt.Sprint(n.subnet, number) }

func (n *network) host(name string) string { return n.address(hostNumbers[name]) }

// name is the host that has an address.
func (n *network) name(address string) string {
	for name := range hostNumbers {
		if n.host(name) == address {
			return name
		}
	}
	return address
}

func (n *network) space(name string) string { return n.bridge + "-" + name }

// add makes a host's namespace and wires it. In it, names are what this hosts file says:
// the master has the addresses of all nodes, beginning with another one on each host.
func (n *network) add(name string, nodes int) error {
	space, number := n.space(name), hostNumbers[name]
	n.spaces = append(n.spaces, space)
	veth, inside := fmt.Sprintf("%s-%d", n.bridge, number), fmt.Sprintf("%s+%d", n.bridge, number)
	err := commands(
		"ip netns add "+space,
		fmt.Sprintf("ip link add %s type veth peer name %s", veth, inside),
		fmt.Sprintf("ip link set %s netns %s", inside, space),
		fmt.Sprintf("ip link set %s master %s up", veth, n.bridge),
		fmt.Sprintf("ip -n %s link set lo up", space),
		fmt.Sprintf("ip -n %s link set %s name eth0", space, inside),
		fmt.Sprintf("ip -n %s addr add %s/24 dev eth0", space, n.address(number)),
		fmt.Sprintf("ip -n %s link set eth0 up", space),
	)
	if err != nil {
		return err
	}
	hosts := "127.0.0.1 localhost\n"
	for i := range nodes {
		hosts += fmt.Sprintf("%s master%s\n", n.address((number+i)%nodes+1), domain)
	}
	for other := range hostNumbers {
		hosts += fmt.Sprintf("%s %s%s\n", n.host(other), other, domain)
	}
	dir := filepath.Join("/etc/netns", space) // what `ip netns exec` puts in the place of /etc
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
func (n *network) close() {
	for _, space := range n.spaces {
		_ = commands("ip netns del " + space) // its end of the wire goes with it, and so the other
		_ = os.RemoveAll(filepath.Join("/etc/netns", space))
	}
	_ = commands("ip link del " + n.bridge)
}

// commands runs commands until one fails.
func commands(lines ...string) error {
	for _, line := range lines {
		words := strings.Fields(line)
		if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", line, err, strings.TrimSpace(string(out)))
		}
	}
	return nil
}
