package mupdate

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

	"github.com/rookery-mail/rookery/directory"
)

// spool keeps a listing until it is whole. A listing is sent only then: it is one
// state of the directory, and one that breaks off is not begun. What is more than some
// megabytes goes to a file that has no name, so that a hundred frontends which start
// together cost disk and not memory.
//
// Records come in key order. For clients whose order is another they are sorted in
// runs that fit memory, and the runs merged.
type spool struct {
	order Order
	dir   string

	memory bytes.Buffer // what is not in the file yet
	chunk  []entry      // in OctetOrder: of the present run, to be sorted
	octets int          // in chunk
	file   *os.File     // nil: all is in memory
	size   int64        // of the file
	runs   []int64      // where each run ends, of those in the file; without the last in KeyOrder
	count  int
}

type entry struct {
	name string
	line []byte // what follows the tag
}

// How much a spool keeps in memory.
const spoolMemory = 4 << 20

func newSpool(order Order, dir string) *spool { return &spool{order: order, dir: dir} }

// add appends a record. line is copied.
func (s *spool) add(name directory.MailboxName, line []byte) error {
	s.count++
	if s.order == OctetOrder {
		s.chunk = append(s.chunk, entry{string(name), bytes.Clone(line)})
		if s.octets += len(name) + len(line) + 64; s.octets < spoolMemory {
			return nil
		}
		return s.endRun()
	}
	writeEntry(&s.memory, string(name), line)
	if s.memory.Len() < spoolMemory {
		return nil
	}
	return s.flush()
}

func writeEntry(b *bytes.Buffer, name string, line []byte) {
	var head [2 * binary.MaxVarintLen32]byte
	h := binary.AppendUvarint(head[:0], uint64(len(name)))
	h = binary.AppendUvarint(h, uint64(len(line)))
	b.Write(h)
	b.WriteString(name)
	b.Write(line)
}

// endRun sorts the present run and puts it into the file.
func (s *spool) endRun() error {
	s.sortChunk()
	for _, e := range s.chunk {
		writeEntry(&s.memory, e.name, e.line)
	}
	clear(s.chunk)
	s.chunk, s.octets = s.chunk[:0], 0
	if err := s.flush(); err != nil {
		return err
	}
	s.runs = append(s.runs, s.size)
	return nil
}

func (s *spool) sortChunk() {
	slices.SortFunc(s.chunk, func(a, b entry) int { return strings.Compare(a.name, b.name) })
}

// flush puts what is in memory into the file.
func (s *spool) flush() error {
	if s.file == nil {
		f, err := os.CreateTemp(s.dir, "mupdate-*")
		if err != nil {
			return fmt.Errorf("mupdate: spool: %w", err)
		}
		if err := os.Remove(f.Name()); err != nil {
			f.Close()
			return fmt.Errorf("mupdate: spool: %w", err)
		}
		s.file = f
	}
	n, err := s.file.Write(s.memory.Bytes())
	s.size += int64(n)
	s.memory.Reset()
	if err != nil {
		return fmt.Errorf("mupdate: spool: %w", err)
	}
	return nil
}

// each calls f with every record, in order, until it returns an error. name and line
// are f's until it returns. Nothing may be added any more.
func (s *spool) each(f func(name directory.MailboxName, line []byte) error) error {
	var from []*run
	start := int64(0)
	ends := s.runs
	if s.order == KeyOrder && s.size > 0 {
		ends = []int64{s.size}
	}
	for _, end := range ends {
		from = append(from, &run{in: bufio.NewReaderSize(io.NewSectionReader(s.file, start, end-start), 64<<10)})
		start = end
	}
	if s.order == OctetOrder {
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
			if err := f(directory.MailboxName(r.name), r.line); err != nil {
				return err
			}
		}
	}
	return nil
}

// merge calls f with the entries of sorted runs, in order.
func merge(runs []*run, f func(directory.MailboxName, []byte) error) error {
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
		if err := f(directory.MailboxName(r.name), r.line); err != nil {
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
	line  []byte
	buf   []byte
}

// next reads an entry; io.EOF after the last.
func (r *run) next() error {
	if r.in == nil {
		if len(r.chunk) == 0 {
			return io.EOF
		}
		r.name, r.line, r.chunk = r.chunk[0].name, r.chunk[0].line, r.chunk[1:]
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
	r.name, r.line = string(r.buf[:n]), r.buf[n:]
	return nil
}

func spoolErr(err error) error {
	if errors.Is(err, io.EOF) {
		return err
	}
	return fmt.Errorf("mupdate: spool: %w", err)
}

func (s *spool) close() {
	if s.file != nil {
		_ = s.file.Close() // it has no name: its end is its end
	}
}
