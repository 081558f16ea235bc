//go:build peers

package powerloss

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"iter"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"golang.org/x/sync/errgroup"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
)

var (
	damages = flag.Int("power.damage", 1, "how many places of each kind TestPowerDamage damages")
	only    = flag.String("power.only", "", "`text` in the names of the kinds of damage to do; all if empty")
)

// What became of a start on damaged files.
const (
	refused  = "refused"   // it ended and said why
	whole    = "served"    // with everything that was acknowledged
	reseeded = "re-seeded" // it took the state of another node
	replaced = "replaced"  // it was refused, and joined anew with an empty disk
)

// outcomes counts them, by what was damaged.
type outcomes map[string]map[string]int

func (o outcomes) add(kind, outcome string) {
	if o[kind] == nil {
		o[kind] = map[string]int{}
	}
	o[kind][outcome]++
}

func (o outcomes) print(title string, columns ...string) {
	fmt.Printf("powerloss: %s\n%-44s", title, "")
	sums := map[string]int{}
	for _, c := range columns {
		fmt.Printf("%12s", c)
	}
	for _, kind := range slices.Sorted(maps.Keys(o)) {
		fmt.Printf("\n%-44s", kind)
		for _, c := range columns {
			fmt.Printf("%12d", o[kind][c])
			sums[c] += o[kind][c]
		}
	}
	fmt.Printf("\n%-44s", "all")
	for _, c := range columns {
		fmt.Printf("%12d", sums[c])
	}
	fmt.Println()
}

// TestPowerDamage damages the files of a stopped node, -power.damage places of each
// kind, and starts it.
func TestPowerDamage(t *testing.T) {
	d := &damager{
		harness: &harness{programs: built(t), report: &report{}, spawn: newSpawner(), dir: t.TempDir(), seed: *seed, net: fmt.Sprintf("127.%d.", 2+rand.IntN(250))},
		counts:  outcomes{},
	}
	if d.seed == 0 {
		d.seed = rand.Uint64()
	}
	fmt.Printf("powerloss: damage, seed %d\n", d.seed)
	d.rng = rand.New(rand.NewPCG(d.seed, 7))
	if err := d.alone(t.Context()); err != nil {
		t.Errorf("powerloss: VIOLATION one node, seed %d: %v", d.seed, err)
	}
	d.counts.print("one node, started on damaged files", refused, whole)
	d.counts = outcomes{}
	if err := d.among(t.Context()); err != nil {
		t.Errorf("powerloss: VIOLATION three nodes, seed %d: %v", d.seed, err)
	}
	d.counts.print("one node of three, started on damaged files", whole, reseeded, replaced)
}

type damager struct {
	*harness
	rng    *rand.Rand
	counts outcomes
}

// copied is a data directory at rest, and what must be in it.
type copied struct {
	name, dir, older string // older: the directory as it was before
	truth            *load
	backup           string
}

// frozen returns what the writers know now.
func (l *load) frozen() *load {
	f := &load{}
	for _, w := range l.writers {
		w.mu.Lock()
		f.writers = append(f.writers, &writer{id: w.id, truth: maps.Clone(w.truth), pending: w.pending})
		w.mu.Unlock()
	}
	return f
}

// onDirectory makes a node whose directory is not on a volume.
func (d *damager) onDirectory(number int, point string) *node {
	x := &node{name: fmt.Sprintf("n%d", number), point: point, program: d.rookeryd, flags: []string{"--log-segment", segment, "--log-size", logSize}}
	host := fmt.Sprintf("%s200.%d", d.net, number)
	x.client, x.peer, x.http = host+":7905", host+":7906", host+":7907"
	return x
}

// alone damages the files of a node without peers: one that was killed, whose log
// goes on beyond its state, and one that was stopped in order.
func (d *damager) alone(ctx context.Context) error {
	x := d.onDirectory(1, filepath.Join(d.dir, "alone"))
	defer x.kill()
	stopped, killed, err := d.prepare(ctx, x)
	if err != nil {
		return err
	}
	for _, c := range []copied{killed, stopped} {
		for _, k := range kinds {
			if !strings.Contains(k.name, *only) {
				continue
			}
			for range *damages {
				if err := d.try(ctx, x, c, k); err != nil {
					return fmt.Errorf("%s, %s: %w", c.name, k.name, err)
				}
			}
		}
	}
	return d.backups(stopped.backup)
}

// prepare has a node with writers leave its directory, in two ways.
func (d *damager) prepare(ctx context.Context, x *node) (stopped, killed copied, err error) {
	l, err := newLoad([]string{x.client}, d.seed)
	if err != nil {
		return stopped, killed, err
	}
	defer l.close()
	w := &world{}
	copyOf := func(name string) (string, error) {
		to := filepath.Join(d.dir, name)
		_ = os.Remove(filepath.Join(x.data(), "rookery.sock"))
		return to, os.CopyFS(to, os.DirFS(x.data()))
	}
	step := func(f func() error) {
		if err == nil {
			err = f()
		}
	}
	start := func() error {
		if err := x.start(d.spawn); err != nil {
			return err
		}
		_, err := x.ready()
		return err
	}
	write := func(acked int) error {
		before, _ := l.counts()
		l.run(ctx)
		for now := before; now < before+acked; now, _ = l.counts() {
			if err := l.failed(); err != nil {
				return err
			}
			time.Sleep(5 * time.Millisecond)
		}
		return nil
	}
	step(func() error { return os.Mkdir(x.point, 0o700) })
	step(start)
	step(func() error { return errors.Join(write(1000), l.rest(), w.stop(x)) })
	var older string
	step(func() (err error) { older, err = copyOf("older"); return err })
	step(start)
	step(func() error { return errors.Join(write(1500), l.rest()) })
	step(func() error {
		c, err := client.Dial([]string{x.client})
		if err != nil {
			return err
		}
		defer c.Close()
		stopped.backup = filepath.Join(d.dir, "backup.snap")
		f, err := os.Create(stopped.backup)
		if err != nil {
			return err
		}
		_, err = c.SaveSnapshot(ctx, f, func(uint64) {})
		return errors.Join(err, f.Close())
	})
	step(func() error { return w.stop(x) })
	step(func() (err error) {
		stopped.name, stopped.older, stopped.truth = "stopped", older, l.frozen()
		stopped.dir, err = copyOf("stopped")
		return err
	})
	step(start)
	step(func() error { return write(700) })
	// The state is put on disk once a second: just then its log is no longer.
	for tries := 0; err == nil && tries < 20; tries++ {
		if synced, flushed, e := promised(x.data()); e != nil || synced >= flushed+10 {
			err = e
			break
		}
		step(func() error { return write(20) })
	}
	step(func() (err error) {
		l.gate.shut()
		x.kill()
		killed.name, killed.older, killed.truth = "killed", older, l.frozen()
		killed.dir, err = copyOf("killed")
		return err
	})
	step(start)
	l.gate.let()
	step(l.rest)
	x.kill()
	return stopped, killed, err
}

// try starts a node on a damaged copy.
func (d *damager) try(ctx context.Context, x *node, c copied, k kind) error {
	if err := errors.Join(os.RemoveAll(x.data()), os.CopyFS(x.data(), os.DirFS(c.dir))); err != nil {
		return err
	}
	what, err := k.do(d.rng, x.data(), c.older)
	if err != nil || what == "" {
		return err
	}
	if err := x.start(d.spawn); err != nil {
		return err
	}
	defer x.kill()
	if _, err := x.ready(); err != nil {
		if err := x.refusal(); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		d.counts.add(k.name, refused)
		return nil
	}
	a, err := client.Dial([]string{x.client}, client.WithTimeout(patience))
	if err != nil {
		return err
	}
	defer a.Close()
	if err := c.truth.judge(ctx, a); err != nil {
		return fmt.Errorf("%s: it serves, but %w\n%s", what, err, tail(x.log.String()))
	}
	if err := d.goOn(ctx, x, a, c); err != nil {
		return fmt.Errorf("%s: it serves, but later %w", what, err)
	}
	d.counts.add(k.name, whole)
	return nil
}

// goOn writes to a node that was damaged and seems well: what is wrong may show
// only when it puts something new in the wrong place.
func (d *damager) goOn(ctx context.Context, x *node, a *client.Client, c copied) error {
	const more = 300
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(32)
	for i := range more {
		g.Go(func() error {
			_, err := a.Assert(gctx, client.Assert{Mailbox: directory.MailboxName(fmt.Sprintf("user.z%d", i)), Server: "be9.power.test"})
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for range 2 {
		if err := (&world{}).stop(x); err != nil {
			return err
		}
		if err := x.start(d.spawn); err != nil {
			return err
		}
		if _, err := x.ready(); err != nil {
			return err
		}
		if err := c.truth.judge(ctx, a); err != nil {
			return err
		}
		found := 0
		for _, err := range a.FindAll(ctx, client.FindQuery{Prefix: "user.z"}, client.Linearizable()) {
			if err != nil {
				return err
			}
			found++
		}
		if found != more {
			return fmt.Errorf("%d mailboxes of the %d that were written since are there", found, more)
		}
	}
	return nil
}

// refusal looks at how a node ended: by itself, with words.
func (x *node) refusal() error {
	select {
	case <-x.ended:
	default:
		return fmt.Errorf("it neither serves nor ends:\n%s", tail(x.log.String()))
	}
	text := x.log.String()
	switch {
	case x.exit == nil:
		return fmt.Errorf("exit code 0:\n%s", tail(text))
	case x.cmd.ProcessState.ExitCode() != 1, strings.Contains(text, "goroutine "):
		return fmt.Errorf("%w", x.ending())
	case !strings.Contains(text, "corrupt") && !strings.Contains(text, "wrong identity") && !strings.Contains(text, "two histories"):
		return fmt.Errorf("it does not say what is wrong:\n%s", tail(text))
	}
	return nil
}

// backups damages a snapshot file: all of it is under checksums.
func (d *damager) backups(path string) error {
	good, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	bad := filepath.Join(d.dir, "bad.snap")
	for _, a := range []alter{flip, zeroed, cutOff} {
		for range 4 * *damages {
			b := a.do(d.rng, bytes.Clone(good))
			if bytes.Equal(b, good) {
				continue
			}
			if err := os.WriteFile(bad, b, 0o600); err != nil {
				return err
			}
			cmd := exec.Command(d.rookeryctl, "snapshot", "restore", bad, "--data", filepath.Join(d.dir, "never"), "--name", "n1")
			out, err := cmd.CombinedOutput()
			if err == nil || cmd.ProcessState.ExitCode() != 1 {
				return fmt.Errorf("%s: %v\n%s", a.name, err, tail(string(out)))
			}
			if _, err := os.Stat(filepath.Join(d.dir, "never", "shard-1")); !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("%s: something of it is there: %v", a.name, err)
			}
			d.counts.add("backup, "+a.name, refused)
		}
	}
	return nil
}

// kind is a way to damage a data directory. It returns what it did; nothing if
// there was nothing to do it to.
type kind struct {
	name string
	do   func(rng *rand.Rand, data, older string) (string, error)
}

// kinds are all of them.
var kinds = slices.Concat(
	each("log, head segment", segmentAt(0), flip, zeroed, zeroLength, cutOff),
	each("log, middle segment", segmentAt(1), flip, zeroed, zeroLength, cutOff),
	each("log, tail segment", segmentAt(2), flip, zeroed, zeroLength, cutOff),
	[]kind{{"log, entry after the state, length word zeroed", lose}},
	each("promise", named("shard-1/promise"), flip, zeroed, allZero, cutOff),
	each("birth", named("birth"), flip, zeroed, cutOff),
	each("state", named("shard-1/state.db"), cutOff),
	pages("meta", "branch", "leaf", "freelist", "free"),
	[]kind{
		{"promise, gone", gone("shard-1/promise")}, {"promise, older", older("shard-1/promise")},
		{"state, gone", gone("shard-1/state.db")}, {"state, older", older("shard-1/state.db")},
		{"log, gone", gone("shard-1/wal")}, {"log, older", older("shard-1/wal")},
		{"log, tail segment gone", removed(segmentAt(2))}, {"log, middle segment gone", removed(segmentAt(1))},
		{"birth, gone", gone("birth")},
		{"state and log, older", both(older("shard-1/state.db"), older("shard-1/wal"))},
	},
)

// alter changes the contents of a file.
type alter struct {
	name string
	do   func(*rand.Rand, []byte) []byte
}

var (
	flip       = alter{"bit flipped", flipBit}
	zeroed     = alter{"sector zeroed", zeroSector}
	zeroLength = alter{"length word zeroed", zeroWord}
	cutOff     = alter{"cut off", cut}
	allZero    = alter{"all zero", func(_ *rand.Rand, b []byte) []byte { clear(b); return b }}
)

// where finds a file, and how much of it from its beginning is in use.
type where func(data string) (path string, used int, err error)

func each(name string, w where, alters ...alter) (list []kind) {
	for _, a := range alters {
		list = append(list, kind{name + ", " + a.name, rewrite(w, a)})
	}
	return list
}

func rewrite(w where, a alter) func(*rand.Rand, string, string) (string, error) {
	return func(rng *rand.Rand, data, _ string) (string, error) {
		path, used, err := w(data)
		if err != nil || path == "" {
			return "", err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return "", err
		}
		was := bytes.Clone(b)
		after := a.do(rng, b[:used:used])
		if len(after) == used { // else it was cut off
			after = append(after, b[used:]...)
		}
		if bytes.Equal(was, after) {
			return "", nil
		}
		return path, os.WriteFile(path, after, 0o600)
	}
}

func flipBit(rng *rand.Rand, b []byte) []byte {
	b[rng.IntN(len(b))] ^= 1 << rng.IntN(8)
	return b
}

func zeroSector(rng *rand.Rand, b []byte) []byte {
	from := rng.IntN((len(b)+511)/512) * 512
	clear(b[from:min(from+512, len(b))])
	return b
}

// zeroLength makes a record of the log look like its end.
func zeroWord(rng *rand.Rand, b []byte) []byte {
	var starts []int
	for at := range records(b) {
		starts = append(starts, at)
	}
	at := starts[rng.IntN(len(starts))]
	clear(b[at : at+8])
	return b
}

// records gives the records of a segment of the log, and where their length words are.
func records(b []byte) iter.Seq2[int, []byte] {
	return func(yield func(int, []byte) bool) {
		for at := 0; at+8 <= len(b); {
			word := binary.LittleEndian.Uint64(b[at:])
			size := int(word &^ (0xff << 56))
			if word == 0 || at+8+size > len(b) || !yield(at, b[at+8:at+8+size]) {
				return
			}
			at += 8 + (size+7)/8*8
		}
	}
}

// lose makes the log look as if it ended before an entry that was acknowledged and
// that the state does not include: nothing but the promise can tell.
func lose(rng *rand.Rand, data, _ string) (string, error) {
	synced, flushed, err := promised(data)
	if err != nil {
		return "", err
	}
	list, err := filepath.Glob(filepath.Join(data, "shard-1/wal/*.wal"))
	if err != nil {
		return "", err
	}
	type place struct {
		path string
		at   int
	}
	var places []place
	for i := len(list) - 1; i >= 0 && places == nil; i-- {
		b, err := os.ReadFile(list[i])
		if err != nil {
			return "", err
		}
		for at, record := range records(b) {
			var r walpb.Record
			var e raftpb.Entry
			if err := proto.Unmarshal(record, &r); err != nil {
				return "", err
			}
			if r.GetType() != entryRecord {
				continue
			}
			if err := proto.Unmarshal(r.GetData(), &e); err != nil {
				return "", err
			}
			if e.GetIndex() > flushed && e.GetIndex() <= synced {
				places = append(places, place{list[i], at})
			}
		}
	}
	if places == nil {
		return "", nil
	}
	p := places[rng.IntN(len(places))]
	b, err := os.ReadFile(p.path)
	if err != nil {
		return "", err
	}
	clear(b[p.at : p.at+8])
	return fmt.Sprintf("%s, octet %d, of a log up to %d and a state up to %d", p.path, p.at, synced, flushed), os.WriteFile(p.path, b, 0o600)
}

// entryRecord is the type of a record of etcd's log that holds an entry.
const entryRecord = 2

// promised reads how far log and state are certainly on disk.
func promised(data string) (synced, flushed uint64, err error) {
	b, err := os.ReadFile(filepath.Join(data, "shard-1/promise"))
	if err != nil {
		return 0, 0, err
	}
	newest := uint64(0)
	for _, at := range []int{0, 4096} {
		if at+40 > len(b) {
			continue
		}
		word := func(i int) uint64 { return binary.BigEndian.Uint64(b[at+8*i:]) }
		if word(1) > newest {
			newest, synced, flushed = word(1), word(3), word(4)
		}
	}
	return synced, flushed, nil
}

func cut(rng *rand.Rand, b []byte) []byte { return b[:rng.IntN(len(b))] }

func named(name string) where {
	return func(data string) (string, int, error) {
		path := filepath.Join(data, name)
		info, err := os.Stat(path)
		if err != nil {
			return "", 0, err
		}
		return path, int(info.Size()), nil
	}
}

// segmentAt finds the first segment, one in the middle, or the last.
func segmentAt(third int) where {
	return func(data string) (string, int, error) {
		list, err := filepath.Glob(filepath.Join(data, "shard-1/wal/*.wal"))
		if err != nil || len(list) == 0 {
			return "", 0, fmt.Errorf("no segments: %w", err)
		}
		path := list[(len(list)-1)*third/2]
		b, err := os.ReadFile(path)
		return path, len(bytes.TrimRight(b, "\x00")), err
	}
}

func gone(name string) func(*rand.Rand, string, string) (string, error) {
	return func(_ *rand.Rand, data, _ string) (string, error) {
		return name, os.RemoveAll(filepath.Join(data, name))
	}
}

func removed(w where) func(*rand.Rand, string, string) (string, error) {
	return func(_ *rand.Rand, data, _ string) (string, error) {
		path, _, err := w(data)
		if err != nil {
			return "", err
		}
		return path, os.Remove(path)
	}
}

func older(name string) func(*rand.Rand, string, string) (string, error) {
	return func(_ *rand.Rand, data, older string) (string, error) {
		to, from := filepath.Join(data, name), filepath.Join(older, name)
		info, err := os.Stat(from)
		if err != nil {
			return "", err
		}
		if info.IsDir() {
			return name, errors.Join(os.RemoveAll(to), os.CopyFS(to, os.DirFS(from)))
		}
		b, err := os.ReadFile(from)
		return name, errors.Join(err, os.WriteFile(to, b, 0o600))
	}
}

func both(a, b func(*rand.Rand, string, string) (string, error)) func(*rand.Rand, string, string) (string, error) {
	return func(rng *rand.Rand, data, older string) (string, error) {
		if _, err := a(rng, data, older); err != nil {
			return "", err
		}
		return b(rng, data, older)
	}
}

// pages damages one page of the state file, of each of some types.
func pages(types ...string) (list []kind) {
	for _, typ := range types {
		for _, a := range []alter{flip, zeroed} {
			list = append(list, kind{
				fmt.Sprintf("state, %s page, %s", typ, a.name),
				func(rng *rand.Rand, data, _ string) (string, error) {
					path := filepath.Join(data, "shard-1/state.db")
					all, size, err := pagesOf(path, typ)
					if err != nil || len(all) == 0 {
						return "", err
					}
					at := all[rng.IntN(len(all))] * size
					// The rest of these pages is not in use.
					switch typ {
					case "meta":
						size = metaSize
					case "freelist":
						size = min(size, freelistUsed(path, at))
					}
					b, err := os.ReadFile(path)
					if err != nil {
						return "", err
					}
					was := bytes.Clone(b)
					a.do(rng, b[at:at+size])
					if bytes.Equal(was, b) {
						return "", nil
					}
					return fmt.Sprintf("page at %d, octet %d", at, firstDifference(was, b)), os.WriteFile(path, b, 0o600)
				},
			})
		}
	}
	return list
}

// metaSize is how much of a meta page bbolt uses: a header of 16 octets, and 64.
const metaSize = 80

// freelistUsed returns the same of a short free list: a header with the number of
// pages at octet 10, then 8 octets for each.
func freelistUsed(path string, at int) int {
	b, err := os.ReadFile(path)
	if err != nil || at+16 > len(b) {
		return 16
	}
	return 16 + 8*int(binary.NativeEndian.Uint16(b[at+10:]))
}

func firstDifference(a, b []byte) int {
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return -1
}

// pagesOf lists the pages of a type.
func pagesOf(path, typ string) (list []int, size int, err error) {
	db, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: time.Second, ReadOnly: true, PreLoadFreelist: true})
	if err != nil {
		return nil, 0, err
	}
	defer db.Close()
	err = db.View(func(tx *bolt.Tx) error {
		for i := 0; ; i++ {
			p, err := tx.Page(i)
			if err != nil || p == nil {
				return err
			}
			if p.Type == typ {
				list = append(list, i)
			}
			i += p.OverflowCount
		}
	})
	return list, db.Info().PageSize, err
}
