package mirror

import (
	"context"
	"sync"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
)

// item is a name of which both sides have to be asked.
type item struct {
	name directory.MailboxName
	// master is what the master says, if that is told; else it is asked.
	master said
	told   bool
	cause  cause
	due    bool // it has waited; what differs now differs
}

// cause is why there is reason to ask.
type cause uint8

const (
	byTarget  cause = iota // the target was told something
	byListing              // a listing differs: nobody knows who spoke last
	bySource               // the source says something new
)

// most is how many names wait in an inbox. More wait where they come from.
const most = 100_000

// inbox keeps the names that something was said of, each once.
type inbox struct {
	mu     sync.Mutex
	order  []directory.MailboxName
	items  map[directory.MailboxName]*item
	events []client.WatchEvent // of backends, groups and holds
	mark   directory.Revision  // all of the directory up to it was told
	noops  int                 // answers of the master to a Ping
	wake   chan struct{}
	room   chan struct{} // closed when there is room
}

func newInbox() *inbox {
	return &inbox{items: make(map[directory.MailboxName]*item), wake: make(chan struct{}, 1), room: make(chan struct{})}
}

// put adds a name, or what is new of it, and waits while there is no room.
func (b *inbox) put(ctx context.Context, it item) error {
	for {
		b.mu.Lock()
		old := b.items[it.name]
		if old != nil || len(b.items) < most {
			break
		}
		room := b.room
		b.mu.Unlock()
		select {
		case <-room:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	defer b.mu.Unlock()
	b.add(it)
	b.awake()
	return nil
}

// add puts an item in, or what is new of it. b.mu is held.
func (b *inbox) add(it item) {
	old := b.items[it.name]
	if old == nil {
		old = &item{name: it.name}
		b.items[it.name], b.order = old, append(b.order, it.name)
	}
	old.cause = max(old.cause, it.cause)
	if it.told {
		old.master, old.told = it.master, true
	}
}

// again puts items back that nothing came of. What was told since is newer.
func (b *inbox) again(items []item) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, it := range items {
		if old := b.items[it.name]; old != nil && old.told {
			it.told = false
		}
		b.add(it)
	}
}

// awake says that something is new. b.mu is held.
func (b *inbox) awake() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// note notes what is told besides names.
func (b *inbox) note(f func(*inbox)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f(b)
	b.awake()
}

// take takes at most n items, oldest first, and all events.
func (b *inbox) take(n int) (items []item, events []client.WatchEvent) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n = min(n, len(b.order))
	for _, name := range b.order[:n] {
		items = append(items, *b.items[name])
		delete(b.items, name)
	}
	if b.order = b.order[n:]; len(b.order) == 0 {
		b.order = nil
	}
	events, b.events = b.events, nil
	if n > 0 {
		close(b.room)
		b.room = make(chan struct{})
	}
	return items, events
}

// has reports whether something is told of a name that waits.
func (b *inbox) has(name directory.MailboxName) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	it := b.items[name]
	return it != nil && it.told
}

// heard is how far both sides have come.
func (b *inbox) heard() (mark directory.Revision, noops int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.mark, b.noops
}
