package main

import (
	"fmt"
	"iter"
	"strconv"
	"strings"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
)

// The shape of a population.
const (
	foldersPerUser = 20
	servers        = 10
	sharedEach     = 50 // one mailbox in so many is shared
	sharedWith     = 3  // with so many users
	wideUsers      = 10 // see more than their own
	wideExtra      = 30 // so many more
	listRows       = foldersPerUser + wideExtra

	smallestPopulation = 10 * wideUsers * foldersPerUser
)

// A population is the mailboxes of an invented mail site: 20 folders a user on
// one of ten servers, 2 % of the mailboxes shared with three users each, and ten
// wide users who see 30 mailboxes of others. Everything about a mailbox follows
// from the seed and its number, so nothing is kept, and any two runs agree.
// Mailboxes are numbered in the order of their names.
type population struct {
	mailboxes int
	users     int
	seed      uint64
	digits    int // of the number behind a user's name
}

// newPopulation returns one of that many mailboxes, a multiple of 20.
func newPopulation(mailboxes int, seed uint64) (*population, error) {
	if mailboxes < smallestPopulation || mailboxes%foldersPerUser != 0 {
		return nil, fmt.Errorf("a population of %d: it must be a multiple of %d, at least %d",
			mailboxes, foldersPerUser, smallestPopulation)
	}
	p := &population{mailboxes: mailboxes, users: mailboxes / foldersPerUser, seed: seed}
	pairs := len(givenNames) * len(familyNames)
	if most := (p.users + pairs - 1) / pairs; most > 1 {
		p.digits = len(strconv.Itoa(most - 1))
	}
	return p, nil
}

// userID returns the id of user u.
func (p *population) userID(u int) directory.UserID {
	return directory.UserID(p.userName(u, '.'))
}

// userName spells user u's name with dot between given and family name.
func (p *population) userName(u int, dot byte) []byte {
	pairs := len(givenNames) * len(familyNames)
	pair := u * pairs / p.users
	b := make([]byte, 0, 64)
	b = append(b, givenNames[pair/len(familyNames)]...)
	b = append(b, dot)
	b = append(b, familyNames[pair%len(familyNames)]...)
	if p.digits > 0 {
		first := (pair*p.users + pairs - 1) / pairs // the first user of that pair
		n := strconv.Itoa(u - first)
		for range p.digits - len(n) {
			b = append(b, '0')
		}
		b = append(b, n...)
	}
	return b
}

// name returns the name of mailbox m.
func (p *population) name(m int) directory.MailboxName {
	b := p.userName(m/foldersPerUser, '^')
	suffix := folders[m%foldersPerUser].suffix
	full := make([]byte, 0, len("user.")+len(b)+len(suffix))
	full = append(full, "user."...)
	full = append(full, b...)
	return directory.MailboxName(append(full, suffix...))
}

// server returns which of the servers holds mailbox m: all of a user's are on
// one.
func (p *population) server(m int) int {
	return int(p.hash('s', m/foldersPerUser) % servers)
}

// serverName returns the name of server s.
func serverName(s int) directory.BackendName {
	return directory.BackendName(fmt.Sprintf("be%02d.mail.example.net", s+1))
}

// serverAddresses are where server s answers.
func serverAddresses(s int) []directory.Address {
	ip := "192.0.2." + strconv.Itoa(s+10)
	return []directory.Address{
		{Service: directory.ServiceIMAP, IP: ip, Port: 143, TLS: directory.TLSStart},
		{Service: directory.ServiceLMTP, IP: ip, Port: 24, TLS: directory.TLSStart},
		{Service: directory.ServiceSieve, IP: ip, Port: 4190, TLS: directory.TLSStart},
	}
}

// onServer yields the mailboxes of server s in name order.
func (p *population) onServer(s int) iter.Seq[int] {
	return func(yield func(int) bool) {
		for u := range p.users {
			if p.server(u*foldersPerUser) != s {
				continue
			}
			for f := range foldersPerUser {
				if !yield(u*foldersPerUser + f) {
					return
				}
			}
		}
	}
}

// A fact is all that is stated of one mailbox.
type fact struct {
	name        directory.MailboxName
	server      int
	partition   string
	acl         string
	mailboxID   string
	uidValidity uint32
	specialUse  string
}

// fact returns what mailbox m's server states.
func (p *population) fact(m int) fact {
	h := p.hash('f', m)
	f := fact{
		name:        p.name(m),
		server:      p.server(m),
		partition:   "default",
		acl:         p.acl(m),
		mailboxID:   mailboxID(h),
		uidValidity: uint32(1_400_000_000 + h>>32%300_000_000),
		specialUse:  folders[m%foldersPerUser].specialUse,
	}
	if p.hash('p', m/foldersPerUser)%4 == 0 {
		f.partition = "ssd2"
	}
	return f
}

// acl returns the ACL of mailbox m: its owner, and whom it is shared with.
func (p *population) acl(m int) string {
	var b strings.Builder
	b.Write(p.userName(m/foldersPerUser, '.'))
	b.WriteString("\tlrswipkxtecdan\t")
	for i, u := range p.sharers(m) {
		b.WriteString(string(p.userID(u)))
		b.WriteByte('\t')
		b.WriteString(sharedRights[i%len(sharedRights)])
		b.WriteByte('\t')
	}
	if u, ok := p.wideSharer(m); ok {
		b.WriteString(string(p.userID(u)))
		b.WriteString("\tlrs\t")
	}
	return b.String()
}

// sharers returns the users that mailbox m is shared with, none or three: not
// its owner, and no wide user, since those see a number that is known.
func (p *population) sharers(m int) []int {
	block := m / sharedEach
	if m%sharedEach != int(p.hash('b', block)%sharedEach) {
		return nil
	}
	out := make([]int, 0, sharedWith)
next:
	for i := 0; len(out) < sharedWith; i++ {
		u := int(p.hash('u', m*64+i) % uint64(p.users))
		if u == m/foldersPerUser || p.isWide(u) {
			continue
		}
		for _, other := range out {
			if u == other {
				continue next
			}
		}
		out = append(out, u)
	}
	return out
}

// wide returns the number of wide user w. They stand a tenth of the population
// apart.
func (p *population) wide(w int) int { return w * (p.users / wideUsers) }

func (p *population) isWide(u int) bool {
	tenth := p.users / wideUsers
	return u%tenth == 0 && u/tenth < wideUsers
}

// wideSharer returns the wide user who sees mailbox m besides its owner and its
// sharers. Each tenth of the users gives 30 mailboxes, spread over it, of which
// every wide user sees three.
func (p *population) wideSharer(m int) (user int, ok bool) {
	tenth := p.users / wideUsers
	u := m / foldersPerUser
	t, in := u/tenth, u%tenth
	if t >= wideUsers || in == 0 {
		return 0, false
	}
	// The i with 1 + i*(tenth-1)/wideExtra == in are few: none or one in a large
	// population, several in a small one.
	first := ((in-1)*wideExtra + tenth - 2) / (tenth - 1)
	for i := first; i < wideExtra && 1+i*(tenth-1)/wideExtra == in; i++ {
		if 1+i%(foldersPerUser-1) == m%foldersPerUser {
			return p.wide((t + i) % wideUsers), true
		}
	}
	return 0, false
}

// hash mixes the seed, a purpose and a number: the finalizer of SplitMix64.
func (p *population) hash(purpose byte, n int) uint64 {
	x := p.seed ^ uint64(purpose)<<56 ^ uint64(n)
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// mailboxID makes what looks like a Cyrus uniqueid: 24 letters and digits.
func mailboxID(h uint64) string {
	const alphabet = "0123456789abcdefghijklmnopqrstuv"
	b := make([]byte, 24)
	for i := range b {
		b[i] = alphabet[h>>(5*(i%12))&31]
		if i == 11 {
			h = h*0xda942042e4dd58b5 + 1
		}
	}
	return string(b)
}

// assert is the fact as the client library states it.
func (f fact) assert() client.Assert {
	st := directory.Statement{
		Partition:   f.partition,
		ACL:         &f.acl,
		MailboxID:   &f.mailboxID,
		UIDValidity: &f.uidValidity,
		Type:        new(directory.TypeEmail),
	}
	if f.specialUse != "" {
		st.SpecialUse = &f.specialUse
	}
	return client.Assert{Mailbox: f.name, Server: serverName(f.server), Statement: st}
}
