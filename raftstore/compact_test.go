package raftstore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rookery-mail/rookery/internal/kv"
	bolt "go.etcd.io/bbolt"
)

// bloat fills a store with rows and deletes most of them.
func bloat(t *testing.T, s *Store, rows int) {
	t.Helper()
	var wg sync.WaitGroup
	for w := range 16 {
		wg.Go(func() {
			for i := w; i < rows; i += 16 {
				propose(t, s, fmt.Sprintf("put row%05d %s", i*7919%rows, strings.Repeat("x", 2000)))
			}
		})
	}
	wg.Wait()
	flush(t, s)
	for w := range 16 {
		wg.Go(func() {
			for i := w; i < rows; i += 16 {
				if i%10 != 0 {
					propose(t, s, fmt.Sprintf("del row%05d", i))
				}
			}
		})
	}
	wg.Wait()
	flush(t, s)
}

func used(s *Store) int64 {
	_, n := s.files.state.size()
	return n
}

// TestCompact shrinks the file while it is read and written.
func TestCompact(t *testing.T) {
	cfg := testConfig(t)
	cfg.FlushKeys, cfg.FlushInterval = 100, 5*time.Millisecond
	s := open(t, cfg)
	bloat(t, s, 3000)
	old, err := s.Read(context.Background(), Local)
	if err != nil {
		t.Fatal(err)
	}
	was := dumpView(old)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var written [4]int
	for w := range written {
		wg.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				propose(t, s, fmt.Sprintf("put w%d-%d %d", w, n%200, n))
				propose(t, s, fmt.Sprintf("del row%05d", n*10%3000))
				propose(t, s, fmt.Sprintf("put row%05d %d", n*10%3000, n))
				if got := get(t, s, fmt.Sprintf("w%d-%d", w, n%200)); got != fmt.Sprint(n) {
					t.Errorf("w%d-%d: got %q, want %d", w, n%200, got, n)
				}
				written[w] = n
			}
		})
	}
	before := used(s)
	for range 3 {
		var told []int64
		size, after, err := s.Compact(context.Background(), func(done, total int64) {
			if done > total || len(told) > 0 && done < told[len(told)-1] {
				t.Errorf("progress %d of %d after %v", done, total, told)
			}
			told = append(told, done)
		})
		if err != nil || size == 0 || after == 0 {
			t.Fatalf("Compact: %d, %d, %v", size, after, err)
		}
		if len(told) == 0 {
			t.Error("no progress was told")
		}
		time.Sleep(20 * time.Millisecond)
	}
	close(stop)
	wg.Wait()
	if n := used(s); n > before/3 {
		t.Errorf("%d octets are in use after compaction, %d before; most had been deleted", n, before)
	}
	if got := dumpView(old); got != was {
		t.Error("a view from before the compaction has changed")
	}
	old.Release()
	want := dump(t, s)
	for w, n := range written {
		if n == 0 {
			t.Errorf("writer %d did %d rounds during the compactions", w, n)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if slices.Contains(left(t, cfg), compactName) {
		t.Errorf("%s is left", compactName)
	}
	s = open(t, cfg)
	if got := dump(t, s); got != want {
		t.Errorf("after reopening:\n%.200s\nwant\n%.200s", got, want)
	}
	if err := s.files.state.verify(cfg.Log, nil); err != nil {
		t.Error(err)
	}
}

// TestCompactionFollowsWrites compacts piece by piece, with flushes between the
// pieces and in the middle of them, and compares with a plain map.
func TestCompactionFollowsWrites(t *testing.T) {
	for seed := uint64(1); seed <= 20; seed++ {
		rnd := rand.New(rand.NewPCG(seed, 0))
		buckets := testMachine{}.Buckets()
		path := filepath.Join(t.TempDir(), stateName)
		meta := testMeta(1, 1)
		if err := createStateFile(path, buckets, meta); err != nil {
			t.Fatal(err)
		}
		s, err := openStateFile(path, buckets, 64<<20)
		if err != nil {
			t.Fatal(err)
		}
		s.db.NoSync = true
		want := make([]map[string]string, len(buckets))
		for i := range want {
			want[i] = map[string]string{}
		}
		write := func(n int) {
			changes := make([]kv.Tree, len(buckets))
			for range n {
				i, key := rnd.IntN(len(buckets)), fmt.Sprintf("k%03d", rnd.IntN(300))
				if rnd.IntN(3) == 0 {
					changes[i].Entomb([]byte(key))
					delete(want[i], key)
				} else {
					want[i][key] = fmt.Sprint(rnd.Uint32())
					changes[i].Put([]byte(key), []byte(want[i][key]))
				}
			}
			meta.Applied.Index++
			if err := s.Write(meta, changes); err != nil {
				t.Fatal(err)
			}
		}
		write(500)
		c, err := s.beginCompaction(1<<20, func(int64, int64) {})
		if err != nil {
			t.Fatal(err)
		}
		c.pieceKeys = 1 + rnd.IntN(40)
		for i := range buckets {
			for more := true; more; {
				if rnd.IntN(2) == 0 {
					write(rnd.IntN(20))
				}
				if rnd.IntN(5) == 0 {
					if err := c.again(); err != nil {
						t.Fatal(err)
					}
				}
				if more, err = c.piece(i); err != nil {
					t.Fatal(err)
				}
			}
		}
		write(30)
		if n := c.changed(); n == 0 || n > 1000 {
			t.Errorf("%d keys are remembered", n)
		}
		// A reader keeps the old file open.
		r, err := s.Begin()
		if err != nil {
			t.Fatal(err)
		}
		oldDB := s.db
		if err := errors.Join(c.finish(), c.place(), c.end()); err != nil {
			t.Fatal(err)
		}
		if s.db == oldDB || s.db.NoSync {
			t.Error("the file in use is the old one, or does not sync")
		}
		s.db.NoSync = true
		check := func(r DiskReader, what string) {
			t.Helper()
			for i := range buckets {
				got := map[string]string{}
				it := r.Iterate(i)
				for k, v := it.Seek(nil); k != nil; k, v = it.Next() {
					got[string(k)] = string(v)
				}
				if len(got) != len(want[i]) {
					t.Errorf("seed %d, %s: bucket %s has %d keys, want %d", seed, what, buckets[i], len(got), len(want[i]))
				}
				for k, v := range want[i] {
					if got[k] != v {
						t.Errorf("seed %d, %s: %s is %q, want %q", seed, what, k, got[k], v)
					}
				}
			}
		}
		n, err := s.Begin()
		if err != nil {
			t.Fatal(err)
		}
		check(r, "old reader")
		check(n, "new reader")
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
		write(50)
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		if err := oldDB.View(func(*bolt.Tx) error { return nil }); err == nil {
			t.Error("the old file is open after its last reader has gone")
		}
		if n, err = s.Begin(); err != nil {
			t.Fatal(err)
		}
		check(n, "after more writes")
		if err := errors.Join(n.Close(), s.Close()); err != nil {
			t.Fatal(err)
		}
		if s, err = openStateFile(path, buckets, 64<<20); err != nil {
			t.Fatal(err)
		}
		if got := s.Meta().Applied; got != meta.Applied {
			t.Errorf("seed %d: applied is %v, want %v", seed, got, meta.Applied)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestChangesDuringAPiece: a flush that commits while a piece is being read is
// remembered, whether the piece sees it or not.
func TestChangesDuringAPiece(t *testing.T) {
	s := &stateFile{changes: &changeSet{bucket: 1, upTo: []byte("m"), keys: []map[string]struct{}{{}, {}, {}}}}
	change := func(key string) []kv.Tree {
		l := make([]kv.Tree, 3)
		for i := range l {
			l[i].Put([]byte(key), nil)
		}
		return l
	}
	counts := func() [3]int {
		return [3]int{len(s.changes.keys[0]), len(s.changes.keys[1]), len(s.changes.keys[2])}
	}
	s.noteChanges(change("a"))
	if got := counts(); got != [3]int{1, 1, 0} {
		t.Errorf("a key that was copied: remembered in %v buckets, want the first two", got)
	}
	s.noteChanges(change("z"))
	if got := counts(); got != [3]int{2, 1, 0} {
		t.Errorf("a key that was not reached: remembered in %v, want the first bucket alone", got)
	}
	s.changes.reading = true
	s.noteChanges(change("y"))
	if got := counts(); got != [3]int{3, 2, 0} {
		t.Errorf("a key while a piece is read: remembered in %v, want the first two", got)
	}
	s.changes.reading, s.changes.upTo = false, nil
	s.noteChanges(change("x"))
	if got := counts(); got != [3]int{4, 2, 0} {
		t.Errorf("a key of a bucket of which nothing was copied: remembered in %v, want the first alone", got)
	}
}

// TestCompactCrash copies the directory after every step of a compaction: each
// copy opens, with the state as it is, and without what was left.
func TestCompactCrash(t *testing.T) {
	cfg := testConfig(t)
	var s *Store
	var steps, dirs []string
	cfg.step = func(step string) {
		to := filepath.Join(t.TempDir(), "copy")
		if err := os.CopyFS(to, os.DirFS(cfg.Dir)); err != nil {
			t.Error(err)
		}
		steps, dirs = append(steps, step), append(dirs, to)
	}
	s = open(t, cfg)
	bloat(t, s, 300)
	propose(t, s, "put only-in-the-log 1")
	want := dump(t, s)
	if _, _, err := s.Compact(context.Background(), nil); err != nil {
		t.Fatal(err)
	}
	if golden := []string{"copied", "compacted file synced", "renamed", "directory synced"}; !slices.Equal(steps, golden) {
		t.Errorf("the steps were %q, want %q", steps, golden)
	}
	for i, dir := range dirs {
		c := cfg
		c.Dir, c.step = dir, nil
		again := open(t, c)
		if got := dump(t, again); got != want {
			t.Errorf("after %q:\n%.200s\nwant\n%.200s", steps[i], got, want)
		}
		if slices.Contains(left(t, c), compactName) {
			t.Errorf("after %q and a start, %s is left", steps[i], compactName)
		}
		propose(t, again, "put more 1")
		again.Close()
	}
}

// TestCompactIsAlone: not twice, not for ever, not without room; and the store
// closes while one runs.
func TestCompactIsAlone(t *testing.T) {
	cfg := testConfig(t)
	s := open(t, cfg)
	bloat(t, s, 300)
	want := dump(t, s)
	ctx := context.Background()
	var inner error
	once := false
	if _, _, err := s.Compact(ctx, func(int64, int64) {
		if !once {
			once = true
			_, _, inner = s.Compact(ctx, nil)
		}
	}); err != nil || !errors.Is(inner, ErrBusy) {
		t.Errorf("a compaction in a compaction: got %v, want ErrBusy; the outer one %v", inner, err)
	}
	cancelled, cancel := context.WithCancel(ctx)
	if _, _, err := s.Compact(cancelled, func(int64, int64) { cancel() }); !errors.Is(err, context.Canceled) {
		t.Errorf("a compaction that is cancelled: got %v", err)
	}
	s.free = func(string) (uint64, error) { return 1 << 10, nil }
	if _, _, err := s.Compact(ctx, nil); !errors.Is(err, ErrNoRoom) {
		t.Errorf("without room: got %v, want ErrNoRoom", err)
	}
	s.free = freeBytes
	if slices.Contains(left(t, cfg), compactName) {
		t.Errorf("%s is left", compactName)
	}
	// A snapshot that comes ends it.
	ended := make(chan error, 16)
	if _, _, err := s.Compact(ctx, func(int64, int64) {
		if cancel := s.compacting.Load(); cancel != nil {
			go func() { ended <- s.Install(filepath.Join(s.IncomingDir(), "none"), 2, 1) }()
			time.Sleep(20 * time.Millisecond)
		}
	}); !errors.Is(err, ErrBusy) {
		t.Errorf("a compaction while a snapshot comes: got %v, want ErrBusy", err)
	}
	if err := <-ended; !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Install of no file: got %v", err)
	}
	if got := dump(t, s); got != want {
		t.Error("the state is another one")
	}
	closing := make(chan error, 1)
	if _, _, err := s.Compact(ctx, func(int64, int64) {
		go func() { closing <- s.Close() }()
		<-s.stop
	}); !errors.Is(err, ErrClosed) {
		t.Errorf("a compaction while the store closes: got %v, want ErrClosed", err)
	}
	if err := <-closing; err != nil {
		t.Errorf("Close: %v", err)
	}
	if _, _, err := s.Compact(ctx, nil); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: got %v, want ErrClosed", err)
	}
	s = open(t, cfg)
	if got := dump(t, s); got != want {
		t.Error("the state is another one")
	}
}
