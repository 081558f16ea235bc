package raftstore

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"

	"github.com/rookery-mail/rookery/internal/kv"
	"github.com/rookery-mail/rookery/raftstore/snap"
)

// Inspect verifies the snapshot at path, its octets and what is in it, and calls
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
	out, err := os.CreateTemp(dir, "rookery-snapshot-*.db")
	if err != nil {
		return fmt.Errorf("raftstore: inspect: %w", err)
	}
	defer func() { err = errors.Join(err, os.Remove(out.Name())) }()
	_, err = io.Copy(out, f)
	if err := errors.Join(err, out.Close()); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return lookInside(out.Name(), f.Header, machine, look)
}

// lookInside is Inspect for the state file that a snapshot carries.
func lookInside(path string, h snap.Header, machine Machine, look func(snap.Header, Meta, kv.Reader) error) (err error) {
	s, err := openStateFile(path, machine.Buckets(), 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	defer guard(path, &err)()
	if s.meta.Applied.Index != h.Index || s.meta.Applied.Term != h.Term || s.meta.Identity.Cluster != h.Cluster || s.meta.Identity.Incarnation != h.Incarnation {
		return fmt.Errorf("%w: the snapshot says it is of index %d of cluster %s, the state in it of index %d of %s",
			snap.ErrCorrupt, h.Index, ClusterID(h.Cluster), s.meta.Applied.Index, s.meta.Identity.Cluster)
	}
	if err := s.verify(slog.New(slog.DiscardHandler), nil); err != nil {
		return err
	}
	r, err := s.Begin()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	view := diskView{machine.Buckets(), r}
	if v, ok := machine.(Verifier); ok {
		if err := v.Verify(view); err != nil {
			return fmt.Errorf("%w: %w", ErrCorrupt, err)
		}
	}
	return look(h, s.meta.clone(), view)
}

// diskView is a Reader of what a Disk holds, and nothing over it.
type diskView struct {
	buckets []kv.Bucket
	r       DiskReader
}

func (v diskView) Get(b kv.Bucket, key []byte) []byte {
	return v.r.Get(slices.Index(v.buckets, b), key)
}

func (v diskView) Iterate(b kv.Bucket) kv.Iterator { return v.r.Iterate(slices.Index(v.buckets, b)) }
