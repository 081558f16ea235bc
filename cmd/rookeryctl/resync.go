package main

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
)

func (a *app) resyncCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "resync",
		Short: "bring the directory up to date with a backend's own list",
		Long: `Compares a backend's own list with what the directory has of it, and mends the directory:
for a backend that was away, or whose word was lost. It costs what differs.

Take a token, then the list, then apply it:

  TOKEN=$(rookeryctl resync begin --server be1.example.org)
  ctl_mboxlist -d > be1.json          # on be1
  rookeryctl resync diff  --server be1.example.org --dump be1.json --as-of $TOKEN
  rookeryctl resync apply --server be1.example.org --dump be1.json --as-of $TOKEN

The backend may serve meanwhile: what changed after the token waits for the next resync,
and is not overwritten by an older list.`,
		RunE: mustName,
	}
	cmd.AddCommand(a.resyncBeginCmd(), a.resyncDiffCmd(), a.resyncApplyCmd())
	return cmd
}

// beginJSON is what a resync begins with.
type beginJSON struct {
	Server    directory.BackendName `json:"server"`
	Token     string                `json:"token"`
	Known     bool                  `json:"known"`
	Facts     uint64                `json:"facts"`
	Confirmed bool                  `json:"confirmed"`
	Held      bool                  `json:"held"`
	Answer    answerJSON            `json:"answer"`
}

func (a *app) resyncBeginCmd() *cobra.Command {
	var server string
	cmd := &cobra.Command{
		Use:   "begin --server BACKEND",
		Short: "print the token to take before a backend's list is taken",
		Long: `Prints a token that stands for the state of the directory now. Take it before the backend's
list is taken, and give it to "resync apply": what changes in between is younger than the
list may know, and is left alone. A token is good until the cluster is restored; the older
it is, the more waits.`,
		Example: `  TOKEN=$(rookeryctl resync begin --server be1.example.org)`,
		Args:    exactly(), ValidArgsFunction: none,
	}
	cmd.Flags().StringVar(&server, "server", "", "the `backend` whose list will be taken")
	complete(cmd, "server", a.backendNames())
	required(cmd, "server")
	cmd.RunE = a.do(func(ctx context.Context, _ []string) error {
		name, err := directory.ParseBackend(server)
		if err != nil {
			return err
		}
		c, err := a.connect()
		if err != nil {
			return err
		}
		// What was acknowledged before is of before, so it must be seen.
		t, err := c.Totals(ctx, name, nil, client.Linearizable())
		if err != nil {
			return err
		}
		if !t.Known {
			a.note("no backend is called %s yet; the resync makes it known, if that is its name", name)
		}
		token := base64.RawURLEncoding.EncodeToString(t.Token)
		if a.format == formatJSON {
			return a.document(beginJSON{name, token, t.Known, t.Count, t.Confirmed, t.Held, answerOf(t.Answer)})
		}
		a.printf("%s\n", token)
		return nil
	})
	return cmd
}

// resyncFlags are what diff and apply have in common.
type resyncFlags struct {
	server, dump, asOf string
	whole              bool
}

func (f *resyncFlags) add(a *app, cmd *cobra.Command) {
	cmd.Args, cmd.ValidArgsFunction = exactly(), none
	cmd.Flags().StringVar(&f.server, "server", "", "the `backend` whose list it is")
	cmd.Flags().StringVar(&f.dump, "dump", "", "its list, a `file` as ctl_mboxlist -d writes it; - is standard input")
	cmd.Flags().StringVar(&f.asOf, "as-of", "", "the `token` of resync begin, from before the list was taken")
	cmd.Flags().BoolVar(&f.whole, "whole", false, "the text list is whole: what it has not beyond its last line is not there")
	complete(cmd, "server", a.backendNames())
	required(cmd, "server", "dump")
}

// begin reads the flags and goes over the list once.
func (f *resyncFlags) begin(ctx context.Context, a *app) (*resyncRun, error) {
	run := &resyncRun{a: a, show: a.progress()}
	var err error
	if run.ask.Server, err = directory.ParseBackend(f.server); err != nil {
		return nil, err
	}
	if f.asOf != "" {
		if run.ask.AsOf, err = base64.RawURLEncoding.DecodeString(f.asOf); err != nil || len(run.ask.AsOf) == 0 {
			return nil, usagef("--as-of: that is no token; `rookeryctl resync begin` prints one")
		}
	}
	if run.c, err = a.connect(); err != nil {
		return nil, err
	}
	run.list, err = a.openOwnList(ctx, f.dump, run.ask.Server, f.whole, run.show)
	if err != nil {
		return nil, err
	}
	run.ask.List, run.ask.Keep, run.ask.Partial = run.list.own(), run.list.keep, run.list.partial()
	if run.list.nameless {
		run.ask.Keep = nil
	}
	return run, nil
}

const wholeNote = `
A text list has no end mark, and one that was cut off behind a line looks whole. So what
the directory has beyond the last line of a text list is kept, unless --whole says that the
list is whole.`

func (a *app) resyncDiffCmd() *cobra.Command {
	var f resyncFlags
	cmd := &cobra.Command{
		Use:   "diff --server BACKEND --dump FILE [--as-of TOKEN]",
		Short: "report how a backend's list and the directory differ",
		Long: `Reports how a backend's own list differs from what the directory has of it, and changes
nothing: a line for each mailbox that "resync apply" would add, change or retract, that
waits because it changed after the token, or that is kept because the list may not know.
Exit code 1 if there is any.

Without --as-of nobody knows what is younger than the list: only what the directory has
nothing of would be added, and the rest waits.
` + wholeNote,
		Example: `  rookeryctl resync diff --server be1.example.org --dump be1.json --as-of $TOKEN`,
	}
	f.add(a, cmd)
	cmd.RunE = a.do(func(ctx context.Context, _ []string) error {
		run, err := f.begin(ctx, a)
		if err != nil {
			return err
		}
		defer run.list.close()
		run.ask.DryRun = true
		return run.run(ctx)
	})
	return cmd
}

func (a *app) resyncApplyCmd() *cobra.Command {
	var f resyncFlags
	var withdraw, forks bool
	cmd := &cobra.Command{
		Use:   "apply --server BACKEND --dump FILE --as-of TOKEN",
		Short: "make the directory say what a backend's list says",
		Long: `Makes the directory say of a backend what its own list says: adds, changes and retracts
what differs, each only if it has not changed since the token. What did waits for a resync
with a later token and list; the directory has the younger word of it.

The backend is then marked as resynced: its list is known whole. It is not if a record was
refused, something is kept or held, or nothing is known of when the list was taken.

Without --as-of it only adds what the directory knows nothing of, and reports the rest.

A retraction takes back that backend's copy alone: other members of its group keep theirs,
and a mailbox that the primary has lost routes as NOT_AT_PRIMARY, not as NOT_FOUND.

If the list lacks all that the directory has, most of it, or more than the withdrawal guard
lets pass, nothing is retracted: a spool that is not mounted looks so, and a list that was
cut. --withdraw retracts all the same; what is beyond the guard's number is held then:
listed, and routed as HELD, until "rookeryctl withdrawal" decides.

If most of what is new is held by other groups the list is refused: it may be another
backend's. --allow-forks states it all the same.

Skipped are tombstones and intermediate levels, and mailboxes of other servers in a unified
murder's list. A name that is only reserved is neither added nor retracted. A mailbox that
is being moved stays in the directory as it is: a resync neither begins a move nor ends one
("rookeryctl moves").
` + wholeNote,
		Example: `  rookeryctl resync apply --server be1.example.org --dump be1.json --as-of $TOKEN`,
	}
	f.add(a, cmd)
	cmd.Flags().BoolVar(&withdraw, "withdraw", false, "retract however much the list lacks")
	cmd.Flags().BoolVar(&forks, "allow-forks", false, "state the list even if other groups hold most of what is new in it")
	cmd.RunE = a.do(func(ctx context.Context, _ []string) error {
		run, err := f.begin(ctx, a)
		if err != nil {
			return err
		}
		defer run.list.close()
		run.ask.Withdraw, run.ask.AllowForks = withdraw, forks
		return run.run(ctx)
	})
	return cmd
}

// resyncJSON is what a resync came to, or would.
type resyncJSON struct {
	DryRun         bool                  `json:"dry_run"`
	Server         directory.BackendName `json:"server"`
	Dump           string                `json:"dump"`
	AsOfRevision   directory.Revision    `json:"as_of_revision"`
	Revision       directory.Revision    `json:"revision"`
	Incarnation    directory.Incarnation `json:"incarnation"`
	Rounds         int                   `json:"rounds"`
	Listed         uint64                `json:"listed"`
	Facts          uint64                `json:"facts"`
	Add            uint64                `json:"add"`
	Change         uint64                `json:"change"`
	Retract        uint64                `json:"retract"`
	Wait           uint64                `json:"wait"`
	Keep           uint64                `json:"keep"`
	Effects        map[string]uint64     `json:"effects"`
	RefusedThere   uint64                `json:"refused"`
	Skips          map[string]int64      `json:"skips"`
	Refusals       []refusedJSON         `json:"refusals"`
	Cut            bool                  `json:"refusals_cut"`
	Differences    []foundJSON           `json:"differences"`
	DifferencesCut bool                  `json:"differences_cut"`
	Equal          bool                  `json:"equal"`
	Settled        bool                  `json:"settled"`
	Withheld       bool                  `json:"withheld"`
	Held           bool                  `json:"held"`
	Confirmed      bool                  `json:"confirmed"`
}

type foundJSON struct {
	Mailbox directory.MailboxName `json:"mailbox"`
	Kind    string                `json:"kind"`
	Effect  string                `json:"effect,omitempty"`
	Reason  string                `json:"reason,omitempty"`
}

// differenceWords are the kinds of a difference, as people read them.
var differenceWords = map[client.DifferenceKind]string{
	client.Lacking: "add", client.Different: "change", client.Extra: "retract", client.Waiting: "wait", client.Kept: "keep",
}

// maxDifferences is how many differences a JSON report names.
const maxDifferences = 10_000

// resyncRun is one resync from the command line.
type resyncRun struct {
	a    *app
	c    *client.Client
	ask  client.Resync
	list *ownList
	show *progress

	out      client.Resynced
	refusals []refusedJSON
	refused  int64 // by the directory
	found    []foundJSON
	cut      bool
}

func (r *resyncRun) run(ctx context.Context) error {
	r.ask.Told = r.told
	r.ask.Progress = func(p client.ResyncProgress) {
		line := fmt.Sprintf("round %d: %s", p.Round, p.Doing)
		if p.Done > 0 {
			line += fmt.Sprintf(", %d", p.Done)
		}
		if p.Of > 0 {
			line += fmt.Sprintf(" of %d", p.Of)
		}
		r.show.draw(line)
	}
	var failed error
	r.out, failed = r.c.Resync(ctx, r.ask)
	r.show.clear()
	switch {
	case errors.Is(failed, client.ErrForeign):
		return refusedf("%s; if it is its list, put it into their group first, or say --allow-forks", plain(bare(failed)))
	case errors.Is(failed, client.ErrInvalidToken):
		return usagef("--as-of: %s; `rookeryctl resync begin` and take the list anew", plain(bare(failed)))
	case failed != nil && len(r.out.Effects) == 0:
		return failed
	}
	if err := r.tell(); err != nil {
		return err
	}
	if failed != nil {
		return within(failed, "not all was done; the same resync may be given again")
	}
	return r.verdict()
}

// told takes a difference that was found, or what became of it.
func (r *resyncRun) told(d client.Difference) {
	word := differenceWords[d.Kind]
	switch {
	case d.Err != nil:
		r.refused++
		reason := plain(bare(d.Err))
		if r.a.format != formatJSON {
			r.show.clear()
			r.a.printf("%s: refused: %s\n", plain(string(d.Mailbox)), reason)
		} else if len(r.refusals) < maxRefusals {
			r.refusals = append(r.refusals, refusedJSON{r.list.name, string(d.Mailbox), reason})
		}
	case r.a.format == formatJSON && (r.ask.DryRun || d.Done || d.Kind == client.Waiting || d.Kind == client.Kept):
		if len(r.found) == maxDifferences {
			r.cut = true
			return
		}
		found := foundJSON{Mailbox: d.Mailbox, Kind: word}
		if d.Done {
			found.Effect = d.Effect.String()
		}
		r.found = append(r.found, found)
	case r.a.format != formatJSON && r.ask.DryRun:
		r.show.clear()
		r.a.printf("%-7s  %s\n", word, plain(string(d.Mailbox)))
	}
}

// tell prints what it came to.
func (r *resyncRun) tell() error {
	o, l := &r.out, r.list
	effects := make(map[string]uint64)
	for e, n := range o.Effects {
		effects[e.String()] = n
	}
	if r.a.format == formatJSON {
		doc := resyncJSON{
			DryRun: r.ask.DryRun, Server: o.Server, Dump: l.name, AsOfRevision: o.AsOf, Revision: o.Revision, Incarnation: o.Incarnation, Rounds: o.Rounds,
			Listed: o.Listed, Facts: o.Facts, Add: o.Lacking, Change: o.Different, Retract: o.Extra, Wait: o.Waiting, Keep: o.Kept,
			Effects: effects, RefusedThere: o.Refused, Skips: l.skips, Refusals: append(l.refusals, r.refusals...), Cut: l.cut,
			Differences: r.found, DifferencesCut: r.cut,
			Equal: o.Equal, Settled: o.Settled, Withheld: o.Withheld, Held: o.Held, Confirmed: o.Confirmed,
		}
		if doc.Differences == nil {
			doc.Differences = []foundJSON{}
		}
		if doc.Refusals == nil {
			doc.Refusals = []refusedJSON{}
		}
		return r.a.document(doc)
	}
	r.a.printf("%s: %s in its list, %s in the directory\n", o.Server, mailboxCount(o.Listed), plural(o.Facts, "fact"))
	if len(l.skips) > 0 {
		var words []string
		for _, reason := range slices.Sorted(maps.Keys(l.skips)) {
			words = append(words, plural(l.skips[reason], reason))
		}
		r.a.printf("not of its list: %s\n", strings.Join(words, ", "))
	}
	found := "found: "
	if r.ask.DryRun {
		found = "would "
	}
	r.a.printf("%sadd %d, change %d, retract %d; wait %d, keep %d\n", found, o.Lacking, o.Different, o.Extra, o.Waiting, o.Kept)
	if !r.ask.DryRun {
		var words []string
		for _, e := range slices.Sorted(maps.Keys(o.Effects)) {
			words = append(words, fmt.Sprintf("%s %d", e, o.Effects[e]))
		}
		if o.Refused > 0 {
			words = append(words, fmt.Sprintf("refused %d", o.Refused))
		}
		if len(words) > 0 {
			r.a.printf("done: %s\n", strings.Join(words, ", "))
		}
	}
	switch {
	case o.Equal:
		r.a.printf("equal at revision %d\n", o.Revision)
	case o.Settled:
		r.a.printf("equal at revision %d but for what changed after the list was taken\n", o.Revision)
	}
	if n := o.Effects[client.Forked]; n > 0 {
		r.a.printf("forked: %s held by another group too; route and LIST are as before (`rookeryctl forks`)\n", mailboxCount(n))
	}
	if n := o.Effects[client.NotAdmitted]; n > 0 {
		r.a.printf("%s is not admitted: its facts count once it is (`rookeryctl backends admit %s`)\n", o.Server, o.Server)
	}
	if o.Confirmed {
		r.a.printf("confirmed: %s\n", o.Server)
	}
	return nil
}

// verdict is the exit code, with what to do about what is left.
func (r *resyncRun) verdict() error {
	if r.ask.DryRun {
		return r.differs()
	}
	o := &r.out
	server := o.Server
	switch {
	case o.Withheld:
		return refusedf("the list lacks %d of %s: so many that nothing was retracted; is the spool of %s mounted, and the list whole? If it has lost them, `rookeryctl hold backend %s --for 1h` lets their mail wait, and --withdraw retracts", o.Extra, plural(o.Facts, "fact"), server, server)
	case o.Held:
		return refusedf("not confirmed: the withdrawal guard holds facts of %s, which are listed and routed as HELD; `rookeryctl withdrawal list %s` shows them, and `withdrawal approve` or `reject` decides; then resync again", server, server)
	case r.list.refused > 0:
		return refusedf("not confirmed: %s of the list refused, which may be mailboxes of %s", plural(r.list.refused, "record"), server)
	case o.Refused > 0:
		return refusedf("not confirmed: %s refused by the directory", mailboxCount(o.Refused))
	case o.Kept > 0:
		return refusedf("not confirmed: %s kept that the list has not; %s", plural(o.Kept, "fact"), r.list.whyKept())
	case o.Confirmed:
		return nil
	case len(r.ask.AsOf) == 0 && o.Equal:
		return refusedf("not confirmed: nobody knows when the list was taken; `rookeryctl resync begin`, take it anew, and give --as-of")
	case len(r.ask.AsOf) == 0:
		return refusedf("only added: without --as-of nothing is changed or retracted, and nothing confirmed")
	case o.Listed == 0 && o.Facts == 0:
		return refusedf("not confirmed: the list is empty, and nobody has heard of %s; `rookeryctl backends set %s --create` makes it known", server, server)
	}
	return refusedf("not confirmed: others changed facts of %s meanwhile; give the same resync again", server)
}

// differs is the exit code of a diff.
func (r *resyncRun) differs() error {
	o := &r.out
	switch {
	case o.Withheld:
		return refusedf("the list lacks %d of %s: so many that apply would retract nothing; is the spool of %s mounted, and the list whole?", o.Extra, plural(o.Facts, "fact"), o.Server)
	case r.list.refused > 0:
		return refusedf("%s of the list refused", plural(r.list.refused, "record"))
	case o.Kept > 0:
		return refusedf("%s would be kept; %s", plural(o.Kept, "fact"), r.list.whyKept())
	case o.Lacking+o.Different+o.Extra+o.Waiting > 0:
		return degraded()
	}
	return nil
}
