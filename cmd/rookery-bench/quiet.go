package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strconv"
	"time"
)

// A load begins when the nodes have done what the one before left them: our
// flush of the state file, etcd's commit and compaction. Whether they have is
// seen from outside, alike for both: they neither compute nor write.
const (
	quietEvery  = 250 * time.Millisecond
	quietWindow = 1500 * time.Millisecond // longer than a flush is put off
	quietCPU    = 0.15                    // of one processor, all nodes together
	quietWrites = 1 << 20                 // octets in the window, all nodes together
	// quietPatience is how long the nodes are given. If they are not at rest then,
	// the report says so.
	quietPatience = 2 * time.Minute
)

// usage is what a process has used since its start.
type usage struct {
	CPU     time.Duration
	Written int64 // octets that it had the kernel write to disk
}

func (u usage) minus(v usage) usage { return usage{u.CPU - v.CPU, u.Written - v.Written} }

func (u usage) plus(v usage) usage { return usage{u.CPU + v.CPU, u.Written + v.Written} }

// usage returns what the process has used; zero of what the system does not tell.
func (p *process) usage() usage { return usage{CPU: p.cpu(), Written: p.written()} }

// written reads write_bytes, which Linux has: what the process made dirty, less
// what was gone before it was written.
func (p *process) written() int64 {
	if p == nil {
		return 0
	}
	text, err := os.ReadFile("/proc/" + strconv.Itoa(p.cmd.Process.Pid) + "/io")
	if err != nil {
		return 0
	}
	octets, err := parseWritten(text)
	if err != nil {
		return 0
	}
	return octets
}

func parseWritten(io []byte) (int64, error) {
	for line := range bytes.Lines(io) {
		if value, ok := bytes.CutPrefix(line, []byte("write_bytes:")); ok {
			return strconv.ParseInt(string(bytes.TrimSpace(value)), 10, 64)
		}
	}
	return 0, errors.New("write_bytes is not in /proc/PID/io")
}

// usages returns what each of members has used.
func usages(members []member) []usage {
	out := make([]usage, len(members))
	for i, m := range members {
		out[i] = m.process.usage()
	}
	return out
}

func sumOf(all []usage) (sum usage) {
	for _, u := range all {
		sum = sum.plus(u)
	}
	return sum
}

// awaitQuiet waits until the members are at rest, and reports whether they came
// to it.
func awaitQuiet(ctx context.Context, members []member) (bool, error) {
	var window []usage
	t := time.NewTicker(quietEvery)
	defer t.Stop()
	for begin := time.Now(); time.Since(begin) < quietPatience; {
		window = append(window, sumOf(usages(members)))
		if atRest(window) {
			return true, nil
		}
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case <-t.C:
		}
	}
	return false, nil
}

// atRest says whether nothing was done in the last window of samples.
func atRest(samples []usage) bool {
	const length = int(quietWindow / quietEvery)
	if len(samples) <= length {
		return false
	}
	did := samples[len(samples)-1].minus(samples[len(samples)-1-length])
	return did.CPU.Seconds() <= quietCPU*quietWindow.Seconds() && did.Written <= quietWrites
}
