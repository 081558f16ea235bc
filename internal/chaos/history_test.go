//go:build peers

package chaos

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/directory/machine"
	"github.com/rookery-mail/rookery/internal/oracle"
)

// fate is what became of a call.
type fate uint8

const (
	answered fate = iota
	refused       // the directory's rules said no; of writes alone
	unknown       // a write that may have been done or not
	failed        // nobody answered; if it was a write, it was not done
)

// mode is how fresh a read had to be.
type mode uint8

const (
	atLeast mode = iota
	linearizable
	stale
)

// call is one call of one worker's client, as that saw it.
type call struct {
	worker       int
	begun, ended time.Duration // since the round began
	fate         fate
	err          error
	rev          directory.Revision // of the answer; 0: not known

	// Of a write: it is the worker's n-th; op is what was asked for, nil if the
	// server put it together; and what came of it.
	n      uint64
	op     machine.Op
	result client.Result
	items  []client.Result

	// Of a read.
	mode mode
	seen directory.Revision // by the session before
	ask  any                // one of the queries below
	got  any                // what was answered: see answers in judge_test.go
}

// The queries. Lookups have all details.
type (
	lookup      struct{ name directory.MailboxName }
	lookupMany  struct{ names []directory.MailboxName }
	lookupUser  struct{ user directory.UserID }
	find        struct{ query client.FindQuery }
	list        struct{ query client.ListQuery }
	rightsQuery struct{ query client.RightsQuery }
)

func (c *call) write() bool { return c.n > 0 }

func (c *call) String() string {
	what := fmt.Sprintf("%T%+v", c.ask, c.ask)
	if c.write() {
		what = fmt.Sprintf("write %d", c.n)
		if c.op != nil {
			what += " " + oracle.FormatOp(c.op)
		}
	}
	fates := [...]string{"answered", "refused", "unknown", "failed"}
	text := fmt.Sprintf("worker %d, %v to %v: %s: %s", c.worker, c.begun.Round(time.Millisecond), c.ended.Round(time.Millisecond), what, fates[c.fate])
	if c.rev > 0 {
		text += fmt.Sprintf(" at revision %d", c.rev)
	}
	if c.err != nil {
		text += ": " + c.err.Error()
	}
	return text
}

// mark is what a watcher knew at a mark: a digest of it.
type mark struct {
	watcher int
	query   client.WatchQuery
	rev     directory.Revision
	digest  uint64
	count   int
}

// history is what all workers saw.
type history struct {
	begun time.Time
	calls [][]*call // by worker, in their order
	marks [][]mark  // by watcher

	acked  atomic.Int64 // answered and refused calls
	items  atomic.Int64 // of batches, beyond the one that the call is
	fates  [4]atomic.Int64
	mu     sync.Mutex
	second map[int]int // answered calls by second
}

func newHistory(workers, watchers int) *history {
	return &history{begun: time.Now(), calls: make([][]*call, workers), marks: make([][]mark, watchers), second: map[int]int{}}
}

func (h *history) now() time.Duration { return time.Since(h.begun) }

// add keeps a call that has ended.
func (h *history) add(c *call) {
	c.ended = h.now()
	h.calls[c.worker] = append(h.calls[c.worker], c)
	h.fates[c.fate].Add(1)
	if c.fate != answered && c.fate != refused {
		return
	}
	h.acked.Add(1)
	h.items.Add(int64(max(0, len(c.items)-1)))
	h.mu.Lock()
	h.second[int(c.ended/time.Second)]++
	h.mu.Unlock()
}

// fateOf weighs the error that a call ended with.
func fateOf(err error, write bool) fate {
	switch {
	case err == nil:
		return answered
	case write && (errors.Is(err, client.ErrUndecided) || errors.Is(err, client.ErrBroken)):
		return unknown
	case errors.Is(err, client.ErrUnavailable), errors.Is(err, client.ErrClosed):
		return failed
	case write:
		return refused
	}
	return failed
}
