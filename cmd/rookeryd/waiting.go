package main

import (
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rookery-mail/rookery/internal/mtls"
	"github.com/rookery-mail/rookery/server"
)

// This file is what clients are told while a node waits for the others of its
// cluster, and has nothing to answer out of.

// wait answers clients until end.
type wait struct {
	api  *server.Waiting
	lent []*lent
	wg   sync.WaitGroup
}

// beginWait refuses calls on the client port and the unix socket.
func (n *node) beginWait() *wait {
	w := &wait{api: server.NewWaiting(mtls.Server(n.files, mtls.Listening{Proto: "client", Log: n.log}), errWaiting.Error())}
	for _, l := range []net.Listener{n.listeners.client, n.listeners.unix} {
		d, ok := l.(deadliner)
		if !ok {
			continue // there is none
		}
		l := &lent{deadliner: d}
		w.lent = append(w.lent, l)
		w.wg.Go(func() {
			if err := w.api.Serve(l); err != nil {
				n.log.Warn("calls are not refused while the node waits", "err", err)
			}
		})
	}
	return w
}

// name says whom the node waits for.
func (w *wait) name(nodes []string) {
	w.api.Say("this node waits for the others of its cluster: " + strings.Join(nodes, ", ") + " (see its log)")
}

// end stops answering and leaves the listeners as they were.
func (w *wait) end() {
	w.api.Close()
	w.wg.Wait()
	for _, l := range w.lent {
		l.giveBack()
	}
}

// deadliner is a listener of TCP or of a unix socket.
type deadliner interface {
	net.Listener
	SetDeadline(time.Time) error
}

// lent is a listener that can be used again after it was closed: Close ends
// Accept, and leaves the socket bound.
type lent struct {
	deadliner
	closed atomic.Bool
}

func (l *lent) Accept() (net.Conn, error) {
	conn, err := l.deadliner.Accept()
	if err != nil && l.closed.Load() {
		return nil, net.ErrClosed
	}
	return conn, err
}

func (l *lent) Close() error {
	l.closed.Store(true)
	return l.SetDeadline(time.Unix(1, 0))
}

// giveBack makes the listener fit for its next user. It may have been closed
// itself meanwhile; then that one finds out.
func (l *lent) giveBack() { _ = l.SetDeadline(time.Time{}) }
