package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
)

// ofUser makes a command about one user: run gets the user checked.
func (a *app) ofUser(cmd *cobra.Command, run func(context.Context, *client.Client, directory.UserID, []string) error) *cobra.Command {
	var user string
	cmd.Flags().StringVar(&user, "user", "", "whose subscription: `id[@domain]`")
	required(cmd, "user")
	cmd.ValidArgsFunction = none
	cmd.RunE = a.do(func(ctx context.Context, args []string) error {
		id, err := directory.ParseUser(user)
		if err != nil {
			return err
		}
		c, err := a.connect()
		if err != nil {
			return err
		}
		return run(ctx, c, id, args)
	})
	return cmd
}

func (a *app) subscribeCmd() *cobra.Command {
	return a.ofUser(&cobra.Command{
		Use:     "subscribe --user USER NAME",
		Short:   "subscribe a user to a mailbox",
		Long:    `Subscribes a user to a mailbox, which need not exist. NAME is canonical.`,
		Example: `  rookeryctl subscribe --user alice user.alice.Sent`,
		Args:    exactly("NAME"),
	}, func(ctx context.Context, c *client.Client, user directory.UserID, args []string) error {
		name, err := directory.ParseName(args[0])
		if err != nil {
			return err
		}
		r, err := c.Subscribe(ctx, user, name)
		if err != nil {
			return err
		}
		return a.tellResult(r, fmt.Sprintf("%s to %s", user, name))
	})
}

func (a *app) unsubscribeCmd() *cobra.Command {
	return a.ofUser(&cobra.Command{
		Use:     "unsubscribe --user USER NAME",
		Short:   "end a user's subscription to a mailbox",
		Long:    `Ends a user's subscription to a mailbox. NAME is canonical.`,
		Example: `  rookeryctl unsubscribe --user alice user.alice.Sent`,
		Args:    exactly("NAME"),
	}, func(ctx context.Context, c *client.Client, user directory.UserID, args []string) error {
		name, err := directory.ParseName(args[0])
		if err != nil {
			return err
		}
		r, err := c.Unsubscribe(ctx, user, name)
		if err != nil {
			return err
		}
		return a.tellResult(r, fmt.Sprintf("%s from %s", user, name))
	})
}

func (a *app) subscriptionsCmd() *cobra.Command {
	return a.ofUser(&cobra.Command{
		Use:     "subscriptions --user USER",
		Short:   "print what a user is subscribed to",
		Long:    `Prints the canonical names that a user is subscribed to, existing or not, a line each.`,
		Example: `  rookeryctl subscriptions --user alice`,
		Args:    exactly(),
	}, func(ctx context.Context, c *client.Client, user directory.UserID, _ []string) error {
		names := []directory.MailboxName{}
		for name, err := range c.ListSubscriptions(ctx, user, a.fresh()...) {
			if err != nil {
				return err
			}
			names = append(names, name)
		}
		if a.format == formatJSON {
			return a.document(struct {
				User      directory.UserID        `json:"user"`
				Mailboxes []directory.MailboxName `json:"mailboxes"`
			}{user, names})
		}
		for _, name := range names {
			a.printf("%s\n", name)
		}
		if len(names) == 0 {
			a.note("%s has no subscriptions", user)
		}
		return nil
	})
}
