//go:build peers

package interop

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/rookery-mail/rookery/adapter/cyrus"
)

// script is a file of testdata: see doc.go for its language.
type script struct {
	name  string
	steps []step
}

// step is one line of a script, with the answer that is written below it.
type step struct {
	line int
	text string
	want []string // nil: it has to succeed, whatever it answers
}

// readScript reads a script.
func readScript(file string) (*script, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	s := &script{name: strings.TrimSuffix(filepath.Base(file), ".txt")}
	for i, line := range strings.Split(string(b), "\n") {
		switch {
		case strings.TrimSpace(line) == "" || strings.HasPrefix(line, "#"):
		case strings.HasPrefix(line, "  "):
			if len(s.steps) == 0 {
				return nil, fmt.Errorf("%s:%d: an answer to nothing", file, i+1)
			}
			last := &s.steps[len(s.steps)-1]
			last.want = append(last.want, squeeze(line))
		default:
			s.steps = append(s.steps, step{line: i + 1, text: squeeze(line)})
		}
	}
	return s, nil
}

// squeeze makes one space of many. A script's columns are for its readers.
func squeeze(line string) string { return strings.Join(strings.Fields(line), " ") }

// matches compares an answer with what was wanted. A wanted line that ends in ... holds
// for all that begin so, and ... alone for any lines, or none, at that place.
func matches(got, want []string) bool {
	if len(want) == 0 {
		return len(got) == 0
	}
	if want[0] == "..." {
		return matches(got, want[1:]) || len(got) > 0 && matches(got[1:], want)
	}
	if len(got) == 0 {
		return false
	}
	start, any := strings.CutSuffix(want[0], "...")
	if any && !strings.HasPrefix(got[0], start) || !any && got[0] != want[0] {
		return false
	}
	return matches(got[1:], want[1:])
}

// run is one run of a script.
type run struct {
	lab      *lab
	script   *script
	trace    func(format string, args ...any)
	killer   *killer // nil: no leader is killed
	moved    step    // its last XFER
	allowed  map[string][]string
	logs     map[string]int // how far the servers' logs were
	repeated int            // steps that were done again after the leader was killed
	mended   int            // 1 if facts were mended by ctl_mboxlist -m
	rebuilt  int            // 1 if the replica had to be made anew
}

// play runs the script, and then looks whether all is as it has to be.
func (r *run) play() error {
	r.allowed, r.logs = map[string][]string{}, map[string]int{}
	for name, s := range r.lab.servers {
		r.logs[name] = s.log.length()
	}
	for _, s := range r.script.steps {
		if r.lab.told.Load() {
			return errors.New("this test was told to end")
		}
		begun := time.Now()
		got, err := r.try(s)
		if moves(s.text) {
			r.moved = s
		}
		r.trace("%6.2fs  %s", time.Since(begun).Seconds(), s.text)
		for _, line := range got {
			r.trace("           %s", line)
		}
		if err != nil {
			return fmt.Errorf("%s.txt:%d: %s: %w", r.script.name, s.line, s.text, err)
		}
	}
	return r.judge()
}

// errWant is an answer other than the script's.
type errWant struct{ got, want []string }

func (e errWant) Error() string {
	if e.want == nil {
		return fmt.Sprintf("got\n\t%s\nwant OK", strings.Join(e.got, "\n\t"))
	}
	return fmt.Sprintf("got\n\t%s\nwant\n\t%s", strings.Join(e.got, "\n\t"), strings.Join(e.want, "\n\t"))
}

// undone is how long what a killed node left half done may take to be undone: where
// nobody else knows of a rename, the directory ends it by itself after a minute.
const undone = 90 * time.Second

// try does a step. If the leader was killed a moment ago it may be refused, and is done
// again, as a user would.
func (r *run) try(s step) (got []string, err error) {
	if r.killer != nil {
		r.killer.aim()
	}
	if silent(s.text) && r.killer.killed() {
		r.killer.rest() // it would say nothing of a node that is not back yet
	}
	again := false
	for begun := time.Now(); ; again = true {
		got, err = r.do(s, again)
		if err == nil && !again && r.killer.within(begun) && silent(s.text) {
			r.trace("         again, for the leader was killed meanwhile")
			r.killer.rest()
			continue
		}
		if err == nil || errors.Is(err, errHung) || !r.killer.excuses(begun) || time.Since(begun) > undone {
			return got, err
		}
		if !again {
			r.repeated++
		}
		r.trace("         again after: %v", err)
		time.Sleep(300 * time.Millisecond)
		if r.mended == 0 && (renames(s.text) || tells(s.text) && time.Since(begun) > mendAfter) {
			r.trace("         after ctl_mboxlist -m")
			r.killer.rest()
			if err := r.mend(); err != nil {
				return got, err
			}
			if r.moved.text != "" { // it may have been answered OK and come to nothing
				r.trace("         after %s", r.moved.text)
				_, _ = r.do(r.moved, true)
				if err := r.mend(); err != nil {
					return got, err
				}
			}
		}
		// A frontend that lost its node knows nothing new, and says no to it.
		if fe := r.lab.servers["fe"]; fe.cmd != nil {
			if err := fe.follows(0); err != nil {
				return got, err
			}
		}
	}
}

// mendAfter is how long facts that are not as they have to be are waited for before
// ctl_mboxlist -m mends them.
const mendAfter = 3 * time.Second

// tells reports whether a step asks what there is. An XFER or a RENAME whose ACTIVATE was
// refused says so in the log only, and answers OK: what is asked next is half done.
func tells(text string) bool {
	words := strings.Fields(strings.TrimPrefix(text, "await: "))
	switch words[0] {
	case "facts", "copies":
		return true
	case "rookeryctl":
		return words[1] != "switchover"
	case "ctl":
		return slices.Contains(words, "-w")
	}
	return len(words) > 2 && slices.Contains([]string{"LIST", "LSUB", "STATUS"}, words[2])
}

// renames reports whether a step is a RENAME. Of one that was refused nobody can tell how
// far it came before backends have said what they hold: Cyrus takes the last mailbox back
// when it does not hear that its ACTIVATE was done, though it may have been.
func renames(text string) bool {
	words := strings.Fields(text)
	return len(words) > 2 && words[2] == "RENAME"
}

// moves reports whether a step is an XFER.
func moves(text string) bool {
	words := strings.Fields(text)
	return len(words) > 2 && words[2] == "XFER"
}

// mend has every backend say what it holds, as an operator would.
func (r *run) mend() error {
	r.mended = 1
	for _, s := range r.lab.backends() {
		if out, err := s.tool("ctl_mboxlist", "-m"); err != nil {
			return fmt.Errorf("%w\n%s", err, out)
		}
	}
	return nil
}

// silent reports whether a step succeeds even where the directory was not there: a
// ctl_mboxlist says nothing of an ACTIVATE that failed, cyr_expire of no DELETE.
func silent(text string) bool {
	words := strings.Fields(text)
	return words[0] == "start" && words[1] != "fe" || words[0] == "ctl" && !slices.Contains(words, "-w") || words[0] == "tool"
}

// crashStep is a step during which a server loses its power.
var crashStep = regexp.MustCompile(`^when (\w+) sends (\w+) (\d+), crash (\w+): (.*)$`)

// do does a step once. again: it was done before, and refused.
func (r *run) do(s step, again bool) (got []string, err error) {
	l := r.lab
	if text, ok := strings.CutPrefix(s.text, "in peace: "); ok {
		if r.killer.killed() {
			return nil, nil
		}
		return r.do(step{s.line, text, s.want}, again)
	}
	if text, ok := strings.CutPrefix(s.text, "await: "); ok {
		enough := patience
		if tells(text) && r.killer.killed() && r.mended == 0 {
			enough = mendAfter
		}
		for begun := time.Now(); ; time.Sleep(100 * time.Millisecond) {
			got, err = r.do(step{s.line, text, s.want}, again)
			if err == nil || time.Since(begun) > enough {
				return got, err
			}
		}
	}
	if text, ok := strings.CutPrefix(s.text, "race: "); ok {
		return r.race(strings.Split(text, " | "), again, s.want)
	}
	if m := crashStep.FindStringSubmatch(s.text); m != nil {
		return r.crashing(m[1], m[2], m[3], m[4], step{s.line, m[5], s.want})
	}
	words := fields(s.text)
	word, args := words[0], words[1:]
	var on *server
	if len(args) > 0 {
		on = l.servers[args[0]]
	}
	switch word {
	case "append", "lmtp":
		got, err = r.mail(word, on, args)
	case "ctl":
		out, e := on.tool("ctl_mboxlist", args[1:]...)
		if e != nil {
			out += "\n" + e.Error()
		}
		got = lines(out)
		if e == nil && s.want == nil && !slices.Contains(args, "-w") {
			s.want = []string{"..."} // what it says of what it does
		}
		if e == nil && len(got) == 0 && r.mended > 0 {
			s.want = nil // what it would have found was mended before
		}
	case "tool":
		l.ledger.expiresIf(args[1] == "cyr_expire")
		var out string
		if out, err = on.tool(args[1], unquoted(args[2:])...); err != nil {
			err = fmt.Errorf("%w\n%s", err, out)
		}
		if got = lines(out); s.want == nil {
			s.want = []string{"..."}
		}
	case "rookeryctl":
		out, e := l.cluster.rookeryctl(unquoted(args)...)
		got = lines(out)
		if e != nil && s.want == nil {
			err = fmt.Errorf("%w\n%s", e, out)
		}
		if s.want == nil {
			s.want = []string{"..."}
		}
	case "facts", "copies":
		got, err = r.facts(args[0], word == "copies")
		if s.want == nil {
			s.want = []string{}
		}
	case "start", "stop", "crash", "empty", "copy", "restore", "clone", "nodes", "lost", "misled", "trusted", "allow", "log", "replicated":
		err = r.operate(word, on, args)
	default:
		if on = l.servers[word]; on == nil || len(args) < 2 {
			return nil, fmt.Errorf("no such step")
		}
		got, err = r.imap(on, args[0], args[1:], again, s.want)
	}
	if err != nil {
		return got, err
	}
	if !matches(got, s.want) {
		return got, errWant{got, s.want}
	}
	return got, nil
}

// fields are a line's words; what stands between quotes is one, and keeps them.
func fields(text string) []string {
	return word.FindAllString(text, -1)
}

var word = regexp.MustCompile(`("[^"]*"|[^ "])+`)

// unquoted are words without their quotes.
func unquoted(words []string) (all []string) {
	for _, w := range words {
		all = append(all, strings.ReplaceAll(w, `"`, ""))
	}
	return all
}

// lines are the lines of a program's output.
func lines(out string) (all []string) {
	for _, line := range strings.Split(out, "\n") {
		if line = squeeze(line); line != "" {
			all = append(all, line)
		}
	}
	return all
}

// imap gives a command to an imapd. Without want, lines that are no refusal are of no
// interest.
func (r *run) imap(on *server, user string, words []string, again bool, want []string) (got []string, err error) {
	g := r.lab.ledger
	name := func(i int) string { return internal(user, strings.Trim(words[i], `"`)) }
	verb := strings.ToUpper(words[0])
	switch verb {
	case "DELETE":
		g.deletes(name(1))
	case "RENAME":
		if len(words) > 3 || strings.Contains(words[2], "!") {
			g.moves(name(1))
		} else {
			g.renames(name(1), name(2))
		}
	case "XFER":
		g.moves(name(1))
	}
	c, err := dialIMAP(on.address("143"), user)
	if err != nil {
		return nil, err
	}
	defer c.close()
	var answer reply
	if again && verb == "RENAME" {
		// Of what a frontend does not have this would be asked for trouble: imapd holds the
		// user's lock while it asks mupdate for news, and mupdate, which has some of another
		// mailbox of the user, waits for the lock.
		if answer, err = c.do(`LIST "" ` + words[1]); err == nil && len(answer.lines) == 0 {
			answer = reply{status: "NO", text: "Mailbox does not exist"}
		}
	}
	if err == nil && answer.status != "NO" {
		answer, err = c.do(strings.Join(words, " "))
	}
	if err != nil {
		return nil, err
	}
	got = answer.show()
	if again && answer.status == "NO" {
		// What was refused had been done all the same.
		switch {
		case verb == "CREATE" && strings.Contains(answer.text, "already exists"),
			verb == "DELETE" && strings.Contains(answer.text, "does not exist"):
			answer.status, got = "OK", nil
		case verb == "RENAME" && strings.Contains(answer.text, "exist"):
			if finishRename(c, strings.Trim(words[1], `"`), strings.Trim(words[2], `"`), g.below(name(1))) {
				answer.status, got = "OK", nil
			}
		}
	}
	switch verb {
	case "CREATE":
		if answer.status == "OK" {
			g.made(name(1))
		}
	case "RENAME":
		if answer.status == "OK" || want != nil {
			g.renamed(name(1), name(2), answer.status == "OK")
		}
	}
	if answer.status == "OK" && want == nil {
		got = nil
	}
	return got, nil
}

// finishRename ends a rename of a tree that stopped half-way, mailbox by mailbox, as an
// operator would, and reports whether all of it has the new name now, and owner. rest is
// what follows the old name in those of the tree. Where Cyrus put one back it made an
// empty parent anew, which is deleted.
func finishRename(c *imap, from, to string, rest []string) bool {
	answer, err := c.do(`LIST "" "*"`)
	if err != nil {
		return false
	}
	there := answer.show()
	ok := func(format string, names ...any) bool {
		answer, err := c.do(fmt.Sprintf(format, names...))
		return err == nil && answer.status == "OK"
	}
	for _, suffix := range rest {
		if !slices.Contains(there, to+suffix) && (!slices.Contains(there, from+suffix) || !ok("RENAME %q %q", from+suffix, to+suffix)) {
			return false // or not seen yet
		}
	}
	if answer, err = c.do(`LIST "" "*"`); err != nil {
		return false
	}
	there = answer.show()
	for _, suffix := range slices.Backward(rest) {
		if !slices.Contains(there, from+suffix) || !slices.Contains(there, to+suffix) {
			continue
		}
		answer, err := c.do("STATUS " + quote(from+suffix) + " (MESSAGES)")
		if err != nil || !strings.HasSuffix(strings.Join(answer.show(), ""), "(MESSAGES 0)") || !ok("DELETE %q", from+suffix) {
			return false
		}
	}
	was, is := strings.TrimPrefix(from, "user."), strings.TrimPrefix(to, "user.")
	if was == from || strings.Contains(was, ".") {
		return true
	}
	for _, suffix := range rest { // which Cyrus does last, where it comes so far
		if !ok("SETACL %q "+is+" lrswipkxtecdan", to+suffix) || !ok("DELETEACL %q "+was, to+suffix) {
			return false
		}
	}
	return true
}

// mail delivers some mails, by APPEND or LMTP.
func (r *run) mail(how string, on *server, args []string) (got []string, err error) {
	g := r.lab.ledger
	user, box, count := args[1], "INBOX", args[len(args)-1]
	if how == "append" {
		box = args[2]
	}
	n, err := strconv.Atoi(count)
	if err != nil {
		return nil, err
	}
	var c *imap
	if how == "append" {
		if c, err = dialIMAP(on.address("143"), user); err != nil {
			return nil, err
		}
		defer c.close()
	}
	for range n {
		id, text := g.newMail()
		if how == "append" {
			answer, err := c.do("APPEND "+box, text)
			if err != nil {
				return nil, err
			}
			if answer.status != "OK" {
				return answer.show(), nil
			}
		} else {
			answer, err := lmtp(on.address("2003"), user, text)
			if err != nil {
				return nil, err
			}
			if answer[0] != '2' {
				return []string{answer}, nil
			}
		}
		user, folder, _ := strings.Cut(user, "+")
		g.taken(id, internal(user, strings.TrimSuffix(box+"."+folder, ".")))
	}
	return nil, nil
}

// facts is what the directory knows below a name. Copies on the replica follow when they
// follow, and are shown where they are asked for.
func (r *run) facts(top string, copies bool) (got []string, err error) {
	facts, err := r.lab.cluster.facts()
	if err != nil {
		return nil, err
	}
	stamp := regexp.MustCompile(`\.[0-9A-F]{8}$`)
	for name, route := range facts {
		shown := name
		if rest, deleted := strings.CutPrefix(name, "DELETED."); deleted {
			shown = "DELETED." + stamp.ReplaceAllString(rest, ".*")
			name = rest
		}
		if !isBelow(name, top) {
			continue
		}
		var at []string
		for _, f := range route.Facts {
			if f.Server == "rep"+domain && !copies {
				continue
			}
			at = append(at, location(f))
		}
		if len(at) > 0 {
			slices.Sort(at)
			got = append(got, shown+" "+strings.Join(at, " "))
		}
	}
	slices.Sort(got)
	return got, nil
}

// race does several steps at once and shows their answers in order.
func (r *run) race(texts []string, again bool, want []string) ([]string, error) {
	answers := make([][]string, len(texts))
	errs := make([]error, len(texts))
	var work sync.WaitGroup
	for i, text := range texts {
		work.Go(func() {
			var other errWant
			answers[i], errs[i] = r.do(step{text: text}, again)
			if errors.As(errs[i], &other) {
				answers[i], errs[i] = other.got, nil
			}
			if len(answers[i]) == 0 {
				answers[i] = []string{"OK"}
			}
		})
	}
	work.Wait()
	got := slices.Concat(answers...)
	slices.Sort(got)
	if err := errors.Join(errs...); err != nil {
		return got, err
	}
	if !matches(got, want) {
		return got, errWant{got, want}
	}
	return got, nil
}

// crashing has a server lose its power when another one sends a command for the nth time.
func (r *run) crashing(from, word, nth, which string, s step) (got []string, err error) {
	l := r.lab
	n, _ := strconv.Atoi(nth)
	host := l.net.host(from)
	var mu sync.Mutex
	l.also(func(at, said string) {
		mu.Lock()
		defer mu.Unlock()
		if at == host && said == word {
			if n--; n == 0 {
				l.servers[which].crash()
			}
		}
	})
	got, err = r.do(s, false)
	l.also(nil)
	mu.Lock() // the command ends as soon as the crash begins
	defer mu.Unlock()
	if n > 0 {
		if r.killer.killed() {
			return nil, nil // it did not come so far
		}
		return got, fmt.Errorf("%s did not send %s %s times", from, word, nth)
	}
	if _, ok := err.(errWant); ok {
		return got, err
	}
	return got, nil // however the connection ended
}

// operate is what operators do to servers and nodes.
func (r *run) operate(word string, on *server, args []string) error {
	l := r.lab
	switch word {
	case "start":
		if on.cmd != nil {
			out, err := on.tool("ctl_mboxlist", "-m") // it is started again: see try
			if err != nil {
				return fmt.Errorf("%w\n%s", err, out)
			}
			return nil
		}
		err := on.start()
		if err == nil {
			l.ledger.started(on.name)
		}
		if err == nil && !on.frontend {
			var list map[string]cyrus.Record
			if list, err = on.mailboxes(); err == nil {
				l.ledger.look(on, list)
			}
		}
		return err
	case "stop":
		return on.stop()
	case "crash":
		on.crash()
		return nil
	case "empty":
		l.ledger.forget(on)
		return on.empty()
	case "copy":
		return on.copyTo(filepath.Join(l.dir, args[1]))
	case "restore":
		l.ledger.forget(on)
		return on.copyFrom(filepath.Join(l.dir, args[1]))
	case "clone":
		return r.clone(l.servers[args[0]], l.servers[args[1]], args[2:])
	case "lost":
		l.ledger.lost(args[0])
		return nil
	case "misled":
		l.ledger.misled(args[0])
		return nil
	case "trusted":
		l.ledger.trusted(args[0])
		return nil
	case "allow":
		r.allowed[on.name] = append(r.allowed[on.name], strings.Join(args[1:], " "))
		return nil
	case "log":
		text := strings.Join(args[1:], " ")
		return wait(fmt.Sprintf("%s logs %q", on.name, text), func() (bool, error) { return on.log.has(text, r.logs[on.name]), nil })
	case "replicated":
		return r.replicated()
	case "nodes":
		switch args[0] {
		case "start":
			if err := l.cluster.again(); err != nil {
				return err
			}
			l.count(true)
			r.killer.resume()
			return l.servers["fe"].follows(0)
		case "kill":
			r.killer.rest()
			if err := l.cluster.again(); err != nil {
				return err
			}
			l.count(false)
			return l.cluster.killMajority()
		}
	}
	return fmt.Errorf("no such step")
}

// clone makes a server of another one's disk, under its own name or under that one's.
func (r *run) clone(from, to *server, args []string) error {
	dir := filepath.Join(r.lab.dir, "clone")
	if err := from.copyTo(dir); err != nil {
		return err
	}
	r.lab.ledger.forget(to)
	if err := to.copyFrom(dir); err != nil {
		return err
	}
	to.as = to.name
	if len(args) == 2 && args[0] == "as" {
		to.as = args[1]
	}
	return to.configure()
}

// replicated waits until the replica has the same list as be1, and the same mail in it: a
// sync_client that was refused makes the mailboxes first, and comes back for their mail.
func (r *run) replicated() error {
	be1, rep := r.lab.servers["be1"], r.lab.servers["rep"]
	return wait("rep has what be1 has", func() (bool, error) {
		mine, err := be1.mailboxes()
		if err != nil {
			return false, err
		}
		copies, err := rep.mailboxes()
		if err != nil {
			return false, err
		}
		if found := unlike(mine, copies); len(found) > 0 {
			return false, errors.New(strings.Join(found, "; "))
		}
		for name := range mine {
			user, isInbox := strings.CutPrefix(name, "user.")
			if !isInbox || strings.Contains(user, ".") {
				continue
			}
			mails, err := readAll(be1.address("143"), user)
			if err != nil {
				return false, err
			}
			copied, err := readAll(rep.address("143"), user)
			if err != nil {
				return false, err
			}
			if !maps.Equal(mails, copied) {
				return false, fmt.Errorf("of the mail of %s be1 has %v, and rep %v", user, sorted(mails), sorted(copied))
			}
		}
		return true, nil
	})
}

// same waits until directory, backends and replica say the same, for as long as a
// replica may take, and returns what stays different.
func (r *run) same() (found []string, err error) {
	for begun := time.Now(); time.Since(begun) < settled; time.Sleep(50 * time.Millisecond) {
		found, err = r.lab.ledger.differences()
		if err != nil || len(found) == 0 {
			break
		}
	}
	return found, err
}

// rebuild fills an empty replica. A sync_server that is refused while it makes mailboxes
// may leave one without files in its list, which it can never open again.
func (r *run) rebuild() error {
	r.rebuilt = 1
	rep := r.lab.servers["rep"]
	if err := rep.stop(); err != nil {
		return err
	}
	r.lab.ledger.forget(rep)
	if err := errors.Join(rep.empty(), rep.start()); err != nil {
		return err
	}
	out, err := r.lab.servers["be1"].tool("sync_client", "-A")
	if err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	return nil
}

// judge looks whether all is as it has to be after a script.
func (r *run) judge() error {
	l := r.lab
	r.killer.rest()
	if err := l.cluster.again(); err != nil {
		return err
	}
	for name, s := range l.servers {
		if s.cmd == nil && name != "be3" {
			return fmt.Errorf("%s: the script left %s stopped", r.script.name, name)
		}
	}
	if err := l.servers["fe"].follows(0); err != nil {
		return err
	}
	found, err := r.same()
	if err != nil {
		return err
	}
	if len(found) > 0 && r.killer.killed() {
		// What was refused half-way is what ctl_mboxlist -m mends.
		for _, line := range found {
			r.trace("         before ctl_mboxlist -m: %s", line)
		}
		if err := r.mend(); err != nil {
			return err
		}
		if slices.ContainsFunc(found, func(line string) bool { return strings.Contains(line, "rep") }) {
			if err := r.rebuild(); err != nil {
				return err
			}
		}
		if found, err = r.same(); err != nil {
			return err
		}
	}
	for _, line := range found {
		l.fail("%s", line)
	}
	if err := l.ledger.mail(); err != nil {
		return err
	}
	if out, err := l.cluster.rookeryctl("check"); err != nil {
		l.fail("rookeryctl check: %v\n%s", err, out)
	}
	for _, name := range l.names() {
		allowed := r.allowed[name]
		if name == "rep" && r.killer.killed() {
			allowed = append(allowed, "IOERROR", "DBERROR") // see rebuild
		}
		for _, line := range l.servers[name].log.judge(allowed) {
			l.fail("the log of %s has: %s", name, line)
		}
	}
	return nil
}
