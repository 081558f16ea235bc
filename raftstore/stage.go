package raftstore

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/rookery-mail/rookery/internal/kv"
	"github.com/rookery-mail/rookery/raftstore/snap"
)

// What stands beside the state file while something takes its place. All of it
// is removed at start: only a rename makes it count.
const (
	stagedName  = stateName + ".staged"
	compactName = stateName + ".compact"
)

// stagedFile is a Staged in a file beside the state file.
type stagedFile struct {
	*stateFile
	placed bool // it has replaced the state in use
}

// Stage implements Disk.
func (s *stateFile) Stage(r io.Reader) (Staged, error) {
	staged, err := stageFile(filepath.Join(filepath.Dir(s.path), stagedName), r, s.buckets, s.mmapSize)
	if err != nil {
		return nil, err
	}
	s.stepped("staged")
	return staged, nil
}

// stageFile writes an image to path and opens it. On an error nothing is left.
func stageFile(path string, r io.Reader, buckets []kv.Bucket, mmapSize int) (_ *stagedFile, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, removeFile(path))
		}
	}()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("raftstore: stage: %w", err)
	}
	_, err = io.Copy(f, r)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return nil, fmt.Errorf("raftstore: stage: %w", err)
	}
	s, err := openStateFile(path, buckets, mmapSize)
	if err != nil {
		return nil, err
	}
	return &stagedFile{stateFile: s}, nil
}

// SetMeta implements Staged.
func (s *stagedFile) SetMeta(m Meta) error {
	if err := s.Write(m, nil); err != nil {
		return err
	}
	s.meta = m.clone()
	return nil
}

// Drop implements Staged.
func (s *stagedFile) Drop() error {
	if s.placed {
		return nil
	}
	return errors.Join(s.Close(), removeFile(s.path))
}

// Replace implements Disk. The staged file is on disk; the rename makes it the
// state, and the sync of the directory makes that last: told earlier, a crash
// could bring back the old state below entries that follow the new one.
func (s *stateFile) Replace(staged Staged) error {
	f, ok := staged.(*stagedFile)
	if !ok {
		return fmt.Errorf("raftstore: a %T cannot replace %s", staged, s.path)
	}
	return s.place(f)
}

func (s *stateFile) place(f *stagedFile) error {
	if err := os.Rename(f.path, s.path); err != nil {
		return fmt.Errorf("raftstore: %w", err)
	}
	f.placed = true
	s.stepped("renamed")
	if err := snap.SyncDir(filepath.Dir(s.path)); err != nil {
		return fmt.Errorf("raftstore: %w", err)
	}
	s.stepped("directory synced")
	if err := s.swap(f.db); err != nil {
		return fmt.Errorf("raftstore: close the file that was replaced: %w", err)
	}
	return nil
}

// verifyState proves a state: the file is read whole, and the machine looks at
// its records, as at start.
func (s *stateFile) verifyState(cfg Config, stop <-chan struct{}) (err error) {
	if err := s.verify(cfg.Log, stop); err != nil {
		return err
	}
	if _, used := s.size(); used <= cfg.VerifyBytes && !closed(stop) {
		if err := s.verifyPages(); err != nil {
			return err
		}
	}
	m, ok := cfg.Machine.(Verifier)
	if !ok {
		return nil
	}
	defer guard(s.path, &err)()
	r, err := s.Begin()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	if err := m.Verify(&stoppableReader{&bucketReader{r, s.buckets}, stop}); err != nil && !closed(stop) {
		return corrupt(s.path, "%w", err)
	}
	return nil
}

// bucketReader is a kv.Reader of a DiskReader.
type bucketReader struct {
	r       DiskReader
	buckets []kv.Bucket
}

func (b *bucketReader) Get(name kv.Bucket, key []byte) []byte { return b.r.Get(b.number(name), key) }
func (b *bucketReader) Iterate(name kv.Bucket) kv.Iterator    { return b.r.Iterate(b.number(name)) }

// number finds a bucket, which is one of the machine's.
func (b *bucketReader) number(name kv.Bucket) int { return slices.Index(b.buckets, name) }

func closed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

// removeFile removes a file if it is there.
func removeFile(path string) error {
	if err := os.Remove(path); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// tidy removes what an earlier run left beside the state: files that were to
// replace it, snapshots on their way out and in.
func tidy(shardDir string) error {
	return errors.Join(
		removeFile(filepath.Join(shardDir, stagedName)),
		removeFile(filepath.Join(shardDir, compactName)),
		os.RemoveAll(filepath.Join(shardDir, spoolDir)),
		os.RemoveAll(filepath.Join(shardDir, incomingDir)),
	)
}
