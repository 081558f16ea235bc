package raftstore

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/rookery-mail/rookery/internal/kv"
	"github.com/rookery-mail/rookery/internal/kv/kvtest"
	bolt "go.etcd.io/bbolt"
)

// TestRowHash: what a row is counts whole - its bucket, where key ends and
// value begins, which is which.
func TestRowHash(t *testing.T) {
	seeds := rowSeeds([]kv.Bucket{"a", "b"})
	seen := map[uint64]string{}
	for i, seed := range seeds {
		for _, row := range [][2]string{{"k", ""}, {"k", "v"}, {"v", "k"}, {"kv", ""}, {"", "kv"}, {"k", "w"}, {"l", "v"}} {
			h, what := rowHash(seed, []byte(row[0]), []byte(row[1])), fmt.Sprint(i, row)
			if before, ok := seen[h]; ok {
				t.Errorf("%s and %s have the same hash", before, what)
			}
			seen[h] = what
		}
	}
	if rowSeeds([]kv.Bucket{"b", "a"})[1] != seeds[0] {
		t.Error("a bucket's seed depends on its place in the list")
	}
	// Rows that differ in a pattern must not cancel out.
	if rowHash(seeds[0], []byte("1"), []byte("a"))+rowHash(seeds[0], []byte("2"), []byte("b")) ==
		rowHash(seeds[0], []byte("1"), []byte("b"))+rowHash(seeds[0], []byte("2"), []byte("a")) {
		t.Error("two rows with their values swapped have the same sum")
	}
}

// TestSumIsKept: whatever is put, deleted, read before and flushed in between,
// the sum is that of the rows.
func TestSumIsKept(t *testing.T) {
	for _, kind := range []string{"memory", "file"} {
		t.Run(kind, func(t *testing.T) {
			var disk Disk = NewMemoryDisk(2, testMeta(1, 1))
			if kind == "file" {
				f := newTestFile(t)
				f.db.NoSync = true
				disk = f
			}
			s := newOverlayStore(t, disk)
			rnd := rand.New(rand.NewPCG(7, 7))
			for round := range 400 {
				s.Update(func(tx kv.Tx) {
					for range 1 + rnd.IntN(20) {
						b := []kv.Bucket{kvtest.A, kvtest.B}[rnd.IntN(2)]
						key := fmt.Appendf(nil, "k%d", rnd.IntN(80))
						switch rnd.IntN(6) {
						case 0:
							tx.Delete(b, key)
						case 1:
							tx.Get(b, key)
						case 2:
							it := tx.Iterate(b)
							it.Seek(key)
							it.Next()
						case 3:
							tx.Put(b, key, nil)
						default:
							tx.Put(b, key, fmt.Appendf(nil, "v%d", rnd.IntN(3)))
						}
					}
				})
				if rnd.IntN(3) == 0 {
					s.meta.Sum = s.o.sum
					s.Shift()
				}
				v := s.o.view()
				if got, want := s.o.sum, viewSum(v); got != want {
					t.Fatalf("round %d: the sum is %x, the rows come to %x", round, got, want)
				}
				v.Release()
			}
		})
	}
}

// TestPutOfTheSame: a row that is put as it is, and a delete of none, write nothing.
func TestPutOfTheSame(t *testing.T) {
	s := newOverlayStore(t, NewMemoryDisk(2, testMeta(1, 1)))
	s.Update(func(tx kv.Tx) { tx.Put(kvtest.A, []byte("k"), []byte("v")) })
	for range 3 {
		s.Shift()
	}
	s.Update(func(tx kv.Tx) {
		tx.Put(kvtest.A, []byte("k"), []byte("v"))
		tx.Delete(kvtest.A, []byte("none"))
	})
	if got := s.o.active.keys(); got != 0 {
		t.Errorf("%d keys were written, want none", got)
	}
}

// TestStateOfVersion1: a state file without a sum gets one when it is opened.
func TestStateOfVersion1(t *testing.T) {
	cfg := testConfig(t)
	s := open(t, cfg)
	for i := range 100 {
		propose(t, s, fmt.Sprintf("put k%d v", i))
	}
	_, want := s.Sum()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(cfg.shardDir(), stateName)
	db, err := bolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bolt.Tx) error {
		b := tx.Bucket(metaBucket)
		record := b.Get(metaKey)
		old := append([]byte{1}, record[1:len(record)-4-8]...)
		return b.Put(metaKey, sealMeta(old))
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, cfg)
	if _, got := s.Sum(); got != want {
		t.Errorf("the sum of a state of version 1 is %x, want %x", got, want)
	}
	if _, done, err := s.node.StepScrub(1 << 20); !done || err != nil {
		t.Errorf("scrub: done %v, error %v", done, err)
	}
}

// TestMemoIsEmptied: what is remembered stands in the pages of a base; it must
// not be looked at when that is gone.
func TestMemoIsEmptied(t *testing.T) {
	for name, change := range map[string]func(*overlayStore){
		"flushed":  func(s *overlayStore) { s.o.flushed(s.begin(), start) },
		"rebased":  func(s *overlayStore) { s.o.rebase(s.begin(), start) },
		"replaced": func(s *overlayStore) { s.o.replace(s.begin(), start, s.o.sum) },
	} {
		s := newOverlayStore(t, newTestFile(t))
		s.Update(func(tx kv.Tx) { tx.Get(kvtest.A, []byte("k")) })
		hash := s.o.hash(0, []byte("k"))
		if _, ok := s.o.memo.find(hash, 0, []byte("k")); !ok {
			t.Errorf("%s: nothing is remembered before it", name)
		}
		change(s)
		if _, ok := s.o.memo.find(hash, 0, []byte("k")); ok {
			t.Errorf("%s: a row of the old base is remembered", name)
		}
	}
}
