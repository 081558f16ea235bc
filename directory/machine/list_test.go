package machine

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"

	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/internal/kv"
)

// site is a directory with mailboxes, to ask it for listings.
type site struct {
	t     testing.TB
	m     *Machine
	store *kv.Memory
}

func newSite(t testing.TB) *site {
	t.Helper()
	s := &site{t: t, m: New()}
	s.store = kv.NewMemory(s.m.Buckets()...)
	s.do(Init{ClusterID: "test", Incarnation: 1, DigestKey: make([]byte, 16)})
	return s
}

// do applies ops, one command each, and fails on a rejection.
func (s *site) do(ops ...Op) {
	s.t.Helper()
	tx := s.store.Begin()
	for _, op := range ops {
		r, err := s.m.Do(tx, 0, 0, Command{Op: op})
		if err != nil {
			s.t.Fatalf("%+v: %v", op, err)
		}
		if r.Refused != nil {
			s.t.Fatalf("%+v: refused: %v", op, r.Refused)
		}
	}
	tx.Commit()
}

func assertion(server directory.BackendName, name, acl string) Assert {
	return Assert{Mailbox: directory.MailboxName(name), Server: server, Statement: directory.Statement{Partition: "default", ACL: &acl}, Imported: true}
}

// list returns the rows of q as an IMAP server prints them, "MYRIGHTS" lines
// after those that have rights.
func (s *site) list(r kv.Reader, q ListQuery) ([]string, error) {
	rows := []string{}
	_, err := s.m.List(r, q, func(row *ListRow) error {
		rows = append(rows, row.IMAP(q.Namespace.Sep))
		if row.Rights != 0 {
			rows = append(rows, "MYRIGHTS "+directory.QuoteAString(row.Name)+" "+row.Rights.String())
		}
		return nil
	})
	return rows, err
}

func principal(t testing.TB, user string, groups ...string) directory.Principal {
	t.Helper()
	if user == "admin" {
		return directory.Principal{Admin: true}
	}
	p, err := directory.ParsePrincipal(user, groups, false)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

const cyrusData = "../../testdata/cyrus"

func readJSON(t testing.TB, file string, into any) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(cyrusData, file))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, into); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
}

// loadDump asserts what a backend's own mailbox list holds; deleted entries
// are tombstones, no mailboxes.
func (s *site) loadDump(server directory.BackendName, file string) {
	s.t.Helper()
	var dump map[string]struct {
		Type      string            `json:"mbtype"`
		Partition string            `json:"partition"`
		ACL       map[string]string `json:"acl"`
	}
	readJSON(s.t, file, &dump)
	for _, name := range slices.Sorted(maps.Keys(dump)) {
		entry := dump[name]
		if strings.Contains(entry.Type, "d") {
			continue
		}
		var acl strings.Builder
		for _, id := range slices.Sorted(maps.Keys(entry.ACL)) {
			fmt.Fprintf(&acl, "%s\t%s\t", id, entry.ACL[id])
		}
		s.do(assertion(server, name, acl.String()))
	}
}

// The answers that a real Cyrus gave, octet for octet.
func TestCyrusAnswers(t *testing.T) {
	s := newSite(t)
	s.loadDump("be1.example.org", "cyrus-3.6.1-be1.json")
	s.loadDump("be2.example.org", "cyrus-3.6.1-be2.json")
	r := s.store.Snapshot()
	for file, ns := range map[string]directory.Namespace{
		"cyrus-3.6.1-list-answers.json":              {Sep: '.'},
		"cyrus-3.6.1-list-answers-altnamespace.json": {Sep: '/', Alt: true},
	} {
		var users map[string]map[string]json.RawMessage
		readJSON(t, file, &users)
		if len(users) == 0 {
			t.Errorf("%s: nobody in it", file)
		}
		for user, answers := range users {
			who := principal(t, user)
			for question, raw := range answers {
				if question == "myrights" {
					var want map[string]string
					if err := json.Unmarshal(raw, &want); err != nil {
						t.Fatal(err)
					}
					for name, rights := range want {
						if got := s.rights(r, who, ns, name); got != rights {
							t.Errorf("%s: %s: MYRIGHTS %s: got %q, want %q", file, user, name, got, rights)
						}
					}
					continue
				}
				var want struct{ Rows []string }
				if err := json.Unmarshal(raw, &want); err != nil {
					t.Fatal(err)
				}
				q, err := parseList("LIST " + question)
				if err != nil {
					t.Fatal(err)
				}
				q.Principal, q.Namespace = who, ns
				got, err := s.list(r, q)
				if err != nil {
					t.Errorf("%s: %s: LIST %s: %v", file, user, question, err)
				}
				if !slices.Equal(got, want.Rows) {
					t.Errorf("%s: %s: LIST %s\ngot  %s\nwant %s", file, user, question, strings.Join(got, "\n     "), strings.Join(want.Rows, "\n     "))
				}
			}
		}
	}
}

// rights answers MYRIGHTS for a client-form name: the letters, or NO.
func (s *site) rights(r kv.Reader, who directory.Principal, ns directory.Namespace, client string) string {
	name, err := ns.FromClient(client, who)
	if err != nil {
		return "NO " + err.Error()
	}
	a, err := s.m.MyRights(r, RightsQuery{Principal: who, Mailbox: name})
	switch {
	case err != nil:
		return err.Error()
	case !a.Visible:
		return "NO"
	}
	return a.Rights.String()
}

// parseList reads a LIST or LSUB command as a client writes it.
func parseList(line string) (ListQuery, error) {
	var q ListQuery
	words, err := imapWords(line)
	if err != nil {
		return q, err
	}
	if q.LSUB = words[0] == "LSUB"; !q.LSUB && words[0] != "LIST" {
		return q, fmt.Errorf("%q is no LIST", line)
	}
	words = words[1:]
	if list, ok := words[0].([]any); ok {
		q.Extended = true
		for _, option := range list {
			switch option {
			case "SUBSCRIBED":
				q.Select.Subscribed = true
			case "RECURSIVEMATCH":
				q.Select.RecursiveMatch = true
			case "SPECIAL-USE":
				q.Select.SpecialUse = true
			case "REMOTE":
				q.Select.Remote = true
			case "VENDOR.CMU-DAV":
				q.DAV = true
			default:
				return q, fmt.Errorf("unknown selection option %v", option)
			}
		}
		words = words[1:]
	}
	q.Reference = words[0].(string)
	if list, ok := words[1].([]any); ok {
		q.Extended = true
		for _, p := range list {
			q.Patterns = append(q.Patterns, p.(string))
		}
	} else {
		q.Patterns = []string{words[1].(string)}
	}
	if len(words) == 2 {
		return q, nil
	}
	q.Extended = true
	for _, option := range words[3].([]any) {
		switch option {
		case "SUBSCRIBED":
			q.Return.Subscribed = true
		case "CHILDREN":
			q.Return.Children = true
		case "SPECIAL-USE":
			q.Return.SpecialUse = true
		case "MYRIGHTS":
			q.Return.MyRights = true
		case "STATUS":
			q.Return.Status = true
		default:
			if _, items := option.([]any); !items || !q.Return.Status {
				return q, fmt.Errorf("unknown return option %v", option)
			}
		}
	}
	return q, nil
}

// imapWords splits a line into atoms and quoted strings, both strings, and
// parenthesized lists of such.
func imapWords(line string) ([]any, error) {
	var stack [][]any
	var words []any
	for line != "" {
		switch line[0] {
		case ' ':
			line = line[1:]
		case '(':
			stack, words, line = append(stack, words), []any{}, line[1:]
		case ')':
			if len(stack) == 0 {
				return nil, fmt.Errorf("')' too many")
			}
			words, stack, line = append(stack[len(stack)-1], words), stack[:len(stack)-1], line[1:]
		case '"':
			word, rest, ok := strings.Cut(line[1:], `"`)
			if !ok {
				return nil, fmt.Errorf("no closing quote")
			}
			words, line = append(words, word), rest
		default:
			i := strings.IndexAny(line, " ()")
			if i < 0 {
				i = len(line)
			}
			words, line = append(words, line[:i]), line[i:]
		}
	}
	return words, nil
}

// The scripts in testdata/list. Their commands:
//
//	mailboxes                    one mailbox a line: name, then further ACL entries
//	  owner=RIGHTS               what a mailbox's owner has besides
//	subscribe user=USER          one canonical name a line
//	special-use                  canonical name, then attributes
//	list user=USER form=FORM     requests, one a line, that all have the answer below
//	rights user=USER form=FORM   client-form names; answers rights or NO
//
// user may be "admin" or "anonymous", with groups=(g,h). form is N or A: the
// default or the alternative namespace with '/'; N/ and A. have the other
// separator. virt adds virtual domains, cross those of all.
func TestListScripts(t *testing.T) {
	datadriven.Walk(t, "testdata/list", func(t *testing.T, path string) {
		s := newSite(t)
		datadriven.RunTest(t, path, s.script)
	})
}

func (s *site) script(t *testing.T, d *datadriven.TestData) string {
	s.t = t
	switch d.Cmd {
	case "include":
		datadriven.RunTest(t, filepath.Join("testdata", d.CmdArgs[0].Key), s.script)
		return "ok\n"
	case "mailboxes":
		var ownerRights string
		d.MaybeScanArgs(t, "owner", &ownerRights)
		for line := range strings.SplitSeq(d.Input, "\n") {
			name, further, _ := strings.Cut(line, ": ")
			var acl strings.Builder
			if owner, ok := directory.MailboxName(name).Owner(); ok && ownerRights != "" {
				fmt.Fprintf(&acl, "%s\t%s\t", owner, ownerRights)
			}
			for entry := range strings.SplitSeq(further, ", ") {
				if id, rights, ok := strings.Cut(entry, " "); ok {
					fmt.Fprintf(&acl, "%s\t%s\t", id, rights)
				}
			}
			s.do(assertion("be1.example.com", name, acl.String()))
		}
		return "ok\n"
	case "subscribe":
		var user string
		d.ScanArgs(t, "user", &user)
		for name := range strings.SplitSeq(d.Input, "\n") {
			s.do(Subscribe{User: directory.UserID(user), Mailbox: directory.MailboxName(name)})
		}
		return "ok\n"
	case "special-use":
		for line := range strings.SplitSeq(d.Input, "\n") {
			name, use, _ := strings.Cut(line, ": ")
			s.do(Assert{Mailbox: directory.MailboxName(name), Server: "be1.example.com", Statement: directory.Statement{SpecialUse: &use}, Imported: true})
		}
		return "ok\n"
	}
	who, ns, inboxOnly := scriptArgs(t, d)
	r := s.store.Snapshot()
	var answer string
	for line := range strings.SplitSeq(d.Input, "\n") {
		var got string
		switch d.Cmd {
		case "list":
			got = s.scriptList(r, line, who, ns, inboxOnly)
		case "rights":
			got = answer + line + ": " + s.rights(r, who, ns, line) + "\n"
			answer = got
		default:
			d.Fatalf(t, "unknown command %q", d.Cmd)
		}
		if answer != "" && got != answer {
			return fmt.Sprintf("%s\ndiffers:\n%s\nfrom:\n%s", line, got, answer)
		}
		answer = got
	}
	return answer
}

func (s *site) scriptList(r kv.Reader, line string, who directory.Principal, ns directory.Namespace, inboxOnly bool) string {
	q, err := parseList(line)
	if err != nil {
		return "BAD " + err.Error() + "\n"
	}
	q.Principal, q.Namespace, q.InboxOnly = who, ns, inboxOnly
	rows, err := s.list(r, q)
	if err != nil {
		return "BAD " + err.Error() + "\n"
	}
	if len(rows) == 0 {
		return "-\n"
	}
	return strings.Join(rows, "\n") + "\n"
}

func scriptArgs(t *testing.T, d *datadriven.TestData) (who directory.Principal, ns directory.Namespace, inboxOnly bool) {
	var user, form string
	var groups []string
	for _, arg := range d.CmdArgs {
		switch arg.Key {
		case "user":
			user = arg.Vals[0]
		case "groups":
			groups = arg.Vals
		case "form":
			form = arg.Vals[0]
		case "virt", "cross":
			ns.VirtDomains, ns.DefaultDomain = true, "example.com"
			ns.CrossDomains = ns.CrossDomains || arg.Key == "cross"
		case "foolstupidclients":
			inboxOnly = true
		default:
			d.Fatalf(t, "unknown argument %q", arg.Key)
		}
	}
	forms := map[string]directory.Namespace{
		"N": {Sep: '.'}, "N/": {Sep: '/'}, "A": {Sep: '/', Alt: true}, "A.": {Sep: '.', Alt: true},
	}
	f, ok := forms[form]
	if !ok {
		d.Fatalf(t, "unknown form %q", form)
	}
	ns.Sep, ns.Alt = f.Sep, f.Alt
	if user == "admin" {
		return directory.Principal{Admin: true}, ns, inboxOnly
	}
	return principal(t, user, groups...), ns, inboxOnly
}

func TestListRefuses(t *testing.T) {
	s := newSite(t)
	dot := directory.Namespace{Sep: '.'}
	for _, test := range []struct {
		name string
		q    ListQuery
		want error
	}{
		{"no patterns", ListQuery{Namespace: dot}, directory.ErrInvalidPattern},
		{"many patterns", ListQuery{Namespace: dot, Patterns: make([]string, MaxPatterns+1)}, directory.ErrTooLarge},
		{"no separator", ListQuery{Patterns: []string{"*"}}, directory.ErrInvalid},
		{"LSUB that selects", ListQuery{Namespace: dot, Patterns: []string{"*"}, LSUB: true, Select: ListSelect{Subscribed: true}}, directory.ErrInvalid},
		{"RECURSIVEMATCH alone", ListQuery{Namespace: dot, Patterns: []string{"*"}, Select: ListSelect{RecursiveMatch: true, Remote: true}}, directory.ErrInvalid},
	} {
		_, err := s.m.List(s.store.Snapshot(), test.q, func(*ListRow) error { return nil })
		if !errors.Is(err, test.want) {
			t.Errorf("%s: got %v, want %v", test.name, err, test.want)
		}
	}
	for _, q := range []ListQuery{
		{Namespace: dot, Patterns: slices.Repeat([]string{"*"}, MaxPatterns)},
		{Namespace: dot, Patterns: []string{"*"}, LSUB: true, Select: ListSelect{Remote: true}},
	} {
		if _, err := s.m.List(s.store.Snapshot(), q, func(*ListRow) error { return nil }); err != nil {
			t.Errorf("%+v: %v", q, err)
		}
	}
}

// An error of emit ends the listing, in each of its forms.
func TestListStopsWhenTold(t *testing.T) {
	s := aliceSite(t, 0)
	s.do(Subscribe{User: "alice", Mailbox: "user.alice"}, Subscribe{User: "alice", Mailbox: "user.alice.folder-01"})
	subscribed, lsub, separator := aliceLists("*"), aliceLists("*"), aliceLists("")
	subscribed.Select.Subscribed, lsub.LSUB = true, true
	stop := errors.New("enough")
	for _, q := range []ListQuery{aliceLists("*"), aliceLists("user.%"), subscribed, lsub, separator} {
		rows := 0
		_, err := s.m.List(s.store.Snapshot(), q, func(*ListRow) error { rows++; return stop })
		if rows != 1 || !errors.Is(err, stop) {
			t.Errorf("%+v: %d rows, %v; want one row and %v", q, rows, err, stop)
		}
	}
}

// A LIST says whether something may be missing from it.
func TestListSummary(t *testing.T) {
	s := aliceSite(t, 0)
	none := func(*ListRow) error { return nil }
	sum, err := s.m.List(s.store.Snapshot(), aliceLists("*"), none)
	if err != nil || sum.Complete || !slices.Equal(sum.Missing, []directory.BackendName{"be1"}) {
		t.Errorf("before be1 was heard whole: %+v, %v", sum, err)
	}
	s.do(Confirm{Server: "be1", How: directory.ByResync})
	sum, err = s.m.List(s.store.Snapshot(), aliceLists("*"), none)
	if err != nil || !sum.Complete || sum.Missing != nil {
		t.Errorf("when be1 was heard whole: %+v, %v", sum, err)
	}

	// What a backend stated while it was lost enters the listing by a sweep, when it
	// counts again.
	lost, active := directory.BackendLost, directory.BackendActive
	settle := func() {
		t.Helper()
		for range 10 {
			if wait, _, err := s.m.Due(s.store.Snapshot(), 0); err != nil || wait != 0 {
				return
			}
			s.do(Tick{})
		}
		t.Fatal("ten ticks did not end what is due")
	}
	list := func() (rows int, sum ListSummary) {
		t.Helper()
		sum, err := s.m.List(s.store.Snapshot(), aliceLists("*"), func(*ListRow) error { rows++; return nil })
		if err != nil {
			t.Fatal(err)
		}
		return rows, sum
	}
	s.do(SetBackend{Server: "be1", State: &lost})
	settle()
	s.do(assertion("be1", "user.late.Team", "alice\tlrs\t"))
	settle()
	before, _ := list()
	s.do(SetBackend{Server: "be1", State: &active})
	if rows, sum := list(); rows != before || sum.Complete || !slices.Equal(sum.Missing, []directory.BackendName{"be1"}) {
		t.Errorf("before the sweep: %d rows after %d, %+v", rows, before, sum)
	}
	settle()
	if rows, sum := list(); rows != before+1 || !sum.Complete || sum.Missing != nil {
		t.Errorf("after the sweep: %d rows after %d, %+v", rows, before, sum)
	}
}

func TestListRowIMAP(t *testing.T) {
	for _, test := range []struct {
		row  ListRow
		sep  byte
		want string
	}{
		{ListRow{Attributes: AttrNoselect}, '.', `(\Noselect) "." ""`},
		{ListRow{Name: "INBOX"}, '/', `() "/" INBOX`},
		{ListRow{Name: "a b", Attributes: AttrHasChildren}, '/', `(\HasChildren) "/" "a b"`},
		{ListRow{Name: "x", SpecialUse: `\Sent \Junk`}, '.', `(\Sent \Junk) "." x`},
		{ListRow{Name: "x", Attributes: AttrHasNoChildren, SpecialUse: `\Sent`}, '.', `(\HasNoChildren \Sent) "." x`},
		{ListRow{Name: "x", Attributes: 1<<6 - 1}, '.', `(\Noinferiors \Noselect \NonExistent \Subscribed \HasChildren \HasNoChildren) "." x`},
		{ListRow{Name: "x", Attributes: AttrHasChildren, ChildInfo: "SUBSCRIBED"}, '.', `(\HasChildren) "." x (CHILDINFO ("SUBSCRIBED"))`},
		{ListRow{Name: `a"b\`}, '.', `() "." "a\"b\\"`},
	} {
		if got := test.row.IMAP(test.sep); got != test.want {
			t.Errorf("%+v: got %s, want %s", test.row, got, test.want)
		}
		var each []string
		for a := range test.row.Attributes.Each() {
			each = append(each, a.String())
		}
		if got, want := strings.Join(each, " "), test.row.Attributes.String(); got != want {
			t.Errorf("%+v: attributes one by one are %s, together %s", test.row, got, want)
		}
	}
}

// What a mailbox routes to decides what MYRIGHTS says of it.
func TestMyRightsOutcome(t *testing.T) {
	s := newSite(t)
	s.do(
		assertion("be1", "here", "alice\tlrs\t"),
		SetBackend{Server: "be1", State: new(directory.BackendDown)},
		assertion("be2", "held", "alice\tlrs\t"),
		Hold{Kind: directory.HoldMailbox, Key: "held", For: 1000, Why: "test"},
		assertion("be2", "hidden", "alice\tp\t"),
	)
	for _, test := range []struct {
		name    directory.MailboxName
		outcome directory.Outcome
		rights  string
		visible bool
	}{
		{"here", directory.BackendIsDown, "lrs", true},
		{"held", directory.Held, "lrs", true},
		{"hidden", directory.Serving, "p", false},
		{"nosuch", directory.Incomplete, "", false},
	} {
		a, err := s.m.MyRights(s.store.Snapshot(), RightsQuery{Principal: directory.Principal{User: "alice"}, Mailbox: test.name})
		if err != nil || a.Outcome != test.outcome || a.Rights.String() != test.rights || a.Visible != test.visible {
			t.Errorf("%s: got %v %q %v, %v; want %v %q %v", test.name, a.Outcome, a.Rights, a.Visible, err, test.outcome, test.rights, test.visible)
		}
	}
}
