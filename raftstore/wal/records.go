package wal

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	etcdwal "go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// Record is one thing that was written to a log: one of its fields is set.
type Record struct {
	Entry *raftpb.Entry
	Hard  *raftpb.HardState
	Mark  *Position // of Create, Mark or Install
}

// Records calls each with all that the segments in dir hold, in the order it was
// written, what was replaced or compacted since among it. It is for who looks into
// the past of a log that no process has open: whether it is sound, Open says. A write
// that was cut short ends a segment. An error of each ends it and is returned.
func Records(dir string, each func(Record) error) error {
	segs, err := segments(filepath.Join(dir, segmentDir))
	if err != nil {
		return err
	}
	for _, seg := range segs {
		if err := segmentRecords(seg.path, each); err != nil {
			return err
		}
	}
	return nil
}

func segmentRecords(path string, each func(Record) error) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	r := bufio.NewReaderSize(f, 1<<20)
	for {
		var word [8]byte
		if _, err := io.ReadFull(r, word[:]); err != nil {
			return ignoreEOF(err)
		}
		size, padding := frame(binary.LittleEndian.Uint64(word[:]))
		if size == 0 {
			return nil
		}
		data := make([]byte, size+padding)
		if _, err := io.ReadFull(r, data); err != nil {
			return ignoreEOF(err)
		}
		record, err := recordOf(data[:size])
		if err != nil {
			return fmt.Errorf("%w: %s: %w", ErrCorrupt, path, err)
		}
		if record == (Record{}) {
			continue
		}
		if err := each(record); err != nil {
			return err
		}
	}
}

// frame reads a length word: the record's length, and what fills it up to a multiple
// of eight.
func frame(word uint64) (size, padding int64) {
	size = int64(word &^ (0xff << 56))
	return size, (8 - size%8) % 8
}

// recordOf decodes a record; the zero Record is one that says nothing of the log.
func recordOf(data []byte) (Record, error) {
	var raw walpb.Record
	if err := proto.Unmarshal(data, &raw); err != nil {
		return Record{}, err
	}
	switch raw.GetType() {
	case etcdwal.EntryType:
		e := new(raftpb.Entry)
		return Record{Entry: e}, proto.Unmarshal(raw.GetData(), e)
	case etcdwal.StateType:
		h := new(raftpb.HardState)
		return Record{Hard: h}, proto.Unmarshal(raw.GetData(), h)
	case etcdwal.SnapshotType:
		s := new(walpb.Snapshot)
		err := proto.Unmarshal(raw.GetData(), s)
		return Record{Mark: &Position{s.GetTerm(), s.GetIndex()}}, err
	case etcdwal.MetadataType, etcdwal.CrcType:
		return Record{}, nil
	}
	return Record{}, errors.New("a record of a kind that is not known")
}
