// Package kvtest is the conformance suite of internal/kv: every store that
// stands behind kv.Tx and kv.Reader runs it.
package kvtest
