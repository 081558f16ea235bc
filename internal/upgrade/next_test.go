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

// nextOverlay writes the overlay that makes it.
func nextOverlay(t *testing.T, dir string) string {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	replace := map[string]string{}
	for _, change := range []struct{ file, old, new string }{
		{"directory/machine/version.go", "NewestVersion uint32 = 2", "NewestVersion uint32 = 3"},
		{"directory/machine/codec.go", "opSetAlarm protowire.Number = 24", "opSetAlarm protowire.Number = 99"},
	} {
		path := filepath.Join(root(t), filepath.FromSlash(change.file))
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Count(string(b), change.old) != 1 {
			t.Fatalf("%s has not one %q: say anew what the next release changes", change.file, change.old)
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
