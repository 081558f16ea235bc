package server

import (
	"io"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/rookery-mail/rookery/directory"
	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
)

// compare collects an answer.
func (n *testNode) compare(t testing.TB, req *apiv1.CompareRequest) (first *apiv1.CompareResponse, rows []*apiv1.CompareRow, summary *apiv1.CompareSummary, err error) {
	t.Helper()
	stream, err := apiv1.NewResyncServiceClient(n.conn).Compare(t.Context(), req)
	if err != nil {
		return nil, nil, nil, err
	}
	for {
		m, err := stream.Recv()
		if err == io.EOF {
			return first, rows, summary, nil
		}
		if err != nil {
			return nil, nil, nil, err
		}
		if first == nil {
			first = m
		}
		rows, summary = append(rows, m.GetRows()...), m.GetSummary()
	}
}

func TestResyncMethods(t *testing.T) {
	n := newTestNode(t)
	c := apiv1.NewResyncServiceClient(n.conn)
	n.assert(t, be1, "user.alice", "user.bob")
	n.assert(t, be2, "user.carl")

	totals, err := c.Totals(t.Context(), &apiv1.TotalsRequest{Server: be1})
	if err != nil {
		t.Fatal(err)
	}
	if got := totals.GetTotals(); !got.GetKnown() || got.GetCount() != 2 || len(got.GetFacts()) != 16 || len(got.GetDigestKey()) != directory.DigestKeySize || totals.GetAsOfRevision() != 0 {
		t.Errorf("Totals: got %v", totals)
	}
	token := totals.GetHeader().GetToken()
	unknown, err := c.Totals(t.Context(), &apiv1.TotalsRequest{Server: "be9", AsOf: token})
	if err != nil || unknown.GetTotals().GetKnown() || unknown.GetTotals().GetCount() != 0 || unknown.GetAsOfRevision() != totals.GetHeader().GetRevision() {
		t.Errorf("Totals of nobody: got %v, %v", unknown, err)
	}

	n.assert(t, be1, "user.dora")
	if _, err := n.Retract(t.Context(), &apiv1.RetractRequest{Retract: &apiv1.Retract{Mailbox: "user.bob", Server: be1}}); err != nil {
		t.Fatal(err)
	}
	first, rows, summary, err := n.compare(t, &apiv1.CompareRequest{Server: be1, AsOf: token})
	if err != nil {
		t.Fatal(err)
	}
	// The caller has nothing, so all differs that is there; bob's bucket is as empty
	// as the caller's.
	want := []*apiv1.CompareRow{{Mailbox: "user.alice"}, {Mailbox: "user.dora", Newer: true}}
	if len(rows) != 2 || summary.GetRows() != 2 || summary.GetTotals().GetCount() != 2 || first.GetHeader().GetRevision() == 0 || len(first.GetBuckets()) != 2 {
		t.Fatalf("Compare: got %v, %v, %v", first, rows, summary)
	}
	for i, row := range rows {
		if want[i].Hash = row.GetHash(); !proto.Equal(row, want[i]) {
			t.Errorf("Compare: got %v, want %v", row, want[i])
		}
	}

	sums := make([]byte, sumSize)
	for _, test := range []struct {
		name string
		req  *apiv1.CompareRequest
		want apiv1.Reason
	}{
		{"no server", &apiv1.CompareRequest{}, apiv1.Reason_REASON_INVALID_NAME},
		{"a token that is none", &apiv1.CompareRequest{Server: be1, AsOf: []byte("x")}, apiv1.Reason_REASON_INVALID_TOKEN},
		{"another cluster's token", &apiv1.CompareRequest{Server: be1, AsOf: token0()}, apiv1.Reason_REASON_INVALID_TOKEN},
		{"sums without buckets", &apiv1.CompareRequest{Server: be1, Sums: sums}, apiv1.Reason_REASON_INVALID},
		{"a bucket too far", &apiv1.CompareRequest{Server: be1, Sums: sums, Buckets: []uint32{directory.DigestBuckets}}, apiv1.Reason_REASON_INVALID},
		{"a bucket twice", &apiv1.CompareRequest{Server: be1, Sums: slices.Concat(sums, sums), Buckets: []uint32{1, 1}}, apiv1.Reason_REASON_INVALID},
		{"a field that nobody knows", &apiv1.CompareRequest{Server: be1, Fields: []apiv1.StatedField{99}}, apiv1.Reason_REASON_INVALID},
		{"parts that are short", &apiv1.CompareRequest{Server: be1, Parts: []*apiv1.CompareParts{{Bucket: 1, Sums: sums}}}, apiv1.Reason_REASON_INVALID},
	} {
		if _, _, _, err := n.compare(t, test.req); reasonOf(err) != reasonName(test.want) {
			t.Errorf("%s: got %v, want %v", test.name, err, test.want)
		}
	}

	// A backend is told of itself alone, the digests' key with it.
	n.caller = Caller{RoleBackend, be1}
	if _, err := c.Totals(t.Context(), &apiv1.TotalsRequest{Server: be1}); err != nil {
		t.Errorf("a backend about itself: %v", err)
	}
	if _, err := c.Totals(t.Context(), &apiv1.TotalsRequest{Server: be2}); reasonOf(err) != "ROLE" {
		t.Errorf("a backend about another: got %v, want ROLE", err)
	}
	if _, _, _, err := n.compare(t, &apiv1.CompareRequest{Server: be2}); reasonOf(err) != "ROLE" {
		t.Errorf("a backend about another: got %v, want ROLE", err)
	}
	n.caller = Caller{RoleFrontend, be1}
	if _, err := c.Totals(t.Context(), &apiv1.TotalsRequest{Server: be1}); reasonOf(err) != "ROLE" {
		t.Errorf("a frontend: got %v, want ROLE", err)
	}
}

// token0 is a token of a cluster that is not there.
func token0() []byte {
	return token{cluster: "another", incarnation: 1, shard: 1, revision: 1}.encode()
}

// A comparison may say anything; it is refused, or compared.
func FuzzCompareRequest(f *testing.F) {
	add := func(req *apiv1.CompareRequest) {
		b, err := proto.Marshal(req)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	add(&apiv1.CompareRequest{Server: be1})
	add(&apiv1.CompareRequest{
		Server: be1, AsOf: token0(), Fields: []apiv1.StatedField{1, 2, 6}, Buckets: []uint32{0, 7, 16383}, Sums: make([]byte, 3*sumSize),
		Parts: []*apiv1.CompareParts{{Bucket: 7, Sums: make([]byte, directory.DigestParts*sumSize)}},
	})
	operator := Caller{Role: RoleOperator, Name: "fuzz"}
	f.Fuzz(func(t *testing.T, b []byte) {
		req := new(apiv1.CompareRequest)
		if proto.Unmarshal(b, req) != nil {
			return
		}
		q, err := compareQuery(operator, req)
		if err != nil {
			if row := findStatus(err); row.reason == apiv1.Reason_REASON_BROKEN {
				t.Errorf("got %v, which is no refusal", err)
			}
			return
		}
		if q.Sums == nil || q.Fields&^directory.AllFields != 0 || len(q.Parts) > maxParts {
			t.Errorf("got %v, %d parts", q.Fields, len(q.Parts))
		}
	})
}
