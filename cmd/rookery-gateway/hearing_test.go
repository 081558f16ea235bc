package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rookery-mail/rookery/client"
)

// That no node answers is told once, and so is that one does again.
func TestTellHearing(t *testing.T) {
	refused := errors.New("connection refused")
	steps := []struct {
		what string
		err  error
		want string // what is told; empty: nothing
	}{
		{what: "answered"},
		{what: "nobody there", err: refused, want: "level=WARN msg=\"no node answers"},
		{what: "still nobody", err: refused},
		{what: "a refusal", err: &client.Error{Reason: "NO_LEADER"}, want: "level=INFO msg=\"a node answers again"},
		{what: "answered again"},
		{what: "nobody again", err: refused, want: "level=WARN msg=\"no node answers"},
	}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var out bytes.Buffer
		n := 0
		go tellHearing(ctx, func(context.Context) error { n++; return steps[n-1].err }, slog.New(slog.NewTextHandler(&out, nil)))
		for _, s := range steps {
			synctest.Wait()
			if got := out.String(); (got == "") != (s.want == "") || !strings.Contains(got, s.want) {
				t.Errorf("%s: got %q, want %q", s.what, got, s.want)
			}
			out.Reset()
			if n == len(steps) {
				cancel()
			}
			time.Sleep(askEvery)
		}
		cancel()
	})
}
