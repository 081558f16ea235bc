package client_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
)

// There is one method for each call of the API, by its name.
func TestMethodForEachCall(t *testing.T) {
	session := reflect.TypeFor[*client.Session]()
	for _, service := range []string{"DirectoryService", "ClusterService"} {
		file := apiv1.File_api_v1_directory_proto
		if service == "ClusterService" {
			file = apiv1.File_api_v1_cluster_proto
		}
		methods := file.Services().Get(0).Methods()
		for i := range methods.Len() {
			if name := string(methods.Get(i).Name()); !hasMethod(session, name) {
				t.Errorf("%s.%s has no method", service, name)
			}
		}
	}
	// Nothing generated shows in what is exported.
	for i := range session.NumMethod() {
		m := session.Method(i)
		for j := range m.Type.NumIn() {
			notGenerated(t, m.Name, m.Type.In(j))
		}
		for j := range m.Type.NumOut() {
			notGenerated(t, m.Name, m.Type.Out(j))
		}
	}
}

func hasMethod(t reflect.Type, name string) bool {
	_, ok := t.MethodByName(name)
	return ok
}

func notGenerated(t *testing.T, method string, typ reflect.Type) {
	t.Helper()
	for typ.Kind() == reflect.Pointer || typ.Kind() == reflect.Slice {
		typ = typ.Elem()
	}
	if strings.Contains(typ.PkgPath(), "proto/api") {
		t.Errorf("%s has a parameter or result of type %s", method, typ)
	}
	if typ.Kind() == reflect.Struct && strings.HasSuffix(typ.PkgPath(), "/client") {
		for i := range typ.NumField() {
			if f := typ.Field(i); f.IsExported() {
				notGenerated(t, method+" "+typ.Name()+"."+f.Name, f.Type)
			}
		}
	}
}

// Every call, to a whole node and back.
func TestCalls(t *testing.T) {
	c := newClient(t)
	ctx := t.Context()
	want := func(effect client.Effect) func(client.Result, error) client.Result {
		return func(r client.Result, err error) client.Result {
			t.Helper()
			if err != nil || r.Effect != effect {
				t.Errorf("got %v, %v, want %v", r.Effect, err, effect)
			}
			if err == nil && (r.Revision == 0 || len(r.Token) == 0 || r.Node != "n1") {
				t.Errorf("the answer says nothing about itself: %+v", r.Answer)
			}
			return r
		}
	}
	assert := func(effect client.Effect, server directory.BackendName, names ...directory.MailboxName) {
		t.Helper()
		for _, name := range names {
			acl := "anyone\tlrs\t"
			if owner, ok := name.Owner(); ok {
				acl = string(owner) + "\tlrswipkxtecdan\t"
			}
			want(effect)(c.Assert(ctx, client.Assert{Mailbox: name, Server: server, Statement: directory.Statement{
				Partition: "default", ACL: &acl, MailboxID: new("id." + string(name)), UIDValidity: new(uint32(7)), Type: new(directory.TypeEmail), SpecialUse: new(`\Junk`),
			}}))
		}
	}
	addresses := []directory.Address{
		{Service: directory.ServiceIMAP, IP: "10.0.0.1", Port: 993, TLS: directory.TLSImplicit},
		{Service: directory.ServiceLMTP, IP: "10.0.0.1", Port: 24},
	}
	want(client.Added)(c.SetBackend(ctx, be1, client.BackendChange{Create: true, Addresses: &addresses, Weight: new(uint32(5))}))
	assert(client.Added, be1, "user.alice", "user.alice.Spam", "shared.pub", "user.carl")
	assert(client.Unchanged, be1, "user.alice")
	assert(client.Added, be2, "user.bob")
	if r, err := c.Lookup(ctx, "user.nobody"); err != nil || r.Outcome != directory.Incomplete || !slices.Equal(r.Missing, []directory.BackendName{be1, be2}) {
		t.Errorf("Lookup before all were heard: got %+v, %v", r, err)
	}
	want(client.Changed)(c.ConfirmBackend(ctx, be1, directory.ByImport))
	want(client.Changed)(c.ConfirmBackend(ctx, be2, directory.ByResync))

	r, err := c.Lookup(ctx, "user.alice.Spam", client.Details())
	if err != nil {
		t.Fatalf("Lookup: %v", err)
	}
	f := r.Fact(be1)
	if r.Outcome != directory.Serving || r.Mailbox != "user.alice.Spam" || r.Server.Name != be1 || !slices.Equal(r.Server.Addresses, addresses) ||
		r.Server.State != directory.BackendActive || r.Group != directory.GroupName(be1) || r.Primary != be1 || r.Epoch != 1 || r.ListedFrom != be1 || f == nil {
		t.Fatalf("Lookup: got %+v", r)
	}
	if a, ok := r.Server.Address(directory.ServiceLMTP); !ok || a.Port != 24 {
		t.Errorf("the address for LMTP: got %v, %v", a, ok)
	}
	wantFact := client.Fact{
		Server: be1, Admitted: true, Partition: "default", ACL: "alice\tlrswipkxtecdan\t", MailboxID: "id.user.alice.Spam", UIDValidity: 7, Type: directory.TypeEmail,
		SpecialUse: `\Junk`, State: directory.Active, Standing: directory.InForce, First: r.Changed, Last: r.Changed, Confirmed: true, Age: f.Age,
	}
	if *f != wantFact {
		t.Errorf("Lookup: fact: got %+v, want %+v", *f, wantFact)
	}
	if f.Location().String() != string(be1)+"!default" {
		t.Errorf("location: got %v", f.Location())
	}
	many, err := c.LookupMany(ctx, []directory.MailboxName{"user.bob", "no..name", "user.nobody"})
	if err != nil || len(many) != 3 || many[0].Server.Name != be2 || !errors.Is(many[1].Err, directory.ErrInvalidName) || many[2].Outcome != directory.NotFound || many[2].Mailbox != "user.nobody" {
		t.Errorf("LookupMany: got %+v, %v", many, err)
	}
	if r, err := c.LookupUser(ctx, "bob"); err != nil || r.Mailbox != "user.bob" || r.Server.Name != be2 {
		t.Errorf("LookupUser: got %+v, %v", r, err)
	}

	query := client.ListQuery{Principal: directory.Principal{User: "alice"}, Patterns: []string{"*"}, Return: client.ListReturn{MyRights: true, SpecialUse: true, Location: true}}
	l, err := c.List(ctx, query)
	if err != nil || len(l.Rows) != 3 || !l.Complete || l.Separator != "." {
		t.Fatalf("List: got %+v, %v", l, err)
	}
	if row := l.Rows[1]; row.Name != "INBOX.Spam" || row.Mailbox != "user.alice.Spam" || row.Server != be1 || row.Outcome != directory.Serving ||
		row.SpecialUse != `\Junk` || row.Rights.String() != "lrswipkxtecdan" || !row.Has(client.AttrHasNoChildren) || row.Has(client.AttrHasChildren) {
		t.Errorf("List: got %+v", row)
	}
	var rows []client.ListRow
	each, err := c.ListEach(ctx, query, func(row client.ListRow) error { rows = append(rows, row); return nil })
	if err != nil || !reflect.DeepEqual(rows, l.Rows) || each.Rows != nil || !each.Complete {
		t.Errorf("ListEach: got %+v, %v, %v, want the rows of List", rows, each, err)
	}
	enough := errors.New("enough")
	if _, err := c.ListEach(ctx, query, func(client.ListRow) error { return enough }); err != enough {
		t.Errorf("ListEach, ended: got %v, want %v", err, enough)
	}
	if rights, err := c.Rights(ctx, client.RightsQuery{Principal: query.Principal, ClientName: "shared.pub"}); err != nil || !rights.Visible || rights.Rights.String() != "lrs" || rights.Mailbox != "shared.pub" || rights.Outcome != directory.Serving {
		t.Errorf("Rights: got %+v, %v", rights, err)
	}
	if rights, err := c.Rights(ctx, client.RightsQuery{Principal: query.Principal, Mailbox: "user.bob"}); err != nil || rights.Visible || rights.Rights != 0 {
		t.Errorf("Rights of another's: got %+v, %v", rights, err)
	}

	want(client.Added)(c.Subscribe(ctx, "alice", "shared.pub"))
	want(client.Added)(c.Subscribe(ctx, "alice", "gone"))
	want(client.Removed)(c.Unsubscribe(ctx, "alice", "gone"))
	if got := all(t, c.ListSubscriptions(ctx, "alice")); !slices.Equal(got, []directory.MailboxName{"shared.pub"}) {
		t.Errorf("ListSubscriptions: got %v", got)
	}
	page, err := c.Find(ctx, client.FindQuery{Server: be1, PageSize: 3})
	if err != nil || len(page.Mailboxes) != 3 || page.Next == "" || page.Revision == 0 {
		t.Errorf("Find: got %+v, %v", page, err)
	}
	var found []directory.MailboxName
	for _, r := range all(t, c.FindAll(ctx, client.FindQuery{Server: be1, PageSize: 1})) {
		found = append(found, r.Mailbox)
	}
	if want := []directory.MailboxName{"shared.pub", "user.alice", "user.alice.Spam", "user.carl"}; !slices.Equal(found, want) {
		t.Errorf("FindAll: got %v, want %v", found, want)
	}
	for r := range c.FindAll(ctx, client.FindQuery{PageSize: 1}) { // ended early
		_ = r
		break
	}

	if r := want(client.Added)(c.Reserve(ctx, client.Reserve{Mailbox: "user.new", Server: be1, Partition: "p", Grace: time.Minute})); r.Lapses <= 0 {
		t.Errorf("Reserve: lapses in %v", r.Lapses)
	}
	if r, err := c.Lookup(ctx, "user.new"); err != nil || r.Reservation == nil || r.Reservation.Server != be1 || r.Reservation.Partition != "p" || r.Reservation.Remaining <= 0 {
		t.Errorf("Lookup of a claim: got %+v, %v", r, err)
	}
	_, err = c.Reserve(ctx, client.Reserve{Mailbox: "user.new", Server: be2})
	if e, ok := errors.AsType[*client.Error](err); !ok || !errors.Is(err, directory.ErrReserved) || e.Holder != be1 || e.Reason != "RESERVED" || errors.Is(err, client.ErrUnavailable) {
		t.Errorf("Reserve of what is reserved: got %#v", err)
	}
	want(client.Removed)(c.Release(ctx, client.Release{Mailbox: "user.new", Server: be1}))
	want(client.Changed)(c.Deactivate(ctx, client.Deactivate{Mailbox: "user.carl", Server: be1}))
	if moves := all(t, c.ListMoves(ctx)); len(moves) != 1 || moves[0].Mailbox != "user.carl" || moves[0].Server != be1 {
		t.Errorf("ListMoves: got %+v", moves)
	}
	assert(client.MoveCompleted, be2, "user.carl")
	if r, err := c.Lookup(ctx, "user.carl", client.Details()); err != nil || r.MovedFrom != directory.GroupName(be1) {
		t.Errorf("Lookup of what moved: got %+v, %v", r, err)
	}
	if r := want(client.Changed)(c.Rename(ctx, client.Rename{From: "user.alice.Spam", To: "user.alice.Junk", Server: be1})); r.Count != 1 {
		t.Errorf("Rename: count: got %d, want 1", r.Count)
	}
	want(client.Changed)(c.Retract(ctx, client.Retract{Mailbox: "user.alice.Junk", Server: be1, Tentative: true}))
	want(client.Removed)(c.Retract(ctx, client.Retract{Mailbox: "user.alice.Junk", Server: be1}))
	results, err := c.Batch(ctx, []client.Op{
		client.Assert{Mailbox: "user.dave", Server: be1},
		client.Reserve{Mailbox: "user.bob", Server: be1},
		client.Release{Mailbox: "x", Server: be1},
		client.Deactivate{Mailbox: "user.dave", Server: be1},
		client.Rename{From: "user.dave", To: "user.dan", Server: be1},
		client.Retract{Mailbox: "user.dan", Server: be1},
		client.Subscribe{User: "bob", Mailbox: "x"},
		client.Unsubscribe{User: "bob", Mailbox: "x"},
	})
	if err != nil {
		t.Fatalf("Batch: %v", err)
	}
	var got []string
	for _, r := range results {
		if r.Err != nil {
			got = append(got, r.Err.(*client.Error).Reason)
			continue
		}
		got = append(got, r.Effect.String())
	}
	if want := []string{"added", "EXISTS", "not-held", "changed", "changed", "removed", "added", "removed"}; !slices.Equal(got, want) {
		t.Errorf("Batch: got %v, want %v", got, want)
	}

	assert(client.Forked, be1, "user.bob")
	if forks := all(t, c.ListForks(ctx)); len(forks) != 1 || forks[0].Mailbox != "user.bob" || !forks[0].Forked || len(forks[0].Facts) != 2 {
		t.Errorf("ListForks: got %+v", forks)
	}
	want(client.Changed)(c.Settle(ctx, "user.bob", be2))
	if r, err := c.Lookup(ctx, "user.bob", client.Details()); err != nil || r.Forked {
		t.Errorf("Lookup of what was settled: got %+v, %v", r, err)
	}

	want(client.Added)(c.SetBackend(ctx, "be3", client.BackendChange{Create: true}))
	want(client.Added)(c.SetGroup(ctx, client.SetGroup{Group: "g1", Members: []directory.BackendName{be2, "be3"}, Mode: directory.ModeManual, AcceptMissing: true}))
	plan, err := c.PlanSwitchover(ctx, "g1", "be3", 1)
	if err != nil || plan.Equal || plan.MissingCount != 2 || len(plan.Missing) != 1 || plan.From != be2 || plan.To != "be3" {
		t.Errorf("PlanSwitchover: got %+v, %v", plan, err)
	}
	_, err = c.SetPrimary(ctx, client.SetPrimary{Group: "g1", To: "be3", Epoch: plan.Epoch + 1})
	if e, ok := errors.AsType[*client.Error](err); !ok || !errors.Is(err, directory.ErrStaleEpoch) || e.Epoch != plan.Epoch {
		t.Errorf("SetPrimary at another epoch: got %#v", err)
	}
	if r := want(client.Changed)(c.SetPrimary(ctx, client.SetPrimary{Group: "g1", To: "be3", Epoch: plan.Epoch, Reason: "test", AcceptMissing: true})); r.Epoch != plan.Epoch+1 {
		t.Errorf("SetPrimary: epoch: got %d, want %d", r.Epoch, plan.Epoch+1)
	}
	want(client.Added)(c.PutHold(ctx, directory.HoldGroup, "g1", time.Minute, "because"))
	groups, err := c.ListGroups(ctx, "")
	i := slices.IndexFunc(groups, func(g client.Group) bool { return g.Name == "g1" })
	if err != nil || i < 0 || groups[i].Primary != "be3" || groups[i].Hold == nil || groups[i].Hold.Why != "because" || len(groups[i].History) == 0 || groups[i].Mode != directory.ModeManual {
		t.Errorf("ListGroups: got %+v, %v", groups, err)
	}
	if r, err := c.Lookup(ctx, "user.bob"); err != nil || r.Outcome != directory.Held || r.Hold == nil || r.Hold.Key != "g1" || r.Hold.Kind != directory.HoldGroup || r.Server.Name != "" {
		t.Errorf("Lookup of what is held: got %+v, %v", r, err)
	}
	if holds, err := c.ListHolds(ctx); err != nil || len(holds) != 1 || holds[0].Remaining <= 0 {
		t.Errorf("ListHolds: got %+v, %v", holds, err)
	}
	want(client.Removed)(c.ReleaseHold(ctx, directory.HoldGroup, "g1"))
	if alarms, err := c.ListAlarms(ctx); err != nil || len(alarms.List) != 0 || alarms.GrowthRefused != "" || alarms.Revision == 0 {
		t.Errorf("ListAlarms: got %+v, %v", alarms, err)
	}
	want(client.Unchanged)(c.DisarmAlarm(ctx, directory.AlarmNoSpace, "n1"))

	want(client.Changed)(c.SetSettings(ctx, client.SettingsChange{GuardCount: new(uint32(1)), GuardPercent: new(uint32(0)), AdmissionOpen: new(false), ReserveGrace: new(2 * time.Second)}))
	settings, err := c.GetSettings(ctx)
	wantSettings := directory.DefaultSettings()
	wantSettings.GuardCount, wantSettings.GuardPercent, wantSettings.AdmissionOpen, wantSettings.ReserveGrace = 1, 0, false, 2000
	if err != nil || settings != wantSettings {
		t.Errorf("GetSettings: got %+v, %v, want %+v", settings, err, wantSettings)
	}
	assert(client.Added, be1, "user.x1", "user.x2", "user.x3")
	for _, name := range []directory.MailboxName{"user.x1", "user.x2", "user.x3"} {
		if _, err := c.Retract(ctx, client.Retract{Mailbox: name, Server: be1}); err != nil {
			t.Fatal(err)
		}
	}
	if held := all(t, c.ListHeld(ctx, "")); len(held) == 0 || held[0].Server != be1 || held[0].State != directory.HeldWithdrawal {
		t.Errorf("ListHeld: got %+v", held)
	}
	if _, err := c.DecideHeld(ctx, be1, false); err != nil {
		t.Errorf("DecideHeld: %v", err)
	}
	assert(client.NotAdmitted, "stranger", "user.alice")
	if p, err := c.PreviewAdmission(ctx, "stranger", 10); err != nil || p.Facts != 1 || p.Overlapping != 1 || len(p.Overlaps) != 1 || p.Overlaps[0].Server != be1 {
		t.Errorf("PreviewAdmission: got %+v, %v", p, err)
	}
	if _, err := c.AdmitBackend(ctx, "stranger"); err != nil {
		t.Errorf("AdmitBackend: %v", err)
	}
	want(client.Changed)(c.RenameBackend(ctx, "stranger", "friend"))
	backends, err := c.ListBackends(ctx, be1)
	if err != nil || len(backends) != 1 || !slices.Equal(backends[0].Addresses, addresses) || backends[0].Weight != 5 || !backends[0].Confirmed || backends[0].ConfirmedBy != directory.ByImport || backends[0].Facts == 0 {
		t.Errorf("ListBackends: got %+v, %v", backends, err)
	}
	if _, err := c.ListBackends(ctx, "nobody"); !errors.Is(err, directory.ErrNotFound) {
		t.Errorf("ListBackends of nobody: got %v, want ErrNotFound", err)
	}
	st, err := c.Status(ctx, client.Stale(0))
	if err != nil || st.ClusterID == "" || st.Version != "test" || st.Counts.Mailboxes == 0 || st.AdmissionOpen || st.Shard != 1 || len(st.Warnings) == 0 {
		t.Errorf("Status: got %+v, %v", st, err)
	}
	sum, err := c.Check(ctx, 0, func(e client.CheckEvent) error {
		if e.Kind != "" && !e.Advisory {
			t.Errorf("Check: a fault: %+v", e)
		}
		return nil
	})
	if err != nil || sum.Faults != 0 || sum.Mailboxes == 0 || sum.Revision == 0 {
		t.Errorf("Check: got %+v, %v", sum, err)
	}
}

func all[T any](t *testing.T, seq iter.Seq2[T, error]) (items []T) {
	t.Helper()
	for item, err := range seq {
		if err != nil {
			t.Fatalf("after %d items: %v", len(items), err)
		}
		items = append(items, item)
	}
	return items
}

// Many writers at once, each of whose reads sees its own write.
func TestManyAtOnce(t *testing.T) {
	c := newClient(t, client.WithLanes(4))
	errs := make(chan error)
	for i := range 16 {
		go func() {
			errs <- func() error {
				for j := range 10 {
					name := directory.MailboxName(fmt.Sprintf("user.u%d.f%d", i, j))
					if _, err := c.Assert(context.Background(), client.Assert{Mailbox: name, Server: be1}); err != nil {
						return err
					}
					if r, err := c.Lookup(context.Background(), name); err != nil || r.Outcome != directory.Serving {
						return fmt.Errorf("%s: got %v at revision %d, %v, want SERVING", name, r.Outcome, r.Revision, err)
					}
				}
				return nil
			}()
		}()
	}
	for range 16 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}
