//go:build upgrade

package upgrade

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rookery-mail/rookery/internal/logbuf"
)

var (
	mixedFor    = flag.Duration("upgrade.time", 2*time.Second, "how long a mixed cluster is under load in each of its states")
	programsDir = flag.String("upgrade.programs", "", "where built releases are kept; default: for this run only")
	givenDaemon = flag.String("rookeryd", "", "the present release's rookeryd; default: built from these sources")
	givenCtl    = flag.String("rookeryctl", "", "and its rookeryctl")
)

// programs are the two of one release.
type programs struct{ name, rookeryd, rookeryctl string }

// built keeps what was built in this run.
var built struct {
	sync.Mutex
	dir string
	of  map[string]programs
}

func TestMain(m *testing.M) {
	flag.Parse()
	code := m.Run()
	if built.dir != "" && *programsDir == "" {
		_ = os.RemoveAll(built.dir)
	}
	os.Exit(code)
}

// root is the repository's.
func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func run(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// build returns the programs of a release: Present, one of Releases by its name, Next
// or Hasty.
func build(t *testing.T, name string) programs {
	t.Helper()
	built.Lock()
	defer built.Unlock()
	if p, ok := built.of[name]; ok {
		return p
	}
	if built.of == nil {
		built.of = make(map[string]programs)
		if built.dir = *programsDir; built.dir == "" {
			dir, err := os.MkdirTemp("", "rookery-releases-")
			if err != nil {
				t.Fatal(err)
			}
			built.dir = dir
		}
	}
	dir, err := filepath.Abs(filepath.Join(built.dir, name))
	if err != nil {
		t.Fatal(err)
	}
	p := programs{name, filepath.Join(dir, "rookeryd"), filepath.Join(dir, "rookeryctl")}
	source := root(t)
	begun := time.Now()
	args := []string{"build", "-trimpath", "-ldflags", "-X github.com/rookery-mail/rookery/internal/obs.version=" + name, "-o", dir + "/"}
	switch name {
	case Present:
		if *givenDaemon != "" && *givenCtl != "" {
			return programs{name, *givenDaemon, *givenCtl}
		}
	case Next, Hasty:
		args = append(args, "-overlay", overlay(t, dir, edits[name]))
	default:
		if _, err := os.Stat(p.rookeryd); err == nil {
			built.of[name] = p
			return p
		}
		source = filepath.Join(dir, "source")
		checkout(t, commitOf(t, name), source)
	}
	run(t, source, "go", append(args, "./cmd/rookeryd", "./cmd/rookeryctl")...)
	if source != root(t) {
		_ = os.RemoveAll(source)
	}
	t.Logf("%s built in %s", name, time.Since(begun).Truncate(time.Millisecond))
	built.of[name] = p
	return p
}

func commitOf(t *testing.T, name string) string {
	t.Helper()
	for _, r := range Releases() {
		if r.Name == name {
			return r.Commit
		}
	}
	t.Fatalf("no release is called %s; releases.go has them", name)
	return ""
}

// checkout puts the files of a commit into dir.
func checkout(t *testing.T, commit, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(dir, "..", "source.tar")
	cmd := exec.Command("git", "archive", "--format=tar", "-o", archive, commit)
	cmd.Dir = root(t)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("this checkout does not have the commit %s of that release (`git fetch --unshallow` gets it): %v\n%s", commit, err, out)
	}
	run(t, dir, "tar", "-xf", archive)
	_ = os.Remove(archive)
}

// node is a process of a release on a data directory of its own.
type node struct {
	t                  *testing.T
	name, data         string
	client, peer, http string
	flags              []string
	log                logbuf.Buffer
	cmd                *exec.Cmd
	ended              chan struct{} // closed when the process has
	code               int           // its exit code; set before
	release            string        // that runs
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func newNode(t *testing.T, name string, flags ...string) *node {
	t.Helper()
	n := &node{t: t, name: name, data: filepath.Join(t.TempDir(), name), client: freePort(t), peer: freePort(t), http: freePort(t), flags: append(flags, "--ballast", "0")}
	t.Cleanup(n.kill)
	return n
}

// start starts the node as that release. Its log begins anew.
func (n *node) start(p programs) {
	n.t.Helper()
	n.log.Take()
	n.cmd = exec.Command(p.rookeryd, append([]string{
		"--name", n.name, "--data", n.data, "--listen-client", n.client, "--listen-peer", n.peer, "--listen-http", n.http,
	}, n.flags...)...)
	n.cmd.Stderr = &n.log
	if err := n.cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	ended, cmd := make(chan struct{}), n.cmd
	n.ended, n.release = ended, p.name
	go func() {
		_ = cmd.Wait()
		n.code = cmd.ProcessState.ExitCode()
		close(ended)
	}()
}

func (n *node) kill() {
	if n.cmd == nil {
		return
	}
	_ = n.cmd.Process.Kill() // it may have ended
	<-n.ended
	n.cmd = nil
}

// stop tells the node to end, as systemd does.
func (n *node) stop() {
	n.t.Helper()
	if err := n.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		n.t.Fatalf("%s: %v\n%s", n.name, err, n.log.String())
	}
	n.wait(time.Minute)
	if n.code != 0 {
		n.t.Fatalf("%s, told to end: exit code %d\n%s", n.name, n.code, n.log.String())
	}
	n.cmd = nil
}

// wait waits until the process has ended by itself.
func (n *node) wait(patience time.Duration) {
	n.t.Helper()
	select {
	case <-n.ended:
	case <-time.After(patience):
		n.t.Fatalf("%s did not end in %s\n%s", n.name, patience, n.log.String())
	}
}

// refuses waits until the node has ended with exit code 1 and these words.
func (n *node) refuses(words ...string) {
	n.t.Helper()
	n.wait(time.Minute)
	if n.code != 1 {
		n.t.Errorf("%s, release %s: got exit code %d, want 1", n.name, n.release, n.code)
	}
	for _, w := range words {
		if !strings.Contains(n.log.String(), w) {
			n.t.Errorf("%s, release %s: want %q in what it says:\n%s", n.name, n.release, w, n.log.String())
		}
	}
	n.cmd = nil
}

func (n *node) get(path string) bool {
	c := http.Client{Timeout: time.Second}
	resp, err := c.Get("http://" + n.http + path)
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// ready waits until the node answers.
func (n *node) ready() {
	n.t.Helper()
	until(n.t, time.Minute, n.name+" to be ready", func() bool {
		select {
		case <-n.ended:
			n.t.Fatalf("%s, release %s, ended with exit code %d\n%s", n.name, n.release, n.code, n.log.String())
		default:
		}
		return n.get("/readyz")
	})
}

func (n *node) leads() bool { return n.cmd != nil && n.get("/leader") }

// ctl runs rookeryctl against some nodes and returns what it says and its exit code.
func ctl(t *testing.T, p programs, nodes []*node, args ...string) (string, int) {
	t.Helper()
	var endpoints []string
	for _, n := range nodes {
		endpoints = append(endpoints, n.client)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, p.rookeryctl, append([]string{"--endpoints", strings.Join(endpoints, ","), "--timeout", "30s"}, args...)...)
	out, err := cmd.CombinedOutput()
	exit, ok := errors.AsType[*exec.ExitError](err)
	if err != nil && !ok {
		t.Fatalf("rookeryctl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	if ok {
		return string(out), exit.ExitCode()
	}
	return string(out), 0
}

// must is ctl that has to succeed.
func must(t *testing.T, p programs, nodes []*node, args ...string) string {
	t.Helper()
	out, code := ctl(t, p, nodes, args...)
	if code != 0 {
		t.Fatalf("rookeryctl %s: exit code %d\n%s", strings.Join(args, " "), code, out)
	}
	return out
}

// refused is ctl that has to be refused, with these words.
func refused(t *testing.T, p programs, nodes []*node, words []string, args ...string) {
	t.Helper()
	out, code := ctl(t, p, nodes, args...)
	if code != 1 {
		t.Errorf("rookeryctl %s: got exit code %d, want 1\n%s", strings.Join(args, " "), code, out)
	}
	for _, w := range words {
		if !strings.Contains(out, w) {
			t.Errorf("rookeryctl %s: want %q in\n%s", strings.Join(args, " "), w, out)
		}
	}
}

// names is those of nodes, with their releases.
func names(nodes []*node) string {
	var all []string
	for _, n := range nodes {
		all = append(all, fmt.Sprintf("%s %s", n.name, n.release))
	}
	return strings.Join(all, ", ")
}
