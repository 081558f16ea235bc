// Rookeryctl is the operator's program: every call of the directory's API, the
// import and export of Cyrus mailbox lists, and what an operator asks when
// something is wrong.
//
//	rookeryctl import cyrus --server be1.example.org be1.json
//	rookeryctl where user.alice --why
//	rookeryctl list --user alice -o imap '*'
//	rookeryctl status
//
// Its exit code is 0 when what was asked for was done or answered, 1 when it was
// refused or something is degraded, 2 when the command line makes no sense, and
// 3 when the directory could not be asked. `rookeryctl help output` documents
// what it prints.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr, os.Getenv)
	stop()
	os.Exit(code)
}
