package mirror

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/rookery-mail/rookery/adapter/mupdate"
	"github.com/rookery-mail/rookery/adapter/mupdate/mupdateclient"
	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
)

// Record is what a side says of a name; nil: that it is not there.
type Record = mupdate.Record

// recordOf reads a master's record.
func recordOf(r mupdateclient.Record) (*Record, error) {
	at, err := directory.ParseLocation(r.Location)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", r.Name, err)
	}
	return &Record{Location: at, ACL: r.ACL, Reserved: r.Kind == mupdateclient.Reserved}, nil
}

// same reports whether master and directory say the same of a name. Where one that
// cannot be had lies is of no use to anybody. A master that was told of a rename has
// no partition.
func same(master, dir *Record) bool {
	switch {
	case master == nil || dir == nil:
		return master == dir
	case master.Reserved || dir.Reserved:
		return master.Reserved == dir.Reserved
	}
	a, b := master.Location, dir.Location
	return a.Backend == b.Backend && (a.Partition == b.Partition || a.Partition == "" || b.Partition == "") && master.ACL == dir.ACL
}

// view is what the directory says of a name. known is false where that it is not there
// is not known.
func view(route *client.Route) (r *Record, known bool) {
	record, there, known := mupdate.Seen(route)
	if !there {
		return nil, known
	}
	return &record, true
}

// differs says in words how the two sides differ.
func differs(master, dir *Record) string {
	switch {
	case dir == nil && master.Reserved:
		return fmt.Sprintf("reserved by the master for %s, not in the directory", master.Location)
	case dir == nil:
		return fmt.Sprintf("at %s, not in the directory", master.Location)
	case master == nil && dir.Reserved:
		return "not at the master, in the directory it cannot be had now"
	case master == nil:
		return fmt.Sprintf("not at the master, in the directory at %s", dir.Location)
	case master.Reserved:
		return fmt.Sprintf("reserved by the master for %s, in the directory at %s", master.Location, dir.Location)
	case dir.Reserved:
		return fmt.Sprintf("at %s, in the directory it cannot be had now", master.Location)
	case master.Location != dir.Location:
		return fmt.Sprintf("at %s, in the directory at %s", master.Location, dir.Location)
	}
	return fmt.Sprintf("at %s with the ACL %q, in the directory %q", master.Location, blanks(master.ACL), blanks(dir.ACL))
}

// blanks is an ACL for people.
func blanks(acl string) string { return strings.ReplaceAll(strings.TrimSuffix(acl, "\t"), "\t", " ") }

// encode puts a name and its record into octets. NUL is in neither.
func encode(name string, r *Record) []byte {
	if r == nil {
		return []byte(name)
	}
	kind := "M"
	if r.Reserved {
		kind = "R"
	}
	return []byte(strings.Join([]string{name, kind, string(r.Location.Backend), r.Location.Partition, r.ACL}, "\x00"))
}

// decode reads what encode wrote.
func decode(b []byte) (name directory.MailboxName, r *Record) {
	f := bytes.Split(b, []byte{0})
	if len(f) != 5 {
		return directory.MailboxName(b), nil
	}
	return directory.MailboxName(f[0]), &Record{
		Reserved: string(f[1]) == "R",
		Location: directory.Location{Backend: directory.BackendName(f[2]), Partition: string(f[3])},
		ACL:      string(f[4]),
	}
}
