package raftstore

import (
	"context"
	"io"
	"time"

	"github.com/rookery-mail/rookery/raftstore/snap"
)

// Snapshot writes a snapshot of the state to w, with at least all that is
// applied when it is called, and returns what it is of. What was written counts
// only if there is no error. While it is written the state file cannot reuse
// its pages, so with a slow w and a high rate of writes it grows.
func (s *Store) Snapshot(ctx context.Context, w io.Writer) (snap.Header, error) {
	if err := s.flushed(ctx); err != nil {
		return snap.Header{}, err
	}
	start := s.cfg.Clock.Now()
	var h snap.Header
	err := s.image(func(of snap.Header, write func(io.Writer) error) error {
		h = of
		sw, err := snap.NewWriter(&stoppable{w, ctx, s.stop}, h)
		if err != nil {
			return err
		}
		if err := write(sw); err != nil {
			return err
		}
		return sw.Close()
	})
	if err != nil {
		return snap.Header{}, err
	}
	s.saved(start, h, "")
	return h, nil
}

// flushed waits until the state file holds all that is applied now.
func (s *Store) flushed(ctx context.Context) error {
	if s.stopping() {
		return s.stopped()
	}
	done := make(chan struct{})
	s.node.Flush(func() { close(done) })
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-s.stop:
		return s.stopped()
	}
}

// image calls save with what a snapshot of the state file says of itself, and a
// function that writes its payload.
func (s *Store) image(save func(h snap.Header, write func(io.Writer) error) error) error {
	return s.files.state.Image(func(m Meta, write func(io.Writer) error) error {
		return save(m.header(s.files.state.Kind()), write)
	})
}

// header is what a snapshot of the state with this meta says of itself.
func (m Meta) header(kind snap.Kind) snap.Header {
	return snap.Header{
		Cluster:     m.Identity.Cluster,
		Incarnation: m.Identity.Incarnation,
		Shard:       m.Identity.Shard,
		Kind:        kind,
		Index:       m.Applied.Index,
		Term:        m.Applied.Term,
		Conf:        m.Conf,
	}
}

func (s *Store) saved(start time.Duration, h snap.Header, path string) {
	dur := s.cfg.Clock.Now() - start
	s.node.metrics.snapshots.Inc()
	s.node.metrics.snapSeconds.Observe(dur.Seconds())
	s.cfg.Log.Info("snapshot saved", "file", path, "index", h.Index, "dur", dur)
}

// stoppable is a Writer that ends with its context, or with the store.
type stoppable struct {
	w    io.Writer
	ctx  context.Context
	stop <-chan struct{}
}

func (s *stoppable) Write(p []byte) (int, error) {
	select {
	case <-s.ctx.Done():
		return 0, s.ctx.Err()
	case <-s.stop:
		return 0, ErrClosed
	default:
		return s.w.Write(p)
	}
}
