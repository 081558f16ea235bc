package raftstore

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// clusterEnv has the test binary run three nodes in one process, on directories
// in that one, under load. All the time one of them is cut off, falls behind
// and gets a snapshot, and their files are compacted.
const clusterEnv = "ROOKERY_TEST_CLUSTER_DIR"

func killedCluster(t testing.TB, dir string) *cluster {
	return newCluster(t, 3, shortLog, func(cfg *Config) {
		cfg.Dir, cfg.Log = filepath.Join(dir, cfg.Name), nil
		cfg.MaxBatch, cfg.LogEntries, cfg.FlushKeys = 1, 40, 40
	})
}

// TestClusterChild is not a test but what TestKillCluster starts.
func TestClusterChild(t *testing.T) {
	dir := os.Getenv(clusterEnv)
	if dir == "" {
		return
	}
	c := killedCluster(t, dir)
	var out sync.Mutex
	say := func(line string) {
		// One write each: a kill cuts between lines, not in them.
		out.Lock()
		os.Stdout.WriteString("\n" + line + "\n")
		out.Unlock()
	}
	for w := range 16 {
		go func() {
			for i := 0; ; i++ {
				key := fmt.Sprintf("%d-%d-%d", os.Getpid(), w, i)
				s := c.store(c.leader())
				if _, err := s.Propose(context.Background(), fmt.Appendf(nil, "put %s %s", key, strings.Repeat("x", 100))); err == nil {
					say("acked " + key)
				}
			}
		}()
	}
	for i := range c.ids {
		go func() {
			for {
				if _, _, err := c.store(i).Compact(context.Background(), nil); err == nil {
					say("did compact")
				}
				time.Sleep(20 * time.Millisecond)
			}
		}()
	}
	for {
		leader, rest := c.others()
		i := rest[rand.IntN(2)]
		if rand.IntN(8) == 0 {
			i = leader
		}
		c.isolate(i, true)
		time.Sleep(time.Duration(50+rand.IntN(300)) * time.Millisecond)
		c.isolate(i, false)
		for range 200 {
			if s := c.store(i); s.Status().Applied+50 > c.store(c.leader()).Status().Applied {
				break
			}
			time.Sleep(5 * time.Millisecond)
		}
		c.mu.Lock()
		sent := c.sent
		c.mu.Unlock()
		say(fmt.Sprint("sent ", sent))
	}
}

// TestKillCluster kills three nodes at once, at any step of installations and
// compactions, again and again: they start again, agree, and nothing that was
// acknowledged is gone.
func TestKillCluster(t *testing.T) {
	dir := t.TempDir()
	var acked []string
	compacted, sent := 0, 0
	for range 5 {
		lines := killed(t, time.Duration(1000+rand.IntN(2000))*time.Millisecond, "^TestClusterChild$", clusterEnv+"="+dir)
		last := 0
		for _, line := range lines {
			switch word, rest, _ := strings.Cut(line, " "); word {
			case "acked":
				acked = append(acked, rest)
			case "did":
				compacted++
			case "sent":
				fmt.Sscan(rest, &last)
			case "---", "FAIL":
				t.Fatalf("child: %s", strings.Join(lines, "\n"))
			}
		}
		sent += last
	}
	c := killedCluster(t, dir)
	c.propose("put end 1")
	c.same()
	for i := range c.ids {
		v, err := c.store(i).Read(context.Background(), Local)
		if err != nil {
			t.Fatal(err)
		}
		missing := 0
		for _, k := range acked {
			if v.Get(rowsBucket, []byte(k)) == nil {
				missing++
			}
		}
		v.Release()
		if missing > 0 {
			t.Errorf("node %d: %d of %d acknowledged commands are gone", i, missing, len(acked))
		}
		if err := c.store(i).files.state.verify(c.store(i).cfg.Log, nil); err != nil {
			t.Error(err)
		}
	}
	t.Logf("%d acknowledged, %d compactions, %d snapshots sent", len(acked), compacted, sent)
	if len(acked) == 0 || compacted == 0 || sent == 0 {
		t.Error("too little happened for this to prove anything")
	}
}

// killed runs a test of this binary, kills it some time after its first line,
// and returns what it said until then.
func killed(t *testing.T, life time.Duration, test string, env ...string) (lines []string) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run="+test)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stderr = os.Stderr
	pipe, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	var killer *time.Timer
	for scan := bufio.NewScanner(pipe); scan.Scan(); {
		if scan.Text() == "" {
			continue
		}
		lines = append(lines, scan.Text())
		if killer == nil {
			killer = time.AfterFunc(life, func() { cmd.Process.Kill() })
		}
	}
	_ = cmd.Wait()
	return lines
}
