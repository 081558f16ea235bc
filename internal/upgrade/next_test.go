//go:build upgrade

package upgrade

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Next is a release to come: the present sources with a cluster version more, and
// with alarms as another operation of the log. That one it uses at once, as a
// release does whose author has forgotten the gate.
const Next = "next"

// Hasty is the present sources, but it raises the cluster version whoever is in the
// way: as if a member had become another release between the look and the entry.
const Hasty = "hasty"

// edit is a text of a file, there once, and what stands in its place.
type edit struct{ file, old, new string }

// edits make releases out of the present one.
var edits = map[string][]edit{
	Next: {
		{"directory/machine/version.go", "NewestVersion uint32 = 2", "NewestVersion uint32 = 3"},
		{"directory/machine/codec.go", "opSetAlarm protowire.Number = 24", "opSetAlarm protowire.Number = 99"},
	},
	Hasty: {
		{"server/version.go", "if len(why) > 0 {\n\t\treturn nil, fmt.Errorf(\"%w: cluster version", "if len(why) > 1e6 {\n\t\treturn nil, fmt.Errorf(\"%w: cluster version"},
	},
}

// overlay writes what makes a release out of the present one, for go build.
func overlay(t *testing.T, dir string, edits []edit) string {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	replace := map[string]string{}
	for _, change := range edits {
		path := filepath.Join(root(t), filepath.FromSlash(change.file))
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Count(string(b), change.old) != 1 {
			t.Fatalf("%s has not one %q: say anew what that release changes", change.file, change.old)
		}
		to := filepath.Join(dir, filepath.Base(change.file)+".overlay")
		if err := os.WriteFile(to, []byte(strings.Replace(string(b), change.old, change.new, 1)), 0o600); err != nil {
			t.Fatal(err)
		}
		replace[path] = to
	}
	b, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
