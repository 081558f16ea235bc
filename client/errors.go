package client

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rookery-mail/rookery/directory"
	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
)

// What a call may fail with besides directory's sentinels. None of them says
// anything about a mailbox.
var (
	// ErrUnavailable: no node could answer in time. It is found in every error
	// that may be gone when the call is tried again.
	ErrUnavailable = errors.New("client: unavailable")
	// ErrUndecided: the write may have been done or not. It is never done later
	// than the next write of this client.
	ErrUndecided = errors.New("client: undecided")
	// ErrOverloaded: the nodes have more to do than they can; nothing was done.
	ErrOverloaded = errors.New("client: overloaded")
	// ErrNotLeader: the node asked does not lead.
	ErrNotLeader = errors.New("client: not the leader")
	// ErrNoLeader: there is no leader, or no majority.
	ErrNoLeader = errors.New("client: no leader")
	// ErrBehind: no node has applied yet what the token saw.
	ErrBehind = errors.New("client: node is behind")
	// ErrTooStale: no node's state is as new as was asked for.
	ErrTooStale = errors.New("client: too stale")
	// ErrWrongIncarnation: the token is of another cluster or of another life of
	// it; what was learnt with it may no longer be so.
	ErrWrongIncarnation = errors.New("client: wrong incarnation")
	// ErrCompacted: what was asked for is no longer kept; start from a listing.
	ErrCompacted = errors.New("client: compacted")
	// ErrSlowWatcher: the watcher took in less than there was to tell. Watch goes on
	// by itself.
	ErrSlowWatcher = errors.New("client: slow watcher")
	// ErrInvalidToken: that is no token, or no page token.
	ErrInvalidToken = errors.New("client: invalid token")
	// ErrClosing: the node is closing or has not opened yet.
	ErrClosing = errors.New("client: node is closing")
	// ErrBroken: the node found itself broken.
	ErrBroken = errors.New("client: node is broken")
	// ErrUnsupported: the node's release does not have the call or the option.
	ErrUnsupported = errors.New("client: unsupported")
	// ErrProtocol: the answer makes no sense, such as a listing that broke off.
	ErrProtocol = errors.New("client: malformed answer")
	// ErrNoQuorum: afterwards too few voters would answer to make a majority.
	ErrNoQuorum = errors.New("client: no quorum")
	// ErrLagging: the node does not answer the leader, or its log is too far behind;
	// it catches up by itself.
	ErrLagging = errors.New("client: node lags")
	// ErrNotWaiting: no node of that name asks to join.
	ErrNotWaiting = errors.New("client: not waiting to join")
	// ErrNotVoter: the node has no vote, or no other node has one.
	ErrNotVoter = errors.New("client: not a voter")
	// ErrLeading: the node leads; move the leadership first.
	ErrLeading = errors.New("client: node leads")
	// ErrClosed: the Client was closed.
	ErrClosed = errors.New("client: closed")
)

// Error is why a call was refused or not answered. Unwrap leads to directory's
// sentinels and those of this package.
type Error struct {
	// Reason is the name of the API's Reason without prefix, such as "RESERVED";
	// empty if the transport failed.
	Reason string
	// Message is for people.
	Message string
	// Holder and Age name who is in the way, of RESERVED and EXISTS.
	Holder directory.BackendName
	Age    time.Duration
	// Epoch is the group's present one, of STALE_EPOCH.
	Epoch uint64
	// Trails is by how many entries the node trails the leader, of LAGGING; 0 if it
	// does not answer.
	Trails uint64
	// Incarnation is the node's, of WRONG_INCARNATION.
	Incarnation directory.Incarnation
	// Metadata is all that was said with the reason; nil if nothing.
	Metadata map[string]string

	err     error // the sentinel
	earlier bool  // of WRONG_INCARNATION: the node lives in an earlier one
	done    bool  // of the same: it was done there
	again   bool  // of WRONG_INCARNATION: the token was dropped
}

func (e *Error) Error() string {
	if e.Reason == "" {
		return e.Message
	}
	return e.Reason + ": " + e.Message
}

// Unwrap returns the sentinel, and ErrUnavailable too where trying again may help.
func (e *Error) Unwrap() []error {
	if e.err != ErrUnavailable && transient(e.err) {
		return []error{e.err, ErrUnavailable}
	}
	return []error{e.err}
}

// transient says whether the same call may be answered later or elsewhere.
func transient(sentinel error) bool {
	switch sentinel {
	case ErrUnavailable, ErrUndecided, ErrNotLeader, ErrNoLeader, ErrBehind, ErrTooStale, ErrOverloaded, ErrClosing:
		return true
	}
	return false
}

// sentinels is the inverse of the table in server/status.go.
var sentinels = map[apiv1.Reason]error{
	apiv1.Reason_REASON_NOT_FOUND:         directory.ErrNotFound,
	apiv1.Reason_REASON_RESERVED:          directory.ErrReserved,
	apiv1.Reason_REASON_EXISTS:            directory.ErrExists,
	apiv1.Reason_REASON_STALE_EPOCH:       directory.ErrStaleEpoch,
	apiv1.Reason_REASON_NOT_PRIMARY:       directory.ErrNotPrimary,
	apiv1.Reason_REASON_NOT_MEMBER:        directory.ErrNotMember,
	apiv1.Reason_REASON_MISSING_AT_TARGET: directory.ErrMissingAtTarget,
	apiv1.Reason_REASON_OVERLOADED:        ErrOverloaded,
	apiv1.Reason_REASON_READ_ONLY:         directory.ErrReadOnly,
	apiv1.Reason_REASON_TOO_LARGE:         directory.ErrTooLarge,
	apiv1.Reason_REASON_WRONG_INCARNATION: ErrWrongIncarnation,
	apiv1.Reason_REASON_TOO_STALE:         ErrTooStale,
	apiv1.Reason_REASON_NOT_LEADER:        ErrNotLeader,
	apiv1.Reason_REASON_NO_LEADER:         ErrNoLeader,
	apiv1.Reason_REASON_BEHIND:            ErrBehind,
	apiv1.Reason_REASON_COMPACTED:         ErrCompacted,
	apiv1.Reason_REASON_SLOW_WATCHER:      ErrSlowWatcher,
	apiv1.Reason_REASON_ROLE:              directory.ErrRole,
	apiv1.Reason_REASON_INVALID_NAME:      directory.ErrInvalidName,
	apiv1.Reason_REASON_INVALID_ACL:       directory.ErrInvalidACL,
	apiv1.Reason_REASON_INVALID_LOCATION:  directory.ErrInvalidLocation,
	apiv1.Reason_REASON_INVALID_PATTERN:   directory.ErrInvalidPattern,
	apiv1.Reason_REASON_INVALID:           directory.ErrInvalid,
	apiv1.Reason_REASON_INCOMPLETE:        directory.ErrIncomplete,
	apiv1.Reason_REASON_NOT_PLACEABLE:     directory.ErrNotPlaceable,
	apiv1.Reason_REASON_NOT_ADMITTED:      directory.ErrNotAdmitted,
	apiv1.Reason_REASON_NOT_HOLDER:        directory.ErrNotHolder,
	apiv1.Reason_REASON_BUSY:              directory.ErrBusy,
	apiv1.Reason_REASON_STALE_REQUEST:     directory.ErrStaleRequest,
	apiv1.Reason_REASON_INVALID_TOKEN:     ErrInvalidToken,
	apiv1.Reason_REASON_UNDECIDED:         ErrUndecided,
	apiv1.Reason_REASON_CLOSED:            ErrClosing,
	apiv1.Reason_REASON_BROKEN:            ErrBroken,
	apiv1.Reason_REASON_DEADLINE:          context.DeadlineExceeded,
	apiv1.Reason_REASON_UNSUPPORTED:       ErrUnsupported,
	apiv1.Reason_REASON_NO_QUORUM:         ErrNoQuorum,
	apiv1.Reason_REASON_LAGGING:           ErrLagging,
	apiv1.Reason_REASON_NOT_WAITING:       ErrNotWaiting,
	apiv1.Reason_REASON_NOT_VOTER:         ErrNotVoter,
	apiv1.Reason_REASON_LEADING:           ErrLeading,
	apiv1.Reason_REASON_VERSION:           directory.ErrVersion,
}

// errorDomain is the ErrorInfo domain of the API's reasons.
const errorDomain = "rookery.api.v1"

// FromStatus turns an error of the generated API into what this package's
// methods return: an *Error. Other errors and nil are returned as they are.
func FromStatus(err error) error {
	st, ok := status.FromError(err)
	if err == nil || !ok {
		return err
	}
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.GetDomain() == errorDomain {
			reason := apiv1.Reason(apiv1.Reason_value["REASON_"+info.GetReason()])
			return refusal(info.GetReason(), sentinels[reason], st.Code(), st.Message(), info.GetMetadata())
		}
	}
	return refusal("", nil, st.Code(), st.Message(), nil)
}

// fromItem is FromStatus for one item of a request.
func fromItem(e *apiv1.Error) error {
	name := strings.TrimPrefix(e.GetReason().String(), "REASON_")
	return refusal(name, sentinels[e.GetReason()], codes.Unknown, e.GetMessage(), e.GetMetadata())
}

// refusal makes an Error. A reason that this release does not know, and a status
// without one, is told by its code.
func refusal(reason string, sentinel error, code codes.Code, message string, metadata map[string]string) *Error {
	if sentinel == nil {
		sentinel = ofCode(code)
	}
	if code == codes.Canceled {
		sentinel = context.Canceled
	}
	e := &Error{Reason: reason, Message: message, err: sentinel}
	if len(metadata) > 0 {
		e.Metadata = maps.Clone(metadata)
		e.Holder = directory.BackendName(metadata["holder"])
		e.Age = millis(number(metadata["age_ms"]))
		e.Epoch = number(metadata["epoch"])
		e.Trails = number(metadata["trails"])
		e.Incarnation = directory.Incarnation(number(metadata["incarnation"]))
	}
	return e
}

// number reads a number of an error's metadata, 0 if it is none.
func number(s string) uint64 {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// ofCode is the sentinel of a status that carries no reason: the transport's, or
// a proxy's.
func ofCode(code codes.Code) error {
	switch code {
	case codes.Canceled:
		return context.Canceled
	case codes.DeadlineExceeded:
		return context.DeadlineExceeded
	case codes.Unavailable:
		return ErrUnavailable
	case codes.ResourceExhausted:
		return directory.ErrTooLarge // the transport's limit on a message
	case codes.Unimplemented:
		return ErrUnsupported
	case codes.InvalidArgument:
		return directory.ErrInvalid
	case codes.NotFound:
		return directory.ErrNotFound
	case codes.PermissionDenied, codes.Unauthenticated:
		return directory.ErrRole
	case codes.Aborted:
		return directory.ErrStaleRequest
	case codes.OutOfRange:
		return ErrCompacted
	}
	return ErrBroken
}

// unanswered is what a call ends with when its time is over: the most telling
// error of its attempts, if there was one, tells why it took so long.
func unanswered(ctx context.Context, last error, write, sent bool) error {
	why := context.Cause(ctx)
	if last == nil {
		last = why
	}
	if write && sent {
		return &Error{Message: fmt.Sprintf("client: the write may or may not have been done: %v", last), err: errors.Join(ErrUndecided, ErrUnavailable, why)}
	}
	return &Error{Message: fmt.Sprintf("client: not answered: %v", last), err: errors.Join(ErrUnavailable, why, last)}
}

// Answered finds in err, which may be why all attempts failed, what a node has answered;
// nil if none has.
func Answered(err error) *Error {
	if e, ok := err.(*Error); ok && e.Reason != "" {
		return e
	}
	switch u := err.(type) {
	case interface{ Unwrap() error }:
		return Answered(u.Unwrap())
	case interface{ Unwrap() []error }:
		for _, err := range u.Unwrap() {
			if e := Answered(err); e != nil {
				return e
			}
		}
	}
	return nil
}

// Reasons lists the reasons that an Error may have, in no order of meaning.
func Reasons() []string {
	var names []string
	for r := range sentinels {
		name := strings.TrimPrefix(r.String(), "REASON_")
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// millis turns the API's milliseconds into a Duration; the largest number, and
// what no Duration holds, is AgeUnknown.
func millis(ms uint64) time.Duration {
	if ms > uint64(1<<63-1)/uint64(time.Millisecond) {
		return AgeUnknown
	}
	return time.Duration(ms) * time.Millisecond
}
