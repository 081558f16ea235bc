package cmd_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
)

// bin is where TestMain builds the programs.
var bin string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		flag.Parse()
		dir, err := os.MkdirTemp("", "rookery-script-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		build := exec.Command("go", "build", "-o", dir+"/", "./rookeryd", "./rookeryctl", "./rookery-gateway")
		build.Stdout, build.Stderr = os.Stdout, os.Stderr
		if err := build.Run(); err != nil {
			fmt.Fprintln(os.Stderr, "building the programs:", err)
			return 1
		}
		bin = dir
		return m.Run()
	}())
}

// TestScripts runs testdata/script: the built programs as their users run them.
//
// Besides what testscript has, a script can say
//
//	node start NAME     start a rookeryd of that name and ask it from now on
//	node stop NAME      SIGTERM: it must end well
//	node kill NAME      SIGKILL
//	node ask NAME       ask that one from now on
//	node wipe NAME      remove the state of one that does not run
//	node refuses NAME   start it: it must end with exit code 1; the next stderr
//	                    is what it said
//	node join NAME      start one of the cluster, without a state, with --join; it
//	                    waits to be added
//	node serves NAME    wait until it serves, after join
//	cluster start N FLAGS
//	                    start a cluster of n1 to nN, and ask all of them; an @ in
//	                    the flags is the node's name; $PEER1 to $PEERN are where
//	                    they meet each other
//	cluster port        $PORT is a port of loopback that is free
//	cluster ask         ask all nodes of the cluster that run
//	cluster leader      wait for a leader; $LEADER is its name, $FOLLOWER and
//	                    $FOLLOWER2 are two others that run
//	exits CODE ARGS...  run rookeryctl, which must exit with CODE; the next
//	                    stdout and stderr are about it
//	answers FILE FLAGS  what LIST and MYRIGHTS answer is what the file says
//	samefacts A B       two nodes have the same facts where both speak
//	shape FILE          the last output is JSON whose fields are those of the file
//	repeat N COMMAND    run rookeryctl N times, with @ replaced by 1 to N
//	until TEXT ARGS...  run rookeryctl until its stdout has a line that fits TEXT
//	told FILE TEXT N    wait until N lines of a file fit TEXT
//	mupdate ...         see mupdateCommand
//	keep NAME           $NAME is the last stdout
//	flip FILE           turn a bit over in the middle of a file
//	cut FILE            take the last octet of a file away
func TestScripts(t *testing.T) {
	data, err := filepath.Abs("../testdata/cyrus")
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("PATH", bin+string(os.PathListSeparator)+env.Getenv("PATH"))
			env.Setenv("DATA", data)
			env.Values[nodesKey{}] = &nodes{dir: env.WorkDir, running: make(map[string]*node), args: make(map[string][]string)}
			env.Defer(func() { env.Values[nodesKey{}].(*nodes).killAll() })
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"node":      nodeCommand,
			"cluster":   clusterCommand,
			"exits":     exits,
			"answers":   answers,
			"samefacts": sameFacts,
			"shape":     shape,
			"repeat":    repeat,
			"until":     until,
			"told":      told,
			"mupdate":   mupdateCommand,
			"keep":      keep,
			"flip": func(ts *testscript.TestScript, _ bool, args []string) {
				damage(ts, args, func(b []byte) []byte { b[len(b)/2] ^= 4; return b })
			},
			"cut": func(ts *testscript.TestScript, _ bool, args []string) {
				damage(ts, args, func(b []byte) []byte { return b[:len(b)-1] })
			},
		},
	})
}

type nodesKey struct{}

// nodes are the rookeryd that one script has started.
type nodes struct {
	dir     string
	running map[string]*node
	args    map[string][]string // of nodes of the cluster, by name
}

type node struct {
	cmd     *exec.Cmd
	address string
	http    string
	log     *os.File
	found   chan [2]string // where it serves
	drained chan struct{}  // its standard error was read to the end
}

func (ns *nodes) killAll() {
	for _, n := range ns.running {
		n.cmd.Process.Kill()
		<-n.drained
		n.cmd.Wait()
		n.log.Close()
	}
}

func nodeCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 || len(args) > 2 && args[0] != "start" && args[0] != "refuses" {
		ts.Fatalf("usage: node start|stop|kill|ask|wipe|refuses NAME; node start|refuses NAME FLAGS")
	}
	ns := ts.Value(nodesKey{}).(*nodes)
	name := args[1]
	n := ns.running[name]
	switch idle := slices.Contains([]string{"start", "wipe", "refuses", "join"}, args[0]); {
	case idle && n != nil:
		ts.Fatalf("node %s is running", name)
	case !idle && n == nil:
		ts.Fatalf("no node %s is running", name)
	}
	switch args[0] {
	case "start":
		n, err := ns.launch(name, args[2:]...)
		ts.Check(err)
		ns.running[name] = n
		ts.Check(n.serves())
		ts.Setenv("ROOKERY_ENDPOINTS", n.address)
	case "join":
		ts.Check(ns.join(name))
	case "serves":
		ts.Check(n.serves())
	case "wipe":
		ts.Check(os.RemoveAll(filepath.Join(ns.dir, name)))
	case "refuses":
		err := ts.Exec(filepath.Join(bin, "rookeryd"), ns.command(name, args[2:]...)...)
		if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 1 {
			ts.Fatalf("node %s: got %v, want exit code 1", name, err)
		}
	case "ask":
		ts.Setenv("ROOKERY_ENDPOINTS", n.address)
	case "stop", "kill":
		delete(ns.running, name)
		signal := os.Signal(syscall.SIGTERM)
		if args[0] == "kill" {
			signal = syscall.SIGKILL
		}
		ts.Check(n.cmd.Process.Signal(signal))
		<-n.drained
		err := n.cmd.Wait()
		n.log.Close()
		if args[0] == "stop" && err != nil {
			ts.Fatalf("node %s: %v; its log is %s", name, err, n.log.Name())
		}
	default:
		ts.Fatalf("node %s: it is start, stop, kill, ask, wipe, refuses, join or serves", args[0])
	}
}

// join starts a node of the cluster with --join, and waits until it asks to be added.
func (ns *nodes) join(name string) error {
	more := ns.args[name]
	if len(more) < 2 || more[0] != "--initial-cluster" {
		return fmt.Errorf("node %s is not of the cluster, or has joined already", name)
	}
	var addresses []string
	for part := range strings.SplitSeq(more[1], ",") {
		other, address, _ := strings.Cut(part, "=")
		if other != name {
			addresses = append(addresses, address)
		}
	}
	ns.args[name] = append([]string{"--join", strings.Join(addresses, ",")}, more[2:]...)
	n, err := ns.launch(name)
	if err != nil {
		return err
	}
	ns.running[name] = n
	return n.logs("waiting to be added")
}

// serving finds where a node serves in its log.
var serving = regexp.MustCompile(`msg=serving .*\baddr=(\S+) .*\bhttp=(\S+)`)

// command is the command line of a node whose state is in dir/NAME.
func (ns *nodes) command(name string, flags ...string) []string {
	const loopback = "127.0.0.1:0"
	args := []string{"--name", name, "--data", filepath.Join(ns.dir, name)}
	if more := ns.args[name]; more != nil {
		return slices.Concat(args, more, flags)
	}
	return slices.Concat(args, []string{"--listen-client", loopback, "--listen-peer", loopback, "--listen-http", loopback}, flags)
}

// launch starts a node.
func (ns *nodes) launch(name string, flags ...string) (*node, error) {
	n := &node{drained: make(chan struct{}), found: make(chan [2]string, 1)}
	n.cmd = exec.Command(filepath.Join(bin, "rookeryd"), ns.command(name, flags...)...)
	n.cmd.Dir = ns.dir
	stderr, err := n.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if n.log, err = os.OpenFile(filepath.Join(ns.dir, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644); err != nil {
		return nil, err
	}
	if err := n.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(n.drained)
		lines := bufio.NewScanner(io.TeeReader(stderr, n.log))
		for lines.Scan() {
			if m := serving.FindStringSubmatch(lines.Text()); m != nil {
				n.found <- [2]string{m[1], m[2]}
			}
		}
	}()
	return n, nil
}

// serves waits until the node does.
func (n *node) serves() (err error) {
	select {
	case at := <-n.found:
		n.address, n.http = at[0], at[1]
		return nil
	case <-n.drained:
		err = errors.New("it ended")
	case <-time.After(time.Minute):
		err = errors.New("it does not serve after a minute")
	}
	log, _ := os.ReadFile(n.log.Name())
	return fmt.Errorf("rookeryd: %w\n%s", err, log)
}

// ready waits until the node answers questions: it serves before it has heard of its
// cluster's life.
func (n *node) ready() error {
	for range 6000 {
		resp, err := http.Get("http://" + n.http + "/readyz")
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	log, _ := os.ReadFile(n.log.Name())
	return fmt.Errorf("rookeryd: it is not ready after a minute\n%s", log)
}

// logs waits until the node has logged a text.
func (n *node) logs(text string) error {
	for range 3000 {
		log, err := os.ReadFile(n.log.Name())
		if err != nil || strings.Contains(string(log), text) {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Errorf("%s does not say %q after 30 s", n.log.Name(), text)
}

func clusterCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: cluster start N FLAGS|ask|port|leader")
	}
	ns := ts.Value(nodesKey{}).(*nodes)
	switch args[0] {
	case "start":
		if len(args) < 2 {
			ts.Fatalf("usage: cluster start N FLAGS")
		}
		count, err := strconv.Atoi(args[1])
		ts.Check(err)
		ts.Check(ns.found(count, args[2:]...))
		for i := range count {
			name := fmt.Sprintf("n%d", i+1)
			ts.Setenv(fmt.Sprintf("PEER%d", i+1), ns.args[name][slices.Index(ns.args[name], "--listen-peer")+1])
		}
		fallthrough
	case "ask":
		ts.Setenv("ROOKERY_ENDPOINTS", strings.Join(ns.addresses(), ","))
	case "port":
		ports, err := freePorts(1)
		ts.Check(err)
		ts.Setenv("PORT", ports[0])
	case "leader":
		leader, others := ns.leader(ts)
		ts.Setenv("LEADER", leader)
		for i, key := range []string{"FOLLOWER", "FOLLOWER2"} {
			if i < len(others) {
				ts.Setenv(key, others[i])
			}
		}
	default:
		ts.Fatalf("cluster %s: it is start, ask, port or leader", args[0])
	}
}

// found starts a cluster and waits until all of it serves.
func (ns *nodes) found(count int, flags ...string) error {
	ports, err := freePorts(3 * count)
	if err != nil {
		return err
	}
	var names, list []string
	for i := range count {
		names = append(names, fmt.Sprintf("n%d", i+1))
		list = append(list, names[i]+"="+ports[3*i])
	}
	for i, name := range names {
		ns.args[name] = []string{
			"--initial-cluster", strings.Join(list, ","),
			"--listen-peer", ports[3*i], "--listen-client", ports[3*i+1], "--listen-http", ports[3*i+2],
		}
		for _, f := range flags {
			ns.args[name] = append(ns.args[name], strings.ReplaceAll(f, "@", name))
		}
		if ns.running[name], err = ns.launch(name); err != nil {
			delete(ns.running, name)
			return err
		}
	}
	for _, name := range names {
		if err := ns.running[name].serves(); err != nil {
			return err
		}
	}
	for _, name := range names {
		if err := ns.running[name].ready(); err != nil {
			return err
		}
	}
	return nil
}

// addresses are where the nodes of the cluster that run serve.
func (ns *nodes) addresses() (all []string) {
	for name := range ns.args {
		if n := ns.running[name]; n != nil && n.address != "" {
			all = append(all, n.address)
		}
	}
	slices.Sort(all)
	return all
}

// leader waits until one node of the cluster leads.
func (ns *nodes) leader(ts *testscript.TestScript) (leader string, others []string) {
	for range 3000 {
		leader, others = "", nil
		for name := range ns.args {
			n := ns.running[name]
			if n == nil || n.http == "" {
				continue
			}
			resp, err := http.Get("http://" + n.http + "/leader")
			if err == nil {
				resp.Body.Close()
			}
			if err == nil && resp.StatusCode == http.StatusOK {
				leader = name
			} else {
				others = append(others, name)
			}
		}
		if leader != "" {
			slices.Sort(others)
			return leader, others
		}
		time.Sleep(10 * time.Millisecond)
	}
	ts.Fatalf("no node leads after 30 s")
	return "", nil
}

// freePorts finds addresses that were free a moment ago.
func freePorts(count int) (addresses []string, err error) {
	for range count {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		addresses = append(addresses, l.Addr().String())
	}
	return addresses, nil
}

// rookeryctl runs it for a script and returns what it printed.
func rookeryctl(ts *testscript.TestScript, args ...string) (stdout, stderr string, code int, err error) {
	cmd := exec.Command(filepath.Join(bin, "rookeryctl"), args...)
	cmd.Dir = ts.MkAbs(".")
	cmd.Env = os.Environ()
	for _, name := range []string{"ROOKERY_ENDPOINTS", "ROOKERY_TLS_CA", "ROOKERY_TLS_CERT", "ROOKERY_TLS_KEY"} {
		cmd.Env = append(cmd.Env, name+"="+ts.Getenv(name))
	}
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.Exited() {
		code, err = exit.ExitCode(), nil
	}
	return out.String(), errs.String(), code, err
}

// exits runs rookeryctl through the script's own exec, so that stdout and stderr
// can be looked at, and then checks the code.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE ARGS...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(filepath.Join(bin, "rookeryctl"), args[1:]...)
	got := 0
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("rookeryctl %s: got exit code %d, want %d", strings.Join(args[1:], " "), got, want)
	}
}

// keep puts the last output into a variable.
func keep(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: keep NAME")
	}
	ts.Setenv(args[0], strings.TrimSpace(ts.ReadFile("stdout")))
}

// until runs rookeryctl until it says what is expected.
func until(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: until TEXT ARGS...")
	}
	fits, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	stdout := ""
	for range 600 {
		if stdout, _, _, err = rookeryctl(ts, args[1:]...); err == nil && fits.MatchString(stdout) {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	ts.Fatalf("rookeryctl %s never says %s; it says\n%s", strings.Join(args[1:], " "), args[0], stdout)
}

// told waits until a file that a program in the background writes says something so many
// times.
func told(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: told FILE TEXT N")
	}
	fits, err := regexp.Compile("(?m)" + args[1])
	ts.Check(err)
	n, err := strconv.Atoi(args[2])
	ts.Check(err)
	text := ""
	for range 1200 {
		b, _ := os.ReadFile(ts.MkAbs(args[0]))
		if text = string(b); len(fits.FindAllString(text, -1)) >= n {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	ts.Fatalf("%s never says %s %d times; it says\n%s", args[0], args[1], n, text)
}

// repeat runs rookeryctl several times.
func repeat(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: repeat N ARGS...")
	}
	n, err := strconv.Atoi(args[0])
	ts.Check(err)
	for i := range n {
		words := make([]string, len(args)-1)
		for j, w := range args[1:] {
			words[j] = strings.ReplaceAll(w, "@", strconv.Itoa(i+1))
		}
		if _, stderr, code, err := rookeryctl(ts, words...); err != nil || code != 0 {
			ts.Fatalf("rookeryctl %s: exit code %d, %v: %s", strings.Join(words, " "), code, err, stderr)
		}
	}
}

// damage changes a file.
func damage(ts *testscript.TestScript, args []string, change func([]byte) []byte) {
	if len(args) != 1 {
		ts.Fatalf("usage: flip|cut FILE")
	}
	path := ts.MkAbs(args[0])
	b, err := os.ReadFile(path)
	ts.Check(err)
	ts.Check(os.WriteFile(path, change(b), 0o600))
}

// answers compares every answer of a file of real Cyrus answers with what
// rookeryctl prints: `{user: {"REFERENCE" "PATTERN": {status, rows}, myrights:
// {name: rights}}}`. The further arguments are the flags of the namespace.
func answers(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: answers FILE FLAGS...")
	}
	raw, err := os.ReadFile(args[0])
	ts.Check(err)
	var file map[string]map[string]json.RawMessage
	ts.Check(json.Unmarshal(raw, &file))
	flags := args[1:]

	var mu sync.Mutex
	var wrong []string
	compared := 0
	check := func(stdin []string, want string) {
		got, stderr, code, err := rookeryctl(ts, stdin...)
		mu.Lock()
		defer mu.Unlock()
		compared++
		if err != nil || code != 0 || stderr != "" || got != want {
			wrong = append(wrong, fmt.Sprintf("rookeryctl %q: exit code %d, %v, %s\ngot\n%s\nwant\n%s", stdin, code, err, stderr, got, want))
		}
	}
	var jobs []func()
	for user, questions := range file {
		for question, answer := range questions {
			if question == "myrights" {
				var rights map[string]string
				ts.Check(json.Unmarshal(answer, &rights))
				command := slices.Concat([]string{"rights", "--user", user}, flags, []string{"--"})
				want := ""
				for name, letters := range rights {
					command = append(command, name)
					want += directory.QuoteAString(name) + " " + letters + "\n"
				}
				jobs = append(jobs, func() { check(command, want) })
				continue
			}
			var a struct {
				Status string
				Rows   []string
			}
			ts.Check(json.Unmarshal(answer, &a))
			if a.Status != "OK" {
				ts.Fatalf("%s: %s answered %s: what is that to be?", user, question, a.Status)
			}
			reference, pattern := unquote(ts, question)
			want := ""
			for _, row := range a.Rows {
				want += row + "\n"
			}
			command := slices.Concat([]string{"list", "--user", user, "-o", "imap", "--reference", reference}, flags, []string{"--", pattern})
			jobs = append(jobs, func() { check(command, want) })
		}
	}
	todo := make(chan func())
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for job := range todo {
				job()
			}
		})
	}
	for _, job := range jobs {
		todo <- job
	}
	close(todo)
	wg.Wait()
	if len(wrong) > 0 {
		ts.Fatalf("%d of %d answers differ:\n%s", len(wrong), compared, strings.Join(wrong[:min(3, len(wrong))], "\n"))
	}
	if compared < 100 {
		ts.Fatalf("only %d answers were compared", compared)
	}
	ts.Logf("%d answers compared", compared)
}

// unquote takes `"REFERENCE" "PATTERN"` apart.
func unquote(ts *testscript.TestScript, s string) (reference, pattern string) {
	parts := strings.Split(s, `"`)
	if len(parts) != 5 {
		ts.Fatalf("%q is not a reference and a pattern", s)
	}
	return parts[1], parts[3]
}

// sameFacts compares the facts of two nodes: the same mailboxes, each held by
// the same server, nothing forked; and where both say something of a mailbox,
// the same.
func sameFacts(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: samefacts NODE NODE")
	}
	a, b := factsOf(ts, args[0]), factsOf(ts, args[1])
	if len(a) == 0 {
		ts.Fatalf("node %s has no facts", args[0])
	}
	for name, fa := range a {
		fb, ok := b[name]
		if !ok {
			ts.Fatalf("%s is on %s and not on %s", name, args[0], args[1])
		}
		same := fa.Location() == fb.Location() || fa.Server == fb.Server && (fa.Partition == "" || fb.Partition == "")
		if !same || fa.ACL != fb.ACL || fa.State != fb.State ||
			fa.MailboxID != "" && fb.MailboxID != "" && fa.MailboxID != fb.MailboxID ||
			fa.UIDValidity != 0 && fb.UIDValidity != 0 && fa.UIDValidity != fb.UIDValidity {
			ts.Fatalf("%s: %s has %+v, %s has %+v", name, args[0], fa, args[1], fb)
		}
	}
	for name := range b {
		if _, ok := a[name]; !ok {
			ts.Fatalf("%s is on %s and not on %s", name, args[1], args[0])
		}
	}
}

// factsOf are a node's facts by mailbox: one for each, or there is a fork.
func factsOf(ts *testscript.TestScript, name string) map[directory.MailboxName]client.Fact {
	n := ts.Value(nodesKey{}).(*nodes).running[name]
	if n == nil {
		ts.Fatalf("no node %s is running", name)
	}
	c, err := client.Dial([]string{n.address})
	ts.Check(err)
	defer c.Close()
	facts := make(map[directory.MailboxName]client.Fact)
	for r, err := range c.FindAll(context.Background(), client.FindQuery{}) {
		ts.Check(err)
		if len(r.Facts) != 1 || r.Forked {
			ts.Fatalf("node %s: %s has %d facts, forked: %t; want one", name, r.Mailbox, len(r.Facts), r.Forked)
		}
		facts[r.Mailbox] = r.Facts[0]
	}
	return facts
}

// shape compares which fields a JSON document has, and of what kind, with the
// lines of a file, in any order: `path kind`. Of lists all items count.
func shape(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: shape FILE")
	}
	var v any
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &v))
	paths := make(map[string]bool)
	walk("", v, paths)
	var got []string
	for p := range paths {
		got = append(got, p)
	}
	want := strings.Split(strings.TrimSpace(ts.ReadFile(args[0])), "\n")
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		ts.Fatalf("%s: got the fields\n%s\nwant\n%s", args[0], strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func walk(path string, v any, into map[string]bool) {
	switch v := v.(type) {
	case map[string]any:
		for key, item := range v {
			walk(path+"."+key, item, into)
		}
	case []any:
		if len(v) == 0 {
			into[path+"[]"] = true
		}
		for _, item := range v {
			walk(path+"[]", item, into)
		}
	case nil:
		into[path+" null"] = true
	default:
		into[fmt.Sprintf("%s %T", path, v)] = true
	}
}

// A port that is taken costs nothing: nothing is made.
func TestPortTaken(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	users := filepath.Join(t.TempDir(), "users")
	passwd := exec.Command(filepath.Join(bin, "rookeryctl"), "mupdate", "passwd", "be1", "--file", users)
	passwd.Stdin = strings.NewReader("secret\n")
	if out, err := passwd.CombinedOutput(); err != nil {
		t.Fatalf("mupdate passwd: %v, %s", err, out)
	}
	for _, taken := range []string{"--listen-client", "--listen-mupdate"} {
		dir := filepath.Join(t.TempDir(), "data")
		args := []string{"--name", "n1", "--data", dir, "--mupdate-users", users}
		for _, flag := range []string{"--listen-client", "--listen-peer", "--listen-http", "--listen-mupdate"} {
			address := "127.0.0.1:0"
			if flag == taken {
				address = l.Addr().String()
			}
			args = append(args, flag, address)
		}
		out, err := exec.Command(filepath.Join(bin, "rookeryd"), args...).CombinedOutput()
		exit, ok := errors.AsType[*exec.ExitError](err)
		if !ok || exit.ExitCode() != 1 || !strings.Contains(string(out), taken+": ") {
			t.Errorf("%s: got %v, %s; want exit code 1 and the flag named", taken, err, out)
		}
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: the data directory: got %v, want none", taken, err)
		}
	}
}
