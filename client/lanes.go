package client

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"strconv"
	"sync"

	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
)

// lanes are the lines of requests that a client writes under. The directory
// keeps one last answer for each, so a lane has one write under way at a time;
// as many lanes are opened as there are writes at once.
type lanes struct {
	prefix string        // random, of this client
	room   chan struct{} // one for each write under way

	mu     sync.Mutex
	free   []*lane // the last used is used next, so that few are
	opened int
}

// lane is one line: an id, and the number of its last write.
type lane struct {
	id apiv1.RequestId
}

func newLanes(most int) (*lanes, error) {
	var random [12]byte
	if _, err := rand.Read(random[:]); err != nil {
		return nil, fmt.Errorf("client: draw a client id: %w", err)
	}
	return &lanes{prefix: hex.EncodeToString(random[:]), room: make(chan struct{}, most)}, nil
}

// take waits for a lane and numbers its next write.
func (ls *lanes) take(ctx context.Context) (*lane, error) {
	select {
	case ls.room <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	ls.mu.Lock()
	defer ls.mu.Unlock()
	var l *lane
	if n := len(ls.free); n > 0 {
		l = ls.free[n-1]
		ls.free = ls.free[:n-1]
	} else {
		ls.opened++
		l = &lane{}
		l.id.ClientId = ls.prefix + "." + strconv.Itoa(ls.opened)
	}
	l.id.Sequence++
	return l, nil
}

// put gives l back. A write of it that is still on its way somewhere will be
// refused there once the next one was done, because its number is lower.
func (ls *lanes) put(l *lane) {
	ls.mu.Lock()
	ls.free = append(ls.free, l)
	ls.mu.Unlock()
	<-ls.room
}
