package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// A site is one population on one cluster, and the systems that can be asked
// about it. Systems are made when they are first needed and kept until the end.
type site struct {
	*bench
	dir       string
	pop       *population
	work      *work
	node      *node // nil: the cluster was running already
	endpoints []string
	debug     string // address of the debug listener; "" if not known

	rookery *stub
	echoes  map[string]*echo // by system
	library *library
	bare    *bare
	fsyncs  []*fsync
}

// A side is one system under one load, loaded by turns with the others.
type side struct {
	name    string
	keys    int
	atLeast float64
	calls   []call
	server  *process // nil: none of ours
	rounds  []run
}

// round loads the side once.
func (s *side) round(ctx context.Context, length time.Duration) (run, error) {
	meter := startCPU(s.server)
	r := closedLoop(ctx, s.calls, length)
	meter.stop(&r)
	if err := sound(r); err != nil {
		return r, fmt.Errorf("%s: %w", s.name, err)
	}
	return r, nil
}

// measure fills the cluster and runs the loads that were asked for.
func (s *site) measure(ctx context.Context, into *populationReport) (err error) {
	filled, err := s.fill(ctx)
	if err != nil {
		return err
	}
	if s.asked(workloadImport) {
		into.Import = filled
	}
	if s.rookery, err = newStub(s.endpoints, s.connections, s.work, s.identity()...); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	for _, w := range workloads {
		if !s.asked(w.name) {
			continue
		}
		if s.inFlight > 0 {
			w.workers = s.inFlight
		}
		// Reads are to see what the loads before have written.
		if err := s.rookery.learnToken(ctx); err != nil {
			return err
		}
		result, err := s.load(ctx, w)
		if err != nil {
			return fmt.Errorf("%s: %w", w.name, err)
		}
		into.Loads = append(into.Loads, result)
	}
	return nil
}

// load runs one workload and what stands beside it.
func (s *site) load(ctx context.Context, w workload) (loadResult, error) {
	sides, err := s.sides(ctx, w)
	if err != nil {
		return loadResult{}, err
	}
	for _, side := range sides {
		if _, err := side.round(ctx, s.warmup); err != nil {
			return loadResult{}, err
		}
	}
	for round := range s.rounds {
		s.say(s.pop, "%s: round %d of %d", w.name, round+1, s.rounds)
		for i := range sides {
			if round%2 == 1 {
				i = len(sides) - 1 - i // nobody always runs behind the same one
			}
			r, err := sides[i].round(ctx, s.duration)
			if err != nil {
				return loadResult{}, err
			}
			sides[i].rounds = append(sides[i].rounds, r)
		}
	}
	if ctx.Err() != nil {
		return loadResult{}, ctx.Err()
	}

	measured := sides[0]
	result := loadResult{Workload: w.name, Keys: w.keys, Measured: figureOf(len(measured.calls), measured.rounds)}
	for _, other := range sides[1:] {
		result.Beside = append(result.Beside,
			besideOf(other.name, result.Measured, w.keys, figureOf(len(other.calls), other.rounds), other.keys, other.atLeast))
	}
	if rate := s.openRate(result.Measured.Rate); rate > 0 {
		s.say(s.pop, "%s: open loop, %.0f calls a second", w.name, rate)
		f := figureOf(len(measured.calls), []run{openLoop(ctx, measured.calls, rate, 2*s.duration)})
		f.Offered = rate
		result.Open = &f
	}
	if s.profiles != "" && s.debug != "" {
		s.say(s.pop, "%s: profile", w.name)
		length := max(3*s.duration, time.Second).Round(time.Second)
		wait := s.profileBeside(ctx, w.name, length)
		// The load ends after the profile.
		closedLoop(ctx, measured.calls, length+time.Second/2)
		if err := wait(); err != nil {
			return loadResult{}, err
		}
	}
	if w.op == opAssert || w.op == opBatch {
		return result, settle(ctx)
	}
	return result, nil
}

// sound refuses figures of a system that did not do its work: a few failed calls
// are counted and shown, but more than one in a hundred measure something else.
func sound(r run) error {
	if r.errors*100 > r.calls {
		return fmt.Errorf("%d of %d calls failed, one with: %w", r.errors, r.calls, r.sample)
	}
	return nil
}

func (s *site) openRate(closed float64) float64 {
	if s.rate > 0 {
		return s.rate
	}
	return closed * s.openShare
}

// sides returns the system measured, then what stands beside it.
func (s *site) sides(ctx context.Context, w workload) ([]*side, error) {
	calls, err := callers(s.rookery, w, w.workers)
	if err != nil {
		return nil, err
	}
	sides := []*side{{name: systemRookery, keys: w.keys, calls: calls, server: s.serverOf(systemRookery)}}
	if !s.ceilings {
		return sides, nil
	}
	example, err := takeSample(ctx, s.endpoints[0], w, s.work, s.identity()...)
	if err != nil {
		return nil, err
	}
	for _, b := range w.beside {
		load := w
		if b.workload != "" {
			load = workloadNamed(b.workload)
		}
		sys, err := s.system(ctx, b.system, example)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", b.name(), err)
		}
		n := b.workers
		if n == 0 {
			n = w.workers
		}
		if calls, err = callers(sys, load, n); err != nil {
			return nil, err
		}
		sides = append(sides, &side{name: b.name(), keys: load.keys, atLeast: b.atLeast, calls: calls, server: s.serverOf(b.system)})
	}
	return sides, nil
}

// serverOf returns the process that answers for a system; nil if there is none,
// or it was not started here.
func (s *site) serverOf(name string) *process {
	switch {
	case name == systemEcho || name == systemOctets:
		return s.echoes[name].process
	case name == systemBbolt || name == systemFsync || s.node == nil:
		return nil
	}
	return s.node.process
}

// system returns the system of that name, ready for calls such as example.
func (s *site) system(ctx context.Context, name string, example sample) (sys system, err error) {
	switch name {
	case "":
		return s.rookery, nil
	case systemEcho, systemOctets:
		e := s.echoes[name]
		if e == nil {
			if e, err = newEcho(s.self, name == systemOctets, s.connections, s.work); err != nil {
				return nil, err
			}
			s.echoes[name] = e
		}
		return e, e.teach(ctx, example.lesson)
	case systemClient:
		if s.library == nil {
			s.library, err = newLibrary(s.endpoints, s.connections, s.work, s.clientIdentity()...)
		}
		return s.library, err
	case systemBbolt:
		if s.bare == nil {
			s.say(s.pop, "bare bbolt file")
			s.bare, err = newBare(ctx, s.dir, s.work)
		}
		return s.bare, err
	case systemFsync:
		f, err := newFsync(s.dir, example.Request)
		if err == nil {
			s.fsyncs = append(s.fsyncs, f)
		}
		return f, err
	}
	return nil, fmt.Errorf("no system is called %q", name)
}

func (s *site) close() error {
	errs := []error{s.rookery.close()}
	for _, e := range s.echoes {
		errs = append(errs, e.close())
	}
	if s.library != nil {
		errs = append(errs, s.library.close())
	}
	if s.bare != nil {
		errs = append(errs, s.bare.close())
	}
	for _, f := range s.fsyncs {
		errs = append(errs, f.close())
	}
	return errors.Join(errs...)
}
