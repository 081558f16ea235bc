package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
)

// patience is how long a node may take to serve, with ten million mailboxes on a
// cold disk.
const patience = 5 * time.Minute

// A node is one rookeryd that was started here.
type node struct {
	program string
	name    string
	dir     string // holds the data directory and the log of the program
	client  string // addresses
	debug   string
	args    []string
	process *process
}

// newNode chooses free ports for a node that is alone in its cluster, its state
// in dir. It does not start it.
func newNode(program, dir string) (*node, error) {
	ports, err := freePorts(4)
	if err != nil {
		return nil, err
	}
	return nodeAt(program, dir, "bench", ports), nil
}

// nodeAt returns a node that listens on four ports.
func nodeAt(program, dir, name string, ports []string) *node {
	return &node{
		program: program, name: name, dir: dir, client: ports[0], debug: ports[3],
		args: []string{
			"--name", name, "--data", filepath.Join(dir, "data"),
			"--listen-client", ports[0], "--listen-peer", ports[1], "--listen-http", ports[2], "--listen-debug", ports[3],
		},
	}
}

func (n *node) dataDir() string { return filepath.Join(n.dir, "data") }

// launch starts the program and does not wait for it to serve.
func (n *node) launch() error {
	log, err := os.OpenFile(filepath.Join(n.dir, "rookeryd.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close() // the program has its own
	n.process = newProcess(n.program, n.args...)
	n.process.cmd.Stdout, n.process.cmd.Stderr = log, log
	return n.process.start()
}

// start starts the program and waits until it takes writes.
func (n *node) start(ctx context.Context) error {
	if err := n.launch(); err != nil {
		return err
	}
	if err := n.await(ctx, linearizable); err != nil {
		return errors.Join(err, n.process.kill())
	}
	return nil
}

// await waits until the node answers a read of that consistency. It asks every
// millisecond: the wait is measured.
func (n *node) await(ctx context.Context, mode apiv1.ConsistencyMode) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	// A refused connection would be tried again by gRPC only after a pause.
	var d net.Dialer
	for {
		conn, err := d.DialContext(ctx, "tcp", n.client)
		if err == nil {
			conn.Close()
			break
		}
		if err := n.pause(ctx, err); err != nil {
			return err
		}
	}
	s, err := newStub([]string{n.client}, 1, nil)
	if err != nil {
		return err
	}
	defer s.close()
	api := apiv1.NewDirectoryServiceClient(s.conns[0])
	for {
		_, err := api.Lookup(ctx, &apiv1.LookupRequest{Consistency: &apiv1.Consistency{Mode: mode}, Mailbox: "user.nobody"})
		if err == nil {
			return nil
		}
		if code := status.Code(err); code != codes.Unavailable && code != codes.FailedPrecondition {
			return fmt.Errorf("ask the node that was started: %w", err)
		}
		if err := n.pause(ctx, err); err != nil {
			return err
		}
	}
}

// pause waits a millisecond, unless waiting makes no sense any more.
func (n *node) pause(ctx context.Context, last error) error {
	if n.process.exited() {
		return fmt.Errorf("%s ended: %v; see %s", n.program, n.process.err, filepath.Join(n.dir, "rookeryd.log"))
	}
	select {
	case <-ctx.Done():
		return fmt.Errorf("%w: the node does not answer: %w", ctx.Err(), last)
	case <-time.After(time.Millisecond):
		return nil
	}
}

func (n *node) stop(ctx context.Context) error { return n.process.terminate(ctx) }

func (n *node) kill() error { return n.process.kill() }

// stored returns how many octets the data directory has on disk.
func (n *node) stored() (int64, error) { return dirSize(n.dataDir()) }

// dirSize returns how many octets the files below dir have. Files come and go
// meanwhile.
func dirSize(dir string) (octets int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, d os.DirEntry, err error) error {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err == nil {
			octets += info.Size()
		}
		return err
	})
	return octets, err
}
