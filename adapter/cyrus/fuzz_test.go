package cyrus

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/rookery-mail/rookery/directory"
)

// Whatever the input: the reader ends, reads the same in small pieces, gives
// only facts that package directory takes, and what Writer makes of them reads
// back the same.
func FuzzDump(f *testing.F) {
	f.Add([]byte("{}"))
	f.Add([]byte(`{"user.a": {"name": "user.a", "mbtype": "e", "uidvalidity": "7", "partition": "p", "acl": {"a": "lr", "-b": "l"}, "uniqueid": "i", "name_history": []}}`))
	f.Add([]byte(`{"user.a": {"mbtype": "em", "server": "be2", "partition": "p", "acl": {}}, , "user.b": {"mbtype": "zr"}}`))
	f.Add([]byte(`{"b.org!user.a^b": {"mbtype": "crl", "server": "be2", "acl": {"\u00e9\\\ud83d\ude00": ""}, "x": [1, {"y": null}], "legacy_specialuse": "\\Sent"}}`))
	f.Add([]byte("\xef\xbb\xbfuser.a\t0 default a\tlrs\tanyone\tp\t\r\nuser.b\t1 be1!default \n"))
	f.Add([]byte("user.a\t8 be2!p2 a\tl\t\nuser.a\t16 (null) (null)\n\nuser.c\t96 p a\tl\nuser.d\t0 p a"))
	data := readTestdata(f, "cyrus-3.6.1-be2.json")
	f.Add(data[:2000])
	f.Fuzz(func(t *testing.T, in []byte) {
		recs, refused, err := readAll(bytes.NewReader(in))
		if err != nil && !errors.Is(err, ErrTruncated) && !errors.Is(err, ErrFormat) {
			t.Fatalf("got error %v, want none but the reader's own", err)
		}
		slow, slowRefused, slowErr := readAll(iotest.OneByteReader(bytes.NewReader(in)))
		if len(slow) != len(recs) || len(slowRefused) != len(refused) || (slowErr == nil) != (err == nil) {
			t.Fatalf("octet by octet: got %d records, %v, %v; want %d, %v, %v", len(slow), slowRefused, slowErr, len(recs), refused, err)
		}
		var out bytes.Buffer
		w, err := NewWriter(&out, JSON)
		if err != nil {
			t.Fatal(err)
		}
		var written []Record
		for i, rec := range recs {
			if slow[i] != rec {
				t.Fatalf("octet by octet: got %+v, want %+v", slow[i], rec)
			}
			if rec.Kind() == Skipped {
				continue
			}
			if _, err := directory.ParseName(string(rec.Name)); err != nil {
				t.Fatal(err)
			}
			if _, err := directory.ParseLocation("x!" + rec.Partition); err != nil {
				t.Fatal(err)
			}
			if w.Write(&rec) == nil {
				written = append(written, rec)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		again, refused, err := readAll(&out)
		if err != nil || len(refused) > 0 || len(again) != len(written) {
			t.Fatalf("written and read again: got %d records, refused %v, error %v; want %d", len(again), refused, err, len(written))
		}
		for i, want := range written {
			got := again[i]
			got.Place, got.HasPartition = want.Place, want.HasPartition
			if same, err := sameACL(got.ACL, want.ACL); err != nil || !same {
				t.Fatalf("written and read again: got ACL %q, want %q (%v)", got.ACL, want.ACL, err)
			}
			if got.ACL = want.ACL; got != want {
				t.Fatalf("written and read again:\ngot  %+v\nwant %+v", got, want)
			}
		}
	})
}

// sameACL compares what two ACLs grant and take, entry by entry put together.
func sameACL(a, b string) (bool, error) {
	x, err := directory.ParseACL(a)
	if err != nil {
		return false, err
	}
	y, err := directory.ParseACL(b)
	if err != nil {
		return false, err
	}
	sum := func(acl directory.ACL) map[string]directory.Rights {
		m := map[string]directory.Rights{}
		for _, e := range acl {
			m[e.Written()] |= e.Rights
		}
		return m
	}
	p, q := sum(x), sum(y)
	for id, rights := range p {
		if q[id] != rights {
			return false, nil
		}
	}
	return len(p) == len(q), nil
}

func FuzzSubscriptions(f *testing.F) {
	f.Add("ann", "user.ann\t\nshared.x\t\r\n")
	f.Add("bob", "\x1fVER\x1f\t2\nNINBOX\t\nNINBOXby\x1fa.b\t\nNo.org\x1dteam\t\nN\xff\xff\xff\x89\t\n\t\n")
	f.Add("", "ann\tuser.ann\nzoe@o.org\to.org!team\n\nx\n")
	f.Add("j.doe@o.org", "\x1fVER\x1f\t2\nNINBOX\x1fx\t\n")
	f.Fuzz(func(t *testing.T, user, in string) {
		r := NewSubscriptionList(strings.NewReader(in))
		if user != "" {
			var err error
			if r, err = NewUserSubscriptions(strings.NewReader(in), directory.UserID(user)); err != nil {
				return
			}
		}
		for {
			s, err := r.Read()
			if _, ok := errors.AsType[*RefusedError](err); ok {
				continue
			}
			if err == io.EOF || errors.Is(err, ErrTruncated) || errors.Is(err, ErrFormat) {
				return
			}
			if err != nil {
				t.Fatalf("got error %v, want none but the reader's own", err)
			}
			if _, err := directory.ParseName(string(s.Mailbox)); err != nil {
				t.Fatal(err)
			}
			if _, err := directory.ParseUser(string(s.User)); err != nil {
				t.Fatal(err)
			}
		}
	})
}
