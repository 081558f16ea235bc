package machine

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/rookery-mail/rookery/directory"
)

// ErrUnknownCommand: an entry of the log is no command of this release. A
// newer release may have written it, and skipping it would make this node's
// state differ from the others': the node stops.
var ErrUnknownCommand = errors.New("machine: unknown command")

// EncodeCommand returns c as it stands in the log. Equal commands are equal
// octets. It checks nothing: texts go in octet for octet, for the rules to
// refuse. An Op that is none of the value types of command.go, or none, gives
// what DecodeCommand refuses.
func EncodeCommand(c Command) []byte {
	b := make([]byte, 0, 64+len(c.Client)+len(c.By)+opSize(c.Op))
	b = putString(b, 1, c.Client)
	b = putUint(b, 2, c.Sequence)
	b = putString(b, 3, c.By)
	b, at := openMessage(b, 4)
	b = putOp(b, c.Op)
	return closeMessage(b, at)
}

// opOctets returns the operation of an encoded command, its field with it, as
// EncodeCommand writes it at the end; nil of what that has not written. It saves
// encoding the operation again.
func opOctets(command []byte) []byte {
	for b := command; len(b) > 0; {
		num, _, n := protowire.ConsumeField(b)
		switch {
		case n < 0:
			return nil
		case num == 4 && n == len(b):
			return b
		}
		b = b[n:]
	}
	return nil
}

// opSize is about how long op will be, on the large side.
func opSize(op Op) int {
	switch v := op.(type) {
	case Assert:
		n := 48 + len(v.Mailbox) + len(v.Server) + len(v.Statement.Partition)
		for _, s := range []*string{v.Statement.ACL, v.Statement.MailboxID, v.Statement.SpecialUse} {
			if s != nil {
				n += len(*s)
			}
		}
		return n
	case Batch:
		n := 0
		for _, op := range v.Ops {
			n += 8 + opSize(op)
		}
		return n
	}
	return 128
}

// Numbers of the operations in the message Op.
const (
	opInit protowire.Number = iota + 1
	opAssert
	opRetract
	opReserve
	opRelease
	opDeactivate
	opRename
	opSetPrimary
	opSetGroup
	opSetBackend
	opAdmit
	opConfirm
	opRenameBackend
	opSubscribe
	opUnsubscribe
	opSettle
	opHold
	opReleaseHold
	opDecideHeld
	opSetSettings
	opTick
	opBatch
	opRestore
)

const (
	opSetAlarm protowire.Number = 24
	opFinalize protowire.Number = 25
)

// putOp appends the one field of the message Op.
func putOp(b []byte, op Op) []byte {
	var at int
	switch v := op.(type) {
	case Init:
		b, at = openMessage(b, opInit)
		b = putString(b, 1, v.ClusterID)
		b = putUint(b, 2, uint64(v.Incarnation))
		b = putBytes(b, 3, v.DigestKey)
		b = putUint(b, 4, uint64(v.Version))
	case Assert:
		b, at = openMessage(b, opAssert)
		b = putAssert(b, &v)
	case Retract:
		b, at = openMessage(b, opRetract)
		b = putString(b, 1, string(v.Mailbox))
		b = putString(b, 2, string(v.Server))
		b = putUint(b, 3, v.Epoch)
		b = putBool(b, 4, v.Tentative)
		b = putUint(b, 5, uint64(v.Since))
	case Reserve:
		b, at = openMessage(b, opReserve)
		b = putString(b, 1, string(v.Mailbox))
		b = putString(b, 2, string(v.Server))
		b = putString(b, 3, v.Partition)
		b = putUint(b, 4, uint64(v.Grace))
	case Release:
		b, at = openMessage(b, opRelease)
		b = putString(b, 1, string(v.Mailbox))
		b = putString(b, 2, string(v.Server))
		b = putUint(b, 3, uint64(v.Since))
	case Deactivate:
		b, at = openMessage(b, opDeactivate)
		b = putString(b, 1, string(v.Mailbox))
		b = putString(b, 2, string(v.Server))
	case Rename:
		b, at = openMessage(b, opRename)
		b = putString(b, 1, string(v.From))
		b = putString(b, 2, string(v.To))
		b = putBool(b, 3, v.Recursive)
		b = putString(b, 4, string(v.Server))
	case SetPrimary:
		b, at = openMessage(b, opSetPrimary)
		b = putString(b, 1, string(v.Group))
		b = putString(b, 2, string(v.To))
		b = putUint(b, 3, v.Epoch)
		b = putString(b, 4, v.Reason)
		b = putBool(b, 5, v.AcceptMissing)
	case SetGroup:
		b, at = openMessage(b, opSetGroup)
		b = putString(b, 1, string(v.Group))
		for _, m := range v.Members {
			b = putOptionalString(b, 2, string(m))
		}
		b = putUint(b, 3, uint64(v.Mode))
		b = putBool(b, 4, v.AcceptMissing)
	case SetBackend:
		b, at = openMessage(b, opSetBackend)
		b = putSetBackend(b, &v)
	case Admit:
		b, at = openMessage(b, opAdmit)
		b = putString(b, 1, string(v.Server))
	case Confirm:
		b, at = openMessage(b, opConfirm)
		b = putString(b, 1, string(v.Server))
		b = putUint(b, 2, uint64(v.How))
		b = putUint(b, 3, uint64(v.Incarnation))
	case RenameBackend:
		b, at = openMessage(b, opRenameBackend)
		b = putString(b, 1, string(v.From))
		b = putString(b, 2, string(v.To))
	case Subscribe:
		b, at = openMessage(b, opSubscribe)
		b = putString(b, 1, string(v.User))
		b = putString(b, 2, string(v.Mailbox))
	case Unsubscribe:
		b, at = openMessage(b, opUnsubscribe)
		b = putString(b, 1, string(v.User))
		b = putString(b, 2, string(v.Mailbox))
	case Settle:
		b, at = openMessage(b, opSettle)
		b = putString(b, 1, string(v.Mailbox))
		b = putString(b, 2, string(v.Keep))
	case Hold:
		b, at = openMessage(b, opHold)
		b = putUint(b, 1, uint64(v.Kind))
		b = putString(b, 2, v.Key)
		b = putUint(b, 3, uint64(v.For))
		b = putString(b, 4, v.Why)
	case ReleaseHold:
		b, at = openMessage(b, opReleaseHold)
		b = putUint(b, 1, uint64(v.Kind))
		b = putString(b, 2, v.Key)
	case DecideHeld:
		b, at = openMessage(b, opDecideHeld)
		b = putString(b, 1, string(v.Server))
		b = putBool(b, 2, v.Approve)
	case SetSettings:
		b, at = openMessage(b, opSetSettings)
		var inner int
		b, inner = openMessage(b, 1)
		b = putSettings(b, &v.Settings)
		b = closeMessage(b, inner)
	case Tick:
		b, at = openMessage(b, opTick)
	case Batch:
		b, at = openMessage(b, opBatch)
		for _, op := range v.Ops {
			var inner int
			b, inner = openMessage(b, 1)
			b = putOp(b, op)
			b = closeMessage(b, inner)
		}
	case SetAlarm:
		b, at = openMessage(b, opSetAlarm)
		b = putUint(b, 1, uint64(v.Kind))
		b = putString(b, 2, v.Node)
		b = putBool(b, 3, v.On)
		b = putBool(b, 4, v.Voter)
		b = putUint(b, 5, uint64(v.Voters))
		b = putString(b, 6, v.Why)
	case Finalize:
		b, at = openMessage(b, opFinalize)
		b = putUint(b, 1, uint64(v.From))
		b = putUint(b, 2, uint64(v.To))
		b = putString(b, 3, v.Release)
	case Restore:
		b, at = openMessage(b, opRestore)
		b = putString(b, 1, v.ClusterID)
		b = putUint(b, 2, uint64(v.Incarnation))
	default:
		return b
	}
	return closeMessage(b, at)
}

func putAssert(b []byte, v *Assert) []byte {
	st := &v.Statement
	b = putString(b, 1, string(v.Mailbox))
	b = putString(b, 2, string(v.Server))
	b = putString(b, 3, st.Partition)
	if st.ACL != nil {
		b = putOptionalString(b, 4, *st.ACL)
	}
	if st.MailboxID != nil {
		b = putOptionalString(b, 5, *st.MailboxID)
	}
	if st.UIDValidity != nil {
		b = putOptionalUint(b, 6, uint64(*st.UIDValidity))
	}
	if st.Type != nil {
		b = putOptionalUint(b, 7, uint64(*st.Type))
	}
	if st.SpecialUse != nil {
		b = putOptionalString(b, 8, *st.SpecialUse)
	}
	b = putBool(b, 9, v.Imported)
	b = putBool(b, 10, v.Deactivated)
	return putUint(b, 11, uint64(v.Since))
}

func putSetBackend(b []byte, v *SetBackend) []byte {
	b = putString(b, 1, string(v.Server))
	if v.Addresses != nil {
		var at int
		b, at = openMessage(b, 2)
		b = putAddresses(b, 1, *v.Addresses)
		b = closeMessage(b, at)
	}
	if v.Weight != nil {
		b = putOptionalUint(b, 3, uint64(*v.Weight))
	}
	if v.State != nil {
		b = putOptionalUint(b, 4, uint64(*v.State))
	}
	if v.DrainApproved != nil {
		var approved uint64
		if *v.DrainApproved {
			approved = 1
		}
		b = putOptionalUint(b, 5, approved)
	}
	return putBool(b, 6, v.Create)
}

// putOptionalUint and putOptionalString write zero too: it is stated.
func putOptionalUint(b []byte, num protowire.Number, v uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, num, protowire.VarintType), v)
}

func putOptionalString(b []byte, num protowire.Number, s string) []byte {
	return protowire.AppendString(protowire.AppendTag(b, num, protowire.BytesType), s)
}

// DecodeCommand reads what EncodeCommand wrote. The command shares nothing
// with b; its strings share one copy of b, so who keeps one keeps them all.
// Empty lists come back as nil.
//
// Errors: ErrUnknownCommand, for anything of which this release does not
// understand every part: an operation or a field it does not know, a number too
// large for its field, an Init, a Restore, a Finalize, a Tick or a Batch inside a
// Batch, no operation, several, or octets that are no message.
func DecodeCommand(b []byte) (Command, error) {
	r := opReader{wireReader: readWire(b)}
	r.strict = true
	var c Command
	for r.next() {
		switch r.tag {
		case 1<<3 | octets:
			c.Client = r.string()
		case 2<<3 | varint:
			c.Sequence = r.uint64()
		case 3<<3 | octets:
			c.By = r.string()
		case 4<<3 | octets:
			if c.Op != nil {
				r.fail(errSeveralOps)
				break
			}
			c.Op = r.op(false)
		default:
			r.skip()
		}
	}
	if r.err == nil && c.Op == nil {
		r.fail(errNoOp)
	}
	if r.err != nil {
		return Command{}, fmt.Errorf("%w: %w", ErrUnknownCommand, r.err)
	}
	return c, nil
}

var (
	errNoOp       = fmt.Errorf("%w: no operation", errMessage)
	errSeveralOps = fmt.Errorf("%w: several operations in one", errMessage)
)

// opReader reads operations.
type opReader struct {
	wireReader
	ops    int // how many operations of the batch are still to be read
	stated []statedValues
}

// statedValues holds what the pointers of a Statement point to.
type statedValues struct {
	acl, mailboxID, specialUse string
	uidValidity                uint32
	typ                        directory.MailboxType
}

// newStated takes one out of a block, so that a batch of assertions
// does not allocate each. Blocks are bounded, for the rest of the batch may be
// other operations.
func (r *opReader) newStated() *statedValues {
	if len(r.stated) == 0 {
		r.stated = make([]statedValues, min(max(r.ops, 1), 128))
	}
	s := &r.stated[0]
	r.stated = r.stated[1:]
	return s
}

// op reads the message Op that is the present value.
func (r *opReader) op(inBatch bool) (op Op) {
	end := r.enter()
	for r.next() {
		if r.tag&7 != octets {
			r.skip()
			break
		}
		if op != nil {
			r.fail(errSeveralOps)
			break
		}
		num := protowire.Number(r.tag >> 3)
		if inBatch && (num == opInit || num == opRestore || num == opFinalize || num == opTick || num == opBatch) {
			r.fail(errNested)
			break
		}
		inner := r.enter()
		op = r.operation(num)
		r.leave(inner)
	}
	r.leave(end)
	if r.err == nil && op == nil {
		r.fail(errNoOp)
	}
	return op
}

// operation reads the present message as the operation of that number.
func (r *opReader) operation(num protowire.Number) Op {
	switch num {
	case opInit:
		return r.init()
	case opAssert:
		return r.assert()
	case opRetract:
		return r.retract()
	case opReserve:
		return r.reserve()
	case opRelease:
		return r.release()
	case opDeactivate:
		var v Deactivate
		r.strings((*string)(&v.Mailbox), (*string)(&v.Server))
		return v
	case opRename:
		return r.rename()
	case opSetPrimary:
		return r.setPrimary()
	case opSetGroup:
		return r.setGroup()
	case opSetBackend:
		return r.setBackend()
	case opAdmit:
		var v Admit
		r.strings((*string)(&v.Server))
		return v
	case opConfirm:
		return r.confirm()
	case opRenameBackend:
		var v RenameBackend
		r.strings((*string)(&v.From), (*string)(&v.To))
		return v
	case opSubscribe:
		var v Subscribe
		r.strings((*string)(&v.User), (*string)(&v.Mailbox))
		return v
	case opUnsubscribe:
		var v Unsubscribe
		r.strings((*string)(&v.User), (*string)(&v.Mailbox))
		return v
	case opSettle:
		var v Settle
		r.strings((*string)(&v.Mailbox), (*string)(&v.Keep))
		return v
	case opHold:
		return r.hold()
	case opReleaseHold:
		return r.releaseHold()
	case opSetAlarm:
		return r.setAlarm()
	case opDecideHeld:
		return r.decideHeld()
	case opSetSettings:
		return r.setSettings()
	case opTick:
		r.strings()
		return Tick{}
	case opBatch:
		return r.batch()
	case opRestore:
		return r.restore()
	case opFinalize:
		return r.finalize()
	}
	r.fail(fmt.Errorf("%w: unknown operation %d", errMessage, num))
	return nil
}

// strings reads a message whose fields 1, 2 ... are strings, and no others.
func (r *opReader) strings(into ...*string) {
	for r.next() {
		if n := r.tag >> 3; r.tag&7 == octets && n <= uint64(len(into)) {
			*into[n-1] = r.string()
			continue
		}
		r.skip()
	}
}

func (r *opReader) init() (v Init) {
	for r.next() {
		switch r.tag {
		case 1<<3 | octets:
			v.ClusterID = r.string()
		case 2<<3 | varint:
			v.Incarnation = directory.Incarnation(r.uint32())
		case 3<<3 | octets:
			v.DigestKey = r.copied()
		case 4<<3 | varint:
			v.Version = r.uint32()
		default:
			r.skip()
		}
	}
	return v
}

func (r *opReader) restore() (v Restore) {
	for r.next() {
		switch r.tag {
		case 1<<3 | octets:
			v.ClusterID = r.string()
		case 2<<3 | varint:
			v.Incarnation = directory.Incarnation(r.uint32())
		default:
			r.skip()
		}
	}
	return v
}

func (r *opReader) finalize() (v Finalize) {
	for r.next() {
		switch r.tag {
		case 1<<3 | varint:
			v.From = r.uint32()
		case 2<<3 | varint:
			v.To = r.uint32()
		case 3<<3 | octets:
			v.Release = r.string()
		default:
			r.skip()
		}
	}
	return v
}

func (r *opReader) assert() (v Assert) {
	st := &v.Statement
	var s *statedValues
	state := func() *statedValues {
		if s == nil {
			s = r.newStated()
		}
		return s
	}
	for r.next() {
		switch r.tag {
		case 1<<3 | octets:
			v.Mailbox = directory.MailboxName(r.string())
		case 2<<3 | octets:
			v.Server = directory.BackendName(r.string())
		case 3<<3 | octets:
			st.Partition = r.string()
		case 4<<3 | octets:
			st.ACL = &state().acl
			*st.ACL = r.string()
		case 5<<3 | octets:
			st.MailboxID = &state().mailboxID
			*st.MailboxID = r.string()
		case 6<<3 | varint:
			st.UIDValidity = &state().uidValidity
			*st.UIDValidity = r.uint32()
		case 7<<3 | varint:
			st.Type = &state().typ
			*st.Type = directory.MailboxType(r.uint8())
		case 8<<3 | octets:
			st.SpecialUse = &state().specialUse
			*st.SpecialUse = r.string()
		case 9<<3 | varint:
			v.Imported = r.bool()
		case 10<<3 | varint:
			v.Deactivated = r.bool()
		case 11<<3 | varint:
			v.Since = directory.Revision(r.uint64())
		default:
			r.skip()
		}
	}
	return v
}

func (r *opReader) retract() (v Retract) {
	for r.next() {
		switch r.tag {
		case 1<<3 | octets:
			v.Mailbox = directory.MailboxName(r.string())
		case 2<<3 | octets:
			v.Server = directory.BackendName(r.string())
		case 3<<3 | varint:
			v.Epoch = r.uint64()
		case 4<<3 | varint:
			v.Tentative = r.bool()
		case 5<<3 | varint:
			v.Since = directory.Revision(r.uint64())
		default:
			r.skip()
		}
	}
	return v
}

func (r *opReader) reserve() (v Reserve) {
	for r.next() {
		switch r.tag {
		case 1<<3 | octets:
			v.Mailbox = directory.MailboxName(r.string())
		case 2<<3 | octets:
			v.Server = directory.BackendName(r.string())
		case 3<<3 | octets:
			v.Partition = r.string()
		case 4<<3 | varint:
			v.Grace = directory.Time(r.uint64())
		default:
			r.skip()
		}
	}
	return v
}

func (r *opReader) rename() (v Rename) {
	for r.next() {
		switch r.tag {
		case 1<<3 | octets:
			v.From = directory.MailboxName(r.string())
		case 2<<3 | octets:
			v.To = directory.MailboxName(r.string())
		case 3<<3 | varint:
			v.Recursive = r.bool()
		case 4<<3 | octets:
			v.Server = directory.BackendName(r.string())
		default:
			r.skip()
		}
	}
	return v
}

func (r *opReader) setPrimary() (v SetPrimary) {
	for r.next() {
		switch r.tag {
		case 1<<3 | octets:
			v.Group = directory.GroupName(r.string())
		case 2<<3 | octets:
			v.To = directory.BackendName(r.string())
		case 3<<3 | varint:
			v.Epoch = r.uint64()
		case 4<<3 | octets:
			v.Reason = r.string()
		case 5<<3 | varint:
			v.AcceptMissing = r.bool()
		default:
			r.skip()
		}
	}
	return v
}

func (r *opReader) setGroup() (v SetGroup) {
	for r.next() {
		switch r.tag {
		case 1<<3 | octets:
			v.Group = directory.GroupName(r.string())
		case 2<<3 | octets:
			v.Members = append(v.Members, directory.BackendName(r.string()))
		case 3<<3 | varint:
			v.Mode = directory.GroupMode(r.uint8())
		case 4<<3 | varint:
			v.AcceptMissing = r.bool()
		default:
			r.skip()
		}
	}
	return v
}

func (r *opReader) setBackend() (v SetBackend) {
	for r.next() {
		switch r.tag {
		case 1<<3 | octets:
			v.Server = directory.BackendName(r.string())
		case 2<<3 | octets:
			if v.Addresses == nil {
				v.Addresses = new([]directory.Address)
			}
			end := r.enter()
			for r.next() {
				switch r.tag {
				case 1<<3 | octets:
					*v.Addresses = append(*v.Addresses, r.address())
				default:
					r.skip()
				}
			}
			r.leave(end)
		case 3<<3 | varint:
			v.Weight = new(r.uint32())
		case 4<<3 | varint:
			v.State = new(directory.BackendState(r.uint8()))
		case 5<<3 | varint:
			v.DrainApproved = new(r.bool())
		case 6<<3 | varint:
			v.Create = r.bool()
		default:
			r.skip()
		}
	}
	return v
}

func (r *opReader) confirm() (v Confirm) {
	for r.next() {
		switch r.tag {
		case 1<<3 | octets:
			v.Server = directory.BackendName(r.string())
		case 2<<3 | varint:
			v.How = directory.ConfirmedBy(r.uint8())
		case 3<<3 | varint:
			v.Incarnation = directory.Incarnation(r.uint32())
		default:
			r.skip()
		}
	}
	return v
}

func (r *opReader) hold() (v Hold) {
	for r.next() {
		switch r.tag {
		case 1<<3 | varint:
			v.Kind = directory.HoldKind(r.uint8())
		case 2<<3 | octets:
			v.Key = r.string()
		case 3<<3 | varint:
			v.For = directory.Time(r.uint64())
		case 4<<3 | octets:
			v.Why = r.string()
		default:
			r.skip()
		}
	}
	return v
}

func (r *opReader) release() (v Release) {
	for r.next() {
		switch r.tag {
		case 1<<3 | octets:
			v.Mailbox = directory.MailboxName(r.string())
		case 2<<3 | octets:
			v.Server = directory.BackendName(r.string())
		case 3<<3 | varint:
			v.Since = directory.Revision(r.uint64())
		default:
			r.skip()
		}
	}
	return v
}

func (r *opReader) releaseHold() (v ReleaseHold) {
	for r.next() {
		switch r.tag {
		case 1<<3 | varint:
			v.Kind = directory.HoldKind(r.uint8())
		case 2<<3 | octets:
			v.Key = r.string()
		default:
			r.skip()
		}
	}
	return v
}

func (r *opReader) setAlarm() (v SetAlarm) {
	for r.next() {
		switch r.tag {
		case 1<<3 | varint:
			v.Kind = directory.AlarmKind(r.uint8())
		case 2<<3 | octets:
			v.Node = r.string()
		case 3<<3 | varint:
			v.On = r.bool()
		case 4<<3 | varint:
			v.Voter = r.bool()
		case 5<<3 | varint:
			v.Voters = r.uint32()
		case 6<<3 | octets:
			v.Why = r.string()
		default:
			r.skip()
		}
	}
	return v
}

func (r *opReader) decideHeld() (v DecideHeld) {
	for r.next() {
		switch r.tag {
		case 1<<3 | octets:
			v.Server = directory.BackendName(r.string())
		case 2<<3 | varint:
			v.Approve = r.bool()
		default:
			r.skip()
		}
	}
	return v
}

func (r *opReader) setSettings() (v SetSettings) {
	for r.next() {
		switch r.tag {
		case 1<<3 | octets:
			end := r.enter()
			r.settings(&v.Settings)
			r.leave(end)
		default:
			r.skip()
		}
	}
	return v
}

func (r *opReader) batch() (v Batch) {
	for r.next() {
		switch r.tag {
		case 1<<3 | octets:
			if v.Ops == nil {
				r.ops = r.repeats()
				v.Ops = make([]Op, 0, r.ops)
			}
			if op := r.op(true); op != nil {
				v.Ops = append(v.Ops, op)
			}
			r.ops--
		default:
			r.skip()
		}
	}
	return v
}

// EncodeResult returns r for another node, or for who asks again. Equal
// results are equal octets.
func EncodeResult(r Result) []byte {
	return putResult(make([]byte, 0, 32+16*len(r.Items)), &r)
}

// DecodeResult reads what EncodeResult wrote. Refused has the whole text of
// the one that was encoded, and wraps the same sentinel of directory; fields of
// a newer release are skipped. Empty lists come back as nil.
//
// Errors: octets that are no result.
func DecodeResult(b []byte) (Result, error) {
	r := readWire(b)
	var f resultFields
	r.result(&f, false)
	if r.err != nil {
		return Result{}, r.err
	}
	return f.Result(), nil
}
