package machine

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/internal/kv"
)

// The buckets and their keys. "name" is a mailbox's order key
// (MailboxName.AppendKey), which holds no octet below 0x1D; "server" and
// numbers are big endian, so that octet order is number order.
//
// What a write costs is the number of leaf pages it dirties, so what changes
// together stands together: a mailbox's row and its facts are neighbours, a
// user's mailboxes follow each other, and an index is written only when the
// thing it tells of appears or goes.
const (
	// bucketMailbox: name 0x00 -> MailboxRow; name 0x00 server(4) -> FactRow.
	// The mailboxes below a name follow it, for 0x00 sorts before every
	// separator.
	bucketMailbox kv.Bucket = "mailbox"
	// bucketByServer: server(4) name -> nothing.
	bucketByServer kv.Bucket = "by-server"
	// bucketPosting: identifier 0x00 class(1) name -> PostingRow. Class 0x01
	// is below another user, 0x02 is shared: the order in which LIST answers.
	bucketPosting kv.Bucket = "posting"
	// bucketReservation: name -> ReservationRow.
	bucketReservation kv.Bucket = "reservation"
	// bucketUnheard: server(4) name -> nothing, for reservations whose server
	// was not heard since.
	bucketUnheard kv.Bucket = "unheard"
	// bucketBackend: 'i' id(4) -> BackendRow; 'n' name -> id(4).
	bucketBackend kv.Bucket = "backend"
	// bucketGroup: 'i' id(4) -> GroupRow; 'n' name -> id(4).
	bucketGroup kv.Bucket = "group"
	// bucketFork: name -> nothing, for every forked mailbox.
	bucketFork kv.Bucket = "fork"
	// bucketHeldFact: server(4) name -> nothing, for every fact the guard holds.
	bucketHeldFact kv.Bucket = "held-fact"
	// bucketMove: name -> nothing, for every mailbox with a deactivated fact.
	bucketMove kv.Bucket = "move"
	// bucketHold: kind(1) key -> HoldRow. A mailbox's key is its order key.
	bucketHold kv.Bucket = "hold"
	// bucketAlarm: kind(1) node -> AlarmRow.
	bucketAlarm kv.Bucket = "alarm"
	// bucketSubscription: user 0x00 name -> SubscriptionRow.
	bucketSubscription kv.Bucket = "subscription"
	// bucketLog: revision(8) ordinal(4) -> ChangeRow.
	bucketLog kv.Bucket = "log"
	// bucketTombstone: name -> TombstoneRow.
	bucketTombstone kv.Bucket = "tombstone"
	// bucketDigest: server(4) -> the total; server(4) digest bucket(2) -> DigestRow.
	bucketDigest kv.Bucket = "digest"
	// bucketGuard: server(4) -> GuardRow.
	bucketGuard kv.Bucket = "guard"
	// bucketRequest: client id -> RequestRow.
	bucketRequest kv.Bucket = "request"
	// bucketDeadline: time(8) kind(1) key -> nothing. The first is the nearest.
	bucketDeadline kv.Bucket = "deadline"
	// bucketSweep: kind(1) server(4) -> SweepRow.
	bucketSweep kv.Bucket = "sweep"
	// bucketMeta: "cluster" -> ClusterRow, "clock" -> ClockRow, "counts" ->
	// CountsRow, "settings" -> SettingsRow, "format" -> the format's name.
	bucketMeta kv.Bucket = "meta"
)

// allBuckets lists every bucket the machine uses.
var allBuckets = [...]kv.Bucket{
	bucketMailbox, bucketByServer, bucketPosting, bucketReservation, bucketUnheard, bucketBackend,
	bucketGroup, bucketFork, bucketHeldFact, bucketMove, bucketHold, bucketSubscription, bucketLog,
	bucketTombstone, bucketDigest, bucketGuard, bucketRequest, bucketDeadline, bucketSweep, bucketMeta,
	bucketAlarm,
}

// Keys of bucketMeta.
var (
	keyCluster  = []byte("cluster")
	keyClock    = []byte("clock")
	keyCounts   = []byte("counts")
	keySettings = []byte("settings")
	keyFormat   = []byte("format")
)

// Classes of a posting.
const (
	classOtherUsers byte = 0x01
	classShared     byte = 0x02
)

// postingClass is the class of name for everybody but its owner, as
// Namespace.Class has it.
func postingClass(name directory.MailboxName) byte {
	if strings.HasPrefix(name.Local(), "user.") {
		return classOtherUsers
	}
	return classShared
}

// mailboxKey is the key of name's row; its facts' keys begin with it.
func mailboxKey(name directory.MailboxName) []byte {
	return append(name.AppendKey(make([]byte, 0, len(name)+6)), 0)
}

func factKey(name directory.MailboxName, server directory.ServerID) []byte {
	return binary.BigEndian.AppendUint32(mailboxKey(name), uint32(server))
}

// splitMailboxKey takes a key of bucketMailbox apart: the order key, and the
// server, or zero for the mailbox's own row.
func splitMailboxKey(key []byte) (name []byte, server directory.ServerID, ok bool) {
	n := len(key)
	if n > 1 && key[n-1] == 0 && !hasZero(key[:n-1]) {
		return key[:n-1], 0, true
	}
	if n > 5 && key[n-5] == 0 && !hasZero(key[:n-5]) {
		return key[:n-5], directory.ServerID(binary.BigEndian.Uint32(key[n-4:])), true
	}
	return nil, 0, false
}

func hasZero(b []byte) bool {
	for _, c := range b {
		if c == 0 {
			return true
		}
	}
	return false
}

func serverKey(server directory.ServerID) []byte {
	return binary.BigEndian.AppendUint32(nil, uint32(server))
}

// serverNameKey is a key of the buckets ordered by server, then name.
func serverNameKey(server directory.ServerID, name directory.MailboxName) []byte {
	return name.AppendKey(binary.BigEndian.AppendUint32(make([]byte, 0, len(name)+4), uint32(server)))
}

// postingPrefix is what all postings of identifier begin with.
func postingPrefix(identifier string) []byte {
	return append([]byte(identifier), 0)
}

func postingKey(identifier string, name directory.MailboxName) []byte {
	k := make([]byte, 0, len(identifier)+len(name)+2)
	k = append(k, identifier...)
	k = append(k, 0, postingClass(name))
	return name.AppendKey(k)
}

func idKey(id uint32) []byte {
	return binary.BigEndian.AppendUint32([]byte{'i'}, id)
}

func nameKey(name string) []byte {
	return append([]byte{'n'}, name...)
}

func holdKey(kind directory.HoldKind, key string) []byte {
	if kind == directory.HoldMailbox {
		return directory.MailboxName(key).AppendKey([]byte{byte(kind)})
	}
	return append([]byte{byte(kind)}, key...)
}

func alarmKey(kind directory.AlarmKind, node string) []byte {
	return append([]byte{byte(kind)}, node...)
}

func subscriptionPrefix(user directory.UserID) []byte {
	return append([]byte(user), 0)
}

func subscriptionKey(user directory.UserID, name directory.MailboxName) []byte {
	return name.AppendKey(subscriptionPrefix(user))
}

func logKey(rev directory.Revision, ordinal uint32) []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint64(make([]byte, 0, 12), uint64(rev)), ordinal)
}

func digestKey(server directory.ServerID, bucket uint16) []byte {
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint32(make([]byte, 0, 6), uint32(server)), bucket)
}

// Kinds of a deadline.
const (
	dueReservation byte = 1 // key: order key
	dueHold        byte = 2 // key: a key of bucketHold
	dueTombstone   byte = 3 // key: order key
	dueRequests    byte = 4 // key: none
	dueWithdrawing byte = 5 // key: server and order key
)

func deadlineKey(at directory.Time, kind byte, key []byte) []byte {
	k := binary.BigEndian.AppendUint64(make([]byte, 0, 9+len(key)), uint64(at))
	return append(append(k, kind), key...)
}

// splitDeadline takes a key of bucketDeadline apart.
func splitDeadline(k []byte) (at directory.Time, kind byte, key []byte, err error) {
	if len(k) < 9 {
		return 0, 0, nil, fmt.Errorf("%w: deadline key of %d octets", ErrCorrupt, len(k))
	}
	return directory.Time(binary.BigEndian.Uint64(k)), k[8], k[9:], nil
}

// splitLogKey takes a key of bucketLog apart.
func splitLogKey(k []byte) (directory.Revision, uint32, error) {
	if len(k) != 12 {
		return 0, 0, fmt.Errorf("%w: log key of %d octets", ErrCorrupt, len(k))
	}
	return directory.Revision(binary.BigEndian.Uint64(k)), binary.BigEndian.Uint32(k[8:]), nil
}

func sweepKey(kind byte, server directory.ServerID) []byte {
	return binary.BigEndian.AppendUint32([]byte{kind}, uint32(server))
}

// storedName reads a name from a key. A key that is none is corruption, never
// somebody's bad request.
func storedName(key []byte) (directory.MailboxName, error) {
	name, err := directory.NameFromKey(key)
	if err != nil {
		return "", fmt.Errorf("%w: order key %q: %v", ErrCorrupt, key, err)
	}
	return name, nil
}

// storedACL parses an ACL that was accepted when it was stored.
func storedACL(acl string) (directory.ACL, error) {
	parsed, err := directory.ParseACL(acl)
	if err != nil {
		return nil, fmt.Errorf("%w: stored ACL: %v", ErrCorrupt, err)
	}
	return parsed, nil
}
