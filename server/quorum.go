package server

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"
)

// This file is the arithmetic of majorities, in sentences: what status says of
// the nodes, and why a change of the membership is refused.

const (
	// maxTrail is how many entries a node may trail the leader by and still be
	// given a vote, or the leadership: the rest comes in well under a second.
	maxTrail = 1000
	// quiet is how long a node that announces itself every second may be silent.
	quiet = 3 * time.Second
)

// need is how many of n voters make a majority.
func need(n int) int { return n/2 + 1 }

func voters(nodes []Node) []Node {
	return slices.DeleteFunc(slices.Clone(nodes), func(n Node) bool { return !n.Voter })
}

func without(nodes []Node, id uint64) []Node {
	return slices.DeleteFunc(slices.Clone(nodes), func(n Node) bool { return n.ID == id })
}

// split parts nodes into those that answer and those that do not.
func split(nodes []Node, answers func(*Node) bool) (up, down []Node) {
	for i := range nodes {
		if answers(&nodes[i]) {
			up = append(up, nodes[i])
		} else {
			down = append(down, nodes[i])
		}
	}
	return up, down
}

// checkQuorum refuses what would leave these voters, if too few of them answer.
// doing is what would, such as "removing n3"; gone is the voter that it takes away,
// nil if none.
func checkQuorum(doing string, left []Node, gone *Node, answers func(*Node) bool) error {
	if len(left) == 0 {
		return fmt.Errorf("%w: %s leaves no voter, and nothing could be read or written any more: add and promote another node first", errNoQuorum, doing)
	}
	up, down := split(left, answers)
	if len(up) >= need(len(left)) {
		return nil
	}
	instead := ""
	if gone != nil && answers(gone) && len(up)+1 >= need(len(left)) {
		instead = ", or remove " + namesOf(down, "or") + " instead"
	}
	return fmt.Errorf("%w: %s leaves %s, of which %d must answer; %s: start %s first%s",
		errNoQuorum, doing, counted(len(left), "voter"), need(len(left)), who(up), namesOf(down, "or"), instead)
}

// who says which nodes answer.
func who(up []Node) string {
	switch len(up) {
	case 0:
		return "none of them answers"
	case 1:
		return up[0].Name + " alone answers"
	}
	return namesOf(up, "and") + " answer"
}

// namesOf lists names in a sentence; where two are the same, with their ids.
func namesOf(nodes []Node, last string) string {
	words := make([]string, len(nodes))
	for i, n := range nodes {
		words[i] = n.Name
		for j, o := range nodes {
			if i != j && o.Name == n.Name {
				words[i] = called(&n)
			}
		}
	}
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	return strings.Join(words[:len(words)-1], ", ") + " " + last + " " + words[len(words)-1]
}

// called is a node's name with its id, where the name alone would not say enough.
func called(n *Node) string { return fmt.Sprintf("%s (id %x)", n.Name, n.ID) }

func counted(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// tolerance says what the loss of another voter would do; empty if these voters
// can lose one.
func tolerance(vote []Node, answers func(*Node) bool) string {
	up, _ := split(vote, answers)
	switch n := len(vote); {
	case n == 2 && len(up) == 2:
		return "2 voters, and both must answer: the loss of either stops writes; a third voter would end that"
	case n > 2 && len(up) == need(n):
		return fmt.Sprintf("%d of %d voters answer, and %d must: the loss of one more stops writes", len(up), n, need(n))
	}
	return ""
}

// siteMajority says which site holds so many voters that its loss stops writes;
// empty if none does, or where they stand was not told.
func siteMajority(nodes []Node) string {
	vote := voters(nodes)
	sites := make(map[string]int)
	for _, n := range nodes {
		if n.Site != "" && n.Voter {
			sites[n.Site]++
		} else if n.Site != "" {
			sites[n.Site] += 0
		}
	}
	most := ""
	for _, site := range slices.Sorted(maps.Keys(sites)) {
		if most == "" || sites[site] > sites[most] {
			most = site
		}
	}
	n := sites[most]
	// Of two voters either is needed, wherever they stand, which is told apart.
	if n == 0 || n == 1 && (len(sites) == 1 || len(vote) > 1) || len(vote)-n >= need(len(vote)) {
		return ""
	}
	return fmt.Sprintf("site %s holds %d of %s: its loss stops writes", most, n, counted(len(vote), "voter"))
}

// trails is how many entries n trails the leader by; false if nobody can say.
func (m *Members) trails(n *Node) (uint64, bool) {
	leader := m.leader()
	switch {
	case n.ID == m.Leader && m.Leader != 0:
		return 0, true
	case m.leading():
		return m.Commit - min(m.Commit, n.Match), true
	case leader == nil || n.Applied == 0 || leader.Applied == 0:
		return 0, false
	}
	return leader.Applied - min(leader.Applied, n.Applied), true
}

// lacks says in words why a learner cannot be said to have the log, and by how many
// entries it trails; empty if nothing tells against it. What its log holds is not
// enough: an empty node trails by little where little was written, and who has the
// log has not applied it yet. known is false where nobody can say.
func (m *Members) lacks(n *Node) (why string, trails uint64, known bool) {
	end := m.Commit
	if leader := m.leader(); !m.leading() {
		if leader == nil || leader.Applied == 0 {
			return "", 0, false
		}
		end = leader.Applied
	}
	behind := func(what string, has, of uint64) (string, uint64, bool) {
		trails := of - min(of, has)
		return fmt.Sprintf("trails the leader by %s (it has %s%d of %d)", entries(trails), what, has, of), trails, true
	}
	goal := end
	if n.Goal > 0 {
		goal = min(goal, n.Goal)
	}
	switch {
	case n.Heard < 0:
		return fmt.Sprintf("has not said yet how far it is (the leader is at %d)", end), 0, true
	case n.Heard > quiet:
		return fmt.Sprintf("has not said for %s how far it is (the leader is at %d)", n.Heard.Truncate(time.Second), end), 0, true
	case m.leading() && end-min(end, n.Match) > maxTrail:
		return behind("", n.Match, end)
	case n.Applied == 0 || goal-min(goal, n.Applied) > maxTrail:
		return behind("applied ", n.Applied, end)
	case m.leading() && n.State == "snapshot":
		return fmt.Sprintf("gets a snapshot (it has %d of %d)", n.Match, end), end - min(end, n.Match), true
	case m.leading() && n.State != "replicate":
		return fmt.Sprintf("is not sent the log yet (it has %d of %d)", n.Match, end), end - min(end, n.Match), true
	}
	return "", 0, true
}

// speaks tells whether n was heard of lately, by Raft or by what it announces.
func (m *Members) speaks(n *Node) bool {
	return n.ID == m.Self || n.Active || n.Heard >= 0 && n.Heard <= quiet
}

// problems says what is wrong with the nodes, the gravest first.
func (m *Members) problems() []string {
	var out []string
	say := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }

	vote := voters(m.Nodes)
	votes := func(n *Node) bool { return m.speaks(n) && !n.Quarantined }
	up, down := split(vote, votes)
	if len(down) > 0 && len(up) < need(len(vote)) {
		say("no majority: of %s %d must answer; %s", counted(len(vote), "voter"), need(len(vote)), who(up))
	}
	for _, n := range m.Nodes {
		if n.Quarantined {
			say("%s is quarantined: its state differs from the others', and it serves nothing", n.Name)
		}
	}
	for _, n := range m.Nodes {
		switch {
		case m.speaks(&n):
		case n.Heard < 0:
			say("%s was never heard since this node was started", m.titled(&n))
		default:
			say("%s was last heard %s ago", m.titled(&n), n.Heard.Truncate(time.Second))
		}
	}
	if at := tolerance(vote, votes); at != "" {
		say("%s", at)
	}
	if at := siteMajority(m.Nodes); at != "" {
		say("%s", at)
	}
	for _, n := range m.Nodes {
		if n.Voter || !m.speaks(&n) {
			continue
		}
		verb := "promote"
		if slices.ContainsFunc(m.Nodes, func(o Node) bool { return o.Name == n.Name && o.ID != n.ID }) {
			verb = "replace"
		}
		switch lacks, _, known := m.lacks(&n); {
		case m.leading() && !n.Active:
			say("%s is a learner and does not answer the leader", n.Name)
		case lacks != "":
			say("%s is a learner and %s", n.Name, lacks)
		case known:
			say("%s is a learner and has the log: `rookeryctl member %s %s` gives it its vote", n.Name, verb, n.Name)
		default:
			say("%s is a learner", n.Name)
		}
	}
	for _, n := range m.stillWaiting() {
		verb := "add"
		if slices.ContainsFunc(m.Nodes, func(o Node) bool { return o.Name == n.Name }) {
			verb = "replace"
		}
		say("%s waits to join: `rookeryctl member %s %s`", n.Name, verb, n.Name)
	}
	if versions := m.versions(); len(versions) > 1 {
		say("releases differ: %s", strings.Join(versions, ", "))
	}
	return out
}

// titled is a member's name, and what it is if it has no vote.
func (m *Members) titled(n *Node) string {
	name := n.Name
	for i := range m.Nodes {
		if o := &m.Nodes[i]; o.Name == n.Name && o.ID != n.ID {
			name = called(n)
		}
	}
	if !n.Voter {
		name += ", a learner,"
	}
	return name
}

// versions lists the releases that the members run, each with who runs it.
func (m *Members) versions() []string {
	nodes := make(map[string][]string)
	for _, n := range m.Nodes {
		if n.Version != "" {
			nodes[n.Version] = append(nodes[n.Version], n.Name)
		}
	}
	var out []string
	for version, names := range nodes {
		out = append(out, strings.Join(names, " and ")+" "+version)
	}
	slices.SortFunc(out, cmp.Compare[string])
	return out
}

func entries(n uint64) string {
	if n == 1 {
		return "1 entry"
	}
	if n > math.MaxInt64 {
		return "very many entries"
	}
	return fmt.Sprintf("%d entries", n)
}
