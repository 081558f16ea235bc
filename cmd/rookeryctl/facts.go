package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
)

// claim are the arguments that all commands of this file have: a mailbox and
// the backend that speaks.
type claim struct {
	mailbox directory.MailboxName
	server  directory.BackendName
}

// speaks makes a command about one mailbox of one backend.
func (a *app) speaks(cmd *cobra.Command, run func(context.Context, *client.Client, claim) (client.Result, error)) *cobra.Command {
	var server string
	cmd.Args = exactly("NAME")
	cmd.ValidArgsFunction = none
	cmd.Flags().StringVar(&server, "server", "", "the `backend` that says so")
	complete(cmd, "server", a.backendNames())
	required(cmd, "server")
	cmd.RunE = a.do(func(ctx context.Context, args []string) error {
		var cl claim
		var err error
		if cl.mailbox, err = directory.ParseName(args[0]); err != nil {
			return err
		}
		if cl.server, err = directory.ParseBackend(server); err != nil {
			return err
		}
		c, err := a.connect()
		if err != nil {
			return err
		}
		r, err := run(ctx, c, cl)
		if err != nil {
			return err
		}
		return a.tellResult(r, fmt.Sprintf("%s on %s", cl.mailbox, cl.server))
	})
	return cmd
}

// tellResult prints what a write came to.
func (a *app) tellResult(r client.Result, about string) error {
	if a.format == formatJSON {
		return a.document(resultOf(r))
	}
	a.printf("%s: %s", plain(about), r.Effect)
	if r.Count > 0 {
		a.printf(", %s", mailboxCount(r.Count))
	}
	if r.Epoch > 0 {
		a.printf(", epoch %d", r.Epoch)
	}
	if r.Lapses > 0 {
		a.printf(", lapses in %s", age(r.Lapses))
	}
	a.printf(" (revision %d)\n", r.Revision)
	if s := remark(r.Effect); s != "" {
		a.printf("%s\n", s)
	}
	return nil
}

func mailboxCount[N int | int64 | uint64](n N) string { return plural(n, "mailbox") }

// remark says what to know of an effect whose name does not say it.
func remark(e client.Effect) string {
	switch e {
	case client.Forked:
		return "Another group is the mailbox's home: route, LIST and rights are as before (`rookeryctl forks`)."
	case client.MoveCompleted:
		return "The mailbox had been given up; this backend's group is its home now."
	case client.MoveAborted:
		return "It had been given up and is kept."
	case client.GuardHeld:
		return "There were so many that it is not believed yet: `rookeryctl withdrawal` decides."
	case client.NotHeld:
		return "There was nothing to take back."
	case client.AlreadyYours:
		return "The backend holds the name itself; nothing is reserved."
	case client.CopyAllowed:
		return "Its group holds the name: it may assert a copy; nothing is reserved."
	case client.NotAdmitted:
		return "It is kept but does not count until the backend is admitted (`rookeryctl backends admit`)."
	case client.NotSince:
		return "The fact changed after that revision; it stays as it is."
	case client.Overtaken:
		return "A move, a delete or a settled fork overtook this copy: it does not count."
	}
	return ""
}

func (a *app) assertCmd() *cobra.Command {
	var st directory.Statement
	var partition, acl, id, kind, use string
	var validity uint32
	var imported, deactivated bool
	var since uint64
	cmd := &cobra.Command{
		Use:   "assert NAME --server BACKEND",
		Short: "state that a backend holds a mailbox",
		Long: `States that a backend holds a mailbox, in its name. It is accepted, whatever others say;
the effect tells what it meant. What is not stated keeps the value it has.`,
		Example: `  rookeryctl assert user.alice --server be1.example.org --partition default --acl 'alice lrswipkxtecdan'
  rookeryctl assert user.alice.Sent --server be1.example.org --special-use '\Sent'`,
	}
	a.speaks(cmd, func(ctx context.Context, c *client.Client, cl claim) (client.Result, error) {
		changed := cmd.Flags().Changed
		st.Partition = partition
		if changed("acl") {
			parsed, err := parseACL(acl)
			if err != nil {
				return client.Result{}, err
			}
			st.ACL = &parsed
		}
		if changed("type") {
			t, err := parseType(kind)
			if err != nil {
				return client.Result{}, err
			}
			st.Type = &t
		}
		if changed("id") {
			st.MailboxID = &id
		}
		if changed("uidvalidity") {
			st.UIDValidity = &validity
		}
		if changed("special-use") {
			st.SpecialUse = &use
		}
		return c.Assert(ctx, client.Assert{Mailbox: cl.mailbox, Server: cl.server, Statement: st, Imported: imported, Deactivated: deactivated, Since: directory.Revision(since)})
	})
	f := cmd.Flags()
	f.StringVar(&partition, "partition", "", "the storage `area` it lies in")
	f.StringVar(&acl, "acl", "", "its `ACL`: \"IDENTIFIER RIGHTS IDENTIFIER RIGHTS...\", with TABs between where an identifier has spaces")
	f.StringVar(&id, "id", "", "its mailbox `id` (Cyrus uniqueid)")
	f.Uint32Var(&validity, "uidvalidity", 0, "its `UIDVALIDITY`")
	f.StringVar(&kind, "type", "", "its `type`: email, calendar...; or Cyrus's letter")
	f.StringVar(&use, "special-use", "", "its special use `attributes`, separated by one space")
	f.BoolVar(&imported, "imported", false, "as an import: admits the backend, and the guard does not count it")
	f.Uint64Var(&since, "since", 0, "do nothing if the fact has changed after this `revision`")
	f.BoolVar(&deactivated, "deactivated", false, "as given up in a move")
	fixed(cmd, "type", typeWords()...)
	return cmd
}

func (a *app) retractCmd() *cobra.Command {
	var epoch, since uint64
	var tentative bool
	cmd := &cobra.Command{
		Use:   "retract NAME --server BACKEND",
		Short: "take back what a backend stated of a mailbox",
		Long: `Takes back a backend's fact, and only that one's. By the primary of the mailbox's home it
decides for the group: the mailbox is NOT_FOUND afterwards.`,
		Example: `  rookeryctl retract user.alice.Old --server be1.example.org`,
	}
	a.speaks(cmd, func(ctx context.Context, c *client.Client, cl claim) (client.Result, error) {
		return c.Retract(ctx, client.Retract{Mailbox: cl.mailbox, Server: cl.server, Epoch: epoch, Tentative: tentative, Since: directory.Revision(since)})
	})
	cmd.Flags().Uint64Var(&epoch, "epoch", 0, "decide for the group only if its epoch is this `number`")
	cmd.Flags().Uint64Var(&since, "since", 0, "do nothing if the fact has changed after this `revision`")
	cmd.Flags().BoolVar(&tentative, "tentative", false, "a rename may be under way: route as MOVING until it is retracted or asserted again")
	return cmd
}

func (a *app) reserveCmd() *cobra.Command {
	var partition string
	var grace time.Duration
	cmd := &cobra.Command{
		Use:   "reserve NAME --server BACKEND",
		Short: "claim a name for a backend before the mailbox exists",
		Long: `Asks whether a backend may create a mailbox, and claims the name for it if so. The answer
may be "already-yours" or "copy-allowed"; a refusal names who is in the way.`,
		Example: `  rookeryctl reserve user.newcomer --server be2.example.org`,
	}
	a.speaks(cmd, func(ctx context.Context, c *client.Client, cl claim) (client.Result, error) {
		return c.Reserve(ctx, client.Reserve{Mailbox: cl.mailbox, Server: cl.server, Partition: partition, Grace: grace})
	})
	cmd.Flags().StringVar(&partition, "partition", "", "the storage `area` it will lie in")
	cmd.Flags().DurationVar(&grace, "grace", 0, "how long the backend may take once it is heard again; the cluster's setting if 0")
	return cmd
}

func (a *app) releaseCmd() *cobra.Command {
	return a.speaks(&cobra.Command{
		Use:     "release NAME --server BACKEND",
		Short:   "give a reservation back",
		Long:    `Gives back the name that a backend has reserved.`,
		Example: `  rookeryctl release user.newcomer --server be2.example.org`,
	}, func(ctx context.Context, c *client.Client, cl claim) (client.Result, error) {
		return c.Release(ctx, client.Release{Mailbox: cl.mailbox, Server: cl.server})
	})
}

func (a *app) deactivateCmd() *cobra.Command {
	return a.speaks(&cobra.Command{
		Use:   "deactivate NAME --server BACKEND",
		Short: "give a mailbox up to whoever asserts it next",
		Long: `Gives a mailbox up, as Cyrus does when it moves one (XFER): it stays listed and routes as
MOVING until another backend asserts it, or this one does again.`,
		Example: `  rookeryctl deactivate user.alice --server be1.example.org`,
	}, func(ctx context.Context, c *client.Client, cl claim) (client.Result, error) {
		return c.Deactivate(ctx, client.Deactivate{Mailbox: cl.mailbox, Server: cl.server})
	})
}

func (a *app) renameCmd() *cobra.Command {
	var server string
	var recursive bool
	cmd := &cobra.Command{
		Use:   "rename FROM TO --server BACKEND",
		Short: "rename a backend's mailboxes in one step",
		Long: `Renames a backend's facts: the one mailbox, or with --recursive all below it too; or
nothing, if any of the new names belongs to another group. Renaming an INBOX recursively
renames the user, subscriptions included.`,
		Example: `  rookeryctl rename user.alice user.alison --recursive --server be1.example.org`,
		Args:    exactly("FROM", "TO"), ValidArgsFunction: none,
	}
	cmd.Flags().StringVar(&server, "server", "", "the `backend` whose mailboxes they are")
	cmd.Flags().BoolVarP(&recursive, "recursive", "r", false, "all below it too")
	complete(cmd, "server", a.backendNames())
	required(cmd, "server")
	cmd.RunE = a.do(func(ctx context.Context, args []string) error {
		r := client.Rename{Recursive: recursive}
		var err error
		if r.From, err = directory.ParseName(args[0]); err != nil {
			return err
		}
		if r.To, err = directory.ParseName(args[1]); err != nil {
			return err
		}
		if r.Server, err = directory.ParseBackend(server); err != nil {
			return err
		}
		c, err := a.connect()
		if err != nil {
			return err
		}
		result, err := c.Rename(ctx, r)
		if err != nil {
			return err
		}
		return a.tellResult(result, fmt.Sprintf("%s to %s on %s", r.From, r.To, r.Server))
	})
	return cmd
}
