package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
)

// library asks through the public client library, as programs do: its figures
// beside the stub's show what sessions, request ids and repeats cost.
type library struct {
	work    *work
	clients []*client.Client
}

func newLibrary(endpoints []string, connections int, w *work, opts ...client.Option) (*library, error) {
	l := &library{work: w}
	for range connections {
		c, err := client.Dial(endpoints, opts...)
		if err != nil {
			return nil, errors.Join(err, l.close())
		}
		l.clients = append(l.clients, c)
	}
	return l, nil
}

func (l *library) caller(w workload, worker int) (call, error) {
	c := l.clients[worker%len(l.clients)]
	chance := l.work.chance(worker)
	switch w.op {
	case opLookup:
		return func(ctx context.Context) error {
			r, err := c.Lookup(ctx, l.work.pop.name(l.work.anyMailbox(chance)))
			if err == nil && r.Outcome != directory.Serving {
				err = fmt.Errorf("%w: a route is %v", errWrong, r.Outcome)
			}
			return err
		}, nil
	case opList:
		return func(ctx context.Context) error {
			got, err := c.List(ctx, client.ListQuery{
				Principal: directory.Principal{User: l.work.pop.userID(l.work.anyWide(chance))},
				Patterns:  []string{"*"},
			})
			if err != nil {
				return err
			}
			return fifty(len(got.Rows), true)
		}, nil
	case opAssert:
		return func(ctx context.Context) error {
			r, err := c.Assert(ctx, l.work.changed(l.work.anyMailbox(chance)).assert())
			return wasChanged(r, err)
		}, nil
	case opBatch:
		var taken []int
		return func(ctx context.Context) error {
			taken = l.work.list.take(taken[:0], w.keys)
			ops := make([]client.Op, len(taken))
			for i, m := range taken {
				ops[i] = l.work.changed(m).assert()
			}
			results, err := c.Batch(ctx, ops)
			if err != nil {
				return err
			}
			for _, r := range results {
				if err := wasChanged(r, r.Err); err != nil {
					return err
				}
			}
			return nil
		}, nil
	}
	return nil, fmt.Errorf("client: no operation %d", w.op)
}

func wasChanged(r client.Result, err error) error {
	if err == nil && r.Effect != client.Changed {
		err = fmt.Errorf("%w: an assert of another UIDVALIDITY came to %v", errWrong, r.Effect)
	}
	return err
}

func (l *library) close() error {
	var errs []error
	for _, c := range l.clients {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}
