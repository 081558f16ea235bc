package peer

import (
	"sync"

	"go.etcd.io/raft/v3/raftpb"
)

// class is one of the ways to a peer: each has a connection of its own, so that
// what is large never holds up what is urgent.
type class uint8

const (
	control class = iota // heartbeats, votes, acknowledgements, read rounds
	bulk                 // entries
	transit              // snapshots
)

func (c class) String() string { return [...]string{"control", "bulk", "snapshot"}[c] }

// classOf tells which way a message goes. All appends go one way, also empty
// ones, which tell of the commit: one that overtook the entries before it would
// be refused, and the leader would fall back to probing.
func classOf(m *raftpb.Message) class {
	switch m.GetType() {
	case raftpb.MsgApp:
		return bulk
	case raftpb.MsgSnap:
		return transit
	}
	return control
}

// outbox is a bounded queue of messages to a peer.
type outbox struct {
	maxCount int
	maxBytes int

	mu    sync.Mutex
	items []*raftpb.Message
	bytes int
	// wake has a token when there is something to take.
	wake chan struct{}
}

func newOutbox(maxCount, maxBytes int) *outbox {
	return &outbox{maxCount: maxCount, maxBytes: maxBytes, wake: make(chan struct{}, 1)}
}

// sizeOf is about what a message takes, encoded.
func sizeOf(m *raftpb.Message) int {
	n := 64 + len(m.GetContext())
	for _, e := range m.GetEntries() {
		n += 32 + len(e.GetData())
	}
	return n
}

// put reports whether there was room.
func (o *outbox) put(m *raftpb.Message) bool {
	size := sizeOf(m)
	o.mu.Lock()
	if len(o.items) > 0 && (len(o.items) >= o.maxCount || o.bytes+size > o.maxBytes) {
		o.mu.Unlock()
		return false
	}
	o.items = append(o.items, m)
	o.bytes += size
	o.mu.Unlock()
	select {
	case o.wake <- struct{}{}:
	default:
	}
	return true
}

// take returns the first messages, as many as fit in a frame, at least one if
// there is any; more says that there are others.
func (o *outbox) take(limit int) (items []*raftpb.Message, more bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	n, size := 0, 0
	for n < len(o.items) {
		s := sizeOf(o.items[n])
		if n > 0 && size+s > limit {
			break
		}
		size += s
		n++
	}
	items = o.items[:n:n]
	o.bytes -= size
	if o.items = o.items[n:]; len(o.items) == 0 {
		o.items = nil
	}
	return items, len(o.items) > 0
}

// clear empties the queue and returns how many messages were in it.
func (o *outbox) clear() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := len(o.items)
	o.items, o.bytes = nil, 0
	return n
}
