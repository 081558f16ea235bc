package machine

import (
	"bytes"
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

// keyed reports whether the hasher is of that key.
func (h *hasher) keyed(key []byte) bool { return h != nil && bytes.Equal(h.buf, key) }

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

// present reports whether a counted fact counts when members are compared: one
// whose withdrawal is held does not, for its server says it is gone.
func present(f *directory.Fact) bool { return f != nil && f.Counted && stated(f) }

// mendDigest moves the sums of a server from what fact was to what it is; nil
// is no fact.
func (a *apply) mendDigest(server directory.ServerID, name directory.MailboxName, was, is *directory.Fact) error {
	wasStated, isStated := stated(was), stated(is)
	wasPresent, isPresent := present(was), present(is)
	restated := wasStated != isStated || wasStated && !sameStatement(was, is)
	if !restated && wasPresent == isPresent {
		return nil
	}
	hash := a.room().hasher(a.cluster.DigestKey)
	// Where the name stays, its hash would be taken away and added again.
	var nameSum sum128
	if wasStated != isStated || wasPresent != isPresent {
		nameSum = hash.name(name)
	}
	var change digest
	if wasStated {
		change.Count--
		change.Names, change.Facts = change.Names.Sub(nameSum), change.Facts.Sub(hash.fact(name, was))
	}
	if isStated {
		change.Count++
		change.Names, change.Facts = change.Names.Add(nameSum), change.Facts.Add(hash.fact(name, is))
	}
	if restated {
		if err := a.addDigest(&a.sums[1], digestKey(server, hash.bucket(name)), change); err != nil {
			return err
		}
	}
	if wasPresent && !isPresent {
		change.Counted--
		change.CountedNames = change.CountedNames.Sub(nameSum)
	}
	if isPresent && !wasPresent {
		change.Counted++
		change.CountedNames = change.CountedNames.Add(nameSum)
	}
	return a.addDigest(&a.sums[0], serverKey(server), change)
}

// digestRow is the row of sums that was changed last: a list in name order
// changes the same two again and again, so they are written when another's
// turn comes, or the command ends.
type digestRow struct {
	key []byte
	sum digest
}

func (a *apply) addDigest(row *digestRow, key []byte, change digest) error {
	if !bytes.Equal(row.key, key) {
		a.putDigest(row)
		sum, err := a.state.digest(key)
		if err != nil {
			return err
		}
		row.key, row.sum = key, sum
	}
	d := &row.sum
	d.Count += change.Count
	d.Names, d.Facts = d.Names.Add(change.Names), d.Facts.Add(change.Facts)
	d.Counted += change.Counted
	d.CountedNames = d.CountedNames.Add(change.CountedNames)
	return nil
}

// flushDigests writes the rows that were kept back.
func (a *apply) flushDigests() {
	for i := range a.sums {
		a.putDigest(&a.sums[i])
	}
}

func (a *apply) putDigest(row *digestRow) {
	if row.key == nil {
		return
	}
	if row.sum == (digest{}) {
		a.tx.Delete(bucketDigest, row.key)
	} else {
		s := a.room()
		s.message = appendDigest(s.message[:0], &row.sum)
		a.put1(bucketDigest, row.key, s.message)
	}
	row.key = nil
}

// total reads a server's sums, with what this command changed so far.
func (a *apply) total(server directory.ServerID) (digest, error) {
	if bytes.Equal(a.sums[0].key, serverKey(server)) {
		return a.sums[0].sum, nil
	}
	return a.state.digest(serverKey(server))
}
