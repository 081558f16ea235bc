package machine

import (
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/internal/kv"
)

// Machine applies commands and answers questions. It keeps nothing of its own
// but the last decoded topology, which any reader could decode again, and room
// to work in; all state is in the transaction it is given. Its reading methods
// may be used by many goroutines at once, beside one that applies.
type Machine struct {
	top     atomic.Pointer[topology]
	scratch scratch
}

// scratch is what one command after the other is applied with, so that none has
// to make it anew. It belongs to the goroutine that applies.
type scratch struct {
	hash *directory.Hasher
	// The store copies what it is given.
	message []byte // of encoding, for put1
	value   []byte // of put1
}

// hasher returns the one of that key.
func (s *scratch) hasher(key []byte) *directory.Hasher {
	if !s.hash.Keyed(key) {
		s.hash = directory.NewHasher(key)
	}
	return s.hash
}

// New returns a machine for a state that may be empty.
func New() *Machine { return &Machine{} }

// Buckets lists every bucket the machine uses.
func (*Machine) Buckets() []kv.Bucket { return allBuckets[:] }

// Apply applies one command to tx and returns its encoded Result. elapsed is
// added to directory time first; wall, milliseconds since 1970 UTC, is carried
// for people. An error is a failure: tx must be thrown away and the node must
// stop. A rejection is a Result.
func (m *Machine) Apply(tx kv.Tx, elapsed directory.Time, wall int64, command []byte) ([]byte, error) {
	c, err := DecodeCommand(command)
	if err != nil {
		return nil, fmt.Errorf("%w; a newer release wrote it: start that one here again, it goes on with this entry", err)
	}
	r, err := m.do(tx, elapsed, wall, c, opOctets(command))
	if err != nil {
		return nil, err
	}
	return EncodeResult(r), nil
}

// Do is Apply for a command that is decoded already.
func (m *Machine) Do(tx kv.Tx, elapsed directory.Time, wall int64, c Command) (Result, error) {
	return m.do(tx, elapsed, wall, c, nil)
}

// do applies c, whose operation stands in the log as encoded; nil if that is not
// known.
func (m *Machine) do(tx kv.Tx, elapsed directory.Time, wall int64, c Command, encoded []byte) (Result, error) {
	s, err := m.state(tx)
	if err != nil {
		return Result{}, err
	}
	if _, ok := c.Op.(Init); !ok && s.cluster.ID == "" {
		// It overtook the command that begins the cluster. It leaves no trace, not
		// even a revision, so that the first one is Init's.
		return Result{Refused: refuse(directory.ErrBusy, "the cluster has not begun; try again")}, nil
	}
	a := &apply{state: s, m: m, tx: tx, by: c.By, scratch: &m.scratch}
	a.clk.Revision++
	a.clk.Time += elapsed
	a.clk.Wall = wall
	if a.counts, err = a.readCounts(); err != nil {
		return Result{}, err
	}
	a.countsWere = a.counts
	r, err := a.command(c, encoded)
	if err != nil {
		return Result{}, err
	}
	return r, a.finish()
}

// apply is one command being applied.
type apply struct {
	*state
	m          *Machine
	tx         kv.Tx
	by         string
	ordinal    uint32 // of the next change
	counts     counts
	countsWere counts
	topChanged bool
	sweeping   bool // derived rows may be wrong: look at each
	renamed    int  // mailboxes renamed by this command so far
	sums       [2]digestRow
	scratch    *scratch // the machine's; made when first needed where there is none
}

func (a *apply) room() *scratch {
	if a.scratch == nil {
		a.scratch = new(scratch)
	}
	return a.scratch
}

// command answers a repeated request from memory and does any other.
func (a *apply) command(c Command, encoded []byte) (Result, error) {
	if len(c.Client) > directory.MaxClientID || len(c.By) > directory.MaxText {
		return Result{
			Revision: a.clk.Revision,
			Refused:  refuse(directory.ErrInvalid, "a client id of %d octets, at most %d; a name of %d, at most %d", len(c.Client), directory.MaxClientID, len(c.By), directory.MaxText),
		}, nil
	}
	if c.Client == "" {
		return a.do(c.Op)
	}
	key := []byte(c.Client)
	if encoded == nil {
		encoded = EncodeCommand(Command{Op: c.Op})
	}
	print := crc32.Checksum(encoded, castagnoli)
	if v := a.tx.Get(bucketRequest, key); v != nil {
		b, err := unseal(bucketRequest, key, v)
		if err != nil {
			return Result{}, err
		}
		last, err := decodeRequest(b)
		if err != nil {
			return Result{}, err
		}
		switch {
		case c.Sequence == last.Sequence && print != last.Print:
			// Whoever sent it believes that it was never sent: to answer for the
			// other would be to say that this one was done.
			return Result{
				Revision: a.clk.Revision,
				Refused:  refuse(directory.ErrInvalid, "request %d of %q was another one; a repeat must be the same, a new one has the next sequence", c.Sequence, c.Client),
			}, nil
		case c.Sequence == last.Sequence && !(last.Result.Revision < a.cluster.Began && undoneByRestore(c.Op)):
			return last.Result, nil
		case c.Sequence < last.Sequence:
			return Result{
				Revision: a.clk.Revision,
				Refused:  refuse(directory.ErrStaleRequest, "request %d of %q came after %d; it was answered before", c.Sequence, c.Client, last.Sequence),
			}, nil
		}
	}
	r, err := a.do(c.Op)
	if err != nil {
		return Result{}, err
	}
	a.put1(bucketRequest, key, encodeRequest(request{Sequence: c.Sequence, Time: a.clk.Time, Result: brief(r), Print: print}))
	return r, nil
}

// brief cuts the texts of refusals, so that the answer kept for a batch of
// thousands stays small.
func brief(r Result) Result {
	const most = 200
	if r.Refused != nil {
		if text := r.Refused.Error(); len(text) > most {
			r.Refused = rejectionOf(sentinelNumber(r.Refused), strings.ToValidUTF8(text[:most], "")+" ...")
		}
	}
	if len(r.Items) > 0 {
		r.Items = slices.Clone(r.Items)
		for i := range r.Items {
			r.Items[i] = brief(r.Items[i])
		}
	}
	return r
}

// do applies one operation and turns a rejection into a result.
func (a *apply) do(op Op) (Result, error) {
	r, err := a.op(op)
	if err != nil {
		if sentinelNumber(err) == 0 {
			return Result{}, err
		}
		r.Refused = err
	}
	r.Revision = a.clk.Revision
	return r, nil
}

// op is the closed set of operations.
func (a *apply) op(op Op) (Result, error) {
	if err := a.growth(); err != nil && !passesReadOnly(op) {
		return Result{}, err
	}
	switch op := op.(type) {
	case Init:
		return a.init(op)
	case Restore:
		return a.restore(op)
	case Finalize:
		return a.finalize(op)
	case Assert:
		return a.assert(op)
	case Retract:
		return a.retract(op)
	case Reserve:
		return a.reserve(op)
	case Release:
		return a.release(op)
	case Deactivate:
		return a.deactivate(op)
	case Rename:
		return a.rename(op)
	case SetPrimary:
		return a.setPrimary(op)
	case SetGroup:
		return a.setGroup(op)
	case SetBackend:
		return a.setBackend(op)
	case Admit:
		return a.admit(op)
	case Confirm:
		return a.confirm(op)
	case RenameBackend:
		return a.renameBackend(op)
	case Subscribe:
		return a.subscribe(op)
	case Unsubscribe:
		return a.unsubscribe(op)
	case Settle:
		return a.settle(op)
	case Hold:
		return a.placeHold(op)
	case ReleaseHold:
		return a.releaseHold(op)
	case DecideHeld:
		return a.decideHeld(op)
	case SetSettings:
		return a.setSettings(op)
	case Tick:
		return a.tick()
	case Batch:
		return a.batch(op)
	case SetAlarm:
		return a.setAlarm(op)
	}
	return Result{}, fmt.Errorf("%w: %T", ErrUnknownCommand, op)
}

// passesReadOnly tells what a read-only cluster does all the same: what frees,
// what moves, what ends it; and what is refused only if it adds something, which
// Assert, Reserve and Subscribe see for themselves.
func passesReadOnly(op Op) bool {
	switch op.(type) {
	case Init, Restore, Finalize, Tick, Batch, Assert, Reserve, Subscribe, Retract, Release, SetPrimary, Settle, Unsubscribe, Deactivate, SetBackend,
		Hold, ReleaseHold, DecideHeld, Confirm, SetSettings, SetAlarm:
		return true
	}
	return false
}

func (a *apply) init(op Init) (Result, error) {
	if a.cluster.ID != "" {
		return Result{Effect: Unchanged}, nil
	}
	if op.ClusterID == "" || op.Incarnation == 0 || len(op.DigestKey) != 16 {
		return Result{}, errors.New("machine: Init without cluster id, incarnation or digest key")
	}
	c := cluster{
		ID: op.ClusterID, Incarnation: op.Incarnation, DigestKey: op.DigestKey, NextServer: 1, NextGroup: 1,
		Version: max(op.Version, OldestVersion),
	}
	if c.Version > NewestVersion {
		return Result{}, outOfRange("the cluster begins with", c.Version, "")
	}
	a.put1(bucketMeta, keyFormat, []byte(formatName))
	a.changeTopology()
	a.topology.cluster = c
	a.topology.settings = directory.DefaultSettings()
	a.putClusterRow(c)
	a.put1(bucketMeta, keySettings, encodeSettings(a.settings))
	a.schedule(a.clk.Time+a.settings.RequestKeep/2, dueRequests, nil)
	a.log(directory.Change{Kind: directory.ChangeSettings})
	return Result{Effect: Added}, nil
}

func (a *apply) batch(op Batch) (Result, error) {
	r := Result{Effect: Unchanged, Items: make([]Result, 0, len(op.Ops))}
	if len(op.Ops) > directory.MaxBatch {
		return Result{}, fmt.Errorf("%w: %d items in a batch, at most %d; split it", directory.ErrTooLarge, len(op.Ops), directory.MaxBatch)
	}
	for _, item := range op.Ops {
		one, err := a.do(item)
		if err != nil {
			return Result{}, err
		}
		if one.Refused == nil && one.Effect.changed() {
			r.Effect = Changed
		}
		r.Items = append(r.Items, one)
	}
	return r, nil
}

// finish writes what every command changes: clock and counts, and cuts the
// change log's tail.
func (a *apply) finish() error {
	a.flushDigests()
	if a.counts != a.countsWere {
		a.put1(bucketMeta, keyCounts, encodeCounts(a.counts))
	}
	if a.clk.LogFrom == 0 {
		a.clk.LogFrom = 1
	}
	if keep := directory.Revision(a.settings.LogKeep); a.clk.Revision > keep && a.clk.LogFrom < a.clk.Revision-keep {
		if err := a.trimLog(a.clk.Revision - keep); err != nil {
			return err
		}
	}
	if a.topChanged {
		a.topology.derive()
		a.clk.Topology = a.clk.Revision
		a.topology.revision = a.clk.Revision
		a.m.top.Store(a.topology)
	}
	a.put1(bucketMeta, keyClock, encodeClock(a.clk))
	return nil
}

// trimLog deletes the change log's rows before until: whole revisions, and
// twice as many rows as this command wrote, so that the log cannot grow faster
// than it is cut. It waits until that is worth a walk.
func (a *apply) trimLog(until directory.Revision) error {
	const worth = 64
	if until-a.clk.LogFrom < worth && a.ordinal < worth {
		return nil
	}
	most := 2*int(a.ordinal) + 2*worth
	var keys [][]byte
	from := a.clk.LogFrom
	reached := until
	it := a.tx.Iterate(bucketLog)
	for k, _ := it.Seek(logKey(from, 0)); k != nil; k, _ = it.Next() {
		rev, _, err := splitLogKey(k)
		if err != nil {
			return err
		}
		if rev >= until {
			break
		}
		if len(keys) >= most && rev != from {
			reached = rev
			break
		}
		from = rev
		keys = append(keys, append([]byte(nil), k...))
	}
	for _, k := range keys {
		a.tx.Delete(bucketLog, k)
	}
	a.clk.LogFrom = reached
	return nil
}

// log adds a row to the change log.
func (a *apply) log(c directory.Change) {
	if a.ordinal == math.MaxUint32 {
		return
	}
	s := a.room()
	s.message = appendChange(s.message[:0], &c)
	a.put1(bucketLog, logKey(a.clk.Revision, a.ordinal), s.message)
	a.ordinal++
}

// put1 seals message under key.
func (a *apply) put1(b kv.Bucket, key, message []byte) {
	s := a.room()
	s.value = appendSealed(s.value[:0], b, key, message)
	a.tx.Put(b, key, s.value)
}

// mark writes a row of an index that holds no value.
func (a *apply) mark(b kv.Bucket, key []byte) { a.tx.Put(b, key, nil) }

// missing is the topology's, as this command has changed it.
func (a *apply) missing() ([]directory.BackendName, bool) {
	if a.topChanged {
		a.topology.derive()
	}
	return a.topology.missing()
}

// changeTopology makes the topology this command's own, to be changed and
// shared when the command is done.
func (a *apply) changeTopology() {
	if a.topChanged {
		return
	}
	a.topChanged = true
	a.state.topology = a.topology.clone()
}

// refuse words a rejection.
func refuse(sentinel error, format string, args ...any) error {
	return fmt.Errorf("%w: %s", sentinel, fmt.Sprintf(format, args...))
}

// Due says what a leader has to propose by itself: in how many milliseconds of
// directory time, if elapsed of them have passed since the last command, and
// the encoded command. Nothing due: a negative wait.
func (m *Machine) Due(r kv.Reader, elapsed directory.Time) (wait int64, command []byte, err error) {
	clk, err := readClock(r)
	switch {
	case err != nil || clk.Revision == 0:
		return -1, nil, err
	case clk.Sweeping:
		return 0, tickCommand, nil
	case clk.Due == 0:
		return -1, nil, nil
	}
	if now := clk.Time + elapsed; clk.Due > now {
		return int64(clk.Due - now), tickCommand, nil
	}
	return 0, tickCommand, nil
}

var tickCommand = EncodeCommand(Command{By: "directory", Op: Tick{}})
