package directory

import "errors"

// The rejections of the domain. Every node gives the same one for the same
// command in the same state. Context is added with %w; compare with errors.Is.
// server/status.go maps each to a gRPC code and a reason.
var (
	// ErrInvalidName: the text is no canonical mailbox name, user id or backend name.
	ErrInvalidName = errors.New("directory: invalid name")
	// ErrInvalidACL: the ACL does not parse as identifier TAB rights TAB (RFC 4314).
	ErrInvalidACL = errors.New("directory: invalid ACL")
	// ErrInvalidLocation: the location is not server!partition (RFC 3656).
	ErrInvalidLocation = errors.New("directory: invalid location")
	// ErrInvalidPattern: the LIST pattern or reference cannot be used.
	ErrInvalidPattern = errors.New("directory: invalid pattern")
	// ErrInvalid: any other field of a request that makes no sense.
	ErrInvalid = errors.New("directory: invalid request")
	// ErrTooLarge: a name, an ACL, a rename or a batch is over its limit; split it.
	ErrTooLarge = errors.New("directory: too large")
	// ErrNotFound: the backend, group, fork, hold or fact named does not exist.
	// A mailbox's absence is never this error: it is an outcome of a route.
	ErrNotFound = errors.New("directory: not found")
	// ErrReserved: another group holds a live reservation of the name.
	ErrReserved = errors.New("directory: reserved")
	// ErrExists: the name is taken, by a fact of another group's or by a row of that name.
	ErrExists = errors.New("directory: exists")
	// ErrIncomplete: the directory has not heard every backend, so it cannot promise that the name is free.
	ErrIncomplete = errors.New("directory: incomplete")
	// ErrNotPlaceable: the server may take no new mailbox of that kind now: draining, down or full.
	ErrNotPlaceable = errors.New("directory: not placeable")
	// ErrNotAdmitted: the backend has not been admitted.
	ErrNotAdmitted = errors.New("directory: not admitted")
	// ErrStaleEpoch: the group's primary has moved since the caller looked.
	ErrStaleEpoch = errors.New("directory: stale epoch")
	// ErrNotPrimary: the server is not the primary of its group.
	ErrNotPrimary = errors.New("directory: not primary")
	// ErrNotMember: the server is no member of the group, or is down.
	ErrNotMember = errors.New("directory: not a member")
	// ErrMissingAtTarget: the new primary does not hold all that the present one holds.
	ErrMissingAtTarget = errors.New("directory: missing at target")
	// ErrNotHolder: the server holds no fact that the command could change.
	ErrNotHolder = errors.New("directory: not a holder")
	// ErrBusy: the backend or group still holds facts, or is in a change that must end first.
	ErrBusy = errors.New("directory: busy")
	// ErrReadOnly: the cluster takes no growth now.
	ErrReadOnly = errors.New("directory: read-only")
	// ErrStaleRequest: a later request of the same client id has been applied; this one is a late repeat.
	ErrStaleRequest = errors.New("directory: stale request")
	// ErrVersion: the command came with a later cluster version than is in force.
	ErrVersion = errors.New("directory: not in force yet")
	// ErrRole: the caller's role may not do this.
	ErrRole = errors.New("directory: role may not do this")
)
