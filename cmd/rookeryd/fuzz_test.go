package main

import (
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rookery-mail/rookery/internal/daemon"
)

// FuzzConfig: a settings file is taken or refused as usage; and a flag beats it.
func FuzzConfig(f *testing.F) {
	f.Add("name: n1\ndata: /x\n# a comment\n")
	f.Add("name: n1\nname: n2")
	f.Add("initial-cluster: n1=a:1,n2=b:2\nballast: 1GiB\nlog-level: debug")
	f.Add("config: x")
	f.Add("snapshot-rate: 0\nscrub-interval: -1h\n\xff: \x00")
	f.Add("no colon")
	f.Fuzz(func(t *testing.T, text string) {
		path := filepath.Join(t.TempDir(), "rookeryd.conf")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := parseSettings([]string{"--name", "n1", "--data", "/d", "--config", path}, io.Discard)
		if err != nil {
			if !errors.Is(err, daemon.ErrUsage) {
				t.Errorf("%q: got %v, want ErrUsage", text, err)
			}
			return
		}
		if s.name != "n1" || s.data != "/d" {
			t.Errorf("%q: the file beats a flag: %q, %q", text, s.name, s.data)
		}
		if s.Version || s.Config != path {
			t.Errorf("%q: set what no file may: %v, %q", text, s.Version, s.Config)
		}
		for _, founder := range s.founders {
			if founder.Name == "" || founder.Address == "" {
				t.Errorf("%q: a founder %+v", text, founder)
			}
		}
	})
}

// FuzzFlags: the command line is taken or refused as usage, by flag.ErrHelp only if
// help is asked for.
func FuzzFlags(f *testing.F) {
	f.Add("--name n1 --data d --ballast 1MiB")
	f.Add("-h")
	f.Add("--version --name")
	f.Add("--join a:1,,b:2 --initial-cluster n1=x")
	f.Fuzz(func(t *testing.T, line string) {
		if strings.Contains(line, "config") {
			return // it would read a file
		}
		_, err := parseSettings(strings.Fields(line), io.Discard)
		if err != nil && !errors.Is(err, daemon.ErrUsage) && !errors.Is(err, flag.ErrHelp) {
			t.Errorf("%q: got %v, want ErrUsage or flag.ErrHelp", line, err)
		}
	})
}

// FuzzSizes: a size is printed as it is read.
func FuzzSizes(f *testing.F) {
	for _, s := range []string{"0", "128MiB", "9223372036854775807", "8388608TiB", "-1", "1 KiB", "1.5GiB", "+1", "KiB"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var o, again octets
		if o.Set(s) != nil {
			return
		}
		if o < 0 {
			t.Errorf("%q is %d octets", s, int64(o))
		}
		if err := again.Set(o.String()); err != nil || again != o {
			t.Errorf("%q is %d octets, printed %s, which is %d, %v", s, int64(o), o.String(), int64(again), err)
		}
	})
}

// FuzzFounders: a list names each founder once, this node among them.
func FuzzFounders(f *testing.F) {
	f.Add("n1=a:1,n2=b:2", "n1")
	f.Add("n1=a:1, n1=b:2", "n1")
	f.Add("=,=", "")
	f.Add("n1=a=b", "n1")
	f.Fuzz(func(t *testing.T, list, self string) {
		founders, err := parseFounders(list, self)
		if err != nil {
			if !errors.Is(err, daemon.ErrUsage) {
				t.Errorf("%q: got %v, want ErrUsage", list, err)
			}
			return
		}
		seen := map[string]bool{}
		var again []string
		for _, founder := range founders {
			if seen[founder.Name] {
				t.Errorf("%q names %s twice", list, founder.Name)
			}
			seen[founder.Name] = true
			again = append(again, founder.Name+"="+founder.Address)
		}
		if list != "" && !seen[self] {
			t.Errorf("%q was taken and does not name %q", list, self)
		}
		if same, err := parseFounders(strings.Join(again, ","), self); err != nil || len(same) != len(founders) {
			t.Errorf("%q is %v, written again it is %v, %v", list, founders, same, err)
		}
	})
}

// FuzzReseeds: whatever stands in the file of re-seeds, another is counted, and no
// time to come counts.
func FuzzReseeds(f *testing.F) {
	now := time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)
	f.Add("2026-11-26T11:00:00Z\n2026-11-26T1")
	f.Add("2999-01-01T00:00:00Z\n")
	f.Add("\xff\n\n2026-11-26T13:00:00+01:00")
	f.Fuzz(func(t *testing.T, text string) {
		r := reseeds{filepath.Join(t.TempDir(), "reseeds")}
		if err := os.WriteFile(r.path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		before, err := r.recent(now)
		if err != nil {
			t.Fatal(err)
		}
		for _, at := range before {
			if now.Sub(at).Abs() >= reseedsWithin {
				t.Errorf("%q: %v counts at %v", text, at, now)
			}
		}
		if err := r.add(now); err != nil {
			t.Fatal(err)
		}
		after, err := r.recent(now)
		if err != nil || len(after) != len(before)+1 {
			t.Errorf("%q: %d counted, and after one more %d, %v", text, len(before), len(after), err)
		}
		if err := r.check(now); (err != nil) != (len(after) >= reseedsAllowed) {
			t.Errorf("%q: %d are counted: %v", text, len(after), err)
		}
	})
}
