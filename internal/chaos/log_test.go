//go:build peers

package chaos

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"testing"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/directory/machine"
	"github.com/rookery-mail/rookery/raftstore"
	"github.com/rookery-mail/rookery/raftstore/wal"
)

// committed is the committed log of a round: what of the nodes' logs is certain to
// be committed, by index. Add the logs of all disks there were.
type committed struct {
	entries map[uint64]*raftpb.Entry
	from    map[uint64]string // whose log said it first
}

func newCommitted() *committed {
	return &committed{entries: map[uint64]*raftpb.Entry{}, from: map[uint64]string{}}
}

// past is one log while it is read: the entries that stood in it last, and up to
// where they are known to be committed.
type past struct {
	entries map[uint64]*raftpb.Entry
	last    uint64 // the highest index of entries
	commit  uint64
}

// take takes a record in, in the order of writing.
func (p *past) take(r wal.Record) {
	switch {
	case r.Entry != nil:
		i := r.Entry.GetIndex()
		for ; p.last >= i && p.last > 0; p.last-- {
			delete(p.entries, p.last) // replaced
		}
		if r.Entry.GetTerm() == 0 {
			return // it says that the log ends before it
		}
		p.entries[i], p.last = r.Entry, i
	case r.Hard != nil:
		p.commit = max(p.commit, min(r.Hard.GetCommit(), max(p.last, p.commit)))
	case r.Mark != nil:
		// One that the log itself had reached: all up to there is committed. Else a
		// snapshot took its place: what was not known to be committed is void.
		if e := p.entries[r.Mark.Index]; e != nil && e.GetTerm() == r.Mark.Term {
			p.commit = max(p.commit, r.Mark.Index)
			return
		}
		if r.Mark.Index <= p.commit {
			return
		}
		maps.DeleteFunc(p.entries, func(i uint64, _ *raftpb.Entry) bool { return i > p.commit })
		p.last, p.commit = r.Mark.Index, r.Mark.Index
	}
}

// add reads the log in dir, of a process that has ended. applied is how far that
// had certainly come.
func (c *committed) add(name, dir string, applied uint64) error {
	p := past{entries: map[uint64]*raftpb.Entry{}}
	err := wal.Records(dir, func(r wal.Record) error {
		p.take(r)
		return nil
	})
	if err != nil {
		return fmt.Errorf("the log of %s: %w", name, err)
	}
	return c.merge(name, &p, applied)
}

// merge holds what one log has committed against what the others have.
func (c *committed) merge(name string, p *past, applied uint64) error {
	commit := max(p.commit, min(applied, p.last))
	for _, i := range slices.Sorted(maps.Keys(p.entries)) {
		if i > commit {
			break
		}
		e, known := p.entries[i], c.entries[i]
		if known == nil {
			c.entries[i], c.from[i] = e, name
			continue
		}
		if known.GetTerm() != e.GetTerm() || known.GetType() != e.GetType() || !bytes.Equal(known.GetData(), e.GetData()) {
			return fmt.Errorf("two histories: entry %d is of term %d on %s, of term %d on %s", i, known.GetTerm(), c.from[i], e.GetTerm(), name)
		}
	}
	return nil
}

// logged is one command of the committed log.
type logged struct {
	index   uint64
	command machine.Command
	stamp   raftstore.Stamp
	data    []byte
}

// commands are those up to index last, in order.
func (c *committed) commands(last uint64) (all []logged, err error) {
	indexes := slices.Sorted(maps.Keys(c.entries))
	if len(indexes) == 0 {
		return nil, fmt.Errorf("no entry of the log is left")
	}
	next := indexes[0]
	for _, i := range indexes {
		if i != next {
			return nil, fmt.Errorf("entries %d to %d of the log are nowhere", next, i-1)
		}
		next++
		e := c.entries[i]
		if e.GetType() != raftpb.EntryNormal {
			continue
		}
		data, stamps, err := raftstore.Commands(e.GetData())
		if err != nil {
			return nil, fmt.Errorf("entry %d: %w", i, err)
		}
		for j := range data {
			command, err := machine.DecodeCommand(data[j])
			if err != nil {
				return nil, fmt.Errorf("entry %d, command %d: %w", i, j, err)
			}
			all = append(all, logged{index: i, command: command, stamp: stamps[j], data: data[j]})
		}
	}
	if next <= last {
		return nil, fmt.Errorf("the log ends at entry %d, %d was applied", next-1, last)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("no command in %d entries of the log", len(indexes))
	}
	if _, ok := all[0].command.Op.(machine.Init); !ok {
		return nil, fmt.Errorf("the log begins with %T at entry %d, want the cluster's first command", all[0].command.Op, all[0].index)
	}
	return all, nil
}

// elapsed is the stamp's, in directory time.
func (l *logged) elapsed() directory.Time { return directory.Time(l.stamp.Elapsed) }

// TestPast reads logs in which entries were replaced and snapshots installed: only
// what is certain to be committed counts.
func TestPast(t *testing.T) {
	entry := func(term, index uint64) wal.Record {
		return wal.Record{Entry: &raftpb.Entry{Term: new(term), Index: new(index), Data: []byte{byte(term)}}}
	}
	hard := func(commit uint64) wal.Record {
		return wal.Record{Hard: &raftpb.HardState{Commit: new(commit)}}
	}
	mark := func(term, index uint64) wal.Record { return wal.Record{Mark: &wal.Position{Term: term, Index: index}} }
	for _, tt := range []struct {
		name    string
		records []wal.Record
		applied uint64
		want    string
	}{
		{"not known to be committed", []wal.Record{mark(1, 1), entry(2, 2), entry(2, 3), hard(2)}, 0, "2/2"},
		{"applied", []wal.Record{mark(1, 1), entry(2, 2), entry(2, 3), hard(2)}, 3, "2/2 2/3"},
		{"replaced", []wal.Record{mark(1, 1), entry(2, 2), entry(2, 3), entry(2, 4), entry(3, 3), hard(9)}, 0, "2/2 3/3"},
		{"marked on its way", []wal.Record{mark(1, 1), entry(2, 2), entry(2, 3), mark(2, 3)}, 0, "2/2 2/3"},
		{"snapshot ahead", []wal.Record{mark(1, 1), entry(2, 2), entry(2, 3), hard(2), mark(3, 9), entry(3, 10), hard(10)}, 0, "2/2 3/10"},
		{"snapshot over a void end", []wal.Record{mark(1, 1), entry(2, 2), entry(3, 3), entry(3, 4), hard(2), entry(0, 4), mark(4, 3), entry(4, 4), hard(4)}, 0, "2/2 4/4"},
	} {
		p := past{entries: map[uint64]*raftpb.Entry{}}
		for _, r := range tt.records {
			p.take(r)
		}
		c := newCommitted()
		if err := c.merge("n1", &p, tt.applied); err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, i := range slices.Sorted(maps.Keys(c.entries)) {
			got += fmt.Sprintf(" %d/%d", c.entries[i].GetTerm(), i)
		}
		if got != " "+tt.want {
			t.Errorf("%s: got%s, want %s", tt.name, got, tt.want)
		}
	}
	c := newCommitted()
	a, b := past{entries: map[uint64]*raftpb.Entry{}}, past{entries: map[uint64]*raftpb.Entry{}}
	a.take(entry(2, 2))
	b.take(entry(3, 2))
	if err := c.merge("n1", &a, 2); err != nil {
		t.Fatal(err)
	}
	if err := c.merge("n2", &b, 2); err == nil {
		t.Error("two histories were taken for one")
	}
}
