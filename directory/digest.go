package directory

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"math/bits"
)

// The digests that a resync compares: for each server, sums over what it states,
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
//	part   = top 8 bits of name
//
// A user's folders share a bucket, so a list in name order touches neighbours. So
// do all names below one first level that is no user's, which may be many: those
// are compared in parts.

// DigestBuckets is how many buckets a server's facts are summed in, DigestParts in
// how many parts a large bucket is compared.
const (
	DigestBuckets = 1 << 14
	DigestParts   = 1 << 8
)

// DigestKeySize is the length of a digest key in octets.
const DigestKeySize = 16

// Sum is a number modulo 2^128: a sum of hashes, out of which a hash can be
// taken again, in any order.
type Sum struct{ Hi, Lo uint64 }

// Add returns s+t modulo 2^128.
func (s Sum) Add(t Sum) Sum {
	lo, carry := bits.Add64(s.Lo, t.Lo, 0)
	hi, _ := bits.Add64(s.Hi, t.Hi, carry)
	return Sum{Hi: hi, Lo: lo}
}

// Sub returns s-t modulo 2^128.
func (s Sum) Sub(t Sum) Sum {
	lo, borrow := bits.Sub64(s.Lo, t.Lo, 0)
	hi, _ := bits.Sub64(s.Hi, t.Hi, borrow)
	return Sum{Hi: hi, Lo: lo}
}

// Bytes returns s as 16 octets, big endian.
func (s Sum) Bytes() (b [16]byte) {
	binary.BigEndian.PutUint64(b[:8], s.Hi)
	binary.BigEndian.PutUint64(b[8:], s.Lo)
	return b
}

// SumFromBytes is the inverse of Bytes.
func SumFromBytes(b [16]byte) Sum {
	return Sum{Hi: binary.BigEndian.Uint64(b[:8]), Lo: binary.BigEndian.Uint64(b[8:])}
}

// Fields is a set of the fields of a Statement.
type Fields uint8

// The fields, in the order in which they are hashed.
const (
	FieldPartition Fields = 1 << iota
	FieldACL
	FieldMailboxID
	FieldUIDValidity
	FieldType
	FieldSpecialUse

	AllFields Fields = 1<<iota - 1
)

// Fields returns what st states.
func (st Statement) Fields() (f Fields) {
	if st.Partition != "" {
		f |= FieldPartition
	}
	if st.ACL != nil {
		f |= FieldACL
	}
	if st.MailboxID != nil {
		f |= FieldMailboxID
	}
	if st.UIDValidity != nil {
		f |= FieldUIDValidity
	}
	if st.Type != nil && *st.Type != 0 {
		f |= FieldType
	}
	if st.SpecialUse != nil {
		f |= FieldSpecialUse
	}
	return f
}

// Hasher hashes for the digests of one cluster. It may be used by one goroutine.
type Hasher struct{ buf []byte }

// NewHasher returns a hasher with that digest key.
func NewHasher(key []byte) *Hasher {
	h := &Hasher{buf: make([]byte, 0, 512)}
	h.buf = append(h.buf, key...)
	return h
}

// Keyed reports whether the hasher is of that key. A nil one is of none.
func (h *Hasher) Keyed(key []byte) bool { return h != nil && bytes.Equal(h.buf, key) }

func (h *Hasher) sum(kind byte, fill func(b []byte) []byte) Sum {
	n := len(h.buf)
	b := fill(append(h.buf, kind))
	s := sha256.Sum256(b)
	h.buf = b[:n]
	return Sum{Hi: binary.BigEndian.Uint64(s[:8]), Lo: binary.BigEndian.Uint64(s[8:16])}
}

// Bucket returns the bucket of name, below DigestBuckets.
func (h *Hasher) Bucket(name MailboxName) uint16 {
	s := h.sum('b', name.Root().AppendKey)
	return uint16(s.Hi >> 50)
}

// BucketOfRoot is Bucket for any name with that RootKey.
func (h *Hasher) BucketOfRoot(key []byte) uint16 {
	s := h.sum('b', func(b []byte) []byte { return append(b, key...) })
	return uint16(s.Hi >> 50)
}

// RootKey returns the beginning of an order key that is the order key of its name's
// Root.
func RootKey(key []byte) []byte {
	start := bytes.IndexByte(key, KeyDomainSep) + 1
	i := bytes.IndexByte(key[start:], KeyLevelSep)
	if i < 0 {
		return key
	}
	if string(key[start:start+i]) == "user" {
		j := bytes.IndexByte(key[start+i+1:], KeyLevelSep)
		if j < 0 {
			return key
		}
		i += 1 + j
	}
	return key[:start+i]
}

// Name returns the hash of name.
func (h *Hasher) Name(name MailboxName) Sum { return h.sum('n', name.AppendKey) }

// Part returns the part of name in its bucket.
func (h *Hasher) Part(name MailboxName) uint8 { return uint8(h.Name(name).Hi >> 56) }

// Fact returns the hash of f: of name and what its server states.
func (h *Hasher) Fact(name MailboxName, f *Fact) Sum {
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

// Only returns f with the fields that are not among these as if nobody had ever
// stated them: what two sides compare by of which one does not know the others.
func (f Fact) Only(fields Fields) Fact {
	if fields&FieldPartition == 0 {
		f.Partition = ""
	}
	if fields&FieldACL == 0 {
		f.ACL = ""
	}
	if fields&FieldMailboxID == 0 {
		f.MailboxID = ""
	}
	if fields&FieldUIDValidity == 0 {
		f.UIDValidity = 0
	}
	if fields&FieldType == 0 {
		f.Type = TypeEmail
	}
	if fields&FieldSpecialUse == 0 {
		f.SpecialUse = ""
	}
	return f
}

// SameStatement reports whether f and g state the same.
func (f *Fact) SameStatement(g *Fact) bool {
	return f.Partition == g.Partition && f.ACL == g.ACL && f.MailboxID == g.MailboxID &&
		f.UIDValidity == g.UIDValidity && f.Type == g.Type && f.SpecialUse == g.SpecialUse
}

// OwnEpoch is an epoch that no group is ever of. A retraction that states it never
// decides for the group: its server speaks of its own copy alone.
const OwnEpoch = ^uint64(0)
