package directory

import (
	"errors"
	"strings"
	"testing"
)

func TestParseLocation(t *testing.T) {
	for _, test := range []struct {
		in   string
		want Location
	}{
		{"be1.example.org!default", Location{"be1.example.org", "default"}},
		{"be1.example.org!", Location{"be1.example.org", ""}}, // Cyrus 3.6 on RENAME
		{"be1!p-2_x.y", Location{"be1", "p-2_x.y"}},
	} {
		got, err := ParseLocation(test.in)
		if err != nil || got != test.want {
			t.Errorf("ParseLocation(%q) = %+v, %v; want %+v", test.in, got, err, test.want)
		}
		if s := got.String(); s != test.in {
			t.Errorf("ParseLocation(%q).String() = %q", test.in, s)
		}
	}
	for _, s := range []string{"", "default", "!default", "be1!a!b", "be1!a b", "be1!\x00", "b e!x", "be1!\xe9", "be1!!", "be1!" + strings.Repeat("a", 254)} {
		if got, err := ParseLocation(s); !errors.Is(err, ErrInvalidLocation) {
			t.Errorf("ParseLocation(%q) = %+v, %v; want ErrInvalidLocation", s, got, err)
		}
	}
	if got, err := ParsePartition(""); got != "" || err != nil {
		t.Errorf("ParsePartition of nothing = %q, %v; want nothing", got, err)
	}
	if _, err := ParsePartition("a!b"); !errors.Is(err, ErrInvalidLocation) {
		t.Errorf("ParsePartition(a!b): %v; want ErrInvalidLocation", err)
	}
}

func FuzzParseLocation(f *testing.F) {
	for _, s := range []string{"be1!default", "be1!", "be1", "!x", "a!b!c"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		l, err := ParseLocation(s)
		if err != nil {
			return
		}
		if l.String() != s {
			t.Fatalf("ParseLocation(%q) = %+v, written %q", s, l, l)
		}
		if _, err := ParseBackend(string(l.Backend)); err != nil {
			t.Fatalf("%q: backend: %v", s, err)
		}
		if _, err := ParsePartition(l.Partition); err != nil {
			t.Fatalf("%q: partition: %v", s, err)
		}
	})
}
