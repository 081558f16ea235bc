package raftstore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

func newTestSums(t *testing.T, index, sum uint64) *sums {
	t.Helper()
	m, err := newMetrics(prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	return newSums(index, sum, m)
}

func TestJudge(t *testing.T) {
	// Node 1's sum at each index is the index times 10.
	for _, test := range []struct {
		name   string
		self   uint64
		voters []uint64
		said   []string // node:index:sum
		want   Verdict
	}{
		{"alone", 1, []uint64{1}, nil, Same},
		{"nobody heard", 1, []uint64{1, 2, 3}, nil, Unknown},
		{"one agrees", 1, []uint64{1, 2, 3}, []string{"2:50:500"}, Same},
		{"one differs", 1, []uint64{1, 2, 3}, []string{"2:50:501"}, Split},
		{"one agrees, one differs", 1, []uint64{1, 2, 3}, []string{"2:50:500", "3:50:501"}, Same},
		{"two agree against this one", 1, []uint64{1, 2, 3}, []string{"2:50:501", "3:50:501"}, Odd},
		{"two agree at different indexes", 1, []uint64{1, 2, 3}, []string{"2:50:501", "3:60:601"}, Odd},
		{"three states", 1, []uint64{1, 2, 3}, []string{"2:50:501", "3:50:502"}, Split},
		{"they come to agree", 1, []uint64{1, 2, 3}, []string{"2:50:501", "3:51:599", "2:52:530", "3:52:530"}, Odd},
		{"two of four are no majority", 1, []uint64{1, 2, 3, 4}, []string{"2:50:501", "3:50:501"}, Split},
		{"three of five", 1, []uint64{1, 2, 3, 4, 5}, []string{"2:50:501", "3:50:501", "4:50:501", "5:50:500"}, Odd},
		{"a learner against all", 9, []uint64{1, 2, 3}, []string{"1:50:501", "2:50:501"}, Odd},
		{"a learner against one", 9, []uint64{1, 2, 3}, []string{"1:50:501"}, Split},
		{"learners do not count", 1, []uint64{1, 2, 3}, []string{"8:50:501", "9:50:501", "2:50:500"}, Same},
		{"replaced by a good one", 1, []uint64{1, 2, 3}, []string{"2:50:501", "3:50:501", "2:60:600"}, Same},
		{"overtaken by an older one", 1, []uint64{1, 2, 3}, []string{"2:60:600", "2:50:501"}, Same},
		{"fell out of the ring", 1, []uint64{1, 2, 3}, []string{"2:0:1", "3:0:1"}, Unknown},
		{"ahead", 1, []uint64{1, 2, 3}, []string{"2:101:1", "3:101:1"}, Unknown},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newTestSums(t, 1, 10)
			for i := uint64(2); i <= 100; i++ {
				s.applied(i, i*10, 0)
			}
			for _, said := range test.said {
				var node, index, sum uint64
				if _, err := fmt.Sscanf(said, "%d:%d:%d", &node, &index, &sum); err != nil {
					t.Fatal(err)
				}
				s.compare(node, index, sum, 0)
			}
			if got := s.judge(test.self, test.voters); got != test.want {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
}

// TestCompareWaits: what is ahead is compared when this node is there, the
// oldest first, and never more of it is kept than fits.
func TestCompareWaits(t *testing.T) {
	s := newTestSums(t, 1, 1)
	for i := uint64(2); i < 1000; i++ {
		s.compare(2, i, i, 0)
	}
	if s.ahead != keptReports {
		t.Errorf("%d reports wait, want %d", s.ahead, keptReports)
	}
	if got := s.judge(1, []uint64{1, 2}); got != Unknown {
		t.Errorf("before it is there: %v", got)
	}
	s.applied(2, 2, time.Second)
	if got := s.judge(1, []uint64{1, 2}); got != Same || s.ahead != keptReports-1 {
		t.Errorf("one entry later: %v, %d wait", got, s.ahead)
	}
	s.applied(3, 99, time.Second)
	if d := s.differences([]Member{{ID: 2, Name: "n2"}}); len(d) != 1 || d[0] != (Difference{2, "n2", 3, 99, 3}) {
		t.Errorf("differences: %v", d)
	}
	s.replaced(500, 1)
	if got := s.judge(1, []uint64{1, 2}); got != Unknown || s.ahead != 0 {
		t.Errorf("after the state was replaced: %v, %d wait", got, s.ahead)
	}
}

// TestRoundest: nodes that tell at different moments tell of the same index.
func TestRoundest(t *testing.T) {
	s := newTestSums(t, 1, 1)
	for i := uint64(2); i <= 1500; i++ {
		s.applied(i, i, 0)
	}
	for _, test := range [][2]uint64{{0, 1024}, {1023, 1024}, {1024, 1280}, {1280, 1408}, {1499, 1500}, {1500, 1500}, {9999, 1500}} {
		if at := s.roundest(test[0]); at.index != test[1] || at.sum != test[1] {
			t.Errorf("after %d: got %d with sum %d, want %d", test[0], at.index, at.sum, test[1])
		}
	}
	for i := uint64(1501); i <= 40_000; i++ {
		s.applied(i, i, 0)
	}
	if at := s.roundest(0); at.index != 32768 {
		t.Errorf("at 40000: got %d, want 32768", at.index)
	}
	for i := uint64(40_001); i <= 60_000; i++ {
		s.applied(i, i, 0)
	}
	if at := s.roundest(0); at.index != 49152 {
		t.Errorf("at 60000, with 32768 fallen out of the ring: got %d, want 49152", at.index)
	}
}

// threeVoters is a node of three whose peers are not there.
func threeVoters(t *testing.T) (Config, *Store, []Member) {
	cfg := testConfig(t)
	cfg.Initial = []Member{{Name: cfg.Name}, {Name: "n2"}, {Name: "n3"}}
	s := openOnly(t, cfg)
	var others []Member
	for _, m := range s.Status().Members {
		if m.Name != cfg.Name {
			others = append(others, m)
		}
	}
	return cfg, s, others
}

// openOnly opens a node that has no majority to elect it.
func openOnly(t *testing.T, cfg Config) *Store {
	t.Helper()
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// TestQuarantine: a node that a majority disagrees with ends for good.
func TestQuarantine(t *testing.T) {
	cfg, s, others := threeVoters(t)
	index, sum := s.Sum()
	s.CompareSum(others[0].ID, index, sum+1)
	h := s.Health()
	if h.Verdict != Split || len(h.Differs) != 1 || h.Differs[0].Name != others[0].Name || len(h.Warnings) == 0 {
		t.Errorf("with one that differs: %+v", h)
	}
	if s.stopping() {
		t.Fatal("one node alone had this one shut out")
	}
	s.CompareSum(others[1].ID, index, sum+1)
	select {
	case <-s.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("the node serves on")
	}
	if err := s.Err(); !errors.Is(err, ErrDiverged) || !errors.Is(err, ErrStopped) {
		t.Errorf("it ended with %v, want ErrDiverged", err)
	}
	mark, err := os.ReadFile(filepath.Join(mustDefault(t, cfg).shardDir(), reseedName))
	if err != nil || !strings.Contains(string(mark), "n2") || !strings.Contains(string(mark), "n3") {
		t.Errorf("the mark says %q, error %v; want it to name n2 and n3", mark, err)
	}
}

// TestMajorityNames: a node of the majority goes on and names the odd one.
func TestMajorityNames(t *testing.T) {
	_, s, others := threeVoters(t)
	index, sum := s.Sum()
	s.CompareSum(others[0].ID, index, sum+1)
	s.CompareSum(others[1].ID, index, sum)
	h := s.Health()
	if h.Verdict != Same || len(h.Differs) != 1 || len(h.Warnings) != 1 || !strings.Contains(h.Warnings[0], others[0].Name+" has another state than the majority") {
		t.Errorf("got %+v", h)
	}
	if h.Compared < 0 {
		t.Errorf("compared %v ago", h.Compared)
	}
}

// TestNotCompared: a voter that is heard and whose sums cannot be compared is a
// failure that is told.
func TestNotCompared(t *testing.T) {
	s := newTestSums(t, 100_000, 1)
	members := []Member{{ID: 1, Name: "n1"}, {ID: 2, Name: "n2"}, {ID: 3, Name: "n3", Learner: true}, {ID: 4, Name: "n4"}}
	for at := time.Duration(0); at < 10*time.Minute; at += time.Second {
		s.compare(2, 5, 5, at)
		s.compare(3, 5, 5, at)
		s.compare(4, 5, 5, min(at, time.Minute)) // not heard any more
		age, missed := s.newest(members, 1, at, heardWithin, comparePatience)
		if want := at > comparePatience; age >= 0 || (len(missed) == 1) != want || want && missed[0].Name != "n2" {
			t.Fatalf("after %v: compared %v ago, missed %v", at, age, missed)
		}
	}
}
