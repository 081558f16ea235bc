package main

import (
	"context"
	"errors"
	"iter"

	"github.com/spf13/cobra"

	"github.com/rookery-mail/rookery/adapter/cyrus"
	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
)

func (a *app) exportCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "export",
		Short: "export what the directory knows in the formats of Cyrus",
		Long:  `Writes what the directory knows in the formats of Cyrus.`,
		RunE:  mustName,
	}
	cmd.AddCommand(a.exportCyrusCmd())
	return cmd
}

func (a *app) exportCyrusCmd() *cobra.Command {
	var server string
	var text bool
	cmd := &cobra.Command{
		Use:   "cyrus [--server BACKEND]",
		Short: "write a Cyrus mailbox list, as ctl_mboxlist -d does",
		Long: `Writes a mailbox list as ctl_mboxlist -d does, to standard output: with --server that
backend's own list, else the list of a frontend, in which each mailbox names the backend that
takes its sessions. What import cyrus reads back into an empty directory is the same.

The directory does not know all that Cyrus writes: mtime, modseqs and the history of names
are written as 0 and empty. ctl_mboxlist -u of Cyrus 3.6 takes no record without a uniqueid,
which the directory has only where a backend or its list has stated it.

A list that ends in an error (exit code 3) is not whole: in JSON its end is missing too.`,
		Example: `  rookeryctl export cyrus > frontend.json
  rookeryctl export cyrus --server be1.example.org > be1.json
  rookeryctl export cyrus --server be1.example.org --text > be1.txt`,
		Args:              exactly(),
		ValidArgsFunction: none,
	}
	cmd.Flags().StringVar(&server, "server", "", "the `backend` whose own list to write")
	cmd.Flags().BoolVar(&text, "text", false, "in the text format of Cyrus before 3.6")
	complete(cmd, "server", a.backendNames())
	cmd.RunE = a.do(func(ctx context.Context, _ []string) error {
		var q client.FindQuery
		if cmd.Flags().Changed("server") {
			var err error
			if q.Server, err = directory.ParseBackend(server); err != nil {
				return err
			}
		}
		format := cyrus.JSON
		if text {
			format = cyrus.Text
		}
		c, err := a.connect()
		if err != nil {
			return err
		}
		if q.Server != "" {
			// Else a misspelt name would look like a backend that holds nothing.
			if _, err := c.ListBackends(ctx, q.Server, a.fresh()...); err != nil {
				return err
			}
		}
		return a.export(c.FindAll(ctx, q, a.fresh()...), q.Server, format)
	})
	return cmd
}

// export writes a list; server "" makes it a frontend's.
func (a *app) export(mailboxes iter.Seq2[client.Route, error], server directory.BackendName, format cyrus.Format) error {
	w, err := cyrus.NewWriter(a.stdout, format)
	if err != nil {
		return err
	}
	left, refused := 0, 0
	for r, err := range mailboxes {
		if err != nil {
			return err
		}
		rec, ok := recordOf(&r, server)
		if !ok {
			left++
			continue
		}
		err = w.Write(&rec)
		if lost, ok := errors.AsType[*cyrus.RefusedError](err); ok {
			refused++
			a.note("left out: %s", plain(lost.Error()))
		} else if err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	if left > 0 {
		a.note("left out: %s without a fact that counts (`rookeryctl find` shows them)", mailboxCount(left))
	}
	if refused > 0 {
		return refusedf("%s left out, because the format cannot hold them: the list is not whole", mailboxCount(refused))
	}
	return nil
}

// recordOf is a mailbox as a list has it; false if that list does not have it.
func recordOf(r *client.Route, server directory.BackendName) (cyrus.Record, bool) {
	from := server
	if from == "" {
		if from = r.ListedFrom; from == "" {
			from = r.Server.Name
		}
	}
	f := r.Fact(from)
	if f == nil || f.Standing != directory.InForce || f.State == directory.HeldReturn {
		return cyrus.Record{}, false
	}
	rec := cyrus.Record{
		Name: r.Mailbox, Partition: f.Partition, HasPartition: true, ACL: f.ACL, UniqueID: f.MailboxID, UIDValidity: f.UIDValidity,
		Type: f.Type, SpecialUse: f.SpecialUse,
	}
	if f.State == directory.Deactivated {
		rec.Flags |= cyrus.Moving
	}
	if server == "" {
		rec.Server = f.Server
		rec.Flags |= cyrus.Remote
	}
	return rec, true
}
