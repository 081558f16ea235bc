package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protowire"
)

// What is kept in etcd is what a node of ours keeps of a fact in its own state,
// octet for octet as much: the key of the fact's row and the row. The indexes,
// digests and the change log that a node keeps besides have no counterpart: etcd
// is asked to do less.

// appendEtcdKey appends f's key: the order of names, and the server.
func appendEtcdKey(dst []byte, f fact) []byte {
	return binary.BigEndian.AppendUint32(append(f.name.AppendKey(dst), 0), uint32(f.server+1))
}

// appendEtcdValue appends f's row as a node writes it (proto/record/v1, FactRow):
// a version, what its server states, what the directory adds, a checksum. The
// numbers that the directory adds are as long as after a million commands.
func appendEtcdValue(dst []byte, f fact) []byte {
	begin := len(dst)
	text := func(num protowire.Number, s string) {
		if s != "" {
			dst = protowire.AppendString(protowire.AppendTag(dst, num, protowire.BytesType), s)
		}
	}
	number := func(num protowire.Number, v uint64) {
		dst = protowire.AppendVarint(protowire.AppendTag(dst, num, protowire.VarintType), v)
	}
	dst = append(dst, 1)
	text(1, f.partition)
	text(2, f.acl)
	text(3, f.mailboxID)
	number(4, uint64(f.uidValidity))
	number(5, 'e')
	text(6, f.specialUse)
	number(7, 1)          // active
	number(10, 2_000)     // first stated by that command
	number(11, 1_000_000) // stated last by that
	number(12, 1_000_000) // at that time
	number(13, 1)         // in that incarnation
	number(14, 1)         // and counted
	return binary.BigEndian.AppendUint32(dst, crc32.ChecksumIEEE(dst[begin:]))
}

// etcdStub asks etcd through the stubs generated from its API, as stub asks
// Rookery: no client library, one request object a worker.
type etcdStub struct {
	work  *work
	conns []*grpc.ClientConn
}

// newEtcdStub returns a stub with that many connections, spread over the
// endpoints and not yet connected, with the options of newStub.
func newEtcdStub(endpoints []string, connections int, w *work) (*etcdStub, error) {
	s := &etcdStub{work: w}
	for i := range connections {
		conn, err := grpc.NewClient("passthrough:///"+endpoints[i%len(endpoints)],
			grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithDisableServiceConfig(),
			grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
		if err != nil {
			return nil, errors.Join(err, s.close())
		}
		s.conns = append(s.conns, conn)
	}
	return s, nil
}

func (s *etcdStub) caller(w workload, worker int) (call, error) {
	kv := etcdserverpb.NewKVClient(s.conns[worker%len(s.conns)])
	switch w.op {
	case opAssert:
		return s.put(kv, worker), nil
	case opBatch:
		return s.batch(kv, w.keys), nil
	case opBatchRandom:
		return s.batchRandom(kv, w.keys, worker), nil
	}
	return nil, fmt.Errorf("etcd: no operation %d", w.op)
}

func (s *etcdStub) put(kv etcdserverpb.KVClient, worker int) call {
	chance := s.work.chance(worker)
	req := new(etcdserverpb.PutRequest)
	return func(ctx context.Context) error {
		f := s.work.changed(s.work.anyMailbox(chance))
		req.Key = appendEtcdKey(req.Key[:0], f)
		req.Value = appendEtcdValue(req.Value[:0], f)
		m, err := kv.Put(ctx, req)
		if err != nil {
			return err
		}
		if m.GetHeader().GetRevision() == 0 {
			return fmt.Errorf("%w: a put without a revision", errWrong)
		}
		return nil
	}
}

// batch puts the next of a server's list in name order.
func (s *etcdStub) batch(kv etcdserverpb.KVClient, keys int) call {
	var taken []int
	txn := newPuts(keys)
	return func(ctx context.Context) error {
		taken = s.work.list.take(taken[:0], keys)
		for i, m := range taken {
			txn.set(i, s.work.changed(m))
		}
		return txn.send(ctx, kv, len(taken))
	}
}

// batchRandom puts mailboxes drawn from all, each once: etcd takes no key twice
// in a transaction.
func (s *etcdStub) batchRandom(kv etcdserverpb.KVClient, keys, worker int) call {
	chance := s.work.chance(worker)
	txn := newPuts(keys)
	drawn := make(map[int]bool, keys)
	return func(ctx context.Context) error {
		clear(drawn)
		for len(drawn) < keys {
			m := s.draw(chance, drawn)
			txn.set(len(drawn)-1, s.work.changed(m))
		}
		return txn.send(ctx, kv, keys)
	}
}

// draw draws a mailbox that was not drawn yet.
func (s *etcdStub) draw(chance *rand.Rand, drawn map[int]bool) int {
	for {
		if m := s.work.anyMailbox(chance); !drawn[m] {
			drawn[m] = true
			return m
		}
	}
}

func (s *etcdStub) close() error {
	var errs []error
	for _, conn := range s.conns {
		errs = append(errs, conn.Close())
	}
	return errors.Join(errs...)
}

// puts is a transaction that puts some keys, used again and again by one worker.
type puts struct {
	req  etcdserverpb.TxnRequest
	all  []*etcdserverpb.RequestOp
	puts []*etcdserverpb.PutRequest
}

func newPuts(keys int) *puts {
	p := &puts{}
	for range keys {
		put := new(etcdserverpb.PutRequest)
		p.puts = append(p.puts, put)
		p.all = append(p.all, &etcdserverpb.RequestOp{Request: &etcdserverpb.RequestOp_RequestPut{RequestPut: put}})
	}
	return p
}

// set makes the put at i that of f.
func (p *puts) set(i int, f fact) {
	put := p.puts[i]
	put.Key = appendEtcdKey(put.Key[:0], f)
	put.Value = appendEtcdValue(put.Value[:0], f)
}

// send sends the first n puts.
func (p *puts) send(ctx context.Context, kv etcdserverpb.KVClient, n int) error {
	p.req.Success = p.all[:n]
	m, err := kv.Txn(ctx, &p.req)
	if err != nil {
		return err
	}
	if !m.GetSucceeded() || len(m.GetResponses()) != n {
		return fmt.Errorf("%w: a transaction of %d puts came to %d answers, succeeded: %t", errWrong, n, len(m.GetResponses()), m.GetSucceeded())
	}
	return nil
}
