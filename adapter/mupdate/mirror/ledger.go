package mirror

import (
	"fmt"
	"time"

	"github.com/rookery-mail/rookery/directory"
)

// Difference is one name of which the two sides do not say the same.
type Difference struct {
	Mailbox           directory.MailboxName // as the master has it: it may be no name here
	Master, Directory *Record               // nil: not there
	// Unknown: what the master has is not known; Why says why.
	Unknown bool
	// Why it stands, or what was done; empty where nothing is to be said.
	Why string
	// younger: the directory's word is younger than the master's, or may be.
	younger bool
}

func (d *Difference) String() string {
	switch {
	case !d.Unknown:
		return differs(d.Master, d.Directory)
	case d.Directory == nil:
		return "not in the directory"
	}
	return fmt.Sprintf("in the directory at %s", d.Directory.Location)
}

// maxDifferences is how many differences are remembered.
const maxDifferences = 200_000

// ledger keeps the differences that stand.
type ledger struct {
	stand  map[directory.MailboxName]whose
	of     map[directory.BackendName]int // how many stand because the directory's word is younger
	beyond int                           // not remembered, there are too many
	none   time.Time                     // since when there is none; zero: there is one, or nobody knows
	told   func(Event)
}

// whose are the backends that stated to the directory what the master does not say. Empty:
// none did.
type whose [2]directory.BackendName

func newLedger(told func(Event)) *ledger {
	return &ledger{stand: make(map[directory.MailboxName]whose), of: make(map[directory.BackendName]int), told: told}
}

// begin notes that a difference stands. It is told once.
func (l *ledger) begin(d Difference) {
	var by whose
	for i, r := range []*Record{d.Master, d.Directory} {
		if r != nil && d.younger {
			by[i] = r.Location.Backend
		}
	}
	l.none = time.Time{}
	was, stood := l.stand[d.Mailbox]
	switch {
	case stood:
		l.count(was, -1)
	case len(l.stand) == maxDifferences:
		l.beyond++ // what is of it stays counted until the next listing
	}
	if l.count(by, 1); stood || len(l.stand) < maxDifferences {
		l.stand[d.Mailbox] = by
	}
	if !stood {
		l.told(Event{Kind: Appeared, Difference: d})
	}
}

func (l *ledger) count(by whose, n int) {
	for _, b := range by {
		if b != "" {
			l.of[b] += n
		}
	}
}

// end notes that the sides say the same of a name.
func (l *ledger) end(name directory.MailboxName) {
	if by, stood := l.stand[name]; stood {
		delete(l.stand, name)
		l.count(by, -1)
		l.told(Event{Kind: Ended, Difference: Difference{Mailbox: name}})
	}
}

// has reports whether a difference stands.
func (l *ledger) has(name directory.MailboxName) bool {
	_, stands := l.stand[name]
	return stands
}

// size is how many differences stand.
func (l *ledger) size() int { return len(l.stand) + l.beyond }

// recount forgets, before a listing, that there were too many.
func (l *ledger) recount() {
	if l.beyond == 0 {
		return
	}
	l.beyond = 0
	clear(l.of)
	for _, by := range l.stand {
		l.count(by, 1)
	}
}

// clean reports whether nothing stands that a backend stated to the directory.
func (l *ledger) clean(b directory.BackendName) bool { return l.of[b] == 0 }
