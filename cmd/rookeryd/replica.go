package main

import (
	"context"
	"errors"
	"time"

	"github.com/rookery-mail/rookery/raftstore"
)

// replica is what operators may do to this node's replica.
type replica struct{ *raftstore.Store }

// Transfer hands the leadership over and waits until that node leads.
func (r replica) Transfer(ctx context.Context, node uint64) error {
	r.TransferLeader(node)
	for r.Status().Leader != node {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-r.Done():
			return r.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil
}

// Compact needs the node stopped in this release.
func (r replica) Compact(context.Context, func(done, total int64)) (before, after int64, err error) {
	return 0, 0, errors.New("the state file cannot be compacted while the node serves")
}
