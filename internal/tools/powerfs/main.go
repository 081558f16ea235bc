// Command powerfs is a file system in memory that can lose its power.
//
// It keeps apart what a program has written and what it has made durable: the
// contents of a file by fsync or fdatasync of it, the entries of a directory by
// fsync of that. When the power of a volume is cut, every call on it fails; what
// is mounted afterwards is what a disk could hold then, drawn by a seed.
//
// # What a cut leaves of a file
//
// All that was synced. Of what was written since: nothing, everything, the first
// writes and a part of the next, or any blocks, each as after any of the writes
// to it; a block is a sector of 512 octets or a page of 4,096. The size is that
// of the last sync or any since, whatever became of the blocks; a block that was
// not written holds what was there before, or zeros. A file cut shorter is so or
// not. Fsync and fdatasync are the same: neither lets the size be lost.
//
// # What a cut leaves of directories
//
// All that a sync of the directory made durable; a sync of a file does not make
// its name so, as it does on ext4 and XFS. A rename is atomic. What of the rest
// survives has three kinds: "journal", the first changes of all directories in
// order; "directories", the first of each; "names", the first of each name.
//
// # What is not modelled
//
// Disks that say that they have written what they have not. Sectors that a
// torn write leaves unreadable, or full of neither old nor new. Names that appear
// in a directory before the file has an inode. Writes through a mapping, of which
// the programs tested here have none. Hard links, owners, attributes. Space:
// ENOSPC comes by a rule. Calls that the kernel answers from its cache do not
// fail without power: the processes are killed.
//
// # How it is told
//
// By lines of JSON on standard input, each answered by one on standard output;
// see request. A cut by a rule is told by a line that no request asked for. When
// the input ends, everything is unmounted.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path"
	"sync"
	"syscall"
)

// request is a line of input. Volume names it, or for "cut" all that are cut in
// one moment.
type request struct {
	Do      string   `json:"do"` // add, cut, restore, settle, rule, damage, remove
	Volumes []string `json:"volumes"`
	Point   string   `json:"point"` // add: where to mount the volume, which is empty
	Seed    uint64   `json:"seed"`  // restore: what survives a cut
	Order   order    `json:"order"` // restore: of directory entries
	Rule    *rule    `json:"rule"`  // rule: another one; none: they are all forgotten
	File    string   `json:"file"`  // damage
	At      int64    `json:"at"`
	Zero    bool     `json:"zero"` // a sector, not a bit
}

// response is a line of output.
type response struct {
	Error string `json:"error,omitempty"`
	// Cut is why power was cut by a rule; this answers no request.
	Cut   string `json:"cut,omitempty"`
	Power *power `json:"power,omitempty"` // restore: what was not durable
}

type server struct {
	mu      sync.Mutex // guards the volumes: see volume.mu
	volumes map[string]*volume

	outMu sync.Mutex
	out   *json.Encoder
}

func main() {
	// What ends a test is often sent to all of its processes. This one is to see
	// its input end, and take away what it has mounted.
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	s := &server{volumes: map[string]*volume{}, out: json.NewEncoder(os.Stdout)}
	err := s.run()
	for _, v := range s.volumes {
		err = errors.Join(err, v.unmount())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "powerfs:", err)
		os.Exit(1)
	}
}

func (s *server) run() error {
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var q request
		if err := json.Unmarshal(lines.Bytes(), &q); err != nil {
			return err
		}
		r, err := s.serve(q)
		if err != nil {
			r.Error = err.Error()
		}
		s.say(r)
	}
	return lines.Err()
}

func (s *server) say(r response) {
	s.outMu.Lock()
	defer s.outMu.Unlock()
	_ = s.out.Encode(r) // nobody may listen any more
}

func (s *server) serve(q request) (r response, err error) {
	if q.Do == "add" {
		v := newVolume(q.Volumes[0], q.Point, &s.mu)
		v.cut = s.cut
		s.volumes[v.name] = v
		return r, v.mount()
	}
	if q.Do == "cut" {
		s.mu.Lock()
		defer s.mu.Unlock()
		return r, s.end(q.Volumes)
	}
	v := s.volumes[q.Volumes[0]]
	if v == nil {
		return r, fmt.Errorf("no volume %s", q.Volumes[0])
	}
	switch q.Do {
	case "restore":
		p, err := v.restore(q.Seed, q.Order)
		return response{Power: &p}, err
	case "settle":
		return r, v.settle()
	case "rule":
		s.mu.Lock()
		defer s.mu.Unlock()
		if q.Rule == nil {
			v.rules = nil
			return r, nil
		}
		if _, err := path.Match(q.Rule.Path, ""); err != nil {
			return r, fmt.Errorf("rule: %q: %w", q.Rule.Path, err)
		}
		v.rules = append(v.rules, q.Rule)
		return r, nil
	case "damage":
		return r, v.damage(q.File, q.At, q.Zero)
	case "remove":
		delete(s.volumes, v.name)
		return r, v.unmount()
	}
	return r, fmt.Errorf("%q is nothing to do", q.Do)
}

// cut is what a rule calls, under the lock.
func (s *server) cut(volumes []string, why string) {
	if err := s.end(volumes); err == nil {
		s.say(response{Cut: why})
	}
}

// end takes the power from volumes, in one moment.
func (s *server) end(volumes []string) error {
	for _, name := range volumes {
		if s.volumes[name] == nil {
			return fmt.Errorf("no volume %s", name)
		}
	}
	for _, name := range volumes {
		s.volumes[name].off = true
	}
	return nil
}
