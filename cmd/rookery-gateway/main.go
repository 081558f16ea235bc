// Command rookery-gateway stands beside a frontend or a backend and answers the
// protocols that it speaks, as a client of a Rookery cluster: MUPDATE for Cyrus.
//
// Exit codes: 0 after SIGTERM or SIGINT, 1 when it could not start or failed, 2 when it
// was called wrongly.
//
// main.go reads the command line and runs; settings.go says what it may hold; serve.go
// builds the gateway of its parts; hearing.go tells whether a node answers.
package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/rookery-mail/rookery/internal/daemon"
	"github.com/rookery-mail/rookery/internal/obs"
)

func main() {
	os.Exit(daemon.Main("rookery-gateway", run))
}

func run(ctx context.Context, args []string, out, errOut io.Writer) error {
	s, err := parseSettings(args, out)
	if err != nil {
		return err
	}
	if s.Version {
		fmt.Fprintln(out, "rookery-gateway", obs.Version())
		return nil
	}
	log, err := s.Logger(errOut)
	if err != nil {
		return err
	}
	return serve(ctx, s, log)
}
