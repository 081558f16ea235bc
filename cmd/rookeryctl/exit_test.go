package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
)

func TestPresent(t *testing.T) {
	_, badName := directory.ParseName("user..x")
	for _, tt := range []struct {
		name string
		err  error
		line string // a part of it
		code int
	}{
		{"done", nil, "", exitOK},
		{"usage", usagef("no %s", "sense"), "no sense", exitUsage},
		{"said already", degraded(), "", exitRefused},
		{"a name refused here", badName, `refused: invalid name: mailbox name "user..x": a level is empty`, exitRefused},
		{"behind a sentence", within(badName, "3 records went in"), "3 records went in: refused: invalid name", exitRefused},
		{"unavailable", fmt.Errorf("x: %w", client.ErrUnavailable), "cannot ask here:1: ", exitCannotAsk},
		{"no leader", errors.Join(client.ErrNoLeader, client.ErrUnavailable), "cannot ask here:1: the cluster has no leader", exitCannotAsk},
		{"undecided", errors.Join(client.ErrUndecided, client.ErrUnavailable), "undecided: ", exitCannotAsk},
		{"deadline", context.DeadlineExceeded, "cannot ask here:1: no answer in time", exitCannotAsk},
		{"not there", fmt.Errorf(`rpc error: code = Unavailable desc = connection error: desc = "transport: dial tcp: connect: connection refused": %w`, client.ErrUnavailable), "cannot ask here:1: connection refused; is rookeryd running", exitCannotAsk},
		{"no certificate", fmt.Errorf(`rpc error: code = Unavailable desc = connection error: desc = "error reading server preface: mtls: the node speaks TLS there": %w`, client.ErrUnavailable), "cannot ask here:1: the node speaks TLS there", exitCannotAsk},
		{"broken off", client.ErrProtocol, "cannot ask here:1: ", exitCannotAsk},
		{"an older release", client.ErrUnsupported, "cannot ask here:1: ", exitCannotAsk},
		{"local", &fs.PathError{Op: "open", Path: "x", Err: fs.ErrPermission}, "open x: permission denied", exitRefused},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := &app{started: true, endpoints: "here:1", reach: newReach(nil)}
			line, code := a.present(t.Context(), tt.err)
			if code != tt.code || !strings.Contains(line, tt.line) || tt.line == "" && line != "" {
				t.Errorf("got %q, exit code %d; want one with %q, %d", line, code, tt.line, tt.code)
			}
			if strings.Contains(line, "\n") || strings.Contains(line, "rpc error") || strings.Contains(line, "directory:") {
				t.Errorf("got %q: it is one line, in words", line)
			}
		})
	}
}

// What a node answered is told before that others are not there.
func TestReach(t *testing.T) {
	node := func(sentinel error, reason, words string) error {
		return errors.Join(&client.Error{Reason: reason, Message: words}, sentinel, client.ErrUnavailable)
	}
	refused := &client.Error{Message: `connection error: desc = "transport: Error while dialing: dial tcp: connect: connection refused"`}
	noLeader := node(client.ErrNoLeader, "NO_LEADER", "raftstore: no leader")
	waits := node(client.ErrClosing, "CLOSED", "this node waits for the others of its cluster: n2 (see its log)")
	for _, tt := range []struct {
		name string
		said map[string]error
		err  error
		want string
	}{
		{"no leader", map[string]error{"a:1": refused, "b:1": refused, "c:1": noLeader}, noLeader,
			"cannot ask a:1,b:1,c:1: the cluster has no leader (2 of 3 nodes do not answer: a:1, b:1); --stale shows what a node has"},
		{"too stale", map[string]error{"a:1": refused, "c:1": node(client.ErrTooStale, "TOO_STALE", "old")}, node(client.ErrTooStale, "TOO_STALE", "old"),
			"cannot ask a:1,b:1,c:1: the cluster has no leader (1 of 3 nodes does not answer: a:1); --stale shows what a node has"},
		{"one waits", map[string]error{"a:1": refused, "b:1": waits}, errors.Join(client.ErrUnavailable, context.DeadlineExceeded, waits),
			"cannot ask a:1,b:1,c:1: this node waits for the others of its cluster: n2 (see its log)"},
	} {
		a := &app{started: true, endpoints: "a:1,b:1,c:1", reach: newReach(func(error) {})}
		a.reach.nodes = 3
		for endpoint, err := range tt.said {
			a.reach.observe(client.Attempt{Endpoint: endpoint, Err: err})
		}
		a.reach.observe(client.Attempt{Endpoint: "c:1", Err: context.Canceled})
		if line, code := a.present(t.Context(), tt.err); line != tt.want || code != exitCannotAsk {
			t.Errorf("%s: got %q, %d; want %q", tt.name, line, code, tt.want)
		}
	}
}

func TestInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	a := &app{started: true, reach: newReach(nil)}
	for _, tt := range []struct {
		err  error
		want string
	}{
		{context.Canceled, "interrupted"},
		{errors.Join(client.ErrUndecided, client.ErrUnavailable, context.Canceled), "interrupted; what was under way may or may not have been done"},
	} {
		if line, code := a.present(ctx, tt.err); line != tt.want || code != exitCannotAsk {
			t.Errorf("got %q, %d; want %q, %d", line, code, tt.want, exitCannotAsk)
		}
	}
}

// What makes no sense is refused before anybody is asked.
func TestUsage(t *testing.T) {
	for _, line := range []string{
		"nosuch", "--bogus", "import", "import nosuch", "import cyrus", "import cyrus /nosuch/file", "import subscriptions", "export", "where", "where a b",
		"where --user a user.a", "list", "list *", "list --user a", "list --user a -o xml *", "list --user a --return bogus *", "list --user a --lsub --subscribed *",
		"rights --user a", "rights INBOX", "find", "find a b", "assert user.a", "assert --server be1", "assert user.a --server be1 --type bogus",
		"retract user.a", "reserve user.a", "release user.a", "deactivate user.a", "rename user.a --server be1", "subscribe user.a", "unsubscribe --user a",
		"subscriptions", "backends a b", "backends admit", "backends set be1", "backends set be1 --state bogus", "backends set be1 --address imap=x:1",
		"backends rename be1", "groups set g", "groups set g --members a --mode bogus", "switchover g", "switchover --to be1", "hold user", "hold user a",
		"hold bogus a --for 1m", "hold --for 1m", "hold user a --for 0", "hold release user", "withdrawal approve", "withdrawal bogus", "fork", "fork settle user.a",
		"forks x", "moves x", "settings get bogus", "settings set", "settings set bogus=1", "settings set read-only", "settings set read-only=perhaps",
		"settings set guard-count=-1", "settings set guard-window=1", "status -o imap", "status --timeout -1s", "check --limit -1", "help nosuch", "version x",
		"--endpoints nohost status", "man", "member", "member bogus", "member list x", "member add", "member promote", "member remove a b", "member remove n1 --id xyz",
		"member remove n1 --id 0", "member replace", "member replace n1 --old q", "member replace n1 --wait -1s", "move-leader a b", "move-leader --id q", "compact x",
		"compact --all --node n1", "compact --all --force",
		"cert", "cert bogus", "cert ca", "cert node --dir d", "cert node n1", "cert backend be1 --dir d --host h", "cert show",
		"cert ca --dir d --days 1y", "status --tls-cert x", "status --tls-key x --tls-ca y", "status --tls-cert x --tls-key x --tls-ca x", "--endpoints unix:x status",
	} {
		stdout, stderr, code := command(t, append([]string{"--endpoints", "127.0.0.1:1"}, strings.Fields(line)...)...)
		if code != exitUsage || stdout != "" || !strings.HasPrefix(stderr, "rookeryctl: ") || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, "--help`)") {
			t.Errorf("%s: got exit code %d, output %q, error %q; want %d and one line that leads to the help", line, code, stdout, stderr, exitUsage)
		}
	}
}

// Malformed names are the directory's refusal, though given here.
func TestMalformed(t *testing.T) {
	long := "user." + strings.Repeat("x", 500)
	for _, args := range [][]string{
		{"where", "user..x"}, {"where", ""}, {"where", long}, {"where", "user.&Jjo"}, {"where", "a!b!user.x"}, {"where", "user.a\x07"}, {"where", "user.\xe9"},
		{"where", "--user", "a/b\x01"}, {"assert", "user.a", "--server", "be 1"}, {"assert", "user..a", "--server", "be1"}, {"assert", "user.a", "--server", "be1", "--acl", "alice"},
		{"assert", "user.a", "--server", "be1", "--acl", "alice l?"}, {"rename", "user.a", "user..b", "--server", "be1"}, {"subscribe", "--user", "a", "user..x"},
		{"backends", "set", "a!b", "--weight", "1"}, {"groups", "set", "g", "--members", "be1,b e2"}, {"hold", "mailbox", "user..x", "--for", "1m"}, {"import", "cyrus", "--server", "b!e", "-"},
		{"fork", "settle", "user..x", "--keep", "be1"}, {"rights", "--user", "a", "--acl-groups", "x\ty", "INBOX"},
	} {
		stdout, stderr, code := command(t, append([]string{"--endpoints", "127.0.0.1:1"}, args...)...)
		if code != exitRefused || stdout != "" || !strings.HasPrefix(stderr, "rookeryctl: refused: ") || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%.60q: got exit code %d, output %q, error %q; want %d and a refusal", args, code, stdout, stderr, exitRefused)
		}
	}
}

// Where nobody listens, that is said soon, and in words.
func TestNobodyThere(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	for _, line := range []string{"where user.a", "status", "list --user a *", "check", "assert user.a --server be1", "import cyrus --server be1 ../../testdata/cyrus/cyrus-3.6.1-be1.json"} {
		t.Run(line, func(t *testing.T) {
			t.Parallel()
			begun := time.Now()
			_, stderr, code := command(t, append([]string{"--endpoints", address, "--timeout", "1m"}, strings.Fields(line)...)...)
			if code != exitCannotAsk || !strings.Contains(stderr, "connection refused") || strings.Contains(stderr, "undecided") || strings.Contains(stderr, "rpc") {
				t.Errorf("got exit code %d, error %q; want %d and that the connection was refused", code, stderr, exitCannotAsk)
			}
			if took := time.Since(begun); took > 30*time.Second {
				t.Errorf("it took %v to say that nobody is there", took)
			}
		})
	}
}

func TestHelp(t *testing.T) {
	for _, line := range []string{"", "--help", "help", "help list", "list --help", "help output", "help import cyrus", "completion bash", "version", "--version"} {
		stdout, stderr, code := command(t, strings.Fields(line)...)
		if code != exitOK || stdout == "" || stderr != "" {
			t.Errorf("%q: got exit code %d, %d octets of output, error %q", line, code, len(stdout), stderr)
		}
	}
}
