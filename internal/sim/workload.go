package sim

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/directory/machine"
	"github.com/rookery-mail/rookery/server"
)

// Workload is who uses the cluster of a world: backends with their mailboxes,
// replicas that copy, a test machine that claims what is not its own, operators,
// frontends and delivery. All of them speak to the nodes as real clients do, through
// the API, and keep their own books: truth.go knows what each backend holds and what
// the directory has acknowledged, judge.go replays the log.
type Workload struct {
	w     *World
	rnd   *rand.Rand // its own, so that the actors' chance does not depend on the faults'
	plan  cast
	judge *judge
	truth *truth

	backends []*backend
	byName   map[directory.BackendName]*backend
	counts   workCounts
}

// cast is who plays in a seed, and how.
type cast struct {
	backends, grouped int // of the backends, the first so many are one group
	clones, strangers int
	users             int
	pace              time.Duration // between two actions of one backend, about
	readers           int
	guardCount        uint32
	guardPercent      uint32
	window            directory.Time
	grace             directory.Time
	// What backends do, by weight. Where one is 0, this seed does not know it.
	weights map[string]int
	// What operators do, likewise.
	chores map[string]int
}

// What a backend and an operator may do.
var (
	deeds = []string{"create", "folder", "acl", "delete", "rename", "xfer", "subscribe", "resync", "away", "spool", "old", "unmount", "odd"}
	duty  = []string{"admit", "group", "drain", "down", "lost", "settle", "hold", "decide", "settings", "confirm", "rename", "look", "import"}
)

func drawCast(r *rand.Rand) cast {
	c := cast{
		backends: 4 + r.IntN(4), users: 10 + r.IntN(25), readers: 2 + r.IntN(3),
		pace:       []time.Duration{700 * time.Millisecond, time.Second, 1500 * time.Millisecond}[r.IntN(3)],
		guardCount: uint32(4 + r.IntN(12)), guardPercent: uint32(5 * r.IntN(4)),
		window: directory.Time(2+r.IntN(5)) * 60_000, grace: directory.Time(10+r.IntN(50)) * 1000,
		weights: map[string]int{}, chores: map[string]int{},
	}
	if r.IntN(3) > 0 {
		c.grouped = 2 + r.IntN(2)
	}
	c.clones, c.strangers = r.IntN(2), r.IntN(3)
	usual := map[string]int{"create": 14, "folder": 20, "acl": 14, "delete": 8, "rename": 5, "xfer": 9, "subscribe": 6, "resync": 4, "odd": 4,
		"away": 1, "spool": 1, "old": 1, "unmount": 1}
	for _, what := range deeds {
		if n := usual[what]; r.IntN(4) > 0 || what == "create" || what == "folder" {
			c.weights[what] = n + r.IntN(n+1)
		}
	}
	for _, what := range duty {
		if r.IntN(3) > 0 {
			c.chores[what] = 1 + r.IntN(3)
		}
	}
	if c.strangers > 0 {
		c.chores["admit"] = 0
	}
	return c
}

// NewWorkload draws who uses w. The world must not have begun to run.
func NewWorkload(w *World) *Workload {
	x := &Workload{w: w, rnd: rand.New(rand.NewPCG(w.seed, 2)), byName: map[directory.BackendName]*backend{}}
	x.plan = drawCast(x.rnd)
	x.truth = newTruth(x)
	x.judge = newJudge(x)
	w.OnApply(x.judge.applied)
	w.OnRestore(func(incarnation, lostAfter uint64) {
		x.judge.restored(incarnation, lostAfter)
		x.truth.restored(incarnation, lostAfter)
	})
	return x
}

// Start lets everybody begin.
func (x *Workload) Start() {
	for i := range x.plan.backends {
		x.add(fmt.Sprintf("be%d.example.com", i+1), kindBackend, 0)
	}
	for i := range x.plan.clones {
		x.add(fmt.Sprintf("clone%d.example.com", i+1), kindClone, x.some(60*time.Second, 400*time.Second))
	}
	for i := range x.plan.strangers {
		x.add(fmt.Sprintf("test%d.example.com", i+1), kindStranger, x.some(60*time.Second, 300*time.Second))
	}
	for _, b := range x.backends {
		x.w.Go(string(b.name), b.run)
	}
	x.w.Go("mail operator", (&operator{session: x.session("op", server.Caller{Role: server.RoleOperator, Name: "carol"})}).run)
	if x.plan.grouped > 1 {
		x.w.Go("failover", newFailover(x).run)
	}
	for i := range x.plan.readers {
		f := &frontend{session: x.session(fmt.Sprint("fe", i+1), server.Caller{Role: server.RoleFrontend, Name: fmt.Sprintf("fe%d.example.com", i+1)})}
		f.delivers = i%2 == 1
		x.w.Go(f.name, f.run)
	}
	x.w.Go("inspector", x.judge.inspect)
}

func (x *Workload) add(name string, kind backendKind, after time.Duration) {
	b := &backend{
		session: x.session(name, server.Caller{Role: server.RoleBackend, Name: name}), name: directory.BackendName(name), kind: kind,
		begins: after, store: map[directory.MailboxName]box{}, busy: map[directory.MailboxName]bool{},
	}
	x.backends = append(x.backends, b)
	x.byName[b.name] = b
}

func (x *Workload) some(low, high time.Duration) time.Duration {
	return low + time.Duration(x.rnd.Int64N(int64(high-low)+1))
}

// pick draws by weight.
func (x *Workload) pick(names []string, weights map[string]int) string {
	total := 0
	for _, n := range names {
		total += weights[n]
	}
	if total == 0 {
		return ""
	}
	at := x.rnd.IntN(total)
	for _, n := range names {
		if at -= weights[n]; at < 0 {
			return n
		}
	}
	return ""
}

// workCounts is what the actors did.
type workCounts struct {
	commands map[string]int // by kind, those answered
	refused  map[string]int // by reason
	effects  map[string]int
	outcomes map[string]int // of routes
	unknown  int            // writes given up without knowing
	reads    int            // answered
	failed   int            // reads given up
	deeds    map[string]int
	// compared is how many answers were held against the oracle at their revision,
	// states how many whole states; skipped how many were too old for that.
	compared, skipped, states int
	certain                   int // absences and listings held against the truth
}

func count(m *map[string]int, what string) {
	if *m == nil {
		*m = map[string]int{}
	}
	(*m)[what]++
}

func inOrder(m map[string]int) string {
	var all []string
	for _, what := range slices.Sorted(maps.Keys(m)) {
		all = append(all, fmt.Sprintf("%s %d", what, m[what]))
	}
	return strings.Join(all, ", ")
}

// Describe says what was done, for people.
func (x *Workload) Describe() string {
	c := &x.counts
	total := 0
	for _, n := range c.commands {
		total += n
	}
	return fmt.Sprintf("%d commands answered (%s); refused: %s; unknown %d; effects: %s; %d reads, %d given up; routes: %s; deeds: %s; %d answers compared, %d not, %d states; %d claims held against the truth",
		total, inOrder(c.commands), inOrder(c.refused), c.unknown, inOrder(c.effects), c.reads, c.failed, inOrder(c.outcomes), inOrder(c.deeds),
		c.compared, c.skipped, c.states, c.certain)
}

// leastRate is how many writes and reads must have been answered in a hundred
// seconds, or a seed proves nothing.
const leastRate = 20

// Check judges the end: all that can be said only then, and that enough was done.
func (x *Workload) Check() {
	x.judge.end()
	n := x.counts.reads
	for _, k := range x.counts.commands {
		n += k
	}
	if least := int(x.w.now/time.Second) * leastRate / 100; n < least {
		x.w.Fail("idle: %d calls answered in %v, at least %d are needed: %s", n, x.w.now, least, x.Describe())
	}
}

// Names, and who may see what.

func (x *Workload) user() directory.UserID {
	return directory.UserID(fmt.Sprintf("u%02d", x.rnd.IntN(x.plan.users)))
}

func inbox(user directory.UserID) directory.MailboxName {
	return directory.MailboxName("user." + string(user))
}

var folders = []string{"Sent", "Trash", "Lists", "Lists.a", "Lists.b", "Work", "Work.x.y"}

// acl draws an ACL that its owner can always see by.
func (x *Workload) acl(name directory.MailboxName) string {
	acl := ""
	if owner, ok := name.Owner(); ok {
		acl = string(owner) + "\tlrswipkxtecda\t"
	}
	switch x.rnd.IntN(8) {
	case 0:
		acl += "anyone\tp\t"
	case 1:
		acl += "anyone\tlr\t"
	case 2:
		acl += string(x.user()) + "\tlrs\t"
	case 3:
		acl += "group:staff\tlr\t-" + string(x.user()) + "\tlr\t"
	case 4:
		acl += "group:staff\tl\t"
	}
	if directory.CheckACL(acl) != nil { // one identifier twice
		return x.acl(name)
	}
	return acl
}

// mallory is who a test machine's ACLs let in.
const mallory = "mallory"

func names[V any](m map[directory.MailboxName]V) []directory.MailboxName {
	return slices.SortedFunc(maps.Keys(m), directory.CompareNames)
}

// opsOf are the parts of an operation.
func opsOf(op machine.Op) []machine.Op {
	if b, ok := op.(machine.Batch); ok {
		return b.Ops
	}
	return []machine.Op{op}
}

func (x *Workload) did(what string) { count(&x.counts.deeds, what) }

// over tells whether the world has ended.
func over(ctx context.Context) bool { return worldOf(ctx).ended }
