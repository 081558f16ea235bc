package wal

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
)

// segment is a file of the log. Its name says which index follows what is in
// the files before it.
type segment struct {
	path  string
	seq   uint64
	first uint64
}

// segments lists the log's files in order.
func segments(dir string) ([]segment, error) {
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var list []segment
	for _, f := range files {
		s := segment{path: filepath.Join(dir, f.Name())}
		var rest string
		if n, _ := fmt.Sscanf(f.Name(), "%16x-%16x%s", &s.seq, &s.first, &rest); n == 3 && rest == ".wal" {
			list = append(list, s)
		}
	}
	slices.SortFunc(list, func(a, b segment) int { return compare(a.seq, b.seq) })
	return list, nil
}

func compare(a, b uint64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// cleanTail tells whether nothing but zeros follows the last record of the
// newest segment, as it must be unless a write was cut short or lost. It looks
// at the length words only: low 56 bits the record's length, then padding to a
// multiple of eight.
func cleanTail(path string) (clean bool, err error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	return scanTail(bufio.NewReaderSize(f, 1<<20))
}

func scanTail(r *bufio.Reader) (clean bool, err error) {
	for {
		var word [8]byte
		if _, err := io.ReadFull(r, word[:]); err != nil {
			// The file ends with a record, or within a length word.
			return errors.Is(err, io.EOF), ignoreEOF(err)
		}
		length := binary.LittleEndian.Uint64(word[:])
		if length == 0 {
			return onlyZeros(r)
		}
		size, padding := frame(length)
		if n, err := io.CopyN(io.Discard, r, size+padding); err != nil || n != size+padding {
			return false, ignoreEOF(err)
		}
	}
}

func onlyZeros(r io.Reader) (bool, error) {
	buf := make([]byte, 64<<10)
	for {
		n, err := r.Read(buf)
		for _, b := range buf[:n] {
			if b != 0 {
				return false, nil
			}
		}
		if err != nil {
			return ignoreEOF(err) == nil, ignoreEOF(err)
		}
	}
}

func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return err
}
