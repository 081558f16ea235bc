package spool

import (
	"errors"
	"fmt"
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
			left := errors.New("left")
			if err := s.Each(func(string, []byte) error { return left }); n > 0 && err != left {
				t.Errorf("Each: got error %v, want that of the call", err)
			}
			s.Close()
		}
	}
}
