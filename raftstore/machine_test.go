package raftstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/rookery-mail/rookery/internal/kv"
	"github.com/rookery-mail/rookery/raftstore/wal"
	"go.etcd.io/raft/v3/raftpb"
)

// testMachine is a small directory: "put K V", "del K", "alarm K MS" (K is put
// when MS of directory time have passed), "tick", "fail", "panic". Each command
// has a revision, which is its result, and counts into a running hash.
type testMachine struct{}

const (
	rowsBucket  kv.Bucket = "rows"
	alarmBucket kv.Bucket = "alarms"
	sumsBucket  kv.Bucket = "sums"
)

var (
	revisionKey = []byte("revision")
	timeKey     = []byte("time")
	hashKey     = []byte("hash")
)

func (testMachine) Buckets() []kv.Bucket { return []kv.Bucket{rowsBucket, alarmBucket, sumsBucket} }

func number(r kv.Reader, key []byte) uint64 {
	if v := r.Get(sumsBucket, key); v != nil {
		return binary.BigEndian.Uint64(v)
	}
	return 0
}

func putNumber(tx kv.Tx, key []byte, n uint64) {
	tx.Put(sumsBucket, key, binary.BigEndian.AppendUint64(nil, n))
}

func (testMachine) Apply(tx kv.Tx, s Stamp, command []byte) ([]byte, error) {
	now := number(tx, timeKey) + s.Elapsed
	putNumber(tx, timeKey, now)
	rev := number(tx, revisionKey) + 1
	putNumber(tx, revisionKey, rev)
	hash := number(tx, hashKey)
	for _, b := range command {
		hash = (hash ^ uint64(b)) * 1099511628211
	}
	putNumber(tx, hashKey, hash)
	word, rest, _ := bytes.Cut(command, []byte(" "))
	key, value, _ := bytes.Cut(rest, []byte(" "))
	switch string(word) {
	case "put":
		tx.Put(rowsBucket, key, value)
	case "del":
		tx.Delete(rowsBucket, key)
	case "alarm":
		var ms uint64
		if _, err := fmt.Sscan(string(value), &ms); err != nil {
			return nil, err
		}
		tx.Put(alarmBucket, append(binary.BigEndian.AppendUint64(nil, now+ms), key...), nil)
	case "tick":
		it := tx.Iterate(alarmBucket)
		for k, _ := it.Seek(nil); k != nil && binary.BigEndian.Uint64(k) <= now; k, _ = it.Seek(nil) {
			tx.Put(rowsBucket, k[8:], fmt.Append(nil, now))
			tx.Delete(alarmBucket, k)
		}
	case "fail":
		return nil, errors.New("told to fail")
	case "panic":
		panic("told to panic")
	case "nothing":
	default:
		return nil, fmt.Errorf("unknown command %q", command)
	}
	return fmt.Append(nil, rev), nil
}

func (testMachine) Due(r kv.Reader, elapsed uint64) (int64, []byte) {
	k, _ := r.Iterate(alarmBucket).Seek(nil)
	if k == nil {
		return -1, nil
	}
	return max(0, int64(binary.BigEndian.Uint64(k))-int64(number(r, timeKey)+elapsed)), []byte("tick")
}

// Verify finds values that a test has damaged.
func (testMachine) Verify(r kv.Reader) error {
	it := r.Iterate(rowsBucket)
	for k, v := it.Seek(nil); k != nil; k, v = it.Next() {
		if bytes.Contains(v, []byte("\xff")) {
			return fmt.Errorf("row %q is damaged", k)
		}
	}
	return nil
}

func testLog(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

// testMeta is the meta of a new cluster with these nodes.
func testMeta(node uint64, voters ...uint64) Meta {
	return Meta{
		Identity: Identity{Cluster: ClusterID{1}, Incarnation: 1, Shard: 1, Node: node},
		Name:     fmt.Sprintf("n%d", node),
		Applied:  start, Mark: start,
		Conf: &raftpb.ConfState{Voters: voters},
	}
}

func testMark(m Meta) wal.Mark { return wal.Mark{Position: m.Mark, Conf: m.Conf} }
