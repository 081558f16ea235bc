package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// passwd runs mupdate passwd with a password.
func passwd(args ...string) (stderr string, code int) {
	var out, errs bytes.Buffer
	code = run(context.Background(), append([]string{"mupdate", "passwd"}, args...), strings.NewReader("secret\n"), &out, &errs, func(string) string { return "" })
	return errs.String(), code
}

// A users file that nodes refuse is not said to have the login in it, and is left alone;
// a broken line of the login itself is mended.
func TestPasswdBrokenFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "users")
	const text = "# ours\n\nbe1 broken\nbe2 SCRAM-SHA-256$x\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	stderr, code := passwd("be1", "--file", file)
	if want := file + ": line 4: be2: the secret is not SCRAM-SHA-256$"; code != exitRefused || !strings.Contains(stderr, want) || !strings.Contains(stderr, "nothing was changed") {
		t.Errorf("got exit code %d, %q; want %d, %q", code, stderr, exitRefused, want)
	}
	if got, err := os.ReadFile(file); err != nil || string(got) != text {
		t.Errorf("the file is %q, %v; want it as it was", got, err)
	}
	if err := os.WriteFile(file, []byte("be1\tbroken\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if stderr, code := passwd("be1", "--file", file); code != exitOK {
		t.Errorf("its own line: got exit code %d, %q", code, stderr)
	}
}

// A name that no login can have is a matter of the command line.
func TestPasswdName(t *testing.T) {
	for _, name := range []string{"be 3", "@be3", "be#3", ""} {
		if stderr, code := passwd(name); code != exitUsage || !strings.Contains(stderr, "cannot be a login") {
			t.Errorf("%q: got exit code %d, %q; want %d", name, code, stderr, exitUsage)
		}
	}
}

// A file that cannot be written is named as it was given.
func TestPasswdNowhere(t *testing.T) {
	file := filepath.Join(t.TempDir(), "nowhere", "users")
	stderr, code := passwd("be1", "--file", file)
	if want := "rookeryctl: " + file + ": no file can be made beside it: no such file or directory\n"; code != exitRefused || stderr != want {
		t.Errorf("got exit code %d, %q; want %d, %q", code, stderr, exitRefused, want)
	}
}
