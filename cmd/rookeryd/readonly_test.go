package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"syscall"
	"testing"
	"time"
)

// TestKeeper: which ends of a node lead where.
func TestKeeper(t *testing.T) {
	full := fmt.Errorf("write: %w", syscall.ENOSPC)
	broken := errors.New("broken")
	for _, test := range []struct {
		name   string
		serve  []error // what it ends with each time
		try    []error
		unread error // the old state cannot be opened
		want   error
		did    []string
	}{
		{"a good end", []error{nil}, nil, nil, nil, []string{"try 1", "serve"}},
		{"another failure", []error{broken}, nil, nil, broken, []string{"try 1", "serve"}},
		{"a full disk", []error{full, nil}, []error{nil, full, full, nil}, nil, nil, []string{"try 1", "serve", "read-only", "try 16", "try 16", "try 16", "try 1", "serve"}},
		{"full from the start", []error{nil}, []error{full}, nil, nil, []string{"try 1", "read-only", "try 16", "try 1", "serve"}},
		{"full again", []error{full, full, nil}, nil, nil, nil,
			[]string{"try 1", "serve", "read-only", "try 16", "try 1", "serve", "read-only", "try 16", "try 1", "serve"}},
		{"no state to be read", []error{full}, nil, broken, broken, []string{"try 1", "serve", "read-only"}},
		{"not to be written for another reason", nil, []error{broken}, nil, broken, []string{"try 1"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			did := make(chan string, 100)
			next := func(list *[]error) error {
				if len(*list) == 0 {
					return nil
				}
				err := (*list)[0]
				*list = (*list)[1:]
				return err
			}
			k := keeper{
				every: time.Millisecond, log: slog.New(slog.DiscardHandler),
				try:   func(size int64) error { did <- fmt.Sprint("try ", size>>20); return next(&test.try) },
				serve: func(context.Context) error { did <- "serve"; return next(&test.serve) },
				readOnly: func(ctx context.Context, why error) error {
					if !errors.Is(why, syscall.ENOSPC) {
						t.Errorf("read-only because of %v", why)
					}
					if did <- "read-only"; test.unread != nil {
						return test.unread
					}
					<-ctx.Done()
					return nil
				},
			}
			if test.unread != nil {
				k.every = time.Hour
			}
			err := k.run(t.Context())
			if !errors.Is(err, test.want) || test.want == nil && err != nil {
				t.Errorf("got %v, want %v", err, test.want)
			}
			close(did)
			var got []string
			for d := range did {
				// Which comes first, the old state or the first try, is chance.
				if d == "read-only" && len(got) > 0 && got[len(got)-1] == "try 16" {
					got = slices.Insert(got, len(got)-1, d)
					continue
				}
				got = append(got, d)
			}
			if !slices.Equal(got, test.did) {
				t.Errorf("got %q, want %q", got, test.did)
			}
		})
	}
}

// TestKeeperEnds: a signal ends a node that is read-only too.
func TestKeeperEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	k := keeper{
		every: time.Hour, log: slog.New(slog.DiscardHandler),
		try:      func(int64) error { return syscall.EROFS },
		readOnly: func(ctx context.Context, _ error) error { cancel(); <-ctx.Done(); return nil },
	}
	if err := k.run(ctx); err != nil {
		t.Errorf("got %v, want none", err)
	}
}

func TestOctets(t *testing.T) {
	for s, want := range map[string]string{"0": "0", "1": "1", "1024": "1KiB", "1536": "1536", "128MiB": "128MiB", "2048 MiB": "2GiB", "3TiB": "3TiB"} {
		var o octets
		if err := o.Set(s); err != nil || o.String() != want {
			t.Errorf("%q: got %s, %v, want %s", s, o.String(), err, want)
		}
	}
	for _, s := range []string{"", "-1", "1.5GiB", "9223372036854775807KiB", "1MB"} {
		var o octets
		if err := o.Set(s); err == nil {
			t.Errorf("%q is %d", s, o)
		}
	}
}
