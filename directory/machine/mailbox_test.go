package machine

import (
	"fmt"
	"slices"
	"testing"

	"github.com/rookery-mail/rookery/directory"
)

func TestSamePostingACLs(t *testing.T) {
	var all []*directory.Mailbox
	facts := []directory.Fact{{ACL: "a", Counted: true}, {ACL: "b", Counted: true}, {ACL: "a"}, {ACL: "b"}}
	for n := range 4 {
		for i := range 1 << (2 * n) {
			m := new(directory.Mailbox)
			for j := range n {
				m.Facts = append(m.Facts, facts[i>>(2*j)&3])
			}
			all = append(all, m)
		}
	}
	for _, m := range all {
		for _, n := range all {
			if got, want := samePostingACLs(m, n), slices.Equal(postingACLs(m), postingACLs(n)); got != want {
				t.Fatalf("%s: %t, want %t", fmt.Sprint(m.Facts, n.Facts), got, want)
			}
		}
	}
}
