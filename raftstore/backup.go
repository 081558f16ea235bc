package raftstore

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/rookery-mail/rookery/internal/kv"
	"github.com/rookery-mail/rookery/raftstore/snap"
)

// Inspect proves the snapshot at path, its octets and what is in it, and calls
// look with what it is of and a view of the state in it. It needs as much room in
// dir, for a file that is gone when it returns.
func Inspect(path, dir string, machine Machine, look func(snap.Header, Meta, kv.Reader) error) (err error) {
	f, err := snap.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if f.Header.Kind != snap.Image {
		return fmt.Errorf("%s: its payload is of kind %d, not a state file", path, f.Header.Kind)
	}
	own, err := os.MkdirTemp(dir, "rookery-snapshot-")
	if err != nil {
		return fmt.Errorf("raftstore: inspect: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(own)) }()
	cfg := Config{Machine: machine, Log: slog.New(slog.DiscardHandler)}
	s, err := stageFile(filepath.Join(own, stateName), f, machine.Buckets(), 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	if err := prove(cfg, s, f.Header, nil); err != nil {
		return err
	}
	defer guard(s.path, &err)()
	r, err := s.Begin()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	return look(f.Header, s.Meta(), &bucketReader{r, s.buckets})
}
