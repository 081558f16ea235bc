package kv

// Bucket names an ordered set of keys. The set of buckets is fixed when a
// store is opened; a bucket nobody has written to is empty, not an error.
type Bucket string

// Reader is a consistent view of a store at one point. It may be used by
// several goroutines at once; an Iterator may not.
type Reader interface {
	// Get returns the value of key, or nil when there is none.
	Get(b Bucket, key []byte) []byte
	// Iterate returns an iterator over b, not yet positioned.
	Iterate(b Bucket) Iterator
}

// Iterator walks a bucket in key order, upward.
type Iterator interface {
	// Seek moves to the first key at or after key and returns it with its
	// value; a nil key at the end. Seek(nil) moves to the first key.
	Seek(key []byte) (k, v []byte)
	// Next moves to the key after the present one; a nil key at the end.
	// Next before Seek is a mistake of the caller and returns the first key.
	Next() (k, v []byte)
}

// Tx is a Reader that can be written to, by one goroutine. What it wrote is
// seen by itself at once and by others when its owner publishes it.
type Tx interface {
	Reader
	// Put sets key to value. An empty key is not allowed; an empty value is.
	Put(b Bucket, key, value []byte)
	// Delete removes key; removing what is not there does nothing.
	Delete(b Bucket, key []byte)
}
