package wal

import (
	"bufio"
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// FuzzOpen writes octets over a segment of a log. It is refused, or it holds
// all that was synced.
func FuzzOpen(f *testing.F) {
	f.Add(uint16(100), []byte{0})
	f.Add(uint16(2000), make([]byte, 512))
	f.Add(uint16(9000), []byte("garbage behind the end"))
	f.Add(uint16(3000), []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	good := f.TempDir()
	if err := Create(good, testMeta, testAt); err != nil {
		f.Fatal(err)
	}
	l, _, err := Open(good, testAt)
	if err != nil {
		f.Fatal(err)
	}
	want := entries(2, 2, 30, 200)
	if err := errors.Join(l.Append(hardState(2, 20), want), l.Sync(), l.Close()); err != nil {
		f.Fatal(err)
	}
	segs, err := segments(filepath.Join(good, segmentDir))
	if err != nil {
		f.Fatal(err)
	}
	name := filepath.Base(segs[0].path)
	segment, err := os.ReadFile(segs[0].path)
	if err != nil {
		f.Fatal(err)
	}
	promise, err := os.ReadFile(filepath.Join(good, promiseFile))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, at uint16, over []byte) {
		dir := t.TempDir()
		b := bytes.Clone(segment)
		if int(at) < len(b) {
			copy(b[at:], over)
		}
		do(t, os.Mkdir(filepath.Join(dir, segmentDir), 0o700),
			os.WriteFile(filepath.Join(dir, segmentDir, name), b, 0o600),
			os.WriteFile(filepath.Join(dir, promiseFile), promise, 0o600))
		l, r, err := Open(dir, testAt)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Errorf("got %v, want ErrCorrupt", err)
			}
			return
		}
		defer l.Close()
		if len(r.Entries) < len(want) {
			t.Fatalf("%d entries are left of %d", len(r.Entries), len(want))
		}
		wantEntries(t, &Replay{Entries: r.Entries[:len(want)]}, want)
	})
}

func FuzzScanTail(f *testing.F) {
	f.Add([]byte{4, 0, 0, 0, 0, 0, 0, 0x84, 1, 2, 3, 4, 0, 0, 0, 0})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	f.Add(make([]byte, 16))
	f.Fuzz(func(t *testing.T, b []byte) {
		clean, err := scanTail(bufio.NewReader(bytes.NewReader(b)))
		if err != nil {
			t.Fatal(err)
		}
		// Zeros after a clean end change nothing.
		if again, _ := scanTail(bufio.NewReader(bytes.NewReader(append(b, make([]byte, 64)...)))); clean && !again {
			t.Errorf("clean, but not with zeros after it")
		}
	})
}

func FuzzPromise(f *testing.F) {
	f.Add(make([]byte, promiseSlot))
	f.Add(bytes.Repeat([]byte{0xff}, promiseSlot))
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(t.TempDir(), promiseFile)
		do(t, os.WriteFile(path, b, 0o600))
		if p, err := openPromise(path); err == nil {
			p.f.Close()
		} else if !errors.Is(err, ErrCorrupt) {
			t.Errorf("got %v, want ErrCorrupt", err)
		}
	})
}
