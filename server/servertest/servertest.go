package servertest

import (
	"context"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/rookery-mail/rookery/directory/machine"
	"github.com/rookery-mail/rookery/raftstore"
	"github.com/rookery-mail/rookery/raftstore/snap"
	"github.com/rookery-mail/rookery/raftstore/wal"
	"github.com/rookery-mail/rookery/server"
)

// smallLogs keeps the log of a test at a size that is quick to make.
var smallLogs = sync.OnceFunc(func() { wal.SetSegmentBytes(1 << 20) })

// patience is how long a busy machine may take to begin a cluster.
const patience = time.Minute

// New returns a new node, n1 of a cluster of one, which ends with the test.
func New(t testing.TB) *server.Server {
	t.Helper()
	s, stop, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	return s
}

// Open starts the node whose data are in dir: a new one, if there are none. stop ends it,
// and the same directory can be opened again.
func Open(dir string) (s *server.Server, stop func(), err error) {
	smallLogs()
	m := machine.New()
	store, err := raftstore.Open(raftstore.Config{Dir: dir, Name: "n1", Initial: []raftstore.Member{{Name: "n1"}}, Machine: server.Applied(m), MmapSize: 1 << 30})
	if err != nil {
		return nil, nil, fmt.Errorf("servertest: open the store: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := server.Begin(ctx, store, m); err != nil {
		store.Close()
		return nil, nil, fmt.Errorf("servertest: begin the cluster: %w", err)
	}
	s, err = server.New(server.Config{Store: server.Shard(store, nil), Machine: m, Node: "n1", Version: "test", Identity: store.Identity(), Replica: replica{store: store}})
	if err != nil {
		store.Close()
		return nil, nil, fmt.Errorf("servertest: %w", err)
	}
	return s, func() {
		s.Close(context.Background())
		store.Close()
	}, nil
}

// replica saves snapshots, and does nothing else that operators ask of one.
type replica struct {
	server.Replica
	store *raftstore.Store
}

func (r replica) Snapshot(ctx context.Context, w io.Writer) (snap.Header, error) {
	return r.store.Snapshot(ctx, w)
}
