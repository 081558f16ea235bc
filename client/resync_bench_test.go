package client_test

import (
	"context"
	"flag"
	"fmt"
	"iter"
	"syscall"
	"testing"
	"time"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/server/servertest"
)

var (
	resyncFacts = flag.Int("resync.facts", 100_000, "facts of the backend that BenchmarkResync compares")
	resyncDiffs = flag.Int("resync.differences", 100, "and in how many they differ")
)

// numbered is a list of n mailboxes in name order, ten a user.
func numbered(n int) []client.Own {
	list := make([]client.Own, n)
	for i := range list {
		name := fmt.Sprintf("user.u%07d", i/10)
		if i%10 > 0 {
			name += fmt.Sprintf(".folder%d", i%10)
		}
		list[i] = client.Own{Mailbox: directory.MailboxName(name), Statement: directory.Statement{
			Partition: "default", ACL: new(fmt.Sprintf("u%07d\tlrswipkxtecdan\tanyone\tp\t", i/10)), MailboxID: new(fmt.Sprintf("y5nc47ufmvv4977h%08d", i)),
			UIDValidity: new(uint32(1_795_386_061 + i)), Type: new(directory.TypeEmail),
		}}
	}
	return list
}

// yields is list, in which every nth differs, if every is not 0: in turn it is stated
// otherwise, is not there, and has one more beside it.
func yields(list []client.Own, every int) iter.Seq2[client.Own, error] {
	return func(yield func(client.Own, error) bool) {
		for i, own := range list {
			kind := -1
			if every > 0 && i%every == every/2 {
				kind = i / every % 3
			}
			if kind == 0 {
				own.Statement.Partition = "spool2"
			}
			if kind != 1 && !yield(own, nil) {
				return
			}
			own.Mailbox += ".more"
			if kind == 2 && !yield(own, nil) {
				return
			}
		}
	}
}

// processor is what this process has used so far.
func processor(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkResync prints what a resync costs: of a list that did not change, and of
// one that differs in 100 mailboxes. -resync.facts says of how many. It fails where
// octets are beyond what is promised; times it prints.
func BenchmarkResync(b *testing.B) {
	s, stop, err := servertest.Open(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	defer stop()
	var w wire
	c, err := client.Dial([]string{"n1"}, w.dialer(s.DialMemory), client.WithTimeout(time.Minute))
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	n, every := *resyncFacts, *resyncFacts / *resyncDiffs
	base := numbered(n)
	same := yields(base, 0)
	run := func(what string, list iter.Seq2[client.Own, error], limit int64) client.Resynced {
		token := asOf(b, c, be1)
		before, begun, worked := w.total(), time.Now(), processor(b)
		var compared, mended time.Duration
		out, err := c.Resync(context.Background(), client.Resync{Server: be1, List: list, AsOf: token, Progress: func(p client.ResyncProgress) {
			switch {
			case p.Doing == "comparing" && compared == 0:
				compared = time.Since(begun)
			case p.Doing == "confirming":
				mended = time.Since(begun)
			}
		}})
		if err != nil || !out.Equal || !out.Confirmed {
			b.Fatalf("%s: %+v, %v", what, out, err)
		}
		octets := w.total() - before
		b.Logf("%s: %v in all (%v of processor, client and node), %v of it to sum the list, %v until equal; %d octets; rounds %d, effects %v", what,
			time.Since(begun).Round(time.Millisecond), (processor(b) - worked).Round(time.Millisecond), compared.Round(time.Millisecond), mended.Round(time.Millisecond), octets, out.Rounds, out.Effects)
		if limit > 0 && octets >= limit {
			b.Errorf("%s: %d octets, want less than %d", what, octets, limit)
		}
		return out
	}
	run(fmt.Sprintf("%d facts into nothing", n), same, 0)
	b.ResetTimer()
	for b.Loop() {
		run(fmt.Sprintf("%d facts unchanged", n), same, 1<<10)
		run(fmt.Sprintf("%d facts, %d differ", n, *resyncDiffs), yields(base, every), 1<<20)
		run("and back", same, 1<<20)
	}
}
