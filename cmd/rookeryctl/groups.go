package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
)

func modeWord(m directory.GroupMode) string {
	switch m {
	case directory.ModeManual:
		return "manual"
	case directory.ModeAutomatic:
		return "automatic"
	}
	return "unknown"
}

func (a *app) groupsCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "groups [NAME]",
		Short: "show the replica groups, and change them",
		Long: `Shows the replica groups: backends with copies of the same mailboxes, in order of
preference, and the primary, which takes the sessions. Of one group also the history of its
switchovers. A backend that nobody put in a group is a group of one.`,
		Example: `  rookeryctl groups
  rookeryctl groups g1`,
		Args:              atMost("NAME"),
		ValidArgsFunction: firstOnly(a.groupNames()),
	}
	cmd.RunE = a.do(func(ctx context.Context, args []string) error {
		var only directory.GroupName
		if len(args) == 1 {
			var err error
			if only, err = directory.ParseGroup(args[0]); err != nil {
				return err
			}
		}
		c, err := a.connect()
		if err != nil {
			return err
		}
		groups, err := c.ListGroups(ctx, only, a.fresh()...)
		if err != nil {
			return err
		}
		if a.format == formatJSON {
			out := make([]groupJSON, len(groups))
			for i, g := range groups {
				out[i] = groupOf(g)
			}
			return a.document(struct {
				Groups []groupJSON `json:"groups"`
			}{out})
		}
		if err := a.tellGroups(groups); err != nil || only == "" {
			return err
		}
		return a.tellHistory(groups[0])
	})
	cmd.AddCommand(a.setGroupCmd())
	return cmd
}

func (a *app) tellGroups(groups []client.Group) error {
	t := a.table("GROUP", ">EPOCH", "PRIMARY", "MEMBERS", "MODE", "LAST SWITCHOVER", "HOLD")
	for _, g := range groups {
		last, hold := "", ""
		if n := len(g.History); n > 0 {
			last = fmt.Sprintf("%s ago by %s", age(g.History[n-1].Age), orDash(g.History[n-1].By))
		}
		if g.Hold != nil {
			hold = fmt.Sprintf("for another %s: %s", age(g.Hold.Remaining), orDash(g.Hold.Why))
		}
		t.row(g.Name, g.Epoch, g.Primary, join(g.Members), modeWord(g.Mode), last, hold)
	}
	return t.end("no group is known yet")
}

func (a *app) tellHistory(g client.Group) error {
	a.printf("\nSwitchovers, newest last:\n")
	t := a.table(">EPOCH", "FROM", "TO", ">AGO", "TIME", ">REVISION", "BY", "MISSING ACCEPTED", "REASON")
	t.indent = "  "
	for _, s := range g.History {
		t.row(s.Epoch, s.From, s.To, age(s.Age), stamp(s.Wall), s.Revision, s.By, yesNo(s.AcceptMissing), s.Reason)
	}
	return t.end("none is remembered")
}

func (a *app) setGroupCmd() *cobra.Command {
	var members []string
	var mode string
	var acceptMissing bool
	cmd := &cobra.Command{
		Use:   "set NAME --members BACKEND,...",
		Short: "make a replica group, or change its members",
		Long: `Makes a group or changes its members, in order of preference. A backend leaves the group
that it was in. The present primary must stay a member; of a new group the first member is
the primary.`,
		Example:           `  rookeryctl groups set g1 --members be1.example.org,be2.example.org`,
		Args:              exactly("NAME"),
		ValidArgsFunction: firstOnly(a.groupNames()),
	}
	f := cmd.Flags()
	f.StringSliceVar(&members, "members", nil, "the `backends`, in order of preference")
	f.StringVar(&mode, "mode", "", "who moves the primary: `manual|automatic`")
	f.BoolVar(&acceptMissing, "accept-missing", false, "let a backend join that is home to mailboxes which the primary may not hold")
	fixed(cmd, "mode", "manual", "automatic")
	complete(cmd, "members", a.backendNames())
	required(cmd, "members")
	cmd.RunE = a.do(func(ctx context.Context, args []string) error {
		group, err := directory.ParseGroup(args[0])
		if err != nil {
			return err
		}
		var names []directory.BackendName
		for _, m := range members {
			name, err := directory.ParseBackend(strings.TrimSpace(m))
			if err != nil {
				return err
			}
			names = append(names, name)
		}
		var m directory.GroupMode
		switch mode {
		case "":
		case "manual":
			m = directory.ModeManual
		case "automatic":
			m = directory.ModeAutomatic
		default:
			return usagef("--mode %s: it is manual or automatic", mode)
		}
		c, err := a.connect()
		if err != nil {
			return err
		}
		r, err := c.SetGroup(ctx, client.SetGroup{Group: group, Members: names, Mode: m, AcceptMissing: acceptMissing})
		if err != nil {
			return err
		}
		return a.tellResult(r, "group "+string(group))
	})
	return cmd
}

type planJSON struct {
	Group        directory.GroupName     `json:"group"`
	From         directory.BackendName   `json:"from"`
	To           directory.BackendName   `json:"to"`
	Epoch        uint64                  `json:"epoch"`
	FromCount    uint64                  `json:"from_count"`
	ToCount      uint64                  `json:"to_count"`
	Equal        bool                    `json:"equal"`
	MissingCount uint64                  `json:"missing_count"`
	ExtraCount   uint64                  `json:"extra_count"`
	Missing      []directory.MailboxName `json:"missing"`
	Extra        []directory.MailboxName `json:"extra"`
	Truncated    bool                    `json:"truncated"`
	Refusal      string                  `json:"refusal"`
	Result       *resultJSON             `json:"result,omitempty"`
}

func (a *app) switchoverCmd() *cobra.Command {
	var to, reason string
	var epoch uint64
	var acceptMissing, dryRun bool
	cmd := &cobra.Command{
		Use:   "switchover GROUP --to BACKEND",
		Short: "move a group's primary",
		Long: `Moves the primary of a replica group: prints the plan, then does it. It is refused if the
target does not hold all that the present primary holds, which the plan names, unless
--accept-missing; those mailboxes answer NOT_AT_PRIMARY afterwards.

It compares the group's epoch and sets the next one: of two at the same time one is
refused. --epoch states the one that you have seen; else it is the plan's.

--dry-run prints the plan alone; the exit code is 1 if it would be refused.`,
		Example: `  rookeryctl switchover g1 --to be2.example.org --dry-run
  rookeryctl switchover g1 --to be2.example.org --reason 'be1 gets new disks'`,
		Args:              exactly("GROUP"),
		ValidArgsFunction: firstOnly(a.groupNames()),
	}
	f := cmd.Flags()
	f.StringVar(&to, "to", "", "the `backend` that becomes the primary")
	f.Uint64Var(&epoch, "epoch", 0, "refuse it if the group's epoch is not this `number`")
	f.StringVar(&reason, "reason", "", "why: a `text` for the history")
	f.BoolVar(&acceptMissing, "accept-missing", false, "also if the target lacks mailboxes")
	f.BoolVar(&dryRun, "dry-run", false, "print the plan and change nothing")
	complete(cmd, "to", a.backendNames())
	required(cmd, "to")
	cmd.RunE = a.do(func(ctx context.Context, args []string) error {
		group, err := directory.ParseGroup(args[0])
		if err != nil {
			return err
		}
		target, err := directory.ParseBackend(to)
		if err != nil {
			return err
		}
		c, err := a.connect()
		if err != nil {
			return err
		}
		p, err := c.PlanSwitchover(ctx, group, target, 0)
		if err != nil {
			return err
		}
		out := planJSON{
			p.Group, p.From, p.To, p.Epoch, p.FromCount, p.ToCount, p.Equal, p.MissingCount, p.ExtraCount, list(p.Missing), list(p.Extra), p.Truncated, p.Refusal, nil,
		}
		if a.format != formatJSON {
			if err := a.tellPlan(p); err != nil {
				return err
			}
			a.stdout.Flush()
		}
		refused := obstacle(p, epoch, acceptMissing)
		if refused != nil && out.Refusal == "" {
			out.Refusal = plain(refused.Error())
		}
		if dryRun || refused != nil {
			if a.format == formatJSON {
				if err := a.document(out); err != nil {
					return err
				}
			} else if refused == nil && p.From != p.To {
				a.printf("It would be done. Nothing was changed (--dry-run).\n")
			}
			return refused
		}
		r, err := c.SetPrimary(ctx, client.SetPrimary{Group: p.Group, To: p.To, Epoch: p.Epoch, Reason: reason, AcceptMissing: acceptMissing})
		if err != nil {
			return err
		}
		if a.format == formatJSON {
			out.Result = new(resultOf(r))
			return a.document(out)
		}
		if r.Effect == client.Unchanged {
			a.printf("%s was the primary of %s already (epoch %d)\n", p.To, p.Group, r.Epoch)
			return nil
		}
		a.printf("%s is the primary of %s now, epoch %d (revision %d)\n", p.To, p.Group, r.Epoch, r.Revision)
		return nil
	})
	return cmd
}

// obstacle says why a switchover would be refused; nil if it would not.
func obstacle(p client.Plan, epoch uint64, acceptMissing bool) error {
	switch {
	case epoch != 0 && epoch != p.Epoch:
		return refusedf("refused: the epoch of %s is %d, not %d: look at `rookeryctl groups %s` and decide again", p.Group, p.Epoch, epoch, p.Group)
	case p.Refusal != "":
		return refusedf("refused: %s", plain(strings.TrimPrefix(p.Refusal, "directory: ")))
	case !p.Equal && !acceptMissing && p.From != p.To:
		if p.MissingCount == 0 {
			return refusedf("refused: %s and %s do not hold the same mailboxes: %s has %d more; --accept-missing takes that", p.From, p.To, p.To, p.ExtraCount)
		}
		return refusedf("refused: %s lacks %s of %s's; --accept-missing takes that, and those answer NOT_AT_PRIMARY afterwards", p.To, mailboxCount(p.MissingCount), p.From)
	}
	return nil
}

func (a *app) tellPlan(p client.Plan) error {
	if p.From == p.To {
		a.printf("%s is the primary of %s already; there is nothing to change.\n", p.To, p.Group)
		return nil
	}
	a.printf("Plan: the primary of %s goes from %s (%s) to %s (%s), epoch %d to %d.\n", p.Group, p.From, mailboxCount(p.FromCount), p.To, mailboxCount(p.ToCount), p.Epoch, p.Epoch+1)
	if p.Equal {
		a.printf("%s holds all that %s holds.\n", p.To, p.From)
		return nil
	}
	a.names(fmt.Sprintf("%s lacks", p.To), p.MissingCount, p.Truncated, p.Missing)
	a.names(fmt.Sprintf("%s has besides", p.To), p.ExtraCount, p.Truncated, p.Extra)
	return nil
}

// names prints a count of mailboxes and the first of them.
func (a *app) names(what string, count uint64, atLeast bool, first []directory.MailboxName) {
	if count == 0 {
		return
	}
	bound := ""
	if atLeast {
		bound = "at least "
	}
	a.printf("%s %s%s:\n", what, bound, mailboxCount(count))
	for _, name := range first {
		a.printf("  %s\n", name)
	}
	if more := count - min(count, uint64(len(first))); more > 0 {
		a.printf("  and %d more\n", more)
	}
}
