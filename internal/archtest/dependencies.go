package archtest

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Dependencies returns one sentence for each module that goMod requires
// directly and page does not argue for, and one for each that page argues for
// and goMod does not require, in the order of module paths.
//
// page is Markdown; a row of a table that begins with a module path in
// backquotes is an argument.
func Dependencies(goMod, page string) []string {
	direct, all := requirements(goMod)
	argued := map[string]bool{}
	for line := range strings.Lines(page) {
		if row, ok := strings.CutPrefix(line, "| `"); ok {
			module, _, _ := strings.Cut(row, "`")
			argued[module] = true
		}
	}

	var broken []string
	for _, module := range slices.Sorted(maps.Keys(direct)) {
		if !argued[module] {
			broken = append(broken, fmt.Sprintf("%s is a direct dependency without an argument", module))
		}
	}
	for _, module := range slices.Sorted(maps.Keys(argued)) {
		if !all[module] {
			broken = append(broken, fmt.Sprintf("%s is argued for and not a dependency", module))
		}
	}
	return broken
}

// requirements returns the modules that goMod requires: those without the
// comment "indirect", and all.
func requirements(goMod string) (direct, all map[string]bool) {
	direct, all = map[string]bool{}, map[string]bool{}
	inBlock := false
	for line := range strings.Lines(goMod) {
		line = strings.TrimSpace(line)
		switch {
		case line == "require (":
			inBlock = true
			continue
		case line == ")":
			inBlock = false
			continue
		}
		entry, single := strings.CutPrefix(line, "require ")
		fields := strings.Fields(entry)
		if !inBlock && !single || len(fields) < 2 {
			continue
		}
		all[fields[0]] = true
		if !strings.HasSuffix(line, "// indirect") {
			direct[fields[0]] = true
		}
	}
	return direct, all
}
