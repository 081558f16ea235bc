package calls

import (
	"context"
	"fmt"
	"time"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory/machine"
)

// Do makes the call of the client library that asks for op. Its errors are that
// call's; of an op that no call asks for, one that says so.
func Do(ctx context.Context, c *client.Client, op machine.Op) (client.Result, error) {
	switch op := op.(type) {
	case machine.Assert:
		return c.Assert(ctx, item(op).(client.Assert))
	case machine.Retract:
		return c.Retract(ctx, item(op).(client.Retract))
	case machine.Reserve:
		return c.Reserve(ctx, item(op).(client.Reserve))
	case machine.Release:
		return c.Release(ctx, item(op).(client.Release))
	case machine.Deactivate:
		return c.Deactivate(ctx, item(op).(client.Deactivate))
	case machine.Rename:
		return c.Rename(ctx, item(op).(client.Rename))
	case machine.Subscribe:
		return c.Subscribe(ctx, op.User, op.Mailbox)
	case machine.Unsubscribe:
		return c.Unsubscribe(ctx, op.User, op.Mailbox)
	case machine.SetPrimary:
		return c.SetPrimary(ctx, client.SetPrimary{Group: op.Group, To: op.To, Epoch: op.Epoch, Reason: op.Reason, AcceptMissing: op.AcceptMissing})
	case machine.SetGroup:
		return c.SetGroup(ctx, client.SetGroup{Group: op.Group, Members: op.Members, Mode: op.Mode, AcceptMissing: op.AcceptMissing})
	case machine.SetBackend:
		return c.SetBackend(ctx, op.Server, client.BackendChange{Addresses: op.Addresses, Weight: op.Weight, State: op.State, DrainApproved: op.DrainApproved, Create: op.Create})
	case machine.Admit:
		return c.AdmitBackend(ctx, op.Server)
	case machine.Confirm:
		return c.ConfirmBackend(ctx, op.Server, op.How)
	case machine.RenameBackend:
		return c.RenameBackend(ctx, op.From, op.To)
	case machine.Settle:
		return c.Settle(ctx, op.Mailbox, op.Keep)
	case machine.Hold:
		return c.PutHold(ctx, op.Kind, op.Key, time.Duration(op.For)*time.Millisecond, op.Why)
	case machine.ReleaseHold:
		return c.ReleaseHold(ctx, op.Kind, op.Key)
	case machine.DecideHeld:
		return c.DecideHeld(ctx, op.Server, op.Approve)
	case machine.SetAlarm:
		return c.DisarmAlarm(ctx, op.Kind, op.Node)
	}
	return client.Result{}, fmt.Errorf("calls: no call asks for %T", op)
}

// Batch makes the call that asks for all of b in one command.
func Batch(ctx context.Context, c *client.Client, b machine.Batch) ([]client.Result, error) {
	ops := make([]client.Op, len(b.Ops))
	for i, op := range b.Ops {
		if ops[i] = item(op); ops[i] == nil {
			return nil, fmt.Errorf("calls: no batch can have %T", op)
		}
	}
	return c.Batch(ctx, ops)
}

// item is an op as the client library has it, in a batch too; nil: no batch can have it.
func item(op machine.Op) client.Op {
	switch op := op.(type) {
	case machine.Assert:
		return client.Assert{Mailbox: op.Mailbox, Server: op.Server, Statement: op.Statement, Imported: op.Imported, Deactivated: op.Deactivated, Since: op.Since}
	case machine.Retract:
		return client.Retract{Mailbox: op.Mailbox, Server: op.Server, Epoch: op.Epoch, Tentative: op.Tentative, Since: op.Since}
	case machine.Reserve:
		return client.Reserve{Mailbox: op.Mailbox, Server: op.Server, Partition: op.Partition, Grace: time.Duration(op.Grace) * time.Millisecond}
	case machine.Release:
		return client.Release{Mailbox: op.Mailbox, Server: op.Server, Since: op.Since}
	case machine.Deactivate:
		return client.Deactivate{Mailbox: op.Mailbox, Server: op.Server}
	case machine.Rename:
		return client.Rename{From: op.From, To: op.To, Recursive: op.Recursive, Server: op.Server}
	case machine.Subscribe:
		return client.Subscribe{User: op.User, Mailbox: op.Mailbox}
	case machine.Unsubscribe:
		return client.Unsubscribe{User: op.User, Mailbox: op.Mailbox}
	}
	return nil
}
