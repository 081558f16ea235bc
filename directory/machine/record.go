package machine

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/rookery-mail/rookery/directory"
)

// The rows, as proto/record/v1/record.proto describes them. They are written
// and read by hand: rows are read at every lookup and LIST, and protobuf's own
// code would copy each into a message first, and could not write an ACL whose
// identifiers are not UTF-8, which RFC 4314 leaves open and Cyrus stores. Strings
// are octets here; what may stand in one is for the rules to say.
//
// Encoding is canonical: fields in the order of their numbers, none that is
// zero, so equal rows are equal octets. It cannot fail. Decoding takes
// whatever protobuf's own code takes: fields in any order, the last one of a
// number, unknown ones skipped; it refuses a number too large for its field.
// What it returns shares nothing with the octets it was given, factView
// excepted. An empty list comes back as nil.

// errMessage: the octets are no message of the kind.
var errMessage = errors.New("machine: malformed message")

// errRange: a number is too large for its field. It wraps errMessage.
var errRange = fmt.Errorf("%w: a number is out of range", errMessage)

// errNested: a batch stands in a batch. It wraps errMessage.
var errNested = fmt.Errorf("%w: a batch in a batch", errMessage)

// encodeMailboxRow writes home, forked, listed and the verdict of m; the name
// is in the key, the facts have rows of their own.
func encodeMailboxRow(m *directory.Mailbox) []byte {
	b := make([]byte, 0, 16)
	b = putUint(b, 1, uint64(m.Home))
	b = putBool(b, 2, m.Forked)
	b = putBool(b, 3, m.Listed)
	for i := range m.Stray {
		var at int
		b, at = openMessage(b, 4)
		b = putUint(b, 1, uint64(m.Stray[i].Server))
		b = putString(b, 2, m.Stray[i].MailboxID)
		b = closeMessage(b, at)
	}
	return b
}

// decodeMailboxRow sets Home, Forked, Listed and Stray of m, and nothing else.
func decodeMailboxRow(b []byte, m *directory.Mailbox) error {
	m.Home, m.Forked, m.Listed, m.Stray = 0, false, false, nil
	r := readWire(b)
	for r.next() {
		switch r.tag {
		case 1<<3 | varint:
			m.Home = directory.GroupID(r.uint32())
		case 2<<3 | varint:
			m.Forked = r.bool()
		case 3<<3 | varint:
			m.Listed = r.bool()
		case 4<<3 | octets:
			m.Stray = append(m.Stray, r.strayCopy())
		default:
			r.skip()
		}
	}
	return r.stored()
}

func (r *wireReader) strayCopy() (s directory.StrayCopy) {
	end := r.enter()
	for r.next() {
		switch r.tag {
		case 1<<3 | varint:
			s.Server = directory.ServerID(r.uint32())
		case 2<<3 | octets:
			s.MailboxID = r.string()
		default:
			r.skip()
		}
	}
	r.leave(end)
	return s
}

// encodeFact writes all of f but Server, which is in the key.
func encodeFact(f *directory.Fact) []byte {
	return appendFact(make([]byte, 0, len(f.Partition)+len(f.ACL)+len(f.MailboxID)+len(f.SpecialUse)+64), f)
}

func appendFact(b []byte, f *directory.Fact) []byte {
	b = putString(b, 1, f.Partition)
	b = putString(b, 2, f.ACL)
	b = putString(b, 3, f.MailboxID)
	b = putUint(b, 4, uint64(f.UIDValidity))
	b = putUint(b, 5, uint64(f.Type))
	b = putString(b, 6, f.SpecialUse)
	b = putUint(b, 7, uint64(f.State))
	b = putUint(b, 8, uint64(f.Was))
	b = putUint(b, 9, uint64(f.Standing))
	b = putUint(b, 10, uint64(f.First))
	b = putUint(b, 11, uint64(f.Last))
	b = putUint(b, 12, uint64(f.Changed))
	b = putUint(b, 13, uint64(f.Incarnation))
	return putBool(b, 14, f.Counted)
}

// factView is a fact read where it lies: its slices are parts of the value,
// for a LIST that looks at a thousand facts and copies from few. It may be
// used as long as the value it was parsed from.
type factView struct {
	Partition   []byte
	ACL         []byte
	MailboxID   []byte
	SpecialUse  []byte
	UIDValidity uint32
	Type        directory.MailboxType
	State       directory.FactState
	Was         directory.FactState
	Standing    directory.Standing
	Counted     bool
	First       directory.Revision
	Last        directory.Revision
	Changed     directory.Time
	Incarnation directory.Incarnation
}

func parseFactView(b []byte) (factView, error) {
	var v factView
	err := v.parse(b)
	return v, err
}

func (v *factView) parse(b []byte) error {
	r := readWire(b)
	for r.next() {
		switch r.tag {
		case 1<<3 | octets:
			v.Partition = r.octets()
		case 2<<3 | octets:
			v.ACL = r.octets()
		case 3<<3 | octets:
			v.MailboxID = r.octets()
		case 4<<3 | varint:
			v.UIDValidity = r.uint32()
		case 5<<3 | varint:
			v.Type = directory.MailboxType(r.uint8())
		case 6<<3 | octets:
			v.SpecialUse = r.octets()
		case 7<<3 | varint:
			v.State = directory.FactState(r.uint8())
		case 8<<3 | varint:
			v.Was = directory.FactState(r.uint8())
		case 9<<3 | varint:
			v.Standing = directory.Standing(r.uint8())
		case 10<<3 | varint:
			v.First = directory.Revision(r.uint64())
		case 11<<3 | varint:
			v.Last = directory.Revision(r.uint64())
		case 12<<3 | varint:
			v.Changed = directory.Time(r.uint64())
		case 13<<3 | varint:
			v.Incarnation = directory.Incarnation(r.uint32())
		case 14<<3 | varint:
			v.Counted = r.bool()
		default:
			r.skip()
		}
	}
	return r.stored()
}

// decodeFact sets all of f but Server.
func decodeFact(b []byte, f *directory.Fact) error {
	var v factView
	if err := v.parse(b); err != nil {
		return err
	}
	v.fill(f)
	return nil
}

// fill sets all of f but Server.
func (v *factView) fill(f *directory.Fact) {
	// One copy for the four strings.
	var text strings.Builder
	text.Grow(len(v.Partition) + len(v.ACL) + len(v.MailboxID) + len(v.SpecialUse))
	text.Write(v.Partition)
	text.Write(v.ACL)
	text.Write(v.MailboxID)
	text.Write(v.SpecialUse)
	rest := text.String()
	cut := func(n int) (s string) {
		s, rest = rest[:n], rest[n:]
		return s
	}
	*f = directory.Fact{
		Server:      f.Server,
		Partition:   cut(len(v.Partition)),
		ACL:         cut(len(v.ACL)),
		MailboxID:   cut(len(v.MailboxID)),
		UIDValidity: v.UIDValidity,
		Type:        v.Type,
		SpecialUse:  cut(len(v.SpecialUse)),
		State:       v.State,
		Was:         v.Was,
		Standing:    v.Standing,
		First:       v.First,
		Last:        v.Last,
		Changed:     v.Changed,
		Incarnation: v.Incarnation,
		Counted:     v.Counted,
	}
}

// posting is what one ACL identifier may do with one mailbox.
type posting struct {
	// Rights are those of the identifier, alike in every home member's ACL.
	// Meaningless when Weigh is set.
	Rights directory.Rights
	// Weigh: the reader must weigh the routed fact's whole ACL, which has
	// negative entries or differs from another member's.
	Weigh bool
}

func encodePosting(p posting) []byte {
	b := make([]byte, 0, 8)
	b = putUint(b, 1, uint64(p.Rights))
	return putBool(b, 2, p.Weigh)
}

func decodePosting(b []byte) (p posting, err error) {
	r := readWire(b)
	for r.next() {
		switch r.tag {
		case 1<<3 | varint:
			p.Rights = directory.Rights(r.uint32())
		case 2<<3 | varint:
			p.Weigh = r.bool()
		default:
			r.skip()
		}
	}
	return p, r.stored()
}

func encodeReservation(v *directory.Reservation) []byte {
	b := make([]byte, 0, len(v.Partition)+64)
	b = putUint(b, 1, uint64(v.Server))
	b = putString(b, 2, v.Partition)
	b = putUint(b, 3, uint64(v.Made))
	b = putUint(b, 4, uint64(v.Grace))
	b = putUint(b, 5, uint64(v.Deadline))
	b = putBool(b, 6, v.Heard)
	return putUint(b, 7, uint64(v.Revision))
}

func decodeReservation(b []byte, name directory.MailboxName) (directory.Reservation, error) {
	v := directory.Reservation{Name: name}
	r := readWire(b)
	for r.next() {
		switch r.tag {
		case 1<<3 | varint:
			v.Server = directory.ServerID(r.uint32())
		case 2<<3 | octets:
			v.Partition = r.string()
		case 3<<3 | varint:
			v.Made = directory.Time(r.uint64())
		case 4<<3 | varint:
			v.Grace = directory.Time(r.uint64())
		case 5<<3 | varint:
			v.Deadline = directory.Time(r.uint64())
		case 6<<3 | varint:
			v.Heard = r.bool()
		case 7<<3 | varint:
			v.Revision = directory.Revision(r.uint64())
		default:
			r.skip()
		}
	}
	return v, r.stored()
}

func encodeBackend(v *directory.Backend) []byte {
	b := make([]byte, 0, 256)
	b = putUint(b, 1, uint64(v.ID))
	b = putString(b, 2, string(v.Name))
	b = putUint(b, 3, uint64(v.Group))
	b = putAddresses(b, 4, v.Addresses)
	b = putUint(b, 5, uint64(v.Weight))
	b = putBool(b, 6, v.Admitted)
	b = putUint(b, 7, uint64(v.State))
	b = putUint(b, 8, uint64(v.Since))
	b = putBool(b, 9, v.DrainApproved)
	b = putUint(b, 10, uint64(v.Confirmed))
	b = putUint(b, 11, uint64(v.ConfirmedIn))
	b = putUint(b, 12, uint64(v.ConfirmedRevision))
	return putUint(b, 13, uint64(v.ConfirmedTime))
}

func decodeBackend(b []byte) (v directory.Backend, err error) {
	r := readWire(b)
	for r.next() {
		switch r.tag {
		case 1<<3 | varint:
			v.ID = directory.ServerID(r.uint32())
		case 2<<3 | octets:
			v.Name = directory.BackendName(r.string())
		case 3<<3 | varint:
			v.Group = directory.GroupID(r.uint32())
		case 4<<3 | octets:
			v.Addresses = append(v.Addresses, r.address())
		case 5<<3 | varint:
			v.Weight = r.uint32()
		case 6<<3 | varint:
			v.Admitted = r.bool()
		case 7<<3 | varint:
			v.State = directory.BackendState(r.uint8())
		case 8<<3 | varint:
			v.Since = directory.Time(r.uint64())
		case 9<<3 | varint:
			v.DrainApproved = r.bool()
		case 10<<3 | varint:
			v.Confirmed = directory.ConfirmedBy(r.uint8())
		case 11<<3 | varint:
			v.ConfirmedIn = directory.Incarnation(r.uint32())
		case 12<<3 | varint:
			v.ConfirmedRevision = directory.Revision(r.uint64())
		case 13<<3 | varint:
			v.ConfirmedTime = directory.Time(r.uint64())
		default:
			r.skip()
		}
	}
	return v, r.stored()
}

func putAddresses(b []byte, num protowire.Number, addresses []directory.Address) []byte {
	for i := range addresses {
		a := &addresses[i]
		var at int
		b, at = openMessage(b, num)
		b = putString(b, 1, string(a.Service))
		b = putString(b, 2, a.IP)
		b = putUint(b, 3, uint64(a.Port))
		b = putUint(b, 4, uint64(a.TLS))
		b = closeMessage(b, at)
	}
	return b
}

func (r *wireReader) address() (a directory.Address) {
	end := r.enter()
	for r.next() {
		switch r.tag {
		case 1<<3 | octets:
			a.Service = directory.Service(r.string())
		case 2<<3 | octets:
			a.IP = r.string()
		case 3<<3 | varint:
			a.Port = uint16(r.upTo(math.MaxUint16))
		case 4<<3 | varint:
			a.TLS = directory.TLSMode(r.uint8())
		default:
			r.skip()
		}
	}
	r.leave(end)
	return a
}

func encodeGroup(v *directory.Group) []byte {
	b := make([]byte, 0, 64+96*len(v.History))
	b = putUint(b, 1, uint64(v.ID))
	b = putString(b, 2, string(v.Name))
	if len(v.Members) > 0 {
		var at int
		b, at = openMessage(b, 3)
		for _, m := range v.Members {
			b = protowire.AppendVarint(b, uint64(m))
		}
		b = closeMessage(b, at)
	}
	b = putUint(b, 4, uint64(v.Primary))
	b = putUint(b, 5, v.Epoch)
	b = putUint(b, 6, uint64(v.Mode))
	b = putBool(b, 7, v.Own)
	b = putUint(b, 8, uint64(v.MergedInto))
	for i := range v.History {
		s := &v.History[i]
		var at int
		b, at = openMessage(b, 9)
		b = putUint(b, 1, s.Epoch)
		b = putUint(b, 2, uint64(s.From))
		b = putUint(b, 3, uint64(s.To))
		b = putString(b, 4, s.By)
		b = putString(b, 5, s.Reason)
		b = putUint(b, 6, uint64(s.Revision))
		b = putUint(b, 7, uint64(s.Time))
		b = putUint(b, 8, uint64(s.Wall))
		b = putBool(b, 9, s.AcceptMissing)
		b = closeMessage(b, at)
	}
	return b
}

func decodeGroup(b []byte) (v directory.Group, err error) {
	r := readWire(b)
	for r.next() {
		switch r.tag {
		case 1<<3 | varint:
			v.ID = directory.GroupID(r.uint32())
		case 2<<3 | octets:
			v.Name = directory.GroupName(r.string())
		case 3<<3 | octets: // packed
			end := r.enter()
			for r.more() {
				v.Members = append(v.Members, directory.ServerID(r.uint32()))
			}
			r.leave(end)
		case 3<<3 | varint: // one by one: never written, but the same to protobuf
			v.Members = append(v.Members, directory.ServerID(r.uint32()))
		case 4<<3 | varint:
			v.Primary = directory.ServerID(r.uint32())
		case 5<<3 | varint:
			v.Epoch = r.uint64()
		case 6<<3 | varint:
			v.Mode = directory.GroupMode(r.uint8())
		case 7<<3 | varint:
			v.Own = r.bool()
		case 8<<3 | varint:
			v.MergedInto = directory.GroupID(r.uint32())
		case 9<<3 | octets:
			v.History = append(v.History, r.switchover())
		default:
			r.skip()
		}
	}
	return v, r.stored()
}

func (r *wireReader) switchover() (s directory.Switchover) {
	end := r.enter()
	for r.next() {
		switch r.tag {
		case 1<<3 | varint:
			s.Epoch = r.uint64()
		case 2<<3 | varint:
			s.From = directory.ServerID(r.uint32())
		case 3<<3 | varint:
			s.To = directory.ServerID(r.uint32())
		case 4<<3 | octets:
			s.By = r.string()
		case 5<<3 | octets:
			s.Reason = r.string()
		case 6<<3 | varint:
			s.Revision = directory.Revision(r.uint64())
		case 7<<3 | varint:
			s.Time = directory.Time(r.uint64())
		case 8<<3 | varint:
			s.Wall = int64(r.uint64())
		case 9<<3 | varint:
			s.AcceptMissing = r.bool()
		default:
			r.skip()
		}
	}
	r.leave(end)
	return s
}

func encodeHold(v *directory.Hold) []byte {
	b := make([]byte, 0, len(v.Key)+len(v.Why)+len(v.By)+32)
	b = putUint(b, 1, uint64(v.Kind))
	b = putString(b, 2, v.Key)
	b = putUint(b, 3, uint64(v.Until))
	b = putString(b, 4, v.Why)
	b = putString(b, 5, v.By)
	return putUint(b, 6, uint64(v.Placed))
}

func decodeHold(b []byte) (v directory.Hold, err error) {
	r := readWire(b)
	for r.next() {
		switch r.tag {
		case 1<<3 | varint:
			v.Kind = directory.HoldKind(r.uint8())
		case 2<<3 | octets:
			v.Key = r.string()
		case 3<<3 | varint:
			v.Until = directory.Time(r.uint64())
		case 4<<3 | octets:
			v.Why = r.string()
		case 5<<3 | octets:
			v.By = r.string()
		case 6<<3 | varint:
			v.Placed = directory.Time(r.uint64())
		default:
			r.skip()
		}
	}
	return v, r.stored()
}

func encodeAlarm(v *directory.Alarm) []byte {
	b := make([]byte, 0, len(v.Node)+len(v.Why)+len(v.By)+48)
	b = putUint(b, 1, uint64(v.Kind))
	b = putString(b, 2, v.Node)
	b = putString(b, 3, v.Why)
	b = putString(b, 4, v.By)
	b = putUint(b, 5, uint64(v.Voters))
	b = putUint(b, 6, uint64(v.Since))
	b = putUint(b, 7, uint64(v.Wall))
	b = putUint(b, 8, uint64(v.Revision))
	return putBool(b, 9, v.Voter)
}

func decodeAlarm(b []byte) (v directory.Alarm, err error) {
	r := readWire(b)
	for r.next() {
		switch r.tag {
		case 1<<3 | varint:
			v.Kind = directory.AlarmKind(r.uint8())
		case 2<<3 | octets:
			v.Node = r.string()
		case 3<<3 | octets:
			v.Why = r.string()
		case 4<<3 | octets:
			v.By = r.string()
		case 5<<3 | varint:
			v.Voters = r.uint32()
		case 6<<3 | varint:
			v.Since = directory.Time(r.uint64())
		case 7<<3 | varint:
			v.Wall = int64(r.uint64())
		case 8<<3 | varint:
			v.Revision = directory.Revision(r.uint64())
		case 9<<3 | varint:
			v.Voter = r.bool()
		default:
			r.skip()
		}
	}
	return v, r.stored()
}

// encodeSubscription writes the revision at which a subscription began.
func encodeSubscription(since directory.Revision) []byte {
	return putUint(nil, 1, uint64(since))
}

func decodeSubscription(b []byte) (since directory.Revision, err error) {
	r := readWire(b)
	for r.next() {
		switch r.tag {
		case 1<<3 | varint:
			since = directory.Revision(r.uint64())
		default:
			r.skip()
		}
	}
	return since, r.stored()
}

// encodeChange writes all of v but Revision and Ordinal, which are the key.
func encodeChange(v *directory.Change) []byte {
	return appendChange(make([]byte, 0, len(v.Name)+len(v.Key)+32), v)
}

func appendChange(b []byte, v *directory.Change) []byte {
	b = putUint(b, 1, uint64(v.Kind))
	b = putString(b, 2, string(v.Name))
	b = putString(b, 3, v.Key)
	b = putUint(b, 4, uint64(v.Server))
	b = putUint(b, 5, uint64(v.From))
	b = putUint(b, 6, uint64(v.To))
	if len(v.Dropped) > 0 {
		var at int
		b, at = openMessage(b, 7)
		for _, s := range v.Dropped {
			b = protowire.AppendVarint(b, uint64(s))
		}
		b = closeMessage(b, at)
	}
	return b
}

// decodeChange leaves Revision and Ordinal zero.
func decodeChange(b []byte) (v directory.Change, err error) {
	r := readWire(b)
	for r.next() {
		switch r.tag {
		case 1<<3 | varint:
			v.Kind = directory.ChangeKind(r.uint8())
		case 2<<3 | octets:
			v.Name = directory.MailboxName(r.string())
		case 3<<3 | octets:
			v.Key = r.string()
		case 4<<3 | varint:
			v.Server = directory.ServerID(r.uint32())
		case 5<<3 | varint:
			v.From = directory.GroupID(r.uint32())
		case 6<<3 | varint:
			v.To = directory.GroupID(r.uint32())
		case 7<<3 | octets: // packed
			end := r.enter()
			for r.more() {
				v.Dropped = append(v.Dropped, directory.ServerID(r.uint32()))
			}
			r.leave(end)
		case 7<<3 | varint: // one by one: never written, but the same to protobuf
			v.Dropped = append(v.Dropped, directory.ServerID(r.uint32()))
		default:
			r.skip()
		}
	}
	return v, r.stored()
}

// encodeTombstone writes all of v but Name, which is the key.
func encodeTombstone(v *directory.Tombstone) []byte {
	b := make([]byte, 0, len(v.NewName)+64)
	b = putUint(b, 1, uint64(v.How))
	b = putUint(b, 2, uint64(v.Server))
	b = putUint(b, 3, uint64(v.From))
	b = putUint(b, 4, uint64(v.To))
	b = putString(b, 5, string(v.NewName))
	b = putUint(b, 6, uint64(v.Revision))
	b = putUint(b, 7, uint64(v.Time))
	return putUint(b, 8, uint64(v.Wall))
}

func decodeTombstone(b []byte, name directory.MailboxName) (directory.Tombstone, error) {
	v := directory.Tombstone{Name: name}
	r := readWire(b)
	for r.next() {
		switch r.tag {
		case 1<<3 | varint:
			v.How = directory.Gone(r.uint8())
		case 2<<3 | varint:
			v.Server = directory.ServerID(r.uint32())
		case 3<<3 | varint:
			v.From = directory.GroupID(r.uint32())
		case 4<<3 | varint:
			v.To = directory.GroupID(r.uint32())
		case 5<<3 | octets:
			v.NewName = directory.MailboxName(r.string())
		case 6<<3 | varint:
			v.Revision = directory.Revision(r.uint64())
		case 7<<3 | varint:
			v.Time = directory.Time(r.uint64())
		case 8<<3 | varint:
			v.Wall = int64(r.uint64())
		default:
			r.skip()
		}
	}
	return v, r.stored()
}

// sum128 is directory's, as it stands in a record.
type sum128 = directory.Sum

// digest sums what one server states, in one digest bucket or in all.
type digest struct {
	Count uint64
	Names sum128 // of the hashes of the names
	Facts sum128 // of the hashes of the facts
	// In a server's total only: the same over its counted facts.
	Counted      uint64
	CountedNames sum128
}

func encodeDigest(d digest) []byte {
	return appendDigest(make([]byte, 0, 3*(2+16)+2*(1+binary.MaxVarintLen64)), &d)
}

func appendDigest(b []byte, d *digest) []byte {
	b = putUint(b, 1, d.Count)
	b = putSum(b, 2, d.Names)
	b = putSum(b, 3, d.Facts)
	b = putUint(b, 4, d.Counted)
	return putSum(b, 5, d.CountedNames)
}

func decodeDigest(b []byte) (d digest, err error) {
	r := readWire(b)
	for r.next() {
		switch r.tag {
		case 1<<3 | varint:
			d.Count = r.uint64()
		case 2<<3 | octets:
			d.Names = r.sum()
		case 3<<3 | octets:
			d.Facts = r.sum()
		case 4<<3 | varint:
			d.Counted = r.uint64()
		case 5<<3 | octets:
			d.CountedNames = r.sum()
		default:
			r.skip()
		}
	}
	return d, r.stored()
}

// putSum writes 16 octets, or nothing for zero.
func putSum(b []byte, num protowire.Number, s sum128) []byte {
	if s == (sum128{}) {
		return b
	}
	b = protowire.AppendTag(b, num, protowire.BytesType)
	b = append(b, 16)
	b = binary.BigEndian.AppendUint64(b, s.Hi)
	return binary.BigEndian.AppendUint64(b, s.Lo)
}

func (r *wireReader) sum() sum128 {
	b := r.octets()
	if len(b) == 0 {
		return sum128{}
	}
	if len(b) != 16 {
		r.fail(errRange)
		return sum128{}
	}
	return directory.SumFromBytes([16]byte(b))
}

// guardMinute counts what a server withdrew and brought back in one minute of
// directory time.
type guardMinute struct {
	Minute    uint64 // directory time / 60000
	Withdrawn uint32
	Returned  uint32
}

// encodeGuard writes minutes, oldest first.
func encodeGuard(minutes []guardMinute) []byte {
	b := make([]byte, 0, 16*len(minutes))
	for _, m := range minutes {
		var at int
		b, at = openMessage(b, 1)
		b = putUint(b, 1, m.Minute)
		b = putUint(b, 2, uint64(m.Withdrawn))
		b = putUint(b, 3, uint64(m.Returned))
		b = closeMessage(b, at)
	}
	return b
}

func decodeGuard(b []byte) (minutes []guardMinute, err error) {
	r := readWire(b)
	for r.next() {
		switch r.tag {
		case 1<<3 | octets:
			minutes = append(minutes, r.guardMinute())
		default:
			r.skip()
		}
	}
	return minutes, r.stored()
}

func (r *wireReader) guardMinute() (m guardMinute) {
	end := r.enter()
	for r.next() {
		switch r.tag {
		case 1<<3 | varint:
			m.Minute = r.uint64()
		case 2<<3 | varint:
			m.Withdrawn = r.uint32()
		case 3<<3 | varint:
			m.Returned = r.uint32()
		default:
			r.skip()
		}
	}
	r.leave(end)
	return m
}

// request is the last request of a client id, and what it came to.
type request struct {
	Sequence uint64
	Time     directory.Time
	Result   Result
	Print    uint32 // CRC-32C of the encoded operation
}

func encodeRequest(v request) []byte {
	b := make([]byte, 0, 64)
	b = putUint(b, 1, v.Sequence)
	b = putUint(b, 2, uint64(v.Time))
	b, at := openMessage(b, 3)
	b = putResult(b, &v.Result)
	b = closeMessage(b, at)
	return putUint(b, 4, uint64(v.Print))
}

func decodeRequest(b []byte) (v request, err error) {
	r := readWire(b)
	var result resultFields
	for r.next() {
		switch r.tag {
		case 1<<3 | varint:
			v.Sequence = r.uint64()
		case 2<<3 | varint:
			v.Time = directory.Time(r.uint64())
		case 3<<3 | octets:
			end := r.enter()
			r.result(&result, false)
			r.leave(end)
		case 4<<3 | varint:
			v.Print = r.uint32()
		default:
			r.skip()
		}
	}
	v.Result = result.Result()
	return v, r.stored()
}

// rejections numbers what a command can be refused with. A number stands in
// stored results: it is never changed and never used again. Where an error
// wraps several, the first of the table counts.
var rejections = [...]struct {
	number   uint32
	sentinel error
}{
	{1, directory.ErrInvalidName},
	{2, directory.ErrInvalidACL},
	{3, directory.ErrInvalidLocation},
	{4, directory.ErrInvalidPattern},
	{5, directory.ErrInvalid},
	{6, directory.ErrTooLarge},
	{7, directory.ErrNotFound},
	{8, directory.ErrReserved},
	{9, directory.ErrExists},
	{10, directory.ErrIncomplete},
	{11, directory.ErrNotPlaceable},
	{12, directory.ErrNotAdmitted},
	{13, directory.ErrStaleEpoch},
	{14, directory.ErrNotPrimary},
	{15, directory.ErrNotMember},
	{16, directory.ErrMissingAtTarget},
	{17, directory.ErrNotHolder},
	{18, directory.ErrBusy},
	{19, directory.ErrReadOnly},
	{20, directory.ErrStaleRequest},
	{21, directory.ErrRole},
	{22, directory.ErrVersion},
}

// rejectionOther is an error that wraps no sentinel. The rules return none;
// should they, a refusal still must not be read back as a success.
const rejectionOther uint32 = 65535

// rejection is a refusal read back: the sentinel it was, with its whole text.
type rejection struct {
	number   uint32
	sentinel error // nil for a number this release does not know
	text     string
}

func (e *rejection) Error() string { return e.text }

func (e *rejection) Unwrap() error { return e.sentinel }

// sentinelNumber returns the number of what err wraps, zero when it is no
// rejection but a failure of this node.
func sentinelNumber(err error) uint32 {
	for _, r := range rejections {
		if errors.Is(err, r.sentinel) {
			return r.number
		}
	}
	if e, ok := errors.AsType[*rejection](err); ok {
		return e.number
	}
	return 0
}

func rejectionOf(number uint32, text string) error {
	for _, r := range rejections {
		if r.number != number {
			continue
		}
		if r.sentinel.Error() == text {
			return r.sentinel
		}
		return &rejection{number: number, sentinel: r.sentinel, text: text}
	}
	return &rejection{number: number, text: text}
}

func putResult(b []byte, v *Result) []byte {
	b = putUint(b, 1, uint64(v.Revision))
	b = putUint(b, 2, uint64(v.Effect))
	if v.Refused != nil {
		b = putUint(b, 3, uint64(cmp.Or(sentinelNumber(v.Refused), rejectionOther)))
		b = putString(b, 4, v.Refused.Error())
	}
	b = putUint(b, 5, uint64(v.Count))
	b = putUint(b, 6, v.Epoch)
	b = putString(b, 7, string(v.Holder))
	b = putUint(b, 8, uint64(v.Age))
	b = putUint(b, 9, uint64(v.Deadline))
	for i := range v.Items {
		var at int
		b, at = openMessage(b, 10)
		b = putResult(b, &v.Items[i])
		b = closeMessage(b, at)
	}
	return b
}

// resultFields is a Result while it is read: its refusal comes in two fields.
type resultFields struct {
	result  Result
	refused uint32
	why     string
}

func (f *resultFields) Result() Result {
	if f.refused != 0 {
		f.result.Refused = rejectionOf(f.refused, f.why)
	}
	return f.result
}

// result adds the fields of the present message to f. An item of a batch is
// no batch: item says that none may stand in it.
func (r *wireReader) result(f *resultFields, item bool) {
	v := &f.result
	for r.next() {
		switch r.tag {
		case 1<<3 | varint:
			v.Revision = directory.Revision(r.uint64())
		case 2<<3 | varint:
			v.Effect = Effect(r.uint8())
		case 3<<3 | varint:
			f.refused = r.uint32()
		case 4<<3 | octets:
			f.why = r.string()
		case 5<<3 | varint:
			v.Count = r.uint32()
		case 6<<3 | varint:
			v.Epoch = r.uint64()
		case 7<<3 | octets:
			v.Holder = directory.BackendName(r.string())
		case 8<<3 | varint:
			v.Age = directory.Time(r.uint64())
		case 9<<3 | varint:
			v.Deadline = directory.Time(r.uint64())
		case 10<<3 | octets:
			if item {
				r.fail(errNested)
				return
			}
			if v.Items == nil {
				v.Items = make([]Result, 0, r.repeats())
			}
			end := r.enter()
			var f resultFields
			r.result(&f, true)
			r.leave(end)
			v.Items = append(v.Items, f.Result())
		default:
			r.skip()
		}
	}
}

// sweep is work left over from a small command that touches many mailboxes.
type sweep struct {
	Kind    byte
	Server  directory.ServerID
	After   []byte // order key of the last mailbox gone over; nil before the first
	Approve bool
	Until   directory.Revision // of a decision: what was held later is not decided
}

func encodeSweep(v sweep) []byte {
	b := make([]byte, 0, len(v.After)+16)
	b = putUint(b, 1, uint64(v.Kind))
	b = putUint(b, 2, uint64(v.Server))
	b = putBytes(b, 3, v.After)
	b = putBool(b, 4, v.Approve)
	return putUint(b, 5, uint64(v.Until))
}

func decodeSweep(b []byte) (v sweep, err error) {
	r := readWire(b)
	for r.next() {
		switch r.tag {
		case 1<<3 | varint:
			v.Kind = r.uint8()
		case 2<<3 | varint:
			v.Server = directory.ServerID(r.uint32())
		case 3<<3 | octets:
			v.After = r.copied()
		case 4<<3 | varint:
			v.Approve = r.bool()
		case 5<<3 | varint:
			v.Until = directory.Revision(r.uint64())
		default:
			r.skip()
		}
	}
	return v, r.stored()
}

// cluster is the one row about the whole.
type cluster struct {
	ID          string
	Incarnation directory.Incarnation
	DigestKey   []byte
	NextServer  directory.ServerID
	NextGroup   directory.GroupID
	Version     uint32
	// Began is the revision of the command that began the present life; 0: it is the
	// first. What is of a lower revision is of an earlier life.
	Began directory.Revision
	// Release is the one that raised Version; empty if none did.
	Release string
}

func encodeCluster(v cluster) []byte {
	b := make([]byte, 0, len(v.ID)+len(v.DigestKey)+32)
	b = putString(b, 1, v.ID)
	b = putUint(b, 2, uint64(v.Incarnation))
	b = putBytes(b, 3, v.DigestKey)
	b = putUint(b, 4, uint64(v.NextServer))
	b = putUint(b, 5, uint64(v.NextGroup))
	b = putUint(b, 6, uint64(v.Version))
	b = putUint(b, 7, uint64(v.Began))
	return putString(b, 8, v.Release)
}

func decodeCluster(b []byte) (v cluster, err error) {
	r := readWire(b)
	for r.next() {
		switch r.tag {
		case 1<<3 | octets:
			v.ID = r.string()
		case 2<<3 | varint:
			v.Incarnation = directory.Incarnation(r.uint32())
		case 3<<3 | octets:
			v.DigestKey = r.copied()
		case 4<<3 | varint:
			v.NextServer = directory.ServerID(r.uint32())
		case 5<<3 | varint:
			v.NextGroup = directory.GroupID(r.uint32())
		case 6<<3 | varint:
			v.Version = r.uint32()
		case 7<<3 | varint:
			v.Began = directory.Revision(r.uint64())
		case 8<<3 | octets:
			v.Release = r.string()
		default:
			r.skip()
		}
	}
	return v, r.stored()
}

// clock moves with every command.
type clock struct {
	Revision directory.Revision
	Time     directory.Time
	Wall     int64              // milliseconds since 1970 UTC, for people
	LogFrom  directory.Revision // the change log reaches back to here
	Topology directory.Revision // which last changed a backend, group, hold, setting or the cluster row
	Due      directory.Time     // no deadline is due before; 0: none is set
	Sweeping bool               // a sweep is open
}

func encodeClock(v clock) []byte {
	b := make([]byte, 0, 6*(1+binary.MaxVarintLen64)+2)
	b = putUint(b, 1, uint64(v.Revision))
	b = putUint(b, 2, uint64(v.Time))
	b = putUint(b, 3, uint64(v.Wall))
	b = putUint(b, 4, uint64(v.LogFrom))
	b = putUint(b, 5, uint64(v.Topology))
	b = putUint(b, 6, uint64(v.Due))
	return putBool(b, 7, v.Sweeping)
}

func decodeClock(b []byte) (v clock, err error) {
	r := readWire(b)
	for r.next() {
		switch r.tag {
		case 1<<3 | varint:
			v.Revision = directory.Revision(r.uint64())
		case 2<<3 | varint:
			v.Time = directory.Time(r.uint64())
		case 3<<3 | varint:
			v.Wall = int64(r.uint64())
		case 4<<3 | varint:
			v.LogFrom = directory.Revision(r.uint64())
		case 5<<3 | varint:
			v.Topology = directory.Revision(r.uint64())
		case 6<<3 | varint:
			v.Due = directory.Time(r.uint64())
		case 7<<3 | varint:
			v.Sweeping = r.bool()
		default:
			r.skip()
		}
	}
	return v, r.stored()
}

// counts are kept so that status does not have to count.
type counts struct {
	Mailboxes     int64
	Listed        int64
	Inboxes       int64
	Forked        int64
	Reservations  int64
	Held          int64
	Subscriptions int64
	Postings      int64
	Deactivated   int64
}

func encodeCounts(v counts) []byte {
	b := make([]byte, 0, 64)
	b = putUint(b, 1, uint64(v.Mailboxes))
	b = putUint(b, 2, uint64(v.Listed))
	b = putUint(b, 3, uint64(v.Inboxes))
	b = putUint(b, 4, uint64(v.Forked))
	b = putUint(b, 5, uint64(v.Reservations))
	b = putUint(b, 6, uint64(v.Held))
	b = putUint(b, 7, uint64(v.Subscriptions))
	b = putUint(b, 8, uint64(v.Postings))
	return putUint(b, 9, uint64(v.Deactivated))
}

func decodeCounts(b []byte) (v counts, err error) {
	r := readWire(b)
	for r.next() {
		switch r.tag {
		case 1<<3 | varint:
			v.Mailboxes = int64(r.uint64())
		case 2<<3 | varint:
			v.Listed = int64(r.uint64())
		case 3<<3 | varint:
			v.Inboxes = int64(r.uint64())
		case 4<<3 | varint:
			v.Forked = int64(r.uint64())
		case 5<<3 | varint:
			v.Reservations = int64(r.uint64())
		case 6<<3 | varint:
			v.Held = int64(r.uint64())
		case 7<<3 | varint:
			v.Subscriptions = int64(r.uint64())
		case 8<<3 | varint:
			v.Postings = int64(r.uint64())
		case 9<<3 | varint:
			v.Deactivated = int64(r.uint64())
		default:
			r.skip()
		}
	}
	return v, r.stored()
}

func encodeSettings(v directory.Settings) []byte {
	return putSettings(make([]byte, 0, len(v.DefaultDomain)+64), &v)
}

func putSettings(b []byte, v *directory.Settings) []byte {
	b = putString(b, 1, v.DefaultDomain)
	b = putBool(b, 2, v.VirtDomains)
	b = putBool(b, 3, v.AdmissionOpen)
	b = putBool(b, 4, v.ReadOnly)
	b = putUint(b, 5, uint64(v.GuardCount))
	b = putUint(b, 6, uint64(v.GuardPercent))
	b = putUint(b, 7, uint64(v.GuardWindow))
	b = putUint(b, 8, uint64(v.ReserveGrace))
	b = putUint(b, 9, uint64(v.ReserveMax))
	b = putUint(b, 10, uint64(v.DeliveryGrace))
	b = putUint(b, 11, uint64(v.TombstoneKeep))
	b = putUint(b, 12, v.LogKeep)
	b = putUint(b, 13, uint64(v.RequestKeep))
	return putBool(b, 14, v.AutomationPaused)
}

func decodeSettings(b []byte) (v directory.Settings, err error) {
	r := readWire(b)
	r.settings(&v)
	return v, r.stored()
}

func (r *wireReader) settings(v *directory.Settings) {
	for r.next() {
		switch r.tag {
		case 1<<3 | octets:
			v.DefaultDomain = r.string()
		case 2<<3 | varint:
			v.VirtDomains = r.bool()
		case 3<<3 | varint:
			v.AdmissionOpen = r.bool()
		case 4<<3 | varint:
			v.ReadOnly = r.bool()
		case 5<<3 | varint:
			v.GuardCount = r.uint32()
		case 6<<3 | varint:
			v.GuardPercent = r.uint32()
		case 7<<3 | varint:
			v.GuardWindow = directory.Time(r.uint64())
		case 8<<3 | varint:
			v.ReserveGrace = directory.Time(r.uint64())
		case 9<<3 | varint:
			v.ReserveMax = directory.Time(r.uint64())
		case 10<<3 | varint:
			v.DeliveryGrace = directory.Time(r.uint64())
		case 11<<3 | varint:
			v.TombstoneKeep = directory.Time(r.uint64())
		case 12<<3 | varint:
			v.LogKeep = r.uint64()
		case 13<<3 | varint:
			v.RequestKeep = directory.Time(r.uint64())
		case 14<<3 | varint:
			v.AutomationPaused = r.bool()
		default:
			r.skip()
		}
	}
}

// Writing. Each appends one field to b, or nothing when it is zero.

func putUint(b []byte, num protowire.Number, v uint64) []byte {
	if v == 0 {
		return b
	}
	return protowire.AppendVarint(protowire.AppendTag(b, num, protowire.VarintType), v)
}

func putBool(b []byte, num protowire.Number, v bool) []byte {
	if !v {
		return b
	}
	return append(protowire.AppendTag(b, num, protowire.VarintType), 1)
}

func putString(b []byte, num protowire.Number, s string) []byte {
	if s == "" {
		return b
	}
	return protowire.AppendString(protowire.AppendTag(b, num, protowire.BytesType), s)
}

func putBytes(b []byte, num protowire.Number, s []byte) []byte {
	if len(s) == 0 {
		return b
	}
	return protowire.AppendBytes(protowire.AppendTag(b, num, protowire.BytesType), s)
}

// openMessage begins a message inside a message; what is appended until
// closeMessage is in it.
func openMessage(b []byte, num protowire.Number) (_ []byte, at int) {
	b = append(protowire.AppendTag(b, num, protowire.BytesType), 0)
	return b, len(b)
}

// closeMessage puts in the length of the message that began at at. One octet was
// left for it; a message that needs more is moved up.
func closeMessage(b []byte, at int) []byte {
	n := uint64(len(b) - at)
	size := protowire.SizeVarint(n)
	if size > 1 {
		b = append(b, make([]byte, size-1)...)
		copy(b[at+size-1:], b[at:])
	}
	protowire.AppendVarint(b[:at-1], n)
	return b
}

// Wire types, as they stand in the low bits of a tag.
const (
	varint = uint64(protowire.VarintType)
	octets = uint64(protowire.BytesType)
)

// wireReader reads one message after the other of nested ones. After next it
// stands behind a tag, and one of the methods for values has to follow. The
// first thing amiss ends all reading; what was read until then is meaningless.
type wireReader struct {
	b   []byte // to the end of the present message
	i   int
	tag uint64
	err error
	// strict makes an unknown field an error: a command is done whole or not at all.
	strict bool

	all  []byte
	text string // all of it, once a string was asked for: one copy for all strings
}

func readWire(b []byte) wireReader { return wireReader{b: b, all: b} }

// more reports whether the present message goes on.
func (r *wireReader) more() bool { return r.i < len(r.b) && r.err == nil }

// next reads a tag. It returns false at the end of the message, or when
// something is amiss.
func (r *wireReader) next() bool {
	if !r.more() {
		return false
	}
	r.tag = r.uint64()
	if n := r.tag >> 3; r.err == nil && (n < uint64(protowire.MinValidNumber) || n > uint64(protowire.MaxValidNumber)) {
		r.fail(errMessage)
	}
	return r.err == nil
}

// stored is what reading a row came to: a row that is no message is corruption.
func (r *wireReader) stored() error {
	if r.err == nil {
		return nil
	}
	return fmt.Errorf("%w: %w", ErrCorrupt, r.err)
}

func (r *wireReader) fail(err error) {
	if r.err == nil {
		r.err = err
	}
}

// skip passes over a field that this release does not know.
func (r *wireReader) skip() {
	if r.strict {
		r.fail(fmt.Errorf("%w: unknown field %d", errMessage, r.tag>>3))
		return
	}
	n := protowire.ConsumeFieldValue(protowire.Number(r.tag>>3), protowire.Type(r.tag&7), r.b[r.i:])
	if n < 0 {
		r.fail(errMessage)
		return
	}
	r.i += n
}

func (r *wireReader) uint64() uint64 {
	if r.i < len(r.b) && r.b[r.i] < 0x80 {
		r.i++
		return uint64(r.b[r.i-1])
	}
	v, n := protowire.ConsumeVarint(r.b[r.i:])
	if n < 0 {
		r.fail(errMessage)
		return 0
	}
	r.i += n
	return v
}

func (r *wireReader) upTo(limit uint64) uint64 {
	v := r.uint64()
	if v > limit {
		r.fail(errRange)
		return 0
	}
	return v
}

func (r *wireReader) uint32() uint32 { return uint32(r.upTo(math.MaxUint32)) }

func (r *wireReader) uint8() uint8 { return uint8(r.upTo(math.MaxUint8)) }

func (r *wireReader) bool() bool { return r.uint64() != 0 }

// octets returns a part of what is read, nil for none.
func (r *wireReader) octets() []byte {
	n := r.uint64()
	if n > uint64(len(r.b)-r.i) {
		r.fail(errMessage)
	}
	if r.err != nil || n == 0 {
		return nil
	}
	r.i += int(n)
	return r.b[r.i-int(n) : r.i : r.i]
}

// copied is octets of the caller's own.
func (r *wireReader) copied() []byte { return bytes.Clone(r.octets()) }

func (r *wireReader) string() string {
	n := len(r.octets())
	if n == 0 {
		return ""
	}
	if r.text == "" {
		r.text = string(r.all)
	}
	return r.text[r.i-n : r.i]
}

// repeats returns how often the present field follows itself without another
// between, at least 1: how much room its values need. It does not move r, and
// what it returns is less than the octets that are left.
func (r *wireReader) repeats() int {
	n := 1
	for b := r.b[r.i:]; ; n++ {
		_, size := protowire.ConsumeBytes(b)
		if size < 0 {
			return n
		}
		tag, tagSize := protowire.ConsumeVarint(b[size:])
		if tagSize < 0 || tag != r.tag {
			return n
		}
		b = b[size+tagSize:]
	}
}

// enter goes into the message that is the present value; leave, with what
// enter returned, goes out of it.
func (r *wireReader) enter() (end int) {
	n := r.uint64()
	if n > uint64(len(r.b)-r.i) {
		r.fail(errMessage)
		n = 0
	}
	end = len(r.b)
	r.b = r.b[:r.i+int(n)]
	return end
}

func (r *wireReader) leave(end int) { r.b = r.all[:end] }
