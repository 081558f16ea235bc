package spool

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// It gives back what it got, as it came or sorted, in memory and in its file, and twice.
func TestSpool(t *testing.T) {
	for _, sorted := range []bool{true, false} {
		for _, n := range []int{0, 1, 100, 60_000} {
			s := New(t.TempDir(), sorted)
			var names []string
			for i := range n {
				names = append(names, fmt.Sprintf("user.%05d.%s", i/3, []string{"a", "a-b", "a.b"}[(i+1)%3]))
			}
			for _, name := range names {
				if err := s.Add(name, []byte("data of "+name+strings.Repeat(".", 200))); err != nil {
					t.Fatalf("Add: %v", err)
				}
			}
			if !sorted {
				slices.Sort(names)
			}
			if s.Len() != n {
				t.Errorf("Len: got %d, want %d", s.Len(), n)
			}
			for range 2 {
				i := 0
				err := s.Each(func(name string, data []byte) error {
					if name != names[i] || !strings.HasPrefix(string(data), "data of "+names[i]+".") {
						return fmt.Errorf("record %d of %d is %s: %.40q, want %s", i, n, name, data, names[i])
					}
					i++
					return nil
				})
				if err != nil || i != n {
					t.Errorf("sorted %v, %d records: %d, %v", sorted, n, i, err)
				}
			}
			if s.file != nil && (s.memory.Cap() > 0 || len(s.chunk) > 0) {
				t.Errorf("sorted %v, %d records: memory is kept though all is in the file", sorted, n)
			}
			left := errors.New("left")
			if err := s.Each(func(string, []byte) error { return left }); n > 0 && err != left {
				t.Errorf("Each: got error %v, want that of the call", err)
			}
			s.Close()
		}
	}
}

// A file that lost its end, between two records or in one, is no shorter listing.
func TestSpoolCut(t *testing.T) {
	for _, sorted := range []bool{true, false} {
		s := New(t.TempDir(), sorted)
		defer s.Close()
		data := []byte(strings.Repeat(".", 1000))
		for i := range 10_000 {
			if err := s.Add(fmt.Sprintf("user.%05d", i), data); err != nil {
				t.Fatalf("Add: %v", err)
			}
		}
		if s.size == 0 {
			t.Fatal("nothing is in the file")
		}
		record := int64(1 + 2 + len("user.00000") + len(data)) // two lengths before it
		for _, less := range []int64{record / 2, record, record + 1, record + 2, record + 3, record + 500, 2 * record} {
			size := s.size - less
			if err := s.file.Truncate(size); err != nil {
				t.Fatal(err)
			}
			if err := s.Each(func(string, []byte) error { return nil }); err == nil {
				t.Fatalf("sorted %v: Each, with a file of %d octets of %d: no error", sorted, size, s.size)
			}
		}
	}
}

func TestUsable(t *testing.T) {
	dir := t.TempDir()
	if err := Usable(dir); err != nil {
		t.Errorf("Usable: %v", err)
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("Usable leaves %v", left)
	}
	if err := Usable(filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Usable of a directory that is not there: got %v, want that it does not exist", err)
	}
}
