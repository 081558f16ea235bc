package raftstore

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/rookery-mail/rookery/internal/kv"
	bolt "go.etcd.io/bbolt"
)

// BenchmarkFsync is the ceiling of proposals that come one by one.
func BenchmarkFsync(b *testing.B) {
	f, err := os.Create(filepath.Join(b.TempDir(), "f"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	block := make([]byte, 4096)
	if _, err := f.Write(make([]byte, 64<<20)); err != nil {
		b.Fatal(err)
	}
	i := int64(0)
	for b.Loop() {
		f.WriteAt(block, i%(16<<10)*4096)
		if err := f.Sync(); err != nil {
			b.Fatal(err)
		}
		i++
	}
}

func BenchmarkPropose(b *testing.B) {
	for _, inFlight := range []int{1, 64, 256} {
		b.Run(fmt.Sprint(inFlight), func(b *testing.B) {
			cfg := testConfig(b)
			s := open(b, cfg)
			var n atomic.Int64
			value := make([]byte, 120)
			for i := range value {
				value[i] = 'v'
			}
			b.SetParallelism((inFlight + 1) / 2) // times GOMAXPROCS
			if inFlight == 1 {
				for b.Loop() {
					proposeOne(b, s, n.Add(1), value)
				}
				return
			}
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					proposeOne(b, s, n.Add(1), value)
				}
			})
		})
	}
}

func proposeOne(b *testing.B, s *Store, n int64, value []byte) {
	command := fmt.Appendf(nil, "put user.u%06d.folder %s", n*7919%100_000, value)
	if _, err := s.Propose(context.Background(), command); err != nil {
		b.Error(err)
	}
}

// BenchmarkGet and BenchmarkScan read from 200,000 rows; with an overlay, 5,000
// of them are in the active layer and 5,000 in the frozen one.
func BenchmarkGet(b *testing.B) {
	benchReads(b, func(b *testing.B, r func() (kv.Reader, func())) {
		i := 0
		for b.Loop() {
			i++
			v, release := r()
			if v.Get(rowsBucket, benchKey(i*7919%benchRows)) == nil {
				b.Fatal("a row is missing")
			}
			release()
		}
	})
}

func BenchmarkScan50(b *testing.B) {
	benchReads(b, func(b *testing.B, r func() (kv.Reader, func())) {
		i := 0
		for b.Loop() {
			i++
			v, release := r()
			it := v.Iterate(rowsBucket)
			n := 0
			for k, _ := it.Seek(benchKey(i * 7919 % (benchRows - 50))); k != nil && n < 50; k, _ = it.Next() {
				n++
			}
			if n != 50 {
				b.Fatalf("%d rows", n)
			}
			release()
		}
	})
}

const benchRows = 200_000

func benchKey(i int) []byte { return fmt.Appendf(nil, "user.u%06d.folder", i) }

func benchReads(b *testing.B, read func(*testing.B, func() (kv.Reader, func()))) {
	path := filepath.Join(b.TempDir(), "state.db")
	if err := createStateFile(path, testMachine{}.Buckets(), testMeta(1, 1)); err != nil {
		b.Fatal(err)
	}
	disk, err := openStateFile(path, testMachine{}.Buckets(), 1<<30)
	if err != nil {
		b.Fatal(err)
	}
	defer disk.Close()
	value := make([]byte, 120)
	all := make(layer, 3)
	for i := range benchRows {
		all[0].Put(benchKey(i), value)
	}
	if err := disk.Write(disk.meta, all); err != nil {
		b.Fatal(err)
	}
	b.Run("bbolt", func(b *testing.B) {
		tx, err := disk.db.Begin(false)
		if err != nil {
			b.Fatal(err)
		}
		defer tx.Rollback()
		r := boltReader{tx.Bucket([]byte(rowsBucket))}
		read(b, func() (kv.Reader, func()) { return r, func() {} })
	})
	for _, overlayed := range []bool{false, true} {
		b.Run(fmt.Sprintf("view/overlay=%v", overlayed), func(b *testing.B) {
			r, err := disk.Begin()
			if err != nil {
				b.Fatal(err)
			}
			o, err := newOverlay(testMachine{}.Buckets(), newBase(r, func(error) {}), start)
			if err != nil {
				b.Fatal(err)
			}
			defer o.close()
			if overlayed {
				for i := range 5000 {
					o.active[0].Put(benchKey(i*40), value)
				}
				o.publish(start)
				o.freeze()
				for i := range 5000 {
					o.active[0].Put(benchKey(i*40+20), value)
				}
				o.publish(start)
			}
			read(b, func() (kv.Reader, func()) {
				v := o.view()
				return v, v.Release
			})
		})
	}
}

// boltReader reads bbolt as it would be read without this package.
type boltReader struct{ b *bolt.Bucket }

func (r boltReader) Get(_ kv.Bucket, key []byte) []byte { return r.b.Get(key) }
func (r boltReader) Iterate(kv.Bucket) kv.Iterator      { return r.b.Cursor() }

// BenchmarkPut is what a command's writes cost the applier: over 200,000 rows,
// the row read first as a machine does, and changed or put again as it was.
func BenchmarkPut(b *testing.B) {
	path := filepath.Join(b.TempDir(), "state.db")
	if err := createStateFile(path, testMachine{}.Buckets(), testMeta(1, 1)); err != nil {
		b.Fatal(err)
	}
	disk, err := openStateFile(path, testMachine{}.Buckets(), 1<<30)
	if err != nil {
		b.Fatal(err)
	}
	defer disk.Close()
	value := make([]byte, 120)
	all := make(layer, 3)
	for i := range benchRows {
		all[0].Put(benchKey(i), value)
	}
	if err := disk.Write(disk.meta, all); err != nil {
		b.Fatal(err)
	}
	for _, kind := range []string{"changed", "same", "new", "log"} {
		b.Run(kind, func(b *testing.B) {
			r, err := disk.Begin()
			if err != nil {
				b.Fatal(err)
			}
			o, err := newOverlay(testMachine{}.Buckets(), newBase(r, func(error) {}), start)
			if err != nil {
				b.Fatal(err)
			}
			defer o.close()
			tx := overlayTx{o: o}
			value := make([]byte, 120)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if i%10_000 == 0 { // as at a flush
					o.active = make(layer, 3)
				}
				key := benchKey(i * 7919 % benchRows)
				if kind == "new" {
					key = append(key, '.')
				} else if kind == "log" {
					key = fmt.Appendf(nil, "v%08d", i)
				}
				tx.Get(rowsBucket, key)
				if kind != "same" {
					value[0] = byte(i) | 1
				}
				tx.Put(rowsBucket, key, value)
			}
		})
	}
}
