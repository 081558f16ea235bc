package mirror

import (
	"time"

	"github.com/rookery-mail/rookery/directory"
)

// Difference is one name of which the two sides do not say the same.
type Difference struct {
	Mailbox           directory.MailboxName // as the master has it: it may be no name here
	Master, Directory *Record               // nil: not there
	// Why it stands, or what was done; empty where nothing is to be said.
	Why string
}

func (d *Difference) String() string { return differs(d.Master, d.Directory) }

// maxDifferences is how many differences are remembered.
const maxDifferences = 200_000

// ledger keeps the differences that stand.
type ledger struct {
	stand  map[directory.MailboxName][2]directory.BackendName // with whose they are
	of     map[directory.BackendName]int
	beyond int       // not remembered, there are too many
	none   time.Time // since when there is none; zero: there is one, or nobody knows
	told   func(Event)
}

func newLedger(told func(Event)) *ledger {
	return &ledger{stand: make(map[directory.MailboxName][2]directory.BackendName), of: make(map[directory.BackendName]int), told: told}
}

// begin notes that a difference stands. It is told once.
func (l *ledger) begin(d Difference) {
	var whose [2]directory.BackendName
	for i, r := range []*Record{d.Master, d.Directory} {
		if r != nil {
			whose[i] = r.Location.Backend
		}
	}
	was, stood := l.stand[d.Mailbox]
	switch {
	case stood:
		l.count(was, -1)
	case len(l.stand) == maxDifferences:
		l.beyond++
		l.none = time.Time{}
		l.count(whose, 1)
		l.told(Event{Kind: Appeared, Difference: d})
		return
	}
	l.none = time.Time{}
	l.stand[d.Mailbox] = whose
	l.count(whose, 1)
	if !stood {
		l.told(Event{Kind: Appeared, Difference: d})
	}
}

func (l *ledger) count(whose [2]directory.BackendName, n int) {
	for _, b := range whose {
		if b != "" {
			l.of[b] += n
		}
	}
}

// end notes that the sides say the same of a name.
func (l *ledger) end(name directory.MailboxName) {
	if whose, stood := l.stand[name]; stood {
		delete(l.stand, name)
		l.count(whose, -1)
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

// clean reports whether nothing differs that is of a backend.
func (l *ledger) clean(b directory.BackendName) bool { return l.of[b] == 0 }
