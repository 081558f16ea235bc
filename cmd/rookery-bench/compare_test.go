package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"

	"github.com/rookery-mail/rookery/directory/machine"
	"github.com/rookery-mail/rookery/internal/kv"
)

func TestCompareSettings(t *testing.T) {
	s, err := parseCompare([]string{"--population", "20k", "--workload", "batch-assert,assert-*", "--runs", "2", "--etcd", "/x/etcd"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"assert-64", "assert-256", "batch-assert"}; !reflect.DeepEqual(s.workloads, want) {
		t.Errorf("loads %v, want %v: each once, in the order of running", s.workloads, want)
	}
	if s.populations[0] != 20_000 || s.rounds != 2 || s.imports != 2 || s.nodes != 3 || s.target != targetLeader || s.etcd != "/x/etcd" {
		t.Errorf("settings %+v", s)
	}
	for _, args := range []string{
		"--population 20k,1M", "--workload lookup", "--workload assert-64,", "--runs 0", "--nodes 0", "--imports -1", "--duration 0s",
		"--target nobody", "-o xml", "--open -1", "extra", "--no-such-flag",
	} {
		if _, err := parseCompare(strings.Split(args, " "), io.Discard); !errors.Is(err, errUsage) {
			t.Errorf("%s: error %v, want a usage error", args, err)
		}
	}
}

func TestDuels(t *testing.T) {
	for _, d := range duels {
		if !slices.Contains(workloadNames(), d.workload) {
			t.Errorf("%s is no workload", d.workload)
			continue
		}
		w := workloadNamed(d.workload)
		if d.rivals[0].system != systemEtcd || d.rivals[0].op != w.op {
			t.Errorf("%s: the first rival is %+v; want etcd doing the same, for the open loop", d.workload, d.rivals[0])
		}
		for _, r := range d.rivals {
			if (r.system == systemEtcd) != (r.wanted(1_000_000) > 0) || (r.system == systemEtcd) != (r.wanted(10_000_000) > 0) {
				t.Errorf("%s to %s: wanted %v, at 10M %v; want a target of etcd alone", d.workload, r.title(), r.wanted(1_000_000), r.wanted(10_000_000))
			}
		}
	}
	put := duels[0].rivals[0]
	if put.wanted(100_000) != 1.3 || put.wanted(1_000_000) != 1.3 || put.wanted(10_000_000) != 1 {
		t.Errorf("single asserts: wanted %v, %v, %v; want 1.3, 1.3 and 1 at 10M", put.wanted(100_000), put.wanted(1_000_000), put.wanted(10_000_000))
	}
}

// What is put into etcd is a fact's row as the machine writes it: the same key,
// and a value as long as after a million commands.
func TestEtcdRow(t *testing.T) {
	const earlier = 1 + 2 // octets by which the first revisions are shorter than 2,000 and a million
	p, err := newPopulation(2_000, 1)
	if err != nil {
		t.Fatal(err)
	}
	m := machine.New()
	db := kv.NewMemory(m.Buckets()...)
	do := func(op machine.Op) {
		t.Helper()
		tx := db.Begin()
		r, err := m.Do(tx, 100_000, 0, machine.Command{By: "test", Op: op})
		if err != nil || r.Refused != nil {
			t.Fatal(err, r.Refused)
		}
		tx.Commit()
	}
	do(machine.Init{ClusterID: "test", Incarnation: 1, DigestKey: make([]byte, 16)})
	// The servers in this order, so that they have the numbers that keys are made of.
	for s := range servers {
		do(machine.SetBackend{Server: serverName(s), Create: true})
	}
	w := newWork(p)
	var batch machine.Batch
	var facts []fact
	for i := range 100 {
		f := w.changed(i * 19)
		facts = append(facts, f)
		st := f.assert().Statement
		batch.Ops = append(batch.Ops, machine.Assert{Mailbox: f.name, Server: serverName(f.server), Statement: st, Imported: true})
	}
	do(batch)

	r := db.Snapshot()
	for _, f := range facts {
		key, value := appendEtcdKey(nil, f), appendEtcdValue(nil, f)
		row := r.Get(kv.Bucket("mailbox"), key)
		if row == nil {
			t.Fatalf("the machine has no row %q", key)
		}
		if len(row)+earlier != len(value) {
			t.Errorf("%s: a value of %d octets, a row of %d; want %d more\n%q\n%q", f.name, len(value), len(row), earlier, value, row)
		}
		// The same fields up to those numbers.
		if n := bytes.Index(value, []byte{7 << 3, 1}); !bytes.Equal(row[:n+2], value[:n+2]) {
			t.Errorf("%s: the value begins with %q, the row with %q", f.name, value[:n+2], row[:n+2])
		}
	}
}

func TestOctets(t *testing.T) {
	p, err := newPopulation(100_000, 1)
	if err != nil {
		t.Fatal(err)
	}
	o := measureOctets(p)
	if o.Key < 20 || o.Key > 60 || o.Value < 80 || o.Value > 150 {
		t.Errorf("a row of %v + %v octets; want names and ACLs of a real site", o.Key, o.Value)
	}
	if o.Assert <= o.Value || o.Put <= o.Key+o.Value || o.Put > o.Key+o.Value+8 {
		t.Errorf("an assert of %v, a put of %v, a row of %v + %v", o.Assert, o.Put, o.Key, o.Value)
	}
	if again := measureOctets(p); again != o {
		t.Errorf("measured again: %v, then %v", o, again)
	}
}

// An etcd that remembers what it was asked.
type fakeEtcd struct {
	etcdserverpb.UnimplementedKVServer
	mu    sync.Mutex
	puts  []map[string]string // of each call
	order [][]string          // the keys of each, as they came
}

func (f *fakeEtcd) Put(_ context.Context, r *etcdserverpb.PutRequest) (*etcdserverpb.PutResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.puts = append(f.puts, map[string]string{string(r.GetKey()): string(r.GetValue())})
	f.order = append(f.order, []string{string(r.GetKey())})
	return &etcdserverpb.PutResponse{Header: &etcdserverpb.ResponseHeader{Revision: int64(len(f.puts))}}, nil
}

func (f *fakeEtcd) Txn(_ context.Context, r *etcdserverpb.TxnRequest) (*etcdserverpb.TxnResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	puts := map[string]string{}
	var order []string
	for _, op := range r.GetSuccess() {
		put := op.GetRequestPut()
		if _, ok := puts[string(put.GetKey())]; ok {
			return nil, errors.New("etcd takes no key twice")
		}
		puts[string(put.GetKey())] = string(put.GetValue())
		order = append(order, string(put.GetKey()))
	}
	f.puts, f.order = append(f.puts, puts), append(f.order, order)
	return &etcdserverpb.TxnResponse{Succeeded: true, Responses: make([]*etcdserverpb.ResponseOp, len(r.GetSuccess()))}, nil
}

func TestEtcdStub(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	fake, server := new(fakeEtcd), grpc.NewServer()
	etcdserverpb.RegisterKVServer(server, fake)
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	defer func() { server.Stop(); <-served }()

	p, err := newPopulation(2_000, 1)
	if err != nil {
		t.Fatal(err)
	}
	s, err := newEtcdStub([]string{l.Addr().String()}, 2, newWork(p))
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	keys := map[string]bool{}
	for m := range p.mailboxes {
		keys[string(appendEtcdKey(nil, p.fact(m)))] = true
	}
	values := map[string]bool{}
	for _, test := range []struct {
		op    operation
		keys  int
		least int // keys of a call: a server's list may end
	}{{opAssert, 1, 1}, {opBatch, 100, 1}, {opBatchRandom, 100, 100}} {
		do, err := s.caller(workload{op: test.op, keys: test.keys}, 1)
		if err != nil {
			t.Fatal(err)
		}
		fake.puts, fake.order = nil, nil
		for range 3 {
			if err := do(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		for i, call := range fake.puts {
			if len(call) > test.keys || len(call) < test.least {
				t.Fatalf("operation %d put %d keys, want %d to %d", test.op, len(call), test.least, test.keys)
			}
			if inOrder := slices.IsSorted(fake.order[i]); test.keys > 1 && inOrder != (test.op == opBatch) {
				t.Errorf("operation %d put its keys in order: %t", test.op, inOrder)
			}
			for key := range call {
				if !keys[key] {
					t.Fatalf("operation %d put %q, which is no mailbox's", test.op, key)
				}
				if values[call[key]] {
					t.Fatalf("operation %d put a value again", test.op)
				}
				values[call[key]] = true
			}
		}
	}
	if _, err := s.caller(workload{op: opList}, 0); err == nil {
		t.Error("etcd took an operation that it does not have")
	}
}

func TestWritten(t *testing.T) {
	const io = "rchar: 3\nwchar: 4\nread_bytes: 5\nwrite_bytes: 4096\ncancelled_write_bytes: 7\n"
	if got, err := parseWritten([]byte(io)); err != nil || got != 4096 {
		t.Errorf("written %d, error %v; want 4096", got, err)
	}
	if _, err := parseWritten([]byte("rchar: 3\n")); err == nil {
		t.Error("what does not say what was written was read")
	}
}

func TestAtRest(t *testing.T) {
	flat := func(n int, u usage) []usage { return slices.Repeat([]usage{u}, n) }
	enough := int(quietWindow/quietEvery) + 1
	if atRest(flat(enough-1, usage{})) {
		t.Error("at rest before a whole window was seen")
	}
	if !atRest(flat(enough, usage{time.Minute, 1 << 40})) {
		t.Error("not at rest though nothing was done in the window")
	}
	busy := append(flat(enough, usage{}), usage{CPU: time.Second})
	if atRest(busy) {
		t.Error("at rest with a second of processor time in the window")
	}
	if atRest(append(flat(enough, usage{}), usage{Written: quietWrites + 1})) {
		t.Error("at rest while it writes")
	}
	if !atRest(append(busy, flat(enough, usage{CPU: time.Second})...)) {
		t.Error("not at rest though what was done is past")
	}
}

func testComparison() *comparisonReport {
	side := func(name string, keys int, rates ...float64) sideResult {
		return sideResult{Name: name, Keys: keys, figure: figure{InFlight: 64, Rates: rates, Rate: median(rates), Calls: 1000, CallerCPU: 20, ServerCPU: 80}}
	}
	c := &comparisonReport{
		Mailboxes: 1_000_000, Nodes: 3, Target: targetLeader, Etcd: "3.7.3",
		Imports: []importFigure{{systemRookery, 1_000_000, 50, []float64{50, 40, 121}}, {systemEtcd, 1_000_000, 25, []float64{25}}},
		Duels: []duelResult{
			{"assert-64", 1, []sideResult{side(systemRookery, 1, 9000, 10000, 5000), side("etcd put", 1, 6000, 5000, 5000), side(systemEcho, 1, 50000, 50000, 50000)}},
			{"batch-assert", 100, []sideResult{side(systemRookery, 100, 600, 500), side("etcd txn in order", 100, 500, 500)}},
		},
		Systems: []systemResult{{systemRookery, []nodeResult{{"n1", memoryResult{1 << 20, 2 << 20}, 3 << 20, 4 << 20}}}},
	}
	c.Duels[0].Sides[1].AtLeast, c.Duels[1].Sides[1].AtLeast = 1.3, 1.3
	c.Duels[0].Sides[1].ServerCPU = 180
	c.Duels[0].Sides[0].Costs = []nodeCost{{"n1", 2, 3.5, 1 << 20}, {"n2", 1, 2.5, 1 << 19}}
	for _, d := range c.Duels {
		compareSides(d.Sides)
	}
	return c
}

// The ratio is of runs of the same minutes; one in which something happened to
// one side must not make it.
func TestCompareSides(t *testing.T) {
	c := testComparison()
	put := c.Duels[0].Sides[1]
	if want := []float64{1.5, 2, 1}; !reflect.DeepEqual(put.Ratios, want) || put.Ratio != 1.5 || put.Lowest != 1 || put.Highest != 2 {
		t.Errorf("ratios %v, median %v, from %v to %v; want %v, 1.5, 1, 2", put.Ratios, put.Ratio, put.Lowest, put.Highest, want)
	}
	if put.ByCPU != 2 {
		t.Errorf("200 us to 100 us is %v by processor time, want 2", put.ByCPU)
	}
	if first := c.Duels[0].Sides[0]; first.Ratios != nil || first.Ratio != 0 {
		t.Errorf("Rookery is held against itself: %+v", first)
	}
	// Calls of 100 beside calls of one.
	sides := []sideResult{{Keys: 100, figure: figure{Rates: []float64{3}}}, {Keys: 1, figure: figure{Rates: []float64{200}}}}
	if compareSides(sides); sides[1].Ratio != 1.5 {
		t.Errorf("3 calls of 100 to 200 of one is %v, want 1.5", sides[1].Ratio)
	}
}

func TestComparisonVerdicts(t *testing.T) {
	r := &report{Comparison: testComparison()}
	got := map[string]string{}
	for _, v := range r.verdicts() {
		got[v.What] = fmt.Sprint(v.Measured, " ", v.Wanted, " ", v.Passes)
	}
	want := map[string]string{
		"import into 3 nodes":                        "50s <= 2m0s true",
		"assert-64 to etcd put, 3 nodes":             "1.50 >= 1.3 true",
		"batch-assert to etcd txn in order, 3 nodes": "1.10 >= 1.3 false",
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("verdicts %v\nwant %v", got, want)
	}
}

func TestComparisonTables(t *testing.T) {
	r := &report{Comparison: testComparison(), Machine: machineInfo{CPU: "abacus"}}
	r.Verdicts = r.verdicts()
	var b bytes.Buffer
	if err := r.print(&b, "table"); err != nil {
		t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(b.String()) {
		lines = append(lines, strings.Join(strings.Fields(line), " "))
	}
	for _, want := range []string{
		"rookery 50.0 40.0 121.0 50.0 20000",
		"etcd 25.0 25.0 40000",
		"assert-64 rookery 64 9000 10000 5000 9000",
		"assert-64 etcd put 1.50 2.00 1.00 1.50 2.00 1.30",
		"batch-assert rookery 64 60000 50000 55000", // two runs of three
		"batch-assert etcd txn in order 1.20 1.00 1.10 1.00 1.30",
		"assert-64 rookery n1 2 3.5 3.50ms 1 MiB 1049 B",
		"rookery n1 1 MiB 2 MiB 3 MiB 4 MiB",
		"1M batch-assert to etcd txn in order, 3 nodes 1.10 >= 1.3 falls short",
	} {
		if !slices.Contains(lines, want) {
			t.Errorf("no line %q in\n%s", want, b.String())
		}
	}
	// Every line of a table has as many cells as it has headings.
	for _, table := range r.tables() {
		for _, line := range table.lines {
			if len(line) != len(table.headings) {
				t.Errorf("%q has %d cells, the headings are %q", line, len(line), table.headings)
			}
		}
	}
}
