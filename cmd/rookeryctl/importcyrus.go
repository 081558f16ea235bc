package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"

	"github.com/spf13/cobra"

	"github.com/rookery-mail/rookery/adapter/cyrus"
	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
)

func (a *app) importCyrusCmd() *cobra.Command {
	var server string
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "cyrus [--server BACKEND] FILE...",
		Short: "import Cyrus mailbox lists, as ctl_mboxlist -d writes them",
		Long: `Imports mailbox lists as ctl_mboxlist -d writes them: the JSON of Cyrus 3.6 and later or the
text of earlier releases. A backend's list does not say whose it is: --server does. The list
of a frontend or of a MUPDATE master names the backend of each mailbox, and needs none.
"-" is standard input.

Tombstones, reserved names and intermediate levels are skipped; mailboxes that are being
moved come in as given up. A record that makes no sense is refused, with its place and the
reason, and the others go in.

It only adds and changes. What the directory has of a backend and the list has not is
counted and stays. A second import of the same list changes nothing.

When everything was read to the end and nothing refused, the backends whose list it was are
confirmed: their list is known whole, and a name that nobody lists is NOT_FOUND from then on.
If a list is cut off or in the wrong format, or a record was refused, or the list is empty or
mostly about other backends' mailboxes, nothing is confirmed and the exit code is 1; what was
read is in. A text list that was cut behind a line cannot be told from a whole one.`,
		Example: `  ctl_mboxlist -d | rookeryctl import cyrus --server be1.example.org -
  rookeryctl import cyrus --server be1.example.org be1.json
  rookeryctl import cyrus --dry-run frontend.json`,
		Args: atLeastOne("FILE"),
	}
	cmd.Flags().StringVar(&server, "server", "", "the `backend` whose list it is")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "read, check and compare with the directory; change nothing")
	complete(cmd, "server", a.backendNames())
	cmd.RunE = a.do(func(ctx context.Context, args []string) error {
		d := dump{accepted: make(map[directory.BackendName]*serverReport)}
		if cmd.Flags().Changed("server") {
			var err error
			if d.server, err = directory.ParseBackend(server); err != nil {
				return err
			}
		}
		c, err := a.connect()
		if err != nil {
			return err
		}
		send := func(ctx context.Context, items []item) ([]client.Result, error) { return c.Batch(ctx, opsOf(items)) }
		if dryRun {
			if d.predicted, err = predict(ctx, c); err != nil {
				return err
			}
			send = d.predicted.compare
		}
		d.importer = a.importer(ctx, c, dryRun, send)
		d.sender.done = d.done
		return d.run(ctx, args)
	})
	return cmd
}

// dump is the import of mailbox lists.
type dump struct {
	*importer
	server    directory.BackendName // whose lists they are; empty: the records say
	accepted  map[directory.BackendName]*serverReport
	remote    bool                  // some record said whose it is
	predicted *prediction           // of a dry run
	life      directory.Incarnation // of the cluster, as the first answer had it
}

func (d *dump) run(ctx context.Context, paths []string) error {
	var failed error
	for _, path := range paths {
		// A mailbox may stand in two files: each is in before the next.
		if failed = d.read(path); failed != nil {
			break
		}
	}
	if f, ok := errors.AsType[*fault](failed); ok && f.code == exitUsage && d.out.Records == d.out.Skipped {
		return failed // nothing was done that there is a report of
	}
	if d.server != "" {
		d.of(d.server)
	}
	for _, name := range slices.Sorted(maps.Keys(d.accepted)) {
		d.out.Servers = append(d.out.Servers, d.accepted[name])
	}
	if failed == nil {
		failed = d.compare(ctx)
	}
	if failed == nil && d.out.Refused == 0 && !d.out.DryRun {
		failed = d.confirm(ctx)
	}
	so := ""
	if !d.out.DryRun {
		so = ": nobody's list is known whole now, so nothing was confirmed"
	}
	return d.finish(failed, so)
}

// read imports one file.
func (d *dump) read(path string) error {
	in, err := d.open(path)
	if err != nil {
		return err
	}
	defer in.close()
	r := cyrus.NewReader(in)
	for {
		rec, err := r.Read()
		if err == io.EOF {
			return d.ended(d.sender.drain())
		}
		if stopped := d.take(in, err); stopped != nil {
			return d.ended(stopped)
		}
		if err != nil {
			continue
		}
		d.drawn(r.Place())
		if rec.Kind() == cyrus.Skipped {
			d.skip(rec.SkipReason())
			continue
		}
		server, err := d.whose(&rec)
		if err != nil {
			if _, ok := errors.AsType[*fault](err); ok {
				d.out.Records-- // it is not of the report
				return err
			}
			d.refuse(in.place(rec.Place), string(rec.Name), err)
			continue
		}
		st := rec.Statement()
		it := item{
			op:    client.Assert{Mailbox: rec.Name, Server: server, Statement: st, Imported: true, Deactivated: rec.Kind() == cyrus.Deactivated},
			name:  string(rec.Name),
			place: in.place(rec.Place),
			size:  len(rec.Name) + len(rec.ACL) + len(rec.UniqueID) + 100,
		}
		if d.sender.add(it) != nil {
			return d.ended(d.sender.drain())
		}
	}
}

// whose says which backend a record is a fact of.
func (d *dump) whose(rec *cyrus.Record) (directory.BackendName, error) {
	switch {
	case rec.Server == "" && d.server == "" && !d.remote:
		return "", usagef("%s does not say whose list it is, so it is a backend's: name that with --server", d.file.name)
	case rec.Server == "" && d.server == "":
		return "", fmt.Errorf("%w: it names no server, as others here do", directory.ErrInvalidLocation)
	case rec.Server == "":
		return d.server, nil
	}
	d.remote = true
	if d.server != "" && rec.Server != d.server {
		return "", fmt.Errorf("it is a mailbox of %s, and --server says %s", rec.Server, d.server)
	}
	return rec.Server, nil
}

// of returns the report of a backend.
func (d *dump) of(server directory.BackendName) *serverReport {
	s := d.accepted[server]
	if s == nil {
		s = &serverReport{Server: server}
		d.accepted[server] = s
	}
	return s
}

// done counts a record that the directory has answered.
func (d *dump) done(it item, r client.Result) {
	s := d.of(it.op.(client.Assert).Server)
	if r.Err != nil {
		d.refuse(it.place, it.name, r.Err)
		return
	}
	s.Records++
	d.out.count(r.Effect)
	if d.life == 0 {
		d.life = r.Incarnation
	}
}

// compare counts what the directory has of each backend and the dump has not:
// every record accepted is a fact now, and the rest of the facts is not in the
// dump. Where several files name the same mailbox it counts too few.
func (d *dump) compare(ctx context.Context) error {
	backends, err := d.c.ListBackends(ctx, "")
	if err != nil {
		return err
	}
	for _, b := range backends {
		s := d.accepted[b.Name]
		if s == nil {
			continue
		}
		there := s.Records
		if d.predicted != nil {
			there = d.predicted.there[b.Name]
		}
		s.NotInDump = max(0, int64(b.Facts)-there)
	}
	return nil
}

// confirm says that the backends' lists are known whole, and so that what nobody
// lists does not exist. It does not say so of a list that looks wrong: an empty
// one, or one that is mostly about mailboxes of other groups.
func (d *dump) confirm(ctx context.Context) error {
	if held := d.out.Forked + d.out.Overtaken; 2*held > d.out.Records-d.out.Skipped {
		return refusedf("not confirmed: of the list, %s held by other groups (`rookeryctl forks`); is it the list of that backend? If it is, `rookeryctl backends confirm` says so", plural(held, "mailbox"))
	}
	for _, s := range d.out.Servers {
		if s.Records == 0 {
			return refusedf("not confirmed: the list has no mailbox of %s; if that is so, `rookeryctl backends confirm %s` says it, after `rookeryctl backends set %s --create`", s.Server, s.Server, s.Server)
		}
		// Of a cluster that was restored meanwhile, half of the list is forgotten.
		if _, err := d.c.ConfirmBackendIn(ctx, d.life, s.Server, directory.ByImport); err != nil {
			return within(err, "everything is in, but %s is not confirmed", s.Server)
		}
		s.Confirmed = true
	}
	return nil
}

// prediction tells what an import would do without doing it.
type prediction struct {
	c      *client.Client
	groups map[directory.BackendName]directory.GroupName

	mu    sync.Mutex
	there map[directory.BackendName]int64 // records of which there is a fact already
}

func predict(ctx context.Context, c *client.Client) (*prediction, error) {
	p := &prediction{c: c, groups: make(map[directory.BackendName]directory.GroupName), there: make(map[directory.BackendName]int64)}
	backends, err := c.ListBackends(ctx, "")
	for _, b := range backends {
		p.groups[b.Name] = b.Group
	}
	return p, err
}

// compare predicts the results of a batch of assertions.
func (p *prediction) compare(ctx context.Context, items []item) ([]client.Result, error) {
	names := make([]directory.MailboxName, len(items))
	for i, it := range items {
		names[i] = it.op.(client.Assert).Mailbox
	}
	routes, err := p.c.LookupMany(ctx, names, client.Details())
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	results := make([]client.Result, len(items))
	for i, it := range items {
		if results[i].Err = routes[i].Err; results[i].Err != nil {
			continue
		}
		as := it.op.(client.Assert)
		results[i].Effect = p.effect(as, &routes[i])
		if routes[i].Fact(as.Server) != nil {
			p.there[as.Server]++
		}
	}
	return results, nil
}

// effect is what an assertion would come to, as things stand.
func (p *prediction) effect(as client.Assert, r *client.Route) client.Effect {
	f := r.Fact(as.Server)
	if r.Group != "" && p.groups[as.Server] != r.Group && (f == nil || f.Standing == directory.InForce) {
		switch {
		case r.Outcome == directory.Moving && !as.Deactivated:
			return client.MoveCompleted
		case r.Outcome != directory.NotFound:
			return client.Forked
		}
	}
	if f == nil {
		return client.Added
	}
	if f.Standing != directory.InForce {
		return client.Overtaken
	}
	state := directory.Active
	if as.Deactivated {
		state = directory.Deactivated
	}
	now := directory.Fact{Partition: f.Partition, ACL: f.ACL, MailboxID: f.MailboxID, UIDValidity: f.UIDValidity, Type: f.Type, SpecialUse: f.SpecialUse}
	if now.Merge(as.Statement) == now && f.State == state && f.Confirmed {
		return client.Unchanged
	}
	return client.Changed
}
