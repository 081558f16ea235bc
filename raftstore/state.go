package raftstore

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/rookery-mail/rookery/internal/kv"
	"github.com/rookery-mail/rookery/raftstore/snap"
	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// The state file has a bucket for each of the machine's, by name, and one for
// the store's own meta record.
var (
	metaBucket = []byte("raftstore")
	metaKey    = []byte("meta")
)

// stateFile is a Disk in a bbolt file.
type stateFile struct {
	// db is the file in use. Another takes its place by Replace, under mu, in
	// the goroutine that writes; all others get it by use.
	db       *bolt.DB
	path     string
	buckets  []kv.Bucket
	mmapSize int
	meta     Meta         // as it was opened
	step     func(string) // for tests: called after each durable step

	mu      sync.Mutex
	users   map[*bolt.DB]int // who reads, of the file in use and of those before it
	changes *changeSet       // what is written while a compaction copies; else nil
}

// use returns the file in use, which stays open until done is called.
func (s *stateFile) use() (db *bolt.DB, done func() error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.users == nil {
		s.users = make(map[*bolt.DB]int)
	}
	db = s.db
	s.users[db]++
	return db, func() error { return s.leave(db) }
}

// leave closes a file that is not in use any more when its last reader goes.
func (s *stateFile) leave(db *bolt.DB) error {
	s.mu.Lock()
	s.users[db]--
	last := s.users[db] == 0
	if last {
		delete(s.users, db)
	}
	last = last && db != s.db
	s.mu.Unlock()
	if !last {
		return nil
	}
	return db.Close()
}

// swap puts another open file in the place of the one in use.
func (s *stateFile) swap(db *bolt.DB) error {
	s.mu.Lock()
	old := s.db
	s.db = db
	idle := s.users[old] == 0
	s.mu.Unlock()
	if !idle {
		return nil
	}
	return old.Close()
}

// stepped tells a test that something is on disk.
func (s *stateFile) stepped(what string) {
	if s.step != nil {
		s.step(what)
	}
}

func boltOptions(mmapSize int) *bolt.Options {
	return &bolt.Options{
		// Waiting for the lock means that somebody else has the file, which the
		// lock on the directory has ruled out, save for foreign tools.
		Timeout: time.Second,
		// The free list on disk costs little to write and saves a walk over
		// every page at start.
		NoFreelistSync: false,
		FreelistType:   bolt.FreelistMapType,
		// Growing the map waits for all readers, of which there is always one.
		InitialMmapSize: mmapSize,
		NoStatistics:    true,
	}
}

// createStateFile makes a state file with meta and no keys. The caller makes
// its name durable.
func createStateFile(path string, buckets []kv.Bucket, meta Meta) error {
	db, err := bolt.Open(path, 0o600, boltOptions(0))
	if err != nil {
		return fmt.Errorf("raftstore: create %s: %w", path, err)
	}
	s := &stateFile{db: db, path: path, buckets: buckets}
	if err := errors.Join(s.Write(meta, nil), db.Close()); err != nil {
		return fmt.Errorf("raftstore: create %s: %w", path, err)
	}
	return nil
}

// openStateFile opens the file after checking what can be checked without
// mapping it. A machine may have more buckets than it had: they are made.
func openStateFile(path string, buckets []kv.Bucket, mmapSize int) (s *stateFile, err error) {
	if err := checkFile(path); err != nil {
		return nil, err
	}
	// Reading a mapped page that is not there, or is none, ends in a fault or a
	// panic; here both become errors.
	defer guard(path, &err)()
	db, err := bolt.Open(path, 0o600, boltOptions(mmapSize))
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return nil, fmt.Errorf("%w: %s is locked", ErrLocked, path)
	case errors.Is(err, bolterrors.ErrInvalid), errors.Is(err, bolterrors.ErrChecksum), errors.Is(err, bolterrors.ErrVersionMismatch):
		return nil, corrupt(path, "%w", err)
	case err != nil:
		return nil, fmt.Errorf("raftstore: open %s: %w", path, err)
	}
	s = &stateFile{db: db, path: path, buckets: buckets, mmapSize: mmapSize}
	defer func() {
		if err != nil {
			err = errors.Join(err, db.Close())
		}
	}()
	missing := false
	err = db.View(func(tx *bolt.Tx) error {
		var record []byte
		if b := tx.Bucket(metaBucket); b != nil {
			record = b.Get(metaKey)
		}
		if s.meta, err = unmarshalMeta(record); err != nil {
			return corrupt(path, "%w", err)
		}
		for _, name := range buckets {
			missing = missing || tx.Bucket([]byte(name)) == nil
		}
		return tx.ForEach(func(name []byte, _ *bolt.Bucket) error {
			if !bytes.Equal(name, metaBucket) && !slices.Contains(buckets, kv.Bucket(name)) {
				return corrupt(path, "there is a bucket %q that this program does not know", name)
			}
			return nil
		})
	})
	if err == nil && missing {
		err = s.Write(s.meta, nil)
	}
	if err == nil && s.meta.unsummed {
		err = s.sumUp()
	}
	return s, err
}

// sumUp reads the sum of a state that has none, and keeps it.
func (s *stateFile) sumUp() error {
	r, err := s.Begin()
	if err != nil {
		return err
	}
	s.meta.Sum, s.meta.unsummed = sumRows(r, rowSeeds(s.buckets)), false
	return errors.Join(r.Close(), s.Write(s.meta, nil))
}

// guard turns panics and faults over what stands in a file into ErrCorrupt.
// It is used as: defer guard(path, &err)().
func guard(path string, err *error) func() {
	old := debug.SetPanicOnFault(true)
	return func() {
		debug.SetPanicOnFault(old)
		if p := recover(); p != nil {
			*err = corrupt(path, "unreadable: %v", p)
		}
	}
}

func (s *stateFile) Meta() Meta { return s.meta.clone() }

// Write implements Disk: keys in order, so that each page is visited once.
func (s *stateFile) Write(meta Meta, changes []kv.Tree) (err error) {
	defer guard(s.path, &err)()
	record, err := meta.marshal()
	if err != nil {
		return err
	}
	err = s.db.Update(func(tx *bolt.Tx) error {
		for i, name := range s.buckets {
			b, err := tx.CreateBucketIfNotExists([]byte(name))
			if err != nil {
				return err
			}
			if i < len(changes) {
				if err := writeBucket(b, &changes[i]); err != nil {
					return fmt.Errorf("bucket %q: %w", name, err)
				}
			}
		}
		b, err := tx.CreateBucketIfNotExists(metaBucket)
		if err != nil {
			return err
		}
		return b.Put(metaKey, record)
	})
	if err != nil {
		return fmt.Errorf("raftstore: write %s: %w", s.path, withErrno(err))
	}
	s.noteChanges(changes)
	return nil
}

func writeBucket(b *bolt.Bucket, changes *kv.Tree) error {
	it := changes.Iter()
	k, v := it.Seek(nil)
	if k == nil {
		return nil
	}
	// Keys that all come after what is there, as a log's or an import's in
	// order, leave pages that nothing will be put into: fill them.
	if last, _ := b.Cursor().Last(); bytes.Compare(last, k) < 0 {
		b.FillPercent = 0.9
	}
	for ; k != nil; k, v = it.Next() {
		var err error
		if v == nil {
			err = b.Delete(k)
		} else {
			err = b.Put(k, v)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Begin implements Disk.
func (s *stateFile) Begin() (_ DiskReader, err error) {
	defer guard(s.path, &err)()
	db, done := s.use()
	tx, err := db.Begin(false)
	if err != nil {
		return nil, fmt.Errorf("raftstore: read %s: %w", s.path, errors.Join(err, done()))
	}
	r := &stateReader{
		path: s.path, tx: tx, done: done, buckets: make([]*bolt.Bucket, len(s.buckets)),
		last: make([][]byte, len(s.buckets)), cursors: make([]sync.Pool, len(s.buckets)),
	}
	for i, name := range s.buckets {
		// A file that was opened to be read only may lack a bucket.
		if b := tx.Bucket([]byte(name)); b != nil {
			r.buckets[i] = b
			r.last[i], _ = b.Cursor().Last()
		}
	}
	return r, nil
}

// Image implements Disk.
func (s *stateFile) Image(save func(Meta, func(io.Writer) error) error) (err error) {
	defer guard(s.path, &err)()
	db, done := s.use()
	defer func() { err = errors.Join(err, done()) }()
	return db.View(func(tx *bolt.Tx) error {
		meta, err := unmarshalMeta(tx.Bucket(metaBucket).Get(metaKey))
		if err != nil {
			return corrupt(s.path, "%w", err)
		}
		return save(meta, func(w io.Writer) error {
			_, err := tx.WriteTo(w)
			return err
		})
	})
}

// dropCache asks the kernel to forget what it can of the file's pages, so that
// they are read from the disk again. What a lookup has mapped stays.
func (s *stateFile) dropCache() {
	if f, err := os.Open(s.path); err == nil {
		adviseDontNeed(f)
		f.Close()
	}
}

// Kind implements Disk.
func (s *stateFile) Kind() snap.Kind { return snap.Image }

// Close implements Disk.
func (s *stateFile) Close() error { return s.db.Close() }

// size returns the file's size and how much of it is in use.
func (s *stateFile) size() (total, used int64) {
	db, done := s.use()
	defer func() { _ = done() }()
	_ = db.View(func(tx *bolt.Tx) error {
		used = tx.Size()
		return nil
	})
	if info, err := os.Stat(s.path); err == nil {
		total = info.Size()
	}
	return total, used
}

// stateReader is a DiskReader over one read transaction of bbolt.
type stateReader struct {
	path    string
	tx      *bolt.Tx
	done    func() error // gives the file back
	buckets []*bolt.Bucket
	// last is the last key of each bucket. Who writes a log looks for keys after
	// it, and need not search.
	last [][]byte
	// cursors are kept for Get: a new one costs more than the search.
	cursors []sync.Pool
}

func (r *stateReader) Meta() (Meta, error) {
	m, err := unmarshalMeta(r.tx.Bucket(metaBucket).Get(metaKey))
	if err != nil {
		err = corrupt(r.path, "%w", err)
	}
	return m, err
}

func (r *stateReader) Get(bucket int, key []byte) []byte {
	if bytes.Compare(key, r.last[bucket]) > 0 {
		return nil
	}
	c, ok := r.cursors[bucket].Get().(*bolt.Cursor)
	if !ok {
		c = r.buckets[bucket].Cursor()
	}
	k, v := c.Seek(key)
	if !bytes.Equal(k, key) || k == nil {
		v = nil
	}
	r.cursors[bucket].Put(c)
	return v
}

func (r *stateReader) Iterate(bucket int) kv.Iterator {
	if r.buckets[bucket] == nil {
		return noRows{}
	}
	return &stateIterator{c: r.buckets[bucket].Cursor()}
}

// noRows is an iterator over nothing.
type noRows struct{}

func (noRows) Seek([]byte) (k, v []byte) { return nil, nil }
func (noRows) Next() (k, v []byte)       { return nil, nil }

// stateIterator is a cursor that starts with the first key by itself.
type stateIterator struct {
	c      *bolt.Cursor
	placed bool
}

func (i *stateIterator) Seek(key []byte) (k, v []byte) {
	i.placed = true
	return i.c.Seek(key)
}

func (i *stateIterator) Next() (k, v []byte) {
	if !i.placed {
		return i.Seek(nil)
	}
	return i.c.Next()
}

func (r *stateReader) Close() error { return errors.Join(r.tx.Rollback(), r.done()) }

// verify reads the whole file in order, until stop is closed. It finds pages
// that are none, keys out of order, and rows that are not what the sum was made
// of.
func (s *stateFile) verify(log *slog.Logger, stop <-chan struct{}) (err error) {
	path := s.path
	defer guard(path, &err)()
	db, done := s.use()
	defer func() { err = errors.Join(err, done()) }()
	start := time.Now()
	v := fileVerifier{path: path, stop: stop}
	if err := db.View(v.file); err != nil {
		return err
	}
	log.Info("state file verified", "file", path, "keys", v.keys, "sum", v.sum, "dur", time.Since(start))
	return nil
}

// verifyPages makes sure that each page of the file is in use or free, and none
// both: a page of the state that is in the free list would be written over by a
// later flush. Nothing may write meanwhile. It is for a file that verify has
// read, for it does not survive a page that cannot be, and for a small one: it
// keeps every page in mind.
func (s *stateFile) verifyPages() error {
	return s.db.View(func(tx *bolt.Tx) error {
		var first error
		for err := range tx.Check() { // to the end, or it waits for ever
			if first == nil {
				first = corrupt(s.path, "%w", err)
			}
		}
		return first
	})
}

type fileVerifier struct {
	path string
	stop <-chan struct{}
	keys int
	sum  uint64
}

// rows reads every bucket.
func (v *fileVerifier) rows(tx *bolt.Tx) error {
	return tx.ForEach(func(name []byte, b *bolt.Bucket) error { return v.bucket(name, b) })
}

// file reads every bucket and compares the sum of the rows with the one kept.
func (v *fileVerifier) file(tx *bolt.Tx) error {
	if err := v.rows(tx); err != nil || v.stopped() {
		return err
	}
	meta, err := unmarshalMeta(tx.Bucket(metaBucket).Get(metaKey))
	if err != nil {
		return corrupt(v.path, "%w", err)
	}
	if !meta.unsummed && meta.Sum != v.sum {
		return corrupt(v.path, "%w", errSum(v.sum, meta))
	}
	return nil
}

func (v *fileVerifier) stopped() bool {
	select {
	case <-v.stop:
		return true
	default:
		return false
	}
}

func (v *fileVerifier) bucket(name []byte, b *bolt.Bucket) error {
	var last []byte
	seed := rowSeeds([]kv.Bucket{kv.Bucket(name)})[0]
	rows := !bytes.Equal(name, metaBucket)
	c := b.Cursor()
	for k, value := c.First(); k != nil; k, value = c.Next() {
		if value == nil || last != nil && bytes.Compare(last, k) >= 0 {
			return corrupt(v.path, "bucket %q is out of order at key %x", name, k)
		}
		if rows {
			v.sum += rowHash(seed, k, value)
		}
		last = append(last[:0], k...)
		if v.keys++; v.keys%1024 == 0 && v.stopped() {
			return nil
		}
	}
	return nil
}
