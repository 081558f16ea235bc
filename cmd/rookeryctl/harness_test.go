package main

import (
	"bufio"
	"bytes"
	"context"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files of testdata")

// golden compares got with the file of that name in testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s: got\n%s\nwant\n%s", path, got, want)
	}
}

// printed returns what f prints in that format.
func printed(t *testing.T, format string, f func(*app) error) string {
	t.Helper()
	var out bytes.Buffer
	a := &app{stdout: bufio.NewWriter(&out), stderr: &out, format: format, started: true, reach: newReach(func(error) {})}
	if err := f(a); err != nil {
		t.Fatal(err)
	}
	a.stdout.Flush()
	return out.String()
}

// command runs a command line without a directory to ask.
func command(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(context.Background(), args, strings.NewReader(""), &out, &errs, func(string) string { return "" })
	return out.String(), errs.String(), code
}
