package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rookery-mail/rookery/raftstore"
	"github.com/rookery-mail/rookery/server"
)

// readiness lists what a node needs to answer.
func (n *node) readiness() []check {
	return []check{
		{"state", func() error {
			store := n.store.Load()
			if store == nil {
				return errWaiting
			}
			v, err := store.Read(context.Background(), raftstore.Local)
			if err != nil {
				return err
			}
			defer v.Release()
			begun, err := server.HasBegun(v, store, n.rules)
			if err == nil && !begun {
				err = errors.New("this life of the cluster has not begun: no leader was ever elected in it")
			}
			return err
		}, nil},
		{"freshness", func() error {
			switch age, known, err := n.age(); {
			case err != nil:
				return err
			case !known:
				return errors.New("no leader has been heard since the start")
			case age > staleAfter:
				return fmt.Errorf("the state is %s old, more than the %s that reads take by default", age.Round(time.Millisecond), staleAfter)
			}
			return nil
		}, func() string {
			age, known, err := n.age()
			if err != nil || !known {
				return ""
			}
			return fmt.Sprintf(", the state is %s old", age.Round(time.Millisecond))
		}},
	}
}

// age is how long ago this node's state was certainly the newest.
func (n *node) age() (age time.Duration, known bool, err error) {
	store := n.store.Load()
	if store == nil {
		return 0, false, errWaiting
	}
	v, err := store.Read(context.Background(), raftstore.Local)
	if err != nil {
		return 0, false, err
	}
	defer v.Release()
	age, known = v.Age()
	return age, known, nil
}

// errWaiting: there is no state yet.
var errWaiting = errors.New("this node waits for the others of its cluster (see its log)")

// leading reports whether this node leads.
func (n *node) leading() bool {
	store := n.store.Load()
	return store != nil && store.Status().Leading
}

// watchdog tells systemd that the node goes round: each sign of life follows a
// read of the state, not a timer alone.
func watchdog(ctx context.Context, n *notifier, store *raftstore.Store) error {
	every, err := n.watchdog()
	if err != nil || every == 0 {
		return err
	}
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		if v, err := store.Read(ctx, raftstore.Local); err == nil {
			v.Release()
			st := store.Status()
			role := "follower"
			if st.Leading {
				role = "leader"
			}
			_ = n.tell(fmt.Sprintf("WATCHDOG=1\nSTATUS=%s term %d applied %d", role, st.Term, st.Applied))
		}
	}
}
