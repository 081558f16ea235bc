package archtest

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
)

// A Package is one directory of Go files.
type Package struct {
	// Path is the directory below the module's root, "." for the root itself.
	Path string
	// Files are in the order of their names: those of every build tag and
	// platform, tests included.
	Files []File
}

// A File is one parsed source file.
type File struct {
	Name      string // base name
	Test      bool   // *_test.go
	Generated bool   // carries the standard "Code generated" line
	AST       *ast.File
	fset      *token.FileSet
}

// imports returns the import paths of f in the order they are written.
func (f File) imports() []string {
	paths := make([]string, 0, len(f.AST.Imports))
	for _, spec := range f.AST.Imports {
		p, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			continue // the parser accepted it, so it is a Go string
		}
		paths = append(paths, p)
	}
	return paths
}

// at renders a place in f of package p as people and editors write it.
func (f File) at(p Package, pos token.Pos) string {
	return fmt.Sprintf("%s:%d", path.Join(p.Path, f.Name), f.fset.Position(pos).Line)
}

// Load parses the Go files of the module whose root is fsys. It returns the
// packages in the order of their paths. It leaves out what the go command
// leaves out: testdata, directories that begin with a dot or an underscore, and
// nested modules.
func Load(fsys fs.FS) ([]Package, error) {
	byDir := map[string][]File{}
	fset := token.NewFileSet()
	err := fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			return enter(fsys, name)
		}
		base := path.Base(name)
		if path.Ext(base) != ".go" || strings.HasPrefix(base, ".") || strings.HasPrefix(base, "_") {
			return nil
		}
		src, err := fs.ReadFile(fsys, name)
		if err != nil {
			return err
		}
		parsed, err := parser.ParseFile(fset, name, src, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		dir := path.Dir(name)
		byDir[dir] = append(byDir[dir], File{
			Name:      base,
			Test:      strings.HasSuffix(base, "_test.go"),
			Generated: ast.IsGenerated(parsed),
			AST:       parsed,
			fset:      fset,
		})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("archtest: load: %w", err)
	}

	packages := make([]Package, 0, len(byDir))
	for dir, files := range byDir {
		packages = append(packages, Package{Path: dir, Files: files})
	}
	slices.SortFunc(packages, func(a, b Package) int { return strings.Compare(a.Path, b.Path) })
	return packages, nil
}

// enter returns fs.SkipDir for a directory that holds no packages of this
// module.
func enter(fsys fs.FS, dir string) error {
	if dir == "." {
		return nil
	}
	base := path.Base(dir)
	if base == "testdata" || strings.HasPrefix(base, ".") || strings.HasPrefix(base, "_") {
		return fs.SkipDir
	}
	if _, err := fs.Stat(fsys, path.Join(dir, "go.mod")); err == nil {
		return fs.SkipDir
	}
	return nil
}
