// Command rookeryd is one node of a Rookery directory: it keeps the state in its
// data directory, replicates it with its peers, and serves it over gRPC.
//
// Exit codes: 0 after SIGTERM or SIGINT, 1 when the node could not start, failed
// or was removed from its cluster, 2 when it was called wrongly.
//
// main.go reads the command line; settings.go says what it may hold; serve.go
// builds a node of its parts and takes it down again; found.go makes or finds
// the cluster of an empty directory; members.go is what a node knows of the
// others; health.go and http.go say how it is; readonly.go is what is left of it
// when its disk takes no writes; reseed.go gets it another node's state when its
// own is not to be used; mupdate.go answers Cyrus.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/rookery-mail/rookery/internal/daemon"
	"github.com/rookery-mail/rookery/internal/obs"
)

func main() {
	// A file that outgrows a limit is to be an error of the write, like a full disk.
	signal.Ignore(syscall.SIGXFSZ)
	os.Exit(daemon.Main("rookeryd", run))
}

func run(ctx context.Context, args []string, out, errOut io.Writer) error {
	s, err := parseSettings(args, out)
	if err != nil {
		return err
	}
	if s.Version {
		fmt.Fprintln(out, "rookeryd", obs.Version())
		return nil
	}
	log, err := s.Logger(errOut)
	if err != nil {
		return err
	}
	return newKeeper(s, log.With("node", s.name)).run(ctx)
}
