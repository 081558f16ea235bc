package main

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// outcomes runs f with many seeds and returns what it gave, each once.
func outcomes(f func(*rand.Rand) string) []string {
	seen := map[string]bool{}
	for seed := range uint64(5000) {
		seen[f(rand.New(rand.NewPCG(seed, 1)))] = true
	}
	return slices.Sorted(maps.Keys(seen))
}

func wantOutcomes(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("%s: got\n\t%s\nwant\n\t%s", what, strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}

// runs shows a file as its runs of octets.
func runs(b []byte) string {
	var s strings.Builder
	for len(b) > 0 {
		n := len(b) - len(bytes.TrimLeft(b, string(b[:1])))
		c := b[0]
		if c == 0 {
			c = '0'
		}
		fmt.Fprintf(&s, "%c%d ", c, n)
		b = b[n:]
	}
	return strings.TrimSpace(s.String())
}

func TestSurvivalOfAFile(t *testing.T) {
	for _, test := range []struct {
		name string
		do   func(c *content)
		want []string
	}{
		{"nothing since the sync", func(*content) {}, []string{"a1024"}},
		{"two writes to two sectors", func(c *content) {
			c.write(0, bytes.Repeat([]byte("b"), 512))
			c.write(512, bytes.Repeat([]byte("c"), 512))
		}, []string{"a1024", "b512 a512", "a512 c512", "b512 c512"}},
		{"two writes to one sector", func(c *content) {
			c.write(10, []byte("b"))
			c.write(10, []byte("c"))
		}, []string{"a1024", "a10 b1 a1013", "a10 c1 a1013"}},
		{"one write to two sectors", func(c *content) {
			c.write(511, []byte("bb"))
		}, []string{"a1024", "a511 b1 a512", "a512 b1 a511", "a511 b2 a511"}},
		{"longer", func(c *content) {
			c.resize(2048)
		}, []string{"a1024", "a1024 01024"}},
		{"longer by a write", func(c *content) {
			c.write(1024, []byte("b"))
		}, []string{"a1024", "a1024 b1", "a1024 01"}},
		{"shorter", func(c *content) {
			c.resize(100)
		}, []string{"a1024", "a100"}},
		{"anew", func(c *content) {
			c.resize(0)
			c.write(0, []byte("b"))
		}, []string{"a1024", "", "b1", "01"}},
		{"synced again", func(c *content) {
			c.write(0, []byte("b"))
			c.sync()
		}, []string{"b1 a1023"}},
	} {
		got := outcomes(func(rng *rand.Rand) string {
			c := &content{}
			c.write(0, bytes.Repeat([]byte("a"), 1024))
			c.sync()
			test.do(c)
			return runs(c.survive(rng))
		})
		wantOutcomes(t, test.name, got, test.want...)
	}
}

// TestFailedSync: what a refused sync did not bring to the disk, a later one
// does not either.
func TestFailedSync(t *testing.T) {
	got := outcomes(func(rng *rand.Rand) string {
		c := &content{}
		c.write(0, []byte("a"))
		c.sync()
		c.write(0, []byte("b"))
		c.fail(rng)
		if runs(c.data) != "b1" {
			return "a program sees " + runs(c.data)
		}
		c.sync()
		return runs(c.survive(rng))
	})
	wantOutcomes(t, "a sync after one that failed", got, "a1", "b1")
}

// listing shows the files of a tree with what is in them.
func listing(t *tree) string {
	var list []string
	t.each(func(n *inode) {
		if !n.isDir() {
			list = append(list, strings.TrimPrefix(n.path(), "/")+"="+string(n.data))
		}
	})
	slices.Sort(list)
	return strings.Join(list, " ")
}

func file(t *tree, dir *inode, name, text string) *inode {
	n := t.newInode(syscall.S_IFREG)
	t.link(dir, name, n)
	n.write(0, []byte(text))
	n.sync()
	return n
}

func directory(t *tree, in *inode, name string) *inode {
	n := t.newInode(syscall.S_IFDIR)
	t.link(in, name, n)
	return n
}

func TestSurvivalOfNames(t *testing.T) {
	two := func(t *tree) {
		file(t, t.root, "a", "1")
		file(t, t.root, "b", "2")
	}
	replace := func(t *tree) {
		file(t, t.root, "a", "1")
		t.syncDir(t.root)
		file(t, t.root, "new", "2")
		t.rename(t.root, "new", t.root, "a")
	}
	nested := func(t *tree) {
		d := directory(t, t.root, "d")
		file(t, d, "a", "1")
		file(t, t.root, "b", "2")
	}
	across := func(t *tree) {
		d := directory(t, t.root, "d")
		t.syncDir(t.root)
		file(t, d, "a", "1")
		t.rename(d, "a", t.root, "a")
		t.syncDir(t.root)
	}
	for _, test := range []struct {
		name string
		do   func(*tree)
		want map[order][]string
	}{
		{"two files", two, map[order][]string{
			journal:     {"", "a=1", "a=1 b=2"},
			directories: {"", "a=1", "a=1 b=2"},
			names:       {"", "a=1", "b=2", "a=1 b=2"},
		}},
		{"replaced", replace, map[order][]string{
			journal: {"a=1", "a=1 new=2", "a=2"}, directories: {"a=1", "a=1 new=2", "a=2"}, names: {"a=1", "a=1 new=2", "a=2"},
		}},
		{"a file in a directory, then one beside it", nested, map[order][]string{
			journal:     {"", "d/a=1", "b=2 d/a=1"},
			directories: {"", "d/a=1", "b=2", "b=2 d/a=1"},
			names:       {"", "d/a=1", "b=2", "b=2 d/a=1"},
		}},
		{"renamed into a directory that was synced", across, map[order][]string{
			journal: {"a=1"}, directories: {"a=1"}, names: {"a=1"},
		}},
		{"synced", func(t *tree) { two(t); t.syncDir(t.root) }, map[order][]string{
			journal: {"a=1 b=2"}, directories: {"a=1 b=2"}, names: {"a=1 b=2"},
		}},
	} {
		for o, want := range test.want {
			got := outcomes(func(rng *rand.Rand) string {
				tr := newTree()
				test.do(tr)
				return listing(tr.survive(rng, o))
			})
			wantOutcomes(t, test.name+", "+string(o), got, want...)
		}
	}
}

// TestSettled: an unmount in order loses nothing.
func TestSettled(t *testing.T) {
	tr := newTree()
	d := directory(tr, tr.root, "d")
	file(tr, d, "a", "1").write(1, []byte("2"))
	if got := listing(tr.settle()); got != "d/a=12" {
		t.Errorf("got %q, want d/a=12", got)
	}
}
