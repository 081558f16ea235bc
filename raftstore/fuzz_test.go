package raftstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/fnv"
	"os"
	"path/filepath"
	"testing"
)

func FuzzIdentity(f *testing.F) {
	f.Add(Identity{Cluster: ClusterID{1, 2}, Incarnation: 3, Shard: 4, Node: 5}.marshal())
	f.Add([]byte{identityVersion})
	f.Fuzz(func(t *testing.T, b []byte) {
		id, err := unmarshalIdentity(b)
		if err == nil && !bytes.Equal(id.marshal(), b) {
			t.Errorf("%x: read as %v, which is written %x", b, id, id.marshal())
		}
	})
}

// FuzzStateFile gives a state file of two meta pages, their sums right or not, and
// a length. What is let through is as long as the newer page says.
func FuzzStateFile(f *testing.F) {
	meta := func(page uint32, root, freelist, high, txid uint64) []byte {
		b := binary.NativeEndian.AppendUint32(nil, boltMagic)
		b = binary.NativeEndian.AppendUint32(b, 2)
		b = binary.NativeEndian.AppendUint32(b, page)
		b = binary.NativeEndian.AppendUint32(b, 0)
		for _, v := range []uint64{root, 0, freelist, high, txid} {
			b = binary.NativeEndian.AppendUint64(b, v)
		}
		return b
	}
	f.Add(meta(4096, 3, 2, 4, 1), meta(4096, 3, 2, 4, 2), uint32(16384), true, true)
	f.Add(meta(4096, 3, 2, 400, 1), meta(4096, 3, 2, 4, 2), uint32(16384), true, true)
	f.Add(meta(512, 9, 2, 4, 3), []byte("garbage"), uint32(4096), true, false)
	f.Add(meta(4096, 3, boltNoFreeMap, 4, 3), meta(0, 0, 0, 0, 0), uint32(16384), true, true)
	f.Add(meta(65536, 3, 2, 1<<63, 3), []byte{}, uint32(200_000), true, false)
	f.Fuzz(func(t *testing.T, first, second []byte, size uint32, sumFirst, sumSecond bool) {
		size %= 1 << 18
		file := make([]byte, size)
		put := func(at int, b []byte, sum bool) {
			b = b[:min(len(b), boltMetaSize)]
			b = append(bytes.Clone(b), make([]byte, boltMetaSize-len(b))...)
			h := fnv.New64a()
			h.Write(b)
			if sum {
				b = binary.NativeEndian.AppendUint64(b, h.Sum64())
			}
			if at+boltHeader < len(file) {
				copy(file[at+boltHeader:], b)
			}
		}
		put(0, first, sumFirst)
		if len(first) >= 12 {
			put(int(binary.NativeEndian.Uint32(first[8:])%(1<<17)), second, sumSecond)
		}
		path := filepath.Join(t.TempDir(), stateName)
		if err := os.WriteFile(path, file, 0o600); err != nil {
			t.Fatal(err)
		}
		err := checkFile(path)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Errorf("got %v, want ErrCorrupt", err)
			}
			return
		}
		whole := false
		for page := int64(0); page <= boltMaxPage; page = max(boltMinPage, 2*page) {
			m, ok := readBoltMeta(bytes.NewReader(file), page)
			whole = whole || ok && m.highWater*uint64(m.pageSize) <= uint64(size) && m.highWater <= uint64(size) && m.root < m.highWater
		}
		if !whole {
			t.Error("let through, and no meta page of it is of a whole file")
		}
	})
}

// FuzzBirth: whatever stands in DIR/birth, an id comes of it that Raft can use, and
// the same one again; or it is refused and the file stays as it was.
func FuzzBirth(f *testing.F) {
	f.Add([]byte("00000000000000ff\n"), true)
	f.Add([]byte("ff used\n"), true)
	f.Add([]byte("ff used\n"), false)
	f.Add([]byte("ffffffffffffffff"), true)
	f.Add([]byte("\xff\x00 0"), false)
	f.Add([]byte{}, true)
	f.Fuzz(func(t *testing.T, text []byte, fresh bool) {
		dir := t.TempDir()
		path := filepath.Join(dir, birthName)
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		id, err := birth(dir, fresh)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Errorf("%q: got %v, want ErrCorrupt", text, err)
			}
			if now, _ := os.ReadFile(path); !bytes.Equal(now, text) {
				t.Errorf("%q was refused, and is %q now", text, now)
			}
			return
		}
		if id == 0 || id > maxNodeID {
			t.Errorf("%q: id %x", text, id)
		}
		if again, err := birth(dir, fresh); err != nil || again != id {
			t.Errorf("%q: id %x, then %x, %v", text, id, again, err)
		}
		if err := useBirth(dir); err != nil {
			t.Fatal(err)
		}
		if another, err := birth(dir, true); err != nil || another == id {
			t.Errorf("%q: id %x was used and is drawn again: %x, %v", text, id, another, err)
		}
	})
}
