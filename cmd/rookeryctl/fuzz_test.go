package main

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
)

// FuzzWords: whatever stands for a mailbox type, a time, an alarm, a hold or a
// setting, it is understood or refused; what is understood says the same when it is
// written the way it is shown.
func FuzzWords(f *testing.F) {
	for _, s := range []string{"email", "e", "30d", "36h", "-1h", "1e9d", "nospace", "user", "guard-count", "guard_window", "read-only"} {
		f.Add(s, "yes")
		f.Add(s, "10m")
	}
	f.Add("user", "anna")
	f.Add("mailbox", "user.anna")
	f.Fuzz(func(t *testing.T, word, value string) {
		if kind, err := parseType(word); err == nil {
			if again, err := parseType(typeWord(kind)); err != nil || again != kind {
				t.Errorf("type %q is %v, shown %q", word, kind, typeWord(kind))
			}
		}
		var d days
		if err := d.Set(word); err == nil {
			var again days
			if d < 0 || time.Duration(d) > maxDays*24*time.Hour {
				t.Errorf("%q is %v", word, time.Duration(d))
			}
			if err := again.Set(d.String()); err != nil || again != d {
				t.Errorf("%q is %v, shown %q, which is %v, %v", word, time.Duration(d), d.String(), time.Duration(again), err)
			}
		}
		if kind, err := parseAlarm(word); err == nil && kind.String() != word {
			t.Errorf("alarm %q is %v", word, kind)
		}
		if kind, err := parseHold(word, value); err == nil && kind.String() != word {
			t.Errorf("hold %q is %v", word, kind)
		}
		if r, err := parseReturn([]string{word}); err == nil && boolCount(r.Subscribed, r.Children, r.SpecialUse, r.MyRights) != 1 {
			t.Errorf("--return %q is %+v", word, r)
		}
		if s, err := settingNamed(word); err == nil {
			var change client.SettingsChange
			if err := s.set(&change, value); err == nil && change == (client.SettingsChange{}) {
				t.Errorf("%s %q was taken and changes nothing", word, value)
			} else if err != nil && change != (client.SettingsChange{}) {
				t.Errorf("%s %q was refused, and changes something: %v", word, value, err)
			}
			s.jsonField(directory.DefaultSettings())
		}
	})
}

func boolCount(all ...bool) (n int) {
	for _, b := range all {
		if b {
			n++
		}
	}
	return n
}

// FuzzEndpoints: each node is named once, as it can be dialed.
func FuzzEndpoints(f *testing.F) {
	for _, s := range []string{"127.0.0.1:7905", " a:1 , b:2,,a:1,", "[::1]:1", "unix:/a/b, unix:///a/b", "unix:", "host", ","} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		nodes, err := (&app{endpoints: text}).nodes()
		if err != nil {
			if nodes != nil {
				t.Errorf("%q: got %q and %v", text, nodes, err)
			}
			return
		}
		for i, n := range nodes {
			if slices.Contains(nodes[:i], n) || !strings.Contains(n, ":") {
				t.Errorf("%q: %q, number %d of %q", text, n, i, nodes)
			}
		}
		again, err := (&app{endpoints: strings.Join(nodes, ",")}).nodes()
		if err != nil || !slices.Equal(again, nodes) {
			t.Errorf("%q: %q, which is %q, %v", text, nodes, again, err)
		}
	})
}

// FuzzCommandLine finds the command of a line and reads its flags, without running
// it. What is wrong is an error, never a panic.
func FuzzCommandLine(f *testing.F) {
	f.Add("where user.anna -o json")
	f.Add("backends set be1 --address imap=10.0.0.1:143 --weight x")
	f.Add("list --user anna --return children,myrights *")
	f.Add("cert node n1 --days 30d --ip ::1")
	f.Add("--endpoints a:1,b:2 member replace n1 --finish")
	f.Add("settings set guard-count=5 --timeout -1s")
	f.Add("-- --")
	f.Fuzz(func(t *testing.T, line string) {
		root := (&app{reach: newReach(nil)}).root(func(string) string { return "" })
		cmd, args, err := root.Find(strings.Fields(line))
		if err != nil {
			return
		}
		if err := cmd.ParseFlags(args); err != nil {
			return
		}
		if cmd.Args != nil {
			_ = cmd.Args(cmd, cmd.Flags().Args()) // it looks at them and no further
		}
	})
}
