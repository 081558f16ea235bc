//go:build peers

package powerloss

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/rookery-mail/rookery/client"
)

// among damages the files of one node of three, while the others serve.
func (d *damager) among(ctx context.Context) (err error) {
	w := &world{programs: d.programs, seed: d.seed, rng: d.rng, spawn: d.spawn, report: d.report}
	defer func() { err = errors.Join(err, w.end()) }()
	var list, peers, endpoints []string
	for i := range 3 {
		x := d.onDirectory(i+1, filepath.Join(d.dir, fmt.Sprintf("among-%d", i+1)))
		if err := os.Mkdir(x.point, 0o700); err != nil {
			return err
		}
		list, peers, endpoints = append(list, x.name+"="+x.peer), append(peers, x.peer), append(endpoints, x.client)
		w.nodes = append(w.nodes, x)
		c, err := client.Dial([]string{x.client}, client.WithTimeout(patience))
		if err != nil {
			return err
		}
		w.admin = append(w.admin, c)
	}
	for _, x := range w.nodes {
		x.flags = append(x.flags, "--initial-cluster", strings.Join(list, ","))
	}
	if w.load, err = newLoad(endpoints, d.seed); err != nil {
		return err
	}
	if _, err := w.started(ctx, w.nodes, false); err != nil {
		return err
	}
	if err := w.settings(ctx); err != nil {
		return err
	}
	w.load.run(ctx)
	for round := range *damages {
		for _, k := range clusterKinds {
			if !strings.Contains(k.name, *only) {
				continue
			}
			x := w.nodes[d.rng.IntN(len(w.nodes))]
			outcome, err := d.cure(ctx, w, x, k, strings.Join(peers, ","))
			if err == nil {
				err = w.compare(ctx)
			}
			if err != nil {
				return fmt.Errorf("%s, %s, round %d: %w", x.name, k.name, round, err)
			}
			if outcome != "" {
				d.counts.add(k.name, outcome)
			}
		}
	}
	return nil
}

// clusterKinds are fewer: what a start makes of each place is known by now.
var clusterKinds = []kind{
	kindNamed("state, leaf page, sector zeroed"), kindNamed("state, meta page, sector zeroed"),
	kindNamed("state, cut off"), kindNamed("state, gone"), kindNamed("state, older"),
	kindNamed("log, tail segment, sector zeroed"), kindNamed("log, tail segment, cut off"), kindNamed("log, gone"),
	kindNamed("promise, all zero"), kindNamed("promise, gone"), kindNamed("birth, sector zeroed"),
	{"the whole directory, older", nil},
	{"the whole directory, gone", nil},
}

func kindNamed(name string) kind {
	for _, k := range kinds {
		if k.name == name {
			return k
		}
	}
	return kind{name: "no such kind: " + name}
}

// cure damages a node and does what docs/OPERATIONS.md says, until it is well. It
// returns what became of it; nothing if there was nothing to damage.
func (d *damager) cure(ctx context.Context, w *world, x *node, k kind, peers string) (string, error) {
	before := filepath.Join(d.dir, "before")
	if err := errors.Join(w.stop(x), os.RemoveAll(before), copyDirectory(before, x.data())); err != nil {
		return "", err
	}
	if err := w.again(x); err != nil {
		return "", err
	}
	if err := errors.Join(w.outgrow(ctx, x), w.stop(x)); err != nil {
		return "", err
	}
	switch {
	case k.do != nil:
		what, err := k.do(d.rng, x.data(), before)
		if err != nil {
			return "", err
		}
		if what == "" { // there were zeros already
			return "", w.again(x)
		}
	case strings.HasSuffix(k.name, "older"):
		if err := errors.Join(os.RemoveAll(x.data()), copyDirectory(x.data(), before)); err != nil {
			return "", err
		}
	default:
		// What a new disk is: the procedure begins with this.
		if err := os.RemoveAll(x.data()); err != nil {
			return "", err
		}
		return replaced, d.replace(ctx, w, x, peers)
	}
	if err := x.start(d.spawn); err != nil {
		return "", err
	}
	if _, err := x.ready(); err != nil {
		if err := x.refusal(); err != nil {
			return "", err
		}
		return replaced, d.replace(ctx, w, x, peers)
	}
	// An old history shows when the leader speaks.
	select {
	case <-x.ended:
		if err := x.refusal(); err != nil {
			return "", err
		}
		return replaced, d.replace(ctx, w, x, peers)
	case <-time.After(500 * time.Millisecond):
	}
	if text, err := os.ReadFile(filepath.Join(x.data(), "reseeds")); err == nil && len(text) > 0 {
		// Or it would, after the third time, leave it to people.
		return reseeded, os.Remove(filepath.Join(x.data(), "reseeds"))
	}
	return whole, nil
}

func copyDirectory(to, from string) error {
	_ = os.Remove(filepath.Join(from, "rookery.sock"))
	return os.CopyFS(to, os.DirFS(from))
}

// again starts a node that was stopped.
func (w *world) again(x *node) error {
	if err := x.start(w.spawn); err != nil {
		return err
	}
	_, err := x.ready()
	return err
}

// replace gives a node an empty disk and has it take part as a new one.
func (d *damager) replace(ctx context.Context, w *world, x *node, peers string) error {
	x.kill()
	if err := os.RemoveAll(x.data()); err != nil {
		return err
	}
	x.flags = []string{"--log-segment", segment, "--log-size", logSize, "--join", peers}
	if err := x.start(d.spawn); err != nil {
		return err
	}
	var other *node
	for _, n := range w.nodes {
		if n != x {
			other = n
		}
	}
	var out []byte
	var err error
	// It must have been heard to ask.
	for begun := time.Now(); time.Since(begun) < patience; time.Sleep(100 * time.Millisecond) {
		out, err = exec.CommandContext(ctx, d.rookeryctl, "--endpoints", other.client, "--timeout", "1m", "member", "replace", x.name, "--yes").CombinedOutput()
		if err == nil {
			_, err := x.ready()
			return err
		}
	}
	return fmt.Errorf("rookeryctl member replace %s: %w\n%s\n%s", x.name, err, tail(string(out)), tail(x.log.String()))
}
