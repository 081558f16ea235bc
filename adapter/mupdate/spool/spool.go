package spool

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

// Spool keeps a listing. It is for one goroutine.
//
// Records that come in the order in which they are to be read are kept as they come.
// Others are sorted by the octets of their names, in runs that fit memory, and the runs
// merged.
type Spool struct {
	sorted bool
	dir    string

	memory bytes.Buffer // what is not in the file yet
	chunk  []entry      // not sorted: of the present run
	octets int          // in chunk
	file   *os.File     // nil: all is in memory
	size   int64        // of the file
	runs   []int64      // where each run ends, of those in the file; none if sorted
	count  int
}

type entry struct {
	name string
	data []byte
}

// How much of its records a Spool keeps in memory, about, while they are added: as they
// come, and of those that are to be sorted.
const (
	memory  = 1 << 20
	sorting = 4 << 20
)

// New returns an empty Spool, whose file, if it needs one, is in dir; empty: where the
// system has temporary files. sorted: records are added in the order in which they are
// to be read.
func New(dir string, sorted bool) *Spool { return &Spool{dir: dir, sorted: sorted} }

// Len is how many records were added.
func (s *Spool) Len() int { return s.count }

// Add adds a record. data is copied.
func (s *Spool) Add(name string, data []byte) error {
	s.count++
	if !s.sorted {
		s.chunk = append(s.chunk, entry{name, bytes.Clone(data)})
		if s.octets += len(name) + len(data) + 64; s.octets < sorting {
			return nil
		}
		return s.endRun()
	}
	writeEntry(&s.memory, name, data)
	if s.memory.Len() < memory {
		return nil
	}
	return s.flush()
}

// settle puts all into the file, if there is one, so that nothing is kept in memory while
// it is read.
func (s *Spool) settle() (err error) {
	if s.file == nil {
		return nil
	}
	if info, err := s.file.Stat(); err != nil || info.Size() != s.size {
		return fmt.Errorf("spool: the file is not as it was written: %w", errors.Join(err, io.ErrUnexpectedEOF))
	}
	switch {
	case len(s.chunk) > 0:
		err = s.endRun()
	case s.memory.Len() > 0:
		err = s.flush()
	}
	s.memory, s.chunk = bytes.Buffer{}, nil
	return err
}

func writeEntry(b *bytes.Buffer, name string, data []byte) {
	var head [2 * binary.MaxVarintLen32]byte
	h := binary.AppendUvarint(head[:0], uint64(len(name)))
	h = binary.AppendUvarint(h, uint64(len(data)))
	b.Write(h)
	b.WriteString(name)
	b.Write(data)
}

// endRun sorts the present run and puts it into the file.
func (s *Spool) endRun() error {
	s.sortChunk()
	for _, e := range s.chunk {
		writeEntry(&s.memory, e.name, e.data)
	}
	clear(s.chunk)
	s.chunk, s.octets = s.chunk[:0], 0
	if err := s.flush(); err != nil {
		return err
	}
	s.runs = append(s.runs, s.size)
	return nil
}

func (s *Spool) sortChunk() {
	slices.SortFunc(s.chunk, func(a, b entry) int { return strings.Compare(a.name, b.name) })
}

// flush puts what is in memory into the file.
func (s *Spool) flush() error {
	if s.file == nil {
		f, err := nameless(s.dir)
		if err != nil {
			return err
		}
		s.file = f
	}
	n, err := s.file.Write(s.memory.Bytes())
	s.size += int64(n)
	s.memory.Reset()
	if err != nil {
		return fmt.Errorf("spool: %w", err)
	}
	return nil
}

// nameless makes a file in dir that has no name, so that it ends with the process.
func nameless(dir string) (*os.File, error) {
	f, err := os.CreateTemp(dir, "rookery-mupdate-*")
	if err != nil {
		return nil, fmt.Errorf("spool: %w", err)
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, fmt.Errorf("spool: %w", err)
	}
	return f, nil
}

// Usable reports why a Spool could not keep a file in dir; nil if it could.
func Usable(dir string) error {
	f, err := nameless(dir)
	if err == nil {
		err = f.Close()
	}
	return err
}

// Each calls f with every record, in order, until it returns an error, which it returns.
// data is f's until it returns. It may be called again; nothing may be added any more.
//
// Errors: f's; of the file, also when it no longer has all that was added.
func (s *Spool) Each(f func(name string, data []byte) error) error {
	if err := s.settle(); err != nil {
		return err
	}
	n := 0
	err := s.each(func(name string, data []byte) error {
		n++
		return f(name, data)
	})
	if err == nil && n != s.count {
		return fmt.Errorf("spool: %d records were added and %d are there", s.count, n)
	}
	return err
}

func (s *Spool) each(f func(name string, data []byte) error) error {
	var from []*run
	start := int64(0)
	ends := s.runs
	if s.sorted && s.size > 0 {
		ends = []int64{s.size}
	}
	for _, end := range ends {
		from = append(from, &run{in: bufio.NewReaderSize(io.NewSectionReader(s.file, start, end-start), 64<<10)})
		start = end
	}
	if !s.sorted {
		s.sortChunk()
		from = append(from, &run{chunk: s.chunk})
		return merge(from, f)
	}
	from = append(from, &run{in: bufio.NewReader(bytes.NewReader(s.memory.Bytes()))})
	for _, r := range from { // each run is behind the one before
		for {
			if err := r.next(); err == io.EOF {
				break
			} else if err != nil {
				return err
			}
			if err := f(r.name, r.data); err != nil {
				return err
			}
		}
	}
	return nil
}

// merge calls f with the entries of sorted runs, in order.
func merge(runs []*run, f func(string, []byte) error) error {
	open := runs[:0:0]
	for _, r := range runs {
		if err := r.next(); err == nil {
			open = append(open, r)
		} else if err != io.EOF {
			return err
		}
	}
	for len(open) > 0 {
		least := 0
		for i, r := range open {
			if r.name < open[least].name {
				least = i
			}
		}
		r := open[least]
		if err := f(r.name, r.data); err != nil {
			return err
		}
		if err := r.next(); err == io.EOF {
			open = slices.Delete(open, least, least+1)
		} else if err != nil {
			return err
		}
	}
	return nil
}

// run is a sorted part of a spool being read.
type run struct {
	in    *bufio.Reader
	chunk []entry // without in
	name  string
	data  []byte
	buf   []byte
}

// next reads an entry; io.EOF after the last.
func (r *run) next() error {
	if r.in == nil {
		if len(r.chunk) == 0 {
			return io.EOF
		}
		r.name, r.data, r.chunk = r.chunk[0].name, r.chunk[0].data, r.chunk[1:]
		return nil
	}
	n, err := binary.ReadUvarint(r.in)
	if err != nil {
		return spoolErr(err)
	}
	l, err := binary.ReadUvarint(r.in)
	if err != nil {
		return spoolErr(err)
	}
	r.buf = slices.Grow(r.buf[:0], int(n+l))[:n+l]
	if _, err := io.ReadFull(r.in, r.buf); err != nil {
		return spoolErr(err)
	}
	r.name, r.data = string(r.buf[:n]), r.buf[n:]
	return nil
}

func spoolErr(err error) error {
	if errors.Is(err, io.EOF) {
		return err
	}
	return fmt.Errorf("spool: %w", err)
}

// Close gives the file back.
func (s *Spool) Close() {
	if s.file != nil {
		_ = s.file.Close() // it has no name: its end is its end
	}
}
