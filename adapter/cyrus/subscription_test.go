package cyrus

import (
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/rookery-mail/rookery/directory"
)

func readSubscriptions(r *SubscriptionReader) (names []string, refused []*RefusedError, err error) {
	for {
		s, err := r.Read()
		if e, ok := errors.AsType[*RefusedError](err); ok {
			refused = append(refused, e)
			continue
		}
		if err == io.EOF {
			return names, refused, nil
		}
		if err != nil {
			return names, refused, err
		}
		names = append(names, string(s.User)+" "+string(s.Mailbox))
	}
}

func userSubscriptions(t testing.TB, user directory.UserID, in string) *SubscriptionReader {
	t.Helper()
	r, err := NewUserSubscriptions(strings.NewReader(in), user)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestUserSubscriptions(t *testing.T) {
	const version = "\x1fVER\x1f\t2\n"
	for _, tt := range []struct {
		name string
		user directory.UserID
		in   string
		want []string
	}{
		{"none", "ann", "", nil},
		{"none, 3.6", "ann", version, nil},
		{"names", "ann", "Nshared\t\nuser.ann\t\nuser.ann.Sent Items\t\r\nuser.bob.f&AOk-te^x\t\n",
			[]string{"ann Nshared", "ann user.ann", "ann user.ann.Sent Items", "ann user.bob.f&AOk-te^x"}},
		{"keys", "ann", version + "NINBOX\t\nNINBOX\x1fSent.old\t\nNshared\x1fx\t\nNuser\x1fbob\x1fA\t\n",
			[]string{"ann user.ann", "ann user.ann.Sent^old", "ann shared.x", "ann user.bob.A"}},
		{"keys of a user whose name begins another's", "bob", version + "NINBOXby\x1fx\t\n", []string{"bob user.bobby.x"}},
		{"a dot in the user id", "j.doe", version + "NINBOX\x1fx\t\nNuser\x1fa.b\t\n", []string{"j.doe user.j^doe.x", "j.doe user.a^b"}},
		{"domains", "zoe@other.org", version + "NINBOX\x1fBox\t\nNother.org\x1dteam\t\nNuser\x1fann\t\n",
			[]string{"zoe@other.org other.org!user.zoe.Box", "zoe@other.org other.org!team", "zoe@other.org user.ann"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, refused, err := readSubscriptions(userSubscriptions(t, tt.user, tt.in))
			if err != nil || len(refused) > 0 || !slices.Equal(got, tt.want) {
				t.Errorf("got %q, refused %v, error %v\nwant %q", got, refused, err, tt.want)
			}
		})
	}
	if _, err := NewUserSubscriptions(strings.NewReader(""), "a!b"); !errors.Is(err, directory.ErrInvalidName) {
		t.Errorf("user a!b: got error %v, want %v", err, directory.ErrInvalidName)
	}
}

func TestSubscriptionList(t *testing.T) {
	in := "ann\tuser.ann\nann\tshared.x\r\n\nzoe@other.org\tother.org!team\n"
	got, refused, err := readSubscriptions(NewSubscriptionList(strings.NewReader(in)))
	want := []string{"ann user.ann", "ann shared.x", "zoe@other.org other.org!team"}
	if err != nil || len(refused) > 0 || !slices.Equal(got, want) {
		t.Errorf("got %q, refused %v, error %v\nwant %q", got, refused, err, want)
	}
}

func TestSubscriptionRefused(t *testing.T) {
	const version = "\x1fVER\x1f\t2\n"
	list, user := "", "user.a\t\n"
	for _, tt := range []struct {
		name, before, line, reason string
	}{
		{"list: user", list, "a!b\tshared", "user id"},
		{"list: mailbox", list, "ann\tuser..x", "a level is empty"},
		{"list: INBOX", list, "ann\tINBOX.x", "canonical names"},
		{"list: a line of a user's file", list, "user.ann\t", "empty"},
		{"user: no TAB", user, "user.ann", "no TAB"},
		{"user: a line of a list", user, "ann\tshared", "list of user TAB mailbox"},
		{"user: hidden control octet", user, "user.a\xff\x89b\t", "control octet"},
		{"user: inbox", user, "inbox\t", "canonical names"},
		{"user: long line", user, strings.Repeat("x", 10<<20) + "\t", "more than"},
		{"keys: no N", version, "user\x1fx\t", "does not begin with N"},
		{"keys: empty", version, "\t", "does not begin with N"},
		{"keys: ^", version, "Nuser\x1fx^y\t", "octet"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := NewSubscriptionList(strings.NewReader(tt.line + "\nann\tuser.z\n"))
			if tt.before != "" {
				last := "user.z\t\n"
				if tt.before == version {
					last = "Nuser\x1fz\t\n"
				}
				r = userSubscriptions(t, "ann", tt.before+tt.line+"\n"+last)
			}
			got, refused, err := readSubscriptions(r)
			if err != nil || len(refused) != 1 || !strings.Contains(refused[0].Error(), tt.reason) {
				t.Fatalf("got refused %.300v, error %v; want one with %q", refused, err, tt.reason)
			}
			if wantPlace := (Place{1 + strings.Count(tt.before, "\n"), int64(len(tt.before))}); refused[0].Place != wantPlace {
				t.Errorf("got place %v, want %v", refused[0].Place, wantPlace)
			}
			if len(got) == 0 || got[len(got)-1] != "ann user.z" {
				t.Errorf("got %q, want ann user.z at the end", got)
			}
		})
	}
}

func TestSubscriptionFatal(t *testing.T) {
	for _, tt := range []struct {
		name, in, says string
		is             error
	}{
		{"cut", "user.a\t\nuser.b", "ends inside a line", ErrTruncated},
		{"cut behind the TAB", "user.a\t", "ends inside a line", ErrTruncated},
		{"twoskip", "\xa1\x02\x8b\x0dtwoskip file\x00\x00", "cvt_cyrusdb", ErrFormat},
		{"JSON", "{\n\"user.a\": {}}\n", `found a line that begins "{"`, ErrFormat},
		{"binary", strings.Repeat("\x00", 5000), "binary", ErrFormat},
		{"another version", "\x1fVER\x1f\t3\n", "version", ErrFormat},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := userSubscriptions(t, "ann", tt.in)
			_, _, err := readSubscriptions(r)
			if !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("got %v, want %v that says %q", err, tt.is, tt.says)
			}
			if _, again := r.Read(); again != err {
				t.Errorf("read again: got %v, want %v again", again, err)
			}
		})
	}
	broken := errors.New("the disk is gone")
	if _, _, err := readSubscriptions(NewSubscriptionList(iotest.ErrReader(broken))); !errors.Is(err, broken) {
		t.Errorf("got %v, want %v", err, broken)
	}
}

func TestSubscriptionFileUser(t *testing.T) {
	for _, tt := range []struct {
		path string
		want directory.UserID
		ok   bool
	}{
		{"/var/lib/cyrus/user/a/alice.sub", "alice", true},
		{"alice.sub", "alice", true},
		{"user/j/john^doe.sub", "john.doe", true},
		{"user/j/john.doe.sub", "john.doe", true},
		{"/var/lib/cyrus/domain/o/other.org/user/z/zoe.sub", "zoe@other.org", true},
		{"domain/o/other.org/user/z/z^b.sub", "z.b@other.org", true},
		{"/var/lib/cyrus/user/uuid/y/5/y5nc47/sub.db", "", false},
		{"user/a/alice.seen", "", false},
		{"user/a/.sub", "", false},
		{"user/a/anyone.sub", "", false},
	} {
		got, err := SubscriptionFileUser(tt.path)
		if got != tt.want || (err == nil) != tt.ok {
			t.Errorf("%s: got %q, error %v; want %q, success %v", tt.path, got, err, tt.want, tt.ok)
		}
	}
}
