package machine

import (
	"errors"
	"strings"
	"testing"

	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/internal/kv"
)

// life is a machine and its state.
type life struct {
	t  *testing.T
	m  *Machine
	db *kv.Memory
}

func newLife(t *testing.T, version uint32) *life {
	l := &life{t: t, m: New()}
	l.db = kv.NewMemory(l.m.Buckets()...)
	l.must(Init{ClusterID: "c", Incarnation: 1, DigestKey: make([]byte, 16), Version: version})
	return l
}

func (l *life) do(op Op) (Result, error) {
	tx := l.db.Begin()
	r, err := l.m.Do(tx, 0, 0, Command{Op: op})
	if err != nil {
		tx.Discard()
		return r, err
	}
	tx.Commit()
	return r, nil
}

func (l *life) must(op Op) Result {
	l.t.Helper()
	r, err := l.do(op)
	if err != nil || r.Refused != nil {
		l.t.Fatalf("%T: got %v, %v", op, r.Refused, err)
	}
	return r
}

// What the cluster row is sealed as is what an older release sees: version 1 must
// stay as it was, or there is no way back; version 2 must not, or there is one that
// loses what it does not know.
func TestClusterRowStopsOlderReleases(t *testing.T) {
	format := func(l *life) byte { return l.db.Snapshot().Get(bucketMeta, keyCluster)[0] }
	l := newLife(t, 0)
	if got := format(l); got != 1 {
		t.Errorf("version 1: got a row of format %d, want 1", got)
	}
	l.must(SetBackend{Server: "be1", Create: true}) // writes the row
	if got := format(l); got != 1 {
		t.Errorf("version 1, written again: got a row of format %d, want 1", got)
	}
	l.must(Finalize{From: 1, To: 2, Release: "v0.4.0"})
	if got := format(l); got != 2 {
		t.Errorf("version 2: got a row of format %d, want 2", got)
	}
	l.must(SetBackend{Server: "be2", Create: true})
	if got := format(l); got != 2 {
		t.Errorf("version 2, written again: got a row of format %d, want 2", got)
	}
	if got := format(newLife(t, 2)); got != 2 {
		t.Errorf("begun with version 2: got a row of format %d, want 2", got)
	}
	if err := New().Verify(l.db.Snapshot()); err != nil {
		t.Errorf("a state of version 2, verified: %v", err)
	}
}

// A release that meets a version it does not know stops before it changes anything.
func TestVersionOutOfRange(t *testing.T) {
	put := func(l *life, format byte, c cluster) {
		tx := l.db.Begin()
		tx.Put(bucketMeta, keyCluster, appendSealedAs(nil, format, bucketMeta, keyCluster, encodeCluster(c)))
		tx.Commit()
	}
	row := cluster{ID: "c", Incarnation: 1, DigestKey: make([]byte, 16), NextServer: 1, NextGroup: 1}
	for _, test := range []struct {
		name    string
		format  byte
		version uint32
		release string
		want    []string
	}{
		{"newer", 2, 3, "v0.9.0", []string{"cluster version 3", "supports 1 to 2", "put release v0.9.0"}},
		{"newer, and the row of a newer format", 3, 4, "v0.9.1", []string{"cluster version 4", "put release v0.9.1"}},
		{"newer, by nobody", 2, 3, "", []string{"put back the release that supports it"}},
		{"none", 1, 0, "", []string{"cluster version 0", "start the release before this one"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			l := newLife(t, 0)
			row := row
			row.Version, row.Release = test.version, test.release
			put(l, test.format, row)
			fresh := New() // has decoded nothing yet, as after a start
			for what, err := range map[string]error{
				"Verify": fresh.Verify(l.db.Snapshot()),
				"Do": func() error {
					_, err := fresh.Do(l.db.Begin(), 0, 0, Command{Op: SetBackend{Server: "be1", Create: true}})
					return err
				}(),
			} {
				if !errors.Is(err, ErrRelease) {
					t.Errorf("%s: got %v, want ErrRelease", what, err)
					continue
				}
				for _, want := range test.want {
					if !strings.Contains(err.Error(), want) {
						t.Errorf("%s: got %q, want %q in it", what, err, want)
					}
				}
			}
		})
	}
	l := newLife(t, 1)
	for _, op := range []Op{Finalize{From: 1, To: 3, Release: "v0.9.0"}, Finalize{From: 2, To: 3}} {
		if _, err := l.do(op); !errors.Is(err, ErrRelease) {
			t.Errorf("%+v: got %v, want a failure, ErrRelease: the others go on by it", op, err)
		}
	}
	begin := New()
	db := kv.NewMemory(begin.Buckets()...)
	if _, err := begin.Do(db.Begin(), 0, 0, Command{Op: Init{ClusterID: "c", Incarnation: 1, DigestKey: make([]byte, 16), Version: 3}}); !errors.Is(err, ErrRelease) {
		t.Errorf("Init of version 3: got %v, want ErrRelease", err)
	}
}

func TestRequires(t *testing.T) {
	full := SetBackend{Server: "be1", State: new(directory.BackendFull)}
	for _, test := range []struct {
		op   Op
		want uint32
	}{
		{SetBackend{Server: "be1"}, 1},
		{SetBackend{Server: "be1", State: new(directory.BackendDraining)}, 1},
		{full, 2},
		{Batch{Ops: []Op{Admit{Server: "be1"}, full}}, 2},
		{Batch{Ops: []Op{Admit{Server: "be1"}}}, 1},
		{Finalize{From: 1, To: 2}, 1},
	} {
		if got := Requires(test.op); got != test.want {
			t.Errorf("%+v: got version %d, want %d", test.op, got, test.want)
		}
	}
	if err := NotInForce(full, 1); !errors.Is(err, directory.ErrVersion) {
		t.Errorf("full under version 1: got %v, want ErrVersion", err)
	}
	if err := NotInForce(full, 2); err != nil {
		t.Errorf("full under version 2: got %v, want it taken", err)
	}
}

// Whoever adds a version says what it turns on.
func TestTurnsOn(t *testing.T) {
	for v := OldestVersion; v < NewestVersion; v++ {
		if len(TurnsOn(v, v+1)) == 0 {
			t.Errorf("version %d turns nothing on", v+1)
		}
	}
	if got := TurnsOn(NewestVersion, NewestVersion+1); got != nil {
		t.Errorf("a version that is not known: got %q, want nothing", got)
	}
}
