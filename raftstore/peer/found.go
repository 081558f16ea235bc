package peer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	peerv1 "github.com/rookery-mail/rookery/proto/peer/v1"
	"github.com/rookery-mail/rookery/raftstore"
)

// Founder is a node of a cluster that is to be founded.
type Founder struct{ Name, Address string }

// Founding is what Found comes to: the list to found the cluster with, or, if
// the others have done so already, the cluster to go on in.
type Founding struct {
	Initial []raftstore.Member
	Join    *raftstore.Joining
}

// ErrRunning: the cluster that this node was to found runs already, without it.
var ErrRunning = errors.New("peer: this directory is empty but the cluster runs")

// How often the others are asked, and what is missing is logged.
const (
	greetEvery = 200 * time.Millisecond
	missingLog = 10 * time.Second
)

// Found asks the other founders who they are until all have answered: so all
// make the same list, which is what their states have to begin with. waiting,
// which may be nil, is told who is missing whenever that is logged.
//
// Errors: ErrRunning, the context's, and a text if an address belongs to
// another node than the list says.
func (t *Transport) Found(ctx context.Context, founders []Founder, waiting func(names []string)) (*Founding, error) {
	self := raftstore.Member{ID: t.cfg.Birth, Name: t.cfg.Name, Context: t.cfg.Info.Context()}
	known := map[string]raftstore.Member{t.cfg.Name: self}
	asked := make(map[string]error)
	var logged time.Time
	for {
		answers, missing := t.greetAll(ctx, founders, known)
		for _, f := range missing {
			g, err := answers[f.Name].resp, answers[f.Name].err
			if err == nil {
				var m *raftstore.Member
				var done *Founding
				if m, done, err = t.judgeGreeting(f, g); done != nil {
					return done, nil
				} else if m != nil {
					known[f.Name] = *m
					t.log.Info("founder answered", "peer", f.Name, "addr", f.Address)
					continue
				}
			}
			if _, fatal := errors.AsType[*foundError](err); fatal {
				return nil, err
			}
			asked[f.Name] = err
		}
		if len(known) == len(founders) {
			return &Founding{Initial: slices.Collect(maps.Values(known))}, nil
		}
		if time.Since(logged) >= missingLog {
			logged = time.Now()
			var names []string
			for _, f := range founders {
				if _, ok := known[f.Name]; !ok {
					names = append(names, f.Name)
					t.log.Info("waiting for a node of the initial cluster", "peer", f.Name, "addr", f.Address, "err", asked[f.Name])
				}
			}
			if waiting != nil {
				waiting(names)
			}
		}
		if !sleep(ctx, greetEvery) {
			return nil, ctx.Err()
		}
	}
}

// foundError ends a founding.
type foundError struct{ error }

func (e *foundError) Unwrap() error { return e.error }

type greeting struct {
	resp *peerv1.GreetResponse
	err  error
}

// greetAll asks those who are not known yet, all at once.
func (t *Transport) greetAll(ctx context.Context, founders []Founder, known map[string]raftstore.Member) (map[string]greeting, []Founder) {
	answers := make(map[string]greeting)
	var missing []Founder
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, f := range founders {
		if _, ok := known[f.Name]; ok {
			continue
		}
		missing = append(missing, f)
		wg.Go(func() {
			resp, err := t.greet(ctx, f.Name, f.Address)
			mu.Lock()
			defer mu.Unlock()
			answers[f.Name] = greeting{resp, err}
		})
	}
	wg.Wait()
	return answers, missing
}

func (t *Transport) greet(ctx context.Context, name, address string) (*peerv1.GreetResponse, error) {
	conn, dialed, err := t.dial(name, address)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, dialPatience)
	defer cancel()
	resp, err := peerv1.NewPeerServiceClient(conn).Greet(ctx, &peerv1.GreetRequest{
		Name: t.cfg.Name, Birth: t.cfg.Birth, Info: infoTo(t.cfg.Info), Initial: t.cfg.Initial,
		Versions: versionsTo(t.cfg.Versions),
	})
	if err != nil {
		return nil, plain(err, dialed)
	}
	t.support(resp.GetBirth(), resp.GetVersions())
	return resp, nil
}

// judgeGreeting returns the member that has answered, or what to do at once.
func (t *Transport) judgeGreeting(f Founder, g *peerv1.GreetResponse) (*raftstore.Member, *Founding, error) {
	if g.GetName() != f.Name {
		return nil, nil, &foundError{fmt.Errorf("peer: the node at %s is %s, --initial-cluster says %s", f.Address, g.GetName(), f.Name)}
	}
	if !g.GetExists() {
		switch {
		case g.GetBirth() == 0:
			return nil, nil, errors.New("peer: it is starting")
		case !slices.Equal(g.GetInitial(), t.cfg.Initial):
			return nil, nil, fmt.Errorf("peer: its --initial-cluster names %s, this node's %s", strings.Join(g.GetInitial(), ", "), strings.Join(t.cfg.Initial, ", "))
		}
		return &raftstore.Member{ID: g.GetBirth(), Name: f.Name, Context: infoFrom(g.GetInfo()).Context()}, nil, nil
	}
	if len(g.GetMembers()) == 0 {
		return nil, nil, errors.New("peer: it waits for its own state")
	}
	id := identityFrom(g.GetIdentity())
	var list []raftstore.Member
	mine, same := false, true
	for _, m := range g.GetMembers() {
		mine = mine || m.GetId() == t.cfg.Birth && m.GetName() == t.cfg.Name
		same = same && !m.GetLearner() && slices.Contains(t.cfg.Initial, m.GetName())
		list = append(list, raftstore.Member{ID: m.GetId(), Name: m.GetName(), Context: m.GetContext(), Learner: m.GetLearner()})
	}
	if !mine {
		return nil, nil, &foundError{fmt.Errorf("%w: node %s at %s is of cluster %s, which does not know this disk; run `rookeryctl member replace %s` there, and start this node with --join %s",
			ErrRunning, f.Name, f.Address, id.Cluster, t.cfg.Name, f.Address)}
	}
	if same && len(list) == len(t.cfg.Initial) && id.Incarnation == 1 {
		return nil, &Founding{Initial: list, Join: &raftstore.Joining{Cluster: id.Cluster, Incarnation: id.Incarnation, Node: t.cfg.Birth}}, nil
	}
	return nil, &Founding{Join: &raftstore.Joining{Cluster: id.Cluster, Incarnation: id.Incarnation, Node: t.cfg.Birth}}, nil
}

// Greet introduces this node.
func (s *service) Greet(ctx context.Context, req *peerv1.GreetRequest) (*peerv1.GreetResponse, error) {
	t := s.t
	if err := t.authorize(ctx, req.GetName()); err != nil {
		return nil, err
	}
	t.support(req.GetBirth(), req.GetVersions())
	resp := &peerv1.GreetResponse{
		Name: t.cfg.Name, Birth: t.cfg.Birth, Info: infoTo(t.cfg.Info), Initial: t.cfg.Initial, Versions: versionsTo(t.cfg.Versions),
	}
	if a := t.store.Load(); a != nil {
		resp.Exists, resp.Identity, resp.Members = true, identityTo(a.id), membersTo(a.store.Status().Members)
	}
	t.log.Debug("greeted", "peer", req.GetName(), "birth", req.GetBirth())
	return resp, nil
}

func membersTo(members []raftstore.Member) (all []*peerv1.Member) {
	for _, m := range members {
		all = append(all, &peerv1.Member{Id: m.ID, Name: m.Name, Context: m.Context, Learner: m.Learner})
	}
	return all
}

// ErrVersion: this release does not support the version of the cluster that this
// node was to join.
var ErrVersion = errors.New("peer: this release cannot join the cluster")

// joinEvery is how often a node asks to be let in.
const joinEvery = time.Second

// Join asks the nodes at addresses, and those they know, to be let into their
// cluster, until an operator has added this node. waiting, which may be nil, is
// told whenever the state of things is logged.
//
// Errors: ErrVersion, the context's.
func (t *Transport) Join(ctx context.Context, addresses []string, waiting func(names []string)) (*raftstore.Joining, error) {
	ask := slices.Clone(addresses)
	var logged time.Time
	for {
		var mu sync.Mutex
		var wg sync.WaitGroup
		var joined *raftstore.Joining
		var last, refused error
		answered := 0
		for _, address := range ask {
			wg.Go(func() {
				resp, err := t.askToJoin(ctx, address)
				mu.Lock()
				defer mu.Unlock()
				if errors.Is(err, ErrVersion) {
					refused = err
				}
				if err != nil {
					last = fmt.Errorf("%s: %w", address, err)
					return
				}
				answered++
				if id := identityFrom(resp.GetIdentity()); resp.GetMember() {
					joined = &raftstore.Joining{Cluster: id.Cluster, Incarnation: id.Incarnation, Node: t.cfg.Birth}
				}
				for _, a := range resp.GetAddresses() {
					if !slices.Contains(ask, a) && len(ask) < 20 {
						ask = append(ask, a)
					}
				}
			})
		}
		wg.Wait()
		if joined != nil {
			return joined, nil
		}
		if refused != nil {
			return nil, refused
		}
		if time.Since(logged) >= missingLog {
			logged = time.Now()
			if answered > 0 {
				t.log.Info("waiting to be added: run `rookeryctl member add "+t.cfg.Name+"`", "nodes", answered)
			} else {
				t.log.Warn("no node of the cluster answers", "err", last)
			}
			if waiting != nil {
				waiting(ask)
			}
		}
		if !sleep(ctx, joinEvery) {
			return nil, ctx.Err()
		}
	}
}

func (t *Transport) askToJoin(ctx context.Context, address string) (*peerv1.JoinResponse, error) {
	conn, dialed, err := t.dial("", address)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, dialPatience)
	defer cancel()
	resp, err := peerv1.NewPeerServiceClient(conn).Join(ctx, &peerv1.JoinRequest{
		Name: t.cfg.Name, Birth: t.cfg.Birth, Info: infoTo(t.cfg.Info), Version: t.cfg.Version, Versions: versionsTo(t.cfg.Versions),
	})
	if status.Code(err) == codes.FailedPrecondition {
		return nil, fmt.Errorf("%w: %s", ErrVersion, status.Convert(err).Message())
	}
	if err != nil {
		return nil, plain(err, dialed)
	}
	return resp, nil
}

// maxWaiting bounds who is remembered as asking to join.
const maxWaiting = 100

// Join tells a node whether it is a member, and remembers that it asks.
func (s *service) Join(ctx context.Context, req *peerv1.JoinRequest) (*peerv1.JoinResponse, error) {
	t := s.t
	if err := t.authorize(ctx, req.GetName()); err != nil {
		return nil, err
	}
	if req.GetName() == "" || req.GetBirth() == 0 {
		return nil, status.Error(codes.InvalidArgument, "peer: a node without a name or an id asks to join")
	}
	a := t.store.Load()
	if a == nil {
		return nil, status.Error(codes.Unavailable, "peer: this node has no state yet")
	}
	if err := t.outOfRange(req); err != nil {
		return nil, err
	}
	st := a.store.Status()
	resp := &peerv1.JoinResponse{Identity: identityTo(a.id)}
	for _, m := range st.Members {
		if address := ParseInfo(m.Context).PeerAddress; address != "" {
			resp.Addresses = append(resp.Addresses, address)
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if isMember(st, req.GetBirth()) {
		delete(t.waiting, req.GetName())
		resp.Member = true
		return resp, nil
	}
	if _, known := t.waiting[req.GetName()]; known || len(t.waiting) < maxWaiting {
		t.waiting[req.GetName()] = waitingAt{
			Waiting{Name: req.GetName(), Birth: req.GetBirth(), Info: infoFrom(req.GetInfo()), Version: req.GetVersion(), Versions: versionsFrom(req.GetVersions())}, time.Now(),
		}
	}
	return resp, nil
}
