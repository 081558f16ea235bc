package kv

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
)

// TestTreeModel compares random operations with a map that holds nil for a
// tombstone, and every snapshot with the map as it was.
func TestTreeModel(t *testing.T) {
	for _, keys := range []int{10, 300, 5000} {
		t.Run(fmt.Sprint(keys), func(t *testing.T) {
			seed := rand.Uint64()
			rnd := rand.New(rand.NewPCG(seed, 0))
			var tree Tree
			model := map[string][]byte{}
			for op := range 20_000 {
				k := fmt.Append(nil, rnd.IntN(keys))
				switch rnd.IntN(5) {
				case 0:
					tree.Entomb(k)
					model[string(k)] = nil
				case 1, 2:
					tree.Remove(k)
					delete(model, string(k))
				default:
					v := fmt.Append(nil, op)
					tree.Put(k, v)
					model[string(k)] = v
				}
				if op%2000 == 0 {
					snap, then := tree.Snapshot(), maps.Clone(model)
					defer checkTree(t, seed, &snap, then)
				}
			}
			checkTree(t, seed, &tree, model)
			for k := range model {
				tree.Remove([]byte(k))
			}
			checkTree(t, seed, &tree, nil)
		})
	}
}

func checkTree(t *testing.T, seed uint64, tree *Tree, model map[string][]byte) {
	t.Helper()
	size := 0
	it := tree.Iter()
	k, v := it.Seek(nil)
	for _, want := range slices.Sorted(maps.Keys(model)) {
		size += len(want) + len(model[want])
		if string(k) != want || !bytes.Equal(v, model[want]) || (v == nil) != (model[want] == nil) {
			t.Fatalf("seed %d: iterator: got %q=%#v, want %q=%#v", seed, k, v, want, model[want])
		}
		if got, ok := tree.Lookup(k); !ok || !bytes.Equal(got, v) {
			t.Fatalf("seed %d: Lookup(%q): got %q, %v", seed, k, got, ok)
		}
		k, v = it.Next()
	}
	if k != nil {
		t.Fatalf("seed %d: iterator goes on after the end: %q", seed, k)
	}
	if tree.Len() != len(model) || tree.Size() != size {
		t.Fatalf("seed %d: Len %d, Size %d; want %d, %d", seed, tree.Len(), tree.Size(), len(model), size)
	}
}

// TestTreeReadWhileWritten needs the race detector to be worth something.
func TestTreeReadWhileWritten(t *testing.T) {
	var tree Tree
	for i := range 1000 {
		tree.Put(fmt.Append(nil, i), []byte("0"))
	}
	var wg sync.WaitGroup
	for round := range 20 {
		snap := tree.Snapshot()
		wg.Go(func() {
			it := snap.Iter()
			n := 0
			for k, v := it.Seek(nil); k != nil; k, v = it.Next() {
				n++
				if i := 0; len(v) > 0 {
					fmt.Sscan(string(v), &i)
					if i > round {
						t.Errorf("snapshot %d shows %s of later", round, v)
					}
				}
			}
			if n != 1000 {
				t.Errorf("snapshot %d has %d keys, want 1000", round, n)
			}
		})
		for i := range 1000 {
			tree.Put(fmt.Append(nil, i), fmt.Append(nil, round+1))
		}
	}
	wg.Wait()
}

func BenchmarkTree(b *testing.B) {
	var tree Tree
	keys := make([][]byte, 10_000)
	for i := range keys {
		keys[i] = fmt.Appendf(nil, "user.u%06d.folder", i)
		tree.Put(keys[i], keys[i])
	}
	b.Run("lookup", func(b *testing.B) {
		i := 0
		for b.Loop() {
			i += 7919
			tree.Lookup(keys[i%len(keys)])
		}
	})
	b.Run("put", func(b *testing.B) {
		i := 0
		for b.Loop() {
			i += 7919
			tree.Put(keys[i%len(keys)], keys[0])
		}
	})
	b.Run("put, snapshot every 10", func(b *testing.B) {
		i := 0
		for b.Loop() {
			if i++; i%10 == 0 {
				tree.Snapshot()
			}
			tree.Put(keys[i*7919%len(keys)], keys[0])
		}
	})
}
