package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/rookery-mail/rookery/adapter/cyrus"
	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
)

func (a *app) importCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "import",
		Short: "import what Cyrus keeps in files",
		Long: `Imports what Cyrus keeps in files. An import only adds and changes; it never takes anything
back, and a second one of the same file changes nothing.`,
		RunE: mustName,
	}
	cmd.AddCommand(a.importCyrusCmd(), a.importSubscriptionsCmd())
	return cmd
}

// tally is what became of the records of an import.
type tally struct {
	Records       int64 `json:"records"`
	Added         int64 `json:"added"`
	Changed       int64 `json:"changed"`
	Unchanged     int64 `json:"unchanged"`
	Skipped       int64 `json:"skipped"`
	Refused       int64 `json:"refused"`
	Forked        int64 `json:"forked"`
	MoveCompleted int64 `json:"moves_completed"`
	MoveAborted   int64 `json:"moves_aborted"`
	GuardHeld     int64 `json:"guard_held"`
	Overtaken     int64 `json:"overtaken"`
}

// count notes what the directory said of a record.
func (t *tally) count(e client.Effect) {
	switch e {
	case client.Added:
		t.Added++
	case client.Changed:
		t.Changed++
	case client.Forked:
		t.Forked++
	case client.MoveCompleted:
		t.MoveCompleted++
	case client.MoveAborted:
		t.MoveAborted++
	case client.GuardHeld:
		t.GuardHeld++
	case client.Overtaken, client.NotAdmitted:
		t.Overtaken++
	default:
		t.Unchanged++
	}
}

func (t *tally) String() string {
	s := fmt.Sprintf("added %d, changed %d, unchanged %d, skipped %d, refused %d", t.Added, t.Changed, t.Unchanged, t.Skipped, t.Refused)
	for _, rare := range []struct {
		word string
		n    int64
	}{
		{"forked", t.Forked}, {"moves completed", t.MoveCompleted}, {"moves aborted", t.MoveAborted},
		{"held by the guard", t.GuardHeld}, {"overtaken", t.Overtaken},
	} {
		if rare.n > 0 {
			s += fmt.Sprintf(", %s %d", rare.word, rare.n)
		}
	}
	return s
}

// refusedJSON is one record that was not taken.
type refusedJSON struct {
	Place  string `json:"place"`
	Name   string `json:"name"`
	Reason string `json:"reason"`
}

// report is what an import came to.
type report struct {
	DryRun bool     `json:"dry_run"`
	Files  []string `json:"files"`
	tally
	Skips    map[string]int64 `json:"skips"`
	Refusals []refusedJSON    `json:"refusals"`
	Cut      bool             `json:"refusals_cut"`
	Servers  []*serverReport  `json:"servers,omitempty"`
}

// serverReport is what an import came to for one backend.
type serverReport struct {
	Server    directory.BackendName `json:"server"`
	Records   int64                 `json:"records"`
	NotInDump int64                 `json:"not_in_dump"`
	Confirmed bool                  `json:"confirmed"`
}

// maxRefusals is how many refusals a JSON report names.
const maxRefusals = 10_000

// importer carries out one import.
type importer struct {
	a      *app
	c      *client.Client
	out    report
	sender *sender
	show   *progress
	file   *source
	begun  time.Time
}

func (a *app) importer(ctx context.Context, c *client.Client, dryRun bool, send func(context.Context, []item) ([]client.Result, error)) *importer {
	im := &importer{a: a, c: c, show: a.progress(), begun: time.Now()}
	im.out = report{DryRun: dryRun, Files: []string{}, Skips: map[string]int64{}, Refusals: []refusedJSON{}}
	im.sender = &sender{ctx: ctx, send: send}
	im.sender.done = func(it item, r client.Result) {
		if r.Err != nil {
			im.refuse(it.place, it.name, r.Err)
			return
		}
		im.out.count(r.Effect)
	}
	return im
}

// refuse reports a record that is not taken: at once, for there may be many.
func (im *importer) refuse(place, name string, err error) {
	im.out.Refused++
	reason := plain(bare(err))
	if im.a.format != formatJSON {
		im.show.clear()
		if name != "" {
			name = plain(name) + ": "
		}
		im.a.printf("%s: refused: %s%s\n", place, name, reason)
		return
	}
	if len(im.out.Refusals) == maxRefusals {
		im.out.Cut = true
		return
	}
	im.out.Refusals = append(im.out.Refusals, refusedJSON{place, name, reason})
}

func (im *importer) skip(reason string) {
	im.out.Skipped++
	im.out.Skips[reason]++
}

// source is one input file.
type source struct {
	io.Reader
	name  string
	size  int64 // 0: not known
	close func() error
}

// open opens an input file; "-" is standard input.
func (im *importer) open(path string) (*source, error) {
	im.file = &source{Reader: im.a.stdin, name: "standard input", close: func() error { return nil }}
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, usagef("%v", err)
		}
		im.file = &source{Reader: f, name: path, close: f.Close}
		info, err := f.Stat()
		switch {
		case err != nil:
			return nil, errors.Join(err, f.Close())
		case info.IsDir():
			f.Close()
			return nil, usagef("%s is a directory", path)
		case info.Mode().IsRegular():
			im.file.size = info.Size()
		}
	}
	im.out.Files = append(im.out.Files, im.file.name)
	return im.file, nil
}

func (s *source) place(p cyrus.Place) string { return fmt.Sprintf("%s:%d", s.name, p.Line) }

// drawn shows how far the reading came.
func (im *importer) drawn(at cyrus.Place) {
	if !im.show.due() {
		return
	}
	took := time.Since(im.begun).Seconds()
	line := fmt.Sprintf("%s: %d records", im.file.name, im.out.Records)
	if took > 0 {
		line += fmt.Sprintf(", %.0f/s", float64(im.out.Records)/took)
	}
	if im.file.size > 0 && at.Offset > 0 {
		part := float64(at.Offset) / float64(im.file.size)
		line += fmt.Sprintf(", %.0f %%, %s left", 100*part, age(time.Duration(took*(1-part)/part*float64(time.Second))))
	}
	if im.out.Refused > 0 {
		line += fmt.Sprintf(", %d refused", im.out.Refused)
	}
	im.show.draw(line)
}

// tell prints what the import came to.
func (im *importer) tell() error {
	im.show.clear()
	if im.a.format == formatJSON {
		return im.a.document(im.out)
	}
	if im.out.DryRun {
		im.a.printf("dry run: nothing was changed; it would be:\n")
	}
	im.a.printf("%v\n", &im.out.tally)
	if len(im.out.Skips) > 0 {
		var words []string
		for _, reason := range slices.Sorted(maps.Keys(im.out.Skips)) {
			words = append(words, plural(im.out.Skips[reason], reason))
		}
		im.a.printf("skipped: %s\n", strings.Join(words, ", "))
	}
	var confirmed []directory.BackendName
	for _, s := range im.out.Servers {
		if s.NotInDump > 0 {
			im.a.printf("not in the dump: %s of %s; they stay, for an import takes nothing back (`rookeryctl find --server %s` prints what the directory has)\n", plural(s.NotInDump, "fact"), s.Server, s.Server)
		}
		if s.Confirmed {
			confirmed = append(confirmed, s.Server)
		}
	}
	if len(confirmed) > 0 {
		im.a.printf("confirmed: %s\n", join(confirmed))
	}
	return nil
}

// went says how much of an import was done when it ended before its end.
func (im *importer) went() string {
	n := im.out.Records - im.out.Skipped - im.out.Refused
	if im.out.DryRun {
		return "nothing was changed"
	}
	done := im.out.Added + im.out.Changed + im.out.Unchanged + im.out.Forked + im.out.MoveCompleted + im.out.MoveAborted + im.out.GuardHeld + im.out.Overtaken
	if im.out.Records == im.out.Skipped+im.out.Refused {
		return "nothing went in"
	}
	if done < n {
		return fmt.Sprintf("of the %d records before, %d are known to be in; the same import may be given again", im.out.Records, done)
	}
	return fmt.Sprintf("%s before that went in; the same import may be given again", plural(done, "record"))
}

// finish ends an import: reports it, and turns how it went into an error.
// failed is why it did not get to its end; so says what refused records mean.
func (im *importer) finish(failed error, so string) error {
	if told := im.tell(); told != nil && failed == nil {
		failed = told
	}
	if failed == nil && im.out.Refused > 0 {
		return refusedf("%s refused%s", plural(im.out.Refused, "record"), so)
	}
	return failed
}

// ended says of an import that was ended by the directory how much is in. Other
// errors say it already.
func (im *importer) ended(err error) error {
	if _, ok := errors.AsType[*fault](err); ok || err == nil {
		return err
	}
	return within(err, "%s", im.went())
}

func (a *app) importSubscriptionsCmd() *cobra.Command {
	var user string
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "subscriptions FILE...",
		Short: "import subscriptions: users' files, or a list",
		Long: `Imports subscriptions from Cyrus's subscription files in the format "flat" (cvt_cyrusdb makes
others flat), or from lists of lines "user TAB mailbox" with canonical names. A FILE that
ends in .sub is the user's whom its path tells; --user says so of any FILE; all others are
lists. "-" is standard input.

It only adds: what a user is subscribed to besides stays.`,
		Example: `  rookeryctl import subscriptions /var/lib/cyrus/user/*/*.sub
  rookeryctl import subscriptions --user alice alice.flat
  printf 'alice\tuser.alice.Sent\n' | rookeryctl import subscriptions -`,
		Args: atLeastOne("FILE"),
	}
	cmd.Flags().StringVar(&user, "user", "", "whose file it is: `id[@domain]`")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "read and check, and change nothing")
	cmd.RunE = a.do(func(ctx context.Context, args []string) error {
		var whose directory.UserID
		if cmd.Flags().Changed("user") {
			var err error
			if whose, err = directory.ParseUser(user); err != nil {
				return err
			}
		}
		c, err := a.connect()
		if err != nil {
			return err
		}
		send := func(ctx context.Context, items []item) ([]client.Result, error) { return c.Batch(ctx, opsOf(items)) }
		if dryRun {
			send = func(ctx context.Context, items []item) ([]client.Result, error) {
				return compareSubscriptions(ctx, c, items)
			}
		}
		im := a.importer(ctx, c, dryRun, send)
		for _, path := range args {
			if err = im.subscriptions(path, whose); err != nil {
				break
			}
		}
		return im.finish(err, "")
	})
	return cmd
}

// opsOf are the operations of a batch.
func opsOf(items []item) []client.Op {
	ops := make([]client.Op, len(items))
	for i, it := range items {
		ops[i] = it.op
	}
	return ops
}

// subscriptions imports one file.
func (im *importer) subscriptions(path string, whose directory.UserID) error {
	in, err := im.open(path)
	if err != nil {
		return err
	}
	defer in.close()
	if whose == "" && strings.HasSuffix(path, ".sub") {
		if whose, err = cyrus.SubscriptionFileUser(path); err != nil {
			return err
		}
	}
	r := cyrus.NewSubscriptionList(in)
	if whose != "" {
		if r, err = cyrus.NewUserSubscriptions(in, whose); err != nil {
			return err
		}
	}
	for {
		s, err := r.Read()
		if err == io.EOF {
			return im.ended(im.sender.drain())
		}
		if stopped := im.take(in, err); stopped != nil {
			return im.ended(stopped)
		}
		if err != nil {
			continue
		}
		im.drawn(s.Place)
		it := item{op: client.Subscribe{User: s.User, Mailbox: s.Mailbox}, name: fmt.Sprintf("%s: %s", s.User, s.Mailbox), place: in.place(s.Place), size: len(s.User) + len(s.Mailbox)}
		if im.sender.add(it) != nil {
			return im.ended(im.sender.drain())
		}
	}
}

// take counts a record that was read, with err as the reader gave it. It returns
// an error if the reading is at its end.
func (im *importer) take(in *source, err error) error {
	if err == nil {
		im.out.Records++
		return nil
	}
	if refused, ok := errors.AsType[*cyrus.RefusedError](err); ok {
		im.out.Records++
		im.refuse(in.place(refused.Place), refused.Name, refused.Err)
		return nil
	}
	if drained := im.sender.drain(); drained != nil {
		return drained
	}
	text := strings.TrimPrefix(plain(err.Error()), "cyrus: ")
	return &fault{code: exitRefused, text: fmt.Sprintf("%s: %s; %s", in.name, text, im.went()), err: err}
}

// compareSubscriptions tells what a batch would do without doing it. A file has
// the users one after the other.
func compareSubscriptions(ctx context.Context, c *client.Client, items []item) ([]client.Result, error) {
	var user directory.UserID
	var has map[directory.MailboxName]bool
	results := make([]client.Result, len(items))
	for i, it := range items {
		sub := it.op.(client.Subscribe)
		if has == nil || sub.User != user {
			user, has = sub.User, make(map[directory.MailboxName]bool)
			for name, err := range c.ListSubscriptions(ctx, user) {
				if err != nil {
					return nil, err
				}
				has[name] = true
			}
		}
		results[i].Effect = client.Added
		if has[sub.Mailbox] {
			results[i].Effect = client.Unchanged
		}
	}
	return results, nil
}
