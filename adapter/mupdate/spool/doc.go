// Package spool keeps a listing of records, each a name and octets, until it is whole:
// in memory while it is small, then in a file that has no name. A listing that breaks
// off is then one that was never used, and a hundred at once cost disk and not memory.
package spool
