package main

import (
	"errors"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/rookery-mail/rookery/directory"
)

func TestParseACL(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"", ""},
		{"alice lrs", "alice\tlrs\t"},
		{"  alice  lrs   -anyone  r ", "alice\tlrs\t-anyone\tr\t"},
		{"group:a b\tlr\talice\tl", "group:a b\tlr\talice\tl\t"},
		{"alice\tlrs\t", "alice\tlrs\t"},
	} {
		if got, err := parseACL(tt.in); err != nil || got != tt.want {
			t.Errorf("parseACL(%q): got %q, %v; want %q", tt.in, got, err, tt.want)
		}
	}
	for _, in := range []string{"alice", "alice lrs bob", "alice l?", "\t\t\t", strings.Repeat("a l ", 70000)} {
		if got, err := parseACL(in); !errors.Is(err, directory.ErrInvalidACL) && !errors.Is(err, directory.ErrTooLarge) {
			t.Errorf("parseACL(%.40q): got %.40q, %v; want a refusal", in, got, err)
		}
	}
}

func FuzzParseACL(f *testing.F) {
	for _, s := range []string{"", "alice lrs", "a\tl\tb\tr", "a", "a l b", "\t", "a  l\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		acl, err := parseACL(s)
		if err != nil {
			return
		}
		if err := directory.CheckACL(acl); err != nil {
			t.Fatalf("parseACL(%q) = %q, which is no ACL: %v", s, acl, err)
		}
		if again, err := parseACL(acl); err != nil || again != acl {
			t.Fatalf("parseACL(%q) = %q, read again: %q, %v", s, acl, again, err)
		}
	})
}

func TestParseAddress(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want directory.Address
	}{
		{"imap=10.0.0.1:143", directory.Address{Service: "imap", IP: "10.0.0.1", Port: 143}},
		{"imap=10.0.0.1:143/start", directory.Address{Service: "imap", IP: "10.0.0.1", Port: 143, TLS: directory.TLSStart}},
		{"lmtp=[2001:db8::1]:24/implicit", directory.Address{Service: "lmtp", IP: "2001:db8::1", Port: 24, TLS: directory.TLSImplicit}},
	} {
		got, err := parseAddress(tt.in)
		if err != nil || got != tt.want {
			t.Errorf("parseAddress(%q): got %+v, %v; want %+v", tt.in, got, err, tt.want)
		}
		if s := addressWords([]directory.Address{got}); s != tt.in {
			t.Errorf("addressWords(%+v): got %q, want %q", got, s, tt.in)
		}
	}
	for _, in := range []string{"", "imap", "imap=", "ftp=10.0.0.1:21", "imap=be1:143", "imap=10.0.0.1", "imap=10.0.0.1:0", "imap=10.0.0.1:65536", "imap=10.0.0.1:143/tls"} {
		if got, err := parseAddress(in); err == nil {
			t.Errorf("parseAddress(%q): got %+v, want an error", in, got)
		}
	}
}

func FuzzParseAddress(f *testing.F) {
	for _, s := range []string{"imap=10.0.0.1:143/start", "lmtp=[::1]:24", "imap=[fe80::1%eth0]:1", "=", "pop3=1.2.3.4:5/"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ad, err := parseAddress(s)
		if err != nil {
			return
		}
		again, err := parseAddress(addressWords([]directory.Address{ad}))
		if err != nil || again != ad {
			t.Fatalf("parseAddress(%q) = %+v; written and read again: %+v, %v", s, ad, again, err)
		}
	})
}

func TestNodes(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"127.0.0.1:7905", "127.0.0.1:7905"},
		{" a:1 , b:2,,a:1,", "a:1 b:2"},
		{"[::1]:7905", "[::1]:7905"},
		{"unix:/a/b, unix:///a/b,c:1", "unix:/a/b c:1"},
	} {
		got, err := (&app{endpoints: tt.in}).nodes()
		if err != nil || strings.Join(got, " ") != tt.want {
			t.Errorf("%q: got %q, %v; want %q", tt.in, got, err, tt.want)
		}
	}
	for _, in := range []string{"", ",", "host", "unix:", "unix:a", "unix://a", "unix:/a,unix:b"} {
		if got, err := (&app{endpoints: in}).nodes(); err == nil {
			t.Errorf("%q: got %q, want an error", in, got)
		}
	}
}

func TestDays(t *testing.T) {
	for in, want := range map[string]string{"30d": "30d", "0d": "0s", "48h": "2d", "36h": "36h0m0s", "1m": "1m0s"} {
		var d days
		if err := d.Set(in); err != nil || d.String() != want {
			t.Errorf("%q: got %s, %v; want %s", in, d.String(), err, want)
		}
	}
	for _, in := range []string{"", "d", "-1d", "1", "1.5d", "-1h", "40000d", "900000h", "1y", "+1d"} {
		if d := new(days); d.Set(in) == nil {
			t.Errorf("%q: got %s, want an error", in, d)
		}
	}
}

// Whatever people see of a command is there.
func TestCommandsAreExplained(t *testing.T) {
	root := (&app{reach: newReach(nil)}).root(func(string) string { return "" })
	count := 0
	err := eachCommand(root, func(c *cobra.Command) error {
		for parent := c; parent != nil; parent = parent.Parent() {
			if parent.Name() == "completion" {
				return nil // cobra's own
			}
		}
		count++
		if c.Short == "" || c.Long == "" || strings.HasSuffix(c.Short, ".") {
			t.Errorf("%s: short %q, long %q: both are wanted, the short without a full stop", c.CommandPath(), c.Short, c.Long)
		}
		if c.Runnable() && c.Example == "" && !c.HasSubCommands() {
			t.Errorf("%s has no example", c.CommandPath())
		}
		for line := range strings.Lines(c.Long + "\n" + c.Example) {
			if n := len([]rune(line)); n > 112 {
				t.Errorf("%s: a line of %d characters: %s", c.CommandPath(), n, line)
			}
		}
		for line := range strings.Lines(c.Example) {
			if !strings.Contains(line, "rookeryctl") || !strings.HasPrefix(line, "  ") {
				t.Errorf("%s: the example %q calls no rookeryctl, or is not set in", c.CommandPath(), line)
			}
		}
		return nil
	})
	if err != nil || count < 40 {
		t.Errorf("got %d commands, error %v; want 40 or more", count, err)
	}
}

// The names that scripts and the manual rely on.
func TestCommandTree(t *testing.T) {
	root := (&app{reach: newReach(nil)}).root(func(string) string { return "" })
	var b strings.Builder
	err := eachCommand(root, func(c *cobra.Command) error {
		b.WriteString(c.UseLine() + "\n")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "commands.txt", b.String())
}
