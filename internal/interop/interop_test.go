//go:build peers

package interop

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var (
	nodesFlag    = flag.Int("interop.nodes", 3, "how many nodes stand where the MUPDATE master stood")
	repeatsFlag  = flag.Int("interop.repeats", 0, "how often each script is played with the leader killed at a random command")
	seedFlag     = flag.Uint64("interop.seed", 0, "the seed of those commands; 0: a new one")
	atFlag       = flag.Int("interop.at", 0, "the command of a script at which the leader is killed; 0: drawn from the seed")
	onlyFlag     = flag.String("interop.only", "", "only scripts whose names contain this")
	programsFlag = flag.String("interop.programs", "", "the directory of rookeryd and rookeryctl")
	logsFlag     = flag.String("interop.logs", "", "a directory for the logs of all servers, kept whatever the result")
)

// TestInterop plays the scripts of testdata to Debian's Cyrus and our nodes: once in
// peace, and then as often as it is told with the leader killed at a random command of
// each.
func TestInterop(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil {
		t.Fatal(err)
	}
	var scripts []*script
	for _, file := range files {
		s, err := readScript(file)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(s.name, *onlyFlag) {
			scripts = append(scripts, s)
		}
	}
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("%d nodes, %d scripts, seed %d", *nodesFlag, len(scripts), seed)
	all := &tally{commands: map[string]int{}, kills: map[string]int{}}
	for repeat := range *repeatsFlag + 1 {
		if !t.Run(fmt.Sprintf("pass%d", repeat), func(t *testing.T) { pass(t, scripts, seed, repeat, all) }) {
			break
		}
	}
	t.Logf("%d scripts played; the leader was killed %d times: %v; %d steps were refused and done again, ctl_mboxlist -m mended facts %d times, the replica was made anew %d times",
		all.played, all.killed, all.kills, all.repeated, all.mended, all.rebuilt)
	t.Logf("%d mails, all there; %d answers about mailboxes that exist, none of them no, and %d times later", all.mails, all.probes, all.later)
}

// tally is what all passes came to.
type tally struct {
	commands                                  map[string]int // of each script in peace
	kills                                     map[string]int // by the command that they were at
	played, killed, repeated, mended, rebuilt int
	mails, probes, later                      int
}

// pass plays all scripts in one lab.
func pass(t *testing.T, scripts []*script, seed uint64, repeat int, all *tally) {
	begun := time.Now()
	l, err := newLab(*programsFlag, *nodesFlag)
	defer func() {
		if t.Failed() || *logsFlag != "" {
			dir := *logsFlag
			if dir == "" {
				dir, _ = os.MkdirTemp("", prefix+"logs-")
			}
			if err := l.saveLogs(filepath.Join(dir, fmt.Sprint("pass", repeat))); err != nil {
				t.Error(err)
			}
			t.Logf("the logs are in %s", dir)
		}
		l.close()
		for _, problem := range l.failures() {
			t.Error(problem)
		}
	}()
	if err != nil {
		t.Fatal(err)
	}
	l.ledger.started("fe")
	l.ledger.probe()
	defer l.ledger.tell(all)
	t.Logf("%6.2fs  the lab stands", time.Since(begun).Seconds())
	for _, s := range scripts {
		t.Run(s.name, func(t *testing.T) {
			r := &run{lab: l, script: s, trace: t.Logf}
			before := l.counted()
			if repeat > 0 {
				r.killer = newKiller(l, random(seed, s.name, repeat), all.commands[s.name])
				if *atFlag > 0 {
					r.killer.at = *atFlag
				}
			}
			err := r.play()
			if err != nil {
				t.Error(err)
			}
			for _, problem := range l.failures() {
				t.Error(problem)
			}
			all.played++
			all.repeated += r.repeated
			all.mended += r.mended
			all.rebuilt += r.rebuilt
			if r.killer == nil {
				all.commands[s.name] = l.counted() - before
				t.Logf("%d commands on the wire", l.counted()-before)
				return
			}
			what := r.killer.end()
			if what == "" {
				t.Logf("there was no command %d at which the leader could be killed", r.killer.at)
				return
			}
			all.killed++
			all.kills[what]++
			t.Logf("the leader was killed at command %d of %d, %s; %d steps done again, mended by ctl_mboxlist -m: %d, the replica made anew: %d", r.killer.at, all.commands[s.name], what, r.repeated, r.mended, r.rebuilt)
		})
		if t.Failed() {
			return
		}
	}
}
