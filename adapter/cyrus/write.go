package cyrus

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/rookery-mail/rookery/directory"
)

// Writer writes a dump as ctl_mboxlist -d prints it, octet for octet. It is for
// one goroutine.
type Writer struct {
	w      *bufio.Writer
	format Format
	buf    []byte
	acl    []aclPair
	some   bool // a record was written
}

type aclPair struct{ identifier, rights string }

// NewWriter returns a writer of a dump of that format to w. The dump is whole
// only after Close.
func NewWriter(w io.Writer, format Format) (*Writer, error) {
	dw := &Writer{w: bufio.NewWriterSize(w, windowSize), format: format}
	switch format {
	case JSON:
		_, err := dw.w.WriteString("{\n")
		return dw, err
	case Text:
		return dw, nil
	}
	return nil, fmt.Errorf("cyrus: no dump format %v", format)
}

// Write adds a record. Cyrus writes them in the order of CompareNames, Text in
// the order of the octets, and takes any. A fact needs its UniqueID for
// ctl_mboxlist -u to take it back; see the package comment.
//
// Errors: a *RefusedError if the format cannot hold this record; nothing of it
// is written then, and others can be. Any other is the output's.
func (w *Writer) Write(r *Record) error {
	w.buf = w.buf[:0]
	var err error
	if w.format == JSON {
		err = w.json(r)
	} else {
		err = w.text(r)
	}
	if err != nil {
		return refuse(r.Place, string(r.Name), err)
	}
	_, err = w.w.Write(w.buf)
	w.some = true
	return err
}

// Close ends the dump. It does not close what NewWriter was given.
func (w *Writer) Close() error {
	if w.format == JSON {
		w.w.WriteString("\n}\n") // an error stays with w.w
	}
	return w.w.Flush()
}

func (w *Writer) text(r *Record) error {
	n, err := textType(r.Type, r.Flags)
	if err != nil {
		return err
	}
	server, partition := r.location()
	if strings.ContainsAny(string(r.Name), "\t\r\n\x00") || strings.ContainsAny(server+partition, " \t\r\n\x00") || strings.ContainsAny(r.ACL, "\r\n\x00") {
		return errors.New("control octets that a text dump cannot hold")
	}
	b := append(w.buf, r.Name...)
	b = append(b, '\t')
	b = strconv.AppendUint(b, uint64(n), 10)
	b = append(b, ' ')
	if server != "" {
		b = append(append(b, server...), '!')
	}
	b = append(append(b, partition...), ' ')
	b = append(append(b, r.ACL...), '\n')
	w.buf = b
	return nil
}

// location is what stands in r's fields server and partition: where it is, or
// where it is going.
func (r *Record) location() (server, partition string) {
	if r.MovingTo != "" {
		server, partition, _ = strings.Cut(r.MovingTo, "!")
		return server, partition
	}
	return string(r.Server), r.Partition
}

func (w *Writer) json(r *Record) error {
	if err := w.splitACL(r.ACL); err != nil {
		return err
	}
	server, partition := r.location()
	for _, s := range []string{string(r.Name), server, partition, r.ACL, r.UniqueID, r.SpecialUse} {
		if !utf8.ValidString(s) {
			return fmt.Errorf("%.100q is not UTF-8, and JSON holds nothing else", s)
		}
	}
	b := w.buf
	if w.some {
		b = append(b, ",\n"...)
	}
	b = appendString(b, string(r.Name))
	b = append(b, ": {"...)
	b = appendString(append(b, `"name": `...), string(r.Name))
	b = strconv.AppendInt(append(b, `, "mtime": "`...), r.MTime, 10)
	b = strconv.AppendUint(append(b, `", "uidvalidity": "`...), uint64(r.UIDValidity), 10)
	b = strconv.AppendUint(append(b, `", "createdmodseq": "`...), r.CreatedModSeq, 10)
	b = strconv.AppendUint(append(b, `", "foldermodseq": "`...), r.FolderModSeq, 10)
	b = appendType(append(b, `", "mbtype": "`...), r.Type, r.Flags)
	b = append(b, '"')
	// ctl_mboxlist -u takes no record without a partition, though an empty one.
	if partition != "" || r.HasPartition || r.Kind() != Skipped {
		b = appendString(append(b, `, "partition": `...), partition)
	}
	if server != "" {
		b = appendString(append(b, `, "server": `...), server)
	}
	b = append(b, `, "acl": {`...)
	for i, e := range w.acl {
		if i > 0 {
			b = append(b, ", "...)
		}
		b = append(appendString(b, e.identifier), ": "...)
		b = appendString(b, e.rights)
	}
	b = append(b, '}')
	if r.UniqueID != "" {
		b = appendString(append(b, `, "uniqueid": `...), r.UniqueID)
	}
	if r.SpecialUse != "" {
		b = appendString(append(b, `, "legacy_specialuse": `...), r.SpecialUse)
	}
	w.buf = append(b, `, "name_history": []}`...)
	return nil
}

// splitACL takes an ACL apart into w.acl. Where an identifier stands in it
// twice, as no JSON object has it, what its entries grant is put together:
// that is what they mean.
func (w *Writer) splitACL(acl string) error {
	w.acl = w.acl[:0]
	if err := directory.CheckACL(acl); err != nil {
		return err
	}
next:
	for acl != "" {
		var e aclPair
		e.identifier, acl, _ = strings.Cut(acl, "\t")
		e.rights, acl, _ = strings.Cut(acl, "\t")
		for i := range w.acl {
			if w.acl[i].identifier != e.identifier {
				continue
			}
			for _, c := range e.rights {
				if !strings.ContainsRune(w.acl[i].rights, c) {
					w.acl[i].rights += string(c)
				}
			}
			continue next
		}
		w.acl = append(w.acl, e)
	}
	return nil
}

// appendString writes s as Cyrus does: it escapes what JSON must have escaped
// and leaves the rest, a slash and 8-bit text too, as it is.
func appendString(b []byte, s string) []byte {
	b = append(b, '"')
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c >= ' ':
			b = append(b, c)
		case c == '\b':
			b = append(b, `\b`...)
		case c == '\f':
			b = append(b, `\f`...)
		case c == '\n':
			b = append(b, `\n`...)
		case c == '\r':
			b = append(b, `\r`...)
		case c == '\t':
			b = append(b, `\t`...)
		default:
			b = fmt.Appendf(b, `\u%04X`, c)
		}
	}
	return append(b, '"')
}
