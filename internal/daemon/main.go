package daemon

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
)

// ErrUsage: the command line or the file is wrong; the text says how.
var ErrUsage = errors.New("usage")

// Main is the main function of the daemon called name. It calls run, whose context
// ends with SIGTERM or SIGINT, and returns the code to exit with: 0 if run returned
// nil or flag.ErrHelp, 2 after ErrUsage, else 1, having said why.
func Main(name string, run func(ctx context.Context, args []string, out, errOut io.Writer) error) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	switch {
	case err == nil || errors.Is(err, flag.ErrHelp):
		return 0
	case errors.Is(err, ErrUsage):
		fmt.Fprintf(os.Stderr, "%s: %s\n", name, strings.TrimPrefix(err.Error(), ErrUsage.Error()+": "))
		return 2
	default:
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		return 1
	}
}
