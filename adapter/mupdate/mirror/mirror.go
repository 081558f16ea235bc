package mirror

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/rookery-mail/rookery/adapter/mupdate/mupdateclient"
	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
)

// Config says what to mirror, and how. Directory, Connect and Told are needed.
type Config struct {
	// Directory asks and tells the directory; its role is operator.
	Directory *client.Session
	// Connect connects to the master and logs in. It is called for each of the two
	// connections of a round.
	Connect func(context.Context) (*mupdateclient.Client, error)
	// Told is told what happens, by one goroutine.
	Told func(Event)

	// Reverse makes the master equal to the directory; else it is the other way round.
	Reverse bool
	// Check changes nothing.
	Check bool
	// Once ends when both sides have been compared, and made equal.
	Once bool

	// Of the first listing:
	//
	// Withdraw takes back however much the source lacks.
	Withdraw bool
	// Overrule takes the master's word also where the directory was told something after
	// the mirror last found them equal.
	Overrule bool

	// Replicas: reverse even while backends hold copies of mailboxes that the master is
	// told others have. See ErrReplicas.
	Replicas bool

	// SpoolDir is where listings wait; empty: the system's.
	SpoolDir string

	// Settle is how long a difference has to stand before it is one: what one side was
	// told may be under way to the other.
	Settle time.Duration
	// Every is how often the number of differences is told though it is the same.
	Every time.Duration
	// Claim is how long a name that is reserved and that nobody holds is taken for one
	// that is being made.
	Claim time.Duration
	// Retry is how long after a break the next round begins; it doubles up to 30 s.
	Retry time.Duration
	// Ping is after how long a silence the master is asked whether it is there.
	Ping time.Duration
}

// The defaults of Config.
const (
	DefaultSettle = 5 * time.Second
	DefaultEvery  = time.Hour
	DefaultClaim  = 10 * time.Second
	DefaultRetry  = time.Second
	DefaultPing   = 20 * time.Second
	longestRetry  = 30 * time.Second
)

// Kind is a kind of event.
type Kind uint8

const (
	// Connected: a round begins. Text is what the master says of itself.
	Connected Kind = 1
	// Listed: both sides have been listed. Records and Mailboxes are how many the master
	// and the directory have, Count how many differ, as it seems.
	Listed Kind = 2
	// Appeared: a difference stands.
	Appeared Kind = 3
	// Ended: it does not stand any more. Only Mailbox is set.
	Ended Kind = 4
	// Mended: a name differed, and the target was changed. Why says what was done.
	Mended Kind = 5
	// Counted: Count differences stand; or none does, since Since. The last is this, where
	// both sides are compared when ctx ends.
	Counted Kind = 6
	// Withheld: the source lacks Count of the Records that the target has of Server, too
	// many for it to be believed: none is taken back.
	Withheld Kind = 7
	// Lost: the round ended by Err; the next begins in Wait.
	Lost Kind = 8
	// Waiting: the directory does not answer, by Err; it is asked again.
	Waiting Kind = 9
	// Itself: Server speaks to the directory itself; its facts are left alone.
	Itself Kind = 10
	// Wiped: a Server holds Count copies of mailboxes that the master is told others have:
	// it would delete them if it ran ctl_mboxlist -m against that master.
	Wiped Kind = 11
)

func (k Kind) String() string {
	names := [...]string{"", "connected", "listed", "difference", "ended", "mended", "differences", "withheld", "lost", "waiting", "speaks-itself", "copies"}
	if k > 0 && int(k) < len(names) {
		return names[k]
	}
	return "unknown"
}

// Event is something that happened.
type Event struct {
	Kind Kind
	Time time.Time
	Text string
	Difference
	Records, Mailboxes, Count int
	Since                     time.Time
	Server                    directory.BackendName
	Err                       error
	Wait                      time.Duration
}

// ErrReplicas: some backend holds copies of mailboxes of which the master is to be told
// that others have them. A Cyrus backend that runs ctl_mboxlist -m against a master that
// names another server deletes its own copy, and its mail with it.
var ErrReplicas = errors.New("mirror: backends hold copies of mailboxes that the master would be told others have")

// ErrLost: the one round of Once broke off.
var ErrLost = errors.New("mirror: broke off")

// Outcome is what a run came to.
type Outcome struct {
	// Compared: both sides were compared to the end, and what differed is known.
	Compared    bool
	Differences int
}

// mirror is one Run.
type mirror struct {
	cfg    Config
	ledger *ledger
	in     bool // the master has let us in
	listed bool // some round has acted on a listing
	out    Outcome
	equal  map[directory.BackendName]directory.Revision // found so by this run
	noted  map[directory.BackendName]directory.Revision // the confirmation that says so to another run
	own    revisions                                    // of our own statements
	gone   map[directory.MailboxName]gone               // what we took away since its server was found equal
}

// gone is a fact that a statement of ours took away.
type gone struct {
	server directory.BackendName
	at     directory.Revision
}

// Run mirrors until ctx ends, for which it returns no error.
//
// Errors: ErrReplicas; a *mupdateclient.Refused, or that of a certificate, of a first
// login; directory.ErrRole; with Once ErrLost.
func Run(ctx context.Context, cfg Config) (Outcome, error) {
	cfg.Settle = cmp.Or(cfg.Settle, DefaultSettle)
	cfg.Every = cmp.Or(cfg.Every, DefaultEvery)
	cfg.Claim = cmp.Or(cfg.Claim, DefaultClaim)
	cfg.Retry = cmp.Or(cfg.Retry, DefaultRetry)
	cfg.Ping = cmp.Or(cfg.Ping, DefaultPing)
	told := cfg.Told
	cfg.Told = func(e Event) {
		e.Time = time.Now()
		told(e)
	}
	m := &mirror{cfg: cfg, ledger: newLedger(cfg.Told), equal: make(map[directory.BackendName]directory.Revision), noted: make(map[directory.BackendName]directory.Revision), gone: make(map[directory.MailboxName]gone)}
	wait := cfg.Retry
	for {
		live, err := m.round(ctx)
		m.out.Differences = m.ledger.size()
		switch {
		case errors.Is(err, errDone):
			return m.out, nil
		case ctx.Err() != nil:
			if m.out.Compared {
				m.counted()
			}
			return m.out, nil
		case m.final(err):
			return m.out, err
		case cfg.Once:
			return m.out, errors.Join(ErrLost, err)
		}
		m.ledger.none, m.out.Compared = time.Time{}, false
		if live {
			wait = cfg.Retry
		}
		pause := wait/2 + rand.N(wait/2+1)
		cfg.Told(Event{Kind: Lost, Err: err, Wait: pause})
		wait = min(2*wait, longestRetry)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return m.out, nil
		}
	}
}

// counted tells how many differences stand.
func (m *mirror) counted() {
	m.cfg.Told(Event{Kind: Counted, Count: m.ledger.size(), Since: m.ledger.none})
}

// final reports whether another round cannot end better.
func (m *mirror) final(err error) bool {
	if errors.Is(err, ErrReplicas) || errors.Is(err, directory.ErrRole) {
		return true
	}
	if m.in {
		return false // a master that has been restarted may refuse for a while
	}
	refused, is := errors.AsType[*mupdateclient.Refused](err)
	_, verify := errors.AsType[*tls.CertificateVerificationError](err)
	return is && refused.Word == "NO" || verify || errors.Is(err, mupdateclient.ErrNoMechanism) || errors.Is(err, mupdateclient.ErrNoTLS)
}
