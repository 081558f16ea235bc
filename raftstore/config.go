package raftstore

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.etcd.io/raft/v3/raftpb"
)

// Network carries messages to the other nodes.
type Network interface {
	// Send takes messages for the nodes they are addressed to. It does not
	// block and may lose, delay, double or reorder them. It does not change
	// them. Inbound messages go to Store.Step.
	Send(messages []*raftpb.Message)
}

// Config says what to open. Zero values take the defaults that stand beside
// the fields.
type Config struct {
	// Dir is the node's data directory; the shard has a directory of its own
	// in it. It is made if missing.
	Dir string
	// Shard is which Raft group this is; default 1.
	Shard uint32
	// Name is this node's name. A directory made for another name is refused.
	Name string
	// Initial is the cluster as it first starts, the same list on every node;
	// default this node alone. It is used when the directory is empty. Later it
	// may be left out; if it names several nodes it must be the list that the
	// directory was made from.
	Initial []Member
	// Join is the cluster that this node joins instead, when the directory is
	// empty: the shard is made without a state and waits for a snapshot, unless
	// Initial is the list of several that this very cluster was made from.
	Join *Joining
	// Directory is Dir, locked already; Open takes it over, also when it fails.
	Directory *Directory
	// Token sets this cluster apart from others with the same list. If given,
	// it is checked at every start.
	Token string

	Machine Machine
	Network Network               // default: none, for a single node
	Clock   Clock                 // default: SystemClock()
	Log     *slog.Logger          // default: nowhere
	Metrics prometheus.Registerer // default: nowhere

	// Tick is Raft's unit of time; default 25 ms. HeartbeatTicks (2) and
	// ElectionTicks (12) are counted in it.
	Tick           time.Duration
	HeartbeatTicks int
	ElectionTicks  int

	// MaxCommand is the size of the largest command; default 1 MiB.
	MaxCommand int
	// MaxBatch is how many octets of commands go into one Raft entry; default
	// 256 KiB. A larger command has an entry to itself.
	MaxBatch int
	// MaxWaiting and MaxWaitingBytes bound the proposals that have no answer
	// yet; default 16,384 and 64 MiB.
	MaxWaiting      int
	MaxWaitingBytes int64
	// MaxReads bounds the linearizable reads that wait; default 65,536.
	MaxReads int
	// MaxLag is how far apply may be behind commit before proposals are
	// refused; default 5,000 entries.
	MaxLag uint64

	// FlushKeys, FlushBytes and FlushInterval say when what was applied goes to
	// the state file: at that many changed keys (30,000, some 10,000 facts) or octets (32 MiB), or
	// that long after the first change (1 s). At twice FlushKeys or FlushBytes,
	// apply waits.
	FlushKeys     int
	FlushBytes    int
	FlushInterval time.Duration

	// LogEntries and LogBytes bound the log that is kept for nodes that lag;
	// default 200,000 and 64 MiB. MarkBytes is how much log is written between
	// two points that a restart can read from; default SegmentBytes.
	LogEntries int
	LogBytes   int64
	MarkBytes  int64
	// SegmentBytes is the size of one file of the log; default 64 MiB. It holds
	// for every Store of the process: etcd's log keeps it in a variable of its
	// package, which is touched only if this is set.
	SegmentBytes int64

	// SnapshotRate is how many octets a second are written of a snapshot that is
	// made for another node; default 256 MB.
	SnapshotRate int64

	// MmapSize is the address space kept for the state file; default 64 GiB. A
	// file that outgrows it stalls for as long as any View is held.
	MmapSize int
	// VerifyBytes is the size up to which the state file is read and verified
	// before the store opens; default 64 MiB. A larger one is verified in the
	// background, unless NoBackgroundVerify.
	VerifyBytes        int64
	NoBackgroundVerify bool

	// ScrubInterval is how long after one scrub of the state file the next
	// begins, and ScrubRate how many octets a second it reads; defaults 24 h and
	// 8 MiB. Negative: no scrubs; no bound.
	ScrubInterval time.Duration
	ScrubRate     int64
	// LowSpace is how many octets are to stay free on the disk; below, the node
	// says that it has no space. Default the larger of 256 MiB and 2 % of the
	// disk.
	LowSpace int64
	// Ballast is the size of a file that takes up space until somebody in need
	// removes it; default none.
	Ballast int64
	// Space says how much of the disk that a directory is on is free, and how
	// large it is; default what the system says.
	Space func(dir string) (free, total int64, err error)

	step    func(string)            // for tests: called after each durable step
	wrapLog func(LogStore) LogStore // for tests: what the appender writes to
}

// Joining says which cluster a node with an empty directory belongs to, and as
// whom.
type Joining struct {
	Cluster     ClusterID
	Incarnation uint64
	Node        uint64 // its Raft id, which must never have been another disk's
}

// stepped tells a test that something is on disk.
func (c Config) stepped(what string) {
	if c.step != nil {
		c.step(what)
	}
}

func (c Config) withDefaults() (Config, error) {
	set(&c.Shard, 1)
	set(&c.Tick, 25*time.Millisecond)
	set(&c.HeartbeatTicks, 2)
	set(&c.ElectionTicks, 12)
	set(&c.MaxCommand, 1<<20)
	set(&c.MaxBatch, 256<<10)
	set(&c.MaxWaiting, 16<<10)
	set(&c.MaxWaitingBytes, 64<<20)
	set(&c.MaxReads, 64<<10)
	set(&c.MaxLag, 5000)
	set(&c.FlushKeys, 30_000)
	set(&c.FlushBytes, 32<<20)
	set(&c.FlushInterval, time.Second)
	set(&c.LogEntries, 200_000)
	set(&c.LogBytes, 64<<20)
	set(&c.MarkBytes, c.SegmentBytes)
	set(&c.MarkBytes, 64<<20)
	set(&c.SnapshotRate, 256<<20)
	set(&c.MmapSize, 64<<30)
	set(&c.VerifyBytes, 64<<20)
	set(&c.ScrubInterval, 24*time.Hour)
	set(&c.ScrubRate, 8<<20)
	if c.Space == nil {
		c.Space = diskSpace
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Metrics == nil {
		c.Metrics = prometheus.NewRegistry()
	}
	if c.Clock == nil {
		c.Clock = SystemClock()
	}
	if len(c.Initial) == 0 {
		c.Initial = []Member{{Name: c.Name}}
	}
	if c.Network == nil {
		c.Network = noNetwork{}
	}
	switch {
	case c.Dir == "":
		return c, errors.New("raftstore: no data directory given")
	case c.Name == "":
		return c, errors.New("raftstore: no node name given")
	case c.Machine == nil:
		return c, errors.New("raftstore: no machine given")
	case c.ElectionTicks <= c.HeartbeatTicks:
		return c, fmt.Errorf("raftstore: an election after %d ticks needs more than the %d of a heartbeat", c.ElectionTicks, c.HeartbeatTicks)
	}
	return c, nil
}

func set[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// noNetwork is the network of a node without peers.
type noNetwork struct{}

func (noNetwork) Send([]*raftpb.Message) {}
