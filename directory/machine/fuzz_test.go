package machine

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/internal/kv"
)

// FuzzKeys takes keys apart and puts them together again.
func FuzzKeys(f *testing.F) {
	f.Add(mailboxKey("user.anna"))
	f.Add(factKey("user.anna.Archive", 7))
	f.Add(factKey("user.anna", 0))
	f.Add(deadlineKey(5, dueReservation, []byte("user\x1fanna")))
	f.Add(logKey(1<<40, 3))
	f.Add([]byte{0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, key []byte) {
		if name, server, ok := splitMailboxKey(key); ok {
			again := append(bytes.Clone(name), 0)
			if len(key) != len(again) {
				again = binary.BigEndian.AppendUint32(again, uint32(server))
			}
			if !bytes.Equal(again, key) {
				t.Errorf("mailbox key %x: taken for %q of server %d", key, name, server)
			}
			if stored, err := storedName(name); err == nil && !bytes.Equal(stored.AppendKey(nil), name) {
				t.Errorf("order key %x: read as %q, whose key is %x", name, stored, stored.AppendKey(nil))
			} else if err != nil && !errors.Is(err, ErrCorrupt) {
				t.Errorf("order key %x: got %v, want ErrCorrupt", name, err)
			}
		}
		if at, kind, what, err := splitDeadline(key); err == nil && !bytes.Equal(deadlineKey(at, kind, what), key) {
			t.Errorf("deadline key %x: taken for %d, %d, %x", key, at, kind, what)
		} else if err != nil && !errors.Is(err, ErrCorrupt) {
			t.Errorf("deadline key %x: got %v, want ErrCorrupt", key, err)
		}
		if rev, ordinal, err := splitLogKey(key); err == nil && !bytes.Equal(logKey(rev, ordinal), key) {
			t.Errorf("log key %x: taken for %d, %d", key, rev, ordinal)
		} else if err != nil && !errors.Is(err, ErrCorrupt) {
			t.Errorf("log key %x: got %v, want ErrCorrupt", key, err)
		}
	})
}

// fuzzState is a small state with something of everything.
func fuzzState(t testing.TB, m *Machine) *kv.Memory {
	t.Helper()
	db := kv.NewMemory(m.Buckets()...)
	say := func(place directory.BackendName, name directory.MailboxName, acl string) Op {
		return Assert{Mailbox: name, Server: place, Statement: directory.Statement{Partition: "default", ACL: &acl}}
	}
	for i, op := range []Op{
		Init{ClusterID: "fuzz", Incarnation: 1, DigestKey: make([]byte, 16)},
		say("be1", "user.anna", "anna\tlrswipkxtecdan\t"), say("be1", "user.anna.Archive", "anna\tlrs\tgroup:staff\tlr\t-bob\tl\t"), say("be2", "user.bob", "bob\tlrs\tanyone\tl\t"),
		say("be2", "user.anna", "anna\tl\t"), // a fork
		Subscribe{User: "anna", Mailbox: "user.bob"},
		Confirm{Server: "be1", How: directory.ByResync, Incarnation: 1}, Confirm{Server: "be2", How: directory.ByResync, Incarnation: 1},
		Reserve{Mailbox: "user.carl", Server: "be1", Partition: "default"},
		Deactivate{Mailbox: "user.bob", Server: "be2"},
		Hold{Kind: directory.HoldUser, Key: "anna", For: 60_000, Why: "fuzz"},
		Retract{Mailbox: "user.anna.Archive", Server: "be1"},
	} {
		tx := db.Begin()
		r, err := m.Do(tx, 10, int64(i), Command{Client: "c", Sequence: uint64(i + 1), By: "operator:o", Op: op})
		if err != nil || r.Refused != nil {
			t.Fatalf("%T: %+v, %v", op, r, err)
		}
		tx.Commit()
	}
	return db
}

// FuzzState writes over one row of a state, with a right checksum or without, and
// asks the machine everything. It answers or says that the state is corrupt.
func FuzzState(f *testing.F) {
	f.Add(uint16(0), true, []byte{})
	f.Add(uint16(3), true, []byte{0x08, 0x01})
	f.Add(uint16(9), false, []byte("garbage"))
	m := New()
	good := fuzzState(f, m)
	type row struct {
		bucket     kv.Bucket
		key, value []byte
	}
	var rows []row
	for _, b := range m.Buckets() {
		it := good.Snapshot().Iterate(b)
		for k, v := it.Seek(nil); k != nil; k, v = it.Next() {
			rows = append(rows, row{b, bytes.Clone(k), bytes.Clone(v)})
		}
	}
	for i, r := range rows {
		if message, err := unseal(r.bucket, r.key, r.value); err == nil && len(message) > 0 {
			f.Add(uint16(i), true, message[:len(message)-1])
			f.Add(uint16(i), true, append(bytes.Clone(message), message...))
		}
	}
	commands := []Op{
		Tick{}, Assert{Mailbox: "user.anna", Server: "be1"}, Assert{Mailbox: "user.bob", Server: "be1"}, Retract{Mailbox: "user.anna", Server: "be1"},
		Reserve{Mailbox: "user.dora", Server: "be2"}, Rename{From: "user.anna", To: "user.ann", Recursive: true, Server: "be1"},
		Settle{Mailbox: "user.anna", Keep: "be1"}, DecideHeld{Server: "be1", Approve: true},
	}
	f.Fuzz(func(t *testing.T, which uint16, sealed bool, over []byte) {
		target := rows[int(which)%len(rows)]
		if sealed && !isBare(target.bucket) {
			over = seal(target.bucket, target.key, over)
		}
		m := New()
		db := kv.NewMemory(m.Buckets()...)
		tx := db.Begin()
		for _, r := range rows {
			tx.Put(r.bucket, r.key, r.value)
		}
		tx.Put(target.bucket, target.key, over)
		tx.Commit()
		known := func(what string, err error) {
			if err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrFormat) && !errors.Is(err, directory.ErrNotFound) && !errors.Is(err, directory.ErrNotMember) {
				t.Errorf("%s over bucket %q, key %q: got %v, want ErrCorrupt or ErrFormat", what, target.bucket, target.key, err)
			}
		}
		r := db.Snapshot()
		verified := m.Verify(r)
		known("verify", verified)
		known("check", m.Check(r, func(uint64, uint64) {}, func(Finding) error { return nil }))
		_, err := m.Status(r)
		known("status", err)
		_, err = m.LookupMany(r, []directory.MailboxName{"user.anna", "user.anna.Archive", "user.bob", "user.carl", "user.nobody"}, true)
		known("lookup", err)
		_, _, err = m.Find(r, FindQuery{Limit: 100})
		known("find", err)
		_, err = m.Backends(r, "")
		known("backends", err)
		_, err = m.Groups(r, "")
		known("groups", err)
		_, _, err = m.Holds(r)
		known("holds", err)
		_, _, err = m.Subscriptions(r, "anna", "", 10)
		known("subscriptions", err)
		_, _, err = m.Due(r, 1000)
		known("due", err)
		_, err = m.List(r, ListQuery{Principal: directory.Principal{User: "bob"}, Namespace: directory.Namespace{Sep: '.'}, Patterns: []string{"*"}}, func(*ListRow) error { return nil })
		known("list", err)
		for _, op := range commands {
			tx := db.Begin()
			_, err := m.Do(tx, 100_000, 1, Command{By: "operator:o", Op: op})
			known("a command", err)
			tx.Discard()
		}
	})
}

// FuzzApply applies whatever commands the octets are. Each is applied, refused or
// not a command; afterwards every index follows from the facts.
func FuzzApply(f *testing.F) {
	join := func(ops ...Op) (b []byte) {
		for _, op := range ops {
			c := EncodeCommand(Command{By: "operator:o", Op: op})
			b = append(binary.AppendUvarint(b, uint64(len(c))), c...)
		}
		return b
	}
	for _, test := range opCases {
		f.Add(join(test.op))
	}
	f.Add(join(Assert{Mailbox: "user.anna", Server: "be3"}, Settle{Mailbox: "user.anna", Keep: "be2"}, Rename{From: "user.anna", To: "user.x", Server: "be2", Recursive: true}, Tick{}))
	f.Add(join(Deactivate{Mailbox: "user.anna", Server: "be1"}, Assert{Mailbox: "user.anna", Server: "be2"}, SetBackend{Server: "be2", State: new(directory.BackendLost)}, Tick{}))
	f.Fuzz(func(t *testing.T, b []byte) {
		m := New()
		db := fuzzState(t, m)
		for range 20 {
			n, size := binary.Uvarint(b)
			if size <= 0 || n > uint64(len(b)-size) {
				break
			}
			command := b[size : size+int(n)]
			b = b[size+int(n):]
			tx := db.Begin()
			result, err := m.Apply(tx, 7, 8, command)
			if err != nil {
				if !errors.Is(err, ErrUnknownCommand) {
					t.Errorf("%x: got %v, want a result or ErrUnknownCommand", command, err)
				}
				return // the node stops
			}
			if _, err := DecodeResult(result); err != nil {
				t.Errorf("%x: its result %x: %v", command, result, err)
			}
			tx.Commit()
		}
		if err := m.Verify(db.Snapshot()); err != nil {
			t.Errorf("verify: %v", err)
		}
		err := m.Check(db.Snapshot(), func(uint64, uint64) {}, func(found Finding) error {
			if !found.Advisory {
				t.Errorf("check: %+v", found)
			}
			return nil
		})
		if err != nil {
			t.Errorf("check: %v", err)
		}
	})
}
