package server

import (
	"testing"

	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
)

// Who asks with a mail address of the default domain means the user without it.
func TestDefaultDomain(t *testing.T) {
	n := newTestNode(t)
	n.assert(t, be1, "user.alice")
	n.confirm(t, be1)
	ask := func() apiv1.Outcome {
		t.Helper()
		r, err := n.LookupUser(t.Context(), &apiv1.LookupUserRequest{User: "alice@example.com"})
		if err != nil {
			t.Fatal(err)
		}
		return r.GetRoute().GetOutcome()
	}
	if got := ask(); got != apiv1.Outcome_OUTCOME_NOT_FOUND {
		t.Errorf("without a default domain: got %v, want NOT_FOUND", got)
	}
	domain := "example.com"
	if _, err := n.SetSettings(t.Context(), &apiv1.SetSettingsRequest{Settings: &apiv1.Settings{DefaultDomain: &domain}}); err != nil {
		t.Fatal(err)
	}
	if got := ask(); got != apiv1.Outcome_OUTCOME_SERVING {
		t.Errorf("of the default domain: got %v, want SERVING", got)
	}
	r, err := n.Rights(t.Context(), &apiv1.RightsRequest{User: "alice@example.com", Name: &apiv1.RightsRequest_Mailbox{Mailbox: "user.alice"}})
	if err != nil || !r.GetVisible() {
		t.Errorf("rights: got %v, %v, want the owner's", r, err)
	}
	rows, _, _, err := n.listed(t, &apiv1.ListRequest{User: "alice@example.com", Patterns: []string{"*"}})
	if err != nil || len(rows) != 1 || rows[0].GetClientName() != "INBOX" {
		t.Errorf("list: got %v, %v, want INBOX", rows, err)
	}
}
