package machine

import (
	"errors"
	"fmt"

	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/internal/kv"
)

// The cluster versions that this release supports. A cluster is of one of them
// at a time; it stands in the cluster row and is raised by Finalize, never
// lowered. Whatever a release adds to the commands, to what they do or to the
// octets of the state waits for the version that it came with: until then this
// release does, to the octet, what the releases before it do, so that they can
// run beside it and take its place again. docs/design/0011-versions.md has the
// rules for who adds one.
const (
	OldestVersion uint32 = 1
	NewestVersion uint32 = 2
)

// The versions and what came with them.
const (
	// versionFull: a backend can be full, and the cluster row is a value of format
	// 2, which stops the releases that know version 1 alone before they read on.
	versionFull uint32 = 2
	// versionLapse: a withdrawal that was announced ends by itself. The deadline is a
	// row that older releases do not know.
	versionLapse uint32 = 2
	// versionLeft: a server that has just left a group does not inherit what the group's
	// primary retracts.
	versionLeft uint32 = 2
	// versionSince: an approved withdrawal leaves what others have stated since.
	versionSince uint32 = 2
	// versionRelease: a reservation is given back only if it was not renewed since.
	versionRelease uint32 = 2
)

// ErrRelease: the cluster is of a version that this release does not support. The
// node stops; the text names the release to put back.
var ErrRelease = errors.New("machine: cluster version out of range")

// TurnsOn says, a line each, what raising the cluster version from one to another
// turns on, as far as this release knows.
func TurnsOn(from, to uint32) (lines []string) {
	for v := from + 1; v <= min(to, NewestVersion); v++ {
		switch v {
		case versionFull:
			lines = append(lines,
				"`rookeryctl backends set B --state full`: a backend that takes no new users and is not being emptied",
				"a withdrawal that was announced and not made (MUPDATE's DELETE before a rename) ends after the grace of reservations: the mailbox is active again",
				"a server that has just left its group does not inherit what the group's primary retracts",
				"a reservation is given back only if it was not renewed since, so MUPDATE's are as long as their connections whatever node those are to",
				"`rookeryctl withdrawal approve` of a primary leaves what other members of its group have stated since it withdrew",
				"the state says its version so that releases before v0.4.0 stop at it")
		}
	}
	return lines
}

// Requires returns the cluster version that has to be in force for a command to
// be understood by every node.
func Requires(op Op) uint32 {
	switch op := op.(type) {
	case SetBackend:
		if op.State != nil && *op.State == directory.BackendFull {
			return versionFull
		}
	case Batch:
		most := OldestVersion
		for _, item := range op.Ops {
			most = max(most, Requires(item))
		}
		return most
	}
	// Finalize is how the first version after 1 came to be: it is proposed when
	// every member is known to understand it, and by nobody else.
	return OldestVersion
}

// NotInForce refuses op if it needs a later version than is in force.
//
// Errors: directory.ErrVersion.
func NotInForce(op Op, inForce uint32) error {
	need := Requires(op)
	if need <= inForce {
		return nil
	}
	return refuse(directory.ErrVersion, "it came with cluster version %d, and %d is in force: `rookeryctl cluster-version` says what is in the way of `rookeryctl cluster-version finalize`", need, inForce)
}

// finalize raises the cluster version.
func (a *apply) finalize(op Finalize) (Result, error) {
	c := a.cluster
	switch {
	case len(op.Release) > directory.MaxText:
		return Result{}, refuse(directory.ErrInvalid, "a release's name of %d octets, at most %d", len(op.Release), directory.MaxText)
	case op.To > NewestVersion:
		// Others know what it means, and go on by it.
		return Result{}, outOfRange("the log goes on with", op.To, op.Release)
	case op.To == c.Version:
		return Result{Effect: Unchanged}, nil
	case op.To < c.Version || op.To <= op.From:
		return Result{}, refuse(directory.ErrInvalid, "cluster version %d is in force: it is never lowered to %d", c.Version, op.To)
	case op.From != c.Version:
		return Result{}, refuse(directory.ErrVersion, "cluster version %d is in force, not %d", c.Version, op.From)
	}
	c.Version, c.Release = op.To, own(op.Release)
	a.putCluster(c)
	a.log(directory.Change{Kind: directory.ChangeSettings})
	return Result{Effect: Changed}, nil
}

// putClusterRow writes the cluster row. Its format is what an older release sees
// first: one that knows version 1 alone reads no value of format 2.
func (a *apply) putClusterRow(c cluster) {
	format := formatVersion
	if c.Version >= versionFull {
		format = formatCluster
	}
	a.tx.Put(bucketMeta, keyCluster, appendSealedAs(nil, format, bucketMeta, keyCluster, encodeCluster(c)))
}

// readCluster reads the cluster row; there may be none. A row that a newer release
// has written is still read for what it is called by.
//
// Errors: ErrRelease, and unseal's.
func readCluster(r kv.Reader) (c cluster, err error) {
	v := r.Get(bucketMeta, keyCluster)
	if v == nil {
		return c, nil
	}
	b, err := unseal(bucketMeta, keyCluster, v)
	if errors.Is(err, ErrFormat) {
		if c, newer := decodeCluster(v[1 : len(v)-frameSize+1]); newer == nil && c.Version > NewestVersion {
			return c, outOfRange("the state is of", c.Version, c.Release)
		}
	}
	if err != nil {
		return c, err
	}
	if c, err = decodeCluster(b); err != nil {
		return c, err
	}
	if c.ID != "" && (c.Version < OldestVersion || c.Version > NewestVersion) {
		return c, outOfRange("the state is of", c.Version, c.Release)
	}
	return c, nil
}

// outOfRange says to an operator which release a node needs.
func outOfRange(what string, version uint32, release string) error {
	if version < OldestVersion {
		return fmt.Errorf("%w: %s cluster version %d, and this release supports %d to %d: start the release before this one and run `rookeryctl cluster-version finalize` first",
			ErrRelease, what, version, OldestVersion, NewestVersion)
	}
	put := "put back the release that supports it"
	if release != "" {
		put = "put release " + release + ", which raised it, or a later one back"
	}
	return fmt.Errorf("%w: %s cluster version %d, and this release supports %d to %d: %s; nothing was changed",
		ErrRelease, what, version, OldestVersion, NewestVersion, put)
}
