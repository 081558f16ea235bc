package client

import (
	"context"
	"fmt"
	"io"
	"iter"

	"github.com/rookery-mail/rookery/directory"
	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
)

// Lookup says where mailbox is. The route's Outcome is the answer; NotFound among
// them is a claim about the world, said only if no backend can hold it.
//
// Errors: directory.ErrInvalidName, ErrTooLarge; ErrUnavailable.
func (s *Session) Lookup(ctx context.Context, mailbox directory.MailboxName, opts ...ReadOption) (Route, error) {
	r := s.read(opts)
	m, a, err := ask(ctx, s, r, func(ctx context.Context, n *node, c *apiv1.Consistency) (*apiv1.LookupResponse, error) {
		return n.directory.Lookup(ctx, &apiv1.LookupRequest{Consistency: c, Mailbox: string(mailbox), Details: r.details})
	})
	if err != nil {
		return Route{}, err
	}
	return routeOf(m.GetRoute(), mailbox, a), nil
}

// LookupMany says where many mailboxes are, all at one revision, in the order
// asked: at most 1,000. A name that cannot be used has its Route.Err set.
//
// Errors: ErrTooLarge; ErrUnavailable.
func (s *Session) LookupMany(ctx context.Context, mailboxes []directory.MailboxName, opts ...ReadOption) ([]Route, error) {
	r := s.read(opts)
	names := make([]string, len(mailboxes))
	for i, name := range mailboxes {
		names[i] = string(name)
	}
	m, a, err := ask(ctx, s, r, func(ctx context.Context, n *node, c *apiv1.Consistency) (*apiv1.LookupManyResponse, error) {
		return n.directory.LookupMany(ctx, &apiv1.LookupManyRequest{Consistency: c, Mailboxes: names, Details: r.details})
	})
	if err != nil {
		return nil, err
	}
	if len(m.GetRoutes()) != len(names) {
		return nil, fmt.Errorf("%w: %d routes for %d names", ErrProtocol, len(m.GetRoutes()), len(names))
	}
	routes := make([]Route, len(names))
	for i, route := range m.GetRoutes() {
		routes[i] = routeOf(route, mailboxes[i], a)
	}
	for _, e := range m.GetErrors() {
		if i := int(e.GetIndex()); i < len(routes) {
			routes[i].Err = fromItem(e)
		}
	}
	return routes, nil
}

// LookupUser says where user's INBOX is. Errors as Lookup.
func (s *Session) LookupUser(ctx context.Context, user directory.UserID, opts ...ReadOption) (Route, error) {
	r := s.read(opts)
	m, a, err := ask(ctx, s, r, func(ctx context.Context, n *node, c *apiv1.Consistency) (*apiv1.LookupUserResponse, error) {
		return n.directory.LookupUser(ctx, &apiv1.LookupUserRequest{Consistency: c, User: string(user), Details: r.details})
	})
	if err != nil {
		return Route{}, err
	}
	return routeOf(m.GetRoute(), "", a), nil
}

// List returns what a user may LIST, whole or not at all, and all of one revision.
//
// Errors: directory.ErrInvalidPattern, ErrInvalidName, ErrInvalid (options that
// exclude each other); ErrUnavailable.
func (s *Session) List(ctx context.Context, q ListQuery, opts ...ReadOption) (Listing, error) {
	r := s.read(opts)
	var l Listing
	err := s.c.try(ctx, streaming, func(ctx context.Context, n *node) (err error) {
		var rows []ListRow
		l, err = s.list(ctx, n, r, q, func(row ListRow) error {
			rows = append(rows, row)
			return nil
		})
		l.Rows = rows
		return err
	})
	if err != nil {
		return Listing{}, err
	}
	return l, nil
}

// ListEach is List for long answers: it calls each with every row as it comes.
// Until it has returned without error, the rows are no answer. An error of each
// ends it and is returned. Once each was called, a failure is not made good by
// asking another node.
func (s *Session) ListEach(ctx context.Context, q ListQuery, each func(ListRow) error, opts ...ReadOption) (Listing, error) {
	r := s.read(opts)
	var l Listing
	var broken error
	err := s.c.try(ctx, streaming, func(ctx context.Context, n *node) error {
		begun := false
		var err error
		l, err = s.list(ctx, n, r, q, func(row ListRow) error {
			begun = true
			return each(row)
		})
		if err != nil && begun {
			broken = FromStatus(err)
			return nil
		}
		return err
	})
	if err == nil {
		err = broken
	}
	if err != nil {
		return Listing{}, err
	}
	return l, nil
}

// list asks one node.
func (s *Session) list(ctx context.Context, n *node, r *read, q ListQuery, each func(ListRow) error) (Listing, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c := s.refresh(r)
	stream, err := n.directory.List(ctx, listRequest(q, c))
	if err != nil {
		return Listing{}, s.reconsider(r, c.GetToken(), FromStatus(err))
	}
	var l Listing
	var rows uint64
	for first := true; ; first = false {
		m, err := stream.Recv()
		if err == io.EOF {
			return Listing{}, &Error{Message: fmt.Sprintf("client: the listing broke off after %d rows", rows), err: ErrUnavailable}
		}
		if err != nil {
			return Listing{}, s.reconsider(r, c.GetToken(), FromStatus(err))
		}
		if first {
			if l.Answer, err = s.take(m.GetHeader()); err != nil {
				return Listing{}, err
			}
		}
		for _, row := range m.GetRows() {
			rows++
			if err := each(rowOf(row)); err != nil {
				return Listing{}, err
			}
		}
		if end := m.GetSummary(); end != nil {
			if end.GetRows() != rows {
				return Listing{}, fmt.Errorf("%w: %d rows of a listing of %d", ErrProtocol, rows, end.GetRows())
			}
			l.Separator, l.Complete, l.Missing = end.GetSeparator(), end.GetComplete(), backends(end.GetMissing())
			// Reading to the end lets the stream go without canceling it.
			if _, err := stream.Recv(); err != nil && err != io.EOF {
				return Listing{}, FromStatus(err)
			}
			return l, nil
		}
	}
}

// Rights says what a user may do with one mailbox: MYRIGHTS.
//
// Errors: directory.ErrInvalidName, ErrInvalid; ErrUnavailable.
func (s *Session) Rights(ctx context.Context, q RightsQuery, opts ...ReadOption) (RightsAnswer, error) {
	req := &apiv1.RightsRequest{
		User:      string(q.Principal.User),
		AclGroups: q.Principal.Groups,
		AsAdmin:   q.Principal.Admin,
		Namespace: namespaceTo(q.Namespace),
	}
	if q.Mailbox != "" {
		req.Name = &apiv1.RightsRequest_Mailbox{Mailbox: string(q.Mailbox)}
	} else {
		req.Name = &apiv1.RightsRequest_ClientName{ClientName: q.ClientName}
	}
	m, a, err := ask(ctx, s, s.read(opts), func(ctx context.Context, n *node, c *apiv1.Consistency) (*apiv1.RightsResponse, error) {
		req.Consistency = c
		return n.directory.Rights(ctx, req)
	})
	if err != nil {
		return RightsAnswer{}, err
	}
	rights, err := directory.ParseRights(m.GetRights())
	if err != nil {
		return RightsAnswer{}, fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	return RightsAnswer{
		Answer:  a,
		Mailbox: directory.MailboxName(m.GetMailbox()),
		Outcome: directory.Outcome(m.GetOutcome()),
		Rights:  rights,
		Visible: m.GetVisible(),
	}, nil
}

// Find returns one page of the mailboxes that q asks for, with all their facts.
//
// Errors: directory.ErrInvalidName; ErrInvalidToken; ErrUnavailable.
func (s *Session) Find(ctx context.Context, q FindQuery, opts ...ReadOption) (FindPage, error) {
	m, a, err := ask(ctx, s, s.read(opts), func(ctx context.Context, n *node, c *apiv1.Consistency) (*apiv1.FindResponse, error) {
		return n.directory.Find(ctx, &apiv1.FindRequest{
			Consistency: c, Prefix: q.Prefix, Server: string(q.Server), PageSize: pageSize(q.PageSize), PageToken: q.Page,
		})
	})
	if err != nil {
		return FindPage{}, err
	}
	p := FindPage{Answer: a, Next: m.GetNextPageToken(), Mailboxes: make([]Route, len(m.GetMailboxes()))}
	for i, route := range m.GetMailboxes() {
		p.Mailboxes[i] = routeOf(route, "", a)
	}
	return p, nil
}

// FindAll yields all pages' mailboxes, one after the other. After an error, which
// it yields last, what came before is not all there is.
func (s *Session) FindAll(ctx context.Context, q FindQuery, opts ...ReadOption) iter.Seq2[Route, error] {
	return pages(func(page string) ([]Route, string, error) {
		q.Page = page
		p, err := s.Find(ctx, q, opts...)
		return p.Mailboxes, p.Next, err
	})
}

// pages yields the items of page after page.
func pages[T any](fetch func(page string) (items []T, next string, err error)) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		page := ""
		for {
			items, next, err := fetch(page)
			if err != nil {
				var none T
				yield(none, err)
				return
			}
			for _, item := range items {
				if !yield(item, nil) {
					return
				}
			}
			if page = next; page == "" {
				return
			}
		}
	}
}

// Assert states that a server holds a mailbox. It is accepted, whatever others
// say; the Effect tells what it meant.
//
// Errors: directory.ErrInvalidName, ErrInvalidACL, ErrTooLarge, ErrBusy,
// ErrReadOnly, ErrRole; ErrUnavailable, ErrUndecided.
func (s *Session) Assert(ctx context.Context, a Assert) (Result, error) {
	op := assertTo(a)
	return write(ctx, s, func(ctx context.Context, n *node, id *apiv1.RequestId) (*apiv1.AssertResponse, error) {
		return n.directory.Assert(ctx, &apiv1.AssertRequest{RequestId: id, Assert: op})
	})
}

// Retract takes a server's fact back, and only that. Nothing there: NotHeld.
//
// Errors: directory.ErrStaleEpoch, ErrInvalidName, ErrRole; ErrUnavailable,
// ErrUndecided.
func (s *Session) Retract(ctx context.Context, r Retract) (Result, error) {
	op := retractTo(r)
	return write(ctx, s, func(ctx context.Context, n *node, id *apiv1.RequestId) (*apiv1.RetractResponse, error) {
		return n.directory.Retract(ctx, &apiv1.RetractRequest{RequestId: id, Retract: op})
	})
}

// Reserve claims a name before its mailbox exists. AlreadyYours and CopyAllowed
// are answers, not errors.
//
// Errors: directory.ErrReserved and ErrExists (the *Error names the holder),
// ErrIncomplete, ErrNotPlaceable, ErrNotPrimary, ErrNotAdmitted, ErrInvalidName,
// ErrRole; ErrUnavailable, ErrUndecided.
func (s *Session) Reserve(ctx context.Context, r Reserve) (Result, error) {
	op := reserveTo(r)
	return write(ctx, s, func(ctx context.Context, n *node, id *apiv1.RequestId) (*apiv1.ReserveResponse, error) {
		return n.directory.Reserve(ctx, &apiv1.ReserveRequest{RequestId: id, Reserve: op})
	})
}

// Release gives a reservation back. None there: NotHeld.
//
// Errors: directory.ErrInvalidName, ErrRole; ErrUnavailable, ErrUndecided.
func (s *Session) Release(ctx context.Context, r Release) (Result, error) {
	op := releaseTo(r)
	return write(ctx, s, func(ctx context.Context, n *node, id *apiv1.RequestId) (*apiv1.ReleaseResponse, error) {
		return n.directory.Release(ctx, &apiv1.ReleaseRequest{RequestId: id, Release: op})
	})
}

// Deactivate gives a mailbox up to whoever asserts it next.
//
// Errors: directory.ErrNotHolder, ErrInvalidName, ErrRole; ErrUnavailable,
// ErrUndecided.
func (s *Session) Deactivate(ctx context.Context, d Deactivate) (Result, error) {
	op := deactivateTo(d)
	return write(ctx, s, func(ctx context.Context, n *node, id *apiv1.RequestId) (*apiv1.DeactivateResponse, error) {
		return n.directory.Deactivate(ctx, &apiv1.DeactivateRequest{RequestId: id, Deactivate: op})
	})
}

// Rename renames one server's facts in one step, or not at all.
//
// Errors: directory.ErrExists, ErrReserved, ErrNotHolder, ErrTooLarge,
// ErrInvalidName, ErrRole; ErrUnavailable, ErrUndecided.
func (s *Session) Rename(ctx context.Context, r Rename) (Result, error) {
	op := renameTo(r)
	return write(ctx, s, func(ctx context.Context, n *node, id *apiv1.RequestId) (*apiv1.RenameResponse, error) {
		return n.directory.Rename(ctx, &apiv1.RenameRequest{RequestId: id, Rename: op})
	})
}

// Subscribe subscribes a user to a mailbox, existing or not.
//
// Errors: directory.ErrInvalidName, ErrRole; ErrUnavailable, ErrUndecided.
func (s *Session) Subscribe(ctx context.Context, user directory.UserID, mailbox directory.MailboxName) (Result, error) {
	op := subscribeTo(Subscribe{User: user, Mailbox: mailbox})
	return write(ctx, s, func(ctx context.Context, n *node, id *apiv1.RequestId) (*apiv1.SubscribeResponse, error) {
		return n.directory.Subscribe(ctx, &apiv1.SubscribeRequest{RequestId: id, Subscribe: op})
	})
}

// Unsubscribe ends a subscription. None there: Unchanged. Errors as Subscribe.
func (s *Session) Unsubscribe(ctx context.Context, user directory.UserID, mailbox directory.MailboxName) (Result, error) {
	op := unsubscribeTo(Unsubscribe{User: user, Mailbox: mailbox})
	return write(ctx, s, func(ctx context.Context, n *node, id *apiv1.RequestId) (*apiv1.UnsubscribeResponse, error) {
		return n.directory.Unsubscribe(ctx, &apiv1.UnsubscribeRequest{RequestId: id, Unsubscribe: op})
	})
}

// ListSubscriptions yields a user's subscriptions in name order; the names need
// not exist. After an error, which it yields last, what came before is not all.
func (s *Session) ListSubscriptions(ctx context.Context, user directory.UserID, opts ...ReadOption) iter.Seq2[directory.MailboxName, error] {
	return pages(func(page string) ([]directory.MailboxName, string, error) {
		m, _, err := ask(ctx, s, s.read(opts), func(ctx context.Context, n *node, c *apiv1.Consistency) (*apiv1.ListSubscriptionsResponse, error) {
			return n.directory.ListSubscriptions(ctx, &apiv1.ListSubscriptionsRequest{Consistency: c, User: string(user), PageToken: page})
		})
		return mailboxes(m.GetMailboxes()), m.GetNextPageToken(), err
	})
}

// ListVanished yields the names that are no more, while that is remembered, in name
// order. After an error, which it yields last, what came before is not all.
func (s *Session) ListVanished(ctx context.Context, opts ...ReadOption) iter.Seq2[Vanished, error] {
	return pages(func(page string) ([]Vanished, string, error) {
		m, _, err := ask(ctx, s, s.read(opts), func(ctx context.Context, n *node, c *apiv1.Consistency) (*apiv1.ListVanishedResponse, error) {
			return n.directory.ListVanished(ctx, &apiv1.ListVanishedRequest{Consistency: c, PageToken: page})
		})
		out := make([]Vanished, len(m.GetVanished()))
		for i, v := range m.GetVanished() {
			out[i] = Vanished{
				Mailbox: directory.MailboxName(v.GetMailbox()),
				NewName: directory.MailboxName(v.GetNewName()),
				Age:     millis(v.GetAgeMs()),
			}
		}
		return out, m.GetNextPageToken(), err
	})
}

// Batch does several writes in one step, at most 10,000: one revision, a Result
// for each in their order, with Err set for those refused. A refused one changes
// nothing and stops nothing.
//
// Errors: directory.ErrTooLarge (split it), ErrRole; ErrUnavailable, ErrUndecided.
func (s *Session) Batch(ctx context.Context, ops []Op) ([]Result, error) {
	items := make([]*apiv1.BatchItem, len(ops))
	for i, op := range ops {
		items[i] = itemTo(op)
		if items[i] == nil {
			return nil, fmt.Errorf("%w: item %d of the batch is a %T", directory.ErrInvalid, i, op)
		}
	}
	m, a, err := tell(ctx, s, func(ctx context.Context, n *node, id *apiv1.RequestId) (*apiv1.BatchResponse, error) {
		return n.directory.Batch(ctx, &apiv1.BatchRequest{RequestId: id, Items: items})
	})
	if err != nil {
		return nil, err
	}
	if len(m.GetResults()) != len(ops) {
		return nil, fmt.Errorf("%w: %d results for a batch of %d", ErrProtocol, len(m.GetResults()), len(ops))
	}
	results := make([]Result, len(ops))
	for i, item := range m.GetResults() {
		if e := item.GetError(); e != nil {
			results[i].Err = fromItem(e)
			continue
		}
		results[i] = resultOf(item.GetResult())
		results[i].Answer = a
	}
	return results, nil
}
