package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
)

var holdKinds = []directory.HoldKind{directory.HoldUser, directory.HoldMailbox, directory.HoldBackend, directory.HoldGroup}

// parseHold checks what a hold is about.
func parseHold(kind, key string) (directory.HoldKind, error) {
	var err error
	for _, k := range holdKinds {
		if k.String() != kind {
			continue
		}
		switch k {
		case directory.HoldUser:
			_, err = directory.ParseUser(key)
		case directory.HoldMailbox:
			_, err = directory.ParseName(key)
		case directory.HoldBackend:
			_, err = directory.ParseBackend(key)
		case directory.HoldGroup:
			_, err = directory.ParseGroup(key)
		}
		return k, err
	}
	return 0, usagef("hold %s: a hold is of a user, mailbox, backend or group", kind)
}

// holdWords completes the kind of a hold, and the key where names are few.
func (a *app) holdWords() cobra.CompletionFunc {
	backends, groups := a.backendNames(), a.groupNames()
	return func(cmd *cobra.Command, args []string, toComplete string) ([]string, cobra.ShellCompDirective) {
		switch {
		case len(args) == 0:
			var words []string
			for _, k := range holdKinds {
				words = append(words, k.String())
			}
			return words, cobra.ShellCompDirectiveNoFileComp
		case len(args) == 1 && args[0] == "backend":
			return backends(cmd, args, toComplete)
		case len(args) == 1 && args[0] == "group":
			return groups(cmd, args, toComplete)
		}
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
}

func (a *app) holdCmd() *cobra.Command {
	var length time.Duration
	var why string
	cmd := &cobra.Command{
		Use:   "hold [{user|mailbox|backend|group} KEY --for DURATION]",
		Short: "show holds, put one, end one",
		Long: `Puts a hold: what it covers answers HELD for so long, as if it were being moved, and clients
are told to come back. A hold of a user covers all mailboxes of that user; of a mailbox, it
and all below it; of a backend, those whose home's primary it is; of a group, those whose
home it is. A hold that is there already is replaced. Without arguments the holds are shown.`,
		Example: `  rookeryctl hold
  rookeryctl hold user alice --for 10m --why 'restoring her INBOX'
  rookeryctl hold release user alice`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			return exactly("KIND", "KEY")(cmd, args)
		},
		ValidArgsFunction: a.holdWords(),
	}
	cmd.Flags().DurationVar(&length, "for", 0, "hold it for this `duration`, as 10m")
	cmd.Flags().StringVar(&why, "why", "", "why: a `text` that those who meet the hold read")
	cmd.RunE = a.do(func(ctx context.Context, args []string) error {
		if len(args) == 0 {
			if cmd.Flags().Changed("for") || cmd.Flags().Changed("why") {
				return usagef("%s: a hold of what? user, mailbox, backend or group, and its name", path(cmd))
			}
			return a.tellHolds(ctx)
		}
		kind, err := parseHold(args[0], args[1])
		if err != nil {
			return err
		}
		if length < time.Millisecond {
			return usagef("%s: --for says for how long, as 10m", path(cmd))
		}
		c, err := a.connect()
		if err != nil {
			return err
		}
		r, err := c.PutHold(ctx, kind, args[1], length, why)
		if err != nil {
			return err
		}
		return a.tellResult(r, fmt.Sprintf("hold of %s %s for %s", kind, args[1], age(length)))
	})
	release := &cobra.Command{
		Use:               "release {user|mailbox|backend|group} KEY",
		Short:             "end a hold",
		Long:              `Ends a hold before its time.`,
		Example:           `  rookeryctl hold release user alice`,
		Args:              exactly("KIND", "KEY"),
		ValidArgsFunction: a.holdWords(),
	}
	release.RunE = a.do(func(ctx context.Context, args []string) error {
		kind, err := parseHold(args[0], args[1])
		if err != nil {
			return err
		}
		c, err := a.connect()
		if err != nil {
			return err
		}
		r, err := c.ReleaseHold(ctx, kind, args[1])
		if err != nil {
			return err
		}
		if r.Effect == client.Unchanged && a.format != formatJSON {
			a.printf("there is no hold of %s %s (revision %d)\n", kind, plain(args[1]), r.Revision)
			return nil
		}
		return a.tellResult(r, fmt.Sprintf("hold of %s %s", kind, args[1]))
	})
	cmd.AddCommand(release)
	return cmd
}

func (a *app) tellHolds(ctx context.Context) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	holds, err := c.ListHolds(ctx, a.fresh()...)
	if err != nil {
		return err
	}
	if a.format == formatJSON {
		return a.document(struct {
			Holds []holdJSON `json:"holds"`
		}{holdsOf(holds)})
	}
	t := a.table("KIND", "KEY", ">REMAINING", "BY", "WHY")
	for _, h := range holds {
		t.row(h.Kind, h.Key, age(h.Remaining), h.By, h.Why)
	}
	return t.end("nothing is on hold")
}

type heldJSON struct {
	Mailbox directory.MailboxName `json:"mailbox"`
	Server  directory.BackendName `json:"server"`
	State   string                `json:"state"`
	AgeMS   int64                 `json:"age_ms"`
}

func (a *app) withdrawalCmd() *cobra.Command {
	show := func(ctx context.Context, args []string) error {
		var server directory.BackendName
		if len(args) == 1 {
			var err error
			if server, err = directory.ParseBackend(args[0]); err != nil {
				return err
			}
		}
		c, err := a.connect()
		if err != nil {
			return err
		}
		return a.tellHeld(ctx, c, server)
	}
	cmd := &cobra.Command{
		Use:   "withdrawal",
		Short: "show and decide what backends withdrew in such numbers that nobody believes it",
		Long: `When a backend takes back more of its mailboxes in ten minutes than the guard lets pass,
or asserts as many that had been taken back, the directory says OK and does not believe it:
those facts are held. Withdrawals stay listed and answer HELD; returns stay out. An operator
looks at the backend and decides. Without arguments all that is held is shown.`,
		Example: `  rookeryctl withdrawal
  rookeryctl withdrawal list be1.example.org
  rookeryctl withdrawal reject be1.example.org`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return mustName(cmd, args)
			}
			return nil
		},
		ValidArgsFunction: none,
		RunE:              a.do(show),
	}
	cmd.AddCommand(&cobra.Command{
		Use:               "list [BACKEND]",
		Short:             "show what is held",
		Long:              `Shows the mailboxes that the guard holds, of one backend or of all.`,
		Example:           `  rookeryctl withdrawal list be1.example.org`,
		Args:              atMost("BACKEND"),
		ValidArgsFunction: firstOnly(a.backendNames()),
		RunE:              a.do(show),
	})
	for _, d := range []struct {
		verb, short, long string
		approve           bool
	}{
		{"approve", "believe a backend", "Believes a backend: what it withdrew goes, what it asserted again counts.", true},
		{"reject", "do not believe a backend", "Does not believe a backend: what it withdrew is active again, what it asserted again goes.", false},
	} {
		decide := &cobra.Command{
			Use:               d.verb + " BACKEND",
			Short:             d.short,
			Long:              d.long + "\nCarried out step by step; `rookeryctl status` shows the rest.",
			Example:           "  rookeryctl withdrawal " + d.verb + " be1.example.org",
			Args:              exactly("BACKEND"),
			ValidArgsFunction: firstOnly(a.backendNames()),
		}
		decide.RunE = a.do(func(ctx context.Context, args []string) error {
			server, err := directory.ParseBackend(args[0])
			if err != nil {
				return err
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			r, err := c.DecideHeld(ctx, server, d.approve)
			if err != nil {
				return err
			}
			if r.Effect == client.Unchanged && a.format != formatJSON {
				a.printf("nothing of %s is held (revision %d)\n", server, r.Revision)
				return nil
			}
			return a.tellResult(r, string(server))
		})
		cmd.AddCommand(decide)
	}
	return cmd
}

func (a *app) tellHeld(ctx context.Context, c *client.Client, server directory.BackendName) error {
	if a.format == formatJSON {
		out := a.array("held")
		for h, err := range c.ListHeld(ctx, server, a.fresh()...) {
			if err != nil {
				return err
			}
			if err := out.item(heldJSON{h.Mailbox, h.Server, h.State.String(), millis(h.Age)}); err != nil {
				return err
			}
		}
		return out.end(nil)
	}
	t := a.table("MAILBOX", "BACKEND", "STATE", ">AGE")
	for h, err := range c.ListHeld(ctx, server, a.fresh()...) {
		if err != nil {
			return err
		}
		t.row(h.Mailbox, h.Server, h.State, age(h.Age))
	}
	return t.end("nothing is held")
}
