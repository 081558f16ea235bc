package server

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strconv"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/directory/machine"
	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
	"github.com/rookery-mail/rookery/raftstore"
)

// What the server itself refuses.
var (
	errInvalidToken     = errors.New("server: invalid token")
	errWrongIncarnation = errors.New("server: wrong incarnation")
	errTooStale         = errors.New("server: too stale")
	errBehind           = errors.New("server: behind")
	errUndecided        = errors.New("server: undecided")
	errNotLeader        = errors.New("server: not the leader")
	errUnsupported      = errors.New("server: unsupported")
	errCompacted        = errors.New("server: compacted")
	errNoQuorum         = errors.New("server: no quorum")
	errLagging          = errors.New("server: lagging")
	errNotWaiting       = errors.New("server: not waiting")
	errNotVoter         = errors.New("server: not a voter")
	errLeading          = errors.New("server: leading")
	errSlowWatcher      = errors.New("server: slow watcher") // it can be resumed
)

// statusRow says what an error is on the wire.
type statusRow struct {
	err    error
	code   codes.Code
	reason apiv1.Reason
}

// statusTable is searched from the top with errors.Is. What is not in it is a
// fault of this node. client/errors.go is its inverse.
var statusTable = []statusRow{
	{errUndecided, codes.Unavailable, apiv1.Reason_REASON_UNDECIDED},
	{raftstore.ErrUnknown, codes.Unavailable, apiv1.Reason_REASON_UNDECIDED},
	{errNotLeader, codes.Unavailable, apiv1.Reason_REASON_NOT_LEADER},
	{raftstore.ErrNoLeader, codes.Unavailable, apiv1.Reason_REASON_NO_LEADER},
	{errBehind, codes.Unavailable, apiv1.Reason_REASON_BEHIND},
	{errTooStale, codes.Unavailable, apiv1.Reason_REASON_TOO_STALE},
	{raftstore.ErrOverloaded, codes.ResourceExhausted, apiv1.Reason_REASON_OVERLOADED},
	{raftstore.ErrClosed, codes.Unavailable, apiv1.Reason_REASON_CLOSED},
	{raftstore.ErrStopped, codes.Unavailable, apiv1.Reason_REASON_CLOSED},
	{errWrongIncarnation, codes.FailedPrecondition, apiv1.Reason_REASON_WRONG_INCARNATION},
	{errInvalidToken, codes.InvalidArgument, apiv1.Reason_REASON_INVALID_TOKEN},
	{errUnsupported, codes.Unimplemented, apiv1.Reason_REASON_UNSUPPORTED},
	{errCompacted, codes.OutOfRange, apiv1.Reason_REASON_COMPACTED},
	{errNoQuorum, codes.FailedPrecondition, apiv1.Reason_REASON_NO_QUORUM},
	{errLagging, codes.FailedPrecondition, apiv1.Reason_REASON_LAGGING},
	{errNotWaiting, codes.FailedPrecondition, apiv1.Reason_REASON_NOT_WAITING},
	{errNotVoter, codes.FailedPrecondition, apiv1.Reason_REASON_NOT_VOTER},
	{errLeading, codes.FailedPrecondition, apiv1.Reason_REASON_LEADING},
	{errSlowWatcher, codes.Aborted, apiv1.Reason_REASON_SLOW_WATCHER},

	{directory.ErrRole, codes.PermissionDenied, apiv1.Reason_REASON_ROLE},
	{directory.ErrTooLarge, codes.InvalidArgument, apiv1.Reason_REASON_TOO_LARGE},
	{raftstore.ErrTooLarge, codes.InvalidArgument, apiv1.Reason_REASON_TOO_LARGE},
	{directory.ErrInvalidName, codes.InvalidArgument, apiv1.Reason_REASON_INVALID_NAME},
	{directory.ErrInvalidACL, codes.InvalidArgument, apiv1.Reason_REASON_INVALID_ACL},
	{directory.ErrInvalidLocation, codes.InvalidArgument, apiv1.Reason_REASON_INVALID_LOCATION},
	{directory.ErrInvalidPattern, codes.InvalidArgument, apiv1.Reason_REASON_INVALID_PATTERN},
	{directory.ErrInvalid, codes.InvalidArgument, apiv1.Reason_REASON_INVALID},
	{directory.ErrNotFound, codes.NotFound, apiv1.Reason_REASON_NOT_FOUND},
	{directory.ErrReserved, codes.AlreadyExists, apiv1.Reason_REASON_RESERVED},
	{directory.ErrExists, codes.AlreadyExists, apiv1.Reason_REASON_EXISTS},
	{directory.ErrIncomplete, codes.FailedPrecondition, apiv1.Reason_REASON_INCOMPLETE},
	{directory.ErrNotPlaceable, codes.FailedPrecondition, apiv1.Reason_REASON_NOT_PLACEABLE},
	{directory.ErrNotAdmitted, codes.FailedPrecondition, apiv1.Reason_REASON_NOT_ADMITTED},
	{directory.ErrStaleEpoch, codes.FailedPrecondition, apiv1.Reason_REASON_STALE_EPOCH},
	{directory.ErrNotPrimary, codes.FailedPrecondition, apiv1.Reason_REASON_NOT_PRIMARY},
	{directory.ErrNotMember, codes.FailedPrecondition, apiv1.Reason_REASON_NOT_MEMBER},
	{directory.ErrMissingAtTarget, codes.FailedPrecondition, apiv1.Reason_REASON_MISSING_AT_TARGET},
	{directory.ErrNotHolder, codes.FailedPrecondition, apiv1.Reason_REASON_NOT_HOLDER},
	{directory.ErrBusy, codes.FailedPrecondition, apiv1.Reason_REASON_BUSY},
	{raftstore.ErrBusy, codes.FailedPrecondition, apiv1.Reason_REASON_BUSY},
	{directory.ErrReadOnly, codes.FailedPrecondition, apiv1.Reason_REASON_READ_ONLY},
	{raftstore.ErrNoRoom, codes.FailedPrecondition, apiv1.Reason_REASON_READ_ONLY},
	{directory.ErrVersion, codes.FailedPrecondition, apiv1.Reason_REASON_VERSION},
	{raftstore.ErrNotInForce, codes.FailedPrecondition, apiv1.Reason_REASON_VERSION},
	{directory.ErrStaleRequest, codes.Aborted, apiv1.Reason_REASON_STALE_REQUEST},

	{machine.ErrCorrupt, codes.Internal, apiv1.Reason_REASON_BROKEN},
	{machine.ErrRelease, codes.Internal, apiv1.Reason_REASON_BROKEN},
	{machine.ErrFormat, codes.Internal, apiv1.Reason_REASON_BROKEN},
	{context.DeadlineExceeded, codes.DeadlineExceeded, apiv1.Reason_REASON_DEADLINE},
	{context.Canceled, codes.Canceled, apiv1.Reason_REASON_DEADLINE},
}

// broken is for what is in no row.
var broken = statusRow{nil, codes.Internal, apiv1.Reason_REASON_BROKEN}

func findStatus(err error) statusRow {
	for _, row := range statusTable {
		if errors.Is(err, row.err) {
			return row
		}
	}
	return broken
}

// errorDomain is the domain of the reasons in an ErrorInfo.
const errorDomain = "rookery.api.v1"

// toStatus makes of a handler's error the status that goes over the wire, and
// says its reason. A status passes as it is.
func (s *Server) toStatus(err error) (apiv1.Reason, error) {
	if _, ok := status.FromError(err); ok {
		return apiv1.Reason_REASON_UNSPECIFIED, err
	}
	err = s.nameLeader(err)
	row := findStatus(err)
	info := &errdetails.ErrorInfo{Reason: reasonName(row.reason), Domain: errorDomain, Metadata: metadataOf(err)}
	st, detailErr := status.New(row.code, err.Error()).WithDetails(info)
	if detailErr != nil {
		return row.reason, status.Error(row.code, err.Error())
	}
	return row.reason, st.Err()
}

// toError is toStatus for one item of a request.
func toError(err error, index int) *apiv1.Error {
	return &apiv1.Error{Reason: findStatus(err).reason, Message: err.Error(), Metadata: metadataOf(err), Index: uint32(index)}
}

// nameLeader says who leads, where the store could only say that it is another.
func (s *Server) nameLeader(err error) error {
	other, ok := errors.AsType[*raftstore.NotLeaderError](err)
	if !ok {
		return err
	}
	members := s.members()
	members.Leader = other.Leader
	return anotherLeads(&members)
}

// anotherLeads sends the caller to the leader.
func anotherLeads(m *Members) error {
	leader := m.leader()
	if leader == nil {
		return fmt.Errorf("%w; a node that is not known here is", errNotLeader)
	}
	return withMetadata(fmt.Errorf("%w; %s is", errNotLeader, leader.Name), "leader", leader.Name, "leader_address", leader.ClientAddress)
}

const reasonPrefix = "REASON_"

// reasonName is the reason as an ErrorInfo and a metric's label write it.
func reasonName(r apiv1.Reason) string { return r.String()[len(reasonPrefix):] }

// detailed is an error with what its ErrorInfo says besides.
type detailed struct {
	err      error
	metadata map[string]string
}

func (d *detailed) Error() string { return d.err.Error() }
func (d *detailed) Unwrap() error { return d.err }

// withMetadata adds keys and values to err; empty values are left out.
func withMetadata(err error, pairs ...string) error {
	metadata := maps.Clone(metadataOf(err))
	if metadata == nil {
		metadata = make(map[string]string)
	}
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			metadata[pairs[i]] = pairs[i+1]
		}
	}
	return &detailed{err, metadata}
}

func metadataOf(err error) map[string]string {
	if d, ok := errors.AsType[*detailed](err); ok {
		return d.metadata
	}
	return nil
}

// refusal is the error of a result that was refused.
func refusal(r *machine.Result) error {
	err := r.Refused
	switch {
	case errors.Is(err, directory.ErrStaleEpoch):
		return withMetadata(err, "epoch", number(r.Epoch))
	case errors.Is(err, directory.ErrReserved), errors.Is(err, directory.ErrExists):
		return withMetadata(err, "holder", string(r.Holder), "age_ms", number(uint64(r.Age)))
	}
	return err
}

func number(n uint64) string { return strconv.FormatUint(n, 10) }
