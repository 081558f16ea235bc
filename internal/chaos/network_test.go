//go:build peers

package chaos

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strings"
)

// prefix begins the name of everything that is made on the machine.
const prefix = "rk-chaos-"

// network is a bridge with this process at it, and a namespace for each node.
type network struct {
	id     string // of this network among others
	bridge string
	subnet string // "10.77.3."

	hosts map[int]bool
}

// rule is one of iptables in one namespace, without the word that adds it.
type rule struct {
	table string
	args  string
}

// The last octets of addresses: nodes are their own number.
const (
	clientsAt = 254 // this process, as clients
	relaysAt  = 253 // the same, as relays
)

// newNetwork makes the bridge. What is missing for it is named by the error.
func newNetwork(rng *rand.Rand) (*network, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("chaos: network namespaces need root; this is another user")
	}
	for _, tool := range []string{"ip", "iptables-restore", "mount", "umount"} {
		if _, err := exec.LookPath(tool); err != nil {
			return nil, fmt.Errorf("chaos: %s is needed and is not there: %w", tool, err)
		}
	}
	for range 20 {
		n := &network{
			id:     fmt.Sprintf("%05x", rand.Uint32()&0xfffff),
			subnet: fmt.Sprintf("10.%d.%d.", 64+rand.IntN(60), rand.IntN(256)),
			hosts:  map[int]bool{},
		}
		n.bridge = prefix + n.id
		if taken(n.subnet) {
			continue
		}
		err := script(
			"ip link add "+n.bridge+" type bridge",
			fmt.Sprintf("ip addr add %s/24 dev %s", n.address(clientsAt), n.bridge),
			fmt.Sprintf("ip addr add %s/24 dev %s", n.address(relaysAt), n.bridge),
			"ip link set "+n.bridge+" up",
		)
		if err != nil {
			n.close()
			return nil, fmt.Errorf("chaos: make a bridge: %w", err)
		}
		return n, nil
	}
	return nil, errors.New("chaos: no address range is free")
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

func (n *network) address(host int) string { return fmt.Sprint(n.subnet, host) }

func (n *network) namespace(host int) string { return fmt.Sprintf("%s-%d", n.bridge, host) }

// add makes a namespace for a host and wires it.
func (n *network) add(host int) error {
	ns := n.namespace(host)
	veth, inside := fmt.Sprintf("rkc%s-%d", n.id, host), fmt.Sprintf("rkc%s+%d", n.id, host)
	n.hosts[host] = true
	return script(
		"ip netns add "+ns,
		fmt.Sprintf("ip link add %s type veth peer name %s", veth, inside),
		fmt.Sprintf("ip link set %s netns %s", inside, ns),
		fmt.Sprintf("ip link set %s master %s", veth, n.bridge),
		"ip link set "+veth+" up",
		fmt.Sprintf("ip -n %s link set lo up", ns),
		fmt.Sprintf("ip -n %s link set %s name eth0", ns, inside),
		fmt.Sprintf("ip -n %s addr add %s/24 dev eth0", ns, n.address(host)),
		fmt.Sprintf("ip -n %s link set eth0 up", ns),
	)
}

// apply puts rules in force in a host's namespace, all of them at once.
func (n *network) apply(host int, rules ...rule) error { return n.change(host, "-A", rules) }

// lift ends rules that are in force.
func (n *network) lift(host int, rules ...rule) error { return n.change(host, "-D", rules) }

func (n *network) change(host int, how string, rules []rule) error {
	if len(rules) == 0 {
		return nil
	}
	tables := map[string]string{}
	for _, r := range rules {
		tables[r.table] += how + " " + r.args + "\n"
	}
	text := ""
	for table, lines := range tables {
		text += "*" + table + "\n" + lines + "COMMIT\n"
	}
	cmd := exec.Command("ip", "netns", "exec", n.namespace(host), "iptables-restore", "--wait", "--noflush")
	cmd.Stdin = strings.NewReader(text)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("iptables-restore in %s: %w: %s\n%s", n.namespace(host), err, strings.TrimSpace(string(out)), text)
	}
	return nil
}

// drop is a rule that lets nothing in from another address.
func (n *network) drop(from int) rule {
	return rule{"filter", fmt.Sprintf("INPUT -s %s -j DROP", n.address(from))}
}

// close removes all of it, whatever of it was made.
func (n *network) close() {
	for host := range n.hosts {
		_ = script("ip netns del " + n.namespace(host)) // its end of the wire goes with it, and so the other
		_ = script(fmt.Sprintf("ip link del rkc%s-%d", n.id, host))
	}
	_ = script("ip link del " + n.bridge)
}

// script runs commands until one fails.
func script(lines ...string) error {
	for _, line := range lines {
		words := strings.Fields(line)
		if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", line, err, strings.TrimSpace(string(out)))
		}
	}
	return nil
}
