package kv_test

import (
	"testing"

	"github.com/rookery-mail/rookery/internal/kv"
	"github.com/rookery-mail/rookery/internal/kv/kvtest"
)

type memoryStore struct{ m *kv.Memory }

func (s memoryStore) Update(f func(kv.Tx)) {
	tx := s.m.Begin()
	f(tx)
	tx.Commit()
}

func (s memoryStore) View() (kv.Reader, func()) { return s.m.Snapshot(), func() {} }
func (s memoryStore) Shift()                    { s.m.Sync() }

func TestMemory(t *testing.T) {
	kvtest.Run(t, func(*testing.T) kvtest.Store { return memoryStore{kv.NewMemory(kvtest.A, kvtest.B)} })
}

func TestMemoryCrash(t *testing.T) {
	m := kv.NewMemory("b")
	write := func(k, v string) {
		tx := m.Begin()
		tx.Put("b", []byte(k), []byte(v))
		tx.Commit()
	}
	write("synced", "1")
	m.Sync()
	write("synced", "2")
	write("lost", "x")
	before := m.Snapshot()
	open := m.Begin()
	open.Put("b", []byte("open"), nil)
	m.Crash()
	open.Commit()
	for key, want := range map[string]string{"synced": "1", "lost": "", "open": ""} {
		if got := m.Snapshot().Get("b", []byte(key)); string(got) != want {
			t.Errorf("%s after the crash: got %q, want %q", key, got, want)
		}
	}
	if got := before.Get("b", []byte("lost")); string(got) != "x" {
		t.Errorf("a snapshot from before the crash: got %q, want x", got)
	}
	write("after", "y")
	if got := m.Snapshot().Get("b", []byte("after")); string(got) != "y" {
		t.Errorf("written after the crash: got %q, want y", got)
	}
	tx := m.Begin()
	tx.Put("b", []byte("discarded"), nil)
	tx.Discard()
	if got := m.Snapshot().Get("b", []byte("discarded")); got != nil {
		t.Errorf("a discarded write shows: %q", got)
	}
}

func TestMemoryCopy(t *testing.T) {
	m := kv.NewMemory("b")
	put := func(m *kv.Memory, k string) {
		tx := m.Begin()
		tx.Put("b", []byte(k), []byte("v"))
		tx.Commit()
	}
	put(m, "old")
	c := m.Copy()
	put(m, "mine")
	put(c, "its")
	c.Crash()
	if s := c.Snapshot(); s.Get("b", []byte("old")) == nil || s.Get("b", []byte("mine")) != nil || s.Get("b", []byte("its")) != nil {
		t.Error("a copy holds what was committed when it was made, synced, and nothing of the other")
	}
	if s := m.Snapshot(); s.Get("b", []byte("its")) != nil || s.Size("b") != len("oldv")+len("minev") {
		t.Errorf("the other has something of the copy, or %d octets", s.Size("b"))
	}
}
