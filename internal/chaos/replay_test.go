//go:build peers

package chaos

import (
	"bufio"
	"encoding/base64"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/directory/machine"
	"github.com/rookery-mail/rookery/internal/kv"
	"github.com/rookery-mail/rookery/internal/oracle"
	"github.com/rookery-mail/rookery/raftstore"
)

// The timing of a round is not in its seed, so a round in which machine and model differ
// may never come again. Its commands do: they are kept, and can be played by themselves.

// saveCommands writes what a round's log had, a command a line.
func saveCommands(file string, log []logged) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer f.Close()
	w := bufio.NewWriter(f)
	for i := range log {
		l := &log[i]
		fmt.Fprintf(w, "%d %d %d %s\n", l.index, l.stamp.Elapsed, l.stamp.Wall, base64.StdEncoding.EncodeToString(l.data))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return f.Close()
}

// loadCommands reads what saveCommands wrote.
func loadCommands(file string) (log []logged, err error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(text)) {
		var l logged
		var data string
		if _, err := fmt.Sscan(line, &l.index, &l.stamp.Elapsed, &l.stamp.Wall, &data); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		if l.data, err = base64.StdEncoding.DecodeString(data); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		if l.command, err = machine.DecodeCommand(l.data); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		log = append(log, l)
	}
	return log, nil
}

// replay plays a log and says behind which command machine and model differ first: to
// within `coarse` commands, and then, from the beginning again, exactly.
func replay(t *testing.T, file string) {
	log, err := loadCommands(file)
	if err != nil {
		t.Fatal(err)
	}
	const coarse = 250
	from := 0
	for _, every := range []int{coarse, 1} {
		at, difference := firstDifference(t, log, from, every)
		if difference == "" {
			say("%d commands: machine and model agree", len(log))
			return
		}
		if every == 1 {
			t.Errorf("chaos: entry %d, %s: %s", log[at].index, oracle.FormatCommand(log[at].command), difference)
		}
		from = max(0, at-coarse)
	}
}

// firstDifference compares results at each command, and states behind every so many
// from one on.
func firstDifference(t *testing.T, log []logged, from, every int) (at int, difference string) {
	m, o := machine.New(), oracle.New()
	memory := kv.NewMemory(m.Buckets()...)
	for i := range log {
		l := &log[i]
		tx := memory.Begin()
		encoded, err := m.Apply(tx, l.elapsed(), l.stamp.Wall, l.data)
		if err != nil {
			t.Fatal(err)
		}
		tx.Commit()
		got, err := machine.DecodeResult(encoded)
		if err != nil {
			t.Fatal(err)
		}
		if d := oracle.Compare(l.command.Op, got, o.Follow(l.elapsed(), l.command, got)); d != "" {
			return i, d
		}
		if i < from || (i-from)%every != 0 && i < len(log)-1 {
			continue
		}
		wait, _, err := m.Due(memory.Snapshot(), 0)
		if err != nil {
			t.Fatal(err)
		}
		if wait == 0 || o.Sweeping() {
			continue
		}
		d, err := o.Difference(m, memory.Snapshot())
		if err != nil {
			t.Fatal(err)
		}
		if d != "" {
			return i, d
		}
	}
	return 0, ""
}

// TestReplay: what was saved is what is played.
func TestReplay(t *testing.T) {
	var log []logged
	add := func(elapsed uint64, op machine.Op) {
		c := machine.Command{By: "test", Op: op}
		data := machine.EncodeCommand(c)
		log = append(log, logged{index: uint64(len(log) + 4), stamp: raftstore.Stamp{Elapsed: elapsed, Wall: 7}, command: c, data: data})
	}
	add(0, machine.Init{ClusterID: "test", Incarnation: 1, DigestKey: []byte("0123456789abcdef")})
	add(5, machine.SetBackend{Server: "be1", Create: true})
	add(5, machine.Assert{Mailbox: "user.alice", Server: "be1", Statement: directory.Statement{Partition: "default"}})
	file := t.TempDir() + "/commands"
	if err := saveCommands(file, log); err != nil {
		t.Fatal(err)
	}
	again, err := loadCommands(file)
	if err != nil || len(again) != len(log) {
		t.Fatalf("got %d commands of %d, %v", len(again), len(log), err)
	}
	for i := range log {
		if got, want := again[i], log[i]; got.index != want.index || got.stamp != want.stamp || string(got.data) != string(want.data) {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
	replay(t, file)
}
