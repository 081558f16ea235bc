package raftstore

import "time"

// Clock is where the step functions get their time from. The simulator has
// one of its own.
type Clock interface {
	// Now is the time since some fixed moment, by a clock that never goes back.
	Now() time.Duration
	// Wall is the time of day, for people.
	Wall() time.Time
}

// systemClock is this machine's clock.
type systemClock struct {
	start time.Time // carries a monotonic reading
}

// SystemClock returns the clock of this machine.
func SystemClock() Clock { return systemClock{time.Now()} }

func (c systemClock) Now() time.Duration { return time.Since(c.start) }
func (c systemClock) Wall() time.Time    { return time.Now() }
