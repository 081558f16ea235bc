package main

import "sync"

// list deals out a backend's list in name order, a few mailboxes at a time, to
// whoever asks next; after one server's the next server's, for ever.
type list struct {
	pop *population

	mu     sync.Mutex
	server int
	next   int // the mailbox to look at
}

// take appends the next n mailboxes of the present server's list to dst: all of
// one server, fewer at a list's end, never none.
func (l *list) take(dst []int, n int) []int {
	l.mu.Lock()
	defer l.mu.Unlock()
	for begin := len(dst); ; l.next, l.server = 0, (l.server+1)%servers {
		for l.next < l.pop.mailboxes && len(dst)-begin < n {
			if l.pop.server(l.next) != l.server {
				l.next += foldersPerUser
				continue
			}
			dst = append(dst, l.next)
			l.next++
		}
		if len(dst) > begin {
			return dst
		}
	}
}
