package raftstore

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rookery-mail/rookery/raftstore/snap"
	"github.com/rookery-mail/rookery/raftstore/wal"
	"go.etcd.io/raft/v3/raftpb"
)

// reseedCluster has node i stopped, with a state that is not to be used, and a
// snapshot of a peer.
func reseedCluster(t *testing.T, after int) (c *cluster, i int, path string) {
	t.Helper()
	c = newCluster(t, 3, shortLog)
	c.fill(300)
	_, rest := c.others()
	i = rest[0]
	c.caughtUp(i)
	c.stop(i)
	if err := askReseed(mustDefault(t, c.cfgs[i]).shardDir(), "the sums differ"); err != nil {
		t.Fatal(err)
	}
	c.fill(after)
	path = filepath.Join(t.TempDir(), "peer.snap")
	if _, err := saveSnapshot(c.store(c.leader()), path); err != nil {
		t.Fatal(err)
	}
	return c, i, path
}

// replayOf reads a log from where the state says.
func replayOf(t *testing.T, cfg Config) (Meta, *wal.Replay) {
	t.Helper()
	cfg = mustDefault(t, cfg)
	var f files
	if err := f.open(cfg); err != nil {
		t.Fatal(err)
	}
	m, r := f.state.Meta(), f.replay
	if err := f.close(); err != nil {
		t.Fatal(err)
	}
	return m, r
}

func TestReseed(t *testing.T) {
	damage := func(t *testing.T, cfg Config, at, n int64) {
		f, err := os.OpenFile(filepath.Join(mustDefault(t, cfg).shardDir(), stateName), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.WriteAt(make([]byte, n), at)
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		name   string
		after  int // commands after the node stopped
		damage func(t *testing.T, cfg Config)
	}{
		{"of the same moment", 0, nil},
		{"a little later", 30, nil},
		{"beyond the log", 400, nil},
		{"state without meta pages", 400, func(t *testing.T, cfg Config) { damage(t, cfg, 0, 8192) }},
		{"state without a page", 0, func(t *testing.T, cfg Config) { damage(t, cfg, 8192, 1<<16) }},
		{"state missing", 30, func(t *testing.T, cfg Config) { os.Remove(filepath.Join(mustDefault(t, cfg).shardDir(), stateName)) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			c, i, path := reseedCluster(t, test.after)
			cfg := c.cfgs[i]
			old, before := replayOf(t, cfg)
			if test.damage != nil {
				test.damage(t, cfg)
			}
			if _, err := Open(cfg); !errors.Is(err, ErrReseed) || !strings.Contains(err.Error(), "the sums differ") {
				t.Fatalf("Open: got %v, want ErrReseed and why", err)
			}
			if err := Reseed(cfg, path); err != nil {
				t.Fatalf("Reseed: %v", err)
			}
			m, r := replayOf(t, cfg)
			if m.Identity != old.Identity || m.Name != old.Name || m.Applied.Index < old.Applied.Index || m.Mark != m.Applied {
				t.Errorf("the state is %+v, was %+v", m, old)
			}
			if r.Hard.GetTerm() != before.Hard.GetTerm() || r.Hard.GetVote() != before.Hard.GetVote() {
				t.Errorf("the vote is %v, was %v", r.Hard, before.Hard)
			}
			c.start(i)
			c.fill(50)
			c.same()
			c.stop(i)
			c.start(i)
			c.same()
		})
	}
}

// TestReseedKeepsTheLog: what the node has acknowledged beyond the snapshot is
// still on it, also what it does not know to be committed.
func TestReseedKeepsTheLog(t *testing.T) {
	c := newCluster(t, 3, shortLog, func(cfg *Config) { cfg.MaxBatch = 1 })
	c.fill(100)
	leader := c.leader()
	path := filepath.Join(t.TempDir(), "own.snap")
	h, err := saveSnapshot(c.store(leader), path)
	if err != nil {
		t.Fatal(err)
	}
	// It writes more, that nobody confirms, and does not live to flush it.
	c.isolate(leader, true)
	for i := range 20 {
		c.store(leader).node.Propose(fmt.Appendf(nil, "put kept%d 1", i), func([]byte, error) {})
	}
	for c.store(leader).Status().Leading {
		time.Sleep(5 * time.Millisecond)
	}
	c.stop(leader)
	_, before := replayOf(t, c.cfgs[leader])
	if err := Reseed(c.cfgs[leader], path); err != nil {
		t.Fatal(err)
	}
	m, r := replayOf(t, c.cfgs[leader])
	last := before.Entries[len(before.Entries)-1].GetIndex()
	if m.Applied.Index != h.Index || len(r.Entries) == 0 || r.Entries[len(r.Entries)-1].GetIndex() != last || last < h.Index+20 {
		t.Errorf("after the snapshot at %d the log has %d entries, it had all up to %d", h.Index, len(r.Entries), last)
	}
}

// TestReseedConflict: entries that the snapshot proves void are dropped.
func TestReseedConflict(t *testing.T) {
	c := newCluster(t, 3, shortLog, func(cfg *Config) { cfg.MaxBatch = 1 })
	c.fill(50)
	old := c.leader()
	c.isolate(old, true)
	for i := range 500 {
		c.store(old).node.Propose(fmt.Appendf(nil, "put void%d 1", i), func([]byte, error) {})
	}
	for c.store(old).Status().Leading {
		time.Sleep(5 * time.Millisecond)
	}
	c.stop(old)
	c.fill(100)
	path := filepath.Join(t.TempDir(), "peer.snap")
	h, err := saveSnapshot(c.store(c.leader()), path)
	if err != nil {
		t.Fatal(err)
	}
	if _, before := replayOf(t, c.cfgs[old]); before.Entries[len(before.Entries)-1].GetIndex() <= h.Index {
		t.Fatal("the void entries do not reach beyond the snapshot")
	}
	if err := Reseed(c.cfgs[old], path); err != nil {
		t.Fatal(err)
	}
	if _, r := replayOf(t, c.cfgs[old]); len(r.Entries) != 0 {
		t.Errorf("%d void entries follow the snapshot", len(r.Entries))
	}
	c.isolate(old, false)
	c.start(old)
	c.fill(20)
	c.same()
}

func TestReseedRefused(t *testing.T) {
	c, i, path := reseedCluster(t, 100)
	cfg := c.cfgs[i]
	early := filepath.Join(t.TempDir(), "early.snap")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	flipped := filepath.Join(t.TempDir(), "flipped.snap")
	if err := os.WriteFile(flipped, data, 0o600); err != nil {
		t.Fatal(err)
	}
	good, err := snap.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer good.Close()
	other := good.Header
	other.Cluster[0]++
	foreign := filepath.Join(t.TempDir(), "foreign.snap")
	if err := snap.Save(foreign, other, func(w io.Writer) error { _, err := io.Copy(w, good); return err }); err != nil {
		t.Fatal(err)
	}
	// One from before what this node was at: of a node that lags.
	meta, _ := replayOf(t, cfg)
	staleMeta := meta
	staleMeta.Applied.Index--
	staleMeta.Mark = staleMeta.Applied
	if err := makeStale(t, cfg, staleMeta, early); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		path string
		want error
	}{{flipped, snap.ErrCorrupt}, {foreign, ErrIdentity}, {early, ErrNotTaken}} {
		if err := Reseed(cfg, test.path); !errors.Is(err, test.want) {
			t.Errorf("Reseed from %s: got %v, want %v", filepath.Base(test.path), err, test.want)
		}
		if _, err := Open(cfg); !errors.Is(err, ErrReseed) {
			t.Errorf("Open after that: got %v, want ErrReseed", err)
		}
	}
	// Without the state file the promise says how far it was.
	lost := copyDir(t, cfg)
	if err := os.Remove(filepath.Join(mustDefault(t, lost).shardDir(), stateName)); err != nil {
		t.Fatal(err)
	}
	if err := Reseed(lost, early); !errors.Is(err, ErrNotTaken) {
		t.Errorf("Reseed from one that is too old, without a state: got %v, want ErrNotTaken", err)
	}
	renamed := copyDir(t, cfg)
	renamed.Name = "other"
	if err := Reseed(renamed, path); !errors.Is(err, ErrIdentity) {
		t.Errorf("Reseed as another node: got %v, want ErrIdentity", err)
	}
	cut := copyDir(t, cfg)
	if err := truncateAll(filepath.Join(mustDefault(t, cut).shardDir(), "wal"), 9000); err != nil {
		t.Fatal(err)
	}
	if err := Reseed(cut, path); !errors.Is(err, ErrCorrupt) {
		t.Errorf("Reseed with a damaged log: got %v, want ErrCorrupt", err)
	}
	if err := Reseed(c.cfgs[c.pick(i)], path); !errors.Is(err, ErrLocked) {
		t.Errorf("Reseed of a node that runs: got %v, want ErrLocked", err)
	}
	if err := Reseed(cfg, path); err != nil {
		t.Errorf("Reseed after all that: %v", err)
	}
}

// pick returns a node that is none of these.
func (c *cluster) pick(not ...int) int {
	for i := range c.ids {
		if !slices.Contains(not, i) {
			return i
		}
	}
	return -1
}

// makeStale writes a snapshot of an empty state with this meta.
func makeStale(t *testing.T, cfg Config, m Meta, path string) error {
	t.Helper()
	state := filepath.Join(t.TempDir(), stateName)
	if err := createStateFile(state, cfg.Machine.Buckets(), m); err != nil {
		return err
	}
	s, err := openStateFile(state, cfg.Machine.Buckets(), 1<<30)
	if err != nil {
		return err
	}
	defer s.Close()
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	w, err := snap.NewWriter(f, m.header(snap.Image))
	if err != nil {
		return err
	}
	err = s.Image(func(_ Meta, write func(io.Writer) error) error { return write(w) })
	return errors.Join(err, w.Close(), f.Close())
}

// TestReseedCrash copies the directory after every step: Reseed can be done
// again, with the same snapshot or a later one, and Open refuses until then.
func TestReseedCrash(t *testing.T) {
	for _, after := range []int{0, 400} {
		t.Run(fmt.Sprint(after), func(t *testing.T) {
			c, i, path := reseedCluster(t, after)
			cfg := c.cfgs[i]
			var steps, dirs []string
			own := cfg
			own.step = func(step string) {
				to := filepath.Join(t.TempDir(), "copy")
				if err := os.CopyFS(to, os.DirFS(cfg.Dir)); err != nil {
					t.Error(err)
				}
				steps, dirs = append(steps, step), append(dirs, to)
			}
			if err := Reseed(own, path); err != nil {
				t.Fatal(err)
			}
			if golden := []string{"staged", "marked", "renamed", "flushed"}; !slices.Equal(steps, golden) {
				t.Errorf("the steps were %q, want %q", steps, golden)
			}
			c.fill(150)
			later := filepath.Join(t.TempDir(), "later.snap")
			if _, err := saveSnapshot(c.store(c.leader()), later); err != nil {
				t.Fatal(err)
			}
			for n, dir := range dirs {
				for _, again := range []string{path, later} {
					cp := cfg
					cp.Dir = dir
					cp = copyDir(t, cp)
					if _, err := Open(cp); !errors.Is(err, ErrReseed) {
						t.Errorf("Open after %q: got %v, want ErrReseed", steps[n], err)
					}
					if err := Reseed(cp, again); err != nil {
						t.Errorf("Reseed again after %q: %v", steps[n], err)
						continue
					}
					c.cfgs[i] = cp
					c.start(i)
					c.caughtUp(i)
					if got, want := dumpLocal(t, c.store(i)), dumpLocal(t, c.store(c.leader())); got != want {
						t.Errorf("after %q and Reseed again the state differs", steps[n])
					}
					c.stop(i)
					// The leader remembers what this copy said; the next one is older.
					for _, j := range []int{c.pick(i), c.pick(i, c.pick(i))} {
						c.stop(j)
						c.start(j)
					}
				}
			}
		})
	}
}

// TestRecover makes a cluster of one out of a survivor: nothing acknowledged is
// lost, nor what it alone had written.
func TestRecover(t *testing.T) {
	c := newCluster(t, 3, shortLog, func(cfg *Config) { cfg.MaxBatch = 1 })
	c.fill(150)
	c.same()
	leader := c.leader()
	s := c.store(leader)
	if _, _, err := Recover(c.cfgs[leader]); !errors.Is(err, ErrLocked) {
		t.Errorf("Recover of a node that runs: got %v, want ErrLocked", err)
	}
	c.isolate(leader, true)
	// These may have been acknowledged for all the survivor knows.
	for i := range 20 {
		s.node.Propose(fmt.Appendf(nil, "put late%d 1", i), func([]byte, error) {})
	}
	s.node.Reconfigure([]Change{{Member: Member{ID: 77, Name: "n77"}}}, func(error) {})
	for s.Status().Leading {
		time.Sleep(5 * time.Millisecond)
	}
	old := s.Identity()
	c.close()
	cfg := c.cfgs[leader]
	_, before := replayOf(t, cfg)
	if !slices.ContainsFunc(before.Entries, func(e *raftpb.Entry) bool { return e.GetType() != raftpb.EntryNormal }) {
		t.Fatal("there is no membership change in the log")
	}
	var steps, dirs []string
	own := cfg
	own.step = func(step string) {
		to := filepath.Join(t.TempDir(), "copy")
		if err := os.CopyFS(to, os.DirFS(cfg.Dir)); err != nil {
			t.Error(err)
		}
		steps, dirs = append(steps, step), append(dirs, to)
	}
	damaged := copyDir(t, cfg)
	if err := truncateAll(filepath.Join(mustDefault(t, damaged).shardDir(), "wal"), 9000); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Recover(damaged); !errors.Is(err, ErrCorrupt) {
		t.Errorf("Recover with a damaged log: got %v, want ErrCorrupt", err)
	}
	twin := copyDir(t, cfg)
	_, other, err := Recover(twin)
	if err != nil {
		t.Fatalf("Recover of a copy: %v", err)
	}
	was, is, err := Recover(own)
	if err != nil {
		t.Fatalf("Recover: %v", err)
	}
	if was != old || is.Cluster == old.Cluster || is.Incarnation != old.Incarnation+1 || is.Node == old.Node || is.Shard != old.Shard {
		t.Errorf("recovered as %v from %v", is, old)
	}
	if other.Cluster == is.Cluster || other.Node == is.Node {
		t.Errorf("recovered twice: as %v and as %v, which can be taken for one", is, other)
	}
	if golden := []string{"built", "complete", "old one aside", "in place"}; !slices.Equal(steps, golden) {
		t.Errorf("the steps were %q, want %q", steps, golden)
	}
	check := func(cfg Config, what string) {
		t.Helper()
		cfg.Network = nil
		s := open(t, cfg)
		for i := range 20 {
			if got := get(t, s, fmt.Sprintf("late%d", i)); got != "1" {
				t.Errorf("%s: what the survivor had written last is gone: late%d is %q", what, i, got)
			}
		}
		for i := range 100 {
			if got := get(t, s, fmt.Sprintf("k%d", i)); got == "" {
				t.Errorf("%s: k%d is gone", what, i)
			}
		}
		st := s.Status()
		if !slices.Equal(st.Voters, []uint64{st.Identity.Node}) || len(st.Learners) != 0 || len(st.Members) != 1 || st.Members[0].Name != cfg.Name || st.Identity.Incarnation != 2 {
			t.Errorf("%s: %+v", what, st)
		}
		propose(t, s, "put after 1")
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = open(t, cfg)
		if got := get(t, s, "after"); got != "1" {
			t.Errorf("%s: after reopening: %q", what, got)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	check(cfg, "recovered")
	if _, _, err := Recover(cfg); !errors.Is(err, ErrAlone) {
		t.Errorf("Recover again: got %v, want ErrAlone", err)
	}
	for i, dir := range dirs {
		cp := cfg
		cp.Dir = dir
		if i < 2 {
			// The old one is in its place still.
			if _, _, err := Recover(cp); err != nil {
				t.Errorf("Recover again after %q: %v", steps[i], err)
				continue
			}
		}
		check(cp, "after "+steps[i])
	}
	// The old one is kept.
	kept, err := filepath.Glob(mustDefault(t, cfg).shardDir() + beforeSuffix + "*")
	if err != nil || len(kept) != 1 {
		t.Errorf("kept: %v, %v; want the old directory", kept, err)
	}
	if _, _, err := Recover(testConfig(t)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Recover of nothing: got %v", err)
	}
}

// TestRestoreIncarnation: at least what the caller has seen, and above the
// snapshot's.
func TestRestoreIncarnation(t *testing.T) {
	s := open(t, testConfig(t))
	propose(t, s, "put a 1")
	path := filepath.Join(t.TempDir(), "a.snap")
	if _, err := saveSnapshot(s, path); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ least, want uint64 }{{0, 2}, {2, 2}, {9, 9}} {
		cfg := testConfig(t)
		cfg.Initial = []Member{{Name: "n1", Context: []byte("here")}}
		id, err := Restore(cfg, path, test.least)
		if err != nil || id.Incarnation != test.want {
			t.Errorf("Restore with at least %d: got %v, %v; want incarnation %d", test.least, id, err, test.want)
		}
		r := open(t, cfg)
		if st := r.Status(); string(st.Members[0].Context) != "here" || get(t, r, "a") != "1" {
			t.Errorf("restored: %+v", st)
		}
	}
	propose(t, s, "put bad \xff")
	if _, err := saveSnapshot(s, path); err != nil {
		t.Fatal(err)
	}
	cfg := testConfig(t)
	if _, err := Restore(cfg, path, 0); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a snapshot that the machine finds damaged: got %v, want ErrCorrupt", err)
	}
	if _, err := os.Stat(mustDefault(t, cfg).shardDir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a directory was left: %v", err)
	}
}
