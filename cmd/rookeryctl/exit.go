package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/internal/mtls"
)

// The exit codes.
const (
	exitOK        = 0 // done, or answered
	exitRefused   = 1 // refused, or something is degraded
	exitUsage     = 2 // the command line makes no sense
	exitCannotAsk = 3 // nobody could answer, so nothing is known
)

// fault is an error whose exit code is known. Its text is one line: what, why,
// what to do; an empty one says that the output has told it already.
type fault struct {
	code int
	text string
	err  error // what it came from, if anything
}

func (f *fault) Error() string { return f.text }

func (f *fault) Unwrap() error { return f.err }

func usagef(format string, args ...any) error {
	return &fault{code: exitUsage, text: fmt.Sprintf(format, args...)}
}

func refusedf(format string, args ...any) error {
	return &fault{code: exitRefused, text: fmt.Sprintf(format, args...)}
}

// degraded is the fault of an answer that has already said what is wrong.
func degraded() error { return &fault{code: exitRefused} }

// within puts a sentence before what err is presented as.
func within(err error, format string, args ...any) error {
	return &prefixed{fmt.Sprintf(format, args...), err}
}

type prefixed struct {
	before string
	err    error
}

func (p *prefixed) Error() string { return p.before + ": " + p.err.Error() }

func (p *prefixed) Unwrap() error { return p.err }

// present turns an error into a line for people and the exit code; nil into no
// line and exitOK.
func (a *app) present(ctx context.Context, err error) (line string, code int) {
	if err == nil {
		return "", exitOK
	}
	if p, ok := errors.AsType[*prefixed](err); ok {
		line, code := a.present(ctx, p.err)
		return p.before + ": " + line, code
	}
	if f, ok := errors.AsType[*fault](err); ok {
		return f.text, f.code
	}
	undecided := errors.Is(err, client.ErrUndecided) && !a.reach.nobodyThere()
	switch {
	case !a.started:
		return strings.ReplaceAll(strings.TrimSpace(err.Error()), "\n", " "), exitUsage
	case interrupted(ctx) && undecided:
		return "interrupted; what was under way may or may not have been done", exitCannotAsk
	case interrupted(ctx):
		return "interrupted", exitCannotAsk
	case undecided:
		return "undecided: " + a.reach.why(err) + "; it may or may not have been done: give the same command again", exitCannotAsk
	case errors.Is(err, client.ErrNoLeader), errors.Is(err, client.ErrTooStale):
		return "cannot ask " + a.endpoints + ": the cluster has no leader (" + a.reach.absent() + "); --stale shows what a node has", exitCannotAsk
	case cannotAsk(err):
		return "cannot ask " + a.endpoints + ": " + a.reach.why(err), exitCannotAsk
	}
	if refusal(err) {
		return "refused: " + plain(bare(err)) + advice(err), exitRefused
	}
	return plain(err.Error()), exitRefused
}

// errUnreachable ends waiting for nodes that do not even listen.
var errUnreachable = errors.New("no node can be reached")

func interrupted(ctx context.Context) bool {
	return ctx.Err() != nil && !errors.Is(context.Cause(ctx), errUnreachable)
}

// cannotAsk reports whether err says nothing of what was asked for.
func cannotAsk(err error) bool {
	for _, is := range []error{
		client.ErrUnavailable, client.ErrUndecided, client.ErrBroken, client.ErrProtocol, client.ErrClosed, client.ErrUnsupported,
		client.ErrWrongIncarnation, client.ErrInvalidToken, client.ErrCompacted, context.DeadlineExceeded, context.Canceled,
	} {
		if errors.Is(err, is) {
			return true
		}
	}
	return false
}

// refusal reports whether err is the directory's word, given here or there.
func refusal(err error) bool {
	if _, ok := errors.AsType[*client.Error](err); ok {
		return true
	}
	for _, is := range []error{
		directory.ErrInvalidName, directory.ErrInvalidACL, directory.ErrInvalidLocation, directory.ErrInvalidPattern, directory.ErrInvalid,
		directory.ErrTooLarge,
	} {
		if errors.Is(err, is) {
			return true
		}
	}
	return false
}

// bare is a refusal without the names of packages.
func bare(err error) string {
	text := err.Error()
	if e, ok := errors.AsType[*client.Error](err); ok {
		text = e.Message
	}
	for _, prefix := range []string{"directory: ", "client: ", "server: "} {
		text = strings.ReplaceAll(text, prefix, "")
	}
	return text
}

// advice says what to do about a refusal, if that is known here.
func advice(err error) string {
	e, _ := errors.AsType[*client.Error](err)
	if e != nil && strings.Contains(e.Message, "rookeryctl ") {
		return "" // the directory has said it
	}
	switch {
	case errors.Is(err, directory.ErrStaleEpoch):
		return "; look at `rookeryctl groups` and decide again"
	case errors.Is(err, directory.ErrMissingAtTarget):
		return "; `rookeryctl switchover --dry-run` names what is missing, --accept-missing takes it"
	case errors.Is(err, directory.ErrIncomplete):
		return "; `rookeryctl backends` shows who is missing: import its list, or `rookeryctl backends confirm` it"
	case errors.Is(err, directory.ErrNotAdmitted) && !strings.Contains(err.Error(), "retired"):
		return "; `rookeryctl backends admit` admits it"
	case errors.Is(err, directory.ErrReadOnly):
		return "; `rookeryctl settings set read-only=no` ends that"
	case errors.Is(err, directory.ErrRole):
		return "; an operator's certificate may"
	}
	return ""
}

// reach notes what became of the attempts to ask, so that a node which is not
// there is told at once and in words.
type reach struct {
	give func(error) // ends the waiting

	nodes int // how many were named

	mu      sync.Mutex
	since   time.Time
	refused map[string]bool // endpoints where nothing listens
	last    string          // what the newest of these said
	heard   bool            // some node answered
	other   bool            // some attempt failed in another way
	gone    bool            // it was given up

	spoke  map[string]bool // endpoints that answered, be it with a refusal
	silent map[string]bool // those that did not, the last time they were asked
}

// absent says which nodes do not answer.
func (r *reach) absent() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.silent) == 0 {
		return "a majority of its nodes must be up"
	}
	silent := slices.Sorted(maps.Keys(r.silent))
	all := max(r.nodes, len(silent)+len(r.spoke))
	verb := "do"
	if len(silent) == 1 {
		verb = "does"
	}
	return fmt.Sprintf("%d of %s %s not answer: %s", len(silent), plural(all, "node"), verb, strings.Join(silent, ", "))
}

// hear notes whether a node speaks. One that has spoken and then takes too long is
// there: there was no time left, or it waits for the others itself.
func (r *reach) hear(at client.Attempt) {
	e, _ := errors.AsType[*client.Error](at.Err)
	switch {
	case at.Err == nil, e != nil && e.Reason != "":
		r.spoke[at.Endpoint] = true
		delete(r.silent, at.Endpoint)
	case errors.Is(at.Err, context.Canceled), r.spoke[at.Endpoint] && errors.Is(at.Err, context.DeadlineExceeded):
	default:
		r.silent[at.Endpoint] = true
		delete(r.spoke, at.Endpoint)
	}
}

// nobodyThere reports whether no node was ever reached, so that nothing can have
// been done.
func (r *reach) nobodyThere() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.refused) > 0 && !r.heard && !r.other
}

// patience is how long nodes that do not listen are tried again: one may be
// restarting.
const patience = 2 * time.Second

func newReach(give func(error)) *reach {
	return &reach{give: give, refused: make(map[string]bool), spoke: make(map[string]bool), silent: make(map[string]bool)}
}

// observe is a client's observer.
func (r *reach) observe(at client.Attempt) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.gone {
		return // what fails now fails because of that
	}
	if r.since.IsZero() {
		r.since = time.Now()
	}
	r.hear(at)
	if at.Err == nil || !notThere(at.Err.Error()) {
		r.heard = r.heard || at.Err == nil
		r.other = r.other || at.Err != nil
		delete(r.refused, at.Endpoint)
		return
	}
	r.refused[at.Endpoint], r.last = true, at.Err.Error()
	if !r.heard && len(r.refused) >= r.nodes && time.Since(r.since) >= patience {
		r.gone = true
		r.give(errUnreachable)
	}
}

// notThere reports whether the text of a transport's error says that nobody
// listens, or that whoever does has not let us in: no call was made.
func notThere(text string) bool {
	return strings.Contains(text, "connection refused") || strings.Contains(text, "no such host") || strings.Contains(text, "no such file or directory") ||
		handshake(text) != ""
}

// why says in words why nobody answered.
func (r *reach) why(err error) string {
	// A node's own words say more than that others are not there.
	if e := client.Answered(err); e != nil && !errors.Is(e, context.DeadlineExceeded) {
		return plain(bare(e))
	}
	text := err.Error()
	r.mu.Lock()
	if len(r.refused) > 0 {
		text += " " + r.last // giving up has hidden it
	}
	r.mu.Unlock()
	if words := handshake(text); words != "" {
		return words
	}
	if words := mtls.Stranger(text); words != "" {
		return words
	}
	for _, known := range []struct{ sign, words string }{
		{"connection refused", "connection refused; is rookeryd running there? (--endpoints, ROOKERY_ENDPOINTS)"},
		{"no such host", "no such host (--endpoints, ROOKERY_ENDPOINTS)"},
		{"no such file or directory", "there is no such socket; is rookeryd running there?"},
		{"connect: permission denied", "that socket is for root, and for the user that rookeryd runs as"},
		{"connection reset", "the connection was reset"},
		{"network is unreachable", "the network is unreachable"},
		{"no route to host", "there is no route to that host"},
	} {
		if strings.Contains(text, known.sign) {
			return known.words
		}
	}
	if errors.Is(err, context.DeadlineExceeded) || strings.Contains(text, "DeadlineExceeded") {
		return "no answer in time; --timeout waits longer"
	}
	text = err.Error()
	if i := strings.LastIndex(text, "desc = "); i >= 0 {
		text = text[i+len("desc = "):]
	}
	for _, prefix := range []string{"client: not answered: ", "client: the write may or may not have been done: ", "client: "} {
		text = strings.TrimPrefix(text, prefix)
	}
	return plain(text)
}
