package raftstore

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rookery-mail/rookery/internal/kv"
)

// filled makes a data directory with some flushes in it and closes it.
func filled(t *testing.T, cfg Config, rows int) {
	t.Helper()
	s := open(t, cfg)
	for i := range rows {
		propose(t, s, fmt.Sprintf("put key%05d %s", i, strings.Repeat("v", 100)))
		if i%(rows/4) == 0 {
			flush(t, s)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	trim(t, cfg)
}

// trim cuts off the free space at the end of the state file, which is large.
func trim(t *testing.T, cfg Config) {
	t.Helper()
	path := filepath.Join(cfg.shardDir(), stateName)
	if err := os.Truncate(path, int64(highWater(t, path))*4096); err != nil {
		t.Fatal(err)
	}
}

func highWater(t *testing.T, path string) uint64 {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return binary.NativeEndian.Uint64(data[newestMeta(t, path)+boltHeader+40:])
}

func flush(t *testing.T, s *Store) {
	t.Helper()
	done := make(chan struct{})
	s.node.Flush(func() { close(done) })
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		t.Fatal("no flush in five seconds")
	}
}

func copyDir(t *testing.T, cfg Config) Config {
	t.Helper()
	to := filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(to, os.DirFS(cfg.Dir)); err != nil {
		t.Fatal(err)
	}
	cfg.Dir = to
	return cfg
}

// refuse opens a directory that must be refused, with this error and a text
// that names what is wrong and what to do.
func refuse(t *testing.T, cfg Config, want error, texts ...string) {
	t.Helper()
	s, err := Open(cfg)
	if err == nil {
		s.Close()
		t.Fatalf("Open succeeded, want %v", want)
	}
	if !errors.Is(err, want) {
		t.Errorf("Open: got %v, want %v", err, want)
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("Open: %q does not say %q", err, text)
		}
	}
}

func TestLocked(t *testing.T) {
	cfg := testConfig(t)
	s := open(t, cfg)
	refuse(t, cfg, ErrLocked, fmt.Sprint(os.Getpid()), "shard-1.lock")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, cfg)
}

func TestIdentity(t *testing.T) {
	three := []Member{{Name: "n1", Context: []byte("a")}, {Name: "n2", Context: []byte("b")}, {Name: "n3", Context: []byte("c")}}
	t.Run("derived", func(t *testing.T) {
		// Every node works the same out of the same list, in any order.
		reversed := slices.Clone(three)
		slices.Reverse(reversed)
		c1, m1, err1 := initialCluster("", three)
		c2, m2, err2 := initialCluster("", reversed)
		if err1 != nil || err2 != nil || c1 != c2 || !slices.EqualFunc(m1, m2, func(a, b Member) bool { return a.ID == b.ID && a.Name == b.Name }) {
			t.Errorf("got %v %v %v and %v %v %v, want the same", c1, m1, err1, c2, m2, err2)
		}
		c3, _, _ := initialCluster("other", three)
		c4, _, _ := initialCluster("other", three[:1])
		if c3 == c1 || c3 != c4 {
			t.Errorf("a token must decide alone: %v with, %v without, %v with another list", c3, c1, c4)
		}
		a, _, _ := initialCluster("", three[:1])
		b, _, _ := initialCluster("", three[:1])
		if a == b {
			t.Error("two clusters of one have the same id")
		}
		for _, bad := range [][]Member{nil, {{}}, {three[0], three[0]}} {
			if _, _, err := initialCluster("", bad); err == nil {
				t.Errorf("the list %v was accepted", bad)
			}
		}
	})
	cfg := testConfig(t)
	cfg.Token = "blue"
	filled(t, cfg, 20)
	other := testConfig(t)
	filled(t, other, 20)
	with := func(change func(*Config)) Config {
		c := copyDir(t, cfg)
		change(&c)
		return c
	}
	take := func(c Config, what string) {
		t.Helper()
		to := filepath.Join(c.shardDir(), what)
		if err := errors.Join(os.RemoveAll(to), copyAll(filepath.Join(other.shardDir(), what), to)); err != nil {
			t.Fatal(err)
		}
	}
	refuse(t, with(func(c *Config) { c.Name = "n2"; c.Initial = nil }), ErrIdentity, "n1", "n2")
	refuse(t, with(func(c *Config) { c.Token = "green" }), ErrIdentity, "cluster")
	refuse(t, with(func(c *Config) { c.Token = ""; c.Initial = three }), ErrIdentity, "initial cluster")
	refuse(t, with(func(c *Config) { take(*c, stateName) }), ErrIdentity, "shard-1")
	refuse(t, with(func(c *Config) { take(*c, "wal"); take(*c, "promise") }), ErrIdentity, "shard-1")
	open(t, with(func(c *Config) { c.Token = "" }))
	cfg = testConfig(t)
	cfg.Initial = []Member{{Name: "n7"}}
	if _, err := Open(cfg); err == nil {
		t.Error("a node that is not in its initial cluster started")
	}
}

func copyAll(from, to string) error {
	info, err := os.Stat(from)
	if err != nil {
		return err
	}
	if info.IsDir() {
		return os.CopyFS(to, os.DirFS(from))
	}
	data, err := os.ReadFile(from)
	return errors.Join(err, os.WriteFile(to, data, 0o600))
}

// newestMeta returns the offset of the state file's newest meta page.
func newestMeta(t *testing.T, path string) int64 {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	a, ok := readBoltMeta(f, 0)
	b, ok2 := readBoltMeta(f, int64(a.pageSize))
	if !ok || !ok2 {
		t.Fatal("the meta pages cannot be read")
	}
	if b.txid > a.txid {
		return int64(a.pageSize)
	}
	return 0
}

func TestDamagedState(t *testing.T) {
	cfg := testConfig(t)
	filled(t, cfg, 400)
	old := copyDir(t, cfg)
	s := open(t, cfg)
	propose(t, s, "put more 1")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	trim(t, cfg)
	damage := func(c Config, f func([]byte) []byte) {
		path := filepath.Join(c.shardDir(), stateName)
		data, err := os.ReadFile(path)
		if err == nil {
			err = os.WriteFile(path, f(data), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		name string
		do   func(c Config)
	}{
		{"cut in half", func(c Config) { damage(c, func(b []byte) []byte { return b[:len(b)/2] }) }},
		{"cut by a page", func(c Config) {
			damage(c, func(b []byte) []byte {
				return b[:int(binary.NativeEndian.Uint64(b[newestMeta(t, filepath.Join(c.shardDir(), stateName))+boltHeader+40:])-1)*4096]
			})
		}},
		{"cut to the meta pages", func(c Config) { damage(c, func(b []byte) []byte { return b[:8192] }) }},
		{"empty", func(c Config) { damage(c, func(b []byte) []byte { return nil }) }},
		{"missing", func(c Config) { os.Remove(filepath.Join(c.shardDir(), stateName)) }},
		{"not a state file", func(c Config) { damage(c, func(b []byte) []byte { return []byte(strings.Repeat("mail", 10_000)) }) }},
		{"newest meta page flipped", func(c Config) {
			at := newestMeta(t, filepath.Join(c.shardDir(), stateName))
			damage(c, func(b []byte) []byte { b[at+40] ^= 4; return b })
		}},
		{"both meta pages flipped", func(c Config) {
			damage(c, func(b []byte) []byte { b[40] ^= 4; b[4096+40] ^= 4; return b })
		}},
		{"older copy", func(c Config) {
			damage(c, func([]byte) []byte {
				b, err := os.ReadFile(filepath.Join(old.shardDir(), stateName))
				if err != nil {
					t.Fatal(err)
				}
				return b
			})
		}},
		{"a page of the state in the free list", func(c Config) {
			at := newestMeta(t, filepath.Join(c.shardDir(), stateName))
			damage(c, func(b []byte) []byte {
				meta := b[at+boltHeader:]
				list := b[binary.NativeEndian.Uint64(meta[32:])*4096:]
				if binary.NativeEndian.Uint16(list[10:]) == 0 {
					t.Fatal("no page is free")
				}
				copy(list[16:24], meta[16:24]) // the root
				return b
			})
		}},
		{"all pages but the meta zeroed", func(c Config) { damage(c, func(b []byte) []byte { clear(b[8192:]); return b }) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := copyDir(t, cfg)
			test.do(c)
			refuse(t, c, ErrCorrupt, c.Dir, "move the data directory away")
		})
	}
	// A flip anywhere else is refused, or it was in free space; it never ends the
	// process or hangs it.
	t.Run("bit flips", func(t *testing.T) {
		c := copyDir(t, cfg)
		refused := 0
		path := filepath.Join(c.shardDir(), stateName)
		for at := 8192 + 1; at < int(highWater(t, path))*4096; at += 3499 {
			flip := func(b []byte) []byte { b[at] ^= 1 << (at % 8); return b }
			damage(c, flip)
			f, err := openFiles(mustDefault(t, c))
			if err == nil {
				err = f.state.verify(c.Log, nil)
				f.close()
			}
			if err != nil {
				refused++
				if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), path) {
					t.Errorf("bit flip at %d: got %v, want ErrCorrupt naming the file", at, err)
				}
			}
			damage(c, flip)
		}
		t.Logf("%d flips were refused", refused)
		open(t, c)
	})
	t.Run("value", func(t *testing.T) {
		c := copyDir(t, cfg)
		damage(c, func(b []byte) []byte {
			copy(b[strings.Index(string(b), "vvvvvvvv"):], "\xff\xff\xff")
			for i := range len(b) - 8 {
				if string(b[i:i+8]) == "vvvvvvvv" {
					b[i] = 0xff
				}
			}
			return b
		})
		refuse(t, c, ErrCorrupt, stateName, "come to the sum")
	})
	t.Run("value, found later", func(t *testing.T) {
		c := copyDir(t, cfg)
		damage(c, func(b []byte) []byte {
			return []byte(strings.ReplaceAll(string(b), "vvvv", "\xff\xff\xff\xff"))
		})
		c.VerifyBytes = 1
		s, err := Open(c)
		if err != nil {
			t.Fatalf("Open: %v", err)
		}
		select {
		case <-s.Done():
		case <-time.After(5 * time.Second):
			t.Fatal("the damage was not found in five seconds")
		}
		if err := s.Err(); !errors.Is(err, ErrStopped) || !errors.Is(err, ErrCorrupt) {
			t.Errorf("got %v, want ErrStopped because of ErrCorrupt", err)
		}
		if _, err := s.Read(context.Background(), Local); !errors.Is(err, ErrStopped) {
			t.Errorf("a read of the stopped node: got %v", err)
		}
		if _, err := s.Propose(context.Background(), []byte("nothing")); !errors.Is(err, ErrStopped) {
			t.Errorf("a proposal to the stopped node: got %v", err)
		}
	})
	t.Run("unknown bucket", func(t *testing.T) {
		c := copyDir(t, cfg)
		c.Machine = fewerBuckets{}
		refuse(t, c, ErrCorrupt, "does not know")
	})
}

type fewerBuckets struct{ testMachine }

func (fewerBuckets) Buckets() []kv.Bucket { return []kv.Bucket{rowsBucket} }

func mustDefault(t *testing.T, c Config) Config {
	t.Helper()
	c, err := c.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestDamagedLog(t *testing.T) {
	cfg := testConfig(t)
	filled(t, cfg, 100)
	for what, do := range map[string]func(dir string) error{
		"wal":         func(dir string) error { return os.RemoveAll(filepath.Join(dir, "wal")) },
		"promise":     func(dir string) error { return os.Remove(filepath.Join(dir, "promise")) },
		"wal/0000000": func(dir string) error { return truncateAll(filepath.Join(dir, "wal"), 9000) },
	} {
		t.Run(what, func(t *testing.T) {
			c := copyDir(t, cfg)
			if err := do(c.shardDir()); err != nil {
				t.Fatal(err)
			}
			refuse(t, c, ErrCorrupt, filepath.Join(c.shardDir(), what), "move the data directory away")
		})
	}
}

func truncateAll(dir string, size int64) error {
	files, err := os.ReadDir(dir)
	for _, f := range files {
		err = errors.Join(err, os.Truncate(filepath.Join(dir, f.Name()), size))
	}
	return err
}

// TestUnfinishedBootstrap: a crash while the directory is made leaves nothing
// that stands in the way.
func TestUnfinishedBootstrap(t *testing.T) {
	cfg := testConfig(t)
	tmp := mustDefault(t, cfg).shardDir() + ".tmp"
	if err := errors.Join(os.MkdirAll(tmp, 0o700), os.WriteFile(filepath.Join(tmp, stateName), []byte("half"), 0o600)); err != nil {
		t.Fatal(err)
	}
	s := open(t, cfg)
	propose(t, s, "put a 1")
	if _, err := os.Stat(tmp); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is still there: %v", tmp, err)
	}
}

// TestClose: what is asked of a closed store is refused, and closing twice is
// harmless.
func TestClose(t *testing.T) {
	s := open(t, testConfig(t))
	propose(t, s, "put a 1")
	v, err := s.Read(context.Background(), Local)
	if err != nil {
		t.Fatal(err)
	}
	closed := make(chan error)
	go func() { closed <- s.Close() }()
	time.Sleep(20 * time.Millisecond)
	if got := string(v.Get(rowsBucket, []byte("a"))); got != "1" {
		t.Errorf("a view from before Close: got %q, want 1", got)
	}
	v.Release()
	if err := <-closed; err != nil {
		t.Errorf("Close: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("a second Close: %v", err)
	}
	ctx := context.Background()
	_, errPropose := s.Propose(ctx, []byte("nothing"))
	_, errRead := s.Read(ctx, Linearizable)
	_, errWhen := s.ReadWhen(ctx, func(kv.Reader) bool { return false })
	_, errSnap := s.Snapshot(ctx, io.Discard)
	for what, err := range map[string]error{"Propose": errPropose, "Read": errRead, "ReadWhen": errWhen, "Snapshot": errSnap, "Err": s.Err(), "ChangeMembers": s.ChangeMembers(ctx)} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("%s after Close: got %v, want ErrClosed", what, err)
		}
	}
}
