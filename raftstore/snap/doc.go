// Package snap is the file, or stream, that carries the whole state of a shard
// at one index: to keep, to send, to start a node from.
//
// # Format, version 1
//
// All numbers are big-endian.
//
//	"rooksnap"  magic
//	u32         version
//	u32         length of the header, then the header:
//	    16 octets cluster, u64 incarnation, u32 shard, u8 kind,
//	    u64 index, u64 term,
//	    u32 length and protobuf of the membership (raftpb.ConfState)
//	u32         CRC32C of all before
//	chunks:     u32 length (1 MiB, the last one less), u32 CRC32C, octets
//	u32 0       end of chunks
//	u64         length of all chunks' octets
//	32 octets   SHA-256 of everything before
//
// What the snapshot is of stands inside it, never in its name or its
// directory: a file that was moved or renamed cannot be taken for another.
// A chunk is checked before any of it is handed on, so a transfer that goes
// wrong ends at the chunk; the hash finds what is missing, doubled or swapped.
//
// The payload is an image of the state file as one read transaction saw it
// (kind 1), rather than its keys in order. The image is larger by what the file
// has in free pages, but it is written and read at the speed of the disk, and
// installing it is a rename; keys in order have to be loaded again, which takes
// minutes where the image takes seconds, and the time until a lost node is
// whole again is what a snapshot is for. Kind 2 is the meta record and the keys in
// order, as the simulator's memory store writes them.
package snap
