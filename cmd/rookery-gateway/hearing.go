package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/internal/mtls"
)

// How often it is asked whether a node answers, and how long one may take.
const (
	askEvery = 5 * time.Second
	askFor   = 4 * time.Second
)

// tellHearing tells, once each time, that no node answers ask, and that one does again. It
// returns when ctx ends.
func tellHearing(ctx context.Context, ask func(context.Context) error, log *slog.Logger) {
	answered := true
	for {
		asking, cancel := context.WithTimeout(ctx, askFor)
		err := ask(asking)
		cancel()
		if ctx.Err() != nil {
			return
		}
		// A refusal is an answer, but for one of another cluster.
		now := err == nil || client.Answered(err) != nil && !errors.Is(err, client.ErrWrongIncarnation)
		switch {
		case answered && !now:
			log.Warn("no node answers, so commands are answered NO; are the nodes up, and --endpoints right?", "err", inWords(err))
		case !answered && now:
			log.Info("a node answers again")
		}
		answered = now
		select {
		case <-ctx.Done():
			return
		case <-time.After(askEvery):
		}
	}
}

// inWords puts before err what is known of its text.
func inWords(err error) error {
	if words := mtls.Stranger(err.Error()); words != "" {
		return fmt.Errorf("%s: %w", words, err)
	}
	return err
}
