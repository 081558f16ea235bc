package peer

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	peerv1 "github.com/rookery-mail/rookery/proto/peer/v1"
	"github.com/rookery-mail/rookery/raftstore"
)

// SnapshotsOf returns what s has of Snapshots.
func SnapshotsOf(s *raftstore.Store) Snapshots { return storeSnapshots{s} }

type storeSnapshots struct{ *raftstore.Store }

func (s storeSnapshots) Spool(ctx context.Context, index uint64) (*Spooled, error) {
	f, err := s.SpoolFrom(ctx, index)
	if err != nil {
		return nil, err
	}
	return &Spooled{Path: f.Path, Size: f.Size, Release: f.Release}, nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

const (
	partBytes = 256 << 10
	// idBytes is how much of a snapshot file's end tells it from others: its
	// SHA-256.
	idBytes = 32
	// snapshotTries is how often a transfer is tried again in a row without an
	// octet getting across.
	snapshotTries = 8
	// busyWait is the time until a peer that is receiving another is asked again.
	busyWait = time.Second
)

// pace keeps what is sent of snapshots to a rate, all peers together.
type pace struct {
	rate int64 // octets a second; negative: any

	mu   sync.Mutex
	next time.Time // when the next octet may go
}

// wait waits until n octets may go; false if ctx ended first.
func (p *pace) wait(ctx context.Context, n int) bool {
	if p.rate <= 0 {
		return ctx.Err() == nil
	}
	p.mu.Lock()
	now := time.Now()
	if p.next.Before(now) {
		p.next = now
	}
	d := p.next.Sub(now)
	p.next = p.next.Add(time.Duration(float64(n) / float64(p.rate) * float64(time.Second)))
	p.mu.Unlock()
	return d < time.Millisecond && ctx.Err() == nil || sleep(ctx, d)
}

// snapshotFile is a spooled file that is being sent.
type snapshotFile struct {
	f     *os.File
	offer *peerv1.SnapshotOffer
}

func openSnapshot(s *Spooled, term uint64) (*snapshotFile, error) {
	f, err := os.Open(s.Path)
	if err != nil {
		return nil, fmt.Errorf("peer: %w", err)
	}
	id := make([]byte, idBytes)
	if _, err := f.ReadAt(id, s.Size-idBytes); err != nil {
		return nil, errors.Join(fmt.Errorf("peer: the end of %s: %w", s.Path, err), f.Close())
	}
	return &snapshotFile{f, &peerv1.SnapshotOffer{Term: term, Id: id, Size: uint64(s.Size)}}, nil
}

// parts reads the file from offset on, and gives its pieces to send.
func (s *snapshotFile) parts(ctx context.Context, p *pace, offset uint64, send func(*peerv1.SnapshotPart) error) error {
	for offset < s.offer.Size {
		data := make([]byte, min(partBytes, s.offer.Size-offset))
		if _, err := s.f.ReadAt(data, int64(offset)); err != nil {
			return fmt.Errorf("peer: read the snapshot: %w", err)
		}
		if !p.wait(ctx, len(data)) {
			return ctx.Err()
		}
		if err := send(&peerv1.SnapshotPart{Offset: offset, Data: data, Crc: crc32.Checksum(data, castagnoli)}); err != nil {
			return err
		}
		offset += uint64(len(data))
	}
	return nil
}

// sendSnapshot begins to send what Raft wants the peer to have. It does not block.
func (l *link) sendSnapshot(m *raftpb.Message) {
	if l.snapTerm.Swap(m.GetTerm()) != 0 {
		return // it is being sent; the term is what has changed
	}
	l.t.mu.Lock()
	defer l.t.mu.Unlock()
	if l.t.closed {
		return
	}
	l.t.running.Go(func() {
		begun := time.Now()
		err := l.transfer()
		l.snapTerm.Store(0)
		result := "ok"
		name, _ := l.where()
		if err != nil {
			result = "failed"
			l.t.log.Warn("snapshot not sent", "peer", name, "err", err, "dur", time.Since(begun))
		} else {
			l.t.log.Info("snapshot sent", "peer", name, "dur", time.Since(begun))
		}
		l.t.metrics.snapshots.WithLabelValues("out", result).Inc()
		// Always: until it hears of it, Raft sends that peer nothing else.
		if a := l.t.store.Load(); a != nil && a.snapshots != nil {
			a.snapshots.ReportSnapshot(l.id, err == nil)
		}
	})
}

var errNoSnapshots = errors.New("peer: this node has no snapshots to give")

// transfer sends a snapshot, going on where it broke off.
func (l *link) transfer() error {
	a := l.t.store.Load()
	if a == nil || a.snapshots == nil {
		return errNoSnapshots
	}
	spooled, err := a.snapshots.Spool(l.ctx, 0)
	if err != nil {
		return err
	}
	defer spooled.Release()
	file, err := openSnapshot(spooled, 0)
	if err != nil {
		return err
	}
	defer file.f.Close()
	for tries := 0; ; tries++ {
		file.offer.Term = l.snapTerm.Load()
		moved, err := l.transferOnce(a, file)
		if err == nil {
			return nil
		}
		if moved {
			tries = 0
		}
		wait := min(firstBackoff<<min(tries, 6), longBackoff)
		if r, ok := errors.AsType[*refusedError](err); ok {
			if r.refusal != peerv1.Refusal_REFUSAL_BUSY && r.refusal != peerv1.Refusal_REFUSAL_NOT_READY {
				return err
			}
			wait = busyWait
		}
		if status.Code(err) == codes.DataLoss || tries >= snapshotTries {
			return err
		}
		if st := a.store.Status(); !st.Leading {
			return fmt.Errorf("peer: this node leads no more: %w", err)
		}
		if !sleep(l.ctx, wait) {
			return err
		}
	}
}

// transferOnce makes one attempt; moved tells that something got across.
func (l *link) transferOnce(a *attached, file *snapshotFile) (moved bool, err error) {
	conn, _, err := l.t.dial(l.where())
	if err != nil {
		return false, err
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(l.ctx)
	defer cancel()
	stream, err := peerv1.NewPeerServiceClient(conn).SendSnapshot(ctx)
	if err != nil {
		return false, err
	}
	if err := stream.Send(&peerv1.SendSnapshotRequest{Hello: l.t.hello(a.id, l.id), Offer: file.offer}); err != nil {
		return false, streamError(stream, err)
	}
	answer, err := stream.Recv()
	if err != nil {
		return false, err
	}
	if err := l.judge(a.id, answer.GetWelcome()); err != nil {
		return false, err
	}
	offset := answer.GetOffset()
	if offset > file.offer.Size {
		return false, fmt.Errorf("peer: it wants octet %d of %d", offset, file.offer.Size)
	}
	err = file.parts(ctx, l.t.pace, offset, func(p *peerv1.SnapshotPart) error {
		if err := stream.Send(&peerv1.SendSnapshotRequest{Part: p}); err != nil {
			return streamError(stream, err)
		}
		moved = true
		l.t.metrics.snapshotBytes.WithLabelValues("out").Add(float64(len(p.GetData())))
		return nil
	})
	if err != nil {
		return moved, err
	}
	if err := stream.CloseSend(); err != nil {
		return moved, err
	}
	if answer, err = stream.Recv(); err != nil {
		return moved, err
	}
	if !answer.GetTaken() {
		return moved, errors.New("peer: the whole snapshot was sent and not taken")
	}
	return true, nil
}

// streamError returns why sending failed, which only receiving tells.
func streamError(stream grpc.BidiStreamingClient[peerv1.SendSnapshotRequest, peerv1.SendSnapshotResponse], err error) error {
	if !errors.Is(err, io.EOF) {
		return err
	}
	if _, err := stream.Recv(); err != nil {
		return err
	}
	return err
}

// arriving is a snapshot file that is being received.
type arriving struct {
	f     *os.File
	path  string
	offer *peerv1.SnapshotOffer
	at    uint64
}

// arrive opens the file in dir for what is offered, keeping what is there of
// it and removing what is there of others.
func arrive(path string, offer *peerv1.SnapshotOffer) (*arriving, error) {
	if len(offer.GetId()) != idBytes || offer.GetSize() < idBytes {
		return nil, status.Error(codes.InvalidArgument, "peer: no snapshot is offered")
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("peer: %w", err)
	}
	a := &arriving{f: f, path: path, offer: offer}
	info, err := f.Stat()
	if err == nil && uint64(info.Size()) <= offer.GetSize() {
		a.at = uint64(info.Size())
	} else if err == nil {
		err = f.Truncate(0)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("peer: %w", err), f.Close())
	}
	return a, nil
}

// take writes a part.
func (a *arriving) take(p *peerv1.SnapshotPart) error {
	switch n := uint64(len(p.GetData())); {
	case n == 0 || p.GetOffset() != a.at || a.at+n > a.offer.GetSize():
		return fmt.Errorf("peer: a part of %d octets at %d, wanted at %d of %d", n, p.GetOffset(), a.at, a.offer.GetSize())
	case crc32.Checksum(p.GetData(), castagnoli) != p.GetCrc():
		return fmt.Errorf("peer: the part at %d fails its checksum", a.at)
	}
	if _, err := a.f.WriteAt(p.GetData(), int64(a.at)); err != nil {
		return fmt.Errorf("peer: %w", err)
	}
	a.at += uint64(len(p.GetData()))
	return nil
}

// whole reports whether all is there, and whether it ends as was offered. What
// is between, the reader of the file checks.
func (a *arriving) whole() (bool, error) {
	if a.at < a.offer.GetSize() {
		return false, nil
	}
	id := make([]byte, idBytes)
	if _, err := a.f.ReadAt(id, int64(a.at)-idBytes); err != nil {
		return false, fmt.Errorf("peer: %w", err)
	}
	if !bytes.Equal(id, a.offer.GetId()) {
		return false, errors.Join(errors.New("peer: the snapshot received is not the one offered"), os.Remove(a.path))
	}
	if err := a.f.Sync(); err != nil {
		return false, fmt.Errorf("peer: %w", err)
	}
	return true, nil
}

// SendSnapshot takes a snapshot from the leader, one at a time.
func (s *service) SendSnapshot(stream grpc.BidiStreamingServer[peerv1.SendSnapshotRequest, peerv1.SendSnapshotResponse]) error {
	t := s.t
	req, err := stream.Recv()
	if err != nil {
		return err
	}
	hello, offer := req.GetHello(), req.GetOffer()
	if err := t.authorize(stream.Context(), hello.GetName()); err != nil {
		return err
	}
	a, w := t.welcome(hello)
	if a != nil && a.snapshots == nil {
		w.Refusal = peerv1.Refusal_REFUSAL_NOT_READY
	} else if a != nil && !t.incoming.TryLock() {
		w.Refusal = peerv1.Refusal_REFUSAL_BUSY
	} else if a != nil {
		defer t.incoming.Unlock()
	}
	if w.Refusal != peerv1.Refusal_REFUSAL_UNSPECIFIED {
		return stream.Send(&peerv1.SendSnapshotResponse{Welcome: w})
	}
	defer t.enter(hello.GetIdentity().GetNode(), hello)()
	err = t.receive(a, w, hello.GetIdentity().GetNode(), offer, stream)
	result := "ok"
	if err != nil {
		result = "failed"
		t.log.Warn("snapshot not received", "peer", hello.GetName(), "err", err)
	}
	t.metrics.snapshots.WithLabelValues("in", result).Inc()
	return err
}

const partSuffix = ".part"

func (t *Transport) receive(a *attached, w *peerv1.Welcome, from uint64, offer *peerv1.SnapshotOffer, stream grpc.BidiStreamingServer[peerv1.SendSnapshotRequest, peerv1.SendSnapshotResponse]) error {
	dir := a.snapshots.IncomingDir()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("peer: %w", err)
	}
	path := filepath.Join(dir, hex.EncodeToString(offer.GetId())+partSuffix)
	// What is left of another will not be asked for again.
	others, err := filepath.Glob(filepath.Join(dir, "*"+partSuffix))
	if err != nil {
		return fmt.Errorf("peer: %w", err)
	}
	for _, other := range others {
		if other != path {
			if err := os.Remove(other); err != nil {
				return fmt.Errorf("peer: %w", err)
			}
		}
	}
	file, err := arrive(path, offer)
	if err != nil {
		return err
	}
	defer file.f.Close()
	if err := stream.Send(&peerv1.SendSnapshotResponse{Welcome: w, Offset: file.at}); err != nil {
		return err
	}
	t.log.Info("snapshot is received", "bytes", offer.GetSize(), "offset", file.at)
	for {
		whole, err := file.whole()
		if err != nil {
			return status.Error(codes.DataLoss, err.Error())
		}
		if whole {
			break
		}
		req, err := stream.Recv()
		if err != nil {
			return err
		}
		if err := file.take(req.GetPart()); err != nil {
			return err
		}
		t.metrics.snapshotBytes.WithLabelValues("in").Add(float64(len(req.GetPart().GetData())))
	}
	if err := a.snapshots.Install(path, from, offer.GetTerm()); err != nil {
		_ = os.Remove(path) // if it was not: another attempt must begin anew
		return status.Error(codes.DataLoss, err.Error())
	}
	return stream.Send(&peerv1.SendSnapshotResponse{Taken: true})
}

// FetchSnapshot gives a snapshot to a node that cannot use its own state.
func (s *service) FetchSnapshot(req *peerv1.FetchSnapshotRequest, stream grpc.ServerStreamingServer[peerv1.FetchSnapshotResponse]) error {
	t := s.t
	if err := t.authorize(stream.Context(), req.GetHello().GetName()); err != nil {
		return err
	}
	a, w := t.welcome(req.GetHello())
	if a != nil && a.snapshots == nil {
		a, w.Refusal = nil, peerv1.Refusal_REFUSAL_NOT_READY
	}
	if a == nil {
		return stream.Send(&peerv1.FetchSnapshotResponse{Welcome: w})
	}
	spooled, err := a.snapshots.Spool(stream.Context(), req.GetIndex())
	if err != nil {
		return status.Error(codes.Unavailable, err.Error())
	}
	defer spooled.Release()
	file, err := openSnapshot(spooled, 0)
	if err != nil {
		return err
	}
	defer file.f.Close()
	offset := req.GetOffset()
	if !bytes.Equal(req.GetId(), file.offer.GetId()) || offset > file.offer.GetSize() {
		offset = 0
	}
	if err := stream.Send(&peerv1.FetchSnapshotResponse{Welcome: w, Offer: file.offer}); err != nil {
		return err
	}
	return file.parts(stream.Context(), t.pace, offset, func(p *peerv1.SnapshotPart) error {
		t.metrics.snapshotBytes.WithLabelValues("out").Add(float64(len(p.GetData())))
		return stream.Send(&peerv1.FetchSnapshotResponse{Part: p})
	})
}

// FetchSnapshot gets a snapshot of a node's state and writes it to path, going on
// where it broke off. It is not of before index if that node has come so far. id
// is whose state this node has: it need not have a store. What was fetched is
// whole, but nobody has verified it yet.
func (t *Transport) FetchSnapshot(ctx context.Context, id raftstore.Identity, node, index uint64, path string) error {
	l := t.link(node)
	if l == nil {
		return fmt.Errorf("peer: node %x is not known here", node)
	}
	var offer *peerv1.SnapshotOffer
	for tries := 0; ; tries++ {
		moved, err := t.fetchOnce(ctx, l, id, index, &offer, path)
		if err == nil {
			return nil
		}
		if moved {
			tries = 0
		}
		if tries >= snapshotTries || !sleep(ctx, min(firstBackoff<<min(tries, 6), longBackoff)) {
			return fmt.Errorf("peer: fetch a snapshot from node %x: %w", node, err)
		}
	}
}

func (t *Transport) fetchOnce(ctx context.Context, l *link, id raftstore.Identity, index uint64, had **peerv1.SnapshotOffer, path string) (moved bool, err error) {
	conn, _, err := t.dial(l.where())
	if err != nil {
		return false, err
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	req := &peerv1.FetchSnapshotRequest{Hello: t.hello(id, l.id), Index: index}
	if info, err := os.Stat(path); err == nil && *had != nil {
		req.Id, req.Offset = (*had).GetId(), uint64(info.Size())
	}
	stream, err := peerv1.NewPeerServiceClient(conn).FetchSnapshot(ctx, req)
	if err != nil {
		return false, err
	}
	first, err := stream.Recv()
	if err != nil {
		return false, err
	}
	if err := l.judge(id, first.GetWelcome()); err != nil {
		return false, err
	}
	if *had == nil || !bytes.Equal((*had).GetId(), first.GetOffer().GetId()) {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return false, fmt.Errorf("peer: %w", err)
		}
	}
	*had = first.GetOffer()
	file, err := arrive(path, first.GetOffer())
	if err != nil {
		return false, err
	}
	defer file.f.Close()
	for {
		whole, err := file.whole()
		if whole || err != nil {
			return moved, err
		}
		resp, err := stream.Recv()
		if err != nil {
			return moved, err
		}
		if err := file.take(resp.GetPart()); err != nil {
			return moved, err
		}
		moved = true
		t.metrics.snapshotBytes.WithLabelValues("in").Add(float64(len(resp.GetPart().GetData())))
	}
}
