package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/rookery-mail/rookery/client"
)

func (a *app) memberCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "member",
		Short: "show the nodes of the cluster, and change them",
		Long: `Shows and changes which nodes take part. A node is named by its name; its id is of its
disk: an emptied one has another, so during a replacement two members have one name, and
--id says which is meant.

A new node joins in three steps: start it with --join and an empty data directory; add it
here, as a learner that gets the log and has no vote; promote it once it has caught up. A
node whose disk was lost or emptied is replaced, which does all of that. What would leave
too few voters that answer is refused, with the numbers.`,
		Args: mustName,
		RunE: mustName,
	}
	cmd.AddCommand(a.memberListCmd(), a.memberAddCmd(), a.memberPromoteCmd(), a.memberRemoveCmd(), a.memberReplaceCmd())
	return cmd
}

func (a *app) memberListCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list",
		Short: "show the members, and who waits to join",
		Long: `Shows the members of the cluster: role, addresses, site, how far each has applied the log and
by how many entries it trails the leader, when it was last heard. Below them stand the
nodes that wait to join: started with --join and not added yet.`,
		Example: `  rookeryctl member list
  rookeryctl member list -o json | jq -r .waiting[].name`,
		Args:              exactly(),
		ValidArgsFunction: none,
	}
	cmd.RunE = a.do(func(ctx context.Context, _ []string) error {
		c, err := a.connect()
		if err != nil {
			return err
		}
		st, err := c.Status(ctx, a.fresh()...)
		if err != nil {
			return err
		}
		if a.format == formatJSON {
			return a.document(struct {
				Members []memberJSON `json:"members"`
				Waiting []memberJSON `json:"waiting"`
				answerJSON
			}{membersOf(st.Nodes), membersOf(st.Waiting), answerOf(st.Answer)})
		}
		return a.tellNodes(st.Nodes, st.Waiting)
	})
	return cmd
}

// memberJSON documents of the commands that change something.
type memberChangeJSON struct {
	Effect  string       `json:"effect"`
	Member  memberJSON   `json:"member"`
	Members []memberJSON `json:"members"`
	Notes   []string     `json:"notes"`
	answerJSON
}

// tellChange prints what a change of the membership came to: the sentence, the
// members as they are now, and what is to be known of it.
func (a *app) tellChange(r client.MemberResult, format string, args ...any) error {
	if a.format == formatJSON {
		return a.document(memberChangeJSON{r.Effect.String(), memberOf(r.Member), membersOf(r.Nodes), list(r.Notes), answerOf(r.Answer)})
	}
	if r.Effect == client.Unchanged {
		a.printf("Nothing was changed.\n")
	} else {
		a.printf(format+"\n", args...)
	}
	if err := a.tellNodes(r.Nodes); err != nil {
		return err
	}
	for _, note := range r.Notes {
		a.printf("note: %s\n", plain(note))
	}
	return nil
}

// which names one node: what the command line says, and its id if only one can be
// meant, so that a repeat of the call after a lost answer finds what it did.
func which(nodes []client.Node, name string, id uint64) client.NodeRef {
	ref := client.NodeRef{Name: name, ID: id}
	found := 0
	for _, n := range nodes {
		if n.Name == name && (id == 0 || n.ID == id) {
			ref.ID = n.ID
			found++
		}
	}
	if found > 1 {
		ref.ID = id
	}
	return ref
}

// titled is a node's name with its id.
func titled(ref client.NodeRef) string {
	if ref.ID == 0 {
		return ref.Name
	}
	return fmt.Sprintf("%s (id %x)", ref.Name, ref.ID)
}

// idFlag adds --id.
func idFlag(cmd *cobra.Command, id *string) {
	cmd.Flags().StringVar(id, "id", "", "the one with this `id`, where two have the name")
}

// members connects and asks who there is.
func (a *app) members(ctx context.Context) (*client.Client, client.Status, error) {
	c, err := a.connect()
	if err != nil {
		return nil, client.Status{}, err
	}
	st, err := c.Status(ctx)
	if err != nil {
		return nil, client.Status{}, err
	}
	return c, st, nil
}

// confirmed shows a person who there is, and asks.
func (a *app) confirmed(st client.Status, question string) bool {
	if a.format != formatJSON && isTerminal(a.stdin) && isTerminal(a.stderr) {
		if a.tellNodes(st.Nodes, st.Waiting) != nil {
			return false
		}
		a.printf("\n")
	}
	return a.confirm(question)
}

func (a *app) memberAddCmd() *cobra.Command {
	var id string
	cmd := &cobra.Command{
		Use:   "add NAME",
		Short: "let a node that waits join, as a learner",
		Long: `Makes a node that waits to join a learner: it gets the log, and has no vote until it is
promoted. Start it first, with --join naming every member and an empty data directory, and
leave it running. A name that a member has already is refused: that is a replacement.`,
		Example: `  rookeryctl member list
  rookeryctl member add n4`,
		Args:              exactly("NAME"),
		ValidArgsFunction: firstOnly(a.nodeNames(true)),
	}
	idFlag(cmd, &id)
	cmd.RunE = a.do(func(ctx context.Context, args []string) error {
		number, err := nodeIDFlag("id", id)
		if err != nil {
			return err
		}
		c, st, err := a.members(ctx)
		if err != nil {
			return err
		}
		ref := which(st.Waiting, args[0], number)
		r, err := c.AddMember(ctx, ref)
		if err != nil {
			return err
		}
		return a.tellChange(r, "%s is a learner now:", titled(ref))
	})
	return cmd
}

func (a *app) memberPromoteCmd() *cobra.Command {
	var id string
	cmd := &cobra.Command{
		Use:   "promote NAME",
		Short: "give a learner its vote",
		Long: `Gives a learner its vote. It is refused until the learner was heard to have applied the log
up to 1,000 entries before the leader's end, while it does not answer, and where too few of
the voters would answer afterwards. A learner says once a second how far it is.`,
		Example:           `  rookeryctl member promote n4`,
		Args:              exactly("NAME"),
		ValidArgsFunction: firstOnly(a.nodeNames(false)),
	}
	idFlag(cmd, &id)
	cmd.RunE = a.do(func(ctx context.Context, args []string) error {
		number, err := nodeIDFlag("id", id)
		if err != nil {
			return err
		}
		c, st, err := a.members(ctx)
		if err != nil {
			return err
		}
		ref := which(st.Nodes, args[0], number)
		r, err := c.PromoteMember(ctx, ref)
		if err != nil {
			return err
		}
		return a.tellChange(r, "%s is a voter now:", titled(ref))
	})
	return cmd
}

func (a *app) memberRemoveCmd() *cobra.Command {
	var id string
	var yes bool
	cmd := &cobra.Command{
		Use:   "remove NAME",
		Short: "take a node out of the cluster for good",
		Long: `Takes a member out, for good: its id is never used again, so to come back it joins anew with
an empty data directory. The leader hands the leadership over first. It asks, or wants
--yes; it is refused if no voter would be left, or too few of them answer.

A node that is only down needs no removal: it catches up when it comes back.`,
		Example: `  rookeryctl member remove n3
  rookeryctl member remove n3 --id 1f2e3d --yes`,
		Args:              exactly("NAME"),
		ValidArgsFunction: firstOnly(a.nodeNames(false)),
	}
	idFlag(cmd, &id)
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	cmd.RunE = a.do(func(ctx context.Context, args []string) error {
		number, err := nodeIDFlag("id", id)
		if err != nil {
			return err
		}
		c, st, err := a.members(ctx)
		if err != nil {
			return err
		}
		ref := which(st.Nodes, args[0], number)
		if !yes && !a.confirmed(st, "Remove "+titled(ref)+" for good?") {
			return refusedf("nothing was changed: removing %s is for good; --yes does it without asking", titled(ref))
		}
		r, err := c.RemoveMember(ctx, ref)
		if err != nil {
			return err
		}
		return a.tellChange(r, "%s is removed:", titled(ref))
	})
	return cmd
}

// replacement is a member replace at work.
type replacement struct {
	a    *app
	c    *client.Client
	name string
	old  uint64
	new  uint64
	wait time.Duration // 0: for ever
}

func (a *app) memberReplaceCmd() *cobra.Command {
	var oldID, newID string
	var yes bool
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "replace NAME",
		Short: "put a new disk in a member's place",
		Long: `Replaces a node whose disk was lost, emptied or quarantined. Start it first with the same
name, with --join naming every member and an empty data directory, and leave it running.
This makes its new disk a learner, waits until that has caught up, and then, in one step, takes
the old one out and gives the new one its vote. The number of votes never changes.

It may be interrupted: the same command goes on where it was. It asks, or wants --yes.`,
		Example: `  rookeryctl member replace n3
  rookeryctl member replace n3 --yes --wait 1h`,
		Args:              exactly("NAME"),
		ValidArgsFunction: firstOnly(a.nodeNames(false)),
	}
	f := cmd.Flags()
	f.StringVar(&oldID, "old", "", "the `id` of the disk to go, where it is not plain")
	f.StringVar(&newID, "new", "", "the `id` of the disk that takes its place, where several wait")
	f.BoolVar(&yes, "yes", false, "do not ask")
	f.DurationVar(&wait, "wait", 0, "how long to wait for it to catch up; 0 for ever")
	cmd.RunE = a.do(func(ctx context.Context, args []string) error {
		r := &replacement{a: a, name: args[0], wait: wait}
		var err error
		if r.old, err = nodeIDFlag("old", oldID); err != nil {
			return err
		}
		if r.new, err = nodeIDFlag("new", newID); err != nil {
			return err
		}
		if wait < 0 {
			return usagef("--wait %v: it cannot be negative", wait)
		}
		var st client.Status
		if r.c, st, err = a.members(ctx); err != nil {
			return err
		}
		begun := r.plan(st)
		if !yes && !a.confirmed(st, r.question(begun)) {
			return refusedf("nothing was changed: the old disk of %s goes for good; --yes does it without asking", r.name)
		}
		if !begun {
			if err := r.start(ctx); err != nil {
				return err
			}
		}
		result, err := r.finish(ctx)
		if err != nil {
			return err
		}
		return a.tellChange(result, "%s runs on its new disk (id %x):", r.name, r.new)
	})
	return cmd
}

// plan works out which disks are meant, and whether the new one is a learner
// already. What it cannot tell it leaves to the leader, which refuses in words.
func (r *replacement) plan(st client.Status) (begun bool) {
	var members, waiting []client.Node
	for _, n := range st.Nodes {
		if n.Name == r.name {
			members = append(members, n)
		}
	}
	for _, n := range st.Waiting {
		if n.Name == r.name {
			waiting = append(waiting, n)
		}
	}
	if r.new == 0 {
		learner := slices.IndexFunc(members, func(n client.Node) bool { return n.Learner && n.ID != r.old })
		switch {
		case len(members) == 2 && learner >= 0:
			r.new = members[learner].ID
		case len(waiting) == 1:
			r.new = waiting[0].ID
		}
	}
	for _, n := range members {
		begun = begun || n.ID == r.new
	}
	others := slices.DeleteFunc(members, func(n client.Node) bool { return n.ID == r.new })
	if r.old == 0 && len(others) == 1 {
		r.old = others[0].ID
	}
	return begun
}

func (r *replacement) question(begun bool) string {
	if begun {
		return fmt.Sprintf("Go on replacing %s: the disk %s goes for good, %s takes its place?", r.name, nodeID(r.old), nodeID(r.new))
	}
	return fmt.Sprintf("Replace %s: the disk %s goes for good, %s takes its place?", r.name, nodeID(r.old), nodeID(r.new))
}

// start makes the new disk a learner.
func (r *replacement) start(ctx context.Context) error {
	result, err := r.c.ReplaceMember(ctx, client.ReplaceMember{Name: r.name, Old: r.old, New: r.new})
	if err != nil {
		return err
	}
	r.new = result.Member.ID
	return nil
}

// catchUpStep is how often the leader is asked whether a learner has caught up.
const catchUpStep = 500 * time.Millisecond

// finish waits until the new disk has the log, and puts it in the old one's place.
func (r *replacement) finish(ctx context.Context) (client.MemberResult, error) {
	draw := r.a.progress()
	defer draw.clear()
	begun := time.Now()
	told := false
	for {
		result, err := r.c.ReplaceMember(ctx, client.ReplaceMember{Name: r.name, Old: r.old, New: r.new, Finish: true})
		if !errors.Is(err, client.ErrLagging) {
			return result, err
		}
		if r.wait > 0 && time.Since(begun) >= r.wait {
			return result, within(err, "%s is a learner and has not caught up in %v; the same command goes on", r.name, r.wait)
		}
		if !told {
			told = true
			r.a.note("%s is a learner and gets the log; this waits until it has caught up, and may be interrupted: the same command goes on", r.name)
		}
		line := r.name + " has not said yet how far it is"
		if e, ok := errors.AsType[*client.Error](err); ok && e.Trails > 0 {
			line = fmt.Sprintf("%s trails the leader by %s", r.name, plural(e.Trails, "entry"))
		}
		draw.draw(fmt.Sprintf("%s (%s)", line, age(time.Since(begun))))
		select {
		case <-ctx.Done():
			return result, ctx.Err()
		case <-time.After(catchUpStep):
		}
	}
}

type leaderMoveJSON struct {
	Effect string `json:"effect"`
	From   string `json:"from"`
	To     string `json:"to"`
	TookMS int64  `json:"took_ms"`
	answerJSON
}

func (a *app) moveLeaderCmd() *cobra.Command {
	var id string
	cmd := &cobra.Command{
		Use:   "move-leader [NAME]",
		Short: "hand the leadership to another node",
		Long: `Hands the leadership to a voter that answers and is not behind, or to the one whose log goes
farthest, and returns when it leads. Writes wait meanwhile, for some milliseconds; none is
lost. A node that is stopped with SIGTERM does it by itself.`,
		Example: `  rookeryctl move-leader
  rookeryctl move-leader n2`,
		Args:              atMost("NAME"),
		ValidArgsFunction: firstOnly(a.nodeNames(false)),
	}
	idFlag(cmd, &id)
	cmd.RunE = a.do(func(ctx context.Context, args []string) error {
		number, err := nodeIDFlag("id", id)
		if err != nil {
			return err
		}
		c, err := a.connect()
		if err != nil {
			return err
		}
		to := client.NodeRef{ID: number}
		if len(args) == 1 {
			to.Name = args[0]
		}
		m, err := c.MoveLeader(ctx, to)
		if err != nil {
			return err
		}
		if a.format == formatJSON {
			return a.document(leaderMoveJSON{m.Effect.String(), m.From, m.To, m.Took.Milliseconds(), answerOf(m.Answer)})
		}
		a.tellLeaderMove(m)
		return nil
	})
	return cmd
}

func (a *app) tellLeaderMove(m client.LeaderMove) {
	if m.Effect == client.Unchanged {
		a.printf("%s leads already\n", m.To)
		return
	}
	a.printf("%s leads now, after %s; it took %v\n", m.To, m.From, m.Took)
}
