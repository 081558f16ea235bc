package snap

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// Save writes a snapshot to path, with the payload that write produces. The
// file appears under its name only when it is whole, on disk and proved by
// reading it back; an older file of that name is replaced.
func Save(path string, h Header, write func(io.Writer) error) error {
	s, err := Create(path)
	if err != nil {
		return err
	}
	if err := s.Fill(h, write); err != nil {
		return errors.Join(err, s.Abandon())
	}
	return s.Commit()
}

// Saving is a snapshot file that is being made, beside its place. Fill it, then
// Commit it: only the first needs what the snapshot is made of.
type Saving struct {
	path, tmp string
	f         *os.File
}

// Create begins a file that will appear at path.
func Create(path string) (*Saving, error) {
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("snap: save: %w", err)
	}
	return &Saving{path: path, tmp: tmp, f: f}, nil
}

// Fill writes the snapshot, with the payload that write produces.
func (s *Saving) Fill(h Header, write func(io.Writer) error) error {
	if err := fill(s.f, h, write); err != nil {
		return fmt.Errorf("snap: save %s: %w", s.path, err)
	}
	return nil
}

// Abandon removes what there is of the file.
func (s *Saving) Abandon() error { return errors.Join(s.f.Close(), os.Remove(s.tmp)) }

// Commit makes the file durable, proves it and puts it in its place. On an
// error nothing is left.
func (s *Saving) Commit() error {
	// The order matters: a name must never lead to octets that a power cut can
	// still take away, nor to octets that nobody could read back.
	err := errors.Join(s.f.Sync(), s.f.Close())
	if err == nil {
		_, err = Verify(s.tmp)
	}
	if err == nil {
		err = os.Rename(s.tmp, s.path)
	}
	if err != nil {
		return fmt.Errorf("snap: save %s: %w", s.path, errors.Join(err, os.Remove(s.tmp)))
	}
	return SyncDir(filepath.Dir(s.path))
}

func fill(f io.Writer, h Header, write func(io.Writer) error) error {
	w, err := NewWriter(f, h)
	if err != nil {
		return err
	}
	if err := write(w); err != nil {
		return err
	}
	return w.Close()
}

// File is an open snapshot file.
type File struct {
	*Reader
	f *os.File
}

// Open opens the snapshot at path and checks its header.
func Open(path string) (*File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("snap: open: %w", err)
	}
	r, err := NewReader(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, errors.Join(err, f.Close()))
	}
	return &File{r, f}, nil
}

// Close closes the file.
func (f *File) Close() error { return f.f.Close() }

// Verify reads the snapshot at path to its end.
func Verify(path string) (Header, error) {
	f, err := Open(path)
	if err != nil {
		return Header{}, err
	}
	defer f.Close()
	if _, err := io.Copy(io.Discard, f); err != nil {
		return Header{}, fmt.Errorf("%s: %w", path, err)
	}
	return f.Header, nil
}

// Read reads the payload as Reader.Read does; a file must end with its snapshot.
func (f *File) Read(p []byte) (int, error) {
	n, err := f.Reader.Read(p)
	if err == io.EOF && !f.Reader.atEnd() {
		err = fmt.Errorf("%w: something follows its end", ErrCorrupt)
	}
	return n, err
}

// SyncDir makes the names in a directory durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
