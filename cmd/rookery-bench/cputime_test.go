package main

import (
	"testing"
	"time"
)

func TestParseCPU(t *testing.T) {
	const stat = "4242 (a ) b) S 1 4242 4242 0 -1 4194304 1 2 3 4 150 75 0 0 20 0 9 0 100 1000 200\n"
	if got, err := parseCPU([]byte(stat)); err != nil || got != 2250*time.Millisecond {
		t.Errorf("got %v, error %v; want 2.25s", got, err)
	}
	for _, bad := range []string{"", "1 (x) S", "4242 (x) S 1 2 3 4 5 6 7 8 9 10 a b 0"} {
		if got, err := parseCPU([]byte(bad)); err == nil {
			t.Errorf("%q is read as %v", bad, got)
		}
	}
}

func TestOwnCPU(t *testing.T) {
	before, begin := ownCPU(), time.Now()
	for time.Since(begin) < 50*time.Millisecond {
	}
	if used := ownCPU() - before; used <= 0 || used > 10*time.Second {
		t.Errorf("50 ms of work used %v", used)
	}
}
