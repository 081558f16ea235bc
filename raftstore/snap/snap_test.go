package snap

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

var testHeader = Header{
	Cluster: [16]byte{1, 2, 3}, Incarnation: 4, Shard: 5, Kind: Image, Index: 6, Term: 7,
	Conf: &raftpb.ConfState{Voters: []uint64{8, 9}, Learners: []uint64{10}},
}

func payload(size int) []byte {
	p := make([]byte, size)
	rnd := rand.New(rand.NewPCG(uint64(size), 0))
	for i := range p {
		p[i] = byte(rnd.Uint32())
	}
	return p
}

func write(t testing.TB, p []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := fill(&out, testHeader, func(w io.Writer) error {
		// In pieces that do not fit the chunks.
		for len(p) > 0 {
			n := min(len(p), 300_007)
			if _, err := w.Write(p[:n]); err != nil {
				return err
			}
			p = p[n:]
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func read(b []byte) (Header, []byte, error) {
	r, err := NewReader(bytes.NewReader(b))
	if err != nil {
		return Header{}, nil, err
	}
	p, err := io.ReadAll(r)
	return r.Header, p, err
}

func TestRoundTrip(t *testing.T) {
	for _, size := range []int{0, 1, chunkSize - 1, chunkSize, chunkSize + 1, 3*chunkSize + 17} {
		want := payload(size)
		h, got, err := read(write(t, want))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d octets: got %d, %v", size, len(got), err)
		}
		if !proto.Equal(h.Conf, testHeader.Conf) {
			t.Errorf("membership: got %v, want %v", h.Conf, testHeader.Conf)
		}
		h.Conf = testHeader.Conf
		if h != testHeader {
			t.Errorf("header: got %+v, want %+v", h, testHeader)
		}
	}
}

func TestDamage(t *testing.T) {
	good := write(t, payload(2*chunkSize+1000))
	bad := func(what string, b []byte) {
		t.Helper()
		// Another version is an error of its own.
		if _, _, err := read(b); err == nil || !errors.Is(err, ErrCorrupt) && bytes.HasPrefix(b, good[:12]) {
			t.Errorf("%s: got %v, want ErrCorrupt", what, err)
		}
	}
	for n := 0; n < len(good); n += 1 + n/4 {
		bad("cut", good[:n])
	}
	for at := 0; at < len(good); at += 1 + at/6 {
		b := bytes.Clone(good)
		b[at] ^= 1 << (at % 8)
		bad("flipped", b)
	}
	// A whole chunk twice, or left out, each with a right checksum.
	first := len(good) - 44 - (8 + 1000) - 2*(8+chunkSize)
	chunk := good[first : first+8+chunkSize]
	bad("doubled", bytes.Join([][]byte{good[:first], chunk, good[first:]}, nil))
	bad("left out", bytes.Join([][]byte{good[:first], good[first+len(chunk):]}, nil))
	second := good[first+len(chunk) : first+2*len(chunk)]
	bad("swapped", bytes.Join([][]byte{good[:first], second, chunk, good[first+2*len(chunk):]}, nil))
}

func TestSave(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.snap")
	want := payload(100_000)
	put := func(p []byte) func(io.Writer) error {
		return func(w io.Writer) error {
			_, err := w.Write(p)
			return err
		}
	}
	if err := Save(path, testHeader, put(want)); err != nil {
		t.Fatal(err)
	}
	if h, err := Verify(path); err != nil || h.Index != 6 {
		t.Errorf("Verify: got %+v, %v", h, err)
	}
	// A failure leaves the old file and nothing else.
	if err := Save(path, testHeader, func(io.Writer) error { return os.ErrDeadlineExceeded }); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Save with a writer that fails: got %v", err)
	}
	files, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(files) != 1 {
		t.Errorf("files after a failed Save: %v, %v; want the old one alone", files, err)
	}
	if err := Save(path, testHeader, put(want[:10])); err != nil {
		t.Fatal(err)
	}
	f, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if got, err := io.ReadAll(f); err != nil || !bytes.Equal(got, want[:10]) {
		t.Errorf("after replacing it: got %d octets, %v; want 10", len(got), err)
	}
}

func FuzzReader(f *testing.F) {
	good := write(f, []byte("some payload"))
	f.Add(good)
	f.Add(good[:len(good)-1])
	f.Add(good[:20])
	f.Add([]byte(magic))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, p, err := read(b)
		if err != nil {
			return
		}
		// What is accepted can be written again.
		var out bytes.Buffer
		if err := fill(&out, h, func(w io.Writer) error { _, err := w.Write(p); return err }); err != nil {
			t.Errorf("cannot be written again: %v", err)
		}
	})
}
