package mtls

import (
	"context"
	"log/slog"
	"net"
	"sync"
	"time"
)

const (
	// complainEvery is how often the same is told of the same host, at most: who is
	// refused tries again, several times a second.
	complainEvery = 10 * time.Second
	// maxComplaints bounds what is remembered of hosts.
	maxComplaints = 1024
)

// complaints logs refusals, each at least once and none too often.
type complaints struct {
	log   *slog.Logger
	proto string // which listener, or what is dialed
	every time.Duration

	mu   sync.Mutex
	told map[string]*complaint
}

type complaint struct {
	at     time.Time
	unsaid int // the same since then
}

func newComplaints(log *slog.Logger, proto string) *complaints {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &complaints{log: log, proto: proto, every: complainEvery, told: make(map[string]*complaint)}
}

// tell logs one refusal of who is at addr.
func (c *complaints) tell(msg string, addr net.Addr, r *Refusal, now time.Time) {
	level := slog.LevelWarn
	if r.Reason == Gone {
		level = slog.LevelDebug // port scans, health checks, clients that changed their mind
	}
	c.note(level, msg, addr, r, now)
}

// note is tell for what is of another level.
func (c *complaints) note(level slog.Level, msg string, addr net.Addr, r *Refusal, now time.Time) {
	unsaid, ok := c.due(host(addr)+" "+string(r.Reason)+" "+describe(r.Cert), now)
	if !ok || !c.log.Enabled(context.Background(), level) {
		return
	}
	args := []any{"proto", c.proto, "addr", addr.String(), "reason", string(r.Reason)}
	if r.Cert != nil {
		args = append(args, "cert", describe(r.Cert))
	}
	if unsaid > 0 {
		args = append(args, "before", unsaid)
	}
	c.log.Log(context.Background(), level, msg, append(args, "err", r.Text)...)
}

// due reports whether it is time to say key again, and how often it was not said.
func (c *complaints) due(key string, now time.Time) (unsaid int, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.told) >= maxComplaints && c.told[key] == nil {
		for k, one := range c.told {
			if now.Sub(one.at) >= c.every {
				delete(c.told, k)
			}
		}
		if len(c.told) >= maxComplaints {
			key = "" // so many hosts at once share one line
		}
	}
	one := c.told[key]
	if one == nil {
		c.told[key] = &complaint{at: now}
		return 0, true
	}
	if now.Sub(one.at) < c.every {
		one.unsaid++
		return 0, false
	}
	unsaid = one.unsaid
	*one = complaint{at: now}
	return unsaid, true
}

// host is an address without its port, which differs each time.
func host(addr net.Addr) string {
	h, _, err := net.SplitHostPort(addr.String())
	if err != nil {
		return addr.String()
	}
	return h
}
