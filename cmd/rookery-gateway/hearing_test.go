package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/internal/mtls"
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
		asked := make(chan error)
		go tellHearing(ctx, func(context.Context) error { return <-asked }, slog.New(slog.NewTextHandler(&out, nil)))
		for _, s := range steps {
			asked <- s.err
			synctest.Wait()
			if got := out.String(); (got == "") != (s.want == "") || !strings.Contains(got, s.want) {
				t.Errorf("%s: got %q, want %q", s.what, got, s.want)
			}
			out.Reset()
		}
		cancel()
	})
}

// An endpoint at which another program listens is told to be that.
func TestTellsStrangers(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	web := http.Server{Handler: http.NotFoundHandler()}
	var serving sync.WaitGroup
	serving.Go(func() { web.Serve(l) })
	defer serving.Wait()
	defer web.Close()
	log := slog.New(slog.DiscardHandler)
	dir, err := client.Dial([]string{l.Addr().String()}, client.WithCredentials(mtls.Client(nil, log)))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	_, err = dir.Status(ctx, client.Stale(0))
	if err == nil || !strings.HasPrefix(inWords(err).Error(), "what listens there is no rookeryd") {
		t.Errorf("got %v", inWords(err))
	}
	if got := inWords(context.DeadlineExceeded); got != context.DeadlineExceeded {
		t.Errorf("of another error: got %v", got)
	}
}
