package archtest

import (
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

// The tree that this test stands in.
func TestHouse(t *testing.T) {
	root := os.DirFS("../..")
	mod, err := fs.ReadFile(root, "go.mod")
	if err != nil || !strings.HasPrefix(string(mod), "module "+modulePath+"\n") {
		t.Fatalf("../../go.mod: error %v; want the module %s", err, modulePath)
	}
	packages, err := Load(root)
	if err != nil {
		t.Fatal(err)
	}
	if i := slices.IndexFunc(packages, func(p Package) bool { return p.Path == "internal/archtest" }); i < 0 {
		t.Fatal("the tree was not found: this package is not in it")
	}
	for _, msg := range Arrows(packages, House) {
		t.Error(msg)
	}
	for _, msg := range Source(packages) {
		t.Error(msg)
	}

	const page = "docs/design/0001-dependencies.md"
	argued, err := fs.ReadFile(root, page)
	if err != nil {
		t.Fatal(err)
	}
	for _, msg := range Dependencies(string(mod), string(argued)) {
		t.Errorf("%s: %s", page, msg)
	}
}

func TestTable(t *testing.T) {
	var names []string
	for _, row := range House {
		if slices.Contains(names, row.From) {
			t.Errorf("two rows for %s", row.From)
		}
		names = append(names, row.From)
		for _, lib := range slices.Concat(row.Libraries, row.TestLibraries) {
			if libraries[lib] == nil {
				t.Errorf("%s: no library is called %s", row.From, lib)
			}
		}
		if covers(row.May, "internal/sim") || covers(row.Tests, "internal/sim") {
			t.Errorf("%s may import internal/sim; nothing may", row.From)
		}
		if row.From != "raftstore/wal" && slices.Contains(row.Libraries, "etcd-wal") {
			t.Errorf("%s may import etcd's WAL; only raftstore/wal may", row.From)
		}
	}
}

func TestArrows(t *testing.T) {
	const own = modulePath + "/"
	imports := func(pkg string, paths ...string) string {
		s := "package " + pkg + "\n"
		for _, p := range paths {
			s += "import _ \"" + p + "\"\n"
		}
		return s
	}
	for _, test := range []struct {
		name string
		file string
		src  string
		want string // the only message, or "" for none
	}{
		{"down", "directory/machine/a.go", imports("machine", own+"directory", own+"internal/kv", "sort"), ""},
		{"up", "directory/machine/a.go", imports("machine", own+"raftstore"),
			"directory/machine -> raftstore: not allowed; directory/machine may import directory, internal/kv, proto/record/v1 (protobuf)"},
		{"replication to domain", "raftstore/a.go", imports("raftstore", own+"directory"),
			"raftstore -> directory: not allowed; raftstore may import raftstore/wal, raftstore/snap, internal/kv (bbolt, prometheus, protobuf, raft, xxhash)"},
		{"library of another row", "raftstore/a.go", imports("raftstore", "go.etcd.io/etcd/server/v3/storage/wal"),
			"raftstore -> go.etcd.io/etcd/server/v3/storage/wal: not allowed; raftstore may import raftstore/wal, raftstore/snap, internal/kv (bbolt, prometheus, protobuf, raft, xxhash)"},
		{"library", "raftstore/wal/a.go", imports("wal", "go.etcd.io/etcd/server/v3/storage/wal/walpb", "go.etcd.io/raft/v3/raftpb"), ""},
		{"the rest of etcd", "raftstore/wal/a.go", imports("wal", "go.etcd.io/etcd/server/v3/etcdserver"),
			"raftstore/wal -> go.etcd.io/etcd/server/v3/etcdserver: not allowed; raftstore/wal may import nothing of this module (etcd-wal, prometheus, protobuf, raft, zap)"},
		{"name that begins alike", "raftstore/wal/a.go", imports("wal", "go.etcd.io/etcd/server/v3/storage/wallet"),
			"raftstore/wal -> go.etcd.io/etcd/server/v3/storage/wallet: not allowed; raftstore/wal may import nothing of this module (etcd-wal, prometheus, protobuf, raft, zap)"},
		{"standard library only", "internal/kv/a.go", imports("kv", "example.org/b"),
			"internal/kv -> example.org/b: not allowed; internal/kv may import the standard library only"},
		{"generated code", "server/statuspage/a.go", imports("statuspage", own+"proto/api/v1"),
			"server/statuspage -> proto/api/v1: not allowed; server/statuspage may import server"},
		{"sim", "server/a.go", imports("server", own+"internal/sim"),
			"server -> internal/sim: not allowed; server may import directory/machine, directory, raftstore, raftstore/snap, proto/api/v1, internal/kv, internal/mtls (grpc, grpc-metrics, prometheus)"},
		{"below a star", "cmd/rookeryd/main.go", imports("main", own+"adapter/mupdate/mupdateclient"), ""},
		{"no row", "internal/shed/a.go", imports("shed", "fmt"),
			"internal/shed stands in no row of internal/archtest/arrows.go: add one that says what it may import"},
		{"I/O in the domain", "directory/a.go", imports("directory", "net/http"),
			"directory -> net/http: not allowed; directory does no I/O and has no clock and no chance"},
		{"addresses are values", "directory/a.go", imports("directory", "net/netip"), ""},
		{"I/O in a test of the domain", "directory/a_test.go", imports("directory", "os"), ""},
		{"test of itself", "directory/a_test.go", imports("directory_test", own+"directory", "github.com/cockroachdb/datadriven"), ""},
		{"test of what is below", "internal/kv/a_test.go", imports("kv_test", own+"internal/kv/kvtest"), ""},
		{"test of more", "client/a_test.go", imports("client_test", own+"server"), ""},
		{"not outside tests", "client/a.go", imports("client", own+"server"),
			"client -> server: not allowed; client may import directory, proto/api/v1 (grpc)"},
		{"test library outside tests", "directory/a.go", imports("directory", "github.com/cockroachdb/datadriven"),
			"directory -> github.com/cockroachdb/datadriven: not allowed; directory may import the standard library only"},
		{"test of too much", "directory/machine/a_test.go", imports("machine", own+"raftstore"),
			"directory/machine -> raftstore: not allowed, even in a_test.go; directory/machine may import directory, internal/kv, proto/record/v1 (protobuf)"},
		{"other platform", "internal/kv/a_windows.go", "//go:build windows\n\n" + imports("kv", own+"server"),
			"internal/kv -> server: not allowed; internal/kv may import the standard library only"},
		{"testdata", "internal/kv/testdata/a.go", imports("kv", own+"server"), ""},
		{"nested module", "internal/tools/a.go", imports("tools", own+"server"), ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			packages, err := Load(fstest.MapFS{
				test.file:               {Data: []byte(test.src)},
				"internal/tools/go.mod": {Data: []byte("module tools\n")},
			})
			if err != nil {
				t.Fatal(err)
			}
			compare(t, Arrows(packages, House), test.want)
		})
	}
}

func TestSource(t *testing.T) {
	for _, test := range []struct {
		name string
		file string
		src  string
		want string // the only message, or "" for none
	}{
		{"sound", "directory/doc.go", "// Package directory is what is true.\npackage directory\n", ""},
		{"no comment", "directory/doc.go", "package directory\n", "directory has no package comment in doc.go"},
		{"comment elsewhere", "server/server.go", "// Package server serves.\npackage server\n",
			"server/server.go:1: a package comment outside doc.go | server has no package comment in doc.go"},
		{"directive is no comment", "server/doc.go", "//go:generate true\npackage server\n", "server has no package comment in doc.go"},
		{"license is no comment", "server/doc.go", "// Copyright.\n\npackage server\n", "server has no package comment in doc.go"},
		{"comment of another", "server/doc.go", "// Package client dials.\npackage server\n",
			`server/doc.go:1: the package comment does not begin with "Package server "`},
		{"program", "cmd/rookeryd/main.go", "// Rookeryd is a node.\npackage main\nimport \"os\"\nfunc main() { os.Exit(1) }\n", ""},
		{"program without comment", "cmd/rookeryd/main.go", "package main\n", "cmd/rookeryd has no package comment in main.go"},
		{"library under cmd", "cmd/flags/doc.go", "// Package flags parses.\npackage flags\n",
			"cmd/flags is a library: under cmd there are only programs, and thin ones"},
		{"program too deep", "cmd/a/b/main.go", "// B.\npackage main\n", "cmd/a/b: a program is one directory, cmd/NAME"},
		{"program elsewhere", "deploy/main.go", "// Deploy.\npackage main\n", "deploy is a program: those are under cmd"},
		{"tests alone", "cmd/script_test.go", "package cmd\n", ""},
		{"mixed goods", "internal/util/doc.go", "// Package util holds.\npackage util\n",
			"internal/util: package util says nothing about what is in it"},
		{"panic", "server/doc.go", "// Package server serves.\npackage server\nfunc f() { panic(1) }\n",
			"server/doc.go:3: panic below cmd: return an error"},
		{"exit", "server/doc.go", "// Package server serves.\npackage server\nimport o \"os\"\nfunc f() { o.Exit(1) }\n",
			"server/doc.go:4: os.Exit below cmd: return an error"},
		{"fatal", "server/doc.go", "// Package server serves.\npackage server\nimport \"log\"\nfunc f() { log.Fatalf(\"\") }\n",
			"server/doc.go:4: log.Fatalf below cmd: return an error"},
		{"panic with a reason", "raftstore/doc.go", "// Package raftstore keeps.\npackage raftstore\nfunc (o *overlay) number() { panic(1) }\n", ""},
		{"panic without a reason", "raftstore/doc.go", "// Package raftstore keeps.\npackage raftstore\nfunc (o *overlay) other() { panic(1) }\n",
			"raftstore/doc.go:3: panic below cmd: return an error"},
		{"method called panic", "server/doc.go", "// Package server serves.\npackage server\nfunc f(x T) { x.panic() }\n", ""},
		{"blank import", "server/doc.go", "// Package server serves.\npackage server\nimport _ \"net/http/pprof\"\n",
			`server/doc.go:3: blank import of "net/http/pprof"`},
		{"embed", "server/doc.go", "// Package server serves.\npackage server\nimport _ \"embed\"\n", ""},
		{"init", "cmd/rookeryd/main.go", "// Rookeryd is a node.\npackage main\nfunc init() {}\n", "cmd/rookeryd/main.go:3: func init"},
		{"method called init", "server/doc.go", "// Package server serves.\npackage server\nfunc (T) init() {}\n", ""},
		{"generated", "proto/api/v1/a.pb.go", "// Code generated by protoc-gen-go. DO NOT EDIT.\n\npackage apiv1\nfunc init() { panic(1) }\n",
			"proto/api/v1 has no package comment in doc.go"},
		{"clock", "directory/machine/doc.go", "// Package machine applies.\npackage machine\nimport \"time\"\nvar now = time.Now\n",
			"directory/machine/doc.go:4: time.Now in directory/machine, which must do the same on every node"},
		{"duration", "directory/machine/doc.go", "// Package machine applies.\npackage machine\nimport \"time\"\nconst d = time.Second\n", ""},
		{"goroutine", "directory/doc.go", "// Package directory is.\npackage directory\nfunc f() { go f() }\n",
			"directory/doc.go:3: a goroutine in directory, which must do the same on every node"},
		{"select", "directory/doc.go", "// Package directory is.\npackage directory\nfunc f() { select {} }\n",
			"directory/doc.go:3: select in directory, which must do the same on every node"},
		{"float", "directory/doc.go", "// Package directory is.\npackage directory\nvar x float64\n",
			"directory/doc.go:3: float64 in directory, which must do the same on every node"},
		{"float literal", "directory/doc.go", "// Package directory is.\npackage directory\nvar x = 0.02\n",
			"directory/doc.go:3: a floating-point number in directory, which must do the same on every node"},
		{"clock elsewhere", "raftstore/doc.go", "// Package raftstore keeps.\npackage raftstore\nimport \"time\"\nvar now = time.Now\n", ""},
		{"skip", "server/a_test.go", "package server\nfunc TestA(t *testing.T) { t.Skipf(\"no tool\") }\n",
			"server/a_test.go:2: t.Skipf: a test that is skipped tests nothing"},
		{"panic in a test", "server/a_test.go", "package server\nfunc init() { panic(1) }\n", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			packages, err := Load(fstest.MapFS{test.file: {Data: []byte(test.src)}})
			if err != nil {
				t.Fatal(err)
			}
			compare(t, Source(packages), test.want)
		})
	}
}

func TestDependencies(t *testing.T) {
	const goMod = `module example.org/m

go 1.26

require example.org/alone v1.0.0

require (
	example.org/argued v1.0.0
	example.org/new/v2 v2.0.0
	example.org/far v1.0.0 // indirect
)

tool example.org/tool
`
	const page = `# Dependencies

| module | where |
|---|---|
| ` + "`example.org/alone` | a, `example.org/b`" + ` |
| ` + "`example.org/argued`" + ` | a |
| ` + "`example.org/far`" + ` | argued for before it is used |
| ` + "`example.org/gone`" + ` | a |
`
	compare(t, Dependencies(goMod, page), "example.org/new/v2 is a direct dependency without an argument"+
		" | example.org/gone is argued for and not a dependency")
}

func TestLoadRefusesWhatDoesNotParse(t *testing.T) {
	_, err := Load(fstest.MapFS{"server/a.go": {Data: []byte("package\n")}})
	if err == nil || !strings.Contains(err.Error(), "server/a.go") {
		t.Errorf("Load of a broken file: got error %v, want one that names it", err)
	}
}

// compare wants the messages in got, joined by " | ", to be want.
func compare(t *testing.T, got []string, want string) {
	t.Helper()
	if joined := strings.Join(got, " | "); joined != want {
		t.Errorf("got messages %q\nwant %q", joined, want)
	}
}
