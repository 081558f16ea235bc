package main_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rookery-mail/rookery/client"
)

// figures are a node's metrics as it shows them, with their labels.
type figures map[string]float64

// scrapes asks nodes for their metrics; one that is stuck is not waited for long.
var scrapes = &http.Client{Timeout: 5 * time.Second}

// figures asks a node for its metrics.
func (n *node) figures() (figures, error) {
	resp, err := scrapes.Get("http://" + n.http + "/metrics")
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("metrics of %s: %s", n.name, resp.Status)
	}
	f := figures{}
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		i := strings.LastIndexByte(lines.Text(), ' ')
		if i < 0 || strings.HasPrefix(lines.Text(), "#") {
			continue
		}
		if v, err := strconv.ParseFloat(lines.Text()[i+1:], 64); err == nil {
			f[lines.Text()[:i]] = v
		}
	}
	return f, lines.Err()
}

// mustFigures asks a node that must answer.
func (n *node) mustFigures() figures {
	n.t.Helper()
	f, err := n.figures()
	if err != nil {
		n.t.Fatal(err)
	}
	return f
}

// get sums a metric over those of its labels that have all that are asked for.
func (f figures) get(name string, labels ...string) (sum float64) {
	for key, v := range f {
		bare, rest, _ := strings.Cut(key, "{")
		if bare == name && !slices.ContainsFunc(labels, func(l string) bool { return !strings.Contains(rest, l) }) {
			sum += v
		}
	}
	return sum
}

// worst returns the bound of the highest bucket of a histogram that something
// fell into since before: that long the longest took at most.
func (f figures) worst(name string, before figures) time.Duration {
	counts := map[float64]float64{}
	for key, v := range f {
		rest, ok := strings.CutPrefix(key, name+"_bucket{")
		if !ok {
			continue
		}
		_, rest, _ = strings.Cut(rest, `le="`)
		text, _, _ := strings.Cut(rest, `"`)
		le, err := strconv.ParseFloat(text, 64)
		if err != nil {
			continue
		}
		counts[le] += v - before[key]
	}
	worst, below := 0.0, 0.0
	for _, le := range slices.Sorted(maps.Keys(counts)) {
		if counts[le] > below {
			worst, below = min(le, 1e6), counts[le]
		}
	}
	return time.Duration(worst * float64(time.Second))
}

// descriptors is how many files the process has open, 0 where that cannot be told.
func (n *node) descriptors() int {
	all, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", n.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	return len(all)
}

// starved is how long the threads of the process were ready to run and had no
// processor, all together; 0 where that cannot be told.
func (n *node) starved() (sum time.Duration) {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", n.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // the thread has ended
		}
		if f := strings.Fields(string(text)); len(f) == 3 {
			ns, _ := strconv.ParseInt(f[1], 10, 64)
			sum += time.Duration(ns)
		}
	}
	return sum
}

// gaps notices for how long this process did not run: a machine that stops its
// guests, or has no processor for them, stops the nodes too.
type gaps struct {
	mu    sync.Mutex
	worst time.Duration
}

const gapsEvery = 5 * time.Millisecond

func (g *gaps) run(stop <-chan struct{}) {
	t := time.NewTicker(gapsEvery)
	defer t.Stop()
	for last := time.Now(); ; {
		select {
		case <-stop:
			return
		case <-t.C:
		}
		now := time.Now()
		g.mu.Lock()
		g.worst = max(g.worst, now.Sub(last)-gapsEvery)
		g.mu.Unlock()
		last = now
	}
}

// take returns the longest since it was asked last.
func (g *gaps) take() time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	w := g.worst
	g.worst = 0
	return w
}

// meter counts calls and their times.
type meter struct {
	mu    sync.Mutex
	since time.Time
	count int
	took  []time.Duration // a sample
}

// window is what a meter has seen for a while.
type window struct {
	dur   time.Duration
	count int
	took  []time.Duration // sorted
}

const maxTook = 200_000

func (m *meter) done(took time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.count++
	if len(m.took) < maxTook {
		m.took = append(m.took, took)
	} else if i := rand.IntN(m.count); i < maxTook {
		m.took[i] = took
	}
}

// turn begins a new window and returns the last.
func (m *meter) turn() window {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	w := window{now.Sub(m.since), m.count, slices.Sorted(slices.Values(m.took))}
	m.since, m.count, m.took = now, 0, nil
	return w
}

// over meters for so long.
func (m *meter) over(d time.Duration) window {
	m.turn()
	time.Sleep(d)
	return m.turn()
}

func (w window) rate() float64 { return float64(w.count) / w.dur.Seconds() }

func (w window) at(q float64) time.Duration {
	if len(w.took) == 0 {
		return 0
	}
	return w.took[min(len(w.took)-1, int(q*float64(len(w.took))))]
}

func (w window) String() string {
	return fmt.Sprintf("%.0f/s for %v (p50 %v, p99 %v, max %v)", w.rate(), w.dur.Round(10*time.Millisecond),
		w.at(0.5).Round(100*time.Microsecond), w.at(0.99).Round(100*time.Microsecond), w.at(1).Round(time.Millisecond))
}

// hammer is callers that call again as soon as they were answered.
type hammer struct {
	meter meter
	stop  chan struct{}
	errs  chan error
	wg    sync.WaitGroup
}

// swing starts so many callers.
func swing(callers int, call func() error) *hammer {
	h := &hammer{stop: make(chan struct{}), errs: make(chan error, callers)}
	h.meter.turn()
	for range callers {
		h.wg.Go(func() {
			for {
				select {
				case <-h.stop:
					return
				default:
				}
				began := time.Now()
				if err := call(); err != nil {
					h.errs <- err
					return
				}
				h.meter.done(time.Since(began))
			}
		})
	}
	return h
}

// end stops them and returns what went wrong.
func (h *hammer) end() error {
	close(h.stop)
	h.wg.Wait()
	close(h.errs)
	var all []error
	for err := range h.errs {
		all = append(all, err)
	}
	return errors.Join(all...)
}

// fill asserts the mailboxes [from, to) in bulk.
func (w *loadWriter) fill(ctx context.Context, from, to int) error {
	const batch, hands = 500, 4
	var wg sync.WaitGroup
	errs := make(chan error, hands)
	for h := range hands {
		wg.Go(func() {
			for at := from + h*batch; at < to; at += hands * batch {
				if err := w.write(ctx, min(batch, to-at), func(n int) int { return at + n }, false); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	return <-errs
}

// one changes a mailbox drawn from all.
func (w *loadWriter) one(ctx context.Context) error {
	return w.write(ctx, 1, func(int) int { return rand.IntN(w.population) }, false)
}

// loaded dials a cluster whose tests make many changes at once.
func loaded(t *testing.T, ctx context.Context, nodes []*node) *client.Client {
	t.Helper()
	var endpoints []string
	for _, n := range nodes {
		endpoints = append(endpoints, n.client)
	}
	c, err := client.Dial(endpoints, client.WithTimeout(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if _, err := c.SetSettings(ctx, client.SettingsChange{GuardCount: new(uint32(1 << 30)), LogKeep: new(uint64(2000))}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Assert(ctx, client.Assert{Mailbox: "user.fixed", Server: "be0.kill.test"}); err != nil {
		t.Fatal(err)
	}
	return c
}

func mib(n float64) string { return fmt.Sprintf("%.1f MiB", n/(1<<20)) }
