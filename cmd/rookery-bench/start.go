package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
)

// startResult is how long a node took from its start to its answers, in seconds:
// medians, with the page cache warm.
type startResult struct {
	After        string // how it had ended
	Stale        float64
	AtLeast      float64
	Linearizable float64
	Rounds       []startRound
}

// startRound is one start.
type startRound struct{ Stale, AtLeast, Linearizable float64 }

// How a node ends before a start is timed.
const (
	afterStop = "stop"
	afterKill = "kill -9 under load"
)

// loadBeforeKill is how long asserts run before a node is killed: then a second's
// worth of them is in its log and not in its state file.
const loadBeforeKill = 3 * time.Second

// timeStarts ends and starts the node so many times in either way. It is running
// before and after.
func timeStarts(ctx context.Context, n *node, w *work, rounds, connections int) ([]startResult, error) {
	ends := []struct {
		name string
		end  func() error
	}{
		{afterStop, func() error { return n.stop(ctx) }},
		{afterKill, func() error { return killUnderLoad(ctx, n, w, connections) }},
	}
	var results []startResult
	for _, e := range ends {
		result := startResult{After: e.name}
		for range rounds {
			if err := e.end(); err != nil {
				return nil, fmt.Errorf("end the node by %s: %w", e.name, err)
			}
			round, err := timeStart(ctx, n)
			if err != nil {
				return nil, fmt.Errorf("start the node after %s: %w", e.name, err)
			}
			result.Rounds = append(result.Rounds, round)
		}
		result.settle()
		results = append(results, result)
	}
	return results, nil
}

func (r *startResult) settle() {
	var stale, atLeast, linearizable []float64
	for _, round := range r.Rounds {
		stale = append(stale, round.Stale)
		atLeast = append(atLeast, round.AtLeast)
		linearizable = append(linearizable, round.Linearizable)
	}
	r.Stale, r.AtLeast, r.Linearizable = median(stale), median(atLeast), median(linearizable)
}

// timeStart starts the node and waits for its first answer of each kind.
func timeStart(ctx context.Context, n *node) (startRound, error) {
	begin := time.Now()
	if err := n.launch(); err != nil {
		return startRound{}, err
	}
	modes := []apiv1.ConsistencyMode{stale, atLeast, linearizable}
	took := make([]float64, len(modes))
	errs := make([]error, len(modes))
	var wg sync.WaitGroup
	for i, mode := range modes {
		wg.Go(func() {
			errs[i] = n.await(ctx, mode)
			took[i] = rounded(time.Since(begin).Seconds(), 4)
		})
	}
	wg.Wait()
	return startRound{took[0], took[1], took[2]}, errors.Join(errs...)
}

// killUnderLoad kills the node while asserts are being answered.
func killUnderLoad(ctx context.Context, n *node, w *work, connections int) error {
	s, err := newStub([]string{n.client}, connections, w)
	if err != nil {
		return err
	}
	defer s.close()
	load := workloadNamed("assert-64")
	calls, err := callers(s, load, load.workers)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var killed error
	var wg sync.WaitGroup
	wg.Go(func() {
		time.Sleep(loadBeforeKill)
		killed = n.kill()
		cancel()
	})
	r := closedLoop(ctx, calls, time.Minute)
	wg.Wait()
	if r.calls == r.errors {
		return errors.Join(killed, fmt.Errorf("no assert was answered before the kill: %w", r.sample))
	}
	return killed
}
