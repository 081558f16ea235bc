package raftstore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/prometheus/client_golang/prometheus"
	bolt "go.etcd.io/bbolt"
)

// ReadOnly is a shard of which nothing is written any more: the state file as
// it was flushed last, for reads that ask for no more than that. It takes no
// part in Raft; what its log holds beyond the state file it does not show,
// since it cannot know what of it was committed. It is for a node whose disk
// takes no writes and whose answers are better than none.
type ReadOnly struct {
	cfg     Config
	why     string
	lock    *os.File // nil where there is none
	state   *stateFile
	overlay *overlay
	metrics *metrics
	closed  sync.Once
	done    chan struct{} // closed when the overlay's reader is
}

// OpenReadOnly opens the shard's data directory without writing to it, also on
// a read-only file system. why says for people what is wrong.
//
// Errors: ErrLocked, ErrCorrupt, ErrIdentity, ErrDiverged for a state that must
// not be served, and what the system says; a directory that was never made is
// an error too.
func OpenReadOnly(cfg Config, why string) (_ *ReadOnly, err error) {
	cfg, err = cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	dir := cfg.shardDir()
	if mark, err := os.ReadFile(filepath.Join(dir, reseedName)); err == nil {
		return nil, fmt.Errorf("%w: %s is not to be served: %s", ErrDiverged, dir, mark)
	}
	r := &ReadOnly{cfg: cfg, why: why, done: make(chan struct{})}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.release())
		}
	}()
	if r.lock, err = lockToRead(dir + ".lock"); err != nil {
		return nil, err
	}
	if r.state, err = readStateFile(filepath.Join(dir, stateName), cfg); err != nil {
		return nil, err
	}
	if err := checkIdentity(cfg, r.state.meta); err != nil {
		return nil, err
	}
	cfg.Metrics = prometheus.WrapRegistererWith(prometheus.Labels{"shard": fmt.Sprint(cfg.Shard)}, cfg.Metrics)
	if r.metrics, err = newMetrics(cfg.Metrics); err != nil {
		return nil, fmt.Errorf("raftstore: metrics: %w", err)
	}
	reader, err := r.state.Begin()
	if err != nil {
		return nil, err
	}
	base := newBase(reader, func(error) { close(r.done) })
	if r.overlay, err = newOverlay(cfg.Machine.Buckets(), base, r.state.meta.Applied); err != nil {
		base.release()
		return nil, err
	}
	r.metrics.readOnly.Set(1)
	r.metrics.appliedIndex.Set(float64(r.state.meta.Applied.Index))
	cfg.Log.Warn("shard opened read-only: it takes no part in the cluster and shows an old state", "dir", dir, "applied", r.state.meta.Applied.Index, "reason", why)
	return r, nil
}

// lockToRead takes the directory's lock without writing to the file. Where
// there is none and none can be made, nobody can write to the directory.
func lockToRead(path string) (*os.File, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("raftstore: lock: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w: another process holds %s", ErrLocked, path)
		}
		return nil, fmt.Errorf("raftstore: lock %s: %w", path, err)
	}
	return f, nil
}

// readStateFile opens a state file to be read. A bucket that it lacks is empty.
func readStateFile(path string, cfg Config) (s *stateFile, err error) {
	if err := checkFile(path); err != nil {
		return nil, err
	}
	defer guard(path, &err)()
	options := boltOptions(0)
	options.ReadOnly = true
	db, err := bolt.Open(path, 0o600, options)
	if err != nil {
		return nil, fmt.Errorf("raftstore: open %s: %w", path, err)
	}
	s = &stateFile{db: db, buckets: cfg.Machine.Buckets()}
	err = db.View(func(tx *bolt.Tx) error {
		var record []byte
		if b := tx.Bucket(metaBucket); b != nil {
			record = b.Get(metaKey)
		}
		if s.meta, err = unmarshalMeta(record); err != nil {
			return corrupt(path, "%w", err)
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return s, nil
}

// Read returns a View of the state, to be released. Its age is not known.
func (r *ReadOnly) Read() (*View, error) {
	if v := r.overlay.view(); v != nil {
		return v, nil
	}
	return nil, ErrClosed
}

// Refusal is what every other wish is refused with: an ErrNoLeader that says
// why. Nothing was done; another node may have better news.
func (r *ReadOnly) Refusal() error {
	return fmt.Errorf("%w: this node is read-only: %s", ErrNoLeader, r.why)
}

// Status returns what the state says of the node and the others. No leader is
// known.
func (r *ReadOnly) Status() Status { return r.state.meta.status() }

// Health says why the node is read-only, and what its disk says.
func (r *ReadOnly) Health() Health {
	h := Health{Compared: -1, Scrubbed: -1, ReadOnly: r.why}
	h.Warnings = []string{"this node is read-only, takes no part in the cluster and shows an old state: " + r.why}
	var s space
	if err := s.look(r.cfg); err != nil {
		h.Warnings = append(h.Warnings, fmt.Sprintf("the free space of %s is not known: %v", r.cfg.Dir, err))
		return h
	}
	h.FreeBytes, h.TotalBytes, h.NoSpace, h.LowBytes = s.free, s.total, s.low, r.cfg.lowMark(s.total)
	return h
}

// Close gives the directory back. Views must be released first; it waits for
// them.
func (r *ReadOnly) Close() (err error) {
	r.closed.Do(func() {
		r.overlay.close()
		r.overlay.changed.broadcast()
		<-r.done
		err = r.release()
	})
	return err
}

func (r *ReadOnly) release() error {
	var errs []error
	if r.metrics != nil {
		r.metrics.unregister()
	}
	if r.state != nil {
		errs = append(errs, r.state.Close())
	}
	if r.lock != nil {
		errs = append(errs, r.lock.Close())
	}
	return errors.Join(errs...)
}
