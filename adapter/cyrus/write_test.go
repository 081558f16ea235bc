package cyrus

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/rookery-mail/rookery/directory"
)

// write returns a dump of the records, and what was refused.
func write(t testing.TB, format Format, recs ...Record) (dump string, refused []error) {
	t.Helper()
	var out bytes.Buffer
	w, err := NewWriter(&out, format)
	if err != nil {
		t.Fatal(err)
	}
	for i := range recs {
		if err := w.Write(&recs[i]); err != nil {
			if _, ok := errors.AsType[*RefusedError](err); !ok {
				t.Fatal(err)
			}
			refused = append(refused, err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.String(), refused
}

func TestWriteJSON(t *testing.T) {
	const numbers = `"mtime": "0", "uidvalidity": "0", "createdmodseq": "0", "foldermodseq": "0", `
	for _, tt := range []struct {
		name string
		rec  Record
		want string
	}{
		{"least", Record{Name: "a"}, `"a": {"name": "a", ` + numbers + `"mbtype": "e", "partition": "", "acl": {}, "name_history": []}`},
		{"tombstone", Record{Name: "a", Flags: Deleted}, `"a": {"name": "a", ` + numbers + `"mbtype": "ed", "acl": {}, "name_history": []}`},
		{"all flags", Record{Name: "a", Type: 'c', Flags: Deleted | Moving | Remote | Reserved | Intermediate | LegacyDirs},
			`"a": {"name": "a", ` + numbers + `"mbtype": "cdmrzil", "acl": {}, "name_history": []}`},
		{"moving", Record{Name: "a", MovingTo: "be2!p2", Flags: Moving},
			`"a": {"name": "a", ` + numbers + `"mbtype": "em", "partition": "p2", "server": "be2", "acl": {}, "name_history": []}`},
		{"special use and id", Record{Name: "a", UniqueID: "id", SpecialUse: `\Sent`},
			`"a": {"name": "a", ` + numbers + `"mbtype": "e", "partition": "", "acl": {}, "uniqueid": "id", "legacy_specialuse": "\\Sent", "name_history": []}`},
		{"an identifier twice", Record{Name: "a", ACL: "x\tlr\ty\tl\tx\trs\t-x\ta"},
			`"a": {"name": "a", ` + numbers + `"mbtype": "e", "partition": "", "acl": {"x": "lrs", "y": "l", "-x": "a"}, "name_history": []}`},
		{"escapes", Record{Name: "a", ACL: "\"\\/é\tl\t"},
			`"a": {"name": "a", ` + numbers + `"mbtype": "e", "partition": "", "acl": {"\"\\/é": "l"}, "name_history": []}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, refused := write(t, JSON, tt.rec)
			if want := "{\n" + tt.want + "\n}\n"; got != want || len(refused) > 0 {
				t.Errorf("got  %s, refused %v\nwant %s", got, refused, want)
			}
		})
	}
	if got, _ := write(t, JSON); got != "{\n\n}\n" {
		t.Errorf("an empty list: got %q, want what ctl_mboxlist prints", got)
	}
	if got := string(appendString(nil, "\x01\b\f\n\r\t\x1f\x7f")); got != `"\u0001\b\f\n\r\t\u001F`+"\x7f\"" {
		t.Errorf("control octets: got %s", got)
	}
}

func TestWriteText(t *testing.T) {
	const dump = "user.a\t0 default a\tlrs\tanyone\tp\t\n" +
		"user.b\t1 be1!default \n" +
		"user.c\t8 be2!p2 a\tl\t\n" +
		"user.d\t129 be1! a\tl\t\n"
	recs, refused, err := readAll(strings.NewReader(dump))
	if err != nil || len(refused) > 0 {
		t.Fatal(err, refused)
	}
	if got, refused := write(t, Text, recs...); got != dump || len(refused) > 0 {
		t.Errorf("got  %q, refused %v\nwant %q", got, refused, dump)
	}
	legacy := Record{Name: "a", Partition: "p", Flags: LegacyDirs}
	if got, _ := write(t, Text, legacy); got != "a\t0 p \n" {
		t.Errorf("got %q, want the flag l left out", got)
	}
}

// A record that the format cannot hold is left out whole, and the dump is sound.
func TestWriteRefused(t *testing.T) {
	for _, tt := range []struct {
		format Format
		rec    Record
		reason string
	}{
		{JSON, Record{Name: "a", ACL: "\xe9\tl\t"}, "not UTF-8"},
		{JSON, Record{Name: "a", ACL: "x"}, "ACL"},
		{Text, Record{Name: "a", Type: directory.TypeSieve}, "no mailbox type"},
		{Text, Record{Name: "a\tb"}, "control octets"},
		{Text, Record{Name: "a", Partition: "x y"}, "control octets"},
		{Text, Record{Name: "a", ACL: "x\tl\n"}, "control octets"},
	} {
		ok := []Record{{Name: "user.a"}, {Name: "user.z"}}
		want, _ := write(t, tt.format, ok...)
		got, refused := write(t, tt.format, ok[0], tt.rec, ok[1])
		if len(refused) != 1 || !strings.Contains(refused[0].Error(), tt.reason) {
			t.Errorf("%v %+v: got refused %v, want one with %q", tt.format, tt.rec, refused, tt.reason)
		}
		if got != want {
			t.Errorf("%v %+v: got dump %q, want %q", tt.format, tt.rec, got, want)
		}
	}
	if _, err := NewWriter(nil, 7); err == nil {
		t.Error("an unknown format: got no error")
	}
}

// The frontend's list goes through the text format and comes back the same,
// but for what text does not have.
func TestTextRoundTrip(t *testing.T) {
	recs, _, err := readAll(bytes.NewReader(readTestdata(t, "cyrus-3.6.1-frontend.json")))
	if err != nil {
		t.Fatal(err)
	}
	dump, refused := write(t, Text, recs...)
	if len(refused) > 0 {
		t.Fatal(refused)
	}
	again, refusedThen, err := readAll(strings.NewReader(dump))
	if err != nil || len(refusedThen) > 0 {
		t.Fatal(err, refusedThen)
	}
	for _, list := range [][]Record{recs, again} {
		for i := range list {
			list[i].MTime, list[i].Place, list[i].HasPartition = 0, Place{}, false
		}
	}
	if !slices.Equal(again, recs) {
		t.Error("the records differ")
	}
}
