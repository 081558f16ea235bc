package main_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
)

// stop ends the process in order, so that its state file has all of it.
func (n *node) stop() {
	n.t.Helper()
	if err := n.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		n.t.Fatal(err)
	}
	select {
	case <-n.ended:
	case <-time.After(20 * time.Second):
		n.t.Fatalf("%s runs 20 s after SIGTERM\n%s", n.name, tail(n.log.String(), 20))
	}
	n.cmd = nil
}

func (n *node) stateFile() string { return filepath.Join(n.data, "shard-1", "state.db") }

// reseeded returns how often the node was re-seeded of late.
func (n *node) reseeded() int {
	text, _ := os.ReadFile(filepath.Join(n.data, "reseeds"))
	return bytes.Count(text, []byte("\n"))
}

// row is a row of the state file.
type row struct{ bucket, key, value []byte }

// rowsWith returns the rows of a stopped node whose value has text in it.
func (n *node) rowsWith(text string) (rows []row) {
	n.t.Helper()
	db, err := bolt.Open(n.stateFile(), 0o600, &bolt.Options{Timeout: time.Second})
	if err == nil {
		err = db.View(func(tx *bolt.Tx) error {
			return tx.ForEach(func(name []byte, b *bolt.Bucket) error {
				return b.ForEach(func(k, v []byte) error {
					if bytes.Contains(v, []byte(text)) {
						rows = append(rows, row{bytes.Clone(name), bytes.Clone(k), bytes.Clone(v)})
					}
					return nil
				})
			})
		})
	}
	if err := errors.Join(err, db.Close()); err != nil {
		n.t.Fatal(err)
	}
	return rows
}

// diverge puts old rows back into a stopped node's state and makes the file one
// that knows no sum of its rows, as files of format 1 do not: at the start the
// sum is made of what is there, every record of which is as it was written once.
func (n *node) diverge(rows []row) {
	n.t.Helper()
	db, err := bolt.Open(n.stateFile(), 0o600, &bolt.Options{Timeout: time.Second})
	if err == nil {
		err = db.Update(func(tx *bolt.Tx) error {
			for _, r := range rows {
				if err := tx.Bucket(r.bucket).Put(r.key, r.value); err != nil {
					return err
				}
			}
			b := tx.Bucket([]byte("raftstore"))
			meta := bytes.Clone(b.Get([]byte("meta")))
			meta = meta[:len(meta)-8-crc32.Size]
			meta[0] = 1
			meta = binary.BigEndian.AppendUint32(meta, crc32.Checksum(meta, crc32.MakeTable(crc32.Castagnoli)))
			return b.Put([]byte("meta"), meta)
		})
	}
	if err := errors.Join(err, db.Close()); err != nil {
		n.t.Fatal(err)
	}
}

// flip flips a bit wherever text stands in the state file.
func (n *node) flip(text string) {
	n.t.Helper()
	f, err := os.OpenFile(n.stateFile(), os.O_RDWR, 0)
	if err != nil {
		n.t.Fatal(err)
	}
	defer f.Close()
	all, err := os.ReadFile(n.stateFile())
	if err != nil {
		n.t.Fatal(err)
	}
	count := 0
	for at := 0; ; count++ {
		i := bytes.Index(all[at:], []byte(text))
		if i < 0 {
			break
		}
		at += i
		if _, err := f.WriteAt([]byte{all[at] ^ 0x10}, int64(at)); err != nil {
			n.t.Fatal(err)
		}
		at += len(text)
	}
	if count == 0 {
		n.t.Fatalf("%q is not in %s", text, n.stateFile())
	}
}

// TestReseed has a follower of three, under load, whose state is not what the
// others' is, and then is damaged, by the ways in which that is found. Each time
// it is cured without anybody's help, until it is too often.
func TestReseed(t *testing.T) {
	ctl := filepath.Join(t.TempDir(), "rookeryctl")
	if out, err := exec.Command("go", "build", "-o", ctl, "../rookeryctl").CombinedOutput(); err != nil {
		t.Fatalf("build rookeryctl: %v\n%s", err, out)
	}
	nodes := newCluster(t)
	lead := leaderOf(t, nodes)
	odd, other := nodes[(lead+1)%3], nodes[(lead+2)%3]
	odd.more = append(odd.more, "--scrub-interval", "300ms")
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	dial := func(nodes ...*node) *client.Client {
		t.Helper()
		var endpoints []string
		for _, n := range nodes {
			endpoints = append(endpoints, n.client)
		}
		c, err := client.Dial(endpoints, client.WithTimeout(30*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	c := dial(nodes...)
	alone := map[*node]*client.Client{}
	for _, n := range nodes {
		alone[n] = dial(n)
	}
	acl := func(marker string) {
		t.Helper()
		a := marker + "\tlrs\t"
		if _, err := c.Assert(ctx, client.Assert{Mailbox: "user.target", Server: "be9.kill.test", Statement: directory.Statement{Partition: "default", ACL: &a}}); err != nil {
			t.Fatal(err)
		}
	}

	var writers []*writer
	for i := range 2 {
		writers = append(writers, &writer{id: i, c: dial(nodes...), rng: rand.New(rand.NewPCG(5, uint64(i))), truth: map[directory.MailboxName]string{}})
	}
	// load writes a little until the returned function is called.
	load := func() (end func()) {
		stop := make(chan struct{})
		var wg sync.WaitGroup
		for _, w := range writers {
			w.answered = func(time.Time) { time.Sleep(10 * time.Millisecond) }
			wg.Go(func() {
				if err := w.run(ctx, stop); err != nil {
					t.Error(err)
				}
			})
		}
		return func() { close(stop); wg.Wait() }
	}
	// ctlSays runs rookeryctl at a node.
	ctlSays := func(n *node, args ...string) (string, error) {
		out, err := exec.Command(ctl, append([]string{"--endpoints", n.client}, args...)...).CombinedOutput()
		return string(out), err
	}
	// cured waits until the node was re-seeded so often and all are alike, and
	// returns what status said at another node while it was quarantined.
	cured := func(times int) string {
		t.Helper()
		seen := ""
		for begun := time.Now(); ; {
			if time.Since(begun) > time.Minute {
				t.Fatalf("not re-seeded for the %d. time\n%s", times, tail(odd.log.String(), 40))
			}
			if out, _ := ctlSays(other, "status"); strings.Contains(out, odd.name+" is quarantined") {
				seen = out
			}
			if odd.reseeded() >= times {
				break
			}
		}
		odd.ready()
		for begun := time.Now(); ; time.Sleep(100 * time.Millisecond) {
			var wrong []string
			for _, n := range nodes {
				st, err := alone[n].Status(ctx)
				switch {
				case err != nil:
					wrong = append(wrong, n.name+": "+err.Error())
				case st.Health == nil || st.Health.Verdict != client.VerdictSame || len(st.Health.Differs) > 0 || st.Health.Compared == nil || *st.Health.Compared > 5*time.Second:
					wrong = append(wrong, fmt.Sprintf("%s: %+v", n.name, st.Health))
				}
				if a, err := alone[n].ListAlarms(ctx); err != nil || len(a.List) > 0 {
					wrong = append(wrong, fmt.Sprintf("%s: alarms %+v, %v", n.name, a.List, err))
				}
			}
			if len(wrong) == 0 {
				break
			}
			if time.Since(begun) > 30*time.Second {
				t.Fatalf("30 s later:\n%s\n%s", strings.Join(wrong, "\n"), tail(odd.log.String(), 30))
			}
		}
		return seen
	}
	// whole looks at the node by itself.
	whole := func(marker string) {
		t.Helper()
		for _, n := range nodes {
			c := alone[n]
			if r, err := c.Lookup(ctx, "user.target", client.Details()); err != nil || len(r.Facts) != 1 || !strings.HasPrefix(r.Facts[0].ACL, marker) {
				t.Errorf("%s: user.target: %+v, %v, want %s", n.name, r.Facts, err, marker)
			}
			verify(t, ctx, c, writers, odd.reseeded())
		}
		if out, err := ctlSays(odd, "check"); err != nil {
			t.Errorf("rookeryctl check: %v\n%s", err, out)
		}
	}

	acl("marker1")
	end := load()
	odd.stop()
	rows := odd.rowsWith("marker1")
	if len(rows) == 0 {
		t.Fatal("marker1 is in no row")
	}
	odd.start()
	odd.ready()
	acl("marker2")
	time.Sleep(200 * time.Millisecond) // for it to have that too
	odd.stop()
	odd.diverge(rows)
	odd.start()
	seen := cured(1)
	end()
	if seen == "" {
		t.Error("status at another node never said that it is quarantined")
	} else if !slices.ContainsFunc(strings.Split(seen, "\n"), func(l string) bool {
		return strings.HasPrefix(l, odd.name) && strings.Contains(l, "quarantined: its state differs")
	}) {
		t.Errorf("status does not say so in the node's line:\n%s", seen)
	}
	whole("marker2")

	// A bit flips while it runs: the scrub finds it.
	end = load()
	time.Sleep(300 * time.Millisecond)
	end()
	time.Sleep(1500 * time.Millisecond) // until the state file is as it stays
	odd.flip("marker2\tlrs")
	end = load()
	cured(2)
	end()
	whole("marker2")

	// A bit flips while it is down: it is found at the start.
	end = load()
	odd.stop()
	odd.flip("marker2\tlrs")
	odd.start()
	cured(3)
	end()
	whole("marker2")

	// What comes again and again is not to be cured.
	odd.stop()
	odd.flip("marker2\tlrs")
	odd.start()
	select {
	case <-odd.ended:
	case <-time.After(30 * time.Second):
		t.Fatalf("re-seeded for ever\n%s", tail(odd.log.String(), 30))
	}
	last := tail(odd.log.String(), 1)
	if odd.exit == nil || !strings.Contains(last, "3 times within 1h0m0s") || !strings.Contains(last, "rookeryctl member replace "+odd.name) {
		t.Errorf("the fourth time: %v\n%s", odd.exit, last)
	}
	odd.cmd = nil
	for _, want := range []string{"a majority of the voters has another state", "state file scrubbed"} {
		if !strings.Contains(odd.log.String(), want) {
			t.Errorf("it was found otherwise: no %q in\n%s", want, odd.log.String())
		}
	}
	t.Logf("%s\n%s", seen, odd.log.String())
}

// TestReseedAlone: a damaged node that nobody can help says what to do.
func TestReseedAlone(t *testing.T) {
	n := newNode(t)
	n.more = []string{"--ballast", "0"}
	n.start()
	n.ready()
	c, err := client.Dial([]string{n.client})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Assert(t.Context(), client.Assert{Mailbox: "user.alone", Server: "marker.alone.test"}); err != nil {
		t.Fatal(err)
	}
	n.stop()
	n.flip("marker.alone")
	n.start()
	select {
	case <-n.ended:
	case <-time.After(20 * time.Second):
		t.Fatalf("it goes on\n%s", n.log.String())
	}
	last := tail(n.log.String(), 1)
	if n.exit == nil || !strings.Contains(last, "no other node has a copy") || !strings.Contains(last, "rookeryctl import") {
		t.Errorf("%v\n%s", n.exit, last)
	}
	n.cmd = nil
}
