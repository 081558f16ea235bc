package main

import (
	"context"

	"github.com/rookery-mail/rookery/client"
)

// item is one operation of an import, and where it comes from.
type item struct {
	op    client.Op
	name  string // of the mailbox
	place string // "file:line"
	size  int    // about, in octets
}

// sender sends items in batches, a few of them under way at a time, and hands
// each item's result to done in the order in which the items were added. Two
// batches under way may be carried out in either order, so two items that must
// keep theirs need a drain between them.
type sender struct {
	ctx  context.Context
	send func(context.Context, []item) ([]client.Result, error)
	done func(item, client.Result)

	batch  []item
	size   int
	flying []flight // oldest first
	err    error    // of the first batch that failed
}

type flight struct {
	items  []item
	landed chan landing
}

type landing struct {
	results []client.Result
	err     error
}

const (
	batchItems  = 500
	batchOctets = 1 << 20 // a request may have four times that
	inFlight    = 8
)

// add adds an item, and waits while enough is under way.
func (s *sender) add(it item) error {
	if len(s.batch) == batchItems || s.size+it.size > batchOctets && len(s.batch) > 0 {
		s.launch()
	}
	s.batch = append(s.batch, it)
	s.size += it.size
	return s.err
}

func (s *sender) launch() {
	if len(s.flying) == inFlight {
		s.land()
	}
	if s.err == nil {
		f := flight{s.batch, make(chan landing, 1)}
		s.flying = append(s.flying, f)
		go func() {
			results, err := s.send(s.ctx, f.items)
			f.landed <- landing{results, err}
		}()
	}
	s.batch, s.size = nil, 0
}

// land waits for the oldest batch under way. One that failed ends the sending;
// what came after it and was done is still counted.
func (s *sender) land() {
	f := s.flying[0]
	s.flying = s.flying[1:]
	l := <-f.landed
	if l.err != nil {
		if s.err == nil {
			s.err = l.err
		}
		return
	}
	for i, it := range f.items {
		s.done(it, l.results[i])
	}
}

// drain sends what is left and waits for everything under way.
func (s *sender) drain() error {
	if len(s.batch) > 0 {
		s.launch()
	}
	for len(s.flying) > 0 {
		s.land()
	}
	return s.err
}
