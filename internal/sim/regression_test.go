package sim

import (
	"testing"
	"time"
)

// regressions are seeds that once showed a mistake in what is shipped. A seed means
// something else whenever the simulator changes, so what is listed says what was
// wrong and which test of its own keeps it; the seeds are run on because they are
// as good as any.
var regressions = []struct {
	seed  uint64
	shown string
}{
	// The log of a node that is often started was never marked and grew: I9.
	// raftstore: TestLogIsMarkedAcrossRestarts.
	{113, "the log grows with every start"},
}

func TestRegressions(t *testing.T) {
	for _, r := range regressions {
		if got := run(t, r.seed, 300*time.Second, nil); got.Failure != "" {
			t.Errorf("seed %d, which once showed that %s: VIOLATION %s", r.seed, r.shown, got.Failure)
		}
	}
}
