package main

import (
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/term"
)

// progress draws one line that changes on a terminal; elsewhere nothing.
type progress struct {
	w     io.Writer
	width int // of the terminal; 0: it is none
	last  time.Time
	drawn bool
}

// redraw is how often the line changes at most.
const redraw = 200 * time.Millisecond

// progress draws on standard error.
func (a *app) progress() *progress {
	p := &progress{w: a.stderr}
	if f, ok := a.stderr.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		p.width = 80
		if w, _, err := term.GetSize(int(f.Fd())); err == nil && w > 0 {
			p.width = w
		}
	}
	return p
}

// due reports whether draw would draw: what it says may cost something.
func (p *progress) due() bool { return p.width > 0 && time.Since(p.last) >= redraw }

// draw replaces the line.
func (p *progress) draw(line string) {
	if !p.due() {
		return
	}
	p.last, p.drawn = time.Now(), true
	fmt.Fprintf(p.w, "\r\x1b[K%.*s", p.width-1, plain(line))
}

// clear takes the line away, before anything else is printed.
func (p *progress) clear() {
	if p.drawn {
		fmt.Fprint(p.w, "\r\x1b[K")
		p.drawn = false
	}
}

// isTerminal reports whether f is one that a person types at.
func isTerminal(f any) bool {
	file, ok := f.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}
