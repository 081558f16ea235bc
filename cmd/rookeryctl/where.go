package main

import (
	"context"
	"fmt"
	"iter"
	"strings"

	"github.com/spf13/cobra"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
)

func (a *app) whereCmd() *cobra.Command {
	var user string
	var why bool
	cmd := &cobra.Command{
		Use:   "where {NAME | --user USER}",
		Short: "say where a mailbox is, and why",
		Long: `Says where a mailbox is, or with --user where the user's INBOX is. The answer is an
outcome: SERVING, MOVING, HELD, NOT_AT_PRIMARY, BACKEND_DOWN, ORPHANED_FORK, UNCONFIRMED,
INCOMPLETE or NOT_FOUND. Only NOT_FOUND says that there is no such mailbox. Whatever the
outcome, it is an answer: the exit code is 0.

--why adds what the answer comes from: every backend's fact, the replica group with its
primary and who moved it last, holds, a reservation, whether every backend has been
heard, and how old the answer is.`,
		Example: `  rookeryctl where user.alice
  rookeryctl where --user alice@example.org --why
  rookeryctl where user.alice.Sent -o json | jq -r .server`,
		Args:              atMost("NAME"),
		ValidArgsFunction: none,
	}
	cmd.Flags().StringVar(&user, "user", "", "ask for the INBOX of this `user`")
	cmd.Flags().BoolVar(&why, "why", false, "say what the answer comes from")
	cmd.RunE = a.do(func(ctx context.Context, args []string) error {
		named := cmd.Flags().Changed("user")
		if named == (len(args) == 1) {
			return usagef("%s: either NAME or --user", path(cmd))
		}
		c, err := a.connect()
		if err != nil {
			return err
		}
		var r client.Route
		var given string
		if named {
			var id directory.UserID
			if id, err = directory.ParseUser(user); err != nil {
				return err
			}
			r, err = c.LookupUser(ctx, id, a.fresh(client.Details())...)
		} else {
			var name directory.MailboxName
			if name, err = directory.ParseName(args[0]); err != nil {
				return err
			}
			given = args[0]
			r, err = c.Lookup(ctx, name, a.fresh(client.Details())...)
		}
		if err != nil {
			return err
		}
		var e *explanation
		if why {
			if e, err = a.explain(ctx, c, r); err != nil {
				return err
			}
		}
		if a.format == formatJSON {
			return a.document(whereOf(r, e))
		}
		a.tellRoute(r)
		if given != "" && !strings.Contains(given, ".") && r.Outcome >= directory.Unconfirmed && r.Server.Name == "" {
			a.printf("%s is taken as the name of a shared mailbox; a user's INBOX is `rookeryctl where --user %s`\n", given, given)
		}
		if e != nil {
			return a.tellWhy(r, e)
		}
		return nil
	})
	return cmd
}

// tellRoute prints a route as a table of one row, and what the outcome means
// where it is not plain.
func (a *app) tellRoute(r client.Route) {
	t := a.table("MAILBOX", "OUTCOME", "SERVER", "PARTITION", "GROUP", ">EPOCH")
	partition, epoch := "", ""
	if f := r.Fact(r.Server.Name); f != nil {
		partition = f.Partition
	}
	if r.Group != "" {
		epoch = fmt.Sprint(r.Epoch)
	}
	t.row(r.Mailbox, r.Outcome, r.Server.Name, partition, r.Group, epoch)
	t.end("")
	for _, line := range meaning(r) {
		a.printf("%s\n", plain(line))
	}
}

// meaning says in sentences what an outcome means for the mailbox.
func meaning(r client.Route) []string {
	var out []string
	say := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	switch r.Outcome {
	case directory.Moving:
		say("%s gave it up or is renaming it; ask again.", r.Server.Name)
	case directory.Held:
		if h := r.Hold; h != nil {
			say("A hold of %s %s covers it for another %s, by %s: %s", h.Kind, h.Key, age(h.Remaining), orDash(h.By), orDash(h.Why))
		} else {
			say("Its withdrawal is not believed yet; `rookeryctl withdrawal` decides.")
		}
	case directory.NotAtPrimary:
		say("The primary %s never had it; %s has.", r.Primary, r.Server.Name)
	case directory.BackendIsDown:
		say("%s holds it and is %s.", r.Server.Name, r.Server.State)
	case directory.OrphanedFork:
		say("Its home %s holds nothing of it, others do: `rookeryctl fork settle %s --keep SERVER`.", orDash(string(r.Group)), r.Mailbox)
	case directory.Unconfirmed:
		if r.Server.Name != "" {
			say("%s held it before the cluster was restored and has not been heard since.", r.Server.Name)
		} else {
			say("Nothing is known of the name, and that could not be confirmed: %s", orDash(r.Why))
		}
	case directory.Incomplete:
		if len(r.Missing) == 0 {
			say("Nothing is known of the name, for no backend has been heard yet: import a list, or assert something and confirm.")
		} else {
			say("Nothing is known of the name, but not every backend has been heard: %s.", join(r.Missing))
		}
	case directory.NotFound:
		if waiting := notAdmitted(r.Facts); len(waiting) > 0 {
			say("No backend that was admitted holds it; %s says that it does, and waits for `rookeryctl backends admit`.", join(waiting))
		} else {
			say("No backend holds it.")
		}
		if r.RecentlyRetracted {
			say("It was retracted minutes ago: delivery should answer \"later\".")
		}
	}
	if len(r.Missing) > 0 && r.Outcome != directory.Incomplete {
		say("Not heard yet: %s.", join(r.Missing))
	}
	if r.Forked {
		say("It is forked: backends outside its home hold it too (`rookeryctl forks`).")
	}
	if r.MovedFrom != "" {
		say("It was moved from %s %s ago.", r.MovedFrom, age(r.MovedAge))
	}
	if res := r.Reservation; res != nil {
		say("%s has reserved the name %s ago; that lapses in %s if nothing is heard.", res.Server, age(res.Age), age(res.Remaining))
	}
	return out
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// explanation is what a route comes from, besides itself.
type explanation struct {
	group  *client.Group // the home; nil if there is none
	holds  []client.Hold // that cover the mailbox
	status client.Status
}

// explain asks for it. Each answer is of its own revision.
func (a *app) explain(ctx context.Context, c *client.Client, r client.Route) (*explanation, error) {
	e := &explanation{}
	if r.Group != "" {
		groups, err := c.ListGroups(ctx, r.Group, a.fresh()...)
		if err != nil {
			return nil, err
		}
		e.group = &groups[0]
	}
	holds, err := c.ListHolds(ctx, a.fresh()...)
	if err != nil {
		return nil, err
	}
	for _, h := range holds {
		if covers(h, r) {
			e.holds = append(e.holds, h)
		}
	}
	e.status, err = c.Status(ctx, a.fresh()...)
	return e, err
}

// covers reports whether h is about r's mailbox.
func covers(h client.Hold, r client.Route) bool {
	switch h.Kind {
	case directory.HoldUser:
		owner, ok := r.Mailbox.Owner()
		return ok && string(owner) == h.Key
	case directory.HoldMailbox:
		name := directory.MailboxName(h.Key)
		return name == r.Mailbox || r.Mailbox.IsBelow(name)
	case directory.HoldBackend:
		return string(r.Primary) == h.Key
	case directory.HoldGroup:
		return string(r.Group) == h.Key
	}
	return false
}

// successor is the member that would serve the mailbox if the primary died: the
// first in order of preference that holds it. Empty if none does.
func (e *explanation) successor(r client.Route) directory.BackendName {
	if e.group == nil {
		return ""
	}
	for _, m := range e.group.Members {
		f := r.Fact(m)
		if m != e.group.Primary && f != nil && f.State == directory.Active && f.Standing == directory.InForce && f.Admitted {
			return m
		}
	}
	return ""
}

// tellWhy prints the explanation.
func (a *app) tellWhy(r client.Route, e *explanation) error {
	a.printf("\nFacts:\n")
	t := a.table("SERVER", "STATE", "STANDING", "HOME", "PARTITION", "TYPE", "ID", ">UIDVALIDITY", ">FIRST", ">LAST", ">AGE", "CONFIRMED", "ADMITTED")
	t.indent = "  "
	for _, f := range r.Facts {
		t.row(f.Server, f.State, f.Standing, yesNo(e.isMember(f.Server)), f.Partition, typeWord(f.Type), f.MailboxID, f.UIDValidity, f.First, f.Last, age(f.Age), yesNo(f.Confirmed), yesNo(f.Admitted))
	}
	if err := t.end("no backend has stated any"); err != nil {
		return err
	}
	for _, f := range r.Facts {
		if f.Server == r.ListedFrom {
			a.printf("\nListed from %s, with the ACL:\n", f.Server)
			t := a.table("IDENTIFIER", "RIGHTS")
			t.indent = "  "
			for identifier, rights := range aclEntries(f.ACL) {
				t.row(identifier, rights)
			}
			if err := t.end("empty: nobody sees it"); err != nil {
				return err
			}
		}
	}
	if r.ListedFrom == "" {
		a.printf("\nIt is not listed.\n")
	}

	if len(r.Server.Addresses) > 0 {
		a.printf("\n%s answers at %s.\n", r.Server.Name, addressWords(r.Server.Addresses))
	}
	if g := e.group; g != nil {
		a.printf("\nHome: group %s, epoch %d, mode %s; members %s; primary %s.\n", g.Name, g.Epoch, modeWord(g.Mode), join(g.Members), g.Primary)
		if n := len(g.History); n > 0 {
			s := g.History[n-1]
			a.printf("Last switchover: %s to %s, epoch %d, %s ago (%s), by %s: %s\n", s.From, s.To, s.Epoch, age(s.Age), orDash(stamp(s.Wall)), orDash(plain(s.By)), orDash(plain(s.Reason)))
		} else {
			a.printf("Last switchover: none is remembered.\n")
		}
		if next := e.successor(r); next != "" {
			a.printf("If the primary dies: %s holds it too.\n", next)
		} else {
			a.printf("If the primary dies: no other member holds it.\n")
		}
	} else {
		a.printf("\nHome: none.\n")
	}
	if len(e.holds) == 0 {
		a.printf("Holds: none cover it.\n")
	}
	for _, h := range e.holds {
		a.printf("Hold: %s %s for another %s, by %s: %s\n", h.Kind, plain(h.Key), age(h.Remaining), orDash(plain(h.By)), orDash(plain(h.Why)))
	}
	if r.Reservation == nil {
		a.printf("Reservation: none.\n")
	}
	if s := e.status; s.Complete {
		a.printf("Complete: yes, %d of %d backends have been heard.\n", s.BackendsConfirmed, s.BackendsCounted)
	} else {
		a.printf("Complete: no, %d of %d backends have been heard; missing: %s.\n", s.BackendsConfirmed, s.BackendsCounted, orDash(join(s.Missing)))
	}
	a.printf("Answered by %s at revision %d (%s), incarnation %d, age %s.\n", r.Node, r.Revision, lastChanged(r.Changed), r.Incarnation, age(r.Age))
	return nil
}

func (e *explanation) isMember(server directory.BackendName) bool {
	if e.group == nil {
		return false
	}
	for _, m := range e.group.Members {
		if m == server {
			return true
		}
	}
	return false
}

// aclEntries yields identifier and rights of an ACL as written.
func aclEntries(acl string) iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		for acl != "" {
			var identifier, rights string
			identifier, acl, _ = strings.Cut(acl, "\t")
			rights, acl, _ = strings.Cut(acl, "\t")
			if !yield(identifier, rights) {
				return
			}
		}
	}
}

type whereJSON struct {
	routeJSON
	*whyJSON
	Answer answerJSON `json:"answer"`
}

type whyJSON struct {
	Group         *groupJSON            `json:"replica_group,omitempty"`
	Holds         []holdJSON            `json:"holds"`
	Completeness  completenessJSON      `json:"completeness"`
	IfPrimaryDies directory.BackendName `json:"if_primary_dies"`
}

type completenessJSON struct {
	Complete  bool                    `json:"complete"`
	Confirmed int                     `json:"confirmed"`
	Counted   int                     `json:"counted"`
	Missing   []directory.BackendName `json:"missing"`
}

func completenessOf(s client.Status) completenessJSON {
	return completenessJSON{s.Complete, s.BackendsConfirmed, s.BackendsCounted, list(s.Missing)}
}

// list is a list that is never null in JSON.
func list[T any](items []T) []T {
	if items == nil {
		return []T{}
	}
	return items
}

func whereOf(r client.Route, e *explanation) whereJSON {
	out := whereJSON{routeJSON: routeOf(r), Answer: answerOf(r.Answer)}
	if e == nil {
		return out
	}
	out.whyJSON = &whyJSON{Holds: holdsOf(e.holds), Completeness: completenessOf(e.status), IfPrimaryDies: e.successor(r)}
	if e.group != nil {
		out.whyJSON.Group = new(groupOf(*e.group))
	}
	return out
}

// notAdmitted lists the backends that state a mailbox and do not count.
func notAdmitted(facts []client.Fact) []directory.BackendName {
	var names []directory.BackendName
	for _, f := range facts {
		if !f.Admitted {
			names = append(names, f.Server)
		}
	}
	return names
}

func lastChanged(rev directory.Revision) string {
	if rev == 0 {
		return "nothing is known of the mailbox"
	}
	return fmt.Sprintf("the mailbox last changed at %d", rev)
}
