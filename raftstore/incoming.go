package raftstore

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/rookery-mail/rookery/raftstore/snap"
)

// incomingDir is where snapshots from other nodes arrive.
const incomingDir = "incoming"

// IncomingDir returns where to put a snapshot file that is to be installed: on
// the disk of the state file. It exists, and is emptied at start.
func (s *Store) IncomingDir() string { return filepath.Join(s.cfg.shardDir(), incomingDir) }

// ReportSnapshot says whether the snapshot that a MsgSnap announced to a node
// has arrived and was accepted there. It must follow every MsgSnap.
func (s *Store) ReportSnapshot(node uint64, ok bool) { s.node.ReportSnapshot(node, ok) }

// Install makes the snapshot in the file at path this node's state, while reads
// go on. It came from the node from, whose MsgSnap had this term. What it is of
// stands in the file, and may be later than what the message said. Raft decides
// whether it is taken; the file is removed in any case.
//
// Nothing is touched before the snapshot is proved: whole, of this cluster,
// incarnation and shard, in order, and right in the eyes of the machine. A
// compaction is given up for it.
//
// Errors: ErrNotNeeded, which is as good as success, ErrNotTaken, ErrIdentity,
// snap.ErrCorrupt, ErrCorrupt for a state in it that is none, ErrClosed.
func (s *Store) Install(path string, from, term uint64) (err error) {
	defer func() { err = errors.Join(err, removeFile(path)) }()
	if s.stopping() {
		return s.stopped()
	}
	if cancel := s.compacting.Load(); cancel != nil {
		(*cancel)(fmt.Errorf("%w: a snapshot is being installed", ErrBusy))
	}
	select {
	case s.maintenance <- struct{}{}:
		defer func() { <-s.maintenance }()
	case <-s.stop:
		return s.stopped()
	}
	start := s.cfg.Clock.Now()
	staged, err := s.stage(path)
	if err != nil {
		return fmt.Errorf("raftstore: install the snapshot from node %x: %w", from, err)
	}
	ch := make(chan error, 1)
	s.node.Install(staged, from, term, func(err error) { ch <- err })
	select {
	case err = <-ch:
	case <-s.ended:
		select {
		case err = <-ch:
		default:
			err = s.stopped()
		}
	}
	if err != nil {
		return errors.Join(err, staged.Drop())
	}
	s.verified.Store(true)
	s.node.metrics.installSeconds.Observe((s.cfg.Clock.Now() - start).Seconds())
	return nil
}

// stage proves the snapshot at path and has its state ready beside the present
// one, as this node's.
func (s *Store) stage(path string) (_ *stagedFile, err error) {
	f, err := snap.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	id := s.Identity()
	if err := checkHeader(f.Header, id); err != nil {
		return nil, err
	}
	st, err := s.files.state.Stage(&stoppableInput{f, s.stop})
	if err != nil {
		return nil, err
	}
	staged := st.(*stagedFile)
	defer func() {
		if err != nil {
			err = errors.Join(err, staged.Drop())
		}
	}()
	// It is all in the staged file by now: that need not be on disk twice.
	if err := removeFile(path); err != nil {
		return nil, err
	}
	if err := prove(s.cfg, staged, f.Header, s.stop); err != nil {
		return nil, err
	}
	if s.stopping() {
		return nil, s.stopped() // and what was proved was not all
	}
	if err := staged.SetMeta(staged.Meta().adopt(id, s.cfg.Name)); err != nil {
		return nil, err
	}
	s.files.state.stepped("meta of the staged file")
	return staged, nil
}

// checkHeader makes sure that a snapshot is of this node's shard, for its state file.
func checkHeader(h snap.Header, id Identity) error { return checkSnapshot(h, id, snap.Image) }

// checkSnapshot makes sure that a snapshot is of this node's shard, for its kind of disk.
func checkSnapshot(h snap.Header, id Identity, kind snap.Kind) error {
	switch {
	case h.Cluster != [16]byte(id.Cluster) || h.Incarnation != id.Incarnation || h.Shard != id.Shard:
		return fmt.Errorf("%w: the snapshot is of cluster %s incarnation %d shard %d, this node of %v",
			ErrIdentity, ClusterID(h.Cluster), h.Incarnation, h.Shard, id)
	case h.Kind != kind && kind == snap.Image:
		return fmt.Errorf("%w: its payload is of kind %d, not a state file", snap.ErrCorrupt, h.Kind)
	case h.Kind != kind:
		return fmt.Errorf("%w: its payload is of kind %d, not %d", snap.ErrCorrupt, h.Kind, kind)
	}
	return nil
}

// prove makes sure that a staged state is what the snapshot's header says, and
// sound.
func prove(cfg Config, staged *stagedFile, h snap.Header, stop <-chan struct{}) error {
	if err := checkOf(staged.Meta(), h); err != nil {
		return err
	}
	return staged.verifyState(cfg, stop)
}

// stoppableInput is a Reader that ends with the store.
type stoppableInput struct {
	r    io.Reader
	stop <-chan struct{}
}

func (s *stoppableInput) Read(p []byte) (int, error) {
	if closed(s.stop) {
		return 0, ErrClosed
	}
	return s.r.Read(p)
}

// makeIncoming makes the directory that tidy has removed.
func makeIncoming(shardDir string) error {
	return os.MkdirAll(filepath.Join(shardDir, incomingDir), 0o700)
}
