// Package recordv1 is what stands on disk and in the log, version 1: generated
// from record.proto, whose comments describe it.
//
// A record that any release wrote can be read by every later one: fields are
// added, none is renumbered or changes its meaning.
package recordv1
