// Command rookery-gateway stands beside a frontend or a backend and answers the
// protocols that it speaks, as a client of a Rookery cluster: MUPDATE for Cyrus.
//
// Exit codes: 0 after SIGTERM or SIGINT, 1 when it could not start or failed, 2 when it
// was called wrongly.
//
// main.go reads the command line and runs; settings.go says what it may hold; serve.go
// builds the gateway of its parts.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/rookery-mail/rookery/internal/obs"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	switch {
	case err == nil || errors.Is(err, flag.ErrHelp):
	case errors.Is(err, errUsage):
		fmt.Fprintln(os.Stderr, "rookery-gateway:", strings.TrimPrefix(err.Error(), errUsage.Error()+": "))
		os.Exit(2)
	default:
		fmt.Fprintln(os.Stderr, "rookery-gateway:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out, errOut io.Writer) error {
	s, err := parseSettings(args, out)
	if err != nil {
		return err
	}
	if s.version {
		fmt.Fprintln(out, "rookery-gateway", obs.Version())
		return nil
	}
	log, err := obs.NewLogger(errOut, strings.ToLower(s.logLevel.String()), s.logFormat)
	if err != nil {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	return serve(ctx, s, log)
}
