package main

import (
	"io"
	"testing"

	"github.com/rookery-mail/rookery/adapter/cyrus"
)

// The dump says of each mailbox what this program's own import says, special use
// and type apart, which a master does not know; and it says it of all, in order.
func TestDump(t *testing.T) {
	p, err := newPopulation(2_000, 5)
	if err != nil {
		t.Fatal(err)
	}
	in, out := io.Pipe()
	go func() { out.CloseWithError(writeDump(out, p)) }()
	dump := cyrus.NewReader(in)
	for m := range p.mailboxes {
		got, err := dump.Read()
		if err != nil {
			t.Fatalf("mailbox %d: %v", m, err)
		}
		want := p.fact(m)
		st := got.Statement()
		if got.Kind() != cyrus.Fact || got.Name != want.name || got.Server != serverName(want.server) ||
			st.Partition != want.partition || *st.ACL != want.acl || *st.MailboxID != want.mailboxID || *st.UIDValidity != want.uidValidity {
			t.Fatalf("mailbox %d: got %+v, want %+v", m, got, want)
		}
	}
	if _, err := dump.Read(); err != io.EOF {
		t.Errorf("behind the last mailbox: %v, want the end", err)
	}
}
