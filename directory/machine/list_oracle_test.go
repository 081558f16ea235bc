package machine

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/internal/kv"
)

// naive answers LIST from its definition: it looks at every mailbox, as a
// client would see its name, and knows neither indexes nor the code under test.
type naive struct {
	boxes []naiveBox
	subs  []string // canonical names that the user subscribes to
}

type naiveBox struct{ name, acl, use string }

// naiveName is a name in client form.
type naiveName struct {
	class  int // INBOX, what is below INBOX, own, "Alt Folders", other users, shared
	key    string
	levels []string
	domain string // printed last, for administrators
	tree   string // for administrators, the domain it is of
	rights directory.Rights
	use    string
}

func (n naiveName) client(sep byte) string { return strings.Join(n.levels, string(sep)) + n.domain }

func (n naiveName) below(parent naiveName) bool {
	return len(n.levels) > len(parent.levels) && (n.tree == parent.tree || parent.allUsers()) && slices.Equal(n.levels[:len(parent.levels)], parent.levels)
}

// allUsers says that n is the parent of all users' mailboxes.
func (n naiveName) allUsers() bool { return n.class == 4 && len(n.levels) == 1 }

func naiveForm(name string, q ListQuery) (n naiveName, ok bool) {
	ns, who := q.Namespace, q.Principal
	domain, local, hasDomain := strings.Cut(name, "!")
	if !hasDomain {
		domain, local = "", name
	}
	stored := strings.Split(local, ".")
	for _, level := range stored {
		n.key += "\x1f" + strings.ReplaceAll(level, "^", ".")
	}
	n.key = n.key[1:]
	if hasDomain {
		n.key = domain + "\x1d" + n.key
	}
	levels := slices.Clone(stored)
	for i := range levels {
		if ns.Sep == '/' {
			levels[i] = strings.ReplaceAll(levels[i], "^", ".")
		}
	}
	isUser := stored[0] == "user"
	if who.Admin {
		if hasDomain && !ns.VirtDomains {
			return n, false
		}
		n.levels, n.class = levels, 5
		if isUser {
			n.class = 4
		}
		if n.tree = domain; domain == "" && ns.VirtDomains && strings.Contains(local, "@") {
			domain = ns.DefaultDomain // or what follows the '@' would be taken for it
		}
		if domain != "" {
			n.domain = "@" + domain
		}
		return n, true
	}
	if stored[0] == "DELETED" {
		return n, false
	}
	tree := stored[0]
	if isUser {
		tree = ""
		if len(stored) > 2 {
			tree = stored[2]
		}
	}
	if slices.Contains([]string{"#calendars", "#addressbooks", "#drive", "#notifications", "#sieve"}, tree) && !q.DAV {
		return n, false
	}
	id, userDomain, _ := strings.Cut(string(who.User), "@")
	if id != "" && isUser && domain == userDomain && strings.ReplaceAll(stored[1], "^", ".") == id {
		rest := levels[2:]
		switch {
		case len(rest) == 0:
			n.class, n.levels = 0, []string{"INBOX"}
		case !ns.Alt:
			n.class, n.levels = 2, append([]string{"INBOX"}, rest...)
		case rest[0] == "INBOX" && len(rest) > 1:
			n.class, n.levels = 1, rest
		case strings.EqualFold(rest[0], "inbox") || slices.Contains([]string{"Other Users", "Shared Folders", "Alt Folders"}, rest[0]):
			n.class, n.levels = 3, append([]string{"Alt Folders"}, rest...)
		default:
			n.class, n.levels = 2, rest
		}
		return n, true
	}
	if domain != userDomain && !ns.CrossDomains {
		return n, false
	}
	n.class = 5
	at := 0
	if isUser {
		n.class, at = 4, 1
		if ns.Alt {
			levels[0] = "Other Users"
		}
	}
	if ns.CrossDomains {
		shown := cmp.Or(domain, ns.DefaultDomain)
		if ns.Sep == '.' {
			shown = strings.ReplaceAll(shown, ".", "^")
		}
		levels[at] += "@" + shown
	}
	if !isUser && ns.Alt {
		levels = append([]string{"Shared Folders"}, levels...)
	} else if !isUser && strings.EqualFold(stored[0], "inbox") {
		return n, false
	}
	n.levels = levels
	return n, true
}

// parent is the name d levels deep above n.
func (n naiveName) parent(d int, q ListQuery) naiveName {
	p := naiveName{class: n.class, levels: n.levels[:d], domain: n.domain, tree: n.tree}
	if p.allUsers() || q.Principal.Admin && n.tree == "" && !strings.Contains(strings.Join(p.levels, ""), "@") {
		p.domain = ""
	}
	key := n.key
	for range len(n.levels) - d {
		i := strings.LastIndexAny(key, "\x1f\x1d")
		key = key[:max(i, 0)]
	}
	p.key = key
	alt := q.Namespace.Alt && !q.Principal.Admin
	switch {
	case d > 1:
	case n.class == 1 || n.class == 2 && !alt:
		p.class = 0
	case n.class == 3, n.class == 4, n.class == 5 && alt:
		p.key = "" // above the whole class
	}
	return p
}

func naiveRights(acl string, who directory.Principal) directory.Rights {
	ids := map[string]bool{"anyone": true}
	switch {
	case who.User != "":
		ids[string(who.User)] = true
	case !who.Admin:
		ids["anonymous"] = true
	}
	for _, g := range who.Groups {
		ids["group:"+g] = true
	}
	var granted, taken directory.Rights
	fields := strings.Split(acl, "\t")
	for i := 0; i+1 < len(fields); i += 2 {
		r, err := directory.ParseRights(fields[i+1])
		if err != nil {
			panic(err)
		}
		if id, negative := strings.CutPrefix(fields[i], "-"); ids[id] && negative {
			taken |= r
		} else if ids[id] {
			granted |= r
		}
	}
	return granted &^ taken
}

// naivePattern says of a name whether it matches, and whether it would as a
// parent that is no mailbox.
func naivePattern(q ListQuery) (matches, asParent func(naiveName) bool) {
	sep := string(q.Namespace.Sep)
	type one struct {
		re   *regexp.Regexp
		star bool
	}
	var all []one
	for _, p := range q.Patterns {
		if p == "" {
			continue
		}
		if strings.HasSuffix(q.Reference, sep) {
			p = strings.TrimPrefix(p, sep)
		}
		p = q.Reference + p
		if first, rest, deeper := strings.Cut(p, sep); strings.EqualFold(first, "inbox") {
			p = "INBOX"
			if deeper {
				p += sep + rest
			}
		}
		re := regexp.QuoteMeta(p)
		re = strings.ReplaceAll(re, `\*`, ".*")
		re = strings.ReplaceAll(re, "%", "[^"+sep+"]*")
		all = append(all, one{regexp.MustCompile("^" + re + "$"), strings.HasSuffix(p, "*")})
	}
	match := func(n naiveName, parent bool) bool {
		return slices.ContainsFunc(all, func(p one) bool { return !(parent && p.star) && p.re.MatchString(n.client(q.Namespace.Sep)) })
	}
	return func(n naiveName) bool { return match(n, false) }, func(n naiveName) bool { return match(n, true) }
}

type naiveRow struct {
	naiveName
	attributes Attributes
	use, child string
	rights     directory.Rights
}

func (n *naive) list(q ListQuery) []string {
	sep, who := q.Namespace.Sep, q.Principal
	extended := q.Extended || len(q.Patterns) > 1 || q.DAV || q.Select != ListSelect{} || q.Return.Subscribed || q.Return.Children || q.Return.MyRights || q.Return.Status
	if len(q.Patterns) == 1 && q.Patterns[0] == "" {
		if extended || q.LSUB {
			return []string{}
		}
		return []string{`(\Noselect) "` + string(sep) + `" ""`}
	}
	var visible []naiveName
	for _, box := range n.boxes {
		name, ok := naiveForm(box.name, q)
		name.rights = naiveRights(box.acl, who)
		if name.class >= 1 && name.class <= 3 {
			name.use = box.use
		}
		if ok && (who.Admin || name.rights.Has(directory.RightLookup)) {
			visible = append(visible, name)
		}
	}
	find := func(n naiveName) *naiveName {
		for i := range visible {
			if visible[i].client(sep) == n.client(sep) {
				return &visible[i]
			}
		}
		return nil
	}
	subscribed := map[string]naiveName{}
	for _, name := range n.subs {
		if form, ok := naiveForm(name, q); ok && who.User != "" {
			subscribed[form.client(sep)] = form
		}
	}
	matches, asParent := naivePattern(q)
	rows := map[string]*naiveRow{}
	add := func(n naiveName, attributes Attributes) *naiveRow {
		row := rows[n.client(sep)]
		if row == nil {
			row = &naiveRow{naiveName: n, attributes: attributes}
			rows[n.client(sep)] = row
		}
		return row
	}
	absent := AttrNoselect
	if extended && !q.LSUB {
		absent = AttrNonExistent
	}
	existing := func(n naiveName) *naiveRow {
		row := add(n, 0)
		if q.Return.SpecialUse || q.Select.SpecialUse {
			row.use = n.use
		}
		if q.Return.MyRights {
			row.rights = n.rights
			if n.class <= 3 {
				row.rights |= directory.RightsImplicitOwner
			}
			if who.Admin {
				row.rights |= directory.RightsImplicitAdmin
			}
		}
		if q.Return.Status && !n.rights.Has(directory.RightRead) && !who.Admin {
			row.attributes |= AttrNoselect
		}
		if n.class == 3 && len(n.levels) == 2 && n.levels[1] == "INBOX" {
			row.attributes |= AttrNoinferiors
		}
		return row
	}
	children := visible // what makes a parent
	switch {
	case q.LSUB:
		children = nil
		for _, sub := range subscribed {
			if v := find(sub); v != nil {
				children = append(children, *v)
				if matches(sub) {
					existing(*v)
				}
			}
		}
		for _, sub := range children {
			for d := 1; d < len(sub.levels); d++ {
				if parent := sub.parent(d, q); asParent(parent) {
					add(parent, absent)
				}
			}
		}
	case q.Select.Subscribed || q.Select.SpecialUse:
		var chosen []naiveName
		if q.Select.SpecialUse {
			for _, v := range visible {
				if _, ok := subscribed[v.client(sep)]; v.use != "" && (ok || !q.Select.Subscribed) {
					chosen = append(chosen, v)
				}
			}
		} else {
			for _, sub := range subscribed {
				chosen = append(chosen, sub)
			}
		}
		for _, c := range chosen {
			if !matches(c) {
				continue
			}
			if v := find(c); v != nil {
				existing(*v)
			} else {
				add(c, absent)
			}
		}
		for _, c := range chosen {
			if matches(c) || !q.Select.RecursiveMatch {
				continue
			}
			for d := 1; d < len(c.levels); d++ {
				parent := c.parent(d, q)
				if !matches(parent) {
					continue
				}
				var row *naiveRow
				if v := find(parent); v != nil {
					row = existing(*v)
				} else {
					row = add(parent, absent)
				}
				row.child = "SPECIAL-USE"
				if q.Select.Subscribed {
					row.child = "SUBSCRIBED"
				}
			}
		}
	default:
		for _, v := range visible {
			if matches(v) {
				existing(v)
			}
			for d := 1; d < len(v.levels); d++ {
				if parent := v.parent(d, q); find(parent) == nil && asParent(parent) {
					add(parent, absent)
				}
			}
		}
	}
	// Where a name stands: by its key. A parent that is no mailbox stands before
	// the first name below it, which is the same but for mailboxes of a domain
	// that is called like the parent.
	place := func(row *naiveRow) string {
		if !row.attributes.Has(absent) || q.Select != (ListSelect{Remote: q.Select.Remote}) {
			return row.key
		}
		var first []string
		for _, c := range children {
			if c.below(row.naiveName) && c.class == row.class {
				first = append(first, c.key)
			}
		}
		slices.Sort(first)
		return append(first, row.key)[0]
	}
	answer := []string{}
	for _, row := range slices.SortedFunc(mapValues(rows), func(a, b *naiveRow) int {
		return cmp.Or(cmp.Compare(a.class, b.class), cmp.Compare(place(a), place(b)), cmp.Compare(len(a.levels), len(b.levels)))
	}) {
		has := slices.ContainsFunc(children, func(c naiveName) bool { return c.below(row.naiveName) })
		switch {
		case has:
			row.attributes |= AttrHasChildren
		case !q.LSUB:
			row.attributes |= AttrHasNoChildren
		}
		if _, ok := subscribed[row.client(sep)]; ok && (q.Select.Subscribed || q.Return.Subscribed) {
			row.attributes |= AttrSubscribed
		}
		words := row.attributes.String()
		if row.use != "" {
			words += " " + row.use
		}
		line := "(" + words + `) "` + string(sep) + `" ` + directory.QuoteAString(row.client(sep))
		if row.child != "" {
			line += ` (CHILDINFO ("` + row.child + `"))`
		}
		answer = append(answer, line)
		if row.rights != 0 {
			answer = append(answer, "MYRIGHTS "+directory.QuoteAString(row.client(sep))+" "+row.rights.String())
		}
	}
	return answer
}

func mapValues[K comparable, V any](m map[K]V) func(func(V) bool) {
	return func(yield func(V) bool) {
		for _, v := range m {
			if !yield(v) {
				return
			}
		}
	}
}

// The same questions, to random directories, are put to List and to naive.
func TestListAgainstNaive(t *testing.T) {
	sites, questions := 800, 25
	if testing.Short() {
		sites = 100
	}
	for seed := range sites {
		g := &generator{rand.New(rand.NewPCG(uint64(seed), 1))}
		user := g.pick("a", "b", "x.y", "a@d.org", "")
		boxes, ops := g.population(user)
		s := newSite(t)
		s.do(ops...)
		truth := &naive{boxes: boxes}
		for range g.IntN(8) {
			name := g.name(user)
			if g.IntN(2) == 0 && len(boxes) > 0 {
				name = boxes[g.IntN(len(boxes))].name
			}
			if user != "" && !slices.Contains(truth.subs, name) {
				truth.subs = append(truth.subs, name)
				s.do(Subscribe{User: directory.UserID(user), Mailbox: directory.MailboxName(name)})
			}
		}
		r := s.store.Snapshot()
		for range questions {
			q := g.query(user)
			got, err := s.list(r, q)
			if err != nil {
				t.Fatalf("seed %d: %+v: %v", seed, q, err)
			}
			if want := truth.list(q); !slices.Equal(got, want) {
				t.Fatalf("seed %d: %+v\ngot\n  %s\nwant\n  %s\nmailboxes\n%s\nsubscribed %q", seed, q,
					strings.Join(got, "\n  "), strings.Join(want, "\n  "), describeBoxes(boxes), truth.subs)
			}
			checkPlaces(t, s, r, q)
		}
	}
}

// checkPlaces looks up every mailbox of an answer: name, server and outcome
// are those of a Lookup.
func checkPlaces(t *testing.T, s *site, r kv.Reader, q ListQuery) {
	t.Helper()
	q.Return.Location = true
	_, err := s.m.List(r, q, func(row *ListRow) error {
		if row.Outcome == 0 {
			if row.Server != "" || row.Rights != 0 {
				t.Errorf("%+v: a name that is no mailbox has a place or rights", row)
			}
			return nil
		}
		client, ok := q.Namespace.ToClient(row.Mailbox, q.Principal)
		if !ok || client != row.Name {
			t.Errorf("%+v: the mailbox's client form is %q, %v", row, client, ok)
		}
		a, err := s.m.Lookup(r, row.Mailbox, false)
		if err != nil {
			return err
		}
		var server directory.BackendName
		if a.Server != nil {
			server = a.Server.Name
		}
		if a.Outcome != row.Outcome || server != row.Server {
			t.Errorf("%+v: Lookup says %v at %q", row, a.Outcome, server)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func describeBoxes(boxes []naiveBox) string {
	var b strings.Builder
	for _, box := range boxes {
		fmt.Fprintf(&b, "  %s  %q %s\n", box.name, box.acl, box.use)
	}
	return b.String()
}

type generator struct{ *rand.Rand }

func (g *generator) pick(of ...string) string { return of[g.IntN(len(of))] }

// name returns a canonical name that has much in common with others.
func (g *generator) name(user string) string {
	own := strings.ReplaceAll(user, ".", "^")
	domain := g.pick("", "", "", "d.org", "e.org")
	if id, of, ok := strings.Cut(own, "@"); ok {
		own = id
		if g.IntN(2) == 0 {
			domain = strings.ReplaceAll(of, "^", ".")
		}
	}
	var name string
	switch g.IntN(12) {
	case 0, 1, 2, 3:
		name = "user." + cmp.Or(own, "a")
	case 4, 5, 6:
		name = "user." + g.pick("a", "b", "x^y", "ab", "c")
	case 7:
		name = "DELETED.user." + g.pick("a", "b")
	default:
		name = g.pick("pub", "pub", "news", "d^org", "d", "INBOX", "inbox", "users", "#drive", "Other Users")
	}
	for range g.IntN(4) {
		name += "." + g.pick("x", "x", "y", "xy", "x-y", "x^y", "x y", "INBOX", "inbox", "Inbox", "Other Users", "Shared Folders", "Alt Folders", "#calendars", "Sent", "user", "a")
	}
	if domain != "" {
		name = domain + "!" + name
	}
	return name
}

func (g *generator) acl(name string) string {
	var acl strings.Builder
	if owner, ok := directory.MailboxName(name).Owner(); ok && g.IntN(8) > 0 {
		fmt.Fprintf(&acl, "%s\tlrswipkxtecdan\t", owner)
	}
	for range g.IntN(3) {
		id := g.pick("a", "b", "x.y", "a@d.org", "anyone", "anyone", "anonymous", "group:g", "group:h")
		if g.IntN(6) == 0 {
			id = "-" + id
		}
		fmt.Fprintf(&acl, "%s\t%s\t", id, g.pick("lrs", "lr", "l", "rs", "p", "r", "", "lrswipkxtecdan"))
	}
	return acl.String()
}

// population returns mailboxes and the operations that make them: most on the
// primary of a group of two, some on its other member too or alone, some on a
// server outside that claims them in vain.
func (g *generator) population(user string) (boxes []naiveBox, ops []Op) {
	ops = []Op{
		SetBackend{Server: "be1", Create: true}, SetBackend{Server: "be2", Create: true}, SetBackend{Server: "be3", Create: true},
		SetGroup{Group: "pair", Members: []directory.BackendName{"be1", "be2"}},
	}
	seen := map[string]bool{}
	for range g.IntN(30) {
		box := naiveBox{name: g.name(user)}
		if seen[box.name] {
			continue
		}
		seen[box.name] = true
		box.acl = g.acl(box.name)
		box.use = g.pick("", "", "", `\Sent`, `\Junk \Important`)
		state := func(server directory.BackendName, acl, use string) {
			op := assertion(server, box.name, acl)
			op.Statement.SpecialUse = &use
			ops = append(ops, op)
		}
		switch g.IntN(8) {
		case 0: // a replica that knows another ACL
			state("be2", g.acl(box.name), "")
			state("be1", box.acl, box.use)
		case 1: // not at the primary
			state("be2", box.acl, box.use)
		case 2: // a fork
			state("be1", box.acl, box.use)
			state("be3", g.acl(box.name), "")
		case 3: // of the server alone
			state("be3", box.acl, box.use)
		default:
			state("be1", box.acl, box.use)
		}
		boxes = append(boxes, box)
	}
	if g.IntN(4) == 0 {
		ops = append(ops, Hold{Kind: directory.HoldMailbox, Key: "pub", For: 1000, Why: "test"})
	}
	return boxes, ops
}

func (g *generator) query(user string) ListQuery {
	q := ListQuery{Principal: directory.Principal{User: directory.UserID(user)}}
	switch g.IntN(8) {
	case 0:
		q.Principal = directory.Principal{Admin: true}
	case 1:
		q.Principal.Groups = []string{"g"}
	case 2:
		q.Principal.Groups = []string{"h", "g"}
	}
	q.Namespace = directory.Namespace{Alt: g.IntN(2) == 0, Sep: "./"[g.IntN(2)]}
	switch g.IntN(3) {
	case 0:
		q.Namespace.VirtDomains = true
		q.Namespace.DefaultDomain = "example.com"
	case 1:
		q.Namespace.VirtDomains, q.Namespace.CrossDomains = true, true
		q.Namespace.DefaultDomain = "example.com"
	}
	sep := string(q.Namespace.Sep)
	pattern := func() string {
		var p strings.Builder
		for i := range g.IntN(4) {
			if i > 0 && g.IntN(4) > 0 {
				p.WriteString(sep)
			}
			p.WriteString(g.pick("%", "%", "*", "*%", "%%", "x", "a", "user", "INBOX", "inbox", "I%", "x%", "*y", "Other Users", "Shared Folders", "Alt Folders", "pub", "%o%", "Sent", sep, "a@example.com", "d.org", "%@d.org"))
		}
		return p.String()
	}
	q.Patterns = []string{pattern()}
	if q.Patterns[0] == "" && g.IntN(4) > 0 {
		q.Patterns[0] = "%"
	}
	if g.IntN(4) == 0 {
		q.Reference = pattern()
	}
	switch g.IntN(8) {
	case 0:
		q.LSUB = true
		return q
	case 1, 2:
		q.Select.Subscribed = true
		q.Select.RecursiveMatch = g.IntN(2) == 0
	case 3:
		q.Select.SpecialUse = true
		q.Select.Subscribed = g.IntN(3) == 0
		q.Select.RecursiveMatch = g.IntN(2) == 0
	}
	q.DAV = g.IntN(8) == 0
	q.Return.Subscribed = g.IntN(4) == 0
	q.Return.MyRights = g.IntN(4) == 0
	q.Return.SpecialUse = g.IntN(4) == 0
	q.Return.Status = g.IntN(8) == 0
	for range g.IntN(3) {
		if g.IntN(3) == 0 {
			q.Patterns = append(q.Patterns, pattern())
		}
	}
	return q
}
