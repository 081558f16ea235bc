package machine

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/rookery-mail/rookery/internal/kv"
)

// The format of the state: which buckets there are, what stands in their keys,
// and what a value looks like. formatName stands in the state itself, under
// keyFormat; formatVersion stands before every value, so that a later release
// can write some values anew and leave the others as they are.
//
// Fields may be added to a message without a new version. A new version keeps
// the frame, for that is how this release tells a newer value from a broken one.
const (
	formatName         = "rookery-state-1"
	formatVersion byte = 1
	// formatCluster is the cluster row's from cluster version 2 on. The message is
	// as before: a release that knows version 1 alone is to stop at it.
	formatCluster byte = 2
)

var (
	// ErrCorrupt: a value is not what was written under that key. The node
	// stops; its state has to come from a snapshot or another node.
	ErrCorrupt = errors.New("machine: corrupt record")
	// ErrFormat: a value is whole, but in a format that this release cannot
	// read. The node stops; the newer release has to be put back.
	ErrFormat = errors.New("machine: unknown format")
)

// frameSize is what seal adds: the version before a message, the checksum after.
const frameSize = 1 + crc32.Size

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// seal returns the value to put under key in b:
//
//	formatVersion (1 octet) | message | CRC-32C (4 octets, big endian)
//
// The checksum is taken over the bucket's name, key, version and message. No
// bucket's name begins with another's, so a value that got under a wrong key
// is found out wherever that key is.
func seal(b kv.Bucket, key, message []byte) []byte {
	return appendSealed(make([]byte, 0, len(message)+frameSize), b, key, message)
}

// appendSealed is seal into dst, which must be empty.
func appendSealed(dst []byte, b kv.Bucket, key, message []byte) []byte {
	return appendSealedAs(dst, formatVersion, b, key, message)
}

// appendSealedAs is appendSealed with a version of the format.
func appendSealedAs(dst []byte, version byte, b kv.Bucket, key, message []byte) []byte {
	dst = append(append(dst, version), message...)
	return binary.BigEndian.AppendUint32(dst, sealSum(b, key, dst))
}

// unseal returns the message in the value that stood under key in b. It is a
// part of value, not a copy.
//
// Errors: ErrCorrupt, ErrFormat; both name bucket and key.
func unseal(b kv.Bucket, key, value []byte) ([]byte, error) {
	if len(value) < frameSize {
		return nil, fmt.Errorf("%w: bucket %q, key %q: %d octets are no value", ErrCorrupt, string(b), key, len(value))
	}
	end := len(value) - crc32.Size
	if got, want := sealSum(b, key, value[:end]), binary.BigEndian.Uint32(value[end:]); got != want {
		return nil, fmt.Errorf("%w: bucket %q, key %q: checksum is %08x, the value says %08x", ErrCorrupt, string(b), key, got, want)
	}
	newest := formatVersion
	if value[0] != formatVersion && b == bucketMeta && bytes.Equal(key, keyCluster) {
		newest = formatCluster
	}
	switch version := value[0]; {
	case version == formatVersion || version == newest:
		return value[1:end:end], nil
	case version > newest:
		return nil, fmt.Errorf("%w: bucket %q, key %q: version %d was written by a newer release; this one reads up to %d: put the newer release back",
			ErrFormat, string(b), key, version, newest)
	default:
		return nil, fmt.Errorf("%w: bucket %q, key %q: version %d was never written", ErrCorrupt, string(b), key, version)
	}
}

func sealSum(b kv.Bucket, key, body []byte) uint32 {
	// The name octet by octet: as a slice it would be copied to the heap, at
	// every read.
	crc := ^uint32(0)
	for i := range len(b) {
		crc = castagnoli[byte(crc)^b[i]] ^ crc>>8
	}
	crc = crc32.Update(^crc, castagnoli, key)
	return crc32.Update(crc, castagnoli, body)
}
