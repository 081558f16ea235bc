package main

import (
	"sync"
	"time"
)

// memoryResult is what the node held for itself, in octets: the page cache and
// the mapped state file left out.
type memoryResult struct {
	End  uint64 // after the loads
	Peak uint64 // the most that was seen, the import included
}

// A memoryWatch looks at a node's memory from time to time.
type memoryWatch struct {
	stop chan struct{}
	wg   sync.WaitGroup

	mu     sync.Mutex
	result memoryResult
	err    error
}

const memoryEvery = 200 * time.Millisecond

func watchMemory(p *process) *memoryWatch {
	w := &memoryWatch{stop: make(chan struct{})}
	w.wg.Go(func() {
		t := time.NewTicker(memoryEvery)
		defer t.Stop()
		for {
			w.look(p)
			select {
			case <-w.stop:
				return
			case <-t.C:
			}
		}
	})
	return w
}

func (w *memoryWatch) look(p *process) {
	octets, err := p.memory()
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil {
		w.err = err
		return
	}
	w.result.End = octets
	w.result.Peak = max(w.result.Peak, octets)
}

// end stops looking and says what was seen.
func (w *memoryWatch) end() (memoryResult, error) {
	close(w.stop)
	w.wg.Wait()
	return w.result, w.err
}
