package directory

import (
	"fmt"
	"strings"
)

// A Location says where a copy of a mailbox is: on which backend, in which of
// its storage areas. Partition is "" where the backend did not say: Cyrus 3.6
// leaves it out when it renames.
type Location struct {
	Backend   BackendName
	Partition string
}

// ParseLocation reads "server!partition". The partition may be empty, the '!'
// may not be missing, and there is only one: Cyrus never sends two.
//
// Errors: ErrInvalidLocation.
//
// RFC 3656, section 2.
func ParseLocation(s string) (Location, error) {
	server, partition, ok := strings.Cut(s, "!")
	if !ok {
		return Location{}, fmt.Errorf("%w: %q has no '!'", ErrInvalidLocation, clip(s))
	}
	if reason := hostFault(server); reason != "" {
		return Location{}, fmt.Errorf("%w: %q: server: %s", ErrInvalidLocation, clip(s), reason)
	}
	if reason := partitionFault(partition); reason != "" {
		return Location{}, fmt.Errorf("%w: %q: partition: %s", ErrInvalidLocation, clip(s), reason)
	}
	return Location{Backend: BackendName(server), Partition: partition}, nil
}

// ParsePartition checks the name of a storage area: up to 253 printable ASCII
// octets without space and '!', or none.
//
// Errors: ErrInvalidLocation.
func ParsePartition(s string) (string, error) {
	if reason := partitionFault(s); reason != "" {
		return "", fmt.Errorf("%w: partition %q: %s", ErrInvalidLocation, clip(s), reason)
	}
	return s, nil
}

func partitionFault(s string) string {
	if len(s) > 253 {
		return "it is longer than 253 octets"
	}
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c >= 0x7F || c == '!' {
			return fmt.Sprintf("octet %q is not of a partition name", c)
		}
	}
	return ""
}

// String returns "server!partition", which ParseLocation reads back.
func (l Location) String() string {
	return string(l.Backend) + "!" + l.Partition
}
