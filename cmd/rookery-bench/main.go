// Command rookery-bench puts load on a Rookery directory and measures, in the
// same minutes and by turns with it, what the machine could do at best: a gRPC
// echo of the same octets, one writer's fdatasync, a bare bbolt file. It fills the
// directory with an invented mail site of as many mailboxes as asked for, prints a
// table, and saves JSON and a plot. docs/BENCHMARKS.md tells how to read them.
//
// Asked to compare, it starts a cluster of several nodes and one of etcd, on the
// same disk, and loads them by turns.
//
// workload.go is the table of what is measured and held against what; load.go
// how load is made; population.go the mail site; stub.go and library.go the
// callers; echo.go, fsync.go and bare.go the ceilings. duel.go is the table of
// what is held against etcd; cluster.go and etcd.go the clusters; etcdstub.go
// what etcd is asked; quiet.go how they come to rest in between. mupdate.go has the
// loads on MUPDATE masters, cyrus.go the one of Cyrus.
//
// Exit codes: 0 when it has measured, whatever it found; 1 when it could not; 2
// when it was called wrongly.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
)

// The commands besides a run.
const (
	commandEcho    = "echo" // these two are used by this program itself
	commandOctets  = "echo-octets"
	commandDump    = "dump"
	commandShow    = "show"
	commandCompare = "compare"
	commandMupdate = "mupdate"
)

func main() {
	// What calls and what echoes are to cost little; neither keeps much.
	debug.SetGCPercent(400)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	err := command(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	switch {
	case err == nil || errors.Is(err, flag.ErrHelp):
	case errors.Is(err, errUsage):
		fmt.Fprintln(os.Stderr, "rookery-bench:", strings.TrimPrefix(err.Error(), errUsage.Error()+": "))
		os.Exit(2)
	default:
		fmt.Fprintln(os.Stderr, "rookery-bench:", err)
		os.Exit(1)
	}
}

func command(ctx context.Context, args []string, in io.Reader, out, errOut io.Writer) error {
	name := ""
	if len(args) > 0 {
		name = args[0]
	}
	switch name {
	case commandEcho, commandOctets:
		return serveEcho(name == commandOctets, in, out)
	case commandDump:
		return dump(args[1:], out)
	case commandShow:
		return show(args[1:], out)
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if name == commandCompare {
		return runCompare(ctx, args[1:], self, out, errOut)
	}
	if name == commandMupdate {
		return runMupdate(ctx, args[1:], out, errOut)
	}
	s, err := parseSettings(args, out)
	if err != nil {
		return err
	}
	b := &bench{settings: s, self: self, progress: errOut}
	err = b.run(ctx)
	if errors.Is(err, errUsage) {
		return err
	}
	// What was measured before something broke took its time too.
	return errors.Join(err, b.report.print(out, s.format), b.report.save(s.jsonFile, s.plotFile))
}

// runCompare measures clusters of Rookery and etcd beside each other.
func runCompare(ctx context.Context, args []string, self string, out, errOut io.Writer) error {
	s, err := parseCompare(args, out)
	if err != nil {
		return err
	}
	r, err := compare(ctx, s, self, errOut)
	if errors.Is(err, errUsage) {
		return err
	}
	return errors.Join(err, r.print(out, s.format), r.save(s.jsonFile, ""))
}

// runMupdate measures Rookery's MUPDATE and Cyrus's master beside each other.
func runMupdate(ctx context.Context, args []string, out, errOut io.Writer) error {
	s, err := parseMupdate(args, out)
	if err != nil {
		return err
	}
	r, err := compareMasters(ctx, s, errOut)
	if errors.Is(err, errUsage) {
		return err
	}
	return errors.Join(err, r.print(out, s.format), r.save(s.jsonFile, ""))
}

// dump prints a population as Cyrus would.
func dump(args []string, out io.Writer) error {
	fs := flag.NewFlagSet("rookery-bench dump", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	size := fs.String("population", "100k", "how many mailboxes")
	seed := fs.Uint64("seed", 1, "which population of that size")
	if err := parseFlags(fs, args, out); err != nil {
		return err
	}
	n, err := parseSize(*size)
	if err != nil {
		return err
	}
	pop, err := newPopulation(n, *seed)
	if err != nil {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	return writeDump(out, pop)
}

// show prints what an earlier run saved.
func show(args []string, out io.Writer) error {
	fs := flag.NewFlagSet("rookery-bench show", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	format := fs.String("o", "table", "what is printed")
	plot := fs.String("plot", "", "`file` to draw in (SVG)")
	if err := parseFlags(fs, args, out); err != nil {
		return err
	}
	if fs.NArg() != 1 || !slices.Contains(formats, *format) {
		return fmt.Errorf("%w: rookery-bench show [-o %s] [--plot FILE.svg] FILE.json", errUsage, strings.Join(formats, "|"))
	}
	r, err := readReport(fs.Arg(0))
	if err != nil {
		return err
	}
	r.Verdicts = r.verdicts()
	return errors.Join(r.print(out, *format), r.save("", *plot))
}
