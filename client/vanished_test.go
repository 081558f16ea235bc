package client_test

import (
	"slices"
	"testing"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
)

// Names that went are remembered, also over pages; those that are there again, or
// were moved, are not among them.
func TestListVanished(t *testing.T) {
	c := newClient(t)
	ctx := t.Context()
	state := func(name directory.MailboxName, server directory.BackendName) client.Op {
		return client.Assert{Mailbox: name, Server: server}
	}
	var ops []client.Op
	for _, name := range []directory.MailboxName{"user.a", "user.b", "user.c", "user.d", "user.e"} {
		ops = append(ops, state(name, be1))
	}
	ops = append(ops,
		client.Retract{Mailbox: "user.a", Server: be1},
		client.Rename{From: "user.b", To: "user.new", Server: be1},
		client.Retract{Mailbox: "user.c", Server: be1}, state("user.c", be1),
		client.Deactivate{Mailbox: "user.d", Server: be1}, state("user.d", be2),
	)
	results, err := c.Batch(ctx, ops)
	if err != nil {
		t.Fatalf("Batch: %v", err)
	}
	for i, r := range results {
		if r.Err != nil {
			t.Fatalf("item %d: %v", i, r.Err)
		}
	}
	var got []directory.MailboxName
	for _, v := range all(t, c.ListVanished(ctx)) {
		got = append(got, v.Mailbox)
		if want := map[directory.MailboxName]directory.MailboxName{"user.b": "user.new"}[v.Mailbox]; v.NewName != want {
			t.Errorf("%s was renamed to %q, want %q", v.Mailbox, v.NewName, want)
		}
	}
	if want := []directory.MailboxName{"user.a", "user.b"}; !slices.Equal(got, want) {
		t.Errorf("ListVanished: got %v, want %v", got, want)
	}
}
