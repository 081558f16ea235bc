//go:build peers

package powerloss

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// report counts what was done, over all lanes.
type report struct {
	cuts atomic.Int64 // of power
	met  atomic.Int64 // at the call that was waited for

	worlds, acked, refused atomic.Int64

	mu      sync.Mutex
	moments map[string]int
	starts  []time.Duration
	lost    lost
	bare    int // disks that had nothing to lose
	disks   int
}

func (r *report) moment(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.moments == nil {
		r.moments = map[string]int{}
	}
	r.moments[name]++
}

func (r *report) start(d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.starts = append(r.starts, d)
}

func (r *report) lose(l lost) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.disks++
	if l == (lost{}) {
		r.bare++
	}
	r.lost.Files += l.Files
	r.lost.Changes += l.Changes
	r.lost.Moves += l.Moves
	r.lost.Bytes += l.Bytes
}

func (r *report) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var b strings.Builder
	fmt.Fprintf(&b, "%d power cuts in %d worlds, %d of them at the call waited for; %d writes acknowledged, %d refused\n",
		r.cuts.Load(), r.worlds.Load(), r.met.Load(), r.acked.Load(), r.refused.Load())
	fmt.Fprintf(&b, "%d disks lost power, %d of them with something not synced: %d changes of files (%d octets), %d of directories\n",
		r.disks, r.disks-r.bare, r.lost.Changes, r.lost.Bytes, r.lost.Moves)
	if n := len(r.starts); n > 0 {
		slices.Sort(r.starts)
		fmt.Fprintf(&b, "%d starts to ready: p50 %v, p99 %v, slowest %v\n", n,
			r.starts[n/2].Round(time.Millisecond), r.starts[n*99/100].Round(time.Millisecond), r.starts[n-1].Round(time.Millisecond))
	}
	for _, name := range slices.Sorted(maps.Keys(r.moments)) {
		fmt.Fprintf(&b, "%6d %s\n", r.moments[name], name)
	}
	return b.String()
}
