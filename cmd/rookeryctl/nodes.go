package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/rookery-mail/rookery/client"
)

// roleWord is what a node is in the cluster; empty if the cluster does not name it.
func roleWord(n client.Node) string {
	switch {
	case n.Leader:
		return "leader"
	case n.Voter:
		return "voter"
	case n.Learner:
		return "learner"
	case n.ID != 0:
		return "waits"
	}
	return ""
}

// nodeID is an id as people write it.
func nodeID(id uint64) string {
	if id == 0 {
		return ""
	}
	return strconv.FormatUint(id, 16)
}

// nodeIDFlag reads an id as nodeID writes it.
func nodeIDFlag(flag, s string) (uint64, error) {
	if s == "" {
		return 0, nil
	}
	id, err := strconv.ParseUint(strings.TrimPrefix(s, "0x"), 16, 64)
	if err != nil || id == 0 {
		return 0, usagef("--%s %s: it is an id as `rookeryctl member list` prints it, such as 1f2e3d", flag, s)
	}
	return id, nil
}

// size is a number of octets as people read it.
func size(n uint64) string {
	const units = "KMGTPE"
	if n < 1<<10 {
		return fmt.Sprintf("%d B", n)
	}
	f, i := float64(n)/(1<<10), 0
	for ; f >= 1023.95 && i < len(units)-1; i++ {
		f /= 1 << 10
	}
	return fmt.Sprintf("%.1f %ciB", f, units[i])
}

// sizeCell is a size in a table; 0 is what was not heard.
func sizeCell(n uint64) string {
	if n == 0 {
		return ""
	}
	return size(n)
}

// nodeNotes is what is unusual about a node.
func nodeNotes(n client.Node) string {
	var notes []string
	if n.Quarantined {
		notes = append(notes, "quarantined: its state differs")
	}
	if n.Compacting {
		notes = append(notes, "compacting")
	}
	if !n.Verified && n.Version != "" && n.Heard != client.AgeUnknown {
		notes = append(notes, "still reading its state file")
	}
	return strings.Join(notes, "; ")
}

// tellNodes prints the members, and who waits to become one.
func (a *app) tellNodes(nodes ...[]client.Node) error {
	t := a.table("NODE", ">ID", "ROLE", "CLIENTS", "PEERS", "SITE", ">APPLIED", ">TRAILS BY", ">HEARD", "VERSION", "SUPPORTS", "NOTE")
	for _, list := range nodes {
		for _, n := range list {
			var applied, trails any = "", ""
			if n.Applied > 0 {
				applied = n.Applied
			}
			if n.Trails != client.TrailsUnknown {
				trails = n.Trails
			}
			t.row(n.Name, nodeID(n.ID), roleWord(n), n.ClientAddress, n.PeerAddress, n.Site, applied, trails, heard(n), n.Version, supports(n), nodeNotes(n))
		}
	}
	return t.end("no node is known")
}

// supports is which cluster versions a node's release does; empty if that was not heard.
func supports(n client.Node) string {
	switch {
	case n.NewestVersion == 0:
		return ""
	case n.OldestVersion == n.NewestVersion:
		return strconv.FormatUint(uint64(n.NewestVersion), 10)
	}
	return fmt.Sprintf("%d-%d", n.OldestVersion, n.NewestVersion)
}

// heard says how long ago a node spoke.
func heard(n client.Node) string {
	switch {
	case n.Heard == client.AgeUnknown:
		return "never"
	case n.Heard < time.Second:
		return "now"
	}
	return age(n.Heard) + " ago"
}

// memberJSON is a node as the cluster knows it.
type memberJSON struct {
	Name          string `json:"name"`
	ID            uint64 `json:"id"`
	IDHex         string `json:"id_hex"`
	ClientAddress string `json:"client_address"`
	PeerAddress   string `json:"peer_address"`
	Site          string `json:"site"`
	Voter         bool   `json:"voter"`
	Learner       bool   `json:"learner"`
	Leader        bool   `json:"leader"`
	HeardMS       int64  `json:"heard_ms"`
	Version       string `json:"version"`
	OldestVersion uint32 `json:"oldest_cluster_version"`
	NewestVersion uint32 `json:"newest_cluster_version"`
	Applied       uint64 `json:"applied"`
	Match         uint64 `json:"match"`
	Trails        int64  `json:"trails"`
	Active        bool   `json:"active"`
	FileBytes     uint64 `json:"file_bytes"`
	UsedBytes     uint64 `json:"used_bytes"`
	FreeBytes     uint64 `json:"free_bytes"`
	Verified      bool   `json:"verified"`
	Compacting    bool   `json:"compacting"`
	Quarantined   bool   `json:"quarantined"`
}

func memberOf(n client.Node) memberJSON {
	return memberJSON{
		Name: n.Name, ID: n.ID, IDHex: nodeID(n.ID), ClientAddress: n.ClientAddress, PeerAddress: n.PeerAddress, Site: n.Site,
		Voter: n.Voter, Learner: n.Learner, Leader: n.Leader, HeardMS: millis(n.Heard), Version: n.Version,
		OldestVersion: n.OldestVersion, NewestVersion: n.NewestVersion, Applied: n.Applied,
		Match: n.Match, Trails: n.Trails, Active: n.Active, FileBytes: n.FileBytes, UsedBytes: n.UsedBytes, FreeBytes: n.FreeBytes,
		Verified: n.Verified, Compacting: n.Compacting, Quarantined: n.Quarantined,
	}
}

func membersOf(nodes []client.Node) []memberJSON {
	out := make([]memberJSON, len(nodes))
	for i, n := range nodes {
		out[i] = memberOf(n)
	}
	return out
}

// nodeNames completes the name of a node: of a member, or with waiting of one that
// waits to join.
func (a *app) nodeNames(waiting bool) cobra.CompletionFunc {
	return a.asked(func(ctx context.Context, c *client.Client) ([]string, error) {
		st, err := c.Status(ctx, client.Stale(0))
		nodes := st.Nodes
		if waiting {
			nodes = st.Waiting
		}
		seen := make(map[string]bool)
		var names []string
		for _, n := range nodes {
			if !seen[n.Name] {
				seen[n.Name] = true
				names = append(names, n.Name)
			}
		}
		return names, err
	})
}
