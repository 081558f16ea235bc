package main

import (
	"context"
	"encoding/base64"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
)

// watchFlags are the command line of watch.
type watchFlags struct {
	prefix, server, user, from string
	details, once              bool
	progress                   time.Duration
}

func (a *app) watchCmd() *cobra.Command {
	var f watchFlags
	cmd := &cobra.Command{
		Use:   "watch",
		Short: "show what there is, and then what changes as it changes",
		Long: `Prints a line for each thing that there is, and then one whenever something changes, with
what it is now: mailboxes, reservations, subscriptions, backends, groups, holds, settings.
Several changes of one thing may be one line. A backend, group or hold stands for all the
mailboxes whose routes it changes: these are not printed again.
--prefix, --server and --user, one of them, print only what they cover. It goes on by itself
when a node ends. When the directory no longer has the changes since it was last told
something, it says "reset" and prints everything anew.
^C ends it, and tells the token from which --from goes on later without a gap.`,
		Example: `  rookeryctl watch --prefix user.alice
  rookeryctl watch --server be1.example.org -o json | jq -c 'select(.event == "mailbox")'
  rookeryctl watch --from AQJj...`,
		Args:              exactly(),
		ValidArgsFunction: none,
	}
	flags := cmd.Flags()
	flags.StringVar(&f.prefix, "prefix", "", "mailboxes and reservations whose names begin with `PREFIX`")
	flags.StringVar(&f.server, "server", "", "mailboxes of which this `backend` has a fact, and its reservations")
	flags.StringVar(&f.user, "user", "", "what is this user's, `id[@domain]`: mailboxes, reservations, subscriptions")
	flags.StringVar(&f.from, "from", "", "only what changed after this `token`, of an earlier watch of the same")
	flags.BoolVar(&f.details, "details", false, "with what each backend stated")
	flags.BoolVar(&f.once, "once", false, "end when all there is, or all since --from, is printed")
	flags.DurationVar(&f.progress, "progress", 0, "how long there may be no mark (-o json shows them); 0: the node's choice")
	complete(cmd, "server", a.backendNames())
	cmd.RunE = a.do(func(ctx context.Context, _ []string) error { return a.watch(ctx, f) })
	return cmd
}

func (a *app) watch(ctx context.Context, f watchFlags) error {
	q := client.WatchQuery{Prefix: f.prefix, Server: directory.BackendName(f.server), User: directory.UserID(f.user), Details: f.details, Progress: f.progress}
	if strings.Count(fmt.Sprint(f.prefix != "", f.server != "", f.user != ""), "true") > 1 {
		return usagef("watch: only one of --prefix, --server and --user")
	}
	if f.from != "" {
		var err error
		if q.From, err = base64.RawURLEncoding.DecodeString(f.from); err != nil {
			return usagef("--from: that is no token; watch prints them when it ends")
		}
	}
	c, err := a.connect()
	if err != nil {
		return err
	}
	w := &watchPrinter{a: a, details: f.details, backends: map[directory.ServerID]directory.BackendName{}, groups: map[directory.GroupID]directory.GroupName{}}
	if q.From != nil {
		// What stood still since then is not told.
		if err := w.names(ctx, c); err != nil {
			return err
		}
	}
	token := f.from
	ended := func() {
		if token != "" {
			a.note("go on with --from %s", token)
		}
	}
	for u, err := range c.Watch(ctx, q, a.fresh()...) {
		if err != nil {
			if interrupted(ctx) {
				ended()
				return nil
			}
			return err
		}
		if err := w.update(u); err != nil {
			return err
		}
		if u.Mark {
			token = base64.RawURLEncoding.EncodeToString(u.Token)
			if f.once {
				ended()
				return nil
			}
		}
	}
	return nil
}

// watchPrinter prints updates.
type watchPrinter struct {
	a        *app
	details  bool
	begun    bool
	backends map[directory.ServerID]directory.BackendName
	groups   map[directory.GroupID]directory.GroupName
}

// names asks what the backends and groups are called.
func (w *watchPrinter) names(ctx context.Context, c *client.Client) error {
	backends, err := c.ListBackends(ctx, "", w.a.fresh()...)
	if err != nil {
		return err
	}
	for _, b := range backends {
		w.backends[b.ID] = b.Name
	}
	groups, err := c.ListGroups(ctx, "", w.a.fresh()...)
	for _, g := range groups {
		w.groups[g.ID] = g.Name
	}
	return err
}

func (w *watchPrinter) update(u client.WatchUpdate) error {
	for i := range u.Events { // before they are named
		switch e := &u.Events[i]; e.Kind {
		case client.WatchBackend:
			w.backends[e.Backend.ID] = e.Backend.Name
		case client.WatchGroup:
			w.groups[e.Group.ID] = e.Group.Name
		}
	}
	if u.Reset && w.begun {
		if err := w.line(watchJSON{Event: "reset", Revision: u.Revision}, "reset: what was printed before may no longer be so"); err != nil {
			return err
		}
	}
	w.begun = true
	for i := range u.Events {
		j, text := w.event(&u.Events[i])
		j.Revision, j.Listing = u.Revision, u.Listing
		if err := w.line(j, text); err != nil {
			return err
		}
	}
	if u.Mark && w.a.format == formatJSON {
		token := base64.RawURLEncoding.EncodeToString(u.Token)
		if err := w.line(watchJSON{Event: "mark", Revision: u.Revision, Listing: u.Listing, Token: token}, ""); err != nil {
			return err
		}
	}
	return w.a.stdout.Flush()
}

// line prints one event, as a JSON document on a line or as words.
func (w *watchPrinter) line(j watchJSON, text string) error {
	if w.a.format != formatJSON {
		w.a.printf("%s\n", plain(text))
		return nil
	}
	b, err := encode(j)
	if err != nil {
		return err
	}
	_, err = w.a.stdout.Write(append(b, '\n'))
	return err
}

// watchJSON is one line of watch -o json.
type watchJSON struct {
	Event    string             `json:"event"`
	Revision directory.Revision `json:"revision"`
	Listing  bool               `json:"listing"`
	Gone     bool               `json:"gone"`
	Token    string             `json:"token,omitempty"`

	Mailbox     directory.MailboxName   `json:"mailbox,omitempty"`
	Outcome     string                  `json:"outcome,omitempty"`
	Server      directory.BackendName   `json:"server,omitempty"`
	Group       directory.GroupName     `json:"group,omitempty"`
	Forked      bool                    `json:"forked,omitempty"`
	ListedFrom  directory.BackendName   `json:"listed_from,omitempty"`
	NewName     directory.MailboxName   `json:"new_name,omitempty"`
	RetractedBy directory.BackendName   `json:"retracted_by,omitempty"`
	Partition   string                  `json:"partition,omitempty"`
	Facts       []watchFactJSON         `json:"facts,omitempty"`
	User        directory.UserID        `json:"user,omitempty"`
	State       string                  `json:"state,omitempty"`
	Admitted    bool                    `json:"admitted,omitempty"`
	Confirmed   bool                    `json:"confirmed,omitempty"`
	Primary     directory.BackendName   `json:"primary,omitempty"`
	Epoch       uint64                  `json:"epoch,omitempty"`
	Members     []directory.BackendName `json:"members,omitempty"`
	MergedInto  directory.GroupName     `json:"merged_into,omitempty"`
	Kind        string                  `json:"kind,omitempty"`
	Key         string                  `json:"key,omitempty"`
	Why         string                  `json:"why,omitempty"`
	By          string                  `json:"by,omitempty"`
	Settings    map[string]any          `json:"settings,omitempty"`
}

type watchFactJSON struct {
	Server        directory.BackendName `json:"server"`
	State         string                `json:"state"`
	Standing      string                `json:"standing"`
	FirstRevision directory.Revision    `json:"first_revision"`
	LastRevision  directory.Revision    `json:"last_revision"`
	Partition     string                `json:"partition,omitempty"`
	ACL           []aclJSON             `json:"acl,omitempty"`
	MailboxID     string                `json:"mailbox_id,omitempty"`
	UIDValidity   uint32                `json:"uidvalidity,omitempty"`
	Type          string                `json:"type,omitempty"`
	SpecialUse    string                `json:"special_use,omitempty"`
}

// event says what e tells, for programs and for people.
func (w *watchPrinter) event(e *client.WatchEvent) (j watchJSON, text string) {
	j = watchJSON{Event: e.Kind.String(), Gone: e.Gone}
	gone := func(rest string) string {
		if e.Gone {
			return "gone"
		}
		return rest
	}
	switch e.Kind {
	case client.WatchMailbox:
		m := e.Mailbox
		j.Mailbox, j.NewName, j.RetractedBy = m.Name, m.NewName, w.backends[m.RetractedBy]
		if e.Gone {
			text = "mailbox " + string(m.Name) + " gone"
			switch {
			case m.NewName != "":
				text += ", renamed to " + string(m.NewName)
			case j.RetractedBy != "":
				text += ", retracted by " + string(j.RetractedBy)
			}
			return j, text
		}
		j.Outcome, j.Server, j.Group = m.Outcome.String(), w.backends[m.Server], w.groups[m.Home]
		j.Forked, j.ListedFrom = m.Forked, w.backends[m.ListedFrom]
		text = strings.TrimRight(fmt.Sprintf("mailbox %s %s %s", m.Name, j.Outcome, j.Server), " ")
		if m.Forked {
			text += " forked"
		}
		for i := range m.Facts {
			f := &m.Facts[i]
			one := watchFactJSON{
				Server: w.backends[f.Server], State: f.State.String(), Standing: f.Standing.String(), FirstRevision: f.First, LastRevision: f.Last,
				Partition: f.Partition, MailboxID: f.MailboxID, UIDValidity: f.UIDValidity, SpecialUse: f.SpecialUse,
			}
			if w.details {
				one.Type = typeWord(f.Type)
				for identifier, rights := range aclEntries(f.ACL) {
					one.ACL = append(one.ACL, aclJSON{identifier, rights})
				}
				text += fmt.Sprintf(" [%s!%s %s %s %q]", one.Server, f.Partition, one.State, one.Standing, f.ACL)
			}
			j.Facts = append(j.Facts, one)
		}
	case client.WatchReservation:
		j.Mailbox, j.Server, j.Partition = e.Reservation.Mailbox, w.backends[e.Reservation.Server], e.Reservation.Partition
		text = fmt.Sprintf("reservation %s %s", j.Mailbox, gone(string(j.Server)))
	case client.WatchSubscription:
		j.User, j.Mailbox = e.Subscription.User, e.Subscription.Mailbox
		text = strings.TrimRight(fmt.Sprintf("subscription %s %s %s", j.User, j.Mailbox, gone("")), " ")
	case client.WatchBackend:
		b := e.Backend
		j.Server, j.Group, j.State, j.Admitted = b.Name, w.groups[b.Group], b.State.String(), b.Admitted
		j.Confirmed = b.Confirmed != directory.ByNobody
		text = fmt.Sprintf("backend %s %s", b.Name, j.State)
		if !b.Admitted {
			text += ", not admitted"
		}
	case client.WatchGroup:
		g := e.Group
		j.Group, j.Primary, j.Epoch, j.MergedInto = g.Name, w.backends[g.Primary], g.Epoch, w.groups[g.MergedInto]
		text = fmt.Sprintf("group %s primary %s epoch %d", g.Name, j.Primary, g.Epoch)
		if g.MergedInto != 0 {
			text = fmt.Sprintf("group %s merged into %s", g.Name, j.MergedInto)
		}
		for _, id := range g.Members {
			j.Members = append(j.Members, w.backends[id])
		}
	case client.WatchHold:
		h := e.Hold
		j.Kind, j.Key, j.Why, j.By = h.Kind.String(), h.Key, h.Why, h.By
		text = fmt.Sprintf("hold %s %s %s", h.Kind, h.Key, gone(fmt.Sprintf("by %s: %s", h.By, h.Why)))
	case client.WatchSettings:
		j.Settings = make(map[string]any)
		for _, s := range settingsKnown() {
			name, value := s.jsonField(*e.Settings)
			j.Settings[name] = value
		}
		text = "settings"
	}
	return j, text
}
