package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
)

// How the import states its facts.
const (
	importBatch    = 500
	importInFlight = 8
)

// importResult is what filling a node took.
type importResult struct {
	By      string // the program: this one through the client library, or rookeryctl
	Facts   int
	Seconds float64
	Rate    float64 // facts a second
}

// importAll fills an empty cluster with the population, in name order over all
// servers, as the dump of a master has it.
func importAll(ctx context.Context, endpoints []string, pop *population, progress func(done int), opts ...client.Option) (importResult, error) {
	c, err := client.Dial(endpoints, append(opts, client.WithTimeout(time.Minute))...)
	if err != nil {
		return importResult{}, err
	}
	defer c.Close()
	if err := describeServers(ctx, c); err != nil {
		return importResult{}, err
	}

	begin := time.Now()
	if err := stateAll(ctx, c, pop, progress); err != nil {
		return importResult{}, err
	}
	took := time.Since(begin)

	return importedBy("rookery-bench", pop, took), confirmServers(ctx, c)
}

func importedBy(program string, pop *population, took time.Duration) importResult {
	return importResult{By: program, Facts: pop.mailboxes, Seconds: took.Seconds(), Rate: float64(pop.mailboxes) / took.Seconds()}
}

// stateAll states every fact once, some batches at a time.
func stateAll(ctx context.Context, c *client.Client, pop *population, progress func(done int)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	batches := make(chan []client.Op)
	var wg sync.WaitGroup
	for range importInFlight {
		wg.Go(func() {
			for ops := range batches {
				if err := stateBatch(ctx, c, ops); err != nil {
					cancel(err)
				}
			}
		})
	}
	for m := 0; m < pop.mailboxes && ctx.Err() == nil; {
		ops := make([]client.Op, 0, importBatch)
		for ; m < pop.mailboxes && len(ops) < importBatch; m++ {
			a := pop.fact(m).assert()
			a.Imported = true
			ops = append(ops, a)
		}
		select {
		case batches <- ops:
		case <-ctx.Done():
		}
		progress(m)
	}
	close(batches)
	wg.Wait()
	return context.Cause(ctx)
}

func stateBatch(ctx context.Context, c *client.Client, ops []client.Op) error {
	results, err := c.Batch(ctx, ops)
	if err != nil {
		return err
	}
	for i, r := range results {
		if r.Err != nil {
			return fmt.Errorf("import %s: %w", ops[i].(client.Assert).Mailbox, r.Err)
		}
		if r.Effect != client.Added && r.Effect != client.Unchanged {
			return fmt.Errorf("%w: import of %s came to %v: is the cluster empty?", errWrong, ops[i].(client.Assert).Mailbox, r.Effect)
		}
	}
	return nil
}

// describeServers says where each server answers, so that routes have addresses.
func describeServers(ctx context.Context, c *client.Client) error {
	for s := range servers {
		addresses := serverAddresses(s)
		if _, err := c.SetBackend(ctx, serverName(s), client.BackendChange{Addresses: &addresses, Create: true}); err != nil {
			return fmt.Errorf("describe server %s: %w", serverName(s), err)
		}
	}
	return nil
}

// confirmServers says that every server's list is known whole.
func confirmServers(ctx context.Context, c *client.Client) error {
	for s := range servers {
		if _, err := c.ConfirmBackend(ctx, serverName(s), directory.ByImport); err != nil {
			return fmt.Errorf("confirm server %s: %w", serverName(s), err)
		}
	}
	return nil
}

// importByProgram fills the cluster with `rookeryctl import cyrus -`, which
// reads the population's dump: what an operator would see, the parsing included.
func importByProgram(ctx context.Context, program string, endpoints []string, pop *population, env []string, opts ...client.Option) (importResult, error) {
	c, err := client.Dial(endpoints, opts...)
	if err != nil {
		return importResult{}, err
	}
	defer c.Close()
	if err := describeServers(ctx, c); err != nil {
		return importResult{}, err
	}

	cmd := exec.CommandContext(ctx, program, "--endpoints", strings.Join(endpoints, ","), "import", "cyrus", "-")
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.Env = append(os.Environ(), env...)
	in, err := cmd.StdinPipe()
	if err != nil {
		return importResult{}, err
	}
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		return importResult{}, err
	}
	wrote := make(chan error, 1)
	go func() {
		err := writeDump(in, pop)
		wrote <- errors.Join(err, in.Close())
	}()
	err = cmd.Wait()
	took := time.Since(begin)
	if werr := <-wrote; err == nil && werr != nil && !errors.Is(werr, io.ErrClosedPipe) && !errors.Is(werr, os.ErrClosed) {
		err = werr
	}
	if err != nil {
		return importResult{}, fmt.Errorf("%s import cyrus: %w\n%s", program, err, said.String())
	}
	// The import of a whole dump has confirmed the servers; doing it again does
	// nothing.
	return importedBy("rookeryctl", pop, took), confirmServers(ctx, c)
}
