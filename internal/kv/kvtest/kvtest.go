package kvtest

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/rookery-mail/rookery/internal/kv"
)

// Store is a store under test.
type Store interface {
	// Update runs one transaction and publishes it.
	Update(func(kv.Tx))
	// View returns what is published, and a function that gives it back.
	View() (r kv.Reader, release func())
	// Shift moves data between the store's layers, if it has any, by one step:
	// what is stored does not change.
	Shift()
}

// The buckets that a store under test must have.
const (
	A kv.Bucket = "a"
	B kv.Bucket = "b"
)

// Run runs the suite on stores that open returns, each empty.
func Run(t *testing.T, open func(t *testing.T) Store) {
	for _, test := range []struct {
		name string
		run  func(*testing.T, Store)
	}{
		{"empty", testEmpty},
		{"values", testValues},
		{"iterate", testIterate},
		{"transaction sees itself", testOwnWrites},
		{"views stay", testViewsStay},
		{"bytes are copied", testCopies},
		{"layers", testLayers},
		{"model", testModel},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, open(t)) })
	}
}

func put(s Store, b kv.Bucket, pairs ...string) {
	s.Update(func(tx kv.Tx) {
		for i := 0; i < len(pairs); i += 2 {
			tx.Put(b, []byte(pairs[i]), []byte(pairs[i+1]))
		}
	})
}

func del(s Store, b kv.Bucket, keys ...string) {
	s.Update(func(tx kv.Tx) {
		for _, k := range keys {
			tx.Delete(b, []byte(k))
		}
	})
}

// list returns a bucket's pairs from a key on as "k=v" strings.
func list(r kv.Reader, b kv.Bucket, from []byte) []string {
	var all []string
	it := r.Iterate(b)
	for k, v := it.Seek(from); k != nil; k, v = it.Next() {
		all = append(all, fmt.Sprintf("%s=%s", k, v))
	}
	if k, v := it.Next(); k != nil || v != nil {
		all = append(all, fmt.Sprintf("after the end: %s=%s", k, v))
	}
	return all
}

func wantList(t *testing.T, r kv.Reader, b kv.Bucket, from string, want ...string) {
	t.Helper()
	if got := list(r, b, []byte(from)); !slices.Equal(got, want) {
		t.Errorf("bucket %s from %q: got %q, want %q", b, from, got, want)
	}
}

func testEmpty(t *testing.T, s Store) {
	r, release := s.View()
	defer release()
	if v := r.Get(A, []byte("k")); v != nil {
		t.Errorf("Get of an absent key: got %q, want nil", v)
	}
	wantList(t, r, A, "")
	if k, v := r.Iterate(A).Next(); k != nil || v != nil {
		t.Errorf("Next in an empty bucket: got %q=%q, want nil", k, v)
	}
	s.Update(func(tx kv.Tx) { tx.Delete(A, []byte("absent")) })
	r2, release2 := s.View()
	defer release2()
	wantList(t, r2, A, "")
}

func testValues(t *testing.T, s Store) {
	s.Update(func(tx kv.Tx) {
		tx.Put(A, []byte("empty"), []byte{})
		tx.Put(A, []byte("nil"), nil)
		tx.Put(A, []byte("full"), []byte("v"))
		tx.Put(A, []byte{0}, []byte{0, 0})
	})
	for range 3 {
		r, release := s.View()
		for key, want := range map[string][]byte{"empty": {}, "nil": {}, "full": []byte("v"), "\x00": {0, 0}} {
			got := r.Get(A, []byte(key))
			if got == nil || !bytes.Equal(got, want) {
				t.Errorf("Get(%q): got %#v, want %#v", key, got, want)
			}
		}
		if got := r.Get(B, []byte("full")); got != nil {
			t.Errorf("the key shows in another bucket: %q", got)
		}
		it := r.Iterate(A)
		if k, v := it.Seek([]byte("empty")); string(k) != "empty" || v == nil {
			t.Errorf("Seek to an empty value: got %q=%#v", k, v)
		}
		release()
		s.Shift()
	}
}

func testIterate(t *testing.T, s Store) {
	put(s, A, "b", "1", "d", "2", "\xff", "3")
	put(s, A, "a", "0", "c\x00", "4")
	for range 3 {
		r, release := s.View()
		wantList(t, r, A, "", "a=0", "b=1", "c\x00=4", "d=2", "\xff=3")
		wantList(t, r, A, "b", "b=1", "c\x00=4", "d=2", "\xff=3")
		wantList(t, r, A, "c", "c\x00=4", "d=2", "\xff=3")
		wantList(t, r, A, "\xff\xff")
		it := r.Iterate(A)
		if k, _ := it.Next(); string(k) != "a" {
			t.Errorf("Next before Seek: got %q, want the first key", k)
		}
		it.Seek([]byte("zz"))
		if k, _ := it.Seek(nil); string(k) != "a" {
			t.Errorf("Seek(nil) after another: got %q, want the first key", k)
		}
		release()
		s.Shift()
	}
}

func testOwnWrites(t *testing.T, s Store) {
	put(s, A, "a", "1", "b", "2", "c", "3")
	for range 3 {
		s.Update(func(tx kv.Tx) {
			it := tx.Iterate(A) // before the writes
			tx.Put(A, []byte("aa"), []byte("new"))
			tx.Delete(A, []byte("b"))
			tx.Put(A, []byte("c"), []byte("changed"))
			if got := tx.Get(A, []byte("b")); got != nil {
				t.Errorf("Get after Delete: got %q, want nil", got)
			}
			if got := tx.Get(A, []byte("c")); string(got) != "changed" {
				t.Errorf("Get after Put: got %q, want changed", got)
			}
			wantList(t, tx, A, "", "a=1", "aa=new", "c=changed")
			if k, _ := it.Seek([]byte("aa")); string(k) != "aa" {
				t.Errorf("an iterator from before a write, positioned after it: got %q, want aa", k)
			}
			// Walking while deleting, the way that lapses are done.
			n := 0
			for k, _ := it.Seek(nil); k != nil && n < 10; k, _ = it.Seek(nil) {
				tx.Delete(A, k)
				n++
			}
			wantList(t, tx, A, "")
			tx.Put(A, []byte("a"), []byte("1"))
			tx.Put(A, []byte("b"), []byte("2"))
			tx.Put(A, []byte("c"), []byte("3"))
		})
		r, release := s.View()
		wantList(t, r, A, "", "a=1", "b=2", "c=3")
		release()
		s.Shift()
	}
}

func testViewsStay(t *testing.T, s Store) {
	put(s, A, "k", "1", "gone", "x")
	old, release := s.View()
	defer release()
	it := old.Iterate(A)
	it.Seek(nil)
	put(s, A, "k", "2", "l", "new")
	del(s, A, "gone")
	for range 4 {
		wantList(t, old, A, "", "gone=x", "k=1")
		if got := old.Get(A, []byte("k")); string(got) != "1" {
			t.Errorf("a view from before a write: got %q, want 1", got)
		}
		now, release := s.View()
		wantList(t, now, A, "", "k=2", "l=new")
		release()
		s.Shift()
	}
	if k, v := it.Next(); string(k) != "k" || string(v) != "1" {
		t.Errorf("an iterator of the old view goes on at %q=%q, want k=1", k, v)
	}
}

func testCopies(t *testing.T, s Store) {
	key, value := []byte("key"), []byte("value")
	s.Update(func(tx kv.Tx) {
		tx.Put(A, key, value)
		copy(key, "xxx")
		copy(value, "xxxxx")
		if got := tx.Get(A, []byte("key")); string(got) != "value" {
			t.Errorf("the store kept the caller's bytes: got %q", got)
		}
		tx.Put(A, []byte("key"), value)
		copy(value, "yyyyy")
	})
	r, release := s.View()
	defer release()
	wantList(t, r, A, "", "key=xxxxx")
}

// testLayers goes through every combination of what three layers can say of a
// key: nothing, a value, gone.
func testLayers(t *testing.T, s Store) {
	const says = "-vd"
	want := map[string]string{}
	for layer := range 3 {
		s.Update(func(tx kv.Tx) {
			for i := range 27 {
				key := fmt.Sprintf("key%02d", i)
				switch says[i/[]int{1, 3, 9}[layer]%3] {
				case 'v':
					tx.Put(A, []byte(key), fmt.Append(nil, layer))
					want[key] = fmt.Sprint(layer)
				case 'd':
					tx.Delete(A, []byte(key))
					delete(want, key)
				}
			}
		})
		checkModel(t, s, A, want)
		s.Shift()
		checkModel(t, s, A, want)
	}
	for range 4 {
		s.Shift()
		checkModel(t, s, A, want)
	}
}

// testModel compares random transactions with a plain map, the layers being
// shifted at random between them, and views held across.
func testModel(t *testing.T, s Store) {
	seed := rand.Uint64()
	rnd := rand.New(rand.NewPCG(seed, 0))
	defer func() {
		if t.Failed() {
			t.Logf("seed %d", seed)
		}
	}()
	model := map[kv.Bucket]map[string]string{A: {}, B: {}}
	type held struct {
		r       kv.Reader
		release func()
		model   map[kv.Bucket]map[string]string
	}
	var views []held
	defer func() {
		for _, v := range views {
			v.release()
		}
	}()
	key := func() string {
		// Few keys, so that they are changed often; some share prefixes.
		k := fmt.Sprintf("%03d", rnd.IntN(400))
		return k[:1+rnd.IntN(3)]
	}
	for round := range 400 {
		s.Update(func(tx kv.Tx) {
			for range rnd.IntN(12) {
				b := []kv.Bucket{A, B}[rnd.IntN(2)]
				k := key()
				if rnd.IntN(3) == 0 {
					tx.Delete(b, []byte(k))
					delete(model[b], k)
				} else {
					v := fmt.Sprint(round)[:rnd.IntN(2)]
					tx.Put(b, []byte(k), []byte(v))
					model[b][k] = v
				}
				if k := key(); rnd.IntN(2) == 0 {
					compare(t, tx, b, k, model[b])
				}
			}
		})
		if rnd.IntN(3) == 0 {
			s.Shift()
		}
		if rnd.IntN(10) == 0 {
			r, release := s.View()
			views = append(views, held{r, release, map[kv.Bucket]map[string]string{A: maps.Clone(model[A]), B: maps.Clone(model[B])}})
		}
		if len(views) > 4 || len(views) > 0 && round == 399 {
			for _, v := range views {
				compareAll(t, v.r, A, v.model[A])
				compareAll(t, v.r, B, v.model[B])
				v.release()
			}
			views = nil
		}
		checkModel(t, s, A, model[A])
		if t.Failed() {
			return
		}
	}
	checkModel(t, s, B, model[B])
}

// compare looks up one key, and what follows it.
func compare(t *testing.T, r kv.Reader, b kv.Bucket, key string, model map[string]string) {
	t.Helper()
	v, ok := model[key]
	if got := r.Get(b, []byte(key)); (got != nil) != ok || string(got) != v {
		t.Errorf("bucket %s Get(%q): got %#v, want %q (present: %v)", b, key, got, v, ok)
	}
	var want string
	for k := range model {
		if k >= key && (want == "" || k < want) {
			want = k
		}
	}
	if k, _ := r.Iterate(b).Seek([]byte(key)); string(k) != want {
		t.Errorf("bucket %s Seek(%q): got %q, want %q", b, key, k, want)
	}
}

func compareAll(t *testing.T, r kv.Reader, b kv.Bucket, model map[string]string) {
	t.Helper()
	var want []string
	for _, k := range slices.Sorted(maps.Keys(model)) {
		want = append(want, k+"="+model[k])
	}
	wantList(t, r, b, "", want...)
}

func checkModel(t *testing.T, s Store, b kv.Bucket, model map[string]string) {
	t.Helper()
	r, release := s.View()
	defer release()
	compareAll(t, r, b, model)
	for i := range 40 {
		compare(t, r, b, fmt.Sprintf("%03d", i*10), model)
	}
}
