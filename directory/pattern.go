package directory

import "strings"

// A Pattern is a compiled LIST pattern over whole client-form names: '*'
// stands for any run of octets, '%' for any run without the separator, every
// other octet for itself. The zero Pattern matches the empty name alone.
// A Pattern is not changed by use; goroutines may share it.
//
// Matching costs the name's length times the number of 64-octet words that the
// pattern's literals fill, whatever the wildcards: the pattern is run as an
// automaton whose states are bits, so nothing is ever tried twice.
//
// RFC 3501 6.3.8.
type Pattern struct {
	prefix   string     // what stands before the first wildcard
	general  *automaton // for shapeGeneral: what follows it
	shape    patternShape
	bareStar bool
	sep      byte
}

type patternShape uint8

const (
	shapeLiteral patternShape = iota // prefix
	shapeLevel                       // prefix%
	shapeStar                        // prefix*
	shapeGeneral
	shapeNever // more literals than any name has octets
)

// maxClientName is more octets than any name has in client form: a canonical
// name, the longest first level before it and a domain.
const maxClientName = 1024

// CompilePattern compiles an interpreted pattern, as Interpret returns it, for
// names with that separator. Any text is a pattern.
func CompilePattern(interpreted string, sep byte) Pattern {
	p := Pattern{prefix: interpreted, sep: sep, bareStar: strings.HasSuffix(interpreted, "*")}
	wild := strings.IndexAny(interpreted, "*%")
	if wild < 0 {
		return p
	}
	p.prefix = interpreted[:wild]
	rest := interpreted[wild:]
	tail := strings.Trim(rest, "*%")
	switch {
	case tail == "" && strings.IndexByte(rest, '*') >= 0:
		p.shape = shapeStar
		return p
	case tail == "":
		p.shape = shapeLevel
		return p
	}
	if len(tail)-strings.Count(tail, "*")-strings.Count(tail, "%") > maxClientName {
		p.shape = shapeNever // nor is there memory to be had with it
		return p
	}
	p.shape = shapeGeneral
	p.general = newAutomaton(rest, sep)
	return p
}

// LiteralPrefix returns what every match begins with: the octets before the
// first wildcard.
func (p Pattern) LiteralPrefix() string { return p.prefix }

// IsLiteral says whether p has no wildcard and so matches one name.
func (p Pattern) IsLiteral() bool { return p.shape == shapeLiteral }

// EndsInBareStar says whether the pattern's last octet is '*'. Names that are
// only parents of visible mailboxes do not answer such a pattern; they do
// answer one that ends in "*%".
func (p Pattern) EndsInBareStar() bool { return p.bareStar }

// Match says whether p matches the whole of name.
func (p Pattern) Match(name string) bool {
	rest, ok := strings.CutPrefix(name, p.prefix)
	if !ok {
		return false
	}
	switch p.shape {
	case shapeLiteral:
		return rest == ""
	case shapeStar:
		return true
	case shapeLevel:
		return strings.IndexByte(rest, p.sep) < 0
	case shapeNever:
		return false
	}
	return p.general.match(rest)
}

// CouldMatchBelow says whether some name below the client-form name parent,
// that is parent, the separator and more, could match. If not, a reader may
// seek past everything below parent. It may say yes for nothing: then the
// reader only works more. An empty parent is above all names.
func (p Pattern) CouldMatchBelow(parent string) bool {
	if parent == "" {
		return p.shape != shapeLiteral || p.prefix != ""
	}
	if n := len(parent); n < len(p.prefix) { // parent and the separator are all in the prefix
		return p.prefix[:n] == parent && p.prefix[n] == p.sep && (p.shape != shapeLiteral || n+1 < len(p.prefix))
	}
	rest, ok := strings.CutPrefix(parent, p.prefix)
	if !ok {
		return false
	}
	switch p.shape {
	case shapeLiteral, shapeLevel, shapeNever:
		return false
	case shapeStar:
		return true
	}
	return p.general.matchBelow(rest)
}

// An automaton runs the part of a pattern that begins with its first wildcard.
// State i means that i of its literal octets have been matched in order; the
// last state is a match. A wildcard keeps the state it stands at alive.
type automaton struct {
	last    int // the number of literals
	sep     byte
	class   [256]uint8 // octet to row of steps; row 0 is for octets that are no literal
	steps   []uint64   // rows of words: bit i is set where literal i is of that class
	loopAny []uint64   // states that a '*' stands at
	loopAll []uint64   // states that a '*' or '%' stands at
}

func newAutomaton(pattern string, sep byte) *automaton {
	a := &automaton{sep: sep}
	a.last = len(pattern) - strings.Count(pattern, "*") - strings.Count(pattern, "%")
	words := a.last/64 + 1
	a.loopAny = make([]uint64, words)
	a.loopAll = make([]uint64, words)
	a.steps = make([]uint64, words, 8*words)
	rows := 1
	state := 0
	for i := range len(pattern) {
		word, bit := state/64, uint64(1)<<(state%64)
		switch c := pattern[i]; c {
		case '*':
			a.loopAny[word] |= bit
			a.loopAll[word] |= bit
		case '%':
			a.loopAll[word] |= bit
		default:
			if a.class[c] == 0 { // '*' and '%' need no row, so 254 at most
				a.class[c] = uint8(rows)
				a.steps = append(a.steps, make([]uint64, words)...)
				rows++
			}
			a.steps[int(a.class[c])*words+word] |= bit
			state++
		}
	}
	return a
}

// match says whether the last state is alive after s.
func (a *automaton) match(s string) bool {
	if a.last > len(s) {
		return false
	}
	if a.last < 64 {
		return a.run(s)>>a.last&1 != 0
	}
	return a.runLong(s)[a.last/64]>>(a.last%64)&1 != 0
}

// matchBelow says whether a separator and at least one octet after s can end
// in the last state. States before the last can always go on to it; the last
// needs a wildcard to take the octets.
func (a *automaton) matchBelow(s string) bool {
	if a.last < 64 {
		states := a.step(a.run(s), a.sep)
		return states&(1<<a.last-1|a.loopAll[0]) != 0
	}
	states := a.runLong(s)
	a.stepLong(states, a.sep)
	for w, d := range states {
		if w == a.last/64 {
			d &= 1<<(a.last%64) - 1 | a.loopAll[w]
		}
		if d != 0 {
			return true
		}
	}
	return false
}

// step feeds an octet to an automaton of one word.
func (a *automaton) step(states uint64, c byte) uint64 {
	loop := a.loopAll[0]
	if c == a.sep {
		loop = a.loopAny[0]
	}
	return states&a.steps[a.class[c]]<<1 | states&loop
}

func (a *automaton) run(s string) uint64 {
	states := uint64(1)
	for i := 0; i < len(s) && states != 0; i++ {
		states = a.step(states, s[i])
	}
	return states
}

// stepLong is step for several words, in place. It says whether a state lives.
func (a *automaton) stepLong(states []uint64, c byte) bool {
	loop := a.loopAll
	if c == a.sep {
		loop = a.loopAny
	}
	row := a.steps[int(a.class[c])*len(states):]
	carry, live := uint64(0), uint64(0)
	for w, d := range states {
		advanced := d & row[w]
		states[w] = advanced<<1 | carry | d&loop[w]
		carry = advanced >> 63
		live |= states[w]
	}
	return live != 0
}

func (a *automaton) runLong(s string) []uint64 {
	states := make([]uint64, len(a.loopAll))
	states[0] = 1
	for i := 0; i < len(s) && a.stepLong(states, s[i]); i++ {
	}
	return states
}
