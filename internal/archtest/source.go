package archtest

import (
	"fmt"
	"go/ast"
	"go/token"
	"slices"
	"strconv"
	"strings"
)

// deterministic are the packages whose code must do the same on every node.
var deterministic = []string{"directory", "directory/machine"}

// Source returns one sentence for each place in packages that breaks a rule of
// the house on how code is written, in the order of packages and files:
//
//   - a package comment in doc.go, of a program in main.go, and only there;
//   - under cmd only programs, each one directory, so that what they do can be
//     tested and used elsewhere;
//   - no blank imports and no func init: mains build things by hand;
//   - below cmd nothing ends the process: failures are returned up to main;
//   - in directory and directory/machine no goroutine, clock, chance or
//     floating-point number;
//   - no package of mixed goods, such as util;
//   - no test that skips: where it would skip, nothing is tested.
//
// Generated files are held to none of it, tests to the last alone.
func Source(packages []Package) []string {
	var broken []string
	for _, p := range packages {
		broken = append(broken, p.layout()...)
		for _, f := range p.Files {
			switch {
			case f.Generated:
			case f.Test:
				broken = append(broken, f.skips(p)...)
			default:
				broken = append(broken, f.habits(p)...)
				broken = append(broken, f.endings(p)...)
				broken = append(broken, f.chances(p)...)
			}
		}
	}
	return broken
}

// layout checks what holds for a package as a whole.
func (p Package) layout() []string {
	i := slices.IndexFunc(p.Files, func(f File) bool { return !f.Test })
	if i < 0 {
		return nil // a directory of tests alone
	}
	name := p.Files[i].AST.Name.Name

	var broken []string
	switch under, ok := strings.CutPrefix(p.Path, "cmd/"); {
	case ok && name != "main":
		broken = append(broken, fmt.Sprintf("%s is a library: under cmd there are only programs, and thin ones", p.Path))
	case ok && strings.Contains(under, "/"):
		broken = append(broken, fmt.Sprintf("%s: a program is one directory, cmd/NAME", p.Path))
	case !ok && name == "main":
		broken = append(broken, fmt.Sprintf("%s is a program: those are under cmd", p.Path))
	}
	if slices.Contains([]string{"util", "utils", "common", "helper", "helpers", "misc", "shared"}, name) {
		broken = append(broken, fmt.Sprintf("%s: package %s says nothing about what is in it", p.Path, name))
	}
	return append(broken, p.comment(name)...)
}

// comment checks that the package comment stands where a reader looks for it.
func (p Package) comment(name string) []string {
	home, begins := "doc.go", "Package "+name+" "
	if name == "main" {
		home, begins = "main.go", ""
	}

	var broken []string
	var found bool
	for _, f := range p.Files {
		if f.Test || f.AST.Doc == nil || f.AST.Doc.Text() == "" {
			continue
		}
		if f.Name != home {
			if !f.Generated {
				broken = append(broken, fmt.Sprintf("%s: a package comment outside %s", f.at(p, f.AST.Doc.Pos()), home))
			}
			continue
		}
		found = true
		if !strings.HasPrefix(f.AST.Doc.Text(), begins) {
			broken = append(broken, fmt.Sprintf("%s: the package comment does not begin with %q", f.at(p, f.AST.Doc.Pos()), begins))
		}
	}
	if !found {
		broken = append(broken, fmt.Sprintf("%s has no package comment in %s", p.Path, home))
	}
	return broken
}

// habits finds blank imports and init functions.
func (f File) habits(p Package) []string {
	var broken []string
	for _, spec := range f.AST.Imports {
		// embed has no names: a directive uses it.
		if spec.Name != nil && spec.Name.Name == "_" && spec.Path.Value != `"embed"` {
			broken = append(broken, fmt.Sprintf("%s: blank import of %s", f.at(p, spec.Pos()), spec.Path.Value))
		}
	}
	for _, decl := range f.AST.Decls {
		if fn, ok := decl.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
			broken = append(broken, fmt.Sprintf("%s: func init", f.at(p, fn.Pos())))
		}
	}
	return broken
}

// panics are the functions that may panic, each with the reason why it cannot
// return an error.
var panics = map[string]string{
	"raftstore raftLogger.Fatal":  "Raft asks for it; the step that runs Raft makes a failure of it",
	"raftstore raftLogger.Fatalf": "as Fatal",
	"raftstore raftLogger.Panic":  "as Fatal",
	"raftstore raftLogger.Panicf": "as Fatal",
	"raftstore overlay.number":    "reads have no errors; a bucket nobody named is our mistake, as an index out of range",
	"internal/kv Snapshot.tree":   "as overlay.number",
	"internal/kv MemoryTx.Put":    "an empty key is our mistake",
	"internal/kv Memory.Begin":    "two writers at once are our mistake",
}

// endings finds what ends the process below cmd.
func (f File) endings(p Package) []string {
	if p.Path == "cmd" || strings.HasPrefix(p.Path, "cmd/") {
		return nil
	}
	var broken []string
	for _, decl := range f.AST.Decls {
		if fn, ok := decl.(*ast.FuncDecl); ok && panics[p.Path+" "+receiver(fn)+fn.Name.Name] != "" {
			continue
		}
		broken = append(broken, f.ends(p, decl)...)
	}
	return broken
}

// receiver names the type of a method, with a dot; "" for a function.
func receiver(fn *ast.FuncDecl) string {
	if fn.Recv == nil || len(fn.Recv.List) == 0 {
		return ""
	}
	t := fn.Recv.List[0].Type
	if star, ok := t.(*ast.StarExpr); ok {
		t = star.X
	}
	if id, ok := t.(*ast.Ident); ok {
		return id.Name + "."
	}
	return ""
}

func (f File) ends(p Package, decl ast.Decl) []string {
	var broken []string
	for node := range ast.Preorder(decl) {
		call, ok := node.(*ast.CallExpr)
		if !ok {
			continue
		}
		if fn, ok := call.Fun.(*ast.Ident); ok && fn.Name == "panic" {
			broken = append(broken, fmt.Sprintf("%s: panic below cmd: return an error", f.at(p, call.Pos())))
			continue
		}
		from, name := f.selected(call.Fun)
		if from == "os" && name == "Exit" || from == "syscall" && name == "Exit" ||
			from == "log" && (strings.HasPrefix(name, "Fatal") || strings.HasPrefix(name, "Panic")) {
			broken = append(broken, fmt.Sprintf("%s: %s.%s below cmd: return an error", f.at(p, call.Pos()), from, name))
		}
	}
	return broken
}

// clocks are the functions of package time that read the clock or wait for it.
var clocks = []string{"After", "AfterFunc", "NewTicker", "NewTimer", "Now", "Since", "Sleep", "Tick", "Until"}

// chances finds what may differ between two nodes that apply the same command.
// (Imports that would are the arrows' matter.)
func (f File) chances(p Package) []string {
	if !slices.Contains(deterministic, p.Path) {
		return nil
	}
	var broken []string
	report := func(node ast.Node, what string) {
		broken = append(broken, fmt.Sprintf("%s: %s in %s, which must do the same on every node", f.at(p, node.Pos()), what, p.Path))
	}
	for node := range ast.Preorder(f.AST) {
		switch n := node.(type) {
		case *ast.GoStmt:
			report(n, "a goroutine")
		case *ast.SelectStmt:
			report(n, "select")
		case *ast.Ident:
			if n.Name == "float32" || n.Name == "float64" {
				report(n, n.Name)
			}
		case *ast.BasicLit:
			if n.Kind == token.FLOAT {
				report(n, "a floating-point number")
			}
		case *ast.SelectorExpr:
			if from, name := f.selected(n); from == "time" && slices.Contains(clocks, name) {
				report(n, "time."+name)
			}
		}
	}
	return broken
}

// skips finds tests that may skip themselves.
func (f File) skips(p Package) []string {
	var broken []string
	for node := range ast.Preorder(f.AST) {
		call, ok := node.(*ast.CallExpr)
		if !ok {
			continue
		}
		if sel, ok := call.Fun.(*ast.SelectorExpr); ok && slices.Contains([]string{"Skip", "Skipf", "SkipNow"}, sel.Sel.Name) {
			if recv, ok := sel.X.(*ast.Ident); ok && slices.Contains([]string{"t", "b", "f", "tb"}, recv.Name) {
				broken = append(broken, fmt.Sprintf("%s: %s.%s: a test that is skipped tests nothing", f.at(p, call.Pos()), recv.Name, sel.Sel.Name))
			}
		}
	}
	return broken
}

// selected returns the import path and the name that expr selects, as in
// os.Exit: "os", "Exit"; two empty strings if expr selects from no import.
func (f File) selected(expr ast.Expr) (from, name string) {
	sel, ok := expr.(*ast.SelectorExpr)
	if !ok {
		return "", ""
	}
	x, ok := sel.X.(*ast.Ident)
	if !ok {
		return "", ""
	}
	for _, spec := range f.AST.Imports {
		imported, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			continue
		}
		local := imported[strings.LastIndexByte(imported, '/')+1:]
		if spec.Name != nil {
			local = spec.Name.Name
		}
		if local == x.Name {
			return imported, sel.Sel.Name
		}
	}
	return "", ""
}
