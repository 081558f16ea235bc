package sim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"testing"
	"testing/cryptotest"
	"time"

	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/directory/machine"
)

// plain starts writers and readers that use the stores by themselves, without
// servers.
func plain(w *World) {
	for i := range 4 {
		w.Go(fmt.Sprint("plain ", i), func(ctx context.Context) {
			for n := uint64(1); ; n++ {
				if Sleep(ctx, w.some(0, w.plan.unit/8)) != nil {
					return
				}
				l := w.nodes[w.rnd.IntN(len(w.nodes))].life
				if l == nil {
					continue
				}
				var err error
				switch w.rnd.IntN(3) {
				case 0:
					name := directory.MailboxName(fmt.Sprintf("user.u%d.f%d", w.rnd.IntN(20), w.rnd.IntN(10)))
					_, err = l.store.Propose(ctx, machine.EncodeCommand(machine.Command{
						Client: fmt.Sprint("plain", i), Sequence: n, By: "operator:sim",
						Op: machine.Assert{Mailbox: name, Server: directory.BackendName(fmt.Sprintf("be%d.example.com", w.rnd.IntN(4)))},
					}))
				case 1:
					v, e := l.store.Linearizable(ctx)
					if err = e; e == nil {
						v.Release()
					}
				default:
					v, e := l.store.Local()
					if err = e; e == nil {
						v.Release()
					}
				}
				if errors.Is(err, errEnded) {
					return
				}
			}
		})
	}
}

func run(t *testing.T, seed uint64, d time.Duration, log *slog.Logger) *World {
	cryptotest.SetGlobalRandom(t, seed)
	w := NewWorld(seed, log)
	plain(w)
	w.Run(d)
	w.Close()
	if w.Failure() != "" {
		t.Errorf("seed %d: VIOLATION %s", seed, w.Failure())
	}
	return w
}

// TestDeterministic: the same seed gives the same run.
func TestDeterministic(t *testing.T) {
	var digests []uint64
	for range 2 {
		digests = append(digests, run(t, 1, 200*time.Second, nil).Digest())
	}
	if digests[0] != digests[1] {
		t.Errorf("two runs of one seed: digests %x and %x", digests[0], digests[1])
	}
}

func TestPlain(t *testing.T) {
	begun := time.Now()
	var log *slog.Logger
	if os.Getenv("SIMLOG") != "" {
		log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	w := run(t, 2, 1000*time.Second, log)
	t.Logf("%v: %+v", time.Since(begun), w.counts)
}
