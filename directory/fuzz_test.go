package directory

import (
	"errors"
	"slices"
	"testing"
)

// A name of a backend, a group or a partition is taken as it stands or refused
// with the sentinel; and a location takes just those.
func FuzzPlaces(f *testing.F) {
	f.Add("be1.example.com", "default")
	f.Add("a..b", "")
	f.Add("", "x!y")
	f.Add("host:143", "p 1")
	f.Fuzz(func(t *testing.T, server, partition string) {
		b, errB := ParseBackend(server)
		g, errG := ParseGroup(server)
		p, errP := ParsePartition(partition)
		if errB == nil && string(b) != server || errG == nil && string(g) != server || errP == nil && p != partition {
			t.Errorf("%q and %q come out as %q, %q and %q", server, partition, b, g, p)
		}
		if (errB == nil) != (errG == nil) {
			t.Errorf("%q: a backend's name: %v; a group's: %v", server, errB, errG)
		}
		for _, err := range []error{errB, errG} {
			if err != nil && !errors.Is(err, ErrInvalidName) {
				t.Errorf("%q: got %v, want ErrInvalidName", server, err)
			}
		}
		if errP != nil && !errors.Is(errP, ErrInvalidLocation) {
			t.Errorf("%q: got %v, want ErrInvalidLocation", partition, errP)
		}
		l, errL := ParseLocation(server + "!" + partition)
		if (errL == nil) != (errB == nil && errP == nil) {
			t.Errorf("%q!%q: got %+v, %v, though the server alone gives %v, the partition %v", server, partition, l, errL, errB, errP)
		}
	})
}

// Who asks: what is taken can be asked of an ACL, names each identifier once, and
// is taken the same again.
func FuzzPrincipal(f *testing.F) {
	f.Add("anna", "staff", "group:staff", false)
	f.Add("anonymous", "", "-x", true)
	f.Add("j.doe@example.org", "a b", "c", false)
	f.Fuzz(func(t *testing.T, user, one, other string, admin bool) {
		p, err := ParsePrincipal(user, []string{one, other}, admin)
		if err != nil {
			if !errors.Is(err, ErrInvalidName) && !errors.Is(err, ErrTooLarge) {
				t.Errorf("got %v, want ErrInvalidName or ErrTooLarge", err)
			}
			return
		}
		again, err := ParsePrincipal(string(p.User), p.Groups, p.Admin)
		if err != nil || again.User != p.User || !slices.Equal(again.Groups, p.Groups) {
			t.Errorf("%+v comes back as %+v, %v", p, again, err)
		}
		seen := map[string]bool{}
		for id := range p.Identifiers() {
			if seen[id] {
				t.Errorf("%+v is %q twice", p, id)
			}
			seen[id] = true
			if !p.Matches(id) {
				t.Errorf("%+v is %q, and an entry for it does not mean them", p, id)
			}
		}
	})
}
