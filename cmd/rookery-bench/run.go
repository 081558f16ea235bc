package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/rookery-mail/rookery/internal/obs"
)

// settleFor is what a node is given to write its state after a load of writes:
// its overlay is flushed every second.
const settleFor = 1500 * time.Millisecond

// A bench is one run.
type bench struct {
	settings
	self     string // this program's file, which the echo runs
	progress io.Writer
	report   report
}

// run measures every population that was asked for. What was found until an
// error is in the report.
func (b *bench) run(ctx context.Context) (err error) {
	dir, cleanup, err := b.workDir()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, cleanup()) }()
	b.report = report{
		Version: obs.Version(), Begun: time.Now().UTC().Truncate(time.Second), Machine: thisMachine(dir),
		Rounds: b.rounds, Seconds: b.duration.Seconds(), Connections: b.connections,
	}
	for _, size := range b.populations {
		pop, err := newPopulation(size, b.seed)
		if err != nil {
			return fmt.Errorf("%w: %w", errUsage, err)
		}
		at := filepath.Join(dir, fmt.Sprintf("rookery-bench-%s-seed%d", formatSize(size), b.seed))
		result, err := b.population(ctx, pop, at)
		b.report.Populations = append(b.report.Populations, result)
		if err != nil {
			return fmt.Errorf("%s mailboxes: %w", formatSize(size), err)
		}
	}
	b.report.Verdicts = b.report.verdicts()
	return nil
}

// workDir is where data go, and what to do about it in the end.
func (b *bench) workDir() (dir string, cleanup func() error, err error) {
	if b.dir != "" {
		return b.dir, func() error { return nil }, os.MkdirAll(b.dir, 0o755)
	}
	dir, err = os.MkdirTemp("", "rookery-bench-")
	return dir, func() error { return os.RemoveAll(dir) }, err
}

func (b *bench) say(pop *population, format string, args ...any) {
	fmt.Fprintf(b.progress, "%s  %s: %s\n", time.Now().Format(time.TimeOnly), formatSize(pop.mailboxes), fmt.Sprintf(format, args...))
}

// population measures one population, with its data in dir.
func (b *bench) population(ctx context.Context, pop *population, dir string) (result populationReport, err error) {
	result = populationReport{Mailboxes: pop.mailboxes, Seed: pop.seed}
	if !b.keep {
		// What an earlier run left must not be measured, or mixed with this one.
		if err := os.RemoveAll(dir); err != nil {
			return result, err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return result, err
	}

	s := &site{bench: b, dir: dir, pop: pop, work: newWork(pop), echoes: map[string]*echo{}, endpoints: b.endpoints, debug: b.profileURL}
	if len(s.endpoints) == 0 {
		if s.node, err = newNode(b.rookeryd, dir); err != nil {
			return result, err
		}
		if err := s.node.start(ctx); err != nil {
			return result, err
		}
		s.endpoints, s.debug = []string{s.node.client}, s.node.debug
		defer func() { err = errors.Join(err, s.node.kill()) }()
		memory := watchMemory(s.node.process)
		err = s.measure(ctx, &result)
		seen, merr := memory.end()
		if err = errors.Join(err, merr); err != nil {
			return result, err
		}
		if b.asked(workloadMemory) {
			result.Memory = &seen
		}
		if result.Stored, err = s.node.stored(); err != nil {
			return result, err
		}
		if b.asked(workloadStart) {
			b.say(pop, "start")
			if result.Starts, err = timeStarts(ctx, s.node, s.work, b.rounds, b.connections); err != nil {
				return result, err
			}
		}
		return result, s.node.stop(ctx)
	}
	return result, s.measure(ctx, &result)
}

// filledMark is the file that says that a kept node holds its population.
const filledMark = "filled"

// fill has the node hold the population, and tells what that took; nil if it
// did already.
func (s *site) fill(ctx context.Context) (*importResult, error) {
	mark := filepath.Join(s.dir, filledMark)
	if _, err := os.Stat(mark); err == nil {
		return nil, nil
	}
	if s.node == nil && !s.asked(workloadImport) {
		return nil, nil // a running cluster that holds it
	}
	s.say(s.pop, "import")
	profiled := s.profileBeside(ctx, workloadImport, min(time.Duration(s.pop.mailboxes/50_000)*time.Second, 10*time.Second))
	var result importResult
	var err error
	if s.importBy == "rookeryctl" {
		result, err = importByProgram(ctx, s.rookeryctl, s.endpoints, s.pop, s.identityEnv(), s.clientIdentity()...)
	} else {
		told := time.Now()
		result, err = importAll(ctx, s.endpoints, s.pop, func(done int) {
			if time.Since(told) > 10*time.Second {
				told = time.Now()
				s.say(s.pop, "import: %d of %d", done, s.pop.mailboxes)
			}
		}, s.clientIdentity()...)
	}
	if err = errors.Join(err, profiled()); err != nil {
		return nil, err
	}
	if err := os.WriteFile(mark, nil, 0o644); err != nil {
		return nil, err
	}
	return &result, settle(ctx)
}

// settle lets the node write what it was told.
func settle(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(settleFor):
		return nil
	}
}

// profileBeside fetches a profile while the caller loads the node, if profiles
// were asked for. The function returned waits for it.
func (s *site) profileBeside(ctx context.Context, name string, length time.Duration) func() error {
	if s.profiles == "" || s.debug == "" {
		return func() error { return nil }
	}
	done := make(chan error, 1)
	go func() {
		done <- saveProfiles(ctx, s.debug, s.profiles, formatSize(s.pop.mailboxes)+"-"+name, length)
	}()
	return func() error { return <-done }
}
