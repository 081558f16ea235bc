package daemon

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"github.com/rookery-mail/rookery/internal/obs"
)

// Settings are the flags that every daemon has.
type Settings struct {
	Config  string // the file read, "" if none
	Version bool   // it is asked for, and nothing else is to be done

	level  slog.Level
	format string
}

// Register adds the flags.
func (s *Settings) Register(fs *flag.FlagSet) {
	fs.StringVar(&s.Config, "config", "", "`file` with more settings")
	fs.TextVar(&s.level, "log-level", slog.LevelInfo, "debug, info, warn or error")
	fs.StringVar(&s.format, "log-format", "text", "text or json")
	fs.BoolVar(&s.Version, "version", false, "print the version and exit")
}

// Parse reads the command line and the file it names into fs, which s was
// registered with and which is named like the program. Help is written to out, after
// synopsis. With Version set the file is not read.
//
// Errors: flag.ErrHelp when help was asked for, else ErrUsage.
func (s *Settings) Parse(fs *flag.FlagSet, args []string, synopsis string, out io.Writer) error {
	fs.SetOutput(io.Discard)
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			fmt.Fprint(out, synopsis)
			fs.SetOutput(out)
			fs.PrintDefaults()
			return err
		}
		return fmt.Errorf("%w: %w; `%s --help` lists the flags", ErrUsage, err, fs.Name())
	}
	if fs.NArg() > 0 {
		return fmt.Errorf("%w: %q is no flag; `%s --help` lists them", ErrUsage, fs.Arg(0), fs.Name())
	}
	if s.Version {
		return nil
	}
	if s.Config != "" {
		if err := readFile(fs, s.Config); err != nil {
			return err
		}
	}
	if s.format != "text" && s.format != "json" {
		return fmt.Errorf("%w: --log-format %q: text or json", ErrUsage, s.format)
	}
	return nil
}

// Logger returns the log that was asked for. Errors: ErrUsage.
func (s *Settings) Logger(w io.Writer) (*slog.Logger, error) {
	log, err := obs.NewLogger(w, strings.ToLower(s.level.String()), s.format)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUsage, err)
	}
	return log, nil
}

// readFile sets from file what no flag has set.
func readFile(fs *flag.FlagSet, file string) error {
	f, err := os.Open(file)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUsage, err)
	}
	defer f.Close()
	given := map[string]bool{"config": true}
	fs.Visit(func(f *flag.Flag) { given[f.Name] = true })
	seen := map[string]bool{}
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, value, ok := strings.Cut(line, ":")
		name, value = strings.TrimSpace(name), strings.TrimSpace(value)
		switch {
		case !ok:
			return fmt.Errorf("%w: %s:%d: %q is no \"name: value\" line", ErrUsage, file, n, line)
		case fs.Lookup(name) == nil || name == "config" || name == "version":
			return fmt.Errorf("%w: %s:%d: no setting is called %q; `%s --help` lists them", ErrUsage, file, n, name, fs.Name())
		case seen[name]:
			return fmt.Errorf("%w: %s:%d: %s stands twice", ErrUsage, file, n, name)
		}
		seen[name] = true
		if given[name] {
			continue
		}
		if err := fs.Set(name, value); err != nil {
			return fmt.Errorf("%w: %s:%d: %s: %w", ErrUsage, file, n, name, err)
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrUsage, file, err)
	}
	return nil
}
