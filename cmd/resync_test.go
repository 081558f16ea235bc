package cmd_test

import (
	"context"
	"fmt"
	"iter"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
)

// leading returns the node that leads, empty if none says so within the time.
func (ns *nodes) leading(within time.Duration) string {
	for end := time.Now().Add(within); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		for name, n := range ns.running {
			resp, err := http.Get("http://" + n.http + "/leader")
			if err != nil {
				continue
			}
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return name
			}
		}
	}
	return ""
}

// kill ends a node as a power cut would.
func (ns *nodes) kill(name string) {
	n := ns.running[name]
	delete(ns.running, name)
	n.cmd.Process.Kill()
	<-n.drained
	n.cmd.Wait()
	n.log.Close()
}

// ownMailboxes is a list of n mailboxes; of each the partition is as given.
func ownMailboxes(n int, partition func(i int) string) iter.Seq2[client.Own, error] {
	return func(yield func(client.Own, error) bool) {
		for i := range n {
			p := partition(i)
			if p == "" {
				continue
			}
			own := client.Own{
				Mailbox:   directory.MailboxName(fmt.Sprintf("user.u%05d.f%d", i/5, i%5)),
				Statement: directory.Statement{Partition: p, ACL: new(fmt.Sprintf("u%05d\tlrs\t", i/5)), MailboxID: new(fmt.Sprint("id", i))},
			}
			if !yield(own, nil) {
				return
			}
		}
	}
}

// Resyncs of two backends, two of one of them at once, live statements beside them, and
// the leader killed in the middle, again and again: nothing is lost, nothing comes back,
// and what was stated meanwhile stays.
func TestResyncKills(t *testing.T) {
	const mailboxes, kills = 3000, 2
	ns := &nodes{dir: t.TempDir(), running: make(map[string]*node), args: make(map[string][]string)}
	defer ns.killAll()
	if err := ns.found(3); err != nil {
		t.Fatal(err)
	}
	dial := func() *client.Client {
		c, err := client.Dial(ns.addresses(), client.WithTimeout(2*time.Minute))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	const server = directory.BackendName("be1")
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()

	c := dial()
	defer c.Close()
	// What comes and goes here is meant.
	if _, err := c.SetSettings(ctx, client.SettingsChange{GuardCount: new(uint32(1_000_000))}); err != nil {
		t.Fatal(err)
	}
	round := func(n int) {
		totals, err := c.Totals(ctx, server, nil, client.Linearizable())
		if err != nil {
			t.Fatal(err)
		}
		// A third is stated anew each round, a third comes and goes, and what is live
		// belongs to neither.
		list := ownMailboxes(mailboxes, func(i int) string {
			switch i % 3 {
			case 0:
				return fmt.Sprintf("p%d", n)
			case 1:
				if (i/3+n)%2 == 0 {
					return ""
				}
			}
			return "default"
		})
		var told, lived atomic.Int64
		stop := make(chan struct{})
		var beside sync.WaitGroup
		beside.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				name := directory.MailboxName(fmt.Sprintf("user.live%d", i))
				if _, err := c.Assert(ctx, client.Assert{Mailbox: name, Server: server, Statement: directory.Statement{Partition: "live"}}); err != nil {
					t.Errorf("a live assertion: %v", err)
					return
				}
				lived.Add(1)
			}
		})
		both := make([]client.Resynced, 2)
		var resyncs sync.WaitGroup
		for i := range both {
			resyncs.Go(func() {
				mine := dial()
				defer mine.Close()
				var err error
				both[i], err = mine.Resync(ctx, client.Resync{Server: server, List: list, AsOf: totals.Token, Withdraw: true, Told: func(client.Difference) { told.Add(1) }})
				if err != nil {
					t.Errorf("resync %d: %v", i, err)
				}
			})
		}
		// Somewhere in the middle of it.
		for at := rand.Int64N(3 * mailboxes); told.Load() < at && ctx.Err() == nil && both[0].Revision == 0; {
			time.Sleep(time.Millisecond)
		}
		victim := ns.leading(30 * time.Second)
		if victim == "" {
			t.Fatal("no node leads")
		}
		ns.kill(victim)
		resyncs.Wait()
		close(stop)
		beside.Wait()
		if t.Failed() {
			t.Fatalf("round %d, %s killed", n, victim)
		}
		n1, err := ns.launch(victim)
		if err == nil {
			ns.running[victim] = n1
			err = n1.serves()
		}
		if err != nil {
			t.Fatal(err)
		}
		for i, r := range both {
			if !r.Confirmed || !r.Equal && !r.Settled {
				t.Errorf("resync %d: got %+v", i, r)
			}
		}
		t.Logf("round %d: %s killed after %d reports; %d live assertions; %+v", n, victim, told.Load(), lived.Load(), both[0].Effects)

		want := make(map[directory.MailboxName]string)
		for own := range list {
			want[own.Mailbox] = own.Statement.Partition
		}
		live := int64(0)
		for r, err := range c.FindAll(ctx, client.FindQuery{Server: server, PageSize: 1000}, client.Linearizable()) {
			if err != nil {
				t.Fatal(err)
			}
			f := r.Fact(server)
			switch {
			case strings.HasPrefix(string(r.Mailbox), "user.live"):
				live++
			case f.State != directory.Active || want[r.Mailbox] != f.Partition:
				t.Errorf("%s: got %v, %q; the list says %q", r.Mailbox, f.State, f.Partition, want[r.Mailbox])
			}
			delete(want, r.Mailbox)
		}
		if len(want) > 0 || live != lived.Load() {
			t.Errorf("round %d: %d mailboxes of the list are not there; %d live ones are, of %d", n, len(want), live, lived.Load())
		}
		// The next list has none of the live ones.
		for i := range lived.Load() {
			if _, err := c.Retract(ctx, client.Retract{Mailbox: directory.MailboxName(fmt.Sprintf("user.live%d", i)), Server: server}); err != nil {
				t.Fatal(err)
			}
		}
	}
	for n := range kills {
		if round(n); t.Failed() {
			return
		}
	}
}
