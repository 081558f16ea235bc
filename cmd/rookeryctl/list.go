package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
)

func (a *app) listCmd() *cobra.Command {
	var id identity
	var q client.ListQuery
	var returned []string
	cmd := &cobra.Command{
		Use:   "list --user USER PATTERN...",
		Short: "list what a user sees, as an IMAP server would",
		Long: `Lists the mailboxes that a user may see and whose names match: IMAP's LIST, with the
options of RFC 5258, and LSUB. Reference, patterns and answers are in client form. * is any
run of characters, % any without the separator; quote them for the shell.

-o imap prints each row as an IMAP server sends it after "* LIST ".

A listing is whole, or an error. If not every backend has been heard, that is said on
standard error (and as "complete" in JSON).`,
		Example: `  rookeryctl list --user alice '*'
  rookeryctl list --user alice --altnamespace --unixhierarchysep -o imap '%' 'Other Users/%'
  rookeryctl list --user alice --acl-groups staff,sales --return subscribed,myrights '*'
  rookeryctl list --user alice --subscribed --recursivematch -o imap '%'
  rookeryctl list --admin 'user.a%'`,
		Args:              atLeastOne("PATTERN"),
		ValidArgsFunction: none,
		Annotations:       map[string]string{annotationFormats: formatIMAP},
	}
	id.flags(cmd)
	f := cmd.Flags()
	f.StringVarP(&a.format, "output", "o", formatTable, "print as `table|json|imap`")
	fixed(cmd, "output", formatTable, formatJSON, formatIMAP)
	f.StringVar(&q.Reference, "reference", "", "put this `text` before each pattern")
	f.BoolVar(&q.Select.Subscribed, "subscribed", false, "select the user's subscriptions, existing or not")
	f.BoolVar(&q.Select.RecursiveMatch, "recursivematch", false, "select also names above what is selected")
	f.BoolVar(&q.Select.SpecialUse, "special-use", false, "select mailboxes with a special use")
	f.StringSliceVar(&returned, "return", nil, "return also `what,...`: subscribed, children, special-use, myrights")
	f.BoolVar(&q.LSUB, "lsub", false, "answer as to LSUB")
	fixed(cmd, "return", "subscribed", "children", "special-use", "myrights")
	cmd.MarkFlagsMutuallyExclusive("lsub", "subscribed")
	cmd.MarkFlagsMutuallyExclusive("lsub", "recursivematch")
	cmd.MarkFlagsMutuallyExclusive("lsub", "special-use")
	cmd.RunE = a.do(func(ctx context.Context, args []string) error {
		var err error
		if q.Principal, err = id.principal(); err != nil {
			return err
		}
		if q.Return, err = parseReturn(returned); err != nil {
			return err
		}
		q.Extended = len(returned) > 0
		q.Namespace, q.Patterns = id.namespace(), args
		c, err := a.connect()
		if err != nil {
			return err
		}
		return a.list(ctx, c, q)
	})
	return cmd
}

func parseReturn(words []string) (client.ListReturn, error) {
	var r client.ListReturn
	for _, w := range words {
		switch strings.ToLower(w) {
		case "subscribed":
			r.Subscribed = true
		case "children":
			r.Children = true
		case "special-use":
			r.SpecialUse = true
		case "myrights":
			r.MyRights = true
		default:
			return r, usagef("--return %s: it is subscribed, children, special-use or myrights", w)
		}
	}
	return r, nil
}

type rowJSON struct {
	Name            string                `json:"name"`
	Mailbox         directory.MailboxName `json:"mailbox"`
	Attributes      []string              `json:"attributes"`
	SpecialUse      string                `json:"special_use"`
	Rights          string                `json:"rights,omitempty"`
	ChildSubscribed bool                  `json:"child_subscribed"`
	Server          directory.BackendName `json:"server"`
	Outcome         string                `json:"outcome,omitempty"`
}

type listingJSON struct {
	Separator string                  `json:"separator"`
	Complete  bool                    `json:"complete"`
	Missing   []directory.BackendName `json:"missing"`
	Answer    answerJSON              `json:"answer"`
}

// list asks for a listing and prints it row by row as it comes: it may be as
// long as the site. What was printed before an error is no answer, which the
// exit code says.
func (a *app) list(ctx context.Context, c *client.Client, q client.ListQuery) error {
	var each func(client.ListRow) error
	var end func(client.Listing) error
	switch a.format {
	case formatIMAP:
		sep := string(rune(q.Namespace.Sep))
		each = func(r client.ListRow) error { return writeIMAPRow(a.stdout, r, sep) }
		end = func(client.Listing) error { return nil }
	case formatJSON:
		out := a.array("rows")
		each = func(r client.ListRow) error { return out.item(rowOf(r)) }
		end = func(l client.Listing) error {
			return out.end(listingJSON{l.Separator, l.Complete, list(l.Missing), answerOf(l.Answer)})
		}
	default:
		head := []string{"NAME", "ATTRIBUTES"}
		if q.Return.MyRights {
			head = append(head, "RIGHTS")
		}
		t := a.table(append(head, "SERVER", "OUTCOME", "MAILBOX")...)
		each = func(r client.ListRow) error {
			cells := []any{r.Name, attributes(r)}
			if q.Return.MyRights {
				cells = append(cells, r.Rights)
			}
			outcome := ""
			if r.Outcome != 0 {
				outcome = r.Outcome.String()
			}
			t.row(append(cells, r.Server, outcome, r.Mailbox)...)
			return nil
		}
		end = func(client.Listing) error { return t.end("no mailbox matches") }
	}

	q.Return.Location = a.format != formatIMAP
	ctx, first, cancel := a.until(ctx)
	defer cancel()
	l, err := c.ListEach(ctx, q, func(r client.ListRow) error { first(); return each(r) }, a.fresh()...)
	if err != nil {
		return err
	}
	if err := end(l); err != nil {
		return err
	}
	if !l.Complete {
		a.stdout.Flush()
		a.note("not every backend has been heard (%s): mailboxes may be missing from this list", orDash(join(l.Missing)))
	}
	return nil
}

// until bounds by --timeout how long a stream may take to begin; first says that
// it has.
func (a *app) until(ctx context.Context) (_ context.Context, first, cancel func()) {
	if a.timeout <= 0 {
		return ctx, func() {}, func() {}
	}
	ctx, end := context.WithCancelCause(ctx)
	t := time.AfterFunc(a.timeout, func() { end(context.DeadlineExceeded) })
	return ctx, func() { t.Stop() }, func() { t.Stop(); end(nil) }
}

func rowOf(r client.ListRow) rowJSON {
	out := rowJSON{
		Name: r.Name, Mailbox: r.Mailbox, Attributes: []string{}, SpecialUse: r.SpecialUse, Rights: r.Rights.String(),
		ChildSubscribed: r.ChildSubscribed, Server: r.Server,
	}
	for _, at := range r.Attributes {
		out.Attributes = append(out.Attributes, at.String())
	}
	if r.Outcome != 0 {
		out.Outcome = r.Outcome.String()
	}
	return out
}

// attributes are those of a LIST response, without its parentheses.
func attributes(r client.ListRow) string {
	words := make([]string, 0, len(r.Attributes)+1)
	for _, at := range r.Attributes {
		if s := at.String(); s != "" { // one of a later release
			words = append(words, s)
		}
	}
	if r.SpecialUse != "" {
		words = append(words, r.SpecialUse)
	}
	return strings.Join(words, " ")
}

// writeIMAPRow prints a row as an IMAP server sends it after "* LIST ".
//
// RFC 9051 7.3.1; CHILDINFO: RFC 5258 6, whose tag may stand without quotes, as
// Cyrus has it; MYRIGHTS follows in a response of its own: RFC 8440 3.
func writeIMAPRow(w io.Writer, r client.ListRow, sep string) error {
	name := directory.QuoteAString(r.Name)
	line := fmt.Sprintf("(%s) \"%s\" %s", attributes(r), sep, name)
	if r.ChildSubscribed {
		line += ` (CHILDINFO ("SUBSCRIBED"))`
	}
	if r.Rights != 0 {
		line += "\nMYRIGHTS " + name + " " + r.Rights.String()
	}
	_, err := io.WriteString(w, line+"\n")
	return err
}

func (a *app) rightsCmd() *cobra.Command {
	var id identity
	cmd := &cobra.Command{
		Use:   "rights --user USER NAME...",
		Short: "say what a user may do with a mailbox, as MYRIGHTS",
		Long: `Prints the rights of a user on mailboxes, named in client form, as an IMAP server
answers MYRIGHTS: the name, then the rights, the owner's implicit ones included. The exit
code is 1 if there is one that the user may not know of, or that is not there: IMAP makes
no difference.`,
		Example: `  rookeryctl rights --user alice INBOX
  rookeryctl rights --user gina --acl-groups staff archive
  rookeryctl rights --user alice --altnamespace --unixhierarchysep 'Other Users/bob/Shared'`,
		Args:              atLeastOne("NAME"),
		ValidArgsFunction: none,
	}
	id.flags(cmd)
	cmd.RunE = a.do(func(ctx context.Context, args []string) error {
		who, err := id.principal()
		if err != nil {
			return err
		}
		ns := id.namespace()
		c, err := a.connect()
		if err != nil {
			return err
		}
		var rows []rightsJSON
		var hidden []error
		for _, name := range args {
			r, err := c.Rights(ctx, client.RightsQuery{Principal: who, ClientName: name, Namespace: ns}, a.fresh()...)
			if err != nil {
				return err
			}
			rows = append(rows, rightsJSON{name, r.Mailbox, r.Outcome.String(), r.Rights.String(), r.Visible})
			if !r.Visible {
				hidden = append(hidden, unseen(id.user, name, r))
			} else if a.format != formatJSON {
				a.printf("%s %s\n", directory.QuoteAString(name), r.Rights)
			}
		}
		if a.format == formatJSON {
			if err := a.document(struct {
				Rights []rightsJSON `json:"rights"`
			}{rows}); err != nil {
				return err
			}
		}
		for i, err := range hidden {
			if i == len(hidden)-1 {
				return err
			}
			a.note("%v", err)
		}
		return nil
	})
	return cmd
}

type rightsJSON struct {
	Name    string                `json:"name"`
	Mailbox directory.MailboxName `json:"mailbox"`
	Outcome string                `json:"outcome"`
	Rights  string                `json:"rights"`
	Visible bool                  `json:"visible"`
}

// unseen says why there are no rights to print.
func unseen(user, name string, r client.RightsAnswer) error {
	unknown := []directory.Outcome{directory.Unconfirmed, directory.Incomplete, directory.OrphanedFork}
	switch {
	case r.Outcome == directory.NotFound:
		return refusedf("%s: there is no such mailbox", plain(name))
	case slices.Contains(unknown, r.Outcome):
		return refusedf("%s: its rights are not known (%v); `rookeryctl where %s --why` says more", plain(name), r.Outcome, r.Mailbox)
	}
	return refusedf("%s: %s may not know of it; an IMAP server says that it does not exist", plain(name), orDash(user))
}
