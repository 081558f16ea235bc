package server

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	gotoken "go/token"
	"maps"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/directory/machine"
	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
	"github.com/rookery-mail/rookery/raftstore"
)

// clientSentinels is what the client makes of what is not directory's.
var clientSentinels = map[error]error{
	errUndecided:             client.ErrUndecided,
	raftstore.ErrUnknown:     client.ErrUndecided,
	errNotLeader:             client.ErrNotLeader,
	raftstore.ErrNoLeader:    client.ErrNoLeader,
	errBehind:                client.ErrBehind,
	errTooStale:              client.ErrTooStale,
	raftstore.ErrOverloaded:  client.ErrOverloaded,
	raftstore.ErrClosed:      client.ErrClosing,
	raftstore.ErrStopped:     client.ErrClosing,
	errWrongIncarnation:      client.ErrWrongIncarnation,
	errInvalidToken:          client.ErrInvalidToken,
	errUnsupported:           client.ErrUnsupported,
	errCompacted:             client.ErrCompacted,
	errNoQuorum:              client.ErrNoQuorum,
	errLagging:               client.ErrLagging,
	errNotWaiting:            client.ErrNotWaiting,
	errNotVoter:              client.ErrNotVoter,
	errLeading:               client.ErrLeading,
	errSlowWatcher:           client.ErrSlowWatcher,
	raftstore.ErrTooLarge:    directory.ErrTooLarge,
	raftstore.ErrBusy:        directory.ErrBusy,
	raftstore.ErrNoRoom:      directory.ErrReadOnly,
	machine.ErrCorrupt:       client.ErrBroken,
	machine.ErrFormat:        client.ErrBroken,
	machine.ErrRelease:       client.ErrBroken,
	raftstore.ErrNotInForce:  directory.ErrVersion,
	context.DeadlineExceeded: context.DeadlineExceeded,
	context.Canceled:         context.Canceled,
}

// Every row, wrapped, goes out as its code and reason, and comes back as its
// sentinel; whatever can be tried again, as unavailable.
func TestStatusThereAndBack(t *testing.T) {
	s := &Server{members: func() Members { return Members{} }}
	reasons := make(map[apiv1.Reason]bool)
	for _, row := range statusTable {
		reasons[row.reason] = true
		reason, sent := s.toStatus(fmt.Errorf("about something: %w", row.err))
		if got := status.Code(sent); got != row.code || reason != row.reason || reasonOf(sent) != reasonName(row.reason) {
			t.Errorf("%v: got %v %s, want %v %s", row.err, got, reasonOf(sent), row.code, reasonName(row.reason))
		}
		want := clientSentinels[row.err]
		if want == nil {
			want = row.err
		}
		back := client.FromStatus(sent)
		if !errors.Is(back, want) {
			t.Errorf("%v: comes back as %v, want %v", row.err, back, want)
		}
		for _, other := range statusTable {
			if other.reason != row.reason && !slices.Contains([]error{context.Canceled, context.DeadlineExceeded}, other.err) && errors.Is(back, other.err) {
				t.Errorf("%v: comes back as %v too", row.err, other.err)
			}
		}
		if got, want := errors.Is(back, client.ErrUnavailable), row.code == codes.Unavailable || row.code == codes.ResourceExhausted; got != want {
			t.Errorf("%v: is unavailable: got %v, want %v", row.err, got, want)
		}
		item := toError(fmt.Errorf("about something: %w", row.err), 3)
		if item.GetReason() != row.reason || item.GetIndex() != 3 {
			t.Errorf("%v, of an item: got %v, want %v", row.err, item, row.reason)
		}
	}
	for number, name := range apiv1.Reason_name {
		if number != 0 && !reasons[apiv1.Reason(number)] {
			t.Errorf("no error has the reason %s", name)
		}
	}
	var known []string
	for r := range reasons {
		known = append(known, reasonName(r))
	}
	if got := client.Reasons(); !slices.Equal(got, slices.Sorted(slices.Values(known))) {
		t.Errorf("reasons that the client knows: got %v, want %v", got, slices.Sorted(slices.Values(known)))
	}
}

// Every sentinel of directory has a row, as itself.
func TestStatusOfEverySentinel(t *testing.T) {
	file, err := parser.ParseFile(gotoken.NewFileSet(), "../directory/errors.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	rows := make(map[string]bool)
	for _, row := range statusTable {
		rows[row.err.Error()] = true
	}
	n := 0
	ast.Inspect(file, func(node ast.Node) bool {
		if lit, ok := node.(*ast.BasicLit); ok && lit.Kind == gotoken.STRING && strings.HasPrefix(lit.Value, `"directory: `) {
			n++
			if text := strings.Trim(lit.Value, `"`); !rows[text] {
				t.Errorf("no row for the sentinel %q", text)
			}
		}
		return true
	})
	if n < 20 {
		t.Errorf("found %d sentinels in directory/errors.go; they are no longer where this test looks", n)
	}
}

func TestStatusOfTheRest(t *testing.T) {
	s := &Server{members: func() Members {
		return Members{Nodes: []Node{{Name: "n2", ID: 7, ClientAddress: "10.0.0.2:7905"}}}
	}}
	for _, test := range []struct {
		name   string
		err    error
		code   codes.Code
		reason string
		meta   map[string]string
	}{
		{"in no row", errTest, codes.Internal, "BROKEN", nil},
		{"another leads", fmt.Errorf("x: %w", &raftstore.NotLeaderError{Leader: 7}), codes.Unavailable, "NOT_LEADER", map[string]string{"leader": "n2", "leader_address": "10.0.0.2:7905"}},
		{"a stranger leads", &raftstore.NotLeaderError{Leader: 9}, codes.Unavailable, "NOT_LEADER", nil},
		{"stopped", &raftstore.StoppedError{Cause: errTest}, codes.Unavailable, "CLOSED", nil},
		{"undecided by a deadline", fmt.Errorf("%w: %w", errUndecided, context.DeadlineExceeded), codes.Unavailable, "UNDECIDED", nil},
		{"old epoch", refusal(&machine.Result{Refused: directory.ErrStaleEpoch, Epoch: 4}), codes.FailedPrecondition, "STALE_EPOCH", map[string]string{"epoch": "4"}},
		{"reserved", refusal(&machine.Result{Refused: directory.ErrReserved, Holder: be1, Age: 5}), codes.AlreadyExists, "RESERVED", map[string]string{"holder": be1, "age_ms": "5"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, got := s.toStatus(test.err)
			if status.Code(got) != test.code || reasonOf(got) != test.reason || !maps.Equal(metadataOfStatus(got), test.meta) {
				t.Errorf("got %v %s %v, want %v %s %v", status.Code(got), reasonOf(got), metadataOfStatus(got), test.code, test.reason, test.meta)
			}
		})
	}
	ready := status.Error(codes.NotFound, "of another service")
	if _, got := s.toStatus(ready); got != ready {
		t.Errorf("a status: got %v, want it as it is", got)
	}
}

// What the API and the directory number alike has the same names.
func TestNumbers(t *testing.T) {
	check := func(what, prefix string, names map[int32]string, text func(int32) string) {
		t.Helper()
		for number, name := range names {
			if number == 0 {
				continue
			}
			got := strings.ReplaceAll(strings.ToUpper(text(number)), "-", "_")
			if want := strings.TrimPrefix(name, prefix); got != want {
				t.Errorf("%s %d: got %s, the API says %s", what, number, got, want)
			}
		}
		if got := text(int32(len(names))); !strings.Contains(strings.ToLower(got), "unknown") && got != "" {
			t.Errorf("%s %d: got %s, which the API does not have", what, len(names), got)
		}
	}
	check("outcome", "OUTCOME_", apiv1.Outcome_name, func(n int32) string { return directory.Outcome(n).String() })
	check("fact state", "FACT_STATE_", apiv1.FactState_name, func(n int32) string { return directory.FactState(n).String() })
	check("standing", "STANDING_", apiv1.Standing_name, func(n int32) string { return directory.Standing(n - 1).String() })
	check("backend state", "BACKEND_STATE_", apiv1.BackendState_name, func(n int32) string { return directory.BackendState(n).String() })
	check("confirmation", "CONFIRMED_BY_", apiv1.ConfirmedBy_name, func(n int32) string { return directory.ConfirmedBy(n).String() })
	check("hold", "HOLD_KIND_", apiv1.HoldKind_name, func(n int32) string { return directory.HoldKind(n).String() })
	check("effect", "EFFECT_", apiv1.Effect_name, func(n int32) string { return client.Effect(n).String() })
	for number, want := range map[any]int32{
		machine.Unchanged: 1, machine.Added: 2, machine.Changed: 3, machine.Removed: 4, machine.Forked: 5, machine.MoveCompleted: 6, machine.MoveAborted: 7,
		machine.GuardHeld: 8, machine.NotHeld: 9, machine.AlreadyYours: 10, machine.CopyAllowed: 11, machine.NotAdmitted: 12, machine.Overtaken: 13, machine.NotSince: 14,
		directory.TLSNone: int32(apiv1.TlsMode_TLS_MODE_UNSPECIFIED), directory.TLSStart: int32(apiv1.TlsMode_TLS_MODE_START),
		directory.TLSImplicit: int32(apiv1.TlsMode_TLS_MODE_IMPLICIT),
		directory.ModeManual:  int32(apiv1.GroupMode_GROUP_MODE_MANUAL), directory.ModeAutomatic: int32(apiv1.GroupMode_GROUP_MODE_AUTOMATIC),
	} {
		if got := fmt.Sprintf("%d", number); got != fmt.Sprint(want) {
			t.Errorf("%T: got %s, the API says %d", number, got, want)
		}
	}
	if len(mailboxTypes) != len(apiv1.MailboxType_name) {
		t.Errorf("%d mailbox types, the API has %d", len(mailboxTypes), len(apiv1.MailboxType_name))
	}
	for i, want := range []directory.MailboxType{
		0, directory.TypeEmail, directory.TypeNews, directory.TypeCollection, directory.TypeCalendar, directory.TypeAddressbook,
		directory.TypeSubmission, directory.TypePush, directory.TypeSieve,
	} {
		if got := directory.MailboxType(mailboxTypes[i]); got != want || typeTo(want) != apiv1.MailboxType(i) {
			t.Errorf("mailbox type %s: got %c, want %c", apiv1.MailboxType(i), got, want)
		}
	}
}
