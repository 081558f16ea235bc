package mirror

import (
	"fmt"
	"strings"

	"github.com/rookery-mail/rookery/adapter/mupdate"
	"github.com/rookery-mail/rookery/adapter/mupdate/mupdateclient"
	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
)

// Record is what a side says of a name; nil: that it is not there.
type Record = mupdate.Record

// said is what a master says of a name.
type said struct {
	record *Record // nil: it is not there
	// fault, if it is not empty, is why that cannot be read, or was not said. Nothing is
	// known then, and nothing done.
	fault string
}

// saidOf reads a master's record.
func saidOf(r mupdateclient.Record) said {
	if r.Kind == mupdateclient.Deleted {
		return said{}
	}
	at, err := directory.ParseLocation(r.Location)
	if err == nil {
		_, err = directory.ParseName(r.Name)
	}
	if err != nil {
		return said{fault: "the master's record cannot be read: " + bare(err)}
	}
	return said{record: &Record{Location: at, ACL: r.ACL, Reserved: r.Kind == mupdateclient.Reserved}}
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

// encode puts a name and what is said of it into octets. NUL is in none of it.
func encode(name directory.MailboxName, s said) []byte {
	parts := []string{string(name), s.fault}
	if r := s.record; r != nil {
		kind := "M"
		if r.Reserved {
			kind = "R"
		}
		parts = append(parts, kind, string(r.Location.Backend), r.Location.Partition, r.ACL)
	}
	return []byte(strings.Join(parts, "\x00"))
}

// decode reads what encode wrote.
func decode(b []byte) (name directory.MailboxName, s said) {
	f := strings.Split(string(b), "\x00")
	if len(f) == 6 {
		s.record = &Record{
			Reserved: f[2] == "R",
			Location: directory.Location{Backend: directory.BackendName(f[3]), Partition: f[4]},
			ACL:      f[5],
		}
	}
	s.fault = f[1]
	return directory.MailboxName(f[0]), s
}
