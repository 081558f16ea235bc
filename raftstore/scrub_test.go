package raftstore

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rookery-mail/rookery/internal/kv"
	"github.com/rookery-mail/rookery/internal/kv/kvtest"
	bolt "go.etcd.io/bbolt"
)

// scrubbed is an overlay whose flushes go through a scrubber.
type scrubbed struct {
	*overlayStore
	s     *scrubber
	index uint64
}

func newScrubbed(t *testing.T, disk Disk) *scrubbed {
	o := newOverlayStore(t, disk)
	return &scrubbed{overlayStore: o, s: newScrubber(o.o.seeds), index: o.meta.Applied.Index}
}

func (s *scrubbed) flush() {
	s.index++
	s.meta.Applied.Index, s.meta.Sum = s.index, s.o.sum
	l := s.o.freeze()
	if err := s.s.write(s.disk, s.meta, l); err != nil {
		s.t.Fatal(err)
	}
	s.o.flushed(s.begin(), s.meta.Applied)
}

// TestScrubFollows: rounds that take long, with writes before and behind the
// place where they are, find a good state good.
func TestScrubFollows(t *testing.T) {
	for _, kind := range []string{"memory", "file"} {
		t.Run(kind, func(t *testing.T) {
			var disk Disk = NewMemoryDisk(2, testMeta(1, 1))
			if kind == "file" {
				f := newTestFile(t)
				f.db.NoSync = true
				disk = f
			}
			s := newScrubbed(t, disk)
			rnd := rand.New(rand.NewPCG(3, 3))
			rounds, steps := 0, 0
			for range 600 {
				s.Update(func(tx kv.Tx) {
					for range 1 + rnd.IntN(10) {
						b, key := []kv.Bucket{kvtest.A, kvtest.B}[rnd.IntN(2)], fmt.Appendf(nil, "k%d", rnd.IntN(200))
						if rnd.IntN(3) == 0 {
							tx.Delete(b, key)
						} else {
							tx.Put(b, key, fmt.Appendf(nil, "v%d", rnd.IntN(3)))
						}
					}
				})
				if rnd.IntN(2) == 0 {
					s.flush()
				}
				_, done, err := s.s.step(disk, 1+rnd.IntN(200))
				if err != nil {
					t.Fatalf("round %d: %v", rounds, err)
				}
				steps++
				if done {
					rounds++
				}
			}
			if rounds < 10 || steps < 4*rounds {
				t.Errorf("%d rounds in %d steps prove nothing", rounds, steps)
			}
		})
	}
}

// TestScrubFinds: a row that is not what was written is found, wherever it is
// and whether or not it was read already.
func TestScrubFinds(t *testing.T) {
	for _, test := range []struct {
		name   string
		damage func(*bolt.Bucket) error
	}{
		{"value", func(b *bolt.Bucket) error { return b.Put([]byte("k050"), []byte("w")) }},
		{"lost", func(b *bolt.Bucket) error { return b.Delete([]byte("k050")) }},
		{"risen", func(b *bolt.Bucket) error { return b.Put([]byte("k0505"), []byte("v")) }},
		{"key", func(b *bolt.Bucket) error {
			return errors.Join(b.Delete([]byte("k050")), b.Put([]byte("k0505"), []byte("v")))
		}},
	} {
		for _, when := range []string{"before", "behind it", "ahead of it", "behind it, then written over"} {
			t.Run(test.name+" "+when, func(t *testing.T) {
				f := newTestFile(t)
				f.db.NoSync = true
				s := newScrubbed(t, f)
				s.Update(func(tx kv.Tx) {
					for i := range 100 {
						tx.Put(kvtest.A, fmt.Appendf(nil, "k%03d", i), []byte("v"))
					}
				})
				s.flush()
				read := map[string]int{"behind it": 400, "ahead of it": 100, "behind it, then written over": 400}[when]
				if read > 0 {
					if _, done, err := s.s.step(f, read); done || err != nil {
						t.Fatalf("the first step: done %v, error %v", done, err)
					}
				}
				err := f.db.Update(func(tx *bolt.Tx) error { return test.damage(tx.Bucket([]byte(kvtest.A))) })
				if err != nil {
					t.Fatal(err)
				}
				if when == "behind it, then written over" {
					// The flush reads what is there now.
					next := s.begin()
					s.o.flushed(next, s.meta.Applied)
					s.Update(func(tx kv.Tx) { tx.Put(kvtest.A, []byte("k050"), []byte("x")) })
					if test.name == "risen" {
						s.Update(func(tx kv.Tx) { tx.Put(kvtest.A, []byte("k0505"), []byte("x")) })
					}
					s.flush()
				}
				_, done, err := s.s.step(f, 1<<20)
				if strings.HasPrefix(when, "behind it") {
					// Nothing reads it again in this round; the next does.
					if !done || err != nil {
						t.Fatalf("the rest of the round: done %v, error %v", done, err)
					}
					_, done, err = s.s.step(f, 1<<20)
				}
				if !done || err == nil {
					t.Errorf("done %v, error %v; want it found", done, err)
				}
			})
		}
	}
}

// TestScrubOfAReplacedState begins again.
func TestScrubOfAReplacedState(t *testing.T) {
	disk := NewMemoryDisk(2, testMeta(1, 1))
	s := newScrubbed(t, disk)
	s.Update(func(tx kv.Tx) {
		for i := range 100 {
			tx.Put(kvtest.A, fmt.Appendf(nil, "k%03d", i), []byte("v"))
		}
	})
	s.flush()
	if _, done, err := s.s.step(disk, 200); done || err != nil {
		t.Fatalf("done %v, error %v", done, err)
	}
	// A snapshot that was installed: other rows at another index, and not by write.
	var l layer = make(layer, 2)
	l[0].Put([]byte("k000"), []byte("other"))
	m := s.meta
	m.Applied.Index += 100
	v := s.o.view()
	m.Sum = viewSum(v) - rowHash(s.o.seeds[0], []byte("k000"), []byte("v")) + rowHash(s.o.seeds[0], []byte("k000"), []byte("other"))
	v.Release()
	if err := disk.Write(m, l); err != nil {
		t.Fatal(err)
	}
	if _, done, err := s.s.step(disk, 1<<20); !done || err != nil {
		t.Errorf("after the state was replaced: done %v, error %v", done, err)
	}
}

// TestScrubStops: a store whose file is damaged while it runs finds it; alone it
// stops, with others that can help it is to be re-seeded too.
func TestScrubStops(t *testing.T) {
	for _, alone := range []bool{true, false} {
		t.Run(fmt.Sprint("alone=", alone), func(t *testing.T) {
			cfg := testConfig(t)
			if !alone {
				cfg.Initial = []Member{{Name: cfg.Name}, {Name: "n2"}, {Name: "n3"}}
			}
			s := openOnly(t, cfg)
			if !alone {
				index, sum := s.Sum()
				for _, m := range s.Status().Members {
					s.CompareSum(m.ID, index, sum)
				}
			}
			err := s.files.state.db.Update(func(tx *bolt.Tx) error { return tx.Bucket([]byte(rowsBucket)).Put([]byte("k"), []byte("v")) })
			if err != nil {
				t.Fatal(err)
			}
			if err := s.scrubRound(-1); err == nil {
				t.Fatal("the round found nothing")
			} else {
				s.damaged(err)
			}
			select {
			case <-s.Done():
			case <-time.After(10 * time.Second):
				t.Fatal("the node serves on")
			}
			_, markErr := os.Stat(filepath.Join(mustDefault(t, cfg).shardDir(), reseedName))
			if err := s.Err(); !errors.Is(err, ErrCorrupt) || errors.Is(err, ErrDiverged) == alone || (markErr == nil) == alone {
				t.Errorf("it ended with %v; the mark: %v", err, markErr)
			}
		})
	}
}

// TestScrubRuns: it goes round by itself and says so.
func TestScrubRuns(t *testing.T) {
	cfg := testConfig(t)
	cfg.ScrubInterval = 10 * time.Millisecond
	s := open(t, cfg)
	for i := range 100 {
		propose(t, s, fmt.Sprintf("put k%d v", i))
	}
	first := s.Health().Scrubbed
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		h := s.Health()
		if h.Scrubbed >= 0 && h.Scrubbed < first {
			return
		}
		first = max(first, h.Scrubbed)
		if time.Now().After(deadline) {
			t.Fatalf("no scrub ended in 20 s: %+v", h)
		}
	}
}
