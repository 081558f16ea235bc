package main

import (
	"context"
	"fmt"
	"iter"

	"github.com/spf13/cobra"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
)

func (a *app) findCmd() *cobra.Command {
	var server string
	cmd := &cobra.Command{
		Use:   "find [PREFIX]",
		Short: "find mailboxes by the beginning of their names, with every fact",
		Long: `Prints the mailboxes whose canonical names begin with PREFIX, whole levels or not, with
what every backend stated of them, whatever its state and whether listed or not: a line for
each fact.
--server prints only those of which that backend stated something.`,
		Example: `  rookeryctl find user.alice
  rookeryctl find --server be1.example.org
  rookeryctl find --server be1.example.org user.a -o json | jq -r '.mailboxes[].mailbox'`,
		Args:              atMost("PREFIX"),
		ValidArgsFunction: none,
	}
	cmd.Flags().StringVar(&server, "server", "", "only mailboxes of which this `backend` has a fact")
	complete(cmd, "server", a.backendNames())
	cmd.RunE = a.do(func(ctx context.Context, args []string) error {
		q := client.FindQuery{}
		if len(args) == 1 {
			q.Prefix = args[0]
		}
		if len(args) == 0 && server == "" {
			return usagef("%s: PREFIX or --server is missing (an empty PREFIX, '', finds everything)", path(cmd))
		}
		if server != "" {
			var err error
			if q.Server, err = directory.ParseBackend(server); err != nil {
				return err
			}
		}
		c, err := a.connect()
		if err != nil {
			return err
		}
		return a.tellMailboxes("mailboxes", "no mailbox begins so", c.FindAll(ctx, q, a.fresh()...))
	})
	return cmd
}

// tellMailboxes prints mailboxes with all their facts, a row for each fact.
func (a *app) tellMailboxes(key, none string, mailboxes iter.Seq2[client.Route, error]) error {
	if a.format == formatJSON {
		out := a.array(key)
		for r, err := range mailboxes {
			if err != nil {
				return err
			}
			if err := out.item(routeOf(r)); err != nil {
				return err
			}
		}
		return out.end(nil)
	}
	t := a.table("MAILBOX", "OUTCOME", "HOME", "SERVER", "STATE", "STANDING", "PARTITION", "ID", ">UIDVALIDITY", ">LAST", ">AGE")
	for r, err := range mailboxes {
		if err != nil {
			return err
		}
		for _, f := range r.Facts {
			t.row(r.Mailbox, r.Outcome, r.Group, f.Server, f.State, standing(f), f.Partition, f.MailboxID, fmt.Sprint(f.UIDValidity), f.Last, age(f.Age))
		}
	}
	return t.end(none)
}

// standing is a fact's, or why it has none.
func standing(f client.Fact) string {
	if !f.Admitted {
		return "not-admitted"
	}
	return f.Standing.String()
}
