package oracle

import (
	"cmp"
	"errors"
	"fmt"
	"strings"

	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/directory/machine"
)

// FormatCommand is c as a script would have it.
func FormatCommand(c machine.Command) string {
	if c.Client != "" {
		return fmt.Sprintf("@%s/%d %s", c.Client, c.Sequence, FormatOp(c.Op))
	}
	return FormatOp(c.Op)
}

// FormatOp is op as a script would have it; the items of a batch on lines of their own.
func FormatOp(op machine.Op) string {
	var b strings.Builder
	say := func(format string, args ...any) { fmt.Fprintf(&b, format, args...) }
	flag := func(on bool, name string) {
		if on {
			say(" %s", name)
		}
	}
	quote := func(s string) string {
		if s == "" || strings.ContainsAny(s, " ") {
			return `"` + s + `"`
		}
		return s
	}
	word := func(s string) string { return cmp.Or(s, "<empty>") }
	switch op := op.(type) {
	case machine.Init:
		say("init")
		if op.Version > 0 {
			say(" version=%d", op.Version)
		}
	case machine.Assert:
		say("assert %s %s", word(string(op.Server)), word(string(op.Mailbox)))
		if op.Statement.Partition != "" {
			say(" partition=%s", op.Statement.Partition)
		}
		if op.Statement.ACL != nil {
			say(` acl="%s"`, strings.TrimSuffix(strings.ReplaceAll(*op.Statement.ACL, "\t", " "), " "))
		}
		if op.Statement.MailboxID != nil {
			say(" id=%s", quote(*op.Statement.MailboxID))
		}
		if op.Statement.UIDValidity != nil {
			say(" uidvalidity=%d", *op.Statement.UIDValidity)
		}
		if op.Statement.Type != nil {
			say(" type=%c", *op.Statement.Type)
		}
		if op.Statement.SpecialUse != nil {
			say(" special=%s", quote(*op.Statement.SpecialUse))
		}
		if op.Since != 0 {
			say(" since=%d", op.Since)
		}
		flag(op.Imported, "imported")
		flag(op.Deactivated, "deactivated")
	case machine.Retract:
		say("retract %s %s", word(string(op.Server)), word(string(op.Mailbox)))
		if op.Epoch != 0 {
			say(" epoch=%d", op.Epoch)
		}
		if op.Since != 0 {
			say(" since=%d", op.Since)
		}
		flag(op.Tentative, "tentative")
	case machine.Reserve:
		say("reserve %s %s", word(string(op.Server)), word(string(op.Mailbox)))
		if op.Partition != "" {
			say(" partition=%s", op.Partition)
		}
		if op.Grace != 0 {
			say(" grace=%s", op.Grace)
		}
	case machine.Release:
		say("release %s %s", word(string(op.Server)), word(string(op.Mailbox)))
	case machine.Deactivate:
		say("deactivate %s %s", word(string(op.Server)), word(string(op.Mailbox)))
	case machine.Rename:
		say("rename %s %s %s", word(string(op.Server)), word(string(op.From)), word(string(op.To)))
		flag(op.Recursive, "recursive")
	case machine.SetPrimary:
		say("switchover %s %s epoch=%d", word(string(op.Group)), word(string(op.To)), op.Epoch)
		if op.Reason != "" {
			say(" reason=%s", quote(op.Reason))
		}
		flag(op.AcceptMissing, "accept-missing")
	case machine.SetGroup:
		say("group %s", word(string(op.Group)))
		for _, m := range op.Members {
			say(" %s", m)
		}
		if op.Mode != 0 {
			say(" mode=%d", op.Mode)
		}
		flag(op.AcceptMissing, "accept-missing")
	case machine.SetBackend:
		say("backend %s", word(string(op.Server)))
		if op.State != nil {
			say(" state=%s", *op.State)
		}
		if op.Weight != nil {
			say(" weight=%d", *op.Weight)
		}
		if op.DrainApproved != nil {
			say(" drain-approved=%t", *op.DrainApproved)
		}
		if op.Addresses != nil {
			for _, a := range *op.Addresses {
				say(" %s=%s:%d", a.Service, a.IP, a.Port)
			}
		}
		flag(op.Create, "create")
	case machine.Admit:
		say("admit %s", word(string(op.Server)))
	case machine.Confirm:
		say("confirm %s how=%s", word(string(op.Server)), op.How)
		if op.Incarnation != 0 {
			say(" life=%d", op.Incarnation)
		}
	case machine.RenameBackend:
		say("rename-backend %s %s", word(string(op.From)), word(string(op.To)))
	case machine.Subscribe:
		say("subscribe %s %s", word(string(op.User)), word(string(op.Mailbox)))
	case machine.Unsubscribe:
		say("unsubscribe %s %s", word(string(op.User)), word(string(op.Mailbox)))
	case machine.Settle:
		say("settle %s %s", word(string(op.Keep)), word(string(op.Mailbox)))
	case machine.Hold:
		say("hold %s %s for=%s", op.Kind, word(op.Key), op.For)
		if op.Why != "" {
			say(" why=%s", quote(op.Why))
		}
	case machine.SetAlarm:
		if !op.On {
			say("disarm %s %s", op.Kind, word(op.Node))
			break
		}
		say("alarm %s %s voters=%d", op.Kind, word(op.Node), op.Voters)
		if !op.Voter {
			say(" learner")
		}
		if op.Why != "" {
			say(" why=%s", quote(op.Why))
		}
	case machine.ReleaseHold:
		say("release-hold %s %s", op.Kind, word(op.Key))
	case machine.DecideHeld:
		if op.Approve {
			say("approve %s", op.Server)
		} else {
			say("reject %s", op.Server)
		}
	case machine.SetSettings:
		s, d := op.Settings, directory.DefaultSettings()
		say("settings")
		one := func(name string, v, def any) {
			if v != def {
				say(" %s=%v", name, v)
			}
		}
		one("default-domain", s.DefaultDomain, d.DefaultDomain)
		one("admission-open", s.AdmissionOpen, d.AdmissionOpen)
		one("read-only", s.ReadOnly, d.ReadOnly)
		one("automation-paused", s.AutomationPaused, d.AutomationPaused)
		one("guard-count", s.GuardCount, d.GuardCount)
		one("guard-percent", s.GuardPercent, d.GuardPercent)
		one("guard-window", s.GuardWindow, d.GuardWindow)
		one("reserve-grace", s.ReserveGrace, d.ReserveGrace)
		one("reserve-max", s.ReserveMax, d.ReserveMax)
		one("delivery-grace", s.DeliveryGrace, d.DeliveryGrace)
		one("tombstone-keep", s.TombstoneKeep, d.TombstoneKeep)
		one("request-keep", s.RequestKeep, d.RequestKeep)
	case machine.Tick:
		say("tick")
	case machine.Restore:
		say("restore %d", op.Incarnation)
	case machine.Finalize:
		say("finalize from=%d to=%d", op.From, op.To)
	case machine.Batch:
		say("batch")
		for _, item := range op.Ops {
			say("\n| %s", FormatOp(item))
		}
	}
	return b.String()
}

var effects = map[machine.Effect]string{
	machine.Unchanged: "unchanged", machine.Added: "added", machine.Changed: "changed", machine.Removed: "removed",
	machine.Forked: "forked", machine.MoveCompleted: "move-completed", machine.MoveAborted: "move-aborted",
	machine.GuardHeld: "guard-held", machine.NotHeld: "not-held", machine.AlreadyYours: "already-yours",
	machine.CopyAllowed: "copy-allowed", machine.NotAdmitted: "not-admitted", machine.Overtaken: "overtaken",
	machine.NotSince: "not-since",
}

var sentinels = []struct {
	err  error
	name string
}{
	{directory.ErrInvalidName, "INVALID_NAME"}, {directory.ErrInvalidACL, "INVALID_ACL"},
	{directory.ErrInvalidLocation, "INVALID_LOCATION"}, {directory.ErrInvalidPattern, "INVALID_PATTERN"},
	{directory.ErrInvalid, "INVALID"}, {directory.ErrTooLarge, "TOO_LARGE"}, {directory.ErrNotFound, "NOT_FOUND"},
	{directory.ErrReserved, "RESERVED"}, {directory.ErrExists, "EXISTS"}, {directory.ErrIncomplete, "INCOMPLETE"},
	{directory.ErrNotPlaceable, "NOT_PLACEABLE"}, {directory.ErrNotAdmitted, "NOT_ADMITTED"},
	{directory.ErrStaleEpoch, "STALE_EPOCH"}, {directory.ErrNotPrimary, "NOT_PRIMARY"},
	{directory.ErrNotMember, "NOT_MEMBER"}, {directory.ErrMissingAtTarget, "MISSING_AT_TARGET"},
	{directory.ErrNotHolder, "NOT_HOLDER"}, {directory.ErrBusy, "BUSY"}, {directory.ErrReadOnly, "READ_ONLY"},
	{directory.ErrStaleRequest, "STALE_REQUEST"}, {directory.ErrVersion, "VERSION"}, {directory.ErrRole, "ROLE"},
}

// SentinelName is the name of the rejection that err is, "" for nil.
func SentinelName(err error) string {
	if err == nil {
		return ""
	}
	for _, s := range sentinels {
		if errors.Is(err, s.err) {
			return s.name
		}
	}
	return "UNKNOWN: " + err.Error()
}

// FormatResult is what a command came to, in words.
func FormatResult(r machine.Result) string {
	text := cmp.Or(effects[r.Effect], fmt.Sprintf("effect-%d", r.Effect))
	if r.Refused != nil {
		text = "refused " + SentinelName(r.Refused)
	}
	if r.Holder != "" && (errors.Is(r.Refused, directory.ErrExists) || errors.Is(r.Refused, directory.ErrReserved)) {
		text += fmt.Sprintf(" holder=%s age=%s", r.Holder, r.Age)
	}
	if r.Count != 0 {
		text += fmt.Sprintf(" count=%d", r.Count)
	}
	if r.Epoch != 0 {
		text += fmt.Sprintf(" epoch=%d", r.Epoch)
	}
	if r.Deadline != 0 {
		text += fmt.Sprintf(" deadline=%s", r.Deadline)
	}
	return text
}
