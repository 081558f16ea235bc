package snap

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// ErrCorrupt: the snapshot is damaged or incomplete.
var ErrCorrupt = errors.New("snap: corrupt")

const (
	magic     = "rooksnap"
	version   = 1
	chunkSize = 1 << 20
	fixedSize = 16 + 8 + 4 + 1 + 8 + 8 // of the header, before the membership
	maxHeader = 1 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Kind says what the payload is.
type Kind uint8

// The kinds of payload.
const (
	Image Kind = 1 // a state file
	Rows  Kind = 2 // keys and values in order
)

// Header says what a snapshot is of.
type Header struct {
	Cluster     [16]byte
	Incarnation uint64
	Shard       uint32
	Kind        Kind
	Index       uint64 // the last applied entry
	Term        uint64 // and its term
	Conf        *raftpb.ConfState
}

// Writer writes a snapshot to a stream.
type Writer struct {
	w     io.Writer
	hash  hash.Hash
	chunk []byte
	total uint64
}

// NewWriter writes the header and returns a Writer for the payload.
func NewWriter(w io.Writer, h Header) (*Writer, error) {
	conf, err := proto.MarshalOptions{Deterministic: true}.Marshal(h.Conf)
	if err != nil {
		return nil, fmt.Errorf("snap: membership: %w", err)
	}
	b := binary.BigEndian.AppendUint32([]byte(magic), version)
	b = binary.BigEndian.AppendUint32(b, uint32(fixedSize+4+len(conf)))
	b = append(b, h.Cluster[:]...)
	b = binary.BigEndian.AppendUint64(b, h.Incarnation)
	b = binary.BigEndian.AppendUint32(b, h.Shard)
	b = append(b, byte(h.Kind))
	b = binary.BigEndian.AppendUint64(b, h.Index)
	b = binary.BigEndian.AppendUint64(b, h.Term)
	b = binary.BigEndian.AppendUint32(b, uint32(len(conf)))
	b = append(b, conf...)
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
	sw := &Writer{hash: sha256.New(), chunk: make([]byte, 0, chunkSize)}
	sw.w = io.MultiWriter(w, sw.hash)
	_, err = sw.w.Write(b)
	return sw, err
}

// Write adds to the payload.
func (w *Writer) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		take := min(len(p), chunkSize-len(w.chunk))
		w.chunk = append(w.chunk, p[:take]...)
		p = p[take:]
		if len(w.chunk) == chunkSize {
			if err := w.flush(); err != nil {
				return n - len(p), err
			}
		}
	}
	return n, nil
}

func (w *Writer) flush() error {
	if len(w.chunk) == 0 {
		return nil
	}
	head := binary.BigEndian.AppendUint32(nil, uint32(len(w.chunk)))
	head = binary.BigEndian.AppendUint32(head, crc32.Checksum(w.chunk, castagnoli))
	if _, err := w.w.Write(head); err != nil {
		return err
	}
	_, err := w.w.Write(w.chunk)
	w.total += uint64(len(w.chunk))
	w.chunk = w.chunk[:0]
	return err
}

// Close ends the snapshot. Without it the snapshot is incomplete and no Reader
// accepts it.
func (w *Writer) Close() error {
	if err := w.flush(); err != nil {
		return err
	}
	end := binary.BigEndian.AppendUint32(nil, 0)
	end = binary.BigEndian.AppendUint64(end, w.total)
	if _, err := w.w.Write(end); err != nil {
		return err
	}
	_, err := w.w.Write(w.hash.Sum(nil))
	return err
}

// Reader reads a snapshot from a stream. Read returns io.EOF only after the
// whole of it proved right; until then its consumer must not use what it read.
// It reads ahead of the snapshot's end.
type Reader struct {
	Header Header

	r     *bufio.Reader
	hash  hash.Hash
	chunk []byte // what is left of the present chunk
	buf   []byte
	total uint64
	err   error
}

// NewReader reads and checks the header.
func NewReader(r io.Reader) (*Reader, error) {
	sr := &Reader{r: bufio.NewReaderSize(r, 64<<10), hash: sha256.New()}
	start, err := sr.take(len(magic) + 8)
	if err != nil {
		return nil, err
	}
	start = bytes.Clone(start)
	v, size := binary.BigEndian.Uint32(start[len(magic):]), binary.BigEndian.Uint32(start[len(magic)+4:])
	switch {
	case string(start[:len(magic)]) != magic:
		return nil, fmt.Errorf("%w: this is no snapshot", ErrCorrupt)
	case v != version:
		return nil, fmt.Errorf("snap: the snapshot has format %d, this program reads %d", v, version)
	case size < fixedSize+4 || size > maxHeader:
		return nil, fmt.Errorf("%w: a header of %d octets", ErrCorrupt, size)
	}
	rest, err := sr.take(int(size) + 4)
	if err != nil {
		return nil, err
	}
	h, sum := rest[:size], binary.BigEndian.Uint32(rest[size:])
	if sum != crc32.Update(crc32.Checksum(start, castagnoli), castagnoli, h) {
		return nil, fmt.Errorf("%w: the header fails its checksum", ErrCorrupt)
	}
	sr.Header, err = parseHeader(h)
	return sr, err
}

func parseHeader(b []byte) (Header, error) {
	conf := b[fixedSize+4:]
	if n := binary.BigEndian.Uint32(b[fixedSize:]); uint64(n) != uint64(len(conf)) {
		return Header{}, fmt.Errorf("%w: a membership of %d octets in %d", ErrCorrupt, n, len(conf))
	}
	h := Header{
		Cluster:     [16]byte(b),
		Incarnation: binary.BigEndian.Uint64(b[16:]),
		Shard:       binary.BigEndian.Uint32(b[24:]),
		Kind:        Kind(b[28]),
		Index:       binary.BigEndian.Uint64(b[29:]),
		Term:        binary.BigEndian.Uint64(b[37:]),
		Conf:        &raftpb.ConfState{},
	}
	if err := proto.Unmarshal(conf, h.Conf); err != nil {
		return Header{}, fmt.Errorf("%w: membership: %w", ErrCorrupt, err)
	}
	return h, nil
}

// Read returns octets of the payload that have passed their checksum.
func (r *Reader) Read(p []byte) (int, error) {
	for len(r.chunk) == 0 && r.err == nil {
		r.err = r.next()
	}
	if len(r.chunk) == 0 {
		return 0, r.err
	}
	n := copy(p, r.chunk)
	r.chunk = r.chunk[n:]
	return n, nil
}

// next reads a chunk, or the end.
func (r *Reader) next() error {
	head, err := r.take(4)
	if err != nil {
		return err
	}
	size := binary.BigEndian.Uint32(head)
	switch {
	case size == 0:
		return r.end()
	case size > chunkSize:
		return fmt.Errorf("%w: a chunk of %d octets", ErrCorrupt, size)
	}
	body, err := r.take(4 + int(size))
	if err != nil {
		return err
	}
	if binary.BigEndian.Uint32(body) != crc32.Checksum(body[4:], castagnoli) {
		return fmt.Errorf("%w: the chunk at octet %d fails its checksum", ErrCorrupt, r.total)
	}
	r.chunk = body[4:]
	r.total += uint64(size)
	return nil
}

func (r *Reader) end() error {
	length, err := r.take(8)
	if err != nil {
		return err
	}
	if n := binary.BigEndian.Uint64(length); n != r.total {
		return fmt.Errorf("%w: %d octets, of %d", ErrCorrupt, r.total, n)
	}
	want := r.hash.Sum(nil)
	got, err := r.take(sha256.Size)
	if err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("%w: the whole fails its hash", ErrCorrupt)
	}
	return io.EOF
}

// take reads n octets and hashes them. They are valid until the next call.
func (r *Reader) take(n int) ([]byte, error) {
	if cap(r.buf) < n {
		r.buf = make([]byte, n)
	}
	b := r.buf[:n]
	if _, err := io.ReadFull(r.r, b); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, fmt.Errorf("%w: it ends too early", ErrCorrupt)
		}
		return nil, err
	}
	r.hash.Write(b)
	return b, nil
}

// atEnd tells whether the stream ends here.
func (r *Reader) atEnd() bool {
	_, err := r.r.Peek(1)
	return errors.Is(err, io.EOF)
}
