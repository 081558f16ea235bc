package machine

import (
	"fmt"
	"testing"

	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/internal/kv"
)

// populated is a memory store with users of ten folders each on four servers.
func populated(b *testing.B, users int) (*Machine, *kv.Memory) {
	b.Helper()
	m := New()
	db := kv.NewMemory(m.Buckets()...)
	do := func(op Op) {
		tx := db.Begin()
		r, err := m.Do(tx, 1, 0, Command{By: "bench", Op: op})
		if err != nil || r.Refused != nil {
			b.Fatal(err, r.Refused)
		}
		tx.Commit()
	}
	do(Init{ClusterID: "bench", Incarnation: 1, DigestKey: make([]byte, 16)})
	for u := range users {
		var ops []Op
		for f := range 10 {
			ops = append(ops, benchAssert(u, f, 0))
		}
		do(Batch{Ops: ops})
	}
	return m, db
}

func benchAssert(user, folder, variant int) Assert {
	name := directory.MailboxName(fmt.Sprintf("user.u%06d", user))
	if folder > 0 {
		name += directory.MailboxName(fmt.Sprintf(".folder%d", folder))
	}
	acl := fmt.Sprintf("u%06d\tlrswipkxtecdan\t", user)
	if variant%2 == 1 {
		acl = fmt.Sprintf("u%06d\tlrswipkxteca\t", user)
	}
	return Assert{
		Mailbox: name, Server: directory.BackendName(fmt.Sprintf("be%d.example.org", user%4)),
		Statement: directory.Statement{Partition: "default", ACL: &acl, MailboxID: new(fmt.Sprintf("id%d-%d", user, folder)), UIDValidity: new(uint32(1))},
	}
}

func BenchmarkApplyAssertChanged(b *testing.B) {
	m, db := populated(b, 2000)
	commands := make([][]byte, 4000)
	for i := range commands {
		c := Command{Client: fmt.Sprintf("lane%d", i%64), By: "bench", Op: benchAssert(i*7919%2000, i%10, i/2000+1)}
		commands[i] = EncodeCommand(c)
	}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		c, _ := DecodeCommand(commands[i%len(commands)])
		c.Sequence = uint64(i + 1)
		tx := db.Begin()
		if _, err := m.Apply(tx, 1, 0, EncodeCommand(c)); err != nil {
			b.Fatal(err)
		}
		tx.Commit()
		i++
	}
}

func BenchmarkApplyAssertUnchanged(b *testing.B) {
	m, db := populated(b, 2000)
	command := EncodeCommand(Command{By: "bench", Op: benchAssert(77, 3, 0)})
	b.ReportAllocs()
	for b.Loop() {
		tx := db.Begin()
		if _, err := m.Apply(tx, 1, 0, command); err != nil {
			b.Fatal(err)
		}
		tx.Commit()
	}
}

func BenchmarkApplyBatchOf100(b *testing.B) {
	m, db := populated(b, 2000)
	variant := 0
	b.ReportAllocs()
	for b.Loop() {
		variant++
		var ops []Op
		for i := range 100 {
			ops = append(ops, benchAssert(100+i/10, i%10, variant))
		}
		tx := db.Begin()
		if _, err := m.Apply(tx, 1, 0, EncodeCommand(Command{By: "bench", Op: Batch{Ops: ops}})); err != nil {
			b.Fatal(err)
		}
		tx.Commit()
	}
}

func BenchmarkLookup(b *testing.B) {
	m, db := populated(b, 2000)
	r := db.Snapshot()
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		a, err := m.Lookup(r, benchAssert(i%2000, i%10, 0).Mailbox, false)
		if err != nil || a.Outcome != directory.Serving && a.Outcome != directory.Incomplete {
			b.Fatal(a.Outcome, err)
		}
	}
}
