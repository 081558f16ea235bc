package mutants

import (
	"fmt"
	"os/exec"
	"testing"
)

// TestApply plants every mutant in the tree as it is, and compiles them. Most of
// them change places that do not touch, so they are compiled together; if that
// fails, each of them alone, to name the one that does not.
func TestApply(t *testing.T) {
	all, err := readMutants()
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 60 {
		t.Fatalf("%d mutants, want 60 and more", len(all))
	}
	type group struct {
		o       overlay
		mutants []*mutant
	}
	var groups []*group
	for _, m := range all {
		if err := (overlay{}).plant(m); err != nil {
			t.Error(err)
			continue
		}
		placed := false
		for _, g := range groups {
			if placed = g.o.plant(m) == nil; placed {
				g.mutants = append(g.mutants, m)
				break
			}
		}
		if !placed {
			g := &group{overlay{}, []*mutant{m}}
			if err := g.o.plant(m); err != nil {
				t.Fatal(err)
			}
			groups = append(groups, g)
		}
	}
	for _, g := range groups {
		if err := compile(t, g.o); err != nil {
			blame(t, g.mutants, err)
		}
	}
}

// blame finds which of some mutants do not compile, by halves.
func blame(t *testing.T, some []*mutant, err error) (found bool) {
	t.Helper()
	if len(some) == 1 {
		t.Errorf("mutant %s does not compile: %v", some[0].name, err)
		return true
	}
	for _, half := range [][]*mutant{some[:len(some)/2], some[len(some)/2:]} {
		o := overlay{}
		for _, m := range half {
			if err := o.plant(m); err != nil {
				t.Fatal(err)
			}
		}
		if err := compile(t, o); err != nil {
			found = blame(t, half, err) || found
		}
	}
	if !found {
		// Each half compiles: one uses up what the other needs, as the last use of
		// an import. That is no fault of theirs.
		t.Logf("%d mutants compile apart and not together: %v", len(some), err)
	}
	return found
}

func compile(t *testing.T, o overlay) error {
	t.Helper()
	list, err := o.write(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("go", append([]string{"build", "-overlay", list}, o.packages()...)...)
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	return nil
}
