package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/directory/machine"
	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
)

// directoryService is DirectoryService of the API.
type directoryService struct {
	apiv1.UnimplementedDirectoryServiceServer
	s *Server
}

// maxLookups is how many names one LookupMany may ask for.
const maxLookups = 1000

// lookupAnswer is a LookupResponse in one piece.
type lookupAnswer struct {
	response apiv1.LookupResponse
	header   apiv1.ResponseHeader
	route    apiv1.Route
}

func (d *directoryService) Lookup(ctx context.Context, req *apiv1.LookupRequest) (*apiv1.LookupResponse, error) {
	name, err := directory.ParseName(req.GetMailbox())
	if err != nil {
		return nil, err
	}
	out := new(lookupAnswer)
	if err := d.lookup(ctx, req.GetConsistency(), name, req.GetDetails(), out); err != nil {
		return nil, err
	}
	return &out.response, nil
}

// userOf reads a user id as a request has it.
func (s *Server) userOf(text string) (directory.UserID, error) {
	user, err := directory.ParseUser(text)
	if err != nil {
		return "", err
	}
	return s.fold(user)
}

// fold leaves the default domain out of a user id: canonical ids have none, and
// who asks with a mail address at hand may not know which domain that is.
func (s *Server) fold(user directory.UserID) (directory.UserID, error) {
	if user.Domain() == "" {
		return user, nil
	}
	v, err := s.store.Local()
	if err != nil {
		return "", err
	}
	defer v.Release()
	settings, err := s.machine.Settings(v)
	if err != nil {
		return "", err
	}
	return user.OmitDomain(settings.DefaultDomain), nil
}

func (d *directoryService) LookupUser(ctx context.Context, req *apiv1.LookupUserRequest) (*apiv1.LookupUserResponse, error) {
	user, err := d.s.userOf(req.GetUser())
	if err != nil {
		return nil, err
	}
	name, err := user.Inbox()
	if err != nil {
		return nil, err
	}
	out := new(lookupAnswer)
	if err := d.lookup(ctx, req.GetConsistency(), name, req.GetDetails(), out); err != nil {
		return nil, err
	}
	out.route.Mailbox = string(name)
	return &apiv1.LookupUserResponse{Header: &out.header, Route: &out.route}, nil
}

// lookup answers for one name.
func (d *directoryService) lookup(ctx context.Context, c *apiv1.Consistency, name directory.MailboxName, details bool, out *lookupAnswer) error {
	s := d.s
	r, err := s.read(ctx, c)
	if err != nil {
		return err
	}
	defer func() { r.Release() }()
	a, err := s.machine.Lookup(r, name, details)
	if err != nil {
		return err
	}
	why := ""
	if a.Outcome == directory.NotFound {
		if why, err = s.confirm(ctx, &r); err != nil {
			return err
		}
		if why == "" {
			if a, err = s.machine.Lookup(r, name, details); err != nil {
				return err
			}
		}
	}
	out.response.Header = s.header(&out.header, &r, a.Revision)
	out.response.Route = s.route(&out.route, &a, details, why)
	return nil
}

// confirm makes r linearizable, because something that it shows to be absent can
// only be said to be so of the whole cluster's state. If that cannot be had, r
// stays and confirm says why: absence is unconfirmed then, and the caller must
// say that instead.
func (s *Server) confirm(ctx context.Context, r *read) (why string, err error) {
	if !s.store.Verified() {
		return "this node's state file is still being verified after its start", nil
	}
	if r.linearizable {
		return "", nil
	}
	bounded, cancel := context.WithTimeout(ctx, s.confirmFor)
	defer cancel()
	v, err := s.store.Linearizable(bounded)
	if err == nil {
		r.Release()
		r.View, r.linearizable = v, true
		return "", nil
	}
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	return fmt.Sprintf("no majority could be asked whether it exists: %v", err), nil
}

func (d *directoryService) LookupMany(ctx context.Context, req *apiv1.LookupManyRequest) (*apiv1.LookupManyResponse, error) {
	s := d.s
	asked := req.GetMailboxes()
	if len(asked) > maxLookups {
		return nil, fmt.Errorf("%w: %d names, at most %d; split them", directory.ErrTooLarge, len(asked), maxLookups)
	}
	out := &apiv1.LookupManyResponse{Routes: make([]*apiv1.Route, len(asked))}
	routes := make([]apiv1.Route, len(asked))
	names := make([]directory.MailboxName, 0, len(asked))
	place := make([]int, 0, len(asked)) // of each name in the request
	for i, text := range asked {
		out.Routes[i] = &routes[i]
		name, err := directory.ParseName(text)
		if err != nil {
			out.Errors = append(out.Errors, toError(err, i))
			continue
		}
		names, place = append(names, name), append(place, i)
	}
	r, err := s.read(ctx, req.GetConsistency())
	if err != nil {
		return nil, err
	}
	defer func() { r.Release() }()
	answers, err := s.machine.LookupMany(r, names, req.GetDetails())
	if err != nil {
		return nil, err
	}
	why := ""
	if slices.ContainsFunc(answers, func(a machine.Answer) bool { return a.Outcome == directory.NotFound }) {
		if why, err = s.confirm(ctx, &r); err != nil {
			return nil, err
		}
		if why == "" {
			if answers, err = s.machine.LookupMany(r, names, req.GetDetails()); err != nil {
				return nil, err
			}
		}
	}
	for i := range answers {
		s.route(&routes[place[i]], &answers[i], req.GetDetails(), why)
	}
	if out.Header, err = s.headerOf(&r); err != nil {
		return nil, err
	}
	return out, nil
}

func (d *directoryService) Rights(ctx context.Context, req *apiv1.RightsRequest) (*apiv1.RightsResponse, error) {
	s := d.s
	who, err := directory.ParsePrincipal(req.GetUser(), req.GetAclGroups(), req.GetAsAdmin())
	if err == nil {
		who.User, err = s.fold(who.User)
	}
	if err != nil {
		return nil, err
	}
	r, err := s.read(ctx, req.GetConsistency())
	if err != nil {
		return nil, err
	}
	defer func() { r.Release() }()
	q := machine.RightsQuery{Principal: who}
	switch name := req.GetName().(type) {
	case *apiv1.RightsRequest_Mailbox:
		q.Mailbox, err = directory.ParseName(name.Mailbox)
	case *apiv1.RightsRequest_ClientName:
		var ns directory.Namespace
		if ns, err = s.namespace(r, req.GetNamespace()); err == nil {
			q.Mailbox, err = ns.FromClient(name.ClientName, who)
		}
	default:
		err = fmt.Errorf("%w: no mailbox named", directory.ErrInvalid)
	}
	if err != nil {
		return nil, err
	}
	a, err := s.machine.MyRights(r, q)
	if err != nil {
		return nil, err
	}
	if a.Outcome == directory.NotFound {
		why, err := s.confirm(ctx, &r)
		if err != nil {
			return nil, err
		}
		if why != "" {
			a.Outcome = directory.Unconfirmed
		} else if a, err = s.machine.MyRights(r, q); err != nil {
			return nil, err
		}
	}
	return &apiv1.RightsResponse{
		Header:  s.header(new(apiv1.ResponseHeader), &r, a.Revision),
		Mailbox: string(q.Mailbox),
		Outcome: apiv1.Outcome(a.Outcome),
		Rights:  a.Rights.String(),
		Visible: a.Visible,
	}, nil
}

func (d *directoryService) Find(ctx context.Context, req *apiv1.FindRequest) (*apiv1.FindResponse, error) {
	s := d.s
	q := machine.FindQuery{Prefix: req.GetPrefix(), Limit: pageSize(req.GetPageSize(), machine.MaxFind)}
	if err := checkPrefix(q.Prefix); err != nil {
		return nil, err
	}
	var err error
	if req.GetServer() != "" {
		if q.Server, err = directory.ParseBackend(req.GetServer()); err != nil {
			return nil, err
		}
	}
	about := []string{"find", q.Prefix, string(q.Server)}
	if q.After, err = openPage(req.GetPageToken(), about...); err != nil {
		return nil, err
	}
	r, err := s.read(ctx, req.GetConsistency())
	if err != nil {
		return nil, err
	}
	defer r.Release()
	found, next, err := s.machine.Find(r, q)
	if err != nil {
		return nil, err
	}
	out := &apiv1.FindResponse{Mailboxes: s.routes(found), NextPageToken: page(next, about...)}
	if out.Header, err = s.headerOf(&r); err != nil {
		return nil, err
	}
	return out, nil
}

func (d *directoryService) ListSubscriptions(ctx context.Context, req *apiv1.ListSubscriptionsRequest) (*apiv1.ListSubscriptionsResponse, error) {
	s := d.s
	user, err := s.userOf(req.GetUser())
	if err != nil {
		return nil, err
	}
	about := []string{"subscriptions", string(user)}
	after, err := openPage(req.GetPageToken(), about...)
	if err != nil {
		return nil, err
	}
	r, err := s.read(ctx, req.GetConsistency())
	if err != nil {
		return nil, err
	}
	defer r.Release()
	names, next, err := s.machine.Subscriptions(r, user, after, pageSize(req.GetPageSize(), machine.MaxSubscriptions))
	if err != nil {
		return nil, err
	}
	out := &apiv1.ListSubscriptionsResponse{Mailboxes: make([]string, len(names)), NextPageToken: page(next, about...)}
	for i, name := range names {
		out.Mailboxes[i] = string(name)
	}
	if out.Header, err = s.headerOf(&r); err != nil {
		return nil, err
	}
	return out, nil
}

func (d *directoryService) ListVanished(ctx context.Context, req *apiv1.ListVanishedRequest) (*apiv1.ListVanishedResponse, error) {
	s := d.s
	after, err := openPage(req.GetPageToken(), "vanished")
	if err != nil {
		return nil, err
	}
	r, err := s.read(ctx, req.GetConsistency())
	if err != nil {
		return nil, err
	}
	defer r.Release()
	list, next, err := s.machine.Vanished(r, after, pageSize(req.GetPageSize(), machine.MaxVanished))
	if err != nil {
		return nil, err
	}
	sight, err := s.machine.Look(r)
	if err != nil {
		return nil, err
	}
	out := &apiv1.ListVanishedResponse{Vanished: make([]*apiv1.Vanished, len(list)), NextPageToken: page(next, "vanished")}
	for i := range list {
		t := &list[i]
		out.Vanished[i] = &apiv1.Vanished{Mailbox: string(t.Name), NewName: string(t.NewName), AgeMs: uint64(since(sight.Now(), t.Time))}
	}
	if out.Header, err = s.headerOf(&r); err != nil {
		return nil, err
	}
	return out, nil
}

func (d *directoryService) Assert(ctx context.Context, req *apiv1.AssertRequest) (*apiv1.AssertResponse, error) {
	op, err := assertOf(callerOf(ctx), req.GetAssert())
	if err != nil {
		return nil, err
	}
	header, result, err := d.s.write(ctx, req.GetRequestId(), op)
	return &apiv1.AssertResponse{Header: header, Result: result}, err
}

func (d *directoryService) Retract(ctx context.Context, req *apiv1.RetractRequest) (*apiv1.RetractResponse, error) {
	op, err := retractOf(callerOf(ctx), req.GetRetract())
	if err != nil {
		return nil, err
	}
	header, result, err := d.s.write(ctx, req.GetRequestId(), op)
	return &apiv1.RetractResponse{Header: header, Result: result}, err
}

func (d *directoryService) Reserve(ctx context.Context, req *apiv1.ReserveRequest) (*apiv1.ReserveResponse, error) {
	op, err := reserveOf(callerOf(ctx), req.GetReserve())
	if err != nil {
		return nil, err
	}
	header, result, err := d.s.write(ctx, req.GetRequestId(), op)
	if errors.Is(err, directory.ErrIncomplete) {
		err = d.s.nameMissing(err)
	}
	return &apiv1.ReserveResponse{Header: header, Result: result}, err
}

// nameMissing adds to an INCOMPLETE who has not been heard, as this node knows.
func (s *Server) nameMissing(incomplete error) error {
	v, err := s.store.Local()
	if err != nil {
		return incomplete
	}
	defer v.Release()
	st, err := s.machine.Status(v)
	if err != nil {
		return incomplete
	}
	return withMetadata(incomplete, "missing", strings.Join(names(st.Missing, maxMissing), " "))
}

func (d *directoryService) Release(ctx context.Context, req *apiv1.ReleaseRequest) (*apiv1.ReleaseResponse, error) {
	op, err := releaseOf(callerOf(ctx), req.GetRelease())
	if err != nil {
		return nil, err
	}
	header, result, err := d.s.write(ctx, req.GetRequestId(), op)
	return &apiv1.ReleaseResponse{Header: header, Result: result}, err
}

func (d *directoryService) Deactivate(ctx context.Context, req *apiv1.DeactivateRequest) (*apiv1.DeactivateResponse, error) {
	op, err := deactivateOf(callerOf(ctx), req.GetDeactivate())
	if err != nil {
		return nil, err
	}
	header, result, err := d.s.write(ctx, req.GetRequestId(), op)
	return &apiv1.DeactivateResponse{Header: header, Result: result}, err
}

func (d *directoryService) Rename(ctx context.Context, req *apiv1.RenameRequest) (*apiv1.RenameResponse, error) {
	op, err := renameOf(callerOf(ctx), req.GetRename())
	if err != nil {
		return nil, err
	}
	header, result, err := d.s.write(ctx, req.GetRequestId(), op)
	return &apiv1.RenameResponse{Header: header, Result: result}, err
}

func (d *directoryService) Subscribe(ctx context.Context, req *apiv1.SubscribeRequest) (*apiv1.SubscribeResponse, error) {
	op, err := subscribeOf(req.GetSubscribe())
	if err != nil {
		return nil, err
	}
	header, result, err := d.s.write(ctx, req.GetRequestId(), op)
	return &apiv1.SubscribeResponse{Header: header, Result: result}, err
}

func (d *directoryService) Unsubscribe(ctx context.Context, req *apiv1.UnsubscribeRequest) (*apiv1.UnsubscribeResponse, error) {
	op, err := unsubscribeOf(req.GetUnsubscribe())
	if err != nil {
		return nil, err
	}
	header, result, err := d.s.write(ctx, req.GetRequestId(), op)
	return &apiv1.UnsubscribeResponse{Header: header, Result: result}, err
}

// Batch proposes what can be proposed. Items that are refused here, by their form
// or the caller's role, are left out of the command and stand in the answer with
// the others.
func (d *directoryService) Batch(ctx context.Context, req *apiv1.BatchRequest) (*apiv1.BatchResponse, error) {
	items := req.GetItems()
	if len(items) > directory.MaxBatch {
		return nil, fmt.Errorf("%w: %d items in a batch, at most %d; split it", directory.ErrTooLarge, len(items), directory.MaxBatch)
	}
	out := &apiv1.BatchResponse{Results: make([]*apiv1.BatchResult, len(items))}
	var batch machine.Batch
	place := make([]int, 0, len(items)) // of each operation in the request
	for i, item := range items {
		op, err := itemOf(callerOf(ctx), item)
		if err != nil {
			out.Results[i] = &apiv1.BatchResult{Outcome: &apiv1.BatchResult_Error{Error: toError(err, i)}}
			continue
		}
		batch.Ops, place = append(batch.Ops, op), append(place, i)
	}
	result, err := d.s.propose(ctx, req.GetRequestId(), batch)
	if err != nil {
		return nil, err
	}
	if len(result.Items) != len(batch.Ops) {
		return nil, fmt.Errorf("%w: the request id was used for another batch of %d items", directory.ErrInvalid, len(result.Items))
	}
	for i := range result.Items {
		item := &result.Items[i]
		if item.Refused != nil {
			e := toError(refusal(item), place[i])
			out.Results[place[i]] = &apiv1.BatchResult{Outcome: &apiv1.BatchResult_Error{Error: e}}
			continue
		}
		out.Results[place[i]] = &apiv1.BatchResult{Outcome: &apiv1.BatchResult_Result{Result: resultTo(item)}}
	}
	out.Header, err = d.s.written(result)
	return out, err
}
