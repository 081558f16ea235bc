//go:build peers

package interop

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rookery-mail/rookery/internal/netlab"
)

// lab is a murder: backends, a replica, a frontend, and the nodes where their MUPDATE
// master stood.
type lab struct {
	dir     string // a tmpfs
	net     network
	cluster *cluster
	servers map[string]*server
	ledger  *ledger
	told    atomic.Bool // to end: what was made on the machine is to be removed
	end     func()      // of what waits for that

	mu       sync.Mutex
	problems []string
	wire     *os.File // what was said, as it was said
	counting bool
	commands int                     // of Cyrus to the nodes, counted
	killer   *killer                 // is told of them; may be nil
	other    func(host, word string) // so is this
}

// fail notes a violation. What runs goes on: what else is found may tell more.
func (l *lab) fail(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.problems) < 50 {
		l.problems = append(l.problems, fmt.Sprintf(format, args...))
	}
}

// failures returns what was noted since it was last asked.
func (l *lab) failures() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	found := l.problems
	l.problems = nil
	return found
}

// onCommand is called by the relays before a command reaches a node. Of those that count,
// which are all but the first and the last of a connection, n is the number.
func (l *lab) onCommand(host, word string) {
	l.mu.Lock()
	n := 0
	if l.counting && word != "AUTHENTICATE" && word != "LOGOUT" {
		l.commands++
		n = l.commands
	}
	killer, other := l.killer, l.other
	l.mu.Unlock()
	if other != nil {
		other(host, word)
	}
	if killer != nil && n > 0 {
		killer.command(n, word)
	}
}

// count has commands counted, or not.
func (l *lab) count(on bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.counting = on
}

// counted is how many commands were counted.
func (l *lab) counted() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.commands
}

// also has f called for each command; nil for nobody.
func (l *lab) also(f func(host, word string)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.other = f
}

// newLab makes and starts a murder.
func newLab(programs string, nodes int) (l *lab, err error) {
	l = &lab{servers: map[string]*server{}, counting: true}
	l.ledger = newLedger(l)
	l.end = netlab.OnSignal(func(os.Signal) { l.told.Store(true) })
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	if l.dir, err = os.MkdirTemp("", prefix); err != nil {
		return l, err
	}
	if err := netlab.Run("mount -t tmpfs -o size=1g,mode=755,dev "+prefix+"lab "+l.dir, "chmod 755 "+l.dir); err != nil {
		return l, err
	}
	if l.wire, err = os.Create(filepath.Join(l.dir, "wire.log")); err != nil {
		return l, err
	}
	if l.net, err = newNetwork(nodes); err != nil {
		return l, err
	}
	for _, name := range []string{"be1", "be2", "rep", "fe", "be3"} {
		if err := l.net.add(name); err != nil {
			return l, err
		}
		replica := ""
		if name == "be1" {
			replica = "rep"
		}
		if l.servers[name], err = newServer(l, name, name == "fe", replica); err != nil {
			return l, err
		}
	}
	if l.cluster, err = newCluster(l, programs, nodes); err != nil {
		return l, err
	}
	// The replica first: be1 begins to replicate at once.
	errs := make(chan error, 2)
	for _, names := range [][]string{{"rep", "be1"}, {"be2"}} {
		go func() {
			var err error
			for _, name := range names {
				if err == nil {
					err = l.servers[name].start()
				}
			}
			errs <- err
		}()
	}
	for range 2 {
		if e := <-errs; e != nil {
			err = e
		}
	}
	if err != nil {
		return l, err
	}
	if out, err := l.cluster.rookeryctl("groups", "set", "g1", "--members", "be1"+domain+",rep"+domain); err != nil {
		return l, fmt.Errorf("%w: %s", err, out)
	}
	return l, l.servers["fe"].start()
}

// random is chance from the seed.
func random(seed uint64, what string, repeat int) *rand.Rand {
	h := seed
	for _, b := range []byte(fmt.Sprint(what, "/", repeat)) {
		h = (h ^ uint64(b)) * 1099511628211
	}
	return rand.New(rand.NewPCG(seed, h))
}

// names are the servers that are there, in order.
func (l *lab) names() []string { return sorted(l.servers) }

// backends are the servers with mail of their own that run.
func (l *lab) backends() (all []*server) {
	for _, name := range l.names() {
		if s := l.servers[name]; !s.frontend && s.cmd != nil {
			all = append(all, s)
		}
	}
	return all
}

// saveLogs writes down what servers and nodes said.
func (l *lab) saveLogs(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for name, s := range l.servers {
		if s.log != nil {
			if err := s.log.save(filepath.Join(dir, name+".log")); err != nil {
				return err
			}
		}
	}
	files, err := filepath.Glob(filepath.Join(l.dir, "*.log"))
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, filepath.Base(file)), text, 0o600)
		}
		if err != nil {
			return err
		}
	}
	return err
}

// close ends and removes all of it.
func (l *lab) close() {
	defer l.end()
	l.ledger.close()
	for _, s := range l.servers {
		s.crash()
		if s.log != nil {
			s.log.close()
		}
	}
	if l.cluster != nil {
		if err := l.cluster.close(); err != nil {
			l.fail("%v", err)
		}
	}
	l.mu.Lock()
	if l.wire != nil {
		l.wire.Close()
		l.wire = nil
	}
	l.mu.Unlock()
	if l.dir != "" {
		for _, left := range processes(l.dir) {
			l.fail("a process is left: %s", left)
		}
	}
	if l.net.Network != nil {
		l.net.close()
	}
	if l.dir != "" {
		// A process that was killed a moment ago may still be leaving.
		for range 20 {
			if err := netlab.Run("umount " + l.dir); err == nil {
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
		if err := os.RemoveAll(l.dir); err != nil {
			l.fail("%v", err)
		}
	}
}

// processes are those whose arguments name a directory.
func processes(dir string) (found []string) {
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range all {
		b, _ := os.ReadFile(file) // it may have ended
		if text := strings.ReplaceAll(string(b), "\x00", " "); strings.Contains(text, dir+"/") {
			found = append(found, text)
		}
	}
	return found
}
