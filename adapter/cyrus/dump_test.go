package cyrus

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/rookery-mail/rookery/directory"
)

func readTestdata(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile("../../testdata/cyrus/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// readAll reads a dump to its end. err is nil at a complete end.
func readAll(in io.Reader) (recs []Record, refused []*RefusedError, err error) {
	r := NewReader(in)
	for {
		rec, err := r.Read()
		if e, ok := errors.AsType[*RefusedError](err); ok {
			refused = append(refused, e)
			continue
		}
		if err == io.EOF {
			return recs, refused, nil
		}
		if err != nil {
			return recs, refused, err
		}
		recs = append(recs, rec)
	}
}

func TestRealDumps(t *testing.T) {
	for _, tt := range []struct {
		file           string
		facts, skipped int
		first          Record
	}{
		{"cyrus-3.6.1-be1.json", 112, 7, Record{
			Name: "shared", Partition: "default", HasPartition: true, ACL: "anyone\tlp\t", UniqueID: "ejt4rcn7jbp0gqiqf7qadsc2",
			UIDValidity: 1795386103, Type: 'e', MTime: 1795386102, CreatedModSeq: 1, FolderModSeq: 2, Place: Place{2, 2}}},
		{"cyrus-3.6.1-be2.json", 94, 12, Record{
			Name: "DELETED.user.bob.Junk.6B036AF6", Partition: "default", HasPartition: true,
			ACL:      "bob\tlrswipkxtecdan\tjudy\tlrswipkxtecd\tcyrusadmin\tlrswipkxtecda\t",
			UniqueID: "v3tt1z48gqgx6kfncaslyeh8", UIDValidity: 1795386102, Type: 'e', MTime: 1795386102, CreatedModSeq: 1, FolderModSeq: 4, Place: Place{2, 2}}},
		{"cyrus-3.6.1-frontend.json", 206, 0, Record{
			Name: "DELETED.user.bob.Junk.6B036AF6", Server: "be2.murder.test", HasPartition: true,
			ACL: "bob\tlrswipkxtecdan\tjudy\tlrswipkxtecd\tcyrusadmin\tlrswipkxtecda\t", Type: 'e', Flags: Remote, MTime: 1795386102, Place: Place{2, 2}}},
	} {
		t.Run(tt.file, func(t *testing.T) {
			data := readTestdata(t, tt.file)
			recs, refused, err := readAll(bytes.NewReader(data))
			if err != nil || len(refused) > 0 {
				t.Fatalf("got error %v and refused %v, want neither", err, refused)
			}
			if recs[0] != tt.first {
				t.Errorf("first record:\ngot  %+v\nwant %+v", recs[0], tt.first)
			}
			kinds := map[Kind]int{}
			var out bytes.Buffer
			w, err := NewWriter(&out, JSON)
			if err != nil {
				t.Fatal(err)
			}
			for i := range recs {
				kinds[recs[i].Kind()]++
				if err := w.Write(&recs[i]); err != nil {
					t.Fatal(err)
				}
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			if kinds[Fact] != tt.facts || kinds[Skipped] != tt.skipped || kinds[Deactivated] != 0 {
				t.Errorf("got %v, want %d facts and %d skipped", kinds, tt.facts, tt.skipped)
			}
			if !bytes.Equal(out.Bytes(), data) {
				t.Errorf("written again, the dump differs from octet %d on", diffAt(out.Bytes(), data))
			}
		})
	}
}

func diffAt(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// The frontend's list and those of its backends tell of the same facts.
func TestRealDumpsAgree(t *testing.T) {
	type fact struct {
		server    directory.BackendName
		partition string
		acl       string
	}
	facts := map[directory.MailboxName]fact{}
	for server, file := range map[directory.BackendName]string{
		"be1.murder.test": "cyrus-3.6.1-be1.json", "be2.murder.test": "cyrus-3.6.1-be2.json",
	} {
		recs, _, err := readAll(bytes.NewReader(readTestdata(t, file)))
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range recs {
			if r.Kind() == Fact {
				if f, ok := facts[r.Name]; ok {
					t.Errorf("%s: held by %v and %v", r.Name, f.server, server)
				}
				facts[r.Name] = fact{server, r.Partition, r.ACL}
			}
		}
	}
	recs, _, err := readAll(bytes.NewReader(readTestdata(t, "cyrus-3.6.1-frontend.json")))
	if err != nil {
		t.Fatal(err)
	}
	if len(recs) != len(facts) {
		t.Errorf("the frontend lists %d mailboxes, the backends %d", len(recs), len(facts))
	}
	for _, r := range recs {
		got, want := fact{r.Server, r.Partition, r.ACL}, facts[r.Name]
		if got.partition == "" {
			got.partition = want.partition // MUPDATE did not say
		}
		if got != want {
			t.Errorf("%s: the frontend has %+v, its backend %+v", r.Name, got, want)
		}
	}
}

// jsonOf is a dump with one record, of the fields given.
func jsonOf(fields string) string { return "{\n\"user.ann\": {" + fields + "}\n}\n" }

func TestJSONRecord(t *testing.T) {
	const rest = `"partition": "default", "acl": {"ann": "lrs", "anyone": "p"}`
	plain := Record{Name: "user.ann", Partition: "default", HasPartition: true, ACL: "ann\tlrs\tanyone\tp\t", Type: 'e'}
	with := func(change func(*Record)) Record {
		r := plain
		change(&r)
		return r
	}
	for _, tt := range []struct {
		name   string
		fields string
		want   Record
		kind   Kind
	}{
		{"email", `"mbtype": "e", ` + rest, plain, Fact},
		{"no type letter", `"mbtype": "r", "server": "be1", ` + rest, with(func(r *Record) { r.Server, r.Flags = "be1", Remote }), Fact},
		{"calendar with an old directory", `"mbtype": "cl", ` + rest, with(func(r *Record) { r.Type, r.Flags = 'c', LegacyDirs }), Fact},
		{"sieve", `"mbtype": "f", ` + rest, with(func(r *Record) { r.Type = 'f' }), Fact},
		{"a server without r", `"mbtype": "e", "server": "be1", ` + rest, with(func(r *Record) { r.Server = "be1" }), Fact},
		{"moving, as Cyrus leaves it", `"mbtype": "em", "server": "be2", ` + rest,
			with(func(r *Record) { r.MovingTo, r.Partition, r.HasPartition, r.Flags = "be2!default", "", false, Moving }), Deactivated},
		{"moving without a target", `"mbtype": "em", ` + rest, with(func(r *Record) { r.Flags = Moving }), Deactivated},
		{"moving and remote", `"mbtype": "emr", "server": "be2", ` + rest, with(func(r *Record) { r.Server, r.Flags = "be2", Moving|Remote }), Deactivated},
		{"tombstone with all of a fact", `"mbtype": "ed", ` + rest, with(func(r *Record) { r.Flags = Deleted }), Skipped},
		{"tombstone of a remote, moving", `"mbtype": "edmr", "acl": {}`, Record{Name: "user.ann", Type: 'e', Flags: Deleted | Moving | Remote}, Skipped},
		{"tombstone that could be no fact", `"mbtype": "ed", "partition": "a!b", "acl": {"x": "?"}, "uidvalidity": "x"`,
			Record{Name: "user.ann", Type: 'e', Flags: Deleted, Partition: "a!b", HasPartition: true, ACL: "x\t?\t"}, Skipped},
		{"reserved", `"mbtype": "erz", "server": "be1", ` + rest, with(func(r *Record) { r.Server, r.Flags = "be1", Remote|Reserved }), Skipped},
		{"intermediate", `"mbtype": "ei", "partition": "", "acl": {}`, Record{Name: "user.ann", Type: 'e', Flags: Intermediate, HasPartition: true}, Skipped},
		{"empty ACL and partition", `"mbtype": "e", "partition": "", "acl": {}`, Record{Name: "user.ann", Type: 'e', HasPartition: true}, Fact},
		{"the order of the ACL", `"mbtype": "e", "partition": "default", "acl": {"b": "l", "-a": "r", "a": "", "group:x y": "lr"}`,
			with(func(r *Record) { r.ACL = "b\tl\t-a\tr\ta\t\tgroup:x y\tlr\t" }), Fact},
		{"escapes", `"mbtype": "\u0065", "partition": "default", "acl": {"\"\\\/\u00e9\ud83d\ude00": "l"}`,
			with(func(r *Record) { r.ACL = "\"\\/é😀\tl\t" }), Fact},
		{"unknown fields", `"new": [{"a": [1, -2.5e3, true, false, null, "]"]}, {}, []], "newer": {"acl": {"x": "y"}}, "mbtype": "e", ` + rest, plain, Fact},
		{"numbers as numbers, null as nothing", `"uidvalidity": 7, "uniqueid": null, "mbtype": "e", ` + rest, with(func(r *Record) { r.UIDValidity = 7 }), Fact},
		{"special use", `"legacy_specialuse": "\\Sent", "mbtype": "e", ` + rest, with(func(r *Record) { r.SpecialUse = `\Sent` }), Fact},
		{"any layout", "\r\n\t\"mbtype\"\n:\n\"e\"\n,\n" + rest + "\n", plain, Fact},
		{"a name history", `"name_history": [{"name": "user.old", "mbtype": "e"}], "mbtype": "e", ` + rest, plain, Fact},
	} {
		t.Run(tt.name, func(t *testing.T) {
			recs, refused, err := readAll(strings.NewReader(jsonOf(tt.fields)))
			if err != nil || len(refused) > 0 || len(recs) != 1 {
				t.Fatalf("got %d records, refused %v, error %v; want one record", len(recs), refused, err)
			}
			got := recs[0]
			got.Place = Place{}
			if got != tt.want {
				t.Errorf("got  %+v\nwant %+v", got, tt.want)
			}
			if got.Kind() != tt.kind {
				t.Errorf("got kind %v, want %v", got.Kind(), tt.kind)
			}
			if (got.SkipReason() != "") != (tt.kind == Skipped) {
				t.Errorf("got skip reason %q for kind %v", got.SkipReason(), tt.kind)
			}
		})
	}
}

// Each dump has a good record before and behind the bad one: only the bad one
// is refused, at its place.
func TestJSONRefused(t *testing.T) {
	const good = `{"mbtype": "e", "partition": "default", "acl": {"a": "l"}}`
	const tail = `"partition": "default", "acl": {"a": "l"}}`
	long := strings.Repeat("x", 600)
	for _, tt := range []struct {
		name   string
		entry  string
		reason string
		is     error
	}{
		{"duplicate of the last", `"user.a": ` + good, "stood in the dump before", nil},
		{"empty name", `"": ` + good, "empty", directory.ErrInvalidName},
		{"long name", `"user.` + long + `": ` + good, "605 octets", directory.ErrTooLarge},
		{"empty level", `"user..x": ` + good, "a level is empty", directory.ErrInvalidName},
		{"wrong UTF-7", `"user.x.&Jjo": ` + good, "UTF-7", directory.ErrInvalidName},
		{"control octet", `"user.x\u0007": ` + good, "control octet", directory.ErrInvalidName},
		{"NUL", `"user.x\u0000y": ` + good, "control octet", directory.ErrInvalidName},
		{"two !", `"a.org!b.org!user.x": ` + good, "'!'", directory.ErrInvalidName},
		{"8-bit name", "\"user.\xe9\": " + good, "8-bit", directory.ErrInvalidName},
		{"name is not its key", `"user.x": {"name": "user.y", "mbtype": "e", ` + tail, "differ", nil},
		{"no mbtype", `"user.x": {` + tail, "no mbtype", nil},
		{"empty mbtype", `"user.x": {"mbtype": "", ` + tail, "empty mbtype", nil},
		{"unknown type", `"user.x": {"mbtype": "q", ` + tail, `unknown letter "q"`, nil},
		{"unknown flag", `"user.x": {"mbtype": "edX", ` + tail, `unknown letter "X"`, nil},
		{"two types", `"user.x": {"mbtype": "ec", ` + tail, `unknown letter "c"`, nil},
		{"remote without server", `"user.x": {"mbtype": "er", ` + tail, "none is named", directory.ErrInvalidLocation},
		{"server is no host", `"user.x": {"mbtype": "er", "server": "be 1", ` + tail, "host name", directory.ErrInvalidLocation},
		{"! in the server", `"user.x": {"mbtype": "er", "server": "be1!x", ` + tail, "host name", directory.ErrInvalidLocation},
		{"! in the partition", `"user.x": {"mbtype": "e", "partition": "a!b", "acl": {}}`, "partition", directory.ErrInvalidLocation},
		{"no ACL", `"user.x": {"mbtype": "e", "partition": "default"}`, "there is none", directory.ErrInvalidACL},
		{"ACL is no object", `"user.x": {"mbtype": "e", "acl": "a\tl\t"}`, "no object", nil},
		{"rights are no string", `"user.x": {"mbtype": "e", "acl": {"a": ["l"]}}`, "no string", nil},
		{"rights are null", `"user.x": {"mbtype": "e", "acl": {"a": null}}`, "no string", directory.ErrInvalidACL},
		{"unknown right", `"user.x": {"mbtype": "e", "acl": {"a": "l?"}}`, "no right", directory.ErrInvalidACL},
		{"identifier twice", `"user.x": {"mbtype": "e", "acl": {"a": "l", "b": "l", "a": "r"}}`, "twice", directory.ErrInvalidACL},
		{"TAB in an identifier", `"user.x": {"mbtype": "e", "acl": {"a\tl\tb": "l"}}`, "a TAB", directory.ErrInvalidACL},
		{"TAB in rights", `"user.x": {"mbtype": "e", "acl": {"a": "l\tb\tr"}}`, "a TAB", directory.ErrInvalidACL},
		{"many identifiers", `"user.x": {"mbtype": "e", "acl": {` + manyFields(1001) + `"z": ""}}`, "1000 identifiers", directory.ErrTooLarge},
		{"field twice", `"user.x": {"mbtype": "e", "mbtype": "ed", ` + tail, "twice", nil},
		{"unknown field twice", `"user.x": {"mbtype": "e", "new": 1, "new": 1, ` + tail, "twice", nil},
		{"uidvalidity is no number", `"user.x": {"mbtype": "e", "uidvalidity": "x", ` + tail, "uidvalidity", directory.ErrInvalid},
		{"uidvalidity too large", `"user.x": {"mbtype": "e", "uidvalidity": "4294967296", ` + tail, "32 bits", directory.ErrInvalid},
		{"id with a space", `"user.x": {"mbtype": "e", "uniqueid": "a b", ` + tail, "mailbox id", directory.ErrInvalid},
		{"long id", `"user.x": {"mbtype": "e", "uniqueid": "` + long + `", ` + tail, "mailbox id", directory.ErrTooLarge},
		{"mbtype is true", `"user.x": {"mbtype": true, ` + tail, "no string", nil},
		{"mbtype is an object", `"user.x": {"mbtype": {"a": "b"}, ` + tail, "no string", nil},
		{"record is a string", `"user.x": "e"`, "no object", nil},
		{"record is a list", `"user.x": [{"acl": {}}]`, "no object", nil},
		{"half a surrogate pair", `"user.x": {"mbtype": "e", "acl": {"\ud83d": "l"}}`, "surrogate", nil},
		{"nothing", ``, "nothing where a record should be", nil},
		{"many fields", `"user.x": {` + manyFields(maxFields+1) + tail, "fields", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in := "{\n\"user.a\": " + good + ",\n" + tt.entry + ",\n\"user.z\": " + good + "\n}\n"
			recs, refused, err := readAll(strings.NewReader(in))
			if err != nil {
				t.Fatalf("got error %v, want none", err)
			}
			if len(recs) != 2 || recs[0].Name != "user.a" || recs[1].Name != "user.z" {
				t.Errorf("got %d records, want user.a and user.z", len(recs))
			}
			if len(refused) != 1 {
				t.Fatalf("got refused %v, want one", refused)
			}
			if !strings.Contains(refused[0].Error(), tt.reason) {
				t.Errorf("got reason %q, want one with %q", refused[0], tt.reason)
			}
			if tt.is != nil && !errors.Is(refused[0], tt.is) {
				t.Errorf("got %q, want an error that is %q", refused[0], tt.is)
			}
			want := Place{3, int64(strings.Index(in, ",\n") + 2)}
			if refused[0].Place != want {
				t.Errorf("got place %v, want %v", refused[0].Place, want)
			}
		})
	}
}

// What ctl_mboxlist 3.6.1 prints of a list with names that are not UTF-8, in the
// middle and at the end.
func TestNamesLeftOut(t *testing.T) {
	const record = `"uidvalidity": "2", "mbtype": "e", "partition": "default", "acl": {"a": "l"}, "uniqueid": "i", "name_history": []`
	const in = "{\n\"user.a\": {" + record + "},\n,\n\"user.z\": {" + record + "},\n\n}\n"
	recs, refused, err := readAll(strings.NewReader(in))
	if err != nil || len(recs) != 2 || len(refused) != 2 {
		t.Fatalf("got %d records, refused %v, error %v; want two and two", len(recs), refused, err)
	}
	for i, line := range []int{3, 6} {
		if refused[i].Place.Line != line || refused[i].Name != "" {
			t.Errorf("got %v, want line %d without a name", refused[i], line)
		}
	}
}

func manyFields(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `"f%d": 1, `, i)
	}
	return b.String()
}

// A name is a duplicate wherever the first stood, and whatever became of it.
func TestDuplicateFarAway(t *testing.T) {
	var j, text strings.Builder
	j.WriteString("{\n")
	for i := range 5000 {
		fmt.Fprintf(&j, "\"user.u%d\": {\"mbtype\": \"e\", \"acl\": {}},\n", i)
		fmt.Fprintf(&text, "user.u%d\t0 default \n", i)
	}
	j.WriteString(`"user.u7": {"mbtype": "ed"}}`)
	text.WriteString("user.u7\t16 default \n")
	for _, in := range []string{j.String(), text.String()} {
		recs, refused, err := readAll(strings.NewReader(in))
		if err != nil || len(recs) != 5000 || len(refused) != 1 || refused[0].Name != "user.u7" {
			t.Errorf("got %d records, refused %v, error %v; want 5000, and user.u7 refused", len(recs), refused, err)
		}
	}
}

func TestTextRecord(t *testing.T) {
	plain := Record{Name: "user.ann", Partition: "default", HasPartition: true, ACL: "ann\tlrs\tanyone\tp\t", Type: 'e'}
	with := func(change func(*Record)) Record {
		r := plain
		change(&r)
		return r
	}
	const acl = " default ann\tlrs\tanyone\tp\t"
	for _, tt := range []struct {
		name string
		line string
		want Record
		kind Kind
	}{
		{"local", "0" + acl, plain, Fact},
		{"remote", "1 be1.example.org!default ann\tlrs\tanyone\tp\t", with(func(r *Record) { r.Server, r.Flags = "be1.example.org", Remote }), Fact},
		{"remote, partition unknown", "1 be1! ", Record{Name: "user.ann", Server: "be1", Type: 'e', Flags: Remote}, Fact},
		{"reserved", "3 be1!default ", Record{Name: "user.ann", Server: "be1", Partition: "default", HasPartition: true, Type: 'e', Flags: Remote | Reserved}, Skipped},
		{"news", "4" + acl, with(func(r *Record) { r.Type = 'n' }), Fact},
		{"moving", "8 be2!p2 ann\tlrs\tanyone\tp\t", with(func(r *Record) { r.MovingTo, r.Partition, r.HasPartition, r.Flags = "be2!p2", "", false, Moving }), Deactivated},
		{"deleted", "16" + acl, with(func(r *Record) { r.Flags = Deleted }), Skipped},
		{"deleted, as printf has it", "16 (null) (null)", with(func(r *Record) { r.Flags, r.Partition, r.ACL = Deleted, "(null)", "(null)" }), Skipped},
		{"calendar", "32" + acl, with(func(r *Record) { r.Type = 'c' }), Fact},
		{"address book", "64" + acl, with(func(r *Record) { r.Type = 'a' }), Fact},
		{"collection, remote", "129 be1!default ann\tlrs\tanyone\tp\t", with(func(r *Record) { r.Type, r.Flags, r.Server = 'b', Remote, "be1" }), Fact},
		{"intermediate", "256 default ", Record{Name: "user.ann", Partition: "default", HasPartition: true, Type: 'e', Flags: Intermediate}, Skipped},
		{"submission", "512" + acl, with(func(r *Record) { r.Type = 's' }), Fact},
		{"push", "1024" + acl, with(func(r *Record) { r.Type = 'p' }), Fact},
		{"empty ACL", "0 default ", with(func(r *Record) { r.ACL = "" }), Fact},
		{"spaces in the ACL", "0 default group:a b\tlr\t", with(func(r *Record) { r.ACL = "group:a b\tlr\t" }), Fact},
		{"last TAB missing", "0 default ann\tlrs", with(func(r *Record) { r.ACL = "ann\tlrs" }), Fact},
	} {
		for _, end := range []string{"\n", "\r\n"} {
			t.Run(tt.name, func(t *testing.T) {
				recs, refused, err := readAll(strings.NewReader("user.ann\t" + tt.line + end))
				if err != nil || len(refused) > 0 || len(recs) != 1 {
					t.Fatalf("got %d records, refused %v, error %v; want one record", len(recs), refused, err)
				}
				got := recs[0]
				got.Place = Place{}
				if got != tt.want {
					t.Errorf("got  %+v\nwant %+v", got, tt.want)
				}
				if got.Kind() != tt.kind {
					t.Errorf("got kind %v, want %v", got.Kind(), tt.kind)
				}
			})
		}
	}
}

func TestTextRefused(t *testing.T) {
	for _, tt := range []struct {
		name   string
		line   string
		reason string
		is     error
	}{
		{"duplicate", "user.a\t0 default ", "stood in the dump before", nil},
		{"no TAB", "user.x 0 default a", "no TAB", nil},
		{"no flags", "user.x\tdefault a\tl\t", "no decimal number", nil},
		{"flags in hex", "user.x\t0x1 be1!default a\tl\t", "no decimal number", nil},
		{"negative flags", "user.x\t-1 default a\tl\t", "no decimal number", nil},
		{"huge flags", "user.x\t99999999999 default a\tl\t", "no decimal number", nil},
		{"unknown bit", "user.x\t2048 default a\tl\t", "unknown bits 2048", nil},
		{"two types", "user.x\t96 default a\tl\t", "two mailbox types", nil},
		{"nothing behind the flags", "user.x\t0", "no space", nil},
		{"no ACL", "user.x\t0 default", "no ACL", nil},
		{"remote without server", "user.x\t1 default a\tl\t", "none is named", directory.ErrInvalidLocation},
		{"empty server", "user.x\t1 !default a\tl\t", "no server", directory.ErrInvalidLocation},
		{"two !", "user.x\t1 be1!a!b a\tl\t", "partition", directory.ErrInvalidLocation},
		{"two ! in the name", "a!b!user.x\t0 default a\tl\t", "'!'", directory.ErrInvalidName},
		{"empty name", "\t0 default a\tl\t", "empty", directory.ErrInvalidName},
		{"wrong UTF-7", "user.&\t0 default a\tl\t", "UTF-7", directory.ErrInvalidName},
		{"NUL", "user.x\t0 default a\x00\tl\t", "NUL", nil},
		{"NUL in the name", "user.\x00x\t0 default a\tl\t", "NUL", nil},
		{"CR within", "user.x\t0 default a\rb\tl\t", "", directory.ErrInvalidACL},
		{"ACL cut", "user.x\t0 default a", "", directory.ErrInvalidACL},
		{"long name", "user." + strings.Repeat("x", 500) + "\t0 default ", "505 octets", directory.ErrTooLarge},
		{"long ACL", "user.x\t0 default " + strings.Repeat("a", 70000) + "\tl\t", "", directory.ErrTooLarge},
	} {
		t.Run(tt.name, func(t *testing.T) {
			recs, refused, err := readAll(strings.NewReader("user.a\t0 default a\tl\t\n" + tt.line + "\nuser.z\t0 default a\tl\t\n"))
			if err != nil {
				t.Fatalf("got error %v, want none", err)
			}
			if len(recs) != 2 || recs[0].Name != "user.a" || recs[1].Name != "user.z" {
				t.Errorf("got %d records, want user.a and user.z", len(recs))
			}
			if len(refused) != 1 {
				t.Fatalf("got refused %v, want one", refused)
			}
			if !strings.Contains(refused[0].Error(), tt.reason) {
				t.Errorf("got reason %q, want one with %q", refused[0], tt.reason)
			}
			if tt.is != nil && !errors.Is(refused[0], tt.is) {
				t.Errorf("got %q, want an error that is %q", refused[0], tt.is)
			}
			if want := (Place{2, 22}); refused[0].Place != want {
				t.Errorf("got place %v, want %v", refused[0].Place, want)
			}
		})
	}
}

func TestEmptyDump(t *testing.T) {
	for _, in := range []string{"{}", "{\n\n}\n", "\xef\xbb\xbf{}", "\n {\t}\r\n\n"} {
		if recs, refused, err := readAll(strings.NewReader(in)); err != nil || len(recs)+len(refused) > 0 {
			t.Errorf("%q: got %v, %v, error %v; want nothing at all", in, recs, refused, err)
		}
	}
}

func TestByteOrderMark(t *testing.T) {
	in := "\xef\xbb\xbfuser.a\t0 default a\tl\t\n"
	recs, _, err := readAll(strings.NewReader(in))
	if err != nil || len(recs) != 1 || recs[0].Name != "user.a" || recs[0].Place != (Place{1, 3}) {
		t.Errorf("got %+v, error %v; want user.a", recs, err)
	}
}

// A dump that is cut anywhere is noticed, wherever it can be.
func TestCut(t *testing.T) {
	const whole = `{
"user.a": {"name": "user.a", "mbtype": "e", "uidvalidity": 12, "acl": {"\u0061\\": "l"}, "name_history": [{"x": [true, null]}]},
"user.b": {"mbtype": "ed"}
}`
	for n := 1; n < len(whole); n++ {
		if _, _, err := readAll(strings.NewReader(whole[:n])); !errors.Is(err, ErrTruncated) {
			t.Fatalf("cut to %q: got error %v, want %v", whole[:n], err, ErrTruncated)
		}
	}
	const text = "user.a\t0 default a\tl\t\nuser.b\t1 be1!default b\tl\t\n"
	for n := len("user.a\t0"); n < len(text); n++ {
		_, _, err := readAll(strings.NewReader(text[:n]))
		if atLine := text[n-1] == '\n'; atLine && err != nil || !atLine && !errors.Is(err, ErrTruncated) {
			t.Fatalf("cut to %q: got error %v", text[:n], err)
		}
	}
	data := readTestdata(t, "cyrus-3.6.1-be1.json")
	recs, refused, err := readAll(bytes.NewReader(data[:len(data)/2]))
	if !errors.Is(err, ErrTruncated) || len(refused) > 0 || len(recs) < 50 {
		t.Errorf("half a real dump: got %d records, refused %v, error %v; want over 50 and %v", len(recs), refused, err, ErrTruncated)
	}
}

func TestWrongFormat(t *testing.T) {
	deep := func(open, shut string, n int) string {
		return `{"user.a": {"x": ` + strings.Repeat(open, n) + strings.Repeat(shut, n) + `}}`
	}
	for _, tt := range []struct{ name, in, says string }{
		{"empty", "", "empty"},
		{"blank lines", "\n\r\n", "empty"},
		{"blanks", "  ", `begins "  "`},
		{"binary", "\x7fELF\x02\x01\x01\x00\x00", "binary"},
		{"twoskip", "\xa1\x02\x8b\x0dtwoskip file\x00\x00", "twoskip database, the list itself: dump it with ctl_mboxlist -d"},
		{"gzip", "\x1f\x8b\x08\x00", "gzip"},
		{"XML", "<?xml version=\"1.0\"?>\n<a/>", "XML"},
		{"CSV", "name,server,acl\nuser.a,be1,x\n", `"name,server,acl"`},
		{"TAB-separated", "name\tserver\tacl\n", `a line that begins "name\tserver\tacl"`},
		{"UTF-16", "\xff\xfe{\x00}\x00", "UTF-16"},
		{"JSON list", `[{"name": "user.a"}]`, "JSON array"},
		{"JSON string", `"x"`, "piece of JSON"},
		{"10 MB without a TAB", strings.Repeat("x", 10<<20), "begins"},
		{"no quotes", "{user.a: {}}", `octet "u" where the name`},
		{"no colon", `{"user.a" {}}`, "a colon"},
		{"no comma", `{"user.a": {"mbtype": "ed"} "user.b": {}}`, "a comma"},
		{"no comma in a record", `{"user.a": {"mbtype": "ed" "x": 1}}`, "a comma"},
		{"comma at a record's end", `{"user.a": {"mbtype": "ed",}}`, "a key in quotes"},
		{"comma at a list's end", `{"user.a": {"x": [1,]}}`, "a value"},
		{"wrong bracket", `{"user.a": {"x": [1}}}`, "a comma or a closing bracket"},
		{"more behind", "{}\n{}", "more behind"},
		{"two dumps", `{"a": {"mbtype": "ed"}}{"b": {"mbtype": "ed"}}`, "more behind"},
		{"newline in a string", "{\"user\n.a\": {}}", "octet 0x0a in a string"},
		{"NUL in a string", "{\"user\x00.a\": {}}", "octet 0x00 in a string"},
		{"NUL in the structure", "{\"user.a\": \x00}", "a value"},
		{"wrong escape", `{"user.\q": {"mbtype": "ed"}}`, `an escape \q`},
		{"short \\u", `{"user.\u12": {"mbtype": "ed"}}`, "four hexadecimal"},
		{"word", `{"user.a": {"x": maybe}}`, `"maybe" where a value`},
		{"deep lists", deep("[", "]", 100_000), "nested"},
		{"deep objects", deep(`{"a":`, "}", 100_000), "nested"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := NewReader(strings.NewReader(tt.in))
			var err error
			for err == nil {
				_, err = r.Read()
				if _, ok := errors.AsType[*RefusedError](err); ok {
					err = nil
				}
			}
			if !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("got %v, want %v that says %q", err, ErrFormat, tt.says)
			}
			if _, again := r.Read(); again != err {
				t.Errorf("read again: got %v, want %v again", again, err)
			}
		})
	}
}

// However long a line, a string or a record is, the window stays small, and
// what follows is read.
func TestTenMegabytes(t *testing.T) {
	const big = 10 << 20
	const good = `{"mbtype": "e", "acl": {}}`
	x := strings.Repeat("x", big)
	var idents strings.Builder
	for i := range big / 20 {
		fmt.Fprintf(&idents, `"user%012d": "l", `, i)
	}
	var oneLine strings.Builder
	oneLine.WriteString("{")
	records := 0
	for ; oneLine.Len() < big; records++ {
		fmt.Fprintf(&oneLine, `"user.u%d": %s,`, records, good)
	}
	for _, tt := range []struct {
		name    string
		in      string
		records int
		refused int
	}{
		{"text, ACL", "user.a\t0 default " + x + "\tl\t\nuser.b\t0 default \n", 1, 1},
		{"text, a line behind", "user.a\t0 default \n" + x + "\nuser.b\t0 default \n", 2, 1},
		{"JSON, name", `{"` + x + `": ` + good + `, "user.b": ` + good + `}`, 1, 1},
		{"JSON, field", `{"user.a": {"mbtype": "e", "uniqueid": "` + x + `"}, "user.b": ` + good + `}`, 1, 1},
		{"JSON, key", `{"user.a": {"` + x + `": 1}, "user.b": ` + good + `}`, 1, 1},
		{"JSON, escapes", `{"user.a": {"mbtype": "e", "x": "` + strings.Repeat(`\n`, big/2) + `"}, "user.b": ` + good + `}`, 1, 1},
		{"JSON, ACL", `{"user.a": {"mbtype": "e", "acl": {` + idents.String() + `"z": "l"}}, "user.b": ` + good + `}`, 1, 1},
		{"JSON, white space", `{` + strings.Repeat(" ", big) + `"user.b": ` + good + `}`, 1, 0},
		{"JSON, a whole dump on one line", oneLine.String() + `"user.z": ` + good + `}`, records + 1, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := NewReader(strings.NewReader(tt.in))
			got, refused := 0, 0
			for {
				_, err := r.Read()
				if err == io.EOF {
					break
				}
				if e, ok := errors.AsType[*RefusedError](err); ok {
					refused++
					if !errors.Is(err, directory.ErrTooLarge) || len(e.Error()) > 2000 {
						t.Errorf("got %.2000v, want a short error that is %v", err, directory.ErrTooLarge)
					}
				} else if err != nil {
					t.Fatal(err)
				} else {
					got++
				}
			}
			if got != tt.records || refused != tt.refused {
				t.Errorf("got %d records and %d refused, want %d and %d", got, refused, tt.records, tt.refused)
			}
			if n := cap(r.in.buf) + cap(r.draft.acl); n > 6<<20 {
				t.Errorf("the reader holds %d octets, want far less than the input", n)
			}
		})
	}
}

// What is read does not depend on how the octets arrive.
func TestSmallReads(t *testing.T) {
	data := readTestdata(t, "cyrus-3.6.1-frontend.json")
	want, _, err := readAll(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	got, _, err := readAll(iotest.OneByteReader(bytes.NewReader(data)))
	if err != nil || len(got) != len(want) {
		t.Fatalf("got %d records, error %v; want %d", len(got), err, len(want))
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("got  %+v\nwant %+v", got[i], want[i])
		}
	}
}

func TestReadError(t *testing.T) {
	broken := errors.New("the disk is gone")
	for _, in := range []string{"", "{", `{"user.a": {`, "user.a\t0 default \n", "user.a\t0 def"} {
		_, _, err := readAll(io.MultiReader(strings.NewReader(in), iotest.ErrReader(broken)))
		if !errors.Is(err, broken) || errors.Is(err, ErrTruncated) {
			t.Errorf("%q: got error %v, want %v", in, err, broken)
		}
	}
}

func TestStatement(t *testing.T) {
	backends := Record{Partition: "default", ACL: "a\tl\t", UniqueID: "id", UIDValidity: 7, Type: 'e'}
	st := backends.Statement()
	if st.Partition != "default" || *st.ACL != "a\tl\t" || *st.MailboxID != "id" || *st.UIDValidity != 7 || *st.Type != 'e' || st.SpecialUse != nil {
		t.Errorf("a backend's record: got %+v", st)
	}
	frontends := Record{Server: "be1", Type: 'e', Flags: Remote}
	st = frontends.Statement()
	if st.ACL == nil || *st.ACL != "" || st.MailboxID != nil || st.UIDValidity != nil || st.Type != nil || st.SpecialUse != nil {
		t.Errorf("a frontend's record: got %+v, want an empty ACL stated and no more", st)
	}
}
