package mutants

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// root is where the paths of a mutant begin.
const root = "../.."

// mutant is a bug to plant.
type mutant struct {
	name    string
	why     string // what goes wrong, for people
	breaks  string // the rule
	harness string // that must catch it
	quick   bool   // within a seed or two
	edits   []edit
}

// edit is a text in the place of another.
type edit struct{ file, old, new string }

// harnesses are who can catch one.
var harnesses = []string{"sim", "chaos", "power", "damage", "soak", "upgrade"}

// readMutants reads all of testdata, by name.
func readMutants() (all []*mutant, err error) {
	files, err := filepath.Glob("testdata/*.mutant")
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		m, err := parseMutant(strings.TrimSuffix(filepath.Base(file), ".mutant"), string(text))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		all = append(all, m)
	}
	return all, nil
}

func parseMutant(name, text string) (*mutant, error) {
	m := &mutant{name: name}
	var into *string
	for line := range strings.Lines(text) {
		bare := strings.TrimSuffix(line, "\n")
		file, isOld := strings.CutPrefix(bare, "-- old ")
		file, ends := strings.CutSuffix(file, " --")
		switch {
		case isOld && ends:
			m.edits = append(m.edits, edit{file: file})
			into = &m.edits[len(m.edits)-1].old
		case bare == "-- new --" && into != nil:
			into = &m.edits[len(m.edits)-1].new
		case into != nil:
			*into += line
		case strings.HasPrefix(bare, "# "):
			m.why = strings.TrimSpace(m.why + " " + bare[2:])
		default:
			key, value, _ := strings.Cut(bare, ": ")
			switch key {
			case "breaks":
				m.breaks = value
			case "caught by":
				m.harness, m.quick = strings.CutSuffix(value, " at once")
			default:
				return nil, fmt.Errorf("%q is neither a comment nor one of \"breaks:\" and \"caught by:\"", bare)
			}
		}
	}
	switch {
	case m.why == "" || m.breaks == "":
		return nil, errors.New("it does not say what is wrong with it, and which rule it breaks")
	case !slices.Contains(harnesses, m.harness):
		return nil, fmt.Errorf("it is to be caught by %q: that is one of %v", m.harness, harnesses)
	case len(m.edits) == 0:
		return nil, errors.New("it changes nothing")
	}
	for _, e := range m.edits {
		if e.old == "" || e.old == e.new {
			return nil, fmt.Errorf("an edit of %s changes nothing", e.file)
		}
	}
	return m, nil
}

// overlay is the files of the tree that have another text.
type overlay map[string]string // by path from root

// plant adds a mutant. It fails, and changes nothing, if a text that it replaces
// is not there exactly once.
func (o overlay) plant(m *mutant) error {
	changed := overlay{}
	for _, e := range m.edits {
		text, ok := changed[e.file]
		if !ok {
			text, ok = o[e.file]
		}
		if !ok {
			b, err := os.ReadFile(filepath.Join(root, e.file))
			if err != nil {
				return err
			}
			text = string(b)
		}
		if n := strings.Count(text, e.old); n != 1 {
			return fmt.Errorf("mutant %s replaces a text that stands %d times in %s, and must stand there once:\n%s", m.name, n, e.file, e.old)
		}
		changed[e.file] = strings.Replace(text, e.old, e.new, 1)
	}
	for file, text := range changed {
		o[file] = text
	}
	return nil
}

// write writes the files and the list of them that go build -overlay takes, and
// returns the path of that.
func (o overlay) write(dir string) (string, error) {
	top, err := filepath.Abs(root)
	if err != nil {
		return "", err
	}
	replace := map[string]string{}
	for file, text := range o {
		to := filepath.Join(dir, strings.ReplaceAll(file, "/", "+"))
		if err := os.WriteFile(to, []byte(text), 0o600); err != nil {
			return "", err
		}
		replace[filepath.Join(top, file)] = to
	}
	b, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	list := filepath.Join(dir, "overlay.json")
	return list, os.WriteFile(list, b, 0o600)
}

// packages are where the files are, as go build takes them.
func (o overlay) packages() (all []string) {
	for file := range o {
		all = append(all, "./"+filepath.Dir(file))
	}
	slices.Sort(all)
	return slices.Compact(all)
}

func TestParseMutant(t *testing.T) {
	const good = "# why\n# it matters\nbreaks: a rule\ncaught by: sim\n-- old a.go --\n\told\n-- new --\n\tnew\n\n\tmore\n-- old b.go --\nx\n-- new --\n"
	m, err := parseMutant("m", good)
	if err != nil || m.why != "why it matters" || len(m.edits) != 2 || m.edits[0] != (edit{"a.go", "\told\n", "\tnew\n\n\tmore\n"}) || m.edits[1] != (edit{"b.go", "x\n", ""}) {
		t.Errorf("got %+v, %v", m, err)
	}
	for _, bad := range []string{
		"", "# why\nbreaks: r\ncaught by: sim\n", strings.Replace(good, "sim", "luck", 1), strings.Replace(good, "breaks: a rule\n", "", 1),
		strings.Replace(good, "\told\n", "\tnew\n\n\tmore\n", 1), strings.Replace(good, "breaks", "brakes", 1),
	} {
		if m, err := parseMutant("m", bad); err == nil {
			t.Errorf("%q: got %+v, want an error", bad, m)
		}
	}
}
