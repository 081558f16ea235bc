package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
)

func (a *app) forksCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "forks",
		Short: "show mailboxes that backends of several groups hold",
		Long: `Shows the forks: mailboxes of which a backend outside their home has a fact that counts. A
line for each fact, side by side; the home's come first. A fork changes neither route nor
LIST nor rights, and the directory never settles it: ` + "`rookeryctl fork settle`" + ` does.`,
		Example:           `  rookeryctl forks`,
		Args:              exactly(),
		ValidArgsFunction: none,
	}
	cmd.RunE = a.do(func(ctx context.Context, _ []string) error {
		c, err := a.connect()
		if err != nil {
			return err
		}
		if a.format == formatJSON {
			return a.tellMailboxes("forks", "", c.ListForks(ctx, a.fresh()...))
		}
		return a.tellForks(ctx, c)
	})
	return cmd
}

func (a *app) tellForks(ctx context.Context, c *client.Client) error {
	groups, err := c.ListGroups(ctx, "", a.fresh()...)
	if err != nil {
		return err
	}
	groupOf := make(map[directory.BackendName]directory.GroupName)
	for _, g := range groups {
		for _, m := range g.Members {
			groupOf[m] = g.Name
		}
	}
	t := a.table("MAILBOX", "OUTCOME", "SIDE", "SERVER", "GROUP", "STATE", "STANDING", "PARTITION", "ID", ">UIDVALIDITY", ">AGE")
	for r, err := range c.ListForks(ctx, a.fresh()...) {
		if err != nil {
			return err
		}
		for _, home := range []bool{true, false} {
			for _, f := range r.Facts {
				group := groupOf[f.Server]
				if (group == r.Group) != home {
					continue
				}
				side := "stranger"
				if home {
					side = "home"
				}
				t.row(r.Mailbox, r.Outcome, side, f.Server, group, f.State, standing(f), f.Partition, f.MailboxID, fmt.Sprint(f.UIDValidity), age(f.Age))
			}
		}
	}
	return t.end("there are no forks")
}

func (a *app) forkCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "fork",
		Short: "settle a fork",
		Long:  "Settles forks; `rookeryctl forks` shows them.",
		RunE:  mustName,
	}
	cmd.AddCommand(a.settleCmd())
	return cmd
}

func (a *app) settleCmd() *cobra.Command {
	var keep string
	cmd := &cobra.Command{
		Use:   "settle NAME --keep BACKEND",
		Short: "say whose copy of a forked mailbox is the mailbox",
		Long: `Ends a fork: the group of the backend named becomes the mailbox's home, all facts of that
group stay, the other records go. The mail of the others stays on their disks and is the
operator's to remove. The verdict is kept: a loser that asserts the same copy again is a
stray, without alarm.`,
		Example:           `  rookeryctl fork settle user.alice --keep be1.example.org`,
		Args:              exactly("NAME"),
		ValidArgsFunction: none,
	}
	cmd.Flags().StringVar(&keep, "keep", "", "the `backend` whose group keeps it")
	complete(cmd, "keep", a.backendNames())
	required(cmd, "keep")
	cmd.RunE = a.do(func(ctx context.Context, args []string) error {
		name, err := directory.ParseName(args[0])
		if err != nil {
			return err
		}
		server, err := directory.ParseBackend(keep)
		if err != nil {
			return err
		}
		c, err := a.connect()
		if err != nil {
			return err
		}
		r, err := c.Settle(ctx, name, server)
		if err != nil {
			return err
		}
		return a.tellResult(r, fmt.Sprintf("%s kept by %s", name, server))
	})
	return cmd
}

type moveJSON struct {
	Mailbox directory.MailboxName `json:"mailbox"`
	Server  directory.BackendName `json:"server"`
	AgeMS   int64                 `json:"age_ms"`
}

func (a *app) movesCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "moves",
		Short: "show mailboxes that were given up and that nobody took yet",
		Long: `Shows the moves under way: mailboxes that a backend gave up and that no other has asserted
yet. They answer MOVING and never time out: an old one is a move that went wrong.`,
		Example:           `  rookeryctl moves`,
		Args:              exactly(),
		ValidArgsFunction: none,
	}
	cmd.RunE = a.do(func(ctx context.Context, _ []string) error {
		c, err := a.connect()
		if err != nil {
			return err
		}
		if a.format == formatJSON {
			out := a.array("moves")
			for m, err := range c.ListMoves(ctx, a.fresh()...) {
				if err != nil {
					return err
				}
				if err := out.item(moveJSON{m.Mailbox, m.Server, millis(m.Age)}); err != nil {
					return err
				}
			}
			return out.end(nil)
		}
		t := a.table("MAILBOX", "GIVEN UP BY", ">AGO")
		for m, err := range c.ListMoves(ctx, a.fresh()...) {
			if err != nil {
				return err
			}
			t.row(m.Mailbox, m.Server, age(m.Age))
		}
		return t.end("nothing is being moved")
	})
	return cmd
}
