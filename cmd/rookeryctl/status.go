package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/internal/obs"
)

func (a *app) statusCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "say how the cluster is",
		Long: `Says how the cluster is. Line one says healthy, or what is wrong; then the exit code is 1.
It is answered without a majority too. With several --endpoints each node is asked.

Of each node: role, site, how far it has applied the log and by how many entries it trails
the leader, its state file and how much of that is in use, the free disk, when the node that
answers last heard it. Nodes that wait to join stand last.`,
		Example: `  rookeryctl status
  rookeryctl --endpoints 10.0.0.1:7905,10.0.0.2:7905,10.0.0.3:7905 status
  rookeryctl status -o json | jq .problems`,
		Args:              exactly(),
		ValidArgsFunction: none,
	}
	cmd.RunE = a.do(func(ctx context.Context, _ []string) error {
		s, err := a.survey(ctx)
		if err != nil {
			return err
		}
		if a.format == formatJSON {
			err = a.document(statusOf(s))
		} else {
			err = a.tellStatus(s)
		}
		if err == nil && len(s.problems) > 0 {
			return degraded()
		}
		return err
	})
	return cmd
}

// survey is the cluster as one node and all those named see it.
type survey struct {
	client.Status
	majority bool     // the answer was confirmed by one
	nodes    []member // what is known of each
	problems []string
}

// member is one node: what the cluster says of it, and what it says itself.
type member struct {
	client.Node
	endpoint string
	self     *client.Status // nil: it was not asked
	err      error          // why it did not answer, in words
	refused  bool           // they are its own
}

// survey asks, in all no longer than the timeout. A cluster without a majority
// still answers: each node is asked what it has itself while the answer is awaited
// that a majority confirms, and that is not awaited for long if no node knows of a
// leader.
func (a *app) survey(ctx context.Context) (*survey, error) {
	c, err := a.connect()
	if err != nil {
		return nil, err
	}
	endpoints, err := a.nodes()
	if err != nil {
		return nil, err
	}
	whole := ctx
	if a.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, a.timeout)
		defer cancel()
	}
	confirming, hurry := context.WithCancel(ctx)
	defer hurry()
	how := client.Linearizable()
	if a.stale {
		how = client.Stale(0)
	}
	confirmed := make(chan error, 1)
	s := &survey{majority: !a.stale}
	go func() {
		var err error
		s.Status, err = c.Status(confirming, how)
		confirmed <- err
	}()
	own := a.askAll(ctx, endpoints)
	best, spoke, led := newest(own)
	if spoke && !led {
		defer time.AfterFunc(patience, hurry).Stop()
	}
	if err := <-confirmed; err != nil {
		if best == nil || !errors.Is(err, client.ErrUnavailable) || interrupted(whole) {
			return nil, err
		}
		s.majority, s.Status = false, *best
	}
	s.nodes = merge(s.Status, own)
	s.problems = s.findProblems(a.stale)
	return s, nil
}

// askAll asks all nodes at once what they know themselves.
func (a *app) askAll(ctx context.Context, endpoints []string) []member {
	answers := make([]member, len(endpoints))
	var wg sync.WaitGroup
	for i, endpoint := range endpoints {
		wg.Go(func() { answers[i] = a.askOne(ctx, endpoint) })
	}
	wg.Wait()
	return answers
}

// newest returns the answer of the node that has applied most, nil if none answered;
// and whether any node spoke, and any knows of a leader.
func newest(answers []member) (best *client.Status, spoke, led bool) {
	for _, m := range answers {
		spoke = spoke || m.self != nil || m.refused
		if m.self == nil {
			continue
		}
		led = led || m.self.Leader != ""
		if best == nil || m.self.AppliedIndex > best.AppliedIndex {
			best = m.self
		}
	}
	return best, spoke, led
}

// merge puts together what the cluster says of its nodes and what they said
// themselves. Where one only was asked, its first answer has said it all.
func merge(known client.Status, answers []member) []member {
	nodes := make([]member, len(known.Nodes))
	for i, n := range known.Nodes {
		nodes[i].Node = n
		if answeredBy(&known, n) {
			nodes[i].self = &known
		}
	}
	if len(answers) == 1 {
		return nodes
	}
	for _, m := range answers {
		at := -1
		for i, n := range nodes {
			if m.self != nil && answeredBy(m.self, n.Node) || m.self == nil && n.ClientAddress == m.endpoint {
				at = i
			}
		}
		if at < 0 {
			if m.self != nil {
				m.Name = m.self.Node
			}
			nodes = append(nodes, m)
			continue
		}
		nodes[at].endpoint, nodes[at].self, nodes[at].err = m.endpoint, m.self, m.err
	}
	return nodes
}

// answeredBy tells whether n gave that answer. During a replacement two members
// have one name; an older release tells no more than that.
func answeredBy(st *client.Status, n client.Node) bool {
	if st.NodeID != 0 {
		return st.NodeID == n.ID
	}
	return st.Node == n.Name
}

// askPatience is how long one node is waited for: a node that has an answer has it at
// once.
const askPatience = 2 * time.Second

// askOne asks one node once what it knows itself.
func (a *app) askOne(ctx context.Context, endpoint string) member {
	ctx, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	reached := newReach(func(error) {})
	m := member{endpoint: endpoint, Node: client.Node{Heard: client.AgeUnknown, Trails: client.TrailsUnknown}}
	var failed error
	c, err := a.dial([]string{endpoint}, func(at client.Attempt) {
		if failed == nil && at.Err != nil {
			failed = at.Err
			reached.observe(at)
			cancel() // that is what it says now
		}
	})
	if err != nil {
		m.err = err
		return m
	}
	defer c.Close()
	s, err := c.Status(ctx, client.Stale(0))
	if err == nil {
		m.self = &s
		return m
	}
	if failed != nil {
		err = failed
	}
	m.refused = client.Answered(err) != nil
	m.err = errors.New(reached.why(err))
	return m
}

// findProblems says what is wrong, the worst first.
func (s *survey) findProblems(stale bool) []string {
	var out []string
	say := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	if s.Recovering {
		// The word by which a restored cluster is known until all is well.
		say("RECOVERING %d/%d backends confirmed", s.BackendsConfirmed, s.BackendsCounted)
	}
	rest := make([]string, 0, len(s.NodeProblems))
	for _, p := range s.NodeProblems {
		switch {
		case strings.HasPrefix(p, "no majority: "):
			say("%s", p)
		case !s.toldAlready(p):
			rest = append(rest, p)
		}
	}
	if !s.majority && !stale || s.Leader == "" {
		say("no leader: writes wait, and reads but for --stale")
	}
	for _, n := range s.nodes {
		if n.err != nil {
			name := n.endpoint
			if n.Name != "" {
				name = n.Name + " (" + n.endpoint + ")"
			}
			say("%s does not answer: %v", name, n.err)
		}
		if n.self != nil && n.self.ClusterID != s.ClusterID {
			say("%s belongs to another cluster, %s", n.endpoint, n.self.ClusterID)
		}
	}
	for _, n := range s.nodes {
		if n.self != nil && n.self.Health != nil && n.self.Health.ReadOnly != "" {
			say("%s is read-only and shows an old state: %s", n.self.Node, n.self.Health.ReadOnly)
		}
	}
	out = append(out, rest...)
	if s.ReadOnly {
		say("read-only: nothing may grow")
	} else if s.GrowthRefused != "" {
		say("growth is refused")
	}
	for _, x := range s.Alarms {
		say("alarm %s of %s", x.Kind, x.Node)
	}
	if !s.Complete && !s.Recovering && s.BackendsCounted > 0 {
		say("incomplete: %d of %d backends confirmed", s.BackendsConfirmed, s.BackendsCounted)
	}
	out = append(out, s.Problems...)
	if n := s.Counts.Forked; n > 0 {
		say("%s", plural(n, "fork"))
	}
	if n := s.Counts.Held; n > 0 {
		say("%s held by the withdrawal guard", plural(n, "fact"))
	}
	if len(s.NotAdmitted) > 0 {
		say("not admitted: %s", join(s.NotAdmitted))
	}
	return out
}

// toldAlready reports whether a problem says that a node was not heard which has just
// not answered either: that is told.
func (s *survey) toldAlready(problem string) bool {
	name, _, found := strings.Cut(problem, " ")
	if !found || !strings.Contains(problem, " was last heard ") && !strings.Contains(problem, " was never heard ") {
		return false
	}
	named, dead := 0, 0
	for _, n := range s.nodes {
		if n.Name == name {
			named++
			if n.err != nil {
				dead++
			}
		}
	}
	return dead > 0 && dead == named
}

// headline is line one.
func (s *survey) headline() string {
	switch {
	case len(s.problems) == 0:
		return "healthy"
	case strings.HasPrefix(s.problems[0], "RECOVERING "):
		return strings.Join(s.problems, "; ")
	}
	return "degraded: " + strings.Join(s.problems, "; ")
}

func (a *app) tellStatus(s *survey) error {
	a.printf("%s\n", plain(s.headline()))
	if len(s.Missing) > 0 {
		a.printf("missing: %s\n", join(s.Missing))
	}
	for _, w := range s.Warnings {
		a.printf("warning: %s\n", plain(w))
	}
	a.printf("\ncluster %s, incarnation %d, revision %d, last command %s\n", s.ClusterID, s.Incarnation, s.Revision, orDash(stamp(s.Wall)))
	a.printf("answered by %s, release %s, age %s; leader %s; format %d, cluster version %d\n", s.Node, s.Version, age(s.Age), orDash(s.Leader), s.FormatVersion, s.ClusterVersion)
	a.printf("backends: %d of %d confirmed; admission is %s\n", s.BackendsConfirmed, s.BackendsCounted, map[bool]string{true: "open", false: "closed"}[s.AdmissionOpen])
	if s.Health != nil {
		a.printf("%s: %s\n", s.Node, healthLine(s.Health))
	}
	k := s.Counts
	a.printf("%s (%d listed, %s), %s, %s, %s, %s held, %s, %s\n\n",
		mailboxCount(k.Mailboxes), k.Listed, plural(k.Inboxes, "user"), plural(k.Forked, "fork"), plural(k.Deactivated, "move"),
		plural(k.Reservations, "reservation"), plural(k.Held, "fact"), plural(k.Subscriptions, "subscription"), plural(k.Postings, "posting"))

	t := a.table("NODE", ">ID", "ROLE", "CLIENTS", "PEERS", "SITE", ">TERM", ">APPLIED", ">TRAILS BY", ">FILE", ">IN USE", ">FREE DISK", ">HEARD", "VERSION", "SUPPORTS", "NOTE")
	for _, n := range s.nodes {
		var term, applied, trails any = "", "", ""
		version, spoke, note := n.Version, "", nodeNotes(n.Node)
		if n.ID != 0 {
			spoke = heard(n.Node)
		}
		if n.Applied > 0 {
			applied = n.Applied
		}
		if n.Trails != client.TrailsUnknown && n.ID != 0 {
			trails = n.Trails
		}
		if n.self != nil {
			term, applied, version = n.self.Term, n.self.AppliedIndex, n.self.Version
			if n.Trails == client.TrailsUnknown {
				trails = max(s.CommitIndex, n.self.CommitIndex) - min(n.self.AppliedIndex, max(s.CommitIndex, n.self.CommitIndex))
			}
		}
		if n.err != nil {
			note = strings.TrimPrefix(note+"; "+n.err.Error(), "; ")
		}
		address := n.ClientAddress
		if n.endpoint != "" {
			address = n.endpoint
		}
		t.row(n.Name, nodeID(n.ID), roleWord(n.Node), address, n.PeerAddress, n.Site, term, applied, trails,
			sizeCell(n.FileBytes), sizeCell(n.UsedBytes), sizeCell(n.FreeBytes), spoke, version, supports(n.Node), note)
	}
	for _, n := range s.Waiting {
		t.row(n.Name, nodeID(n.ID), roleWord(n), n.ClientAddress, n.PeerAddress, n.Site, "", "", "", "", "", "", heard(n), n.Version, supports(n), "")
	}
	if err := t.end("no node is known"); err != nil {
		return err
	}
	if len(s.Sweeps) > 0 {
		a.printf("\nGoing on by itself:\n")
		t := a.table("WORK", "BACKEND", "AFTER")
		t.indent = "  "
		for _, w := range s.Sweeps {
			t.row(w.Kind, w.Server, w.After)
		}
		return t.end("")
	}
	return nil
}

type statusJSON struct {
	Healthy         bool                    `json:"healthy"`
	Problems        []string                `json:"problems"`
	Warnings        []string                `json:"warnings"`
	ClusterID       string                  `json:"cluster_id"`
	Leader          string                  `json:"leader"`
	Version         string                  `json:"version"`
	FormatVersion   uint32                  `json:"format_version"`
	ClusterVersion  uint32                  `json:"cluster_version"`
	DirectoryTimeMS int64                   `json:"directory_time_ms"`
	LastCommand     string                  `json:"last_command"`
	Complete        bool                    `json:"complete"`
	Confirmed       int                     `json:"confirmed"`
	Counted         int                     `json:"counted"`
	Missing         []directory.BackendName `json:"missing"`
	NotAdmitted     []directory.BackendName `json:"not_admitted"`
	AdmissionOpen   bool                    `json:"admission_open"`
	ReadOnly        bool                    `json:"read_only"`
	Recovering      bool                    `json:"recovering"`
	Paused          bool                    `json:"automation_paused"`
	Counts          countsJSON              `json:"counts"`
	Sweeps          []sweepJSON             `json:"sweeps"`
	Nodes           []nodeJSON              `json:"nodes"`
	Alarms          []alarmJSON             `json:"alarms"`
	GrowthRefused   string                  `json:"growth_refused"`
	Health          *healthJSON             `json:"health"`
	Waiting         []memberJSON            `json:"waiting"`
	answerJSON
}

type countsJSON struct {
	Mailboxes     uint64 `json:"mailboxes"`
	Listed        uint64 `json:"listed"`
	Inboxes       uint64 `json:"inboxes"`
	Forked        uint64 `json:"forked"`
	Reservations  uint64 `json:"reservations"`
	Held          uint64 `json:"held"`
	Subscriptions uint64 `json:"subscriptions"`
	Postings      uint64 `json:"postings"`
	Deactivated   uint64 `json:"deactivated"`
}

type sweepJSON struct {
	Kind   string                `json:"kind"`
	Server directory.BackendName `json:"server"`
	After  directory.MailboxName `json:"after"`
}

type nodeJSON struct {
	memberJSON
	Asked        bool   `json:"asked"`
	Error        string `json:"error,omitempty"`
	Term         uint64 `json:"term,omitempty"`
	AppliedIndex uint64 `json:"applied_index,omitempty"`
	CommitIndex  uint64 `json:"commit_index,omitempty"`
}

func statusOf(s *survey) statusJSON {
	out := statusJSON{
		Healthy: len(s.problems) == 0, Problems: list(s.problems), Warnings: list(s.Warnings), ClusterID: s.ClusterID, Leader: s.Leader,
		Version: s.Version, FormatVersion: s.FormatVersion, ClusterVersion: s.ClusterVersion, DirectoryTimeMS: millis(s.DirectoryTime),
		LastCommand: stamp(s.Wall), Complete: s.Complete, Confirmed: s.BackendsConfirmed, Counted: s.BackendsCounted, Missing: list(s.Missing),
		NotAdmitted: list(s.NotAdmitted), AdmissionOpen: s.AdmissionOpen, ReadOnly: s.ReadOnly, Recovering: s.Recovering, Paused: s.AutomationPaused, Counts: countsJSON(s.Counts),
		Sweeps: []sweepJSON{}, Nodes: []nodeJSON{}, Waiting: membersOf(s.Waiting), Alarms: alarmsJSON(s.Alarms), GrowthRefused: s.GrowthRefused, Health: healthOf(s.Health), answerJSON: answerOf(s.Answer),
	}
	for _, w := range s.Sweeps {
		out.Sweeps = append(out.Sweeps, sweepJSON(w))
	}
	for _, n := range s.nodes {
		j := nodeJSON{memberJSON: memberOf(n.Node), Asked: n.self != nil || n.err != nil}
		if n.err != nil {
			j.Error = n.err.Error()
		}
		if n.self != nil {
			j.Version, j.Term, j.AppliedIndex, j.CommitIndex = n.self.Version, n.self.Term, n.self.AppliedIndex, n.self.CommitIndex
		}
		out.Nodes = append(out.Nodes, j)
	}
	return out
}

func (a *app) versionCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:               "version",
		Short:             "print the version of this program",
		Long:              "Prints the version of this program; `rookeryctl status` prints those of the nodes.",
		Example:           `  rookeryctl version`,
		Args:              exactly(),
		ValidArgsFunction: none,
	}
	cmd.RunE = a.do(func(context.Context, []string) error {
		if a.format == formatJSON {
			return a.document(struct {
				Version string `json:"version"`
			}{obs.Version()})
		}
		a.printf("rookeryctl %s\n", obs.Version())
		return nil
	})
	return cmd
}
