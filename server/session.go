package server

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"time"

	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/directory/machine"
	"github.com/rookery-mail/rookery/internal/kv"
	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
	"github.com/rookery-mail/rookery/raftstore"
)

// token is what a client has seen. On the wire it is opaque:
//
//	version 1 (1 octet) | length of cluster id (1) | cluster id | incarnation (4)
//	| shard (4) | revision (8) | CRC-32C of all before (4), numbers big endian
type token struct {
	cluster     string
	incarnation directory.Incarnation
	shard       uint32
	revision    directory.Revision
}

const (
	tokenVersion = 1
	tokenRest    = 4 + 4 + 8 + crc32.Size // what follows the cluster id
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func (t token) encode() []byte {
	b := make([]byte, 0, 2+len(t.cluster)+tokenRest)
	b = append(b, tokenVersion, byte(len(t.cluster)))
	b = append(b, t.cluster...)
	b = binary.BigEndian.AppendUint32(b, uint32(t.incarnation))
	b = binary.BigEndian.AppendUint32(b, t.shard)
	b = binary.BigEndian.AppendUint64(b, uint64(t.revision))
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// decodeToken reads a token. The checksum finds out what was cut, mixed up or
// mistyped; it is no signature.
func decodeToken(b []byte) (token, error) {
	if len(b) < 2 || b[0] != tokenVersion || len(b) != 2+int(b[1])+tokenRest {
		return token{}, fmt.Errorf("%w: %d octets that are no token of version %d", errInvalidToken, len(b), tokenVersion)
	}
	body, sum := b[:len(b)-crc32.Size], b[len(b)-crc32.Size:]
	if crc32.Checksum(body, castagnoli) != binary.BigEndian.Uint32(sum) {
		return token{}, fmt.Errorf("%w: its checksum does not fit", errInvalidToken)
	}
	rest := body[2+int(b[1]):]
	return token{
		cluster:     string(b[2 : 2+int(b[1])]),
		incarnation: directory.Incarnation(binary.BigEndian.Uint32(rest)),
		shard:       binary.BigEndian.Uint32(rest[4:]),
		revision:    directory.Revision(binary.BigEndian.Uint64(rest[8:])),
	}, nil
}

// identity is which cluster this is, and which of its lives. It does not change
// while a node runs: a restore or recovery needs it stopped.
type identity struct {
	cluster     string
	incarnation directory.Incarnation
}

// identity reads it once the state is of the store's cluster and life: before that
// life's first command, or the first snapshot it gets, a node answers nothing. Its
// state may be that of the life before, restored, and no token of that life is to be
// told again.
func (s *Server) identity(r kv.Reader) (*identity, error) {
	if id := s.id.Load(); id != nil {
		return id, nil
	}
	st, err := s.machine.Status(r)
	if err != nil {
		return nil, err
	}
	if st.ClusterID == "" {
		return nil, fmt.Errorf("%w: this node has not joined its cluster yet", errBehind)
	}
	if len(st.ClusterID) > math.MaxUint8 {
		return nil, fmt.Errorf("server: a cluster id of %d octets", len(st.ClusterID))
	}
	if at := s.identityOf; at != (raftstore.Identity{}) && !livesAs(&st, at) {
		return nil, fmt.Errorf("%w: this node's state is of incarnation %d still, of cluster %s; incarnation %d, of %s, has not begun here",
			errBehind, st.Incarnation, st.ClusterID, at.Incarnation, at.Cluster)
	}
	id := &identity{cluster: st.ClusterID, incarnation: st.Incarnation}
	s.id.Store(id)
	return id, nil
}

// livesAs reports whether a state is of the cluster and the life that the store is of.
func livesAs(st *machine.Status, at raftstore.Identity) bool {
	return st.ClusterID == at.Cluster.String() && uint64(st.Incarnation) == at.Incarnation
}

// The bounds of what a read waits for and takes.
const (
	defaultMaxAge  = 10 * time.Second // of AT_LEAST
	defaultCatchUp = 2 * time.Second  // AT_LEAST waits so long for its token's revision
	defaultConfirm = 2 * time.Second  // a negative answer waits so long for a majority
)

// read is a view with what its answer has to say about itself.
type read struct {
	View
	id           *identity
	linearizable bool
	age          time.Duration // math.MaxInt64: not known
}

// read takes the view that c asks for. The caller releases it.
func (s *Server) read(ctx context.Context, c *apiv1.Consistency) (read, error) {
	if err := ctx.Err(); err != nil {
		return read{}, err
	}
	var seen token
	if t := c.GetToken(); len(t) > 0 {
		// Most callers send what was told last.
		if last := s.issued.Load(); last != nil && bytes.Equal(last.encoded, t) {
			seen = last.token
		} else {
			var err error
			if seen, err = decodeToken(t); err != nil {
				return read{}, err
			}
		}
	}
	switch mode := c.GetMode(); mode {
	case apiv1.ConsistencyMode_CONSISTENCY_MODE_UNSPECIFIED, apiv1.ConsistencyMode_CONSISTENCY_MODE_AT_LEAST:
		maxAge := defaultMaxAge
		if ms := c.GetMaxAgeMs(); ms > 0 {
			maxAge = duration(ms)
		}
		return s.readAtLeast(ctx, seen, maxAge)
	case apiv1.ConsistencyMode_CONSISTENCY_MODE_LINEARIZABLE:
		return s.readLinearizable(ctx, seen)
	case apiv1.ConsistencyMode_CONSISTENCY_MODE_STALE:
		maxAge := time.Duration(math.MaxInt64)
		if ms := c.GetMaxAgeMs(); ms > 0 {
			maxAge = duration(ms)
		}
		v, err := s.store.Local()
		if err != nil {
			return read{}, err
		}
		return s.bounded(v, seen, maxAge)
	default:
		return read{}, fmt.Errorf("%w: consistency mode %d is not known", directory.ErrInvalid, mode)
	}
}

func (s *Server) readLinearizable(ctx context.Context, seen token) (read, error) {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	v, err := s.store.Linearizable(ctx)
	if err != nil {
		return read{}, err
	}
	r := read{View: v, linearizable: true}
	if err := s.begin(&r, seen); err != nil {
		return read{}, err
	}
	return r, nil
}

func (s *Server) readAtLeast(ctx context.Context, seen token, maxAge time.Duration) (read, error) {
	v, err := s.store.Local()
	if err != nil {
		return read{}, err
	}
	if seen.revision > 0 {
		revision, err := s.machine.Revision(v)
		if err != nil {
			v.Release()
			return read{}, err
		}
		if revision < seen.revision {
			// Another incarnation's revisions mean nothing here: do not wait for them.
			r := read{View: v}
			if err := s.begin(&r, seen); err != nil {
				return read{}, err
			}
			v.Release()
			if v, err = s.catchUp(ctx, seen.revision, revision); err != nil {
				return read{}, err
			}
		}
	}
	return s.bounded(v, seen, maxAge)
}

// catchUp waits for a view that shows revision.
func (s *Server) catchUp(ctx context.Context, revision, now directory.Revision) (View, error) {
	waiting, cancel := context.WithTimeout(ctx, s.catchUpFor)
	defer cancel()
	v, err := s.store.When(waiting, func(r kv.Reader) bool {
		got, err := s.machine.Revision(r)
		if err == nil {
			now = got
		}
		return err != nil || got >= revision
	})
	if err == nil {
		return v, nil
	}
	if ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
		return nil, withMetadata(fmt.Errorf("%w: at revision %d, the token saw %d", errBehind, now, revision), "revision", number(uint64(now)))
	}
	return nil, err
}

// bounded makes a read of v if it is not too old.
func (s *Server) bounded(v View, seen token, maxAge time.Duration) (read, error) {
	r := read{View: v, age: math.MaxInt64}
	if age, known := v.Age(); known {
		r.age = age
	}
	if r.age > maxAge {
		v.Release()
		if r.age == math.MaxInt64 {
			return read{}, fmt.Errorf("%w: no leader has been heard since this node was started; at most %v was asked for", errTooStale, maxAge)
		}
		return read{}, withMetadata(fmt.Errorf("%w: %v old, at most %v was asked for", errTooStale, r.age, maxAge), "age_ms", number(uint64(r.age.Milliseconds())))
	}
	if err := s.begin(&r, seen); err != nil {
		return read{}, err
	}
	return r, nil
}

// begin checks that the token is of this cluster and life. On an error it
// releases r.
func (s *Server) begin(r *read, seen token) (err error) {
	defer func() {
		if err != nil {
			r.Release()
		}
	}()
	if r.id, err = s.identity(r); err != nil {
		return err
	}
	return s.ours(seen, r.id)
}

// ours checks that a token, if it is one, is of the cluster and life that id names.
func (s *Server) ours(seen token, id *identity) (err error) {
	switch {
	case seen.cluster == "":
		return nil
	case seen.cluster != id.cluster:
		err = fmt.Errorf("%w: the token is of cluster %s, this is %s", errWrongIncarnation, seen.cluster, id.cluster)
	case seen.incarnation != id.incarnation:
		err = fmt.Errorf("%w: the token is of incarnation %d, this is %d", errWrongIncarnation, seen.incarnation, id.incarnation)
	case seen.shard != s.shard:
		err = fmt.Errorf("%w: the token is of shard %d, this is %d", errInvalidToken, seen.shard, s.shard)
	}
	if errors.Is(err, errWrongIncarnation) {
		err = withMetadata(err, "incarnation", number(uint64(id.incarnation)), "seen", number(uint64(seen.incarnation)))
	}
	return err
}

// header says what an answer at revision, out of r, is.
func (s *Server) header(h *apiv1.ResponseHeader, r *read, revision directory.Revision) *apiv1.ResponseHeader {
	h.Token = s.token(r.id, revision)
	h.Revision = uint64(revision)
	h.Node = s.node
	h.Incarnation = uint32(r.id.incarnation)
	if !r.linearizable {
		h.AgeMs = ageMillis(r.age)
	}
	return h
}

// headerOf is header for answers that do not carry their revision.
func (s *Server) headerOf(r *read) (*apiv1.ResponseHeader, error) {
	revision, err := s.machine.Revision(r)
	if err != nil {
		return nil, err
	}
	return s.header(new(apiv1.ResponseHeader), r, revision), nil
}

// issued is the token last made: while nothing is written, all reads send the same.
type issued struct {
	token   token
	encoded []byte
}

func (s *Server) token(id *identity, revision directory.Revision) []byte {
	if last := s.issued.Load(); last != nil && last.token.revision == revision {
		return last.encoded
	}
	t := token{cluster: id.cluster, incarnation: id.incarnation, shard: s.shard, revision: revision}
	last := &issued{token: t, encoded: t.encode()}
	s.issued.Store(last)
	return last.encoded
}

// bound gives ctx the server's timeout if the caller set no deadline.
func (s *Server) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, s.timeout)
}

// ageMillis is never less than the age: a part of a millisecond counts as one.
func ageMillis(age time.Duration) uint64 {
	if age == math.MaxInt64 {
		return math.MaxUint64
	}
	return uint64((age + time.Millisecond - 1) / time.Millisecond)
}

// duration is the API's milliseconds, the longest Duration at most.
func duration(ms uint64) time.Duration {
	if ms > math.MaxInt64/uint64(time.Millisecond) {
		return math.MaxInt64
	}
	return time.Duration(ms) * time.Millisecond
}
