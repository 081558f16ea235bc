package directory

import (
	"fmt"
	"strings"
	"testing"
)

func TestPatternMatch(t *testing.T) {
	for _, test := range []struct {
		pattern  string
		matches  []string
		excludes []string
	}{
		{"*", []string{"", "INBOX", "a.b.c"}, nil},
		{"%", []string{"", "INBOX", "Other Users"}, []string{"a.b", ".", "a."}},
		{"%%", []string{"INBOX"}, []string{"a.b"}},
		{"%*", []string{"INBOX", "a.b"}, nil},
		{"*%", []string{"INBOX", "a.b"}, nil},
		{"", []string{""}, []string{"a"}},
		{"INBOX", []string{"INBOX"}, []string{"inbox", "INBOX.a", "INBO"}},
		{"INBOX%", []string{"INBOX", "INBOXes"}, []string{"INBOX.a", "INBO"}},
		{"INBOX*", []string{"INBOX", "INBOX.a.b"}, []string{"xINBOX"}},
		{"INBOX.%", []string{"INBOX.a", "INBOX."}, []string{"INBOX", "INBOX.a.b"}},
		{"i%", []string{"inbox"}, []string{"INBOX"}},
		{"I?BOX", []string{"I?BOX"}, []string{"INBOX"}},
		{"[ab]*", []string{"[ab]", "[ab].c"}, []string{"a", "b"}},
		{"*bob", []string{"bob", "user.bob", "bob.bob"}, []string{"bobx", "user.bob.x"}},
		{"%.bob", []string{"user.bob", ".bob"}, []string{"a.user.bob", "bob"}},
		{"*.bob", []string{"user.bob", "a.user.bob"}, []string{"bob"}},
		{"user.%.%", []string{"user.bob.a"}, []string{"user.bob", "user.bob.a.b"}},
		{"s*d", []string{"sd", "shared", "s.d", "s.dd"}, []string{"shared.", "xsd", "s"}},
		{"%o%", []string{"o", "look", "foo"}, []string{"l.o", "look.x", "lk"}},
		{"*a%b*c", []string{"abc", "xaxbxc", "a.aqb.c", "a.b.ab.c"}, []string{"a.b.c", "abcx", "ab"}},
		{"a*b%", []string{"ab", "axbb", "a.b", "a.bxx", "a.b.b"}, []string{"a.b.c", "b"}},
		{"*.%.*", []string{"a.b.c", "..", "a.b.c.d"}, []string{"a.b", "."}},
	} {
		p := CompilePattern(test.pattern, '.')
		for _, name := range test.matches {
			if !p.Match(name) {
				t.Errorf("%q does not match %q", test.pattern, name)
			}
		}
		for _, name := range test.excludes {
			if p.Match(name) {
				t.Errorf("%q matches %q", test.pattern, name)
			}
		}
	}
	if !CompilePattern("a%", '/').Match("a.b") || CompilePattern("a%", '/').Match("a/b") {
		t.Error("a% with separator '/' stops at something else")
	}
	if !(Pattern{}).Match("") || (Pattern{}).Match("a") {
		t.Error("the zero Pattern matches other than the empty name")
	}
}

func TestPatternParts(t *testing.T) {
	for _, test := range []struct {
		pattern, prefix   string
		bareStar, literal bool
	}{
		{"*", "", true, false},
		{"user*", "user", true, false},
		{"**", "", true, false},
		{"%*", "", true, false},
		{"*%", "", false, false},
		{"user.%", "user.", false, false},
		{"a%b*c", "a", false, false},
		{"*a*", "", true, false},
		{"INBOX", "INBOX", false, true},
		{"", "", false, true},
	} {
		p := CompilePattern(test.pattern, '.')
		if got := p.LiteralPrefix(); got != test.prefix {
			t.Errorf("%q: LiteralPrefix = %q, want %q", test.pattern, got, test.prefix)
		}
		if got := p.EndsInBareStar(); got != test.bareStar {
			t.Errorf("%q: EndsInBareStar = %v, want %v", test.pattern, got, test.bareStar)
		}
		if got := p.IsLiteral(); got != test.literal {
			t.Errorf("%q: IsLiteral = %v, want %v", test.pattern, got, test.literal)
		}
	}
}

func TestPatternCouldMatchBelow(t *testing.T) {
	for _, test := range []struct {
		pattern string
		below   []string
		not     []string
	}{
		{"*", []string{"", "a", "a.b"}, nil},
		{"%", []string{""}, []string{"a", "a.b"}},
		{"%.%", []string{"", "a"}, []string{"a.b"}},
		{"user.%", []string{"", "user"}, []string{"user.bob", "shared", "use", "users"}},
		{"user.bob.%", []string{"", "user", "user.bob"}, []string{"user.bob.x", "user.alice", "user.bo"}},
		{"user.bob.Deep", []string{"", "user", "user.bob"}, []string{"user.bob.Deep", "user.x"}},
		{"user.bob.", []string{"", "user"}, []string{"user.bob"}}, // no name ends so
		{"user.b*", []string{"", "user", "user.bob", "user.bob.x"}, []string{"user.alice", "shared"}},
		{"user.b%", []string{"", "user"}, []string{"user.bob", "user.b"}},
		{"*.go", []string{"", "a", "a.b"}, nil},
		{"%.go", []string{"", "a"}, []string{"a.b", "a.go"}},
		{"a*b%", []string{"", "a", "a.x", "ab", "a.b"}, []string{"b", "x.y"}},
		{"%x", []string{""}, []string{"x", "a"}},
		{"INBOX", []string{""}, []string{"INBOX", "a"}},
		{"", nil, []string{"", "a"}},
	} {
		p := CompilePattern(test.pattern, '.')
		for _, parent := range test.below {
			if !p.CouldMatchBelow(parent) {
				t.Errorf("%q: nothing below %q could match, it says", test.pattern, parent)
			}
		}
		for _, parent := range test.not {
			if p.CouldMatchBelow(parent) {
				t.Errorf("%q: something below %q could match, it says", test.pattern, parent)
			}
		}
	}
}

// Patterns that make a matcher by trial take exponential or cubic time, and
// patterns over one and over sixteen words of states.
func TestPatternLong(t *testing.T) {
	name := strings.Repeat("a", MaxName)
	for _, test := range []struct {
		pattern string
		want    bool
	}{
		{strings.Repeat("*a", 200), true},
		{strings.Repeat("*a", 200) + "b", false},
		{strings.Repeat("%a", 200) + "*b", false},
		{strings.Repeat("*%a", 300) + "%", true},
		{"*" + strings.Repeat("a", 64), true},
		{"*" + strings.Repeat("a", 63), true},
		{"*" + strings.Repeat("a", 489) + "%", true},
		{"%" + strings.Repeat("a", 490), true},
		{"%" + strings.Repeat("a", 491), false},
		{"*" + strings.Repeat("a", maxClientName+1), false},
		{strings.Repeat("*a", 1<<20), false},
	} {
		p := CompilePattern(test.pattern, '.')
		if got := p.Match(name); got != test.want {
			t.Errorf("%.20q of %d octets matches %d times a: %v, want %v", test.pattern, len(test.pattern), len(name), got, test.want)
		}
	}
	long := CompilePattern("*"+strings.Repeat("a", 70)+".b", '.')
	if !long.CouldMatchBelow(strings.Repeat("a", 70)) || !long.CouldMatchBelow("x") {
		t.Error("a long pattern: nothing below could match, it says")
	}
	if p := CompilePattern("%"+strings.Repeat("a", 70)+".b", '.'); p.CouldMatchBelow("x") || !p.CouldMatchBelow(strings.Repeat("a", 71)) {
		t.Error("a long pattern with % : CouldMatchBelow is wrong")
	}
	// The last state alone, with and without a wildcard to go on.
	if p := CompilePattern("%"+strings.Repeat("a", 70)+".", '.'); p.CouldMatchBelow(strings.Repeat("a", 70)) {
		t.Error("a name below would go on, and the pattern does not")
	}
	if p := CompilePattern("%"+strings.Repeat("a", 70)+".%", '.'); !p.CouldMatchBelow(strings.Repeat("a", 70)) {
		t.Error("a name below goes on, and so does the pattern")
	}
}

// matchOracle matches by a table of pattern position and name position.
func matchOracle(pattern, name string, sep byte) bool {
	reach := make([]bool, len(name)+1) // ends of name that the pattern so far can reach
	reach[0] = true
	for i := range len(pattern) {
		next := make([]bool, len(name)+1)
		switch c := pattern[i]; c {
		case '*', '%':
			for j := range reach {
				next[j] = reach[j] || j > 0 && next[j-1] && (c == '*' || name[j-1] != sep)
			}
		default:
			for j := range name {
				next[j+1] = reach[j] && name[j] == c
			}
		}
		reach = next
	}
	return reach[len(name)]
}

func FuzzPattern(f *testing.F) {
	for _, s := range [][2]string{
		{"*", "a.b"}, {"%", "a.b"}, {"a%b*c", "a.b.c"}, {"*.go", "news.comp.go"}, {"*a%b*c", "a.b.ab.c"}, {"user.%.%", "user.bob.x"},
		{"*%*%", "..."}, {strings.Repeat("*a", 70), strings.Repeat("a", 80)}, {strings.Repeat("a%", 70) + "b", strings.Repeat("a", 75) + ".b"}, {"", ""},
		{"\x00*\xff%", "\x00.\xff"}, {"a*b", "a*b"},
	} {
		f.Add(s[0], s[1], uint8(1))
	}
	f.Fuzz(func(t *testing.T, pattern, name string, cut uint8) {
		if len(pattern) > 300 || len(name) > 300 {
			return
		}
		for _, sep := range []byte("./") {
			p := CompilePattern(pattern, sep)
			got, want := p.Match(name), matchOracle(pattern, name, sep)
			if got != want {
				t.Fatalf("%q matches %q with %q: %v, want %v", pattern, name, sep, got, want)
			}
			if got && !strings.HasPrefix(name, p.LiteralPrefix()) {
				t.Fatalf("%q matches %q without its prefix %q", pattern, name, p.LiteralPrefix())
			}
			// Every parent of a name that matches must say so.
			for i := range len(name) - 1 {
				if name[i] == sep && i > 0 && got && !p.CouldMatchBelow(name[:i]) {
					t.Fatalf("%q matches %q, but says nothing below %q could", pattern, name, name[:i])
				}
			}
			if got && name != "" && !p.CouldMatchBelow("") {
				t.Fatalf("%q matches %q, but says nothing could", pattern, name)
			}
			// And it says so for a reason: some name does match, if made of
			// the pattern's own literals. Found by taking wildcards as nothing.
			parent := name[:min(int(cut), len(name))]
			if parent != "" && p.CouldMatchBelow(parent) && !couldOracle(pattern, parent, sep) {
				t.Fatalf("%q says that something below %q could match; nothing does", pattern, parent)
			}
		}
	})
}

// couldOracle says whether parent, sep and one octet or more can match.
func couldOracle(pattern, parent string, sep byte) bool {
	start := parent + string(rune(sep))
	for i := range len(pattern) + 1 {
		// The first i octets of pattern match start; the rest, its wildcards
		// taken as one octet each or nothing, is a name that goes on.
		if !matchOracle(pattern[:i], start, sep) {
			continue
		}
		rest := strings.NewReplacer("*", "", "%", "").Replace(pattern[i:])
		if rest != "" || i < len(pattern) || i > 0 && (pattern[i-1] == '*' || pattern[i-1] == '%') {
			return true
		}
	}
	return false
}

func BenchmarkPatternMatch(b *testing.B) {
	name := "Other Users/bob/Projects/Rookery/2024/Q1"
	for _, pattern := range []string{"*", "%", "Other Users/%", "*/Q1", "%/%/%", "*o%o*Q%", strings.Repeat("*o", 100)} {
		b.Run(fmt.Sprintf("%.10s", strings.ReplaceAll(pattern, "/", "|")), func(b *testing.B) {
			b.ReportAllocs()
			p := CompilePattern(pattern, '/')
			for b.Loop() {
				p.Match(name)
			}
		})
	}
	for n := 1; n <= 4; n *= 2 { // linear: twice the name, twice the time
		b.Run(fmt.Sprintf("bomb-%d", 120*n), func(b *testing.B) {
			p := CompilePattern(strings.Repeat("*a", 30)+"b", '/')
			name := strings.Repeat("a", 120*n)
			for b.Loop() {
				p.Match(name)
			}
		})
	}
}
