package raftstore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rookery-mail/rookery/internal/kv"
)

func testConfig(t testing.TB) Config {
	return Config{Dir: t.TempDir(), Shard: 1, Name: "n1", Machine: testMachine{}, Log: testLog(t), MmapSize: 1 << 30}
}

func open(t testing.TB, cfg Config) *Store {
	t.Helper()
	s, err := Open(cfg)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() { s.Close() })
	waitLeader(t, s)
	return s
}

func waitLeader(t testing.TB, s *Store) {
	t.Helper()
	for range 1000 {
		if s.Status().Leading {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatal("no leader after a second")
}

func propose(t testing.TB, s *Store, command string) string {
	t.Helper()
	result, err := s.Propose(context.Background(), []byte(command))
	if err != nil {
		t.Fatalf("Propose(%q): %v", command, err)
	}
	return string(result)
}

func get(t testing.TB, s *Store, key string) string {
	t.Helper()
	v, err := s.Read(context.Background(), Linearizable)
	if err != nil {
		t.Fatalf("Read: %v", err)
	}
	defer v.Release()
	return string(v.Get(rowsBucket, []byte(key)))
}

func TestProposeReadReopen(t *testing.T) {
	cfg := testConfig(t)
	s := open(t, cfg)
	for i := range 100 {
		if got, want := propose(t, s, fmt.Sprintf("put k%d v%d", i, i)), fmt.Sprint(i+1); got != want {
			t.Fatalf("revision: got %s, want %s", got, want)
		}
		if got, want := get(t, s, fmt.Sprintf("k%d", i)), fmt.Sprintf("v%d", i); got != want {
			t.Fatalf("k%d: got %q, want %q", i, got, want)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
	s = open(t, cfg)
	for i := range 100 {
		if got, want := get(t, s, fmt.Sprintf("k%d", i)), fmt.Sprintf("v%d", i); got != want {
			t.Errorf("after reopening, k%d: got %q, want %q", i, got, want)
		}
	}
	if got := propose(t, s, "nothing"); got != "101" {
		t.Errorf("revision after reopening: got %s, want 101", got)
	}
}

func TestDue(t *testing.T) {
	s := open(t, testConfig(t))
	propose(t, s, "alarm rang 50")
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	v, err := s.ReadWhen(ctx, func(r kv.Reader) bool { return r.Get(rowsBucket, []byte("rang")) != nil })
	if err != nil {
		t.Fatalf("the alarm did not ring: %v", err)
	}
	v.Release()
}

func TestConcurrentProposals(t *testing.T) {
	s := open(t, testConfig(t))
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			for j := range 50 {
				propose(t, s, fmt.Sprintf("put k%d-%d %d", i, j, j))
			}
		})
	}
	wg.Wait()
	if got, want := propose(t, s, "nothing"), fmt.Sprint(64*50+1); got != want {
		t.Errorf("revision: got %s, want %s", got, want)
	}
}

func TestMetrics(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	cfg := testConfig(t)
	cfg.Metrics = reg
	open(t, cfg).Close()
	s := open(t, cfg) // the names are free again
	other := testConfig(t)
	other.Metrics, other.Shard = reg, 2
	open(t, other)
	propose(t, s, "put a 1")
	if _, err := s.Propose(context.Background(), make([]byte, 2<<20)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("a command of 2 MiB: got %v, want ErrTooLarge", err)
	}
	flush(t, s)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += " " + l.GetName() + "=" + l.GetValue()
			}
			got[name] = m.GetGauge().GetValue() + m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	for name, want := range map[string]float64{
		"rookery_raftstore_is_leader shard=1":                      1,
		"rookery_raftstore_is_leader shard=2":                      1,
		"rookery_raftstore_proposals_total result=ok shard=1":      1,
		"rookery_raftstore_proposals_total result=refused shard=1": 1,
		"rookery_raftstore_commands_applied_total shard=1":         1,
		"rookery_raftstore_commit_lag_entries shard=1":             0,
		"rookery_raftstore_overlay_keys shard=1":                   0,
		"rookery_raftstore_flushed_keys_total shard=1":             4, // the row and three sums
	} {
		if v, ok := got[name]; !ok || v != want {
			t.Errorf("%s: got %v (there: %v), want %v", name, v, ok, want)
		}
	}
	for _, name := range []string{"log_entries", "log_bytes"} {
		if name = "rookery_raftstore_" + name + " shard=1"; got[name] <= 0 {
			t.Errorf("%s: got %v, want what the start has written at least", name, got[name])
		}
	}
	if got["rookery_raftstore_log_sync_seconds shard=1"] == 0 || got["rookery_raftstore_applied_index shard=1"] < 3 {
		t.Errorf("got %v", got)
	}
}

// TestReadersSeeOnePoint: while commands are applied and layers are flushed and
// swapped, every view is of one revision in all it shows.
func TestReadersSeeOnePoint(t *testing.T) {
	cfg := testConfig(t)
	cfg.FlushKeys, cfg.FlushInterval = 20, 2*time.Millisecond
	s := open(t, cfg)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for last := uint64(0); ctx.Err() == nil; {
				v, err := s.Read(ctx, Local)
				if err != nil {
					t.Errorf("Read: %v", err)
					return
				}
				rev := number(v, revisionKey)
				if rev < last {
					t.Errorf("revision %d after %d", rev, last)
				}
				last = rev
				// Command n writes n to key n mod 50.
				rows := 0
				it := v.Iterate(rowsBucket)
				for k, val := it.Seek(nil); k != nil; k, val = it.Next() {
					var key, n uint64
					fmt.Sscan(string(k), &key)
					fmt.Sscan(string(val), &n)
					if n > rev || n+50 <= rev || n%50 != key-100 {
						t.Errorf("a view of revision %d shows %s=%s", rev, k, val)
					}
					if got := v.Get(rowsBucket, k); string(got) != string(val) {
						t.Errorf("Get(%s) is %q, the iterator says %q", k, got, val)
					}
					rows++
				}
				if want := int(min(rev, 50)); rows != want {
					t.Errorf("a view of revision %d shows %d rows, want %d", rev, rows, want)
				}
				v.Release()
				time.Sleep(100 * time.Microsecond) // on two cores the writer must have its turn
			}
		})
	}
	for n := 1; n <= 600 && !t.Failed(); n++ {
		propose(t, s, fmt.Sprintf("put %d %d", 100+n%50, n))
	}
	cancel()
	wg.Wait()
}
