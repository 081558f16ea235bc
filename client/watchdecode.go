package client

import (
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/rookery-mail/rookery/directory"
	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
)

// A listing of a large directory is millions of mailboxes, and each as a generated
// message costs some ten allocations before it is what Watch yields. So watches ask for
// encoded events, and those of mailboxes are read here by field numbers. Everything
// else, and all that a node of an earlier release sends, goes by the generated code.

// A field's tag is its number in api/v1/watch.proto and its kind.
const (
	varint = uint64(protowire.VarintType)
	octets = uint64(protowire.BytesType)
)

// watchEventsOf returns the events of a message.
func watchEventsOf(m *apiv1.WatchResponse, now directory.Incarnation) ([]WatchEvent, error) {
	events := make([]WatchEvent, 0, len(m.GetEvents())+len(m.GetEncodedEvents())/256)
	for _, e := range m.GetEvents() {
		if event := watchEventOf(e, now); event.Kind != 0 { // a release to come may have others
			events = append(events, event)
		}
	}
	err := eachField(m.GetEncodedEvents(), func(tag, _ uint64, body []byte) error {
		if tag != 2<<3|octets { // WatchResponse.events
			return nil
		}
		event, err := decodeEvent(body, now)
		if event.Kind != 0 && err == nil {
			events = append(events, event)
		}
		return err
	})
	return events, err
}

// decodeEvent reads a WatchEvent.
func decodeEvent(b []byte, now directory.Incarnation) (WatchEvent, error) {
	var gone bool
	var mailbox []byte
	other := false
	err := eachField(b, func(tag, v uint64, body []byte) error {
		switch {
		case tag == 1<<3|varint:
			gone = v != 0
		case tag == 2<<3|octets && mailbox == nil:
			mailbox = body
		default:
			other = true
		}
		return nil
	})
	if err != nil {
		return WatchEvent{}, err
	}
	if mailbox == nil || other {
		e := &apiv1.WatchEvent{}
		if err := proto.Unmarshal(b, e); err != nil {
			return WatchEvent{}, fmt.Errorf("%w: %w", errEncoded, err)
		}
		return watchEventOf(e, now), nil
	}
	w, err := decodeMailbox(mailbox, now)
	return WatchEvent{Kind: WatchMailbox, Gone: gone, Mailbox: w}, err
}

// decodeMailbox reads a WatchedMailbox. Its texts are parts of one string.
func decodeMailbox(b []byte, now directory.Incarnation) (*WatchedMailbox, error) {
	out := &WatchedMailbox{}
	text := string(b)
	// cut is a field's body, as a part of text.
	cut := func(body []byte) string {
		at := cap(b) - cap(body)
		return text[at : at+len(body)]
	}
	facts := 0
	err := eachField(b, func(tag, v uint64, body []byte) error {
		switch tag {
		case 1<<3 | octets:
			out.Name = directory.MailboxName(cut(body))
		case 2<<3 | varint:
			out.Home = directory.GroupID(v)
		case 3<<3 | octets:
			facts++
		case 4<<3 | varint:
			out.Outcome = directory.Outcome(v)
		case 5<<3 | varint:
			out.Server = directory.ServerID(v)
		case 6<<3 | varint:
			out.ListedFrom = directory.ServerID(v)
			out.Listed = out.ListedFrom != 0
		case 7<<3 | varint:
			out.Forked = v != 0
		case 8<<3 | octets:
			out.NewName = directory.MailboxName(cut(body))
		case 9<<3 | varint:
			out.RetractedBy = directory.ServerID(v)
		}
		return nil
	})
	if err != nil || facts == 0 {
		return out, err
	}
	out.Facts = make([]directory.Fact, 0, facts)
	return out, eachField(b, func(tag, _ uint64, body []byte) error {
		if tag != 3<<3|octets {
			return nil
		}
		f := directory.Fact{Incarnation: incarnationOf(false, now), Type: typeOf(0)}
		f.Standing-- // as of a standing that is not set
		err := eachField(body, func(tag, v uint64, body []byte) error {
			switch tag {
			case 1<<3 | varint:
				f.Server = directory.ServerID(v)
			case 2<<3 | varint:
				f.State = directory.FactState(v)
			case 3<<3 | varint:
				f.Standing = directory.Standing(apiv1.Standing(v) - 1)
			case 4<<3 | varint:
				f.First = directory.Revision(v)
			case 5<<3 | varint:
				f.Last = directory.Revision(v)
			case 6<<3 | varint:
				f.Incarnation = incarnationOf(v != 0, now)
			case 7<<3 | octets:
				f.Partition = cut(body)
			case 8<<3 | octets:
				f.ACL = cut(body)
			case 9<<3 | octets:
				f.MailboxID = cut(body)
			case 10<<3 | varint:
				f.UIDValidity = uint32(v)
			case 11<<3 | varint:
				f.Type = typeOf(apiv1.MailboxType(v))
			case 12<<3 | octets:
				f.SpecialUse = cut(body)
			}
			return nil
		})
		out.Facts = append(out.Facts, f)
		return err
	})
}

// eachField calls f for each field of a message that is a number or has a body: with
// its tag, and the number or the body. A body's capacity reaches as far as b's.
func eachField(b []byte, f func(tag, v uint64, body []byte) error) error {
	for len(b) > 0 {
		n, kind, size := protowire.ConsumeTag(b)
		if size < 0 {
			return errEncoded
		}
		b = b[size:]
		var v uint64
		var body []byte
		switch kind {
		case protowire.VarintType:
			v, size = protowire.ConsumeVarint(b)
		case protowire.BytesType:
			var length uint64
			length, size = protowire.ConsumeVarint(b)
			if size < 0 || length > uint64(len(b)-size) {
				return errEncoded
			}
			body = b[size : size+int(length)]
			size += int(length)
		default:
			// No field here is of that kind; a release to come may have one.
			if size = protowire.ConsumeFieldValue(n, kind, b); size < 0 {
				return errEncoded
			}
			b = b[size:]
			continue
		}
		if size < 0 {
			return errEncoded
		}
		if err := f(uint64(n)<<3|uint64(kind), v, body); err != nil {
			return err
		}
		b = b[size:]
	}
	return nil
}

// errEncoded: a node sent events that are none.
var errEncoded error = &Error{Message: "client: a node sent events that cannot be read", err: ErrUnavailable}
