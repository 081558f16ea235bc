package raftstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/rookery-mail/rookery/internal/kv"
	bolt "go.etcd.io/bbolt"
)

// A compaction copies the state file to a new one that has no free pages, while
// the old one is read and written, and puts it in its place.
//
// It walks the buckets in order, a piece at a time, each in a short read
// transaction of its own: one for all would keep the old file from using any
// page again, which at a high rate of writes would make it grow by more than
// the compaction saves. What is flushed meanwhile to keys that were copied
// already is remembered and copied again, until little is left. The rest is
// copied between two flushes, with the meta record of that moment; then the new
// file is renamed over the old one. Nothing before the rename counts.
type compaction struct {
	s  *stateFile
	to *bolt.DB

	// A piece: so many octets or keys in one transaction.
	pieceBytes, pieceKeys int

	done, total int64 // octets
	progress    func(done, total int64)
}

// changeSet is which keys were flushed that a compaction has copied before.
type changeSet struct {
	bucket  int    // that is being copied; those before it are
	upTo    []byte // copied, of that bucket; nil: nothing
	reading bool   // a piece of it is being read: nobody knows how far it goes
	keys    []map[string]struct{}
	n       int
}

const (
	// compactFew is how many changed keys may be left for the moment in which
	// no flush runs.
	compactFew = 1000
	// compactRounds is how often what changed is copied again before the rest
	// is, however much it is.
	compactRounds = 20
	// compactMany is how many changed keys are remembered before they are
	// copied again, lest they fill the memory.
	compactMany = 200_000
)

// noteChanges remembers what was flushed to keys that were copied before. It is
// called after the commit: a piece that is read in a transaction begun earlier
// is either still being read, or known to be copied.
func (s *stateFile) noteChanges(changes []kv.Tree) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.changes
	if c == nil {
		return
	}
	for i := range changes {
		if i > c.bucket || i == c.bucket && !c.reading && c.upTo == nil {
			break
		}
		it := changes[i].Iter()
		for k, _ := it.Seek(nil); k != nil; k, _ = it.Next() {
			if i == c.bucket && !c.reading && bytes.Compare(k, c.upTo) > 0 {
				break
			}
			if _, ok := c.keys[i][string(k)]; !ok {
				c.keys[i][string(k)] = struct{}{}
				c.n++
			}
		}
	}
}

// Compact rewrites the state file without its free pages, while readers and
// writers go on, and returns its size before and after. progress, which may be
// nil, is told now and then how many octets of about how many are copied.
//
// Errors: ErrBusy while another compaction or an installation is under way,
// ErrNoRoom, the context's, ErrClosed. After an error the file is as it was.
func (s *Store) Compact(ctx context.Context, progress func(done, total int64)) (before, after int64, err error) {
	if s.stopping() {
		return 0, 0, s.stopped()
	}
	select {
	case s.maintenance <- struct{}{}:
		defer func() { <-s.maintenance }()
	default:
		return 0, 0, fmt.Errorf("%w: the state file is being compacted or replaced already", ErrBusy)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s.compacting.Store(&cancel)
	defer s.compacting.Store(nil)
	start := s.cfg.Clock.Now()
	before, used := s.files.state.size()
	if err := s.room(s.cfg.shardDir(), used); err != nil {
		return before, before, err
	}
	if progress == nil {
		progress = func(int64, int64) {}
	}
	c, err := s.files.state.beginCompaction(used, progress)
	if err == nil {
		err = c.run(func() error {
			if s.stopping() {
				return s.stopped()
			}
			return context.Cause(ctx)
		})
		if err == nil {
			err = s.finishCompaction(c)
		}
		err = errors.Join(err, c.end())
	}
	if err != nil {
		return before, before, fmt.Errorf("raftstore: compact: %w", err)
	}
	after, _ = s.files.state.size()
	dur := s.cfg.Clock.Now() - start
	s.node.metrics.compactions.Inc()
	s.node.metrics.compactSeconds.Observe(dur.Seconds())
	s.node.metrics.fileBytes.Set(float64(after))
	progress(used, used)
	s.cfg.Log.Info("state file compacted", "before", before, "after", after, "dur", dur)
	return before, after, nil
}

// finishCompaction has the flusher copy the rest and exchange the files.
func (s *Store) finishCompaction(c *compaction) error {
	ch := make(chan error, 1)
	var failed error // before anything was exchanged: the node goes on
	s.node.Swap(func() error {
		if failed = c.finish(); failed != nil {
			return nil
		}
		return c.place()
	}, func(err error) { ch <- err })
	select {
	case err := <-ch:
		return errors.Join(failed, err)
	case <-s.ended:
		select {
		case err := <-ch:
			return errors.Join(failed, err)
		default:
			return s.stopped()
		}
	}
}

// beginCompaction makes the new file and begins to remember changes.
func (s *stateFile) beginCompaction(used int64, progress func(done, total int64)) (*compaction, error) {
	path := filepath.Join(filepath.Dir(s.path), compactName)
	if err := removeFile(path); err != nil {
		return nil, err
	}
	db, err := bolt.Open(path, 0o600, boltOptions(s.mmapSize))
	if err != nil {
		return nil, fmt.Errorf("raftstore: create %s: %w", path, err)
	}
	// Until it is whole it is nothing; then it is synced.
	db.NoSync = true
	set := &changeSet{keys: make([]map[string]struct{}, len(s.buckets))}
	for i := range set.keys {
		set.keys[i] = make(map[string]struct{})
	}
	s.mu.Lock()
	s.changes = set
	s.mu.Unlock()
	return &compaction{s: s, to: db, pieceBytes: 4 << 20, pieceKeys: 50_000, total: used, progress: progress}, nil
}

// run copies all, and again what changed meanwhile, until little is left to
// copy. check ends it.
func (c *compaction) run(check func() error) (err error) {
	defer guard(c.s.path, &err)()
	for i := range c.s.buckets {
		for more := true; more; {
			if err := check(); err != nil {
				return err
			}
			if more, err = c.piece(i); err != nil {
				return err
			}
			if c.changed() > compactMany {
				if err := c.again(); err != nil {
					return err
				}
			}
			c.progress(min(c.done, c.total), c.total)
		}
	}
	for round := 0; c.changed() > compactFew && round < compactRounds; round++ {
		if err := check(); err != nil {
			return err
		}
		if err := c.again(); err != nil {
			return err
		}
	}
	c.s.stepped("copied")
	// A page that cannot be read would be found by who reads it next; here the
	// old file is still there.
	v := fileVerifier{path: c.to.Path()}
	return c.to.View(v.rows)
}

func (c *compaction) changed() int {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	return c.s.changes.n
}

// piece copies the next keys of a bucket and reports whether there are more.
func (c *compaction) piece(bucket int) (more bool, err error) {
	set := c.s.changes
	c.s.mu.Lock()
	if set.bucket != bucket {
		set.bucket, set.upTo = bucket, nil
	}
	set.reading = true
	from := set.upTo
	c.s.mu.Unlock()
	db, done := c.s.use()
	defer func() { err = errors.Join(err, done()) }()
	last := from
	err = db.View(func(tx *bolt.Tx) error {
		return c.to.Update(func(to *bolt.Tx) error {
			b, err := to.CreateBucketIfNotExists([]byte(c.s.buckets[bucket]))
			if err != nil {
				return err
			}
			b.FillPercent = 0.9
			cursor := tx.Bucket([]byte(c.s.buckets[bucket])).Cursor()
			k, v := cursor.Seek(from)
			if k != nil && from != nil && bytes.Equal(k, from) {
				k, v = cursor.Next()
			}
			size, n := 0, 0
			for ; k != nil && size < c.pieceBytes && n < c.pieceKeys; k, v = cursor.Next() {
				if err := b.Put(k, v); err != nil {
					return err
				}
				last = append(last[:0:0], k...)
				size += len(k) + len(v)
				n++
			}
			more = k != nil
			c.done += int64(size)
			return nil
		})
	})
	c.s.mu.Lock()
	set.upTo, set.reading = last, false
	if !more {
		set.bucket, set.upTo = bucket+1, nil
	}
	c.s.mu.Unlock()
	return more, err
}

// again copies the keys that changed, in order. They are taken before the
// transaction begins: what is flushed in between is copied twice.
func (c *compaction) again() (err error) {
	c.s.mu.Lock()
	set := c.s.changes
	keys := set.keys
	set.keys, set.n = make([]map[string]struct{}, len(keys)), 0
	for i := range set.keys {
		set.keys[i] = make(map[string]struct{})
	}
	c.s.mu.Unlock()
	db, done := c.s.use()
	defer func() { err = errors.Join(err, done()) }()
	return db.View(func(tx *bolt.Tx) error {
		for i, changed := range keys {
			sorted := make([]string, 0, len(changed))
			for k := range changed {
				sorted = append(sorted, k)
			}
			slices.Sort(sorted)
			for piece := range slices.Chunk(sorted, max(1, c.pieceKeys/10)) {
				if err := c.copyKeys(tx, i, piece); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

func (c *compaction) copyKeys(tx *bolt.Tx, bucket int, keys []string) error {
	name := []byte(c.s.buckets[bucket])
	from := tx.Bucket(name).Cursor()
	return c.to.Update(func(to *bolt.Tx) error {
		b := to.Bucket(name)
		for _, key := range keys {
			k, v := from.Seek([]byte(key))
			var err error
			if string(k) == key && k != nil {
				err = b.Put(k, v)
			} else {
				err = b.Delete([]byte(key))
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// finish copies the rest, while no flush runs, and has the new file on disk.
func (c *compaction) finish() (err error) {
	defer guard(c.s.path, &err)()
	if err := c.again(); err != nil {
		return err
	}
	var record []byte
	if err := c.s.db.View(func(tx *bolt.Tx) error {
		record = bytes.Clone(tx.Bucket(metaBucket).Get(metaKey))
		return nil
	}); err != nil {
		return err
	}
	// With this transaction all before it is synced too: they are one file.
	c.to.NoSync = false
	if err := c.to.Update(func(tx *bolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists(metaBucket)
		if err != nil {
			return err
		}
		return b.Put(metaKey, record)
	}); err != nil {
		return err
	}
	if err := c.to.Sync(); err != nil {
		return err
	}
	c.s.stepped("compacted file synced")
	return nil
}

// place puts the new file in the place of the old one.
func (c *compaction) place() error {
	f := &stagedFile{stateFile: &stateFile{db: c.to, path: c.to.Path(), buckets: c.s.buckets}}
	err := c.s.place(f)
	if f.placed {
		c.to = nil
	}
	return err
}

// end stops remembering changes, and removes the new file unless it is in use.
func (c *compaction) end() error {
	c.s.mu.Lock()
	c.s.changes = nil
	c.s.mu.Unlock()
	if c.to == nil {
		return nil
	}
	path := c.to.Path()
	return errors.Join(c.to.Close(), os.Remove(path))
}
