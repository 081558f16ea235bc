package raftstore

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rookery-mail/rookery/internal/kv"
	"github.com/rookery-mail/rookery/raftstore/wal"
)

// The test binary starts itself with crashEnv set to a data directory: it then
// proposes as fast as it can and prints what was acknowledged, until it is
// killed or its store stops. With limitEnv its files cannot outgrow that size.
const (
	crashEnv = "ROOKERY_TEST_CRASH_DIR"
	limitEnv = "ROOKERY_TEST_FILE_LIMIT"
)

func TestMain(m *testing.M) {
	wal.SetSegmentBytes(segmentBytes)
	if dir := os.Getenv(crashEnv); dir != "" {
		os.Exit(crashChild(dir))
	}
	os.Exit(m.Run())
}

func crashConfig(dir string) Config {
	return Config{
		Dir: dir, Shard: 1, Name: "n1", Machine: testMachine{}, MmapSize: 1 << 30,
		// So that flushes, marks and deleted segments fall into the short life.
		FlushKeys: 300, FlushInterval: 30 * time.Millisecond, LogEntries: 500, MarkBytes: 100 << 10,
	}
}

// segmentBytes is the size of the log's segments in these tests.
const segmentBytes = 1 << 20

func crashChild(dir string) int {
	cfg := crashConfig(dir)
	if limit := os.Getenv(limitEnv); limit != "" {
		var max uint64
		fmt.Sscan(limit, &max)
		// Without the signal a write beyond the limit is an error, as on a full disk.
		signal.Ignore(syscall.SIGXFSZ)
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: max, Max: max}); err != nil {
			fmt.Println("error", err)
			return 1
		}
		if max == segmentBytes {
			cfg.FlushKeys, cfg.FlushInterval = 1<<30, time.Hour // the log is to meet the limit first
		}
	}
	s, err := Open(cfg)
	if err != nil {
		fmt.Println("error", err)
		return 1
	}
	var out sync.Mutex
	var workers sync.WaitGroup
	for w := range 8 {
		workers.Go(func() {
			for i := 0; ; i++ {
				key := fmt.Sprintf("%d-%d-%d", os.Getpid(), w, i)
				_, err := s.Propose(context.Background(), fmt.Appendf(nil, "put %s %s", key, strings.Repeat("x", 200)))
				switch {
				case errors.Is(err, ErrNoLeader):
					time.Sleep(time.Millisecond)
				case err != nil:
					return
				default:
					// One write each: a kill cuts between lines, not in them.
					out.Lock()
					os.Stdout.WriteString(key + "\n")
					out.Unlock()
				}
			}
		})
	}
	workers.Wait()
	<-s.Done()
	if !Unwritable(s.Err()) && os.Getenv(limitEnv) != "" {
		fmt.Println("error", "the end is not known for that of a disk:", s.Err())
	}
	fmt.Println("stopped", s.Err())
	return 3
}

// child runs this binary on dir and returns the keys it acknowledged, and what
// it said when it stopped by itself. It is killed after a while.
func child(t *testing.T, dir string, life time.Duration, env ...string) (acked []string, stopped string) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	cmd.Env = append(append(os.Environ(), crashEnv+"="+dir), env...)
	cmd.Stderr = os.Stderr
	pipe, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	var killer *time.Timer
	lines := bufio.NewScanner(pipe)
	for lines.Scan() {
		line := lines.Text()
		switch {
		case strings.HasPrefix(line, "error"):
			t.Fatalf("child: %s", line)
		case strings.HasPrefix(line, "stopped"):
			stopped = line
		default:
			acked = append(acked, line)
			if killer == nil {
				killer = time.AfterFunc(life, func() { cmd.Process.Kill() })
			}
		}
	}
	cmd.Wait()
	return acked, stopped
}

// holds opens dir and checks that every key is there.
func holds(t *testing.T, dir string, keys []string) {
	t.Helper()
	cfg := crashConfig(dir)
	cfg.Log = testLog(t)
	s, err := Open(cfg)
	if err != nil {
		t.Fatalf("Open after the crash: %v", err)
	}
	defer s.Close()
	waitLeader(t, s)
	v, err := s.Read(context.Background(), Linearizable)
	if err != nil {
		t.Fatalf("Read after the crash: %v", err)
	}
	defer v.Release()
	missing := 0
	for _, k := range keys {
		if v.Get(rowsBucket, []byte(k)) == nil {
			missing++
		}
	}
	if missing > 0 {
		t.Errorf("%d of %d acknowledged commands are gone", missing, len(keys))
	}
	if got := number(v, revisionKey); got < uint64(len(keys)) {
		t.Errorf("revision %d after %d acknowledged commands", got, len(keys))
	}
	if err := s.files.state.verify(cfg.Log, nil); err != nil {
		t.Errorf("state file: %v", err)
	}
}

// TestKill kills a node under load again and again.
func TestKill(t *testing.T) {
	dir := t.TempDir()
	var all []string
	for round := range 10 {
		acked, stopped := child(t, dir, time.Duration(20+rand.IntN(150))*time.Millisecond)
		if stopped != "" {
			t.Fatalf("round %d: the node stopped by itself: %s", round, stopped)
		}
		all = append(all, acked...)
		if round%3 == 2 {
			holds(t, dir, all)
		}
	}
	holds(t, dir, all)
	t.Logf("10 kills, %d acknowledged commands", len(all))
}

// TestDiskFull: a file that cannot grow stops the node, nothing is
// acknowledged from then on, and all that was is there when there is room.
func TestDiskFull(t *testing.T) {
	// One limit stops the log, as its segment ends, the other the state file.
	for limit, file := range map[int]string{segmentBytes: "/wal", 6 << 20: stateName} {
		t.Run(fmt.Sprint(limit), func(t *testing.T) {
			dir := t.TempDir()
			cfg := crashConfig(dir)
			s, err := Open(cfg)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			// A state file begins with much free space: without it the limit is met.
			trim(t, cfg)
			acked, stopped := child(t, dir, 20*time.Second, fmt.Sprint(limitEnv, "=", limit))
			if !strings.Contains(stopped, ErrStopped.Error()) || !strings.Contains(stopped, "too large") || !strings.Contains(stopped, file) {
				t.Fatalf("got %q after %d acknowledged commands, want the node to stop as %s cannot grow", stopped, len(acked), file)
			}
			t.Logf("%d acknowledged, then %s", len(acked), stopped)
			holds(t, dir, acked)
		})
	}
}

// TestRecoveryEqualsNoCrash: the files as a crash of the process leaves them,
// with no flush and no farewell, lead to the state as it was.
func TestRecoveryEqualsNoCrash(t *testing.T) {
	cfg := testConfig(t)
	cfg.FlushInterval = time.Hour
	s := open(t, cfg)
	for round := range 4 {
		for i := range 100 {
			propose(t, s, fmt.Sprintf("put k%d %d", i*7%90, i))
			propose(t, s, fmt.Sprintf("del k%d", i*11%90))
			propose(t, s, fmt.Sprintf("alarm a%d 3600000", i))
		}
		if round%2 == 1 {
			flush(t, s) // and then more, so that both file and log count
			propose(t, s, "put after flush")
		}
		// Nothing runs but what is proposed, so the copy is of one moment.
		again := open(t, copyDir(t, cfg))
		if got, want := dump(t, again), dump(t, s); got != want {
			t.Errorf("round %d: the state after recovery differs:\n%s\n%s", round, got, want)
		}
		again.Close()
	}
}

func dump(t *testing.T, s *Store) string {
	t.Helper()
	v, err := s.Read(context.Background(), Linearizable)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Release()
	return dumpView(v)
}

func dumpView(v *View) string {
	var all strings.Builder
	for _, b := range []kv.Bucket{rowsBucket, alarmBucket} {
		it := v.Iterate(b)
		for k, val := it.Seek(nil); k != nil; k, val = it.Next() {
			fmt.Fprintf(&all, "%s=%s ", k, val)
		}
	}
	fmt.Fprint(&all, number(v, revisionKey), " ", number(v, hashKey))
	return all.String()
}
