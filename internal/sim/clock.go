package sim

import "time"

// clock is a node's: a monotonic one, which may run at a rate of its own, and a
// wall clock, which may jump. It goes on while the process is stopped.
type clock struct {
	s      *scheduler
	offset time.Duration // what the machine showed when the world began
	drift  int64         // of a thousand: 50 gains five minutes in a hundred
	wall   time.Duration // how far the wall clock is off
}

// epoch is the time of day when a world begins.
var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// Now implements raftstore.Clock.
func (c *clock) Now() time.Duration { return c.local(c.s.now) }

// Wall implements raftstore.Clock.
func (c *clock) Wall() time.Time { return epoch.Add(c.s.now + c.wall) }

func (c *clock) local(at time.Duration) time.Duration {
	return c.offset + at + at/1000*time.Duration(c.drift)
}

// world returns when, in the world's time, the clock shows at.
func (c *clock) world(at time.Duration) time.Duration {
	if at >= far/2 {
		return far
	}
	t := (at - c.offset) / time.Duration(1000+c.drift) * 1000
	for c.local(t) < at {
		t += max(1, at-c.local(t))
	}
	return t
}
