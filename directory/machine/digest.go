package machine

import (
	"crypto/sha256"
	"encoding/binary"

	"github.com/rookery-mail/rookery/directory"
)

// The digests a resync compares: for each server, sums over what it states,
// in 16,384 buckets and in all. A sum is order-free, so it is exact at every
// revision, whatever order the facts came in, and two nodes or a backend and
// the directory can be compared in one round trip.
//
// hash(x) is the first 16 octets of SHA-256(key | x), key being the cluster's
// digest key of 16 octets:
//
//	bucket = top 14 bits of hash('b' | root's order key)
//	name   = hash('n' | order key)
//	fact   = hash('f' | order key | 0x00 | field...), every field preceded by
//	         its length (4 octets, big endian): partition, ACL, mailbox id,
//	         UIDVALIDITY (4 octets, big endian), type letter,
//	         special use
//
// A user's folders share a bucket, so a list in name order touches neighbours.

// DigestBuckets is how many buckets a server's facts are summed in.
const DigestBuckets = 1 << 14

// hasher keys the hashes of one cluster. It may be used by one goroutine.
type hasher struct{ buf []byte }

func newHasher(key []byte) *hasher {
	h := &hasher{buf: make([]byte, 0, 512)}
	h.buf = append(h.buf, key...)
	return h
}

func (h *hasher) sum(kind byte, fill func(b []byte) []byte) sum128 {
	n := len(h.buf)
	b := fill(append(h.buf, kind))
	s := sha256.Sum256(b)
	h.buf = b[:n]
	return sum128{Hi: binary.BigEndian.Uint64(s[:8]), Lo: binary.BigEndian.Uint64(s[8:16])}
}

func (h *hasher) bucket(name directory.MailboxName) uint16 {
	s := h.sum('b', name.Root().AppendKey)
	return uint16(s.Hi >> 50)
}

func (h *hasher) name(name directory.MailboxName) sum128 { return h.sum('n', name.AppendKey) }

func (h *hasher) fact(name directory.MailboxName, f *directory.Fact) sum128 {
	return h.sum('f', func(b []byte) []byte {
		b = append(name.AppendKey(b), 0)
		field := func(s string) {
			b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
			b = append(b, s...)
		}
		field(f.Partition)
		field(f.ACL)
		field(f.MailboxID)
		b = binary.BigEndian.AppendUint32(append(b, 0, 0, 0, 4), f.UIDValidity)
		b = append(b, 0, 0, 0, 1, byte(f.Type))
		field(f.SpecialUse)
		return b
	})
}

// stated reports whether the fact is part of what its server states, and so of
// its digests: a withdrawal that is held is not.
func stated(f *directory.Fact) bool { return f != nil && f.State != directory.HeldWithdrawal }

// sameStatement reports whether two facts state the same.
func sameStatement(f, g *directory.Fact) bool {
	return f.Partition == g.Partition && f.ACL == g.ACL && f.MailboxID == g.MailboxID &&
		f.UIDValidity == g.UIDValidity && f.Type == g.Type && f.SpecialUse == g.SpecialUse
}

// mendDigest moves the sums of a server from what fact was to what it is; nil
// is no fact.
func (a *apply) mendDigest(server directory.ServerID, name directory.MailboxName, was, is *directory.Fact) error {
	wasStated, isStated := stated(was), stated(is)
	wasCounted, isCounted := was != nil && was.Counted, is != nil && is.Counted
	restated := wasStated != isStated || wasStated && !sameStatement(was, is)
	if !restated && wasCounted == isCounted {
		return nil
	}
	if a.hash == nil {
		a.hash = newHasher(a.cluster.DigestKey)
	}
	nameSum := a.hash.name(name)
	var count uint64
	var names, facts sum128
	if wasStated {
		count--
		names, facts = names.Sub(nameSum), facts.Sub(a.hash.fact(name, was))
	}
	if isStated {
		count++
		names, facts = names.Add(nameSum), facts.Add(a.hash.fact(name, is))
	}
	total, err := a.state.digest(serverKey(server))
	if err != nil {
		return err
	}
	total.Count += count
	total.Names, total.Facts = total.Names.Add(names), total.Facts.Add(facts)
	if wasCounted && !isCounted {
		total.Counted--
		total.CountedNames = total.CountedNames.Sub(nameSum)
	}
	if isCounted && !wasCounted {
		total.Counted++
		total.CountedNames = total.CountedNames.Add(nameSum)
	}
	a.putDigest(serverKey(server), total)
	if !restated {
		return nil
	}
	key := digestKey(server, a.hash.bucket(name))
	d, err := a.state.digest(key)
	if err != nil {
		return err
	}
	d.Count += count
	d.Names, d.Facts = d.Names.Add(names), d.Facts.Add(facts)
	a.putDigest(key, d)
	return nil
}

func (a *apply) putDigest(key []byte, d digest) {
	if d == (digest{}) {
		a.tx.Delete(bucketDigest, key)
		return
	}
	a.put1(bucketDigest, key, encodeDigest(d))
}
