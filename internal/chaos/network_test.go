//go:build peers

package chaos

import (
	"fmt"
	"os/exec"
	"strings"

	"github.com/rookery-mail/rookery/internal/netlab"
)

// prefix begins the name of everything that is made on the machine.
const prefix = "rk-chaos-"

// network has a namespace for each node, in which rules of iptables say what passes.
type network struct{ *netlab.Network }

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

func newNetwork() (network, error) {
	n, err := netlab.New(prefix, []int{clientsAt, relaysAt}, "iptables-restore", "mount", "umount")
	return network{n}, err
}

// apply puts rules in force in a host's namespace, all of them at once.
func (n network) apply(host int, rules ...rule) error { return n.change(host, "-A", rules) }

// lift ends rules that are in force.
func (n network) lift(host int, rules ...rule) error { return n.change(host, "-D", rules) }

func (n network) change(host int, how string, rules []rule) error {
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
	cmd := exec.Command("ip", "netns", "exec", n.Space(host), "iptables-restore", "--wait", "--noflush")
	cmd.Stdin = strings.NewReader(text)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("iptables-restore in %s: %w: %s\n%s", n.Space(host), err, strings.TrimSpace(string(out)), text)
	}
	return nil
}

// drop is a rule that lets nothing in from another address.
func (n network) drop(from int) rule {
	return rule{"filter", fmt.Sprintf("INPUT -s %s -j DROP", n.Address(from))}
}
