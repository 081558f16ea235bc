package daemon

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// parse is a daemon with one setting of its own.
func parse(args []string, out *bytes.Buffer) (s Settings, name string, err error) {
	fs := flag.NewFlagSet("testd", flag.ContinueOnError)
	fs.StringVar(&name, "name", "", "its `name`")
	s.Register(fs)
	err = s.Parse(fs, args, "testd - a daemon\n", out)
	return s, name, err
}

func TestParse(t *testing.T) {
	for _, tt := range []struct {
		what string
		args []string
		file string // if not empty, given as --config before args
		want string // the name, or a part of the error
		ok   bool
	}{
		{what: "a flag", args: []string{"--name", "a"}, want: "a", ok: true},
		{what: "a file", file: "# as Cyrus has them\n\n  name:  a  \nlog-level: debug\n", want: "a", ok: true},
		{what: "a flag beats the file", file: "name: b\n", args: []string{"--name", "a"}, want: "a", ok: true},
		{what: "unknown flag", args: []string{"--nmae", "a"}, want: "`testd --help` lists the flags"},
		{what: "stray word", args: []string{"serve"}, want: `"serve" is no flag`},
		{what: "unknown setting", file: "nmae: a\n", want: `:1: no setting is called "nmae"; ` + "`testd --help`"},
		{what: "a file in a file", file: "config: other\n", want: "no setting"},
		{what: "no colon", file: "name a\n", want: `:1: "name a" is no`},
		{what: "twice", file: "name: a\nname: b\n", want: ":2: name stands twice"},
		{what: "twice under a flag", file: "name: a\nname: b\n", args: []string{"--name", "c"}, want: ":2: name stands twice"},
		{what: "bad value", file: "log-level: loud\n", want: ":1: log-level"},
		{what: "bad format", args: []string{"--log-format", "xml"}, want: "text or json"},
		{what: "no file", args: []string{"--config", "/nowhere/at/all"}, want: "/nowhere/at/all"},
	} {
		t.Run(tt.what, func(t *testing.T) {
			args := tt.args
			if tt.file != "" {
				file := filepath.Join(t.TempDir(), "testd.conf")
				if err := os.WriteFile(file, []byte(tt.file), 0o600); err != nil {
					t.Fatal(err)
				}
				args = append([]string{"--config", file}, args...)
			}
			_, name, err := parse(args, &bytes.Buffer{})
			switch {
			case tt.ok && (err != nil || name != tt.want):
				t.Errorf("got %q, %v, want %q", name, err, tt.want)
			case !tt.ok && (!errors.Is(err, ErrUsage) || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("got %v, want a usage error with %q", err, tt.want)
			}
		})
	}
}

func TestHelpAndVersion(t *testing.T) {
	var out bytes.Buffer
	if _, _, err := parse([]string{"--help"}, &out); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("help: got %v, want flag.ErrHelp", err)
	}
	if got := out.String(); !strings.HasPrefix(got, "testd - a daemon\n") || !strings.Contains(got, "-log-format") {
		t.Errorf("help: got\n%s", got)
	}
	// Whoever asks for the version gets it, whatever the file is like.
	if s, _, err := parse([]string{"--version", "--config", "/nowhere/at/all"}, &out); err != nil || !s.Version {
		t.Errorf("version: got %+v, %v", s, err)
	}
}
