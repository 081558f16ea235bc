package raftstore

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"

	"github.com/rookery-mail/rookery/raftstore/snap"
)

// Directory is a node's data directory, locked before its shard is opened or
// made: a node that waits for others to found a cluster with, or to be let into
// one, must not find another process in its place afterwards.
type Directory struct {
	dir   string
	shard uint32
	lock  *os.File
	birth uint64
	empty bool
}

// Lock makes a data directory if it is missing, and locks it for a shard (0: 1).
// Open takes it over as Config.Directory; Close gives it back before that.
// Errors: ErrLocked, ErrCorrupt, and what the system says.
func Lock(dir string, shard uint32) (*Directory, error) {
	d := &Directory{dir: dir, shard: max(shard, 1)}
	if err := makeDir(dir); err != nil {
		return nil, err
	}
	var err error
	if d.lock, err = lockFile(d.path() + ".lock"); err != nil {
		return nil, err
	}
	if err := d.read(); err != nil {
		return nil, errors.Join(err, d.lock.Close())
	}
	return d, nil
}

// makeDir makes a data directory, and what is missing above it. They are on disk
// when it returns: without that a power cut could take away the directory with
// all that was synced in it.
func makeDir(dir string) error {
	var missing []string
	for at := filepath.Clean(dir); ; at = filepath.Dir(at) {
		if _, err := os.Stat(at); !errors.Is(err, os.ErrNotExist) {
			break // or MkdirAll says what is wrong
		}
		missing = append(missing, at)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("raftstore: %w", err)
	}
	for _, at := range missing {
		if err := syncAbove(at); err != nil {
			return err
		}
	}
	return nil
}

// syncAbove puts the name of a directory on disk. Where the one above may not be
// read, it was not this program that made it.
func syncAbove(dir string) error {
	if err := snap.SyncDir(filepath.Dir(filepath.Clean(dir))); err != nil && !errors.Is(err, os.ErrPermission) {
		return fmt.Errorf("raftstore: %w", err)
	}
	return nil
}

func (d *Directory) path() string { return Config{Dir: d.dir, Shard: d.shard}.shardDir() }

func (d *Directory) read() error {
	_, err := os.Stat(d.path())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("raftstore: %w", err)
	}
	d.empty = err != nil
	if d.empty {
		d.birth, err = birth(d.dir, true)
		return err
	}
	return nil
}

// Empty tells that the shard has no directory yet.
func (d *Directory) Empty() bool { return d.empty }

// Birth returns the id that this disk draws for its node: the same one until
// the shard's directory is made. It is 0 if that is there already.
func (d *Directory) Birth() uint64 { return d.birth }

// Close unlocks the directory. It is not to be called once Open took it over.
func (d *Directory) Close() error { return d.lock.Close() }

// The file DIR/birth says which id the disk has drawn, in one line: the id in
// hexadecimal, and "used" once a shard's directory was made under it.
//
// A Raft id belongs to a disk. Were an emptied disk to come back under the id
// it had, its node could vote twice in a term, and what a majority was counted
// on would be gone: so an id that was used is never drawn from the file again.
const (
	birthName = "birth"
	birthUsed = "used"
)

// birth returns the id in the file, drawing one if there is none, or if fresh
// and the one there was used.
func birth(dir string, fresh bool) (uint64, error) {
	path := filepath.Join(dir, birthName)
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return 0, fmt.Errorf("raftstore: %w", err)
	}
	if err == nil {
		fields := bytes.Fields(text)
		if len(fields) == 0 {
			return 0, corrupt(path, "no id in it")
		}
		id, err := strconv.ParseUint(string(fields[0]), 16, 64)
		if err != nil || id == 0 || id > maxNodeID {
			return 0, corrupt(path, "%q is no node id", text)
		}
		if !fresh || len(fields) == 1 {
			return id, nil
		}
	}
	var random [8]byte
	if _, err := rand.Read(random[:]); err != nil {
		return 0, fmt.Errorf("raftstore: draw a node id: %w", err)
	}
	id := max(1, min(binary.BigEndian.Uint64(random[:]), maxNodeID))
	return id, writeBirth(dir, fmt.Sprintf("%016x\n", id))
}

// maxNodeID is the highest id that Raft has no use for itself.
const maxNodeID = math.MaxUint64 - 2

// useBirth notes that the id is a node's from now on. It comes when the shard's
// directory is on disk, and before it is opened: the others may have founded the
// cluster with this id already, so that a crash must not cost it, and what was not
// opened has promised nothing.
func useBirth(dir string) error {
	text, err := os.ReadFile(filepath.Join(dir, birthName))
	if errors.Is(err, os.ErrNotExist) || bytes.Contains(text, []byte(birthUsed)) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("raftstore: %w", err)
	}
	return writeBirth(dir, string(bytes.TrimSpace(text))+" "+birthUsed+"\n")
}

// writeBirth replaces the file; it is on disk when it returns.
func writeBirth(dir, text string) error {
	path := filepath.Join(dir, birthName)
	f, err := os.OpenFile(path+".tmp", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("raftstore: %w", err)
	}
	_, err = f.WriteString(text)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("raftstore: %w", err)
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		return fmt.Errorf("raftstore: %w", err)
	}
	if err := snap.SyncDir(dir); err != nil {
		return fmt.Errorf("raftstore: %w", err)
	}
	return nil
}
