package archtest

import (
	"io/fs"
	"os"
	"path"
	"regexp"
	"strings"
	"testing"
)

// What docs/PROTOCOLS.md says is shown by a test, a test of that name shows.
func TestProtocolsNameTests(t *testing.T) {
	root := os.DirFS("../..")
	const page = "docs/PROTOCOLS.md"
	text, err := fs.ReadFile(root, page)
	if err != nil {
		t.Fatal(err)
	}
	functions := map[string]bool{}
	test := regexp.MustCompile(`(?m)^func (Test\w+)\(`)
	err = fs.WalkDir(root, ".", func(file string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(file, "_test.go") {
			return err
		}
		source, err := fs.ReadFile(root, file)
		for _, m := range test.FindAllSubmatch(source, -1) {
			functions[string(m[1])] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	scripts := map[string]string{
		"": "adapter/mupdate/testdata", "cmd": "cmd/testdata/script", "interop": "internal/interop/testdata", "machine": "directory/machine/testdata/script",
	}
	name, named := regexp.MustCompile("`([^`]+)`"), 0
	table := false // one whose last column is that
	for i, line := range strings.Split(string(text), "\n") {
		cells := strings.Split(line, "|")
		if len(cells) < 3 || strings.HasSuffix(line, "| shown by |") {
			table = len(cells) >= 3
			continue
		}
		if !table {
			continue
		}
		for _, m := range name.FindAllStringSubmatch(cells[len(cells)-2], -1) {
			named++
			dir, base := path.Split(m[1])
			if functions[m[1]] {
				continue
			}
			if _, err := fs.Stat(root, path.Join(scripts[strings.TrimSuffix(dir, "/")], base+".txt")); err != nil {
				t.Errorf("%s:%d: there is no test %s: %v", page, i+1, m[1], err)
			}
		}
	}
	if named < 50 {
		t.Errorf("%s: %d tests are named; its tables were not found", page, named)
	}
}
